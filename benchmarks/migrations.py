"""Migration files as an application has them, always the same: tables, indexes, changes, rows, functions, views,
comments, and where that is asked for one large file.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple


class File(NamedTuple):
    """A file's name without ending, and its SQL."""

    name: str
    sql: str


LARGE_ROWS, AT_ONCE = 10_000, 100  # 300 KB
VARIABLE_TYPE = "numeric"


def rows(topic: str, count: int = 40) -> str:
    values = ",\n".join(f"    ('{topic} {n}', {n * 7 % 90}.50, {n % 2 == 0})" for n in range(count))
    return f"INSERT INTO {topic} (name, price, active) VALUES\n{values};\n"


def about(t: str) -> list[tuple[str, str]]:
    """The ten files of one topic: what each does, and its SQL."""
    return [
        (
            f"create_{t}",
            f"""-- The heart of it.
CREATE TABLE {t} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    price numeric(10, 2) NOT NULL DEFAULT 0,
    active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE {t} IS 'What the shop''s {t} are';
""",
        ),
        (
            f"index_{t}",
            f"CREATE INDEX {t}_name ON {t} (name);\nCREATE INDEX {t}_active ON {t} (created_at) WHERE active;\n",
        ),
        (f"rows_of_{t}", rows(t)),
        (f"{t}_weight", f"ALTER TABLE {t} ADD COLUMN weight integer;\nALTER TABLE {t} ADD COLUMN note varchar(200);\n"),
        (
            f"lines_of_{t}",
            f"""CREATE TABLE {t}_lines (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parent_id bigint NOT NULL REFERENCES {t} (id) ON DELETE CASCADE,
    position integer NOT NULL,
    body jsonb NOT NULL DEFAULT '{{}}',
    UNIQUE (parent_id, position)
);
""",
        ),
        (
            f"touch_{t}",
            f"""-- When a row of {t} was changed, and by how much its price.
-- The application used to do this; rows that were written by hand had no date then.
ALTER TABLE {t} ADD COLUMN changed_at timestamptz, ADD COLUMN rise numeric(10, 2);
CREATE FUNCTION touch_{t}() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    old_price {VARIABLE_TYPE};
BEGIN
    old_price := OLD.price;  -- it is never NULL
    NEW.changed_at := now();
    NEW.rise := NEW.price - old_price;
    RETURN NEW;
END
$$;
CREATE TRIGGER touch_{t} BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION touch_{t}();
""",
        ),
        (
            f"view_of_{t}",
            f"CREATE VIEW active_{t} AS\n    SELECT id, name, price FROM {t} WHERE active AND price > 10;\n",
        ),
        (
            f"fill_{t}_weight",
            f"UPDATE {t} SET weight = 1 WHERE weight IS NULL;\nALTER TABLE {t} ALTER COLUMN weight SET NOT NULL;\n",
        ),
        (
            f"check_{t}",
            f"ALTER TABLE {t} ADD CONSTRAINT {t}_price CHECK (price >= 0);\n"
            f"CREATE UNIQUE INDEX {t}_unique ON {t} (lower(name));\n",
        ),
        (
            f"states_of_{t}",
            f"CREATE TYPE {t}_state AS ENUM ('new', 'paid', 'sent');\n"
            f"ALTER TABLE {t} ADD COLUMN state {t}_state NOT NULL DEFAULT 'new';\n",
        ),
    ]


def large() -> str:
    """Reference data that somebody has exported."""
    table = "CREATE TABLE places (id integer PRIMARY KEY, name text NOT NULL, region text);\n"
    values = [f"({n}, 'place {n}', '{n % 97}')" for n in range(LARGE_ROWS)]
    batches = (",\n".join(values[at : at + AT_ONCE]) for at in range(0, LARGE_ROWS, AT_ONCE))
    return table + "".join(f"INSERT INTO places (id, name, region) VALUES\n{batch};\n" for batch in batches)


def realistic(count: int, functions: bool = True, with_large: bool = False) -> list[File]:
    """So many files, numbered from 1; they can be applied in this order. Without functions: none in PL/pgSQL."""
    found: list[File] = []
    for topic in itertools.count(1):
        for name, sql in about(f"topic_{topic}"):
            if with_large and len(found) == count // 2:
                found.append(File(f"{len(found) + 1:05d}_places", large()))
            if len(found) == count:
                return found
            if functions or "plpgsql" not in sql:
                found.append(File(f"{len(found) + 1:05d}_{name}", sql))
    return found


def statements(count: int) -> File:
    """One file of so many statements."""
    lines = "".join(f"INSERT INTO many VALUES ({n}, 'row {n}');\n" for n in range(count - 1))
    return File("00001_many", f"CREATE TABLE many (id integer, name text);\n{lines}")

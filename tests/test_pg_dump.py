"""What pg_dump of PostgreSQL 14 to 18 writes is a migration."""

from __future__ import annotations

from collections.abc import Iterator

import initializer
import pytest
from harness import clients
from harness.compare import without_noise
from harness.database import SCHEMA, create_database, drop_database
from harness.world import ADMIN, ADMIN_PASSWORD, World

RICH_SCHEMA = rf"""
CREATE EXTENSION IF NOT EXISTS "uuid-ossp";
CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'happy; very');
CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
CREATE SEQUENCE numbers START 1000;
CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT uuid_generate_v4(), email varchar UNIQUE, mood mood DEFAULT 'happy; very',
    made timestamptz DEFAULT '2026-01-01 00:00:00+00', tags text[], data jsonb, raw bytea, couple pair
);
CREATE TABLE "Mixed; Case" (id bigint GENERATED ALWAYS AS IDENTITY, "strange "" name" text, price positive,
    twice numeric GENERATED ALWAYS AS (price * 2) STORED);
CREATE TABLE parts (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE parts_2026 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE child (id int REFERENCES parent_of_child) INHERITS (base);
CREATE TABLE empty_one ();
CREATE VIEW happy AS SELECT email FROM users WHERE mood = 'happy; very';
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM users;
CREATE FUNCTION f(a int) RETURNS int LANGUAGE plpgsql AS $f$ BEGIN RETURN a; /* ; $$ */ END; $f$;
CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.email := lower(NEW.email); RETURN NEW; END $$;
CREATE FUNCTION h(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN a > 0 THEN a ELSE -a END; END;
CREATE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC DELETE FROM base; DELETE FROM users WHERE email = ';'; END;
CREATE TRIGGER t BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION g();
CREATE RULE r AS ON DELETE TO "Mixed; Case" DO ALSO (DELETE FROM base; SELECT ';');
CREATE INDEX ON users (lower(email)) WHERE mood <> 'sad';
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int);
ALTER TABLE users ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON users USING (email = current_user);
CREATE SCHEMA other;
CREATE TABLE other.t (a text, b int DEFAULT nextval('{SCHEMA}.numbers'));
COMMENT ON TABLE users IS 'it''s; a "comment"
-- of two lines';
INSERT INTO users (email, tags, data, raw, couple) VALUES
    ('A@example.com', '{{"a;b","c\"d",NULL}}', '{{"a": "\\n;"}}', '\x00ff5c', ROW(1, 'x,y')),
    (E'tab\t\\newline\n;ü', NULL, NULL, '', NULL),
    ('', '{{}}', 'null', NULL, ROW(NULL, NULL)), (NULL, NULL, NULL, NULL, NULL),
    ('\.', NULL, NULL, NULL, NULL), ('\N', NULL, NULL, NULL, NULL), ('$$', NULL, NULL, NULL, NULL);
INSERT INTO "Mixed; Case" ("strange "" name", price) SELECT 'row ' || i, i FROM generate_series(1, 300) i;
INSERT INTO parts VALUES (1, '2026-05-05');
INSERT INTO base VALUES (1); INSERT INTO child VALUES (2), (3);
INSERT INTO other.t (a) VALUES ('--'), ('/*'), ('''');
REFRESH MATERIALIZED VIEW counted;
"""
BEFORE = """
CREATE TABLE base (id int);
CREATE TABLE parent_of_child (id int PRIMARY KEY);
INSERT INTO parent_of_child VALUES (2), (3);
"""


@pytest.fixture
def original(world: World) -> Iterator[World]:
    """Another database, with a rich schema and rows."""
    name = f"{world.dbname}_original"
    create_database(world.server, name, ADMIN)
    there = World.__new__(World)
    there.server, there.dbname, there.folder, there.idle = world.server, name, world.folder, []
    there.sql(BEFORE + (RICH_SCHEMA if world.server.version >= 140000 else _without_atomic(RICH_SCHEMA)))
    yield there
    drop_database(world.server, name)


def _without_atomic(schema: str) -> str:
    """PostgreSQL 13 knows no SQL-standard bodies."""
    return "\n".join(line for line in schema.splitlines() if "ATOMIC" not in line)


def dump(world: World, major: int, *options: str) -> str:
    env = clients.environment(world.server, ADMIN, ADMIN_PASSWORD, world.dbname)
    program = clients.client("pg_dump", max(major, world.server.version // 10000))
    return clients.run(program, "-T", f"{SCHEMA}.schema_migrations*", *options, env=env)


@pytest.mark.parametrize(
    ("major", "options"),
    [
        *((major, ()) for major in clients.MAJORS),
        (18, ("--inserts",)),
        (18, ("--column-inserts", "--rows-per-insert=7")),
        (18, ("--clean", "--if-exists")),
    ],
)
@pytest.mark.slow
def test_pg_dump_of_rich_database_applied_gives_the_same_database(
    world: World, original: World, major: int, options: tuple[str, ...]
) -> None:
    """Dump, apply through the handler, dump again: equal."""
    first = dump(original, major, *options)
    world.write("001_initial_schema.sql", first)

    report = world.deploy(CREATE_USERS="false")

    assert [entry["name"] for entry in report["applied"]] == ["001_initial_schema"]
    assert without_noise(dump(world, major, *options)) == without_noise(first)


STAMPED = """
CREATE TABLE public.t (a int, "b, c" text);
ALTER TABLE ONLY public.t ALTER COLUMN a SET (pg_attver=22183600);
ALTER TABLE ONLY public.t ALTER COLUMN "b, c" SET (pg_attver=22183601);
CREATE MATERIALIZED VIEW public.m AS SELECT a FROM public.t WITH NO DATA;
ALTER TABLE ONLY public.m ALTER COLUMN a SET (pg_attver=22183602);
"""


@pytest.mark.parametrize(
    "text",
    [STAMPED, f"-- no-transaction\n{STAMPED}", STAMPED + f"INSERT INTO t VALUES (1, '{'x' * 1000}');\n" * 1100],
    ids=["one message", "marked", "several messages"],
)
def test_pg_dump_with_column_stamps_is_applied_without_them(
    world: World, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Stamps of columns, which older servers refuse and newer ones ignore, are left out; one warning says so."""
    world.write("001_dump.sql", text)

    report = world.deploy(CREATE_USERS="false")

    assert [entry["name"] for entry in report["applied"]] == ["001_dump"]
    assert world.sql("SELECT relkind FROM pg_class WHERE relname IN ('t', 'm') ORDER BY 1") == [("m",), ("r",)]
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["column stamps of another server left out migration=001_dump setting=pg_attver"]


def test_pg_dump_with_a_stamp_among_other_options_is_applied_or_says_what_to_delete(world: World) -> None:
    """A stamp next to another option is not left out: a server that does not know it gets a clear message."""
    options_of = "SELECT attoptions::text FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'a'"
    world.sql("CREATE TABLE probe (a int)")
    ((stamp,),) = world.sql(options_of, "probe")
    world.write(
        "001_dump.sql", "CREATE TABLE t (a int);\nALTER TABLE ONLY t ALTER COLUMN a SET (pg_attver=1, n_distinct=5);"
    )

    if stamp:
        world.deploy(CREATE_USERS="false")
        assert "n_distinct=5" in world.sql(options_of, "t")[0][0]
    else:
        said = r"^001_dump.sql:2: unrecognized parameter .* This server does not know that option; leave it out"
        with pytest.raises(initializer.MigrationError, match=said):
            world.deploy(CREATE_USERS="false")


def test_pg_dump_for_a_role_that_is_missing_says_so(world: World, original: World) -> None:
    """OWNER TO a role that does not exist is a clear message."""
    world.write("001_dump.sql", dump(original, 15).replace(f"OWNER TO {ADMIN}", "OWNER TO nobody_here"))

    with pytest.raises(initializer.MigrationError, match=r'^001_dump.sql:\d+: role "nobody_here" does not exist'):
        world.deploy(CREATE_USERS="false")


def test_pg_dump_with_own_tracking_table_is_refused(world: World) -> None:
    """A dump that brings a table of the tracking table's name points to MIGRATIONS_TABLE."""
    world.write("001_dump.sql", f"\n\nCREATE TABLE {SCHEMA}.schema_migrations (\n    version text\n);\n")

    with pytest.raises(initializer.MigrationError, match=r"^001_dump.sql:3:1: .*MIGRATIONS_TABLE"):
        world.deploy()

    world.deploy(MIGRATIONS_TABLE="db_setup_migrations")
    assert world.applied("db_setup_migrations") == ["001_dump"]


def test_pg_dump_adopted_as_first_migration_is_not_run(world: World, original: World) -> None:
    """An existing database whose dump is the first migration is adopted."""
    text = dump(original, 15)
    world.write("001_dump.sql", text)
    env = clients.environment(world.server, ADMIN, ADMIN_PASSWORD, world.dbname)
    clients.run(clients.client("psql", clients.MAJORS[-1]), "-X", "-f", str(world.folder / "001_dump.sql"), env=env)

    report = world.deploy(CREATE_USERS="false")

    assert report["adopted"] == ["001_dump"]

"""The marks of a script that runs step by step: which steps have run, so that the next run resumes
after them.

Knows PostgreSQL, nothing of migrations or AWS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

from database import literal
from psycopg2 import sql
from session import Session

# An operator in the script's search path, made by others, would run as the admin.
AS_OURSELVES_SQL = (
    "SET LOCAL SESSION AUTHORIZATION DEFAULT; SET LOCAL ROLE NONE; "
    "SET LOCAL search_path = pg_catalog; "
)


class Mark(NamedTuple):
    """What is known of a step: that it is done, or only that it began, and which objects were
    there before.
    """

    checksum: str
    done: bool
    objects_before: list[int]


@dataclass(frozen=True)
class Marks:
    """The table of marks, and the name under which one script has its own."""

    table: sql.Composable
    name: str
    may_restart: bool = False  # the script begins again where another text of it has left them

    def read(self, session: Session) -> dict[int, Mark]:
        """The steps that have begun, by number."""
        select = sql.SQL(
            "SELECT step, checksum, done_at IS NOT NULL, objects_before FROM {} WHERE "
            "migration_name = %s"
        )
        rows = session.query(select.format(self.table), [self.name])
        return {step: Mark(*known) for step, *known in rows}

    def done_sql(self, session: Session, step: int, checksum: str) -> str:
        """Marks a step as done, whatever role and path the script has taken on."""
        return self._mark_sql(session, step, checksum, [], "now()")

    def begun_sql(self, session: Session, step: int, checksum: str, objects: Sequence[int]) -> str:
        """Marks a step as begun, with the objects that are there before it."""
        return self._mark_sql(session, step, checksum, objects, "NULL")

    def _mark_sql(
        self, session: Session, step: int, checksum: str, objects: Sequence[int], done_at_sql: str
    ) -> str:
        insert = sql.SQL(MARK_SQL).format(
            self.table,
            literal(self.name),
            sql.Literal(step),
            sql.Literal(checksum),
            sql.Literal(list(objects)),
            sql.SQL(done_at_sql),
        )
        return AS_OURSELVES_SQL + insert.as_string(session.connection)

    def forget_sql(self, session: Session, step: Optional[int] = None) -> str:
        """Removes the mark of a step, or all of the script's."""
        delete = sql.SQL("DELETE FROM {} WHERE migration_name = {} AND step = coalesce({}, step)")
        filled = delete.format(self.table, literal(self.name), sql.Literal(step))
        return AS_OURSELVES_SQL + filled.as_string(session.connection)


CREATE_SQL = (
    "CREATE TABLE IF NOT EXISTS {} (migration_name VARCHAR(255), step INTEGER, checksum TEXT NOT "
    "NULL, objects_before BIGINT[] NOT NULL, started_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, "
    "done_at TIMESTAMP, PRIMARY KEY (migration_name, step))"
)
MARK_SQL = (
    "INSERT INTO {} VALUES ({}, {}, {}, {}::bigint[], now(), {}) ON CONFLICT (migration_name, "
    "step) DO UPDATE SET (checksum, objects_before, started_at, done_at) = (excluded.checksum, "
    "excluded.objects_before, excluded.started_at, excluded.done_at)"
)

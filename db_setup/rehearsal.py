"""The session of a dry run: one transaction that is rolled back, and the locks that it has taken
meanwhile.

Knows PostgreSQL, nothing of migrations or AWS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Optional, Union

from common import LOG_PREFIX, Deadline
from database import Login
from psycopg2 import sql
from session import Session

if TYPE_CHECKING:
    from effects import Effects

PREFIX = "dry run: "
OUR_SAVEPOINT = "db_setup_transaction"
# From weak to strong, and what others cannot do meanwhile.
BLOCKS = {
    "RowExclusiveLock": "nothing",
    "ShareUpdateExclusiveLock": "other changes of the table",
    "ShareLock": "writing",
    "ShareRowExclusiveLock": "writing",
    "ExclusiveLock": "writing",
    "AccessExclusiveLock": "reading and writing",
}
LOCK_MODES = list(BLOCKS)
FIRST_THAT_BLOCKS_WRITING = LOCK_MODES.index("ShareLock")


class Rehearsal(Session):
    """A session in which, between `rehearsing` and its end, each transaction is a savepoint of one
    that is rolled back.

    Everything is rolled back except the values of sequences.
    """

    def __init__(self, login: Login, deadline: Deadline, lock_timeout_ms: int) -> None:
        super().__init__(login, deadline, lock_timeout_ms)
        self.has_sequences = False
        self.effects: Optional[Effects] = None  # once files are tried
        self.tables: dict[int, str] = {}  # those that are not new
        self._strongest_locks: dict[int, int] = {}  # by table, as an index of LOCK_MODES

    @contextmanager
    def rehearsing(self, our_tables: Sequence[str]) -> Iterator[None]:
        """The transaction. Locks on `our_tables` are not reported."""
        self.query("BEGIN")
        self.tables = dict(self.query(TABLES_SQL, [list(our_tables)]))
        our_sequences = [f"{name}_id_seq" for name in our_tables]
        self.has_sequences = bool(self.query(SEQUENCES_SQL, [our_sequences]))
        prefix = LOG_PREFIX.set(PREFIX)
        self.activity.log_prefix = PREFIX
        try:
            yield
        finally:
            LOG_PREFIX.reset(prefix)
            self.activity.log_prefix = ""
            super().roll_back()

    def start_transaction(self, begin_sql: str = "BEGIN") -> str:
        """Sets the savepoint, alone: a message that cannot be parsed would not set it. Returns what
        sets the modes that a savepoint can have: reading and writing.
        """
        if self.effects:
            self.effects.begin()
        self.query(f"SAVEPOINT {OUR_SAVEPOINT}")
        modes = re.search("READ (ONLY|WRITE)", begin_sql.upper())
        return f"SET TRANSACTION {modes.group()}" if modes else READ_ONLY_BY_DEFAULT_SQL

    def commit_sql(self) -> str:
        return f"RELEASE SAVEPOINT {OUR_SAVEPOINT}"

    def run_script(self, text: Union[str, bytes], fetches: bool) -> list[tuple[Any, ...]]:
        answer = super().run_script(text, fetches)
        if self.effects:
            self.effects.look()
        return answer

    def roll_back(self) -> None:
        if self.effects:
            self.effects.roll_back()
        self._undo()

    def _undo(self) -> None:
        self._end_transaction(f"ROLLBACK TO SAVEPOINT {OUR_SAVEPOINT}; {self.commit_sql()}")

    def query_all_or_none(self, statements: sql.Composable) -> list[tuple[Any, ...]]:
        with self.transaction():
            return self.query(statements)

    def ask(self, statements: sql.Composable) -> list[tuple[Any, ...]]:
        self.start_transaction()
        try:
            return self.query(statements)
        finally:
            self.roll_back()

    def _can_retry(self) -> bool:
        """Not while it blocks others itself, which it does until its end."""
        blocks_others = any(
            mode >= FIRST_THAT_BLOCKS_WRITING for mode in self._strongest_locks.values()
        )
        return super()._can_retry() and not blocks_others

    def defer_constraints(self) -> None:
        """After SET CONSTRAINTS ALL IMMEDIATE: defer those again that are deferred when a
        transaction begins. A file, or a step of it, has come to its end.
        """
        # Not in the path that a script may have left, where an operator of others would run.
        path_sql = "SET LOCAL search_path = pg_catalog; SET LOCAL jit = off"
        self.query(f"SAVEPOINT {OUR_SAVEPOINT}; {path_sql}")
        ((others,),) = self.query(IMMEDIATE_CONSTRAINTS_SQL)
        if self.effects:
            self.effects.end_transaction()
        self._undo()
        again_sql = f"SET CONSTRAINTS {others} IMMEDIATE" if others else ""
        self.query(f"SET CONSTRAINTS ALL DEFERRED; {again_sql}")

    def held_locks(self) -> list[tuple[int, int, int]]:
        """Table, mode as an index of LOCK_MODES (-1: a weaker one), and how often the table was
        read as a whole.
        """
        return [
            (table, LOCK_MODES.index(mode) if mode in BLOCKS else -1, scans)
            for table, mode, scans in self.query(HELD_LOCKS_SQL)
            if table in self.tables
        ]

    def new_locks(self) -> list[tuple[str, int]]:
        """The locks taken since the last call, as table and mode: of each table the strongest,
        where it is stronger than before.
        """
        taken: dict[int, int] = {}
        for table, mode, _ in self.held_locks():
            if mode >= 0:
                taken[table] = max(mode, taken.get(table, -1))
        before = self._strongest_locks
        stronger = {table: mode for table, mode in taken.items() if mode > before.get(table, -1)}
        before.update(stronger)
        strongest_first = sorted(stronger.items(), key=lambda one: (-one[1], self.tables[one[0]]))
        return [(self.tables[table], mode) for table, mode in strongest_first]


def lock_entry(table: str, mode: int) -> dict[str, Any]:
    """AccessExclusiveLock is, in the words of LOCK TABLE, ACCESS EXCLUSIVE."""
    name = LOCK_MODES[mode]
    words = re.sub("(?<=[a-z])(?=[A-Z])", " ", name[: -len("Lock")]).upper()
    return {"table": table, "lock": words, "blocks": BLOCKS[name]}


# --- The questions ----------------------------------------------------------------------------

READ_ONLY_BY_DEFAULT_SQL = (  # in a savepoint, too
    "SELECT pg_catalog.set_config('transaction_read_only', "
    "pg_catalog.current_setting('default_transaction_read_only'), true)"
)
TABLES_SQL = """
    SELECT c.oid::bigint, quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f')
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND c.relname <> ALL (%s)"""
# Asked between the statements of a script, too: in its path.
HELD_LOCKS_SQL = (
    "SELECT relation::pg_catalog.int8, mode, pg_catalog.pg_stat_get_xact_numscans(relation) "
    "FROM pg_catalog.pg_locks WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() "
    "AND locktype OPERATOR(pg_catalog.=) 'relation' AND granted"
)
# What SET CONSTRAINTS ALL IMMEDIATE has changed for the rest of the transaction; of ours there is
# but one.
IMMEDIATE_CONSTRAINTS_SQL = """
    SELECT string_agg(format('%I.%I', n.nspname, c.conname), ', ') FROM pg_constraint c
    JOIN pg_namespace n ON n.oid = c.connamespace
    WHERE c.condeferrable AND NOT c.condeferred AND has_schema_privilege(n.oid, 'USAGE')
      AND (n.nspname !~ '^pg_' OR n.oid = pg_my_temp_schema())"""
SEQUENCES_SQL = """
    SELECT true FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND n.nspname !~ '^pg_' AND c.relname <> ALL (%s) LIMIT 1"""

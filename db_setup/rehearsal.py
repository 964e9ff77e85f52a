"""A dry run: one transaction that is rolled back, and what it has locked meanwhile.

Knows PostgreSQL, nothing of migrations or AWS.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from database import REHEARSAL, Connection, query, roll_back

PREFIX = "dry run: "
# From weak to strong, and what others cannot do meanwhile.
TABLE_LOCKS = {
    "RowExclusiveLock": "nothing",
    "ShareUpdateExclusiveLock": "other changes of the table",
    "ShareLock": "writing",
    "ShareRowExclusiveLock": "writing",
    "ExclusiveLock": "writing",
    "AccessExclusiveLock": "reading and writing",
}
TABLES = """
    SELECT c.oid::bigint, format('%%I.%%I', n.nspname, c.relname) FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND c.relname <> ALL (%s)"""
LOCKED = (
    "SELECT relation::bigint, mode FROM pg_catalog.pg_locks "
    "WHERE pid = pg_catalog.pg_backend_pid() AND locktype = 'relation' AND granted"
)
# What SET CONSTRAINTS ALL IMMEDIATE has changed for the rest of the transaction; of ours there is but one.
IMMEDIATE_AGAIN = """
    SELECT string_agg(format('%I.%I', n.nspname, c.conname), ', ') FROM pg_constraint c
    JOIN pg_namespace n ON n.oid = c.connamespace
    WHERE c.condeferrable AND NOT c.condeferred AND has_schema_privilege(n.oid, 'USAGE')
      AND (n.nspname !~ '^pg_' OR n.oid = pg_my_temp_schema())"""
SEQUENCES = """
    SELECT true FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'S' AND n.nspname !~ '^pg_' AND c.relname <> ALL (%s) LIMIT 1"""


class Rehearsal:
    """While the block lasts, what the connection calls a transaction is part of one that is rolled back in the end.

    Sequences do not go back. Tables named in `without` are not spoken of.
    """

    def __init__(self, conn: Connection, without: Sequence[str] = ()) -> None:
        self._conn, self._held, self._without = conn, dict[int, int](), list(without)

    def __enter__(self) -> Rehearsal:
        query(self._conn, "BEGIN")
        self._conn.rehearsal = self
        self._tables = dict(query(self._conn, TABLES, [self._without]))
        self.has_sequences = bool(query(self._conn, SEQUENCES, [[f"{name}_id_seq" for name in self._without]]))
        self._said_in = REHEARSAL.set(PREFIX)
        return self

    def __exit__(self, *_: Any) -> None:
        REHEARSAL.reset(self._said_in)
        self._conn.rehearsal = None
        roll_back(self._conn)

    def __str__(self) -> str:
        return PREFIX

    @property
    def is_in_the_way(self) -> bool:
        """It holds locks that keep others waiting, and will until its end."""
        weakest = list(TABLE_LOCKS.values()).index("writing")
        return any(mode >= weakest for mode in self._held.values())

    def defer_constraints(self) -> None:
        """Behind SET CONSTRAINTS ALL IMMEDIATE: those that are deferred at the beginning of a transaction are again."""
        ((others,),) = query(self._conn, IMMEDIATE_AGAIN)
        query(self._conn, f"SET CONSTRAINTS ALL DEFERRED; {f'SET CONSTRAINTS {others} IMMEDIATE' if others else ''}")

    def new_locks(self) -> list[dict[str, str]]:
        """The locks taken since the last call: of each table the strongest, where it is stronger than before."""
        modes, taken = list(TABLE_LOCKS), dict[int, int]()
        for table, mode in query(self._conn, LOCKED):
            if table in self._tables and mode in modes:
                taken[table] = max(modes.index(mode), taken.get(table, -1))
        stronger = {table: mode for table, mode in taken.items() if mode > self._held.get(table, -1)}
        self._held.update(stronger)
        return [
            {
                "table": self._tables[table],
                "lock": re.sub("(?<=[a-z])(?=[A-Z])", " ", modes[mode][: -len("Lock")]).upper(),
                "blocks": TABLE_LOCKS[modes[mode]],
            }
            for table, mode in sorted(stronger.items(), key=lambda one: (-one[1], self._tables[one[0]]))
        ]

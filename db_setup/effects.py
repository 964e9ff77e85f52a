"""What the files of a dry run do to what was there before: locks and their times, tables that are
written again, data that are lost; and a level for each file.

Knows PostgreSQL, nothing of migrations or AWS. It compares the catalogs before and after each
transaction of a file. What is made in the same run is no finding: nobody uses it yet.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rehearsal import FIRST_THAT_BLOCKS_WRITING, LOCK_MODES, Rehearsal, lock_entry

LEVELS = ("harmless", "blocks writes", "blocks reads", "loses data")
BLOCKS_AT_LEVEL = {"writing": 1, "reading and writing": 2}
LONG_MS = 1000  # what is locked for so long is not free in a moment, whatever the reason
FREE_LOOKS_S = 1.0  # in a run; later a look comes after as much time as the last one took
MOST_ENTRIES = 1000  # of a list in the report: Lambda's answer has at most 6 MB


class Table(NamedTuple):
    """A table, view or materialized view, as TABLES_SQL describes it."""

    oid: int
    name: str
    kind: str
    node: int  # the number of its file
    toast: int
    rows: int  # as the last ANALYZE has estimated; 0 or less: not known
    shape: int  # another one with other columns, types, NOT NULL or constraints
    columns: Mapping[str, str]  # by number; empty where a column has no data of its own
    indexes: Mapping[str, str]  # by the number of their file
    keys: Mapping[str, int]  # foreign keys from it and to it: from which table, if validated
    scans: int  # how often it was read as a whole, in this transaction; so are the next two
    inserted: int
    deleted: int


@dataclass
class Hold:
    """A lock: since when, and how often its table had been read as a whole before."""

    since: float
    scans: int


class Effects:
    """Follows the transactions of a dry run; `take` gives what a file has done in its own."""

    def __init__(self, session: Rehearsal) -> None:
        self._session = session
        self._looks_s = self._last_look_s = 0.0
        self._was_rolled_back = False
        self._tables = self._ask(list(session.tables))
        self._others = self._ask_others()
        self._scans = {oid: table.scans for oid, table in self._tables.items()}
        self._before = {(table, mode) for table, mode, _ in session.held_locks() if mode >= 0}
        self.begin_file("")

    def begin_file(self, text: str) -> None:
        self._says = {word.upper() for word in EMPTY_OR_MOVE.findall(text)}
        self._locks: dict[tuple[str, int], dict[str, Any]] = {}  # by table and mode
        keys = ("rewritten", "indexes", "lost", "gone")
        self._found: dict[str, list[Any]] = {key: [] for key in keys}
        self.begin()

    def begin(self) -> None:
        """A transaction begins, or begins again after it was rolled back: counters stay then."""
        if self._was_rolled_back:
            for oid, scans, inserted, deleted in self._session.query(COUNTS_SQL, [[*self._tables]]):
                counts = {"scans": scans, "inserted": inserted, "deleted": deleted}
                self._tables[oid] = self._tables[oid]._replace(**counts)
                self._scans[oid] = scans
        self._was_rolled_back = False
        self._holds: dict[tuple[int, int], Hold] = {}  # by table and mode
        self._seen_at = self._began = self._clock()
        self._scans_when_begun = dict(self._scans)

    def roll_back(self) -> None:
        self._was_rolled_back = True

    def _clock(self) -> float:
        """Seconds, without those for looking."""
        return time.monotonic() - self._looks_s

    def look(self, is_last: bool = False) -> None:
        """Note new locks: they were taken after the last look. In whatever role and path."""
        is_early = self._clock() - self._seen_at < self._last_look_s
        if not is_last and is_early and self._looks_s > FREE_LOOKS_S:
            return
        started = time.monotonic()
        found = self._session.held_locks()
        locks = ((table, mode) for table, mode, _ in found if mode >= 0)
        self._held = {(table, mode) for table, mode in locks if table in self._tables}
        self._holds = {key: hold for key, hold in self._holds.items() if key in self._held}
        for table, mode in self._held - self._before - self._holds.keys():
            self._holds[table, mode] = Hold(self._seen_at, self._scans[table])
        self._scans.update({table: scans for table, _, scans in found})
        self._last_look_s = time.monotonic() - started
        self._looks_s += self._last_look_s
        self._seen_at = self._clock()

    # --- The end of a transaction -----------------------------------------------------------------

    def end_transaction(self) -> None:
        """Find what it has changed; with a search path that is PostgreSQL's alone."""
        if self._was_rolled_back:
            self.begin()
        self.look(is_last=True)
        touched = sorted({table for table, _ in self._held})
        after = self._ask(touched)
        changed = [oid for oid in touched if self._has_other_data(oid, after.get(oid))]
        sizes: dict[int, tuple[int, int]] = {}
        if changed:
            written = [oid for oid in changed if oid in after]
            found = self._session.query(SIZES_SQL, {"all": changed, "written": written})
            sizes = {oid: (rows, size) for oid, rows, size in found}
        for oid in touched:
            was = self._tables[oid]
            rows, size = sizes.get(oid, (0, 0))
            known_rows = was.rows if was.rows > 0 else rows
            self._compare(was, after.get(oid), known_rows or None, size)
            self._tables.pop(oid)
        self._tables.update(after)
        self._compare_others()
        self._before = self._held
        self.begin()

    def _has_other_data(self, oid: int, now: Any) -> bool:
        was = self._tables[oid]
        return now is None or was.node != now.node or not was.columns.keys() <= now.columns.keys()

    def _compare(self, was: Table, now: Any, rows: Any, size: int) -> None:
        if now is None:
            if was.kind in "rp":
                self._lose(f"table {was.name}", rows)
            self._note_locks(was, now, is_rewritten=False)
            return
        is_emptied = was.node != now.node and self._is_emptied(was, now, rows, size)
        is_rewritten = was.node != now.node and not is_emptied
        built = [name for node, name in now.indexes.items() if node not in was.indexes]
        if is_emptied:
            self._lose(f"rows of {was.name}", rows)
        elif now.deleted > was.deleted:
            self._lose(f"rows of {was.name}", now.deleted - was.deleted)
        if is_rewritten:
            again = {"table": was.name, "rows": rows, "indexes": len(built)}
            self._found["rewritten"].append(again)
        elif not is_emptied:
            self._found["indexes"] += [{"table": was.name, "index": name} for name in built]
        for number, name in was.columns.items():
            new_name = now.columns.get(number)
            if name and new_name is None and was.kind in "rp":
                self._lose(f"column {was.name}.{name}", rows)
            elif name and new_name not in ("", name) and name not in now.columns.values():
                self._found["gone"].append(f"column {was.name}.{name} (now {new_name})")
        if was.name != now.name and not self._exists(was.name):
            self._found["gone"].append(f"{was.name} (now {now.name})")
        self._note_locks(was, now, is_rewritten)

    def _is_emptied(self, was: Table, now: Table, rows: Any, size: int) -> bool:
        """TRUNCATE gives a table another file, as what writes it again does; but that reads it, or
        gives it another TOAST table, or is said to move it. A file can do both.
        """
        if was.kind == "m":
            return False
        has_same_toast = was.toast == now.toast
        if "TRUNCATE" in self._says:
            has_none = size == 0 and (has_same_toast or rows is not None)
            return has_none or now.inserted > was.inserted
        return has_same_toast and now.scans == was.scans and not self._says  # in a function

    def _note_locks(self, was: Table, now: Any, is_rewritten: bool) -> None:
        """The locks on a table: how long each was held, and whether that grows with the rows."""
        new_keys = [] if now is None else [key for key in now.keys if key not in was.keys]
        tables = self._session.tables  # those of a new one are not many, if any
        has_work = is_rewritten or any(now.keys[key] in tables for key in new_keys)
        for mode in range(len(LOCK_MODES)):
            hold = self._holds.get((was.oid, mode))
            if hold:
                self._note_lock(was, mode, hold, has_work)
        # The same lock a second time cannot be seen. What needs it can.
        needed = []
        if now is None or now.shape != was.shape or is_rewritten:
            needed.append("AccessExclusiveLock")
        if new_keys:
            needed.append("ShareRowExclusiveLock")
        if now is not None and not now.indexes.keys() <= was.indexes.keys():
            needed.append("ShareLock")
        for mode in map(LOCK_MODES.index, needed):
            if (was.oid, mode) in self._before:
                scans = self._scans_when_begun[was.oid]
                self._note_lock(was, mode, Hold(self._began, scans), has_work)

    def _note_lock(self, table: Table, mode: int, hold: Hold, has_work: bool) -> None:
        """Of several transactions of a file the longest counts. The table has its old name."""
        name = self._session.tables[table.oid]
        lock = self._locks.setdefault((name, mode), {"held_ms": 0, "grows": False})
        lock["held_ms"] = max(lock["held_ms"], round((self._seen_at - hold.since) * 1000))
        lock["grows"] = lock["grows"] or has_work or self._scans[table.oid] > hold.scans

    def _compare_others(self) -> None:
        after = self._ask_others()
        names = set(after.values())
        for key in self._others.keys() - after.keys():
            kind, name = self._others[key]
            if kind == "sequence":
                self._lose(f"sequence {name}", None)
            elif kind and (kind, name) not in names:
                self._found["gone"].append(f"{kind} {name}")
        self._others = after

    def _lose(self, what: str, rows: Any) -> None:
        self._found["lost"].append({"what": what, "rows": rows})

    def _exists(self, name: str) -> bool:
        return bool(self._session.query("SELECT to_regclass(%s) IS NOT NULL", [name])[0][0])

    def _ask(self, oids: Sequence[int]) -> dict[int, Table]:
        found = self._session.query(TABLES_SQL, [list(oids)])
        return {row[0]: Table(*row) for row in found}

    def _ask_others(self) -> dict[str, tuple[str, str]]:
        return {key: (kind, name) for key, kind, name in self._session.query(OTHERS_SQL)}

    # --- What is said of a file -------------------------------------------------------------------

    def take(self, strongest: Sequence[tuple[str, int]]) -> dict[str, Any]:
        """What the file has done. `strongest` are the locks that it adds to those of the run: table
        and mode. Others that block somebody follow, unless a stronger one is held for as long.
        """
        unknown = {"held_ms": 0, "grows": False}
        locks = {key: self._locks.pop(key, unknown) for key in strongest}
        others: dict[tuple[str, int], dict[str, Any]] = {}
        for (table, mode), lock in sorted(self._locks.items(), key=lambda one: -one[0][1]):
            stronger = ((table, other) for other in range(mode + 1, len(LOCK_MODES)))
            is_less = any(
                is_at_least(more[key], lock)
                for key in stronger
                for more in (locks, others)
                if key in more
            )
            if mode >= FIRST_THAT_BLOCKS_WRITING and not is_less:
                others[table, mode] = lock
        found: dict[str, Any] = {
            "locks": [{**lock_entry(*key), **lock} for key, lock in locks.items()],
            "other_locks": [{**lock_entry(*key), **lock} for key, lock in others.items()],
            **self._found,
        }
        found = {"level": level(found), **found}
        for key, entries in self._found.items():
            if len(entries) > MOST_ENTRIES:
                found[f"{key}_left_out"] = len(entries) - MOST_ENTRIES
                del entries[MOST_ENTRIES:]
        return found


def is_at_least(lock: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(lock["held_ms"] >= other["held_ms"] and lock["grows"] >= other["grows"])


def level(found: Mapping[str, Any]) -> str:
    """The worst that a file does. A lock counts if it is held for long, or would be with more rows.

    Others are held for a moment, and a migration waits for them no longer than LOCK_TIMEOUT.
    """
    if found["lost"]:
        return LEVELS[-1]
    counting = [
        BLOCKS_AT_LEVEL.get(lock["blocks"], 0)
        for lock in (*found["locks"], *found["other_locks"])
        if lock["grows"] or lock["held_ms"] >= LONG_MS
    ]
    return LEVELS[max(counting, default=0)]


def worst(tried: Sequence[Mapping[str, Any]]) -> str:
    return max((entry["level"] for entry in tried), key=LEVELS.index, default=LEVELS[0])


# --- The questions --------------------------------------------------------------------------------

# TRUNCATE is a right as well: GRANT TRUNCATE ON …
EMPTY_OR_MOVE = re.compile(r"\b(TRUNCATE(?=\s+(?!ON\b)\S)|CLUSTER|TABLESPACE)\b", re.IGNORECASE)
# A column that is inherited goes with its parent's, and a generated one can be made again.
TABLES_SQL = """
    WITH keys(oid, keys) AS (
        SELECT t.oid, json_object_agg(
            k.oid, CASE WHEN k.convalidated THEN k.conrelid::bigint ELSE 0 END)
        FROM pg_constraint k, unnest(ARRAY[k.conrelid, k.confrelid]) t(oid)
        WHERE k.contype = 'f' GROUP BY t.oid)
    SELECT c.oid::bigint, quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind::text,
        c.relfilenode::bigint, c.reltoastrelid::bigint, c.reltuples::bigint,
        hashtextextended(concat(c.relispartition, a.shape, k.shape), 0), coalesce(a.names, '{}'),
        coalesce(i.files, '{}'), coalesce(keys.keys, '{}'), pg_stat_get_xact_numscans(c.oid),
        pg_stat_get_xact_tuples_inserted(c.oid), pg_stat_get_xact_tuples_deleted(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN keys ON keys.oid = c.oid,
    LATERAL (
        SELECT string_agg(concat_ws(' ', attnum, atttypid, atttypmod, attnotnull), ','
                   ORDER BY attnum) AS shape,
               json_object_agg(attnum, CASE WHEN attinhcount > 0 OR attgenerated <> '' THEN ''
                   ELSE quote_ident(attname) END) AS names
        FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) a,
    LATERAL (
        SELECT string_agg(oid::text, ',' ORDER BY oid) AS shape FROM pg_constraint
        WHERE conrelid = c.oid AND contype <> 'f') k,
    LATERAL (
        SELECT json_object_agg(relfilenode, quote_ident(relname)) AS files
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = c.oid AND relfilenode <> 0) i
    WHERE c.oid = ANY (%s::bigint[]::oid[])"""
# In a transaction that has written a table again, or emptied it: nobody else has a lock on it.
SIZES_SQL = """
    SELECT oid::bigint, pg_stat_get_live_tuples(oid),
        CASE WHEN oid = ANY (%(written)s::bigint[]::oid[]) THEN pg_relation_size(oid) ELSE 0 END
    FROM unnest(%(all)s::bigint[]::oid[]) oid"""
COUNTS_SQL = """
    SELECT o::pg_catalog.int8, pg_catalog.pg_stat_get_xact_numscans(o),
        pg_catalog.pg_stat_get_xact_tuples_inserted(o),
        pg_catalog.pg_stat_get_xact_tuples_deleted(o)
    FROM pg_catalog.unnest(%s::pg_catalog.int8[]::pg_catalog.oid[]) o"""
# Sequences that belong to a column go with it.
OTHERS_SQL = """
    SELECT 'class ' || c.oid, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
            WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'type'
            ELSE CASE WHEN d.objid IS NULL THEN 'sequence' ELSE '' END END,
        quote_ident(n.nspname) || '.' || quote_ident(c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_depend d ON c.relkind = 'S' AND d.classid = 'pg_class'::regclass
        AND d.objid = c.oid AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
    WHERE c.relkind IN ('v', 'm', 'f', 'c', 'S') AND n.nspname !~ '^pg_'
        AND n.nspname <> 'information_schema'
    UNION ALL
    SELECT 'type ' || t.oid, 'type', quote_ident(n.nspname) || '.' || quote_ident(t.typname)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE t.typtype IN ('e', 'd', 'r') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    UNION ALL
    SELECT 'schema ' || oid, 'schema', quote_ident(nspname) FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"""

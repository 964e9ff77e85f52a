"""Watches a connection from a second one: says what a long statement waits for and how far it is,
and stops it in time.

Knows PostgreSQL and the clock, nothing of migrations or AWS. The second connection is opened when
there is something to ask, and is never waited for longer than it is told: whatever happens to it,
the watched connection is not harmed.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Optional

import psycopg2
from common import ConnectError, Deadline, log
from database import Connection, Login, options, settle

ANSWER_S = 3  # for a look, or for a cancel, connecting included
CANCELLED_S = 2  # what a cancelled statement may take to end
FIRST_LINE_S = 5
NEXT_LINE_S = 10
TICK_S = 0.25
END_EVERY_S = 1

# View, what it is at, how much is done and of how much; the last one since PostgreSQL 14.
PROGRESS = (
    (
        "pg_stat_progress_create_index",
        "command || ': ' || phase",
        "CASE WHEN tuples_total > 0 THEN tuples_done ELSE blocks_done END",
        "CASE WHEN tuples_total > 0 THEN tuples_total ELSE blocks_total END",
    ),
    (
        "pg_stat_progress_cluster",
        "command || ': ' || phase",
        "heap_blks_scanned",
        "heap_blks_total",
    ),
    (
        "pg_stat_progress_vacuum",
        "'VACUUM: ' || phase",
        "heap_blks_scanned",
        "heap_blks_total",
    ),
    ("pg_stat_progress_copy", "command", "bytes_processed", "bytes_total"),
)
# The sessions that block the one called a. What is prepared has no process.
BLOCKED_BY_SQL = """ARRAY(
        SELECT CASE WHEN p = 0 THEN concat('a prepared transaction, one of ', (
                        SELECT string_agg(concat_ws(' in ', quote_literal(gid), nullif(
                            database, current_database())), ', ') FROM pg_prepared_xacts))
                    ELSE concat_ws(' ', 'pid', p, b.usename, quote_literal(b.application_name),
                   coalesce(b.state, 'in a state that is hidden from us'),
                   extract(epoch FROM clock_timestamp() - b.xact_start)::int || ' s') END
        FROM unnest(pg_blocking_pids(a.pid)) p LEFT JOIN pg_stat_activity b ON b.pid = p)"""
# The same as process ids, with whom these wait for, and as names of prepared transactions.
BLOCKERS_SQL = """(
    WITH RECURSIVE waiting(pid) AS (
        SELECT a.pid UNION SELECT unnest(pg_blocking_pids(pid)) FROM waiting WHERE pid <> 0)
    SELECT json_build_array(
        (SELECT json_agg(pid) FROM waiting),
        (SELECT coalesce(json_agg(DISTINCT p.gid), '[]') FROM waiting
         JOIN pg_locks w ON w.pid = waiting.pid AND NOT w.granted
         JOIN pg_locks h ON h.pid IS NULL AND (h.locktype, h.database, h.relation, h.page, h.tuple,
              h.transactionid, h.classid, h.objid, h.objsubid) IS NOT DISTINCT FROM (w.locktype,
              w.database, w.relation, w.page, w.tuple, w.transactionid, w.classid, w.objid,
              w.objsubid)
         JOIN pg_locks x ON x.virtualtransaction = h.virtualtransaction AND x.pid IS NULL
         JOIN pg_prepared_xacts p ON p.transaction = x.transactionid)))"""
WAITS_FOR_SQL = (
    f"SELECT concat_ws(' ', a.wait_event_type, a.wait_event), {BLOCKED_BY_SQL}, {BLOCKERS_SQL}, "
    "a.state = 'active' FROM pg_stat_activity a WHERE a.pid = %(pid)s"
)
# Another session, called a, that builds an index: never to be ended or cancelled. Stopped, it would
# have to begin again, and might never come to an end.
IS_BUILDING_SQL = r"a.state = 'active' AND a.query ~* $$^\s*(create|reindex)\M.*\mconcurrently\M$$"
CANCEL_SQL = (
    "SELECT is_building, blocked_by, is_running, "
    "CASE WHEN NOT is_building THEN pg_cancel_backend(%(pid)s) END "
    f"FROM (SELECT {IS_BUILDING_SQL} AS is_building, {BLOCKED_BY_SQL} AS blocked_by, "
    "a.state = 'active' AS is_running FROM pg_stat_activity a "
    "WHERE a.pid = %(pid)s OFFSET 0) b"
)


# We can SET ROLE to r as it is.
CAN_BECOME_SQL = """pg_has_role(r.oid, CASE
        WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END)"""
IS_LIMITED_SQL = """r.rolname <> current_user AND NOT r.rolsuper AND NOT r.rolcreaterole
        AND EXISTS (SELECT FROM pg_roles g WHERE g.rolname = ANY (%(limited)s::text[])
                    AND pg_has_role(r.oid, g.oid, 'MEMBER'))"""
LIMITED_BLOCKERS_SQL = f"""
    SELECT b.pid, quote_ident(r.rolname), {CAN_BECOME_SQL}
    FROM unnest(pg_blocking_pids(%(pid)s)) p JOIN pg_stat_activity b ON b.pid = p
    JOIN pg_roles r ON r.oid = b.usesysid AND {IS_LIMITED_SQL}"""
SEES_BUILD_SQL = (
    f"SELECT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = %(pid)s AND {IS_BUILDING_SQL})"
)


def progress_sql(version: int) -> str:
    """Asks the server how far a process id is: phase, done, total."""
    views = PROGRESS if version >= 140000 else PROGRESS[:-1]
    return " UNION ALL ".join(
        f"SELECT {phase}, ({done})::float8, ({total})::float8 FROM {view} WHERE pid = %(pid)s"
        for view, phase, done, total in views
    )


@dataclass
class Activity:
    """What a session tells its watcher, and what the watcher tells the session."""

    busy_since: Optional[float] = None  # on the monotonic clock; None: no answer is waited for
    about: Mapping[str, Any] = field(default_factory=dict)  # fields for the log
    log_prefix: str = ""
    # The sessions that blocked ours when the watcher last looked in time.
    blocked_by: Sequence[str] = ()
    # Their process ids, and the names of prepared transactions.
    blockers: tuple[Sequence[int], Sequence[str]] = ((), ())
    # Their members are ended once they have blocked a statement for half of its time.
    not_waited_for: Sequence[str] = ()
    still_building: bool = False  # an index, when the watcher cut the connection


class Watcher:
    """One connection's watcher; `deadline_passed` tells that the deadline has passed."""

    def __init__(
        self,
        conn: Connection,
        login: Login,
        deadline: Deadline,
        activity: Activity,
        look_after_s: float,
    ) -> None:
        self.deadline_passed = threading.Event()
        self._activity = activity
        self._deadline = deadline
        self._look_after_s = min(look_after_s, FIRST_LINE_S)
        self._pid = conn.info.backend_pid
        self._version = conn.server_version
        # One of our own: libpq can close its, and something else gets that number.
        self._socket = socket.socket(fileno=os.dup(conn.fileno()))
        self._login = login
        self._options: dict[str, Any] = {"async_": 1}
        # The very same server, and no wait for DNS.
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._options["hostaddr"] = self._socket.getpeername()[0]
        share_s = max(deadline.reserve / 3, 0.5)
        self._answer_s = min(ANSWER_S, share_s)
        self._cancelled_s = min(CANCELLED_S, share_s)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="db_setup watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Leaves no thread and no connection."""
        self._over.set()
        self._thread.join(timeout=2 * ANSWER_S)
        self._socket.close()

    def sees_build(self) -> Optional[bool]:
        """Whether the server still builds an index for the watched connection; None: no answer."""
        found = self._ask(SEES_BUILD_SQL, ANSWER_S)
        return bool(found[0][0]) if found else None

    def _watch(self) -> None:
        """A look shortly before a lock timeout strikes, and a line in the log from time to time."""
        since: Optional[float] = None
        next_look = next_end = 0.0
        due = itertools.count(FIRST_LINE_S, NEXT_LINE_S)
        tick = min(TICK_S, self._look_after_s / 4)
        while not self._over.wait(min(tick, max(self._deadline.left, 0))):
            if self._deadline.left <= 0:
                self._cancel()
                return
            if self._activity.busy_since != since:
                since = self._activity.busy_since
                next_look = self._look_after_s
                due = itertools.count(FIRST_LINE_S, NEXT_LINE_S)
                if next_look >= FIRST_LINE_S:
                    next(due)  # the first look writes that line
            elif since is not None and time.monotonic() - since >= next_look:
                self._look(time.monotonic() - since, tell=next_look >= FIRST_LINE_S)
                next_look = next(due)
            elif (
                since is not None
                and self._activity.not_waited_for
                and time.monotonic() > max(since + self._deadline.left, next_end)
            ):
                self._end_limited()
                next_end = time.monotonic() + END_EVERY_S

    def _look(self, elapsed_s: float, tell: bool) -> None:
        found = self._ask(WAITS_FOR_SQL, self._deadline.left)
        if not found:
            return
        waits_for, blocked_by, blockers, is_running = found[0]
        if blocked_by or is_running:  # a look after the end of the wait tells nothing new
            self._activity.blocked_by = blocked_by
            self._activity.blockers = blockers
        if tell:
            fields = {"waits_for": waits_for, "blocked_by": blocked_by, **self._progress(elapsed_s)}
            known = {key: value for key, value in fields.items() if value}
            phrase = f"{self._activity.log_prefix}still running"
            log(phrase, **self._activity.about, elapsed_s=round(elapsed_s), **known)

    def _end_limited(self) -> None:
        """End the limited users that block the statement, as themselves."""
        for pid, role, can_become in self._ask(LIMITED_BLOCKERS_SQL, self._deadline.left):
            log("ending a limited user that blocks this run", logging.WARNING, user=role)
            name = role.replace("%", "%%")
            end_sql = f"SET ROLE {name}; SELECT pg_terminate_backend({pid}); SET ROLE NONE"
            if not can_become:  # one message: all or nothing of it
                grant, revoke = f"GRANT {name} TO CURRENT_USER", f"REVOKE {name} FROM CURRENT_USER"
                end_sql = f"{grant}; {end_sql}; {revoke}"
            self._ask(end_sql, self._deadline.left)

    def _progress(self, elapsed_s: float) -> dict[str, Any]:
        """Phase, percent and an estimate, where PostgreSQL knows them."""
        found = self._ask(progress_sql(self._version), self._deadline.left)
        if not found:
            return {}
        phase, done, total = found[0]
        if not total:
            return {"phase": phase, "done": round(done)}
        percent = round(100 * done / total)
        fields = {"phase": phase, "percent": percent}
        if percent:
            fields["phase_left_s"] = round(elapsed_s * (100 - percent) / percent) or 1
        return fields

    def _cancel(self) -> None:
        """Cancel the running statement; if that does not help, shut the socket down, on which the
        server rolls back.

        libpq's own cancel has no timeout and holds Python's lock: one that hangs would freeze every
        thread.
        """
        self.deadline_passed.set()
        for is_building, blocked_by, is_running, _ in self._ask(CANCEL_SQL, ANSWER_S):
            self._activity.still_building = is_building
            if is_running:
                self._activity.blocked_by = blocked_by
        if not self._over.wait(self._cancelled_s):
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _ask(self, statement: str, within_s: float) -> list[tuple[Any, ...]]:
        """The answer to a query on the second connection; nothing where none comes in time.

        Closed each time: an idle connection would outlive a sandbox that vanishes.
        """
        end = time.monotonic() + min(within_s, self._answer_s)
        with suppress(psycopg2.Error, OSError, ConnectError):
            # Made now: a session can last longer than a token of IAM is valid.
            login = options(self._login, timeout=ANSWER_S)
            helper = psycopg2.connect(**login, **self._options)
            try:
                settle(helper, end)
                with helper.cursor() as cur:
                    cur.execute(
                        "SET ROLE NONE; SET search_path = pg_catalog; " + statement,
                        {"pid": self._pid, "limited": list(self._activity.not_waited_for)},
                    )
                    settle(helper, end)
                    return list(cur.fetchall())
            finally:
                helper.close()
        return []

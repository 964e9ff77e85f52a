"""One run's session on the database: a connection that ends in time, one lock, bounded waits,
transactions.

Knows PostgreSQL and the clock, nothing of migrations or AWS. Raises ConnectError and LockError.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Callable, NamedTuple, Optional, TypeVar, Union

import database
import kept_types
import psycopg2
from common import ConnectError, Deadline, LockError, MigrationError, log
from database import Connection, Login
from psycopg2 import sql
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR
from watcher import (
    BLOCKED_BY_SQL,
    CAN_BECOME_SQL,
    IS_BUILDING_SQL,
    IS_LIMITED_SQL,
    Activity,
    Watcher,
)

# Without a deadline of our own: no Lambda holds the lock for longer than 15 minutes.
LOCK_PATIENCE_S = 900
# Before the watcher cancels, so that the answer names the holder of the lock.
GIVE_UP_EARLY_S = 2
RETRIES_WITHOUT_DEADLINE = 10
RETRYABLE = ("55P03", "40P01", "40001")  # lock timeout, deadlock, serialization failure

TOO_MANY_ROWS = (
    "a statement returns more rows than the function's memory holds. It is rolled back. Write "
    "SELECT count(*) FROM (…) q, or PERFORM in a DO block, or raise memorySize; then deploy again"
)

# All permanent: versions that do not agree on them would not see each other.
LOCK_KEY = 0x64625F7365747570  # "db_setup" in ASCII; that of schema public, see lock_key
# Its first half; the second key of this lock is the holder's deadline, in epoch seconds.
DEADLINE_CLASS = 0x64625F73

Result = TypeVar("Result")
# The number of the attempt that failed, and the pause after it in seconds.
Attempts = Iterator[tuple[int, float]]


class StandbyError(ConnectError):
    """The server only reads: a replica, or a standby before a failover has ended."""


class Session:
    """A run's session. Its connection can be replaced; what the run has done so far is known here,
    and outlives that.

    In autocommit: what is to be one transaction begins and commits by the methods below.
    """

    def __init__(self, login: Login, deadline: Deadline, lock_timeout_ms: int) -> None:
        self.login = login
        self.deadline = deadline
        self.lock_timeout_ms = lock_timeout_ms
        self.applied: list[str] = []  # the migrations that this run has committed, in order
        self.pending: list[str] = []  # those that it has not, yet
        self.current = ""  # the migration that is being applied
        self.lock_wait_ms = 0
        self.holds_lock = False
        self.schema = "public"  # of the application: scripts begin in it, and its lock is ours
        self.limited_roles: Sequence[str] = ()  # their members run no migration, see acquire_lock
        self.activity = Activity()
        self._defaults_when_begun = ""
        self._functions_keep_types = False  # one that is there does; see kept_types
        self._functions_seen_to = kept_types.BEFORE_ALL
        self._read_only_by = ""  # where default_transaction_read_only is set; empty: it is off
        self._begins_with = sql.SQL("")  # what the next message has to begin with
        self._connection: Optional[Connection] = None
        self._watcher: Optional[Watcher] = None

    # --- The connection -----------------------------------------------------------------------

    def open(self, question: sql.Composable) -> tuple[Any, ...]:
        """Connect, and set the session up; returns the one row that answers `question`.

        The question goes with the message that sets the session up.
        """
        return self._connect_and(lambda: self._set_up(question))

    def resume(self, question: sql.Composable) -> tuple[bool, tuple[Any, ...]]:
        """Go on in a new session, in the same number of messages: says whether it has the lock, and
        the answer.

        Where it has not, another run may have come in between.
        """
        with_lock = sql.SQL("SELECT {}, q.* FROM ({}) q").format(
            sql.SQL(self._with_key(HOLDS_LOCK_SQL)), question
        )
        holds_lock, *answer = self._connect_and(lambda: self._set_up(with_lock, takes_lock=True))
        self.holds_lock = bool(holds_lock)
        return self.holds_lock, tuple(answer)

    def _connect_and(self, set_up: Callable[[], Result]) -> Result:
        """Connect and set up; again where the server does not write yet, or is just going down.

        After a failover a name leads to a standby for a while, or to the old writer.
        """
        end = time.monotonic() + min(database.CONNECT_PATIENCE_S, self.deadline.left)
        following = pauses(self.deadline)
        while True:
            self._connect()
            try:
                return self.with_retries(set_up)
            except (StandbyError, psycopg2.OperationalError) as exc:
                # A wrong host typed by hand is not waited for.
                is_mistyped = self.deadline.somebody_waits and not self.applied
                can_pass = self.is_lost or (isinstance(exc, StandbyError) and not is_mistyped)
                pause = next(following, math.inf)
                if not can_pass or time.monotonic() + pause > end:
                    raise
                reason = str(exc).partition(":")[0]
            gives_up_in_s = round(end - time.monotonic())
            host = self.login.endpoint.host
            log("waiting for the database", host=host, gives_up_in_s=gives_up_in_s, reason=reason)
            time.sleep(pause)

    def _connect(self) -> None:
        self.close()
        self.holds_lock = False
        self._connection = database.connect(
            self.login, self.deadline, settings=script_settings(self.schema)
        )
        look_after_s = self.lock_timeout_ms * 0.6 / 1000  # before a lock timeout strikes
        self._watcher = Watcher(
            self._connection, self.login, self.deadline, self.activity, look_after_s
        )
        self._watcher.start()

    def close(self) -> None:
        if self._watcher:
            self._watcher.stop()
        if self._connection:
            self._connection.close()

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise ConnectError("the session has not been opened")
        return self._connection

    @property
    def is_lost(self) -> bool:
        """The connection has ended, or was never there."""
        return self._connection is None or self._connection.closed != 0

    @property
    def is_in_transaction(self) -> bool:
        return self.connection.info.transaction_status != TRANSACTION_STATUS_IDLE

    @property
    def is_out_of_time(self) -> bool:
        """The deadline has passed: the watcher cancelled what was running."""
        return self._watcher is not None and self._watcher.deadline_passed.is_set()

    @property
    def still_builds(self) -> Optional[bool]:
        """After a lost connection: the server goes on building its index; None: not known."""
        if self.is_out_of_time or self._watcher is None:
            return self.activity.still_building or None
        return self._watcher.sees_build()

    @property
    def server_version(self) -> int:
        return self.connection.server_version

    @property
    def user(self) -> str:
        return str(self.connection.info.user)

    def parameter(self, name: str) -> Optional[str]:
        """The value of a setting that the server reports."""
        return self.connection.info.parameter_status(name)

    def query(self, statement: Any, args: Any = None) -> list[tuple[Any, ...]]:
        """Send one message and return the rows of its last statement.

        Without `args` a % is left alone.
        """
        text = sql.SQL(statement) if isinstance(statement, str) else statement
        message = self._begins_with + text
        self._begins_with = sql.SQL("")
        with self._waiting(), self.connection.cursor() as cur:
            cur.execute(message, args)
            return cur.fetchall() if cur.description else []

    def run_script(self, text: Union[str, bytes], fetches: bool) -> list[tuple[Any, ...]]:
        """Send a message of a script, whose notices and rows may be a flood."""
        with self._waiting(), self.connection.cursor() as cur:
            try:
                with database.streamed_notices():
                    cur.execute(text)
            except database.MemoryFullError:
                self.connection.close()
                raise MigrationError(f"{self.current}: {TOO_MANY_ROWS}", state="") from None
            return cur.fetchall() if fetches and cur.description else []

    def copy_in(self, statement: Union[str, bytes], rows: Any) -> None:
        """Run COPY … FROM STDIN with the rows of a file-like object."""
        with self._waiting(), self.connection.cursor() as cur:
            cur.copy_expert(statement, rows, size=1 << 16)

    @contextmanager
    def working_on(self, migration: str) -> Iterator[None]:
        """Lines of the log, and messages, name this migration meanwhile.

        After a failure they still do: it is what failed.
        """
        self.current = migration
        self.activity.about = {"migration": migration}
        self.activity.blocked_by = ()
        self._end_notices()
        try:
            yield
        finally:
            self._end_notices()
        self.current = ""
        self.activity.about = {}

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.activity.busy_since = time.monotonic()
        try:
            yield
        finally:
            self.activity.busy_since = None

    def _end_notices(self) -> None:
        self.connection.notices.end()  # type: ignore[attr-defined]  # see open_connection

    def extensions(self) -> dict[str, str]:
        """The extensions of this database, each with its schema. For messages: none if unknown."""
        with suppress(psycopg2.Error):
            return dict(self.query(EXTENSIONS_SQL))
        return {}

    def raised_by(self, error: Optional[psycopg2.Error]) -> tuple[str, ...]:
        """The sources of the functions whose RAISE the error is; none if it is none."""
        names = RAISES.findall((error and error.diag.context) or "")
        if not names:
            return ()
        with suppress(psycopg2.Error):
            return tuple(text for (text,) in self.query(SOURCES_SQL, [names]))
        return ()

    def event_triggers(self, functions: list[str]) -> list[str]:
        """Those that call one of these functions, also when a statement of ours is executed."""
        with suppress(psycopg2.Error):
            return [name for (name,) in self.query(EVENT_TRIGGERS_SQL, [functions])]
        return []

    # --- Settings -----------------------------------------------------------------------------

    def _set_up(self, question: sql.Composable, takes_lock: bool = False) -> tuple[Any, ...]:
        """Make our settings; refuse what is not the writer's own endpoint.

        A pooler's session is left as it was: it goes to an application next.
        """
        pairs = (
            sql.SQL("({}, {})").format(sql.Literal(name), sql.Literal(str(value)))
            for name, value in self.settings().items()
        )
        pid = self.connection.info.backend_pid
        first_sql = ""
        if takes_lock:
            # A pooler's session is not ours.
            lock_sql = self.try_lock_sql(f"WHERE pg_backend_pid() = {pid}")
            first_sql = f"BEGIN; {lock_sql}; COMMIT; "
        set_up = sql.SQL(SET_UP_SQL).format(
            settings=sql.SQL(", ").join(pairs),
            pid=sql.Literal(pid),
            first=sql.SQL(first_sql),
            question=question,
        )
        server_pid, is_standby, self._defaults_when_begun, self._read_only_by, *answer = self.query(
            set_up
        )[0]
        host = self.login.endpoint.host
        if server_pid != pid:
            raise ConnectError(
                f"{host} is a connection pooler or proxy, where a session lock protects nothing: "
                "set DB_HOST to the database's own endpoint"
            )
        if is_standby:
            raise StandbyError(f"{host} is a read replica: set DB_HOST to the writer's endpoint")
        return tuple(answer)

    def settings(self) -> dict[str, Any]:
        """Ours. Together they let the server notice within about 15 s that we are gone, and release
        our locks.

        They are made with SET: a proxy refuses libpq's `options`.
        """
        settings = {
            "lock_timeout": self.lock_timeout_ms,
            "statement_timeout": 0,
            "idle_in_transaction_session_timeout": 120_000,
            "tcp_keepalives_idle": 5,
            "tcp_keepalives_interval": 2,
            "tcp_keepalives_count": 3,
            "tcp_user_timeout": 11_000,  # no keepalive is sent while an answer is on its way
            # A function in a schema of others that fits better than PostgreSQL's own would run as
            # the admin.
            "search_path": "pg_catalog",
            "role": "none",  # ALTER ROLE … SET role may have made it another one
            "DateStyle": "ISO",  # psycopg2 reads dates only in this style
            # Among a thousand tables, compiling a question to the catalogs takes half a second.
            "jit": "off",
        }
        if self.server_version >= 140000:
            settings["client_connection_check_interval"] = 2000
            settings["idle_session_timeout"] = 300_000
        if self.server_version >= 170000:
            settings["transaction_timeout"] = 0
        return settings

    def settings_sql(self) -> str:
        """Our settings again, after a file has changed them."""
        return "".join(f"SET {name} = '{value}'; " for name, value in self.settings().items())

    # --- Transactions -------------------------------------------------------------------------

    def start_transaction(self, begin_sql: str = "BEGIN") -> str:
        """Returns what the first message of the transaction has to begin with: BEGIN, with the
        modes that it names.
        """
        return begin_sql

    def commit_sql(self) -> str:
        return "COMMIT"

    def roll_back(self) -> None:
        """Roll back what is open, if anything is."""
        self._end_transaction("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction around statements of ours, which begins with the first one; rolled back
        on any error.
        """
        self._begins_with = sql.SQL(f"{self.start_transaction()}; ")
        try:
            yield
            if self.is_in_transaction:
                self.query(self.commit_sql())
        except BaseException:
            self.roll_back()
            raise
        finally:
            self._begins_with = sql.SQL("")

    def query_all_or_none(self, statements: sql.Composable) -> list[tuple[Any, ...]]:
        """Several statements of ours, all or none: one message is one transaction."""
        return self.query(statements)

    def ask(self, statements: sql.Composable) -> list[tuple[Any, ...]]:
        """Rows, of which neither an error nor SET LOCAL in the same message leaves anything."""
        return self.query(statements)

    def _end_transaction(self, statement: str) -> None:
        if self.is_lost or not self.is_in_transaction:
            return
        try:
            self.query(statement)
        except psycopg2.Error:
            self.connection.close()  # the server rolls back on its own when the connection is gone

    # --- Retries ------------------------------------------------------------------------------

    def attempts(self) -> Attempts:
        """Growing, jittered pauses between two attempts, until the deadline; without one, ten."""
        return enumerate(pauses(self.deadline), 1)

    def with_retries(
        self, action: Callable[[], Result], sqlstates: Sequence[str] = RETRYABLE
    ) -> Result:
        """Do it again, until the deadline, where other sessions block it for a moment.

        Limited users that the action waits for are ended.
        """
        attempts = self.attempts()
        while True:
            self.activity.blockers = ((), ())
            try:
                return action()
            except psycopg2.Error as exc:
                sqlstate = exc.pgcode or ""
                if sqlstate not in sqlstates or not self.pause_to_retry(sqlstate, attempts):
                    raise
            if not self.is_in_transaction:
                self._end_limited_holders()

    def pause_to_retry(self, sqlstate: str, attempts: Attempts, **fields: Any) -> bool:
        """Wait a while after what can pass, if there is time for another attempt."""
        if self.is_lost or not self._can_retry():
            return False
        attempt, pause = next(attempts, (0, 0.0))
        if attempt == 0:
            return False
        fields = {**fields, "sqlstate": sqlstate, "attempt": attempt, "again_in_s": round(pause, 1)}
        if self.activity.blocked_by:
            fields["blocked_by"] = self.activity.blocked_by
        log("gave way", **fields)
        time.sleep(pause)
        return True

    def _can_retry(self) -> bool:
        return self.connection.info.transaction_status != TRANSACTION_STATUS_INERROR

    # --- The lock -----------------------------------------------------------------------------

    def acquire_lock(self) -> None:
        """Take the session lock of this schema, and publish until when it can be held at the
        longest.

        Polled with no transaction open: a blocking wait would deadlock with CREATE INDEX
        CONCURRENTLY (40P01). A holder of our own login that is past its deadline cannot be alive
        any more and is ended; so is a limited user, who has no business with this lock. Raises
        LockError.
        """
        self._refuse_read_only()
        if self.holds_lock:
            return
        started = time.monotonic()
        announced = 0.0
        attempt_sql = self.try_lock_sql()
        while not self.query(attempt_sql)[0][0]:
            attempt_sql = self._with_key(TRY_LOCK_SQL)
            waited = time.monotonic() - started
            holder, step = self._end_overdue_holder(is_late=waited > self.deadline.left)
            ended = self._end_limited_holders()
            if waited > LOCK_PATIENCE_S or self.deadline.left < GIVE_UP_EARLY_S:
                raise LockError(f"{holder} holds the lock. Waited {waited:.0f} s", step)
            if time.monotonic() - announced >= 10:
                log("waiting for another run", holder=holder)
                announced = time.monotonic()
            time.sleep(0.02 if ended else random.uniform(0.1, 0.4))
        self.holds_lock = True
        self.lock_wait_ms += round((time.monotonic() - started) * 1000)

    def lock_until_the_end(self, what: str) -> None:
        """Wait for a lock of this database that the session then keeps, whatever its schema."""
        lock = sql.SQL(f"SELECT pg_advisory_lock({lock_key(what)})")
        self.with_retries(lambda: self.query(lock))

    def _refuse_read_only(self) -> None:
        """Raise ConnectError where the database is meant not to be written."""
        if not self._read_only_by:
            return
        endpoint = self.login.endpoint
        where = {
            "database": f"DATABASE {endpoint.dbname}",
            "user": f"ROLE {self.user}",
            "database user": f"ROLE {self.user} IN DATABASE {endpoint.dbname}",
        }.get(self._read_only_by)
        step = "change it in the server's parameters (parameter group)"
        if where:
            setting = "default_transaction_read_only"
            step = f"SET {setting} = off; ALTER {where} RESET {setting}"
        raise ConnectError(
            f"{endpoint.dbname} on {endpoint.host} is read-only: default_transaction_read_only is "
            f"on (set for: {self._read_only_by})",
            f"If it is to be written: {step}; then invoke again",
        )

    def _end_overdue_holder(self, is_late: bool) -> tuple[str, str]:
        """What is known of the holder, and what to do; one that is past its deadline is ended.

        If it `is_late`, limited users that its index build waits for are to be ended as well.
        """
        known = "another run"
        step = "Invoke again when that one is done"
        for (name,) in self.query(self._with_key(PREPARED_HOLDER_SQL)):
            known = f"the prepared transaction {name}"
            step = f"It does not end by itself: ROLLBACK PREPARED {name}, and invoke again"
        for holder in self.lock_holders():
            known = str(holder)
            if holder.building and is_late:
                self.activity.blockers = (holder.blockers, ())
            step = f"{step}, or end it: SELECT pg_terminate_backend({holder.pid})"
            if holder.user != self.user:
                step = f"{step}, as {holder.user} or a member of pg_signal_backend"
            if holder.overdue:
                log(
                    "ending a run that is past its deadline",
                    logging.WARNING,
                    pid=holder.pid,
                    age_s=holder.age_s,
                )
                self.query("SELECT pg_terminate_backend(%s)", [holder.pid])
        return known, step

    def _end_limited_holders(self) -> bool:
        """End the sessions and prepared transactions of limited users that hold our lock, or that
        we had to wait for; returns whether there were any.
        """
        pids, transactions = self.activity.blockers
        args = {
            "limited": list(self.limited_roles),
            "pids": list(pids),
            "transactions": list(transactions),
        }
        found = self.query(self._with_key(LIMITED_HOLDERS_SQL), args)
        for _, _, role, _ in found:
            log("ending a limited user that blocks this run", logging.WARNING, user=role)
        self.end_limited(found)
        return bool(found)

    def end_limited_among(self, pids: Sequence[int]) -> bool:
        """End those of these sessions that are limited users'; returns whether there were any."""
        self.activity.blockers = (pids, ())
        return self._end_limited_holders()

    def end_limited(self, found: Sequence[tuple[Any, ...]]) -> None:
        """End these sessions and prepared transactions, as their users."""
        for pid, transaction, role, can_become in found:
            name = sql.Identifier(role)
            try:
                if not can_become:
                    self.query(sql.SQL("GRANT {} TO CURRENT_USER").format(name))
                try:
                    self.query(sql.SQL("SET ROLE {}").format(name))
                    if pid is not None:
                        self.query("SELECT pg_terminate_backend(%s)", [pid])
                    else:
                        self.query("ROLLBACK PREPARED %s", [transaction])
                finally:
                    self.query("RESET ROLE")
                    if not can_become:
                        self.query(sql.SQL("REVOKE {} FROM CURRENT_USER").format(name))
            except psycopg2.Error as exc:  # the message about the lock names who holds it
                log("it cannot be ended", logging.WARNING, reason=str(exc).split("\n")[0])

    def lock_holders(self) -> list[Holder]:
        """Nobody, or one."""
        return [Holder(*row) for row in self.query(self._with_key(HOLDER_SQL))]

    def try_lock_sql(self, where_sql: str = "") -> str:
        """Publishes until when the lock can be held, and takes it if it is free.

        It is one message, so a process that is frozen has done both or neither. It does not wait
        for the lock that publishes: others can hold that.
        """
        lock_sql = self._with_key(TRY_LOCK_SQL)
        if not self.deadline.exists:
            return f"{lock_sql} {where_sql}"
        left_s = self.deadline.left + self.deadline.reserve
        # 32 bits without a sign, as pg_locks shows them, are enough until 2106.
        until_sql = f"(extract(epoch FROM clock_timestamp()) + {left_s:.3f})::bigint::bit(32)::int"
        publish_sql = f"SELECT pg_try_advisory_lock_shared({DEADLINE_CLASS}, {until_sql})"
        return f"{publish_sql} {where_sql}; {lock_sql} {where_sql}"

    def _with_key(self, question: str) -> str:
        return question.replace("{key}", str(lock_key(self.schema)))

    def session_check_sql(
        self, may_have_changed: bool, condition_sql: str, *, may_release: bool
    ) -> str:
        """Asks whether the session still holds the lock, whether it is as a new one would be, and
        whether the condition holds.

        Where it `may_have_changed` it counts as changed. Where it `may_release` the lock, such a
        session does, if the condition holds; a new one takes it then. ALTER DATABASE … SET counts
        only in sessions that begin after it; a function in PL/pgSQL keeps what the types in its
        DECLARE meant when it was first called; an advisory lock of a session stays until it ends.
        """
        # Functions that were harmless at the last check are not looked into again.
        keep_types_sql = "true"
        if not self._functions_keep_types:
            keep_types_sql = kept_types.KEEP_TYPES_SQL.format(since=self._functions_seen_to)
        is_ours_sql = self._with_key(IS_OUR_LOCK_SQL)
        found_sql = (
            f"SELECT coalesce(bool_or({is_ours_sql}), false) AS held, "
            f"coalesce(bool_and({is_ours_sql} OR classid = {DEADLINE_CLASS}), true) AS alone, "
            f"CASE WHEN {kept_types.USES_PLPGSQL_SQL} THEN {keep_types_sql} END AS keep_types, "
            f"{kept_types.SEEN_TO_SQL} AS seen_to, ({DEFAULTS_SQL}) AS defaults, "
            f"({condition_sql}) AS holds {OUR_LOCKS_SQL} "
        )
        state_sql = (
            f"SELECT *, NOT {may_have_changed} AND alone AND keep_types IS NOT true "
            f"AND defaults = '{self._defaults_when_begun}' AS fresh FROM ({found_sql} OFFSET 0) f"
        )
        is_let_go = f"held AND NOT fresh AND {may_release} AND holds"
        release_sql = f"CASE WHEN {is_let_go} THEN pg_advisory_unlock_all() END"
        return (
            f"SELECT held, fresh, keep_types, seen_to, holds, {release_sql} "
            f"FROM ({state_sql} OFFSET 0) s"
        )

    def note_functions(self, keep_types: Optional[bool], seen_to: str) -> None:
        """Take in what a check has found out about functions; None: this session has used none."""
        if keep_types is not None:
            self._functions_keep_types = keep_types
            self._functions_seen_to = seen_to


def lock_key(schema: str) -> int:
    """The key of the lock under which an application of this schema is changed; permanent.

    A name with a blank, which no schema of ours has, is that of another lock.
    """
    if schema == "public":
        return LOCK_KEY
    return int.from_bytes(hashlib.sha256(f"db_setup {schema}".encode()).digest()[:8], "big") >> 1


def script_settings(schema: str) -> Optional[str]:
    """libpq's settings by which a script begins in this schema, and comes back to it by RESET.

    For public it is what the server's settings say.
    """
    if schema == "public":
        return None
    return f"{os.environ.get('PGOPTIONS', '')} -c search_path={schema},public"


def pauses(deadline: Deadline) -> Iterator[float]:
    """Growing, jittered pauses in seconds, until the deadline; without one, ten."""
    for number in itertools.count():
        pause = min(0.5 * 1.6**number, 15) * random.uniform(0.7, 1.3)
        is_last = not deadline.exists and number >= RETRIES_WITHOUT_DEADLINE
        if is_last or deadline.left <= pause:
            return
        yield pause


class Holder(NamedTuple):
    """The session that holds the lock, as far as we may see it."""

    pid: int
    user: str
    application: str
    age_s: Optional[int]
    overdue: bool
    building: Optional[str]
    blocked_by: Sequence[str]
    blockers: Sequence[int]

    def __str__(self) -> str:
        words = [f"pid {self.pid}", f"user {self.user}", repr(self.application)]
        if self.age_s is not None:  # it is not shown of another login
            words.append(f"connected for {self.age_s} s")
        if self.building:
            words.append(f"still at {self.building}")
            words.extend(f"waits for {blocker}" for blocker in self.blocked_by)
        return f"another run ({', '.join(words)})"


# --- The questions ----------------------------------------------------------------------------

# Of this database and of the server alone: any owner of another one can make its own very long.
DEFAULTS_SQL = (
    "SELECT hashtextextended(coalesce(string_agg(s::text, ' ' ORDER BY s::text), ''), 0)::text "
    "FROM pg_db_role_setting s WHERE setrole IN (0, quote_ident(session_user)::regrole) "
    "AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))"
)
READ_ONLY_BY_SQL = (
    "CASE WHEN current_setting('default_transaction_read_only')::bool "
    "THEN (SELECT source FROM pg_settings WHERE name = 'default_transaction_read_only') ELSE '' END"
)
SET_UP_SQL = (
    "SET LOCAL search_path = pg_catalog; "  # for a pooler's, which keeps its own
    "SELECT pg_catalog.set_config(name, value, false) "
    "FROM (VALUES {settings}) s(name, value) "
    f"WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {{pid}}; {{first}}SELECT "
    f"pg_backend_pid(), pg_is_in_recovery(), ({DEFAULTS_SQL}), {READ_ONLY_BY_SQL}, q.* "
    "FROM ({question}) q"
)
# In these, {key} is lock_key().
TRY_LOCK_SQL = "SELECT pg_try_advisory_lock({key})"
IS_OUR_LOCK_SQL = "(objsubid = 1 AND (classid::bigint << 32) + objid::bigint = {key})"
PREPARED_HOLDER_SQL = (
    "SELECT quote_literal(p.gid) FROM pg_prepared_xacts p "
    "JOIN pg_locks t ON t.transactionid = p.transaction AND t.granted "
    "WHERE p.database = current_database() AND EXISTS (SELECT FROM pg_locks "
    f"WHERE locktype = 'advisory' AND {IS_OUR_LOCK_SQL} AND pid IS NULL "
    "AND virtualtransaction = t.virtualtransaction)"
)
OUR_LOCKS_SQL = "FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
HOLDS_LOCK_SQL = f"(SELECT coalesce(bool_or({IS_OUR_LOCK_SQL}), false) {OUR_LOCKS_SQL})"
HOLDER_SQL = f"""
    SELECT a.pid, a.usename, a.application_name,
           extract(epoch FROM clock_timestamp() - a.backend_start)::int,
           coalesce(d.objid::bigint < extract(epoch FROM clock_timestamp())
                    AND a.usename = current_user AND NOT ({IS_BUILDING_SQL}), false),
           (SELECT command || ': ' || phase || CASE WHEN blocks_total > 0
                   THEN ', ' || 100 * blocks_done / blocks_total || ' %' ELSE '' END
            FROM pg_stat_progress_create_index p WHERE p.pid = a.pid),
           {BLOCKED_BY_SQL}, pg_blocking_pids(a.pid)
    FROM pg_locks l JOIN pg_database b ON b.oid = l.database AND b.datname = current_database()
    JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_locks d ON d.pid = l.pid AND d.locktype = 'advisory'
         AND d.classid = {DEADLINE_CLASS} AND d.objsubid = 2
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND (l.classid::bigint << 32) + l.objid::bigint = {{key}}"""
# A session or a prepared transaction, its user, and whether we can become that as it is.
LIMITED_HOLDERS_SQL = f"""
    WITH holders AS (
        SELECT pid, virtualtransaction FROM pg_locks l JOIN pg_database b ON b.oid = l.database
        WHERE b.datname = current_database() AND locktype = 'advisory' AND {IS_OUR_LOCK_SQL}),
    found(pid, gid, role) AS (
        SELECT pid, NULL, usename FROM pg_stat_activity
        WHERE pid = ANY (%(pids)s::int[]) OR pid IN (SELECT pid FROM holders)
        UNION ALL
        SELECT NULL, gid, owner FROM pg_prepared_xacts p
        WHERE database = current_database() AND (gid = ANY (%(transactions)s::text[]) OR EXISTS (
            SELECT FROM pg_locks JOIN holders USING (virtualtransaction)
            WHERE transactionid = p.transaction AND holders.pid IS NULL)))
    SELECT f.pid, f.gid, r.rolname::text, {CAN_BECOME_SQL}
    FROM found f JOIN pg_roles r ON r.rolname = f.role AND {IS_LIMITED_SQL}"""

RAISES = re.compile(
    r'^PL/pgSQL function (?:.*?\.)?"?([^".]+)"?\(.* at (?:RAISE|ASSERT)$', re.MULTILINE
)
SOURCES_SQL = (
    "SELECT prosrc FROM pg_catalog.pg_proc WHERE proname OPERATOR(pg_catalog.=) ANY (%s) LIMIT 20"
)
EVENT_TRIGGERS_SQL = (
    "SELECT evtname::text FROM pg_event_trigger WHERE evtfoid::regprocedure::text = ANY (%s) "
    "ORDER BY 1"
)
EXTENSIONS_SQL = (
    "SELECT extname::text, pg_catalog.quote_ident(nspname) FROM pg_catalog.pg_extension "
    "JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) extnamespace"
)

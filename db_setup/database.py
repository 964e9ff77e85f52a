"""A connection that ends in time: opened with patience, one session lock, bounded waits.

Knows PostgreSQL and the clock, nothing of migrations or AWS. Raises ConnectError and LockError.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, TypeVar

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INERROR, connection

CA_BUNDLE = Path(__file__).resolve().with_name("global-bundle.pem")
CONNECT_TIMEOUT_S = 5
TELL_AGAIN_S = 15  # the same reason for waiting
CONNECT_PATIENCE_S = 90  # Aurora Serverless resumes in about 15 s, a new instance's address may take longer
LOCK_PATIENCE_S = 900  # without a deadline of our own: no Lambda holds the lock for longer than 15 minutes
MESSAGE_LIMIT = 1500  # characters
MESSAGE_BYTES = 3100  # as JSON; CloudFormation refuses answers above 4,096 bytes, of which others need up to 870
RETRIES_WITHOUT_DEADLINE = 10
RETRYABLE = ("55P03", "40P01", "40001")  # lock timeout, deadlock, serialization failure
GIVE_UP_EARLY_S = 2  # before the watchdog strikes, so that the answer names the holder of the lock
RESERVE_S = 20  # kept back from Lambda's limit for cancelling, rolling back and answering

# Both for ever: versions that do not agree on them would not see each other.
LOCK_KEY = 0x64625F7365747570  # "db_setup" in ASCII
DEADLINE_CLASS = 0x64625F73  # its first half; the second key of this lock is the holder's deadline, in epoch seconds

Result = TypeVar("Result")
logger = logging.getLogger("db_setup")


class InitializerError(Exception):
    """What went wrong, where, the state we are in, and the next step; in at most 1,500 characters and 3,100 bytes."""

    def __init__(self, message: str) -> None:
        text = message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 2] + " …"
        while len(json.dumps(text, ensure_ascii=False).encode(errors="replace")) > MESSAGE_BYTES:
            text = text[:-40] + " …"
        super().__init__(text)


class ConnectError(InitializerError):
    """The database cannot be reached; `login_refused` when it answered and does not want this login."""

    login_refused = False


class LockError(InitializerError):
    """Another run holds the lock."""


# --- Log ------------------------------------------------------------------------------------------------------------


REHEARSAL = ContextVar("what stands before each line of a dry run, for none of it stays", default="")


def log(phrase: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line: a constant phrase and key=value. In Lambda's JSON format the keys stand at the top level as well."""
    phrase = REHEARSAL.get() + phrase
    text = " ".join(f"{key}={_printable(value)}" for key, value in fields.items())
    plain = {key: value if isinstance(value, (int, float, list, dict)) else str(value) for key, value in fields.items()}
    logger.log(level, "%s%s", phrase, " " + text if text else "", extra=plain)


def _printable(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{key}:{what}" for key, what in value.items()]
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[\s"=]', text) else text


def set_up_logging() -> None:
    """Lambda brings a handler whose text format drops INFO unless asked; a terminal brings none."""
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(levelname)s %(message)s")
    if "AWS_LAMBDA_LOG_LEVEL" not in os.environ and logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    aws = logging.getLogger("botocore")  # which logs whole secrets at DEBUG
    aws.setLevel(max(aws.getEffectiveLevel(), logging.INFO))


class NoticeLog:
    """Takes the place of psycopg2's `conn.notices`, which keeps only the last 50."""

    def append(self, notice: str) -> None:
        severity, _, text = notice.partition(":")
        if "no transaction in progress" not in text:
            log("database says", severity=severity, text=" ".join(text.split())[:500])


# --- Time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deadline:
    """When this run has to stop, on the monotonic clock; None: never."""

    at: Optional[float] = None
    reserve: float = 0.0

    @classmethod
    def from_context(cls, context: Any) -> Deadline:
        """Lambda's limit less a reserve of 20 s, or a third of the whole where that is less."""
        remaining = getattr(context, "get_remaining_time_in_millis", None)
        if remaining is None:
            return cls()
        whole = remaining() / 1000
        reserve = min(RESERVE_S, whole / 3)
        return cls(time.monotonic() + whole - reserve, reserve)

    def left(self, otherwise: float) -> float:
        """Seconds until the deadline, or `otherwise` where there is none."""
        return otherwise if self.at is None else self.at - time.monotonic()

    @property
    def is_near(self) -> bool:
        """Too late to begin something: less than half the reserve is left before the deadline."""
        return self.at is not None and self.left(0) < self.reserve / 2


# --- Connection -----------------------------------------------------------------------------------------------------


class Connection(connection):
    """psycopg2's, and what a watcher wants to know and tells."""

    busy_since: Optional[float] = None  # on the monotonic clock; None: no answer is waited for
    about: Mapping[str, Any] = {}  # fields for the log
    blocked_by: Sequence[str] = ()  # the sessions in the way when the watcher last looked in time
    defaults: str = ""  # a fingerprint of what ALTER DATABASE and ALTER ROLE have set when the session began
    rehearsal: Any = None  # in a dry run all of it is one transaction, and ours are savepoints in it


@contextmanager
def waiting(conn: Connection) -> Iterator[None]:
    conn.busy_since = time.monotonic()
    try:
        yield
    finally:
        conn.busy_since = None


@dataclass(frozen=True)
class Login:
    """Where to connect, and as whom."""

    host: str
    port: int
    dbname: str
    username: str
    password: str = field(repr=False)
    engine: str = "postgres"

    def __str__(self) -> str:
        return f"{self.username}@{self.host}:{self.port}/{self.dbname}"


def query(conn: Connection, statement: Any, args: Any = None) -> list[tuple[Any, ...]]:
    """Send one message and return the rows of its last statement. Without `args` a % is left alone."""
    with waiting(conn), conn.cursor() as cur:
        cur.execute(statement, args)
        return cur.fetchall() if cur.description else []


def literal(text: str) -> sql.Composable:
    """The text as an SQL literal of ASCII characters only, which survives any client_encoding."""
    if text.isascii():
        return sql.Literal(text)
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return sql.SQL("E'" + "".join(c if c.isascii() else f"\\U{ord(c):08X}" for c in escaped) + "'")


OUR_SAVEPOINT = "db_setup_transaction"


READ_ONLY_BY_DEFAULT = (  # in a savepoint, too
    "SELECT pg_catalog.set_config('transaction_read_only', "
    "pg_catalog.current_setting('default_transaction_read_only'), true)"
)


def begin(conn: Connection, words: str = "BEGIN") -> str:
    """What begins a transaction. In a dry run, which is one, a savepoint does instead, without the isolation level; it
    is there at once, since a message that cannot be parsed would not make it."""
    if not conn.rehearsal:
        return words
    query(conn, f"SAVEPOINT {OUR_SAVEPOINT}")
    modes = re.search("READ (ONLY|WRITE)", words.upper())
    return f"SET TRANSACTION {modes.group()}" if modes else READ_ONLY_BY_DEFAULT


def commit(conn: Connection) -> str:
    return f"RELEASE SAVEPOINT {OUR_SAVEPOINT}" if conn.rehearsal else "COMMIT"


@contextmanager
def transaction(conn: Connection) -> Iterator[None]:
    """BEGIN … COMMIT around our own statements, ROLLBACK on any error."""
    query(conn, begin(conn))
    try:
        yield
        query(conn, f"{commit(conn)}; RESET client_min_messages" if conn.rehearsal else "COMMIT")
    except BaseException:
        roll_back(conn)
        raise


def roll_back(conn: Connection) -> None:
    if not conn.closed and conn.info.transaction_status != TRANSACTION_STATUS_IDLE:
        try:
            query(conn, f"ROLLBACK TO SAVEPOINT {OUR_SAVEPOINT}; {commit(conn)}" if conn.rehearsal else "ROLLBACK")
        except psycopg2.Error:
            conn.close()  # the server rolls back on its own when the connection is gone


def _tls_options(environ: Mapping[str, str]) -> dict[str, str]:
    """libpq reads PGSSLMODE and PGSSLROOTCERT itself; ours are only the defaults."""
    options: dict[str, str] = {}
    if "PGSSLMODE" not in environ:
        options["sslmode"] = "verify-full" if "PGSSLROOTCERT" in environ or CA_BUNDLE.exists() else "require"
    # With a bundle libpq would take `require` for `verify-ca`: who asks for less gets less.
    if (
        "PGSSLROOTCERT" not in environ
        and CA_BUNDLE.exists()
        and environ.get("PGSSLMODE", "verify").startswith("verify")
    ):
        options["sslrootcert"] = str(CA_BUNDLE)
    return options


def _connect_timeout(environ: Mapping[str, str], timeout: int) -> dict[str, int]:
    """PGCONNECT_TIMEOUT may shorten ours, which the deadline sets; what is no number is left to libpq to refuse."""
    asked = environ.get("PGCONNECT_TIMEOUT", str(timeout))
    return {"connect_timeout": timeout} if asked.isdigit() and int(asked) >= timeout else {}


def options(login: Login, timeout: int) -> dict[str, Any]:
    """What to connect with; a vanished server is noticed after about 20 s."""
    return {
        "host": login.host,
        "port": login.port,
        "dbname": login.dbname,
        "user": login.username,
        "password": login.password,
        "client_encoding": "UTF8",
        "application_name": "db_setup",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 20000,
        **_connect_timeout(os.environ, timeout),
        **_tls_options(os.environ),
    }


def open_connection(login: Login, timeout: int = CONNECT_TIMEOUT_S) -> Connection:
    """One attempt; in autocommit and UTF-8."""
    conn: Connection = psycopg2.connect(connection_factory=Connection, **options(login, timeout))
    conn.autocommit = True
    conn.notices = NoticeLog()  # type: ignore[assignment]  # any object with append() will do
    return conn


# The login is known to be wrong: all else may pass.
REFUSED = "password authentication failed|not permitted to log in|role .* does not exist|permission denied for database"

# What libpq and the server say (no SQLSTATE is available before a connection stands), in order: pattern,
# worth another try, advice.
CONNECT_PROBLEMS: Sequence[tuple[str, bool, str]] = (
    (rf"{REFUSED}|no password supplied", False, "check username and password in the secret (or DATABASE_URL)"),
    (
        r"starting up|shutting down|recovery mode|not yet accepting|terminating connection|canceling authentication",
        True,
        "the database is starting or busy; invoke again",
    ),
    (r"too many (clients|connections)|connection slots", True, "all connections of the database are in use"),
    (r"no pg_hba.conf entry.*(no encryption|SSL off)", False, "the server wants TLS: set PGSSLMODE=require"),
    (r"no pg_hba.conf entry", False, "the server does not let this login in from here"),
    (r"database .* does not exist", False, "check dbname in the secret, or DB_NAME (or DATABASE_URL)"),
    (r"invalid \w+ value", False, "check the variables PGSSLMODE and PGCONNECT_TIMEOUT"),
    (r"does not support SSL", False, "the server has no TLS; for local work set PGSSLMODE=prefer"),
    (
        r"certificate|does not match host name|SSL error(?!.*unexpected eof)",
        False,
        "TLS: check PGSSLROOTCERT and global-bundle.pem, and that DB_HOST is the name in the certificate; for local "
        "work set PGSSLMODE=require",
    ),
    (
        r"translate host name|Name or service",
        True,
        "DNS: check host in the secret, or DB_HOST (or DATABASE_URL), and the VPC's DNS",
    ),
    (
        r"timeout expired|timed out|No route|unreachable",
        True,
        "network: check that the security group lets this function in, the subnets, and that the database runs",
    ),
    (r"invalid response to SSL negotiation", False, "what answers there is no PostgreSQL: check host and port"),
    (r"refused", True, "nothing listens there: check that the database runs, its host and its port"),
    (r"FATAL", False, "the server refused this login"),
)


def connect(login: Login, deadline: Deadline, state: str = "Nothing has been changed.") -> Connection:
    """Connect, again and again while the server starts, resumes or refuses; never with a login that it refused.

    Gives up after 90 s or at the deadline with a ConnectError that says what to look at, and then `state`.
    """
    end = time.monotonic() + min(CONNECT_PATIENCE_S, deadline.left(CONNECT_PATIENCE_S))
    pause, told, tell_again = 0.5, "", 0.0
    while True:
        try:
            return open_connection(login, timeout=max(1, min(CONNECT_TIMEOUT_S, int(end - time.monotonic()))))
        except (psycopg2.OperationalError, UnicodeDecodeError) as exc:
            # A name cut off within a letter makes the server's answer no UTF-8.
            text = exc.object.decode(errors="replace") if isinstance(exc, UnicodeDecodeError) else str(exc)
            said = " ".join(text.split())
            found = (problem for problem in CONNECT_PROBLEMS if re.search(problem[0], said))
            _, again, advice = next(found, ("", True, "check host, port, security group and that the database runs"))
            if not again or time.monotonic() + pause > end:
                error = ConnectError(f"cannot connect to {login}: {advice} ({said[:300]}). {state}")
                error.login_refused = re.search(REFUSED, said) is not None
                raise error from exc.with_traceback(None)  # psycopg2's frames hold the password
            now = time.monotonic()
            if said != told or now >= tell_again:
                log("waiting for the database", host=login.host, gives_up_in_s=round(end - now), reason=said[:200])
                told, tell_again = said, now + TELL_AGAIN_S
        time.sleep(pause * random.uniform(0.8, 1.2))
        pause = min(pause * 1.5, 5)


def session_settings(version: int, lock_timeout_ms: int) -> str:
    """SETs for our own session, sent again behind each file. A proxy refuses libpq's `options`."""
    return "".join(f"SET {name} = '{value}'; " for name, value in own_settings(version, lock_timeout_ms).items())


def own_settings(version: int, lock_timeout_ms: int) -> dict[str, Any]:
    """Together they let the server notice within about 15 s that we are gone, and let go of our locks."""
    settings = {
        "lock_timeout": lock_timeout_ms,
        "statement_timeout": 0,
        "idle_in_transaction_session_timeout": 120_000,
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": 11_000,  # no keepalive is sent while an answer is on its way
        # A function in schema public that fits better than PostgreSQL's own would run as the admin.
        "search_path": "pg_catalog",
        "DateStyle": "ISO",  # psycopg2 reads dates only in this style
    }
    if version >= 140000:
        settings.update(client_connection_check_interval=2000, idle_session_timeout=300_000)
    return settings


DEFAULTS = (
    "SELECT hashtextextended(coalesce(string_agg(s::text, ' ' ORDER BY s::text), ''), 0)::text "
    "FROM pg_db_role_setting s "
    "WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) "
    "AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))"
)


SET_UP = (
    "SELECT pg_catalog.set_config(name, value, false) FROM (VALUES {}) s(name, value) "  # noqa: S608
    "WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {pid}; {first}"
    f"SELECT pg_backend_pid(), pg_is_in_recovery(), ({DEFAULTS}), q.* FROM ({{question}}) q"
)


def prepare_session(
    conn: Connection, lock_timeout_ms: int, question: sql.Composable, first: str = ""
) -> tuple[Any, ...]:
    """Set up the session; refuse what is not the writer's own endpoint. Returns the one row that answers `question`,
    which goes with the same message, behind the statement `first`.

    A pooler's session is left as it was: it goes to an application next.
    """
    settings = own_settings(conn.server_version, lock_timeout_ms)
    values = sql.SQL(", ").join(
        sql.SQL("({}, {})").format(sql.Literal(k), sql.Literal(str(v))) for k, v in settings.items()
    )
    ours = conn.info.backend_pid
    set_up = sql.SQL(SET_UP).format(values, pid=sql.Literal(ours), first=sql.SQL(first), question=question)
    pid, standby, conn.defaults, *answer = query(conn, set_up)[0]
    if pid != ours:
        raise ConnectError(
            f"{conn.info.host} is a connection pooler or proxy, where a session lock protects nothing: "
            "set DB_HOST to the database's own endpoint. Nothing has been changed."
        )
    if standby:
        raise ConnectError(
            f"{conn.info.host} is a read replica: set DB_HOST to the writer's endpoint. Nothing has been changed."
        )
    return tuple(answer)


# --- Giving way -----------------------------------------------------------------------------------------------------


def pauses(deadline: Deadline) -> Iterator[float]:
    """Growing, jittered pauses between two attempts, until the deadline, or ten without one."""
    for number in itertools.count():
        pause = min(0.5 * 1.6**number, 15) * random.uniform(0.7, 1.3)
        if deadline.left(pause + 1) <= pause or (deadline.at is None and number >= RETRIES_WITHOUT_DEADLINE):
            return
        yield pause


def patiently(conn: Connection, deadline: Deadline, action: Callable[[], Result]) -> Result:
    """Do it again, at the deadline at last, where others are in the way for a moment."""
    waits = enumerate(pauses(deadline), 1)
    while True:
        try:
            return action()
        except psycopg2.Error as exc:
            if not gives_way(conn, exc.pgcode or "", waits):
                raise


def gives_way(conn: Connection, sqlstate: str, waits: Iterator[tuple[int, float]], **fields: Any) -> bool:
    """Wait a while if others were in the way, and if there is time for it; `waits` numbers the attempts."""
    # In a dry run locks of earlier files are held, and there may be no savepoint to go back to.
    lost = conn.info.transaction_status == TRANSACTION_STATUS_INERROR or (
        conn.rehearsal and conn.rehearsal.is_in_the_way
    )
    found = next(waits, None) if sqlstate in RETRYABLE and not lost else None
    if found is None:
        return False
    attempt, pause = found
    by: dict[str, Any] = {"blocked_by": conn.blocked_by} if conn.blocked_by else {}
    log("gave way", **fields, sqlstate=sqlstate, attempt=attempt, again_in_s=round(pause, 1), **by)
    time.sleep(pause)
    return True


# --- Lock -----------------------------------------------------------------------------------------------------------

# Another session, called a, that builds an index: never to be ended or cancelled.
BUILDING = r"a.state = 'active' AND a.query ~* '^\s*(create|reindex)\M.*\mconcurrently\M'"
HOLDER = f"""
    SELECT a.pid, a.usename, a.application_name, extract(epoch FROM clock_timestamp() - a.backend_start)::int,
           coalesce(d.objid::bigint < extract(epoch FROM clock_timestamp()) AND a.usename = current_user
                    AND NOT ({BUILDING}), false),
           (SELECT command || ': ' || phase || CASE WHEN blocks_total > 0
                   THEN format(', %%s %%%%', 100 * blocks_done / blocks_total) ELSE '' END
            FROM pg_stat_progress_create_index p WHERE p.pid = a.pid)
    FROM pg_locks l JOIN pg_database b ON b.oid = l.database AND b.datname = current_database()
    JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_locks d ON d.pid = l.pid AND d.locktype = 'advisory' AND d.classid = %s AND d.objsubid = 2
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND (l.classid::bigint << 32) + l.objid::bigint = %s"""  # noqa: S608


# A function in PL/pgSQL has variables of types that may change. Its SQL is planned anew for each file (DISCARD PLANS),
# and NEW and OLD are looked at each time.
# (OFFSET 0: what costs more is asked of these functions alone.)
TYPED = r"""EXISTS (SELECT FROM
        (SELECT * FROM pg_proc WHERE prolang = (SELECT oid FROM pg_language WHERE lanname = 'plpgsql') OFFSET 0) p
    WHERE prosrc ~* '\mdeclare\M' OR EXISTS (SELECT FROM pg_type t
        WHERE t.oid = ANY (prorettype || coalesce(proallargtypes, proargtypes::oid[]))
          AND (typnamespace <> 'pg_catalog'::regnamespace OR typname ~ '^(any|record)')))"""
OURS = f"(objsubid = 1 AND (classid::bigint << 32) + objid::bigint = {LOCK_KEY})"
OUR_LOCKS = "FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
HOLDS_LOCK = f"(SELECT coalesce(bool_or({OURS}), false) {OUR_LOCKS})"


def is_as_it_was(conn: Connection, changed: bool, let_go: bool) -> str:
    """Asks whether the session still holds the lock, and whether it is as a new one would be, if it is not known to be
    `changed`; where it is not, it can `let_go` of the lock, which a new one takes then.

    ALTER DATABASE … SET counts only in sessions that begin behind it; variables of functions in PL/pgSQL stay of the
    types that they saw first; an advisory lock of a session stays until it ends.
    """
    locks = (
        f"SELECT coalesce(bool_or({OURS}), false) AS held, "
        f"coalesce(bool_and({OURS} OR classid = {DEADLINE_CLASS}), true) AS alone {OUR_LOCKS}"
    )
    fresh = (
        f"NOT {changed} AND alone AND ({DEFAULTS}) = '{conn.defaults}' "
        f"AND (current_setting('plpgsql.variable_conflict', true) IS NULL OR NOT {TYPED})"
    )
    unlocked = f"CASE WHEN {let_go} AND held AND NOT fresh THEN pg_advisory_unlock_all() END"
    return f"SELECT held, fresh, {unlocked} FROM (SELECT held, {fresh} AS fresh FROM ({locks}) l OFFSET 0) s"  # noqa: S608


class Holder(NamedTuple):
    """The session that holds the lock, as far as we may see it."""

    pid: int
    user: str
    application: str
    age_s: Optional[int]
    overdue: bool
    building: Optional[str]

    def __str__(self) -> str:
        since = "" if self.age_s is None else f", connected for {self.age_s} s"  # not shown of another login
        at = f", still at {self.building}" if self.building else ""
        return f"another run (pid {self.pid}, user {self.user}, {self.application!r}{since}{at})"


TRY_LOCK = f"SELECT pg_try_advisory_lock({LOCK_KEY})"


def try_lock(deadline: Deadline, where: str = "") -> str:
    """Publish until when the lock can be held, and take it if it is free.

    In this order: a process that is frozen in between does not hold the lock for ever.
    """
    if deadline.at is None:
        return f"{TRY_LOCK} {where}"
    until = f"(extract(epoch FROM clock_timestamp()) + {deadline.left(0) + deadline.reserve:.3f})::int"
    return f"SELECT pg_advisory_lock_shared({DEADLINE_CLASS}, {until}) {where}; {TRY_LOCK} {where}"


def lock_holders(conn: Connection) -> list[Holder]:
    """Nobody, or one."""
    return [Holder(*row) for row in query(conn, HOLDER, [DEADLINE_CLASS, LOCK_KEY])]


CHANGED_NOTHING = "This run has changed nothing"


def acquire_lock(conn: Connection, deadline: Deadline, state: str = CHANGED_NOTHING) -> int:
    """Take the session lock of this database, and publish until when it can be held at the longest; returns how many
    milliseconds that took.

    Polled with no transaction open: a blocking wait would deadlock with CREATE INDEX CONCURRENTLY (40P01).
    A holder of our own login that is past its deadline cannot be alive any more and is ended. Raises LockError.
    """
    started, announced = time.monotonic(), 0.0
    attempt = try_lock(deadline)
    while not query(conn, attempt)[0][0]:
        attempt = TRY_LOCK
        waited = time.monotonic() - started
        holder = "another run"
        for found in lock_holders(conn):
            holder = str(found)
            if found.overdue:
                log("ending a run that is past its deadline", logging.WARNING, pid=found.pid, age_s=found.age_s)
                query(conn, "SELECT pg_terminate_backend(%s)", [found.pid])
        if waited > LOCK_PATIENCE_S or deadline.left(LOCK_PATIENCE_S) < GIVE_UP_EARLY_S:
            raise LockError(
                f"{holder} holds the lock. Waited {waited:.0f} s. {state}. Invoke again when that one is done."
            )
        if time.monotonic() - announced >= 10:
            log("waiting for another run", holder=holder)
            announced = time.monotonic()
        time.sleep(random.uniform(0.1, 0.4))
    return round((time.monotonic() - started) * 1000)

"""How to reach a database: where and as whom, over which TLS, and what a refusal means.

Knows libpq, nothing of migrations or AWS.
"""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
import os
import random
import re
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

import psycopg2
import psycopg2.extensions
from common import MEMORY_OF_A_RUN_MB, ConnectError, Deadline, RefusedError, log
from psycopg2 import sql
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, connection, set_wait_callback

Connection = connection
CA_BUNDLE = Path(__file__).resolve().with_name("global-bundle.pem")
RDS_ROOTS = CA_BUNDLE.with_name("rds_roots")  # a file for each region
# The own name of an instance or a cluster, with its region. A proxy has another authority.
RDS_HOST = re.compile(
    r"(?!.*\.proxy-)[a-z0-9.-]+\.(?:([a-z0-9-]+)\.rds|rds\.([a-z0-9-]+))\.amazonaws"
    r"\.(?:com|com\.cn|eu)\.?"
)
CONNECT_TIMEOUT_S = 5
TRIAL_TIMEOUT_S = 2  # where the admin is connected to the same server
# Aurora Serverless resumes in about 15 s, a new instance's address may take longer.
CONNECT_PATIENCE_S = 90
NOTICES_LIMIT = 200  # lines of the log for each file
LOOK_AGAIN_S = 0.5
TELL_AGAIN_S = 15  # the same reason for waiting
PQERRORS_TERSE, PQERRORS_DEFAULT = range(2)  # of libpq


class MemoryFullError(Exception):
    """libpq holds all rows of an answer, and there are too many for the function's memory."""


@dataclass(frozen=True)
class Endpoint:
    """A database: the server's address, and its name there."""

    host: str
    port: int
    dbname: str
    engine: str = "postgres"  # as the secret calls it; AWS's rotation wants to find it there


@dataclass(frozen=True)
class Login:
    """Who connects to which database."""

    endpoint: Endpoint
    username: str
    password: str = field(repr=False)  # empty where each connection has a new token of IAM
    new_token: Optional[Callable[[], str]] = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.username}@{self.endpoint.host}:{self.endpoint.port}/{self.endpoint.dbname}"


def connect(
    login: Login, deadline: Deadline, is_trial: bool = False, settings: Optional[str] = None
) -> Connection:
    """Connect; try again while the server starts, resumes or is not reachable yet.

    A refused login is not tried again; nor, in a trial, one of which the server has checked the
    password; nor a wrong address where somebody waits at a terminal.

    Gives up after 90 s or at the deadline with a ConnectError that says what to check.
    """
    end = time.monotonic() + min(CONNECT_PATIENCE_S, deadline.left)
    pause = 0.5
    told = ""
    tell_again = 0.0
    while True:
        left = int(end - time.monotonic())
        try:
            timeout = max(1, min(CONNECT_TIMEOUT_S, left))
            if is_trial:
                return open_for_trial(login, TRIAL_SETTINGS)
            return open_connection(login, timeout, settings)
        except (psycopg2.OperationalError, UnicodeDecodeError) as exc:
            said = _what_was_said(exc)
            problem = _problem(said, login)
            is_proved = is_trial and re.search(PASSWORD_ACCEPTED, said) is not None
            can_pass = problem.can_pass and not (problem.is_address and deadline.somebody_waits)
            if not can_pass or is_proved or time.monotonic() + pause > end:
                kind = ConnectError if problem.can_pass else RefusedError
                error = kind(f"cannot connect to {login}: {problem.advice} ({said[:300]})")
                error.login_refused = re.search(REFUSED, said) is not None
                error.password_accepted = re.search(PASSWORD_ACCEPTED, said) is not None
                error.hashes_too_long = said == HASHES_TOO_LONG
                error.locked_itself_out = re.search(LOCKED_ITSELF_OUT, said) is not None
                raise error from exc.with_traceback(None)  # psycopg2's frames hold the password
        now = time.monotonic()
        if said != told or now >= tell_again:
            gives_up_in_s = round(end - now)
            log(
                "waiting for the database",
                host=login.endpoint.host,
                gives_up_in_s=gives_up_in_s,
                reason=said[:200],
            )
            told = said
            tell_again = now + TELL_AGAIN_S
        time.sleep(pause * random.uniform(0.8, 1.2))
        pause = min(pause * 1.5, 5)


def open_connection(
    login: Login, timeout: int = CONNECT_TIMEOUT_S, settings: Optional[str] = None
) -> Connection:
    """One attempt; in autocommit and UTF-8. `settings` are libpq's, which a proxy refuses."""
    conn: Connection = psycopg2.connect(**options(login, timeout), options=settings)
    conn.autocommit = True
    conn.notices = NoticeLog()  # type: ignore[assignment]  # any object with append() will do
    return conn


def open_for_trial(login: Login, settings: Optional[str] = None) -> Connection:
    """One attempt with a login that is not the admin's, which ends in time.

    Who can set its own password also says how often a client has to hash it, and libpq does that
    without looking at the time: in a thread, which is left behind. A process, which could be
    ended, takes longer to start than most runs.
    """
    outcome: list[Union[Connection, Exception]] = []

    def attempt() -> None:
        try:
            outcome.append(open_connection(login, TRIAL_TIMEOUT_S, settings))
        except Exception as exc:
            outcome.append(exc)

    thread = _left_behind.get(login)
    if thread is None or not thread.is_alive():
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(TRIAL_TIMEOUT_S + 1)
    if thread.is_alive():
        _left_behind[login] = thread  # it is not tried once more meanwhile
        if sys.platform == "linux" and thread.native_id:  # where a thread has its own priority
            os.setpriority(os.PRIO_PROCESS, thread.native_id, 19)
        raise psycopg2.OperationalError(HASHES_TOO_LONG)
    (result,) = outcome
    if isinstance(result, Exception):
        raise result
    return result


def is_left_behind() -> bool:
    """A thread is still in libpq, which must not be taken down under it."""
    return any(thread.is_alive() for thread in _left_behind.values())


_left_behind: dict[Login, threading.Thread] = {}


@contextmanager
def brief_errors(conn: Connection) -> Iterator[None]:
    """libpq's errors come without the place in the statement, for which it needs eight bytes a
    character. PostgreSQL's own fields, which are what we use, stay complete.
    """
    _set_verbosity(conn, PQERRORS_TERSE)
    try:
        yield
    finally:
        _set_verbosity(conn, PQERRORS_DEFAULT)


def _set_verbosity(conn: Connection, verbosity: int) -> None:
    """psycopg2 has no call for it. Where its build does not export libpq's, nothing changes."""
    with suppress(AttributeError, OSError):
        libpq = ctypes.CDLL(psycopg2._psycopg.__file__)
        libpq.PQsetErrorVerbosity(ctypes.c_void_p(conn.pgconn_ptr), verbosity)


def literal(text: Optional[str]) -> sql.Composable:
    """The text as an SQL literal of ASCII characters only, which survives any client_encoding."""
    if text is None or text.isascii():
        return sql.Literal(text)
    quoted = text.replace("\\", "\\\\").replace("'", "''")
    escaped = "".join(c if c.isascii() else f"\\U{ord(c):08X}" for c in quoted)
    return sql.SQL("E'" + escaped + "'")


def settle(conn: Any, end: Optional[float] = None) -> None:
    """Wait for what a connection does; raises psycopg2.Error at `end`, on the monotonic clock."""
    while (state := conn.poll()) != POLL_OK:
        read = [conn] if state == POLL_READ else []
        write = [conn] if state == POLL_WRITE else []
        # Without an end it looks again from time to time: TLS can hold what select does not see.
        left = LOOK_AGAIN_S if end is None else max(end - time.monotonic(), 0)
        if not any(select.select(read, write, [], left)) and end is not None:
            raise psycopg2.OperationalError("no answer in time")
        most_mb = _most_resident_mb.get(threading.get_ident(), math.inf)
        if end is None and most_mb < math.inf and _resident_mb() > most_mb:
            raise MemoryFullError


def _resident_mb() -> int:
    """The memory of this process, as Linux counts it."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * mmap.PAGESIZE >> 20


_most_resident_mb: dict[int, float] = {}  # that an answer may make it, by thread
_streaming_lock = threading.Lock()


@contextmanager
def streamed_notices() -> Iterator[None]:
    """Meanwhile psycopg2 hands each notice on when it comes.

    Otherwise it keeps all of them in memory until the answer is complete. It has one callback for
    all threads, with which it can neither COPY nor limit the time of a connect.
    """
    limit_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
    most_mb = math.inf
    if limit_mb:  # where Lambda would end the function without a message
        most_mb = _resident_mb() + int(limit_mb) - MEMORY_OF_A_RUN_MB
    with _streaming_lock:
        _most_resident_mb[threading.get_ident()] = most_mb
        set_wait_callback(settle)
    try:
        yield
    finally:
        with _streaming_lock:
            del _most_resident_mb[threading.get_ident()]
            if not _most_resident_mb:
                set_wait_callback(None)


class NoticeLog:
    """Replaces psycopg2's `conn.notices`, which keeps only the last 50.

    Of a flood the rest is counted: a million lines would take longer than a run has.
    """

    def __init__(self) -> None:
        self._lines = 0
        self._unsaid = 0

    def append(self, notice: str) -> None:
        self._lines += 1
        if self._lines > NOTICES_LIMIT:
            self._unsaid += 1
            return
        severity, _, text = notice.partition(":")
        if "will be truncated to" in text:  # a password in the wrong quotes is such a name
            text = "identifier will be truncated"
        if "no transaction in progress" not in text:
            log("database says", severity=severity, text=" ".join(text.split())[:500])

    def end(self) -> None:
        """Say how many were not said, and begin to count again."""
        if self._unsaid:
            log("database says more", logging.WARNING, lines=self._unsaid)
        self._lines = 0
        self._unsaid = 0


# --- What libpq is told -----------------------------------------------------------------------


def options(login: Login, timeout: int) -> dict[str, Any]:
    """What to connect with; a vanished server is noticed after about 20 s."""
    return {
        "host": as_rds_writes_it(login.endpoint.host),
        "port": login.endpoint.port,
        "dbname": login.endpoint.dbname,
        "user": login.username,
        "password": login.new_token() if login.new_token else login.password,
        "client_encoding": "UTF8",
        "application_name": "db_setup",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 20000,
        **_authentication(os.environ, login),
        **_connect_timeout(os.environ, timeout),
        **_tls_options(os.environ, login),
    }


def _authentication(environ: Mapping[str, str], login: Login) -> dict[str, str]:
    """A server, or who plays one, is not sent a password in clear. libpq reads PGREQUIREAUTH.

    A token is sent in no other way.
    """
    knows_it = psycopg2.extensions.libpq_version() >= 160000
    if login.new_token:
        return {"require_auth": "password"} if knows_it else {}
    return {"require_auth": "!password"} if knows_it and "PGREQUIREAUTH" not in environ else {}


def _connect_timeout(environ: Mapping[str, str], timeout: int) -> dict[str, int]:
    """PGCONNECT_TIMEOUT may shorten ours, which the deadline sets; what is not a number is left
    to libpq to refuse.
    """
    asked = environ.get("PGCONNECT_TIMEOUT", str(timeout))
    ours_is_shorter = asked.isdigit() and int(asked) >= timeout
    return {"connect_timeout": timeout} if ours_is_shorter else {}


def _tls_options(environ: Mapping[str, str], login: Login) -> dict[str, str]:
    """libpq reads PGSSLMODE and PGSSLROOTCERT itself; ours are only the defaults.

    But a token is sent to nobody who is not verified, whatever they say.
    """
    found: dict[str, str] = {}
    host = login.endpoint.host
    if "PGSSLMODE" not in environ or login.new_token:
        found["sslmode"] = "verify-full" if can_verify(host) or login.new_token else "require"
    # With a bundle libpq would take `require` for `verify-ca`: who asks for less gets less.
    verifies = found.get("sslmode", environ.get("PGSSLMODE", "")).startswith("verify")
    if "PGSSLROOTCERT" not in environ and _bundle(host).exists() and verifies:
        found["sslrootcert"] = str(_bundle(host))
    return found


def region_of(host: str) -> str:
    """The region in a name that RDS has given; empty for another name, such as an alias."""
    name = RDS_HOST.fullmatch(host.lower())
    return (name[1] or name[2]) if name else ""


def as_rds_writes_it(host: str) -> str:
    """A name of RDS as its certificate and its tokens have it: in lower case, no dot at its end."""
    return host.lower().rstrip(".") if region_of(host) else host


HOW_TO_VERIFY = (
    "set DB_HOST to the name that RDS gave, or PGSSLROOTCERT to its authority's certificate"
)


def can_verify(host: str) -> bool:
    return "PGSSLROOTCERT" in os.environ or _bundle(host).exists()


def _bundle(host: str) -> Path:
    return CA_BUNDLE if CA_BUNDLE.exists() else RDS_ROOTS / f"{region_of(host)}.pem"


def why_unverified(host: str) -> list[str]:
    """A warning where the server's certificate is not verified, and no variable asks for that."""
    if "PGSSLMODE" in os.environ or can_verify(host):
        return []
    return [
        f"{host} is not verified, since it is not a name of RDS in a region whose root "
        f"certificates are known: {HOW_TO_VERIFY}; PGSSLMODE=require says that this is wanted"
    ]


# --- What a refusal means ---------------------------------------------------------------------


class Problem(NamedTuple):
    """What libpq and the server say when a connection fails (no SQLSTATE is available then), and
    what to do.
    """

    pattern: str
    can_pass: bool  # another attempt may succeed
    advice: str
    is_address: bool = False  # in Lambda it may be too new to work yet; typed by hand it is wrong


# The login is known to be wrong: everything else can pass.
REFUSED = (
    "password authentication failed|not permitted to log in|role .* does not exist|permission "
    "denied for database"
)
# What a server says once it has checked the password.
LOCKED_ITSELF_OUT = "could not (access|load|find)"  # a library that the login has set for itself
PASSWORD_ACCEPTED = (
    "too many connections for (role|database)|connection slots are reserved"
    f"|not currently accepting connections|terminating connection due|{LOCKED_ITSELF_OUT}"
)
# Then psycopg2 asks a new session nothing: a login can let its sessions end before they answer.
TRIAL_SETTINGS = "-c DateStyle=ISO"
NO_ENTRY_BY_IAM = Problem(
    "",
    False,
    "IAM does not let this login in: the database needs IAM authentication, the function's role "
    "rds-db:connect for this login, and the login GRANT rds_iam",
)
HASHES_TOO_LONG = "its password takes too long to hash"
UNKNOWN_PROBLEM = Problem("", True, "check host, port, security group and that the database runs")
# The first whose pattern is found counts.
CONNECT_PROBLEMS: Sequence[Problem] = (
    Problem(
        "out of shared memory",
        True,
        "a session holds all locks that the server has room for: end it, or reboot the server",
    ),
    Problem(
        HASHES_TOO_LONG,
        False,
        'it has set its password itself, in a form that nobody can use in time: {"action": '
        '"rotate"} replaces it',
    ),
    Problem(
        "startup parameter|command-line options",
        False,
        "this is a connection pooler or proxy, which takes no options, and where a session lock "
        "protects nothing: set DB_HOST to the database's own endpoint",
    ),
    Problem(
        "PAM authentication failed",
        False,
        "this login is a member of rds_iam, and so cannot log in with a password: REVOKE rds_iam "
        "FROM it",
    ),
    Problem(
        "authentication method requirement",
        False,
        "the server asks for the password in clear, and is not sent it; RDS does so for members of "
        "rds_iam: REVOKE rds_iam FROM this login, or let it sign in by IAM",
    ),
    Problem(
        "permission denied for database",
        False,
        "this login may not CONNECT to that database: GRANT it as the database's owner",
    ),
    Problem(
        r"\bnot permitted to log in",
        False,
        "this login is locked: ALTER ROLE … LOGIN",
    ),
    Problem(
        r"\bnot currently accepting",
        False,
        "this database is closed: ALTER DATABASE … ALLOW_CONNECTIONS true, as its owner",
    ),
    Problem(
        rf"{REFUSED}|no password supplied",
        False,
        "check username and password in the secret (or DATABASE_URL)",
    ),
    Problem(
        r"starting up|shutting down|recovery mode|not (yet )?accepting"
        r"|terminating connection|canceling authentication",
        True,
        "the database is starting or busy; invoke again",
    ),
    Problem(
        r"too many connections for (role|database)",
        True,
        "its CONNECTION LIMIT is reached: end sessions, or raise it with ALTER ROLE or ALTER "
        "DATABASE",
    ),
    Problem(
        r"too many (clients|connections)|connection slots",
        True,
        "all connections of the database are in use: end some, or raise max_connections",
    ),
    Problem(
        "CONTEXT: +PL/pgSQL function",
        False,
        "an event trigger fails each login: as a superuser, with "
        "PGOPTIONS='-c event_triggers=off', ALTER EVENT TRIGGER … DISABLE",
    ),
    Problem(
        r"no pg_hba.conf entry.*(no encryption|SSL off)",
        False,
        "the server wants TLS: set PGSSLMODE=require",
    ),
    Problem(r"no pg_hba.conf entry", False, "the server does not let this login in from here"),
    Problem(
        r"database .* does not exist",
        False,
        "check dbname in the secret, or DB_NAME (or DATABASE_URL)",
    ),
    Problem(r"invalid \w+ value", False, "check the variables PGSSLMODE and PGCONNECT_TIMEOUT"),
    Problem(
        r"does not support SSL", False, "the server has no TLS; for local work set PGSSLMODE=prefer"
    ),
    Problem(
        r"does not match host \w+",
        False,
        "TLS: an alias is not in the certificate; set DB_HOST to the name that is, or "
        "PGSSLMODE=verify-ca, which does not compare it",
    ),
    Problem(
        r"certificate|SSL error(?!.*unexpected eof)",
        False,
        "TLS: check PGSSLROOTCERT and global-bundle.pem, and on RDS that the server's authority is "
        "not rds-ca-2019, which has ended; for local work set PGSSLMODE=require",
    ),
    Problem(
        r"translate host name|Name or service",
        True,
        "DNS: check host in the secret, or DB_HOST (or DATABASE_URL), and the VPC's DNS",
        is_address=True,
    ),
    Problem(
        r"timeout expired|timed out|No route|unreachable",
        True,
        "network: check that the security group lets this function in, the subnets, and that the "
        "database runs",
    ),
    Problem(
        r"invalid response to SSL negotiation",
        False,
        "what answers there is not PostgreSQL: check host and port",
    ),
    Problem(
        r"refused",
        True,
        "nothing listens there: check that the database runs, its host and its port",
        is_address=True,
    ),
    Problem(r"FATAL", False, "the server refused this login"),
)


def _what_was_said(exc: Exception) -> str:
    """The words of the server or of libpq.

    A name cut off within a letter makes the server's answer no UTF-8.
    """
    text = exc.object.decode(errors="replace") if isinstance(exc, UnicodeDecodeError) else str(exc)
    return " ".join(text.split())


def _problem(said: str, login: Login) -> Problem:
    if login.new_token and re.search("(PAM|password) authentication failed", said):
        return NO_ENTRY_BY_IAM
    found = (problem for problem in CONNECT_PROBLEMS if re.search(problem.pattern, said))
    return next(found, UNKNOWN_PROBLEM)

"""No password is ever shown: by the server, by our log and others', by an error and the frames that it went through."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, NamedTuple
from unittest import mock

import database
import pytest
from harness import aws
from harness.database import create_admin, create_database, drop_database, drop_roles, superuser_connection
from harness.logins import as_superuser
from harness.server import Server
from harness.talkative import talkative_server, told
from harness.traces import everything_logged, places, shown
from harness.world import ADMIN, World, exactly, rows
from initializer import InitializerError
from psycopg2.extensions import encrypt_password
from session import Session

ROTATE = {"action": "rotate"}
ADMIN_PASSWORD = 'admin\'s \\ %s "p4ssw0rd"'  # one that nothing else shows
LOST = "a password that was lost"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def talkative() -> Iterator[Server]:
    with talkative_server() as running:
        with superuser_connection(running) as conn:  # not in plain text: that would be in the log
            verifier = encrypt_password(ADMIN_PASSWORD, ADMIN, scope=conn, algorithm="scram-sha-256")
        create_admin(running, ADMIN, verifier)
        yield running


class Told(NamedTuple):
    """A world on the talkative server, and every password that was ever there."""

    world: World
    passwords: list[str]


@pytest.fixture
def there(talkative: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    """Everybody logs at DEBUG, and what is written to Secrets Manager is remembered."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="db_setup")
    for name in ("boto3", "botocore", "urllib3"):
        caplog.set_level(logging.DEBUG, logger=name)
    dbname, passwords = f"db_setup_told_{next(_numbers)}", [ADMIN_PASSWORD, LOST]
    create_database(talkative, dbname, ADMIN)

    def remember(params: dict[str, Any], **_: Any) -> None:
        passwords.append(json.loads(params["SecretString"])["password"])

    try:
        with aws.played(), ExitStack() as patches:
            world = World(talkative, dbname, tmp_path / "migrations")
            world.put_secret("admin", {**world.secret("admin"), "password": ADMIN_PASSWORD})
            patches.enter_context(exactly(world.environ))
            patches.enter_context(aws.at(f"{aws.ANY}.PutSecretValue", remember))
            patches.enter_context(mock.patch.object(database, "CONNECT_PATIENCE_S", 0))
            world.write("001_things.sql", "CREATE TABLE things (id serial, note text);")
            yield Told(world, passwords)
    finally:
        drop_database(talkative, dbname)
        drop_roles(talkative, "%readwrite", "%tablecreator", "%app\\_rw%", "%app\\_tc%")


@contextmanager
def watched(server: Server) -> Iterator[list[str]]:
    """What pg_stat_activity shows of the others' statements meanwhile, looked at all the time."""
    seen: list[str] = []
    stop = threading.Event()

    def look() -> None:
        with superuser_connection(server) as conn:
            while not stop.is_set():
                seen.extend(text for (text,) in rows(conn, "SELECT DISTINCT query FROM pg_stat_activity") if text)
                time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(timeout=10)


@pytest.mark.slow
def test_secrecy_of_runs_that_succeed(there: Told, talkative: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Making, repairing and rotating logins shows no password: in the server's log and statistics, in what others see
    of a session, in any logger's lines at DEBUG, or in the result."""
    world, passwords = there
    reports = []
    with watched(talkative) as seen:
        reports.append(world.deploy())
        world.put_secret("user", {**world.secret("user"), "password": LOST})
        as_superuser(world, "ALTER ROLE app_tc NOLOGIN")
        reports += [world.deploy(), world.deploy(ROTATE), world.deploy(ROTATE), world.deploy()]

    server, log = told(talkative), everything_logged(caplog.records)
    assert len(passwords) == 2 + 2 + 2 + 4
    assert 'ALTER ROLE "app_rw"' in server
    assert "Query Text" in server
    assert any("pg_default_acl" in text or "ROLE" in text for text in seen)
    assert "login ready" in log
    assert {
        "server": shown(server, passwords),
        "sessions": shown("\n".join(seen), passwords),
        "log": shown(log, passwords),
        "result": shown(json.dumps(reports), passwords),
    } == {"server": [], "sessions": [], "log": [], "result": []}


# --- Failures -------------------------------------------------------------------------------------------------------


def nothing(_: World) -> AbstractContextManager[Any]:
    return nullcontext()


def wrong_admin(world: World) -> AbstractContextManager[Any]:
    world.put_secret("admin", {**world.secret("admin"), "password": LOST})
    return nullcontext()


def elsewhere(world: World) -> AbstractContextManager[Any]:
    world.put_secret("admin", {**world.secret("admin"), "dbname": "not_there"})
    return nullcontext()


def at(event: str, action: Callable[..., Any]) -> Callable[[World], AbstractContextManager[Any]]:
    return lambda _: aws.at(event, action)


def cut(world: World) -> AbstractContextManager[Any]:
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
    return aws.at(aws.AFTER_WRITE, lambda **_: as_superuser(world, ending, ADMIN))


def failing_statement(word: str) -> Callable[[World], AbstractContextManager[Any]]:
    """A statement that begins with this word fails on the server, as one that it cannot read."""
    original = Session.query

    def query(self: Session, statement: Any, args: Any = None) -> Any:
        text = statement if isinstance(statement, str) else statement.as_string(self.connection)
        return original(self, f"{text} nonsense" if text.startswith(word) else statement, args)

    return lambda _: mock.patch.object(Session, "query", query)


BROKEN = "ALTER ROLE app_rw NOLOGIN"


# What is done before, what fails, the event.
@contextmanager
def lost(_: World) -> Iterator[None]:
    """From the moment when a secret is written on, Secrets Manager answers nothing."""
    written: list[bool] = []

    def lose(**_: Any) -> None:
        written.append(True)
        aws.out_of_reach()

    def ask(**_: Any) -> None:
        if written:
            aws.out_of_reach()

    with aws.at(aws.AFTER_WRITE, lose), aws.at(aws.BEFORE_READ, ask):
        yield


FAILURES: dict[str, tuple[str, Callable[[World], AbstractContextManager[Any]], Any]] = {
    "the admin's password is wrong": ("", wrong_admin, None),
    "the database does not exist": ("", elsewhere, None),
    "the secrets are closed": ("", at(aws.BEFORE_READ, aws.refused("AccessDeniedException")), None),
    "the secrets are out of reach": ("", at(aws.BEFORE_READ, aws.out_of_reach), None),
    "a secret is closed": (BROKEN, at(aws.BEFORE_WRITE, aws.refused("AccessDeniedException")), None),
    "a secret is out of reach": (BROKEN, at(aws.BEFORE_WRITE, aws.out_of_reach), None),
    "the answer is lost": (BROKEN, lost, None),
    "the connection is lost": (BROKEN, cut, None),
    "a role cannot be changed": (BROKEN, failing_statement("ALTER ROLE"), None),
    "a role cannot be made": ("DROP OWNED BY app_rw; DROP ROLE app_rw", failing_statement("CREATE ROLE"), None),
    "a role is too powerful": (f"{BROKEN}; ALTER ROLE app_rw SUPERUSER", nothing, None),
    "a rotated role cannot be made": ("", failing_statement("CREATE ROLE"), ROTATE),
    "a rotated secret is closed": ("", at(aws.BEFORE_WRITE, aws.refused("AccessDeniedException")), ROTATE),
}


@pytest.mark.parametrize("case", FAILURES)
def test_secrecy_of_a_run_that_fails(
    there: Told, talkative: Server, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """Wherever it fails, no password is shown: nor in the error, what it was raised from, their attributes, and the
    local variables of the frames on the way, which error trackers send."""
    world, passwords = there
    damage, failing, event = FAILURES[case]
    world.deploy()
    if damage:
        as_superuser(world, damage)

    with failing(world), pytest.raises(InitializerError) as caught:
        world.deploy(event)

    assert len(passwords) >= 4
    assert {
        "error": places(caught.value, passwords),
        "log": shown(everything_logged(caplog.records), passwords),
        "server": shown(told(talkative), passwords),
    } == {"error": [], "log": [], "server": []}

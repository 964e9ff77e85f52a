"""The handler stops itself in time: wherever it is, whoever is silent, and the next run finishes the work."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, repeat
from typing import Any, NamedTuple, Optional

import common
import pytest
import session
from harness.others import open_transaction, sessions, wait_until
from harness.silent_proxy import HOST, SilentProxy, silent_proxy
from harness.world import Context, World, exactly, rows
from initializer import InitializerError, MigrationError

SOON_S = 1.2  # until the deadline: enough to get to any of the steps
RESERVE_S = 20  # after it, as with a limit of a minute or more; told to the handler as less, for it starts no file
TOLD_RESERVE_S = 0.2  # when little more than a part of the reserve is left
IN_TIME_S = SOON_S + RESERVE_S - 5
MERCY_S = IN_TIME_S + 2  # then a silent proxy hangs up, so that a handler that is frozen fails the test
SOON = Context(SOON_S + RESERVE_S)
IN_001_A = re.compile(r"out of time( in|:) 001_a")


@pytest.fixture
def limited(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world whose runs with a context come near Lambda's limit after a moment."""

    real = common.Deadline.from_context

    def from_context(context: Any) -> common.Deadline:
        soon = common.Deadline(time.monotonic() + SOON_S, TOLD_RESERVE_S)
        return soon if context is SOON else real(context)

    monkeypatch.setattr(common.Deadline, "from_context", from_context)
    world.environ.update(LOCK_TIMEOUT="60s", CREATE_USERS="false")
    with exactly(world.environ):
        yield world


def stopped(world: World, kind: type[InitializerError] = MigrationError, **environ: Optional[str]) -> str:
    """What the handler says when its time runs out; it has ended at least 5 s before the limit, with every thread."""
    threads = set(threading.enumerate())
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        world.deploy(None, SOON, **environ)
    seconds = time.monotonic() - started
    left_over = set(threading.enumerate()) - threads
    assert SOON_S / 2 < seconds < IN_TIME_S, str(caught.value)
    assert not left_over
    return str(caught.value)


def names(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


# --- At every step --------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What hangs: a file, or the statement that another session has run in its open transaction. Both begin with the
    table `a` and its first file; `instead` is what the file holds for the next run, where it would hang again."""

    file: str = "SELECT 1;"
    blocker: str = ""
    instead: str = ""


ONCE = (
    "DO $$ BEGIN IF nextval('tries') = 1 THEN RAISE 'not yet' USING ERRCODE = '40001'; END IF; "
    "PERFORM pg_sleep(60); END $$;"
)
DEFERRED = (
    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';\n"
    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON a DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
    "EXECUTE FUNCTION slow();\nINSERT INTO a VALUES (3);"
)
LOCK_A = "LOCK TABLE a"
IN_A_FILE = {
    "statement": Case("INSERT INTO a VALUES (3);\nSELECT pg_sleep(60);", instead="INSERT INTO a VALUES (3);"),
    "lock": Case("INSERT INTO b VALUES (3);\nALTER TABLE a ADD s text;", LOCK_A),
    "second attempt": Case(f"INSERT INTO a VALUES (3);\n{ONCE}", instead="INSERT INTO a VALUES (3);"),
    "end of the file": Case(DEFERRED, instead="INSERT INTO a VALUES (3);"),
    "rows of COPY": Case("COPY a FROM STDIN;\n3\n\\.\n", LOCK_A),
    "row that records": Case(
        "INSERT INTO a VALUES (3);", "INSERT INTO schema_migrations (migration_name) VALUES ('003_slow')"
    ),
    "step": Case("-- no-transaction\nVACUUM b;\nSELECT pg_sleep(60);", "", "-- no-transaction\nVACUUM b;\nSELECT 1;"),
    "outside": Case("VACUUM a;", LOCK_A),
}


@pytest.mark.parametrize("case", IN_A_FILE.values(), ids=IN_A_FILE)
def test_deadline_in_a_file_rolls_it_back_and_the_next_run_finishes(limited: World, case: Case) -> None:
    """Wherever in a file the time runs out: it is stopped on the server too, nothing of it stays, the message says
    what is applied, what is not and what to do, and the next invocation does the rest."""
    limited.write("001_a.sql", "CREATE TABLE a (i int); CREATE TABLE b (i int); CREATE SEQUENCE tries;")
    limited.deploy()
    limited.write("002_ok.sql", "INSERT INTO b VALUES (2);")
    limited.write("003_slow.sql", case.file)
    limited.write("004_later.sql", "INSERT INTO b VALUES (4);")

    with ExitStack() as others:
        if case.blocker:
            others.enter_context(open_transaction(limited, case.blocker))
        message = stopped(limited)
        wait_until(lambda: sessions(limited) == [], 4)

    assert re.match(r"out of time( in|:) 003_slow", message)
    assert "Applied in this run: 002_ok." in message
    assert re.search(r"Not (applied|tried): (003_slow, )?004_later\.", message)
    assert "Invoke again" in message
    assert limited.applied() == ["001_a", "002_ok"]
    assert limited.sql("SELECT i FROM a") == []
    limited.write("003_slow.sql", case.instead or case.file)
    assert names(limited.deploy()) == ["003_slow", "004_later"]
    assert limited.sql("SELECT i FROM b WHERE i <> 3") == [(2,), (4,)]


BEFORE_THE_FILES = {
    "reading the state": ("", "LOCK TABLE schema_migrations"),
    "tracking table": (
        "ALTER TABLE schema_migrations DROP COLUMN adopted",
        "LOCK TABLE schema_migrations IN SHARE MODE",
    ),
    "renumbered row": (
        "UPDATE schema_migrations SET migration_name = '0_a'",
        "SELECT FROM schema_migrations FOR UPDATE",
    ),
}


@pytest.mark.parametrize("case", BEFORE_THE_FILES.values(), ids=BEFORE_THE_FILES)
def test_deadline_before_the_files_does_not_say_that_none_is_left(limited: World, case: tuple[str, str]) -> None:
    """Where the time runs out before the first file, the message does not claim that nothing remains to be done."""
    limited.write("001_a.sql", "CREATE TABLE a (i int);")
    limited.deploy()
    limited.write("002_b.sql", "INSERT INTO a VALUES (2);")
    before, blocker = case
    if before:
        limited.sql(before)

    with open_transaction(limited, blocker):
        message = stopped(limited)
        wait_until(lambda: sessions(limited) == [], 4)

    assert message.startswith("out of time")
    assert "Invoke again" in message
    assert names(limited.deploy()) == ["002_b"]
    assert limited.sql("SELECT i FROM a") == [(2,)]
    assert "Not applied: nothing" not in message


def test_deadline_among_the_users_keeps_the_files_and_the_secret(limited: World) -> None:
    """Where it runs out while a login is repaired, the files are kept, the secret is not written, and the next run
    repairs the login."""
    limited.deploy(CREATE_USERS="true")
    limited.write("001_a.sql", "CREATE TABLE a (i int);")
    limited.put_secret("user", {**limited.secret("user"), "password": "a wrong one"})
    superuser = {"username": limited.server.user, "password": limited.server.password}
    versions = limited.versions("user")

    with open_transaction(limited, "ALTER ROLE app_rw CONNECTION LIMIT 50", **superuser):
        message = stopped(limited, CREATE_USERS="true")
        wait_until(lambda: sessions(limited) == [], 4)

    who = r"(Other sessions blocked it \(.*\)\. )?"  # the one who blocks has another login, and may go unseen
    assert re.match(
        rf"out of time\. Applied in this run: 001_a\. The rest is not done yet\. {who}Invoke again", message
    )
    assert limited.versions("user") == versions
    assert limited.deploy(CREATE_USERS="true")["users"] == {"app_rw": "mended", "app_tc": "kept"}
    with limited.login("user") as conn:
        assert rows(conn, "SELECT current_user") == [("app_rw",)]


def test_deadline_among_retries_ends_them(
    limited: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is always blocked is retried for as long as a pause and an attempt fit before the deadline; then
    the run ends with the conflict as its reason, and not by the deadline itself."""
    limited.write("001_a.sql", "CREATE TABLE a (i int);")
    limited.deploy()
    limited.write("002_b.sql", "ALTER TABLE a ADD s text;")
    patience_s = 15.0
    factors = chain([0.1] * 3, repeat(10.0))  # three short pauses, and then one of 20 s
    monkeypatch.setattr(session.random, "uniform", lambda *_: next(factors))
    monkeypatch.setattr(
        common.Deadline, "from_context", lambda _: common.Deadline(time.monotonic() + patience_s, TOLD_RESERVE_S)
    )

    with open_transaction(limited, LOCK_A):
        started = time.monotonic()
        with pytest.raises(MigrationError) as caught:
            limited.deploy(None, SOON, LOCK_TIMEOUT="50ms")
        seconds = time.monotonic() - started

    assert seconds < patience_s
    assert re.match(r"002_b\.sql:1: .*\(55P03\)\. Rolled back\. It conflicted ", str(caught.value))
    assert caplog.text.count("gave way migration=002_b sqlstate=55P03") == 3
    assert names(limited.deploy()) == ["002_b"]


def test_deadline_that_is_near_lets_no_file_begin(limited: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that could not end in time is not begun, and the message says which; the next run applies it."""
    limited.write("001_a.sql", "CREATE TABLE a (i int);")
    limited.deploy()
    limited.write("002_b.sql", "CREATE SEQUENCE begun;")
    deadline = common.Deadline(time.monotonic() + RESERVE_S / 2 - 1, RESERVE_S)
    monkeypatch.setattr(
        common.Deadline, "from_context", lambda context: deadline if context is SOON else common.Deadline()
    )

    with pytest.raises(MigrationError) as caught:
        limited.deploy(None, SOON)

    assert str(caught.value) == (
        "out of time before 002_b: it was not started. Applied in this run: nothing. Not applied: 002_b. Invoke again "
        "to go on; if one file needs longer than the function's timeout, raise that or split the file."
    )
    assert deadline.left > 0
    assert limited.applied() == ["001_a"]
    assert names(limited.deploy()) == ["002_b"]


def test_deadline_during_a_concurrent_build_is_kept_and_the_index_becomes_valid(limited: World) -> None:
    """A concurrent build that has to wait does not keep the handler from stopping in time, and a later run has it."""
    limited.write("001_a.sql", "CREATE TABLE a (i int);")
    limited.deploy()
    limited.write("002_b.sql", "CREATE INDEX CONCURRENTLY a_i ON a (i);")

    with open_transaction(limited, "INSERT INTO a VALUES (1)") as writer:
        stopped(limited)
        rows(writer, "COMMIT")
    limited.deploy()

    assert limited.applied() == ["001_a", "002_b"]
    assert limited.sql("SELECT indisvalid FROM pg_index WHERE indrelid = 'a'::regclass") == [(True,)]


# --- A server or a network that no longer answers -------------------------------------------------------------------


def through(proxy: SilentProxy) -> dict[str, str]:
    """The variables that lead through the proxy, which has to be able to read what is said."""
    return {"DB_HOST": HOST, "DB_PORT": str(proxy.port), "PGSSLMODE": "disable"}


def stopped_in_silence(world: World, word: bytes, **environ: str) -> str:
    """What the handler says where the network falls silent at this word."""
    with silent_proxy((world.server.host, world.server.port), word, MERCY_S) as proxy:
        message = stopped(world, InitializerError, **through(proxy), **environ)
        assert proxy.is_silent
    wait_until(lambda: sessions(world) == [], 8)
    return message


def stopped_in_a_silent_file(world: World, word: bytes, **environ: str) -> str:
    """The same, in the middle of a file; the next run then applies it."""
    world.write("001_a.sql", "CREATE TABLE a (i int);\nSELECT pg_sleep(60);")
    message = stopped_in_silence(world, word, **environ)
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    assert names(world.deploy()) == ["001_a"]
    return message


@pytest.mark.slow
def test_deadline_is_kept_when_the_network_falls_silent_for_the_helper(limited: World) -> None:
    """The second connection, which cancels, can be open and then get no answer: that does not delay the first."""
    message = stopped_in_a_silent_file(limited, b"pg_cancel_backend")

    assert IN_001_A.match(message)


@pytest.mark.slow
def test_deadline_is_kept_when_the_network_falls_silent(limited: World) -> None:
    """A server that accepts and never answers again freezes no thread: the socket is shut down under the statement;
    with a limit of some seconds too, of which the reserve is a third."""
    limited.write("001_a.sql", "CREATE TABLE a (i int);\nSELECT pg_sleep(60);")
    with silent_proxy((limited.server.host, limited.server.port), b"pg_sleep", MERCY_S) as proxy:
        started, before = time.monotonic(), set(threading.enumerate())
        with pytest.raises(MigrationError) as caught:
            limited.deploy(None, Context(7.5), **through(proxy))
        seconds = time.monotonic() - started
        left_over = set(threading.enumerate()) - before

    assert IN_001_A.match(str(caught.value))
    assert left_over == set()
    wait_until(lambda: sessions(limited) == [], 8)
    assert limited.tables() == []
    assert seconds < 7.5


@pytest.mark.parametrize("environ", [{}, {"PGCONNECT_TIMEOUT": "60"}], ids=["default", "PGCONNECT_TIMEOUT"])
def test_deadline_is_kept_where_nothing_answers_from_the_start(limited: World, environ: dict[str, str]) -> None:
    """A connection that is accepted and never answered is given up in time."""
    message = stopped_in_silence(limited, b"", **environ)

    assert message.startswith("cannot connect to ")
    assert message.endswith("Nothing has been changed.")


def test_deadline_is_kept_when_a_new_login_gets_no_answer(limited: World) -> None:
    """The same holds if only the trial of a login hangs; the next run finds the login in order, or repairs it."""
    message = stopped_in_silence(limited, b"app_rw\0", CREATE_USERS="true")

    assert "nvoke again" in message
    assert set(limited.deploy(CREATE_USERS="true")["users"]) == {"app_rw", "app_tc"}
    with limited.login("user") as conn:
        assert rows(conn, "SELECT current_user") == [("app_rw",)]


# --- A warm sandbox -------------------------------------------------------------------------------------------------


def test_deadline_leaves_no_thread_in_a_warm_sandbox(world: World) -> None:
    """However an invocation with a deadline ends, its watchdog ends with it."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    before = set(threading.enumerate())

    world.deploy(None, Context(60))
    after_success = set(threading.enumerate()) - before
    world.write("002_b.sql", "SELECT 1 / 0;")
    with pytest.raises(MigrationError, match="division by zero"):
        world.deploy(None, Context(60))
    after_failure = set(threading.enumerate()) - before
    world.write("002_b.sql", "SELECT pg_terminate_backend(pg_backend_pid());")
    with pytest.raises(MigrationError):
        world.deploy(None, Context(60))
    after_loss = set(threading.enumerate()) - before

    assert (after_success, after_failure, after_loss) == (set(), set(), set())

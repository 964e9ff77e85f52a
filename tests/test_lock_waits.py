"""A migration never makes the application wait: it rolls back, says who blocks it, and retries."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import initializer
import pytest
import session
from common import Deadline
from harness.others import open_transaction, wait_until
from harness.world import LOCK_KEY, Context, World, exactly, rows
from initializer import InitializerError, LockError

pytestmark = pytest.mark.slow

TABLES = "CREATE TABLE a (i int); CREATE TABLE b (i int); CREATE TABLE done (i int); INSERT INTO a VALUES (1);"


@pytest.fixture
def busy(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world with three tables and no users, in whose process nothing changes while several threads are at work."""
    world.environ.update(CREATE_USERS="false", LOCK_TIMEOUT="400ms")
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", world.folder)
    with exactly(world.environ):
        world.write("001_a.sql", TABLES)
        initializer.handler(None, None)
        yield world


@contextmanager
def running(world: World) -> Iterator[Future[dict[str, Any]]]:
    """The handler at work in another thread; it has ended when the block is left."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(initializer.handler, None, Context(60))


def names(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def gave_way(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage().startswith("gave way ")]


# --- The queue ------------------------------------------------------------------------------------------------------


class Stream:
    """An application that reads these tables all the time, and how long each of its statements took."""

    def __init__(self, world: World, tables: Sequence[str]) -> None:
        self.seconds: dict[str, list[float]] = {table: [] for table in tables}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(world, table)) for table in tables]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: all(self.seconds.values()))

    def _read(self, world: World, table: str) -> None:
        with world.connection() as conn:
            while not self._over.wait(0.01):
                started = time.monotonic()
                rows(conn, f"SELECT count(*) FROM {table}")
                self.seconds[table].append(time.monotonic() - started)

    def end(self) -> dict[str, float]:
        """The longest that anybody had to wait for each table."""
        self._over.set()
        for thread in self._threads:
            thread.join(20)
        return {table: max(seconds) for table, seconds in self.seconds.items()}


class Blocker(NamedTuple):
    """A statement that another session has run in a transaction that stays open, or one that goes on running."""

    statement: str
    is_running: bool = False


BLOCKERS = {
    "a reader's open transaction": Blocker("SELECT * FROM a"),
    "a long update": Blocker("UPDATE a SET i = 2 WHERE pg_sleep(60) IS NOT NULL", is_running=True),
}


@pytest.mark.parametrize("blocker", BLOCKERS.values(), ids=BLOCKERS)
def test_lock_wait_lets_the_application_go_first_and_succeeds_when_the_lock_is_free(
    busy: World, caplog: pytest.LogCaptureFixture, blocker: Blocker
) -> None:
    """After a long reader or writer a migration waits for LOCK_TIMEOUT at a time: nobody else queues behind it for
    longer, not for a table that it has already altered either; then the whole file happens, once."""
    busy.write("002_b.sql", "INSERT INTO done VALUES (1);\nALTER TABLE b ADD s text;\nALTER TABLE a ADD s text;")
    with busy.connection() as other, ThreadPoolExecutor(1) as pool:
        rows(other, "BEGIN")
        statement = pool.submit(rows, other, blocker.statement)
        if blocker.is_running:
            active = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND wait_event = 'PgSleep'"
            wait_until(lambda: busy.sql(active, other.info.backend_pid) != [])
        else:
            statement.result(20)
        stream = Stream(busy, ["a", "b"])
        with running(busy) as run:
            try:
                wait_until(lambda: len(gave_way(caplog)) >= 2)
                assert not run.done()
            finally:
                busy.sql("SELECT pg_terminate_backend(%s)", other.info.backend_pid)
            assert names(run.result(20)) == ["002_b"]
        longest = stream.end()
        assert statement.exception(20) is None or blocker.is_running

    assert {vars(record)["sqlstate"] for record in gave_way(caplog)} == {"55P03"}
    # They did have to queue behind the migration, or nothing would have been measured here.
    assert 0.1 < longest["a"] < 0.4 + 1
    assert 0.1 < longest["b"] < 0.4 + 1
    assert busy.sql("SELECT count(*) FROM done") == [(1,)]
    assert busy.sql("SELECT count(s) FROM a") == [(0,)]


def test_lock_wait_pauses_grow_and_are_jittered() -> None:
    """The pauses between two attempts grow up to about 15 s, and two runs that collide do not keep step."""
    one, other = list(session.pauses(Deadline())), list(session.pauses(Deadline()))

    assert len(one) == len(other) == 10
    assert all(0.7 * 1.6**number * 0.5 <= pause for number, pause in enumerate(one[:8]))
    assert one[0] < 1 < one[4] < one[9] < 20
    assert one != other


def test_lock_wait_pauses_are_kept_between_attempts(busy: World, caplog: pytest.LogCaptureFixture) -> None:
    """The log says how long the pause is, and during the pause nobody is blocked."""
    busy.write("002_b.sql", "ALTER TABLE a ADD s text;")
    busy.environ["LOCK_TIMEOUT"] = "100ms"

    with exactly(busy.environ), open_transaction(busy, "SELECT * FROM a") as blocker, running(busy) as run:
        wait_until(lambda: len(gave_way(caplog)) >= 3)
        rows(blocker, "COMMIT")
        run.result(20)

    first, second, third = gave_way(caplog)[:3]
    for record, following in ((first, second), (second, third)):
        pause = vars(record)["again_in_s"]
        assert pause <= following.created - record.created < pause + 2


# --- Whom the log names ---------------------------------------------------------------------------------------------


def blocked_by(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The blockers of the first wait."""
    return list(vars(gave_way(caplog)[0])["blocked_by"])


def test_lock_wait_log_names_the_blockers_and_no_one_else(busy: World, caplog: pytest.LogCaptureFixture) -> None:
    """The log tells pid, user, application_name, state and age of each session that blocks it: not of an older
    one that is not, nor of one that itself only waits."""
    busy.write("002_b.sql", "ALTER TABLE a ADD s text;")
    reporting = "SET application_name = 'the reports'"
    batch = "SET application_name = 'batch'"
    with ExitStack() as others, ThreadPoolExecutor(1) as pool:
        others.enter_context(open_transaction(busy, "SELECT * FROM b"))
        one = others.enter_context(open_transaction(busy, reporting, "SELECT * FROM a"))
        other = others.enter_context(open_transaction(busy, batch))
        pids = {"the reports": one.info.backend_pid, "batch": other.info.backend_pid}
        sleeping = pool.submit(rows, other, "SELECT pg_sleep(1.5), i FROM a")
        with running(busy) as run:
            wait_until(lambda: gave_way(caplog) != [])
            sleeping.result(20)
            rows(other, "COMMIT")
            rows(one, "COMMIT")
            assert names(run.result(20)) == ["002_b"]

    said = blocked_by(caplog)
    assert len(said) == 2, said
    for name, state in (("the reports", "idle in transaction"), ("batch", "active")):
        assert [text for text in said if re.fullmatch(rf"pid {pids[name]} rds_admin '{name}' {state} \d+ s", text)], (
            said
        )
    assert "blocked_by=" in gave_way(caplog)[0].getMessage()


def test_lock_wait_log_names_a_blocker_of_another_login_as_far_as_it_may(
    busy: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a session of a login that the admin may not look into, the log tells pid, user and application_name."""
    busy.write("002_b.sql", "ALTER TABLE a ADD s text;")
    superuser = {"username": busy.server.user, "password": busy.server.password}
    backup = "SET application_name = 'backup'"

    with open_transaction(busy, backup, "SELECT * FROM a", **superuser) as blocker, running(busy) as run:
        pid = blocker.info.backend_pid
        wait_until(lambda: gave_way(caplog) != [])
        rows(blocker, "COMMIT")
        run.result(20)

    (said,) = blocked_by(caplog)
    assert said.startswith(f"pid {pid} {busy.server.user} 'backup'")
    assert "None" not in said


# --- A file's own time-out ------------------------------------------------------------------------------------------


def test_lock_wait_with_the_files_own_shorter_timeout_is_shorter(busy: World, caplog: pytest.LogCaptureFixture) -> None:
    """A file that sets lock_timeout rolls back after that time, in each of its attempts."""
    busy.environ["LOCK_TIMEOUT"] = "60s"
    busy.write("002_b.sql", "SET lock_timeout = '100ms';\nALTER TABLE a ADD s text;")

    with exactly(busy.environ), open_transaction(busy, "SELECT * FROM a") as blocker, running(busy) as run:
        wait_until(lambda: len(gave_way(caplog)) >= 2, 10)
        rows(blocker, "COMMIT")
        assert names(run.result(20)) == ["002_b"]


@pytest.mark.parametrize("timeout", ["0", "'30s'"])
def test_lock_wait_with_the_files_own_longer_timeout_is_longer(
    busy: World, caplog: pytest.LogCaptureFixture, timeout: str
) -> None:
    """A file that wants to wait longer waits; the next one rolls back again as LOCK_TIMEOUT says."""
    busy.write("002_b.sql", f"SET lock_timeout = {timeout};\nALTER TABLE a ADD s text;")
    busy.write("003_c.sql", "ALTER TABLE b ADD s text;")

    one, other = (open_transaction(busy, f"SELECT * FROM {table}") for table in "ab")
    with one as before_a, other as before_b, running(busy) as run:
        time.sleep(1)
        assert gave_way(caplog) == []
        rows(before_a, "COMMIT")
        wait_until(lambda: gave_way(caplog) != [])
        rows(before_b, "COMMIT")
        assert names(run.result(20)) == ["002_b", "003_c"]

    assert {vars(record)["migration"] for record in gave_way(caplog)} == {"003_c"}


# --- Deadlocks and serialization failures ---------------------------------------------------------------------------


def test_lock_wait_that_ends_in_a_deadlock_is_tried_again(busy: World, caplog: pytest.LogCaptureFixture) -> None:
    """When PostgreSQL ends a deadlock by ending the migration's statement, the whole file is tried again."""
    busy.environ["LOCK_TIMEOUT"] = "20s"
    busy.write("002_b.sql", "INSERT INTO done VALUES (1);\nLOCK TABLE b;\nSELECT pg_sleep(0.3);\nLOCK TABLE a;")
    late = "SET LOCAL deadlock_timeout = '30s'"  # so that it is not this session which PostgreSQL ends
    superuser = {"username": busy.server.user, "password": busy.server.password}
    holds_b = "SELECT 1 FROM pg_locks WHERE relation = 'b'::regclass AND mode = 'AccessExclusiveLock' AND granted"

    a_is_locked = open_transaction(busy, late, "LOCK TABLE a", **superuser)
    with exactly(busy.environ), a_is_locked as other, running(busy) as run:
        wait_until(lambda: busy.sql(holds_b) != [])
        rows(other, "LOCK TABLE b")
        rows(other, "COMMIT")
        assert names(run.result(20)) == ["002_b"]

    assert [vars(record)["sqlstate"] for record in gave_way(caplog)] == ["40P01"]
    assert busy.sql("SELECT count(*) FROM done") == [(1,)]


@pytest.mark.parametrize("mark", ["", "-- no-transaction\n"], ids=["whole", "marked"])
def test_lock_wait_that_ends_in_a_serialization_failure_is_tried_again(
    busy: World, caplog: pytest.LogCaptureFixture, mark: str
) -> None:
    """A row that somebody else changed meanwhile makes a transaction fail that insists on one view of the data: the
    whole of it is tried again."""
    unit = "UPDATE a SET i = i + 1;\nINSERT INTO done VALUES (1);"
    busy.write("002_b.sql", f"{mark}BEGIN ISOLATION LEVEL REPEATABLE READ;\n{unit}\nCOMMIT;")
    waits = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'db_setup' AND wait_event_type = 'Lock'"
    busy.environ["LOCK_TIMEOUT"] = "20s"

    with exactly(busy.environ), open_transaction(busy, "UPDATE a SET i = 40") as other, running(busy) as run:
        wait_until(lambda: busy.sql(waits) != [])
        rows(other, "COMMIT")
        assert names(run.result(20)) == ["002_b"]

    assert [vars(record)["sqlstate"] for record in gave_way(caplog)] == ["40001"]
    assert busy.sql("SELECT a.i, count(*) FROM a, done GROUP BY 1") == [(41, 1)]


# --- The handler's own statements -----------------------------------------------------------------------------------


def test_lock_wait_for_the_tracking_table_during_a_backup_is_not_needed(busy: World) -> None:
    """A backup that reads every table does not block a file that alters none of them."""
    busy.write("002_b.sql", "CREATE TABLE c (i int);\nINSERT INTO done VALUES (1);")
    everything = "LOCK TABLE a, b, done, schema_migrations IN ACCESS SHARE MODE"

    with open_transaction(busy, everything):
        started = time.monotonic()
        assert names(initializer.handler(None, None)) == ["002_b"]
        assert time.monotonic() - started < 10


def test_lock_wait_for_the_predecessors_table_is_tried_again(busy: World) -> None:
    """Columns that the predecessor's table lacks are added when a backup that reads the table is done with it."""
    busy.sql("ALTER TABLE schema_migrations DROP COLUMN checksum, DROP COLUMN file_sha256, DROP COLUMN adopted")
    busy.write("002_b.sql", "INSERT INTO done VALUES (1);")
    stood = threading.Event()

    with open_transaction(busy, "SELECT * FROM schema_migrations") as blocker:
        timer = threading.Timer(1.5, lambda: (rows(blocker, "COMMIT"), stood.set()))
        timer.start()
        try:
            report = initializer.handler(None, Context(60))
            assert stood.is_set()
        finally:
            timer.join()

    assert names(report) == ["002_b"]


# --- Who blocks it --------------------------------------------------------------------------------------------------

BLOCKED_FILE = "out of time: 002_b.sql: canceling statement due to user request (57014). Rolled back. "
STOPPED = "The deadline stopped it while others blocked it "
SESSION = "(pid N rds_admin '' idle in transaction N s). Invoke again when they are done, or end them: "
PREPARED = "(a prepared transaction, one of 'nightly''s'). Invoke again when they are done, or end them: "


@contextmanager
def prepared(world: World, statement: str) -> Iterator[None]:
    """A prepared transaction that has run this statement: it has no session that could end."""
    name = "'nightly''s'"
    with world.connection() as conn:
        rows(conn, f"BEGIN; {statement}; PREPARE TRANSACTION {name}")
        try:
            yield
        finally:
            rows(conn, f"ROLLBACK PREPARED {name}")


def message_at_the_deadline(kind: type[InitializerError]) -> str:
    """The message of a run that ends at its deadline, its process ids and seconds as N."""
    with pytest.raises(kind) as caught:
        initializer.handler(None, Context(12))
    return re.sub(r"(?<=pid )\d+|\d+(?= s\b)", "N", str(caught.value)).splitlines()[0]


@pytest.mark.parametrize("blocker", ["session", "prepared transaction"])
def test_lock_wait_that_the_deadline_ends_within_an_attempt_names_who_blocks(busy: World, blocker: str) -> None:
    """Whether the lock timeout or the deadline is first, the operator reads the same: who is to be ended."""
    busy.environ["LOCK_TIMEOUT"] = "30s"
    busy.write("002_b.sql", "INSERT INTO a VALUES (2);")
    lock = "LOCK a IN ACCESS EXCLUSIVE MODE"
    stands = prepared(busy, lock) if blocker != "session" else open_transaction(busy, lock)
    with exactly(busy.environ), stands:
        message = message_at_the_deadline(initializer.MigrationError)

    by_whom = f"{PREPARED}ROLLBACK PREPARED 'NAME'"
    if blocker == "session":
        by_whom = f"{SESSION}SELECT pg_terminate_backend(PID)"
    assert message == f"{BLOCKED_FILE}{STOPPED}{by_whom}. Applied in this run: nothing."


@pytest.mark.parametrize("timeout", ["2s", "30s"])
def test_lock_wait_for_the_tracking_table_itself_names_who_blocks(busy: World, timeout: str) -> None:
    """The blocker is named before the first file too, whether the lock timeout or the deadline ends the wait."""
    busy.environ["LOCK_TIMEOUT"] = timeout
    with exactly(busy.environ), open_transaction(busy, "LOCK schema_migrations IN ACCESS EXCLUSIVE MODE"):
        message = message_at_the_deadline(InitializerError)

    by_whom = f"Other sessions blocked it {SESSION}SELECT pg_terminate_backend(PID)."
    said = "out of time. Applied in this run: nothing. The rest is not done yet."
    if "55P03" in message:
        said = "PostgreSQL: canceling statement due to lock timeout (55P03). Whatever was not finished is rolled back."
    assert message == f"{said} {by_whom}"


def test_lock_of_ours_that_a_prepared_transaction_holds_is_told_with_its_name(busy: World) -> None:
    """No run ends it, and no waiting: without its name every run would fail without a reason."""
    busy.write("002_b.sql", "INSERT INTO a VALUES (2);")
    with prepared(busy, f"SELECT pg_advisory_xact_lock({LOCK_KEY})"):
        message = message_at_the_deadline(LockError)

    assert message == (
        "the prepared transaction 'nightly''s' holds the lock. Waited N s. This run has changed nothing. It does not "
        "end by itself: ROLLBACK PREPARED 'nightly''s', and invoke again."
    )
    assert names(initializer.handler(None, None)) == ["002_b"]

"""Two runs at the same time are safe: one works, the others wait, and nobody waits forever."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable
from unittest import mock

import initializer
import psycopg2
import pytest
import session
from common import LockError
from harness.database import SCHEMA
from harness.world import LOCK_KEY, REGION, Context, World, rows
from initializer import MigrationError
from moto.server import ThreadedMotoServer
from session import DEADLINE_CLASS

WAIT_S = 20
PROGRAM = """
import json, pathlib, sys
import initializer
initializer.MIGRATIONS_DIR = pathlib.Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(initializer.handler(None, None)))
"""


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as it is so; fail if that takes too long."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@contextmanager
def in_this_process(world: World) -> Iterator[None]:
    """The world's variables and folder, for handlers that are called from several threads."""
    with mock.patch.dict(os.environ, world.environ), mock.patch.object(initializer, "MIGRATIONS_DIR", world.folder):
        yield


@contextmanager
def holder(world: World, deadline_in_s: float | None = None, **login: str) -> Iterator[Any]:
    """Another session that holds the lock, and has published its deadline, if it has one."""
    with world.connection(**login) as conn:
        rows(conn, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        if deadline_in_s is not None:
            publish = "SELECT pg_advisory_lock_shared(%s, (extract(epoch FROM clock_timestamp()) + %s)::int)"
            rows(conn, publish, DEADLINE_CLASS, deadline_in_s)
        yield conn


def write_countable(world: World) -> None:
    """Three files that would each show if they had run twice."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.write("002_b.sql", "INSERT INTO a VALUES (2); SELECT pg_sleep(0.1);")
    world.write("add_c.sql", "INSERT INTO a VALUES (3); SELECT pg_sleep(0.1);")


def assert_ran_once(world: World, reports: list[dict[str, Any]]) -> None:
    applied = [entry["name"] for report in reports for entry in report["applied"]]
    assert applied == ["001_a", "002_b", "003_add_c"]
    assert world.applied() == ["001_a", "002_b", "003_add_c"]
    assert world.sql("SELECT i FROM a ORDER BY i") == [(2,), (3,)]
    users = [report["users"] for report in reports]
    kept, created = {"app_rw": "kept", "app_tc": "kept"}, {"app_rw": "created", "app_tc": "created"}
    assert sorted(users, key=str) == [created, *[kept] * (len(users) - 1)]
    assert (world.versions("user"), world.versions("creator")) == (1, 1)
    for name in ("user", "creator"):
        with world.login(name) as conn:
            assert rows(conn, "SELECT count(*) FROM a") == [(2,)]


def locks(world: World) -> list[tuple[Any, ...]]:
    """The advisory locks in this database."""
    return world.sql(
        "SELECT classid::bigint, objid::bigint FROM pg_locks JOIN pg_database d ON d.oid = database "
        "WHERE locktype = 'advisory' AND datname = current_database()"
    )


# --- Several at the same time ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lock_processes_started_together_on_an_empty_database_all_succeed(world: World) -> None:
    """Four processes, one new database: all succeed, every file runs once, the users are made once."""
    write_countable(world)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("DB_", "PG"))},
        **world.environ,
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": REGION,
        "PYTHONPATH": str(Path(initializer.__file__).parent),
    }
    command = [sys.executable, "-c", PROGRAM, str(world.folder)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environ, **pipes) for _ in range(4)]
    try:
        assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * 4
        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(lambda process: process.communicate("\n", timeout=60), processes))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        server.stop()

    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert_ran_once(world, [json.loads(out) for out, _ in outputs])


def test_lock_handlers_in_threads_started_together_all_succeed(world: World) -> None:
    """Nothing global connects two invocations in one process either."""
    write_countable(world)
    barrier = threading.Barrier(4)

    def invoke(_: int) -> dict[str, Any]:
        barrier.wait(WAIT_S)
        return initializer.handler(None, Context(60))

    with in_this_process(world), ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(invoke, range(4)))

    assert_ran_once(world, reports)


def test_lock_held_by_another_run_is_waited_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A run waits until the other one is done, says so, and then works with what that one has left."""
    write_countable(world)
    with in_this_process(world), ThreadPoolExecutor(1) as pool, holder(world) as conn:
        running = pool.submit(initializer.handler, None, None)
        wait_until(lambda: "waiting for another run" in caplog.text)
        assert not running.done()

        world.sql("CREATE TABLE of_the_other_run (i int)")
        conn.close()

        assert len(running.result(WAIT_S)["applied"]) == 3
    assert re.search(r'waiting for another run holder="another run \(pid \d+, user rds_admin', caplog.text)


def test_lock_waiter_does_not_block_a_concurrent_build(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A waiting run has no transaction open: the holder's CREATE INDEX CONCURRENTLY does not have to wait for it."""
    write_countable(world)
    with in_this_process(world), ThreadPoolExecutor(1) as pool, holder(world) as conn:
        rows(conn, "CREATE TABLE big (i int)")
        running = pool.submit(initializer.handler, None, None)
        wait_until(lambda: "waiting for another run" in caplog.text)

        rows(conn, "SET statement_timeout = '5s'")
        rows(conn, "CREATE INDEX CONCURRENTLY ON big (i)")
        conn.close()

        assert running.result(WAIT_S)["status"] == "ok"


def test_lock_with_nothing_to_do_is_not_taken(world: World) -> None:
    """A run that finds everything done neither takes the lock nor waits for it."""
    write_countable(world)
    world.deploy()

    with holder(world):
        report = world.deploy(context=Context(3))

    assert report["applied"] == []


def test_lock_of_another_database_is_of_no_interest(world: World) -> None:
    """Two applications on one server do not wait for each other."""
    write_countable(world)

    with database_lock_elsewhere(world):
        report = world.deploy(context=Context(3))

    assert len(report["applied"]) == 3


@contextmanager
def database_lock_elsewhere(world: World) -> Iterator[None]:
    with psycopg2.connect(
        host=world.server.host,
        port=world.server.port,
        user=world.server.user,
        password=world.server.password,
        dbname="postgres",
    ) as conn:
        rows(conn, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        yield
    conn.close()


# --- Giving up ------------------------------------------------------------------------------------------------------


def gives_up(world: World, context: Any = None) -> str:
    with pytest.raises(LockError) as caught:
        world.deploy(context=context)
    assert world.tables() == []
    return str(caught.value)


def test_lock_waiter_gives_up_before_its_deadline_and_names_the_holder(world: World) -> None:
    """A run stops waiting in time to say who holds the lock, since when, and what to do."""
    write_countable(world)
    started = time.monotonic()

    with holder(world) as conn:
        pid = conn.info.backend_pid
        message = gives_up(world, Context(4.5))

    assert re.fullmatch(
        rf"another run \(pid {pid}, user rds_admin, '', connected for \d s\) holds the lock\. "
        r"Waited [01] s\. This run has changed nothing\. Invoke again when that one is done, or end it: "
        rf"SELECT pg_terminate_backend\({pid}\)\.",
        message,
    )
    assert time.monotonic() - started < 4.5


def test_lock_waiter_without_a_deadline_gives_up_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a context patience ends as well: no Lambda holds the lock for longer than 15 minutes."""
    assert session.LOCK_PATIENCE_S >= 15 * 60
    monkeypatch.setattr(session, "LOCK_PATIENCE_S", 0.2)
    write_countable(world)

    with holder(world) as conn:
        pid = conn.info.backend_pid
        message = gives_up(world)

    assert f"(pid {pid}, " in message


def test_lock_waiter_names_a_holder_of_another_login(world: World) -> None:
    """What only the holder's own login may see is left out of the message."""
    write_countable(world)

    with holder(world, username=world.server.user, password=world.server.password) as conn:
        pid = conn.info.backend_pid
        message = gives_up(world, Context(3))

    assert message.startswith(f"another run (pid {pid}, user {world.server.user}, ''")
    assert message.endswith(
        f" Invoke again when that one is done, or end it: SELECT pg_terminate_backend({pid}), as {world.server.user} "
        "or a member of pg_signal_backend."
    )
    assert "None" not in message


# --- The holder's deadline ------------------------------------------------------------------------------------------

DEADLINES = (
    "CREATE TABLE seen AS SELECT objid::bigint - extract(epoch FROM clock_timestamp())::bigint AS left_s "
    f"FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND classid = {DEADLINE_CLASS} "
    "AND pid = pg_backend_pid();"
)


def test_lock_holder_publishes_its_deadline(world: World) -> None:
    """While a run works, pg_locks tells until when its Lambda can live at the longest."""
    world.write("001_a.sql", DEADLINES)

    world.deploy(context=Context(300))

    ((left_s,),) = world.sql("SELECT left_s FROM seen")
    assert 290 <= left_s <= 301


def test_lock_holder_publishes_a_deadline_after_2038(world: World) -> None:
    """From then on seconds since 1970 take 32 bits, of which PostgreSQL's integers have one for the sign."""
    world.write("001_a.sql", DEADLINES)
    twenty_years_s = 20 * 365 * 86400

    world.deploy(context=Context(twenty_years_s))

    ((left_s,),) = world.sql("SELECT left_s FROM seen")
    assert twenty_years_s - 10 <= left_s <= twenty_years_s + 1


def test_lock_holder_without_a_deadline_publishes_none(world: World) -> None:
    """Without a context a run may last for as long as it likes."""
    world.write("001_a.sql", DEADLINES)

    world.deploy()

    assert world.sql("SELECT left_s FROM seen") == []


def test_lock_holder_that_had_to_wait_has_published_its_deadline_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """However many attempts it took to get the lock: until when it can be held is known, and does not move."""
    world.write("001_a.sql", DEADLINES)
    with in_this_process(world), ThreadPoolExecutor(1) as pool:
        with holder(world):
            waiting = pool.submit(initializer.handler, None, Context(30))
            wait_until(lambda: "waiting for another run" in caplog.text)
            time.sleep(2)  # several attempts
            assert not waiting.done()
        waiting.result(WAIT_S)

    ((left_s,),) = world.sql("SELECT left_s FROM seen")
    assert 10 <= left_s < 29


def is_alive(conn: Any) -> bool:
    try:
        return rows(conn, "SELECT true") == [(True,)]
    except psycopg2.Error:
        return False


def test_lock_holder_past_its_deadline_is_ended(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A Lambda cannot outlive its deadline: a session that does is a ghost, and is ended."""
    write_countable(world)

    with holder(world, deadline_in_s=-5) as conn:
        pid = conn.info.backend_pid
        report = world.deploy(context=Context(30))

        assert not is_alive(conn)
    assert len(report["applied"]) == 3
    assert f"ending a run that is past its deadline pid={pid} " in caplog.text


def test_lock_holder_before_its_deadline_is_left_alone(world: World) -> None:
    """A run that may still be at work is waited for, in vain if need be."""
    write_countable(world)

    with holder(world, deadline_in_s=60) as conn:
        pid = conn.info.backend_pid
        message = gives_up(world, Context(3))

        assert is_alive(conn)
    assert f"(pid {pid}, " in message


def test_lock_holder_of_another_login_past_its_deadline_is_left_alone(world: World) -> None:
    """Only a session of the same admin is ours to end."""
    write_countable(world)

    with holder(world, deadline_in_s=-5, username=world.server.user, password=world.server.password) as conn:
        gives_up(world, Context(3))

        assert is_alive(conn)


def test_lock_holder_with_a_concurrent_build_past_its_deadline_is_left_alone(world: World) -> None:
    """An index that is still being built on the server is not broken off: the work would be lost."""
    write_countable(world)
    world.sql("CREATE SCHEMA s; CREATE TABLE s.big AS SELECT 1 AS id")
    world.sql(
        "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_catalog.pg_sleep(30); RETURN $1; END'"
    )
    with holder(world, deadline_in_s=-5) as conn, ThreadPoolExecutor(1) as pool:
        building = pool.submit(rows, conn, "CREATE INDEX CONCURRENTLY i ON s.big (slow(id))")
        active = "SELECT pid FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
        wait_until(lambda: world.sql(active, conn.info.backend_pid) != [])

        message = gives_up(world, Context(3))

        assert "still at CREATE INDEX CONCURRENTLY: building index" in message
        assert not building.done()
        world.sql("SELECT pg_cancel_backend(%s)", conn.info.backend_pid)
        with pytest.raises(psycopg2.errors.QueryCanceled):
            building.result(WAIT_S)


# --- What remains ---------------------------------------------------------------------------------------------------


def test_lock_is_gone_after_a_run(world: World) -> None:
    """After a run that succeeded nothing stays locked."""
    world.write("001_a.sql", "CREATE TABLE seen AS SELECT count(*) FROM pg_locks WHERE locktype = 'advisory';")

    world.deploy(context=Context(60))

    assert world.sql("SELECT * FROM seen") == [(2,)]
    wait_until(lambda: locks(world) == [])


def test_lock_is_gone_after_a_failed_run(world: World) -> None:
    """After a failed run nothing stays locked: the next run does not have to wait."""
    world.write("001_a.sql", "SELECT oops;")

    with pytest.raises(MigrationError):
        world.deploy(context=Context(60))

    wait_until(lambda: locks(world) == [])
    write_countable(world)
    assert len(world.deploy(context=Context(60))["applied"]) == 3


# --- A file that releases the lock ----------------------------------------------------------------------------------

HELD = "INSERT INTO a SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();"
RELEASES = {
    "pg_advisory_unlock_all": "SELECT pg_advisory_unlock_all();",
    "pg_advisory_unlock": f"SELECT pg_advisory_unlock({LOCK_KEY});",
    "DISCARD ALL": "DISCARD ALL;",
    "in a marked file": "-- no-transaction\nSELECT pg_advisory_unlock_all();\nSELECT 1;\n",
}


def test_lock_released_by_a_file_is_taken_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A file cannot leave the next one without the lock."""
    world.write("000_a.sql", f"CREATE TABLE a (i int); {HELD}")
    for number, text in enumerate(RELEASES.values()):
        world.write(f"{2 * number + 1:03d}_release.sql", text)
        world.write(f"{2 * number + 2:03d}_look.sql", HELD)

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == [path.stem for path in sorted(world.folder.iterdir())]
    assert world.applied() == [path.stem for path in sorted(world.folder.iterdir())]
    assert world.sql("SELECT i FROM a") == [(1,)] * (len(RELEASES) + 1)
    assert caplog.text.count("a migration released the lock, which is taken again") == len(RELEASES)


def test_lock_released_by_a_file_and_taken_by_another_run_has_the_state_read_again(world: World) -> None:
    """What another run has applied meanwhile is not applied once more."""
    until_somebody_waits = (
        "DO $$ BEGIN FOR i IN 1..1000 LOOP PERFORM pg_sleep(0.01);"
        "EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted); END LOOP; END $$;"
    )
    world.write("001_a.sql", f"CREATE TABLE a (i int); {until_somebody_waits} SELECT pg_advisory_unlock_all();")
    world.write("002_b.sql", "INSERT INTO a VALUES (2);")
    world.write("003_c.sql", "INSERT INTO a VALUES (3);")

    def other_run() -> None:
        """Takes the lock as soon as it is free, and then does what 002_b does."""
        with world.connection() as conn:
            wait_until(lambda: rows(conn, f"SELECT to_regclass('{SCHEMA}.schema_migrations')") != [(None,)])
            rows(conn, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
            wait_until(lambda: rows(conn, "SELECT 1 FROM schema_migrations WHERE migration_name = '001_a'") != [])
            rows(conn, "INSERT INTO a VALUES (20); INSERT INTO schema_migrations (migration_name) VALUES ('002_b')")

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(other_run)
        report = world.deploy()
        other.result(WAIT_S)

    assert [entry["name"] for entry in report["applied"]] == ["001_a", "003_c"]
    assert world.sql("SELECT i FROM a ORDER BY i") == [(3,), (20,)]

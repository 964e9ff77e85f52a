"""A long statement is watched from a second connection: what it waits for, how far it is, and never any harm."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import database
import psycopg2
import pytest
import watcher
from common import Deadline
from database import Endpoint, Login
from harness.database import SCHEMA
from harness.others import open_transaction, wait_until
from harness.world import ADMIN, ADMIN_PASSWORD, World, rows

SLOW_INDEX = (
    "CREATE TABLE big AS SELECT generate_series(1, 20000) AS id;\n"
    "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
    "'BEGIN IF $1 % 1000 = 0 THEN PERFORM pg_catalog.pg_sleep(0.1); END IF; RETURN $1; END';"
)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line at 0.5 s and not at 5 s."""
    monkeypatch.setattr(watcher, "FIRST_LINE_S", 0.5)
    monkeypatch.setattr(watcher, "NEXT_LINE_S", 0.5)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How the watcher has connected, each time that it did so."""
    made: list[dict[str, Any]] = []
    connect = watcher.psycopg2.connect

    def counted(**options: Any) -> Any:
        if options.get("async_"):
            made.append(options)
        return connect(**options)

    monkeypatch.setattr(watcher.psycopg2, "connect", counted)
    return made


@pytest.fixture(autouse=True)
def _nothing_is_left(world: World) -> Iterator[None]:
    """No thread and no connection outlives a run."""
    yield
    assert [thread.name for thread in threading.enumerate() if "db_setup" in thread.name] == []
    until = time.monotonic() + 5
    while world.sql("SELECT 1 FROM pg_stat_activity WHERE application_name = 'db_setup'"):
        assert time.monotonic() < until, "a connection is left"
        time.sleep(0.02)


def test_watcher_of_a_short_run_opens_no_connection(world: World, connections: list[dict[str, Any]]) -> None:
    """What takes no time is not watched."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")

    world.deploy()

    assert connections == []


@pytest.mark.usefixtures("_soon")
def test_watcher_of_a_blocked_statement_names_who_blocks_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The line says which file, for how long, what it waits for, and the session in its way."""
    world.sql("CREATE TABLE things (id int)")
    world.write("001_alter.sql", "ALTER TABLE things ADD name text;")
    with world.connection() as other:
        rows(other, "SET application_name = 'psql by hand'; BEGIN; SELECT FROM things")
        pid = other.info.backend_pid
        release = threading.Timer(2, rows, [other, "COMMIT"])
        release.start()
        world.deploy(CREATE_USERS="false")
        release.join()

    line = next(line for line in caplog.messages if line.startswith("still running "))
    assert re.fullmatch(
        r"still running migration=001_alter elapsed_s=\d waits_for=\"Lock relation\" "
        rf"blocked_by=\"pid {pid} rds_admin 'psql by hand' idle in transaction \d s\"",
        line,
    )


@pytest.mark.slow
def test_watcher_knows_who_blocked_until_it_sees_the_server_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look after the end of the wait changes nothing; one at a statement that nobody blocks does."""
    monkeypatch.setenv("PGSSLMODE", world.environ.get("PGSSLMODE", "require"))
    endpoint = Endpoint(world.server.host, world.server.port, world.dbname)
    login = Login(endpoint, ADMIN, ADMIN_PASSWORD)
    activity = watcher.Activity()
    world.sql("CREATE TABLE things (id int)")
    with closing(database.connect(login, Deadline())) as conn, ThreadPoolExecutor(1) as pool:
        watching = watcher.Watcher(conn, login, Deadline(), activity, 1)
        watching.start()
        look = partial(watching._look, 1, tell=False)
        with open_transaction(world, "LOCK TABLE things") as other:
            waiting = pool.submit(rows, conn, f"SET lock_timeout = '2s'; SELECT FROM {SCHEMA}.things")
            wait_until(lambda: look() or activity.blocked_by)
            with pytest.raises(psycopg2.errors.LockNotAvailable):
                waiting.result(20)
            look()
            pid, in_the_way = other.info.backend_pid, " ".join(activity.blocked_by)
            working = pool.submit(rows, conn, "SELECT pg_sleep(2)")
            wait_until(lambda: look() or not activity.blocked_by)
            working.result(20)
        watching.stop()

    assert in_the_way.startswith(f"pid {pid} rds_admin")


def test_watcher_asks_the_very_same_server_without_dns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name can lead elsewhere after a failover, and DNS can fall silent: the watcher goes to the address that the
    watched connection has."""
    monkeypatch.setenv("PGSSLMODE", world.environ.get("PGSSLMODE", "require"))
    address = Endpoint(world.server.host, world.server.port, world.dbname)
    login = Login(address, ADMIN, ADMIN_PASSWORD)
    renamed = replace(login, endpoint=replace(address, host="db.invalid"))  # a name that no DNS knows
    with closing(database.connect(login, Deadline())) as conn:
        watching = watcher.Watcher(conn, renamed, Deadline(), watcher.Activity(), 1)

        watching.start()

        answer = watching._ask("SELECT pid FROM pg_stat_activity WHERE pid = %(pid)s", watcher.ANSWER_S)
        watching.stop()

        assert answer == [(conn.info.backend_pid,)]


@pytest.mark.usefixtures("_soon")
def test_watcher_of_an_index_build_tells_phase_percent_and_an_estimate(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Where PostgreSQL knows how far it is, the log does, too."""
    world.write("001_big.sql", SLOW_INDEX)
    world.write("002_index.sql", "CREATE INDEX CONCURRENTLY i ON big (slow(id));")

    world.deploy(CREATE_USERS="false")

    lines = [line for line in caplog.messages if line.startswith("still running migration=002_index line=1 ")]
    told = r'phase="CREATE INDEX CONCURRENTLY: [^"]+" percent=\d+ phase_left_s=\d+'
    assert any(re.search(told, line) for line in lines)


@pytest.mark.usefixtures("_soon")
def test_watcher_that_cannot_connect_harms_nothing(
    world: World, connections: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """A run whose second connection is refused goes on without it."""
    world.write("001_slow.sql", "SELECT pg_sleep(1.5);")
    with world.superuser() as superuser:
        rows(superuser, "ALTER ROLE rds_admin CONNECTION LIMIT 1")
        try:
            report = world.deploy(CREATE_USERS="false")
        finally:
            rows(superuser, "ALTER ROLE rds_admin CONNECTION LIMIT -1")

    assert [entry["name"] for entry in report["applied"]] == ["001_slow"]
    assert len(connections) > 0
    assert "still running" not in caplog.text


@pytest.mark.slow
def test_watcher_stops_no_other_socket_where_libpq_has_closed_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a closed socket is given to the next one that is opened, such as one to AWS."""
    monkeypatch.setenv("PGSSLMODE", world.environ.get("PGSSLMODE", "require"))
    login = Login(Endpoint(world.server.host, world.server.port, world.dbname), ADMIN, ADMIN_PASSWORD)
    near, far = socket.socketpair()
    with near, far, closing(database.connect(login, Deadline())) as conn:
        number = conn.fileno()
        watching = watcher.Watcher(conn, login, Deadline(time.monotonic() + 1, 0), watcher.Activity(), 1)
        conn.close()
        with socket.socket(fileno=os.dup2(near.fileno(), number)):
            watching.start()
            assert watching.deadline_passed.wait(20)
            time.sleep(watcher.ANSWER_S + watcher.CANCELLED_S)
            far.sendall(b"still open")
        watching.stop()

        assert near.recv(20) == b"still open"

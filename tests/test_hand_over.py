"""What one session of a run leaves to the next, when others act in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable
from unittest import mock

import database
import initializer
import pytest
import session
from harness.proxy import BEFORE, Link, Place, proxy_to
from harness.world import LOCK_KEY, Context, World, rows
from initializer import LockError, MigrationError

# After it the next file gets a new session.
FUNCTION = (
    "CREATE FUNCTION f{0}() RETURNS int LANGUAGE plpgsql AS "
    "$$ DECLARE v pg_class.relname%TYPE; BEGIN RETURN {0}; END $$;"
)


@contextmanager
def before_the_second_session(world: World, action: Callable[[], Any]) -> Iterator[None]:
    """Called when the first session has let go of the lock, and the second one is being opened."""

    def at(place: Place, _: Link) -> None:
        if place == Place(2, 1, BEFORE):
            action()

    with proxy_to(world.server.host, world.server.port) as proxy:
        world.environ.update(DB_HOST="127.0.0.1", DB_PORT=str(proxy.port), PGSSLMODE="disable")
        proxy.watch(at)
        yield


def without_lock(world: World) -> None:
    """The lock is free: the first session's last message was answered."""
    assert world.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1") == []


def test_rest_that_another_run_has_applied_is_not_applied_again(world: World) -> None:
    """The state is read again where it is not as it was left."""
    world.write("001_a.sql", "CREATE TABLE a (i int);" + FUNCTION.format(1))
    world.write("002_b.sql", "INSERT INTO a VALUES (2);")
    world.write("003_c.sql", "INSERT INTO a VALUES (3);")

    def other_run() -> None:
        without_lock(world)
        world.sql("INSERT INTO a VALUES (20); INSERT INTO schema_migrations (migration_name) VALUES ('002_b')")

    with before_the_second_session(world, other_run):
        report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_a", "003_c"]
    assert world.sql("SELECT i FROM a ORDER BY i") == [(3,), (20,)]


def test_rest_that_another_run_has_begun_goes_on_there(world: World, tmp_path: Path) -> None:
    """Steps that ran in part are found, also where this run's file has no mark."""
    world.write("001_a.sql", "CREATE TABLE a (i int);" + FUNCTION.format(1))
    world.write("002_b.sql", "INSERT INTO a VALUES (1);\nSELECT 2;\n")
    (tmp_path / "001_a.sql").write_text("CREATE TABLE a (i int);" + FUNCTION.format(1))
    (tmp_path / "002_b.sql").write_text("-- no-transaction\nINSERT INTO a VALUES (1);\nSELECT nope;\n")
    real, called = database.connect, []

    def connect(*args: Any, **named: Any) -> Any:
        called.append(args)
        if len(called) == 2:
            with mock.patch.object(initializer, "MIGRATIONS_DIR", tmp_path), pytest.raises(MigrationError):
                initializer.handler(None, None)
        return real(*args, **named)

    with mock.patch.object(database, "connect", connect):
        report = world.deploy(CREATE_USERS="false")

    assert [entry["name"] for entry in report["applied"]] == ["001_a", "002_b"]
    assert world.sql("SELECT count(*) FROM a") == [(1,)]


def test_rest_is_read_as_the_new_session_reads_strings(world: World) -> None:
    """A file may have changed the database's default: the next one is split as psql would split it then."""
    change = f'ALTER DATABASE "{world.dbname}" SET standard_conforming_strings = off;'
    world.write("001_a.sql", f"CREATE TABLE a (s text); {change}")
    world.write("002_b.sql", "-- no-transaction\nINSERT INTO a VALUES ('x\\'); SELECT 1; --');\n")

    world.deploy()

    assert world.sql("SELECT s FROM a") == [("x'); SELECT 1; --",)]


def test_rest_whose_lock_another_run_keeps_tells_what_was_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message does not say that this run has changed nothing, since a file was applied."""
    world.write("001_a.sql", FUNCTION.format(1))
    world.write("002_b.sql", "SELECT 1;")
    monkeypatch.setattr(session, "LOCK_PATIENCE_S", 1)
    with world.connection() as other:
        takes = before_the_second_session(world, lambda: rows(other, "SELECT pg_advisory_lock(%s)", LOCK_KEY))
        with takes, pytest.raises(LockError) as caught:
            world.deploy(CREATE_USERS="false")

    assert "Applied in this run: 001_a. Invoke again" in str(caught.value)


def test_rest_after_a_locked_tracking_table_is_asked_for_again(world: World) -> None:
    """What a new session asks is retried like everything else."""
    for number in (1, 2, 3):
        world.write(f"{number:03d}_f.sql", FUNCTION.format(number))
    with world.connection() as other:

        def lock() -> None:
            rows(other, "BEGIN; LOCK schema_migrations IN ACCESS EXCLUSIVE MODE")
            threading.Timer(1, lambda: rows(other, "COMMIT")).start()

        with before_the_second_session(world, lock):
            world.deploy(context=Context(60), CREATE_USERS="false", LOCK_TIMEOUT="300ms")

    assert world.applied() == ["001_f", "002_f", "003_f"]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_rest_is_applied_whatever_the_default_isolation(world: World, isolation: str) -> None:
    for number in (1, 2, 3):
        world.write(f"{number:03d}_f.sql", FUNCTION.format(number))
    world.sql(f"ALTER DATABASE \"{world.dbname}\" SET default_transaction_isolation = '{isolation}'")
    world.sql(f'ALTER DATABASE "{world.dbname}" SET default_transaction_deferrable = on')

    assert len(world.deploy(context=Context(60))["applied"]) == 3
    assert world.deploy()["applied"] == []

"""Messages that an operator who had nothing else understood wrongly: each names the true reason now."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from harness.database import SCHEMA
from harness.world import ADMIN, Context, World, rows
from initializer import InitializerError

TABLE = "CREATE TABLE t (a int PRIMARY KEY, b text);"


@pytest.fixture(autouse=True)
def _without_users(world: World) -> None:
    """Users do not matter here."""
    world.environ["CREATE_USERS"] = "false"


def message(world: World, context: Any = None) -> str:
    with pytest.raises(InitializerError) as caught:
        world.deploy(None, context)
    return str(caught.value)


def message_for(world: World, text: str) -> str:
    """What the handler says to this file, after one that makes a table."""
    world.write("001_a.sql", TABLE)
    world.deploy()
    world.write("002_b.sql", text)
    return message(world)


def test_limit_of_a_login_is_not_a_server_that_is_full(world: World) -> None:
    """Ending the application's connections would not help."""
    with world.superuser() as conn:
        rows(conn, f"ALTER ROLE {ADMIN} CONNECTION LIMIT 0")
        try:
            said = message(world, Context(6))
        finally:
            rows(conn, f"ALTER ROLE {ADMIN} CONNECTION LIMIT -1")

    place = f'connection to server at "{world.server.host}", port {world.server.port} failed'
    assert said == (
        f"cannot connect to {ADMIN}@{world.server.host}:{world.server.port}/{world.dbname}: its CONNECTION LIMIT is "
        f"reached: end sessions, or raise it with ALTER ROLE or ALTER DATABASE ({place}: FATAL: too many connections "
        f'for role "{ADMIN}"). Nothing has been changed.'
    )


def test_tracking_table_with_a_renamed_column_is_not_another_tools(world: World) -> None:
    """With another table all files would run again."""
    world.deploy()
    world.sql("ALTER TABLE schema_migrations RENAME migration_name TO name")

    assert message(world) == (
        f"table {SCHEMA}.schema_migrations is db_setup's own, but has no column migration_name any more (columns: id, "
        "name, applied_at, checksum, file_sha256, adopted, duration_ms, applied_by, deployment): rename or restore "
        "that column. Nothing has been touched."
    )


def test_conversion_that_is_not_automatic_is_told_where_to_write_it(world: World) -> None:
    """PostgreSQL's hint says so with the name of the column in quotes, which is masked."""
    assert message_for(world, "ALTER TABLE t ALTER b TYPE int;").splitlines()[0] == (
        '002_b.sql:1: column "b" cannot be cast automatically to type integer (42804). Rolled back. Say after the type '
        "how to convert it, such as USING b::integer. Then deploy again. Applied in this run: nothing."
    )


@pytest.mark.parametrize("gap", ["\n", "\r\n\r\n  "])
def test_missing_semicolon_is_looked_for_where_it_is_missing(world: World, gap: str) -> None:
    """PostgreSQL names the line after it."""
    said = message_for(world, f"ALTER TABLE t ADD c int{gap}ALTER TABLE t ADD d int;").splitlines()[0]

    place = "002_b.sql:2:1" if gap == "\n" else "002_b.sql:3:3"
    assert said == (
        f'{place}: syntax error at or near "ALTER"; is a semicolon missing at the end of the line before? (42601). '
        "Rolled back. Fix the file and deploy again. Applied in this run: nothing."
    )


@pytest.mark.parametrize("text", ["SELECT 1;\nALTER t;", "ALTER TABLE t\n  DROP COLUMN b oops;", "/* x */ ALTER t;"])
def test_semicolon_is_not_missed_where_it_is_there(world: World, text: str) -> None:
    """What precedes the error has ended, or is the same statement."""
    assert "semicolon" not in message_for(world, text)


def test_statement_that_somebody_cancelled_was_not_too_slow(world: World) -> None:
    """A longer timeout would not help."""
    stop = threading.Event()

    def cancel() -> None:
        with world.superuser() as conn:
            query = f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = '{ADMIN}' AND query ~ 'sleep'"
            while not stop.is_set() and not rows(conn, query):
                time.sleep(0.1)

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        said = message_for(world, "INSERT INTO t VALUES (1);\nSELECT pg_sleep(30);")
    finally:
        stop.set()
        thread.join()

    assert said == (
        "002_b.sql: canceling statement due to user request (57014). Rolled back. An administrator or another session "
        "cancelled it. Invoke again to go on. Applied in this run: nothing."
    )


@pytest.mark.slow
def test_statement_that_the_deadline_stopped_was_cancelled_by_nobody_else(world: World) -> None:
    """Who looks for an administrator looks in vain."""
    world.write("001_a.sql", "SELECT 1;\nSELECT pg_sleep(60);")

    assert message(world, Context(9)) == (
        "out of time: 001_a.sql: canceling statement due to user request (57014). Rolled back. The deadline stopped "
        "it. Invoke again to go on; if it needs longer than the function's timeout, raise that or split the file. "
        "Applied in this run: nothing."
    )

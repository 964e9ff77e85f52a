"""What a message says of the state is so, whatever ended the run and when."""

from __future__ import annotations

import logging
from unittest import mock

import database
import initializer
import psycopg2
import pytest
import tracking
from harness.world import World
from initializer import ConnectError, InitializerError
from session import Session

NEEDS_NEW_SESSION = "CREATE TABLE a (i int); ALTER DATABASE {} SET work_mem = '5MB';"


OTHER_ROWS = database.sql.SQL("SELECT 'other', true")


def two_sessions(world: World) -> None:
    """Two files, the second in a new session."""
    world.write("001_a.sql", NEEDS_NEW_SESSION.format(world.dbname))
    world.write("002_b.sql", "CREATE TABLE b (i int);")


def test_database_that_is_gone_between_two_files_is_reported_with_what_is_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new session that cannot be opened says what the old one has committed."""
    two_sessions(world)
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)
    connect = database.open_connection
    opened: list[object] = []

    def once(*args: object, **kwargs: object) -> object:
        opened.append(args)
        if len(opened) > 1:
            raise psycopg2.OperationalError("connection refused")
        return connect(*args, **kwargs)  # type: ignore[arg-type]

    with mock.patch.object(database, "open_connection", once), pytest.raises(ConnectError) as caught:
        world.deploy(CREATE_USERS="false")

    assert str(caught.value).endswith("(connection refused). Applied in this run: 001_a.")
    assert world.tables() == ["a"]
    assert [entry["name"] for entry in world.deploy(CREATE_USERS="false")["applied"]] == ["002_b"]


def test_connection_lost_while_a_new_session_is_set_up_is_reported_with_what_is_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of PostgreSQL between two files names what is kept, once waiting has not helped."""
    two_sessions(world)
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)
    resume = Session.resume

    def cut(session: Session, *args: object) -> object:
        with world.superuser() as superuser, superuser.cursor() as cur:
            set_up = session._set_up

            def terminated(*given: object, **named: object) -> object:
                pid = session.connection.info.backend_pid
                cur.execute(
                    "SELECT pg_terminate_backend(%s, 5000)"
                    if world.server.version >= 140000
                    else "SELECT pg_terminate_backend(%s)",
                    [pid],
                )
                return set_up(*given, **named)  # type: ignore[arg-type]

            with mock.patch.object(session, "_set_up", terminated):
                return resume(session, *args)  # type: ignore[arg-type]

    with mock.patch.object(Session, "resume", cut), pytest.raises(ConnectError) as caught:
        world.deploy(CREATE_USERS="false")

    assert "Whatever was not finished is rolled back. Applied in this run: 001_a. Invoke again." in str(caught.value)
    assert world.tables() == ["a"]


def test_lock_of_a_session_that_was_resumed_is_held_once(world: World) -> None:
    """Where the plan has to be made again, the lock that the new session has already is not taken twice."""
    two_sessions(world)
    held: list[int] = []
    plan_pending = initializer.plan_pending

    def counted(run: initializer.Run) -> object:
        held.append(len(run.session.lock_holders()))
        return plan_pending(run)

    with (
        mock.patch.object(initializer, "plan_pending", counted),
        mock.patch.object(tracking, "unchanged_question", return_value=OTHER_ROWS),
    ):
        world.deploy(CREATE_USERS="false")

    assert held == [1, 1]
    assert world.tables() == ["a", "b"]


@pytest.mark.parametrize("error", [TypeError("with 'the password'"), PermissionError(13, "Permission denied", "x.sql")])
def test_error_that_nobody_expected_is_ours_with_its_place(
    world: World, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Whatever is raised ends as an InitializerError that names kind and place; the text may be secret."""
    caplog.set_level(logging.INFO)
    with mock.patch.object(tracking, "read_state", side_effect=error), pytest.raises(InitializerError) as caught:
        world.deploy()

    message = str(caught.value)
    assert message.startswith(f"unexpected {type(error).__name__} at mock.py:")
    assert "Applied in this run: nothing. Whatever was not finished is rolled back." in message
    assert ("Permission denied (x.sql)" in message) is isinstance(error, PermissionError)
    assert "the password" not in message
    assert caplog.messages[-1].startswith("failed error=InitializerError ")


def test_run_that_is_interrupted_is_logged_as_failed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What is not an Exception also ends the log with a failure, not with `done`."""
    with mock.patch.object(tracking, "read_state", side_effect=SystemExit), pytest.raises(SystemExit):
        world.deploy()

    assert caplog.messages[-1].startswith("failed error=SystemExit ")

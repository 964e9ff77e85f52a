"""An event may carry the variables of its run, with the environment's names, checks and messages."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from common import RefusedError
from config import EVENT_VARIABLES
from harness.database import create_database, drop_database
from harness.world import ADMIN, OURS, World
from initializer import ConfigError, InitializerError, MigrationError

STRANGERS = ("DB_HOST", "DB_PORT", "DB_USER", "PGHOST", "PGSSLMODE", "PATH", "db_name")


def event(action: str = "migrate", **variables: Any) -> dict[str, Any]:
    return {"action": action, "variables": variables}


def refusal(world: World, asked: dict[str, Any], **environ: str) -> str:
    with pytest.raises(ConfigError) as refused:
        world.deploy(asked, **environ)
    return str(refused.value)


def test_a_run_by_event_migrates_another_database(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """DB_NAME of the event counts, for this run alone; the log says which variables came with the event."""
    other = f"{world.dbname}_'; DROP \"ü"
    create_database(world.server, other, ADMIN)
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    try:
        report = world.deploy(event(DB_NAME=other, CREATE_USERS="false"))
        assert report["database"].endswith(f"/{other}")
        assert [entry["name"] for entry in report["applied"]] == ["001_a"]
        assert world.tables() == []
    finally:
        drop_database(world.server, other)
    assert "variables=CREATE_USERS,DB_NAME" in caplog.text
    assert world.deploy(CREATE_USERS="false")["database"].endswith(f"/{world.dbname}")


def test_an_event_comes_before_the_environment(world: World) -> None:
    """The environment's value does not count where the event has one."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()
    world.write("001_a.sql", "CREATE TABLE a (i bigint);")
    with pytest.raises(MigrationError, match="edited after it was applied"):
        world.deploy(ALLOW_EDITED_MIGRATIONS="false")

    report = world.deploy(event(ALLOW_EDITED_MIGRATIONS="true"), ALLOW_EDITED_MIGRATIONS="false")

    assert report["warnings"] == ["edited after it was applied, without effect: 001_a.sql"]


@pytest.mark.parametrize("name", STRANGERS)
def test_an_event_cannot_say_where_a_login_is_sent(world: World, name: str) -> None:
    """Who may invoke cannot make the function log in elsewhere, or as somebody else."""
    message = refusal(world, event(**{name: "elsewhere.example.com"}))
    assert message.startswith(f"an event cannot set {name!r}, only DB_SECRET_NAME, DB_NAME, ")
    assert message.endswith("Nothing has been touched.")


@pytest.mark.parametrize("name", ["host=192.0.2.1 dbname=x", "postgresql://192.0.2.1/x", "service=x", ""])
def test_a_name_of_a_database_is_nothing_but_a_name(world: World, name: str) -> None:
    """A connection string in DB_NAME leads nowhere: libpq would take the host out of it."""
    with pytest.raises(InitializerError) as refused:
        world.deploy(event(DB_NAME=name))
    said = str(refused.value)
    assert "DB_NAME is set but empty" in said if not name else f'database "{name}" does not exist' in said


def test_all_mistakes_of_an_event_are_reported_together(world: World) -> None:
    """Those of the event and those of the environment, in the environment's words."""
    given = event(LOCK_TIMEOUT="long", BASELINE=3, DB_NAME="", DB_HOST="x")
    message = refusal(world, given, CREATE_USERS="no")
    for part in (
        "an event cannot set 'DB_HOST'",
        "BASELINE is '3', but must be a text",
        "LOCK_TIMEOUT is 'long', but must be a time such as",
        "DB_NAME is set but empty: give it a value or remove it",
        "CREATE_USERS is 'no', but must be",
    ):
        assert part in message


def test_an_event_cannot_name_the_admins_secret_as_a_target(world: World) -> None:
    """The admin's secret is never written, also where the event says that another secret is the admin's."""
    admin = world.secret("admin")
    world.secrets.create_secret(Name="other", SecretString="{}")
    for name in ("DB_USER_SECRET_NAME", "DB_PROXY", "DB_READER_SECRET_NAME"):
        message = refusal(world, event(DB_SECRET_NAME="other", **{name: "admin"}))
        assert f"{name}: secret 'admin' holds the admin login and is never written" in message
    assert world.secret("admin") == admin


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"action": "status", "variable": {}},
            "an event of action status cannot have 'variable', only action, variables. ",
        ),
        (
            {"action": "migrate", "like": "x"},
            "an event of action migrate cannot have 'like', only action, variables, create. ",
        ),
        ({"action": "migrate", "variables": ["DB_NAME"]}, "variables of the event must be a JSON object"),
        ({"action": "migrate", "create": "yes"}, "create of the event must be a JSON boolean"),
        ({"action": "databases", "like": 1}, "like of the event must be a JSON string"),
        ({"action": "dry_run", "create": True}, "cannot have 'create', only action, variables, markdown. "),
    ],
)
def test_unknown_keys_of_an_event_are_refused_by_name(world: World, given: dict[str, Any], said: str) -> None:
    """A mistyped key is not ignored: the run would not do what was asked for."""
    message = refusal(world, given)
    assert said in message
    assert message.endswith("Nothing has been touched.")


def test_every_variable_is_for_events_or_on_the_list_of_those_that_are_not() -> None:
    """A new variable is decided about."""
    assert set(EVENT_VARIABLES) == set(OURS) - {"DB_HOST", "DB_PORT", "DB_USER"}


def test_what_can_pass_has_a_name_of_its_own(world: World) -> None:
    """Step Functions retries by the name of the error: a database that does not exist is not retried."""
    with pytest.raises(RefusedError):
        world.deploy(event(DB_NAME="not_there"))


def test_the_log_does_not_show_an_events_values(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Their names are enough, since an event can be six megabytes."""
    caplog.set_level(logging.DEBUG)
    world.deploy(event(CREATE_USERS="FALSE"))
    assert "variables=CREATE_USERS" in caplog.text
    assert "FALSE" not in caplog.text

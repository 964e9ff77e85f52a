"""{"action": "rotate"}: new credentials in both secrets, and no moment in which those that are there do not work."""

from __future__ import annotations

from typing import Any
from unittest import mock

import psycopg2
import pytest
import secret_store
from harness.world import World, rows
from initializer import ConfigError, UserError

ROTATE = {"action": "rotate"}


def works(world: World, value: dict[str, Any]) -> bool:
    try:
        with world.connection(value["username"], value["password"]) as conn:
            return rows(conn, "SELECT 1") == [(1,)]
    except psycopg2.OperationalError:
        return False


def secrets(world: World) -> tuple[Any, Any]:
    return world.secret("user"), world.secret("creator")


def test_rotation_gives_both_secrets_the_other_login_and_the_old_ones_work_on(world: World) -> None:
    """An application with the old credentials is not locked out before the next rotation."""
    world.write("001_things.sql", "CREATE TABLE things (id int);")
    world.deploy()
    before = secrets(world)
    world.write("002_more.sql", "CREATE TABLE more (id int);")

    report = world.deploy(ROTATE)

    after = secrets(world)
    assert (report["action"], report["applied"], world.applied()) == ("rotate", [], ["001_things"])
    assert report["users"] == {"app_rw_clone": "rotated", "app_tc_clone": "rotated"}
    assert [value["username"] for value in (*before, *after)] == ["app_rw", "app_tc", "app_rw_clone", "app_tc_clone"]
    assert all(works(world, value) for value in (*before, *after))
    assert [{**new, "username": "", "password": ""} for new in after] == [
        {**old, "username": "", "password": ""} for old in before
    ]


def test_rotation_twice_takes_the_first_credentials_away(world: World) -> None:
    """The second rotation ends what the first one left; a deployment then keeps what is there."""
    world.deploy()
    before = secrets(world)

    world.deploy(ROTATE)
    between = secrets(world)
    report = world.deploy(ROTATE)

    assert report["users"] == {"app_rw": "rotated", "app_tc": "rotated"}
    assert [works(world, value) for value in (*before, *between, *secrets(world))] == [False] * 2 + [True] * 4
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_rotation_never_leaves_a_secret_whose_login_does_not_work(world: World) -> None:
    """Each login is tried before its secret is written: where the new one is refused, the secret keeps the one that
    works; where it is not, both work at that moment."""
    world.deploy()
    seen: list[bool] = []
    write = secret_store.write_secret

    def tried(client: Any, secret: Any, value: dict[str, Any], *given: Any, **named: Any) -> Any:
        seen.extend([works(world, secret.value), works(world, value)])
        return write(client, secret, value, *given, **named)

    with world.superuser() as superuser:  # a clone that gets nothing by its group cannot connect
        rows(superuser, f'REVOKE CONNECT ON DATABASE "{world.dbname}" FROM PUBLIC')
    world.sql("CREATE ROLE app_rw_clone NOINHERIT IN ROLE readwrite")
    before = secrets(world)

    with mock.patch.object(secret_store, "write_secret", tried):
        with pytest.raises(UserError, match=r"^login app_rw_clone was made, but: .* Its secret was not changed\."):
            world.deploy(ROTATE)

        assert (secrets(world), seen) == (before, [])
        assert all(works(world, value) for value in before)
        if world.server.version >= 160000:
            world.sql("GRANT readwrite TO app_rw_clone WITH INHERIT TRUE")
        world.sql("ALTER ROLE app_rw_clone INHERIT")
        world.deploy(ROTATE)

    assert seen == [True] * 4


def test_rotation_that_cannot_write_a_secret_leaves_it_working_and_can_be_repeated(world: World) -> None:
    """A failure between the role and its secret locks nobody out."""
    world.deploy()
    before = secrets(world)
    failing = UserError("secret user could not be written")

    with mock.patch.object(secret_store, "write_secret", side_effect=failing), pytest.raises(UserError):
        world.deploy(ROTATE)

    assert secrets(world) == before
    assert all(works(world, value) for value in before)
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert world.deploy(ROTATE)["users"] == {"app_rw_clone": "rotated", "app_tc_clone": "rotated"}


def test_rotation_hands_the_table_creators_tables_on(world: World) -> None:
    """What a login has created belongs to its group then, and both logins may change it; readwrite's may use it."""
    world.deploy()
    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE first (id int); CREATE SEQUENCE counted")
        world.deploy(ROTATE)
        rows(conn, "ALTER TABLE first ADD still int")  # the session that was open all the time

    with world.login("creator") as conn:
        rows(conn, "ALTER TABLE first ADD name text; CREATE TABLE second (id int)")
    world.deploy(ROTATE)
    with world.login("creator") as conn:
        rows(conn, "ALTER TABLE first ADD more text; ALTER TABLE second ADD name text; ALTER SEQUENCE counted CYCLE")
    with world.login("user") as conn:
        rows(conn, "INSERT INTO first (id) VALUES (1); INSERT INTO second (id) VALUES (1); SELECT nextval('counted')")


def test_rotation_of_a_login_that_does_not_work_repairs_it(world: World) -> None:
    """Where there is nothing to lose, the login itself gets a new password."""
    world.deploy()
    world.sql("ALTER ROLE app_rw NOLOGIN")

    assert world.deploy(ROTATE)["users"] == {"app_rw": "mended", "app_tc_clone": "rotated"}
    assert works(world, world.secret("user"))


@pytest.mark.parametrize("environ", [{"CREATE_USERS": "false"}, {"DB_USER_SECRET_NAME": None, "DB_PROXY": None}])
def test_rotation_of_nothing_is_refused(world: World, environ: dict[str, Any]) -> None:
    """A rotation without any user secret cannot rotate anything, so it is an error."""
    with pytest.raises(ConfigError, match=r"^there is nothing to rotate: .* Nothing has been touched\.$"):
        world.deploy(ROTATE, **environ)


def test_rotation_of_one_secret_leaves_the_other_user_alone(world: World) -> None:
    """Only what is named is rotated."""
    world.deploy()
    before = world.secret("creator")

    assert world.deploy(ROTATE, DB_PROXY=None)["users"] == {"app_rw_clone": "rotated"}
    assert world.secret("creator") == before
    assert works(world, before)

"""What decides whose a login is: no grant that any login can make, and no secret under another name."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import psycopg2
import psycopg2.extensions
import pytest
from database import Endpoint, Login, open_connection
from harness.attackers import PASSWORD, STRANGER
from harness.logins import as_superuser, works
from harness.second import second_application
from harness.world import World, rows
from initializer import ConfigError, UserError

ROTATE = {"action": "rotate"}


# --- Grants that anybody can make -----------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(deployed: World) -> Iterator[World]:
    """A database in which everybody may connect and create."""
    with second_application(deployed) as second:
        as_superuser(second, "GRANT CREATE ON SCHEMA public TO PUBLIC")
        yield second


GIFTS = {
    "large object": "SELECT lo_create(424242); GRANT SELECT ON LARGE OBJECT 424242 TO app_rw, readwrite",
    "table": "CREATE TABLE gift (id int); GRANT SELECT ON gift TO app_rw, tablecreator",
    "temporary table": "CREATE TEMP TABLE gift (id int); GRANT SELECT ON gift TO app_rw",
    "default privileges": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO readwrite, app_tc",
    "function": "CREATE FUNCTION gift() RETURNS int LANGUAGE sql AS 'SELECT 1';"
    "GRANT EXECUTE ON FUNCTION gift TO app_rw",
}


@pytest.mark.parametrize("gift", GIFTS)
@pytest.mark.parametrize("who", [STRANGER, "creator"])
def test_grants_of_any_login_in_another_database_stop_no_rotation(
    deployed: World, elsewhere: World, gift: str, who: str
) -> None:
    """They do not show that the roles belong to that database's application: logins are repaired and rotated."""
    login = elsewhere.connection(STRANGER, PASSWORD) if who == STRANGER else None
    if login is None:
        value = deployed.secret("creator")
        login = elsewhere.connection(value["username"], value["password"])
    with login as conn:
        rows(conn, GIFTS[gift])

        assert set(deployed.deploy(ROTATE)["users"].values()) == {"rotated"}
        deployed.put_secret("user", {"username": "app_rw", "password": "lost"})
        assert deployed.deploy()["users"]["app_rw"] == "mended"


def test_grants_by_another_databases_owner_let_a_password_be_taken_away(deployed: World, elsewhere: World) -> None:
    """A login that our secret holds is ours: what others give it does not keep its password alive."""
    elsewhere.sql("CREATE TABLE gift (id int); GRANT SELECT ON gift TO readwrite, tablecreator")
    leaked = deployed.secret("user")

    for _ in range(2):
        assert set(deployed.deploy(ROTATE)["users"].values()) == {"rotated"}

    assert not works(deployed, leaked)


# --- Secrets --------------------------------------------------------------------------------------------------------


def arn(world: World, secret: str) -> str:
    return str(world.secrets.describe_secret(SecretId=secret)["ARN"])


def without_suffix(whole: str) -> str:
    return re.sub("-[A-Za-z0-9]{6}$", "", whole)


@pytest.mark.parametrize("variable", ["DB_USER_SECRET_NAME", "DB_PROXY"])
@pytest.mark.parametrize("whole", [True, False], ids=["admin by whole ARN", "target by whole ARN"])
def test_secret_of_the_admin_under_another_name_is_never_written(world: World, variable: str, whole: bool) -> None:
    """A name, a whole ARN and one without its end can all mean the same secret: Secrets Manager says which."""
    names = [arn(world, "admin"), without_suffix(arn(world, "admin"))]
    admin, target = names if whole else reversed(names)
    before = world.secret("admin")

    with pytest.raises(ConfigError, match=f"{variable}: .* holds the admin login and is never written"):
        world.deploy(DB_SECRET_NAME=admin, **{variable: target})

    assert (world.versions("admin"), world.secret("admin")) == (1, before)


def test_secret_of_the_other_user_under_another_name_is_not_written(world: World) -> None:
    """The same holds for a secret without a value, whose ARN Secrets Manager only returns when it is written."""
    with pytest.raises((ConfigError, UserError), match="secret"):
        world.deploy(DB_USER_SECRET_NAME=arn(world, "user"), DB_PROXY=without_suffix(arn(world, "user")))

    assert world.secret("user")["username"] == "app_rw"


def test_secret_that_holds_a_working_login_of_others_is_not_overwritten(deployed: World) -> None:
    """Overwriting the secret would lose that login: the message names it."""
    value: dict[str, Any] = {"username": STRANGER, "password": PASSWORD}
    deployed.put_secret("user", value)

    with pytest.raises(UserError, match=f"holds {STRANGER}, which works, and is not a login of readwrite"):
        deployed.deploy()

    assert deployed.secret("user") == value


# --- The way there --------------------------------------------------------------------------------------------------


def test_password_is_not_sent_in_clear() -> None:
    """A server that asks for it in clear, as one that only plays the database would, does not get it."""
    if psycopg2.extensions.libpq_version() < 160000:
        return  # an old libpq does not know how to refuse
    heard: list[bytes] = []

    def ask(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            heard.append(client.recv(1000))  # who it is
            client.sendall(b"R" + struct.pack("!ii", 8, 3))  # AuthenticationCleartextPassword
            heard.append(client.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=ask, args=(listener,))
        thread.start()
        login = Login(Endpoint("127.0.0.1", listener.getsockname()[1], "shop"), "admin", "S3cr3t")
        refused = pytest.raises(psycopg2.OperationalError, match="password")
        with mock.patch.dict(os.environ, PGSSLMODE="disable"), refused:
            open_connection(login)
        thread.join(timeout=10)

    assert b"admin" in heard[0]
    assert b"S3cr3t" not in b"".join(heard)

"""The guide's chapter "A database per tenant", executed: shared logins, and a login for each tenant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from harness.database import connect
from harness.guide import Block, blocks, section
from harness.tenants import databases
from harness.world import World, rows

ORDERS = "CREATE TABLE orders (id serial PRIMARY KEY, item text);"


@pytest.fixture
def tenants(world: World) -> Iterator[list[str]]:
    """Names of databases, which do not exist yet."""
    with databases(world, ["_t0", "_t1"], made=False) as names:
        yield names


def recipe(name: str) -> Block:
    (found,) = [block for block in blocks(section("A database per tenant")) if block.name == name]
    return found


def migrate(world: World, name: str, **variables: str) -> dict[str, Any]:
    return world.deploy({"action": "migrate", "create": True, "variables": {"DB_NAME": name, **variables}})


def ask(world: World, dbname: str, secret: str, statement: str) -> list[tuple[Any, ...]]:
    login = world.secret(secret)
    conn = connect(world.server, dbname, login["username"], login["password"])
    try:
        return rows(conn, statement)
    finally:
        conn.close()


@pytest.mark.public  # which the guide's file names
def test_tenants_share_a_login_that_one_database_has_made(world: World, tenants: list[str]) -> None:
    """It reads and writes each tenant's tables, not our own, and the database that made it can still be deployed."""
    world.write("001_home.sql", "SELECT 1;")
    world.deploy()
    world.remove("001_home.sql")
    world.write("001_rights.sql", recipe("001_rights").text)
    world.write("002_orders.sql", ORDERS)

    for name in tenants:
        migrate(world, name, CREATE_USERS="false")

    for name in tenants:
        assert ask(world, name, "user", "INSERT INTO orders (item) VALUES ('pen') RETURNING id") == [(1,)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            ask(world, name, "user", "DELETE FROM schema_migrations")
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_tenants_with_logins_of_their_own_do_not_reach_each_other(world: World, tenants: list[str]) -> None:
    """Each login in its own secret, with the database's name before it; the other's database does not let it in."""
    world.write("001_closed.sql", recipe("001_closed").text)
    world.write("002_orders.sql", ORDERS)
    secrets = [f"tenants/{name}" for name in tenants]
    for secret in secrets:
        world.secrets.create_secret(Name=secret)
    del world.environ["DB_PROXY"]

    for name, secret in zip(tenants, secrets):
        done = migrate(world, name, ROLE_PREFIX=f"{name}_", DB_USER_SECRET_NAME=secret)
        assert done["users"] == {f"{name}_app_rw": "created"}

    for name, secret in zip(tenants, secrets):
        assert ask(world, name, secret, "INSERT INTO orders (item) VALUES ('pen') RETURNING id") == [(1,)]
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        ask(world, tenants[1], secrets[0], "SELECT 1")
    again = migrate(world, tenants[0], ROLE_PREFIX=f"{tenants[0]}_", DB_USER_SECRET_NAME=secrets[0])
    assert again["users"] == {f"{tenants[0]}_app_rw": "kept"}

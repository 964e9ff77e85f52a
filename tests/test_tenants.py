"""The guide's chapter "A database per tenant", executed: shared logins, a login for each tenant, and schemas."""

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


SCHEMAS = [f"tenant_{number:04}" for number in range(3)]


@pytest.fixture
def schemas(world: World) -> World:
    """A world for tenants that have schemas, with the guide's files."""
    for name in ("001_shared", "002_orders"):
        world.write(f"{name}.sql", recipe(name).text)
    return world


def migrate_schema(world: World, name: str, **variables: str) -> dict[str, Any]:
    return world.deploy({"action": "migrate", "variables": {"DB_SCHEMA": name, **variables}})


@pytest.mark.public  # each names its schemas itself
def test_schemas_of_tenants_share_logins_and_what_the_first_run_makes(schemas: World) -> None:
    """The one pool of the guide's table: each transaction sets its tenant's path."""
    for name in SCHEMAS:
        migrate_schema(schemas, name)
    schemas.sql("INSERT INTO public.countries VALUES ('CH', 'Switzerland')")

    with schemas.login("user") as conn:
        for name in SCHEMAS:
            statement = "INSERT INTO orders (country, item) SELECT code, current_schema FROM countries RETURNING item"
            text = f"BEGIN; SET LOCAL search_path = {name}, public; {statement}; COMMIT"
            rows(conn, text)
        for name in SCHEMAS:
            assert rows(conn, f"SELECT item FROM {name}.orders") == [(name,)]
    listed = schemas.deploy({"action": "databases", "like": "tenant_%", "schemas": True})["databases"]
    assert [(each["name"], each["pending"], each["problem"]) for each in listed] == [(name, 0, "") for name in SCHEMAS]
    assert schemas.sql("SELECT count(*) FROM pg_extension WHERE extname = 'pgcrypto'") == [(1,)]


@pytest.mark.public  # each names its schemas itself
def test_schemas_of_tenants_with_logins_of_their_own_do_not_reach_each_other(schemas: World) -> None:
    """With the variables that the guide shows for databases."""
    schemas.remove("001_shared.sql")
    schemas.write("002_orders.sql", ORDERS)
    del schemas.environ["DB_PROXY"]
    for name in SCHEMAS:
        schemas.secrets.create_secret(Name=f"tenants/{name}")
        migrate_schema(schemas, name, ROLE_PREFIX=f"{name}_", DB_USER_SECRET_NAME=f"tenants/{name}")

    for name in SCHEMAS:
        assert ask(schemas, schemas.dbname, f"tenants/{name}", "INSERT INTO orders DEFAULT VALUES RETURNING id") == [
            (1,)
        ]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        ask(schemas, schemas.dbname, f"tenants/{SCHEMAS[0]}", f"SELECT * FROM {SCHEMAS[1]}.orders")

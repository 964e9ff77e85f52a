"""The first error of a file is the one that is reported, and finding its line repeats nothing that matters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness.database import SCHEMA
from harness.others import open_transaction
from harness.world import ADMIN, ADMIN_PASSWORD, Context, World, rows
from initializer import MigrationError

SETUP = "CREATE TABLE a (i int PRIMARY KEY); INSERT INTO a VALUES (1);"
DUPLICATE = 'duplicate key value violates unique constraint "a_pkey" (23505)'


@pytest.fixture(autouse=True)
def _no_users(world: World) -> None:
    """Users do not matter here, and take time."""
    world.environ["CREATE_USERS"] = "false"


def failure(world: World, text: str, context: Any = None) -> str:
    """Deploy a file that has to fail; returns the message."""
    world.write("001_a.sql", text)
    with pytest.raises(MigrationError) as caught:
        world.deploy(context=context)
    return str(caught.value)


@pytest.mark.slow
def test_slow_file_that_fails_shortly_before_the_deadline_shows_its_error(world: World) -> None:
    """The file is not run a second time to find the line; the names in the error tell the line."""
    world.sql(SETUP)

    message = failure(world, "SELECT pg_sleep(4);\nSELECT 2;\nINSERT INTO a VALUES (1);", Context(seconds=10))

    assert message.startswith(f"001_a.sql:3: {DUPLICATE}. Rolled back.")


def test_slow_file_whose_line_nothing_tells_names_the_file(world: World) -> None:
    """If two statements can be meant, the message names neither."""
    world.sql(SETUP)

    message = failure(world, "SELECT pg_sleep(2);\nINSERT INTO a VALUES (2);\nINSERT INTO a VALUES (1);")

    assert message.startswith(f"001_a.sql: {DUPLICATE}. Rolled back.")
    assert "LINE" not in message


@pytest.mark.parametrize("also", ["", "RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'the second';"])
def test_error_that_does_not_come_twice_is_reported_all_the_same(world: World, also: str) -> None:
    """A second look that ends otherwise, well or with another error, changes nothing of what is said and done."""
    world.sql("CREATE SEQUENCE s")

    message = failure(
        world,
        "CREATE TABLE b (i int);\nDO $$ BEGIN IF nextval('s') = 1 THEN RAISE EXCEPTION 'the first'; END IF; "
        f"{also} END $$;",
    )

    assert "the first (P0001). Rolled back." in message.splitlines()[0]
    assert "the second" not in message
    assert world.tables() == []
    assert world.applied() == []


@pytest.fixture
def slots(world: World) -> Iterator[World]:
    """An admin that may make replication slots, as RDS's."""
    with world.superuser() as conn:
        rows(conn, f"ALTER ROLE {ADMIN} REPLICATION")
        yield world
        rows(conn, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^ours_'")
        rows(conn, f"ALTER ROLE {ADMIN} NOREPLICATION")


def test_file_that_makes_a_slot_and_fails_shows_its_error(slots: World) -> None:
    """The slot stays, since nothing takes it back: a second attempt would stumble over it, and show that instead."""
    message = failure(slots, "SELECT pg_create_physical_replication_slot('ours_1');\nDROP TABLE missing;")

    assert message.startswith('001_a.sql:2: table "missing" does not exist (42P01). Rolled back.')


OUTSIDE = f"SELECT dblink_exec('{{}}', 'INSERT INTO {SCHEMA}.outside VALUES (1)');"


@pytest.fixture
def outside(world: World) -> str:
    """A call that writes through a connection of its own."""
    with world.superuser() as conn:
        rows(conn, "CREATE EXTENSION dblink")
    world.sql("CREATE TABLE outside (i int)")
    address = f"host={world.server.host} port={world.server.port} dbname={world.dbname}"
    password = ADMIN_PASSWORD.replace("'", "\\'")
    login = f"{address} user={ADMIN} password='{password}'".replace("'", "''")
    return OUTSIDE.format(login)


@pytest.mark.parametrize("how", ["in the file", "in a function", "in a trigger"])
def test_file_that_reaches_beyond_its_transaction_does_so_once(world: World, outside: str, how: str) -> None:
    """What works outside the transaction happens once, wherever the call is written."""
    call = outside
    if how == "in a function":
        world.sql(f"CREATE FUNCTION tell() RETURNS text LANGUAGE sql AS $f$ {outside} $f$")
        call = "SELECT tell();"
    elif how == "in a trigger":
        body = f"BEGIN PERFORM {outside.removeprefix('SELECT ')} RETURN NEW; END"
        world.sql(
            f"CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS $f$ {body} $f$;"
            "CREATE TABLE audited (i int);"
            "CREATE TRIGGER t BEFORE INSERT ON audited FOR EACH ROW EXECUTE FUNCTION told()"
        )
        call = "INSERT INTO audited VALUES (1);"

    message = failure(world, f"{call}\nDROP TABLE missing;")

    assert message.startswith('001_a.sql:2: table "missing" does not exist (42P01). Rolled back.')
    assert world.sql("SELECT count(*) FROM outside") == [(1,)]


@pytest.mark.slow
def test_lock_of_a_file_that_fails_is_held_once(world: World) -> None:
    """A file that has taken a while fails when it fails, not after twice that time."""
    world.sql(SETUP)
    started = time.monotonic()

    failure(world, "SELECT pg_sleep(3);\nINSERT INTO a VALUES (1);")

    assert time.monotonic() - started < 5


def test_first_error_counts_where_the_catalogue_cannot_be_read_for_its_place(world: World) -> None:
    """A table that others have locked, with a view on it, keeps us from looking further: that is not the error."""
    world.sql("CREATE TABLE locked (i int); CREATE VIEW v AS SELECT i FROM locked")
    world.write("001_a.sql", "CREATE TABLE a (i int);\nSELECT 1 / 0;")

    with open_transaction(world, "LOCK TABLE locked"), pytest.raises(MigrationError, match="division by zero"):
        world.deploy(CREATE_USERS="false", LOCK_TIMEOUT="200ms")

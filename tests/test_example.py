"""The migration that comes with db_setup: a first try on an empty database, and harmless on any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import migration_files
import planning
import pytest
from harness.world import World
from initializer import MigrationError
from migration_files import Migration

PATH = Path(__file__).resolve().parent.parent / "db_setup" / "migrations" / "001_initial_schema.sql"
EXAMPLE = PATH.read_text()
OWN = "CREATE TABLE users (id int, nick text); CREATE TABLE orders (id int);"


@pytest.fixture(autouse=True)
def _no_users(world: World) -> None:
    """Users do not matter here, and take time."""
    world.environ["CREATE_USERS"] = "false"


def applied(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def refused(world: World) -> str:
    with pytest.raises(MigrationError) as caught:
        world.deploy()
    return str(caught.value)


def test_example_is_known_by_its_checksum() -> None:
    """The constant is that of the file which is shipped."""
    assert migration_files.tokens_checksum(Migration(PATH, PATH.stem)) == planning.EXAMPLE


def test_example_that_is_replaced_after_a_deployment_is_refused_with_the_way_out(world: World) -> None:
    """Step 3 of the quick setup after step 4: the message tells what to write, and what it tells works."""
    world.write("001_initial_schema.sql", EXAMPLE)
    assert applied(world.deploy()) == ["001_initial_schema"]
    world.write("001_initial_schema.sql", OWN)

    message = refused(world)

    assert message.startswith("001_initial_schema.sql: edited after it was applied")
    (drop,) = re.findall(r"into a new file, which can begin with (DROP TABLE .*;) \(the example's\);", message)
    world.write("001_initial_schema.sql", EXAMPLE)
    world.write("002_own.sql", f"{drop}\n{OWN}")
    assert applied(world.deploy()) == ["002_own"]
    assert world.tables() == ["orders", "users"]


def test_example_with_later_migrations_is_a_migration_whose_edit_is_refused(world: World) -> None:
    """If later migrations build on the example, it was meant, and an edit of it is refused."""
    world.write("001_initial_schema.sql", EXAMPLE)
    world.write("002_more.sql", "ALTER TABLE users ADD nick text;")
    world.deploy()
    world.write("001_initial_schema.sql", OWN)

    assert refused(world).startswith("001_initial_schema.sql: edited after it was applied")


@pytest.mark.parametrize("there", ["CREATE TABLE theirs (id int)", "CREATE TABLE users (id int)"])
def test_example_on_a_database_in_use_is_refused(world: World, there: str) -> None:
    """The example would add two tables to a foreign schema, or take existing tables for its own."""
    world.sql(there)
    before = world.tables()
    world.write("001_initial_schema.sql", EXAMPLE)

    message = refused(world)

    assert message.startswith(
        "001_initial_schema.sql is the example that comes with db_setup, and this database is not"
    )
    assert world.tables() == before
    world.write("001_initial_schema.sql", "CREATE TABLE mine (id int);")
    assert applied(world.deploy()) == ["001_initial_schema"]


def test_example_that_comes_back_later_is_refused(world: World) -> None:
    """A folder that was copied again brings the example next to the own files."""
    world.write("001_own.sql", OWN)
    world.deploy()
    world.write("001_initial_schema.sql", EXAMPLE)

    assert refused(world).startswith("001_initial_schema.sql is the example that comes with db_setup")
    assert world.tables() == ["orders", "users"]


def test_database_with_the_examples_tables_is_adopted(world: World) -> None:
    """A database that was set up with the same statements already has it."""
    world.sql(EXAMPLE)
    world.write("001_initial_schema.sql", EXAMPLE)

    assert world.deploy()["adopted"] == ["001_initial_schema"]

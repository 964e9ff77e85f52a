"""The migration that comes with db_setup: a first try on an empty database, and harmless on any other."""

from __future__ import annotations

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
IN_ITS_PLACE = ["001_initial_schema", "001_own"]


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


@pytest.mark.parametrize("name", IN_ITS_PLACE)
def test_example_that_is_replaced_was_never_meant(world: World, name: str) -> None:
    """Step 3 of the quick setup after step 4: its empty tables go, the own schema runs, a rollback is not an error."""
    world.write("001_initial_schema.sql", EXAMPLE)
    assert applied(world.deploy()) == ["001_initial_schema"]
    world.remove("001_initial_schema.sql")
    world.write(f"{name}.sql", OWN)

    tried = world.deploy({"action": "dry_run"})
    assert world.tables() == ["products", "users"]
    report = world.deploy()

    said = "the example was replaced: its empty tables users and products were dropped"
    assert ([entry["name"] for entry in tried["tried"]], tried["warnings"]) == ([name], [said])
    assert (applied(report), report["warnings"]) == ([name], [said])
    assert (world.applied(), world.tables()) == ([name], ["orders", "users"])
    assert world.sql("SELECT id, nick FROM users") == []
    if name == "001_initial_schema":
        world.write("001_initial_schema.sql", EXAMPLE)  # as the stack's rollback brings it
        assert applied(world.deploy()) == []
        assert world.tables() == ["orders", "users"]


@pytest.mark.parametrize(
    ("use", "why"),
    [
        ("INSERT INTO users (email) VALUES ('a@example.com')", "hold rows"),
        ("ALTER TABLE products ADD stock int", "are not as it made them"),
        ("CREATE VIEW names AS SELECT name FROM products", "are used by others"),
        ("DROP TABLE products", "are not as it made them"),
    ],
)
def test_example_that_is_in_use_stays(world: World, use: str, why: str) -> None:
    """Nothing that somebody needs is dropped: the replacement is refused, and the example restored goes on."""
    world.write("001_initial_schema.sql", EXAMPLE)
    world.deploy()
    world.sql(use)
    before = world.tables()
    world.write("001_initial_schema.sql", OWN)

    message = refused(world)

    assert message.startswith("001_initial_schema.sql was replaced, but what is applied is the example that comes with")
    assert f"its tables users and products {why}. Nothing has been applied." in message
    assert (world.tables(), world.applied()) == (before, ["001_initial_schema"])
    world.write("001_initial_schema.sql", EXAMPLE)
    world.write("002_own.sql", "CREATE TABLE orders (id int);")
    assert applied(world.deploy()) == ["002_own"]


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

"""The migration that comes with db_setup: a first try on an empty database, and harmless on any other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import migration_files
import planning
import pytest
from harness.others import open_transaction, wait_until
from harness.world import World, exactly, rows
from initializer import MigrationError
from migration_files import Migration

PATH = Path(__file__).resolve().parent.parent / "db_setup" / "migrations" / "001_initial_schema.sql"
EXAMPLE = PATH.read_text()
OWN = "CREATE TABLE users (id int, nick text); CREATE TABLE orders (id int);"
IN_ITS_PLACE = ["001_initial_schema", "001_own"]
EVERYTHING = "SELECT oid, relname, relnamespace, relowner FROM pg_class WHERE oid >= 16384 ORDER BY 1"


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
    """Step 3 of the quick setup after step 4: its empty tables go, and the own schema runs."""
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
    assert applied(world.deploy()) == []


def test_example_that_a_rollback_brings_back_is_a_warning(world: World) -> None:
    """The deployment that replaced it has failed elsewhere: the own tables stay, and the rollback does not fail."""
    world.write("001_initial_schema.sql", EXAMPLE)
    world.deploy()
    world.write("001_initial_schema.sql", OWN)
    world.deploy()
    world.write("001_initial_schema.sql", EXAMPLE)

    report = world.deploy()

    assert applied(report) == []
    assert report["warnings"] == ["edited after it was applied, without effect: 001_initial_schema.sql"]
    assert world.tables() == ["orders", "users"]
    world.write("002_more.sql", "SELECT 1;")
    assert applied(world.deploy()) == ["002_more"]
    world.write("002_more.sql", "SELECT 2;")
    assert "edited after they were applied" in refused(world)


CHANGED = "have been changed, or are used by others"
HIDDEN_ROW = (
    "INSERT INTO users (email) VALUES ('a@example.com');"
    "ALTER TABLE users ENABLE ROW LEVEL SECURITY; ALTER TABLE users FORCE ROW LEVEL SECURITY"
)


@pytest.mark.parametrize(
    ("use", "why"),
    [
        ("INSERT INTO users (email) VALUES ('a@example.com')", "hold rows"),
        ("INSERT INTO products (name) VALUES ('a')", "hold rows"),
        (HIDDEN_ROW, CHANGED),
        ("ALTER TABLE products ADD stock int", CHANGED),
        ("ALTER TABLE products DROP price; ALTER TABLE products ADD price decimal(10,2)", CHANGED),
        ("ALTER TABLE products ALTER price TYPE numeric(12,2)", CHANGED),
        ("CREATE INDEX ON users (created_at)", CHANGED),
        ("ALTER TABLE products ADD CHECK (price > 0)", CHANGED),
        ("CREATE VIEW names AS SELECT name FROM products", CHANGED),
        ("CREATE TABLE rated (of users)", CHANGED),
        ("DROP TABLE products", CHANGED),
        ("DROP TABLE products; CREATE VIEW products AS SELECT 1 AS id", CHANGED),
        ("ALTER TABLE products SET SCHEMA elsewhere", CHANGED),
        ("ALTER TABLE products OWNER TO CURRENT_USER", CHANGED),
    ],
)
def test_example_that_is_in_use_stays(world: World, use: str, why: str) -> None:
    """Nothing that somebody needs is dropped: the replacement is refused, and the example restored goes on."""
    world.sql("CREATE SCHEMA elsewhere")
    world.write("001_initial_schema.sql", EXAMPLE)
    world.deploy()
    with world.superuser() as superuser:
        rows(superuser, use)
    before = world.sql(EVERYTHING)
    world.write("001_initial_schema.sql", OWN)

    message = refused(world)

    assert message.startswith("001_initial_schema.sql was replaced, but what is applied is the example that comes with")
    assert f"its tables users and products {why}. Nothing has been applied. Restore the example" in message
    assert (world.sql(EVERYTHING), world.applied()) == (before, ["001_initial_schema"])
    world.write("001_initial_schema.sql", EXAMPLE)
    world.write("002_own.sql", "CREATE TABLE orders (id int);")
    assert applied(world.deploy()) == ["002_own"]


def test_example_in_use_can_be_left_behind_as_the_message_says(world: World) -> None:
    """The other way out: somebody drops the tables and the row, and the own file runs."""
    world.write("001_initial_schema.sql", EXAMPLE)
    world.deploy()
    world.sql("INSERT INTO users (email) VALUES ('a@example.com')")
    world.write("001_initial_schema.sql", OWN)
    forget = refused(world).rpartition("and the row: ")[2]

    world.sql(f"DROP TABLE products, users; {forget}")

    assert applied(world.deploy()) == ["001_initial_schema"]


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_row_that_comes_while_the_example_is_taken_back_is_kept(world: World, isolation: str) -> None:
    """The tables are locked before they are looked into."""
    world.write("001_initial_schema.sql", EXAMPLE)
    world.deploy()
    world.sql(f"ALTER DATABASE {world.dbname} SET default_transaction_isolation = '{isolation}'")
    world.write("001_initial_schema.sql", OWN)
    insert = "INSERT INTO users (email) VALUES ('a@example.com')"

    with exactly(world.environ), open_transaction(world, insert) as other, ThreadPoolExecutor(1) as pool:
        run = pool.submit(world.deploy)
        wait_until(lambda: bool(world.sql("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'users'::regclass")))
        rows(other, "COMMIT")
        failure = run.exception(30)

    assert "its tables users and products hold rows" in str(failure)
    assert world.sql("SELECT email FROM users") == [("a@example.com",)]


def test_example_that_was_adopted_is_not_taken_back(world: World) -> None:
    """Its tables were there before db_setup: they are not its to drop."""
    world.sql(EXAMPLE)
    world.write("001_initial_schema.sql", EXAMPLE)
    world.deploy()
    world.write("001_initial_schema.sql", OWN)

    assert refused(world).startswith("001_initial_schema.sql: edited after it was applied")
    assert world.tables() == ["products", "users"]


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

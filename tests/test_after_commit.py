"""What fails after the COMMIT of a file is not the file's failure: it is applied, and recorded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from harness.database import SCHEMA
from harness.others import open_transaction, wait_until
from harness.world import World, rows
from initializer import MigrationError

SLEEPS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
WAITING = (
    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'db_setup' "
    "AND datname = current_database()"
)
# It has a lock on our table, so that it goes before whoever wants the table meanwhile.
SLOW = "INSERT INTO a SELECT 2 FROM schema_migrations; SELECT pg_sleep(0.5);"


@pytest.fixture(autouse=True)
def _without_users(world: World) -> None:
    """Users do not matter here, and take half of the time."""
    world.environ["CREATE_USERS"] = "false"


@contextmanager
def table_taken_after_the_file(world: World, let_go: Any) -> Iterator[None]:
    """Another session gets our table as soon as the file is committed, and keeps it until `let_go` has returned."""

    def take() -> None:
        wait_until(lambda: bool(world.sql(SLEEPS)))
        with open_transaction(world, "LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE") as other:
            let_go(other)

    thread = threading.Thread(target=take)
    thread.start()
    yield
    thread.join(20)


def write(world: World) -> None:
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()
    world.write("002_b.sql", SLOW)
    world.write("003_c.sql", "INSERT INTO a VALUES (3);")


def was_applied_once(world: World, report: dict[str, Any]) -> bool:
    applied = [entry["name"] for entry in report["applied"]]
    return applied == ["002_b", "003_c"] and world.sql("SELECT i FROM a ORDER BY ctid") == [(2,), (3,)]


def test_after_commit_a_lock_is_waited_for_and_the_file_does_not_run_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The look at our tables is tried again."""
    write(world)

    def until_it_gives_way(_: Any) -> None:
        wait_until(lambda: any(record.getMessage().startswith("gave way ") for record in caplog.records))

    with table_taken_after_the_file(world, until_it_gives_way):
        report = world.deploy(LOCK_TIMEOUT="300ms")

    assert was_applied_once(world, report)


def test_after_commit_a_look_that_is_cancelled_is_made_again(world: World) -> None:
    """What is cancelled is not the file, which is committed."""
    write(world)

    def cancel(other: Any) -> None:
        wait_until(lambda: bool(world.sql(WAITING)))
        rows(other, f"SELECT pg_cancel_backend(pid) FROM ({WAITING}) waiting")

    with table_taken_after_the_file(world, cancel):
        report = world.deploy()

    assert was_applied_once(world, report)


def test_after_commit_nothing_is_looked_for_where_the_commit_has_failed(world: World) -> None:
    """The transaction is over then too, but nothing of the file stays."""
    world.write(
        "001_a.sql",
        "CREATE TABLE b (i int PRIMARY KEY); CREATE TABLE a (i int REFERENCES b DEFERRABLE);\n"
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS\n"
        f"$$ BEGIN SET CONSTRAINTS ALL DEFERRED; INSERT INTO {SCHEMA}.a VALUES (1); RETURN NULL; END $$;\n"
        "CREATE TRIGGER late AFTER INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION late();",
    )

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert "(23503)" in str(caught.value)
    assert "Rolled back." in str(caught.value)
    assert (world.applied(), world.tables()) == ([], [])


def test_a_failure_that_quotes_our_message_is_the_files(world: World) -> None:
    """Such as of a trigger that says which query it refuses: our words are in that."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()
    world.write(
        "002_b.sql",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE '%', current_query(); END $$;\n"
        "CREATE TRIGGER refuse BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION refuse();\n"
        "INSERT INTO a VALUES (1);",
    )

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert str(caught.value).startswith("002_b.sql:3: "), caught.value
    assert world.applied() == ["001_a"]


def test_a_step_that_fails_is_a_failure_though_an_earlier_run_has_recorded_its_file(world: World) -> None:
    """A text that has run, ran in part as another one, and came back, has its row already."""
    world.write("001_t.sql", "CREATE TABLE t (i int);")
    steps = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS ti ON t (i);\nCREATE TABLE IF NOT EXISTS never (i int);"
    older = f"-- no-transaction\nSELECT 1;\n{steps}"
    world.write("R__v.sql", older)
    world.deploy()
    world.write("R__v.sql", "-- no-transaction\nDROP INDEX IF EXISTS ti; DROP TABLE never;\nSELECT 1/0;")
    with pytest.raises(MigrationError):
        world.deploy()
    world.sql("INSERT INTO t VALUES (1), (1)")
    world.write("R__v.sql", older)

    report = world.deploy()

    assert (report["applied"], report["pending"]) == ([], ["R__v"])
    assert "could not create unique index" in " ".join(report["warnings"])


def test_marks_of_a_file_count_where_our_table_was_dropped(world: World) -> None:
    """The file that ran in part goes on where it failed, though nothing is recorded any more."""
    world.write("001_a.sql", "-- no-transaction\nCREATE SEQUENCE s;\nSELECT 1/0;")
    with pytest.raises(MigrationError):
        world.deploy()
    world.sql("DROP TABLE schema_migrations")
    world.write("001_a.sql", "CREATE SEQUENCE s;\nSELECT 1;")

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_a"]


def test_after_commit_our_tables_are_looked_at_where_the_look_fails_for_good(world: World) -> None:
    """The file is applied, and what it did to our tables is undone."""
    with world.superuser() as superuser:
        rows(superuser, "REVOKE SELECT ON pg_locks FROM PUBLIC")
    world.write("001_a.sql", f"CREATE TABLE a (i int); GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO PUBLIC;")

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_a"]
    assert world.sql("SELECT has_table_privilege('public', 'schema_migrations', 'INSERT')") == [(False,)]
    undone = "001_a changed who may do what with our tables, which was undone: REVOKE "
    assert [warning for warning in report["warnings"] if warning.startswith(undone)]

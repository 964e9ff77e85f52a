"""Rows of the tracking table that do not say what they should: noticed, named, and never a file that runs twice."""

from __future__ import annotations

import pytest
import tracking
from harness.database import SCHEMA
from harness.proxy import SENT, Link, Place, proxy_to
from harness.world import World
from initializer import ConfigError, InitializerError

A, B = "CREATE TABLE a (i int);", "CREATE TABLE b (i int);"
SWALLOWED = {
    "a trigger": "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
    "CREATE TRIGGER t BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION nothing()",
    "a later trigger": "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS "
    f"'BEGIN DELETE FROM {SCHEMA}.schema_migrations WHERE id = NEW.id; RETURN NULL; END';"
    "CREATE TRIGGER t AFTER INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION gone()",
    "a rule": "CREATE RULE r AS ON INSERT TO schema_migrations DO INSTEAD NOTHING",
}


@pytest.fixture(autouse=True)
def _no_users(world: World) -> None:
    """Users do not matter here, and take time."""
    world.environ["CREATE_USERS"] = "false"


def failure(world: World) -> str:
    with pytest.raises(InitializerError) as caught:
        world.deploy()
    return str(caught.value)


@pytest.mark.parametrize("text", [B, f"-- no-transaction\n{B}\nVACUUM a;"], ids=["a file", "in steps"])
@pytest.mark.parametrize("how", SWALLOWED)
def test_row_that_is_swallowed_fails_the_file(world: World, how: str, text: str) -> None:
    """What is not recorded is not applied: a file that ran is rolled back, or its steps are remembered."""
    world.write("001_a.sql", A)
    world.deploy()
    world.sql(SWALLOWED[how])
    world.write("002_b.sql", text)

    message = failure(world)

    assert f"{SCHEMA}.schema_migrations did not keep the row" in message or "schema_migrations has" in message
    assert world.applied() == ["001_a"]
    world.sql("DROP TRIGGER IF EXISTS t ON schema_migrations; DROP RULE IF EXISTS r ON schema_migrations")
    assert [entry["name"] for entry in world.deploy()["applied"]] == ["002_b"]
    assert world.tables() == ["a", "b"]


def test_sequence_with_too_low_a_number_is_named_with_its_remedy(world: World) -> None:
    """As a logical replication leaves it: the file is not to blame, and the statement that helps does."""
    world.write("001_a.sql", A)
    world.deploy()
    world.sql("SELECT setval('schema_migrations_id_seq', 1, false)")
    world.write("002_b.sql", B)

    message = failure(world)

    remedy = f"SELECT setval('{SCHEMA}.schema_migrations_id_seq', (SELECT max(id) FROM {SCHEMA}.schema_migrations))"
    said = f"the sequence of {SCHEMA}.schema_migrations gives numbers that its rows have already"
    assert f"002_b.sql: {said}: {remedy}" in message
    assert "Fix the file" not in message
    world.sql(remedy)
    assert [entry["name"] for entry in world.deploy()["applied"]] == ["002_b"]


def test_tracking_table_that_was_moved_is_noticed(world: World) -> None:
    """The rows are in another schema: nothing runs again, and the message says how to bring them back."""
    world.sql("CREATE TABLE n (i int)")
    world.write("001_n.sql", "INSERT INTO n VALUES (1);")
    world.deploy()
    world.sql('CREATE SCHEMA "Elsewhere"; ALTER TABLE schema_migrations SET SCHEMA "Elsewhere"')

    message = failure(world)
    with pytest.raises(ConfigError) as caught:
        world.deploy({"action": "status"})

    assert str(caught.value) == message
    remedy = f'ALTER TABLE "Elsewhere".schema_migrations SET SCHEMA {SCHEMA}'
    assert message.startswith(f'table "Elsewhere".schema_migrations has the rows of this database: {remedy}, or ')
    assert world.sql("SELECT count(*) FROM n") == [(1,)]
    world.sql(remedy)
    assert world.deploy()["applied"] == []


REMOVALS = {
    "TRUNCATE": "TRUNCATE schema_migrations;",
    "DELETE": "DELETE FROM schema_migrations WHERE migration_name = '001_a';",
    "of all tables": "DO $$ DECLARE t text; BEGIN FOR t IN SELECT tablename FROM pg_tables "
    f"WHERE schemaname = '{SCHEMA}' LOOP EXECUTE 'TRUNCATE ' || t; END LOOP; END $$;",
    "in steps": "-- no-transaction\nTRUNCATE schema_migrations;\nVACUUM a;",
}


@pytest.mark.parametrize("text", REMOVALS.values(), ids=REMOVALS)
def test_rows_that_a_file_removes_are_put_back(world: World, text: str) -> None:
    """Without its row a file would run again, after a deployment that was green; the report says so."""
    world.write("001_a.sql", "CREATE TABLE IF NOT EXISTS a (i int); INSERT INTO a VALUES (1);")
    world.deploy()
    world.write("002_b.sql", text)
    world.write("003_c.sql", B)

    report = world.deploy()

    said = "002_b removed rows of our table, without which files run again; they were put back: 001_a"
    assert (report["warnings"], report["pending"]) == ([said], [])
    again = world.deploy()
    assert (again["applied"], again["warnings"]) == ([], [])
    assert sorted(world.applied()) == ["001_a", "002_b", "003_c"]


def test_rows_are_put_back_before_another_run_can_take_the_lock(world: World) -> None:
    """Also where the session is given up after the file, for what it has set: another run would see no row."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.write("002_b.sql", "SET app.tenant = '1'; TRUNCATE schema_migrations;")
    world.write("003_c.sql", "INSERT INTO a VALUES (3);")
    is_locked = []

    def look(place: Place, link: Link) -> None:
        if place.phase == SENT and "unnest(" in link.said and "DO NOTHING RETURNING migration_name" in link.said:
            is_locked.append(world.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"))

    with proxy_to(world.server.host, world.server.port) as proxy:
        world.environ.update(DB_HOST="127.0.0.1", DB_PORT=str(proxy.port), PGSSLMODE="disable")
        proxy.watch(look)
        report = world.deploy()

    assert is_locked == [[(1,)]]
    assert [entry["name"] for entry in report["applied"]] == ["001_a", "002_b", "003_c"]
    assert sorted(world.applied()) == ["001_a", "002_b", "003_c"]


REPLACEMENTS = {
    "INSERT": "DELETE FROM schema_migrations; INSERT INTO schema_migrations (migration_name) VALUES ('000_squashed');",
    "UPDATE": "UPDATE schema_migrations SET migration_name = '000_squashed';",
}


@pytest.mark.parametrize("text", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_rows_that_a_file_replaces_by_others_are_put_back(world: World, text: str) -> None:
    """There are as many rows as before, but without its own a file would run again."""
    world.write("001_a.sql", "CREATE TABLE IF NOT EXISTS a (i int); INSERT INTO a VALUES (1);")
    world.deploy()
    world.write("002_b.sql", text)
    world.write("003_c.sql", B)

    reports = [world.deploy(), world.deploy()]

    said = "002_b removed rows of our table, without which files run again; they were put back: 001_a"
    assert said in reports[0]["warnings"]
    assert [[entry["name"] for entry in report["applied"]] for report in reports] == [["002_b", "003_c"], []]
    assert world.sql("SELECT count(*) FROM a") == [(1,)]
    assert sorted(world.applied()) == ["000_squashed", "001_a", "002_b", "003_c"]


def test_row_that_a_file_adds_for_a_later_one_counts(world: World) -> None:
    """A row means that its file is applied, whoever wrote it."""
    world.write("001_a.sql", A)
    world.write("002_b.sql", "INSERT INTO schema_migrations (migration_name) VALUES ('003_c');")
    world.write("003_c.sql", "SELECT 1 / 0;")
    world.write("004_d.sql", B)

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_a", "002_b", "004_d"]
    assert sorted(world.applied()) == ["001_a", "002_b", "003_c", "004_d"]


def test_rows_in_any_order_and_spelling_cost_no_further_message(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those that a copy of the database numbered anew."""
    world.write("001_a.sql", A)
    world.write("002_b.sql", B)
    world.deploy()
    world.sql("UPDATE schema_migrations SET id = 1000 WHERE migration_name = '001_a'")
    restored: list[str] = []
    restore_rows = tracking.restore_rows
    monkeypatch.setattr(tracking, "restore_rows", lambda *args: restored.append("") or restore_rows(*args))
    world.write("003_é.sql", "CREATE TABLE c ();")
    world.write("004_d.sql", "CREATE TABLE d ();")

    assert len(world.deploy()["applied"]) == 2
    assert restored == []


def test_row_without_a_file_may_be_removed(world: World) -> None:
    """Nothing runs again for that: whoever tidies up is left alone."""
    world.write("001_a.sql", A)
    world.deploy()
    world.remove("001_a.sql")
    world.write("002_b.sql", "DELETE FROM schema_migrations WHERE migration_name = '001_a';")
    world.write("003_c.sql", B)

    report = world.deploy()

    assert not [warning for warning in report["warnings"] if "removed rows" in warning]
    assert world.applied() == ["002_b", "003_c"]


def test_tracking_table_of_another_name_that_records_the_files_is_noticed(world: World) -> None:
    """MIGRATIONS_TABLE was changed: adoption would take the first file as applied and run the others again."""
    world.sql("CREATE TABLE n (i int)")
    world.write("001_a.sql", A)
    world.write("002_n.sql", "INSERT INTO n VALUES (1);")
    world.deploy()
    world.environ["MIGRATIONS_TABLE"] = "renamed"

    message = failure(world)

    assert message.startswith(
        f"table {SCHEMA}.schema_migrations records the files of this folder, which would run again: "
    )
    assert world.sql("SELECT count(*) FROM n") == [(1,)]


def test_tracking_table_of_another_application_is_left_alone(world: World) -> None:
    """It has files that this folder does not have: both tables have their place in one database."""
    world.write("001_a.sql", A)
    world.write("002_b.sql", B)
    world.deploy()
    world.remove("002_b.sql")
    world.write("001_a.sql", "CREATE TABLE c ();")
    world.environ["MIGRATIONS_TABLE"] = "of_another"

    assert [entry["name"] for entry in world.deploy()["applied"]] == ["001_a"]
    assert world.tables() == ["a", "b", "c", "of_another", "of_another_objects", "of_another_progress"]


def test_rows_whose_names_are_written_as_another_system_does_are_not_lost(world: World) -> None:
    """A Mac takes a name apart that others compose: it is the same row, which no file has removed."""
    world.write("001_caf\u00e9.sql", A)
    world.deploy()
    world.sql("UPDATE schema_migrations SET migration_name = '001_cafe\u0301'")
    world.write("002_b.sql", B)
    world.write("003_c.sql", "SELECT 1;")

    report = world.deploy()

    assert (report["warnings"], [entry["name"] for entry in report["applied"]]) == ([], ["002_b", "003_c"])
    assert world.applied() == ["001_cafe\u0301", "002_b", "003_c"]


def test_row_that_joins_the_names_of_two_does_not_stand_for_them(world: World) -> None:
    world.write("001_a.sql", "CREATE TABLE IF NOT EXISTS a (i int); INSERT INTO a VALUES (1);")
    world.write("002_b.sql", B)
    world.deploy()
    world.write(
        "003_c.sql",
        "DELETE FROM schema_migrations; INSERT INTO schema_migrations (migration_name) VALUES ('001_a/002_b');",
    )

    world.deploy()
    world.deploy()

    assert world.sql("SELECT count(*) FROM a") == [(1,)]
    assert {"001_a", "002_b", "003_c"} <= set(world.applied())

"""Rows of the tracking table that do not say what they should: noticed, named, and never a file that runs twice."""

from __future__ import annotations

import pytest
from harness.world import World
from initializer import InitializerError

A, B = "CREATE TABLE a (i int);", "CREATE TABLE b (i int);"
SWALLOWED = {
    "a trigger": "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
    "CREATE TRIGGER t BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION nothing()",
    "a later trigger": "CREATE FUNCTION gone() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN DELETE FROM public.schema_migrations WHERE id = NEW.id; RETURN NULL; END';"
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

    assert "public.schema_migrations did not keep the row" in message or "schema_migrations has" in message
    assert world.applied() == ["001_a"]
    world.sql("DROP TRIGGER IF EXISTS t ON schema_migrations; DROP RULE IF EXISTS r ON schema_migrations")
    assert [entry["name"] for entry in world.deploy()["applied"]] == ["002_b"]
    assert world.tables() == ["a", "b"]


def test_sequence_that_is_behind_its_rows_is_named_with_its_remedy(world: World) -> None:
    """As a logical replication leaves it: the file is not to blame, and the statement that helps does."""
    world.write("001_a.sql", A)
    world.deploy()
    world.sql("SELECT setval('schema_migrations_id_seq', 1, false)")
    world.write("002_b.sql", B)

    message = failure(world)

    remedy = "SELECT setval('public.schema_migrations_id_seq', (SELECT max(id) FROM public.schema_migrations))"
    said = "the sequence of public.schema_migrations gives numbers that its rows have already"
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

    remedy = 'ALTER TABLE "Elsewhere".schema_migrations SET SCHEMA public'
    assert message.startswith(f'table "Elsewhere".schema_migrations has the rows of this database: {remedy}, or ')
    assert world.sql("SELECT count(*) FROM n") == [(1,)]
    world.sql(remedy)
    assert world.deploy()["applied"] == []

"""Logical replication carries no DDL: a run with pending DDL says so, where the database has any."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from harness import server as harness_server
from harness.aws import played
from harness.database import create_database, superuser_connection
from harness.world import ADMIN, World, exactly, prepare, rows

DDL, ROWS = "CREATE TABLE a (i int);", "INSERT INTO known VALUES (1);"
EVENTS = [None, {"action": "dry_run"}, {"action": "status"}]


def told(world: World, event: object = None) -> list[str]:
    """The warnings of a run about replication."""
    return [text for text in world.deploy(event)["warnings"] if "replication" in text]


@pytest.fixture
def publishing(world: World) -> World:
    with world.superuser() as conn:
        rows(conn, 'CREATE PUBLICATION "all of it" FOR ALL TABLES')
    return world


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_replication_is_named_where_pending_files_have_ddl(publishing: World, event: object) -> None:
    publishing.write("001_rows.sql", "SELECT 1; -- CREATE TABLE b (i int)")
    publishing.write("002_ddl.sql", DDL)
    publishing.write("003_more.sql", "-- no-transaction\nALTER TABLE a ADD b int")

    assert told(publishing, event) == [
        'logical replication is active (publication "all of it") and does not carry DDL, which is in 002_ddl and 1 '
        "more: apply it to each subscriber as well, new tables and columns there first. During a blue/green "
        "deployment wait for its end"
    ]


def test_replication_is_not_named_where_no_pending_file_has_ddl(publishing: World) -> None:
    publishing.write("001_ddl.sql", DDL)
    publishing.deploy()
    publishing.write("002_rows.sql", "LOCK TABLE a; INSERT INTO a SELECT 1")
    assert [told(publishing, event) for event in (*EVENTS[1:], None, *EVENTS)] == [[]] * 6


def test_replication_of_some_tables_is_not_named(world: World) -> None:
    """Who lists tables knows of each new one."""
    world.sql('CREATE TABLE known (i int); CREATE PUBLICATION "some" FOR TABLE known')
    world.write("001_rows.sql", ROWS)
    world.write("002_ddl.sql", DDL)
    world.deploy(BASELINE="001_rows")
    world.write("003_ddl.sql", "CREATE TABLE c (i int)")
    assert told(world) == []


def test_replication_status_says_nothing_of_a_file_that_a_run_would_refuse(publishing: World) -> None:
    """It still answers."""
    publishing.write("001_wrong.sql", "CREATE TABLE a (i int); ROLLBACK;")
    assert told(publishing, {"action": "status"}) == []


def test_replication_slots_of_the_database_are_named_and_others_are_not(tmp_path: Path) -> None:
    """As CDC tools and blue/green deployments make them; on a server of its own, which has logical decoding."""
    slot = "SELECT pg_create_{}_replication_slot('{}'{}, {})"
    logical = mock.patch.dict(harness_server.SETTINGS, wal_level="logical")
    with logical, harness_server.own_server() as server:
        prepare(server)
        create_database(server, "shop", ADMIN)
        with superuser_connection(server, "shop") as conn, superuser_connection(server) as elsewhere, played():
            rows(elsewhere, slot.format("logical", "elsewhere", ", 'pgoutput'", "false"))
            rows(conn, slot.format("physical", "standby", "", "true"))
            rows(conn, slot.format("logical", "for_a_moment", ", 'pgoutput'", "true"))
            rows(conn, slot.format("logical", "cdc", ", 'pgoutput'", "false"))
            world = World(server, "shop", tmp_path / "migrations")
            world.write("001_ddl.sql", DDL)
            with exactly(world.environ):
                (said,) = told(world)
                assert said.startswith("logical replication is active (slot cdc) and does not carry DDL")
                rows(conn, "SELECT pg_drop_replication_slot('cdc')")
                world.write("002_ddl.sql", "CREATE TABLE b (i int)")
                assert told(world) == []

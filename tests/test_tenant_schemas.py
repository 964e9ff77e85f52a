"""A schema per tenant: what an event and the terminal list, and the terminal migrates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import initializer
import overview
import pytest
from common import ConnectError
from harness.logins import as_superuser
from harness.world import World, rows
from test_terminal import Project

pytestmark = pytest.mark.public  # each test names its schemas itself

TENANTS = [f"t_{number}" for number in range(4)]


@pytest.fixture
def world(world: World) -> World:
    """With a file, and an empty schema for each tenant."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.sql("".join(f"CREATE SCHEMA {name};" for name in TENANTS))
    return world


def listed(world: World, like: str = "t\\_%", **more: Any) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    after = ""
    while after is not None:
        report = world.deploy({"action": "databases", "like": like, "schemas": True, "after": after, **more})
        assert report["schemas"] is True
        found += report["databases"]
        after = report["next"]
    return found


def migrate(world: World, schema: str) -> dict[str, Any]:
    return world.deploy({"action": "migrate", "variables": {"DB_SCHEMA": schema}})


def test_the_list_tells_how_far_each_schema_is(world: World) -> None:
    """The fields of a list of databases; nothing is changed, not in a schema that is empty."""
    migrate(world, TENANTS[0])
    migrate(world, TENANTS[1])
    world.write("002_b.sql", "CREATE TABLE b (i int);")
    migrate(world, TENANTS[1])
    world.sql("CREATE TABLE t_3.schema_migrations (version text)")

    found = listed(world)

    assert list(found[0]) == ["name", "applied", "pending", "last", "problem"]
    states = [tuple(each.values()) for each in found]
    assert states[:3] == [
        (TENANTS[0], 1, 1, "001_a", ""),
        (TENANTS[1], 2, 0, "002_b", ""),
        (TENANTS[2], 0, 2, None, ""),
    ]
    assert states[3][:4] == (TENANTS[3], None, None, None)
    assert 'table t_3."schema_migrations" belongs to another tool' in states[3][4]
    assert world.sql("SELECT relname FROM pg_class WHERE relnamespace = 't_2'::regnamespace") == []


def test_a_schema_that_a_run_would_refuse_has_its_reason(world: World) -> None:
    """One of somebody else's, one whose tracking table was moved away, and one with an edited file."""
    migrate(world, TENANTS[1])
    migrate(world, TENANTS[2])
    world.sql("CREATE SCHEMA archive; ALTER TABLE t_1.schema_migrations SET SCHEMA archive")
    as_superuser(world, "CREATE ROLE tmp_owner; ALTER SCHEMA t_0 OWNER TO tmp_owner; GRANT ALL ON SCHEMA t_0 TO PUBLIC")
    world.write("001_a.sql", "CREATE TABLE a (i bigint);")

    problems = [each["problem"] for each in listed(world)]

    assert problems[0].startswith("schema t_0 belongs to tmp_owner, who is not the admin")
    assert "ALTER TABLE archive.schema_migrations SET SCHEMA t_1" in problems[1]
    assert problems[2:] == ["001_a.sql edited after it was applied", ""]


def test_only_schemas_that_a_run_can_name_and_use_are_listed(world: World) -> None:
    """None of PostgreSQL's own, none that is closed to the login, none whose name DB_SCHEMA cannot have."""
    world.sql('CREATE TEMPORARY TABLE x (); CREATE SCHEMA "T_5"; CREATE SCHEMA "t-6"; CREATE SCHEMA "t\n"')
    as_superuser(world, "CREATE ROLE tmp_owner; CREATE SCHEMA t_7 AUTHORIZATION tmp_owner")

    names = [each["name"] for each in listed(world, "%", status=False)]

    assert names == ["public", *TENANTS]
    for name in names:
        assert [entry["name"] for entry in migrate(world, name)["applied"]] == ["001_a"]
    assert {each["applied"] for each in listed(world, "%")} == {1}


def test_pages_of_schemas_have_each_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of databases."""
    monkeypatch.setattr(overview, "PAGE_BYTES", 50)
    for more in ({}, {"status": False}):
        first = world.deploy({"action": "databases", "like": "t\\_%", "schemas": True, **more})
        assert 0 < len(first["databases"]) < 4
        assert first["next"] == first["databases"][-1]["name"]
        assert [each["name"] for each in listed(world, **more)] == TENANTS


def test_schemas_are_read_by_one_connection_that_cannot_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one for each. And questions to large catalogs are not compiled, which takes longer than to answer them."""
    seen: list[tuple[int, str, str]] = []
    read_state = initializer.tracking.read_state

    def watched(session: Any, *args: Any) -> Any:
        seen.extend(
            session.query("SELECT pg_backend_pid(), current_setting('transaction_read_only'), current_setting('jit')")
        )
        return read_state(session, *args)

    monkeypatch.setattr(initializer.tracking, "read_state", watched)
    assert len(listed(world)) == len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0][1:] == ("on", "off")


def test_a_schema_whose_table_is_locked_does_not_end_the_list(world: World) -> None:
    """Its problem says so, after LOCK_TIMEOUT; the others are read."""
    for name in TENANTS:
        migrate(world, name)
    with world.connection() as other:
        rows(other, "BEGIN; LOCK TABLE t_1.schema_migrations")
        report = world.deploy({"action": "databases", "like": "t\\_%", "schemas": True}, LOCK_TIMEOUT="100ms")
    assert [bool(each["problem"]) for each in report["databases"]] == [False, True, False, False]
    assert "lock timeout" in report["databases"][1]["problem"]


def test_a_lost_connection_ends_the_list(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the problem of each schema that was not read."""
    has_tables = initializer.tracking.has_tables

    def cut(session: Any, setup: Any) -> Any:
        if setup.config.schema == TENANTS[1]:
            as_superuser(world, f"SELECT pg_terminate_backend({session.connection.info.backend_pid})")
        return has_tables(session, setup)

    monkeypatch.setattr(initializer.tracking, "has_tables", cut)
    with pytest.raises(ConnectError):
        listed(world)


# --- The terminal ---------------------------------------------------------------------------------------------------


@pytest.fixture
def project(world: World, tmp_path: Path) -> Project:
    return Project(world, tmp_path)


def test_all_schemas_are_migrated_from_the_terminal(project: Project) -> None:
    """The first alone, then the others; a failure stops nobody else, and other schemas are left alone."""
    world = project.world
    world.sql("CREATE FUNCTION t_2.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE SCHEMA other")
    world.write("002_f.sql", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';")

    first = project.run("migrate", "--all", "t\\_%", "--schemas", "--at-once", "3")
    second = project.run("migrate", "--all", "t\\_%", "--schemas", "--json")
    status = project.run("databases", "t\\_%", "--schemas")

    assert first.returncode == 1, first.stderr
    lines = first.stdout.splitlines()
    for name, line in zip(TENANTS, lines[1:]):
        assert line.startswith(f"{name}  002_f.sql:1: " if name == "t_2" else f"{name}  applied 001_a, 002_f")
    assert lines[5].startswith("schemas: 4, problems: 1; ")
    report = json.loads(second.stdout)
    assert (report["schemas"], [each["applied"] for each in report["databases"]]) == (True, [[]] * 4)
    assert status.returncode == 0, status.stderr
    assert status.stdout.splitlines()[3:] == [
        "t_2  1 applied, 1 pending, last 001_a",
        "t_3  2 applied, 0 pending, last 002_f",
        status.stdout.splitlines()[-1],
    ]
    assert status.stdout.splitlines()[-1].startswith("schemas: 4, problems: 0; ")
    assert world.sql("SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'other')") == [(0,)]


@pytest.mark.parametrize("words", [["migrate", "--schemas"], ["databases", "t%", "--schemas", "--schema", "t_1"]])
def test_schemas_need_a_pattern_and_nothing_else(project: Project, words: list[str]) -> None:
    """Nothing is guessed, and nothing is migrated."""
    run = project.run(*words)
    assert run.returncode == 2
    assert "--schemas" in run.stderr

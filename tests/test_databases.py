"""{"action": "databases"} lists the databases of a server, and "create" makes one that is missing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import initializer
import overview
import psycopg2
import pytest
from harness.database import SCHEMA, connect, drop_database, superuser_connection
from harness.tenants import databases
from harness.world import ADMIN, ADMIN_PASSWORD, World, rows
from initializer import ConfigError, InitializerError

ODD_NAMES = ("_%a", '_"b\\', "_'c; --", "_d\nü", "_e x")


@pytest.fixture
def tenants(world: World) -> Iterator[list[str]]:
    """Four empty databases, in the order of their names."""
    with databases(world, [f"_t{number}" for number in range(4)]) as names:
        yield names


def listed(world: World, like: str, **more: Any) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    after = ""
    while after is not None:
        report = world.deploy({"action": "databases", "like": like, "after": after, **more})
        found += report["databases"]
        after = report["next"]
    return found


def migrate(world: World, name: str, **more: Any) -> dict[str, Any]:
    variables = {"DB_NAME": name, "CREATE_USERS": "false"}
    return world.deploy({"action": "migrate", "variables": variables, **more})


def test_the_list_tells_how_far_each_database_is(world: World, tenants: list[str]) -> None:
    """Counts, the last migration, and what is wrong; nothing is changed, not in a database that is empty."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    migrate(world, tenants[0])
    migrate(world, tenants[1])
    world.write("002_b.sql", "CREATE TABLE b (i int);")
    migrate(world, tenants[1])
    with connect(world.server, tenants[3], ADMIN, ADMIN_PASSWORD) as conn:
        rows(conn, "CREATE TABLE schema_migrations (version text)")
    conn.close()

    found = listed(world, f"{world.dbname}_t%")

    states = [tuple(each.values()) for each in found]
    assert states[:3] == [
        (tenants[0], 1, 1, "001_a", ""),
        (tenants[1], 2, 0, "002_b", ""),
        (tenants[2], 0, 2, None, ""),
    ]
    assert states[3][:4] == (tenants[3], None, None, None)
    assert "belongs to another tool" in states[3][4]
    assert list(found[0]) == ["name", "applied", "pending", "last", "problem"]
    with connect(world.server, tenants[2], ADMIN, ADMIN_PASSWORD) as conn:
        assert rows(conn, f"SELECT relname FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace") == []
    conn.close()


def test_an_edited_file_is_a_problem_of_each_database_that_has_it(world: World, tenants: list[str]) -> None:
    """A run would be refused there."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    migrate(world, tenants[0])
    world.write("001_a.sql", "CREATE TABLE a (i bigint);")
    first, second, *_ = listed(world, f"{world.dbname}_t%")
    assert (first["problem"], second["problem"]) == ("001_a.sql edited after it was applied", "")


def test_names_come_as_they_are(world: World) -> None:
    """Quotes, blanks, line ends and wildcards in a name: what is listed can be migrated as it is."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    with databases(world, ODD_NAMES) as names:
        found = [each["name"] for each in listed(world, f"{world.dbname}\\_%", status=False)]
        assert sorted(found) == sorted(names)
        for name in found:
            assert [entry["name"] for entry in migrate(world, name)["applied"]] == ["001_a"]
        assert {each["applied"] for each in listed(world, f"{world.dbname}\\_%")} == {1}


def test_pages_have_each_database_once(world: World, tenants: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a page ends because it is long or because it is large."""
    monkeypatch.setattr(overview, "PAGE_BYTES", 100)
    for more in ({}, {"status": False}):
        first = world.deploy({"action": "databases", "like": f"{world.dbname}_t%", **more})
        assert 0 < len(first["databases"]) < 4
        assert first["next"] == first["databases"][-1]["name"]
        assert [each["name"] for each in listed(world, f"{world.dbname}_t%", **more)] == tenants


@pytest.mark.slow
def test_a_database_that_cannot_be_reached_does_not_end_the_list(world: World, tenants: list[str]) -> None:
    """One that the login may not connect to is left out, one that is full has its problem."""
    with superuser_connection(world.server, "postgres") as conn:
        rows(conn, f'REVOKE CONNECT ON DATABASE "{tenants[0]}" FROM PUBLIC')
        rows(conn, f'REVOKE CONNECT ON DATABASE "{tenants[0]}" FROM "{ADMIN}"')
        rows(conn, f'ALTER DATABASE "{tenants[1]}" ALLOW_CONNECTIONS false')
        rows(conn, f'ALTER DATABASE "{tenants[2]}" CONNECTION LIMIT 0')
    conn.close()
    found = {each["name"]: each["problem"] for each in listed(world, f"{world.dbname}_t%")}
    assert list(found) == tenants[2:]
    assert "its CONNECTION LIMIT is reached" in found[tenants[2]]
    assert found[tenants[3]] == ""


def test_the_list_has_to_be_asked_for_by_a_pattern(world: World) -> None:
    """A map over all databases would migrate those of other people."""
    with pytest.raises(ConfigError, match='which databases\\? Add "like" to the event'):
        world.deploy({"action": "databases"})


def test_a_missing_database_is_made_only_if_the_event_says_so(world: World) -> None:
    """It belongs to the admin, and is migrated in the same run; where it exists nothing is made."""
    name = f"{world.dbname}_new ü"
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    try:
        with pytest.raises(InitializerError, match="does not exist"):
            migrate(world, name)
        with pytest.raises(InitializerError, match="does not exist"):
            migrate(world, name, create=False)

        first, second = migrate(world, name, create=True), migrate(world, name, create=True)

        assert (first["created"], [entry["name"] for entry in first["applied"]]) == (True, ["001_a"])
        assert ("created" in second, second["applied"]) == (False, [])
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s"
        assert world.sql(owner, name) == [(ADMIN,)]
    finally:
        drop_database(world.server, name)


def test_two_runs_that_make_one_database_both_succeed(world: World) -> None:
    """One makes it, and one applies the file; the other finds it done."""
    name = f"{world.dbname}_new"
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    event = {"action": "migrate", "create": True, "variables": {"DB_NAME": name, "CREATE_USERS": "false"}}
    try:
        with mock.patch.object(initializer, "MIGRATIONS_DIR", world.folder), ThreadPoolExecutor(4) as pool:
            reports = list(pool.map(initializer.handler, [event] * 4, [None] * 4))
        assert sorted(len(report["applied"]) for report in reports) == [0, 0, 0, 1]
        assert sum(report.get("created", False) for report in reports) == 1
    finally:
        drop_database(world.server, name)


def test_a_database_that_may_not_be_made_is_an_error_with_postgresqls_reason(world: World) -> None:
    """An admin without CREATEDB; nothing is migrated."""
    name = f"{world.dbname}_new"
    with superuser_connection(world.server, "postgres") as conn:
        rows(conn, f'ALTER ROLE "{ADMIN}" NOCREATEDB')
        try:
            with pytest.raises(InitializerError, match="permission denied to create database \\(42501\\)"):
                migrate(world, name, create=True)
        finally:
            rows(conn, f'ALTER ROLE "{ADMIN}" CREATEDB')
    conn.close()
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        connect(world.server, name, ADMIN, ADMIN_PASSWORD)


def test_a_run_has_few_connections(world: World) -> None:
    """The session, for a moment its watcher's or a login's trial, and perhaps one that the server is just closing: the
    documents count three to a run of a fleet."""
    world.write("001_a.sql", "CREATE TABLE a (i int); SELECT pg_sleep(1);")
    world.write("002_b.sql", "SELECT pg_sleep(1), pg_advisory_unlock_all();")  # a new session follows
    world.write("003_c.sql", "CREATE TABLE c (i int);")
    question = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
    seen: list[int] = []
    with superuser_connection(world.server, "postgres") as conn, ThreadPoolExecutor(1) as pool:
        work = pool.submit(world.deploy, None, None, LOCK_TIMEOUT="1s")  # looked at before that
        while not work.done():
            seen.append(rows(conn, question, world.dbname)[0][0])
    conn.close()
    assert work.result()["users"] == {"app_rw": "created", "app_tc": "created"}
    assert 1 < max(seen) <= 3

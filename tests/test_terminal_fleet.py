"""`python3 db_setup migrate --all 'tenant_%'`: many databases from a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.database import connect
from harness.others import wait_until
from harness.tenants import databases
from harness.world import ADMIN, ADMIN_PASSWORD, World, rows
from test_terminal import Project

pytestmark = pytest.mark.slow

SLOW_IN_ONE = "DO $$ BEGIN IF current_database() LIKE '%t2' THEN PERFORM pg_sleep(50); END IF; END $$;"


@pytest.fixture
def project(world: World, tmp_path: Path) -> Project:
    return Project(world, tmp_path)


@pytest.fixture
def tenants(world: World) -> Iterator[list[str]]:
    """Five databases with names that have to be quoted."""
    with databases(world, [f" t{number}" for number in range(5)]) as names:
        yield names


def query(world: World, name: str, statement: str) -> list[tuple[object, ...]]:
    conn = connect(world.server, name, ADMIN, ADMIN_PASSWORD)
    try:
        return rows(conn, statement)
    finally:
        conn.close()


def is_asleep(world: World) -> bool:
    question = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'"
    return query(world, "postgres", question) == [(1,)]


def test_all_are_migrated_and_a_failure_stops_nobody_else(project: Project, tenants: list[str]) -> None:
    """The table has a line for each, the exit code says that one failed, and a second run has nothing to do."""
    world = project.world
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    query(world, tenants[3], "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    world.write("002_f.sql", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';")

    first = project.run("migrate", "--all", f"{world.dbname} t%", "--at-once", "3")
    second = project.run("migrate", "--all", f"{world.dbname} t%", "--json")

    assert first.returncode == 1, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0] == f"migrate: {world.dbname} t%"
    for name, line in zip(tenants, lines[1:]):
        if name == tenants[3]:
            assert line.startswith(f"{name}  002_f.sql:1: ")
            assert "Applied in this run: 001_a." in line
        else:
            assert line == f"{name}  applied 001_a, 002_f"
    assert lines[6].startswith("databases: 5, problems: 1; ")
    assert "done 4, failed 1, left 0" in first.stderr
    report = json.loads(second.stdout)
    assert [each["applied"] for each in report["databases"]] == [[]] * 5
    assert (report["status"], report["not_begun"]) == ("failed", 0)
    assert query(world, tenants[3], "SELECT migration_name FROM schema_migrations") == [("001_a",)]


def test_none_is_begun_if_the_first_one_fails(project: Project, tenants: list[str]) -> None:
    """It is the canary: what is wrong with the file is wrong everywhere."""
    world = project.world
    world.write("001_a.sql", "SELECT oops;")

    run = project.run("migrate", "--all", f"{world.dbname} t%")

    assert run.returncode == 1
    assert 'column "oops" does not exist' in run.stdout
    assert "databases: 1, problems: 1, not begun: 4; " in run.stdout
    assert query(world, tenants[1], "SELECT to_regclass('schema_migrations')") == [(None,)]


def test_databases_lists_how_far_each_is(project: Project, tenants: list[str]) -> None:
    """Also the status of a fleet."""
    world = project.world
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    project.run("migrate", "--all", tenants[0])

    run = project.run("databases", f"{world.dbname} t%")

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[1:3] == [
        f"{tenants[0]}  1 applied, 0 pending, last 001_a",
        f"{tenants[1]}  0 applied, 1 pending",
    ]


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in found.split()]


def is_at_work(pid: int) -> bool:
    """It is there, and not only because nobody has asked how it ended."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return found.strip()[:1] not in ("", "Z")


def test_a_process_that_is_killed_is_the_failure_of_its_database_alone(project: Project, tenants: list[str]) -> None:
    """The databases after it get another process."""
    world = project.world
    world.write("001_a.sql", SLOW_IN_ONE)
    with project.start("migrate", "--all", f"{world.dbname} t%", "--at-once", "1") as process:
        wait_until(lambda: is_asleep(world))
        for child in children(process.pid):
            os.kill(child, signal.SIGKILL)
        out, err = process.communicate(timeout=100)

    assert process.returncode == 1, err
    assert [line.partition("  ")[2] for line in out.splitlines()[1:6]] == [
        *["applied 001_a"] * 2,
        "its process was ended. Run it again.",
        *["applied 001_a"] * 2,
    ]
    assert tenants


def test_interrupted_run_over_many_databases_leaves_no_process(project: Project, tenants: list[str]) -> None:
    """Ctrl-C, or the signal that stops a container: nothing goes on on the server."""
    world = project.world
    world.write("001_a.sql", SLOW_IN_ONE)
    with project.start("migrate", "--all", f"{world.dbname} t%") as process:
        wait_until(lambda: is_asleep(world))
        workers = children(process.pid)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)

    assert process.returncode == 143
    assert "Interrupted." in err
    assert workers
    wait_until(lambda: not any(is_at_work(pid) for pid in workers))
    if world.server.version >= 140000:  # which looks whether its client is still there
        wait_until(lambda: not is_asleep(world))
    assert query(world, tenants[2], "SELECT migration_name FROM schema_migrations") == []


@pytest.mark.parametrize("words", [["--at-once", "0"], ["--at-once", "many"], ["--all"]])
def test_wrong_numbers_get_the_usage(project: Project, words: list[str]) -> None:
    """Nothing is guessed."""
    assert project.run("migrate", *words).returncode == 2

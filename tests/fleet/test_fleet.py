"""The construct's state machine at work, on databases of one server.

FLEET_DATABASES says how many there are in the long run: `make fleet` takes 1,000.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import pytest
from harness.database import connect
from harness.world import ADMIN, ADMIN_PASSWORD, rows

from fleet.fleet import Fleet

pytestmark = pytest.mark.timeout(7200)

COUNT = int(os.environ.get("FLEET_DATABASES", "30"))
CONCURRENCY = int(os.environ.get("FLEET_CONCURRENCY", "4"))
# A file that would leave a second row if it ran twice.
ONCE = "CREATE TABLE ran (name text); INSERT INTO ran VALUES ('001');"
FUNCTION = "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';"
SHAPE = """
    SELECT (SELECT array_agg(name ORDER BY name) FROM ran),
        (SELECT array_agg(shape ORDER BY shape) FROM (
            SELECT (table_name, column_name, data_type)::text AS shape
            FROM information_schema.columns WHERE table_schema = 'public') q),
        (SELECT array_agg((migration_name, checksum)::text ORDER BY id) FROM schema_migrations)"""


def pattern(fleet: Fleet, **more: Any) -> dict[str, Any]:
    return {"databases": {"like": f"{fleet.prefix()}%"}, "maxConcurrency": CONCURRENCY, **more}


def test_all_databases_of_a_pattern_are_migrated_page_after_page(fleet: Fleet) -> None:
    """Each once, also where the list has several pages."""
    fleet.world.write("001_a.sql", ONCE)
    fleet.make_databases(5)

    result = fleet.run(pattern(fleet), fleet.publish(PAGE_DATABASES="2"))

    assert (result.status, result.failures) == ("SUCCEEDED", {})
    assert [fleet.query(name, "SELECT name FROM ran") for name in fleet.names] == [[("001",)]] * 5
    lists = [each for each in fleet.answers() if each["action"] == "databases"]
    assert [len(each["databases"]) for each in lists] == [2, 2, 1]


def test_a_server_without_tenants_is_a_success(fleet: Fleet) -> None:
    """The first deployment comes before the first tenant."""
    result = fleet.run(pattern(fleet), fleet.publish())

    assert (result.status, [each["databases"] for each in fleet.answers()]) == ("SUCCEEDED", [[]])


def test_a_canary_that_fails_stops_everything(fleet: Fleet) -> None:
    """No other database is begun, and the failure says which one it is and why."""
    fleet.world.write("001_a.sql", FUNCTION)
    fleet.make_databases(4)
    fleet.query(fleet.names[1], FUNCTION)

    result = fleet.run(pattern(fleet, canaries=2), fleet.publish())

    assert (result.status, result.error) == ("FAILED", "CanaryFailed")
    assert result.cause.startswith(f"No other one was begun. {fleet.names[1]}: 001_a.sql:1: ")
    assert list(result.failures) == [fleet.names[1]]
    assert fleet.migrated() == [fleet.names[0]]


def test_a_failure_stops_nobody_else_and_is_named(fleet: Fleet) -> None:
    """The deployment fails at the end, with how many failed and the first messages; a failure is tried once."""
    fleet.world.write("001_a.sql", FUNCTION)
    fleet.make_databases(4)
    broken = fleet.names[1:3]
    for name in broken:
        fleet.query(name, FUNCTION)

    result = fleet.run(pattern(fleet), fleet.publish())

    assert (result.status, result.error) == ("FAILED", "SomeFailed")
    assert result.cause.startswith("2 of 4 databases failed. ")
    assert all(name in result.cause for name in broken)
    assert set(result.failures) == set(broken)
    for message in result.failures.values():
        assert message.startswith('001_a.sql:1: function "f" already exists with same argument types (42723)')
    assert fleet.migrated() == [fleet.names[0], fleet.names[3]]
    assert sum(invocation.failed is True for invocation in fleet.service.invocations) == 2


def test_a_given_list_makes_new_databases_if_it_is_to(fleet: Fleet) -> None:
    """Without createMissing a new tenant is a failure; with it the tenant is there, and migrated."""
    fleet.world.write("001_a.sql", ONCE)
    fleet.names = [f"{fleet.prefix()}{letter}" for letter in "ab ü'{}"]
    props = {"databases": {"names": fleet.names}, "maxConcurrency": 2}
    arn = fleet.publish()

    without = fleet.run(props, arn)
    assert (without.error, "does not exist" in without.cause, fleet.migrated()) == ("CanaryFailed", True, [])

    result = fleet.run({**props, "createMissing": True}, arn)
    assert (result.status, result.failures) == ("SUCCEEDED", {})
    assert fleet.migrated() == sorted(fleet.names)


def test_a_file_in_s3_says_which_databases(fleet: Fleet) -> None:
    """Its first entries are the canaries; all are migrated once."""
    fleet.world.write("001_a.sql", ONCE)
    fleet.make_databases(3)
    listed = [{"name": name} for name in fleet.names]

    result = fleet.run({"s3": "tenants.json", "maxConcurrency": 2}, fleet.publish(), objects={"tenants.json": listed})

    assert (result.status, result.failures) == ("SUCCEEDED", {})
    assert [fleet.query(name, "SELECT name FROM ran") for name in fleet.names] == [[("001",)]] * 3


def test_a_run_that_ends_at_its_deadline_is_started_again_and_goes_on(fleet: Fleet) -> None:
    """What is done stays done: a database that needs several times the function's limit succeeds."""
    for number in range(1, 5):
        fleet.world.write(f"00{number}_slow.sql", f"SELECT pg_sleep(3); CREATE TABLE t{number} ();")
    fleet.make_databases(1)

    result = fleet.run(pattern(fleet), fleet.publish(timeout_s=15))

    assert (result.status, result.failures) == ("SUCCEEDED", {})
    errors = [each["errorType"] for each in fleet.answers() if "errorType" in each]
    assert errors
    assert set(errors) == {"StoppedError"}
    names = [entry["name"] for entry in fleet.answers()[-2].get("applied", [])]
    assert len(names) < 4


def test_a_second_execution_waits_for_the_first(fleet: Fleet) -> None:
    """Two deployments never mix: the second one begins where the first one has ended."""
    fleet.world.write("001_a.sql", "SELECT pg_sleep(1); " + ONCE)
    fleet.make_databases(3)

    result = fleet.run(pattern(fleet, maxConcurrency=1), fleet.publish(), executions=2)

    assert result.status == "SUCCEEDED"
    actions = [len(each.get("databases", each["applied"])) for each in fleet.answers()]
    # The list, the canary that works, the same and two more; then all of it again with nothing to do.
    assert actions == [3, 1, 0, 1, 1, 3, 0, 0, 0, 0]


def test_an_execution_with_the_definition_before_the_deployment_does_nothing(fleet: Fleet) -> None:
    """The deployment says which version of the function it means; another one must not pass for it."""
    fleet.world.write("001_a.sql", ONCE)
    fleet.make_databases(1)
    arn = fleet.publish()

    outdated = fleet.run(pattern(fleet), arn, given=json.dumps({"version": f"{arn}-newer"}))
    assert (outdated.status, outdated.error, fleet.answers()) == ("FAILED", "Outdated", [])

    current = fleet.run(pattern(fleet), arn, given=json.dumps({"version": arn}))
    assert (current.status, fleet.migrated()) == ("SUCCEEDED", fleet.names)


def test_schemas_of_one_database_are_migrated_several_at_a_time_and_share_their_logins(fleet: Fleet) -> None:
    """Each is made and migrated once; all of them change the same roles, and none fails for it. The failure of one is
    named, and stops nobody else; the list tells how far each is."""
    world = fleet.world
    world.write("001_a.sql", ONCE)
    names = [f"tenant_{number:02}" for number in range(16)]
    secrets = {"DB_USER_SECRET_NAME": "user", "DB_PROXY": "creator", "CREATE_USERS": "true"}
    arn = fleet.publish(**secrets)

    result = fleet.run({"schemas": {"names": names}, "maxConcurrency": 8}, arn)

    assert (result.status, result.failures) == ("SUCCEEDED", {})
    assert [invocation.failed for invocation in fleet.service.invocations] == [False] * (len(names) + 1)
    for secret in ("user", "creator"):
        with world.login(secret) as conn:
            assert [rows(conn, f"SELECT name FROM {name}.ran") for name in names] == [[("001",)]] * len(names)

    world.sql("CREATE VIEW tenant_05.second AS SELECT 1")
    world.write("002_b.sql", "CREATE TABLE second (i int);")
    result = fleet.run({"schemas": {"like": "tenant\\_%"}, "maxConcurrency": 8}, fleet.publish(**secrets))

    assert (result.error, list(result.failures)) == ("SomeFailed", ["tenant_05"])
    assert "1 of 16 schemas failed" in result.cause
    listed = world.deploy({"action": "databases", "like": "tenant\\_%", "schemas": True})["databases"]
    assert [(each["name"], each["pending"]) for each in listed] == [(name, int(name == "tenant_05")) for name in names]


def test_a_fleet_survives_everything_at_once(fleet: Fleet) -> None:
    """Some databases are broken, locked or done already, functions are killed, and so is the interpreter, which is
    started again: each healthy database equals a reference, each broken one is named, and nothing ran twice."""
    fleet.world.write("001_first.sql", ONCE)
    fleet.make_databases(COUNT)
    broken, locked, done = fleet.names[5::10], fleet.names[7::10], fleet.names[3::10]
    for name in locked + broken:
        fleet.migrate(name)
    fleet.world.write("002_second.sql", "CREATE TABLE second (i int); INSERT INTO ran VALUES ('002');")
    fleet.world.write("003_third.sql", "ALTER TABLE ran ADD COLUMN at date; INSERT INTO ran VALUES ('003');")
    for name in done:
        fleet.migrate(name)
    for name in broken:
        fleet.query(name, "CREATE VIEW second AS SELECT 1")
    arn = fleet.publish()
    props = pattern(fleet)

    holders = [connect(fleet.world.server, name, ADMIN, ADMIN_PASSWORD) for name in locked]
    for holder in holders:
        rows(holder, "BEGIN; LOCK TABLE ran")
    release = threading.Timer(20, lambda: [holder.close() for holder in holders])
    release.start()
    started = time.monotonic()
    with fleet.interpreter(props, arn):
        fleet.wait_until_done(COUNT // 5)
        fleet.kill_functions(2)
    with fleet.interpreter(props, arn) as process:
        killer = threading.Thread(target=fleet.kill_functions, args=(max(3, COUNT // 30), 1.5), daemon=True)
        killer.start()
        result = fleet.result_of(process)
    seconds = time.monotonic() - started
    release.join()

    print(f"{COUNT} databases in {seconds:.0f} s: {COUNT / seconds * 60:.0f} a minute, {fleet.killed} functions killed")
    assert (result.status, result.error) == ("FAILED", "SomeFailed")
    assert set(result.failures) == set(broken)
    assert f"{len(broken)} of {COUNT} databases failed" in result.cause
    reference = fleet.query(fleet.names[0], SHAPE)
    assert reference[0][0] == ["001", "002", "003"]
    different = [name for name in fleet.names if name not in broken and fleet.query(name, SHAPE) != reference]
    assert different == []
    assert {tuple(fleet.query(name, "SELECT name FROM ran")) for name in broken} == {(("001",),)}
    assert fleet.killed >= 3

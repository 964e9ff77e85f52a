"""How many databases a minute, and what a server takes at once: figures for docs/performance.md."""

from __future__ import annotations

import time

import pytest

from fleet.fleet import Fleet
from fleet.test_fleet import COUNT

pytestmark = pytest.mark.timeout(7200)

WARM = 0.1  # of the databases, until each function has started


def test_databases_a_minute(fleet: Fleet) -> None:
    """All are migrated at each concurrency; the figures do not count the interpreter's start."""
    fleet.make_databases(max(COUNT // 5, 6))
    for number, concurrency in enumerate((1, 4, 16), start=1):
        fleet.world.write(f"00{number}_table.sql", f"CREATE TABLE table_{number} (id int PRIMARY KEY, item text);")
        arn, before = fleet.publish(), len(fleet.service.invocations)
        props = {"databases": {"like": f"{fleet.prefix()}%"}, "maxConcurrency": concurrency}
        with fleet.interpreter(props, arn) as process:
            fleet.wait_until_done(before + round(len(fleet.names) * WARM))
            started, done = time.monotonic(), len(fleet.service.invocations)
            result = fleet.result_of(process)
        minutes = (time.monotonic() - started) / 60
        rate = (len(fleet.service.invocations) - done) / minutes
        print(f"{len(fleet.names)} databases, {concurrency} at a time: {rate:.0f} a minute")
        assert (result.status, result.failures) == ("SUCCEEDED", {})
    started = time.monotonic()
    assert fleet.migrated() == fleet.names
    each_ms = (time.monotonic() - started) * 1000 / len(fleet.names)
    print(f"status of {len(fleet.names)} databases: {each_ms:.0f} ms each")


def test_logins_of_many_tenants_are_made_at_the_same_time(fleet: Fleet) -> None:
    """Roles belong to the server, whose catalogs all runs change at once: none fails, and each login works."""
    fleet.world.write("001_orders.sql", "CREATE TABLE orders (id serial PRIMARY KEY);")
    fleet.make_databases(max(COUNT // 10, 16))
    for name in fleet.names:
        fleet.world.secrets.create_secret(Name=f"tenants/{name}")
    variables = {"ROLE_PREFIX": "{name}_", "DB_USER_SECRET_NAME": "tenants/{name}"}
    props = {"databases": {"like": f"{fleet.prefix()}%"}, "maxConcurrency": 16, "variables": variables}
    started = time.monotonic()

    result = fleet.run(props, fleet.publish(CREATE_USERS="true"))

    seconds = time.monotonic() - started
    failed = sum(bool(invocation.failed) for invocation in fleet.service.invocations)
    retried = fleet.service.log().count("gave way")
    print(
        f"logins of {len(fleet.names)} tenants, 16 at a time: {seconds:.0f} s, {failed} runs failed, {retried} retries"
    )
    assert (result.status, result.failures, failed) == ("SUCCEEDED", {}, 0)
    for name in fleet.names:
        login = fleet.world.secret(f"tenants/{name}")
        assert (login["username"], login["dbname"]) == (f"{name}_app_rw", name)

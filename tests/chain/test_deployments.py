"""Deployments from CloudFormation's event to the limited user's login, on each Python, with lowest and newest pins."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import pytest
from harness import tls
from harness.others import sessions, wait_until
from harness.world import ADMIN_PASSWORD, World, rows

from chain.stack import ANSWER_LIMIT, Stack

pytestmark = pytest.mark.timeout(600)  # the first one may have to install everything

OURS = ("readwrite", "tablecreator", "app_rw", "app_tc")
ORDERS = "CREATE TABLE orders (id serial PRIMARY KEY, item text NOT NULL);"
SLOW = "DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.05); END LOOP; END $$;"

# --- Helpers ---------------------------------------------------------------------------------------------------------


def answers(stack: Stack) -> list[Any]:
    """What the handler has answered, invocation after invocation."""
    return [invocation.answer for invocation in stack.service.invocations]


def applied_names(answer: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in answer["applied"]]


def ends_in_log(stack: Stack) -> list[int]:
    """What the metric filters of the example count: `failed` of each run's last line, 0 or 1."""
    lines = [json.loads(line) for line in stack.service.log().splitlines() if line.startswith("{")]
    return [line["failed"] for line in lines if "failed" in line]


def assert_nothing_leaked(stack: Stack, *shown: str) -> None:
    """No password, old or new, is in a log or in what CloudFormation shows."""
    passwords = {ADMIN_PASSWORD}
    for name in ("user", "creator"):
        ids = stack.world.secrets.list_secret_version_ids(SecretId=name, IncludeDeprecated=True)["Versions"]
        for each in ids:
            value = stack.world.secrets.get_secret_value(SecretId=name, VersionId=each["VersionId"])
            passwords.add(json.loads(value["SecretString"])["password"])
    for text in (stack.service.log(), stack.provider.log.read_text(), *shown):
        assert [password for password in passwords if password in text] == []


def assert_logins_work(world: World) -> None:
    """The application reads and writes and no more; the table creator makes tables that the application can use."""
    with world.login("user") as conn:
        rows(conn, "INSERT INTO orders (item) VALUES ('by the application')")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            rows(conn, "DROP TABLE orders")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            rows(conn, "DELETE FROM schema_migrations")
    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE made_later (id int)")
    with world.login("user") as conn:
        rows(conn, "INSERT INTO made_later VALUES (1)")
        rows(conn, "DELETE FROM made_later")
    with world.login("creator") as conn:
        rows(conn, "DROP TABLE made_later")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Lets a deployment run while the test goes on."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


# --- One stack, from its creation on ---------------------------------------------------------------------------------


def test_stack_is_created_updated_fails_is_rolled_back_and_repaired(stack: Stack) -> None:
    """Each deployment that succeeds has applied what is new, and one that fails shows why and leaves nothing half."""
    world = stack.world
    world.write(
        "001_orders.sql", f"{ORDERS} CREATE TABLE own AS SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    )

    created = stack.deploy()

    assert (created.status, created.reason) == ("SUCCESS", "SUCCESS")
    assert applied_names(answers(stack)[-1]) == world.applied() == ["001_orders"]
    assert answers(stack)[-1]["users"] == {"app_rw": "created", "app_tc": "created"}
    assert world.sql("SELECT ssl FROM own") == [(world.server.tls,)]
    assert_logins_work(world)
    secrets = world.secret("user"), world.secret("creator")

    world.write("002_customers.sql", "CREATE TABLE customers (id int);")
    updated = stack.deploy()

    assert updated.status == "SUCCESS"
    assert applied_names(answers(stack)[-1]) == ["002_customers"]

    unchanged = stack.deploy()

    assert unchanged.status == "SUCCESS"
    assert applied_names(answers(stack)[-1]) == []
    assert answers(stack)[-1]["users"] == {"app_rw": "kept", "app_tc": "kept"}

    world.write("003_fine.sql", "CREATE TABLE fine (id int);")
    world.write("004_bad.sql", "CREATE TABLE half (id int);\nALTER TABLE orders\n  ADD COLUMN price numerc;\n")
    failed = stack.deploy()

    assert failed.status == "FAILED"
    assert failed.message == (
        'Error: 004_bad.sql:3:20: type "numerc" does not exist (42704). Rolled back. Fix the file and deploy again. '
        "Applied in this run: 003_fine.\n"
        "LINE 3:   ADD COLUMN price numerc;\n"
        "                           ^"
    )
    assert failed.size < ANSWER_LIMIT
    assert world.applied() == ["001_orders", "002_customers", "003_fine"]
    assert "half" not in world.tables()

    back = stack.roll_back()

    assert back.status == "SUCCESS"
    process_of = [invocation.process for invocation in stack.service.invocations]
    assert process_of[-1] is process_of[2]  # Lambda keeps them: nothing of an invocation may outlive it
    assert applied_names(answers(stack)[-1]) == []
    assert world.applied() == ["001_orders", "002_customers", "003_fine"]

    world.write("004_bad.sql", "ALTER TABLE orders ADD COLUMN price numeric;")
    repaired = stack.deploy()

    assert repaired.status == "SUCCESS"
    assert applied_names(answers(stack)[-1]) == ["004_bad"]
    assert_logins_work(world)
    assert (world.secret("user"), world.secret("creator")) == secrets
    assert (world.versions("user"), world.versions("creator")) == (1, 1)
    assert sessions(world) == []
    assert sorted(ends_in_log(stack)) == [0, 0, 0, 0, 0, 1]
    assert_nothing_leaked(stack, failed.reason)


# --- What a failed deployment shows ----------------------------------------------------------------------------------


def test_longest_message_reaches_the_stack(stack: Stack) -> None:
    """CloudFormation refuses an answer above 4,096 bytes, and then shows nothing of it; quotes take two, 🐘 four."""
    say = "'" + '数据库🐘"' * 300 + "'"
    name = f"001_{'迁移' * 40}"
    stack.world.write(f"{name}.sql", f"DO $$ BEGIN RAISE EXCEPTION {say} USING DETAIL = {say}, HINT = {say}; END $$;")

    failed = stack.deploy()

    assert failed.status == "FAILED"
    assert failed.message.startswith(f"Error: {name}.sql:1: 数据库")
    assert failed.size < ANSWER_LIMIT


def test_missing_layer_is_named(stack: Stack) -> None:
    """Without psycopg2 the function cannot be loaded, and the deployment says what it did not find."""
    stack.world.write("001_orders.sql", ORDERS)

    failed = stack.deploy(layer=False)

    assert failed.status == "FAILED"
    assert failed.message == "Error: Unable to import module 'initializer': No module named 'psycopg2'"
    assert answers(stack)[-1]["errorType"] == "Runtime.ImportModuleError"
    assert stack.world.tables() == []
    assert stack.deploy().status == "SUCCESS"


def test_server_of_another_authority_is_refused(stack: Stack) -> None:
    """With a bundle next to the code the server has to prove who it is, without any variable."""
    assert stack.world.server.tls, "a server without TLS cannot show this: leave TEST_DATABASE_URL out"
    stack.world.write("001_orders.sql", ORDERS)
    stack.bundle = tls.issue_certificate(stack.world.server.host).ca

    failed = stack.deploy()

    assert failed.status == "FAILED"
    assert failed.message.startswith("Error: cannot connect to rds_admin@")
    assert "TLS: check PGSSLROOTCERT and global-bundle.pem" in failed.message
    assert failed.message.endswith("Nothing has been changed.")
    assert_nothing_leaked(stack, failed.reason)


# --- Time ------------------------------------------------------------------------------------------------------------


def test_run_that_needs_too_long_stops_itself_and_the_next_goes_on(stack: Stack) -> None:
    """Lambda's limit is never reached: the deployment shows what is applied, and the next one does the rest."""
    world = stack.world
    world.write("001_orders.sql", ORDERS)
    world.write("002_long.sql", "CREATE TABLE half (id int); SELECT pg_sleep(60);")

    failed = stack.deploy(timeout_s=4)

    assert failed.status == "FAILED"
    assert failed.message.startswith("Error: out of time")
    assert "002_long" in failed.message
    assert "Applied in this run: 001_orders." in failed.message
    assert "raise that or split the file." in failed.message
    assert answers(stack)[-1]["errorType"] == "StoppedError"
    assert world.applied() == ["001_orders"]
    assert sessions(world) == []

    world.write("002_long.sql", "CREATE TABLE half (id int);")

    assert stack.deploy().status == "SUCCESS"
    assert world.applied() == ["001_orders", "002_long"]
    assert_logins_work(world)


def test_run_that_lambda_kills_leaves_nothing(stack: Stack, pool: ThreadPoolExecutor) -> None:
    """A frozen process is killed at the limit; the next deployment finds no trace of it, and does everything."""
    world = stack.world
    world.sql("CREATE TABLE gate ()")
    world.write("001_orders.sql", f"{ORDERS} {SLOW}")

    deployment = pool.submit(stack.deploy, timeout_s=4)
    wait_until(lambda: any("pg_sleep" in query for _, state, query in sessions(world) if state == "active"))
    stack.service.invocations[0].process.send_signal(signal.SIGSTOP)
    failed = deployment.result(timeout=30)

    assert failed.status == "FAILED"
    assert failed.message.endswith("Error: Task timed out after 4.00 seconds")
    world.sql("INSERT INTO gate DEFAULT VALUES")

    assert stack.deploy().status == "SUCCESS"
    assert world.applied() == ["001_orders"]
    assert_logins_work(world)


def test_provider_that_loses_patience_invokes_again_which_is_harmless(stack: Stack, pool: ThreadPoolExecutor) -> None:
    """The second run waits for the first one, and finds everything done."""
    world = stack.world
    world.sql("CREATE TABLE gate ()")
    world.write("001_orders.sql", f"{ORDERS} {SLOW}")
    world.write("002_row.sql", "INSERT INTO orders (item) VALUES ('once');")

    deployment = pool.submit(stack.deploy, Timeout=2500)
    wait_until(lambda: "waiting for another run" in stack.service.log())
    world.sql("INSERT INTO gate DEFAULT VALUES")
    event = deployment.result(timeout=30)

    assert event.status == "SUCCESS"
    wait_until(lambda: all(invocation.is_over for invocation in stack.service.invocations))
    assert len(stack.service.invocations) > 1
    first, second = answers(stack)[:2]
    assert applied_names(first) == ["001_orders", "002_row"]
    assert (applied_names(second), second["lock_wait_ms"] > 0) == ([], True)
    assert world.sql("SELECT item FROM orders") == [("once",)]
    assert (world.versions("user"), world.versions("creator")) == (1, 1)
    assert_logins_work(world)


# --- Asynchronous ----------------------------------------------------------------------------------------------------


def test_event_that_is_delivered_twice_is_harmless(stack: Stack) -> None:
    """At the same time or one after the other: one run applies, each reports success."""
    world = stack.world
    world.write("001_orders.sql", f"{ORDERS} INSERT INTO orders (item) VALUES ('once');")
    stack.service.copies_of_an_event = 2

    event = stack.deploy(InvocationType="Event")

    assert event.status == "SUCCESS"
    invocations = stack.service.invocations
    wait_until(lambda: len(invocations) == 2 and all(invocation.is_over for invocation in invocations))
    assert stack.trigger_again(InvocationType="Event").status == "SUCCESS"
    wait_until(lambda: len(invocations) == 4 and all(invocation.is_over for invocation in invocations))
    assert [invocation.failed for invocation in invocations] == [False] * 4
    assert sorted(map(applied_names, answers(stack))) == [[], [], [], ["001_orders"]]
    assert world.sql("SELECT item FROM orders") == [("once",)]
    assert (world.versions("user"), world.versions("creator")) == (1, 1)
    assert_logins_work(world)

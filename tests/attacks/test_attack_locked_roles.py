"""A login that keeps its own role locked, or its objects where its group cannot own them, stops nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg2
import pytest
from harness.database import SCHEMA, connect, superuser_connection
from harness.logins import as_superuser, works
from harness.world import Context, World, rows
from initializer import InitializerError


@contextmanager
def kept_open(conn: Any, statement: str) -> Iterator[None]:
    """Meanwhile the statement's transaction is open, if nobody ends it; then it is committed, if it still can be."""
    rows(conn, f"BEGIN; {statement}")
    yield
    with suppress(psycopg2.Error):
        rows(conn, "COMMIT")


def test_leaked_login_is_rotated_away_while_it_changes_its_password(deployed: World) -> None:
    leaked = deployed.secret("creator")
    with deployed.connection(leaked["username"], leaked["password"]) as thief:
        deployed.deploy({"action": "rotate"}, Context(60))
        with kept_open(thief, "ALTER ROLE CURRENT_USER PASSWORD 'of its own'"):
            deployed.deploy({"action": "rotate"}, Context(30))
    assert works(deployed, deployed.secret("creator"))
    assert not works(deployed, {**leaked, "password": "of its own"})
    assert not works(deployed, leaked)


def test_login_that_keeps_its_role_locked_is_mended(deployed: World) -> None:
    deployed.write("002_more.sql", "CREATE TABLE more (id int)")
    with deployed.login("user") as conn, deployed.login("user") as other:
        rows(other, "ALTER ROLE CURRENT_USER PASSWORD 'lost'")
        with kept_open(conn, "ALTER ROLE CURRENT_USER PASSWORD 'of its own'"):
            assert deployed.deploy(context=Context(30))["users"]["app_rw"] == "mended"
    assert works(deployed, deployed.secret("user"))


@pytest.mark.parametrize("secret", ["user", "creator"])
def test_login_that_keeps_its_own_setting_locked_stops_no_run(deployed: World, secret: str) -> None:
    with deployed.login(secret) as conn, deployed.login(secret) as other:
        rows(other, "ALTER ROLE CURRENT_USER SET local_preload_libraries = 'nothing'")
        with kept_open(conn, "ALTER ROLE CURRENT_USER SET local_preload_libraries = 'nothing_else'"):
            deployed.deploy(context=Context(30))
    assert works(deployed, deployed.secret(secret))


PREPARED = {
    "password": "ALTER ROLE CURRENT_USER PASSWORD 'of its own'",
    "setting": "ALTER ROLE CURRENT_USER SET work_mem = '1MB'",
}


@pytest.mark.parametrize("what", PREPARED)
def test_login_whose_role_a_prepared_transaction_keeps_locked_is_mended(deployed: World, what: str) -> None:
    """It outlives every session, so db_setup rolls it back."""
    with deployed.login("user") as conn, deployed.login("user") as other:
        rows(other, "ALTER ROLE CURRENT_USER PASSWORD 'lost'")
        rows(conn, f"BEGIN; {PREPARED[what]}; PREPARE TRANSACTION 'tmp_prepared'")
        try:
            report = deployed.deploy(context=Context(30), LOCK_TIMEOUT="500ms")
        finally:
            with suppress(psycopg2.Error), deployed.superuser() as superuser:
                rows(superuser, "ROLLBACK PREPARED 'tmp_prepared'")
    assert report["users"]["app_rw"] == "mended"
    assert works(deployed, deployed.secret("user"))


def test_prepared_transaction_in_another_database_that_keeps_a_role_locked_is_named(deployed: World) -> None:
    """Only there it can be rolled back."""
    login = deployed.secret("user")
    deployed.put_secret("user", {**login, "password": "lost"})
    with closing(connect(deployed.server, "postgres", login["username"], login["password"])) as conn:
        rows(conn, "BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'of its own'; PREPARE TRANSACTION 'tmp_elsewhere'")
    try:
        with pytest.raises(InitializerError, match="a prepared transaction, one of 'tmp_elsewhere' in postgres"):
            deployed.deploy(context=Context(8), LOCK_TIMEOUT="500ms")
    finally:
        with superuser_connection(deployed.server) as superuser:
            rows(superuser, "ROLLBACK PREPARED 'tmp_elsewhere'")


MADE = (
    "CREATE TABLE made (id serial)",
    "CREATE VIEW seen AS SELECT * FROM made",
    "CREATE FUNCTION own(int, text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE PROCEDURE act() LANGUAGE sql AS 'SELECT 1'",
    "CREATE TYPE mood AS ENUM ('well')",
    "CREATE DOMAIN short AS text",
)
OWNERS = f"""
    SELECT relname::text, relowner::regrole::text FROM pg_class
    WHERE relnamespace = '{SCHEMA}'::regnamespace AND relkind IN ('r', 'v', 'S') AND relname !~ '^schema_migrations'
    UNION ALL SELECT proname, proowner::regrole::text FROM pg_proc WHERE pronamespace = '{SCHEMA}'::regnamespace
    UNION ALL SELECT typname, typowner::regrole::text FROM pg_type WHERE typname IN ('mood', 'short') ORDER BY 1"""


def test_function_in_a_temporary_schema_stops_no_rotation(deployed: World) -> None:
    """All else goes to the group."""
    with deployed.login("creator") as conn:
        for statement in (*MADE, "CREATE FUNCTION pg_temp.own() RETURNS int LANGUAGE sql AS 'SELECT 1'"):
            rows(conn, statement)
        report = deployed.deploy({"action": "rotate"})
    assert report["users"]["app_tc_clone"] == "rotated"
    owners = deployed.sql(OWNERS)
    assert [name for name, _ in owners] == ["act", "made", "made_id_seq", "mood", "own", "seen", "short"]
    assert {owner for _, owner in owners} == {"tablecreator"}
    assert [text for text in report["warnings"] if "app_tc" in text] == []


def test_objects_that_a_rotation_leaves_are_named(deployed: World) -> None:
    """Such as one in a schema in which the group may not create."""
    with deployed.login("creator") as conn:
        rows(conn, "CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    as_superuser(
        deployed,
        "CREATE SCHEMA closed; CREATE FUNCTION closed.own(int) RETURNS int LANGUAGE sql AS 'SELECT 1'; "
        "ALTER FUNCTION closed.own OWNER TO app_tc",
    )
    report = deployed.deploy({"action": "rotate"})
    assert report["users"]["app_tc_clone"] == "rotated"
    (warning,) = [text for text in report["warnings"] if "app_tc" in text]
    assert warning.startswith("1 objects still belong to app_tc (function closed.own(integer)), ")
    assert deployed.sql(OWNERS) == [("own", "tablecreator")]


def test_secret_that_names_many_silent_hosts_does_not_hold_a_run_up(deployed: World) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hosts = ",".join(["127.0.0.1"] * 8)
        value = {**deployed.secret("user"), "username": "whoever", "host": hosts, "port": silent.getsockname()[1]}
        deployed.put_secret("user", value)
        started = time.monotonic()
        assert deployed.deploy()["users"]["app_rw"] == "mended"
        assert time.monotonic() - started < 20

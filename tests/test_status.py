"""{"action": "status"}: the state of everything, and nothing is changed."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import psycopg2
import pytest
import tracking
from harness.database import SCHEMA
from harness.world import LOCK_KEY, World, rows
from initializer import InitializerError
from limited_users import LimitedUsers
from session import Session

STATUS = {"action": "status"}


def test_status_of_an_empty_database_has_everything_pending(world: World) -> None:
    """Before the first run nothing is there, and nothing is made."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.write("add_b.sql", "CREATE TABLE b (i int);")

    report = world.deploy(STATUS)

    assert (report["action"], report["applied"], report["pending"]) == ("status", [], ["001_a", "002_add_b"])
    assert report["users"] == {"app_rw": "secret user has no value yet", "app_tc": "secret creator has no value yet"}
    assert report["running"] == []
    assert world.sql(f"SELECT relname FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace") == []
    assert (world.versions("user"), world.versions("creator")) == (0, 0)


def test_status_tells_what_differs_from_the_folder(world: World) -> None:
    """Applied, edited, renumbered, missing, pending, duplicate, adopted and half-done files are told apart."""
    world.sql("CREATE TABLE a (i int)")
    for name in ("001_a", "002_b", "003_c", "004_d"):
        world.write(f"{name}.sql", f"CREATE TABLE {name[4:]} (i int);")
    world.deploy()
    world.write("002_b.sql", "CREATE TABLE b (i bigint);")
    world.remove("003_c.sql")
    world.write("005_c.sql", "CREATE TABLE c (i int);")
    world.remove("004_d.sql")
    world.write("006_e.sql", "-- no-transaction\nSELECT 1;\nSELECT nope;")
    world.write("006_f.sql", "SELECT 1;")
    with pytest.raises(Exception, match="nope"):
        world.deploy(ALLOW_EDITED_MIGRATIONS="true")
    world.write("007_c.sql", "CREATE TABLE c (i int);")
    world.remove("005_c.sql")

    report = world.deploy(STATUS)

    assert [entry["name"] for entry in report["applied"]] == ["001_a", "002_b", "005_c", "004_d"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:", entry["applied_at"]) for entry in report["applied"])
    assert (report["adopted"], report["edited"], report["missing"]) == (["001_a"], ["002_b"], ["004_d"])
    assert (report["renumbered"], report["unfinished"]) == ([{"name": "007_c", "was": "005_c"}], ["006_e"])
    assert (report["pending"], report["duplicates"]) == (["006_e", "006_f"], [["006_e", "006_f"]])


def test_status_tries_both_logins_and_changes_none(world: World) -> None:
    """A login that works is said to, one that does not is left as it is."""
    world.deploy()
    world.sql("ALTER ROLE app_tc NOLOGIN")

    report = world.deploy(STATUS)

    assert report["users"] == {"app_rw": "works", "app_tc": "does not work; the next run repairs it"}
    with pytest.raises(psycopg2.OperationalError), world.login("creator"):
        pass


def test_status_that_fails_does_not_say_that_it_has_applied_the_files_of_all_runs(world: World) -> None:
    """It has applied none, wherever it fails."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()

    broken = mock.patch.object(LimitedUsers, "tried", side_effect=TypeError)
    with broken, pytest.raises(InitializerError, match=r"^unexpected TypeError .* Applied in this run: nothing\. "):
        world.deploy(STATUS)


def test_status_names_a_run_that_is_at_work_and_does_not_wait_for_it(world: World) -> None:
    """The lock is not taken, and its holder is named."""
    with world.connection() as holder:
        rows(holder, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        pid = holder.info.backend_pid

        report = world.deploy(STATUS)

    assert len(report["running"]) == 1
    assert re.fullmatch(rf"another run \(pid {pid}, user rds_admin, '', connected for \d s\)", report["running"][0])


def test_status_cannot_write(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads: whatever it asked the server to write, as the admin, the server would refuse."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()
    read = tracking.history

    def writing(session: Session, *given: Any) -> Any:
        session.query(f"INSERT INTO {SCHEMA}.a VALUES (1)")
        return read(session, *given)

    monkeypatch.setattr(tracking, "history", writing)

    with pytest.raises(InitializerError, match=r"cannot execute INSERT in a read-only transaction \(25006\)"):
        world.deploy(STATUS)
    assert world.sql("SELECT i FROM a") == []


def test_status_as_a_login_that_may_only_read_is_enough(world: World) -> None:
    """A login that may not even write tells the same as the admin's, whose tables and rows stay as they are."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()
    report = world.deploy(STATUS)
    with world.superuser() as superuser:
        rows(superuser, "CREATE ROLE tmp_reader LOGIN PASSWORD 'reads' IN ROLE pg_read_all_settings")
        rows(superuser, f"GRANT USAGE ON SCHEMA {SCHEMA} TO tmp_reader")  # which everybody has of public
        rows(superuser, f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO tmp_reader")
        rows(superuser, "ALTER ROLE tmp_reader SET default_transaction_read_only = on")
    world.put_secret("admin", {**world.secret("admin"), "username": "tmp_reader", "password": "reads"})
    try:
        reader = world.deploy(STATUS)
    finally:
        with world.superuser() as superuser:
            rows(superuser, "DROP OWNED BY tmp_reader")

    own = ("database", "duration_ms")
    assert {**reader, **dict.fromkeys(own)} == {**report, **dict.fromkeys(own)}
    assert (reader["users"], reader["applied"][0]["name"]) == ({"app_rw": "works", "app_tc": "works"}, "001_a")


def test_status_does_not_count_as_a_run_that_applied_files(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Its line in the log says which action it was; metrics made of the log are those of migrations alone."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy(CREATE_USERS="false")
    world.write("002_b.sql", "CREATE TABLE b (i int);")

    world.deploy(STATUS, CREATE_USERS="false")

    assert re.fullmatch(
        r"done action=status pending=1 failed=0 drift=0 lock_wait_ms=0 duration_ms=\d+", caplog.records[-1].getMessage()
    )


def test_status_as_a_reader_by_default_privileges_tells_what_is_applied_but_no_marks(world: World) -> None:
    """Default privileges let a login read the tracking table, but not the table of marks; it gets an answer all the
    same."""
    world.write("001_a.sql", "SELECT 1;")
    world.write("002_b.sql", "-- no-transaction\nSELECT 1;\nSELECT nope;")
    with world.superuser() as superuser:
        rows(superuser, "CREATE ROLE tmp_reader LOGIN PASSWORD 'reads'")
        rows(superuser, f"GRANT USAGE ON SCHEMA {SCHEMA} TO tmp_reader")
    world.sql(f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT SELECT ON TABLES TO tmp_reader")
    with pytest.raises(InitializerError, match="nope"):
        world.deploy(CREATE_USERS="false")
    admins = world.deploy(STATUS, CREATE_USERS="false")
    may_read = "SELECT has_table_privilege('tmp_reader', %s, 'SELECT')"
    rights = [world.sql(may_read, table)[0][0] for table in ("schema_migrations", "schema_migrations_progress")]
    world.put_secret("admin", {**world.secret("admin"), "username": "tmp_reader", "password": "reads"})
    try:
        report = world.deploy(STATUS, CREATE_USERS="false")
    finally:
        with world.superuser() as superuser:
            rows(superuser, "DROP OWNED BY tmp_reader")
            rows(superuser, "DROP ROLE tmp_reader")

    assert rights == [True, False]
    assert [entry["name"] for entry in report["applied"]] == ["001_a"]
    assert (admins["unfinished"], report["unfinished"]) == (["002_b"], [])

"""A limited user cannot stop deployments: its own state, locks that it holds, what it leaves open."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any
from unittest import mock

import database
import outside
import psycopg2
import pytest
from harness import server as harness_server
from harness.attackers import PASSWORD, STRANGER, close_schema, open_transaction, refused
from harness.aws import played
from harness.database import SCHEMA, create_database, drop_database, drop_roles
from harness.logins import as_superuser, works
from harness.proxy import Link, Place, proxy_to
from harness.server import own_server
from harness.world import ADMIN, LOCK_KEY, Context, World, exactly, prepare, rows
from initializer import InitializerError, LockError
from session import DEADLINE_CLASS

BOTH = pytest.mark.parametrize("secret", ["user", "creator"])


@pytest.fixture
def deployed(deployed: World) -> World:
    deployed.write("001_things.sql", "CREATE TABLE things (id int);")
    return deployed


def applied(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


# --- A login's own state --------------------------------------------------------------------------------------------


@BOTH
def test_deployments_go_on_where_a_login_has_locked_itself_out(deployed: World, secret: str) -> None:
    """A library that does not exist keeps the login out, not the deployment; it works again afterwards."""
    before = deployed.secret(secret)
    with deployed.login(secret) as conn:
        rows(conn, "ALTER ROLE CURRENT_USER SET local_preload_libraries = 'nix'")
    assert not works(deployed, before)

    report = deployed.deploy()

    assert applied(report) == ["001_things"]
    assert deployed.secret(secret) == before
    assert works(deployed, before)


SETTINGS = {
    "statement_timeout": "1",
    "role": "'nobody'",
    "search_path": "'nowhere'",
    "default_transaction_read_only": "on",
    "client_encoding": "'EUC_JIS_2004'",
    "datestyle": "'SQL, DMY'",
    "session_replication_role": "replica",
}


@BOTH
def test_deployments_go_on_whatever_a_login_sets_for_itself(deployed: World, secret: str) -> None:
    """Whether it harms itself or not."""
    with deployed.login(secret) as conn:
        for name, value in SETTINGS.items():
            try:
                rows(conn, f"ALTER ROLE CURRENT_USER SET {name} = {value}")
            except Exception:  # the server does not let it
                continue

    assert applied(deployed.deploy()) == ["001_things"]
    assert deployed.deploy({"action": "rotate"})["status"] == "ok"


AT_ONCE = {"idle_session_timeout": "1", "statement_timeout": "1", "transaction_timeout": "1"}


@BOTH
@pytest.mark.parametrize("timeout", AT_ONCE)
def test_deployments_go_on_where_a_login_ends_its_sessions_at_once(deployed: World, secret: str, timeout: str) -> None:
    """Whatever a session of it would be asked first, such as for the style of dates, would get no answer."""
    with deployed.login(secret) as conn:
        rows(conn, "ALTER ROLE CURRENT_USER SET datestyle = 'SQL, DMY'")
        with suppress(Exception):  # a timeout that this server does not know
            rows(conn, f"ALTER ROLE CURRENT_USER SET {timeout} = {AT_ONCE[timeout]}")
    with proxy_to(deployed.server.host, deployed.server.port) as proxy:
        proxy.watch(lambda place, link: time.sleep(0.02))  # the network is slower than that timeout
        deployed.environ.update(DB_HOST="127.0.0.1", DB_PORT=str(proxy.port), PGSSLMODE="disable")
        started = time.monotonic()
        report = deployed.deploy(context=Context(60))

    assert set(report["users"].values()) == {"kept"}
    assert time.monotonic() - started < 15


@BOTH
def test_deployments_go_on_where_a_login_has_used_up_its_connections(
    deployed: World, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal comes after the password was checked: it proves that the login works, and costs no time."""
    deployed.sql(f"ALTER ROLE {deployed.secret(secret)['username']} CONNECTION LIMIT 1")
    started = time.monotonic()
    with deployed.login(secret):
        report = deployed.deploy()

    assert applied(report) == ["001_things"]
    assert set(report["users"].values()) == {"kept"}
    assert time.monotonic() - started < 10


@BOTH
def test_deployments_go_on_where_a_login_that_is_refused_for_its_limit_has_a_wrong_password(
    deployed: World, secret: str
) -> None:
    """An answer before the password was checked proves nothing, and a wrong one is still replaced."""
    deployed.put_secret(secret, {**deployed.secret(secret), "password": "wrong"})
    deployed.sql(f"ALTER ROLE {deployed.secret(secret)['username']} CONNECTION LIMIT 0")

    report = deployed.deploy()

    assert report["users"][deployed.secret(secret)["username"]] == "mended"


def test_deployments_go_on_where_logins_have_joined_each_other(deployed: World) -> None:
    """Up to PostgreSQL 14 a role may let others into itself: app_rw would be a table creator."""
    if deployed.server.version >= 150000:
        return  # no role can do that any more
    with deployed.login("creator") as conn:
        rows(conn, "GRANT app_tc TO app_rw")

    report = deployed.deploy()

    assert applied(report) == ["001_things"]
    assert deployed.sql("SELECT pg_has_role('app_rw', 'tablecreator', 'MEMBER')") == [(False,)]
    assert deployed.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_deployments_go_on_where_a_login_has_let_a_stranger_in(deployed: World) -> None:
    """The same holds for a login that is not ours."""
    if deployed.server.version >= 150000:
        return
    with deployed.login("creator") as conn:
        rows(conn, f"GRANT app_tc TO {STRANGER}")

    report = deployed.deploy()

    assert applied(report) == ["001_things"]
    assert any(STRANGER in warning for warning in report["warnings"])


def test_deployments_go_on_where_a_login_cannot_be_tried(deployed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that breaks off says nothing about the login: it is kept, and the report says that it was not tried."""
    before = deployed.secret("user"), deployed.secret("creator")
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)

    def cut(place: Place, link: Link) -> None:
        if place.connection > 1:
            link.cut()

    with proxy_to(deployed.server.host, deployed.server.port) as proxy:
        deployed.environ.update(DB_HOST="127.0.0.1", DB_PORT=str(proxy.port), PGSSLMODE="disable")
        proxy.watch(cut)
        reports = []
        for event in (None, None, {"action": "rotate"}):
            proxy.watch(cut)
            reports.append(deployed.deploy(event))

    assert [report["users"] for report in reports] == [{"app_rw": "not tried", "app_tc": "not tried"}] * 3
    assert all("app_rw could not be tried" in report["warnings"][0] for report in reports)
    assert (deployed.secret("user"), deployed.secret("creator")) == before


# --- Locks ----------------------------------------------------------------------------------------------------------

HELD = {
    "exclusive": "SELECT pg_advisory_lock({0})",
    "shared": "SELECT pg_advisory_lock_shared({0})",
    "in a transaction": "BEGIN; SELECT pg_advisory_xact_lock({0})",
}


@BOTH
@pytest.mark.parametrize("how", HELD)
def test_deployments_go_on_where_a_login_holds_our_lock(deployed: World, how: str, secret: str) -> None:
    """A limited user runs no migration: a session of its that holds the lock is ended."""
    with deployed.login(secret) as conn:
        rows(conn, HELD[how].format(LOCK_KEY))

        assert applied(deployed.deploy(context=Context(30))) == ["001_things"]


@BOTH
def test_deployments_go_on_where_many_sessions_wait_for_our_lock(deployed: World, secret: str) -> None:
    """Those that wait after the first one would get it, one after the other."""
    with ExitStack() as stack:
        for _ in range(5):
            conn = stack.enter_context(deployed.login(secret))
            rows(conn, "SELECT pg_advisory_lock_shared(%s)", LOCK_KEY)

        assert applied(deployed.deploy(context=Context(30))) == ["001_things"]


@BOTH
def test_deployments_go_on_where_a_login_holds_our_deadlines(deployed: World, secret: str) -> None:
    """What publishes a run's deadline is a lock, too."""
    with deployed.login(secret) as conn:
        moments = "generate_series(extract(epoch FROM now())::int, extract(epoch FROM now())::int + 600) s"
        rows(conn, f"SELECT pg_advisory_lock({DEADLINE_CLASS}, s) FROM {moments}")

        started = time.monotonic()
        assert applied(deployed.deploy(context=Context(60))) == ["001_things"]
    assert time.monotonic() - started < 10


@pytest.fixture(scope="module")
def prepares() -> Iterator[Any]:
    """A server that allows prepared transactions; most do not."""
    more = {**harness_server.SETTINGS, "max_prepared_transactions": "5"}
    with mock.patch.object(harness_server, "SETTINGS", more), own_server() as running:
        yield running


@BOTH
def test_deployments_go_on_where_a_prepared_transaction_holds_our_lock(
    prepares: Any, secret: str, tmp_path: Any
) -> None:
    """A prepared transaction has no session that could be ended, so db_setup rolls it back."""
    prepare(prepares)
    create_database(prepares, "prepared", ADMIN)
    try:
        with played():
            world = World(prepares, "prepared", tmp_path / "migrations")
            with exactly(world.environ):
                world.deploy()
                world.write("001_things.sql", "CREATE TABLE things (id int);")
                with world.login(secret) as conn:
                    rows(conn, "BEGIN; SELECT pg_advisory_xact_lock(%s); PREPARE TRANSACTION 'ours'", LOCK_KEY)

                assert applied(world.deploy(context=Context(30))) == ["001_things"]
    finally:
        drop_database(prepares, "prepared")
        drop_roles(prepares, "%readwrite", "%tablecreator", "app\\_%")


READ_OPEN = {
    "in a session": "BEGIN; SELECT * FROM schema_migrations",
    "prepared": "BEGIN; SELECT * FROM schema_migrations; PREPARE TRANSACTION 'tmp_read'",
}


@pytest.mark.parametrize("how", READ_OPEN)
@BOTH
def test_deployments_go_on_where_a_login_goes_on_reading_our_table(deployed: World, how: str, secret: str) -> None:
    """Whoever may read it could keep a newer version from adding its columns."""
    deployed.sql("ALTER TABLE schema_migrations DROP COLUMN adopted")
    with deployed.login(secret) as conn:
        rows(conn, READ_OPEN[how])
        try:
            assert applied(deployed.deploy(context=Context(20), LOCK_TIMEOUT="500ms")) == ["001_things"]
        finally:
            with suppress(Exception):
                rows(conn, "ROLLBACK PREPARED 'tmp_read'")


def test_dry_run_ends_nobody_who_reads_our_table(deployed: World) -> None:
    deployed.sql("ALTER TABLE schema_migrations DROP COLUMN adopted")
    with deployed.login("user") as conn, open_transaction(conn, "SELECT * FROM schema_migrations"):
        with pytest.raises(InitializerError, match="Other sessions blocked it"):
            deployed.deploy({"action": "dry_run"}, context=Context(6), LOCK_TIMEOUT="500ms")
        assert rows(conn, "SELECT true") == [(True,)]


def test_deployments_wait_for_others_that_read_our_table(deployed: World) -> None:
    """Such as for a backup: only limited users are ended."""
    deployed.sql("ALTER TABLE schema_migrations DROP COLUMN adopted")
    with deployed.connection() as conn, open_transaction(conn, "SELECT * FROM schema_migrations"):
        with pytest.raises(InitializerError, match="Other sessions blocked it"):
            deployed.deploy(context=Context(6), LOCK_TIMEOUT="500ms")
        assert rows(conn, "SELECT true") == [(True,)]


def test_deployments_say_who_holds_the_lock_where_it_cannot_be_taken(deployed: World) -> None:
    """A login of others may be another admin's run: it is waited for, and named."""
    with deployed.connection(STRANGER, PASSWORD) as conn:
        rows(conn, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        with pytest.raises(Exception, match=f"user {STRANGER}"):
            deployed.deploy(context=Context(4))


def test_deployments_name_the_holder_whom_another_admin_has_made(deployed: World) -> None:
    """It is a limited user, but PostgreSQL 16 and newer do not let us act for it: it is waited for."""
    as_superuser(deployed, f"GRANT readwrite TO {STRANGER}")
    with deployed.connection(STRANGER, PASSWORD) as conn:
        rows(conn, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        if deployed.server.version < 160000:  # CREATEROLE is enough
            assert applied(deployed.deploy(context=Context(30))) == ["001_things"]
            return
        with pytest.raises(LockError, match=f"user {STRANGER}"):
            deployed.deploy(context=Context(4))


def hold_all_locks(conn: Any, but: int = 0) -> None:
    """All sessions share one table of locks, whose size is set for the server."""
    with pytest.raises(psycopg2.errors.OutOfMemory):
        rows(conn, "SELECT pg_advisory_lock(s) FROM generate_series(1, 10000000) s")
    rows(conn, f"SELECT pg_advisory_unlock(s) FROM generate_series(1, {but}) s")


def test_deployments_name_the_way_out_where_a_login_holds_most_locks_of_the_server(deployed: World) -> None:
    """The file that fails then holds few, so to split it would not help."""
    deployed.write("001_things.sql", "SELECT count(pg_advisory_xact_lock(s)) FROM generate_series(1, 2000) s")
    with deployed.login("user") as conn:
        hold_all_locks(conn, but=1000)
        message = refused(deployed)
        assert "out of shared memory (53200)" in message
        (remedy,) = re.findall(r"another session .*?: (SELECT .*?), and", message)
        assert deployed.sql(remedy)[0][0] == conn.info.backend_pid
    assert applied(deployed.deploy()) == ["001_things"]


def test_deployments_name_the_way_out_where_a_login_holds_all_locks_of_the_server(
    deployed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nobody can log in, and the login is not to blame."""
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 1)
    with deployed.login("user") as conn:
        hold_all_locks(conn)
        assert "a session holds all locks that the server has room for: end it" in refused(deployed)
    assert applied(deployed.deploy()) == ["001_things"]


@pytest.mark.parametrize(
    "change", ["ALTER TABLE schema_migrations DROP adopted", "GRANT INSERT ON schema_migrations TO app_tc"]
)
def test_group_that_drops_its_rights_in_an_open_transaction_stops_no_run(deployed: World, change: str) -> None:
    """It locks the row of our table in pg_class, not the table: whoever holds it is not found, nor ended."""
    deployed.sql(change)
    with deployed.login("user") as conn, open_transaction(conn, "DROP OWNED BY readwrite"):
        assert deployed.deploy(None, Context(20))["status"] == "ok"


def test_groups_that_drop_their_rights_one_of_them_in_an_open_transaction_stop_no_run(deployed: World) -> None:
    with deployed.login("creator") as conn:
        rows(conn, "DROP OWNED BY tablecreator")
    with deployed.login("user") as conn, open_transaction(conn, "DROP OWNED BY readwrite"):
        assert deployed.deploy(None, Context(20))["status"] == "ok"


def test_group_that_has_prepared_to_drop_its_rights_stops_no_run(deployed: World) -> None:
    """No session holds the lock then for which a run waits."""
    deployed.sql("ALTER TABLE schema_migrations DROP adopted")
    with deployed.login("user") as conn:
        for statement in ("BEGIN", "DROP OWNED BY readwrite", "PREPARE TRANSACTION 'tmp_drop'"):
            rows(conn, statement)
        assert deployed.deploy(None, Context(30))["status"] == "ok"


# --- What it leaves open --------------------------------------------------------------------------------------------

OPEN = {
    "GRANT": "GRANT SELECT ON made TO PUBLIC",
    "default privileges": f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT TRUNCATE ON TABLES TO PUBLIC",
    "default privileges of the group": "SET ROLE tablecreator; "
    f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT TRUNCATE ON TABLES TO PUBLIC",
    "a lock": "LOCK TABLE made",
}


@pytest.mark.parametrize("what", OPEN)
@pytest.mark.parametrize("state", ["kept", "first"])
def test_deployments_go_on_where_the_table_creator_leaves_something_open(world: World, what: str, state: str) -> None:
    """What its objects still need is done by a later run; the report says so."""
    close_schema(world)
    world.deploy()
    with world.login("creator") as conn:
        rows(
            conn,
            "CREATE TABLE made (id int); "
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT TRUNCATE ON TABLES TO app_tc",
        )
        rows(
            conn,
            f"SET ROLE tablecreator; ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT TRUNCATE ON TABLES TO app_tc",
        )
        rows(conn, "RESET ROLE")
        if state == "first":
            for creator in ("app_tc", "tablecreator"):
                for kind in ("TABLES", "SEQUENCES"):
                    rows(
                        conn,
                        f"ALTER DEFAULT PRIVILEGES FOR ROLE {creator} IN SCHEMA {SCHEMA} REVOKE ALL ON {kind} "
                        "FROM readwrite, tablecreator",
                    )
        world.write("001_things.sql", "CREATE TABLE things (id int);")
        started = time.monotonic()
        with open_transaction(conn, OPEN[what]):
            report = world.deploy(context=Context(120), LOCK_TIMEOUT="500ms")
        assert applied(report) == ["001_things"]
        assert time.monotonic() - started < 20
    world.deploy()
    with world.login("user") as conn:
        assert rows(conn, "SELECT count(*) FROM made") == [(0,)]


def test_deployments_are_not_slowed_down_by_long_functions(deployed: World) -> None:
    """To find out whether a session can go on after a file, db_setup does not read megabytes."""
    with deployed.login("creator") as conn:
        rows(
            conn,
            f"DO $do$ BEGIN FOR i IN 1..20 LOOP EXECUTE format('CREATE FUNCTION {SCHEMA}.long_%s() RETURNS void "
            "LANGUAGE plpgsql AS %L', i, 'BEGIN NULL; -- ' || (SELECT string_agg(md5(s::text), ' ') "
            "FROM generate_series(1, 30000) s) || E'\\nEND'); END LOOP; END $do$",
        )
    for number in range(2, 6):
        deployed.write(f"00{number}_more.sql", f"CREATE TABLE more{number} (id int);\nDO $$ BEGIN END $$;")

    report = deployed.deploy()

    assert max(entry["duration_ms"] for entry in report["applied"]) < 1000


# --- Floods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2], ids=["one message", "steps"])
def test_deployments_survive_a_flood_of_notices(deployed: World, steps: int, caplog: pytest.LogCaptureFixture) -> None:
    """Of a file's many lines the log has the first, and how many more there were; the next file's are said again."""
    loud = f"DO $$ BEGIN FOR i IN 1..{100000 // steps} LOOP RAISE NOTICE 'loud %', i; END LOOP; END $$;\n"
    deployed.write("001_loud.sql", ("-- no-transaction\n" if steps > 1 else "") + loud * steps)
    deployed.write("002_quiet.sql", "DO $$ BEGIN RAISE NOTICE 'quiet'; END $$;")
    deployed.remove("001_things.sql")

    assert len(deployed.deploy(context=Context(60))["applied"]) == 2

    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("database says")]
    assert len(said) == 202
    assert "database says more lines=99800" in said
    assert said[-1].endswith("text=quiet")


def test_deployments_say_a_notice_when_it_comes(deployed: World, caplog: pytest.LogCaptureFixture) -> None:
    """psycopg2 would keep them until the statement has ended: a flood in memory, all lines with one time."""
    deployed.write(
        "001_slow.sql", "DO $$ BEGIN RAISE NOTICE 'early'; PERFORM pg_sleep(2); RAISE NOTICE 'late'; END $$;"
    )

    deployed.deploy()

    early, late = (record for record in caplog.records if record.getMessage().startswith("database says"))
    assert late.created - early.created > 1


FLOODS = {
    "notices": "DO $$ BEGIN LOOP RAISE NOTICE '%', repeat('x', 1000); END LOOP; END $$;",
    "rows": "SELECT generate_series(1, 2000000000);",
    "rows in steps": "-- no-transaction\nSELECT 1;\nSELECT generate_series(1, 2000000000);",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_deployments_end_in_time_in_a_flood(deployed: World, flood: str) -> None:
    """The deadline is kept while the server talks without end, and the next run goes on."""
    deployed.write("002_loud.sql", FLOODS[flood])
    started = time.monotonic()

    with pytest.raises(InitializerError, match=r"^out of time: 002_loud\.sql"):
        deployed.deploy(context=Context(6))

    assert time.monotonic() - started < 7
    assert deployed.applied() == ["001_things"]
    deployed.remove("002_loud.sql")
    assert deployed.deploy()["status"] == "ok"


def test_long_text_of_others_does_not_hold_a_dry_run_up(deployed: World) -> None:
    with deployed.login("creator") as conn:
        for number, words in enumerate(("aws_s3." * 60_000, "pg_stat_" + "reset" * 60_000)):
            rows(conn, f"CREATE FUNCTION own{number}() RETURNS int LANGUAGE sql AS $$ SELECT 1 -- {words}\n$$")
    deployed.write("002_one.sql", "SELECT 1")
    started = time.monotonic()
    deployed.deploy({"action": "dry_run"})
    assert time.monotonic() - started < 20


def slow_verifier(iterations: int) -> str:
    """What makes whoever logs in hash for long, before the server has said whether the password is right."""
    salt, key = (base64.b64encode(b"x" * size).decode() for size in (16, 32))
    return f"SCRAM-SHA-256${iterations}:{salt}${key}:{key}"


@pytest.mark.parametrize("event", [None, {"action": "rotate"}, {"action": "status"}], ids=str)
def test_deployments_go_on_where_a_login_makes_its_own_trial_slow(
    deployed: World, event: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most that PostgreSQL takes are 2,147 million iterations, which is longer than any Lambda. These take some
    seconds, for which DROP DATABASE waits afterwards; so a trial has one.
    """
    monkeypatch.setattr(database, "TRIAL_TIMEOUT_S", 0)
    with deployed.login("user") as conn:
        rows(conn, f"ALTER ROLE CURRENT_USER PASSWORD '{slow_verifier(3_000_000)}'")
    started = time.monotonic()

    report = deployed.deploy(event, Context(12))

    assert time.monotonic() - started < 8
    if event is None:
        assert report["users"]["app_rw"] == "not tried"
        assert '{"action": "rotate"} replaces it' in report["warnings"][0]
    elif event["action"] == "rotate":
        assert report["users"]["app_rw_clone"] == "rotated"
        assert works(deployed, deployed.secret("user"))
    else:
        assert "takes too long to hash" in report["users"]["app_rw"]


def test_deployments_fetch_a_limited_amount_of_what_others_have_written(deployed: World) -> None:
    """300 functions of 1 MB would fill the function's memory. What is not looked into can do anything."""
    with deployed.login("creator") as conn:
        for number in range(10, 22):
            body = f"CREATE FUNCTION long_{number}() RETURNS int LANGUAGE sql AS $$ SELECT 1 /*{'x' * 1_000_000}*/ $$"
            rows(conn, body)
    for number in (10, 21):
        deployed.write(f"0{number}_calls.sql", f"SELECT long_{number}()")

    tried = deployed.deploy({"action": "dry_run"})["tried"]

    untried = [(entry["name"], entry["untried"]) for entry in tried if entry["untried"]]
    assert untried == [("021_calls", ["it calls long_21, which nothing takes back"])]
    assert sum(len(code) for _, code, _ in deployed.sql(outside.DEFINITIONS_SQL)) <= outside.MOST_CODE

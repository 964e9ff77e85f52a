"""A leaked login ends, and nobody can keep a rotation from happening, or let it happen twice."""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

import psycopg2
import pytest
import secret_store
from harness.attackers import PASSWORD, STRANGER, open_transaction, stranger
from harness.aws import AFTER_WRITE, at
from harness.database import SCHEMA, connect
from harness.logins import as_superuser, works
from harness.world import ADMIN, Context, World, rows
from initializer import InitializerError, UserError

ROTATE = {"action": "rotate"}
BOTH = pytest.mark.parametrize("secret", ["user", "creator"])


def is_alive(conn: Any) -> bool:
    try:
        return rows(conn, "SELECT true") == [(True,)]
    except psycopg2.Error:
        return False


@BOTH
def test_rotation_twice_ends_the_sessions_of_a_leaked_login(deployed: World, secret: str) -> None:
    """One that was open all the time could set a password of its own: it is gone, however often it tries."""
    leaked = deployed.secret(secret)
    with deployed.login(secret) as conn:
        deployed.deploy(ROTATE)
        assert is_alive(conn)  # the application has until the next rotation
        stop = threading.Event()

        def stay() -> None:
            while not stop.is_set():
                try:
                    rows(conn, "ALTER ROLE CURRENT_USER PASSWORD 'mine'")
                except psycopg2.Error:
                    continue

        thread = threading.Thread(target=stay)
        thread.start()
        try:
            deployed.deploy(ROTATE)
        finally:
            stop.set()
            thread.join()
        assert not is_alive(conn)
    assert works(deployed, deployed.secret(secret))
    assert not works(deployed, {**leaked, "password": "mine"})
    assert not works(deployed, leaked)


@BOTH
def test_rotation_of_a_login_that_is_repaired_ends_its_sessions(deployed: World, secret: str) -> None:
    """A password that is replaced is replaced for everybody."""
    with deployed.login(secret) as conn:
        deployed.put_secret(secret, {**deployed.secret(secret), "password": "lost"})

        deployed.deploy()

        assert not is_alive(conn)
    assert works(deployed, deployed.secret(secret))


@BOTH
def test_repair_of_a_login_that_was_locked_ends_its_sessions(deployed: World, secret: str) -> None:
    """NOLOGIN, the first thing that one does about a leak, leaves the open sessions."""
    with deployed.login(secret) as conn:
        deployed.sql(f"ALTER ROLE {deployed.secret(secret)['username']} NOLOGIN")
        assert is_alive(conn)

        deployed.deploy()

        assert not is_alive(conn)
    assert works(deployed, deployed.secret(secret))


def test_rotation_is_not_kept_up_by_a_lock_on_a_table(deployed: World) -> None:
    """The new login is handed out; what is locked keeps its owner for now, which the report says."""
    with deployed.login("creator") as conn:
        rows(conn, "CREATE TABLE locked (id int); CREATE TABLE free (id int)")
        with open_transaction(conn, "LOCK TABLE locked"):
            report = deployed.deploy(ROTATE, Context(60), LOCK_TIMEOUT="500ms")

    assert report["users"]["app_tc_clone"] == "rotated"
    assert works(deployed, deployed.secret("creator"))
    assert any(f"1 objects still belong to app_tc (table {SCHEMA}." in warning for warning in report["warnings"])
    owners = "SELECT relname, relowner::regrole::text FROM pg_class WHERE relname IN ('locked', 'free') ORDER BY 1"
    assert deployed.sql(owners) == [("free", "tablecreator"), ("locked", "app_tc")]


ALL_KINDS = f"""
    CREATE TABLE {SCHEMA}.made (a serial, b int);
    CREATE VIEW {SCHEMA}.seen AS SELECT 1 AS a;
    CREATE MATERIALIZED VIEW {SCHEMA}.kept AS SELECT 1 AS a;
    CREATE SEQUENCE {SCHEMA}.numbers;
    CREATE STATISTICS {SCHEMA}.counts ON a, b FROM {SCHEMA}.made;
    CREATE TYPE {SCHEMA}.pair AS (a int);
    CREATE TYPE {SCHEMA}.span AS RANGE (subtype = int);
    CREATE TYPE {SCHEMA}.mood AS ENUM ('a');
    CREATE DOMAIN {SCHEMA}.short AS int;
    CREATE FUNCTION {SCHEMA}.same(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
    CREATE FUNCTION {SCHEMA}.one(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE PROCEDURE {SCHEMA}.act(INOUT a int) LANGUAGE sql AS 'SELECT 1';
    CREATE AGGREGATE {SCHEMA}.counted(*) (sfunc = int8inc, stype = int8, initcond = '0');
    CREATE AGGREGATE {SCHEMA}.sorted(float8 ORDER BY float8) (sfunc = float8pl, stype = float8);
    CREATE OPERATOR {SCHEMA}.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = {SCHEMA}.same);
    CREATE OPERATOR {SCHEMA}.@@@ (RIGHTARG = int, FUNCTION = {SCHEMA}.one);
    CREATE COLLATION {SCHEMA}.plain FROM "C";
    CREATE CONVERSION {SCHEMA}.latin FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
    CREATE TEXT SEARCH DICTIONARY {SCHEMA}.words (TEMPLATE = simple);
    CREATE TEXT SEARCH CONFIGURATION {SCHEMA}.texts (COPY = simple);
    SELECT lo_create(0)"""
OF_SUPERUSERS = f"""
    CREATE SCHEMA closed; ALTER SCHEMA closed OWNER TO app_tc;
    CREATE FOREIGN DATA WRAPPER wrapper; CREATE SERVER far FOREIGN DATA WRAPPER wrapper;
    GRANT USAGE ON FOREIGN SERVER far TO tablecreator; CREATE USER MAPPING FOR app_tc SERVER far;
    CREATE OPERATOR FAMILY {SCHEMA}.family USING btree;
    ALTER OPERATOR FAMILY {SCHEMA}.family USING btree OWNER TO app_tc"""
IN_TEMPORARY_SCHEMA = "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"
OWNED_BY_LOGIN = """
    SELECT p.type, p.identity FROM pg_shdepend s, pg_identify_object(classid, objid, objsubid) p
    WHERE refobjid = 'app_tc'::regrole AND deptype = 'o' AND p.type NOT IN ('default acl', 'user mapping')
      AND p.schema !~ '^pg_temp'"""


def test_rotation_gives_objects_of_every_kind_to_the_group(deployed: World) -> None:
    """Some have another name in ALTER. The function in its temporary schema leads to the way that gives them one by
    one."""
    as_superuser(deployed, OF_SUPERUSERS)
    with deployed.login("creator") as conn:
        rows(conn, f"{ALL_KINDS}; {IN_TEMPORARY_SCHEMA}")
        report = deployed.deploy(ROTATE)
    assert report["users"]["app_tc_clone"] == "rotated"
    assert report["warnings"] == []
    assert as_superuser(deployed, OWNED_BY_LOGIN) == []


def test_rotation_is_not_stopped_by_what_alter_cannot_give(deployed: World) -> None:
    """An extension keeps its owner."""
    as_superuser(deployed, f"GRANT CREATE ON DATABASE {deployed.dbname} TO tablecreator")
    with deployed.login("creator") as conn:
        rows(conn, f'CREATE EXTENSION "uuid-ossp"; {IN_TEMPORARY_SCHEMA}')
        report = deployed.deploy(ROTATE)
    assert report["users"]["app_tc_clone"] == "rotated"
    assert "1 objects still belong to app_tc (extension" in report["warnings"][0]


class Invocation(Context):
    """An event's delivery: a second one of the same event has the same id."""

    def __init__(self) -> None:
        super().__init__(60)
        self.aws_request_id = str(uuid.uuid4())


def test_rotation_of_an_event_that_is_delivered_twice_happens_once(deployed: World) -> None:
    """The second delivery finds what the first one wrote; another event rotates again."""
    before = deployed.secret("user")
    event = Invocation()

    reports = [deployed.deploy(ROTATE, event) for _ in range(2)]

    assert [set(report["users"].values()) for report in reports] == [{"rotated"}, {"kept"}]
    assert deployed.secret("user")["username"] == "app_rw_clone"
    assert works(deployed, before)
    assert set(deployed.deploy(ROTATE, Invocation())["users"].values()) == {"rotated"}


def test_rotation_that_is_killed_when_it_has_written_the_secret_has_handed_the_tables_on(deployed: World) -> None:
    """The second delivery finds the secret written, and does not come back to what the former login has made."""
    event = Invocation()
    with deployed.login("creator") as conn:
        rows(conn, "CREATE TABLE first (id int)")

    with at(AFTER_WRITE, lambda **_: sys.exit()), pytest.raises(SystemExit):
        deployed.deploy(ROTATE, event, DB_USER_SECRET_NAME=None)
    report = deployed.deploy(ROTATE, event, DB_USER_SECRET_NAME=None)

    assert report["users"] == {"app_tc_clone": "kept"}
    assert deployed.sql("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'first'") == [("tablecreator",)]


def test_session_that_has_become_a_limited_user_does_not_outlive_two_rotations(deployed: World) -> None:
    """PostgreSQL 13 and 14: a login lets a stranger in, whose session stays what SET ROLE has made it."""
    with deployed.login("creator") as conn, suppress(psycopg2.errors.InsufficientPrivilege):
        rows(conn, f"GRANT app_tc TO {STRANGER}")
    with stranger(deployed) as conn:
        with suppress(psycopg2.errors.InsufficientPrivilege):
            rows(conn, "SET ROLE app_tc")
        for _ in range(2):
            deployed.deploy({"action": "rotate"})
        with suppress(psycopg2.Error):
            rows(conn, "ALTER ROLE app_tc PASSWORD 'stolen'")
    with pytest.raises(psycopg2.OperationalError), deployed.connection("app_tc", "stolen"):
        pass


def test_session_of_a_role_that_a_login_let_in_ends_when_that_is_taken_back(deployed: World) -> None:
    """It stays what SET ROLE has made it."""
    deployed.sql(f"CREATE ROLE tmp_guest LOGIN PASSWORD '{PASSWORD}'")
    as_superuser(deployed, "GRANT readwrite TO app_rw WITH ADMIN OPTION")
    with deployed.login("user") as conn:
        rows(conn, "GRANT readwrite TO tmp_guest")
    with stranger(deployed, "tmp_guest") as conn:
        rows(conn, "SET ROLE readwrite")
        deployed.deploy()
        assert not is_alive(conn)


def test_session_of_a_role_that_a_login_let_in_goes_on_in_another_database(deployed: World) -> None:
    """Nobody is asked whether a login may let them in, and what is not ours is not disturbed."""
    as_superuser(deployed, "GRANT readwrite TO app_rw WITH ADMIN OPTION")
    with deployed.login("user") as conn:
        rows(conn, f"GRANT readwrite TO {STRANGER}")
    innocent = connect(deployed.server, "postgres", STRANGER, PASSWORD)
    try:
        assert any("let another role in" in text for text in deployed.deploy()["warnings"])
        assert is_alive(innocent)
    finally:
        innocent.close()


def test_session_of_the_application_goes_on_where_a_stranger_lends_its_role(deployed: World) -> None:
    """Up to PostgreSQL 14 every login can make ours more powerful by itself."""
    as_superuser(deployed, f"CREATE ROLE tmp_power CREATEDB; GRANT tmp_power TO {STRANGER} WITH ADMIN OPTION")
    with stranger(deployed) as conn:
        rows(conn, "GRANT tmp_power TO readwrite")
    with deployed.login("user") as app:
        deployed.deploy()
        assert is_alive(app)


def test_member_of_a_group_whose_lock_is_in_nobodys_way_is_not_ended(deployed: World) -> None:
    """Here she is even in another database; PostgreSQL 16 and newer do not let the admin end her."""
    deployed.deploy({"action": "rotate"})
    as_superuser(deployed, f"CREATE ROLE tmp_alice LOGIN PASSWORD '{PASSWORD}'; GRANT readwrite TO tmp_alice")
    alice = connect(deployed.server, "postgres", "tmp_alice", PASSWORD)
    other = connect(deployed.server, "postgres", deployed.server.user, deployed.server.password)
    rows(alice, "BEGIN; ALTER ROLE tmp_alice SET work_mem = '8MB'")
    rows(other, "BEGIN; ALTER ROLE app_rw CONNECTION LIMIT 50")  # this is in the way, for 6 s
    end = threading.Timer(6, lambda: rows(other, "ROLLBACK"))
    end.start()
    try:
        deployed.deploy({"action": "rotate"}, Context(60))
        end.join()
        assert rows(alice, "SELECT 1") == [(1,)]
    finally:
        alice.close()
        other.close()


def test_rotation_that_is_out_of_time_names_the_way_out(deployed: World) -> None:
    """There is no file that could be split."""
    as_superuser(
        deployed,
        "CREATE FUNCTION traps.slow() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); END'; "
        "CREATE EVENT TRIGGER slow ON ddl_command_start WHEN tag IN ('ALTER DEFAULT PRIVILEGES') "
        "EXECUTE FUNCTION traps.slow()",
    )
    try:
        with pytest.raises(InitializerError, match=r"^out of time\. .* is not done yet\.") as error:
            deployed.deploy(ROTATE, Context(6))
    finally:
        as_superuser(deployed, "DROP EVENT TRIGGER slow")
    step = "Invoke again to go on; if that does not help, raise the function's timeout."
    assert str(error.value).endswith(step)


def test_rotation_says_how_to_get_a_name_that_another_admin_has_taken(deployed: World) -> None:
    """Before PostgreSQL 16 every admin can change it."""
    as_superuser(deployed, f"CREATE ROLE tmp_other LOGIN CREATEROLE PASSWORD '{PASSWORD}'")
    with stranger(deployed, "tmp_other") as conn:
        rows(conn, "CREATE ROLE app_rw_clone")
        if deployed.server.version >= 160000:
            with pytest.raises(UserError, match="role app_rw_clone exists and was made by another admin") as error:
                deployed.deploy(ROTATE)
            rows(conn, str(error.value).partition("As that admin: ")[2].partition(";")[0])
    assert deployed.deploy(ROTATE)["users"]["app_rw_clone"] == "rotated"


# --- A rotation by AWS ----------------------------------------------------------------------------------------------


def leave_pending(world: World, secret: str) -> dict[str, Any]:
    """A version labelled AWSPENDING whose login works, as a rotation has it before its last step."""
    world.sql("CREATE ROLE app_rw_clone LOGIN PASSWORD 'pending'; GRANT readwrite TO app_rw_clone")
    value = {**world.secret(secret), "username": "app_rw_clone", "password": "pending"}
    world.secrets.put_secret_value(SecretId=secret, SecretString=json.dumps(value), VersionStages=["AWSPENDING"])
    return value


def test_rotation_is_refused_while_aws_rotates(deployed: World) -> None:
    """Two at the same time would hand out a login that the other one changes."""
    leave_pending(deployed, "user")
    before = deployed.secret("user")

    with pytest.raises(UserError, match="is being rotated by AWS"):
        deployed.deploy(ROTATE)

    assert deployed.secret("user") == before
    assert works(deployed, before)


@pytest.mark.parametrize("how", ["older than the current one", "for too long"])
def test_rotation_by_aws_that_was_abandoned_stops_nothing(
    deployed: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A label on an old version is not a rotation: logins are repaired and rotated."""
    leave_pending(deployed, "user")
    time.sleep(1.1)
    if how == "for too long":
        monkeypatch.setattr(secret_store, "ROTATION_TAKES", secret_store.ROTATION_TAKES * 0)
    else:
        deployed.put_secret("user", {**deployed.secret("user"), "more": 1})

    assert deployed.deploy(ROTATE)["users"]["app_rw_clone"] == "rotated"
    deployed.put_secret("user", {**deployed.secret("user"), "password": "lost"})
    assert deployed.deploy()["users"]["app_rw"] == "mended"


BACK_DOOR = (
    f"CREATE FUNCTION {SCHEMA}.back() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS "
    "$$ BEGIN EXECUTE 'ALTER ROLE app_tc PASSWORD ''stolen'''; END $$"
)


def get_in(world: World) -> None:
    with stranger(world) as conn, suppress(psycopg2.Error):
        rows(conn, f"SELECT {SCHEMA}.back()")


@pytest.mark.parametrize("when", ["between", "locked before", "mended"])
def test_leaked_table_creator_leaves_no_function_that_gives_its_password_back(deployed: World, when: str) -> None:
    """The function is still the login's own: whoever calls it sets the login's new password."""
    leaked = deployed.secret("creator")
    if when == "locked before":
        with deployed.connection(leaked["username"], leaked["password"]) as conn:
            rows(conn, BACK_DOOR)
            with open_transaction(conn, f"ALTER FUNCTION {SCHEMA}.back() COST 7"):
                deployed.deploy(ROTATE)
                deployed.deploy(ROTATE)
    else:
        if when == "between":
            deployed.deploy(ROTATE)
        with deployed.connection(leaked["username"], leaked["password"]) as conn:
            rows(conn, BACK_DOOR)
        if when == "between":
            deployed.deploy(ROTATE)
        else:
            deployed.put_secret("creator", "{}")
            deployed.deploy()
    get_in(deployed)
    with pytest.raises(psycopg2.OperationalError), deployed.connection("app_tc", "stolen"):
        pass


def test_rotation_is_not_stopped_by_very_many_locked_tables(deployed: World) -> None:
    """Giving what is not locked to the group takes a moment for each table that is."""
    each = "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('{}', i); END LOOP; END $$"
    with deployed.login("creator") as conn:
        rows(conn, each.format(f"CREATE TABLE {SCHEMA}.t%s (id int)"))
        lock = each.format(f"LOCK TABLE {SCHEMA}.t%s")
        with open_transaction(conn, lock):
            report = deployed.deploy(ROTATE, Context(25))
    assert report["users"]["app_tc_clone"] == "rotated"


GIFTS = {
    "default of a login": (
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT ALL ON TABLES TO {STRANGER}",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE app_tc IN SCHEMA {SCHEMA} REVOKE ALL ON TABLES FROM {STRANGER}",
    ),
    "default of the group, in every schema": (
        "SET ROLE tablecreator; ALTER DEFAULT PRIVILEGES GRANT SELECT ON SEQUENCES TO PUBLIC; RESET ROLE",
        "ALTER DEFAULT PRIVILEGES FOR ROLE tablecreator REVOKE ALL ON SEQUENCES FROM PUBLIC",
    ),
    "routine that runs as its owner": (
        f"CREATE FUNCTION {SCHEMA}.back(s text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER "
        "AS 'BEGIN EXECUTE s; END'",
        f"REVOKE ALL ON ROUTINE {SCHEMA}.back(text) FROM PUBLIC",
    ),
    "view": (
        f"CREATE VIEW {SCHEMA}.back AS SELECT * FROM items; GRANT ALL ON {SCHEMA}.back TO PUBLIC",
        f"REVOKE ALL ON TABLE {SCHEMA}.back FROM PUBLIC",
    ),
    "column": (
        f"CREATE TABLE {SCHEMA}.back (x int); GRANT SELECT (x) ON {SCHEMA}.back TO {STRANGER}",
        f"REVOKE ALL ON TABLE {SCHEMA}.back FROM {STRANGER}",
    ),
}


@pytest.mark.parametrize("gift", GIFTS)
def test_rotation_names_what_a_table_creator_has_given_to_others(deployed: World, gift: str) -> None:
    """It outlives every password. The statement in the warning takes it back, after which nothing is said of it."""
    given, remedy = GIFTS[gift]
    deployed.write("001_items.sql", "CREATE TABLE items (id int); GRANT SELECT ON items TO tmp_stranger;")
    deployed.deploy()
    with deployed.login("creator") as conn:
        rows(conn, given)

    deployed.deploy(ROTATE)
    warnings = deployed.deploy(ROTATE)["warnings"]

    grantee = remedy.rpartition(" ")[2]
    assert warnings == [
        f"{grantee} keeps what a login of tablecreator has granted or left open, whatever becomes of its password; "
        f"unless that is right: {remedy}"
    ]
    deployed.sql(remedy)
    assert deployed.deploy(ROTATE)["warnings"] == []


def test_rotation_says_nothing_of_what_is_usual(deployed: World) -> None:
    """Rights of our roles and of the admin, what everybody has on new functions and types, and temporary objects."""
    with deployed.login("creator") as conn:
        rows(conn, "CREATE TABLE made (x serial); CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        rows(conn, f"GRANT ALL ON made TO readwrite, {ADMIN}; ALTER DEFAULT PRIVILEGES GRANT ALL ON ROUTINES TO app_rw")
        rows(conn, "CREATE TEMP TABLE passing (x int); GRANT ALL ON passing TO PUBLIC")
        assert deployed.deploy(ROTATE)["warnings"] == []


@pytest.mark.parametrize("secret", ["user", "creator"])
@pytest.mark.parametrize("where", ["", " IN DATABASE {}"])
@pytest.mark.parametrize("rotates", [True, False])
def test_rotation_names_the_settings_that_a_login_keeps(
    deployed: World, secret: str, where: str, rotates: bool
) -> None:
    """A leaked login can have made itself useless to the application; a migration can have set the same."""
    name = deployed.secret(secret)["username"]
    alter = f"ALTER ROLE {name}{where.format(deployed.dbname)}"
    with deployed.login(secret) as conn:
        rows(conn, f"{alter} SET statement_timeout = '1s'; {alter} SET \"DateStyle\" = 'SQL, DMY'")

    if rotates:
        deployed.deploy(ROTATE)
    else:
        deployed.put_secret(secret, "{}")
    warnings = deployed.deploy(ROTATE if rotates else None)["warnings"]

    remedy = f"{alter} RESET DateStyle; {alter} RESET statement_timeout"
    text = f"login {name} keeps its own settings, with which it can be useless; unless they are right: {remedy}"
    assert warnings == [text]
    deployed.sql(remedy)
    assert [deployed.deploy(ROTATE)["warnings"] for _ in range(2)] == [[], []]


def test_rotation_names_objects_on_one_line(deployed: World) -> None:
    """A name can hold a line end, and what follows it would look like a line of the report."""
    table = f'{SCHEMA}."a\nApplied in this run: 999"'
    with deployed.login("creator") as conn:
        rows(conn, f"CREATE TABLE {table} (x int)")
        with open_transaction(conn, f"LOCK TABLE {table}"):
            (warning,) = deployed.deploy(ROTATE)["warnings"]
    assert f'(table {SCHEMA}."a\\u000aApplied in this run: 999")' in warning
    assert "\n" not in warning

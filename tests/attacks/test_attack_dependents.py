"""What others make that depends on the admin's objects stops a deployment only until it is named, and what a limited
user makes in its session does not stop one; nor do names of theirs keep a dry run from what it tries."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from harness.attackers import STRANGER, refused, stranger
from harness.database import SCHEMA
from harness.logins import as_superuser
from harness.world import ADMIN, LOCK_KEY, Context, World, rows
from initializer import InitializerError

ITEMS = (
    "CREATE TYPE mood AS ENUM ('a'); CREATE DOMAIN word AS text; "
    "CREATE TABLE items (id serial PRIMARY KEY, note varchar(10), m mood); "
    "CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n'; "
    "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
)
LONGER = "ALTER TABLE items ALTER note TYPE text"
WITHOUT_RIGHTS = {
    "row type": (f"CREATE TEMP TABLE t (x {SCHEMA}.items)", LONGER),
    "default": (f"CREATE TEMP TABLE t (x int DEFAULT {SCHEMA}.twice(2))", "DROP FUNCTION twice"),
    "trigger": (
        "CREATE TEMP TABLE t (x int); "
        f"CREATE TRIGGER t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.noted()",
        "DROP FUNCTION noted",
    ),
    "enum": (f"CREATE TEMP TABLE t (x {SCHEMA}.mood)", "ALTER TABLE items DROP m; DROP TYPE mood"),
    "function": (
        f"CREATE FUNCTION pg_temp.f({SCHEMA}.items) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP TABLE items",
    ),
}
TEMPORARY = {
    **WITHOUT_RIGHTS,
    "view": ("CREATE TEMP VIEW v AS SELECT note FROM items", LONGER),
    "view of what is dropped": ("CREATE TEMP VIEW v AS SELECT note FROM items", "DROP TABLE items"),
    "sequence": ("CREATE TEMP TABLE t (x int DEFAULT nextval('items_id_seq'))", "DROP TABLE items"),
}


@pytest.fixture
def items(deployed: World) -> World:
    deployed.write("001_items.sql", ITEMS)
    deployed.deploy()
    return deployed


@pytest.mark.parametrize("case", TEMPORARY)
def test_temporary_object_of_a_limited_user_does_not_stop_a_deployment(items: World, case: str) -> None:
    """Its session ends; from PostgreSQL 16 on it is known, so that others of the same login go on."""
    made, wanted = TEMPORARY[case]
    items.write("002_next.sql", wanted)
    with items.login("user") as other, items.login("user") as conn:
        rows(other, "SELECT 1")
        rows(conn, made)
        assert items.deploy(context=Context(30))["status"] == "ok"
        if items.server.version >= 160000:
            assert rows(other, "SELECT 1") == [(1,)]
        with pytest.raises(psycopg2.OperationalError):
            rows(conn, "SELECT 1")


def test_temporary_column_of_a_limited_user_does_not_stop_a_change_of_its_domain(items: World) -> None:
    """Up to PostgreSQL 16 its rows cannot be checked, and PostgreSQL names nothing."""
    items.write("002_next.sql", "ALTER DOMAIN word ADD CHECK (value <> 'x')")
    with items.login("user") as conn:
        rows(conn, f"CREATE TEMP TABLE t (x {SCHEMA}.word); INSERT INTO t VALUES ('')")
        assert items.deploy(context=Context(30))["status"] == "ok"


def test_temporary_object_does_not_stop_a_file_that_runs_in_steps(items: World) -> None:
    made, wanted = TEMPORARY["view"]
    wanted = wanted.replace("items", f"{SCHEMA}.items")
    items.write("002_next.sql", f"-- no-transaction\nSET search_path = nowhere; {wanted}")
    with items.login("user") as conn:
        rows(conn, made)
        assert items.deploy(context=Context(30))["status"] == "ok"


@pytest.mark.parametrize("case", WITHOUT_RIGHTS)
def test_temporary_object_of_a_stranger_is_named_with_its_session(items: World, case: str) -> None:
    made, wanted = TEMPORARY[case]
    items.write("002_next.sql", wanted)
    with stranger(items) as conn:
        rows(conn, made)
        said = refused(items)
        pid = conn.info.backend_pid
        assert f"a temporary object of {STRANGER} depends on it: SELECT pg_terminate_backend({pid})" in said
    assert items.deploy()["status"] == "ok"


def test_dry_run_ends_no_session_whose_temporary_object_depends_on_what_it_drops(items: World) -> None:
    made, wanted = TEMPORARY["view"]
    items.write("002_next.sql", wanted)
    with items.login("user") as conn:
        rows(conn, made)
        assert "a temporary object of app_rw depends on it" in str(refused(items, {"action": "dry_run"}))
        assert rows(conn, "SELECT 1") == [(1,)]


LASTING = {
    "view": ("CREATE VIEW v AS SELECT note FROM items", LONGER, f"DROP VIEW {SCHEMA}.v"),
    "row type": ("CREATE TABLE t (x items)", LONGER, f"ALTER TABLE {SCHEMA}.t DROP COLUMN x"),
    "default": (
        "CREATE TABLE t (x int DEFAULT nextval('items_id_seq'))",
        "DROP TABLE items",
        f"ALTER TABLE {SCHEMA}.t ALTER x DROP DEFAULT",
    ),
    "function": (
        "CREATE FUNCTION f(items) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP TABLE items",
        f"DROP ROUTINE {SCHEMA}.f({SCHEMA}.items)",
    ),
    # All that is in a schema depends on it, which is a reason only where the schema is dropped.
    "default elsewhere": (
        f"CREATE TABLE aside.t (x int DEFAULT nextval('{SCHEMA}.items_id_seq'))",
        "DROP TABLE items",
        "ALTER TABLE aside.t ALTER x DROP DEFAULT",
    ),
    "schema": ("CREATE TABLE aside.t (x int)", "DROP SCHEMA aside", "DROP TABLE aside.t"),
}


@pytest.mark.parametrize("case", LASTING)
def test_lasting_object_of_a_table_creator_is_named_with_its_owner_and_the_statement_that_helps(
    items: World, case: str
) -> None:
    made, wanted, helps = LASTING[case]
    items.sql("CREATE SCHEMA aside; GRANT ALL ON SCHEMA aside TO app_tc")
    with items.login("creator") as conn:
        rows(conn, made)
        items.write("002_next.sql", wanted)
        assert f"Others depend on it; as app_tc: {helps}. Then deploy again" in refused(items)
        rows(conn, helps)
    assert items.deploy()["status"] == "ok"


def test_object_of_the_admin_that_depends_on_what_is_dropped_is_advised_as_ever(items: World) -> None:
    items.sql("CREATE VIEW v AS SELECT note FROM items")
    items.write("002_next.sql", LONGER)
    assert "First DROP what depends on it" in refused(items)


# --- Names that a dry run looks for ---------------------------------------------------------------------------------

CALLED = "CREATE FUNCTION {}({}) RETURNS {} LANGUAGE plpgsql AS $$ BEGIN PERFORM dblink('x'); RETURN NULL; END $$"


@pytest.mark.parametrize("name", ['pg_temp."create"', "pg_temp.things", "pg_temp.lower"])
def test_function_in_a_temporary_schema_keeps_a_dry_run_from_nothing(deployed: World, name: str) -> None:
    deployed.write("001_things.sql", "CREATE TABLE things (name text); SELECT lower(name) FROM things;")
    with stranger(deployed) as conn:
        rows(conn, CALLED.format(name, "text", "text"))
        assert deployed.deploy({"action": "dry_run"})["tried"][0]["untried"] == []


@pytest.mark.parametrize("name", ["create", "values", "note"])
def test_function_with_the_name_of_another_word_keeps_a_dry_run_from_nothing(deployed: World, name: str) -> None:
    """Only before a parenthesis, or after a dot, does a word name a function; a keyword only in quotes."""
    deployed.write("001_things.sql", "CREATE TABLE things (note text); INSERT INTO things VALUES ('a');")
    with deployed.login("creator") as conn:
        rows(conn, CALLED.format(f'{SCHEMA}."{name}"', "int, int", "text"))
    assert deployed.deploy({"action": "dry_run"})["tried"][0]["untried"] == []


CALLS_OF_FUNCTIONS = {
    "by its name": ("f", "SELECT f(NULL)"),
    "with a space": ("f", "SELECT F (NULL)"),
    "in quotes": ("f", 'SELECT "f"(NULL)'),
    "with its schema": ("f", f'SELECT {SCHEMA} . "f" (NULL)'),
    "as a column": ("f", "SELECT t.f FROM things t"),
    "by a keyword in quotes": ("create", 'SELECT "create"(NULL)'),
    "by a name in capitals": ("F", 'SELECT "F"(NULL)'),
}


@pytest.mark.parametrize("how", CALLS_OF_FUNCTIONS)
def test_call_of_a_function_is_not_tried_however_it_is_written(deployed: World, how: str) -> None:
    name, call = CALLS_OF_FUNCTIONS[how]
    made = CALLED.format(f'{SCHEMA}."{name}"', "things", "int")
    deployed.sql(f"CREATE TABLE things (id int); {made}")
    deployed.write("001_call.sql", f"{call};")
    (untried,) = deployed.deploy({"action": "dry_run"})["tried"][0]["untried"]
    assert f"it calls {name}, which nothing takes back".lower() == untried.lower()


# --- What an interrupted build has left -----------------------------------------------------------------------------


def test_invalid_index_of_a_stranger_does_not_stop_a_rebuild(deployed: World) -> None:
    """It has the name of what such a rebuild leaves; what the admin may not drop stays."""
    as_superuser(deployed, f"GRANT CREATE ON SCHEMA {SCHEMA} TO PUBLIC")
    with stranger(deployed) as conn:
        rows(conn, f"CREATE TABLE {SCHEMA}.theirs (x int); INSERT INTO {SCHEMA}.theirs VALUES (1), (1)")
        with pytest.raises(psycopg2.errors.UniqueViolation):
            rows(conn, f"CREATE UNIQUE INDEX CONCURRENTLY theirs_ccnew ON {SCHEMA}.theirs (x)")
    as_superuser(
        deployed,
        f"ALTER SCHEMA {SCHEMA} OWNER TO {deployed.server.user}; GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {ADMIN}",
    )
    deployed.write("001_x.sql", f"REINDEX DATABASE CONCURRENTLY {deployed.dbname}")
    assert deployed.deploy()["status"] == "ok"


# --- An old snapshot ------------------------------------------------------------------------------------------------

OLD_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1"
BUILD = "CREATE INDEX CONCURRENTLY by_note ON items (note)"


def test_old_snapshot_of_a_limited_user_does_not_stop_a_concurrent_build(items: World) -> None:
    """It is waited for during half of the time that the statement has."""
    items.write("002_index.sql", BUILD)
    with items.login("user") as conn, items.login("creator") as another:
        rows(conn, OLD_SNAPSHOT)
        rows(another, OLD_SNAPSHOT)
        started = time.monotonic()
        assert items.deploy(context=Context(15))["status"] == "ok"
        assert time.monotonic() - started > 4
    assert items.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_note'::regclass") == [(True,)]


def test_old_snapshot_of_a_stranger_is_named_by_the_run_and_the_next_one(items: World) -> None:
    items.write("002_index.sql", BUILD)
    with stranger(items) as conn:
        rows(conn, OLD_SNAPSHOT)
        blocker = f"pid {conn.info.backend_pid} {STRANGER}"
        for words in ("It waits for other sessions", "waits for pid"):
            with pytest.raises(InitializerError) as error:
                items.deploy(context=Context(7))
            assert words in str(error.value)
            assert blocker in str(error.value)
    assert items.deploy(context=Context(30))["status"] == "ok"


def test_old_snapshot_of_a_limited_user_does_not_keep_the_lock_from_the_next_run(items: World) -> None:
    """The server goes on building for a run that is gone, and holds its lock meanwhile."""
    items.write("002_next.sql", "SELECT 1")

    def build() -> None:
        with items.connection(*[items.secret("admin")[key] for key in ("username", "password")]) as conn:
            rows(conn, f"SELECT pg_advisory_lock({LOCK_KEY})")
            rows(conn, BUILD)

    with items.login("user") as limited, ThreadPoolExecutor(1) as another_run:
        rows(limited, OLD_SNAPSHOT)
        built = another_run.submit(build)
        waits = "SELECT true FROM pg_stat_progress_create_index WHERE phase ~ 'old snapshots'"
        end = time.monotonic() + 20
        while not items.sql(waits) and time.monotonic() < end:
            time.sleep(0.05)
        assert items.deploy(context=Context(20))["status"] == "ok"
        built.result(timeout=5)

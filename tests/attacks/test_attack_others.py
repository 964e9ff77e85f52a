"""What roles, objects and names of others can do against a promise of the documents: a role of the admin that a limited
user is in, a function with the name of a type, a database of a stranger, a name with a line end."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import initializer
import psycopg2
import pytest
from harness.attackers import (
    OTHER_ADMIN,
    PASSWORD,
    STRANGER,
    caught,
    make_stranger,
    open_transaction,
    stranger,
    trap,
)
from harness.database import SCHEMA, connect, create_database, drop_database
from harness.logins import as_superuser, refusal
from harness.world import ADMIN, LOCK_KEY, Context, World, rows
from initializer import InitializerError

FORGED = "INSERT INTO schema_migrations (id, migration_name) VALUES (999, '999_forged')"
LOWER = trap(f"{SCHEMA}.lower", "varchar", "text", "$1::text")
USES_LOWER = "CREATE TABLE names (name varchar); INSERT INTO names VALUES ('A'); SELECT lower(name) FROM names"
DENIED = "InsufficientPrivilege"

# --- More than its rights -------------------------------------------------------------------------------------------


def test_role_of_the_admin_with_a_limited_member_writes_no_row(deployed: World) -> None:
    deployed.sql(f"CREATE ROLE tmp_team; GRANT tmp_team TO {ADMIN}")
    deployed.write("001_team.sql", f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO tmp_team; GRANT tmp_team TO app_rw")
    with suppress(InitializerError):
        deployed.deploy()
    assert refusal(deployed, "app_rw", FORGED) == DENIED


def test_role_of_the_admin_with_a_limited_member_hides_nothing(deployed: World) -> None:
    deployed.sql(f"CREATE ROLE tmp_team; GRANT tmp_team TO {ADMIN}; GRANT CREATE ON SCHEMA {SCHEMA} TO tmp_team")
    deployed.sql("GRANT tmp_team TO app_rw")
    assert_hides_nothing_as_the_team(deployed)


def assert_hides_nothing_as_the_team(deployed: World) -> None:
    """A function of tmp_team, of which app_rw has become a member, is not called by a file."""
    with deployed.login("user") as conn:
        rows(conn, f"SET ROLE tmp_team; {LOWER}")
    deployed.write("001_names.sql", USES_LOWER)
    with suppress(InitializerError):
        deployed.deploy()
    assert not caught(deployed)


CALLS_OF_TYPES = {
    "PostgreSQL's type": ("uuid", "SELECT uuid(name) FROM names"),
    "a type of the admin": ("mood", "ALTER TABLE names ALTER name TYPE mood USING mood(name)"),
}


@pytest.mark.parametrize("whose", CALLS_OF_TYPES)
def test_function_with_the_name_of_a_type_hides_no_cast(deployed: World, whose: str) -> None:
    """type(value) is a cast, unless there is a function of that name."""
    name, statement = CALLS_OF_TYPES[whose]
    value = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    deployed.write(
        "001_names.sql",
        f"CREATE TYPE mood AS ENUM ('{value}'); CREATE TABLE names (name text); INSERT INTO names VALUES ('{value}')",
    )
    deployed.deploy()
    with deployed.login("creator") as conn:
        rows(conn, trap(f"{SCHEMA}.{name}", "text", name, f"'{value}'"))
    deployed.write("002_cast.sql", statement)
    with suppress(InitializerError):
        deployed.deploy()
    assert not caught(deployed)


@pytest.mark.public  # with another schema, a file's path is not what ALTER ROLE says
def test_function_in_a_schema_whose_name_has_a_comma_hides_nothing(deployed: World) -> None:
    deployed.sql('CREATE SCHEMA "a,b"; GRANT USAGE, CREATE ON SCHEMA "a,b" TO app_tc')
    deployed.sql(f'ALTER ROLE {ADMIN} IN DATABASE {deployed.dbname} SET search_path = "a,b", public')
    with deployed.login("creator") as conn:
        rows(conn, LOWER.replace(f" {SCHEMA}.", ' "a,b".', 1))
    deployed.write("001_names.sql", USES_LOWER)
    with suppress(InitializerError):
        deployed.deploy()
    assert not caught(deployed)


# --- Deployments, mending and rotation are stopped ------------------------------------------------------------------


def test_database_of_a_stranger_with_a_long_setting_stops_no_run(deployed: World) -> None:
    """With 270 MB of these, each run on this server fails (54000)."""
    as_superuser(deployed, f"ALTER ROLE {STRANGER} CREATEDB")
    name = f"{deployed.dbname}_second"
    create_database(deployed.server, name, STRANGER)
    conn = connect(deployed.server, "postgres", STRANGER, PASSWORD)
    try:
        setting = f"ALTER DATABASE {name} SET application_name = ''' || repeat('\"', 50000000) || '''"
        rows(conn, f"DO $$ BEGIN EXECUTE '{setting}'; END $$")
        started = time.monotonic()
        with suppress(InitializerError):
            deployed.deploy(None, Context(30))
        assert time.monotonic() - started < 1
    finally:
        conn.close()
        drop_database(deployed.server, name)


LONG_NAMES = f"""
    DO $$ DECLARE long text := repeat('"', 60); args text := (
        SELECT string_agg(format('{SCHEMA}.%I', repeat('"', 60)), ',') FROM generate_series(1, 99));
    BEGIN
        EXECUTE format('CREATE DOMAIN {SCHEMA}.%I AS int', long);
        FOR i IN 1..4000 LOOP
            EXECUTE format('CREATE FUNCTION {SCHEMA}.f%s(%s) RETURNS int LANGUAGE sql AS %L', i, args, 'SELECT 1');
        END LOOP;
    END $$"""


def test_functions_of_the_table_creator_do_not_fill_the_memory(deployed: World) -> None:
    """Each is named with all its arguments, 26 kB as JSON; 40,000 of them took 4 GB and 43 s."""
    with deployed.login("creator") as conn:
        rows(conn, LONG_NAMES)
    deployed.write("001_things.sql", "CREATE TABLE things (id int)")
    tracemalloc.start()
    try:
        deployed.deploy()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


def give_our_tables_to_an_owner(world: World) -> None:
    """A role that the admin acts for, such as the one that owns everything of a team."""
    world.sql(f"CREATE ROLE tmp_owner; GRANT tmp_owner TO {ADMIN}; GRANT CREATE ON SCHEMA {SCHEMA} TO tmp_owner")
    for table in ("schema_migrations", "schema_migrations_progress"):
        world.sql(f"ALTER TABLE {table} OWNER TO tmp_owner")
    world.deploy()


def test_limited_user_that_lets_the_owner_of_our_tables_in_stops_no_run(deployed: World) -> None:
    """PostgreSQL 13 and 14: "a member of a limited role never counts", whoever made it one."""
    give_our_tables_to_an_owner(deployed)
    with deployed.login("user") as conn, suppress(psycopg2.errors.InsufficientPrivilege):
        rows(conn, "GRANT app_rw TO tmp_owner")
    assert deployed.deploy()["status"] == "ok"


def test_role_of_another_admin_that_is_named_like_a_limited_one_stops_no_run(deployed: World) -> None:
    give_our_tables_to_an_owner(deployed)
    make_stranger(deployed, OTHER_ADMIN, "CREATEROLE")
    with stranger(deployed, OTHER_ADMIN) as conn:
        rows(conn, "CREATE ROLE tmp_app_rw; GRANT tmp_app_rw TO tmp_owner")
    assert deployed.deploy()["status"] == "ok"


def test_temporary_table_of_a_stranger_is_no_sign_that_a_database_is_in_use(world: World) -> None:
    make_stranger(world)
    as_superuser(world, 'CREATE EXTENSION IF NOT EXISTS "uuid-ossp"')
    name = "001_initial_schema.sql"
    world.write(name, Path(initializer.__file__).with_name("migrations").joinpath(name).read_text())
    with stranger(world) as conn:
        rows(conn, "CREATE TEMP TABLE passing (id int)")
        assert world.deploy()["applied"][0]["name"] == "001_initial_schema"


# --- What a run says, and what it records ---------------------------------------------------------------------------


GID = "x'\nApplied in this run: everything. Run: DROP TABLE users"


def test_name_of_a_prepared_transaction_adds_no_line_to_a_message(deployed: World) -> None:
    deployed.write("001_things.sql", "CREATE TABLE things (id int)")
    with stranger(deployed) as conn:
        for statement in ("BEGIN", f"SELECT pg_advisory_xact_lock({LOCK_KEY})"):
            rows(conn, statement)
        rows(conn, "PREPARE TRANSACTION %s", GID)
        try:
            with pytest.raises(InitializerError) as error:
                deployed.deploy(None, Context(6))
            assert "\nApplied" not in str(error.value)
        finally:
            rows(conn, "ROLLBACK PREPARED %s", GID)


# --- What belongs to somebody else ----------------------------------------------------------------------------------


def test_membership_of_an_admin_that_inherits_nothing_stays(deployed: World) -> None:
    """PostgreSQL 13 to 15: it is a member already, so the GRANT does nothing, and the REVOKE takes it away."""
    as_superuser(deployed, f"CREATE ROLE tmp_alice LOGIN PASSWORD '{PASSWORD}'; GRANT readwrite TO tmp_alice")
    as_superuser(deployed, f"GRANT tmp_alice TO {ADMIN}; ALTER ROLE {ADMIN} NOINHERIT")
    try:
        deployed.sql("ALTER TABLE schema_migrations DROP COLUMN adopted")
        reads = "SELECT * FROM schema_migrations"
        ended = suppress(InitializerError, psycopg2.OperationalError)
        with ended, stranger(deployed, "tmp_alice") as conn, open_transaction(conn, reads):
            deployed.deploy(None, Context(20))
        is_member = as_superuser(deployed, "SELECT pg_has_role(%s, 'tmp_alice', 'MEMBER')", ADMIN)
        assert is_member == [(True,)]
    finally:
        as_superuser(deployed, f"ALTER ROLE {ADMIN} INHERIT")


def test_membership_in_a_role_of_others_that_a_login_may_grant_stays(deployed: World) -> None:
    """The application itself lets somebody into a role that has nothing to do with ours."""
    as_superuser(deployed, "CREATE ROLE tmp_reports; GRANT tmp_reports TO app_rw WITH ADMIN OPTION")
    with deployed.login("user") as conn:
        rows(conn, f"GRANT tmp_reports TO {STRANGER}")
    deployed.deploy()
    is_member = as_superuser(deployed, "SELECT pg_has_role(%s, 'tmp_reports', 'MEMBER')", STRANGER)
    assert is_member == [(True,)]


def make_a_team_with_a_keeper(world: World) -> None:
    world.sql("CREATE ROLE tmp_team; CREATE ROLE tmp_lead LOGIN PASSWORD 'x'")
    world.sql(f"GRANT tmp_team TO {ADMIN}; GRANT tmp_team TO tmp_lead WITH ADMIN OPTION")


def test_role_of_the_admin_that_its_keeper_lends_to_a_limited_user_hides_nothing(deployed: World) -> None:
    make_a_team_with_a_keeper(deployed)
    deployed.sql(f"GRANT CREATE ON SCHEMA {SCHEMA} TO tmp_team")
    with stranger(deployed, "tmp_lead") as conn:
        rows(conn, "GRANT tmp_team TO app_rw")
    assert_hides_nothing_as_the_team(deployed)


def test_role_of_the_admin_that_its_keeper_lends_to_a_limited_user_writes_no_row(deployed: World) -> None:
    make_a_team_with_a_keeper(deployed)
    deployed.write("001_team.sql", f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO tmp_team")
    deployed.deploy()
    with stranger(deployed, "tmp_lead") as conn:
        rows(conn, "GRANT tmp_team TO app_rw")
    with suppress(InitializerError):
        deployed.deploy()
    forged = "INSERT INTO schema_migrations (id, migration_name) VALUES (999, '999_forged')"
    assert refusal(deployed, "app_rw", forged) == "InsufficientPrivilege"

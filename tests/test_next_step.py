"""What a message asks for where no file is at fault helps: the operator has nothing but the message."""

from __future__ import annotations

from typing import Any

import pytest
from harness.database import SCHEMA
from harness.world import ADMIN, World, rows
from initializer import ConnectError, InitializerError, UserError


def message_of(world: World, kind: type[InitializerError], event: Any = None, **environ: str) -> str:
    """The message with which a run fails."""
    with pytest.raises(kind) as caught:
        world.deploy(event, **environ)
    return str(caught.value)


def as_superuser(world: World, statement: str) -> None:
    with world.superuser() as superuser:
        rows(superuser, statement)


def test_timeout_that_is_set_for_the_database_ends_no_migration(world: World) -> None:
    """What limits an application's transactions is not meant for a migration; PostgreSQL 17 has a new one."""
    name = "transaction_timeout" if world.server.version >= 170000 else "statement_timeout"
    as_superuser(world, f"ALTER DATABASE {world.dbname} SET {name} = '1s'")
    world.write("001_a.sql", "SELECT pg_sleep(1.5); CREATE TABLE a (i int);")

    assert [entry["name"] for entry in world.deploy(CREATE_USERS="false")["applied"]] == ["001_a"]


READ_ONLY = {  # by its source, as PostgreSQL calls that
    "database": "DATABASE {db}",
    "user": f"ROLE {ADMIN}",
    "database user": f"ROLE {ADMIN} IN DATABASE {{db}}",
}


@pytest.mark.parametrize("source", READ_ONLY)
def test_database_that_is_read_only_on_purpose_is_refused_with_the_place_of_the_setting(
    world: World, source: str
) -> None:
    """Nothing is overridden: the setting is named, where it is set, and statements that take it away."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    where = READ_ONLY[source].format(db=world.dbname)
    undo = f"SET default_transaction_read_only = off; ALTER {where} RESET default_transaction_read_only"
    as_superuser(world, f"ALTER {where} SET default_transaction_read_only = on")
    try:
        message = message_of(world, ConnectError)
    finally:
        with world.superuser() as superuser:
            for statement in undo.split("; "):
                rows(superuser, statement)

    assert message == (
        f"{world.dbname} on {world.server.host} is read-only: default_transaction_read_only is on (set for: {source}). "
        f"Nothing has been changed. If it is to be written: {undo}; then invoke again."
    )
    assert [entry["name"] for entry in world.deploy()["applied"]] == ["001_a"]


@pytest.mark.public
def test_schema_public_that_is_missing_is_named_with_what_needs_it(world: World) -> None:
    """The tracking table has no other place."""
    world.write("001_a.sql", "CREATE SCHEMA other; CREATE TABLE other.a (i int);")
    as_superuser(world, "DROP SCHEMA public CASCADE")

    assert message_of(world, InitializerError, CREATE_USERS="false") == (
        'PostgreSQL: schema "public" does not exist (3F000). Whatever was not finished is rolled back. db_setup keeps '
        "its table in schema public, which is missing: CREATE SCHEMA public, as the admin, and invoke again."
    )

    world.sql("CREATE SCHEMA public")
    assert [entry["name"] for entry in world.deploy(CREATE_USERS="false")["applied"]] == ["001_a"]


def test_admin_that_may_not_make_roles_is_told_which_right_it_lacks(world: World) -> None:
    """The files have run, and stay applied; a deployment without users is the other way out."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    as_superuser(world, f"ALTER ROLE {ADMIN} NOCREATEROLE")
    try:
        message = message_of(world, InitializerError)
    finally:
        as_superuser(world, f"ALTER ROLE {ADMIN} CREATEROLE")

    assert message == (
        "PostgreSQL: permission denied to create role (42501). Whatever was not finished is rolled back. Give the "
        "admin CREATEROLE, or set CREATE_USERS to false; then invoke again."
    )
    assert [entry["name"] for entry in world.deploy()["applied"]] == ["001_a"]


def test_connect_that_the_admin_may_not_grant_is_said_before_any_password_changes(world: World) -> None:
    """PostgreSQL only warns. No role and no secret changes, at this run or the next."""
    as_superuser(world, f"REVOKE CONNECT ON DATABASE {world.dbname} FROM PUBLIC")
    as_superuser(world, f"ALTER DATABASE {world.dbname} OWNER TO CURRENT_USER")
    as_superuser(world, f"GRANT CONNECT, CREATE ON DATABASE {world.dbname} TO {ADMIN}")
    as_superuser(world, f"ALTER SCHEMA {SCHEMA} OWNER TO {ADMIN}")
    expected = (
        f"{ADMIN} may not grant CONNECT on database {world.dbname} to readwrite. No role has been changed. As the "
        f"database's owner: GRANT CONNECT ON DATABASE {world.dbname} TO readwrite; then invoke again."
    )

    for _ in range(2):
        assert message_of(world, UserError) == expected

    assert (world.versions("user"), world.versions("creator")) == (0, 0)


PREDECESSORS_TABLE = (
    "CREATE TABLE schema_migrations (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, "
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
)
PATH_ADVICE = (
    f"write the schema before each name in that function, or ALTER FUNCTION {SCHEMA}.note() SET search_path = {SCHEMA}"
)
PASS_ADVICE = "let it pass what the admin does, or ALTER EVENT TRIGGER notes DISABLE, as its owner"
NOTES = {  # what its function does; what PostgreSQL says of it, and what is advised
    "names": ("INSERT INTO audit VALUES (tg_tag)", 'relation "audit" does not exist (42P01)', PATH_ADVICE),
    "guard": ("RAISE 'no % on Fridays', tg_tag", "no … on Fridays (P0001)", PASS_ADVICE),
}


@pytest.mark.parametrize("event", ["ddl_command_start", "ddl_command_end"])
@pytest.mark.parametrize("what", NOTES)
@pytest.mark.parametrize("when", ["first run", "upgrade", "rights of users"])
def test_event_trigger_that_fails_our_own_statement_is_named_with_its_function(
    world: World, when: str, what: str, event: str
) -> None:
    """Our statements run under a search path of their own, in which unqualified names of a function mean nothing."""
    world.write("001_a.sql", "SELECT 1;")
    if when == "upgrade":
        world.sql(PREDECESSORS_TABLE)
    if when == "rights of users":
        world.deploy(CREATE_USERS="false")
    body, said, advice = NOTES[what]
    as_superuser(world, "CREATE TABLE audit (tag text); GRANT INSERT ON audit TO PUBLIC")
    as_superuser(world, f"CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$")
    as_superuser(world, f"CREATE EVENT TRIGGER notes ON {event} EXECUTE FUNCTION note()")

    assert message_of(world, InitializerError) == (
        f"PostgreSQL: {said}. Whatever was not finished is rolled back. It failed in {SCHEMA}.note(), which event "
        f"trigger notes calls: {advice}; then invoke again."
    )

    done = f"ALTER FUNCTION {SCHEMA}.note() SET search_path = {SCHEMA}"
    if what == "guard":
        done = "ALTER EVENT TRIGGER notes DISABLE"
    as_superuser(world, done)
    assert world.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}

"""The third login: it reads what the others use, and is made only where its secret is named."""

from __future__ import annotations

import psycopg2
import pytest
from harness.database import SCHEMA
from harness.logins import as_superuser, give_schema_to, works
from harness.world import ADMIN, World, rows
from initializer import InitializerError

USERS = {"app_rw": "created", "app_tc": "created", "app_ro": "created"}


@pytest.fixture
def reader(world: World) -> World:
    """A world in which a secret for the reader is named."""
    give_schema_to(world, ADMIN)
    world.secrets.create_secret(Name="reader")
    world.environ["DB_READER_SECRET_NAME"] = "reader"
    world.write("001_items.sql", "CREATE TABLE items (id serial PRIMARY KEY);")
    return world


def roles(world: World) -> list[str]:
    found = "SELECT rolname FROM pg_roles WHERE rolname IN ('readonly', 'app_ro', 'app_ro_clone') ORDER BY 1"
    return [name for (name,) in world.sql(found)]


def reads(world: World, table: str) -> bool:
    """Whether the login in the reader's secret can read this table, and not write it."""
    with world.login("reader") as conn:
        rows(conn, f"SELECT * FROM {table}")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            rows(conn, f"INSERT INTO {table} DEFAULT VALUES")
        return True


def test_reader_is_not_made_unless_its_secret_is_named(world: World) -> None:
    """Two logins as before; a role of that name, which a server can have, is not looked at."""
    assert world.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}
    assert roles(world) == []

    as_superuser(world, "CREATE ROLE readonly NOLOGIN")
    world.write("001_later.sql", "CREATE TABLE later (id int);")
    world.deploy()

    assert world.sql("SELECT count(*) FROM pg_auth_members WHERE roleid = 'readonly'::regrole") == [(0,)]
    assert world.sql("SELECT has_table_privilege('readonly', 'later', 'SELECT')") == [(False,)]


def test_reader_reads_what_the_others_make(reader: World) -> None:
    """Tables of the admin and of the table creator, of before and of later; nothing is left to do afterwards."""
    assert reader.deploy()["users"] == USERS
    with reader.login("creator") as conn:
        rows(conn, "CREATE TABLE made (id serial)")
    reader.write("002_later.sql", "CREATE TABLE later (id serial);")
    reader.deploy()

    assert [reads(reader, table) for table in ("items", "made", "later")] == [True] * 3
    assert reader.deploy()["users"] == dict.fromkeys(USERS, "kept")


def test_reader_that_is_named_later_reads_what_is_there(reader: World) -> None:
    """A database with two logins gets the third one, which can read what both have made; a rotation goes on."""
    reader.deploy(DB_READER_SECRET_NAME=None)
    with reader.login("creator") as conn:
        rows(conn, "CREATE TABLE made (id serial)")
    before = reader.secret("user")

    assert reader.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept", "app_ro": "created"}
    assert [reads(reader, table) for table in ("items", "made")] == [True] * 2
    assert reader.secret("user") == before
    old = reader.secret("reader")
    assert reader.deploy({"action": "rotate"})["users"]["app_ro_clone"] == "rotated"
    assert works(reader, old)
    assert reads(reader, "items")


def test_reader_that_could_write_is_refused(reader: World) -> None:
    """Put into the writers' group by the admin: the run says what to revoke, and changes nothing."""
    reader.deploy()
    reader.sql("GRANT readwrite TO app_ro")

    with pytest.raises(InitializerError, match=r"role app_ro is more powerful than .* through readwrite"):
        reader.deploy()


def test_reader_needs_a_secret_of_its_own(reader: World) -> None:
    """Two logins in one secret would overwrite each other."""
    with pytest.raises(InitializerError, match=r"DB_READER_SECRET_NAME: secret 'user' is named for two users"):
        reader.deploy(DB_READER_SECRET_NAME="user")


def test_reader_is_not_trusted_once_its_secret_is_not_named(reader: World) -> None:
    """In a schema that is open to everybody it has made, as its group, a function that a file would call."""
    as_superuser(reader, f"ALTER SCHEMA {SCHEMA} OWNER TO CURRENT_USER; GRANT CREATE ON SCHEMA {SCHEMA} TO PUBLIC")
    as_superuser(reader, f"GRANT ALL ON SCHEMA {SCHEMA} TO {ADMIN} WITH GRANT OPTION")
    reader.deploy()
    planted = "CREATE FUNCTION lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT current_user::text'"
    with reader.login("reader") as conn:
        rows(conn, f"SET ROLE readonly; {planted}")
    reader.write("002_lower.sql", "SELECT lower('A'::varchar);")

    with pytest.raises(InitializerError, match=r"lower\(character varying\) belongs to readonly, who is not the admin"):
        reader.deploy(DB_READER_SECRET_NAME=None)

"""Who is trusted is not for others to say: memberships that a login grants by itself, logins that the admin has made
for others, and what such a login leaves where a first run looks.
"""

from __future__ import annotations

import json
from contextlib import suppress

import psycopg2
import pytest
from harness.attackers import (
    STRANGER,
    caught,
    close_schema,
    lay_trap,
    make_stranger,
    open_schema,
    refused,
    stranger,
    trap,
)
from harness.database import SCHEMA, create_database, drop_database
from harness.logins import as_superuser
from harness.world import ADMIN, World, rows

LOWER = trap(f"{SCHEMA}.lower", "varchar", "text", "$1::text")
USES_LOWER = "CREATE TABLE names (name varchar); INSERT INTO names VALUES ('A'); SELECT lower(name) FROM names"
FORGED = (
    f"CREATE TABLE {SCHEMA}.schema_migrations (id serial PRIMARY KEY, migration_name varchar(255) UNIQUE NOT NULL, "
    "applied_at timestamp, checksum text, file_sha256 text, adopted boolean); "
    f"INSERT INTO {SCHEMA}.schema_migrations (migration_name) VALUES ('001_names')"
)
LIKE_OURS = (
    f"CREATE TABLE {SCHEMA}.notes (migration_name text, checksum text, file_sha256 text, adopted boolean); "
    f"INSERT INTO {SCHEMA}.notes VALUES ('x', 'x', 'x', true); "
    f"{trap(f'{SCHEMA}.own', 'text', 'boolean', 'false')}; "
    f"CREATE POLICY p ON {SCHEMA}.notes USING ({SCHEMA}.own(migration_name)); "
    f"ALTER TABLE {SCHEMA}.notes ENABLE ROW LEVEL SECURITY; ALTER TABLE {SCHEMA}.notes FORCE ROW LEVEL SECURITY"
)


def let_itself_be_granted(world: World, name: str = STRANGER) -> None:
    """Up to PostgreSQL 14 a login can make others members of itself."""
    with stranger(world, name) as conn, suppress(psycopg2.errors.InsufficientPrivilege):
        rows(conn, f"GRANT {name} TO {ADMIN}")


@pytest.fixture
def opened(world: World, own_path: None) -> World:
    """A new database in whose schema everybody can create, with a stranger that has granted itself."""
    open_schema(world)
    lay_trap(world)
    make_stranger(world)
    let_itself_be_granted(world)
    world.write("001_names.sql", USES_LOWER)
    return world


def test_login_that_grants_itself_to_the_admin_forges_no_row(opened: World) -> None:
    with stranger(opened) as conn:
        rows(conn, FORGED)
    assert "belongs to tmp_stranger, who is not the admin" in refused(opened)


def test_login_that_grants_itself_to_the_admin_hides_nothing(opened: World) -> None:
    with stranger(opened) as conn:
        rows(conn, LOWER)
    assert f"{SCHEMA}.lower(character varying) belongs to tmp_stranger" in refused(opened)
    assert not caught(opened)


def test_login_that_grants_itself_by_another_one_hides_nothing(opened: World) -> None:
    make_stranger(opened, "tmp_second")
    with stranger(opened) as conn, suppress(psycopg2.errors.InsufficientPrivilege):
        rows(conn, f"GRANT {STRANGER} TO tmp_second WITH ADMIN OPTION")
    with stranger(opened, "tmp_second") as conn, suppress(psycopg2.errors.InsufficientPrivilege):
        rows(conn, f"REVOKE {STRANGER} FROM {ADMIN}; GRANT {STRANGER} TO {ADMIN}")
    with stranger(opened) as conn:
        rows(conn, LOWER)
    assert "belongs to tmp_stranger" in refused(opened)
    assert not caught(opened)


def test_login_that_the_admin_has_made_hides_nothing(opened: World) -> None:
    """Since PostgreSQL 16 the admin is a member of it, in name only."""
    opened.sql("CREATE ROLE tmp_made LOGIN PASSWORD 'x'")
    with stranger(opened, "tmp_made") as conn:
        rows(conn, LOWER)
    assert f"{SCHEMA}.lower(character varying) belongs to tmp_made" in refused(opened)
    assert not caught(opened)


def test_table_creator_of_another_prefix_hides_nothing(opened: World) -> None:
    """The same admin has made it, and is a member of it."""
    opened.remove("001_names.sql")
    opened.deploy()
    second = f"{opened.dbname}_second"
    create_database(opened.server, second, ADMIN)
    try:
        login = {**opened.secret("admin"), "dbname": second}
        opened.secrets.create_secret(Name="admin2", SecretString=json.dumps(login))
        for name in ("user2", "creator2"):
            opened.secrets.create_secret(Name=name)
        secrets = {"DB_SECRET_NAME": "admin2", "DB_USER_SECRET_NAME": "user2", "DB_PROXY": "creator2"}
        opened.deploy(ROLE_PREFIX="shop_", **secrets)
        with opened.login("creator2") as conn:
            rows(conn, LOWER)
    finally:
        drop_database(opened.server, second)
    opened.write("001_names.sql", USES_LOWER)
    assert f"{SCHEMA}.lower(character varying) belongs to shop_app_tc" in refused(opened)
    assert not caught(opened)


def test_table_that_looks_like_ours_is_not_read_in_a_first_run(opened: World) -> None:
    with stranger(opened) as conn:
        rows(conn, LIKE_OURS)
    opened.deploy()
    assert not caught(opened)


def test_table_of_a_table_creator_that_looks_like_ours_is_not_read(world: World, own_path: None) -> None:
    close_schema(world)
    lay_trap(world)
    world.write("001_names.sql", "CREATE TABLE names (id int)")
    world.deploy()
    with world.login("creator") as conn:
        rows(conn, LIKE_OURS)
    world.write("001_names.sql", "CREATE TABLE IF NOT EXISTS names (id int, note text)")  # so it is another folder
    world.deploy(MIGRATIONS_TABLE="other_migrations")
    assert not caught(world)


@pytest.mark.public  # with another schema, a file's path is not what ALTER ROLE says
def test_domain_over_an_array_hides_no_type(deployed: World) -> None:
    """It counts among the arrays, whose names nobody writes."""
    as_superuser(deployed, f"ALTER ROLE {ADMIN} IN DATABASE {deployed.dbname} SET search_path = public, pg_catalog")
    with deployed.login("creator") as conn:
        rows(conn, trap("public.own", "text[]", "boolean", "true"))
        rows(conn, "CREATE DOMAIN public.uuid AS text[] CHECK (public.own(VALUE))")
    deployed.write("002_ids.sql", "CREATE TABLE ids (id uuid); INSERT INTO ids VALUES (NULL)")
    assert "public.uuid belongs to app_tc" in refused(deployed)
    assert not caught(deployed)

"""Databases that come without their roles, or with those of another admin: the next deployment makes all that lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from common import UserError
from harness import clients
from harness.database import SCHEMA, create_database, drop_database, drop_roles
from harness.logins import SECRETS, as_superuser, give_schema_to, verifiers, works
from harness.world import ADMIN, ADMIN_PASSWORD, World, rows

OTHER, OTHER_PASSWORD = "tmp_other_admin", "other"
RANDOM = {"user": "tmp_1f2e3d4c5b6a7980", "creator": "tmp_0123456789abcdef"}
GROUPS = {"user": "readwrite", "creator": "tablecreator"}
CREATED = {"app_rw": "created", "app_tc": "created"}
USE = "INSERT INTO {0} (note) VALUES ('x'); UPDATE {0} SET note = 'y'; SELECT * FROM {0}; DELETE FROM {0}"


def may(world: World, secret: str, statement: str) -> bool:
    with world.login(secret) as conn:
        try:
            rows(conn, f"BEGIN; {statement}; ROLLBACK")
        except psycopg2.errors.InsufficientPrivilege:
            return False
        return True


# --- Restored from a dump -------------------------------------------------------------------------------------------


def finish(world: World) -> None:
    """A database with everything: migrations, one that revokes, tables of the table creator and of the admin's hand."""
    give_schema_to(world, ADMIN)
    world.write("001_items.sql", "CREATE TABLE items (id serial, note text); CREATE TABLE private (id int, note text);")
    world.write("002_rights.sql", "REVOKE ALL ON private FROM readwrite; GRANT TRUNCATE ON items TO readwrite;")
    world.write("003_steps.sql", "-- no-transaction\nSELECT 1;\nCREATE INDEX CONCURRENTLY ON items (note);")
    world.deploy()
    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE made (id serial, note text)")
    world.sql("CREATE TABLE by_hand (id serial, note text); INSERT INTO items (note) VALUES ('kept')")


@pytest.fixture
def restored(world: World) -> Iterator[World]:
    """`world`, but in a database restored from a dump of a finished one, with no role of ours on the server."""
    finish(world)
    major = world.server.version // 10000
    env = clients.environment(world.server, ADMIN, ADMIN_PASSWORD, world.dbname)
    as_superuser(world, f"GRANT app_tc TO {ADMIN}")  # or pg_dump could not lock that login's table on 16 and newer
    dump = clients.run(clients.client("pg_dump", max(major, 14)), env=env)
    assert "TO readwrite" in dump
    assert "OWNER TO app_tc" in dump
    drop_database(world.server, world.dbname)
    drop_roles(world.server, "readwrite", "tablecreator", "app\\_rw%", "app\\_tc%")
    name = f"{world.dbname}_restored"
    create_database(world.server, name, ADMIN)
    file = world.folder.with_name("dump.sql")
    file.write_text(dump)
    try:
        world.dbname = name
        give_schema_to(world, ADMIN)
        psql = clients.client("psql", max(major, 14))
        clients.run(psql, "-X", "-q", "-f", str(file), env={**env, "PGDATABASE": name})
        world.put_secret("admin", {**world.secret("admin"), "dbname": name})
        yield world
    finally:
        drop_database(world.server, name)


def test_restored_without_roles_is_given_roles_and_rights(restored: World) -> None:
    """Rows and tracking are there, nothing is applied again, and the roles, whose GRANTs failed when the dump was
    read, get their rights on everything that is there, on what comes later too."""
    assert restored.sql("SELECT rolname FROM pg_roles WHERE rolname ~ 'readwrite|tablecreator|^app_'") == []

    report = restored.deploy()

    assert (report["applied"], report["adopted"], report["users"]) == ([], [], CREATED)
    assert all(works(restored, restored.secret(secret)) for secret in SECRETS.values())
    restored.sql("CREATE TABLE late (id serial, note text)")
    with restored.login("creator") as conn:
        rows(conn, "CREATE TABLE made_late (id serial, note text)")
    tables = ("items", "made", "by_hand", "late", "made_late")
    assert [(t, s) for t in tables for s in ("user", "creator") if not may(restored, s, USE.format(t))] == []
    closed = ("DELETE FROM schema_migrations", "SELECT * FROM schema_migrations_progress", "TRUNCATE by_hand")
    assert [statement for statement in closed if may(restored, "user", statement)] == []
    assert may(restored, "user", "CREATE TABLE own (id int)") is False
    assert may(restored, "creator", "CREATE TABLE own (id int)") is True
    assert restored.sql("SELECT note FROM items") == [("kept",)]
    assert restored.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_restored_after_its_groups_were_made_has_the_rights_of_the_dump(restored: World) -> None:
    """Where the group roles are made before the dump is read, what migrations had granted and revoked is kept."""
    restored.sql(
        f"DROP SCHEMA {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}; CREATE ROLE readwrite; CREATE ROLE tablecreator"
    )
    major = max(restored.server.version // 10000, 14)
    env = clients.environment(restored.server, ADMIN, ADMIN_PASSWORD, restored.dbname)
    dump = str(restored.folder.with_name("dump.sql"))
    clients.run(clients.client("psql", major), "-X", "-q", "-f", dump, env=env)

    report = restored.deploy()

    assert (report["applied"], report["users"]) == ([], CREATED)
    assert may(restored, "user", USE.format("items")) is True
    assert may(restored, "user", "TRUNCATE items") is True
    assert may(restored, "user", "SELECT * FROM private") is False


def test_restored_with_secrets_of_the_old_database_gets_new_ones(restored: World) -> None:
    """The secrets still hold the logins of the database that the dump was made of: they get logins that work."""
    before = {secret: restored.secret(secret) for secret in SECRETS.values()}

    restored.deploy()

    for secret, old in before.items():
        assert restored.secret(secret)["dbname"] == restored.dbname
        assert restored.secret(secret)["password"] != old["password"]
        assert not works(restored, {**old, "dbname": restored.dbname})


# --- Taken over from the predecessor, run by another admin ----------------------------------------------------------


@pytest.fixture
def other_admin(world: World) -> str:
    as_superuser(world, f"CREATE ROLE {OTHER} LOGIN CREATEROLE CREATEDB PASSWORD '{OTHER_PASSWORD}'")
    return OTHER


def by_other(world: World, statement: str) -> None:
    with world.connection(OTHER, OTHER_PASSWORD) as conn:
        rows(conn, statement)


@pytest.fixture
def field(world: World, other_admin: str) -> World:
    """A predecessor's database whose roles another admin has made: the groups, a random user for each secret."""
    give_schema_to(world, ADMIN)
    for secret, group in GROUPS.items():
        password = f"password of {secret}"
        by_other(
            world, f"CREATE ROLE {group}; CREATE ROLE {RANDOM[secret]} LOGIN PASSWORD '{password}' IN ROLE {group}"
        )
        world.put_secret(secret, {**world.secret("admin"), "username": RANDOM[secret], "password": password})
    world.sql(
        "CREATE TABLE schema_migrations (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, "
        "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP); CREATE TABLE orders (id serial, note text);"
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO readwrite; GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO tablecreator;"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO readwrite, tablecreator"
    )
    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE early (id serial, note text)")
    return world


def test_field_database_of_another_admin_is_taken_over_or_refused(field: World) -> None:
    """Up to PostgreSQL 15 any admin will do; from 16 on the message names the role and the GRANT that the other admin
    has to give, role by role, and what it says helps: then both random logins are kept, and share their tables."""
    before = verifiers(field), field.secret("user"), field.secret("creator")
    for _ in range(4):
        if field.server.version < 160000:
            break
        with pytest.raises(UserError, match=r"was made by another admin") as caught:
            field.deploy()
        assert (verifiers(field), field.secret("user"), field.secret("creator")) == before
        advice = str(caught.value).partition("As that admin: ")[2].partition(";")[0]
        by_other(field, advice)
        if RANDOM["creator"] in advice:
            break

    report = field.deploy()

    assert report["users"] == dict.fromkeys((RANDOM["user"], RANDOM["creator"]), "kept")
    assert (field.secret("user"), field.secret("creator")) == before[1:]
    with field.login("creator") as conn:
        rows(conn, "CREATE TABLE late (id serial, note text)")
    assert [table for table in ("orders", "early", "late") if not may(field, "user", USE.format(table))] == []
    assert may(field, "user", "DELETE FROM schema_migrations") is False
    assert field.deploy()["users"] == report["users"]


def test_field_login_of_another_admin_that_is_broken_is_replaced(field: World) -> None:
    """A random login that does not work is left as it is, whoever made it: the secret gets ours."""
    if field.server.version >= 160000:
        by_other(field, f"GRANT readwrite, tablecreator, {RANDOM['creator']} TO {ADMIN} WITH ADMIN OPTION")
    field.put_secret("user", {**field.secret("user"), "password": "lost"})
    before = verifiers(field)

    report = field.deploy()

    assert report["users"] == {"app_rw": "created", RANDOM["creator"]: "kept"}
    assert verifiers(field)[RANDOM["user"]] == before[RANDOM["user"]]
    assert works(field, field.secret("user"))


def test_field_database_whose_tables_are_another_admins_keeps_their_rights(field: World) -> None:
    """What another admin owns is his: its rights stay, and what ours makes is usable by both."""
    if field.server.version >= 160000:
        by_other(field, f"GRANT readwrite, tablecreator, {RANDOM['creator']} TO {ADMIN} WITH ADMIN OPTION")
    as_superuser(field, f"ALTER TABLE orders OWNER TO {OTHER}; CREATE TABLE theirs (id int, note text)")
    as_superuser(field, f"ALTER TABLE theirs OWNER TO {OTHER}")
    acl = "SELECT relname, relacl::text FROM pg_class WHERE relname IN ('orders', 'theirs') ORDER BY 1"
    before: Any = as_superuser(field, acl)

    field.deploy()
    field.write("001_ours.sql", "CREATE TABLE ours (id serial, note text);")
    field.deploy()

    assert as_superuser(field, acl) == before
    assert may(field, "user", "SELECT * FROM orders") is True
    assert may(field, "user", "SELECT * FROM theirs") is False
    assert may(field, "user", USE.format("ours")) is True

"""What the two logins may do and what not: found out by trying."""

from __future__ import annotations

import re
from typing import Any

import psycopg2
import pytest
from common import MigrationError, UserError
from harness.database import SCHEMA
from harness.world import ADMIN, World, rows

SECRETS = {"app_rw": "user", "app_tc": "creator"}  # by login
READ, USE = "SELECT count(*) FROM {}", "INSERT INTO {0} (note) VALUES ('x'); UPDATE {0} SET note = 'y'; DELETE FROM {0}"

MIGRATION = """
    CREATE TABLE items (id serial PRIMARY KEY, note text);
    CREATE VIEW seen AS SELECT id FROM items;
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM items;
    CREATE TABLE measures (at date, value int) PARTITION BY RANGE (at);
    CREATE TABLE measures_now PARTITION OF measures DEFAULT;
    CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n';
    CREATE PROCEDURE nothing() LANGUAGE sql AS 'SELECT 1';
"""
BOTH, CREATOR, NEITHER = ("app_rw", "app_tc"), ("app_tc",), ()
RIGHTS = {
    # the admin's tables
    "SELECT * FROM items": BOTH,
    "INSERT INTO items (note) VALUES ('x')": BOTH,
    "UPDATE items SET note = 'y'": BOTH,
    "DELETE FROM items": BOTH,
    "SELECT * FROM items FOR UPDATE": BOTH,
    "INSERT INTO measures VALUES (now(), 1)": BOTH,
    "SELECT * FROM measures_now": BOTH,
    "TRUNCATE items": NEITHER,
    "ALTER TABLE items ADD other int": NEITHER,
    "CREATE INDEX ON items (note)": NEITHER,
    "DROP TABLE items": NEITHER,
    # what else the admin makes
    "SELECT nextval('items_id_seq'), currval('items_id_seq')": BOTH,
    "SELECT setval('items_id_seq', 1)": NEITHER,
    "SELECT * FROM seen, counted": BOTH,
    "REFRESH MATERIALIZED VIEW counted": NEITHER,
    "SELECT twice(2)": BOTH,
    "CALL nothing()": BOTH,
    "DROP FUNCTION twice": NEITHER,
    # objects of one's own
    "CREATE TEMP TABLE passing (id int)": BOTH,
    "CREATE TABLE own (id serial); ALTER TABLE own ADD note text; CREATE INDEX ON own (note); DROP TABLE own": CREATOR,
    "CREATE VIEW own AS SELECT * FROM items; DROP VIEW own": CREATOR,
    "CREATE SCHEMA own": NEITHER,
    # roles
    "SET ROLE tablecreator": CREATOR,
    f"SET ROLE {ADMIN}": NEITHER,
    "CREATE ROLE tmp_own": NEITHER,
    "ALTER ROLE app_rw CREATEROLE": NEITHER,
    "GRANT tablecreator TO app_rw": NEITHER,
    # our own tables
    "SELECT * FROM schema_migrations": BOTH,
    "INSERT INTO schema_migrations (migration_name) VALUES ('x')": NEITHER,
    "UPDATE schema_migrations SET migration_name = 'x'": NEITHER,
    "DELETE FROM schema_migrations": NEITHER,
    "TRUNCATE schema_migrations": NEITHER,
    "ALTER TABLE schema_migrations ADD other int": NEITHER,
    "SELECT * FROM schema_migrations_progress": NEITHER,
    "INSERT INTO schema_migrations_progress (migration_name, step) VALUES ('x', 1)": NEITHER,
    "DELETE FROM schema_migrations_progress": NEITHER,
}


def may(world: World, login: str, statement: str) -> bool:
    """Whether this login may do this; it is rolled back. Any other error than a missing right is one."""
    with world.login(SECRETS[login]) as conn:
        conn.autocommit = False
        try:
            rows(conn, statement)
        except psycopg2.errors.InsufficientPrivilege:
            return False
        finally:
            conn.rollback()
        return True


def as_superuser(world: World, statement: str) -> list[tuple[Any, ...]]:
    with world.superuser() as conn:
        return rows(conn, statement)


def give_schema_to(world: World, owner: str, rights_of_public: str) -> None:
    """Schema public as a server or its history may have it: up to PostgreSQL 14 it is the superuser's, and everybody
    may create in it."""
    as_superuser(
        world,
        f"ALTER SCHEMA {SCHEMA} OWNER TO {owner}; REVOKE ALL ON SCHEMA {SCHEMA} FROM PUBLIC; "
        f"GRANT {rights_of_public} ON SCHEMA {SCHEMA} TO PUBLIC",
    )


# --- Who may do what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("users_first", [True, False], ids=["users first", "migrations first"])
@pytest.mark.slow
def test_rights_of_the_logins_are_what_they_need_and_no_more(world: World, users_first: bool) -> None:
    """Each login may do what the table of rights says, whether its objects were there before it or came after it."""
    give_schema_to(world, ADMIN, "USAGE")  # as it is on PostgreSQL 15 and newer
    if users_first:
        world.deploy()
    world.write("001_items.sql", MIGRATION)
    world.write("002_index.sql", "-- no-transaction\nSELECT 1;\nCREATE INDEX CONCURRENTLY ON items (note);")
    world.deploy(CREATE_USERS="false")

    world.deploy()

    found = {statement: tuple(login for login in SECRETS if may(world, login, statement)) for statement in RIGHTS}
    assert found == RIGHTS


def test_rights_of_the_logins_come_from_their_group_alone(world: World) -> None:
    """A login is a member of exactly its group, its group of nothing, and neither has an attribute beyond LOGIN."""
    world.deploy()

    memberships = (
        "SELECT r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid "
        "WHERE m.member = '{}'::regrole ORDER BY 1"
    )
    attributes = (
        "SELECT rolcanlogin, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls "
        "FROM pg_roles WHERE rolname = '{}'"
    )
    for login, group in (("app_rw", "readwrite"), ("app_tc", "tablecreator")):
        assert world.sql(memberships.format(login)) == [(group,)]
        assert world.sql(memberships.format(group)) == []
        assert world.sql(attributes.format(login)) == [(True, False)]
        assert world.sql(attributes.format(group)) == [(False, False)]


def test_rights_where_the_schema_is_the_admins_are_taken_from_public(world: World) -> None:
    """The limited user cannot create tables where the admin may prevent that."""
    give_schema_to(world, ADMIN, "USAGE, CREATE")

    world.deploy()

    assert may(world, "app_rw", "CREATE TABLE own (id int)") is False
    assert may(world, "app_tc", "CREATE TABLE own (id int)") is True


def test_rights_where_the_schema_is_not_the_admins_are_said_to_be_wider(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Where everybody may create in schema public and the admin cannot change that, the log says what helps."""
    give_schema_to(world, world.server.user, "USAGE, CREATE")

    world.deploy()

    assert may(world, "app_rw", "CREATE TABLE own (id int)") is True
    assert [record.levelname for record in caplog.records if f"REVOKE CREATE ON SCHEMA {SCHEMA}" in record.message] == [
        "WARNING"
    ]


def test_rights_that_the_admin_may_not_grant_are_refused(world: World) -> None:
    """Where nobody but the schema's owner can let the table creators create, the message says what to ask for."""
    give_schema_to(world, world.server.user, "USAGE")
    as_superuser(world, f"GRANT CREATE ON SCHEMA {SCHEMA} TO {ADMIN}")

    with pytest.raises(UserError) as caught:
        world.deploy()

    remedy = f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO tablecreator"
    assert str(caught.value).startswith(
        f"{ADMIN} may not grant rights on schema {SCHEMA} to tablecreator. No role has been changed. "
        f"As the schema's owner: {remedy}; then invoke again."
    )
    assert world.sql("SELECT rolname FROM pg_roles WHERE rolname IN ('readwrite', 'tablecreator')") == []


def test_rights_that_the_admin_may_not_grant_are_taken_from_another(world: World) -> None:
    """Once the schema's owner has granted what was asked for, the run goes through."""
    give_schema_to(world, world.server.user, "USAGE")
    as_superuser(world, f"GRANT CREATE ON SCHEMA {SCHEMA} TO {ADMIN}")
    world.sql("CREATE ROLE tablecreator")
    as_superuser(world, f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO tablecreator")

    world.deploy()

    assert may(world, "app_tc", "CREATE TABLE own (id int)") is True
    assert may(world, "app_rw", "CREATE TABLE own (id int)") is False


# --- Objects that come later ----------------------------------------------------------------------------------------

NOTES = "CREATE TABLE notes (id serial, note text)"


def make_notes(world: World, creator: str) -> None:
    """Make the table `notes` after the users were made, as this creator."""
    if creator == "migration":
        world.write("001_notes.sql", NOTES)
        world.deploy()
    elif creator == "migration, SET ROLE":
        world.write("002_notes.sql", f"SET ROLE tablecreator; {NOTES};")
        world.deploy()
    elif creator == "admin by hand":
        world.sql(NOTES)
    else:
        with world.login("creator") as conn:
            rows(conn, f"{'SET ROLE tablecreator;' if creator == 'app_tc, SET ROLE' else ''} {NOTES}")


def test_rights_on_a_later_table_exist_immediately(world: World) -> None:
    """Both logins read and write what anybody of ours creates, without another run."""
    world.deploy()
    for creator in ("migration", "migration, SET ROLE", "admin by hand", "app_tc", "app_tc, SET ROLE"):
        make_notes(world, creator)

        found = [
            (login, may(world, login, READ.format("notes")), may(world, login, USE.format("notes")))
            for login in SECRETS
        ]
        assert found == [(login, True, True) for login in SECRETS], creator
        as_superuser(world, "DROP TABLE notes")


def test_rights_on_tables_of_a_kept_random_user_are_there(world: World) -> None:
    """What the predecessor's table creator has made and will make can be used by the limited user."""
    world.deploy(DB_PROXY=None)
    world.sql("CREATE ROLE tmp_0123456789abcdef LOGIN PASSWORD 'its own'; GRANT tablecreator TO tmp_0123456789abcdef")
    world.put_secret("creator", {"username": "tmp_0123456789abcdef", "password": "its own"})
    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE early (id serial, note text)")

    report = world.deploy()

    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE late (id serial, note text)")
    assert report["users"] == {"app_rw": "kept", "tmp_0123456789abcdef": "kept"}
    assert may(world, "app_rw", USE.format("early")) is True
    assert may(world, "app_rw", USE.format("late")) is True


# --- What a migration grants and revokes stays ----------------------------------------------------------------------


def test_rights_changed_by_a_migration_stay(world: World) -> None:
    """No later run undoes a GRANT or REVOKE: with nothing to do, a migration to apply, or a login to repair."""
    give_schema_to(world, ADMIN, "USAGE")
    world.write("001_items.sql", MIGRATION)
    world.write(
        "002_rights.sql",
        "REVOKE DELETE ON items FROM readwrite, tablecreator; GRANT TRUNCATE ON items TO readwrite;"
        "REVOKE USAGE ON SEQUENCE items_id_seq FROM readwrite; REVOKE SELECT ON seen FROM tablecreator;"
        f"REVOKE EXECUTE ON FUNCTION twice FROM PUBLIC; REVOKE CREATE ON SCHEMA {SCHEMA} FROM tablecreator;",
    )
    world.deploy()

    world.deploy()
    world.write("003_more.sql", "CREATE TABLE more (id int);")
    world.deploy()
    world.sql("ALTER ROLE app_rw NOLOGIN; ALTER ROLE app_tc NOLOGIN")
    world.deploy()

    statements = (
        "DELETE FROM items",
        "TRUNCATE items",
        "SELECT nextval('items_id_seq')",
        "SELECT * FROM seen",
        "SELECT twice(2)",
        "CREATE TABLE own (id int)",
        "SELECT * FROM more",
    )
    assert {statement: [login for login in SECRETS if may(world, login, statement)] for statement in statements} == {
        "DELETE FROM items": [],
        "TRUNCATE items": ["app_rw"],
        "SELECT nextval('items_id_seq')": ["app_tc"],
        "SELECT * FROM seen": ["app_rw"],
        "SELECT twice(2)": [],
        "CREATE TABLE own (id int)": [],
        "SELECT * FROM more": ["app_rw", "app_tc"],
    }


def test_rights_that_a_migration_takes_from_later_tables_stay_taken(world: World) -> None:
    """A team that revokes a default privilege decides for each table on its own."""
    world.write("001_defaults.sql", f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} REVOKE ALL ON TABLES FROM readwrite;")
    world.write("002_notes.sql", NOTES)
    world.deploy()

    world.deploy()
    world.write("003_later.sql", "CREATE TABLE later (id int);")
    world.deploy()

    assert [may(world, "app_rw", READ.format(table)) for table in ("notes", "later")] == [False, False]
    assert [may(world, "app_tc", READ.format(table)) for table in ("notes", "later")] == [True, True]


# --- Databases that existed before ----------------------------------------------------------------------------------


def test_rights_on_an_existing_database_are_granted_once(world: World) -> None:
    """The first run grants what is there, whatever its name; what is revoked afterwards by hand stays revoked."""
    odd = '"we{ir}d %s ""näme"""'
    world.sql("CREATE TABLE users (id int); CREATE TABLE orders (id serial, note text)")
    world.sql(f"CREATE TABLE {odd} (id serial, note text)")
    world.write("001_users.sql", "CREATE TABLE users (id int);")

    report = world.deploy()

    assert report["adopted"] == ["001_users"]
    assert [name for name in ("orders", odd) if not may(world, "app_rw", USE.format(name))] == []
    world.sql("REVOKE ALL ON orders FROM readwrite")
    world.write("002_more.sql", "CREATE TABLE more (id int);")
    world.deploy()
    assert may(world, "app_rw", READ.format("orders")) is False


def test_rights_that_the_predecessor_gave_are_set_right(world: World) -> None:
    """Its grant on ALL TABLES let the users write the tracking table; what was revoked since then stays revoked."""
    world.sql("CREATE ROLE readwrite; CREATE ROLE tablecreator")
    if world.server.version >= 160000:  # where not even the creator of a role may use it
        world.sql(f"GRANT readwrite, tablecreator TO {ADMIN}")
    world.sql(
        "CREATE TABLE schema_migrations (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, "
        "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP); CREATE TABLE orders (id serial, note text);"
        "CREATE TABLE private (id int);"
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO readwrite; GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO tablecreator;"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO readwrite, tablecreator;"
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO readwrite, tablecreator;"
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO readwrite;"
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT USAGE, SELECT ON SEQUENCES TO readwrite;"
        "REVOKE ALL ON private FROM readwrite"
    )

    world.deploy()

    assert may(world, "app_rw", "SELECT * FROM schema_migrations") is True
    assert may(world, "app_rw", "DELETE FROM schema_migrations") is False
    assert may(world, "app_tc", "DELETE FROM schema_migrations") is False
    assert may(world, "app_rw", READ.format("private")) is False
    assert may(world, "app_rw", USE.format("orders")) is True
    make_notes(world, "app_tc")
    assert may(world, "app_rw", USE.format("notes")) is True


def test_rights_on_the_marks_of_a_file_that_failed_are_nobodys(world: World) -> None:
    """Where a run ends at a marked file, it has closed its own tables before: the groups may not touch the marks."""
    world.write("001_a.sql", "-- no-transaction\nSELECT 1;\nSELECT nope;")
    with pytest.raises(MigrationError, match="nope"):
        world.deploy()

    rights = "SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER"
    may_any = "SELECT has_table_privilege(%s, 'schema_migrations_progress', %s)"
    assert world.sql("SELECT count(*) FROM schema_migrations_progress") == [(1,)]
    assert [world.sql(may_any, group, rights) for group in ("readwrite", "tablecreator")] == [[(False,)]] * 2


TRIGGER = (
    "CREATE TRIGGER own BEFORE UPDATE ON schema_migrations FOR EACH ROW "
    "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
)


def test_rights_on_our_own_tables_outlive_a_grant_on_all_tables(world: World) -> None:
    """A migration that grants ALL ON ALL TABLES opens neither the tracking table nor the table of marks."""
    world.write("001_steps.sql", "-- no-transaction\nSELECT 1;\nSELECT 2;")
    world.write("002_grant.sql", f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO readwrite, tablecreator;")
    statements = ("DELETE FROM schema_migrations", TRIGGER, "SELECT * FROM schema_migrations_progress")
    for run in ("the same run", "the next run"):
        world.deploy()

        assert [(run, login, done) for login in SECRETS for done in statements if may(world, login, done)] == []


def test_rights_of_the_table_creator_do_not_reach_the_admin_by_a_function(world: World) -> None:
    """A function in schema public that fits our own queries better than PostgreSQL's does not run as the admin.

    A file could call it: so none is run until it is gone.
    """
    world.deploy()
    functions = {
        "has_table_privilege(oid, regclass, text) RETURNS boolean": "RETURN false;",
        "unnest(text[]) RETURNS SETOF text": "RETURN;",
    }
    with world.login("creator") as conn:
        for function, end in functions.items():
            body = f"BEGIN ALTER ROLE app_tc CREATEDB; {end} END"
            rows(conn, f"CREATE FUNCTION {SCHEMA}.{function} LANGUAGE plpgsql AS $$ {body} $$")
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}
    world.write("001_things.sql", "CREATE TABLE things (id int);")

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert world.sql("SELECT rolcreatedb FROM pg_roles WHERE rolname = 'app_tc'") == [(False,)]
    remedies = re.findall(r"DROP ROUTINE [^;]+;", str(caught.value))
    assert len(remedies) == len(functions)
    world.sql("".join(remedies))
    assert [entry["name"] for entry in world.deploy()["applied"]] == ["001_things"]


def test_rights_on_tables_of_others_are_left_to_them(world: World) -> None:
    """A table in schema public that is not the admin's (an extension's, say) breaks no run and keeps its rights."""
    as_superuser(world, "CREATE TABLE spatial_ref_sys (id serial); CREATE VIEW theirs AS SELECT 1")
    before = as_superuser(
        world, "SELECT relname, relacl::text FROM pg_class WHERE relname IN ('spatial_ref_sys', 'theirs')"
    )

    world.deploy()

    assert may(world, "app_rw", READ.format("spatial_ref_sys")) is False
    assert before == as_superuser(
        world, "SELECT relname, relacl::text FROM pg_class WHERE relname IN ('spatial_ref_sys', 'theirs')"
    )


def test_rights_in_other_schemas_are_left_alone(world: World) -> None:
    """Only schema public is ours: another one is neither opened nor closed."""
    world.sql("CREATE SCHEMA other; CREATE TABLE other.early (id int)")

    world.deploy()
    world.sql("CREATE TABLE other.late (id int)")
    world.deploy()

    assert [login for login in SECRETS if may(world, login, READ.format("other.early"))] == []
    world.sql("GRANT USAGE ON SCHEMA other TO readwrite; GRANT SELECT ON other.late TO readwrite")
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert may(world, "app_rw", READ.format("other.late")) is True
    assert may(world, "app_rw", READ.format("other.early")) is False


def test_table_that_a_file_makes_as_another_role_is_said_to_be_unreadable(world: World) -> None:
    """Default privileges are those of the admin: the report names the statement that is missing, and it helps."""
    owner = "tmp_app_owner"
    world.sql(f"CREATE ROLE {owner}; GRANT {owner} TO CURRENT_USER; GRANT CREATE, USAGE ON SCHEMA {SCHEMA} TO {owner}")
    world.write("001_a.sql", f"SET ROLE {owner}; CREATE TABLE theirs (i int); RESET ROLE; CREATE TABLE ours (i int);")
    try:
        report = world.deploy()

        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {SCHEMA}.theirs TO readwrite;"
        assert report["warnings"] == [f"readwrite cannot read what {owner} owns: add to the file {grant}"]
        world.write("002_b.sql", f"SET ROLE {owner}; {grant}")
        assert world.deploy()["warnings"] == []
        with world.login("user") as conn:
            assert rows(conn, "SELECT * FROM theirs, ours") == []
    finally:
        world.sql(f"DROP TABLE theirs; REVOKE ALL ON SCHEMA {SCHEMA} FROM {owner}")


def test_table_that_a_file_makes_in_the_default_role_of_the_admin_is_said_to_be_unreadable(world: World) -> None:
    """A default role counts in the files that come after it, as in psql; db_setup itself remains the admin."""
    owner = "tmp_default_owner"
    world.sql(f"CREATE ROLE {owner}; GRANT {owner} TO CURRENT_USER; GRANT CREATE, USAGE ON SCHEMA {SCHEMA} TO {owner}")
    world.write("001_a.sql", f"ALTER ROLE {ADMIN} IN DATABASE {world.dbname} SET role = {owner}; CREATE TABLE ours ();")
    world.write("002_b.sql", "CREATE TABLE theirs ();")
    world.write("003_c.sql", "-- no-transaction\nCREATE TABLE theirs_too ();\nVACUUM theirs_too;")
    grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO readwrite;"
    said = f"readwrite cannot read what {owner} owns: add to the file {grant}"
    try:
        first = world.deploy()
        second = world.deploy()
        world.write("004_d.sql", "CREATE TABLE theirs_later ();")
        third = world.deploy()
        fourth = world.deploy({"action": "status"})
    finally:
        with world.superuser() as conn:
            rows(conn, f"ALTER ROLE {ADMIN} IN DATABASE {world.dbname} RESET role; DROP OWNED BY {owner}")

    assert first["warnings"] == [said.format(f"{SCHEMA}.theirs, {SCHEMA}.theirs_too")]
    assert (second["applied"], second["warnings"]) == ([], [])
    assert third["warnings"] == [said.format(f"{SCHEMA}.theirs_later")]
    assert [entry["name"] for entry in fourth["applied"]] == ["001_a", "002_b", "003_c", "004_d"]
    assert world.tables() == ["ours"]


def test_tables_of_ours_that_a_file_gives_to_another_role_are_none_to_be_granted(world: World) -> None:
    """What is said of unreadable tables is about those of the application."""
    owner = "tmp_later_owner"
    world.sql(f"CREATE ROLE {owner}; GRANT {owner} TO CURRENT_USER; GRANT CREATE, USAGE ON SCHEMA {SCHEMA} TO {owner}")
    world.write("001_a.sql", "CREATE TABLE a ();")
    world.write("002_b.sql", f"ALTER TABLE schema_migrations_progress OWNER TO {owner};")
    try:
        assert world.deploy()["warnings"] == []
        assert world.sql("SELECT tableowner FROM pg_tables WHERE tablename ~ 'progress'") == [(owner,)]
    finally:
        with world.superuser() as conn:
            rows(conn, f"DROP OWNED BY {owner}")

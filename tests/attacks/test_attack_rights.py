"""Rights that nobody should have: on our tables, by membership, by roles that were there before us."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import limited_users
import pytest
from harness.attackers import STRANGER, close_schema, make_stranger
from harness.database import SCHEMA, create_database, drop_database
from harness.logins import SECRETS, as_superuser, refusal
from harness.world import ADMIN, World, rows
from initializer import InitializerError, UserError

DENIED = "InsufficientPrivilege"
FORGED = "INSERT INTO schema_migrations (id, migration_name) VALUES (999, '999_forged')"
FORGERIES = (
    "INSERT INTO schema_migrations (migration_name) VALUES ('forged')",
    "UPDATE schema_migrations SET migration_name = 'forged'",
    "DELETE FROM schema_migrations",
    "TRUNCATE schema_migrations",
    "SELECT nextval('schema_migrations_id_seq')",
    "SELECT setval('schema_migrations_id_seq', 99)",
    "CREATE TRIGGER t AFTER INSERT ON schema_migrations "
    "EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
    "ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY",
    "DROP TABLE schema_migrations",
    "INSERT INTO schema_migrations_progress VALUES ('forged', 1, 'x', '{}')",
    "UPDATE schema_migrations_progress SET done_at = now()",
    "SELECT * FROM schema_migrations_progress",
    "DROP TABLE schema_migrations_progress",
)
# What a migration may do to our tables, without meaning them.
GIVEN = {
    "all to PUBLIC": f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO PUBLIC; "
    f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO PUBLIC",
    "all to the logins": f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO app_rw, app_tc;"
    f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO app_rw",
    "all to the groups": f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO readwrite, tablecreator WITH GRANT OPTION",
    "to a stranger": f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO {STRANGER} WITH GRANT OPTION",
    "a column": "GRANT UPDATE (migration_name), INSERT (migration_name) ON schema_migrations TO app_rw, PUBLIC",
    "a column of the marks": "GRANT SELECT (done_at), UPDATE (done_at) ON schema_migrations_progress TO readwrite",
    "the sequence": "GRANT USAGE ON SEQUENCE schema_migrations_id_seq TO PUBLIC",
    "everything of the admin": "DO $$ BEGIN EXECUTE 'REASSIGN OWNED BY CURRENT_USER TO app_tc'; END $$",
    "one table": "ALTER TABLE schema_migrations OWNER TO app_tc",
    "the marks": "ALTER TABLE schema_migrations_progress OWNER TO tablecreator",
    "row-level security": "ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY",
}


def forged(world: World, conn: Any) -> list[str]:
    """Which of the forgeries this session can do; each is rolled back."""
    conn.autocommit = False
    done = []
    for statement in FORGERIES:
        try:
            rows(conn, statement)
            done.append(statement)
        except Exception:  # whatever the refusal is
            pass
        finally:
            conn.rollback()
    return done


def all_forgeries(world: World) -> dict[str, list[str]]:
    found = {}
    for secret in SECRETS.values():
        with world.login(secret) as conn:
            found[secret] = forged(world, conn)
    with world.connection(STRANGER, "x") as conn:
        found[STRANGER] = forged(world, conn)
    return found


NOBODY: dict[str, list[str]] = {"user": [], "creator": [], STRANGER: []}


@pytest.mark.parametrize("users", ["true", "false"])
@pytest.mark.parametrize("case", GIVEN)
def test_rights_on_our_tables_given_by_a_migration_are_taken_back_in_the_same_run(
    deployed: World, case: str, users: str
) -> None:
    """Afterwards nobody can forge a row. The report warns, and the next run finds nothing to revoke."""
    deployed.write("001_rights.sql", f"CREATE TABLE things (id int);\n{GIVEN[case]};")
    if case == "everything of the admin":  # it is the owner of the database, too, which must not be given away
        deployed.write("001_rights.sql", "ALTER TABLE schema_migrations OWNER TO app_tc;" + GIVEN["the marks"] + ";")

    report = deployed.deploy(CREATE_USERS=users)

    assert all_forgeries(deployed) == NOBODY
    assert [text for text in report["warnings"] if "schema_migrations" in text] != []
    owners = deployed.sql("SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname ~ '^schema_migrations'")
    assert owners == [(ADMIN,)]
    deployed.write("002_more.sql", "CREATE TABLE more (id int);")
    report = deployed.deploy(CREATE_USERS=users)
    assert (len(report["applied"]), report["warnings"]) == (1, [])


# Whatever changes what our tables are, in statements that leave the next file's row where it belongs.
CHANGED = {
    **{case: GIVEN[case] for case in GIVEN if case != "everything of the admin"},
    "a rule": "CREATE RULE kept AS ON DELETE TO schema_migrations DO INSTEAD NOTHING",
    "a trigger": f"CREATE FUNCTION {SCHEMA}.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
    f"ALTER FUNCTION {SCHEMA}.nothing() OWNER TO app_tc; "
    f"CREATE TRIGGER looks AFTER DELETE ON schema_migrations FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.nothing()",
    "a child": "CREATE TABLE child () INHERITS (schema_migrations)",
    "a parent": "CREATE TABLE parent (migration_name varchar(255)); "
    "ALTER TABLE schema_migrations_progress INHERIT parent",
}


@pytest.mark.parametrize("case", CHANGED)
def test_rights_on_our_tables_are_looked_at_after_each_file_of_a_run(deployed: World, case: str) -> None:
    """Not only after the first one: the warning names the file, and what it did is undone before the next one runs."""
    deployed.write("001_one.sql", "CREATE TABLE one (id int);")
    deployed.write("002_two.sql", "CREATE TABLE two (id int);")
    deployed.write("003_rights.sql", f"{CHANGED[case]};")
    deployed.write(
        "004_four.sql",
        "CREATE TABLE seen AS SELECT relname, relowner::regrole::text AS owner, relrowsecurity, has_table_privilege("
        "'app_rw', oid, 'UPDATE') AS given, EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid) AS triggers, "
        "EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid) AS rules, EXISTS (SELECT FROM pg_inherits "
        "WHERE c.oid IN (inhrelid, inhparent)) AS related "
        "FROM pg_class c WHERE relname ~ '^schema_migrations' AND relkind = 'r'",
    )

    report = deployed.deploy()

    assert [text for text in report["warnings"] if text.startswith("003_rights changed who may do what")] != []
    assert all_forgeries(deployed) == NOBODY
    seen = deployed.sql("SELECT * FROM seen ORDER BY relname")
    assert [row[1] for row in seen] == [ADMIN, ADMIN]
    assert [row[2:] for row in seen] == [(False, False, False, False, False)] * 2


@pytest.mark.parametrize("users", ["true", "false"])
@pytest.mark.parametrize("case", [case for case in GIVEN if "GRANT" in GIVEN[case]])
def test_rights_on_our_tables_given_by_hand_are_taken_back_by_the_next_run(
    deployed: World, case: str, users: str
) -> None:
    """The next run revokes them, also if it has nothing else to do."""
    deployed.sql(GIVEN[case])

    report = deployed.deploy(CREATE_USERS=users)

    assert all_forgeries(deployed) == NOBODY
    assert [text for text in report["warnings"] if "schema_migrations" in text] != []
    assert warned(deployed.deploy(CREATE_USERS=users)) == []


def test_rights_by_default_for_everybody_do_not_reach_our_tables(world: World) -> None:
    """Default privileges that were there before our tables, or when the second one is made later, change nothing."""
    close_schema(world)
    make_stranger(world)
    defaults = "ALTER DEFAULT PRIVILEGES GRANT ALL ON {} TO PUBLIC"
    for kind in ("TABLES", "SEQUENCES"):
        world.sql(defaults.format(kind))
    world.write("001_things.sql", "CREATE TABLE things (id int);")

    world.deploy()
    assert all_forgeries(world) == NOBODY
    world.sql("DROP TABLE schema_migrations_progress")
    world.write("002_more.sql", "CREATE TABLE more (id int);")
    world.deploy()

    assert all_forgeries(world) == NOBODY


def test_rights_to_read_what_is_applied_may_be_given(deployed: World) -> None:
    """A migration may let a monitor read the tracking table; nobody takes that back, or warns."""
    deployed.write("001_monitor.sql", f"GRANT SELECT ON schema_migrations TO {STRANGER};")

    report = deployed.deploy()

    assert report["warnings"] == []
    with deployed.connection(STRANGER, "x") as conn:
        assert rows(conn, "SELECT migration_name FROM schema_migrations") == [("001_monitor",)]
    assert deployed.deploy()["warnings"] == []


POWERS = [
    "pg_write_all_data",
    "pg_read_all_data",
    "pg_read_server_files",
    "pg_execute_server_program",
    "pg_signal_backend",
]


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("through", ["app_rw", "readwrite"])
def test_rights_of_a_predefined_role_are_more_than_a_limited_user_may_have(
    deployed: World, power: str, through: str
) -> None:
    """With pg_write_all_data a login could forge rows although the table is closed to it."""
    if deployed.server.version < 140000 and "all_data" in power:
        power = "pg_write_server_files"
    as_superuser(deployed, f"GRANT {power} TO {through}")

    with pytest.raises(UserError, match=f"role app_rw is more powerful than .* through {power}"):
        deployed.deploy()

    as_superuser(deployed, f"REVOKE {power} FROM {through}")
    assert deployed.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_rights_of_a_monitor_are_not_too_many(deployed: World) -> None:
    """A role that only reads the server's statistics has no power over the database."""
    as_superuser(deployed, "GRANT pg_read_all_stats TO app_rw")

    assert deployed.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def warned(report: dict[str, Any]) -> list[str]:
    """The warnings of a run whose folder may be empty."""
    return [text for text in report["warnings"] if not text.startswith("migrations/ holds no file")]


def test_rights_that_another_grantor_gave_are_taken_back_or_not_said_to_be(deployed: World) -> None:
    """REVOKE takes back what its own role has granted: here the run says that it has, and it has not."""
    deployed.sql(f"CREATE ROLE tmp_boss; GRANT tmp_boss TO {ADMIN}")
    deployed.write(
        "001_boss.sql",
        "GRANT INSERT ON schema_migrations TO tmp_boss WITH GRANT OPTION; SET ROLE tmp_boss; "
        "GRANT INSERT ON schema_migrations TO app_rw",
    )
    with suppress(InitializerError):
        deployed.deploy()
    assert refusal(deployed, "app_rw", FORGED) == DENIED


def test_schema_that_a_file_gave_to_the_table_creators_lets_none_drop_our_table(deployed: World) -> None:
    """The owner of a schema may drop whatever is in it."""
    deployed.write("001_schema.sql", f"ALTER SCHEMA {SCHEMA} OWNER TO tablecreator")
    with suppress(InitializerError):
        deployed.deploy()
    assert refusal(deployed, "app_tc", "DROP TABLE schema_migrations") == DENIED


GIVEN_AWAY = {
    "everything": "DO $$ BEGIN EXECUTE 'REASSIGN OWNED BY CURRENT_USER TO tablecreator'; END $$",
    "database": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO app_tc', current_database()); END $$",
}


@pytest.fixture
def owned(deployed: World) -> Iterator[World]:
    """A world whose schema is the database owner's, as public is in a new database since PostgreSQL 15."""
    if deployed.server.version >= 140000:
        as_superuser(deployed, f"ALTER SCHEMA {SCHEMA} OWNER TO pg_database_owner")
    yield deployed
    owned = (
        "SELECT format('ALTER DATABASE %I OWNER TO {}', datname) FROM pg_database WHERE pg_get_userbyid(datdba) = '{}'"
    )
    for role in ("tablecreator", "app_tc"):
        for (statement,) in as_superuser(deployed, owned.format(ADMIN, role)):
            as_superuser(deployed, statement)


@pytest.mark.parametrize(("what", "by"), [("everything", "a file"), ("database", "a file"), ("database", "hand")])
def test_rights_of_a_databases_owner_that_were_given_to_table_creators_are_taken_back(
    owned: World, what: str, by: str
) -> None:
    """The owner can drop our tables where the schema is the database owner's, and can close the database."""
    second = f"{owned.dbname}_second"
    create_database(owned.server, second, ADMIN)
    owned.write("001_things.sql", "CREATE TABLE things (id int)")
    try:
        owned.deploy()
        if by == "hand":
            owned.sql(GIVEN_AWAY[what])
        else:
            owned.write("002_calm.sql", "SELECT 1")  # nothing of ours has changed until then
            owned.write("003_owner.sql", GIVEN_AWAY[what])
            owned.write(
                "004_seen.sql",
                "CREATE TABLE seen AS SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()",
            )
        report = owned.deploy()
    finally:
        drop_database(owned.server, second)

    assert any(f"ALTER DATABASE {owned.dbname} OWNER TO CURRENT_USER" in text for text in report["warnings"])
    others = [text for text in report["warnings"] if f"DATABASE {second} was given to tablecreator" in text]
    assert len(others) == (what == "everything" and by == "a file")
    owner = "SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()"
    assert owned.sql(owner if by == "hand" else "SELECT datdba FROM seen") == [(ADMIN,)]
    assert refusal(owned, "app_tc", "SET ROLE tablecreator; DROP TABLE schema_migrations") == DENIED
    assert owned.deploy()["warnings"] == []


# --- What a group drops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "login", "group"), [("user", "app_rw", "readwrite"), ("creator", "app_tc", "tablecreator")]
)
def test_group_that_drops_its_own_rights_does_not_get_back_what_a_file_revoked(
    deployed: World, secret: str, login: str, group: str
) -> None:
    """DROP OWNED BY takes the default privileges away, by whose absence a run decides to grant everything."""
    deployed.write("001_pay.sql", f"CREATE TABLE pay (id int); REVOKE ALL ON pay FROM {group}")
    deployed.deploy()
    with deployed.login(secret) as conn:
        rows(conn, f"DROP OWNED BY {group}")
    deployed.deploy()
    assert refusal(deployed, login, "SELECT * FROM pay") == DENIED


def test_group_that_drops_its_own_rights_does_not_close_what_the_admin_opened(deployed: World) -> None:
    deployed.sql(f"GRANT CREATE ON SCHEMA {SCHEMA} TO PUBLIC")
    with deployed.login("user") as conn:
        rows(conn, "DROP OWNED BY readwrite")
    deployed.deploy()
    assert deployed.sql(f"SELECT has_schema_privilege(%s, '{SCHEMA}', 'CREATE')", STRANGER) == [(True,)]


def test_group_that_is_let_in_again_does_not_close_what_the_admin_opened(deployed: World) -> None:
    deployed.sql(f"GRANT CREATE ON SCHEMA {SCHEMA} TO PUBLIC")
    deployed.sql(f"REVOKE CONNECT ON DATABASE {deployed.dbname} FROM PUBLIC, readwrite")
    deployed.deploy()
    assert refusal(deployed, "app_rw", "SELECT 1") == ""
    assert deployed.sql(f"SELECT has_schema_privilege(%s, '{SCHEMA}', 'CREATE')", STRANGER) == [(True,)]


def test_group_of_an_earlier_version_that_drops_its_rights_does_not_get_them_back(deployed: World) -> None:
    """Whose objects were granted is written down by the first run of this version."""
    deployed.write("001_pay.sql", "CREATE TABLE pay (id int); REVOKE ALL ON pay FROM readwrite")
    deployed.deploy()
    deployed.sql("COMMENT ON TABLE schema_migrations_progress IS NULL")
    deployed.deploy()
    with deployed.login("user") as conn:
        rows(conn, "DROP OWNED BY readwrite")
    deployed.write("002_more.sql", "CREATE TABLE more (id int)")
    report = deployed.deploy()
    assert refusal(deployed, "app_rw", "SELECT * FROM pay") == DENIED
    assert any("or DROP OWNED BY readwrite did; if it should" in text for text in report["warnings"])


def test_group_gets_its_rights_in_a_database_that_was_restored_without_them(deployed: World) -> None:
    """What is noted of another database does not count."""
    deployed.write("001_pay.sql", "CREATE TABLE pay (id int)")
    deployed.deploy()
    deployed.sql("COMMENT ON TABLE schema_migrations_progress IS 'rights granted in 1/1:\nreadwrite:rds_admin'")
    deployed.sql("DROP OWNED BY readwrite")
    deployed.deploy()
    assert refusal(deployed, "app_rw", "SELECT * FROM pay") == ""


def test_group_gets_its_rights_where_the_schema_was_restored_without_them(deployed: World) -> None:
    """As by pg_restore --no-privileges after DROP SCHEMA … CASCADE: the database is the same, the table is not."""
    deployed.write("001_pay.sql", "CREATE TABLE pay (id int)")
    deployed.deploy()
    table = "schema_migrations_progress"
    ((note,),) = deployed.sql(f"SELECT obj_description('{table}'::regclass)")
    deployed.sql(f"CREATE TABLE restored (LIKE {table} INCLUDING ALL); DROP TABLE {table}")
    deployed.sql(f"ALTER TABLE restored RENAME TO {table}; DROP OWNED BY readwrite, tablecreator")
    deployed.sql(f"COMMENT ON TABLE {table} IS %s", note)
    deployed.deploy()
    assert refusal(deployed, "app_rw", "SELECT * FROM pay") == ""


@pytest.mark.parametrize("comment", ["{}: all", "{}/{}:[1", "what only we know"])
def test_group_stays_as_it_is_whatever_the_comment_on_our_table_says(deployed: World, comment: str) -> None:
    """A file can write one; no run fails by it, and afterwards it is our note again."""
    numbers = "SELECT d.oid, 'schema_migrations_progress'::regclass::oid FROM pg_database d WHERE datname = %s"
    text = f"rights granted in {comment}".format(*deployed.sql(numbers, deployed.dbname)[0])
    deployed.write("001_comment.sql", f"COMMENT ON TABLE schema_migrations_progress IS '{text}'")
    for _ in range(2):
        assert deployed.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}
    ((note,),) = deployed.sql("SELECT obj_description('schema_migrations_progress'::regclass)")
    assert f"\nreadwrite:{ADMIN}\n" in note


def test_group_does_not_get_back_default_privileges_that_a_file_revoked(deployed: World) -> None:
    """Of every kind: so nothing tells that there were any, but our note. A run with files says that they are gone."""
    revoke = f"ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} REVOKE ALL ON {{}}S FROM readwrite;"
    deployed.write("001_closed.sql", revoke.format("TABLE") + revoke.format("SEQUENCE"))
    deployed.deploy()
    assert warned(deployed.deploy()) == []
    deployed.write("002_private.sql", "CREATE TABLE private (id int)")
    (warning,) = deployed.deploy()["warnings"]
    assert refusal(deployed, "app_rw", "SELECT * FROM private") == DENIED
    deployed.sql(warning.partition("in a new file: ")[2])
    deployed.write("003_open.sql", "CREATE TABLE opened (id int)")
    assert deployed.deploy()["warnings"] == []
    assert refusal(deployed, "app_rw", "SELECT * FROM opened") == ""


def test_group_that_drops_its_own_rights_can_do_the_rest(deployed: World) -> None:
    """The default privileges are gone, and a run with files says so; table creators go on to create."""
    with deployed.login("creator") as conn:
        rows(conn, "DROP OWNED BY tablecreator")
    deployed.write("001_things.sql", "CREATE TABLE things (id int)")
    warnings = deployed.deploy()["warnings"]
    remedies = [text.partition("in a new file: ")[2] for text in warnings]
    assert refusal(deployed, "app_tc", "CREATE TABLE own (id int)") == ""
    deployed.write("002_remedies.sql", ";".join(remedies))
    assert deployed.deploy()["warnings"] == []


def test_group_gets_rights_on_what_a_login_makes_that_is_made_again(deployed: World) -> None:
    """What is noted of its name was another role's."""
    for role in ("app_tc", "tablecreator"):
        as_superuser(deployed, f"DROP OWNED BY {role}; DROP ROLE {role}")
        deployed.deploy()
        with deployed.login("creator") as conn:
            rows(conn, f"SET ROLE {role}; CREATE TABLE by_{role} (id int)")
        assert refusal(deployed, "app_rw", f"SELECT * FROM by_{role}") == ""


def test_group_gets_rights_on_new_objects_where_there_are_too_many(
    deployed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names alone would fill the function's memory; here two are too many."""
    monkeypatch.setattr(limited_users, "FOUND_SQL", limited_users.FOUND_SQL.replace("2000000", "10"))
    with deployed.login("creator") as conn:
        rows(conn, "SET ROLE tablecreator; CREATE TABLE first (id int); CREATE TABLE second (id int)")
    deployed.sql("COMMENT ON TABLE schema_migrations_progress IS NULL")
    deployed.sql("DROP OWNED BY readwrite")
    assert any("tablecreator has too many objects" in text for text in deployed.deploy()["warnings"])
    with deployed.login("creator") as conn:
        rows(conn, "SET ROLE tablecreator; CREATE TABLE third (id int)")
    assert refusal(deployed, "app_rw", "SELECT * FROM third") == ""


# --- What a file replaces -------------------------------------------------------------------------------------------

REPLACED = {
    f"ROUTINE {SCHEMA}.own(integer)": "CREATE OR REPLACE FUNCTION own(int) RETURNS int LANGUAGE sql AS 'SELECT {0}'",
    f"ROUTINE {SCHEMA}.act()": "CREATE OR REPLACE PROCEDURE act() LANGUAGE sql AS 'SELECT {0}'",
    f"VIEW {SCHEMA}.seen": "CREATE OR REPLACE VIEW seen AS SELECT {0} AS seen",
}


def test_rights_of_the_table_creator_on_what_a_file_replaces_are_named(deployed: World) -> None:
    """Its owner stays, who can change it again, so that something else runs where the admin uses it."""
    with deployed.login("creator") as conn:
        for statement in REPLACED.values():
            rows(conn, statement.format(1))
        rows(conn, "CREATE FUNCTION other() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE VIEW another AS SELECT 1")
    deployed.write("001_replace.sql", ";\n".join(statement.format(2) for statement in REPLACED.values()))
    deployed.write("002_new.sql", "CREATE FUNCTION new() RETURNS int LANGUAGE sql AS 'SELECT 1'; SELECT other();")

    report = deployed.deploy()

    remedies = [text.partition("unless that is right: ")[2] for text in report["warnings"] if "app_tc" in text]
    assert sorted(remedies) == [f"ALTER {what} OWNER TO CURRENT_USER" for what in sorted(REPLACED)]
    for remedy in remedies:
        deployed.sql(remedy)
    deployed.write("003_replace.sql", REPLACED[f"VIEW {SCHEMA}.seen"].format(3))
    (of_that,) = deployed.deploy()["warnings"]
    assert of_that.startswith("changed since the last run, by hand or by others: changed ")


# --- Members --------------------------------------------------------------------------------------------------------


def test_members_of_groups_that_were_there_before_are_named(world: World) -> None:
    """Such members read everything once the group gets its rights: each run names them, and the REVOKE to run."""
    make_stranger(world)
    as_superuser(world, f"CREATE ROLE readwrite; GRANT readwrite TO {STRANGER}, {ADMIN} WITH ADMIN OPTION")

    reports = [world.deploy(), world.deploy()]

    for report in reports:
        (warning,) = warned(report)
        (remedy,) = re.findall(f"REVOKE readwrite FROM {STRANGER} GRANTED BY .*", warning)
    as_superuser(world, remedy)
    assert warned(world.deploy()) == []


def test_members_of_groups_that_several_have_put_there_are_named_once_for_each(world: World) -> None:
    """Since PostgreSQL 16 each grantor's GRANT counts for itself, and is taken back for itself."""
    make_stranger(world)
    world.deploy()
    as_superuser(world, f"GRANT readwrite TO {STRANGER}")
    world.sql(f"GRANT readwrite TO {STRANGER}")

    warnings = warned(world.deploy())

    assert len(warnings) == (2 if world.server.version >= 160000 else 1)
    for warning in warnings:
        as_superuser(world, warning.partition("if it should not: ")[2])
    assert warned(world.deploy()) == []


def test_members_that_a_limited_user_has_put_there_are_taken_out(deployed: World) -> None:
    """A careless migration can let a login do that."""
    deployed.write("001_admin.sql", "GRANT readwrite TO app_rw WITH ADMIN OPTION;")
    deployed.deploy()
    with deployed.login("user") as conn:
        rows(conn, f"GRANT readwrite TO {STRANGER}")

    (warning,) = deployed.deploy()["warnings"]

    assert STRANGER in warning
    assert deployed.sql(f"SELECT pg_has_role('{STRANGER}', 'readwrite', 'MEMBER')") == [(False,)]
    assert deployed.deploy()["warnings"] == []


def test_members_of_a_login_that_was_there_before_are_named(world: World) -> None:
    """A member of a login has its rights."""
    make_stranger(world)
    as_superuser(
        world, f"CREATE ROLE app_rw LOGIN; GRANT app_rw TO {STRANGER}; GRANT app_rw TO {ADMIN} WITH ADMIN OPTION"
    )

    for _ in range(2):
        (warning,) = warned(world.deploy())
        assert f"REVOKE app_rw FROM {STRANGER}" in warning


def test_members_that_we_put_there_are_not_named(deployed: World) -> None:
    """The logins, their second ones, the admin, and a kept random login."""
    deployed.deploy({"action": "rotate"})
    deployed.sql(
        "CREATE ROLE tmp_0123456789abcdef LOGIN PASSWORD 'its own'; GRANT tablecreator TO tmp_0123456789abcdef"
    )
    deployed.put_secret("creator", {"username": "tmp_0123456789abcdef", "password": "its own"})

    assert [warned(deployed.deploy()) for _ in range(2)] == [[], []]

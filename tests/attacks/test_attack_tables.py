"""A name in the schema proves nothing: our tables, and those that adoption looks for, made by others."""

from __future__ import annotations

from typing import Any

import pytest
import tracking
from harness.attackers import (
    STRANGER,
    caught,
    deploy_among_attackers,
    lay_trap,
    make_stranger,
    open_schema,
    refused,
    stranger,
    trap,
)
from harness.database import SCHEMA
from harness.logins import as_superuser
from harness.world import ADMIN, World, rows
from sql_scanner import checksum

PROGRESS = (
    "CREATE TABLE schema_migrations_progress (migration_name VARCHAR(255), step INTEGER, checksum TEXT NOT NULL, "
    "objects_before BIGINT[] NOT NULL, started_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, done_at TIMESTAMP, "
    "PRIMARY KEY (migration_name, step)); GRANT ALL ON schema_migrations_progress TO PUBLIC"
)
TRACKING = (
    "CREATE TABLE schema_migrations (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, applied_at "
    "TIMESTAMP DEFAULT CURRENT_TIMESTAMP); GRANT ALL ON schema_migrations, schema_migrations_id_seq TO PUBLIC"
)
POLICY = (
    trap(f"{SCHEMA}.seen", "text", "boolean", "true") + "; ALTER TABLE {0} ENABLE ROW LEVEL SECURITY; "
    f"CREATE POLICY p ON {{0}} USING ({SCHEMA}.seen(migration_name::text)); "
    "INSERT INTO {0} (migration_name{1}) VALUES ('001_things'{2})"
)
STEPS = "-- no-transaction\nCREATE TABLE one (id int);\nCREATE TABLE two (id int);"
ACTIONS = [None, {"action": "status"}, {"action": "dry_run"}]


def without_progress(world: World) -> World:
    """As versions left a database that made the table of marks on first need."""
    deploy_among_attackers(world)
    world.sql("DROP TABLE IF EXISTS schema_migrations_progress")
    return world


def test_tables_of_ours_are_both_made_in_the_first_run(world: World) -> None:
    """Afterwards nobody else can make one of them; the second one is closed to everybody."""
    for environ in ({}, {"CREATE_USERS": "false"}):
        world.deploy(**environ)
        found = world.sql(
            "SELECT relname, relowner::regrole::text FROM pg_class WHERE relname ~ '^schema_migrations(_progress)?$' "
            "ORDER BY 1"
        )
        assert found == [("schema_migrations", ADMIN), ("schema_migrations_progress", ADMIN)]
        world.sql("DROP TABLE schema_migrations, schema_migrations_progress")


@pytest.mark.parametrize("event", ACTIONS, ids=str)
def test_tables_of_marks_made_by_the_table_creator_are_refused(world: World, event: Any) -> None:
    """Its policy would call a function as the admin: the run refuses, names owner and remedy, and calls nothing."""
    without_progress(world)
    with world.login("creator") as conn:
        policy = POLICY.format("schema_migrations_progress", ", step, checksum, objects_before", ", 1, '', '{}'")
        rows(conn, f"{PROGRESS}; {policy}")
    world.write("001_things.sql", STEPS)

    message = refused(world, event)

    assert not caught(world)
    assert f"{SCHEMA}.schema_migrations_progress" in message
    assert "belongs to app_tc" in message
    assert f"DROP TABLE {SCHEMA}.schema_migrations_progress" in message
    assert world.tables() == []


def test_tables_of_marks_made_by_the_table_creator_report_nothing_applied(world: World) -> None:
    """Rows that say "done" do not pass for marks: the file runs once its remedy was followed."""
    without_progress(world)
    world.write("001_things.sql", STEPS)
    with world.login("creator") as conn:
        rows(conn, PROGRESS)
        for step, text in enumerate(("CREATE TABLE one (id int)", "CREATE TABLE two (id int)"), 1):
            done = "INSERT INTO schema_migrations_progress VALUES ('001_things', %s, %s, '{}', now(), now())"
            rows(conn, done, step, checksum(text))

    assert "belongs to app_tc" in refused(world)
    assert world.applied() == []
    world.sql(f"DROP TABLE {SCHEMA}.schema_migrations_progress")
    world.deploy()
    assert world.tables() == ["one", "two"]


@pytest.mark.parametrize("event", ACTIONS, ids=str)
@pytest.mark.parametrize("made", [TRACKING, PROGRESS], ids=["tracking", "marks"])
def test_tables_of_ours_made_by_a_stranger_before_the_first_run_are_refused(
    world: World, made: str, event: Any
) -> None:
    """Where the schema is open, any login of the server can be faster."""
    open_schema(world)
    lay_trap(world)
    make_stranger(world)
    name = "schema_migrations" if made == TRACKING else "schema_migrations_progress"
    more = ("", "") if made == TRACKING else (", step, checksum, objects_before", ", 1, '', '{}'")
    with stranger(world) as conn:
        rows(conn, f"{made}; {POLICY.format(name, *more)}")
    world.write("001_things.sql", STEPS)

    message = refused(world, event)

    assert not caught(world)
    assert f"{SCHEMA}.{name} belongs to {STRANGER}" in message
    assert world.tables() == []


# By what a stranger has made, the statement that drops it.
TAKEN = {
    "CREATE TYPE {0} AS ENUM ('a')": "DROP TYPE {0}",
    "CREATE DOMAIN {0} AS int": "DROP TYPE {0}",
    "CREATE TYPE {0} AS RANGE (subtype = int)": "DROP TYPE {0}",
    "CREATE TYPE {0} AS (id int)": "DROP TYPE {0}",
    "CREATE SEQUENCE {0}": "DROP SEQUENCE {0}",
    "CREATE VIEW {0} AS SELECT 1 AS id": "DROP VIEW {0}",
    "CREATE MATERIALIZED VIEW {0} AS SELECT 1 AS id": "DROP MATERIALIZED VIEW {0}",
    "CREATE TABLE {0}s (id int); CREATE INDEX {1} ON {0}s (id)": "DROP INDEX {0}",
}
MULTIRANGE = f"CREATE TYPE {SCHEMA}.span AS RANGE (subtype = int, multirange_type_name = {{0}})"


@pytest.mark.parametrize("name", ["schema_migrations", "schema_migrations_progress"])
def test_tables_of_ours_whose_name_others_have_taken_are_refused(world: World, name: str) -> None:
    """Whatever has that name: the message has the owner, and the statement that drops it."""
    make_stranger(world)
    open_schema(world)
    label = f"{SCHEMA}.{name}"
    taken = dict(TAKEN)
    if world.server.version >= 140000:
        taken[MULTIRANGE] = f"DROP TYPE {SCHEMA}.span"
    for made, dropped in taken.items():
        with stranger(world) as conn:
            rows(conn, made.format(label, name))
        drop = dropped.format(label)

        message = refused(world)

        assert f" {label} belongs to {STRANGER}, who" in message or "span" in drop
        assert f"As its owner or a superuser: {drop}; or set MIGRATIONS_TABLE." in message
        with stranger(world) as conn:
            rows(conn, drop)
            rows(conn, f"DROP TABLE IF EXISTS {label}s")


KINDS = {
    "view": "CREATE VIEW {0} AS SELECT 1 AS id, 'x'::varchar AS migration_name",
    "row-level security": "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY",
    "rule": "CREATE RULE r AS ON INSERT TO {0} DO INSTEAD NOTHING",
    "trigger": "CREATE TRIGGER t BEFORE INSERT ON {0} FOR EACH ROW EXECUTE FUNCTION traps.skip()",
    "parent": "CREATE TABLE parent (migration_name varchar(255) NOT NULL); ALTER TABLE {0} INHERIT parent",
    "child": "CREATE TABLE child () INHERITS ({0})",
    "partitioned": "CREATE TABLE {0} (id int, migration_name varchar(255)) PARTITION BY LIST (id)",
}


@pytest.mark.parametrize("table", ["schema_migrations", "schema_migrations_progress"])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_ours_that_are_not_plain_are_refused(world: World, kind: str, table: str) -> None:
    """What would change or add to what we read and write there is named."""
    deploy_among_attackers(world)
    as_superuser(
        world,
        "CREATE FUNCTION traps.skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    )
    if kind in ("view", "partitioned"):
        world.sql(f"DROP TABLE {table}")
    as_superuser(world, f"SET ROLE {ADMIN}; {KINDS[kind].format(table)}")
    world.write("001_things.sql", STEPS)

    message = refused(world)

    assert table in message
    assert world.tables() in ([], ["child"], ["parent"])


def test_tables_of_a_role_that_the_admin_acts_for_are_taken(world: World) -> None:
    """An admin who is a member of the owner works on with what is there, also after the admin was replaced."""
    world.write("001_things.sql", "CREATE TABLE things (id int);")
    world.deploy()
    as_superuser(world, f"CREATE ROLE tmp_owner; GRANT tmp_owner TO {ADMIN}; GRANT ALL ON SCHEMA {SCHEMA} TO tmp_owner")
    for table in ("schema_migrations", "schema_migrations_progress"):
        as_superuser(world, f"ALTER TABLE {table} OWNER TO tmp_owner")
    world.write("002_more.sql", "CREATE TABLE more (id int);")

    assert [entry["name"] for entry in world.deploy()["applied"]] == ["002_more"]
    assert world.deploy({"action": "status"})["pending"] == []


def test_tables_of_the_predecessor_are_taken_over(world: World) -> None:
    """Its table, owned by the admin, with rights that it gave to its groups."""
    world.sql(TRACKING.replace("TO PUBLIC", f"TO {ADMIN}"))
    world.sql("INSERT INTO schema_migrations (migration_name) VALUES ('001_things'); CREATE TABLE things (id int)")
    world.write("001_things.sql", "CREATE TABLE things (id int);")

    assert world.deploy()["applied"] == []


@pytest.mark.parametrize("baseline", [None, "001_things"])
def test_tables_of_a_stranger_do_not_show_that_a_database_was_set_up(world: World, baseline: Any) -> None:
    """A table that adoption looks for, made by another login, adopts nothing: the run names its owner."""
    open_schema(world)
    make_stranger(world)
    with stranger(world) as conn:
        rows(conn, "CREATE TABLE things (id int)")
    world.write("001_things.sql", "CREATE TABLE things (id int);\nINSERT INTO things VALUES (1);")

    message = refused(world, BASELINE=baseline)

    assert f"things belongs to {STRANGER}" in message
    assert world.sql("SELECT to_regclass('schema_migrations')::text") == [(None,)]


def test_tables_that_the_table_creator_made_do_not_show_that_a_database_was_set_up(world: World) -> None:
    """The same holds if the tracking table was dropped by hand."""
    deploy_among_attackers(world)
    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE things (id int)")
    world.sql("DROP TABLE schema_migrations, schema_migrations_progress")
    world.write("001_things.sql", "CREATE TABLE things (id int);")

    assert "things belongs to app_tc" in refused(world)


def test_tables_given_away_between_two_runs_are_refused(world: World) -> None:
    """The owner of the tracking table decides what counts as applied. A table creator's table is not trusted."""
    deploy_among_attackers(world)
    as_superuser(world, "ALTER TABLE schema_migrations OWNER TO app_tc")
    world.write("001_things.sql", STEPS)

    message = refused(world)

    assert f"{SCHEMA}.schema_migrations belongs to app_tc" in message
    assert f"ALTER TABLE {SCHEMA}.schema_migrations OWNER TO {ADMIN}" in message
    as_superuser(world, f"ALTER TABLE {SCHEMA}.schema_migrations OWNER TO {ADMIN}")
    assert len(world.deploy()["applied"]) == 1


# What a file lets our tables call, by how they would: it is the table creator's.
OUR_TABLE = "ALTER TABLE schema_migrations"
CALLS = {
    "check": f"{OUR_TABLE} ADD CHECK (fine(migration_name)) NOT VALID",
    "default": f"{OUR_TABLE} ADD called bool, ALTER called SET DEFAULT fine('x')",
    "generated column": f"{OUR_TABLE} ADD called bool GENERATED ALWAYS AS (fine(migration_name)) STORED",
    "index": "CREATE INDEX called ON schema_migrations (fine(migration_name))",
    "predicate": "CREATE INDEX called ON schema_migrations (id) WHERE fine(migration_name)",
    "exclusion": f"{OUR_TABLE} ADD EXCLUDE ((fine(migration_name)::int) WITH =) WHERE (id < 0)",
    "operator": f"{OUR_TABLE} ADD CHECK (migration_name === checksum) NOT VALID",
    "domain": f"CREATE DOMAIN ours AS varchar CHECK (fine(VALUE)); {OUR_TABLE} ADD called ours DEFAULT 'x'",
    "domain of others": f"{OUR_TABLE} ALTER migration_name TYPE named",
    "function of our own": f"CREATE FUNCTION wrapped(varchar) RETURNS bool IMMUTABLE AS 'SELECT {SCHEMA}.fine($1)' "
    f"LANGUAGE sql; ALTER FUNCTION wrapped OWNER TO app_tc; {OUR_TABLE} ADD CHECK (wrapped(migration_name)) NOT VALID",
    "domain within a type": "CREATE TYPE pair AS (first named, second named); "
    f"{OUR_TABLE} ADD called text DEFAULT concat('(', current_user, ',x)')::pair::text",
    "condition of a trigger": "CREATE FUNCTION ours() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
    "CREATE TRIGGER called BEFORE INSERT ON schema_migrations FOR EACH ROW WHEN (fine(NEW.migration_name)) "
    "EXECUTE FUNCTION ours()",
    "of the other table": "CREATE INDEX called ON schema_migrations_progress (fine(migration_name))",
}


@pytest.mark.parametrize("how", CALLS)
def test_tables_of_ours_do_not_call_what_belongs_to_the_table_creator(deployed: World, how: str) -> None:
    """It is taken away when the file has run: else our own statements would call it, in each later run."""
    with deployed.login("creator") as conn:
        rows(conn, trap(f"{SCHEMA}.fine", "varchar", "bool", "true").replace(" LANGUAGE", " IMMUTABLE LANGUAGE", 1))
        rows(
            conn,
            "CREATE FUNCTION same(text, text) RETURNS bool IMMUTABLE LANGUAGE sql "
            f"AS 'SELECT {SCHEMA}.fine($1::varchar)'",
        )
        rows(conn, "CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = same)")
        rows(conn, "CREATE DOMAIN named AS varchar(255)")
    deployed.write("001_first.sql", "CREATE TABLE first (id int)")
    deployed.write("002_calls.sql", CALLS[how])

    report = deployed.deploy()

    assert any(text.startswith("002_calls changed who may do what with our tables") for text in report["warnings"])
    as_superuser(deployed, "SELECT setval('traps.caught', 1, false)")
    with deployed.login("creator") as conn:
        rows(conn, "ALTER DOMAIN named ADD CHECK (fine(VALUE)) NOT VALID")
    deployed.write("003_next.sql", STEPS)
    assert deployed.deploy()["warnings"] == []
    assert not caught(deployed)


def test_tables_of_ours_that_call_what_belongs_to_others_are_refused(deployed: World) -> None:
    """Between two runs somebody has made them do so."""
    with deployed.login("creator") as conn:
        rows(conn, trap(f"{SCHEMA}.fine", "varchar", "bool", "true"))
    deployed.sql(f"{OUR_TABLE} ADD CONSTRAINT odd CHECK (fine(migration_name)) NOT VALID")
    deployed.write("001_things.sql", STEPS)

    message = refused(deployed)

    assert f"has table constraint that uses function {SCHEMA}.fine(character varying) of app_tc" in message
    assert f"ALTER TABLE {SCHEMA}.schema_migrations DROP CONSTRAINT odd; then invoke again" in message
    assert not caught(deployed)


def test_tables_of_ours_may_call_what_is_the_admins_or_an_extensions(deployed: World) -> None:
    as_superuser(deployed, f'CREATE EXTENSION IF NOT EXISTS "uuid-ossp" SCHEMA {SCHEMA}')
    deployed.sql("CREATE FUNCTION named(varchar) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 <> $$$$'")
    deployed.sql(f"{OUR_TABLE} ADD CHECK (named(migration_name)), ADD run uuid DEFAULT uuid_generate_v4()")
    deployed.write("001_things.sql", STEPS)
    report = deployed.deploy()
    assert (len(report["applied"]), report["warnings"]) == (1, [])


MAY_WRITE = """
    SELECT c.relname::text, p FROM pg_class c, unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'USAGE']) p
    WHERE c.relname ~ '^schema_migrations' AND CASE c.relkind
        WHEN 'r' THEN p <> 'USAGE' AND has_table_privilege('app_rw', c.oid, p)
        WHEN 'S' THEN p IN ('USAGE', 'UPDATE') AND has_sequence_privilege('app_rw', c.oid, p) END"""


@pytest.mark.parametrize("dropped", ["schema_migrations_progress", "schema_migrations, schema_migrations_progress"])
@pytest.mark.parametrize("group", ["readwrite", "PUBLIC"])
def test_tables_of_ours_are_closed_from_their_first_moment(
    deployed: World, monkeypatch: pytest.MonkeyPatch, dropped: str, group: str
) -> None:
    """Default privileges give the groups what the admin makes: a mark of theirs would stand for a file that never
    ran."""
    deployed.sql(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {group}")
    deployed.sql(f"DROP TABLE {dropped}")
    ensure_tracking = tracking.ensure_tracking
    found: list[Any] = []

    def noting(*args: Any) -> Any:
        result = ensure_tracking(*args)
        found.append(as_superuser(deployed, MAY_WRITE))  # what is committed by now
        return result

    monkeypatch.setattr(tracking, "ensure_tracking", noting)
    deployed.deploy()

    assert found == [[]]
    with deployed.login("user") as conn:
        assert rows(conn, "SELECT count(*) FROM schema_migrations") == [(0,)]


SEQUENCE = f"{SCHEMA}.schema_migrations_id_seq"
CARELESS = {
    "unlogged": (f"{OUR_TABLE} SET UNLOGGED", f"{OUR_TABLE} SET LOGGED"),
    "unlogged marks": (f"{OUR_TABLE}_progress SET UNLOGGED", f"{OUR_TABLE}_progress SET LOGGED"),
    "published": (
        f"CREATE PUBLICATION tmp_p FOR TABLE schema_migrations_progress; {OUR_TABLE}_progress REPLICA IDENTITY NOTHING",
        f"{OUR_TABLE}_progress REPLICA IDENTITY DEFAULT",
    ),
    "sequence": (
        f"ALTER SEQUENCE {SEQUENCE} MAXVALUE 30 CYCLE",
        f"ALTER SEQUENCE {SEQUENCE} INCREMENT 1 NO MAXVALUE NO CYCLE",
    ),
    "key of names": (
        f"{OUR_TABLE} DROP CONSTRAINT schema_migrations_migration_name_key",
        f"{OUR_TABLE} ADD UNIQUE (migration_name)",
    ),
    "key of numbers": (f"{OUR_TABLE} DROP CONSTRAINT schema_migrations_pkey", f"{OUR_TABLE} ADD UNIQUE (id)"),
    "key of marks": (
        f"{OUR_TABLE}_progress DROP CONSTRAINT schema_migrations_progress_pkey",
        f"{OUR_TABLE}_progress ADD UNIQUE (migration_name, step)",
    ),
}


@pytest.mark.parametrize("case", CARELESS)
def test_tables_of_ours_are_repaired_after_a_careless_file(deployed: World, case: str) -> None:
    """Without a log a crash empties them; without keys and numbers the next file cannot be recorded."""
    statement, repair = CARELESS[case]
    repair = repair.replace("TABLE s", f"TABLE {SCHEMA}.s")
    deployed.write("001_first.sql", "CREATE TABLE first (id int);")
    deployed.write("002_careless.sql", statement)

    report = deployed.deploy()

    assert report["warnings"] == [f"002_careless changed who may do what with our tables, which was undone: {repair}"]
    deployed.write("003_outside.sql", "-- no-transaction\nVACUUM first;\nVACUUM first;")
    deployed.write("004_last.sql", "CREATE TABLE last (id int);")
    report = deployed.deploy()
    assert (len(report["applied"]), report["warnings"]) == (2, [])
    statement = statement.rpartition("; ")[2]  # what it has made besides stays
    deployed.sql(statement.replace("_pkey", "_id_key").replace("progress_id_key", "progress_migration_name_step_key"))
    assert f"{repair}; then invoke again" in refused(deployed)

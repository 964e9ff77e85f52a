"""{"action": "dry_run"}: what is pending really runs, in one transaction that is rolled back; nothing of it stays."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import initializer
import psycopg2
import pytest
import watcher
from harness import clients
from harness.compare import without_noise
from harness.database import SCHEMA, create_database, drop_database
from harness.logins import as_superuser, works
from harness.others import open_transaction, sessions, wait_until
from harness.server import Server
from harness.world import ADMIN, LOCK_KEY, TEMPLATE, Context, World, exactly, rows
from initializer import ConnectError, InitializerError, MigrationError
from test_like_psql import FOLDERS

DRY = {"action": "dry_run"}
HELD = "dry run: every lock is held until its end, so use a copy where that is too long"
ROLES = (
    "SELECT to_jsonb(r) - 'oid' FROM pg_authid r ORDER BY rolname",
    "SELECT roleid::regrole::text, member::regrole::text, admin_option FROM pg_auth_members ORDER BY 1, 2",
    "SELECT d.datname, s.setrole::regrole::text, s.setconfig FROM pg_db_role_setting s "
    "LEFT JOIN pg_database d ON d.oid = s.setdatabase ORDER BY 1, 2",
    "SELECT datname, datacl::text FROM pg_database WHERE datname = current_database()",
    "SELECT nspname, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1",
)


# --- The whole state ------------------------------------------------------------------------------------------------


def dumped(world: World, *options: str, dbname: str = "") -> str:
    """Schema, rows, rights and large objects as pg_dump writes them, but not where the sequences are."""
    server = world.server
    program = clients.client("pg_dump", max(server.version // 10000, min(clients.MAJORS)))
    env = clients.environment(server, server.user, server.password, dbname or world.dbname)
    text = without_noise(clients.run(program, *options, env=env))
    return re.sub(r"^SELECT pg_catalog\.setval\(.*\n?", "", text, flags=re.MULTILINE)


def everything(world: World) -> dict[str, Any]:
    """The database, the server's roles and what belongs to them, and the secrets with the number of their values."""
    secrets = ("admin", "user", "creator")
    with world.superuser() as conn:
        roles = [rows(conn, select) for select in ROLES]
    return {
        "database": dumped(world).splitlines(),
        "roles": roles,
        "secrets": [(world.versions(name), world.versions(name) and world.secret(name)) for name in secrets],
    }


@contextmanager
def unchanged(world: World) -> Iterator[None]:
    """Nothing is another than before when the block is left, and nobody of ours is connected any more."""
    before = everything(world)
    yield
    wait_until(lambda: sessions(world) == [])
    assert everything(world) == before


def objects(world: World) -> list[Any]:
    """All that the database's catalogues hold, by their numbers: quicker than a dump, and blind to changed rows."""
    catalogues = (
        "pg_class",
        "pg_type",
        "pg_proc",
        "pg_namespace",
        "pg_constraint",
        "pg_largeobject_metadata",
        "pg_roles",
    )
    selects = [f"SELECT '{name}', oid::bigint FROM {name} WHERE oid >= 16384" for name in catalogues]
    return world.sql(" UNION ALL ".join(selects) + " ORDER BY 1, 2")


def dry(world: World, context: Any = None, **environ: str) -> dict[str, Any]:
    """The report of a dry run, which has changed nothing."""
    with unchanged(world):
        return world.deploy(DRY, context, **environ)


def dry_failure(world: World, context: Any = None, **environ: str) -> str:
    """The message of a dry run that has failed and changed nothing."""
    with unchanged(world), pytest.raises(InitializerError) as caught:
        world.deploy(DRY, context, **environ)
    return str(caught.value)


def failure(world: World, event: Any = None, context: Any = None) -> str:
    with pytest.raises(InitializerError) as caught:
        world.deploy(event, context)
    return str(caught.value)


def names(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["name"] for entry in entries]


def untried(report: dict[str, Any]) -> dict[str, list[str]]:
    return {entry["name"]: entry["untried"] for entry in report["tried"] if entry["untried"]}


def locks(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    """By file: table and lock."""
    return {entry["name"]: {lock["table"]: lock["lock"] for lock in entry["locks"]} for entry in report["tried"]}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "db_setup"]


@pytest.fixture
def plain(world: World) -> World:
    """A world without users, which do not matter here and take half of the time."""
    world.environ.update(CREATE_USERS="false", LOCK_TIMEOUT="300ms")
    return world


# --- What is pending ------------------------------------------------------------------------------------------------


def test_dry_run_of_an_empty_database_tries_everything_and_leaves_nothing(world: World) -> None:
    """Tracking table, files, groups and logins are made and gone again; then a migration makes them all."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.write("add_b.sql", "CREATE TABLE b (i int); INSERT INTO b VALUES (1); GRANT SELECT ON b TO readwrite;")

    report = dry(world)

    assert json.loads(json.dumps(report)) == report
    assert (report["status"], report["action"], report["applied"]) == ("ok", "dry_run", [])
    assert report["pending"] == names(report["tried"]) == ["001_a", "002_add_b"]
    assert report["users"] == {"app_rw": "would be created", "app_tc": "would be created"}
    assert all(isinstance(entry["duration_ms"], int) and entry["duration_ms"] >= 0 for entry in report["tried"])
    assert (world.versions("user"), world.versions("creator")) == (0, 0)
    report = world.deploy()
    assert (names(report["applied"]), report["users"]) == (
        ["001_a", "002_add_b"],
        {"app_rw": "created", "app_tc": "created"},
    )


def test_dry_run_tries_only_what_is_pending_and_says_how_long_it_took(plain: World) -> None:
    """What is applied is not run again; the time is the file's own."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    plain.deploy()
    plain.write("002_b.sql", "INSERT INTO a VALUES (2); SELECT pg_sleep(0.2);")
    plain.write("003_c.sql", "INSERT INTO a SELECT 3 FROM a WHERE i = 2;")

    report = dry(plain)

    assert report["pending"] == names(report["tried"]) == ["002_b", "003_c"]
    assert 200 <= report["tried"][0]["duration_ms"] < 5000
    assert names(plain.deploy()["applied"]) == ["002_b", "003_c"]
    assert plain.sql("SELECT i FROM a") == [(2,), (3,)]


def test_dry_run_before_a_migration_does_not_change_its_result(plain: World, server: Server) -> None:
    """A migration gives the same database with a dry run before it as without one."""
    plain.write("001_a.sql", "CREATE TABLE a (i serial PRIMARY KEY, t text); INSERT INTO a (t) VALUES ('x');")
    plain.write("002_b.sql", "CREATE VIEW v AS SELECT * FROM a; CREATE INDEX ON a (t);")
    plain.write(
        "003_c.sql", "-- no-transaction\nVACUUM a;\nCREATE INDEX CONCURRENTLY c ON a (i, t);\nUPDATE a SET t='y';"
    )
    other = plain.dbname + "_other"
    create_database(server, other, ADMIN, template=TEMPLATE)
    try:
        dry(plain)
        plain.deploy()
        plain.deploy(DB_NAME=other)
        ours, theirs = (
            dumped(plain, "-T", f"{SCHEMA}.schema_migrations", "-T", f"{SCHEMA}.*_objects", dbname=name)
            for name in (plain.dbname, other)
        )
    finally:
        drop_database(server, other)

    assert "CREATE INDEX c ON" in ours
    # The number that the row got comes from a sequence that the dry run has moved on.
    assert ours.replace("2\ty", "1\ty") == theirs
    assert plain.applied() == ["001_a", "002_b", "003_c"]


def test_dry_run_with_nothing_to_do_takes_no_lock(plain: World, caplog: pytest.LogCaptureFixture) -> None:
    """Where everything is applied it answers while another run holds the lock."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    plain.deploy()
    caplog.clear()

    with plain.connection() as holder:
        rows(holder, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        report = plain.deploy(DRY, Context(4))

    assert (report["tried"], report["pending"], report["lock_wait_ms"]) == ([], [], 0)
    assert HELD not in said(caplog)


# --- The tracking table ---------------------------------------------------------------------------------------------


def test_dry_run_adopts_for_itself_alone(plain: World) -> None:
    """What would be adopted is said and not tried, and is not recorded."""
    plain.sql("CREATE TABLE a (i int)")
    for name in "abc":
        plain.write(f"00{'abc'.index(name) + 1}_{name}.sql", f"CREATE TABLE {name} (i int);")

    first, baseline = dry(plain), dry(plain, BASELINE="002_b")

    assert (first["adopted"], names(first["tried"])) == (["001_a"], ["002_b", "003_c"])
    assert (baseline["adopted"], names(baseline["tried"])) == (["001_a", "002_b"], ["003_c"])
    assert plain.deploy()["adopted"] == ["001_a"]


def test_dry_run_leaves_rows_of_renumbered_and_unchecked_files_as_they_are(
    plain: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that a migration would change are changed for the dry run alone."""
    for name in ("001_a", "002_b"):
        plain.write(f"{name}.sql", f"CREATE TABLE {name[4:]} (i int);")
    plain.deploy()
    plain.sql("UPDATE schema_migrations SET checksum = NULL, file_sha256 = NULL WHERE id = 1")
    (plain.folder / "002_b.sql").rename(plain.folder / "007_b.sql")

    report = dry(plain)

    assert (report["tried"], report["pending"]) == ([], [])
    assert "dry run: renumbered migration=007_b was=002_b" in said(caplog)
    plain.deploy()
    assert plain.sql("SELECT migration_name, checksum IS NULL FROM schema_migrations ORDER BY id") == [
        ("001_a", False),
        ("007_b", False),
    ]


def test_dry_run_leaves_the_predecessors_tracking_table_as_it_is(plain: World) -> None:
    """Columns that are added for the dry run are gone after it."""
    plain.sql("CREATE TABLE schema_migrations (id serial PRIMARY KEY, migration_name varchar(255) UNIQUE NOT NULL)")
    plain.sql("INSERT INTO schema_migrations (migration_name) VALUES ('001_a')")
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    plain.write("002_b.sql", "CREATE TABLE b (i int);")

    assert names(dry(plain)["tried"]) == ["002_b"]
    assert names(plain.deploy()["applied"]) == ["002_b"]


def test_dry_run_of_an_edited_file_is_refused_as_a_run_is(plain: World) -> None:
    """What a migration refuses, a dry run refuses with the same words."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    plain.deploy()
    plain.write("001_a.sql", "CREATE TABLE a (i bigint);")

    assert dry_failure(plain) == failure(plain)


# --- Locks ----------------------------------------------------------------------------------------------------------

LOCKS = {
    "001_read.sql": ("SELECT * FROM a; SELECT * FROM a FOR UPDATE;", {}),
    "002_row.sql": ("INSERT INTO a VALUES (1);", {f"{SCHEMA}.a": "ROW EXCLUSIVE"}),
    "003_less.sql": ("DELETE FROM a;", {}),
    "004_analyze.sql": ("ANALYZE b;", {f"{SCHEMA}.b": "SHARE UPDATE EXCLUSIVE"}),
    "005_index.sql": ("CREATE INDEX ON b (i);", {f"{SCHEMA}.b": "SHARE"}),
    "006_key.sql": (
        "ALTER TABLE c ADD FOREIGN KEY (i) REFERENCES k;",
        {f"{SCHEMA}.c": "SHARE ROW EXCLUSIVE", f"{SCHEMA}.k": "SHARE ROW EXCLUSIVE"},
    ),
    "007_lock.sql": ("LOCK TABLE c IN EXCLUSIVE MODE;", {f"{SCHEMA}.c": "EXCLUSIVE"}),
    "008_alter.sql": (
        'ALTER TABLE b ADD s text; UPDATE b SET s = 1; ALTER TABLE s."T" ADD s text;',
        {f"{SCHEMA}.b": "ACCESS EXCLUSIVE", 's."T"': "ACCESS EXCLUSIVE"},
    ),
    "009_drop.sql": ("DROP TABLE c;", {f"{SCHEMA}.c": "ACCESS EXCLUSIVE", f"{SCHEMA}.k": "ACCESS EXCLUSIVE"}),
    "010_view.sql": (
        "CREATE OR REPLACE VIEW v AS SELECT i, 1 AS one FROM a; REFRESH MATERIALIZED VIEW mv;",
        {f"{SCHEMA}.v": "ACCESS EXCLUSIVE", f"{SCHEMA}.mv": "ACCESS EXCLUSIVE"},
    ),
    "011_new.sql": ("CREATE TABLE fresh (i int); ALTER TABLE fresh ADD s text; DROP TABLE fresh;", {}),
}
BLOCKS = {
    "ROW EXCLUSIVE": "nothing",
    "SHARE UPDATE EXCLUSIVE": "other changes of the table",
    "SHARE": "writing",
    "SHARE ROW EXCLUSIVE": "writing",
    "EXCLUSIVE": "writing",
    "ACCESS EXCLUSIVE": "reading and writing",
}


def test_dry_run_reports_the_strongest_lock_on_each_existing_table(
    plain: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file's strongest lock on tables that were there before, where it is stronger than those held already; what
    it blocks; not those on new tables or on ours. The same in the log."""
    plain.sql(
        "CREATE TABLE a (i int); CREATE TABLE b (i int); CREATE TABLE c (i int); CREATE TABLE k (i int PRIMARY KEY);"
        'CREATE SCHEMA s; CREATE TABLE s."T" (i int); CREATE VIEW v AS SELECT i FROM a;'
        "CREATE MATERIALIZED VIEW mv AS SELECT 1 AS i;"
    )
    for name, (text, _) in LOCKS.items():
        plain.write(name, text)

    report = dry(plain)

    assert locks(report) == {name[:-4]: taken for name, (_, taken) in LOCKS.items()}
    assert {lock["lock"]: lock["blocks"] for entry in report["tried"] for lock in entry["locks"]} == BLOCKS
    (record,) = [record for record in caplog.records if vars(record).get("migration") == "008_alter"]
    assert sorted(vars(record)["locks"]) == [f"ACCESS EXCLUSIVE on {SCHEMA}.b", 'ACCESS EXCLUSIVE on s."T"']


def test_dry_run_of_a_second_file_names_only_the_locks_that_it_adds(plain: World) -> None:
    """What an earlier file has locked is held until the end: only a stronger lock is taken again, and reported."""
    plain.sql("CREATE TABLE a (i int)")
    plain.write("001_a.sql", "CREATE INDEX ON a (i);")
    plain.write("002_b.sql", "ALTER TABLE a ADD b int;")
    plain.write("003_c.sql", "ALTER TABLE a ADD c int;")

    assert locks(dry(plain)) == {
        "001_a": {f"{SCHEMA}.a": "SHARE"},
        "002_b": {f"{SCHEMA}.a": "ACCESS EXCLUSIVE"},
        "003_c": {},
    }


def test_dry_run_says_before_the_first_lock_that_locks_are_held(plain: World, caplog: pytest.LogCaptureFixture) -> None:
    """The warning is in the log while another run still holds our lock."""
    plain.write("001_a.sql", "SELECT 1;")
    with plain.connection() as holder:
        rows(holder, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        with pytest.raises(InitializerError, match="holds the lock"):
            plain.deploy(DRY, Context(4))

    (record,) = [record for record in caplog.records if record.getMessage() == HELD]
    assert record.levelno == logging.WARNING


# --- What cannot be tried -------------------------------------------------------------------------------------------


def test_dry_run_of_a_concurrent_index_alone_does_not_try_it_and_goes_on(plain: World) -> None:
    """What runs in no transaction is named, and the files after it are tried."""
    plain.sql("CREATE TABLE a (i int)")
    plain.write("001_a.sql", "\nCREATE INDEX CONCURRENTLY i ON a (i);")
    plain.write("002_b.sql", "VACUUM a")
    plain.write("003_c.sql", "INSERT INTO a VALUES (1);")

    report = dry(plain)

    assert untried(report) == {
        "001_a": ["line 2 runs outside a transaction"],
        "002_b": ["line 1 runs outside a transaction"],
    }
    assert names(plain.deploy()["applied"]) == names(report["tried"])


def test_dry_run_of_a_marked_file_tries_every_step_that_can_be(plain: World) -> None:
    """Steps in a transaction run, also after one that cannot be tried; the failing one fails."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    unit = "BEGIN;\nINSERT INTO a VALUES (1);\nCOMMIT;"
    text = f"-- no-transaction\nVACUUM a;\n{unit}\nCREATE INDEX CONCURRENTLY i ON a (i);"
    plain.write("002_b.sql", f"{text}\nSELECT 1 / (count(*) - 1) FROM a;")

    message = dry_failure(plain)

    assert message.splitlines()[0] == (
        "002_b.sql:7: division by zero (22012). Rolled back. Fix the file and deploy again. "
        "Applied in this run: nothing."
    )
    plain.write("002_b.sql", f"{text}\nSELECT 1 / count(*) FROM a;")
    assert untried(dry(plain)) == {"002_b": ["line 2 runs outside a transaction", "line 6 runs outside a transaction"]}
    assert names(plain.deploy()["applied"]) == ["001_a", "002_b"]


def test_dry_run_of_a_file_that_ran_in_part_tries_the_rest_and_keeps_its_marks(plain: World) -> None:
    """Steps that are done are not tried again; the marks stay, and the next run goes on where the last one ended."""
    plain.write("001_a.sql", "CREATE TABLE a (i int UNIQUE);")
    plain.write("002_b.sql", "-- no-transaction\nINSERT INTO a VALUES (1);\nSELECT nope;\nINSERT INTO a VALUES (2);")
    failure(plain)
    assert plain.sql("SELECT step, done_at IS NOT NULL FROM schema_migrations_progress") == [(1, True)]
    plain.write("002_b.sql", "-- no-transaction\nINSERT INTO a VALUES (1);\nVACUUM a;\nINSERT INTO a VALUES (2);")

    report = dry(plain)

    assert (names(report["tried"]), untried(report)) == (["002_b"], {"002_b": ["line 3 runs outside a transaction"]})
    plain.deploy()
    assert plain.sql("SELECT i FROM a ORDER BY i") == [(1,), (2,)]


def test_dry_run_does_not_try_a_statement_in_which_a_run_was_interrupted(plain: World) -> None:
    """A mark *begun* means a statement outside a transaction; what that has left is not cleaned up either."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    plain.write("002_b.sql", "-- no-transaction\nCREATE INDEX CONCURRENTLY i ON a (i);\nSELECT nope;")
    failure(plain)
    plain.sql("UPDATE schema_migrations_progress SET done_at = NULL")
    plain.write("002_b.sql", "-- no-transaction\nCREATE INDEX CONCURRENTLY i ON a (i);\nSELECT 1;")

    assert untried(dry(plain)) == {"002_b": ["line 2 runs outside a transaction"]}


ENUM = "CREATE TYPE mood AS ENUM ('old'); CREATE TABLE m (v mood);"
ADD = "ALTER TYPE mood ADD VALUE 'new';"
USE = "INSERT INTO m VALUES ('new');"
USED_LATER = {
    "in a later file": {"002_b.sql": ADD, "003_c.sql": f"SELECT 1;\n{USE}", "004_d.sql": "SELECT 1;"},
    "in a later step": {"002_b.sql": f"-- no-transaction\n{ADD}\n{USE}"},
    "in a later file that alters another type": {
        "002_b.sql": ADD,
        "003_c.sql": f"ALTER TYPE pair ADD ATTRIBUTE b int;\n{USE}",
    },
}


@pytest.mark.parametrize("files", USED_LATER.values(), ids=USED_LATER)
def test_dry_run_does_not_try_what_uses_an_enum_value_that_it_has_added(plain: World, files: dict[str, str]) -> None:
    """A value that is added in this run can only be used when that is committed: as in the real run, which succeeds."""
    plain.write("001_a.sql", f"{ENUM} CREATE TYPE pair AS (a int);")
    plain.deploy()
    for name, text in files.items():
        plain.write(name, text)

    report = dry(plain)

    assert "enum value" in str(untried(report))
    assert names(plain.deploy()["applied"]) == names(report["tried"])


USED_AT_ONCE = {
    "by statements": f"{ADD}\n{USE}",
    "in a DO block": f"DO $$ BEGIN {ADD} {USE} END $$;",
    "in a unit": f"-- no-transaction\nBEGIN;\n{ADD}\n{USE}\nCOMMIT;",
    "added by EXECUTE": f"DO $$ BEGIN EXECUTE $e${ADD}$e$; END $$;\n{USE}",
}


def test_dry_run_does_not_set_a_sequence(world: World) -> None:
    """No rollback takes a setval back: a file that calls it is not tried, and the sequence stays where it is."""
    world.write("001_a.sql", "CREATE SEQUENCE numbers; SELECT nextval('numbers');")
    world.deploy()
    world.write("002_b.sql", "CREATE TABLE b (i int);\nSELECT pg_catalog.setval ('numbers', 4711);")

    report = world.deploy(DRY)

    assert world.sql("SELECT last_value FROM numbers") == [(1,)]
    assert [(entry["name"], entry["untried"]) for entry in report["tried"]] == [
        ("002_b", ["it calls setval, which nothing takes back"])
    ]


def test_dry_run_of_an_enum_value_used_in_its_own_transaction_fails_as_a_run_does(plain: World) -> None:
    """Where the real run would fail with 55P04, so does the dry run."""
    plain.write("001_a.sql", ENUM)
    plain.deploy()
    for case, text in USED_AT_ONCE.items():
        plain.write("002_b.sql", text)
        assert "(55P04)" in failure(plain), case
        assert "(55P04)" in failure(plain, DRY), case


MODES = {
    "BEGIN ISOLATION LEVEL SERIALIZABLE;\nINSERT INTO a VALUES (1);\nCOMMIT;": "ISOLATION LEVEL SERIALIZABLE",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;\nINSERT INTO a VALUES (1);": "ISOLATION LEVEL SERIALIZABLE",
    "-- no-transaction\nBEGIN ISOLATION LEVEL SERIALIZABLE;\nINSERT INTO a VALUES (1);\nCOMMIT;": "SERIALIZABLE",
    "-- no-transaction\nBEGIN;\nSET TRANSACTION ISOLATION LEVEL SERIALIZABLE;\nSELECT 1;\nCOMMIT;": "SERIALIZABLE",
    "-- no-transaction\nBEGIN READ ONLY;\nSELECT * FROM a;\nCOMMIT;": "READ ONLY",
}


@pytest.mark.parametrize("text", MODES)
def test_dry_run_says_that_the_modes_of_a_transaction_are_not_tried(plain: World, text: str) -> None:
    """A file, or a unit of it, that asks for an isolation level or READ ONLY runs without, and that is said."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    plain.write("002_b.sql", text)

    assert MODES[text] in str(untried(dry(plain)))
    assert names(plain.deploy()["applied"]) == ["001_a", "002_b"]


def test_dry_run_that_fails_after_what_it_did_not_try_says_so(plain: World) -> None:
    """The failure may only be that of the dry run: the last line names what it may need."""
    plain.sql("CREATE TABLE a (i int)")
    plain.write("001_a.sql", "CREATE UNIQUE INDEX CONCURRENTLY u ON a (i)")
    plain.write("002_b.sql", "ALTER TABLE a ADD CONSTRAINT u UNIQUE USING INDEX u")

    assert dry_failure(plain).splitlines() == [
        '002_b.sql:1:19: index "u" does not exist (42704). Rolled back. Fix the file and deploy again. '
        "Applied in this run: nothing.",
        "LINE 1: ALTER TABLE a ADD CONSTRAINT u UNIQUE USING INDEX u",
        "                          ^",
        "It may need what a dry run could not try: 001_a (line 1 runs outside a transaction).",
    ]
    assert names(plain.deploy()["applied"]) == ["001_a", "002_b"]


# --- Deferred constraints -------------------------------------------------------------------------------------------

DEFERRED = "CREATE TABLE p (a int PRIMARY KEY, b int REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
VIOLATIONS = {
    "file": "INSERT INTO p VALUES (1, 2);\nSELECT 1;",
    "step": "-- no-transaction\nINSERT INTO p VALUES (1, 2);\nSELECT 1;",
    "unit": "-- no-transaction\nBEGIN;\nINSERT INTO p VALUES (1, 2);\nCOMMIT;",
}


@pytest.mark.parametrize("text", VIOLATIONS.values(), ids=VIOLATIONS)
def test_dry_run_finds_a_violated_deferred_constraint_in_its_own_file(plain: World, text: str) -> None:
    """What a real run finds at COMMIT a dry run finds there too: in the file, step or unit, not in a later one."""
    plain.write("001_a.sql", DEFERRED)
    plain.write("002_b.sql", text)
    plain.write("003_c.sql", "INSERT INTO p VALUES (2, NULL);")

    message = dry_failure(plain)

    assert re.match(r'002_b\.sql:\d: insert or update on table "p" violates foreign key constraint', message)
    assert failure(plain).startswith(message.split(" (23503)")[0])


def test_dry_run_defers_constraints_again_in_each_file_as_their_tables_say(plain: World) -> None:
    """Those INITIALLY DEFERRED are deferred again after a file; INITIALLY IMMEDIATE ones are immediate again."""
    plain.write("001_a.sql", f"{DEFERRED} CREATE TABLE u (i int UNIQUE DEFERRABLE);")
    plain.write("002_b.sql", "INSERT INTO p VALUES (1, 2), (3, 1); INSERT INTO p VALUES (2, 1); SELECT 1;")
    plain.write(
        "003_c.sql", "SET CONSTRAINTS ALL DEFERRED; INSERT INTO u VALUES (1); INSERT INTO u VALUES (1);DELETE FROM u;"
    )
    plain.write("004_d.sql", "INSERT INTO p VALUES (4, 5); INSERT INTO p VALUES (5, 4); SELECT 1;")
    dry(plain)
    plain.write("005_e.sql", "INSERT INTO u VALUES (1);\nINSERT INTO u VALUES (1);\nDELETE FROM u;")

    message = dry_failure(plain)

    assert message.startswith('005_e.sql:2: duplicate key value violates unique constraint "u_i_key" (23505). Rolled')
    assert failure(plain).startswith(message[:90])


def test_dry_run_of_steps_with_pending_trigger_events_succeeds_as_a_run_does(plain: World) -> None:
    """Each step of a marked file finds the deferred events of the one before it done."""
    plain.write("001_a.sql", DEFERRED)
    plain.write("002_b.sql", "-- no-transaction\nINSERT INTO p VALUES (1, 1);\nALTER TABLE p ADD c int;")

    assert names(dry(plain)["tried"]) == names(plain.deploy()["applied"])


def test_dry_run_with_a_deferrable_constraint_of_another_schema_succeeds(plain: World) -> None:
    """A schema that the admin may not use, and another session's temporary table, do not stop it."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    as_superuser(plain, "CREATE SCHEMA hidden; CREATE TABLE hidden.t (i int UNIQUE DEFERRABLE)")
    with plain.connection() as other:
        rows(other, "CREATE TEMP TABLE theirs (i int UNIQUE DEFERRABLE)")

        assert names(plain.deploy(DRY)["tried"]) == ["001_a"]


# --- Whatever a file does to the session ----------------------------------------------------------------------------

SESSION = {
    "BEGIN and COMMIT": "BEGIN;\nINSERT INTO a VALUES (1);\nCOMMIT;",
    "savepoints": "SAVEPOINT x; INSERT INTO a VALUES (2); ROLLBACK TO x; RELEASE x; SAVEPOINT db_setup_transaction;",
    "settings": "SET search_path = s; SET lock_timeout = 0; SET TIME ZONE 'Asia/Tokyo'; SET LOCAL work_mem = '1MB';",
    "search path is back": "SELECT 1 / (current_setting('search_path') LIKE '%public%')::int;",
    "role": "SET ROLE tmp_other; CREATE TABLE s.theirs (i int);",
    "role for the transaction": "SET LOCAL ROLE tmp_other; CREATE TABLE s.theirs_too (i int);",
    "session authorization": "SET SESSION AUTHORIZATION DEFAULT; SELECT 1 / (current_user = session_user)::int;",
    "temporary table": "CREATE TEMP TABLE x AS SELECT 1 AS i; INSERT INTO a SELECT i FROM x;",
    "temporary table again": "CREATE TEMP TABLE x (i int UNIQUE DEFERRABLE); INSERT INTO x VALUES (1);",
    "temporary table on commit": "CREATE TEMP TABLE x (i int) ON COMMIT DROP; INSERT INTO x VALUES (1);",
    "cursors": "DECLARE c CURSOR FOR SELECT * FROM a; FETCH c; DECLARE h CURSOR WITH HOLD FOR SELECT 1; FETCH h;",
    "cursors again": "DECLARE c CURSOR FOR SELECT 1; DECLARE h CURSOR WITH HOLD FOR SELECT 1;",
    "prepared statement": "PREPARE p AS INSERT INTO a VALUES (3); EXECUTE p;",
    "prepared statement again": "PREPARE p AS SELECT 1; EXECUTE p; DEALLOCATE p;",
    "reset": "RESET ALL; DISCARD TEMP; DISCARD PLANS; DISCARD SEQUENCES; DEALLOCATE ALL; CLOSE ALL;",
    "advisory locks": "SELECT pg_advisory_lock(42); SELECT pg_advisory_xact_lock(43); SELECT pg_advisory_unlock_all();",
    "signals": "LISTEN x; NOTIFY x, 'hello'; UNLISTEN *; LISTEN y;",
    "rows of COPY": "COPY a FROM stdin;\n4\n5\n\\.\nCOPY a (i) FROM STDIN WITH (FORMAT csv);\n6\n\\.\nSELECT 1;\n",
    "strings with backslashes": "SET standard_conforming_strings = off;\nSELECT 'it\\'s';\nINSERT INTO a VALUES (7);",
    "large object": "SELECT lo_create(4711); SELECT lo_put(4711, 0, 'x'); COMMENT ON LARGE OBJECT 4711 IS 'x';",
    "long": "".join(f"INSERT INTO a VALUES ({i}); -- {'x' * 1000}\n" for i in range(1100)),
    "drop": "DROP TABLE gone CASCADE; TRUNCATE kept RESTART IDENTITY; ALTER TABLE kept RENAME TO else_where;",
    "roles": "CREATE ROLE tmp_new LOGIN; GRANT tmp_new TO CURRENT_USER; COMMENT ON ROLE tmp_new IS 'x'; "
    "ALTER ROLE CURRENT_USER SET work_mem = '2MB'; DROP ROLE tmp_old;",
    "defaults of the database": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''2MB''', "
    "current_database()); EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database()); END $$;",
    "the tracking table": "GRANT ALL ON schema_migrations TO tmp_other; ALTER TABLE schema_migrations ADD extra int;",
}


def test_dry_run_of_files_that_change_the_session_succeeds_and_leaves_nothing(plain: World) -> None:
    """Whatever a file does to its session, the next one finds it as new, and nothing is left of it on the server."""
    plain.sql(
        "CREATE ROLE tmp_other; CREATE ROLE tmp_old; GRANT tmp_other TO CURRENT_USER; CREATE SCHEMA s;"
        "GRANT USAGE, CREATE ON SCHEMA s TO tmp_other; CREATE TABLE gone (i int); INSERT INTO gone VALUES (1);"
        "CREATE VIEW v AS SELECT * FROM gone; CREATE TABLE kept (i serial); INSERT INTO kept VALUES (1);"
        "CREATE TABLE a (i int);"
    )
    for number, text in enumerate(SESSION.values(), 1):
        plain.write(f"{number:03d}.sql", text)

    report = dry(plain)

    assert names(report["tried"]) == [f"{number:03d}" for number in range(1, len(SESSION) + 1)]
    assert untried(report) == {}
    assert names(plain.deploy()["applied"]) == names(report["tried"])
    assert plain.sql("SELECT count(*) FROM a") == [(1107,)]


# A cursor WITH HOLD is read at COMMIT, of which a dry run has none.
TRIED_FOLDERS = {name: files for name, files in FOLDERS.items() if name != "fails: a cursor that is read at the end"}


@pytest.mark.parametrize("files", TRIED_FOLDERS.values(), ids=TRIED_FOLDERS.keys())
def test_dry_run_of_a_folder_succeeds_where_the_run_does(plain: World, files: dict[str, str]) -> None:
    """Whatever migrates can be tried before; what fails, fails in the same file with the same words."""
    for name, text in files.items():
        plain.write(name, text)
    tried, failed, before = [], "", objects(plain)
    try:
        tried = names(plain.deploy(DRY)["tried"])
    except InitializerError as exc:
        failed = str(exc)
    assert objects(plain) == before

    try:
        assert names(plain.deploy()["applied"]) == tried, failed
    except InitializerError as exc:
        verdict = str(exc).splitlines()[0]
        assert failed.startswith(verdict.split(" Rolled back.")[0].split(" The statements before")[0])


# --- Users ----------------------------------------------------------------------------------------------------------


def test_dry_run_of_users_that_are_fine_keeps_them(world: World) -> None:
    """Logins that work are kept, their secrets are read and not written, and both still work."""
    world.deploy()
    world.write("001_a.sql", "CREATE TABLE a (i int); GRANT ALL ON schema_migrations TO readwrite, PUBLIC;")

    report = dry(world)

    assert report["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert all(works(world, world.secret(name)) for name in ("user", "creator"))
    world.deploy()


def test_dry_run_of_a_broken_user_would_repair_it_and_changes_neither_role_nor_secret(world: World) -> None:
    """One login whose password is lost and one that was dropped stay so, until a migration repairs them."""
    world.deploy()
    lost = {**world.secret("user"), "password": "lost"}
    world.put_secret("user", lost)
    as_superuser(world, "DROP OWNED BY app_tc; DROP ROLE app_tc")

    report = dry(world)

    assert report["users"] == {"app_rw": "would be mended", "app_tc": "would be created"}
    assert world.secret("user") == lost
    assert world.deploy()["users"] == {"app_rw": "mended", "app_tc": "created"}
    assert all(works(world, world.secret(name)) for name in ("user", "creator"))


def test_dry_run_that_may_not_make_users_says_so_and_keeps_what_is_there(world: World) -> None:
    """A role that a migration would refuse is refused, with the same reason."""
    world.deploy()
    world.put_secret("user", {**world.secret("user"), "password": "lost"})
    as_superuser(world, "ALTER ROLE app_rw SUPERUSER")

    message = dry_failure(world)

    assert message.startswith("role app_rw is more powerful than a limited user may be. It was not changed.")
    assert message == failure(world)


# --- The log --------------------------------------------------------------------------------------------------------


def test_dry_run_says_in_each_line_of_the_log_that_it_is_one(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first line and the last there is none that could be taken for a real run's, the watcher's neither;
    what the first file says is not lost."""
    monkeypatch.setattr(watcher, "FIRST_LINE_S", 0.3)
    world.write("001_a.sql", "DO $$ BEGIN RAISE NOTICE 'hello 1'; END $$; SELECT pg_sleep(1);")
    world.write("002_b.sql", "DO $$ BEGIN RAISE NOTICE 'hello 2'; END $$;")

    world.deploy(DRY)

    first, *lines, last = said(caplog)
    assert (first.split()[0], last.split()[0]) == ("starting", "done")
    assert [line for line in lines if not line.startswith("dry run: ")] == []
    assert any("still running" in line for line in lines)
    assert re.findall("hello .", " ".join(lines)) == ["hello 1", "hello 2"]


def test_dry_run_leaves_the_log_of_the_next_run_without_its_words(
    plain: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A warm sandbox's next invocation, also after a dry run that failed, is a real one in the log too."""
    plain.write("001_a.sql", "SELECT nope;")
    with pytest.raises(MigrationError):
        plain.deploy(DRY)
    plain.write("001_a.sql", "SELECT 1;")
    caplog.clear()

    plain.deploy()

    assert not any("dry run" in line for line in said(caplog))


# --- Failures -------------------------------------------------------------------------------------------------------

FAILING = {
    "unknown column": "SELECT 1;\nSELECT nope FROM a;",
    "syntax": "INSERT INTO a VALUES (1);\nSELEC 1;",
    "unclosed parenthesis": "SELECT (1",
    "unclosed parenthesis at the end": "INSERT INTO a VALUES (1);\nSELECT (1\n",
    "row": "INSERT INTO a VALUES (1), (1);",
    "row of COPY": "COPY a FROM stdin;\n1\nx\n\\.\n",
    "in a DO block": "SELECT 1;\nDO $$ BEGIN\n  PERFORM 1 / 0;\nEND $$;",
    "transaction": "SELECT 1;\nVACUUM a;",
    "psql": "\\i other.sql",
    "string": "SELECT 'it's';",
    "setting": "SET nope = 1;",
}


@pytest.mark.slow
def test_dry_run_of_a_failing_file_raises_as_a_run_does(plain: World, caplog: pytest.LogCaptureFixture) -> None:
    """The same message as the real run's, which has applied the file before it; all files are still pending."""
    plain.sql("CREATE TABLE a (i int PRIMARY KEY)")
    plain.write("001_a.sql", "SELECT 1;")
    plain.write("003_c.sql", "SELECT 1;")
    messages = {}
    with unchanged(plain):
        for case, text in FAILING.items():
            plain.write("002_b.sql", text)
            messages[case] = failure(plain, DRY).replace("this run: nothing", "this run: 001_a")
            (line,) = [line for line in said(caplog) if line.startswith("failed ")]
            assert "applied=0 adopted=0 pending=3 failed=1" in line
            caplog.clear()
    plain.remove("003_c.sql")
    plain.remove("002_b.sql")
    plain.deploy()
    plain.write("003_c.sql", "SELECT 1;")
    for case, text in FAILING.items():
        plain.write("002_b.sql", text)
        assert messages[case] == failure(plain).replace("this run: nothing", "this run: 001_a"), case


@pytest.mark.slow
def test_dry_run_that_runs_out_of_time_rolls_all_back_and_does_not_promise_to_go_on(plain: World) -> None:
    """The deadline ends it as it ends a run; the next one begins from the start, which the message does not deny."""
    plain.sql("CREATE TABLE a (i int)")
    plain.write("001_a.sql", "CREATE INDEX CONCURRENTLY i ON a (i)")
    plain.write("002_b.sql", "ALTER TABLE a ADD s text;")
    plain.write("003_c.sql", "SELECT pg_sleep(60);")

    message = dry_failure(plain, Context(4))

    assert re.match("out of time", message)
    assert "to go on" not in message
    assert "It may need" not in message


@pytest.mark.slow
def test_dry_run_that_runs_out_of_time_among_the_users_does_not_say_that_no_file_was_started(world: World) -> None:
    """All were tried; nothing of them stays."""
    world.deploy()
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.put_secret("user", {**world.secret("user"), "password": "a wrong one"})
    superuser = {"username": world.server.user, "password": world.server.password}

    with open_transaction(world, "ALTER ROLE app_rw CONNECTION LIMIT 50", **superuser):
        message = failure(world, DRY, Context(4))

    assert re.match(r"out of time\. Applied in this run: nothing\. The rest is not done yet\. ", message)


def test_dry_run_whose_connection_is_lost_leaves_nothing(plain: World) -> None:
    """The server rolls back what it has heard of so far."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    plain.write("002_b.sql", "SELECT pg_terminate_backend(pg_backend_pid());")

    message = dry_failure(plain)

    assert re.match(r"002_b\.sql: .* \((57P01|no answer)\)\. The connection was lost, and the dry run with it", message)


# --- Others ---------------------------------------------------------------------------------------------------------


@contextmanager
def running(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A dry run at work in another thread; it has ended when the block is left."""
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", world.folder)
    with exactly(world.environ), ThreadPoolExecutor(1) as pool:
        yield pool.submit(initializer.handler, DRY, Context(30))


def waits(caplog: pytest.LogCaptureFixture, phrase: str) -> bool:
    return any(phrase in line for line in said(caplog))


def test_dry_run_waits_for_another_run(
    plain: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A dry run waits for the lock like any other run, and reports how long."""
    plain.write("001_a.sql", "CREATE TABLE a (i int);")
    with plain.connection() as holder:
        rows(holder, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        with running(plain, monkeypatch) as run:
            try:
                wait_until(lambda: waits(caplog, "waiting for another run"))
                assert not run.done()
            finally:
                rows(holder, "SELECT pg_advisory_unlock(%s)", LOCK_KEY)
            report = run.result(20)

    assert names(report["tried"]) == ["001_a"]
    assert report["lock_wait_ms"] > 0


def test_dry_run_keeps_another_run_waiting(plain: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a dry run is at work, no other run is."""
    plain.write("001_a.sql", "SELECT pg_advisory_unlock_all();")
    plain.write("002_b.sql", "SELECT pg_sleep(1);")
    with running(plain, monkeypatch) as run:
        wait_until(lambda: any("pg_sleep" in query for _, _, query in sessions(plain)))
        assert plain.sql("SELECT pg_try_advisory_lock(%s)", LOCK_KEY) == [(False,)]
        run.result(20)


def test_dry_run_blocked_by_a_lock_retries(
    plain: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that waits longer than LOCK_TIMEOUT rolls back and is retried; what it did before is not done twice."""
    plain.sql("CREATE TABLE a (i int); CREATE TABLE done (i int UNIQUE)")
    plain.write("001_a.sql", "INSERT INTO done VALUES (1);")
    plain.write("002_b.sql", "INSERT INTO done VALUES (2);\nALTER TABLE a ADD s text;")
    with open_transaction(plain, "LOCK TABLE a") as other, running(plain, monkeypatch) as run:
        try:
            wait_until(lambda: waits(caplog, "dry run: gave way migration=002_b sqlstate=55P03"))
            assert not run.done()
        finally:
            rows(other, "ROLLBACK")
        assert names(run.result(20)["tried"]) == ["001_a", "002_b"]


def test_dry_run_that_waits_for_one_table_does_not_keep_readers_from_another(
    plain: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A long transaction blocks it, for minutes: those who want what the dry run holds already need not wait
    for that too."""
    plain.sql("CREATE TABLE a (i int); CREATE TABLE b (i int)")
    plain.write("001_a.sql", "ALTER TABLE a ADD s text;")
    plain.write("002_b.sql", "ALTER TABLE b ADD s text;")
    longest = 0.0
    with open_transaction(plain, "SELECT * FROM b") as other, running(plain, monkeypatch) as run:
        try:
            wait_until(lambda: waits(caplog, "gave way") or run.done())
            started = time.monotonic()
            with plain.connection() as reader:
                rows(reader, "SET statement_timeout = '2500ms'")
                try:
                    rows(reader, "SELECT * FROM a")
                except psycopg2.errors.QueryCanceled:
                    longest = time.monotonic() - started
        finally:
            rows(other, "ROLLBACK")
        run.exception(20)

    assert longest < 2, f"a reader of a waited for {longest:.1f} s"


def test_dry_run_ends_every_thread(plain: World) -> None:
    """After success or failure, nothing of it goes on."""
    threads = set(threading.enumerate())
    plain.write("001_a.sql", "SELECT 1;")
    plain.deploy(DRY)
    plain.write("002_b.sql", "SELECT pg_terminate_backend(pg_backend_pid());")
    with pytest.raises((MigrationError, ConnectError)):
        plain.deploy(DRY)

    assert set(threading.enumerate()) <= threads


def test_dry_run_retries_where_the_tracking_table_is_locked(world: World) -> None:
    """The predecessor's table lacks columns, and somebody reads it."""
    columns = "id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, applied_at TIMESTAMP"
    world.sql(f"CREATE TABLE schema_migrations ({columns})")
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    with world.connection() as conn:
        rows(conn, "BEGIN; SELECT * FROM schema_migrations")
        timer = threading.Timer(1.2, lambda: rows(conn, "COMMIT"))
        timer.start()
        report = world.deploy(DRY, CREATE_USERS="false", LOCK_TIMEOUT="400ms")
        timer.join()

    assert [entry["name"] for entry in report["tried"]] == ["001_a"]


# --- What no ROLLBACK takes back ------------------------------------------------------------------------------------


REACHING = """
    CREATE FUNCTION make_slot() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM {}; END $$;
    CREATE FUNCTION by_another() RETURNS int LANGUAGE sql AS 'SELECT make_slot(); SELECT 1';
    CREATE VIEW slots_made AS SELECT by_another();
    CREATE TABLE with_default (i int DEFAULT by_another());
    CREATE TABLE with_rule (i int);
    CREATE RULE r AS ON INSERT TO with_rule DO ALSO SELECT by_another();"""
FOLLOWED = {
    "by_another": "SELECT by_another();",
    "slots_made": "SELECT * FROM slots_made;",
    "with_default": "INSERT INTO with_default DEFAULT VALUES;",
    "with_rule": "INSERT INTO with_rule VALUES (1);",
    "make_slot": "DO $$ BEGIN EXECUTE 'SELECT make_slot()'; END $$;",
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_dry_run_follows_what_a_file_calls(plain: World, name: str) -> None:
    """Functions, views, defaults and rules are followed to the call that stays."""
    plain.sql(REACHING.format("pg_create_physical_replication_slot('ours_dry')"))
    plain.write("001_a.sql", FOLLOWED[name])

    report = plain.deploy({"action": "dry_run"})

    assert report["tried"][0]["untried"] == [f"it calls {name}, which nothing takes back"]


def test_dry_run_does_not_call_setval_in_a_function(plain: World) -> None:
    """A sequence keeps the value whatever is rolled back, whoever sets it."""
    plain.sql("CREATE SEQUENCE s; CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS $$ SELECT setval('s', 99) $$;")
    plain.write("001_a.sql", "SELECT f();")

    report = plain.deploy({"action": "dry_run"})

    assert report["tried"][0]["untried"] == ["it calls f, which nothing takes back"]
    assert plain.sql("SELECT last_value FROM s") == [(1,)]


NAMED_ONLY = {
    "a comment": "-- no dblink('x') here, nor /* */ setval('s', 1)\nSELECT 1; /* SELECT lo_export(1, 'x') */",
    "a string": "SELECT 'SELECT dblink_connect(1)', $$setval('s', 1)$$, E'\\'pg_reload_conf()';",
    "a name": "CREATE TABLE dblink_log (setval int, http text);",
    "rows": "CREATE TABLE n (a text);\nCOPY n FROM STDIN;\nit's dblink('x')\n\\.\nSELECT 1;",
    "a string in a body": "DO $$ BEGIN RAISE NOTICE 'as dblink(%) did', 1; END $$;",
}


@pytest.mark.parametrize("text", NAMED_ONLY.values(), ids=NAMED_ONLY)
def test_dry_run_tries_a_file_that_only_names_a_call(plain: World, text: str) -> None:
    """Comments, strings and rows are not executed, so nothing stays."""
    plain.sql("CREATE SEQUENCE s")
    plain.write("001_a.sql", text)

    report = plain.deploy({"action": "dry_run"})

    assert report["tried"][0]["untried"] == []


@pytest.mark.parametrize("how", ["in the file", "in a function", "in a trigger"])
def test_dry_run_does_not_make_a_replication_slot(world: World, how: str) -> None:
    """What stays whatever is rolled back is not tried, wherever it is called, and that is listed."""
    call = "pg_create_physical_replication_slot('ours_dry')"
    text, name = f"SELECT {call};", "pg_create_physical_replication_slot"
    if how == "in a function":
        world.sql(f"CREATE FUNCTION make_slot() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM {call}; END $$")
        text, name = "SELECT make_slot();", "make_slot"
    elif how == "in a trigger":
        body = f"BEGIN PERFORM {call}; RETURN NEW; END"
        world.sql(
            f"CREATE FUNCTION slots() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$; CREATE TABLE watched (i int);"
            "CREATE TRIGGER t BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION slots()"
        )
        text, name = "INSERT INTO watched VALUES (1);", "watched"
    world.write("001_a.sql", text)
    with world.superuser() as conn:
        rows(conn, f"ALTER ROLE {ADMIN} REPLICATION")
        try:
            report = world.deploy({"action": "dry_run"}, CREATE_USERS="false")
            slots = world.sql("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'ours_dry'")
        finally:
            rows(
                conn, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ '^ours_'"
            )
            rows(conn, f"ALTER ROLE {ADMIN} NOREPLICATION")

    assert slots == [(0,)]
    assert report["tried"][0]["untried"] == [f"it calls {name}, which nothing takes back"]

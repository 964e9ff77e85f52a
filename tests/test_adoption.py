"""Databases that existed before db_setup came: what is recorded without running, what runs, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from harness.database import SCHEMA
from harness.world import World, rows
from initializer import InitializerError, MigrationError

USERS, ITEMS = "CREATE TABLE users (id int);", "CREATE TABLE items (id int);"
FIRST = USERS + ITEMS
GUARDED = (
    "CREATE TABLE IF NOT EXISTS users (id int); CREATE TABLE IF NOT EXISTS items (id int);"
    "CREATE INDEX IF NOT EXISTS users_id ON users (id); CREATE OR REPLACE VIEW all_users AS SELECT * FROM users;"
    "COMMENT ON TABLE users IS 'people';"
)
SECOND = "ALTER TABLE users ADD nick text;"
THIRD = "ALTER TABLE users ADD age int;"


@pytest.fixture(autouse=True)
def _no_users(world: World) -> None:
    """Users do not matter here, and take time."""
    world.environ["CREATE_USERS"] = "false"


def fill(world: World, **files: str) -> None:
    """Write the files; a name that begins with a digit has a leading _ here."""
    for name, text in files.items():
        world.write(f"{name.lstrip('_')}.sql", text)


def applied(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def snapshot(world: World) -> list[tuple[Any, ...]]:
    """Every relation of the database that is not the server's own."""
    return world.sql(
        "SELECT relnamespace::regnamespace::text, relname, relkind FROM pg_class "
        "WHERE relnamespace::regnamespace::text !~ '^pg_|^information_schema' ORDER BY 1, 2"
    )


def messages(caplog: pytest.LogCaptureFixture, phrase: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(phrase)]


# --- None, all, some ------------------------------------------------------------------------------------------------


def test_database_without_a_table_of_the_first_migration_is_an_ordinary_first_run(world: World) -> None:
    """None of its tables exist: everything runs, whatever else is in the database."""
    world.sql("CREATE TABLE strangers (id int); CREATE VIEW things AS SELECT * FROM strangers")
    fill(world, _001_first=FIRST, _002_second=SECOND)

    report = world.deploy()

    assert (applied(report), report["adopted"]) == (["001_first", "002_second"], [])


def test_database_with_all_tables_of_the_first_migration_is_adopted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """All of its tables exist: the first migration is recorded without running, the rest runs."""
    world.sql(FIRST + "INSERT INTO users VALUES (1)")
    fill(world, _001_first=FIRST + "INSERT INTO users VALUES (2);", _002_second=SECOND, _003_third=THIRD)

    report = world.deploy()

    assert (report["adopted"], applied(report)) == (["001_first"], ["002_second", "003_third"])
    assert world.sql("SELECT * FROM users") == [(1, None, None)]
    assert world.sql("SELECT migration_name, adopted FROM schema_migrations ORDER BY id") == [
        ("001_first", True),
        ("002_second", None),
        ("003_third", None),
    ]
    assert messages(caplog, "existing database adopted") == [
        "existing database adopted recorded_without_running=001_first"
    ]


def test_adopted_database_is_an_ordinary_one_from_then_on(world: World) -> None:
    """An adopted migration has its checksum: a second run does nothing, and an edit is noticed."""
    world.sql(FIRST)
    fill(world, _001_first=FIRST)
    world.deploy()

    second = world.deploy()
    fill(world, _001_first=FIRST + "SELECT 1;")
    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert (applied(second), second["adopted"]) == ([], [])
    assert str(caught.value).startswith("001_first.sql: edited after it was applied")


def test_database_with_some_tables_of_a_guarded_first_migration_gets_the_rest(world: World) -> None:
    """Where every statement of the file can run again, it runs, and creates what is missing."""
    world.sql(USERS + "INSERT INTO users VALUES (1)")
    fill(world, _001_first=GUARDED, _002_second=SECOND)

    report = world.deploy()

    assert (applied(report), report["adopted"]) == (["001_first", "002_second"], [])
    assert world.tables() == ["items", "users"]
    assert world.sql("SELECT id FROM users") == [(1,)]


UNGUARDED = (
    ITEMS,
    "CREATE TABLE IF NOT EXISTS items (id int); INSERT INTO items VALUES (1);",
    "CREATE TABLE IF NOT EXISTS items (id int); DROP TABLE IF EXISTS users;",
    "CREATE TABLE IF NOT EXISTS items (id int); DO $$ BEGIN DELETE FROM users; END $$;",
)


def test_database_with_some_tables_of_an_unguarded_first_migration_is_refused(world: World) -> None:
    """What is there and what is missing are both listed, nothing is changed, and the ways out are named."""
    world.sql(USERS + "INSERT INTO users VALUES (1)")
    before = snapshot(world)
    for unguarded in UNGUARDED:
        fill(world, _001_first=f"CREATE TABLE IF NOT EXISTS users (id int); {unguarded}", _002_second=SECOND)

        with pytest.raises(MigrationError) as caught:
            world.deploy()

        assert str(caught.value) == (
            "001_first.sql: the database has no tracking table, and only some of the tables of the first migration. "
            "There: users. Missing: items. Nothing has been applied. Write the file's statements with IF NOT EXISTS, "
            "so that it can create what is missing, or set BASELINE to the last file that this database "
            "already contains."
        )
        assert snapshot(world) == before
        assert world.sql("SELECT * FROM users") == [(1,)]


def test_refused_database_deploys_once_the_file_is_guarded(world: World) -> None:
    """The first way out that the message names works."""
    world.sql(USERS)
    fill(world, _001_first=FIRST)
    with pytest.raises(MigrationError):
        world.deploy()
    fill(world, _001_first=FIRST.replace("TABLE", "TABLE IF NOT EXISTS"))

    report = world.deploy()

    assert applied(report) == ["001_first"]
    assert world.tables() == ["items", "users"]


def test_refused_database_deploys_with_a_baseline(world: World) -> None:
    """The second way out that the message names works: the file is recorded as it is, although a table is missing."""
    world.sql(USERS)
    fill(world, _001_first=FIRST, _002_second=SECOND)
    with pytest.raises(MigrationError):
        world.deploy()

    report = world.deploy(BASELINE="001_first")

    assert (report["adopted"], applied(report)) == (["001_first"], ["002_second"])
    assert world.tables() == ["users"]


def test_first_migration_without_a_table_always_runs(world: World) -> None:
    """A first migration that creates no table says nothing about the database."""
    world.sql(FIRST)
    fill(world, _001_types="CREATE TYPE mood AS ENUM ('fine');", _002_second=SECOND)

    report = world.deploy()

    assert (applied(report), report["adopted"]) == (["001_types", "002_second"], [])


def test_later_migration_is_never_adopted_without_a_baseline(world: World) -> None:
    """Only the first migration is judged: a second one whose table exists runs, and says so itself."""
    world.sql(FIRST)
    fill(world, _001_users=USERS, _002_items=ITEMS)

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert str(caught.value).startswith('002_items.sql:1: relation "items" already exists (42P07).')
    assert world.applied() == ["001_users"]


def test_adopted_file_may_hold_what_could_not_run(world: World) -> None:
    """Recorded files are judged, not run: one that sorts after the first need not even be SQL that we can read."""
    world.sql(FIRST)
    fill(world, _001_first=FIRST, _002_second="SELECT 'never closed", _003_third=THIRD)

    report = world.deploy(BASELINE="002_second")

    assert (report["adopted"], applied(report)) == (["001_first", "002_second"], ["003_third"])


# --- Which tables count ---------------------------------------------------------------------------------------------


def test_existing_table_is_recognised_however_it_is_written(world: World) -> None:
    """Names compare as PostgreSQL reads them, folded unless quoted and in their schema, in every form of CREATE TABLE.

    A table that was not recognised would be called missing.
    """
    pairs = {
        "plain": "plain",
        "folded": "FOLDED",
        "quoted": '"quoted"',
        '"Mixed Case"': '"Mixed Case"',
        '"odd ""name"""': '"odd ""name"""',
        "b\u00fccher": "b\u00fccher",
        "named": f"{SCHEMA}.named",
        "crm.users": "crm.users",
        '"Crm".users': '"Crm" . users',
        "crm.upper": "CRM.UPPER",
    }
    tails = (" (id int)", " AS SELECT 1 AS id", " (id int) PARTITION BY RANGE (id)")
    forms = {f"form_{number}": tail for number, tail in enumerate(tails)}
    world.sql('CREATE SCHEMA crm; CREATE SCHEMA "Crm"')
    world.sql("".join(f"CREATE TABLE {name} (id int);" for name in [*pairs, *forms, "unlogged", "guarded", "lower"]))
    first = [f"CREATE TABLE {name} (id int);" for name in pairs.values()]
    first += [f"CREATE TABLE {name}{tail};" for name, tail in forms.items()]
    first += ["CREATE UNLOGGED TABLE unlogged ();", "CREATE TABLE IF NOT EXISTS guarded (id int);"]
    first += ["/* first */ create -- it\ntable lower(id int)"]
    fill(world, _001_first="\n".join(first))

    report = world.deploy()

    assert (report["adopted"], applied(report)) == (["001_first"], [])


def test_table_of_another_name_or_schema_does_not_count(world: World) -> None:
    """A stray table makes no existing database; one that was mistaken would be called there."""
    world.sql("CREATE SCHEMA crm")
    strays = ('"Users"', "crm.items", "orders", "crm.prices", "spatial_ref_sys")
    world.sql("".join(f"CREATE TABLE {name} (id int);" for name in strays))
    names = ("Users", "items", "crm.orders", "crm.users", "spatial_ref")
    fill(world, _001_first="".join(f"CREATE TABLE {name} (id int);" for name in names))

    report = world.deploy()

    assert (report["adopted"], applied(report)) == ([], ["001_first"])


def test_temporary_table_of_the_first_migration_does_not_count(world: World) -> None:
    """A temporary table exists in no database before: the permanent ones decide."""
    world.sql(USERS)
    fill(world, _001_first=f"CREATE TEMP TABLE work (id int); {USERS}")

    report = world.deploy()

    assert report["adopted"] == ["001_first"]


def test_view_of_that_name_is_not_a_table(world: World) -> None:
    """Only tables count: with a view in their place the file runs, and PostgreSQL says what is wrong."""
    world.sql("CREATE TABLE others (id int); CREATE VIEW users AS SELECT 1 AS id")
    fill(world, _001_first=USERS)

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert str(caught.value).startswith('001_first.sql:1: relation "users" already exists (42P07).')


def test_table_of_an_extension_does_not_count(world: World) -> None:
    """What an extension brings (PostGIS's spatial_ref_sys, say) is not the application's."""
    with world.superuser() as conn:
        rows(conn, 'CREATE EXTENSION "uuid-ossp"')
        rows(conn, f"CREATE TABLE {SCHEMA}.items (id int)")
        rows(conn, f'ALTER EXTENSION "uuid-ossp" ADD TABLE {SCHEMA}.items')
    fill(world, _001_first=f"{USERS} CREATE TABLE IF NOT EXISTS items (id int);")

    report = world.deploy()

    assert (report["adopted"], applied(report)) == ([], ["001_first"])
    assert world.tables() == ["items", "users"]


# --- Unnumbered first files -----------------------------------------------------------------------------------------


def test_unnumbered_first_file_is_adopted_with_the_number_that_it_keeps(world: World) -> None:
    """Where no file has a number, the first by name is the first migration."""
    world.sql(FIRST)
    fill(world, first=FIRST, second=SECOND)

    report = world.deploy()

    assert world.applied() == ["001_first", "002_second"]
    assert (report["adopted"], applied(report)) == (["001_first"], ["002_second"])
    assert applied(world.deploy()) == []


def test_baseline_on_unnumbered_files_records_them_with_their_numbers(world: World) -> None:
    """A baseline may be a file without a number: what follows it runs."""
    world.sql(FIRST + SECOND)
    fill(world, _007_first=FIRST, a_second=SECOND, b_third=THIRD)

    report = world.deploy(BASELINE="a_second")

    assert (report["adopted"], applied(report)) == (["007_first", "008_a_second"], ["009_b_third"])
    assert world.applied() == ["007_first", "008_a_second", "009_b_third"]


# --- BASELINE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["002_second", "002_second.sql"])
def test_baseline_records_everything_up_to_that_file(world: World, baseline: str) -> None:
    """BASELINE names the last file that an existing database already has, with or without `.sql`."""
    world.sql(FIRST + SECOND)
    fill(world, _001_first=FIRST, _002_second=SECOND, _003_third=THIRD)

    report = world.deploy(BASELINE=baseline)

    assert (report["adopted"], applied(report)) == (["001_first", "002_second"], ["003_third"])
    assert world.applied() == ["001_first", "002_second", "003_third"]


def test_baseline_on_an_empty_database_is_not_used(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A new environment, deployed with the same variable, still runs everything."""
    fill(world, _001_first=FIRST, _002_second=SECOND)

    report = world.deploy(BASELINE="002_second")

    assert (report["adopted"], applied(report)) == ([], ["001_first", "002_second"])
    assert messages(caplog, "baseline not used") == [
        "baseline not used: no table of the first migration exists baseline=002_second"
    ]


def test_baseline_with_a_tracking_table_is_not_used(world: World) -> None:
    """Where a tracking table says what has run, a baseline says nothing."""
    fill(world, _001_first=FIRST)
    world.deploy()
    fill(world, _002_second=SECOND, _003_third=THIRD)

    report = world.deploy(BASELINE="003_third")

    assert (report["adopted"], applied(report)) == ([], ["002_second", "003_third"])


def test_baseline_that_stays_set_does_nothing_at_later_deployments(world: World) -> None:
    """The variable may stay: new files run, whatever it says."""
    world.sql(FIRST)
    fill(world, _001_first=FIRST)
    world.deploy(BASELINE="001_first")
    fill(world, _002_second=SECOND)

    report = world.deploy(BASELINE="001_first")

    assert (report["adopted"], applied(report)) == ([], ["002_second"])


def test_baseline_with_some_tables_of_the_first_migration_counts(world: World) -> None:
    """One table of the first migration is enough to tell an existing database from a new one."""
    world.sql(USERS + SECOND)
    fill(world, _001_first=GUARDED, _002_second=SECOND, _003_third=THIRD)

    report = world.deploy(BASELINE="002_second")

    assert (report["adopted"], applied(report)) == (["001_first", "002_second"], ["003_third"])
    assert world.tables() == ["users"]


def test_baseline_with_a_first_migration_without_a_table_is_not_used(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be told apart from a new database runs everything, and that is said."""
    world.sql(FIRST)
    fill(world, _001_types="CREATE TYPE mood AS ENUM ('fine');", _002_second=SECOND)

    report = world.deploy(BASELINE="001_types")

    assert (report["adopted"], applied(report)) == ([], ["001_types", "002_second"])
    assert len(messages(caplog, "baseline not used")) == 1


def test_baseline_in_another_unicode_spelling_is_found(world: World) -> None:
    """A name with an accent is one name, however the variable spells it."""
    world.sql(FIRST)
    world.write("001_cafe\u0301.sql", FIRST)

    assert world.deploy(BASELINE="001_cafe\u0301")["adopted"] == ["001_caf\u00e9"]


# --- Which table a name means ---------------------------------------------------------------------------------------

BILLING = "CREATE TABLE users (id int);"
PATHS = {
    "SET": f"CREATE SCHEMA billing; SET search_path TO billing; {BILLING}",
    "SET with several": f"CREATE SCHEMA IF NOT EXISTS billing; SET search_path = billing, public; {BILLING}",
    "SET LOCAL, quoted": f'CREATE SCHEMA "billing"; SET LOCAL search_path TO "billing"; {BILLING}',
    "SET SCHEMA": f"CREATE SCHEMA billing; SET SCHEMA 'billing'; {BILLING}",
    "set_config": "CREATE SCHEMA billing; SELECT pg_catalog.set_config('search_path', 'billing, public', false);"
    + BILLING,
    "a schema that is missing": f"CREATE SCHEMA billing; SET search_path TO none, billing; {BILLING}",
}


@pytest.mark.parametrize("first", PATHS.values(), ids=PATHS)
def test_table_in_the_schema_that_the_file_sets_is_looked_for_there(world: World, first: str) -> None:
    """A table of the same name in public belongs to another system: the file runs."""
    world.sql(USERS)
    fill(world, _001_first=first)

    report = world.deploy()

    assert (report["adopted"], applied(report)) == ([], ["001_first"])
    assert world.sql("SELECT to_regclass('billing.users') IS NOT NULL") == [(True,)]


@pytest.mark.parametrize("first", PATHS.values(), ids=PATHS)
def test_table_that_is_in_the_schema_that_the_file_sets_is_adopted(world: World, first: str) -> None:
    """The table exists there, so the database already has the file."""
    world.sql("CREATE SCHEMA billing; CREATE TABLE billing.users (id int)")
    fill(world, _001_first=first)

    assert world.deploy()["adopted"] == ["001_first"]


@pytest.mark.public  # with another schema, a file's path is not what ALTER ROLE says
def test_table_is_looked_for_in_the_schema_that_the_admins_sessions_begin_with(world: World) -> None:
    """ALTER ROLE … SET search_path decides where a name without a schema goes."""
    world.sql("CREATE SCHEMA app; CREATE TABLE app.users (id int)")
    world.sql(f'ALTER ROLE CURRENT_USER IN DATABASE "{world.dbname}" SET search_path = app')
    fill(world, _001_first=USERS)

    assert world.deploy()["adopted"] == ["001_first"]


def test_table_whose_schema_nothing_tells_asks_for_a_baseline(world: World) -> None:
    """db_setup does not guess which of two tables is meant; BASELINE, or the schema in the file, decides it."""
    world.sql(USERS)
    text = f"DO $$ BEGIN EXECUTE 'SET search_path = {SCHEMA}'; END $$; CREATE TABLE {{}}users (id int);"
    fill(world, _001_first=text.format(""))

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert str(caught.value).startswith(f"001_first.sql: is its table users the one in schema {SCHEMA}? ")
    assert snapshot(world) == [(SCHEMA, "users", "r")]
    assert world.deploy(BASELINE="001_first")["adopted"] == ["001_first"]


# --- The way back ---------------------------------------------------------------------------------------------------


def test_adopted_database_that_had_more_files_names_baseline_and_goes_on(world: World) -> None:
    """The second file fails, since the database had it, too: the message says how to go on, and that works."""
    world.sql(USERS + ITEMS)
    fill(world, _001_first=USERS, _002_items=ITEMS, _003_second=SECOND)

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert '002_items.sql:1: relation "items" already exists (42P07).' in str(caught.value)
    assert (
        "No run of a file is recorded here: 001_first was recorded without running, because its tables existed. "
        'If 002_items was applied as well, set BASELINE="002_items", or a later file that the database has, and deploy '
        "again." in str(caught.value)
    )
    report = world.deploy(BASELINE="002_items")
    assert (report["adopted"], applied(report), report["warnings"]) == (["002_items"], ["003_second"], [])
    assert world.applied() == ["001_first", "002_items", "003_second"]


@pytest.mark.parametrize("action", ["migrate", "dry_run"])
def test_adopted_database_on_which_a_file_has_run_is_not_sent_to_baseline(world: World, action: str) -> None:
    """What this run has applied before is a run of a file, and BASELINE would leave out what it did."""
    world.sql(USERS)
    fill(world, _001_first=USERS, _002_items=ITEMS, _003_second=SECOND, _004_items="CREATE TABLE items (i int)")

    with pytest.raises(MigrationError, match=r'^004_items\.sql:1: relation "items" already exists') as caught:
        world.deploy({"action": action})

    assert "BASELINE" not in str(caught.value)


def test_baseline_without_effect_is_said_in_the_report(world: World) -> None:
    """On a new database, and on one on which files have run; not where the file is recorded already."""
    fill(world, _001_first=FIRST)
    first = world.deploy(BASELINE="001_first")
    again = world.deploy(BASELINE="001_first")
    fill(world, _002_second=SECOND)
    late = world.deploy(BASELINE="002_second")

    no_table = "no table of the first migration exists, so every file runs"
    assert first["warnings"] == [f"BASELINE=001_first has no effect: {no_table}"]
    assert again["warnings"] == []
    assert late["warnings"] == [
        "BASELINE=002_second has no effect: migrations have run on this database, so that one runs"
    ]
    assert applied(late) == ["002_second"]


# --- Kept whole -----------------------------------------------------------------------------------------------------


def test_adoption_that_fails_leaves_no_tracking_table(world: World) -> None:
    """The table and the adopted rows are made together: half an adoption would let the first migration run."""
    world.sql(FIRST)
    with world.superuser() as conn:  # lets the tracking table be made, and no row be inserted
        rows(
            conn,
            f"CREATE FUNCTION {SCHEMA}.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"ALTER TABLE {SCHEMA}.schema_migrations ADD CHECK (migration_name = ''); END $$",
        )
        rows(
            conn,
            "CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE TABLE') "
            f"EXECUTE FUNCTION {SCHEMA}.refuse()",
        )
    fill(world, _001_first=FIRST)

    with pytest.raises(InitializerError, match="violates check constraint"):
        world.deploy()

    assert world.sql(f"SELECT to_regclass('{SCHEMA}.schema_migrations')") == [(None,)]

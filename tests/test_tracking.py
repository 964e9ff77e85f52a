"""The tracking table: made, taken over from the predecessor, left alone where it belongs to another tool."""

from __future__ import annotations

import socket
from typing import Any

import initializer
import pytest
import tracking
from harness.database import SCHEMA
from harness.world import LOCK_KEY, Context, World, rows
from initializer import ConfigError, MigrationError

A, B, C = "CREATE TABLE a (x int);", "CREATE TABLE b (x int);", "CREATE TABLE c (x int);"

# What the predecessor's databases have.
PREDECESSOR = (
    "CREATE TABLE schema_migrations (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, "
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
)
GOLANG_MIGRATE = "CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)"
RAILS = "CREATE TABLE schema_migrations (version character varying NOT NULL PRIMARY KEY)"  # dbmate's is the same


@pytest.fixture(autouse=True)
def _no_users(world: World) -> None:
    """Users do not matter here, and take time."""
    world.environ["CREATE_USERS"] = "false"


def applied(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def columns(world: World, table: str = "schema_migrations") -> list[tuple[Any, ...]]:
    """Name, type, NOT NULL and default of each column."""
    return world.sql(
        "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid) "
        "FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        f"{SCHEMA}.{table}",
    )


def constraints(world: World) -> list[tuple[Any, ...]]:
    return world.sql(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE conrelid = 'schema_migrations'::regclass AND contype IN ('p', 'u') ORDER BY 1"
    )


def take_over(world: World) -> None:
    """A database that the predecessor set up, with two of its rows, and their files."""
    world.sql(PREDECESSOR)
    world.sql(A + B)
    world.sql(
        "INSERT INTO schema_migrations (migration_name, applied_at) "
        "VALUES ('001_a', '2024-05-01 10:00'), ('002_b', '2024-05-02 10:00')"
    )
    world.write("001_a.sql", A)
    world.write("002_b.sql", B)


# --- Made -----------------------------------------------------------------------------------------------------------


def test_tracking_table_is_the_predecessors_with_nullable_columns_at_the_end(world: World) -> None:
    """The first three columns and the constraints are the predecessor's; ours are additive and nullable."""
    world.write("001_a.sql", A)

    world.deploy()

    made, keys = columns(world), constraints(world)
    world.sql("DROP TABLE schema_migrations")
    world.sql(PREDECESSOR)
    assert made[:3] == columns(world)
    assert keys == constraints(world)
    assert [(name, not_null) for name, _, not_null, _ in made[3:]] == [(name, False) for name in tracking.OUR_COLUMNS]


def test_tracking_table_is_made_where_there_is_no_migration(world: World) -> None:
    """An empty folder is an ordinary first run."""
    report = world.deploy()

    assert applied(report) == []
    assert world.applied() == []


def test_tracking_table_is_in_public_whatever_the_search_path_says(world: World) -> None:
    """The tracking table is schema-qualified: neither a search_path nor a table of that name elsewhere counts."""
    world.sql("CREATE SCHEMA other")
    world.sql("CREATE TABLE other.schema_migrations (version int)")
    with world.superuser() as conn:
        rows(conn, f"ALTER DATABASE {world.dbname} SET search_path = other, public")
    world.write("001_a.sql", A)

    world.deploy()

    assert world.sql(f"SELECT migration_name FROM {SCHEMA}.schema_migrations") == [("001_a",)]
    assert world.sql("SELECT count(*) FROM other.schema_migrations") == [(0,)]


def test_row_says_when_it_was_applied_and_what(world: World) -> None:
    """A row has its time, its checksum with the algorithm's version, and the hash of the file's bytes."""
    world.write("001_a.sql", A)

    world.deploy()

    select = "SELECT applied_at > now() - interval '1 minute', checksum, file_sha256, adopted FROM schema_migrations"
    [(recent, checksum, file_sha256, adopted)] = world.sql(select)
    assert (recent, adopted) == (True, None)
    assert checksum[:2] == "1:"
    assert (len(checksum), len(file_sha256)) == (66, 64)


def test_row_says_who_applied_it_how_long_that_took_and_for_which_deployment(world: World) -> None:
    """In Lambda the function's version and the request, which leads to the log; elsewhere the user and the machine."""
    context = Context(60)
    vars(context).update(function_name="shop", function_version="7", aws_request_id="8f5e-01c2")
    world.write("001_a.sql", "SELECT pg_sleep(0.2)")
    world.write("002_b.sql", "-- no-transaction\nSELECT pg_sleep(0.2);\nSELECT 1")
    world.deploy(None, context, DEPLOYMENT="it's v1.2 ü")
    world.write("003_c.sql", "SELECT 1")
    world.deploy({"action": "migrate", "variables": {"DEPLOYMENT": "3f9c2ab"}}, USER="anna")

    found = world.sql("SELECT duration_ms, applied_by, deployment FROM schema_migrations ORDER BY id")

    assert [row[1:] for row in found[:2]] == [("shop:7, request 8f5e-01c2", "it's v1.2 ü")] * 2
    assert found[2][1:] == (f"anna@{socket.gethostname()}", "3f9c2ab")
    assert [200 <= ms < 10_000 for ms, _, _ in found] == [True, True, False]
    told = world.deploy({"action": "status"})["applied"]
    assert [(one["duration_ms"], one["applied_by"], one["deployment"]) for one in told] == found


def test_row_of_an_adopted_file_says_who_recorded_it_and_not_how_long_it_took(world: World) -> None:
    world.sql(A)
    world.write("001_a.sql", A)
    assert world.deploy(DEPLOYMENT="first", USER="anna")["adopted"] == ["001_a"]
    found = world.sql("SELECT duration_ms, applied_by, deployment FROM schema_migrations")
    assert found == [(None, f"anna@{socket.gethostname()}", "first")]


def test_table_of_the_version_before_is_read_as_it_is_and_completed_by_the_next_run(world: World) -> None:
    """`status` writes nothing: what the version before did not write down is null."""
    world.write("001_a.sql", A)
    world.deploy(CREATE_USERS="false")
    drop = ", ".join(f"DROP COLUMN {name}" for name in ("duration_ms", "applied_by", "deployment"))
    world.sql(f"ALTER TABLE schema_migrations {drop}")

    (told,) = world.deploy({"action": "status"})["applied"]
    report = world.deploy(CREATE_USERS="false")

    assert (told["name"], told["duration_ms"], told["applied_by"], told["deployment"]) == ("001_a", None, None, None)
    assert report["applied"] == []
    assert [name for name, *_ in columns(world)][3:] == list(tracking.OUR_COLUMNS)


def test_older_code_can_insert_into_the_table_and_its_row_counts(world: World) -> None:
    """A rolled-back predecessor names migration_name alone; its row means applied, and is completed later."""
    world.write("001_a.sql", A)
    world.deploy()
    world.sql(B)
    world.sql("INSERT INTO schema_migrations (migration_name) VALUES (%s)", "002_b")
    world.write("002_b.sql", B)

    report = world.deploy()

    assert applied(report) == []
    assert world.sql("SELECT count(*) FROM schema_migrations WHERE checksum IS NULL OR file_sha256 IS NULL") == [(0,)]


# --- Taken over -----------------------------------------------------------------------------------------------------


def test_predecessors_table_is_taken_over_with_its_rows(world: World) -> None:
    """Rows stay as they are, columns are added, checksums are filled in, and only new files run."""
    take_over(world)
    world.write("003_c.sql", C)
    before = world.sql("SELECT id, migration_name, applied_at FROM schema_migrations ORDER BY id")

    report = world.deploy()

    assert (applied(report), report["adopted"]) == (["003_c"], [])
    assert world.sql("SELECT id, migration_name, applied_at FROM schema_migrations ORDER BY id")[:2] == before
    assert world.sql("SELECT count(*) FROM schema_migrations WHERE checksum LIKE '1:%'") == [(3,)]


def test_predecessors_table_is_taken_over_once(world: World) -> None:
    """The second run changes no row of it."""
    take_over(world)
    world.deploy()
    before = world.sql("SELECT xmin::text, * FROM schema_migrations ORDER BY id")

    world.deploy()

    assert world.sql("SELECT xmin::text, * FROM schema_migrations ORDER BY id") == before


def test_predecessors_empty_table_lets_everything_run(world: World) -> None:
    """Where there is a tracking table nothing is adopted, whatever tables exist: what is not recorded has not run."""
    world.sql(PREDECESSOR)
    world.sql(A)
    world.write("001_a.sql", "CREATE TABLE IF NOT EXISTS a (x int);")
    world.write("002_b.sql", B)

    report = world.deploy(BASELINE="002_b")

    assert (applied(report), report["adopted"]) == (["001_a", "002_b"], [])


def test_predecessors_file_that_could_not_run_here_is_only_recorded(world: World) -> None:
    """An applied file is not refused for what would be refused today: it will not run again."""
    take_over(world)
    world.write("001_a.sql", f"{A}\nCOMMIT;\nSELECT 1;")
    world.write("002_b.sql", "SELECT 'never closed")

    first, second = world.deploy(), world.deploy()

    assert (applied(first), applied(second)) == ([], [])
    assert world.sql("SELECT migration_name, left(checksum, 2) FROM schema_migrations ORDER BY id") == [
        ("001_a", "1:"),
        ("002_b", "0:"),
    ]


def test_predecessors_unreadable_file_that_could_not_run_here_names_its_place(world: World) -> None:
    """An applied file that is not UTF-8 is refused before anything has run."""
    take_over(world)
    (world.folder / "002_b.sql").write_bytes(B.encode() + b" -- \xfc")
    world.write("003_c.sql", C)

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert str(caught.value).startswith("002_b.sql:1:28: byte 0xfc is not UTF-8. Nothing has been applied.")
    assert world.tables() == ["a", "b"]


# --- Newer versions -------------------------------------------------------------------------------------------------


def test_columns_and_tables_of_a_newer_version_are_not_an_error(world: World) -> None:
    """A rolled-back deployment runs on a database that a newer version has extended, and leaves that alone."""
    world.write("001_a.sql", A)
    world.deploy()
    world.sql("ALTER TABLE schema_migrations ADD cost_ms int, ADD run_by text DEFAULT 'newer'")
    world.sql("CREATE TABLE schema_migrations_future (id int)")
    extended = columns(world)
    world.write("002_b.sql", B)

    report = world.deploy()

    assert applied(report) == ["002_b"]
    assert columns(world) == extended


def test_columns_in_another_order_are_not_an_error(world: World) -> None:
    """Columns are known by their names, as after a dump and restore of a changed table."""
    world.sql(
        "CREATE TABLE schema_migrations (applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, checksum TEXT, "
        "migration_name VARCHAR(255) UNIQUE NOT NULL, id SERIAL PRIMARY KEY)"
    )
    world.sql("INSERT INTO schema_migrations (migration_name) VALUES ('001_a')")
    world.write("001_a.sql", A)
    world.write("002_b.sql", B)

    report = world.deploy()

    assert applied(report) == ["002_b"]
    assert world.applied() == ["001_a", "002_b"]


# --- Other tools ----------------------------------------------------------------------------------------------------


OTHER_TOOLS = {
    "version, dirty": GOLANG_MIGRATE,
    "version": RAILS,
    "id, version, name": "CREATE TABLE schema_migrations (id int, version text, name text)",
    "id, migration_name": "CREATE VIEW schema_migrations AS SELECT 1 AS id, 'x' AS migration_name",
}


def test_other_tools_table_is_refused_with_its_columns(world: World) -> None:
    """A `schema_migrations` that is not ours is left alone, and the message names its columns and the way out."""
    world.write("001_a.sql", A)
    for found, made in OTHER_TOOLS.items():
        world.sql(made)
        before = columns(world)

        with pytest.raises(ConfigError) as caught:
            world.deploy()

        assert str(caught.value) == (
            f'table {SCHEMA}."schema_migrations" belongs to another tool (columns: {found}): set MIGRATIONS_TABLE to a '
            "name of its own, such as db_setup_migrations. Nothing has been touched."
        )
        assert columns(world) == before
        assert world.tables() == []
        world.sql(f"DROP {'VIEW' if 'VIEW' in made else 'TABLE'} schema_migrations")


def test_other_tools_table_stays_where_migrations_table_names_another(world: World) -> None:
    """The way out works: MIGRATIONS_TABLE, with the very name from the message, and both tools go on."""
    world.sql(GOLANG_MIGRATE)
    world.sql("INSERT INTO schema_migrations VALUES (7, false)")
    world.write("001_a.sql", A)
    with pytest.raises(ConfigError):
        world.deploy()

    first = world.deploy(MIGRATIONS_TABLE="db_setup_migrations")
    second = world.deploy(MIGRATIONS_TABLE="db_setup_migrations")

    assert (applied(first), applied(second)) == (["001_a"], [])
    assert world.applied("db_setup_migrations") == ["001_a"]
    assert world.sql("SELECT * FROM schema_migrations") == [(7, False)]


def test_migrations_table_is_the_only_one_that_counts(world: World) -> None:
    """With MIGRATIONS_TABLE set, neither a predecessor's table nor its rows are looked at."""
    take_over(world)
    world.sql("DROP TABLE a, b")

    report = world.deploy(MIGRATIONS_TABLE="applied_files")

    assert applied(report) == ["001_a", "002_b"]
    assert world.applied("applied_files") == ["001_a", "002_b"]
    assert len(columns(world)) == 3


def test_migrations_table_may_have_any_plain_name(world: World) -> None:
    """A plain identifier needs no thought about keywords or length; the default table is not made."""
    world.write("001_a.sql", "SELECT 1")
    for name in ("order", "select", "_m1", "m" * 49):
        first, second = world.deploy(MIGRATIONS_TABLE=name), world.deploy(MIGRATIONS_TABLE=name)

        assert (applied(first), applied(second)) == (["001_a"], [])
        assert world.applied(name) == ["001_a"]
    assert world.sql(f"SELECT to_regclass('{SCHEMA}.schema_migrations')") == [(None,)]


# --- Nothing to do --------------------------------------------------------------------------------------------------


def test_run_with_nothing_pending_and_working_users_never_takes_the_lock(world: World) -> None:
    """With nothing to do a deployment does not wait for another one."""
    world.write("001_a.sql", A)
    world.deploy(CREATE_USERS="true")
    with world.connection() as other:
        rows(other, "SELECT pg_advisory_lock(%s)", LOCK_KEY)

        report = world.deploy(context=Context(6), CREATE_USERS="true")

    assert (applied(report), report["pending"]) == ([], [])
    assert report["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_run_with_something_pending_waits_for_the_lock(world: World) -> None:
    """What the test above holds is the lock that a run with something to do takes."""
    world.write("001_a.sql", A)
    world.deploy()
    world.write("002_b.sql", B)
    with world.connection() as other:
        rows(other, "SELECT pg_advisory_lock(%s)", LOCK_KEY)

        with pytest.raises(initializer.LockError) as caught:
            world.deploy(context=Context(3.5))

    assert str(caught.value).startswith("another run (pid ")
    assert "This run has changed nothing" in str(caught.value)
    assert world.tables() == ["a"]


def test_run_with_nothing_pending_writes_nothing(world: World) -> None:
    """A second deployment is a read."""
    world.write("001_a.sql", A)
    world.deploy()
    before = world.sql("SELECT xmin::text, * FROM schema_migrations")
    world.sql(f"ALTER DATABASE {world.dbname} SET default_transaction_read_only = on")

    report = world.deploy()

    assert report["status"] == "ok"
    assert world.sql("SELECT xmin::text, * FROM schema_migrations") == before


def test_tracking_table_that_was_copied_without_its_key_is_read(world: World) -> None:
    """As CREATE TABLE AS and some services copy it: no default numbers its rows any more."""
    world.write("001_a.sql", "CREATE TABLE IF NOT EXISTS a (i int);")
    world.deploy(CREATE_USERS="false")
    world.sql("CREATE TABLE copy AS SELECT * FROM schema_migrations; DROP TABLE schema_migrations")
    world.sql("ALTER TABLE copy RENAME TO schema_migrations")
    world.write("002_b.sql", "INSERT INTO a VALUES (1);")

    applied = [world.deploy(CREATE_USERS="false")["applied"] for _ in range(2)]

    assert [len(entries) for entries in applied] == [1, 0]
    assert world.sql("SELECT count(*) FROM a") == [(1,)]


def test_tracking_with_a_progress_table_of_another_tool_is_refused(world: World) -> None:
    """Its name is ours, so its rows would be taken for marks."""
    world.sql("CREATE TABLE schema_migrations_progress (id int)")
    world.write("001_a.sql", "CREATE TABLE a (i int);")

    with pytest.raises(ConfigError, match=rf'table {SCHEMA}\."schema_migrations_progress" belongs to another tool'):
        world.deploy(CREATE_USERS="false")


def test_tracking_table_without_columns_belongs_to_another_tool(world: World) -> None:
    world.sql("CREATE TABLE schema_migrations ()")
    world.write("001_a.sql", "SELECT 1;")

    with pytest.raises(ConfigError, match="belongs to another tool"):
        world.deploy()


def test_tracking_of_a_file_that_ran_in_part_and_was_recorded_by_hand_is_complete(world: World) -> None:
    """The operator has done the rest; nothing is to be warned of."""
    world.write("001_a.sql", "-- no-transaction\nSELECT 1;\nSELECT nope;")
    with pytest.raises(MigrationError):
        world.deploy(CREATE_USERS="false")
    world.sql("INSERT INTO schema_migrations (migration_name) VALUES ('001_a')")

    assert [world.deploy(CREATE_USERS="false")["warnings"] for _ in range(2)] == [[], []]

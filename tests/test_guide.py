"""The guide says what is so: its recipes run in their order, its checks find what they should, and what it warns of
happens."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import initializer
import psycopg2
import pytest
from guide_under_load import WORDS
from harness import clients, database, guide, load
from harness.database import create_database, drop_database
from harness.guide import GUIDE, Block
from harness.others import open_transaction, wait_until
from harness.server import Server
from harness.world import ADMIN, ADMIN_PASSWORD, World, exactly, rows
from initializer import ConfigError, MigrationError

SCHEMA = guide.SCHEMA.read_text()
LOCKS = guide.section("Why a short statement stops everybody")


def major(world: World) -> int:
    return world.server.version // 10000


def names(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def write(world: World, *blocks: Block) -> None:
    for block in blocks:
        world.write(f"{block.name}.sql", block.text)


def file_of(title: str, name: str) -> Block:
    """The file of a recipe whose name ends so."""
    return next(block for block in guide.recipe(title).files if block.name.endswith(name))


def statement(block: Block) -> str:
    """A file's text without its comments."""
    return re.sub(r"^--.*\n", "", block.text, flags=re.MULTILINE)


def refusal(world: World, text: str) -> str:
    """What PostgreSQL says to this, as the admin; nothing of it stays."""
    with open_transaction(world) as conn:
        try:
            rows(conn, text)
        except psycopg2.Error as exc:
            return f"{exc.pgcode} {exc.diag.message_primary}"
        return ""


@pytest.fixture
def shop(world: World) -> World:
    """A world with the tables of the examples and a few rows, without users."""
    world.environ["CREATE_USERS"] = "false"
    world.write(guide.SCHEMA.name, SCHEMA)
    write(world, *guide.prelude())
    world.deploy()
    fill(world)
    return world


def fill(world: World) -> None:
    world.sql(
        "INSERT INTO users (email) VALUES ('a@example.com'), ('b@example.com');"
        "INSERT INTO products (name, price, user_id) SELECT 'thing', 9.99, id FROM users;"
        "INSERT INTO orders (user_id, total, note) SELECT id, 10, 'first' FROM users;"
        "INSERT INTO events (kind) VALUES ('login'), ('logout');"
        "INSERT INTO tags VALUES ('red')"
    )


# --- The recipes as they are ----------------------------------------------------------------------------------------

OLD_AND_NEW_CODE = """
    INSERT INTO orders (user_id, reference, total, note)
        SELECT user_id, 'by old code', 1, 'came back' FROM orders LIMIT 1;
    INSERT INTO orders (user_id, reference, total, remark)
        SELECT user_id, 'by new code', 1, 'urgent' FROM orders LIMIT 1;
    UPDATE orders SET note = 'changed by old code' WHERE reference = 'order 1';
    UPDATE orders SET remark = 'changed by new code' WHERE reference = 'order 2';
    DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM orders WHERE remark IS NULL OR remark IS DISTINCT FROM note); END $$;
"""
# What the application does before a file, by the end of the file's name.
MEANWHILE = {
    "drop_note": OLD_AND_NEW_CODE,
    "drop_old_tags": "INSERT INTO tags VALUES ('red'), ('blue') ON CONFLICT DO NOTHING; UPDATE tags SET name = 'green' "
    "WHERE name = 'red'; DELETE FROM tags WHERE name = 'blue'; SELECT name FROM labels",
    "fill_big_id": "INSERT INTO orders (user_id, reference, total) SELECT user_id, 'meanwhile', 1 FROM orders LIMIT 1",
    "drop_old_id": "INSERT INTO orders (user_id, reference, total) SELECT user_id, 'after', 1 FROM orders LIMIT 1",
    "drop_channel": "INSERT INTO orders (user_id, reference, total, channel) "
    "SELECT user_id, 'elsewhere', 1, NULL FROM orders LIMIT 1",
    "index_events_by_kind": "INSERT INTO events (kind) VALUES ('now'); INSERT INTO events VALUES "
    "(DEFAULT, '2031-05-05', 'later'); SELECT tableoid::regclass, * FROM events",
}


def deploy_recipe(world: World, recipe: guide.Recipe) -> None:
    """Its files, in as many deployments as the application's doings between them need."""
    pending: list[Block] = []

    def deploy() -> None:
        if pending:
            assert names(world.deploy()) == [block.name for block in pending]
            pending.clear()

    for block in recipe.files:
        meanwhile = next((sql for name, sql in MEANWHILE.items() if block.name.endswith(name)), "")
        if meanwhile or block.since > major(world):
            deploy()
        if meanwhile:
            world.sql(meanwhile)
        write(world, block)
        if block.since > major(world):
            with pytest.raises(MigrationError, match="42601"):
                world.deploy()
            world.remove(f"{block.name}.sql")
        else:
            pending.append(block)
    deploy()


def is_as_said(world: World, check: Block) -> bool:
    with world.connection() as conn, conn.cursor() as cur:
        cur.execute(check.text)
        answer = cur.fetchall()
        (column, *_) = (description.name for description in cur.description)
    return {"must_be_0": answer == [(0,)], "must_not_be_listed": answer == []}.get(column, answer != [])


@pytest.mark.slow
def test_guide_recipes_run_in_their_order(world: World) -> None:
    """Every file of the guide is applied by the handler while old and new code write, every check finds what it should,
    and what says since which version it works does not before."""
    world.write(guide.SCHEMA.name, SCHEMA)
    write(world, *guide.prelude())
    world.deploy()
    fill(world)

    for recipe in guide.recipes():
        deploy_recipe(world, recipe)

        assert [check.text for check in recipe.checks if not is_as_said(world, check)] == [], recipe.title

    with world.login("user") as conn:
        rows(
            conn,
            "BEGIN; SELECT set_config('app.user_id', user_id::text, true) FROM (SELECT id AS user_id FROM users) u",
        )
        rows(
            conn, "INSERT INTO orders (user_id, reference, total) VALUES (current_setting('app.user_id')::uuid, 'x', 1)"
        )
        rows(
            conn,
            "INSERT INTO events (at, kind) VALUES ('2031-02-03', 'x'); INSERT INTO billing.invoices (note) VALUES ('')",
        )
    assert world.deploy()["applied"] == []


def test_guide_recipes_have_risk_file_and_check() -> None:
    """Every recipe says the risk, what to write and how to check it, and has one check at least."""
    recipes = guide.recipes()

    for recipe in recipes:
        assert recipe.text.index("*Risk.*") < recipe.text.index("*Write this") < recipe.text.index("*Check.*")
        assert recipe.files, recipe.title
        assert recipe.checks, recipe.title
    assert len(recipes) == 20


def test_guide_files_are_numbered_in_their_order() -> None:
    """The examples are one folder: its numbers follow each other, after the first migration's."""
    files = [*guide.prelude(), *(block for recipe in guide.recipes() for block in recipe.files)]

    assert [int(block.name.split("_")[0]) for block in files] == list(range(2, len(files) + 2))


def test_guide_table_names_every_recipe_and_each_repeats_its_figures() -> None:
    """The table of waits is an index of the recipes, and a measured recipe says what is in its line."""
    table = guide.rows(guide.section("Recipes").split("\n### ")[0])
    recipes = guide.recipes()

    assert [cells[0] for cells in table] == [f"[{r.title}](#{guide.anchor(r.title)})" for r in recipes]
    measured = {case.title for case in load.CASES}
    for recipe, cells in zip(recipes, table):
        said = " ".join(recipe.text.split())
        if recipe.title in measured:
            assert load.sentence(cells) in said
        else:
            assert tuple(cells[1:3]) == WORDS[recipe.title]
            assert "Measured" not in said
    assert len(measured) + len(WORDS) == len(recipes)


# --- Locks ----------------------------------------------------------------------------------------------------------

STRENGTH = ["AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock"]
STRENGTH += ["ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"]
READS, WRITES = "SELECT total FROM orders", "INSERT INTO orders (user_id, total) SELECT id, 1 FROM users"


def strongest(world: World, pid: int, table: str = "orders") -> str:
    held = world.sql("SELECT mode FROM pg_locks WHERE pid = %s AND granted AND relation = %s::regclass", pid, table)
    return max((mode for (mode,) in held), key=STRENGTH.index)


def passes(world: World, text: str) -> bool:
    """Whether another session gets through with this, as long as that lock is held."""
    with world.connection() as conn:
        try:
            rows(conn, f"SET lock_timeout = '300ms'; {text}")
        except psycopg2.errors.LockNotAvailable:
            return False
        return True


@contextmanager
def holding_its_lock(world: World, text: str) -> Iterator[int]:
    """A session that has run this in a transaction; or that builds an index, and waits for an older transaction."""
    if "CONCURRENTLY" not in text:
        with open_transaction(world, text) as conn:
            yield conn.info.backend_pid
        return
    with ThreadPoolExecutor(1) as pool, world.connection() as conn:
        with open_transaction(world, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1"):
            build = pool.submit(rows, conn, text)
            pid = conn.info.backend_pid
            waits = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted AND locktype = 'virtualxid'"
            wait_until(lambda: world.sql(waits, pid) != [])
            yield pid
        build.result(20)


def lock_lines() -> list[tuple[str, str, bool, bool]]:
    """A statement, its lock, and whether others read and write."""
    return [
        (text, cells[0].title().replace(" ", "") + "Lock", cells[2].startswith("yes"), cells[3].startswith("yes"))
        for cells in guide.rows(LOCKS)
        for text in re.findall(r"`([^`]+)`", cells[1])
    ]


@pytest.mark.slow
def test_guide_locks_are_those_that_the_statements_take(shop: World) -> None:
    """Each statement in the table of locks holds the lock that is said, and lets others read and write as is said."""
    shop.sql("ALTER TABLE orders ADD CONSTRAINT orders_checked CHECK (total >= 0) NOT VALID")

    for text, mode, reads, writes in lock_lines():
        with holding_its_lock(shop, text) as pid:
            assert (text, strongest(shop, pid), passes(shop, READS), passes(shop, f"BEGIN; {WRITES}; ROLLBACK")) == (
                *(text, mode),
                *(reads, writes),
            )
    assert len(lock_lines()) > 12


def test_guide_foreign_key_locks_both_tables_and_its_validation_neither(shop: World) -> None:
    """Adding it stops writers to both tables for a moment; validating it lets them write."""
    add, validate = statement(file_of("Add a foreign key", "orders_belong_to_users")).split(";\n")[:2]

    with open_transaction(shop, add) as conn:
        pid = conn.info.backend_pid
        assert [strongest(shop, pid, table) for table in ("orders", "users")] == ["ShareRowExclusiveLock"] * 2
    shop.sql(add)
    with open_transaction(shop, validate) as conn:
        pid = conn.info.backend_pid
        assert strongest(shop, pid) == "ShareUpdateExclusiveLock"
        assert strongest(shop, pid, "users") == "RowShareLock"
        assert passes(shop, f"BEGIN; {WRITES}; UPDATE users SET created_at = now(); ROLLBACK")
    with open_transaction(shop, "DROP TABLE orders") as conn:
        assert strongest(shop, conn.info.backend_pid, "users") == "AccessExclusiveLock"


# A migration that comes to this place waits there until the test opens the gate; the application passes.
GATE = f"""
    CREATE FUNCTION gate(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        IF current_setting('application_name') = 'db_setup' THEN
            PERFORM pg_catalog.pg_advisory_xact_lock_shared(20310101);
        END IF;
        RETURN 1;
    END $$;
    CREATE FUNCTION gated_uuid() RETURNS uuid LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM {database.SCHEMA}.gate(1);
        RETURN gen_random_uuid();
    END $$;
"""


class Long(NamedTuple):
    """A recipe whose long part is made as long as one likes, by putting the gate into its expression."""

    title: str
    expression: str
    gated: str
    naively_reads: bool = False


LONG = (
    Long("Add a column with a computed default", "gen_random_uuid()", "gated_uuid()"),
    Long("Create an index", "(user_id)", "(user_id, gate(id))", naively_reads=True),
    Long("Add a check constraint", "total >= 0", "total >= 0 AND gate(id) = 1"),
    Long("Back-fill a column", "round(total * 1.19, 2)", "gate(id) * round(total * 1.19, 2)"),
)


@contextmanager
def stopped_in_its_long_part(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Future[dict[str, Any]]]:
    """The deployment, which waits at the gate while the block runs, and then ends."""
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", world.folder)
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 20310101 AND NOT granted"
    with world.connection() as keeper, ThreadPoolExecutor(1) as pool:
        rows(keeper, "SELECT pg_advisory_lock(20310101)")
        run = pool.submit(initializer.handler, None, None)
        wait_until(lambda: run.done() or world.sql(waits) != [])
        try:
            assert not run.done(), run.result()
            yield run
        finally:
            rows(keeper, "SELECT pg_advisory_unlock(20310101)")
        run.result(60)


@pytest.mark.parametrize("long", LONG, ids=lambda long: guide.anchor(long.title))
@pytest.mark.parametrize("naively", [True, False], ids=["naively", "as the guide says"])
def test_guide_recipe_in_its_long_part_lets_others_read_and_write_and_the_naive_way_does_not(
    shop: World, monkeypatch: pytest.MonkeyPatch, long: Long, naively: bool
) -> None:
    """While a migration is in the middle of its work, writers pass the recipe and wait for the naive statement."""
    shop.environ["LOCK_TIMEOUT"] = "100s"  # or the gate would count as somebody who blocks
    shop.sql(GATE)
    case = next(case for case in load.CASES if case.title == long.title)
    files = [("099_naive", case.naive)] if naively else [(block.name, block.text) for block in case.recommended]
    assert any(long.expression in text for _, text in files)
    for name, text in files:
        shop.write(f"{name}.sql", text.replace(long.expression, long.gated))

    with exactly(shop.environ), stopped_in_its_long_part(shop, monkeypatch) as run:
        found = passes(shop, READS), passes(shop, WRITES)

    assert found == ((long.naively_reads, False) if naively else (True, True))
    assert names(run.result()) == [name for name, _ in files]


@pytest.mark.slow
def test_load_cases_run_without_an_error_of_the_application(server: Server) -> None:
    """All that `make load` measures runs, on small tables: no statement fails, and it says how long each waited."""
    load.build_template(server, 2000)
    for case in load.CASES:
        with load.copy_of_template(server, f"{load.TEMPLATE}_test") as copy:
            figures = load.measured(copy, case, [(b.name, b.text) for b in case.recommended], 2000)

        assert figures.errors == (), case.title
        assert min(figures.reads, figures.writes, figures.took) > 0
    drop_database(server, load.TEMPLATE)


# --- Files that are not one transaction ------------------------------------------------------------------------------


def test_guide_file_that_is_not_one_transaction_makes_its_indexes(world: World) -> None:
    """The marked file of the section runs, and its two indexes are valid."""
    (marked,) = guide.blocks(guide.section("Files that are not one transaction"))
    world.write("001_orders.sql", "CREATE TABLE orders (user_id int, created_at date);")
    world.write("002_indexes.sql", marked.text)

    world.deploy()

    found = world.sql(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'orders'::regclass AND indisvalid"
    )
    assert sorted(found) == [("orders_date",), ("orders_user",)]


# --- What the recipes warn of ---------------------------------------------------------------------------------------


def node(world: World, table: str) -> list[Any]:
    """The files in which a table and its indexes are stored: other ones, if they were rewritten."""
    return world.sql(
        "SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE oid = %s::regclass OR oid IN "
        "(SELECT indexrelid FROM pg_index WHERE indrelid = %s::regclass) ORDER BY 1",
        table,
        table,
    )


AT_ONCE = (
    ("varchar(20)", "varchar(40)"),
    ("varchar(20)", "varchar"),
    ("varchar(20)", "text"),
    ("varchar", "text"),
    ("text", "varchar"),
    ("numeric(8,2)", "numeric(12,2)"),
    ("numeric(8,2)", "numeric"),
    ("timestamp(3)", "timestamp(6)"),
    ("timestamp(3)", "timestamp"),
    ("time(3)", "time(6)"),
    ("interval(3)", "interval(6)"),
)
WRITTEN_ANEW = (("integer", "bigint"), ("varchar(40)", "varchar(20)"), ("numeric(8,2)", "numeric(8,3)"))


def test_guide_changes_of_type_that_are_immediate_write_nothing(world: World) -> None:
    """The types that are listed keep the table's file and its index's; others do not."""
    for pair in (*AT_ONCE, *WRITTEN_ANEW):
        world.sql(f"CREATE TABLE t (v {pair[0]}); CREATE INDEX ON t (v); INSERT INTO t VALUES (NULL)")
        before = node(world, "t")

        world.sql(f"ALTER TABLE t ALTER COLUMN v TYPE {pair[1]}")

        assert (node(world, "t") == before) == (pair in AT_ONCE), pair
        world.sql("DROP TABLE t")


COMPUTED = (
    "uuid DEFAULT gen_random_uuid()",
    "timestamptz DEFAULT clock_timestamp()",
    "float DEFAULT random()",
    "serial",
    "int GENERATED ALWAYS AS IDENTITY",
    "text GENERATED ALWAYS AS (email || '') STORED",
)


def test_guide_columns_that_are_added_immediately_write_nothing(shop: World) -> None:
    """Without a default, with a constant one or with now() nothing is written; with a computed one all is."""
    before = node(shop, "users")
    shop.sql(statement(file_of("Add a column", "add_nickname")))
    assert node(shop, "users") == before

    for computed in COMPUTED:
        before = node(shop, "users")
        shop.sql(f"ALTER TABLE users ADD COLUMN more {computed}")
        assert node(shop, "users") != before, computed
        shop.sql("ALTER TABLE users DROP COLUMN more")


COUNTED = """
    CREATE SEQUENCE readings;
    CREATE FUNCTION counted(v text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT nextval(''readings'') > 0';
"""


def readings(world: World) -> int:
    return int(world.sql("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM readings")[0][0])


def test_guide_check_constraint_is_read_again_by_a_change_of_type_and_not_by_a_second_validation(shop: World) -> None:
    """A change that writes nothing reads all rows for a constraint's sake; what is valid is not validated again."""
    shop.sql(COUNTED)
    shop.sql("ALTER TABLE orders ADD CONSTRAINT orders_counted CHECK (counted(reference)) NOT VALID")
    assert readings(shop) == 0
    counts = []

    for text in ("VALIDATE CONSTRAINT orders_counted",) * 2 + ("ALTER COLUMN reference TYPE varchar(50)",):
        shop.sql(f"ALTER TABLE orders {text}")
        counts.append(readings(shop))

    assert counts == [2, 2, 4]


def test_guide_change_of_type_fails_views_and_prepared_statements_as_said(shop: World) -> None:
    """A view that shows the column forbids the change; a prepared SELECT * fails once."""
    change = "ALTER TABLE orders ALTER COLUMN reference TYPE varchar(100)"
    shop.sql("CREATE VIEW seen AS SELECT reference FROM orders")
    assert refusal(shop, change) == "0A000 cannot alter type of a column used by a view or rule"
    shop.sql("DROP VIEW seen")

    with shop.connection() as conn:
        rows(conn, "PREPARE everything AS SELECT * FROM orders; EXECUTE everything")
        shop.sql(change)
        with pytest.raises(psycopg2.errors.FeatureNotSupported, match="cached plan must not change result type"):
            rows(conn, "EXECUTE everything")


def test_guide_renames_without_the_recipe_fail_the_old_code(shop: World) -> None:
    """The old code's statements fail as the guide says."""
    old = "SELECT note FROM orders"

    assert refusal(shop, f"ALTER TABLE orders RENAME COLUMN note TO remark; {old}").startswith("42703 column")
    assert refusal(shop, f"ALTER TABLE orders RENAME TO purchases; {old}").startswith("42P01 relation")


def test_guide_old_name_of_a_table_is_not_a_full_table(shop: World) -> None:
    """The view under the old name takes rows, but what the guide excepts is refused."""
    shop.sql(statement(file_of("Rename a table", "rename_tags")))

    assert refusal(shop, "INSERT INTO tags VALUES ('red') ON CONFLICT (name) DO NOTHING") == ""
    assert refusal(shop, "TRUNCATE tags").startswith("42809")
    assert refusal(shop, "CREATE TABLE t (name text REFERENCES tags)").startswith("42809")
    with shop.connection() as conn, conn.cursor() as cur, pytest.raises(psycopg2.errors.WrongObjectType):
        cur.copy_expert("COPY tags FROM STDIN", io.StringIO("blue\n"))


def test_guide_constraint_that_is_not_valid_stops_any_update_of_an_old_row(shop: World) -> None:
    """The recipe therefore fills the rows before it adds the constraint."""
    add = statement(file_of("Make a column NOT NULL", "require_reference")).split(";\n")[1]

    assert refusal(shop, f"{add}; UPDATE orders SET note = 'x'").startswith("23514")


def test_guide_set_not_null_believes_the_constraint(shop: World) -> None:
    """With the validated constraint the rows are not read again, without it they are."""
    text = statement(file_of("Make a column NOT NULL", "require_reference"))
    with shop.connection() as conn:
        rows(conn, "SET client_min_messages = debug1")
        for one in text.split(";\n")[:4]:
            rows(conn, one)
        said = " ".join(conn.notices)

    assert (
        'existing constraints on column "orders.reference" are sufficient to prove that it does not contain nulls'
        in said
    )


def test_guide_drop_of_what_a_view_needs_is_refused(shop: World) -> None:
    """PostgreSQL says so, and drops nothing."""
    shop.sql("CREATE VIEW seen AS SELECT channel FROM orders")

    assert refusal(shop, "ALTER TABLE orders DROP COLUMN channel").endswith("because other objects depend on it")


def test_guide_unique_index_over_double_values_leaves_nothing_and_succeeds_when_they_are_gone(shop: World) -> None:
    """The deployment fails, no INVALID index stays, and the same file is applied once the values are corrected."""
    shop.sql("UPDATE orders SET reference = 'twice'")
    block = file_of("Make values unique", "unique_reference")
    write(shop, block)

    with pytest.raises(MigrationError, match="23505"):
        shop.deploy()

    assert shop.sql("SELECT FROM pg_class WHERE relname = 'orders_reference_key'") == []
    shop.sql("UPDATE orders SET reference = 'order ' || id")
    assert names(shop.deploy()) == [block.name]


def test_guide_validation_that_fails_keeps_the_first_step_and_takes_a_statement_before_it(shop: World) -> None:
    """The rows are corrected in a statement before the VALIDATE, and the run goes on there."""
    shop.sql("INSERT INTO orders (user_id, total) VALUES ('00000000-0000-0000-0000-000000000001', 1)")
    block = file_of("Add a foreign key", "orders_belong_to_users")
    write(shop, block)
    with pytest.raises(MigrationError, match="23503"):
        shop.deploy()
    assert shop.sql("SELECT convalidated FROM pg_constraint WHERE conname = 'orders_user_id_fkey'") == [(False,)]

    fix, validate = "DELETE FROM orders WHERE user_id NOT IN (SELECT id FROM users);", "ALTER TABLE orders VALIDATE"
    shop.write(f"{block.name}.sql", block.text.replace(validate, f"{fix}\n{validate}"))

    assert names(shop.deploy()) == [block.name]
    assert shop.sql("SELECT convalidated FROM pg_constraint WHERE conname = 'orders_user_id_fkey'") == [(True,)]


def test_guide_enum_value_in_the_file_that_adds_it_fails(shop: World) -> None:
    """55P04, and nothing is left; in two files it works."""
    add, use = (file_of("Add an enum value", name) for name in ("add_state_returned", "use_state_returned"))
    use = use._replace(text=use.text.replace("remark", "note").replace("'came back'", "'first'"))
    shop.write("003_both.sql", add.text + use.text)
    with pytest.raises(MigrationError, match=r"unsafe use of new value .*\(55P04\)"):
        shop.deploy()
    shop.remove("003_both.sql")

    write(shop, add, use)
    shop.deploy()

    assert shop.sql("SELECT count(*) FROM orders WHERE state = 'returned'") == [(2,)]


def test_guide_back_fill_that_is_interrupted_keeps_its_batches_and_goes_on(shop: World) -> None:
    """A row that fails ends the block: what was committed stays, and the next run fills the rest."""
    shop.sql("INSERT INTO orders (user_id, total) SELECT id, 1 FROM users, generate_series(1, 6000)")
    shop.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$; "
        "CREATE TRIGGER refuse BEFORE UPDATE ON orders FOR EACH ROW WHEN (OLD.id = 7000) EXECUTE FUNCTION refuse()"
    )
    write(shop, *guide.recipe("Back-fill a column").files)
    with pytest.raises(MigrationError, match="not this one"):
        shop.deploy()
    assert shop.sql("SELECT count(total_with_tax) FROM orders") == [(5000,)]
    first = shop.sql("SELECT xmin::text FROM orders WHERE id = 1")
    shop.sql("DROP TRIGGER refuse ON orders")

    shop.deploy()

    assert shop.sql("SELECT count(*) FROM orders WHERE total_with_tax IS NULL") == [(0,)]
    assert shop.sql("SELECT xmin::text FROM orders WHERE id = 1") == first


def test_guide_partition_is_attached_without_being_read(shop: World) -> None:
    """The validated constraint proves that all rows belong there; without it they would be read."""
    prepare, switch = (file_of("Partition a table", name) for name in ("prepare_events", "partition_events"))
    write(shop, prepare)
    shop.deploy()
    with open_transaction(shop, "SET client_min_messages = debug1") as conn:
        rows(conn, statement(switch))
        said = " ".join(conn.notices)
        assert rows(conn, "SELECT pg_get_serial_sequence('events', 'id')") == [(f"{shop.schema}.events_id_seq",)]

    assert 'partition constraint for table "events_to_2030" is implied by existing constraints' in said


def test_guide_partitioned_table_refuses_what_the_guide_excepts(shop: World) -> None:
    """Rows without a partition, an index that is built concurrently on the whole, a foreign key to the number alone,
    and the concurrent way to detach where there is a DEFAULT partition."""
    write(shop, *guide.recipe("Partition a table").files[:2])
    shop.deploy()
    refused = {
        "INSERT INTO events (at, kind) VALUES ('2040-01-01', 'x')": "no partition of relation",
        "CREATE INDEX CONCURRENTLY ON events (kind)": "concurrently",
        "CREATE TABLE t (event bigint REFERENCES events (id))": "no unique constraint matching given keys",
        "CREATE TABLE events_default PARTITION OF events DEFAULT": "",
        "ALTER TABLE events DETACH PARTITION events_2031 CONCURRENTLY": "default partition"
        if major(shop) >= 14
        else "syntax error",
    }

    for text, why in refused.items():
        said = ""
        try:
            shop.sql(text)
        except psycopg2.Error as exc:
            said = str(exc)
        assert why in said, text
        assert bool(why) == bool(said), text


def test_guide_views_and_functions_are_refused_as_said(shop: World) -> None:
    """A view cannot lose a column by OR REPLACE, and a function with one more parameter is a second one."""
    title = "Change a view or a function"
    shop.sql(statement(file_of(title, "open_orders")))

    replaced = "CREATE OR REPLACE VIEW open_orders AS SELECT id FROM orders"
    assert refusal(shop, replaced) == "42P16 cannot drop columns from view"
    second = statement(file_of(title, "open_orders_without_user")).partition("CREATE FUNCTION")[2]
    assert "is not unique" in refusal(shop, f"CREATE OR REPLACE FUNCTION {second}; SELECT with_tax(1.0)")


def test_guide_row_level_security_shows_each_user_their_own_rows(world: World) -> None:
    """Without a policy the application sees nothing; with them its own rows, table creators and migrations all; and a
    setting that was local to an earlier transaction counts as none."""
    world.write(guide.SCHEMA.name, SCHEMA)
    write(world, *guide.prelude())
    world.deploy()
    fill(world)
    (mine,), (other,) = world.sql("SELECT id::text FROM users ORDER BY email")
    count = "SELECT count(*) FROM orders"
    with world.login("user") as conn:
        world.sql("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
        assert rows(conn, count) == [(0,)]
        world.sql("ALTER TABLE orders DISABLE ROW LEVEL SECURITY")
        write(world, file_of("Turn on row-level security", "orders_by_user"))
        world.deploy()

        assert rows(conn, count) == [(0,)]
        assert rows(conn, f"BEGIN; SET LOCAL app.user_id = '{mine}'; {count}") == [(1,)]
        rows(conn, "COMMIT")
        assert rows(conn, "SELECT current_setting('app.user_id')") == [("",)]
        assert rows(conn, count) == [(0,)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security"):
            rows(conn, f"SET app.user_id = '{mine}'; INSERT INTO orders (user_id, total) VALUES ('{other}', 1)")
    assert world.sql(count) == [(2,)]
    with world.login("creator") as conn:
        assert rows(conn, count) == [(2,)]
    world.sql("CREATE VIEW all_of_them AS SELECT * FROM orders")
    with world.login("user") as conn:
        assert rows(conn, "SELECT count(*) FROM all_of_them") == [(2,)]
    world.sql("DROP POLICY all_orders ON orders; ALTER TABLE orders FORCE ROW LEVEL SECURITY")
    assert world.sql("UPDATE orders SET note = 'x' RETURNING id") == []


def test_guide_rows_that_exist_stay_and_numbers_continue_after_them(shop: World) -> None:
    """What somebody added by hand is kept, and the next number of a serial is free."""
    shop.sql("CREATE SCHEMA billing; CREATE TABLE billing.invoices (id serial PRIMARY KEY, note text)")
    shop.sql("INSERT INTO billing.invoices VALUES (1, 'by hand')")
    write(shop, *guide.recipe("Bring rows along").files)

    shop.deploy()

    shop.sql("INSERT INTO billing.invoices (note) VALUES ('next')")
    assert shop.sql("SELECT * FROM billing.invoices ORDER BY id") == [(1, "by hand"), (2, "carried over"), (3, "next")]


# --- Numbers, squashing, snapshots ----------------------------------------------------------------------------------

USERS, ITEMS = "CREATE TABLE users (id int);\n", "CREATE TABLE items (id int);\n"


@pytest.fixture
def plain(world: World) -> World:
    """A world without users."""
    world.environ["CREATE_USERS"] = "false"
    return world


def files(world: World, **texts: str) -> None:
    """These and no others. A name that begins with a digit has a leading _ here."""
    for path in world.folder.iterdir():
        path.unlink()
    for name, text in texts.items():
        world.write(f"{name.lstrip('_')}.sql", text)


def test_guide_same_number_twice_runs_both_and_a_renumbered_file_not_again(plain: World) -> None:
    """The report says so in the guide's words; renumbered it stays applied, renumbered and edited it runs again."""
    files(plain, _006_users=USERS, _007_b=ITEMS, _007_a="ALTER TABLE users ADD status text;")

    report = plain.deploy()

    assert names(report) == ["006_users", "007_a", "007_b"]
    assert report["warnings"] == ["number 7 is used more than once: 007_a, 007_b"]
    assert "number 7 is used more than once" in GUIDE
    files(plain, _006_users=USERS, _008_b=ITEMS, _007_a="ALTER TABLE users ADD status text;")
    assert names(plain.deploy()) == []
    files(plain, _006_users=USERS, _009_b=ITEMS + "SELECT 1;", _007_a="ALTER TABLE users ADD status text;")
    with pytest.raises(MigrationError, match='relation "items" already exists'):
        plain.deploy()


def dump(world: World, *options: str) -> str:
    newest = max(major(world), 14)
    env = clients.environment(world.server, ADMIN, ADMIN_PASSWORD, world.dbname)
    text = clients.run(clients.client("pg_dump", newest), *options, env=env)
    return re.sub(r"^\\(un)?restrict .*$", "", text, flags=re.MULTILINE)


def dump_options(title: str) -> list[str]:
    """The options of pg_dump that a section names, without the quotes of a shell."""
    command = re.search(r"^pg_dump (.+) > \w+\.sql$", guide.section(title), re.MULTILINE)
    assert command is not None
    return command.group(1).replace("'", "").split()


@contextmanager
def another(world: World, template: str = "template0") -> Iterator[World]:
    """The same world with another database: a new one, or a copy of that one; nobody is connected to it."""
    before, name = world.dbname, f"{world.dbname}_more"
    create_database(world.server, name, ADMIN, template=template)
    try:
        world.dbname = name
        world.put_secret("admin", {**world.secret("admin"), "dbname": name})
        yield world
    finally:
        world.dbname = before
        world.put_secret("admin", {**world.secret("admin"), "dbname": before})
        drop_database(world.server, name)


def test_guide_squashed_files_run_nowhere_again_and_make_new_databases(plain: World) -> None:
    """The announced file is recorded where the old ones ran; a new database runs it alone and has the same schema; one
    that missed the announcement is refused and unharmed; the release before finds all it knows."""
    announce = next(block for block in guide.blocks(guide.section("Squashing")) if block.name)
    old = {"_001_users": USERS, "_002_items": ITEMS, "_003_index": "CREATE INDEX ON items (id);"}
    files(plain, **old)
    plain.deploy()
    with another(plain, template=plain.dbname):
        files(plain, **old, _030_announce_schema=announce.text)
        plain.deploy()
        schema = dump(plain, *dump_options("Squashing"))
        assert "schema_migrations" not in schema
        files(plain, _031_schema=schema)

        assert names(plain.deploy()) == []
        assert plain.deploy({"action": "status"})["pending"] == []
        plain.write("031_schema.sql", schema + "SELECT 1;")
        with pytest.raises(MigrationError, match="edited"):
            plain.deploy()
        files(plain, **old, _030_announce_schema=announce.text)
        assert names(plain.deploy()) == []
    files(plain, _031_schema=schema)

    with pytest.raises(MigrationError, match="already exists"):
        plain.deploy()
    assert plain.applied() == ["001_users", "002_items", "003_index"]
    with another(plain):
        assert names(plain.deploy()) == ["031_schema"]
        assert dump(plain, *dump_options("Squashing")) == schema


def test_guide_snapshot_runs_what_came_since(plain: World) -> None:
    """The status tells what came since, the deployment applies it; a snapshot newer than the code is not an error."""
    files(plain, _001_users=USERS)
    plain.deploy()
    with another(plain, template=plain.dbname):
        files(plain, _001_users=USERS, _002_items=ITEMS)

        assert plain.deploy({"action": "status"})["pending"] == ["002_items"]
        assert names(plain.deploy()) == ["002_items"]
        files(plain, _001_users=USERS)
        assert plain.deploy({"action": "status"})["missing"] == ["002_items"]
        assert names(plain.deploy()) == []


# --- What other tools' names would do -------------------------------------------------------------------------------


def test_guide_flyway_names_without_care_run_too_late(plain: World) -> None:
    """Why they are renamed: V-files run after numbered ones. U-files are refused, R-files run last."""
    plain.write("V1_1__items.sql", ITEMS)
    plain.write("V1__users.sql", USERS)
    plain.write("R__grants.sql", "SELECT 1")
    plain.write("002_new.sql", "SELECT 2")
    plain.write("U1__users.sql", "DROP TABLE IF EXISTS users;")
    with pytest.raises(ConfigError, match=r"U1__users\.sql undoes V1, and would run as well: take it out"):
        plain.deploy()
    plain.remove("U1__users.sql")

    report = plain.deploy()

    assert names(report) == ["002_new", "003_V1__users", "004_V1_1__items", "R__grants"]


def test_guide_pair_of_up_and_down_files_runs_the_first_alone(plain: World) -> None:
    """`*.down.sql` is never run."""
    plain.write("1577836800000_users.up.sql", USERS)
    plain.write("1577836800000_users.down.sql", "DROP TABLE users;")

    assert names(plain.deploy()) == ["1577836800000_users.up"]
    assert plain.tables() == ["users"]

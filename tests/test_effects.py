"""What a dry run says a file does: levels, losses, rewrites, locks and their times. The guide's recipes are the
labelled set, and ordinary folders count the false alarms."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import effects
import pull_request
import pytest
from harness import guide
from harness.database import SCHEMA
from harness.others import wait_until
from harness.world import World, rows
from initializer import InitializerError
from test_dry_run import DRY
from test_like_psql import FOLDERS
from test_review import APPLIED, NAIVE

ROOT = Path(__file__).resolve().parent.parent
HARMLESS, WRITES, READS, LOSES = LEVELS = ("harmless", "blocks writes", "blocks reads", "loses data")
TABLES = (
    "CREATE TABLE a (i int PRIMARY KEY, t text, n numeric(8,2));"
    "INSERT INTO a SELECT n, 'x', n FROM generate_series(1, 7) n;"
    "CREATE TABLE b (i int); INSERT INTO b VALUES (1), (2); ANALYZE a; ANALYZE b"
)


@pytest.fixture
def plain(world: World) -> World:
    """Two tables with rows, which are there before; no users."""
    world.environ.update(CREATE_USERS="false", LOCK_TIMEOUT="300ms")
    world.write("000.sql", TABLES)
    world.deploy()
    return world


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a moment is depends on the machine: a level comes from what a file does, where time is not the subject."""
    monkeypatch.setattr(effects, "LONG_MS", 60_000)


def tried(world: World, *texts: str) -> list[dict[str, Any]]:
    """What a dry run says of these files."""
    for number, text in enumerate(texts, 1):
        world.write(f"{number:03}.sql", text)
    found: list[dict[str, Any]] = world.deploy(DRY)["tried"]
    return found


def alone(world: World, text: str) -> dict[str, Any]:
    (entry,) = tried(world, text)
    return entry


def levels(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["level"] for entry in entries]


def whats(entry: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(one["what"].replace(f" {SCHEMA}.", " "), one["rows"]) for one in entry["lost"]]


def blocking(entry: dict[str, Any]) -> list[str]:
    """The locks that count for the level."""
    return [
        f"{lock['lock']} on {lock['table'].split('.')[1]}"
        for lock in (*entry["locks"], *entry["other_locks"])
        if lock["grows"] and "writing" in lock["blocks"]
    ]


# --- The guide ------------------------------------------------------------------------------------------------------

# What is wrong with the others is neither a lock nor a loss, or cannot be tried: the last column says what is told.
EXPECTED = {
    "Add a column": ("fails", ""),
    "Add a column with a computed default": (READS, "rewritten"),
    "Make a column NOT NULL": (READS, ""),
    "Rename a column": (HARMLESS, "gone"),
    "Rename a table": (HARMLESS, "gone"),
    "Change a type": (READS, "rewritten"),
    "Change a type that is stored differently": (READS, "rewritten"),
    "Drop a column or a table": (LOSES, "lost"),
    "Create an index": (WRITES, "indexes"),
    "Make values unique": (READS, "indexes"),
    "Add a foreign key": (WRITES, ""),
    "Add a check constraint": (READS, ""),
    "Add an enum value": (HARMLESS, ""),
    "Back-fill a column": (READS, ""),
    "Partition a table": (LOSES, "lost"),
    "Use another schema than public": (HARMLESS, ""),
    "Turn on row-level security": (HARMLESS, ""),
    "Undo a change": (LOSES, "lost"),
    "A table that is too big": (HARMLESS, "untried"),
}
WITHOUT_RECIPE = {
    **NAIVE,
    "Change a type": "ALTER TABLE orders ALTER COLUMN total TYPE numeric(10,3);",
    "Undo a change": "ALTER TABLE products DROP COLUMN price;",
}
# The last file of a recipe, which says why its loss is meant. All others are harmless.
MEANT = {"010_drop_note", "017_drop_old_id", "019_drop_channel", "021_drop_carts", "047_remove_price_with_tax"}
# A later statement of theirs needs what an earlier one does outside a transaction.
NEED_WHAT_IS_NOT_TRIED = {"015_fill_big_id", "024_unique_reference", "036_index_events_by_kind"}


@pytest.fixture
def shop(world: World) -> World:
    for number, text in enumerate(APPLIED, 1):
        world.write(f"{number:03}_applied.sql", text)
    world.deploy()
    world.environ.update(CREATE_USERS="false")  # their roles are there
    world.sql(
        "INSERT INTO users (email) VALUES ('a@example.com'), ('b@example.com');"
        "INSERT INTO products (name, price, user_id) SELECT 'thing', 9.99, id FROM users;"
        "INSERT INTO orders (user_id, total, note, reference) SELECT id, 10, 'first', 'r' || email FROM users;"
        "INSERT INTO events (kind) VALUES ('login'), ('logout'); INSERT INTO tags VALUES ('red')"
    )
    return world


def test_naive_forms_have_their_levels(shop: World) -> None:
    """What one would write without the recipe has the level that it should have, and the reason is named."""
    found = {}
    for title, text in WITHOUT_RECIPE.items():
        shop.write("003_naive.sql", text)
        try:
            (entry,) = shop.deploy(DRY)["tried"]
            reasons = ("lost", "rewritten", "indexes", "gone", "untried")
            found[title] = (entry["level"], next((key for key in reasons if entry[key]), ""))
        except InitializerError:
            found[title] = ("fails", "")

    print("\n".join(f"{title} | {level} | {why}" for title, (level, why) in found.items()))
    assert found == EXPECTED


def test_recipes_have_their_levels(shop: World) -> None:
    """Nothing in the guide's own files blocks anybody, in the order in which they run; what drops is said to lose."""
    found = {}
    for block in (block for recipe in guide.recipes() for block in recipe.files):
        if block.since <= shop.server.version // 10000:
            shop.write(f"{block.name}.sql", block.text)
            try:
                (entry,) = shop.deploy(DRY)["tried"]
                found[block.name] = (entry["level"], blocking(entry))
            except InitializerError:
                found[block.name] = ("fails", [])
            shop.deploy()

    assert {name: what for name, what in found.items() if what != (HARMLESS, [])} == {
        **{name: (LOSES, []) for name in MEANT},
        **{name: ("fails", []) for name in NEED_WHAT_IS_NOT_TRIED},
    }
    assert len(found) > 40


# --- Levels ---------------------------------------------------------------------------------------------------------

ONE = {
    "CREATE INDEX ON a (t)": (WRITES, ["SHARE on a"]),
    "REINDEX TABLE a": (WRITES, ["SHARE on a"]),
    "ALTER TABLE a ADD CHECK (i > 0)": (READS, ["ACCESS EXCLUSIVE on a"]),
    "ALTER TABLE a ALTER t SET NOT NULL": (READS, ["ACCESS EXCLUSIVE on a"]),
    "ALTER TABLE b ADD FOREIGN KEY (i) REFERENCES a": (
        WRITES,
        ["SHARE ROW EXCLUSIVE on a", "SHARE ROW EXCLUSIVE on b"],
    ),
    "ALTER TABLE a ALTER i TYPE bigint": (READS, ["ACCESS EXCLUSIVE on a"]),
    "CLUSTER a USING a_pkey": (READS, ["ACCESS EXCLUSIVE on a"]),
    "ALTER TABLE a SET UNLOGGED": (READS, ["ACCESS EXCLUSIVE on a"]),
    "ALTER TABLE a ADD c int; UPDATE a SET c = 1": (READS, ["ACCESS EXCLUSIVE on a"]),
    "LOCK TABLE a IN EXCLUSIVE MODE; SELECT count(*) FROM a": (WRITES, ["EXCLUSIVE on a"]),
    "CREATE INDEX ON a (t); ALTER TABLE a ADD c int": (WRITES, ["SHARE on a"]),
    "DO $$ BEGIN ALTER TABLE a ALTER n TYPE numeric(9,3); END $$": (READS, ["ACCESS EXCLUSIVE on a"]),
    "-- no-transaction\nALTER TABLE a ADD c int;\nALTER TABLE a ADD CHECK (i > 0);": (READS, ["ACCESS EXCLUSIVE on a"]),
    # What takes no time, whatever the number of rows
    "ALTER TABLE a ADD c int, ALTER n TYPE numeric(9,2), ADD CHECK (i > 0) NOT VALID": (HARMLESS, []),
    "UPDATE a SET t = 'y'; ALTER TABLE a ADD c int": (HARMLESS, []),
    "SELECT count(*) FROM a; ALTER TABLE a ADD c int": (HARMLESS, []),
    "-- no-transaction\nALTER TABLE a ADD c int;\nUPDATE a SET c = 1;": (HARMLESS, []),
    "-- no-transaction\nALTER TABLE a ADD CONSTRAINT p CHECK (i > 0) NOT VALID;\nALTER TABLE a VALIDATE CONSTRAINT p": (
        HARMLESS,
        [],
    ),
    "ALTER TABLE a ADD c int; UPDATE b SET i = i": (HARMLESS, []),
    "ALTER TABLE b ADD FOREIGN KEY (i) REFERENCES a NOT VALID": (HARMLESS, []),
    "CREATE TABLE c (i int REFERENCES a); CREATE INDEX ON c (i)": (HARMLESS, []),
    "SAVEPOINT s; ALTER TABLE a ALTER i TYPE bigint; ROLLBACK TO s": (HARMLESS, []),
    "CREATE TABLE c AS SELECT * FROM a; CREATE INDEX ON c (i); ALTER TABLE c ALTER i TYPE bigint; DROP TABLE c": (
        HARMLESS,
        [],
    ),
    "CREATE VIEW v AS SELECT i FROM a; CREATE OR REPLACE VIEW v AS SELECT i, t FROM a": (HARMLESS, []),
    "CREATE TEMP TABLE x AS SELECT * FROM a; TRUNCATE x; DROP TABLE x": (HARMLESS, []),
}


@pytest.mark.parametrize("text", ONE)
def test_level_is_that_of_the_locks_that_grow_with_the_rows(plain: World, text: str) -> None:
    """A lock counts while rows are read or written under it. One that is held for a moment does not."""
    entry = alone(plain, text)

    assert (entry["level"], blocking(entry)) == ONE[text]
    assert entry["lost"] == []


@pytest.mark.parametrize("text", ONE)
def test_level_does_not_depend_on_rows(plain: World, text: str) -> None:
    """In a throw-away database the tables are empty."""
    plain.sql("TRUNCATE a, b; ANALYZE")

    entry = alone(plain, text)

    assert (entry["level"], entry["lost"]) == (ONE[text][0], [])
    if entry["level"] != HARMLESS:
        assert blocking(entry)


def test_lock_that_an_earlier_file_holds_counts_again(plain: World) -> None:
    """All locks are held until the end: what the second file locks as strongly is not new, and found all the same."""
    found = tried(
        plain,
        "ALTER TABLE a ADD c int;",
        "ALTER TABLE a ALTER i TYPE bigint;",
        "CREATE INDEX ON a (t);",
        "CREATE INDEX ON a (n);",
        "UPDATE a SET c = 1;",
        "ALTER TABLE a ADD CONSTRAINT p CHECK (i > 0) NOT VALID;",
        "ALTER TABLE a VALIDATE CONSTRAINT p;",
        "SELECT count(*) FROM b; SELECT count(*) FROM a;",
        "ALTER TABLE a ADD d int; ALTER TABLE b ADD d int;",
    )

    assert levels(found) == [HARMLESS, READS, WRITES, WRITES, *[HARMLESS] * 5]
    assert [len(entry["locks"]) for entry in found] == [1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert [len(entry["other_locks"]) for entry in found] == [0, 1, 1, 1, 0, 1, 0, 0, 1]


def test_lock_has_the_time_from_its_statement_to_the_end_of_the_file(
    plain: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the file; of a marked file not that of other steps. What is long blocks, whatever takes the time."""
    monkeypatch.setattr(effects, "LONG_MS", 1000)
    plain.sql("CREATE TABLE c (i int); CREATE TABLE d (i int)")
    first, second, third = tried(
        plain,
        "SELECT pg_sleep(0.6); ALTER TABLE a ADD c int; SELECT pg_sleep(0.2); ALTER TABLE b ADD c int;",
        "-- no-transaction\nSELECT pg_sleep(0.6);\nALTER TABLE c ADD x int;\nSELECT pg_sleep(0.6);",
        "LOCK TABLE d IN SHARE MODE; SELECT pg_sleep(1.1); ALTER TABLE d ADD x int;",
    )
    held = {lock["table"].split(".")[1]: lock["held_ms"] for lock in (*first["locks"], *second["locks"])}

    assert 200 <= held["a"] <= first["duration_ms"] - 550
    assert held["b"] <= held["a"] - 200
    assert held["c"] <= second["duration_ms"] - 1150
    assert third["level"] == WRITES
    assert [lock["lock"] for lock in (*third["locks"], *third["other_locks"])] == ["ACCESS EXCLUSIVE", "SHARE"]


def test_file_of_many_statements_is_sent_whole(plain: World) -> None:
    """It would wait for each answer: its locks have the time of the file, and are found."""
    entry = alone(plain, "SELECT 1;" * 1200 + "ALTER TABLE a ALTER i TYPE bigint;" + "SELECT 1;" * 1200)

    assert (entry["level"], blocking(entry)) == (READS, ["ACCESS EXCLUSIVE on a"])
    assert entry["duration_ms"] < 3000


# --- Losses ---------------------------------------------------------------------------------------------------------

LOST = {
    "ALTER TABLE a DROP t, DROP COLUMN n": [("column a.t", 7), ("column a.n", 7)],
    "DROP TABLE b": [("table b", 2)],
    "DROP TABLE b; CREATE TABLE b (i int)": [("table b", 2)],
    "TRUNCATE a, b": [("rows of a", 7), ("rows of b", 2)],
    "TRUNCATE a; INSERT INTO a VALUES (1)": [("rows of a", 7)],
    "TRUNCATE b; ALTER TABLE b ADD c uuid DEFAULT gen_random_uuid()": [("rows of b", 2)],
    "TRUNCATE b; ALTER TABLE b ADD c jsonb NOT NULL": [("rows of b", 2)],
    "TRUNCATE a; ALTER TABLE a ALTER i TYPE bigint; INSERT INTO a VALUES (1)": [("rows of a", 7)],
    "DELETE FROM a WHERE i < 3": [("rows of a", 2)],
    "DO $$ BEGIN TRUNCATE b; DELETE FROM a; END $$": [("rows of a", 7), ("rows of b", 2)],
    "SELECT empty_b()": [("rows of b", 2)],
    "CREATE TEMP TABLE x AS SELECT * FROM b; TRUNCATE b; INSERT INTO b SELECT * FROM x": [("rows of b", 2)],
    "ALTER TABLE a DROP t; ALTER TABLE a ADD t text": [("column a.t", 7)],
    "-- no-transaction\nALTER TABLE a DROP t;\nDELETE FROM b;": [("column a.t", 7), ("rows of b", 2)],
    "DROP SEQUENCE alone": [("sequence alone", None)],
    "DROP TABLE never": [("table never", 3)],
    "DROP TABLE parent": [("table parent", None), ("table part", None)],
    "ALTER TABLE parent DROP t": [("column parent.t", None)],
    # Nothing that was there before is lost
    "CREATE TABLE c (i int, t text); INSERT INTO c VALUES (1); ALTER TABLE c DROP t; DELETE FROM c; TRUNCATE c": [],
    "ALTER TABLE a ADD c int; ALTER TABLE a DROP c; ALTER TABLE a RENAME t TO u": [],
    "UPDATE a SET t = 'y'; ALTER TABLE a RENAME TO z; ALTER TABLE z ALTER i TYPE bigint; CLUSTER z USING a_pkey": [],
    "INSERT INTO b VALUES (9); ALTER TABLE b ALTER i TYPE bigint; GRANT TRUNCATE ON a TO current_user": [],
    "ALTER TABLE never ALTER i DROP DEFAULT; ALTER SEQUENCE never_i_seq OWNED BY NONE": [],
    "REFRESH MATERIALIZED VIEW m; DROP MATERIALIZED VIEW m; DROP VIEW v; DROP TYPE kind": [],
}


@pytest.mark.parametrize("text", LOST)
def test_loss_is_what_was_there_before_with_its_rows(plain: World, text: str) -> None:
    """Tables, columns, rows and sequences; estimated where they are gone as a whole, and never read for it."""
    plain.sql(
        "CREATE FUNCTION empty_b() RETURNS void LANGUAGE plpgsql AS 'BEGIN TRUNCATE b; END'; CREATE SEQUENCE alone;"
        "CREATE TABLE never (i serial); INSERT INTO never SELECT FROM generate_series(1, 3);"
        "CREATE TABLE parent (i int, t text) PARTITION BY LIST (i); CREATE TABLE part PARTITION OF parent DEFAULT;"
        "CREATE VIEW v AS SELECT 1; CREATE TYPE kind AS ENUM (); CREATE MATERIALIZED VIEW m AS SELECT 1"
    )
    if "TABLE never" in text:
        wait_until(lambda: plain.sql("SELECT n_live_tup FROM pg_stat_user_tables WHERE relname = 'never'") == [(3,)])

    entry = alone(plain, text)

    assert sorted(whats(entry)) == sorted(LOST[text])
    assert entry["level"] == (LOSES if LOST[text] else entry["level"])
    assert (entry["level"] == LOSES) is (LOST[text] != [])


def test_rows_of_a_file_that_is_not_tried_are_not_lost(plain: World) -> None:
    """It had begun before PostgreSQL refused the new value, and was rolled back."""
    plain.sql("CREATE TYPE mood AS ENUM ('old'); CREATE TABLE moods (mood mood)")
    added, used = tried(plain, "ALTER TYPE mood ADD VALUE 'new';", "DELETE FROM a; INSERT INTO moods VALUES ('new');")

    assert levels([added, used]) == [HARMLESS, HARMLESS]
    assert used["untried"] == ["it uses an enum value that this run adds"]


def test_rows_are_counted_once_where_a_file_is_tried_again(plain: World) -> None:
    """What a first attempt deleted was rolled back."""
    with plain.connection() as other:
        rows(other, "BEGIN; LOCK TABLE b")
        plain.write("001.sql", "DELETE FROM a; SELECT count(*) FROM a; INSERT INTO b VALUES (1);")
        timer = threading.Timer(1.0, rows, (other, "COMMIT"))
        timer.start()
        (entry,) = plain.deploy(DRY)["tried"]
        timer.join()

    assert whats(entry) == [("rows of a", 7)]


GONE = {
    "DROP VIEW v": ["view v"],
    "DROP VIEW v; CREATE VIEW v AS SELECT 2": [],
    "DROP TYPE kind; DROP SCHEMA s; DROP MATERIALIZED VIEW m": ["materialized view m", "schema s", "type kind"],
    "ALTER TABLE a RENAME TO z": ["a (now z)"],
    "ALTER TABLE a RENAME TO z; CREATE VIEW a AS SELECT * FROM z": [],
    "ALTER TABLE a RENAME t TO u": ["column a.t (now u)"],
    "ALTER TABLE a RENAME t TO u; ALTER TABLE a ADD t text": [],
}


@pytest.mark.parametrize("text", GONE)
def test_names_that_the_old_code_uses_and_that_are_gone_are_named(plain: World, text: str) -> None:
    """Nothing is lost with them."""
    plain.sql(
        "CREATE VIEW v AS SELECT 1; CREATE TYPE kind AS ENUM (); CREATE MATERIALIZED VIEW m AS SELECT 1;CREATE SCHEMA s"
    )

    entry = alone(plain, text)

    assert sorted(name.replace(f"{SCHEMA}.", "") for name in entry["gone"]) == GONE[text]
    assert (entry["level"], entry["lost"]) == (HARMLESS, [])


def test_rewritten_tables_have_their_rows_and_indexes(plain: World) -> None:
    """A new index is named; those of a table that is written again are counted."""
    rewritten, built, longer = tried(
        plain,
        "ALTER TABLE a ALTER i TYPE bigint;",
        "CREATE INDEX few ON a (t) WHERE i = 1; CREATE TABLE c (i int PRIMARY KEY);",
        "ALTER TABLE a ALTER n TYPE numeric(10,2);",
    )

    assert rewritten["rewritten"] == [{"table": f"{SCHEMA}.a", "rows": 7, "indexes": 1}]
    assert (built["rewritten"], built["indexes"]) == ([], [{"table": f"{SCHEMA}.a", "index": "few"}])
    assert (longer["rewritten"], longer["indexes"]) == ([], [])


# --- False alarms ---------------------------------------------------------------------------------------------------


def of_other_tools() -> list[tuple[str, list[Path]]]:
    folders = [path for path in (ROOT / "tests" / "coming_from").iterdir() if path.is_dir()]
    found = []
    for folder in [*sorted(folders), ROOT / "migrations"]:
        files = sorted(path for path in folder.rglob("*.sql") if not re.search(r"\.down\.|/U\d", str(path)))
        found.append((folder.name, files))
    return found


@pytest.mark.public  # where the tools make their tables
@pytest.mark.parametrize(("tool", "files"), of_other_tools(), ids=[tool for tool, _ in of_other_tools()])
def test_folders_of_other_tools_are_harmless_in_a_new_database(world: World, tool: str, files: list[Path]) -> None:
    """All files of a project make their tables first."""
    world.environ.update(CREATE_USERS="false")
    for number, path in enumerate(files, 1):
        world.write(
            f"{number:03}_{tool.replace('-', '_')}.sql",
            re.split("-- \\+goose Down|-- migrate:down|-- Down M", path.read_text())[0],
        )

    report = world.deploy(DRY)

    assert report["level"] == HARMLESS
    assert len(report["tried"]) == len(files) > 0


FOLDERS_THAT_RUN = {name: files for name, files in FOLDERS.items() if not name.startswith("fails")}


def test_folders_of_files_are_harmless_in_a_new_database(world: World) -> None:
    """Whatever SQL they contain: what it does is done to what they have made."""
    found = {}
    for name, files in FOLDERS_THAT_RUN.items():
        for path in world.folder.iterdir():
            path.unlink()
        for file, text in files.items():
            world.write(file, text)
        try:
            found[name] = world.deploy(DRY, CREATE_USERS="false")["level"]
        except InitializerError:
            continue

    assert set(found.values()) == {HARMLESS}
    assert len(found) > 10


# --- Markdown -------------------------------------------------------------------------------------------------------

NAMES = [
    "|",
    "a|b",
    "<b>x</b>",
    "`",
    "``` x",
    "*x*",
    "_x_",
    "[x](http://x)",
    "@somebody",
    "#1",
    "a\nb",
    "\\|",
    "&lt;",
    "\u202e",
]


def test_markdown_is_the_report_for_a_pull_request(plain: World) -> None:
    """The event asks for it; a report without it has none."""
    plain.write("001_drop.sql", "ALTER TABLE a DROP t; CREATE TYPE x AS ENUM ();")
    plain.write("002_index.sql", "CREATE INDEX CONCURRENTLY i ON b (i)")

    report = plain.deploy({**DRY, "markdown": True})

    table = [line for line in report["markdown"].splitlines() if line.startswith("| `")]
    assert report["markdown"].startswith(
        "### Dry run of the migrations\n\nFiles: 2. Level: **loses data**. Nothing has been changed.\n"
    )
    assert re.fullmatch(
        rf"\| `001_drop` \| \*\*loses data\*\* \| loses `column {SCHEMA}\.a\.t` \(7 rows\) \| "
        rf"`ACCESS EXCLUSIVE` on `{SCHEMA}\.a` for \d+ ms: no reading, no writing \|",
        table[0],
    )
    assert table[1] == "| `002_index` | harmless | not tried: `line 1 runs outside a transaction` |  |"
    assert report["level"] == LOSES
    assert "markdown" not in plain.deploy(DRY)
    assert json.loads(json.dumps(report)) == report


def test_markdown_of_nothing_says_so(plain: World) -> None:
    report = plain.deploy({**DRY, "markdown": True})

    assert (
        report["markdown"]
        == "### Dry run of the migrations\n\nFiles: 0. Level: **harmless**. Nothing has been changed.\n"
    )
    assert report["level"] == HARMLESS


def cells(line: str) -> list[str]:
    """As GitHub splits a line of a table: at each | that has no backslash before it, in code too."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_any_name_as_it_is(plain: World, name: str) -> None:
    """Whoever can name a table can neither break the comment, nor write into it or to others."""
    quoted = '"' + name.replace('"', '""') + '"'
    plain.sql(f"CREATE TABLE {quoted.replace('%', '%%')} ({quoted} int)")
    plain.write("001.sql", f"ALTER TABLE {quoted} DROP {quoted}; DO $$ BEGIN RAISE NOTICE 'x'; END $$;")

    lines = plain.deploy({**DRY, "markdown": True})["markdown"].splitlines()

    table = [line for line in lines if line.startswith("|")]
    assert [len(cells(line)) for line in table] == [4, 4, 4]
    (warning,) = (line for line in lines if line.startswith("- warning: "))  # of drift: the table was made by hand
    assert len(lines) == len(table) + 6
    outside = re.sub("<code>[^<>`]*</code>|`[^`<>]*`|<br>", "", table[2] + warning)
    assert re.fullmatch(r"[\w ().,:|*-]+", outside), outside


def test_markdown_is_not_longer_than_a_comment_can_be() -> None:
    """What is left out is counted, and its level is said."""
    nothing: dict[str, Any] = {"level": HARMLESS, "locks": [], "other_locks": [], "untried": []}
    entries = [{**nothing, "name": f"{number:03}_{'x' * 240}"} for number in range(400)]
    last = {
        **nothing,
        "name": "900_last",
        "level": LOSES,
        "lost": [{"what": f"table t{n}", "rows": 1} for n in range(99)],
    }

    text = pull_request.markdown([*entries, last], [])

    assert len(text) < 65_000
    assert re.search(r"\nFiles left out: \d+\. Their level: \*\*loses data\*\*\.\n", text)
    assert text.count("| `") > 200
    assert pull_request.markdown([last], []).count("(1 rows)<br>") == 12
    assert "<br>and 87 more |" in pull_request.markdown([last], [])


def test_markdown_of_a_failure_is_a_block_that_nothing_ends() -> None:
    """The message quotes the file."""
    text = pull_request.failed_markdown("a\n```\n# b\n`````\n@somebody")

    assert text == "### Dry run of the migrations\n\n**failed**\n\n``````\na\n```\n# b\n`````\n@somebody\n``````\n"


def test_lists_of_the_report_have_an_end(plain: World) -> None:
    """Lambda answers with 6 MB at most."""
    columns = ", ".join(f"c{number} int" for number in range(1500))
    plain.sql(f"CREATE TABLE wide ({columns})")
    drops = ", ".join(f"DROP c{number}" for number in range(1200))

    entry = alone(plain, f"ALTER TABLE wide {drops}")

    assert (len(entry["lost"]), entry["lost_left_out"]) == (1000, 200)


# --- What it does to others -----------------------------------------------------------------------------------------


def test_dry_run_locks_no_table_that_its_files_do_not_name(plain: World) -> None:
    """Another session holds the strongest lock on it meanwhile, and on its index."""
    with plain.connection() as other:
        rows(other, "BEGIN; LOCK TABLE b")
        found = tried(plain, "ALTER TABLE a DROP t;", "TRUNCATE a;")

    assert levels(found) == [LOSES, LOSES]


def test_dry_run_asks_in_its_own_search_path(plain: World) -> None:
    """A file leaves its own, with an operator that the questions could meet."""
    plain.sql(
        "CREATE SCHEMA trap; CREATE TABLE trap.seen (i int);"
        "CREATE FUNCTION trap.eq(int, int) RETURNS bool LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO trap.seen VALUES (1); RETURN true; END';"
        "CREATE OPERATOR trap.= (LEFTARG = int, RIGHTARG = int, FUNCTION = trap.eq);"
    )
    path = "SET search_path = trap, pg_catalog;"
    plain.write("001.sql", f"-- no-transaction\n{path}\nALTER TABLE {SCHEMA}.a DROP t;\nSELECT 1;")
    plain.write("002.sql", f"{path} SELECT 1; SELECT count(*) = 0 AS none FROM trap.seen;")
    plain.write("003.sql", "DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM trap.seen); END $$;")

    report = plain.deploy(DRY)

    assert report["level"] == LOSES

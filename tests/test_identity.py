"""Which migration a file is: its name, the number it was given, its content. Through whole deployments."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Optional

import pytest
from harness.world import World
from initializer import ConfigError, MigrationError

# None of these can run twice.
A, B, C, LIMIT = "CREATE TABLE a (x int);", "CREATE TABLE b (x int);", "CREATE TABLE c (x int);", "CREATE TABLE l ();"


@pytest.fixture(autouse=True)
def _no_users(world: World) -> None:
    """Users do not matter here, and take time."""
    world.environ["CREATE_USERS"] = "false"


def fill(world: World, files: Mapping[str, str]) -> None:
    """Make these the files of the folder, and no others."""
    for path in world.folder.iterdir():
        path.unlink()
    for name, text in files.items():
        world.write(f"{name}.sql", text)


def deploy(world: World, files: Mapping[str, str], **environ: str) -> list[str]:
    """Deploy exactly these files; returns the names that were applied."""
    fill(world, files)
    return [entry["name"] for entry in world.deploy(**environ)["applied"]]


def refused(world: World, files: Mapping[str, str], **environ: str) -> str:
    """Deploy exactly these files, which must fail; returns the message."""
    with pytest.raises(MigrationError) as caught:
        deploy(world, files, **environ)
    return str(caught.value)


def recorded(world: World) -> list[tuple[Any, ...]]:
    return world.sql("SELECT * FROM schema_migrations ORDER BY id")


def forget_checksums(world: World) -> None:
    """Make the rows what the predecessor's are."""
    world.sql("UPDATE schema_migrations SET checksum = NULL, file_sha256 = NULL")


def messages(caplog: pytest.LogCaptureFixture, phrase: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(phrase)]


# --- Files without a number -----------------------------------------------------------------------------------------


def test_unnumbered_file_with_later_numbered_files_runs_once(world: World) -> None:
    """`add_limit` next to 012_x is recorded as 013_add_limit and keeps that when 015_y comes."""
    first = deploy(world, {"012_x": A, "add_limit": LIMIT})
    second = deploy(world, {"012_x": A, "add_limit": LIMIT, "015_y": B})
    third = deploy(world, {"012_x": A, "add_limit": LIMIT, "015_y": B})

    assert (first, second, third) == (["012_x", "013_add_limit"], ["015_y"], [])
    assert world.applied() == ["012_x", "013_add_limit", "015_y"]


def test_unnumbered_file_that_sorts_before_an_applied_one_runs_after_it(world: World) -> None:
    """A new `aaa` next to an applied `bbb` is the next migration; what is recorded stays."""
    deploy(world, {"bbb": B})

    applied = deploy(world, {"aaa": A, "bbb": B})

    assert applied == ["002_aaa"]
    assert world.applied() == ["001_bbb", "002_aaa"]
    assert deploy(world, {"aaa": A, "bbb": B}) == []


def test_unnumbered_file_gets_a_number_after_those_of_deleted_files(world: World) -> None:
    """The next number is after every number in the table as well as in the folder."""
    deploy(world, {"001_a": A, "007_b": B})

    applied = deploy(world, {"001_a": A, "c": C})

    assert applied == ["008_c"]


def test_unnumbered_files_of_any_name_run_once(world: World) -> None:
    """Whatever files without a number are called, the second deployment knows them."""
    names = [" limit", "-limit", "V2__limit", "_limit", "add_limit", "limit.v2", "l\u00edmite"]
    files = {"001_a": A, **{name: f"CREATE TABLE l{number} ();" for number, name in enumerate(names)}}

    first, second = deploy(world, files), deploy(world, files)

    assert first == ["001_a", *(f"{number:03d}_{name}" for number, name in enumerate(names, 2))]
    assert second == []


def test_unnumbered_file_recorded_raw_by_the_predecessor_does_not_run(world: World) -> None:
    """A row may hold the bare name: it is the file's own."""
    deploy(world, {"001_a": A})
    world.sql("CREATE TABLE l ()")
    world.sql("INSERT INTO schema_migrations (migration_name) VALUES ('add_limit')")

    assert deploy(world, {"001_a": A, "add_limit": LIMIT}) == []
    assert world.applied() == ["001_a", "add_limit"]


def test_recorded_rows_do_not_change_when_files_come_and_go(world: World) -> None:
    """A recorded number never changes: what was written at the first deployment is there after all others."""
    deploy(world, {"012_x": A, "add_limit": LIMIT})
    before = recorded(world)

    deploy(world, {"001_late": B, "012_x": A, "aaa": C, "add_limit": LIMIT})
    deploy(world, {"012_x": A})
    deploy(world, {"012_x": A, "add_limit": LIMIT, "20240131120000_stamp": "CREATE TABLE s ();"})

    assert recorded(world)[: len(before)] == before


def test_name_in_another_unicode_spelling_is_the_same_name(world: World) -> None:
    """A file that went through a Mac has another spelling and stays the same migration, with a number or without."""
    one, two = "caf\u00e9", "cafe\u0301"
    recorded_as = [f"001_{one}_a", f"002_{two}_b", f"003_{one}_c", f"004_{two}_d"]
    files = dict.fromkeys((f"001_{two}_a", f"002_{one}_b", f"{two}_c", f"{one}_d"), "SELECT 1")
    deploy(world, files)
    for number, name in enumerate(recorded_as, 1):
        world.sql("UPDATE schema_migrations SET migration_name = %s WHERE id = %s", name, number)

    assert deploy(world, files) == []
    assert world.applied() == recorded_as


# --- Renumbered files -----------------------------------------------------------------------------------------------


def test_renumbered_file_does_not_run_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The same name after another number with the same content is the same migration: its row is renamed."""
    deploy(world, {"001_a": A, "002_b": B, "003_c": f"{C}\nSELECT 1;\n", "004_l": LIMIT})
    ids = world.sql("SELECT id, applied_at FROM schema_migrations ORDER BY id")

    applied = deploy(
        world,
        {"001_a": A, "012_b": B, "013_c": f"{C}\r\nSELECT 1;\r\n", "014_l": f"-- 004 was taken\n{LIMIT} /* sic */"},
    )

    assert applied == []
    assert world.applied() == ["001_a", "012_b", "013_c", "014_l"]
    assert world.sql("SELECT id, applied_at FROM schema_migrations ORDER BY id") == ids
    assert messages(caplog, "renumbered") == [
        "renumbered migration=012_b was=002_b",
        "renumbered migration=013_c was=003_c",
        "renumbered migration=014_l was=004_l",
    ]


def test_renumbered_file_is_known_at_the_next_deployment(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A row is renamed once."""
    deploy(world, {"004_b": B})
    deploy(world, {"005_b": B})
    caplog.clear()

    assert deploy(world, {"005_b": B}) == []
    assert messages(caplog, "renumbered") == []
    assert messages(caplog, "applied, but not in the folder") == []


def test_renumbered_file_makes_room_for_another_of_its_number(world: World) -> None:
    """After a merge conflict, one file takes the number that another one had: only the new one runs, in silence."""
    deploy(world, {"001_a": A, "002_ours": B})
    fill(world, {"001_a": A, "002_theirs": C, "003_ours": B})

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["002_theirs"]
    assert world.applied() == ["001_a", "003_ours", "002_theirs"]
    assert not [warning for warning in report["warnings"] if "more than once" in warning]


def test_unnumbered_file_that_its_author_numbers_does_not_run_again(world: World) -> None:
    """A file can be given its number, or another one, by hand."""
    deploy(world, {"001_a": A, "add_limit": LIMIT})
    for name in ("002_add_limit", "007_add_limit"):
        assert deploy(world, {"001_a": A, name: LIMIT}) == []
        assert world.applied() == ["001_a", name]


def test_numbered_file_that_loses_its_number_does_not_run_again(world: World) -> None:
    """A file whose name is the one after a recorded number is that migration."""
    deploy(world, {"001_a": A, "004_b": B})

    assert deploy(world, {"001_a": A, "b": B}) == []
    assert world.applied() == ["001_a", "004_b"]


def test_copy_of_a_file_with_another_number_is_a_new_migration(world: World) -> None:
    """A file was renumbered only if its own file is gone."""
    insert = "INSERT INTO a VALUES (1);"
    deploy(world, {"001_a": A, "002_add": insert})

    applied = deploy(world, {"001_a": A, "002_add": insert, "003_add": insert})

    assert applied == ["003_add"]
    assert world.sql("SELECT count(*) FROM a") == [(2,)]


def test_same_name_with_other_content_is_a_new_migration(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The name alone does not make a file the successor of one that is gone."""
    deploy(world, {"001_init": A})

    applied = deploy(world, {"002_init": B})

    assert applied == ["002_init"]
    assert world.applied() == ["001_init", "002_init"]
    assert messages(caplog, "applied, but") == ["applied, but not in the folder migrations=001_init"]


AMBIGUOUS = (
    "005_b.sql: is this 004_b, which is applied and whose file is gone? It was recorded without a checksum, so "
    "nothing can tell. Nothing has been applied. If it is, name the file 004_b.sql for one deployment, then rename "
    "it; if not, give it another name after the number."
)


def test_renumbered_file_of_a_row_without_checksum_is_refused(world: World) -> None:
    """Where nothing can tell whether a file has run, nothing runs; the message asks, and both its ways out work."""
    deploy(world, {"001_a": A, "004_b": B})
    forget_checksums(world)
    before = recorded(world)

    message = refused(world, {"001_a": A, "002_c": C, "005_b": B})

    assert message == AMBIGUOUS
    assert recorded(world) == before
    assert world.tables() == ["a", "b"]
    assert deploy(world, {"001_a": A, "005_c": C}) == ["005_c"]  # another name after the number
    assert deploy(world, {"001_a": A, "004_b": B, "005_c": C}) == []  # the old name for one deployment
    assert deploy(world, {"001_a": A, "005_b": B, "005_c": C}) == []
    assert world.applied() == ["001_a", "005_b", "005_c"]


# --- Renamed files --------------------------------------------------------------------------------------------------

SEED = "INSERT INTO counted DEFAULT VALUES;"  # which runs a second time without complaint
RENAMES = [
    pytest.param("002_add_ordrs", "002_add_orders", id="slip of the pen"),
    pytest.param("005_duoble_prices", "005_double_prices", id="two letters"),
    pytest.param("002_Add_Orders", "002_add_orders", id="case"),
    pytest.param("002-add-orders", "002_add_orders", id="separators"),
    pytest.param("002_seed", "002_seed.up", id="up"),
    pytest.param("002_seed", "20260101_seed_rows", id="number and words"),
    pytest.param("V2__seed", "002_seed", id="from Flyway's form"),
    pytest.param("002_seed", "V2__seed", id="to Flyway's form"),
    pytest.param("seed", "sow", id="without a number"),
    pytest.param("002_seed", "sow", id="number lost"),
    pytest.param("2024-01-15-120000_seed", "20240115120000_seed", id="shape of a time"),
    pytest.param("1.2_seed", "1.2.0_seed", id="parts of a version"),
]


@pytest.mark.parametrize(("before", "after"), RENAMES)
def test_renamed_file_does_not_run_again(
    world: World, caplog: pytest.LogCaptureFixture, before: str, after: str
) -> None:
    """A file with the content of a row whose file is gone is that migration: in both directions, and in each run."""
    world.sql("CREATE TABLE counted (id serial)")
    old, new = {"001_a": A, before: SEED}, {"001_a": A, after: f"-- seeds\n{SEED}\n"}
    deploy(world, old)
    ids = world.sql("SELECT id, applied_at FROM schema_migrations ORDER BY id")
    name = world.applied()[1]

    runs = [deploy(world, files) for files in (new, new, old, old, new)]

    assert runs == [[]] * 5
    assert world.sql("SELECT count(*) FROM counted") == [(1,)]
    assert world.sql("SELECT id, applied_at FROM schema_migrations ORDER BY id") == ids
    followed = after if after[0].isdigit() else f"002_{after}"  # a number that was given stays
    assert messages(caplog, "renumbered")[0].split() == ["renumbered", f"migration={followed}", f"was={name}"]


def test_renamed_file_of_an_adopted_database_does_not_run(world: World) -> None:
    """What was recorded without running has its content, too."""
    world.sql("CREATE TABLE a (x int); CREATE TABLE counted (id serial)")
    deploy(world, {"001_a": A, "002_seed": SEED}, BASELINE="002_seed")

    assert deploy(world, {"001_a": A, "002_sow": SEED}) == []
    assert world.sql("SELECT count(*) FROM counted") == [(0,)]


def test_renamed_files_with_the_same_content_are_paired_in_order(world: World) -> None:
    """Of several that cannot be told apart, none runs twice; names that are alike belong together."""
    world.sql("CREATE TABLE counted (id serial)")
    deploy(world, {"001_x": SEED, "002_y": SEED, "003_z": SEED})
    ids = dict(world.sql("SELECT migration_name, id FROM schema_migrations"))

    applied = deploy(world, {"004_p": SEED, "005_z": SEED, "006_q": SEED, "007_new": SEED})

    assert applied == ["007_new"]
    assert world.sql("SELECT count(*) FROM counted") == [(4,)]
    after = dict(world.sql("SELECT migration_name, id FROM schema_migrations"))
    assert after["005_z"] == ids["003_z"]
    assert (after["004_p"], after["006_q"]) == (ids["001_x"], ids["002_y"])


def test_renamed_and_edited_file_is_a_new_migration_that_is_said(world: World) -> None:
    """Nothing tells that it is the same; its number, which is used already, is warned of."""
    deploy(world, {"001_a": A, "002_add_ordrs": B})
    fill(world, {"001_a": A, "002_add_orders": C})

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["002_add_orders"]
    assert report["warnings"] == ["number 2 is used more than once: 002_add_orders, 002_add_ordrs"]


@pytest.mark.parametrize(
    ("before", "after", "instead"),
    [
        ("004_add-b", "005_Add_b", "another name after the number"),
        ("004_add_b", "004_add_bs", "another number"),
        ("V4__add_b", "004_add_b", "another name after the number"),
    ],
)
def test_renamed_file_of_a_row_without_checksum_is_refused(world: World, before: str, after: str, instead: str) -> None:
    """A name that people take for the same, or the same number, is not run where nothing can tell."""
    deploy(world, {"001_a": A, before: B})
    forget_checksums(world)
    was = world.applied()[1]

    message = refused(world, {"001_a": A, after: B})

    assert message.startswith(f"{after}.sql: is this {was}, which is applied and whose file is gone? ")
    assert message.endswith(f"; if not, give it {instead}.")
    assert deploy(world, {"001_a": A, before: B}) == []
    assert deploy(world, {"001_a": A, after: B}) == []


def test_other_file_of_a_number_whose_row_has_no_checksum_runs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The predecessor left rows of numbers that it gave twice: a file that is called otherwise is another one."""
    deploy(world, {"001_a": A, "004_add_limit": B})
    forget_checksums(world)

    assert deploy(world, {"001_a": A, "004_orders": C}) == ["004_orders"]
    assert 'warning text="number 4 is used more than once: 004_add_limit, 004_orders"' in messages(caplog, "warning")


# --- Rows without files: rolled-back deployments --------------------------------------------------------------------


def test_older_folder_on_a_newer_database_is_not_an_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A rolled-back deployment invokes the previous version: it finds rows that it does not know, and says so."""
    older, newer = {"001_a": A, "004_b": B}, {"001_a": A, "005_b": B, "006_c": C}
    deploy(world, older)
    deploy(world, newer)
    caplog.clear()

    back = deploy(world, older)

    assert back == []
    assert world.applied() == ["001_a", "004_b", "006_c"]
    assert messages(caplog, "renumbered") == ["renumbered migration=004_b was=005_b"]
    assert messages(caplog, "applied, but") == ["applied, but not in the folder migrations=006_c"]
    assert deploy(world, newer) == []
    assert world.applied() == ["001_a", "005_b", "006_c"]


def test_deleted_file_leaves_a_row_that_is_only_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An applied file may be deleted."""
    deploy(world, {"001_a": A, "002_b": B})
    before = recorded(world)
    caplog.clear()
    fill(world, {"001_a": A})

    report = world.deploy()

    assert (report["applied"], report["warnings"]) == ([], [])
    assert messages(caplog, "applied, but") == ["applied, but not in the folder migrations=002_b"]
    assert recorded(world) == before


# --- Order that may be a slip ---------------------------------------------------------------------------------------


def test_odd_number_is_applied_and_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Equal numbers and a late lower number are allowed, and said in the log and in the report; so is a gap, unsaid."""
    odd = {
        "003_c": "number 3 is used more than once: 003_b, 003_c",
        "001_d": "001_d comes late: number 3 is applied already",
        "006_e": None,
    }
    deploy(world, {"002_a": A, "003_b": B})
    for name, warning in odd.items():
        caplog.clear()
        world.write(f"{name}.sql", f"CREATE TABLE t{name} ();")

        report = world.deploy()

        assert [entry["name"] for entry in report["applied"]] == [name]
        assert report["warnings"] == ([warning] if warning else [])
        assert messages(caplog, "warning") == ([f'warning text="{warning}"'] if warning else [])


# --- Files that change meanwhile ------------------------------------------------------------------------------------


@contextmanager
def while_a_file_sleeps(world: World, change: Callable[[], None]) -> Iterator[None]:
    """Make this change as soon as a statement of the run is asleep."""

    def wait_and_change() -> None:
        asleep = "SELECT true FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        give_up = time.monotonic() + 20
        while not world.sql(asleep) and time.monotonic() < give_up:
            time.sleep(0.05)
        change()

    with ThreadPoolExecutor(1) as pool:
        changed = pool.submit(wait_and_change)
        yield
        changed.result()


SLOW = "SELECT pg_sleep(1);"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(f"{B} {C}", f"{B} commit; {C} SELECT oops;", id="a COMMIT comes in"),
        pytest.param(f"{B} {C}", "", id="emptied"),
        pytest.param(f"{B} {C}", B, id="cut off"),
        pytest.param(f"{B} {C}", f"{B} {C}\n", id="a line end"),
    ],
)
def test_file_that_changes_before_it_runs_is_refused(world: World, before: str, after: str) -> None:
    """What was checked is what is sent: where that is gone, the file does not run, and a second run is as any other."""
    fill(world, {"001_slow": SLOW, "002_b": before})

    with while_a_file_sleeps(world, lambda: world.write("002_b.sql", after)), pytest.raises(MigrationError) as caught:
        world.deploy()

    assert str(caught.value) == (
        "002_b.sql: it was changed while this run read it, so it is not applied. "
        "Applied in this run: 001_slow. Invoke again when nobody writes to it."
    )
    assert world.applied() == ["001_slow"]
    assert world.tables() == []
    assert deploy(world, {"001_slow": SLOW, "002_b": before}) == ["002_b"]
    assert world.tables() == ["b", "c"]


@pytest.mark.parametrize(
    ("after", "what"),
    [(b"\xff", "byte 0xff is not UTF-8"), (None, "cannot be read: No such file or directory")],
    ids=["no longer text", "gone"],
)
def test_file_that_cannot_be_read_any_more_says_what_is_applied(
    world: World, after: Optional[bytes], what: str
) -> None:
    """That nothing has been applied is only said where it is so."""
    fill(world, {"001_slow": SLOW, "002_b": B})
    path = world.folder / "002_b.sql"

    def change() -> None:
        path.write_bytes(after) if after else path.unlink()

    with while_a_file_sleeps(world, change), pytest.raises(MigrationError) as caught:
        world.deploy()

    message = str(caught.value)
    assert what in message
    assert message.count("Applied in this run: 001_slow.") == 1
    assert "Nothing has been" not in message


# --- What is in the folder besides ----------------------------------------------------------------------------------


def test_folder_next_to_the_files_is_reported_by_every_action(world: World) -> None:
    """What may be left aside on purpose is a warning of a run, of a dry run and of status."""
    fill(world, {"001_a": A})
    (world.folder / "old").mkdir()
    (world.folder / "old" / "000_z.sql").write_text("SELECT 1")
    world.write("002_b.sql.disabled", B)

    reports = [world.deploy({"action": action}) for action in ("status", "dry_run", "migrate")]

    said = [
        "002_b.sql.disabled is not run, for it does not end in .sql",
        "migrations/old/ is not looked into, but holds 000_z.sql: only files in migrations/ itself are run",
    ]
    assert [report["warnings"] for report in reports] == [said] * 3


def test_folder_that_has_no_migration_any_more_is_said(world: World) -> None:
    """An exclude pattern that matches too much gets a warning; not an error, since a rolled-back stack can be so."""
    deploy(world, {"001_a": A})
    fill(world, {})

    reports = [world.deploy({"action": action}) for action in ("migrate", "status")]

    text = "migrations/ holds no file, but migrations are recorded: was it deployed without them?"
    assert [report["warnings"] for report in reports] == [[text]] * 2


@pytest.mark.parametrize("name", ["002_b.sql.txt", "002_b.psql", "002_b.sql ", "002_b/migration.sql"])
def test_file_that_looks_like_a_migration_stops_every_action(world: World, name: str) -> None:
    """If a file that should run does not, no file runs."""
    fill(world, {"001_a": A})
    (world.folder / name).parent.mkdir(exist_ok=True)
    (world.folder / name).write_text(B)

    for action in ("migrate", "status", "dry_run"):
        with pytest.raises(ConfigError) as caught:
            world.deploy({"action": action})
        assert name.split("/", maxsplit=1)[0] in str(caught.value)
    assert world.tables() == []


# --- Edited files ---------------------------------------------------------------------------------------------------

RICH = """CREATE TABLE t (x int, y text DEFAULT 'a
b');
CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN 'x';
END $$;
"""


def test_applied_file_with_new_comments_and_line_ends_is_not_an_edit(world: World) -> None:
    """What a formatter or git's line ends do to an applied file stops no deployment, and changes no row."""
    deploy(world, {"001_t": RICH})
    before = recorded(world)

    applied = deploy(world, {"001_t": "\ufeff-- why\r\n" + RICH.replace("\n", "\r\n"), "002_a": A})

    assert applied == ["002_a"]
    assert recorded(world)[:1] == before


EDITED = (
    "001_a.sql: edited after it was applied (2026-01-02 03:04:06), which has no effect on this database. Nothing has "
    "been applied. Restore what was applied, and put the change (git log -p -- '*001_a.sql' shows it) into a new file; "
    'or accept the difference with ALLOW_EDITED_MIGRATIONS="true".'
)
A_EDITED = "CREATE TABLE a (x int, y int);"


def test_edited_applied_file_stops_the_run(world: World) -> None:
    """An edit would have no effect, which its author does not expect: nothing is applied, and the message says so."""
    deploy(world, {"001_a": A})
    world.sql("UPDATE schema_migrations SET applied_at = '2026-01-02 03:04:05.678'")
    before = recorded(world)

    with_nothing_pending = refused(world, {"001_a": A_EDITED}, ALLOW_EDITED_MIGRATIONS="false")
    message = refused(world, {"001_a": A_EDITED, "000_early": C, "002_b": B})

    assert (with_nothing_pending, message) == (EDITED, EDITED)
    assert recorded(world) == before
    assert world.tables() == ["a"]
    assert deploy(world, {"001_a": A, "002_y": "ALTER TABLE a ADD y int;"}) == ["002_y"]  # the way out that it names


def test_edited_files_are_all_named(world: World) -> None:
    """One message names every edited file, so that one more deployment is enough."""
    deploy(world, {"001_a": A, "002_b": B, "003_c": C})

    message = refused(world, {"001_a": A_EDITED, "002_b": B + "SELECT 1;", "003_c": C})

    assert re.match(r"001_a\.sql, 002_b\.sql: edited after they were applied \(the first \d{4}-[-0-9: ]+\), ", message)


def test_edited_file_that_is_allowed_is_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """ALLOW_EDITED_MIGRATIONS goes on with the rest and keeps the recorded checksum, for a rolled-back deployment."""
    deploy(world, {"001_a": A})
    before = recorded(world)
    fill(world, {"001_a": A_EDITED, "002_b": B})

    report = world.deploy(ALLOW_EDITED_MIGRATIONS="true")

    assert [entry["name"] for entry in report["applied"]] == ["002_b"]
    assert report["warnings"] == ["edited after it was applied, without effect: 001_a.sql"]
    assert messages(caplog, "warning") == ['warning text="edited after it was applied, without effect: 001_a.sql"']
    assert recorded(world)[:1] == before
    assert deploy(world, {"001_a": A, "002_b": B}) == []


# --- Checksums of a newer release -----------------------------------------------------------------------------------


def record_as_a_newer_release(world: World, name: str, checksum: str = "9:unknown") -> None:
    world.sql("UPDATE schema_migrations SET checksum = %s WHERE migration_name = %s", checksum, name)


def test_checksum_of_a_newer_release_is_not_an_edit(world: World) -> None:
    """A rolled-back deployment does not know the newer version's checksums, nor complains of or replaces them."""
    deploy(world, {"001_a": A})
    for checksum in ("9:unknown", "10:unknown", "whatever"):
        record_as_a_newer_release(world, "001_a", checksum)
        world.sql("UPDATE schema_migrations SET file_sha256 = 'other'")
        before = recorded(world)

        assert deploy(world, {"001_a": A}) == []
        assert recorded(world) == before


def test_renumbered_file_with_the_checksum_of_a_newer_release_is_known_by_its_bytes(world: World) -> None:
    """Rolled back over a renumbering by a newer version, the old folder does not run its file again."""
    deploy(world, {"001_a": A, "005_b": B})
    record_as_a_newer_release(world, "005_b")

    assert deploy(world, {"001_a": A, "004_b": B}) == []
    assert world.applied() == ["001_a", "004_b"]


def test_renumbered_file_that_a_newer_release_recorded_with_other_bytes_is_refused(world: World) -> None:
    """Where a checksum cannot be compared, nothing can tell whether a file has run, and nothing runs."""
    deploy(world, {"001_a": A, "005_b": B})
    record_as_a_newer_release(world, "005_b")

    message = refused(world, {"001_a": A, "004_b": "-- before\n" + B})

    assert message.startswith("004_b.sql: is this 005_b, which is applied and whose file is gone? ")
    assert world.applied() == ["001_a", "005_b"]

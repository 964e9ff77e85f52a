"""Repeatable files, R__name.sql: they run after all others, and again whenever their text has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import file_names
import initializer
import planning
import pytest
import review
import sql_scanner
from harness import guide
from harness.database import SCHEMA
from harness.logins import works
from harness.others import open_transaction
from harness.proxy import ANSWERED, SENT, Link, Place, proxy_to
from harness.world import Context, World
from initializer import ConfigError, InitializerError, MigrationError, StoppedError
from test_terminal import check, commit, git, terminal

VIEW = "CREATE OR REPLACE VIEW v AS SELECT {};"
A, B, C = VIEW.format("1 AS a"), VIEW.format("1 AS a, 2 AS b"), VIEW.format("1 AS a, 2 AS b, 3 AS c")
COUNTED = "INSERT INTO runs VALUES ('{}');"
STEPS = "-- no-transaction\nINSERT INTO runs VALUES ('{0}1');\n{1}\nINSERT INTO runs VALUES ('{0}3');"
OLDER = (
    "R__v.sql:1: cannot drop columns from view (42P16). This text ran before and does not work any more, so what a "
    "newer one made stays. It is tried again by each run"
)


@pytest.fixture(autouse=True)
def _few_waits(world: World) -> None:
    """Users matter in one test, and take time in the others."""
    world.environ.update(CREATE_USERS="false", LOCK_TIMEOUT="300ms")


@pytest.fixture
def counted(world: World) -> World:
    """A world whose files can say that they ran."""
    world.write("001_runs.sql", "CREATE TABLE runs (what text, id serial);")
    return world


def names(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def failure(world: World, event: Any = None) -> str:
    with pytest.raises(InitializerError) as caught:
        world.deploy(event)
    return str(caught.value)


def runs(world: World) -> list[str]:
    return [what for (what,) in world.sql("SELECT what FROM runs ORDER BY id")]


def columns(world: World) -> list[str]:
    """Of the view."""
    return [
        name for (name,) in world.sql("SELECT attname FROM pg_attribute WHERE attrelid = 'v'::regclass ORDER BY attnum")
    ]


def status(world: World) -> dict[str, Any]:
    return world.deploy({"action": "status"})


def checksum(world: World, name: str = "R__v") -> str:
    ((recorded,),) = world.sql("SELECT checksum FROM schema_migrations WHERE migration_name = %s", name)
    return str(recorded)


@contextmanager
def version_before() -> Iterator[None]:
    """What of the versions before this one matters here: R__ is a name like others, and the checksums of rows are
    compared if they begin with what these versions know."""
    with (
        mock.patch.object(file_names, "is_repeatable", return_value=False),
        mock.patch.object(planning.Row, "as_read", new=lambda row: row),
    ):
        assert planning.CHECKSUMS == ("0:", "1:", "2:")
        yield


# --- When they run --------------------------------------------------------------------------------------------------


def test_repeatable_files_run_last_in_the_order_of_their_names(counted: World) -> None:
    """After numbered ones, also late ones, and after those without a number; R__10 comes after R__9."""
    for name in ("R__10_b", "R__9_a", "zz", "007_x", "V3__y", "Ra"):
        counted.write(f"{name}.sql", COUNTED.format(name))

    report = counted.deploy()

    assert runs(counted) == ["007_x", "Ra", "V3__y", "zz", "R__9_a", "R__10_b"]
    assert names(report) == counted.applied()
    assert names(report)[-3:] == ["010_zz", "R__9_a", "R__10_b"]
    counted.write("006_late.sql", COUNTED.format("late"))
    counted.write("R__9_a.sql", COUNTED.format("again"))
    assert names(counted.deploy()) == ["006_late", "R__9_a"]


def test_repeatable_file_runs_again_when_its_text_has_changed_and_only_then(counted: World) -> None:
    """Comments, white space and line ends do not count, as in any file. Its row is one, and says when it ran last."""
    counted.write("R__v.sql", A + COUNTED.format("x"))
    counted.deploy()
    (before,) = counted.sql("SELECT applied_at, file_sha256 FROM schema_migrations WHERE migration_name = 'R__v'")
    counted.write("R__v.sql", f"-- why\r\n{A}\r\n\r\n{COUNTED.format('x')}")

    unchanged = [counted.deploy(), counted.deploy({"action": "dry_run"}), status(counted)]

    assert [report["pending"] for report in unchanged] == [[], [], []]
    assert runs(counted) == ["x"]
    counted.write("R__v.sql", B + COUNTED.format("y"))
    changed = status(counted)
    assert (changed["pending"], changed["edited"]) == (["R__v"], [])
    assert names(counted.deploy(DEPLOYMENT="two")) == ["R__v"]
    assert (runs(counted), columns(counted)) == (["x", "y"], ["a", "b"])
    assert counted.applied() == ["001_runs", "R__v"]
    after, sha256, deployment, adopted, duration = counted.sql(
        "SELECT applied_at, file_sha256, deployment, adopted, duration_ms FROM schema_migrations ORDER BY id DESC"
    )[0]
    assert (after > before[0], sha256 != before[1], deployment, adopted) == (True, True, "two", None)
    assert duration >= 0
    assert counted.deploy()["applied"] == []


def test_repeatable_file_that_fails_fails_the_run(counted: World) -> None:
    """A new text is a migration like any other: rolled back, and tried again by the next run."""
    counted.write("R__v.sql", A)
    counted.write("R__w.sql", COUNTED.format("w"))
    counted.deploy()
    counted.write("R__v.sql", f"{COUNTED.format('v')}\nSELECT oops;")
    counted.write("R__w.sql", COUNTED.format("w2"))

    messages = [failure(counted, {"action": "dry_run"}), failure(counted)]

    for message in messages:
        assert message.startswith('R__v.sql:2:8: column "oops" does not exist (42703). Rolled back. ')
        assert "Not tried: R__w." in message
    assert (runs(counted), status(counted)["pending"]) == (["w"], ["R__v", "R__w"])
    counted.write("R__v.sql", B)
    assert names(counted.deploy()) == ["R__v", "R__w"]


def test_repeatable_file_alone_is_a_folder(world: World) -> None:
    """Also on a database that has tables already: nothing is adopted."""
    world.sql("CREATE TABLE t (i int)")
    world.write("R__t.sql", "CREATE TABLE IF NOT EXISTS t (i int); INSERT INTO t VALUES (1);")

    report = world.deploy()

    assert (names(report), report["adopted"], report["warnings"]) == (["R__t"], [], [])
    assert world.sql("SELECT * FROM t") == [(1,)]
    assert world.deploy()["applied"] == []


def test_repeatable_file_is_tried_by_a_dry_run_with_all_that_precedes_it(world: World) -> None:
    """Nothing of it stays, its row neither."""
    world.write("R__v.sql", A)
    world.deploy()
    before = world.sql("SELECT * FROM schema_migrations")
    world.write("002_t.sql", "CREATE TABLE t (i int);")
    world.write("R__v.sql", "CREATE OR REPLACE VIEW v AS SELECT 1 AS a, i FROM t;")

    report = world.deploy({"action": "dry_run"})

    assert [entry["name"] for entry in report["tried"]] == report["pending"] == ["002_t", "R__v"]
    assert (columns(world), world.sql("SELECT * FROM schema_migrations")) == (["a"], before)


def test_repeatable_files_have_sessions_of_their_own_where_one_changes_it(world: World) -> None:
    """What the first sets, the second does not find; a function with variables is compiled again for it."""
    function = (
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ DECLARE v int; BEGIN RETURN {}; END $$;"
    )
    world.write("001_t.sql", "CREATE TABLE t (v text);")
    world.write("R__a.sql", function.format(1) + "SET app.x = '1'; SET search_path = pg_catalog;")
    world.write("R__b.sql", "INSERT INTO t SELECT concat(f(), current_setting('app.x', true));")
    world.deploy()
    world.write("R__a.sql", function.format(2) + "SET app.x = '2'; SELECT pg_advisory_unlock_all();")
    world.write("R__b.sql", "INSERT INTO t SELECT concat(f(), current_setting('app.x', true), '!');")

    assert names(world.deploy()) == ["R__a", "R__b"]
    assert world.sql("SELECT v FROM t") == [("1",), ("2!",)]


def test_repeatable_file_that_was_emptied_and_filled_again_runs(counted: World) -> None:
    """A text without a statement is a text: it is recorded, and the next one runs."""
    counted.write("R__v.sql", COUNTED.format("x"))
    counted.deploy()
    counted.write("R__v.sql", "-- nothing any more\n")
    assert names(counted.deploy()) == ["R__v"]
    counted.write("R__v.sql", COUNTED.format("y"))

    assert names(counted.deploy()) == ["R__v"]
    assert (runs(counted), counted.applied()) == (["x", "y"], ["001_runs", "R__v"])


# --- Names ----------------------------------------------------------------------------------------------------------


def test_repeatable_file_that_is_renamed_does_not_run(counted: World) -> None:
    """Its row follows, with all its texts; and it runs when its text changes then."""
    counted.write("R__a.sql", COUNTED.format("1"))
    counted.deploy()
    counted.write("R__a.sql", COUNTED.format("2"))
    counted.deploy()
    before = checksum(counted, "R__a")
    counted.remove("R__a.sql")
    counted.write("R__b.sql", COUNTED.format("2"))

    renamed = status(counted)
    report = counted.deploy()

    assert (renamed["renumbered"], renamed["pending"]) == ([{"name": "R__b", "was": "R__a"}], [])
    assert (report["applied"], counted.applied()) == ([], ["001_runs", "R__b"])
    assert checksum(counted, "R__b") == before
    counted.write("R__b.sql", COUNTED.format("3"))
    assert names(counted.deploy()) == ["R__b"]
    assert runs(counted) == ["1", "2", "3"]


def test_file_that_becomes_repeatable_has_run_and_runs_when_it_changes(counted: World) -> None:
    """Its content is applied; from then on it is a repeatable file, under the name after its number."""
    counted.write("002_v.sql", COUNTED.format("1"))
    counted.deploy()
    counted.remove("002_v.sql")
    counted.write("R__v.sql", COUNTED.format("1"))

    assert counted.deploy()["applied"] == []
    assert counted.applied() == ["001_runs", "002_R__v"]
    counted.write("R__v.sql", COUNTED.format("2"))
    assert names(counted.deploy()) == ["002_R__v"]
    assert (runs(counted), counted.applied()) == (["1", "2"], ["001_runs", "002_R__v"])


def test_repeatable_file_that_becomes_a_numbered_one_runs_as_a_new_file(counted: World) -> None:
    """In a fresh database it runs there, too; the row of the repeatable file stays, and is only logged."""
    counted.write("R__v.sql", COUNTED.format("x"))
    counted.deploy()
    counted.remove("R__v.sql")
    counted.write("002_v.sql", COUNTED.format("x"))

    report = counted.deploy()

    assert (names(report), report["warnings"]) == (["002_v"], [])
    assert (runs(counted), status(counted)["missing"]) == (["x", "x"], ["R__v"])


def test_repeatable_files_of_the_same_content_each_run(counted: World) -> None:
    """A copy is another file, as long as the first one is there."""
    counted.write("R__a.sql", COUNTED.format("x"))
    counted.deploy()
    counted.write("R__b.sql", COUNTED.format("x"))

    assert names(counted.deploy()) == ["R__b"]


def test_repeatable_file_neither_uses_up_a_number_nor_comes_late(world: World) -> None:
    """It has no number that could be used twice; an unnumbered file goes on counting."""
    world.write("001_a.sql", "SELECT 1;")
    world.write("R__2.sql", "SELECT 2;")
    world.deploy()
    world.write("002_b.sql", "SELECT 3;")
    world.write("c.sql", "SELECT 4;")

    report = world.deploy()

    assert (names(report), report["warnings"]) == (["002_b", "003_c"], [])
    assert status(world)["duplicates"] == []


# --- What older versions have recorded, and read ---------------------------------------------------------------------


def test_repeatable_file_that_an_older_version_ran_keeps_its_row(counted: World) -> None:
    """It has run; and when it has changed, it runs again under the name that it has."""
    counted.write("R__v.sql", COUNTED.format("1"))
    with version_before():
        assert names(counted.deploy()) == ["001_runs", "002_R__v"]

    assert counted.deploy()["applied"] == []
    counted.write("R__v.sql", COUNTED.format("2"))
    assert (status(counted)["pending"], status(counted)["edited"]) == (["002_R__v"], [])
    assert names(counted.deploy()) == ["002_R__v"]
    counted.write("R__v.sql", COUNTED.format("1"))
    assert names(counted.deploy()) == ["002_R__v"]
    assert (runs(counted), counted.applied()) == (["1", "2", "1"], ["001_runs", "002_R__v"])


def test_repeatable_file_in_the_predecessors_table_has_run(world: World) -> None:
    """A row means applied: what it was is taken down, and a change runs."""
    world.sql(
        "CREATE TABLE schema_migrations (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, "
        "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP); INSERT INTO schema_migrations (migration_name) "
        "VALUES ('001_R__v')"
    )
    world.write("R__v.sql", "SELECT oops;")
    assert world.deploy()["applied"] == []

    world.write("R__v.sql", A)

    assert names(world.deploy()) == ["001_R__v"]
    assert columns(world) == ["a"]


def test_older_version_accepts_a_repeatable_file_of_another_text(counted: World) -> None:
    """A deployment that is rolled back to it brings the older text: an edit to it, which it must not find."""
    counted.write("R__v.sql", COUNTED.format("1"))
    with version_before():
        counted.deploy()
    counted.write("R__v.sql", COUNTED.format("2"))
    counted.write("R__w.sql", COUNTED.format("w"))
    counted.deploy()
    counted.write("R__v.sql", COUNTED.format("1"))
    counted.write("R__w.sql", COUNTED.format("older w"))

    with version_before():
        report = counted.deploy()

    assert (report["applied"], report["warnings"], report["pending"]) == ([], [], [])
    assert names(counted.deploy()) == ["002_R__v", "R__w"]
    assert runs(counted) == ["1", "2", "w", "1", "older w"]


def test_repeatable_file_with_the_checksum_of_a_newer_version_is_left_alone(counted: World) -> None:
    """Nothing can tell whether it has changed, and a deployment that is rolled back must not fail."""
    counted.write("R__v.sql", COUNTED.format("1"))
    counted.deploy()
    counted.sql("UPDATE schema_migrations SET checksum = 'R9:new', file_sha256 = 'other' WHERE migration_name = 'R__v'")

    report = counted.deploy()

    assert (report["applied"], report["warnings"]) == ([], [])


# --- Older texts ----------------------------------------------------------------------------------------------------


def test_older_text_runs(world: World) -> None:
    """A deployment that is rolled back, by this version, brings the older objects back; and forth again."""
    for text in ("1 AS a", "2 AS a", "1 AS a", "2 AS a"):
        world.write("R__v.sql", VIEW.format(text))
        report = world.deploy()
        assert (names(report), report["warnings"]) == (["R__v"], [])
        assert world.sql("SELECT a FROM v") == [(int(text[0]),)]

    assert len(checksum(world).split()) == 2


def test_older_text_that_does_not_work_any_more_is_a_warning(counted: World) -> None:
    """What a newer one made stays; the files after it run, in a clean session; and it is tried again by each run."""
    counted.write("R__v.sql", A)
    counted.write("R__w.sql", COUNTED.format("w"))
    counted.deploy()
    counted.write("R__v.sql", B)
    counted.deploy()
    counted.write("R__v.sql", A)
    counted.write("R__w.sql", "INSERT INTO runs SELECT concat('w', current_setting('app.x', true));")

    report = counted.deploy()

    assert (names(report), report["pending"], report["warnings"]) == (["R__w"], ["R__v"], [OLDER])
    assert (columns(counted), runs(counted)) == (["a", "b"], ["w", "w"])
    again = counted.deploy()
    assert (again["status"], again["applied"], again["pending"], again["warnings"]) == ("ok", [], ["R__v"], [OLDER])
    assert (status(counted)["pending"], status(counted)["edited"]) == (["R__v"], [])
    counted.write("R__v.sql", C)
    assert names(counted.deploy()) == ["R__v"]
    assert columns(counted) == ["a", "b", "c"]


def test_older_text_that_fails_does_not_keep_the_users_from_being_made(world: World) -> None:
    """The run goes on to its end, with the lock, in a session of its own."""
    world.write("R__v.sql", A)
    world.deploy()
    world.write("R__v.sql", B)
    world.deploy()
    world.write("R__v.sql", f"SET ROLE pg_monitor; {A}")
    failure(world)  # no text that ran
    world.write("R__v.sql", A)

    report = world.deploy(CREATE_USERS="true")

    assert (report["warnings"], report["pending"]) == ([OLDER], ["R__v"])
    assert works(world, world.secret("user"))


def test_older_text_that_fails_is_no_failure_of_a_dry_run(counted: World) -> None:
    """The report says of the file what became of it."""
    for text in (A, B, A):
        counted.write("R__v.sql", text)
        if text != A or not counted.sql("SELECT to_regclass('v')")[0][0]:
            counted.deploy()
    counted.write("R__w.sql", COUNTED.format("w"))

    report = counted.deploy({"action": "dry_run"})

    untried = {entry["name"]: entry["untried"] for entry in report["tried"]}
    assert untried == {"R__v": ["it is an older text, which does not work any more"], "R__w": []}
    assert (report["pending"], report["warnings"]) == (["R__v", "R__w"], [OLDER])


def test_older_text_is_known_of_all_kinds_of_texts(world: World) -> None:
    """Also one that an older version ran, one that was recorded by a row of its own number, and the empty one."""
    world.write("R__v.sql", A)
    with version_before():
        world.deploy()
    for text in (B, "-- empty", C):
        world.write("R__v.sql", text)
        world.deploy()

    for text in (A, B):
        world.write("R__v.sql", text)
        report = world.deploy()
        assert (report["warnings"], report["pending"]) == ([OLDER], ["001_R__v"])


def test_older_text_that_is_blocked_or_late_fails_as_always(world: World) -> None:
    """Time, locks and connections say nothing about a text: another run may succeed."""
    world.write("001_t.sql", "CREATE TABLE t (i int);")
    for text in ("ALTER TABLE t SET (fillfactor = 50);", "ALTER TABLE t SET (fillfactor = 60);"):
        world.write("R__t.sql", text)
        world.deploy()
    world.write("R__t.sql", "ALTER TABLE t SET (fillfactor = 50);")

    with open_transaction(world, "LOCK TABLE t"), pytest.raises(StoppedError) as caught:
        world.deploy(None, Context(4))

    assert "R__t.sql" in str(caught.value)
    assert status(world)["pending"] == ["R__t"]
    assert names(world.deploy()) == ["R__t"]


@pytest.mark.parametrize("sqlstate", ["53100", "58030", "XX001"])
def test_older_text_that_the_server_is_to_blame_for_fails(world: World, sqlstate: str) -> None:
    """A full disk or a damaged page says nothing about a text either."""
    older = f"DO $$ BEGIN IF to_regclass('b') IS NOT NULL THEN RAISE 'x' USING ERRCODE = '{sqlstate}'; END IF; END $$;"
    for text in (older, "CREATE TABLE IF NOT EXISTS b ();"):
        world.write("R__v.sql", text)
        world.deploy()
    world.write("R__v.sql", older)

    assert f"({sqlstate})" in failure(world)
    assert status(world)["pending"] == ["R__v"]


def test_older_text_that_cannot_be_recorded_fails(world: World) -> None:
    """The text is not to blame, and the tracking table needs somebody."""
    for text in (A, B):
        world.write("R__v.sql", f"DROP VIEW IF EXISTS v; {text}")
        world.deploy()
    world.sql(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
        "CREATE TRIGGER t BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION nothing()"
    )
    world.write("R__v.sql", f"DROP VIEW IF EXISTS v; {A}")

    assert f"{SCHEMA}.schema_migrations did not keep the row" in failure(world)
    world.sql("DROP TRIGGER t ON schema_migrations")
    assert names(world.deploy()) == ["R__v"]


def test_warning_of_an_older_text_shows_no_row(world: World) -> None:
    """PostgreSQL's words quote what is in the table."""
    world.write("001_t.sql", "CREATE TABLE t (secret text); INSERT INTO t VALUES ('hunter2');")
    older, newer = "ALTER TABLE t ALTER secret TYPE {} USING secret::{};".format, "SELECT 1;"
    world.write("R__t.sql", older("varchar", "varchar"))
    world.deploy()
    world.write("R__t.sql", newer)
    world.deploy()
    world.write("R__t.sql", "DO $$ BEGIN PERFORM secret::int FROM t; END $$;")
    failure(world)
    recorded = sql_scanner.checksum("DO $$ BEGIN PERFORM secret::int FROM t; END $$;")[: planning.TEXT_LENGTH]
    world.sql("UPDATE schema_migrations SET checksum = checksum || ' ' || %s WHERE migration_name = 'R__t'", recorded)

    report = world.deploy()

    assert report["pending"] == ["R__t"]
    assert report["warnings"][0].startswith("R__t.sql:1: ")
    assert "hunter2" not in report["warnings"][0]


# --- Interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [SENT, ANSWERED])
def test_repeatable_file_whose_run_is_cut_off_runs_once(counted: World, phase: str) -> None:
    """Its work and its row are one transaction: whether or not that was committed, the next run knows."""
    counted.write("R__v.sql", COUNTED.format("1"))
    counted.deploy()
    counted.write("R__v.sql", COUNTED.format("2"))

    def cut(place: Place, link: Link) -> None:
        if place.phase == phase and COUNTED.format("2") in link.said:
            link.cut()

    with proxy_to(counted.server.host, counted.server.port) as proxy:
        proxy.watch(cut)
        with pytest.raises(InitializerError):
            counted.deploy(None, Context(30), DB_HOST="127.0.0.1", DB_PORT=str(proxy.port), PGSSLMODE="disable")

    counted.deploy()
    assert runs(counted) == ["1", "2"]
    assert counted.applied() == ["001_runs", "R__v"]


def test_view_that_a_failed_deployment_dropped_is_made_again_by_the_rollback(counted: World) -> None:
    """As the guide wants it, a numbered file drops the view, but the text that makes it again fails. The version that
    comes back finds its own text recorded as the last one."""
    counted.write("R__v.sql", A)
    counted.deploy()
    counted.write("002_drop.sql", "DROP VIEW v;")
    counted.write("R__v.sql", f"{B} SELECT oops;")
    assert "Applied in this run: 002_drop" in failure(counted)
    counted.remove("002_drop.sql")
    counted.write("R__v.sql", A)

    assert names(counted.deploy()) == ["R__v"]

    assert columns(counted) == ["a"]
    assert counted.deploy()["applied"] == []
    counted.write("R__v.sql", f"DROP VIEW v; {B}")
    counted.deploy()
    counted.write("R__v.sql", A)
    assert counted.deploy()["warnings"] == [OLDER]  # it is known to have run


def test_view_of_a_deleted_file_is_made_again_by_the_rollback(counted: World) -> None:
    """A numbered file dropped it, as the guide says; another part of that deployment failed."""
    counted.write("R__v.sql", A)
    counted.deploy()
    counted.remove("R__v.sql")
    counted.write("002_drop.sql", "DROP VIEW v;")
    counted.deploy()
    counted.remove("002_drop.sql")
    counted.write("R__v.sql", A)

    assert names(counted.deploy()) == ["R__v"]
    assert columns(counted) == ["a"]


def test_view_that_another_repeatable_file_dropped_is_made_again_by_the_rollback(counted: World) -> None:
    """Both have new texts, of which the second fails."""
    counted.write("R__1.sql", "SELECT 1;")
    counted.write("R__2.sql", A)
    counted.deploy()
    counted.write("R__1.sql", "DROP VIEW v;")
    counted.write("R__2.sql", f"{B} SELECT oops;")
    assert "Applied in this run: R__1" in failure(counted)
    counted.write("R__1.sql", "SELECT 1;")
    counted.write("R__2.sql", A)

    assert names(counted.deploy()) == ["R__1", "R__2"]
    assert columns(counted) == ["a"]


def in_steps(world: World, text: str, what: str) -> str:
    """A file of three steps, of which the second fails: so a run ends halfway, as one that is killed does."""
    world.write("R__s.sql", STEPS.format(text, what))
    return failure(world)


def test_repeatable_file_that_ran_in_part_goes_on_where_it_ended(counted: World) -> None:
    """Its own marks count, as those of any file."""
    in_steps(counted, "a", "SELECT oops;")
    counted.write("R__s.sql", STEPS.format("a", "SELECT 1;"))

    assert names(counted.deploy()) == ["R__s"]
    assert runs(counted) == ["a1", "a3"]


def test_repeatable_file_that_ran_in_part_and_was_edited_begins_again(counted: World) -> None:
    """It can run again; its marks are those of another text, and go when it has run."""
    in_steps(counted, "a", "SELECT oops;")
    in_steps(counted, "b", "SELECT oops;")
    counted.write("R__s.sql", COUNTED.format("whole"))

    assert names(counted.deploy()) == ["R__s"]

    assert runs(counted) == ["a1", "b1", "whole"]
    assert counted.sql("SELECT count(*) FROM schema_migrations_progress") == [(0,)]
    assert counted.deploy()["applied"] == []


def test_text_whose_successor_ran_in_part_runs_again(counted: World) -> None:
    """A deployment failed halfway through a newer text, and is rolled back: the older one is recorded, but what is in
    the database is not what it made."""
    counted.write("R__s.sql", COUNTED.format("older"))
    counted.deploy()
    in_steps(counted, "new", "SELECT oops;")
    counted.write("R__s.sql", COUNTED.format("older"))

    before = status(counted)
    report = counted.deploy()

    assert (before["pending"], before["unfinished"]) == (["R__s"], ["R__s"])
    assert (names(report), report["warnings"]) == (["R__s"], [])
    assert runs(counted) == ["older", "new1", "older"]
    assert counted.deploy()["applied"] == []
    assert status(counted)["unfinished"] == []


def test_text_whose_successor_ran_in_part_and_that_cannot_run_again_is_a_warning(counted: World) -> None:
    """It ran before, too: the deployment that is rolled back does not fail."""
    counted.write("R__s.sql", A)
    counted.deploy()
    counted.write("R__s.sql", f"-- no-transaction\n{B}\nSELECT oops;")
    failure(counted)
    counted.write("R__s.sql", A)

    report = counted.deploy()

    assert (report["pending"], len(report["warnings"])) == (["R__s"], 1)
    assert report["warnings"][0].startswith("R__s.sql:1: cannot drop columns from view (42P16). This text ran before")


def test_older_text_that_fails_in_steps_is_a_warning_and_the_next_file_runs(counted: World) -> None:
    """Its marks do not make the run plan it again and again; the newer text begins from its beginning then."""
    texts = [STEPS.format(name, "DROP TABLE IF EXISTS x;") for name in "ab"]
    texts[0] = texts[0].replace("DROP TABLE IF EXISTS x", "TABLE gone")
    counted.write("002_gone.sql", "CREATE TABLE gone ();")
    counted.write("R__s.sql", texts[0])
    counted.deploy()
    counted.write("R__s.sql", texts[1])
    counted.deploy()
    counted.write("R__s.sql", texts[0])
    counted.write("003_drop.sql", "DROP TABLE gone;")
    counted.write("R__t.sql", COUNTED.format("t"))

    report = counted.deploy()

    assert (names(report), report["pending"]) == (["003_drop", "R__t"], ["R__s"])
    assert report["warnings"][0].startswith('R__s.sql:3:7: relation "gone" does not exist (42P01). This text ran')
    assert runs(counted) == ["a1", "a3", "b1", "b3", "a1", "t"]
    counted.write("R__s.sql", texts[1])
    assert names(counted.deploy()) == ["R__s"]
    assert runs(counted)[-2:] == ["b1", "b3"]


def test_index_that_a_repeatable_file_builds_concurrently_is_built_once(world: World) -> None:
    """A file of one statement that cannot run in a transaction runs outside, again when it has changed."""
    world.write("001_t.sql", "CREATE TABLE t (i int);")
    build = "CREATE INDEX CONCURRENTLY IF NOT EXISTS {} ON t (i);"
    world.write("R__i.sql", build.format("a"))
    world.deploy()
    world.write("R__i.sql", build.format("b"))

    assert names(world.deploy()) == ["R__i"]
    assert world.sql("SELECT relname FROM pg_class WHERE relname IN ('a', 'b') AND relkind = 'i' ORDER BY 1") == [
        ("a",),
        ("b",),
    ]


def test_marks_of_a_repeatable_file_that_is_gone_are_said(counted: World) -> None:
    """It has run in part, whatever its row says of an older text."""
    counted.write("R__s.sql", COUNTED.format("older"))
    counted.deploy()
    in_steps(counted, "new", "SELECT oops;")
    counted.remove("R__s.sql")

    assert counted.deploy()["warnings"] == [
        "R__s has run in part, but its file is gone or has another name: put it back, or undo in a new file what it did"
    ]


# --- Rows, adoption, the example ------------------------------------------------------------------------------------


@pytest.mark.parametrize("remove", ["TRUNCATE schema_migrations;", "TRUNCATE schema_migrations RESTART IDENTITY;"])
def test_repeatable_file_that_removes_rows_is_recorded_once(counted: World, remove: str) -> None:
    """Its own among them; the others are put back, and nothing runs again."""
    counted.write("R__s.sql", COUNTED.format("1"))
    counted.write("R__t.sql", "SELECT 1;")
    counted.deploy()
    counted.write("R__s.sql", f"{remove} {COUNTED.format('2')}")
    counted.write("R__t.sql", "SELECT 2;")

    report = counted.deploy()

    assert (names(report), len(report["warnings"])) == (["R__s", "R__t"], 1)
    assert sorted(counted.applied()) == ["001_runs", "R__s", "R__t"]
    assert counted.deploy()["applied"] == []


def test_row_of_a_repeatable_file_that_was_put_back_lets_it_run(counted: World) -> None:
    """Nothing tells its text any more: to run it again does no harm, not to run it would."""
    counted.write("R__s.sql", COUNTED.format("1"))
    counted.deploy()
    counted.write("002_x.sql", "TRUNCATE schema_migrations;")
    assert counted.deploy()["pending"] == []

    assert names(counted.deploy()) == ["R__s"]
    assert (runs(counted), counted.deploy()["applied"]) == (["1", "1"], [])


def test_numbered_row_of_a_repeatable_file_that_was_put_back_lets_it_run(counted: World) -> None:
    """An older version gave it a number. An edit must not be taken for what ran."""
    counted.write("R__x.sql", COUNTED.format("old"))
    with version_before():
        counted.deploy()
    counted.write("010_remove.sql", "DELETE FROM schema_migrations;")
    counted.deploy()
    counted.write("R__x.sql", COUNTED.format("new"))

    assert names(counted.deploy()) == ["002_R__x"]
    assert runs(counted) == ["old", "new"]


def test_repeatable_file_is_never_adopted(world: World) -> None:
    """The first file of an existing database is one that has a number or none; a repeatable file runs."""
    world.sql("CREATE TABLE t (i int); CREATE TABLE u (i int)")
    world.write("x.sql", "CREATE TABLE t (i int);")
    world.write("y.sql", "CREATE TABLE u (i int);")
    world.write("R__v.sql", A)

    report = world.deploy(BASELINE="y")

    assert (report["adopted"], names(report)) == (["001_x", "002_y"], ["R__v"])
    assert world.deploy(BASELINE="y")["applied"] == []


def test_repeatable_file_as_baseline_is_refused(world: World) -> None:
    """Nothing is adopted up to it, since it is not recorded without running."""
    world.write("001_a.sql", "SELECT 1;")
    world.write("R__v.sql", A)

    with pytest.raises(ConfigError) as caught:
        world.deploy(BASELINE="R__v")

    assert "BASELINE is 'R__v', but there is no such file in migrations/, and a repeatable one always runs" in str(
        caught.value
    )


def test_repeatable_file_that_fails_after_an_adoption_is_not_told_to_be_a_baseline(world: World) -> None:
    """It was not applied by anybody else."""
    world.sql("CREATE TABLE t (i int); CREATE VIEW v AS SELECT 1 AS a")
    world.write("001_t.sql", "CREATE TABLE t (i int);")
    world.write("R__v.sql", "CREATE VIEW v AS SELECT 1 AS a;")

    messages = [failure(world), failure(world)]

    assert all("BASELINE" not in message and '"v" already exists' in message for message in messages)


def test_edited_files_are_refused_before_a_repeatable_one_runs(counted: World) -> None:
    """To allow them says nothing about repeatable files, which are never edited."""
    counted.write("R__v.sql", COUNTED.format("1"))
    counted.deploy()
    counted.write("001_runs.sql", "CREATE TABLE runs (what text, id bigserial);")
    counted.write("R__v.sql", COUNTED.format("2"))

    message = failure(counted)
    report = counted.deploy(ALLOW_EDITED_MIGRATIONS="true")

    assert message.startswith("001_runs.sql: edited after it was applied")
    assert (names(report), len(report["warnings"])) == (["R__v"], 1)


def test_databases_count_a_changed_repeatable_file_as_pending(world: World) -> None:
    """And none of its texts as an edit."""
    world.write("R__v.sql", A)
    world.deploy()
    world.write("R__v.sql", B)

    report = world.deploy({"action": "databases", "like": world.dbname})

    (entry,) = report["databases"]
    assert (entry["applied"], entry["pending"], entry["problem"]) == (1, 1, "")


# --- The terminal ---------------------------------------------------------------------------------------------------

RUNS_TWICE = [
    "CREATE OR REPLACE VIEW v AS SELECT 1; CREATE TABLE IF NOT EXISTS t (i int); GRANT SELECT ON t TO x;",
    "DROP VIEW IF EXISTS a, v; CREATE VIEW v AS SELECT 1; COMMENT ON VIEW v IS 'CREATE VIEW w';",
    "DROP FUNCTION f(int); CREATE FUNCTION f(i bigint) RETURNS int LANGUAGE sql AS 'SELECT 1';",
    "DROP MATERIALIZED VIEW IF EXISTS m; CREATE MATERIALIZED VIEW m AS SELECT 1 AS i; CREATE UNIQUE INDEX ON m (i);",
    "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING; INSERT INTO t SELECT 1 WHERE NOT EXISTS (TABLE t);",
    "DELETE FROM t; INSERT INTO t VALUES (1); COPY t FROM stdin;\n1\n\\.\n",
    "DROP TRIGGER IF EXISTS g ON t; CREATE TRIGGER g BEFORE INSERT ON t EXECUTE FUNCTION f();",
    "ALTER TABLE t ADD COLUMN IF NOT EXISTS c int, DROP CONSTRAINT IF EXISTS k, ADD CONSTRAINT k UNIQUE (i);",
    "DO $$ BEGIN IF to_regtype('e') IS NULL THEN CREATE TYPE e AS ENUM (); END IF; END $$;",
    "CREATE TEMP TABLE t (i int); INSERT INTO x SELECT 1 EXCEPT TABLE t; REFRESH MATERIALIZED VIEW m;",
    "-- db_setup: allow repeatable the table is a log\nINSERT INTO t VALUES (now());",
]
RUNS_ONCE = {
    "CREATE VIEW v AS SELECT 1": 1,
    "CREATE UNLOGGED TABLE t (i int); CREATE INDEX CONCURRENTLY i ON t (i)": 2,
    "create function f() returns int language sql as 'select 1'": 1,
    "INSERT INTO t VALUES (1); WITH a AS (SELECT 1) INSERT INTO t TABLE a; COPY t FROM stdin;\n1\n\\.\n": 3,
    "ALTER TABLE t ADD c int, ADD CONSTRAINT k CHECK (i > 0) NOT VALID": 2,
    "ALTER TYPE e ADD VALUE 'x'; ALTER SEQUENCE a RENAME TO b": 2,
    "CREATE VIEW v AS SELECT 1; DROP VIEW IF EXISTS v": 1,
    "DROP FUNCTION f()": 1,
}


def found(name: str, text: str) -> list[str]:
    script = sql_scanner.read_script(text)
    return [each.rule for each in review.findings(name, script, review.Known("public")) if each.rule == "repeatable"]


@pytest.mark.parametrize("text", RUNS_TWICE)
def test_check_accepts_what_can_run_twice(world: World, text: str) -> None:
    """By its first words, or since the file removes first what it makes."""
    assert found("R__x.sql", text) == []


@pytest.mark.parametrize("text", RUNS_ONCE)
def test_check_finds_what_can_run_only_once_in_a_repeatable_file(text: str) -> None:
    """In other files nothing is wrong with it."""
    assert found("R__x.sql", text) == ["repeatable"] * RUNS_ONCE[text]
    assert found("001_x.sql", text) == []


@pytest.fixture
def branch(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A folder in git, all of whose files count as applied."""
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", world.folder)
    monkeypatch.chdir(world.folder)
    monkeypatch.delenv("GITHUB_BASE_REF", raising=False)
    world.write("001_t.sql", "CREATE TABLE t (i int);")
    world.write("002_v.sql", "CREATE OR REPLACE VIEW w AS SELECT 1;")
    world.write("R__v.sql", A)
    git("init", "-q", "-b", "main")
    commit()
    git("checkout", "-q", "-b", "feature")
    return world


def test_check_takes_a_changed_repeatable_file_for_a_new_one(branch: World) -> None:
    """It is no edit, and what it does is looked at."""
    branch.write("R__v.sql", "CREATE VIEW v AS SELECT 2;")

    report = terminal.check(None, with_squawk=False)

    assert (report["new"], report["problems"], report["notes"]) == (["R__v"], [], [])
    assert [finding["recipe"] for finding in report["findings"]] == ["Repeatable files"]


def test_check_of_a_deleted_or_renamed_repeatable_file_is_a_note(branch: World) -> None:
    """What a file made is in the databases; a file that becomes repeatable is the same one."""
    branch.remove("R__v.sql")
    assert check() == ([], ["R__v was deleted. What it made stays: drop it in a new file"])
    branch.write("R__w.sql", A)
    branch.remove("002_v.sql")
    branch.write("R__u.sql", "CREATE OR REPLACE VIEW w AS SELECT 1;")

    assert check() == ([], ["R__u.sql is 002_v, renamed", "R__w.sql is R__v, renamed"])


def test_check_takes_a_repeatable_file_that_gets_a_number_for_a_new_one(branch: World) -> None:
    """As a run does."""
    branch.remove("R__v.sql")
    branch.write("003_v.sql", A)

    report = terminal.check(None, with_squawk=False)

    assert (report["new"], report["problems"]) == (["003_v"], [])


def test_new_repeatable_file_has_no_number_and_says_what_it_is(branch: World) -> None:
    """check has nothing against it but that it is empty; it is never written twice."""
    options = terminal.parser().parse_args(["new", "--repeatable", "all", "views"])
    path = Path(terminal.run_action(options, None)["path"])

    assert path.name == "R__all_views.sql"
    assert path.read_text().startswith("-- Runs after all other files, whenever its statements have changed")
    path.write_text(path.read_text() + A)
    assert check() == ([], [])
    with pytest.raises(MigrationError):
        terminal.run_action(options, None)


# --- The guide ------------------------------------------------------------------------------------------------------


def test_guide_repeatable_file_runs_again_and_check_accepts_it(world: World) -> None:
    """As it is in the guide, on the guide's tables; changed, it replaces what it made."""
    (text,) = [block.text for block in guide.blocks(guide.section("Repeatable files"))]
    world.write("001_schema.sql", guide.SCHEMA.read_text())
    for number, block in enumerate(guide.prelude(), 2):
        world.write(f"{number:03}_{block.name}.sql", block.text)
    assert text.startswith("-- R__open_orders.sql\n")
    world.write("R__open_orders.sql", text)
    world.deploy(CREATE_USERS="true")
    world.write("R__open_orders.sql", text.replace("'new'", "'paid'"))

    report = world.deploy(CREATE_USERS="true")

    assert (names(report), report["warnings"]) == (["R__open_orders"], [])
    assert found("R__open_orders.sql", text) == []

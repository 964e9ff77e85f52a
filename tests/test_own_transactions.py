"""Files that commit by themselves: they run as psql -1 runs them, unit by unit, and go on where they were stopped."""

from __future__ import annotations

from typing import Any

import pytest
from harness.world import World
from initializer import MigrationError

A, B, C = "CREATE TABLE a (i int);", "CREATE TABLE b (i int);", "CREATE TABLE c (i int);"
FILES = {
    "units with a statement between them": f"BEGIN;\n{A}\nCOMMIT;\n{B}\nSTART TRANSACTION;\n{C}\nEND;\n",
    "a COMMIT in the middle": f"{A}\n{B}\nCOMMIT;\n{C}\nCREATE INDEX CONCURRENTLY i ON a (i);\n",
    "a BEGIN that stays open": f"{A}\nCOMMIT;\nBEGIN;\n{B}\n{C}\n",
    "a COMMIT that opens the next": f"{A}\nCOMMIT AND CHAIN;\n{B}\n{C}\n",
    "a BEGIN inside": f"{A}\nBEGIN;\n{B}\nCOMMIT;\n{C}\n",
    "a temporary table": f"CREATE TEMP TABLE t AS SELECT 1 AS i;\nCOMMIT;\n{A} {B} {C}\nINSERT INTO a TABLE t;\n",
}


@pytest.fixture(autouse=True)
def _no_users(world: World) -> None:
    """Users do not matter here, and take time."""
    world.environ["CREATE_USERS"] = "false"


def applied(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def failure(world: World) -> str:
    with pytest.raises(MigrationError) as caught:
        world.deploy()
    return str(caught.value)


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_file_that_commits_by_itself_runs_once_and_is_said(world: World, text: str) -> None:
    """The file is applied as a whole and recorded; the report names the line where it first commits."""
    world.write("001_x.sql", text)
    line = next(n for n, words in enumerate(text.splitlines(), 1) if words.startswith(("COMMIT", "END")))

    report = world.deploy()

    assert applied(report) == world.applied() == ["001_x"]
    assert world.tables() == ["a", "b", "c"]
    assert report["warnings"] == [
        f"001_x commits by itself in line {line}: what precedes that stays, even if a later statement fails"
    ]
    assert applied(world.deploy()) == []


@pytest.mark.parametrize(
    "text",
    [f"{A}\n{B}\n{C}\nCOMMIT;", f"BEGIN;\n{A}\n{B}\n{C}\n", f"{A}\nBEGIN;\n{B}\n{C}\nCOMMIT;"],
    ids=["COMMIT at the end", "BEGIN at the beginning", "BEGIN inside"],
)
def test_file_whose_transaction_is_the_runs_own_is_whole_or_not_at_all(world: World, text: str) -> None:
    """A BEGIN first and a COMMIT last change nothing, and cause no warning."""
    world.write("001_x.sql", text.replace(C, "CREATE TABLE c (i oops);"))
    failure(world)
    assert world.tables() == []
    world.write("001_x.sql", text)

    report = world.deploy()

    assert (applied(report), report["warnings"], world.tables()) == (["001_x"], [], ["a", "b", "c"])


def test_file_that_commits_by_itself_goes_on_where_it_failed(world: World) -> None:
    """What was committed stays, runs no second time, and the message says so; a unit is there as a whole or not."""
    world.sql("CREATE TABLE n (i int)")
    text = f"BEGIN;\nINSERT INTO n VALUES (1);\nCOMMIT;\nINSERT INTO n VALUES (2);\nBEGIN;\n{A}\n{{}}\nCOMMIT;\n"
    world.write("001_x.sql", text.format("SELECT oops;"))

    message = failure(world)

    assert message.startswith('001_x.sql:7:8: column "oops" does not exist (42703).')
    state = "The transaction that begins in line 6 is rolled back. The statements before it have run and stay applied: "
    assert f"{state}do not edit them. Fix the file and deploy again: the run continues in line 6." in message
    assert (world.tables(), world.applied()) == (["n"], [])
    assert world.sql("SELECT i FROM n ORDER BY 1") == [(1,), (2,)]
    world.write("001_x.sql", text.format("SELECT 1;"))
    assert applied(world.deploy()) == ["001_x"]
    assert world.sql("SELECT i FROM n ORDER BY 1") == [(1,), (2,)]
    assert world.tables() == ["a", "n"]


def test_file_that_commits_by_itself_and_fails_in_its_first_unit_has_left_nothing(world: World) -> None:
    """Then nothing stays, the message says only that, and the file can be edited at will."""
    world.write("001_x.sql", f"{A}\nSELECT oops;\nCOMMIT;\n{B}")

    message = failure(world)

    said = '001_x.sql:2:8: column "oops" does not exist (42703). Rolled back. Fix the file and deploy again. '
    assert message.startswith(said)
    assert world.tables() == []
    world.write("001_x.sql", f"{C}\nCOMMIT;\n{B}")
    assert applied(world.deploy()) == ["001_x"]
    assert world.tables() == ["b", "c"]


def test_file_that_commits_by_itself_does_not_go_on_without_its_temporary_table(world: World) -> None:
    """The table is gone with the session of the run that failed: nothing is read from another one in silence."""
    world.sql("CREATE TABLE t (i int); CREATE TABLE n (i int)")
    text = "CREATE TEMP TABLE t AS SELECT 1 AS i;\nCOMMIT;\nINSERT INTO n VALUES ({});\nINSERT INTO n SELECT i FROM t;"
    world.write("001_x.sql", text.format("'oops'"))
    failure(world)
    world.write("001_x.sql", text.format("7"))

    message = failure(world)

    assert message.startswith("001_x.sql:1: ")
    assert "is gone with the session that made it" in message
    assert world.sql("SELECT i FROM n") == []


def test_file_that_commits_by_itself_is_tried_in_a_dry_run(world: World) -> None:
    """Nothing of it stays, its own COMMIT or not."""
    world.write("001_x.sql", FILES["units with a statement between them"])

    report = world.deploy({"action": "dry_run"})

    assert [entry["name"] for entry in report["tried"]] == ["001_x"]
    assert world.tables() == []
    assert applied(world.deploy()) == ["001_x"]


@pytest.mark.parametrize("end", ["ROLLBACK", "ABORT"])
def test_file_that_rolls_back_is_refused(world: World, end: str) -> None:
    """Otherwise the file would be recorded although nothing of it exists."""
    world.write("001_x.sql", f"BEGIN;\n{A}\n{end};\n")

    assert failure(world).startswith(f"001_x.sql:3:1: {end} would undo what precedes it in the file")
    assert (world.tables(), world.applied()) == ([], [])


@pytest.mark.parametrize(
    "beginning", ["-- no-transaction\n", "SELECT 0;\nCOMMIT;\n"], ids=["marked", "commits by itself"]
)
def test_file_that_ran_in_part_and_was_renamed_goes_on_where_it_failed(world: World, beginning: str) -> None:
    """What has run does not run again under another name."""
    world.sql("CREATE TABLE n (i int)")
    text = f"{beginning}INSERT INTO n VALUES (1);\nSELECT {{}};\n"
    world.write("001_ordrs.sql", text.format("oops"))
    failure(world)
    world.remove("001_ordrs.sql")
    world.write("002_orders.sql", text.format("1"))

    report = world.deploy()

    assert (applied(report), report["warnings"][1:]) == (["002_orders"], [])
    assert world.sql("SELECT i FROM n") == [(1,)]

"""Twenty processes together: on an empty database, on one with pending files, and during a long concurrent build."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness.others import Ended, deadlocks, handlers, open_transaction, sessions, wait_until
from harness.world import World, rows

CROWD = 20
ROWS = 1_000_000
PATIENCE_S = 240
pytestmark = pytest.mark.timeout(400)

USERS_KEPT, USERS_CREATED = ({"app_rw": what, "app_tc": what} for what in ("kept", "created"))


def write_countable(world: World, first: int, last: int) -> list[str]:
    """Files that would each show if they had run twice, or out of order; returns their names."""
    names = [f"{number:03d}_file" for number in range(first, last + 1)]
    for number, name in zip(range(first, last + 1), names):
        check = f"DO $$ BEGIN ASSERT (SELECT max(i) FROM log) = {number - 1}; END $$;" if number > 1 else ""
        create = "CREATE TABLE log (id serial, i int);" if number == 1 else ""
        world.write(f"{name}.sql", f"{create}{check} INSERT INTO log (i) VALUES ({number}); SELECT pg_sleep(0.05);")
    return names


def applied_in(ended: list[Ended]) -> Counter[str]:
    """The files that these processes, all of which succeeded, say they have applied."""
    failed = [each for each in ended if each.status != 0 or each.report.get("status") != "ok"]
    assert not failed, failed[0]
    assert not [each.log for each in ended if "40P01" in each.log]
    return Counter(entry["name"] for each in ended for entry in each.report["applied"])


def users_in(ended: list[Ended]) -> list[dict[str, str]]:
    return sorted((each.report["users"] for each in ended), key=str)


def assert_ran_once(world: World, count: int) -> None:
    assert world.sql("SELECT i FROM log ORDER BY id") == [(number,) for number in range(1, count + 1)]
    assert world.sql("SELECT count(*) FROM schema_migrations") == [(count,)]
    assert (world.versions("user"), world.versions("creator")) == (1, 1)
    for secret in ("user", "creator"):
        with world.login(secret) as conn:
            assert rows(conn, "SELECT count(*) FROM log") == [(count,)]
    assert deadlocks(world) == 0
    wait_until(lambda: sessions(world) == [])


def test_crowd_on_an_empty_database_makes_everything_once(world: World) -> None:
    """Twenty processes, one new database: everyone succeeds, every file and every user is made once."""
    names = write_countable(world, 1, 10)

    with handlers(world, CROWD) as processes:
        processes.go(300)
        ended = processes.ended(PATIENCE_S)

    assert applied_in(ended) == Counter(names)
    assert users_in(ended) == [USERS_CREATED, *[USERS_KEPT] * (CROWD - 1)]
    assert_ran_once(world, 10)


def test_crowd_with_pending_files_applies_each_once(world: World) -> None:
    """Twenty processes, a database in the middle of its life: everyone succeeds, every pending file runs once."""
    write_countable(world, 1, 5)
    world.deploy()
    names = write_countable(world, 6, 15)

    with handlers(world, CROWD) as processes:
        processes.go(300)
        ended = processes.ended(PATIENCE_S)

    assert applied_in(ended) == Counter(names)
    assert users_in(ended) == [USERS_KEPT] * CROWD
    assert_ran_once(world, 15)


class Writer:
    """An application that goes on writing to the table in short transactions; counts what it has written."""

    def __init__(self) -> None:
        self.written, self.longest_s, self.over = 0, 0.0, False

    def write(self, conn: Any) -> None:
        while not self.over:
            started = time.monotonic()
            rows(conn, "INSERT INTO big (v) VALUES (random())")
            self.written, self.longest_s = self.written + 1, max(self.longest_s, time.monotonic() - started)
            time.sleep(0.01)


@pytest.mark.parametrize("mark", ["", "-- no-transaction\n"], ids=["alone", "marked"])
def test_crowd_during_a_concurrent_build_of_a_million_rows_leaves_a_valid_index(world: World, mark: str) -> None:
    """While one of twenty builds an index on a million rows that is written to all the time, the other nineteen wait
    and the application does not: everyone succeeds, no deadlock, the index is valid and complete."""
    names = write_countable(world, 1, 2)
    world.write("001_file.sql", (world.folder / "001_file.sql").read_text() + "CREATE TABLE big (i serial, v float);")
    world.deploy()
    world.sql(f"INSERT INTO big (v) SELECT random() FROM generate_series(1, {ROWS})")
    world.write("003_index.sql", f"{mark}CREATE INDEX CONCURRENTLY big_v ON big (v, i, (md5(v::text)));")
    world.write("004_behind.sql", "INSERT INTO log (i) VALUES (3);")
    building = "SELECT pid FROM pg_stat_progress_create_index WHERE relid = 'big'::regclass"
    writer = Writer()

    with handlers(world, CROWD) as processes, world.connection() as conn, ThreadPoolExecutor(2) as pool:
        writing = pool.submit(writer.write, conn)
        try:
            with open_transaction(world, "LOCK big IN ROW EXCLUSIVE MODE"):  # for which the build waits
                processes.go(300)
                ended_at = pool.submit(processes.ended, PATIENCE_S)
                wait_until(lambda: len(sessions(world)) >= CROWD and world.sql(building) != [], 60)
                time.sleep(1)  # one of them may have been the watcher's
                before = writer.written
            wait_until(lambda: not world.sql(building), PATIENCE_S)
            written_during_build = writer.written - before
            ended = ended_at.result(PATIENCE_S)
        finally:
            writer.over = True
            writing.result(20)

    assert applied_in(ended) == Counter(["003_index", "004_behind"])
    assert written_during_build > 10
    assert writer.longest_s < 4 + 1  # LOCK_TIMEOUT and a second
    assert world.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'big_v'::regclass") == [(True,)]
    scan = "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM big WHERE v >= 0"
    assert world.sql(scan) == [(ROWS + writer.written,)]
    assert names == ["001_file", "002_file"]
    assert world.sql("SELECT i FROM log ORDER BY id") == [(1,), (2,), (3,)]
    assert deadlocks(world) == 0

"""Many runs at the same time, in processes of their own: all succeed, and nothing happens twice."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import initializer
import pytest
from common import LockError
from harness.others import Ended, deadlocks, handlers, open_transaction, sessions, wait_until
from harness.world import LOCK_KEY, Context, World, exactly, rows
from session import DEADLINE_CLASS

TABLE = "CREATE TABLE a (i int); INSERT INTO a SELECT generate_series(1, 100);"
INDEX = "CREATE INDEX CONCURRENTLY a_i ON a (i);"
# Takes its time in the first run that gets here, and only in that one.
SLOW_ONCE = "INSERT INTO a VALUES (-2);\nDO $$ BEGIN IF nextval('tries') = 1 THEN PERFORM pg_sleep({}); END IF; END $$;"
BUILDING = "SELECT pid FROM pg_stat_progress_create_index WHERE relid = 'a'::regclass"


def reports_of(ended: list[Ended]) -> list[dict[str, object]]:
    """What the handlers returned, all of which succeeded and met no deadlock."""
    assert [(each.status, each.report.get("status")) for each in ended] == [(0, "ok")] * len(ended), ended
    assert not [each.log for each in ended if "40P01" in each.log or "gave way" in each.log]
    return [each.report for each in ended]


def applied_in(ended: list[Ended]) -> Counter[str]:
    return Counter(entry["name"] for each in ended for entry in each.report["applied"])


def index_is_valid(world: World) -> bool:
    return world.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('a_i')") == [(True,)]


# --- Several at the same time ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_concurrency_processes_with_pending_files_apply_each_once(world: World) -> None:
    """Six processes on a database in the middle of its life: every pending file runs once, and the users stay."""
    world.write("001_a.sql", TABLE)
    world.deploy()
    for number in range(2, 6):
        world.write(f"{number:03d}_more.sql", f"INSERT INTO a VALUES (-{number}); SELECT pg_sleep(0.05);")

    with handlers(world, 6) as processes:
        processes.go(60)
        ended = processes.ended()

    reports = reports_of(ended)
    assert applied_in(ended) == Counter(f"{number:03d}_more" for number in range(2, 6))
    assert world.sql("SELECT i FROM a WHERE i < 0 ORDER BY i DESC") == [(-2,), (-3,), (-4,), (-5,)]
    assert [report["users"] for report in reports] == [{"app_rw": "kept", "app_tc": "kept"}] * 6
    assert (world.versions("user"), world.versions("creator")) == (1, 1)
    assert deadlocks(world) == 0


@pytest.mark.slow
def test_concurrency_processes_during_a_concurrent_build_do_not_block_it(world: World) -> None:
    """While one builds an index concurrently, the others wait for it and it does not wait for them."""
    world.write("001_a.sql", TABLE)
    world.deploy(CREATE_USERS="false")
    world.write("002_index.sql", INDEX)

    with handlers(world, 4) as processes, open_transaction(world, "INSERT INTO a VALUES (-1)") as writer:
        processes.go(60)
        wait_until(lambda: len(world.sql(BUILDING)) == 1 and len(sessions(world)) == 4)
        rows(writer, "COMMIT")  # the build has to wait for older transactions, and for no other
        ended = processes.ended()

    reports_of(ended)
    assert applied_in(ended) == Counter(["002_index"])
    assert index_is_valid(world)
    assert deadlocks(world) == 0


# --- Holders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world without users, whose handler may be called from several threads: nothing changes meanwhile."""
    world.environ["CREATE_USERS"] = "false"
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", world.folder)
    with exactly(world.environ):
        yield world


@pytest.mark.slow
def test_concurrency_slow_holder_is_named_and_left_alone(here: World) -> None:
    """A waiter gives up in time and says whom it waited for, since when; the slow run goes on and succeeds."""
    here.write("001_a.sql", TABLE + "CREATE SEQUENCE tries;")
    here.deploy()
    here.write("002_slow.sql", SLOW_ONCE.format(2.5))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(initializer.handler, None, Context(60))
        wait_until(lambda: [state for _, state, query in sessions(here) if "pg_sleep" in query] == ["active"])
        ((pid, _, _),) = sessions(here)

        with pytest.raises(LockError) as caught:
            initializer.handler(None, Context(3.6))

        assert not slow.done()
        assert [entry["name"] for entry in slow.result(20)["applied"]] == ["002_slow"]
    said = (
        rf"another run \(pid {pid}, user rds_admin, 'db_setup', connected for \d s\) holds the lock\. Waited [01] s\. "
    )
    assert re.match(said, str(caught.value))
    assert here.sql("SELECT count(*) FROM a WHERE i = -2") == [(1,)]


@pytest.mark.slow
def test_concurrency_frozen_holder_is_ended_after_its_deadline_and_wakes_to_nothing(world: World) -> None:
    """A process that is frozen with the lock in its hands holds it until its published deadline, and not for longer;
    when it wakes up it finds its work rolled back, changes nothing, and fails."""
    world.environ["CREATE_USERS"] = "false"
    world.write("001_a.sql", TABLE + "CREATE SEQUENCE tries;")
    world.deploy()
    world.write("002_slow.sql", SLOW_ONCE.format(60))
    with handlers(world, 1) as processes:
        started = time.monotonic()
        processes.go(4)
        wait_until(lambda: [state for _, state, query in sessions(world) if "pg_sleep" in query] == ["active"])
        processes.processes[0].send_signal(signal.SIGSTOP)
        try:
            report = world.deploy(context=Context(40))
            seconds = time.monotonic() - started
        finally:
            processes.processes[0].send_signal(signal.SIGCONT)
        (frozen,) = processes.ended()

    assert [entry["name"] for entry in report["applied"]] == ["002_slow"]
    assert 3 < seconds < 15  # not before the deadline (told in whole seconds), and not long after it
    assert frozen.report["error"] == "StoppedError"
    assert "Applied in this run: nothing." in frozen.report["message"]
    assert world.sql("SELECT count(*) FROM a WHERE i = -2") == [(1,)]
    assert world.applied() == ["001_a", "002_slow"]


def test_concurrency_real_build_past_the_deadline_is_left_alone(here: World) -> None:
    """A holder far past its deadline whose concurrent build still runs on the server is waited for, not ended."""
    here.write("001_a.sql", TABLE)
    here.deploy()
    here.write("002_b.sql", "INSERT INTO a VALUES (-2);")
    publish = "SELECT pg_advisory_lock_shared(%s, (extract(epoch FROM clock_timestamp()) - 60)::int)"
    with open_transaction(here, "INSERT INTO a VALUES (-1)") as writer, here.connection() as holder:
        rows(holder, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        rows(holder, publish, DEADLINE_CLASS)
        building = threading.Thread(target=rows, args=(holder, INDEX))
        building.start()
        try:
            wait_until(lambda: here.sql(BUILDING) == [(holder.info.backend_pid,)])

            with pytest.raises(LockError):
                initializer.handler(None, Context(3.6))

            assert here.sql(BUILDING) == [(holder.info.backend_pid,)]
        finally:
            rows(writer, "COMMIT")
            building.join(20)
        assert index_is_valid(here)
        # Now it is a session like any other that has outlived its deadline.
        report = initializer.handler(None, Context(30))
    assert [entry["name"] for entry in report["applied"]] == ["002_b"]

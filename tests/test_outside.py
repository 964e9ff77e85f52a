"""What PostgreSQL runs in no transaction: interrupted wherever it may be, the next run brings it to the same end.

Nothing is put in the place of PostgreSQL or psycopg2. A statement is interrupted while it waits for another session
(terminated by the server, or left alone by a handler that was killed), or its answer is lost on the way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, Optional
from unittest import mock

import initializer
import psycopg2
import pytest
from common import LockError
from harness.database import SCHEMA, drop_database
from harness.others import WAIT_S, handlers, open_transaction, sessions, wait_until
from harness.proxy import ANSWERED, BEFORE, Link, Place, proxy_to
from harness.world import Context, World, exactly, rows
from initializer import MigrationError

MARK = "-- no-transaction\n"
INTERRUPTED = "a run was interrupted in this statement"
HAD_DONE = "it had done its work"
WRITER = "LOCK t IN ROW EXCLUSIVE MODE"  # a concurrent build waits for it at its beginning
READER = "LOCK t IN ACCESS SHARE MODE"
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1"  # a concurrent build waits for it at its end


@pytest.fixture(autouse=True)
def _with_a_table(world: World) -> None:
    """Table t with an index, applied as 001_t; and no users, which do not matter here."""
    world.environ["CREATE_USERS"] = "false"
    world.write(
        "001_t.sql",
        "CREATE TABLE t (i int, s text); CREATE INDEX old ON t (i);\n"
        "INSERT INTO t SELECT n, n FROM generate_series(1, 50) n;",
    )
    world.deploy()


# --- Helpers --------------------------------------------------------------------------------------------------------


def names(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def failure(world: World, context: Optional[Context] = None, **environ: str) -> str:
    """The message with which the deployment fails."""
    with pytest.raises(MigrationError) as caught:
        world.deploy(None, context, **environ)
    return str(caught.value)


def indexes(world: World) -> dict[str, bool]:
    """The indexes and whether they are valid, but for the one of the beginning and our own."""
    found = world.sql(
        "SELECT i.indexrelid::regclass::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE c.relnamespace::regnamespace::text !~ '^pg_' AND c.relname !~ '^(old$|schema_migrations)' ORDER BY 1"
    )
    return dict(found)


def oid(world: World, name: str) -> Any:
    return world.sql("SELECT to_regclass(%s)::oid", name)[0][0]


def numbers(world: World) -> list[int]:
    """The rows of table u, in the order in which they were inserted."""
    return [number for (number,) in world.sql("SELECT n FROM u ORDER BY id")]


def marks(world: World) -> list[tuple[Any, ...]]:
    """The steps of unfinished files, and whether they are done."""
    return world.sql("SELECT step, done_at IS NOT NULL FROM schema_migrations_progress ORDER BY migration_name, step")


@contextmanager
def deploying(world: World, context: Optional[Context] = None, **environ: str) -> Iterator[Future[dict[str, Any]]]:
    """The handler at work in another thread; nothing of it stays."""
    folder = mock.patch.object(initializer, "MIGRATIONS_DIR", world.folder)
    with folder, exactly({**world.environ, **environ}), ThreadPoolExecutor(1) as pool:
        future = pool.submit(initializer.handler, None, context)
        try:
            yield future
        except BaseException:
            while not future.done():
                end(world)
                time.sleep(0.1)
            raise


def waiting(world: World, statement: str, other: Any) -> list[tuple[Any, ...]]:
    """The handler's session, if this statement of it waits for the other session."""
    return world.sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'db_setup' "
        "AND starts_with(query, %s) AND %s = ANY (pg_blocking_pids(pid))",
        statement,
        other.info.backend_pid,
    )


def end(world: World) -> None:
    """Terminate the handler's sessions, and return when they are gone."""
    for pid, _, _ in sessions(world):
        world.sql("SELECT pg_terminate_backend(%s)", pid)
    wait_until(lambda: not sessions(world))


def deploy_terminated(
    world: World, statement: str, in_the_way: str, look: Callable[[World], Any] = indexes
) -> tuple[str, Any]:
    """The handler's session is terminated while this statement waits. Its message, and what was there then."""
    with open_transaction(world, in_the_way) as other, deploying(world) as future:
        wait_until(lambda: bool(waiting(world, statement, other)))
        found = look(world)
        end(world)
        with pytest.raises(MigrationError) as caught:
            future.result(WAIT_S)
    return str(caught.value), found


def deploy_cut(world: World, statement: str, arrives: bool = True, **environ: str) -> str:
    """The connection is lost at this statement: before it, or (it arrives) before its answer. The message."""
    lost: list[Place] = []

    def lose(place: Place, link: Link) -> None:
        at = place.phase == (ANSWERED if arrives else BEFORE)
        if at and not lost and link.said.startswith(f"Q {statement}"):
            lost.append(place)
            link.cut()

    with proxy_to(world.server.host, world.server.port) as proxy:
        proxy.watch(lose)
        way = {"DB_HOST": "127.0.0.1", "DB_PORT": str(proxy.port), "PGSSLMODE": "disable"}
        message = failure(world, **way, **environ)
        assert lost, message
    return message


# --- Concurrent builds ----------------------------------------------------------------------------------------------

BUILDS = {
    "alone": ("CREATE INDEX CONCURRENTLY a ON t (i);", WRITER, "a"),
    "marked": (MARK + "SELECT 1;\nCREATE INDEX CONCURRENTLY b ON t (i);", SNAPSHOT, "b"),
    "guarded": ("CREATE INDEX CONCURRENTLY IF NOT EXISTS c ON t (i);", SNAPSHOT, "c"),
    "unnamed": ("CREATE INDEX CONCURRENTLY ON t (s);", WRITER, "t_s_idx"),
    "in its own transaction": ("BEGIN;\nCREATE INDEX CONCURRENTLY d ON t (i);\nCOMMIT;", WRITER, "d"),
    "unique, of a schema": (
        MARK + 'SET search_path = other;\nCREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "E e" ON ONLY "T" (i);',
        'LOCK other."T" IN ROW EXCLUSIVE MODE',
        'other."E e"',
    ),
}


def beginning(text: str) -> str:
    """Of the statement that builds, as the handler sends it."""
    return "CREATE UNIQUE INDEX" if "UNIQUE" in text else "CREATE INDEX"


def test_outside_build_terminated_while_it_waits_is_built_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The INVALID index of an interrupted build is dropped and built again, also where the file says IF NOT EXISTS."""
    world.sql('CREATE SCHEMA other; CREATE TABLE other."T" (i int)')
    for number, (text, in_the_way, name) in enumerate(BUILDS.values(), 2):
        world.write(f"{number:03d}_x.sql", text)
        caplog.clear()

        message, found = deploy_terminated(world, "CREATE ", in_the_way)

        assert found[name] is False
        assert message.startswith(f"{number:03d}_x.sql")
        broken = oid(world, name)
        assert names(world.deploy()) == [f"{number:03d}_x"]
        assert caplog.text.count(INTERRUPTED) == caplog.text.count("dropping an index that was never finished") == 1
        assert HAD_DONE not in caplog.text
        assert oid(world, name) != broken
    assert indexes(world) == dict.fromkeys((name for _, _, name in BUILDS.values()), True)
    assert marks(world) == []


def test_outside_build_whose_answer_is_lost_is_recorded_not_repeated(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """An index that is finished but not recorded is recognised: it is recorded, and no second one is built."""
    world.sql('CREATE SCHEMA other; CREATE TABLE other."T" (i int)')
    for number, (text, _, name) in enumerate(BUILDS.values(), 2):
        world.write(f"{number:03d}_x.sql", text)
        caplog.clear()

        message = deploy_cut(world, beginning(text))

        assert "The connection was lost, and the server does not build any more: an unfinished index" in message
        built = oid(world, name)
        assert built
        assert names(world.deploy()) == [f"{number:03d}_x"]
        assert caplog.text.count(HAD_DONE) == 1
        assert oid(world, name) == built
    assert indexes(world) == dict.fromkeys((name for _, _, name in BUILDS.values()), True)
    assert marks(world) == []


def test_outside_build_that_never_arrived_is_built(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Where the connection is lost between the mark and the statement, the statement is still to be run."""
    for number, (text, _, _) in enumerate(list(BUILDS.values())[:-1], 2):
        world.write(f"{number:03d}_x.sql", text)

        deploy_cut(world, beginning(text), arrives=False)

        assert names(world.deploy()) == [f"{number:03d}_x"]
    assert indexes(world) == dict.fromkeys([name for _, _, name in BUILDS.values()][:-1], True)
    assert caplog.text.count(INTERRUPTED) == len(BUILDS) - 1


def test_outside_build_whose_answer_is_lost_and_whose_file_is_renamed_is_recorded(world: World) -> None:
    """A file of one statement needs no mark, and what is known of it follows it all the same."""
    world.write("002_x.sql", BUILDS["alone"][0])
    deploy_cut(world, "CREATE INDEX")
    built = oid(world, "a")
    world.remove("002_x.sql")
    world.write("002_y.sql", BUILDS["alone"][0])

    report = world.deploy()

    assert (names(report), report["warnings"]) == (["002_y"], [])
    assert (oid(world, "a"), marks(world)) == (built, [])


def test_outside_exactly_one_statement_is_in_doubt(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What precedes an interrupted statement is done, what follows it has not begun: each happens once."""
    world.sql("CREATE TABLE u (id serial, n int)")
    world.write(
        "002_x.sql",
        MARK + "INSERT INTO u (n) VALUES (1);\nCREATE INDEX CONCURRENTLY a ON t (i);\nINSERT INTO u (n) VALUES (2);\n"
        "CREATE INDEX CONCURRENTLY b ON t (i);\nINSERT INTO u (n) VALUES (3);",
    )

    deploy_cut(world, "CREATE INDEX CONCURRENTLY b", arrives=False)

    assert (marks(world), numbers(world)) == ([(1, True), (2, True), (3, True), (4, False)], [1, 2])
    assert indexes(world) == {"a": True}
    world.deploy()
    assert caplog.text.count(INTERRUPTED) == 1
    assert (marks(world), numbers(world)) == ([], [1, 2, 3])
    assert indexes(world) == {"a": True, "b": True}


def test_outside_transaction_whose_answer_is_lost_happens_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What can run in a transaction commits with its mark: a lost answer leaves no doubt."""
    world.sql("CREATE TABLE u (id serial, n int)")
    world.write("002_x.sql", MARK + "INSERT INTO u (n) VALUES (1);\nVACUUM u;\nINSERT INTO u (n) VALUES (2);")

    deploy_cut(world, "BEGIN; INSERT INTO u (n) VALUES (1)")
    first = marks(world), numbers(world)
    deploy_cut(world, "BEGIN READ WRITE; SET SESSION AUTHORIZATION DEFAULT; SET ROLE NONE; SET search_path")

    assert first == ([(1, True)], [1])
    assert (marks(world), numbers(world), world.applied()) == ([], [1, 2], ["001_t", "002_x"])
    assert names(world.deploy()) == []
    assert INTERRUPTED not in caplog.text


def test_outside_table_of_another_name_keeps_its_own_marks(world: World) -> None:
    """MIGRATIONS_TABLE names the table of the marks as well."""
    world.remove("001_t.sql")
    world.write("002_x.sql", "CREATE INDEX CONCURRENTLY a ON t (i);")

    deploy_cut(world, "CREATE INDEX", MIGRATIONS_TABLE="mine")

    assert world.sql("SELECT migration_name FROM mine_progress") == [("002_x",)]
    world.deploy(MIGRATIONS_TABLE="mine")
    assert world.applied("mine") == ["002_x"]
    assert (indexes(world)["a"], world.sql("SELECT * FROM mine_progress")) == (True, [])


# --- What is not ours -----------------------------------------------------------------------------------------------


def test_outside_index_of_that_name_on_another_table_is_not_ours(world: World) -> None:
    """A valid index of the name on another table does not mean that an interrupted build is done, and it stays."""
    world.sql("CREATE TABLE u (n int)")
    world.write("002_x.sql", MARK + "\nCREATE INDEX CONCURRENTLY a ON t (i);")
    deploy_cut(world, "CREATE INDEX", arrives=False)
    world.sql("CREATE INDEX a ON u (n)")

    messages = [failure(world), failure(world)]

    assert [message.startswith('002_x.sql:3: relation "a" already exists (42P07). ') for message in messages] == (
        [True, True]
    )
    assert indexes(world) == {"a": True}
    world.sql("DROP INDEX a")
    world.deploy()
    assert world.sql("SELECT indrelid::regclass::text FROM pg_index WHERE indexrelid = 'a'::regclass") == [("t",)]


def test_outside_invalid_index_of_that_name_on_another_table_is_never_dropped(world: World) -> None:
    """As in psql, IF NOT EXISTS is content with any index of that name; what is not of our table is left alone."""
    world.sql("CREATE TABLE u (n int); INSERT INTO u VALUES (1), (1)")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        world.sql("CREATE UNIQUE INDEX CONCURRENTLY a ON u (n)")
    theirs = oid(world, "a")
    world.write("002_x.sql", "CREATE INDEX CONCURRENTLY IF NOT EXISTS a ON t (i);")

    deploy_cut(world, "CREATE INDEX", arrives=False)
    world.deploy()

    assert (indexes(world), oid(world, "a")) == ({"a": False}, theirs)


def test_outside_unnamed_build_leaves_the_invalid_indexes_of_others(world: World) -> None:
    """Without a name, only what is new on the table since the mark can be ours."""
    world.sql("CREATE UNIQUE INDEX t_s ON t (s)")
    world.sql("INSERT INTO t VALUES (50, 'more')")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        world.sql("CREATE UNIQUE INDEX CONCURRENTLY theirs ON t (i)")
    theirs = oid(world, "theirs")
    world.write("002_x.sql", "CREATE UNIQUE INDEX CONCURRENTLY ON t (i);")

    message = failure(world)

    assert message.startswith('002_x.sql:1: could not create unique index "t_i_idx" (23505). ')
    assert indexes(world) == {"t_s": True, "theirs": False}
    world.write("002_x.sql", "CREATE UNIQUE INDEX CONCURRENTLY ON t (s);")
    deploy_terminated(world, "CREATE ", WRITER)
    assert indexes(world) == {"t_s": True, "t_s_idx": False, "theirs": False}
    world.deploy()
    assert indexes(world) == {"t_s": True, "t_s_idx": True, "theirs": False}
    assert oid(world, "theirs") == theirs


def test_outside_unnamed_build_next_to_a_new_index_of_others_is_not_done(world: World) -> None:
    """An index that somebody else has made meanwhile does not pass for the unnamed one that is still INVALID."""
    world.write("002_x.sql", "CREATE INDEX CONCURRENTLY ON t (s);")
    deploy_terminated(world, "CREATE ", WRITER)
    world.sql("CREATE INDEX theirs ON t (i)")

    world.deploy()

    assert indexes(world) == {"t_s_idx": True, "theirs": True}


OURS_WITHOUT_NAME = {
    "(s)": "(i)",
    "(s, i)": "(i, s)",
    "(lower(s), i)": "(i)",
    "((s || s))": "(s)",
    '("s" DESC) WHERE i > 0': "(s)",
}


@pytest.mark.parametrize("arrives", [False, True], ids=["never built", "built"])
@pytest.mark.parametrize("ours", OURS_WITHOUT_NAME)
def test_outside_unnamed_build_whose_answer_is_lost_is_known_by_its_columns(
    world: World, ours: str, arrives: bool
) -> None:
    """An index that somebody else has made meanwhile on the same table is none of ours, however that ended."""
    world.write("002_x.sql", f"CREATE INDEX CONCURRENTLY ON t {ours};")
    deploy_cut(world, "CREATE INDEX", arrives=arrives)
    world.sql(f"CREATE INDEX theirs ON t {OURS_WITHOUT_NAME[ours]}")

    world.deploy()

    assert sorted(indexes(world).values()) == [True, True]
    assert world.applied()[-1] == "002_x"


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.slow
def test_outside_build_of_another_session_on_the_table_is_waited_for(world: World, name: str) -> None:
    """An INVALID index may be one that somebody is just building: it is neither dropped nor stopped."""
    world.write("002_x.sql", f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON t (i);")
    with open_transaction(world, WRITER) as writer, ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(world.sql, "CREATE INDEX CONCURRENTLY a ON t (i)")
        try:
            wait_until(lambda: indexes(world) == {"a": False})
            built = oid(world, "a")
            with deploying(world) as future:
                time.sleep(1.5)  # if the handler waited in a transaction, PostgreSQL would now end their build (40P01)
                rows(writer, "COMMIT")
                theirs.result(WAIT_S)
                report = future.result(WAIT_S)
        finally:
            rows(writer, "ROLLBACK")

    assert (names(report), oid(world, "a")) == (["002_x"], built)
    assert indexes(world) == {"a": True, name: True}


def test_outside_partitioned_parent_is_never_dropped(world: World) -> None:
    """The index of a partitioned table is INVALID until each partition has one: that is not a leftover."""
    world.sql(
        "CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); "
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)"
    )
    world.write(
        "002_x.sql",
        MARK + "CREATE INDEX a ON ONLY p (i);\nCREATE INDEX CONCURRENTLY a1 ON p1 (i);\n"
        "ALTER INDEX a ATTACH PARTITION a1;\nCREATE INDEX CONCURRENTLY a2 ON p2 (i);\n"
        "ALTER INDEX a ATTACH PARTITION a2;",
    )

    found = [deploy_terminated(world, "CREATE ", f"LOCK {part} IN ROW EXCLUSIVE MODE")[1] for part in ("p1", "p2")]

    assert found == [{"a": False, "a1": False}, {"a": False, "a1": True, "a2": False}]
    parent = oid(world, "a")
    world.deploy()
    assert indexes(world) == {"a": True, "a1": True, "a2": True}
    world.sql("CREATE INDEX b ON ONLY p (i)")
    world.write("003_x.sql", MARK + "CREATE INDEX CONCURRENTLY IF NOT EXISTS b ON p (i);")
    message = failure(world)
    assert message.startswith('003_x.sql:2: cannot create index on partitioned table "p" concurrently (0A000). ')
    assert (indexes(world)["b"], oid(world, "a")) == (False, parent)


# --- Answered errors ------------------------------------------------------------------------------------------------


def test_outside_answered_error_does_not_count_as_done(world: World) -> None:
    """An error leaves no doubt: what others have made is an error on every run, and never taken for our work."""
    database = world.dbname + "_more"
    world.sql(f"CREATE DATABASE {database}")
    try:
        world.write("002_x.sql", f"CREATE DATABASE {database};")
        databases = [failure(world), failure(world)]
    finally:
        drop_database(world.server, database)
    world.write("002_x.sql", MARK + "SELECT 1;\nCREATE UNIQUE INDEX CONCURRENTLY a ON t (i);")
    world.sql("INSERT INTO t VALUES (50, 'again')")
    violated = failure(world)
    left = indexes(world)
    world.sql("DELETE FROM t WHERE s = 'again'; CREATE UNIQUE INDEX a ON t (i)")

    by_hand = failure(world)

    assert [
        message.startswith(f'002_x.sql:1: database "{database}" already exists (42P04). ') for message in databases
    ] == [True, True]
    assert violated.startswith('002_x.sql:3: could not create unique index "a" (23505). ')
    assert left == {}
    assert by_hand.startswith('002_x.sql:3: relation "a" already exists (42P07). ')
    assert marks(world) == [(1, True)]
    world.sql("DROP INDEX a")
    world.deploy()
    assert indexes(world) == {"a": True}


def test_outside_build_cancelled_by_an_administrator_leaves_neither_debris_nor_doubt(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A cancelled build is an answered error: its INVALID index is dropped immediately, and the next run builds it."""
    world.write("002_x.sql", MARK + "SELECT 1;\nCREATE INDEX CONCURRENTLY a ON t (i);")
    with open_transaction(world, SNAPSHOT) as other, deploying(world) as future:
        wait_until(lambda: bool(waiting(world, "CREATE INDEX", other)))
        world.sql("SELECT pg_cancel_backend(%s)", *waiting(world, "CREATE INDEX", other)[0])
        with pytest.raises(MigrationError) as caught:
            future.result(WAIT_S)

    assert str(caught.value).startswith("002_x.sql:3: canceling statement due to user request (57014). ")
    assert (indexes(world), marks(world)) == ({}, [(1, True)])
    world.deploy()
    assert indexes(world) == {"a": True}
    assert INTERRUPTED not in caplog.text


def test_outside_build_terminated_by_an_administrator_is_not_said_to_continue(world: World) -> None:
    """The server is asked: nobody builds any more."""
    world.write("002_x.sql", "CREATE INDEX CONCURRENTLY a ON t (i);")

    message, _ = deploy_terminated(world, "CREATE ", SNAPSHOT)

    said, _, state = message.partition(" (no answer). ")  # libpq loses the server's last words
    assert re.fullmatch(r"002_x\.sql:1: .*clos.*unexpectedly.*", said)
    assert state == (
        "The connection was lost, and the server does not build any more: an unfinished index is left INVALID. "
        "Invoke again: a finished index is recorded, an unfinished one is dropped and built again. "
        "Applied in this run: nothing."
    )
    assert indexes(world) == {"a": False}


def test_outside_build_that_times_out_says_what_became_of_its_index(world: World) -> None:
    """The build ran outside of any transaction: its INVALID index is dropped, and the message says so."""
    world.write("002_x.sql", MARK + "SET statement_timeout = '1s';\nCREATE INDEX CONCURRENTLY a ON t (i);")

    with open_transaction(world, SNAPSHOT):
        message = failure(world)

    assert message == (
        "002_x.sql:3: canceling statement due to statement timeout (57014). The statements before this one have run "
        "and stay applied: do not edit them. The unfinished index was dropped. The file's own statement_timeout was "
        "too short; raise it, or leave it out. Then deploy again: the run continues here. "
        "Applied in this run: nothing.\n"
        "LINE 3: CREATE INDEX CONCURRENTLY a ON t (i);"
    )
    assert indexes(world) == {}


def test_outside_build_whose_index_cannot_be_dropped_says_that_it_may_be_left(world: World) -> None:
    """A reader keeps the unfinished index from being dropped: the next run drops it."""
    world.sql("INSERT INTO t VALUES (50, 'again')")
    world.write("002_x.sql", "CREATE UNIQUE INDEX CONCURRENTLY a ON t (i);")

    with open_transaction(world, READER):
        message = failure(world, Context(6), LOCK_TIMEOUT="300ms")

    assert message.splitlines()[0] == (
        '002_x.sql:1: could not create unique index "a" (23505). Rolled back. An unfinished index may be left INVALID: '
        "the next run drops it. Several rows have the same key; find them with GROUP BY … HAVING count(*) > 1, and "
        "correct them first. Then deploy again. Applied in this run: nothing."
    )
    assert indexes(world) == {"a": False}


def test_outside_unique_violation_during_a_long_read_is_reported_as_such(world: World) -> None:
    """A leftover that cannot be dropped immediately does not hide the error; the next run drops it."""
    world.sql("INSERT INTO t VALUES (50, 'again')")
    world.write("002_x.sql", MARK + "\nCREATE UNIQUE INDEX CONCURRENTLY a ON t (i);")

    with open_transaction(world, READER):
        message = failure(world, Context(6), LOCK_TIMEOUT="300ms")

    assert message.startswith('002_x.sql:3: could not create unique index "a" (23505). ')
    world.sql("DELETE FROM t WHERE s = 'again'")
    world.deploy()
    assert indexes(world) == {"a": True}


def test_outside_build_waits_for_others_beyond_the_lock_timeout(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It blocks nobody while it waits, and a lock timeout would only leave its index INVALID."""
    world.write("002_x.sql", "CREATE INDEX CONCURRENTLY a ON t (i);")

    with open_transaction(world, WRITER) as writer, deploying(world, LOCK_TIMEOUT="200ms") as future:
        wait_until(lambda: waiting(world, "CREATE ", writer) != [])
        time.sleep(0.6)
        assert not future.done()
        rows(writer, "COMMIT")
        report = future.result(WAIT_S)

    assert (names(report), indexes(world)) == (["002_x"], {"a": True})
    assert "gave way" not in caplog.text


# --- Other statements -----------------------------------------------------------------------------------------------


def test_outside_vacuum_in_doubt_runs_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing tells whether VACUUM has run; it runs again."""
    world.sql("CREATE TABLE u (id serial, n int)")
    world.write("002_x.sql", MARK + "INSERT INTO u (n) VALUES (1);\nVACUUM (ANALYZE) u;\nINSERT INTO u (n) VALUES (2);")

    deploy_cut(world, "VACUUM", arrives=False)
    before = world.sql("SELECT relpages FROM pg_class WHERE relname = 'u'")
    deploy_cut(world, "VACUUM")
    deploy_terminated(world, "VACUUM", "LOCK u IN SHARE UPDATE EXCLUSIVE MODE")
    world.deploy()

    assert caplog.text.count(INTERRUPTED) == 3
    assert (before, world.sql("SELECT relpages FROM pg_class WHERE relname = 'u'")) == ([(0,)], [(1,)])
    assert numbers(world) == [1, 2]


@pytest.mark.parametrize("statement", ["REINDEX INDEX CONCURRENTLY old", "REINDEX TABLE CONCURRENTLY t"])
def test_outside_reindex_terminated_while_it_builds_is_repeated_without_debris(world: World, statement: str) -> None:
    """The new indexes that an interrupted REINDEX has left are dropped, and it is run again."""
    world.write("002_x.sql", MARK + statement + ";\nSELECT 1;")
    old = oid(world, "old")

    found = [deploy_terminated(world, "REINDEX", in_the_way)[1] for in_the_way in (WRITER, SNAPSHOT)]

    assert found == [{"old_ccnew": False}] * 2
    assert oid(world, "old") == old
    world.deploy()
    assert indexes(world) == {}
    assert oid(world, "old") != old


@pytest.mark.parametrize("statement", ["REINDEX INDEX CONCURRENTLY old", "REINDEX TABLE CONCURRENTLY t"])
def test_outside_reindex_terminated_after_the_swap_leaves_no_invalid_index(world: World, statement: str) -> None:
    """An interrupted REINDEX whose new index is in place has left the old one: it is dropped."""
    world.write("002_x.sql", statement + ";")

    _, found = deploy_terminated(world, "REINDEX", READER)

    assert found == {"old_ccold": False}
    assert names(world.deploy()) == ["002_x"]
    assert indexes(world) == {}
    assert world.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'old'::regclass") == [(True,)]


def test_outside_reindex_whose_answer_is_lost_is_recorded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """New indexes in the place of all the old ones: REINDEX has done its work."""
    world.sql("CREATE INDEX a ON t (s)")
    world.write("002_x.sql", "REINDEX TABLE CONCURRENTLY t;")
    before = {oid(world, "old"), oid(world, "a")}

    deploy_cut(world, "REINDEX")

    new = {oid(world, "old"), oid(world, "a")}
    assert not new & before
    world.deploy()
    assert {oid(world, "old"), oid(world, "a")} == new
    assert HAD_DONE in caplog.text


def test_outside_reindex_of_an_invalid_index_in_doubt_is_not_done_before_it_is_valid(world: World) -> None:
    """REINDEX repairs an INVALID index: interrupted, it has to run again."""
    world.sql("INSERT INTO t VALUES (50, 'again')")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        world.sql("CREATE UNIQUE INDEX CONCURRENTLY a ON t (i)")
    world.sql("DELETE FROM t WHERE s = 'again'")
    world.write("002_x.sql", "REINDEX INDEX CONCURRENTLY a;")

    _, found = deploy_terminated(world, "REINDEX", WRITER)

    assert found == {"a": False, "a_ccnew": False}
    world.deploy()
    assert indexes(world) == {"a": True}


def test_outside_reindex_of_a_partitioned_table_leaves_no_debris(world: World) -> None:
    """From PostgreSQL 14 on REINDEX reaches the partitions: what it left there is dropped too."""
    world.sql(
        "CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); "
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); CREATE INDEX a ON p (i)"
    )
    world.write("002_x.sql", "REINDEX TABLE CONCURRENTLY p;")
    before = oid(world, "p1_i_idx"), oid(world, "p2_i_idx")
    if world.server.version >= 140000:
        _, found = deploy_terminated(world, "REINDEX", SNAPSHOT)
        assert found == {"a": True, "p1_i_idx": True, "p2_i_idx": True, "p1_i_idx_ccnew": False}

    world.deploy()

    assert indexes(world) == {"a": True, "p1_i_idx": True, "p2_i_idx": True}
    assert ((oid(world, "p1_i_idx"), oid(world, "p2_i_idx")) == before) is (world.server.version < 140000)


def test_outside_drop_of_an_index_interrupted_is_finished(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """DROP INDEX CONCURRENTLY that was interrupted leaves the index INVALID; the next run drops it."""
    world.sql("CREATE INDEX a ON t (i)")
    world.write("002_x.sql", "DROP INDEX CONCURRENTLY a;")

    _, found = deploy_terminated(world, "DROP", READER)

    assert found == {"a": False}
    world.deploy()
    assert indexes(world) == {}
    assert (INTERRUPTED in caplog.text, HAD_DONE in caplog.text) == (True, False)


def test_outside_drop_of_an_index_whose_answer_is_lost_is_recorded(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """An index that is gone is not an error on the next run; one that somebody else has made is not dropped."""
    world.sql("CREATE INDEX a ON t (i); CREATE INDEX b ON t (i)")
    world.write("002_x.sql", "DROP INDEX CONCURRENTLY a;")
    deploy_cut(world, "DROP")
    world.deploy()
    world.write("003_y.sql", MARK + f"DROP INDEX CONCURRENTLY {SCHEMA}.b;\nSELECT 1;")
    deploy_cut(world, "DROP")
    world.sql("CREATE INDEX b ON t (s)")
    theirs = oid(world, "b")

    world.deploy()

    assert world.applied() == ["001_t", "002_x", "003_y"]
    assert (indexes(world), oid(world, "b")) == ({"b": True}, theirs)
    assert caplog.text.count(HAD_DONE) == 2


def test_outside_new_value_of_an_enum_is_added_once_and_used_afterwards(world: World) -> None:
    """ADD VALUE commits with its mark, so that the value can be used after it and is not added twice."""
    world.sql("CREATE TYPE mood AS ENUM ('old'); CREATE TABLE u (id serial, n int, m mood)")
    world.write(
        "002_x.sql",
        MARK + "ALTER TYPE mood ADD VALUE 'new';\nINSERT INTO u (n, m) VALUES (1, 'new');\n"
        "ALTER TYPE mood ADD VALUE 'newer' AFTER 'new';\nINSERT INTO u (n, m) VALUES (2, 'newer');",
    )

    deploy_cut(world, "BEGIN; ALTER TYPE mood ADD VALUE 'new'")
    deploy_cut(world, "BEGIN; INSERT INTO u (n, m) VALUES (1", arrives=False)
    deploy_cut(world, "BEGIN; ALTER TYPE mood ADD VALUE 'newer'", arrives=False)
    world.deploy()

    assert world.sql("SELECT n, m::text FROM u ORDER BY m") == [(1, "new"), (2, "newer")]
    assert world.sql("SELECT enum_range(NULL::mood)::text") == [("{old,new,newer}",)]


PARTITIONED = (
    "CREATE TABLE p (i int) PARTITION BY RANGE (i); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); "
    'CREATE SCHEMA other; CREATE TABLE other."P 2" PARTITION OF p FOR VALUES FROM (10) TO (20)'
)


def attached(world: World) -> list[tuple[Any, ...]]:
    return world.sql("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'p'::regclass ORDER BY 1")


def test_outside_detach_interrupted_is_finalized(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """DETACH … CONCURRENTLY that was interrupted cannot be repeated; it is finalized, as PostgreSQL wants it."""
    world.sql(PARTITIONED)
    world.write("002_x.sql", "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY;")
    if world.server.version < 140000:
        assert failure(world).startswith('002_x.sql:1:35: syntax error at or near "CONCURRENTLY" (42601). ')
        assert attached(world) == [('other."P 2"',), ("p1",)]
        return
    in_the_way = "LOCK p IN ACCESS SHARE MODE"
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"

    _, found = deploy_terminated(world, "ALTER", in_the_way, lambda world: world.sql(pending))
    world.deploy()
    world.write(
        "003_y.sql", MARK + f'ALTER TABLE ONLY {SCHEMA}.p DETACH PARTITION other."P 2" CONCURRENTLY;\nSELECT 1;'
    )
    with open_transaction(world, in_the_way) as reader, deploying(world, LOCK_TIMEOUT="300ms") as future:
        wait_until(lambda: "gave way migration=003_y sqlstate=55P03" in caplog.text)
        rows(reader, "COMMIT")
        report = future.result(WAIT_S)

    assert (found, names(report), attached(world)) == ([(1,)], ["003_y"], [])


def test_outside_detach_whose_answer_is_lost_is_recorded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A partition that is detached is not an error on the next run."""
    world.sql(PARTITIONED)
    if world.server.version < 140000:
        world.write("002_x.sql", "ALTER TABLE p DETACH PARTITION p1;")  # which is an ordinary file
        deploy_cut(world, "BEGIN")
    else:
        world.write("002_x.sql", MARK + "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY;\nSELECT 1;")
        deploy_cut(world, "ALTER")

    world.deploy()

    assert attached(world) == [('other."P 2"',)]
    assert (HAD_DONE in caplog.text) == (world.server.version >= 140000)


def test_outside_database_whose_answer_is_lost_is_recorded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A database that was made or dropped is recognised by its name; one that was not is made, or dropped."""
    name = world.dbname + '_"More'
    quoted = '"' + name.replace('"', '""') + '"'
    world.write("002_x.sql", f"CREATE DATABASE {quoted};")
    world.write(
        "003_y.sql", MARK + f"DROP DATABASE IF EXISTS {quoted};\nCREATE DATABASE {quoted};\nDROP DATABASE {quoted};"
    )
    try:
        for statement in ("CREATE DATABASE", "DROP DATABASE IF", "CREATE DATABASE", 'DROP DATABASE "'):
            deploy_cut(world, statement, arrives=False)
            deploy_cut(world, statement)
        world.deploy()

        assert world.applied() == ["001_t", "002_x", "003_y"]
        assert world.sql("SELECT count(*) FROM pg_database WHERE datname = %s", name) == [(0,)]
        assert (caplog.text.count(HAD_DONE), caplog.text.count(INTERRUPTED)) == (4, 8)
    finally:
        drop_database(world.server, name)


COMMITTING = {
    "a block": "DO $$ BEGIN INSERT INTO u (n) VALUES (1); COMMIT; INSERT INTO u (n) VALUES (2); END $$;",
    "a procedure": "CALL add();",
}


@pytest.mark.parametrize("case", COMMITTING)
def test_outside_block_that_commits_happens_at_least_once(world: World, case: str) -> None:
    """A block or a procedure that commits by itself is run again where its answer was lost, and only that one."""
    world.sql(
        "CREATE TABLE u (id serial, n int); CREATE PROCEDURE add() LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO u (n) VALUES (1); COMMIT; INSERT INTO u (n) VALUES (2); END'"
    )
    text = COMMITTING[case]
    world.write(
        "002_x.sql", MARK + f"INSERT INTO u (n) VALUES (0);\n{text}\nINSERT INTO u (n) VALUES (3);\nVACUUM missing;"
    )

    deploy_cut(world, text[:4])
    first = numbers(world)
    message = failure(world)
    world.sql("CREATE TABLE missing (i int)")
    world.deploy()

    assert first == [0, 1, 2]
    assert message.startswith('002_x.sql:5: relation "missing" does not exist (42P01). ')
    assert numbers(world) == [0, 1, 2, 1, 2, 3]


def test_outside_several_transactions_of_a_file_happen_once_each(world: World) -> None:
    """Each BEGIN … COMMIT is one step: done, or not begun, wherever the connection is lost."""
    world.sql("CREATE TABLE u (id serial, n int)")
    world.write(
        "002_x.sql",
        MARK + "BEGIN;\nINSERT INTO u (n) VALUES (1);\nINSERT INTO u (n) VALUES (2);\nCOMMIT;\n"
        "BEGIN ISOLATION LEVEL REPEATABLE READ;\nINSERT INTO u (n) VALUES (3);\nLOCK t;\nCOMMIT;\n"
        "START TRANSACTION;\nCOPY u (n) FROM stdin;\n4\n\\.\nEND;\nVACUUM u;",
    )

    deploy_cut(world, "BEGIN; INSERT", arrives=False)
    found = [numbers(world)]
    deploy_cut(world, "BEGIN; INSERT")
    found.append(numbers(world))
    _, during = deploy_terminated(world, "BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT", READER, numbers)
    deploy_cut(world, "BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT")
    found += [during, numbers(world)]
    world.deploy()

    assert found == [[], [1, 2], [1, 2], [1, 2, 3]]
    assert numbers(world) == [1, 2, 3, 4]


# --- Edited meanwhile -----------------------------------------------------------------------------------------------


def test_outside_rest_of_a_file_edited_continues_after_the_last_done_statement(world: World) -> None:
    """What has not run yet may be edited, shortened and lengthened."""
    world.sql("CREATE TABLE u (id serial, n int)")
    begin = MARK + "INSERT INTO u (n) VALUES (1);\nCREATE INDEX CONCURRENTLY a ON t (i);\n"
    world.write("002_x.sql", begin + "INSERT INTO missing VALUES (2);\nINSERT INTO u (n) VALUES (3);")
    failure(world)

    world.write("002_x.sql", begin.replace("\n", "  -- done\n") + "INSERT INTO u (n) VALUES (4);\nVACUUM missing;")
    again = failure(world)
    world.write("002_x.sql", begin + "INSERT INTO u (n) VALUES (4);")
    report = world.deploy()

    assert again.startswith('002_x.sql:5: relation "missing" does not exist (42P01). ')
    assert (names(report), numbers(world), indexes(world)) == (["002_x"], [1, 4], {"a": True})


def test_outside_part_that_has_run_edited_is_refused(world: World) -> None:
    """A statement that is done cannot be edited, moved or taken out any more: nothing runs, and the line is named."""
    world.sql("CREATE TABLE u (id serial, n int)")
    one, two, three = (f"INSERT INTO u (n) VALUES ({n});\n" for n in (1, 2, 3))
    world.write("002_x.sql", MARK + one + two + "VACUUM missing;")
    failure(world)
    world.sql("CREATE TABLE missing (i int)")
    edited = "this statement has run already, and was edited since; restore it, and put the change after it. "
    removed = "statements that have run already are missing at the end of this file; restore them. "
    refused = {
        one.replace("1", "7") + two + three: "002_x.sql:2: " + edited,
        one + three + two: "002_x.sql:3: " + edited,
        three + one + two: "002_x.sql:2: " + edited,
        two: "002_x.sql:2: " + edited,
        one: "002_x.sql:3: " + removed,
    }

    found = {}
    for text in refused:
        world.write("002_x.sql", MARK + text)
        found[text] = failure(world)

    for text, beginning in refused.items():
        assert found[text].startswith(beginning)
    assert (numbers(world), world.applied()) == ([1, 2], ["001_t"])
    world.write("002_x.sql", MARK + one + two)
    assert names(world.deploy()) == ["002_x"]
    assert numbers(world) == [1, 2]


def test_outside_file_that_loses_its_mark_half_way_goes_on_all_the_same(world: World) -> None:
    """A file of which a part has run is not run as a whole, although it does not ask for single steps any more."""
    world.sql("CREATE TABLE u (id serial, n int)")
    world.write("002_x.sql", MARK + "INSERT INTO u (n) VALUES (1);\nVACUUM missing;")
    failure(world)
    world.write("002_x.sql", "INSERT INTO u (n) VALUES (1);\nINSERT INTO u (n) VALUES (2);")

    world.deploy()

    assert (numbers(world), marks(world), world.applied()) == ([1, 2], [], ["001_t", "002_x"])


def test_outside_statement_in_doubt_edited_is_refused(world: World) -> None:
    """Nothing can tell whether a statement that was edited meanwhile has done its work: it has to be restored first."""
    world.sql("CREATE TABLE u (id serial, n int)")
    text = "CREATE INDEX CONCURRENTLY a ON t (i);"
    world.write("002_x.sql", text)
    deploy_cut(world, "CREATE INDEX", arrives=False)
    world.write("002_x.sql", text.replace("(i)", "(s)"))

    message = failure(world)

    assert message.startswith("002_x.sql:1: a run was interrupted in this statement, which was edited since, so that ")
    assert indexes(world) == {}
    world.write("002_x.sql", text)
    world.deploy()
    assert indexes(world) == {"a": True}


# --- Out of time, killed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["CREATE INDEX CONCURRENTLY a ON t (s)", "REINDEX INDEX CONCURRENTLY old"])
@pytest.mark.slow
def test_outside_build_goes_on_after_the_deadline_and_is_recorded_by_a_later_run(
    world: World, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    """A build that outlives its Lambda keeps the lock on the server; the run that finds it valid records it."""
    world.write("002_x.sql", statement + ";")
    index = "a" if "CREATE" in statement else "old"
    old = oid(world, "old")
    with open_transaction(world, SNAPSHOT) as other:
        first = failure(world, Context(3))
        building = waiting(world, statement, other)
        built = oid(world, index), indexes(world)
        with pytest.raises(LockError) as second:  # longer than the server takes to look after its clients
            world.deploy(None, Context(7))
        still = waiting(world, statement, other)
        with pytest.raises(LockError):
            world.deploy(None, Context(2))

    assert first.startswith("out of time: 002_x.sql")
    assert "the server continues the build, and holds the lock until it is done. Then invoke again" in first
    assert len(building) == 1
    assert still == building
    assert re.search(
        rf"\(pid {building[0][0]}, .*, still at {statement[:7]}.* CONCURRENTLY: waiting", str(second.value)
    )
    report = world.deploy(None, Context(60))
    assert names(report) == ["002_x"]
    assert caplog.text.count(HAD_DONE) == 1
    if index == "a":
        assert (oid(world, "a"), False) == (built[0], built[1]["a"])
        assert indexes(world) == {"a": True}
    else:
        assert built[1] == {"old_ccnew": False}
        assert (indexes(world), oid(world, "old") != old) == ({}, True)


def test_outside_build_whose_handler_is_killed_goes_on_and_is_recorded(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed in the middle of a build: the server finishes the index, and the next run waits for it and goes on."""
    world.sql("CREATE TABLE u (id serial, n int)")
    world.write(
        "002_x.sql",
        MARK + "INSERT INTO u (n) VALUES (1);\nCREATE UNIQUE INDEX CONCURRENTLY a ON t (i);\n"
        "INSERT INTO u (n) VALUES (2);",
    )
    with open_transaction(world, SNAPSHOT) as other:
        with handlers(world, 1) as started:
            started.go()
            wait_until(lambda: bool(waiting(world, "CREATE", other)))
            started.processes[0].kill()
        built = oid(world, "a")
        with deploying(world) as future:
            wait_until(lambda: "waiting for another run" in caplog.text)
            done_too_early = future.done()
            rows(other, "COMMIT")
            report = future.result(WAIT_S)

    assert (done_too_early, names(report)) == (False, ["002_x"])
    assert (indexes(world), oid(world, "a")) == ({"a": True}, built)
    assert (numbers(world), caplog.text.count(HAD_DONE)) == ([1, 2], 1)


def test_outside_drop_at_the_deadline_is_cancelled_and_finished_by_the_next_run(world: World) -> None:
    """Only builds go on: another statement is stopped in time, and nothing of it runs on."""
    world.sql("CREATE INDEX a ON t (i)")
    world.write("002_x.sql", MARK + "SELECT 1;\nDROP INDEX CONCURRENTLY a;")

    with open_transaction(world, READER):
        message = failure(world, Context(3))
        wait_until(lambda: sessions(world) == [])  # of which the server takes leave a moment later

    assert message.startswith("out of time: 002_x.sql:3: canceling statement due to user request (57014). ")
    assert (indexes(world), marks(world)) == ({"a": False}, [(1, True)])
    world.deploy()
    assert indexes(world) == {}

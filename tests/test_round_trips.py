"""How often a run waits for the database: exact numbers, since a far database makes each of them felt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from harness.database import SCHEMA
from harness.proxy import ANSWERED, Link, Place, Proxy, proxy_to
from harness.world import Context, World
from session import Session

FUNCTION = (
    "CREATE FUNCTION f{0}() RETURNS int LANGUAGE plpgsql AS "
    "$$ DECLARE v pg_class.relname%TYPE; BEGIN RETURN {0}; END $$;"
)
TRIGGER = "CREATE FUNCTION f{0}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.a := {0}; RETURN NEW; END $$;"
LOGGING_IN = ("startup", "p ")
# The owner of another schema than public is looked at before our tables are made there.
NEW_TABLE = ["any table", *([] if SCHEMA == "public" else ["look"]), "create"]

# By what the message begins with, what it asks for.
MEANINGS = {
    "set_config(name": "session",
    "SET LOCAL IntervalStyle": "objects",  # compared before the files, kept at the end
    "SAVEPOINT db_setup_file": "file",
    "file_sha256 = NULL WHERE id": "outdated",
    "relkind IN ('r', 'p', 'f') AND n.nspname": "any table",
    "SELECT id, migration_name": "rows",
    "pg_try_advisory_lock": "lock",
    f'CREATE TABLE "{SCHEMA}"."schema_migrations"': "create",
    "GRANT CONNECT ON DATABASE": "grant",
    "SAVEPOINT db_setup_objects": "share",
    'CREATE ROLE "readwrite"': "make groups",
    "SELECT g.name, r.oid IS NOT NULL": "groups",
    "(array_agg(format('%I.%I'": "what others made",
    "CREATE ROLE": "make login",
    "reached(oid) AS": "login's role",
    "WITH RECURSIVE rulers": "look",
}


class Trip(NamedTuple):
    """One message for whose answer the handler waited."""

    connection: int
    said: str

    @property
    def meaning(self) -> str:
        found = [meaning for words, meaning in MEANINGS.items() if words in self.said]
        return found[0] if found else self.said.partition(" ")[2]


@pytest.fixture
def proxy(world: World) -> Iterator[Proxy]:
    """A proxy for the database that can read the conversation, since there is no TLS."""
    with proxy_to(world.server.host, world.server.port) as proxy:
        world.environ.update(DB_HOST="127.0.0.1", DB_PORT=str(proxy.port), PGSSLMODE="disable")
        yield proxy


@contextmanager
def trips(proxy: Proxy) -> Iterator[list[Trip]]:
    """What is asked meanwhile."""
    asked: list[Trip] = []

    def remember(place: Place, link: Link) -> None:
        if place.phase == ANSWERED:
            asked.append(Trip(place.connection, " ".join(link.said.split())))

    proxy.watch(remember)
    yield asked
    proxy.drain()
    proxy.watch(None)


def deploy(world: World, proxy: Proxy, users: bool = False, context: Any = None) -> list[list[str]]:
    """What one run asks for, by connection, without the logging in."""
    with trips(proxy) as asked:
        world.deploy(context=context, CREATE_USERS=str(users).lower())
    return [
        [trip.meaning for trip in asked if trip.connection == number and not trip.said.startswith(LOGGING_IN)]
        for number in sorted({trip.connection for trip in asked})
    ]


def write(world: World, first: int, last: int) -> None:
    for number in range(first, last + 1):
        world.write(f"{number:03d}_table.sql", f"CREATE TABLE t{number} (id int);\nINSERT INTO t{number} VALUES (1);\n")


def test_round_trips_of_a_fresh_run_are_six_and_one_for_each_file(world: World, proxy: Proxy) -> None:
    """Everything except the files costs the same, however many there are."""
    write(world, 1, 5)

    asked = deploy(world, proxy)

    assert asked == [["session", "lock", "look", *NEW_TABLE, *5 * ["file"], "objects"]]


def test_round_trips_of_new_files_are_seven_and_one_for_each(world: World, proxy: Proxy) -> None:
    """A later deployment has no table to make."""
    write(world, 1, 2)
    deploy(world, proxy)
    write(world, 3, 5)

    asked = deploy(world, proxy)

    assert asked == [["session", "rows", "lock", "look", "rows", "objects", *3 * ["file"], "objects"]]


def test_round_trips_with_a_deadline_are_as_many(world: World, proxy: Proxy) -> None:
    """In Lambda a run says until when it may hold the lock, in the message that takes it."""
    write(world, 1, 1)
    deploy(world, proxy)
    write(world, 2, 2)

    asked = deploy(world, proxy, context=Context(60))

    assert asked == [["session", "rows", "lock", "look", "rows", "objects", "file", "objects"]]


def test_round_trips_of_a_large_file_are_one_too(world: World, proxy: Proxy) -> None:
    """However many statements it has."""
    world.write("001_many.sql", "CREATE TABLE t (id int);\n" + "INSERT INTO t VALUES (1);\n" * 1000)

    asked = deploy(world, proxy)

    assert asked == [["session", "lock", "look", *NEW_TABLE, "file", "objects"]]


def test_round_trips_with_nothing_to_do_are_two(world: World, proxy: Proxy) -> None:
    """The session is set up and our tables looked for, and the rows are read; with a deadline too."""
    write(world, 1, 20)
    deploy(world, proxy)

    asked = [deploy(world, proxy), deploy(world, proxy, context=Context(60))]

    assert asked == 2 * [[["session", "rows"]]]


def test_round_trips_of_repeatable_files_are_those_of_others(world: World, proxy: Proxy) -> None:
    """Whether one runs for the first time, again, an older text of it, or not at all. That one of several can undo what
    another made is recorded before, in one message."""
    write(world, 1, 1)
    texts = ["SELECT 1", "SELECT 2", "SELECT 1"]
    asked = []
    for text in texts:
        world.write("R__a.sql", text)
        world.write("R__b.sql", f"{text};\n-- b\nSELECT 3;")
        asked += [deploy(world, proxy), deploy(world, proxy)]

    files = ["session", "rows", "lock", "look", "rows", "objects", "outdated", *2 * ["file"], "objects"]
    assert asked[0] == [["session", "lock", "look", *NEW_TABLE, *3 * ["file"], "objects"]]
    assert asked[1:] == [[["session", "rows"]], [files], [["session", "rows"]], [files], [["session", "rows"]]]


def test_round_trips_with_nothing_to_do_and_users_are_five_and_two_logins(world: World, proxy: Proxy) -> None:
    """The groups and each login's role are looked at, and each login is tried."""
    write(world, 1, 2)
    deploy(world, proxy, users=True)

    asked = deploy(world, proxy, users=True)

    assert asked == [["session", "rows", "groups", "login's role", "login's role"], [], []]


def test_round_trips_that_make_two_users_are_21_and_two_logins(world: World, proxy: Proxy) -> None:
    """However much is granted: what is missing is asked for at once, and granted in one message."""
    world.write("001_table.sql", "CREATE TABLE things (id serial); CREATE VIEW all_things AS SELECT * FROM things;")

    asked = deploy(world, proxy, users=True)

    made = ["login's role", "make login"]
    assert asked == [
        [
            *["session", "lock", "groups", "look", *NEW_TABLE, "groups", "make groups", "grant", "COMMIT", "file"],
            *["groups", "what others made", *made, "COMMIT", *made, "share", "COMMIT", "objects"],
        ],
        [],
        [],
    ]


def test_round_trips_of_new_files_with_users_are_six_more_and_two_logins(world: World, proxy: Proxy) -> None:
    """Where users are there, the groups are looked at when the lock is held, and before and after the files."""
    write(world, 1, 1)
    deploy(world, proxy, users=True)
    write(world, 2, 2)

    asked = deploy(world, proxy, users=True)

    after = ["groups", "what others made", "login's role", "login's role", "objects"]
    assert asked == [["session", "rows", "lock", "groups", "look", "rows", "objects", "groups", "file", *after], [], []]


def test_round_trips_after_a_function_without_variables_are_as_many(world: World, proxy: Proxy) -> None:
    """A function without variables, such as a trigger's, keeps nothing that could be out of date in the next file."""
    for number in (1, 2, 3):
        world.write(f"{number:03d}_function.sql", TRIGGER.format(number))

    asked = deploy(world, proxy)

    assert asked == [["session", "lock", "look", *NEW_TABLE, *3 * ["file"], "objects"]]


def test_round_trips_after_a_function_are_a_new_session(world: World, proxy: Proxy) -> None:
    """A function with variables is compiled for its session: the next file gets a new one, which takes the lock while
    it is set up, and sees that nobody was faster."""
    for number in (1, 2, 3):
        world.write(f"{number:03d}_function.sql", FUNCTION.format(number))

    asked = deploy(world, proxy)

    assert asked == [
        ["session", "lock", "look", *NEW_TABLE, "file"],
        ["session", "file"],
        ["session", "file", "objects"],
    ]


def test_round_trips_say_little_about_our_tables_where_nobody_changes_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask for all takes longer than most files: after the first one, and after one that has changed them."""
    sent: list[str] = []
    run_script = Session.run_script

    def noting(session: Session, text: Any, **options: Any) -> Any:
        sent.append(str(text))
        return run_script(session, text, **options)

    monkeypatch.setattr(Session, "run_script", noting)
    world.write("1_a.sql", "CREATE TABLE a ();")
    world.write("2_b.sql", f"GRANT SELECT ON ALL TABLES IN SCHEMA {SCHEMA} TO PUBLIC;")
    world.write("3_c.sql", "CREATE TABLE c ();")
    world.write("4_d.sql", "CREATE TABLE d ();")

    world.deploy()

    asked_for_all = ["aclexplode" in text for text in sent]
    assert asked_for_all == [True, False, True, False]

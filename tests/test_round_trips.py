"""How often a run waits for the database: exact numbers, since a far database makes each of them felt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from harness.proxy import ANSWERED, Link, Place, Proxy, proxy_to
from harness.world import Context, World

FUNCTION = "CREATE FUNCTION f{0}() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN {0}; END $$;"
LOGGING_IN = ("startup", "p ")

# By what the message begins with, what it asks for.
MEANINGS = {
    "set_config(name": "session",
    "FROM pg_attribute": "columns",
    "SELECT id, migration_name": "rows",
    "pg_advisory_lock_shared": "deadline",
    "pg_try_advisory_lock": "lock",
    "SAVEPOINT db_setup_file": "file",
    'to_regclass(\'"public"."schema_migrations_progress"\')': "progress",
    "relkind IN ('r', 'p', 'f') AND n.nspname": "any table",
    'CREATE TABLE "public"."schema_migrations"': "create",
    'ALTER TABLE "public"."schema_migrations"': "add columns",
    "pg_advisory_unlock_all": "unlock",
    "SELECT g.name, r.oid IS NOT NULL": "groups",
    "r.rolvaliduntil IS NOT NULL": "login's role",
}
MAKE_TABLE = ["BEGIN", "any table", "create", "add columns", "COMMIT"]


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
    """Stands before the database; it can read the conversation, since there is no TLS."""
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


def test_round_trips_of_a_fresh_run_are_twelve_and_one_for_each_file(world: World, proxy: Proxy) -> None:
    """Everything beside the files costs the same, however many there are."""
    write(world, 1, 5)

    asked = deploy(world, proxy)

    before = ["session", "columns", "lock", "columns", *MAKE_TABLE, "columns", "rows", "progress"]
    assert asked == [before + 5 * ["file"]]
    assert len(before) == 12


def test_round_trips_of_new_files_are_seven_and_one_for_each(world: World, proxy: Proxy) -> None:
    """A later deployment has no table to make."""
    write(world, 1, 2)
    deploy(world, proxy)
    write(world, 3, 5)

    asked = deploy(world, proxy)

    before = ["session", "columns", "rows", "lock", "columns", "rows", "progress"]
    assert asked == [before + 3 * ["file"]]


def test_round_trips_with_a_deadline_are_one_more_for_the_lock(world: World, proxy: Proxy) -> None:
    """In Lambda a run says until when it may hold the lock."""
    write(world, 1, 1)
    deploy(world, proxy)
    write(world, 2, 2)

    asked = deploy(world, proxy, context=Context(60))

    before = ["session", "columns", "rows", "deadline", "lock", "columns", "rows", "progress"]
    assert asked == [[*before, "file"]]


def test_round_trips_of_a_large_file_are_one_too(world: World, proxy: Proxy) -> None:
    """However many statements it has."""
    world.write("001_many.sql", "CREATE TABLE t (id int);\n" + "INSERT INTO t VALUES (1);\n" * 1000)

    asked = deploy(world, proxy)

    assert asked[0].count("file") == 1
    assert len(asked[0]) == 13


def test_round_trips_with_nothing_to_do_are_three(world: World, proxy: Proxy) -> None:
    """The session is set up, the tracking table looked at, its rows read; with a deadline too."""
    write(world, 1, 20)
    deploy(world, proxy)

    asked = [deploy(world, proxy), deploy(world, proxy, context=Context(60))]

    assert asked == 2 * [[["session", "columns", "rows"]]]


def test_round_trips_with_nothing_to_do_and_users_are_seven_and_two_logins(world: World, proxy: Proxy) -> None:
    """The groups, each login's role and the creator's default privileges are looked at, and each login is tried."""
    write(world, 1, 2)
    deploy(world, proxy, users=True)

    asked = deploy(world, proxy, users=True)

    state = ["session", "columns", "rows"]
    assert asked == [[*state, "groups", "login's role", "login's role", "groups"], [], []]


def test_round_trips_behind_a_function_are_a_new_session(world: World, proxy: Proxy) -> None:
    """A function in PL/pgSQL is compiled for its session: the next file gets a new one, with all that belongs to it."""
    for number in (1, 2, 3):
        world.write(f"{number:03d}_function.sql", FUNCTION.format(number))

    asked = deploy(world, proxy)

    again = ["session", "lock", "columns", "rows", "progress", "file"]
    first = ["session", "columns", "lock", "columns", *MAKE_TABLE, "columns", "rows", "progress", "file"]
    assert asked == [[*first, "unlock"], [*again, "unlock"], again]

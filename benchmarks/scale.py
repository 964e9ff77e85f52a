"""Far more of everything than most have, one of each, by hand: what it takes, and which function and query take most.

The handler runs in this process, so that it can be looked into: with `cProfile`, which makes Python's part look slower
than it is, and with a clock around every query.
"""

from __future__ import annotations

import cProfile
import itertools
import logging
import os
import pstats
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import initializer
import psycopg2
from session import Session

from benchmarks.contestants import OURS_WITH_USERS
from benchmarks.ground import Ground, Target
from benchmarks.measure import table, tell
from benchmarks.migrations import File, realistic, statements

WAITING = ("psycopg2", "_socket", "_ssl", "lock", "sleep")  # in the names of built-in functions
HEADS = ("", "s", "of it waiting for queries", "queries", "most Python", "most waiting")
MANY_FILES, FUNCTIONS = 10_000, (100, 200, 400, 800)
STATEMENTS = (1000, 10_000, 100_000)
TABLES = (0, 1000, 5000)
DATABASES, EVERY = 200, 50


class Clock:
    """What the queries of one run took, by their first words."""

    def __init__(self) -> None:
        self.took: dict[str, float] = defaultdict(float)
        self.count = 0

    @contextmanager
    def around_queries(self) -> Iterator[None]:
        original = Session.query

        def query(session: Session, statement: Any, args: Any = None) -> Any:
            started = time.perf_counter()
            try:
                return original(session, statement, args)
            finally:
                text = statement if isinstance(statement, str) else statement.as_string(session.connection)
                self.took[" ".join(text[:200].split())[:48]] += time.perf_counter() - started
                self.count += 1

        with mock.patch.object(Session, "query", query):
            yield


def line(name: str, target: Target, folder: Path, users: bool = False) -> list[str]:
    """One run of the handler, looked into."""
    tell(f"  {name}")
    environ = {**OURS_WITH_USERS.environ(folder, target), "CREATE_USERS": str(users).lower()}
    del environ["PYTHONPATH"]
    clock, profile = Clock(), cProfile.Profile()
    with mock.patch.dict(os.environ, environ), mock.patch.object(initializer, "MIGRATIONS_DIR", folder):
        started = time.perf_counter()
        with clock.around_queries():
            profile.runcall(initializer.handler, {}, None)
        took = time.perf_counter() - started
    words, longest = max(clock.took.items(), key=lambda item: item[1])
    waited = sum(clock.took.values())
    return [name, f"{took:.2f}", f"{waited:.2f}", str(clock.count), busiest(profile), f"`{words}` {longest:.2f} s"]


def busiest(profile: cProfile.Profile) -> str:
    """The two functions that took the most themselves, waiting for the server aside."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    own = [(values[2], name) for (file, _, name), values in stats.items() if not any(word in name for word in WAITING)]
    return ", ".join(f"{name} {seconds:.2f} s" for seconds, name in sorted(own, reverse=True)[:2])


@contextmanager
def written(files: Sequence[File]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for file in files:
            (Path(folder) / f"{file.name}.sql").write_text(file.sql)
        yield Path(folder)


def many_files(ground: Ground) -> Iterator[list[str]]:
    for count in (1000, MANY_FILES):
        with written(realistic(count, functions=False)) as folder:
            target = ground.database()
            yield line(f"{count:,} files, fresh", target, folder)
            yield line(f"{count:,} files, nothing to do", target, folder)
            ground.drop(target)


def many_functions(ground: Ground) -> Iterator[list[str]]:
    """Every file makes a function with a %TYPE, and so a new session for the next one."""
    declare = "DECLARE v pg_class.relname%TYPE;"
    text = f"CREATE FUNCTION f{{0}}() RETURNS int LANGUAGE plpgsql AS $$ {declare} BEGIN RETURN {{0}}; END $$;"
    for count in FUNCTIONS:
        with written([File(f"{n:05d}_function", text.format(n)) for n in range(1, count + 1)]) as folder:
            target = ground.database()
            yield line(f"{count:,} files with a function each, fresh", target, folder)
            ground.drop(target)


def many_statements(ground: Ground) -> Iterator[list[str]]:
    for count in STATEMENTS:
        with written([statements(count)]) as folder:
            target = ground.database()
            yield line(f"a file of {count:,} statements, fresh", target, folder)
            ground.drop(target)


def many_tables(ground: Ground) -> Iterator[list[str]]:
    """Made by the admin before, so that the first run has to grant rights on all of them."""
    for count in TABLES:
        with written(realistic(1)) as folder:
            target = ground.database()
            with psycopg2.connect(target.url, sslmode="disable") as conn, conn.cursor() as cur:
                for first in range(0, count, 500):  # a transaction holds a lock on each of its tables
                    cur.execute("".join(f"CREATE TABLE many_{n} (id serial);" for n in range(first, first + 500)))
                    conn.commit()
            conn.close()
            yield line(f"{count:,} tables before, fresh, users on", target, folder, users=True)
            yield line(f"{count:,} tables before, nothing to do, users on", target, folder, users=True)
            ground.drop(target)


def many_databases(ground: Ground) -> Iterator[list[str]]:
    """On one server, with a ROLE_PREFIX each."""
    with written(realistic(1)) as folder:
        for number in itertools.count(1):
            target = ground.database()
            found = line(f"database {number} of one server, fresh, users on", target, folder, users=True)
            if number == 1 or number % EVERY == 0:
                yield found
                yield line(f"database {number}, nothing to do, users on", target, folder, users=True)
            if number == DATABASES:
                return


def scale(ground: Ground, repeats: int) -> None:
    """One round of each."""
    logging.getLogger("db_setup").setLevel(logging.ERROR)
    for title, lines in (
        ("many files", many_files),
        ("many new sessions", many_functions),
        ("many statements", many_statements),
        ("many tables", many_tables),
        ("many databases", many_databases),
    ):
        table(f"At scale: {title}", HEADS, lines(ground))

"""One file of 50 MB, of INSERTs or of COPY, compared with `psql -1 -f` and the same file.

The handler runs in this process and is given its login, as psql is: what is compared is the file.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import initializer
from database import Login
from harness import clients

from benchmarks.contestants import PLAIN
from benchmarks.ground import Ground
from benchmarks.measure import Sample, in_turn, milliseconds, ratio, table, timed, walls

SIZE = 50_000_000  # bytes
TABLE = "CREATE TABLE large (id integer PRIMARY KEY, name text, price numeric(10, 2), note text, at timestamp);\n"
WORDS = ("alpha", "beta", "gamma", "delta", "épsilon", "zeta", "eta", "theta")
HEADS = ("", "psql -1 -f: ms", "db_setup: ms", "to psql")


def inserts() -> Iterator[str]:
    yield TABLE
    for number, (name, price) in enumerate(_values()):
        yield f"INSERT INTO large VALUES ({number}, '{name}', {price}, NULL, '2026-01-02 03:04:05');\n"


def copy(note: str) -> Iterator[str]:
    yield f"{TABLE}COPY large (id, name, price, note, at) FROM stdin;\n"
    for number, (name, price) in enumerate(_values()):
        yield f"{number}\t{name}\t{price}\t{note}\t2026-01-02 03:04:05\n"


def _values() -> Iterator[tuple[str, str]]:
    chance = random.Random(1)
    while True:
        yield " ".join(chance.choices(WORDS, k=8)), f"{chance.random() * 1000:.2f}"


def write(path: Path, lines: Iterator[str]) -> None:
    size = 0
    with path.open("wb") as file:
        while size < SIZE:
            size += file.write(next(lines).encode())
        file.write(b"\\.\n" if "COPY" in path.stem else b"")


def by_psql(ground: Ground, psql: str, path: Path) -> Sample:
    target = ground.database()
    command = [psql, "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", str(path)]
    sample = timed(command, {**PLAIN, **target.libpq})
    ground.drop(target)
    return sample


def by_us(ground: Ground, path: Path) -> Sample:
    target = ground.database()
    where = mock.patch.object(initializer, "MIGRATIONS_DIR", path.parent)
    with mock.patch.dict(os.environ, {**PLAIN, "PGSSLMODE": "disable"}, clear=True), where:
        started = time.perf_counter()
        initializer.handler({}, None, Login(**target.login))
        sample = Sample(time.perf_counter() - started, cpu_s=0, rss_kib=0)  # of this process neither says anything
    ground.drop(target)
    return sample


def large(ground: Ground, repeats: int) -> None:
    logging.getLogger("db_setup").setLevel(logging.ERROR)
    psql = str(clients.client("psql", ground.server.version // 10000))
    kinds: dict[str, Callable[[], Iterator[str]]] = {
        "INSERTs": inserts,
        "COPY": partial(copy, "none"),
        "COPY with NULLs": partial(copy, r"\N"),
    }
    lines = []
    for kind, make in kinds.items():
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            path = Path(folder) / f"001_{kind}.sql"
            write(path, make())
            jobs = {"psql": partial(by_psql, ground, psql, path), "db_setup": partial(by_us, ground, path)}
            samples = in_turn(jobs, repeats)
        theirs, ours = samples["psql"], samples["db_setup"]
        lines.append((kind, milliseconds(walls(theirs)), milliseconds(walls(ours)), ratio(ours, theirs)))
    table(f"A file of {SIZE // 1_000_000} MB", HEADS, lines)

"""One file of 50 MB in every shape, compared with `psql -1 -f` and the same file: time, and memory of the process.

The handler is given its login, as psql is, and its time is that of the handler alone: what is compared is the file.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness import clients

from benchmarks import REPOSITORY
from benchmarks.contestants import PLAIN
from benchmarks.ground import Ground
from benchmarks.measure import Sample, in_turn, milliseconds, ratio, rss_mib, table, timed, walls

SIZE = 50_000_000  # bytes
TABLE = "CREATE TABLE large (id integer PRIMARY KEY, name text, price numeric(10, 2), note text, at timestamp);\n"
WORDS = ("alpha", "beta", "gamma", "delta", "épsilon", "zeta", "eta", "theta")
GOOD_END, BAD_END = ";\n", "nonsense;\n"  # of the last statement, or one after it
HEADS = ("", "psql -1 -f: ms", "db_setup: ms", "to psql", "psql: MiB", "db_setup: MiB", "fails at its end: MiB")

# boto3 is loaded, as in Lambda.
HANDLE = """
import json, sys, time; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import boto3, initializer
from database import Endpoint, Login
to = json.loads(sys.argv[3])
login = Login(Endpoint(to["host"], to["port"], to["dbname"]), to["username"], to["password"])
initializer.MIGRATIONS_DIR = Path(sys.argv[2])
started = time.perf_counter()
try:
    initializer.handler({}, None, login)
except initializer.MigrationError as exc:
    assert "syntax error" in str(exc), exc
Path(sys.argv[4]).write_text(str(time.perf_counter() - started))
"""


def inserts() -> Iterator[str]:
    yield TABLE
    for number, (name, price) in enumerate(_values()):
        yield f"INSERT INTO large VALUES ({number}, '{name}', {price}, NULL, '2026-01-02 03:04:05');\n"


def copy(note: str, first_note: str = "none") -> Iterator[str]:
    yield f"{TABLE}COPY large (id, name, price, note, at) FROM stdin;\n"
    for number, (name, price) in enumerate(_values()):
        yield f"{number}\t{name}\t{price}\t{note if number else first_note}\t2026-01-02 03:04:05\n"


def _values() -> Iterator[tuple[str, str]]:
    chance = random.Random(1)
    while True:
        yield " ".join(chance.choices(WORDS, k=8)), f"{chance.random() * 1000:.2f}"


def one_value(letter: str, last: str = "") -> Iterator[str]:
    """One statement with one value, which fills the file; it has no end yet."""
    letters = letter * (SIZE // len(letter.encode()))
    yield f"CREATE TABLE large (a text);\nINSERT INTO large VALUES ('{letters}{last}')\n"


def write(path: Path, lines: Iterator[str], end: str) -> None:
    size, is_copy = 0, False
    with path.open("wb") as file:
        for line in lines:
            size += file.write(line.encode())
            is_copy = is_copy or "FROM stdin" in line
            if size >= SIZE:
                break
        file.write(b"\\.\n" if is_copy else b"")
        file.write(end.encode())


def by_psql(ground: Ground, psql: str, path: Path) -> Sample:
    target = ground.database()
    command = [psql, "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", str(path)]
    sample = timed(command, {**PLAIN, **target.libpq})
    ground.drop(target)
    return sample


def by_us(ground: Ground, folder: Path) -> Sample:
    target = ground.database()
    with tempfile.NamedTemporaryFile("r") as took:
        arguments = [str(REPOSITORY / "db_setup"), str(folder), json.dumps(target.login), took.name]
        sample = timed([sys.executable, "-c", HANDLE, *arguments], {**PLAIN, "PGSSLMODE": "disable"})
        sample = replace(sample, wall_s=float(took.read()))
    ground.drop(target)
    return sample


def large(ground: Ground, repeats: int) -> None:
    psql = str(clients.client("psql", ground.server.version // 10000))
    four_bytes = "\U0001f600"
    kinds: dict[str, Callable[[], Iterator[str]]] = {
        "many INSERTs": inserts,
        "COPY": partial(copy, "none"),
        "COPY with NULLs": partial(copy, r"\N"),
        "COPY, one character of four bytes": partial(copy, "none", four_bytes),
        "one INSERT with one value": partial(one_value, "a"),
        "… of letters with two bytes": partial(one_value, "\u0436"),
        "… one character of four bytes": partial(one_value, "a", four_bytes),
    }
    lines = []
    for kind, make in kinds.items():
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            good, bad = Path(folder) / "good", Path(folder) / "bad"
            for place, end in ((good, GOOD_END), (bad, BAD_END)):
                place.mkdir()
                write(place / "001_large.sql", make(), end)
            jobs = {
                "psql": partial(by_psql, ground, psql, good / "001_large.sql"),
                "db_setup": partial(by_us, ground, good),
                "failing": partial(by_us, ground, bad),
            }
            samples = in_turn(jobs, repeats)
        theirs, ours = samples["psql"], samples["db_setup"]
        times = milliseconds(walls(theirs)), milliseconds(walls(ours)), ratio(ours, theirs)
        lines.append((kind, *times, *map(rss_mib, samples.values())))
    table(f"A file of {SIZE // 1_000_000} MB", HEADS, lines)

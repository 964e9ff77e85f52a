"""What a long file needs of the function's memory, and what is refused for needing more than there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Timer

import database
import initializer
import pytest
from harness.world import ADMIN, ADMIN_PASSWORD, World

LIMIT_MB = 115  # of which 90 are for what is not the file
TABLE = "CREATE TABLE long (a text);\n"

# The handler in a process that gets no more memory of its own than a function of this size has.
CODE = """
import resource, sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import boto3, initializer
from database import Endpoint, Login
boto3.client("secretsmanager")
if sys.argv[8]:
    resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[8]) << 20,) * 2)
initializer.MIGRATIONS_DIR = Path(sys.argv[2])
endpoint = Endpoint(sys.argv[3], int(sys.argv[4]), sys.argv[5])
try:
    initializer.handler(None, None, Login(endpoint, sys.argv[6], sys.argv[7]))
except initializer.InitializerError as exc:
    print(exc)
else:
    print("applied")
status = Path("/proc/self/status")
if status.exists():
    peak = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
else:  # as on a Mac, which counts in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak)
"""


def run_with_memory(world: World, is_enforced: bool, limit_mb: int = LIMIT_MB) -> tuple[str, int]:
    """What the handler said in a function of this size, and the most memory that it had, in bytes."""
    place = world.server.host, str(world.server.port), world.dbname
    enforced = str(limit_mb) if is_enforced else ""
    folders = Path(initializer.__file__).parent, world.folder
    environ = {**os.environ, **world.environ, "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(limit_mb)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *folders, *place, ADMIN, ADMIN_PASSWORD, enforced],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, peak = done.stdout.strip().rsplit("\n", 1)
    return said, int(peak)


def one_statement(size: int, letter: str, last: str, end: str) -> str:
    return f"{TABLE}INSERT INTO long VALUES ('{letter * (size // len(letter.encode()))}{last}'){end};\n"


def copy(size: int, letter: str, last: str, end: str) -> str:
    row = f"{letter * 99}\n"
    return f"{TABLE}COPY long FROM stdin;\n{row * (size // len(row.encode()))}{last}\n\\.\nSELECT 1{end};\n"


# The largest file of each kind, in bytes, that such a function is allowed.
ALLOWED = {
    "one statement, ASCII": (one_statement, 6_600_000, "a", ""),
    "one statement, two bytes a character": (one_statement, 5_870_000, "\u0436", ""),
    "one statement, one character of four bytes": (one_statement, 3_300_000, "a", "\U0001f600"),
    "COPY, one character of four bytes": (copy, 5_280_000, "a", "\U0001f600"),
}


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.slow
def test_file_that_is_allowed_fits_the_memory_of_the_function(world: World, kind: str) -> None:
    """Failing, which takes more, and good: the process gets no more than the function has."""
    shape, size, letter, last = ALLOWED[kind]
    world.write("001_long.sql", shape(size, letter, last, " nonsense oops"))
    failed, peak_of_failed = run_with_memory(world, is_enforced=False)
    world.write("001_long.sql", shape(size, letter, last, ""))

    applied, peak_of_applied = run_with_memory(world, is_enforced=True)

    assert "001_long.sql:" in failed
    assert 'syntax error at or near "' in failed
    assert applied == "applied"
    # libpq only leaves something out where memory is short: what it takes otherwise shows here.
    assert max(peak_of_failed, peak_of_applied) < LIMIT_MB << 20


@pytest.mark.parametrize("kind", ALLOWED)
def test_file_that_does_not_fit_the_memory_of_the_function_is_refused(world: World, kind: str) -> None:
    """Lambda would kill the function without a word; nothing has run, of the files before it neither."""
    shape, size, letter, last = ALLOWED[kind]
    world.write("001_before.sql", "CREATE TABLE before (a int);\n")
    world.write("002_long.sql", shape(round(size * 1.06), letter, last, ""))

    with pytest.raises(initializer.MigrationError) as caught:
        world.deploy(AWS_LAMBDA_FUNCTION_MEMORY_SIZE=str(LIMIT_MB))

    assert str(caught.value) == (
        f"002_long.sql has {round(size * 1.06) >> 20} MB and needs 116 MB of memory, but the function has 115 MB. "
        "Nothing has been applied. Raise memorySize to 116 or more, or split the file and its long statements; rows "
        "of COPY need the least."
    )
    assert world.tables() == []


@pytest.mark.slow
def test_long_statement_is_held_three_times_and_long_file_once(world: World) -> None:
    """By psycopg2 and twice by libpq: the file's text, which is read again if it is needed, is not kept meanwhile."""
    size = 24 << 20
    row = f"INSERT INTO long VALUES ('{'a' * 9000}');\n"
    world.write("001_short.sql", TABLE)
    _, peak = run_with_memory(world, is_enforced=False, limit_mb=1000)
    world.write("002_many.sql", row * (size // len(row)))
    _, peak_of_many = run_with_memory(world, is_enforced=False, limit_mb=1000)
    world.write("003_one.sql", one_statement(size, "a", "", "").removeprefix(TABLE))
    said, peak_of_one = run_with_memory(world, is_enforced=False, limit_mb=1000)

    assert said == "applied"
    assert (peak_of_many - peak) / size < 1.5
    assert (peak_of_one - peak) / size < 3.4


def test_file_that_changes_while_its_long_statement_runs_stops_the_run(world: World) -> None:
    """Its text was forgotten, and what is read now is not what has failed."""
    row = f"'{'a' * (2 << 20)}'"
    world.write(
        "001_long.sql",
        f"CREATE TABLE long (a text, b text, c int);\n"
        f"INSERT INTO long VALUES ({row}, pg_sleep(2)::text, random()::int / 0);",
    )
    change = Timer(0.6, world.write, ["001_long.sql", "SELECT 1;"])
    change.start()

    with pytest.raises(initializer.MigrationError) as caught:
        world.deploy()
    change.join()

    assert str(caught.value) == (
        "001_long.sql: it was changed while this run read it, so it is not applied. "
        "Nothing has been applied. Invoke again when nobody writes to it."
    )
    assert (world.tables(), world.applied()) == ([], [])


def test_rows_that_do_not_fit_the_memory_are_refused(world: World) -> None:
    """libpq holds the rows of a SELECT: Lambda would end the function without a word, and retry."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.write("002_b.sql", "CREATE TABLE b (i int);\nSELECT repeat('x', 1000) FROM generate_series(1, 1000000);")

    said, peak = run_with_memory(world, is_enforced=False)

    assert said == (
        "002_b: a statement returns more rows than the function's memory holds. It is rolled back. Write "
        "SELECT count(*) FROM (…) q, or PERFORM in a DO block, or raise memorySize; then deploy again. "
        "Applied in this run: 001_a."
    )
    assert peak < LIMIT_MB << 20
    assert (world.tables(), world.applied()) == (["a"], ["001_a"])


def test_memory_is_not_looked_at_where_nothing_limits_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of Lambda the system may not be Linux, and each look costs time while an answer comes."""
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", raising=False)
    monkeypatch.setattr(database, "_resident_mb", lambda: pytest.fail("looked at"))
    world.write("001_a.sql", "CREATE TABLE a (i int); SELECT repeat('x', 1000) FROM generate_series(1, 1000);")

    assert [entry["name"] for entry in world.deploy()["applied"]] == ["001_a"]

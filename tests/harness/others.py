"""Other sessions that hold locks, and other processes that run the handler at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

import initializer

from harness.process import secrets_manager
from harness.world import REGION, World, rows

WAIT_S = 20
PROGRAM = """
import json, logging, pathlib, sys, time
import initializer

class Context:
    def __init__(self, seconds):
        self.end = time.monotonic() + seconds
    def get_remaining_time_in_millis(self):
        return int((self.end - time.monotonic()) * 1000)

initializer.MIGRATIONS_DIR = pathlib.Path(sys.argv[1])
print("ready", flush=True)
seconds = float(sys.stdin.readline())
try:
    report = initializer.handler(None, Context(seconds) if seconds else None)
except initializer.InitializerError as exc:
    report = {"error": type(exc).__name__, "message": str(exc)}
print(json.dumps(report))
"""


def wait_until(condition: Callable[[], bool], seconds: float = WAIT_S) -> float:
    """Return as soon as it is so, and say after how many seconds; fail if that takes too long."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"still not so after {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


@contextmanager
def open_transaction(world: World, *statements: str, **login: str) -> Iterator[Any]:
    """Another session in the middle of a transaction that has run these statements; rolled back at the end."""
    with world.connection(**login) as conn:
        for statement in ("BEGIN", *statements):
            rows(conn, statement)
        yield conn


def sessions(world: World) -> list[tuple[Any, ...]]:
    """What the server still does for the handler in this database."""
    return world.sql(
        "SELECT pid, state, query FROM pg_stat_activity "
        "WHERE application_name = 'db_setup' AND datname = current_database()"
    )


def deadlocks(world: World) -> int:
    """How many deadlocks PostgreSQL has ended in this database, by its own count (kept up to date within 1 s)."""
    time.sleep(1.1)
    return int(world.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0])


class Ended(NamedTuple):
    """How a process ended: the handler's report, or {error, message}; and what it logged."""

    status: int
    report: dict[str, Any]
    log: str


class Handlers:
    """Processes that have everything loaded, and call the handler on a word."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.processes = processes

    def go(self, seconds: float = 0) -> None:
        """Start them all; `seconds` is what each context has left, 0 means no context."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()

    def ended(self, timeout: float = 60) -> list[Ended]:
        with ThreadPoolExecutor(len(self.processes)) as pool:
            return list(pool.map(lambda process: self._ended(process, timeout), self.processes))

    def _ended(self, process: subprocess.Popen[str], timeout: float) -> Ended:
        out, log = process.communicate(timeout=timeout)
        return Ended(process.returncode, json.loads(out) if out else {}, log)


@contextmanager
def handlers(world: World, count: int, url: str = "", prefix: Sequence[str] = ()) -> Iterator[Handlers]:
    """So many processes, ready to start; killed at the end whatever they do.

    `url` is where they find the secrets, if not on this machine's own address; `prefix` a program that starts them.
    """
    with ExitStack() as standing:
        environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("DB_", "PG"))},
            **world.environ,
            "AWS_ENDPOINT_URL": url or standing.enter_context(secrets_manager()),
            "AWS_DEFAULT_REGION": REGION,
            "PYTHONPATH": str(Path(initializer.__file__).parent),
        }
        command = [*prefix, sys.executable, "-c", PROGRAM, str(world.folder)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, env=environ, **pipes) for _ in range(count)]
        try:
            for process in processes:
                assert process.stdout
                assert process.stdout.readline() == "ready\n", process.communicate(timeout=WAIT_S)[1]
            yield Handlers(processes)
        finally:
            for process in processes:
                process.kill()
                process.communicate(timeout=WAIT_S)

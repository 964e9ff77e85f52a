"""The handler in a process of its own for each run, forked from one that has imported everything.

As a program it is that first process. It ends, and its child with it, when the pipe to it closes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

DB_SETUP = Path(__file__).resolve().parents[2] / "db_setup"
ANSWER_TIMEOUT_S = 60
POLL_S = 0.01


@dataclass(frozen=True)
class Ending:
    """How a run of the handler ended: with a report, with an error, or with neither, because it was killed."""

    report: Optional[dict[str, Any]]
    error: str  # its message; of an error that is not ours the whole traceback
    is_ours: bool  # an InitializerError
    log: str


class Forked:
    """Runs the handler, one process at a time. A process that has ended keeps its id until the next one starts."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder = server, folder

    def start(self, environ: dict[str, str], migrations: Path, limit_s: float) -> int:
        """Invoke the handler with this much time, in a new process; returns its id."""
        for path in (self._log, self._result):
            path.write_text("")
        order = {
            "environ": environ,
            "migrations": str(migrations),
            "limit_s": limit_s,
            "log": str(self._log),
            "result": str(self._result),
        }
        assert self._server.stdin
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        line = self._line(ANSWER_TIMEOUT_S)
        assert line, "the process that forks does not answer"
        return int(line)

    def wait(self, timeout_s: float) -> Optional[Ending]:
        """How the run ended; None where it goes on for longer than this."""
        if self._line(max(0.0, timeout_s)) is None:
            return None
        text = self._result.read_text()
        result = json.loads(text) if text else {}
        return Ending(
            result.get("report"), result.get("error", ""), result.get("is_ours", False), self._log.read_text()
        )

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    @property
    def _result(self) -> Path:
        return self._folder / "result"

    def _line(self, timeout_s: float) -> Optional[str]:
        assert self._server.stdout
        if not select.select([self._server.stdout], [], [], timeout_s)[0]:
            return None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks has died")
        return line


@contextmanager
def forked_runs(folder: Path, environ: dict[str, str]) -> Iterator[Forked]:
    """The process that forks, with this environment at first; it and its child are gone afterwards."""
    folder.mkdir()
    command = [sys.executable, "-B", __file__]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # In a session of its own: Ctrl-C is for us, who end it by closing the pipe.
    with subprocess.Popen(command, env={**os.environ, **environ}, start_new_session=True, **pipes) as server:
        yield Forked(server, folder)


# --- The process that forks -----------------------------------------------------------------------------------------


class Context:
    """Lambda's context: the time runs."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - time.monotonic()) * 1000)


def _invoke(order: dict[str, Any]) -> dict[str, Any]:
    import initializer  # noqa: PLC0415  # imported by the parent already, which alone has the path

    initializer.MIGRATIONS_DIR = Path(order["migrations"])
    try:
        return {"report": initializer.handler({}, Context(order["limit_s"]))}
    except BaseException as exc:
        ours = isinstance(exc, initializer.InitializerError)
        return {"error": str(exc) if ours else traceback.format_exc(), "is_ours": ours}


def _child(order: dict[str, Any]) -> None:
    """One run; never returns."""
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(order["environ"])
    Path(order["result"]).write_text(json.dumps(_invoke(order)))
    os._exit(0)


def _wait(pid: int) -> None:
    """Until the child has ended, or, where our own parent has, until it is killed. It stays a zombie: its id cannot
    become another process's while somebody may still send it signals."""
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            os.kill(pid, signal.SIGKILL)
            sys.exit()


def main() -> None:
    """Fork for each line that comes in; tell the child's id, and when it has ended."""
    sys.path.insert(0, str(DB_SETUP))
    import boto3  # noqa: PLC0415
    import initializer  # noqa: F401, PLC0415

    boto3.client("secretsmanager")  # reads botocore's descriptions of services, which takes longest
    while True:
        line = sys.stdin.readline()  # one line at a time comes, so nothing is left in a buffer when we select
        if not line:
            return
        pid = os.fork()
        if pid == 0:
            _child(json.loads(line))
        print(pid, flush=True)
        _wait(pid)
        print("ended", flush=True)
        next_line_is_next_run(pid)


def next_line_is_next_run(pid: int) -> None:
    """Let go of the child's id once nobody can mean it any more."""
    select.select([sys.stdin], [], [])
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

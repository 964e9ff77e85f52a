"""Tries mutants in a copy of the repository, one after the other: what is slow to start is started once.

Reads one JSON object a line, and answers with one. Each run of pytest is a fork of this process, which has imported
what all tests import (but nothing of db_setup) and has one PostgreSQL for all of them. Needs a system that can fork.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

import pytest

COPY = Path(__file__).resolve().parents[2]
TEST_TIMEOUT_S = 120
OPTIONS = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", f"--timeout={TEST_TIMEOUT_S}"]


class Given:
    """Gives a running server to conftest.py, and notes which tests failed, and how."""

    def __init__(self, server: Any) -> None:
        self.__name__ = "given"  # pytest's name for this plugin
        self.server = server
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}
        self.broken: list[str] = []  # what never came to a test

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(f"{report.nodeid}: not collected")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.when == "call":
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[report.nodeid] = str(getattr(crash, "message", report.longrepr))[:2000]
        elif report.failed and report.nodeid not in self.failed:
            self.broken.append(f"{report.nodeid}: failed in its {report.when}")
        elif report.passed and report.when == "call":
            self.passed.append(report.nodeid)


class Worker:
    """A zygote: its children have the imports and the server."""

    def __init__(self, with_server: bool) -> None:
        self._with_server = with_server
        self._started = ExitStack()
        self._server: Optional[Any] = None
        self._seconds = itertools.count(1)

    def start_server(self) -> None:
        if not self._with_server:
            return
        from harness.server import running_server  # noqa: PLC0415 - of the copy

        self._started.close()
        self._started = ExitStack()
        self._server = self._started.enter_context(running_server())

    def close(self) -> None:
        self._started.close()

    def tried(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run the job's tests on its mutant, if it names one."""
        if not job.get("file"):
            return self._run(job)
        path = COPY / "db_setup" / job["file"]
        original = path.read_text()
        try:
            self._write(path, job["text"])
            return self._run(job)
        finally:
            self._write(path, original)

    def _write(self, path: Path, text: str) -> None:
        """With a time of its own, or Python would take the compiled file of another mutant for this one's."""
        path.write_text(text)
        age = 10 * next(self._seconds)
        os.utime(path, (time.time() - age, time.time() - age))

    def _run(self, job: dict[str, Any]) -> dict[str, Any]:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._be_pytest(job, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
            signal.alarm(TEST_TIMEOUT_S * (1 + len(job["tests"])))  # where even pytest-timeout does not help
            said = answer.read()
            signal.alarm(0)
        os.waitpid(child, 0)
        if said:
            return json.loads(said)
        self.start_server()  # which may hold what the killed run has left
        return {"hung": True, "passed": [], "failed": {}, "broken": []}

    def _be_pytest(self, job: dict[str, Any], writing: int) -> None:
        os.setsid()
        given = Given(self._server)
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            gc.collect()
            own = [] if self._with_server else ["--noconftest"]
            basetemp = f"--basetemp={COPY}.pytest"  # each worker's own
            code = pytest.main([*OPTIONS, basetemp, *own, *job["options"], *job["tests"]], plugins=[given])
            if code not in (0, 1) and not given.broken:
                given.broken.append(f"pytest ended with {int(code)}")
        except BaseException as exc:
            given.broken.append(repr(exc))
        known = {"hung": False, "passed": given.passed, "failed": given.failed, "broken": given.broken}
        with os.fdopen(writing, "wb") as answer:
            answer.write(json.dumps(known).encode())
        os._exit(0)


def import_what_tests_import(with_server: bool) -> None:
    warnings.simplefilter("ignore")
    if not with_server:
        return
    import boto3  # noqa: PLC0415
    import flask  # noqa: F401, PLC0415
    import moto.server  # noqa: F401, PLC0415
    from moto import mock_aws  # noqa: PLC0415

    with mock_aws():
        boto3.client("secretsmanager", region_name="eu-central-1").list_secrets()


def main() -> None:
    with_server = sys.argv[1:] == ["--server"]
    sys.path[:0] = [str(COPY / "tests")]
    os.chdir(COPY)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything else prints is not an answer
    import_what_tests_import(with_server)
    worker = Worker(with_server)
    try:
        worker.start_server()
        for line in sys.stdin:
            print(json.dumps(worker.tried(json.loads(line))), file=answers, flush=True)
    finally:
        worker.close()


if __name__ == "__main__":
    main()

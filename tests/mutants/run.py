"""`make mutants`: whether a test notices each small change that breaks db_setup.

Two kinds of mutants are tried, each in a copy of the repository. Those of the kept list (kept.py) break promises; the
tests that they name must fail. Those that cosmic-ray makes are in the modules that need no database (ROOMS); one of the
tests of that module must fail.

A mutant that no test notices fails the run, unless the list says why. MUTANTS_SECONDS limits the time: then a sample is
tried, which MUTANTS_SEED chooses (default: the commit).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Optional

from harness import environment
from harness.temporary import temporary_home

from mutants.kept import REPOSITORY, ListError, Mutant, kept_mutants, source

MADE_BY_TOOL = Path(__file__).with_name("generate.py")
BATCH = 12  # tests that are run together where nothing is changed
EVERY = 20  # of the mutants that cosmic-ray can make
# What only crashes breaks no promise: such a mutant has a mistake of its own.
CRASHES = re.compile(r"\b(NameError|SyntaxError|IndentationError|ImportError|ModuleNotFoundError|UnboundLocalError)\b")
FAST = "not linear_time and not long_text and not memory and not takes_no_time"
ROOMS: dict[str, list[str]] = {
    "sql_scanner.py": ["tests/test_scanner.py", "tests/test_files.py"],
    "migration_files.py": ["tests/test_files.py"],
    "file_names.py": ["tests/test_files.py"],
    "planning.py": ["tests/test_files.py"],
    "masking.py": ["tests/test_masking.py"],
    "config.py": ["tests/test_pure_modules.py"],
    "common.py": ["tests/test_pure_modules.py"],
    "report.py": ["tests/test_pure_modules.py"],
    "outside.py": ["tests/test_pure_modules.py"],
}


@dataclass
class Tally:
    """What came of the mutants of one kind. In `wrong` is what proves nothing, whatever came of it."""

    kind: str
    noticed: int = 0
    excused: int = 0
    survived: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: int = 0

    @property
    def tried(self) -> int:
        return self.noticed + self.excused + len(self.survived)

    def __str__(self) -> str:
        share = 100 * self.noticed / self.tried if self.tried else 100
        excused = f", {self.excused} excused in the list" if self.excused else ""
        left = f", {self.left} not tried" if self.left else ""
        return f"{self.kind}: {self.noticed} of {self.tried} noticed ({share:.1f} %){excused}{left}"


class Found(NamedTuple):
    """What to show of a mutant, the mutant, and the text of the file that it changes."""

    shown: str
    mutant: Mutant
    text: str


class Copy:
    """A copy of the repository, and the worker that runs tests in it."""

    def __init__(self, folder: Path, with_server: bool) -> None:
        ignored = [line.strip().strip("/") for line in (REPOSITORY / ".gitignore").read_text().split()]
        shutil.copytree(REPOSITORY, folder, symlinks=True, ignore=shutil.ignore_patterns(".git", *ignored))
        for name in (".postgres", ".venv"):  # what was fetched or installed already
            if (REPOSITORY / name).exists():
                (folder / name).symlink_to(REPOSITORY / name)
        self._process = subprocess.Popen(
            [sys.executable, folder / "tests/mutants/worker.py", *(["--server"] if with_server else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        )

    def run(self, tests: list[str], options: list[str], file: str = "", text: str = "") -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        job = {"tests": tests, "options": options, "file": file, "text": text}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a worker has ended; its error is above")
        return json.loads(answer)

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=60)


class Trial:
    """Tries mutants in several copies at a time, until they are all tried or the time is up."""

    def __init__(self, with_server: bool, workers: int, end: float, verbose: bool) -> None:
        self._with_server = with_server
        self._workers = workers
        self._end = end
        self._verbose = verbose
        self._known: dict[str, str] = {}  # by test: what is wrong with it where nothing was changed
        self._lock = threading.Lock()

    def of(
        self,
        kind: str,
        mutants: Iterator[Found],
        count: int,
        options: Sequence[str] = (),
        batches: Sequence[list[str]] = (),
    ) -> Tally:
        """Each mutant comes with what to show of it, and the text of the changed file.

        `batches` are tests to run without a change first, since several together take less time.
        """
        tally = Tally(kind)
        waiting: queue.Queue[Any] = queue.Queue(maxsize=4)
        failures: list[BaseException] = []

        def work(folder: Path) -> None:
            copy: Optional[Copy] = None
            try:
                copy = Copy(folder, self._with_server)
                while (found := waiting.get()) is not None:
                    if failures or self._is_over(tally):
                        continue
                    if isinstance(found, Found):
                        self._try(copy, tally, list(options), found)
                    else:
                        self._run_without_a_change(copy, found, list(options))
            except BaseException as exc:
                failures.append(exc)
                while waiting.get() is not None:
                    pass
            finally:
                if copy:
                    copy.close()

        with temporary_home() as home:
            threads = [
                threading.Thread(target=work, args=(home / f"{kind.split(maxsplit=1)[0]}-{number}",))
                for number in range(self._workers)
            ]
            for thread in threads:
                thread.start()
            for batch in batches:
                waiting.put(batch)
            for found in mutants:
                if failures or self._is_over(tally):
                    break
                waiting.put(found)
            for _ in threads:
                waiting.put(None)
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        tally.left = count - tally.tried - len(tally.wrong)
        return tally

    def _is_over(self, tally: Tally) -> bool:
        """The time is up, and at least one was tried, however slow the machine is."""
        return tally.tried > 0 and time.monotonic() > self._end

    def _run_without_a_change(self, copy: Copy, tests: list[str], options: list[str]) -> None:
        """Note which tests pass; what is wrong with the others shows when they are run alone."""
        answer = copy.run(tests, options)
        self._known.update({test: "" for test in tests if not complaint(answer, test)})

    def _try(self, copy: Copy, tally: Tally, options: list[str], found: Found) -> None:
        shown, mutant, text = found
        if mutant.survives and not mutant.tests:
            with self._lock:
                tally.excused += 1
            return
        unknown = [test for test in mutant.tests if test not in self._known]
        if unknown:
            answer = copy.run(unknown, options)
            for test in unknown:
                self._known[test] = complaint(answer, test)
        wrong = "; ".join(filter(None, (self._known[test] for test in mutant.tests)))
        if wrong:
            self._say(tally.wrong, f"{shown}: without the change, {wrong}")
            return
        is_kept = tally.kind.startswith("kept")
        answer = copy.run(list(mutant.tests), options if is_kept else [*options, "-x"], mutant.file, text)
        verdict = judge(answer, mutant.tests, needs_all=is_kept)
        if verdict == "noticed":
            with self._lock:
                tally.noticed += 1
                if self._verbose:
                    print(f"noticed {shown}", flush=True)
        elif verdict == "survived" and mutant.survives:
            with self._lock:
                tally.excused += 1
        elif verdict == "survived":
            self._say(tally.survived, f"SURVIVED {shown}\n{mutant.shown()}")
        else:
            self._say(tally.wrong, f"{shown}: {verdict}")

    def _say(self, where: list[str], what: str) -> None:
        with self._lock:
            where.append(what)
            print(what, flush=True)


def belongs(node: str, test: str) -> bool:
    return node == test or node.startswith((f"{test}[", f"{test}::"))


def complaint(answer: dict[str, Any], test: str) -> str:
    """What is wrong with a test where nothing was changed; empty where it passes."""
    failed = [f"{node} fails: {said[:300]}" for node, said in answer["failed"].items() if belongs(node, test)]
    if failed or answer["hung"]:
        return "; ".join(failed) or f"{test} hangs"
    if answer["broken"]:
        return f"{test}: {'; '.join(answer['broken'])}"
    return "" if any(belongs(node, test) for node in answer["passed"]) else f"{test} does not exist"


def judge(answer: dict[str, Any], tests: tuple[str, ...], needs_all: bool) -> str:
    """noticed, survived, or what is wrong with the mutant."""
    if answer["hung"]:
        return "noticed"
    if answer["broken"] and not answer["failed"]:
        return f"no test ran: {'; '.join(answer['broken'])[:300]}"
    for said in answer["failed"].values():
        if needs_all and CRASHES.search(said):
            return f"it only crashes: {said[:300]}"
    noticed = [any(belongs(node, test) for node in answer["failed"]) for test in tests]
    return "noticed" if (all if needs_all else any)(noticed) else "survived"


# --- The two kinds --------------------------------------------------------------------------------------------------


def of_the_list(seed: str, only: str) -> list[Found]:
    """Each with the text of its file; raises ListError where the list does not fit the code."""
    found = [
        Found(
            f"{mutant.name} ({mutant.file}), {mutant.document}: {mutant.promise}",
            mutant,
            mutant.applied_to(source(mutant.file)),
        )
        for mutant in kept_mutants()
    ]
    chosen = [one for one in found if re.search(only, f"{one.mutant.name} {one.mutant.file}")]
    random.Random(seed).shuffle(chosen)
    return chosen


def in_batches(mutants: Sequence[Found]) -> list[list[str]]:
    tests = list(dict.fromkeys(test for found in mutants for test in found.mutant.tests))
    return [tests[at : at + BATCH] for at in range(0, len(tests), BATCH)]


@contextmanager
def made_by_the_tool(seed: str, every: int) -> Iterator[tuple[int, Iterator[Found]]]:
    """How many there are, and each with the text of its file."""
    excuses = json.loads(Path(__file__).with_name("excused.json").read_text())
    python = environment.ensure(REPOSITORY / ".mutants", Path(__file__).with_name("requirements.txt"))
    command = [python, MADE_BY_TOOL, seed, str(every), REPOSITORY / "db_setup", *ROOMS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        count = int(process.stdout.readline())

        def mutants() -> Iterator[Found]:
            for line in process.stdout or ():
                known = json.loads(line)
                file, before, after = known["file"], known["before"].strip(), known["after"].strip()
                reason = excuses.get(f"{file}: {before} -> {after}", "")
                mutant = Mutant(known["operator"], file, before, after, tests=tuple(ROOMS[file]), survives=reason)
                yield Found(f"{file}:{known['line']} {known['operator']}", mutant, known["text"])

        try:
            yield count, mutants()
        finally:
            process.kill()


def default_seed() -> str:
    """The commit, or the day where there is none."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() or date.today().isoformat()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", usage='make mutants ARGS="OPTION …"')
    parser.add_argument("--only", default="", help="those of the kept list whose name or file has this")
    parser.add_argument("--kind", choices=("both", "kept", "made"), default="both")
    parser.add_argument("--every", type=int, default=EVERY, help="make each Nth mutant that cosmic-ray can make")
    parser.add_argument("--verbose", action="store_true", help="name those that are noticed, too")
    options = parser.parse_args()
    seconds = float(os.environ.get("MUTANTS_SECONDS", "0"))
    seed = os.environ.get("MUTANTS_SEED") or default_seed()
    workers = max(int(os.environ.get("WORKERS", "2")), 1)
    if os.environ.get("TEST_DATABASE_URL"):
        workers = 1  # roles are per server
    started = time.monotonic()
    end = started + seconds if seconds else float("inf")
    tallies = []
    try:
        kept = of_the_list(seed, options.only)
    except ListError as exc:
        print(exc)
        return 1
    print(f"seed {seed}" + (f", for {seconds:.0f} s" if seconds else ""), flush=True)
    if options.kind != "made":
        until = started + 0.6 * seconds if seconds and options.kind == "both" else end
        batches = [] if seconds else in_batches(kept)
        trial = Trial(True, workers, until, options.verbose)
        tallies.append(trial.of("kept list", iter(kept), len(kept), batches=batches))
    if options.kind != "kept" and not options.only:
        with made_by_the_tool(seed, options.every) as (count, mutants):
            trial = Trial(False, workers, end, options.verbose)
            tallies.append(trial.of("made by cosmic-ray", mutants, count, ["-k", FAST]))
    for tally in tallies:
        print(tally)
    print(f"{time.monotonic() - started:.0f} s")
    return int(any(tally.survived or tally.wrong or not tally.tried for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())

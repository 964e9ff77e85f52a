"""Processes with a stopwatch, again and again in turn; medians; tables in Markdown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Callable

STOPWATCH = Path(__file__).with_name("stopwatch.py")
RUN_TIMEOUT_S = 900


@dataclass(frozen=True)
class Sample:
    """What one process took, its children included."""

    wall_s: float
    cpu_s: float
    rss_kib: int


class FailedError(Exception):
    """A command that is measured has failed; the message is what it said."""


def timed(command: Sequence[str], environ: dict[str, str]) -> Sample:
    """Run it once, in this environment alone."""
    with tempfile.NamedTemporaryFile("r") as result:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(STOPWATCH), result.name, *command],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise FailedError(f"{' '.join(command)[:300]}: {(done.stdout + done.stderr)[-1500:]}")
        return Sample(**json.load(result))


def in_turn(jobs: Mapping[str, Callable[[], Sample]], repeats: int) -> dict[str, list[Sample]]:
    """Each job `repeats` times, all of them in every round, each round beginning with another one: what else the
    machine does meanwhile meets all alike."""
    names = list(jobs)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(repeats):
        at = number * len(names) // repeats
        for name in names[at:] + names[:at]:
            tell(f"  round {number + 1} of {repeats}: {name}")
            samples[name].append(jobs[name]())
    return samples


def milliseconds(values: Iterable[float]) -> str:
    """Median, and the spread from the least to the most."""
    values = [1000 * value for value in values]
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def walls(samples: Sequence[Sample]) -> list[float]:
    return [sample.wall_s for sample in samples]


def ratio(samples: Sequence[Sample], to: Sequence[Sample]) -> str:
    return f"{median(walls(samples)) / median(walls(to)):.2f}"


def cpu_ms(samples: Sequence[Sample]) -> str:
    return f"{1000 * median(sample.cpu_s for sample in samples):,.0f}"


def rss_mib(samples: Sequence[Sample]) -> str:
    return f"{median(sample.rss_kib for sample in samples) / 1024:,.0f}"


def table(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print it now: a long benchmark that is ended early has said what it knows."""
    print(f"\n### {title}\n")
    print(f"| {' | '.join(heads)} |")
    print(f"| --- |{' ---: |' * (len(heads) - 1)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")
    sys.stdout.flush()


def tell(text: str) -> None:
    """Progress, in addition to the tables."""
    if not os.environ.get("QUIET"):
        print(text, file=sys.stderr, flush=True)

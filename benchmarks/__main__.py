"""`make bench`: prints tables in Markdown. `make bench ARGS="fresh nothing --repeats 9"` takes some of them."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from typing import Callable

from harness.server import NoServerError

from benchmarks import cold_start, compare, contestants, large, parts, round_trips, scale
from benchmarks.ground import Ground, ground
from benchmarks.measure import table, tell

Benchmark = Callable[[Ground, int], None]


def compared(benchmark: Callable[..., None]) -> Benchmark:
    """One that all contestants take part in."""

    def run(ground: Ground, repeats: int) -> None:
        benchmark(ground, contestants.field(ground.server, tell), repeats)

    return run


BENCHMARKS: dict[str, Benchmark] = {
    "fresh": compared(compare.fresh),
    "nothing": compared(compare.nothing_to_do),
    "trips": compared(round_trips.round_trips),
    "cold": cold_start.cold,
    "large": large.large,
    "growth": compared(compare.growth),
    "scale": scale.scale,
}
BY_HAND = ("scale",)


def machine(ground: Ground) -> None:
    """What the figures were measured on; they mean nothing without it."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        (
            "machine",
            f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores, load {load}",
        ),
        ("Python", platform.python_version()),
        ("PostgreSQL", ground.server.how),
        ("for db_setup and the floors", parts.lambda_versions()),
        *((one.name, one.version) for one in contestants.field(ground.server, tell)),
    ]
    table("What is compared", ("", "version"), lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = ", ".join(BENCHMARKS)
    parser.add_argument(
        "tables", nargs="*", choices=[*BENCHMARKS, []], metavar="table", help=f"{names}; all but scale if none is named"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each measurement")
    options = parser.parse_args()
    chosen = options.tables or [name for name in BENCHMARKS if name not in BY_HAND]
    try:
        with ground() as here:
            machine(here)
            for name in chosen:
                tell(f"--- {name}")
                BENCHMARKS[name](here, options.repeats)
    except NoServerError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

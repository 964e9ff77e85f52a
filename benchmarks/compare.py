"""Whole processes compared: a fresh apply, nothing to do, and how both grow with the number of files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Optional

import psycopg2

from benchmarks.contestants import FLOOR_WITH_SECRET, OURS, Contestant, Ours
from benchmarks.delay import distance
from benchmarks.ground import Ground, Target
from benchmarks.measure import Sample, cpu_ms, in_turn, milliseconds, ratio, rss_mib, table, tell, timed, walls
from benchmarks.migrations import File, realistic

ROUND_TRIPS_MS = (0, 1, 5)
FRESH_FILES, APPLIED_FILES = 100, 1000
GROWTH = (10, 100, 1000, 10_000)
GROWTH_OF_ALL = 1000  # beyond that only ours and the floor: the others' own apply takes minutes
PROBES = 200


@contextmanager
def laid_out(contestants: Sequence[Contestant], files: Sequence[File]) -> Iterator[dict[str, Path]]:
    """A folder for each, with the files as it wants them."""
    with tempfile.TemporaryDirectory(prefix="bench-") as root:
        folders: dict[str, Path] = {}
        for one in contestants:
            folders[one.name] = Path(root) / str(len(folders))
            folders[one.name].mkdir()
            one.lay_out(folders[one.name], files)
        yield folders


def start(one: Contestant, folder: Path, target: Target) -> Sample:
    return timed(one.command(folder, target), one.environ(folder, target))


def fresh_run(ground: Ground, one: Contestant, folder: Path, port: int) -> Sample:
    """In a new database, which takes no part in the time."""
    target = ground.database()
    try:
        return start(one, folder, ground.at(target, port))
    finally:
        ground.drop(target)


def round_trip_ms(target: Target) -> float:
    """What a SELECT takes there, measured: the proxy itself takes some of it."""
    conn = psycopg2.connect(target.url, sslmode="disable")
    conn.autocommit = True
    took = []
    with conn.cursor() as cur:
        for _ in range(PROBES):
            started = time.perf_counter()
            cur.execute("SELECT 1")
            took.append(time.perf_counter() - started)
    conn.close()
    return 1000 * median(took)


def report(title: str, samples: dict[str, list[Sample]]) -> None:
    floor, ours = samples[FLOOR_WITH_SECRET.name], samples[OURS.name]
    heads = ("", "wall ms, median (least to most)", "to the floor", "to ours", "CPU ms", "memory MiB")
    table(
        title,
        heads,
        (
            (
                name,
                milliseconds(s.wall_s for s in each),
                ratio(each, floor),
                ratio(each, ours),
                cpu_ms(each),
                rss_mib(each),
            )
            for name, each in samples.items()
        ),
    )


def fresh(ground: Ground, contestants: Sequence[Contestant], repeats: int) -> None:
    """Every file is pending."""
    with laid_out(contestants, realistic(FRESH_FILES, with_large=True)) as folders:
        for milliseconds_away in ROUND_TRIPS_MS:
            with distance(ground.server.host, ground.server.port, milliseconds_away) as port:
                actual = round_trip_ms(ground.at(ground.database(), port))
                tell(f"fresh apply, {actual:.2f} ms away")
                jobs = {one.name: partial(fresh_run, ground, one, folders[one.name], port) for one in contestants}
                samples = in_turn(jobs, repeats)
            report(
                f"Fresh apply of {FRESH_FILES} files, round trip {milliseconds_away} ms (measured {actual:.2f})",
                samples,
            )


def applied(ground: Ground, one: Contestant, folder: Path) -> Target:
    """A database in which all is applied, by this contestant itself."""
    tell(f"  {one.name} applies its files")
    target = ground.database()
    start(one, folder, target)
    return target


def nothing_to_do(ground: Ground, contestants: Sequence[Contestant], repeats: int) -> None:
    """Every file is applied; none is in PL/pgSQL, which would make no difference here."""
    contestants = [one for one in contestants if one.keeps_book and not (isinstance(one, Ours) and one.types)]
    with laid_out(contestants, realistic(APPLIED_FILES, functions=False)) as folders:
        targets = {one.name: applied(ground, one, folders[one.name]) for one in contestants}
        for milliseconds_away in ROUND_TRIPS_MS:
            with distance(ground.server.host, ground.server.port, milliseconds_away) as port:
                there = {name: ground.at(target, port) for name, target in targets.items()}
                actual = round_trip_ms(there[OURS.name])
                tell(f"nothing to do, {actual:.2f} ms away")
                jobs = {one.name: partial(start, one, folders[one.name], there[one.name]) for one in contestants}
                samples = in_turn(jobs, repeats)
            title = f"Nothing to do, {APPLIED_FILES:,} files applied, round trip {milliseconds_away} ms"
            report(f"{title} (measured {actual:.2f})", samples)


def growth(ground: Ground, contestants: Sequence[Contestant], repeats: int) -> None:
    """Nothing to do with more and more files; and the run that has applied them, once."""
    contestants = [one for one in contestants if one.keeps_book and (one is OURS or not isinstance(one, Ours))]
    jobs, applying = {}, {}
    with ExitStack() as stack:
        for count in GROWTH:
            chosen = [one for one in contestants if count <= GROWTH_OF_ALL or one in (OURS, FLOOR_WITH_SECRET)]
            folders = stack.enter_context(laid_out(chosen, realistic(count, functions=False)))
            for one in chosen:
                tell(f"  {one.name} applies {count:,} files")
                target = ground.database()
                key = f"{one.name}|{count:,}"
                applying[key] = start(one, folders[one.name], target)
                jobs[key] = partial(start, one, folders[one.name], target)
        samples = in_turn(jobs, repeats)
    lines = []
    for one in contestants:
        before: Optional[tuple[int, float]] = None
        for count in GROWTH:
            each = samples.get(f"{one.name}|{count:,}")
            if each is None:
                continue
            once = applying[f"{one.name}|{count:,}"]
            cpu = min(sample.cpu_s for sample in each)  # what disturbs only adds
            more = f"{1e6 * (cpu - before[1]) / (count - before[0]):,.0f}" if before else ""
            before = count, cpu
            took = (
                milliseconds(walls(each)),
                cpu_ms(each),
                more,
                rss_mib(each),
                f"{once.wall_s:,.1f}",
                rss_mib([once]),
            )
            lines.append((one.name, f"{count:,}", *took))
    heads = ("", "files", "nothing to do: wall ms", "CPU ms", "µs of CPU per file more", "MiB", "fresh apply: s", "MiB")
    table("Growth with the number of files (none in PL/pgSQL)", heads, lines)

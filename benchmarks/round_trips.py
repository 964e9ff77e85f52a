"""How often each waits for the server: counted, not timed. tests/test_round_trips.py holds ours to exact numbers."""

from __future__ import annotations

from collections.abc import Sequence

from harness.proxy import ANSWERED, Link, Place, Proxy, proxy_to

from benchmarks.compare import laid_out, start
from benchmarks.contestants import Contestant, Ours
from benchmarks.ground import Ground
from benchmarks.measure import table, tell
from benchmarks.migrations import File, realistic

FEW, MORE, MANY = 10, 20, 100


class Count:
    """Answers that were waited for, and connections, of one process."""

    def __init__(self) -> None:
        self.trips = self.connections = 0

    def __call__(self, place: Place, link: Link) -> None:
        if place.phase == ANSWERED:
            self.trips += 1
            self.connections = max(self.connections, place.connection)


def counted(ground: Ground, proxy: Proxy, one: Contestant, files: Sequence[File]) -> tuple[Count, Count]:
    """In a new database, and once more with nothing to do."""
    fresh, again = Count(), Count()
    target = ground.at(ground.database(), proxy.port)
    with laid_out([one], files) as folders:
        for count in (fresh, again) if one.keeps_book else (fresh,):
            proxy.watch(count)
            start(one, folders[one.name], target)
            proxy.drain()
            proxy.close_links()
    ground.drop(target)
    return fresh, again


def round_trips(ground: Ground, contestants: Sequence[Contestant], repeats: int) -> None:
    """One round: these numbers do not vary."""
    lines = []
    with proxy_to(ground.server.host, ground.server.port) as proxy:
        for one in contestants:
            if isinstance(one, Ours) and one.needs_tls:
                continue  # the proxy has to read what passes
            tell(f"  {one.name}")
            few, nothing = counted(ground, proxy, one, realistic(FEW, functions=False))
            more, _ = counted(ground, proxy, one, realistic(MORE, functions=False))
            many, _ = counted(ground, proxy, one, realistic(MANY))
            per_file = (more.trips - few.trips) / (MORE - FEW)
            lines.append(
                (
                    one.name,
                    f"{few.trips - FEW * per_file:.0f}",
                    f"{per_file:g}",
                    f"{nothing.trips} on {nothing.connections}" if one.keeps_book else "",
                    f"{many.trips} on {many.connections}",
                )
            )
    heads = ("", "fresh run", "and for each file", "nothing to do", f"{MANY} files, 10 in PL/pgSQL")
    table("Round trips, logging in included, on so many connections", heads, lines)

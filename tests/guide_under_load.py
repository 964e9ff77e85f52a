"""`make load`: how long an application has to wait for the guide's recipes, and for what one would write without them.

Every case runs on a copy of the same database, under the same load: short reads and writes of the limited login. Prints
the guide's table, in Markdown. Takes about 10 minutes.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import sys
from pathlib import Path
from typing import Optional

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "db_setup"), str(REPOSITORY / "tests")]

from harness import guide, load  # noqa: E402
from harness.database import create_admin  # noqa: E402
from harness.server import NoServerError, Server, running_server  # noqa: E402
from harness.world import ADMIN, ADMIN_PASSWORD  # noqa: E402

# The text for recipes that have no wait to measure.
WORDS = {
    "Add a column": ("no wait", "no wait"),
    "Rename a column": ("the old code fails", "both names live"),
    "Rename a table": ("the old code fails", "both names live"),
    "Change a type": ("no wait for some types", "which these are"),
    "Drop a column or a table": ("the old code fails", "the code first"),
    "Add an enum value": ("the file fails", "two files"),
    "Use another schema than public": ("permission denied", "with its rights"),
    "Change a view or a function": ("refused, or two of them", "one file"),
    "Turn on row-level security": ("all rows vanish", "policies first"),
    "Bring rows along": ("the file fails where they are", "they may be there"),
    "Undo a change": ("data are lost", "a new file"),
}
HEAD = (
    "| operation | naively: reads / writes wait | this way: reads / writes wait | takes, naively / this way |\n"
    "| --- | --- | --- | --- |"
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(server: Server, case: load.Case, highest: int, repeat: int) -> tuple[load.Figures, load.Figures]:
    """Naively and as the guide says, in turns; the median of each figure."""
    found: dict[bool, list[load.Figures]] = {True: [], False: []}
    for _ in range(repeat):
        for naively, figures in found.items():
            figures.append(load.run_case(server, case, highest, naively))
            say(f"  {'naively' if naively else 'as the guide says'}: {figures[-1]}")
            if figures[-1].errors:
                raise SystemExit("The application's statements failed: these figures mean nothing.")
    return load.median(found[True]), load.median(found[False])


def table(server: Server, highest: int, repeat: int, only: Optional[str]) -> list[str]:
    """The lines below the head, in the guide's order."""
    cases = {case.title: case for case in load.CASES}
    lines = []
    for recipe in guide.recipes():
        if only and recipe.title != only:
            continue
        if recipe.title in cases:
            say(recipe.title)
            lines.append(load.line(cases[recipe.title], *measure(server, cases[recipe.title], highest, repeat)))
        else:
            naive, this_way = WORDS[recipe.title]
            lines.append(f"| [{recipe.title}](#{guide.anchor(recipe.title)}) | {naive} | {this_way} | |")
    return lines


def caption(server: Server, highest: int, repeat: int, seconds: float) -> str:
    figures = load.quiet(server, highest, seconds)
    major = f"{server.version // 10000}.{server.version % 10000}"
    return (
        f"Measured by `make load` on {datetime.date.today():%d %B %Y}: PostgreSQL {major}, {os.cpu_count()} cores, "
        f"{highest:,} rows, the longest wait of any statement, the median of {repeat} runs; nothing was "
        f"written through to the disk. Without a migration the longest read took {load.shown(figures.reads)}, the "
        f"longest write {load.shown(figures.writes)}: anything that short is noise of the machine. What is "
        "long grows with the table."
    )


def queue(server: Server, highest: int, seconds: float) -> str:
    plain, migration = (load.behind_a_long_reader(server, highest, seconds, plainly) for plainly in (True, False))
    return (
        f"Measured, with a report that keeps its transaction open for {seconds:.0f} s: after an `ALTER TABLE` in a "
        f"plain session the longest read waited {load.shown(plain.reads)}, after the same statement in a migration "
        f"{load.shown(migration.reads)}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of orders and of events")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", help="the title of one recipe")
    options = parser.parse_args()
    logging.getLogger("db_setup").setLevel(logging.ERROR)
    try:
        with running_server() as server:
            say(f"PostgreSQL: {server.how}. Making {options.rows:,} rows …")
            create_admin(server, ADMIN, ADMIN_PASSWORD)
            load.build_template(server, options.rows)
            lines = table(server, options.rows, options.repeat, options.only)
            print("\n".join([HEAD, *lines]), end="\n\n", flush=True)
            if not options.only:
                print(caption(server, options.rows, options.repeat, 10), end="\n\n")
                print(queue(server, options.rows, 10))
    except NoServerError as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

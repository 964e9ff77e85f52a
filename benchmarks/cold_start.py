"""The first invocation in a new sandbox, with nothing to do and users on: where its time goes, and what would help."""

from __future__ import annotations

import compileall
import json
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Callable, Optional

from benchmarks import parts
from benchmarks.compare import start
from benchmarks.contestants import OURS_WITH_USERS
from benchmarks.cpu_limit import limit
from benchmarks.delay import distance
from benchmarks.ground import Ground
from benchmarks.measure import FailedError, milliseconds, table, tell
from benchmarks.migrations import realistic
from benchmarks.sandbox import SHARE, Start, cold_start
from benchmarks.secrets_front import front_with_tls

LEADS = Path(__file__).parent / "leads"
STAGES = Path(__file__).with_name("stages.py")
FILES = 100
AWAY_MS = 1
COMPILED = "compiled"

# Name, module of leads/ (none: ours as it is), whether the folder brings bytecode.
VARIANTS = (
    ("as it is", "", False),
    ("loader of one service", "loader", False),
    ("client made in init", "client_in_init", False),
    ("signed by hand, sent by http.client", "signed_by_hand", False),
    ("bytecode in the asset", "", True),
)


@contextmanager
def deployed(ground: Ground) -> Iterator[tuple[Path, Path, dict[str, str]]]:
    """A function with all its files applied: its code without and with bytecode, and its variables."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        code, compiled = root / "code", root / COMPILED
        code.mkdir()
        OURS_WITH_USERS.lay_out(code, realistic(FILES, functions=False))
        for path in LEADS.glob("*.py"):
            shutil.copy(path, code / f"benchmark_lead_{path.name}")
        target = ground.database()
        start(OURS_WITH_USERS, code, target)
        shutil.copytree(code, compiled)
        # The asset's times are all 1980, so that only bytecode which is not compared with its source counts.
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(str(compiled), quiet=1, invalidation_mode=unchecked)
        port = stack.enter_context(distance(ground.server.host, ground.server.port, AWAY_MS))
        environ = OURS_WITH_USERS.environ(code, ground.at(target, port))
        environ.update(stack.enter_context(front_with_tls(ground.secrets_url, root)), PGSSLMODE="require")
        del environ["PYTHONPATH"]
        yield code, compiled, environ


def rounds(jobs: Mapping[str, Callable[[], Start]], repeats: int) -> dict[str, list[Start]]:
    """In turn, as everything."""
    found: dict[str, list[Start]] = {name: [] for name in jobs}
    for number in range(repeats):
        for name, job in jobs.items():
            tell(f"  round {number + 1} of {repeats}: {name}")
            found[name].append(job())
    return found


def cold(ground: Ground, repeats: int) -> None:
    """Every variant, in three ways of being given CPU."""
    with deployed(ground) as (code, compiled, environ), limit() as group:
        ways: list[tuple[str, Optional[float], Optional[float]]] = [("a whole CPU", None, None)]
        if group:
            ways.append((f"init with a whole CPU, then {SHARE:.2f} of it (as Lambda has it)", None, SHARE))
            ways.append((f"{SHARE:.2f} of a CPU", SHARE, SHARE))
        else:
            tell("no control group for the CPU is to be had here (Linux, root): only at full speed")
        for title, init_share, share in ways:
            start_it = partial(cold_start, environ=environ, limit=group, init_share=init_share, share=share)
            jobs = {}
            for name, module, brings_bytecode in VARIANTS:
                handler = f"benchmark_lead_{module}.handler" if module else "initializer.handler"
                jobs[name] = partial(start_it, compiled if brings_bytecode else code, handler)
            report(title, rounds(jobs, repeats))
        where_the_time_goes(code, compiled, environ, repeats)


def report(title: str, found: dict[str, list[Start]]) -> None:
    base = median(each.whole_s for each in found[VARIANTS[0][0]])
    heads = ("", "init ms", "CPU", "first invocation ms", "CPU", "both ms", "to as it is")
    table(
        f"Cold start, {title}; nothing to do, {FILES} files, users on, {AWAY_MS} ms away, TLS everywhere",
        heads,
        (
            (
                name,
                milliseconds(s.init_s for s in starts),
                f"{1000 * median(s.init_cpu_s for s in starts):,.0f}",
                milliseconds(s.first_s for s in starts),
                f"{1000 * median(s.first_cpu_s for s in starts):,.0f}",
                f"{1000 * median(s.whole_s for s in starts):,.0f}",
                f"{median(s.whole_s for s in starts) / base:.2f}",
            )
            for name, starts in found.items()
        ),
    )


def where_the_time_goes(code: Path, compiled: Path, environ: dict[str, str], repeats: int) -> None:
    """stages.py, in a new process each time, without and with bytecode."""
    found: dict[str, list[list[float]]] = {}
    for _ in range(repeats):
        for column, folder in enumerate((code, compiled)):
            variables = {**environ, "PYTHONPATH": f"{folder}:{parts.lambda_packages().python_path}"}
            done = subprocess.run(
                [sys.executable, "-S", str(STAGES)],
                env=variables,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if done.returncode:
                raise FailedError(done.stderr[-1500:])
            for name, wall, cpu in json.loads(done.stdout):
                columns = found.setdefault(name, [[], [], []])
                if column == 0:
                    columns[0].append(wall)
                    columns[1].append(cpu)
                else:
                    columns[2].append(cpu)
    heads = ("", "wall ms", "CPU ms", "CPU ms with bytecode")
    lines = ((name, *(f"{1000 * median(values):,.1f}" for values in columns)) for name, columns in found.items())
    table("Where a cold start's time goes, at full speed (indented: a part of the line above)", heads, lines)

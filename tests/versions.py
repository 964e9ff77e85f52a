"""`make versions`: the tests on every supported PostgreSQL, and on every Python that is found, pairwise.

The servers come from npm. Each is tested once; the Pythons take turns, the oldest with the oldest server and the newest
with the newest one. Arguments go to pytest. MAJORS="13 18" takes these servers only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENTS = REPOSITORY / ".versions"
SERVERS = ("13", "14", "15", "16", "17", "18")
PYTHONS = tuple(f"3.{minor}" for minor in range(9, 16))


def pythons() -> dict[str, str]:
    """An interpreter for each minor version that is there, on the path or made by pyenv; oldest first."""
    found = {}
    for version in PYTHONS:
        by_pyenv = sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
        candidates = filter(None, [shutil.which(f"python{version}"), *by_pyenv[-1:]])
        works = next((path for path in candidates if makes_environments(path)), None)
        if works:
            found[version] = works
    running = f"3.{sys.version_info.minor}"
    found.setdefault(running, sys.executable)
    return {version: found[version] for version in PYTHONS if version in found}


def makes_environments(interpreter: str) -> bool:
    """It is not a shim of a missing Python, and has what Debian packs separately."""
    words = [interpreter, "-c", "import ensurepip, venv"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def environment(version: str, interpreter: str) -> str:
    """The Python of a virtual environment with the locked dependencies; made on first use."""
    folder = ENVIRONMENTS / version
    ready, lock = folder / "ready", REPOSITORY / "requirements-dev.txt"
    if not ready.exists() or ready.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [folder / "bin" / "python", "-m", "pip"]
        # The lock is complete: what it lists is installed as it is, and nothing is resolved.
        install = ["install", "-q", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r", str(lock)]
        subprocess.run([*pip, *install], check=True)
        subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)
        ready.touch()
    return str(folder / "bin" / "python")


def pairs(servers: tuple[str, ...], versions: list[str]) -> list[tuple[str, str]]:
    """Every server with one Python, and every Python with at least one server."""
    steps = max(len(servers), len(versions))
    at = lambda names, step: names[round(step * (len(names) - 1) / max(steps - 1, 1))]  # noqa: E731
    return [(at(servers, step), at(versions, step)) for step in range(steps)]


def main() -> int:
    found = pythons()
    servers = tuple(os.environ.get("MAJORS", "").split()) or SERVERS
    if unknown := sorted({*servers} - {*SERVERS}):
        sys.exit(f"MAJORS can name {', '.join(SERVERS)}, not {', '.join(unknown)}")
    versions = list(found)
    if servers != SERVERS:  # each once, and no further Python
        versions = [versions[0], versions[-1]][-len(servers) :]
    results = []
    for server, version in pairs(servers, versions):
        python = environment(version, found[version])
        started = time.monotonic()
        run = subprocess.run(
            [python, "-m", "pytest", "-q", "-n", os.environ.get("WORKERS", "2"), *sys.argv[1:]],
            cwd=REPOSITORY,
            env={**os.environ, "TEST_POSTGRES": "npm", "TEST_POSTGRES_NPM_MAJOR": server},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if run.returncode:
            print(run.stdout)
        counts = re.findall(r"^=*\s*(\d+ .*?(?:passed|failed).*?) in ", run.stdout, re.MULTILINE)
        verdict = counts[-1] if counts else f"pytest ended with {run.returncode}"
        results.append(run.returncode)
        print(f"PostgreSQL {server:2}  Python {version:4}  {verdict}  {time.monotonic() - started:.0f} s", flush=True)
    return int(any(results))


if __name__ == "__main__":
    sys.exit(main())

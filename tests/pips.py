"""`make pips`: requirements-dev.txt, installed into throw-away environments by old pips and by the newest one.

Each pip gets the newest Python here that it runs on.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Optional

from harness import environment
from harness.temporary import temporary_home
from versions import pythons

# Of Python 3.9.2 in Debian 11, the last of 3.9 and 3.10, the first of 3.12 and of 3.13, and the newest.
PIPS = ("20.3.4", "23.0.1", "23.2.1", "24.2", "newest")


def main() -> int:
    failed = []
    with temporary_home() as home:
        for number, version in enumerate(sys.argv[1:] or PIPS):
            place = home / str(number)
            python = made(place, version)
            if python is None:
                print(f"pip {version}: not tried, as no Python here runs it", flush=True)
                continue
            started = time.monotonic()
            try:
                environment.install(python, environment.DEV, place)
                verdict = f"installed, {time.monotonic() - started:.0f} s"
            except environment.SetupError as exc:
                failed.append(version)
                verdict = str(exc)
            print(f"{named(python)}: {verdict}", flush=True)
    return int(bool(failed))


def made(place: Path, version: str) -> Optional[Path]:
    """The Python of a new environment with this pip; None if no Python runs it."""
    for name, interpreter in reversed(pythons().items()):
        folder = place / name
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        python = folder / "bin" / "python"
        wanted = ["--upgrade", "pip"] if version == "newest" else [f"pip=={version}"]
        environment.pip(python, "install", "-q", "--no-deps", *wanted, temporary=place)
        if runs(python):
            return python
    return None


def runs(python: Path) -> bool:
    """Whether this pip runs on this Python: `list` imports what `--version` does without."""
    return subprocess.run([python, "-m", "pip", "list"], capture_output=True, check=False).returncode == 0


def named(python: Path) -> str:
    """The versions of pip and Python."""
    words = subprocess.run(
        [python, "-m", "pip", "--version"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    return f"pip {words[1]}, Python {words[-1].rstrip(')')}"


if __name__ == "__main__":
    sys.exit(main())

"""Virtual environments that hold what a lock file says, whichever pip is there and whatever was published since.

A lock file is complete: it lists every package, also those that others require, with hashes. pip installs it as it is
(`--no-deps`) and resolves nothing; `pip check` then proves that nothing was missing.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Union

from harness.cache import alone, elsewhere, say

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO, DEV = REPOSITORY / "requirements-demo.txt", REPOSITORY / "requirements-dev.txt"
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"

# The user's pip configuration decides where packages come from, but not which ones, nor where they go.
PIP_SETTINGS = {"PIP_CONSTRAINT": os.devnull, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
# Python compiles what is imported when it is imported first; most of moto and botocore never is.
LOCKED = ("--no-deps", "--require-hashes", "--no-compile")


class SetupError(Exception):
    """An environment cannot be made; the message says why."""


def ensure(folder: Path, lock: Path, python: str = sys.executable) -> Path:
    """Return the Python of the environment `folder`, which is made from scratch unless it is whole and fits `lock`."""
    with alone(f"{folder.name.lstrip('.')}.lock"):
        if not is_ready(folder, lock):
            _build(folder, lock, python)
    return folder / "bin" / "python"


def is_ready(folder: Path, lock: Path) -> bool:
    """Whether it was made from this lock file, by a Python that an upgrade of the system has not replaced since."""
    try:
        return (folder / "installed").read_text() == _fingerprint(folder, lock)
    except OSError:
        return False


def install(python: Path, lock: Path, temporary: Path) -> None:
    """Install what the lock file says, and nothing else; fails if anything that is required is not in it."""
    pip(python, "install", "-q", *LOCKED, "-r", lock, temporary=temporary)
    pip(python, "check", temporary=temporary)


def pip(python: Path, *arguments: Union[str, Path], temporary: Path) -> None:
    """Run pip, whose temporary files go into a folder of `temporary`."""
    _run([python, "-m", "pip", *arguments], {**elsewhere(temporary), **PIP_SETTINGS})


def _fingerprint(folder: Path, lock: Path) -> str:
    python = subprocess.run([folder / "bin" / "python", "-c", VERSION], capture_output=True, text=True, check=False)
    return f"{hashlib.sha256(lock.read_bytes()).hexdigest()} Python {python.stdout}"


def _build(folder: Path, lock: Path, python: str) -> None:
    packages = lock.read_text().count("==")
    say(f"Installing {lock.name} into {folder.name}, once (at most {packages} packages) …")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _run([python, "-m", "venv", folder], elsewhere(folder))
    install(folder / "bin" / "python", lock, folder)
    shutil.rmtree(folder / "tmp")
    (folder / "installed").write_text(_fingerprint(folder, lock))  # last: without it all of this is done again


def _run(command: list[Union[str, Path]], environ: dict[str, str]) -> None:
    """Run a command; what it prints is shown only where it fails."""
    done = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise SetupError(f"{' '.join(map(str, command))} failed:\n{done.stdout.strip()}")

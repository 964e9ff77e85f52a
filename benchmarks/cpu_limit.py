"""A part of one CPU for a process, by Linux's control groups (v2 or v1), as root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Optional

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 20_000  # short, so that a short start meets the limit many times


class Limit:
    """A control group; the processes in it share what it is given."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    def set(self, share: Optional[float]) -> None:
        """So much of one CPU from now on; None: all."""
        quota = None if share is None else int(PERIOD_US * share)
        if (self._folder / "cpu.max").exists():
            (self._folder / "cpu.max").write_text(f"{quota or 'max'} {PERIOD_US}")
        else:
            (self._folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota or -1))


@contextmanager
def limit() -> Iterator[Optional[Limit]]:
    """A group of our own, gone afterwards; None where this machine does not let us make one."""
    version_1 = (ROOT / "cpu" / "cpu.cfs_quota_us").exists()
    folder = (ROOT / "cpu" if version_1 else ROOT) / f"db-setup-bench-{os.getpid()}"
    found = None
    with suppress(OSError):
        if not version_1:
            (ROOT / "cgroup.subtree_control").write_text("+cpu")
        folder.mkdir()
        if (folder / ("cpu.cfs_quota_us" if version_1 else "cpu.max")).exists():
            found = Limit(folder)
    try:
        yield found
    finally:
        with suppress(OSError):
            folder.rmdir()

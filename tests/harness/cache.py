"""`.postgres/` of the checkout: what is fetched once and kept, and the locks under which that is done.

Standard library only: it is used before anything is installed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".postgres"


def say(text: str) -> None:
    """Tell what takes longer than two seconds, before it begins."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def alone(what: str = "lock") -> Iterator[None]:
    """One process at a time does this: another one that wanted it too then finds it done."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / what).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another process, which is installing the same …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `folder` at the end: where `folder` exists, it is whole.

    Temporary files of the commands run meanwhile (by the environment that `elsewhere` returns) are in it as well: what
    an interruption leaves is removed by the next attempt, and nothing is left outside the checkout.
    """
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    shutil.rmtree(part / "tmp", ignore_errors=True)
    part.rename(folder)


def elsewhere(folder: Path) -> dict[str, str]:
    """The environment of a command whose temporary files are to be in `folder`/tmp."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(temporary)}

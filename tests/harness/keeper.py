"""Waits until its standard input closes, then removes the folder given first: temporary files, a server's data.

The other end of that pipe is held by the process that needs the folder: it closes when that process ends, also by
kill -9, where no clean-up of its own could run. If a command follows, it runs until then.
Called as: keeper.py FOLDER [UID GID COMMAND [ARGUMENT …]]
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

REMOVE_TIMEOUT_S = 30


def main() -> int:
    """Return the command's exit status."""
    folder, *command = sys.argv[1:]
    process = _start(*command) if command else None
    while process is None or process.poll() is None:
        if select.select([sys.stdin], [], [], 0.1 if process else None)[0]:
            if process:
                _end(process)
            _remove(folder)
            break
    return process.returncode if process else 0


def _start(uid: str, gid: str, *command: str) -> "subprocess.Popen[bytes]":
    # Only root can become somebody else, and needs to: PostgreSQL refuses to run as root.
    account: Any = {"user": int(uid), "group": int(gid), "extra_groups": []} if os.geteuid() == 0 else {}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, **account)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End PostgreSQL: first by rolling back what is open, then with less and less patience."""
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(signum)
        try:
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue


def _remove(folder: str) -> None:
    """Remove it, and what other processes that are ending still write into it."""
    end = time.monotonic() + REMOVE_TIMEOUT_S
    while os.path.exists(folder) and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())

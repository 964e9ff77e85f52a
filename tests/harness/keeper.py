"""Runs the command given to it until its standard input closes, then ends it and removes the folder given first.

The other end of that pipe is held by the process that needs the server: it closes when that process ends, also by
kill -9, where no clean-up of its own could run. Called as: keeper.py FOLDER UID GID COMMAND [ARGUMENT …]
"""

import os
import select
import shutil
import signal
import subprocess
import sys
from typing import Any


def main() -> int:
    """Return the command's exit status."""
    folder, uid, gid, *command = sys.argv[1:]
    # Only root can become somebody else, and needs to: PostgreSQL refuses to run as root.
    account: Any = {"user": int(uid), "group": int(gid), "extra_groups": []} if os.geteuid() == 0 else {}
    process: subprocess.Popen[bytes] = subprocess.Popen(command, stdin=subprocess.DEVNULL, **account)
    while process.poll() is None:
        if select.select([sys.stdin], [], [], 0.1)[0]:
            _end(process)
            shutil.rmtree(folder, ignore_errors=True)
    return process.returncode


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End PostgreSQL: first by rolling back what is open, then with less and less patience."""
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(signum)
        try:
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())

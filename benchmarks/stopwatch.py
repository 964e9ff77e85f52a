"""Runs a command and writes what it took, as JSON: `python stopwatch.py RESULT COMMAND…`.

A small process on purpose: Linux counts the memory of the process that starts another as that one's own, until it has
become the other program.
"""

import json
import os
import subprocess
import sys
import time


def main() -> int:
    result, command = sys.argv[1], sys.argv[2:]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    # macOS counts bytes, Linux KiB.
    rss = usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    with open(result, "w") as file:
        json.dump({"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "rss_kib": rss}, file)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())

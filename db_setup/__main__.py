"""The terminal: `python3 db_setup status`, and what else `python3 db_setup --help` lists, by the handler of the Lambda.

Not part of what is uploaded. The login comes from the secrets' variables, or from DATABASE_URL: then boto3 is not
needed, and no users are made.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for python -m, which would look elsewhere

try:
    import psycopg2
except ModuleNotFoundError as exc:
    sys.exit(f"{exc}: python3 -m pip install psycopg2-binary")

import initializer
import migration_files
import secret_store
from database import InitializerError, Login
from initializer import Config, ConfigError
from migration_files import Migration, MigrationError, Row
from sql_scanner import Script

ABOUT = {
    "status": "what is applied, pending, edited …; changes nothing",
    "migrate": "do what a deployment does, without Lambda's limit of 15 minutes",
    "dry_run": "run what is pending, and roll it back",
    "rotate": "give both users new credentials",
}
TICK_S = 0.25
BOLD, RED, GREEN, YELLOW, CYAN = 1, 31, 32, 33, 36
SECTIONS = {  # of a report that is shown, with the colours of their names
    **dict.fromkeys(("tried", "applied", "adopted"), GREEN),
    **dict.fromkeys(("pending", "new"), CYAN),
    **dict.fromkeys(("edited", "renumbered", "missing", "duplicates", "unfinished", "running"), YELLOW),
    **{"users": 0, "warnings": YELLOW, "notes": YELLOW, "problems": RED},
}


# --- Output ---------------------------------------------------------------------------------------------------------


def painted(text: str, colour: int, stream: Any) -> str:
    """In this ANSI colour, on a terminal that has colours and an environment that wants them."""
    wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{colour}m{text}\033[0m" if wanted and text else text


class Screen(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """The log on stderr, seconds first; on a terminal its last line stays alive below it, with the time that passes."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.started, self.last = time.monotonic(), "starting"
        self.is_live = self.stream.isatty() and os.environ.get("TERM") != "dumb"

    def filter(self, record: logging.LogRecord) -> Any:
        """The last line of a run is left out: the report, or the error, says the same."""
        return not record.getMessage().startswith(("done ", "failed ")) and super().filter(record)

    def format(self, record: logging.LogRecord) -> str:
        self.last = record.getMessage()
        text = f"{time.monotonic() - self.started:6.1f} s  {self.last}"
        return painted(text, YELLOW, self.stream) if record.levelno > logging.INFO else text

    def emit(self, record: logging.LogRecord) -> None:
        self.clear()
        super().emit(record)

    def show_time(self) -> None:
        text = f"{time.monotonic() - self.started:6.0f} s  … {self.last}"
        with self.lock or nullcontext():  # in which a line of the log is written, too
            self._rewrite(text[: shutil.get_terminal_size().columns - 1])

    def clear(self) -> None:
        self._rewrite("")

    def _rewrite(self, text: str) -> None:
        if self.is_live:
            self.stream.write(f"\r{text}\033[K")
            self.stream.flush()


def rows_of(value: Any) -> Iterator[tuple[str, ...]]:
    """The cells of one section, whatever it holds."""
    if isinstance(value, dict):
        yield from value.items()
        return
    for each in value:
        if isinstance(each, dict):
            when = each.get("applied_at") or (
                f"was {each['was']}" if "was" in each else f"{each.get('duration_ms')} ms"
            )
            first, *others = effects(each)
            yield each["name"], when[:19], first
            yield from (("", "", other) for other in others)
        else:
            yield (", ".join(each) if isinstance(each, list) else " ".join(each.split()),)


def effects(entry: Mapping[str, Any]) -> list[str]:
    """Whom a file that was tried kept waiting, and what could not be tried."""
    blocked = (
        f"blocks {lock['blocks']} of {lock['table']}" for lock in entry.get("locks", ()) if lock["blocks"] != "nothing"
    )
    untried = (f"not tried: {part}" for part in entry.get("untried", ()))
    return [*blocked, *untried] or ["blocks nobody" if "locks" in entry else ""]


def table(report: Mapping[str, Any], stream: Any) -> Iterator[str]:
    """The report for people: aligned, only what is not empty, and at last what it comes to."""
    version = f", PostgreSQL {report['server_version']}" if "server_version" in report else ""
    place = report["folder"] if "folder" in report else report["database"]
    yield painted(f"{report['action']}: {place}{version}", BOLD, stream)
    for name, colour in SECTIONS.items():
        rows = list(rows_of(report.get(name, ())))
        if name == "pending" and "tried" in report:  # the same names
            continue
        widths = [max(map(len, column)) for column in zip(*rows)]
        for number, row in enumerate(rows):
            title = painted(name.ljust(12), colour, stream) if number == 0 else " " * 12
            yield (title + "  ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip()
    yield conclusion(report)


def conclusion(report: Mapping[str, Any]) -> str:
    counted = {name: f"{len(report.get(name, ())) or 'nothing'} {name}" for name in ("applied", "pending")}
    if report["action"] == "status":
        odd = [f"{len(report[name])} {name}" for name in ("edited", "unfinished") if report.get(name)]
        return ", ".join([*counted.values(), *odd])
    if report["action"] == "check":
        return f"{report['status']}, problems: {len(report['problems'])}"
    if report["action"] == "dry_run":
        return "nothing has been changed"
    changed = report["applied"] or report["adopted"] or set(report["users"].values()) - {"kept"}
    return f"done in {report['duration_ms']} ms" if changed else "nothing to do"


# --- Where to connect -----------------------------------------------------------------------------------------------

URL = "write postgresql://USER:PASSWORD@HOST:PORT/DBNAME, special characters in the password as %2F, %40 …"
VARIABLES = {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "connect_timeout": "PGCONNECT_TIMEOUT"}
PARTS = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE", "password": "PGPASSWORD"}


def login_from_url(environ: MutableMapping[str, str]) -> Optional[Login]:
    """The login in DATABASE_URL, libpq's variables filling its gaps; its TLS settings go to libpq's variables.

    None without such a variable. No part of it is shown in an error: what stands where may be a piece of the password.
    """
    if "DATABASE_URL" not in environ:
        return None
    both = [name for name in (initializer.ADMIN, "DB_HOST", "DB_PORT", "DB_NAME") if name in environ]
    if both:
        raise ConfigError(f"DATABASE_URL and {', '.join(both)} both say where to connect: unset the one or the other.")
    try:
        given = psycopg2.extensions.parse_dsn(environ["DATABASE_URL"])
    except (psycopg2.Error, ValueError):
        raise ConfigError(f"DATABASE_URL cannot be read: {URL}; behind it only ?{'=…&'.join(VARIABLES)}=….") from None
    strange = [name for name in given if name not in (*PARTS, *VARIABLES)]
    if strange:
        raise ConfigError(f"DATABASE_URL: {', '.join(strange)} is not supported, only {', '.join(VARIABLES)}.")
    parts = {"port": "5432", **{key: environ[name] for key, name in PARTS.items() if name in environ}, **given}
    misread = any("@" in value for key, value in given.items() if key not in ("user", "password"))
    if misread or not re.fullmatch(initializer.PORT, parts["port"]) or "," in parts.get("host", ""):
        raise ConfigError(f"DATABASE_URL does not name one host and a port (1 to 65535): {URL}.")
    missing = [f"{key} (or set {PARTS[key]})" for key in ("host", "user", "dbname") if not parts.get(key)]
    if missing:
        raise ConfigError(f"DATABASE_URL has no {', no '.join(missing)}: {URL}.")
    environ.update({name: given[key] for key, name in VARIABLES.items() if key in given})
    # Without a password libpq looks into ~/.pgpass, or needs none.
    return Login(parts["host"], int(parts["port"]), parts["dbname"], parts["user"], parts.get("password", ""))


def run(action: str, screen: Screen) -> Mapping[str, Any]:
    """The handler's report. It works in another thread, since Python answers no signal while libpq waits."""
    login = login_from_url(os.environ)
    if login and action == "rotate":
        raise ConfigError("rotate writes to secrets: unset DATABASE_URL and set their variables. Nothing was touched.")
    if not login and initializer.ADMIN not in os.environ:
        raise ConfigError(f"where is the database? Set DATABASE_URL, or {initializer.ADMIN} as in Lambda.")
    if not login and vars(secret_store)["boto3"] is None:
        install = "python3 -m pip install boto3"
        raise ConfigError(f"boto3 is missing, which reads secrets: {install}, or set DATABASE_URL instead.")
    work = ThreadPoolExecutor(1).submit(initializer.handler, {"action": action}, None, login)
    while not wait([work], TICK_S).done:
        screen.show_time()
    return work.result()


# --- new ------------------------------------------------------------------------------------------------------------

TEMPLATE = """\
-- Runs once, as one transaction. Once it is applied, a change belongs in a new file.
-- CREATE INDEX CONCURRENTLY and the like go into a file of their own.

"""


def slug(title: str) -> str:
    """The title as a part of a file's name: letters and digits of any language, and _."""
    name = re.sub(r"\W+", "_", re.sub(r"\.sql$", "", migration_files.normal(title).lower())).strip("_")
    if not name or len(name.encode()) > 200:
        raise argparse.ArgumentTypeError('a few words are needed, such as "add orders table"')
    return name


def next_number(files: Sequence[Migration], now: datetime) -> str:
    """Behind every number that is there, and written like the highest: with as many digits, or as a time stamp."""
    highest = max((file for file in files if file.number is not None), key=lambda f: f.number or 0, default=None)
    digits = re.match("[0-9]+", highest.name) if highest else None
    width, number = (len(digits.group()), int(digits.group()) + 1) if digits else (3, 1)
    if width == len("20260102030405"):
        number = max(number, int(now.strftime("%Y%m%d%H%M%S")))
    return f"{number:0{width}d}"


def write_new(name: str) -> Path:
    """Write an empty migration, behind all others; never over one."""
    problems: list[str] = []
    files = migration_files.load_migrations(initializer.MIGRATIONS_DIR, problems)
    if problems:
        raise MigrationError("; ".join(problems))
    path = initializer.MIGRATIONS_DIR / f"{next_number(files, datetime.now(timezone.utc))}_{name}.sql"
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(TEMPLATE)
    except OSError as exc:
        raise MigrationError(f"{path}: {exc.strerror}") from exc
    return from_here(path)


def from_here(path: Path) -> Path:
    """Relative to the working directory where it lies in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# --- check ----------------------------------------------------------------------------------------------------------

DEPLOYED = ("origin/HEAD", "origin/main", "origin/master", "main", "master", "HEAD")
SQUAWK = (
    "no squawk, which knows what locks a table for long: python3 -m pip install squawk-cli, or npm i -D squawk-cli "
    "(squawkhq.com)"
)
OURS = "require-lock-timeout,require-statement-timeout,prefer-robust-stmts"  # what squawk asks for, and a run sees to
RESTORE = "It is probably applied: restore it, and put the change into a new file"


def check(base: Optional[str], with_squawk: bool) -> dict[str, Any]:
    """Everything that can be said without a database; the files of the git base count as applied."""
    problems: list[str] = []
    notes: list[str] = []
    config = Config.from_env(os.environ, problems, with_secrets=False)
    files = migration_files.load_migrations(initializer.MIGRATIONS_DIR, problems)
    scripts: dict[Migration, Script] = {}
    for file in files:
        try:
            script = migration_files.load_script(file, config.tables)
            scripts[file] = replace(script, text="")
            if not scripts[file].count:
                notes.append(f"{file.path.name} {migration_files.EMPTY}")
            problems.extend(not_alone(file, script))
        except MigrationError as exc:
            problems.append(str(exc).partition(" Nothing has been applied.")[0])
    notes += [f"{path.name} is never run" for path in sorted(initializer.MIGRATIONS_DIR.glob("*.down.sql"))]
    refused = {file.name for file in files if file not in scripts}
    rows = [row for row in applied_rows(base_commit(base, problems, notes), files) if row.name not in refused]
    new = compare(list(scripts), rows, config, problems, notes)
    program = shutil.which("squawk")
    if with_squawk and not program:
        notes.append(SQUAWK)
    elif with_squawk and program and not all(list(squawk(program, {file: scripts[file] for file in new}))):
        problems.append("squawk complains, see above")
    found = {"new": [file.name for file in new], "notes": notes, "problems": problems}
    status = "failed" if problems else "ok"
    return {"status": status, "action": "check", "folder": str(from_here(initializer.MIGRATIONS_DIR)), **found}


def not_alone(file: Migration, script: Script) -> Iterator[str]:
    """The statement, if there is one, that PostgreSQL would refuse in the transaction that the file is."""
    statements = script.statements() if script.count > 1 and not script.unwrapped else ()
    for statement in (s for s in statements if s.wants_no_transaction):
        yield (
            f"{file.path.name}:{statement.line}: this {statement.words[0]} cannot run in a transaction, which a file "
            "of several statements is: put it into a file of its own, or write -- no-transaction in the first line"
        )
        return


def compare(
    files: Sequence[Migration], rows: Sequence[Row], config: Config, problems: list[str], notes: list[str]
) -> list[Migration]:
    """The new files. What a run on a database with these rows would refuse is a problem; what it warns of, a note."""
    try:
        plan = migration_files.make_plan(files, rows)
    except MigrationError as exc:
        problems.append(str(exc))
        return list(files)
    gone = [f"{file.path.name} was edited. {RESTORE}" for _, file in plan.edited]
    gone += [f"{name} was deleted. {RESTORE}" for name in plan.orphans]
    (notes if config.allow_edited else problems).extend(gone)
    notes += [f"{file.path.name} is {row.name}, renumbered" for row, file in plan.renumbered]
    for warning in plan.warnings:
        twice = "is used more than once" in warning  # by a new file, which can still be renumbered
        (problems if twice else notes).append(f"{warning}: renumber the new one" if twice else warning)
    return [file for _, file in plan.pending]


def base_commit(asked: Optional[str], problems: list[str], notes: list[str]) -> str:
    """Where this branch left the one that is deployed; empty where nothing can be compared, which is said."""
    target = os.environ.get("GITHUB_BASE_REF")
    asked = asked or (f"origin/{target}" if target else "")
    found = (git("merge-base", "--", "HEAD", name) for name in ([asked] if asked else DEPLOYED))
    commit = next(filter(None, found), b"").decode().strip()
    if asked and not commit:
        problems.append(f"git finds no common commit with {asked}: fetch it with its history (fetch-depth: 0)")
    elif not commit:
        notes.append("edited files cannot be recognised: git, or a commit, is missing")
    return commit


def applied_rows(commit: str, files: Sequence[Migration]) -> Iterator[Row]:
    """The files as they were in this commit, as rows of a tracking table."""
    here = {file.name: file.sha256 for file in files}
    archive = git("archive", "--format=tar", commit) if commit else None  # None, too, where the folder was not there
    with tempfile.TemporaryDirectory() as place:
        unpack(archive or bytes(tarfile.RECORDSIZE), Path(place))
        for number, file in enumerate(migration_files.load_migrations(Path(place), [])):
            sha256 = file.sha256
            yield Row(number, file.name, None if here.get(file.name) == sha256 else checksum(file), sha256)


def unpack(archive: bytes, place: Path) -> None:
    """The archive's files, without its folders."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            file = members.extractfile(member) if member.isfile() and "/" not in member.name else None
            if file:
                (place / member.name).write_bytes(file.read())


def checksum(file: Migration) -> Optional[str]:
    """None where the text cannot be read, and so nothing be said of it."""
    try:
        return migration_files.tokens_checksum(file)
    except MigrationError:
        return None


def git(*words: str) -> Optional[bytes]:
    """What git says of the folder's repository; None where it refuses, or is not there."""
    program = shutil.which("git")
    if not program or not initializer.MIGRATIONS_DIR.is_dir():
        return None
    # A hook's variables name a repository, relative to another directory.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_DIR", "GIT_WORK_TREE"))}
    command = [program, "-C", str(initializer.MIGRATIONS_DIR.resolve()), *words]
    done = subprocess.run(command, env=environ, capture_output=True, check=False)  # noqa: S603 - no shell
    return done.stdout if done.returncode == 0 else None


def squawk(program: str, files: Mapping[Migration, Script]) -> Iterator[bool]:
    """Whether squawk is content with the files. It is told how they run; rows of COPY it cannot read."""
    configured = any((folder / ".squawk.toml").exists() for folder in (Path.cwd(), *Path.cwd().parents))
    rules = [] if configured else [f"--exclude={OURS}"]  # which would take the place of the configuration's own
    readable = {file: script for file, script in files.items() if not any(piece.data for piece in script.pieces)}
    for option, unwrapped in (("--assume-in-transaction", False), ("--no-assume-in-transaction", True)):
        paths = [str(from_here(file.path)) for file, script in readable.items() if script.unwrapped is unwrapped]
        if paths:
            command = [program, option, *rules, "--", *paths]
            yield subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0  # noqa: S603 - no shell


# --- The words ------------------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """Ctrl-C, or what stops a container."""


def interrupt(number: int, _: Any) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    raise Interrupted(number)


BASE = (
    "a branch or commit: what it has counts as applied, as it was where this branch left it (default: "
    f"origin/$GITHUB_BASE_REF in GitHub Actions, else the first there is of {', '.join(DEPLOYED)})"
)


def parser() -> argparse.ArgumentParser:
    end = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 and 143 interrupted."
    words = argparse.ArgumentParser(prog="python3 db_setup", epilog=end)
    commands = words.add_subparsers(dest="action", required=True, metavar="action")
    said = {name: ABOUT.get(name, "") for name in initializer.ACTIONS}
    said["new"] = "write the next migration's file"
    said["check"] = "look through the files, without a database: for CI and a pre-commit hook"
    for name, text in said.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
        if name == "new":
            command.add_argument("name", type=slug, nargs="+", help='such as "add orders table"')
        if name == "check":
            command.add_argument("--base", help=BASE)
            command.add_argument("--no-squawk", action="store_true", help="leave out squawk, even if it is installed")
    return words


def answer(options: argparse.Namespace, screen: Screen) -> Mapping[str, Any]:
    if options.action == "new":
        return {"status": "ok", "action": "new", "path": str(write_new("_".join(options.name)))}
    if options.action == "check":
        return check(options.base, not options.no_squawk)
    return run(options.action, screen)


def main() -> int:
    """The exit code; the report is on stdout, all else on stderr."""
    options = parser().parse_args()
    screen = Screen()
    logging.getLogger().addHandler(screen)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a name may not fit the terminal's encoding
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)
        report = answer(options, screen)
        screen.clear()
        text = report["path"] if "path" in report else "\n".join(table(report, sys.stdout))
        print(json.dumps(report, indent=2) if options.json else text)
        return int(report["status"] != "ok")
    except InitializerError as exc:
        screen.clear()
        print(painted(str(exc), RED, sys.stderr), file=sys.stderr)
        return 1
    except Interrupted as exc:
        screen.clear()
        end = "A file that was not finished is rolled back, or applied as a whole"
        marked = "of one marked -- no-transaction the finished steps stay, and the next run goes on behind them"
        print(f"Interrupted. {end}; {marked}. Run it again to go on.", file=sys.stderr, flush=True)
        os._exit(128 + exc.args[0])  # which closes the connection; libpq's thread waits for an answer


if __name__ == "__main__":
    sys.exit(main())

"""The terminal: `python3 db_setup status`, and what else `python3 db_setup --help` lists.

It calls the handler of the Lambda and is not uploaded with it. The login comes from the secrets, as
in Lambda, or from DATABASE_URL: then boto3 is not needed, and no users are made.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -m` would look elsewhere

if __name__ == "__main__" and ("DATABASE_URL" in os.environ or {"check", "new"} & {*sys.argv[1:2]}):
    # No secret is read: as if it were not installed. To import it takes a third of a short run.
    sys.modules["boto3"] = None  # type: ignore[assignment]

try:
    import psycopg2
except ModuleNotFoundError as exc:
    sys.exit(f"{exc}: python3 -m pip install psycopg2-binary")

try:
    import pglast
except ImportError:
    pglast = None  # type: ignore[assignment]

import database
import dump
import failures
import file_names
import initializer
import migration_files
import planning
import pull_request
import review
import secret_store
import sql_scanner
from common import ConfigError, Deadline, InitializerError, MigrationError
from config import ADMIN_VARIABLE, IAM_VARIABLE, PORT, Config, load_setup
from database import Endpoint, Login
from migration_files import Migration
from planning import Row
from review import Finding
from sql_scanner import Script

ABOUT = {
    "status": "what is applied, pending, edited …; changes nothing",
    "migrate": "do what a deployment does, without Lambda's limit of 15 minutes",
    "dry_run": "run what is pending, and roll it back",
    "rotate": "give the logins new credentials",
    "databases": "list the databases of the server, or schemas, with what is applied in each",
}
TICK_S = 0.25
TELL_AGAIN_S = 10


def main() -> int:
    """Return the exit code; the report is printed on stdout, everything else on stderr."""
    options = parser().parse_args()
    if options.action == "migrate" and options.schemas and options.all is None:
        parser().error("--schemas needs --all, with a pattern such as 'tenant_%'")
    screen = Screen()
    logging.getLogger().addHandler(screen)
    # The terminal's encoding may lack a character of a file's name.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)
        report = run_action(options, screen)
        screen.clear()
        print_report(report, options.json or options.format == "json")
        if options.format == "github" and not options.json:
            print_annotations(report)
        return 0 if report["status"] == "ok" else 1
    except InitializerError as exc:
        screen.clear()
        if options.markdown:
            text = pull_request.failed_markdown(str(exc))
            failed = {"status": "failed", "action": options.action, "markdown": text}
            print_report(failed, options.json)
        print(painted(str(exc), RED, sys.stderr), file=sys.stderr)
        return 1
    except Interrupted as exc:
        screen.clear()
        print(INTERRUPTED, file=sys.stderr, flush=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        # That closes the connection; the handler's thread still waits for the server's answer.
        os._exit(128 + exc.signal_number)


def run_action(options: argparse.Namespace, screen: Screen) -> Mapping[str, Any]:
    if options.action == "new":
        path = write_new("_".join(options.name), options.repeatable)
        return {"status": "ok", "action": "new", "path": str(path)}
    if options.schema is not None:
        os.environ["DB_SCHEMA"] = options.schema
    if options.action == "check":
        return check(options.base, not options.no_squawk, options.strict)
    login = checked_login(options.action)
    if options.action == "dump":
        return write_dump(options.output, login, screen)
    if options.action == "databases":
        return list_databases(options.like, options.schemas, login, screen)
    if options.action == "migrate" and options.all is not None:
        return migrate_all(options.all, options.schemas, options.at_once, login, screen)
    more = {"markdown": True} if options.markdown else {}
    return run_handler({"action": options.action, **more}, login, screen)


class OnATerminal(NamedTuple):
    """The context of a run that nothing limits."""

    somebody_waits: bool  # a pipeline may be faster than the server that it has just started


def checked_login(action: str) -> Optional[Login]:
    """The login in DATABASE_URL; None where it comes from the secrets."""
    login = login_from_url(os.environ)
    if login is None:
        check_secrets_can_be_read()
    elif action == "rotate":
        raise ConfigError("rotate writes to secrets: unset DATABASE_URL and set their variables")
    return login


def run_handler(
    event: Mapping[str, Any], login: Optional[Login], screen: Screen
) -> Mapping[str, Any]:
    """Call the handler and return its report.

    It works in another thread, since Python handles no signal while libpq waits.
    """
    reads_only = event["action"] in ("status", "databases")
    context = OnATerminal(somebody_waits=reads_only or sys.stderr.isatty())
    work = ThreadPoolExecutor(1).submit(initializer.handler, event, context, login)
    while not wait([work], TICK_S).done:
        screen.show_time()
    return work.result()


def write_dump(output: Optional[str], login: Optional[Login], screen: Screen) -> Mapping[str, Any]:
    """Write the schema of the database into a file, or (`-`) into the report."""
    path = Path(output or initializer.MIGRATIONS_DIR.with_name("schema.sql"))
    if output != "-":
        dump.refuse_to_replace(path, initializer.MIGRATIONS_DIR)
    environ = {**os.environ, "CREATE_USERS": "false"}  # their secrets are not needed
    setup = load_setup(environ, Deadline(), initializer.MIGRATIONS_DIR, login)
    status = run_handler({"action": "status"}, setup.login, screen)
    text = dump.schema_sql(setup, status)
    if output == "-":
        return {"status": "ok", "action": "dump", "sql": text}
    dump.write(path, text)
    return {"status": "ok", "action": "dump", "path": str(from_here(path))}


# --- Many databases -------------------------------------------------------------------------------


def list_databases(
    like: str, schemas: bool, login: Optional[Login], screen: Screen, **more: bool
) -> Mapping[str, Any]:
    """All pages of the list as one."""
    found: list[Any] = []
    after: Optional[str] = ""
    while after is not None:
        event = {"action": "databases", "like": like, "schemas": schemas, "after": after, **more}
        report = run_handler(event, login, screen)
        found += report["databases"]
        after = report["next"]
    return {**report, "databases": found}


def migrate_all(
    like: str, schemas: bool, at_once: int, login: Optional[Login], screen: Screen
) -> Mapping[str, Any]:
    """Migrate all databases that are like this: the first one alone, and if that succeeds the
    others, of which none stops another.
    """
    started = time.monotonic()
    listed = list_databases(like, schemas, login, screen, status=False)
    names = [each["name"] for each in listed["databases"]]
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for at_a_time, part in ((1, names[:1]), (at_once, names[1:])):
        if failed:
            break
        lanes = ThreadPoolExecutor(at_a_time)  # not `with`: an interrupted run waits for none
        work = {lanes.submit(migrate_one, name, schemas, login) for name in part}
        while work:
            ended, work = wait(work, TICK_S)
            for each in ended:
                entry = each.result()
                (failed if entry["problem"] else done).append(entry)
            screen.show_progress(len(done), len(failed), len(names), started)
    entries = sorted(done + failed, key=lambda entry: names.index(entry["name"]))
    return {
        "status": "failed" if failed else "ok",
        "action": "migrate",
        "like": like,
        "schemas": schemas,
        "databases": entries,
        "not_begun": len(names) - len(entries),
        "duration_ms": round((time.monotonic() - started) * 1000),
    }


def migrate_one(name: str, is_schema: bool, login: Optional[Login]) -> dict[str, Any]:
    """Migrate a database or a schema, in another process: psycopg2 has one wait callback for all
    threads.
    """
    variable = "DB_SCHEMA" if is_schema else "DB_NAME"
    event: dict[str, Any] = {"action": "migrate", "variables": {variable: name}}
    if login and not is_schema:  # which DB_NAME does not change
        login = replace(login, endpoint=replace(login.endpoint, dbname=name))
    try:
        report = worker().submit(initializer.handler, event, None, login).result()
    except InitializerError as exc:
        return {"name": name, "applied": [], "problem": str(exc)}
    except BrokenExecutor:
        vars(lane).clear()
        return {"name": name, "applied": [], "problem": "its process was ended. Run it again."}
    return {"name": name, "applied": [each["name"] for each in report["applied"]], "problem": ""}


lane = threading.local()  # each thread has a process, which serves one database after the other


def worker() -> ProcessPoolExecutor:
    if not hasattr(lane, "worker"):
        fresh = multiprocessing.get_context("spawn")
        lane.worker = ProcessPoolExecutor(1, fresh, logging.disable, (logging.CRITICAL,))
    made: ProcessPoolExecutor = lane.worker
    return made


# --- The command line -----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python3 db_setup",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 and 143 interrupted.",
    )
    commands = top.add_subparsers(dest="action", required=True, metavar="action")
    for action in initializer.ACTIONS:
        command = add_command(commands, action, ABOUT.get(action, ""))
        which = command.add_mutually_exclusive_group()
        add_schema(which)
        if action == "databases":
            command.add_argument("like", help="whose names are like this pattern: 'tenant_%%'")
        if action == "dry_run":
            command.add_argument(
                "--markdown", action="store_true", help="print a text for a pull request"
            )
        if action == "migrate":
            command.add_argument("--all", metavar="LIKE", help="all databases: 'tenant_%%'")
            command.add_argument(
                "--at-once", type=at_least_one, default=4, help="how many of them (default: 4)"
            )
        if action in ("databases", "migrate"):
            which.add_argument(
                "--schemas", action="store_true", help="not databases, but schemas of this one"
            )

    new = add_command(commands, "new", "write the next migration's file")
    new.add_argument("name", type=slug, nargs="+", help='such as "add orders table"')

    new.add_argument(
        "--repeatable", action="store_true", help="one that runs whenever its content has changed"
    )

    check = add_command(
        commands,
        "check",
        "look through the files, without a database: for CI and a pre-commit hook",
    )
    add_schema(check)
    check.add_argument(
        "--base",
        help="a branch or commit: its files count as applied, as they were at the merge base "
        "(default: origin/$GITHUB_BASE_REF in GitHub Actions, else the first that exists of "
        + ", ".join(DEPLOYED_BRANCHES)
        + ")",
    )
    check.add_argument(
        "--no-squawk", action="store_true", help="leave out squawk, even if it is installed"
    )
    check.add_argument("--strict", action="store_true", help="warnings are problems, too")
    check.add_argument(
        "--format",
        choices=("text", "github", "json"),
        default="github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text",
        help="github: the text, and annotations for GitHub Actions (default there)",
    )

    dumped = add_command(
        commands, "dump", "write the schema into a file, for review; needs pg_dump"
    )
    add_schema(dumped)
    dumped.add_argument(
        "-o", "--output", help="the file (default: schema.sql next to migrations/; -: stdout)"
    )
    return top


def add_command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    command.add_argument(
        "--json", action="store_true", help="print the report as JSON, and nothing else"
    )
    command.set_defaults(format="text", markdown=False)
    return command


def add_schema(command: Any) -> None:
    command.add_argument("--schema", help="the application's schema, as DB_SCHEMA")


def at_least_one(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,2}", text):
        raise argparse.ArgumentTypeError("1 … 999")
    return int(text)


class Interrupted(BaseException):
    """Ctrl-C, or the signal that stops a container."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


INTERRUPTED = (
    "Interrupted. A file that was not finished is rolled back, or applied as a whole; "
    "of one marked -- no-transaction the finished steps stay applied, and the next run continues "
    "after them. Run it again to continue."
)


def interrupt(signal_number: int, _: Any) -> NoReturn:
    signal.signal(signal_number, signal.SIG_IGN)  # once is enough
    raise Interrupted(signal_number)


# --- Output ---------------------------------------------------------------------------------------

# ANSI codes
BOLD = 1
RED = 31
GREEN = 32
YELLOW = 33
CYAN = 36
NO_COLOUR = 0

# The sections of a report that are shown, in this order, and the colours of their names.
SECTIONS = {
    "tried": GREEN,
    "applied": GREEN,
    "adopted": GREEN,
    "pending": CYAN,
    "new": CYAN,
    "edited": YELLOW,
    "renumbered": YELLOW,
    "missing": YELLOW,
    "duplicates": YELLOW,
    "unfinished": YELLOW,
    "drift": YELLOW,
    "running": YELLOW,
    "users": NO_COLOUR,
    "warnings": YELLOW,
    "notes": YELLOW,
    "problems": RED,
}
TITLE_WIDTH = 12


def print_report(report: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
    elif "markdown" in report:
        print(report["markdown"], end="")
    elif "path" in report:
        print(report["path"])
    elif "sql" in report:  # as it is, whatever the terminal's encoding
        sys.stdout.buffer.write(report["sql"].encode(errors="surrogateescape"))
    else:
        print("\n".join(table(report, sys.stdout)))


def table(report: Mapping[str, Any], stream: Any) -> Iterator[str]:
    """The lines of a report for people: sections that are not empty, in columns, and a summary."""
    version = ""
    if "server_version" in report:
        version = f", PostgreSQL {report['server_version']}"
    place = report.get("folder") or report.get("like") or report["database"]
    yield painted(f"{report['action']}: {place}{version}", BOLD, stream)
    if "databases" in report:
        yield from databases_table(report, stream)
        return
    for name, colour in SECTIONS.items():
        if name == "pending" and "tried" in report:  # the same files
            continue
        content = report.get(name) or ()
        if name == "drift" and "drift_unknown" in report and report["applied"]:
            content = {"unknown": [report["drift_unknown"]]}
        yield from section(name, colour, content, stream)
    yield summary(report)


def databases_table(report: Mapping[str, Any], stream: Any) -> Iterator[str]:
    """A line for each database, and how many there are."""
    entries = report["databases"]
    width = max((len(entry["name"]) for entry in entries), default=0)
    for entry in entries:
        problem = painted(entry["problem"].partition("\n")[0], RED, stream)
        yield f"{entry['name'].ljust(width)}  {problem or what_is_applied(entry)}"
    failed = sum(bool(entry["problem"]) for entry in entries)
    not_begun = f", not begun: {report['not_begun']}" if report.get("not_begun") else ""
    what = "schemas" if report.get("schemas") else "databases"
    yield f"{what}: {len(entries)}, problems: {failed}{not_begun}; {report['duration_ms']} ms"


def what_is_applied(entry: Mapping[str, Any]) -> str:
    if "pending" in entry:
        last = f", last {entry['last']}" if entry["last"] else ""
        return f"{entry['applied']} applied, {entry['pending']} pending{last}"
    return f"applied {', '.join(entry['applied'])}" if entry["applied"] else "nothing to do"


def section(name: str, colour: int, content: Any, stream: Any) -> Iterator[str]:
    """The lines of one section; its name is in the first."""
    rows = list(section_rows(content))
    widths = [max(map(len, column)) for column in zip(*rows)]
    title = painted(name.ljust(TITLE_WIDTH), colour, stream)
    for row in rows:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths))
        yield f"{title}{cells}".rstrip()
        title = " " * TITLE_WIDTH


def section_rows(content: Any) -> Iterator[tuple[str, ...]]:
    """The cells of each line of a section, whatever it contains."""
    if isinstance(content, dict):  # users and what happened to them; what has changed, and how
        for key, what in content.items():
            yield from ((key, each) for each in ([what] if isinstance(what, str) else what))
        return
    for entry in content:
        if isinstance(entry, dict):
            yield from migration_rows(entry)
        elif isinstance(entry, list):  # names that clash
            yield (", ".join(entry),)
        else:
            yield (" ".join(entry.split()),)


def migration_rows(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """A migration with its time, and what a dry run has found out about it, one thing a line."""
    if entry.get("applied_at"):
        when = entry["applied_at"][: len("2026-01-02T03:04:05")]
    elif "was" in entry:
        when = f"was {entry['was']}"[:19]
    else:
        when = f"{entry.get('duration_ms')} ms"
    first, *others = dry_run_findings(entry) or [entry.get("deployment") or ""]
    yield entry["name"], when, first
    for other in others:
        yield "", "", other


def dry_run_findings(entry: Mapping[str, Any]) -> list[str]:
    """Whom the migration blocked in a dry run, and what could not be tried."""
    locks = [*entry.get("locks", ()), *entry.get("other_locks", ())]
    found = [
        *pull_request.findings(entry),
        *(
            f"blocks {lock['blocks']} of {lock['table']}{pull_request.for_how_long(lock)}"
            for lock in locks
            if lock["blocks"] != "nothing"
        ),
    ]
    found += [f"not tried: {part}" for part in entry.get("untried", ())]
    if not found and "locks" in entry:
        return ["blocks nobody"]
    return found


def summary(report: Mapping[str, Any]) -> str:
    action = report["action"]
    if action == "status":
        return status_summary(report)
    if action == "check":
        found = f"{report['status']}, problems: {len(report['problems'])}"
        if report["warnings"]:
            found += f", warnings: {len(report['warnings'])}"
        return f"{found}; not checked: {report['not_checked']}"
    if action == "dry_run":
        level = f"{report['level']}; " if report.get("level") else ""
        return f"{level}nothing has been changed"
    has_new_users = set(report["users"].values()) - {"kept"}
    if report["applied"] or report["adopted"] or has_new_users:
        return f"done in {report['duration_ms']} ms"
    return "nothing to do"


def status_summary(report: Mapping[str, Any]) -> str:
    counts = []
    for name in ("applied", "pending", "edited", "unfinished"):
        count = len(report.get(name, ()))
        if count:
            counts.append(f"{count} {name}")
        elif name in ("applied", "pending"):
            counts.append(f"nothing {name}")
    return ", ".join(counts)


def painted(text: str, colour: int, stream: Any) -> str:
    """The text in this colour, if the stream is a terminal that has colours and may use them."""
    if not text or not stream.isatty():
        return text
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{colour}m{text}\033[0m"


def print_annotations(report: Mapping[str, Any]) -> None:
    """Let GitHub Actions show each problem and each warning, at its line if it has one."""
    found = [*report["findings"], *report["squawk"]]
    said = {each["message"] for each in found}
    for problem in report["problems"]:
        if problem not in said:
            place = re.match(r"(\S.*?\.sql)(?::(\d+))?\b", problem, re.IGNORECASE)
            file, line = place.groups("1") if place else ("", "")
            more = {"level": "error", "rule": "check", "effect": problem}
            found.append({"file": file, "line": line, **more})
    root = os.environ.get("GITHUB_WORKSPACE")
    folder = initializer.MIGRATIONS_DIR
    for each in found:
        home = folder.parent if each["rule"] == DUMP_RULE else folder
        where = escaped(f"{os.path.relpath(home.resolve(), root)}/{each['file']}")
        at = f"file={where},line={each['line']}," if each["file"] else ""
        title = escaped(
            f"{each['rule']}: {each.get('recipe')}" if each.get("recipe") else each["rule"]
        )
        print(f"::{each['level']} {at}title={title}::{escaped(each['effect'], in_property=False)}")


def escaped(text: str, in_property: bool = True) -> str:
    """As workflow commands are written."""
    for character in "%\r\n:," if in_property else "%\r\n":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


class Screen(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """The log on stderr, each line with its seconds since the start.

    On a terminal the last message is repeated below the log, with the time that passes.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.started = time.monotonic()
        self.last_message = "starting"
        self.tell_again_s = 0.0
        self.is_live = self.stream.isatty() and os.environ.get("TERM") != "dumb"

    def filter(self, record: logging.LogRecord) -> Any:
        """Leave out the last line of a run: the report, or the error, says the same."""
        is_last = record.getMessage().startswith(("done ", "failed "))
        return not is_last and super().filter(record)

    def format(self, record: logging.LogRecord) -> str:
        self.last_message = record.getMessage()
        elapsed_s = time.monotonic() - self.started
        text = f"{elapsed_s:6.1f} s  {self.last_message}"
        if record.levelno > logging.INFO:
            return painted(text, YELLOW, self.stream)
        return text

    def emit(self, record: logging.LogRecord) -> None:
        self.clear()
        super().emit(record)

    def show_time(self) -> None:
        elapsed_s = time.monotonic() - self.started
        text = f"{elapsed_s:6.0f} s  … {self.last_message}"
        width = shutil.get_terminal_size().columns - 1
        with self.lock or nullcontext():  # the handler's thread writes its log under this lock, too
            self._rewrite_line(text[:width])

    def show_progress(self, done: int, failed: int, of: int, started: float) -> None:
        """How far a run over many databases is; where there is no terminal, every ten seconds."""
        left = of - done - failed
        elapsed_s = time.monotonic() - started
        left_s = elapsed_s * left / max(done + failed, 1)
        self.last_message = f"done {done}, failed {failed}, left {left} (~{left_s:.0f} s)"
        self.show_time()
        if not self.is_live and (elapsed_s >= self.tell_again_s or not left):
            self.stream.write(f"{elapsed_s:6.0f} s  {self.last_message}\n")
            self.tell_again_s = elapsed_s + TELL_AGAIN_S

    def clear(self) -> None:
        self._rewrite_line("")

    def _rewrite_line(self, text: str) -> None:
        if self.is_live:
            self.stream.write(f"\r{text}\033[K")
            self.stream.flush()


# --- Where to connect -----------------------------------------------------------------------------

URL = (
    "write postgresql://USER:PASSWORD@HOST:PORT/DBNAME, special characters in the password as "
    "%2F, %40 …"
)
TLS_VARIABLES = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}
LOGIN_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "dbname": "PGDATABASE",
    "password": "PGPASSWORD",
}


def check_secrets_can_be_read() -> None:
    if ADMIN_VARIABLE not in os.environ and IAM_VARIABLE not in os.environ:
        raise ConfigError(
            f"where is the database? Set DATABASE_URL, or {ADMIN_VARIABLE} as in Lambda"
        )
    if vars(secret_store)["boto3"] is None:
        raise ConfigError(
            "boto3 is missing, which reads secrets: python3 -m pip install boto3, or set "
            "DATABASE_URL instead"
        )


def login_from_url(environ: MutableMapping[str, str]) -> Optional[Login]:
    """The login in DATABASE_URL; what it lacks comes from libpq's variables. None if it is not set.

    Its TLS settings are put into libpq's variables. An error shows no part of the URL: in one that
    is written wrongly any part can be a piece of the password.
    """
    if "DATABASE_URL" not in environ:
        return None
    also_set = [
        name
        for name in (ADMIN_VARIABLE, "DB_HOST", "DB_PORT", "DB_NAME", IAM_VARIABLE)
        if name in environ
    ]
    if also_set:
        names = ", ".join(also_set)
        raise ConfigError(
            f"DATABASE_URL and {names} both say where to connect: unset the one or the other"
        )
    given = parse_url(environ["DATABASE_URL"])
    parts = {"port": "5432"}
    for part, variable in LOGIN_VARIABLES.items():
        if variable in environ:
            parts[part] = environ[variable]
    parts.update(given)
    check_parts(parts, given)
    for part, variable in TLS_VARIABLES.items():
        if part in given:
            environ[variable] = given[part]
    endpoint = Endpoint(parts["host"], int(parts["port"]), parts["dbname"])
    password = parts.get("password", "")  # without one libpq looks into ~/.pgpass
    return Login(endpoint, parts["user"], password)


def parse_url(url: str) -> dict[str, str]:
    try:
        given: dict[str, str] = psycopg2.extensions.parse_dsn(url)
    except (psycopg2.Error, ValueError):
        options = "=…&".join(TLS_VARIABLES)
        raise ConfigError(
            f"DATABASE_URL cannot be read: {URL}; after it only ?{options}=…"
        ) from None
    unknown = [part for part in given if part not in (*LOGIN_VARIABLES, *TLS_VARIABLES)]
    if unknown:
        unsupported = ", ".join(unknown)
        supported = ", ".join(TLS_VARIABLES)
        raise ConfigError(f"DATABASE_URL: {unsupported} is not supported, only {supported}")
    return given


def check_parts(parts: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Refuse what is not a login; `given` are the parts that come from the URL."""
    has_stray_at = any(
        "@" in value for part, value in given.items() if part not in ("user", "password")
    )
    is_port = re.fullmatch(PORT, parts["port"])
    has_several_hosts = "," in parts.get("host", "")
    if has_stray_at or has_several_hosts or not is_port:
        raise ConfigError(f"DATABASE_URL does not name one host and a port (1 to 65535): {URL}")
    missing = [
        f"{part} (or set {LOGIN_VARIABLES[part]})"
        for part in ("host", "user", "dbname")
        if not parts.get(part)
    ]
    if missing:
        parts_missing = ", no ".join(missing)
        raise ConfigError(f"DATABASE_URL has no {parts_missing}: {URL}")


# --- new ------------------------------------------------------------------------------------------

TEMPLATE = """\
-- Runs once, as one transaction. Once it is applied, a change belongs in a new file.
-- CREATE INDEX CONCURRENTLY and the like go into a file of their own.

"""
REPEATABLE = """\
-- Runs after all other files, whenever its statements have changed: each must be able to run again,
-- such as CREATE OR REPLACE, GRANT, INSERT … ON CONFLICT.

"""


def write_new(name: str, is_repeatable: bool = False) -> Path:
    """Write an empty migration with the next number, if it has one; never overwrite a file."""
    problems: list[str] = []
    files = migration_files.load_migrations(initializer.MIGRATIONS_DIR, problems, warnings=[])
    if problems:
        raise MigrationError("; ".join(problems), state="")
    names = (file.name for file in files)
    version = "R__" if is_repeatable else file_names.next_version(names, datetime.now(timezone.utc))
    path = initializer.MIGRATIONS_DIR / f"{version}{name}.sql"
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(REPEATABLE if is_repeatable else TEMPLATE)
    except OSError as exc:
        raise MigrationError(f"{path}: {exc.strerror}", state="") from exc
    return from_here(path)


def slug(title: str) -> str:
    """The title as part of a file's name: letters and digits of any language, and _."""
    text = file_names.normal(title).lower()
    text = re.sub(r"\.sql$", "", text)
    name = re.sub(r"\W+", "_", text).strip("_")
    if not name or len(name.encode()) > 200:
        raise argparse.ArgumentTypeError('a few words are needed, such as "add orders table"')
    return name


def from_here(path: Path) -> Path:
    """The path relative to the working directory, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# --- check ----------------------------------------------------------------------------------------

DEPLOYED_BRANCHES = ("origin/HEAD", "origin/main", "origin/master", "main", "master", "HEAD")
NO_SQUAWK = (
    "squawk is not installed; it is a linter with more rules: "
    "python3 -m pip install squawk-cli, or npm i -D squawk-cli (squawkhq.com)"
)
# What squawk asks for, and a run does anyway.
EXCLUDED_RULES = "require-lock-timeout,require-statement-timeout,prefer-robust-stmts"
# Its opinions about style; what locks, rewrites or breaks stays.
STYLE_RULES = (
    "prefer-bigint-over-int,prefer-bigint-over-smallint,prefer-identity,prefer-text-field,"
    "prefer-timestamp-tz,ban-char-field"
)
DUMP_RULE = "dump"
STALE = "it is of other migrations: migrate a new, empty database, and dump it again"
DROP = "drop it in a new file"
RESTORE = "It is probably applied: restore it, and put the change into a new file"


class Findings:
    """What `check` has to say; only problems make it fail."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.by_squawk: list[Finding] = []


def check(base: Optional[str], with_squawk: bool, is_strict: bool = False) -> dict[str, Any]:
    """Report everything that can be said without a database.

    The files of the base commit count as applied. Warnings make it fail if it is strict.
    """
    folder = initializer.MIGRATIONS_DIR
    findings = Findings()
    config = Config.from_env(os.environ, findings.problems, with_secrets=False)
    files = migration_files.load_migrations(folder, findings.problems, findings.notes)
    scripts = load_scripts(files, config, findings)
    for path in sorted(folder.glob("*.down.sql")):
        findings.notes.append(f"{path.name} is never run")
    home = folder.resolve().parent
    for file in files:
        if not file.path.resolve().is_relative_to(home):
            findings.notes.append(
                f"{file.path.name} is a link that leads out of {home.name}/, which is uploaded "
                "without what it leads to: put the file itself here"
            )

    commit = base_commit(base, findings)
    refused = {file.name for file in files if file not in scripts}
    applied = [row for row in applied_rows(commit, files) if row.name not in refused]
    new = compare(list(scripts), applied, config, findings)
    known = review.Known(config.schema)
    found: list[Finding] = []
    for file, script in scripts.items():
        found += review.findings(file.path.name, script, known, file in new)
        if file in new:
            findings.notes += tables_in_public(file, script, config.schema)
        if not script.pieces:  # a long file, or one with rows of COPY: a program has written it
            # What is applied has worked, and can no longer be changed.
            look = mistakes if file in new else syntax_errors
            findings.problems += look(file, script)
        script.forget_text()
    if len(scripts) == len(files):
        for name in dump.stale(folder.parent, (script.checksum for script in scripts.values())):
            found.append(Finding(name, 1, DUMP_RULE, STALE))
    if with_squawk:
        check_with_squawk({file: scripts[file] for file in new}, findings)
    said = {each[:2] for each in findings.by_squawk}
    found = [each for each in found if each[:2] not in said]
    warnings = findings.problems if is_strict else findings.warnings
    warnings += map(str, found)
    return {
        "status": "failed" if findings.problems else "ok",
        "action": "check",
        "folder": str(from_here(folder)),
        "new": [file.name for file in new],
        "notes": findings.notes,
        "warnings": findings.warnings,
        "problems": findings.problems,
        "findings": [each.told("error" if is_strict else "warning") for each in found],
        "squawk": [each.told("error") for each in findings.by_squawk],
        "not_checked": not_checked(with_squawk),
    }


def not_checked(with_squawk: bool) -> str:
    """What nobody has looked at."""
    parts = ["what only the server knows (tables, rights, rows), for which there is dry_run"]
    if pglast is None and not (with_squawk and shutil.which("squawk")):
        parts.insert(0, "SQL syntax (pip install pglast or squawk-cli)")
    return "; ".join(parts)


def load_scripts(
    files: Sequence[Migration], config: Config, findings: Findings
) -> dict[Migration, Script]:
    """The scripts of the files that can be read, without their texts, which may be long."""
    scripts: dict[Migration, Script] = {}
    for file in files:
        try:
            script = migration_files.load_script(file, config.created)
            refusal = statement_refused_in_transaction(file, script)
        except MigrationError as exc:
            findings.problems.append(exc.problem)
            continue
        scripts[file] = script
        findings.notes += migration_files.oddities(file.path.name, script)
        script.forget_text()
        if refusal:
            findings.problems.append(refusal)
    return scripts


# JSON_OBJECT('a':b) is none, nor are casts and :=.
VARIABLE = re.compile(r"""(?<![:\w\])'"]):(?:[A-Za-z_]\w*|'[A-Za-z_]\w*'|"[A-Za-z_]\w*")""")


def mistakes(file: Migration, script: Script) -> list[str]:
    """What the text alone tells that the server will refuse, or take in another way than meant."""
    found = list(odd_tokens(file, script)) or list(syntax_errors(file, script))
    return [*found, *used_values(file, script)]


def odd_tokens(file: Migration, script: Script) -> Iterator[str]:
    """The first variable of psql and the first odd space, outside of strings and comments."""
    text = script.text
    said: dict[str, tuple[int, str]] = {}
    brackets = 0  # in which : is that of a slice
    end = 0
    while end < len(text):
        start = end
        kind, end = sql_scanner.read_token(text, start, script.backslash_escapes)
        brackets += {"[": 1, "]": -1}.get(text[start:end], 0)
        variable = VARIABLE.match(text, start) if kind == "other" and not brackets else None
        odd = failures.ODD_SPACE.search(text, start, end) if kind in ("word", "other") else None
        if variable:
            what = f"{variable.group()} is a variable of psql: write the value itself"
            said.setdefault("variable", (start, what))
        elif odd:  # PostgreSQL takes it for a letter: a, b can name a column that begins with it
            what = f"this is not a space but U+{ord(odd.group()):04X}: delete it"
            said.setdefault("space", (odd.start(), what))
    for offset, what in said.values():
        line, column = sql_scanner.locate(text, offset)
        yield f"{file.path.name}:{line}:{column}: {what}"


def used_values(file: Migration, script: Script) -> Iterator[str]:
    """The first value that the file adds to an enum and uses before its transaction ends."""
    own_types = set()
    added: dict[str, tuple[int, str]] = {}
    for statement in () if script.no_transaction else script.statements():
        words = statement.words
        text = re.sub("--.*", "", script.statement_sql(statement))
        if words[:2] == ("CREATE", "TYPE") and "AS" in words:
            own_types.add(statement.tokens[words.index("AS") - 1])
        elif words[:2] == ("ALTER", "TYPE"):
            value = next((token for token in statement.tokens if token.startswith("'")), "")
            type_name = statement.tokens[words.index("ADD") - 1] if "ADD" in words else ""
            if value and type_name and type_name not in own_types:
                added[value] = statement.line, type_name
        elif statement.keyword != "CREATE" or "plpgsql" not in text.lower():  # which runs later
            for value in filter(text.__contains__, added):
                line, type_name = added[value]
                yield (
                    f"{file.path.name}:{line}: {value} is added to {type_name} and used in the "
                    "same transaction: put ALTER TYPE … ADD VALUE into a file of its own before"
                )
                return


def tables_in_public(file: Migration, script: Script, schema: str) -> Iterator[str]:
    """The first table that the file makes in public, if that is not the application's schema."""
    for statement in () if schema == "public" else script.statements():
        where, name = statement.created_table or (None, "")
        if where == "public":
            table = f"{file.path.name}:{statement.line}: table public.{name}"
            yield f"{table} is not in schema {schema}: the users get rights only there"
            return


def syntax_errors(file: Migration, script: Script) -> Iterator[str]:
    """What PostgreSQL's own parser says, if pglast is installed, which has it."""
    if pglast is None:
        return
    body = script.body_sql()
    try:
        pglast.parse_sql(body)
    except pglast.parser.ParseError as exc:
        said, offset, *_ = (*exc.args, None)
        line, column = sql_scanner.locate(body, offset or 0)
        explanation = failures.syntax_explanation(body, offset or 0)
        yield f"{file.path.name}:{line}:{column}: {said}{explanation}"


def statement_refused_in_transaction(file: Migration, script: Script) -> Optional[str]:
    """What to say of a statement that PostgreSQL refuses in the transaction that the file is."""
    if script.no_transaction or script.statement_count <= 1:
        return None
    for statement in script.statements():
        if statement.wants_no_transaction:
            return (
                f"{file.path.name}:{statement.line}: this {statement.words[0]} cannot run in a "
                "transaction, which a file of several statements is: put it into a file of its "
                "own, or write -- no-transaction in the first line"
            )
    return None


def compare(
    files: Sequence[Migration], applied: Sequence[Row], config: Config, findings: Findings
) -> list[Migration]:
    """The new files. What a run would refuse is a problem; what it would warn of, a note."""
    try:
        plan = planning.make_plan(files, applied)
    except MigrationError as exc:
        findings.problems.append(str(exc))
        return list(files)
    changed = findings.notes if config.allow_edited else findings.problems
    for _, file in plan.edited:
        changed.append(f"{file.path.name} was edited. {RESTORE}")
    for name in plan.orphans:
        if file_names.is_repeatable(name):
            findings.notes.append(f"{name} was deleted. What it made stays: {DROP}")
        else:
            changed.append(f"{name} was deleted. {RESTORE}")
    for row, file in plan.renumbered:
        findings.notes.append(f"{file.path.name} is {row.name}, renamed")
    for warning in plan.warnings:
        if "is used more than once" in warning:  # by a new file, which can still be renumbered
            findings.problems.append(f"{warning}: renumber the new one")
        else:
            findings.notes.append(warning)
    return [file for _, file in plan.pending]


# --- check: the files that count as applied -------------------------------------------------------


def base_commit(base: Optional[str], findings: Findings) -> str:
    """The commit where this branch left the deployed one; empty if none can be found."""
    pull_request_target = os.environ.get("GITHUB_BASE_REF")
    if not base and pull_request_target:
        base = f"origin/{pull_request_target}"
    branches = [base] if base else DEPLOYED_BRANCHES
    for branch in branches:
        commit = git("merge-base", "--", "HEAD", branch)
        if commit:
            return commit.decode().strip()
    if base:
        findings.problems.append(
            f"git finds no common commit with {base}: fetch it with its history (fetch-depth: 0)"
        )
    else:
        findings.notes.append("edited files cannot be recognised: git, or a commit, is missing")
    return ""


def applied_rows(commit: str, files: Sequence[Migration]) -> Iterator[Row]:
    """The files as they were in this commit, as rows of a tracking table."""
    present = {file.name: file.sha256 for file in files}
    with tempfile.TemporaryDirectory() as place:
        unpack_commit(commit, Path(place))
        then = migration_files.load_migrations(Path(place), problems=[], warnings=[])
        for number, file in enumerate(then):
            is_same = present.get(file.name) == file.sha256
            checksum = None if is_same else tokens_checksum(file)
            earlier = () if file.is_repeatable else None
            yield Row(number, file.name, checksum, file.sha256, earlier=earlier)


def unpack_commit(commit: str, place: Path) -> None:
    """Write the files that the migrations' folder had in this commit, without its sub-folders."""
    # A newer git makes an archive without files where the commit does not have the folder.
    is_there = bool(commit and git("ls-tree", commit))
    archive = git("archive", "--format=tar", commit) if is_there else None
    if archive is None:  # the folder was not there, or had another name
        if commit:
            unpack_moved_folder(commit, place)
        return
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            if "/" in member.name:
                continue
            content: Optional[bytes] = None
            if member.issym():  # what counts is the file that it leads to
                content = git("show", f"{commit}:./{member.linkname}")
            elif member.isfile():
                file = members.extractfile(member)
                content = file.read() if file else None
            if content is not None:
                (place / member.name).write_bytes(content)


def unpack_moved_folder(commit: str, place: Path) -> None:
    """Write the files that git has moved into the folder since this commit, as they were then."""
    prefix = (git("rev-parse", "--show-prefix") or b"").decode().strip()
    renames = git("diff", "-M", "--diff-filter=R", "--name-status", "-z", commit) or b""
    words = renames.decode(errors="surrogateescape").split("\0")
    for before, after in zip(words[1::3], words[2::3]):
        content = git("show", f"{commit}:{before}")
        if content is not None and os.path.dirname(after) == prefix.rstrip("/"):
            (place / os.path.basename(before)).write_bytes(content)


def tokens_checksum(file: Migration) -> Optional[str]:
    """None if the text cannot be read, and so cannot be compared."""
    try:
        return migration_files.tokens_checksum(file)
    except MigrationError:
        return None


def git(*words: str) -> Optional[bytes]:
    """What git answers about the folder's repository; None if it fails, or is not installed."""
    program = shutil.which("git")
    folder = initializer.MIGRATIONS_DIR
    if not program or not folder.is_dir():
        return None
    # In a hook git's variables name a repository, relative to another directory.
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIT_DIR", "GIT_WORK_TREE"))
    }
    command = [program, "-C", str(folder.resolve()), *words]
    done = subprocess.run(command, env=environ, capture_output=True, check=False)  # noqa: S603 - no shell
    return done.stdout if done.returncode == 0 else None


# --- check: squawk --------------------------------------------------------------------------------


def check_with_squawk(scripts: Mapping[Migration, Script], findings: Findings) -> None:
    program = shutil.which("squawk")
    if program is None:
        findings.notes.append(NO_SQUAWK)
        return
    # It cannot read the rows of a COPY.
    readable = {file: script for file, script in scripts.items() if not has_rows(script)}
    in_transaction = [file for file, script in readable.items() if not script.no_transaction]
    outside = [file for file, script in readable.items() if script.no_transaction]
    results = [
        squawk_accepts(program, "--assume-in-transaction", in_transaction, findings),
        squawk_accepts(program, "--no-assume-in-transaction", outside, findings),
    ]
    if not all(results):
        findings.problems.append("squawk complains, see above")


def has_rows(script: Script) -> bool:
    return any(piece.data for piece in script.pieces)


# Its complaint and the place, without its colours and links.
BY_SQUAWK = re.compile(r"^\w+\[([\w-]+)\]: (.*)\n\W+(\S.*):(\d+):\d+$", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;;.*?\x1b\\")


def squawk_accepts(
    program: str, option: str, files: Sequence[Migration], findings: Findings
) -> bool:
    """Run squawk, whose complaints go to stderr."""
    if not files:
        return True
    here = Path.cwd()
    is_configured = any((folder / ".squawk.toml").exists() for folder in (here, *here.parents))
    command = [program, option]
    if not is_configured:  # the option would replace the rules that the file excludes
        command.append(f"--exclude={EXCLUDED_RULES},{STYLE_RULES}")
    command.append("--")
    command += [str(from_here(file.path)) for file in files]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603 - no shell
    said = done.stdout.decode(errors="replace")
    print(said, end="", file=sys.stderr, flush=True)
    for rule, what, place, line in BY_SQUAWK.findall(COLOURS.sub("", said)):
        if rule not in f"{EXCLUDED_RULES},{STYLE_RULES}".split(","):
            findings.by_squawk.append(Finding(Path(place).name, int(line), rule, what))
    return done.returncode == 0


if __name__ == "__main__":
    status = main()
    if database.is_left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

"""The same folder of migrations through the handler and through psql: `make compare MIGRATIONS=folder`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve()
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[2] / "db_setup"), str(HERE.parents[1])]

import initializer  # noqa: E402
import migration_files  # noqa: E402
import planning  # noqa: E402
import sql_scanner  # noqa: E402

from harness import clients  # noqa: E402
from harness.aws import played  # noqa: E402
from harness.database import create_admin, create_database, drop_database  # noqa: E402
from harness.database import schema as application_schema  # noqa: E402
from harness.server import Server, running_server  # noqa: E402
from harness.world import ADMIN, ADMIN_PASSWORD, World  # noqa: E402


@dataclass(frozen=True)
class Side:
    """What came of a folder: the files that went through, the one that failed and why, the schema, rows by table."""

    applied: list[str]
    failed: str
    reason: str
    schema: str
    rows: dict[str, int]


def run_side_by_side(server: Server, folder: Path) -> tuple[Side, Side]:
    """Handler and psql, each in a new database, one file after the other until one fails."""
    with _database(server, "by_handler") as one, _database(server, "by_psql") as other, played():
        world = World(server, one, folder)
        failed = reason = ""
        try:
            world.deploy(CREATE_USERS="false")
        except initializer.InitializerError as exc:
            reason = str(exc)
            failed = reason.split(".sql:")[0].split(".SQL:")[0]
        by_handler = _look(
            server, one, world.applied() if "schema_migrations" in _all_tables(world) else [], failed, reason
        )
        applied, failed, reason = _run_psql(server, other, folder)
        return by_handler, _look(server, other, applied, failed, reason)


@contextmanager
def _database(server: Server, name: str) -> Iterator[str]:
    dbname = f"compare_{os.getpid()}_{name}"
    drop_database(server, dbname)
    create_database(server, dbname, ADMIN)
    try:
        yield dbname
    finally:
        drop_database(server, dbname)


def _all_tables(world: World) -> list[str]:
    return [name for (name,) in world.sql("SELECT relname FROM pg_class WHERE relkind = 'r'")]


def _run_psql(server: Server, dbname: str, folder: Path) -> tuple[list[str], str, str]:
    """psql -1 for each file; without -1 where no transaction is wanted or possible."""
    major = server.version // 10000
    psql = clients.client("psql", max(major, min(clients.MAJORS)))
    env = clients.environment(server, ADMIN, ADMIN_PASSWORD, dbname)
    problems: list[str] = []
    files = migration_files.load_migrations(folder, problems, warnings=[])
    applied = []
    for name, file in planning.number_files(files, files, []):
        command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, "-f", file.path]
        done = subprocess.run(
            command if _marked(file.path) else [*command, "-1"], env=env, capture_output=True, text=True, check=False
        )
        if "cannot run inside a transaction block" in done.stderr and _count(file.path) == 1:
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            return applied, file.name, done.stderr.strip()
        applied.append(name)
    return applied, "", ""


def _marked(path: Path) -> bool:
    return bool(re.search(r"^\s*--\s*no-transaction\s*$", path.read_text(errors="replace"), re.MULTILINE))


def _count(path: Path) -> int:
    return sum(1 for _ in sql_scanner.scan(path.read_text(encoding="utf-8-sig")))


def _look(server: Server, dbname: str, applied: list[str], failed: str, reason: str) -> Side:
    env = clients.environment(server, ADMIN, ADMIN_PASSWORD, dbname)
    dump = clients.client("pg_dump", max(server.version // 10000, min(clients.MAJORS)))
    schema = clients.run(dump, "--schema-only", "-T", f"{application_schema()}.schema_migrations*", env=env)
    psql = clients.client("psql", max(server.version // 10000, min(clients.MAJORS)))
    counts = clients.run(
        psql,
        "-XAt",
        "-c",
        "SELECT format('%I.%I', n.nspname, c.relname), (xpath('/row/n/text()', query_to_xml(format("
        "'SELECT count(*) AS n FROM %I.%I', n.nspname, c.relname), false, true, '')))[1]::text "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') "
        "AND n.nspname !~ '^(pg_|information_schema)' AND c.relname !~ '^schema_migrations' ORDER BY 1",
        env=env,
    )
    rows = dict(line.rsplit("|", 1) for line in counts.splitlines())
    return Side(applied, failed, reason, without_noise(schema), {name: int(count) for name, count in rows.items()})


def without_noise(dump: str) -> str:
    """A dump without its random key, its comments, empty lines, and the stamps of columns.

    The stamp (pg_attver) is the place in the server's write-ahead log where the column was made, so no two databases
    have the same. Only a pg_dump of an older minor version than the server's writes it.
    """
    dump = re.sub(r"^ALTER .* SET \(pg_attver=\d+\);\n", "", dump, flags=re.MULTILINE)
    dump = re.sub(r"\bpg_attver=\d+, ?", "", dump)
    return "\n".join(line for line in dump.splitlines() if line and not re.match(r"--|\\(un)?restrict ", line))


def differences(ours: Side, theirs: Side) -> list[str]:
    found = []
    for what in ("applied", "failed", "schema", "rows"):
        if getattr(ours, what) != getattr(theirs, what):
            found.append(f"{what} differ: handler {getattr(ours, what)!s:.600}, psql {getattr(theirs, what)!s:.600}")
    return found


def main() -> int:
    folder = Path(sys.argv[1])
    with running_server() as server:
        print(f"PostgreSQL: {server.how}")
        create_admin(server, ADMIN, ADMIN_PASSWORD)
        ours, theirs = run_side_by_side(server, folder)
    print(f"handler: {len(ours.applied)} files applied. {ours.reason}")
    print(f"psql:    {len(theirs.applied)} files applied. {theirs.reason}")
    found = differences(ours, theirs)
    print("\n".join(found) or f"The same schema, and the same rows in {len(ours.rows)} tables.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

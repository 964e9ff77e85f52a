"""`make demo`: the main job, shown on a real PostgreSQL that is thrown away afterwards.

`make demo MIGRATIONS=folder` does the first deployment with the files of that folder instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "db_setup"), str(REPOSITORY / "tests")]

import psycopg2  # noqa: E402
from harness.database import create_admin, create_database  # noqa: E402
from harness.server import NoServerError, Server, running_server  # noqa: E402
from harness.world import ADMIN, ADMIN_PASSWORD, AWS_ENVIRONMENT, World, rows  # noqa: E402
from initializer import InitializerError  # noqa: E402
from moto import mock_aws  # noqa: E402
from prepare import migrations_folder  # noqa: E402

WIDTH = 100  # columns
SHOWN = "first deployment, dry run, failure and repair, waits for locks, limited logins, adoption"
SHOWN_OWN = "a first deployment, which applied {}, and a second one, which found nothing to do"

ORDERS = """\
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    total numeric(10,2) NOT NULL
);
"""
BROKEN = """\
-- Customers want to see when an order was paid.
ALTER TABLE orders ADD COLUMN paid_at timestamptz;
CREATE INDEX orders_paid_at ON orders (payed_at);
"""


def heading(number: int, text: str) -> None:
    print(f"\n{number}. {text}\n{'-' * (len(text) + 3)}")


def say(text: str) -> None:
    print(textwrap.fill(" ".join(text.split()), WIDTH))


def terminal() -> Any:
    """db_setup/__main__.py, which shows reports as tables."""
    spec = importlib.util.spec_from_file_location("terminal", REPOSITORY / "db_setup" / "__main__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TERMINAL = terminal()


class Log(logging.Formatter):
    """The handler's log, its lines broken where the page ends."""

    def format(self, record: logging.LogRecord) -> str:
        first = f"    {record.levelname:7} "
        return textwrap.fill(
            record.getMessage(), WIDTH, initial_indent=first, subsequent_indent=" " * 14, break_on_hyphens=False
        )


def show_file(name: str, text: str) -> None:
    print(f"    db_setup/migrations/{name}")
    print(textwrap.indent(text.rstrip(), "    | "))


def show(report: dict[str, Any]) -> None:
    """The handler's answer, as `python3 db_setup` shows it on a terminal."""
    print(textwrap.indent("\n".join(TERMINAL.table(report, sys.stdout)), "    | "))


def deploy(world: World, **environ: str) -> dict[str, Any]:
    """One deployment: the handler's log, then its answer."""
    report = world.deploy(**environ)
    show(report)
    return report


def invoke(world: World, action: str) -> None:
    """What the handler answers to this event."""
    event = {"action": action}
    print(f"    event   {json.dumps(event)}")
    show(world.deploy(event))


@contextmanager
def someone_reads(world: World, seconds: float) -> Iterator[None]:
    """Another session that has read the orders, and keeps its transaction open for so long."""
    with world.connection() as conn:
        rows(conn, "SET application_name = 'monthly report'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM orders")
        timer = threading.Timer(seconds, rows, [conn, "COMMIT"])
        timer.start()
        yield
        timer.join()


def deploy_and_fail(world: World) -> None:
    try:
        world.deploy()
    except InitializerError as exc:
        say("The deployment fails. CloudFormation shows this message, and rolls the stack back:")
        for line in str(exc).splitlines():
            print(textwrap.fill(line, WIDTH, initial_indent="    > ", subsequent_indent="    > "))
    else:
        raise SystemExit("the broken migration should have failed")


@contextmanager
def application(server: Server, dbname: str, migrations: Path) -> Iterator[World]:
    """A database that the admin owns, and an empty Secrets Manager."""
    create_database(server, dbname, ADMIN)
    with mock.patch.dict(os.environ, AWS_ENVIRONMENT), mock_aws(), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "migrations"
        shutil.copytree(migrations, copy)
        yield World(server, dbname, copy)


def try_logins(world: World) -> None:
    """Log in with what is in the secrets, and try what each may and may not do."""
    attempts = (
        ("user", "INSERT INTO users (email) VALUES ('ann@example.com')"),
        ("user", "SELECT email FROM users"),
        ("user", "DROP TABLE users"),
        ("user", "DELETE FROM schema_migrations"),
        ("creator", "CREATE TABLE reports (id int)"),
        ("user", "SELECT count(*) FROM reports"),
    )
    for secret, statement in attempts:
        with world.login(secret) as conn:
            try:
                allowed, answer = "yes", values(rows(conn, statement))
            except psycopg2.errors.InsufficientPrivilege as exc:
                allowed, answer = "no", str(exc).splitlines()[0]
            print(f"    {conn.info.user:7} {allowed:4} {statement}{answer and f': {answer}'}")


def values(found: list[tuple[Any, ...]]) -> str:
    return ", ".join(str(value) for row in found for value in row)


def tour(server: Server) -> None:
    with application(server, "shop", REPOSITORY / "migrations") as world:
        heading(1, "The first deployment, on an empty database")
        deploy(world)

        heading(2, "The same again: nothing to do")
        deploy(world)

        heading(3, "Two new migrations, one of them without a number")
        world.write("002_add_orders.sql", ORDERS)
        show_file("002_add_orders.sql", ORDERS)
        unnumbered = "ALTER TABLE users ADD COLUMN nickname text;\n"
        world.write("add_nickname.sql", unnumbered)
        show_file("add_nickname.sql", unnumbered)
        say("Before: what is applied and what is pending, and a dry run, which is rolled back.")
        invoke(world, "status")
        invoke(world, "dry_run")
        say("The deployment:")
        deploy(world)

        heading(4, "A broken one")
        world.write("004_paid.sql", BROKEN)
        show_file("004_paid.sql", BROKEN)
        deploy_and_fail(world)

        heading(5, "The repaired one")
        world.write("004_paid.sql", BROKEN.replace("payed", "paid"))
        deploy(world)

        heading(6, "Other sessions hold locks: the deployment retries, and says what it waits for")
        world.write("005_add_note.sql", "ALTER TABLE orders ADD COLUMN note text;\n")
        show_file("005_add_note.sql", "ALTER TABLE orders ADD COLUMN note text;\n")
        with someone_reads(world, 2):
            deploy(world, LOCK_TIMEOUT="1s")
        index = "CREATE INDEX CONCURRENTLY orders_user_id ON orders (user_id);\n"
        world.write("006_index_orders.sql", index)
        show_file("006_index_orders.sql", index)
        with someone_reads(world, 7):
            deploy(world)

        heading(7, "The two logins, tried with the credentials in their secrets")
        try_logins(world)

    with application(server, "legacy", REPOSITORY / "migrations") as world:
        heading(8, "A database that existed before: its first migration is adopted, the next one runs")
        world.sql((REPOSITORY / "migrations" / "001_initial_schema.sql").read_text())
        world.sql("INSERT INTO users (email) VALUES ('was-here-before@example.com')")
        world.write("002_add_orders.sql", ORDERS)
        say("It is a second application on the same server, so it gets roles of its own: ROLE_PREFIX=legacy_")
        deploy(world, ROLE_PREFIX="legacy_")
        print(f"    SELECT email FROM users: {values(world.sql('SELECT email FROM users'))}")


def own_files(server: Server, folder: Path) -> int:
    """Return how many files were applied."""
    with application(server, "yours", folder) as world:
        heading(1, f"The first deployment with the files of {folder}")
        applied = len(deploy(world)["applied"])
        heading(2, "The same again: nothing to do")
        deploy(world)
    return applied


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--migrations", type=migrations_folder, help="a folder with .sql files of your own")
    folder = parser.parse_args().migrations
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Log())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("db_setup").setLevel(logging.INFO)
    shown = SHOWN
    try:
        with running_server() as server:
            print(f"PostgreSQL for this demo: {server.how}")
            say("Its admin is like the one of Amazon RDS: not a superuser. moto plays Secrets Manager.")
            create_admin(server, ADMIN, ADMIN_PASSWORD)
            if folder:
                count = own_files(server, folder)
                shown = SHOWN_OWN.format(f"{count} file{'s' * (count != 1)}")
            else:
                tour(server)
    except (NoServerError, InitializerError) as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Server, databases and secrets are gone.", file=sys.stderr)
        return 130
    print("\nServer, databases and secrets are gone.")
    say(f"Shown: {shown}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

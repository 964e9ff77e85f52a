"""`make demo`: the main job, shown on a real PostgreSQL that is thrown away afterwards.

`make demo MIGRATIONS=folder` does the first deployment with the files of that folder instead.
"""

from __future__ import annotations

import argparse
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
    print(textwrap.fill(" ".join(text.split()), 100))


def show_file(name: str, text: str) -> None:
    print(f"    db_setup/migrations/{name}")
    print(textwrap.indent(text.rstrip(), "    | "))


def deploy(world: World, **environ: str) -> dict[str, Any]:
    """One deployment: the handler's log, then its answer."""
    report = world.deploy(**environ)
    print(f"    answer  {json.dumps(report)}")
    return report


def invoke(world: World, action: str, *keys: str) -> None:
    """What the console shows for this event, of which only some keys are of interest here."""
    event = {"action": action}
    report = world.deploy(event)
    print(f"    event   {json.dumps(event)}\n    answer  {json.dumps({key: report[key] for key in keys})}")


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
        print(textwrap.indent(str(exc), "    > "))
    else:
        raise SystemExit("the broken migration should have failed")


@contextmanager
def application(server: Server, dbname: str, migrations: Path) -> Iterator[World]:
    """A database that the admin owns, and an empty Secrets Manager beside it."""
    create_database(server, dbname, ADMIN)
    with mock.patch.dict(os.environ, AWS_ENVIRONMENT), mock_aws(), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "migrations"
        shutil.copytree(migrations, copy)
        yield World(server, dbname, copy)


def try_logins(world: World) -> None:
    """Log in with what stands in the secrets, and try what each may and may not do."""
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
                answer = f"yes  {rows(conn, statement) or ''}"
            except psycopg2.errors.InsufficientPrivilege as exc:
                answer = f"no   {str(exc).splitlines()[0]}"
            print(f"    {conn.info.user:7} {statement:55} {answer}")


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
        say("Before: what is applied and what is pending, and a dry run, which takes everything back.")
        invoke(world, "status", "applied", "pending", "users")
        invoke(world, "dry_run", "tried", "pending")
        say("The deployment:")
        deploy(world)

        heading(4, "A broken one")
        world.write("004_paid.sql", BROKEN)
        show_file("004_paid.sql", BROKEN)
        deploy_and_fail(world)

        heading(5, "The repaired one")
        world.write("004_paid.sql", BROKEN.replace("payed", "paid"))
        deploy(world)

        heading(6, "Others are in the way: it gives way to them, and says what it waits for")
        world.write("005_add_note.sql", "ALTER TABLE orders ADD COLUMN note text;\n")
        show_file("005_add_note.sql", "ALTER TABLE orders ADD COLUMN note text;\n")
        with someone_reads(world, 2):
            deploy(world, LOCK_TIMEOUT="1s")
        index = "CREATE INDEX CONCURRENTLY orders_user_id ON orders (user_id);\n"
        world.write("006_index_orders.sql", index)
        show_file("006_index_orders.sql", index)
        with someone_reads(world, 7):
            deploy(world)

        heading(7, "The two logins, tried with what stands in their secrets")
        try_logins(world)

    with application(server, "legacy", REPOSITORY / "migrations") as world:
        heading(8, "A database that existed before: its first migration is adopted, the next one runs")
        world.sql((REPOSITORY / "migrations" / "001_initial_schema.sql").read_text())
        world.sql("INSERT INTO users (email) VALUES ('was-here-before@example.com')")
        world.write("002_add_orders.sql", ORDERS)
        say("It is a second application on the same server, so it gets roles of its own: ROLE_PREFIX=legacy_")
        deploy(world, ROLE_PREFIX="legacy_")
        print(f"    users   {world.sql('SELECT email FROM users')}")


def own_files(server: Server, folder: Path) -> None:
    with application(server, "yours", folder) as world:
        heading(1, f"The first deployment with the files of {folder}")
        deploy(world)
        heading(2, "The same again: nothing to do")
        deploy(world)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--migrations", type=Path, help="a folder with .sql files of your own")
    folder = parser.parse_args().migrations
    if folder and not folder.is_dir():
        parser.error(f"{folder} is no folder")
    logging.basicConfig(stream=sys.stdout, format="    %(levelname)-7s %(message)s")
    logging.getLogger("db_setup").setLevel(logging.INFO)
    try:
        with running_server() as server:
            print(f"PostgreSQL for this demo: {server.how}")
            say("Its admin is like the one of Amazon RDS: no superuser. Secrets Manager is played by moto.")
            create_admin(server, ADMIN, ADMIN_PASSWORD)
            own_files(server, folder) if folder else tour(server)
    except (NoServerError, InitializerError) as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
    print("\nDone. Server, databases and secrets are gone again.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

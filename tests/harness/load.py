"""An application at work while a migration runs, and how long its statements had to wait meanwhile."""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg2

from harness import guide
from harness.aws import played
from harness.database import create_database, drop_database, drop_roles, superuser_connection
from harness.others import wait_until
from harness.server import Server
from harness.world import ADMIN, ADMIN_PASSWORD, World, exactly, rows

TEMPLATE = "guide_under_load"
USERS = 100_000  # or fewer, where there are fewer orders
PAUSE_S = 0.005  # of each thread, between two statements

READ, WRITE = "reads", "writes"
ORDERS = (
    (READ, "SELECT total FROM orders WHERE id = %(id)s"),
    (READ, "SELECT count(*) FROM orders WHERE id BETWEEN %(id)s AND %(id)s + 50"),
    (WRITE, "UPDATE orders SET note = 'seen' WHERE id = %(id)s"),
    (
        WRITE,
        "INSERT INTO orders (user_id, reference, total) "
        "SELECT id, left(md5(random()::text), 20), 1 FROM users WHERE email = %(email)s",
    ),
)
EVENTS = (
    (READ, "SELECT kind FROM events WHERE id = %(id)s"),
    (READ, "SELECT count(*) FROM events WHERE id BETWEEN %(id)s AND %(id)s + 50"),
    (WRITE, "UPDATE events SET kind = 'seen' WHERE id = %(id)s"),
    (WRITE, "INSERT INTO events (kind) VALUES ('new')"),
)
BOTH = (*ORDERS, (READ, "SELECT id FROM users WHERE email = %(email)s"))
BOTH_WRITTEN = (*BOTH, (WRITE, "UPDATE users SET created_at = now() WHERE email = %(email)s"))


class Case(NamedTuple):
    """A recipe that has something to measure, what one would write without it, and the application's statements."""

    title: str
    naive: str
    statements: Sequence[tuple[str, str]] = ORDERS
    files: int = 9  # how many of the recipe's files belong to it

    @property
    def recommended(self) -> list[guide.Block]:
        """The guide's own files, but for those that it says belong to a later deployment or to another example."""
        return guide.recipe(self.title).files[: self.files]


CASES = (
    Case(
        "Add a column with a computed default",
        "ALTER TABLE orders ADD COLUMN public_id uuid DEFAULT gen_random_uuid();",
    ),
    Case("Make a column NOT NULL", "ALTER TABLE orders ALTER COLUMN reference SET NOT NULL;", files=1),
    Case("Change a type that is stored differently", "ALTER TABLE orders ALTER COLUMN id TYPE bigint;", files=3),
    Case("Create an index", "CREATE INDEX orders_user_id ON orders (user_id);", files=1),
    Case("Make values unique", "ALTER TABLE orders ADD CONSTRAINT orders_reference_key UNIQUE (reference);"),
    Case(
        "Add a foreign key",
        "ALTER TABLE orders ADD CONSTRAINT orders_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id);",
        BOTH_WRITTEN,
    ),
    Case(
        "Add a check constraint",
        "ALTER TABLE orders ADD CONSTRAINT orders_total_not_negative CHECK (total >= 0);",
    ),
    Case(
        "Back-fill a column",
        "ALTER TABLE orders ADD COLUMN total_with_tax numeric(14,2);\n"
        "UPDATE orders SET total_with_tax = round(total * 1.19, 2);",
        files=4,
    ),
    Case(
        "Partition a table",
        "ALTER TABLE events RENAME TO events_old;\n"
        "CREATE TABLE events (LIKE events_old INCLUDING DEFAULTS, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);\n"
        "CREATE TABLE events_to_2030 PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2031-01-01');\n"
        "CREATE TABLE events_2031 PARTITION OF events FOR VALUES FROM ('2031-01-01') TO ('2032-01-01');\n"
        "INSERT INTO events SELECT * FROM events_old;\n"
        "ALTER SEQUENCE events_id_seq OWNED BY events.id;\n"
        "DROP TABLE events_old;",
        EVENTS,
        files=2,
    ),
)


class Figures(NamedTuple):
    """The longest waits of a read and of a write, how long the migration took, and statements that failed."""

    reads: float
    writes: float
    took: float
    errors: tuple[str, ...] = ()


def median(figures: Sequence[Figures]) -> Figures:
    middle = [statistics.median(values) for values in zip(*((f.reads, f.writes, f.took) for f in figures))]
    return Figures(*middle, errors=tuple(error for f in figures for error in f.errors))


# --- The application ------------------------------------------------------------------------------------------------


class Application:
    """One thread and one connection for each statement, which it repeats until the end."""

    def __init__(self, world: World, statements: Sequence[tuple[str, str]], highest: int) -> None:
        self.waits: dict[str, list[float]] = {READ: [], WRITE: []}
        self.errors: list[str] = []
        self._over = threading.Event()
        login = world.secret("user")
        self._threads = [
            threading.Thread(target=self._repeat, args=(world, login, kind, statement, highest))
            for kind, statement in statements
        ]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.waits[READ]) > 20 and len(self.waits[WRITE]) > 20, 60)
        for waits in self.waits.values():  # the first ones had caches to fill
            waits.clear()

    def _repeat(self, world: World, login: dict[str, str], kind: str, statement: str, highest: int) -> None:
        with world.connection(login["username"], login["password"]) as conn:
            while not self._over.wait(PAUSE_S):
                number = random.randint(1, highest)
                values = {"id": number, "email": f"user{number % min(highest, USERS)}@example.com"}
                started = time.monotonic()
                try:
                    with conn.cursor() as cur:
                        cur.execute(statement, values)
                except psycopg2.Error as exc:
                    self.errors.append(f"{statement}: {exc}")
                self.waits[kind].append(time.monotonic() - started)

    def end(self, took: float) -> Figures:
        self._over.set()
        for thread in self._threads:
            thread.join(120)
        return Figures(max(self.waits[READ]), max(self.waits[WRITE]), took, tuple(self.errors))


# --- The database ---------------------------------------------------------------------------------------------------


def build_template(server: Server, orders: int) -> None:
    """The tables of the guide's examples, with rows in `users`, `orders` and `events`."""
    drop_database(server, TEMPLATE)
    create_database(server, TEMPLATE, ADMIN)
    conn = psycopg2.connect(host=server.host, port=server.port, dbname=TEMPLATE, user=ADMIN, password=ADMIN_PASSWORD)
    conn.autocommit = True
    try:
        for text in (guide.SCHEMA.read_text(), *(block.text for block in guide.prelude())):
            rows(conn, text)
        users = min(orders, USERS)
        rows(
            conn,
            "INSERT INTO users (email) SELECT 'user' || n || '@example.com' FROM generate_series(0, %s) n",
            users - 1,
        )
        rows(
            conn,
            "WITH numbered AS (SELECT id, row_number() OVER () AS n FROM users) "
            "INSERT INTO orders (user_id, reference, total, note) "
            "SELECT u.id, 'R' || s, s %% 1000, 'note ' || s FROM generate_series(1, %s) s "
            "JOIN numbered u ON u.n = s %% %s + 1 ORDER BY s",
            orders,
            users,
        )
        rows(
            conn,
            "INSERT INTO events (at, kind) SELECT timestamptz '2020-01-01' + s * interval '1 s', 'kind ' || s %% 50 "
            "FROM generate_series(1, %s) s",
            orders,
        )
        rows(conn, "VACUUM ANALYZE")
    finally:
        conn.close()


@contextmanager
def copy_of_template(server: Server, dbname: str) -> Iterator[World]:
    """A world on a copy of the template, taken over by db_setup, with its users; gone afterwards."""
    drop_database(server, dbname)
    with superuser_connection(server) as conn:
        by_file = " STRATEGY FILE_COPY" if server.version >= 150000 else ""
        rows(conn, f"CREATE DATABASE {dbname} OWNER {ADMIN} TEMPLATE {TEMPLATE}{by_file}")
    try:
        with played(), tempfile.TemporaryDirectory() as folder:
            world = World(server, dbname, Path(folder) / "migrations")
            world.write(guide.SCHEMA.name, guide.SCHEMA.read_text())
            (shop,) = guide.prelude()
            world.write(f"{shop.name}.sql", shop.text)
            world.deploy(BASELINE=shop.name)
            with exactly(world.environ):  # libpq reads the environment in other threads
                yield world
    finally:
        drop_database(server, dbname)
        drop_roles(server, "readwrite", "tablecreator", "app\\_rw%", "app\\_tc%")


# --- What is measured -----------------------------------------------------------------------------------------------


def measured(world: World, case: Case, files: Sequence[tuple[str, str]], highest: int) -> Figures:
    """Deploy the files, which are (name, text), under the case's load."""
    for name, text in files:
        world.write(f"{name}.sql", text)
    application = Application(world, case.statements, highest)
    started = time.monotonic()
    took = 0.0
    try:
        world.deploy()
        took = time.monotonic() - started
        time.sleep(0.1)
    finally:
        figures = application.end(took)
    return figures


def run_case(server: Server, case: Case, highest: int, naively: bool) -> Figures:
    files = [("003_naive", case.naive)] if naively else [(b.name, b.text) for b in case.recommended]
    with copy_of_template(server, f"{TEMPLATE}_{'naive' if naively else 'guide'}") as world:
        return measured(world, case, files, highest)


def quiet(server: Server, highest: int, seconds: float) -> Figures:
    """The longest waits where nothing is migrated: what the machine itself brings about."""
    with copy_of_template(server, f"{TEMPLATE}_quiet") as world:
        application = Application(world, ORDERS, highest)
        time.sleep(seconds)
        return application.end(seconds)


def behind_a_long_reader(server: Server, highest: int, seconds: float, plainly: bool) -> Figures:
    """ALTER TABLE while a report reads the table for so long: in a plain session, or as a migration."""
    add = "ALTER TABLE orders ADD COLUMN weight integer;"
    with ExitStack() as standing:
        world = standing.enter_context(copy_of_template(server, f"{TEMPLATE}_queue"))
        reader = standing.enter_context(world.login("user"))
        rows(reader, "BEGIN; SELECT count(*) FROM orders WHERE id < 10")
        application = Application(world, ORDERS, highest)
        timer = threading.Timer(seconds, rows, (reader, "COMMIT"))
        started = time.monotonic()
        timer.start()
        if plainly:
            world.sql(add)
        else:
            world.write("003_weight.sql", add)
            world.deploy()
        figures = application.end(time.monotonic() - started)
        timer.join()
        return figures


# --- What is said of it ---------------------------------------------------------------------------------------------


def shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"


def line(case: Case, naive: Figures, this_way: Figures) -> str:
    """A line of the guide's table."""
    cells = [f"[{case.title}](#{guide.anchor(case.title)})"]
    cells += [f"{shown(figures.reads)} / {shown(figures.writes)}" for figures in (naive, this_way)]
    return f"| {' | '.join([*cells, f'{shown(naive.took)} / {shown(this_way.took)}'])} |"


def sentence(cells: Sequence[str]) -> str:
    """What the recipe says of its own line."""
    (naive_reads, naive_writes), (reads, writes) = (cell.split(" / ") for cell in cells[1:3])
    return f"Measured: naively reads wait {naive_reads}, writes {naive_writes}; this way {reads} and {writes}."

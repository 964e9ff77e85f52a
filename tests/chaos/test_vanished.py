"""A client that vanishes without a word: the server notices within 20 s, and lets go of the lock and the statement.

The handler runs in a network namespace of its own, whose only link is taken down: no FIN, no RST, no ICMP. Needs Linux,
root and the program ip (Debian, Ubuntu: apt-get install iproute2), and a PostgreSQL that is installed here.
"""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from harness.aws import played
from harness.database import create_admin, create_database, superuser_connection
from harness.others import Handlers, handlers, open_transaction, sessions, wait_until
from harness.server import Server
from harness.silent_proxy import silent_proxy
from harness.world import ADMIN, ADMIN_PASSWORD, Context, World, exactly, rows
from moto.server import ThreadedMotoServer
from session import DEADLINE_CLASS, LOCK_KEY

GONE_S = 20
NETWORKS = ("198.51.100", "203.0.113", "192.0.2")  # those that exist only in documentation, and in virtual machines
pytestmark = pytest.mark.timeout(240)


# --- A server, and a network that can be cut -------------------------------------------------------------------------


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr.strip()}"
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """A network namespace with one link to the rest of the machine."""

    name: str
    network: str

    @property
    def here(self) -> str:
        """The address of our end of the link."""
        return f"{self.network}.1"

    @property
    def prefix(self) -> tuple[str, ...]:
        """What starts a program in it."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> float:
        """Take its link down; returns the moment."""
        run(*self.prefix, "ip", "link", "set", "outside", "down")
        return time.monotonic()

    def restore(self) -> None:
        run(*self.prefix, "ip", "link", "set", "outside", "up")


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    assert os.geteuid() == 0, "only root can make network namespaces"
    assert shutil.which("ip"), "the program ip is missing: apt-get install iproute2"
    name = f"db-setup-{os.getpid()}"
    link = f"dbs{os.getpid()}"
    used = run("ip", "address") + run("ip", "route")
    there = Namespace(name, next(network for network in NETWORKS if f" {network}." not in used))
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "outside", "netns", name)
        run("ip", "address", "add", f"{there.here}/30", "dev", link)
        run("ip", "link", "set", link, "up")
        run(*there.prefix, "ip", "link", "set", "lo", "up")
        run(*there.prefix, "ip", "address", "add", f"{there.network}.2/30", "dev", "outside")
        there.restore()
        yield there
    finally:
        run("ip", "netns", "delete", name)


@pytest.fixture(scope="module")
def reachable(server: Server, namespace: Namespace) -> Iterator[Server]:
    """A server of the same version that listens on the namespace's link."""
    with superuser_connection(server) as conn:
        ((binaries,),) = rows(conn, "SELECT setting FROM pg_config WHERE name = 'BINDIR'")
    folder = Path(tempfile.mkdtemp(prefix="db-setup-vanished-", dir="/tmp"))
    try:
        with running_postgres(Path(binaries), folder, namespace.here) as (port, password):
            here = Server("installed", namespace.here, port, "postgres", password, version=server.version)
            create_admin(here, ADMIN, ADMIN_PASSWORD)
            yield here
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_postgres(binaries: Path, folder: Path, host: str) -> Iterator[tuple[int, str]]:
    """The port and the superuser's password of a PostgreSQL in this folder."""
    assert (binaries / "initdb").is_file(), f"no PostgreSQL in {binaries}: say TEST_POSTGRES=installed"
    account = pwd.getpwnam("postgres")
    password, secret = secrets.token_hex(16), folder / "password"
    secret.write_text(password)
    for path in (folder, secret):
        os.chown(path, account.pw_uid, account.pw_gid)
    with socket.create_server((host, 0)) as probe:
        port = int(probe.getsockname()[1])
    identity: Any = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": folder}
    initdb = [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run([*initdb, f"--pwfile={secret}"], check=True, capture_output=True, timeout=120, **identity)
    with (folder / "data" / "pg_hba.conf").open("a") as access:
        access.write(f"host all all {host}/30 scram-sha-256\n")
    options = {"listen_addresses": host, "port": port, "unix_socket_directories": "", "fsync": "off"}
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    with (folder / "server.log").open("wb") as log:
        command = [binaries / "postgres", "-D", folder / "data", *arguments]
        postgres = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **identity)
    try:
        wait_until(lambda: postgres.poll() is not None or accepts(host, port, password), 30)
        assert postgres.poll() is None, (folder / "server.log").read_text()
        yield port, password
    finally:
        postgres.terminate()  # waits for its sessions, of which none should be left
        with suppress(subprocess.TimeoutExpired):
            postgres.wait(5)
        postgres.kill()
        postgres.wait(10)


def accepts(host: str, port: int, password: str) -> bool:
    login = {"user": "postgres", "password": password, "dbname": "postgres", "connect_timeout": 5}
    try:
        psycopg2.connect(host=host, port=port, **login).close()
        return True
    except psycopg2.OperationalError:
        return False


@pytest.fixture
def afar(reachable: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """A world on that server, with a table and no users."""
    caplog.set_level(logging.INFO, logger="db_setup")
    dbname = f"vanished_{time.monotonic_ns()}"
    create_database(reachable, dbname, ADMIN)
    with played():
        world = World(reachable, dbname, tmp_path / "migrations")
        world.environ["CREATE_USERS"] = "false"
        with exactly(world.environ):
            world.write("001_a.sql", "CREATE TABLE a (i int); CREATE SEQUENCE tries;")
            world.deploy()
            yield world


@contextmanager
def handler_afar(world: World, namespace: Namespace) -> Iterator[Handlers]:
    """One handler in the namespace, ready to start."""
    server = ThreadedMotoServer(ip_address=namespace.here, port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        with handlers(world, 1, f"http://{namespace.here}:{port}", namespace.prefix) as processes:
            yield processes
    finally:
        namespace.restore()
        server.stop()


def locks(world: World) -> list[tuple[Any, ...]]:
    """The handler's two advisory locks in this database."""
    select = (
        "SELECT classid::bigint, objid::bigint FROM pg_locks JOIN pg_database d ON d.oid = database "
        "WHERE locktype = 'advisory' AND datname = current_database() AND classid IN (%s, %s)"
    )
    return world.sql(select, LOCK_KEY >> 32, DEADLINE_CLASS)


def seconds_until_gone(world: World, since: float) -> float:
    """How long the server took to notice; it is given three times as long as it may take."""
    while sessions(world) or locks(world):
        if time.monotonic() - since > 3 * GONE_S:
            pytest.fail(f"after {3 * GONE_S} s still there: {sessions(world)}, locks {locks(world)}")
        time.sleep(0.1)
    return time.monotonic() - since


# --- The tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds", [pytest.param(600, id="long statement"), pytest.param(3, id="statement that ends meanwhile")]
)
def test_vanished_client_in_a_statement_is_noticed(afar: World, namespace: Namespace, seconds: int) -> None:
    """The link dies under a running statement: statement and lock are gone within 20 s, whether the statement goes on
    for long or ends meanwhile with an answer that nobody takes; the next run does the work, once."""
    assert afar.server.version >= 140000, "before PostgreSQL 14 it does not look after its client: TEST_POSTGRES_BIN"
    once = f"IF nextval('tries') = 1 THEN PERFORM pg_sleep({seconds}); END IF;"
    afar.write("002_slow.sql", f"INSERT INTO a VALUES (2);\nDO $$ BEGIN {once} END $$;")
    with handler_afar(afar, namespace) as processes:
        processes.go(600)
        wait_until(lambda: [state for _, state, query in sessions(afar) if "pg_sleep" in query] == ["active"])
        assert len(locks(afar)) == 2

        took = seconds_until_gone(afar, namespace.cut())
    report = afar.deploy(None, Context(60))

    assert took < GONE_S
    applied = [entry["name"] for entry in report["applied"]]
    assert applied == (["002_slow"] if seconds > GONE_S else [])  # what had committed before is known to be applied
    assert afar.sql("SELECT count(*) FROM a") == [(1,)]


def test_vanished_client_between_two_attempts_is_noticed(afar: World, namespace: Namespace) -> None:
    """The link dies while the handler pauses, lock in hand: the lock is gone within 20 s."""
    afar.environ["LOCK_TIMEOUT"] = "100ms"
    afar.write("002_b.sql", "ALTER TABLE a ADD s text;")
    with open_transaction(afar, "SELECT * FROM a"), handler_afar(afar, namespace) as processes:
        processes.go(600)
        wait_until(lambda: [state for _, state, query in sessions(afar) if query == "ROLLBACK"] == ["idle"])
        assert len(locks(afar)) == 2

        took = seconds_until_gone(afar, namespace.cut())
    report = afar.deploy(None, Context(60))

    assert took < GONE_S
    assert [entry["name"] for entry in report["applied"]] == ["002_b"]


def test_vanished_client_that_waits_for_the_lock_is_noticed(afar: World, namespace: Namespace) -> None:
    """The link dies while the handler waits for another run: its session is gone within 20 s, the other one stays."""
    afar.write("002_b.sql", "INSERT INTO a VALUES (2);")
    with afar.connection() as holder, handler_afar(afar, namespace) as processes:
        rows(holder, "SELECT pg_advisory_lock(%s)", LOCK_KEY)
        processes.go(600)
        wait_until(
            lambda: [query for _, _, query in sessions(afar) if "pg_locks" in query or "advisory" in query] != []
        )

        since = namespace.cut()
        wait_until(lambda: sessions(afar) == [], 3 * GONE_S)
        took = time.monotonic() - since

        assert rows(holder, "SELECT true") == [(True,)]
    report = afar.deploy(None, Context(60))

    assert took < GONE_S
    assert [entry["name"] for entry in report["applied"]] == ["002_b"]


def test_vanished_server_is_noticed_by_a_handler_without_a_deadline(afar: World, namespace: Namespace) -> None:
    """The other way round: without a context too, a handler whose server has vanished fails within a minute."""
    afar.write("002_slow.sql", "SELECT pg_sleep(600);")
    with handler_afar(afar, namespace) as processes:
        processes.go()
        wait_until(lambda: [state for _, state, query in sessions(afar) if "pg_sleep" in query] == ["active"])
        since = namespace.cut()

        (ended,) = processes.ended(90)

        took = time.monotonic() - since
    assert took < 60
    assert ended.report["error"] == "StoppedError"
    assert "The connection was lost" in ended.report["message"]


def test_vanished_secrets_manager_at_the_end_does_not_outlast_the_limit(afar: World) -> None:
    """Secrets Manager stops answering when almost all the time is used: the handler still ends 5 s before the limit,
    although its client was made with the patience of the beginning."""
    limit_s, work_s = 66, 43  # the deadline is at 46 s
    afar.write("002_slow.sql", f"SELECT pg_sleep({work_s});")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        with silent_proxy(server.get_host_and_port(), mercy_s=100) as proxy:
            afar.environ["CREATE_USERS"] = "true"
            with handlers(afar, 1, f"http://127.0.0.1:{proxy.port}") as processes:
                processes.go(limit_s)
                started = time.monotonic()
                wait_until(lambda: [state for _, state, query in sessions(afar) if "pg_sleep" in query] == ["active"])
                proxy.be_silent()

                (ended,) = processes.ended(120)

                took = time.monotonic() - started
    finally:
        server.stop()
    assert took < limit_s - 5, (took, ended)
    assert "nvoke again" in ended.report.get("message", ""), ended
    assert afar.applied() == ["001_a", "002_slow"]

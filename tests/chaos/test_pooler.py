"""Behind a pooler a session lock protects nothing: the handler refuses it, and leaves it as it was.

Needs the program pgbouncer (Debian, Ubuntu: apt-get install pgbouncer).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from common import ConnectError
from harness.others import sessions, wait_until
from harness.world import ADMIN, ADMIN_PASSWORD, World, rows

HOST = "127.0.0.1"
SETTINGS = ("search_path", "lock_timeout", "statement_timeout", "DateStyle", "idle_in_transaction_session_timeout")


@contextmanager
def pgbouncer(world: World, mode: str) -> Iterator[int]:
    """The port of a PgBouncer with one connection to the server, which all its clients share."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "pgbouncer is missing: apt-get install pgbouncer"
    with socket.create_server((HOST, 0)) as probe:
        port = int(probe.getsockname()[1])
    account = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="db-setup-pooler-", dir="/tmp" if account else None))
    if account:
        shutil.chown(folder, account)
    (folder / "users.txt").write_text(f'"{ADMIN}" "{ADMIN_PASSWORD}"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={world.server.host} port={world.server.port}\n"
        f"[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {folder}/users.txt\npool_mode = {mode}\ndefault_pool_size = 1\n"
    )
    process = subprocess.Popen(
        [program, folder / "pgbouncer.ini"], user=account, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_until(lambda: process.poll() is not None or is_listening(port), 10)
        assert process.poll() is None, process.communicate(timeout=10)[0]
        yield port
    finally:
        process.kill()
        process.communicate(timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def is_listening(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
        return True
    except OSError:
        return False


def settings_through(world: World, port: int) -> tuple[int, list[tuple[str, ...]]]:
    """What an application finds in the one connection that the pool has to the server, and which one that is."""
    conn = psycopg2.connect(
        host=HOST, port=port, dbname=world.dbname, user=ADMIN, password=ADMIN_PASSWORD, sslmode="disable"
    )
    conn.autocommit = True
    try:
        ((pid,),) = rows(conn, "SELECT pg_backend_pid()")
        select = "SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY (%s) ORDER BY 1"
        return pid, rows(conn, select, list(SETTINGS))
    finally:
        conn.close()


@pytest.mark.parametrize("mode", ["transaction", "session", "statement"])
def test_pooler_is_refused_with_a_way_out_and_left_as_it_was(world: World, mode: str) -> None:
    """Through PgBouncer, in each of its modes, the handler says immediately what is wrong and where to connect instead;
    the database is untouched, and so is the session that the application gets from the pool next."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    with pgbouncer(world, mode) as port:
        before = settings_through(world, port)
        started = time.monotonic()

        with pytest.raises(ConnectError) as caught:
            world.deploy(DB_HOST=HOST, DB_PORT=str(port), PGSSLMODE="disable")

        seconds = time.monotonic() - started
        after = settings_through(world, port)
    assert str(caught.value) == (
        f"{HOST} is a connection pooler or proxy, where a session lock protects nothing: "
        "set DB_HOST to the database's own endpoint. Nothing has been changed."
    )
    assert seconds < 10
    assert world.tables() == []
    wait_until(lambda: sessions(world) == [], 5)
    assert world.sql("SELECT to_regclass('schema_migrations'), to_regrole('readwrite')") == [(None, None)]
    assert after == before

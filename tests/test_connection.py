"""The way to the server: retried while that can help, bounded, encrypted, and closed after every run."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Optional

import botocore
import common
import database
import initializer
import pytest
import session
from harness import tls
from harness.database import SCHEMA
from harness.server import Server
from harness.world import ADMIN, ADMIN_PASSWORD, Context, World

HOST = "127.0.0.1"
SSL_REQUEST = 80877103  # the protocol's number for "may we speak TLS?"
USERS = "CREATE TABLE users (id int PRIMARY KEY);\n"


# --- A gate before the server ---------------------------------------------------------------------------------------

Reception = Callable[[socket.socket, Server], None]


class Gate:
    """A proxy for the server on a port of its own. Each new connection meets the next reception; the last stays."""

    def __init__(self, server: Server, receptions: Sequence[Reception], port: int = 0) -> None:
        self.server, self.receptions, self.connections, self.closing = server, list(receptions), 0, False
        self.listener = socket.create_server((HOST, port))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._listen)]
        self.threads[0].start()

    def _listen(self) -> None:
        while True:
            client, _ = self.listener.accept()
            if self.closing:
                client.close()
                return
            reception = self.receptions[min(self.connections, len(self.receptions) - 1)]
            self.connections += 1
            self.threads.append(threading.Thread(target=self._receive, args=(client, reception)))
            self.threads[-1].start()

    def _receive(self, client: socket.socket, reception: Reception) -> None:
        with client, suppress(OSError):
            client.settimeout(20)
            reception(client, self.server)

    def close(self) -> None:
        self.closing = True
        socket.create_connection((HOST, self.port)).close()  # wakes the listener
        for thread in self.threads:
            thread.join()
        self.listener.close()


@contextmanager
def gate(server: Server, *receptions: Reception, port: int = 0) -> Iterator[Gate]:
    standing = Gate(server, receptions, port)
    try:
        yield standing
    finally:
        standing.close()


def pass_on(client: socket.socket, server: Server, change: Callable[[bytes], bytes] = bytes) -> None:
    """Let both sides talk until one of them goes. What the server says may be changed."""
    with socket.create_connection((server.host, server.port)) as upstream:
        while True:
            for ready in select.select([client, upstream], [], [], 20)[0]:
                data = ready.recv(65536)
                if not data:
                    return
                if ready is client:
                    upstream.sendall(data)
                else:
                    client.sendall(change(data))


def stay_silent(client: socket.socket, server: Server) -> None:
    """Take what comes and never answer, as where a security group drops packets."""
    while client.recv(4096):
        pass


def hang_up(client: socket.socket, server: Server) -> None:
    """Close immediately, as a server that is just shutting down."""
    client.recv(4096)


def answer_fatal(code: str, text: str) -> Reception:
    """Refuse as PostgreSQL does, with these words of its own."""

    def answer(client: socket.socket, server: Server) -> None:
        client.recv(4096)
        body = b"".join(kind + value.encode() + b"\0" for kind, value in ((b"S", "FATAL"), (b"C", code), (b"M", text)))
        client.sendall(b"E" + struct.pack("!I", len(body) + 5) + body + b"\0")

    return answer


def without_tls(client: socket.socket, server: Server) -> None:
    """Answer the wish for TLS with N, as a server that has none."""
    if asks_for_tls(client):
        client.sendall(b"N")
    pass_on(client, server)


def with_tls(certificate: tls.Certificate, folder: Path) -> Reception:
    """Answer the wish for TLS with S and this certificate; without that wish nobody comes in."""
    for name, text in (("gate.crt", certificate.certificate), ("gate.key", certificate.key)):
        (folder / name).write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "gate.crt", folder / "gate.key")

    def encrypted(client: socket.socket, server: Server) -> None:
        if asks_for_tls(client):
            client.sendall(b"S")
            with context.wrap_socket(client, server_side=True) as inside:
                pass_on(inside, server)

    return encrypted


def asks_for_tls(client: socket.socket) -> bool:
    """Take the client's first message if it is that wish."""
    if struct.unpack("!II", client.recv(8, socket.MSG_PEEK)) != (8, SSL_REQUEST):
        return False
    client.recv(8)
    return True


def pooled(client: socket.socket, server: Server) -> None:
    """Tell a process id of one's own in the message BackendKeyData, as poolers do."""

    def other_pid(data: bytes) -> bytes:
        at = data.find(b"K\0\0\0\x0c")
        return data if at < 0 else data[: at + 5] + struct.pack("!I", 4_000_000) + data[at + 9 :]

    pass_on(client, server, other_pid)


@contextmanager
def nobody_listening() -> Iterator[int]:
    """A port that refuses connections, and is not given to anybody else meanwhile."""
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        yield bound.getsockname()[1]


# --- Helpers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow only one attempt."""
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Almost no time between two attempts."""
    monkeypatch.setattr(database, "random", SimpleNamespace(uniform=lambda low, high: low / 100))


def through(port: int, **environ: Optional[str]) -> dict[str, Optional[str]]:
    """The variables that lead to a gate's port."""
    return {"DB_HOST": HOST, "DB_PORT": str(port), **environ}


def failure(world: World, kind: type[Exception], context: Any = None, **environ: Optional[str]) -> tuple[str, float]:
    """What the handler's exception says, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        world.deploy(None, context, **environ)
    return str(caught.value), time.monotonic() - started


def logged(caplog: pytest.LogCaptureFixture, phrase: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith(phrase)]


def backends(world: World) -> int:
    """How many connections of db_setup the server still has; those just closed get 8 s to be gone."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'db_setup' AND datname = current_database()"
    end = time.monotonic() + 8
    while True:
        left = int(world.sql(count)[0][0])
        if left == 0 or time.monotonic() > end:
            return left
        time.sleep(0.05)


# --- Not worth another try ------------------------------------------------------------------------------------------


def test_wrong_password_fails_immediately(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A refused password is not tried again: that would lock accounts and waste the deployment's time."""
    world.put_secret("admin", {**world.secret("admin"), "password": "not the password"})

    message, seconds = failure(world, initializer.ConnectError)

    place = f"{ADMIN}@{world.server.host}:{world.server.port}/{world.dbname}"
    assert message.startswith(f"cannot connect to {place}: check username and password in the secret (or DATABASE_URL")
    assert message.endswith(f'password authentication failed for user "{ADMIN}"). Nothing has been changed.')
    assert "not the password" not in message
    assert seconds < 5
    assert logged(caplog, "waiting for the database") == []


def test_unknown_database_fails_immediately(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A name that is not there will not be there in a minute."""
    message, seconds = failure(world, initializer.ConnectError, DB_NAME="not_there")

    place = f"{ADMIN}@{world.server.host}:{world.server.port}/not_there"
    assert message.startswith(f"cannot connect to {place}: check dbname in the secret, or DB_NAME (or DATABASE_URL) (")
    assert message.endswith('database "not_there" does not exist). Nothing has been changed.')
    assert seconds < 5
    assert logged(caplog, "waiting for the database") == []


MISTAKES_FOR_LIBPQ = {
    'sslmode value: "requre"': {"PGSSLMODE": "requre"},
    "sslmode": {"PGSSLMODE": ""},
    '"soon"': {"PGCONNECT_TIMEOUT": "soon"},
    "/not/there.pem": {"PGSSLROOTCERT": "/not/there.pem", "PGSSLMODE": "verify-full"},
}


def test_mistake_in_a_variable_of_libpq_fails_immediately(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A retry would not help, and the message does not blame security groups."""
    for named, environ in MISTAKES_FOR_LIBPQ.items():
        message, seconds = failure(world, initializer.ConnectError, Context(6), **environ)

        assert named in message
        assert "PGSSLMODE" in message
        assert "security group" not in message
        assert seconds < 2
    assert logged(caplog, "waiting for the database") == []


# --- Worth another try ----------------------------------------------------------------------------------------------


def test_server_that_appears_late_is_waited_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection is tried again, and the deployment goes on when the server is there."""
    world.write("001_users.sql", USERS)
    with nobody_listening() as port:
        pass
    with ExitStack() as standing:
        timer = threading.Timer(0.7, lambda: standing.enter_context(gate(world.server, pass_on, port=port)))
        timer.start()
        try:
            report = world.deploy(**through(port, CREATE_USERS="false", PGSSLMODE="disable"))
        finally:
            timer.join()

    assert [entry["name"] for entry in report["applied"]] == ["001_users"]
    waiting = logged(caplog, "waiting for the database")
    assert waiting[0].startswith("waiting for the database host=127.0.0.1 gives_up_in_s=")
    assert "refused" in waiting[0]


NOT_READY = {
    "starting up": answer_fatal("57P03", "the database system is starting up"),
    "not yet": answer_fatal("57P03", "the database system is not yet accepting connections"),
    "recovering": answer_fatal("57P03", "the database system is in recovery mode"),
    "shutting down": answer_fatal("57P03", "the database system is shutting down"),
    "restarting": answer_fatal("57P01", "terminating connection due to administrator command"),
    "overloaded": answer_fatal("57014", "canceling authentication due to timeout"),
    "full": answer_fatal("53300", "sorry, too many clients already"),
    "almost full": answer_fatal(
        "53300", "remaining connection slots are reserved for roles with the SUPERUSER attribute"
    ),
    "hangs up": hang_up,
}


@pytest.mark.usefixtures("short_pauses")
def test_server_that_is_not_ready_is_tried_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What a server says while it starts, restarts or is full is not a final answer."""
    waited = {}
    for what, reception in NOT_READY.items():
        caplog.clear()
        with gate(world.server, reception, reception, pass_on) as standing:
            report = world.deploy(**through(standing.port, CREATE_USERS="false", PGSSLMODE="disable"))
        waited[what] = (report["status"], len(logged(caplog, "waiting for the database")))

    assert waited == dict.fromkeys(NOT_READY, ("ok", 1))  # the same reason is not said twice


@pytest.mark.usefixtures("short_pauses")
def test_reason_for_waiting_is_said_again_when_it_changes_or_after_a_while(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute of waiting is a few lines, not one for each attempt."""
    starting, full = NOT_READY["starting up"], NOT_READY["full"]
    told = []
    for seconds in (15, 0):
        monkeypatch.setattr(database, "TELL_AGAIN_S", seconds)
        caplog.clear()
        with gate(world.server, starting, starting, full, full, starting, pass_on) as standing:
            world.deploy(**through(standing.port, CREATE_USERS="false", PGSSLMODE="disable"))
        lines = logged(caplog, "waiting for the database")
        told.append([word for line in lines for word in ("starting", "too many") if word in line])

    assert told == [
        ["starting", "too many", "starting"],
        ["starting", "starting", "too many", "too many", "starting"],
    ]


@pytest.mark.usefixtures("short_pauses")
def test_working_user_is_kept_when_its_trial_meets_a_busy_server(world: World) -> None:
    """A server too busy to answer has not refused the login: its password is not changed."""
    world.deploy()
    busy = answer_fatal("57014", "canceling authentication due to timeout")

    with gate(world.server, pass_on, busy, busy, pass_on) as standing:
        report = world.deploy(**through(standing.port, PGSSLMODE="disable"))

    assert report["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert (world.versions("user"), world.versions("creator")) == (1, 1)


# --- Giving up ------------------------------------------------------------------------------------------------------

NETWORK = "network: check that the security group lets this function in, the subnets, and that the database runs"
NO_ENTRY = 'no pg_hba.conf entry for host "10.0.0.1", user "u", database "d"'
GIVEN_UP = {
    "the database is starting or busy; invoke again": answer_fatal("57P03", "the database system is starting up"),
    "all connections of the database are in use: end some, or raise max_connections": answer_fatal(
        "53300", "sorry, too many clients already"
    ),
    "the server wants TLS: set PGSSLMODE=require": answer_fatal("28000", f"{NO_ENTRY}, no encryption"),
    "the server does not let this login in from here": answer_fatal("28000", f"{NO_ENTRY}, SSL encryption"),
    "this login is locked: ALTER ROLE … LOGIN": answer_fatal("28000", f'role "{ADMIN}" is not permitted to log in'),
    "this database is closed: ALTER DATABASE … ALLOW_CONNECTIONS true, as its owner": answer_fatal(
        "55000", 'database "shop" is not currently accepting connections'
    ),
    "this login is a member of rds_iam, and so cannot log in with a password: REVOKE rds_iam FROM it": answer_fatal(
        "28000", f'PAM authentication failed for user "{ADMIN}"'
    ),
    "this login may not CONNECT to that database: GRANT it as the database's owner": answer_fatal(
        "42501", 'permission denied for database "shop"'
    ),
    "an event trigger fails each login: as a superuser, with PGOPTIONS='-c event_triggers=off', ALTER EVENT TRIGGER … "
    "DISABLE": answer_fatal("42P01", 'relation "audit" does not exist\nCONTEXT:  PL/pgSQL function note() line 1'),
    "the server refused this login": answer_fatal("28000", 'no user mapping in "pg_ident.conf"'),
    "check host, port, security group and that the database runs": hang_up,
}


@pytest.mark.usefixtures("impatient")
def test_server_that_refuses_is_given_up_with_advice(world: World) -> None:
    """The message gives the place, what to look at, the server's words, and the state."""
    for advice, reception in GIVEN_UP.items():
        with gate(world.server, reception) as standing:
            message, _ = failure(world, initializer.ConnectError, **through(standing.port, PGSSLMODE="disable"))

        place = f"{ADMIN}@{HOST}:{standing.port}/{world.dbname}"
        assert message.startswith(f"cannot connect to {place}: {advice} (connection to server at ")
        assert message.endswith("). Nothing has been changed.")
        assert standing.connections == 1


@pytest.mark.usefixtures("impatient")
def test_closed_port_is_given_up_with_advice(world: World) -> None:
    """Nothing listens: the database is stopped, or host or port are wrong."""
    with nobody_listening() as port:
        message, _ = failure(world, initializer.ConnectError, **through(port))

    advice = "nothing listens there: check that the database runs, its host and its port"
    assert message.startswith(f"cannot connect to {ADMIN}@{HOST}:{port}/{world.dbname}: {advice} (")


@pytest.mark.usefixtures("impatient")
def test_unknown_host_is_given_up_with_advice(world: World) -> None:
    """A name that cannot be resolved is a matter of DNS."""
    message, _ = failure(world, initializer.ConnectError, DB_HOST="database.invalid")

    place = f"{ADMIN}@database.invalid:{world.server.port}/{world.dbname}"
    assert message.startswith(
        f"cannot connect to {place}: DNS: check host in the secret, or DB_HOST (or DATABASE_URL), and the VPC's DNS ("
    )


@pytest.mark.usefixtures("impatient")
def test_silent_server_is_given_up_after_pgconnect_timeout(world: World) -> None:
    """Where packets are dropped the attempt ends after libpq's own variable, and the network is to be looked at."""
    with gate(world.server, stay_silent) as standing:
        message, seconds = failure(world, initializer.ConnectError, **through(standing.port, PGCONNECT_TIMEOUT="2"))

    assert message.startswith(f"cannot connect to {ADMIN}@{HOST}:{standing.port}/{world.dbname}: {NETWORK} (")
    assert seconds < database.CONNECT_TIMEOUT_S - 1


def test_patience_ends(world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts go on for as long as promised and no longer."""
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 1.5)

    with nobody_listening() as port:
        _, seconds = failure(world, initializer.ConnectError, **through(port))

    assert 0.4 < seconds < 3
    assert len(logged(caplog, "waiting for the database")) >= 1


@pytest.mark.slow
def test_deadline_ends_the_attempts(world: World) -> None:
    """However long the patience and an attempt: the answer comes before Lambda, by default after 3 s, ends the run."""
    with gate(world.server, stay_silent) as standing:
        message, seconds = failure(world, initializer.ConnectError, Context(3), **through(standing.port))

    assert message.startswith(f"cannot connect to {ADMIN}@{HOST}:{standing.port}/{world.dbname}: {NETWORK} (")
    assert seconds < 3


# --- The wrong server -----------------------------------------------------------------------------------------------


def test_pooler_is_refused(world: World) -> None:
    """Behind a pooler a session lock protects nothing."""
    world.write("001_users.sql", USERS)

    with gate(world.server, pooled) as standing:
        message, _ = failure(world, initializer.ConnectError, **through(standing.port, PGSSLMODE="disable"))

    assert message == (
        f"{HOST} is a connection pooler or proxy, where a session lock protects nothing: "
        "set DB_HOST to the database's own endpoint. Nothing has been changed."
    )
    assert (world.tables(), backends(world)) == ([], 0)


@pytest.mark.parametrize("handed_over", [False, True])
def test_standby_is_waited_for_until_it_writes(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, handed_over: bool
) -> None:
    """After a failover a name leads to a standby for a moment, at the beginning or between two files."""
    world.sql("CREATE SCHEMA replica; CREATE TABLE replica.asked (i int)")
    world.sql("CREATE SEQUENCE replica.answers; GRANT USAGE ON SEQUENCE replica.answers TO PUBLIC")
    answer = f"SELECT nextval('replica.answers') IN ({'2, 3' if handed_over else '1, 2'})"
    world.sql(f'CREATE FUNCTION replica.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS "{answer}"'.replace('"', "$$"))
    settings = session.Session.settings
    monkeypatch.setattr(
        session.Session, "settings", lambda self: {**settings(self), "search_path": "replica, pg_catalog"}
    )
    world.write("001_a.sql", f"CREATE TABLE a (i int); ALTER DATABASE {world.dbname} SET work_mem = '5MB';")
    world.write("002_b.sql", "CREATE TABLE b (i int);")

    report = world.deploy(CREATE_USERS="false")

    assert [entry["name"] for entry in report["applied"]] == ["001_a", "002_b"]
    waits = logged(caplog, "waiting for the database")
    assert len(waits) == 2
    assert all("is a read replica" in wait for wait in map(str, waits))


@pytest.mark.usefixtures("impatient")
def test_read_replica_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's endpoint is not where a schema can change. (A function of that name plays the replica.)"""
    replica = "CREATE FUNCTION replica.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'"
    world.sql(f"CREATE SCHEMA replica; {replica}")
    settings = session.Session.settings
    monkeypatch.setattr(
        session.Session, "settings", lambda self: {**settings(self), "search_path": "replica, pg_catalog"}
    )

    message, _ = failure(world, initializer.ConnectError)

    assert message == (
        f"{world.server.host} is a read replica: set DB_HOST to the writer's endpoint. Nothing has been changed."
    )
    assert (world.tables(), backends(world)) == ([], 0)


# --- TLS ------------------------------------------------------------------------------------------------------------

NO_TLS = "the server has no TLS; for local work set PGSSLMODE=prefer"
CERTIFICATE = (
    "TLS: check PGSSLROOTCERT and global-bundle.pem, and on RDS that the server's authority is not rds-ca-2019, which "
    "has ended; for local work set PGSSLMODE=require"
)
ALIAS = (
    "TLS: an alias is not in the certificate; set DB_HOST to the name that is, or PGSSLMODE=verify-ca, which does not "
    "compare it"
)
RDS_NAME = "shop.c0ffee123abc.eu-west-1.rds.amazonaws.com"
ELSEWHERE = {"DB_HOST": "db.example.com", "PGHOSTADDR": HOST}  # libpq connects to this address, and expects that name


@pytest.fixture
def encrypted(world: World, tmp_path: Path) -> Iterator[Gate]:
    """A gate that speaks TLS, with a certificate for 127.0.0.1 whose authority is in `ca.pem`."""
    certificate = tls.issue_certificate(HOST)
    (tmp_path / "ca.pem").write_text(certificate.ca)
    (tmp_path / "namesake.pem").write_text(tls.issue_certificate(HOST).ca)
    (tmp_path / "public.pem").write_text(Path(botocore.__file__).with_name("cacert.pem").read_text())
    with gate(world.server, with_tls(certificate, tmp_path)) as standing:
        yield standing


def test_tls_is_demanded_by_default(world: World) -> None:
    """Without any variable nothing is ever sent in the clear: not the password, not a row."""
    with gate(world.server, without_tls) as standing:
        message, seconds = failure(world, initializer.ConnectError, **through(standing.port, PGSSLMODE=None))

    assert message.startswith(f"cannot connect to {ADMIN}@{HOST}:{standing.port}/{world.dbname}: {NO_TLS} (")
    assert seconds < 5


def test_tls_is_spoken_by_default_without_asking_who_it_is(world: World, encrypted: Gate) -> None:
    """sslmode is `require`: encrypted, for both users too, with any certificate for any name."""
    report = world.deploy(**{**through(encrypted.port, PGSSLMODE=None), **ELSEWHERE})

    assert report["users"] == {"app_rw": "created", "app_tc": "created"}
    assert encrypted.connections == 3


def test_pgsslmode_is_respected(world: World, encrypted: Gate) -> None:
    """`prefer` goes on without TLS where there is none; `disable` does not even ask for it."""
    with gate(world.server, without_tls) as standing:
        assert world.deploy(**through(standing.port, PGSSLMODE="prefer"))["status"] == "ok"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "CONNECT_PATIENCE_S", 0)
        failure(world, initializer.ConnectError, **through(encrypted.port, PGSSLMODE="disable"))  # the gate wants TLS


VERIFIED: dict[str, tuple[str, dict[str, str], Optional[str]]] = {
    "bundle": ("ca.pem", {}, None),
    "bundle without the authority": ("public.pem", {}, CERTIFICATE),
    "bundle of another authority of that name": ("namesake.pem", {}, CERTIFICATE),
    "bundle, another host": ("ca.pem", ELSEWHERE, ALIAS),
    "bundle, another host, but verify-ca": ("ca.pem", {**ELSEWHERE, "PGSSLMODE": "verify-ca"}, None),
    "bundle, another host, but PGSSLMODE": ("ca.pem", {**ELSEWHERE, "PGSSLMODE": "require"}, None),
    "root": ("none.pem", {"PGSSLROOTCERT": "ca.pem"}, None),
    "root without the authority": ("none.pem", {"PGSSLROOTCERT": "public.pem"}, CERTIFICATE),
    "root, another host": ("none.pem", {"PGSSLROOTCERT": "ca.pem", **ELSEWHERE}, ALIAS),
    "root before bundle": ("public.pem", {"PGSSLROOTCERT": "ca.pem"}, None),
}


@pytest.mark.slow
def test_certificate_is_verified_where_an_authority_is_given(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: Gate
) -> None:
    """global-bundle.pem next to the handler, or PGSSLROOTCERT, means verify-full: a wrong server is not retried."""
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 2)
    world.deploy()
    seen = {}
    for case, (bundle, environ, advice) in VERIFIED.items():
        monkeypatch.setattr(database, "CA_BUNDLE", tmp_path / bundle)
        variables = through(encrypted.port, **{"PGSSLMODE": None, **environ})
        if "PGSSLROOTCERT" in environ:
            variables["PGSSLROOTCERT"] = str(tmp_path / environ["PGSSLROOTCERT"])
        before = encrypted.connections
        if advice is None:
            assert world.deploy(**variables)["users"] == {"app_rw": "kept", "app_tc": "kept"}
        else:
            message, _ = failure(world, initializer.ConnectError, **variables)
            place = f"{ADMIN}@{variables['DB_HOST']}:{encrypted.port}/{world.dbname}"
            assert message.startswith(f"cannot connect to {place}: {advice} (")
        seen[case] = encrypted.connections - before

    # The admin's connection, and a trial of each login.
    assert seen == {case: 3 if advice is None else 1 for case, (_, _, advice) in VERIFIED.items()}


RDS_NAMES = {
    RDS_NAME: "eu-west-1",
    "shop.cluster-c0ffee123abc.us-east-2.rds.amazonaws.com": "us-east-2",
    "SHOP.c0ffee123abc.EU-WEST-1.rds.amazonaws.com": "eu-west-1",
    f"{RDS_NAME}.": "eu-west-1",
    f"/tmp/{RDS_NAME}": "",  # a socket's folder, to which there is no TLS
    f"@{RDS_NAME}": "",
    "shop.c0ffee123abc.us-gov-west-1.rds.amazonaws.com": "us-gov-west-1",
    "shop.c0ffee123abc.rds.cn-north-1.amazonaws.com.cn": "cn-north-1",
    "shop.proxy-c0ffee123abc.eu-west-1.rds.amazonaws.com": "",
    "shop.c0ffee123abc.eu-west-1.rds.amazonaws.com.example.com": "",
    "shop.c0ffee123abc.eu-west-1.redshift.amazonaws.com": "",
    "db.example.com": "",
    "localhost": "",
}


def test_region_is_read_from_the_names_that_rds_gives() -> None:
    """An instance's and a cluster's own name, in every partition; a proxy has another authority."""
    assert {name: database.region_of(name) for name in RDS_NAMES} == RDS_NAMES


@pytest.fixture
def rds(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate that has the certificate of an RDS instance, and the authority of its region, in place of Amazon's."""
    certificate = tls.issue_certificate(RDS_NAME)
    (tmp_path / "eu-west-1.pem").write_text(certificate.ca)
    monkeypatch.setattr(database, "RDS_ROOTS", tmp_path)
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)
    with gate(world.server, with_tls(certificate, tmp_path)) as standing:
        yield standing


@pytest.mark.parametrize("name", [RDS_NAME, f"{RDS_NAME}.", RDS_NAME.upper()])
def test_rds_is_verified_without_any_setting(world: World, rds: Gate, tmp_path: Path, name: str) -> None:
    """A server with RDS's name has to prove it, to the admin and the trial of each login; no other is sent a login."""
    variables = {**through(rds.port, PGSSLMODE=None), "DB_HOST": name, "PGHOSTADDR": HOST}

    report = world.deploy(**variables)

    assert (report["users"], report["warnings"]) == ({"app_rw": "created", "app_tc": "created"}, [])
    assert rds.connections == 3
    (tmp_path / "eu-west-1.pem").write_text(tls.issue_certificate(RDS_NAME).ca)
    message, _ = failure(world, initializer.ConnectError, **variables)
    assert CERTIFICATE in message
    assert world.deploy(**{**variables, "PGSSLMODE": "require"})["warnings"] == []


@pytest.mark.parametrize("name", ["db.example.com", "shop.c0ffee123abc.rds.cn-north-1.amazonaws.com.cn"])
def test_what_cannot_be_verified_is_a_warning(world: World, rds: Gate, name: str) -> None:
    """An alias, or a region whose authority we do not have: encrypted as before, and the report says how to verify."""
    report = world.deploy(**{**through(rds.port, PGSSLMODE=None), "DB_HOST": name, "PGHOSTADDR": HOST})

    assert report["warnings"] == [
        f"{name} is not verified, since it is not a name of RDS in a region whose root certificates are known: set "
        "DB_HOST to the name that RDS gave, or PGSSLROOTCERT to its authority's certificate; PGSSLMODE=require says "
        "that this is wanted"
    ]


# --- Closed, and nothing kept ---------------------------------------------------------------------------------------

ENDINGS = [
    pytest.param("SELECT 1", None, [], id="success"),
    pytest.param("SELECT 1/0", initializer.MigrationError, ["002_second"], id="failed migration"),
    pytest.param("SELECT 'open", initializer.MigrationError, ["001_first", "002_second"], id="refused file"),
    pytest.param(
        "SELECT pg_terminate_backend(pg_backend_pid())",
        initializer.MigrationError,
        ["002_second"],
        id="lost connection",
    ),
]


@pytest.mark.parametrize(("text", "error", "remaining"), ENDINGS)
def test_connection_is_closed_and_the_next_run_works(
    world: World, text: str, error: Optional[type[Exception]], remaining: list[str]
) -> None:
    """However an invocation of a warm function ends, nothing of it stays on the server or in the process."""
    world.write("001_first.sql", USERS)
    world.write("002_second.sql", text)
    with ExitStack() as expected:
        # The exception is kept: with it all that its frames still refer to, such as an open connection.
        kept = expected.enter_context(pytest.raises(error)) if error else None
        world.deploy()
    left = backends(world)
    world.write("002_second.sql", "SELECT 1")

    report = world.deploy()

    assert (left, backends(world)) == (0, 0)
    assert (kept is None) == (error is None)
    assert [entry["name"] for entry in report["applied"]] == remaining
    assert set(report["users"]) == {"app_rw", "app_tc"}
    assert world.applied() == ["001_first", "002_second"]


def test_connection_is_closed_when_the_database_is_not_ours(world: World) -> None:
    """A refusal after connecting closes the connection as well."""
    world.sql("CREATE TABLE schema_migrations (version bigint)")

    with pytest.raises(initializer.ConfigError) as kept:
        world.deploy()

    assert backends(world) == 0
    assert "MIGRATIONS_TABLE" in str(kept.value)


def test_warm_invocation_reads_variables_and_secrets_again(world: World) -> None:
    """Nothing is remembered: a password that was rotated meanwhile and a changed variable are seen."""
    world.deploy(CREATE_USERS="false")
    rotated = "rotated meanwhile"
    world.put_secret("admin", {**world.secret("admin"), "password": rotated})
    try:
        world.sql(f"ALTER ROLE {ADMIN} PASSWORD '{rotated}'")

        report = world.deploy(MIGRATIONS_TABLE="renamed", CREATE_USERS="false")
    finally:
        with world.superuser() as conn, conn.cursor() as cur:
            cur.execute(f"ALTER ROLE {ADMIN} PASSWORD %s", (ADMIN_PASSWORD,))

    assert report["database"].startswith(f"{ADMIN}@")
    assert world.sql(f"SELECT to_regclass('{SCHEMA}.renamed')") == [("renamed",)]


# --- The deadline ---------------------------------------------------------------------------------------------------


def test_deadline_stops_the_running_statement(world: World) -> None:
    """Before Lambda ends the function the statement is cancelled, and the message says what stays and what to do."""
    world.write("001_users.sql", USERS)
    world.write("002_slow.sql", "CREATE TABLE slow (id int);\nSELECT pg_sleep(60);\n")
    world.write("003_later.sql", "SELECT 1")

    message, seconds = failure(world, initializer.MigrationError, Context(3))

    assert message == (
        "out of time: 002_slow.sql: canceling statement due to user request (57014). Rolled back. The deadline "
        "stopped it. Invoke again to go on; if it needs longer than the function's timeout, "
        "raise that or split the file. Applied in this run: 001_users. Not tried: 003_later."
    )
    assert seconds < 3
    assert (backends(world), world.tables(), world.applied()) == (0, ["users"], ["001_users"])


@pytest.mark.slow
def test_deadline_ends_a_statement_that_does_not_let_itself_be_cancelled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ignores the cancellation loses its connection 2 s later; the server ends it, or it ended whole."""
    soon = classmethod(lambda cls, context: cls(time.monotonic() + 5, 6))
    monkeypatch.setattr(common.Deadline, "from_context", soon)
    world.write(
        "001_stubborn.sql",
        "CREATE TABLE stubborn (id int);\n"
        "DO $$ DECLARE until timestamptz := clock_timestamp() + interval '11 s'; BEGIN WHILE clock_timestamp() < until "
        "LOOP BEGIN PERFORM pg_sleep(1); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$;\n",
    )

    message, seconds = failure(world, initializer.MigrationError, CREATE_USERS="false")

    assert message.startswith("out of time: 001_stubborn.sql: ")
    assert 6 < seconds < 10
    assert backends(world) == 0
    assert (world.applied() == ["001_stubborn"]) == (world.tables() == ["stubborn"])


def test_deadline_passed_leaves_nothing_for_the_next_run(world: World) -> None:
    """The next invocation goes on where the stopped one was."""
    world.write("001_slow.sql", "SELECT pg_sleep(60)")
    failure(world, initializer.MigrationError, Context(1.5))
    world.write("001_slow.sql", "SELECT pg_sleep(0)")

    report = world.deploy(None, Context(60))

    assert [entry["name"] for entry in report["applied"]] == ["001_slow"]
    assert report["users"] == {"app_rw": "created", "app_tc": "created"}


def test_option_that_libpq_does_not_know_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no connection yet, which is not what is wrong."""
    monkeypatch.setattr(database, "_authentication", lambda *_: {"of_the_future": "1"})

    with pytest.raises(common.ConnectError, match='invalid connection option "of_the_future"'):
        world.deploy()

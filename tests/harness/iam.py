"""RDS with IAM authentication, without AWS: a TLS front that checks tokens, before a real PostgreSQL.

As RDS does, it asks a member of rds_iam for the password in clear, which is a token, and lets everybody else sign in
by password. A token's signature is computed again here, from the rules of Signature Version 4 and the test's keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import psycopg2

from harness import tls
from harness.database import superuser_connection
from harness.server import Server, own_server
from harness.world import ADMIN, REGION, prepare, rows

HOST = "127.0.0.1"
RDS_NAME = f"shop.c0ffee123abc.{REGION}.rds.amazonaws.com"
SSL_REQUEST, CLEARTEXT_PASSWORD = 80877103, 3
LIFETIME = timedelta(minutes=15)
# Who is let in by IAM: not who may only grant the role to others, as RDS's master may.
MEMBER_SQL = """
    SELECT count(*) > 0 FROM pg_auth_members m
    WHERE roleid = 'rds_iam'::regrole AND member = to_regrole(quote_ident(%s))
      AND coalesce((to_jsonb(m) ->> 'set_option')::bool, true)"""


@contextmanager
def server_with_iam() -> Iterator[Server]:
    """A server of our own on which the front can open sessions for those whose tokens it has checked."""
    with own_server() as server:
        prepare(server)
        with superuser_connection(server) as conn:
            # All others come by TLS, and so by password.
            trust = "SELECT 'hostnossl all all 127.0.0.1/32 trust'"
            rows(conn, f"COPY ({trust}) TO PROGRAM 'cat - pg_hba.conf > pg_hba.new && mv pg_hba.new pg_hba.conf'")
            rows(conn, "SELECT pg_reload_conf()")
            rows(conn, "CREATE ROLE rds_iam NOLOGIN")
            if server.version >= 160000:  # before, CREATEROLE is enough to grant it
                rows(conn, f"GRANT rds_iam TO {ADMIN} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
        yield server


@contextmanager
def admin_by_iam(server: Server) -> Iterator[None]:
    """Meanwhile the admin is a member of rds_iam: its password is refused."""
    with superuser_connection(server) as conn:
        # That it may grant the role to others does not make it a member.
        may_grant = rows(conn, "SELECT 1 FROM pg_auth_members WHERE member = %s::regrole", ADMIN)
        rows(conn, f"GRANT rds_iam TO {ADMIN}{' WITH SET TRUE' if may_grant else ''}")
        try:
            yield
        finally:
            back = "GRANT rds_iam TO {} WITH SET FALSE, INHERIT FALSE" if may_grant else "REVOKE rds_iam FROM {}"
            rows(conn, back.format(ADMIN))


class Front:
    """Listens in RDS's place, with a certificate for RDS_NAME whose authority is in `roots`."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.beyond = (server.host, server.port)  # where those go on, without TLS, whose tokens are right
        self.tokens: list[str] = []  # that let somebody in
        self.refusals: list[str] = []
        self.keys = dict(os.environ)  # AWS's variables: moto puts keys of its own there
        self.slow = timedelta(0)  # how much later it is here
        certificate = tls.issue_certificate(RDS_NAME)
        self.roots = folder / "roots"
        self.roots.mkdir()
        (self.roots / f"{REGION}.pem").write_text(certificate.ca)
        for name, text in (("front.crt", certificate.certificate), ("front.key", certificate.key)):
            (folder / name).write_text(text)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "front.crt", folder / "front.key")
        self._listener = socket.create_server((HOST, 0))
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, name="front", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def variables(self) -> dict[str, str]:
        """What leads a run here. Without channel binding, since this front is between both sides."""
        return {"DB_HOST": RDS_NAME, "DB_PORT": str(self.port), "PGHOSTADDR": HOST, "PGCHANNELBINDING": "disable"}

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._receive, args=(client,), daemon=True).start()

    def _receive(self, plain: socket.socket) -> None:
        with plain, suppress(OSError):
            if struct.unpack("!II", _exactly(plain, 8)) != (8, SSL_REQUEST):
                return
            plain.sendall(b"S")
            with self._context.wrap_socket(plain, server_side=True) as client:
                self._let_in(client)

    def _let_in(self, client: socket.socket) -> None:
        startup = _message(client, b"")
        words = startup[8:].split(b"\0")
        user = dict(zip(words[::2], words[1::2]))[b"user"].decode()
        if not self._signs_in_by_iam(user):
            upstream = socket.create_connection((self.server.host, self.server.port))
            upstream.sendall(struct.pack("!II", 8, SSL_REQUEST))
            assert _exactly(upstream, 1) == b"S"
            context = ssl.create_default_context(cafile=str(self.server.ca_file))
            self._carry(client, context.wrap_socket(upstream, server_hostname=self.server.host), startup)
            return
        client.sendall(b"R" + struct.pack("!II", 8, CLEARTEXT_PASSWORD))
        token = _message(client, _exactly(client, 1))[5:].rstrip(b"\0").decode()
        problem = self.problem_of(token, user)
        if problem:
            self.refusals.append(problem)
            fields = (b"SFATAL", b"C28000", f'MPAM authentication failed for user "{user}"'.encode())
            body = b"".join(field + b"\0" for field in fields) + b"\0"
            client.sendall(b"E" + struct.pack("!I", len(body) + 4) + body)
            return
        self.tokens.append(token)
        self._carry(client, socket.create_connection(self.beyond), startup)

    def _signs_in_by_iam(self, user: str) -> bool:
        conn = _as_superuser(self.server)
        try:
            return bool(rows(conn, MEMBER_SQL, user)[0][0])
        finally:
            conn.close()

    def _carry(self, client: socket.socket, upstream: socket.socket, first: bytes) -> None:
        self._sockets += [client, upstream]
        with upstream:
            upstream.sendall(first)
            back = threading.Thread(target=_pass_on, args=(upstream, client), daemon=True)
            back.start()
            _pass_on(client, upstream)
            back.join()

    def problem_of(self, token: str, user: str) -> str:
        """Why RDS would not take this token; empty where it would."""
        url = urlsplit(f"https://{token}")
        query = parse_qsl(url.query, keep_blank_values=True)
        given = dict(query)
        began = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        now = datetime.now(timezone.utc) + self.slow
        scope = f"{began:%Y%m%d}/{REGION}/rds-db/aws4_request"
        wanted = {
            "host": (url.netloc, f"{RDS_NAME}:{self.port}"),
            "action": (given["Action"], "connect"),
            "user": (given["DBUser"], user),
            "key or region": (given["X-Amz-Credential"], f"{self.keys['AWS_ACCESS_KEY_ID']}/{scope}"),
            "session": (given.get("X-Amz-Security-Token"), self.keys.get("AWS_SESSION_TOKEN")),
            "lifetime": (given["X-Amz-Expires"], "900"),
            "age": (timedelta(minutes=-1) < now - began < LIFETIME, True),
            "signature": (given["X-Amz-Signature"], self._signature(url.netloc, query, given["X-Amz-Date"], scope)),
        }
        return ", ".join(what for what, (found, right) in wanted.items() if found != right)

    def _signature(self, netloc: str, query: list[tuple[str, str]], date: str, scope: str) -> str:
        pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query)
        canonical = "&".join(f"{name}={value}" for name, value in pairs if name != "X-Amz-Signature")
        request = "\n".join(["GET", "/", canonical, f"host:{netloc}", "", "host", hashlib.sha256(b"").hexdigest()])
        to_sign = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{self.keys['AWS_SECRET_ACCESS_KEY']}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = source.recv(size - len(data))
        if not part:
            raise ConnectionError("closed in the middle of a message")
        data += part
    return data


def _message(source: socket.socket, kind: bytes) -> bytes:
    length = _exactly(source, 4)
    return kind + length + _exactly(source, int(struct.unpack("!I", length)[0]) - 4)


def _pass_on(source: socket.socket, target: Any) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def _as_superuser(server: Server) -> Any:
    """Whatever the run's variables say, and while it takes away psycopg2's wait callback (see harness.database)."""
    login = {"host": server.host, "hostaddr": server.host, "port": server.port, "dbname": "postgres"}
    for _ in range(100):
        with suppress(psycopg2.OperationalError):
            return psycopg2.connect(**login, user=server.user, password=server.password, sslmode="prefer")
        time.sleep(0.01)
    raise ConnectionError("the server does not let its superuser in")


@contextmanager
def front_of(server: Server, folder: Path) -> Iterator[Front]:
    front = Front(server, folder)
    try:
        yield front
    finally:
        front.close()

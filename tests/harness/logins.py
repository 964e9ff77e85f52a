"""The limited logins as the server has them: what is kept of their passwords, and whether credentials work."""

from __future__ import annotations

from typing import Any, Optional

import psycopg2

from harness.world import World, rows

SECRETS = {"app_rw": "user", "app_tc": "creator"}  # by login


def as_superuser(world: World, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    with world.superuser() as conn:
        return rows(conn, statement, *args)


def verifiers(world: World) -> dict[str, Optional[str]]:
    """What the server keeps of each role's password."""
    return dict(as_superuser(world, "SELECT rolname, rolpassword FROM pg_authid WHERE rolname !~ '^pg_'"))


def works(world: World, value: Any) -> bool:
    """Whether somebody who reads these credentials, database and all, gets in."""
    login = {"host": world.server.host, "port": world.server.port, "dbname": world.dbname}
    login.update({key: value[key] for key in login if key in value})
    try:
        psycopg2.connect(user=value["username"], password=value["password"], **login).close()
    except psycopg2.OperationalError:
        return False
    return True


def give_schema_to(world: World, owner: str, rights_of_public: str = "USAGE") -> None:
    """The schema as PostgreSQL 15 and newer have public, or as a server's history may have left that."""
    as_superuser(
        world,
        f"ALTER SCHEMA {world.schema} OWNER TO {owner}; REVOKE ALL ON SCHEMA {world.schema} FROM PUBLIC; "
        f"GRANT {rights_of_public} ON SCHEMA {world.schema} TO PUBLIC",
    )


def refusal(world: World, login: str, statement: str) -> str:
    """The error's name if this login may not do this, "" if it may; it is rolled back. Other errors are errors."""
    with world.login(SECRETS[login]) as conn:
        conn.autocommit = False
        try:
            rows(conn, statement)
        except psycopg2.errors.InsufficientPrivilege as exc:
            return type(exc).__name__
        finally:
            conn.rollback()
        return ""

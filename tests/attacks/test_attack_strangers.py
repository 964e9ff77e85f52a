"""A stranger, who has a login of the server and no more, stops no deployment: neither with a database of its own, nor
with a role that it lends to a limited user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg2
import pytest
import session
from harness.attackers import OTHER_ADMIN, STRANGER, make_stranger, open_transaction, refused, stranger
from harness.database import create_database, drop_database
from harness.logins import as_superuser, works
from harness.world import ADMIN, Context, World, rows

OWNER = "tmp_owner"


@pytest.fixture
def second(deployed: World) -> Iterator[str]:
    """The name of a second database; its owner is still to be named."""
    name = f"{deployed.dbname}_second"
    try:
        yield name
    finally:
        drop_database(deployed.server, name)


def claim(world: World, name: str, owner: str) -> None:
    """Make a database of this owner, who lets the application's roles in."""
    create_database(world.server, name, owner)
    as_superuser(world, f"SET ROLE {owner}; GRANT CONNECT ON DATABASE {name} TO app_rw, app_tc, readwrite")


# --- A database of one's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["user", "creator"])
def test_database_of_a_stranger_does_not_keep_a_lost_login_from_its_repair(
    deployed: World, second: str, secret: str
) -> None:
    """Whoever may make a database may let any role into it: that makes nobody the owner of the role."""
    as_superuser(deployed, f"ALTER ROLE {STRANGER} CREATEDB")
    claim(deployed, second, STRANGER)
    deployed.put_secret(secret, "{}")
    report = deployed.deploy()
    assert report["users"][deployed.secret(secret)["username"]] == "mended"
    assert works(deployed, deployed.secret(secret))
    assert deployed.deploy({"action": "rotate"})["status"] == "ok"


def test_database_of_a_stranger_has_settings_that_no_run_reads(deployed: World, second: str) -> None:
    """Its owner can make them longer than a run can wait for; those of the run's own database count."""
    as_superuser(deployed, f"ALTER ROLE {STRANGER} CREATEDB")
    claim(deployed, second, STRANGER)
    before = deployed.sql(session.DEFAULTS_SQL)

    as_superuser(deployed, f"ALTER DATABASE {second} SET application_name = '{'x' * 1000}'")
    assert deployed.sql(session.DEFAULTS_SQL) == before

    deployed.sql(f"ALTER DATABASE {deployed.dbname} SET application_name = 'x'")
    assert deployed.sql(session.DEFAULTS_SQL) != before


def test_database_of_a_stranger_does_not_keep_the_roles_from_being_made(world: World) -> None:
    """Here the roles are there already, such as after a restore, and nothing shows that they are this database's."""
    make_stranger(world, attributes="CREATEDB")
    second = f"{world.dbname}_second"
    world.sql("CREATE ROLE readwrite; CREATE ROLE tablecreator; CREATE ROLE app_rw; CREATE ROLE app_tc")
    try:
        claim(world, second, STRANGER)
        assert world.deploy()["users"] == {"app_rw": "mended", "app_tc": "mended"}
    finally:
        drop_database(world.server, second)


OWNERS = {
    "an admin's": (OTHER_ADMIN, "CREATEROLE", "GRANT app_rw TO {owner} WITH ADMIN OPTION"),
    "a role's that the admin can act for": (OWNER, "NOLOGIN", f"GRANT {{owner}} TO {ADMIN}"),
    "a superuser's": (OWNER, "SUPERUSER", "SELECT"),
}


@pytest.mark.parametrize("whose", OWNERS)
def test_database_of_another_application_keeps_its_logins(deployed: World, second: str, whose: str) -> None:
    """Whoever could have made the role is another application, to which its login would be lost."""
    owner, attributes, given = OWNERS[whose]
    as_superuser(deployed, f"CREATE ROLE {owner} {attributes}; {given.format(owner=owner)}")
    claim(deployed, second, owner)
    deployed.put_secret("user", "{}")
    assert f"belong to database {second}" in refused(deployed)


# --- A role that is lent --------------------------------------------------------------------------------------------

LENT = "tmp_lent"
KEPT = {"app_rw": "kept", "app_tc": "kept"}


@pytest.fixture
def lender(deployed: World) -> World:
    """The stranger may let others into a role that does more than a limited user may, as a team's leader can."""
    as_superuser(deployed, f"CREATE ROLE {LENT} CREATEDB; GRANT {LENT} TO {STRANGER} WITH ADMIN OPTION")
    return deployed


def is_member(world: World, of: str = LENT, member: str = "app_rw") -> bool:
    return bool(world.sql("SELECT pg_has_role(%s, %s, 'MEMBER')", member, of)[0][0])


def warned(report: dict[str, Any]) -> list[str]:
    return [text for text in report["warnings"] if not text.startswith("migrations/ holds no file")]


@pytest.mark.parametrize("member", ["app_rw", "app_tc", "readwrite", "app_rw_clone"])
def test_role_that_a_stranger_lends_to_a_limited_user_stops_no_deployment(lender: World, member: str) -> None:
    """It is taken back where the admin may do that; else each run says who can."""
    lender.deploy({"action": "rotate"})
    lender.deploy({"action": "rotate"})
    with stranger(lender) as conn:
        rows(conn, f"GRANT {LENT} TO {member}")
    lender.write("001_things.sql", "CREATE TABLE things (id int)")

    report = lender.deploy()

    assert report["users"] == KEPT
    (warning,) = warned(report)
    assert f"REVOKE {LENT} FROM {member} GRANTED BY {STRANGER}" in warning
    assert is_member(lender, LENT, member) is (lender.server.version >= 160000)
    assert lender.deploy({"action": "rotate"})["status"] == "ok"
    with stranger(lender) as conn:
        rows(conn, f"REVOKE {LENT} FROM {member}")
    assert warned(lender.deploy()) == []


def test_stranger_that_lends_itself_stops_no_deployment(deployed: World) -> None:
    """Up to PostgreSQL 14 a login can make others members of itself."""
    as_superuser(deployed, f"ALTER ROLE {STRANGER} CREATEDB")
    with stranger(deployed) as conn, suppress(psycopg2.errors.InsufficientPrivilege):
        rows(conn, f"GRANT {STRANGER} TO app_rw, readwrite, tablecreator")
    assert deployed.deploy()["users"] == KEPT
    assert not is_member(deployed, STRANGER)
    assert warned(deployed.deploy()) == []


def test_role_that_a_stranger_lends_to_a_limited_users_role_stops_no_deployment(lender: World) -> None:
    """The way leads through a role into which the admin has put the login."""
    lender.sql("CREATE ROLE tmp_between; GRANT tmp_between TO app_rw")
    with stranger(lender) as conn:
        rows(conn, f"GRANT {LENT} TO tmp_between")
    report = lender.deploy()
    assert report["users"] == KEPT
    assert f"REVOKE {LENT} FROM tmp_between" in warned(report)[0]
    assert is_member(lender, "tmp_between")


def test_role_whose_lending_a_stranger_keeps_open_stops_no_deployment(lender: World) -> None:
    with stranger(lender) as conn:
        rows(conn, f"GRANT {LENT} TO app_rw")
        with open_transaction(conn, f"REVOKE {LENT} FROM app_rw"):
            assert lender.deploy(context=Context(30))["users"] == KEPT


def test_group_of_the_table_creators_that_a_stranger_lends_stops_no_deployment(deployed: World) -> None:
    as_superuser(deployed, f"GRANT tablecreator TO {STRANGER} WITH ADMIN OPTION")
    with stranger(deployed) as conn:
        rows(conn, "GRANT tablecreator TO app_rw")
    report = deployed.deploy()
    assert report["users"] == KEPT
    assert [text for text in warned(report) if f"REVOKE tablecreator FROM app_rw GRANTED BY {STRANGER}" in text] != []
    assert is_member(deployed, "tablecreator") is (deployed.server.version >= 160000)


def test_role_that_does_no_harm_stays_where_a_stranger_has_lent_it(lender: World) -> None:
    as_superuser(lender, f"ALTER ROLE {LENT} NOCREATEDB")
    with stranger(lender) as conn:
        rows(conn, f"GRANT {LENT} TO app_rw")
    assert (lender.deploy()["users"], warned(lender.deploy())) == (KEPT, [])
    assert is_member(lender)

"""A stranger, who has a login of the server and no more, stops no deployment: neither with a database of its own, nor
with a role that it lends to a limited user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.attackers import OTHER_ADMIN, STRANGER, make_stranger, refused
from harness.database import create_database, drop_database
from harness.logins import as_superuser, works
from harness.world import ADMIN, World

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

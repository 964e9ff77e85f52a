"""What the users of one application can do against another one, in a schema of its own or in another database, and
what somebody does to a schema between two runs."""

from __future__ import annotations

import pytest
from common import MigrationError
from harness.logins import as_superuser
from harness.world import ADMIN, World, rows
from test_schema import ORDERS, ask, in_schema, with_own_secrets

EVIL = "CREATE FUNCTION public.lower(varchar) RETURNS text LANGUAGE sql AS $$ SELECT current_user::text $$"


@pytest.fixture
def world(world: World) -> World:
    """These tests name each schema themselves."""
    world.environ.pop("DB_SCHEMA", None)
    return world


@pytest.fixture
def two_applications(world: World) -> tuple[World, World]:
    """With roles and secrets of their own; the first one has a reader. Everybody may create in public, as up to
    PostgreSQL 14."""
    world.write("001_orders.sql", ORDERS)
    one, two = with_own_secrets(world, "one", "one_"), with_own_secrets(world, "two", "two_")
    world.secrets.create_secret(Name="one/reader")
    one.environ["DB_READER_SECRET_NAME"] = "one/reader"
    for each in (one, two):
        each.deploy()
    as_superuser(world, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    return one, two


# --- Another application's users ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "group"), [("one/user", "one_readwrite"), ("one/reader", "one_readonly")])
def test_group_of_another_application_hides_nothing(
    two_applications: tuple[World, World], secret: str, group: str
) -> None:
    """The admin can act for that group too, since it has made it; so can each of its logins."""
    one, two = two_applications
    with one.login(secret) as conn:
        rows(conn, f"SET ROLE {group}")
        rows(conn, EVIL)
    two.write("002_more.sql", "CREATE TABLE more AS SELECT lower('A'::varchar) AS by;")

    with pytest.raises(MigrationError, match=f"lower.* belongs to {group}, who is not the admin"):
        two.deploy()


def test_reader_of_another_application_hides_nothing(two_applications: tuple[World, World]) -> None:
    """Ending a login's sessions has made the admin a member of it."""
    one, two = two_applications
    as_superuser(one, f"GRANT one_app_ro TO {ADMIN}")
    ask(one, "one/reader", EVIL)
    two.write("002_more.sql", "CREATE TABLE more AS SELECT lower('A'::varchar) AS by;")

    with pytest.raises(MigrationError, match=r"lower.* belongs to one_app_ro, who is not the admin"):
        two.deploy()

"""An admin that is not the master: the documents' statements are enough for everything, and none can be left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness.logins import as_superuser, works
from harness.world import World
from initializer import InitializerError

MIGRATOR, PASSWORD = "tmp_migrator", "choose one"
PAGE = (Path(__file__).parents[1] / "docs" / "users-and-rights.md").read_text()
SECTION = PAGE.partition("## An admin that is not the master")[2].partition("\n## ")[0]
(STATEMENTS,) = re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL)

FILES = {
    "001_items.sql": 'CREATE EXTENSION "uuid-ossp"; CREATE TABLE items (id uuid DEFAULT uuid_generate_v4());',
    "002_other.sql": "CREATE SCHEMA other; CREATE TABLE other.one (id int); GRANT USAGE ON SCHEMA other TO readwrite;",
    "003_index.sql": "CREATE INDEX CONCURRENTLY ON items (id);",
}


def statements(world: World) -> list[str]:
    """The page's, for this test's database and a role that is removed after it."""
    return [
        each.strip().replace("migrator", MIGRATOR).replace("shop", world.dbname)
        for each in STATEMENTS.split(";")
        if each.strip()
    ]


@pytest.fixture
def closed(world: World) -> World:
    """The master's database, in which nobody else has a right, as far as the version lets the master say so."""
    world.sql(f"REVOKE ALL ON DATABASE {world.dbname} FROM PUBLIC")
    if world.server.version >= 150000:  # before, the schema is the superuser's, and open
        world.sql("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    for name, text in FILES.items():
        world.write(name, text)
    world.put_secret("admin", {**world.secret("admin"), "username": MIGRATOR, "password": PASSWORD})
    return world


def failure(world: World) -> str:
    with pytest.raises(InitializerError) as caught:
        world.deploy()
    return str(caught.value)


@pytest.mark.public
def test_minimal_admin_can_do_everything(closed: World) -> None:
    """Files with schemas, extensions and concurrent builds; both logins, repaired and rotated; nothing is warned of."""
    for each in statements(closed):
        closed.sql(each)

    does_everything(closed)


def test_minimal_admin_with_a_schema_of_its_own_needs_no_right_on_public(closed: World) -> None:
    """It creates the schema that DB_SCHEMA names, and owns it."""
    for each in statements(closed):
        if "SCHEMA public" not in each:
            closed.sql(each)
    closed.environ["DB_SCHEMA"] = "own"

    does_everything(closed)


def does_everything(closed: World) -> None:
    report = closed.deploy()

    assert len(report["applied"]) == len(FILES)
    assert (report["users"], report["warnings"]) == ({"app_rw": "created", "app_tc": "created"}, [])
    assert closed.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}
    as_superuser(closed, "ALTER ROLE app_rw NOLOGIN")
    assert closed.deploy()["users"] == {"app_rw": "mended", "app_tc": "kept"}
    rotated = closed.deploy({"action": "rotate"})["users"]
    assert rotated == {"app_rw_clone": "rotated", "app_tc_clone": "rotated"}
    assert all(works(closed, closed.secret(name)) for name in ("user", "creator"))
    assert closed.deploy({"action": "status"})["users"] == {"app_rw_clone": "works", "app_tc_clone": "works"}


# Each right of the page, how the statement is without it, and what the run says then.
WITHOUT = {
    "CREATEROLE": (" CREATEROLE", "", "CREATEROLE"),
    "CONNECT": ("GRANT CONNECT ON", "GRANT TEMPORARY ON", "this login may not CONNECT to that database"),
    "its grant option": ("MIGRATOR WITH GRANT OPTION", "MIGRATOR", "may not grant CONNECT on database"),
    "CREATE on the database": ("GRANT CREATE ON DATABASE", "GRANT TEMPORARY ON DATABASE", "permission denied"),
    "USAGE on the schema": ("USAGE, CREATE ON", "CREATE ON", "permission denied for schema public"),
    "CREATE on the schema": ("USAGE, CREATE ON", "USAGE ON", "permission denied for schema public"),
    "the schema's grant option": (
        "public TO MIGRATOR WITH GRANT OPTION",
        "public TO MIGRATOR",
        "may not grant rights on",
    ),
}
OF_THE_SCHEMA = ("USAGE on the schema", "CREATE on the schema", "the schema's grant option")


@pytest.mark.public
@pytest.mark.parametrize("right", WITHOUT)
def test_minimal_admin_needs_each_right(closed: World, right: str) -> None:
    """Without one of them a run fails and says which; up to PostgreSQL 14 everybody has those of schema public."""
    before, after, words = (text.replace("MIGRATOR", MIGRATOR) for text in WITHOUT[right])
    given = statements(closed)
    at = next(number for number, each in enumerate(given) if before in each)
    for number, each in enumerate(given):
        closed.sql(each.replace(before, after) if number == at else each)

    if right in OF_THE_SCHEMA and closed.server.version < 150000:
        assert closed.deploy()["status"] == "ok"
        return
    assert words in failure(closed)
    if right == "CREATEROLE":
        as_superuser(closed, f"ALTER ROLE {MIGRATOR} CREATEROLE")
    else:
        closed.sql(given[at])
    assert closed.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}


def test_users_by_iam_elsewhere_than_on_rds_are_explained(world: World) -> None:
    """There is no role rds_iam: the run says what that means, and has made no login."""
    ca_file = str(world.server.ca_file)
    with pytest.raises(
        InitializerError, match=r'role "rds_iam".* needs RDS, and an admin that may GRANT rds_iam: WITH'
    ):
        world.deploy(USERS_SIGN_IN="iam", PGSSLMODE=None, PGSSLROOTCERT=ca_file)
    assert world.sql("SELECT count(*) FROM pg_roles WHERE rolname ~ '^app_'") == [(0,)]

"""Two applications' databases on one server: roles belong to the server, so each application needs its own."""

from __future__ import annotations

import copy
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional
from unittest import mock

import initializer
import psycopg2
import pytest
from common import UserError
from harness.database import SCHEMA, create_database, drop_database
from harness.world import ADMIN, World, rows
from initializer import InitializerError
from report import Report

OTHER_ADMIN = "tmp_other_admin"  # the world's clean-up drops roles of this kind
ROLES = ["app_rw", "app_tc", "readwrite", "tablecreator"]


def another(world: World, dbname: str, prefix: str = "second") -> World:
    """A second application on the same server: a database, secrets and a folder of its own."""
    second = copy.copy(world)
    second.dbname = dbname
    second.folder = world.folder.with_name(prefix)
    second.folder.mkdir()
    second.environ = {
        **world.environ,
        "DB_NAME": dbname,
        "DB_USER_SECRET_NAME": f"{prefix}/user",
        "DB_PROXY": f"{prefix}/creator",
    }
    for name in (f"{prefix}/user", f"{prefix}/creator"):
        world.secrets.create_secret(Name=name)
    create_database(world.server, dbname, ADMIN)
    return second


@pytest.fixture
def second(world: World) -> Iterator[World]:
    name = f"{world.dbname}_second"
    try:
        yield another(world, name)
    finally:
        drop_database(world.server, name)


def as_superuser(world: World, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    with world.superuser() as conn:
        return rows(conn, statement, *args)


def verifiers(world: World) -> dict[str, Optional[str]]:
    """What the server keeps of each limited role's password."""
    return dict(
        as_superuser(
            world, "SELECT rolname, rolpassword FROM pg_authid WHERE rolname ~ 'readwrite|tablecreator|app_rw|app_tc'"
        )
    )


def user_of(world: World, secret: str) -> str:
    """The login that this secret lets in."""
    with world.login(secret) as conn:
        return str(rows(conn, "SELECT current_user")[0][0])


def relations(world: World) -> list[str]:
    return [
        name for (name,) in world.sql(f"SELECT relname FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace")
    ]


# --- Without ROLE_PREFIX --------------------------------------------------------------------------------------------


def test_shared_server_without_a_prefix_the_second_database_is_refused(world: World, second: World) -> None:
    """The message names the roles, the database that has them, and both remedies; nothing has run: no table, no
    adoption, no secret; the first one's users stay as they are."""
    world.deploy()
    before = verifiers(world)
    second.sql("CREATE TABLE things (id int)")
    second.write("001_things.sql", "CREATE TABLE things (id int);")
    second.write("002_more.sql", "CREATE TABLE more (id int);")

    with pytest.raises(UserError) as caught:
        second.deploy()

    assert str(caught.value) == (
        f"the roles readwrite, tablecreator, app_rw, app_tc belong to database {world.dbname} on the same server, and "
        "roles are one for the whole server. Nothing has been changed. Set ROLE_PREFIX (such as "
        f'"{second.dbname}_") to give this application roles of its own, or CREATE_USERS="false".'
    )
    assert relations(second) == ["things"]
    assert (second.versions("second/user"), second.versions("second/creator")) == (0, 0)
    assert verifiers(world) == before
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_shared_server_without_users_the_second_database_is_migrated(world: World, second: World) -> None:
    """CREATE_USERS="false", the other remedy, works and leaves the first one's users alone."""
    world.deploy()
    before = verifiers(world)
    second.write("001_things.sql", "CREATE TABLE things (id int);")

    second.deploy(CREATE_USERS="false")

    assert second.tables() == ["things"]
    assert verifiers(world) == before


RIGHTS = {
    "table": "GRANT SELECT ON kept TO readwrite",
    "schema": f"GRANT USAGE ON SCHEMA {SCHEMA} TO tablecreator",
    "default privileges": "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO readwrite",
    "CONNECT": 'GRANT CONNECT ON DATABASE "{0}" TO readwrite',
}


def test_shared_server_where_a_role_has_anything_in_another_database_is_refused(world: World, second: World) -> None:
    """Any right of any of the four roles in another database shows that they belong to its application."""
    second.sql("CREATE TABLE kept (id int)")
    for role in ROLES:
        second.sql(f"CREATE ROLE {role}")
    for case, right in RIGHTS.items():
        as_superuser(second, right.format(second.dbname))

        with pytest.raises(UserError) as caught:
            world.deploy()

        assert f" belong to database {second.dbname} on the same server" in str(caught.value), case
        as_superuser(second, f"DROP OWNED BY {', '.join(ROLES)}")
    assert world.deploy()["users"] == {"app_rw": "mended", "app_tc": "mended"}


def test_shared_server_with_a_leftover_of_the_predecessor_in_postgres_has_one_application(world: World) -> None:
    """Roles without rights, and the predecessor's stray grant on database postgres, belong to nobody else."""
    world.sql("CREATE ROLE readwrite; CREATE ROLE tablecreator")
    as_superuser(world, "GRANT CONNECT ON DATABASE postgres TO readwrite")

    report = world.deploy()

    assert report["users"] == {"app_rw": "created", "app_tc": "created"}


def test_shared_server_where_both_databases_have_the_roles_no_working_login_is_broken(
    world: World, second: World
) -> None:
    """Where the same roles have rights in both, repairing one database's login does not break the other's."""
    world.deploy()
    second.sql("CREATE TABLE things (id int); GRANT SELECT ON things TO readwrite, tablecreator")
    before = verifiers(world)

    with pytest.raises(UserError, match="ROLE_PREFIX"):
        second.deploy()

    assert verifiers(world) == before
    assert user_of(world, "user") == "app_rw"


def test_shared_server_after_the_first_database_is_dropped_the_roles_are_free(world: World, second: World) -> None:
    """Roles that have rights nowhere else any more may be taken over."""
    second.deploy()
    with pytest.raises(UserError):
        world.deploy()
    drop_database(world.server, second.dbname)

    report = world.deploy()

    assert report["users"] == {"app_rw": "mended", "app_tc": "mended"}
    assert (user_of(world, "user"), user_of(world, "creator")) == ("app_rw", "app_tc")


# --- With ROLE_PREFIX -----------------------------------------------------------------------------------------------


def test_shared_server_with_a_prefix_both_databases_work(world: World, second: World) -> None:
    """Each application has its own roles, and no run of one touches the other's."""
    for application in (world, second):
        application.write("001_things.sql", "CREATE TABLE things (id int);")
    world.deploy()
    before = verifiers(world)
    second.environ["ROLE_PREFIX"] = "shop_"

    report = second.deploy()

    assert report["users"] == {"shop_app_rw": "created", "shop_app_tc": "created"}
    assert (user_of(second, "second/user"), user_of(second, "second/creator")) == ("shop_app_rw", "shop_app_tc")
    assert {name: verifier for name, verifier in verifiers(world).items() if name in before} == before
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert second.deploy()["users"] == {"shop_app_rw": "kept", "shop_app_tc": "kept"}


def test_shared_server_with_a_prefix_no_login_reads_the_other_database(world: World, second: World) -> None:
    """The login of one application has no right on the other one's tables."""
    second.write("001_things.sql", "CREATE TABLE things (id int);")
    world.deploy()
    second.deploy(ROLE_PREFIX="shop_")

    user = world.secret("user")
    what = "table things" if SCHEMA == "public" else f"schema {SCHEMA}"  # everybody may use public
    refused = pytest.raises(psycopg2.errors.InsufficientPrivilege, match=f"permission denied for {what}")
    with second.connection(user["username"], user["password"]) as conn, refused:
        rows(conn, f"SELECT * FROM {SCHEMA}.things")


def test_shared_server_prefix_that_is_proposed_works(world: World) -> None:
    """The ROLE_PREFIX in the message can be used as it is, whatever the database is called."""
    world.deploy()
    for number, name in enumerate(("2nd Shop", "Bücher-{0}", "x" * 50 + "{0}")):
        dbname = name.format(os.getpid())
        second = another(world, dbname, f"second{number}")
        try:
            with pytest.raises(UserError) as caught:
                second.deploy()
            proposed = re.findall(r'such as "([^"]*)"', str(caught.value))

            report = second.deploy(ROLE_PREFIX=proposed[0])

            assert list(report["users"].values()) == ["created", "created"], dbname
        finally:
            drop_database(world.server, dbname)


# --- Roles of another admin -----------------------------------------------------------------------------------------


@pytest.fixture
def other_admin(world: World) -> str:
    """A second login with CREATEROLE, who has made roles with our names."""
    as_superuser(world, f"CREATE ROLE {OTHER_ADMIN} LOGIN CREATEROLE CREATEDB PASSWORD 'other'")
    return OTHER_ADMIN


def as_other_admin(world: World, statement: str) -> None:
    with world.connection(OTHER_ADMIN, "other") as conn:
        rows(conn, statement)


def test_shared_server_groups_of_another_admin_are_used_or_refused(world: World, other_admin: str) -> None:
    """From PostgreSQL 16 on a role obeys the admin who made it: the message says so, and what it says helps. Before,
    any admin will do."""
    as_other_admin(world, "CREATE ROLE readwrite; CREATE ROLE tablecreator")

    if world.server.version >= 160000:
        with pytest.raises(UserError) as caught:
            world.deploy()
        assert str(caught.value) == (
            f"role readwrite exists and was made by another admin, and {ADMIN} may not use it. Nothing has been "
            f"changed. As that admin: GRANT readwrite TO {ADMIN} WITH ADMIN OPTION; or set ROLE_PREFIX."
        )
        assert relations(world) == []
        as_other_admin(world, f"GRANT readwrite, tablecreator TO {ADMIN} WITH ADMIN OPTION")

    assert world.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}


def test_shared_server_groups_lent_without_admin_option_are_used_or_refused(world: World, other_admin: str) -> None:
    """To use a group is not enough from PostgreSQL 16 on: a login has to be put into it."""
    as_other_admin(world, f"CREATE ROLE readwrite; CREATE ROLE tablecreator; GRANT readwrite, tablecreator TO {ADMIN}")

    if world.server.version >= 160000:
        with pytest.raises(UserError, match=r"^role readwrite .*another admin") as caught:
            world.deploy()
        assert "WITH ADMIN OPTION" in str(caught.value)
    else:
        assert world.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}


def test_shared_server_logins_of_another_admin_are_used_or_refused(world: World, other_admin: str) -> None:
    """The same for a login: from PostgreSQL 16 on only an admin of that role may change its password."""
    as_other_admin(world, "CREATE ROLE app_rw LOGIN PASSWORD 'theirs'")

    if world.server.version >= 160000:
        with pytest.raises(UserError, match=r"^role app_rw .*another admin") as caught:
            world.deploy()
        assert "ROLE_PREFIX" in str(caught.value)
        as_other_admin(world, f"GRANT app_rw TO {ADMIN} WITH ADMIN OPTION")

    assert world.deploy()["users"] == {"app_rw": "mended", "app_tc": "created"}
    assert user_of(world, "user") == "app_rw"


# --- At the same time -----------------------------------------------------------------------------------------------


def deploy_together(*environs: dict[str, str]) -> list[Any]:
    """Runs that start at the same moment, each in a thread; returns their reports, or the errors."""
    start = threading.Barrier(len(environs))

    def deploy(environ: dict[str, str]) -> Any:
        start.wait(timeout=10)
        try:
            report = Report("test")
            initializer.run(environ, None, None, report)
            return report.as_json()
        except InitializerError as exc:
            return exc

    with ThreadPoolExecutor(len(environs)) as threads:
        return list(threads.map(deploy, environs))


@pytest.fixture
def _in_lambda(world: World) -> Iterator[None]:
    """The folder and libpq's own variables, for runs in threads: `World.deploy` changes os.environ, which is one."""
    with mock.patch.object(initializer, "MIGRATIONS_DIR", world.folder), mock.patch.dict(os.environ, world.environ):
        yield


@pytest.mark.usefixtures("_in_lambda")
def test_shared_server_both_deployed_at_the_same_time_succeed(world: World, second: World) -> None:
    """Roles of two databases can be made at the same moment."""
    world.write("001_things.sql", "CREATE TABLE things (id serial);")
    first, other = deploy_together({**world.environ, "ROLE_PREFIX": "one_"}, {**second.environ, "ROLE_PREFIX": "two_"})

    assert first["users"] == {"one_app_rw": "created", "one_app_tc": "created"}
    assert other["users"] == {"two_app_rw": "created", "two_app_tc": "created"}
    assert (user_of(world, "user"), user_of(second, "second/user")) == ("one_app_rw", "two_app_rw")


@pytest.mark.usefixtures("_in_lambda")
def test_shared_server_one_database_deployed_by_two_runs_together_has_its_users_once(world: World) -> None:
    """Of two runs on the same empty database one makes the users, the other keeps them."""
    reports = deploy_together(world.environ, world.environ)

    assert sorted(report["users"]["app_rw"] for report in reports) == ["created", "kept"]
    assert (world.versions("user"), user_of(world, "user")) == (1, "app_rw")


@pytest.mark.usefixtures("_in_lambda")
def test_shared_server_without_a_prefix_the_later_of_two_deployments_is_refused(world: World, second: World) -> None:
    """A database whose run was about to make the roles when another one's did so does not take part in them."""
    with world.connection() as first, ThreadPoolExecutor(1) as thread:
        rows(first, "BEGIN; CREATE TABLE things (id int); CREATE ROLE readwrite; GRANT SELECT ON things TO readwrite")
        answer = thread.submit(deploy_together, second.environ)
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        until = time.monotonic() + 10
        while not as_superuser(world, waiting, second.dbname):
            assert time.monotonic() < until, "the second run does not wait for the first one's role"
            time.sleep(0.02)
        rows(first, "COMMIT")
        (error,) = answer.result(timeout=60)

    assert isinstance(error, UserError)
    assert str(error).startswith("the roles readwrite, tablecreator, app_rw, app_tc belong to database ")
    assert second.versions("second/user") == 0

"""Group roles, logins and their secrets: made once, kept while they work, repaired when they do not."""

from __future__ import annotations

import json
import os
import re
import traceback
from typing import Any, Optional
from unittest import mock

import database
import psycopg2
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError
from common import ConnectError, Deadline, UserError
from config import load_setup
from harness.aws import at as hooked
from harness.database import SCHEMA
from harness.world import ADMIN, ADMIN_PASSWORD, World, rows
from initializer import InitializerError, StoredInSecret
from secret_store import Secret

LOGINS = {"user": "app_rw", "creator": "app_tc"}  # by secret
GROUPS = {"user": "readwrite", "creator": "tablecreator"}
RANDOM_USER = "3f9c0a1b2d4e5f60"  # as the predecessor named its users: 16 hexadecimal digits


def our_roles(world: World) -> set[str]:
    found = rows_as_superuser(world, "SELECT rolname FROM pg_roles WHERE rolname ~ 'readwrite|tablecreator|app_'")
    return {name for (name,) in found}


def rows_as_superuser(world: World, statement: str, *args: Any) -> list[tuple[Any, ...]]:
    with world.superuser() as conn:
        return rows(conn, statement, *args)


def standing(world: World) -> dict[str, Any]:
    """All that the users consist of: roles with their verifiers, memberships, rights, secrets. `xmin` changes with
    every UPDATE of a row, even one to the same values."""
    catalogs = {
        "pg_authid": "true",
        "pg_auth_members": "true",
        "pg_default_acl": "true",
        "pg_class": f"relnamespace = '{SCHEMA}'::regnamespace",
        "pg_namespace": f"nspname = '{SCHEMA}'",
        "pg_database": "datname = current_database()",
    }
    with world.superuser() as conn:
        found = {
            catalog: sorted(rows(conn, f"SELECT xmin::text, t::text FROM {catalog} t WHERE {which}"))
            for catalog, which in catalogs.items()
        }
    return {**found, **{name: world.versions(name) for name in ("admin", "user", "creator")}}


def verifiers(world: World) -> dict[str, Optional[str]]:
    """What the server keeps of each role's password."""
    return dict(rows_as_superuser(world, "SELECT rolname, rolpassword FROM pg_authid WHERE rolname !~ '^pg_'"))


def logs_in(world: World, secret: str) -> tuple[str, bool]:
    """The name of the login in this secret, and whether it belongs to the right group."""
    with world.login(secret) as conn:
        return rows(conn, "SELECT current_user::text, pg_has_role(%s, 'USAGE')", GROUPS[secret])[0]


def create_login(world: World, name: str, group: str, password: str = "its own password") -> dict[str, str]:
    """A login made as the predecessor made its own; returns what its secret held."""
    world.sql(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'")
    world.sql(f'GRANT {group} TO "{name}"')
    return {"username": name, "password": password}


# --- Groups before, logins after ------------------------------------------------------------------------------------


def test_users_on_a_fresh_database_migration_may_grant_to_both_groups(world: World) -> None:
    """The group roles are there before the first migration runs."""
    world.write("001_things.sql", "CREATE TABLE things (id int); GRANT TRUNCATE ON things TO readwrite, tablecreator;")

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_things"]


def test_users_where_a_migration_fails_are_groups_without_logins(world: World) -> None:
    """Logins and secrets come after the migrations."""
    world.write("001_broken.sql", "SELECT nonsense;")

    with pytest.raises(InitializerError, match=r"^001_broken\.sql:1:8: "):
        world.deploy()

    assert our_roles(world) == {"readwrite", "tablecreator"}
    assert (world.versions("user"), world.versions("creator")) == (0, 0)


@pytest.mark.parametrize(
    ("environ", "logins"),
    [
        pytest.param({}, {"app_rw", "app_tc"}, id="both"),
        pytest.param({"DB_PROXY": None}, {"app_rw"}, id="only DB_USER_SECRET_NAME"),
        pytest.param({"DB_USER_SECRET_NAME": None}, {"app_tc"}, id="only DB_PROXY"),
        pytest.param({"DB_USER_SECRET_NAME": None, "DB_PROXY": None}, set(), id="none"),
    ],
)
def test_users_without_a_secret_have_their_group_but_no_login(
    world: World, environ: dict[str, Optional[str]], logins: set[str]
) -> None:
    """Both groups are made in any case, a login only where a secret is named for it."""
    report = world.deploy(**environ)

    assert report["users"] == dict.fromkeys(logins, "created")
    assert our_roles(world) == {"readwrite", "tablecreator"} | logins
    assert {name for name in LOGINS if world.versions(name)} == {name for name in LOGINS if LOGINS[name] in logins}


def test_users_whose_secret_is_named_later_are_made_then(world: World) -> None:
    """A login that was left out is made by the deployment that names its secret; the other one is kept."""
    world.deploy(DB_PROXY=None)

    report = world.deploy()

    assert report["users"] == {"app_rw": "kept", "app_tc": "created"}
    assert logs_in(world, "creator") == ("app_tc", True)


def test_users_named_by_arn_get_their_secrets(world: World) -> None:
    """A target may be an ARN as well as a name."""
    arn = world.secrets.describe_secret(SecretId="user")["ARN"]

    world.deploy(DB_USER_SECRET_NAME=arn)

    assert logs_in(world, "user") == ("app_rw", True)


def test_users_unwanted_touch_no_role_and_no_secret(world: World) -> None:
    """CREATE_USERS="false" makes no role, writes no secret and does not even read one, but applies the migrations."""
    world.write("001_things.sql", "CREATE TABLE things (id int);")
    read = []

    with hooked("before-parameter-build.secrets-manager", lambda params, **_: read.append(params["SecretId"])):
        report = world.deploy(CREATE_USERS="false")

    assert (report["users"], world.tables()) == ({}, ["things"])
    assert (read, our_roles(world)) == (["admin"], set())


def test_users_unwanted_broken_ones_stay_as_they_are(world: World) -> None:
    """CREATE_USERS="false" leaves roles, rights and secrets of earlier runs alone, right or wrong."""
    world.deploy()
    world.sql("ALTER ROLE app_rw NOLOGIN")
    world.put_secret("creator", "not JSON")
    before = standing(world)

    world.deploy(CREATE_USERS="false")

    assert standing(world) == before


# --- A second run ---------------------------------------------------------------------------------------------------


def test_users_on_second_run_stay_as_they_are(world: World) -> None:
    """With nothing to do no row of the catalogs is written and no secret gets a new version."""
    world.write("001_things.sql", "CREATE TABLE things (id serial);")
    world.deploy()
    before = standing(world)

    report = world.deploy()

    assert report["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert standing(world) == before


def test_users_on_a_run_with_a_new_migration_stay_as_they_are(world: World) -> None:
    """A run that applies something leaves the users alone too."""
    world.write("000_first.sql", "SELECT 1;")
    world.deploy()
    before = standing(world)
    world.write("001_nothing.sql", "SELECT 1;")

    report = world.deploy()

    assert report["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert [entry["name"] for entry in report["applied"]] == ["001_nothing"]
    assert standing(world) == before


# --- Names ----------------------------------------------------------------------------------------------------------


def test_users_with_a_role_prefix_have_it_before_all_four_names(world: World) -> None:
    """ROLE_PREFIX is put literally before the groups' and the logins' names."""
    world.write("001_things.sql", "CREATE TABLE things (id int); GRANT TRUNCATE ON things TO shop_readwrite;")

    report = world.deploy(ROLE_PREFIX="shop_")

    assert our_roles(world) == {"shop_readwrite", "shop_tablecreator", "shop_app_rw", "shop_app_tc"}
    assert report["users"] == {"shop_app_rw": "created", "shop_app_tc": "created"}
    assert (world.secret("user")["username"], world.secret("creator")["username"]) == ("shop_app_rw", "shop_app_tc")


def test_users_given_a_role_prefix_later_are_new_ones(world: World) -> None:
    """A prefix that is set later means other roles; those without it stay as they are."""
    world.deploy()
    before = verifiers(world)

    report = world.deploy(ROLE_PREFIX="shop_")

    assert report["users"] == {"shop_app_rw": "created", "shop_app_tc": "created"}
    assert {name: value for name, value in verifiers(world).items() if name in before} == before


# --- What the secret holds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("managed_by_rds", [False, True], ids=["whole admin secret", "RDS-managed admin secret"])
def test_users_secret_holds_all_that_is_needed_to_connect(world: World, managed_by_rds: bool) -> None:
    """engine, host, port (a number), dbname, username and password, whatever the admin's secret looks like."""
    host, port = world.server.host, world.server.port
    environ = {}
    if managed_by_rds:
        world.put_secret("admin", {"username": ADMIN, "password": ADMIN_PASSWORD})
        environ = {"DB_HOST": host, "DB_PORT": str(port), "DB_NAME": world.dbname}
    else:
        world.put_secret("admin", {**world.secret("admin"), "port": str(port)})

    world.deploy(**environ)

    for name, login in LOGINS.items():
        value = world.secret(name)
        password = value.pop("password")
        assert value == {"engine": "postgres", "host": host, "port": port, "dbname": world.dbname, "username": login}
        assert isinstance(password, str)
        assert len(password) >= 32


def test_users_secret_keeps_the_keys_it_had(world: World) -> None:
    """Keys of others (AWS's rotation needs masterarn) survive; wrong ones of ours are put right."""
    world.put_secret("user", {"masterarn": "arn:of:the:master", "tags": ["a", 1], "host": "old", "username": "nobody"})

    world.deploy()

    value = world.secret("user")
    assert (value["masterarn"], value["tags"]) == ("arn:of:the:master", ["a", 1])
    assert (value["host"], value["username"]) == (world.server.host, "app_rw")


def test_users_never_write_the_admin_secret(world: World) -> None:
    """The admin's secret has one version and its value, also after logins were made and repaired."""
    before = world.secret("admin")
    world.deploy()
    world.sql("ALTER ROLE app_rw NOLOGIN")
    world.deploy()

    assert (world.versions("admin"), world.secret("admin")) == (1, before)


# --- Broken secrets -------------------------------------------------------------------------------------------------


BROKEN_SECRETS = {
    "not JSON": "not JSON",
    "JSON array": "[1, 2]",
    "JSON null": "null",
    "no login": "{}",
    "placeholder": {"username": "applicationUsername", "password": "applicationPassword"},
    "wrong password": {"username": "app_rw", "password": "wrong"},
    "empty password": {"username": "app_rw", "password": ""},
    "password no text": {"username": "app_rw", "password": 17},
    "username no text": {"username": ["app_rw"], "password": "x"},
    "NUL in the password": {"username": "app_rw", "password": "a\0b"},
    "password that is not Unicode": {"username": "app_rw", "password": "\ud800"},
    "username that is not Unicode": {"username": "\ud800", "password": "x"},
    "the admin's login": {"username": ADMIN, "password": ADMIN_PASSWORD},
}


@pytest.mark.slow
def test_users_with_a_broken_secret_get_a_new_password(world: World) -> None:
    """A secret that holds no working, limited login gets one; the other secret and its login stay."""
    world.deploy()
    for case, value in BROKEN_SECRETS.items():
        before = verifiers(world)
        world.put_secret("user", value)

        report = world.deploy()

        assert report["users"] == {"app_rw": "mended", "app_tc": "kept"}, case
        assert logs_in(world, "user") == ("app_rw", True), case
        assert {name for name, verifier in verifiers(world).items() if verifier != before[name]} == {"app_rw"}, case
    assert world.versions("creator") == 1


def test_users_with_a_binary_secret_get_a_new_password(world: World) -> None:
    """A value that is not text counts as none."""
    world.secrets.put_secret_value(SecretId="user", SecretBinary=b"\x00\xff")

    report = world.deploy()

    assert report["users"] == {"app_rw": "created", "app_tc": "created"}
    assert logs_in(world, "user") == ("app_rw", True)


def test_users_with_each_others_secrets_get_their_own_login(world: World) -> None:
    """A table creator's login is too powerful for the limited user, and the limited user's is not a table creator."""
    world.deploy()
    user, creator = world.secret("user"), world.secret("creator")
    world.put_secret("user", creator)
    world.put_secret("creator", user)

    report = world.deploy()

    assert report["users"] == {"app_rw": "mended", "app_tc": "mended"}
    assert (logs_in(world, "user"), logs_in(world, "creator")) == (("app_rw", True), ("app_tc", True))


# --- Broken roles ---------------------------------------------------------------------------------------------------


BROKEN_ROLES = {
    "DROP ROLE app_rw": "created",
    "ALTER ROLE app_rw NOLOGIN": "mended",
    "ALTER ROLE app_rw VALID UNTIL '2001-01-01'": "mended",
    "ALTER ROLE app_rw PASSWORD NULL": "mended",
    "ALTER ROLE app_rw PASSWORD 'by hand'": "mended",
    "ALTER ROLE app_rw CREATEDB": "mended",
    "ALTER ROLE app_rw CREATEROLE": "mended",
    "REVOKE readwrite FROM app_rw": "mended",
}


@pytest.mark.slow
def test_users_with_a_broken_role_are_repaired(world: World) -> None:
    """Whatever was done to the login's role, the next run gives the application a limited login that works."""
    world.deploy()
    for damage, what in BROKEN_ROLES.items():
        world.sql(damage)

        report = world.deploy()

        assert report["users"] == {"app_rw": what, "app_tc": "kept"}, damage
        assert logs_in(world, "user") == ("app_rw", True), damage
        assert world.sql(
            "SELECT rolcreatedb, rolcreaterole, coalesce(rolvaliduntil, 'infinity') = 'infinity' "
            "FROM pg_roles WHERE rolname = 'app_rw'"
        ) == [(False, False, True)], damage
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_users_with_an_attribute_only_a_superuser_takes_away_are_refused(world: World) -> None:
    """The message names the role, the attribute and the statement that helps; nothing is changed."""
    world.deploy()
    for attribute in ("SUPERUSER", "REPLICATION", "BYPASSRLS"):
        rows_as_superuser(world, f"ALTER ROLE app_rw {attribute}")
        before = standing(world)

        with pytest.raises(UserError) as caught:
            world.deploy()

        assert str(caught.value) == (
            "role app_rw is more powerful than a limited user may be. It was not changed. As a superuser: "
            f"ALTER ROLE app_rw NO{attribute}; then invoke again."
        )
        assert standing(world) == before
        rows_as_superuser(world, f"ALTER ROLE app_rw NO{attribute}")
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_users_in_a_more_powerful_role_are_refused(world: World) -> None:
    """The message names the role that gives the power; nothing is changed, and its advice helps."""
    world.deploy()
    rows_as_superuser(world, "CREATE ROLE tmp_chief CREATEROLE; CREATE ROLE rds_superuser")  # RDS's has no attribute
    for power in ("tablecreator", "tmp_chief", "rds_superuser"):
        rows_as_superuser(world, f"GRANT {power} TO app_rw")
        before = standing(world)

        with pytest.raises(UserError) as caught:
            world.deploy()

        assert str(caught.value) == (
            f"role app_rw is more powerful than a limited user may be, through {power}. It was not changed. REVOKE "
            "that, and invoke again."
        )
        assert standing(world) == before
        rows_as_superuser(world, f"REVOKE {power} FROM app_rw")
    rows_as_superuser(world, "DROP ROLE rds_superuser")
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


# --- What works is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", LOGINS)
def test_users_of_the_predecessor_that_work_are_kept(world: World, secret: str) -> None:
    """A login with a random name that works and is in its group stays, untouched; ours is not made in addition."""
    world.sql("CREATE ROLE readwrite; CREATE ROLE tablecreator")
    if world.server.version >= 160000:  # where not even the creator of a role may grant in its name
        world.sql(f"GRANT readwrite, tablecreator TO {ADMIN}")
    value = create_login(world, RANDOM_USER, GROUPS[secret])
    world.put_secret(secret, value)
    before = verifiers(world)
    try:
        report = world.deploy()

        other = next(login for name, login in LOGINS.items() if name != secret)
        assert report["users"] == {RANDOM_USER: "kept", other: "created"}
        assert our_roles(world) == {"readwrite", "tablecreator", other}
        assert (world.versions(secret), world.secret(secret)) == (1, value)
        assert verifiers(world)[RANDOM_USER] == before[RANDOM_USER]
        assert world.deploy()["users"] == {RANDOM_USER: "kept", other: "kept"}
    finally:
        rows_as_superuser(world, f'DROP OWNED BY "{RANDOM_USER}"; DROP ROLE "{RANDOM_USER}"')


def test_users_of_the_predecessor_that_are_broken_are_replaced(world: World) -> None:
    """A random login whose password is wrong is left alone; the secret gets ours."""
    world.deploy()
    create_login(world, RANDOM_USER, "readwrite")
    world.put_secret("user", {"username": RANDOM_USER, "password": "wrong"})
    before = verifiers(world)
    try:
        report = world.deploy()

        assert report["users"] == {"app_rw": "mended", "app_tc": "kept"}
        assert verifiers(world)[RANDOM_USER] == before[RANDOM_USER]
        assert logs_in(world, "user") == ("app_rw", True)
    finally:
        rows_as_superuser(world, f'DROP ROLE "{RANDOM_USER}"')


def test_users_rotated_by_others_are_kept(world: World) -> None:
    """A password changed in role and secret together, as AWS's rotation does it, stays."""
    world.deploy()
    world.sql("ALTER ROLE app_rw PASSWORD 'rotated'")
    world.put_secret("user", {**world.secret("user"), "password": "rotated"})
    before = standing(world)

    report = world.deploy()

    assert report["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert standing(world) == before


@pytest.mark.parametrize(
    ("obstacle", "said"),
    [
        pytest.param("ALTER ROLE app_rw CONNECTION LIMIT 0", 'too many connections for role "app_rw"', id="role"),
        pytest.param(
            'ALTER DATABASE "{0}" CONNECTION LIMIT 1', 'too many connections for database "{0}"', id="database"
        ),
    ],
)
def test_users_that_cannot_be_tried_are_not_changed(
    world: World, monkeypatch: pytest.MonkeyPatch, obstacle: str, said: str
) -> None:
    """A login that is not let in at the moment, which the server says after it has checked the password, is kept."""
    world.deploy()
    world.sql(obstacle.format(world.dbname))
    before = standing(world)
    world.hang_up()
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)

    refused = pytest.raises(psycopg2.OperationalError, match=said.format(world.dbname))
    with refused, world.connection(), world.login("user"):
        pass
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert standing(world) == before


def test_users_repaired_but_not_let_in_are_reported_as_such(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new login is tried; its limit is reported after its password was checked, and is not a failure."""
    world.deploy()
    world.sql("ALTER ROLE app_rw CONNECTION LIMIT 0 NOLOGIN")
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)

    assert world.deploy()["users"] == {"app_rw": "mended", "app_tc": "kept"}
    world.sql("ALTER ROLE app_rw CONNECTION LIMIT -1")
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}


# --- Crashes --------------------------------------------------------------------------------------------------------


class ProcessDied(BaseException):
    """Represents the end of the process: nothing that catches exceptions catches this one."""


def die(*_: Any, **__: Any) -> None:
    raise ProcessDied


def deny(**_: Any) -> tuple[AWSResponse, dict[str, Any]]:
    """What Secrets Manager answers to a function whose role lacks the permission."""
    error = {"Code": "AccessDeniedException", "Message": "User is not authorized"}
    return AWSResponse("", 400, {}, None), {"Error": error, "ResponseMetadata": {"HTTPStatusCode": 400}}


def time_out(**_: Any) -> None:
    raise ReadTimeoutError(endpoint_url="the endpoint")


BEFORE, AFTER = "before-call.secrets-manager.PutSecretValue", "after-call.secrets-manager.PutSecretValue"
WRITE_FAILED = "secret user could not be written: "
NOT_CHANGED = ". The login that it holds was left as it was; fix this and invoke again."


@pytest.mark.parametrize(
    ("existed", "event", "failure"),
    [
        pytest.param(False, BEFORE, die, id="new login, died before the secret was written"),
        pytest.param(True, BEFORE, die, id="died before the secret was written"),
        pytest.param(True, BEFORE, deny, id="secret not writable"),
        pytest.param(True, BEFORE, time_out, id="Secrets Manager out of reach"),
        pytest.param(False, AFTER, die, id="new login, died when the secret was written"),
        pytest.param(True, AFTER, die, id="died when the secret was written"),
    ],
)
def test_users_after_a_crash_before_the_commit_are_repaired_by_the_next_run(
    world: World, existed: bool, event: str, failure: Any
) -> None:
    """Before the commit the role is as it was, whatever the secret holds; the next run brings both together."""
    world.write("001_things.sql", "CREATE TABLE things (id int);")
    if existed:
        world.deploy()
        world.sql("ALTER ROLE app_rw NOLOGIN")
    before, versions_before = verifiers(world).get("app_rw"), world.versions("user")

    with hooked(event, failure), pytest.raises((ProcessDied, UserError)):
        world.deploy()

    assert verifiers(world).get("app_rw") == before
    assert world.versions("user") == versions_before + (event == AFTER)
    assert world.applied() == ["001_things"]
    assert world.deploy()["users"]["app_rw"] == ("mended" if existed else "created")
    assert logs_in(world, "user") == ("app_rw", True)


def test_users_after_a_lost_connection_before_the_commit_are_repaired_by_the_next_run(world: World) -> None:
    """A connection that breaks when the secret is written already leaves no login locked out for good."""

    def cut(**_: Any) -> None:
        rows_as_superuser(world, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", ADMIN)

    with hooked(AFTER, cut), pytest.raises(ConnectError) as caught:
        world.deploy()

    assert "Whatever was not finished is rolled back" in str(caught.value)
    assert "nvoke again" in str(caught.value)
    assert "None" not in str(caught.value)
    assert (world.versions("user"), our_roles(world)) == (1, {"readwrite", "tablecreator"})
    assert world.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}
    assert logs_in(world, "user") == ("app_rw", True)


def test_users_after_a_crash_after_the_commit_are_kept_by_the_next_run(world: World) -> None:
    """Once the change is committed the secret holds a login that works, whether or not it was tried."""
    connect = database.connect

    def die_at_the_trial(login: database.Login, *args: Any, **named: Any) -> Any:
        return connect(login, *args, **named) if login.username == ADMIN else die()

    with mock.patch.object(database, "connect", die_at_the_trial), pytest.raises(ProcessDied):
        world.deploy()

    value = world.secret("user")
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "created"}
    assert world.secret("user") == value


def test_users_whose_secret_may_not_be_written_are_told_so(world: World) -> None:
    """The message names the secret, the permission that is missing, the state and the next step."""
    with hooked(BEFORE, deny), pytest.raises(UserError) as caught:
        world.deploy()

    assert str(caught.value) == (
        f"{WRITE_FAILED}it is closed to the function's role: grant it secretsmanager:PutSecretValue, and the use of "
        f"the KMS key{NOT_CHANGED}"
    )
    assert (
        rows_as_superuser(world, "SELECT rolname FROM pg_roles WHERE rolname = 'app_rw'") == []
    )  # which nobody could use


# --- Passwords in no log --------------------------------------------------------------------------------------------


def everything_about(error: BaseException) -> str:
    """The error and its whole chain, as a careless handler would print it."""
    parts = ["".join(traceback.format_exception(type(error), error, error.__traceback__))]
    link: Optional[BaseException] = error
    while link is not None:
        parts += [str(link), repr(link), str(vars(link)), getattr(link, "pgerror", None) or ""]
        link = link.__cause__ or link.__context__
    return "\n".join(parts)


def test_users_passwords_are_in_no_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A server that logs every statement, and sends what it logs to the client as well, sees verifiers only."""
    for setting in ("log_statement = 'all'", "log_min_duration_statement = 0", "client_min_messages = 'log'"):
        rows_as_superuser(world, f'ALTER DATABASE "{world.dbname}" SET {setting}')
    world.deploy()
    passwords = [world.secret(name)["password"] for name in LOGINS]
    world.put_secret("user", {**world.secret("user"), "password": "the wrong password"})

    world.deploy()

    passwords += ["the wrong password", world.secret("user")["password"], ADMIN_PASSWORD]
    server_log = world.server.log_file.read_text(errors="replace") if world.server.log_file else ""
    said = "\n".join([caplog.text, *(repr(vars(record)) for record in caplog.records), server_log])
    assert len(re.findall(r"(?:CREATE|ALTER) ROLE .{,2}app_rw.* PASSWORD 'SCRAM-SHA-256\$", caplog.text)) == 2
    assert [password for password in passwords if password in said] == []


@pytest.mark.parametrize(("event", "failure"), [(BEFORE, deny), (BEFORE, time_out)], ids=["denied", "out of reach"])
def test_users_passwords_are_in_no_error(
    world: World, event: str, failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An error holds no password, nor do the errors in its chain, their texts, their attributes and the traceback."""
    made = []

    def remember(params: dict[str, Any], **_: Any) -> None:
        made.append(json.loads(params["SecretString"])["password"])

    watched = hooked("before-parameter-build.secrets-manager.PutSecretValue", remember)
    with watched, hooked(event, failure), pytest.raises(UserError) as caught:
        world.deploy()

    assert len(made) == 1
    assert made[0] not in everything_about(caught.value) + caplog.text


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"username": "app_rw", "password": "half of it \ud800"}, id="no Unicode"),
        pytest.param({"username": "app_rw", "password": "half of it"}, id="plain"),
    ],
)
def test_users_passwords_of_logins_that_cannot_be_tried_are_in_no_error(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    """A login that is tried in vain leaves its password nowhere."""
    world.deploy()
    world.put_secret("user", value)
    world.sql(f'ALTER DATABASE "{world.dbname}" CONNECTION LIMIT 1')
    world.hang_up()
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)

    report = world.deploy()

    assert "half of it" not in str(report) + caplog.text


def test_users_data_classes_hide_passwords(world: World) -> None:
    """What an error tracker prints of local variables holds no password."""
    login = database.Login(database.Endpoint("host", 5432, "db"), "me", "very secret")
    secret = Secret("name", "arn", {"password": "very secret"})
    keeper = StoredInSecret(None, secret, True)
    with mock.patch.dict(os.environ, {**world.environ, "DB_SECRET_NAME": "admin"}):
        setup = load_setup(os.environ, Deadline(), world.folder)
    everything = (login, keeper, secret, setup.application)

    assert "very secret" not in repr(everything)
    assert ADMIN_PASSWORD not in repr(setup)


def test_users_verifier_is_one_that_psycopg2_logs_in_with(world: World) -> None:
    """The role's password is kept as SCRAM-SHA-256, and a wrong one is refused."""
    world.deploy()

    assert (verifiers(world)["app_rw"] or "").startswith("SCRAM-SHA-256$")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        world.connection("app_rw", "wrong").__enter__()

"""A login and its secret, in every state in which they can be found, and after a crash between any two steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Optional
from unittest import mock

import database
import initializer
import pytest
from common import UserError
from harness import aws
from harness.logins import SECRETS, as_superuser, verifiers, works
from harness.others import wait_until
from harness.second import second_application
from harness.world import World, rows
from initializer import InitializerError
from limited_users import LimitedUsers
from session import Session

ROTATE = {"action": "rotate"}
GETS = ["GetSecretValue admin", "GetSecretValue user", "GetSecretValue creator"]
KEPT = {"app_rw": "kept", "app_tc": "kept"}


def standing(world: World) -> dict[str, Any]:
    """The roles with their verifiers (`xmin` changes with every UPDATE), and the secrets with all their versions."""
    roles = as_superuser(world, "SELECT xmin::text, t::text FROM pg_authid t ORDER BY rolname")
    members = as_superuser(world, "SELECT xmin::text, t::text FROM pg_auth_members t ORDER BY t::text")
    return {"roles": roles, "members": members, **{name: world.versions(name) for name in ("admin", "user", "creator")}}


def both_work(world: World) -> bool:
    return works(world, world.secret("user")) and works(world, world.secret("creator"))


@pytest.fixture
def second(world: World) -> Iterator[World]:
    with second_application(world) as second:
        yield second


# --- How often Secrets Manager is asked -----------------------------------------------------------------------------


@pytest.mark.slow
def test_credentials_that_work_cost_three_reads_and_no_write(world: World) -> None:
    """What is asked of Secrets Manager is known exactly: nothing is written where nothing has to be repaired."""
    seen = {}

    def deploy(case: str, event: Any = None, **environ: Optional[str]) -> None:
        with aws.calls() as made:
            world.deploy(event, **environ)
        seen[case] = made

    deploy("first")
    deploy("again")
    world.write("001_things.sql", "CREATE TABLE things (id int);")
    deploy("migration")
    world.sql("ALTER ROLE app_rw NOLOGIN")
    deploy("mended")
    deploy("rotated", ROTATE)
    deploy("one", DB_PROXY=None)
    deploy("none", CREATE_USERS="false")

    user, creator = GETS[1:]
    assert seen == {
        # Read again before the role, for what AWS's rotation is about, and when the role is ours alone.
        "first": [*GETS, *[user] * 3, "PutSecretValue user", *[creator] * 3, "PutSecretValue creator"],
        "again": GETS,
        "migration": [*GETS, user, creator],
        "mended": [*GETS, *[user] * 3, "PutSecretValue user", creator],
        # Under the lock of the logins, and for a rotation by AWS that is at work.
        "rotated": [*GETS, *[user] * 3, "PutSecretValue user", *[creator] * 3, "PutSecretValue creator"],
        "one": GETS[:2],
        "none": GETS[:1],
    }


def test_credentials_are_not_asked_for_again_where_a_migration_fails(world: World) -> None:
    """A run that ends before the users has read each secret once and written none."""
    world.write("001_broken.sql", "SELECT 1/0")

    with aws.calls() as made, pytest.raises(initializer.MigrationError):
        world.deploy()

    assert made == GETS


# --- What the secret holds ------------------------------------------------------------------------------------------


def test_credentials_whose_secret_was_made_again_are_repaired(world: World) -> None:
    """A secret that has lost its value with all its versions gets a login again; the other one is left alone."""
    world.deploy()
    before = world.secret("creator")
    world.secrets.delete_secret(SecretId="user", ForceDeleteWithoutRecovery=True)
    world.secrets.create_secret(Name="user")

    assert world.deploy()["users"] == {"app_rw": "mended", "app_tc": "kept"}
    assert (both_work(world), world.secret("creator")) == (True, before)


def test_credentials_of_another_database_are_led_to_ours(world: World) -> None:
    """A login that works, but that its own secret sends to a database that is not there, does not work: the name is
    set right, the password stays."""
    world.deploy()
    value = world.secret("user")
    world.put_secret("user", {**value, "dbname": "before_the_restore"})
    before = verifiers(world)

    world.deploy()

    assert works(world, world.secret("user"))
    assert world.secret("user") == value
    assert verifiers(world) == before


def test_credentials_with_a_host_of_their_own_are_kept(world: World) -> None:
    """The host may be another way to the same database (a proxy, a DNS name of the team's): it is left alone."""
    world.deploy()
    world.put_secret("user", {**world.secret("user"), "host": "proxy.example.com", "port": 6432})
    before = standing(world)

    report = world.deploy()

    assert report["users"] == KEPT
    assert standing(world) == before


def test_credentials_that_name_no_database_are_kept(world: World) -> None:
    """The predecessor's applications have host and port from elsewhere: username and password alone are enough."""
    world.deploy()
    world.put_secret("user", {key: world.secret("user")[key] for key in ("username", "password")})
    before = standing(world)

    assert world.deploy()["users"] == KEPT
    assert standing(world) == before


@pytest.mark.slow
def test_credentials_repaired_and_rotated_keep_keys_that_we_do_not_know(world: World) -> None:
    """Whatever else a secret holds stays in it, in its type, whichever way its login is changed."""
    others = {"masterarn": "arn:of:the:admin", "dbClusterIdentifier": "shop", "tags": ["a", 1, None], "": {"x": "%s"}}
    world.put_secret("user", {**others, "username": "nobody", "password": "x"})
    for event, damage in ((None, ""), (None, "ALTER ROLE app_rw NOLOGIN"), (ROTATE, ""), (ROTATE, "")):
        if damage:
            world.sql(damage)

        world.deploy(event)

        value = world.secret("user")
        assert {key: value[key] for key in others} == others
        assert sorted(set(value) - set(others)) == ["dbname", "engine", "host", "password", "port", "username"]
        assert works(world, value)


def test_credentials_of_a_sibling_application_are_refused(world: World, second: World) -> None:
    """Two applications that name the same secret would take it from each other at every deployment: the working login
    of the other one is not overwritten, since nobody else knows its password."""
    second.deploy(ROLE_PREFIX="shop_", DB_USER_SECRET_NAME="user", DB_PROXY=None)
    theirs = world.secret("user")
    before = verifiers(world)

    with pytest.raises(UserError, match="shop_app_rw"):
        world.deploy()

    assert world.secret("user") == theirs
    assert {name: value for name, value in verifiers(world).items() if name in before} == before


def test_credentials_that_expire_later_are_kept(world: World) -> None:
    """A login that an organisation lets expire some day works today, and is changed when it does not any more."""
    world.deploy()
    world.sql("ALTER ROLE app_rw VALID UNTIL '2999-01-01'")
    before = standing(world)

    assert world.deploy()["users"] == KEPT
    assert standing(world) == before


# --- AWS's rotation -------------------------------------------------------------------------------------------------


def rotated_by_aws(world: World, secret: str, password: str) -> dict[str, Any]:
    """What AWS's rotation for alternating users does as the admin: the clone is a member of the first login."""
    value = world.secret(secret)
    clone = f"{value['username']}_clone"
    world.sql(f"CREATE ROLE {clone} LOGIN PASSWORD '{password}'; GRANT {value['username']} TO {clone}")
    if world.server.version >= 160000:
        world.sql(f"GRANT {clone} TO CURRENT_USER")
    world.put_secret(secret, {**value, "username": clone, "password": password})
    return {**value, "username": clone, "password": password}


def test_credentials_of_a_clone_that_aws_made_are_kept(world: World) -> None:
    """AWS's alternating rotation makes `app_rw_clone` a member of `app_rw`: it works, so nothing is written; what the
    table creator's clone makes is usable by the limited one."""
    world.deploy()
    world.put_secret("user", {**world.secret("user"), "masterarn": "arn:of:the:admin"})
    made = [rotated_by_aws(world, "user", "by AWS 1"), rotated_by_aws(world, "creator", "by AWS 2")]
    before = standing(world)

    with aws.calls() as asked:
        report = world.deploy()

    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE late (id serial)")
    with world.login("user") as conn:
        rows(conn, "INSERT INTO late DEFAULT VALUES")
    assert report["users"] == {"app_rw_clone": "kept", "app_tc_clone": "kept"}
    assert [call for call in asked if "Put" in call] == []
    assert [world.secret("user"), world.secret("creator")] == made
    assert standing(world)["user"] == before["user"]
    assert world.deploy()["users"] == {"app_rw_clone": "kept", "app_tc_clone": "kept"}


def test_credentials_of_a_clone_that_broke_are_replaced_by_ours(world: World) -> None:
    """Where the clone does not work, the secret gets the first login with a new password, and rotating goes on."""
    world.deploy()
    rotated_by_aws(world, "user", "by AWS")
    world.sql("ALTER ROLE app_rw_clone NOLOGIN")

    assert world.deploy()["users"] == {"app_rw": "mended", "app_tc": "kept"}
    assert both_work(world)
    assert world.deploy(ROTATE)["users"] == {"app_rw_clone": "rotated", "app_tc_clone": "rotated"}
    assert both_work(world)


def meanwhile(world: World, number: int) -> Any:
    """AWS's rotation for one user, at the moment when the handler has read secret `user` so many times."""
    seen: list[str] = []

    def rotate(parsed: dict[str, Any], **_: Any) -> None:
        seen.append(parsed.get("Name", ""))
        if parsed.get("Name") == "user" and seen.count("user") == number:
            world.sql("ALTER ROLE app_rw PASSWORD 'by AWS'")
            world.put_secret("user", {**world.secret("user"), "password": "by AWS"})

    return aws.at(aws.AFTER_READ, rotate)


@pytest.mark.parametrize("number", [1, 2], ids=["before the lock", "just before it is tried"])
def test_credentials_rotated_by_aws_meanwhile_are_kept(world: World, number: int) -> None:
    """A password that AWS changes during the run, in role and secret, works: it is not changed again."""
    world.deploy()
    world.write("001_things.sql", "CREATE TABLE things (id int);")

    with meanwhile(world, number):
        report = world.deploy()

    assert works(world, world.secret("user"))
    assert (world.secret("user")["password"], world.versions("user")) == ("by AWS", 2)
    assert report["users"] == KEPT


def test_credentials_rotated_by_aws_while_ours_waits_for_the_role_are_kept(world: World) -> None:
    """A secret that was repaired by another run while this run was about to is read again before it is overwritten."""
    world.deploy()
    world.sql("ALTER ROLE app_rw PASSWORD 'lost'")
    change, done = LimitedUsers._change_login, []

    def late(*args: Any) -> bool:
        if not done:
            done.append(world.sql("ALTER ROLE app_rw PASSWORD 'by AWS'"))
            world.put_secret("user", {**world.secret("user"), "password": "by AWS"})
        return change(*args)

    with mock.patch.object(LimitedUsers, "_change_login", late):
        world.deploy()

    assert works(world, world.secret("user"))
    assert world.secret("user")["password"] == "by AWS"
    assert world.deploy()["users"] == KEPT


def test_credentials_in_the_middle_of_a_rotation_by_aws_work_when_it_is_done(world: World) -> None:
    """Between AWS's steps the role has the new password, while the secret's current value is the old one still, which
    fails: a deployment at that moment does not break what AWS ends with."""
    world.deploy()
    new = {**world.secret("user"), "password": "by AWS"}
    put = world.secrets.put_secret_value(SecretId="user", SecretString=json.dumps(new), VersionStages=["AWSPENDING"])
    world.sql("ALTER ROLE app_rw PASSWORD 'by AWS'")  # its step setSecret; testSecret logs in with it

    with suppress(InitializerError):  # that it cannot be said now is an answer
        world.deploy()

    staged = world.secrets.describe_secret(SecretId="user")["VersionIdsToStages"]
    (current,) = (version for version, stages in staged.items() if "AWSCURRENT" in stages)
    world.secrets.update_secret_version_stage(  # its step finishSecret
        SecretId="user", VersionStage="AWSCURRENT", MoveToVersionId=put["VersionId"], RemoveFromVersionId=current
    )
    kept = world.secrets.get_secret_value(SecretId="user", VersionStage="AWSCURRENT")  # moto's default is another
    assert works(world, json.loads(kept["SecretString"]))


# --- Secrets that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_credentials_whose_secret_vanishes_meanwhile_stay_as_they_are(world: World) -> None:
    """A secret that is deleted between reading and writing: the message names it, and no role has changed."""
    for code, said in {
        "ResourceNotFoundException": "does not exist in this account and region",
        "InvalidRequestException": "Secrets Manager answered InvalidRequestException to PutSecretValue",
        "LimitExceededException": "Secrets Manager answered LimitExceededException to PutSecretValue",
        "InternalServiceError": "Secrets Manager answered InternalServiceError to PutSecretValue",
        "DecryptionFailure": "Secrets Manager answered DecryptionFailure to PutSecretValue",
    }.items():
        world.deploy()
        world.sql("ALTER ROLE app_rw NOLOGIN")
        before = standing(world)

        with aws.at(aws.BEFORE_WRITE, aws.refused(code)), pytest.raises(UserError) as caught:
            world.deploy()

        assert str(caught.value).startswith("secret user could not be written: it ")
        assert said in str(caught.value)
        after = standing(world)
        # The role was closed meanwhile, to end its sessions: its row was written, and is the same.
        assert [row for _, row in after.pop("roles")] == [row for _, row in before.pop("roles")], code
        assert after == before, code


# --- A crash between any two steps ----------------------------------------------------------------------------------


class ProcessDied(BaseException):
    """Represents the end of the process: nothing that catches exceptions catches this one."""


class Steps:
    """Counts what changes the world while the logins are made (statements other than SELECT, trials of a login, calls
    to Secrets Manager), and dies before the one of this number."""

    def __init__(self, deadly: int) -> None:
        self.deadly, self.done, self.counting = deadly, [], False  # type: ignore[var-annotated]

    def step(self, what: str) -> None:
        if self.counting:
            self.done.append(what)
            if len(self.done) == self.deadly:
                self.counting = False  # a process that is dead does nothing more, but roll back
                raise ProcessDied(what)


@contextmanager
def stepping(deadly: int = 0) -> Iterator[Steps]:
    steps = Steps(deadly)
    query, connect, ensure = Session.query, database.connect, initializer.ensure_logins

    def counted_query(self: Session, statement: Any, args: Any = None) -> Any:
        text = statement if isinstance(statement, str) else statement.as_string(self.connection)
        if not text.lstrip().startswith(("SELECT", "WITH")):
            steps.step(" ".join(text.split()[:2]))
        return query(self, statement, args)

    def counted_connect(*args: Any, **kwargs: Any) -> Any:
        steps.step("trial")
        return connect(*args, **kwargs)

    def counted_ensure(*args: Any, **kwargs: Any) -> Any:
        steps.counting = True
        try:
            return ensure(*args, **kwargs)
        finally:
            steps.counting = False

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(Session, "query", counted_query))
        patches.enter_context(mock.patch.object(database, "connect", counted_connect))
        patches.enter_context(mock.patch.object(initializer, "ensure_logins", counted_ensure))
        for event in (aws.BEFORE_READ, aws.BEFORE_WRITE, aws.AFTER_WRITE):
            patches.enter_context(aws.at(event, lambda event_name="", **_: steps.step(event_name.partition(".")[0])))
        yield steps


def wait_until_logged_out(world: World, login: str) -> None:
    """A session that is still there would be ended, which takes more steps."""
    sessions = f"SELECT FROM pg_stat_activity WHERE usename IN ('{login}', '{login}_clone')"
    wait_until(lambda: as_superuser(world, sessions) == [])


MADE = {"CREATE ROLE", "SAVEPOINT db_setup_objects;", "COMMIT"}


@pytest.mark.parametrize(
    ("login", "event", "damage", "expected"),
    [
        pytest.param("app_tc", None, "DROP OWNED BY app_tc; DROP ROLE app_tc", MADE, id="made"),
        pytest.param("app_rw", None, "ALTER ROLE app_rw PASSWORD 'lost'", {"ALTER ROLE", "COMMIT"}, id="mended"),
        pytest.param("app_tc", ROTATE, "SELECT", {"ALTER ROLE", "REASSIGN OWNED", "COMMIT"}, id="rotated"),
    ],
)
@pytest.mark.slow
def test_credentials_after_a_crash_at_any_step_are_repaired_by_the_next_run(
    world: World, login: str, event: Any, damage: str, expected: set[str]
) -> None:
    """Wherever the process dies the next run ends with a login that works; what worked before never stops."""
    secret, other = SECRETS[login], "DB_USER_SECRET_NAME" if login == "app_tc" else "DB_PROXY"
    del world.environ[other]
    world.deploy(event)
    world.deploy(event)
    as_superuser(world, damage)
    wait_until_logged_out(world, login)
    with stepping() as whole:
        world.deploy(event)
    assert expected | {"trial", "before-call", "after-call"} <= set(whole.done)

    for number, step in enumerate(whole.done, 1):
        as_superuser(world, damage)
        wait_until_logged_out(world, login)

        with stepping(number), pytest.raises(ProcessDied, match=f"^{step}$"):
            world.deploy(event)

        assert works(world, world.secret(secret)) or event is None, f"{number}: {step}"
        world.deploy()
        assert works(world, world.secret(secret)), f"{number}: {step}"
    assert set(world.deploy()["users"].values()) == {"kept"}

"""The function as the rotation function of its own secrets: Secrets Manager's four steps, also out of order."""

from __future__ import annotations

import itertools
import json
import uuid
from typing import Any

import initializer
import pytest
from harness import aws
from harness.logins import as_superuser, works
from harness.world import World, rows
from moto.secretsmanager.models import SecretsManagerBackend

pytestmark = pytest.mark.slow

STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")


def new_token() -> str:
    return str(uuid.uuid4())


def take(world: World, step: str, token: str, secret: str = "user", **environ: str) -> dict[str, Any]:
    """What the report says of the users after one step."""
    arn = world.secrets.describe_secret(SecretId=secret)["ARN"]
    users: dict[str, Any] = world.deploy({"Step": step, "SecretId": arn, "ClientRequestToken": token}, **environ)[
        "users"
    ]
    return users


def attempt(world: World, step: str, token: str, secret: str = "user") -> bool:
    """Take a step; whether it succeeded."""
    try:
        take(world, step, token, secret)
    except initializer.InitializerError:
        return False
    return True


@pytest.fixture(autouse=True)
def _moto_follows_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto moves AWSCURRENT, and goes on to return the version that had it, to those who name no stage."""
    move = SecretsManagerBackend.update_secret_version_stage

    def follow(backend: Any, secret_id: str, version_stage: str, *versions: str, **named: str) -> Any:
        answer = move(backend, secret_id, version_stage, *versions, **named)
        backend.secrets[secret_id].set_default_version_id(named.get("move_to_version_id") or versions[1])
        return answer

    monkeypatch.setattr(SecretsManagerBackend, "update_secret_version_stage", follow)


@pytest.fixture
def deployed(world: World) -> World:
    world.deploy()
    return world


def test_rotation_by_aws_takes_four_steps(deployed: World) -> None:
    """The secret holds the other login at the end, the one from before still works, and other keys stay."""
    before = {**deployed.secret("user"), "note": "kept"}
    deployed.put_secret("user", before)
    token = new_token()

    said = [take(deployed, step, token) for step in STEPS]

    assert said == [{"app_rw_clone": what} for what in ("pending", "set", "works", "rotated")]
    now = deployed.secret("user")
    assert now == {**before, "username": "app_rw_clone", "password": now["password"]}
    assert works(deployed, now)
    assert works(deployed, before)
    assert deployed.deploy()["users"] == {"app_rw_clone": "kept", "app_tc": "kept"}


def test_rotation_by_aws_can_repeat_every_step(deployed: World) -> None:
    """Each step comes twice, and once more at the end: the password that was set first is the one that stays."""
    token = new_token()
    take(deployed, STEPS[0], token)
    pending = deployed.secrets.get_secret_value(SecretId="user", VersionStage="AWSPENDING")["SecretString"]
    for step in (*STEPS, *STEPS):
        take(deployed, step, token)
        take(deployed, step, token)

    current = deployed.secrets.get_secret_value(SecretId="user")
    assert (current["SecretString"], current["VersionId"]) == (pending, token)
    assert works(deployed, deployed.secret("user"))


def test_rotation_by_aws_in_any_order_never_leaves_a_login_that_fails(deployed: World) -> None:
    """Whatever order the steps come in, and wherever they stop: after each one the secret's login works."""
    for order in itertools.permutations(STEPS):
        token = new_token()
        for step in order:
            attempt(deployed, step, token)
            assert works(deployed, deployed.secret("user")), (order, step)
    token = new_token()
    assert all(attempt(deployed, step, token) for step in STEPS)
    assert works(deployed, deployed.secret("user"))


CUTS = {
    "createSecret": (aws.BEFORE_WRITE, aws.AFTER_WRITE),
    "finishSecret": (
        "before-call.secrets-manager.UpdateSecretVersionStage",
        "after-call.secrets-manager.UpdateSecretVersionStage",
    ),
}


@pytest.mark.parametrize("step", CUTS)
@pytest.mark.parametrize("moment", [0, 1], ids=["before", "after"])
def test_rotation_by_aws_survives_being_killed(deployed: World, step: str, moment: int) -> None:
    """Cut off before or after a call that writes: the login works, and the same steps, sent again, end the rotation."""

    def cut(**_: Any) -> None:
        raise KeyboardInterrupt

    token = new_token()
    for each in STEPS[: STEPS.index(step)]:
        take(deployed, each, token)
    with pytest.raises(KeyboardInterrupt), aws.at(CUTS[step][moment], cut):
        take(deployed, step, token)

    assert works(deployed, deployed.secret("user"))
    for each in STEPS:
        take(deployed, each, token)
    assert deployed.secret("user")["username"] == "app_rw_clone"
    assert works(deployed, deployed.secret("user"))


def test_rotation_by_aws_hands_on_what_the_table_creator_has_made(deployed: World) -> None:
    """As in `rotate`: the table belongs to the group, so the other login can change it."""
    with deployed.login("creator") as conn:
        rows(conn, "CREATE TABLE made (id int)")
    token = new_token()

    for step in STEPS:
        take(deployed, step, token, "creator")

    with deployed.login("creator") as conn:
        assert rows(conn, "SELECT current_user::text") == [("app_tc_clone",)]
        rows(conn, "ALTER TABLE made ADD note text")


def test_rotation_by_aws_hands_on_what_its_next_login_has_made_meanwhile(deployed: World) -> None:
    """Of two leaked passwords ago: whoever calls that function sets the login's new password."""
    leaked = deployed.secret("creator")
    for round_number in (1, 2):
        token = new_token()
        for step in STEPS:
            take(deployed, step, token, "creator")
        if round_number == 1:
            with deployed.connection(leaked["username"], leaked["password"]) as conn:
                rows(conn, "CREATE FUNCTION back() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")

    owner = deployed.sql("SELECT proowner::regrole::text FROM pg_proc WHERE proname = 'back'")
    assert (deployed.secret("creator")["username"], owner) == (leaked["username"], [("tablecreator",)])


def test_migration_during_a_rotation_by_aws_changes_no_login(deployed: World) -> None:
    """Between any two steps: what works is kept; what is broken waits for the rotation; `rotate` is refused."""
    token = new_token()
    for step in STEPS[:3]:
        take(deployed, step, token)
        assert deployed.deploy()["users"] == {"app_rw": "kept", "app_tc": "kept"}
    with pytest.raises(initializer.UserError, match="is being rotated by AWS"):
        deployed.deploy({"action": "rotate"})
    deployed.sql("ALTER ROLE app_rw NOLOGIN")
    with pytest.raises(initializer.UserError, match="is being rotated by AWS"):
        deployed.deploy()

    take(deployed, STEPS[3], token)

    assert deployed.deploy()["users"] == {"app_rw_clone": "kept", "app_tc": "kept"}


def test_rotation_by_aws_does_not_change_a_login_that_is_not_its_own(deployed: World) -> None:
    """What somebody has put into the pending version is not trusted: neither the admin nor the login in use."""
    admin = deployed.secret("admin")
    for name in (admin["username"], "app_rw", "app_tc_clone"):
        token = new_token()
        value = f'{{"username": "{name}", "password": "guessed"}}'
        deployed.secrets.put_secret_value(
            SecretId="user", ClientRequestToken=token, SecretString=value, VersionStages=["AWSPENDING"]
        )

        with pytest.raises(initializer.UserError, match=f"the rotation's login {name} is not the other one of"):
            take(deployed, "setSecret", token)
        assert not attempt(deployed, "finishSecret", token)

    assert works(deployed, admin)
    assert works(deployed, deployed.secret("user"))


def test_rotation_by_aws_of_another_secret_is_refused(deployed: World) -> None:
    """The admin's, above all: nothing is touched."""
    with pytest.raises(initializer.ConfigError, match="is not one that db_setup writes: it cannot be rotated here"):
        take(deployed, "createSecret", new_token(), "admin")
    assert deployed.versions("admin") == 1


@pytest.mark.parametrize("text", ["a random string", '"x"', "{}"])
def test_rotation_by_aws_can_be_the_first_to_write_a_secret(world: World, text: str) -> None:
    """A secret that CDK has made is rotated as soon as its schedule exists, which may be before the first migration."""
    world.secrets.put_secret_value(SecretId="user", SecretString=text)
    token = new_token()

    said = [take(world, step, token) for step in STEPS]

    assert said[-1] == {"app_rw": "rotated"}
    assert works(world, world.secret("user"))
    assert world.deploy()["users"] == {"app_rw": "kept", "app_tc": "created"}


def test_rotation_by_aws_of_a_secret_without_a_value_waits_for_a_migration(world: World) -> None:
    """Its first version is current from the beginning, before its login works."""
    for step in STEPS:
        with pytest.raises(initializer.UserError, match=r"has no value yet\. It was not changed\. Invoke a migration"):
            take(world, step, "0" * 32)
    assert world.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}


def test_rotation_by_aws_does_not_replace_a_login_of_others(deployed: World) -> None:
    """As in a migration: a login that works, and is not ours, would be lost."""
    as_superuser(
        deployed, f"CREATE ROLE tmp_other LOGIN PASSWORD 'x'; GRANT CONNECT ON DATABASE {deployed.dbname} TO tmp_other"
    )
    other = {**deployed.secret("user"), "username": "tmp_other", "password": "x"}
    deployed.put_secret("user", other)

    with pytest.raises(initializer.UserError, match="holds tmp_other, which works, and is not a login of readwrite"):
        take(deployed, "createSecret", new_token())
    assert deployed.secret("user") == other


@pytest.mark.parametrize("password", [5, None, "", "a\0b"])
def test_rotation_by_aws_refuses_a_pending_password_that_is_none(deployed: World, password: Any) -> None:
    """Somebody has written it by hand: no login is made of it, and none that signs in by IAM."""
    token = new_token()
    value = json.dumps({"username": "app_rw_clone", "password": password})
    deployed.secrets.put_secret_value(
        SecretId="user", ClientRequestToken=token, SecretString=value, VersionStages=["AWSPENDING"]
    )

    with pytest.raises(initializer.UserError, match="the rotation's login app_rw_clone has no usable password"):
        take(deployed, "setSecret", token)
    assert works(deployed, deployed.secret("user"))


SELF_LOCKED = {
    "hashes for minutes": f"ALTER ROLE app_rw PASSWORD 'SCRAM-SHA-256$9000000:{'c' * 22}==${'k' * 43}=:{'k' * 43}='",
    "cannot load a library": "ALTER ROLE app_rw SET local_preload_libraries = 'absent'",
}


@pytest.mark.parametrize("how", SELF_LOCKED)
def test_rotation_by_aws_is_not_stopped_by_what_a_login_has_set_itself(deployed: World, how: str) -> None:
    """The login of before the last rotation, whose password somebody may still know."""
    tokens = [new_token(), new_token()]
    for step in STEPS:
        take(deployed, step, tokens[0])
    as_superuser(deployed, SELF_LOCKED[how])

    said = [take(deployed, step, tokens[1]) for step in STEPS]

    assert said == [{"app_rw": what} for what in ("pending", "set", "works", "rotated")]
    assert works(deployed, deployed.secret("user"))


def test_rotation_by_aws_needs_a_pending_version(deployed: World) -> None:
    """A step of a rotation that has not begun, or of an older one, says so."""
    with pytest.raises(initializer.UserError, match="has no pending version of this rotation"):
        take(deployed, "testSecret", new_token())


def test_rotation_by_aws_that_cannot_read_its_secret_says_what_it_has_left_alone(deployed: World) -> None:
    """Groups and rights were looked at before: "nothing has been touched" would be too much."""
    reads = itertools.count(1)
    own = 1 + 2  # the admin's secret and those of the users are read before

    def deny_the_last(**_: Any) -> Any:
        return aws.refused("AccessDeniedException")() if next(reads) > own else None

    closed = r"is closed to .*Its login was not changed"
    with aws.at(aws.BEFORE_READ, deny_the_last), pytest.raises(initializer.UserError, match=closed) as caught:
        take(deployed, "createSecret", new_token())

    assert "Nothing has been touched" not in str(caught.value)

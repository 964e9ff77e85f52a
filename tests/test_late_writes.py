"""A write of a secret that arrives late, or whose answer is lost: what the last run said of the login stays true."""

from __future__ import annotations

import re
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
from common import UserError
from harness.aws import AFTER_WRITE, BEFORE_READ, BEFORE_WRITE, at, refused
from harness.logins import verifiers, works
from harness.world import World

ROTATE = {"action": "rotate"}
BUILD = "before-parameter-build.secrets-manager.PutSecretValue"
LOST = (
    "secret user could not be written: it could not be asked for (ReadTimeoutError): a function in a VPC needs an "
    "interface endpoint for Secrets Manager, or NAT, and a role. It may have been written all the same. Fix this and "
    "invoke again: the next run repairs the login if it does not work."
)


class ProcessDied(BaseException):
    """Represents the end of the process: nothing that catches exceptions catches this one."""


def die(**_: Any) -> None:
    raise ProcessDied


def time_out(**_: Any) -> None:
    raise ReadTimeoutError(endpoint_url="the endpoint")


@pytest.fixture(autouse=True)
def _one_user(world: World) -> None:
    del world.environ["DB_PROXY"]


def killed(world: World, event: Any) -> dict[str, Any]:
    """The write that is on its way when a run is killed: nobody has received it yet."""
    late: dict[str, Any] = {}

    def hold_back(params: dict[str, Any], **_: Any) -> None:
        late.update(params)
        raise ProcessDied

    with at(BUILD, hold_back), pytest.raises(ProcessDied):
        world.deploy(event)
    return late


def prepared(world: World, case: str) -> Any:
    """Bring the world to where a write of this kind happens; returns the event that makes it happen."""
    if case != "created":
        world.deploy()
    if case == "mended":
        world.sql("ALTER ROLE app_rw NOLOGIN")
    return ROTATE if case == "rotated" else None


CASES = pytest.mark.parametrize("case", ["created", "mended", "rotated"])


@CASES
def test_late_write_of_a_killed_run_does_not_replace_a_later_runs(world: World, case: str) -> None:
    """Secrets Manager takes one of the two: the one that came first, of a run that ended well."""
    event = prepared(world, case)
    late = killed(world, event)

    assert set(world.deploy(event)["users"].values()) == {case}
    value = world.secret("user")
    with pytest.raises(world.secrets.exceptions.ResourceExistsException):
        world.secrets.put_secret_value(**late)

    assert world.secret("user") == value
    assert works(world, value)


@CASES
def test_late_write_that_arrives_before_the_later_runs_is_overtaken(world: World, case: str) -> None:
    """The later run finds that its own is refused, and repairs the login that the late one has stored."""
    event = prepared(world, case)
    late = killed(world, event)
    arrived: list[Any] = []

    def arrive(**_: Any) -> None:
        if not arrived:
            arrived.append(world.secrets.put_secret_value(**late))

    with at(BEFORE_WRITE, arrive):
        users = world.deploy(event)["users"]

    assert set(users.values()) == {"mended" if case != "created" else "created"}
    assert works(world, world.secret("user"))


def test_version_that_was_made_current_again_can_be_followed_once_more(world: World) -> None:
    """Its first follower has the token already: the next one gets another."""
    world.deploy()
    first = world.secrets.get_secret_value(SecretId="user")["VersionId"]
    world.deploy(ROTATE)
    second = world.secrets.get_secret_value(SecretId="user")["VersionId"]
    world.secrets.update_secret_version_stage(
        SecretId="user", VersionStage="AWSCURRENT", MoveToVersionId=first, RemoveFromVersionId=second
    )

    assert set(world.deploy(ROTATE)["users"].values()) == {"rotated"}
    assert works(world, world.secret("user"))


@CASES
def test_write_whose_answer_is_lost_counts_if_the_secret_holds_it(world: World, case: str) -> None:
    """The secret is read again before anything is said of it."""
    event = prepared(world, case)

    with at(AFTER_WRITE, time_out):
        users = world.deploy(event)["users"]

    assert set(users.values()) == {case}
    assert works(world, world.secret("user"))


def test_write_that_is_not_answered_may_still_arrive(world: World) -> None:
    """Nothing is said of the login that the next moment can make false."""
    with at(BEFORE_WRITE, time_out), pytest.raises(UserError) as caught:
        world.deploy()

    assert str(caught.value) == LOST
    assert world.deploy()["users"] == {"app_rw": "created"}


@pytest.mark.parametrize("answered", [2, 3, 4, 5])
def test_secret_that_cannot_be_read_after_the_files_is_told_with_what_stays(world: World, answered: int) -> None:
    """Whichever read it is (before the login, of a rotation by AWS, before the write, after it): the role stays."""
    world.deploy()
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.put_secret("user", {**world.secret("user"), "password": "a wrong one"})
    before = verifiers(world)
    reads: list[Any] = []

    def close(**named: Any) -> Any:
        reads.append(named)
        return refused("AccessDeniedException")() if len(reads) > answered else None

    with (
        at(BEFORE_WRITE, refused("ResourceExistsException")),
        at(BEFORE_READ, close),
        pytest.raises(UserError) as caught,
    ):
        world.deploy()

    assert re.fullmatch(
        "secret '?user'? is closed to the function's role: .* Its login was not changed; fix this and invoke again. "
        "Applied in this run: 001_a.",
        str(caught.value),
    )
    assert verifiers(world) == before

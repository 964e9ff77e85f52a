"""What the function's role needs at AWS, enforced: GetSecretValue on three secrets, PutSecretValue on two, no more."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import boto3
import pytest
import secret_store
from harness import aws
from harness.logins import works
from harness.world import REGION, World
from initializer import InitializerError
from moto.core import set_initial_no_auth_action_count
from moto.secretsmanager.responses import SecretsManagerResponse

GET, PUT = "secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"
NEEDED = {("admin", GET), ("user", GET), ("creator", GET), ("user", PUT), ("creator", PUT)}
ROTATE = {"action": "rotate"}


def as_aws_says_it(http_response: Any, parsed: dict[str, Any], **_: Any) -> None:
    """moto refuses in XML, which no service that speaks JSON does; what it decides stays."""
    if http_response.status_code == 403:
        assert "<Code>AccessDenied</Code>" in http_response.text
        parsed["Error"] = {"Code": "AccessDeniedException", "Message": "User … is not authorized to perform …"}


class Policy:
    """The one policy of the identity as which the handler calls AWS; it holds from `enforced` on."""

    def __init__(self, world: World) -> None:
        self.arns = {name: world.secrets.describe_secret(SecretId=name)["ARN"] for name in ("admin", "user", "creator")}
        self.iam = boto3.client("iam", region_name=REGION)
        self.iam.create_user(UserName="function")
        key = self.iam.create_access_key(UserName="function")["AccessKey"]
        self.session = boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name=REGION)

    def allow(self, rights: set[tuple[str, str]]) -> None:
        statements = [{"Effect": "Allow", "Action": what, "Resource": self.arns[name]} for name, what in sorted(rights)]
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.iam.put_user_policy(UserName="function", PolicyName="secrets", PolicyDocument=document)

    def deploy(self, world: World, event: Any = None) -> dict[str, Any]:
        """Invoke the handler as that identity, everything else being refused."""
        arns = self.arns

        def resource(response: SecretsManagerResponse) -> str:
            """moto asks for the resource where a service names it; for Secrets Manager it would be `*`."""
            asked = json.loads(response.body)["SecretId"]
            return str(arns.get(asked, asked))

        named = mock.patch.object(SecretsManagerResponse, "_determine_resource", resource, create=True)
        identity = mock.patch.object(secret_store, "boto3", self.session)
        with named, identity, aws.at("after-call.secrets-manager", as_aws_says_it):
            report: dict[str, Any] = set_initial_no_auth_action_count(0)(world.deploy)(event)
        return report


@pytest.fixture
def policy(world: World) -> Policy:
    return Policy(world)


def test_least_privilege_is_enough_for_everything(world: World, policy: Policy) -> None:
    """Five rights carry a first run, one with nothing to do, one that repairs a login, and a rotation."""
    policy.allow(NEEDED)

    assert policy.deploy(world)["users"] == {"app_rw": "created", "app_tc": "created"}
    assert policy.deploy(world)["users"] == {"app_rw": "kept", "app_tc": "kept"}
    world.sql("ALTER ROLE app_rw NOLOGIN")
    assert policy.deploy(world)["users"] == {"app_rw": "mended", "app_tc": "kept"}
    assert policy.deploy(world, ROTATE)["users"] == {"app_rw_clone": "rotated", "app_tc_clone": "rotated"}
    assert works(world, world.secret("user"))


VARIABLES = {"admin": "DB_SECRET_NAME", "user": "DB_USER_SECRET_NAME", "creator": "DB_PROXY"}


@pytest.mark.parametrize(("name", "action"), sorted(NEEDED))
def test_least_privilege_less_one_right_is_refused_with_its_name(
    world: World, policy: Policy, name: str, action: str
) -> None:
    """With any one of the five missing, the message names the action and the secret; with it given, all is well."""
    policy.allow(NEEDED - {(name, action)})

    with pytest.raises(InitializerError) as caught:
        policy.deploy(world)

    message = str(caught.value)
    told = f"is closed to the function's role: grant it {action}, and the use of the KMS key"
    if action == GET:
        assert message == f"{VARIABLES[name]}: secret '{name}' {told}. Nothing has been touched."
    else:
        assert message == (
            f"secret {name} could not be written: it {told}. The login that it holds was left as it was; "
            "fix this and invoke again."
        )
    policy.allow(NEEDED)
    assert set(policy.deploy(world)["users"]) == {"app_rw", "app_tc"}
    assert works(world, world.secret("user"))
    assert works(world, world.secret("creator"))


def test_least_privilege_without_writing_is_enough_while_all_works(world: World, policy: Policy) -> None:
    """Without the right to write secrets, a run that has nothing to write succeeds."""
    world.deploy()
    policy.allow({(name, action) for name, action in NEEDED if action == GET})

    assert policy.deploy(world)["users"] == {"app_rw": "kept", "app_tc": "kept"}


UPDATE = "secretsmanager:UpdateSecretVersionStage"


def test_least_privilege_for_a_rotation_by_secrets_manager_is_one_more(world: World, policy: Policy) -> None:
    """Three of the four steps need nothing new; the last one moves a label, and says so if it may not."""
    world.deploy()
    policy.allow(NEEDED)
    token = "0" * 32
    events = [
        {"Step": step, "SecretId": policy.arns["user"], "ClientRequestToken": token}
        for step in ("createSecret", "setSecret", "testSecret", "finishSecret")
    ]
    for event in events[:3]:
        policy.deploy(world, event)
    with pytest.raises(InitializerError, match=f"is closed to the function's role: grant it {UPDATE}"):
        policy.deploy(world, events[3])
    assert works(world, world.secret("user"))

    policy.allow({*NEEDED, ("user", UPDATE)})

    assert policy.deploy(world, events[3])["users"] == {"app_rw_clone": "rotated"}

"""What the deployment's functions do, which CDK's provider framework calls: the code in the template, run as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import boto3
import pytest
from harness.aws import played
from harness.world import REGION
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID

from fleet.fleet import template

ROLE = "arn:aws:iam::123456789012:role/r"
MACHINE = {"name": "m", "definition": json.dumps({"StartAt": "a", "States": {"a": {"Type": "Succeed"}}})}


@pytest.fixture
def code(synthesised: Path) -> dict[str, Any]:
    resources = template(synthesised, "{}")
    texts = {
        each["Properties"]["Code"]["ZipFile"]
        for each in resources.values()
        if each["Type"] == "AWS::Lambda::Function" and "ZipFile" in each["Properties"]["Code"]
    }
    (text,) = (text for text in texts if "start_execution" in text)
    module: dict[str, Any] = {}
    exec(text, module)
    return module


def ends(name: str, error: str, cause: Optional[str] = None) -> None:
    """The execution of this name has failed like that."""
    for machine in get_backend("stepfunctions")[DEFAULT_ACCOUNT_ID][REGION].state_machines:
        (execution,) = [each for each in machine.executions if each.name == name]
        execution.status, execution.error, execution.cause = "FAILED", error, cause


@pytest.fixture
def event() -> Iterator[dict[str, Any]]:
    """A deployment's request, and a state machine."""
    with played():
        machine = boto3.client("stepfunctions").create_state_machine(**MACHINE, roleArn=ROLE)["stateMachineArn"]
        properties = {"StateMachineArn": machine, "Version": "arn:function:2"}
        yield {"RequestType": "Update", "RequestId": "one", "ResourceProperties": properties}


def executions(event: dict[str, Any]) -> list[str]:
    arn = event["ResourceProperties"]["StateMachineArn"]
    return [each["name"] for each in boto3.client("stepfunctions").list_executions(stateMachineArn=arn)["executions"]]


def test_a_deployment_starts_one_execution_for_each_request_and_waits_for_its_end(
    code: dict[str, Any], event: dict[str, Any]
) -> None:
    """A request that is delivered twice starts nothing twice; an execution that ends badly fails the deployment."""
    first, second = code["start"](event, None), code["start"](event, None)

    assert first == second
    assert first["PhysicalResourceId"] == "fleet"
    assert executions(event) == ["one"]
    following = {**event, **first}
    assert code["look"](following, None) == {"IsComplete": False}
    ends("one", "SomeFailed", "3 of 10 " + "x" * 5000)
    with pytest.raises(RuntimeError) as failed:
        code["look"](following, None)
    assert str(failed.value).startswith("FAILED: 3 of 10 x")
    assert str(failed.value).endswith(f"See {first['Data']['Execution']}")
    assert len(str(failed.value)) < 2000


def test_an_execution_that_is_not_known_yet_is_waited_for(code: dict[str, Any], event: dict[str, Any]) -> None:
    """Step Functions answers from where the execution may not have arrived."""
    following = {**event, **code["start"](event, None)}
    following["Data"] = {"Execution": following["Data"]["Execution"] + "-later"}
    assert code["look"](following, None) == {"IsComplete": False}


def test_an_execution_with_the_definition_before_the_deployment_is_started_again_once(
    code: dict[str, Any], event: dict[str, Any]
) -> None:
    """It has done nothing: the deployment does not succeed by it."""
    following = {**event, **code["start"](event, None)}
    execution = boto3.client("stepfunctions").describe_execution(executionArn=following["Data"]["Execution"])
    assert json.loads(execution["input"]) == {"version": "arn:function:2"}

    ends("one", "Outdated")
    assert [code["look"](following, None) for _ in range(3)] == [{"IsComplete": False}] * 3
    assert sorted(executions(event)) == ["one", "one-again"]

    ends("one-again", "Outdated")
    with pytest.raises(RuntimeError, match=r"^FAILED: Outdated See arn:.*:one-again$"):
        code["look"](following, None)


def test_a_stack_that_goes_runs_nothing(code: dict[str, Any]) -> None:
    """Delete leaves the databases alone."""
    event = {"RequestType": "Delete", "RequestId": "two", "ResourceProperties": {}}
    assert (code["start"](event, None), code["look"](event, None)) == ({}, {"IsComplete": True})

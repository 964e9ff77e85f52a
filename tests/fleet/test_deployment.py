"""What the deployment's functions do, which CDK's provider framework calls: the code in the template, run as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from harness.aws import played

from fleet.fleet import template

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


def test_a_deployment_starts_one_execution_for_each_request_and_waits_for_its_end(code: dict[str, Any]) -> None:
    """A request that is delivered twice starts nothing twice; an execution that ends badly fails the deployment."""
    with played():
        states = boto3.client("stepfunctions")
        arn = states.create_state_machine(**MACHINE, roleArn="arn:aws:iam::123456789012:role/r")["stateMachineArn"]
        event = {"RequestType": "Update", "RequestId": "one", "ResourceProperties": {"StateMachineArn": arn}}

        first, second = code["start"](event, None), code["start"](event, None)

        assert first == second
        assert first["PhysicalResourceId"] == "fleet"
        assert len(states.list_executions(stateMachineArn=arn)["executions"]) == 1
        following = {**event, **first}
        assert code["look"](following, None) == {"IsComplete": False}
        states.stop_execution(executionArn=first["Data"]["Execution"], cause="somebody " + "x" * 5000)
        with pytest.raises(RuntimeError) as failed:
            code["look"](following, None)
    assert str(failed.value).startswith("ABORTED: ")
    assert str(failed.value).endswith(f"See {first['Data']['Execution']}")
    assert len(str(failed.value)) < 2000


def test_a_stack_that_goes_runs_nothing(code: dict[str, Any]) -> None:
    """Delete leaves the databases alone."""
    event = {"RequestType": "Delete", "RequestId": "two", "ResourceProperties": {}}
    assert (code["start"](event, None), code["look"](event, None)) == ({}, {"IsComplete": True})

"""Step Functions as moto plays it, in a process of its own: a test can kill it, as nothing can kill AWS's.

Reads a machine as JSON from stdin, runs one execution, and prints what came of it. Lambda is invoked at
AWS_ENDPOINT_URL_LAMBDA.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import boto3
from moto import mock_aws
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service_aws_sdk,
    state_task_service_factory,
)

ROLE = "arn:aws:iam::123456789012:role/the-role"
LOOK_EVERY_S = 0.1


class Calls(state_task_service_aws_sdk.StateTaskServiceAwsSdk):  # type: ignore[misc]
    """Calls of other services, whose parameters and answers have capitals, as in AWS; moto hands on boto's names."""

    def _shapes(self) -> Any:
        model = boto3.client(self._get_boto_service_name()).meta.service_model
        action = self.resource.api_action
        return model.operation_model(action[0].upper() + action[1:])

    def _normalise_parameters(self, parameters: dict[str, Any], *_: Any) -> None:
        self._to_boto_request(parameters, self._shapes().input_shape)

    def _normalise_response(self, response: Any, *_: Any) -> None:
        self._from_boto_response(response, self._shapes().output_shape)
        texts = json.loads(json.dumps(response, default=str))  # of times
        response.clear()
        response.update(texts)


def play(asked: dict[str, Any]) -> dict[str, Any]:
    storage, states = boto3.client("s3"), boto3.client("stepfunctions")
    place = {"LocationConstraint": "eu-central-1"}
    storage.create_bucket(Bucket=asked["bucket"], CreateBucketConfiguration=place)
    for key, content in asked["objects"].items():
        storage.put_object(Bucket=asked["bucket"], Key=key, Body=json.dumps(content).encode())
    definition = json.dumps(asked["definition"])
    machine = states.create_state_machine(name=asked["name"], definition=definition, roleArn=ROLE)["stateMachineArn"]
    names = [f"run-{number}" for number in range(asked["executions"])]
    executions = [states.start_execution(stateMachineArn=machine, name=name, input=asked["input"]) for name in names]
    found = []
    for execution in executions:
        while True:
            state = states.describe_execution(executionArn=execution["executionArn"])
            if state["status"] != "RUNNING":
                break
            time.sleep(LOOK_EVERY_S)
        found.append({key: state.get(key) for key in ("status", "error", "cause", "output")})
    written = storage.list_objects_v2(Bucket=asked["bucket"], Prefix="failures/").get("Contents", [])
    failures = [
        json.loads(storage.get_object(Bucket=asked["bucket"], Key=each["Key"])["Body"].read()) for each in written
    ]
    return {"executions": found, "failures": failures}


if __name__ == "__main__":
    state_task_service_factory.StateTaskServiceAwsSdk = Calls
    with mock_aws(config={"stepfunctions": {"execute_state_machine": True}}):
        print(json.dumps(play(json.load(sys.stdin))))

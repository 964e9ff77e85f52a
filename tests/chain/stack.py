"""Simulates CloudFormation: deploys the function, lets CDK's provider invoke it, and shows what comes of that."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.world import AWS_ENVIRONMENT, World

from chain.lambda_service import LambdaService
from chain.parts import HERE, Runtime, Synthesised

ANSWER_TIMEOUT_S = 60
ANSWER_LIMIT = 4096  # bytes; CloudFormation takes no more


@dataclass(frozen=True)
class Event:
    """What the stack's events say of the trigger."""

    status: str
    reason: str
    size: int  # of the whole answer, in bytes

    @property
    def message(self) -> str:
        """The reason without the provider's own stack trace, which follows it."""
        return self.reason.split("\n    at ")[0]


class Provider:
    """CDK's trigger provider in a process of node."""

    def __init__(self, synthesised: Synthesised, node_modules: Path, lambda_url: str, log: Path) -> None:
        self.log = log
        node = shutil.which("node")
        assert node, "node is gone"
        environ = {**AWS_ENVIRONMENT, "AWS_REGION": AWS_ENVIRONMENT["AWS_DEFAULT_REGION"]}
        environ.update(AWS_ENDPOINT_URL_LAMBDA=lambda_url, NODE_PATH=str(node_modules), HOME=str(log.parent))
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [node, HERE / "provider.js", synthesised.provider],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def handle(self, event: dict[str, Any]) -> str:
        """The body of the answer to CloudFormation."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()
        # Each event has one answer of one line, so that nothing waits in Python's own buffer.
        answered, _, _ = select.select([self._process.stdout], [], [], ANSWER_TIMEOUT_S)
        line = self._process.stdout.readline() if answered else ""
        assert line, f"no answer from the provider: {self.log.read_text()[-3000:]}"
        return line.rstrip("\n")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


@dataclass
class Stack:
    """One stack with one trigger; `variables` are the function's own, on top of those of the template."""

    world: World
    runtime: Runtime
    synthesised: Synthesised
    service: LambdaService
    provider: Provider
    folder: Path
    variables: dict[str, str]
    bundle: str  # the certificates that the function trusts
    versions: list[str] = field(default_factory=list)
    physical_id: str = ""

    def deploy(self, timeout_s: float = 300, layer: bool = True, **trigger: Any) -> Event:
        """Publish the function with the world's migrations as a new version, and let the trigger run."""
        runtime, psycopg2 = self.runtime.install()
        self.versions.append(
            self.service.publish(
                python=self.runtime.python,
                code=self._code(),
                handler=self.synthesised.function["Handler"],
                paths=[runtime, psycopg2] if layer else [runtime],
                environ=self._environ(),
                timeout_s=timeout_s,
                log_format=self.synthesised.function["LoggingConfig"]["LogFormat"],
            )
        )
        return self._trigger(self.versions[-1], **trigger)

    def roll_back(self) -> Event:
        """What CloudFormation does after a failed update: the version before is the current one again."""
        self.versions.pop()
        return self.trigger_again()

    def trigger_again(self, **trigger: Any) -> Event:
        """The current version once more."""
        return self._trigger(self.versions[-1], **trigger)

    def _code(self) -> Path:
        """A copy of what is uploaded, with the world's migrations."""
        code = self.folder / f"code-{len(list(self.folder.iterdir()))}"
        shutil.copytree(self.synthesised.code, code, ignore=shutil.ignore_patterns("migrations"))
        shutil.copytree(self.world.folder, code / "migrations")
        if self.bundle:
            (code / "global-bundle.pem").write_text(self.bundle)
        return code

    def _environ(self) -> dict[str, str]:
        """The template's variables, which must be those of the world's secrets, as ARNs."""
        arns = {
            name: self.world.secrets.describe_secret(SecretId=self.world.environ[name])["ARN"]
            for name in self.synthesised.function["Environment"]["Variables"]
            if name not in self.variables
        }
        return {**AWS_ENVIRONMENT, **self.variables, **arns}

    def _trigger(self, arn: str, **properties: Any) -> Event:
        body = self.provider.handle(
            {
                "RequestType": "Update" if self.physical_id else "Create",
                **({"PhysicalResourceId": self.physical_id} if self.physical_id else {}),
                "ResponseURL": "https://cloudformation.invalid/answer",
                "StackId": f"arn:aws:cloudformation:eu-central-1:123456789012:stack/DbSetupExample/{uuid.uuid4()}",
                "RequestId": str(uuid.uuid4()),
                "LogicalResourceId": "DbSetupTrigger45EB8953",
                "ResourceType": "Custom::Trigger",
                # CloudFormation makes texts of all values.
                "ResourceProperties": {
                    **{name: _text(value) for name, value in {**self.synthesised.trigger, **properties}.items()},
                    "HandlerArn": arn,
                },
            }
        )
        answer, size = json.loads(body), len(body.encode())
        if answer["Status"] == "SUCCESS":
            self.physical_id = answer["PhysicalResourceId"]
        shown = answer["Reason"] if size <= ANSWER_LIMIT else "Response object is too long."
        return Event(answer["Status"], shown, size)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

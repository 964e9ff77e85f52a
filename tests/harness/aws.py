"""What the handler asks of Secrets Manager, by botocore's own events: counted, disturbed, or used as a moment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Callable
from unittest import mock

import boto3
import botocore.session
import secret_store
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError
from botocore.loaders import create_loader
from common import Deadline
from moto import mock_aws

from harness.world import AWS_ENVIRONMENT

ANY = "before-parameter-build.secrets-manager"
BEFORE_READ, AFTER_READ = "before-call.secrets-manager.GetSecretValue", "after-call.secrets-manager.GetSecretValue"
BEFORE_WRITE, AFTER_WRITE = "before-call.secrets-manager.PutSecretValue", "after-call.secrets-manager.PutSecretValue"


@contextmanager
def played() -> Iterator[None]:
    """AWS as moto plays it, empty, for the credentials of AWS_ENVIRONMENT."""
    with mock.patch.dict(os.environ, AWS_ENVIRONMENT):
        _moto().reset()
        boto3.setup_default_session(botocore_session=_session())
        yield


@cache
def _moto() -> Any:
    """One for all tests, which stays: to begin takes it longer than a test's database."""
    moto = mock_aws()
    moto.start()
    return moto


@cache
def _session() -> botocore.session.Session:
    """One for all tests: it takes longer to make than most of what they do with it."""
    session = botocore.session.Session()
    session.register_component("data_loader", create_loader())
    return session


@contextmanager
def at(event: str, action: Callable[..., Any]) -> Iterator[None]:
    """Call `action` at this event of the handler's own Secrets Manager client."""
    original = secret_store.secrets_client

    def client(deadline: Deadline) -> Any:
        made = original(deadline)
        made.meta.events.register(event, action)
        return made

    with mock.patch.object(secret_store, "secrets_client", client):
        yield


@contextmanager
def calls() -> Iterator[list[str]]:
    """What the handler asks for meanwhile, in its order: "GetSecretValue admin", ARNs shortened to names."""
    made: list[str] = []

    def remember(params: dict[str, Any], model: Any, **_: Any) -> None:
        name = re.sub("^arn:.*:secret:(.*)-[A-Za-z0-9]{6}$", r"\1", params["SecretId"])
        made.append(f"{model.name} {name}")

    with at(ANY, remember):
        yield made


def refused(code: str) -> Callable[..., Any]:
    """An action that lets Secrets Manager answer with this error."""

    def answer(**_: Any) -> tuple[AWSResponse, dict[str, Any]]:
        error = {"Code": code, "Message": "It is not possible."}
        return AWSResponse("", 400, {}, None), {"Error": error, "ResponseMetadata": {"HTTPStatusCode": 400}}

    return answer


def out_of_reach(**_: Any) -> None:
    """An action that plays a network that leads nowhere."""
    raise ReadTimeoutError(endpoint_url="the endpoint")

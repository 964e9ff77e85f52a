"""Signed by botocore.auth and sent by urllib: neither boto3 nor botocore's clients are loaded."""

from __future__ import annotations

import json
import os
import ssl
import sys
import types
import urllib.error
import urllib.request
from typing import Any

sys.modules["boto3"] = types.ModuleType("boto3")
import initializer  # noqa: E402
from botocore.auth import SigV4Auth  # noqa: E402
from botocore.awsrequest import AWSRequest  # noqa: E402
from botocore.credentials import Credentials  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402


class Client:
    """As much of Secrets Manager as the handler asks for."""

    def __init__(self) -> None:
        self._trust = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))

    def get_secret_value(self, **asked: str) -> Any:
        return self._call("GetSecretValue", asked)

    def put_secret_value(self, **asked: str) -> Any:
        return self._call("PutSecretValue", asked)

    def _call(self, action: str, asked: dict[str, str]) -> Any:
        region = os.environ["AWS_DEFAULT_REGION"]
        url = os.environ.get("AWS_ENDPOINT_URL", f"https://secretsmanager.{region}.amazonaws.com")
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"secretsmanager.{action}"}
        request = AWSRequest("POST", url, headers, json.dumps(asked).encode())
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        SigV4Auth(Credentials(*(os.environ.get(name) for name in names)), "secretsmanager", region).add_auth(request)
        sent = urllib.request.Request(url, request.body, dict(request.headers.items()))
        try:
            with urllib.request.urlopen(sent, timeout=5, context=self._trust) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as exc:
            said = json.load(exc)
            error = {"Code": said.get("__type", ""), "Message": said.get("message") or said.get("Message", "")}
            raise ClientError({"Error": error}, action) from exc


initializer.secrets_client = lambda deadline: Client()
handler = initializer.handler

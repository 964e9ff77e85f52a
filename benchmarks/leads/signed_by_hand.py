"""Signed by hand and sent by http.client over one connection: nothing of boto3 or botocore is loaded."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import json
import os
import ssl
import sys
import threading
import types
from typing import Any
from urllib.parse import urlsplit

for _name in ("boto3", "botocore", "botocore.config", "botocore.exceptions"):
    sys.modules[_name] = types.ModuleType(_name)


class ClientError(Exception):
    def __init__(self, response: dict[str, Any], action: str) -> None:
        super().__init__(f"{action}: {response['Error']}")
        self.response = response


sys.modules["botocore.config"].Config = dict  # type: ignore[attr-defined]
sys.modules["botocore.exceptions"].BotoCoreError = OSError  # type: ignore[attr-defined]
sys.modules["botocore.exceptions"].ClientError = ClientError  # type: ignore[attr-defined]
import initializer  # noqa: E402
import secret_store  # noqa: E402


def signed(host: str, region: str, body: bytes, action: str) -> dict[str, str]:
    """Signature Version 4 of this one kind of request."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": host,
        "x-amz-date": now,
        "x-amz-target": f"secretsmanager.{action}",
    }
    if "AWS_SESSION_TOKEN" in os.environ:
        headers["x-amz-security-token"] = os.environ["AWS_SESSION_TOKEN"]
    names = sorted(headers)
    lines = ["POST", "/", "", *(f"{name}:{headers[name]}" for name in names), "", ";".join(names)]
    canonical = "\n".join([*lines, hashlib.sha256(body).hexdigest()])
    scope = f"{now[:8]}/{region}/secretsmanager/aws4_request"
    key = b"AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    credential = f"Credential={os.environ['AWS_ACCESS_KEY_ID']}/{scope}"
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    headers["authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
    return headers


class Client:
    """As much of Secrets Manager as the handler asks for."""

    def __init__(self) -> None:
        self._alone = threading.Lock()  # one connection, whoever asks
        self._region = os.environ["AWS_DEFAULT_REGION"]
        url = urlsplit(os.environ.get("AWS_ENDPOINT_URL", f"https://secretsmanager.{self._region}.amazonaws.com"))
        self._host = url.netloc
        if url.scheme == "http":
            self._connection = http.client.HTTPConnection(url.netloc, timeout=5)
        else:
            trust = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
            self._connection = http.client.HTTPSConnection(url.netloc, timeout=5, context=trust)

    def get_secret_value(self, **asked: str) -> Any:
        return self._call("GetSecretValue", asked)

    def put_secret_value(self, **asked: str) -> Any:
        return self._call("PutSecretValue", asked)

    def _call(self, action: str, asked: dict[str, str]) -> Any:
        body = json.dumps(asked).encode()
        with self._alone:
            self._connection.request("POST", "/", body, signed(self._host, self._region, body, action))
            answer = self._connection.getresponse()
            said = json.loads(answer.read())
        if answer.status != http.client.OK:
            error = {"Code": said.get("__type", ""), "Message": said.get("message") or said.get("Message", "")}
            raise ClientError({"Error": error}, action)
        return said


secret_store.secrets_client = lambda deadline: Client()
handler = initializer.handler

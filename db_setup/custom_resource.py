"""The answer to CloudFormation, where the function is the ServiceToken of a custom resource.

CloudFormation does not look at what such an invocation returns or raises. It waits for an answer at
the event's ResponseURL, for an hour by default. Knows the form of its requests and answers, nothing
of migrations.

An event says where the answer is sent, so only Amazon S3 receives it: the status and, of a failure,
the message.
"""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Callable
from urllib.error import HTTPError

from common import ConfigError, ConnectError, log, set_up_logging, shown

# Less in all than a run keeps back of a function's time of 42 s or more.
ATTEMPTS, TIMEOUT_S, PAUSE_S = 3, 4, 1
ANSWER_BYTES = 4000  # CloudFormation refuses answers above 4,096
COPIED = ("StackId", "RequestId", "LogicalResourceId")

# The whole address, so that nobody else's reading of it can differ: S3 in a region of any of
# Amazon's partitions.
PARTITIONS = (
    r"amazonaws\.(?:com|com\.cn|eu)|c2s\.ic\.gov|sc2s\.sgov\.gov|csp\.hci\.ic\.gov|cloud\.adc-e\.uk"
)
S3 = re.compile(
    rf"https://(?:[a-z0-9-]+\.)*s3(?:[.-][a-z]+(?:-[a-z]+)+-[0-9]+)?\.(?:{PARTITIONS})(?::443)?/[!-~]*"
)


def is_request(event: Any) -> bool:
    """CloudFormation sent it, and waits for an answer."""
    return isinstance(event, dict) and "ResponseURL" in event


def answer(
    event: Mapping[str, Any], context: Any, handle: Callable[[Any, Any], dict[str, Any]]
) -> dict[str, Any]:
    """Handle Create and Update as a migration, do nothing on Delete, and answer; a failure is
    answered and raised.

    Raises ConfigError, and does nothing, where the answer would not go to Amazon S3; ConnectError
    where S3 did not take it. The resource's properties are not read: a property that changes is
    what makes CloudFormation send Update.
    """
    set_up_logging()
    kind, url = event.get("RequestType"), event["ResponseURL"]
    if not isinstance(url, str) or not S3.fullmatch(url):
        raise ConfigError(
            f"{shown(str(kind))} request: its ResponseURL is not an https address of Amazon S3, "
            "so nothing is sent there"
        )
    try:
        # An unknown kind is refused as an unknown action.
        asked = {} if kind in ("Create", "Update") else {"action": kind}
        report = {"status": "ok", "action": "none"} if kind == "Delete" else handle(asked, context)
    except Exception as exc:
        send(url, body(event, {"Status": "FAILED"}, f"{type(exc).__name__}: {exc}"))
        raise
    send(url, body(event, {"Status": "SUCCESS"}))
    return report


def body(event: Mapping[str, Any], status: Mapping[str, str], reason: str = "") -> bytes:
    """The answer as JSON, its reason shortened to what CloudFormation takes.

    The resource keeps its PhysicalResourceId: another one would make CloudFormation send Delete for
    the former.
    """
    own = event.get("PhysicalResourceId") or f"db_setup-{event.get('LogicalResourceId')}"
    fixed = {**status, "PhysicalResourceId": own, **{key: event.get(key) for key in COPIED}}
    reason = reason[:ANSWER_BYTES]
    while True:
        text = json.dumps({**fixed, **({"Reason": reason} if reason else {})}, ensure_ascii=False)
        data = text.encode(errors="replace")
        if len(data) <= ANSWER_BYTES or not reason:
            return data
        reason = reason[:-40]


def send(url: str, data: bytes) -> None:
    """Put the answer where CloudFormation waits for it.

    The URL is a credential: no log or message shows it.
    """
    # S3's signature covers the header, which CloudFormation leaves empty.
    request = urllib.request.Request(url, data, {"Content-Type": ""}, method="PUT")  # noqa: S310
    status = json.loads(data)["Status"]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
                log("CloudFormation answered", status=status)
                return
        except (OSError, HTTPException) as exc:
            if isinstance(exc, HTTPError):
                exc.close()
            if attempt == ATTEMPTS:
                raise ConnectError(
                    f"CloudFormation was not answered (Status {status}) and waits until its "
                    f"timeout: {request.host} cannot be reached or refuses the answer ({exc}). "
                    "Give the function a way to Amazon S3: a NAT gateway, or a gateway endpoint "
                    "for S3 in the route tables of its subnets, and port 443 open in its "
                    "security group",
                    state="",
                ) from exc
            log("CloudFormation not answered yet", logging.WARNING, attempt=attempt, reason=exc)
            time.sleep(PAUSE_S)

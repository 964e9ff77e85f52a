"""AWS Secrets Manager: reads and writes the secrets that hold logins. Signs tokens of IAM.

Knows AWS, nothing of databases or migrations. What goes wrong is a ConfigError or, in writing, a
UserError.
"""

from __future__ import annotations

import itertools
import json
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Callable, Optional
from urllib.parse import quote, urlencode

from common import (
    ROTATE_AGAIN,
    ConfigError,
    ConnectError,
    Credentials,
    Deadline,
    OvertakenError,
    UserError,
    shown,
)

try:
    import boto3
    from botocore.config import Config as AwsConfig
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.model import ServiceId
    from botocore.signers import RequestSigner
except ImportError:  # on a terminal, with DATABASE_URL, nothing of AWS is needed
    boto3 = None  # type: ignore[assignment]


CURRENT = "AWSCURRENT"
PENDING = "AWSPENDING"  # the value that a rotation is about to make current
TOKEN_OPENS_S = 900  # connections; those that are open stay
ROTATION_TAKES = timedelta(hours=1)  # at the most, AWS's own attempts included


class UnreachableError(ConfigError):
    """Secrets Manager does not answer; asking for the next secret would only take as long again."""


@dataclass(frozen=True)
class Secret:
    """A secret as it was read. `value` is None where it holds no JSON object."""

    name: str
    arn: str = ""
    value: Optional[Credentials] = None
    complaint: str = ""
    version: str = ""
    created: Optional[datetime] = None

    def __repr__(self) -> str:
        return f"Secret({self.name})"


def secrets_client(deadline: Deadline) -> Any:
    """A new client, since nothing outlives an invocation, that leaves time for the rest; raises
    ConfigError.

    botocore's own timeouts and retries can use up all 300 s of a Lambda when an endpoint is
    missing.
    """
    left = max(deadline.left, 4)
    attempts = 3 if left > 40 else 1
    patience = left / 4 / attempts
    try:
        options = AwsConfig(
            connect_timeout=min(5, patience),
            read_timeout=min(10, patience),
            retries={"total_max_attempts": attempts, "mode": "standard"},
        )
        return boto3.client("secretsmanager", config=options)
    except BotoCoreError as exc:
        raise ConfigError(f"Secrets Manager: {str(exc).rstrip('.')}") from exc


def in_time(client: Any, deadline: Deadline) -> Any:
    """The client, or another one for what is left: a write that nobody answers, and the look at
    what came of it, have to end.
    """
    options = client.meta.config
    longest = 2 * options.read_timeout * options.retries["total_max_attempts"]
    return client if deadline.left > 1.5 * longest else secrets_client(deadline)


def token_maker(host: str, port: int, username: str, region: str) -> Callable[[], str]:
    """What makes the tokens by which RDS lets a login in who has no password; raises ConfigError.

    A token opens connections for 15 minutes. It is signed here: nothing is asked, and no client
    made.
    """
    try:
        session = boto3.Session(region_name=region or None)
        credentials = session.get_credentials()
    except BotoCoreError as exc:
        raise ConfigError(f"{username} signs in by IAM, but: {str(exc).rstrip('.')}") from exc
    if credentials is None or session.region_name is None:
        raise ConfigError(
            f"{username} signs in by IAM, but there is no role or no AWS_DEFAULT_REGION"
        )
    query = urlencode({"Action": "connect", "DBUser": username}, quote_via=quote)
    url = f"https://{host}:{port}/?{query}"

    def new_token() -> str:
        names = (ServiceId("rds-db"), session.region_name, "rds-db", "v4")
        signer = RequestSigner(*names, credentials, session.events)  # it does not keep the session
        request = {"method": "GET", "url": url, "body": {}, "headers": {}, "context": {}}
        try:
            signed = str(signer.generate_presigned_url(request, "connect", TOKEN_OPENS_S))
        except Exception as exc:  # of whatever program or service gives new credentials
            kind = type(exc).__name__
            raise ConnectError(
                f"{username} signs in by IAM, but there are no new credentials ({kind})"
            ) from exc
        return signed[len("https://") :]

    return new_token


def read_secret(client: Any, name: str, stage: str = CURRENT) -> Secret:
    """Read a secret by name or ARN; raises ConfigError with what Secrets Manager says where it
    cannot be read.

    A secret without a value, or with one that is not a JSON object, is returned with a complaint.
    """
    request = {"SecretId": name}
    if stage != CURRENT:
        request["VersionStage"] = stage
    try:
        answer = client.get_secret_value(**request)
    except (BotoCoreError, ClientError) as exc:
        # An absent secret and one without a value are the same error code; only the text differs.
        has_no_value = "secret value for staging label" in str(exc)
        if has_no_value or (stage != CURRENT and "ResourceNotFound" in str(exc)):
            return Secret(name, complaint="has no value yet")
        kind = ConfigError if isinstance(exc, ClientError) else UnreachableError
        raise kind(f"secret {shown(name)} {_aws_problem(exc, 'GetSecretValue', name)}") from exc
    value, complaint = _credentials_in(answer.get("SecretString"))
    version = str(answer.get("VersionId", ""))
    return Secret(name, answer["ARN"], value, complaint, version, answer.get("CreatedDate"))


def _credentials_in(text: Optional[str]) -> tuple[Optional[Credentials], str]:
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return None, "is not JSON"
    return (Credentials(value), "") if isinstance(value, dict) else (None, "is not a JSON object")


def put_pending(client: Any, secret: Secret, token: str, value: Credentials) -> None:
    """Store what a rotation is about to make current, as the version that has this token."""
    text = json.dumps(value)
    put = partial(client.put_secret_value, SecretId=secret.arn, ClientRequestToken=token)
    _change(secret.name, "PutSecretValue", partial(put, SecretString=text, VersionStages=[PENDING]))


def make_current(client: Any, secret: Secret, token: str) -> None:
    """Move the label to the version that has this token, if it is still where it was read."""
    move = partial(client.update_secret_version_stage, SecretId=secret.arn, VersionStage=CURRENT)
    versions = {"MoveToVersionId": token, "RemoveFromVersionId": secret.version}
    _change(secret.name, "UpdateSecretVersionStage", partial(move, **versions))


def _change(name: str, action: str, change: Callable[[], Any]) -> None:
    try:
        change()
        return
    except (BotoCoreError, ClientError) as exc:
        problem = _aws_problem(exc, action, name)
    # Raised out here, without its cause: botocore's frames hold the password.
    raise UserError(f"secret {name} could not be written: it {problem}", ROTATE_AGAIN)


def being_rotated(client: Any, current: Secret) -> Optional[Credentials]:
    """The value that a rotation by AWS is about to make current; None where none is at work.

    A label that an old rotation has left, on an older version or for too long, does not count.
    """
    pending = read_secret(client, current.name, PENDING)
    if pending.version in ("", current.version) or pending.created is None:
        return None
    if current.created is not None and pending.created < current.created:
        return None
    is_old = datetime.now(timezone.utc) - pending.created > ROTATION_TAKES
    return None if is_old else pending.value


def write_secret(client: Any, secret: Secret, value: dict[str, Any]) -> str:
    """Make `value` the secret's current value, if that is still the one that was read; returns its
    ARN. Raises OvertakenError or UserError.

    What follows the same version has the same token, of which Secrets Manager accepts only the
    first: a request of a killed run that arrives late cannot replace what a later run has written.
    """
    name = secret.arn or secret.name
    for number in itertools.count():
        version = f"{_name_in(secret.name)} {secret.version} {number}"
        try:
            token = str(uuid.uuid5(uuid.NAMESPACE_URL, version))
            put = partial(client.put_secret_value, SecretId=name, ClientRequestToken=token)
            return str(put(SecretString=json.dumps(value))["ARN"])
        except (BotoCoreError, ClientError) as exc:
            answer: Any = exc.response if isinstance(exc, ClientError) else {}
            problem = _aws_problem(exc, "PutSecretValue", secret.name)
        if answer.get("Error", {}).get("Code") != "ResourceExistsException":
            break
        if read_secret(client, secret.name).version != secret.version:
            raise OvertakenError
        # Somebody has made an older version current again.
    state = "The login that it holds was left as it was; fix this and invoke again"
    if answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 500) >= 500:
        with suppress(ConfigError):
            now = read_secret(client, secret.name)
            if now.value == value:
                return now.arn
        state = (
            "It may have been written all the same. Fix this and invoke again: the next run "
            "repairs the login if it does not work"
        )
    # Raised out here, without its cause: botocore's frames hold the password.
    raise UserError(f"secret {secret.name} could not be written: it {problem}", state)


def _aws_problem(exc: Exception, action: str, name: str) -> str:
    if not isinstance(exc, ClientError):
        return (
            f"could not be asked for ({type(exc).__name__}): a function in a VPC needs an "
            "interface endpoint for Secrets Manager, or NAT, and a role"
        )
    code = exc.response["Error"].get("Code", "")
    if code == "ResourceNotFoundException":
        elsewhere = "" if name.startswith("arn:") else " (pass its ARN if it lives elsewhere)"
        return f"does not exist in this account and region{elsewhere}"
    if code in ("AccessDeniedException", "AccessDenied"):
        grant = f"grant it secretsmanager:{action}, and the use of the KMS key"
        return f"is closed to the function's role: {grant}"
    message = " ".join(exc.response["Error"].get("Message", "").split()).rstrip(".")
    return f"is refused: Secrets Manager answered {code} to {action}: {message[:200]}"


def same_secret(one: str, other: str) -> bool:
    """Both name the same secret, as far as names and ARNs tell."""
    if one.startswith("arn:") and other.startswith("arn:"):
        return one == other
    return _name_in(one) == _name_in(other)


def _name_in(name_or_arn: str) -> str:
    """The secret's name, without the six characters that Secrets Manager appends in an ARN."""
    arn = r"^arn:[^:]*:secretsmanager:[^:]*:[^:]*:secret:(.+?)(-[A-Za-z0-9]{6})?$"
    return re.sub(arn, r"\1", name_or_arn)

"""A rotation by Secrets Manager itself, of the secrets that db_setup writes: one step of it.

Steps come again, late, in another order, or after one that was cut off. So each looks first at what
is there: the login that the secret holds is never changed, and the label AWSCURRENT only moves to a
login that has just been tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import secret_store
from common import Credentials, UserError
from limited_users import Kind, LimitedUsers

STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")


def is_request(event: Any) -> bool:
    """Secrets Manager has sent it."""
    keys = ("SecretId", "ClientRequestToken")
    return (
        isinstance(event, dict)
        and event.get("Step") in STEPS
        and all(isinstance(event.get(key), str) for key in keys)
    )


def take_step(
    client: Any, users: LimitedUsers, kind: Kind, event: Mapping[str, str]
) -> tuple[str, str]:
    """Do what the step asks for; returns what came of it, and the login that it is about."""
    step = event["Step"]
    token = event["ClientRequestToken"]
    current = secret_store.read_secret(client, event["SecretId"])
    if not current.version:  # whatever is put there becomes current, whether it works or not
        raise UserError(
            f"secret {current.name} {current.complaint}. It was not changed",
            "Invoke a migration first, which writes it",
        )
    if current.version == token:
        return "rotated", _name(current.value)
    pending = secret_store.read_secret(client, event["SecretId"], secret_store.PENDING)
    value = pending.value if pending.version == token else None
    if value is None:
        if step != "createSecret":
            raise UserError(
                f"secret {current.name} has no pending version of this rotation. It was not "
                "changed",
                "Rotate it again",
            )
        value = users.next_login(kind, current.value)
        secret_store.put_pending(client, current, token, value)
    elif step == "setSecret":
        users.set_pending(kind, current.value, value)
    elif step != "createSecret":
        users.check_pending(kind, value)
    if step == "finishSecret":
        users.hand_on(kind, _name(current.value), _name(value))
        secret_store.make_current(client, current, token)
    done = {"createSecret": "pending", "setSecret": "set", "testSecret": "works"}
    return done.get(step, "rotated"), _name(value)


def _name(value: Any) -> str:
    return str((value or Credentials()).get("username"))

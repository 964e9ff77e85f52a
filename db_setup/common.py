"""What all modules share: the errors, the log, the deadline, and credentials that never show
themselves.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
import unicodedata
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Optional

MESSAGE_LIMIT = 1500  # characters
# As JSON: CloudFormation refuses answers above 4,096 bytes, of which others need up to 870.
MESSAGE_BYTES = 3100
# Categories of Unicode: control, format, surrogate, private, unassigned, line and paragraph ends.
CONTROL = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# Of the function, without a file's text and rows; 52 without Lambda's own.
MEMORY_OF_A_RUN_MB = 90
RESERVE_S = 20  # kept back from Lambda's limit for cancelling, rolling back and answering

logger = logging.getLogger("db_setup")


# --- Errors -----------------------------------------------------------------------------------


class InitializerError(Exception):
    """What went wrong and where, the state we are in, and the next step: the parts of a message.

    They are put together when the message is read. Which migrations are applied by then, the run
    adds to whatever ends it: those who raise an error need not know.
    """

    state = ""  # where no migration was applied in this run
    tells_time = False  # it says itself that the deadline was the reason, or waited for that long

    def __init__(
        self, problem: str, step: str = "", state: Optional[str] = None, details: Iterable[str] = ()
    ) -> None:
        """`problem` and `step` are without their full stops; `details` are further lines."""
        super().__init__(problem)
        self.problem = problem
        self.step = step
        self.details = list(details)
        self.applied: Sequence[str] = ()
        self.is_late = False  # the deadline has passed
        if state is not None:
            self.state = state

    def __str__(self) -> str:
        """At most 1,500 characters and 3,100 bytes, so that CloudFormation can show it."""
        state = f"Applied in this run: {shortened(self.applied)}." if self.applied else self.state
        step = f"{self.step}." if self.step else ""
        # A name on the server can have line ends: none of them begins a line of ours.
        verdict = " ".join(filter(None, [f"{self.problem}.", state, step])).replace("\n", " ")
        if self.is_late and not self.tells_time:
            verdict = f"out of time: {verdict}"
        text = printable("\n".join([verdict, *self.details]))
        if len(text) > MESSAGE_LIMIT:
            text = text[: MESSAGE_LIMIT - 2] + " …"
        while len(json.dumps(text, ensure_ascii=False).encode(errors="replace")) > MESSAGE_BYTES:
            text = text[:-40] + " …"
        return text


class ConfigError(InitializerError):
    """Variables or secrets are wrong."""

    state = "Nothing has been touched."


class ConnectError(InitializerError):
    """The database cannot be reached."""

    state = "Nothing has been changed."
    login_refused = False  # it answered, and does not want this login
    password_accepted = False  # it answered after it had checked the password
    hashes_too_long = False  # before the server could say anything
    locked_itself_out = False  # by a setting of the login's own


class RefusedError(ConnectError):
    """The database cannot be reached, and another attempt would be answered in the same way."""


class OvertakenError(Exception):
    """Somebody else has replaced the stored credentials meanwhile."""


class LockError(InitializerError):
    """Another run holds the lock."""

    state = "This run has changed nothing."
    tells_time = True


class MigrationError(InitializerError):
    """A migration cannot be applied.

    PostgreSQL's error is not its cause: that quotes what must not be shown.
    """

    state = "Nothing has been applied."
    sqlstate = ""  # of PostgreSQL's error, if that is the reason


class StoppedError(MigrationError):
    """Time, a lock or a lost connection stopped it, not what the file says: another run may
    succeed, and goes on where this one ended.
    """


class UserError(InitializerError):
    """A role or a login cannot be brought into order."""


ROTATE_AGAIN = "What the secret holds works as before. Rotate it again"  # a UserError's step


# --- Words ------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """The text without characters that move a terminal's cursor, or hide what follows.

    Line ends stay.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in CONTROL else f"\\u{ord(c):04x}"
        for c in text.replace("\t", " ")
    )


def shown(value: str) -> str:
    """A value in a message, not too long."""
    return repr(value if len(value) <= 90 else value[:89] + "…")


def shortened(names: Sequence[str]) -> str:
    """The names; of many the first, the last and how many."""
    if len(names) <= 4:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)} files)"


class Credentials(dict[str, Any]):
    """A secret's JSON object; shows none of its values."""

    def __repr__(self) -> str:
        return f"Credentials({', '.join(self)})"


# --- Log --------------------------------------------------------------------------------------

LOG_PREFIX = ContextVar(
    "what precedes each line of a dry run, since nothing of it stays", default=""
)


def log(phrase: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line: a constant phrase and key=value.

    In Lambda's JSON format the keys are top-level keys as well.
    """
    phrase = LOG_PREFIX.get() + phrase
    text = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
    extra = {}
    for key, value in fields.items():
        is_plain = isinstance(value, (int, float, list, dict))
        extra[key] = value if is_plain else printable(str(value))
    logger.log(level, "%s%s", phrase, " " + text if text else "", extra=extra)


def _quoted(value: Any) -> str:
    """A value in a line of the log, in quotes where these are needed to see its end."""
    if isinstance(value, dict):
        value = [f"{key}:{what}" for key, what in value.items()]
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    text = printable(str(value))
    needs_quotes = not text or re.search(r'[\s"=]', text)
    return json.dumps(text, ensure_ascii=False) if needs_quotes else text


def set_up_logging() -> None:
    """Lambda brings a handler whose text format drops INFO unless asked; a terminal brings none."""
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(levelname)s %(message)s")
    if "AWS_LAMBDA_LOG_LEVEL" not in os.environ and logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    aws = logging.getLogger("botocore")  # which logs whole secrets at DEBUG
    aws.setLevel(max(aws.getEffectiveLevel(), logging.INFO))


# --- Time -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deadline:
    """When this run has to stop, on the monotonic clock; by default never."""

    at: float = math.inf
    reserve: float = math.inf  # seconds after the deadline that Lambda still allows
    somebody_waits: bool = False  # and can correct an address that leads nowhere

    @classmethod
    def from_context(cls, context: Any) -> Deadline:
        """Lambda's limit less a reserve of 20 s, or a third of the whole where that is less."""
        remaining = getattr(context, "get_remaining_time_in_millis", None)
        if remaining is None:
            return cls(somebody_waits=getattr(context, "somebody_waits", False))
        whole = remaining() / 1000
        reserve = min(RESERVE_S, whole / 3)
        return cls(time.monotonic() + whole - reserve, reserve)

    @property
    def exists(self) -> bool:
        return self.at < math.inf

    @property
    def left(self) -> float:
        """Seconds until then; infinitely many where there is no deadline."""
        return self.at - time.monotonic()

    @property
    def is_near(self) -> bool:
        """Too late to begin something: less than half the reserve is left before the deadline."""
        return self.left < self.reserve / 2

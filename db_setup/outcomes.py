"""How the run of a script ended: it ran, it failed, or a dry run could not try it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple, Optional, Union

import psycopg2

SAVEPOINT = "db_setup_file"  # in the transaction of a file; gone if the file has ended that

# SQLSTATEs
SYNTAX_ERROR = "42601"
SAVEPOINT_GONE = "3B001"
READ_ONLY = "25006"
IN_TRANSACTION = "25001"  # not possible inside a transaction
COMMITS_ITSELF = "2D000"  # a block that commits, inside a transaction
NEW_ENUM_VALUE = "55P04"  # used in the transaction that added it
LOCK_TIMEOUT = "55P03"
CANCELLED = "57014"


@dataclass(frozen=True)
class Success:
    """Every statement ran. What became of the session decides whether the next file needs a new
    one.
    """

    kept_lock: bool = True
    is_fresh: bool = True  # the session is as a new one would be
    holds: bool = True  # the condition that the record came with
    answer: Any = None  # to the question that it came with


@dataclass(frozen=True)
class NotTried:
    """What a dry run cannot try, in part or as a whole."""

    reasons: tuple[str, ...]
    kept_lock: bool = True


class Place(Enum):
    """What is at the offset of a failure."""

    EXACT = auto()  # the character that PostgreSQL named
    STATEMENT = auto()  # the beginning of what was sent and failed
    ROW = auto()  # a row of a COPY
    END = auto()  # what follows the statements, all of which went well
    UNKNOWN = auto()  # nothing: it can have been any statement


class Ending(Enum):
    """What ended a script."""

    ERROR = auto()  # PostgreSQL answered with an error
    REFUSED = auto()  # we did, since it cannot continue
    BUSY = auto()  # we did, for as long as another session is at work
    LOST = auto()  # the connection was lost
    CANCELLED = auto()  # an administrator or another session
    DEADLINE = auto()  # our watcher


class Index(Enum):
    """What became of the index that a statement was building concurrently."""

    NONE = auto()  # there was none
    DROPPED = auto()  # it was dropped
    UNKNOWN = auto()  # it may be there, INVALID, or may still be built
    BUILDING = auto()  # the server still builds it
    ABANDONED = auto()  # the server does not build it any more


class FailedStep(NamedTuple):
    """The step of a script that runs in steps: a statement, or a transaction that begins in
    `line`.
    """

    is_first: bool
    line: int = 0


@dataclass(frozen=True)
class Failure:
    """PostgreSQL's error, or our refusal, and the place in the script where it happened."""

    error: Optional[psycopg2.Error] = field(default=None, repr=False)  # quotes what is not shown
    refusal: str = ""
    offset: int = 0
    place: Place = Place.STATEMENT
    ending: Ending = Ending.ERROR
    index: Index = Index.NONE
    step: Optional[FailedStep] = None  # None: the whole script was one transaction
    # No transaction was open after it: the COMMIT failed, what follows that, or the reading of all.
    left_none_open: bool = False
    raised_by: tuple[str, ...] = ()  # sources of the functions that a RAISE can be in

    @property
    def sqlstate(self) -> str:
        """Empty where PostgreSQL gave none."""
        if self.ending is Ending.BUSY:
            return LOCK_TIMEOUT
        return (self.error and self.error.pgcode) or ""

    @property
    def was_stopped(self) -> bool:
        """From outside, in the middle of a statement."""
        return self.ending in (Ending.CANCELLED, Ending.DEADLINE)


Outcome = Union[Success, NotTried, Failure]

"""How the run of a script ended: it ran, it failed, or a dry run could not try it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

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
    answer: Any = None  # to the question that the record came with


@dataclass(frozen=True)
class NotTried:
    """What a dry run cannot try, in part or as a whole."""

    reasons: tuple[str, ...]
    kept_lock: bool = True


@dataclass(frozen=True)
class Failure:
    """PostgreSQL's error, or our refusal, and the place in the script where it happened."""

    error: Optional[psycopg2.Error] = field(default=None, repr=False)  # quotes what is not shown
    refusal: str = ""
    offset: int = 0
    exact: bool = False  # PostgreSQL itself named that place
    anywhere: bool = False  # nothing tells at which place
    at_end: bool = False  # all statements went well, and what follows them did not
    in_rows: bool = False  # the place is one of the rows of a COPY
    connection_lost: bool = False
    out_of_time: bool = False  # the deadline had passed
    cancelled: bool = False  # by the deadline's watcher, or by an administrator
    builds_index: bool = False  # concurrently: what was interrupted may be left INVALID
    index_dropped: bool = False  # what a build that failed had left INVALID
    still_building: Optional[bool] = None  # after a lost connection, where that could be asked
    is_temporary: bool = False  # refused only for as long as another session is at work
    in_steps: bool = False  # outside one transaction
    earlier_stay: bool = False  # of the file's steps
    unit_line: int = 0  # where the step begins that is rolled back, if it has several statements
    raised_by: tuple[str, ...] = ()  # sources of the functions that a RAISE can be in
    rehearsed: bool = False  # in a dry run, of which nothing stays

    @property
    def sqlstate(self) -> str:
        """Empty where PostgreSQL gave none."""
        if self.is_temporary:
            return LOCK_TIMEOUT
        return (self.error and self.error.pgcode) or ""


Outcome = Union[Success, NotTried, Failure]

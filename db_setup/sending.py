"""Sends parts of a script to the server, and says where in the script it failed.

Knows PostgreSQL and scripts, nothing of migrations or AWS.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple, Optional, Union

import database
import psycopg2
from outcomes import CANCELLED, Ending, Failure, Place, Success
from session import Session
from sql_scanner import ONE_MESSAGE, Script, Statement


class Message(NamedTuple):
    """What is sent at a time.

    `base` is the place in the script where its first character would be.
    """

    base: int
    text: Union[str, bytes]
    fallback: int  # the place to name where PostgreSQL names none
    rows: Optional[tuple[int, int]] = None  # of a COPY, as a place in the script
    at_end: bool = False
    is_answered: bool = True  # its last rows are ours


def as_written(script: Script, statement: Statement) -> Message:
    """A statement of the script."""
    return part_of(script, statement.start, statement.end, statement.data)


def part_of(
    script: Script, start: int, end: int, rows: Optional[tuple[int, int]] = None
) -> Message:
    """A part of the script; in UTF-8, since psycopg2 would hold a text as well."""
    part = _Rows(script.text, start, end)
    encoded = BytesIO()  # hands out what it holds without a copy
    encoded.writelines(iter(partial(part.read, 1 << 16), b""))
    return Message(start, encoded.getvalue(), start, rows, is_answered=False)


def of_ours(
    script: Script, text: str, at_end: bool = False, fallback: Optional[int] = None
) -> Message:
    """Words that are not in the script; PostgreSQL's position in them is none in the script."""
    place = script.first_offset if fallback is None else fallback
    return Message(sys.maxsize, text, place, at_end=at_end)


def send(session: Session, script: Script, messages: Iterable[Message]) -> Union[Success, Failure]:
    """Send the messages one after the other.

    The answer to the last one says what became of the session, see `Session.session_check_sql`.
    On a failure the transaction is rolled back.
    """
    answer: list[tuple[Any, ...]] = []
    message = Message(0, "", 0)
    try:
        for message in messages:
            if message.rows:
                session.copy_in(message.text, _Rows(script.text, *message.rows))
            elif len(message.text) > ONE_MESSAGE:
                script.forget_text()
                with database.brief_errors(session.connection):
                    answer = session.run_script(message.text, fetches=message.is_answered)
            else:
                answer = session.run_script(message.text, fetches=message.is_answered)
    except psycopg2.Error as exc:
        return _failure(session, script, message, exc)
    return success_of(session, answer)


def success_of(session: Session, answer: list[tuple[Any, ...]]) -> Success:
    """What the answer to the last message says of the session."""
    if len(answer[0]) == 1:  # SELECT true: this is not the end of a script
        return Success()
    kept_lock, is_fresh, keep_types, seen_to, holds, _, found = answer[0]
    session.note_functions(keep_types, seen_to)
    return Success(kept_lock, is_fresh=kept_lock and is_fresh, holds=bool(holds), answer=found)


def _failure(session: Session, script: Script, message: Message, exc: psycopg2.Error) -> Failure:
    ending = ending_of(session, script, exc)
    left_none_open = not (session.is_lost or session.is_in_transaction)
    session.roll_back()
    position = exc.diag.statement_position  # counted in characters, from 1
    offset = message.base + int(position or 0) - 1
    place = Place.END if message.at_end else Place.STATEMENT
    if position is not None and 0 <= offset <= len(script.text):
        place = Place.EXACT
    else:
        offset = _failed_row(script, message, exc)
        if message.rows and offset >= message.rows[0]:
            place = Place.ROW
    return Failure(
        error=exc, offset=offset, place=place, ending=ending, left_none_open=left_none_open
    )


def ending_of(session: Session, script: Script, exc: psycopg2.Error) -> Ending:
    """What ended a statement of a script.

    A timeout, which only the script can set, cancels it too, and is an error. PostgreSQL's words,
    which tell as well, may be in any language.
    """
    if session.is_lost:
        return Ending.LOST
    if exc.pgcode != CANCELLED:
        return Ending.ERROR
    if session.is_out_of_time:
        return Ending.DEADLINE
    has_timeout = re.search("statement_timeout", script.text, re.IGNORECASE) is not None
    is_timeout = has_timeout and "user request" not in str(exc)
    return Ending.ERROR if is_timeout else Ending.CANCELLED


class _Rows:
    """A part of a text as a file to read from, without a copy of it."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self._text = text
        self._at = start
        self._end = end

    def read(self, size: int) -> bytes:
        """At most `size` bytes: a character has at most four."""
        part = self._text[self._at : min(self._at + size // 4, self._end)]
        self._at += len(part)
        return part.encode()


def _failed_row(script: Script, message: Message, exc: psycopg2.Error) -> int:
    """The place of the row of COPY that PostgreSQL counted to; of other statements their own."""
    line = re.search(r"^COPY .*?, line (\d+)", exc.diag.context or "", re.MULTILINE)
    if not message.rows or not line:
        return message.fallback
    at, end = message.rows
    is_csv = b"CSV" in message.text.upper()
    for _ in range(int(line.group(1)) - 1):
        start = at
        while at < end:  # PostgreSQL counts rows: in CSV one continues while a quote is open
            at = (script.text.find("\n", at) + 1) or end
            if not is_csv or script.text.count('"', start, at) % 2 == 0:
                break
    return at

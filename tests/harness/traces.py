"""Looking for a password in everything that an error, a log or a server can show."""

from __future__ import annotations

import base64
import json
import logging
import traceback
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Optional


def spellings(password: str) -> set[str]:
    """The ways in which the password can be written: plain, escaped, or inside something in base64."""
    found = {password, repr(password)[1:-1], json.dumps(password)[1:-1], urllib.parse.quote(password)}
    found |= {password.replace("'", "''"), password.replace("\\", "\\\\").replace("'", "\\'")}
    found |= {repr(spelling)[1:-1] for spelling in found}  # as part of a text that is shown in its turn
    raw = password.encode("utf-8", "surrogatepass")
    for before in range(3):  # three bytes become four letters: it depends on what precedes
        letters = base64.b64encode(bytes(before) + raw).decode()
        found.add(letters[4 if before else 0 : len(letters) // 4 * 4 - 4])
    return {spelling for spelling in found if len(spelling) >= 6}


def shown(text: str, passwords: Iterable[str]) -> list[str]:
    """Which of the passwords are in the text, in any encoding."""
    return sorted(password for password in set(passwords) if any(spelling in text for spelling in spellings(password)))


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was raised from or during, hidden or not."""
    waiting: list[Optional[BaseException]] = [error]
    seen: set[int] = set()
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [link.__cause__, link.__context__]


def places(error: BaseException, passwords: Iterable[str], outermost: str = "handler") -> list[str]:
    """Where an error tracker would show one of the passwords: in an error's text or attributes, or in the local
    variables of a frame, from the function `outermost` inwards, of the error or of one in its chain."""
    found, passwords = [], set(passwords)
    for link in chain(error):
        kind, frames = type(link).__name__, link.__traceback__
        about = "\n".join([str(link), repr(link), repr(link.args), repr(vars(link)), str(getattr(link, "pgerror", ""))])
        if shown(about, passwords):
            found.append(kind)
        while frames is not None and link is error and frames.tb_frame.f_code.co_name != outermost:
            frames = frames.tb_next
        assert frames is not None or link is not error, f"{outermost} is not among the frames"
        for frame in traceback.StackSummary.extract(traceback.walk_tb(frames), capture_locals=True):
            for name, value in (frame.locals or {}).items():
                if shown(value, passwords):
                    found.append(f"{kind} through {frame.name}, variable {name}")
    return found


def everything_logged(records: Iterable[logging.LogRecord]) -> str:
    return "\n".join(f"{record.getMessage()} {vars(record)}" for record in records)

"""What the names of migration files say: numbers, versions, and the order in which the files run.

Pure: knows no file, only names without `.sql`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple, Optional

# --- Names ----------------------------------------------------------------------------------------


def normal(name: str) -> str:
    """One spelling for one name: a Mac may store é as two characters."""
    return unicodedata.normalize("NFC", name)


def number_of(name: str) -> Optional[int]:
    """The number that a name begins with. Of a date it is all of it: 2024-01-15_a has 20240115."""
    digits = re.match(r"[0-9]+", name)
    if digits is None:
        return None
    date = _DATE.match(name)
    if date:
        return int("".join(part.zfill(2) for part in date.groups()))
    return int(digits.group())


def bare(name: str) -> str:
    """The name after the number and one separator."""
    return re.sub(r"^[0-9]+[-_. ]?", "", name)


def is_repeatable(name: str) -> bool:
    """R__views runs after all others, whenever its content has changed."""
    return name.startswith("R__") and name != "R__"


def natural(name: str) -> list[Any]:
    """Sorts runs of digits as integers: V2__ before V10__."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def title(name: str) -> str:
    """A name without version, case, separators and `.up`: the same for what is alike to people."""
    rest = name[len(version_text(name)) :].lstrip("-_. ")
    flyway = _FLYWAY.match(rest)
    rest = rest[flyway.end() :] if flyway else rest
    words = re.sub(r"[-_. ]+", "_", rest.casefold()).strip("_")
    return re.sub(r"_up$", "", words)


# --- Versions -------------------------------------------------------------------------------------

# 1.10.0, 00.05.00_01, 2024-01-15-120000. What a letter follows is not a part: 001-2fa is 1.
_PART_ENDS = r"(?=[-._ ]|T[0-9]|$)"
_DATE = re.compile(rf"((?:19|20)[0-9]{{2}})[-._]([0-9]{{1,2}})[-._]([0-9]{{1,2}}){_PART_ENDS}")
_FIRST = re.compile(r"[0-9]+")
_NEXT = re.compile(rf"([-._T])([0-9]+){_PART_ENDS}")
_FLYWAY = re.compile(r"V([0-9]+(?:[._][0-9]+)*)__")
_MONTH = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])")  # 202401, which no counter gets to
NUMBERED, FLYWAY, REPEATABLE = range(3)
NUMBER, TIME, BEYOND_TIME = range(3)


class Version(NamedTuple):
    """What a name begins with; compares part by part, as integers.

    Counts come before times, and what is too large for a count but no time comes after both.
    """

    family: int
    kind: int
    parts: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.parts))


def version_of(name: str) -> Optional[Version]:
    """The version that a name begins with; V2_7_0__ is one as well, of a family of its own."""
    flyway = _FLYWAY.match(name)
    if flyway:
        return Version(FLYWAY, *_kind_and_parts(re.split("[._]", flyway.group(1))))
    text = version_text(name)
    if not text:
        return None
    return Version(NUMBERED, *_kind_and_parts(re.split("[-._T]", text)))


def version_text(name: str) -> str:
    """The digits and separators of the version that a name begins with; empty where there is none.

    An underscore may also begin the name's words (001_2_factors). So it separates parts only
    in what is a compound or a time already.
    """
    flyway = _FLYWAY.match(name)
    if flyway:
        return flyway.group()
    first = _FIRST.match(name)
    if first is None:
        return ""
    date = _DATE.match(name)
    end = date.end() if date else first.end()
    is_compound = bool(date) or _is_time(first.group())
    while True:
        part = _NEXT.match(name, end)
        if part is None or (part.group(1) == "_" and not is_compound):
            return name[:end]
        is_compound = True
        end = part.end()


def _is_time(digits: str) -> bool:
    """202401, 20240115, 202401151200 …, or seconds, milliseconds or microseconds since 1970."""
    if len(digits) < 8:
        return _MONTH.fullmatch(digits) is not None
    return digits.startswith(("19", "20")) or _unix_time(digits) is not None


def _unix_time(digits: str) -> Optional[datetime]:
    if len(digits) not in (10, 13, 16) or not digits.startswith("1"):
        return None
    return datetime.fromtimestamp(int(digits[:10]), timezone.utc)


def _kind_and_parts(parts: Sequence[str]) -> tuple[int, tuple[int, ...]]:
    first = parts[0]
    unix = _unix_time(first)
    if unix:
        micros = int(first[10:].ljust(6, "0"))
        return TIME, (*unix.timetuple()[:6], micros, *map(int, parts[1:]))
    if _is_time(first):
        date = [first[:4], first[4:6], first[6:8]]
        clock = [first[8:], *parts[1:]]
    elif _DATE.match("-".join(parts)):
        date = list(parts[:3])
        clock = list(parts[3:])
    else:
        date = []
        clock = []
    if date:
        times = [number for part in clock for number in _clock(part)]
        return TIME, (*(int(part) for part in date if part), *times)
    numbers = tuple(map(int, parts))
    # As integers, these always came after dates of eight digits.
    return (BEYOND_TIME if numbers[0] >= 19_000_000 else NUMBER), numbers


def _clock(digits: str) -> tuple[int, ...]:
    """120000 as 12, 0, 0; a short one is a count."""
    if len(digits) < 4:
        return (int(digits),) if digits else ()
    pairs = [digits[at : at + 2] for at in (0, 2, 4)]
    return tuple(int(part) for part in (*pairs, digits[6:]) if part)


def shown_version(name: str) -> str:
    """number 7, version 1.10.0"""
    text = version_text(name)
    return f"number {int(text)}" if text.isdigit() else f"version {text.strip('V_')}"


def order(name: str) -> tuple[Any, ...]:
    """Sorts names as they run: by number, then naturally; those without one, then repeatable ones.

    Flyway's files are in its own order: V1__, V1_1__, V1_10__.
    """
    version = version_of(name)
    if version is None:
        family = REPEATABLE if is_repeatable(name) else FLYWAY
        return (family, 0, (), natural(name), name)
    if version.family == FLYWAY:
        spelled = f"V{version}\0{title(name)}"
        return (FLYWAY, 0, (), natural(spelled), name)
    return (*version, natural(name), name)


# --- The next name --------------------------------------------------------------------------------


def next_version(names: Iterable[str], now: datetime) -> str:
    """What the next file's name begins with: after all these, and written like the highest."""
    last = max(filter(version_text, names), key=order, default="")
    version = version_of(last)
    if version is None:
        return "001_"
    text = version_text(last)
    shape = "V{}__" if version.family == FLYWAY else "{}_"
    own = text[1:-2] if version.family == FLYWAY else text
    if version.kind == TIME:
        now_text = shape.format(_now_like(own, now))
        later = version_of(now_text)
        if later and later > version:
            return now_text
    return shape.format(_counted_up(own))


def _now_like(text: str, now: datetime) -> str:
    """The time in this shape: 20240131, 20240131120000, 2024-01-31-120000, 1706702400 …"""
    if text.isdigit() and _unix_time(text):
        return str(int(now.timestamp() * 10 ** (len(text) - 10)))
    digits = iter(now.strftime("%Y%m%d%H%M%S%f"))
    return "".join(next(digits, "0") if letter.isdigit() else letter for letter in text)


def _counted_up(text: str) -> str:
    """The same with its last number counted up, in as many digits."""
    *before, last = re.split("([0-9]+)", text.rstrip("-._"))[:-1]
    return f"{''.join(before)}{int(last) + 1:0{len(last)}d}"

"""What a dry run has found, in words: for the terminal, and as Markdown for pull requests. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

from common import printable
from effects import BLOCKS_AT_LEVEL, LEVELS, worst

MOST_LINES = 12  # of a cell
MOST_CHARACTERS = 60_000  # GitHub takes 65,536
TITLE = "### Dry run of the migrations"


def findings(entry: Mapping[str, Any], name: Callable[[str], str] = str) -> Iterator[str]:
    """What is lost, rewritten, built and gone, a line each; `name` writes a name."""
    for one in entry.get("lost", ()):
        yield f"loses {name(one['what'])}{in_rows(one)}"
    for one in entry.get("rewritten", ()):
        indexes = f" and {one['indexes']} indexes" if one["indexes"] else ""
        yield f"rewrites {name(one['table'])}{indexes}{in_rows(one)}"
    for one in entry.get("indexes", ()):
        yield f"builds index {name(one['index'])} on {name(one['table'])}"
    for one in entry.get("gone", ()):
        yield f"removes {name(one)}"


def in_rows(entry: Mapping[str, Any]) -> str:
    return "" if entry["rows"] is None else f" ({entry['rows']:,} rows)"


def for_how_long(lock: Mapping[str, Any]) -> str:
    """Empty for a report that does not say."""
    if "held_ms" not in lock:
        return ""
    return f" for {lock['held_ms']} ms{', more with more rows' if lock['grows'] else ''}"


def markdown(tried: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> str:
    """The text for a pull request. Whatever a name contains, it is shown and means nothing."""
    lines = [
        TITLE,
        "",
        f"Files: {len(tried)}. Level: **{worst(tried)}**. Nothing has been changed.",
    ]
    if tried:
        lines += ["", "| file | level | what it does | locks |", "| --- | --- | --- | --- |"]
    rows = [markdown_row(entry) for entry in tried]
    shown = rows
    while sum(map(len, shown)) > MOST_CHARACTERS:
        shown = shown[: len(shown) * 3 // 4]
    lines += shown
    if len(shown) < len(rows):
        left = worst(tried[len(shown) :])
        lines += ["", f"Files left out: {len(rows) - len(shown)}. Their level: **{left}**."]
    lines += ["", *(f"- warning: {code(text)}" for text in capped(warnings))]
    return "\n".join(lines).rstrip() + "\n"


def markdown_row(entry: Mapping[str, Any]) -> str:
    what = [*findings(entry, code), *(f"not tried: {code(why)}" for why in entry["untried"])]
    locks = [
        f"{code(lock['lock'])} on {code(lock['table'])}{for_how_long(lock)}: "
        f"no {lock['blocks'].replace(' and ', ', no ')}"
        for lock in (*entry["locks"], *entry["other_locks"])
        if lock["blocks"] in BLOCKS_AT_LEVEL
    ]
    mark = "" if entry["level"] == LEVELS[0] else "**"
    cells = [code(entry["name"]), f"{mark}{entry['level']}{mark}"]
    cells += ["<br>".join(capped(lines)) for lines in (what, locks)]
    return f"| {' | '.join(cells)} |"


def capped(lines: Sequence[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"and {left} more"] if left > 0 else list(lines)


def failed_markdown(message: str) -> str:
    """The text for a pull request whose dry run has failed."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", message)), default=0))
    return f"{TITLE}\n\n**failed**\n\n{fence}\n{message}\n{fence}\n"


def code(text: str) -> str:
    """A text of others as code: neither Markdown, nor HTML, nor a mention of somebody."""
    text = printable(text).replace("\n", "\\u000a")
    text = text if len(text) <= 200 else text[:199] + "…"
    if re.fullmatch(r"[\w.,:() …\"-]+", text):
        return f"`{text}`"
    return (
        f"<code>{''.join(c if c.isalnum() or c in ' .' else f'&#{ord(c)};' for c in text)}</code>"
    )

"""What may be shown of a script, and of PostgreSQL's words about it: names and keywords, but no
literal and no value.

Pure. Knows SQL text, nothing of migrations or AWS. When in doubt, it hides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Optional

import sql_scanner
from sql_scanner import ScanError

MASK = "…"
LONGEST_NAME = 63  # bytes
SHOWN = re.compile(r"[^; \t\r\f\v]")
BEGINNING = 1 << 10  # characters of a token that are looked at
SEARCHED = 1 << 18  # characters before and after a place in which names are looked for
STRINGS = ("string", "escape_string", "bit_or_unicode_string")
# A statement in which a password can be a word of its own, or part of a literal that is SQL again.
SETS_SECRET = re.compile(
    r"""\b(?:create|alter)\s+(?:role|user|group)\b.*?passw
      | \b(?:create|alter)\s+(?:subscription|server)\b | user\s+mapping | identified\s+by
      | \bset\b[^;=]*?(?:passw|pwd|secret|token|credential|api_?key|private_?key)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
# One of these is in whatever that pattern finds.
WORDS_OF_SECRETS = (
    *("passw", "pwd", "secret", "token", "credential", "apikey", "api_key"),
    *("privatekey", "private_key", "subscription", "server", "mapping", "identified"),
)
LONGEST_WORD = max(map(len, WORDS_OF_SECRETS))
BLOCK = 1 << 20  # characters
SECRET_WORD = re.compile(r"passw|pwd|secret|credential|api_?key|private_?key|://", re.IGNORECASE)
QUOTED = re.compile(r"\"(.*?)\"(?=$|[\s,.;:)\]])", re.DOTALL)
# PostgreSQL names some things without quotes.
BARE = re.compile(
    r"(?<=\bfunction )[^\s\"(]+(?=\()|(?<=\bprocedure )[^\s\"(]+(?=\()"
    r"|(?<=\bcolumn )[^\s\".]+(?:\.[^\s\".]+)+|(?<=\bfor table )\S+$|(?<=\bowner of table )\S+$"
)


# Many tokens at a time after which `hidden` goes on as if it had not seen them.
ORDINARY = re.compile(
    r"""(?:
      [ \t\n\r\f\v0-9.,:;=+*<>~!@#%^&|?()\[\]]+
    | (?![eE]')[A-Za-z_][A-Za-z_0-9$]*
    | '[^']*'(?:'[^']*')*(?![\w'])
    | "[^"]*"
    | --[^\n\r]*
    | -
    ){1,250}""",
    re.VERBOSE,
)


class Span(NamedTuple):
    """A part of a text that is not shown, and what is shown instead."""

    start: int
    end: int
    instead: str


def sets_secret(text: str, offset: int, backslash_escapes: bool, known_start: int = 0) -> bool:
    """The statement at this place can contain a password that is not a literal.

    A statement is known to begin at `known_start`, here as in the rest of this module.
    """
    for start, end in regions(text, backslash_escapes, known_start):
        if start <= offset <= end:
            return _sets_secret(text, start, end)
    return False


def _sets_secret(text: str, start: int, end: int) -> bool:
    """This statement can. The pattern is slow: most of a long one is looked at for a word only."""
    for at in range(start, end, BLOCK):
        block = text[at : min(at + BLOCK + LONGEST_WORD, end)].lower()
        if any(word in block for word in WORDS_OF_SECRETS):
            return SETS_SECRET.search(text, start, end) is not None
    return False


def regions(
    text: str, backslash_escapes: bool = False, known_start: int = 0
) -> Iterator[tuple[int, int]]:
    """Where each statement begins and ends; what cannot be read any further is one."""
    at = known_start
    try:
        for statement in sql_scanner.scan(text, backslash_escapes, known_start):
            at = statement.end
            yield statement.start, at
    except ScanError:
        while at < len(text) and text[at] in "; \t\r\n":
            at += 1
        yield at, len(text)


def shown_line(
    text: str, offset: int, backslash_escapes: bool = False, known_start: int = 0
) -> tuple[str, int]:
    """The line at this place with its literals masked, and where in that the place is.

    Only statements are shown, and of one that can contain a password nothing.
    """
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    if end < 0:
        end = len(text)
    line = ""
    column = 0
    done = start
    spans = _spans_of_line(text, start, end, backslash_escapes, known_start)
    for span in (*spans, Span(end, end, "")):
        first = max(span.start, done)
        if done <= offset <= first:
            column = len(line) + offset - done
        line += text[done:first]
        if first < offset < span.end:
            column = len(line)
        if span.end > done:
            line += span.instead
        done = max(done, min(span.end, end))
    return line, column


def _spans_of_line(
    text: str, start: int, end: int, backslash_escapes: bool, known_start: int
) -> Iterator[Span]:
    shown_to = start
    for first, last in regions(text, backslash_escapes, known_start):
        if last <= start:
            continue
        if first >= end:
            break
        if SHOWN.search(text, shown_to, first):  # a comment, or rows of COPY
            yield Span(shown_to, first, f"{MASK} ")
        if SECRET_WORD.search(text, first, last) or _sets_secret(text, first, last):
            yield Span(max(first, start), min(last, end), MASK)
        else:
            near = _ordinary_to(text, first, start, backslash_escapes)
            for span in hidden(text, near, last, backslash_escapes):
                if span.start >= end:
                    break
                if span.end > start:
                    yield span if span.start >= start else span._replace(start=start, instead=MASK)
        shown_to = max(last, start)
    if SHOWN.search(text, shown_to, end):
        yield Span(shown_to, end, f" {MASK}")


def _ordinary_to(text: str, start: int, place: int, backslash_escapes: bool) -> int:
    """From one token's start to another's, before `place`, found quickly: the literals after that
    are the same as if all had been read.
    """
    # Not the last two: what a $ begins depends on the words before it.
    earlier = before = at = start
    while not backslash_escapes and (found := ORDINARY.match(text, at)) and found.end() <= place:
        earlier, before, at = before, at, found.end()
    return earlier


def hidden(text: str, start: int, end: int, backslash_escapes: bool = False) -> Iterator[Span]:
    """The literals and comments between two places; the body of a routine or block is looked into.

    A literal that touches a word has a quote too few or too many: from there on nothing is known.
    """
    before = ""
    is_language = False
    for kind, at, after in _tokens(text, start, end, backslash_escapes):
        word = text[at : min(after, at + BEGINNING)]
        follows = text[after : after + 1]
        if kind == "unclosed":
            yield Span(at, end, word[:1] + MASK)
            return
        if kind in STRINGS:
            if after < end and (follows.isalnum() or follows in ("_", "'")):
                yield Span(at, end, f"'{MASK}")
                return
            yield Span(at, after, f"'{MASK}'")
        elif kind == "meta":
            command = re.match(r"\\\S*", word)
            yield Span(at + (command.end() if command else 0), after, f" {MASK}")
        elif kind == "dollar_string":
            tag = text[at : text.index("$", at + 1) + 1]
            if before in ("DO", "AS") or is_language:
                yield from hidden(text, at + len(tag), after - len(tag), backslash_escapes)
            else:
                yield Span(at, after, f"{tag}{MASK}{tag}")
        elif kind == "space" and word.strip():
            yield Span(at, after, f"{word[:2]} {MASK}")
        if kind != "space":
            is_language = before == "LANGUAGE"
            before = word.upper()


def _tokens(
    text: str, start: int, end: int, backslash_escapes: bool
) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end of each token; what is never closed is one, to the end."""
    at = start
    while at < end:
        try:
            kind, after = sql_scanner.read_token(text, at, backslash_escapes)
        except ScanError:
            kind, after = "unclosed", end
        if after > end:
            kind, after = "unclosed", end
        yield kind, at, after
        at = after


# In PL/pgSQL, what a RAISE or ASSERT says.
WRITTEN = re.compile(r"(?:\b(?:RAISE|ASSERT)\b|=)[^;'=]{0,200}'((?:[^']|'')*)'", re.IGNORECASE)


def as_raised(said: str, sources: Iterable[str]) -> str:
    """The words of a RAISE as one of these functions has them, with … for each value; else …"""
    for source in sources:
        if re.search(rf"\bRAISE\s+(EXCEPTION\s+)?{re.escape(said)}\b", source, re.IGNORECASE):
            return said  # the name of a condition
        for written in WRITTEN.findall(source.replace("''", "'") + source):
            words = " ".join(written.replace("''", "'").split())
            if _has_parts(said, words.split("%")):
                return words.replace("%", MASK)
    return MASK


def _has_parts(said: str, parts: list[str]) -> bool:
    """It consists of these in their order, and values between them."""
    at = 0
    for part in parts:
        at = said.find(part, at) + len(part)
        if at < len(part):
            return False
    is_at_end = said.endswith(parts[-1]) if len(parts) > 1 else said == parts[0]
    return said.startswith(parts[0]) and is_at_end


def _as_kept(name: str) -> str:
    """A name as PostgreSQL keeps it, without the bytes beyond its limit."""
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


class Words:
    """What a text of SQL says outside of its literals near a place, and names that are `known`:
    this may be repeated.
    """

    def __init__(
        self,
        text: str,
        backslash_escapes: bool,
        known: Iterable[Optional[str]] = (),
        place: int = 0,
        known_start: int = 0,
    ) -> None:
        self._words = {name.casefold() for name in known if name}
        first, last = place - SEARCHED, place + SEARCHED
        for start, end in regions(text, backslash_escapes, known_start):
            if start > last:
                break
            if end > first and not _sets_secret(text, start, end):
                near = _ordinary_to(text, start, first, backslash_escapes)
                self._add(text, near, min(end, last), backslash_escapes)

    def _add(self, text: str, start: int, end: int, backslash_escapes: bool) -> None:
        at = start
        for span in (*hidden(text, start, end, backslash_escapes), Span(end, end, "")):
            for kind, first, last in _tokens(text, at, span.start, backslash_escapes):
                word = text[first:last]
                if kind == "quoted_name":
                    word = word[word.index('"') + 1 : -1].replace('""', '"')
                self._words.add(word.casefold())
                if len(word) > LONGEST_NAME:
                    self._words.add(_as_kept(word).casefold())
            at = span.end

    def __contains__(self, said: object) -> bool:
        text = str(said)
        if not any(c.isalnum() for c in text):
            return True
        parts = re.findall(r'"(?:[^"]|"")*"|[^."\s(),\[\]]+', text)
        names = (part.strip('"').replace('""', '"').casefold() for part in parts)
        return bool(parts) and all(name in self._words for name in names)

    def mask(self, said: str) -> str:
        """PostgreSQL's words without what they quote, or name, that is not among ours."""
        masked = QUOTED.sub(
            lambda found: found.group() if found.group(1) in self else f'"{MASK}"', said
        )
        masked = BARE.sub(lambda found: found.group() if found.group() in self else MASK, masked)
        # A quote without a partner begins a text whose end is unknown.
        head, quote, rest = masked.rpartition('"')
        return f"{head}{quote}{MASK}" if masked.count('"') % 2 and rest else masked

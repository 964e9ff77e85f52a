"""SQL text → statements, as PostgreSQL's lexer and psql see them.

Pure: no I/O, no database, nothing about migrations. The text is never rewritten; every statement is a
place in it. Follows src/fe_utils/psqlscan.l and src/backend/parser/scan.l of PostgreSQL 13 to 18.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Optional

# PostgreSQL's white space (\v since 16). A no-break space is none: it is a letter of an identifier.
_WORD_START = r"A-Za-z_\x80-\U0010FFFF"
_TOKEN = re.compile(
    rf"""
      (?P<space>[ \t\n\r\f\v]+)
    | (?P<comment>--[^\n\r]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]')
    | (?P<quoted>(?:[bBxXnN]|[uU]&)?')
    | (?P<name>(?:[uU]&)?")
    | (?P<dollar>\$(?:[{_WORD_START}][{_WORD_START}0-9]*)?\$)
    | (?P<word>[{_WORD_START}][{_WORD_START}0-9$]*)
    | (?P<number>[0-9][0-9_.]*|\$[0-9]+)
    | (?P<end>;)
    | (?P<open>\()
    | (?P<close>\))
    | (?P<meta>\\[^\n\r]*)
    | (?P<operator>(?:(?!--|/\*)[-+*/<>=~!@#%^&|`?])+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_EDGE = re.compile(r"/\*|\*/")
_ESCAPED_EDGE = re.compile(r"\\.|''|'", re.DOTALL)
# A literal goes on in the next one behind a line end; for E'' that keeps its backslashes special.
_CONTINUED = re.compile(r"(?:[ \t\f\v]|--[^\n\r]*)*[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*'")

Name = tuple[Optional[str], str]


class ScanError(Exception):
    """The text cannot be split; `offset` is where the trouble began."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def locate(text: str, offset: int) -> tuple[int, int]:
    """Line and column (both from 1, in characters) of an offset."""
    return text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1


@dataclass(frozen=True)
class Statement:
    """One statement: `text[start:end]`, without its semicolon and without comments around it."""

    start: int
    end: int
    line: int
    tokens: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The first twelve tokens in upper case, for comparing with keywords."""
        return tuple(token.upper() for token in self.tokens[:12])

    @property
    def is_meta_command(self) -> bool:
        """A psql command (`\\i`, `\\restrict`), which is no SQL."""
        return self.tokens[0].startswith("\\")

    @property
    def transaction_control(self) -> Optional[str]:
        """`BEGIN`, `COMMIT`, `ROLLBACK` or another word that opens or ends a transaction; savepoints do not."""
        words = (*self.words, "", "")
        if words[0] in ("BEGIN", "COMMIT", "ROLLBACK", "END", "ABORT"):
            if "PREPARED" in words[1:2]:
                return words[0] + " PREPARED"
            if words[0] == "ROLLBACK" and "TO" in words[1:3]:
                return None
            return "COMMIT" if words[0] == "END" else "ROLLBACK" if words[0] == "ABORT" else words[0]
        if words[:2] == ("START", "TRANSACTION"):
            return "BEGIN"
        return "PREPARE TRANSACTION" if words[:2] == ("PREPARE", "TRANSACTION") else None

    @property
    def is_session_setting(self) -> bool:
        """A `SET` or `RESET` that lasts longer than its transaction."""
        words = (*self.words, "", "")
        return words[0] == "RESET" or (words[0] == "SET" and words[1] not in ("LOCAL", "CONSTRAINTS", "TRANSACTION"))

    @property
    def is_guarded(self) -> bool:
        """Running it again changes nothing: IF NOT EXISTS, OR REPLACE, a setting, a comment, a GRANT."""
        words = self.words
        if words[0] != "CREATE":
            return words[0] in ("SET", "COMMENT", "GRANT")
        if words[1:3] == ("OR", "REPLACE"):
            return True
        return any(words[i : i + 3] == ("IF", "NOT", "EXISTS") for i in range(1, 6))

    @property
    def created_table(self) -> Optional[Name]:
        """Schema (None: not named) and name of the permanent table that this statement creates."""
        words = self.words
        if words[0] != "CREATE":
            return None
        at = 2 if words[1:2] == ("UNLOGGED",) else 1
        if words[at : at + 1] != ("TABLE",):
            return None
        at += 4 if words[at + 1 : at + 4] == ("IF", "NOT", "EXISTS") else 1
        parts = [_identifier(token) for token in self.tokens[at : at + 5 : 2]]
        if self.tokens[at + 1 : at + 2] != (".",):
            return None, parts[0]
        dots = 2 if self.tokens[at + 3 : at + 4] == (".",) else 1
        return parts[dots - 1], parts[dots]

    @property
    def concurrent_index(self) -> Optional[tuple[str, str]]:
        """Name of the index and of its table (as it is written) that this builds concurrently, if it names both."""
        words = self.words
        if words[0] != "CREATE" or "CONCURRENTLY" not in words[2:4] or "ON" not in words[4:]:
            return None
        on = words.index("ON", 4)
        if words[on - 1] == "CONCURRENTLY":
            return None
        at = on + 2 if words[on + 1 : on + 2] == ("ONLY",) else on + 1
        table = self.tokens[at] if self.tokens[at + 1 : at + 2] != (".",) else "".join(self.tokens[at : at + 3])
        return _identifier(self.tokens[on - 1]), table


def _identifier(token: str) -> str:
    if token.startswith('"'):
        return token[1:-1].replace('""', '"')
    return token.lower()


def _after_block_comment(text: str, start: int) -> int:
    depth, at = 1, start + 2
    while depth:
        edge = _BLOCK_EDGE.search(text, at)
        if edge is None:
            raise ScanError("this /* comment is never closed", start)
        depth += 1 if edge.group() == "/*" else -1
        at = edge.end()
    return at


def _after_quote(text: str, start: int, opening: str) -> int:
    """The place behind the closing quote; a doubled quote is a character."""
    at, quote = start + len(opening), opening[-1]
    while True:
        at = text.find(quote, at)
        if at < 0:
            what = "quoted name" if quote == '"' else "string"
            raise ScanError(f"this {what} is never closed (a {quote} inside it is written twice)", start)
        if text[at + 1 : at + 2] != quote:
            return at + 1
        at += 2


def _after_escaped(text: str, start: int, opening: str) -> int:
    at = start + len(opening)
    while True:
        edge = _ESCAPED_EDGE.search(text, at)
        if edge is None:
            raise ScanError("this E'' string is never closed", start)
        at = edge.end()
        if edge.group() == "'":
            more = _CONTINUED.match(text, at)
            if more is None:
                return at
            at = more.end()


def _after_dollar(text: str, start: int, tag: str) -> int:
    end = text.find(tag, start + len(tag))
    if end < 0:
        raise ScanError(f"the body that {tag} opens is never closed by another {tag}", start)
    return end + len(tag)


_AFTER = {"quoted": _after_quote, "name": _after_quote, "escaped": _after_escaped, "dollar": _after_dollar}


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind, beginning and end of each token; white space and comments are none."""
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        kind, begin, at = str(match and match.lastgroup), at, match.end() if match else len(text)
        if kind == "block":
            at = _after_block_comment(text, begin)
        elif kind in _AFTER:
            at = _AFTER[kind](text, begin, text[begin:at])
        if kind not in ("space", "comment", "block"):
            yield kind, begin, at


def scan(text: str) -> Iterator[Statement]:
    """The statements of `text`, in order, in linear time; raises ScanError where quotes or comments do not close."""
    tokens: list[str] = []
    start = end = counted = parens = atomic = 0
    line = 1
    for kind, begin, after in _tokens(text):
        ends = kind == "end" and parens <= 0 and atomic == 0
        if kind == "meta" and tokens:
            raise ScanError("a backslash outside quotes is a psql command; write plain SQL here", begin)
        if not tokens and not ends:
            line += text.count("\n", counted, begin)
            start = counted = begin
        if not ends:
            if kind == "word" and parens <= 0:
                atomic = _atomic_depth(atomic, tokens, text[begin:after].upper())
            parens += (kind == "open") - (kind == "close")
            token = text[begin:after]
            tokens.append(token.replace("\r\n", "\n").replace("\r", "\n") if "\r" in token else token)
            end = after
        if tokens and (ends or kind == "meta"):
            yield Statement(start, end, line, tuple(tokens))
            tokens, parens = [], 0
    if tokens:
        yield Statement(start, end, line, tuple(tokens))


def _atomic_depth(depth: int, tokens: list[str], word: str) -> int:
    """psql's rule for SQL-standard bodies: in CREATE FUNCTION or PROCEDURE, BEGIN and CASE hide semicolons to END."""
    if word not in ("BEGIN", "CASE", "END") or not tokens or tokens[0].upper() != "CREATE":
        return depth
    kinds = [token.upper() for token in tokens[1:4]]
    if kinds[:2] == ["OR", "REPLACE"]:
        kinds = kinds[2:]
    if kinds[:1] not in (["FUNCTION"], ["PROCEDURE"]):
        return depth
    if word == "BEGIN" or (word == "CASE" and depth > 0):
        return depth + 1
    return depth - 1 if word == "END" and depth > 0 else depth


@dataclass(frozen=True)
class Script:
    """A file of SQL that can run as one unit of work.

    `text` is the file with blanks where its own BEGIN and COMMIT and `\\restrict` stood, so that every place in
    it stays where it was. `begin` opens the transaction, with the modes that the file asked for.
    """

    text: str
    statements: tuple[Statement, ...]
    begin: str
    unwrapped: bool  # marked -- no-transaction: no transaction around the whole
    checksum: str

    def sql(self, statement: Statement) -> str:
        """The statement's text."""
        return self.text[statement.start : statement.end]


_MARK = re.compile(r"^\s*--\s*no-transaction\s*$", re.MULTILINE | re.IGNORECASE)
_COPY_REFUSAL = "COPY from STDIN or to STDOUT is not supported: write INSERT statements"
_CONTROL_REFUSAL = (
    "{} opens or ends a transaction, but a file is one transaction as a whole: split the file here, "
    "or write -- no-transaction in its first line if it must not be one"
)


def read_script(text: str) -> Script:
    """Split `text` and set aside what the runner does anyway; raises ScanError for what cannot work."""
    found = list(scan(text))
    statements = [
        s for s in found if not s.is_meta_command or s.words[0].split()[0] not in ("\\RESTRICT", "\\UNRESTRICT")
    ]
    unwrapped, begin = bool(_MARK.search(text[: found[0].start] if found else text)), "BEGIN"
    if not unwrapped and len(statements) > 1 and statements[0].transaction_control == "BEGIN":
        opening, closing = statements[0], statements[-1]
        if closing.transaction_control == "COMMIT" and "CHAIN" not in closing.words:
            begin = " ".join(
                ("BEGIN", *tuple(t for t in opening.tokens[1:] if t.upper() not in ("WORK", "TRANSACTION")))
            )
            statements = statements[1:-1]
    if not unwrapped and statements and statements[0].words[:2] == ("SET", "TRANSACTION"):
        begin += "; " + " ".join(statements.pop(0).tokens)
    for statement in statements:
        why = _refusal(statement, unwrapped)
        if why:
            raise ScanError(why, statement.start)
    for statement in set(found) - set(statements):
        blank = re.sub(r"[^\r\n]", " ", text[statement.start : statement.end])
        text = text[: statement.start] + blank + text[statement.end :]
    return Script(text, tuple(statements), begin, unwrapped, _digest(found))


def _refusal(statement: Statement, unwrapped: bool) -> Optional[str]:
    """Why this statement cannot be part of a script."""
    if statement.is_meta_command:
        return f"{statement.tokens[0].split()[0]} is a command of psql, not SQL: write what it does as SQL"
    control = statement.transaction_control
    if control and control.split()[-1] in ("PREPARED", "TRANSACTION"):
        return f"{control} is not possible here: a prepared transaction would outlive the run"
    if control and not (unwrapped and control in ("BEGIN", "COMMIT")):
        return _CONTROL_REFUSAL.format(statement.words[0])
    if statement.words[0] == "COPY" and any(token.upper() in ("STDIN", "STDOUT") for token in statement.tokens):
        return _COPY_REFUSAL
    return None


def checksum(text: str) -> str:
    """`1:` and the SHA-256 of the tokens: comments, white space, line ends and a BOM do not count.

    A text that cannot be scanned has `0:` and the SHA-256 of its text, line ends aside.
    """
    try:
        return _digest(scan(text))
    except ScanError:
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        return "0:" + hashlib.sha256(plain.encode()).hexdigest()


def _digest(statements: Iterable[Statement]) -> str:
    digest = hashlib.sha256()
    for statement in statements:
        digest.update("\0".join(statement.tokens).encode() + b"\0;\0")
    return "1:" + digest.hexdigest()

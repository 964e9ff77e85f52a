"""SQL text → statements, as PostgreSQL's lexer and psql see them.

Pure: no I/O, no database, nothing about migrations. The text is never rewritten; every statement is a place in it.
Follows src/fe_utils/psqlscan.l and src/backend/parser/scan.l of PostgreSQL 13 to 18. Time is linear in the length
of the text, and memory beside it is that of one statement.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

# PostgreSQL's white space (\v since 16). A no-break space is none: it is a letter of an identifier.
_SPACE = r"[ \t\n\r\f\v]"
_LETTER = r"A-Za-z_\x80-\U0010FFFF"
_WORD = rf"[{_LETTER}][{_LETTER}0-9$]*"

_TOKEN = re.compile(
    rf"""
      (?P<space>{_SPACE}+)
    | (?P<comment>--[^\n\r]*)
    | (?P<block>/\*)
    | (?P<escaped>[eE]')
    | (?P<string>[nN]?')
    | (?P<quoted>(?:[bBxX]|[uU]&)')
    | (?P<name>(?:[uU]&)?")
    | (?P<dollar>\$(?:[{_LETTER}][{_LETTER}0-9]*)?\$)
    | (?P<word>{_WORD})
    | (?P<number>[0-9]+|\$[0-9]+)
    | (?P<end>;)
    | (?P<open>\()
    | (?P<close>\))
    | (?P<meta>\\[^\n\r]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# Many tokens at once, of the kinds that need no thought while standard_conforming_strings is on. Each alternative is
# known by its first character, so nothing is tried twice; the bound keeps the regex engine's own memory small.
_RUN = re.compile(
    rf"""(?:
      [ \t\n\r\f\v0-9.,:=+*<>~!@#%^&|`?()\[\]{{}}]+
    | (?![eE]'){_WORD}
    | '[^']*'(?:'[^']*')*
    | "[^"]*"
    | --[^\n\r]*
    | -
    | /(?!\*)
    ){{1,250}}""",
    re.VERBOSE,
)
_RUN_TOKEN = re.compile(rf"""{_SPACE}+|--[^\n\r]*|({_WORD}|[0-9]+|'[^']*'(?:'[^']*')*|"[^"]*"|.)""", re.DOTALL)
_GAP = re.compile(r"(?:[ \t\n\r\f\v;]+|--[^\n\r]*){1,250}")
_BLOCK_EDGE = re.compile(r"/\*|\*/")
_ESCAPED_EDGE = re.compile(r"\\.|''|'", re.DOTALL)
# A literal goes on in the next one behind a line end; for E'' that keeps its backslashes special.
_CONTINUED = re.compile(r"[ \t\f\v]*(?:--[^\n\r]*)?[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*'")
ONE_MESSAGE = 1 << 20  # characters; sent at once, a text costs the server eleven times its size
PIECE = 1 << 18  # characters
_END_OF_DATA = re.compile(r"\n\\\.\r?(?:\n|\Z)")
_REST_OF_LINE = re.compile(r"(?:[ \t\f\v]|/\*(?:[^*\n]|\*(?!/))*\*/)*(?:--[^\n\r]*)?\r?(?:\n|\Z)")
# Statements that are nothing but rows: their inside is of no interest here, and big files are made of them.
_ROWS = ("INSERT", "SELECT", "UPDATE", "DELETE", "VALUES", "WITH", "MERGE")

Name = tuple[Optional[str], str]

# How a checksum was made stands before it, so that one of any age can be made again.
PLAIN, TOKENS, LONG = "0:", "1:", "2:"


class ScanError(Exception):
    """The text cannot be split or cannot be run; `offset` is where the trouble began."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def locate(text: str, offset: int) -> tuple[int, int]:
    """Line and column (both from 1, in characters) of an offset."""
    return text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1


# --- Statements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What a statement outside a transaction is about. `on` and `part` are names as they are written, `name` is one as
    PostgreSQL stores it."""

    kind: str
    on: str = ""
    part: str = ""
    name: Optional[str] = None
    creates: bool = False
    is_concurrent: bool = False

    @property
    def is_build(self) -> bool:
        """It builds indexes, and leaves an INVALID one where it is stopped."""
        return self.kind in ("CREATE INDEX", "REINDEX")


@dataclass(frozen=True)
class Statement:
    """One statement: `text[start:end]`, from its first token to its semicolon, which is not included.

    `tokens` are all of its tokens, but only the first where it reads or writes rows. `data` is the place of the rows
    that follow COPY … FROM STDIN.
    """

    start: int
    end: int
    line: int
    tokens: tuple[str, ...]
    data: Optional[tuple[int, int]] = None
    switches: bool = False  # what follows is read in another way, which the server must know before it gets it

    @property
    def words(self) -> tuple[str, ...]:
        """The first twelve tokens in upper case, for comparing with keywords; at least two, which may be empty."""
        return (*(token.upper() for token in self.tokens[:12]), "", "")

    @property
    def is_rows(self) -> bool:
        """It reads or writes rows, and cannot be anything else that matters here."""
        return self.tokens[0].upper() in _ROWS

    @property
    def is_meta_command(self) -> bool:
        """A psql command (`\\i`, `\\restrict`), which is no SQL."""
        return self.tokens[0].startswith("\\")

    @property
    def transaction_control(self) -> Optional[str]:
        """`BEGIN`, `COMMIT`, `ROLLBACK` or another word that opens or ends a transaction; savepoints do not."""
        first, second, third = self.words[:3]
        if first in ("BEGIN", "COMMIT", "ROLLBACK", "END", "ABORT"):
            if second == "PREPARED":
                return f"{first} PREPARED"
            if first == "ROLLBACK" and "TO" in (second, third):
                return None
            return {"END": "COMMIT", "ABORT": "ROLLBACK"}.get(first, first)
        if (first, second) == ("START", "TRANSACTION"):
            return "BEGIN"
        named = third in ("AS", "(")  # a statement that is called so
        return "PREPARE TRANSACTION" if (first, second) == ("PREPARE", "TRANSACTION") and not named else None

    @property
    def setting(self) -> Optional[tuple[str, str]]:
        """Name and value (both in lower case, unquoted) where this is SET name = value, or RESET (value: empty)."""
        if self.tokens[0].upper() not in ("SET", "RESET"):
            return None
        words = [_identifier(token.strip("'")).lower() for token in self.tokens[:6]]
        if words[0] == "reset":
            return "".join(words[1:2]), ""
        words = words[2:] if words[1:2] in (["session"], ["local"]) else words[1:]
        if words[:1] == ["names"]:
            return "client_encoding", "".join(words[1:2])
        return "".join(words[:1]), "".join(words[2:3])

    @property
    def is_column_stamp(self) -> bool:
        """It does nothing but to set a column's stamp, as pg_dump writes that."""
        alone = self.tokens[-6:-2] == ("SET", "(", COLUMN_STAMP, "=") and "," not in self.tokens
        return alone and self.tokens[0] == "ALTER" and "COLUMN" in self.words

    @property
    def is_session_setting(self) -> bool:
        """A `SET` or `RESET` that lasts longer than its transaction."""
        first, second = self.words[:2]
        return first == "RESET" or (first == "SET" and second not in ("LOCAL", "CONSTRAINTS", "TRANSACTION"))

    @property
    def is_fleeting(self) -> bool:
        """It makes what lasts as long as the session: a temporary object, or a cursor held beyond its transaction."""
        if self.words[0] == "DECLARE":
            return "HOLD" in self.words and "WITHOUT" not in self.words
        words = self.words[3:5] if self.words[1:3] == ("OR", "REPLACE") else self.words[1:3]
        return self.words[0] == "CREATE" and ("TEMP" in words or "TEMPORARY" in words)

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
        at = 2 if words[1] == "UNLOGGED" else 1
        if words[at] != "TABLE":
            return None
        at += 4 if words[at + 1 : at + 4] == ("IF", "NOT", "EXISTS") else 1
        return _qualified(self.tokens[at:])

    @property
    def target(self) -> Target:
        """What it makes, takes away or rebuilds, where it is one of the statements that want no transaction."""
        words, tokens = self.words, self.tokens
        verb, concurrent = words[:2], "CONCURRENTLY" in (*words, tokens[-1].upper())
        if verb in (("CREATE", "DATABASE"), ("DROP", "DATABASE")):
            name = _identifier("".join(tokens[_behind(words, 2) :][:1]))
            return Target("DATABASE", name=name, creates=words[0] == "CREATE")
        if words[0] == "REINDEX" and concurrent:
            kind = next((i for i, word in enumerate(words) if word in ("INDEX", "TABLE")), len(tokens))
            return Target("REINDEX", _written(tokens[_behind(words, kind + 1) :]), is_concurrent=True)
        if words[0] == "CREATE" and "CONCURRENTLY" in words[2:4] and "ON" in words[3:]:
            on = words.index("ON", 3)
            index = None if words[on - 1] == "CONCURRENTLY" else _identifier(tokens[on - 1])
            table = _written(tokens[_behind(words, on + 1) :])
            return Target("CREATE INDEX", table, name=index, creates=True, is_concurrent=True)
        if verb == ("DROP", "INDEX") and concurrent:
            return Target("DROP INDEX", _written(tokens[_behind(words, 2) :]), is_concurrent=True)
        if verb == ("ALTER", "TABLE") and concurrent and "DETACH" in words:
            part = tokens[words.index("DETACH") + 2 :]
            return Target("DETACH", _written(tokens[_behind(words, 2) :]), _written(part))
        return Target("")

    @property
    def wants_no_transaction(self) -> bool:
        """PostgreSQL refuses it in a transaction, as far as its words tell."""
        alone = (("ALTER", "SYSTEM"), ("CREATE", "TABLESPACE"), ("DROP", "TABLESPACE"))
        return self.words[0] == "VACUUM" or self.words[:2] in alone or self.target.kind != ""

    @property
    def copies(self) -> Optional[str]:
        """`STDIN` or `STDOUT` where this is a COPY from or to the client."""
        if self.tokens[0].upper() != "COPY":
            return None
        depth, before = 0, ""
        for word in (token.upper() for token in self.tokens):
            depth += (word == "(") - (word == ")")
            if depth == 0 and word in ("STDIN", "STDOUT") and before in ("FROM", "TO"):
                return "STDIN" if before == "FROM" else "STDOUT"
            before = word
        return None


def _behind(words: tuple[str, ...], at: int) -> int:
    """The place behind the words that may stand before a name."""
    while at < len(words) and words[at] in ("IF", "NOT", "EXISTS", "ONLY", "CONCURRENTLY"):
        at += 1
    return at


def _written(tokens: tuple[str, ...]) -> str:
    """The name that these tokens begin with, with its schema, as it is written."""
    parts = 1
    while tokens[parts : parts + 1] == (".",):
        parts += 2
    return "".join(tokens[:parts])


def _identifier(token: str) -> str:
    if token.startswith('"'):
        return token[1:-1].replace('""', '"')
    return re.sub("[A-Z]+", lambda letters: letters.group().lower(), token)  # in UTF-8 PostgreSQL folds no others


def _qualified(tokens: tuple[str, ...]) -> Optional[Name]:
    """schema.name or name, as PostgreSQL reads it; a database's name before it does not count."""
    parts = [_identifier(tokens[0])] if tokens else []
    for dot, part in zip(tokens[1:4:2], tokens[2:5:2]):
        if dot != ".":
            break
        parts.append(_identifier(part))
    if not parts:
        return None
    return (parts[-2] if len(parts) > 1 else None), parts[-1]


# --- Tokens ---------------------------------------------------------------------------------------------------------


def _after_block_comment(text: str, start: int) -> int:
    depth, at = 1, start + 2
    while depth:
        edge = _BLOCK_EDGE.search(text, at)
        if edge is None:
            raise ScanError("this /* comment is never closed", start)
        depth += 1 if edge.group() == "/*" else -1
        at = edge.end()
    return at


def _after_quote(text: str, start: int, at: int) -> int:
    """The place behind the closing quote; a doubled quote is a character."""
    quote = text[at - 1]
    while True:
        at = text.find(quote, at)
        if at < 0:
            what = "quoted name" if quote == '"' else "string"
            raise ScanError(f"this {what} is never closed (a {quote} inside it is written twice)", start)
        if text[at + 1 : at + 2] != quote:
            return at + 1
        at += 2


def _after_escaped(text: str, start: int, at: int) -> int:
    while True:
        edge = _ESCAPED_EDGE.search(text, at)
        if edge is None:
            raise ScanError("this string with backslashes is never closed", start)
        at = edge.end()
        if edge.group() == "'":
            more = _CONTINUED.match(text, at)
            if more is None:
                return at
            at = more.end()


def _after_dollar(text: str, start: int, at: int) -> int:
    tag = text[start:at]
    end = text.find(tag, at)
    if end < 0:
        raise ScanError(f"the body that {tag} opens is never closed by another {tag}", start)
    return end + len(tag)


_AFTER = {
    "string": _after_quote,
    "quoted": _after_quote,
    "name": _after_quote,
    "escaped": _after_escaped,
    "dollar": _after_dollar,
}


def _token(text: str, at: int, backslashes: bool) -> tuple[str, int]:
    """Kind and end of the token at `at`. `backslashes`: standard_conforming_strings is off."""
    match = _TOKEN.match(text, at)
    kind, end = (match.lastgroup or "", match.end()) if match else ("other", at + 1)
    if kind == "block":
        return "space", _after_block_comment(text, at)
    if kind == "comment":
        return "space", end
    if kind == "string" and backslashes:
        kind = "escaped"
    if kind == "other" and text[at] == "$":
        raise ScanError("a lone $: a body stands between $$ and $$, or between $name$ and $name$", at)
    return kind, (_AFTER[kind](text, at, end) if kind in _AFTER else end)


def body_of(text: str, start: int) -> int:
    """Where the first string of the statement that begins at `start` stands: the body of a DO block."""
    at, kind = start, ""
    while at < len(text):
        start = at
        kind, at = _token(text, at, backslashes=False)
        if kind in ("dollar", "string", "escaped"):
            break
    return start


# --- Scanning -------------------------------------------------------------------------------------------------------


class _Scan:
    """One pass over one text. What it reads goes into `digest` as well, if there is one."""

    def __init__(self, text: str, digest: Any = None, kind: str = TOKENS, backslashes: bool = False) -> None:
        self.text = text
        self.digest = digest
        self.kind = kind
        self.backslashes = backslashes  # standard_conforming_strings = off

    def statements(self) -> Iterator[Statement]:
        text, at, line, counted = self.text, 0, 1, 0
        while True:
            at = self._next(at)
            if at >= len(text):
                return
            line += text.count("\n", counted, at)
            counted = at
            try:
                statement, at = self._statement(at, line)
            except ScanError as exc:
                raise self._where_it_began(counted, exc) from exc
            self._hash("\0;\0")
            if len(statement.tokens) == 1:
                yield statement
                continue
            if statement.copies == "STDIN":
                statement, at = self._with_data(statement, at)
            if statement.setting and statement.setting[0] in ("standard_conforming_strings", "all"):
                before, self.backslashes = self.backslashes, _is_off(statement.setting[1])
                statement = replace(statement, switches=before != self.backslashes)
            elif statement.setting and statement.setting[0] == "backslash_quote":
                statement = replace(statement, switches=True)
            yield statement

    def _where_it_began(self, at: int, error: ScanError) -> ScanError:
        """An unescaped quote ('don't') shows only at the last one: go back to the string that a letter follows."""
        while at < error.offset and self.text.startswith("'", error.offset):
            kind, end = _token(self.text, at, self.backslashes)
            if kind == "string" and re.match(rf"[{_LETTER}]", self.text[end : end + 1]):
                return ScanError("a quote inside a string is written twice ('')", end - 1)
            at = end
        return error

    def _next(self, at: int) -> int:
        """The beginning of the next statement: behind white space, comments and lone semicolons."""
        while True:
            gap = _GAP.match(self.text, at)
            if gap:
                at = gap.end()
            elif self.text.startswith("/*", at):
                at = _after_block_comment(self.text, at)
            else:
                return at

    def _statement(self, start: int, line: int) -> tuple[Statement, int]:
        """The statement that begins here, and the place behind its semicolon."""
        text, at, end = self.text, start, len(self.text)
        tokens: list[str] = []
        parens = atomic = 0
        rows = False
        while at < len(text):
            run = _RUN.match(text, at) if rows else None
            if run:
                self._hash_run(at, run.end())
                at = run.end()
                if text.startswith(";", at):
                    return Statement(start, at, line, tuple(tokens)), at + 1
                continue
            begin = at
            kind, at = _token(text, begin, self.backslashes)
            if kind == "space":
                continue
            if kind == "end" and parens <= 0 and atomic == 0:
                end = begin
                break
            if kind == "meta" and tokens:
                raise ScanError("a backslash outside quotes is a command of psql; end the statement with ;", begin)
            token = text[begin:at]
            self._hash(token + "\0")
            if not rows:
                tokens.append(token)
                parens += (kind == "open") - (kind == "close")
                if kind == "word" and parens <= 0:
                    atomic = _atomic_depth(atomic, tokens, token.upper())
            if kind == "meta":
                end = at
                break
            rows = rows or (len(tokens) == 1 and token.upper() in _ROWS and not self.backslashes)
        return Statement(start, end, line, tuple(tokens)), at

    def _with_data(self, statement: Statement, at: int) -> tuple[Statement, int]:
        """The rows of a COPY begin on the next line and end at a line with nothing but \\."""
        rest = _REST_OF_LINE.match(self.text, at)
        if rest is None:
            raise ScanError("the rows of COPY … FROM STDIN begin on the next line: move what stands behind ;", at)
        # Many rows have no backslash, and a single character is found ten times faster.
        line_end = max(rest.end(), self.text.find("\\", rest.end())) - 1
        closing = _END_OF_DATA.search(self.text, line_end)
        end, after = (closing.start() + 1, closing.end()) if closing else (len(self.text), len(self.text))
        for part in range(rest.end(), end if self.digest is not None else 0, 1 << 20):
            self._hash(self.text[part : min(part + (1 << 20), end)], as_it_is=True)
        return replace(statement, data=(rest.end(), end)), after

    def _hash(self, text: str, as_it_is: bool = False) -> None:
        if self.digest is not None:
            if "\r" in text and not as_it_is:
                text = text.replace("\r\n", "\n").replace("\r", "\n")
            self.digest.update(text.encode())

    def _hash_run(self, start: int, end: int) -> None:
        if self.digest is not None and self.kind == LONG:
            self._hash(self.text[start:end])
        elif self.digest is not None:
            tokens = filter(None, _RUN_TOKEN.findall(self.text, start, end))
            self._hash("\0".join(tokens) + "\0")


def _is_off(value: str) -> bool:
    """PostgreSQL takes any beginning of false and no, and two letters of off."""
    return value in ("0", "of", "off") or (value != "" and ("false".startswith(value) or "no".startswith(value)))


def _atomic_depth(depth: int, tokens: list[str], word: str) -> int:
    """psql's rule for SQL-standard bodies: in CREATE FUNCTION or PROCEDURE, BEGIN and CASE hide semicolons to END."""
    if word not in ("BEGIN", "CASE", "END") or tokens[0].upper() != "CREATE":
        return depth
    kinds = [token.upper() for token in tokens[1:4]]
    if kinds[:2] == ["OR", "REPLACE"]:
        kinds = kinds[2:]
    if kinds[:1] not in (["FUNCTION"], ["PROCEDURE"]):
        return depth
    if word == "BEGIN" or (word == "CASE" and depth > 0):
        return depth + 1
    return depth - 1 if word == "END" and depth > 0 else depth


def scan(text: str, backslashes: bool = False) -> Iterator[Statement]:
    """The statements of `text`, in order; raises ScanError where quotes or comments do not close.

    `backslashes`: the session has standard_conforming_strings off, and '\\'' is a quote.
    """
    return _Scan(text, backslashes=backslashes).statements()


def checksum(text: str, kind: str = "") -> str:
    """The SHA-256 of the tokens: comments, white space, line ends and a BOM do not count; rows of COPY do, as they are.

    In a text of more than a million characters, statements that read or write rows count as they are, line ends aside;
    of a text that cannot be scanned, so does all. `kind`, the first two characters of another checksum, asks for one
    that can be compared with it.
    """
    kind = kind or (LONG if len(text) > ONE_MESSAGE else TOKENS)
    digest = hashlib.sha256()
    try:
        for _ in _Scan(text, digest, kind).statements() if kind != PLAIN else ():
            pass
    except ScanError:
        kind = PLAIN
    if kind == PLAIN:
        digest = hashlib.sha256(text.replace("\r\n", "\n").replace("\r", "\n").encode())
    return kind + digest.hexdigest()


# --- Scripts --------------------------------------------------------------------------------------------------------

_MARK = re.compile(r"^[ \t]*--[ \t]*no-transaction\b", re.MULTILINE | re.IGNORECASE)
# RESET leaves a setting of one's own behind, empty, which a new session does not know.
CUSTOM_SETTING = re.compile(
    r"""\bset_config\s*\(\s*'[^']*\.|\bSET\s+(?:LOCAL\s+|SESSION\s+)?"?\w+"?\s*\.""", re.IGNORECASE
)
# pg_dump writes BEGIN before this, and COMMIT behind the large object's bytes.
_LARGE_OBJECT = re.compile(r";\s*SELECT pg_catalog\.lo_open\(")
UTF8 = ("utf8", "unicode", "sqlascii", "default", "")
TRANSACTION_SETTINGS = ("transaction", "transaction_isolation", "transaction_deferrable")
_CONTROL_REFUSAL = (
    "{} opens or ends a transaction, but a file is one transaction as a whole: split the file here, "
    "or write -- no-transaction in its first line if it must not be one"
)
_UNIT_REFUSAL = (
    "{}: in a file marked -- no-transaction only BEGIN and COMMIT in pairs are possible, around what belongs together"
)
_FLEETING = (
    "this {} makes something that is gone where a run is interrupted, and the next run goes on behind it: "
    "write BEGIN before it and COMMIT behind its last use"
)
_READING = re.compile("standard_conforming_strings|backslash_quote", re.IGNORECASE)
_UNFOLLOWED = (
    "{} changes how strings are read, which cannot be followed: write SET standard_conforming_strings = … instead"
)
_INSTEAD = {
    ("\\i", "\\ir", "\\include", "\\include_relative"): "put the SQL of that file here, or into a migration of its own",
    ("\\c", "\\connect"): "a migration stays in its database; remove it",
    ("\\copy",): "write INSERT, or COPY … FROM STDIN with its rows behind it and a line \\. at the end",
    (
        "\\set",
        "\\unset",
        "\\gset",
        "\\prompt",
        "\\getenv",
    ): "variables of psql do not exist here; write the value itself",
    ("\\g", "\\gx", "\\;"): "end the statement with ;",
    ("\\gexec",): "write a DO block with EXECUTE",
    ("\\if", "\\elif", "\\else", "\\endif"): "write a DO block with IF",
    ("\\echo", "\\qecho", "\\warn"): "write a DO block with RAISE NOTICE",
    ("\\encoding",): "save the file as UTF-8 and remove it",
}
# What pg_dump of a newer major writes at the beginning, and the first server version that knows it.
LATER_SETTINGS = {"transaction_timeout": 170000}
# A server of November 2026 or newer stamps each column with it, and ignores it in SET; older ones refuse it. A pg_dump
# of an older minor version writes the stamps into its dump.
COLUMN_STAMP = "pg_attver"


class Piece(NamedTuple):
    """A part of a script that is one message: statements that follow each other, or a COPY with its rows."""

    start: int
    end: int
    data: Optional[tuple[int, int]] = None


@dataclass(frozen=True)
class Script:
    """A file of SQL that can run as one unit of work.

    Some of its statements are not sent: its own BEGIN and COMMIT, `\\restrict`. `begin` opens the transaction, with the
    modes that the file asked for. `pieces` are the messages in which it goes to the server where one would not do:
    rows follow a COPY, a setting changes how the rest is read, or it is too long.
    """

    text: str
    unwrapped: bool  # marked -- no-transaction: no transaction around the whole
    begin: str
    count: int
    first: int  # where the first statement begins
    created: Mapping[Name, int]  # the tables that it creates, and where
    known_checksum: str  # empty for a long text: it takes its time, and is not needed before the end
    pieces: tuple[Piece, ...]  # empty where the text goes in one message
    left_out: tuple[Statement, ...] = ()
    unknown_settings: tuple[str, ...] = ()
    backslashes: bool = False  # how the session reads strings when the script begins

    @property
    def checksum(self) -> str:
        """See checksum(); of a long text it is made anew each time."""
        return self.known_checksum or checksum(self.text)

    def statements(self) -> Iterator[Statement]:
        """The statements that are sent; read anew each time, since there may be millions."""
        places = {statement.start for statement in self.left_out}
        return (statement for statement in scan(self.text, self.backslashes) if statement.start not in places)

    def sql(self, statement: Statement) -> str:
        """The statement's text."""
        return self.text[statement.start : statement.end]

    def body(self) -> str:
        """The text with blanks for what is left out, so that every place in it stays where it was."""
        parts, at = list[str](), 0
        for statement in sorted(self.left_out, key=lambda each: each.start):
            parts += self.text[at : statement.start], re.sub(r"[^\r\n]", " ", self.sql(statement))
            at = statement.end
        return "".join([*parts, self.text[at:]])

    def to_send(self, by_statement: bool = False) -> Iterator[Piece]:
        """The pieces without what is left out; or the single statements."""
        pieces = in_pieces(scan(self.text, self.backslashes), by_statement=True) if by_statement else iter(self.pieces)
        places = {statement.start for statement in self.left_out}
        return (piece for piece in pieces if piece.start not in places)

    def without_later_settings(self, version: int) -> Script:
        """Without the settings that a server of this version does not know, as pg_dump of a newer one writes them, and
        without stamps of columns, which have no effect anywhere."""
        later = [name for name, since in LATER_SETTINGS.items() if version < since and name in self.text[:ONE_MESSAGE]]
        if not later and COLUMN_STAMP not in self.text:
            return self
        unknown = [s for s in self.statements() if s.is_column_stamp or (s.setting and s.setting[0] in later)]
        return replace(
            self,
            left_out=(*self.left_out, *unknown),
            count=self.count - len(unknown),
            unknown_settings=tuple(dict.fromkeys(s.setting[0] if s.setting else COLUMN_STAMP for s in unknown)),
        )


def in_pieces(statements: Iterable[Statement], by_statement: bool = False) -> Iterator[Piece]:
    """Statements that follow each other go together, up to some 256,000 characters; alone goes a COPY, and what may
    be left out or changes how the rest is read."""
    piece: Optional[Piece] = None
    for statement in statements:
        alone = by_statement or not (statement.is_rows or _goes_with_others(statement))
        if piece and (alone or statement.end - piece.start > PIECE):
            yield piece
            piece = None
        if alone:
            yield Piece(statement.start, statement.end, statement.data)
        else:
            piece = Piece(piece.start if piece else statement.start, statement.end)
    if piece:
        yield piece


def _goes_with_others(statement: Statement) -> bool:
    name = statement.setting[0] if statement.setting else ""
    return not (
        statement.data
        or statement.is_meta_command
        or statement.is_column_stamp
        or statement.transaction_control
        or name in (*TRANSACTION_SETTINGS, *LATER_SETTINGS)
        or statement.switches
    )


def read_script(text: str, backslashes: bool = False) -> Script:
    """Look through `text`, and set aside what the runner does anyway; raises ScanError for what cannot work."""
    kind = LONG if len(text) > ONE_MESSAGE else TOKENS
    digest, count, split = None if kind == LONG or backslashes else hashlib.sha256(), 0, kind == LONG
    opening: list[Statement] = []
    last: Optional[Statement] = None
    notable: list[Statement] = []
    left_out: list[Statement] = []
    created: dict[Name, int] = {}
    switched = False

    def looked_at() -> Iterator[Statement]:
        nonlocal count, last, split, switched
        for statement in _Scan(text, digest, kind, backslashes).statements():
            yield statement
            if _is_idle_command(statement):
                left_out.append(statement)
                continue
            opening.extend([statement] if count < 8 else [])
            last = statement
            count += 1
            changing = statement.words[0] in ("SELECT", "WITH", "DO", "CALL")
            if changing and _READING.search(text, statement.start, statement.end):
                raise ScanError(_UNFOLLOWED.format("this statement"), statement.start)
            if statement.is_rows:
                continue
            why = _refusal(statement, text)
            if why:
                raise ScanError(why, statement.start)
            if statement.transaction_control or statement.is_fleeting:
                notable.append(statement)
            if statement.created_table:
                created.setdefault(statement.created_table, statement.start)
            split = split or statement.data is not None or statement.switches
            switched = switched or statement.switches
            if switched and statement.words[0] == "ROLLBACK":
                raise ScanError(_UNFOLLOWED.format("this ROLLBACK TO"), statement.start)

    pieces = tuple(in_pieces(looked_at()))
    unwrapped = bool(_MARK.search(text[: opening[0].start] if opening else text))
    begin = "BEGIN"
    if unwrapped:
        _check_units(notable)
    elif opening and last:
        controls = [statement for statement in notable if statement.transaction_control]
        begin, own = _own_transaction(text, opening, last, controls)
        left_out += own
        count -= len(own)
        wild = [statement for statement in controls if statement not in own]
        if wild:
            at = wild[1] if len(wild) > 1 and wild[0] is opening[0] else wild[0]
            raise ScanError(_CONTROL_REFUSAL.format(at.words[0]), at.start)
    first = next((s.start for s in opening if s not in left_out), opening[0].start if opening else 0)
    value = kind + digest.hexdigest() if digest else ""
    return Script(
        *(text, unwrapped, begin, count, first, created, value, pieces if split else (), tuple(left_out)),
        backslashes=backslashes,
    )


def _own_transaction(
    text: str, opening: list[Statement], last: Statement, controls: list[Statement]
) -> tuple[str, list[Statement]]:
    """How the file's transaction begins, and the statements that are left out for it.

    BEGIN first and COMMIT last ask for what happens anyway. Their modes, and those of a leading SET TRANSACTION, have
    to stand before our savepoint: behind it PostgreSQL answers 25001. pg_dump's units of large objects go, too.
    """
    begin, own = ["BEGIN"], []
    units = [each for pair in zip(controls, controls[1:]) if _LARGE_OBJECT.match(text, pair[0].end) for each in pair]
    controls = [statement for statement in controls if statement not in units]
    around = [controls[0], controls[-1]] if len(controls) > 1 else []
    verbs = [control.transaction_control for control in around]
    lead = next((statement for statement in opening if not statement.is_session_setting), last)
    if around == [lead, last] and verbs == ["BEGIN", "COMMIT"] and not chains(last):
        own = around
        begin += opening_modes(around[0])
    for statement in (statement for statement in opening if statement not in own):
        if statement.setting and statement.setting[0] not in TRANSACTION_SETTINGS:
            continue
        if not statement.setting:
            break
        own.append(statement)
        begin += [";", *statement.tokens]
    if "ONLY" in (token.upper() for token in begin):
        raise ScanError("a READ ONLY transaction cannot record that this file is applied: remove that", own[0].start)
    return " ".join(begin), own + units


def opening_modes(statement: Statement) -> list[str]:
    """What a BEGIN says of its transaction, such as ISOLATION LEVEL SERIALIZABLE."""
    return [token for token in statement.tokens[1:] if token.upper() not in ("WORK", "TRANSACTION")]


def chains(statement: Statement) -> bool:
    """COMMIT AND CHAIN opens the next transaction."""
    return "CHAIN" in statement.words and "NO" not in statement.words


def _check_units(found: list[Statement]) -> None:
    """In a marked file, BEGIN and COMMIT come in pairs; a COMMIT with nothing open is harmless, as in psql. What would
    be lost where the run is interrupted stands between them."""
    opened: Optional[Statement] = None
    for statement in found:
        control = statement.transaction_control
        if statement.is_fleeting and opened:
            continue
        if statement.is_fleeting:
            raise ScanError(_FLEETING.format(statement.words[0]), statement.start)
        if control not in ("BEGIN", "COMMIT") or chains(statement) or (opened and control == "BEGIN"):
            raise ScanError(_UNIT_REFUSAL.format(" ".join(statement.tokens[:3]).upper()), statement.start)
        opened = statement if control == "BEGIN" else None
    if opened:
        raise ScanError(_UNIT_REFUSAL.format("BEGIN without COMMIT"), opened.start)


def _is_idle_command(statement: Statement) -> bool:
    """A command of psql that changes nothing here: pg_dump's \\restrict, and stopping at errors, which is always so."""
    if not statement.is_meta_command:
        return False
    words = [word.strip("'") for word in statement.tokens[0].split()]
    return words[0] in ("\\restrict", "\\unrestrict") or (
        words[:2] == ["\\set", "ON_ERROR_STOP"] and [w.lower() for w in words[2:]] in ([], ["on"], ["1"], ["true"])
    )


def _refusal(statement: Statement, text: str) -> Optional[str]:
    """Why this statement cannot be part of a script."""
    if statement.is_meta_command:
        command = statement.tokens[0].split()[0]
        instead = next((words for commands, words in _INSTEAD.items() if command in commands), "remove it")
        return f"{command} is a command of psql, not SQL: {instead}"
    control = statement.transaction_control
    if control and control.split()[-1] in ("PREPARED", "TRANSACTION"):
        return f"{control} is not possible here: a prepared transaction would outlive the run"
    if statement.copies == "STDOUT":
        return "COPY … TO STDOUT has no one to write to: remove it"
    name, value = statement.setting or ("", "")
    if name == "client_encoding" and re.sub(r"[-_ ]", "", value) not in UTF8 and not text.isascii():
        return f"this file says that it is in {value}, but it is read as UTF-8: save it as UTF-8 and remove this"
    return None

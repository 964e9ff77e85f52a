"""Splits SQL text into statements, the way PostgreSQL's lexer and psql do.

    scan(text)         the statements of a text, in order
    checksum(text)     a hash of its tokens, the same for texts that differ only in layout
    read_script(text)  a file as one unit of work: what to send, or why it cannot run

Pure: no I/O, no database, nothing about migrations. The text is never rewritten: a statement is a
range of offsets in it. Follows src/fe_utils/psqlscan.l and src/backend/parser/scan.l of PostgreSQL
13 to 18. Time is linear in the length of the text; the memory needed besides the text is that of
one statement.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Callable, NamedTuple, Optional

# A checksum begins with how it was made, so that one that an older version recorded can be made
# again.
PLAIN = "0:"  # of the lines of the text, which cannot be split into tokens
TOKENS = "1:"  # of the tokens
LONG = "2:"  # of the tokens, but of DML statements as they are written

# A longer text goes to the server in pieces: one message costs the server eleven times its size.
ONE_MESSAGE = 1 << 20  # characters
_PIECE = 1 << 18  # characters

Name = tuple[Optional[str], str]  # of a table: its schema (None: not named) and itself


def scan(text: str, backslash_escapes: bool = False, start: int = 0) -> Iterator[Statement]:
    """The statements of `text`, in order, from one's start on; raises ScanError if a quote or a
    comment is not closed.

    `backslash_escapes`: the session has standard_conforming_strings off, so '\\'' is a quote.
    """
    return _Scanner(text, backslash_escapes).statements(start)


def checksum(text: str, algorithm: str = "") -> str:
    """The SHA-256 of the tokens; comments, white space, line ends and a BOM do not count.

    Rows of COPY count as they are. In a text of more than a million characters, so do statements
    that read or write rows, except for their line ends; in a text that cannot be scanned, so does
    everything. `algorithm`, the first two characters of another checksum, asks for one that can be
    compared with it.
    """
    algorithm = algorithm or _default_algorithm(text)
    if algorithm == PLAIN:
        return _plain_checksum(text)
    token_hash = _TokenHash(algorithm)
    try:
        for _ in _Scanner(text, token_hash=token_hash).statements():
            pass
    except ScanError:
        return _plain_checksum(text)
    return token_hash.checksum()


def read_script(
    text: str, backslash_escapes: bool = False, read_again: Optional[Callable[[], str]] = None
) -> Script:
    """Read a file as one unit of work, and set aside the statements that the runner replaces.

    With `read_again` its text can be forgotten meanwhile. Raises ScanError for what cannot work.
    """
    algorithm = _default_algorithm(text)
    is_long = algorithm == LONG
    token_hash = None
    if not is_long and not backslash_escapes:
        token_hash = _TokenHash(algorithm)
    scanner = _Scanner(text, backslash_escapes, token_hash)
    survey = _Survey(text)
    pieces = tuple(in_pieces(survey.of(scanner.statements())))

    is_marked = survey.has_no_transaction_mark()
    commit = None if is_marked else _commit_in_between(survey)
    begin_sql = "BEGIN"
    replaced: list[Statement] = []
    if is_marked:
        _check_own_transactions(survey.notable)
    elif commit:
        replaced = _large_object_transactions(survey)
    else:
        begin_sql, replaced = _own_transaction(survey)

    left_out = [*survey.idle_commands, *replaced]
    known_checksum = ""
    if token_hash:
        known_checksum = token_hash.checksum()
    if not is_long and not survey.needs_pieces:
        pieces = ()
    return Script(
        source=Source(text, read_again),
        no_transaction=is_marked or commit is not None,
        begin_sql=begin_sql,
        statement_count=survey.count - len(replaced),
        first_offset=survey.first_offset(left_out),
        created_tables=survey.created_tables,
        known_checksum=known_checksum,
        pieces=pieces,
        left_out=tuple(left_out),
        backslash_escapes=backslash_escapes,
        commits_in_line=commit.line if commit else None,
        has_ddl=survey.has_ddl,
    )


def locate(text: str, offset: int) -> tuple[int, int]:
    """Line and column (both from 1, in characters) of an offset."""
    line_start = text.rfind("\n", 0, offset) + 1
    line = text.count("\n", 0, offset) + 1
    return line, offset - line_start + 1


class ScanError(Exception):
    """The text cannot be split or cannot be run; `offset` is where the trouble began."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


# --- Scripts --------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """The part of a script that is one message: consecutive statements, or a COPY with its rows."""

    start: int
    end: int
    data: Optional[tuple[int, int]] = None


class Source:
    """A text that can be forgotten where it can be read again."""

    def __init__(self, text: str, read_again: Optional[Callable[[], str]]) -> None:
        self._text: Optional[str] = text
        self._read_again = read_again

    @property
    def text(self) -> str:
        if self._text is None and self._read_again:
            self._text = self._read_again()
        return self._text or ""

    def forget(self) -> None:
        if self._read_again:
            self._text = None


@dataclass(frozen=True)
class Script:
    """A file of SQL that can run as one unit of work.

    Some of its statements are not sent: its own BEGIN and COMMIT, `\\restrict`. `begin_sql` opens
    the transaction, with the modes that the file asks for. `pieces` are the messages that it is
    sent in if one is not enough: because rows follow a COPY, a setting changes how the rest is
    read, or the file is too long.
    """

    source: Source
    no_transaction: bool  # marked -- no-transaction, or commits by itself: none around the whole
    begin_sql: str
    statement_count: int
    first_offset: int  # offset of the first statement that is sent
    created_tables: Mapping[Name, int]  # the tables that it creates, and the offset where it does
    known_checksum: str  # empty for a long text: it takes time, and is not needed before the end
    pieces: tuple[Piece, ...]  # empty if the text goes in one message
    left_out: tuple[Statement, ...] = ()
    unknown_settings: tuple[str, ...] = ()
    backslash_escapes: bool = False  # how the session reads strings when the script begins
    commits_in_line: Optional[int] = None  # where it first commits by itself, without a mark
    has_ddl: bool = False  # CREATE, ALTER or DROP, outside of DO blocks and functions

    @property
    def text(self) -> str:
        """Read again if it was forgotten."""
        return self.source.text

    def forget_text(self) -> None:
        """Until it is needed again: a long one takes memory."""
        self.source.forget()

    @property
    def longest_piece(self) -> int:
        """In characters, without rows of COPY."""
        return max((piece.end - piece.start for piece in self.pieces), default=0)

    @property
    def checksum(self) -> str:
        """See checksum(); of a long text it is made again each time."""
        return self.known_checksum or checksum(self.text)

    def statements(self) -> Iterator[Statement]:
        """The statements that are sent; scanned each time, since there may be millions."""
        left_out = self._left_out_offsets()
        for statement in scan(self.text, self.backslash_escapes):
            if statement.start not in left_out:
                yield statement

    def start_near(self, offset: int) -> int:
        """Where a statement begins, not after `offset` and in a long text not far before it, up to
        which nothing changes how strings are read.
        """
        starts = [piece.start for piece in self.pieces if piece.start <= offset]
        if not starts or self.backslash_escapes or SETS_STRING_SYNTAX.search(self.text):
            return 0
        return starts[-1]

    def statement_sql(self, statement: Statement) -> str:
        """The statement's text."""
        return self.text[statement.start : statement.end]

    def body_sql(self, start: int = 0, end: Optional[int] = None) -> str:
        """The text, or a part of it, with blanks for what is left out: every offset stays the
        same.
        """
        end = len(self.text) if end is None else end
        parts: list[str] = []
        at = start
        for statement in sorted(self.left_out, key=lambda each: each.start):
            if start <= statement.start < end:
                parts.append(self.text[at : statement.start])
                parts.append(re.sub(r"[^\r\n]", " ", self.statement_sql(statement)))
                at = statement.end
        parts.append(self.text[at:end])
        return "".join(parts)

    def pieces_to_send(self, by_statement: bool = False) -> Iterator[Piece]:
        """The pieces without what is left out; or each statement as a piece."""
        pieces: Iterable[Piece] = self.pieces
        if by_statement:
            pieces = map(_piece_of, scan(self.text, self.backslash_escapes))
        left_out = self._left_out_offsets()
        for piece in pieces:
            if piece.start not in left_out:
                yield piece

    def without_settings_unknown_to(self, server_version: int, schema: str = "") -> Script:
        """The script without the settings that a server of this version does not know.

        pg_dump of a newer version writes them. Stamps of columns go too: they never have an effect.
        So does CREATE SCHEMA of a `schema` that is there already, as pg_dump writes it, with the
        DROP SCHEMA of pg_dump --clean.
        """
        beginning = self.text[:ONE_MESSAGE]
        later = [
            name
            for name, since in _SETTINGS_SINCE.items()
            if server_version < since and name in beginning
        ]
        creates_schema = bool(schema and _CREATES_SCHEMA.search(beginning))
        if not (later or creates_schema or COLUMN_STAMP in self.text):
            return self
        unknown: list[Statement] = []
        names: list[str] = []
        for statement in self.statements():
            if statement.is_column_stamp:
                unknown.append(statement)
                names.append(COLUMN_STAMP)
            elif statement.setting and statement.setting[0] in later:
                unknown.append(statement)
                names.append(statement.setting[0])
            elif creates_schema and statement.makes_just(schema):
                unknown.append(statement)
                names.append(THE_SCHEMA)
        return replace(
            self,
            left_out=(*self.left_out, *unknown),
            statement_count=self.statement_count - len(unknown),
            unknown_settings=tuple(dict.fromkeys(names)),
        )

    def _left_out_offsets(self) -> set[int]:
        return {statement.start for statement in self.left_out}


# --- Statements -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """One statement: `text[start:end]`, from its first token to its semicolon, which is excluded.

    `tokens` are all of its tokens; of a DML statement only the first. `data` is the range of the
    rows that follow COPY … FROM STDIN.
    """

    start: int
    end: int
    line: int
    tokens: tuple[str, ...]
    data: Optional[tuple[int, int]] = None
    # The server must execute it before it gets the following text.
    changes_string_syntax: bool = False

    @property
    def keyword(self) -> str:
        """The first token, in upper case."""
        return self.tokens[0].upper()

    @property
    def words(self) -> tuple[str, ...]:
        """The first twelve tokens, in upper case, and two empty ones: at least three in all."""
        first_tokens = [token.upper() for token in self.tokens[:12]]
        return (*first_tokens, "", "")

    def makes_just(self, schema: str) -> bool:
        """It is CREATE SCHEMA or DROP SCHEMA with this name, and nothing else."""
        guard = 2 if self.words[2:4] == ("IF", "EXISTS") else 0
        names = [identifier(token) for token in self.tokens[2 + guard :]]
        return self.words[:2] in _OF_A_SCHEMA and names == [schema]

    @property
    def is_dml(self) -> bool:
        """It is a DML statement (SELECT, INSERT …): it reads or writes rows."""
        return self.keyword in _DML_KEYWORDS

    @property
    def is_meta_command(self) -> bool:
        """It is a psql command (`\\i`, `\\restrict`), not SQL."""
        return self.tokens[0].startswith("\\")

    @property
    def transaction_control(self) -> Optional[str]:
        """`BEGIN`, `COMMIT`, `ROLLBACK` or another word that opens or ends a transaction.

        None for savepoints.
        """
        first, second, third = self.words[:3]
        if (first, second) == ("START", "TRANSACTION"):
            return "BEGIN"
        if (first, second) == ("PREPARE", "TRANSACTION"):
            is_its_name = third in ("AS", "(")  # PREPARE transaction AS SELECT …
            return None if is_its_name else "PREPARE TRANSACTION"
        verb = _TRANSACTION_VERBS.get(first)
        if verb and second == "PREPARED":
            return f"{first} PREPARED"
        is_to_savepoint = first == "ROLLBACK" and "TO" in (second, third)
        return None if is_to_savepoint else verb

    @property
    def setting(self) -> Optional[tuple[str, str]]:
        """Name and value, in lower case and without quotes, of SET name = value or RESET name.

        The value of RESET is empty.
        """
        if self.keyword not in ("SET", "RESET"):
            return None
        words = [identifier(token.strip("'")).lower() for token in self.tokens[1:6]]
        words += ["", "", ""]
        if self.keyword == "RESET":
            return words[0], ""
        if words[0] in ("session", "local"):
            words = words[1:]
        if words[0] == "names":
            return "client_encoding", words[1]
        return words[0], words[2]

    @property
    def is_column_stamp(self) -> bool:
        """It only sets a column's stamp, as pg_dump writes that."""
        sets_only_that = self.tokens[-6:-2] == ("SET", "(", COLUMN_STAMP, "=")
        if not sets_only_that or "," in self.tokens:
            return False
        return self.tokens[0] == "ALTER" and "COLUMN" in self.words

    @property
    def is_session_setting(self) -> bool:
        """It is a `SET` or `RESET` that lasts longer than its transaction."""
        first, second = self.words[:2]
        if first == "SET":
            return second not in ("LOCAL", "CONSTRAINTS", "TRANSACTION")
        return first == "RESET"

    @property
    def creates_session_object(self) -> bool:
        """It creates what ends with the session: a temporary object, or a cursor WITH HOLD."""
        words = self.words
        if words[0] == "DECLARE":
            return "HOLD" in words and "WITHOUT" not in words
        if words[0] != "CREATE":
            return False
        modifiers = words[1:3]
        if modifiers == ("OR", "REPLACE"):
            modifiers = words[3:5]
        return "TEMP" in modifiers or "TEMPORARY" in modifiers

    @property
    def is_guarded(self) -> bool:
        """Running it again changes nothing: IF NOT EXISTS, OR REPLACE, a setting, a GRANT …"""
        words = self.words
        if words[0] != "CREATE":
            return words[0] in ("SET", "COMMENT", "GRANT")
        if words[1:3] == ("OR", "REPLACE"):
            return True
        return any(words[at : at + 3] == _IF_NOT_EXISTS for at in range(1, 6))

    @property
    def created_table(self) -> Optional[Name]:
        """Schema and name of the permanent table that this statement creates."""
        words = self.words
        if words[0] != "CREATE":
            return None
        at = 1
        if words[at] == "UNLOGGED":
            at += 1
        if words[at] != "TABLE":
            return None
        at += 1
        if words[at : at + 3] == _IF_NOT_EXISTS:
            at += 3
        return _qualified_name(self.tokens[at:])

    @property
    def wants_no_transaction(self) -> bool:
        """PostgreSQL refuses it in a transaction, as far as its words tell."""
        if self.keyword == "VACUUM" or self.words[:2] in _NEVER_IN_A_TRANSACTION:
            return True
        return self.target.kind != ""

    @property
    def target(self) -> Target:
        """The object, if PostgreSQL refuses the statement in a transaction; else without a kind."""
        words = self.words
        command = words[:2]
        is_concurrent = "CONCURRENTLY" in (*words, self.tokens[-1].upper())
        target = Target("")
        if command in (("CREATE", "DATABASE"), ("DROP", "DATABASE")):
            target = _database_target(self)
        elif words[0] == "CREATE" and "CONCURRENTLY" in words[2:4] and "ON" in words[3:]:
            target = _new_index_target(self)
        elif words[0] == "REINDEX" and is_concurrent:
            target = _reindex_target(self)
        elif command == ("DROP", "INDEX") and is_concurrent:
            index = _name_as_written(self.tokens[_skip_options(words, 2) :])
            target = Target("DROP INDEX", index, is_concurrent=True)
        elif command == ("ALTER", "TABLE") and is_concurrent and "DETACH" in words:
            target = _detach_target(self)
        return target

    @property
    def copy_stream(self) -> Optional[str]:
        """`STDIN` or `STDOUT` if this is a COPY from or to the client."""
        if self.keyword != "COPY":
            return None
        open_parens = 0
        previous = ""
        for token in self.tokens:
            word = token.upper()
            if word == "(":
                open_parens += 1
            elif word == ")":
                open_parens -= 1
            elif open_parens == 0 and word in ("STDIN", "STDOUT"):
                if previous == "FROM":
                    return "STDIN"
                if previous == "TO":
                    return "STDOUT"
            previous = word
        return None


@dataclass(frozen=True)
class Target:
    """The object of a statement that PostgreSQL refuses in a transaction.

    `on` (a table or an index) and `part` (a partition) are names as they are written; `name` is one
    as PostgreSQL stores it. `columns` are those of an index, with "" for an expression.
    """

    kind: str
    on: str = ""
    part: str = ""
    name: Optional[str] = None
    creates: bool = False
    is_concurrent: bool = False
    columns: tuple[str, ...] = ()
    is_unique: bool = False
    is_partial: bool = False

    @property
    def is_build(self) -> bool:
        """It builds indexes, and leaves an INVALID one if it is interrupted."""
        return self.kind in ("CREATE INDEX", "REINDEX")


# Large files consist of them, and nothing but their first word matters here.
_DML_KEYWORDS = ("INSERT", "SELECT", "UPDATE", "DELETE", "VALUES", "WITH", "MERGE")
_TRANSACTION_VERBS = {
    "BEGIN": "BEGIN",
    "COMMIT": "COMMIT",
    "END": "COMMIT",
    "ROLLBACK": "ROLLBACK",
    "ABORT": "ROLLBACK",
}
_IF_NOT_EXISTS = ("IF", "NOT", "EXISTS")
_NEVER_IN_A_TRANSACTION = (("ALTER", "SYSTEM"), ("CREATE", "TABLESPACE"), ("DROP", "TABLESPACE"))


def _database_target(statement: Statement) -> Target:
    """CREATE DATABASE name, DROP DATABASE IF EXISTS name."""
    at = _skip_options(statement.words, 2)
    name = identifier("".join(statement.tokens[at : at + 1]))
    return Target("DATABASE", name=name, creates=statement.keyword == "CREATE")


def _new_index_target(statement: Statement) -> Target:
    """CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS name ON ONLY table."""
    words = statement.words
    on = words.index("ON", 3)
    name = None
    if words[on - 1] != "CONCURRENTLY":
        name = identifier(statement.tokens[on - 1])
    table = _name_as_written(statement.tokens[_skip_options(words, on + 1) :])
    columns, rest = _index_columns(statement.tokens[on:])
    return Target(
        "CREATE INDEX",
        table,
        name=name,
        creates=True,
        is_concurrent=True,
        columns=columns,
        is_unique=words[1] == "UNIQUE",
        is_partial="WHERE" in [token.upper() for token in rest],
    )


def _index_columns(tokens: Sequence[str]) -> tuple[tuple[str, ...], Sequence[str]]:
    """The columns in the first parentheses, and the tokens after these."""
    columns: list[str] = []
    open_parens = 0
    for at, part in enumerate(tokens):
        if open_parens == 1 and tokens[at - 1] in ("(", ","):
            is_expression = part == "(" or tokens[at + 1 : at + 2] in (("(",), (".",))
            columns.append("" if is_expression else identifier(part))
        if part == "(":
            open_parens += 1
        elif part == ")":
            open_parens -= 1
            if open_parens == 0:
                return tuple(columns), tokens[at + 1 :]
    return tuple(columns), ()


def _reindex_target(statement: Statement) -> Target:
    """REINDEX (VERBOSE) TABLE CONCURRENTLY name; without a name if it is not of one table."""
    name = ""
    for at, word in enumerate(statement.words):
        if word in ("INDEX", "TABLE"):
            name = _name_as_written(statement.tokens[_skip_options(statement.words, at + 1) :])
            break
    return Target("REINDEX", name, is_concurrent=True)


def _detach_target(statement: Statement) -> Target:
    """ALTER TABLE IF EXISTS ONLY table DETACH PARTITION partition CONCURRENTLY."""
    words = statement.words
    table = _name_as_written(statement.tokens[_skip_options(words, 2) :])
    partition = _name_as_written(statement.tokens[words.index("DETACH") + 2 :])
    return Target("DETACH", table, partition)


def _skip_options(words: Sequence[str], at: int) -> int:
    """The index after the words that can precede a name."""
    while at < len(words) and words[at] in ("IF", "NOT", "EXISTS", "ONLY", "CONCURRENTLY"):
        at += 1
    return at


def _name_as_written(tokens: Sequence[str]) -> str:
    """The name that these tokens begin with, with its schema, as it is written."""
    length = 1
    while tokens[length : length + 1] == (".",):
        length += 2
    return "".join(tokens[:length])


def _qualified_name(tokens: Sequence[str]) -> Optional[Name]:
    """schema.name or name, as PostgreSQL stores them; without the database before it."""
    if not tokens:
        return None
    parts = [identifier(tokens[0])]
    for dot, part in zip(tokens[1:4:2], tokens[2:5:2]):
        if dot != ".":
            break
        parts.append(identifier(part))
    if len(parts) == 1:
        return None, parts[0]
    return parts[-2], parts[-1]


def identifier(token: str) -> str:
    """The name as PostgreSQL stores it."""
    if token.startswith('"'):
        return token[1:-1].replace('""', '"')
    # In UTF-8 PostgreSQL folds no other letters.
    return re.sub("[A-Z]+", lambda letters: letters.group().lower(), token)


# --- Scanning -------------------------------------------------------------------------------------


class _Scanner:
    """Goes through a text once, statement by statement, and hashes its tokens if that is wanted."""

    def __init__(
        self, text: str, backslash_escapes: bool = False, token_hash: Optional[_TokenHash] = None
    ) -> None:
        self.text = text
        # standard_conforming_strings is off, as of the next statement
        self.backslash_escapes = backslash_escapes
        self.token_hash = token_hash

    def statements(self, first: int = 0) -> Iterator[Statement]:
        """From the offset `first`, where a statement begins."""
        text = self.text
        offset = counted_to = first
        line = 1 + text.count("\n", 0, first)
        while True:
            start = _skip_gap(text, offset)
            if start >= len(text):
                return
            line += text.count("\n", counted_to, start)
            counted_to = start
            try:
                statement, offset = self._read_statement(start, line)
            except ScanError as exc:
                raise self._blame_unescaped_quote(start, exc) from exc
            if self.token_hash and statement.tokens != (_SEPARATOR,):
                self.token_hash.end_statement()
            if len(statement.tokens) > 1:
                if statement.copy_stream == "STDIN":
                    statement, offset = self._with_rows(statement, offset)
                statement = self._with_string_syntax(statement)
            yield statement

    def _read_statement(self, start: int, line: int) -> tuple[Statement, int]:
        """The statement that begins here, and the offset after its semicolon."""
        kind, offset = read_token(self.text, start, self.backslash_escapes)
        first = self.text[start:offset]
        if first.startswith(_SEPARATOR):
            return Statement(start, start + 1, line, (_SEPARATOR,)), start + len(_SEPARATOR)
        if kind == "meta":
            self._hash_token(first)
            return Statement(start, offset, line, (first,)), offset
        is_dml = first.upper() in _DML_KEYWORDS
        if is_dml and not self.backslash_escapes:
            self._hash_token(first)
            end, after = self._find_end_of_dml(offset)
            return Statement(start, end, line, (first,)), after
        tokens, end, after = self._read_tokens(start)
        return Statement(start, end, line, tuple(tokens)), after

    def _find_end_of_dml(self, offset: int) -> tuple[int, int]:
        """The offsets of the semicolon and after it. The tokens are passed many at a time."""
        text = self.text
        while offset < len(text):
            run = _PLAIN_TOKENS.match(text, offset)
            if run:
                if self.token_hash:
                    self.token_hash.add_plain_tokens(text, offset, run.end())
                offset = run.end()
                if text.startswith(";", offset):
                    return offset, offset + 1
                continue
            start = offset
            kind, offset = read_token(text, start, self.backslash_escapes)
            if kind == "semicolon":
                return start, offset
            if kind == "meta":
                return self._end_at_separator(start)
            if kind != "space":
                self._hash_token(text[start:offset])
        return len(text), offset

    def _read_tokens(self, offset: int) -> tuple[list[str], int, int]:
        """The tokens up to the end of the statement; the offsets of its semicolon and after it.

        A semicolon in parentheses or in a body is not the end.
        """
        text = self.text
        tokens: list[str] = []
        open_parens = 0
        open_bodies = 0
        while offset < len(text):
            start = offset
            kind, offset = read_token(text, start, self.backslash_escapes)
            if kind == "space":
                continue
            if kind == "semicolon" and open_parens <= 0 and open_bodies == 0:
                return tokens, start, offset
            if kind == "meta":
                return tokens, *self._end_at_separator(start)
            token = text[start:offset]
            self._hash_token(token)
            tokens.append(token)
            if kind == "open":
                open_parens += 1
            elif kind == "close":
                open_parens -= 1
            elif kind == "word" and open_parens <= 0 and token.upper() in _BODY_WORDS:
                open_bodies = _count_open_bodies(open_bodies, tokens, token.upper())
        return tokens, len(text), offset

    def _end_at_separator(self, offset: int) -> tuple[int, int]:
        """A \\; ends the statement, and is one of its own: its backslash is not sent."""
        if self.text.startswith(_SEPARATOR, offset):
            return offset, offset
        raise ScanError(_COMMAND_INSIDE, offset)

    def _hash_token(self, token: str) -> None:
        if self.token_hash:
            self.token_hash.add(token)

    def _with_rows(self, statement: Statement, offset: int) -> tuple[Statement, int]:
        """The COPY with the range of its rows, and the offset after them.

        They begin on the next line and end with a line that is only \\., or with the text.
        """
        text = self.text
        rest_of_line = _REST_OF_LINE.match(text, offset)
        if rest_of_line is None:
            raise ScanError(_ROWS_ON_THE_SAME_LINE, offset)
        start = rest_of_line.end()
        # Many rows have no backslash, and finding one character is ten times faster than a regex.
        first_backslash = text.find("\\", start)
        closing = _END_OF_ROWS.search(text, max(start, first_backslash) - 1)
        if closing:
            end = closing.start() + 1
            after = closing.end()
        else:
            end = len(text)
            after = len(text)
        if self.token_hash:
            self.token_hash.add_as_written(text, start, end)
        return replace(statement, data=(start, end)), after

    def _with_string_syntax(self, statement: Statement) -> Statement:
        """Note it if the statement changes how the strings after it are read."""
        if statement.setting is None:
            return statement
        name, value = statement.setting
        if name == "backslash_quote":
            return replace(statement, changes_string_syntax=True)
        if name not in ("standard_conforming_strings", "all"):
            return statement
        before = self.backslash_escapes
        self.backslash_escapes = _is_off(value)
        return replace(statement, changes_string_syntax=self.backslash_escapes != before)

    def _blame_unescaped_quote(self, start: int, error: ScanError) -> ScanError:
        """The place of a quote like the one in 'don't', which makes a later one stay open.

        That is the end of the first string that a letter follows.
        """
        offset = start
        while offset < error.offset and self.text.startswith("'", error.offset):
            kind, end = read_token(self.text, offset, self.backslash_escapes)
            if kind == "string" and _STARTS_WORD.match(self.text, end):
                return ScanError("a quote inside a string is written twice ('')", end - 1)
            offset = end
        return error


def _skip_gap(text: str, offset: int) -> int:
    """The offset after white space, comments and lone semicolons."""
    while True:
        gap = _GAP.match(text, offset)
        if gap:
            offset = gap.end()
        elif text.startswith("/*", offset):
            offset = _end_of_block_comment(text, offset, offset + 2)
        else:
            return offset


_BODY_WORDS = frozenset(["BEGIN", "CASE", "END"])


def _count_open_bodies(count: int, tokens: Sequence[str], word: str) -> int:
    """How many BEGIN and CASE wait for their END after this word; semicolons inside do not count.

    The rule is psql's, for SQL-standard bodies: only in CREATE FUNCTION or CREATE PROCEDURE.
    """
    if not _creates_routine(tokens):
        return count
    if word == "BEGIN":
        return count + 1
    if count == 0:  # CASE and END outside of a body
        return 0
    if word == "CASE":
        return count + 1
    return count - 1


def _creates_routine(tokens: Sequence[str]) -> bool:
    words = [token.upper() for token in tokens[:4]]
    if words[1:3] == ["OR", "REPLACE"]:
        del words[1:3]
    return words[:2] in (["CREATE", "FUNCTION"], ["CREATE", "PROCEDURE"])


def _is_off(value: str) -> bool:
    """PostgreSQL takes any beginning of false and no, and two letters of off."""
    if value == "":
        return False
    return value in ("0", "of", "off") or "false".startswith(value) or "no".startswith(value)


# --- Tokens ---------------------------------------------------------------------------------------

# PostgreSQL's white space (\v since 16). A no-break space is none: it is a letter of an identifier.
_SPACE = r"[ \t\n\r\f\v]"
# Classes of what they are not: Python takes a hundred times longer to compile one up to \U0010FFFF.
_LETTER = r"[^\x00-@\[-^`{-\x7f]"
_LETTER_OR_DIGIT = r"[^\x00-/:-@\[-^`{-\x7f]"
_WORD = rf"{_LETTER}[^\x00-#%-/:-@\[-^`{{-\x7f]*"  # letters, digits and dollar signs
_STARTS_WORD = re.compile(_LETTER)
SETS_STRING_SYNTAX = re.compile(r"standard_conforming_strings", re.IGNORECASE)

_TOKEN = re.compile(
    rf"""
      (?P<space>{_SPACE}+)
    | (?P<line_comment>--[^\n\r]*)
    | (?P<block_comment>/\*)
    | (?P<escape_string>[eE]')
    | (?P<string>[nN]?')
    | (?P<bit_or_unicode_string>(?:[bBxX]|[uU]&)')
    | (?P<quoted_name>(?:[uU]&)?")
    | (?P<dollar_string>\$(?:{_LETTER}{_LETTER_OR_DIGIT}*)?\$)
    | (?P<word>{_WORD})
    | (?P<number>[0-9]+|\$[0-9]+)
    | (?P<semicolon>;)
    | (?P<open>\()
    | (?P<close>\))
    | (?P<meta>\\[^\n\r]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
# Many tokens at a time: those that mean the same everywhere while standard_conforming_strings is
# on. Each alternative is known by its first character, so nothing is tried twice; the bound keeps
# the regex engine's own memory small.
_PLAIN_TOKENS = re.compile(
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
_PLAIN_TOKEN = re.compile(
    rf"""{_SPACE}+|--[^\n\r]*|({_WORD}|[0-9]+|'[^']*'(?:'[^']*')*|"[^"]*"|.)""", re.DOTALL
)
_GAP = re.compile(r"(?:[ \t\n\r\f\v;]+|--[^\n\r]*){1,250}")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ESCAPE_OR_QUOTE = re.compile(r"\\.|''|'", re.DOTALL)
# A literal goes on in the next one after a line end; E'' keeps its backslashes special there.
_CONTINUED_STRING = re.compile(
    r"[ \t\f\v]*(?:--[^\n\r]*)?[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*'"
)
_END_OF_ROWS = re.compile(r"\n\\\.\r?(?:\n|\Z)")
_REST_OF_LINE = re.compile(r"(?:[ \t\f\v]|/\*(?:[^*\n]|\*(?!/))*\*/)*(?:--[^\n\r]*)?\r?(?:\n|\Z)")

_SEPARATOR = "\\;"  # as psql writes ; between the statements of one message
_COMMAND_INSIDE = "a backslash outside quotes is a command of psql; end the statement with ;"
_ROWS_ON_THE_SAME_LINE = (
    "the rows of COPY … FROM STDIN begin on the next line: move what follows the ;"
)


def read_token(text: str, offset: int, backslash_escapes: bool) -> tuple[str, int]:
    """Kind (a group of _TOKEN) and end of the token at `offset`; comments are "space".

    `backslash_escapes`: standard_conforming_strings is off.
    """
    match = _TOKEN.match(text, offset)
    if match is None or match.lastgroup is None:
        raise AssertionError("_TOKEN matches any character")
    kind = match.lastgroup
    if kind == "string" and backslash_escapes:
        kind = "escape_string"
    if kind == "other" and match.group() == "$":
        raise ScanError(
            "a lone $: a body is written between $$ and $$, or between $name$ and $name$", offset
        )
    end = match.end()
    if kind in _FIND_END:
        end = _FIND_END[kind](text, offset, end)
    if kind in ("line_comment", "block_comment"):
        return "space", end
    return kind, end


def _end_of_block_comment(text: str, start: int, offset: int) -> int:
    depth = 1
    while depth > 0:
        edge = _COMMENT_EDGE.search(text, offset)
        if edge is None:
            raise ScanError("this /* comment is never closed", start)
        if edge.group() == "/*":
            depth += 1
        else:
            depth -= 1
        offset = edge.end()
    return offset


def _end_of_quotes(text: str, start: int, offset: int) -> int:
    """The offset after the closing quote; a doubled quote is a character."""
    quote = text[offset - 1]
    while True:
        found = text.find(quote, offset)
        if found < 0:
            what = "quoted name" if quote == '"' else "string"
            raise ScanError(
                f"this {what} is never closed (a {quote} inside it is written twice)", start
            )
        if not text.startswith(quote, found + 1):
            return found + 1
        offset = found + 2


def _end_of_escape_string(text: str, start: int, offset: int) -> int:
    """The offset after the closing quote of E'…', which can continue on the next line."""
    while True:
        found = _ESCAPE_OR_QUOTE.search(text, offset)
        if found is None:
            raise ScanError("this string with backslashes is never closed", start)
        offset = found.end()
        if found.group() == "'":
            continued = _CONTINUED_STRING.match(text, offset)
            if continued is None:
                return offset
            offset = continued.end()


def _end_of_dollar_string(text: str, start: int, offset: int) -> int:
    tag = text[start:offset]
    closing = text.find(tag, offset)
    if closing < 0:
        raise ScanError(f"the body that {tag} opens is never closed by another {tag}", start)
    return closing + len(tag)


# By kind of token: where it ends, from its start and the offset after its opening.
_FIND_END: Mapping[str, Callable[[str, int, int], int]] = {
    "block_comment": _end_of_block_comment,
    "string": _end_of_quotes,
    "bit_or_unicode_string": _end_of_quotes,
    "quoted_name": _end_of_quotes,
    "escape_string": _end_of_escape_string,
    "dollar_string": _end_of_dollar_string,
}


def first_string_offset(text: str, start: int) -> int:
    """The offset of the first string in the statement that begins at `start`: a DO block's body."""
    offset = start
    while offset < len(text):
        kind, end = read_token(text, offset, backslash_escapes=False)
        if kind in ("dollar_string", "string", "escape_string"):
            return offset
        offset = end
    return start


# --- Checksums ------------------------------------------------------------------------------------


class _TokenHash:
    """The checksum of a text, token by token as the scanner passes them."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._digest = hashlib.sha256()

    def checksum(self) -> str:
        return self.algorithm + self._digest.hexdigest()

    def add(self, token: str) -> None:
        self._update(token + "\0")

    def add_plain_tokens(self, text: str, start: int, end: int) -> None:
        """What _PLAIN_TOKENS has found."""
        if self.algorithm == LONG and text.find("\r", start, end) < 0:
            self.add_as_written(text, start, end)
        elif self.algorithm == LONG:
            self._update(text[start:end])
        else:
            tokens = filter(None, _PLAIN_TOKEN.findall(text, start, end))
            self._update("\0".join(tokens) + "\0")

    def end_statement(self) -> None:
        self._update("\0;\0")

    def add_as_written(self, text: str, start: int, end: int) -> None:
        """Such as the rows of a COPY; a million characters at a time."""
        for offset in range(start, end, 1 << 20):
            part = text[offset : min(offset + (1 << 20), end)]
            self._digest.update(part.encode())

    def _update(self, text: str) -> None:
        if "\r" in text:
            text = _with_unix_line_ends(text)
        self._digest.update(text.encode())


def _default_algorithm(text: str) -> str:
    return LONG if len(text) > ONE_MESSAGE else TOKENS


def _plain_checksum(text: str) -> str:
    digest = hashlib.sha256(_with_unix_line_ends(text).encode())
    return PLAIN + digest.hexdigest()


def _with_unix_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- Reading a script -----------------------------------------------------------------------------

_MARK = re.compile(r"^[ \t]*--[ \t]*no-transaction\b", re.MULTILINE | re.IGNORECASE)
# RESET leaves a setting of one's own defined but empty; a new session does not know it.
CUSTOM_SETTING = re.compile(
    r"""\bset_config\s*\(\s*'[^']*\.|\bSET\s+(?:LOCAL\s+|SESSION\s+)?"?\w+"?\s*\.""", re.IGNORECASE
)
_TRANSACTION_SETTINGS = ("transaction", "transaction_isolation", "transaction_deferrable")
# What pg_dump of a newer major version writes at the beginning, and the first server version that
# knows it.
_SETTINGS_SINCE = {"transaction_timeout": 170000}
# A server of November 2026 or newer stamps each column with it, and ignores it in SET; older ones
# refuse it. A pg_dump of an older minor version writes the stamps into its dump.
COLUMN_STAMP = "pg_attver"
THE_SCHEMA = "CREATE SCHEMA"
_OF_A_SCHEMA = (("CREATE", "SCHEMA"), ("DROP", "SCHEMA"))
_CREATES_SCHEMA = re.compile(r"(?i)\bCREATE\s+SCHEMA\b")
_STRING_SYNTAX_SETTINGS = re.compile("standard_conforming_strings|backslash_quote", re.IGNORECASE)
# pg_dump writes BEGIN before this, and COMMIT after the bytes of the large object.
_LARGE_OBJECT = re.compile(r";\s*SELECT pg_catalog\.lo_open\(")


class _Survey:
    """What read_script has to know about the statements of a file; collected in one pass."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.count = 0  # without idle commands
        self.opening: list[Statement] = []  # the first eight
        self.last_work: Optional[Statement] = None  # which no BEGIN or COMMIT is
        self.notable: list[Statement] = []  # transaction control, and what ends with the session
        self.idle_commands: list[Statement] = []
        self.created_tables: dict[Name, int] = {}
        self.needs_pieces = False
        self.has_ddl = False
        self.string_syntax_changed = False  # a setting has changed how strings are read

    def of(self, statements: Iterable[Statement]) -> Iterator[Statement]:
        """Pass the statements on, noting what they are; raises ScanError for what cannot work."""
        for statement in statements:
            if _is_idle_command(statement, self.text):
                self.idle_commands.append(statement)
            else:
                self._note(statement)
            yield statement

    def _note(self, statement: Statement) -> None:
        self.count += 1
        if len(self.opening) < 8:
            self.opening.append(statement)
        if statement.keyword in ("SELECT", "WITH", "DO", "CALL"):
            self._check_calls(statement)
        if not statement.transaction_control:
            self.last_work = statement
        if statement.is_dml:
            return
        refusal = _why_refused(statement, self.text)
        if refusal:
            raise ScanError(refusal, statement.start)
        self.has_ddl = self.has_ddl or statement.keyword in ("CREATE", "ALTER", "DROP")
        if statement.transaction_control or statement.creates_session_object:
            self.notable.append(statement)
        table = statement.created_table
        if table:
            self.created_tables.setdefault(table, statement.start)
        if statement.data or statement.changes_string_syntax:
            self.needs_pieces = True
        if statement.changes_string_syntax:
            self.string_syntax_changed = True
        # Nothing here tells whether a ROLLBACK undoes the setting.
        if self.string_syntax_changed and statement.keyword == "ROLLBACK":
            raise ScanError(_UNFOLLOWED.format("this ROLLBACK TO"), statement.start)

    def _check_calls(self, statement: Statement) -> None:
        """Refuse set_config('standard_conforming_strings', …): only the server knows the value."""
        if _STRING_SYNTAX_SETTINGS.search(self.text, statement.start, statement.end):
            raise ScanError(_UNFOLLOWED.format("this statement"), statement.start)

    def has_no_transaction_mark(self) -> bool:
        """A comment before the first statement says -- no-transaction."""
        leading_comments = self.text
        if self.opening:
            leading_comments = self.text[: self.opening[0].start]
        return _MARK.search(leading_comments) is not None

    def controls(self) -> list[Statement]:
        return [statement for statement in self.notable if statement.transaction_control]

    def first_offset(self, left_out: Sequence[Statement]) -> int:
        """Where the first statement begins that is sent; 0 if there is none."""
        for statement in self.opening:
            if statement not in left_out:
                return statement.start
        if self.opening:
            return self.opening[0].start
        return 0


def in_pieces(statements: Iterable[Statement]) -> Iterator[Piece]:
    """Join consecutive statements into pieces of up to about 256,000 characters.

    Alone goes a COPY, what may be left out, and what changes how the rest is read.
    """
    joined: Optional[Piece] = None
    for statement in statements:
        is_alone = _goes_alone(statement)
        if joined and (is_alone or statement.end - joined.start > _PIECE):
            yield joined
            joined = None
        if is_alone:
            yield _piece_of(statement)
        elif joined:
            joined = Piece(joined.start, statement.end)
        else:
            joined = Piece(statement.start, statement.end)
    if joined:
        yield joined


def _piece_of(statement: Statement) -> Piece:
    return Piece(statement.start, statement.end, statement.data)


def _goes_alone(statement: Statement) -> bool:
    if statement.is_dml:
        return False
    changes_what_follows = statement.data or statement.changes_string_syntax
    if changes_what_follows or statement.is_meta_command or statement.is_column_stamp:
        return True
    if statement.transaction_control or statement.words[:2] in _OF_A_SCHEMA:
        return True
    if statement.setting is None:
        return False
    name = statement.setting[0]
    return name in _TRANSACTION_SETTINGS or name in _SETTINGS_SINCE


# --- The transactions of a file -------------------------------------------------------------------


def _commit_in_between(survey: _Survey) -> Optional[Statement]:
    """The first COMMIT with statements after it: there the file ends its transaction by itself.

    psql -1 has opened one around the file, so a BEGIN within it means nothing until then. Raises
    ScanError for what would undo statements, or begin in another way than psql would.
    """
    large_objects = _large_object_transactions(survey)
    opening = _before_the_work(survey)
    end = survey.last_work.start if survey.last_work else 0
    commits = []
    is_open = True
    for control in survey.controls():
        if control in large_objects:
            continue
        verb = control.transaction_control
        if verb not in ("BEGIN", "COMMIT"):
            raise ScanError(_ROLLBACK_REFUSAL.format(control.words[0]), control.start)
        begins_late = verb == "BEGIN" and is_open and control not in opening
        if begins_late and opening_modes(control):
            raise ScanError(_MODES_REFUSAL, control.start)
        is_open = verb == "BEGIN" or chains(control)
        if verb == "COMMIT" and control.start < end:
            commits.append(control)
    return commits[0] if commits else None


def _before_the_work(survey: _Survey) -> list[Statement]:
    """What the file opens with: settings and BEGIN."""
    found = []
    for statement in survey.opening:
        if not statement.is_session_setting and statement.transaction_control is None:
            break
        found.append(statement)
    return found


def _own_transaction(survey: _Survey) -> tuple[str, list[Statement]]:
    """How the file's transaction begins, and the statements that are left out for it.

    Its BEGIN and COMMIT ask for what happens anyway. Their modes, and those of a leading SET
    TRANSACTION, have to come before our savepoint: after it PostgreSQL answers 25001. pg_dump's
    transactions around large objects are left out, too.
    """
    replaced = survey.controls()
    begin = ["BEGIN"]
    if replaced and replaced[0] in _before_the_work(survey):
        begin += opening_modes(replaced[0])
    for statement in _leading_set_transactions(survey, replaced):
        replaced.append(statement)
        begin += [";", *statement.tokens]
    if "ONLY" in [token.upper() for token in begin]:
        raise ScanError(_READ_ONLY, replaced[0].start)
    return " ".join(begin), replaced


def _large_object_transactions(survey: _Survey) -> list[Statement]:
    """The BEGIN and COMMIT around each large object of a pg_dump."""
    controls = survey.controls()
    found = []
    for control, following in zip(controls, controls[1:]):
        if _LARGE_OBJECT.match(survey.text, control.end):
            found += [control, following]
    return found


def _leading_set_transactions(survey: _Survey, replaced: list[Statement]) -> list[Statement]:
    """SET TRANSACTION at the beginning of the file, among other settings or after its BEGIN."""
    found = []
    for statement in survey.opening:
        if statement in replaced:
            continue
        if statement.setting is None:
            break
        if statement.setting[0] in _TRANSACTION_SETTINGS:
            found.append(statement)
    return found


def opening_modes(statement: Statement) -> list[str]:
    """What a BEGIN says about its transaction, such as ISOLATION LEVEL SERIALIZABLE."""
    return [token for token in statement.tokens[1:] if token.upper() not in ("WORK", "TRANSACTION")]


def chains(statement: Statement) -> bool:
    """COMMIT AND CHAIN opens the next transaction."""
    return "CHAIN" in statement.words and "NO" not in statement.words


def _check_own_transactions(notable: list[Statement]) -> None:
    """Check a file marked -- no-transaction: BEGIN and COMMIT come in pairs.

    A COMMIT with nothing open is harmless, as in psql. What ends with the session is only possible
    between BEGIN and COMMIT: if the run is interrupted, the next one needs it again.
    """
    opened: Optional[Statement] = None
    for statement in notable:
        if statement.creates_session_object:
            if opened is None:
                raise ScanError(_FLEETING.format(statement.words[0]), statement.start)
            continue
        control = statement.transaction_control
        is_nested = control == "BEGIN" and opened is not None
        if control not in ("BEGIN", "COMMIT") or chains(statement) or is_nested:
            first_words = " ".join(statement.tokens[:3]).upper()
            raise ScanError(_PAIR_REFUSAL.format(first_words), statement.start)
        opened = statement if control == "BEGIN" else None
    if opened:
        raise ScanError(_PAIR_REFUSAL.format("BEGIN without COMMIT"), opened.start)


# --- What cannot be part of a file ----------------------------------------------------------------

_ROLLBACK_REFUSAL = (
    "{} would undo what precedes it in the file, which would be recorded all the same: "
    "remove it, or write ROLLBACK TO a savepoint"
)
_MODES_REFUSAL = (
    "this BEGIN is inside a transaction, whose modes it cannot choose any more: remove them"
)
_READ_ONLY = "a READ ONLY transaction cannot record that this file is applied: remove READ ONLY"
_PAIR_REFUSAL = (
    "{}: in a file marked -- no-transaction only BEGIN and COMMIT in pairs are possible, around "
    "what belongs together"
)
_FLEETING = (
    "this {} creates something that is gone if a run is interrupted, "
    "and the next run continues after it: write BEGIN above it and COMMIT below its last use"
)
_UNFOLLOWED = (
    "{} changes how strings are read, which cannot be followed: write SET "
    "standard_conforming_strings = … instead"
)
_UTF8_NAMES = ("utf8", "unicode", "sqlascii", "default", "")
_INSTEAD_OF_COMMANDS = (
    (
        ("\\i", "\\ir", "\\include", "\\include_relative"),
        "put the SQL of that file here, or into a migration of its own",
    ),
    (("\\c", "\\connect"), "a migration stays in its database; remove it"),
    (
        ("\\copy",),
        "write INSERT, or COPY … FROM STDIN with its rows after it and a line \\. at the end",
    ),
    (
        ("\\set", "\\unset", "\\gset", "\\prompt", "\\getenv"),
        "variables of psql do not exist here; write the value itself",
    ),
    (("\\g", "\\gx"), "end the statement with ;"),
    (("\\gexec",), "write a DO block with EXECUTE"),
    (("\\if", "\\elif", "\\else", "\\endif"), "write a DO block with IF"),
    (("\\echo", "\\qecho", "\\warn"), "write a DO block with RAISE NOTICE"),
    (("\\encoding",), "save the file as UTF-8 and remove it"),
)


_ON: list[list[str]] = [[], ["on"], ["1"], ["true"]]
_OFF = [["off"], ["0"], ["false"]]
# The variables that tell psql how to run a file, with the values that mean what happens here.
_PSQL_SETTINGS = {
    "ON_ERROR_STOP": _ON,
    "AUTOCOMMIT": _ON,
    "ON_ERROR_ROLLBACK": _OFF,
    "SINGLELINE": _OFF,
    "SINGLESTEP": _OFF,
}


def _is_idle_command(statement: Statement, text: str) -> bool:
    """A psql command that changes nothing here.

    pg_dump's \\restrict, \\; for ; and variables that the file does not use.
    """
    if not statement.is_meta_command:
        return False
    command, *arguments = [word.strip("'") for word in statement.tokens[0].split()]
    if command in ("\\set", "\\unset") and arguments:
        variable = arguments[0]
        if variable in _PSQL_SETTINGS:
            values = [argument.lower() for argument in arguments[1:]]
            return command == "\\set" and values in _PSQL_SETTINGS[variable]
        return not _uses_variable(text, variable)
    return command in ("\\restrict", "\\unrestrict", _SEPARATOR)


def _uses_variable(text: str, name: str) -> bool:
    """:name, :'name', :"name" or :{?name}."""
    name = re.escape(name)
    return re.search(rf"""(?<!:):(?:{name}\b|'{name}'|"{name}"|\{{\?{name}\}})""", text) is not None


def _why_refused(statement: Statement, text: str) -> Optional[str]:
    """Why this statement cannot be part of a script."""
    if statement.is_meta_command:
        return _instead_of_command(statement)
    control = statement.transaction_control
    if control and control.split()[-1] in ("PREPARED", "TRANSACTION"):
        return f"{control} is not possible here: a prepared transaction would outlive the run"
    if statement.copy_stream == "STDOUT":
        return "COPY … TO STDOUT has no one to write to: remove it"
    if statement.setting and statement.setting[0] == "client_encoding":
        encoding = statement.setting[1]
        is_utf8 = re.sub(r"[-_ ]", "", encoding) in _UTF8_NAMES
        if not is_utf8 and not text.isascii():
            return (
                f"this file says that it is in {encoding}, but it is read as UTF-8: save it as "
                "UTF-8 and remove this"
            )
    return None


def _instead_of_command(statement: Statement) -> str:
    command = statement.tokens[0].split()[0]
    instead = "remove it"
    for commands, advice in _INSTEAD_OF_COMMANDS:
        if command in commands:
            instead = advice
    return f"{command} is a command of psql, not SQL: {instead}"

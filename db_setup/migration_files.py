"""The files in `migrations/`: which there are, their texts, checksums and scripts.

Knows no database and no AWS. What is wrong with a file's text is a MigrationError that begins with
file:line:column.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import failures
import file_names
import sql_scanner
from common import MEMORY_OF_A_RUN_MB, MigrationError
from file_names import Version, version_of
from sql_scanner import Name, Script

BLOCK = 1 << 18  # bytes of a file that are read at a time
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of a character in UTF-8 after its first
# By the bytes that Python takes for a character: those that it needs to read one.
COPIES_OF_TEXT = {1: 1, 2: 3, 4: 5}


# --- The folder -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Migration:
    """A file. Its name, without `.sql`, is its identity; leading digits are its number."""

    path: Path
    name: str

    @cached_property
    def number(self) -> Optional[int]:
        return file_names.number_of(self.name)

    @cached_property
    def version(self) -> Optional[Version]:
        return version_of(self.name)

    @cached_property
    def is_repeatable(self) -> bool:
        return file_names.is_repeatable(self.name)

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes as they were when the run first read them; see read_text."""
        digest = hashlib.sha256()
        with _opened(self) as file:
            for block in _blocks(file):
                digest.update(block)
        return digest.hexdigest()


def up_to(files: Sequence[Migration], name: str) -> Sequence[Migration]:
    """The files up to the one of this name, which may have its ending; none where there is none.

    A repeatable file is none of them: it runs wherever it has not.
    """
    for number, file in enumerate(files, 1):
        if name in (file.name, file_names.normal(file.path.name)) and not file.is_repeatable:
            return files[:number]
    return ()


def load_migrations(folder: Path, problems: list[str], warnings: list[str]) -> list[Migration]:
    """The migration files in the order in which they run.

    What looks like a migration but is not run is added to `problems` or, where it may be meant, to
    `warnings`.
    """
    if not folder.is_dir():
        problems.append("the folder migrations/ is missing next to initializer.py")
        return []
    files: dict[str, Migration] = {}
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        name = file_names.normal(path.name)
        if path.is_dir() or not name.lower().endswith(".sql") or name.startswith("."):
            others.append(path)
        elif not _DOWN_FILE.search(name):
            _add(Migration(path, name[: -len(".sql")]), files, problems)
    for text, may_be_meant in _not_run(folder, others, files):
        (warnings if may_be_meant else problems).append(text)
    problems.extend(_undoing(files))
    return sorted(files.values(), key=lambda file: file_names.order(file.name))


def _add(file: Migration, files: dict[str, Migration], problems: list[str]) -> None:
    shown = file.path.name
    if not shown.isprintable():
        problems.append(f"{shown!r}: a name is printable and in UTF-8: rename it")
        return
    why_not = _not_a_file(file.path)
    if why_not:
        problems.append(f"{shown} {why_not}")
        return
    other = files.get(file.name)
    if other:
        problems.append(f"{shown} and {other.path.name} have the same name: rename one of them")
    files[file.name] = file


def _not_a_file(path: Path) -> str:
    """Why a path cannot be read as a file; empty where it can."""
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        if path.is_symlink():
            target = os.readlink(path)
            return f"is a link to {target}, which cannot be followed: put the file itself here"
        return f"cannot be read: {exc.strerror}"
    return "" if stat.S_ISREG(mode) else "is not a regular file: put the file itself here"


ONLY_SQL = "looks like a migration, but only *.sql is run: rename it, or take it out of migrations/"
_DOWN_FILE = re.compile(r"(^|\.)down\.sql$", re.IGNORECASE)
_SQL_FILES = "*.[sS][qQ][lL]"
DUMP = "-- db_setup dump of migrations "  # with what a dump of the schema begins
_DATA = re.compile(r".*\.(md|rst|adoc|html?|pdf|png|svg|jpe?g|csv|tsv|dat|json)", re.IGNORECASE)
# Names of files that are not run, what is said of one, and whether it may be meant so; the first
# that applies counts. Editors and people leave files aside.
_NAMES_NOT_RUN = (
    (r"\.[^\W_].*\.sql", "{} is hidden, and not run", True),
    (r"\..*", "", True),
    (
        r".+\.sql(~|\.(bak|old|orig|rej|sw[op]|tmp|save"
        r"|off|disabled?|skip|ignored?|draft|wip|example|sample|dist))",
        "{} is not run, for it does not end in .sql",
        True,
    ),
    (r".+\.sql\s+", "{!r} does not end in .sql, but in a blank: rename it", False),
    (r".+\.sql[^a-z0-9].*", f"{{}} {ONLY_SQL}", False),
    (r".+\.(psql|pgsql|plpgsql|pg|sqll?|ddl|dml)", f"{{}} {ONLY_SQL}", False),
)
# Names of files that undo, repeat or accompany others in other tools; the name of such another
# file, without which the first is taken as it is; and what is said.
_NAMES_OF_OTHER_TOOLS = (
    (
        r"(?i)(.+)([-_.])(?:down|undo|rollback|revert)((?:[-_.].*)?)",
        r"(?i){0}(?:{1}(?:up|do|deploy|apply|migrate))?{2}",
        "undoes another file",
    ),
    (r"U([0-9._]+)__.*", r"V{0}__.*", "undoes V{0}"),
    (r"B([0-9._]+)__.*", r"V{0}__.*", "repeats V{0}"),
    (r"(?:before|after)(?:Each)?[A-Z].*", r"V[0-9._]+__.*", "is a callback of Flyway"),
)


def _not_run(
    folder: Path, others: Sequence[Path], files: Mapping[str, Migration]
) -> Iterator[tuple[str, bool]]:
    """What to say of files and sub-folders that are not run, and whether that may be meant."""
    for path in others:
        name = path.name
        if path.is_dir():
            yield from _in_sub_folder(path, files)
            continue
        known = (row for row in _NAMES_NOT_RUN if re.fullmatch(row[0], name, re.IGNORECASE))
        _, text, may_be_meant = next(known, ("", "", True))
        is_data = bool(files) and _DATA.fullmatch(name) is not None
        if not text and version_of(name) and not is_data:
            yield f"{name} {ONLY_SQL}", False
        elif text:
            yield text.format(name), may_be_meant
    home = folder.parent
    if (home / "initializer.py").is_file():
        text = "{} is next to migrations/, not in it, and is not run: move it"
        for path in sorted(home.glob(_SQL_FILES)):
            if not is_dump(path):
                yield text.format(path.name), version_of(path.name) is None
        # The first file of each folder.
        found = {path.parent: path for path in sorted(home.glob(f"*/{_SQL_FILES}"), reverse=True)}
        for path in found.values():
            is_numbered = version_of(path.name) is not None
            if path.parent != folder and (is_numbered or not files):
                yield text.format(path.relative_to(home)), bool(files) or not is_numbered


def is_dump(path: Path) -> bool:
    """The terminal's `dump` has written it, for people to read."""
    with suppress(OSError), path.open("rb") as file:
        return bool(file.read(len(DUMP)) == DUMP.encode())
    return False


def _in_sub_folder(path: Path, files: Mapping[str, Migration]) -> Iterator[tuple[str, bool]]:
    found = (file.relative_to(path) for file in path.rglob(_SQL_FILES) if not file.is_dir())
    inside = min((file for file in found if not _DOWN_FILE.search(file.name)), default=None)
    if inside is None:
        return
    holds_them_all = version_of(inside.name) is not None and not any(map(version_of, files))
    may_be_meant = bool(files) and version_of(path.name) is None and not holds_them_all
    name = file_names.normal(path.name)
    yield (
        f"migrations/{name}/ is not looked into, but holds {inside}: only files in migrations/ "
        "itself are run",
        may_be_meant,
    )


def _undoing(files: Mapping[str, Migration]) -> Iterator[str]:
    """The files that undo another one, as some tools' names tell: they would run as well."""
    for name, file in files.items():
        for pattern, of_other, what in _NAMES_OF_OTHER_TOOLS:
            found = re.fullmatch(pattern, name)
            if found is None:
                continue
            other = re.compile(of_other.format(*map(re.escape, found.groups())))
            if any(map(other.fullmatch, files)):
                does = what.format(*found.groups())
                yield f"{file.path.name} {does}, and would run as well: take it out of migrations/"
                break


# --- Texts ----------------------------------------------------------------------------------------


@contextmanager
def _opened(migration: Migration) -> Iterator[Any]:
    """The file, open for reading; raises MigrationError where that is impossible."""
    try:
        with migration.path.open("rb") as file:
            yield file
    except OSError as exc:
        complaint = f"{migration.path.name} cannot be read: {exc.strerror}"
        raise MigrationError(complaint, "Invoke again when it can") from exc


def read_text(migration: Migration) -> str:
    """The file's text without BOM, the same one however often a run reads it.

    Raises MigrationError where the file has changed in between, and with the place where it is not
    UTF-8 or holds a NUL.
    """
    name = migration.path.name
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    text = ""
    with _opened(migration) as file:
        if os.fstat(file.fileno()).st_size > sql_scanner.ONE_MESSAGE:
            _refuse_beyond_memory(migration, _memory_to_decode(_blocks(file)))
            file.seek(0)
        try:
            for block in _blocks(file):
                digest.update(block)
                text += decoder.decode(block)  # in place: a copy of a long one would be felt
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as exc:
            before = text + exc.object[: exc.start].decode()
            line, column = sql_scanner.locate(before, len(before))
            raise MigrationError(
                f"{name}:{line}:{column}: byte 0x{exc.object[exc.start]:02x} is not UTF-8",
                "Save the file as UTF-8 and deploy again",
            ) from exc
    # The dictionary is where cached_property keeps what the run first read, which is recorded.
    if vars(migration).setdefault("sha256", digest.hexdigest()) != digest.hexdigest():
        raise MigrationError(
            f"{name}: it was changed while this run read it, so it is not applied",
            "Invoke again when nobody writes to it",
        )
    if "\0" in text:
        line, column = sql_scanner.locate(text, text.index("\0"))
        raise MigrationError(
            f"{name}:{line}:{column}: a NUL character, which PostgreSQL cannot take",
            "Remove it (the file may be UTF-16: save it as UTF-8) and deploy again",
        )
    return text


def _blocks(file: Any) -> Iterator[bytes]:
    return iter(lambda: file.read(BLOCK), b"")


def _memory_to_decode(blocks: Iterable[bytes]) -> int:
    """Bytes. Python takes as many for each character as the widest one needs.

    Where it comes upon a wider one, it makes a copy of what it has.
    """
    width = 1
    characters = 0
    for block in blocks:
        characters += len(block.translate(None, CONTINUATION))
        if width < 4 and re.search(b"[\xf0-\xff]", block):
            width = 4
        elif width < 2 and re.search(b"[\xc4-\xff]", block):
            width = 2
    return characters * COPIES_OF_TEXT[width]


def _memory_to_send(script: Script, file_size: int) -> int:
    """Bytes. A long statement is held three times while it is sent, by psycopg2 and twice by libpq,
    and the text is not. If it fails, libpq makes a fourth copy, or the text is read again.
    """
    text_size = sys.getsizeof(script.text)
    width = round(text_size / len(script.text))
    longest = min(script.longest_piece * width, file_size)
    if longest < sql_scanner.ONE_MESSAGE:
        return text_size
    if script.no_transaction:  # read while it is sent
        return text_size + 4 * longest
    to_read = len(script.text) * COPIES_OF_TEXT[width]
    return 3 * longest + max(longest, to_read)


def _refuse_beyond_memory(migration: Migration, needed: int) -> None:
    """Lambda would end the function without a message."""
    limit_mb = int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", sys.maxsize))
    needed_mb = MEMORY_OF_A_RUN_MB + (needed >> 20)
    if needed_mb > limit_mb:
        size_mb = migration.path.stat().st_size >> 20
        raise MigrationError(
            f"{migration.path.name} has {size_mb} MB and needs {needed_mb} MB of memory, but the "
            f"function has {limit_mb} MB",
            f"Raise memorySize to {needed_mb} or more, or split the file and its long statements; "
            "rows of COPY need the least",
        )


def tokens_checksum(migration: Migration, like: str = "") -> str:
    """The file's checksum, of the kind of `like`."""
    return sql_scanner.checksum(read_text(migration), like[:2])


# --- Scripts --------------------------------------------------------------------------------------

UNDOES = "what another tool would run to undo the file begins here, and would run too; cut it off"
# To PostgreSQL these are comments. In their order, those of dbmate; node-pg-migrate; goose,
# sql-migrate and micrate; Play; MyBatis; tern.
_UNDOING_HALF = re.compile(
    r"^--\s*(?:migrate:down\b|Down Migration\b|\+\w+ Down\b|(?:#?\s*-+\s*)?!Downs\b|//\s*@UNDO\b|"
    r"-*\s*create above / drop below\b)",
    re.MULTILINE,
)
# A line that says nothing else; the second counts only after the first.
_UP = re.compile(
    r"(?im)^--[^\w\n]*(?:rambler\s+)?(?:up|do|apply|migrate|upgrade|forwards?)(?:\s+migration)?[^\w\n]*$"
)
_DOWN = re.compile(
    r"(?im)^--[^\w\n]*(?:rambler\s+)?"
    r"(?:down|undo|rollback|revert|downgrade|backwards?)(?:\s+migration)?[^\w\n]*$"
)


@contextmanager
def located(migration: Migration, text: str) -> Iterator[None]:
    """Turn a ScanError into a MigrationError that begins with file:line:column."""
    try:
        yield
    except sql_scanner.ScanError as exc:
        line, column = sql_scanner.locate(text, exc.offset)
        place = f"{migration.path.name}:{line}:{column}"
        step = "Fix the file and deploy again"
        details = failures.excerpt(text, exc.offset)
        raise MigrationError(f"{place}: {exc}", step, details=details) from exc


class CreatedTable(NamedTuple):
    """A table that a file creates. Without a schema of its own, it is in one of those in `path`."""

    schema: Optional[str]
    name: str
    path: Optional[tuple[str, ...]]  # None: the path that a session begins with

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


class Creations(NamedTuple):
    """What a file creates, as far as it tells whether a database has it already."""

    tables: list[CreatedTable]
    schemas: list[str]
    is_guarded: bool  # all of it can run again


UNKNOWN_PATH = ("",)  # no schema has such a name
_SET_PATH = re.compile(
    r"""(?isx)
    SET\s+(?:SESSION\s+|LOCAL\s+)?(?:search_path\s*(?:=|\sTO\b)|SCHEMA\b)\s*(?P<value>.*)
    | SELECT\s+(?:pg_catalog\s*\.\s*)?set_config\s*\(\s*'search_path'\s*,\s*'(?P<argument>[^']*)'.*
    | RESET\s+(?:search_path|ALL) | DISCARD\s+ALL"""
)
_SCHEMA = re.compile(
    r"""(?isx)CREATE\s+SCHEMA\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:AUTHORIZATION\s+)?("(?:[^"]|"")+"|\w+)"""
)


def creations(migration: Migration) -> Creations:
    """The tables and schemas that a file creates, and whether all of it can run again."""
    text = read_text(migration)
    tables: dict[CreatedTable, None] = {}
    schemas: list[str] = []
    is_guarded = True
    path: Optional[tuple[str, ...]] = None
    with located(migration, text):
        for statement in sql_scanner.scan(text):
            if not statement.is_guarded and statement.transaction_control is None:
                is_guarded = False
            if statement.created_table:
                tables[CreatedTable(*statement.created_table, path)] = None
                continue
            words = text[statement.start : min(statement.end, statement.start + 1000)]
            if statement.keyword == "CREATE":
                schema = _SCHEMA.match(words)
                schemas += [_folded(schema.group(1))] if schema else []
            elif "search_path" in words or statement.keyword in ("SET", "RESET", "DISCARD"):
                path = _path_after(words, path)
    return Creations(list(tables), schemas, is_guarded)


def _path_after(statement: str, path: Optional[tuple[str, ...]]) -> Optional[tuple[str, ...]]:
    """The search_path after a statement; unknown where that has another way to set it."""
    found = _SET_PATH.fullmatch(statement)
    if found is None:
        return UNKNOWN_PATH if re.search("(?i)search_path", statement) else path
    value = found.group("value") or found.group("argument")
    if value is None or value.strip().upper() == "DEFAULT":
        # set_config('search_path', '', …) is a path without a schema.
        return () if found.group("argument") == "" else None
    return split_path(value)


def split_path(value: str) -> tuple[str, ...]:
    """The schemas in a search_path as it is written: a, "B", 'c'."""
    names = re.findall(r"""'([^']*)'|("(?:[^"]|"")*")|([^\s,'"]+)""", value)
    return tuple(literal or _folded(quoted or word) for literal, quoted, word in names)


def _folded(name: str) -> str:
    """A name as PostgreSQL stores it."""
    if name.startswith('"'):
        return name[1:-1].replace('""', '"')
    return name.lower()


def load_script(migration: Migration, ours: Collection[Name], backslashes: bool = False) -> Script:
    """Read and scan a file that is to run; a MigrationError says what cannot work.

    It may not create `ours`, the tables that say what is applied. `backslashes`: '…' is read
    as E'…', as on a server with standard_conforming_strings off.
    """
    text = read_text(migration)
    with located(migration, text):
        script = sql_scanner.read_script(text, backslashes, partial(read_text, migration))
        undoing = _undoing_half(script)
        if undoing and any(sql_scanner.scan(text[undoing.end() :], backslashes)):
            raise sql_scanner.ScanError(UNDOES, undoing.start())
        for name, place in script.created_tables.items():
            if name in ours:
                complaint = f"table {name[1]} is ours; set MIGRATIONS_TABLE to another name"
                raise sql_scanner.ScanError(complaint, place)
    if script.pieces:
        _refuse_beyond_memory(migration, _memory_to_send(script, migration.path.stat().st_size))
    return script


def oddities(name: str, script: Script) -> Iterator[str]:
    """What a file may do that its author does not know."""
    if script.statement_count == 0:
        yield f"{name} has no statement, so nothing runs until it is filled in"
    if script.commits_in_line:
        what = f"{name} commits by itself in line {script.commits_in_line}"
        yield f"{what}: what precedes that stays, even if a later statement fails"


def _undoing_half(script: Script) -> Optional[re.Match[str]]:
    """Where the half begins that undoes a file, as other tools mark it."""
    if len(script.text) > sql_scanner.ONE_MESSAGE or any(piece.data for piece in script.pieces):
        return None  # written by no hand, or with rows that those tools cannot send
    own_mark = _UNDOING_HALF.search(script.text)
    if own_mark:
        return own_mark
    up = _UP.search(script.text)
    return _DOWN.search(script.text, up.end()) if up else None

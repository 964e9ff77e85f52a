"""The files in `migrations/`: names, versions, texts, checksums, and which row records which file.

Knows no database and no AWS. What is wrong with a file's text is a MigrationError that begins with
file:line:column.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any, NamedTuple, Optional

import failures
import sql_scanner
from common import MigrationError, log
from sql_scanner import Script

CHECKSUMS = (sql_scanner.PLAIN, sql_scanner.TOKENS, sql_scanner.LONG)
NAME_LIMIT = 255  # migration_name VARCHAR(255), since the first version
HASHED_AT_ONCE = 1 << 20  # bytes, or characters
# Of the file that comes with db_setup.
EXAMPLE = "1:1b1ae3100f803b660ae807703a2a26c33613b5c9cc423667e36f43362e6ac029"
NO_FILES = "migrations/ holds no file, but migrations are recorded: was it deployed without them?"


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


def natural(name: str) -> list[Any]:
    """Sorts runs of digits as integers: V2__ before V10__."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def title(name: str) -> str:
    """A name without version, case, separators and `.up`: the same for what is alike to people."""
    rest = name[len(_version_text(name)) :].lstrip("-_. ")
    flyway = _FLYWAY.match(rest)
    rest = rest[flyway.end() :] if flyway else rest
    words = re.sub(r"[-_. ]+", "_", rest.casefold()).strip("_")
    return re.sub(r"_up$", "", words)


# --- Versions -------------------------------------------------------------------------------------

# 1.10.0, 00.05.00_01, 2024-01-15-120000. What a letter follows is not a part of it: 001-2fa is 1.
_PART_ENDS = r"(?=[-._ ]|T[0-9]|$)"
_DATE = re.compile(rf"((?:19|20)[0-9]{{2}})[-._]([0-9]{{1,2}})[-._]([0-9]{{1,2}}){_PART_ENDS}")
_FIRST = re.compile(r"[0-9]+")
_NEXT = re.compile(rf"([-._T])([0-9]+){_PART_ENDS}")
_FLYWAY = re.compile(r"V([0-9]+(?:[._][0-9]+)*)__")
_MONTH = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])")  # 202401, which no counter gets to
NUMBERED, FLYWAY = range(2)
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
    text = _version_text(name)
    if not text:
        return None
    return Version(NUMBERED, *_kind_and_parts(re.split("[-._T]", text)))


def _version_text(name: str) -> str:
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


def order(name: str) -> tuple[Any, ...]:
    """Sorts names as they run: by number, then naturally; those without one last.

    Flyway's files are in its own order: V1__, V1_1__, V1_10__, R__.
    """
    version = version_of(name)
    if version is None:
        spelled = re.sub("^R__", "V~", name)
        return (FLYWAY, 0, (), natural(spelled), name)
    if version.family == FLYWAY:
        spelled = f"V{version}\0{title(name)}"
        return (FLYWAY, 0, (), natural(spelled), name)
    return (*version, natural(name), name)


# --- The folder -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Migration:
    """A file. Its name, without `.sql`, is its identity; leading digits are its number."""

    path: Path
    name: str

    @cached_property
    def number(self) -> Optional[int]:
        return number_of(self.name)

    @cached_property
    def version(self) -> Optional[Version]:
        return version_of(self.name)

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes as they were when the run first read them; see read_text."""
        digest = hashlib.sha256()
        with _opened(self) as file:
            for block in iter(lambda: file.read(HASHED_AT_ONCE), b""):
                digest.update(block)
        return digest.hexdigest()


def spellings(migration: Migration) -> tuple[str, str]:
    """The name without and with its ending."""
    return migration.name, normal(migration.path.name)


ONLY_SQL = "looks like a migration, but only *.sql is run: rename it, or take it out of migrations/"
# What editors and people leave next to a file, or name so that it does not run.
_ASIDE = re.compile(
    r"~|\.(bak|old|orig|rej|sw[op]|tmp|save"
    r"|off|disabled?|skip|ignored?|draft|wip|example|sample|dist)",
    re.IGNORECASE,
)
_OTHER_SQL = re.compile(r"\.(psql|pgsql|plpgsql|pg|sqll?|ddl|dml)\s*", re.IGNORECASE)
_NO_SQL = re.compile(r"\.(md|rst|adoc|html?|pdf|png|svg|jpe?g|csv|tsv|dat|json)", re.IGNORECASE)
_DOWN_FILE = re.compile(r"(^|\.)down\.sql$", re.IGNORECASE)
_UNDOES = re.compile(r"(.+[-_.])(?:down|undo|rollback|revert)((?:[-_.].*)?)", re.IGNORECASE)
_DOES = ("up", "do", "deploy", "apply", "migrate")
_FLYWAY_OTHER = re.compile(r"([UB])([0-9]+(?:[._][0-9]+)*__)")


def load_migrations(
    folder: Path,
    problems: list[str],
    warnings: Optional[list[str]] = None,
) -> list[Migration]:
    """The migration files in the order in which they run.

    What looks like a migration but is not run is added to `problems` or, where it may be meant, to
    `warnings`; without such a list it is only logged.
    """
    said = [] if warnings is None else warnings
    if not folder.is_dir():
        problems.append("the folder migrations/ is missing next to initializer.py")
        return []
    files: dict[str, Migration] = {}
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        name = normal(path.name)
        if path.is_dir() or not name.lower().endswith(".sql") or name.startswith("."):
            others.append(path)
        elif not _DOWN_FILE.search(name):
            _add(Migration(path, name[: -len(".sql")]), files, problems)
    has_versions = any(version_of(name) for name in files)
    for path in others:
        if path.is_dir():
            _look_into(path, bool(files), has_versions, problems, said)
        else:
            _look_at(path.name, bool(files), problems, said)
    _look_next_to(folder, bool(files), problems, said)
    problems.extend(_undoing(files))
    if warnings is None:
        for text in said:
            log("warning", logging.WARNING, text=text)
    return sorted(files.values(), key=lambda file: order(file.name))


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


def _look_at(name: str, has_files: bool, problems: list[str], warnings: list[str]) -> None:
    """Say of a file in migrations/ that is not run whether it looks like a migration."""
    ending = os.path.splitext(name)[1]
    before, sql_ending, rest = name.lower().rpartition(".sql")
    is_sql = bool(before and sql_ending) and not rest[:1].isalnum()
    is_other_sql = _OTHER_SQL.fullmatch(ending) is not None
    is_numbered = version_of(name) is not None and not _NO_SQL.fullmatch(ending)
    if ending.lower() == ".json" and not has_files:  # another tool's migrations
        is_numbered = version_of(name) is not None
    if name.startswith("."):
        if version_of(name[1:]) and rest == "":
            warnings.append(f"{name} is hidden, and not run")
    elif is_sql and _ASIDE.fullmatch(rest):
        warnings.append(f"{name} is not run, for it does not end in .sql")
    elif is_sql and not rest.strip():
        problems.append(f"{name!r} does not end in .sql, but in a blank: rename it")
    elif is_sql or is_other_sql or is_numbered:
        problems.append(f"{name} {ONLY_SQL}")


def _look_into(
    path: Path,
    has_files: bool,
    has_versions: bool,
    problems: list[str],
    warnings: list[str],
) -> None:
    """Say of a sub-folder with SQL in it that it is not run."""
    inside = _sql_below(path)
    if inside is None:
        return
    what = f"migrations/{normal(path.name)}/ is not looked into, but holds {inside}"
    holds_them_all = version_of(inside.name) is not None and not has_versions
    if has_files and version_of(path.name) is None and not holds_them_all:
        warnings.append(f"{what}: only files in migrations/ itself are run")
    else:
        name = path.name if inside.stem in ("migration", "up") else f"{path.name}_{inside.stem}"
        instead = normal(name).removesuffix(".sql")
        problems.append(f"{what}: put it into migrations/ itself, such as {instead}.sql")


def _look_next_to(
    folder: Path,
    has_files: bool,
    problems: list[str],
    warnings: list[str],
) -> None:
    """Report SQL files next to migrations/: they are not run."""
    home = folder.parent
    if not (home / "initializer.py").is_file():
        return
    for path in sorted(home.iterdir()):
        if path.is_file() and path.suffix.lower() == ".sql":
            what = f"{path.name} is next to migrations/, not in it, and is not run: move it"
            (problems if version_of(path.name) else warnings).append(what)
        elif path.is_dir() and path.name != folder.name and not has_files:
            inside = _sql_below(path, deep=False)
            if inside:
                what = f"migrations/ holds no file, but {path.name}/ does ({inside})"
                problems.append(f"{what}: put it into migrations/")


def _sql_below(path: Path, deep: bool = True) -> Optional[Path]:
    pattern = "*.[sS][qQ][lL]"
    found = path.rglob(pattern) if deep else path.glob(pattern)
    forward = (file for file in found if not file.is_dir() and not _DOWN_FILE.search(file.name))
    first = min(forward, default=None)
    return first.relative_to(path) if first else None


def _undoing(files: dict[str, Migration]) -> Iterator[str]:
    """The files that undo another one, as some tools' names tell: they would run as well."""
    names = {name.lower() for name in files}
    versions = {found.group() for found in map(_FLYWAY.match, files) if found}
    for name, file in files.items():
        pair = _UNDOES.fullmatch(name)
        forward = _forward(*pair.groups()) if pair else []
        other = _FLYWAY_OTHER.match(name)
        what = ""
        if not names.isdisjoint(forward):
            what = "undoes another file"
        elif other and f"V{other.group(2)}" in versions:
            what = "undoes V" if other.group(1) == "U" else "repeats V"
            what += other.group(2).removesuffix("__")
        if what:
            yield f"{file.path.name} {what}, and would run as well: take it out of migrations/"


def _forward(before: str, after: str) -> list[str]:
    """What the file may be called that one with an undoing word between these parts undoes."""
    names = [f"{before}{word}{after}" for word in _DOES]
    return [name.lower() for name in (*names, before[:-1] + after)]


# --- Texts ----------------------------------------------------------------------------------------


@contextmanager
def _opened(migration: Migration) -> Iterator[Any]:
    """The file, open for reading; raises MigrationError where that is impossible."""
    try:
        with migration.path.open("rb") as file:
            yield file
    except OSError as exc:
        complaint = f"{migration.path.name} cannot be read: {exc.strerror}"
        raise MigrationError(f"{complaint}. Invoke again when it can.") from exc


def read_text(migration: Migration) -> str:
    """The file's text without BOM, the same one however often a run reads it.

    Raises MigrationError where the file has changed in between, and with the place where it is not
    UTF-8 or holds a NUL.
    """
    name = migration.path.name
    try:
        with _opened(migration) as file:
            # A copy of a long one would be felt. The map is private: not all folders can share one.
            is_long = os.fstat(file.fileno()).st_size > sql_scanner.ONE_MESSAGE
            data = mmap(file.fileno(), 0, access=ACCESS_COPY) if is_long else file.read()
            text = str(data, "utf-8")
    except UnicodeDecodeError as exc:
        before = exc.object[: exc.start].decode("utf-8-sig")
        line, column = sql_scanner.locate(before, len(before))
        raise MigrationError(
            f"{name}:{line}:{column}: byte 0x{exc.object[exc.start]:02x} is not UTF-8. "
            "Nothing has been applied. Save the file as UTF-8 and deploy again."
        ) from exc
    _refuse_change(migration, text)
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        line, column = sql_scanner.locate(text, text.index("\0"))
        raise MigrationError(
            f"{name}:{line}:{column}: a NUL character, which PostgreSQL cannot take. "
            "Nothing has been applied. Remove it (the file may be UTF-16: save it as UTF-8) "
            "and deploy again."
        )
    return text


def _refuse_change(migration: Migration, text: str) -> None:
    """Compare a text with the bytes that the run first read, which are what is recorded."""
    digest = hashlib.sha256()
    for at in range(0, len(text), HASHED_AT_ONCE):
        digest.update(text[at : at + HASHED_AT_ONCE].encode())
    # The dictionary is where cached_property keeps it.
    known = vars(migration).setdefault("sha256", digest.hexdigest())
    if known != digest.hexdigest():
        raise MigrationError(
            f"{migration.path.name}: it was changed while this run read it, so it was not started. "
            "Invoke again when nobody writes to it."
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
        verdict = f"{place}: {exc}. Nothing has been applied. Fix the file and deploy again."
        raise MigrationError("\n".join([verdict, *failures.excerpt(text, exc.offset)])) from exc


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


def load_script(migration: Migration, ours: Sequence[str], backslashes: bool = False) -> Script:
    """Read and scan a file that is to run; a MigrationError says what cannot work.

    It may not create `ours`, the tables that say what is applied. `backslashes`: '…' is read
    as E'…', as on a server with standard_conforming_strings off.
    """
    text = read_text(migration)
    with located(migration, text):
        script = sql_scanner.read_script(text, backslashes)
        undoing = _undoing_half(script)
        if undoing and any(sql_scanner.scan(text[undoing.end() :], backslashes)):
            raise sql_scanner.ScanError(UNDOES, undoing.start())
        for (schema, name), place in script.created_tables.items():
            if schema in (None, "public") and name in ours:
                complaint = f"table {name} is ours; set MIGRATIONS_TABLE to another name"
                raise sql_scanner.ScanError(complaint, place)
    return script


def oddities(name: str, script: Script) -> Iterator[str]:
    """What a file may do that its author does not know."""
    if script.statement_count == 0:
        yield f"{name} has no statement: once recorded, it cannot be filled in any more"
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


# --- Plan: which file is which row ----------------------------------------------------------------


class Row(NamedTuple):
    """A row of the tracking table: this migration is applied."""

    id: int
    name: str
    checksum: Optional[str]
    file_sha256: Optional[str]
    adopted: bool = False  # recorded without running

    @property
    def is_comparable(self) -> bool:
        """Its checksum is of a kind that this version knows."""
        return (self.checksum or "").startswith(CHECKSUMS)


@dataclass(frozen=True)
class Plan:
    """What is to be done. `pending` pairs each file with the name that will be recorded."""

    pending: tuple[tuple[str, Migration], ...] = ()
    renumbered: tuple[tuple[Row, Migration], ...] = ()  # or renamed in any other way
    unchecked: tuple[tuple[Row, Migration], ...] = ()  # recorded by a version without checksums
    edited: tuple[tuple[Row, Migration], ...] = ()
    orphans: tuple[str, ...] = ()  # rows without a file
    warnings: tuple[str, ...] = ()
    example: Optional[Row] = None  # the only row, and the files replace what it records


def make_plan(files: Sequence[Migration], rows: Sequence[Row]) -> Plan:
    """Compare the folder with the tracking table. Files that are as recorded are not scanned.

    Raises MigrationError where nothing can tell whether a file was applied under another name.
    """
    example = replaced_example(files, rows)
    if example:
        return replace(make_plan(files, ()), example=example)
    claimed = claim_rows(files, rows)
    claimed_ids = {row.id for row in claimed.values()}
    free = [row for row in rows if row.id not in claimed_ids]
    unclaimed = [file for file in files if file not in claimed]

    renamed = _renamed(unclaimed, free)
    renamed_files = {file for _, file in renamed}
    renamed_ids = {row.id for row, _ in renamed}
    pending = [file for file in unclaimed if file not in renamed_files]
    orphans = [row for row in free if row.id not in renamed_ids]
    named = [row for row in rows if row.id not in renamed_ids]
    for file in pending:
        _refuse_doubt(file, orphans)

    unchecked = []
    edited = []
    for file, row in claimed.items():
        if row.file_sha256 == file.sha256:
            continue
        if not row.checksum:
            unchecked.append((row, file))
            continue
        is_edited = row.is_comparable and row.checksum != tokens_checksum(file, row.checksum)
        if is_edited and not is_example(file):  # which a rolled-back deployment may bring again
            edited.append((row, file))

    return Plan(
        pending=tuple(number_files(pending, files, rows)),
        renumbered=tuple(renamed),
        unchecked=tuple(unchecked),
        edited=tuple(edited),
        orphans=tuple(row.name for row in orphans),
        warnings=tuple(_warnings(pending, files, named)),
    )


def is_example(file: Migration) -> bool:
    """It is the example that comes with db_setup, untouched."""
    return tokens_checksum(file, EXAMPLE) == EXAMPLE


def replaced_example(files: Sequence[Migration], rows: Sequence[Row]) -> Optional[Row]:
    """The row of the example, if nothing else is recorded, and no file is the example any more."""
    if len(rows) != 1 or rows[0].checksum != EXAMPLE:
        return None
    unchanged = (file.sha256 == rows[0].file_sha256 or is_example(file) for file in files)
    return rows[0] if files and not any(unchanged) else None


def claim_rows(files: Sequence[Migration], rows: Sequence[Row]) -> dict[Migration, Row]:
    """Which row belongs to which file by its name: its own, or the one after a recorded number."""
    free = {row.name: row for row in rows}
    claimed = {file: free.pop(file.name) for file in files if file.name in free}
    for file in files:
        if file in claimed or file.number is not None:
            continue
        numbered = (row for row in free.values() if row.name != bare(row.name) == file.name)
        match = next(numbered, None)
        if match:
            claimed[file] = free.pop(match.name)
    return {file: claimed[file] for file in files if file in claimed}


def _renamed(files: Sequence[Migration], rows: Sequence[Row]) -> list[tuple[Row, Migration]]:
    """The files that have the content of a row whose own file is gone: whatever their names.

    Of several with the same content, names that are alike belong together; the others are paired in
    the order in which they ran and would run.
    """
    content = _Content(rows)
    candidates = {file: content.same(file) for file in files}
    pairs: dict[Migration, Row] = {}
    taken: set[int] = set()
    for is_alike in (True, False):
        for file, same in candidates.items():
            if file in pairs:
                continue
            for row in same:
                if row.id in taken or (is_alike and title(row.name) != title(file.name)):
                    continue
                pairs[file] = row
                taken.add(row.id)
                break
    return [(pairs[file], file) for file in files if file in pairs]


def renamed_to(row: Row, file: Migration) -> str:
    """The name that the row takes: of a file without a number, after the number that it was
    given.
    """
    number = re.match("[0-9]+", row.name)
    if file.number is None and number:
        name = f"{number.group()}_{file.name}"
        if bare(name) == file.name:
            return name
    return file.name


class _Content:
    """Rows by their content. A file is read for it only if there are any."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._kinds = sorted({(row.checksum or "")[:2] for row in rows if row.is_comparable})

    def same(self, file: Migration) -> list[Row]:
        """The rows with this file's content, in the order in which they were recorded."""
        if not self._rows:
            return []
        values = {tokens_checksum(file, kind) for kind in self._kinds}
        by_tokens = [row.id for row in self._rows if row.checksum in values]
        by_bytes = [row.id for row in self._rows if row.file_sha256 == file.sha256]
        return [row for row in self._rows if row.id in {*by_tokens, *by_bytes}]


def _refuse_doubt(file: Migration, orphans: Iterable[Row]) -> None:
    """Raise MigrationError where a file is called like a row without a file, of unknown content."""
    for row in orphans:
        same_title = title(row.name) == title(file.name) != ""
        if row.is_comparable or not (same_title or _is_slip(file, row)):
            continue
        how = "by a newer version" if row.checksum else "without a checksum"
        then = "" if row.checksum else " for one deployment, then rename it"
        instead = "another name after the number" if same_title else "another number"
        raise MigrationError(
            f"{file.path.name}: is this {row.name}, which is applied and whose file is gone? "
            f"It was recorded {how}, so nothing can tell. Nothing has been applied. If it is, name "
            f"the file {row.name}.sql{then}; if not, give it {instead}."
        )


def _is_slip(file: Migration, row: Row) -> bool:
    """The same version, and words that are nearly the same: 002_add_ordrs, 002_add_orders."""
    recorded = _recorded(row)
    if recorded is None or file.version != recorded[0]:
        return False
    return difflib.SequenceMatcher(None, title(row.name), title(file.name)).ratio() > 0.75


def number_files(
    pending: Sequence[Migration],
    files: Sequence[Migration],
    rows: Sequence[Row],
) -> Iterator[tuple[str, Migration]]:
    """A file without a number gets the next one after all in the folder and in the table."""
    if not pending:
        return
    names = [file.name for file in files] + [row.name for row in rows]
    highest = max((number_of(name) or 0 for name in names), default=0)
    following = itertools.count(highest + 1)
    for file in pending:
        name = file.name
        if file.number is None:
            name = f"{next(following):03d}_{file.name}"
        if len(name) > NAME_LIMIT:
            complaint = f"{name}: a name may have {NAME_LIMIT} characters"
            raise MigrationError(f"{complaint}. Nothing has been applied. Choose a shorter one.")
        yield name, file


# --- What may be a slip ---------------------------------------------------------------------------

TIME_STAMP = 10_000  # a number from here on is not a count, and a gap means nothing


def duplicates(files: Iterable[Migration]) -> list[list[str]]:
    """The names of the files that have the same version, together."""
    names: dict[Version, list[str]] = {}
    for file in files:
        if file.version:
            names.setdefault(file.version, []).append(file.name)
    return [sorted(names[version]) for version in sorted(names) if len(names[version]) > 1]


def _warnings(
    pending: Sequence[Migration],
    files: Sequence[Migration],
    rows: Sequence[Row],
) -> Iterator[str]:
    """What may be a slip: no file at all, a version used twice, a late one, a gap."""
    if rows and not files:
        yield NO_FILES
    new = [(file.version, file.name) for file in pending if file.version]
    if not new:
        return
    known = [(file.version, file.name) for file in files if file.version]
    recorded = [found for found in map(_recorded, rows) if found]
    names: dict[Version, set[str]] = {}
    for version, name in known + recorded:
        names.setdefault(version, set()).add(name)
    for version in sorted({version for version, _ in new}):
        same = sorted(names[version])
        if len(same) > 1:
            yield f"{_shown(same[0])} is used more than once: {', '.join(same)}"
    for version, name in new:
        last = max((found for found in recorded if found[0].family == version.family), default=None)
        if last and version < last[0]:
            yield f"{name} comes late: {_shown(last[1])} is applied already"
    yield from _vague(new)
    yield from _gap(list(names))


def _recorded(row: Row) -> Optional[tuple[Version, str]]:
    """Version and name of a row; a name of Flyway's kind is recorded after a given number."""
    for name in (bare(row.name), row.name):
        version = version_of(name)
        if version and (version.family == FLYWAY or name == row.name):
            return version, name
    return None


def _shown(name: str) -> str:
    text = _version_text(name)
    return f"number {int(text)}" if text.isdigit() else f"version {text.strip('V_')}"


def _vague(new: Sequence[tuple[Version, str]]) -> Iterator[str]:
    """Files of one day of which only some tell the time of day."""
    times = sorted(found for found in new if found[0].kind == TIME)
    for (first, name), (second, other) in zip(times, times[1:]):
        begun = second._replace(parts=second.parts[: len(first.parts)])
        if first == begun != second:
            what = f"{name} runs before {other}, since it has no time of day"
            yield f"{what}: give it one, if that is wrong"


def _gap(versions: Sequence[Version]) -> Iterator[str]:
    """The counts that no file has, where all are counts."""
    numbers = {version.parts[0] for version in versions if version.family == NUMBERED}
    if not numbers or max(numbers) >= TIME_STAMP:
        return
    if any(version.family == NUMBERED and len(version.parts) > 1 for version in versions):
        return
    missing = sorted(set(range(min(numbers), max(numbers))) - numbers)
    if missing:
        *others, last = map(str, missing[:10])
        either = f"{', '.join(others)} or " if others else ""
        yield f"no file has number {either}{last}"


# --- The next name --------------------------------------------------------------------------------


def next_version(files: Sequence[Migration], now: datetime) -> str:
    """What the next file's name begins with: after all others, and written like the highest."""
    last = max(
        (file for file in files if file.version),
        key=lambda file: order(file.name),
        default=None,
    )
    if last is None or last.version is None:
        return "001_"
    text = _version_text(last.name)
    flyway = last.version.family == FLYWAY
    own = text[1:-2] if flyway else text
    following = _now_like(own, now) if last.version.kind == TIME else ""
    later = version_of(f"V{following}__" if flyway else f"{following}_") if following else None
    if later is None or later <= last.version:
        following = _counted_up(own)
    return f"V{following}__" if flyway else f"{following}_"


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

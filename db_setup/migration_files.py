"""The files in `migrations/`: their names, numbers, texts and checksums, and which of them is which recorded row.

Knows no database and no AWS. What is wrong with a file's text is a MigrationError that begins with file:line:column.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
TIME_STAMP = 10_000  # a number from here on is no count, and no gap means anything
EMPTY = "has no statement: once recorded, it cannot be filled in any more"
UNDOES = "what another tool would run to undo the file begins here, and would run as well; cut it off"
# As dbmate and node-pg-migrate mark it; to PostgreSQL it is a comment.
UNDOING_WORDS = ("migrate:down", "Down Migration")
UNDOING_HALF = re.compile(rf"^--\s*(?:{'|'.join(UNDOING_WORDS)})\b", re.MULTILINE)


# --- Names and texts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Migration:
    """A file. Its name, without `.sql`, is its identity; leading digits are its number."""

    path: Path
    name: str

    @cached_property
    def number(self) -> Optional[int]:
        return number_of(self.name)

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes; read once, and asked for by each session of a run."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()


def normal(name: str) -> str:
    """One spelling for one name: a Mac may store é as two characters."""
    return unicodedata.normalize("NFC", name)


def spellings(migration: Migration) -> tuple[str, str]:
    """The name without and with its ending."""
    return migration.name, normal(migration.path.name)


def number_of(name: str) -> Optional[int]:
    digits = re.match(r"[0-9]+", name)
    return int(digits.group()) if digits else None


def bare(name: str) -> str:
    """The name behind the number and one separator."""
    return re.sub(r"^[0-9]+[-_. ]?", "", name)


def natural(name: str) -> list[Any]:
    """Sorts runs of digits as integers: V2__ before V10__."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]


def load_migrations(folder: Path, problems: list[str]) -> list[Migration]:
    """The migration files, numbered ones first, in the order in which they run."""
    files: dict[str, Migration] = {}
    if not folder.is_dir():
        problems.append("the folder migrations/ is missing beside initializer.py")
        return []
    for path in sorted(folder.iterdir()):
        name = normal(path.name)
        if path.is_dir():
            log("sub-folder ignored", logging.WARNING, folder=f"migrations/{name}")
        if not name.lower().endswith(".sql") or name.lower().endswith(".down.sql") or name.startswith("."):
            continue
        name = name[:-4]
        if not path.is_file():
            continue
        if name in files:
            problems.append(f"{path.name} and {files[name].path.name} have the same name: rename one of them")
        files[name] = Migration(path, name)
    return sorted(files.values(), key=lambda m: (m.number is None, m.number or 0, natural(m.name), m.name))


def read_text(migration: Migration) -> str:
    """The file's text without BOM; raises MigrationError with the place where it is not UTF-8 or holds a NUL."""
    try:
        with migration.path.open("rb") as file:
            # A copy of a long one would be felt. The map is private: some mounted folders can share none.
            is_long = os.fstat(file.fileno()).st_size > sql_scanner.ONE_MESSAGE
            data = mmap(file.fileno(), 0, access=ACCESS_COPY) if is_long else file.read()
            text = str(data, "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as exc:
        before = exc.object[: exc.start].decode("utf-8-sig")
        line, column = sql_scanner.locate(before, len(before))
        raise MigrationError(
            f"{migration.path.name}:{line}:{column}: byte 0x{exc.object[exc.start]:02x} is not UTF-8. "
            "Nothing has been applied. Save the file as UTF-8 and deploy again."
        ) from exc
    if "\0" in text:
        line, column = sql_scanner.locate(text, text.index("\0"))
        raise MigrationError(
            f"{migration.path.name}:{line}:{column}: a NUL character, which PostgreSQL cannot take. "
            "Nothing has been applied. Remove it (the file may be UTF-16: save it as UTF-8) and deploy again."
        )
    return text


def tokens_checksum(migration: Migration, like: str = "") -> str:
    """The file's checksum, of the kind of `like`."""
    return sql_scanner.checksum(read_text(migration), like[:2])


# --- Scripts --------------------------------------------------------------------------------------------------------


@contextmanager
def located(migration: Migration, text: str) -> Iterator[None]:
    """Turn a ScanError into a MigrationError that begins with file:line:column."""
    try:
        yield
    except sql_scanner.ScanError as exc:
        line, column = sql_scanner.locate(text, exc.offset)
        verdict = (
            f"{migration.path.name}:{line}:{column}: {exc}. Nothing has been applied. Mend the file and deploy again."
        )
        raise MigrationError("\n".join([verdict, *failures.excerpt(text, exc.offset)])) from exc


def created_tables(migration: Migration) -> tuple[list[sql_scanner.Name], bool]:
    """The tables that a file creates, which may never have to run, and whether all of it can run again."""
    text, names, guarded = read_text(migration), dict[sql_scanner.Name, None](), True
    with located(migration, text):
        for statement in sql_scanner.scan(text):
            guarded = guarded and (statement.is_guarded or statement.transaction_control is not None)
            if statement.created_table:
                names[statement.created_table] = None
    return list(names), guarded


def load_script(migration: Migration, ours: Sequence[str], backslashes: bool = False) -> Script:
    """Read and scan a file that is to run; what cannot work is a MigrationError before anything ran.

    It may not create `ours`, the tables that say what is applied. `backslashes` tells that '…' is read as E'…', as on a
    server with standard_conforming_strings off.
    """
    text = read_text(migration)
    with located(migration, text):
        script = sql_scanner.read_script(text, backslashes)
        has_rows = any(piece.data for piece in script.pieces)  # which those tools cannot send: it is not theirs
        is_theirs = not has_rows and any(words in text for words in UNDOING_WORDS)
        undoing = UNDOING_HALF.search(text) if is_theirs else None
        if undoing and any(sql_scanner.scan(text[undoing.end() :], backslashes)):
            raise sql_scanner.ScanError(UNDOES, undoing.start())
        for (schema, name), place in script.created_tables.items():
            if schema in (None, "public") and name in ours:
                raise sql_scanner.ScanError(f"table {name} is ours; set MIGRATIONS_TABLE to another name", place)
    return script


# --- Plan: which file is which row ----------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the tracking table: this migration is applied."""

    id: int
    name: str
    checksum: Optional[str]
    file_sha256: Optional[str]


@dataclass(frozen=True)
class Plan:
    """What is to be done. `pending` pairs each file with the name under which it will be recorded."""

    pending: tuple[tuple[str, Migration], ...] = ()
    renumbered: tuple[tuple[Row, Migration], ...] = ()
    unchecked: tuple[tuple[Row, Migration], ...] = ()  # recorded by a version without checksums
    edited: tuple[tuple[Row, Migration], ...] = ()
    orphans: tuple[str, ...] = ()  # rows without a file
    warnings: tuple[str, ...] = ()


def claim_rows(files: Sequence[Migration], rows: Sequence[Row]) -> dict[Migration, Row]:
    """Which row belongs to which file: its own name, or its name behind a recorded number."""
    free = {row.name: row for row in rows}
    claimed = {file: free.pop(file.name) for file in files if file.name in free}
    for file in files:
        if file not in claimed and file.number is None:
            match = next((r for r in free.values() if r.name != bare(r.name) == file.name), None)
            if match:
                claimed[file] = free.pop(match.name)
    return claimed


def make_plan(files: Sequence[Migration], rows: Sequence[Row]) -> Plan:
    """Compare the folder with the tracking table. Files that are as recorded are not scanned.

    Raises MigrationError where a file may be one that was applied under another name, which nothing can tell.
    """
    claimed = claim_rows(files, rows)
    taken = {row.name for row in claimed.values()}
    free = {row.name: row for row in rows if row.name not in taken}
    unchecked, edited, renumbered, pending = [], [], [], []
    for file in files:
        row = claimed.get(file)
        if row is None:
            moved = _same_migration(file, free.values())
            if moved:
                renumbered.append((free.pop(moved.name), file))
            else:
                pending.append(file)
        elif row.file_sha256 != file.sha256:
            if not row.checksum:
                unchecked.append((row, file))
            elif row.checksum.startswith(CHECKSUMS) and row.checksum != tokens_checksum(file, row.checksum):
                edited.append((row, file))
    moved_rows = [row for row, _ in renumbered]
    return Plan(
        pending=tuple(number_files(pending, files, rows)),
        renumbered=tuple(renumbered),
        unchecked=tuple(unchecked),
        edited=tuple(edited),
        orphans=tuple(free),
        warnings=tuple(_order_warnings(pending, files, [row for row in rows if row not in moved_rows])),
    )


def _same_migration(file: Migration, rows: Iterable[Row]) -> Optional[Row]:
    """The row without a file that has this file's name behind its number, and its content."""
    alike = [row for row in rows if bare(file.name) and bare(row.name) == bare(file.name)]
    for row in alike:
        known = (row.checksum or "").startswith(CHECKSUMS)
        if row.file_sha256 == file.sha256 or (known and row.checksum == tokens_checksum(file, row.checksum or "")):
            return row
        if not known:
            how = "by a newer version" if row.checksum else "without a checksum"
            raise MigrationError(
                f"{file.path.name}: is this {row.name}, which is applied and whose file is gone? It was recorded "
                f"{how}, so nothing can tell. Nothing has been applied. If it is, name the file "
                f"{row.name}.sql{'' if row.checksum else ' for one deployment, then rename it'}; "
                "if not, give it another name behind the number."
            )
    return None


def number_files(
    pending: Sequence[Migration], files: Sequence[Migration], rows: Sequence[Row]
) -> Iterator[tuple[str, Migration]]:
    """A file without a number gets the next one, after every number seen in the folder and in the table."""
    seen = [number_of(name) or 0 for name in [file.name for file in files] + [row.name for row in rows]]
    following = itertools.count(max(seen, default=0) + 1)
    for file in pending:
        name = file.name if file.number is not None else f"{next(following):03d}_{file.name}"
        if len(name) > NAME_LIMIT:
            raise MigrationError(
                f"{name}: a name may have {NAME_LIMIT} characters. Nothing has been applied. Choose a shorter one."
            )
        yield name, file


def _order_warnings(pending: Sequence[Migration], files: Sequence[Migration], rows: Sequence[Row]) -> Iterator[str]:
    """What is allowed but may be a slip: a number used twice, a late one, a gap."""
    names: dict[int, set[str]] = {}
    for name in [file.name for file in files if file.number is not None] + [row.name for row in rows]:
        names.setdefault(number_of(name) or 0, set()).add(name)
    numbered = [file for file in pending if file.number is not None]
    for number in sorted({file.number or 0 for file in numbered}):
        if len(names[number]) > 1:
            yield f"number {number} is used more than once: {', '.join(sorted(names[number]))}"
    highest = max((number_of(row.name) or 0 for row in rows), default=0)
    for file in numbered:
        if (file.number or 0) < highest:
            yield f"{file.name} comes late: number {highest} is applied already"
    if numbered and max(names) < TIME_STAMP:
        missing = sorted(set(range(min(names), max(names))) - set(names))
        if missing:
            *others, last = map(str, missing[:10])
            yield f"no file has number {', '.join(others)}{' or ' if others else ''}{last}"

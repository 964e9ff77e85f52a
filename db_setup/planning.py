"""Which file is which row of the tracking table, and so what is to be done.

Knows no database. A file is read only where its name, or its bytes, do not tell.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Optional

import file_names
import sql_scanner
from common import MigrationError
from file_names import FLYWAY, TIME, Version
from migration_files import Migration, tokens_checksum

CHECKSUMS = (sql_scanner.PLAIN, sql_scanner.TOKENS, sql_scanner.LONG)
NAME_LIMIT = 255  # migration_name VARCHAR(255), since the first version
# Of the file that comes with db_setup.
EXAMPLE = "1:1b1ae3100f803b660ae807703a2a26c33613b5c9cc423667e36f43362e6ac029"
EMPTIED = "{} was applied, but has no statement any more, which changes nothing"
MARK = "R"  # of the checksum of a repeatable file, which versions before 1.1 do not compare
KEPT_TEXTS = 100
TEXT_LENGTH = 18  # of what is kept of the checksum of an earlier text
NO_FILES = "migrations/ holds no file, but migrations are recorded: was it deployed without them?"


class Row(NamedTuple):
    """A row of the tracking table: this migration is applied."""

    id: int
    name: str
    checksum: Optional[str]
    file_sha256: Optional[str]
    adopted: bool = False  # recorded without running
    # Of one that ran as a repeatable file: the checksums of the texts before, as they are kept.
    earlier: Optional[tuple[str, ...]] = None

    def as_read(self) -> Row:
        """The row, where `checksum` is what its column holds."""
        if not (self.checksum or "").startswith(MARK):
            return self
        checksum, *earlier = (self.checksum or "")[len(MARK) :].split(" ")
        return self._replace(checksum=checksum, earlier=tuple(earlier))

    @property
    def recorded_checksum(self) -> Optional[str]:
        """What the column holds."""
        if self.earlier is None:
            return self.checksum
        return MARK + " ".join((self.checksum or "", *self.earlier))

    @property
    def texts(self) -> tuple[str, ...]:
        """Of what has run, as it is kept when another text replaces it: the last one first."""
        return ((self.checksum or "")[:TEXT_LENGTH], *(self.earlier or ()))

    def outdated(self) -> Row:
        """As recorded while nothing tells whether what the text made is still there."""
        return self._replace(checksum="", file_sha256=None, earlier=self.texts)

    @property
    def is_empty(self) -> bool:
        """Nothing ran: the file had no statement."""
        return self.checksum == sql_scanner.checksum("", (self.checksum or "")[:2])

    @property
    def is_comparable(self) -> bool:
        """Its checksum is of a kind that this version knows."""
        return (self.checksum or "").startswith(CHECKSUMS)


@dataclass(frozen=True)
class Plan:
    """What is to be done. `pending` pairs each file with the name that will be recorded."""

    pending: tuple[tuple[str, Migration], ...] = ()
    again: Mapping[Migration, Row] = field(default_factory=dict)  # of the pending repeatable files
    renumbered: tuple[tuple[Row, Migration], ...] = ()  # or renamed in any other way
    unchecked: tuple[tuple[Row, Migration], ...] = ()  # recorded by a version without checksums
    edited: tuple[tuple[Row, Migration], ...] = ()
    filled: tuple[Row, ...] = ()  # of pending files that had no statement when they were recorded
    orphans: tuple[str, ...] = ()  # rows without a file
    outdated: tuple[Row, ...] = ()  # of texts that the pending files may undo before they run again
    warnings: tuple[str, ...] = ()
    example: Optional[Row] = None  # the only row, and the files replace what it records


def make_plan(
    files: Sequence[Migration], rows: Sequence[Row], unfinished: Collection[str] = ()
) -> Plan:
    """Compare the folder with the tracking table. Files that are as recorded are not scanned.

    A repeatable file of which another text has run in part, and is `unfinished`, runs again.
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
        if not file.is_repeatable:
            _refuse_doubt(file, orphans)

    unchecked = []
    edited = []
    emptied = []
    filled: dict[Migration, Row] = {}
    again: dict[Migration, Row] = {}
    for file, row in claimed.items():
        if file.is_repeatable and (file.name in unfinished or _has_changed(file, row)):
            again[file] = row
            continue
        if row.file_sha256 == file.sha256:
            continue
        if not row.checksum:
            unchecked.append((row, file))
            continue
        is_edited = row.is_comparable and row.checksum != tokens_checksum(file, row.checksum)
        # A rolled-back deployment may bring back an empty file.
        if is_edited and row.is_empty:
            filled[file] = row
        elif is_edited and _is_empty(file):
            emptied.append(file.path.name)
        elif is_edited:
            edited.append((row, file))

    if filled or again:
        to_run = {*pending, *filled, *again}
        pending = [file for file in files if file in to_run]
    named_files = number_files(pending, files, rows)
    # A numbered file drops a view whose file is new, or gone. If that deployment is rolled back,
    # the text that made the view must run.
    outdated = [*again.values()] if len(pending) > 1 else []
    outdated += [row for row in orphans if pending and row.earlier is not None]
    return Plan(
        pending=tuple((again[f].name if f in again else name, f) for name, f in named_files),
        again=again,
        renumbered=tuple(renamed),
        unchecked=tuple(unchecked),
        edited=tuple(edited),
        filled=tuple(filled.values()),
        orphans=tuple(row.name for row in orphans),
        outdated=tuple(row.outdated() for row in outdated if row.checksum),
        warnings=(*_warnings(pending, files, named), *map(EMPTIED.format, emptied)),
    )


def _has_changed(file: Migration, row: Row) -> bool:
    """A repeatable file does not have the text that ran last, as far as that is known."""
    if row.file_sha256 == file.sha256:
        return False
    if not row.checksum:  # it was recorded by an old version, or was put back
        return row.earlier is not None
    return row.is_comparable and row.checksum != tokens_checksum(file, row.checksum)


def has_run(file: Migration, row: Row) -> bool:
    """A text of a repeatable file has run before, so a deployment that is rolled back brings it."""
    kinds = {text[:2] for text in row.texts if text.startswith(CHECKSUMS)}
    return any(tokens_checksum(file, kind)[:TEXT_LENGTH] in row.texts for kind in kinds)


def repeatable_checksum(checksum: str, row: Optional[Row]) -> str:
    """What is recorded of a repeatable file that has run, in place of this row if it has one.

    Every text that ran is known again, up to KEPT_TEXTS.
    """
    texts = row.texts if row else ()
    earlier = [text for text in dict.fromkeys(texts) if text and text != checksum[:TEXT_LENGTH]]
    return MARK + " ".join([checksum, *earlier[:KEPT_TEXTS]])


def _is_empty(file: Migration) -> bool:
    """It has no statement."""
    return tokens_checksum(file, sql_scanner.TOKENS) == sql_scanner.checksum("")


def is_example(file: Migration) -> bool:
    """It is the example that comes with db_setup, untouched."""
    return tokens_checksum(file, EXAMPLE) == EXAMPLE


def replaced_example(files: Sequence[Migration], rows: Sequence[Row]) -> Optional[Row]:
    """The row of the example, if that ran, nothing else is recorded, and no file is the example."""
    if len(rows) != 1 or rows[0].checksum != EXAMPLE or rows[0].adopted:
        return None
    return rows[0] if files and not any(map(is_example, files)) else None


def claim_rows(files: Sequence[Migration], rows: Sequence[Row]) -> dict[Migration, Row]:
    """Which row belongs to which file by its name: its own, or the one after a recorded number."""
    free = {row.name: row for row in rows}
    claimed = {file: free.pop(file.name) for file in files if file.name in free}
    for file in files:
        if file in claimed or file.number is not None:
            continue
        numbered = (
            row for row in free.values() if row.name != file_names.bare(row.name) == file.name
        )
        match = next(numbered, None)
        if match:
            claimed[file] = free.pop(match.name)
    return {file: claimed[file] for file in files if file in claimed}


def _renamed(files: Sequence[Migration], rows: Sequence[Row]) -> list[tuple[Row, Migration]]:
    """The files that have the content of a row whose own file is gone: whatever their names.

    Of several with the same content, names that are alike belong together; the others are paired in
    the order in which they ran and would run.
    """
    candidates = {file: _same_content(file, rows) for file in files}
    pairs: dict[Migration, Row] = {}
    taken: set[int] = set()
    for is_alike in (True, False):
        for file, same in candidates.items():
            if file in pairs:
                continue
            for row in same:
                if row.id in taken or (
                    is_alike and file_names.title(row.name) != file_names.title(file.name)
                ):
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
        if file_names.bare(name) == file.name:
            return name
    return file.name


def _same_content(file: Migration, rows: Sequence[Row]) -> list[Row]:
    """The rows with this file's content, in the order in which they were recorded. It is read
    only if there are any. The row of a repeatable file becomes that of no other.
    """
    rows = [row for row in rows if file.is_repeatable or row.earlier is None]
    kinds = sorted({(row.checksum or "")[:2] for row in rows if row.is_comparable})
    values = {tokens_checksum(file, kind) for kind in kinds}
    return [row for row in rows if row.file_sha256 == file.sha256 or row.checksum in values]


def _refuse_doubt(file: Migration, orphans: Iterable[Row]) -> None:
    """Raise MigrationError where a file is called like a row without a file, of unknown content."""
    for row in orphans:
        same_title = file_names.title(row.name) == file_names.title(file.name) != ""
        is_known = row.is_comparable or row.earlier is not None
        if is_known or not (same_title or _is_slip(file, row)):
            continue
        how = "by a newer version" if row.checksum else "without a checksum"
        then = "" if row.checksum else " for one deployment, then rename it"
        instead = "another name after the number" if same_title else "another number"
        raise MigrationError(
            f"{file.path.name}: is this {row.name}, which is applied and whose file is gone? "
            f"It was recorded {how}, so nothing can tell",
            f"If it is, name the file {row.name}.sql{then}; if not, give it {instead}",
        )


def _is_slip(file: Migration, row: Row) -> bool:
    """The same version, and words that are nearly the same: 002_add_ordrs, 002_add_orders."""
    recorded = _recorded(row)
    if recorded is None or file.version != recorded[0]:
        return False
    words = file_names.title(row.name), file_names.title(file.name)
    return difflib.SequenceMatcher(None, *words).ratio() > 0.75


def number_files(
    pending: Sequence[Migration],
    files: Sequence[Migration],
    rows: Sequence[Row],
) -> Iterator[tuple[str, Migration]]:
    """A file without a number gets the next one after all in the folder and in the table.

    A repeatable file needs none.
    """
    if not pending:
        return
    names = [file.name for file in files] + [row.name for row in rows]
    highest = max((file_names.number_of(name) or 0 for name in names), default=0)
    following = itertools.count(highest + 1)
    for file in pending:
        name = file.name
        if file.number is None and not file.is_repeatable:
            name = f"{next(following):03d}_{file.name}"
        if len(name) > NAME_LIMIT:
            raise MigrationError(
                f"{name}: a name may have {NAME_LIMIT} characters", "Choose a shorter one"
            )
        yield name, file


# --- What may be a slip ---------------------------------------------------------------------------


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
    """What may be a slip: no file at all, a version used twice, a late one, a date without time."""
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
            yield f"{file_names.shown_version(same[0])} is used more than once: {', '.join(same)}"
    for version, name in new:
        last = max((found for found in recorded if found[0].family == version.family), default=None)
        if last and version < last[0]:
            yield f"{name} comes late: {file_names.shown_version(last[1])} is applied already"
    times = sorted(found for found in new if found[0].kind == TIME)
    for (first, name), (second, other) in zip(times, times[1:]):
        if first.parts == second.parts[: len(first.parts)] != second.parts:
            what = f"{name} runs before {other}, since it has no time of day"
            yield f"{what}: give it one, if that is wrong"


def _recorded(row: Row) -> Optional[tuple[Version, str]]:
    """Version and name of a row; a name of Flyway's kind is recorded after a given number."""
    for name in (file_names.bare(row.name), row.name):
        version = file_names.version_of(name)
        if version and (version.family == FLYWAY or name == row.name):
            return version, name
    return None

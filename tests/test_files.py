"""The folder of migrations: which files count, in which order, under which name. No database is asked."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import file_names
import migration_files
import planning
import pytest
import sql_scanner
from common import MigrationError
from planning import Row

NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder of migrations."""
    return tmp_path


def put(folder: Path, *names: str, content: bytes = b"SELECT 1;") -> None:
    for name in names:
        (folder / name).write_bytes(content)


def load(folder: Any) -> list[migration_files.Migration]:
    problems: list[str] = []
    files = migration_files.load_migrations(folder, problems, [])
    assert problems == []
    return files


def problems_of(folder: Path) -> list[str]:
    problems: list[str] = []
    migration_files.load_migrations(folder, problems, [])
    return problems


def warnings_of(folder: Path, others: int = 0) -> list[str]:
    """The warnings, where there are so many problems."""
    problems: list[str] = []
    warnings: list[str] = []
    migration_files.load_migrations(folder, problems, warnings)
    assert len(problems) == others
    return warnings


def migrations(folder: Path, *names: str) -> list[migration_files.Migration]:
    """Files of these names, with one content, in the order in which they run."""
    put(folder, *(f"{name}.sql" for name in names))
    return load(folder)


def rows(*names: str, checksum: Optional[str] = "1:other", file_sha256: Optional[str] = None) -> list[Row]:
    return [Row(number, name, checksum, file_sha256) for number, name in enumerate(names, 1)]


# --- Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("2_b", 2),
        ("010_b", 10),
        ("00010-b", 10),
        ("20240131120000_b", 20240131120000),
        ("007", 7),
        ("0_b", 0),
        ("3b", 3),
        ("b", None),
        ("V2__b", None),
        ("_2_b", None),
        ("\u0663_b", None),  # an Arabic 3
        ("\u00b2_b", None),  # a raised 2
    ],
)
def test_number_of_name_is_its_leading_digits(name: str, number: Optional[int]) -> None:
    """Leading digits are a migration's number, and an integer."""
    assert file_names.number_of(name) == number


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("012_b", "b"),
        ("00010-b", "b"),
        ("3 b", "b"),
        ("4.b", "b"),
        ("5b", "b"),
        ("007", ""),
        ("b", "b"),
        ("V2__b", "V2__b"),
        ("1_2_b", "2_b"),
    ],
)
def test_bare_name_is_what_follows_the_number(name: str, rest: str) -> None:
    """The name after the number is what remains when a file is renumbered."""
    assert file_names.bare(name) == rest


@pytest.mark.parametrize("name", ["add_limit", "V2__b", "_helpers", "-b", " b", "b.c", "\u00b2", NFC])
def test_bare_name_of_a_given_number_is_the_files_own_name(folder: Path, name: str) -> None:
    """A file that was recorded with the number it was given is found again under its own name."""
    files = migrations(folder, name)
    recorded = [given for given, _ in planning.number_files(files, files, [])]

    claimed = planning.claim_rows(files, rows(*recorded))

    assert recorded == [f"001_{name}"]
    assert [row.name for row in claimed.values()] == recorded


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["V2__b", "V10__b", "V100__b"], id="digits inside"),
        pytest.param(["a9b10", "a10b9"], id="first difference decides"),
        pytest.param(["a", "a1", "b"], id="prefix first"),
        pytest.param(["1", "2", "\u00b2"], id="raised digits are letters"),
        pytest.param(["1", "a", "\u0663"], id="foreign digits are letters"),
        pytest.param(["a", "a1", "a1\u00b22"], id="raised digit inside"),
    ],
)
def test_natural_order_compares_runs_of_digits_as_integers(names: list[str]) -> None:
    """Names compare naturally, V2__ before V10__, and any two names can be compared."""
    backwards = names[::-1]

    assert sorted(backwards, key=file_names.natural) == names


# --- Which files, in which order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["2_b", "10_b", "100_b"], id="as integers"),
        pytest.param(["999_b", "1000_b"], id="beyond three digits"),
        pytest.param(["00009-b", "00010-b", "11_a"], id="leading zeros"),
        pytest.param(["002_b", "20240131120000_a", "20240201000000_a"], id="timestamps last"),
        pytest.param(["001_b", "002_a", "a", "b"], id="numbered before unnumbered"),
        pytest.param(["V2__b", "V10__a"], id="unnumbered naturally"),
        pytest.param(["001_a", "01_b", "1_c"], id="equal numbers"),
        pytest.param(["1", "1_a", "2"], id="number alone"),
        pytest.param(["1.9.0_a", "1.10.0_b", "2.0_c"], id="versions with dots"),
        pytest.param(["00.05.00_01_a", "00.05.00_02_b", "00.05.00_10_c", "00.10.00_01_d"], id="dots and an underscore"),
        pytest.param(["2024-01-15-120000_b", "2024-01-15-130000_a", "2024-02-01-000000_c"], id="Diesel"),
        pytest.param(["20230518191501_a", "20250625_b", "20250625093000_c", "202506260930_d"], id="times of any width"),
        pytest.param(["2023-05-18-191501_a", "20230519_b", "2023_05_20_000001_c"], id="times of any shape"),
        pytest.param(["1617222222_a", "1617222222333_b", "20210401_c"], id="seconds and milliseconds since 1970"),
        pytest.param(["202312_a", "20240115_b", "202402_c"], id="months and days"),
        pytest.param(["9999_seed", "20240101_a", "99999999_last"], id="counts, times, and what is neither"),
        pytest.param(["V1__b", "V1_1__c", "V1.2__a", "V1_10__a", "V2_7_0__d", "R__views"], id="Flyway"),
        pytest.param(
            ["1_a", "V1__b", "views", "z", "R__9_a", "R__10_b"], id="repeatable ones after those without a number"
        ),
        pytest.param(["V20231231120000__a", "V20240101__b"], id="Flyway with times"),
        pytest.param(["001_2_factors", "001_users", "002_1_a"], id="underscore before words"),
    ],
)
def test_load_migrations_puts_files_in_the_order_in_which_they_run(folder: Path, names: list[str]) -> None:
    """Numbers compare as integers, then names naturally; files without a number come last."""
    put(folder, *(f"{name}.sql" for name in reversed(names)))

    files = load(folder)

    assert [file.name for file in files] == names


@pytest.mark.parametrize(
    "name",
    [
        "002_b.down.sql",
        "002_b.DOWN.SQL",
        "notes.txt",
        "._001_a.sql",
        ".002_b.sql",
        "002_b.sql.bak",
        "002_b.sql~",
        "sql",
    ],
)
def test_load_migrations_leaves_out_what_is_not_a_migration(folder: Path, name: str) -> None:
    """`*.down.sql` is never run; hidden files and files that are not `.sql` are ignored."""
    put(folder, "001_a.sql", name)

    files = load(folder)

    assert [file.name for file in files] == ["001_a"]


@pytest.mark.parametrize("ending", [".sql", ".SQL", ".Sql"])
def test_load_migrations_takes_sql_in_any_case(folder: Path, ending: str) -> None:
    """`.SQL` counts, and is not part of the name."""
    put(folder, f"001_a{ending}")

    files = load(folder)

    assert [(file.name, file.path.name) for file in files] == [("001_a", f"001_a{ending}")]


@pytest.mark.parametrize("name", ["old", "old.sql"])
def test_load_migrations_names_a_sub_folder_in_a_warning(folder: Path, name: str) -> None:
    """What is in a sub-folder is not run, and that is said; it may be meant where the folder has files of its own."""
    (folder / name).mkdir()
    put(folder / name, "001_a.sql")
    put(folder, "002_b.sql")
    problems: list[str] = []
    warnings: list[str] = []

    files = migration_files.load_migrations(folder, problems, warnings)

    assert ([file.name for file in files], problems) == (["002_b"], [])
    what = f"migrations/{name}/ is not looked into, but holds 001_a.sql"
    assert warnings == [f"{what}: only files in migrations/ itself are run"]


@pytest.mark.parametrize(
    "name",
    [
        "20240115120000_init/migration.sql",  # Prisma, Drizzle
        "2024-01-15-120000_init/up.sql",  # Diesel
        "sql/001_a.SQL",
        "old/2023/001_a.sql",
    ],
)
def test_load_migrations_refuses_a_folder_whose_sql_is_in_sub_folders(folder: Path, name: str) -> None:
    """A deployment that applies nothing, because every file is one folder too deep, is not a success."""
    (folder / name).parent.mkdir(parents=True)
    put(folder, name)

    where, inside = name.split("/", 1)
    what = f"migrations/{where}/ is not looked into, but holds {inside}"
    assert problems_of(folder) == [f"{what}: only files in migrations/ itself are run"]


def test_load_migrations_refuses_a_sub_folder_that_is_called_like_a_migration(folder: Path) -> None:
    """Next to files that run, a folder with a version in its name should have run too."""
    (folder / "002_b").mkdir()
    put(folder, "001_a.sql", "002_b/up.sql", "002_b/down.sql")

    (problem,) = problems_of(folder)

    assert problem == (
        "migrations/002_b/ is not looked into, but holds up.sql: only files in migrations/ itself are run"
    )


def test_load_migrations_refuses_numbered_files_in_a_sub_folder_next_to_files_without(folder: Path) -> None:
    """As Graphile Migrate has them: what the folder itself holds is not what should run."""
    (folder / "committed").mkdir()
    put(folder, "current.sql", "committed/000001.sql")

    (problem,) = problems_of(folder)

    assert problem.startswith("migrations/committed/ is not looked into, but holds 000001.sql: ")


def test_load_migrations_refuses_a_folder_of_numbered_data_alone(folder: Path) -> None:
    """Another tool's migrations are not data that is next to ours."""
    put(folder, "01_a.json")

    assert problems_of(folder) == [f"01_a.json {LIKE_A_MIGRATION}"]


def test_load_migrations_does_not_mind_a_sub_folder_without_sql(folder: Path) -> None:
    """Nothing in it could be a migration."""
    (folder / "meta").mkdir()
    put(folder, "0000_a.sql", "meta/0000_snapshot.json", "meta/_journal.json")
    warnings: list[str] = []

    assert [file.name for file in migration_files.load_migrations(folder, [], warnings)] == ["0000_a"]
    assert warnings == []


LIKE_A_MIGRATION = "looks like a migration, but only *.sql is run: rename it, or take it out of migrations/"


@pytest.mark.parametrize(
    "name",
    [
        *("002_b.sql.txt", "x.sql.txt", "002_b.sql.gz", "V1__b.sql.conf", "002_b.sql.j2"),
        *(
            "x.psql",
            "x.pgsql",
            "x.SQLL",
            "x.ddl",
            "002_b.txt",
            "002_b",
            "002_b.py",
            "20240115120000_b.js",
            "V2__b.java",
        ),
    ],
)
def test_load_migrations_refuses_what_looks_like_a_migration_but_does_not_run(folder: Path, name: str) -> None:
    """The author of such a name expects the file to run."""
    put(folder, "001_a.sql", name)

    assert problems_of(folder) == [f"{name} {LIKE_A_MIGRATION}"]


@pytest.mark.parametrize("name", ["002_b.sql ", "002_b.sql\t"])
def test_load_migrations_refuses_a_name_that_ends_in_a_blank(folder: Path, name: str) -> None:
    """The blank cannot be seen, so the message names it."""
    put(folder, name)

    assert problems_of(folder) == [f"{name!r} does not end in .sql, but in a blank: rename it"]


@pytest.mark.parametrize("name", ["002_b.sql.bak", "002_b.sql~", "002_b.sql.disabled", "b.SQL.orig", "b.sql.example"])
def test_load_migrations_warns_of_what_is_left_aside(folder: Path, name: str) -> None:
    """A file that was named so that it does not run may be meant, and is said all the same."""
    put(folder, "001_a.sql", name)

    assert warnings_of(folder) == [f"{name} is not run, for it does not end in .sql"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "notes.txt",
            "README.md",
            ".gitkeep",
            "._001_a.sql",
            ".#002_b.sql",
            ".DS_Store",
            "atlas.sum",
            "migration_lock.toml",
        ),
        *("001_a.down.sql", "001_countries.csv", "001_why.md", "data.sqlite", "sql"),
    ],
)
def test_load_migrations_says_nothing_of_what_is_not_a_migration(folder: Path, name: str) -> None:
    """A file that nobody expects to run is fine."""
    put(folder, "001_a.sql", name)

    assert warnings_of(folder) == []


@pytest.mark.parametrize("name", [".002_b.sql", ".V2__b.SQL", ".add_b.sql"])
def test_load_migrations_warns_of_a_hidden_migration(folder: Path, name: str) -> None:
    """A hidden file can be meant as a migration; what editors and systems hide gets no warning."""
    put(folder, "001_a.sql", name)

    assert warnings_of(folder) == [f"{name} is hidden, and not run"]


def test_load_migrations_refuses_a_link_that_leads_nowhere(folder: Path) -> None:
    """The file that the link leads to was not deployed."""
    put(folder, "001_a.sql")
    (folder / "006_money.sql").symlink_to("../../shared/006_money.sql")
    (folder / "007_round.sql").symlink_to("007_round.sql")

    assert problems_of(folder) == [
        "006_money.sql is a link to ../../shared/006_money.sql, which cannot be followed: put the file itself here",
        "007_round.sql is a link to 007_round.sql, which cannot be followed: put the file itself here",
    ]


def test_load_migrations_refuses_what_is_not_a_regular_file(folder: Path) -> None:
    """A pipe would be read forever, or once."""
    os.mkfifo(folder / "001_a.sql")

    assert problems_of(folder) == ["001_a.sql is not a regular file: put the file itself here"]


def test_load_migrations_refuses_a_name_that_cannot_be_recorded(folder: Path) -> None:
    """A name in another encoding than UTF-8, or with a line end, is refused before anything runs."""
    Path(os.fsdecode(os.fsencode(folder) + b"/001_\xfc.sql")).write_text("SELECT 1")
    put(folder, "002_\n.sql")

    assert problems_of(folder) == [
        "'001_\\udcfc.sql': a name is printable and in UTF-8: rename it",
        "'002_\\n.sql': a name is printable and in UTF-8: rename it",
    ]


def test_load_migrations_finds_sql_next_to_the_folder(tmp_path: Path) -> None:
    """A file that was put next to migrations/ instead of into it is said: refused where it has a number."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    put(tmp_path, "initializer.py", "002_b.sql", "dump.sql")
    put(folder, "001_a.sql")

    assert warnings_of(folder, others=1) == ["dump.sql is next to migrations/, not in it, and is not run: move it"]
    assert problems_of(folder) == ["002_b.sql is next to migrations/, not in it, and is not run: move it"]


def test_load_migrations_finds_a_folder_of_another_name(tmp_path: Path) -> None:
    """An empty migrations/ next to a folder that has the files is not a success; its first file is named."""
    folder = tmp_path / "migrations"
    for path in (folder, tmp_path / "migration", tmp_path / "queries"):
        path.mkdir()
    files = ("migration/001_a.sql", "migration/002_b.sql", "queries/list.sql")
    put(tmp_path, "initializer.py", *files)
    texts = [f"{name} is next to migrations/, not in it, and is not run: move it" for name in files]

    assert (problems_of(folder), warnings_of(folder, others=1)) == (texts[:1], texts[2:])
    put(folder, "001_a.sql")
    assert (problems_of(folder), warnings_of(folder)) == ([], texts[:1])


@pytest.mark.parametrize(
    ("names", "undoing"),
    [
        (["001-a-up", "001-a-down"], ["001-a-down undoes another file"]),  # db-migrate
        (["001.do.a", "001.undo.a"], ["001.undo.a undoes another file"]),  # postgrator
        (["001_a.do", "001_a.undo"], ["001_a.undo undoes another file"]),
        (["001_a", "001_a.rollback"], ["001_a.rollback undoes another file"]),  # yoyo
        (["001_a", "002_rollback"], []),
        (["V1__a", "V2__b", "U2__b"], ["U2__b undoes V2"]),
        (["V1__a", "V1_2__b", "B1_2__all"], ["B1_2__all repeats V1_2"]),
        (["V1__a", "afterEachMigrate__log"], ["afterEachMigrate__log is a callback of Flyway"]),
        (["001_a", "beforeSale"], []),
        (["V1__a", "U2__b"], []),
    ],
)
def test_load_migrations_refuses_files_that_undo_others(folder: Path, names: list[str], undoing: list[str]) -> None:
    """Other tools keep both directions in files of their own, and both would run."""
    put(folder, *(f"{name}.sql" for name in names))

    expected = [re.sub("^([^ ]+)", r"\1.sql", what) for what in undoing]
    assert problems_of(folder) == [f"{what}, and would run as well: take it out of migrations/" for what in expected]


@pytest.mark.parametrize("spelling", [NFC, NFD], ids=["NFC", "NFD"])
def test_load_migrations_knows_one_spelling_for_a_name(folder: Path, spelling: str) -> None:
    """A name that a Mac took apart is the same name."""
    put(folder, f"001_{spelling}.sql")

    files = load(folder)

    assert [file.name for file in files] == [f"001_{NFC}"]


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param("001_a.SQL", "001_a.sql", id="case"), pytest.param(f"{NFD}.sql", f"{NFC}.sql", id="NFC and NFD")],
)
def test_load_migrations_refuses_two_files_of_one_name(folder: Path, first: str, second: str) -> None:
    """One name is one migration: two files cannot both be it, and both are named."""
    paths = []
    for parent, name in (("1", first), ("2", second)):  # a Mac could not keep both in one folder
        (folder / parent).mkdir()
        put(folder / parent, name)
        paths.append(folder / parent / name)
    problems: list[str] = []

    listed = SimpleNamespace(is_dir=lambda: True, iterdir=lambda: paths, parent=folder)
    migration_files.load_migrations(listed, problems, [])

    assert problems == [f"{second} and {first} have the same name: rename one of them"]


# --- Texts ----------------------------------------------------------------------------------------------------------

CHANGED = (
    "001_a.sql: it was changed while this run read it, so it is not applied. Nothing has been applied. "
    "Invoke again when nobody writes to it."
)
NOT_UTF_8 = "is not UTF-8. Nothing has been applied. Save the file as UTF-8 and deploy again."
NUL = (
    "a NUL character, which PostgreSQL cannot take. Nothing has been applied. Remove it (the file may be UTF-16: save "
    "it as UTF-8) and deploy again."
)
LONG = "INSERT INTO t VALUES ('\u00fc', 1, 2);\n" * 50_000  # long enough to be mapped into memory


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(b"", "", id="empty"),
        pytest.param("\ufeffSELECT 1".encode(), "SELECT 1", id="BOM"),
        pytest.param(b"SELECT 1;\r\nSELECT 2;", "SELECT 1;\r\nSELECT 2;", id="CRLF is kept"),
        pytest.param("SELECT '\u00fc\U0001f600'".encode(), "SELECT '\u00fc\U0001f600'", id="beyond ASCII"),
        pytest.param(f"\ufeffSELECT 1;\r\n{LONG}".encode(), f"SELECT 1;\r\n{LONG}", id="long, with a BOM"),
    ],
)
def test_read_text_is_the_file_without_its_bom(folder: Path, content: bytes, text: str) -> None:
    """A file's text is its content without the BOM."""
    put(folder, "001_a.sql", content=content)

    assert migration_files.read_text(load(folder)[0]) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"SELECT 1;\nSELECT 'M\xfcller';\n", f"001_a.sql:2:10: byte 0xfc {NOT_UTF_8}", id="Latin-1"),
        pytest.param(
            "-- \u00fc\r\nSELECT '\u00fc\u00fc".encode() + b"\xe4'",
            f"001_a.sql:2:11: byte 0xe4 {NOT_UTF_8}",
            id="Latin-1 after UTF-8",
        ),
        pytest.param(b"\xef\xbb\xbfa\n\xfc", f"001_a.sql:2:1: byte 0xfc {NOT_UTF_8}", id="Latin-1 after a BOM"),
        pytest.param(b"\xef\xbb\xbfa\xfc", f"001_a.sql:1:2: byte 0xfc {NOT_UTF_8}", id="Latin-1 in a BOM's line"),
        pytest.param(LONG.encode() + b"\xfc", f"001_a.sql:50001:1: byte 0xfc {NOT_UTF_8}", id="Latin-1, long"),
        pytest.param(f"{LONG}\0".encode(), f"001_a.sql:50001:1: {NUL}", id="NUL, long"),
        pytest.param(
            "\ufeffSELECT 1;".encode("utf-16-le"), f"001_a.sql:1:1: byte 0xff {NOT_UTF_8}", id="UTF-16 with BOM"
        ),
        pytest.param("-- \u00fc\r\nSELECT '\u00fc\0';".encode(), f"001_a.sql:2:10: {NUL}", id="NUL"),
        pytest.param("SELECT 1;".encode("utf-16-le"), f"001_a.sql:1:2: {NUL}", id="UTF-16 without BOM"),
    ],
)
def test_read_text_of_what_is_not_text_names_the_place(folder: Path, content: bytes, message: str) -> None:
    """What is not UTF-8 or holds a NUL is refused with its place and the way out."""
    put(folder, "001_a.sql", content=content)
    file = load(folder)[0]

    with pytest.raises(MigrationError) as caught:
        migration_files.read_text(file)

    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["SELECT 1;", "\ufeffSELECT 1;", LONG], ids=["short", "BOM", "long"])
def test_read_text_again_is_the_same_text_or_refused(folder: Path, text: str) -> None:
    """What was checked, what is sent and what is recorded are the same bytes."""
    put(folder, "001_a.sql", content=text.encode())
    (file,) = load(folder)

    first = migration_files.read_text(file)
    put(folder, "001_a.sql", content=f"{text} commit;".encode())

    with pytest.raises(MigrationError) as caught:
        migration_files.read_text(file)
    assert str(caught.value) == CHANGED
    assert file.sha256 == hashlib.sha256(text.encode()).hexdigest()
    put(folder, "001_a.sql", content=text.encode())
    assert migration_files.read_text(file) == first


def test_read_text_of_a_file_whose_bytes_were_compared_is_of_these_bytes(folder: Path) -> None:
    """A file that was found to be as recorded cannot be another one later."""
    put(folder, "001_a.sql")
    (file,) = load(folder)
    assert file.sha256

    put(folder, "001_a.sql", content=b"SELECT 2;")

    with pytest.raises(MigrationError) as caught:
        migration_files.read_text(file)
    assert str(caught.value) == CHANGED


def test_read_text_of_a_file_that_has_gone_says_so(folder: Path) -> None:
    """The error is a MigrationError with the reason, not Python's own."""
    put(folder, "001_a.sql")
    (file,) = load(folder)
    file.path.unlink()

    for read in (migration_files.read_text, lambda migration: migration.sha256):
        with pytest.raises(MigrationError) as caught:
            read(file)
        assert str(caught.value) == (
            "001_a.sql cannot be read: No such file or directory. Nothing has been applied. Invoke again when it can."
        )


# --- Which row belongs to which file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "recorded", "claims"),
    [
        pytest.param(["001_a"], ["001_a"], {"001_a": "001_a"}, id="own name"),
        pytest.param(["001_a", "002_b"], ["001_a"], {"001_a": "001_a"}, id="new file"),
        pytest.param(["a"], ["a"], {"a": "a"}, id="recorded raw"),
        pytest.param(["a"], ["003_a"], {"a": "003_a"}, id="after a number"),
        pytest.param(["a"], ["00003-a"], {"a": "00003-a"}, id="after another kind of number"),
        pytest.param(["a"], ["a", "003_a"], {"a": "a"}, id="own name before number"),
        pytest.param(["a"], ["013_a", "016_a"], {"a": "013_a"}, id="recorded twice"),
        pytest.param(["a", "003_a"], ["003_a"], {"003_a": "003_a"}, id="the numbered file has it"),
        pytest.param(["a", "b"], ["001_b"], {"b": "001_b"}, id="a file sorts before"),
        pytest.param(["005_a"], ["004_a"], {}, id="another number"),
        pytest.param(["a"], ["004_aa", "005_A", "xa"], {}, id="only alike"),
        pytest.param(["004"], ["004"], {"004": "004"}, id="number alone"),
    ],
)
def test_claim_rows_goes_by_the_name_and_the_name_after_a_number(
    folder: Path, files: list[str], recorded: list[str], claims: dict[str, str]
) -> None:
    """A file is applied if its own name is recorded, or its name after a recorded number."""
    claimed = planning.claim_rows(migrations(folder, *files), rows(*recorded))

    assert {file.name: row.name for file, row in claimed.items()} == claims


# --- Numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "recorded", "names"),
    [
        pytest.param(["a"], [], ["001_a"], id="alone"),
        pytest.param(["001_a", "002_b"], [], ["001_a", "002_b"], id="numbered keep theirs"),
        pytest.param(["a", "b"], [], ["001_a", "002_b"], id="in name order"),
        pytest.param(["012_x", "add_limit"], [], ["012_x", "013_add_limit"], id="after the folder's"),
        pytest.param(["a"], ["041_x"], ["042_a"], id="after the table's"),
        pytest.param(["012_x", "a"], ["041_x"], ["012_x", "042_a"], id="after both"),
        pytest.param(["999_x", "a"], [], ["999_x", "1000_a"], id="a fourth digit"),
        pytest.param(["20240131_x", "a"], [], ["20240131_x", "20240132_a"], id="after a timestamp"),
        pytest.param(["V2__b", "V10__a"], [], ["001_V2__b", "002_V10__a"], id="number inside the name"),
        pytest.param(["0_x", "a"], [], ["0_x", "001_a"], id="after zero"),
    ],
)
def test_number_files_gives_the_next_number(
    folder: Path, files: list[str], recorded: list[str], names: list[str]
) -> None:
    """A file without a number gets the next one after every number seen, in name order, with three digits."""
    found = migrations(folder, *files)

    numbered = [name for name, _ in planning.number_files(found, found, rows(*recorded))]

    assert numbered == names


def test_number_files_takes_the_longest_name_that_the_table_can_hold() -> None:
    """migration_name holds 255 characters, not bytes."""
    name = "\u00fc" * 251
    file = migration_files.Migration(Path(f"{name}.sql"), name)

    assert [given for given, _ in planning.number_files([file], [file], [])] == [f"001_{name}"]


def test_number_files_refuses_a_name_that_the_table_cannot_hold() -> None:
    """A name too long for its column, with the number it is given, is refused with a way out."""
    name = "b" * 252
    file = migration_files.Migration(Path(f"{name}.sql"), name)

    with pytest.raises(MigrationError) as caught:
        list(planning.number_files([file], [file], []))

    assert str(caught.value).startswith(f"001_{name}: ")
    for part in ("255 characters", "Nothing has been applied.", "shorter"):
        assert part in str(caught.value)


# --- The next name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "following"),
    [
        ([], "001_"),
        (["a"], "001_"),
        (["0041_a", "b"], "0042_"),
        (["9_a", "10_b"], "11_"),
        (["20200102030405_a"], "20260203040506_"),
        (["20300102030405_a"], "20300102030406_"),
        (["20240131_a"], "20260203_"),
        (["20260203_a"], "20260204_"),
        (["202401311200_a"], "202602030405_"),
        (["2024-01-15-120000_a"], "2026-02-03-040506_"),
        (["2024_01_15_120000_a"], "2026_02_03_040506_"),
        (["2027-01-15-120000_a"], "2027-01-15-120001_"),
        (["1700000000_a"], "1770091506_"),
        (["1617222222222-a"], "1770091506000_"),
        (["1.9.0_a", "1.10.0_b"], "1.10.1_"),
        (["00.05.00_01_a"], "00.05.00_02_"),
        (["V2_7_0__a"], "V2_7_1__"),
        (["V20240101120000__a"], "V20260203040506__"),
    ],
)
def test_next_version_follows_all_and_is_written_like_the_highest(there: list[str], following: str) -> None:
    """The next number is written like those in the folder."""
    now = datetime(2026, 2, 3, 4, 5, 6, tzinfo=timezone.utc)

    assert file_names.next_version(there, now) == following
    every = [*there, f"{following}new"]
    versioned = [name for name in every if file_names.version_of(name)]
    assert max(versioned, key=file_names.order) == every[-1]


# --- The plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "recorded", "warnings"),
    [
        pytest.param(["001_a", "002_b"], [], [], id="nothing odd"),
        pytest.param(["002_a", "002_b"], [], ["number 2 is used more than once: 002_a, 002_b"], id="equal"),
        pytest.param(
            ["001_x", "02_a", "2_b"], ["001_x"], ["number 2 is used more than once: 02_a, 2_b"], id="equal as integers"
        ),
        pytest.param(["002_a", "002_b"], ["002_a", "002_b"], [], id="equal and applied is old news"),
        pytest.param(
            ["001_a", "002_b", "003_c"],
            ["001_a", "003_c"],
            ["002_b comes late: number 3 is applied already"],
            id="late",
        ),
        pytest.param(["001_a", "004_b"], [], [], id="gap"),
        pytest.param(["003_a", "004_b"], [], [], id="begins at three"),
        pytest.param(["002_b", "003_c"], ["001_a"], [], id="an old file was deleted"),
        pytest.param(["20240131120000_a", "20240201120000_b"], [], [], id="timestamps"),
        pytest.param(["001_a", "20240201120000_b"], [], [], id="timestamps from now on"),
        pytest.param(["a", "b"], [], [], id="unnumbered"),
        pytest.param(["2024-01-15-120000_a", "2024-01-15-130000_b", "2024-02-01-000000_c"], [], [], id="Diesel"),
        pytest.param(["1.9.0_a", "1.10.0_b", "1.12_c"], [], [], id="versions with dots"),
        pytest.param(
            ["1.9.0_a", "1.9.0_b"], [], ["version 1.9.0 is used more than once: 1.9.0_a, 1.9.0_b"], id="equal versions"
        ),
        pytest.param(
            ["001_2_factors", "001_users"],
            [],
            ["number 1 is used more than once: 001_2_factors, 001_users"],
            id="equal before words that begin with a number",
        ),
        pytest.param(
            ["1.9.0_a", "1.10.0_b"],
            ["1.10.0_b"],
            ["1.9.0_a comes late: version 1.10.0 is applied already"],
            id="late version",
        ),
        pytest.param(
            ["20230518191501_a", "20250625_b"],
            ["20250625_b"],
            ["20230518191501_a comes late: number 20250625 is applied already"],
            id="late time of another width",
        ),
        pytest.param(["20250625_b", "20250626120000_c"], ["20250625_b"], [], id="later time of another width"),
        pytest.param(["V1__a", "V2_7_0__b", "V2_10__c"], [], [], id="Flyway"),
        pytest.param(
            ["V1__a", "V1__b", "V2__c"],
            ["001_V2__c"],
            [
                "version 1 is used more than once: V1__a, V1__b",
                "V1__a comes late: version 2 is applied already",
                "V1__b comes late: version 2 is applied already",
            ],
            id="Flyway, equal and late",
        ),
        pytest.param(
            ["20250625_b", "20250625093000_a"],
            [],
            ["20250625_b runs before 20250625093000_a, since it has no time of day: give it one, if that is wrong"],
            id="one day, one time",
        ),
        pytest.param([], ["001_a"], [planning.NO_FILES], id="no file left"),
    ],
)
def test_make_plan_says_what_may_be_a_slip(
    folder: Path, files: list[str], recorded: list[str], warnings: Sequence[str]
) -> None:
    """Equal numbers, a late lower number and a date without time are allowed and said; nothing else is."""
    found = migrations(folder, *files)
    checksum = migration_files.tokens_checksum(found[0]) if found else None

    plan = planning.make_plan(found, rows(*recorded, checksum=checksum))

    assert list(plan.warnings) == warnings


def test_make_plan_does_not_call_the_old_number_of_a_renumbered_file_used(folder: Path) -> None:
    """Where a file made room for another of its number, that number is used once."""
    put(folder, "004_theirs.sql", content=b"SELECT 'theirs'")
    put(folder, "005_ours.sql", content=b"SELECT 'ours'")
    theirs, ours = load(folder)

    plan = planning.make_plan([theirs, ours], rows("004_ours", checksum=migration_files.tokens_checksum(ours)))

    assert [(row.name, file.name) for row, file in plan.renumbered] == [("004_ours", "005_ours")]
    assert [name for name, _ in plan.pending] == ["004_theirs"]
    assert not [warning for warning in plan.warnings if "more than once" in warning]


def test_make_plan_does_not_scan_files_that_are_as_recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged file is recognised by its bytes."""
    (file,) = migrations(folder, "001_a")
    monkeypatch.setattr(sql_scanner, "checksum", lambda _: pytest.fail("scanned"))

    plan = planning.make_plan([file], rows("001_a", checksum="1:x", file_sha256=file.sha256))

    assert plan == planning.Plan()


def test_make_plan_names_rows_without_a_file(folder: Path) -> None:
    """A deleted file, or one of a newer deployment, is an orphan and nothing else."""
    (file,) = migrations(folder, "001_a")

    plan = planning.make_plan([file], rows("001_a", "002_b", checksum=migration_files.tokens_checksum(file)))

    assert (plan.orphans, plan.pending, plan.edited) == (("002_b",), (), ())


# --- Edits ----------------------------------------------------------------------------------------------------------

RICH = """CREATE TABLE t (x int DEFAULT 1 + 1, "Y" text DEFAULT 'a
b');
CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN E'x\\n';
END $$;
INSERT INTO t VALUES (1, 'a  b');
"""

NO_EDITS = [
    pytest.param(lambda text: text, id="nothing"),
    pytest.param(lambda text: "\ufeff" + text, id="BOM"),
    pytest.param(lambda text: text.replace("\n", "\r\n"), id="CRLF everywhere"),
    pytest.param(lambda text: "-- why\n" + text, id="comment before"),
    pytest.param(lambda text: text + "-- why", id="comment at the end"),
    pytest.param(lambda text: text.replace("TABLE t", "TABLE /* a /* nested */ one */ t"), id="comment inside"),
    pytest.param(lambda text: text.replace("TABLE t", "TABLE--why\nt"), id="line comment inside"),
    pytest.param(lambda text: text.replace("(x int", "(\n\t x\f  int"), id="white space"),
    pytest.param(lambda text: text.replace("1 + 1", "1+1"), id="no white space"),
    pytest.param(lambda text: text.rstrip(), id="no final line end"),
    pytest.param(lambda text: text.rstrip().rstrip(";"), id="no final semicolon"),
    pytest.param(lambda text: ";" + text + ";;\n;", id="empty statements"),
]
EDITS = [
    pytest.param(lambda text: text.replace("INSERT", "-- INSERT"), id="statement commented out"),
    pytest.param(lambda text: text + "SELECT 1;", id="statement added"),
    pytest.param(lambda text: text.replace("INSERT INTO t VALUES (1, 'a  b');", ""), id="statement removed"),
    pytest.param(lambda text: text.replace("1 + 1", "1 - 1"), id="operator"),
    pytest.param(lambda text: text.replace("1 + 1", "1 + 10"), id="number"),
    pytest.param(lambda text: text.replace('"Y"', '"y"'), id="quoted name"),
    pytest.param(lambda text: text.replace("x int", "z int"), id="name"),
    pytest.param(lambda text: text.replace("x int", "x bigint"), id="type"),
    pytest.param(lambda text: text.replace("'a  b'", "'a b'"), id="white space in a string"),
    pytest.param(lambda text: text.replace("'a\nb'", "'a\n\nb'"), id="line in a string"),
    pytest.param(lambda text: text.replace("'a  b'", "'a--b'"), id="no comment but string"),
    pytest.param(lambda text: text.replace("E'x", "'x"), id="kind of string in a body"),
    pytest.param(lambda text: text.replace("RETURN", "RETURN "), id="white space in a body"),
    pytest.param(lambda text: text.replace("(1, ", "(1; "), id="semicolon for comma"),
    pytest.param(lambda text: text.replace("(1, 'a  b')", "(1, 'a  b'), (1, 'a  b')"), id="more of the same"),
]


def edited_after(before: str, after: str, folder: Path) -> list[str]:
    """What the plan takes for edited, where `before` was applied and `after` is in the folder."""
    file = migration_files.Migration(folder / "001_t.sql", "001_t")
    file.path.write_bytes(before.encode())
    row = Row(1, "001_t", migration_files.tokens_checksum(file), file.sha256)
    file.path.write_bytes(after.encode())
    again = migration_files.Migration(file.path, file.name)  # as the next run finds it
    return [migration.name for _, migration in planning.make_plan([again], [row]).edited]


@pytest.mark.parametrize("change", NO_EDITS)
def test_change_outside_the_tokens_is_not_an_edit(tmp_path: Path, change: Any) -> None:
    """Comments, white space, line ends (in literals and bodies as well) and a BOM do not count."""
    assert edited_after(RICH, change(RICH), tmp_path) == []


@pytest.mark.parametrize("change", EDITS)
def test_change_of_a_token_is_an_edit(tmp_path: Path, change: Any) -> None:
    """Every other change of a token counts."""
    assert change(RICH) != RICH
    assert edited_after(RICH, change(RICH), tmp_path) == ["001_t"]


@pytest.mark.parametrize(
    ("mark", "line"),
    [
        ("-- migrate:up\nSELECT 1;\n-- migrate:down\n", 3),
        ("-- Up Migration\nSELECT 1;\n-- Down Migration\n", 3),
        ("-- +goose Up\nSELECT 1;\n\n-- +goose Down\n", 4),
        ("-- +migrate Up\nSELECT 1;\n-- +migrate Down\n", 3),
        ("SELECT 1;\n--//@UNDO\n", 2),
        ("SELECT 1;\n-- //@UNDO\n", 2),
        ("-- !Ups\nSELECT 1;\n-- !Downs\n", 3),
        ("SELECT 1;\n---- create above / drop below ----\n", 2),
        ("-- rambler up\nSELECT 1;\n-- rambler down\n", 3),
        ("-- Up\nSELECT 1;\n--- Down ---\n", 3),
        ("-- UP MIGRATION\nSELECT 1;\n-- DOWN MIGRATION\n", 3),
        ("-- migrate\nSELECT 1;\n-- rollback\n", 3),
        ("-- apply\nSELECT 1;\n-- revert\n", 3),
        ("-- forward\nSELECT 1;\n-- backwards\n", 3),
        ("-- ==== UP ====\nSELECT 1;\n-- ==== DOWN ====\n", 3),
    ],
)
def test_half_that_undoes_a_file_is_refused(tmp_path: Path, mark: str, line: int) -> None:
    """Both directions in one file would both run, and nothing would be left of it: as each tool marks them."""
    path = tmp_path / "001_t.sql"
    path.write_text(f"{mark}DROP TABLE t;\n")

    with pytest.raises(MigrationError) as caught:
        migration_files.load_script(migration_files.Migration(path, "001_t"), ours=())

    assert str(caught.value).startswith(f"001_t.sql:{line}:1: {migration_files.UNDOES}. Nothing has been applied.")


@pytest.mark.parametrize(
    "text",
    [
        "-- down\nSELECT 1;",
        "-- undo\nSELECT 1;",
        "-- up to here\nSELECT 1;\n-- down payments\nSELECT 2;",
        "SELECT '\n-- up\n';\nSELECT 2;",
    ],
)
def test_comment_that_is_not_a_mark_is_a_comment(tmp_path: Path, text: str) -> None:
    """A comment that only contains such words does not divide a file into two halves."""
    path = tmp_path / "001_t.sql"
    path.write_text(text)

    assert migration_files.load_script(migration_files.Migration(path, "001_t"), ours=()).statement_count > 0


def test_mark_of_an_undoing_half_with_nothing_after_it_is_a_comment(tmp_path: Path) -> None:
    """Only what would run is refused: a file whose lower half is empty, or commented out, is taken as it is."""
    for text in ("SELECT 1;\n-- migrate:down\n", "SELECT 1;\n-- Down Migration\n-- DROP TABLE t;\n"):
        path = tmp_path / "001_t.sql"
        path.write_text(text)

        script = migration_files.load_script(migration_files.Migration(path, "001_t"), ours=())

        assert script.statement_count == 1


def test_files_up_to_a_name_are_found_with_and_without_its_ending(folder: Path) -> None:
    files = migrations(folder, "001_a", "002_b", "003_c")

    assert [file.name for file in migration_files.up_to(files, "002_b")] == ["001_a", "002_b"]
    assert [file.name for file in migration_files.up_to(files, "001_a.sql")] == ["001_a"]
    assert migration_files.up_to(files, "002_c") == ()
    assert migration_files.up_to(migrations(folder, "001_a", "R__b"), "R__b") == ()


@pytest.mark.parametrize(("text", "is_odd"), [("", True), ("-- later\n", True), ("SELECT 1;", False)])
def test_file_without_a_statement_is_odd(text: str, is_odd: bool) -> None:
    found = list(migration_files.oddities("001_a", sql_scanner.read_script(text)))

    assert found == is_odd * ["001_a has no statement, so nothing runs until it is filled in"]


# --- Repeatable files -----------------------------------------------------------------------------------------------


def test_repeatable_is_a_file_by_its_name_alone() -> None:
    """As in Flyway, whose prefix it is."""
    assert all(map(file_names.is_repeatable, ["R__a", "R__1", "R__É", "R___"]))
    assert not any(map(file_names.is_repeatable, ["R__", "R_a", "r__a", "001_R__a", "V1__R__a", "aR__b", "R"]))


@pytest.mark.parametrize("recorded", [None, "1:a", "9:a", "R1:a", "R1:a 1:b 0:c", "R"])
def test_checksum_of_a_row_is_recorded_as_it_was_read(recorded: Optional[str]) -> None:
    """A renamed file keeps what is known of its texts."""
    assert Row(1, "a", recorded, None).as_read().recorded_checksum == recorded


def test_texts_are_kept_up_to_a_hundred() -> None:
    """The last ones, each once; so a row does not grow forever."""
    row = planning.Row(1, "R__v", "1:0", None)
    for number in range(1, 300):
        recorded = planning.repeatable_checksum(f"1:{number:03}", row)
        row = planning.Row(1, "R__v", recorded, None).as_read()

    assert row.earlier is not None
    assert len(row.earlier) == planning.KEPT_TEXTS == 100
    assert planning.repeatable_checksum("1:x", planning.Row(1, "R__v", "R1:x 1:y", None).as_read()) == "R1:x 1:y"


@pytest.mark.parametrize(
    ("recorded", "again"),
    [
        ("R{}", False),
        ("{}", False),
        ("R1:other", True),
        ("1:other", True),
        ("R1:other {}", True),
        ("R", True),  # put back after a file had removed it
        (None, False),  # of an older version, which knew no checksums
        ("R9:newer", False),
        ("9:newer", False),
    ],
)
@pytest.mark.parametrize("name", ["R__a", "002_R__a"])
def test_plan_runs_a_repeatable_file_again_whose_text_has_changed(
    folder: Path, name: str, recorded: Optional[str], again: bool
) -> None:
    """As far as the row tells, which keeps its name; it is no edit. One that has run in part always runs."""
    file, numbered = migrations(folder, "001_b", "R__a")[::-1]
    checksum = recorded and recorded.format(migration_files.tokens_checksum(file))
    row = Row(7, name, checksum, None).as_read()

    plan = planning.make_plan([numbered, file], [row, Row(1, "001_b", "1:x", numbered.sha256)])
    unfinished = planning.make_plan([file], [row], ["R__a"])

    assert (plan.pending, plan.again) == ((((name, file),), {file: row}) if again else ((), {}))
    assert (plan.edited, plan.orphans, plan.warnings) == ((), (), ())
    assert bool(plan.unchecked) == (recorded is None)
    assert unfinished.pending == ((name, file),)
    assert planning.make_plan([file], [row._replace(file_sha256=file.sha256)]).pending == ()


@pytest.mark.parametrize(
    ("recorded", "has_run"),
    [
        ("R{}", True),
        ("{}", True),
        ("R1:other 1:b {}", True),
        ("R1:other 0:b", False),
        ("R{}x", True),
        ("R", False),
        ("R9:newer", False),
    ],
)
def test_text_of_a_repeatable_file_is_known_by_the_beginning_of_its_checksum(
    folder: Path, recorded: str, has_run: bool
) -> None:
    """Of the text that ran last, and of those before it."""
    (file,) = migrations(folder, "R__a")
    checksum = migration_files.tokens_checksum(file)
    known = recorded.format(checksum if recorded.startswith(("R{", "{")) else checksum[: planning.TEXT_LENGTH])

    assert planning.has_run(file, Row(1, "R__a", known, None).as_read()) is has_run


def test_row_of_a_repeatable_file_becomes_that_of_another_one_alone(folder: Path) -> None:
    """A numbered file of the same content, or one that is called alike, is a new file, and is not refused."""
    numbered, repeatable = migrations(folder, "003_R__a", "R__b")
    row = Row(1, "R__a", f"R{migration_files.tokens_checksum(numbered)}", numbered.sha256).as_read()
    newer = Row(2, "R__a", "R9:newer", None).as_read()

    assert planning.make_plan([numbered], [row]).pending == (("003_R__a", numbered),)
    assert planning.make_plan([numbered], [newer]).pending == (("003_R__a", numbered),)
    assert planning.make_plan([repeatable], [row]).renumbered == ((row, repeatable),)
    assert planning.make_plan([repeatable], [newer, Row(3, "r__b", None, None)]).pending == (("R__b", repeatable),)

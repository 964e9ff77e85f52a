"""What real files contain: rows of COPY, commands and variables of psql, settings, odd characters, great length."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import initializer
import pytest
import sql_scanner
from harness.world import World, rows

T = "CREATE TABLE t (a int PRIMARY KEY, b text);\n"


def refusal(world: World, text: str, name: str = "002_it.sql") -> str:
    """What the handler says to this file, which must leave nothing behind."""
    world.write("001_t.sql", T)
    world.write(name, text)
    with pytest.raises(initializer.MigrationError) as caught:
        world.deploy(CREATE_USERS="false")
    return str(caught.value)


# --- COPY ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("-- rows\nCOPY t FROM stdin;\n1\tx\nsecret value\ty\n3\tz\n\\.\n", 4),
        ("COPY t FROM stdin;\n1\tx\n2\tsecret value\textra\n\\.\n", 3),
        ('COPY t FROM stdin (FORMAT csv);\n1,"secret\nvalue"\n1,again\n\\.\n', 4),
        ("COPY t FROM stdin;\r\n1\tsecret value\r\n1\tx\r\n\\.\r\n", 3),
        ("-- no-transaction\nSELECT 1;\nCOPY t FROM stdin;\n1\tx\n\n\\.\n", 5),
    ],
    ids=["bad number", "extra column", "csv duplicate", "windows duplicate", "marked file"],
)
def test_copy_with_bad_row_names_its_line_and_not_its_content(
    world: World, text: str, line: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The message says in which line of the file the bad row stands, and never what stands in it."""
    message = refusal(world, text)

    assert message.startswith(f"002_it.sql:{line}: ")
    assert "secret" not in message + caplog.text
    assert world.sql("SELECT count(*) FROM t") == [(0,)]


def test_copy_that_is_no_statement_names_its_place(world: World) -> None:
    """An error of the COPY itself has line and column."""
    assert refusal(world, "\nCOPY nowhere FROM stdin;\n1\n\\.\n").startswith(
        '002_it.sql:2: relation "nowhere" does not exist (42P01)'
    )


def test_copy_with_more_on_its_line_is_refused(world: World) -> None:
    """Rows begin on the next line; nothing can stand between."""
    assert refusal(world, "COPY t FROM stdin; SELECT 1;\n1\tx\n\\.\n").startswith("002_it.sql:1:19: the rows of COPY")


def test_copy_to_stdout_is_refused(world: World) -> None:
    """Nobody is there to read."""
    assert refusal(world, "SELECT 1;\nCOPY t TO STDOUT;").startswith("002_it.sql:2:1: COPY … TO STDOUT")


# --- psql ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        ("\\i other.sql", "put the SQL of that file here"),
        ("\\ir other.sql", "put the SQL of that file here"),
        ("\\c other", "remove it"),
        ("\\connect other", "remove it"),
        ("\\set x 1", "write the value itself"),
        ("\\set ON_ERROR_STOP off", "write the value itself"),
        ("\\copy t from 'x.csv'", "COPY … FROM STDIN"),
        ("\\gexec", "DO block with EXECUTE"),
        ("\\if true", "DO block with IF"),
        ("\\echo hello", "RAISE NOTICE"),
        ("\\encoding LATIN1", "UTF-8"),
        ("\\timing", "remove it"),
        ("\\.", "remove it"),
    ],
)
def test_command_of_psql_is_refused_with_what_to_write_instead(world: World, command: str, instead: str) -> None:
    """A backslash command is refused before anything ran, with its place and the way out."""
    message = refusal(world, f"SELECT 1;\n  {command}\nSELECT 2;")

    assert message.startswith(f"002_it.sql:2:3: {command.split(maxsplit=1)[0]} is a command of psql, not SQL: ")
    assert instead in message
    assert world.sql("SELECT to_regclass('t')") == [(None,)]


def test_command_of_psql_in_a_statement_is_refused(world: World) -> None:
    r"""`SELECT … \gset` at the end of a statement as well."""
    assert refusal(world, "SELECT 1 AS a \\gset\n").startswith("002_it.sql:1:15: a backslash outside quotes")


@pytest.mark.parametrize("variable", [":name", ":'name'", ':"name"'])
def test_variable_of_psql_says_what_to_write_instead(world: World, variable: str) -> None:
    """A variable is a syntax error of PostgreSQL, and explained."""
    message = refusal(world, f"INSERT INTO t VALUES\n({variable});")

    assert message.startswith('002_it.sql:2:2: syntax error at or near ":"; variables of psql do not exist here')


@pytest.mark.parametrize("code", ["A0", "200B", "FEFF"])
def test_character_that_looks_like_a_space_is_named(world: World, code: str) -> None:
    """A no-break space, a zero-width space or a BOM in the middle cannot be seen: the message names it."""
    message = refusal(world, f"SELECT 1;\n{chr(int(code, 16))};\n")

    assert message.startswith("002_it.sql:2:1: syntax error")
    assert f"U+{int(code, 16):04X}: delete it" in message


# --- Settings -----------------------------------------------------------------------------------------------------


def test_setting_of_a_newer_pg_dump_is_left_out_with_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """transaction_timeout, which pg_dump 17 writes, is unknown to older servers."""
    world.write("001_dump.sql", "SET statement_timeout = 0;\nSET transaction_timeout = 0;\nCREATE TABLE t (a int);")

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_dump"]
    assert ("unknown to this server" in caplog.text) == (world.server.version < 170000)


@pytest.mark.parametrize(
    "declared", ["SET client_encoding = 'LATIN1';", "SET NAMES 'latin1';", "set client_encoding to win1252;"]
)
def test_other_encoding_is_refused_unless_the_file_is_ascii(world: World, declared: str) -> None:
    """A file that says it is in another encoding would be read wrongly."""
    message = refusal(world, f"{declared}\nINSERT INTO t VALUES (1, 'ü');")
    world.write("002_it.sql", f"{declared}\nINSERT INTO t VALUES (1, 'u');")

    world.deploy()

    assert message.startswith("002_it.sql:1:1: this file says that it is in ")
    assert "save it as UTF-8" in message
    assert world.sql("SELECT b FROM t") == [("u",)]


@pytest.mark.parametrize(
    "declared", ["SET client_encoding = 'UTF8';", "SET NAMES 'utf-8';", "SET client_encoding TO unicode;"]
)
def test_utf8_declared_is_no_matter(world: World, declared: str) -> None:
    """pg_dump declares UTF8."""
    world.write("001_t.sql", f"{declared}\n{T}INSERT INTO t VALUES (1, 'ü');")

    world.deploy()

    assert world.sql("SELECT b FROM t") == [("ü",)]


def test_backslash_strings_are_read_as_psql_reads_them(world: World) -> None:
    """With standard_conforming_strings off, a backslash escapes a quote; the error's place is still right."""
    text = "SET standard_conforming_strings = off;\nINSERT INTO t VALUES (1, 'it\\'s; x');\nSELECT nope;"

    message = refusal(world, text)

    assert message.startswith('002_it.sql:3:8: column "nope" does not exist')


# --- One transaction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (T + "COMMIT;", 2),
        (T + "ROLLBACK;", 2),
        ("SELECT 1;\nBEGIN;\nSELECT 2;\nCOMMIT;", 2),
        ("BEGIN;\nSELECT 1;\nCOMMIT;\nSELECT 2;", 1),
        ("BEGIN;\nSELECT 1;\nCOMMIT AND CHAIN;", 1),
        ("BEGIN;\nSELECT 1;\nROLLBACK;", 3),
        ("BEGIN;\nSELECT 1;\n", 1),
        ("SELECT 1;\nEND;", 2),
        ("SELECT 1;\nABORT;", 2),
        ("START TRANSACTION;\nSELECT 1;\nCOMMIT;\nBEGIN;\nSELECT 2;\nCOMMIT;", 3),
        ("PREPARE TRANSACTION 'x';", 1),
        ("-- no-transaction\nPREPARE TRANSACTION 'x';", 2),
        ("-- no-transaction\nCOMMIT PREPARED 'x';", 2),
        ("-- no-transaction\nSELECT 1;\nROLLBACK;", 3),
    ],
)
def test_transaction_control_is_refused_before_anything_ran(world: World, text: str, line: int) -> None:
    """Whatever opens or ends a transaction, but around the whole file, is refused with its place."""
    message = refusal(world, text)

    assert message.startswith(f"002_it.sql:{line}:1: ")
    assert "Nothing has been applied." in message
    assert world.sql("SELECT to_regclass('t')") == [(None,)]


def test_transaction_ended_behind_our_back_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the scanner ever overlooks a COMMIT, the missing savepoint shows it, and no row says *applied*."""
    world.write("001_t.sql", T + "COMMIT;\nBEGIN;\nSELECT 1;")
    monkeypatch.setattr(sql_scanner.Statement, "transaction_control", None)

    with pytest.raises(initializer.MigrationError, match=r"savepoint .* does not exist \(3B001\)") as caught:
        world.deploy()

    assert "has ended the transaction" in str(caught.value)
    assert world.applied() == []


# --- Length -------------------------------------------------------------------------------------------------------


def long_file(kind: str, megabytes: int) -> Iterator[str]:
    """A file of about that length, in parts."""
    yield "CREATE TABLE big (a int, b text, c numeric, d timestamp);\n"
    count = megabytes * 20_000
    if kind == "copy":
        yield "COPY big FROM stdin;\n"
        yield from (f"{i}\tname {i} of it, and more\t1.5\t2026-01-01 00:00:00\n" for i in range(count))
        yield "\\.\n"
        return
    for start in range(0, count, 100):
        lines = ",\n".join(f"({i}, 'name ''{i}'' of it', -1.5, '2026-01-01')" for i in range(start, start + 100))
        yield f"INSERT INTO big VALUES\n{lines};\n"


@contextmanager
def watched_backend(world: World) -> Iterator[list[int]]:
    """The largest private memory in kB, seen meanwhile, of the server's process for the handler (on this machine)."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        with world.superuser() as conn:
            while not over.wait(0.05):
                pids = rows(conn, "SELECT pid FROM pg_stat_activity WHERE application_name = 'db_setup'")
                for (pid,) in pids:
                    status = Path(f"/proc/{pid}/status")
                    if status.exists() and "postgres" in status.read_text():
                        peak[0] = max(peak[0], int(status.read_text().split("RssAnon:")[1].split()[0]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("kind", ["insert", "copy"])
def test_long_file_is_sent_in_pieces_of_one_transaction(world: World, kind: str) -> None:
    """A long file goes in pieces, so that the server's process stays small; a failure at its end undoes all of it."""
    with open(world.folder / "001_big.sql", "w") as file:
        file.writelines(long_file(kind, 8))
    size = (world.folder / "001_big.sql").stat().st_size
    with open(world.folder / "001_big.sql", "a") as file:
        file.write("SELECT nope;\n")

    with pytest.raises(initializer.MigrationError, match=r"^001_big.sql:\d+:8: column") as caught:
        world.deploy(CREATE_USERS="false")
    left = world.sql("SELECT to_regclass('big')")
    with open(world.folder / "001_big.sql", "r+") as file:
        file.truncate(size)
    with watched_backend(world) as peak:
        world.deploy(CREATE_USERS="false")

    lines = (world.folder / "001_big.sql").read_text().count("\n")
    assert str(caught.value).startswith(f"001_big.sql:{lines + 1}:8: ")
    assert left == [(None,)]
    assert world.sql("SELECT count(*) FROM big") == [(160_000,)]
    assert peak[0] < 20_000


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1;\n" * 200_000,
        "(" * 500_000,
        "a$" * 500_000,
        "'" + "''" * 500_000 + "'",
        "/*" * 200_000,
        "-" * 1_000_000,
    ],
    ids=["statements", "parentheses", "dollars", "quotes", "comments", "dashes"],
)
def test_scanner_takes_time_in_proportion_to_the_length(text: str) -> None:
    """Twice the text takes no more than about twice the time, whatever it consists of."""

    def seconds(part: str) -> float:
        started = time.perf_counter()
        sql_scanner.checksum(part)
        return time.perf_counter() - started

    half = min(seconds(text[: len(text) // 2]) for _ in range(3))
    whole = min(seconds(text) for _ in range(3))

    assert whole < 4 * half + 0.05


def test_memory_of_the_client_is_a_small_multiple_of_the_file(world: World) -> None:
    """A file is held once as bytes and once as text while it is read, and once behind that."""
    with open(world.folder / "001_big.sql", "w") as file:
        file.writelines(long_file("copy", 20))
    size = (world.folder / "001_big.sql").stat().st_size
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import initializer, json\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "initializer.load_script(initializer.Migration(Path(sys.argv[2]), '001_big'), initializer.Config('x'))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )

    grown = subprocess.run(
        [sys.executable, "-c", code, Path(initializer.__file__).parent, world.folder / "001_big.sql"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 2.5 * size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0

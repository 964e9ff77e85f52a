"""What real files contain: rows of COPY, settings of other tools and great length."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import initializer
import pytest
from harness.world import World, rows

T = "CREATE TABLE t (a int PRIMARY KEY, b text);\n"


@pytest.fixture(autouse=True)
def _without_users(world: World) -> None:
    """Users do not matter here."""
    world.environ["CREATE_USERS"] = "false"


def fail_with(world: World, text: str, name: str = "002_it.sql") -> str:
    """What the handler says to this file."""
    world.write(name, text)
    with pytest.raises(initializer.MigrationError) as caught:
        world.deploy()
    return str(caught.value)


# --- COPY -----------------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "bad number": (
        "-- rows\nCOPY t FROM stdin;\n1\tx\nsecret value\ty\n3\tz\n\\.\n",
        '4: invalid input syntax for type integer: "…" (22P02). Rolled back. ',
    ),
    "extra column": (
        "COPY t FROM stdin;\n1\tx\n2\tsecret value\textra\n\\.\n",
        "3: extra data after last expected column (22P04). Rolled back. ",
    ),
    "missing column": ("COPY t FROM stdin;\n1\tx\n2\n\\.\n", '3: missing data for column "…" (22P04). Rolled back. '),
    "rows of CSV over several lines": (
        'COPY t FROM stdin (FORMAT csv);\n1,"secret\nvalue"\n1,again\n\\.\n',
        '4: duplicate key value violates unique constraint "t_pkey" (23505). Rolled back. ',
    ),
    "CRLF": (
        "COPY t FROM stdin;\r\n1\tsecret value\r\n1\tx\r\n\\.\r\n",
        '3: duplicate key value violates unique constraint "t_pkey" (23505). Rolled back. ',
    ),
    "after other rows": (
        "COPY t FROM stdin;\n1\tx\n\\.\nSELECT 1;\nCOPY t FROM stdin;\n2\ty\n1\tsecret value\n\\.\nSELECT 1;",
        '7: duplicate key value violates unique constraint "t_pkey" (23505). Rolled back. ',
    ),
    "no such table": (
        "\nCOPY nowhere FROM stdin;\n1\n\\.\n",
        '2: relation "nowhere" does not exist (42P01). Rolled back. ',
    ),
    "marked file": (
        "-- no-transaction\nSELECT 1;\nCOPY t FROM stdin;\n1\tsecret value\n\n\\.\n",
        '5: invalid input syntax for type integer: "" (22P02). The statements before this one have run '
        "and stay applied: do not edit them. ",
    ),
}


def test_copy_with_bad_row_names_its_line_and_not_its_content(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The message says in which line of the file the bad row is, and never what is in it."""
    world.write("001_t.sql", T)
    for case, (text, beginning) in BAD_ROWS.items():
        message = fail_with(world, text)

        assert message.startswith(f"002_it.sql:{beginning}"), case
        assert "secret" not in message, case
    assert "secret" not in caplog.text
    assert world.sql("SELECT count(*) FROM t") == [(0,)]


# --- Settings -------------------------------------------------------------------------------------------------------


def test_setting_of_a_newer_pg_dump_is_left_out_with_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """transaction_timeout, which pg_dump 17 writes, is unknown to older servers."""
    world.write("001_dump.sql", "SET statement_timeout = 0;\nSET transaction_timeout = 0;\nCREATE TABLE t (a int);")

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_dump"]
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    expected = "setting unknown to this server left out migration=001_dump setting=transaction_timeout"
    assert warnings == ([expected] if world.server.version < 170000 else [])


DECLARED = ["SET client_encoding = 'LATIN1'", "SET NAMES 'latin1'", "SET client_encoding = 'UTF8'", "SET NAMES 'utf-8'"]


def test_encoding_that_a_file_declares_is_its_own(world: World) -> None:
    """A file that says in which encoding it is has its text arrive as it is there."""
    world.write("001_t.sql", T)
    expected = []
    for number, declared in enumerate(DECLARED, 2):
        text = "u" if "atin" in declared.lower() else "ü"
        world.write(f"{number:03d}_it.sql", f"{declared};\nINSERT INTO t VALUES ({number}, '{text}' || chr(233));")
        expected.append((text + "é",))

    world.deploy()

    assert world.sql("SELECT b FROM t ORDER BY a") == expected


# --- Length ---------------------------------------------------------------------------------------------------------


def long_file(rows_of_each: int) -> Iterator[str]:
    """A file of INSERTs and of a COPY with so many rows each, in parts; a row has about 50 bytes."""
    yield "CREATE TABLE big (a int, b text, c numeric, d timestamp);\n"
    for start in range(0, rows_of_each, 100):
        lines = ",\n".join(f"({i}, 'name ''{i}'' of it', -1.5, '2026-01-01')" for i in range(start, start + 100))
        yield f"INSERT INTO big VALUES\n{lines};\n"
    yield "COPY big FROM stdin;\n"
    yield from (f"{i}\tname {i} of it, and more\t1.5\t2026-01-01 00:00:00\n" for i in range(rows_of_each))
    yield "\\.\n"


@contextmanager
def watched_backend(world: World) -> Iterator[list[int]]:
    """The largest private memory in kB, seen meanwhile, of the server's process for the handler (on this machine)."""
    peak, over = [0], threading.Event()

    def watch(conn: Any) -> None:
        while not over.wait(0.02):
            pids = rows(conn, "SELECT pid FROM pg_stat_activity WHERE application_name = 'db_setup'")
            for (pid,) in pids:
                with suppress(OSError):  # it has ended meanwhile
                    status = Path(f"/proc/{pid}/status").read_text()
                    if "postgres" in status and "RssAnon:" in status:
                        peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]))

    with world.superuser() as conn:
        thread = threading.Thread(target=watch, args=[conn])
        thread.start()
        try:
            yield peak
        finally:
            over.set()
            thread.join()


def test_long_file_is_sent_in_pieces_of_one_transaction(world: World) -> None:
    """A long file goes in pieces, so that the server's process stays small; a failure at its end undoes all of it."""
    text = "".join(long_file(50_000))

    message = fail_with(world, text + "SELECT nope;\n", "001_big.sql")
    left = world.sql("SELECT to_regclass('big')")
    world.write("001_big.sql", text)
    with watched_backend(world) as peak:
        world.deploy()

    lines = text.count("\n") + 1
    assert message.startswith(f'001_big.sql:{lines}:8: column "nope" does not exist (42703). Rolled back. ')
    assert left == [(None,)]
    assert world.sql("SELECT count(*), sum(c) FROM big") == [(100_000, 0)]
    assert peak[0] < 30_000  # in one piece it takes 41,000


def test_memory_of_the_client_is_a_small_multiple_of_the_file(world: World) -> None:
    """A file is held once as text, and also mapped while it is read."""
    with open(world.folder / "001_big.sql", "w") as file:
        file.writelines(long_file(200_000))
    size = (world.folder / "001_big.sql").stat().st_size
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "import migration_files, sql_scanner\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "file = migration_files.Migration(Path(sys.argv[2]), '001')\n"
        "sql_scanner.read_script(migration_files.read_text(file))\n"
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

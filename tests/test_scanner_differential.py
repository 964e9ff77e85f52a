"""The scanner compared with PostgreSQL's own parser (pglast): what that accepts is split at the same places."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Optional

import pglast
import sql_scanner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("SCANNER_CASES", "2000"))

# Whole statements with what is hard to split, in pieces that can be glued together in any order.
EXPRESSIONS = [
    "1",
    "'a;b'",
    "'it''s;'",
    r"'\'",
    r"E'a\';b'",
    r"e'\\'",
    "E'a'\n  'b\\';'",
    "E'a' -- ;\n  '\\';c'",
    "'a'\n'b;'",
    "U&'\\0041;'",
    'U&"\\0041;"',
    "B'01'",
    "x'1F'",
    "N'x;'",
    '"a;""b"',
    "$$a;b$$",
    "$tag$ $$ ; $other$ $tag$",
    "$ü$;$ü$",
    "a$b$c",
    "a$$",
    "t.a$1$",
    "$1",
    "1.5e3",
    ".5",
    "a[1:2]",
    "a::text",
    "(1)",
    "(SELECT ';')",
    "1+-1",
    "1 - -- ;\n 1",
    "2 /* ; /* ; */ */ * 3",
    "1 <@ 2",
    "'/*'",
    "'--'",
    "CASE WHEN true THEN ';' END",
    "CASE 1 WHEN 1 THEN 2 ELSE 3 END",
    "ü",
    "x\u00a0y",
    "a ? b",
    "@ 1",
    "1 !=-- ;\n2",
    "end1",
    '"END"',
    "-(-1)",
    "1/*;*/",
    "interval '1' day",
    "E'''' || E'\\''",
    "'' || ''",
    "''''",
]
STATEMENTS = [
    "CREATE RULE r AS ON INSERT TO t DO ALSO (DELETE FROM u; DELETE FROM v;)",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
    "CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC SELECT CASE WHEN true THEN CASE 1 WHEN 1 THEN 2 END END; END",
    "CREATE FUNCTION g() RETURNS int LANGUAGE sql BEGIN ATOMIC END",
    "CREATE FUNCTION h(a int DEFAULT CASE WHEN true THEN 1 END) RETURNS int LANGUAGE sql RETURN a",
    "CREATE FUNCTION i() RETURNS int AS $$ BEGIN; END; $$ LANGUAGE plpgsql",
    "CREATE FUNCTION j() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2'",
    "CREATE TABLE begin_end (a int, b text DEFAULT ';')",
    "DO $x$ BEGIN COMMIT; END $x$",
    "BEGIN",
    "COMMIT",
    "SELECT",
    "ALTER FUNCTION f() RENAME TO case_end",
    "INSERT INTO t VALUES (1, 'a;b', $$;$$), (2, E'\\';', NULL)",
    "COMMENT ON TABLE t IS 'a''b;c'",
    'GRANT SELECT ON t TO "a;b"',
    "CREATE PROCEDURE q() LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (';'); DELETE FROM t; END",
]
CHOICES = 6 * (1 + 4 * (1 + 3) + 1 + 4) + 1  # for the longest script
GLUE = [" ", "\n", "\r\n", "\t", "-- ;'\n", "/* ; ' */", "/* /* ' */ ; */", "\f", "--\r", " -- $$ \n", "-- ü\n"]


def statements_of_postgresql(sql: str) -> Optional[list[str]]:
    """The texts of the statements, or None where the parser takes the script for wrong."""
    try:
        count = len(json.loads(pglast.parser.parse_sql_json(sql)).get("stmts", []))
        found = [sql[part] for part in pglast.parser.split(sql, with_parser=True, only_slices=True)]
    except (pglast.parser.ParseError, UnicodeError):
        return None
    assert len(found) == count
    return found


def statements_of_ours(sql: str) -> list[str]:
    return [sql[statement.start : statement.end] for statement in sql_scanner.scan(sql)]


def meaning(parts: list[str]) -> list[str]:
    """Statements without the comments and white space around them, which nobody counts alike."""
    return [" ".join(token for token in plain_tokens(part)) for part in parts]


def plain_tokens(sql: str) -> list[str]:
    return [sql[token.start : token.end + 1] for token in pglast.parser.scan(sql) if "COMMENT" not in token.name]


def compare(sql: str) -> int:
    """How many statements both see, at the same places; 0 where the parser takes the script for wrong."""
    theirs = statements_of_postgresql(sql)
    if theirs is None:
        return 0
    ours = statements_of_ours(sql)
    assert len(ours) == len(theirs)
    assert meaning(ours) == meaning(theirs)
    return len(ours)


def composed(choices: bytes) -> str:
    """One to six statements with what is between them; each byte chooses one piece, or how many there are."""
    left = iter(choices)

    def several(pieces: list[str], most: int, between: str = "") -> str:
        return between.join(pieces[next(left) % len(pieces)] for _ in range(next(left) % most + 1))

    def glue() -> str:
        return several(GLUE, 3)

    def select() -> str:
        return f"SELECT{glue()}" + several(EXPRESSIONS, 4, between=f"{glue()},")

    def statement() -> str:
        return several(STATEMENTS, 1) if next(left) % 2 else select()

    return ";".join(glue() + statement() + glue() for _ in range(next(left) % 6 + 1))


# Hypothesis draws all of them together, which takes a tenth of the time of composing the strategies of each piece.
scripts = st.binary(min_size=CHOICES, max_size=CHOICES).map(composed)
noise = st.text(alphabet=list("';\"$-/*\\eEuU&nNbBxX a1_\n\r(ü."), max_size=30)


def share_compared(texts: st.SearchStrategy[str], *examples: str) -> float:
    """Compare texts; returns of how many the parser took for right, since nothing else is compared."""
    tried = compared = 0

    def one(text: str) -> None:
        nonlocal tried, compared
        tried += 1
        compared += compare(text) > 0

    for text in examples:
        one(text)
    settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))(given(texts)(one))()
    return compared / tried


def test_scanner_on_composed_scripts_splits_like_postgresql() -> None:
    """Statements with everything that is hard to split, glued by comments and white space; the parser takes most."""
    assert share_compared(scripts, "SELECT 1;;;SELECT 2") > 0.9


def test_scanner_on_noise_splits_like_postgresql() -> None:
    """Random quotes, dollars, comments and backslashes: what the parser takes is split alike, and that is enough."""
    assert share_compared(noise.map("SELECT {}; SELECT 2".format)) > 0.1


REPOSITORY = Path(__file__).resolve().parent.parent


def sql_files() -> list[Path]:
    """The SQL files of this machine: our own, and PostgreSQL's extension scripts, of the newest version at hand."""
    places = [
        Path("/usr/share/postgresql"),
        Path("/usr/lib/python3"),
        Path("/opt/homebrew/share"),
        REPOSITORY / ".venv",
    ]
    servers = [path for path in (REPOSITORY / ".postgres").glob("*") if path.is_dir()]
    places += sorted(servers, key=lambda path: path.name)[-1:]
    found = [path for place in places for path in sorted(place.rglob("*.sql"))]
    return [*(REPOSITORY / "db_setup" / "migrations").glob("*.sql"), *found[:500]]


def test_scanner_on_sql_files_of_this_machine_splits_like_postgresql() -> None:
    """Every .sql file at hand that the parser takes is split alike: nearly all, but for lines that only psql reads."""
    files = sql_files()
    compared = 0
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        compared += compare(re.sub(r"^\\.*$", "", text, flags=re.MULTILINE)) > 0

    assert compared >= max(1, 0.8 * len(files))

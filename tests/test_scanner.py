"""SQL text is split, understood and refused as PostgreSQL's lexer and psql see it; no database is needed for that."""

from __future__ import annotations

import re
import time
import tracemalloc
from typing import Callable, Optional

import pytest
from sql_scanner import ScanError, Script, Statement, checksum, locate, read_script, scan

FUNCTION = """CREATE FUNCTION double(n int) RETURNS int LANGUAGE plpgsql AS $body$
BEGIN
    -- a comment; with a semicolon
    RETURN n * 2;
END;
$body$"""
ATOMIC = """CREATE OR REPLACE FUNCTION sign_of(n int) RETURNS text
BEGIN ATOMIC
    SELECT 1;
    SELECT CASE WHEN n > 0 THEN CASE n WHEN 1 THEN 'one' ELSE 'many' END ELSE 'none' END;
END"""


def split(text: str) -> list[str]:
    """The texts of the statements."""
    return [text[s.start : s.end] for s in scan(text)]


def only(text: str) -> Statement:
    (statement,) = scan(text)
    return statement


def texts(script: Script) -> list[str]:
    return [script.statement_sql(statement) for statement in script.statements()]


def refusal(text: str) -> tuple[str, tuple[int, int]]:
    """What `read_script` says against the text, and at which line and column."""
    with pytest.raises(ScanError) as caught:
        read_script(text)
    return str(caught.value), locate(text, caught.value.offset)


# --- Where a statement ends -----------------------------------------------------------------------------------------

ONE_STATEMENT = {
    "string": "SELECT 'a;b'",
    "string with a doubled quote": "SELECT 'it''s; fine'",
    "string with a backslash at its end": r"SELECT 'C:\', ';'",
    "string over several lines": "SELECT 'a;\nb;\n'",
    "string that looks like a comment": "SELECT '-- ; /*'",
    "escape string": r"SELECT E'it\'s; \\'",
    "escape string in lower case": r"SELECT e'\';'",
    "escape string with a doubled quote": r"SELECT E'\\'';'",
    "escape string continued on the next line": "SELECT E'a'\n  '\\';'",
    "escape string continued after a comment": "SELECT E'a' -- more\n  -- and more\n '\\';'",
    "string after a word that ends in e": r"SELECT date'2020;\', ';'",
    "unicode string": r"SELECT U&'d\0061t;\' || ';'",
    "unicode name": r'SELECT 1 AS u&"d;\0061"";"',
    "bit and hex and national strings": "SELECT B'1;', x'f;', N'n;'",
    "quoted name": 'SELECT 1 AS "a;b"',
    "quoted name with a doubled quote": 'SELECT 1 AS "a"";"',
    "quoted name with an apostrophe": """SELECT 1 AS "it's;", ';'""",
    "dollar quotes": "SELECT $$a;b$$",
    "dollar quotes with a tag": "SELECT $tag$a; $$; $other$; $TAG$ $tag$",
    "dollar quotes with a non-ASCII tag": "SELECT $größe$a;$größe$",
    "dollar quotes that hold other quotes": """SELECT $$it's " /* -- ;$$""",
    "dollar quotes after a number": "SELECT 1$$;$$",
    "line comment": "SELECT 1 -- a; 'b\n, 2",
    "line comment ended by a carriage return": "SELECT 1 -- a; 'b\r, 2",
    "block comment": "SELECT 1 /* a; 'b */, 2",
    "line comment right after an operator": "SELECT 2 *-- ;'\n 3",
    "block comment right after an operator": "SELECT 2 +/* ;' */ 3",
    "nested block comment": "SELECT 1 /* a /* b; */ c; */, 2",
    "parentheses": "CALL p((1; 2))",
    "rule with several actions": "CREATE RULE r AS ON INSERT TO a DO (INSERT INTO b VALUES (1); DELETE FROM c)",
    "body of a function": FUNCTION,
    "DO block": "DO $$ BEGIN PERFORM 1; END; $$",
    "SQL-standard body with nested CASE": ATOMIC,
    "SQL-standard body of a procedure": "CREATE PROCEDURE p() BEGIN ATOMIC SELECT 1; SELECT 2; END",
}


@pytest.mark.parametrize("text", ONE_STATEMENT.values(), ids=ONE_STATEMENT)
def test_scan_semicolon_inside_something_is_not_an_end(text: str) -> None:
    """A semicolon in quotes, comments, parentheses and bodies belongs to its statement; the next one ends it."""
    assert split(f"{text};\nSELECT 2;") == [text, "SELECT 2"]


TWO_STATEMENTS = {
    "dollars inside a name open nothing": ("SELECT a$b$c", "SELECT a$b$c"),
    "dollars after a non-ASCII name open nothing": ("SELECT é$$", "SELECT é$$"),
    "a parameter opens nothing": ("SELECT $1", "SELECT $1"),
    "a backslash in a plain string escapes nothing": ("SELECT '\\'", "SELECT '\\'"),
    "a string after a blank is not a continuation": ("SELECT E'a' 'b\\'", "SELECT 'c'"),
    "CASE outside a body hides nothing": ("SELECT CASE WHEN true THEN 1 END", "SELECT 2"),
    "BEGIN in a view's column hides nothing": ("CREATE VIEW v AS SELECT begin FROM t", "SELECT 2"),
    "END outside a body is not counted": ("CREATE FUNCTION f() RETURNS int RETURN 1", "SELECT 2"),
    "a parenthesis closed once too often": ("SELECT 1)", "SELECT (2)"),
    "a parenthesis in quotes": ("SELECT '('", 'SELECT "("'),
}


@pytest.mark.parametrize(("first", "second"), TWO_STATEMENTS.values(), ids=TWO_STATEMENTS)
def test_scan_what_only_looks_like_quotes_ends_at_semicolon(first: str, second: str) -> None:
    """What only looks like an opening quote or body hides no semicolon."""
    assert split(f"{first};{second};") == [first, second]


@pytest.mark.parametrize(
    "text",
    ["", ";", " ;;\n; ", "-- nothing", "/* nothing */", "-- a\n/* b; */ ;\n", "\r\n\t\f"],
    ids=["empty", "semicolon", "semicolons", "line comment", "block comment", "all of it", "white space"],
)
def test_scan_nothing_gives_no_statement(text: str) -> None:
    """Comments, white space and lone semicolons are not statements."""
    assert split(text) == []


def test_scan_last_statement_needs_no_semicolon() -> None:
    """The last statement ends with the text; a comment after its semicolon does not belong to it."""
    assert split("SELECT 1; SELECT 2 -- the end") == ["SELECT 1", "SELECT 2 -- the end"]
    assert split("SELECT 1; VACUUM ; -- the end") == ["SELECT 1", "VACUUM "]


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_scan_gives_line_and_offset_of_each_statement(newline: str) -> None:
    """A statement begins at its first word, whatever comments precede it."""
    text = newline.join(
        ["-- größe 😀", "", "SELECT 'a", "b';/* c", "*/ SELECT 2; SELECT 3", ";", "$$x", "y$$;", "SELECT 4"]
    )

    found = list(scan(text))

    assert [s.line for s in found] == [3, 5, 5, 7, 9]
    assert [locate(text, s.start) for s in found] == [(3, 1), (5, 4), (5, 14), (7, 1), (9, 1)]


def test_locate_counts_characters_from_one() -> None:
    """Line and column count characters, not bytes."""
    text = "é\n😀x"

    assert [locate(text, offset) for offset in range(4)] == [(1, 1), (1, 2), (2, 1), (2, 2)]


UNTERMINATED = {
    "string": ("'it", "this string is never closed (a ' inside it is written twice)"),
    "escape string": (r"E'it\'", "this string with backslashes is never closed"),
    "unicode string": ("U&'x", "this string is never closed (a ' inside it is written twice)"),
    "name": ('"it', 'this quoted name is never closed (a " inside it is written twice)'),
    "dollar quotes": ("$$ BEGIN END $ $;", "the body that $$ opens is never closed by another $$"),
    "dollar quotes with a tag": ("$a$ x $A$ $$", "the body that $a$ opens is never closed by another $a$"),
    "block comment": ("/* a /* b */", "this /* comment is never closed"),
    "body between single dollars": (
        "$\nBEGIN\n$",
        "a lone $: a body is written between $$ and $$, or between $name$ and $name$",
    ),
}


@pytest.mark.parametrize(("opened", "message"), UNTERMINATED.values(), ids=UNTERMINATED)
def test_scan_unterminated_quote_is_refused_where_it_began(opened: str, message: str) -> None:
    """What is never closed is reported with the place where it was opened, not with the end of the file."""
    text = f"SELECT 1;\nSELECT {opened}\n;\nSELECT 2;\n"

    assert refusal(text) == (message, (2, 8))


# --- Time ------------------------------------------------------------------------------------------------------------

LONG = {
    "statements": "INSERT INTO t VALUES (1, 'it''s', E'\\n', $$x$$, \"c\"); -- a comment\n",
    "short statements": "SELECT 1;\n",
    "one statement": "(1, 'it''s', 2.5, a.b), /* c */\n",
    "parentheses": "(",
    "lone semicolons": ";\n",
    "escape strings": "E'a'\n\n\n",
    "dollars": "a$",
    "quotes": "''",
    "operators": "+-*",
    "dashes": "-",
    "line comments": "--\n",
    "nested comments": "/*",
}


def seconds(read: Callable[[], object]) -> float:
    """How much CPU that takes at best; the clock would count what else the machine does."""

    def once() -> float:
        started = time.thread_time()
        read()
        return time.thread_time() - started

    return min(once() for _ in range(3))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", LONG.values(), ids=LONG)
def test_checksum_of_large_text_takes_linear_time(piece: str) -> None:
    """Four times the text takes about four times the time, whatever it consists of."""
    small, large = (piece * (size // len(piece)) for size in (30_000, 120_000))

    assert seconds(lambda: checksum(large)) < 2.5 * 4 * seconds(lambda: checksum(small)) + 0.02


@pytest.mark.parametrize("kind", ["statements", "short statements", "lone semicolons", "line comments"])
def test_scan_large_text_takes_the_memory_of_one_statement(kind: str) -> None:
    """However long the text is, only the statement at hand is held."""
    text = LONG[kind] * (300_000 // len(LONG[kind]))
    tracemalloc.start()
    try:
        for _ in scan(text):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 100_000


@pytest.mark.timeout(60)
def test_scan_escape_string_before_a_line_of_dashes_takes_no_time() -> None:
    """A line of dashes after E'' is read once as a comment, not in every way in which it could be split."""
    dashes, letters = (f"SELECT E'a' --{comment * 26}\n;" for comment in "-x")

    assert split(dashes) == [dashes[:-1]]
    assert seconds(lambda: split(dashes)) < 100 * seconds(lambda: split(letters))


# --- Backslash commands ---------------------------------------------------------------------------------------------


def test_read_script_restrict_is_skipped_with_places_kept() -> None:
    """pg_dump's \\restrict and \\unrestrict are left out; everything else stays where it was."""
    text = "--\n-- a dump\n--\n\n\\restrict aB1\n\nSELECT 'a';\n\\unrestrict aB1\n"

    script = read_script(text)

    assert (texts(script), script.statement_count) == (["SELECT 'a'"], 1)
    assert script.body_sql() == text.replace("\\restrict aB1", " " * 13).replace("\\unrestrict aB1", " " * 15)


@pytest.mark.parametrize("value", ["", " on", " 1", " true"])
def test_read_script_stopping_at_errors_is_skipped(value: str) -> None:
    """`\\set ON_ERROR_STOP` asks for what is always so."""
    assert texts(read_script(f"\\set ON_ERROR_STOP{value}\nSELECT 1;")) == ["SELECT 1"]


COMMANDS = {
    "\\i other.sql": "put the SQL of that file here, or into a migration of its own",
    "\\ir other.sql": "put the SQL of that file here, or into a migration of its own",
    "\\c other": "a migration stays in its database; remove it",
    "\\connect other": "a migration stays in its database; remove it",
    "\\set AUTOCOMMIT off": "variables of psql do not exist here; write the value itself",
    "\\set ON_ERROR_STOP off": "variables of psql do not exist here; write the value itself",
    "\\copy t from 'x.csv'": "write INSERT, or COPY … FROM STDIN with its rows after it and a line \\. at the end",
    "\\g": "end the statement with ;",
    "\\gexec": "write a DO block with EXECUTE",
    "\\if true": "write a DO block with IF",
    "\\echo hello": "write a DO block with RAISE NOTICE",
    "\\encoding LATIN1": "save the file as UTF-8 and remove it",
    "\\timing": "remove it",
    "\\.": "remove it",
}


@pytest.mark.parametrize(("command", "instead"), COMMANDS.items(), ids=COMMANDS)
def test_read_script_other_backslash_command_is_refused(command: str, instead: str) -> None:
    """Any other command of psql is refused with its place and what to write instead."""
    assert refusal(f"SELECT 1;\n  {command}\nSELECT 2;") == (
        f"{command.split(maxsplit=1)[0]} is a command of psql, not SQL: {instead}",
        (2, 3),
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [("SELECT 1\n\\gexec\n", (2, 1)), ("SELECT 1 AS a \\gset\n", (1, 15)), ("VACUUM \\g\n", (1, 8))],
    ids=["on its own line", "after a statement that reads", "after another statement"],
)
def test_read_script_backslash_command_in_a_statement_is_refused(text: str, place: tuple[int, int]) -> None:
    """A command that ends a statement is refused too, with its own place."""
    assert refusal(text) == ("a backslash outside quotes is a command of psql; end the statement with ;", place)


# --- COPY -----------------------------------------------------------------------------------------------------------

ROWS = {
    "none": "",
    "plain": "abc\t\\N\n",
    "with an apostrophe": "1\tit's\n",
    "with dollars": "$$\n",
    "with commands": "\\i x\n\\. \n",
    "with an end that is none": "a\\.\n\\.x\n\\\\.\n",
    "with semicolons and comments": "/*;\n--\n\n",
}


@pytest.mark.parametrize("data", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_scan_rows_of_copy_are_not_sql(data: str, newline: str) -> None:
    """Rows reach from the line after COPY to a line of nothing but \\., whatever is in them."""
    copy = "COPY public.t (a) FROM stdin WITH (FORMAT text)"
    text = f"SELECT 1;\n{copy}; -- rows\n{data}\\.\nSELECT 2;\n".replace("\n", newline)

    statements = list(scan(text))

    assert [text[s.start : s.end] for s in statements] == ["SELECT 1", copy, "SELECT 2"]
    assert [s.data and text[slice(*s.data)] for s in statements] == [None, data.replace("\n", newline), None]
    assert statements[2].line == text.count("\n")


def test_scan_rows_of_copy_at_the_end_need_no_last_line() -> None:
    """Rows may end with the text."""
    text = "COPY t FROM STDIN;\n1\n2"

    assert [s.data and text[slice(*s.data)] for s in scan(text)] == ["1\n2"]


def test_read_script_copy_without_rows_on_the_next_line_is_refused() -> None:
    """Rows begin on the next line: what follows the semicolon would be lost."""
    assert refusal("COPY t FROM stdin; SELECT 1;\n1\tx\n\\.\n") == (
        "the rows of COPY … FROM STDIN begin on the next line: move what follows the ;",
        (1, 19),
    )


def test_read_script_copy_to_stdout_is_refused() -> None:
    """The client does not read the rows of COPY … TO STDOUT."""
    assert refusal("SELECT 1;\nCOPY (SELECT 1) TO STDOUT;\n") == (
        "COPY … TO STDOUT has no one to write to: remove it",
        (2, 1),
    )


@pytest.mark.parametrize(
    "text",
    ["COPY t FROM '/tmp/x'", "COPY t (stdin) TO '/tmp/stdout'", "INSERT INTO t SELECT stdin FROM stdout"],
    ids=["from a file of the server", "a column of this name", "columns of these names"],
)
def test_read_script_copy_without_the_client_is_left_alone(text: str) -> None:
    """Only COPY through the client is of interest."""
    script = read_script(text)

    assert (texts(script), [s.data for s in script.statements()]) == ([text], [None])


# --- Encoding -------------------------------------------------------------------------------------------------------

DECLARED = {
    "SET client_encoding = 'LATIN1'": "latin1",
    "SET NAMES 'latin1'": "latin1",
    "set client_encoding to win1252": "win1252",
    'SET SESSION client_encoding TO "WIN1252"': "win1252",
}


@pytest.mark.parametrize(("declared", "encoding"), DECLARED.items(), ids=DECLARED)
def test_read_script_other_encoding_is_refused_unless_the_file_is_ascii(declared: str, encoding: str) -> None:
    """A file that says it is in another encoding would be read wrongly; where it is ASCII there is no difference."""
    assert refusal(f"SELECT 1;\n{declared};\nSELECT 'ü';") == (
        f"this file says that it is in {encoding}, but it is read as UTF-8: save it as UTF-8 and remove this",
        (2, 1),
    )
    assert texts(read_script(f"{declared};\nSELECT 'u';")) == [declared, "SELECT 'u'"]


@pytest.mark.parametrize(
    "declared",
    ["SET client_encoding = 'UTF8'", "SET NAMES 'utf-8'", "SET client_encoding TO unicode", "RESET client_encoding"],
)
def test_read_script_utf8_declared_is_accepted(declared: str) -> None:
    """pg_dump declares UTF8."""
    assert texts(read_script(f"{declared};\nSELECT 'ü';")) == [declared, "SELECT 'ü'"]


# --- Checksums ------------------------------------------------------------------------------------------------------

SCRIPT = "CREATE TABLE t (a int DEFAULT 1, b text);\nINSERT INTO t VALUES (1, 'a\nb'), (2, $$c\nd$$);\n"
SAME = {
    "line comment": "-- hello\n" + SCRIPT,
    "line comment in a statement": SCRIPT.replace("(a int", "( -- no;\n a int"),
    "block comment": SCRIPT.replace("(a int", "(/* no; */ a int"),
    "blank lines": SCRIPT.replace(";", "\n\n;\t\n"),
    "no final semicolon": SCRIPT.rstrip().rstrip(";"),
    "an empty statement": ";" + SCRIPT + ";",
    "CRLF, also in literals and bodies": SCRIPT.replace("\n", "\r\n"),
    "CR alone": SCRIPT.replace("\n", "\r"),
    "indentation": SCRIPT.replace(", ", ",\n        "),
}
DIFFERENT = {
    "a word": SCRIPT.replace("int", "bigint"),
    "a literal": SCRIPT.replace("'a", "'A"),
    "white space in a literal": SCRIPT.replace("'a\nb'", "'a\n b'"),
    "white space in a body": SCRIPT.replace("$$c\nd$$", "$$c\n\nd$$"),
    "a comment in a body": SCRIPT.replace("$$c\nd$$", "$$c -- x\nd$$"),
    "a statement more": SCRIPT + "SELECT 1;",
    "a semicolon between": SCRIPT.replace("INSERT INTO t", "INSERT; INTO t"),
    "two words from one": SCRIPT.replace("TABLE t", "TAB LE t"),
    "a sign": SCRIPT.replace("DEFAULT 1", "DEFAULT - -1"),
    "order": "INSERT INTO t VALUES (1, 'a\nb'), (2, $$c\nd$$);\nCREATE TABLE t (a int DEFAULT 1, b text);",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_checksum_of_the_same_tokens_is_the_same(text: str) -> None:
    """Comments, white space and line ends do not count."""
    assert checksum(text) == checksum(SCRIPT)
    assert checksum(text) == read_script(text).checksum


def test_checksum_of_other_tokens_differs() -> None:
    """Whatever PostgreSQL would see differently counts, white space in a literal and comments in a body too."""
    assert len({checksum(text) for text in [SCRIPT, *DIFFERENT.values()]}) == 1 + len(DIFFERENT)


@pytest.mark.parametrize("before", ["", "SELECT 1;\n" * 120_000], ids=["short", "long"])
@pytest.mark.slow
def test_checksum_of_other_rows_differs(before: str) -> None:
    """The rows of a COPY count to the last character, white space and line ends included."""
    rows = ["1\ta\n", "1\tb\n", "1\ta \n", "1\ta\n1\ta\n", "1\ta\r\n", ""]

    found = {checksum(f"{before}COPY t FROM stdin;\n{text}\\.\n") for text in rows}

    assert len(found) == len(rows)


def test_checksum_names_its_algorithm_and_never_changes() -> None:
    """The value begins with the algorithm's version, and is what the versions before this one have recorded."""
    assert checksum("SELECT 1;\n") == "1:951395b3f3c0c9eee28765a9f0955f58f0b0de4d071cf1c632b9b1fbe948eeaa"


@pytest.mark.parametrize("text", ["SELECT 'a\nb", "/* a\nb"], ids=["string", "comment"])
def test_checksum_of_text_that_cannot_be_scanned_is_of_its_lines(text: str) -> None:
    """A text without end of a quote has a checksum too, of another kind, in which line ends do not count either."""
    assert checksum(text)[:2] == "0:"
    assert checksum(text) == checksum(text.replace("\n", "\r\n"))
    assert checksum(text) != checksum(text + "c")


@pytest.mark.slow
def test_checksum_of_a_long_text_takes_rows_as_they_are() -> None:
    """In a long text, white space counts within statements that read or write rows; line ends never do."""
    rows = "INSERT INTO t VALUES (1);\n"
    text = SCRIPT + rows * (1_200_000 // len(rows))
    value = checksum(text)

    assert value[:2] == "2:"
    assert value == read_script(text).checksum == checksum(text.replace("\n", "\r\n"))
    assert value == checksum(
        text.replace("CREATE TABLE", "CREATE /* a */ TABLE -- b\n").replace(rows, "-- c\n" + rows, 1)
    )
    assert value != checksum(text.replace("VALUES (1)", "VALUES  (1)", 1))


def test_checksum_of_another_kind_can_be_asked_for() -> None:
    """What another version has recorded can be compared with, whatever the text's length would ask for."""
    assert [checksum(SCRIPT, kind)[:2] for kind in ("", "0:", "1:", "2:")] == ["1:", "0:", "1:", "2:"]
    assert checksum(SCRIPT, "2:") != checksum(SCRIPT.replace("(1, 'a", "(1,  'a"), "2:")
    assert checksum(SCRIPT, "1:") == checksum(SCRIPT)


# --- What a statement is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("BEGIN", "BEGIN"),
        ("begin work", "BEGIN"),
        ("BEGIN /* x */ TRANSACTION ISOLATION LEVEL SERIALIZABLE", "BEGIN"),
        ("START TRANSACTION READ ONLY", "BEGIN"),
        ("COMMIT", "COMMIT"),
        ("commit and chain", "COMMIT"),
        ("END TRANSACTION", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("ROLLBACK WORK", "ROLLBACK"),
        ("ABORT", "ROLLBACK"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("COMMIT PREPARED 'x'", "COMMIT PREPARED"),
        ("ROLLBACK PREPARED 'x'", "ROLLBACK PREPARED"),
        ("SAVEPOINT a", None),
        ("RELEASE SAVEPOINT a", None),
        ("ROLLBACK TO a", None),
        ("ROLLBACK WORK TO SAVEPOINT a", None),
        ("ROLLBACK TRANSACTION TO a", None),
        ("PREPARE transactions AS SELECT 1", None),
        ("SET TRANSACTION READ ONLY", None),
        ("START REPLICATION", None),
        ('"begin"', None),
        ("DO $$ BEGIN COMMIT; END $$", None),
    ],
)
def test_transaction_control_of_every_form_is_seen(text: str, control: Optional[str]) -> None:
    """What opens or ends a transaction is known in every spelling; savepoints and bodies are none of it."""
    assert only(text).transaction_control == control


@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        ("CREATE TABLE IF NOT EXISTS t (a int)", True),
        ("CREATE UNLOGGED TABLE IF NOT EXISTS t (a int)", True),
        ("create extension if not exists pgcrypto", True),
        ("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)", True),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", True),
        ("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", True),
        ("SET search_path = public", True),
        ("COMMENT ON TABLE t IS 'x'", True),
        ("GRANT SELECT ON t TO readwrite", True),
        ("CREATE TABLE t (a int)", False),
        ("CREATE VIEW v AS SELECT 'IF NOT EXISTS'", False),
        ("INSERT INTO t VALUES (1)", False),
        ("ALTER TABLE t ADD COLUMN a int", False),
        ("DROP TABLE t", False),
        ("DO $$ BEGIN CREATE TABLE IF NOT EXISTS t (a int); END $$", False),
    ],
)
def test_is_guarded_only_what_can_run_again(text: str, guarded: bool) -> None:
    """A statement is guarded if running it again changes nothing."""
    assert only(text).is_guarded is guarded


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CREATE TABLE users (id int)", (None, "users")),
        ("create table Users(id int)", (None, "users")),
        ('CREATE TABLE "Users" (id int)', (None, "Users")),
        ('CREATE TABLE "a""b;c" (id int)', (None, 'a"b;c')),
        ("CREATE TABLE größe (id int)", (None, "größe")),
        ("CREATE TABLE IF NOT EXISTS users (id int)", (None, "users")),
        ("CREATE TABLE public.users (id int)", ("public", "users")),
        ('CREATE TABLE "My Schema" . "My Table" (id int)', ("My Schema", "My Table")),
        ("CREATE TABLE IF NOT EXISTS shop.public.users (id int)", ("public", "users")),
        ("CREATE UNLOGGED TABLE IF NOT EXISTS a.b (id int)", ("a", "b")),
        ("CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)", (None, "p1")),
        ("CREATE TABLE s.p1 PARTITION OF s.p DEFAULT", ("s", "p1")),
        ("CREATE TABLE copy AS SELECT * FROM users", (None, "copy")),
        ("CREATE TABLE t OF a_type", (None, "t")),
        ("CREATE /* a */ TABLE -- b\n t (id int)", (None, "t")),
        ("CREATE TEMP TABLE t (id int)", None),
        ("CREATE TEMPORARY TABLE IF NOT EXISTS t (id int)", None),
        ("CREATE LOCAL TEMP TABLE t (id int)", None),
        ("CREATE GLOBAL TEMPORARY TABLE t (id int)", None),
        ("CREATE VIEW v AS SELECT 1", None),
        ("CREATE INDEX ON users (id)", None),
        ("ALTER TABLE users ADD a int", None),
        ("DROP TABLE users", None),
    ],
)
def test_created_table_of_every_form_is_named(text: str, name: Optional[tuple[Optional[str], str]]) -> None:
    """The permanent table that a statement creates is known by schema and name, as PostgreSQL stores them."""
    assert only(text).created_table == name


@pytest.mark.parametrize(
    ("text", "kind", "names"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (a)", "CREATE INDEX", ("t", "", "i")),
        ("create unique index concurrently I on T using btree (a)", "CREATE INDEX", ("T", "", "i")),
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON public.t (a)", "CREATE INDEX", ("public.t", "", "i")),
        ("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON ONLY s.t (a)", "CREATE INDEX", ("s.t", "", "i")),
        (
            'CREATE INDEX CONCURRENTLY "My ""I""" ON "My S"."My T" (a)',
            "CREATE INDEX",
            ('"My S"."My T"', "", 'My "I"'),
        ),
        ('CREATE INDEX CONCURRENTLY "on" ON t (a)', "CREATE INDEX", ("t", "", "on")),
        ("CREATE INDEX CONCURRENTLY ON t (a)", "CREATE INDEX", ("t", "", None)),
        ("CREATE UNIQUE INDEX CONCURRENTLY ON ONLY t (a)", "CREATE INDEX", ("t", "", None)),
        ("CREATE INDEX i ON t (a)", "", ("", "", None)),
        ("CREATE INDEX concurrently_built ON t (a)", "", ("", "", None)),
        ("DROP INDEX CONCURRENTLY i", "DROP INDEX", ("i", "", None)),
        ("DROP INDEX CONCURRENTLY IF EXISTS s.i CASCADE", "DROP INDEX", ("s.i", "", None)),
        ("DROP INDEX i", "", ("", "", None)),
        ("REINDEX INDEX CONCURRENTLY s.i", "REINDEX", ("s.i", "", None)),
        ("REINDEX (VERBOSE, CONCURRENTLY) TABLE t", "REINDEX", ("t", "", None)),
        ("REINDEX DATABASE CONCURRENTLY d", "REINDEX", ("", "", None)),
        ("REINDEX TABLE t", "", ("", "", None)),
        ("ALTER TABLE p DETACH PARTITION q CONCURRENTLY", "DETACH", ("p", "q", None)),
        ("ALTER TABLE IF EXISTS ONLY s.p DETACH PARTITION s.q CONCURRENTLY", "DETACH", ("s.p", "s.q", None)),
        ("ALTER TABLE p DETACH PARTITION q", "", ("", "", None)),
        ('CREATE DATABASE "D"', "DATABASE", ("", "", "D")),
        ("DROP DATABASE IF EXISTS D", "DATABASE", ("", "", "d")),
        ("CREATE DATABASE", "DATABASE", ("", "", "")),
        ("VACUUM t", "", ("", "", None)),
    ],
)
def test_target_of_a_statement_outside_a_transaction_is_named(
    text: str, kind: str, names: tuple[str, str, Optional[str]]
) -> None:
    """What tells whether such a statement has run is known by its kind, and by its names as written or as stored."""
    target = only(text).target
    assert (target.kind, (target.on, target.part, target.name)) == (kind, names)


@pytest.mark.parametrize(
    ("text", "lasting"),
    [
        ("SET search_path = a", True),
        ("SET SESSION AUTHORIZATION a", True),
        ("set role a", True),
        ("RESET ALL", True),
        ("SET LOCAL search_path = a", False),
        ("SET CONSTRAINTS ALL DEFERRED", False),
        ("SET TRANSACTION READ ONLY", False),
        ("SELECT 1", False),
    ],
)
def test_is_session_setting_only_what_outlasts_its_transaction(text: str, lasting: bool) -> None:
    """SET and RESET last for the session, unless they say that they do not."""
    assert only(text).is_session_setting is lasting


def test_created_table_with_letters_beyond_ascii_keeps_them() -> None:
    """PostgreSQL folds A to Z, and in UTF-8 no other letter."""
    assert only("CREATE TABLE ÄRGER (i int)").created_table == (None, "Ärger")


def test_read_script_with_many_empty_lines_takes_no_time() -> None:
    """The search for the mark does not try each empty line as a beginning of it."""
    started = time.monotonic()

    assert read_script("\n" * 300_000 + "SELECT 1").statement_count == 1
    assert time.monotonic() - started < 5


# --- A file as one unit of work -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "begin"),
    [
        ("BEGIN", "COMMIT", "BEGIN"),
        ("begin work", "commit work", "BEGIN"),
        ("BEGIN TRANSACTION", "END TRANSACTION", "BEGIN"),
        ("START TRANSACTION", "END", "BEGIN"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "COMMIT", "BEGIN ISOLATION LEVEL SERIALIZABLE"),
        (
            "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE",
            "COMMIT",
            "BEGIN ISOLATION LEVEL REPEATABLE READ , READ WRITE",
        ),
    ],
)
def test_read_script_own_begin_and_commit_are_left_out_in_place(first: str, last: str, begin: str) -> None:
    """BEGIN first and COMMIT last are left out, BEGIN's modes are kept, and nothing else moves."""
    text = f"-- a file\n{first};\nSELECT 1;\n{last};\n-- end\n"

    script = read_script(text)

    assert (texts(script), script.statement_count, script.begin_sql) == (["SELECT 1"], 1, begin)
    assert script.body_sql() == text.replace(first, " " * len(first)).replace(last, " " * len(last))


def test_read_script_transaction_over_several_lines_keeps_line_ends() -> None:
    """What is left out keeps its line ends, so that no line gets another number."""
    text = "BEGIN\r\n  ISOLATION LEVEL\r\n  SERIALIZABLE;\r\nSELECT 1;\r\nCOMMIT\r\n;"

    script = read_script(text)

    (statement,) = script.statements()
    assert (statement.line, locate(text, statement.start)) == (4, (4, 1))
    assert script.body_sql() == re.sub(r"BEGIN|ISOLATION LEVEL|SERIALIZABLE|COMMIT", lambda m: " " * len(m[0]), text)


def test_read_script_of_nothing_but_begin_and_commit_is_empty() -> None:
    """A transaction around nothing is nothing."""
    assert texts(read_script("BEGIN; COMMIT;")) == []


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        (
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT 1",
            "BEGIN ; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        ),
        ("-- x\nBEGIN;\nset transaction read write;\nSELECT 1; COMMIT", "BEGIN ; set transaction read write"),
        (
            "SET TRANSACTION READ WRITE; SET TRANSACTION NOT DEFERRABLE; SELECT 1",
            "BEGIN ; SET TRANSACTION READ WRITE ; SET TRANSACTION NOT DEFERRABLE",
        ),
    ],
    ids=["alone", "after BEGIN", "twice"],
)
def test_read_script_leading_set_transaction_goes_to_begin(text: str, begin: str) -> None:
    """SET TRANSACTION at the beginning becomes part of what opens the transaction."""
    script = read_script(text)

    assert (script.begin_sql, texts(script)) == (begin, ["SELECT 1"])


@pytest.mark.parametrize(
    "text",
    ["BEGIN READ ONLY; SELECT 1; COMMIT", "SET TRANSACTION READ ONLY; SELECT 1"],
    ids=["BEGIN", "SET TRANSACTION"],
)
def test_read_script_read_only_is_refused(text: str) -> None:
    """In a transaction that may not write, the file could not be recorded."""
    assert refusal("-- reports\n" + text) == (
        "a READ ONLY transaction cannot record that this file is applied: remove READ ONLY",
        (2, 1),
    )


ROLLED_BACK = (
    "{} would undo what precedes it in the file, which would be recorded all the same: remove it, or write ROLLBACK TO "
    "a savepoint"
)
MODES = "this BEGIN is inside a transaction, whose modes it cannot choose any more: remove them"
PREPARED = "{} is not possible here: a prepared transaction would outlive the run"


@pytest.mark.parametrize(
    ("text", "line", "sent"),
    [
        ("SELECT 1;\nCOMMIT;\nSELECT 2;", 2, ["SELECT 1", "COMMIT", "SELECT 2"]),
        ("BEGIN;\nSELECT 1;\nCOMMIT;\nSELECT 2;", 3, ["BEGIN", "SELECT 1", "COMMIT", "SELECT 2"]),
        ("BEGIN; SELECT 1; END;\nBEGIN; SELECT 2; END;", 1, ["BEGIN", "SELECT 1", "END", "BEGIN", "SELECT 2", "END"]),
        ("SELECT 1;\nCOMMIT; BEGIN;\nSELECT 2;", 2, ["SELECT 1", "COMMIT", "BEGIN", "SELECT 2"]),
        ("SELECT 1;\n COMMIT AND CHAIN;\nSELECT 2;", 2, ["SELECT 1", "COMMIT AND CHAIN", "SELECT 2"]),
        ("COMMIT;\nVACUUM;\nVACUUM;", 1, ["COMMIT", "VACUUM", "VACUUM"]),
    ],
)
def test_read_script_that_commits_in_between_has_its_own_transactions(text: str, line: int, sent: list[str]) -> None:
    """psql runs such a file, so it is not one transaction here; the scanner knows where it first commits."""
    script = read_script(text)

    assert (script.no_transaction, script.commits_in_line, texts(script)) == (True, line, sent)


@pytest.mark.parametrize(
    "text",
    [
        "BEGIN;\nSELECT 1;\nSELECT 2;",
        "SELECT 1;\nSELECT 2;\nCOMMIT;",
        "SELECT 1;\nBEGIN;\nSELECT 2;\nCOMMIT;",
        "BEGIN;\nSELECT 1;\nSELECT 2;\nCOMMIT AND CHAIN;",
        "BEGIN;\nBEGIN;\nSELECT 1;\nSELECT 2;\nCOMMIT;\nCOMMIT;",
    ],
)
def test_read_script_whose_transaction_is_the_runs_own_is_one_transaction(text: str) -> None:
    """psql -1 has opened one, and closes what is open at the end: such a BEGIN or COMMIT changes nothing."""
    script = read_script(text)

    assert (script.no_transaction, script.commits_in_line, script.begin_sql) == (False, None, "BEGIN")
    assert texts(script) == ["SELECT 1", "SELECT 2"]


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("SELECT 1 \\; SELECT 2;", ["SELECT 1 ", "SELECT 2"]),
        ("CREATE TABLE a ()\\;CREATE TABLE b ()\\; SELECT 1", ["CREATE TABLE a ()", "CREATE TABLE b ()", "SELECT 1"]),
        ("\\;\nSELECT 1;", ["SELECT 1"]),
    ],
)
def test_read_script_takes_a_semicolon_with_a_backslash_for_one(text: str, sent: list[str]) -> None:
    """`\\;` ends a statement as `;` does, and its backslash is not sent."""
    script = read_script(text)

    assert texts(script) == sent
    assert script.body_sql() == text.replace("\\;", " ;")
    assert script.checksum == read_script(text.replace("\\;", ";")).checksum


@pytest.mark.parametrize(
    "command",
    [
        *("\\set x 1", "\\unset x", "\\set ECHO all", "\\set xx 'a b'"),
        *("\\set AUTOCOMMIT on", "\\set ON_ERROR_ROLLBACK off"),
    ],
)
def test_read_script_leaves_out_a_variable_that_the_file_does_not_use(command: str) -> None:
    """Setting it changes nothing."""
    assert texts(read_script(f"{command}\nSELECT '1'::xx, ARRAY[1:2];")) == ["SELECT '1'::xx, ARRAY[1:2]"]


@pytest.mark.parametrize(
    "text",
    [
        *("\\set x 1\nSELECT :x;", "\\set x 1\nSELECT :'x';", '\\set x 1\nSELECT :"x";', "\\unset x\nSELECT :{?x};"),
        *("\\set AUTOCOMMIT off", "\\set ON_ERROR_ROLLBACK on", "\\unset ON_ERROR_STOP", "\\set"),
    ],
)
def test_read_script_refuses_a_variable_that_matters(text: str) -> None:
    """One that the file uses, or that tells psql to run it in another way."""
    command = text.split(maxsplit=1)[0]
    instead = "variables of psql do not exist here; write the value itself"
    assert refusal(text) == (f"{command} is a command of psql, not SQL: {instead}", (1, 1))


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("BEGIN;\nSELECT 1;\nROLLBACK;", ROLLED_BACK.format("ROLLBACK"), (3, 1)),
        ("SELECT 1;\nROLLBACK;", ROLLED_BACK.format("ROLLBACK"), (2, 1)),
        ("ABORT", ROLLED_BACK.format("ABORT"), (1, 1)),
        ("SELECT 1;\nCOMMIT;\nSELECT 2;\nROLLBACK;", ROLLED_BACK.format("ROLLBACK"), (4, 1)),
        ("SELECT 1;\nBEGIN READ ONLY;\nSELECT 2;\nCOMMIT;", MODES, (2, 1)),
        ("SELECT 1; PREPARE TRANSACTION 'x'", PREPARED.format("PREPARE TRANSACTION"), (1, 11)),
        ("-- no-transaction\nPREPARE TRANSACTION 'x'", PREPARED.format("PREPARE TRANSACTION"), (2, 1)),
        ("-- no-transaction\nCOMMIT PREPARED 'x'", PREPARED.format("COMMIT PREPARED"), (2, 1)),
        ("ROLLBACK PREPARED 'x'", PREPARED.format("ROLLBACK PREPARED"), (1, 1)),
    ],
)
def test_read_script_that_rolls_back_or_prepares_is_refused(text: str, message: str, place: tuple[int, int]) -> None:
    """Any other transaction control is refused with its place and a way out."""
    assert refusal(text) == (message, place)


@pytest.mark.parametrize(
    "text",
    [
        "-- no-transaction\nVACUUM;\nVACUUM;",
        "--no-transaction\r\nVACUUM;\r\nVACUUM;",
        "\n  --  No-Transaction  \nVACUUM;\nVACUUM",
        "-- what it does\n/* and why */\n-- no-transaction\n\nVACUUM;\nVACUUM;",
        "-- no-transaction\n\\restrict x\nVACUUM;\nVACUUM;",
    ],
    ids=["first line", "CRLF", "blanks and capitals", "third line", "before restrict"],
)
def test_read_script_marked_in_leading_comment_is_not_a_transaction(text: str) -> None:
    """`-- no-transaction` before the first statement takes the transaction away."""
    script = read_script(text)

    assert (script.no_transaction, texts(script)) == (True, ["VACUUM", "VACUUM"])


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1;\n-- no-transaction\n",
        "SELECT 1 -- no-transaction",
        "SELECT '\n-- no-transaction\n'",
        "-- there is no-transaction here\nSELECT 1",
    ],
    ids=["after", "next to", "in a string", "in a sentence"],
)
def test_read_script_marked_elsewhere_stays_one_transaction(text: str) -> None:
    """The mark counts as a line comment of its own before the first statement, and nowhere else."""
    assert read_script(text).no_transaction is False


def test_read_script_no_transaction_keeps_its_transactions() -> None:
    """In a marked file BEGIN and COMMIT are left for the runner, which makes one unit of what is between them."""
    script = read_script("-- no-transaction\nBEGIN; SELECT 1; COMMIT; VACUUM; COMMIT;")

    assert texts(script) == ["BEGIN", "SELECT 1", "COMMIT", "VACUUM", "COMMIT"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("-- no-transaction\nBEGIN;\nSELECT 1;\nROLLBACK;", (4, 1)),
        ("-- no-transaction\nBEGIN;\nSELECT 1;\nCOMMIT AND CHAIN;\nSELECT 2;\nCOMMIT;", (4, 1)),
        ("-- no-transaction\nSELECT 1;\nBEGIN;\nSELECT 2;", (3, 1)),
    ],
    ids=["ROLLBACK", "AND CHAIN", "BEGIN without COMMIT"],
)
def test_read_script_no_transaction_with_an_unclear_unit_is_refused(text: str, place: tuple[int, int]) -> None:
    """What psql would roll back, or chain, is refused in a marked file, without the advice to mark it."""
    message, where = refusal(text)

    assert where == place
    assert "write -- no-transaction" not in message


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMP TABLE t (i int)",
        "CREATE LOCAL TEMPORARY TABLE t (i int)",
        "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    ],
)
def test_read_script_no_transaction_with_what_a_kill_would_take_away_is_refused(statement: str) -> None:
    """A marked file is resumed in another session: what lasts as long as the session must be inside a unit."""
    message, where = refusal(f"-- no-transaction\nBEGIN;\nSELECT 1;\nCOMMIT;\n{statement};\nSELECT 2;")

    assert where == (5, 1)
    assert "write BEGIN above it and COMMIT below its last use" in message
    assert read_script(f"-- no-transaction\nBEGIN;\n{statement};\nCOMMIT;").statement_count == 3
    assert read_script(f"{statement};\nSELECT 2").statement_count == 2


# --- What changes how strings are read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("SELECT 1;\nSELECT set_config('standard_conforming_strings', 'off', false);", (2, 1)),
        ("DO $$ BEGIN SET standard_conforming_strings = off; END $$;", (1, 1)),
        ("SAVEPOINT s;\nSET standard_conforming_strings = off;\nROLLBACK TO s;", (3, 1)),
    ],
    ids=["set_config", "DO", "ROLLBACK TO"],
)
def test_read_script_reading_changed_in_a_way_that_cannot_be_followed_is_refused(
    text: str, place: tuple[int, int]
) -> None:
    """Only SET shows the scanner that a backslash means something else from here on."""
    message, where = refusal(text)

    assert where == place
    assert message.endswith(
        "changes how strings are read, which cannot be followed: write SET standard_conforming_strings = … instead"
    )


def test_read_script_reading_named_in_data_is_accepted() -> None:
    """A row or a function that only speaks of the setting is left alone."""
    text = (
        "INSERT INTO t VALUES ('standard_conforming_strings');\nCREATE FUNCTION f() RETURNS int LANGUAGE sql "
        "SET standard_conforming_strings = on AS 'SELECT 1';"
    )

    assert read_script(text).pieces == ()


def test_read_script_says_where_it_first_commits_by_itself() -> None:
    """The line is what a warning names."""
    assert read_script("SELECT 1;\nCOMMIT;\nSELECT 2;\nCOMMIT;\nSELECT 3;").commits_in_line == 2


def test_read_script_no_transaction_names_the_word_of_what_a_kill_would_take_away() -> None:
    """The refusal says which statement it is about."""
    with pytest.raises(ScanError, match=r"^this DECLARE creates something that is gone"):
        read_script("-- no-transaction\nDECLARE c CURSOR WITH HOLD FOR SELECT 1;\nSELECT 1;")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CREATE INDEX CONCURRENTLY ON t (a)", True),
        ("REINDEX TABLE CONCURRENTLY t", True),
        ("DROP INDEX CONCURRENTLY i", True),
        ("CREATE DATABASE d", False),
    ],
)
def test_target_of_a_concurrent_statement_is_known_as_such(text: str, expected: bool) -> None:
    """Such a statement waits for others for as long as it takes."""
    (statement,) = scan(text)

    assert statement.target.is_concurrent is expected


def test_target_that_is_a_database_is_its_name_alone() -> None:
    """What follows the name are options."""
    (statement,) = scan("CREATE DATABASE d OWNER o")

    assert (statement.target.kind, statement.target.name) == ("DATABASE", "d")

"""A file is applied once, whole or not at all, and a failure says where, what, in which state, and what to do."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import psycopg2
import pytest
import session
import sql_scanner
from harness.database import drop_database
from harness.world import Context, World
from initializer import MigrationError

RAISED_ELSEWHERE = "the function's words are not shown, since a RAISE can quote any value"
ENDLESS = (
    "Rolled back. Something is nested too deeply: a function that calls itself without end, or an expression of "
    "thousands of terms; write it as rows, or in parts. Then deploy again."
)
FIX = "Rolled back. Fix the file and deploy again. Applied in this run: nothing."
UNDONE = ": put it back, or undo in a new file what it did"
GOES_ON = (
    "The statements before this one have run and stay applied: do not edit them. "
    "Fix the file and deploy again: the run continues here. "
    "Applied in this run: nothing."
)
COMMITS_ITSELF = (
    "Rolled back. A block that commits by itself needs a file without a transaction: write -- no-transaction in the "
    "first line, make sure that the block can be repeated, and deploy again. Applied in this run: nothing."
)
MARK_IT = (
    "Rolled back. This file of several statements is one transaction: put the statement into a file of its own, or "
    "write -- no-transaction in the first line, and deploy again. Applied in this run: nothing."
)


@pytest.fixture(autouse=True)
def _without_users(world: World) -> None:
    """Users do not matter here, and take half of the time."""
    world.environ["CREATE_USERS"] = "false"


def failure(world: World, **environ: str) -> str:
    """The message with which the deployment fails."""
    with pytest.raises(MigrationError) as caught:
        world.deploy(**environ)
    return str(caught.value)


def fail_with(world: World, text: str, name: str = "001_a.sql") -> str:
    world.write(name, text)
    return failure(world)


def names(report: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What files said by RAISE NOTICE, as it is in the log."""
    return [vars(record)["text"] for record in caplog.records if vars(record).get("severity") == "NOTICE"]


# --- Whole or not at all --------------------------------------------------------------------------------------------


def test_apply_file_and_row_commit_together(world: World) -> None:
    """The row is written by the transaction that did the file's work."""
    world.write("001_a.sql", "CREATE TABLE a (x xid8 DEFAULT pg_current_xact_id()); INSERT INTO a DEFAULT VALUES;")

    world.deploy()

    assert world.sql("SELECT x::xid = m.xmin FROM a, schema_migrations m") == [(True,)]


def test_apply_failing_file_leaves_no_trace_earlier_stay_later_are_not_tried(world: World) -> None:
    """The failing file is rolled back whole; files before it stay, files after it wait. Once it is fixed, all run."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.write("002_b.sql", "CREATE TABLE b (i int);\nINSERT INTO a VALUES (1);\nSELECT 1 / 0;\n")
    world.write("003_c.sql", "CREATE TABLE c (i int);")

    message = failure(world)

    assert message == (
        "002_b.sql:3: division by zero (22012). Rolled back. Fix the file and deploy again. "
        "Applied in this run: 001_a. Not tried: 003_c."
    )
    assert (world.applied(), world.tables()) == (["001_a"], ["a"])
    assert world.sql("SELECT * FROM a") == []
    world.write("002_b.sql", "CREATE TABLE b (i int);\nINSERT INTO a VALUES (1);\n")
    assert names(world.deploy()) == ["002_b", "003_c"]
    assert world.sql("SELECT * FROM a") == [(1,)]


def test_apply_row_that_cannot_be_written_rolls_the_file_back(world: World) -> None:
    """If the row cannot be written, the file is rolled back."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()
    world.sql("ALTER TABLE schema_migrations ADD CHECK (migration_name <> '002_b')")
    world.write("002_b.sql", "CREATE TABLE b (i int);\nCREATE TABLE c (i int);")

    message = failure(world)

    assert 'check constraint "schema_migrations_migration_name_check" (23514), which showed at the end' in message
    assert (world.applied(), world.tables()) == (["001_a"], ["a"])


def test_apply_statement_that_succeeds_when_repeated_fails_and_is_applied_by_the_next_run(world: World) -> None:
    """The second run, which finds the place of the failure, is not an attempt: it is rolled back, failed or not."""
    world.write("001_a.sql", "CREATE SEQUENCE tries; CREATE TABLE a (i int);")
    world.write(
        "002_b.sql",
        "INSERT INTO a VALUES (1);\nDO $$ BEGIN IF nextval('tries') = 1 THEN RAISE 'not yet'; END IF; END $$;\n",
    )

    message = failure(world)

    assert message.startswith("002_b.sql:2: not yet (P0001). Rolled back.")
    assert (world.applied(), world.sql("SELECT * FROM a")) == (["001_a"], [])
    assert names(world.deploy()) == ["002_b"]
    assert world.sql("SELECT * FROM a") == [(1,)]


def test_apply_own_savepoints_work(world: World) -> None:
    """Savepoints belong to the file."""
    world.write(
        "001_a.sql",
        "CREATE TABLE a (i int); SAVEPOINT s; INSERT INTO a VALUES (1); ROLLBACK TO s; INSERT INTO a VALUES (2);"
        "RELEASE s;",
    )

    world.deploy()

    assert world.sql("SELECT * FROM a") == [(2,)]


# --- file:line:column where PostgreSQL gives a position -------------------------------------------------------------

POSITIONS = {
    "first character": ("SELEC 1;", "1:1", 'syntax error at or near "SELEC" (42601)'),
    "third line": ("SELECT 1;\n\n  SELECT oops;", "3:10", 'column "oops" does not exist (42703)'),
    "after non-ASCII text": (
        "SELECT 'größe', '😀' AS é;\nSELECT '😀é', oops;",
        "2:14",
        'column "oops" does not exist',
    ),
    "after a BOM": ("\ufeffSELECT oops;", "1:8", 'column "oops" does not exist (42703)'),
    "CRLF": ("SELECT 1;\r\nSELECT\r\n  oops;\r\n", "3:3", 'column "oops" does not exist (42703)'),
    "after a percent sign": ("SELECT 5 % 3, '%s';\nSELECT oops", "2:8", 'column "oops" does not exist (42703)'),
    "after a doubled quote and a BOM": ("\ufeffSELECT 'it''s';\nSELECT oops;", "2:8", 'column "oops" does not exist'),
    "after backslashes in strings": (
        "SET standard_conforming_strings = off;\nSELECT 'it\\'s; x';\nSELECT oops;",
        "3:8",
        'column "oops" does not exist (42703)',
    ),
    "end of the text": ("SELECT 1;\nSELECT (1", "2:10", "syntax error at end of input (42601)"),
    "end of the only statement": ("CREATE TABLE a (\n  i int", "2:8", "syntax error at end of input (42601)"),
    "after BEGIN": ("BEGIN;\nSELECT oops;\nCOMMIT;", "2:8", 'column "oops" does not exist (42703)'),
    "unclosed string": ("SELECT 1;\nSELECT 'it", "2:8", "this string is never closed (a ' inside it is written twice)"),
    "a literal": ("SELECT 1;\nSELECT int 'abc';", "2:12", 'invalid input syntax for type integer: "…" (22P02)'),
    "in a function's body": (
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$\nBEGIN\n  RETRN 1;\nEND $$;",
        "3:3",
        'syntax error at or near "…" (42601)',
    ),
}


@pytest.mark.slow
def test_error_with_a_position_begins_with_line_and_column(world: World) -> None:
    """Where PostgreSQL names a character, the message names its line and column in the file, in characters."""
    for case, (text, place, said) in POSITIONS.items():
        message = fail_with(world, text)

        assert message.startswith(f"001_a.sql:{place}: {said}"), case
    assert (world.applied(), world.tables()) == ([], [])


PSQL_VARIABLES = [":name", ":'name'", ':"name"']


def test_error_at_a_variable_of_psql_says_what_to_write_instead(world: World) -> None:
    """A variable is a syntax error of PostgreSQL, and explained; where : is something else there is nothing to add."""
    for variable in PSQL_VARIABLES:
        shown = variable.replace("'name'", "'…'")
        assert fail_with(world, f"SELECT\n({variable});") == (
            '001_a.sql:2:2: syntax error at or near ":"; variables of psql do not exist here: write the value '
            f"itself (42601). {FIX}\nLINE 2: ({shown});\n         ^"
        )
    assert "psql" not in fail_with(world, "SELECT (ARRAY[1])[1:1], 'a'::text, ::oops;")


def test_error_at_a_character_that_looks_like_a_space_names_it(world: World) -> None:
    """A no-break space, a zero-width space or a BOM in the middle cannot be seen: the message names it."""
    for code in ("00A0", "200B", "FEFF"):
        odd = chr(int(code, 16))
        # A character that no terminal shows is written out, so that it cannot do anything there.
        shown = odd if code == "00A0" else f"\\u{code.lower()}"
        said = " ".join(f'syntax error at or near "{shown}"'.split())

        assert fail_with(world, f"SELECT 1;\n{odd};\n") == (
            f"001_a.sql:2:1: {said}; the character there is not a space but U+{code}: delete it (42601). {FIX}\n"
            f"LINE 2: {shown};\n        ^"
        )


def test_error_message_gives_sqlstate_state_next_step_and_hint(world: World) -> None:
    """The verdict is in the first line; the line of SQL with a caret and PostgreSQL's HINT follow."""
    world.write("001_a.sql", "CREATE TABLE users (email text);")
    world.write("002_b.sql", "SELECT emial FROM users;")
    world.write("003_c.sql", "SELECT 1;")

    assert failure(world) == (
        '002_b.sql:1:8: column "emial" does not exist (42703). Rolled back. Fix the file and deploy again. '
        "Applied in this run: 001_a. Not tried: 003_c.\n"
        "LINE 1: SELECT emial FROM users;\n"
        "               ^\n"
        'HINT: Perhaps you meant to reference the column "users.email".'
    )


# --- file:line where it gives none ----------------------------------------------------------------------------------

BEFORE = (
    "CREATE TABLE t (i int PRIMARY KEY, n text NOT NULL, CONSTRAINT small CHECK (i < 10));\n"
    "INSERT INTO t VALUES (1, 'x');"
)
LINES = {
    "duplicate table": ("CREATE TABLE t (i int);", 'relation "t" already exists (42P07)'),
    "duplicate key": (
        "INSERT INTO t VALUES (1, 'y');",
        'duplicate key value violates unique constraint "t_pkey" (23505)',
    ),
    "unknown role": ("GRANT SELECT ON t TO nobody_such;", 'role "nobody_such" does not exist (42704)'),
    "null": (
        "INSERT INTO t VALUES (2, NULL);",
        'null value in column "n" of relation "t" violates not-null constraint',
    ),
    "check": ("INSERT INTO t VALUES (11, 'x');", 'new row for relation "t" violates check constraint "small" (23514)'),
    "RAISE": ("DO $$ BEGIN RAISE 'no good'; END $$;", "no good (P0001)"),
    "division": ("SELECT 1 / (i - 1) FROM t;", "division by zero (22012)"),
    "dropped": ("DROP TABLE nothing;", 'table "nothing" does not exist (42P01)'),
    "dependent objects": (
        "CREATE VIEW v AS SELECT * FROM t;DROP TABLE t;",
        "cannot drop table t because other objects",
    ),
    "statement timeout": ("SET statement_timeout = 50; SELECT pg_sleep(5);", "canceling statement due to statement"),
    "not in a transaction": ("VACUUM t;", "VACUUM cannot run inside a transaction block (25001)"),
}


@pytest.mark.slow
def test_error_without_a_position_begins_with_the_statements_line(world: World) -> None:
    """Where PostgreSQL names no character, the message names the line of the statement that failed."""
    for case, (text, said) in LINES.items():
        message = fail_with(world, f"{BEFORE}\n\n-- comment\n{text}\nSELECT 2;\n")

        assert message.startswith(f"001_a.sql:5: {said}"), case
    assert (world.applied(), world.tables()) == ([], [])


def test_error_without_a_position_in_a_file_of_one_statement_names_its_line(world: World) -> None:
    """A single statement needs no second attempt to be named."""
    assert fail_with(world, "-- comment\n\nDROP TABLE nothing;\n") == (
        f'001_a.sql:3: table "nothing" does not exist (42P01). {FIX}\nLINE 3: DROP TABLE nothing;'
    )


def test_error_in_set_transaction_names_its_line(world: World) -> None:
    """A statement that is sent before the file's savepoint keeps its line."""
    message = fail_with(world, "\nSET TRANSACTION SNAPSHOT 'nonsense';\n\nSELECT 1;\nSELECT 2;\n")

    assert re.match(r"001_a\.sql:2(:\d+)?: a snapshot-importing transaction must have isolation level", message)


DO_BLOCKS = {
    "dollars": "SELECT 1;\nDO $$\nBEGIN\n  PERFORM 1;\n  RAISE 'no good';\nEND $$;",
    "a tag and a language": (
        "SELECT 1;\nDO LANGUAGE plpgsql\n$body$ BEGIN\n  PERFORM '$x$';\n  RAISE 'no good';\nEND $body$;"
    ),
    "a dollar in a comment": "SELECT 1;\nDO -- costs $5\n$$ BEGIN\n  PERFORM 1;\n  RAISE 'no good';\nEND $$;",
    "a string": "SELECT 1;\nDO '\nBEGIN\n  PERFORM 1;\n  RAISE ''no good'';\nEND';",
    "the only statement": "DO $$\n\n\nBEGIN\n  RAISE 'no good';\nEND $$;",
}


def test_error_inside_do_block_adds_its_own_line(world: World) -> None:
    """A DO block is named by its statement's line, and the line inside it as a line of the file."""
    for case, text in DO_BLOCKS.items():
        line = 1 if text.startswith("DO") else 2

        shown = f"\nLINE 5: {text.splitlines()[4].replace('no good', '…')}"
        assert fail_with(world, text) == (
            f"001_a.sql:{line}: no good (P0001). {FIX}\nIN: the DO block, line 5 of the file"
            f"{'' if case == 'a string' else shown}"
        ), case


RAISED = {  # what it is in the file, and what the message says of it
    "a format": ("RAISE EXCEPTION 'no mail\n for %', v", "no mail for … (P0001)"),
    "a quote": ("RAISE 'it''s %'' % ', v, v", "it's …' … (P0001)"),
    "the value alone": ("RAISE '%', v", f"{RAISED_ELSEWHERE} (P0001)"),
    "an expression": ("RAISE unique_violation USING MESSAGE = 'row ' || v", f"{RAISED_ELSEWHERE} (23505)"),
    "a condition": ("RAISE division_by_zero", "division_by_zero (22012)"),
    "an assertion": ("ASSERT false, 'no rows'", "no rows (P0004)"),
    "a detail": ("RAISE 'no' USING DETAIL = 'row ' || v, HINT = 'look at a'", "no (P0001)"),
}


@pytest.mark.slow
def test_words_of_raise_are_shown_without_values(world: World) -> None:
    """What its author wrote is meant to be read; what it quotes can be a row, in quotes or not."""
    world.sql("CREATE TABLE a (v text); INSERT INTO a VALUES ('S3cr3t')")
    for case, (statement, said) in RAISED.items():
        body = f"DECLARE v text; BEGIN SELECT a.v INTO v FROM a; {statement}; END"
        for text in (f"DO $$ {body} $$;", "DO '{}';".format(body.replace("'", "''"))):
            message = fail_with(world, text)

            assert message.startswith(f"001_a.sql:1: {said}. {FIX}\nIN: the DO block, line 1 of the file"), case
            assert "S3cr3t" not in message, case
            assert ("\nHINT: look at a" in message, "\nDETAIL" in message) == (case == "a detail", False), case


def test_words_of_raise_in_a_function_of_the_database_are_those_of_the_function(world: World) -> None:
    """The operator reads why an application's own trigger refused a row, without the row."""
    world.sql("CREATE TABLE a (v text)")
    world.sql(
        "CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'the balance of % is wrong', NEW.v; END $$"
    )
    world.sql("CREATE TRIGGER judge BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION judge()")

    assert fail_with(world, "SELECT 1;\nINSERT INTO a VALUES ('S3cr3t');") == (
        f"001_a.sql:2: the balance of … is wrong (P0001). {FIX}\nLINE 2: INSERT INTO a VALUES ('…');\n"
        "IN: function judge(), its line 1"
    )


def test_hint_about_the_depth_of_the_stack_is_postgresqls_own(world: World) -> None:
    """It quotes the name of a setting, which no file has."""
    world.sql("CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN f($1 + 1); END $$")

    message = fail_with(world, "SELECT f(1);")

    assert message.startswith(f"001_a.sql:1: stack depth limit exceeded (54001). {ENDLESS}")
    assert '\nHINT: Increase the configuration parameter "max_stack_depth" (currently ' in message


def test_error_in_syntax_of_do_block_is_named_once(world: World) -> None:
    """Where PostgreSQL names the character inside a DO block, there is nothing to add."""
    assert fail_with(world, "SELECT 1;\nDO $$\nBEGIN\n  RETRN 1;\nEND $$;") == (
        f'001_a.sql:4:3: syntax error at or near "…" (42601). {FIX}\nLINE 4:   RETRN 1;\n          ^'
    )


def test_error_inside_function_names_the_function_and_its_line(world: World) -> None:
    """What fails inside a function is named by the statement that calls it, the function, and its own line."""
    world.write(
        "001_a.sql", "CREATE FUNCTION f(n int) RETURNS int LANGUAGE plpgsql AS $$\nBEGIN\n  RETURN 1 / n;\nEND $$;"
    )
    world.write("002_b.sql", "SELECT 1;\nSELECT f(0);")

    message = failure(world)

    assert message.splitlines() == [
        f"002_b.sql:2: division by zero (22012). {FIX.replace('nothing', '001_a')}",
        "IN: function f(integer), its line 3",
    ]


DEFERRED = {
    "foreign key": (
        "CREATE TABLE p (i int PRIMARY KEY);\n"
        "CREATE TABLE c (i int CONSTRAINT to_p REFERENCES p DEFERRABLE INITIALLY DEFERRED);\n"
        "INSERT INTO c VALUES (1);",
        'insert or update on table "c" violates foreign key constraint "to_p" (23503)',
        "ON: constraint to_p, table c",
    ),
    "unique": (
        "CREATE TABLE c (i int CONSTRAINT one UNIQUE DEFERRABLE INITIALLY DEFERRED);\n"
        "INSERT INTO c VALUES (1);\nINSERT INTO c VALUES (1);",
        'duplicate key value violates unique constraint "one" (23505)',
        "ON: constraint one, table c",
    ),
    "constraint trigger": (
        "CREATE TABLE c (i int);\n"
        "CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'c is wrong'; END $$;\n"
        "CREATE CONSTRAINT TRIGGER judge AFTER INSERT ON c DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        "EXECUTE FUNCTION judge();\nINSERT INTO c VALUES (1);",
        "c is wrong (P0001)",
        "IN: function judge(), its line 1",
    ),
}


def test_error_of_deferred_constraint_names_itself_and_the_end_of_the_file(world: World) -> None:
    """A deferred check speaks when the file is over; it names itself, since no single statement is to blame."""
    for case, (text, said, where) in DEFERRED.items():
        last = text.count("\n") + 1

        assert fail_with(world, text).splitlines() == [
            f"001_a.sql:{last}: {said}, which showed at the end of the file. {FIX}",
            where,
        ], case
    assert (world.applied(), world.tables()) == ([], [])


def test_deferred_constraint_trigger_sees_the_files_own_session(world: World) -> None:
    """Deferred triggers fire before the session is put back, as they would at the file's own COMMIT."""
    world.write(
        "001_a.sql",
        "CREATE SCHEMA s; CREATE TABLE s.t (i int); CREATE TABLE s.seen (path text);\n"
        "CREATE FUNCTION s.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN\n"
        "  INSERT INTO seen VALUES (current_setting('search_path')); RETURN NULL; END $$;\n"
        "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON s.t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        "EXECUTE FUNCTION s.note();\nSET search_path = s; INSERT INTO t VALUES (1);",
    )

    world.deploy()

    assert world.sql("SELECT path FROM s.seen") == [("s",)]


# --- No row data ----------------------------------------------------------------------------------------------------

SECRET = "hunter2"
ROW_DATA = {
    "unique index over rows": "CREATE UNIQUE INDEX u ON people (pin);",
    "not null over rows": "INSERT INTO people SELECT NULL, pin FROM people;",
    "check over rows": "ALTER TABLE people ADD CONSTRAINT short CHECK (length(pin) < 3);",
    "check of a row": "ALTER TABLE people ADD CONSTRAINT short CHECK (i > 0); UPDATE people SET i = -1;",
    "foreign key": "ALTER TABLE people ADD FOREIGN KEY (pin) REFERENCES pins;",
    "cast to integer": "SELECT pin::int FROM people;",
    "cast of a value with a quote": "SELECT ('a\"' || pin)::int FROM people;",
    "cast of a long value": "SELECT (pin || repeat('x', 500))::int FROM people;",
    "cast in ALTER TABLE": "ALTER TABLE people ALTER pin TYPE date USING pin::date;",
    "cast to json": "SELECT pin::json FROM people;",
    "cast to uuid": "SELECT pin::uuid FROM people;",
    "cast to an array": "SELECT ('{a,\"' || pin)::text[] FROM people;",
    "too long": "ALTER TABLE people ADD q varchar(2); UPDATE people SET q = pin;",
    "regular expression": "SELECT 'x' ~ ('(' || pin) FROM people;",
    "unit of time": "SELECT date_trunc(pin, now()) FROM people;",
    "partition": "CREATE TABLE parts (pin text) PARTITION BY LIST (pin); INSERT INTO parts SELECT pin FROM people;",
    "exclusion": "ALTER TABLE people ADD CONSTRAINT apart EXCLUDE (pin WITH =);",
}


@pytest.mark.slow
def test_error_about_rows_tells_nothing_of_them(
    world: World, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """No value of a row is in the message or in the log (SQLSTATE classes 22 and 23)."""
    world.write(
        "001_a.sql",
        "CREATE TABLE pins (pin text PRIMARY KEY); CREATE TABLE people (i int NOT NULL, pin text);\n"
        f"INSERT INTO people VALUES (1, '{SECRET}'), (2, '{SECRET}');",
    )
    world.deploy()
    for case, text in ROW_DATA.items():
        message = fail_with(world, f"SELECT 1;\n{text}", "002_b.sql")

        assert re.match(r"002_b\.sql:2: .+ \(2[23][0-9A-Z]{3}\)", message), case
        assert SECRET not in message, case
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_error_about_rows_names_constraint_table_and_column(world: World) -> None:
    """Instead of the row's data, what it violated is named."""
    message = fail_with(world, f"{BEFORE}\nINSERT INTO t VALUES (2, NULL);")

    assert message.splitlines()[1:] == ["ON: table t, column n"]


def test_error_of_another_class_keeps_its_detail(world: World) -> None:
    """Where DETAIL cannot hold a row it is shown, since it says what to do."""
    message = fail_with(world, "CREATE TABLE t (i int);\nCREATE VIEW v AS SELECT * FROM t;\nDROP TABLE t;")

    assert message.splitlines()[1:] == [
        "LINE 3: DROP TABLE t;",
        "DETAIL: view v depends on table t",
        "HINT: Use DROP ... CASCADE to drop the dependent objects too.",
    ]


def test_error_message_stays_short(world: World) -> None:
    """A message of any length stays under 1,500 characters, its verdict in the first line."""
    message = fail_with(world, "DO $$ BEGIN RAISE '%', repeat('x', 9000) USING DETAIL = repeat('y', 9000); END $$;")

    assert len(message) <= 1500
    assert FIX in message.splitlines()[0]


# --- Odd files ------------------------------------------------------------------------------------------------------

ODD = {
    "empty": "",
    "white space": " \n\r\n\t",
    "line comment": "-- nothing",
    "block comment": "/* nothing */",
    "lone semicolon": ";",
    "semicolons": ";;\n;",
    "BOM": "\ufeffCREATE TABLE {} (i int);",
    "BOM alone": "\ufeff",
    "CRLF": "CREATE TABLE {0} (\r\n  i int\r\n);\r\nINSERT INTO {0} VALUES (1);\r\n",
    "percent signs": "CREATE TABLE {} (i int DEFAULT 7 % 4, t text DEFAULT '%s %(x)s %');",
    "no final newline": "CREATE TABLE {} (i int);",
    "no final semicolon": "CREATE TABLE {} (i int)",
    "comment at the end": "CREATE TABLE {} (i int) -- the end",
    "comment at the end of rows": "CREATE TABLE {0} (i int); INSERT INTO {0} VALUES (1) -- the end",
    "block comment at the end": "CREATE TABLE {} (i int); /* the end */",
    "non-ASCII text": "CREATE TABLE {} (straße text DEFAULT '😀 日本');",
    "own transaction": "BEGIN;\nCREATE TABLE {} (i int);\nCOMMIT;",
    "own transaction around nothing": "BEGIN; COMMIT;",
    "own transaction in other words": "START TRANSACTION; CREATE TABLE {} (i int); END",
    "results": "SELECT 1; SELECT 2 WHERE false; VALUES (1), (2)",
    "dollars": "CREATE TABLE {} (a$b$c int); DO $x$ BEGIN PERFORM '$$'; END $x$",
}


def test_apply_odd_file_is_applied(world: World) -> None:
    """Files that look unusual are applied and recorded, and do not block the files after them."""
    for number, text in enumerate(ODD.values(), 1):
        world.write(f"{number:03d}_a.sql", text.format(f"größe_{number:03d}"))

    world.deploy()

    assert world.applied() == [f"{number:03d}_a" for number in range(1, len(ODD) + 1)]
    assert world.tables() == [f"größe_{number:03d}" for number, text in enumerate(ODD.values(), 1) if "TABLE" in text]


def test_apply_text_arrives_as_written(world: World) -> None:
    """Percent signs, quotes, backslashes and characters of any width arrive as they are in the file."""
    values = ["%s", "100%", "%(a)s", "C:\\new", "é😀日本", "it''s"]
    world.write("001_a.sql", "CREATE TABLE a (t text);" + "".join(f"INSERT INTO a VALUES ('{v}');\n" for v in values))

    world.deploy()

    assert [text for (text,) in world.sql("SELECT t FROM a")] == [*values[:-1], "it's"]


ODD_NAMES = [
    "001_größe 日本",
    "002 with blanks",
    "003_it's",
    '004_"quoted"',
    "005_back\\slash",
    "006_100%s",
    "007_$$;--",
    "00008-[brackets](x)",
    "20260101120000_stamp",
]


@pytest.mark.slow
def test_apply_odd_file_name_is_recorded_as_it_is(world: World) -> None:
    """A file's name is recorded as it is in the folder, recognised by that, and named so in an error."""
    for number, name in enumerate(ODD_NAMES):
        world.write(f"{name}.sql", f"CREATE TABLE a{number} (i int);")

    world.deploy()

    assert world.applied() == ODD_NAMES
    assert names(world.deploy()) == []
    for name in ODD_NAMES:
        file = f"9{name}.sql"
        message = fail_with(world, "CREATE TABLE a1 (i int);", file)
        world.remove(file)
        assert message.startswith(f'{file}:1: relation "a1" already exists (42P07)')


REFUSED_BYTES = {
    "Latin-1": (b"SELECT 1;\nSELECT 'gr\xf6\xdfe';\n", "001_a.sql:2:11: byte 0xf6 is not UTF-8. "),
    "UTF-16": ("SELECT 1;".encode("utf-16"), "001_a.sql:1:1: byte 0xff is not UTF-8. "),
    "UTF-16 without BOM": ("SELECT 1;".encode("utf-16-le"), "001_a.sql:1:2: a NUL character"),
    "NUL": (b"SELECT 1;\r\nSELECT '\0';", "001_a.sql:2:9: a NUL character, which PostgreSQL cannot take. "),
}


def test_apply_file_that_is_not_utf_8_is_refused_before_anything_ran(world: World) -> None:
    """A file that is not UTF-8, or holds a NUL, is refused with the place; nothing has run, not even earlier files."""
    world.write("000_first.sql", "CREATE TABLE first (i int);")
    for case, (data, beginning) in REFUSED_BYTES.items():
        (world.folder / "001_a.sql").write_bytes(data)

        message = failure(world)

        assert message.startswith(beginning), case
        assert "Nothing has been applied." in message
        assert "UTF-8" in message.split("applied.")[1]
    assert (world.applied(), world.tables()) == ([], [])


REFUSED_TEXTS = {
    "2:1: ROLLBACK would undo what precedes it in the file, which would be recorded all the same: remove it, or write "
    "ROLLBACK TO a savepoint": "CREATE TABLE b (i int);\nROLLBACK;\nSELECT 1;",
    "1:3: \\i is a command of psql, not SQL: put the SQL of that file here, or into a migration of its own": (
        "  \\i b.sql"
    ),
    "2:1: COPY … TO STDOUT has no one to write to: remove it": "CREATE TABLE b (i int);\nCOPY b TO STDOUT;",
    "2:8: this string is never closed (a ' inside it is written twice)": "CREATE TABLE b (i int);\nSELECT 'it",
    "1:4: a lone $: a body is written between $$ and $$, or between $name$ and $name$": "DO $\nBEGIN\nEND\n$;",
}


def test_apply_file_that_cannot_work_is_refused_before_anything_ran(world: World) -> None:
    """What the scanner refuses is refused with its place and a way out; files before it have not run either."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    for refusal, text in REFUSED_TEXTS.items():
        verdict, line, caret = fail_with(world, text, "002_b.sql").splitlines()
        assert verdict == f"002_b.sql:{refusal}. Nothing has been applied. Fix the file and deploy again."
        number, column = map(int, refusal.split(":")[:2])
        shown = re.sub(r"(\\\w+ ).+", r"\1…", text.splitlines()[number - 1].expandtabs(1))
        shown = re.sub(r"(?<=')\w*$|(?<=\$)$", "…", shown)
        assert (line, caret) == (f"LINE {number}: {shown}", " " * len(f"LINE {number}: {shown[: column - 1]}") + "^")
    assert (world.applied(), world.tables()) == ([], [])


def test_apply_notices_reach_the_log_all_of_them(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What a file says by RAISE NOTICE is in the log, also where psycopg2 would keep only the last 50."""
    world.write("001_a.sql", "DO $$ BEGIN FOR i IN 1..60 LOOP RAISE NOTICE 'größe % of 60', i; END LOOP; END $$;")

    world.deploy()

    assert notices(caplog) == [f"größe {i} of 60" for i in range(1, 61)]


# --- Transactions of the file's own ---------------------------------------------------------------------------------


MODES = {
    "SELECT 1;": "read committed",
    "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT 1; COMMIT;": "serializable",
    "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE; SELECT 1; COMMIT;": "repeatable read",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT 1;": "serializable",
    "BEGIN; SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1; COMMIT;": "repeatable read",
    "SET LOCAL TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT 1;": "serializable",
    "SELECT 1; -- again": "read committed",
}


def test_apply_transaction_modes_of_the_file_are_honoured(world: World) -> None:
    """A file runs in the isolation level that it asks for, and only that file."""
    world.write("001_a.sql", "CREATE TABLE seen (i serial, level text);")
    insert = "INSERT INTO seen (level) VALUES (current_setting('transaction_isolation'))"
    for number, text in enumerate(MODES, 2):
        world.write(f"{number:03d}_b.sql", text.replace("SELECT 1", insert))

    world.deploy()

    assert [level for (level,) in world.sql("SELECT level FROM seen ORDER BY i")] == list(MODES.values())


def test_apply_transaction_ended_by_the_file_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the scanner ever overlooks a COMMIT, the missing savepoint shows it, and no row says *applied*."""
    monkeypatch.setattr(sql_scanner.Statement, "transaction_control", None)

    message = fail_with(world, "CREATE TABLE a (i int);\nCOMMIT;\nBEGIN;\nSELECT 1;")

    assert message == (
        '001_a.sql:1: savepoint "…" does not exist (3B001). A statement of this file has ended the '
        "file's transaction: what ran before it is committed, but the file is not recorded. Check what it has done, "
        "make the file repeatable, and deploy again. Applied in this run: nothing."
    )
    assert (world.applied(), world.tables()) == ([], ["a"])


def test_apply_commit_hidden_in_a_procedure_is_refused_by_postgresql(world: World) -> None:
    """A block that commits by itself runs only where the file says so, also if it is the only statement."""
    world.write("001_a.sql", "CREATE TABLE a (i int);\nDO $$ BEGIN INSERT INTO a VALUES (1); COMMIT; END $$;")

    message = failure(world)

    assert message.splitlines()[0] == f"001_a.sql:2: invalid transaction termination (2D000). {COMMITS_ITSELF}"
    assert (world.applied(), world.tables()) == ([], [])
    assert fail_with(world, "DO $$ BEGIN PERFORM 1; COMMIT; END $$;").splitlines()[0] == (
        f"001_a.sql:1: invalid transaction termination (2D000). {COMMITS_ITSELF}"
    )


# --- What cannot run in a transaction -------------------------------------------------------------------------------

TABLE = "CREATE TABLE t (i int, s text); CREATE INDEX old ON t (i);"
MARKED = "-- no-transaction\nSELECT 1;\n"
ALONE = {
    "VACUUM": ("-- now\nVACUUM t -- done", "SELECT relpages > 0 FROM pg_class WHERE relname = 't'"),
    "CREATE INDEX CONCURRENTLY": (
        "CREATE INDEX CONCURRENTLY new ON t (i)",
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'new'::regclass",
    ),
    "without a name": (
        "CREATE INDEX CONCURRENTLY ON t (s);",
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_s_idx'::regclass",
    ),
    "in its own transaction": (
        "BEGIN; CREATE INDEX CONCURRENTLY own ON t (i); COMMIT;",
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'own'::regclass",
    ),
    "REINDEX CONCURRENTLY": (
        "REINDEX TABLE CONCURRENTLY t;",
        "SELECT relfilenode <> (SELECT i FROM t) AND indisvalid FROM pg_index, pg_class c "
        "WHERE c.oid = indexrelid AND relname = 'old'",
    ),
    "DROP INDEX CONCURRENTLY": ("DROP INDEX CONCURRENTLY older;", "SELECT to_regclass('older') IS NULL"),
}


def test_apply_single_statement_that_cannot_run_in_a_transaction_runs_outside(world: World) -> None:
    """A file of one statement has no atomicity to lose: where PostgreSQL wants no transaction, it gets none."""
    world.write("001_a.sql", TABLE + "CREATE INDEX older ON t (i);")
    world.write("002_b.sql", "INSERT INTO t SELECT relfilenode::bigint::int FROM pg_class WHERE relname = 'old';")
    for number, (text, _) in enumerate(ALONE.values(), 3):
        world.write(f"{number:03d}_c.sql", text)

    report = world.deploy()

    assert names(report) == ["001_a", "002_b", *(f"{number:03d}_c" for number in range(3, len(ALONE) + 3))]
    assert {case: world.sql(done) for case, (_, done) in ALONE.items()} == {case: [(True,)] for case in ALONE}
    assert names(world.deploy()) == []


def test_apply_create_database_runs_outside(world: World) -> None:
    """A file can create a database."""
    name = world.dbname + "_more"
    world.write("001_a.sql", f"CREATE DATABASE {name};")
    try:
        world.deploy()

        assert world.sql("SELECT count(*) FROM pg_database WHERE datname = %s", name) == [(1,)]
    finally:
        drop_database(world.server, name)


def test_apply_single_statement_that_fails_outside_names_its_line(world: World) -> None:
    """What needs no transaction and fails all the same is an error like any other."""
    message = fail_with(world, "-- not for us\nALTER SYSTEM SET work_mem = '5MB';")

    assert message.startswith("001_a.sql:2: ")
    assert "(42501)" in message.splitlines()[0]
    assert world.applied() == []


NEED_THE_MARK = {
    "002_b.sql:2: CREATE INDEX CONCURRENTLY cannot run inside a transaction block (25001). ": (
        "CREATE TABLE b (i int);\nCREATE INDEX CONCURRENTLY new ON t (i);"
    ),
    '002_b.sql:3:23: unsafe use of new value "…" of enum type mood (55P04). ': (
        "CREATE TABLE b (m mood);\nALTER TYPE mood ADD VALUE 'new';\nINSERT INTO b VALUES ('new');"
    ),
}


def test_apply_several_statements_that_need_the_mark_are_told_so(world: World) -> None:
    """A file of several statements is not cut up unasked: nothing of it has happened, and the error says what to do."""
    world.write("001_a.sql", TABLE + "CREATE TYPE mood AS ENUM ('old');")
    world.deploy()
    for beginning, text in NEED_THE_MARK.items():
        assert fail_with(world, text, "002_b.sql").splitlines()[0] == beginning + MARK_IT
    assert (world.applied(), world.tables()) == (["001_a"], ["t"])


def test_apply_marked_block_that_commits_runs(world: World) -> None:
    """With the mark, a back-fill may commit in batches."""
    world.write("001_a.sql", TABLE + "INSERT INTO t SELECT generate_series(1, 10);")
    world.write(
        "002_b.sql",
        "-- no-transaction\nDO $$ BEGIN WHILE EXISTS (SELECT FROM t WHERE s IS NULL) LOOP\n"
        "UPDATE t SET s = i WHERE i IN (SELECT i FROM t WHERE s IS NULL LIMIT 3); COMMIT; END LOOP; END $$;",
    )

    world.deploy()

    assert world.sql("SELECT count(s), count(DISTINCT xmin::text) FROM t") == [(10, 4)]


def progress(world: World) -> list[tuple[Any, ...]]:
    return world.sql("SELECT migration_name, step FROM schema_migrations_progress ORDER BY step")


def test_apply_marked_file_continues_after_the_failure(world: World) -> None:
    """A marked file runs step by step; what is done stays done, once, and the next run goes on with what failed."""
    world.write("001_a.sql", TABLE)
    marked = (
        "-- no-transaction\nINSERT INTO t VALUES (1);\nCREATE INDEX CONCURRENTLY new ON t (i);\n"
        "INSERT INTO t VALUES (2);\nINSERT INTO {} VALUES (3);\nINSERT INTO t VALUES (4);\n"
    )
    world.write("002_b.sql", marked.format("missing"))

    message = failure(world)

    assert message == (
        '002_b.sql:5:13: relation "missing" does not exist (42P01). ' + GOES_ON.replace("nothing", "001_a") + "\n"
        "LINE 5: INSERT INTO missing VALUES (3);\n                    ^"
    )
    assert world.sql("SELECT i FROM t ORDER BY i") == [(1,), (2,)]
    assert (world.applied(), progress(world)) == (["001_a"], [("002_b", 1), ("002_b", 2), ("002_b", 3)])
    world.write("002_b.sql", marked.format("t"))
    assert names(world.deploy()) == ["002_b"]
    assert world.sql("SELECT i FROM t ORDER BY i") == [(1,), (2,), (3,), (4,)]
    assert (world.applied(), progress(world)) == (["001_a", "002_b"], [])


def test_apply_marked_file_makes_one_unit_of_a_transaction(world: World) -> None:
    """In a marked file everything between BEGIN and COMMIT happens together or not at all."""
    world.write("001_a.sql", TABLE)
    marked = "-- no-transaction\nVACUUM t;\nBEGIN;\nINSERT INTO t VALUES (1);\nINSERT INTO {} VALUES (2);\nCOMMIT;\n"
    world.write("002_b.sql", marked.format("missing"))

    message = failure(world)

    assert message.startswith('002_b.sql:5:13: relation "missing" does not exist (42P01). ')
    assert world.sql("SELECT i FROM t") == []
    world.write("002_b.sql", marked.format("t"))
    world.deploy()
    assert world.sql("SELECT i FROM t") == [(1,), (2,)]


def test_apply_marked_transaction_keeps_its_modes(world: World) -> None:
    """The modes on a BEGIN count in a marked file too."""
    world.write("001_a.sql", "CREATE TABLE seen (level text);")
    world.write(
        "002_b.sql",
        "-- no-transaction\nBEGIN ISOLATION LEVEL SERIALIZABLE;\n"
        "INSERT INTO seen VALUES (current_setting('transaction_isolation'));\nCOMMIT;\nVACUUM seen;",
    )

    world.deploy()

    assert world.sql("SELECT level FROM seen") == [("serializable",)]


def test_apply_marked_file_with_commit_and_nothing_open_warns(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A COMMIT with nothing open is a warning, as in psql."""
    world.write("001_a.sql", "-- no-transaction\nCREATE TABLE a (i int);\nCOMMIT;\nVACUUM a;")

    world.deploy()

    assert world.applied() == ["001_a"]
    assert "COMMIT with nothing open line=3" in caplog.text


def test_apply_marked_file_with_a_done_step_edited_is_refused(world: World) -> None:
    """A step that is done has been edited: that would have no effect, so nothing more of the file runs."""
    marked = "-- no-transaction\nCREATE TABLE a (i int);\n-- next\nINSERT INTO {} VALUES (1);\n"
    world.write("001_a.sql", marked.format("missing"))
    failure(world)
    world.write("001_a.sql", marked.format("a").replace("i int", "i bigint"))

    message = failure(world)

    assert message.startswith(
        "001_a.sql:2: this statement has run already, and was edited since; restore it, and put the change after it. "
    )
    assert world.sql("SELECT * FROM a") == []
    world.write("001_a.sql", marked.format("a").replace("-- next", "/* a comment does not count */"))
    assert names(world.deploy()) == ["001_a"]


def test_apply_marked_file_replaced_after_a_failure_is_warned_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What ran in part is not forgotten in silence, where another file has taken its place."""
    world.write("001_a.sql", "-- no-transaction\nSELECT 1;\nSELECT nope;")
    failure(world)
    world.remove("001_a.sql")
    world.write("002_other.sql", "-- no-transaction\nCREATE TABLE other (i int);")

    report = world.deploy()

    assert report["warnings"] == ["001_a has run in part, but its file is gone or has another name" + UNDONE]
    assert 'warning text="001_a has run in part' in caplog.text


def test_apply_file_without_a_statement_is_warned_of(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The file is recorded, as any other; its author has perhaps forgotten to save it."""
    warnings = [f"{name} has no statement, so nothing runs until it is filled in" for name in ("001_a", "3_c")]
    world.write("001_a.sql", "-- to be written\n")
    world.write("002_b.sql", "SELECT 1;")
    world.write("3_c.sql", "")

    tried, report = world.deploy({"action": "dry_run"}), world.deploy()

    assert tried["warnings"] == report["warnings"] == warnings
    assert [caplog.text.count(f' warning text="{warning}"') for warning in warnings] == [2, 2]  # in each run once
    assert names(report) == ["001_a", "002_b", "3_c"]


@pytest.mark.parametrize("empty", ["", "-- to be written\n", "/* " + "x" * (1 << 20) + " */", ";\n"])
@pytest.mark.slow
def test_apply_file_that_is_filled_in_after_it_was_recorded_runs_once(world: World, empty: str) -> None:
    """Nothing of it had run, so its statements are not an edit of what did; before that it can stay as it is."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.write("002_b.sql", empty)
    world.write("c.sql", empty)
    world.write("004_d.sql", "CREATE TABLE d (i int);")
    assert names(world.deploy()) == ["001_a", "002_b", "004_d", "005_c"]
    assert world.deploy()["pending"] == []

    world.write("002_b.sql", f"{empty}\nCREATE TABLE b (i int);")
    world.write("c.sql", "CREATE TABLE c (i int);")
    world.write("006_e.sql", "CREATE TABLE e (i int);")
    filled = "recorded without a statement, and filled in since: 002_b, 005_c"
    assert world.deploy({"action": "status"})["pending"] == ["002_b", "006_e", "007_c"]
    tried = world.deploy({"action": "dry_run"})
    report = world.deploy()

    assert tried["pending"] == names(report) == ["002_b", "006_e", "007_c"]
    assert filled in tried["warnings"]
    assert filled in report["warnings"]
    assert world.applied() == ["001_a", "004_d", "002_b", "006_e", "007_c"]
    assert world.tables() == ["a", "b", "c", "d", "e"]
    assert names(world.deploy()) == []
    world.write("002_b.sql", empty)  # by a deployment that is rolled back
    assert world.deploy()["warnings"] == ["002_b.sql was applied, but has no statement any more, which changes nothing"]
    world.write("002_b.sql", "CREATE TABLE other (i int);")
    assert "002_b.sql: edited after it was applied" in failure(world)


def test_apply_marked_file_keeps_its_settings_across_a_failure(world: World) -> None:
    """A second run of a marked file finds the settings that the first part of the file has made."""
    world.write("001_a.sql", "CREATE SCHEMA s;")
    marked = "-- no-transaction\nSET search_path = s;\nCREATE TABLE a (i int);\nINSERT INTO {} VALUES (1);\n"
    world.write("002_b.sql", marked.format("missing"))
    failure(world)
    world.write("002_b.sql", marked.format("a"))

    world.deploy()

    assert world.sql("SELECT * FROM s.a") == [(1,)]


def test_apply_marked_file_waits_no_longer_for_locks_after_a_concurrent_build(world: World) -> None:
    """Only the concurrent build itself is allowed to wait for as long as it takes; what follows it is not."""
    world.write("001_a.sql", TABLE + "CREATE TABLE seen (t text);")
    world.write(
        "002_b.sql",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY new ON t (i);\n"
        "INSERT INTO seen VALUES (current_setting('lock_timeout'));\n",
    )

    world.deploy()

    assert world.sql("SELECT t FROM seen") == [("4s",)]


def test_apply_invalid_index_of_an_earlier_attempt_is_dropped_and_rebuilt(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What an interrupted concurrent build has left is dropped before the next attempt, which then builds it."""
    world.write("001_a.sql", "CREATE SCHEMA s; CREATE TABLE s.t (i int); INSERT INTO s.t VALUES (1), (1);")
    world.deploy()
    indexes = [("a", "", ""), ("b", "", "IF NOT EXISTS "), ("c", MARKED, ""), ("d", MARKED, "IF NOT EXISTS ")]
    for name, mark, guard in indexes:
        with pytest.raises(psycopg2.errors.UniqueViolation):
            world.sql(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON s.t (i)")
        world.write(f"002_{name}.sql", f"{mark}CREATE UNIQUE INDEX CONCURRENTLY {guard}{name} ON s.t (i);")
    valid = "SELECT relname, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid AND length(relname) = 1"
    assert sorted(world.sql(valid)) == [(name, False) for name, _, _ in indexes]
    world.sql("DELETE FROM s.t WHERE ctid = '(0,1)'")

    world.deploy()

    assert sorted(world.sql(valid)) == [(name, True) for name, _, _ in indexes]
    assert world.applied() == ["001_a", "002_a", "002_b", "002_c", "002_d"]
    assert [caplog.text.count(f"dropping an index that was never finished index={name}") for name, _, _ in indexes] == (
        [1] * 4
    )


def test_apply_concurrent_build_that_fails_leaves_no_index(world: World) -> None:
    """What PostgreSQL leaves of a failed concurrent build is dropped immediately."""
    world.write("001_a.sql", TABLE + "INSERT INTO t VALUES (1), (1);")
    world.deploy()
    said = 'could not create unique index "once" (23505). '
    further = ["LINE {}: CREATE UNIQUE INDEX CONCURRENTLY once ON t (i);", "ON: constraint once, table t"]
    find = "Several rows have the same key; find them with GROUP BY … HAVING count(*) > 1, and correct them first."

    alone = fail_with(world, "CREATE UNIQUE INDEX CONCURRENTLY once ON t (i);", "002_b.sql")
    left = [world.sql("SELECT to_regclass('once')")]
    marked = fail_with(world, MARKED + "CREATE UNIQUE INDEX CONCURRENTLY once ON t (i);", "002_b.sql")
    left.append(world.sql("SELECT to_regclass('once')"))

    fix, goes_on = (text.replace("Fix the file and", f"{find} Then") for text in (FIX, GOES_ON))
    dropped = "The unfinished index was dropped. "
    fix, goes_on = (text.replace(find, f"{dropped}{find}") for text in (fix, goes_on))
    assert alone.splitlines() == [f"002_b.sql:1: {said}{fix}", further[0].format(1), further[1]]
    assert marked.splitlines() == [f"002_b.sql:3: {said}{goes_on}", further[0].format(3), further[1]]
    assert left == [[(None,)]] * 2


# --- Blocked for a moment -------------------------------------------------------------------------------------------


@contextmanager
def blocker(world: World, until: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Another session that holds table a until this is so, at the latest until the block is left."""
    left = threading.Event()

    def hold() -> None:
        while not until() and not left.wait(0.02):
            pass
        cur.execute("COMMIT")

    with world.connection() as conn, conn.cursor() as cur:
        cur.execute("BEGIN; LOCK TABLE a")
        holder = threading.Thread(target=hold)
        holder.start()
        try:
            yield
        finally:
            left.set()
            holder.join()


@pytest.mark.slow
def test_apply_lock_timeout_rolls_back_and_retries(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A file that waits too long for a lock is rolled back and tried again, until the other session is done."""
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()
    world.write("002_b.sql", "CREATE TABLE b (i int);\nALTER TABLE a ADD s text;")

    with blocker(world, until=lambda: "sqlstate=55P03 attempt=2 again_in_s=" in caplog.text):
        report = world.deploy(LOCK_TIMEOUT="300ms")

    assert names(report) == ["002_b"]
    assert "gave way migration=002_b sqlstate=55P03 attempt=1 again_in_s=" in caplog.text
    assert "gave way migration=002_b sqlstate=55P03 attempt=2 again_in_s=" in caplog.text
    assert re.search(r"""blocked_by="pid \d+ rds_admin '' idle in transaction \d s""", caplog.text)


def test_apply_lock_that_is_never_free_fails_with_the_statements_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ten attempts, or at the deadline, the message names the statement that waited and what to do."""
    monkeypatch.setattr(session, "RETRIES_WITHOUT_DEADLINE", 1)
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    world.deploy()
    world.write("002_b.sql", "CREATE TABLE b (i int);\nALTER TABLE a ADD s text;")

    with blocker(world):
        message = failure(world, LOCK_TIMEOUT="300ms")

    assert re.sub(r" \(pid \d+ rds_admin '' idle in transaction \d s\)", "", message) == (
        "002_b.sql:2: canceling statement due to lock timeout (55P03). Rolled back. It conflicted with other sessions "
        "each time. Invoke again when they are done, or end them: SELECT pg_terminate_backend(PID). "
        "Applied in this run: nothing.\nLINE 2: ALTER TABLE a ADD s text;"
    )
    assert (world.applied(), world.tables()) == (["001_a"], ["a"])


def test_apply_serialization_failure_and_deadlock_are_tried_again(world: World) -> None:
    """What failed because of other sessions is tried again, whole: it happens once."""
    world.write("001_a.sql", "CREATE TABLE a (i int); " + "".join(f"CREATE SEQUENCE tries{i};" for i in range(4)))
    for number, (mark, code) in enumerate(itertools.product(["", "-- no-transaction\n"], ["40001", "40P01"])):
        world.write(
            f"00{number + 2}_b.sql",
            f"{mark}INSERT INTO a VALUES ({number});\n"
            f"DO $$ BEGIN IF nextval('tries{number}') = 1 THEN RAISE SQLSTATE '{code}'; END IF; END $$;",
        )

    report = world.deploy()

    assert names(report) == ["001_a", "002_b", "003_b", "004_b", "005_b"]
    assert world.sql("SELECT i FROM a ORDER BY i") == [(0,), (1,), (2,), (3,)]
    assert world.sql("SELECT last_value FROM pg_sequences WHERE sequencename ~ 'tries'") == [(2,)] * 4


def test_apply_marked_file_that_took_on_a_role_is_tried_again(world: World) -> None:
    """A second attempt does not start in the role that the first one took on."""
    world.write("001_a.sql", "CREATE SEQUENCE tries; GRANT ALL ON SEQUENCE tries TO tablecreator;")
    world.write(
        "002_b.sql",
        "-- no-transaction\nSET ROLE tablecreator;\nCREATE TABLE a (i int);\n"
        "DO $$ BEGIN IF nextval('tries') = 1 THEN RAISE SQLSTATE '40001'; END IF; END $$;",
    )

    assert names(world.deploy(CREATE_USERS="true")) == ["001_a", "002_b"]


def test_apply_real_deadlock_is_resolved(world: World) -> None:
    """Two sessions that wait for each other: one is ended by PostgreSQL, and if it is ours, we try again."""
    world.write("001_a.sql", "CREATE TABLE a (i int); CREATE TABLE b (i int);")
    world.deploy()
    world.write("002_b.sql", "LOCK TABLE b;\nLOCK TABLE a;")
    locked = threading.Event()

    def other() -> None:
        with world.connection() as conn, conn.cursor() as cur:
            cur.execute("BEGIN; LOCK TABLE a")
            locked.set()
            cur.execute("SELECT pg_sleep(0.3)")
            try:
                cur.execute("LOCK TABLE b; COMMIT")
            except psycopg2.errors.DeadlockDetected:
                cur.execute("ROLLBACK")

    thread = threading.Thread(target=other)
    thread.start()
    locked.wait(10)

    report = world.deploy(context=Context(60))

    thread.join(20)
    assert names(report) == ["002_b"]
    assert not thread.is_alive()


def test_apply_marked_file_removed_after_a_failure_is_warned_of_with_nothing_to_do(world: World) -> None:
    """A deployment without the file, such as the stack's rollback, says that half of it is still there."""
    world.write("001_a.sql", "SELECT 1;")
    world.write("002_b.sql", "-- no-transaction\nSELECT 1;\nSELECT nope;")
    failure(world)
    world.remove("002_b.sql")

    report = world.deploy()

    assert (report["applied"], world.applied()) == ([], ["001_a"])
    assert report["warnings"] == ["002_b has run in part, but its file is gone or has another name" + UNDONE]

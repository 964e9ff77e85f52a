"""What is shown of a line of SQL and of PostgreSQL's words: names and keywords, but no literal and no secret."""

from __future__ import annotations

import masking
import pytest

SECRET = "S3cr3t"
# Each line, and what is shown of it; ^ is where the place is put, before the word "nope".
LINES = [
    ("SELECT nope FROM t", "SELECT ^nope FROM t"),
    (f"SELECT '{SECRET}', nope", "SELECT '…', ^nope"),
    (f"SELECT E'\\'{SECRET}', nope", "SELECT '…', ^nope"),
    (f"SELECT $x${SECRET}$x$, nope", "SELECT $x$…$x$, ^nope"),
    (f"SELECT nope -- {SECRET}", "SELECT ^nope -- …"),
    (f"SELECT /* {SECRET} */ nope", "SELECT /* … ^nope"),
    (f"-- {SECRET}\nSELECT nope", "SELECT ^nope"),
    (f"SELECT 1; -- {SECRET}\nSELECT nope", "SELECT ^nope"),
    (f"SELECT '{SECRET}'; SELECT nope", "SELECT '…'; SELECT ^nope"),
    (f"SELECT 'a\n{SECRET}', nope", "…, ^nope"),
    (f"SELECT 'it's {SECRET}', nope", "SELECT ^'…"),
    (f"SELECT nope, '{SECRET}", "SELECT ^nope, '…"),
    (f"ALTER ROLE x PASSWORD {SECRET} nope", "^…"),
    (f"SET app.jwt_secret TO {SECRET} nope", "^…"),
    (f"SELECT connect(password => {SECRET}), nope", "^…"),
    (f"SELECT f('postgresql://u:{SECRET}@h/d'), nope", "^…"),
    (f"DO $$ BEGIN PERFORM '{SECRET}'; nope; END $$", "DO $$ BEGIN PERFORM '…'; ^nope; END $$"),
    (f"COPY t FROM stdin;\n{SECRET} nope\n\\.\n", "^ …"),
    (f"SELECT 1;  SELECT nope, '{SECRET}", "SELECT 1;  SELECT ^nope, '…"),
    ('SELECT "a;b", nope', 'SELECT "a;b", ^nope'),
]


@pytest.mark.parametrize(("text", "expected"), LINES)
def test_shown_line_has_names_and_keywords_but_no_literal(text: str, expected: str) -> None:
    """When in doubt, it hides; and the caret is where the place is."""
    line, column = masking.shown_line(text, text.index("nope"))

    assert f"{line[:column]}^{line[column:]}" == expected
    assert SECRET not in line


def test_shown_line_reads_backslashes_as_the_session_does() -> None:
    """Where a backslash escapes a quote, what follows that is still in the literal."""
    text = f"SELECT 'it\\'s {SECRET}', nope"

    assert masking.shown_line(text, text.index("nope"), backslash_escapes=True) == ("SELECT '…', nope", 12)


SETS_SECRET = [
    ("CREATE USER x PASSWORD 'y'", True),
    ("alter group x with\npassword y", True),
    ("CREATE USER MAPPING FOR x SERVER s OPTIONS (a 'b')", True),
    ("CREATE SUBSCRIPTION s CONNECTION 'c' PUBLICATION p", True),
    ("SET app.api_key = x", True),
    ("CREATE ROLE x LOGIN", False),
    ("UPDATE t SET a = 1", False),
    ("SELECT 1; ALTER ROLE x PASSWORD 'y'", False),
]


@pytest.mark.parametrize(("text", "expected"), SETS_SECRET)
def test_statement_that_sets_a_secret_is_known(text: str, expected: bool) -> None:
    """Of the statement at the place, not of others."""
    assert masking.sets_secret(text, 0, backslash_escapes=False) is expected


WORDS = [
    ('relation "orders" already exists', 'relation "orders" already exists'),
    ('relation "ORDERS" already exists', 'relation "ORDERS" already exists'),
    (f'type "{SECRET}" does not exist', 'type "…" does not exist'),
    (f'column "orders.{SECRET}" does not exist', 'column "…" does not exist'),
    ('column "Big One" does not exist', 'column "…" does not exist'),  # several words can be a sentence
    (f"function {SECRET}(integer) does not exist", "function …(integer) does not exist"),
    ("function price(integer) does not exist", "function price(integer) does not exist"),
    (f"column orders.{SECRET} does not exist", "column … does not exist"),
    ("column orders.price does not exist", "column orders.price does not exist"),
    (f'invalid input syntax for type integer: "{SECRET}', 'invalid input syntax for type integer: "…'),
    ('syntax error at or near ","', 'syntax error at or near ","'),
    ('constraint "known" is violated', 'constraint "known" is violated'),
]


@pytest.mark.parametrize(("said", "expected"), WORDS)
def test_words_of_postgresql_name_only_what_the_file_names(said: str, expected: str) -> None:
    """What PostgreSQL quotes and the file does not say outside of a literal can be the value of a row."""
    text = f"CREATE TABLE orders (price int, \"Big One\" int DEFAULT '{SECRET}'); ALTER ROLE x PASSWORD {SECRET};"
    words = masking.Words(text, False, ["known", None])

    assert words.mask(said) == expected

"""What is shown of a line of SQL and of PostgreSQL's words: names and keywords, but no literal and no secret."""

from __future__ import annotations

import random
import re

import masking
import pytest
import sql_scanner

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


USUAL = (
    *("SELECT", "AS", "DO", "LANGUAGE", "plpgsql", "nope", "n", "1", ",", "(", ")", "-", "::", "\n"),
    *("'a'", "'it''s'", "N'a'", '"q"', '"a""b"', "-- it's\n"),
)
UNUSUAL = (
    *(
        "e",
        "U&",
        "/",
        "\u00e9",
        "'a\\'",
        "E'\\''",
        "$$ f('x'); $$",
        "AS $$ f('x'); $$",
        "DO $$ f('x'); $$",
        "$x$ 'y $x$",
        "/* ' */",
    ),
    *("'", '"', "$", "$1", "\\", ";"),
)


@pytest.mark.slow
def test_shown_line_of_a_long_statement_is_the_same_as_if_each_token_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random SQL, most of it with a quote too many somewhere, before each place in it."""
    rng = random.Random(5)
    quickly = masking._ordinary_to
    skipped = 0
    for _ in range(50):
        share = rng.choice((0, 0.001, 0.02))
        parts = [rng.choice(UNUSUAL if rng.random() < share else USUAL) for _ in range(rng.randrange(1000, 4000))]
        text = rng.choice((" ", "\n")).join(parts)
        bodies = [found.start() for found in re.finditer(r"f\('x'\)", text)]
        for place in (*rng.sample(range(len(text)), 4), *bodies[:4]):
            start = next(masking.regions(text))[0]
            skipped += quickly(text, start, place, False) > start
            monkeypatch.setattr(masking, "_ordinary_to", quickly)
            shown = masking.shown_line(text, place)
            monkeypatch.setattr(masking, "_ordinary_to", lambda text, start, *_: start)
            assert shown == masking.shown_line(text, place)
    assert skipped > 25


def test_line_and_names_of_a_long_file_are_shown_as_of_a_short_one() -> None:
    """What is read of it begins with a message of those that it is sent in."""
    row = f"INSERT INTO t (note) VALUES ('{SECRET}');\n"
    text = row * 40_000 + f"SELECT nope, '{SECRET}' FROM t;\n" + row * 40_000
    script = sql_scanner.read_script(text)
    place = text.index("nope")

    start = script.start_near(place)
    line, column = masking.shown_line(text, place, known_start=start)
    words = masking.Words(text, False, (), place, start)

    assert 0 < place - start < 300_000
    assert (line, column) == ("SELECT nope, '…' FROM t;", 7)
    assert words.mask('column "nope" does not exist') == 'column "nope" does not exist'
    assert words.mask(f'column "{SECRET}" does not exist') == 'column "…" does not exist'


def test_long_file_that_changes_how_strings_are_read_is_read_from_its_beginning() -> None:
    text = "SET standard_conforming_strings = off;\n" + "SELECT 'it\\'s';\n" * 100_000
    script = sql_scanner.read_script(text)

    assert len(script.pieces) > 3
    assert script.start_near(len(text)) == 0


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


RAISED = [
    ("price 5 of 7 is wrong", "price … of … is wrong"),
    ("price 5 of 7 is wrong too", "…"),
    ("the price 5 of 7 is wrong", "…"),
    ("no price", "no price"),
    ("no price at all", "…"),
    ("a price", "…"),
    ("5 is no price", "… is no price"),
    ("so is 5", "so is …"),
    ("it is 5", "…"),
]


@pytest.mark.parametrize(("said", "expected"), RAISED)
def test_words_of_a_raise_are_those_that_its_author_wrote(said: str, expected: str) -> None:
    """The values in them are not shown; and nothing is, where the words are not found."""
    source = """BEGIN
        RAISE EXCEPTION 'price % of % is wrong', a, b;
        RAISE EXCEPTION 'no price';
        RAISE EXCEPTION '% is no price', a;
        RAISE EXCEPTION 'so is %', a;
    END"""

    assert masking.as_raised(said, [source]) == expected

"""Nothing secret in what is said: no literal of a file, no value of a row, no password, whatever PostgreSQL quotes."""

from __future__ import annotations

from typing import Any

import pytest
from harness.attackers import close_schema
from harness.database import SCHEMA
from harness.logins import as_superuser
from harness.traces import chain
from harness.world import ADMIN, World
from initializer import InitializerError, MigrationError

SECRET = "S3cr3tHunter2"
DYNAMIC = "DO $$ DECLARE s text; BEGIN SELECT v INTO s FROM vault; "
MASKED = {
    # what PostgreSQL says
    "password as a name": f'ALTER ROLE CURRENT_USER PASSWORD "{SECRET}";',
    "password without quotes": f"ALTER ROLE CURRENT_USER PASSWORD {SECRET};",
    "password with U&": f"ALTER ROLE CURRENT_USER PASSWORD U&'\\+zz{SECRET}';",
    "password as a body": f"CREATE ROLE tmp_x PASSWORD $${SECRET}$$ NOPE;",
    "password in two parts": f"CREATE ROLE tmp_x PASSWORD 'x'\n'{SECRET}' NOPE;",
    "password in dynamic SQL": f"DO $$ BEGIN EXECUTE 'ALTER ROLE CURRENT_USER PASSWORD {SECRET}'; END $$;",
    "password in formatted SQL": f"DO $$ BEGIN EXECUTE format('ALTER ROLE x PASSWORD %s', '{SECRET}'); END $$;",
    "dynamic SQL of a row": DYNAMIC + "EXECUTE s; END $$;",
    "dynamic SQL with a row": DYNAMIC + "EXECUTE 'SELECT '||s; END $$;",
    "dynamic SQL that calls a row": DYNAMIC + "EXECUTE 'SELECT '||s||'()'; END $$;",
    "dynamic SQL with a column": DYNAMIC + "EXECUTE 'SELECT x.'||s||' FROM vault x'; END $$;",
    "row as a table": "SELECT v::regclass FROM vault;",
    "row as a type": "SELECT v::regtype FROM vault;",
    "row as a function": "SELECT v::regproc FROM vault;",
    "row as a role": "SELECT v::regrole FROM vault;",
    "row as a setting": "SELECT current_setting(v) FROM vault;",
    "row as a sequence": "SELECT nextval(v) FROM vault;",
    "row as an object": "SELECT pg_get_serial_sequence(v, 'x') FROM vault;",
    "row as a number": "SELECT v::int FROM vault;",
    "row as a zone": "SELECT now() AT TIME ZONE v FROM vault;",
    "row as JSON": "SELECT v::json FROM vault;",
    "row in a table that is changed": "ALTER TABLE vault ALTER v TYPE int USING v::int;",
    "row in a constraint": "ALTER TABLE vault ADD CONSTRAINT c CHECK (v::int > 0);",
    "literal as a table": f"SELECT '{SECRET}'::regclass;",
    "literal as a number": f"SELECT '{SECRET}'::int;",
    "literal as a setting": f"SELECT current_setting('{SECRET}');",
    "literal as an enum": f"CREATE TYPE mood AS ENUM ('a'); SELECT '{SECRET}'::mood;",
    "literal in a function": f"CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT '{SECRET}'::int $$;",
    "literal that is too long": f"CREATE TABLE short (v varchar(3)); INSERT INTO short VALUES ('{SECRET}');",
    # the line that is shown
    "address of a subscription": f"CREATE SUBSCRIPTION s CONNECTION 'postgresql://u:{SECRET}@[::1]/d' PUBLICATION p;",
    "address for dblink": f"SELECT dblink_connect('host=127.0.0.1 port=1 passwd={SECRET}');",
    "address as a name": f'SELECT dblink_connect("postgresql://u:{SECRET}@127.0.0.1/d");',
    "user mapping": f"CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere OPTIONS (user 'u', password '{SECRET}');",
    "key of a cipher": f"SELECT pgp_sym_encrypt(nope, '{SECRET}');",
    "key of a cipher as a name": f'SELECT pgp_sym_encrypt(v, "{SECRET}") FROM vault;',
    "setting": f"SET app.jwt_secret = '{SECRET}' NOPE;",
    "setting without quotes": f"SET app.jwt_secret TO {SECRET} NOPE;",
    "far below a password": "CREATE ROLE tmp_x\nPASSWORD\n" + "-- nothing\n" * 60 + f'"{SECRET}"\nNOPE;',
    "next to an error": f"CREATE TABLE more (v text DEFAULT '{SECRET}', w nope);",
    "escaped": rf"CREATE TABLE more (v text DEFAULT E'\'{SECRET}', w nope);",
    "dollars": f"CREATE TABLE more (v text DEFAULT $x${SECRET}$x$, w nope);",
    "in a line comment": f"CREATE TABLE more (w nope); -- it was {SECRET}",
    "in a comment": f"CREATE TABLE more (w /* {SECRET} /* ' */ */ nope);",
    "quotes that do not fit": f"INSERT INTO vault VALUES ('it's', '{SECRET}', nope);",
    "two statements in a line": f"INSERT INTO vault VALUES ('{SECRET}'); SELECT nope;",
    "value as a name": f'INSERT INTO vault VALUES ("{SECRET}");',
    "value without quotes": f"INSERT INTO vault VALUES ({SECRET});",
    "name that is cut off": f'ALTER ROLE CURRENT_USER PASSWORD "{SECRET}{"x" * 80}";',
    # what our scanner says
    "quote that is never closed": f"SELECT 1;\nINSERT INTO vault VALUES ('{SECRET});",
    "body that is never closed": f"SELECT 1;\nDO $$ BEGIN PERFORM '{SECRET}'; END $;",
    "address for psql": f"\\connect postgresql://u:{SECRET}@h/d",
    "variable of psql": f"\\set password {SECRET}\nSELECT :password;",
    "with a ROLLBACK": f"CREATE TABLE more (v text DEFAULT '{SECRET}'); ROLLBACK; SELECT 1; SELECT 2;",
    # in steps
    "step": f"-- no-transaction\nSELECT 1;\nSELECT '{SECRET}'::int;",
    "step outside": f'-- no-transaction\nSELECT 1;\nVACUUM "{SECRET}", nope;',
    "step as a row": "-- no-transaction\nSELECT 1;\nSELECT v::regclass FROM vault;",
}
# A value where a name should be cannot be told from a name, which is shown.
NAMES = "value as a name", "value without quotes", "key of a cipher as a name", "address as a name", "step outside"


def everything(error: BaseException) -> str:
    """What the error and those in its chain say, with their attributes."""
    said = []
    for link in chain(error):
        said += [str(link), repr(link.args), repr(vars(link)), str(getattr(link, "pgerror", ""))]
        diag = getattr(link, "diag", None)
        said += [str(getattr(diag, name, "")) for name in ("message_primary", "message_detail", "context")]
    return "\n".join(said)


@pytest.fixture
def vault(world: World) -> World:
    """A row that holds the secret."""
    close_schema(world)
    world.environ["CREATE_USERS"] = "false"
    world.write("001_vault.sql", f"CREATE TABLE vault (v text); INSERT INTO vault VALUES ('{SECRET}');")
    world.deploy()
    return world


@pytest.mark.parametrize("event", [None, {"action": "dry_run"}], ids=["migrate", "dry run"])
@pytest.mark.parametrize("case", [case for case in MASKED if case not in NAMES])
def test_secrets_in_a_file_or_a_row_are_not_said(
    vault: World, case: str, event: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by the message, nor by an error in its chain, nor in the log."""
    vault.write("002_wrong.sql", MASKED[case])
    error: Any = None
    try:
        vault.deploy(event)
    except InitializerError as exc:
        error = exc
    assert error is not None or event  # what a dry run does not try does not fail
    assert error is None or "002_wrong.sql" in str(error)
    assert error is None or SECRET.lower() not in everything(error).lower()
    assert SECRET.lower() not in caplog.text.lower()


OF_OURS = {  # what the trigger does, and what may be said of it
    "a row as a number": (f"PERFORM v::int FROM {SCHEMA}.vault;", 'type integer: "…"'),
    "a row as a table": (f"PERFORM v::regclass FROM {SCHEMA}.vault;", 'relation "…" does not exist'),
    "a row in SQL": (f"EXECUTE (SELECT 'SELECT ' || v FROM {SCHEMA}.vault);", 'column "…" does not exist'),
    "a name of its own": ("INSERT INTO nowhere VALUES (1);", 'relation "nowhere" does not exist'),
}


@pytest.mark.parametrize("trigger", ["event trigger", "trigger"])
@pytest.mark.parametrize("case", OF_OURS)
def test_secrets_in_an_error_of_our_own_statements_are_not_said(
    vault: World, case: str, trigger: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The words of a trigger that we set off are in no message, in no error of its chain, and not in the log."""
    body, said = OF_OURS[case]
    of_events = trigger == "event trigger"
    returns, end = ("event_trigger", "END") if of_events else ("trigger", "RETURN NULL; END")
    make = f"CREATE FUNCTION set_off() RETURNS {returns} LANGUAGE plpgsql AS $$ BEGIN {body} {end} $$"
    as_superuser(vault, make)
    as_superuser(vault, f"ALTER FUNCTION set_off() OWNER TO {ADMIN}")
    if of_events:
        as_superuser(vault, "CREATE EVENT TRIGGER t ON ddl_command_start EXECUTE FUNCTION set_off()")
        vault.environ.pop("CREATE_USERS")
    else:
        as_superuser(vault, "CREATE TRIGGER t AFTER INSERT ON schema_migrations EXECUTE FUNCTION set_off()")
        vault.write("002_more.sql", "CREATE TABLE more (id int);")

    with pytest.raises(InitializerError) as caught:
        vault.deploy()

    assert (said if of_events else said.replace("nowhere", "…")) in str(caught.value)  # no name in the file
    assert SECRET.lower() not in everything(caught.value).lower()
    assert SECRET.lower() not in caplog.text.lower()


def test_secrets_masked_leave_names_and_places(vault: World) -> None:
    """What tells the mistake is still there: the names that the file has, the line, the caret, fields of their own."""
    shown = {
        "INSERT INTO vault (w) VALUES ('x');": ['column "w" of relation "vault" does not exist', "VALUES ('…')"],
        "SELECT 1;\nALTER TABLE vault ADD PRIMARY KEY (nope);": ['column "nope"', "ADD PRIMARY KEY (nope)"],
        "CREATE TABLE vault (v text DEFAULT 'x');": ['relation "vault" already exists', "DEFAULT '…')"],
        "SELECT 'x' || v FROM vault WHERE nope = 'y';": [
            "SELECT '…' || v FROM vault WHERE nope = '…'",
            f"\n{41 * ' '}^",
        ],
        "CREATE TABLE a (i int UNIQUE); INSERT INTO a VALUES (1), (1);": ["a_i_key"],
        "CREATE TABLE b (i int NOT NULL); INSERT INTO b VALUES (NULL);": ['column "i"'],
        "SELECT ; FROM vault;": ['at or near "FROM"'],
    }
    for text, parts in shown.items():
        vault.write("002_wrong.sql", text)
        with pytest.raises(MigrationError) as caught:
            vault.deploy()
        missing = [part for part in parts if part not in str(caught.value)]
        assert missing == [], str(caught.value)


def test_secrets_masked_statement_that_sets_a_password_gives_sqlstate_and_place(vault: World) -> None:
    """The message shows nothing else of the statement."""
    vault.write("002_wrong.sql", f'SELECT 1;\nALTER ROLE nobody_such PASSWORD "{SECRET}";')

    with pytest.raises(MigrationError) as caught:
        vault.deploy()

    assert str(caught.value).startswith("002_wrong.sql:2:")
    assert "(42601)" in str(caught.value)
    assert "near" not in str(caught.value)


def test_secrets_in_notices_about_names_that_are_cut_off_are_not_logged(
    vault: World, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL says the whole name, which may be a password in the wrong quotes."""
    vault.write("002_long.sql", f'CREATE TABLE "{SECRET}{"x" * 80}" (id int);')

    vault.deploy()

    assert "will be truncated" in caplog.text
    assert SECRET not in caplog.text


CONTROLS = "\x1b[2J", "\x07", "\x9b31m", "\u202e", "\u2028", "\x7f", "\r"


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_reach_neither_log_nor_error(
    vault: World, control: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither from the text of a file, nor from a notice, nor from a name in the database."""
    vault.write("002_said.sql", f"DO $$ BEGIN RAISE NOTICE 'a{control}b'; END $$;")
    vault.write("003_wrong.sql", f'CREATE TABLE more (id "no{control}pe");')

    with pytest.raises(MigrationError) as caught:
        vault.deploy()

    assert control not in str(caught.value)
    assert control not in "".join(record.getMessage() for record in caplog.records)
    assert control not in "".join(str(vars(record).get("text", "")) for record in caplog.records)

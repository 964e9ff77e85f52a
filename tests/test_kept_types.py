"""A function in PL/pgSQL keeps what the names in its DECLARE meant when the session first called it.

So a file that follows needs a new session, but only there: the table says where PostgreSQL itself keeps an old meaning.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import kept_types
import psycopg2
import pytest
from harness.database import SCHEMA
from harness.world import World, rows

STALE, FRESH = True, False


class Cell(NamedTuple):
    """What is there, a function that uses it, a later change of it, and whether the function has not noticed."""

    setup: str
    declare: str
    body: str
    change: str
    is_stale: bool
    parameters: str = ""
    result: str = "text"
    call: str = "SELECT f()::text"

    @property
    def function(self) -> str:
        declare = f"DECLARE {self.declare}" if self.declare else ""
        return (
            f"CREATE FUNCTION f({self.parameters}) RETURNS {self.result} LANGUAGE plpgsql AS "
            f"$f$ {declare} BEGIN {self.body} END $f$"
        )


TYPE_OF_V = "v := '1'; RETURN pg_typeof(v);"
ROW_OF_T = "SELECT * INTO r FROM t; RETURN row_to_json(r);"
NEW_T = "DROP TABLE t; CREATE TABLE t (a text, b int); INSERT INTO t VALUES ('x', 1)"
T, E, D = "CREATE TABLE t (a int)", "CREATE TYPE e AS ENUM ('a')", "CREATE DOMAIN d AS int"
C = "CREATE TYPE c AS (a varchar(3))"
ADD_CHECK = "ALTER DOMAIN d ADD CHECK (VALUE < 10)"
OTHER_E = "DROP TYPE e; CREATE TYPE e AS ENUM ('b')"
A_TO_TEXT = "ALTER TABLE t ALTER a TYPE text"
# {0} is the cell's own schema.
OTHER_PATH = "SELECT set_config('search_path', '{0}_other, {0}', false)"

CELLS = {
    "a type of PostgreSQL's own": Cell(T, "v int := 1;", "RETURN v;", A_TO_TEXT, FRESH),
    "its value from a column that changed": Cell(
        f"{T}; INSERT INTO t VALUES (1)", "v text;", "SELECT a INTO v FROM t; RETURN v;",
        "ALTER TABLE t ALTER a TYPE numeric(4, 2)", FRESH,
    ),
    "%TYPE, a longer column": Cell(
        "CREATE TABLE t (a varchar(3))", "v t.a%TYPE;", "v := 'abcdef'; RETURN v;",
        "ALTER TABLE t ALTER a TYPE varchar(10)", STALE,
    ),
    "%TYPE, another type": Cell(T, "v t.a%TYPE;", TYPE_OF_V, A_TO_TEXT, STALE),
    "%TYPE, a new column": Cell(
        "CREATE TABLE t (a int, b int)", "v t.a%TYPE;", TYPE_OF_V,
        "ALTER TABLE t DROP a; ALTER TABLE t ADD a text", STALE,
    ),
    "%TYPE, a new table": Cell(T, "v t.a%TYPE;", TYPE_OF_V, NEW_T, STALE),
    "%TYPE of a parameter": Cell(
        T, "", "RETURN pg_typeof(p);", A_TO_TEXT, FRESH, parameters="p t.a%TYPE", call="SELECT f('1')"
    ),
    "%ROWTYPE, a new column": Cell(
        T, "r t%ROWTYPE;", ROW_OF_T, "ALTER TABLE t ADD b int; INSERT INTO t VALUES (1)", FRESH
    ),
    "%ROWTYPE, another type": Cell(T, "r t%ROWTYPE;", "r.a := '5'; RETURN pg_typeof(r.a);", A_TO_TEXT, FRESH),
    "%ROWTYPE, a new table": Cell(T, "r t%ROWTYPE;", ROW_OF_T, NEW_T, FRESH),
    "%ROWTYPE, another path": Cell(
        f"{T}; INSERT INTO t VALUES (1); CREATE TABLE {{0}}_other.t (b int); INSERT INTO {{0}}_other.t VALUES (2)",
        "r t%ROWTYPE;", ROW_OF_T, OTHER_PATH, STALE,
    ),
    "an array of rows, a new table": Cell(
        f"{T}; INSERT INTO t VALUES (1)", "v t[];", "v := ARRAY(SELECT t FROM t); RETURN v::text;", NEW_T, STALE
    ),
    "a record, a new table": Cell(T, "r record;", ROW_OF_T, NEW_T, FRESH),
    "a record, another path": Cell(
        f"{T}; INSERT INTO t VALUES (1); CREATE TABLE {{0}}_other.t (b int); INSERT INTO {{0}}_other.t VALUES (2)",
        "r record;", ROW_OF_T, OTHER_PATH, FRESH,
    ),
    "a record in a loop": Cell(
        f"{T}; INSERT INTO t VALUES (1)", "r record;",
        "FOR r IN SELECT * FROM t LOOP RETURN pg_typeof(r.a); END LOOP; RETURN '';", A_TO_TEXT, FRESH,
    ),
    "a cursor": Cell(
        f"{T}; INSERT INTO t VALUES (1)", "c CURSOR FOR SELECT * FROM t; r record;",
        "OPEN c; FETCH c INTO r; CLOSE c; RETURN row_to_json(r);", A_TO_TEXT, FRESH,
    ),
    "a composite type, an attribute": Cell(
        C, "r c;", "r.a := 'abcdef'; RETURN r::text;", "ALTER TYPE c ALTER ATTRIBUTE a TYPE varchar(10)", FRESH
    ),
    "a composite type made again": Cell(
        C, "r c;", "r.a := '7'; RETURN pg_typeof(r.a);", "DROP TYPE c; CREATE TYPE c AS (a text)", FRESH
    ),
    "a domain, a check": Cell(D, "v d;", "v := 20; RETURN v;", ADD_CHECK, FRESH),
    "a domain made again": Cell(
        D, "v d;", "v := '7'; RETURN pg_typeof(v);", "DROP DOMAIN d; CREATE DOMAIN d AS bigint", STALE
    ),
    "a domain as parameter": Cell(D, "", "p := 20; RETURN p;", ADD_CHECK, FRESH, "p d", call="SELECT f(2)"),
    "a domain as result": Cell(D, "", "RETURN 20;", ADD_CHECK, FRESH, result="d"),
    "an enum, a value": Cell(E, "v e;", "v := 'b'; RETURN v;", "ALTER TYPE e ADD VALUE 'b'", FRESH),
    "an enum made again": Cell(E, "v e;", "v := 'b'; RETURN v;", OTHER_E, STALE),
    "an enum renamed, and another in its place": Cell(
        E, "v e;", "v := 'b'; RETURN v;", "ALTER TYPE e RENAME TO old; CREATE TYPE e AS ENUM ('b')", STALE
    ),
    "an array of an enum": Cell(E, "v e[];", "v := '{{b}}'; RETURN v;", OTHER_E, STALE),
    "an enum, another path": Cell(
        f"{E}; CREATE TYPE {{0}}_other.e AS ENUM ('b')", "v e;", "v := 'b'; RETURN v;", OTHER_PATH, STALE
    ),
    "an enum for a parameter of any type": Cell(
        E, "", "RETURN p;", OTHER_E, FRESH, "p anyelement", call="SELECT f('b'::e)"
    ),
    "an enum as result": Cell(E, "", "RETURN 'b';", "ALTER TYPE e ADD VALUE 'b'", FRESH, result="e"),
    "a range made again": Cell(
        "CREATE TYPE g AS RANGE (subtype = float8)", "v g;", "v := '[1,2]'; RETURN v;",
        "DROP TYPE g; CREATE TYPE g AS RANGE (subtype = int4)", STALE,
    ),
    "a collation made again": Cell(
        "CREATE COLLATION n (locale = 'C')", "v text COLLATE n := 'a';", "RETURN v < 'B';",
        "DROP COLLATION n; CREATE COLLATION n (provider = icu, locale = 'en')", STALE,
    ),
    "a function that fits better": Cell(
        "CREATE FUNCTION g(numeric) RETURNS text LANGUAGE sql AS $$ SELECT 'numeric' $$", "v int := 1;", "RETURN g(v);",
        "CREATE FUNCTION g(int) RETURNS text LANGUAGE sql AS $$ SELECT 'int' $$", FRESH,
    ),
}  # fmt: skip
# Where the session is new: where it is needed, and what takes PostgreSQL's parser to be told apart from that.
RENEWED = {
    *(name for name, cell in CELLS.items() if cell.is_stale),
    *("%ROWTYPE, a new column", "%ROWTYPE, another type", "%ROWTYPE, a new table", "a cursor"),
    *("a composite type, an attribute", "a composite type made again", "a domain, a check", "an enum, a value"),
}


def in_schema(text: str, number: int) -> str:
    """The text with the cell's own schema as the path; a second schema is there for another path."""
    return text.replace("{0}", f"cell{number}").replace("{{", "{").replace("}}", "}")


def own_path(number: int) -> str:
    return f"SET search_path = cell{number};\n"


def path_at_last(cell: Cell, number: int) -> str:
    return in_schema(cell.change, number) + ";\n" if cell.change == OTHER_PATH else own_path(number)


def schemas(number: int) -> str:
    return f"CREATE SCHEMA cell{number}; CREATE SCHEMA cell{number}_other;\n"


def outcome(conn: Any, statement: str) -> Any:
    try:
        return rows(conn, statement)[0][0]
    except psycopg2.Error as exc:
        return exc.pgcode


@pytest.mark.parametrize("is_called", [True, False], ids=["called before", "only created before"])
def test_where_postgresql_keeps_what_a_name_meant(world: World, is_called: bool) -> None:
    """Without its plans, which are discarded after each file, an old session differs from a new one just there."""
    stale = set()
    for number, (name, cell) in enumerate(CELLS.items()):
        with world.superuser() as old, world.superuser() as new:
            rows(old, schemas(number) + own_path(number) + in_schema(cell.setup, number))
            rows(old, in_schema(cell.function, number))
            if is_called:
                outcome(old, cell.call)
            rows(old, in_schema(cell.change, number))
            rows(old, "DISCARD PLANS")
            rows(new, path_at_last(cell, number))
            if outcome(old, cell.call) != outcome(new, cell.call):
                stale.add(name)

    assert stale == {name for name, cell in CELLS.items() if cell.is_stale}


@pytest.mark.parametrize("keeps_its_session", [True, False])
def test_file_after_a_function_gets_a_new_session_only_where_that_is_needed(
    world: World, keeps_its_session: bool
) -> None:
    """Whatever functions there are, they answer as in a new session each."""
    files = ["CREATE TABLE said (name text, what text); CREATE TABLE sessions (pid int);\n", "", "", ""]
    note = f"INSERT INTO {SCHEMA}.sessions SELECT pg_backend_pid();\n"
    cells = {
        number: (name, cell)
        for number, (name, cell) in enumerate(CELLS.items())
        if keeps_its_session == (name not in RENEWED)
    }
    for number, (name, cell) in cells.items():
        path = own_path(number)
        files[0] += schemas(number)
        files[1] += f"{path}{in_schema(cell.setup, number)};\n{in_schema(cell.function, number)};\n"
        if cell.change != OTHER_PATH:
            files[2] += f"{path}{cell.change};\n"
        files[3] += (
            f"{path_at_last(cell, number)}DO $do$ BEGIN INSERT INTO {SCHEMA}.said SELECT $n${name}$n$, ({cell.call}); "
            f"EXCEPTION WHEN OTHERS THEN INSERT INTO {SCHEMA}.said VALUES ($n${name}$n$, SQLSTATE); END $do$;\n"
        )
    for number, text in enumerate(files):
        world.write(f"{number}_a.sql", text + note)

    world.deploy()

    said = dict(world.sql("SELECT * FROM said"))
    for number, (name, cell) in cells.items():
        with world.connection() as conn:
            rows(conn, path_at_last(cell, number))
            assert (name, said[name]) == (name, outcome(conn, cell.call))
    pids = {pid for (pid,) in world.sql("SELECT pid FROM sessions")}
    assert (len(pids) == 1) == keeps_its_session


def test_each_function_that_can_keep_a_meaning_is_recognised_alone(world: World) -> None:
    """None hides among others; what a comment or a string says does not hide one either."""
    hidden = {
        "in a second block": "DECLARE v int; BEGIN DECLARE w t.a%TYPE; BEGIN RETURN 1; END; END",
        "after a comment": "/* DECLARE v int; BEGIN */ DECLARE w t.a%TYPE; BEGIN RETURN 1; END",
        "after a word of its own": "DECLARE v text := 'begin'; w t.a%TYPE; BEGIN RETURN 1; END",
        "after a name like BEGIN": "DECLARE begin$x int; w t.a%TYPE; BEGIN RETURN 1; END",
        "after a semicolon in a string": "DECLARE v text := ';'; w t.a%TYPE; BEGIN RETURN 1; END",
        "a name that begins as one of PostgreSQL's own": "DECLARE v region; BEGIN RETURN 1; END",
        "long": f"DECLARE v int; BEGIN RETURN 1; END -- {'x' * 1_000_000}",
    }
    found = []
    with world.connection() as conn:
        rows(conn, f"{T}; {E}; {D}; {C}; CREATE TYPE region AS ENUM ('a'); CREATE TYPE g AS RANGE (subtype = float8)")
        for name, cell in CELLS.items():
            rows(conn, "BEGIN; CREATE COLLATION IF NOT EXISTS n (locale = 'C')")
            rows(conn, in_schema(cell.function, 0).replace("FUNCTION f(", "FUNCTION tested("))
            found += [name] if keeps_types(conn) else []
            rows(conn, "ROLLBACK")
        assert found == [name for name in CELLS if name in RENEWED]
        for name, body in hidden.items():
            rows(conn, f"BEGIN; CREATE FUNCTION tested() RETURNS int LANGUAGE plpgsql AS $f$ {body} $f$")
            assert (name, keeps_types(conn)) == (name, True)
            rows(conn, "ROLLBACK")


def keeps_types(conn: Any) -> bool:
    ((answer,),) = rows(conn, "SELECT " + kept_types.KEEP_TYPES_SQL.format(since=kept_types.BEFORE_ALL))
    return bool(answer)


def test_functions_that_were_harmless_at_the_last_look_are_not_read_again(world: World) -> None:
    """A harmful one is found wherever it comes from: this file, or an earlier run."""
    harmful = (
        f"CREATE FUNCTION g() RETURNS int LANGUAGE plpgsql AS $$ DECLARE v {SCHEMA}.t.a%TYPE; BEGIN RETURN 1; END $$"
    )
    note = "INSERT INTO sessions (pid) SELECT pg_backend_pid();\n"
    world.write("1_a.sql", "CREATE TABLE t (a int); CREATE TABLE sessions (i serial, pid int);")
    for name, text in {"2_b": "DO $$ BEGIN END $$;", "3_c": harmful, "4_d": ""}.items():
        world.write(f"{name}.sql", note + text)
    world.deploy()
    for name in ("5_e", "6_f"):
        world.write(f"{name}.sql", f"{note}DO $$ BEGIN END $$;")
    world.deploy()

    ((pids,),) = world.sql("SELECT array_agg(pid ORDER BY i) FROM sessions")
    assert pids[0] == pids[1] != pids[2]
    assert pids[3] != pids[4]

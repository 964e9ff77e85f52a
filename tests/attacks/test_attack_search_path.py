"""What others put into the search path: none of our statements meets it, and no file runs that could."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import initializer
import pytest
from harness.attackers import (
    OTHER_ADMIN,
    STRANGER,
    caught,
    close_schema,
    lay_trap,
    make_stranger,
    open_schema,
    refused,
    stranger,
    trap,
)
from harness.database import SCHEMA
from harness.logins import as_superuser
from harness.world import ADMIN, LOCK_KEY, Context, World, rows
from initializer import InitializerError

# --- Ours -----------------------------------------------------------------------------------------------------------

# With the exact signature of PostgreSQL's own (for a path that has pg_catalog last), of everything that our code names.
OPERATORS = """
    SELECT oprname, nullif(oprleft, 0)::regtype::text, oprright::regtype::text, oprresult::regtype::text
    FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprright <> 0 AND oprresult <> 0
      AND oprname IN ('=', '<>', '<', '>', '>=', '<=', '||', '+', '-', '*', '/', '~', '~*', '!~', '<<', '~~')
      AND NOT EXISTS (SELECT FROM pg_type WHERE oid IN (oprleft, oprright, oprresult) AND typtype = 'p')"""
FUNCTIONS = """
    SELECT proname, pg_get_function_identity_arguments(p.oid), prorettype::regtype::text, proretset
    FROM pg_proc p WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND proname = ANY (%s)
      AND NOT EXISTS (SELECT FROM pg_type WHERE oid = ANY (prorettype || proargtypes::oid[]) AND typtype = 'p')"""
# These fit better than PostgreSQL's own where an argument has to be converted (for the usual path).
KINDS = ("oid", "regclass", "regnamespace", "name", "text", "character varying", "integer", "bigint")
TYPES = ("oid", "text", "regclass", "regnamespace", "bigint", "int", "name", "bool")


def lay_traps(world: World) -> None:
    """Traps everywhere in the schema; they belong to the admin, who is allowed to make them."""
    lay_trap(world)
    as_superuser(world, f"ALTER SCHEMA traps OWNER TO {ADMIN}")
    source = " ".join(path.read_text() for path in Path(initializer.__file__).parent.glob("*.py"))
    names = sorted(set(re.findall(r"\b([a-z_]+)\(", source)))
    with world.superuser() as conn:
        rows(conn, f"SET ROLE {ADMIN}; SET search_path = pg_catalog")
        functions, operators = rows(conn, FUNCTIONS, names), rows(conn, OPERATORS)
        assert len(functions) > 80
        wanted = {(name, left, right): result for name, left, right, result in operators}
        for name in ("=", "<>"):
            wanted.update({(name, left, right): "boolean" for left in KINDS for right in KINDS})
        for number, ((name, left, right), result) in enumerate(wanted.items()):
            sides = [side for side in (left, right) if side]
            rows(conn, trap(f"traps.op{number}", ", ".join(sides), result, "NULL"))
            leftarg = f"LEFTARG = {left}, " if left else ""
            create = f"CREATE OPERATOR {SCHEMA}.{name} ({leftarg}RIGHTARG = {right}, FUNCTION = traps.op{number})"
            rows(conn, create)
        for name, arguments, result, is_set in functions:
            if not is_set:
                rows(conn, trap(f'{SCHEMA}."{name}"', arguments, result, "NULL"))
        for name in ("now", "format", "coalesce_", "lower"):
            rows(conn, trap(f"{SCHEMA}.{name}", "VARIADIC varchar[]", "text", "NULL"))
        rows(conn, trap("traps.checked", "text", "bool", "true"))
        lay_casts(conn)
        for name in TYPES:
            rows(conn, f'CREATE DOMAIN {SCHEMA}."{name}" AS pg_catalog.text CHECK (traps.checked(VALUE))')


def lay_casts(conn: Any) -> None:
    """To and from a type of others, implicitly, with operators and functions that need no further cast then."""
    rows(conn, f"CREATE TYPE {SCHEMA}.hostile AS (v pg_catalog.int4)")
    made = f"ROW(1)::{SCHEMA}.hostile"
    for number, kind in enumerate(KINDS):
        rows(conn, trap(f"traps.into{number}", kind, f"{SCHEMA}.hostile", made))
        rows(conn, trap(f"traps.from{number}", f"{SCHEMA}.hostile", kind, "NULL"))
        rows(conn, f"CREATE CAST ({kind} AS {SCHEMA}.hostile) WITH FUNCTION traps.into{number}({kind}) AS IMPLICIT")
        rows(
            conn,
            f"CREATE CAST ({SCHEMA}.hostile AS {kind}) WITH FUNCTION traps.from{number}({SCHEMA}.hostile) AS IMPLICIT",
        )
    rows(conn, trap("traps.same", f"{SCHEMA}.hostile, {SCHEMA}.hostile", "boolean", "NULL"))
    for name in ("=", "<>", "||", "~"):
        sides = f"LEFTARG = {SCHEMA}.hostile, RIGHTARG = {SCHEMA}.hostile"
        rows(conn, f"CREATE OPERATOR {SCHEMA}.{name} ({sides}, FUNCTION = traps.same)")
    for name in ("to_regclass", "to_regnamespace", "quote_ident", "current_setting", "octet_length", "lower"):
        rows(conn, trap(f"{SCHEMA}.{name}", f"{SCHEMA}.hostile", "text", "NULL"))


@pytest.fixture(params=["", f"{SCHEMA}, pg_catalog"], ids=["usual path", "schema first"])
def trapped(world: World, own_path: None, request: pytest.FixtureRequest) -> World:
    """A world whose schema is full of traps; in the second one scripts see them before PostgreSQL's own."""
    close_schema(world)
    as_superuser(world, f'GRANT CREATE ON DATABASE "{world.dbname}" TO {ADMIN}')
    lay_traps(world)
    if request.param:
        as_superuser(world, f'ALTER DATABASE "{world.dbname}" SET search_path = {request.param}')
    return world


def run(world: World, event: Any = None, context: Any = None, fails: str = "", **environ: Any) -> None:
    """A run that ends as expected, and calls no trap."""
    if fails:
        with pytest.raises(InitializerError, match=fails):
            world.deploy(event, context, **environ)
    else:
        world.deploy(event, context, **environ)
    assert not caught(world), event


STATUS, DRY_RUN, ROTATE = {"action": "status"}, {"action": "dry_run"}, {"action": "rotate"}


def test_search_path_of_ours_sees_no_trap_in_ordinary_runs(trapped: World) -> None:
    """Files, functions with variables (a new session each), users, their rotation and repair, status and dry run."""
    world = trapped
    world.write("001_things.sql", "CREATE TABLE things (id serial PRIMARY KEY, note pg_catalog.varchar);")
    function = "CREATE FUNCTION f{0}() RETURNS void LANGUAGE plpgsql AS $$ DECLARE i pg_catalog.int4; BEGIN END $$;"
    for number in (2, 3):
        world.write(f"00{number}_function.sql", function.format(number))
    run(world, DRY_RUN)
    run(world)
    run(world)
    run(world, STATUS)
    world.write("004_more.sql", "CREATE TABLE more (id pg_catalog.int4);")
    run(world, context=Context(60))
    run(world, ROTATE)
    run(world, ROTATE)
    as_superuser(world, "ALTER ROLE app_rw NOLOGIN; ALTER ROLE app_tc NOLOGIN")
    run(world)
    world.write("005_wrong.sql", "CREATE TABLE things (id pg_catalog.int4);\nCREATE TABLE other (id pg_catalog.int4);")
    run(world, DRY_RUN, fails="already exists")
    run(world, fails="already exists")
    world.remove("005_wrong.sql")
    world.remove("004_more.sql")
    world.write("005_more.sql", "CREATE TABLE more (id pg_catalog.int4);")
    run(world)
    world.write("001_things.sql", "CREATE TABLE things (id serial);")
    run(world, fails="edited after it was applied")


def test_search_path_of_ours_sees_no_trap_where_statements_run_alone(trapped: World) -> None:
    """Marks, what was there before, invalid indexes, half a DETACH: all is looked up without the script's path."""
    world = trapped
    world.write(
        "001_tables.sql",
        "CREATE TABLE things (id pg_catalog.int4, note pg_catalog.varchar);"
        "CREATE TABLE parts (id pg_catalog.int4) PARTITION BY LIST (id);"
        "CREATE TABLE part PARTITION OF parts DEFAULT;"
        "CREATE TYPE mood AS ENUM ('a');"
        "INSERT INTO things VALUES (1, 'x'), (1, 'x');",
    )
    detach = "ALTER TABLE parts DETACH PARTITION part CONCURRENTLY;" if world.server.version >= 140000 else ""
    world.write(
        "002_steps.sql",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY things_note ON things (note);\n"
        "CREATE TABLE between (id pg_catalog.int4);\nREINDEX INDEX CONCURRENTLY things_note;\n"
        "REINDEX TABLE CONCURRENTLY things;\nREINDEX TABLE CONCURRENTLY parts;\nALTER TYPE mood ADD VALUE 'b';\n"
        "BEGIN; CREATE TABLE one (id pg_catalog.int4); CREATE TABLE two (id pg_catalog.int4); COMMIT;\n"
        "VACUUM things;\nDROP INDEX CONCURRENTLY things_note;\n",
    )
    world.write("003_alone.sql", "CREATE INDEX CONCURRENTLY ON things (note);")
    world.write("004_unique.sql", "-- no-transaction\nSELECT;\nCREATE UNIQUE INDEX CONCURRENTLY once ON things (id);")
    run(world, DRY_RUN)
    run(world, fails="could not create unique index")
    run(world, STATUS)
    run(world, fails="could not create unique index")
    as_superuser(world, "TRUNCATE things")
    run(world)
    if detach:
        as_superuser(world, "DROP TABLE part")
        world.write("005_part.sql", "CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);")
        world.write("006_detach.sql", f"-- no-transaction\nSELECT;\n{detach}")
        run(world)


def test_search_path_of_ours_sees_no_trap_while_it_waits(trapped: World) -> None:
    """The watcher's questions meet no trap while a run waits for the lock or for a table."""
    world = trapped
    world.write("001_things.sql", "CREATE TABLE things (id pg_catalog.int4);")
    run(world)
    world.write("002_more.sql", "ALTER TABLE things ADD note pg_catalog.varchar;")
    with world.superuser() as conn:
        rows(conn, "SET search_path = pg_catalog; SELECT pg_advisory_lock(%s)", LOCK_KEY)
        run(world, context=Context(4), fails="holds the lock")
        rows(conn, f"SELECT pg_advisory_unlock_all(); BEGIN; LOCK TABLE {SCHEMA}.things")
        timer = threading.Timer(1.5, lambda: rows(conn, "ROLLBACK"))
        timer.start()
        run(world, context=Context(60), LOCK_TIMEOUT="500ms")
        timer.join()


def test_search_path_of_ours_sees_no_trap_when_a_database_is_adopted(trapped: World) -> None:
    """The same holds when the columns of the predecessor's table are completed."""
    world = trapped
    as_superuser(world, f"SET ROLE {ADMIN}; CREATE TABLE {SCHEMA}.things (id pg_catalog.int4)")
    world.write("001_things.sql", "CREATE TABLE things (id pg_catalog.int4);")
    run(world)
    as_superuser(world, f"ALTER TABLE {SCHEMA}.schema_migrations DROP checksum, DROP file_sha256, DROP adopted")
    run(world)


# --- A migration's words --------------------------------------------------------------------------------------------

LOWER = f"{SCHEMA}.lower(character varying)"
CALL = "CREATE TABLE things (note varchar);\nINSERT INTO things VALUES ('X');\nUPDATE things SET note = lower(note);"


@pytest.fixture
def deployed(deployed: World) -> World:
    deployed.write("001_things.sql", CALL)
    return deployed


@pytest.mark.parametrize("event", [None, DRY_RUN], ids=["migrate", "dry run"])
def test_search_path_with_a_function_of_the_table_creator_that_hides_postgresqls_is_refused(
    deployed: World, event: Any
) -> None:
    """`lower(note)` in a file would call it as the admin: the message names it, its owner, and what removes it."""
    with deployed.login("creator") as conn:
        rows(conn, trap(f"{SCHEMA}.lower", "varchar", "varchar", "'y'"))

    message = refused(deployed, event)

    assert not caught(deployed)
    assert f"{LOWER} belongs to app_tc" in message
    assert deployed.tables() == []
    (remedy,) = re.findall(r"DROP ROUTINE [^;]*;", message)
    assert remedy == f"DROP ROUTINE {LOWER};"
    with deployed.login("creator") as conn:
        rows(conn, remedy)
    assert len(deployed.deploy()["applied"]) == 1


def test_search_path_with_an_operator_of_the_table_creator_that_hides_postgresqls_is_refused(deployed: World) -> None:
    """An operator is a function that is called without a name."""
    with deployed.login("creator") as conn:
        rows(conn, trap(f"{SCHEMA}.same", "varchar, varchar", "boolean", "true"))
        rows(conn, f"CREATE OPERATOR {SCHEMA}.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = {SCHEMA}.same)")

    message = refused(deployed)

    (remedy,) = re.findall(r"DROP OPERATOR [^;]*;", message)
    assert "belongs to app_tc" in message
    with deployed.login("creator") as conn:
        rows(conn, remedy)
    assert len(deployed.deploy()["applied"]) == 1


def test_search_path_with_many_such_functions_is_refused_in_few_words(deployed: World) -> None:
    """The message stays below its limit, and its remedies can be followed until none is left."""
    with deployed.login("creator") as conn:
        for number in range(12):
            rows(conn, trap(f"{SCHEMA}.lower", ", ".join(["varchar"] * (number + 1)), "varchar", "'y'"))
        for _ in range(13):
            try:
                deployed.deploy()
                break
            except InitializerError as error:
                remedies = re.findall(r"DROP ROUTINE [^;]*;", str(error))
                assert remedies
                rows(conn, "".join(remedies))
    assert deployed.applied() == ["001_things"]


@pytest.mark.parametrize("who", [STRANGER, OTHER_ADMIN])
def test_search_path_with_a_function_of_any_other_login_is_refused(world: World, who: str) -> None:
    """Where the schema is open, also before the first run, and whatever the login may elsewhere."""
    open_schema(world)
    lay_trap(world)
    make_stranger(world, who, "CREATEROLE CREATEDB" if who == OTHER_ADMIN else "")
    with stranger(world, who) as conn:
        rows(conn, trap(f"{SCHEMA}.lower", "varchar", "varchar", "'y'"))
    world.write("001_things.sql", CALL)

    message = refused(world)

    assert not caught(world)
    assert f"belongs to {who}" in message
    assert world.tables() == []


def test_search_path_with_functions_of_the_admin_superusers_and_extensions_is_fine(deployed: World) -> None:
    """Those who rule the database anyway, or what they have installed, do not stop a run."""
    body = "RETURNS varchar LANGUAGE sql AS $$ SELECT 'z'::varchar $$"
    as_superuser(deployed, f"CREATE FUNCTION {SCHEMA}.upper(varchar) {body}; CREATE EXTENSION citext SCHEMA {SCHEMA}")
    deployed.sql(f"CREATE FUNCTION {SCHEMA}.lower(varchar) {body}")
    as_superuser(deployed, "CREATE ROLE tmp_owner; GRANT tmp_owner TO rds_admin")
    deployed.sql(f"CREATE FUNCTION {SCHEMA}.initcap(varchar) {body}")
    as_superuser(deployed, f"ALTER FUNCTION {SCHEMA}.initcap(varchar) OWNER TO tmp_owner")

    assert len(deployed.deploy()["applied"]) == 1
    assert deployed.sql("SELECT note FROM things") == [("z",)]


def test_search_path_with_functions_of_the_table_creator_that_hide_nothing_is_fine(deployed: World) -> None:
    """A table creator is allowed to make functions; in a schema outside every search path they can have any name."""
    as_superuser(deployed, "CREATE SCHEMA aside; GRANT ALL ON SCHEMA aside TO app_tc")
    with deployed.login("creator") as conn:
        rows(conn, trap(f"{SCHEMA}.own_lower", "varchar", "varchar", "'y'"))
        rows(conn, trap("aside.lower", "varchar", "varchar", "'y'"))

    assert len(deployed.deploy()["applied"]) == 1


def test_search_path_with_a_hiding_function_does_not_stop_a_run_without_files(deployed: World) -> None:
    """Where no file is pending, none can call it, so the run succeeds."""
    deployed.deploy()
    with deployed.login("creator") as conn:
        rows(conn, trap(f"{SCHEMA}.lower", "varchar", "varchar", "'y'"))

    assert deployed.deploy()["applied"] == []
    assert deployed.deploy(STATUS)["status"] == "ok"
    assert not caught(deployed)


@pytest.mark.public  # with another schema, a file's path is not what ALTER DATABASE says
def test_search_path_of_the_admin_is_the_one_that_is_looked_at(deployed: World) -> None:
    """A schema that ALTER DATABASE … SET search_path names is looked through, too."""
    as_superuser(
        deployed,
        f'CREATE SCHEMA "Its Own"; GRANT ALL ON SCHEMA "Its Own" TO app_tc; GRANT ALL ON SCHEMA "Its Own" TO {ADMIN};'
        f'ALTER DATABASE "{deployed.dbname}" SET search_path = "$user", public, "Its Own"',
    )
    with deployed.login("creator") as conn:
        rows(conn, trap('"Its Own".lower', "varchar", "varchar", "'y'"))

    message = refused(deployed)

    assert 'DROP ROUTINE "Its Own".lower(character varying);' in message
    assert not caught(deployed)


# What the table creator makes, and where it is before PostgreSQL's or the admin's own of that name.
HIDDEN = {
    "type": ("CREATE TYPE public.money AS (v int)", "DROP TYPE public.money;"),
    "domain": ('CREATE DOMAIN public."text" AS varchar', "DROP TYPE public.text;"),
    "table with the name of a type": ('CREATE TABLE public."date" (v int)', "DROP TABLE public.date;"),
    "view with the name of a catalog": ("CREATE VIEW public.pg_class AS SELECT 1", "DROP VIEW public.pg_class;"),
    "table of the admin": ("CREATE TABLE public.known (id int)", "DROP TABLE public.known;"),
    "sequence of the admin": ("CREATE SEQUENCE public.known", "DROP SEQUENCE public.known;"),
    "type of the admin": ("CREATE TYPE public.known AS (v int)", "DROP TYPE public.known;"),
}


@pytest.mark.public
@pytest.mark.parametrize("what", HIDDEN)
@pytest.mark.parametrize("is_hidden", [True, False], ids=["first", "last"])
def test_search_path_in_which_a_type_or_table_of_the_table_creator_comes_first_is_refused(
    deployed: World, what: str, is_hidden: bool
) -> None:
    """Of types and tables the first one in the path counts; after PostgreSQL's or the admin's own they hide nothing."""
    as_superuser(deployed, f"CREATE SCHEMA own AUTHORIZATION {ADMIN}; CREATE TABLE own.known (id int)")
    as_superuser(deployed, f"ALTER TABLE own.known OWNER TO {ADMIN}")
    path = "public, own, pg_catalog" if is_hidden else "own, public"
    as_superuser(deployed, f'ALTER DATABASE "{deployed.dbname}" SET search_path = {path}')
    statement, remedy = HIDDEN[what]
    with deployed.login("creator") as conn:
        rows(conn, f"SET search_path = pg_catalog; {statement}")

    if is_hidden:
        message = refused(deployed)
        assert "belongs to app_tc" in message
        assert re.findall(r"DROP [^;]*;", message) == [remedy]
        with deployed.login("creator") as conn:
            rows(conn, f"SET search_path = pg_catalog; {remedy}")

    assert len(deployed.deploy()["applied"]) == 1


def test_event_trigger_that_calls_what_belongs_to_the_table_creator_is_refused(deployed: World) -> None:
    """Every file that makes something would call it. The message has the statement that removes it."""
    with deployed.login("creator") as conn:
        rows(conn, trap(f"{SCHEMA}.watched", "", "event_trigger", "").replace("RETURN ;", "RETURN;"))
    as_superuser(deployed, f"CREATE EVENT TRIGGER watches ON ddl_command_start EXECUTE FUNCTION {SCHEMA}.watched()")
    deployed.write("001_things.sql", "CREATE TABLE things (id int)")
    try:
        message = refused(deployed)
        assert "event trigger watches calls a function of app_tc, a limited user" in message
        assert not caught(deployed)
        as_superuser(deployed, message.partition("a superuser: ")[2].partition(";")[0])
        assert len(deployed.deploy()["applied"]) == 1
    finally:
        as_superuser(deployed, "DROP EVENT TRIGGER IF EXISTS watches")

"""What a failed file's message says besides the verdict: the line of SQL, and one sentence on what to write instead."""

from __future__ import annotations

import re
from typing import Any

import failures
import pytest
from harness.database import drop_database
from harness.world import ADMIN, Context, World, rows
from initializer import MigrationError

DRY = {"action": "dry_run"}
TABLES = (
    "CREATE TABLE t (i int PRIMARY KEY, n text, CONSTRAINT small CHECK (i < 100));"
    "INSERT INTO t VALUES (1, NULL), (2, 'x'), (3, 'x'); CREATE VIEW v AS SELECT i, n FROM t;"
    "CREATE TYPE mood AS ENUM ('old'); CREATE TABLE m (v mood); CREATE TABLE c (i int); INSERT INTO c VALUES (200);"
    'CREATE TABLE "People" ("firstName" text); INSERT INTO "People" VALUES (NULL);'
    "CREATE ROLE tmp_other; GRANT SELECT ON c TO tmp_other;"
    "CREATE TABLE keys (i int PRIMARY KEY);"
    "CREATE TABLE k (i int REFERENCES keys DEFERRABLE INITIALLY DEFERRED); INSERT INTO keys VALUES (1);"
    "CREATE FUNCTION vacuum_it() RETURNS int LANGUAGE plpgsql AS 'BEGIN EXECUTE $$VACUUM$$; RETURN 1; END';"
)


@pytest.fixture
def there(world: World) -> World:
    """A world with some tables and a role, without users; it has its tracking table, so that nothing is adopted."""
    world.environ.update(CREATE_USERS="false", LOCK_TIMEOUT="300ms")
    world.deploy()
    world.sql(TABLES)
    return world


def fail_with(world: World, text: str, event: Any = None, context: Any = None, **environ: str) -> str:
    """The message with which this file fails."""
    world.write("002_b.sql", text)
    with pytest.raises(MigrationError) as caught:
        world.deploy(event, context, **environ)
    message = str(caught.value)
    assert len(message) < 1500
    return message


def whole(place: str, said: str, instead: str, *lines: str) -> str:
    """A message as it should be; `instead` is the sentence for this mistake."""
    then = f"{instead}. Then deploy again" if instead else "Fix the file and deploy again"
    verdict = f"002_b.sql:{place}: {said}. Rolled back. {then}. Applied in this run: nothing."
    return "\n".join([verdict, *lines])


# --- Each mistake, provoked -----------------------------------------------------------------------------------------

MADE_BEFORE = (
    "It was made by hand, by another file, further up in this one, or by a run whose row is gone; leave it out, "
    "or write IF NOT EXISTS or OR "
    "REPLACE where that exists"
)
NO_ROLE = (
    "Add CREATE ROLE above this statement, or name another role (db_setup creates readwrite and tablecreator, "
    "with ROLE_PREFIX before them, unless CREATE_USERS is false)"
)
NOT_SUPERUSER = (
    "The admin of RDS is not a superuser; leave it out, or use what RDS has instead (parameter group, rds_superuser)"
)
# By the entry's advice: the file, where it fails, what PostgreSQL says, the advice in this case, further lines.
READS_INDEX = "SET enable_seqscan = off; SELECT i FROM damaged WHERE i = 1500;"
NESTED = (
    "Something is nested too deeply: a function that calls itself without end, or an expression of thousands of terms; "
    "write it as rows, or in parts"
)
PROVOKED: dict[str, tuple[str, str, str, str, list[str]]] = {
    "PostgreSQL has no IF NOT EXISTS here; leave it out, since the file runs only once": (
        "SELECT 1;\nCREATE DOMAIN IF NOT EXISTS d AS int;",
        "2:18",
        'syntax error at or near "NOT" (42601)',
        "PostgreSQL has no IF NOT EXISTS here; leave it out, since the file runs only once",
        [
            "LINE 2: CREATE DOMAIN IF NOT EXISTS d AS int;",
            "                         ^",
        ],
    ),
    "Write SET NOT NULL": (
        "ALTER TABLE t ALTER COLUMN n NOT NULL;",
        "1:30",
        'syntax error at or near "NOT" (42601)',
        "Write SET NOT NULL",
        ["LINE 1: ALTER TABLE t ALTER COLUMN n NOT NULL;", "                                     ^"],
    ),
    "A quote inside a string is written twice ('')": (
        "DELETE FROM t WHERE n IN ('it's', 'that's');",
        "1:31",
        'syntax error at or near "…" (42601)',
        "A quote inside a string is written twice ('')",
        ["LINE 1: DELETE FROM t WHERE n IN ('…;", "                                  ^"],
    ),
    "Write IF EXISTS": (
        "DROP ROLE nobody_such;",
        "1",
        'role "nobody_such" does not exist (42704)',
        "Write IF EXISTS",
        ["LINE 1: DROP ROLE nobody_such;"],
    ),
    "Add CREATE EXTENSION IF NOT EXISTS btree_{0}; above this statement, if this server has the extension": (
        "CREATE INDEX ON t USING gin (i);",
        "1",
        'data type integer has no default operator class for access method "gin" (42704)',
        "Add CREATE EXTENSION IF NOT EXISTS btree_gin; above this statement, if this server has the extension",
        [
            "LINE 1: CREATE INDEX ON t USING gin (i);",
            "HINT: You must specify an operator class for the index or define a default operator class for the data "
            "type.",
        ],
    ),
    "Write it as a statement of its own, outside of any block or function": (
        "SELECT 1;\nDO $$ BEGIN EXECUTE 'VACUUM'; END $$;",
        "2",
        "VACUUM cannot run inside a transaction block (25001)",
        "Write it as a statement of its own, outside of any block or function",
        ["IN: the DO block, line 2 of the file", "LINE 2: DO $$ BEGIN EXECUTE '…'; END $$;"],
    ),
    "Put it first in the file": (
        "SELECT 1;\nSET TRANSACTION ISOLATION LEVEL SERIALIZABLE;",
        "2",
        "SET TRANSACTION ISOLATION LEVEL must be called before any query (25001)",
        "Put it first in the file",
        ["LINE 2: SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;"],
    ),
    "Add the column with a DEFAULT; or without NOT NULL, fill it, and SET NOT NULL then": (
        "ALTER TABLE t ADD q int NOT NULL;",
        "1",
        'column "q" of relation "t" contains null values (23502)',
        "Add the column with a DEFAULT; or without NOT NULL, fill it, and SET NOT NULL then",
        ["LINE 1: ALTER TABLE t ADD q int NOT NULL;", "ON: table t, column q"],
    ),
    "First REASSIGN OWNED BY this role TO another, and DROP OWNED BY this role": (
        "DROP ROLE tmp_other;",
        "1",
        'role "tmp_other" cannot be dropped because some objects depend on it (2BP01)',
        "First REASSIGN OWNED BY this role TO another, and DROP OWNED BY this role",
        ["LINE 1: DROP ROLE tmp_other;", "DETAIL: privileges for table …"],
    ),
    "Write ALTER TABLE {1} DROP CONSTRAINT IF EXISTS {0}; above it": (
        "ALTER TABLE t\n  ADD CONSTRAINT small CHECK (i < 9);",
        "1",
        'constraint "small" for relation "t" already exists (42710)',
        "Write ALTER TABLE t DROP CONSTRAINT IF EXISTS small; above it",
        ["LINE 1: ALTER TABLE t"],
    ),
    MADE_BEFORE: (
        "SELECT 1;\nCREATE TABLE t (i int);",
        "2",
        'relation "t" already exists (42P07)',
        MADE_BEFORE,
        ["LINE 2: CREATE TABLE t (i int);"],
    ),
    NO_ROLE: (
        "GRANT SELECT ON t TO nobody_such;",
        "1",
        'role "nobody_such" does not exist (42704)',
        NO_ROLE,
        ["LINE 1: GRANT SELECT ON t TO nobody_such;"],
    ),
    NOT_SUPERUSER: (
        "SET log_statement = 'all';",
        "1",
        'permission denied to set parameter "log_statement" (42501)',
        NOT_SUPERUSER,
        ["LINE 1: SET log_statement = '…';"],
    ),
    "As its owner, ALTER … OWNER TO the admin, or GRANT the owning role to the admin": (
        "ALTER TABLE pg_class ADD i int;",
        "1",
        "must be owner of table pg_class (42501)",
        "As its owner, ALTER … OWNER TO the admin, or GRANT the owning role to the admin",
        ["LINE 1: ALTER TABLE pg_class ADD i int;"],
    ),
    "The admin lacks that right; as the owner GRANT it, or make the admin the owner": (
        "SELECT 1;\nSELECT * FROM pg_authid;",
        "2",
        "permission denied for table pg_authid (42501)",
        "The admin lacks that right; as the owner GRANT it, or make the admin the owner",
        ["LINE 2: SELECT * FROM pg_authid;"],
    ),
    "Put ALTER TYPE … ADD VALUE into a file of its own before this one": (
        "DO $$ BEGIN\n  ALTER TYPE mood ADD VALUE 'new';\n  INSERT INTO m VALUES ('new');\nEND $$;",
        "1",
        'unsafe use of new value "…" of enum type mood (55P04)',
        "Put ALTER TYPE … ADD VALUE into a file of its own before this one",
        [
            "IN: the DO block, line 3 of the file",
            "LINE 3:   INSERT INTO m VALUES ('…');",
            "HINT: New enum values must be committed before they can be used.",
        ],
    ),
    'First give these rows a value, with UPDATE "{1}" SET "{0}" = … WHERE "{0}" IS NULL': (
        "ALTER TABLE t ALTER n SET NOT NULL;",
        "1",
        'column "n" of relation "t" contains null values (23502)',
        'First give these rows a value, with UPDATE "t" SET "n" = … WHERE "n" IS NULL',
        ["LINE 1: ALTER TABLE t ALTER n SET NOT NULL;", "ON: table t, column n"],
    ),
    "Several rows have the same key; find them with GROUP BY … HAVING count(*) > 1, and correct them first": (
        "CREATE UNIQUE INDEX one ON t (n);",
        "1",
        'could not create unique index "one" (23505)',
        "Several rows have the same key; find them with GROUP BY … HAVING count(*) > 1, and correct them first",
        ["LINE 1: CREATE UNIQUE INDEX one ON t (n);", "ON: constraint one, table t"],
    ),
    "There are rows that violate it; correct them first, or add the constraint NOT VALID and VALIDATE it later": (
        "ALTER TABLE c ADD CONSTRAINT to_t FOREIGN KEY (i) REFERENCES t;",
        "1",
        'insert or update on table "c" violates foreign key constraint "to_t" (23503)',
        "There are rows that violate it; correct them first, or add the constraint NOT VALID and VALIDATE it later",
        ["LINE 1: ALTER TABLE c ADD CONSTRAINT to_t FOREIGN KEY (i) REFERENCES t;", "ON: constraint to_t, table c"],
    ),
    "First DROP what depends on it, and CREATE that again afterwards, in the same file": (
        "DROP TABLE t;",
        "1",
        "cannot drop table t because other objects depend on it (2BP01)",
        "First DROP what depends on it, and CREATE that again afterwards, in the same file",
        [
            "LINE 1: DROP TABLE t;",
            "DETAIL: view v depends on table t",
            "HINT: Use DROP ... CASCADE to drop the dependent objects too.",
        ],
    ),
    "This server does not know that option; leave it out, or dump with the pg_dump of this server's own version": (
        "ALTER TABLE t SET (fillfactor = 90, of_later = 1);",
        "1",
        'unrecognized parameter "of_later" (22023)',
        "This server does not know that option; leave it out, or dump with the pg_dump of this server's own version",
        ["LINE 1: ALTER TABLE t SET (fillfactor = 90, of_later = 1);"],
    ),
    "Leave OWNER TO out (pg_dump --no-owner does), or first make sure that role {0} exists and GRANT it to the admin": (
        "ALTER TABLE t OWNER TO nobody_such;",
        "1",
        'role "nobody_such" does not exist (42704)',
        "Leave OWNER TO out (pg_dump --no-owner does), or first make sure that role nobody_such exists and GRANT it to "
        "the admin",
        ["LINE 1: ALTER TABLE t OWNER TO nobody_such;"],
    ),
    "Say after the type how to convert it, such as USING {0}::{1}": (
        "ALTER TABLE t ALTER COLUMN n TYPE int[];",
        "1",
        'column "n" cannot be cast automatically to type integer[] (42804)',
        "Say after the type how to convert it, such as USING n::integer[]",
        ["LINE 1: ALTER TABLE t ALTER COLUMN n TYPE int[];", 'HINT: You might need to specify "…".'],
    ),
    "Only a superuser can disable the triggers of foreign keys; write DISABLE TRIGGER USER, or dump without "
    "--disable-triggers": (
        "SELECT 1;\nALTER TABLE k DISABLE TRIGGER ALL;",
        "2",
        'permission denied: "…" is a system trigger (42501)',
        "Only a superuser can disable the triggers of foreign keys; write DISABLE TRIGGER USER, or dump without "
        "--disable-triggers",
        ["LINE 2: ALTER TABLE k DISABLE TRIGGER ALL;"],
    ),
    "Leave it out: extension {0} belongs to another role, on RDS to its own superuser": (
        "COMMENT ON EXTENSION plpgsql IS 'as pg_dump writes it';",
        "1",
        "must be owner of extension plpgsql (42501)",
        "Leave it out: extension plpgsql belongs to another role, on RDS to its own superuser",
        ["LINE 1: COMMENT ON EXTENSION plpgsql IS '…';"],
    ),
    "The file's own statement_timeout was too short; raise it, or leave it out": (
        "SET statement_timeout = '50ms';\nSELECT pg_sleep(60);",
        "2",
        "canceling statement due to statement timeout (57014)",
        "The file's own statement_timeout was too short; raise it, or leave it out",
        ["LINE 2: SELECT pg_sleep(60);"],
    ),
    "Write SET CONSTRAINTS ALL IMMEDIATE; above this statement": (
        "INSERT INTO k VALUES (1);\nALTER TABLE k ADD n int;",
        "2",
        'cannot ALTER TABLE "k" because it has pending trigger events (55006)',
        "Write SET CONSTRAINTS ALL IMMEDIATE; above this statement",
        ["LINE 2: ALTER TABLE k ADD n int;"],
    ),
    "The database's encoding {0} does not have that character; write another one, or migrate to a database with "
    "encoding UTF8": (
        "SELECT convert_to('5 €', 'LATIN1');",
        "1",
        'character with byte sequence 0xe2 0x82 0xac in encoding "UTF8" has no equivalent in encoding "LATIN1" (22P05)',
        "The database's encoding LATIN1 does not have that character; write another one, or migrate to a database with "
        "encoding UTF8",
        [],
    ),
    "The search path names no schema that exists here; write the schema before the name, or SET search_path above "
    "this statement": (
        "SET search_path = '';\nCREATE TABLE x (i int);",
        "2:14",
        "no schema has been selected to create in (3F000)",
        "The search path names no schema that exists here; write the schema before the name, or SET search_path above "
        "this statement",
        ["LINE 2: CREATE TABLE x (i int);", "                     ^"],
    ),
    failures.DISK_FULL: (
        "SELECT 1;\nSELECT fill_disk();",
        "2",
        "could not write to COPY file: No space left on device (53100)",
        failures.DISK_FULL,
        ["LINE 2: SELECT fill_disk();", 'IN: function "fill_disk", its statement 1'],
    ),
    failures.LOCKS_FULL: (
        "SELECT count(pg_advisory_xact_lock(i)) FROM generate_series(1, 1000000) i;",
        "1",
        "out of shared memory (53200)",
        failures.LOCKS_FULL,
        [
            "LINE 1: SELECT count(pg_advisory_xact_lock(i)) FROM generate_series(1, 1000000) i;",
            "HINT: You might need to increase max_locks_per_transaction.",
        ],
    ),
    failures.LIMIT_REACHED: (
        "SELECT 1;\nSELECT i FROM generate_series(1, 100000) i ORDER BY -i;",
        "2",
        "temporary file size exceeds temp_file_limit (1024kB) (53400)",
        failures.LIMIT_REACHED,
        ["LINE 2: SELECT i FROM generate_series(1, 100000) i ORDER BY -i;"],
    ),
    "These bytes are no text in {0}; write the character itself, or use bytea": (
        "SELECT 1;\nSELECT E'\\xff';",
        "2",
        'invalid byte sequence for encoding "UTF8": 0xff (22021)',
        "These bytes are no text in UTF8; write the character itself, or use bytea",
        [],
    ),
    f"{failures.DAMAGE}. SELECT pg_filenode_relation(0, {{0}}) names it: REINDEX it if it is an index, else restore a "
    "backup": (
        f"SELECT 1;\n{READS_INDEX}",
        "2",
        "invalid page in block 3 of relation base/N/N (XX001)",
        f"{failures.DAMAGE}. SELECT pg_filenode_relation(0, N) names it: REINDEX it if it is an index, else restore a "
        "backup",
        [f"LINE 2: {READS_INDEX}"],
    ),
    f'{failures.DAMAGE}. Rebuild the index: REINDEX INDEX "{{0}}"': (
        f"SELECT 1;\n{READS_INDEX}",
        "2",
        'index "damaged_i" contains unexpected zero page at block 3 (XX002)',
        f'{failures.DAMAGE}. Rebuild the index: REINDEX INDEX "damaged_i"',
        [f"LINE 2: {READS_INDEX}", "HINT: Please REINDEX it."],
    ),
    f"{failures.DAMAGE}; its log says more": (
        "SELECT 1;\nSELECT read_missing();",
        "2",
        'could not open file "missing" for reading: No such file or directory (58P01)',
        f"{failures.DAMAGE}; its log says more",
        ["LINE 2: SELECT read_missing();", 'IN: function "read_missing", its statement 1'],
    ),
    "The server lacks the library of this function; install its extension, or leave it out": (
        "SELECT 1;\nSELECT gone('a', 'b');",
        "2",
        'could not access file "gone.so": No such file or directory (58P01)',
        "The server lacks the library of this function; install its extension, or leave it out",
        ["LINE 2: SELECT gone('…', '…');"],
    ),
    "A value is too long for an index; index its md5(), or leave the index out": (
        "CREATE TABLE l (s text PRIMARY KEY);\nINSERT INTO l SELECT string_agg(md5(i::text), '') "
        "FROM generate_series(1, 900) i;",
        "2",
        "index row requires 28816 bytes, maximum size is 8191 (54000)",
        "A value is too long for an index; index its md5(), or leave the index out",
        ["LINE 2: INSERT INTO l SELECT string_agg(md5(i::text), '…') FROM generate_series(1, 900) i;"],
    ),
    "A row must fit 8 kB, apart from long values; use fewer columns, or one of jsonb": (
        "DO $$ BEGIN EXECUTE 'CREATE TABLE wide (' || (SELECT string_agg('c' || i || ' bigint DEFAULT 1', ', ') "
        "FROM generate_series(1, 1600) i) || ')'; END $$;\nINSERT INTO wide DEFAULT VALUES;",
        "2",
        "row is too big: size 12824, maximum size 8160 (54000)",
        "A row must fit 8 kB, apart from long values; use fewer columns, or one of jsonb",
        ["LINE 2: INSERT INTO wide DEFAULT VALUES;"],
    ),
    NESTED: (
        "CREATE FUNCTION deep(int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN deep($1 + 1); END';\nSELECT deep(1);",
        "2",
        "stack depth limit exceeded (54001)",
        NESTED,
        [
            "LINE 2: SELECT deep(1);",
            "IN: function deep(integer), its line 1",
            'HINT: Increase the configuration parameter "max_stack_depth" (currently 2048kB), after ensuring the '
            "platform's stack depth limit is adequate.",
        ],
    ),
    "PostgreSQL keeps 63 bytes of a name, so two long ones can be the same; shorten it": (
        f"CREATE TABLE {'x' * 63}1 (i int);\nCREATE TABLE {'x' * 63}2 (i int);",
        "2",
        f'relation "{"x" * 63}" already exists (42P07)',
        "PostgreSQL keeps 63 bytes of a name, so two long ones can be the same; shorten it",
        [f"LINE 2: CREATE TABLE {'x' * 63}2 (i int);"],
    ),
    "CREATE OR REPLACE VIEW only adds columns at the end; DROP VIEW first": (
        "CREATE OR REPLACE VIEW v AS SELECT i FROM t;",
        "1",
        "cannot drop columns from view (42P16)",
        "CREATE OR REPLACE VIEW only adds columns at the end; DROP VIEW first",
        ["LINE 1: CREATE OR REPLACE VIEW v AS SELECT i FROM t;"],
    ),
}
DAMAGED = (  # an index is written past the server's memory, and so read from the disk
    "CREATE TABLE damaged AS SELECT generate_series(1, 3000) AS i; GRANT SELECT ON damaged TO PUBLIC; "
    "CREATE INDEX damaged_i ON damaged (i); "
    "DO $$ BEGIN EXECUTE format('COPY (SELECT WHERE false) TO PROGRAM %L', 'SOURCE | dd of=' "
    "|| pg_relation_filepath('damaged_i') || ' ibs=512 obs=8192 seek=1 count=128 conv=notrunc 2>/dev/null'); END $$"
)
LIBRARY_THAT_GOES = """
DO $$
DECLARE
    folder text := (SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR');
    copy text := current_setting('data_directory') || '/gone.so';
BEGIN
    EXECUTE format('COPY (SELECT WHERE false) TO PROGRAM %L', format('cp %s/pg_trgm.* %s', folder, copy));
    EXECUTE format('CREATE FUNCTION gone(text, text) RETURNS real LANGUAGE c AS %L, %L', copy, 'similarity');
    EXECUTE format('COPY (SELECT WHERE false) TO PROGRAM %L', format('rm %s', copy));
END $$"""
SET_BY_A_SUPERUSER = {
    next(advice for advice in PROVOKED if "pg_filenode_relation" in advice): DAMAGED.replace("SOURCE", "yes"),
    next(advice for advice in PROVOKED if "REINDEX INDEX" in advice): DAMAGED.replace("SOURCE", "cat /dev/zero"),
    f"{failures.DAMAGE}; its log says more": (
        "CREATE FUNCTION read_missing() RETURNS text LANGUAGE sql SECURITY DEFINER AS "
        "$$ SELECT pg_read_file('missing') $$"
    ),
    "The server lacks the library of this function; install its extension, or leave it out": LIBRARY_THAT_GOES,
    failures.DISK_FULL: (
        "CREATE FUNCTION fill_disk() RETURNS void LANGUAGE sql SECURITY DEFINER AS "
        "$$ COPY (SELECT repeat('x', 100000)) TO '/dev/full' $$"
    ),
    failures.LIMIT_REACHED: "ALTER DATABASE {0} SET temp_file_limit = '1MB'; ALTER DATABASE {0} SET work_mem = '64kB'",
}
NO_EXTENSION = (  # PostgreSQL's words differ
    "This server does not have that extension; SELECT name FROM pg_available_extensions lists those that it has"
)


@pytest.mark.parametrize("advice", [entry.advice for entry in failures.MISTAKES if entry.advice != NO_EXTENSION])
def test_mistake_provoked_on_the_server_is_answered_with_its_sentence(there: World, advice: str) -> None:
    """Every entry of MISTAKES is reached by a real error, and the whole message is as it should be."""
    text, place, said, instead, lines = PROVOKED[advice]
    with there.superuser() as superuser:
        rows(superuser, SET_BY_A_SUPERUSER.get(advice, "SELECT 1").format(there.dbname))

    message = fail_with(there, text)

    message = re.sub(r'relation "?base/\d+/\d+"?', "relation base/N/N", message)
    message = re.sub(r"(?<=_relation\(0, )\d+", "N", message)
    message = re.sub(r'(?<=file ")/.*/(?=gone\.so")', "", message)
    for setting in ("max_locks_per_transaction", "temp_file_limit"):  # PostgreSQL 17 and newer quote them
        message = message.replace(f'"{setting}"', setting)
    assert message == whole(place, said, instead, *lines)
    assert re.fullmatch(re.sub(r"\\\{\d\\\}", ".+", re.escape(advice)), instead)


@pytest.mark.parametrize("text", ["INSERT INTO c SELECT vacuum_it();", "SELECT 1;\nSELECT vacuum_it();"])
def test_mistake_in_a_function_is_answered_like_one_in_a_block(there: World, text: str) -> None:
    """PostgreSQL's words differ, the sentence does not."""
    first = fail_with(there, text).splitlines()[0]

    assert "(25001). Rolled back. Write it as a statement of its own, outside of any block or function." in first


def test_mistakes_are_all_provoked_here() -> None:
    """Each entry has a file that provokes it, and each file has its entry."""
    assert {*PROVOKED, NO_EXTENSION} == {entry.advice for entry in failures.MISTAKES}


def test_mistake_of_an_extension_that_the_server_does_not_have_says_where_to_look(there: World) -> None:
    """Its SQLSTATE and words differ between PostgreSQL 13 and 18, the sentence does not."""
    first = fail_with(there, "CREATE EXTENSION nope_such;").splitlines()[0]

    assert re.fullmatch(
        r"002_b\.sql:1: .*extension.* \((0A000|58P01)\)\. Rolled back\. This server does not have that extension; "
        r"SELECT name FROM pg_available_extensions lists those that it has\. Then deploy again\. "
        r"Applied in this run: nothing\.",
        first,
    )


def test_mistake_of_an_extension_in_another_schema_names_that_schema(there: World) -> None:
    """An extension that is installed is not to be created: its schema is missing in the path, or an argument."""
    there.sql("CREATE SCHEMA tools; CREATE EXTENSION citext SCHEMA tools")
    instead = "Extension citext is installed in schema tools: write tools. before the name, or check the arguments"

    assert fail_with(there, "CREATE TABLE x (e citext);") == whole(
        "1:19",
        'type "citext" does not exist (42704)',
        instead,
        "LINE 1: CREATE TABLE x (e citext);",
        "                          ^",
    )
    assert f" Rolled back. {instead}. Then deploy again. " in fail_with(there, "CREATE TABLE x (e citext);", DRY)


def test_mistake_of_a_character_that_a_latin1_database_lacks_names_the_encodings(world: World) -> None:
    """The words about encodings are shown: they are not values of rows."""
    dbname = f"{world.dbname}_latin1"
    with world.superuser() as superuser:
        rows(superuser, f"CREATE DATABASE {dbname} OWNER {ADMIN} ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
    try:
        world.write("002_b.sql", "CREATE TABLE a (t text);\nCOMMENT ON TABLE a IS '5 €';")
        with pytest.raises(MigrationError) as caught:
            world.deploy(CREATE_USERS="false", DB_NAME=dbname)
    finally:
        drop_database(world.server, dbname)

    assert str(caught.value) == whole(
        "2",
        'character with byte sequence 0xe2 0x82 0xac in encoding "UTF8" has no equivalent in encoding "LATIN1" (22P05)',
        "The database's encoding LATIN1 does not have that character; write another one, or migrate to a database with "
        "encoding UTF8",
        "LINE 2: COMMENT ON TABLE a IS '…';",
    )


def test_mistake_of_what_wants_no_savepoint_asks_for_a_file_of_its_own(there: World) -> None:
    """Without a block the message does not mention one."""
    first = fail_with(there, "CREATE TABLE x (i int);\nSELECT pg_export_snapshot();").splitlines()[0]

    assert first == f"002_b.sql:2: cannot export a snapshot from a subtransaction (25001). {MARK_IT}"


def test_owner_that_the_admin_does_not_belong_to_is_answered_with_no_owner(there: World) -> None:
    """Every plain dump of another admin's database fails with this first, also where the role exists."""
    with there.superuser() as superuser:
        rows(superuser, "CREATE ROLE tmp_owner")

    first = fail_with(there, "ALTER TABLE t OWNER TO tmp_owner;").splitlines()[0]

    assert re.fullmatch(
        r'002_b\.sql:1: must be (member of|able to SET) (role|ROLE) "tmp_owner" \(42501\)\. Rolled back\. Leave OWNER '
        r"TO out \(pg_dump --no-owner does\), or first make sure that role tmp_owner exists and GRANT it to the admin"
        r"\. Then deploy again\. Applied in this run: nothing\.",
        first,
    )


MADE_ALREADY = {
    "ALTER TABLE t ADD n int;": 'column "n" of relation "t" already exists (42701)',
    "CREATE SCHEMA public;": 'schema "public" already exists (42P06)',
    "CREATE TYPE mood AS ENUM ();": 'type "mood" already exists (42710)',
    "CREATE ROLE tmp_other;": 'role "tmp_other" already exists (42710)',
    "ALTER TYPE mood ADD VALUE 'old';": 'enum label "old" already exists (42710)',
    "CREATE INDEX t_pkey ON c (i);": 'relation "t_pkey" already exists (42P07)',
}


def test_mistake_of_making_what_is_there_is_told_for_every_kind_of_object(there: World) -> None:
    """Tables, columns, types, roles and schemas have SQLSTATEs of their own, and one sentence."""
    instead = PROVOKED[MADE_BEFORE][3]
    for text, said in MADE_ALREADY.items():
        shown = re.sub("'.+'", "'…'", text)
        masked = said.replace('"old"', '"…"')
        assert fail_with(there, text) == whole("1", masked, instead, f"LINE 1: {shown}")


MISSING = {
    '"uuid-ossp"': "SELECT {}uuid_generate_v4();",
    "pgcrypto": "SELECT {}gen_salt('bf');",
    "pg_trgm": "CREATE INDEX ON t USING gin (n {}gin_trgm_ops);",
    "citext": "CREATE TABLE x (e {}citext);",
    "hstore": "CREATE TABLE x (e {}hstore);",
    "postgis": "CREATE TABLE x (e {}geometry(Point));",
    "vector": "CREATE TABLE x (e {}vector(3));",
    "ltree": "CREATE TABLE x (e {}ltree);",
    "unaccent": "SELECT {}unaccent('x');",
    "btree_gist": "CREATE INDEX ON t USING gist (i {}gist_int4_ops);",
}


@pytest.mark.slow
def test_extension_that_is_not_created_is_named_by_what_is_missing(there: World) -> None:
    """Every entry of EXTENSIONS is reached: a function, type or operator class that only it brings, in any schema."""
    assert list(MISSING) == [extension for _, extension in failures.EXTENSIONS]
    for extension, text in MISSING.items():
        for schema in ("", "public."):
            message = fail_with(there, text.format(schema))

            assert re.match(r"002_b\.sql:1(:\d+)?: .+ does not exist.* \(42(883|704)\)\. ", message), extension
            assert (
                f" Rolled back. Add CREATE EXTENSION IF NOT EXISTS {extension}; above this statement, if this server "
                "has the extension. " in message
            )


OTHER_NAMES = ["SELECT hnsw_like(1);", "SELECT digest_of(1);", "CREATE TABLE x (e vectors);", "SELECT st_status(1);"]


def test_extension_is_not_named_for_a_name_that_only_begins_like_one_of_its_own(there: World) -> None:
    """A function or type of one's own that is missing is not brought by an extension."""
    told = {text for text in OTHER_NAMES if "CREATE EXTENSION" in fail_with(there, text)}

    assert told <= {"SELECT st_status(1);"}  # PostGIS brings more names with st_ than can be listed


# What differs between the versions: a file, and from which major on PostgreSQL says what, and what is advised then.
SUPERUSER, OWNER = "The admin of RDS is not a superuser", "As its owner, ALTER … OWNER TO the admin"
NO_OWNER = "Leave OWNER TO out (pg_dump --no-owner does)"
GIVE, USED, FIX = 'First give these rows a value, with UPDATE "t"', "First DROP what depends on it", "Fix the file"
NO_IF, NO_VIEW = "PostgreSQL has no IF NOT EXISTS here", "CREATE OR REPLACE VIEW only adds columns at the end"
NULLS = {
    13: ('syntax error at or near "NOT" (42601)', FIX),
    18: ('column "n" of relation "t" contains null values (23502)', GIVE),
}
MEMBER_OF = "must be superuser or {} the pg_read_server_files role to COPY from a file (42501)"
WORDED: dict[str, dict[int, tuple[str, str]]] = {
    "ALTER TABLE t ADD CONSTRAINT IF NOT EXISTS other CHECK (i < 9);": {
        13: ('syntax error at or near "NOT" (42601)', NO_IF),
        18: ('syntax error at or near "EXISTS" (42601)', NO_IF),
    },
    "ALTER TABLE t ADD CONSTRAINT nn NOT NULL n;": NULLS,
    "ALTER TABLE t ADD NOT NULL n;": NULLS,
    "ALTER TABLE t ADD CONSTRAINT nn NOT NULL n NOT VALID;\nALTER TABLE t VALIDATE CONSTRAINT nn;": NULLS,
    "DROP VIEW v;\nALTER TABLE t ADD g text GENERATED ALWAYS AS (n) STORED;\nALTER TABLE t ALTER n TYPE varchar(5);": {
        13: ("cannot alter type of a column used by a generated column (42601)", USED),
        15: ("cannot alter type of a column used by a generated column (0A000)", USED),
    },
    'CREATE OR REPLACE VIEW v AS SELECT i, n COLLATE "C" FROM t;\nSELECT 1 / 0;': {
        13: ("division by zero (22012)", FIX),
        15: ('cannot change collation of view column "n" from "…" to "C" (42P16)', NO_VIEW),
    },
    "CREATE ROLE tmp_x SUPERUSER;": {
        13: ("must be superuser to create superusers (42501)", SUPERUSER),
        16: ("permission denied to create role (42501)", SUPERUSER),
    },
    "CREATE ROLE tmp_x REPLICATION;": {
        13: ("must be superuser to create replication users (42501)", SUPERUSER),
        16: ("permission denied to create role (42501)", SUPERUSER),
    },
    "CREATE ROLE tmp_x BYPASSRLS;": {
        13: ("must be superuser to change bypassrls attribute (42501)", SUPERUSER),
        14: ("must be superuser to create bypassrls users (42501)", SUPERUSER),
        16: ("permission denied to create role (42501)", SUPERUSER),
    },
    "COPY t FROM '/etc/hosts';": {
        13: (MEMBER_OF.format("a member of"), SUPERUSER),
        15: (MEMBER_OF.format("have privileges of"), SUPERUSER),
        16: ("permission denied to COPY from a file (42501)", SUPERUSER),
    },
    "ALTER TABLE t OWNER TO tmp_other;": {
        13: ('must be member of role "tmp_other" (42501)', NO_OWNER),
        16: ('must be able to SET ROLE "tmp_other" (42501)', NO_OWNER),
    },
    "ALTER DEFAULT PRIVILEGES FOR ROLE tmp_other GRANT SELECT ON TABLES TO tmp_other;": {
        13: ('must be member of role "tmp_other" (42501)', OWNER),
        16: ("permission denied to change default privileges (42501)", OWNER),
    },
}


@pytest.mark.parametrize("text", WORDED)
def test_mistake_that_versions_word_differently_gets_the_same_advice(there: World, text: str) -> None:
    """The advice is the same on every version, whatever words and place PostgreSQL gives."""
    major = there.server.version // 10000
    said, instead = WORDED[text][max(since for since in WORDED[text] if since <= major)]

    assert f": {said}. Rolled back. {instead}" in fail_with(there, text).splitlines()[0]


# --- What the scanner says ------------------------------------------------------------------------------------------

SCANNED = {
    "SELECT 1;\nDO $ BEGIN PERFORM 1; END $;": (
        "2:4",
        "a lone $: a body is written between $$ and $$, or between $name$ and $name$",
        "LINE 2: DO $…\n           ^",
    ),
    "SELECT 1;\nINSERT INTO t VALUES (9, 'it's');\nSELECT 'x';": (
        "2:29",
        "a quote inside a string is written twice ('')",
        "LINE 2: INSERT INTO t VALUES (9, '…\n                                 ^",
    ),
}


def test_mistake_that_the_scanner_sees_is_shown_with_its_line_before_anything_runs(there: World) -> None:
    """A dollar too few and an unescaped quote never reach the server, also where earlier files wait."""
    there.write("001_a.sql", "CREATE TABLE not_yet (i int);")
    for text, (place, said, lines) in SCANNED.items():
        verdict = f"002_b.sql:{place}: {said}. Nothing has been applied. Fix the file and deploy again."
        assert fail_with(there, text) == fail_with(there, text, DRY) == f"{verdict}\n{lines}"
    assert "not_yet" not in there.tables()


MARK_IT = (
    "Rolled back. This file of several statements is one transaction: put the statement into a file of its own, or "
    "write -- no-transaction in the first line, and deploy again. Applied in this run: nothing."
)


def test_mistake_of_a_concurrent_index_without_the_mark_says_how_to_mark_it(there: World) -> None:
    """In a file of several statements it needs the mark, or a file of its own."""
    said = "CREATE INDEX CONCURRENTLY cannot run inside a transaction block (25001)"
    line = "CREATE INDEX CONCURRENTLY i ON t (i);"

    assert fail_with(there, f"SELECT 1;\n{line}") == f"002_b.sql:2: {said}. {MARK_IT}\nLINE 2: {line}"


def test_mistake_in_a_marked_file_says_that_the_run_goes_on_there(there: World) -> None:
    """The message says another state, and gives the same advice."""
    text = "-- no-transaction\nINSERT INTO c VALUES (1);\nALTER TABLE t ADD n int;"

    assert fail_with(there, text).splitlines()[0] == (
        '002_b.sql:3: column "n" of relation "t" already exists (42701). The statements before this one have run '
        "and stay applied: do not edit them. It was made by hand, by another file, further up in this one, or by a "
        "run whose row is gone; "
        "leave it out, or write IF NOT EXISTS or OR REPLACE where that exists. Then deploy again: "
        "the run continues here. Applied in this run: nothing."
    )


def test_mistake_in_a_marked_file_of_a_dry_run_does_not_ask_for_the_mark(there: World) -> None:
    """A file that is marked already is not told to add the mark."""
    text = "-- no-transaction\nBEGIN;\nCREATE INDEX CONCURRENTLY i ON t (i);\nCOMMIT;\nSELECT 1;"

    assert "no-transaction" not in fail_with(there, text, DRY)


# --- No wrong advice ------------------------------------------------------------------------------------------------

# A file, and words that would mislead whoever reads them.
MISLEADING = {
    "NOT NULL without SET": ("ALTER TABLE t ALTER COLUMN n NOT NULL;", "IF NOT EXISTS"),
    "NOT NULL after a comma": ("CREATE TABLE x (i int, NOT NULL);", "IF NOT EXISTS"),
    "made twice by this file": ("CREATE TABLE x (i int);\nCREATE TABLE x (i int);", "by hand or by another file"),
    "dropping a role that is not there": ("DROP ROLE nobody_such;", "CREATE ROLE"),
    "our role without users": ("GRANT SELECT ON t TO readwrite;", "name one that exists (ours are readwrite"),
    "dropping a role that has rights": ("DROP ROLE tmp_other;", "CREATE that again"),
    "a new row in a DO block": ("DO $$ BEGIN INSERT INTO t VALUES (500, 'x'); END $$;", "NOT VALID"),
    "a new row by EXECUTE": ("PREPARE p AS INSERT INTO t VALUES (500, 'x');\nEXECUTE p;", "NOT VALID"),
    "names that need quotes": ('ALTER TABLE "People" ALTER "firstName" SET NOT NULL;', "UPDATE People"),
    "a new column": ("ALTER TABLE t ADD q int NOT NULL;", "UPDATE t SET q"),
    "a column for a primary key": (
        "DELETE FROM t WHERE i = 3;\nALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (n);",
        "Add the column",
    ),
    "VACUUM in a DO block": ("SELECT 1;\nDO $$ BEGIN EXECUTE 'VACUUM'; END $$;", "no-transaction"),
    "a name after a string": ("SELECT f('a': 1);", "written twice"),
    "IF EXISTS where there is none": ("ALTER TABLE t RENAME COLUMN IF EXISTS n TO m;", "IF NOT EXISTS"),
    "a comment after a mistake in the grammar": ("SELECT FROM WHERE; -- used by all", "CREATE that again"),
    "SET NOT NULL in the next statement": (
        "ALTER TABLE t ADD q int NOT NULL;\nALTER TABLE t ALTER n SET NOT NULL;",
        "UPDATE",
    ),
    "a level set too late": ("SELECT 1;\nSET TRANSACTION ISOLATION LEVEL SERIALIZABLE;", "no-transaction"),
}


@pytest.mark.parametrize("case", MISLEADING)
def test_advice_is_not_given_where_it_is_wrong(there: World, case: str) -> None:
    """No advice is better than wrong advice."""
    text, wrong = MISLEADING[case]

    assert wrong not in fail_with(there, text)


def test_mistake_after_a_prepared_statement_is_named_as_such(there: World) -> None:
    """The second attempt, which looks for the place, does not stumble over what the first has left in the session."""
    message = fail_with(there, "PREPARE p AS INSERT INTO c VALUES (9);\nEXECUTE p;\nSELECT 1 / 0;")

    assert message.startswith("002_b.sql:3: division by zero (22012). ")


def test_advice_for_an_exclusion_constraint_on_plain_columns_names_btree_gist(there: World) -> None:
    """The commonest way to miss btree_gist is the missing default operator class."""
    message = fail_with(there, "CREATE TABLE x (i int, EXCLUDE USING gist (i WITH =));")

    add = "Add CREATE EXTENSION IF NOT EXISTS btree_gist; above this statement, if this server has the extension. "
    assert add in message


NEW_ROWS = {
    "unique": ("INSERT INTO t VALUES (1, 'x');", "duplicate key value violates unique constraint"),
    "check": ("UPDATE t SET i = 500;", 'new row for relation "t" violates check constraint'),
    "after WITH": ("WITH x AS (SELECT 500 AS i) INSERT INTO t SELECT i FROM x;", "violates check constraint"),
    "rows of COPY": ("COPY t FROM stdin;\n500\tx\n\\.\n", "violates check constraint"),
}


def test_advice_about_rows_that_are_there_is_not_given_for_new_ones(there: World) -> None:
    """The new rows are wrong, so the advice is not to loosen the constraint."""
    for case, (text, said) in NEW_ROWS.items():
        message = fail_with(there, text)

        assert said in message, case
        assert "Rolled back. Fix the file and deploy again." in message, case


# --- The line and its caret -----------------------------------------------------------------------------------------

CARETS = {
    "first character": ("nope;", "nope;"),
    "tabs": ("SELECT\n\t\t'ü',\tnope,\t1;", "nope, 1;"),
    "non-ASCII": ("SELECT 'größe', '日本', '😀', nope;", "nope;"),
    "CRLF": ("SELECT 1,\r\n  nope,\r\n  2;\r\n", "nope,"),
    "end of a long line": (f"SELECT {'1, ' * 200}nope;", "nope;"),
    "middle of a long line": (f"SELECT {'1, ' * 200}nope{', 2' * 200};", "nope, 2, 2"),
    "beginning of a long line": (f"SELECT nope{', 2' * 200};", "nope, 2, 2"),
    "long line with tabs and non-ASCII": ("SELECT " + "'ü',\t" * 100 + "nope" + ", 2" * 200, "nope, 2"),
    "just 100 characters": (f"SELECT {'1' * 87}, nope;", "nope;"),
    "in a function's body": (
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$\n  SELECT 1;\n\tSELECT nope $$;",
        "nope $$;",
    ),
    "second of several statements": ("SELECT 1; SELECT\n  nope\n;", "nope"),
}


def test_caret_is_under_the_character_that_postgresql_names(there: World) -> None:
    """Whatever precedes it in the line, and however long that is; at most 100 characters are shown."""
    for case, (text, following) in CARETS.items():
        _, line, caret, *_ = fail_with(there, text).splitlines()

        assert caret.strip() == "^", case
        assert line[caret.index("^") :].startswith(following), f"{case}: {line}"
        assert len(line) <= 100 + len("LINE 12: ……"), case


def test_excerpt_of_a_statement_without_a_position_shows_its_first_line_without_a_caret(there: World) -> None:
    """Where only the statement is known, there is no caret."""
    assert fail_with(there, "SELECT 1;\n\n  DROP TABLE\n    nothing;").splitlines()[1:] == ["LINE 3:   DROP TABLE"]


@pytest.mark.slow
def test_excerpt_of_a_do_block_stopped_by_the_deadline_shows_no_other_statements_line(there: World) -> None:
    """Nothing tells which of a file's statements was at work when it was stopped: no line is guessed."""
    text = "SELECT 'a', $$ b $$;\nSELECT 1;\n\nDO $$\nBEGIN\n  PERFORM pg_sleep(60);\nEND $$;"

    message = fail_with(there, text, None, Context(4))

    assert "LINE 3" not in message
    assert re.findall("line . of the file", message) in ([], ["line 6 of the file"])


# --- No row, no password --------------------------------------------------------------------------------------------

SECRET = "hunter2"
HIDDEN = {
    "row of COPY": f"COPY t FROM stdin;\n1\t{SECRET}\n\\.\n",
    "row of COPY that cannot be read": f"COPY t FROM stdin;\nx\t{SECRET}\n\\.\n",
    "row of COPY with a column too many": f"COPY t FROM stdin;\n7\tx\t{SECRET}\n\\.\n",
    "row of CSV": f"COPY t FROM stdin CSV;\n7,x\n8,{SECRET},y\n\\.\n",
    "unique": f"INSERT INTO t VALUES (1, '{SECRET}');",
    "check": f"SELECT 1;\nINSERT INTO t VALUES (500, '{SECRET}');",
    "after WITH": f"WITH x AS (SELECT 1 AS i) INSERT INTO t SELECT i, '{SECRET}' FROM x;",
    "update": f"UPDATE t SET n = '{SECRET}', i = 500;",
    "value that cannot be read": f"INSERT INTO t VALUES ('x', '{SECRET}');",
    "new row in a DO block": f"DO $$ BEGIN INSERT INTO t VALUES (1, '{SECRET}'); END $$;",
    "value in a DO block": f"DO $$ BEGIN\n  UPDATE t SET n = '{SECRET}', i = n::int; END $$;",
    "password": f"CREATE ROLE tmp_other PASSWORD '{SECRET}';",
    "password in small letters": f"alter role nobody_such password '{SECRET}';",
    "password with a mistake after it": f"CREATE ROLE tmp_x PASSWORD '{SECRET}' VALID UNTL '2020';",
    "password in the next line": f"CREATE ROLE tmp_x PASSWORD\n  '{SECRET}' VALID UNTL '2020';",
    "password in a DO block": f"DO $$ BEGIN\n  CREATE ROLE tmp_other PASSWORD\n '{SECRET}'; END $$;",
}


@pytest.mark.parametrize("case", HIDDEN)
def test_excerpt_shows_neither_a_row_nor_a_password(there: World, case: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of what INSERT and COPY bring, and of a statement with a password, nothing is shown or logged."""
    message = fail_with(there, HIDDEN[case])

    assert message.startswith("002_b.sql:")
    assert SECRET not in message + caplog.text


def test_message_of_long_names_and_lines_stays_below_its_limit(there: World) -> None:
    """Line, detail and hint are cut; the verdict is whole."""
    objects = "".join(f"CREATE VIEW v_{'x' * 50}_{n} AS SELECT * FROM t;\n" for n in range(30))

    message = fail_with(there, f"{objects}DROP TABLE t /* {'y' * 500} */;")

    assert message.splitlines()[0].endswith("in the same file. Then deploy again. Applied in this run: nothing.")
    assert len(re.sub("(?s).*^DETAIL: |^HINT: .*", "", message, flags=re.MULTILINE)) <= 302
    assert "\nHINT: Use DROP ... CASCADE" in message


# --- Stopped, in any language ---------------------------------------------------------------------------------------

STOPPED = "DO $$ BEGIN RAISE USING ERRCODE = '57014', MESSAGE = 'storniere Anfrage'; END $$;"


def test_statement_that_was_stopped_is_known_by_its_sqlstate(there: World) -> None:
    """PostgreSQL's words are in the language of its server: they do not decide."""
    message = fail_with(there, STOPPED)

    assert message.startswith("002_b.sql: storniere Anfrage (57014). Rolled back. An administrator or another session ")


def test_statement_that_exceeds_the_timeout_of_its_file_is_none_that_was_stopped(there: World) -> None:
    """The same SQLSTATE: the file sets a limit of its own, and that is named."""
    message = fail_with(there, f"SET statement_timeout = '1h';\n{STOPPED}")

    assert "(57014). Rolled back. The file's own statement_timeout was too short; raise it" in message

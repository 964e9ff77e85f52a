"""No file can change the session for the next one, or for the row that records it."""

from __future__ import annotations

import re
from types import ModuleType

import boundary
import limited_users
import nontransactional
import outside
import pytest
import session
import tracking
import watcher
from harness.database import SCHEMA, superuser_connection
from harness.world import ADMIN, World, rows
from initializer import MigrationError

# What a session can carry from one file to the next, as rows (file, what, value).
SNAPSHOT = f"""
    INSERT INTO {SCHEMA}.seen
    SELECT '{{0}}', 'setting ' || name, setting FROM pg_catalog.pg_settings WHERE name NOT LIKE 'plpgsql.%'
    UNION ALL SELECT '{{0}}', 'role', pg_catalog.concat(session_user, ' ', current_user)
    UNION ALL SELECT '{{0}}', 'own setting', coalesce(pg_catalog.current_setting('app.tenant', true), '')
    UNION ALL SELECT '{{0}}', 'prepared', name FROM pg_catalog.pg_prepared_statements
    UNION ALL SELECT '{{0}}', 'cursor', name FROM pg_catalog.pg_cursors
    UNION ALL SELECT '{{0}}', 'channel', channel FROM pg_catalog.pg_listening_channels() channel
    UNION ALL SELECT '{{0}}', 'temporary', relname FROM pg_catalog.pg_class
        WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind = 'r'
    UNION ALL SELECT '{{0}}', 'lock', pg_catalog.count(*)::text FROM pg_catalog.pg_locks
        WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid();
"""

PG_DUMP_PREAMBLE = f"""
--
-- PostgreSQL database dump
--

\\restrict 0aB1cD2eF3

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';
SET default_table_access_method = heap;

CREATE TABLE {SCHEMA}.dumped (id integer NOT NULL);
ALTER TABLE ONLY {SCHEMA}.dumped ADD CONSTRAINT dumped_pkey PRIMARY KEY (id);

--
-- PostgreSQL database dump complete
--

\\unrestrict 0aB1cD2eF3
"""

CHANGES = {
    "search_path": "SET search_path = s;",
    "search_path with a tracking table of its own": (
        f"CREATE TABLE s.schema_migrations (LIKE {SCHEMA}.schema_migrations); SET search_path = s, pg_catalog;"
    ),
    "search_path by set_config": "SELECT set_config('search_path', '', false);",
    "role": "SET ROLE tablecreator;",
    "role without rights on the tracking table": "SET ROLE readwrite;",
    "local role": "SET LOCAL ROLE readwrite;",
    "local search_path": "SET LOCAL search_path = s;",
    "read-only sessions": "SET default_transaction_read_only = on;",
    "session characteristics": "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY;",
    "encoding": "SET client_encoding = 'LATIN1';",
    "encoding by another name": "SET NAMES 'SQL_ASCII';",
    "strings": "SET standard_conforming_strings = off;",
    "backslash quotes": "SET backslash_quote = on;",
    "date style": "SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard';",
    "time zone": "SET TIME ZONE 'Asia/Tokyo';",
    "time-outs": "SET lock_timeout = 1; SET statement_timeout = '1h'; SET idle_in_transaction_session_timeout = 1;",
    "keepalives": "SET tcp_keepalives_idle = 77; SET tcp_keepalives_count = 9;",
    "messages": "SET client_min_messages = 'error';",
    "application name": "SET application_name = 'mine';",
    "own setting": "SET app.tenant = 'mine';",
    "RESET ALL": "RESET ALL;",
    "RESET lock_timeout": "RESET lock_timeout;",
    "DISCARD ALL": "DISCARD ALL;",
    "DISCARD PLANS and TEMP": "DISCARD PLANS; DISCARD TEMP;",
    "advisory unlock": "SELECT pg_advisory_unlock_all();",
    "advisory lock": "SELECT pg_advisory_xact_lock(1);",
    "temporary table": "CREATE TEMP TABLE t (i int); CREATE TEMP TABLE schema_migrations (migration_name text);",
    "temporary table with an open cursor": (
        "CREATE TEMP TABLE t AS SELECT 1 i; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM t; FETCH c;"
    ),
    "prepared statement": "PREPARE p AS SELECT 1;",
    "cursor": "DECLARE c CURSOR FOR SELECT generate_series(1, 9); FETCH c;",
    "cursor with hold": "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 9); FETCH c;",
    "LISTEN": "LISTEN news;",
    "constraints deferred": "SET CONSTRAINTS ALL DEFERRED;",
    "planner": "SET enable_seqscan = off; SET work_mem = '1MB'; SET jit = off;",
    "pg_dump's preamble": PG_DUMP_PREAMBLE,
}


def changed(world: World) -> dict[str, list[tuple[str, str]]]:
    """What the snapshots do not have in common with the first one, by file."""
    seen: dict[str, set[tuple[str, str]]] = {}
    for file, what, value in world.sql(f"SELECT file, what, value FROM {SCHEMA}.seen"):
        seen.setdefault(file, set()).add((what, value))
    first = seen.pop("before")
    return {file: sorted(found ^ first) for file, found in seen.items() if found != first}


def write_between_snapshots(world: World, changes: dict[str, str], mark: str = "") -> list[str]:
    """The first snapshot, and then each change with one after it; returns the names of the files."""
    # The DO block brings PL/pgSQL's own settings into the session.
    tables = "CREATE TABLE seen (file text, what text, value text); GRANT SELECT ON seen TO PUBLIC; DO $$ BEGIN END $$;"
    files = {"000_before": f"CREATE SCHEMA s; {tables} {SNAPSHOT.format('before')}"}
    for number, (name, text) in enumerate(changes.items(), 1):
        files[f"{2 * number:03d}_{name}"] = mark + text
        files[f"{2 * number + 1:03d}_after"] = SNAPSHOT.format(name.replace("'", "''"))
    for name, text in files.items():
        world.write(f"{name}.sql", text)
    return list(files)


def assert_recorded(world: World, files: list[str]) -> None:
    """All are recorded, in our table, under their names and at the right time; and the next run agrees."""
    assert world.applied() == files
    assert world.sql(
        "SELECT count(*) FROM schema_migrations WHERE applied_at BETWEEN localtimestamp - interval '2 min' "
        "AND localtimestamp AND checksum LIKE '1:%' AND length(file_sha256) = 64"
    ) == [(len(files),)]
    assert world.deploy()["applied"] == []


def test_session_changed_by_a_file_is_fresh_for_the_next(world: World) -> None:
    """The next file, and the row that records this one, see the session as a new one would be."""
    files = write_between_snapshots(world, CHANGES)

    world.deploy()

    assert changed(world) == {}
    assert_recorded(world, files)


MARKED = ("search_path", "role without rights on the tracking table", "read-only sessions", "encoding", "strings",
          "date style", "time zone", "DISCARD ALL", "advisory unlock", "temporary table", "prepared statement",
          "cursor with hold", "LISTEN", "pg_dump's preamble")  # fmt: skip


def test_session_changed_by_a_marked_file_is_fresh_for_the_next(world: World) -> None:
    """The same holds for a file that runs step by step, whose settings outlast each step; non-ASCII names included."""
    units = {
        key: f"BEGIN; {text} COMMIT;" if "temporary" in key or "hold" in key else text for key, text in CHANGES.items()
    }
    files = write_between_snapshots(world, {f"größe {key}": units[key] for key in MARKED}, "-- no-transaction\n")

    world.deploy()

    assert changed(world) == {}
    assert_recorded(world, files)


def test_session_changed_by_a_file_that_is_tried_twice_is_fresh_for_the_next(world: World) -> None:
    """The same holds if the file succeeds only at the second attempt, which goes statement by statement."""
    text = (
        "SET client_encoding = 'LATIN1'; SET search_path = s; SET ROLE tablecreator; SET TIME ZONE 'Asia/Tokyo';\n"
        f"DO $$ BEGIN IF nextval('{SCHEMA}.tries') = 1 THEN RAISE 'not yet' USING ERRCODE = '40001'; END IF; END $$;"
    )
    files = write_between_snapshots(world, {"größe": text})
    world.write("000_a.sql", "CREATE SEQUENCE tries; GRANT ALL ON SEQUENCE tries TO tablecreator;")

    world.deploy()

    assert changed(world) == {}
    assert_recorded(world, ["000_a", *files])
    assert world.sql("SELECT last_value FROM tries") == [(2,)]


@pytest.mark.parametrize("mark", ["", "-- no-transaction\n"], ids=["whole", "marked"])
def test_session_authorization_changed_by_a_superuser_is_fresh_for_the_next(world: World, mark: str) -> None:
    """Even an admin who can become anybody is himself again for the row and for the next file."""
    admin = {**world.secret("admin"), "username": world.server.user, "password": world.server.password}
    world.put_secret("admin", admin)
    world.sql("CREATE ROLE tmp_somebody")
    write_between_snapshots(world, {"authorization": "SET SESSION AUTHORIZATION tmp_somebody;\nSELECT 1;"}, mark)

    world.deploy(CREATE_USERS="false")

    assert changed(world) == {}
    assert world.sql("SELECT value FROM seen WHERE what = 'role' AND file = 'authorization'") == [
        (f"{world.server.user} {world.server.user}",)
    ]


def test_session_settings_are_in_force_for_the_file_that_made_them(world: World) -> None:
    """Within a file its settings count, from the statement on that made them."""
    world.write(
        "001_a.sql",
        "CREATE SCHEMA s; SET search_path = s; CREATE TABLE t (i int); SET LOCAL TIME ZONE 'Asia/Tokyo';\n"
        "CREATE TABLE zones AS SELECT current_setting('TimeZone') AS zone;",
    )

    world.deploy()

    assert world.sql("SELECT zone FROM s.zones, s.t RIGHT JOIN (VALUES (1)) v(x) ON true") == [("Asia/Tokyo",)]


# At most so many ms until the server notices that a run has vanished or is frozen.
NOTICED_WITHIN_MS = {
    "idle_in_transaction_session_timeout": 120_000,
    "idle_session_timeout": 300_000,
    "client_connection_check_interval": 2_000,
    "tcp_user_timeout": 15_000,
}


def test_session_of_a_run_that_is_frozen_or_gone_is_ended_by_the_server(world: World) -> None:
    """Whatever happens to the client, its locks do not stay: each of these settings is on, and short enough."""
    known = [name for (name,) in world.sql("SELECT name FROM pg_settings WHERE name = ANY (%s)", [*NOTICED_WITHIN_MS])]
    world.write(
        "001_a.sql",
        "CREATE TABLE seen AS SELECT name, setting::int FROM pg_settings "
        f"WHERE name IN ({', '.join(map(repr, known))}) OR name LIKE 'tcp_keepalives%';",
    )

    world.deploy()

    seen = dict(world.sql("SELECT name, setting FROM seen"))
    keepalives_s = seen.pop("tcp_keepalives_idle") + seen.pop("tcp_keepalives_interval") * seen.pop(
        "tcp_keepalives_count"
    )
    assert 0 < keepalives_s <= 15
    assert len(seen) >= (4 if world.server.version >= 140000 else 2)
    assert [name for name, value in seen.items() if not 0 < value <= NOTICED_WITHIN_MS[name]] == []


def test_session_users_are_made_after_any_file(world: World) -> None:
    """What the last file leaves in the session does not reach the users either."""
    world.write(
        "001_a.sql", "CREATE SCHEMA s; SET search_path = s; SET ROLE readwrite; SET client_encoding = 'LATIN1';"
    )

    report = world.deploy()

    assert report["users"] == {"app_rw": "created", "app_tc": "created"}


def test_error_under_another_encoding_keeps_its_form(world: World) -> None:
    """A file that changes the encoding fails like any other, though PostgreSQL then answers in that encoding."""
    world.write("001_a.sql", "SET client_encoding = 'LATIN1';\nSELECT 'x', u&\"gr\\00f6\\00dfe\";")

    with pytest.raises(MigrationError) as caught:
        world.deploy()

    assert re.match(r'001_a\.sql:2:13: column "…" does not exist \(42703\)\. Rolled back\. ', str(caught.value))


def test_session_defaults_of_the_database_do_not_take_the_place_of_ours(world: World) -> None:
    """RESET ALL goes back to what ALTER DATABASE has set; what we depend on is set again after it.

    Only the style of dates is the file's: its text decides what is written into tables.
    """
    for setting in (
        "DateStyle = 'German'",
        "client_encoding = 'LATIN1'",
        "lock_timeout = 0",
        "statement_timeout = 5000",
    ):
        world.sql(f"ALTER DATABASE {world.dbname} SET {setting}")
    names = ("DateStyle", "client_encoding", "lock_timeout", "statement_timeout")
    world.write("001_a.sql", "CREATE TABLE größe AS SELECT 'é' AS a;")
    settings = ", ".join(f"current_setting('{name}') AS {name}" for name in names)
    world.write("002_b.sql", f"CREATE TABLE seen AS SELECT {settings};")

    world.deploy()

    assert world.tables() == ["größe", "seen"]
    assert world.sql("SELECT * FROM seen") == [("German, DMY", "UTF8", "4s", "0")]


@pytest.mark.parametrize("mark", ["", "-- no-transaction\n"], ids=["one transaction", "in steps"])
def test_session_writes_dates_as_the_database_does(world: World, mark: str) -> None:
    """A date becomes text in the style of the database, as under psql, not in the one that we read."""
    world.sql(f"ALTER DATABASE {world.dbname} SET DateStyle = German")
    world.write("001_a.sql", f"{mark}CREATE TABLE a AS SELECT '01.02.2020'::date::text AS day;\nSELECT now();")

    report = world.deploy()

    assert world.sql("SELECT day FROM a") == [("01.02.2020",)]
    assert report["status"] == world.deploy({"action": "status"})["status"] == "ok"


@pytest.mark.parametrize("mark", ["", "-- no-transaction\n"], ids=["one transaction", "in steps"])
def test_session_compiles_the_statements_of_a_file_as_the_database_does(world: World, mark: str) -> None:
    """Our own questions are not compiled, which a large statement of a file can gain by."""
    world.sql("CREATE TABLE seen (jit text)")
    for number, jit in enumerate(("on", "off", "on")):
        world.sql(f"ALTER DATABASE {world.dbname} SET jit = {jit}")
        world.write(f"00{number}_a.sql", f"{mark}INSERT INTO seen SELECT current_setting('jit');\nSELECT 1;")
        world.write(f"00{number}_b.sql", f"{mark}INSERT INTO seen SELECT current_setting('jit');\nSELECT 1;")
        world.deploy(CREATE_USERS="false")
    assert world.sql("SELECT * FROM seen") == [("on",), ("on",), ("off",), ("off",), ("on",), ("on",)]


def test_session_that_is_renewed_tells_each_warning_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What was odd before the renewal stays in the report, and is not said again after it."""
    block = "DO $$ BEGIN PERFORM 1; END $$;"
    world.write(
        "001_a.sql", f"CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'DECLARE BEGIN RETURN 1; END'; {block}"
    )
    world.write("001_b.sql", block)
    world.write("003_c.sql", "SELECT 1;")

    report = world.deploy()

    assert world.applied() == ["001_a", "001_b", "003_c"]
    assert report["warnings"] == ["number 1 is used more than once: 001_a, 001_b"]
    assert caplog.text.count("warning text=") == 1


def test_session_of_a_database_with_backslashes_in_strings_reads_files_so(world: World) -> None:
    """Where the database says that \\' is a quote, it is one in the files as well, as for psql."""
    world.sql(f'ALTER DATABASE "{world.dbname}" SET standard_conforming_strings = off')
    world.write("001_strings.sql", "CREATE TABLE strings AS SELECT 'it\\'s; \\\\' AS s;\nCREATE TABLE next (i int);")

    world.deploy()

    assert (world.tables(), world.sql("SELECT s FROM strings")) == (["next", "strings"], [("it's; \\",)])


@pytest.mark.parametrize("module", [boundary, limited_users, nontransactional, outside, session, tracking, watcher])
def test_statement_of_ours_says_the_same_however_the_database_reads_backslashes(module: ModuleType) -> None:
    """A backslash of ours is in $$…$$, since in '…' it could be an escape."""
    texts = [text for name, text in vars(module).items() if name.endswith("_SQL") and isinstance(text, str)]
    assert texts
    assert [text for text in texts if "\\" in re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)] == []


def test_session_on_a_server_with_a_database_in_another_encoding(world: World) -> None:
    """What ALTER ROLE has set there is in a catalog of the whole server, and not in our letters."""
    other = f"{world.dbname}_latin1"
    with world.superuser() as superuser:
        rows(superuser, f"CREATE DATABASE {other} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        with superuser_connection(world.server, other) as conn:
            rows(conn, f"ALTER ROLE {ADMIN} SET my.motto = 'é'")
        world.write("001_a.sql", "CREATE TABLE a (i int);")

        assert world.deploy(CREATE_USERS="false")["status"] == "ok"
    finally:
        with world.superuser() as superuser:
            rows(superuser, f"ALTER ROLE {ADMIN} RESET my.motto")
            rows(superuser, f"DROP DATABASE {other} WITH (FORCE)")

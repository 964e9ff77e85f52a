"""`python3 db_setup dump`: the schema for a reviewer, the same text whoever writes it; `check` knows if it is old."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dump
import initializer
import migration_files
import pytest
from config import Config, Setup
from database import Endpoint, Login
from harness import clients
from harness.database import SCHEMA, create_database, drop_database
from harness.process import secrets_manager
from harness.world import ADMIN, ADMIN_PASSWORD, AWS_ENVIRONMENT, World
from psycopg2.extensions import libpq_version
from test_documents import block_with
from test_terminal import Project, annotations, folder, run_check, terminal, write

pytestmark = pytest.mark.slow

__all__ = ["folder"]  # a fixture
ROOT = Path(__file__).resolve().parent.parent
OPERATING = (ROOT / "docs" / "operating.md").read_text()
EXAMPLE = (ROOT / "migrations" / "001_initial_schema.sql").read_text()
# Lines that a dump has between its statements, and that are here in the middle of one. Two of them end in blanks.
LIKE_NOISE = """
SET statement_timeout = 0;
SET default_table_access_method = heap;
-- Dumped by pg_dump version 1.0  
SELECT pg_catalog.set_config('search_path', '', false);
/*
\\restrict abc


--
-- Name: x; Type: TABLE; Schema: public; Owner: -
--  
*/
"""  # noqa: W291
DOUBLED = LIKE_NOISE.replace("'", "''")
RICH = f"""
CREATE EXTENSION "uuid-ossp";
CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'happy; very');
CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
CREATE TABLE users (id uuid PRIMARY KEY DEFAULT uuid_generate_v4(), email varchar UNIQUE, mood mood DEFAULT 'sad');
CREATE TABLE "Mixed; Case" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "strange "" name" text
    DEFAULT '{DOUBLED}', price positive NOT NULL,
    twice numeric GENERATED ALWAYS AS (price * 2) STORED, owner uuid REFERENCES users);
CREATE TABLE parts (id serial, at date) PARTITION BY RANGE (at);
CREATE TABLE parts_2026 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE base (id int CHECK (id > 0));
CREATE TABLE child (name text) INHERITS (base);
CREATE VIEW happy AS SELECT email FROM users WHERE mood = 'happy; very';
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM users;
CREATE FUNCTION looks(a int) RETURNS int LANGUAGE plpgsql AS $f$ BEGIN {LIKE_NOISE} RETURN a; END; $f$;
CREATE FUNCTION looks(a text) RETURNS text LANGUAGE sql AS $$ SELECT 'größe\\' || $1 $$;
CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.email := lower(NEW.email); RETURN NEW; END $$;
CREATE TRIGGER t BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION g();
CREATE RULE r AS ON DELETE TO "Mixed; Case" DO ALSO (DELETE FROM base; SELECT ';');
CREATE INDEX ON users (lower(email)) WHERE mood <> 'sad';
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int);
ALTER TABLE users ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON users USING (email = current_user);
CREATE PUBLICATION feed FOR TABLE base;
COMMENT ON TABLE users IS 'it''s; a "comment"
-- of two lines
SET x = 1;';
"""
ATOMIC = "CREATE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC DELETE FROM base; SELECT CASE WHEN true THEN 1 END; END;"


def major_of(world: World) -> int:
    return world.server.version // 10000


class Dumps(Project):
    """A project with a pg_dump in its path, by default the oldest of those that the server accepts."""

    def __init__(self, world: World, root: Path) -> None:
        super().__init__(world, root)
        self.file = self.db_setup / "schema.sql"
        self.programs = root / "bin"
        self.programs.mkdir()
        self.path = os.environ["PATH"]
        self.use(max(major_of(world), min(clients.MAJORS)))

    def use(self, major: int) -> None:
        """The pg_dump of another major."""
        program = self.programs / "pg_dump"
        program.unlink(missing_ok=True)
        program.symlink_to(clients.client("pg_dump", major))
        self.environ["PATH"] = f"{self.programs}{os.pathsep}{self.path}"

    def play(self, script: str) -> None:
        """Something else in its place, which finds the real one as $REAL."""
        program = self.programs / "pg_dump"
        self.environ["REAL"] = str(program.resolve())
        program.unlink()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def dump(self, *words: str) -> str:
        """What `dump -o -` prints."""
        run = self.run("dump", "-o", "-", *words)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def made(self, **files: str) -> None:
        """Write these files and migrate."""
        for name, text in files.items():
            self.world.write(f"{name.lstrip('_')}.sql", text)
        run = self.run("migrate")
        assert run.returncode == 0, run.stderr

    def rich(self) -> None:
        self.made(_001_rich=RICH + (ATOMIC if major_of(self.world) >= 14 else ""))

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """Another one; meanwhile the project is about it."""
        before = self.world.dbname, self.environ["DATABASE_URL"]
        name = f"{self.world.dbname}_other"
        create_database(self.world.server, name, ADMIN)
        self.world.hang_up()
        self.world.dbname = name
        self.environ["DATABASE_URL"] = before[1].replace(f"/{before[0]}?", f"/{name}?")
        try:
            yield name
        finally:
            self.world.hang_up()
            self.world.dbname, self.environ["DATABASE_URL"] = before
            drop_database(self.world.server, name)


@pytest.fixture
def project(world: World, tmp_path: Path) -> Dumps:
    return Dumps(world, tmp_path)


def body(text: str) -> str:
    """Without the first line, which says of which files it is."""
    return text.partition("\n")[2]


# --- What is written ------------------------------------------------------------------------------------------------

EXAMPLE_DUMP = """\
-- Written by python3 db_setup dump. It is not run by a deployment: do not edit it.

SET client_encoding = 'UTF8';

SET standard_conforming_strings = on;

SELECT pg_catalog.set_config('search_path', '', false);

SET check_function_bodies = false;

SET xmloption = content;

CREATE EXTENSION IF NOT EXISTS "uuid-ossp" WITH SCHEMA public;

CREATE TABLE public.products (
    id uuid DEFAULT public.uuid_generate_v4() NOT NULL,
    name character varying NOT NULL,
    price numeric(10,2),
    user_id uuid
);

CREATE TABLE public.users (
    id uuid DEFAULT public.uuid_generate_v4() NOT NULL,
    email character varying,
    created_at timestamp without time zone DEFAULT CURRENT_TIMESTAMP
);

ALTER TABLE ONLY public.products
    ADD CONSTRAINT products_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_email_key UNIQUE (email);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.products
    ADD CONSTRAINT products_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);
"""


@pytest.mark.public  # which the text shows
def test_dump_of_the_example_is_its_schema_and_nothing_else(project: Dumps) -> None:
    """Tables and extensions, without owners, rights, our tables, and what pg_dump says of itself; and where it is."""
    project.made(_001_initial_schema=EXAMPLE)

    run = project.run("dump")

    assert (run.returncode, run.stdout) == (0, "lambda/db_setup/schema.sql\n"), run.stderr
    first, _, rest = project.file.read_text().partition("\n")
    assert re.fullmatch("-- db_setup dump of migrations [0-9a-f]{64}", first)
    assert rest == EXAMPLE_DUMP
    assert [path.name for path in project.db_setup.glob("*.part")] == []
    again = project.dump()
    assert again == project.file.read_text()


def test_dump_leaves_bodies_literals_and_comments_as_they_are(project: Dumps) -> None:
    """What looks like noise within a statement is not."""
    project.rich()

    text = project.dump()

    assert f"AS $$ BEGIN {LIKE_NOISE} RETURN a; END; $$;\n" in text
    assert f"DEFAULT '{DOUBLED}'" in text
    assert "IS 'it''s; a \"comment\"\n-- of two lines\nSET x = 1;';" in text
    assert "größe\\" in text
    outside = text.replace(LIKE_NOISE, "").replace(DOUBLED, "")
    assert [word for word in ("\\restrict", "statement_timeout", "Owner:", "Dumped") if word in outside] == []


def test_dump_is_the_same_by_the_pg_dump_of_every_major(project: Dumps) -> None:
    """Those that the server accepts: which one a machine has does not show."""
    project.rich()
    majors = [major for major in clients.MAJORS if major >= major_of(project.world)]

    texts = {}
    for major in majors:
        project.use(major)
        texts[major] = project.dump()

    assert {major: text for major, text in texts.items() if text != texts[majors[0]]} == {}


def test_dump_shows_points_in_time_in_the_same_zone_everywhere(project: Dumps) -> None:
    """The bounds of partitions, whatever the zone of the server, the database, the login or the terminal is."""
    project.made(
        _001_p="CREATE TABLE p (at timestamptz) PARTITION BY RANGE (at); "
        "CREATE TABLE q PARTITION OF p FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2027-01-01 00:00+00');"
    )
    project.world.sql(f"ALTER DATABASE {project.world.dbname} SET timezone = 'America/New_York'")
    project.environ["PGTZ"] = "Asia/Tokyo"

    assert "FROM ('2026-01-01 00:00:00+00') TO ('2027-01-01 00:00:00+00')" in project.dump()


def test_dump_read_by_psql_into_an_empty_database_gives_the_same_dump(project: Dumps) -> None:
    """So it can stand for the files before it, which BASELINE then records."""
    project.rich()
    assert project.run("dump").returncode == 0
    before = project.file.read_text()

    with project.empty_database():
        if SCHEMA != "public":
            project.world.sql(f"DROP SCHEMA {SCHEMA}")
        env = clients.environment(project.world.server, ADMIN, ADMIN_PASSWORD, project.world.dbname)
        psql = clients.client("psql", max(major_of(project.world), min(clients.MAJORS)))
        clients.run(psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(project.file), env=env)
        adopted = project.run("migrate", "--json", BASELINE="001_rich")
        after = project.dump()

    assert json.loads(adopted.stdout)["adopted"] == ["001_rich"], adopted.stderr
    assert after == before


def test_dump_of_another_history_is_the_same_but_for_the_order_of_columns(project: Dumps) -> None:
    """Dropped columns, other files, rows, sequences that have counted: the schema is what is there."""
    project.made(
        _001_a="CREATE TABLE t (id serial PRIMARY KEY, a int, b varchar(9)); CREATE INDEX x ON t (a); "
        "CREATE INDEX y ON t (b); CREATE VIEW v AS SELECT a FROM t;"
    )
    straight = project.dump()
    for path in project.world.folder.iterdir():
        path.unlink()
    texts = []
    for first, second in (("a int", "b varchar(9)"), ("b varchar(9)", "a int")):
        with project.empty_database():
            project.made(
                _001_a="CREATE TABLE t (id serial PRIMARY KEY, gone int); CREATE VIEW v AS SELECT id AS a FROM t;",
                _002_b=f"DROP VIEW v; ALTER TABLE t ADD {first}; ALTER TABLE t DROP gone; ALTER TABLE t ADD {second};",
                _003_c="CREATE INDEX z ON t (b); CREATE INDEX x ON t (a); ALTER INDEX z RENAME TO y;",
                _004_d="CREATE VIEW v AS SELECT a FROM t; INSERT INTO t (a) VALUES (1), (2);",
            )
            texts.append(project.dump())

    assert body(texts[0]) == body(straight)
    assert texts[0].splitlines()[0] != straight.splitlines()[0]
    assert body(texts[1]) != body(straight)
    assert sorted(re.sub(",", "", texts[1]).splitlines()[1:]) == sorted(re.sub(",", "", straight).splitlines()[1:])


def test_dump_has_neither_our_tables_nor_rights_nor_passwords(project: Dumps) -> None:
    """Whatever our tables are called; users are made where there are secrets, and a mapping holds a password."""
    world = project.world
    with secrets_manager() as url:
        environ = {**AWS_ENVIRONMENT, **world.environ, "AWS_ENDPOINT_URL": url, "MIGRATIONS_TABLE": "mine"}
        world.write("001_a.sql", "CREATE TABLE a (i int);")
        migrated = project.run("migrate", DATABASE_URL=None, **environ)
        assert migrated.returncode == 0, migrated.stderr
        with world.superuser() as conn, conn.cursor() as cur:
            cur.execute("CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w")
            cur.execute(f"GRANT USAGE ON FOREIGN SERVER s TO {ADMIN}")
            cur.execute(f"CREATE USER MAPPING FOR {ADMIN} SERVER s OPTIONS (password 'hidden')")

        text = project.dump()

    assert f"CREATE TABLE {world.schema}.a (" in text
    assert ("CREATE SERVER s " in text) is (world.schema == "public")  # of another schema, only what is in it
    assert re.findall("mine|hidden|GRANT|app_rw|readwrite|OWNER", text) == []


def test_dump_of_a_schema_is_that_schema_and_the_extensions(world: World, tmp_path: Path) -> None:
    """DB_SCHEMA, or --schema, names it; others in the database are not its business."""
    project = Dumps(world, tmp_path)
    world.sql("CREATE SCHEMA IF NOT EXISTS shop; CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.secret (i int)")
    project.environ["DB_SCHEMA"] = "shop"
    project.made(_001_a='CREATE EXTENSION "uuid-ossp"; CREATE TABLE a (i uuid DEFAULT uuid_generate_v4());')
    del project.environ["DB_SCHEMA"]

    text = project.dump("--schema", "shop")

    assert "\n\nCREATE SCHEMA shop;\n\n" in text
    assert '\n\nCREATE EXTENSION IF NOT EXISTS "uuid-ossp" WITH SCHEMA shop;\n\n' in text
    assert "CREATE TABLE shop.a (" in text
    assert "elsewhere" not in text


# --- What is noise, without a database ------------------------------------------------------------------------------


def test_dump_is_without_the_settings_that_versions_differ_in() -> None:
    """Left are those that the statements need; a random word, and the stamps of columns, never stay."""
    text = """
        \\restrict a1b2
        SET transaction_timeout = 0; SET xmloption = content; SET row_security = off; SET something_new = on;
        SELECT pg_catalog.set_config('search_path', '', false);
        SET default_tablespace = '';
        SET default_table_access_method = heap;
        ALTER TABLE ONLY public.t ALTER COLUMN a SET (pg_attver=22183600);
        ALTER TABLE ONLY public.t ALTER COLUMN b SET (pg_attver=22183600, n_distinct=5);
        ALTER TABLE ONLY public.t ALTER COLUMN c SET (n_distinct=5, pg_attver=22183600);
        CREATE USER MAPPING FOR a SERVER s OPTIONS (password 'x'); COMMENT ON EXTENSION x IS 'of 1.2';
        COMMENT ON TABLE public.t IS 'pg_attver=1, 2';
        \\unrestrict a1b2"""

    assert [line.strip() for line in dump.normalised(text)] == [
        "SET xmloption = content;",
        "SELECT pg_catalog.set_config('search_path', '', false);",
        "ALTER TABLE ONLY public.t ALTER COLUMN b SET (n_distinct=5);",
        "ALTER TABLE ONLY public.t ALTER COLUMN c SET (n_distinct=5);",
        "COMMENT ON TABLE public.t IS 'pg_attver=1, 2';",
    ]


def test_dump_keeps_the_access_method_of_tables_where_there_are_several() -> None:
    """Only where all tables are of PostgreSQL's own kind does it say nothing."""
    text = "SET default_table_access_method = {};\n\nCREATE TABLE a ();\n\nSET default_table_access_method = heap;\n"

    assert "".join(dump.normalised(text.format("heap"))) == "CREATE TABLE a ();\n"
    assert "\n".join(dump.normalised(text.format("columnar"))) == text.format("columnar")


# --- What is refused ------------------------------------------------------------------------------------------------


def test_dump_of_a_database_that_is_not_as_the_folder_is_refused(project: Dumps) -> None:
    """Files that are pending, edited or gone are named, and the file stays as it was."""
    world = project.world
    project.made(_001_a="CREATE TABLE a (i int);", _002_b="CREATE TABLE b (i int);")
    assert project.run("dump").returncode == 0
    before = project.file.read_bytes()
    world.write("001_a.sql", "CREATE TABLE a (i bigint);")
    world.remove("002_b.sql")
    world.write("003_c.sql", "CREATE TABLE c (i int);")

    run = project.run("dump")

    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1] == (
        "this database does not have what the folder has (pending: 003_c; edited: 001_a; missing: 002_b). "
        "Migrate a new, empty database and dump that one."
    )
    assert project.file.read_bytes() == before


def test_dump_of_a_database_whose_repeatable_file_is_gone_is_made(project: Dumps) -> None:
    """What it made is dropped by another file, and its row stays forever."""
    project.made(_001_a="SELECT 1;", R__v="CREATE OR REPLACE VIEW v AS SELECT 1;")
    project.world.remove("R__v.sql")
    project.world.write("002_v.sql", "DROP VIEW v;")
    project.world.deploy()

    assert "CREATE VIEW" not in project.dump()


def test_dump_without_pg_dump_says_what_to_install(project: Dumps) -> None:
    """Of which version, and under which names it is found."""
    project.made(_001_a="SELECT 1;")

    run = project.run("dump", PATH=str(project.root))

    major = major_of(project.world)
    assert run.stderr.splitlines()[-1] == (
        "pg_dump, which reads the schema, is not in PATH. Nothing has been touched. "
        f"Install the client of PostgreSQL {major} (postgresql-client-{major} of Debian or apt.postgresql.org, or the "
        f"image postgres:{major}), and put its folder first into PATH."
    )
    assert not project.file.exists()


def test_dump_by_an_older_pg_dump_names_both_versions(project: Dumps) -> None:
    """The server's, which is needed, and the one that was found."""
    project.made(_001_a="SELECT 1;")
    needed = major_of(project.world)
    words = (
        f"pg_dump: error: aborting because of server version mismatch\npg_dump: detail: server version: {needed}.1; "
    )
    real = [major for major in clients.MAJORS if major < needed][-1:]

    for major in [*real, 9]:
        if major in real:
            project.use(major)
        else:  # its words, since no server that we support is older than a pg_dump that can be had
            project.play(f"echo '{words}pg_dump version: 9.1' >&2; exit 1")
        run = project.run("dump")

        said = run.stderr.splitlines()[-1]
        versions = rf"server version: {needed}\.\d+.*; pg_dump version: {major}\."
        assert re.match(f"pg_dump is older than the server: .*{versions}", said), said
        assert f". Install the client of PostgreSQL {needed} " in said
        assert not project.file.exists()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('"$REAL" "$@" | head -c 300; kill -9 $$', "pg_dump failed with exit code -9: it said nothing."),
        ('"$REAL" "$@" --no-such-option', "pg_dump failed with exit code 1: "),
        ('"$REAL" --version; exit 3', "pg_dump failed with exit code 3: it said nothing."),
    ],
)
def test_dump_that_fails_halfway_leaves_the_file_as_it_was(project: Dumps, script: str, says: str) -> None:
    """A killed pg_dump has written half a schema, which nobody gets to see."""
    project.made(_001_a="CREATE TABLE a (i int);")
    assert project.run("dump").returncode == 0
    before = project.file.read_bytes()
    project.made(_002_b="CREATE TABLE b (i int);")
    project.play(script)

    run = project.run("dump")

    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1].startswith(says)
    assert project.file.read_bytes() == before
    assert [path.name for path in project.db_setup.glob("schema*")] == ["schema.sql"]


def test_dump_waits_for_a_lock_no_longer_than_a_migration(project: Dumps) -> None:
    """LOCK_TIMEOUT counts: a table that somebody changes is not waited for without end."""
    project.made(_001_a="CREATE TABLE a (i int);")
    with project.world.connection() as conn, conn.cursor() as cur:
        cur.execute("BEGIN; LOCK TABLE a")
        run = project.run("dump", LOCK_TIMEOUT="300ms")

    assert run.returncode == 1
    assert "pg_dump failed with exit code 1: " in run.stderr
    assert "canceling statement due to" in run.stderr


def test_dump_shows_the_password_to_nobody(project: Dumps) -> None:
    """It is in the environment of pg_dump alone; where to connect, and over which TLS, are as for a run."""
    project.made(_001_a="SELECT 1;")
    project.play('for word in "$@" "PGSSLMODE=$PGSSLMODE"; do echo "$word"; done > "$HOME/words"; exec "$REAL" "$@"')

    run = project.run("dump", HOME=str(project.root))

    assert run.returncode == 0, run.stderr
    words = (project.root / "words").read_text()
    assert ADMIN_PASSWORD.partition("'")[2] not in words
    assert "password=" not in words
    (dsn,) = re.findall("--dbname=(.*)", words)
    told = dict(part.split("=") for part in dsn.split())
    assert (told["user"], told["dbname"], told["application_name"]) == (ADMIN, project.world.dbname, "db_setup")
    (mode,) = re.findall("PGSSLMODE=(.*)", words)
    assert project.environ["DATABASE_URL"].endswith(f"sslmode={mode}")


def test_dump_sends_a_token_only_to_a_server_that_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An admin that signs in by IAM has a new token for pg_dump, and Amazon's roots."""
    program = tmp_path / "pg_dump"
    program.write_text('#!/bin/sh\necho "$PGPASSWORD/$PGREQUIREAUTH"; for word in "$@"; do echo "$word"; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PGSSLMODE", "disable")
    endpoint = Endpoint("Shop.abc.eu-central-1.rds.amazonaws.com", 5432, "shop")
    setup = Setup(Config(""), Login(endpoint, "admin", "", lambda: "a token"), {}, [], None)

    secret, *words = dump.pg_dump(setup, "18.1").splitlines()

    assert secret == "a token/" + ("password" if libpq_version() >= 160000 else "")
    told = dict(part.split("=") for part in words[-1].replace("--dbname=", "").split())
    assert (told["host"], told["sslmode"]) == ("shop.abc.eu-central-1.rds.amazonaws.com", "verify-full")
    assert told["sslrootcert"].endswith("/rds_roots/eu-central-1.pem")
    assert "a token" not in " ".join(words)


def test_dump_over_another_file_or_as_a_migration_is_refused(project: Dumps) -> None:
    """Only a dump is replaced, also one that a link leads to; in migrations/ it would run."""
    project.made(_001_a="SELECT 1;")
    (project.root / "mine.sql").write_text("SELECT 2;")
    real = project.root / "real.sql"
    (project.root / "link.sql").symlink_to(real)

    over, as_migration, below, device, linked, again = (
        project.run("dump", "--output", name)
        for name in (
            *("mine.sql", "lambda/db_setup/migrations/002.sql", "lambda/db_setup/migrations/docs/schema.sql"),
            *("/dev/null", "link.sql", "link.sql"),
        )
    )

    refused = "exists, and is not a dump of db_setup: move it away. Nothing has been touched.\n"
    assert over.stderr == f"mine.sql {refused}"
    assert device.stderr == f"/dev/null {refused}"
    in_migrations = "is in migrations/, where files are run: write it elsewhere"
    assert as_migration.stderr.startswith(f"lambda/db_setup/migrations/002.sql {in_migrations}")
    assert below.stderr.startswith(f"lambda/db_setup/migrations/docs/schema.sql {in_migrations}")
    assert {run.returncode for run in (over, as_migration, below, device)} == {1}
    assert (linked.returncode, again.returncode) == (0, 0), linked.stderr + again.stderr
    assert (project.root / "link.sql").is_symlink()
    assert migration_files.is_dump(real)
    nowhere = project.run("dump", "-o", "no/such/folder.sql")
    assert nowhere.stderr.splitlines()[-1].endswith("no/such/folder.sql: No such file or directory.")


def test_dump_in_another_encoding_of_the_terminal_is_utf_8(project: Dumps) -> None:
    """What is compared with a file has its bytes."""
    project.made(_001_a="CREATE TABLE a (i int); COMMENT ON TABLE a IS 'größe';")
    assert project.run("dump").returncode == 0

    with project.start("dump", "-o", "-", text=False) as process:
        out, _ = process.communicate(timeout=60)
    report = json.loads(project.run("dump", "-o", "-", "--json", PYTHONIOENCODING="ascii", LC_ALL="C").stdout)

    assert "größe".encode() in project.file.read_bytes()
    assert [out, report["sql"].encode()] == [project.file.read_bytes()] * 2


def test_dump_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, and line ends of any kind, are written as they are."""
    (tmp_path / "schema.sql").mkdir()

    with pytest.raises(initializer.InitializerError, match=r"schema\.sql: "):
        dump.write(tmp_path / "schema.sql", "SELECT 1;")

    assert [path.name for path in tmp_path.iterdir()] == ["schema.sql"]
    shutil.rmtree(tmp_path / "schema.sql")
    dump.write(tmp_path / "schema.sql", "a\r\n\udcfc")
    assert (tmp_path / "schema.sql").read_bytes() == b"a\r\n\xfc"


# --- Next to the migrations -----------------------------------------------------------------------------------------


def test_run_says_nothing_of_a_dump_next_to_the_migrations(tmp_path: Path) -> None:
    """It is neither run nor taken for a file in the wrong place; a file of that name that is no dump is."""
    home = tmp_path / "migrations"
    home.mkdir()
    (home / "001_a.sql").write_text("SELECT 1;")
    (tmp_path / "initializer.py").touch()
    (tmp_path / "schema.sql").write_text(dump.first_line(["1:a"]) + "\n")
    (tmp_path / "002_dump.sql").write_text(dump.first_line(["1:a"]) + "\n")
    (tmp_path / "other.sql").write_text("SELECT 2;\n")
    problems: list[str] = []
    warnings: list[str] = []

    files = migration_files.load_migrations(home, problems, warnings)

    assert [file.name for file in files] == ["001_a"]
    assert problems == []
    assert warnings == ["other.sql is next to migrations/, not in it, and is not run: move it"]


def kept(folder: Path) -> Path:
    """A dump of the files in the folder, next to it."""
    files = migration_files.load_migrations(folder, [], [])
    path = folder.parent / "schema.sql"
    path.write_text(dump.first_line(map(migration_files.tokens_checksum, files)) + "\n\nSELECT 1;\n")
    return path


def stale() -> list[str]:
    return [each for each in terminal.check(None, with_squawk=False)["warnings"] if "[dump]" in each]


STALE = f"schema.sql:1: {terminal.STALE} [dump]"


def test_check_says_that_a_dump_is_stale(folder: Path) -> None:
    """After an edit or a new file; not after a comment or another name, and not where there is none."""
    write(folder, _001_a="CREATE TABLE a (i int);", _002_b="SELECT 1;")
    assert stale() == []
    path = kept(folder)
    assert stale() == []

    write(folder, _001_a="-- the first\nCREATE TABLE a (i int);")
    (folder / "002_b.sql").rename(folder / "003_c.sql")
    assert stale() == []
    write(folder, _001_a="CREATE TABLE a (i bigint);")
    assert stale() == [STALE]
    kept(folder)
    assert stale() == []
    write(folder, _004_d="SELECT 1;")
    assert stale() == [STALE]
    path.write_text("-- not a dump\n")
    assert stale() == []


def test_check_says_nothing_of_a_dump_where_a_file_cannot_be_read(folder: Path) -> None:
    """The problem itself is said."""
    write(folder, _001_a="SELECT 1;")
    kept(folder)
    (folder / "002_b.sql").write_bytes(b"SELECT '\xfc';")

    report = terminal.check(None, with_squawk=False)

    assert [problem.split(" ")[0] for problem in report["problems"]] == ["002_b.sql:1:9:"]
    assert report["warnings"] == []


def test_check_annotates_the_stale_dump_and_fails_if_it_is_strict(folder: Path) -> None:
    """At the place of the dump itself, which is not among the migrations."""
    write(folder, _001_a="SELECT 1;")
    kept(folder)
    write(folder, _001_a="SELECT 2;")

    runs = [run_check("--format", "github"), run_check("--format", "github", "--strict")]

    assert [run.returncode for run in runs] == [0, 1]
    assert f"\nwarnings    {STALE}\n" in runs[0].stdout
    place = "file=db_setup/schema.sql,line=1,title=dump"
    assert [annotations(run) for run in runs] == [
        [f"::{level} {place}::{terminal.STALE}"] for level in ("warning", "error")
    ]


def test_check_knows_a_dump_that_was_written(project: Dumps) -> None:
    """What the terminal writes is what it finds up to date."""
    project.rich()
    assert project.run("dump").returncode == 0

    fresh = project.run("check", "--strict", "--no-squawk")
    project.world.write("002_b.sql", "SELECT 1;")
    old = project.run("check", "--strict", "--no-squawk")

    assert (fresh.returncode, old.returncode) == (0, 1), fresh.stdout
    assert STALE in old.stdout


# --- What the page tells to do --------------------------------------------------------------------------------------


@pytest.mark.public  # which the page is about
def test_operating_commands_dump_compare_and_start_from_the_dump(project: Dumps) -> None:
    """The commands of the page, in a shell: dump, compare in CI, and a dry run on a database made from the dump."""
    world = project.world
    world.write("001_a.sql", "CREATE TABLE a (i int);")
    (project.programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (project.programs / "python3").chmod(0o755)
    (project.programs / "psql").symlink_to(clients.client("psql", max(major_of(world), min(clients.MAJORS))))
    make, compare, start = (block_with(OPERATING, words) for words in ("db_setup dump\n", "diff", "psql"))
    made = re.sub("postgresql://[^']*", project.environ["DATABASE_URL"], make)

    def shell(text: str, code: int = 0) -> str:
        words = ["sh", "-eu", "-c", text]
        done = subprocess.run(words, cwd=project.root, env=project.environ, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    assert shell(made).endswith("\nlambda/db_setup/schema.sql\n")
    assert "\n<" not in shell(compare)
    world.sql("ALTER TABLE a ADD j int")
    assert "> " in shell(compare, code=1)
    world.write("002_b.sql", "CREATE TABLE b (i int);")
    with project.empty_database():
        said = shell(start.replace("001_initial_schema", "001_a"))
    assert re.findall(r"^(tried|adopted) +(\w+)", said, re.MULTILINE) == [("tried", "002_b"), ("adopted", "001_a")]

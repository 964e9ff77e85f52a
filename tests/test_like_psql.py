"""Any SQL that psql runs, runs here, with the same result: schema, rows, and the file that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.compare import differences, run_side_by_side
from harness.database import SCHEMA
from harness.server import Server

REPOSITORY = Path(__file__).resolve().parent.parent
T = "CREATE TABLE t (a int PRIMARY KEY, b text);\n"

FOLDERS: dict[str, dict[str, str]] = {
    "what a file may look like": {
        "01.sql": "",
        "02.sql": "-- only a comment",
        "03.sql": ";",
        "04.sql": "/* a */\n;;\n",
        "05.sql": "\ufeff",
        "06.sql": T + "INSERT INTO t VALUES (1, 'x')",
        "07.sql": "INSERT INTO t VALUES (2) -- last",
        "08.sql": "CREATE TABLE crlf (a int);\r\n-- x\r\nINSERT INTO crlf\r\nVALUES (1);\r\n",
        "09.sql": "INSERT INTO t VALUES (5 % 3 + 2, '%s %(a)s %% %');\nSELECT 1 WHERE 'a' LIKE '%a%';",
        "10.sql": "\\set ON_ERROR_STOP on\nINSERT INTO t VALUES (5);",
        "11.sql": "\\set ON_ERROR_STOP\nINSERT INTO t VALUES (6);",
        "12.sql": "VACUUM -- with a comment",
    },
    "quotes": {
        "1.sql": T + r"""INSERT INTO t VALUES (1, 'it''s;'), (2, E'\';'), (3, $$;$$), (4, U&'\0041;'), (5, 'a\');""",
        "2.sql": "SET standard_conforming_strings = off;\nINSERT INTO t VALUES (6, 'it\\'s; \\\\');\n"
        + "INSERT INTO t VALUES (7);",
        "3.sql": "INSERT INTO t VALUES (8, 'a\\');\nINSERT INTO t VALUES (9, 'b');",
        "4.sql": "INSERT INTO t SELECT ((ARRAY[10,11])[1:2])[1]::int, (ARRAY['a','b'])[1:1]::text;",
        "5.sql": "CREATE TABLE texts AS SELECT b FROM t;\nALTER TABLE texts ADD n int DEFAULT 1 - -- ;\n 2;",
    },
    "bodies": {
        "1.sql": T + "CREATE RULE r AS ON DELETE TO t DO ALSO (INSERT INTO t VALUES (8); INSERT INTO t VALUES (9));",
        "2.sql": "DO $$ BEGIN FOR i IN 1..3 LOOP INSERT INTO t VALUES (i); END LOOP; END $$;",
        "3.sql": "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $a$ BEGIN RETURN 1; /* $$ */ END; $a$;",
        "4.sql": "CREATE TYPE mood AS ENUM ('sad');\nCREATE TABLE m (a mood);",
        "5.sql": "ALTER TYPE mood ADD VALUE 'happy';",
        "6.sql": "INSERT INTO m VALUES ('happy');",
        "7.sql": "CREATE TABLE p (a int PRIMARY KEY, b int REFERENCES p DEFERRABLE INITIALLY DEFERRED);\n"
        "INSERT INTO p VALUES (1, 2), (2, 1);",
    },
    "the session": {
        "1.sql": "CREATE SCHEMA s;\nSET search_path = s;\nCREATE TABLE here (a int);",
        "2.sql": "CREATE TABLE there (a int);",
        "3.sql": "SET TIME ZONE 'Asia/Tokyo';\nCREATE TABLE z AS SELECT current_setting('TimeZone') AS zone;",
        "4.sql": "CREATE TABLE y AS SELECT current_setting('search_path') AS path;",
        "5.sql": "CREATE TEMP TABLE tmp AS SELECT 1 AS a;\nCREATE TABLE u AS SELECT * FROM tmp;",
        "6.sql": "CREATE TEMP TABLE tmp AS SELECT 2 AS a;\nCREATE TABLE v AS SELECT * FROM tmp;",
    },
    "transactions": {
        "01.sql": "BEGIN;\n" + T + "COMMIT;\n",
        "02.sql": "START TRANSACTION ISOLATION LEVEL SERIALIZABLE;\nINSERT INTO t VALUES (1);\nEND;",
        "03.sql": "SAVEPOINT a; INSERT INTO t VALUES (2); ROLLBACK TO a; RELEASE a; INSERT INTO t VALUES (3);",
        "04.sql": "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE;\nINSERT INTO t VALUES (4);",
        "05.sql": "CREATE INDEX CONCURRENTLY i ON t (b);",
        "06.sql": "VACUUM t",
        "07.sql": "-- no-transaction\nCREATE INDEX CONCURRENTLY j ON t (b);\nINSERT INTO t VALUES (5);\n"
        "BEGIN;\nINSERT INTO t VALUES (6);\nCOMMIT;\n",
        "08.sql": "REINDEX INDEX CONCURRENTLY i",
        "09.sql": "DROP INDEX CONCURRENTLY i;",
    },
    "transactions of their own": {
        "1.sql": "BEGIN;\n" + T + "COMMIT;\nINSERT INTO t VALUES (1);\nBEGIN;\nINSERT INTO t VALUES (2);\nCOMMIT;",
        "2.sql": "INSERT INTO t VALUES (3);\nCOMMIT;\nCREATE INDEX CONCURRENTLY i ON t (b);",
        "3.sql": "INSERT INTO t VALUES (4);\nCOMMIT;\nBEGIN;\nINSERT INTO t VALUES (5);",
        "4.sql": "INSERT INTO t VALUES (6);\nCOMMIT;",
        "5.sql": "BEGIN;\nINSERT INTO t VALUES (7);",
        "6.sql": "INSERT INTO t VALUES (8);\nCOMMIT AND CHAIN;\nINSERT INTO t VALUES (9);",
        "7.sql": "INSERT INTO t VALUES (10) \\; INSERT INTO t VALUES (11);\n\\set unused 1\n\\unset unused\n",
        "8.sql": "BEGIN;\nINSERT INTO t VALUES (12) \\; INSERT INTO t VALUES (13);\n\\set unused 1\nCOMMIT;\nSELECT 1;",
    },
    "copy": {
        "1.sql": T + "COPY t FROM stdin;\n1\tx;y\n2\t\\N\n3\tit's\n\\.\nINSERT INTO t VALUES (4, '\\.');\n",
        "2.sql": "COPY t (a, b) FROM STDIN WITH (FORMAT csv, DELIMITER ';', NULL 'none');\n"
        '5;"a;\n""b"\n6;none\n\\.\n',
        "3.sql": "COPY t FROM STDIN DELIMITER '|' NULL '-';\n7|-\n8|--\n\\.\n-- done\nSELECT 1;",
        "4.sql": "COPY t FROM stdin;\r\n9\tcr\r\n\\.\r\n",
        "5.sql": "COPY t FROM stdin;\n\\.\nCOPY t FROM STDIN;\n10\tlast",
    },
    "names": {
        "01 with space.sql": "CREATE TABLE a (i int)",
        "02-[brackets](x).sql": "CREATE TABLE b (i int)",
        "03_größe.sql": "CREATE TABLE größe (i int)",
        "20260101120000_stamp.sql": "CREATE TABLE c (i int)",
        "00010-ten.sql": "CREATE TABLE d (i int)",
        "V2__two.sql": "CREATE TABLE e (i int)",
        "V10__ten.sql": "CREATE TABLE f (i int)",
        "4_a.sql": "CREATE TABLE g (i int)",
        "4_b.sql": "CREATE TABLE h (i int)",
    },
    "settings in a unit of a marked file": {
        "1.sql": T,
        "2.sql": f"-- no-transaction\nBEGIN;\nSET search_path = {SCHEMA};\nINSERT INTO t VALUES (1);\nCOMMIT;\n"
        "BEGIN;\nSET LOCAL standard_conforming_strings = off;\nINSERT INTO t VALUES (2, 'a\\\\b');\nCOMMIT;\n"
        "DELETE FROM t WHERE b = 'a\\b';\n",
    },
    "defaults of the database and of the role": {
        "1.sql": "CREATE SCHEMA s;\nDO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = s', "
        "current_database()); END $$;",
        "2.sql": "CREATE TABLE in_s (a int);",
        "3.sql": "ALTER ROLE CURRENT_USER SET TimeZone = 'Asia/Tokyo';",
        "4.sql": "CREATE TABLE z AS SELECT current_setting('TimeZone') AS zone;",
        "5.sql": "ALTER ROLE CURRENT_USER RESET ALL;",
    },
    "functions that were compiled for other types": {
        "0.sql": "CREATE TABLE m (v numeric(6,2));\nCREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "DECLARE x m.v%TYPE; BEGIN x := NEW.v * 1.0; NEW.v := x; RETURN NEW; END $$;\n"
        "CREATE TRIGGER tr BEFORE INSERT ON m FOR EACH ROW EXECUTE FUNCTION tf();",
        "1.sql": "INSERT INTO m VALUES (1.25);",
        "2.sql": "ALTER TABLE m ALTER v TYPE numeric(10,4);",
        "3.sql": "INSERT INTO m VALUES (1.2345);",
        "4.sql": "DELETE FROM m WHERE v = 1.2345;",
    },
    "functions without variables, which a session keeps": {
        "00.sql": "CREATE TABLE m (n int, v numeric(6,2), w text, d date);\n"
        "CREATE FUNCTION g(numeric) RETURNS text LANGUAGE sql AS $$ SELECT 'numeric' $$;\n"
        "CREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := NEW.v * 1.0; "
        "NEW.w := g(NEW.n) || k(NEW.n); NEW.d := '01/02/2024'; RETURN NEW; END $$;\n"
        "CREATE FUNCTION k(n int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..2 LOOP n := n + i; END LOOP; "
        "CASE n WHEN 1 THEN RETURN 'one'; ELSE RETURN g(n) || '01/02/2024'::date; END CASE; END $$;\n"
        "CREATE TRIGGER tr BEFORE INSERT ON m FOR EACH ROW EXECUTE FUNCTION tf();",
        "01.sql": "SET DateStyle = 'ISO, DMY';\nINSERT INTO m (n, v) VALUES (1, 1.25);",
        "02.sql": "INSERT INTO m (n, v) VALUES (2, 1.25);",
        "03.sql": "ALTER TABLE m ALTER v TYPE numeric(10,4), ADD x int DEFAULT 7;\n"
        "CREATE FUNCTION g(int) RETURNS text LANGUAGE sql AS $$ SELECT 'int' $$;",
        "04.sql": "INSERT INTO m (n, v) VALUES (4, 1.2345);",
        "05.sql": "ALTER TABLE m DROP COLUMN w, ALTER n TYPE bigint;\nALTER TABLE m ADD w varchar(60);\n"
        "CREATE FUNCTION k(bigint) RETURNS text LANGUAGE sql AS $$ SELECT 'bigint' $$;",
        "06.sql": "INSERT INTO m (n, v) VALUES (6, 1.2345);",
        "07.sql": "CREATE SCHEMA s;\nCREATE FUNCTION s.g(bigint) RETURNS text LANGUAGE sql AS $$ SELECT 's' $$;\n"
        f"SET search_path = s, {SCHEMA};\nINSERT INTO {SCHEMA}.m (n, v) VALUES (7, 1);",
        "08.sql": "INSERT INTO m (n, v) VALUES (8, 1);",
        "09.sql": "CREATE TEMP TABLE g (a int);\nDROP FUNCTION g(int);",
        "10.sql": "INSERT INTO m (n, v) VALUES (10, 1);",
        # The name of the table tells what is in the rows.
        "11.sql": "DO $$ BEGIN EXECUTE format('CREATE TABLE %I (a int)', "
        "(SELECT left(string_agg(concat(w, d, v), ' ' ORDER BY n DESC), 63) FROM m WHERE n > 6)); "
        "EXECUTE format('CREATE TABLE %I (a int)', (SELECT md5(string_agg(m::text, ' ' ORDER BY n)) FROM m)); END $$;",
    },
    "settings of one's own": {
        "1.sql": T + "SET LOCAL request.sub = 'x';",
        "2.sql": "INSERT INTO t VALUES (1, coalesce(current_setting('request.sub', true), 'none'));",
        "3.sql": "DELETE FROM t WHERE b = 'none';\nSELECT set_config('app.x', 'y', false);",
        "4.sql": "INSERT INTO t VALUES (2, coalesce(current_setting('app.x', true), 'none'));",
        "5.sql": "DELETE FROM t WHERE b = 'none';",
    },
    "large objects as pg_dump writes them": {
        "1.sql": T,
        "2.sql": "SELECT pg_catalog.lo_create('4711');\nBEGIN;\n\n"
        "SELECT pg_catalog.lo_open('4711', 131072);\n"
        "SELECT pg_catalog.lowrite(0, '\\x6162');\nSELECT pg_catalog.lo_close(0);\n\nCOMMIT;\n"
        "SELECT pg_catalog.lo_create('4712');\nBEGIN;\n\nSELECT pg_catalog.lo_open('4712', 131072);\n"
        "SELECT pg_catalog.lowrite(0, '\\x63');\nSELECT pg_catalog.lo_close(0);\n\nCOMMIT;\n",
        "3.sql": "INSERT INTO t SELECT length(lo_get(4711)), convert_from(lo_get(4711) || lo_get(4712), 'UTF8');\n"
        "DELETE FROM t WHERE b <> 'abc';\nSELECT lo_unlink(4711), lo_unlink(4712);",
    },
    "fails: the last value of a sequence that an earlier file has used": {
        "1.sql": "CREATE TABLE s (i serial);\nINSERT INTO s DEFAULT VALUES;",
        "2.sql": "SELECT lastval();",
    },
    "an advisory lock of an earlier file": {
        "1.sql": "SELECT pg_advisory_lock(42);",
        "2.sql": "CREATE TABLE locks AS SELECT count(*) FROM pg_locks "
        "WHERE locktype = 'advisory' AND objid = 42 AND pid = pg_backend_pid();",
    },
    "read-only by default in a marked file": {
        "1.sql": T,
        "2.sql": "-- no-transaction\nSET default_transaction_read_only = on;\nSELECT 1;\nBEGIN READ ONLY;\nSELECT 2;\n"
        "COMMIT;\nBEGIN READ WRITE;\nINSERT INTO t VALUES (1);\nCOMMIT;",
    },
    "backslashes in strings, off and on again": {
        "1.sql": T + "SET standard_conforming_strings = of;\nINSERT INTO t VALUES (1, 'it\\'s');\n"
        "SET standard_conforming_strings = on;\nINSERT INTO t VALUES (2, 'C:\\temp\\');\nINSERT INTO t VALUES (3);\n"
        "DELETE FROM t WHERE b = 'C:\\temp\\';",
    },
    "settings before BEGIN": {
        "1.sql": "SET client_min_messages = warning;\nBEGIN;\n" + T + "COMMIT AND NO CHAIN;\n",
        "2.sql": "PREPARE transaction AS SELECT 1;\nEXECUTE transaction;\nINSERT INTO t VALUES (1);",
        "3.sql": "SET NAMES DEFAULT;\nINSERT INTO t VALUES (2, 'ü');",
        "4.sql": "COPY t FROM stdin; /* rows */\n3\tx\n\\.\n",
    },
    "fails: a cursor that is read at the end": {
        "1.sql": T + "INSERT INTO t VALUES (1);",
        "2.sql": "INSERT INTO t VALUES (2);\nDECLARE c CURSOR WITH HOLD FOR SELECT 1 / (a - 1) FROM t;",
    },
    "fails: unknown column": {
        "1.sql": T,
        "2.sql": "INSERT INTO t VALUES (1);\nSELECT nope FROM t;",
        "3.sql": "DROP TABLE t;",
    },
    "fails: syntax": {"1.sql": T + "INSERT INTO t VALUES (1);\nSELEC 1;"},
    "fails: deferred constraint": {
        "1.sql": "CREATE TABLE p (a int PRIMARY KEY, b int REFERENCES p DEFERRABLE INITIALLY DEFERRED);\n",
        "2.sql": "INSERT INTO p VALUES (1, 2);\nSELECT 1;",
    },
    "fails: bad row of copy": {"1.sql": T, "2.sql": "COPY t FROM stdin;\n1\tx\nno number\ty\n\\.\n"},
    "fails: variable of psql": {"1.sql": T, "2.sql": "INSERT INTO t VALUES (:number);"},
    "fails: no-break space at the end": {"1.sql": T, "2.sql": "INSERT INTO t VALUES (1);\u00a0\n"},
    "fails: in the middle of a marked file": {
        "1.sql": T,
        "2.sql": "-- no-transaction\nINSERT INTO t VALUES (1);\nINSERT INTO t VALUES (1);\nINSERT INTO t VALUES (2);",
    },
}


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS.keys())
def test_folder_through_handler_and_psql_has_the_same_result(
    server: Server, tmp_path: Path, files: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """The handler leaves the same schema and rows as psql, and stops at the same file."""
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())

    ours, theirs = run_side_by_side(server, tmp_path)

    assert differences(ours, theirs) == []
    assert bool(ours.failed) == request.node.callspec.id.startswith("fails: ")


def test_folder_of_the_repository_through_handler_and_psql_has_the_same_result(server: Server) -> None:
    """The first migration that the project brings, too."""
    ours, theirs = run_side_by_side(server, REPOSITORY / "migrations")

    assert differences(ours, theirs) == []
    assert ours.applied == ["001_initial_schema"]

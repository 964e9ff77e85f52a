"""`python3 db_setup …`: the handler on a terminal, and what needs no database."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Optional
from urllib.parse import quote

import initializer
import migration_files
import pytest
from harness.database import SCHEMA
from harness.process import PROCESS_TIMEOUT_S, secrets_manager
from harness.world import ADMIN, ADMIN_PASSWORD, AWS_ENVIRONMENT, World
from report import Report

DB_SETUP = Path(initializer.__file__).parent
SLOW = "CREATE TABLE slow (i int); SELECT pg_sleep({});"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("terminal", DB_SETUP / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


terminal = load()


class Project:
    """A project with db_setup in it, whose migrations are those of a world, and a shell in its root."""

    def __init__(self, world: World, root: Path) -> None:
        self.world, self.root, self.db_setup = world, root, root / "lambda" / "db_setup"
        shutil.copytree(DB_SETUP, self.db_setup, ignore=shutil.ignore_patterns("migrations"))
        (self.db_setup / "migrations").symlink_to(world.folder)
        mode = "require" if world.server.tls else "prefer"
        where = f"{quote(world.server.host, '')}:{world.server.port}/{world.dbname}"
        url = f"postgresql://{ADMIN}:{quote(ADMIN_PASSWORD, '')}@{where}?sslmode={mode}"
        self.environ = {"PATH": os.environ["PATH"], "DATABASE_URL": url, "PYTHONDONTWRITEBYTECODE": "1"}
        if world.schema != "public":
            self.environ["DB_SCHEMA"] = world.schema

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "lambda/db_setup", *words]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen(command, cwd=self.root, env=self.environ, **options)

    def run(self, *words: str, **environ: Optional[str]) -> subprocess.CompletedProcess[str]:
        """What it prints and its exit code; no password is in it, and no stack."""
        self.environ = {k: v for k, v in {**self.environ, **environ}.items() if v is not None}
        with self.start(*words) as process:
            out, err = process.communicate(timeout=PROCESS_TIMEOUT_S)
        for shown in (out, err):
            assert ADMIN_PASSWORD not in shown
            assert quote(ADMIN_PASSWORD, "") not in shown
            assert "Traceback" not in shown
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture
def project(world: World, tmp_path: Path) -> Project:
    return Project(world, tmp_path)


# --- The handler's actions ------------------------------------------------------------------------------------------


def test_migrate_with_a_database_url_applies_and_then_has_nothing_to_do(project: Project) -> None:
    """The table says what was applied; the log is on the other stream, and twice nothing is said."""
    project.world.write("001_a.sql", "CREATE TABLE a (i int);")

    first, second = project.run("migrate"), project.run("migrate")

    assert first.returncode == second.returncode == 0, first.stderr
    assert re.search(r"^applied     001_a  \d+ ms$", first.stdout, re.MULTILINE)
    assert re.search(r"^done in \d+ ms$", first.stdout, re.MULTILINE)
    assert re.search(r"^ +\d+\.\d s  applied migration=001_a duration_ms=\d+$", first.stderr, re.MULTILINE)
    assert "done applied=" not in first.stderr
    assert second.stdout.splitlines()[1:] == ["nothing to do"]
    assert project.world.tables() == ["a"]


@pytest.mark.slow
def test_status_is_a_table_of_what_is_not_empty(project: Project) -> None:
    """An empty database has something to say, too."""
    empty = project.run("status")
    project.world.write("001_a.sql", "CREATE TABLE a (i int);")
    project.run("migrate")
    project.world.write("002_b.sql", "SELECT 1;")

    status = project.run("status")

    where = rf"status: {ADMIN}@[^ ]+/{project.world.dbname}, PostgreSQL \d[^ ]*( .*)?"
    assert re.fullmatch(rf"{where}\nnothing applied, nothing pending\n", empty.stdout), empty.stdout
    table = r"\napplied     001_a  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\npending     002_b\n1 applied, 1 pending\n"
    assert re.fullmatch(where + table, status.stdout), status.stdout


def test_json_is_the_report_and_nothing_else(project: Project) -> None:
    """`--json` prints what the handler returns, for other programs."""
    project.world.write("001_a.sql", "CREATE TABLE a (i int);")

    run = project.run("migrate", "--json")

    report = json.loads(run.stdout)
    assert (report["status"], report["action"], report["pending"], report["users"]) == ("ok", "migrate", [], {})
    assert [entry["name"] for entry in report["applied"]] == ["001_a"]


@pytest.mark.parametrize("words", [["migrate"], ["migrate", "--json"]])
def test_failure_is_a_message_and_an_exit_code(project: Project, words: list[str]) -> None:
    """The message begins with file:line:column and is said once; no report pretends to be one."""
    project.world.write("001_a.sql", "SELECT\n  oops;")

    run = project.run(*words)

    assert (run.returncode, run.stdout) == (1, "")
    assert '\n001_a.sql:2:3: column "oops" does not exist' in run.stderr
    assert run.stderr.count("does not exist") == 1


def test_unexpected_error_names_its_kind_and_stack(project: Project) -> None:
    """A mistake of ours is called one, with the places that lead to it, and without its text, which may be secret."""
    with (project.db_setup / "initializer.py").open("a") as code:
        code.write("\n\ndef run(*_):\n    raise RuntimeError('a mistake')\n")

    with project.start("status") as process:
        _, err = process.communicate(timeout=PROCESS_TIMEOUT_S)

    assert process.returncode == 1
    assert re.search(r"unexpected error kind=RuntimeError stack=initializer\.py:\d+,initializer\.py:\d+", err)
    assert re.search(r"^unexpected RuntimeError at initializer\.py:\d+ of db_setup ", err, re.MULTILINE)
    assert "a mistake" not in err


@pytest.mark.slow
def test_secrets_make_users_as_in_lambda(project: Project) -> None:
    """With the variables of the secrets the terminal does all that the Lambda does, rotation included."""
    world = project.world
    with secrets_manager() as url:
        environ = {**AWS_ENVIRONMENT, **world.environ, "AWS_ENDPOINT_URL": url}
        migrated = project.run("migrate", DATABASE_URL=None, **environ)
        rotated = project.run("rotate")

    assert (migrated.returncode, rotated.returncode) == (0, 0), migrated.stderr + rotated.stderr
    assert "\nusers       app_rw  created\n            app_tc  created\n" in migrated.stdout
    assert world.secret("user")["username"] == "app_rw_clone"
    for secret in ("user", "creator"):
        password = world.secret(secret)["password"]
        assert password not in migrated.stdout + migrated.stderr + rotated.stdout + rotated.stderr


def test_boto3_is_needed_for_secrets_alone(project: Project) -> None:
    """With DATABASE_URL nothing of AWS has to be installed; with secrets its absence is said."""
    (project.root / "boto3.py").write_text("raise ImportError('not installed')")

    by_url = project.run("migrate", PYTHONPATH=str(project.root))
    by_secret = project.run("migrate", DATABASE_URL=None, DB_SECRET_NAME="admin")

    assert by_url.returncode == 0, by_url.stderr
    assert (by_secret.returncode, by_secret.stdout) == (1, "")
    assert by_secret.stderr.startswith("boto3 is missing, which reads secrets: python3 -m pip install boto3, or")


def test_boto3_that_is_installed_is_not_imported_where_no_secret_is_read(project: Project) -> None:
    """To import it takes a third of a short run, which a command for the files or with DATABASE_URL does not pay."""
    (project.root / "boto3.py").write_text("raise SystemExit('imported')")

    by_url = project.run("migrate", PYTHONPATH=str(project.root))
    checked = project.run("check", DATABASE_URL=None)
    by_secret = project.run("migrate", DB_SECRET_NAME="admin")

    assert (by_url.returncode, checked.returncode) == (0, 0), by_url.stderr + checked.stderr
    assert (by_secret.returncode, by_secret.stderr) == (1, "imported\n")


def test_psycopg2_that_is_missing_is_said(project: Project) -> None:
    """The one thing that has to be installed is named."""
    (project.root / "psycopg2.py").write_text("raise ModuleNotFoundError('no psycopg2')")

    run = project.run("check", PYTHONPATH=str(project.root))

    assert (run.returncode, run.stderr) == (1, "no psycopg2: python3 -m pip install psycopg2-binary\n")


def test_rotate_with_a_database_url_is_refused(project: Project) -> None:
    """With DATABASE_URL there is no secret that could be rotated."""
    run = project.run("rotate")

    assert run.returncode == 1
    assert run.stderr.startswith("rotate writes to secrets: unset DATABASE_URL")


@pytest.mark.parametrize("words", [[], ["migrat"], ["migrate", "now"], ["new"], ["new", " "]])
def test_wrong_word_gets_the_usage(project: Project, words: list[str]) -> None:
    """Nothing is guessed, and nothing done."""
    run = project.run(*words)

    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("usage: python3 db_setup")
    assert project.world.tables() == list(project.world.folder.iterdir()) == []


def test_words_are_the_handlers_actions_and_three_more() -> None:
    """What the handler learns, the terminal offers."""
    text = terminal.parser().format_help()

    assert re.findall(r"^    (\w+)\b", text, re.MULTILINE) == [*initializer.ACTIONS, "new", "check", "dump"]


def test_readme_names_the_words() -> None:
    """Its table has every word, and no other."""
    page = (DB_SETUP.parent / "docs" / "operating.md").read_text()
    table = page.split("| `python3 lambda/db_setup …` |")[1].split("\n\n")[0]

    named = [word for row in table.splitlines()[2:] for word in re.findall(r"`(\w+)", row.split("|")[1])]

    assert named == [*terminal.ABOUT, "new", "check", "dump"]


@pytest.mark.parametrize(
    ("cwd", "words"),
    [("lambda", ["db_setup"]), ("lambda", ["-m", "db_setup"]), ("elsewhere", ["../lambda/db_setup/__main__.py"])],
)
def test_terminal_works_from_any_directory(project: Project, cwd: str, words: list[str]) -> None:
    """The folder finds itself."""
    (project.root / "elsewhere").mkdir()
    command = [sys.executable, *words, "status", "--json"]

    run = subprocess.run(
        command, cwd=project.root / cwd, env=project.environ, capture_output=True, check=False, timeout=60
    )

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["pending"] == []


# --- Interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_interrupted_run_ends_immediately_and_leaves_nothing_half_done(
    project: Project, number: signal.Signals, code: int
) -> None:
    """Ctrl-C, and the signal that stops a container, end a statement that runs; the next run goes on."""
    project.world.write("001_slow.sql", SLOW.format(4))
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)%' AND pid <> pg_backend_pid()"
    with project.start("migrate") as process:
        wait_until(lambda: project.world.sql(sleeping) == [(1,)])
        process.send_signal(number)
        out, err = process.communicate(timeout=2)

    assert (process.returncode, out) == (code, "")
    assert err.splitlines()[-1] == (
        "Interrupted. A file that was not finished is rolled back, or applied as a whole; of one marked "
        "-- no-transaction the finished steps stay applied, and the next run continues after them. "
        "Run it again to continue."
    )
    assert "Traceback" not in err
    wait_until(lambda: project.world.sql(sleeping) == [(0,)])
    if (
        int(project.world.sql("SHOW server_version_num")[0][0]) >= 140000
    ):  # before, a server notices only when the file has run
        assert project.world.tables() == []
    assert project.run("migrate").returncode == 0
    assert (project.world.applied(), project.world.tables()) == (["001_slow"], ["slow"])


@pytest.mark.slow
def test_interrupted_marked_file_keeps_its_finished_steps(project: Project) -> None:
    """As the message says: what is done is not done again."""
    project.world.write("001_slow.sql", "-- no-transaction\nCREATE TABLE a (i int);\nSELECT pg_sleep(3);")
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3)%' AND pid <> pg_backend_pid()"
    with project.start("migrate") as process:
        wait_until(lambda: project.world.sql(sleeping) == [(1,)])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=2)

    left = project.world.tables()
    project.run("migrate")

    assert (left, project.world.applied()) == (["a"], ["001_slow"])


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# --- On a terminal --------------------------------------------------------------------------------------------------


def on_a_terminal(project: Project, *words: str, exit_code: int = 0, **environ: str) -> str:
    """What a terminal gets to see."""
    project.environ.update(TERM="xterm", **environ)
    ours, theirs = pty.openpty()
    seen = b""
    with project.start(*words, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        while chunk := read(ours):
            seen += chunk
        assert process.wait(PROCESS_TIMEOUT_S) == exit_code, seen
    os.close(ours)
    return seen.decode()


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # what Linux says at the end of a pseudo-terminal
        return b""


def test_terminal_has_colours_and_a_live_line(project: Project) -> None:
    """During long work the last line tells the time; it is wiped before another line is written."""
    project.world.write("001_slow.sql", SLOW.format(2))

    seen = on_a_terminal(project, "migrate")

    assert "\033[32mapplied     \033[0m001_slow" in seen
    assert re.search(r"\r +1 s  … (starting|tracking table)[^\r\n]*\033\[K", seen)
    shown = [line.split("\033[K")[-1] for line in seen.split("\r\n")]
    assert not [line for line in shown if "…" in line]
    assert max(len(part) for part in seen.split("\r") if "…" in part) <= 80 + len("\033[K")


@pytest.mark.slow
def test_terminal_without_colours_has_none(project: Project) -> None:
    """NO_COLOR is respected, and a pipe gets neither colours nor a live line."""
    project.world.write("001_slow.sql", SLOW.format(1))

    piped = project.run("migrate")
    seen = on_a_terminal(project, "status", NO_COLOR="1")

    assert "\033" not in piped.stdout + piped.stderr
    assert re.findall("\033[^K]*m", seen) == []
    assert "applied     001_slow" in seen


# --- The table ------------------------------------------------------------------------------------------------------


def lines(report: dict[str, Any]) -> list[str]:
    return list(terminal.table({**Report("test").as_json(), "database": "a@b:1/c", **report}, io.StringIO()))


def test_table_of_a_dry_run_says_who_would_be_kept_waiting() -> None:
    """Locks are said in words, each with its table, and what could not be tried is named."""
    lock = {"table": "public.users", "lock": "ACCESS EXCLUSIVE", "blocks": "reading and writing"}
    other = {"table": "public.orders", "lock": "SHARE", "blocks": "writing"}
    light = {"table": "public.a", "lock": "ACCESS SHARE", "blocks": "nothing"}
    tried = [
        {"name": "004_x", "duration_ms": 12, "locks": [lock, other], "untried": []},
        {"name": "005_long", "duration_ms": 1, "locks": [light], "untried": []},
        {"name": "006_i", "duration_ms": 0, "locks": [], "untried": ["line 3: outside a transaction"]},
    ]

    assert lines({"action": "dry_run", "pending": ["004_x", "005_long", "006_i"], "tried": tried}) == [
        "dry_run: a@b:1/c",
        "tried       004_x     12 ms  blocks reading and writing of public.users",
        "                             blocks writing of public.orders",
        "            005_long  1 ms   blocks nobody",
        "            006_i     0 ms   not tried: line 3: outside a transaction",
        "nothing has been changed",
    ]


def test_dry_run_on_the_terminal_says_what_it_finds(project: Project) -> None:
    """In the table, as Markdown, and both in the JSON; a failure too, with its exit code."""
    project.world.write("001_a.sql", "CREATE TABLE a (i int, t text);")
    project.run("migrate")
    project.world.write("002_b.sql", "ALTER TABLE a DROP t;")

    table, text, both = (project.run("dry_run", *more) for more in ([], ["--markdown"], ["--json", "--markdown"]))

    where = f"{SCHEMA}.a"
    assert re.search(rf"^tried +002_b  \d+ ms  loses column {where}\.t$", table.stdout, re.MULTILINE)
    assert re.search(rf"^ +blocks reading and writing of {where} for \d+ ms$", table.stdout, re.MULTILINE)
    assert table.stdout.endswith("\nloses data; nothing has been changed\n")
    assert text.stdout.startswith("### Dry run of the migrations\n\nFiles: 1. Level: **loses data**.")
    assert json.loads(both.stdout)["markdown"].splitlines()[:3] == text.stdout.splitlines()[:3]
    assert table.returncode == text.returncode == both.returncode == 0

    project.world.write("002_b.sql", "SELECT nope;")
    text, both = (project.run("dry_run", *more) for more in (["--markdown"], ["--json", "--markdown"]))
    assert (text.returncode, both.returncode) == (1, 1)
    assert text.stdout.startswith("### Dry run of the migrations\n\n**failed**\n\n```\n002_b.sql:1:8: ")
    assert json.loads(both.stdout) == {"status": "failed", "action": "dry_run", "markdown": text.stdout}
    assert text.stderr.splitlines()[-3:] == text.stdout.splitlines()[-4:-1]


def test_table_of_a_status_shows_each_kind_of_difference() -> None:
    """Everything the report holds can be seen."""
    report = {
        "action": "status",
        "applied": [
            {"name": "001_a", "applied_at": "2026-01-02 03:04:05.678"},
            {"name": "3", "applied_at": "2026-01-02 03:04:05"},
        ],
        **{"adopted": ["001_a"], "pending": ["4"], "edited": ["5"], "renumbered": [{"name": "6", "was": "2"}]},
        **{"missing": ["7"], "duplicates": [["8_a", "8_b"]], "unfinished": ["9"], "users": {"app_rw": "works"}},
        **{"running": ["another run"], "warnings": ["a\nwarning"], "server_version": "17.2"},
        "drift": {"added": ["table app.x", "table app.y"], "changed": [], "dropped": ["index app.i on app.z"]},
    }

    assert lines(report) == [
        "status: a@b:1/c, PostgreSQL 17.2",
        "applied     001_a  2026-01-02 03:04:05",
        "            3      2026-01-02 03:04:05",
        "adopted     001_a",
        "pending     4",
        "edited      5",
        "renumbered  6  was 2",
        "missing     7",
        "duplicates  8_a, 8_b",
        "unfinished  9",
        "drift       added    table app.x",
        "            added    table app.y",
        "            dropped  index app.i on app.z",
        "running     another run",
        "users       app_rw  works",
        "warnings    a warning",
        "2 applied, 1 pending, 1 edited, 1 unfinished",
    ]


def test_table_of_a_status_says_why_drift_is_unknown() -> None:
    """Unless nothing is applied, of which nothing can have changed."""
    for applied, shown in (([{"name": "1", "applied_at": "2026-01-02 03:04:05"}], 1), ([], 0)):
        report = {"action": "status", "applied": applied, "drift": None, "drift_unknown": "no reason"}

        assert lines(report).count("drift       unknown  no reason") == shown


def test_table_of_a_run_that_only_repaired_a_login_names_it() -> None:
    """A login that was made is work, too."""
    report = {"action": "migrate", "users": {"app_rw": "created"}, "duration_ms": 7}

    assert lines(report)[-2:] == ["users       app_rw  created", "done in 7 ms"]


# --- DATABASE_URL ---------------------------------------------------------------------------------------------------


def test_database_url_gaps_are_filled_by_libpqs_variables() -> None:
    """What the URL does not say, PGHOST and the others do; TLS settings are handed on."""
    environ = {
        "DATABASE_URL": "postgres:///?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=3",
        **{"PGHOST": "db", "PGUSER": "me", "PGDATABASE": "shop", "PGPASSWORD": "hunter2", "PGSSLMODE": "prefer"},
    }

    login = terminal.login_from_url(environ)

    assert (str(login), login.password) == ("me@db:5432/shop", "hunter2")
    assert (environ["PGSSLMODE"], environ["PGSSLROOTCERT"]) == ("verify-full", "/ca.pem")
    assert environ["PGCONNECT_TIMEOUT"] == "3"
    assert terminal.login_from_url({}) is None


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "has no host (or set PGHOST), no user (or set PGUSER), no dbname (or set PGDATABASE)"),
        ("postgresql://me:hunter2@/shop", "has no host (or set PGHOST): write postgresql://"),
        ("me:hunter2@db/shop", "cannot be read"),
        ("mysql://me:hunter2@db/shop", "cannot be read"),
        ("postgresql://me:hunter2%@db/shop", "cannot be read"),
        ("postgresql://me:hunter2@db/shop?schema=hunter2", "cannot be read"),
        ("postgresql://me:hunter2@db/shop?options=-chunter2", "options is not supported, only sslmode, sslrootcert"),
        ("postgresql://me:1/hunter2@db/shop", "does not name one host and a port"),
        ("postgresql://me:1@hunter2@db/shop", "does not name one host and a port"),
        ("postgresql://me:hunter2@db:99999/shop", "does not name one host and a port"),
        ("postgresql://me:hunter2@db1,db2/shop", "does not name one host and a port"),
    ],
)
def test_database_url_that_is_wrong_is_refused_without_showing_any_of_it(url: str, says: str) -> None:
    """The place of a mistake may be a piece of the password."""
    with pytest.raises(initializer.ConfigError) as caught:
        terminal.login_from_url({"DATABASE_URL": url})

    assert str(caught.value).startswith(f"DATABASE_URL {says}" if " is not" not in says else f"DATABASE_URL: {says}")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["DB_SECRET_NAME", "DB_HOST", "DB_PORT", "DB_NAME"])
def test_database_url_and_another_place_to_connect_to_are_ambiguous(name: str) -> None:
    """The output says which database it was."""
    with pytest.raises(initializer.ConfigError, match=f"^DATABASE_URL and {name} both say where to connect: unset"):
        terminal.login_from_url({"DATABASE_URL": "postgresql://a@b/c", name: "x"})


def test_no_place_to_connect_to_is_said(project: Project) -> None:
    """Both ways are named."""
    run = project.run("status", DATABASE_URL=None)

    assert (run.returncode, run.stderr) == (
        1,
        "where is the database? Set DATABASE_URL, or DB_SECRET_NAME as in Lambda. Nothing has been touched.\n",
    )


def test_database_url_with_a_wrong_password_shows_neither(project: Project) -> None:
    """The server's refusal names the login, and no password."""
    wrong = project.environ["DATABASE_URL"].replace(quote(ADMIN_PASSWORD, ""), "hunter2")

    run = project.run("status", DATABASE_URL=wrong)

    assert run.returncode == 1
    assert f"cannot connect to {ADMIN}@" in run.stderr
    assert "hunter2" not in run.stderr


@pytest.mark.parametrize("words", [["status"], ["migrate"]])
def test_database_url_with_a_wrong_port_says_so_immediately(project: Project, words: list[str]) -> None:
    """A person who waits is told, and can correct it: nobody listens, and waiting cannot help."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"postgresql://u:hunter2@127.0.0.1:{port}/shop"

    said = on_a_terminal(project, *words, exit_code=1, DATABASE_URL=url)

    assert f"cannot connect to u@127.0.0.1:{port}/shop: nothing listens there: check that the database runs" in said
    assert "Nothing has been changed." in said
    assert "waiting for the database" not in said


def test_status_of_a_host_that_does_not_exist_says_so_immediately_also_in_a_pipeline(project: Project) -> None:
    """`status` only reads, so it does not wait for a host that does not exist."""
    run = project.run("status", DATABASE_URL="postgresql://u:hunter2@db.invalid:5432/shop")

    assert run.returncode == 1
    assert re.search(
        r"^cannot connect to u@db\.invalid:5432/shop: DNS: check host in the secret, or DB_HOST \(or DATABASE_URL\), "
        r"and the VPC's DNS \(.*\)\. Nothing has been changed\.$",
        run.stderr,
        re.MULTILINE,
    )
    assert "waiting for the database" not in run.stderr


# --- new ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of migrations in a working directory, with nothing of CI around it."""
    found = tmp_path / "db_setup" / "migrations"
    found.mkdir(parents=True)
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", found)
    for name in ("GITHUB_BASE_REF", "GITHUB_ACTIONS", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return found


@pytest.mark.parametrize(
    ("there", "beginning"),
    [
        ([], "001_"),
        (["9_a", "10_b"], "11_"),
        (["2024-01-15-120000_a"], r"\d{4}-\d\d-\d\d-\d{6}_"),
        (["V2_7_0__a"], "V2_7_1__"),
    ],
)
def test_new_file_is_numbered_like_the_others(folder: Path, there: list[str], beginning: str) -> None:
    """The folder's own way of counting goes on, and check has nothing against it."""
    for name in there:
        (folder / f"{name}.sql").write_text("SELECT 1;")

    path = terminal.write_new("more")

    assert re.fullmatch(f"{beginning}more.sql", path.name)
    path.write_text("SELECT 2;")
    assert terminal.check(None, False)["problems"] == []


@pytest.mark.parametrize(
    ("title", "name"),
    [("Add orders table", "add_orders_table"), ("a/../b.SQL", "a_b"), ("Größe  é!", "größe_é"), ("-- 2nd", "2nd")],
)
def test_new_name_is_made_of_letters_digits_and_underscores(title: str, name: str) -> None:
    """Whatever is asked for, it is one file in the folder."""
    assert terminal.slug(title) == name


def test_new_file_is_one_that_check_accepts(project: Project) -> None:
    """Its path is printed, relative to the working directory; its comment marks nothing."""
    project.world.write("0041_a.sql", "SELECT 1;")
    (project.root / "lambda" / "db_setup" / "migrations").unlink()
    shutil.move(str(project.world.folder), project.root / "lambda" / "db_setup")

    new = project.run("new", "no-transaction")
    check = project.run("check", DATABASE_URL=None)

    path = project.root / new.stdout.strip()
    assert (new.returncode, new.stdout) == (0, "lambda/db_setup/migrations/0042_no_transaction.sql\n")
    assert path.read_text().startswith("-- Runs once, as one transaction.")
    assert not migration_files.load_script(migration_files.Migration(path, "x"), ours=()).no_transaction
    assert check.returncode == 0, check.stdout


def test_new_takes_its_words_unquoted(project: Project) -> None:
    """As they are typed, they are one title."""
    assert project.run("new", "add", "orders", "table").stdout.endswith("/001_add_orders_table.sql\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("SELECT 1;\nSELECT * FROM t WHERE a = :name;", "001_a.sql:2:27: :name is a variable of psql: write the value"),
        ("SELECT :'name';", "001_a.sql:1:8: :'name' is a variable of psql"),
        ('SELECT a[1] FROM t WHERE b=:"name";', '001_a.sql:1:28: :"name" is a variable of psql'),
        ("SELECT\u00a01;", "001_a.sql:1:7: this is not a space but U+00A0: delete it"),
        ("CREATE TABLE t (a int,\u00a0b int);", "001_a.sql:1:23: this is not a space but U+00A0: delete it"),
        (
            "SELECT 1;\nALTER TYPE mood ADD VALUE 'ok';\nINSERT INTO m VALUES ('ok');",
            "001_a.sql:2: 'ok' is added to mood and used in the same transaction",
        ),
        (
            f"ALTER TYPE {SCHEMA}.mood ADD VALUE IF NOT EXISTS 'ok' AFTER 'a';\n"
            "ALTER TABLE m ALTER a SET DEFAULT 'ok';",
            "001_a.sql:1: 'ok' is added to mood and used in the same transaction",
        ),
    ],
)
@pytest.mark.parametrize("parser", [terminal.pglast, None], ids=["with pglast", "without"])
def test_check_finds_what_can_be_seen_in_the_text_with_and_without_a_parser(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str, parser: Any
) -> None:
    """Once, without a database, and before anything is deployed; pglast need not be there."""
    monkeypatch.setattr(terminal, "pglast", parser)
    (folder / "001_a.sql").write_text(text)

    (found,) = terminal.check(None, False)["problems"]

    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("SELECT 1;\nCREATE TABEL t (i int);", '001_a.sql:2:8: syntax error at or near "TABEL"'),
    ],
)
def test_check_finds_syntax_errors(folder: Path, text: str, problem: str) -> None:
    """With PostgreSQL's own parser."""
    (folder / "001_a.sql").write_text(text)

    problems = terminal.check(None, False)["problems"]

    assert problems
    assert problems[0].startswith(problem)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a[1:n], '1'::text, ':x', \":y\" FROM t; -- :z\nDO $$ BEGIN NULL; /* :v */ END $$;",
        "SELECT '\u00a0'; -- \u00a0",
        "SELECT a[ :n], a[b[1]:c], f(a := 1), x::int FROM t;",
        "SELECT json_object('a':b, c:d);",
        "CREATE TYPE mood AS ENUM ('a');\nALTER TYPE mood ADD VALUE 'ok';\nSELECT 'ok';",
        "ALTER TYPE mood ADD VALUE 'ok';\nALTER TYPE mood ADD VALUE 'no' BEFORE 'ok';\nSELECT 1; -- 'ok'",
        "ALTER TYPE m ADD VALUE 'ok';\nCREATE FUNCTION f() RETURNS m LANGUAGE plpgsql AS $$ BEGIN RETURN 'ok'; END $$;",
        "-- no-transaction\nALTER TYPE mood ADD VALUE 'ok';\nINSERT INTO m VALUES ('ok');",
        "ALTER TYPE mood ADD VALUE 'ok';\nCOMMIT;\nINSERT INTO m VALUES ('ok');",
    ],
)
def test_check_accepts_what_only_looks_like_it(folder: Path, text: str) -> None:
    """Strings, comments, bodies, slices and casts are none of it."""
    (folder / "001_a.sql").write_text(text)

    assert terminal.check(None, False)["problems"] == []


def test_check_leaves_applied_files_alone_that_have_worked(branch: Path) -> None:
    """What only may be a mistake is none in a file that cannot be changed any more."""
    text = "ALTER TYPE mood ADD VALUE 'ok';\nINSERT INTO words VALUES ('ok'); SELECT 1 AS a\u00a0b;"
    (branch / "004_d.sql").write_text(text)
    new = terminal.check("main", False)["problems"]
    commit()
    git("branch", "-f", "main")

    applied = terminal.check("main", False)

    assert [problem.partition(": ")[0] for problem in new] == ["004_d.sql:2:47", "004_d.sql:1"]
    assert applied["problems"] == []


def test_check_accepts_the_example_that_comes_with_the_folder(folder: Path) -> None:
    """As the recipe for CI runs it, on the first day."""
    example = Path(terminal.__file__).parent / "migrations" / "001_initial_schema.sql"
    (folder / example.name).write_text(example.read_text())

    report = terminal.check(None, with_squawk=False)

    assert (report["new"], report["problems"]) == (["001_initial_schema"], [])


def test_check_ends_with_what_it_has_not_looked_at(folder: Path) -> None:
    """The last line says what `check` has not looked at."""
    (folder / "001_a.sql").write_text("SELECT 1;")

    last = list(terminal.table(terminal.check(None, False), io.StringIO()))[-1]

    assert last.startswith("ok, problems: 0; not checked: what only the server knows")


def test_check_sees_an_edit_of_the_file_that_a_link_leads_to(branch: Path) -> None:
    """The link is the same, what would run is not."""
    shared = branch.parent / "shared.sql"
    shared.write_text("SELECT 4;")
    (branch / "004_d.sql").symlink_to("../shared.sql")
    commit()
    git("branch", "-f", "main")
    shared.write_text("SELECT 5;")

    assert terminal.check("main", False)["problems"] == [f"004_d.sql was edited. {terminal.RESTORE}"]


def test_check_says_that_a_link_leads_out_of_the_folder(branch: Path) -> None:
    """The function is uploaded without what is outside, so that the deployment would be refused."""
    shared = branch.parent.parent / "shared"
    shared.mkdir()
    (shared / "a.sql").write_text("SELECT 4;\n")
    (branch.parent / "inside").write_text("SELECT 5;\n")
    (branch / "004_d.sql").symlink_to("../../shared/a.sql")
    (branch / "005_e.sql").symlink_to("../inside")

    report = terminal.check(None, False)

    said = f"004_d.sql is a link that leads out of {branch.parent.name}/, which is uploaded without what it leads to: "
    assert [note for note in report["notes"] if "link" in note] == [f"{said}put the file itself here"]


def test_check_knows_the_files_of_a_folder_that_git_has_moved(branch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was applied from the old place counts, and an edit on the way is one."""
    for path in branch.iterdir():
        path.write_text(f"-- a file that is long enough to be known again\n{path.read_text()}\n")
    commit()
    git("branch", "-f", "main")
    moved = branch.parent.parent / "moved" / "migrations"
    moved.parent.mkdir()
    git("mv", str(branch), str(moved))
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", moved)
    same = terminal.check("main", False)
    (moved / "002_b.sql").write_text("-- a file that is long enough to be known again\nSELECT 7;\n")

    edited = terminal.check("main", False)

    assert (same["new"], same["problems"]) == ([], [])
    assert edited["problems"] == [f"002_b.sql was edited. {terminal.RESTORE}"]


def test_check_says_what_the_folder_holds_besides(folder: Path) -> None:
    """As a run does: what may be meant is a note, what looks like a migration is a problem."""
    (folder / "old").mkdir()
    for name in ("001_a.sql", "old/000_z.sql", "002_b.sql.txt"):
        (folder / name).write_text("SELECT 1;")

    found = terminal.check(None, False)

    what = "migrations/old/ is not looked into, but holds 000_z.sql"
    assert f"{what}: only files in migrations/ itself are run" in found["notes"]
    assert [problem.split()[0] for problem in found["problems"]] == ["002_b.sql.txt"]


def test_new_file_never_overwrites_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of that name stays as it is."""
    (folder / "001_a.sql").write_text("SELECT 1;")
    monkeypatch.setattr(migration_files, "load_migrations", lambda *_, **__: [])

    with pytest.raises(initializer.MigrationError, match=r"001_a\.sql: File exists"):
        terminal.write_new("a")

    assert (folder / "001_a.sql").read_text() == "SELECT 1;"


def test_new_file_without_a_folder_is_refused(folder: Path) -> None:
    """`new` does not make a folder that no run would read."""
    folder.rmdir()

    with pytest.raises(initializer.MigrationError, match="the folder migrations/ is missing"):
        terminal.write_new("a")


# --- check ----------------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name.lstrip('_')}.sql").write_text(text)


def git(*words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


def commit() -> None:
    git("add", "-A")
    git("commit", "-q", "-m", "x")


def check(base: Optional[str] = None) -> tuple[list[str], list[str]]:
    """Problems and notes."""
    report = terminal.check(base, with_squawk=False)
    assert (report["status"] == "failed") == bool(report["problems"])
    return report["problems"], report["notes"]


@pytest.fixture
def branch(folder: Path) -> Path:
    """Three files on the branch main, and another branch checked out."""
    write(folder, _001_a="SELECT 1;", _002_b="SELECT 2;", _003_c="SELECT 3;")
    git("init", "-q", "-b", "main")
    commit()
    git("checkout", "-q", "-b", "feature")
    return folder


NO_BASE = "edited files cannot be recognised: git, or a commit, is missing"


def test_check_names_all_problems_of_all_files(folder: Path) -> None:
    """All problems are reported together."""
    write(folder, _001_a="SELECT 'open", _002_b="SELECT 1;\n  \\i other.sql")
    write(
        folder,
        **{
            "_002_c": "CREATE TABLE schema_migrations ();",
            "_004_d": "SELECT 1;",
            "_004_e": "SELECT 1;",
            "_001_a.down": "SELECT 1;",
        },
    )
    (folder / "005_f.sql").write_bytes(b"\xff")

    problems, notes = check()

    assert [problem.partition(": ")[0] for problem in problems] == [
        *("001_a.sql:1:8", "002_b.sql:2:3", "002_c.sql:1:1", "005_f.sql:1:1"),
        "number 4 is used more than once",
    ]
    assert "Nothing has been applied" not in "".join(problems)
    assert notes == ["001_a.down.sql is never run", NO_BASE]


def test_check_of_a_file_without_a_statement_says_what_would_happen(folder: Path) -> None:
    """What `new` has written and nobody has filled in would be recorded, and its filling refused as an edit."""
    write(folder, _001_a="SELECT 1;", _002_b="-- to be written\n")

    assert check() == ([], ["002_b.sql has no statement, so nothing runs until it is filled in", NO_BASE])


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)",
        "drop index concurrently i",
        "REINDEX (VERBOSE) TABLE CONCURRENTLY t",
        "ALTER TABLE t DETACH PARTITION p CONCURRENTLY",
        "VACUUM t",
        "CREATE DATABASE d",
        "DROP DATABASE IF EXISTS d",
        "ALTER SYSTEM SET work_mem = '1MB'",
        "CREATE TABLESPACE s LOCATION '/s'",
        "DROP TABLESPACE s",
    ],
)
def test_check_of_a_statement_that_wants_no_transaction_names_its_line(folder: Path, statement: str) -> None:
    """Alone it runs, and in a marked file; among others PostgreSQL would refuse it."""
    both = f"SELECT 1;\n\n{statement};\nVACUUM t;\n"
    write(folder, _001_a=f"{statement};", _002_b=f"-- no-transaction\n{both}", _003_c=both)

    assert check()[0] == [
        f"003_c.sql:3: this {statement.split(maxsplit=1)[0].upper()} cannot run in a transaction, which a file of "
        "several statements is: put it into a file of its own, or write -- no-transaction in the first line"
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
        "CREATE INDEX i ON t (a)",
        "ALTER TABLE t DETACH PARTITION p",
        "COMMENT ON TABLE t IS 'CREATE INDEX CONCURRENTLY'",
        "CREATE TABLE vacuum (a int)",
    ],
)
def test_check_of_other_statements_among_several_is_content(folder: Path, statement: str) -> None:
    """They run in a transaction."""
    write(folder, _001_a=f"SELECT 1;\n{statement};\n")

    assert check()[0] == []


def test_check_of_a_mistake_in_the_variables_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MIGRATIONS_TABLE counts here, and is looked at."""
    monkeypatch.setenv("MIGRATIONS_TABLE", "No")

    assert check()[0][0].startswith("MIGRATIONS_TABLE is 'No'")


@pytest.mark.parametrize("rows", ["", "COPY public.a (i) FROM stdin;\n1\n\\.\n"], ids=["plain", "with rows"])
def test_check_says_that_a_table_is_not_in_the_applications_schema(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    """As in a dump of public: it runs, but the users get no rights on the table."""
    (folder / "001_a.sql").write_text(f"SELECT public.f();\nCREATE TABLE public.a (i int);\n{rows}")
    (folder / "002_b.sql").write_text("CREATE TABLE b (i int); CREATE TABLE shop.c (i int); CREATE TABLE other.d ();")
    said = "001_a.sql:2: table public.a is not in schema shop: the users get rights only there"

    without = terminal.check(None, False)
    monkeypatch.setenv("DB_SCHEMA", "shop")
    found = terminal.check(None, False)

    assert (found["status"], [note for note in found["notes"] if "table" in note]) == ("ok", [said])
    assert said not in without["notes"]


def test_check_takes_the_schema_as_an_option(project: Project) -> None:
    """It is looked at as the variable is; the tables that are ours are those of this schema."""
    project.world.write("001_a.sql", "CREATE TABLE shop.schema_migrations (i int);")

    wrong = project.run("check", "--schema", "Shop", DATABASE_URL=None)
    ours = project.run("check", "--schema", "shop", DATABASE_URL=None)
    other = project.run("check", "--schema", "other", DATABASE_URL=None)

    assert "DB_SCHEMA is 'Shop'" in wrong.stdout
    assert "MIGRATIONS_TABLE" in ours.stdout
    assert [run.returncode for run in (wrong, ours, other)] == [1, 1, 0]


def test_check_compares_with_where_the_branch_left_main(branch: Path) -> None:
    """Edited and deleted files are problems; comments, renumbering and new files are none; main may have gone on."""
    git("checkout", "-q", "main")
    write(branch, _004_later="SELECT 4;")
    commit()
    git("checkout", "-q", "feature")
    write(branch, _001_a="-- why\nSELECT   1;", _002_b="SELECT 22;", _009_new="SELECT 9;")
    (branch / "003_c.sql").rename(branch / "005_c.sql")
    write(branch, _006_d="SELECT 6;")
    commit()
    write(branch, _006_d="SELECT 66;")

    problems, notes = check()

    step = "It is probably applied: restore it, and put the change into a new file"
    assert problems == [f"002_b.sql was edited. {step}"]
    assert notes == ["005_c.sql is 003_c, renamed"]
    (branch / "002_b.sql").unlink()
    assert check()[0] == [f"002_b was deleted. {step}"]


def test_check_accepts_edited_files_where_the_handler_does(branch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ALLOW_EDITED_MIGRATIONS is one rule in both."""
    monkeypatch.setenv("ALLOW_EDITED_MIGRATIONS", "true")
    write(branch, _001_a="SELECT 11;")

    problems, notes = check()

    assert (problems, len(notes)) == ([], 1)


def test_check_of_a_number_that_the_base_has_is_a_problem(branch: Path) -> None:
    """Two branches that count on from the same file are noticed before they are deployed; old twins are not."""
    write(branch, _002_x="SELECT 2;")
    assert check()[0] == ["number 2 is used more than once: 002_b, 002_x: renumber the new one"]
    commit()

    assert check("HEAD") == ([], [])


def test_check_in_a_hook_compares_what_is_not_committed(branch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook runs with variables that name the repository, and on main the last commit counts."""
    git("checkout", "-q", "main")
    write(branch, _001_a="SELECT 11;")
    monkeypatch.setenv("GIT_DIR", ".git")
    monkeypatch.setenv("GIT_INDEX_FILE", ".git/index")

    assert [problem[:20] for problem in check()[0]] == ["001_a.sql was edited"]


def test_check_through_a_link_finds_the_repositorys_folder(branch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """migrations may be a link, and names may have letters that git quotes."""
    write(branch, _004_größe="SELECT 4;")
    commit()
    write(branch, _004_größe="SELECT 44;")
    Path("link").symlink_to(branch)
    monkeypatch.setattr(initializer, "MIGRATIONS_DIR", Path("link").absolute())

    assert [problem[:24] for problem in check("HEAD")[0]] == ["004_größe.sql was edited"]


def test_check_with_a_base_that_is_not_there_fails(branch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that was asked for is not left out in silence."""
    monkeypatch.setenv("GITHUB_BASE_REF", "production")

    assert check()[0] == [
        "git finds no common commit with origin/production: fetch it with its history (fetch-depth: 0)"
    ]
    assert check("main") == ([], [])


def test_check_without_git_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No repository, or no git: the rest is checked."""
    write(folder, _001_a="SELECT 1;")
    assert check() == ([], [NO_BASE])
    monkeypatch.setenv("PATH", str(folder))

    assert check() == ([], [NO_BASE])


def test_check_of_unreadable_bytes_in_the_base_says_nothing_of_them(branch: Path) -> None:
    """A file that was fixed after it was committed has no checksum to compare."""
    (branch / "004_d.sql").write_bytes(b"\xff")
    commit()
    write(branch, _004_d="SELECT 4;")

    assert check("HEAD") == ([], [])


# --- check: what blocks or breaks the application --------------------------------------------------------------------


@pytest.fixture
def shop(folder: Path) -> Path:
    """A table that is applied, and a new file that would stop its writers."""
    write(folder, _001_a="CREATE TABLE t (i int);\nCREATE INDEX ON t (i);", _002_b="ALTER TABLE t RENAME i TO j;")
    git("init", "-q", "-b", "main")
    commit()
    write(folder, _003_c="SELECT 1;\nCREATE INDEX ON t (j);")
    return folder


def test_check_warns_of_new_files_and_fails_only_if_it_is_strict(shop: Path) -> None:
    """A warning names file, line, effect, rule and recipe; what is applied cannot be changed any more."""
    warning = "003_c.sql:2: nobody can write to t until the index is built [index, see Create an index]"

    loose, strict = run_check(), run_check("--strict")

    assert (loose.returncode, strict.returncode) == (0, 1)
    assert f"\nwarnings    {warning}\n" in loose.stdout
    assert "\nok, problems: 0, warnings: 1; not checked: " in loose.stdout
    assert f"\nproblems    {warning}\nfailed, problems: 1; not checked: " in strict.stdout


def test_check_as_json_has_each_finding(shop: Path) -> None:
    """`--format json` is `--json`, also in GitHub Actions: the report and nothing else."""
    runs = [run_check(*words, GITHUB_ACTIONS="true") for words in (["--format", "json"], ["--json"])]

    assert runs[0].stdout == runs[1].stdout
    assert json.loads(runs[0].stdout)["findings"] == [
        {
            "file": "003_c.sql",
            "line": 2,
            "rule": "index",
            "effect": "nobody can write to t until the index is built",
            "recipe": "Create an index",
            "level": "warning",
            "message": "003_c.sql:2: nobody can write to t until the index is built [index, see Create an index]",
        }
    ]


def annotations(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stdout.splitlines() if line.startswith("::")]


def test_check_in_github_actions_annotates_the_lines(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings and problems are workflow commands after the text, with the path from the repository's root."""
    write(shop, **{"_004_d,:%": "SELECT :name;", "_005_e": "DROP TABLE t;"})
    (shop / "001_a.sql").write_text("SELECT 7;")
    place = "file=db_setup/migrations"

    text, github, actions = run_check(), run_check("--format", "github"), run_check(GITHUB_ACTIONS="true")
    monkeypatch.chdir(shop)
    elsewhere = run_check("--strict", folder=".", GITHUB_ACTIONS="true", GITHUB_WORKSPACE=str(shop.parent.parent))

    assert annotations(text) == []
    assert annotations(github) == annotations(actions)
    assert actions.stdout.startswith(text.stdout)
    assert annotations(actions) == [
        f"::warning {place}/003_c.sql,line=2,title=index%3A Create an index::"
        "nobody can write to t until the index is built",
        f"::warning {place}/005_e.sql,line=1,title=drop%3A Drop a column or a table::"
        "deployed code that uses t fails, and what is in it is lost",
        f"::error {place}/001_a.sql,line=1,title=check::001_a.sql was edited. {terminal.RESTORE}",
        f"::error {place}/004_d%2C%3A%25.sql,line=1,title=check::"
        "004_d,:%25.sql:1:8: :name is a variable of psql: write the value itself",
    ]
    assert [line.split(",line")[0] for line in annotations(elsewhere)] == [
        f"::error {place}/{name}.sql" for name in ("003_c", "005_e", "001_a", "004_d%2C%3A%25")
    ]


def test_annotation_is_one_line() -> None:
    """Line ends, and in a property : and , are escaped as GitHub's runner reads them."""
    assert terminal.escaped("50%:\r\n,") == "50%25%3A%0D%0A%2C"
    assert terminal.escaped("50%:\r\n,", in_property=False) == "50%25:%0D%0A,"


# As squawk 2 prints it, with colours and links.
COMPLAINT = (
    "\x1b[1m\x1b[33mwarning[\x1b]8;;https://squawkhq.com/docs/{0}\x1b\\{0}\x1b]8;;\x1b\\]\x1b[0m\x1b[1m: Why.\x1b[0m\n"
    " \x1b[1m\x1b[94m ╭▸ \x1b[0m{1}:{2}:1\n  \x1b[1m\x1b[94m│\x1b[0m\n"
)


@pytest.mark.parametrize(
    ("rule", "line", "warnings"),
    [
        ("require-concurrent-index-creation", 2, 0),
        ("require-concurrent-index-creation", 1, 1),
        ("prefer-identity", 2, 1),
    ],
)
def test_check_says_nothing_twice(
    shop: Path, monkeypatch: pytest.MonkeyPatch, rule: str, line: int, warnings: int
) -> None:
    """What squawk says of a line is left out, and squawk's words are as they were; both are annotated."""
    tmp_path = shop.parent.parent
    said = COMPLAINT.format(rule, "db_setup/migrations/003_c.sql", line)
    (tmp_path / "said").write_text(said)
    program = tmp_path / "bin" / "squawk"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncat "{tmp_path}/said"\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    run = run_check("--format", "github")

    assert (run.returncode, run.stderr) == (1, said)
    assert run.stdout.count("[index, see Create an index]") == warnings
    by_squawk = f"::error file=db_setup/migrations/003_c.sql,line={line},title={rule}::Why."
    assert annotations(run)[warnings:] == [
        *([] if rule in terminal.STYLE_RULES else [by_squawk]),
        "::error title=check::squawk complains, see above",
    ]


# --- squawk ---------------------------------------------------------------------------------------------------------

FAKE_SQUAWK = """#!/bin/sh
echo "$@" >> "$RECORD"
echo squawk says something
exit $SQUAWK_CODE
"""


@pytest.fixture
def squawk(branch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable named squawk that records its words, and one new file of each kind."""
    program = tmp_path / "bin" / "squawk"
    program.parent.mkdir()
    program.write_text(FAKE_SQUAWK)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    write(branch, _004_d="SELECT 4;", _005_e="-- no-transaction\nVACUUM;", _006_f="COPY a FROM STDIN;\n1\n\\.\n")
    return tmp_path / "record"


RULES = f"--exclude={terminal.EXCLUDED_RULES},{terminal.STYLE_RULES} "


def run_check(
    *words: str, code: int = 0, folder: str = "db_setup/migrations", **more: str
) -> subprocess.CompletedProcess[str]:
    """`check` in a process of its own, on the folder in the working directory."""
    start = "import sys, runpy, pathlib; sys.path.insert(0, sys.argv[1]); import initializer; "
    start += f"initializer.MIGRATIONS_DIR = pathlib.Path('{folder}').absolute(); "
    start += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", start, str(DB_SETUP), "check", *words]
    environ = {"SQUAWK_CODE": str(code), **os.environ, **more}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environ)


def test_squawk_looks_at_new_files_as_they_will_run(squawk: Path) -> None:
    """squawk learns which files are transactions, and does not get what it cannot read or what db_setup does itself."""
    run = run_check("--json")

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["new"] == ["004_d", "005_e", "006_f"]
    assert squawk.read_text().splitlines() == [
        f"--assume-in-transaction {RULES}-- db_setup/migrations/004_d.sql",
        f"--no-assume-in-transaction {RULES}-- db_setup/migrations/005_e.sql",
    ]
    assert run.stderr == "squawk says something\n" * 2


def test_squawk_that_complains_fails_the_check(squawk: Path) -> None:
    """Its exit code counts, once all files have been looked at; `--no-squawk` leaves it out."""
    failed, without = run_check(code=1), run_check("--no-squawk", code=1)

    assert (failed.returncode, without.returncode) == (1, 0)
    assert "problems    squawk complains, see above\nfailed, problems: 1; not checked: " in failed.stdout
    assert len(squawk.read_text().splitlines()) == 2


def test_squawk_with_a_configuration_keeps_its_rules(squawk: Path) -> None:
    """The option would replace the file's own exclusions."""
    Path(".squawk.toml").write_text("")

    run_check()

    assert "--exclude" not in squawk.read_text()


def test_squawk_that_is_missing_is_pointed_to(branch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says how to get it, and nothing fails."""
    monkeypatch.setenv("PATH", str(branch))

    run = run_check()

    assert run.returncode == 0
    assert "python3 -m pip install squawk-cli, or npm i -D squawk-cli (squawkhq.com)" in run.stdout

"""What comes back and what is logged: the whole story in few lines, in each of Lambda's formats, without a secret."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import initializer
import pytest
from config import Config, Setup
from database import Endpoint, Login
from harness.database import SCHEMA
from harness.process import deploy_elsewhere
from harness.world import ADMIN, ADMIN_PASSWORD, World
from initializer import StoredInSecret
from limited_users import READWRITE
from secret_store import Secret

DB_SETUP = Path(initializer.__file__).parent
USERS = "CREATE TABLE users (id int PRIMARY KEY);\n"
LOGGER = logging.getLogger("db_setup")
# What a LogRecord has of its own: all other attributes are ours, and Lambda's JSON format shows them.
STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
MESSAGE_LIMIT, MESSAGE_BYTES = 1500, 3100
OF_SCHEMA = "" if SCHEMA == "public" else f" schema={SCHEMA}"  # said where it is not public
LambdaHandler = logging.StreamHandler  # of an io.StringIO


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "db_setup"]


def without_figures(line: str) -> str:
    """The line with its durations as N."""
    return re.sub(r"(_ms|_s)=[0-9.]+", r"\1=N", line)


def failure(world: World, event: Any = None, **environ: str) -> str:
    with pytest.raises(initializer.InitializerError) as caught:
        world.deploy(event, **environ)
    return str(caught.value)


# --- The result -----------------------------------------------------------------------------------------------------


def test_report_of_a_first_run_has_the_documented_shape(world: World) -> None:
    """Callers may rely on every key, and on plain JSON."""
    world.write("001_users.sql", USERS)

    report = json.loads(json.dumps(world.deploy()))

    durations = [report.pop("duration_ms"), report["applied"][0].pop("duration_ms")]
    assert type(report.pop("lock_wait_ms")) is int
    assert report == {
        "status": "ok",
        "action": "migrate",
        "version": initializer.__version__,
        "applied": [{"name": "001_users"}],
        "adopted": [],
        "pending": [],
        "users": {"app_rw": "created", "app_tc": "created"},
        "warnings": [],
        "database": f"{ADMIN}@{world.server.host}:{world.server.port}/{world.dbname}",
    }
    assert [type(duration) for duration in durations] == [int, int]
    assert durations[0] >= durations[1] >= 0


def test_report_has_the_same_keys_when_nothing_is_to_be_done(world: World) -> None:
    """The lists always exist, with or without migrations and users."""
    first = world.deploy()
    second = world.deploy()
    without_users = world.deploy(CREATE_USERS="false")

    assert list(first) == list(second) == list(without_users)
    lists = ("applied", "adopted", "pending", "warnings")
    assert [[report[key] for key in lists] for report in (first, second, without_users)] == [[[]] * 4] * 3
    assert without_users["users"] == {}


def test_report_names_what_was_adopted_and_warned_of(world: World) -> None:
    """Both are lists of plain texts."""
    world.sql(USERS)
    world.write("001_users.sql", USERS)
    world.write("001_visits.sql", "CREATE TABLE orders (id int)")

    report = json.loads(json.dumps(world.deploy()))

    assert report["adopted"] == ["001_users"]
    assert report["warnings"] == ["number 1 is used more than once: 001_users, 001_visits"]


def test_event_that_means_migrate_is_accepted(world: World) -> None:
    """CDK's trigger and the console's empty test event send no action."""
    assert [world.deploy(event)["action"] for event in (None, {}, {"action": "migrate"})] == ["migrate"] * 3


def test_event_of_something_else_is_refused(world: World) -> None:
    """A wrong trigger or a misspelt action must not migrate a database."""
    world.write("001_users.sql", USERS)
    actions = {"Migrate": "'Migrate'", "": "''", None: "None", "x" * 99: "'" + "x" * 59}
    others: list[Any] = [{"RequestType": "Create"}, {"x": {}}, [], "", 0, "{}"]

    said_of_actions = [failure(world, {"action": action}) for action in actions]
    said_of_others = [failure(world, event) for event in others]

    told = 'is not for db_setup: send {}, or {"action": …} with one of migrate, dry_run, rotate, status, databases. '
    told += "Nothing has been touched."
    assert said_of_actions == [f"action {action} {told}" for action in actions.values()]
    assert said_of_others == [f"this event {told}"] * len(others)
    assert (world.tables(), world.sql("SELECT to_regclass('schema_migrations')")) == ([], [(None,)])


# --- The lines ------------------------------------------------------------------------------------------------------


def test_log_of_a_first_run_tells_the_story(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A constant phrase and key=value: what was found, each thing that was done, and the end."""
    world.write("001_users.sql", USERS)

    world.deploy()

    database = f"{ADMIN}@{world.server.host}:{world.server.port}/{world.dbname}"
    lines = [without_figures(line) for line in messages(caplog)]
    assert sorted(line for line in lines if line.startswith("group role created")) == [
        "group role created role=readwrite",
        "group role created role=tablecreator",
    ]
    # Up to PostgreSQL 14 everybody can create tables in schema public, and only its owner changes that: it is said.
    others = ("group role created", "everybody can create tables in schema public remedy=")
    assert [line for line in lines if not line.startswith(others)] == [
        f"starting version={initializer.__version__} database={database} files=1{OF_SCHEMA}",
        "tracking table created table=schema_migrations",
        "applied migration=001_users duration_ms=N",
        "login ready login=app_rw secret=user state=created",
        "login ready login=app_tc secret=creator state=created",
        "done applied=1 adopted=0 pending=0 failed=0 users=app_rw:created,app_tc:created lock_wait_ms=N duration_ms=N",
    ]


def test_log_of_a_run_with_nothing_to_do_is_two_lines(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A deployment that changes nothing says so, and no more."""
    world.write("001_users.sql", USERS)
    world.deploy()
    caplog.clear()

    world.deploy()

    assert [line.split(" ")[0] for line in messages(caplog)] == ["starting", "done"]
    assert "applied=0 adopted=0 pending=0 failed=0 users=app_rw:kept,app_tc:kept" in messages(caplog)[1]


class AtTheMoment(logging.Handler):
    """Asks, whenever something is logged as applied, whether another session can see it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.seen: list[tuple[str, list[str]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("applied "):
            self.seen.append((vars(record)["migration"], self.world.applied()))


def test_applied_is_logged_after_the_commit(world: World) -> None:
    """When the line is in the log, the migration is in the database."""
    world.write("001_users.sql", USERS)
    world.write("002_orders.sql", "CREATE TABLE orders (id int)")
    handler = AtTheMoment(world)
    LOGGER.addHandler(handler)
    try:
        world.deploy()
    finally:
        LOGGER.removeHandler(handler)

    assert handler.seen == [("001_users", ["001_users"]), ("002_orders", ["001_users", "002_orders"])]


FAILING = (
    "SELECT 1/0",
    # A deferred constraint speaks at the very end, when all statements have run.
    "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (a int REFERENCES a DEFERRABLE INITIALLY DEFERRED);"
    "INSERT INTO b VALUES (1)",
)


def test_failed_migration_is_never_logged_as_applied(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The log says neither `applied` nor `done` for it."""
    world.write("001_users.sql", USERS)
    for text in FAILING:
        world.write("002_broken.sql", text)

        failure(world)

    lines = [line for line in messages(caplog) if line.startswith(("applied", "done"))]
    assert [without_figures(line) for line in lines] == ["applied migration=001_users duration_ms=N"]


FAILURES = {
    "ConfigError": {"LOCK_TIMEOUT": "soon"},
    "RefusedError": {"DB_NAME": "not_there"},
    "MigrationError": {},
}


def test_failure_is_one_error_line_without_a_stack(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One failure is one line of level ERROR with the whole message; Lambda adds the stack itself."""
    world.write("001_broken.sql", "SELECT 1/0")
    for kind, environ in FAILURES.items():
        caplog.clear()

        message = failure(world, **environ)

        errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(errors) == 1
        assert (errors[0].exc_info, errors[0].stack_info) == (None, None)
        line = errors[0].getMessage()
        assert line.startswith(f"failed error={kind} reason=")
        assert json.loads(line.partition("reason=")[2].partition(" applied=")[0]) == message
        assert "\n" not in line


def test_log_never_shows_sql_or_what_the_file_says(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Statements, comments and data stay where they are, also when a file fails on its data."""
    caplog.set_level(logging.DEBUG)
    world.write(
        "001_users.sql", "-- a comment-marker\nCREATE TABLE users (email text); INSERT INTO users VALUES ('row-marker')"
    )
    world.write("002_broken.sql", "ALTER TABLE users ADD UNIQUE (email); INSERT INTO users VALUES ('row-marker')")

    message = failure(world)

    assert message.startswith("002_broken.sql:1: duplicate key value violates unique constraint")
    said = "\n".join([message, *messages(caplog)])
    assert re.findall("comment-marker|row-marker|CREATE TABLE|INSERT|ALTER", said) == []


# --- Secrets --------------------------------------------------------------------------------------------------------


def everything_said(caplog: pytest.LogCaptureFixture) -> str:
    """Every record of every logger, with all that is attached to it."""
    return "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)


def test_passwords_are_in_no_log_even_at_debug(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """AWS_LAMBDA_LOG_LEVEL=DEBUG makes botocore log whole answers of Secrets Manager: they hold the passwords."""
    caplog.set_level(logging.DEBUG)
    world.write("001_users.sql", USERS)

    world.deploy()
    world.deploy()

    said = everything_said(caplog)
    passwords = {name: world.secret(name)["password"] for name in ("admin", "user", "creator")}
    assert [name for name, password in passwords.items() if password in said] == []
    assert "SecretString" not in said


def test_passwords_are_in_no_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """No password is in the exception or in its chain, whichever step fails."""
    world.write("001_broken.sql", "SELECT 1/0")
    steps = [{"DB_NAME": "not_there"}, {"DB_PORT": "1", "LOCK_TIMEOUT": "soon"}, {"PGSSLROOTCERT": "/not/there"}, {}]
    said = []
    for environ in steps:
        with pytest.raises(initializer.InitializerError) as caught:
            world.deploy(**environ)
        error: Any = caught.value
        while error is not None:
            said.append(f"{error} {error!r} {getattr(error, '__dict__', {})}")
            error = error.__cause__ or error.__context__

    assert len(said) > len(steps)
    assert [text for text in said if ADMIN_PASSWORD in text] == []
    assert ADMIN_PASSWORD not in everything_said(caplog)


def test_objects_that_hold_a_password_do_not_show_it() -> None:
    """A repr() in a stack trace or a debugger's output is a log, too."""
    login = Login(Endpoint("h", 1, "d"), "u", "the password")
    secret = Secret("name", "arn", {"password": "the password"})
    keeper = StoredInSecret(None, secret, True)
    setup = Setup(Config("name"), login, {READWRITE: secret}, (), None)

    assert [text for text in map(repr, (login, secret, keeper, setup)) if "the password" in text] == []
    assert "the password" not in f"{login} {secret}"


# --- Lambda's two formats, and a terminal ---------------------------------------------------------------------------


class LambdaJson(logging.Formatter):
    """Lambda's JSON format, as far as it matters: whatever a record has beyond the standard is a key at the top."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"level": record.levelname, "message": record.getMessage(), "logger": record.name}
        extras = {key: value for key, value in vars(record).items() if key not in STANDARD and key not in line}
        return json.dumps({**line, **extras}, ensure_ascii=False)


@pytest.fixture
def lambda_handler(caplog: pytest.LogCaptureFixture) -> Iterator[LambdaHandler]:
    """Lambda's handler at the root logger, whose level is WARNING; the level of our logger is not set yet."""
    handler = logging.StreamHandler(io.StringIO())
    caplog.set_level(logging.WARNING)
    LOGGER.setLevel(logging.NOTSET)
    logging.getLogger().addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger().removeHandler(handler)
        LOGGER.setLevel(logging.NOTSET)


def test_text_format_shows_information(world: World, lambda_handler: LambdaHandler) -> None:
    """Lambda's root logger passes on warnings only; our lines are shown all the same, each once."""
    lambda_handler.setFormatter(logging.Formatter("[%(levelname)s]\t%(message)s"))
    world.write("001_users.sql", USERS)

    world.deploy(CREATE_USERS="false")

    lines = lambda_handler.stream.getvalue().splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "[INFO]\tstarting",
        "[INFO]\ttracking",
        "[INFO]\tapplied",
        "[INFO]\tdone",
    ]


def test_json_format_has_the_keys_at_the_top_level(world: World, lambda_handler: LambdaHandler) -> None:
    """A query in CloudWatch can ask for migration, duration_ms or error; numbers are numbers."""
    lambda_handler.setFormatter(LambdaJson())
    world.write("001_users.sql", USERS)
    world.write("002_broken.sql", "SELECT 1/0")

    message = failure(world)

    lines = [json.loads(line) for line in lambda_handler.stream.getvalue().splitlines()]
    applied = next(line for line in lines if line["message"].startswith("applied "))
    assert (applied["level"], applied["migration"], type(applied["duration_ms"])) == ("INFO", "001_users", int)
    assert (lines[0]["version"], lines[0]["files"]) == (initializer.__version__, 2)
    assert lines[-1]["level"] == "ERROR"
    assert (lines[-1]["error"], lines[-1]["reason"]) == ("MigrationError", message)


def test_aws_lambda_log_level_is_respected(world: World, lambda_handler: LambdaHandler) -> None:
    """With the level ERROR set in Lambda, the log has errors only."""
    logging.getLogger().setLevel(logging.ERROR)  # as Lambda does when the variable is set
    world.write("001_users.sql", USERS)

    world.deploy(AWS_LAMBDA_LOG_LEVEL="ERROR")
    quiet = lambda_handler.stream.getvalue()
    failure(world, LOCK_TIMEOUT="soon", AWS_LAMBDA_LOG_LEVEL="ERROR")

    assert quiet == ""
    assert lambda_handler.stream.getvalue().startswith("failed error=ConfigError ")


def test_terminal_without_handlers_shows_the_lines(world: World, tmp_path: Path) -> None:
    """Called by hand, the story goes to standard error and the result stays alone on standard output."""
    folder = tmp_path / "db_setup"
    folder.mkdir()
    for path in DB_SETUP.glob("*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "migrations").mkdir()
    (folder / "migrations" / "001_users.sql").write_text(USERS)

    run = deploy_elsewhere(world, folder, tmp_path, CREATE_USERS="false", PYTHONWARNINGS="ignore")

    report = json.loads(run.stdout)
    assert [without_figures(line) for line in run.stderr.splitlines()] == [
        f"INFO starting version={initializer.__version__} database={report['database']} files=1{OF_SCHEMA}",
        "INFO tracking table created table=schema_migrations",
        "INFO applied migration=001_users duration_ms=N",
        "INFO done applied=1 adopted=0 pending=0 failed=0 lock_wait_ms=N duration_ms=N",
    ]


def test_logging_is_set_up_once_for_a_warm_function(world: World, lambda_handler: LambdaHandler) -> None:
    """A second invocation does not print everything twice."""
    before = list(logging.getLogger().handlers)

    world.deploy(CREATE_USERS="false")
    world.deploy(CREATE_USERS="false")

    phrases = [line.split(" ")[0] for line in lambda_handler.stream.getvalue().splitlines()]
    assert phrases == ["starting", "tracking", "done", "starting", "done"]
    assert logging.getLogger().handlers == before


def test_version_is_one_in_file_log_and_report(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A copied folder can say what it is."""
    report = world.deploy(CREATE_USERS="false")

    stated = re.search(r'^__version__ = "(.+)"$', (DB_SETUP / "initializer.py").read_text(), re.MULTILINE)
    assert stated is not None
    assert report["version"] == stated.group(1) == initializer.__version__
    assert f"version={stated.group(1)}" in messages(caplog)[0]


def test_values_with_spaces_or_line_ends_stay_on_one_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can forge a line of our log: names, and what a database says, are quoted."""
    world.write("001_forged users.sql", "DO $$ BEGIN RAISE NOTICE E'one\\nfailed error=Forged a=\"b\"'; END $$")

    world.deploy(CREATE_USERS="false")

    assert [line for line in messages(caplog) if "\n" in line or line.startswith("failed")] == []
    assert 'database says severity=NOTICE text="one failed error=Forged a=\\"b\\""' in messages(caplog)
    assert any(line.startswith('applied migration="001_forged users" ') for line in messages(caplog))


# --- The length of a message ----------------------------------------------------------------------------------------

LONG = "x" * 4000
LONG_SQL = {
    "name": f"SELECT * FROM {LONG}",
    "raised": f"DO $$ BEGIN RAISE '{LONG}' USING DETAIL = '{LONG}', HINT = '{LONG}'; END $$",
    "value": f"SELECT '{LONG}'::int",
    "unclosed": f"SELECT '{LONG}",
    "quoted": f'SELECT "{LONG}',
    "psql": f"\\copy users FROM '{LONG}'",
    "statement": "CREATE TABLE a (" + ",".join(f"column_number_{i} int" for i in range(900)) + ", oops nonsense)",
}


def test_message_about_a_long_file_stays_short(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """CloudFormation shows some 1,000 characters and refuses a lot: the place comes first, and the state is there."""
    for number in range(1, 6):
        world.write(f"{number:03d}_a_migration_with_quite_a_long_name_{number}.sql", "SELECT 1")
    world.write("041_later.sql", "SELECT 1")
    for case, text in LONG_SQL.items():
        caplog.clear()
        world.write("040_broken.sql", text)

        message = failure(world, MIGRATIONS_TABLE=f"for_{case}", CREATE_USERS="false")

        assert message.startswith("040_broken.sql:1:")
        assert len(message) <= MESSAGE_LIMIT
        assert "Rolled back" in message or "Nothing has been applied" in message
        assert max(len(record.getMessage()) for record in caplog.records if record.levelno >= logging.ERROR) < 2000


def test_message_about_long_names_stays_short(world: World) -> None:
    """Names as long as a file system allows, and many of them, do not push out the verdict."""
    for number in range(1, 9):
        world.write(f"{number:03d}_{'n' * 240}.sql", "SELECT 1")
    world.write(f"009_{'n' * 240}.sql", "SELECT 1/0")
    world.write(f"010_{'n' * 240}.sql", "SELECT 1")

    message = failure(world)

    assert message.startswith(f"009_{'n' * 240}.sql:1: division by zero (22012). Rolled back.")
    assert len(message) <= MESSAGE_LIMIT


def test_message_limit_counts_what_cloudformation_gets() -> None:
    """The limit is in the one class that all errors have in common."""
    assert len(str(initializer.ConfigError("ä" * 5000))) == MESSAGE_LIMIT
    assert str(initializer.ConfigError("short")) == "short. Nothing has been touched."
    for text in ("漢" * 5000, "😀" * 1500, '\n"' * 5000):
        message = str(initializer.ConfigError(text))
        assert (
            2900 < len(json.dumps(message, ensure_ascii=False).encode()) <= MESSAGE_BYTES
            or len(message) == MESSAGE_LIMIT
        )
        assert message.endswith(" …")

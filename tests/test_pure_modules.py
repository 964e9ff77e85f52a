"""Modules that need no database, by themselves: settings, deadline, words, report, what outlasts a rollback."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import common
import config
import outside
import pytest
import sql_scanner
from common import ConfigError, Deadline, InitializerError
from config import Config
from outside import Reach
from report import Report

SECRET = {"host": "h", "port": "5433", "dbname": "d", "username": "u", "password": "p"}


def read(**environ: str) -> tuple[Config, list[str]]:
    problems: list[str] = []
    return Config.from_env({"DB_SECRET_NAME": "admin", **environ}, problems), problems


# --- Settings -------------------------------------------------------------------------------------------------------


def test_variables_that_are_not_set_have_their_defaults() -> None:
    """Only the admin's secret has to be named."""
    found, problems = read()

    assert problems == []
    assert found == Config(admin_secret="admin")
    assert (found.create_users, found.allow_edited, found.lock_timeout_ms) == (True, False, 4000)
    assert found.tables == ("schema_migrations", "schema_migrations_progress", "schema_migrations_objects")


def test_admins_secret_has_to_be_named_where_there_are_secrets() -> None:
    """With a login of the terminal's own there are none."""
    problems: list[str] = []

    Config.from_env({}, problems, with_secrets=False)
    assert problems == []
    Config.from_env({}, problems)
    assert [problem.partition(":")[0] for problem in problems] == ["DB_SECRET_NAME is missing"]


@pytest.mark.parametrize(
    "name", ["DB_SECRET_NAME", "DB_PROXY", "DB_HOST", "DB_PORT", "BASELINE", "CREATE_USERS", "ROLE_PREFIX"]
)
@pytest.mark.parametrize("value", ["", "  "])
def test_variable_that_is_set_but_empty_is_a_mistake(name: str, value: str) -> None:
    """An empty variable is more often a slip than a wish."""
    _, problems = read(**{name: value})

    assert len(problems) == 1
    assert problems[0].startswith(f"{name} is set but empty: give it a value")
    assert problems[0].endswith("or remove it") is (name != "DB_SECRET_NAME")


def test_mistakes_in_variables_are_reported_together(tmp_path: Any) -> None:
    """Who has made three mistakes needs one deployment to learn of them, and nothing is touched."""
    environ = {"DB_SECRET_NAME": " ", "DB_PORT": "0", "LOCK_TIMEOUT": "4 s"}

    with pytest.raises(ConfigError) as caught:
        config.load_setup(environ, Deadline(), tmp_path / "migrations")

    told = str(caught.value)
    assert [name for name in environ if name not in told] == []
    assert "migrations/ is missing" in told
    assert told.endswith(". Nothing has been touched.")


@pytest.mark.parametrize(("baseline", "is_wrong"), [("001_a", False), ("002_a", True)])
def test_baseline_that_is_no_file_is_a_mistake(tmp_path: Any, baseline: str, is_wrong: bool) -> None:
    (tmp_path / "001_a.sql").write_text("SELECT 1;")

    with pytest.raises(ConfigError) as caught:
        config.load_setup({"DB_SECRET_NAME": " ", "BASELINE": baseline}, Deadline(), tmp_path)

    assert ("BASELINE is '002_a', but there is no such file" in str(caught.value)) is is_wrong


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("0005432", 5432), ("65535", 65535), ("0", None), ("65536", None), ("54 32", None)]
)
def test_port_is_a_number_from_1_to_65535(text: str, expected: Any) -> None:
    """Anything else is named, and not sent to libpq."""
    found, problems = read(DB_PORT=text)

    assert found.port == expected
    assert problems == ([] if expected else [f"DB_PORT is '{text}', but must be a port number (1 to 65535)"])


@pytest.mark.parametrize(
    ("text", "expected"), [("4s", 4000), ("500ms", 500), ("1ms", 1), ("999999s", 999_999_000), ("0s", 0), ("4", 0)]
)
def test_lock_timeout_is_a_time(text: str, expected: int) -> None:
    """In seconds or milliseconds; a lock timeout of 0 would wait forever."""
    found, problems = read(LOCK_TIMEOUT=text)

    assert (found.lock_timeout_ms, len(problems)) == ((expected, 0) if expected else (4000, 1))


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("False", False), ("FALSE", False), ("no", True)])
def test_flag_is_true_or_false_in_any_case(text: str, expected: bool) -> None:
    """Another word is a mistake."""
    found, problems = read(CREATE_USERS=text)

    assert (found.create_users, len(problems)) == (expected, int(text == "no"))


@pytest.mark.parametrize(("name", "longest"), [("MIGRATIONS_TABLE", 49), ("ROLE_PREFIX", 41)])
def test_names_in_the_database_are_plain_and_not_too_long(name: str, longest: int) -> None:
    """With what is appended to it, a name still fits into PostgreSQL's 63 bytes."""
    assert read(**{name: "a" * longest})[1] == []
    for value in ("a" * (longest + 1), "1a", "A", "a-b", 'a"b'):
        assert len(read(**{name: value})[1]) == 1, value


def test_role_prefix_is_not_postgresqls_own() -> None:
    """Roles whose names begin with pg_ are reserved."""
    assert len(read(ROLE_PREFIX="pg_shop_")[1]) == 1
    assert read(MIGRATIONS_TABLE="pg_shop")[1] == []


def test_migrations_table_names_all_tables() -> None:
    """The table of marks follows it, and that of objects."""
    found, _ = read(MIGRATIONS_TABLE="mine")

    assert found.tables == ("mine", "mine_progress", "mine_objects")


def test_variables_take_precedence_over_the_secrets_words() -> None:
    """A variable replaces what the secret says; what neither says has a default or is missing."""
    problems: list[str] = []
    found, _ = read(DB_HOST="other", DB_PORT="1", DB_NAME="mine")

    login = found.login(SECRET, problems)

    assert (str(login), problems) == ("u@other:1/mine", [])
    assert str(read()[0].login({key: SECRET[key] for key in SECRET if key != "port"}, problems)) == "u@h:5432/d"
    assert problems == []
    assert read()[0].login({"username": "u", "password": True}, problems) is None
    assert problems == [
        "DB_SECRET_NAME: secret 'admin' has no usable host, dbname, password: add that to its JSON, or set DB_HOST and "
        "DB_NAME"
    ]


@pytest.mark.parametrize("engine", ["postgres", "aurora-postgresql", "mysql"])
def test_engine_of_the_secret_is_postgresql(engine: str) -> None:
    """Another database's secret is refused by name."""
    problems: list[str] = []

    login = read()[0].login({**SECRET, "engine": engine}, problems)

    assert (login is None, len(problems)) == ((True, 1) if engine == "mysql" else (False, 0))


# --- Deadline, words, log -------------------------------------------------------------------------------------------


class Lambda:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


@pytest.mark.parametrize(("whole", "left", "reserve"), [(900, 880, 20), (60, 40, 20), (30, 20, 10), (3, 2, 1)])
def test_deadline_keeps_back_twenty_seconds_or_a_third(whole: int, left: int, reserve: int) -> None:
    """A run stops itself so long before Lambda does."""
    deadline = Deadline.from_context(Lambda(whole))

    assert deadline.reserve == reserve
    assert left - 0.5 < deadline.left <= left
    assert not deadline.is_near


def test_deadline_is_near_when_less_than_half_the_reserve_is_left() -> None:
    """Then nothing is begun any more; without a deadline it never is."""
    now = time.monotonic()

    assert [Deadline(now + left, 20).is_near for left in (11, 9, -1)] == [False, True, True]
    assert (Deadline().is_near, Deadline().left, Deadline.from_context(None).exists) == (False, math.inf, False)


def test_message_is_cut_to_what_cloudformation_shows() -> None:
    """At most 1,500 characters and 3,100 bytes as JSON; a shorter one is as it was."""
    assert str(InitializerError("é" * 1499)) == "é" * 1499 + "."
    assert str(InitializerError("a" * 1500)) == "a" * 1498 + " …"
    long = str(InitializerError("語" * 1400))
    assert len(json.dumps(long, ensure_ascii=False).encode()) <= 3100
    assert long.startswith("語" * 1000)
    assert long.endswith(" …")


def test_words_show_no_control_character() -> None:
    """Nothing in a message moves a terminal's cursor or turns a line round; line ends stay."""
    assert common.printable("a\x1b[2Jb\u202ec\nd\te") == "a\\u001b[2Jb\\u202ec\nd e"
    assert common.printable("größe") == "größe"
    assert [common.shown("a" * 90), common.shown("a" * 91)] == [repr("a" * 90), repr("a" * 89 + "…")]
    assert common.shortened(["a", "b", "c", "d"]) == "a, b, c, d"
    assert common.shortened(["a", "b", "c", "d", "e"]) == "a … e (5 files)"
    assert "p" not in repr(common.Credentials(user="p")).removeprefix("Credentials")


def test_log_quotes_what_would_not_be_one_value(caplog: pytest.LogCaptureFixture) -> None:
    """key=value can be split again."""
    caplog.set_level("INFO", logger="db_setup")

    common.log("done", n=1, text="a b", list=["a", "b"], dict={"a": 1}, none="", equal="a=b", lines="a\nb")

    assert caplog.messages == ['done n=1 text="a b" list=a,b dict=a:1 none="" equal="a=b" lines="a\\nb"']
    assert vars(caplog.records[0])["list"] == ["a", "b"]


# --- Report ---------------------------------------------------------------------------------------------------------


def test_report_says_each_warning_once_and_how_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    """The last line of the log is what metrics count; of a status, whose lists are of all runs, less."""
    caplog.set_level("INFO", logger="db_setup")
    report = Report("1.0", applied=[{"name": "a", "duration_ms": 1}], pending=["b"], users={"app_rw": "kept"})

    report.warn(["odd", "odd"])
    report.warn(["odd", "even"])
    report.log_end(None)
    report.log_end(ConfigError("wrong"))
    report.action = "status"
    report.log_end(None)

    times = "users=app_rw:kept lock_wait_ms=0 duration_ms=0"
    assert caplog.messages == [
        "warning text=odd",
        "warning text=even",
        f"done applied=1 adopted=0 pending=1 failed=0 {times}",
        'failed error=ConfigError reason="wrong. Nothing has been touched." '
        f"applied=1 adopted=0 pending=1 failed=1 {times}",
        f"done action=status pending=1 failed=0 {times}",
    ]
    assert report.as_json()["warnings"] == ["odd", "even"]


# --- What reaches beyond a transaction ------------------------------------------------------------------------------


class EmptyDatabase:
    """A session on a database without functions, views, rules, defaults and triggers."""

    def query(self, _: str) -> list[Any]:
        return []


def call_in(text: str, counts_setval: bool = True) -> str:
    reach = Reach.of(EmptyDatabase(), counts_setval)  # type: ignore[arg-type]
    return reach.call_in(sql_scanner.read_script(text))


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("SELECT dblink_exec('x', 'y')", "dblink_exec"),
        ("SELECT aws_lambda.invoke('f', '{}')", "aws_lambda.invoke"),
        ("SELECT * FROM \"aws_s3\" . query_export_to_s3 ('q', 'b')", 'aws_s3" . query_export_to_s3'),
        ("SELECT HTTP_POST('u', 'b', 'c')", "HTTP_POST"),
        ("SELECT pg_create_logical_replication_slot ('s', 'p')", "pg_create_logical_replication_slot"),
        ("SELECT pg_logical_emit_message(false, 'a', 'b')", "pg_logical_emit_message"),
        ("COPY t TO PROGRAM 'true'", "TO PROGRAM"),
        ("SELECT lo_export(1, 'f')", "lo_export"),
        ("DO $$ BEGIN PERFORM dblink('x'); END $$", "dblink"),
        ("DO $$ BEGIN EXECUTE 'SELECT dblink(1)'; END $$", "dblink"),
        ("SELECT setval('s', 1)", "setval"),
        ("SELECT my_dblink('x')", ""),
        ("SELECT 'dblink(1)' -- dblink(2)", ""),
        ("CREATE TABLE http (i int)", "http"),  # too much rather than too little
        ("SELECT lo_import('f')", ""),
    ],
)
def test_call_that_no_rollback_takes_back_is_seen(text: str, call: str) -> None:
    """It is not made twice to find a line, and not made in a dry run; a string or a comment is not a call."""
    assert call_in(text) == call


def test_setval_counts_only_where_there_are_sequences() -> None:
    """A new database has none whose value could be lost."""
    assert call_in("SELECT setval('s', 1)", counts_setval=False) == ""


def test_outside_body_in_quotes_is_read_from_its_first_letter() -> None:
    """The body of a DO can be an ordinary string; what it calls counts, wherever in it."""
    assert "lo_export" in outside.executed("DO 'lo_export(1, ''f'')'")

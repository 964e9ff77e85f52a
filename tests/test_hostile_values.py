"""Names, passwords, secrets and variables with everything in them that means something to SQL, libpq, JSON or a log."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from typing import Any

import database
import limited_users
import psycopg2
import pytest
from config import Config
from harness.database import create_admin, create_database, drop_database
from harness.logins import as_superuser, verifiers, works
from harness.world import ADMIN, World, rows
from initializer import ConfigError, ConnectError, InitializerError
from psycopg2 import sql

EVERY_CHARACTER = string.printable + "ä☃𝄞 \u00a0"
NAMES = {
    "quotes": "tmp_\"; DROP TABLE items; --' OR ''='",
    "formats": "tmp_%s %(x)s %% {} {0} $1 :x ?",
    "backslashes": "tmp_\\' \\\\ \\n E'\\047'",
    "conninfo": "tmp_x' host='203.0.113.1' dbname='postgres",
    "white space": "tmp_ \t\r\n x ",
    "63 bytes": "tmp_" + "ü" * 29 + "x",
    "beyond the basic plane": "tmp_𝄞☃ÄÖ",
    "a keyword": "tmp_select",
    "a group of ours in quotes": 'tmp_"readwrite"',
}
MIGRATION = "CREATE TABLE items (id serial, note text);"


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reached is not waited for."""
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)


def items(world: World, secret: str) -> list[tuple[Any, ...]]:
    """Use the table as the login that this secret holds."""
    with world.login(secret) as conn:
        return rows(conn, "INSERT INTO items (note) VALUES ('x') RETURNING current_user::text, note")


# --- The admin ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["quotes", "formats", "backslashes", "63 bytes"])
def odd(world: World, request: pytest.FixtureRequest) -> Iterator[World]:
    """A world whose admin, database and password have such a name."""
    name = NAMES[request.param]
    create_admin(world.server, name, EVERY_CHARACTER)
    create_database(world.server, name, name)
    value = {**world.secret("admin"), "username": name, "password": EVERY_CHARACTER, "dbname": name}
    world.put_secret("admin", value)
    world.write("001_items.sql", MIGRATION)
    own, world.dbname = world.dbname, name
    try:
        yield world
    finally:
        drop_database(world.server, name)
        world.dbname = own


def test_hostile_admin_and_database_are_served_like_any_other(odd: World) -> None:
    """Logins are made, kept, repaired and rotated, and can use the tables, whatever admin and database are called."""
    reports = [odd.deploy()["users"], odd.deploy()["users"]]
    as_superuser(odd, "ALTER ROLE app_rw NOLOGIN")
    reports += [odd.deploy()["users"], odd.deploy({"action": "rotate"})["users"]]

    assert reports == [
        {"app_rw": "created", "app_tc": "created"},
        {"app_rw": "kept", "app_tc": "kept"},
        {"app_rw": "mended", "app_tc": "kept"},
        {"app_rw_clone": "rotated", "app_tc_clone": "rotated"},
    ]
    assert [items(odd, secret) for secret in ("user", "creator")] == [[("app_rw_clone", "x")], [("app_tc_clone", "x")]]
    assert odd.secret("user")["dbname"] == odd.dbname


@pytest.mark.parametrize(("admin", "name"), [("tmp_a", "tmp_" + "d" * 70), ("tmp_" + "a" * 70, "tmp_d")])
def test_hostile_name_longer_than_postgresql_keeps_it_is_the_shorter_one(world: World, admin: str, name: str) -> None:
    """PostgreSQL cuts names off after 63 bytes, without a word, also where a secret or a variable has the whole."""
    create_admin(world.server, admin, "its own")
    create_database(world.server, name, admin)
    try:
        world.put_secret("admin", {**world.secret("admin"), "username": admin, "password": "its own", "dbname": name})
        world.write("001_items.sql", MIGRATION)

        first, second = world.deploy()["users"], world.deploy()["users"]
        as_superuser(world, "ALTER ROLE app_rw NOLOGIN")
        third = world.deploy()["users"]

        assert [first, second, third] == [
            {"app_rw": "created", "app_tc": "created"},
            {"app_rw": "kept", "app_tc": "kept"},
            {"app_rw": "mended", "app_tc": "kept"},
        ]
        assert works(world, world.secret("user"))
    finally:
        drop_database(world.server, name)


# --- The logins -----------------------------------------------------------------------------------------------------


def create_login(world: World, name: str, group: str) -> None:
    words = {"role": sql.Identifier(name), "group": sql.Identifier(group), "password": sql.Literal(EVERY_CHARACTER)}
    with world.connection() as conn:
        rows(conn, sql.SQL("CREATE ROLE {role} LOGIN PASSWORD {password}; GRANT {group} TO {role}").format(**words))


@pytest.mark.slow
def test_hostile_login_that_works_is_kept(world: World) -> None:
    """A login of any name, with every character in its password, is tried, kept and followed; nothing is injected."""
    world.write("001_items.sql", MIGRATION)
    world.deploy()
    for number, (case, name) in enumerate(NAMES.items()):
        for secret, group in (("user", "readwrite"), ("creator", "tablecreator")):
            login = f"{name[:-1]}{secret[0]}"  # another one for each, of the same length
            create_login(world, login, group)
            world.put_secret(secret, {**world.secret(secret), "username": login, "password": EVERY_CHARACTER})
        before = verifiers(world)

        report = world.deploy()

        assert list(report["users"].values()) == ["kept", "kept"], case
        assert verifiers(world) == before, case
        with world.login("creator") as conn:
            rows(conn, f"CREATE TABLE late_{number} (id serial, note text)")
        with world.login("user") as conn:
            rows(conn, f"INSERT INTO late_{number} (note) VALUES ('x'); INSERT INTO items (note) VALUES ('x')")
    assert world.tables() == ["items", *(f"late_{number}" for number in range(len(NAMES)))]


@pytest.mark.slow
def test_hostile_login_that_does_not_work_is_replaced(world: World) -> None:
    """Where such a login is in a secret and does not exist, the secret gets ours; a rotation hands on what such a
    table creator has made."""
    world.write("001_items.sql", MIGRATION)
    world.deploy()
    for number, (case, name) in enumerate(NAMES.items()):
        world.put_secret("user", {"username": f"{name[:-1]}#", "password": EVERY_CHARACTER})
        create_login(world, name, "tablecreator")
        world.put_secret("creator", {"username": name, "password": EVERY_CHARACTER})
        with world.login("creator") as conn:
            rows(conn, f"CREATE TABLE made_{number} (id int)")
        before = verifiers(world)[name]

        report = world.deploy({"action": "rotate"})

        assert report["users"] == {"app_rw": "mended", "app_tc": "rotated"}, case
        assert (works(world, world.secret("user")), works(world, world.secret("creator"))) == (True, True), case
        assert verifiers(world)[name] == before, case
        with world.login("creator") as conn:
            rows(conn, f"ALTER TABLE made_{number} ADD more int")
    assert world.tables() == ["items", *(f"made_{number}" for number in range(len(NAMES)))]


def test_hostile_login_name_longer_than_postgresql_keeps_it_works(world: World) -> None:
    """A user name of more than 63 bytes is the role that PostgreSQL has made of it."""
    whole = "tmp_" + "u" * 70
    world.deploy()
    create_login(world, whole, "tablecreator")
    world.put_secret("creator", {"username": whole, "password": EVERY_CHARACTER})

    reports = [world.deploy()["users"], world.deploy()["users"]]

    assert [list(report.values()) for report in reports] == [["kept", "kept"]] * 2
    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE late (id serial)")
    with world.login("user") as conn:
        rows(conn, "INSERT INTO late DEFAULT VALUES")


# --- Secrets --------------------------------------------------------------------------------------------------------

TEXTS = {
    "half a pair": '{"username": "app_rw", "password": "\\udc00"}',
    "NUL": '{"username": "app_rw\\u0000", "password": "x"}',
    "line ends": '{"username": "app_rw\\n", "password": "x\\r\\n"}',
    "numbers": '{"username": 1e999, "password": -0}',
    "a number of 5,000 digits": '{"username": "app_rw", "password": ' + "1" * 5000 + "}",
    "lists": '{"username": ["app_rw"], "password": {"a": 1}}',
    "a very long name": json.dumps({"username": "x" * 30_000, "password": "y" * 30_000}),
    "a byte order mark": '\ufeff{"username": "app_rw"}',
    "the same key twice": '{"username": "postgres", "username": "app_rw", "password": "x"}',
}


@pytest.mark.slow
def test_hostile_secret_gets_a_login_that_works(world: World) -> None:
    """Whatever text a user's secret holds, the run ends well, and the secret with a login."""
    world.deploy()
    for case, text in TEXTS.items():
        world.put_secret("user", text)

        assert world.deploy()["users"] == {"app_rw": "mended", "app_tc": "kept"}, case
        assert works(world, world.secret("user")), case


def test_hostile_admin_secret_is_refused(world: World) -> None:
    """Whatever text the admin's secret holds, a clear refusal answers it, and shows nothing of it."""
    for text in TEXTS.values():
        world.put_secret("admin", text)

        with pytest.raises(ConfigError, match=r"^DB_SECRET_NAME: secret 'admin' ") as caught:
            world.deploy()

        assert "yyy" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 60_000, '{"a":' * 10_000], ids=["lists", "objects"])
def test_hostile_secret_nested_too_deep_is_not_json(world: World, text: str) -> None:
    """Python's parser gives up on it with another error than on other texts: for us it is the same."""
    world.put_secret("user", text)

    assert world.deploy()["users"] == {"app_rw": "created", "app_tc": "created"}
    assert works(world, world.secret("user"))


# --- Variables ------------------------------------------------------------------------------------------------------

VARIABLES = {
    "DB_NAME": ["x' host='203.0.113.1", "postgresql://203.0.113.1/x", "host=203.0.113.1", "x\ny", "%s", "d" * 200],
    "DB_HOST": ["127.0.0.1' user='postgres", "local host\n", "host=127.0.0.1", "%s", "h" * 300],
    "DB_PORT": ["5432 host=203.0.113.1", "5432\n", "+5432", "5_432", "٥٤٣٢", "0x10"],
    "ROLE_PREFIX": ['x"; DROP TABLE items; --', "shop_\n", "Shop_", "ü_", "x" * 42, "pg_", "%s"],
    "MIGRATIONS_TABLE": ['x"; DROP TABLE items; --', "x\n", "public.x", "x" * 50, "%s"],
    "LOCK_TIMEOUT": ["4s'; DROP TABLE items; --", "4s\n", "٤s", "-4s", "4"],
    "CREATE_USERS": ["false\n", "no", "false; true", "''"],
    "ALLOW_EDITED_MIGRATIONS": ["true\n", "1"],
    "BASELINE": ["001_items'; DROP TABLE items; --", "../001_items", "001_items\n", "%"],
    "DB_USER_SECRET_NAME": ["../admin", "x" * 3000, "user'; --", "üser", "a b\n"],
    "DB_SECRET_NAME": ["arn:aws:secretsmanager:eu-central-1:123456789012:secret:", "%s", "ad\nmin"],
}


def test_hostile_variable_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """No value of a variable becomes SQL, a connection's option, or a line of its own in the log: it is a name that
    does not exist, or a mistake, and nothing has been done."""
    world.sql(MIGRATION)
    world.write("001_items.sql", MIGRATION)
    for name, values in VARIABLES.items():
        for value in values:
            with pytest.raises(InitializerError) as caught:
                world.deploy(**{name: value})
            assert len(str(caught.value)) <= 1500
    assert world.tables() == ["items"]
    assert world.sql("SELECT to_regclass('schema_migrations')") == [(None,)]
    assert [record for record in caplog.records if "\n" in record.getMessage()] == []


@pytest.mark.parametrize("key", ["dbname", "username"])
def test_hostile_name_cut_off_within_a_letter_is_refused(world: World, key: str) -> None:
    """PostgreSQL cuts a name off after 63 bytes, and its refusal is not UTF-8 where that is in the middle of a letter:
    the answer is one of our errors all the same."""
    world.put_secret("admin", {**world.secret("admin"), key: "ü" * 200})

    with pytest.raises(ConnectError, match=r"^cannot connect to "):
        world.deploy()


def test_hostile_variable_with_nul_is_refused() -> None:
    """A NUL, which only a process that makes its own environment can pass, is a mistake in each variable."""
    problems: list[str] = []
    names = set(VARIABLES) | {"DB_PROXY", "DB_SECRET_NAME"}

    Config.from_env(dict.fromkeys(names, "a\0b"), problems)

    assert {problem.split()[0] for problem in problems} == names


def test_hostile_admin_name_is_not_another_login(world: World) -> None:
    """A user name with a connection's options in it is a user that does not exist, and no way to another one."""
    world.put_secret("admin", {**world.secret("admin"), "username": f"x' user='{ADMIN}"})

    with pytest.raises(InitializerError, match="check username and password in the secret"):
        world.deploy()


def test_hostile_characters_can_be_used_by_psycopg2() -> None:
    """What these tests take for usable is what PostgreSQL takes: all but NUL and halves of pairs."""
    assert limited_users.is_usable(EVERY_CHARACTER)
    assert [text for text in ("", "\0", "\ud800", "a\udfffb") if limited_users.is_usable(text)] == []
    assert psycopg2.extensions.parse_dsn(psycopg2.extensions.make_dsn(password=EVERY_CHARACTER)) == {
        "password": EVERY_CHARACTER
    }

"""The admin signs in by IAM: a token for each connection, over verified TLS, in place of a password."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, Optional
from unittest import mock
from urllib.parse import urlsplit

import database
import initializer
import psycopg2
import pytest
import secret_store
from harness import process, tls
from harness.iam import HOST, RDS_NAME, Front, admin_by_iam, front_of, server_with_iam
from harness.logins import as_superuser, verifiers
from harness.proxy import ANSWERED, Link, Place, proxy_to
from harness.server import Server
from harness.world import ADMIN, AWS_ENVIRONMENT, REGION, Context, World, rows
from test_round_trips import LOGGING_IN, NEW_TABLE, trips

pytestmark = pytest.mark.slow

# An admin without any secret.
NO_SECRETS: dict[str, Optional[str]] = {"DB_SECRET_NAME": None, "DB_USER_SECRET_NAME": None, "DB_PROXY": None}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with server_with_iam() as ours:
        yield ours


@pytest.fixture
def front(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """The admin is a member of rds_iam, and its password is gone."""
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 0)
    world.environ.pop("PGSSLMODE")
    with admin_by_iam(world.server), front_of(world.server, tmp_path) as standing:
        monkeypatch.setattr(database, "RDS_ROOTS", standing.roots)
        world.environ.update(standing.variables)
        world.put_secret("admin", {"username": ADMIN, "dbname": world.dbname, "engine": "postgres"})
        yield standing


def failure(world: World, **environ: Optional[str]) -> str:
    with pytest.raises(initializer.InitializerError) as caught:
        world.deploy(**environ)
    return str(caught.value)


def test_admin_without_a_password_signs_in_by_iam(world: World, front: Front) -> None:
    """A secret without `password` is enough: files run, and the users get their passwords as ever."""
    world.write("001_first.sql", "CREATE TABLE items (id int);")

    report = world.deploy()

    assert [entry["name"] for entry in report["applied"]] == ["001_first"]
    assert (report["users"], report["warnings"]) == ({"app_rw": "created", "app_tc": "created"}, [])
    assert len(front.tokens) == 1
    assert front.refusals == []


def test_admin_needs_no_secret_at_all(world: World, front: Front) -> None:
    """DB_HOST, DB_NAME and DB_USER say it all: nothing is asked of Secrets Manager, and no client is made."""
    world.write("001_first.sql", "CREATE TABLE items (id int);")
    with mock.patch.object(secret_store, "secrets_client") as made:
        report = world.deploy(**NO_SECRETS, DB_USER=ADMIN, DB_NAME=world.dbname)

    assert [entry["name"] for entry in report["applied"]] == ["001_first"]
    assert made.mock_calls == []


@pytest.mark.parametrize("name", [f"{RDS_NAME}.", RDS_NAME.upper()])
def test_token_is_for_the_name_as_rds_writes_it(world: World, front: Front, name: str) -> None:
    """Whatever case, and with the dot of an absolute name: the signature is over the name of the certificate."""
    report = world.deploy(DB_HOST=name, USERS_SIGN_IN="iam")

    assert (report["users"], report["warnings"]) == (BOTH, [])


def test_each_connection_has_a_token_of_its_own(world: World, front: Front) -> None:
    """A run can outlive a token: the new session after a file that leaves the old one changed has a new token."""
    world.write("001_first.sql", "CREATE TABLE first (id int); SELECT pg_sleep(1.1); SELECT pg_advisory_unlock_all();")
    world.write("002_second.sql", "CREATE TABLE second (id int);")
    with mock.patch.object(database, "open_connection", wraps=database.open_connection) as opened:
        report = world.deploy(CREATE_USERS="false")

    assert len(report["applied"]) == 2
    assert len(set(front.tokens)) == opened.call_count == 2  # signed in different seconds


def test_watcher_of_a_long_statement_has_a_token_of_its_own(world: World, front: Front) -> None:
    """Made when it connects: a statement can run for longer than the session's token is valid."""
    world.write("001_long.sql", "SELECT pg_sleep(2.5);")

    world.deploy(CREATE_USERS="false", LOCK_TIMEOUT="2s")  # it looks shortly before

    assert len(set(front.tokens)) == 2


def test_credentials_that_end_meanwhile_are_named_and_leave_the_watcher(
    world: World, front: Front, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program gives them twice, and then no more: the deadline counts all the same."""
    given = {
        "Version": 1,
        "AccessKeyId": front.keys["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": front.keys["AWS_SECRET_ACCESS_KEY"],
        "SessionToken": front.keys["AWS_SESSION_TOKEN"],
        "Expiration": (datetime.now(timezone.utc) + timedelta(minutes=5)).isoformat(),
    }
    for number in (1, 2):  # to begin with, and for the first token
        (tmp_path / f"{number}.json").write_text(json.dumps(given))
    program = f"cd {tmp_path} && {{ mv 1.json now || mv 2.json now; }} && cat now"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh -c '{program}'\nregion = {REGION}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    world.write("001_long.sql", "SELECT pg_sleep(20);")
    variables = {**NO_SECRETS, "DB_USER": ADMIN, "DB_NAME": world.dbname, "CREATE_USERS": "false"}

    with pytest.raises(initializer.InitializerError, match="out of time"):
        world.deploy(context=Context(6), **variables)

    assert "signs in by IAM, but: Error when retrieving credentials from custom-process" in failure(world, **variables)


def test_token_that_iam_does_not_accept_is_explained(world: World, front: Front) -> None:
    """Too old by RDS's clock, or no right to connect: the answer is the same, and says where to look."""
    front.slow = timedelta(minutes=16)

    message = failure(world)

    assert "IAM does not let this login in: the database needs IAM authentication, the function's role" in message
    assert message.endswith(f'PAM authentication failed for user "{ADMIN}"). Nothing has been changed.')
    assert front.refusals == ["age"]


@pytest.mark.parametrize("mode", ["require", "prefer", "disable", "verify-ca"])
def test_token_is_sent_to_nobody_who_is_not_verified(
    world: World, front: Front, mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever PGSSLMODE says: with a certificate of another authority the server is not told the token."""
    assert world.deploy(PGSSLMODE=mode, CREATE_USERS="false")["status"] == "ok"
    seen = len(front.tokens)
    (front.roots / f"{REGION}.pem").write_text(tls.issue_certificate(world.environ["DB_HOST"]).ca)

    assert "certificate" in failure(world, PGSSLMODE=mode, CREATE_USERS="false")
    assert (len(front.tokens), front.refusals) == (seen, [])


MISTAKES: dict[str, tuple[dict[str, Optional[str]], str]] = {
    "nothing": (
        {"DB_SECRET_NAME": None},
        "DB_SECRET_NAME is missing: name or ARN of the secret with the database's admin login; or set DB_HOST, DB_NAME "
        "and DB_USER for one who signs in by IAM",
    ),
    "no host, no name": (
        {"DB_SECRET_NAME": None, "DB_USER": ADMIN, "DB_HOST": None},
        "DB_USER has no usable host, dbname: set DB_HOST and DB_NAME",
    ),
    "empty user": ({"DB_SECRET_NAME": None, "DB_USER": ""}, "DB_USER is set but empty: give it a value or remove it"),
    "two admins": ({"DB_USER": ADMIN}, "DB_SECRET_NAME and DB_USER name an admin each: remove one"),
    "alias": (
        {"DB_HOST": "db.example.com"},
        f"{ADMIN} has no password, and a token of IAM is only sent to a server that is verified: set DB_HOST to the "
        "name that RDS gave, or PGSSLROOTCERT to its authority's certificate",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_before_anything_is_touched(world: World, front: Front, case: str) -> None:
    """What is missing, and an address to which no token goes."""
    environ, words = MISTAKES[case]

    assert failure(world, **environ) == f"{words}. Nothing has been touched."


def test_role_without_credentials_is_named(world: World, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of Lambda there may be no role to sign with."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")

    message = failure(world, **NO_SECRETS, DB_USER=ADMIN, DB_NAME=world.dbname)

    assert (
        message == f"{ADMIN} signs in by IAM, but there is no role or no AWS_DEFAULT_REGION. Nothing has been touched."
    )


FORGERIES = {
    "user": lambda token: token.replace(f"DBUser={ADMIN}", "DBUser=postgres"),
    "host": lambda token: "other" + token,
    "key or region": lambda token: token.replace(REGION + "%2Frds-db", "us-east-1%2Frds-db"),
    "signature": lambda token: token[:-4] + "0000",
    "action": lambda token: token.replace("Action=connect", "Action=other"),
}


@pytest.mark.parametrize("part", FORGERIES)
def test_front_takes_only_what_rds_takes(world: World, front: Front, part: str) -> None:
    """The tests' own RDS refuses a token that is another one's in any part."""
    world.deploy(CREATE_USERS="false")
    token = front.tokens[0]

    assert front.problem_of(token, ADMIN) == ""
    assert part in front.problem_of(FORGERIES[part](token), ADMIN)
    assert urlsplit(f"https://{token}").port == front.port


def test_token_is_said_nowhere(world: World, front: Front, caplog: pytest.LogCaptureFixture) -> None:
    """Neither report, log nor message has it."""
    report = world.deploy()
    front.slow = timedelta(minutes=16)
    message = failure(world)

    said = json.dumps(report) + message + caplog.text
    assert "X-Amz" not in said
    assert verifiers(world)[ADMIN] is not None  # the password is there, and was not used


# --- Users ----------------------------------------------------------------------------------------------------------

BOTH = {"app_rw": "created", "app_tc": "created"}


def by_iam(world: World) -> set[str]:
    """The members of rds_iam, but for the admin."""
    members = "SELECT member::regrole::text FROM pg_auth_members WHERE roleid = 'rds_iam'::regrole"
    return {name for (name,) in as_superuser(world, members)} - {ADMIN}


@contextmanager
def application(front: Front, world: World, username: str, password: str = "") -> Iterator[Any]:
    """A session of the application through the front: with this password, or with a token that it signs itself."""
    region = database.region_of(front.variables["DB_HOST"])
    secret = password or secret_store.token_maker(front.variables["DB_HOST"], front.port, username, region)()
    conn = psycopg2.connect(
        host=front.variables["DB_HOST"],
        hostaddr="127.0.0.1",
        port=front.port,
        dbname=world.dbname,
        user=username,
        password=secret,
        channel_binding="disable",
        sslmode="verify-full",
        sslrootcert=str(front.roots / f"{REGION}.pem"),
    )
    try:
        yield conn
    finally:
        conn.close()


def can_write(front: Front, world: World, username: str, password: str = "") -> bool:
    with application(front, world, username, password) as conn:
        return rows(conn, "INSERT INTO items VALUES (1) RETURNING true") == [(True,)]


@pytest.fixture
def items(world: World) -> None:
    world.write("001_items.sql", "CREATE TABLE items (id int);")


def test_users_sign_in_by_iam_and_have_no_password(world: World, front: Front, items: None) -> None:
    """Their secrets hold everything but a password; the next run finds them working and changes nothing."""
    assert world.deploy(USERS_SIGN_IN="iam")["users"] == BOTH

    assert by_iam(world) == {"app_rw", "app_tc"}
    assert [verifiers(world)[name] for name in ("app_rw", "app_tc")] == [None, None]
    assert set(world.secret("user")) == {"engine", "host", "port", "dbname", "username"}
    assert can_write(front, world, "app_rw")
    versions = world.versions("user")
    again = world.deploy(USERS_SIGN_IN="iam")
    assert (again["users"], again["warnings"]) == ({"app_rw": "kept", "app_tc": "kept"}, [])
    assert world.versions("user") == versions
    assert world.deploy({"action": "status"}, USERS_SIGN_IN="iam")["users"] == {"app_rw": "works", "app_tc": "works"}


def test_users_by_iam_need_no_secret(world: World, front: Front, items: None) -> None:
    """Nothing is asked of Secrets Manager, in the first run and in later ones: its endpoint is not needed."""
    variables = {**NO_SECRETS, "DB_USER": ADMIN, "DB_NAME": world.dbname, "USERS_SIGN_IN": "iam"}
    with mock.patch.object(secret_store, "secrets_client") as made:
        runs = [world.deploy(**variables)["users"], world.deploy(**variables)["users"]]
        tried = world.deploy({"action": "dry_run"}, **variables)["users"]

    assert runs == [BOTH, {"app_rw": "kept", "app_tc": "kept"}]
    assert tried == runs[1]
    assert made.mock_calls == []
    assert can_write(front, world, "app_tc")


def test_users_by_iam_without_a_secret_are_not_rotated(world: World, front: Front) -> None:
    """Nobody would learn of another login, and there is no password to replace."""
    variables = {**NO_SECRETS, "DB_USER": ADMIN, "DB_NAME": world.dbname, "USERS_SIGN_IN": "iam"}
    world.deploy(**variables)

    assert world.deploy({"action": "rotate"}, **variables)["users"] == {"app_rw": "kept", "app_tc": "kept"}
    assert by_iam(world) == {"app_rw", "app_tc"}


def test_login_with_a_password_is_not_locked_out_where_no_secret_is_named(
    world: World, front: Front, items: None
) -> None:
    """An application may use it: only who says that nobody does can have it changed."""
    world.deploy()
    before = world.secret("user")
    variables = {**NO_SECRETS, "DB_USER": ADMIN, "DB_NAME": world.dbname, "USERS_SIGN_IN": "iam"}

    assert (
        "login app_rw exists and does not sign in by IAM: whoever uses it would be locked out. It was not changed. "
        "Name its secret again, with which it changes over; or, if nobody uses it: GRANT rds_iam TO app_rw."
    ) in failure(world, **variables)

    assert can_write(front, world, before["username"], before["password"])
    as_superuser(world, "GRANT rds_iam TO app_rw, app_tc")
    assert world.deploy(**variables)["users"] == {"app_rw": "kept", "app_tc": "kept"}


def test_users_change_over_to_iam_while_the_old_logins_work(world: World, front: Front, items: None) -> None:
    """The other one of the two logins has no password; who uses the one from before goes on."""
    world.deploy()
    before = world.secret("user")

    assert world.deploy({"action": "dry_run"}, USERS_SIGN_IN="iam")["users"]["app_rw_clone"] == "would be rotated"
    with application(front, world, before["username"], before["password"]) as session:
        report = world.deploy(USERS_SIGN_IN="iam")
        rows(session, "INSERT INTO items VALUES (2)")

    assert report["users"] == {"app_rw_clone": "rotated", "app_tc_clone": "rotated"}
    assert can_write(front, world, before["username"], before["password"])
    now = world.secret("user")
    assert (now["username"], "password" in now) == ("app_rw_clone", False)
    assert can_write(front, world, now["username"])
    assert world.deploy(USERS_SIGN_IN="iam")["users"] == {"app_rw_clone": "kept", "app_tc_clone": "kept"}


def test_users_change_back_to_passwords_while_the_old_logins_work(world: World, front: Front, items: None) -> None:
    """Whoever signs tokens for the login from before goes on."""
    world.deploy(USERS_SIGN_IN="iam")

    report = world.deploy()

    assert report["users"] == {"app_rw_clone": "rotated", "app_tc_clone": "rotated"}
    now = world.secret("user")
    assert can_write(front, world, now["username"], now["password"])
    assert can_write(front, world, "app_rw")
    assert by_iam(world) == {"app_rw", "app_tc"}
    assert world.deploy({"action": "rotate"})["users"] == {"app_rw": "rotated", "app_tc": "rotated"}
    assert by_iam(world) == set()
    now = world.secret("user")
    assert can_write(front, world, now["username"], now["password"])


def test_member_of_rds_iam_is_not_broken_for_refusing_its_password(
    world: World, front: Front, items: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody granted rds_iam by hand: the login is left as it is, immediately, and the report says why."""
    world.deploy()
    before = world.secret("user")
    as_superuser(world, "GRANT rds_iam TO app_rw")
    monkeypatch.setattr(database, "CONNECT_PATIENCE_S", 60)

    report = world.deploy()

    assert "waiting for the database" not in caplog.text
    assert report["users"] == {"app_rw": "not tried", "app_tc": "kept"}
    assert "the server asks for the password in clear, and is not sent it" in report["warnings"][0]
    assert world.secret("user") == before


def test_users_by_iam_need_a_server_that_is_verified(world: World, front: Front) -> None:
    """An alias: refused before anything is touched."""
    secret = {**world.secret("admin"), "password": "x"}
    world.put_secret("admin", secret)

    message = failure(world, DB_HOST="db.example.com", USERS_SIGN_IN="iam")

    assert message.startswith("USERS_SIGN_IN: a user has no password, and a token of IAM is only sent to a server")
    assert message.endswith("Nothing has been touched.")
    assert failure(world, USERS_SIGN_IN="yes") == (
        'USERS_SIGN_IN is \'yes\', but must be "iam" or "password". Nothing has been touched.'
    )


@pytest.mark.parametrize("sign_in", ["password", "iam"])
def test_round_trips_by_iam_are_as_many_as_by_password(world: World, front: Front, items: None, sign_in: str) -> None:
    """Of a first run that makes two logins and tries them, and of one that has nothing to do; see test_round_trips."""
    environ: dict[str, Optional[str]] = {"USERS_SIGN_IN": sign_in}
    with proxy_to(world.server.host, world.server.port) as proxy:
        if sign_in == "iam":
            front.beyond = (HOST, proxy.port)
        else:
            environ.update(DB_HOST=HOST, DB_PORT=str(proxy.port), PGSSLMODE="disable", PGHOSTADDR=None)
            world.put_secret("admin", {**world.secret("admin"), "password": world.server.password})
        with trips(proxy) as first:
            assert world.deploy(**environ)["users"] == BOTH
        with trips(proxy) as second:
            assert world.deploy(**environ)["users"] == {"app_rw": "kept", "app_tc": "kept"}

    counted = [[trip for trip in asked if not trip.said.startswith(LOGGING_IN)] for asked in (first, second)]
    assert [len(asked) for asked in counted] == [19 + len(NEW_TABLE), 5]


def test_change_over_that_is_cut_off_locks_nobody_out(world: World, front: Front, items: None) -> None:
    """After each message, in both directions: the login that the secret held works, and the one that it holds."""
    one_user: dict[str, Optional[str]] = {"DB_PROXY": None}
    world.deploy(**one_user)
    with proxy_to(world.server.host, world.server.port) as proxy:
        front.beyond = (HOST, proxy.port)
        for last, sign_in in zip(range(1, 100), itertools.cycle(["iam", "password"])):
            before = world.secret("user")
            messages: list[str] = []
            proxy.watch(partial(cut_after, messages, last))
            with suppress(initializer.InitializerError):
                world.deploy(**one_user, USERS_SIGN_IN=sign_in)
            proxy.watch(None)

            for value in (before, world.secret("user")):
                assert can_write(front, world, value["username"], value.get("password", "")), messages
            report = world.deploy(**one_user, USERS_SIGN_IN=sign_in)
            assert report["warnings"] == []
            assert ("password" in world.secret("user")) == (sign_in == "password")
            if len(messages) < last:
                break
    assert last > 15


def cut_after(messages: list[str], last: int, place: Place, link: Link) -> None:
    """Lose the answer to the last of so many messages; those of logging in do not count."""
    if place.phase == ANSWERED and not link.said.startswith(LOGGING_IN):
        messages.append(link.said)
        if len(messages) == last:
            link.cut()


# --- As Lambda runs it ----------------------------------------------------------------------------------------------


def test_folder_in_a_process_of_its_own_needs_no_secrets_manager(world: World, front: Front, tmp_path: Path) -> None:
    """A copy of the folder, credentials, and an endpoint of AWS that leads nowhere: tokens are signed by the folder."""
    folder = tmp_path / "db_setup"
    shutil.copytree(Path(initializer.__file__).parent, folder)
    shutil.copytree(front.roots, folder / "rds_roots", dirs_exist_ok=True)
    front.keys = dict(AWS_ENVIRONMENT)
    environ = {**AWS_ENVIRONMENT, **front.variables, "DB_USER": ADMIN, "DB_NAME": world.dbname}
    environ.update(USERS_SIGN_IN="iam", AWS_ENDPOINT_URL="http://127.0.0.1:1")

    done = process.python(process.HANDLE, folder, tmp_path, environ)

    report = json.loads(done.stdout)
    assert (report["users"], report["warnings"]) == (BOTH, []), done.stderr
    assert len(front.tokens) == 3  # the admin's, and a trial of each login
    assert front.refusals == []

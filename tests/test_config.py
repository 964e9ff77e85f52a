"""Every setting that design and README name, and every mistake in one: reported together, with nothing touched."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import config
import initializer
import pytest
import secret_store
from common import Deadline
from harness.database import SCHEMA
from harness.world import ADMIN, ADMIN_PASSWORD, AWS_ENVIRONMENT, World

USERS = "CREATE TABLE users (id int PRIMARY KEY);\n"
UNTOUCHED = ". Nothing has been touched."
ADMIN_SECRET = "DB_SECRET_NAME: secret 'admin' "
NO_LOGIN = ": it must hold the admin login as JSON" + UNTOUCHED
ABSENT = "does not exist in this account and region (pass its ARN if it lives elsewhere)"
VARIABLES = [
    "DB_SECRET_NAME",
    "DB_USER_SECRET_NAME",
    "DB_PROXY",
    "CREATE_USERS",
    "DB_HOST",
    "DB_PORT",
    "DB_NAME",
    "BASELINE",
    "ALLOW_EDITED_MIGRATIONS",
    "MIGRATIONS_TABLE",
    "ROLE_PREFIX",
    "LOCK_TIMEOUT",
]
TARGETS = ["DB_USER_SECRET_NAME", "DB_PROXY"]
ABSENT_ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:not-there-AbCdEf"


@pytest.fixture(autouse=True)
def _one_migration(world: World) -> None:
    world.write("001_users.sql", USERS)


def touchable(world: World) -> tuple[Any, ...]:
    """All that a run may change: relations, roles, and the values that each secret has had."""
    found = world.sql(
        f"SELECT relname::text FROM pg_class WHERE relnamespace = '{SCHEMA}'::regnamespace "
        "UNION ALL SELECT rolname::text FROM pg_roles ORDER BY 1"
    )
    names = [secret["Name"] for secret in world.secrets.list_secrets()["SecretList"]]
    return found, {name: world.versions(name) for name in names}


def refusal(world: World, **environ: Optional[str]) -> str:
    """What the ConfigError of a deployment says, which must have touched nothing."""
    before = touchable(world)

    with pytest.raises(initializer.ConfigError) as caught:
        world.deploy(**environ)

    assert touchable(world) == before
    return str(caught.value)


def refusals(world: World, variable: str, values: Iterable[str]) -> dict[str, str]:
    """What is said of each value of this variable."""
    return {value: refusal(world, **{variable: value}) for value in values}


def our_roles(world: World, prefix: str = "") -> list[str]:
    """The roles with our names, of all applications or of the one with this prefix."""
    found = world.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '(readwrite|tablecreator|app_rw|app_tc)$'")
    return sorted(name for (name,) in found if name.startswith(prefix))


def arn(world: World, name: str) -> str:
    return str(world.secrets.describe_secret(SecretId=name)["ARN"])


def identified(world: World, name: str, how: str) -> str:
    return arn(world, name) if how == "arn" else name


def change_admin(world: World, **changes: Any) -> None:
    """Change keys of the admin secret's object; None takes one away."""
    value = {key: value for key, value in {**world.secret("admin"), **changes}.items() if value is not None}
    world.put_secret("admin", value)


# --- Variables ------------------------------------------------------------------------------------------------------


def test_admin_secret_name_missing_is_refused(world: World) -> None:
    """The one required variable is asked for by name and meaning."""
    assert refusal(world, DB_SECRET_NAME=None) == (
        "DB_SECRET_NAME is missing: name or ARN of the secret with the database's admin login; or set DB_HOST, DB_NAME "
        "and DB_USER for one who signs in by IAM" + UNTOUCHED
    )


def test_variable_set_but_empty_is_refused(world: World) -> None:
    """A variable that is set but empty is a mistake; the default is not used."""
    cases = [(name, value) for name in VARIABLES for value in ("", " \t")]

    said = {(name, value): refusal(world, **{name: value}) for name, value in cases}

    remedies = dict.fromkeys(VARIABLES, "give it a value or remove it")
    remedies["DB_SECRET_NAME"] = "give it a value"
    assert said == {(name, value): f"{name} is set but empty: {remedies[name]}{UNTOUCHED}" for name, value in cases}


def test_flag_not_a_boolean_is_refused(world: World) -> None:
    """Only true and false are understood."""
    values = ["no", "0", "1", "yes", "truefalse", "true "]
    for name in ("CREATE_USERS", "ALLOW_EDITED_MIGRATIONS"):
        said = refusals(world, name, values)

        assert said == {value: f'{name} is {value!r}, but must be "true" or "false"{UNTOUCHED}' for value in values}


def test_create_users_true_is_read_in_any_case(world: World) -> None:
    """CDK writes "true", Python's str() writes "True"."""
    users = [list(world.deploy(CREATE_USERS=value)["users"]) for value in ("true", "True", "TRUE")]

    assert users == [["app_rw", "app_tc"]] * 3


def test_create_users_false_touches_no_role_and_no_secret(world: World) -> None:
    """The migrations run, nothing else; the target secrets are not even looked at."""
    versions = touchable(world)[1]

    reports = [
        world.deploy(CREATE_USERS=value, DB_PROXY="not-there", DB_USER_SECRET_NAME="admin")
        for value in ("false", "False", "FALSE")
    ]

    assert [report["users"] for report in reports] == [{}] * 3
    assert world.applied() == ["001_users"]
    assert our_roles(world) == []
    assert touchable(world)[1] == versions


def test_port_variable_not_a_port_is_refused_by_its_name(world: World) -> None:
    """The variable is named, for the secret's own port may be right."""
    values = ["x", "54x2", "-1", "5432.0", "5432 ", "123456", "0", "65536", "99999"]

    said = refusals(world, "DB_PORT", values)

    form = "a port number (1 to 65535)"
    assert said == {value: f"DB_PORT is {value!r}, but must be {form}{UNTOUCHED}" for value in values}


def test_lock_timeout_of_another_form_is_refused(world: World) -> None:
    """A number without its unit could be anything, and 0 would wait forever."""
    values = ["4", "0s", "0ms", "4 s", "1min", "-1s", "4S", "1.5s", "1000000s", "s"]

    said = refusals(world, "LOCK_TIMEOUT", values)

    form = 'a time such as "4s" or "500ms"'
    assert said == {value: f"LOCK_TIMEOUT is {value!r}, but must be {form}{UNTOUCHED}" for value in values}


def test_lock_timeout_is_in_force_for_migrations(world: World) -> None:
    """The server works with the time that was set, 4 s by default."""
    values = {None: 4000, "250ms": 250, "7s": 7000, "999999s": 999_999_000}
    for number, value in enumerate(values, 2):
        seen = f"CREATE TABLE seen_{number} AS SELECT setting::int FROM pg_settings WHERE name = 'lock_timeout'"
        world.write(f"{number:03d}_seen.sql", seen)

        world.deploy(LOCK_TIMEOUT=value)

    assert [world.sql(f"SELECT * FROM seen_{number}") for number in range(2, 6)] == [[(ms,)] for ms in values.values()]


def test_migrations_table_not_a_plain_identifier_is_refused(world: World) -> None:
    """A name that has to be quoted is refused, and one that leaves no room for the names made from it."""
    values = ["Migrations", "a b", "public.x", "x-y", '"x"', "1st", "x;", "größe", "a" * 50]

    said = refusals(world, "MIGRATIONS_TABLE", values)

    form = "lower-case letters, digits and _, at most 49 characters"
    assert said == {value: f"MIGRATIONS_TABLE is {value!r}, but must be {form}{UNTOUCHED}" for value in values}


def test_role_prefix_not_a_plain_identifier_is_refused(world: World) -> None:
    """Four role names begin with it: none should need quotes or be cut off, and PostgreSQL keeps pg_ (42939)."""
    values = ["Shop_", "shop-", "1_", "ä_", "a b", "a" * 42, "pg_shop_"]

    said = refusals(world, "ROLE_PREFIX", values)

    form = "lower-case letters, digits and _, at most 41 characters, not beginning with pg_"
    assert said == {value: f"ROLE_PREFIX is {value!r}, but must be {form}{UNTOUCHED}" for value in values}


def test_role_prefix_precedes_all_four_names(world: World) -> None:
    """The prefix, however long, is put literally before both groups and both logins."""
    for prefix in ("shop_", "a" * 41):
        report = world.deploy(ROLE_PREFIX=prefix)

        names = [prefix + name for name in ("app_rw", "app_tc", "readwrite", "tablecreator")]
        assert our_roles(world, prefix) == names
        assert report["users"] == {f"{prefix}app_rw": "created", f"{prefix}app_tc": "created"}
    assert len(our_roles(world)) == 8


def test_baseline_that_names_no_file_is_refused(world: World) -> None:
    """A misspelt baseline must not let everything run again on a database that exists."""
    values = ["002_orders", "001", "001_USERS", "001_users.sql.sql", "../001_users"]

    said = refusals(world, "BASELINE", values)

    assert said == {
        value: f"BASELINE is {value!r}, but there is no such file in migrations/{UNTOUCHED}" for value in values
    }


def test_migrations_folder_missing_is_refused(world: World) -> None:
    """A folder that was left out of the asset is not an empty folder."""
    world.remove("001_users.sql")
    world.folder.rmdir()

    assert refusal(world) == f"the folder migrations/ is missing next to initializer.py{UNTOUCHED}"


# --- The admin secret -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["name", "arn"])
def test_secrets_are_found_by_name_and_by_arn(world: World, how: str) -> None:
    """All three variables take either."""
    report = world.deploy(
        DB_SECRET_NAME=identified(world, "admin", how),
        DB_USER_SECRET_NAME=identified(world, "user", how),
        DB_PROXY=identified(world, "creator", how),
    )

    assert report["users"] == {"app_rw": "created", "app_tc": "created"}
    assert [world.secret(name)["username"] for name in ("admin", "user", "creator")] == [ADMIN, "app_rw", "app_tc"]


def test_admin_secret_absent_is_refused(world: World) -> None:
    """The secret is named, and that a name may be looked for in the wrong place, which an ARN is not."""
    told = "does not exist in this account and region"

    by_name, by_arn = (refusal(world, DB_SECRET_NAME=name) for name in ("not-there", ABSENT_ARN))

    assert by_name == f"DB_SECRET_NAME: secret 'not-there' {ABSENT}{UNTOUCHED}"
    assert by_arn == f"DB_SECRET_NAME: secret '{ABSENT_ARN}' {told}{UNTOUCHED}"


def test_admin_secret_without_a_value_is_refused(world: World) -> None:
    """A secret that was made and never filled says nothing."""
    world.secrets.create_secret(Name="hollow")

    assert refusal(world, DB_SECRET_NAME="hollow") == ("DB_SECRET_NAME: secret 'hollow' has no value yet" + NO_LOGIN)


def test_admin_secret_of_another_form_is_refused_without_showing_it(world: World) -> None:
    """The value may be a password on its own: it is not repeated."""
    values = {
        "pass word": "is not JSON",
        "{'username': 'x'}": "is not JSON",
        "[]": "is not a JSON object",
        "null": "is not a JSON object",
        '"text"': "is not a JSON object",
    }
    said = {}
    for value in values:
        world.put_secret("admin", value)
        said[value] = refusal(world)

    assert said == {value: ADMIN_SECRET + complaint + NO_LOGIN for value, complaint in values.items()}


def test_admin_secret_binary_is_refused(world: World) -> None:
    """Secrets Manager also keeps bytes, which are not JSON."""
    world.secrets.create_secret(Name="bytes", SecretBinary=b"\xff\x00")

    assert refusal(world, DB_SECRET_NAME="bytes") == f"DB_SECRET_NAME: secret 'bytes' is not JSON{NO_LOGIN}"


@pytest.mark.slow
def test_admin_secret_lacking_a_key_is_refused(world: World) -> None:
    """Absent, empty, no text, or no text for PostgreSQL: the key is named, and the variable that could replace it."""
    remedies = {"username": "", "password": "", "host": ", or set DB_HOST", "dbname": ", or set DB_NAME"}
    whole = world.secret("admin")
    by_iam = (
        f"{ADMIN} has no password, and a token of IAM is only sent to a server that is verified: set DB_HOST to the "
        f"name that RDS gave, or PGSSLROOTCERT to its authority's certificate{UNTOUCHED}"
    )
    for key, remedy in remedies.items():
        said = []
        for value in (None, "", [], {}, True, "a\0b", "\ud800"):
            world.put_secret("admin", whole)
            change_admin(world, **{key: value})
            said.append(refusal(world))

        expected = [f"{ADMIN_SECRET}has no usable {key}: add that to its JSON{remedy}{UNTOUCHED}"] * 7
        assert said == ([by_iam, *expected[1:]] if key == "password" else expected)


def test_admin_secret_with_a_wrong_port_is_refused(world: World) -> None:
    """A port is a number from 1 to 65535, whichever way it is written."""
    no_port = f"{ADMIN_SECRET}has no usable port: add that to its JSON{UNTOUCHED}"
    wrong_port = f"DB_SECRET_NAME: secret 'admin': port must be a number from 1 to 65535{UNTOUCHED}"
    values = {
        no_port: ("", True, 5432.5, []),
        wrong_port: ("x", 0, "0", -1, 65536, "5432.0"),
    }
    for message, ports in values.items():
        said = []
        for port in ports:
            change_admin(world, port=port)
            said.append(refusal(world))

        assert said == [message] * len(ports)


def test_admin_secret_without_port_means_5432() -> None:
    """PostgreSQL's own port is the default."""
    problems: list[str] = []
    secret = {"username": "u", "password": "p", "host": "h", "dbname": "d"}

    login = config.Config("admin").login(secret, problems)

    assert login is not None
    assert (login.endpoint.port, problems) == (5432, [])


def test_admin_secret_of_another_engine_is_refused(world: World) -> None:
    """The login of a MySQL database is the wrong secret."""
    change_admin(world, engine="mysql")

    assert refusal(world) == f"{ADMIN_SECRET}is for engine 'mysql': only PostgreSQL is supported{UNTOUCHED}"


def test_admin_secret_of_any_postgresql_is_taken(world: World) -> None:
    """RDS, Aurora, and a secret that does not say."""
    engines = []
    for engine in ("postgres", "aurora-postgresql", None):
        change_admin(world, engine=engine)
        engines.append(world.deploy()["status"])

    assert engines == ["ok"] * 3


def test_rds_managed_secret_needs_host_and_name(world: World) -> None:
    """A secret that RDS manages holds username and password alone: what else is needed is reported together."""
    world.put_secret("admin", {"username": ADMIN, "password": ADMIN_PASSWORD})

    assert refusal(world) == (
        f"{ADMIN_SECRET}has no usable host, dbname: add that to its JSON, or set DB_HOST and DB_NAME{UNTOUCHED}"
    )


def test_rds_managed_secret_is_completed_by_variables(world: World) -> None:
    """The variables say what RDS leaves out; the limited users' secrets then hold all of it."""
    world.put_secret("admin", {"username": ADMIN, "password": ADMIN_PASSWORD})

    report = world.deploy(DB_HOST=world.server.host, DB_PORT=str(world.server.port), DB_NAME=world.dbname)

    assert [entry["name"] for entry in report["applied"]] == ["001_users"]
    written = {key: value for key, value in world.secret("user").items() if key != "password"}
    assert written == {
        "engine": "postgres",
        "host": world.server.host,
        "port": world.server.port,
        "dbname": world.dbname,
        "username": "app_rw",
    }
    assert world.secret("admin") == {"username": ADMIN, "password": ADMIN_PASSWORD}


def test_variables_take_precedence_over_the_secret(world: World) -> None:
    """DB_HOST, DB_PORT and DB_NAME win, each of them."""
    change_admin(world, host="elsewhere.invalid", port=1, dbname="another")

    report = world.deploy(DB_HOST=world.server.host, DB_PORT=str(world.server.port), DB_NAME=world.dbname)

    assert report["database"] == f"{ADMIN}@{world.server.host}:{world.server.port}/{world.dbname}"
    assert world.applied() == ["001_users"]


# --- The target secrets ---------------------------------------------------------------------------------------------


def test_target_secret_absent_is_refused(world: World) -> None:
    """A run that could not keep its promise to write a login does not begin."""
    said = [refusal(world, **{name: "not-there"}) for name in TARGETS]

    assert said == [f"{name}: secret 'not-there' {ABSENT}{UNTOUCHED}" for name in TARGETS]


def test_target_secret_marked_for_deletion_is_refused_with_the_reason(world: World) -> None:
    """`cdk destroy` leaves such secrets for weeks, and the next deployment meets them."""
    world.secrets.delete_secret(SecretId="creator", RecoveryWindowInDays=7)

    message = refusal(world)

    answer = "Secrets Manager answered InvalidRequestException to GetSecretValue: "
    assert message.startswith(f"DB_PROXY: secret 'creator' is refused: {answer}")
    assert "deleted" in message


def test_admin_secret_named_as_target_is_refused(world: World) -> None:
    """The admin's secret is never overwritten, whichever way it is named here and there."""
    names = ["admin", arn(world, "admin")]
    cases = [(variable, a, b) for variable in TARGETS for a in names for b in names]

    said = {(variable, a, b): refusal(world, **{"DB_SECRET_NAME": a, variable: b}) for variable, a, b in cases}

    verdict = "holds the admin login and is never written: name another"
    assert said == {(variable, a, b): f"{variable}: secret '{b}' {verdict}{UNTOUCHED}" for variable, a, b in cases}


def test_admin_secret_named_as_target_is_refused_also_when_it_cannot_be_read(world: World) -> None:
    """Both mistakes are reported together: that it is not there, and that it is named twice."""
    message = refusal(world, DB_SECRET_NAME="not-there", DB_PROXY="not-there")

    assert message.startswith(f"DB_SECRET_NAME: secret 'not-there' {ABSENT}; ")
    assert "; DB_PROXY: secret 'not-there' holds the admin login and is never written: name another" in message


def test_one_secret_for_both_users_is_refused(world: World) -> None:
    """The second login would overwrite the first one's; that is seen in an empty secret, as CDK makes it, too."""
    names = ["user", arn(world, "user")]
    verdict = "is named for two users: each needs a secret of its own"
    for value in (None, {"username": "applicationUsername"}):
        if value:
            world.put_secret("user", value)

        said = {(a, b): refusal(world, DB_USER_SECRET_NAME=a, DB_PROXY=b) for a in names for b in names}

        assert said == {(a, b): f"DB_PROXY: secret '{b}' {verdict}{UNTOUCHED}" for a in names for b in names}


def test_target_variable_left_out_makes_no_such_login(world: World) -> None:
    """Both targets are optional, one without the other too; the group roles are made all the same."""
    cases: list[tuple[str, dict[str, Optional[str]], list[str]]] = [
        ("neither_", {"DB_USER_SECRET_NAME": None, "DB_PROXY": None}, []),
        ("user_", {"DB_PROXY": None}, ["app_rw"]),
        ("creator_", {"DB_USER_SECRET_NAME": None}, ["app_tc"]),
    ]
    for prefix, environ, logins in cases:
        report = world.deploy(ROLE_PREFIX=prefix, **environ)

        assert list(report["users"]) == [prefix + login for login in logins]
        assert our_roles(world, prefix) == [prefix + name for name in (*logins, "readwrite", "tablecreator")]


# --- All together ---------------------------------------------------------------------------------------------------

EVERY_MISTAKE = {
    "DB_HOST": "",
    "DB_PORT": "many",
    "DB_NAME": " ",
    "CREATE_USERS": "perhaps",
    "ALLOW_EDITED_MIGRATIONS": "1",
    "MIGRATIONS_TABLE": "My Table",
    "ROLE_PREFIX": "Shop-",
    "LOCK_TIMEOUT": "soon",
    "DEPLOYMENT": "two\nlines",
    "BASELINE": "000_nothing",
}


def long_arn(name: str) -> str:
    """An ARN of the length that CDK's generated names have."""
    return f"arn:aws:secretsmanager:eu-central-1:123456789012:secret:{name}SecretA1B2C3D4-x0YzAbCdEf12-AbCdEf"


def test_mistakes_of_every_kind_are_reported_together(world: World) -> None:
    """One deployment is enough to learn of all of them, with names as long as CDK makes them."""
    world.put_secret("admin", {"engine": "mysql"})

    message = refusal(
        world,
        **EVERY_MISTAKE,
        DB_SECRET_NAME=arn(world, "admin"),
        DB_USER_SECRET_NAME=long_arn("ApplicationUser"),
        DB_PROXY=long_arn("TableCreator"),
    )

    empty = "is set but empty: give it a value or remove it"
    plain, flag = "must be lower-case letters, digits and _, at most", 'must be "true" or "false"'
    time = 'must be a time such as "4s" or "500ms"'
    absent = "does not exist in this account and region"
    admin = f"DB_SECRET_NAME: secret '{arn(world, 'admin')}'"
    assert message.split("; ") == [
        f"CREATE_USERS is 'perhaps', but {flag}",
        f"DB_HOST {empty}",
        "DB_PORT is 'many', but must be a port number (1 to 65535)",
        f"DB_NAME {empty}",
        f"ALLOW_EDITED_MIGRATIONS is '1', but {flag}",
        f"MIGRATIONS_TABLE is 'My Table', but {plain} 49 characters",
        f"ROLE_PREFIX is 'Shop-', but {plain} 41 characters, not beginning with pg_",
        f"LOCK_TIMEOUT is 'soon', but {time}",
        r"DEPLOYMENT is 'two\nlines', but must be one line of at most 200 characters",
        f"{admin} has no usable host, dbname, username, password: add that to its JSON, or set DB_HOST and DB_NAME",
        f"{admin} is for engine 'mysql': only PostgreSQL is supported",
        f"DB_USER_SECRET_NAME: secret '{long_arn('ApplicationUser')[:89]}…' {absent}",
        f"DB_PROXY: secret '{long_arn('TableCreator')[:89]}…' {absent}",
        f"BASELINE is '000_nothing', but there is no such file in migrations/{UNTOUCHED}",
    ]
    assert len(message) <= 1500


def test_admin_secret_name_missing_does_not_hide_mistakes_in_the_targets(world: World) -> None:
    """The target secrets can be looked at without the admin's."""
    message = refusal(world, DB_SECRET_NAME=None, DB_PROXY="not-there")

    assert message == (
        "DB_SECRET_NAME is missing: name or ARN of the secret with the database's admin login; or set DB_HOST, DB_NAME "
        "and DB_USER for one who signs in by IAM; "
        f"DB_PROXY: secret 'not-there' {ABSENT}{UNTOUCHED}"
    )


def test_a_long_value_does_not_push_out_other_mistakes(world: World) -> None:
    """A message ends at 1,500 characters: a value pasted into the wrong variable must not use them up."""
    message = refusal(world, ROLE_PREFIX="x" * 3000, DB_PROXY="not-there")

    assert message.startswith("ROLE_PREFIX is 'xxx")
    assert message.endswith(f"; DB_PROXY: secret 'not-there' {ABSENT}{UNTOUCHED}")


# --- Secrets Manager ------------------------------------------------------------------------------------------------


@contextmanager
def endpoint(answer: dict[str, str]) -> Iterator[str]:
    """The URL of a Secrets Manager that gives everybody this answer."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(400)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


def test_secrets_manager_denies_names_action_and_each_secret(world: World) -> None:
    """The message says who has to grant what on which secret."""
    denial = {"__type": "AccessDeniedException", "Message": "User: … is not authorized to perform: …"}

    with endpoint(denial) as url:
        message = refusal(world, AWS_ENDPOINT_URL=url)

    told = "is closed to the function's role: grant it secretsmanager:GetSecretValue, and the use of the KMS key"
    named = (("DB_SECRET_NAME", "admin"), ("DB_USER_SECRET_NAME", "user"), ("DB_PROXY", "creator"))
    assert message == "; ".join(f"{variable}: secret '{name}' {told}" for variable, name in named) + UNTOUCHED


def test_secrets_manager_answers_something_else_names_code_and_action(world: World) -> None:
    """An answer that we have no words for is passed on."""
    with endpoint({"__type": "DecryptionFailure", "Message": "the key is disabled"}) as url:
        message = refusal(world, AWS_ENDPOINT_URL=url, DB_PROXY=None, DB_USER_SECRET_NAME=None)

    answer = "Secrets Manager answered DecryptionFailure to GetSecretValue: the key is disabled"
    assert message == f"{ADMIN_SECRET}is refused: {answer}{UNTOUCHED}"


def test_secrets_manager_unreachable_says_what_a_vpc_needs(world: World) -> None:
    """The commonest mistake of a first deployment, said once: a function in a VPC without a way to Secrets Manager."""
    assert refusal(world, AWS_ENDPOINT_URL="http://127.0.0.1:1") == (
        f"{ADMIN_SECRET}could not be asked for (EndpointConnectionError): a function in a VPC needs an interface "
        f"endpoint for Secrets Manager, or NAT, and a role{UNTOUCHED}"
    )


def test_secrets_manager_without_a_region_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Lambda sets the region; a terminal may not."""
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(
        initializer.ConfigError, match=r"^DB_SECRET_NAME: Secrets Manager: You must specify a region\..* touched\.$"
    ):
        world.deploy()


@pytest.mark.slow
def test_secrets_manager_silent_ends_before_lambda_does(world: World) -> None:
    """Where packets vanish, as in a VPC without endpoint, the run says so itself instead of being killed."""
    limit_s = 6
    program = (
        "import initializer\n"
        "class Context:\n"
        f"    get_remaining_time_in_millis = lambda self: {limit_s * 1000}\n"
        "initializer.handler({}, Context())"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and nobody answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environ = {**os.environ, **AWS_ENVIRONMENT, **world.environ, "AWS_ENDPOINT_URL": url}
        environ["PYTHONPATH"] = str(Path(initializer.__file__).parent)
        with subprocess.Popen([sys.executable, "-c", program], env=environ, stderr=subprocess.PIPE, text=True) as run:
            try:
                _, said = run.communicate(timeout=limit_s + 2)  # some of it for the start of Python
            except subprocess.TimeoutExpired:
                run.kill()
                _, said = run.communicate()

    assert f"ConfigError: {ADMIN_SECRET}could not be asked for (ReadTimeoutError): " in said


@pytest.mark.parametrize("left_s", [4, 12, 41, 70, 100, 280])
def test_secrets_manager_silent_when_a_secret_is_written_leaves_time_to_say_so(
    world: World, monkeypatch: pytest.MonkeyPatch, left_s: int
) -> None:
    """The write and the look at what came of it: two calls, of which each is tried several times."""
    for name, value in AWS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    early = secret_store.secrets_client(Deadline(time.monotonic() + 280))
    options = secret_store.in_time(early, Deadline(time.monotonic() + left_s)).meta.config

    assert 2 * options.read_timeout * options.retries["total_max_attempts"] < left_s

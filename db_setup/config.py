"""The settings of a run: variables, secrets, the folder; all mistakes are reported together.

Nothing is touched here: a ConfigError says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import database
import file_names
import limited_users
import migration_files
import secret_store
from common import ConfigError, Credentials, Deadline, shown
from database import Endpoint, Login
from limited_users import KINDS, READONLY, READWRITE, TABLECREATOR, Application, Kind
from migration_files import Migration
from psycopg2 import sql
from secret_store import Secret
from sql_scanner import Script

MISTAKES_LIMIT = 1400  # characters

ADMIN_VARIABLE = "DB_SECRET_NAME"
IAM_VARIABLE = "DB_USER"  # instead of it: an admin without a password
USER_VARIABLES: Mapping[Kind, str] = {  # which secret receives the login of which kind of user
    READWRITE: "DB_USER_SECRET_NAME",
    TABLECREATOR: "DB_PROXY",
    READONLY: "DB_READER_SECRET_NAME",
}

# What an event may say for its run: what is migrated, and how. Never where a login is sent, or as
# whom: who may invoke the function could make it log in elsewhere.
EVENT_VARIABLES = (
    *(ADMIN_VARIABLE, "DB_NAME", "DB_SCHEMA", *USER_VARIABLES.values()),
    *("CREATE_USERS", "USERS_SIGN_IN", "ROLE_PREFIX", "MIGRATIONS_TABLE"),
    *("BASELINE", "ALLOW_EDITED_MIGRATIONS", "FAIL_ON_DRIFT", "LOCK_TIMEOUT", "DEPLOYMENT"),
)

PORT = r"0*(?!0+$)([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
NAME = r"[a-z_][a-z0-9_]{0,%d}"
NAME_MEANING = "lower-case letters, digits and _, at most %d characters"
SCHEMA = "(?!pg_|information_schema$)" + NAME % 62
SCHEMA_MEANING = NAME_MEANING % 63 + ", not beginning with pg_, nor information_schema"

DEPLOYMENT_MEANING = "one line of at most 200 characters"

IS_ADMINS = "holds the admin login and is never written: name another"


@dataclass(frozen=True)
class Setup:
    """Everything a run needs before it connects."""

    config: Config
    login: Login
    user_secrets: Mapping[Kind, Secret]  # the secrets that receive the users' logins
    files: Sequence[Migration]
    secrets_client: Any
    warnings: Sequence[str] = ()  # about the folder
    admin_arn: str = ""  # of the secret that is never written
    applied_by: str = ""  # what is recorded of who runs this
    # Those that were scanned in this run, see initializer.
    scripts: dict[Any, Script] = field(default_factory=dict)

    @property
    def application(self) -> Application:
        config = self.config
        here = self.login.endpoint
        return Application(
            *(self.login, config.role_prefix, config.tracking, config.marks, config.kept),
            schema=config.schema,
            kinds=config.kinds,
            by_iam=config.users_by_iam,
            tokens_for=lambda username: token_maker(here, username),
        )


def load_setup(
    environ: Mapping[str, str],
    deadline: Deadline,
    folder: Path,
    login: Optional[Login] = None,
    event_variables: Optional[Mapping[str, Any]] = None,
) -> Setup:
    """Read variables, secrets and the folder of migrations; raises one ConfigError that lists every
    mistake.

    With a `login` no secret is read, and no user made. The event's variables come before those of
    the environment.
    """
    problems: list[str] = []
    environ = _with_event_variables(environ, event_variables or {}, problems)
    config = Config.from_env(environ, problems, with_secrets=login is None)
    secrets = _Secrets(deadline, problems)
    if login is None:
        login = secrets.admin_login(config)
    user_secrets = secrets.of_users(config)
    if login and user_secrets and config.users_by_iam:
        refuse_tokens_to_strangers(login.endpoint, "USERS_SIGN_IN: a user", problems)
    warnings: list[str] = []
    files = migration_files.load_migrations(folder, problems, warnings)
    if config.baseline and not migration_files.up_to(files, config.baseline):
        problems.append(
            f"BASELINE is {shown(config.baseline)}, but there is no such file in migrations/"
            + (
                ", and a repeatable one always runs"
                if file_names.is_repeatable(config.baseline)
                else ""
            )
        )
    if problems or login is None:
        listed = "; ".join(problems)
        if len(listed) > MISTAKES_LIMIT:
            listed = f"{listed[:MISTAKES_LIMIT]} … ({len(problems)} mistakes in all)"
        raise ConfigError(listed)
    return Setup(config, login, user_secrets, files, secrets.client, warnings, secrets.admin_arn)


def _with_event_variables(
    environ: Mapping[str, str], given: Mapping[str, Any], problems: list[str]
) -> Mapping[str, str]:
    for name, value in given.items():
        if name not in EVENT_VARIABLES:
            allowed = ", ".join(EVENT_VARIABLES)
            problems.append(f"an event cannot set {shown(name)}, only {allowed}")
        elif not isinstance(value, str):
            problems.append(f"{name} is {shown(repr(value))}, but must be a text")
        elif name in USER_VARIABLES.values() and secret_store.same_secret(
            value, environ.get(ADMIN_VARIABLE, "")
        ):  # also where the event names another admin
            problems.append(f"{name}: secret {shown(value)} {IS_ADMINS}")
    texts = {name: given[name] for name in EVENT_VARIABLES if isinstance(given.get(name), str)}
    return {**environ, **texts}


@dataclass(frozen=True)
class Config:
    """The variables, checked."""

    admin_secret: str
    user_secret_names: Mapping[Kind, str] = field(default_factory=dict)
    create_users: bool = True
    users_by_iam: bool = False
    host: Optional[str] = None
    port: Optional[int] = None
    dbname: Optional[str] = None
    user: Optional[str] = None  # an admin without a secret
    baseline: Optional[str] = None
    allow_edited: bool = False
    fail_on_drift: bool = False
    schema: str = "public"
    table: str = "schema_migrations"
    role_prefix: str = ""
    lock_timeout_ms: int = 4000
    deployment: Optional[str] = None  # what is recorded of it, such as the commit

    @property
    def tables(self) -> tuple[str, str, str]:
        """Ours in the database: what is applied, what has run in part, and what the last run left,
        which is there after a run that has applied something.
        """
        return self.table, self.table + "_progress", self.table + "_objects"

    @property
    def tracking(self) -> sql.Composable:
        return sql.Identifier(self.schema, self.tables[0])

    @property
    def marks(self) -> sql.Composable:
        return sql.Identifier(self.schema, self.tables[1])

    @property
    def kept(self) -> sql.Composable:
        return sql.Identifier(self.schema, self.tables[2])

    @property
    def created(self) -> list[tuple[Optional[str], str]]:
        """Ours, as a file would write their names to create them."""
        return [(schema, table) for schema in (None, self.schema) for table in self.tables]

    @property
    def limited_roles(self) -> list[str]:
        """The roles that the admin may act for, and that it does not trust all the same."""
        return limited_users.limited_roles(self.role_prefix, self.kinds)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (*KINDS, READONLY) if READONLY in self.user_secret_names else KINDS

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str], problems: list[str], with_secrets: bool = True
    ) -> Config:
        """Read the variables; what is wrong with them is added to `problems`.

        Without secrets there are no users.
        """
        variables = _Variables(environ, problems)
        if with_secrets and ADMIN_VARIABLE not in environ and IAM_VARIABLE not in environ:
            problems.append(
                f"{ADMIN_VARIABLE} is missing: name or ARN of the secret with the database's "
                f"admin login; or set DB_HOST, DB_NAME and {IAM_VARIABLE} for one who signs in by "
                "IAM"
            )
        if ADMIN_VARIABLE in environ and IAM_VARIABLE in environ:
            problems.append(f"{ADMIN_VARIABLE} and {IAM_VARIABLE} name an admin each: remove one")
        user_secret_names = {kind: variables.text(name) for kind, name in USER_VARIABLES.items()}
        baseline = variables.text("BASELINE")
        prefix_meaning = NAME_MEANING % 41 + ", not beginning with pg_"
        return cls(
            admin_secret=variables.text(ADMIN_VARIABLE) or "",
            user_secret_names={kind: name for kind, name in user_secret_names.items() if name},
            create_users=variables.flag("CREATE_USERS", default=True) and with_secrets,
            users_by_iam=variables.text("USERS_SIGN_IN", "iam|password", '"iam" or "password"')
            == "iam",
            host=variables.text("DB_HOST"),
            port=variables.port("DB_PORT"),
            dbname=variables.text("DB_NAME"),
            user=variables.text("DB_USER"),
            baseline=file_names.normal(baseline) if baseline else None,
            allow_edited=variables.flag("ALLOW_EDITED_MIGRATIONS", default=False),
            fail_on_drift=variables.flag("FAIL_ON_DRIFT", default=False),
            schema=variables.text("DB_SCHEMA", SCHEMA, SCHEMA_MEANING) or "public",
            table=variables.text("MIGRATIONS_TABLE", NAME % 48, NAME_MEANING % 49)
            or "schema_migrations",
            role_prefix=variables.text("ROLE_PREFIX", "(?!pg_)" + NAME % 40, prefix_meaning) or "",
            lock_timeout_ms=variables.milliseconds("LOCK_TIMEOUT", default=4000),
            deployment=variables.text("DEPLOYMENT", r"[^\x00-\x1f\x7f]{1,200}", DEPLOYMENT_MEANING),
        )

    def login(self, secret: Mapping[str, Any], problems: list[str]) -> Optional[Login]:
        """The admin login out of its secret; DB_HOST, DB_PORT and DB_NAME take precedence."""
        given = {"port": 5432, "engine": "postgres", **secret}
        overrides = {"host": self.host, "port": self.port, "dbname": self.dbname}
        given.update({key: value for key, value in overrides.items() if value})
        found = {key: _as_text(value) for key, value in given.items()}
        missing = [key for key in ("host", "port", "dbname", "username") if not found.get(key)]
        by_iam = "password" not in given and not (self.admin_secret and missing)
        if not by_iam and not found.get("password"):
            missing.append("password")
        where = f"{ADMIN_VARIABLE}: secret {shown(self.admin_secret)}"
        mistakes = []
        if missing:
            variables = {"host": "DB_HOST", "dbname": "DB_NAME"}
            remedies = " and ".join(name for key, name in variables.items() if key in missing)
            remedy = f"add that to its JSON{f', or set {remedies}' if remedies else ''}"
            if not self.admin_secret:
                where = IAM_VARIABLE
                remedy = f"set {remedies}"
            mistakes.append(f"{where} has no usable {', '.join(missing)}: {remedy}")
        elif not re.fullmatch(PORT, found["port"]):
            mistakes.append(f"{where}: port must be a number from 1 to 65535")
        engine = str(given["engine"])
        if "postgres" not in engine:
            mistakes.append(f"{where} is for engine {shown(engine)}: only PostgreSQL is supported")
        problems += mistakes
        if mistakes:
            return None
        endpoint = Endpoint(found["host"], int(found["port"]), found["dbname"], engine)
        if not by_iam:
            return Login(endpoint, found["username"], found["password"])
        return login_by_iam(endpoint, found["username"], problems)


def login_by_iam(endpoint: Endpoint, username: str, problems: list[str]) -> Optional[Login]:
    """A login with a token in place of a password; its mistakes are added to `problems`."""
    if refuse_tokens_to_strangers(endpoint, username, problems):
        return None
    try:
        new_token = token_maker(endpoint, username)
    except ConfigError as exc:
        problems.append(exc.problem)
        return None
    return Login(endpoint, username, "", new_token)


def token_maker(endpoint: Endpoint, username: str) -> Callable[[], str]:
    """See secret_store."""
    host, region = database.as_rds_writes_it(endpoint.host), database.region_of(endpoint.host)
    return secret_store.token_maker(host, endpoint.port, username, region)


def refuse_tokens_to_strangers(endpoint: Endpoint, who: str, problems: list[str]) -> bool:
    """Whether the server cannot be verified, to which a token would be sent."""
    if database.can_verify(endpoint.host):
        return False
    problems.append(
        f"{who} has no password, and a token of IAM is only sent to a server that is verified: "
        f"{database.HOW_TO_VERIFY}"
    )
    return True


def _as_text(value: Any) -> str:
    """The value where PostgreSQL can take it as a name or a password, or empty.

    A number of the JSON can be one.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    text = str(value)
    return text if limited_users.is_usable(text) else ""


class _Variables:
    """Reads environment variables; what is wrong with one is added to `problems`."""

    def __init__(self, environ: Mapping[str, str], problems: list[str]) -> None:
        self._environ = environ
        self._problems = problems

    def text(
        self, name: str, pattern: str = r"[^\0]+", meaning: str = "a text without NUL"
    ) -> Optional[str]:
        value = self._environ.get(name)
        if value is None:
            return None
        if not value.strip():
            remedy = "give it a value" if name == ADMIN_VARIABLE else "give it a value or remove it"
            self._problems.append(f"{name} is set but empty: {remedy}")
            return None
        if not re.fullmatch(pattern, value):
            self._problems.append(f"{name} is {shown(value)}, but must be {meaning}")
            return None
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name, r"(?i)true|false", '"true" or "false"')
        return default if value is None else value.lower() == "true"

    def port(self, name: str) -> Optional[int]:
        value = self.text(name, PORT, "a port number (1 to 65535)")
        return int(value) if value else None

    def milliseconds(self, name: str, default: int) -> int:
        value = self.text(name, r"[1-9][0-9]{0,5}(ms|s)", 'a time such as "4s" or "500ms"')
        if value is None:
            return default
        number = int(value.rstrip("ms"))
        return number if value.endswith("ms") else number * 1000


class _Secrets:
    """Reads the secrets that variables name; what is wrong with one is added to `problems`.

    None is asked for once one could not be: each would take as long again.
    """

    def __init__(self, deadline: Deadline, problems: list[str]) -> None:
        self.client: Any = None
        self.admin_arn = ""
        self._deadline = deadline
        self._problems = problems
        self._is_unreachable = False

    def admin_login(self, config: Config) -> Optional[Login]:
        if not config.admin_secret and config.user:
            return config.login({"username": config.user}, self._problems)
        secret = self._read(ADMIN_VARIABLE, config.admin_secret)
        if secret is None:
            return None
        self.admin_arn = secret.arn
        if secret.value is None:
            self._problems.append(
                f"{ADMIN_VARIABLE}: secret {shown(secret.name)} {secret.complaint}: it must hold "
                "the admin login as JSON"
            )
            return None
        return config.login(secret.value, self._problems)

    def of_users(self, config: Config) -> dict[Kind, Secret]:
        """The secrets that receive the users' logins: each another one, and none the admin's."""
        found: dict[Kind, Secret] = {}
        if not config.create_users:
            return found
        if config.users_by_iam:  # they exist without a secret too
            found = {kind: _no_secret(config, kind) for kind in config.kinds}
        seen: list[str] = []
        for kind, name in config.user_secret_names.items():
            variable = USER_VARIABLES[kind]
            if secret_store.same_secret(name, config.admin_secret):
                self._problems.append(f"{variable}: secret {shown(name)} {IS_ADMINS}")
                continue
            if any(secret_store.same_secret(name, other) for other in seen):
                what = "is named for two users: each needs a secret of its own"
                self._problems.append(f"{variable}: secret {shown(name)} {what}")
            seen.append(name)
            secret = self._read(variable, name)
            if secret and secret.arn and secret.arn == self.admin_arn:
                # A name, a whole ARN and one without its end can all mean the same secret.
                self._problems.append(f"{variable}: secret {shown(name)} {IS_ADMINS}")
            elif secret:
                found[kind] = secret
        return found

    def _read(self, variable: str, name: str) -> Optional[Secret]:
        if not name or self._is_unreachable:
            return None
        try:
            self.client = self.client or secret_store.secrets_client(self._deadline)
            return secret_store.read_secret(self.client, name)
        except ConfigError as exc:
            self._problems.append(f"{variable}: {exc.problem}")
            is_lost = isinstance(exc, secret_store.UnreachableError)
            self._is_unreachable = is_lost or self.client is None
            return None


def _no_secret(config: Config, kind: Kind) -> Secret:
    """What stands for the secret of a login that signs in by IAM, and has none."""
    return Secret("", value=Credentials(username=config.role_prefix + kind.login_name))


def kept_credentials(setup: Setup) -> dict[Kind, Optional[Credentials]]:
    """What the users' secrets held when they were read."""
    return {kind: secret.value for kind, secret in setup.user_secrets.items()}

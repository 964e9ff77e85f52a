"""The handler: brings a PostgreSQL database to the state that the SQL files in `migrations/` describe.

Order of work of a migration, and of this file (connect and acquire_lock stand in database.py, names, numbers and
checksums in migration_files.py, the running of a script in script_runner.py, the making of roles in limited_users.py,
Secrets Manager in secret_store.py, the deadline's guard in watcher.py):

    Config.from_env       every mistake in variables and secrets is reported at once, nothing touched yet
    connect               to the database's own endpoint, over TLS, again while it starts or resumes
    read_state            what the tracking table holds; with nothing to do the run ends here
    acquire_lock          one run at a time; the state is read again behind it
    ensure_tracking       create, take over or adopt
    ensure_groups         before the migrations, so that a migration may GRANT to them
    apply_migration       each pending file and its tracking row in one transaction
    ensure_logins         the limited users, their credentials written to their secrets

The other actions, dry_run, rotate and status, stand behind it.

Errors, all of them InitializerError, so that a deployment fails and says why:

    ConfigError           a variable or a secret; nothing has been touched
    ConnectError          the database cannot be reached or stopped answering
    LockError             another run is at work and does not end
    MigrationError        a file; the message begins with file:line:column
    UserError             a role or a login
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import failures
import limited_users
import psycopg2
import script_runner
import sql_scanner
from database import (
    CHANGED_NOTHING,
    HOLDS_LOCK,
    LOCK_KEY,
    RETRYABLE,
    ConnectError,
    Connection,
    Deadline,
    InitializerError,
    LockError,
    Login,
    acquire_lock,
    connect,
    gives_way,
    literal,
    lock_holders,
    log,
    patiently,
    pauses,
    prepare_session,
    query,
    set_up_logging,
    transaction,
    try_lock,
)
from failures import Outcome
from limited_users import Credentials, UserError
from migration_files import (
    EMPTY,
    Migration,
    MigrationError,
    Plan,
    Row,
    created_tables,
    load_migrations,
    load_script,
    make_plan,
    normal,
    number_files,
    read_text,
    spellings,
    tokens_checksum,
)
from psycopg2 import sql
from rehearsal import Rehearsal
from secret_store import (
    ConfigError,
    Secret,
    UnreachableError,
    read_secret,
    same_secret,
    secrets_client,
    shown,
    stored_value,
    write_secret,
)
from sql_scanner import Script
from watcher import Watcher

__version__ = "1.0.0"
__all__ = ["ConfigError", "ConnectError", "InitializerError", "LockError", "MigrationError", "UserError", "handler"]

MIGRATIONS_DIR = Path(__file__).resolve().with_name("migrations")

ADMIN = "DB_SECRET_NAME"
QUOTES = "standard_conforming_strings"
PORT = r"0*(?!0+$)([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
SETVAL = re.compile(r"\bsetval\s*\(", re.IGNORECASE)


# --- Configuration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """The settings of one run, checked."""

    admin_secret: str
    user_secret: Optional[str] = None
    creator_secret: Optional[str] = None
    create_users: bool = True
    host: Optional[str] = None
    port: Optional[int] = None
    dbname: Optional[str] = None
    baseline: Optional[str] = None
    allow_edited: bool = False
    table: str = "schema_migrations"
    role_prefix: str = ""
    lock_timeout_ms: int = 4000

    @property
    def tables(self) -> tuple[str, str]:
        """Ours in the database: what is applied, and what has run in part."""
        return self.table, self.table + "_progress"

    @property
    def tracking(self) -> sql.Composable:
        return sql.Identifier("public", self.tables[0])

    @property
    def progress(self) -> sql.Composable:
        return sql.Identifier("public", self.tables[1])

    @classmethod
    def from_env(cls, environ: Mapping[str, str], problems: list[str], with_secrets: bool = True) -> Config:
        """Read the variables; what is wrong with them is added to `problems`. Without secrets there are no users."""

        def text(name: str, pattern: str = r"[^\0]+", meaning: str = "a text without NUL") -> Optional[str]:
            value = environ.get(name)
            if value is None:
                return None
            if not value.strip():
                problems.append(f"{name} is set but empty: give it a value{'' if name == ADMIN else ' or remove it'}")
                return None
            if not re.fullmatch(pattern, value):
                problems.append(f"{name} is {shown(value)}, but must be {meaning}")
                return None
            return value

        def flag(name: str, default: bool) -> bool:
            value = (text(name, r"(?i)true|false", '"true" or "false"') or str(default)).lower()
            return value == "true"

        if with_secrets and ADMIN not in environ:
            problems.append(f"{ADMIN} is missing: name or ARN of the secret with the database's admin login")
        name, small = r"[a-z_][a-z0-9_]{0,%d}", "lower-case letters, digits and _, at most %d characters"
        timeout = text("LOCK_TIMEOUT", r"[1-9][0-9]{0,5}(ms|s)", 'a time such as "4s" or "500ms"') or "4s"
        port = text("DB_PORT", PORT, "a port number (1 to 65535)")
        return cls(
            admin_secret=text(ADMIN) or "",
            user_secret=text("DB_USER_SECRET_NAME"),
            creator_secret=text("DB_PROXY"),
            create_users=flag("CREATE_USERS", True) and with_secrets,
            host=text("DB_HOST"),
            port=int(port) if port else None,
            dbname=text("DB_NAME"),
            baseline=normal(text("BASELINE") or "") or None,
            allow_edited=flag("ALLOW_EDITED_MIGRATIONS", False),
            table=text("MIGRATIONS_TABLE", name % 48, small % 49) or "schema_migrations",
            role_prefix=text("ROLE_PREFIX", "(?!pg_)" + name % 40, small % 41 + ", not beginning with pg_") or "",
            lock_timeout_ms=int(timeout.rstrip("ms")) * (1 if timeout.endswith("ms") else 1000),
        )

    def login(self, secret: Mapping[str, Any], problems: list[str]) -> Optional[Login]:
        """The admin login out of its secret, DB_HOST, DB_PORT and DB_NAME taking precedence."""
        where = f"{ADMIN}: secret {shown(self.admin_secret)}"
        given = {"port": 5432, **secret}
        given.update({key: value for key, value in vars(self).items() if key in ("host", "port", "dbname") and value})
        keys = ("host", "port", "dbname", "username", "password")
        missing = [key for key in keys if not is_usable(given.get(key))]
        remedies = [name for key, name in (("host", "DB_HOST"), ("dbname", "DB_NAME")) if key in missing]
        engine, before = str(given.get("engine", "postgres")), len(problems)
        if missing:
            instead = f", or set {' and '.join(remedies)}" if remedies else ""
            problems.append(f"{where} has no usable {', '.join(missing)}: add that to its JSON{instead}")
        elif not re.fullmatch(PORT, str(given["port"])):
            problems.append(f"{where}: port must be a number from 1 to 65535")
        if "postgres" not in engine:
            problems.append(f"{where} is for engine {shown(engine)}: only PostgreSQL is supported")
        if len(problems) > before:
            return None
        host, port, dbname, username, password = (str(given[key]) for key in keys)
        return Login(host, int(port), dbname, username, password, engine)


def is_usable(value: Any) -> bool:
    """PostgreSQL can take it as a name or a password."""
    return not isinstance(value, bool) and isinstance(value, (str, int)) and limited_users.is_usable(str(value))


# --- Secrets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """Everything a run needs before it connects."""

    config: Config
    login: Login
    targets: Mapping[str, Secret]  # by kind of user, see limited_users.KINDS
    files: Sequence[Migration]
    secrets_client: Any
    checked: dict[Any, Script] = field(default_factory=dict)  # the files that were looked through

    @property
    def application(self) -> limited_users.Application:
        config = self.config
        return limited_users.Application(self.login, config.role_prefix, config.tracking, config.progress)


def load_setup(environ: Mapping[str, str], deadline: Deadline, login: Optional[Login] = None) -> Setup:
    """Read variables, secrets and the folder; raises one ConfigError that lists every mistake. Touches nothing.

    With a `login` no secret is read, and no user made.
    """
    problems: list[str] = []
    config = Config.from_env(environ, problems, with_secrets=login is None)
    named = {} if login else {ADMIN: config.admin_secret}
    if config.create_users:
        named.update(
            {limited_users.READWRITE: config.user_secret or "", limited_users.TABLECREATOR: config.creator_secret or ""}
        )
    client, found = read_secrets(named, deadline, problems)
    files = load_migrations(MIGRATIONS_DIR, problems)
    if config.baseline and not any(config.baseline in spellings(file) for file in files):
        problems.append(f"BASELINE is {shown(config.baseline)}, but there is no such file in migrations/")
    admin = found.pop(ADMIN, None)
    if admin and admin.value is None:
        problems.append(f"{ADMIN}: secret {shown(admin.name)} {admin.complaint}: it must hold the admin login as JSON")
    if admin and admin.value is not None:
        login = config.login(admin.value, problems)
    if problems or login is None:
        listed = "; ".join(problems)
        listed = listed if len(listed) < 1400 else f"{listed[:1400]} … ({len(problems)} mistakes in all)"
        raise ConfigError(f"{listed}. Nothing has been touched.")
    return Setup(config, login, found, files, client)


VARIABLES = {limited_users.READWRITE: "DB_USER_SECRET_NAME", limited_users.TABLECREATOR: "DB_PROXY"}


def read_secrets(named: Mapping[str, str], deadline: Deadline, problems: list[str]) -> tuple[Any, dict[str, Secret]]:
    """Read the secrets that are named; each must be another one, and none is asked for once one could not be."""
    found: dict[str, Secret] = {}
    client: Any = None
    for key, name in named.items():
        variable = VARIABLES.get(key, key)
        other = next((k for k in named if k != key and name and key != ADMIN and same_secret(named[k], name)), None)
        if other == ADMIN:
            what = "holds the admin login and is never written: name another"
            problems.append(f"{variable}: secret {shown(name)} {what}")
        elif other and key == limited_users.TABLECREATOR:
            problems.append(f"{variable}: secret {shown(name)} is named for both users: each needs a secret of its own")
        if not name or other == ADMIN:
            continue
        try:
            client = client or secrets_client(deadline)
            found[key] = read_secret(client, name)
        except ConfigError as exc:
            problems.append(f"{variable}: {exc}")
            if isinstance(exc, UnreachableError) or client is None:
                break
    return client, found


# --- State ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What our tables hold. `columns` is None where there is no tracking table."""

    columns: Optional[tuple[str, ...]]
    rows: tuple[Row, ...]
    unfinished: tuple[str, ...] = ()  # the files that ran in part

    @property
    def is_ours(self) -> bool:
        """As this version makes it."""
        return self.columns is not None and set(OUR_COLUMNS) <= set(self.columns)


OUR_COLUMNS = ("checksum", "file_sha256", "adopted")


class Seen(NamedTuple):
    """Which of our tables there are: columns of the one, whether it is a table, and whether the other can be read."""

    columns: Optional[list[str]]
    is_table: bool
    has_progress: bool


def look(config: Config) -> sql.Composable:
    """The question whose answer is what is Seen."""
    question = (
        "SELECT array_remove(array_agg(attname::text) FILTER (WHERE relname = {0}), NULL), "
        "bool_and(relkind IN ('r', 'p')) FILTER (WHERE relname = {0}), coalesce(bool_or(relname = {1} "
        "AND attname = 'migration_name' AND relkind = 'r' AND has_table_privilege(c.oid, 'SELECT')), false) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "LEFT JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped "
        "WHERE nspname = 'public' AND relname IN ({0}, {1})"
    )
    return sql.SQL(question).format(*map(sql.Literal, config.tables))


def read_state(conn: Connection, config: Config, seen: Optional[Seen] = None) -> State:
    """Read the tracking table, whichever version made it; refuse another tool's."""
    columns, is_table, has_progress = seen or Seen(*query(conn, look(config))[0])
    if columns is None:
        return State(None, ())
    if not {"id", "migration_name"} <= set(columns) or not is_table:
        raise ConfigError(
            f'table public."{config.table}" belongs to another tool (columns: {", ".join(columns)}): '
            "set MIGRATIONS_TABLE to a name of its own, such as db_setup_migrations. Nothing has been touched."
        )
    added = [sql.Identifier(name) if name in columns else sql.SQL("NULL") for name in ("checksum", "file_sha256")]
    select = sql.SQL("SELECT id, migration_name, {}, {}, true FROM {}").format(*added, config.tracking)
    if has_progress:
        begun = " UNION ALL SELECT NULL, migration_name, NULL, NULL, false FROM {} GROUP BY migration_name"
        select += sql.SQL(begun).format(config.progress)
    rows = query(conn, select + sql.SQL(" ORDER BY 1, 2"))
    recorded = (Row(number, normal(name), *rest) for number, name, *rest, is_recorded in rows if is_recorded)
    unfinished = tuple(name for _, name, *_, is_recorded in rows if not is_recorded)
    return State(tuple(columns), tuple(recorded), unfinished)


# --- Tracking table and adoption ------------------------------------------------------------------------------------

CREATE_TRACKING = sql.SQL(
    "CREATE TABLE {} (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, "
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
)
# Additive and nullable: the versions before us insert migration_name alone.
ADD_COLUMNS = sql.SQL(
    "ALTER TABLE {} ADD COLUMN IF NOT EXISTS checksum TEXT, ADD COLUMN IF NOT EXISTS file_sha256 TEXT, "
    "ADD COLUMN IF NOT EXISTS adopted BOOLEAN"
)


def ensure_tracking(conn: Connection, setup: Setup, state: State) -> list[str]:
    """Create the tracking table, or add what the predecessor's lacks; returns the names adopted without running."""
    config = setup.config
    adopted = adoptable(conn, setup) if state.columns is None else []
    named = list(number_files(adopted, setup.files, ()))
    steps = [CREATE_TRACKING] if state.columns is None else []
    changes = [step.format(config.tracking) for step in (*steps, ADD_COLUMNS)]
    record = sql.SQL("INSERT INTO {} (migration_name, checksum, file_sha256, adopted) VALUES ({}, {}, {}, true)")
    for name, file in named:
        changes.append(record.format(config.tracking, *map(literal, (name, tokens_checksum(file), file.sha256))))
    with transaction(conn) if conn.rehearsal else nullcontext():  # one message is one transaction
        query(conn, sql.SQL("; ").join(changes))
    if state.columns is None:
        log("tracking table created", table=config.table)
    names = [name for name, _ in named]
    if names:
        log("existing database adopted", recorded_without_running=names)
    return names


def adoptable(conn: Connection, setup: Setup) -> list[Migration]:
    """The files that an existing database without tracking table has behind it: the first, or all up to BASELINE.

    Judged by the tables that the first migration creates. Some there and some not is refused, unless every
    statement of the file can run again.
    """
    files, baseline = setup.files, setup.config.baseline
    names, guarded = created_tables(files[0]) if files and query(conn, ANY_TABLE) else ([], True)
    there = [name for name in names if table_exists(conn, *name)]
    if not there:
        if baseline:
            log("baseline not used: no table of the first migration exists", baseline=baseline)
        return []
    if baseline:
        last = next(i for i, file in enumerate(files) if baseline in spellings(file))
        return list(files[: last + 1])
    if len(there) == len(names):
        return [files[0]]
    if guarded:
        return []
    missing = [name for name in names if name not in there]
    raise MigrationError(
        f"{files[0].path.name}: the database has no tracking table, and only some of the tables of the first migration."
        f" There: {_table_list(there)}. Missing: {_table_list(missing)}. Nothing has been changed. Write the file's "
        "statements with IF NOT EXISTS, so that it can create what is missing, or set BASELINE to the last file "
        "that this database has behind it."
    )


def _table_list(names: Sequence[sql_scanner.Name]) -> str:
    return ", ".join(f"{schema}.{name}" if schema else name for schema, name in names)


# An extension's table (PostGIS brings some) does not count.
ANY_TABLE = """
    SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND NOT EXISTS
        (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')"""


def table_exists(conn: Connection, schema: Optional[str], name: str) -> bool:
    return bool(query(conn, ANY_TABLE + " AND c.relname = %s AND n.nspname = %s", [name, schema or "public"]))


def follow_renames(conn: Connection, config: Config, plan: Plan) -> None:
    """Rows follow their renumbered files; rows of the predecessor get their checksums."""
    if not plan.renumbered and not plan.unchecked:
        return
    change = "UPDATE {} SET migration_name = %s, checksum = %s, file_sha256 = %s WHERE id = %s"
    update = sql.SQL(change).format(config.tracking)
    with transaction(conn):
        for row, file in plan.renumbered:
            query(conn, update, [file.name, row.checksum, file.sha256, row.id])
        for row, file in plan.unchecked:
            query(conn, update, [row.name, tokens_checksum(file), file.sha256, row.id])
    for row, file in plan.renumbered:
        log("renumbered", migration=file.name, was=row.name)


# --- Applying -------------------------------------------------------------------------------------------------------


def checked_script(conn: Connection, migration: Migration, setup: Setup, with_text: bool) -> Script:
    """The script, looked through once in a run; without its text, unless that is the only one."""
    backslashes = conn.info.parameter_status(QUOTES) == "off"
    if (migration, backslashes) not in setup.checked:
        script = load_script(migration, setup.config.tables, backslashes)
        setup.checked[migration, backslashes] = script if with_text else replace(script, text="")
    return setup.checked[migration, backslashes]


def tracking_insert(conn: Connection, config: Config, name: str, hashes: Sequence[str]) -> str:
    """The row that says *applied*."""
    insert = sql.SQL("INSERT INTO {} (migration_name, checksum, file_sha256) VALUES ({}, {}, {})")
    return insert.format(config.tracking, *map(literal, (name, *hashes))).as_string(conn)


class Pending(NamedTuple):
    """A file that is to be applied, and recorded as `name`."""

    name: str
    migration: Migration
    script: Script


def apply_migration(conn: Connection, config: Config, one: Pending, deadline: Deadline, goes_on: bool) -> Outcome:
    """Apply a file and record it, both or neither; what stands in its way for a moment is tried again. Where the run
    `goes_on` behind it, a session that is not as it was lets go of the lock."""
    for setting in one.script.unknown_settings:
        what = "column stamps of another" if setting == sql_scanner.COLUMN_STAMP else "setting unknown to this"
        log(f"{what} server left out", logging.WARNING, migration=one.name, setting=setting)
    with ThreadPoolExecutor(1) as beside:  # the hashes of a long file are made while the server has work to do
        hashes: Callable[[], Sequence[str]] = partial(hashes_of, one)
        hashes = beside.submit(hashes).result if one.script.pieces else hashes

        def end() -> str:
            record = tracking_insert(conn, config, one.name, hashes())
            # A long text is not looked through: a new session costs less.
            changed = goes_on and bool(one.script.pieces or sql_scanner.CUSTOM_SETTING.search(one.script.text))
            return script_runner.recording(conn, record, config.lock_timeout_ms, changed, let_go=goes_on)

        return run_script(conn, config, one, deadline, end)


def hashes_of(one: Pending) -> tuple[str, str]:
    sha256 = one.migration.sha256  # first, since it leaves Python to the thread that talks to the server
    return one.script.checksum, sha256


def run_script(conn: Connection, config: Config, one: Pending, deadline: Deadline, end: script_runner.End) -> Outcome:
    """Run it until it is applied, has failed, or has no time left."""
    progress = script_runner.Progress(config.progress, one.migration.name)
    waits, in_steps, by_statement = enumerate(pauses(deadline), 1), one.script.unwrapped, False
    while True:
        if in_steps:
            outcome = script_runner.run_in_steps(conn, one.script, end, progress)
        else:
            outcome = script_runner.run_whole(conn, one.script, end, by_statement)
            in_steps = outcome.code == "25001" and one.script.count == 1  # it has no atomicity to lose
            if in_steps:
                continue
        if not gives_way(conn, outcome.code, waits, migration=one.name):
            return outcome
        by_statement = True  # so that the last one can name the statement


def failure_message(one: Pending, outcome: Outcome, report: Mapping[str, Any], blocked_by: Sequence[str]) -> str:
    """file:line:column, what PostgreSQL said, the state, the next step: without row data."""
    file, script = one.migration.path.name, one.script
    line, column = sql_scanner.locate(script.text, outcome.offset)
    place = f"{file}:{line}:{column}" if outcome.exact else f"{file}:{line}"
    if (outcome.stopped or outcome.connection_lost) and not script.unwrapped:
        place = file  # one message, of which nothing tells how far the server was
    verdict = [
        f"{place}: {failures.describe(script, outcome)}.",
        failures.state_and_step(script, outcome, blocked_by),
        f"Applied in this run: {shortened([entry['name'] for entry in report['applied']]) or 'nothing'}.",
    ]
    if report["pending"][1:]:
        verdict.append(f"Not tried: {shortened(report['pending'][1:])}.")
    return "\n".join([" ".join(verdict), *failures.details(script, outcome)])


def shortened(names: Sequence[str]) -> str:
    """The names, or of many the first, the last and how many."""
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)} files)"


# --- Users ----------------------------------------------------------------------------------------------------------


def working_users(conn: Connection, setup: Setup, deadline: Deadline) -> Optional[dict[str, str]]:
    """What the report says of the users where groups, rights and logins need nothing; None where they do."""
    if not setup.config.create_users:
        return {}
    kept = {kind: secret.value for kind, secret in setup.targets.items()}
    logins = limited_users.working_logins(conn, setup.application, kept, deadline)
    return None if logins is None else dict.fromkeys(logins, "kept")


def ensure_groups(conn: Connection, setup: Setup) -> None:
    """The group roles and their rights, if users are wanted."""
    if setup.config.create_users:
        for role in limited_users.ensure_groups(conn, setup.application):
            log("group role created", role=role)


Ensure = Callable[[Connection, limited_users.Application, str, limited_users.Keeper, Deadline], tuple[str, str]]


def ensure_logins(
    conn: Connection, setup: Setup, deadline: Deadline, ensure: Ensure = limited_users.ensure_login
) -> dict[str, str]:
    """A working login in each target secret; one that works is never changed, unless `ensure` is to rotate it.
    Returns what was done, by login."""
    done: dict[str, str] = {}
    client = setup.secrets_client if deadline.left(60) > 40 else secrets_client(deadline)
    for kind, target in setup.targets.items():
        try:
            secret = read_secret(client, target.name)  # another run may have written it meanwhile
        except ConfigError as exc:
            raise UserError(f"{exc}. Its login was not changed; mend this and invoke again.") from exc
        read = partial(stored_value, client, target.name)
        write = (lambda value: None) if conn.rehearsal else partial(write_secret, client, secret)
        keeper = limited_users.Keeper(secret.value, read, write)
        name, what = ensure(conn, setup.application, kind, keeper, deadline)
        done[name] = what
        if what != "kept":
            log("login ready", login=name, secret=secret.name, state=what)
    return done


# --- The run --------------------------------------------------------------------------------------------------------


def migrate(conn: Connection, setup: Setup, deadline: Deadline, report: dict[str, Any], seen: Seen) -> Optional[Todo]:
    """Bring the database to the state of the folder; `report` says at any moment what is done.

    Returns what is left where a file has changed the session, and a new one has to do the rest.
    """
    applied = shortened([entry["name"] for entry in report["applied"]])
    if not applied and nothing_to_do(conn, setup, deadline, report, seen):
        return None
    state = f"Applied by this run, and kept: {applied}" if applied else CHANGED_NOTHING
    report["lock_wait_ms"] += acquire_lock(conn, deadline, state)
    return bring_up(conn, setup, deadline, report)


def nothing_to_do(conn: Connection, setup: Setup, deadline: Deadline, report: dict[str, Any], seen: Seen) -> bool:
    """Database and users are as they should be: the lock need not be taken."""
    state = patiently(conn, deadline, lambda: read_state(conn, setup.config, seen))
    plan = make_plan(setup.files, state.rows)
    report["pending"] = [name for name, _ in plan.pending]
    users = working_users(conn, setup, deadline) if is_complete(state, plan) else None
    if users is not None:
        check_edited(conn, setup.config, state, plan, report)
        report["users"] = users
    return users is not None


def bring_up(conn: Connection, setup: Setup, deadline: Deadline, report: dict[str, Any]) -> Optional[Todo]:
    """What a migration does behind the lock, or a dry run within its transaction."""
    if setup.config.create_users:
        limited_users.refuse_roles_of_others(conn, setup.application)
    state = patiently(conn, deadline, lambda: read_state(conn, setup.config))
    if not state.is_ours:
        report["adopted"] += patiently(conn, deadline, lambda: ensure_tracking(conn, setup, state))
        state = read_state(conn, setup.config)
    plan = make_plan(setup.files, state.rows)
    report["pending"] = [name for name, _ in plan.pending]
    check_edited(conn, setup.config, state, plan, report)
    # What cannot work is refused before anything has run. The texts are read again: memory stays that of one file.
    alone = len(plan.pending) == 1
    pending = [Pending(name, m, checked_script(conn, m, setup, with_text=alone)) for name, m in plan.pending]
    warn(report, (f"{one.name} {EMPTY}" for one in pending if not one.script.count))
    patiently(conn, deadline, lambda: follow_renames(conn, setup.config, plan))
    ensure_groups(conn, setup)
    names = {row.id: row.name for row in state.rows}
    names.update((row.id, migration.name) for row, migration in plan.renumbered)
    todo = Todo(pending, list(names.values()), state.unfinished, conn.info.parameter_status(QUOTES))
    return finish(conn, setup, deadline, report, todo)


def finish(conn: Connection, setup: Setup, deadline: Deadline, report: dict[str, Any], todo: Todo) -> Optional[Todo]:
    """Apply what is pending, and then see to the users."""
    rest = apply_pending(conn, setup.config, todo, deadline, report)
    if rest:
        return rest
    try:
        ensure_groups(conn, setup)  # a file may have granted too much on the tracking table
        report["users"] = ensure_logins(conn, setup, deadline)
    except InitializerError as exc:
        applied = shortened([entry["name"] for entry in report["applied"]])
        raise type(exc)(f"{exc}{f' Applied before, and kept: {applied}.' if applied else ''}") from exc
    return None


def take_up(conn: Connection, config: Config, deadline: Deadline, rest: Todo) -> bool:
    """Set up a session that is to do the rest; it can if it has the lock, nobody has recorded anything since, and no
    file can have run in part."""
    question = (
        "SELECT {}, (SELECT coalesce(string_agg(migration_name, '/' ORDER BY id), '') FROM {}), "
        "NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'public' AND tablename = {})"
    )
    names = (sql.SQL(HOLDS_LOCK), config.tracking, sql.Literal(config.tables[1]))
    first = f"BEGIN; {try_lock(deadline, f'WHERE pg_backend_pid() = {conn.info.backend_pid}')}; COMMIT; "
    is_ours, recorded, whole = prepare_session(conn, config.lock_timeout_ms, sql.SQL(question).format(*names), first)
    same = normal(recorded) == "/".join(rest.recorded) and conn.info.parameter_status(QUOTES) == rest.quotes
    return bool(is_ours and whole and same)


def is_complete(state: State, plan: Plan) -> bool:
    """The tracking table is as this version makes it, and agrees with the folder."""
    return state.is_ours and not (plan.pending or plan.renumbered or plan.unchecked)


def check_edited(conn: Connection, config: Config, state: State, plan: Plan, report: dict[str, Any]) -> None:
    """Say what is odd; refuse files that were edited after they had been applied."""
    warnings = list(plan.warnings)
    known = {row.name for row in state.rows} | {migration.name for _, migration in plan.pending}
    gone = sorted(set(state.unfinished) - known)
    remedy = "put it back, or undo in a new file what it did"
    warnings += (f"{name} has run in part, but its file is gone or has another name: {remedy}" for name in gone)
    if plan.edited:
        names, several = shortened([file.path.name for _, file in plan.edited]), len(plan.edited) > 1
        edited = "edited after they were applied" if several else "edited after it was applied"
        if not config.allow_edited:
            row, file = plan.edited[0]
            select = sql.SQL("SELECT applied_at::timestamp(0)::text FROM {} WHERE id = %s").format(config.tracking)
            when = f"{'the first ' if several else ''}{query(conn, select, [row.id])[0][0]}"
            raise MigrationError(
                f"{names}: {edited} ({when}), which has no effect on this database. Nothing has been applied. "
                f"Restore what was applied, and put the change (git log -p -- '*{file.path.name}' shows it) into a new "
                'file; or accept the difference with ALLOW_EDITED_MIGRATIONS="true".'
            )
        warnings.append(f"{edited}, without effect: {names}")
    warn(report, warnings)
    if plan.orphans and not report["applied"]:  # said before the first file
        log("applied, but not in the folder", migrations=shortened(plan.orphans))


def warn(report: dict[str, Any], warnings: Iterable[str]) -> None:
    """Each once in a run, however many sessions it takes."""
    for warning in warnings:
        if warning not in report["warnings"]:
            report["warnings"].append(warning)
            log("warning", logging.WARNING, text=warning)


class Todo(NamedTuple):
    """What is to be applied, and what was recorded when that was found out; a session leaves the rest to the next."""

    pending: Sequence[Pending]
    recorded: Sequence[str]
    unfinished: Sequence[str]
    quotes: Optional[str]  # how strings were read, see checked_script

    def rest(self, done: int) -> Todo:
        names = [one.name for one in self.pending[:done]]
        return self._replace(pending=self.pending[done:], recorded=[*self.recorded, *names])


def apply_pending(
    conn: Connection, config: Config, todo: Todo, deadline: Deadline, report: dict[str, Any]
) -> Optional[Todo]:
    """Apply the pending files in order; where one has changed the session, returns the rest, which needs a new one."""
    for done, light in enumerate(todo.pending, 1):
        started = time.monotonic()
        if deadline.is_near:
            raise MigrationError(out_of_time_message(report, "before"))
        text = light.script.text or read_text(light.migration)
        script = replace(light.script, text=text).without_later_settings(conn.server_version)
        script = replace(script, unwrapped=script.unwrapped or light.migration.name in todo.unfinished)
        one = light._replace(script=script)
        conn.about, conn.blocked_by = {"migration": one.name}, ()
        if conn.rehearsal and conn.rehearsal.has_sequences and SETVAL.search(script.text):
            outcome = Outcome(untried=("it calls setval, which nothing takes back",))
        else:
            goes_on = done < len(todo.pending) and not conn.rehearsal
            outcome = apply_migration(conn, config, one, deadline, goes_on)
        if conn.rehearsal:
            outcome = rehearsed(outcome, script)
        if outcome.failed:
            raise MigrationError(failure_message(one, outcome, report, conn.blocked_by)) from outcome.error
        duration_ms = round((time.monotonic() - started) * 1000)
        report["pending"].remove(one.name)
        if conn.rehearsal:
            report["tried"].append(tried(conn, one.name, outcome, duration_ms))
            continue
        report["applied"].append({"name": one.name, "duration_ms": duration_ms})
        log("applied", migration=one.name, duration_ms=duration_ms)
        if not outcome.holds_lock:
            log("a migration released the lock, which is taken again", logging.WARNING, migration=one.name)
        if not outcome.holds_lock or (goes_on and not outcome.is_fresh):
            return todo.rest(done)
    return None


def dry_run(conn: Connection, setup: Setup, deadline: Deadline, report: dict[str, Any], seen: Seen) -> None:
    """Do what a migration does, users included, in one transaction that is rolled back; no secret is written.

    `report["tried"]` gets each file's time, its locks, and what cannot be tried. All locks are held until the end.
    """
    report["tried"] = []
    if nothing_to_do(conn, setup, deadline, report, seen):
        return
    log("dry run: every lock is held until its end, so use a copy where that is too long", logging.WARNING)
    report["lock_wait_ms"] += acquire_lock(conn, deadline)
    try:
        with Rehearsal(conn, without=setup.config.tables):
            bring_up(conn, setup, deadline, report)
    except MigrationError as exc:
        untried = [f"{entry['name']} ({', '.join(entry['untried'])})" for entry in report["tried"] if entry["untried"]]
        if not untried or getattr(exc.__cause__, "pgcode", None) in (None, "57014", *RETRYABLE):
            raise
        raise MigrationError(f"{exc}\nIt may need what a dry run could not try: {'; '.join(untried)}.") from exc
    finally:
        report["pending"] = [entry["name"] for entry in report["tried"]] + report["pending"]


def tried(conn: Connection, name: str, outcome: Outcome, duration_ms: int) -> dict[str, Any]:
    """What the report says of a file that a dry run went through; raises LockError where the file lost the lock."""
    conn.rehearsal.defer_constraints()
    if not outcome.holds_lock and not query(conn, "SELECT pg_try_advisory_lock(%s)", [LOCK_KEY])[0][0]:
        raise LockError(f"{name} let go of the lock, and another run has it now. Invoke again.")
    locks, untried = conn.rehearsal.new_locks(), list(outcome.untried)
    shown_locks = [f"{lock['lock']} on {lock['table']}" for lock in locks]
    fields: dict[str, Any] = {key: value for key, value in (("locks", shown_locks), ("untried", untried)) if value}
    log("tried", migration=name, duration_ms=duration_ms, **fields)
    return {"name": name, "duration_ms": duration_ms, "locks": locks, "untried": untried}


def rehearsed(outcome: Outcome, script: Script) -> Outcome:
    """The outcome, but what fails for being in one transaction with other files is only not tried."""
    if outcome.code == "55P04" and not script.unwrapped and not script_runner.ADD_VALUE.search(script.text):
        return Outcome(untried=("it uses an enum value that this run adds",))
    modes = re.findall("(?i)ISOLATION LEVEL (?:SERIALIZABLE|REPEATABLE READ)", script.begin)
    asked = tuple(f"it asks for {mode}" for mode in modes)
    return replace(outcome, rehearsed=True, untried=(*asked, *outcome.untried))


def rotate(conn: Connection, setup: Setup, deadline: Deadline, report: dict[str, Any], _: Seen) -> None:
    """New credentials in the target secrets; migrations are left alone."""
    if not setup.targets:
        raise ConfigError(
            "there is nothing to rotate: CREATE_USERS is false, or neither DB_USER_SECRET_NAME nor DB_PROXY names a "
            "secret. Nothing has been touched."
        )
    report["lock_wait_ms"] += acquire_lock(conn, deadline)
    ensure_groups(conn, setup)
    report["users"] = ensure_logins(conn, setup, deadline, limited_users.rotate_login)


def status(conn: Connection, setup: Setup, deadline: Deadline, report: dict[str, Any], seen: Seen) -> None:
    """Say what stands where. Reads only: the session is made read-only, and a login that may only read is enough."""
    query(conn, "SET default_transaction_read_only = on")
    state = read_state(conn, setup.config, seen)
    plan = make_plan(setup.files, state.rows)
    adopted = sql.SQL("adopted") if "adopted" in (state.columns or ()) else sql.SQL("NULL")
    select = sql.SQL("SELECT migration_name, applied_at::text, {} FROM {} ORDER BY id")
    rows = query(conn, select.format(adopted, setup.config.tracking)) if state.columns else []
    numbered = itertools.groupby(sorted((m.number, m.name) for m in setup.files if m.number), key=lambda pair: pair[0])
    same = ([name for _, name in group] for _, group in numbered)
    report.update(
        applied=[{"name": name, "applied_at": at} for name, at, _ in rows],
        adopted=[name for name, _, was_adopted in rows if was_adopted],
        pending=[name for name, _ in plan.pending],
        edited=[migration.name for _, migration in plan.edited],
        renumbered=[{"name": migration.name, "was": row.name} for row, migration in plan.renumbered],
        missing=list(plan.orphans),
        duplicates=[names for names in same if len(names) > 1],
        unfinished=list(state.unfinished),
        warnings=list(plan.warnings),
        users=dict(tried_logins(conn, setup, deadline)),
        running=[str(holder) for holder in lock_holders(conn)],
        server_version=conn.info.parameter_status("server_version"),
    )


def tried_logins(conn: Connection, setup: Setup, deadline: Deadline) -> Iterator[tuple[str, str]]:
    """What is to be said of each user: of the login in its secret, which is tried."""
    for kind, secret in setup.targets.items():
        login = str((secret.value or Credentials()).get("username", setup.application.login(kind)))
        try:
            works = limited_users.working_login(conn, setup.application, kind, secret.value, deadline) is not None
            what = "works" if works else "does not work; the next run mends it"
        except ConnectError as exc:
            what = f"cannot be tried: {exc}"
        yield login, f"secret {secret.name} {secret.complaint}" if secret.complaint else what


ACTIONS = {"migrate": migrate, "dry_run": dry_run, "rotate": rotate, "status": status}


def in_session(setup: Setup, deadline: Deadline, report: dict[str, Any], rest: Optional[Todo]) -> Optional[Todo]:
    """Connect, migrate and close; returns what a new session has to do."""
    conn = connect(setup.login, deadline)
    watcher = Watcher(conn, setup.login, deadline, look_after_s=setup.config.lock_timeout_ms * 0.6 / 1000)
    try:
        with watcher.watching():
            if rest and patiently(conn, deadline, lambda: take_up(conn, setup.config, deadline, rest)):
                return finish(conn, setup, deadline, report, rest)
            seen = Seen(*prepare_session(conn, setup.config.lock_timeout_ms, look(setup.config)))
            return ACTIONS[report["action"]](conn, setup, deadline, report, seen)
    except InitializerError as exc:
        if not watcher.rang.is_set() or isinstance(exc, LockError):
            raise
        raise type(exc)(f"out of time: {exc}") from exc
    except psycopg2.Error as exc:
        if watcher.rang.is_set():
            raise MigrationError(out_of_time_message(report, "in")) from exc
        said = " ".join((exc.diag.message_primary or str(exc)).split())[:300]
        kind = ConnectError if conn.closed else InitializerError
        step = "Give the admin that right, or make it the owner" if exc.pgcode == "42501" else "Invoke again"
        code = f" ({exc.pgcode})" if exc.pgcode else ""
        raise kind(f"PostgreSQL: {said}{code}. Whatever was not finished is rolled back. {step}.") from exc
    finally:
        conn.close()


def out_of_time_message(report: Mapping[str, Any], where: str) -> str:
    applied = [entry["name"] for entry in report["applied"]]
    state = "it was not started" if where == "before" else "it is rolled back unless it had just finished"
    place = f" {where} {report['pending'][0]}: {state}" if report["pending"] else ""
    waiting = shortened(report["pending"])
    go_on = "" if report["action"] == "dry_run" else " to go on"
    return (
        f"out of time{place}. Applied in this run: {shortened(applied) or 'nothing'}. "
        f"{f'Not applied: {waiting}.' if waiting else 'The rest is not done yet.'} "
        f"Invoke again{go_on}; if one file needs longer than the function's timeout, raise that or split the file."
    )


def new_report() -> dict[str, Any]:
    lists: dict[str, Any] = {"applied": [], "adopted": [], "pending": [], "users": {}, "warnings": []}
    return {"status": "ok", "action": "migrate", "version": __version__, **lists, "database": "", "lock_wait_ms": 0}


def run(
    environ: Mapping[str, str], event: Any, context: Any, report: dict[str, Any], login: Optional[Login] = None
) -> None:
    """One invocation from beginning to end; everything it opened is closed."""
    asked = event if isinstance(event, dict) else {}
    action = "migrate" if event in (None, {}) else asked.get("action")
    if not isinstance(action, str) or action not in ACTIONS:
        what = f"action {action!r:.60}" if "action" in asked else "this event"
        raise ConfigError(
            f'{what} is not for db_setup: send {{}}, or {{"action": …}} with one of {", ".join(ACTIONS)}. '
            "Nothing has been touched."
        )
    report["action"] = action
    deadline = Deadline.from_context(context)
    setup = load_setup(environ, deadline, login)
    report["database"] = str(setup.login)
    log("starting", version=__version__, database=setup.login, files=len(setup.files))
    rest = in_session(setup, deadline, report, None)
    while rest:
        rest = in_session(setup, deadline, report, rest)


def handler(event: Any, context: Any, login: Optional[Login] = None) -> dict[str, Any]:
    """Lambda's entry point. Returns the report, plain JSON; raises InitializerError, so that the deployment fails.

    The terminal may bring the admin's `login`; then no secret is read, and no user made.
    """
    started = time.monotonic()
    set_up_logging()
    report = new_report()
    failure: dict[str, Any] = {}
    try:
        run(os.environ, event, context, report, login)
        return report
    except Exception as exc:
        failure = {"error": type(exc).__name__, "reason": str(exc)}
        raise
    finally:
        report["duration_ms"] = round((time.monotonic() - started) * 1000)
        counted = ("applied", "adopted", "pending") if report["action"] != "status" else ("pending",)  # of this run
        counts = {key: len(report[key]) for key in counted}
        figures = {key: report[key] for key in ("users", "lock_wait_ms", "duration_ms") if report[key] != {}}
        level = logging.ERROR if failure else logging.INFO
        about = {} if report["action"] == "migrate" else {"action": report["action"]}
        log("failed" if failure else "done", level, **about, **failure, **counts, failed=int(bool(failure)), **figures)

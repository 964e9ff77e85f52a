"""The limited users of a database: two group roles, their rights, and one login for each.

Knows PostgreSQL's roles, nothing of migrations or AWS. Works as an admin with CREATEROLE who is no superuser
(RDS's master) on PostgreSQL 13 to 18. Passwords never reach the server in plain text: roles get a SCRAM verifier
made on this side, so they cannot stand in its log.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable, NamedTuple, Optional, TypeVar

import psycopg2
from database import (
    ConnectError,
    Connection,
    Deadline,
    InitializerError,
    Login,
    connect,
    log,
    query,
    transaction,
)
from psycopg2 import sql
from psycopg2.extensions import encrypt_password

READWRITE, TABLECREATOR = "readwrite", "tablecreator"
KINDS = {READWRITE: "app_rw", TABLECREATOR: "app_tc"}  # group role → login, as the predecessor's family has them
SCHEMA = "public"
OBJECT_KINDS = {"r": ("TABLE", "SELECT, INSERT, UPDATE, DELETE"), "S": ("SEQUENCE", "USAGE, SELECT")}
# Roles belong to the whole server: two databases that change the same one at once get these.
CONCURRENT_ROLE_CHANGE = ("23505", "XX000", "40001")

Credentials = dict[str, Any]  # a secret's JSON object
Result = TypeVar("Result")


class UserError(InitializerError):
    """A role or a login cannot be brought into order."""


@dataclass(frozen=True)
class Application:
    """The admin of one application's database, and the names of its four roles."""

    admin: Login
    prefix: str = ""

    def group(self, kind: str) -> str:
        return self.prefix + kind

    def login(self, kind: str) -> str:
        return self.prefix + KINDS[kind]

    @property
    def roles(self) -> list[str]:
        return [self.group(kind) for kind in KINDS] + [self.login(kind) for kind in KINDS]


@dataclass(frozen=True)
class Keeper:
    """A place that keeps one login: the JSON object that is there (None: none), and how to replace it."""

    value: Optional[Credentials] = field(repr=False)
    write: Callable[[Credentials], None]


# --- Groups and their rights ----------------------------------------------------------------------------------------

FOREIGN_DATABASES = """
    SELECT coalesce(array_agg(DISTINCT d.datname::text), '{}'), bool_or(d.datname = current_database())
    FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
    JOIN pg_database d ON d.oid = CASE WHEN s.dbid <> 0 THEN s.dbid ELSE s.objid END
    WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY (%s)
      AND (s.dbid <> 0 OR (s.classid = 'pg_database'::regclass AND d.datname <> 'postgres'))"""

# For each group: is it there, may we act for it, has it CONNECT; which creators' objects it is granted by default.
GROUP_STATE = """
    SELECT g.name, r.oid IS NOT NULL, coalesce(pg_has_role(r.oid, 'USAGE'), false),
           coalesce(has_database_privilege(r.oid, current_database(), 'CONNECT'), false),
           coalesce(has_table_privilege(r.oid, to_regclass(%(table)s), 'INSERT, UPDATE, DELETE, TRUNCATE'), false),
           ARRAY(SELECT DISTINCT c.rolname || ':' || d.defaclobjtype::text FROM pg_default_acl d
                 JOIN pg_roles c ON c.oid = d.defaclrole, aclexplode(d.defaclacl) a
                 WHERE d.defaclnamespace = to_regnamespace('public') AND a.grantee = r.oid)
    FROM unnest(%(groups)s) g(name) LEFT JOIN pg_roles r ON r.rolname = g.name"""

OWN_OBJECTS = """
    SELECT string_agg(format('%%I.%%I', n.nspname, c.relname), ', ')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles o ON o.oid = c.relowner
    WHERE n.nspname = 'public' AND o.rolname = %(creator)s
      AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND (c.relkind = 'S') = %(sequences)s"""


class GroupState(NamedTuple):
    """What a group role has in this database."""

    name: str
    exists: bool
    usable: bool
    connects: bool
    writes_tracking: bool
    defaults: Sequence[str]  # creator:kind of object, for which there are default privileges

    def lacks(self, creator: str) -> list[str]:
        """The kinds of objects of this creator that the group is not granted by default."""
        return [kind for kind in OBJECT_KINDS if f"{creator}:{kind}" not in self.defaults]


def group_states(conn: Connection, app: Application, tracking: Optional[str]) -> list[GroupState]:
    """The two groups; `tracking` is the quoted name of the tracking table, if that is of interest."""
    args = {"groups": [app.group(kind) for kind in KINDS], "table": tracking}
    return [GroupState(*row) for row in query(conn, GROUP_STATE, args)]


def groups_are_fine(conn: Connection, app: Application, tracking: sql.Composable) -> bool:
    """Nothing is left for `ensure_groups` to do."""
    creators = (_me(conn), app.group(TABLECREATOR))
    return all(
        group.exists
        and group.usable
        and group.connects
        and not group.writes_tracking
        and not any(group.lacks(creator) for creator in creators)
        for group in group_states(conn, app, tracking.as_string(conn))
    )


def ensure_groups(conn: Connection, app: Application, tracking: sql.Composable) -> list[str]:
    """Make the group roles with their rights, in one transaction; returns the names of those that were made.

    Changes nothing where they are fine. Raises UserError where they belong to another application on this server.
    """
    if groups_are_fine(conn, app, tracking):
        return []
    refuse_shared_roles(conn, app)
    table = tracking.as_string(conn)

    def make() -> list[str]:
        with transaction(conn):
            missing = [group.name for group in group_states(conn, app, table) if not group.exists]
            for name in missing:
                query(conn, sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
            for kind in KINDS:
                _join(conn, app.group(kind))
            for kind in KINDS:
                _ensure_rights(conn, app, kind, table)
            return missing

    return retried(make)


def refuse_shared_roles(conn: Connection, app: Application) -> None:
    """Raise UserError if the roles have rights in another database and none in this one."""
    databases, here = query(conn, FOREIGN_DATABASES, [app.roles])[0]
    if databases and not here:
        raise UserError(
            f"the roles {', '.join(app.roles)} belong to database {', '.join(databases)} on the same server, and "
            "roles are one for the whole server. Nothing has been changed. Set ROLE_PREFIX (such as "
            f'"{re.sub("[^a-z0-9_]", "_", conn.info.dbname.lower())}_") to give this application roles of its own, '
            'or CREATE_USERS="false".'
        )


def retried(action: Callable[[], Result]) -> Result:
    """Do it again where another database's run changed the same role at the same moment."""
    for attempt in range(9):
        try:
            return action()
        except psycopg2.Error as exc:
            if exc.pgcode not in CONCURRENT_ROLE_CHANGE:
                raise
        time.sleep(random.uniform(0.05, 0.1) * 2**attempt)
    return action()


def _me(conn: Connection) -> str:
    return str(conn.info.user)


def _join(conn: Connection, role: str) -> None:
    """Become a member of `role`: ALTER DEFAULT PRIVILEGES FOR ROLE asks for it, and on PostgreSQL 16 and newer
    not even the creator of a role is one."""
    if query(conn, "SELECT pg_has_role(%s, 'USAGE')", [role])[0][0]:
        return
    try:
        query(conn, sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))
    except psycopg2.errors.InsufficientPrivilege as exc:
        raise UserError(
            f"role {role} exists and was made by another admin, and {_me(conn)} may not use it. Nothing has been "
            f"changed. As that admin: GRANT {role} TO {_me(conn)} WITH ADMIN OPTION; or set ROLE_PREFIX."
        ) from exc


def _ensure_rights(conn: Connection, app: Application, kind: str, tracking: str) -> None:
    """Grant to one group what it lacks. Existing objects of a creator are granted once, when the default privileges
    for that creator are made: a REVOKE by a migration stays."""
    group = next(g for g in group_states(conn, app, tracking) if g.name == app.group(kind))
    name = sql.Identifier(group.name)
    if group.lacks(_me(conn)) or not group.connects:
        database = sql.Identifier(conn.info.dbname)
        query(conn, sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, name))
        rights = "USAGE, CREATE" if kind == TABLECREATOR else "USAGE"
        query(conn, sql.SQL("GRANT {} ON SCHEMA public TO {}").format(sql.SQL(rights), name))
        _say_what_was_not_achieved(conn, group.name, kind)
    for creator in (_me(conn), app.group(TABLECREATOR)):
        grant_objects_of(conn, creator, group)
    query(conn, sql.SQL("REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {} FROM {}").format(sql.SQL(tracking), name))


def grant_objects_of(conn: Connection, creator: str, group: GroupState) -> None:
    """Let `group` use what `creator` has made in schema public and will make there, as far as it is not said yet."""
    for kind in group.lacks(creator):
        word, rights = OBJECT_KINDS[kind]
        words = {"rights": sql.SQL(rights), "kind": sql.SQL(word), "group": sql.Identifier(group.name)}
        default = "ALTER DEFAULT PRIVILEGES FOR ROLE {creator} IN SCHEMA public GRANT {rights} ON {kind}S TO {group}"
        query(conn, sql.SQL(default).format(creator=sql.Identifier(creator), **words))
        (objects,) = query(conn, OWN_OBJECTS, {"creator": creator, "sequences": kind == "S"})[0]
        if objects:
            grant = sql.SQL("GRANT {rights} ON {kind} {objects} TO {group}")
            query(conn, grant.format(objects=sql.SQL(objects), **words))


def _say_what_was_not_achieved(conn: Connection, group: str, kind: str) -> None:
    """Up to PostgreSQL 14 schema public belongs to the superuser, and a GRANT by others is only a warning."""
    usage, create = query(
        conn,
        "SELECT has_schema_privilege(%(role)s, 'public', 'USAGE'), has_schema_privilege(%(role)s, 'public', 'CREATE')",
        {"role": group},
    )[0]
    if not usage or (kind == TABLECREATOR and not create):
        raise UserError(
            f"{_me(conn)} may not grant rights on schema public to {group}. As the schema's owner: "
            f"GRANT USAGE{', CREATE' if kind == TABLECREATOR else ''} ON SCHEMA public TO {group}."
        )
    if kind == READWRITE and create:
        log(
            "readwrite can create tables in schema public, since everybody can",
            remedy="as the schema's owner: REVOKE CREATE ON SCHEMA public FROM PUBLIC",
            level=logging.WARNING,
        )


# --- Logins ---------------------------------------------------------------------------------------------------------

LOGIN_STATE = """
    SELECT r.rolcanlogin, r.rolvaliduntil IS NOT NULL AND r.rolvaliduntil <> 'infinity',
           r.rolcreatedb, r.rolcreaterole, pg_has_role(r.oid, g.oid, 'MEMBER'),
           ARRAY(SELECT m.rolname::text FROM pg_roles m WHERE pg_has_role(r.oid, m.oid, 'MEMBER') AND (
                 m.rolsuper OR m.rolreplication OR m.rolbypassrls OR m.rolcreaterole OR m.rolcreatedb
                 OR m.rolname IN (current_user, 'rds_superuser', %(forbidden)s)))
    FROM pg_roles r, pg_roles g WHERE r.rolname = %(login)s AND g.rolname = %(group)s"""


class LoginState(NamedTuple):
    """A role that logs in; `powers` are the roles through which it may do more than it should."""

    can_login: bool
    expires: bool
    creates_databases: bool
    creates_roles: bool
    in_group: bool
    powers: Sequence[str]


def login_state(conn: Connection, app: Application, kind: str, login: str) -> Optional[LoginState]:
    """The login's role, or None where it does not exist."""
    forbidden = app.group(TABLECREATOR) if kind == READWRITE else ""
    args = {"login": login, "group": app.group(kind), "forbidden": forbidden}
    found = query(conn, LOGIN_STATE, args)
    return LoginState(*found[0]) if found else None


def login_is_fine(conn: Connection, app: Application, kind: str, login: str) -> bool:
    """The role belongs to its group and has no power beyond it. (Whether its password works is tried elsewhere.)"""
    state = login_state(conn, app, kind, login)
    return state is not None and state.in_group and not state.powers


def is_followed(conn: Connection, app: Application, kind: str, login: str) -> bool:
    """What this login creates is usable by both groups (only a table creator's can create)."""
    return kind != TABLECREATOR or not any(group.lacks(login) for group in group_states(conn, app, None))


def working_login(
    conn: Connection, app: Application, kind: str, kept: Optional[Credentials], deadline: Deadline
) -> Optional[Login]:
    """The login in these credentials if it works, belongs to its group and is not too powerful; tried by logging in.

    Raises ConnectError where that cannot be tried: then it may work, and is not changed.
    """
    username, password = ((kept or {}).get(key) for key in ("username", "password"))
    if not (isinstance(username, str) and isinstance(password, str)) or "\0" in username + password:
        return None
    if not username or not login_is_fine(conn, app, kind, username):
        return None
    login = replace(app.admin, username=username, password=password)
    try:
        connect(login, deadline).close()
    except ConnectError as exc:
        if exc.login_refused:
            return None
        raise
    return login


def working_logins(
    conn: Connection,
    app: Application,
    tracking: sql.Composable,
    kept: Mapping[str, Optional[Credentials]],
    deadline: Deadline,
) -> Optional[list[str]]:
    """The names of the logins in `kept`, where these, the groups and their rights are as they should be; or None."""
    if not groups_are_fine(conn, app, tracking):
        return None
    names = []
    for kind, value in kept.items():
        login = working_login(conn, app, kind, value, deadline)
        if login is None or not is_followed(conn, app, kind, login.username):
            return None
        names.append(login.username)
    return names


def ensure_login(conn: Connection, app: Application, kind: str, keeper: Keeper, deadline: Deadline) -> tuple[str, str]:
    """Make the login that the keeper keeps work; one that works is never changed.

    The role is changed, the credentials are written, the change is committed, the login is tried: a crash between
    any two leaves a login that the next run mends. Returns the login's name and "kept", "created" or "mended".
    """
    working = working_login(conn, app, kind, keeper.value, deadline)
    if working:
        with transaction(conn):
            follow_creator(conn, app, kind, working.username)
        return working.username, "kept"
    login = replace(app.admin, username=app.login(kind), password=secrets.token_urlsafe(32))
    fields = ("engine", "host", "port", "dbname", "username", "password")

    def change() -> bool:
        with transaction(conn):
            created = change_login(conn, app, kind, login)
            follow_creator(conn, app, kind, login.username)
            keeper.write({**(keeper.value or {}), **{name: getattr(login, name) for name in fields}})
            return created

    created = retried(change)
    try:
        connect(login, deadline).close()
    except ConnectError as exc:
        raise UserError(f"login {login.username} was made and its secret was written, but: {exc}") from exc
    return login.username, "created" if created else "mended"


def change_login(conn: Connection, app: Application, kind: str, login: Login) -> bool:
    """Make the login's role, or give the existing one this password; inside the caller's transaction.

    Returns whether the role is new; raises UserError where it stays more powerful than it should be.
    """
    verifier = encrypt_password(login.password, login.username, scope=conn, algorithm="scram-sha-256")
    role, state = sql.Identifier(login.username), login_state(conn, app, kind, login.username)
    if state is None:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        query(conn, create.format(role, sql.Literal(verifier)))
    else:
        # Only what differs: naming SUPERUSER or REPLICATION at all is refused to an admin who is no superuser.
        changes = [
            words
            for wrong, words in (
                (not state.can_login, "LOGIN"),
                (state.expires, "VALID UNTIL 'infinity'"),
                (state.creates_databases, "NOCREATEDB"),
                (state.creates_roles, "NOCREATEROLE"),
            )
            if wrong
        ]
        alter = sql.SQL("ALTER ROLE {} {} PASSWORD {}")
        query(conn, alter.format(role, sql.SQL(" ".join(changes)), sql.Literal(verifier)))
    if state is None or not state.in_group:
        query(conn, sql.SQL("GRANT {} TO {}").format(sql.Identifier(app.group(kind)), role))
    after = login_state(conn, app, kind, login.username)
    if after is None or after.powers:
        raise UserError(
            f"role {login.username} is more powerful than a limited user may be, through "
            f"{', '.join(after.powers) if after else ''}. It was not changed. REVOKE that, and invoke again."
        )
    return state is None


def follow_creator(conn: Connection, app: Application, kind: str, login: str) -> None:
    """Let both groups use what a login of the table creators has made and will make."""
    if is_followed(conn, app, kind, login):
        return
    _join(conn, login)
    for group in group_states(conn, app, None):
        grant_objects_of(conn, login, group)

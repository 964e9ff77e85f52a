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
CONCURRENT_ROLE_CHANGE = ("23505", "42710", "XX000", "40001", "40P01", "55P03")


CURRENT, PENDING = "AWSCURRENT", "AWSPENDING"  # what a keeper keeps, and what it will while somebody rotates it


class Credentials(dict[str, Any]):
    """A secret's JSON object; shows none of its values."""

    def __repr__(self) -> str:
        return f"Credentials({', '.join(self)})"


class OvertakenError(Exception):
    """Somebody else has replaced what the keeper keeps."""


Result = TypeVar("Result")


class UserError(InitializerError):
    """A role or a login cannot be brought into order."""


@dataclass(frozen=True)
class Application:
    """The admin of one application's database, the names of its four roles, and its tables that they may not write."""

    admin: Login
    prefix: str
    tracking: sql.Composable  # may be read
    progress: sql.Composable  # may not, and need not exist

    def group(self, kind: str) -> str:
        return self.prefix + kind

    def login(self, kind: str) -> str:
        return self.prefix + KINDS[kind]

    def logins(self, kind: str) -> tuple[str, str]:
        """The two between which a rotation alternates; the second's name is the one that AWS's own rotation gives."""
        return self.login(kind), self.login(kind) + "_clone"

    @property
    def roles(self) -> list[str]:
        return [self.group(kind) for kind in KINDS] + [self.login(kind) for kind in KINDS]


@dataclass(frozen=True)
class Keeper:
    """A place that keeps one login: the JSON object that was there (or None), how to look again, how to replace it."""

    value: Optional[Credentials] = field(repr=False)
    read: Callable[[str], Optional[Credentials]]
    write: Callable[[Credentials], None]


# --- Groups and their rights ----------------------------------------------------------------------------------------

FOREIGN_DATABASES = """
    SELECT coalesce(array_agg(DISTINCT d.datname::text) FILTER (WHERE d.datname <> current_database()), '{}'),
           bool_or(d.datname = current_database())
    FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
    JOIN pg_database d ON d.oid = CASE WHEN s.dbid <> 0 THEN s.dbid ELSE s.objid END
    WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY (%s)
      AND (s.dbid <> 0 OR (s.classid = 'pg_database'::regclass AND d.datname <> 'postgres'))"""

# For each group: is it there, may we act for it, has it CONNECT, has it too much on our own tables; for which creators'
# objects it has default privileges.
GROUP_STATE = """
    SELECT g.name, r.oid IS NOT NULL, coalesce(pg_has_role(r.oid, 'USAGE'), false),
           coalesce(has_database_privilege(r.oid, current_database(), 'CONNECT'), false),
           coalesce(has_table_privilege(r.oid, to_regclass(%(tracking)s), %(writing)s), false)
           OR coalesce(has_table_privilege(r.oid, to_regclass(%(progress)s), 'SELECT, ' || %(writing)s), false)
           OR coalesce(CASE WHEN to_regclass(%(tracking)s) IS NOT NULL THEN has_sequence_privilege(
                r.oid, pg_get_serial_sequence(%(tracking)s, 'id'), 'USAGE, UPDATE') END, false),
           ARRAY(SELECT DISTINCT c.rolname || ':' || d.defaclobjtype::text FROM pg_default_acl d
                 JOIN pg_roles c ON c.oid = d.defaclrole, aclexplode(d.defaclacl) a
                 WHERE d.defaclnamespace = to_regnamespace('public') AND a.grantee = r.oid)
    FROM unnest(%(groups)s) g(name) LEFT JOIN pg_roles r ON r.rolname = g.name"""

SCHEMA_STATE = """
    SELECT pg_has_role(nspowner, 'USAGE'), EXISTS (SELECT FROM aclexplode(nspacl) a
        WHERE a.grantee = 0 AND a.privilege_type = 'CREATE') FROM pg_namespace WHERE nspname = 'public'"""

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
    writes_our_tables: bool
    defaults: Sequence[str]  # creator:kind of object, for which there are default privileges

    def lacks(self, creator: str) -> list[str]:
        """The kinds of objects of this creator that are still to be granted by default.

        None, once sequences are: then all were (the predecessor left these out), and what is missing was revoked.
        """
        if f"{creator}:S" in self.defaults:
            return []
        return [kind for kind in OBJECT_KINDS if f"{creator}:{kind}" not in self.defaults]


def group_states(conn: Connection, app: Application) -> list[GroupState]:
    """The two groups as they are."""
    args = {
        "groups": [app.group(kind) for kind in KINDS],
        "tracking": app.tracking.as_string(conn),
        "progress": app.progress.as_string(conn),
        "writing": "INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER",
    }
    return [GroupState(*row) for row in query(conn, GROUP_STATE, args)]


def groups_are_fine(conn: Connection, app: Application, groups: Optional[Sequence[GroupState]] = None) -> bool:
    """Nothing is left for `ensure_groups` to do."""
    creators = (_me(conn), app.group(TABLECREATOR))
    return all(
        group.exists
        and group.usable
        and group.connects
        and not group.writes_our_tables
        and not any(map(group.lacks, creators))
        for group in groups or group_states(conn, app)
    )


def ensure_groups(conn: Connection, app: Application) -> list[str]:
    """Make the group roles with their rights, in one transaction; returns the names of those that were made.

    Changes nothing where they are fine. Raises UserError where they belong to others.
    """

    def make() -> list[str]:
        with transaction(conn):
            query(conn, "SET LOCAL client_min_messages = error")  # what a GRANT achieved is looked at
            refuse_roles_of_others(conn, app)
            missing = [group.name for group in group_states(conn, app) if not group.exists]
            for name in missing:
                query(conn, sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
            for kind in KINDS:
                _join(conn, app.group(kind))
            for kind in KINDS:
                _ensure_rights(conn, app, kind)
            return missing

    return [] if groups_are_fine(conn, app) else retried(make)


def refuse_roles_of_others(conn: Connection, app: Application) -> None:
    """Raise UserError if the groups belong to another application on this server, or to another admin."""
    if groups_are_fine(conn, app):
        return
    databases, here = _databases_with_rights(conn, app)
    if databases and not here:
        raise _shared(conn, app, databases)
    for group in group_states(conn, app):
        if group.exists and not _may_grant(conn, group.name):
            raise _of_another_admin(conn, group.name)


def _databases_with_rights(conn: Connection, app: Application) -> tuple[list[str], bool]:
    """The other databases in which one of the four roles has rights, and whether one has some in this."""
    databases, here = query(conn, FOREIGN_DATABASES, [app.roles + [app.logins(kind)[1] for kind in KINDS]])[0]
    return databases, bool(here)


def _refuse_login_of_others(conn: Connection, app: Application, kind: str, kept: Optional[Credentials]) -> None:
    """Raise UserError if this login is another application's: replaced, it would be lost to it."""
    username = (kept or Credentials()).get("username")
    if not is_usable(username) or username == app.admin.username:
        return
    its_roles = (
        "SELECT coalesce(array_agg(g.rolname::text), '{}') FROM pg_roles r, pg_roles g "
        "WHERE r.rolname = %s AND pg_has_role(r.oid, g.oid, 'MEMBER') AND NOT g.rolsuper AND NOT g.rolcreaterole"
    )
    databases, here = query(conn, FOREIGN_DATABASES, query(conn, its_roles, [username])[0])[0]
    if databases and not here:
        raise UserError(
            f"the secret for the {kind} login holds {username}, which belongs to database {', '.join(databases)} on "
            "the same server and would be lost. It was not changed. Give this application secrets of its own."
        )


def _shared(conn: Connection, app: Application, databases: Sequence[str]) -> UserError:
    prefix = (re.sub("[^a-z0-9_]", "_", conn.info.dbname.lower())[:40] + "_").lstrip("0123456789_") or "app_"
    return UserError(
        f"the roles {', '.join(app.roles)} belong to database {', '.join(databases)} on the same server, and "
        "roles are one for the whole server. Nothing has been changed. Set ROLE_PREFIX (such as "
        f'"{prefix}") to give this application roles of its own, or CREATE_USERS="false".'
    )


def _may_grant(conn: Connection, role: str) -> bool:
    """Since PostgreSQL 16 CREATEROLE alone is not enough for a role that another admin has made."""
    if conn.server_version < 160000:
        return True
    return bool(query(conn, "SELECT pg_has_role(%s, 'USAGE WITH ADMIN OPTION')", [role])[0][0])


def _of_another_admin(conn: Connection, role: str) -> UserError:
    return UserError(
        f"role {role} exists and was made by another admin, and {_me(conn)} may not use it. Nothing has been changed. "
        f"As that admin: GRANT {role} TO {_me(conn)} WITH ADMIN OPTION; or set ROLE_PREFIX."
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
        raise _of_another_admin(conn, role) from exc


def _ensure_rights(conn: Connection, app: Application, kind: str) -> None:
    """Grant to one group what it lacks. Existing objects of a creator are granted once, when the default privileges
    for that creator are made: a REVOKE by a migration stays."""
    group = next(g for g in group_states(conn, app) if g.name == app.group(kind))
    name = sql.Identifier(group.name)
    if group.lacks(_me(conn)) or not group.connects:
        database = sql.Identifier(conn.info.dbname)
        query(conn, sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, name))
        _ensure_schema_rights(conn, group.name, kind)
    for creator in (_me(conn), app.group(TABLECREATOR)):
        grant_objects_of(conn, creator, group)
    for table, rights in ((app.tracking, "SELECT"), (app.progress, "")):
        if query(conn, "SELECT to_regclass(%s)", [table.as_string(conn)])[0][0]:
            query(conn, sql.SQL("REVOKE ALL ON {} FROM {}").format(table, name))
            if rights:
                ((numbers,),) = query(conn, "SELECT pg_get_serial_sequence(%s, 'id')", [table.as_string(conn)])
                if numbers:
                    query(conn, sql.SQL("REVOKE ALL ON SEQUENCE {} FROM {}").format(sql.SQL(numbers), name))
                query(conn, sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(rights), table, name))


def _ensure_schema_rights(conn: Connection, group: str, kind: str) -> None:
    """USAGE, and CREATE for table creators alone. Up to PostgreSQL 14 schema public belongs to the superuser, and what
    others grant or revoke there is only a warning: what was achieved is looked at, and said."""
    rights = "USAGE, CREATE" if kind == TABLECREATOR else "USAGE"
    query(conn, sql.SQL("GRANT {} ON SCHEMA public TO {}").format(sql.SQL(rights), sql.Identifier(group)))
    ours, open_to_all = query(conn, SCHEMA_STATE)[0]
    if ours and open_to_all:
        query(conn, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        log("schema public closed: only its owner and table creators may create there now", logging.WARNING)
    may = "SELECT has_schema_privilege(%s, 'public', 'USAGE'), has_schema_privilege(%s, 'public', 'CREATE')"
    usage, create = query(conn, may, [group, group])[0]
    if not usage or (kind == TABLECREATOR and not create):
        raise UserError(
            f"{_me(conn)} may not grant rights on schema public to {group}. No role has been changed. As the schema's "
            f"owner: GRANT {rights} ON SCHEMA public TO {group}; then invoke again."
        )
    if kind == READWRITE and create:
        remedy = "as the schema's owner: REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        log("everybody can create tables in schema public", logging.WARNING, remedy=remedy)


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


# --- Logins ---------------------------------------------------------------------------------------------------------

LOGIN_STATE = """
    SELECT r.rolcanlogin, r.rolvaliduntil IS NOT NULL AND r.rolvaliduntil <> 'infinity',
           r.rolcreatedb, r.rolcreaterole, pg_has_role(r.oid, g.oid, 'MEMBER'),
           array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'NOSUPERUSER' END,
                              CASE WHEN r.rolreplication THEN 'NOREPLICATION' END,
                              CASE WHEN r.rolbypassrls THEN 'NOBYPASSRLS' END], NULL),
           ARRAY(SELECT m.rolname::text FROM pg_roles m WHERE pg_has_role(r.oid, m.oid, 'MEMBER') AND (
                 m.rolsuper OR m.rolreplication OR m.rolbypassrls OR m.rolcreaterole OR m.rolcreatedb
                 OR m.rolname IN (current_user, 'rds_superuser', %(forbidden)s)))
    FROM pg_roles r, pg_roles g WHERE r.rolname = %(login)s AND g.rolname = %(group)s"""


class LoginState(NamedTuple):
    """A role that logs in; `powers` are the roles through which it may do more than it should, itself included."""

    can_login: bool
    expires: bool
    creates_databases: bool
    creates_roles: bool
    in_group: bool
    without: Sequence[str]  # what takes away its attributes that only a superuser can change
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


def is_followed(groups: Sequence[GroupState], kind: str, login: str) -> bool:
    """What this login creates is usable by both groups (only a table creator's can create)."""
    return kind != TABLECREATOR or not any(group.lacks(login) for group in groups)


def is_usable(value: Any) -> bool:
    """PostgreSQL can take it: not empty, no NUL, no half of a surrogate pair (JSON can hold one)."""
    return isinstance(value, str) and value != "" and not re.search("[\0\ud800-\udfff]", value)


def working_login(
    conn: Connection, app: Application, kind: str, kept: Optional[Credentials], deadline: Deadline
) -> Optional[Login]:
    """The login in these credentials if it works, belongs to its group and is not too powerful; tried by logging in.

    Raises ConnectError where that cannot be tried: then it may work, and is not changed.
    """
    kept = kept or Credentials()
    if not (is_usable(kept.get("username")) and is_usable(kept.get("password"))):
        return None
    login = replace(app.admin, username=kept["username"], password=kept["password"])
    if not login_is_fine(conn, app, kind, login.username):
        return None
    try:
        connect(login, deadline).close()
    except ConnectError as exc:
        if exc.login_refused:
            return None
        raise
    return login


def working_logins(
    conn: Connection, app: Application, kept: Mapping[str, Optional[Credentials]], deadline: Deadline
) -> Optional[list[str]]:
    """The names of the logins in `kept`, where these, the groups and their rights are as they should be; or None."""
    groups, names = group_states(conn, app), []
    if not groups_are_fine(conn, app, groups):
        return None
    for kind, value in kept.items():
        login = working_login(conn, app, kind, value, deadline)
        if login is None or not is_followed(groups, kind, login.username) or not _leads_here(app, value):
            return None
        names.append(login.username)
    return names


def _leads_here(app: Application, kept: Optional[Credentials]) -> bool:
    """Who connects with all of these credentials comes to this database. Another host may be another name for it."""
    return bool((kept or Credentials()).get("dbname", app.admin.dbname) == app.admin.dbname)


def ensure_login(conn: Connection, app: Application, kind: str, keeper: Keeper, deadline: Deadline) -> tuple[str, str]:
    """Make the login that the keeper keeps work; one that works is never changed.

    The role is changed, the credentials are written, the change is committed, the login is tried: a crash between
    any two leaves a login that the next run mends. Returns the login's name and "kept", "created" or "mended".
    """
    working = working_login(conn, app, kind, keeper.value, deadline)
    if working:
        with transaction(conn):
            follow_creator(conn, app, kind, working.username)
        if not _leads_here(app, keeper.value):
            keeper.write(Credentials({**(keeper.value or {}), "dbname": app.admin.dbname}))
        return working.username, "kept"
    _refuse_login_of_others(conn, app, kind, keeper.value)
    if working_login(conn, app, kind, keeper.read(PENDING), deadline):
        raise UserError(
            f"the {kind} login is being rotated by AWS: the one that its secret will hold works already. It was not "
            "changed. Invoke again when the rotation has ended."
        )
    login = replace(app.admin, username=app.login(kind), password=secrets.token_urlsafe(32))
    fields = ("engine", "host", "port", "dbname", "username", "password")

    def change() -> bool:
        with transaction(conn):
            created = change_login(conn, app, kind, login)
            follow_creator(conn, app, kind, login.username)
            if keeper.read(CURRENT) != keeper.value:  # while the role is ours alone
                raise OvertakenError
            keeper.write(Credentials({**(keeper.value or {}), **{name: getattr(login, name) for name in fields}}))
            return created

    try:
        created = retried(change)
    except OvertakenError:
        return ensure_login(conn, app, kind, replace(keeper, value=keeper.read(CURRENT)), deadline)
    if conn.rehearsal:  # nobody else can see it, and it will not stay
        return login.username, "would be created" if created else "would be mended"
    try:
        connect(login, deadline, state="Look at that, and invoke again.").close()
    except ConnectError as exc:
        raise UserError(f"login {login.username} was made and its secret was written, but: {exc}") from exc
    return login.username, "created" if created else "mended"


def rotate_login(conn: Connection, app: Application, kind: str, keeper: Keeper, deadline: Deadline) -> tuple[str, str]:
    """Give the keeper the other one of two logins, with a new password; one that does not work is mended instead.

    The login that was kept so far works until the next rotation gives it a new password: at no moment, and after no
    crash, do the keeper's credentials fail. What it has created goes to its group, to which both belong.
    """
    working = working_login(conn, app, kind, keeper.value, deadline)
    if not working:
        return ensure_login(conn, app, kind, keeper, deadline)
    first, second = app.logins(kind)
    name = second if working.username == first else first
    login = replace(working, username=name, password=secrets.token_urlsafe(32))

    def change() -> None:
        with transaction(conn):
            change_login(conn, app, kind, login)
            follow_creator(conn, app, kind, name)
            if kind == TABLECREATOR:
                _join(conn, working.username)
                names = map(sql.Identifier, (working.username, app.group(kind)))
                query(conn, sql.SQL("REASSIGN OWNED BY {} TO {}").format(*names))

    retried(change)
    try:
        connect(login, deadline, state="Its secret was not changed.").close()
    except ConnectError as exc:
        raise UserError(f"login {name} was made, but: {exc}") from exc
    keeper.write(Credentials({**(keeper.value or {}), "username": name, "password": login.password}))
    return name, "rotated"


def change_login(conn: Connection, app: Application, kind: str, login: Login) -> bool:
    """Make the login's role, or give the existing one this password; inside the caller's transaction.

    Returns whether the role is new; raises UserError where it stays more powerful than it should be.
    """
    verifier = encrypt_password(login.password, login.username, scope=conn, algorithm="scram-sha-256")
    role, state = sql.Identifier(login.username), login_state(conn, app, kind, login.username)
    if state is not None:
        _refuse_to_change(conn, app, login.username, state)
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


def _refuse_to_change(conn: Connection, app: Application, login: str, state: LoginState) -> None:
    """Raise UserError if the role is used by another database, or cannot be brought into order by this admin."""
    databases, _ = _databases_with_rights(conn, app)
    if databases:
        raise _shared(conn, app, databases)
    if state.without:
        raise UserError(
            f"role {login} is more powerful than a limited user may be. It was not changed. "
            f"As a superuser: ALTER ROLE {login} {' '.join(state.without)}; then invoke again."
        )
    if not _may_grant(conn, login):
        raise _of_another_admin(conn, login)


def follow_creator(conn: Connection, app: Application, kind: str, login: str) -> None:
    """Let both groups use what a login of the table creators has made and will make."""
    groups = group_states(conn, app)
    if is_followed(groups, kind, login):
        return
    _join(conn, login)
    for group in groups:
        grant_objects_of(conn, login, group)

"""The limited users of a database: two group roles, their rights, and one login for each.

Knows PostgreSQL's roles, nothing of migrations or AWS. Works as an admin with CREATEROLE who is not
a superuser (RDS's master) on PostgreSQL 13 to 18. Passwords never reach the server in plain text:
roles get a SCRAM verifier made on this side, so they cannot be in its log.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple, Optional, Protocol

import boundary
import database
import psycopg2
from common import ROTATE_AGAIN, ConnectError, Credentials, OvertakenError, UserError, log
from database import Login
from psycopg2 import sql
from psycopg2.extensions import encrypt_password
from rehearsal import Rehearsal
from session import RETRYABLE, Result, Session
from watcher import CAN_BECOME_SQL, IS_LIMITED_SQL

# Roles belong to the whole server: two databases that change the same one at the same time get
# these.
CONCURRENT_ROLE_CHANGE = ("23505", "42710", "XX000", *RETRYABLE)
# Of PostgreSQL's own roles these only look at the server; the others, such as pg_write_all_data,
# are powers.
HARMLESS_ROLES = ("pg_monitor", "pg_read_all_settings", "pg_read_all_stats", "pg_stat_scan_tables")
INSUFFICIENT_PRIVILEGE = "42501"
OWNED_AT_ONCE = 200  # objects in one transaction

Members = Sequence[Sequence[str]]  # a role, and the statement that takes it out


@dataclass(frozen=True)
class Kind:
    """A kind of limited user: its group role, which has the rights, and the login that is a
    member of it.
    """

    group_name: str
    login_name: str
    may_create: bool
    tables: str = "SELECT, INSERT, UPDATE, DELETE"
    sequences: str = "USAGE, SELECT"

    @property
    def login_names(self) -> tuple[str, str]:
        """The two between which a rotation alternates; the second's name is the one that AWS's
        own rotation gives.
        """
        return self.login_name, self.login_name + "_clone"

    @property
    def on_schema(self) -> str:
        """Its rights on the schema."""
        return "USAGE, CREATE" if self.may_create else "USAGE"

    @property
    def objects(self) -> Mapping[str, tuple[str, str]]:
        """What it may do with which objects, by the letter that pg_default_acl has for these."""
        return {"r": ("TABLE", self.tables), "S": ("SEQUENCE", self.sequences)}


READWRITE = Kind("readwrite", "app_rw", may_create=False)
TABLECREATOR = Kind("tablecreator", "app_tc", may_create=True)
KINDS = (READWRITE, TABLECREATOR)  # by the names that they have had since the first version
# Made only where its secret is named: a server can have a role of that name.
READONLY = Kind("readonly", "app_ro", may_create=False, tables="SELECT", sequences="SELECT")
ALL_KINDS = (*KINDS, READONLY)


def limited_roles(prefix: str, kinds: Sequence[Kind]) -> list[str]:
    """The groups and their logins; the reader's logins also where its secret is not named any more,
    and by them the group that they can act for.
    """
    groups = [kind.group_name for kind in kinds]
    logins = [name for kind in ALL_KINDS for name in kind.login_names]
    return [prefix + name for name in groups + logins]


@dataclass(frozen=True)
class Application:
    """The admin of one application's database, the prefix of its roles, its schema, and its tables
    that they may not write.
    """

    admin: Login
    prefix: str
    tracking: sql.Composable  # may be read
    progress: sql.Composable  # may not, and need not exist
    kept: sql.Composable  # nor this one
    schema: str = "public"
    kinds: Sequence[Kind] = KINDS
    by_iam: bool = False  # the logins have no password
    tokens_for: Optional[Callable[[str], Callable[[], str]]] = None  # of a login, see database

    def group_name(self, kind: Kind) -> str:
        return self.prefix + kind.group_name

    def login_name(self, kind: Kind) -> str:
        return self.prefix + kind.login_name

    def login_names(self, kind: Kind) -> tuple[str, str]:
        first, second = kind.login_names
        return self.prefix + first, self.prefix + second

    @property
    def roles(self) -> list[str]:
        groups = [self.group_name(kind) for kind in self.kinds]
        return groups + [self.login_name(kind) for kind in self.kinds]


class StoredLogin(Protocol):
    """The place where a login's credentials are stored."""

    value: Optional[Credentials]  # the JSON object that was read from it; None: there was none
    is_nowhere: bool  # a login that signs in by IAM, whose name is all that there is

    def read(self) -> Optional[Credentials]:
        """What is stored there now."""

    def read_next(self) -> Optional[Credentials]:
        """What will be stored there when the rotation of somebody else has ended."""

    def write(self, value: Credentials) -> None:
        """Replace what is stored there."""


class GroupState(NamedTuple):
    """What a group role has in this database."""

    name: str
    exists: bool
    usable: bool  # we may act for it
    connects: bool
    defaults: Sequence[str]  # creator:kind of object, for which there are default privileges
    # What the comment on our own table begins with, and what it says: group:creator for each
    # creator whose objects were granted. None where it cannot say it.
    granted: Optional[tuple[str, Sequence[str]]]
    members: Members  # that we did not put there
    # That no deployment may stop for: by whom, whether that is a limited user, and what ends it.
    unwanted: Sequence[tuple[Optional[str], bool, str, str]]  # the last one is its member

    def lacks(self, creator: str, kind: Kind) -> list[str]:
        """The kinds of objects of this creator that are still to be granted by default.

        None, once sequences are or were: then all were (the predecessor left these out), and what
        is missing was revoked.
        """
        if f"{creator}:S" in self.defaults or self.has_had(creator):
            return []
        return [letter for letter in kind.objects if f"{creator}:{letter}" not in self.defaults]

    def has_had(self, creator: str) -> bool:
        """It was given rights on this creator's objects before, whatever it has dropped since."""
        return self.exists and self.granted is not None and self._pair(creator) in self.granted[1]

    def is_closed_to(self, creator: str) -> bool:
        """It gets no rights any more on what this creator makes.

        DROP OWNED BY leaves the rights on what exists, and on schema and database.
        """
        has_default = any(each.rpartition(":")[0] == creator for each in self.defaults)
        return self.has_had(creator) and not has_default

    def has_unnoted(self, creator: str) -> bool:
        """Its rights on this creator's objects are to be written down."""
        return self.granted is not None and not self.has_had(creator)

    def to_note(self, creators: Iterable[str]) -> set[str]:
        """What is to be written down of it, where it has rights on these creators' objects."""
        by_default = {each.rpartition(":")[0] for each in self.defaults if each.endswith(":S")}
        return {self._pair(creator) for creator in (*creators, *by_default)}

    def without(self, roles: Sequence[str]) -> GroupState:
        """As if nothing were noted of these roles: they are new ones of that name."""
        if self.granted is None:
            return self
        note, pairs = self.granted
        kept = [pair for pair in pairs if not set(roles).intersection(pair.split(":"))]
        return self._replace(granted=(note, kept))

    def _pair(self, creator: str) -> str:
        return f"{self.name}:{creator}"


class LoginState(NamedTuple):
    """A role that logs in; `powers` are the roles through which it can do more than it should,
    itself included.
    """

    can_login: bool
    expires: bool
    creates_databases: bool
    creates_roles: bool
    in_group: bool
    by_iam: bool  # a member of rds_iam, of whom RDS takes no password
    superuser_remedies: Sequence[str]  # take away its attributes that only a superuser can change
    powers: Sequence[str]
    settings: Sequence[str]  # statements that reset what ALTER ROLE … SET has set for it
    # The schema with which its own search_path begins; empty where it is one that db_setup sets for
    # nobody.
    path: Optional[str]
    members: Members


class Found(NamedTuple):
    """What there is to grant."""

    schema_is_ours: bool
    schema_is_open: bool  # everybody may create there
    has_tracking: bool
    # By creator:kind of object, as a list in SQL; None: too long.
    objects: Mapping[str, Optional[str]]


NOTHING = sql.SQL("")
NOTHING_FOUND = Found(False, False, False, {})
WORKS, BROKEN = "works", "broken"
NOT_TRIED = "not tried"  # for a reason that has nothing to do with the login
TOO_SLOW = "too slow"  # by its own password
LOCKED_OUT = "locked out"  # by its own setting


class Trial(NamedTuple):
    """What came of trying a login; `login` is None where it is broken."""

    login: Optional[Login]
    state: str
    reason: str = ""


class LimitedUsers:
    """The limited users of one application, seen and changed in an admin's session."""

    def __init__(self, session: Session, app: Application, password_tag: str) -> None:
        self._session = session
        self._app = app
        self._schema = sql.Identifier(app.schema)
        self._limited = limited_roles(app.prefix, app.kinds)
        self._password_tag = password_tag  # what a new password ends with
        self._members: dict[str, Members] = {}  # by role, as they were last found
        self._existing: set[str] = set()  # our roles that were found
        self._groups: Mapping[Kind, GroupState] = {}  # as they were last found
        self._unchanged_groups: Optional[Mapping[Kind, GroupState]] = None  # as they still are
        self._next_transaction = 0  # when the groups were looked at
        self._first_new: Optional[int] = None  # transaction, as of the first file
        self.warnings: list[str] = []

    def _retried(self, action: Callable[[], Result]) -> Result:
        """Also where another database's run changes the same role at the same moment."""
        return self._session.with_retries(action, CONCURRENT_ROLE_CHANGE)

    def outsiders(self, known: Sequence[str]) -> list[str]:
        """A warning for each role that others have put into one of ours: it may do what that one
        may.
        """
        return [
            f"role {member} is a member of {role}, where db_setup did not put it, and may do what "
            f"that may; if it should not: {remedy}"
            for role, members in self._members.items()
            for member, remedy in members
            if member not in known
        ]

    # --- Groups and their rights --------------------------------------------------------------

    def note_beginning(self) -> None:
        """After the groups, before the files: what is so already is not for this run to say."""
        if self._first_new is None:
            self._first_new = self._next_transaction

    def left_to_others(self) -> Iterator[str]:
        """What to say of tables that the files have made as another role, for which there are no
        default privileges; and of what they have replaced or given away, so that a limited user can
        change it.
        """
        if self._first_new is None:
            return
        for kind, group in self._groups.items():
            for creator in filter(group.is_closed_to, self._creators()):
                yield (
                    f"{group.name} gets no rights on what {creator} makes, since a file revoked "
                    f"them by default, or DROP OWNED BY {group.name} did; if it should, in a new "
                    f"file: ALTER DEFAULT PRIVILEGES FOR ROLE {creator} IN SCHEMA "
                    f"{self._app.schema} GRANT {kind.tables} ON TABLES TO {group.name}"
                )
        args = {
            "first_new": self._first_new,
            "limited": self._limited,
            "group": self._app.group_name(READWRITE),
            "roles": self._app.roles,
            "ours": self._our_tables,
            "schema": self._app.schema,
        }
        for owner, tables, replaced in self._session.query(LEFT_TO_OTHERS_SQL, args):
            if replaced:
                state = (
                    f"was given to {owner}"
                    if replaced.startswith("DATABASE")
                    else f"was replaced, but still belongs to {owner}, who can change what it does "
                    "where the admin uses it"
                )
                yield (
                    f"{replaced} {state}; unless that is right: ALTER {replaced} OWNER TO "
                    "CURRENT_USER"
                )
                continue
            listed = ", ".join(tables[:5])
            yield (
                f"{args['group']} cannot read what {owner} owns: add to the file GRANT "
                f"{READWRITE.tables} ON {listed}{' …' if len(tables) > 5 else ''} TO "
                f"{args['group']};"
            )

    def ensure_groups(self) -> list[str]:
        """Make the group roles with their rights, in one transaction; returns the names of those
        that were made.

        Changes nothing where they are fine. Raises UserError where they belong to others.
        """
        return self._retried(self._make_groups)

    def refuse_roles_of_others(self, kept: Mapping[Kind, Optional[Credentials]]) -> None:
        """Raise UserError if the groups belong to another application on this server, or to
        another admin, or the logins to another schema that keeps them in other secrets.
        """
        groups = self._group_states()
        if not self._groups_are_fine(groups):
            self._refuse_groups_of_others(groups)
            self._refuse_logins_of_other_schemas(kept)

    def _refuse_groups_of_others(self, groups: Mapping[Kind, GroupState]) -> None:
        if not self._existing:
            return
        databases, is_used_here = self._databases_with_rights(self._limited)
        if databases and not is_used_here:
            raise self._shared(databases)
        for group in groups.values():
            if group.exists and not self._may_grant(group.name):
                raise self._made_by_another_admin(group.name)

    def _refuse_logins_of_other_schemas(self, kept: Mapping[Kind, Optional[Credentials]]) -> None:
        for kind, value in kept.items():
            login = self._app.login_name(kind)
            held = (value or Credentials()).get("username")
            if login not in self._existing or held in self._app.login_names(kind):
                continue
            if not self._may_be_of_this_schema(login):
                raise UserError(
                    f"login {login} is used in other schemas of this database, and the secret for "
                    f"the {kind.group_name} login does not hold it: it would get a new password, "
                    "and who uses it be locked out",
                    "Name the secrets of those schemas, to share their logins, or set ROLE_PREFIX",
                    state="Nothing has been changed.",
                )

    def working_logins(
        self, kept: Mapping[Kind, Optional[Credentials]]
    ) -> Optional[dict[str, str]]:
        """What is to be said of the logins in `kept`, where these, the groups and their rights
        are as they should be; or None.
        """
        groups = self._group_states()
        if not self._groups_are_fine(groups):
            return None
        found: dict[str, str] = {}
        for kind, value in kept.items():
            trial = self.tried(kind, value)
            if (
                trial.login is None
                or trial.state == LOCKED_OUT
                or self._is_to_change_over(trial, value)
                or not self._is_for_this_database(value)
            ):
                return None
            if kind.may_create and _lack(groups, trial.login.username):
                return None
            found[trial.login.username] = self._said(trial)
        return found

    def _make_groups(self) -> list[str]:
        groups = self._group_states()
        if self._groups_are_fine(groups):
            self._unchanged_groups = groups
            return []
        self._refuse_groups_of_others(groups)
        with self._session.transaction():
            for group in groups.values():
                if group.exists and not group.usable:
                    self._join(group.name)
            missing = [group.name for group in groups.values() if not group.exists]
            groups = {kind: group.without(missing) for kind, group in groups.items()}
            new_groups = [sql.SQL(NEW_GROUP_SQL).format(sql.Identifier(name)) for name in missing]
            found = self._find_objects(self._creators(), sql.Composed(new_groups))
            ended = [
                member
                for grantor, is_limited, statement, member in groups[READWRITE].unwanted
                if self._take_back(grantor or "somebody", is_limited, statement) and is_limited
            ]
            self._grant_rights(groups, found)
        if ended and not isinstance(self._session, Rehearsal):
            # What SET ROLE has made them they stay until they end.
            sessions = self._session.query(SESSIONS_OF_MEMBERS_SQL, {"limited": ended})
            for _, _, role, _ in sessions:
                log("ending a session of a role that was taken out", logging.WARNING, user=role)
            self._session.end_limited(sessions)
        return missing

    def _execute(self, statements: Iterable[sql.Composable]) -> list[tuple[Any, ...]]:
        """Execute the statements, in one message; returns the rows of the last one."""
        message = list(statements)
        return self._session.query(sql.SQL("; ").join(message)) if message else []

    def _group_states(self) -> Mapping[Kind, GroupState]:
        args = {
            "groups": [self._app.group_name(kind) for kind in self._app.kinds],
            "creators": [
                self._app.group_name(TABLECREATOR),
                *self._app.login_names(TABLECREATOR),
            ],
            "progress": self._text(self._app.progress),
            "harmless": list(HARMLESS_ROLES),
            "limited": self._limited,
            "schema": self._app.schema,
        }
        question = boundary.with_trusted(GROUP_STATE_SQL, self._limited)
        self._unchanged_groups = None
        rows = self._session.query(question, args)
        states = [GroupState(*state) for *state, _, _ in rows]
        *_, existing, self._next_transaction = rows[0]
        self._existing = set(existing)
        by_name = {state.name: state for state in states}
        self._members.update((state.name, state.members) for state in states)
        self._groups = {kind: by_name[self._app.group_name(kind)] for kind in self._app.kinds}
        return self._groups

    def _groups_are_fine(self, groups: Mapping[Kind, GroupState]) -> bool:
        """Nothing is left for `ensure_groups` to do."""
        creators = self._creators()
        for group in groups.values():
            if not (group.exists and group.usable and group.connects):
                return False
            if group.unwanted or any(map(group.has_unnoted, creators)):
                return False
        return not any(_lack(groups, creator) for creator in creators)

    def _creators(self) -> tuple[str, str]:
        return self._session.user, self._app.group_name(TABLECREATOR)

    def _grant_rights(self, groups: Mapping[Kind, GroupState], found: Found) -> None:
        """Grant the groups what they lack.

        The objects of a creator are granted once, those that exist and those to come: a REVOKE by a
        migration stays, also where a group drops its own rights.
        """
        me, group_of_creators = self._creators()
        # A new group has made nothing that somebody could keep locked.
        at_once = [me] if groups[TABLECREATOR].exists else [me, group_of_creators]
        entering = {
            kind: group.name
            for kind, group in groups.items()
            if group.lacks(me, kind) or not group.connects
        }
        # What came of it is asked.
        statements: list[sql.Composable] = [sql.SQL("SET LOCAL client_min_messages = error")]
        for kind, name in entering.items():
            statements += self._entry_statements(kind, name, found)
        is_first = any(not groups[kind].has_had(me) for kind in entering)
        if is_first and found.schema_is_ours and found.schema_is_open:
            closing = sql.SQL("REVOKE CREATE ON SCHEMA {} FROM PUBLIC")
            statements.append(closing.format(self._schema))
            log(
                f"schema {self._app.schema} closed: only its owner and table creators may create "
                "there now",
                logging.WARNING,
            )
        for creator in at_once:
            statements += self._object_statements(creator, groups, found)
        statements += self._note(groups, at_once)
        # A dry run's transaction goes on.
        statements.append(sql.SQL("SET LOCAL client_min_messages TO DEFAULT"))
        question = sql.SQL(RIGHTS_SQL).format(
            groups=sql.Literal(list(entering.values())), schema=sql.Literal(self._app.schema)
        )
        rights = self._execute([*statements, question])
        for kind, (name, *achieved) in zip(entering, rights):
            self._check_rights(kind, name, *achieved)
        if group_of_creators not in at_once:
            self._share_where_free([me, group_of_creators], groups, found)

    def _entry_statements(self, kind: Kind, group: str, found: Found) -> Iterator[sql.Composable]:
        """CONNECT, USAGE, CREATE for table creators alone, and a look at the tracking table."""
        name = sql.Identifier(group)
        database_name = sql.Identifier(self._session.connection.info.dbname)
        yield sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database_name, name)
        grant = sql.SQL("GRANT {} ON SCHEMA {} TO {}")
        yield grant.format(sql.SQL(kind.on_schema), self._schema, name)
        if found.has_tracking:
            yield sql.SQL("GRANT SELECT ON {} TO {}").format(self._app.tracking, name)

    def _check_rights(
        self, kind: Kind, group: str, may_connect: bool, may_use: bool, may_create: bool
    ) -> None:
        """What somebody else than the owner of the database or schema grants or revokes is only a
        warning. Up to PostgreSQL 14 schema public belongs to the superuser.
        """
        me = self._session.user
        schema = self._app.schema
        if not may_connect:
            dbname = self._session.connection.info.dbname
            raise UserError(
                f"{me} may not grant CONNECT on database {dbname} to {group}. No role has been "
                "changed",
                f"As the database's owner: GRANT CONNECT ON DATABASE {dbname} TO {group}; then "
                "invoke again",
            )
        if not may_use or (kind.may_create and not may_create):
            raise UserError(
                f"{me} may not grant rights on schema {schema} to {group}. No role has been "
                "changed",
                f"As the schema's owner: GRANT {kind.on_schema} ON SCHEMA {schema} TO {group}; "
                "then invoke again",
            )
        if may_create and not kind.may_create:
            remedy = f"as the schema's owner: REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC"
            text = f"everybody can create tables in schema {schema}"
            log(text, logging.WARNING, remedy=remedy)

    def _note(
        self, groups: Mapping[Kind, GroupState], creators: Sequence[str]
    ) -> Iterator[sql.Composable]:
        """Write down whose objects were granted, where only the admin can write."""
        known = groups[READWRITE].granted
        if not known:
            return
        pairs = set(known[1])
        for group in groups.values():
            pairs |= group.to_note(creators)
        if pairs != set(known[1]):
            note = sql.Literal(known[0] + "\n".join(sorted(pairs)))
            yield sql.SQL("COMMENT ON TABLE {} IS {}").format(self._app.progress, note)

    def _take_back(self, grantor: str, is_limited: bool, revoke: str) -> bool:
        """Take back a membership that others have granted; where that is not ours to do, say so."""
        step = f"as {grantor} or a superuser, {revoke}"
        joining = "GRANT {} TO CURRENT_USER; " if is_limited else ""
        taking_back = sql.SQL(joining).format(sql.Identifier(grantor)) + sql.SQL(revoke)
        warning = f"{grantor} made a limited user more powerful: {step}"
        if not self._execute_unless_blocked([taking_back], warning):
            return False
        if is_limited:
            self.warnings.append(f"a limited user let another role in: {revoke}")
        else:
            self.warnings.append(f"a limited user became more powerful: {revoke}")
        return True

    def _share_where_free(
        self, creators: Sequence[str], groups: Mapping[Kind, GroupState], found: Found
    ) -> None:
        """Grant what the last of these has made, who can keep it locked; the others' is granted."""
        creator = creators[-1]
        names = " and ".join(group.name for group in groups.values())
        self._execute_unless_blocked(
            [
                *self._object_statements(creator, groups, found),
                *self._note(groups, creators),
            ],
            f"what {creator} has made is locked, so {names} get their rights on that from a later "
            "run",
        )

    def _execute_unless_blocked(self, statements: Sequence[sql.Composable], warning: str) -> bool:
        """Others can keep locked what is theirs, or it is not ours to change: that is a warning."""
        if not statements:
            return True
        timeout = sql.SQL("SET LOCAL lock_timeout = {}")
        patience_ms = min(self._session.lock_timeout_ms, 1000)
        try:
            self._execute(
                [
                    sql.SQL("SAVEPOINT db_setup_objects"),
                    timeout.format(sql.Literal(patience_ms)),
                    *statements,
                    timeout.format(sql.Literal(self._session.lock_timeout_ms)),
                    sql.SQL("RELEASE SAVEPOINT db_setup_objects"),
                ]
            )
        except psycopg2.Error as exc:
            if exc.pgcode not in (*CONCURRENT_ROLE_CHANGE, INSUFFICIENT_PRIVILEGE):
                raise
            self._session.query("ROLLBACK TO SAVEPOINT db_setup_objects")
            self.warnings.append(f"{warning} ({exc.pgcode})")
            return False
        return True

    def _find_objects(self, creators: Sequence[str], change: sql.Composable = NOTHING) -> Found:
        """What there is after this change."""
        args = {
            "creators": list(creators),
            "tracking": self._our_tables[0],
            "ours": self._our_tables,
            "schema": self._app.schema,
        }
        return Found(*self._session.query(change + sql.SQL(FOUND_SQL), args)[0])

    def _object_statements(
        self, creator: str, groups: Mapping[Kind, GroupState], found: Found
    ) -> list[sql.Composable]:
        """Let the groups use what `creator` has made in the schema and will make there, unless
        that is granted already.
        """
        statements: list[sql.Composable] = []
        for kind, group in groups.items():
            for letter in group.lacks(creator, kind):
                word, rights = kind.objects[letter]
                objects = found.objects.get(f"{creator}:{letter}", "")
                if objects is None:
                    self.warnings.append(
                        f"{creator} has too many objects for one statement: GRANT {group.name} "
                        f"what it needs on each {word}"
                    )
                template = DEFAULT_RIGHTS_SQL + (OBJECT_RIGHTS_SQL if objects else "")
                statements.append(
                    sql.SQL(template).format(
                        creator=sql.Identifier(creator),
                        schema=self._schema,
                        rights=sql.SQL(rights),
                        kind=sql.SQL(word),
                        objects=sql.SQL(objects or ""),
                        group=sql.Identifier(group.name),
                    )
                )
        return statements

    def _join(self, role: str) -> None:
        """Become a member of `role`: ALTER DEFAULT PRIVILEGES FOR ROLE asks for it."""
        if self._session.query("SELECT pg_has_role(%s, 'USAGE')", [role])[0][0]:
            return
        try:
            self._session.query(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)))
        except psycopg2.errors.InsufficientPrivilege as exc:
            raise self._made_by_another_admin(role) from exc

    def _databases_with_rights(self, roles: Sequence[str]) -> tuple[list[str], bool]:
        """The other databases in which one of the roles has rights, and whether one has some in
        this.
        """
        question = boundary.with_trusted(FOREIGN_DATABASES_SQL, self._limited)
        databases, is_used_here = self._session.query(question, [roles])[0]
        return databases, bool(is_used_here)

    def _may_grant(self, role: str) -> bool:
        """Since PostgreSQL 16 CREATEROLE alone is not enough for a role that another admin has
        made.
        """
        if self._session.server_version < 160000:
            return True
        return bool(
            self._session.query("SELECT pg_has_role(%s, 'USAGE WITH ADMIN OPTION')", [role])[0][0]
        )

    def _shared(self, databases: Sequence[str]) -> UserError:
        dbname = self._session.connection.info.dbname.lower()
        prefix = (re.sub("[^a-z0-9_]", "_", dbname)[:40] + "_").lstrip("0123456789_") or "app_"
        return UserError(
            f"the roles {', '.join(self._app.roles)} belong to database {', '.join(databases)} on "
            "the same server, and roles are one for the whole server",
            f'Set ROLE_PREFIX (such as "{prefix}") to give this application roles of its own, or '
            'CREATE_USERS="false"',
            state="Nothing has been changed.",
        )

    def _made_by_another_admin(self, role: str) -> UserError:
        me = self._session.user
        return UserError(
            f"role {role} exists and was made by another admin, and {me} may not use it",
            f"As that admin: GRANT {role} TO {me} WITH ADMIN OPTION; or set ROLE_PREFIX",
            state="Nothing has been changed.",
        )

    # --- Logins -------------------------------------------------------------------------------

    def tried(self, kind: Kind, kept: Optional[Credentials]) -> Trial:
        """Whether the login in these credentials works, belongs to its group and is not too
        powerful; tried by logging in.

        What the server answers after it has checked the password proves that. One that cannot be
        tried may work, and is not changed.
        """
        kept = kept or Credentials()
        username: Any = kept.get("username")
        password: Any = kept.get("password", "")
        can_be_tried = is_usable(username) and (password == "" or is_usable(password))
        state = self._login_state(kind, username) if can_be_tried else None
        if state is None or not state.in_group or state.powers or not (password or state.by_iam):
            return Trial(None, BROKEN)
        login = self._to_this_database(username, password)
        try:
            database.connect(login, self._session.deadline, is_trial=True).close()
        except ConnectError as exc:
            if exc.login_refused:
                return Trial(None, BROKEN)
            if exc.locked_itself_out:
                return Trial(login, LOCKED_OUT)
            not_tried = TOO_SLOW if exc.hashes_too_long else NOT_TRIED
            return Trial(login, WORKS if exc.password_accepted else not_tried, exc.problem)
        return Trial(login, WORKS)

    def _is_to_change_over(self, trial: Trial, kept: Optional[Credentials]) -> bool:
        """A login that works, with a password where it should have none, or without one."""
        has_password = "password" in (kept or Credentials())
        return trial.state == WORKS and has_password == self._app.by_iam

    def _said(self, trial: Trial) -> str:
        """What the report says of a login that stays as it is."""
        if trial.state not in (NOT_TRIED, TOO_SLOW) or trial.login is None:
            return "kept"
        self.warnings.append(f"login {trial.login.username} could not be tried: {trial.reason}")
        return "not tried"

    def _reset_libraries(self, login: str) -> None:
        """Take back the setting by which a login keeps itself out."""
        role = sql.Identifier(login)
        dbname = sql.Identifier(self._app.admin.endpoint.dbname)
        reset = "ALTER ROLE {0} RESET {2}; ALTER ROLE {0} IN DATABASE {1} RESET {2}"
        setting = sql.SQL("local_preload_libraries")
        statements = sql.SQL(reset).format(role, dbname, setting)

        def act() -> None:
            if not isinstance(self._session, Rehearsal):
                self._terminate_sessions(login)  # one that changes its role would block us
            self._session.query_all_or_none(statements)

        self._retried(act)
        self.warnings.append(
            f"login {login} kept itself out with a library that cannot be loaded; that was reset"
        )

    def ensure_login(self, kind: Kind, stored: StoredLogin) -> tuple[str, str]:
        """Make the stored login work; one that works is never changed.

        The role is changed, the credentials are written, the change is committed, the login is
        tried: a crash between any two leaves a login that the next run repairs. Returns the login's
        name and "kept", "created" or "mended".
        """
        trial = self.tried(kind, stored.value)
        if self._is_to_change_over(trial, stored.value):
            return self.rotate_login(kind, stored)
        if trial.login:
            if trial.state == LOCKED_OUT:
                self._reset_libraries(trial.login.username)
            with self._session.transaction():
                self._share_objects_of(kind, trial.login.username)
            if not self._is_for_this_database(stored.value):
                dbname = self._app.admin.endpoint.dbname
                stored.write(Credentials({**(stored.value or {}), "dbname": dbname}))
            return trial.login.username, self._said(trial)
        self._refuse_to_lose(kind, stored.value)
        if self.tried(kind, stored.read_next()).login:
            raise self._rotated_by_aws(kind)
        return self._replace_login(kind, stored)

    def _new_login(self, username: str) -> Login:
        """With a new password, or without one where it is to sign in by IAM."""
        password = "" if self._app.by_iam else secrets.token_urlsafe(32) + self._password_tag
        return self._to_this_database(username, password)

    def _rotated_by_aws(self, kind: Kind) -> UserError:
        return UserError(
            f"the {kind.group_name} login is being rotated by AWS. It was not changed",
            "Invoke again when the rotation has ended",
        )

    def _replace_login(self, kind: Kind, stored: StoredLogin) -> tuple[str, str]:
        login = self._new_login(self._app.login_name(kind))
        kept = stored.value or Credentials()
        is_ours = kept.get("username") in self._app.login_names(kind) and "dbname" in kept
        is_ours = is_ours and self._is_for_this_database(kept)
        state = self._login_state(kind, login.username) if stored.is_nowhere else None
        if state and not state.by_iam:
            raise UserError(
                f"login {login.username} exists and does not sign in by IAM: whoever uses it would "
                "be locked out. It was not changed",
                "Name its secret again, with which it changes over; or, if nobody uses it: GRANT "
                f"rds_iam TO {login.username}",
            )

        def change() -> bool:
            with self._session.transaction():
                created = self._change_login(kind, login, is_ours)
                self._share_objects_of(kind, login.username, created)
                if stored.read() != stored.value:  # while the role is ours alone
                    raise OvertakenError
                stored.write(_as_secret(stored.value, login))
            return created

        with self._logged_out(kind, login.username, is_ours):
            created = self._retried(change)
        what = "created" if created else "mended"
        if isinstance(self._session, Rehearsal):  # nobody else can see it, and it will not stay
            return login.username, f"would be {what}"
        self._prove(login, "Its secret was written. Check the reason, and invoke again")
        if not created:
            self.hand_on(kind, login.username)
        return login.username, what

    def rotate_login(self, kind: Kind, stored: StoredLogin) -> tuple[str, str]:
        """Store the other one of two logins, with a new password; one that does not work is
        repaired instead.

        The login that was stored so far works until the next rotation gives it a new password: at
        no moment, and after no crash, do the stored credentials fail. What it has created goes to
        its group, to which both belong.
        """
        trial = self.tried(kind, stored.value)
        working = trial.login
        if working is None or trial.state not in (WORKS, TOO_SLOW):
            return self.ensure_login(kind, stored)
        self.lock_logins()
        if stored.read() != stored.value:
            raise OvertakenError
        if stored.read_next():
            raise self._rotated_by_aws(kind)
        rotated = self.other_login(kind, stored.value)
        name = rotated["username"]
        login = self._to_this_database(name, rotated.get("password", ""))
        self._set_login(kind, login)
        if isinstance(self._session, Rehearsal):  # of a migration, by which the login changes over
            return name, "would be rotated"
        self._prove(login, "Its secret was not changed")
        self.hand_on(kind, working.username, name)
        stored.write(rotated)
        return name, "rotated"

    def lock_logins(self) -> None:
        """No other rotation of these logins meanwhile: the lock of our schema does not stop that of
        another one, which can share them.
        """
        if not isinstance(self._session, Rehearsal):
            self._session.lock_until_the_end(f"logins {self._app.prefix}")

    def next_login(self, kind: Kind, kept: Optional[Credentials]) -> Credentials:
        """What a rotation by Secrets Manager moves on to from these credentials."""
        if not self.tried(kind, kept).login:
            self._refuse_to_lose(kind, kept)
        return self.other_login(kind, kept)

    def other_login(self, kind: Kind, kept: Optional[Credentials]) -> Credentials:
        """The other one of two logins, with a new password; nothing knows it yet."""
        first, second = self._app.login_names(kind)
        name = second if (kept or Credentials()).get("username") == first else first
        return Credentials({**_as_secret(kept, self._new_login(name)), **_place(kept)})

    def set_pending(self, kind: Kind, kept: Optional[Credentials], pending: Credentials) -> None:
        """Give the login that a rotation has named its password; nobody uses it yet."""
        name = pending.get("username")
        in_use = (kept or Credentials()).get("username")
        if name not in self._app.login_names(kind) or name == in_use:
            raise UserError(
                f"the rotation's login {name} is not the other one of the {kind.group_name} "
                "logins. It was not changed",
                ROTATE_AGAIN,
            )
        password = pending.get("password", "")
        if "password" in pending and not is_usable(password):
            raise UserError(
                f"the rotation's login {name} has no usable password. It was not changed",
                ROTATE_AGAIN,
            )
        login = self._to_this_database(name, password)
        self._set_login(kind, login)
        self._prove(login, ROTATE_AGAIN)

    def check_pending(self, kind: Kind, pending: Credentials) -> None:
        """Raise UserError unless the login that a rotation has named works."""
        trial = self.tried(kind, pending)
        if trial.state != WORKS:
            reason = trial.reason or "the server does not take it"
            raise UserError(
                f"the rotation's login {pending.get('username')} does not work: {reason}",
                ROTATE_AGAIN,
            )

    def hand_on(self, kind: Kind, *names: str) -> None:
        """The group gets what these logins have created, as far as they are limited to it.

        A rotation calls it for both, before its secret is written: an event that comes again finds
        that written.
        """
        for name in names if kind.may_create else ():
            state = self._login_state(kind, name)
            if state and state.in_group and not state.powers:
                self._give_objects_to_group(name, self._app.group_name(kind))
        self._warn_of_gifts(kind)

    def _warn_of_gifts(self, kind: Kind) -> None:
        """Name what these logins have given to others, who keep it: it can be a leaked one's back
        door, or wanted. Nothing tells which.
        """
        group = self._app.group_name(kind)
        args = {"givers": [group, *self._app.login_names(kind)], "limited": self._limited}
        question = boundary.with_trusted(GIFTS_SQL, self._limited)
        for grantee, count, statements in self._session.query(question, args):
            listed = "; ".join(statements) + (f"; and {count - 5} more" if count > 5 else "")
            self.warnings.append(
                f"{grantee} keeps what a login of {group} has granted or left open, whatever "
                f"becomes of its password; unless that is right: {listed}"
            )

    def _set_login(self, kind: Kind, login: Login) -> None:
        """Make the login, or give it this password."""

        def change() -> None:
            with self._session.transaction():
                created = self._change_login(kind, login, is_ours=True)
                self._share_objects_of(kind, login.username, created)

        with self._logged_out(kind, login.username, is_ours=True):
            self._retried(change)

    def _prove(self, login: Login, otherwise: str) -> None:
        """Log in with new credentials; raises UserError where the server does not take them."""
        try:
            database.connect(login, self._session.deadline, is_trial=True).close()
        except ConnectError as exc:
            if exc.locked_itself_out:
                self._reset_libraries(login.username)
            elif not exc.password_accepted:
                reason = f"login {login.username} was made, but: {exc.problem}"
                raise UserError(reason, otherwise) from exc

    @contextmanager
    def _logged_out(self, kind: Kind, login: str, is_ours: bool) -> Iterator[None]:
        """Whoever is logged in with a password that is replaced is logged out, and stays so.

        Otherwise one of these sessions could set a password of its own.
        """
        state = self._login_state(kind, login) if login in self._existing else None
        if state is None or isinstance(self._session, Rehearsal):
            yield
            return
        self._refuse_to_change(login, state, is_ours)
        if set(state.powers) - {login}:  # it will be refused
            yield
            return
        role = sql.Identifier(login)
        if state.can_login:
            no_login = sql.SQL("ALTER ROLE {} NOLOGIN").format(role)

            def shut() -> None:
                self._terminate_sessions(login)  # one that changes its role would block us
                self._session.query(no_login)

            self._retried(shut)
        try:
            self._end_sessions(login)
            yield
        except BaseException:
            if state.can_login and not self._session.is_lost:
                let_in = sql.SQL("ALTER ROLE {} LOGIN").format(role)
                self._retried(lambda: self._session.query(let_in))
            raise

    def _end_sessions(self, login: str) -> None:
        for _ in range(100):
            if not self._terminate_sessions(login):
                return
            time.sleep(0.05)
        self.warnings.append(f"sessions of {login} with its old password could not be ended")

    def _terminate_sessions(self, login: str) -> bool:
        """Says whether there were any, which need not be gone yet."""
        if not self._session.query(SESSIONS_OF_SQL, [login]):
            return False
        with suppress(psycopg2.errors.InsufficientPrivilege, UserError):
            self._join(login)
            terminate = f"SELECT pg_terminate_backend(pid) FROM ({SESSIONS_OF_SQL}) s"
            self._session.query(terminate, [login])
        return True

    def _give_objects_to_group(self, creator: str, group: str) -> None:
        """What a login has created goes to its group, as far as nobody keeps it locked.

        In one statement, or else one by one: many tables need more locks than a transaction can
        have, and the group can own nothing in a session's temporary schema.
        """
        query = self._session.query
        roles = sql.Identifier(creator), sql.Identifier(group)
        self._join(creator)
        try:
            with self._session.transaction():
                query(f"SET LOCAL lock_timeout = {min(self._session.lock_timeout_ms, 1000)}")
                query(sql.SQL("REASSIGN OWNED BY {} TO {}").format(*roles))
            return
        except psycopg2.Error as exc:
            self._refuse_unless_one_object_is_why(exc)
        owned = {"owner": creator, "group": group, "class": 0, "object": 0}
        batch = query(SOME_OWNED_SQL, owned)
        while batch and not self._session.deadline.is_near:
            self._give_to_group([change for *_, change in batch])
            last_class, last_object, *_ = batch[-1]
            batch = query(SOME_OWNED_SQL, {**owned, "class": last_class, "object": last_object})
        count, names = query(LEFT_SQL, owned)[0]
        if count:
            named = ", ".join(names) + (" …" if count > len(names) else "")
            self.warnings.append(
                f"{count} objects still belong to {creator} ({named}), since they are locked, "
                f"{group} may not own them, or time is short; later: REASSIGN OWNED BY {creator} "
                f"TO {group}"
            )

    def _give_to_group(self, changes: Sequence[str]) -> None:
        """Change the owners, of as many as possible."""
        if self._session.deadline.is_near:
            return
        try:
            with self._session.transaction():
                self._session.query("SET LOCAL lock_timeout = 100")
                self._session.query(sql.SQL("; ".join(changes)))
        except psycopg2.Error as exc:
            self._refuse_unless_one_object_is_why(exc)
            half = len(changes) // 2
            if half:
                self._give_to_group(changes[:half])
                self._give_to_group(changes[half:])

    def _refuse_unless_one_object_is_why(self, error: psycopg2.Error) -> None:
        """Raise what ends the run: a lost connection, or the end of its time.

        Any other error is about an object, which a limited user has made: it may be locked, be
        none of those that the group can own, or have been dropped meanwhile.
        """
        if self._session.is_lost or self._session.is_out_of_time:
            raise error

    def _change_login(self, kind: Kind, login: Login, is_ours: bool) -> bool:
        """Make the login's role, or give the existing one this password; inside the caller's
        transaction.

        Returns whether the role is new; raises UserError where it stays more powerful than it
        should be.
        """
        connection = self._session.connection
        verifier = None
        if login.password:
            args = (login.password, login.username, connection, "scram-sha-256")
            verifier = encrypt_password(*args)
        state = self._login_state(kind, login.username)
        change = "CREATE ROLE {role} LOGIN PASSWORD {verifier}; "
        if kind.may_create:
            change += "GRANT {role} TO CURRENT_USER; "
        path = None if state else self._path_of_new(kind, login.username)
        if path:
            change += "ALTER ROLE {role} IN DATABASE {dbname} SET search_path = {path}, public; "
        if state is not None:
            self._refuse_to_change(login.username, state, is_ours)
            if state.settings:
                self.warnings.append(
                    f"login {login.username} keeps its own settings, with which it can be "
                    f"useless; unless they are right: {'; '.join(state.settings)}"
                )
            change = f"ALTER ROLE {{role}} {_missing_attributes(state)} PASSWORD {{verifier}}; "
        if state is None or not state.in_group:
            change += "GRANT {group} TO {role}; "
        if login.new_token:
            change += "GRANT rds_iam TO {role}; "
        elif state is not None and state.by_iam:
            change += "REVOKE rds_iam FROM {role}; "
        dbname = self._text(sql.Identifier(connection.info.dbname))
        change_sql = sql.SQL(change).format(
            role=sql.Identifier(login.username),
            verifier=sql.Literal(verifier),
            group=sql.Identifier(self._app.group_name(kind)),
            dbname=sql.SQL(dbname.replace("%", "%%")),  # goes with a question that has arguments
            path=sql.Identifier(path or "public"),
        )
        after = self._login_state(kind, login.username, change_sql)
        if after is None or after.powers:
            powers = ", ".join(after.powers) if after else ""
            raise UserError(
                f"role {login.username} is more powerful than a limited user may be, through "
                f"{powers}. It was not changed",
                "REVOKE that, and invoke again",
            )
        return state is None

    def _path_of_new(self, kind: Kind, login: str) -> Optional[str]:
        """The schema in which a new login begins.

        That of the other one of the two: an application that goes on with this one after a rotation
        is to find the same tables, whichever of the schemas that share it has rotated.
        """
        for other in self._existing.intersection(self._app.login_names(kind)) - {login}:
            state = self._login_state(kind, other)
            if state and state.path != "":
                return state.path
        return None if self._app.schema == "public" else self._app.schema

    def _refuse_to_change(self, login: str, state: LoginState, is_ours: bool) -> None:
        """Raise UserError if the role is used by another database, or cannot be brought into
        order by this admin.

        One that `is_ours`, since our secret holds it, can always be given another password.
        """
        databases, _ = self._databases_with_rights(self._limited)
        if databases and not is_ours:
            raise self._shared(databases)
        if state.superuser_remedies:
            raise UserError(
                f"role {login} is more powerful than a limited user may be. It was not changed",
                f"As a superuser: ALTER ROLE {login} {' '.join(state.superuser_remedies)}; then "
                "invoke again",
            )
        if not self._may_grant(login):
            raise self._made_by_another_admin(login)

    def _refuse_to_lose(self, kind: Kind, kept: Optional[Credentials]) -> None:
        """Raise UserError if these credentials, which are to be replaced, may be somebody's."""
        self._refuse_login_of_others(kind, kept)
        self._refuse_login_that_works(kind, kept)

    def _refuse_login_of_others(self, kind: Kind, kept: Optional[Credentials]) -> None:
        """Raise UserError if this login is another application's: replaced, it would be lost to
        it.
        """
        username = (kept or Credentials()).get("username")
        if not is_usable(username) or username == self._app.admin.username:
            return
        ((its_roles,),) = self._session.query(ROLES_OF_SQL, [username])
        databases, is_used_here = self._databases_with_rights(its_roles)
        if databases and not is_used_here:
            raise UserError(
                f"the secret for the {kind.group_name} login holds {username}, which belongs to "
                f"database {', '.join(databases)} on the same server and would be lost. It was "
                "not changed",
                "Give this application secrets of its own",
            )

    def _refuse_login_that_works(self, kind: Kind, kept: Optional[Credentials]) -> None:
        """Raise UserError if this is a login that works and is not ours: it would be lost."""
        kept = kept or Credentials()
        username = kept.get("username")
        password = kept.get("password")
        if not (is_usable(username) and is_usable(password)):
            return
        names = tuple(name for kind in self._app.kinds for name in kind.login_names)
        is_ours = username == self._app.admin.username or (
            str(username).endswith(names) and self._may_be_of_this_schema(str(username))
        )
        if is_ours or "," in str(kept.get("host")):
            return  # libpq would try each of several hosts, for as long as one
        here = self._app.admin.endpoint
        port = str(kept.get("port", here.port))
        endpoint = replace(
            here,
            host=str(kept.get("host") or here.host),
            port=int(port) if port.isdigit() else here.port,
            dbname=str(kept.get("dbname") or here.dbname),
        )
        try:
            database.open_for_trial(Login(endpoint, str(username), str(password))).close()
        except (psycopg2.Error, UnicodeDecodeError):
            return
        raise UserError(
            f"the secret for the {kind.group_name} login holds {username}, which works, and is not "
            f"a login of {kind.group_name}. It was not changed",
            f"Name another secret, or GRANT {self._app.group_name(kind)} TO {username}",
        )

    def _may_be_of_this_schema(self, login: str) -> bool:
        """Its group has rights in the schema, maybe under an earlier ROLE_PREFIX, or nowhere."""
        ((its_schemas,),) = self._session.query(SCHEMAS_OF_SQL, [login])
        return not its_schemas or self._app.schema in its_schemas

    def _share_objects_of(self, kind: Kind, login: str, is_new: bool = False) -> None:
        """Let the groups use what a login of the table creators has made and will make.

        A new one has made nothing, and the admin is a member of it.
        """
        if not kind.may_create:
            return
        groups = self._unchanged_groups or self._group_states()
        self._unchanged_groups = None
        if is_new:
            groups = {kind: group.without([login]) for kind, group in groups.items()}
            self._share_where_free([login], groups, NOTHING_FOUND)
        elif _lack(groups, login):
            self._join(login)
            self._share_where_free([login], groups, self._find_objects([login]))

    def _login_state(
        self, kind: Kind, login: str, change: sql.Composable = NOTHING
    ) -> Optional[LoginState]:
        """The login's role after this change, or None where it does not exist."""
        stronger = {READONLY: KINDS, READWRITE: (TABLECREATOR,)}.get(kind, ())
        forbidden = [self._app.group_name(other) for other in stronger]
        args = {
            "login": login,
            "group": self._app.group_name(kind),
            "forbidden": forbidden,
            "harmless": list(HARMLESS_ROLES),
            "limited": self._limited,
            "tracking": self._text(self._app.tracking),
        }
        question = boundary.with_trusted(LOGIN_STATE_SQL, self._limited)
        found = self._session.query(change + question, args)
        if not found:
            return None
        state = LoginState(*found[0])
        self._existing.add(login)
        self._members[login] = state.members
        return state

    def _is_for_this_database(self, kept: Optional[Credentials]) -> bool:
        """Who connects with all of these credentials comes to this database.

        Another host may be another name for it.
        """
        dbname = self._app.admin.endpoint.dbname
        return bool((kept or Credentials()).get("dbname", dbname) == dbname)

    def _to_this_database(self, username: str, password: str) -> Login:
        tokens_for = self._app.tokens_for
        new_token = tokens_for(username) if tokens_for and not password else None
        return Login(self._app.admin.endpoint, username, password, new_token)

    @property
    def _our_tables(self) -> list[str]:
        ours = (self._app.tracking, self._app.progress, self._app.kept)
        return [self._text(table) for table in ours]

    def _text(self, name: sql.Composable) -> str:
        return name.as_string(self._session.connection)


def is_usable(value: Any) -> bool:
    """PostgreSQL can take it: not empty, no NUL, no half of a surrogate pair (JSON can hold
    one).
    """
    return isinstance(value, str) and value != "" and not re.search("[\0\ud800-\udfff]", value)


def _lack(groups: Mapping[Kind, GroupState], creator: str) -> bool:
    """Something that this creator makes is still to be granted by default."""
    return any(group.lacks(creator, kind) for kind, group in groups.items())


def _as_secret(kept: Optional[Credentials], login: Login) -> Credentials:
    """What was kept, with the keys that an application, and AWS's own rotation, look for."""
    found = Credentials(kept or {})
    found.update(
        engine=login.endpoint.engine,
        host=login.endpoint.host,
        port=login.endpoint.port,
        dbname=login.endpoint.dbname,
        username=login.username,
        password=login.password,
    )
    if login.new_token:
        del found["password"]
    return found


def _place(kept: Optional[Credentials]) -> dict[str, Any]:
    """Where those who use the credentials connect to; it can be another name for this database."""
    keys = ("engine", "host", "port", "dbname")
    return {key: value for key, value in (kept or {}).items() if key in keys}


def _missing_attributes(state: LoginState) -> str:
    """What ALTER ROLE has to say.

    Only what differs: naming SUPERUSER or REPLICATION at all is refused to an admin who is not a
    superuser.
    """
    changes = (
        (not state.can_login, "LOGIN"),
        (state.expires, "VALID UNTIL 'infinity'"),
        (state.creates_databases, "NOCREATEDB"),
        (state.creates_roles, "NOCREATEROLE"),
    )
    return " ".join(words for is_wrong, words in changes if is_wrong)


# --- The questions ----------------------------------------------------------------------------

# Where the roles were given rights on what a database's owner has made. Any login can give some on
# what is its own, a database included: only who could have made the role is another application.
FOREIGN_DATABASES_SQL = """
    WITH {trusted}
    SELECT coalesce(array_agg(DISTINCT d.datname::text)
                    FILTER (WHERE d.datname <> current_database()), '{{}}'),
           bool_or(d.datname = current_database())
    FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
    JOIN pg_database d ON d.oid = CASE WHEN s.dbid <> 0 THEN s.dbid ELSE s.objid END
    JOIN pg_roles a ON a.oid = d.datdba
    WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY (%s)
      AND (s.dbid <> 0 OR (s.classid = 'pg_database'::regclass AND d.datname <> 'postgres'))
      AND (a.oid IN (SELECT oid FROM trusted) OR a.rolsuper OR (a.rolcreaterole
           AND (current_setting('server_version_num')::int < 160000
                OR pg_has_role(a.oid, r.oid, 'USAGE WITH ADMIN OPTION'))))
      AND s.deptype = 'a' AND NOT EXISTS (
        SELECT FROM pg_shdepend o JOIN pg_roles w ON w.oid = o.refobjid
        WHERE o.refclassid = 'pg_authid'::regclass AND o.deptype = 'o'
          AND (o.dbid, o.classid, o.objid) = (s.dbid, s.classid, s.objid)
          AND w.oid <> d.datdba AND w.rolname <> current_user AND NOT w.rolsuper)"""

# Roles of which a limited user may not be a member.
POWER_SQL = r"""(
    m.rolsuper OR m.rolreplication OR m.rolbypassrls OR m.rolcreaterole OR m.rolcreatedb
    OR m.rolname IN (current_user, 'rds_superuser')
    OR (m.rolname ~ '^pg_' AND m.rolname <> ALL (%(harmless)s)))"""
# Since PostgreSQL 16 a REVOKE takes back only what its own role, or the one it names, has granted.
# Before 16 the grantor may have been dropped. Since 16 the admin who made a role is a member who
# can neither use it nor become it.
MEMBERSHIPS_SQL = """
    SELECT a.roleid, a.member AS member_id, o.rolname AS role, m.rolname AS member, m.rolsuper,
           a.grantor, a.is_usable, a.counts,
           format('REVOKE %%I FROM %%I', o.rolname, m.rolname)
           || coalesce(' GRANTED BY ' || quote_ident(a.grantor), '') AS remedy
    FROM every_membership a JOIN pg_roles o ON o.oid = a.roleid
    JOIN pg_roles m ON m.oid = a.member"""
MEMBERS_SQL = """
    SELECT coalesce(json_agg(json_build_array(member, remedy) ORDER BY member, grantor), '[]')
    FROM memberships
    WHERE roleid = r.oid AND member <> ALL (%(limited)s) AND member <> current_user
      AND NOT rolsuper AND is_usable"""
# What limited users have granted; and what others have, by which one of these can do too much. A
# role that a limited user is in may be the one that was put into another.
UNWANTED_SQL = f"""
    SELECT coalesce(json_agg(json_build_array(
        grantor, coalesce(grantor = ANY (%(limited)s), false), remedy || ' CASCADE', member)), '[]')
    FROM memberships
    WHERE (grantor = ANY (%(limited)s) AND role = ANY (%(limited)s)) OR (NOT counts
      AND EXISTS (SELECT FROM pg_roles l WHERE l.rolname = ANY (%(limited)s)
                  AND pg_has_role(l.oid, member_id, 'MEMBER'))
      AND EXISTS (SELECT FROM pg_roles m WHERE pg_has_role(roleid, m.oid, 'MEMBER')
                  AND CASE WHEN role <> ALL (%(limited)s) THEN {POWER_SQL}
                      ELSE m.rolname = (%(creators)s)[1] AND member <> ALL (%(creators)s) END))"""
# For each group: is it there, may we act for it, has it CONNECT; for which creators' objects it has
# default privileges, and whose objects it was granted in this database: what is restored has
# another oid. (What it may do with our own tables: see boundary.) And the same for each: which of
# our roles are there, and the next transaction.
GROUP_STATE_SQL = f"""
    WITH {{trusted}},
    memberships AS MATERIALIZED ({MEMBERSHIPS_SQL})
    SELECT g.name, r.oid IS NOT NULL, coalesce(pg_has_role(r.oid, 'USAGE'), false),
           coalesce(has_database_privilege(r.oid, current_database(), 'CONNECT'), false),
           ARRAY(SELECT DISTINCT c.rolname || ':' || d.defaclobjtype::text FROM pg_default_acl d
                 JOIN pg_roles c ON c.oid = d.defaclrole, aclexplode(d.defaclacl) a
                 WHERE d.defaclnamespace = to_regnamespace(%(schema)s) AND a.grantee = r.oid),
           (SELECT json_build_array(note, coalesce(string_to_array(substring(
                       obj_description(c.oid, 'pg_class') FROM '^' || note || '(.*)'), chr(10)),
                       ARRAY[]::text[]))
            FROM pg_class c, pg_database d,
                 concat('rights granted in ', d.oid, '/', c.oid,
                         ' schema ' || nullif(%(schema)s, 'public'), ':', chr(10)) note
            WHERE d.datname = current_database() AND c.oid = to_regclass(%(progress)s)
                AND pg_has_role(c.relowner, 'USAGE')),
           ({MEMBERS_SQL}), ({UNWANTED_SQL}),
           ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY (%(limited)s)),
           pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    FROM unnest(%(groups)s) g(name) LEFT JOIN pg_roles r ON r.rolname = g.name"""

# Whoever has made a group or login is not a member of it since PostgreSQL 16.
NEW_GROUP_SQL = "CREATE ROLE {0} NOLOGIN; GRANT {0} TO CURRENT_USER; "
DEFAULT_RIGHTS_SQL = (
    "ALTER DEFAULT PRIVILEGES FOR ROLE {creator} IN SCHEMA {schema} GRANT {rights} ON {kind}S "
    "TO {group}"
)
OBJECT_RIGHTS_SQL = "; GRANT {rights} ON {kind} {objects} TO {group}"
RIGHTS_SQL = """
    SELECT name, has_database_privilege(name, current_database(), 'CONNECT'),
           has_schema_privilege(name, {schema}, 'USAGE'),
           has_schema_privilege(name, {schema}, 'CREATE')
    FROM unnest({groups}::text[]) WITH ORDINALITY g(name, at) ORDER BY at"""

# A Found. Our own tables are not among the objects: who may do what with them, boundary says.
FOUND_SQL = """
    WITH ours(oid) AS (SELECT coalesce(to_regclass(t), 0) FROM unnest(%(ours)s) t)
    SELECT coalesce(pg_has_role(nspowner, 'USAGE'), false),
           EXISTS (SELECT FROM aclexplode(nspacl) a
                   WHERE a.grantee = 0 AND a.privilege_type = 'CREATE'),
           to_regclass(%(tracking)s) IS NOT NULL,
           (SELECT coalesce(json_object_agg(whose, which), '{}') FROM (
                SELECT o.rolname || CASE c.relkind WHEN 'S' THEN ':S' ELSE ':r' END AS whose,
                       CASE WHEN sum(length(c.relname)) < 2000000
                           THEN string_agg(format('%%I.%%I', nspname, c.relname), ', ') END AS which
                FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner
                WHERE c.relnamespace = n.oid AND o.rolname = ANY (%(creators)s)
                  AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
                  AND c.oid NOT IN (SELECT oid FROM ours) AND NOT EXISTS (
                    SELECT FROM pg_depend d JOIN ours ON d.refobjid = ours.oid
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                      AND d.refclassid = 'pg_class'::regclass AND c.relkind = 'S')
                GROUP BY 1) s)
    FROM (SELECT %(schema)s AS name) s LEFT JOIN pg_namespace n ON n.nspname = s.name"""

# What others have put a login into does not count: see UNWANTED_SQL.
LOGIN_STATE_SQL = f"""
    WITH {{trusted}},
    reached(oid) AS (
        SELECT oid FROM pg_roles WHERE rolname = %(login)s
        UNION SELECT m.roleid FROM reached JOIN granted m ON m.member = reached.oid),
    memberships AS MATERIALIZED ({MEMBERSHIPS_SQL})
    SELECT r.rolcanlogin, r.rolvaliduntil IS NOT NULL AND r.rolvaliduntil <> 'infinity',
           r.rolcreatedb, r.rolcreaterole, pg_has_role(r.oid, g.oid, 'MEMBER'),
           coalesce(pg_has_role(r.oid, to_regrole('rds_iam'), 'MEMBER'), false),
           array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'NOSUPERUSER' END,
                              CASE WHEN r.rolreplication THEN 'NOREPLICATION' END,
                              CASE WHEN r.rolbypassrls THEN 'NOBYPASSRLS' END], NULL),
           ARRAY(SELECT m.rolname::text FROM pg_roles m JOIN reached USING (oid)
                 WHERE {POWER_SQL} OR m.rolname = ANY (%(forbidden)s)),
           ARRAY(SELECT format('ALTER ROLE %%I%%s RESET %%s', r.rolname,
                               ' IN DATABASE ' || quote_ident(datname), split_part(one, '=', 1))
                 FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase,
                      unnest(setconfig) one
                 WHERE setrole = r.oid AND (setdatabase = 0 OR datname = current_database())
                   AND NOT EXISTS (  -- the path that a run in this schema has given it
                     SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE setdatabase <> 0 AND one = format('search_path=%%I, public', nspname)
                       AND c.relname = (parse_ident(%(tracking)s))[2]
                       AND c.relowner IN (SELECT oid FROM trusted))
                 ORDER BY 1 LIMIT 20),
           (SELECT coalesce(substring(one FROM '^search_path="?([a-z0-9_]+)"?, public$'), '')
            FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase,
                 unnest(setconfig) one
            WHERE setrole = r.oid AND datname = current_database() AND one ~ '^search_path='),
           ({MEMBERS_SQL})
    FROM pg_roles r, pg_roles g
    WHERE r.rolname = %(login)s AND g.rolname = %(group)s"""

# A limited user can let in whom it likes: who works in another database is not to suffer for that.
SESSIONS_OF_MEMBERS_SQL = f"""
    SELECT a.pid, NULL, r.rolname::text, {CAN_BECOME_SQL}
    FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid AND {IS_LIMITED_SQL}
    WHERE a.datname = current_database()"""
SESSIONS_OF_SQL = "SELECT pid FROM pg_stat_activity WHERE usename = %s"

# What a role owns in this database, and what gives it to another one, in the words of ALTER.
# Default privileges and user mappings have no other owner, the sequence of a column has its
# table's, and a temporary schema ends by itself. (Names can be long, and many: each is looked up
# when it is fetched.)
OWNED_SQL = """
    SELECT s.classid::bigint, s.objid::bigint, p.type || ' ' || p.identity AS name,
           format('ALTER %%s %%s OWNER TO %%I', CASE
               WHEN s.classid = 'pg_proc'::regclass THEN 'ROUTINE'
               WHEN p.type = 'statistics object' THEN 'STATISTICS'
               ELSE replace(p.type, '-', ' ') END, p.identity, %(group)s::text) AS change
    FROM (SELECT * FROM pg_shdepend
          WHERE refclassid = 'pg_authid'::regclass AND refobjid = to_regrole(quote_ident(%(owner)s))
            AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND deptype = 'o' AND (classid, objid) > (%(class)s::oid, %(object)s::oid)
            AND classid NOT IN ('pg_default_acl'::regclass, 'pg_user_mapping'::regclass)
          ORDER BY classid, objid OFFSET 0) s,
         pg_identify_object(s.classid, s.objid, s.objsubid) p
    WHERE p.identity IS NOT NULL AND coalesce(p.schema, '') !~ '^pg_temp_'
      AND NOT (p.type = 'sequence' AND EXISTS (
        SELECT FROM pg_depend d
        WHERE d.classid = s.classid AND d.objid = s.objid AND d.deptype IN ('a', 'i')))"""
SOME_OWNED_SQL = f"{OWNED_SQL} LIMIT {OWNED_AT_ONCE}"
LEFT_SQL = f"""
    WITH o AS NOT MATERIALIZED ({OWNED_SQL})
    SELECT (SELECT count(*) FROM o), ARRAY(SELECT left(name, 200) FROM o LIMIT 3)"""

# What outlives the logins' passwords: default privileges, rights on what they have made, and the
# use of routines that run as their owner. Everybody has EXECUTE and USAGE on what is new.
GIFTS_SQL = """
    WITH {trusted},
    givers(oid, name) AS (
        SELECT oid, quote_ident(rolname) FROM pg_roles WHERE rolname = ANY (%(givers)s)),
    gifts(rank, grantee, what) AS (
        SELECT 1, grantee, concat(
                   'ALTER DEFAULT PRIVILEGES FOR ROLE ', name,
                   ' IN SCHEMA ' || nullif(defaclnamespace, 0)::regnamespace::text,
                   ' REVOKE ALL ON ', CASE defaclobjtype WHEN 'r' THEN 'TABLES'
                       WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' WHEN 'T' THEN 'TYPES'
                       WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END)
        FROM pg_default_acl JOIN givers ON givers.oid = defaclrole, aclexplode(defaclacl) a
        WHERE a.grantee <> 0 OR defaclnamespace <> 0 OR defaclobjtype NOT IN ('f', 'T')
        UNION
        SELECT 2, grantee, concat('REVOKE ALL ON ROUTINE ', p.oid::regprocedure)
        FROM pg_proc p JOIN givers ON givers.oid = proowner,
             aclexplode(coalesce(proacl, acldefault('f', proowner)))
        WHERE prosecdef AND pronamespace::regnamespace::text !~ '^pg_temp'
        UNION
        SELECT 3, a.grantee, concat('REVOKE ALL ON ', CASE relkind WHEN 'S' THEN 'SEQUENCE '
                                    ELSE 'TABLE ' END, c.oid::regclass)
        FROM pg_class c JOIN givers ON givers.oid = relowner
        CROSS JOIN LATERAL (SELECT relacl UNION ALL
                            SELECT attacl FROM pg_attribute WHERE attrelid = c.oid) acls(acl),
             aclexplode(acl) a
        WHERE relnamespace::regnamespace::text !~ '^pg_temp')
    SELECT coalesce(rolname, 'PUBLIC'), count(*),
           (array_agg(format('%%s FROM %%s', what, coalesce(quote_ident(rolname), 'PUBLIC'))
                      ORDER BY rank, left(what, 200)))[:5]
    FROM gifts LEFT JOIN pg_roles r ON r.oid = grantee
    WHERE grantee NOT IN (SELECT oid FROM trusted) AND NOT coalesce(rolsuper, false)
        AND coalesce(rolname <> ALL (%(limited)s), true)
    GROUP BY rolname ORDER BY 1 LIMIT 20"""

ROLES_OF_SQL = (
    "SELECT coalesce(array_agg(g.rolname::text), '{}') FROM pg_roles r, pg_roles g WHERE "
    "r.rolname = %s AND pg_has_role(r.oid, g.oid, 'MEMBER') AND NOT g.rolsuper AND NOT "
    "g.rolcreaterole"
)

# Where the roles that a login is a member of were given rights by name.
# Up to PostgreSQL 14 public is the superuser's, and only default privileges tell of it.
SCHEMAS_OF_SQL = """
    SELECT ARRAY(
        SELECT DISTINCT nspname::text FROM pg_namespace n, LATERAL (
            SELECT grantee FROM aclexplode(nspacl)
            UNION ALL
            SELECT grantee FROM pg_default_acl, aclexplode(defaclacl)
            WHERE defaclnamespace = n.oid) a, pg_roles g, pg_roles r
        WHERE g.oid = a.grantee AND r.rolname = %s AND NOT g.rolsuper
          AND pg_has_role(r.oid, g.oid, 'MEMBER'))"""

# Others can have very many objects, with very long names: only what is new is named.
NEW = "((({}.xmin::text::bigint - %(first_new)s) & 4294967295) < 2147483648)"
UNREADABLE_SQL = f"""
    SELECT pg_get_userbyid(c.relowner)::text,
           (array_agg(format('%%I.%%I', nspname, c.relname) ORDER BY c.relname))[:6], NULL
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
    JOIN pg_roles r ON r.rolname = %(group)s
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_get_userbyid(c.relowner) <> current_user
      AND pg_get_userbyid(c.relowner) <> ALL (%(roles)s) AND {NEW.format("c")}
      AND c.oid NOT IN (SELECT coalesce(to_regclass(t), 0) FROM unnest(%(ours)s) t)
      AND NOT has_table_privilege(r.oid, c.oid, 'SELECT')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')
    GROUP BY 1 ORDER BY 1 LIMIT 20"""
# CREATE OR REPLACE leaves the row that names the owner.
REPLACED_SQL = f"""
    SELECT r.rolname::text, NULL, CASE s.classid WHEN 'pg_class'::regclass
        THEN 'VIEW ' || s.objid::regclass::text
        ELSE 'ROUTINE ' || left(s.objid::regprocedure::text, 1000) END
    FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid AND r.rolname = ANY (%(limited)s)
    WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND s.deptype = 'o' AND NOT {NEW.format("s")}
      AND (EXISTS (SELECT FROM pg_proc p WHERE s.classid = 'pg_proc'::regclass
                   AND p.oid = s.objid AND {NEW.format("p")})
           OR EXISTS (SELECT FROM pg_rewrite w WHERE s.classid = 'pg_class'::regclass
                      AND w.ev_class = s.objid AND w.ev_type = '1' AND {NEW.format("w")}))
    LIMIT 20"""
# REASSIGN OWNED gives every database of its role away; what became of this one is boundary's.
GIVEN_AWAY_SQL = f"""
    SELECT pg_get_userbyid(datdba)::text, NULL, format('DATABASE %%I', datname) FROM pg_database d
    WHERE pg_get_userbyid(datdba) = ANY (%(limited)s) AND datname <> current_database()
      AND {NEW.format("d")}
    LIMIT 20"""
LEFT_TO_OTHERS_SQL = f"({UNREADABLE_SQL}) UNION ALL ({REPLACED_SQL}) UNION ALL ({GIVEN_AWAY_SQL})"

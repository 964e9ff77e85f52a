"""Runs a script on a connection: whole or not at all, or, where PostgreSQL wants no transaction, step by step.

Knows PostgreSQL and scripts, nothing of migrations or AWS: what is to be recorded with a script comes as SQL. A
script's own failure is an Outcome, not an exception.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple, Optional

import psycopg2
from database import (
    RETRYABLE,
    Connection,
    begin,
    commit,
    is_as_it_was,
    literal,
    log,
    query,
    roll_back,
    session_settings,
    transaction,
    waiting,
)
from failures import READ_ONLY, SAVEPOINT, SAVEPOINT_GONE, SYNTAX_ERROR, Outcome
from psycopg2 import sql
from sql_scanner import Script, Statement, Target, checksum, opening_modes

End = Callable[[], str]  # what ends the last transaction; asked for when it is needed, since hashes take their time
OWN_ROLE = "RESET SESSION AUTHORIZATION; RESET ROLE"
OWN_ROLE_HERE = "SET LOCAL SESSION AUTHORIZATION DEFAULT; SET LOCAL ROLE NONE; "
ADD_VALUE = re.compile(r"\bADD\s+VALUE\b", re.IGNORECASE)
SET_CONFIG = re.compile(r"SELECT\s+(pg_catalog\s*\.\s*)?set_config\s*\(", re.IGNORECASE)
RUN_AND_EDITED = "this statement has run already, and was edited since; restore it, and put the change behind it"
BEGUN_AND_EDITED = (
    "a run was interrupted in this statement, which was edited since, so that nothing can tell whether it has done its "
    "work; restore it for one deployment, and edit then"
)
RUN_AND_REMOVED = "statements that have run already are missing at the end of this file; restore them"


class Message(NamedTuple):
    """What is sent at once. `base` is the place in the script where its first character would stand."""

    base: int
    text: str
    fallback: int  # the place to name where PostgreSQL names none
    data: Optional[tuple[int, int]] = None  # the rows of a COPY, in the script
    at_end: bool = False


def send(conn: Connection, script: Script, messages: Iterable[Message]) -> Outcome:
    """Send the messages one after the other; the last one answers whether the session is as it was."""
    answer: list[tuple[Any, ...]] = []
    message = Message(0, "", 0)
    try:
        for message in messages:
            if message.data:
                copy_in(conn, message.text, script.text, message.data)
            else:
                answer = query(conn, message.text)
        return Outcome(holds_lock=bool(answer[0][0]), is_fresh=all(answer[0][:2]))
    except psycopg2.Error as exc:
        lost = conn.closed != 0
        roll_back(conn)
        offset = message.base + int(exc.diag.statement_position or 0) - 1  # PostgreSQL counts characters, from 1
        exact = exc.diag.statement_position is not None and 0 <= offset <= len(script.text)
        place = offset if exact else _bad_row(script, message, exc)
        in_rows = message.data is not None and place >= message.data[0]
        return Outcome(
            error=exc, offset=place, exact=exact, at_end=message.at_end, in_rows=in_rows, connection_lost=lost
        )


def copy_in(conn: Connection, statement: str, text: str, data: tuple[int, int]) -> None:
    """Run COPY … FROM STDIN with the rows that stand in `text`, as they are."""
    with waiting(conn), conn.cursor() as cur:
        cur.copy_expert(statement, _Rows(text, *data), size=1 << 16)


class _Rows:
    """A part of a text as a file to read from, without a copy of it."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self._text, self._at, self._end = text, start, end

    def read(self, size: int) -> bytes:
        """At most `size` bytes: a character has at most four."""
        part = self._text[self._at : min(self._at + size // 4, self._end)]
        self._at += len(part)
        return part.encode()


def _bad_row(script: Script, message: Message, exc: psycopg2.Error) -> int:
    """Where the row of COPY stands that PostgreSQL counted to; for other statements their own place."""
    line = re.search(r"^COPY .*?, line (\d+)", exc.diag.context or "", re.MULTILINE)
    if not message.data or not line:
        return message.fallback
    at, csv = message.data[0], "CSV" in message.text.upper()
    for _ in range(int(line.group(1)) - 1):
        start = at
        while at < message.data[1]:  # PostgreSQL counts rows: in CSV one goes on while a quote is open
            at = (script.text.find("\n", at) + 1) or message.data[1]
            if not csv or script.text.count('"', start, at) % 2 == 0:
                break
    return at


# --- In one transaction ---------------------------------------------------------------------------------------------


def recording(conn: Connection, record: str, lock_timeout_ms: int, changed: bool, let_go: bool) -> str:
    """The end of a script's last transaction: the session is put back, the record written, the session looked at.
    One that is `changed`, or is found to be, can `let_go` of the lock.

    Cursors and temporary tables go behind the COMMIT, which may still find fault with them.
    The next script finds the session as a new one would be: psql, started for each file, is the model.
    """
    ours = session_settings(conn.server_version, lock_timeout_ms)
    return (
        f"{OWN_ROLE}; RESET ALL; DEALLOCATE ALL; UNLISTEN *; {ours}{record}; {commit(conn)}; "
        f"CLOSE ALL; DISCARD TEMP; DISCARD SEQUENCES; DISCARD PLANS; {is_as_it_was(conn, changed, let_go)}"
    )


def run_whole(conn: Connection, script: Script, end: End, by_statement: bool = False) -> Outcome:
    """Run the script in one transaction and, if it fails at no known place, once more to find that."""
    outcome = _run_whole(conn, script, end, by_statement)
    if by_statement or not outcome.failed or outcome.exact or outcome.connection_lost:
        return outcome
    if outcome.code in (*RETRYABLE, SAVEPOINT_GONE) or outcome.stopped:
        return outcome
    if (
        script.statement_count > 1
        or script.begin_sql != "BEGIN"
        or (script.statement_count and outcome.code == SYNTAX_ERROR)
    ):  # the ; that it does not like is ours
        return _run_whole(conn, script, end, by_statement=True)
    return outcome


def _run_whole(conn: Connection, script: Script, end: End, by_statement: bool) -> Outcome:
    """One message for the whole script, or several: for what cannot go in one, or one for each statement, which
    tells the statement that fails.

    A deferred constraint has to speak before the session is put back. The release of our savepoint is the proof
    that the script was one transaction: had it ended ours, the savepoint would be gone (3B001).
    """
    # What is prepared in a session outlives the transaction of a first attempt.
    opening = f"{begin(conn, script.begin_sql)}; DEALLOCATE ALL; SET search_path TO DEFAULT; SAVEPOINT {SAVEPOINT};\n"

    def closing() -> str:
        return f"\n;SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT {SAVEPOINT}; {end()}"

    if not (by_statement or script.pieces):
        return send(
            conn, script, [Message(-len(opening), opening + script.body_sql() + closing(), script.first_offset)]
        )
    return send(conn, script, _messages(script, opening, closing, by_statement))


def _messages(script: Script, opening: str, closing: End, by_statement: bool) -> Iterator[Message]:
    own = min(
        (s.start for s in script.left_out if not s.is_meta_command), default=script.first_offset
    )  # BEGIN, SET TRANSACTION
    yield Message(len(script.text) + 1, opening, own)
    last = script.first_offset
    for start, end, data in script.pieces_to_send(by_statement):
        last = start
        yield Message(start, script.text[start:end], start, data)
    yield Message(len(script.text) + 1, closing(), last, at_end=True)


# --- Step by step ---------------------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """What is known of a step: that it is done, or only that it was begun, and which objects were there before."""

    checksum: str
    done: bool
    before: list[int]


@dataclass(frozen=True)
class Progress:
    """The table of marks and the name under which this script has its own. Made on first need."""

    table: sql.Composable
    name: str

    def ensure_table(self, conn: Connection) -> None:
        """Closed to everybody but its owner, whatever the default privileges say."""
        table = self.table.as_string(conn)
        if query(conn, "SELECT to_regclass(%s)", [table])[0][0]:
            return
        create = (
            "CREATE TABLE {} (migration_name VARCHAR(255), step INTEGER, checksum TEXT NOT NULL, "
            "objects_before BIGINT[] NOT NULL, started_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, done_at TIMESTAMP, "
            "PRIMARY KEY (migration_name, step))"
        )
        others = (
            "SELECT DISTINCT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee "
            "WHERE c.oid = %s::regclass AND a.grantee <> c.relowner"
        )
        with transaction(conn):
            query(conn, sql.SQL(create).format(self.table))
            for (role,) in query(conn, others, [table]):
                query(conn, sql.SQL("REVOKE ALL ON {} FROM {}").format(self.table, sql.Identifier(role)))

    def marks(self, conn: Connection) -> dict[int, Mark]:
        """The steps that were begun, by number."""
        select = "SELECT step, checksum, done_at IS NOT NULL, objects_before FROM {} WHERE migration_name = %s"
        return {step: Mark(*rest) for step, *rest in query(conn, sql.SQL(select).format(self.table), [self.name])}

    def mark(self, conn: Connection, step: int, value: str, done: bool = True, before: Sequence[int] = ()) -> str:
        """Says *begun* or *done*, whatever role the script has taken on."""
        insert = sql.SQL(
            "INSERT INTO {} VALUES ({}, {}, {}, {}::bigint[], now(), {}) ON CONFLICT (migration_name, step) "
            "DO UPDATE SET (checksum, objects_before, started_at, done_at) = "
            "(excluded.checksum, excluded.objects_before, excluded.started_at, excluded.done_at)"
        )
        values = (literal(self.name), sql.Literal(step), sql.Literal(value), sql.Literal(list(before)))
        return OWN_ROLE_HERE + insert.format(self.table, *values, sql.SQL("now()" if done else "NULL")).as_string(conn)

    def forget(self, conn: Connection, step: Optional[int] = None) -> str:
        delete = sql.SQL("DELETE FROM {} WHERE migration_name = {} AND step = coalesce({}, step)")
        return OWN_ROLE_HERE + delete.format(self.table, literal(self.name), sql.Literal(step)).as_string(conn)


class Step(NamedTuple):
    """A single statement, or what stands between a BEGIN and its COMMIT, without these two; with its mark."""

    number: int
    begin: str
    statements: list[Statement]
    checksum: str
    mark: Optional[Mark]

    @property
    def first(self) -> Statement:
        return self.statements[0]


def run_in_steps(conn: Connection, script: Script, end: End, progress: Progress) -> Outcome:
    """Run the script's steps, each with its mark, so that a second run goes on where the first one ended.

    What belongs to the session (a SET, a PREPARE) a second run needs again.
    """
    query(conn, f"{OWN_ROLE}; DEALLOCATE ALL; SET search_path = pg_catalog")  # a first attempt may have left others
    progress.ensure_table(conn)
    marks = progress.marks(conn)
    query(conn, "SET search_path TO DEFAULT")
    number, untried = 0, list[str]()
    for number, (own_begin, statements) in enumerate(steps(script), 1):
        value = checksum("; ".join(map(script.statement_sql, statements)))
        step = Step(number, own_begin, statements, value, marks.get(number))
        conn.about = {**conn.about, "line": step.first.line}
        if step.mark and step.mark.checksum != value:
            why = RUN_AND_EDITED if step.mark.done else BEGUN_AND_EDITED
            return Outcome(refusal=why, offset=step.first.start)
        again = [s for s in statements if belongs_to_session(script, s)]
        if (step.mark and step.mark.done) or (again == statements and not own_begin):
            messages = [*(_as_it_stands(script, s) for s in again), _ours(script, "SELECT true")]
            outcome = send(conn, script, messages) if again else Outcome()
        else:
            outcome = _run_step(conn, script, step, progress)
        untried += outcome.untried
        if outcome.failed:
            return replace(outcome, untried=tuple(untried))
    if marks and max(marks) > number:
        return Outcome(refusal=RUN_AND_REMOVED, offset=len(script.text))
    text = (
        f"{begin(conn, 'BEGIN READ WRITE')}; {OWN_ROLE}; SET search_path = pg_catalog; {progress.forget(conn)}; {end()}"
    )
    outcome = send(conn, script, [Message(len(script.text) + 1, text, script.first_offset, at_end=True)])
    return replace(outcome, untried=tuple(untried))


def steps(script: Script) -> Iterator[tuple[str, list[Statement]]]:
    """The statements of each step, and the BEGIN that the script gives it (empty: none)."""
    own_begin, together = "", list[Statement]()
    for statement in script.statements():
        control = statement.transaction_control
        if control == "BEGIN":
            own_begin, together = " ".join(["BEGIN", *opening_modes(statement)]), []
        elif control == "COMMIT":
            if not own_begin:
                log("COMMIT with nothing open", logging.WARNING, line=statement.line)
            if together:
                yield own_begin, together
            own_begin, together = "", []
        elif own_begin:
            together.append(statement)
        else:
            yield "", [statement]


def belongs_to_session(script: Script, statement: Statement) -> bool:
    """It changes the session, not the database."""
    of_session = statement.is_session_setting or statement.words[0] in ("PREPARE", "DEALLOCATE", "LOAD")
    return of_session or SET_CONFIG.match(script.text, statement.start) is not None


def _run_step(conn: Connection, script: Script, step: Step, progress: Progress) -> Outcome:
    """Run a step and its mark in one transaction or, where PostgreSQL refuses that, the mark behind it."""
    if step.mark and not conn.rehearsal:  # it was begun outside a transaction: only what cannot run in one is
        return _run_outside(conn, script, step, progress)
    if conn.rehearsal:
        return _rehearse_step(conn, script, step)
    done = progress.mark(conn, step.number, step.checksum)
    own_begin = step.begin or "BEGIN"
    outcome = _run_in_transaction(conn, script, step, own_begin, f"{done}; COMMIT; SELECT true")
    if outcome.code == READ_ONLY:  # where nothing can be written, a mark cannot be, and a second run does no harm
        marking = f"COMMIT; BEGIN READ WRITE; {done}; COMMIT; SELECT true"
        return _run_in_transaction(conn, script, step, own_begin, marking)
    if outcome.code in ("25001", "2D000") and not step.begin:
        return _run_outside(conn, script, step, progress)
    return outcome


def _rehearse_step(conn: Connection, script: Script, step: Step) -> Outcome:
    """Run a step in a savepoint, with no mark, which would have to change the script's role."""
    text = script.text[step.first.start : step.statements[-1].end]
    modes = re.search(r"(?i)ISOLATION LEVEL (SERIALIZABLE|REPEATABLE READ)", f"{step.begin} {text}")
    closing = f"SET CONSTRAINTS ALL IMMEDIATE; {commit(conn)}; SELECT true"
    outcome = _run_in_transaction(conn, script, step, begin(conn, step.begin), closing)
    why = ""
    if outcome.code in ("25001", "2D000") and (modes or not step.begin):
        why = modes.group() if modes else "runs outside a transaction"
    elif outcome.code == "55P04" and not ADD_VALUE.search(text):
        why = "uses an enum value that this run adds"
    elif not outcome.failed:
        conn.rehearsal.defer_constraints()
        why = " ".join(step.begin.split()[1:])
    if not why:
        return outcome
    return Outcome(untried=(f"line {step.first.line} {why if why[0].islower() else f'asks for {why}'}",))


def _run_in_transaction(conn: Connection, script: Script, step: Step, opening: str, closing: str) -> Outcome:
    opening, closing = f"{opening}; ", f"\n;{closing}"
    if any(statement.data or statement.changes_string_syntax for statement in step.statements):
        each = [_as_it_stands(script, statement) for statement in step.statements]
        return send(conn, script, [_ours(script, opening), *each, _ours(script, closing)])
    start = step.first.start
    text = opening + script.text[start : step.statements[-1].end] + closing
    return send(conn, script, [Message(start - len(opening), text, start)])


def _as_it_stands(script: Script, statement: Statement) -> Message:
    return Message(statement.start, script.statement_sql(statement), statement.start, statement.data)


def _ours(script: Script, text: str) -> Message:
    """Words that do not stand in the script."""
    return Message(len(script.text) + 1, text, script.first_offset)


# --- Outside a transaction ------------------------------------------------------------------------------------------


class Trace(NamedTuple):
    """An object that tells whether a statement has run: what it makes, or takes away."""

    oid: int
    valid: bool
    schema: str
    name: str


_INDEX = (
    "SELECT i.indexrelid::bigint, i.indisvalid, n.nspname, c.relname FROM pg_index i "
    "JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i' JOIN pg_namespace n ON n.oid = c.relnamespace "
)
# What REINDEX CONCURRENTLY leaves where it is stopped; of a TOAST table it cannot be dropped everywhere.
_LEFT_BY_REINDEX = "_cc(new|old)[0-9]*$"
_TRACES = {
    "CREATE INDEX": _INDEX + "WHERE i.indrelid = %(on)s AND (%(name)s IS NULL OR c.relname = %(name)s::name)",
    "DROP INDEX": _INDEX + "WHERE i.indexrelid = %(on)s",
    "REINDEX": _INDEX  # noqa: S608
    + """WHERE %(on)s IN (i.indexrelid, i.indrelid) OR
        (NOT i.indisvalid AND c.relname ~ %(left)s AND n.nspname <> 'pg_toast' AND (%(on)s IS NULL OR i.indrelid IN
            (SELECT o.indrelid FROM pg_index o WHERE %(on)s IN (o.indexrelid, o.indrelid) OR EXISTS
                (SELECT FROM pg_partition_tree(%(on)s) WHERE relid IN (o.indexrelid, o.indrelid)))))""",
    "DETACH": "SELECT inhrelid::bigint, true, '', '' FROM pg_inherits WHERE inhparent = %(on)s AND inhrelid = %(part)s",
    "DATABASE": "SELECT oid::bigint, true, '', '' FROM pg_database WHERE datname = %(name)s::name",
}


# It waits for every snapshot that is older; if we waited for its table with one, it would be ended by the deadlock.
_BUILT_BY_ANOTHER = """
    SELECT true FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_progress_create_index p ON p.pid = l.pid
    JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
    WHERE l.granted AND l.mode = 'ShareUpdateExclusiveLock' AND l.pid <> pg_catalog.pg_backend_pid()
      AND l.relation IN (SELECT coalesce(i.indrelid, o) FROM pg_catalog.to_regclass(%s::text) o
                         LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = o)"""


def traces(conn: Connection, target: Target) -> list[Trace]:
    """The objects that are there now. Names mean what they mean in the script's search path."""
    if target.kind not in _TRACES:
        return []
    find = "SELECT pg_catalog.to_regclass(%s::text)::oid, pg_catalog.to_regclass(%s::text)::oid"
    ((on, part),) = query(conn, find, [target.on or None, target.part or None])
    values = {"on": on, "part": part, "name": target.name, "left": _LEFT_BY_REINDEX}
    with transaction(conn):
        query(conn, "SET LOCAL search_path = pg_catalog")
        return [Trace(*row) for row in query(conn, _TRACES[target.kind], values)]


def _run_outside(conn: Connection, script: Script, step: Step, progress: Progress) -> Outcome:
    """Run one statement with no transaction around it, between the marks *begun* and *done*.

    An answer, good or bad, leaves no doubt. Where none came, the objects tell: those that the statement makes are
    there and were not before, or those that it takes away are gone. Of other statements nothing tells: they run again.
    """
    target, mark = step.first.target, step.mark
    done = _ours(script, f"BEGIN READ WRITE; {progress.mark(conn, step.number, step.checksum)}; COMMIT; SELECT true")
    try:
        if mark:
            log("a run was interrupted in this statement", logging.WARNING, line=step.first.line)
            if _has_run(target, mark.before, traces(conn, target)):
                log("it had done its work", line=step.first.line)
                drop_invalid(conn, target, mark.before)
                return send(conn, script, [done])
        if target.is_build and query(conn, _BUILT_BY_ANOTHER, [target.on or None]):
            why = "another session is building an index on this table, and would be ended by what we do"
            return Outcome(refusal=why, offset=step.first.start, in_the_way=True)
        drop_invalid(conn, target, mark.before if mark else None)
        before = [trace.oid for trace in traces(conn, target) if trace.valid or target.kind != "REINDEX"]
        begun = progress.mark(conn, step.number, step.checksum, done=False, before=before)
        query(conn, f"BEGIN READ WRITE; {begun}; COMMIT")
        with _patience(conn, target):
            outcome = send(conn, script, [_finalize(conn, script, step.first), _ours(script, "SELECT true")])
        if not outcome.failed:
            return send(conn, script, [done])
        if not outcome.connection_lost:
            try:
                drop_invalid(conn, target, before)
                query(conn, f"BEGIN READ WRITE; {progress.forget(conn, step.number)}; COMMIT")
            except psycopg2.Error as exc:
                log("the next run has to clean up", logging.WARNING, reason=str(exc).split("\n")[0])
                roll_back(conn)
    except psycopg2.Error as exc:
        lost = conn.closed != 0
        roll_back(conn)
        return Outcome(error=exc, offset=step.first.start, connection_lost=lost)
    return replace(outcome, goes_on=outcome.connection_lost and target.is_build)


def _has_run(target: Target, before: Sequence[int], now: Sequence[Trace]) -> bool:
    if target.creates:
        new = [trace.valid for trace in now if trace.oid not in before]
        return bool(new) and all(new)
    there = {trace.oid for trace in now if trace.valid or target.kind == "DROP INDEX"}
    return bool(before) and not there.intersection(before)  # REINDEX puts new indexes in the place of all of them


def drop_invalid(conn: Connection, target: Target, before: Optional[Sequence[int]]) -> None:
    """Drop the INVALID indexes that an interrupted concurrent build has left: of its name, or new since `before`."""
    for trace in traces(conn, target) if target.is_build else ():
        new = before is not None and trace.oid not in before
        ours = re.search(_LEFT_BY_REINDEX, trace.name) if target.kind == "REINDEX" else target.name or new
        if ours and not trace.valid:
            log("dropping an index that was never finished", logging.WARNING, index=trace.name)
            query(conn, sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(trace.schema, trace.name)))


@contextmanager
def _patience(conn: Connection, target: Target) -> Iterator[None]:
    """A concurrent build waits for others without standing in their way: a lock timeout would only leave its index
    INVALID. It goes on when we are gone: it may take longer than any Lambda lives."""
    whole = "SELECT true FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(%s) AND relkind = 'p'"
    blocks = target.kind == "REINDEX" and query(conn, whole, [target.on or None])  # it locks partitions against writers
    names = ["lock_timeout"] if target.is_concurrent and not blocks else []
    if target.is_build and conn.server_version >= 140000:
        names.append("client_connection_check_interval")
    before = [query(conn, f"SHOW {name}")[0][0] for name in names]
    if names:
        query(conn, "".join(f"SET {name} = 0;" for name in names))
    yield
    if names and not conn.closed:
        query(conn, "".join(f"SET {name} = '{value}';" for name, value in zip(names, before)))


def _finalize(conn: Connection, script: Script, statement: Statement) -> Message:
    """The statement; or, where a DETACH … CONCURRENTLY was stopped half way, what PostgreSQL wants instead."""
    target = statement.target
    if target.kind == "DETACH" and conn.server_version >= 140000:
        half_way = (
            "SELECT true FROM pg_catalog.pg_inherits WHERE inhdetachpending AND inhparent = pg_catalog.to_regclass(%s) "
            "AND inhrelid = pg_catalog.to_regclass(%s)"
        )
        if query(conn, half_way, [target.on, target.part]):
            finish = f"ALTER TABLE {target.on} DETACH PARTITION {target.part} FINALIZE"
            return Message(len(script.text) + 1, finish, statement.start)
    return _as_it_stands(script, statement)

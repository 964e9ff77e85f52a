"""One statement with no transaction around it, and what tells whether it has run when its answer
was lost.

Knows PostgreSQL, nothing of migrations or AWS.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Optional, Union

import psycopg2
from common import log
from marks import Mark, Marks
from outcomes import Ending, Failure, Index, Success
from psycopg2 import sql
from sending import Message, as_written, ending_of, of_ours, send
from session import Session
from sql_scanner import Script, Statement, Target

ANOTHER_BUILD_RUNS = (
    "another session is building an index on this table, and would be ended by what we do"
)


class Step(NamedTuple):
    """A single statement, or what is between a BEGIN and its COMMIT, without these two; with its
    mark.
    """

    number: int
    begin: str
    statements: list[Statement]
    checksum: str
    mark: Optional[Mark]

    @property
    def first(self) -> Statement:
        return self.statements[0]

    def text(self, script: Script) -> str:
        return script.text[self.first.start : self.statements[-1].end]


class Trace(NamedTuple):
    """An object that tells whether a statement has run: one that it makes, or takes away."""

    oid: int
    valid: bool
    schema: str
    name: str
    is_ours: bool = True  # we may drop it


def run_outside(
    session: Session, script: Script, step: Step, marks: Marks
) -> Union[Success, Failure]:
    """Run one statement with no transaction around it, between the marks *begun* and *done*.

    An answer, good or bad, leaves no doubt. Where none came, the objects tell: those that the
    statement makes are there and were not before, or those that it takes away are gone. Of other
    statements nothing tells: they run again.
    """
    try:
        return _run_outside(session, script, step, marks)
    except psycopg2.Error as exc:
        ending = ending_of(session, script, exc)
        session.roll_back()
        return Failure(error=exc, offset=step.first.start, ending=ending)


def _run_outside(
    session: Session, script: Script, step: Step, marks: Marks
) -> Union[Success, Failure]:
    target = step.first.target
    done_sql = marks.done_sql(session, step.number, step.checksum)
    done = of_ours(script, f"BEGIN READ WRITE; {done_sql}; COMMIT; SELECT true")
    if step.mark:
        log("a run was interrupted in this statement", logging.WARNING, line=step.first.line)
        if has_run(target, step.mark.objects_before, traces(session, target)):
            log("it had done its work", line=step.first.line)
            drop_invalid_indexes(session, target, step.mark.objects_before)
            return send(session, script, [done])
    if target.is_build and look_up(session, target, BUILT_BY_ANOTHER_SQL):
        return Failure(refusal=ANOTHER_BUILD_RUNS, offset=step.first.start, ending=Ending.BUSY)
    drop_invalid_indexes(session, target, step.mark.objects_before if step.mark else None)
    before = [
        trace.oid for trace in traces(session, target) if trace.valid or target.kind != "REINDEX"
    ]
    begun_sql = marks.begun_sql(session, step.number, step.checksum, before)
    session.query(f"BEGIN READ WRITE; {begun_sql}; COMMIT")
    with _patient_settings(session, target):
        statement = _statement_to_send(session, script, step.first)
        outcome = send(session, script, [statement, of_ours(script, "SELECT true")])
    if isinstance(outcome, Success):
        return send(session, script, [done])
    if outcome.ending is Ending.LOST:
        return replace(outcome, index=_index_after_loss(session, target))
    try:
        if drop_invalid_indexes(session, target, before):
            outcome = replace(outcome, index=Index.DROPPED)
        forget_sql = marks.forget_sql(session, step.number)
        session.query(f"BEGIN READ WRITE; {forget_sql}; COMMIT")
    except psycopg2.Error as exc:
        reason = str(exc).split("\n", maxsplit=1)[0]
        log("the next run has to clean up", logging.WARNING, reason=reason)
        session.roll_back()
        if target.is_build and outcome.index is Index.NONE:
            outcome = replace(outcome, index=Index.UNKNOWN)
    return outcome


def _index_after_loss(session: Session, target: Target) -> Index:
    """What the server does with an index that it was building when the connection was lost."""
    if not target.is_build:
        return Index.NONE
    still_builds = session.still_builds
    if still_builds is None:
        return Index.UNKNOWN
    return Index.BUILDING if still_builds else Index.ABANDONED


def has_run(target: Target, before: Sequence[int], now: Sequence[Trace]) -> bool:
    """Whether a statement whose answer was lost has done its work."""
    if target.creates:
        new = [trace.valid for trace in now if trace.oid not in before]
        return bool(new) and all(new)
    there = {trace.oid for trace in now if trace.valid or target.kind == "DROP INDEX"}
    return bool(before) and not there.intersection(
        before
    )  # REINDEX replaces all indexes by new ones


def traces(session: Session, target: Target) -> list[Trace]:
    """The objects that are there now."""
    if target.kind not in TRACES_SQL:
        return []
    return [Trace(*row) for row in look_up(session, target, TRACES_SQL[target.kind])]


def look_up(session: Session, target: Target, question: str) -> list[tuple[Any, ...]]:
    """Ask about the objects that a statement names.

    Names mean what they mean in the script's search path. Nothing but the names is looked up
    there: an operator that others have put into it would run as the admin.
    """
    ((on, part),) = session.query(RESOLVE_SQL, [target.on or None, target.part or None])
    values = {
        "on": on,
        "part": part,
        "name": target.name,
        "left": LEFT_BY_REINDEX,
        "columns": list(target.columns),
        "is_unique": target.is_unique,
        "is_partial": target.is_partial,
    }
    with session.transaction():
        session.query("SET LOCAL search_path = pg_catalog")
        return session.query(question, values)


def drop_invalid_indexes(session: Session, target: Target, before: Optional[Sequence[int]]) -> bool:
    """Drop the INVALID indexes that an interrupted concurrent build has left: of its name, or
    new since `before`. Says whether there was one.
    """
    dropped = False
    if not target.is_build:
        return dropped
    for trace in traces(session, target):
        is_new = before is not None and trace.oid not in before
        if target.kind == "REINDEX":
            is_left_over = re.search(LEFT_BY_REINDEX, trace.name) is not None
        else:
            is_left_over = target.name is not None or is_new
        if is_left_over and not trace.valid and trace.is_ours:
            log("dropping an index that was never finished", logging.WARNING, index=trace.name)
            name = sql.Identifier(trace.schema, trace.name)
            session.query(sql.SQL("DROP INDEX CONCURRENTLY {}").format(name))
            dropped = True
    return dropped


@contextmanager
def _patient_settings(session: Session, target: Target) -> Iterator[None]:
    """A concurrent build waits for others without blocking them: a lock timeout would only leave
    its index INVALID.

    It goes on when we are gone: it may take longer than any Lambda lives.
    """
    names = []
    if target.is_concurrent and not _locks_partitions(session, target):
        names.append("lock_timeout")
    if target.is_build and session.server_version >= 140000:
        names.append("client_connection_check_interval")
    if not names:
        yield
        return
    before = {name: session.query(f"SHOW {name}")[0][0] for name in names}
    session.query("".join(f"SET {name} = 0;" for name in names))
    session.activity.not_waited_for = session.limited_roles
    try:
        yield
    finally:
        session.activity.not_waited_for = ()
        if not session.is_lost:
            session.query("".join(f"SET {name} = '{value}';" for name, value in before.items()))


def _locks_partitions(session: Session, target: Target) -> bool:
    """REINDEX of a partitioned table locks its partitions against writers."""
    if target.kind != "REINDEX":
        return False
    return bool(look_up(session, target, IS_PARTITIONED_SQL))


def _statement_to_send(session: Session, script: Script, statement: Statement) -> Message:
    """The statement; or, where a DETACH … CONCURRENTLY was stopped half way, what PostgreSQL
    wants instead.
    """
    target = statement.target
    if target.kind != "DETACH" or session.server_version < 140000:
        return as_written(script, statement)
    if not look_up(session, target, DETACHED_HALF_WAY_SQL):
        return as_written(script, statement)
    finish = f"ALTER TABLE {target.on} DETACH PARTITION {target.part} FINALIZE"
    return of_ours(script, finish, fallback=statement.start)


# --- The questions ----------------------------------------------------------------------------

RESOLVE_SQL = (
    "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid, pg_catalog.to_regclass(%s)::pg_catalog.oid"
)
INDEX_SQL = (
    "SELECT i.indexrelid::bigint, i.indisvalid, n.nspname, c.relname, pg_has_role(c.relowner, "
    "'USAGE') OR pg_has_role(n.nspowner, 'USAGE') FROM pg_index i JOIN "
    "pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i' JOIN pg_namespace n ON n.oid = "
    "c.relnamespace "
)
# What REINDEX CONCURRENTLY leaves where it is stopped; of a TOAST table it cannot be dropped
# everywhere.
LEFT_BY_REINDEX = "_cc(new|old)[0-9]*$"
COLUMNS_SQL = """ARRAY(
    SELECT coalesce(attname, '')::text FROM unnest(indkey::int2[]) WITH ORDINALITY k(attnum, place)
    LEFT JOIN pg_attribute a ON attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum <> 0
    WHERE place <= indnkeyatts ORDER BY place)"""
TRACES_SQL = {
    # One without a name is known by its columns: others may build another on the same table.
    "CREATE INDEX": INDEX_SQL + "WHERE i.indrelid = %(on)s AND CASE WHEN %(name)s IS NOT NULL "
    "THEN c.relname = %(name)s::name ELSE indisunique = %(is_unique)s AND (indpred IS NOT NULL) = "
    f"%(is_partial)s AND %(columns)s::text[] = {COLUMNS_SQL} END",
    "DROP INDEX": INDEX_SQL + "WHERE i.indexrelid = %(on)s",
    "REINDEX": INDEX_SQL
    + """WHERE %(on)s IN (i.indexrelid, i.indrelid) OR
        (NOT i.indisvalid AND c.relname ~ %(left)s AND n.nspname <> 'pg_toast'
         AND (%(on)s IS NULL OR i.indrelid IN
            (SELECT o.indrelid FROM pg_index o
             WHERE %(on)s IN (o.indexrelid, o.indrelid) OR EXISTS
                (SELECT FROM pg_partition_tree(%(on)s)
                 WHERE relid IN (o.indexrelid, o.indrelid)))))""",
    "DETACH": (
        "SELECT inhrelid::bigint, true, '', '' FROM pg_inherits WHERE inhparent = %(on)s AND "
        "inhrelid = %(part)s"
    ),
    "DATABASE": "SELECT oid::bigint, true, '', '' FROM pg_database WHERE datname = %(name)s::name",
}
# A build waits for every snapshot that is older; if we waited for its table with one, it would be
# ended by the deadlock.
BUILT_BY_ANOTHER_SQL = """
    SELECT true FROM pg_locks l JOIN pg_stat_progress_create_index p ON p.pid = l.pid
    JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
    WHERE l.granted AND l.mode = 'ShareUpdateExclusiveLock' AND l.pid <> pg_backend_pid()
      AND (%(on)s::oid IS NULL  -- REINDEX of a schema, or of the database
           OR l.relation IN (SELECT coalesce(i.indrelid, o) FROM (VALUES (%(on)s::oid)) v(o)
                             LEFT JOIN pg_index i ON i.indexrelid = o))"""
IS_PARTITIONED_SQL = "SELECT true FROM pg_class WHERE oid = %(on)s AND relkind = 'p'"
DETACHED_HALF_WAY_SQL = (
    "SELECT true FROM pg_inherits "
    "WHERE inhdetachpending AND inhparent = %(on)s AND inhrelid = %(part)s"
)

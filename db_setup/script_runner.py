"""Runs a script on a connection: whole or not at all, or, where PostgreSQL wants no transaction, step by step.

Knows PostgreSQL and scripts, nothing of migrations or AWS: what is to be recorded with a script comes as SQL. A
script's own failure is an Outcome, not an exception.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import psycopg2
from database import HOLDS_LOCK, Connection, literal, log, query, roll_back, session_settings, transaction
from psycopg2 import sql
from sql_scanner import Script, Statement, body_of, checksum, locate, opening_modes

RETRYABLE = ("55P03", "40P01", "40001")  # lock timeout, deadlock, serialization failure
NOT_IN_TRANSACTION = ("25001", "2D000", "55P04")  # refused inside a transaction block; a new enum value used too early
SYNTAX_ERROR, SAVEPOINT_GONE = "42601", "3B001"
SAVEPOINT = "db_setup_file"
OWN_ROLE = "RESET SESSION AUTHORIZATION; RESET ROLE"


@dataclass(frozen=True)
class Outcome:
    """How a run of a script ended. `offset` is a place in it; `exact` where PostgreSQL itself named that place;
    `at_end` where all statements went well and what comes behind them did not."""

    holds_lock: bool = True
    error: Optional[psycopg2.Error] = None
    refusal: str = ""
    offset: int = 0
    exact: bool = False
    at_end: bool = False
    connection_lost: bool = False

    @property
    def failed(self) -> bool:
        return self.error is not None or self.refusal != ""

    @property
    def code(self) -> str:
        return (self.error and self.error.pgcode) or ""


class Message(NamedTuple):
    """What is sent at once. `base` is the place in the script where its first character would stand."""

    base: int
    text: str
    fallback: int  # the place to name where PostgreSQL names none
    data: Optional[tuple[int, int]] = None  # the rows of a COPY, in the script
    at_end: bool = False


def send(conn: Connection, script: Script, messages: Iterable[Message]) -> Outcome:
    """Send the messages one after the other; the last one answers whether the lock is still held."""
    answer: list[tuple[Any, ...]] = []
    message = Message(0, "", 0)
    try:
        for message in messages:
            if message.data:
                copy_in(conn, message.text, script.text, message.data)
            else:
                answer = query(conn, message.text)
        return Outcome(holds_lock=bool(answer[0][0]))
    except psycopg2.Error as exc:
        lost = conn.closed != 0
        roll_back(conn)
        offset = message.base + int(exc.diag.statement_position or 0) - 1  # PostgreSQL counts characters, from 1
        exact = exc.diag.statement_position is not None and 0 <= offset <= len(script.text)
        place = offset if exact else _bad_row(script, message, exc)
        return Outcome(error=exc, offset=place, exact=exact, at_end=message.at_end, connection_lost=lost)


def copy_in(conn: Connection, statement: str, text: str, data: tuple[int, int]) -> None:
    """Run COPY … FROM STDIN with the rows that stand in `text`, as they are."""
    with conn.cursor() as cur:
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


def recording(conn: Connection, record: str, lock_timeout_ms: int) -> str:
    """The end of a script's last transaction: the session is put back, the record written, the lock looked after.

    Cursors and temporary tables go behind the COMMIT, which may still find fault with them.
    The next script finds the session as a new one would be: psql, started for each file, is the model.
    """
    ours = session_settings(conn.server_version, lock_timeout_ms)
    return (
        f"{OWN_ROLE}; RESET ALL; DISCARD SEQUENCES; DEALLOCATE ALL; UNLISTEN *; {ours}{record}; COMMIT; "
        f"CLOSE ALL; DISCARD TEMP; {HOLDS_LOCK}"
    )


def run_whole(conn: Connection, script: Script, end: str, by_statement: bool = False) -> Outcome:
    """Run the script in one transaction and, if it fails at no known place, once more to find that."""
    outcome = _run_whole(conn, script, end, by_statement)
    if by_statement or not outcome.failed or outcome.exact or outcome.connection_lost:
        return outcome
    if outcome.code in (*RETRYABLE, SAVEPOINT_GONE) or "user request" in str(outcome.error):  # cancelled: out of time
        return outcome
    if (
        script.count > 1 or script.begin != "BEGIN" or (script.count and outcome.code == SYNTAX_ERROR)
    ):  # the ; that it does not like is ours
        return _run_whole(conn, script, end, by_statement=True)
    return outcome


def _run_whole(conn: Connection, script: Script, end: str, by_statement: bool) -> Outcome:
    """One message for the whole script, or several: for what cannot go in one, or one for each statement, which
    tells the statement that fails.

    A deferred constraint has to speak before the session is put back. The release of our savepoint is the proof
    that the script was one transaction: had it ended ours, the savepoint would be gone (3B001).
    """
    opening = f"{script.begin}; SET search_path TO DEFAULT; SAVEPOINT {SAVEPOINT};\n"
    closing = f"\n;SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT {SAVEPOINT}; {end}"
    if not (by_statement or script.pieces):
        return send(conn, script, [Message(-len(opening), opening + script.body() + closing, script.first)])
    return send(conn, script, _messages(script, opening, closing, by_statement))


def _messages(script: Script, opening: str, closing: str, by_statement: bool) -> Iterator[Message]:
    own = min(
        (s.start for s in script.left_out if not s.is_meta_command), default=script.first
    )  # BEGIN, SET TRANSACTION
    yield Message(len(script.text) + 1, opening, own)
    last = script.first
    for start, end, data in script.to_send(by_statement):
        last = start
        yield Message(start, script.text[start:end], start, data)
    yield Message(len(script.text) + 1, closing, last, at_end=True)


# --- Step by step ---------------------------------------------------------------------------------------------------


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
            "CREATE TABLE {} (migration_name VARCHAR(255), step INTEGER, checksum TEXT, "
            "done_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (migration_name, step))"
        )
        others = (
            "SELECT DISTINCT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee "
            "WHERE c.oid = %s::regclass AND a.grantee <> c.relowner"
        )
        with transaction(conn):
            query(conn, sql.SQL(create).format(self.table))
            for (role,) in query(conn, others, [table]):
                query(conn, sql.SQL("REVOKE ALL ON {} FROM {}").format(self.table, sql.Identifier(role)))

    def done(self, conn: Connection) -> dict[int, str]:
        """The steps that are done, with the checksums that they had."""
        select = sql.SQL("SELECT step, checksum FROM {} WHERE migration_name = %s").format(self.table)
        return dict(query(conn, select, [self.name]))

    def mark(self, conn: Connection, step: int, value: str) -> str:
        """Says *done*, whatever role the script has taken on."""
        insert = sql.SQL("INSERT INTO {} VALUES ({}, {}, {})")
        values = (literal(self.name), sql.Literal(step), sql.Literal(value))
        return "SET LOCAL SESSION AUTHORIZATION DEFAULT; SET LOCAL ROLE NONE; " + insert.format(
            self.table, *values
        ).as_string(conn)

    def forget(self, conn: Connection) -> str:
        delete = sql.SQL("DELETE FROM {} WHERE migration_name = {}")
        return delete.format(self.table, literal(self.name)).as_string(conn)


def run_in_steps(conn: Connection, script: Script, end: str, progress: Progress) -> Outcome:
    """Run the script's steps, each with its mark, so that a second run goes on where the first one ended."""
    query(conn, f"{OWN_ROLE}; SET search_path = pg_catalog")  # a first attempt may have left others
    progress.ensure_table(conn)
    done = progress.done(conn)
    query(conn, "SET search_path TO DEFAULT")
    for number, (begin, step) in enumerate(steps(script), 1):
        value = checksum("; ".join(map(script.sql, step)))
        if done.get(number, value) != value:
            why = "this statement has run already, and was edited since; restore it, and put the change behind it"
            return Outcome(refusal=why, offset=step[0].start)
        if len(step) == 1 and step[0].is_session_setting:
            outcome = _run_outside(conn, script, step[0], "")  # no progress: a second run needs it again
        elif number in done:
            continue
        else:
            outcome = _run_step(conn, script, begin, step, progress.mark(conn, number, value))
        if outcome.failed:
            return outcome
    text = f"BEGIN READ WRITE; {OWN_ROLE}; SET search_path = pg_catalog; {progress.forget(conn)}; {end}"
    return send(conn, script, [Message(len(script.text) + 1, text, script.first, at_end=True)])


def steps(script: Script) -> Iterator[tuple[str, list[Statement]]]:
    """Single statements, and what stands between a BEGIN and its COMMIT, without these two; each with its BEGIN."""
    begin, together = "", list[Statement]()
    for statement in script.statements():
        control = statement.transaction_control
        if control == "BEGIN":
            begin, together = " ".join(["BEGIN", *opening_modes(statement)]), []
        elif control == "COMMIT":
            if not begin:
                log("COMMIT with nothing open", logging.WARNING, line=statement.line)
            if together:
                yield begin, together
            begin, together = "", []
        elif begin:
            together.append(statement)
        else:
            yield "BEGIN", [statement]


def _run_step(conn: Connection, script: Script, begin: str, step: Sequence[Statement], mark: str) -> Outcome:
    """Run statements and their mark in one transaction, or, where PostgreSQL refuses that, one statement outside."""
    opening, closing = f"{begin}; ", f"\n;{mark}; COMMIT; SELECT true"
    if any(statement.data or statement.switches for statement in step):
        each = [Message(s.start, script.sql(s), s.start, s.data) for s in step]
        return send(conn, script, [_ours(script, opening), *each, _ours(script, closing)])
    text = opening + script.text[step[0].start : step[-1].end] + closing
    outcome = send(conn, script, [Message(step[0].start - len(opening), text, step[0].start)])
    if outcome.code in ("25001", "2D000") and len(step) == 1:
        return _run_outside(conn, script, step[0], f"BEGIN READ WRITE; {mark}; COMMIT; ")
    return outcome


def _run_outside(conn: Connection, script: Script, statement: Statement, mark: str) -> Outcome:
    """Run one statement with no transaction around it, then its mark.

    What an interrupted CREATE INDEX CONCURRENTLY has left behind is dropped before. A lock timeout would only
    leave such an index INVALID: it does not apply.
    """
    run = Message(statement.start, script.sql(statement), statement.start)
    marking = _ours(script, f"{mark}SELECT true")
    if not statement.concurrent_index:
        return send(conn, script, [run, marking])
    drop_invalid_index(conn, *statement.concurrent_index)
    ((timeout,),) = query(conn, "SHOW lock_timeout")
    before, after = _ours(script, "SET lock_timeout = 0"), _ours(script, f"SET lock_timeout = '{timeout}'")
    outcome = send(conn, script, [before, run, after, marking])
    if outcome.failed and not outcome.connection_lost:
        drop_invalid_index(conn, *statement.concurrent_index)
    return outcome


def _ours(script: Script, text: str) -> Message:
    """Words that do not stand in the script."""
    return Message(len(script.text) + 1, text, script.first)


def drop_invalid_index(conn: Connection, index: str, table: str) -> None:
    """Drop the index of this name on this table if it is INVALID: an interrupted concurrent build left it."""
    found = (
        "SELECT n.nspname, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND c.relkind = 'i' "
        "AND c.relname = %s AND i.indrelid = %s"
    )
    (oid,) = query(conn, "SELECT pg_catalog.to_regclass(%s::text)::oid", [table])[0]  # as the script's own path has it
    with transaction(conn):
        query(conn, "SET LOCAL search_path = pg_catalog")
        remnants = query(conn, found, [index, oid])
    for remnant in remnants:
        log("dropping an index that was never finished", logging.WARNING, index=index)
        query(conn, sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(*remnant)))


# --- What to tell ---------------------------------------------------------------------------------------------------


def describe(script: Script, outcome: Outcome) -> str:
    """What PostgreSQL said and its SQLSTATE, in one line, without data of rows."""
    if outcome.error is None:
        return outcome.refusal
    said = " ".join((outcome.error.diag.message_primary or str(outcome.error)).split())
    if outcome.code[:2] == "22" and not outcome.exact:
        said = re.sub('".*"', '"…"', said)  # a value that does not stand in the script comes from a row
    said = said[:400]
    at = script.text[outcome.offset : outcome.offset + 2]
    if outcome.code == SYNTAX_ERROR and outcome.exact and re.match(r""":[A-Za-z_'"]""", at):
        said += "; variables of psql do not exist here: write the value itself"
    elif outcome.code == SYNTAX_ERROR and outcome.exact and re.match("[\u00a0\u2000-\u200f\u202f\ufeff]", at):
        said += f"; the character there is no space, but U+{ord(at[0]):04X}: delete it"
    when = ", which showed at the end of the file" if outcome.at_end else ""
    return f"{said} ({outcome.code or 'no answer'}){when}"


def state_and_step(script: Script, outcome: Outcome) -> str:
    """Of the cases that apply, the first: the state we are in, and what to do."""
    code, several = outcome.code, script.count > 1
    gone = code == SAVEPOINT_GONE and SAVEPOINT in str(outcome.error)
    cases = (
        (
            outcome.connection_lost,
            "The connection was lost; the server rolls the file back unless it had just finished, and the tracking "
            "table knows. Invoke again.",
        ),
        (
            script.unwrapped,
            "What stands before this statement is done and stays. Mend it and deploy again: the run goes on here.",
        ),
        (
            code == "2D000",
            "Rolled back. A block that commits by itself needs a file that is no transaction: write -- no-transaction "
            "in the first line, see that the block can be repeated, and deploy again.",
        ),
        (
            code in NOT_IN_TRANSACTION and several,
            "Rolled back. This file of several statements is one transaction: put the statement into a file of its "
            "own, or write -- no-transaction in the first line, and deploy again.",
        ),
        (
            gone,
            "A statement of this file has ended the transaction that the file is: what stands before it is kept, but "
            "the file is not recorded. Look at what it has done, make the file repeatable, and deploy again.",
        ),
        (
            code in RETRYABLE,
            "Rolled back. Other sessions were in the way each time: invoke again when they are done.",
        ),
    )
    return next((text for applies, text in cases if applies), "Rolled back. Mend the file and deploy again.")


def details(script: Script, outcome: Outcome) -> Iterator[str]:
    """Further lines: where in a function, which constraint, PostgreSQL's DETAIL (unless it holds a row), HINT."""
    diag = outcome.error.diag if outcome.error else None
    if diag is None:
        return
    inner = re.search(r"^(?:PL/pgSQL|SQL) function (.+?),? (line|statement) (\d+)", diag.context or "", re.MULTILINE)
    if inner and inner.group(1) == "inline_code_block":
        body = locate(script.text, body_of(script.text, outcome.offset))[0]
        yield f"IN: the DO block, line {body + int(inner.group(3)) - 1} of the file"
    elif inner:
        yield f"IN: function {inner.group(1)}, its {inner.group(2)} {inner.group(3)}"
    named = (("constraint", diag.constraint_name), ("table", diag.table_name), ("column", diag.column_name))
    if outcome.code[:2] in ("22", "23") and any(name for _, name in named):
        yield "ON: " + ", ".join(f"{kind} {name}" for kind, name in named if name)
    elif diag.message_detail and outcome.code[:2] not in ("22", "23"):
        yield f"DETAIL: {diag.message_detail[:300]}"
    if diag.message_hint:
        yield f"HINT: {diag.message_hint[:300]}"

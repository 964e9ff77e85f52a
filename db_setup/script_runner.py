"""Runs a script in a session: as one transaction or, where PostgreSQL wants none, step by step.

Knows PostgreSQL and scripts, nothing of migrations or AWS: what is to be recorded with a script
comes as SQL. A script's own failure is an outcome, not an exception.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Callable, NamedTuple, Optional, Union

import dependents
import failures
import nontransactional
import outside
import psycopg2
import sql_scanner
from common import log
from marks import Mark, Marks
from nontransactional import Step
from outcomes import (
    COMMITS_ITSELF,
    IN_TRANSACTION,
    NEW_ENUM_VALUE,
    READ_ONLY,
    SAVEPOINT,
    SAVEPOINT_GONE,
    SYNTAX_ERROR,
    Ending,
    FailedStep,
    Failure,
    NotTried,
    Outcome,
    Place,
    Success,
)
from rehearsal import Rehearsal
from sending import Message, as_written, of_ours, part_of, send, success_of
from session import RETRYABLE, Session
from sql_scanner import Script, Statement

OWN_ROLE_SQL = "SET SESSION AUTHORIZATION DEFAULT; SET ROLE NONE"
AS_OURSELVES_SQL = f"{OWN_ROLE_SQL}; SET search_path = pg_catalog"  # until the session ends
# What ours differ in from those of a new session, which a script expects.
SCRIPT_SETTINGS_SQL = (
    "RESET ROLE; SET search_path TO DEFAULT; SET DateStyle TO DEFAULT; SET jit TO DEFAULT"
)
ADD_VALUE = re.compile(r"\bADD\s+VALUE\b", re.IGNORECASE)
SET_CONFIG = re.compile(r"SELECT\s+(pg_catalog\s*\.\s*)?set_config\s*\(", re.IGNORECASE)
ISOLATION = re.compile(r"ISOLATION LEVEL (SERIALIZABLE|REPEATABLE READ)", re.IGNORECASE)

RUN_AND_EDITED = (
    "this statement has run already, and was edited since; restore it, and put the change after it"
)
BEGUN_AND_EDITED = (
    "a run was interrupted in this statement, which was edited since, so that nothing can tell "
    "whether it has done its work; restore it for one deployment, and edit then"
)
GONE = (
    "what this {} made is gone with the session that made it, and is named further down: "
    "make it again there, before its next use"
)
NOT_A_NAME = {
    *("CREATE", "OR", "REPLACE", "GLOBAL", "LOCAL", "TEMP", "TEMPORARY", "RECURSIVE"),
    *("TABLE", "VIEW", "SEQUENCE", "IF", "NOT", "EXISTS", "DECLARE"),
}
RUN_AND_REMOVED = (
    "statements that have run already are missing at the end of this file; restore them"
)


# After a script: a deferred constraint has to fire before the session is put back, and our
# savepoint is gone if the script has ended its transaction.
PROOF_SQL = f"\n;SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT {SAVEPOINT}; SELECT true"
MOST_ALONE = 1000  # statements that a dry run sends one by one
SECOND_LOOK_S = 1.0  # what took longer is not run again to find the statement that failed


class Record(NamedTuple):
    """How a script is recorded in its last transaction."""

    final_sql: Callable[[], str]  # asked for when it is needed: hashes take their time
    is_there: Callable[[], bool]  # this attempt has written it
    after_commit_sql: str  # with which final_sql ends


class ScriptRunner:
    """Runs one script, and records it with its last transaction."""

    def __init__(self, session: Session, script: Script, marks: Marks, record: Record) -> None:
        self._session = session
        self._script = script
        self._marks = marks
        self._record = record

    def run(self, **fields: Any) -> Outcome:
        """Run it until it is recorded, has failed, or has no time left for another attempt.

        `fields` are for the log.
        """
        attempts = self._session.attempts()
        in_steps = self._script.no_transaction
        # Then it is known for how long each lock is held.
        is_short = not self._script.pieces and self._script.statement_count <= MOST_ALONE
        by_statement = isinstance(self._session, Rehearsal) and is_short
        while True:
            outcome = self._run_in_steps() if in_steps else self._run_whole(by_statement)
            if not isinstance(outcome, Failure):
                return outcome
            if (
                outcome.sqlstate == IN_TRANSACTION
                and self._script.statement_count == 1
                and not in_steps
            ):
                in_steps = True  # a single statement has no atomicity to lose
                continue
            can_pass = outcome.sqlstate in RETRYABLE or self._ended_dependents(outcome)
            if not can_pass or not self._session.pause_to_retry(
                outcome.sqlstate, attempts, **fields
            ):
                return outcome
            by_statement = True  # so that the last attempt can name the statement

    def _unless_recorded(self, outcome: Union[Success, Failure]) -> Union[Success, Failure]:
        """The outcome of the transaction that writes the record. What fails after its COMMIT is not
        the script, and is done again.
        """
        session = self._session
        if isinstance(outcome, Success) or outcome.place is Place.EXACT:
            return outcome
        is_over = outcome.left_none_open and not isinstance(session, Rehearsal)
        if not is_over or session.is_out_of_time or not self._record.is_there():
            return outcome
        again = partial(session.run_script, self._record.after_commit_sql, fetches=True)
        try:
            return success_of(session, session.with_retries(again))
        except psycopg2.Error:  # nothing is known, so everything is looked at by itself
            return Success(is_fresh=False, holds=False, answer=())

    def _ended_dependents(self, failure: Failure) -> bool:
        """Temporary objects of limited users were the reason; their sessions are ended."""
        session = self._session
        if failure.sqlstate not in dependents.REFUSALS or isinstance(session, Rehearsal):
            return False
        session.query(AS_OURSELVES_SQL)
        return dependents.end_limited(session, failure.error)

    # --- In one transaction -------------------------------------------------------------------

    def _run_whole(self, by_statement: bool) -> Outcome:
        """Run the script in one transaction; a failure is given a place as far as that is
        possible.
        """
        started = time.monotonic()
        outcome = self._run_once(by_statement)
        took_s = time.monotonic() - started
        if isinstance(outcome, Success) or by_statement or self._has_place(outcome):
            return outcome
        if took_s < SECOND_LOOK_S and self._can_look_again(took_s):
            return self._look_again(outcome)
        return failures.placed_by_names(self._script, outcome)

    def _has_place(self, failure: Failure) -> bool:
        """The place of the failure is known, or there is none."""
        if failure.place is not Place.STATEMENT or failure.ending is not Ending.ERROR:
            return True
        if failure.sqlstate in (*RETRYABLE, SAVEPOINT_GONE):
            return True
        script = self._script
        if script.statement_count == 0:
            return True
        # Of one statement it is known, unless it dislikes our semicolon or its own modes.
        is_alone = script.statement_count == 1 and script.begin_sql == "BEGIN"
        return is_alone and failure.sqlstate != SYNTAX_ERROR

    def _can_look_again(self, took_s: float) -> bool:
        """There is time, and running the statements once more does nothing that stays."""
        if self._session.deadline.left < SECOND_LOOK_S + 4 * took_s:
            return False
        with suppress(psycopg2.Error):  # the script's own error is what counts
            reach = outside.Reach.of(self._session)
            return not reach.names and not reach.call_in(self._script)
        return False

    def _look_again(self, first: Failure) -> Failure:
        """Find the statement that failed: run them one by one, and roll all of them back.

        The first failure is the one that counts. A second one tells its place if it is the same.
        """
        messages = self._messages(self._opening_sql(), by_statement=True, closing_sql=PROOF_SQL)
        second = send(self._session, self._script, messages)
        if isinstance(second, Success):
            self._session.roll_back()
            if failures.is_about_another_table(self._script, first):
                return replace(first, place=Place.END)  # ours
        elif second.sqlstate == SYNTAX_ERROR == first.sqlstate:
            return second  # without our semicolon, which the first one may be about
        elif second.sqlstate == first.sqlstate:
            return replace(second, error=first.error)
        return failures.placed_by_names(self._script, first)

    def _run_once(self, by_statement: bool) -> Union[Success, Failure]:
        """One message for the whole script; or several, for what cannot go in one, or to know the
        failing statement.

        The release of our savepoint is the proof that the script was one transaction: had it ended
        ours, the savepoint would be gone (3B001).
        """
        script = self._script
        opening = self._opening_sql()
        if by_statement or script.pieces:
            messages = self._messages(opening, by_statement)
            return self._unless_recorded(send(self._session, script, messages))
        text = opening + script.body_sql() + self._closing_sql()
        message = Message(-len(opening), text, script.first_offset)
        return self._unless_recorded(send(self._session, script, [message]))

    def _opening_sql(self) -> str:
        begin_sql = self._session.start_transaction(self._script.begin_sql)
        # What is prepared in a session outlives the transaction of a first attempt.
        return f"{begin_sql}; DEALLOCATE ALL; {SCRIPT_SETTINGS_SQL}; SAVEPOINT {SAVEPOINT};\n"

    def _messages(
        self, opening: str, by_statement: bool, closing_sql: str = ""
    ) -> Iterator[Message]:
        script = self._script
        own_begin = (s.start for s in script.left_out if not s.is_meta_command)
        yield of_ours(script, opening, fallback=min(own_begin, default=script.first_offset))
        last = script.first_offset
        for start, end, rows in script.pieces_to_send(by_statement):
            last = start
            yield part_of(script, start, end, rows)
        closing_sql = closing_sql or self._closing_sql()
        yield of_ours(script, closing_sql, at_end=True, fallback=last)

    def _closing_sql(self) -> str:
        return f"{PROOF_SQL}; {self._record.final_sql()}"

    # --- Step by step -------------------------------------------------------------------------

    def _run_in_steps(self) -> Outcome:
        """Run the script's steps, each with its mark, so that the next run resumes after the last
        one that is done.

        What belongs to the session (a SET, a PREPARE) the next run needs again.
        """
        session = self._session
        # A first attempt may have left another role and path.
        session.query(f"{OWN_ROLE_SQL}; DEALLOCATE ALL; SET search_path = pg_catalog")
        marks = self._marks.read(session)
        if self._marks.may_restart and not self._fit(marks):
            marks = {}
        session.query(SCRIPT_SETTINGS_SQL)
        number = 0
        untried: list[str] = []
        for number, (begin, statements) in enumerate(units(self._script), 1):
            checksum = checksum_of(self._script, statements)
            step = Step(number, begin, statements, checksum, marks.get(number))
            session.activity.about = {**session.activity.about, "line": step.first.line}
            outcome = self._resume_step(step)
            if isinstance(outcome, Failure):
                line = step.first.line if len(statements) > 1 else 0
                return replace(outcome, step=FailedStep(is_first=number == 1, line=line))
            if isinstance(outcome, NotTried):
                untried += outcome.reasons
        if marks and max(marks) > number:
            return _refused(RUN_AND_REMOVED, len(self._script.text))
        outcome = self._unless_recorded(send(session, self._script, [self._end_message()]))
        if isinstance(outcome, Failure):
            return replace(outcome, step=FailedStep(is_first=False))
        if untried and isinstance(outcome, Success):
            return NotTried(tuple(untried), outcome.kept_lock)
        return outcome

    def _fit(self, marks: Mapping[int, Mark]) -> bool:
        """The marks are of steps that the script still has."""
        steps = enumerate(units(self._script), 1) if marks else ()
        known = {number: checksum_of(self._script, each) for number, (_, each) in steps}
        return all(known.get(number) == mark.checksum for number, mark in marks.items())

    def _end_message(self) -> Message:
        begin_sql = self._session.start_transaction("BEGIN READ WRITE")
        forget_sql = self._marks.forget_sql(self._session)
        opening = f"{begin_sql}; {AS_OURSELVES_SQL}; {forget_sql}"
        return of_ours(self._script, f"{opening}; {self._record.final_sql()}", at_end=True)

    def _resume_step(self, step: Step) -> Outcome:
        """Run the step, or of one that is done only what the session needs again."""
        if step.mark and step.mark.checksum != step.checksum:
            refusal = RUN_AND_EDITED if step.mark.done else BEGUN_AND_EDITED
            return _refused(refusal, step.first.start)
        of_session = [s for s in step.statements if belongs_to_session(self._script, s)]
        is_done = step.mark is not None and step.mark.done
        is_only_of_session = of_session == step.statements and not step.begin
        if is_done:
            gone = self._gone_with_its_session(step)
            if gone:
                return _refused(GONE.format(gone.words[0]), gone.start)
        if not is_done and not is_only_of_session:
            return self._run_step(step)
        if not of_session:
            return Success()
        again = [as_written(self._script, statement) for statement in of_session]
        return send(self._session, self._script, [*again, of_ours(self._script, "SELECT true")])

    def _gone_with_its_session(self, step: Step) -> Optional[Statement]:
        """What an earlier run made for its session alone, and the rest of the script names."""
        rest = self._script.text[step.statements[-1].end :]
        for statement in step.statements:
            if not statement.creates_session_object:
                continue
            names = [token.strip('"') for token in statement.tokens if re.match('["\\w]', token)]
            words = [name for name in names if name.upper() not in NOT_A_NAME]
            if words and re.search(rf"(?<!\w){re.escape(words[0])}(?!\w)", rest, re.IGNORECASE):
                return statement
        return None

    def _run_step(self, step: Step) -> Outcome:
        """Run a step and its mark in one transaction or, where PostgreSQL refuses that, the mark
        after it.
        """
        if isinstance(self._session, Rehearsal):
            return self._rehearse_step(self._session, step)
        if step.mark:  # it began outside a transaction: only what cannot run in one does
            return self._run_outside(step)
        done_sql = self._marks.done_sql(self._session, step.number, step.checksum)
        begin_sql = step.begin or "BEGIN"
        outcome = self._run_in_transaction(step, begin_sql, f"{done_sql}; COMMIT; SELECT true")
        if isinstance(outcome, Success):
            return outcome
        if outcome.sqlstate == READ_ONLY:  # nothing is written, so a second run does no harm
            marking_sql = f"COMMIT; BEGIN READ WRITE; {done_sql}; COMMIT; SELECT true"
            return self._run_in_transaction(step, begin_sql, marking_sql)
        if outcome.sqlstate in (IN_TRANSACTION, COMMITS_ITSELF) and not step.begin:
            return self._run_outside(step)
        return outcome

    def _run_outside(self, step: Step) -> Union[Success, Failure]:
        return nontransactional.run_outside(self._session, self._script, step, self._marks)

    def _run_in_transaction(
        self, step: Step, opening_sql: str, closing_sql: str
    ) -> Union[Success, Failure]:
        script = self._script
        opening = f"{opening_sql}; "
        closing = f"\n;{closing_sql}"
        start = step.first.start
        is_long = step.statements[-1].end - start > sql_scanner.ONE_MESSAGE
        if is_long or any(each.data or each.changes_string_syntax for each in step.statements):
            each = (as_written(script, statement) for statement in step.statements)
            ends = of_ours(script, opening), of_ours(script, closing)
            return send(self._session, script, itertools.chain(ends[:1], each, ends[1:]))
        text = opening + script.body_sql(start, step.statements[-1].end) + closing
        outcome = send(self._session, script, [Message(start - len(opening), text, start)])
        if isinstance(outcome, Success) or outcome.place is Place.EXACT:
            return outcome
        if outcome.ending is Ending.LOST:
            return outcome
        placed = failures.placed_by_names(script, outcome, step.statements)
        return outcome if placed.place is Place.UNKNOWN else placed

    # --- In a dry run -------------------------------------------------------------------------

    def _rehearse_step(self, session: Rehearsal, step: Step) -> Outcome:
        """Run a step in a savepoint, with no mark, which would have to change the script's role."""
        closing_sql = f"SET CONSTRAINTS ALL IMMEDIATE; {session.commit_sql()}; SELECT true"
        outcome = self._run_in_transaction(step, session.start_transaction(step.begin), closing_sql)
        if isinstance(outcome, Success):
            session.defer_constraints()
            modes = " ".join(step.begin.split()[1:])
            why = f"asks for {modes}" if modes else ""
        else:
            why = self._why_not_tried(step, outcome)
        return NotTried((f"line {step.first.line} {why}",)) if why else outcome

    def _why_not_tried(self, step: Step, failure: Failure) -> str:
        """Why a step failed that would not fail in a migration; empty where it would."""
        text = step.text(self._script)
        if failure.sqlstate in (IN_TRANSACTION, COMMITS_ITSELF):
            modes = ISOLATION.search(f"{step.begin} {text}")
            if modes:
                return f"asks for {modes.group()}"
            return "" if step.begin else "runs outside a transaction"
        if failure.sqlstate == NEW_ENUM_VALUE and not ADD_VALUE.search(text):
            return "uses an enum value that this run adds"
        return ""


def recording_sql(session: Session, record_sql: str) -> str:
    """The end of a script's last transaction: the session is put back, the record written.

    The next script finds the session as a new one would be: psql, started for each file, is the
    model.
    """
    return (
        f"{OWN_ROLE_SQL}; RESET ALL; DEALLOCATE ALL; UNLISTEN *; "
        f"{session.settings_sql()}"
        f"{record_sql}; {session.commit_sql()}; "
    )


def after_commit_sql(question_sql: str, check_sql: str) -> str:
    """Looks at the session after a script, and asks a question: the answers are part of the
    outcome.

    Cursors and temporary tables go after the COMMIT, which may still find fault with them.
    """
    return (
        "CLOSE ALL; DISCARD TEMP; DISCARD SEQUENCES; DISCARD PLANS; "
        f"SELECT s.*, ({question_sql}) FROM ({check_sql}) s"
    )


def as_rehearsed(outcome: Outcome, script: Script) -> Outcome:
    """The outcome of a whole file in a dry run: what fails for being in one transaction with
    others is only not tried.
    """
    if isinstance(outcome, Failure):
        adds_values = script.no_transaction or ADD_VALUE.search(script.text)
        if outcome.sqlstate == NEW_ENUM_VALUE and not adds_values:
            return NotTried(("it uses an enum value that this run adds",))
        return outcome
    reasons = [f"it asks for {modes.group()}" for modes in ISOLATION.finditer(script.begin_sql)]
    if isinstance(outcome, NotTried):
        reasons += outcome.reasons
    return NotTried(tuple(reasons), outcome.kept_lock) if reasons else outcome


def _refused(why: str, offset: int) -> Failure:
    return Failure(
        refusal=why, offset=offset, ending=Ending.REFUSED, step=FailedStep(is_first=False)
    )


def units(script: Script) -> Iterator[tuple[str, list[Statement]]]:
    """The statements of each step, and the BEGIN that the script gives it (empty: none).

    Around a script that commits by itself, psql -1 has opened a transaction, and closes what is
    open at the end. A BEGIN inside a transaction changes nothing.
    """
    own_begin = "BEGIN" if script.commits_in_line else ""
    together: list[Statement] = []
    for statement in script.statements():
        control = statement.transaction_control
        if control == "BEGIN":
            if not together:
                own_begin = " ".join(["BEGIN", *sql_scanner.opening_modes(statement)])
        elif control == "COMMIT":
            if not own_begin:
                log("COMMIT with nothing open", logging.WARNING, line=statement.line)
            if together:
                yield own_begin, together
            if not sql_scanner.chains(statement):
                own_begin = ""
            together = []
        elif own_begin:
            together.append(statement)
        else:
            yield "", [statement]
    if together:
        yield own_begin, together


def first_checksum(script: Script) -> str:
    """Of the script's first step; empty if it has none."""
    for _, statements in units(script):
        return checksum_of(script, statements)
    return ""


def checksum_of(script: Script, statements: Sequence[Statement]) -> str:
    """Of a step."""
    return sql_scanner.checksum("; ".join(map(script.statement_sql, statements)))


def belongs_to_session(script: Script, statement: Statement) -> bool:
    """It changes the session, not the database."""
    if statement.is_session_setting or statement.words[0] in ("PREPARE", "DEALLOCATE", "LOAD"):
        return True
    return SET_CONFIG.match(script.text, statement.start) is not None

"""The handler: brings a PostgreSQL database to the state that the SQL files in `migrations/`
describe.

Order of work of a migration, each step one call of `migrate` and of what it calls:

    load_setup            reports every mistake in variables and secrets together
    Session.open          to the database's own endpoint, over TLS; waits while it starts or resumes
    nothing_to_do         compares the tracking table with the folder; the run may end here
    acquire_lock          one run at a time
    plan_pending          makes or adopts the tracking table; refuses what cannot work
    ensure_groups         before the files, so that a file may GRANT to them
    apply_pending         each pending file and its tracking row in one transaction
    ensure_users          the limited users, their credentials written to their secrets

The other actions, dry_run, rotate and status, follow it. The other modules:

    common           errors, log, deadline           config           variables, secrets, folder
    database         how to connect                  secret_store     Secrets Manager
    session          the lock, transactions          tracking         the tracking table
    watcher          stops a session in time         migration_files  the folder, texts, checksums
    rehearsal        the session of a dry run        file_names       numbers, versions, order
    planning         which file is which row         limited_users    roles and logins
    sql_scanner      SQL text into statements        failures         what to say of an error
    script_runner    runs a script in a session      masking          what must not be said
    boundary         whom the admin trusts           report           what to say at the end

A request of CloudFormation itself is a migration too: custom_resource answers it there.
The script runner has modules of its own: sending, nontransactional, outside, marks, outcomes; the
session has kept_types.

Errors, all of them InitializerError, so that a deployment fails and says why:

    ConfigError           a variable or a secret; nothing has been touched
    ConnectError          the database cannot be reached or stopped answering
    LockError             another run is at work and does not end
    MigrationError        a file; the message begins with file:line:column
    UserError             a role or a login
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import boundary
import custom_resource
import failures
import file_names
import limited_users
import migration_files
import planning
import psycopg2
import script_runner
import secret_store
import sql_scanner
import tracking
from common import (
    ConfigError,
    ConnectError,
    Credentials,
    Deadline,
    InitializerError,
    LockError,
    MigrationError,
    OvertakenError,
    UserError,
    log,
    set_up_logging,
    shortened,
)
from config import Setup, kept_credentials, load_setup
from database import Login
from limited_users import Kind, LimitedUsers, StoredLogin
from marks import Marks
from migration_files import Migration
from outcomes import CANCELLED, LOCK_TIMEOUT, Failure, NotTried, Outcome, Success
from outside import Reach
from planning import Plan
from psycopg2 import sql
from rehearsal import Rehearsal
from report import Report
from secret_store import Secret
from session import LOCK_KEY, RETRYABLE, Session
from sql_scanner import Script
from tracking import State, TablesFound

__version__ = "1.1.0"
__all__ = [
    "ConfigError",
    "ConnectError",
    "InitializerError",
    "LockError",
    "MigrationError",
    "UserError",
    "handler",
]

MIGRATIONS_DIR = Path(__file__).resolve().with_name("migrations")


# --- The run ----------------------------------------------------------------------------------


def handler(event: Any, context: Any, login: Optional[Login] = None) -> dict[str, Any]:
    """Lambda's entry point.

    Returns the report, plain JSON; raises InitializerError, so that the deployment fails.

    The terminal may bring the admin's `login`; then no secret is read, and no user made.
    """
    if custom_resource.is_request(event):
        return custom_resource.answer(event, context, handler)
    started = time.monotonic()
    set_up_logging()
    report = Report(__version__)
    failure: Optional[BaseException] = None
    try:
        run(os.environ, event, context, report, login)
    except InitializerError as exc:
        failure = exc
        raise
    except Exception as exc:
        failure = unexpected_error(exc, report)
        raise failure from exc
    except BaseException as exc:
        failure = exc
        raise
    finally:
        forget_answers(failure)
        report.duration_ms = milliseconds_since(started)
        report.log_end(failure)
    return report.as_json()


def run(
    environ: Mapping[str, str],
    event: Any,
    context: Any,
    report: Report,
    login: Optional[Login] = None,
) -> None:
    """One invocation from beginning to end; everything it opened is closed."""
    report.action = asked_action(event)
    deadline = Deadline.from_context(context)
    setup = load_setup(environ, deadline, MIGRATIONS_DIR, login)
    report.database = str(setup.login)
    log("starting", version=__version__, database=setup.login, files=len(setup.files))
    report.warn(setup.warnings)
    session_kind = Rehearsal if report.action == "dry_run" else Session
    session = session_kind(setup.login, deadline, setup.config.lock_timeout_ms)
    session.limited_roles = setup.config.limited_roles
    request_id = str(getattr(context, "aws_request_id", ""))
    this_run = Run(setup, session, report, request_id)
    try:
        with errors_explained(this_run):
            answer = session.open(tracking.tables_question(setup.config))
            ACTIONS[report.action](this_run, TablesFound(*answer))
    finally:
        session.close()
        tried = [entry["name"] for entry in report.details.get("tried", [])]
        report.pending = tried + session.pending
        report.lock_wait_ms = session.lock_wait_ms


@dataclass
class Run:
    """One invocation: what was asked for, the session that does it, and what will be said of it.

    What has been done so far is known to the session alone.
    """

    setup: Setup
    session: Session
    report: Report
    request_id: str = ""  # of Lambda: the same where an event is delivered twice
    recorded: list[str] = field(default_factory=list)  # in the tracking table, in its order
    orphans: Sequence[str] = ()  # of these, those without a file
    first_after_adopted: str = ""  # the first file to run where all that is recorded was adopted

    @cached_property
    def watch(self) -> boundary.Watch:
        return boundary.Watch(tracking.our_tables_question(self.setup.config))

    @cached_property
    def users(self) -> LimitedUsers:
        return LimitedUsers(self.session, self.setup.application, self.password_tag)

    @property
    def password_tag(self) -> str:
        """What a password ends with that this event has made; empty outside of Lambda."""
        request_id = self.request_id.encode()
        return hashlib.sha256(request_id).hexdigest()[:12] if request_id else ""

    def has_made(self, value: Optional[Credentials]) -> bool:
        """This event, delivered before, has made the password."""
        password = str((value or Credentials()).get("password"))
        return self.password_tag != "" and password.endswith(self.password_tag)

    def warn_of_users(self) -> None:
        """What limited users did to themselves, and who else is a member of their roles."""
        kept = kept_credentials(self.setup).values()
        known = [str((value or Credentials()).get("username")) for value in kept]
        self.report.warn([*self.users.warnings, *self.users.outsiders(known)])


def migrate(run: Run, found: TablesFound) -> None:
    """Bring the database to the state of the folder."""
    if nothing_to_do(run, found):
        return
    run.session.acquire_lock()
    pending = plan_pending(run)
    apply_pending(run, pending)
    ensure_users(run)


def nothing_to_do(run: Run, found: TablesFound) -> bool:
    """Database and users are as they should be: the lock need not be taken."""
    state = run.session.with_retries(
        lambda: tracking.read_state(run.session, run.setup.config, found)
    )
    plan = planning.make_plan(run.setup.files, state.rows)
    run.session.pending = [name for name, _ in plan.pending]
    if not state.is_complete(plan):
        return False
    users: dict[str, str] = {}
    if run.setup.config.create_users:
        logins = run.users.working_logins(kept_credentials(run.setup))
        if logins is None:
            return False
        users = logins
    refuse_edited(run, plan)
    warn_of_oddities(run, state, plan)
    run.warn_of_users()
    run.report.users = users
    return True


def plan_pending(run: Run) -> list[Pending]:
    """The files that are to be applied, with the tracking table and the groups ready for them.

    What cannot work is refused before anything has run.
    """
    if run.setup.config.create_users:
        run.users.refuse_roles_of_others()
    state, plan = prepare_tracking(run)
    run.session.pending = [name for name, _ in plan.pending]
    if move_marks_of_renamed_files(run, state, plan):
        state, plan = read_state_and_plan(run)
    refuse_edited(run, plan)
    warn_of_oddities(run, state, plan)
    pending = [scan_file(run, name, file, state, plan) for name, file in plan.pending]
    for one in pending:
        run.report.warn(migration_files.oddities(one.name, one.script))
    run.session.with_retries(lambda: tracking.record_renames(run.session, run.setup.config, plan))
    ensure_groups(run)
    if run.setup.config.create_users and pending:
        run.users.note_unreadable()
    names = {row.id: row.name for row in state.rows}
    for row, file in plan.renumbered:
        names[row.id] = planning.renamed_to(row, file)
    run.recorded = list(names.values())
    run.orphans = plan.orphans
    if pending and state.rows and all(row.adopted for row in state.rows):
        run.first_after_adopted = pending[0].name
    return pending


def prepare_tracking(run: Run) -> tuple[State, Plan]:
    """Our tables as this version makes them, with a row for each file that an existing database
    contains already.
    """
    session = run.session
    config = run.setup.config
    state, plan = session.with_retries(lambda: read_state_and_plan(run))
    if not state.is_current:
        before = state
        adopted, warning = session.with_retries(
            lambda: tracking.ensure_tracking(session, run.setup, before), tables=config.tables
        )
        note_adopted(run, adopted, warning)
        state, plan = read_state_and_plan(run)
    revoke_rights_on_our_tables(run, state.excess)
    if plan.example:
        tracking.remove_example(session, config, plan.example)
        run.report.warn(
            ["the example was replaced: its empty tables users and products were dropped"]
        )
        state, plan = read_state_and_plan(run)
    if plan.filled:
        tracking.forget(session, config, plan.filled)
        names = shortened([row.name for row in plan.filled])
        run.report.warn([f"recorded without a statement, and filled in since: {names}"])
        state, plan = read_state_and_plan(run)
    if state.rows:
        tracking.refuse_example([file for _, file in plan.pending])
    if config.baseline:
        adopted, warning = tracking.adopt_up_to_baseline(session, run.setup, state, plan)
        note_adopted(run, adopted, warning)
        if adopted:
            state, plan = read_state_and_plan(run)
    return state, plan


def read_state_and_plan(run: Run) -> tuple[State, Plan]:
    """What our tables hold, and what of the folder is not applied yet.

    Refuses to run a file where others have put into its search path what hides PostgreSQL's own.
    """
    session = run.session
    config = run.setup.config
    found = TablesFound(*session.query(tracking.tables_question(config, before_files=True))[0])
    state = tracking.read_state(session, config, found)
    plan = planning.make_plan(run.setup.files, state.rows)
    complaint = boundary.hiding_complaint(found.hiding, session.login.username)
    if complaint and plan.pending:
        raise MigrationError(complaint)
    return state, plan


def revoke_rights_on_our_tables(run: Run, statements: Sequence[str]) -> None:
    """Revoke the rights of others on our tables."""
    if not statements:
        return
    closing = sql.SQL("; ".join(statements))
    run.session.with_retries(lambda: run.session.query_in_transaction(closing))
    text = "rights on our tables that nobody should have were taken back"
    run.report.warn(f"{text}: {statement}" for statement in statements)


def apply_pending(run: Run, pending: Sequence[Pending]) -> None:
    """Apply the files in order.

    Where one has changed the session, the next one gets a new session.
    """
    remaining = list(pending)
    while remaining:
        started = time.monotonic()
        one = with_text(run.session, remaining.pop(0))
        outcome = apply_migration(run, one, more_follow=bool(remaining))
        if isinstance(outcome, Failure):
            raise failed(run, one, outcome)
        note_applied(run, one.name, started)
        one.script.forget_text()
        if isinstance(outcome, Success):
            tables, row_count = outcome.answer
            undo_changes_of_our_tables(run, one.name, tables)
            if row_count < len(run.recorded):
                restore_rows(run, one.name)
        if not outcome.kept_lock:
            text = "a migration released the lock, which is taken again"
            log(text, logging.WARNING, migration=one.name)
        is_fresh = isinstance(outcome, Success) and outcome.is_fresh
        session_serves = outcome.kept_lock and (is_fresh or not remaining)
        if not session_serves and not resume_in_new_session(run, remaining):
            run.session.acquire_lock()
            remaining = plan_pending(run)


def undo_changes_of_our_tables(run: Run, name: str, answer: Sequence[Any]) -> None:
    """Undo what a file has done to our tables, such as GRANT … ON ALL TABLES or REASSIGN OWNED."""
    session = run.session
    done: list[str] = []
    for table in run.watch.take(session, answer):
        done += table.repairs()
    if not done:
        return
    repairs = sql.SQL("; ".join(done))
    ours = run.setup.config.tables
    session.with_retries(lambda: session.query_in_transaction(repairs), tables=ours)
    ((found,),) = session.query(tracking.our_tables_question(run.setup.config))
    excess = [statement for table in boundary.tables(found).values() for statement in table.excess]
    if excess:  # a new owner has the rights that the old one gave
        session.query_in_transaction(sql.SQL("; ".join(excess)))
    text = f"{name} changed who may do what with our tables, which was undone"
    run.report.warn(f"{text}: {statement}" for statement in dict.fromkeys(done + excess))


def restore_rows(run: Run, name: str) -> None:
    """Put back what a file has removed from our table: without its row, a file would run again."""
    still_there = [known for known in run.recorded if known not in run.orphans]
    lost = tracking.restore_rows(run.session, run.setup.config, still_there)
    text = f"{name} removed rows of our table, without which files run again; they were put back"
    if lost:
        run.report.warn([f"{text}: {shortened(lost)}"])
    run.recorded = [known for known in still_there if known not in lost] + lost


def resume_in_new_session(run: Run, remaining: Sequence[Pending]) -> bool:
    """Go on in a new session, if that has the lock and the plan still holds.

    It does if nobody has recorded anything since, no file can have run in part, and strings are
    read as before.
    """
    question = tracking.unchanged_question(run.setup.config)
    has_lock, (recorded, no_marks) = run.session.resume(question)
    is_same = file_names.normal(recorded) == "/".join(run.recorded)
    backslashes = reads_backslashes(run.session)
    reads_as_before = all(one.script.backslash_escapes is backslashes for one in remaining)
    return has_lock and no_marks and is_same and reads_as_before


def note_adopted(run: Run, names: Sequence[str], warning: str) -> None:
    run.report.adopted += names
    if warning:
        run.report.warn([warning])


def note_applied(run: Run, name: str, started: float) -> None:
    duration_ms = milliseconds_since(started)
    run.session.applied.append(name)
    run.session.activity.blocked_by = ()
    run.session.pending.remove(name)
    run.recorded.append(name)
    run.report.applied.append({"name": name, "duration_ms": duration_ms})
    log("applied", migration=name, duration_ms=duration_ms)


def ensure_groups(run: Run) -> None:
    """The group roles and their rights, if users are wanted."""
    if run.setup.config.create_users:
        for role in run.users.ensure_groups():
            log("group role created", role=role)


def ensure_users(run: Run) -> None:
    """After the files: the groups again, since a file may have granted too much, and the logins."""
    ensure_groups(run)
    run.report.warn(run.users.newly_unreadable())
    run.report.users = ensure_logins(run, run.users.ensure_login)
    run.warn_of_users()


# --- What the run finds before it applies anything --------------------------------------------


def asked_action(event: Any) -> str:
    """A CDK trigger sends no event, the console {}: both mean a migration."""
    if event is None or event == {}:
        return "migrate"
    asked = event if isinstance(event, dict) else {}
    action = asked.get("action")
    if isinstance(action, str) and action in ACTIONS:
        return action
    what = f"action {action!r:.60}" if "action" in asked else "this event"
    raise ConfigError(
        f'{what} is not for db_setup: send {{}}, or {{"action": …}} with one of '
        f"{', '.join(ACTIONS)}. Nothing has been touched."
    )


def move_marks_of_renamed_files(run: Run, state: State, plan: Plan) -> bool:
    """Marks of a file that ran in part follow it to its new name: it begins with the same step."""
    gone = gone_files_that_ran_in_part(state, plan)
    if not gone:
        return False
    beginnings = {}
    for name, file in plan.pending:
        one = with_text(run.session, scan_file(run, name, file, state, plan))
        checksum = script_runner.first_checksum(one.script)
        one.script.forget_text()
        in_steps = one.script.no_transaction or one.script.statement_count == 1
        if in_steps and file.name not in state.unfinished and checksum:
            beginnings[checksum] = file.name
    return tracking.move_marks(run.session, run.setup.config, gone, beginnings)


class Pending(NamedTuple):
    """A file that is to be applied, and recorded as `name`."""

    name: str
    migration: Migration
    script: Script


def scan_file(run: Run, name: str, migration: Migration, state: State, plan: Plan) -> Pending:
    """The file, looked through once in a run.

    Its text is read again later: memory stays that of one file.
    """
    backslashes = reads_backslashes(run.session)
    scripts = run.setup.scripts
    script = scripts.get((migration, backslashes))
    if script is None:
        script = migration_files.load_script(migration, run.setup.config.tables, backslashes)
        if len(plan.pending) > 1:
            script.forget_text()
        scripts[migration, backslashes] = script
    if migration.name in state.unfinished:
        script = replace(script, no_transaction=True)
    return Pending(name, migration, script)


def reads_backslashes(session: Session) -> bool:
    """'…' is read as E'…', as on a server that is set up for old applications."""
    return session.parameter("standard_conforming_strings") == "off"


def refuse_edited(run: Run, plan: Plan) -> None:
    """Raise MigrationError for files that were edited after they had been applied."""
    if not plan.edited or run.setup.config.allow_edited:
        return
    row, file = plan.edited[0]
    when = tracking.applied_at(run.session, run.setup.config, row)
    if len(plan.edited) > 1:
        when = f"the first {when}"
    names, edited = edited_files(plan)
    raise MigrationError(
        f"{names}: {edited} ({when}), which has no effect on this database. Nothing has "
        "been applied. Restore what was applied, and put the change (git log -p -- "
        f"'*{file.path.name}' shows it) into a new "
        'file; or accept the difference with ALLOW_EDITED_MIGRATIONS="true".'
    )


def edited_files(plan: Plan) -> tuple[str, str]:
    """Their names, and what is wrong with each."""
    names = shortened([file.path.name for _, file in plan.edited])
    if len(plan.edited) > 1:
        return names, "edited after they were applied"
    return names, "edited after it was applied"


def warn_of_oddities(run: Run, state: State, plan: Plan) -> None:
    """Warn of what is odd about rows and files, but does not stop a run."""
    warnings = list(plan.warnings)
    for name in gone_files_that_ran_in_part(state, plan):
        remedy = "put it back, or undo in a new file what it did"
        warnings.append(
            f"{name} has run in part, but its file is gone or has another name: {remedy}"
        )
    if plan.edited:
        names, edited = edited_files(plan)
        warnings.append(f"{edited}, without effect: {names}")
    run.report.warn(warnings)
    if plan.orphans and not run.session.applied:  # said before the first file
        log("applied, but not in the folder", migrations=shortened(plan.orphans))


def gone_files_that_ran_in_part(state: State, plan: Plan) -> list[str]:
    known = {row.name for row in state.rows} | {file.name for _, file in plan.pending}
    return sorted(set(state.unfinished) - known)


# --- Applying a file --------------------------------------------------------------------------


def apply_migration(run: Run, one: Pending, more_follow: bool) -> Outcome:
    """Apply a file and record it, both or neither; what blocks it for a moment is tried again.

    If `more_follow`, a session that is not as a new one would be releases the lock for the next
    session.
    """
    session = run.session
    config = run.setup.config
    if session.deadline.is_near:
        raise MigrationError(out_of_time_message(session, run.report.action))
    script = one.script
    marks = Marks(config.marks, one.migration.name)
    question_sql = tracking.after_file_question(config, run.watch).as_string(session.connection)
    with ThreadPoolExecutor(1) as other_thread:
        hashes: Callable[[], Sequence[str]] = partial(hashes_of, one.migration, script)
        if script.pieces:  # those of a long file are made while the server has work to do
            hashes = other_thread.submit(hashes).result
        if script.longest_piece > sql_scanner.ONE_MESSAGE:  # whose text is forgotten meanwhile
            hashes()
        # A long text is not searched: a new session costs less.
        may_set = bool(script.pieces or sql_scanner.CUSTOM_SETTING.search(script.text))

        def final_sql() -> str:
            record_sql = tracking.record_sql(session, config, one.name, hashes())
            # A row that the file has removed is restored while the lock is still held.
            release_if_sql = "false"
            if more_follow:
                release_if_sql = tracking.has_rows_sql(session, config, len(run.recorded) + 1)
            return script_runner.final_sql(
                session, record_sql, question_sql, more_follow and may_set, release_if_sql
            )

        runner = script_runner.ScriptRunner(session, script, marks, final_sql)
        with session.working_on(one.name):
            return runner.run(migration=one.name)


def with_text(session: Session, one: Pending) -> Pending:
    """The file with its text, and without the settings that only newer servers know."""
    script = one.script.without_settings_unknown_to(session.server_version)
    for setting in script.unknown_settings:
        phrase = "setting unknown to this server left out"
        if setting == sql_scanner.COLUMN_STAMP:
            phrase = "column stamps of another server left out"
        log(phrase, logging.WARNING, migration=one.name, setting=setting)
    return one._replace(script=script)


def hashes_of(migration: Migration, script: Script) -> tuple[str, str]:
    # First, since it leaves Python to the thread that talks to the server.
    sha256 = migration.sha256
    return script.checksum, sha256


def failed(run: Run, one: Pending, failure: Failure) -> MigrationError:
    """The error without PostgreSQL's own, which quotes what must not be shown."""
    failure = replace(failure, raised_by=run.session.raised_by(failure.error))
    error = MigrationError(failure_message(run, one, failure))
    error.sqlstate = failure.sqlstate
    return error


ALREADY_EXISTS = ("42P07", "42710", "42701", "42723", "42P06")


def failure_message(run: Run, one: Pending, failure: Failure) -> str:
    """file:line:column, what PostgreSQL said, the state, the next step: without row data."""
    script = one.script
    line, column = sql_scanner.locate(script.text, failure.offset)
    place = f"{one.migration.path.name}:{line}"
    if failure.exact:
        place = f"{place}:{column}"
    was_one_message = not failure.in_steps
    has_ended = failure.cancelled or failure.connection_lost
    if failure.anywhere or (has_ended and was_one_message):
        place = one.migration.path.name  # nothing tells how far the server was
    said = failures.describe(script, failure)
    extensions = run.session.extensions() if failure.sqlstate in failures.NAMES_NOTHING else {}
    blocked_by = run.session.activity.blocked_by
    state = failures.state_and_step(script, failure, blocked_by, extensions)
    not_recorded = tracking.why_not_recorded(run.setup.config, failure.error)
    if one.name == run.first_after_adopted and failure.sqlstate in ALREADY_EXISTS:
        state += (
            f" No run of a file is recorded here: {run.recorded[0]} was recorded without running, "
            f"because its tables existed. If {one.name} was applied as well, set "
            f'BASELINE="{one.name}", or a later file that the database has, and deploy again.'
        )
    if not_recorded:  # for which the file is not to blame
        place = one.migration.path.name
        said = not_recorded
        state = "The file ran, and is rolled back. Deploy again then."
        if failure.in_steps:
            state = "The file ran, and does not run again. Deploy again then."
    applied = shortened(run.session.applied) or "nothing"
    verdict = [f"{place}: {said}.", state, f"Applied in this run: {applied}."]
    not_tried = run.session.pending[1:]
    if not_tried:
        verdict.append(f"Not tried: {shortened(not_tried)}.")
    details = () if not_recorded else failures.details(script, failure)
    return "\n".join([" ".join(verdict), *details])


def out_of_time_message(session: Session, action: str) -> str:
    place = ""
    if session.current:
        place = f" in {session.current}: it is rolled back unless it had just finished"
    elif session.pending:
        place = f" before {session.pending[0]}: it was not started"
    applied = shortened(session.applied) or "nothing"
    waiting = shortened(session.pending)
    not_applied = f"Not applied: {waiting}." if waiting else "The rest is not done yet."
    go_on = "" if action == "dry_run" else " to go on"
    if session.activity.blocked_by:
        step = failures.step_outside_of_scripts(LOCK_TIMEOUT, "", session.activity.blocked_by)
        return f"out of time{place}. Applied in this run: {applied}. {not_applied} {step}."
    return (
        f"out of time{place}. Applied in this run: {applied}. {not_applied} Invoke again{go_on}; "
        "if one file needs longer than the function's timeout, raise that or split the file."
    )


def unexpected_error(exc: Exception, report: Report) -> InitializerError:
    """Of an error that is none of ours: its kind and place. Its text could hold a secret."""
    what = ""
    if isinstance(exc, OSError):
        what = f": {exc.strerror} ({exc.filename})"
    frames = traceback.extract_tb(exc.__traceback__)
    stack = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    log("unexpected error", logging.ERROR, kind=type(exc).__name__, stack=stack)
    applied = shortened([entry["name"] for entry in report.applied]) or "nothing"
    return InitializerError(
        f"unexpected {type(exc).__name__} at {stack[-1]} of db_setup {__version__}{what}. "
        f"Applied in this run: {applied}. Whatever was not finished is rolled back. "
        "Check what it names, and invoke again; the log has its stack."
    )


def forget_answers(error: Optional[BaseException]) -> None:
    """Take PostgreSQL's answers out of what an error was raised from: they can quote rows."""
    links = [error]
    for link in links:
        for name in ("__cause__", "__context__"):
            origin = getattr(link, name, None)
            if isinstance(origin, psycopg2.Error) and origin.pgcode:
                setattr(link, name, None)
            elif origin not in links:  # they can form a circle
                links.append(origin)


@contextmanager
def errors_explained(run: Run) -> Iterator[None]:
    """Whatever ends the run is an InitializerError, and says what is applied, and where the
    deadline was the reason.
    """
    session = run.session
    try:
        yield
    except InitializerError as exc:
        message = session.with_what_stays(str(exc))
        says_so_already = message.startswith("out of time") or isinstance(exc, LockError)
        if session.is_out_of_time and not says_so_already:
            message = f"out of time: {message}"
        exc.args = (message,)
        raise
    except psycopg2.Error as exc:
        if session.is_out_of_time:
            message = out_of_time_message(session, run.report.action)
            raise MigrationError(message) from exc
        place = f"{session.current}: " if session.current else ""
        kept = f"{session.what_stays} " if session.applied else ""
        said = failures.said_of_ours(exc, session.raised_by(exc))
        code = f" ({exc.pgcode})" if exc.pgcode else ""
        step = failures.step_outside_of_scripts(exc.pgcode or "", said, session.activity.blocked_by)
        functions = [name for name, _, _ in failures.FUNCTION.findall(exc.diag.context or "")]
        triggers = session.event_triggers(functions) if functions else []
        if triggers:
            step = failures.step_after_event_trigger(exc.pgcode or "", functions[0], triggers)
        kind = ConnectError if session.is_lost else InitializerError
        raise kind(
            f"{place}PostgreSQL: {said}{code}. Whatever was not finished is rolled back. "
            f"{kept}{step}."
        ) from exc


# --- Users and their secrets ------------------------------------------------------------------


EnsureLogin = Callable[[Kind, StoredLogin], tuple[str, str]]


def ensure_logins(run: Run, ensure_login: EnsureLogin) -> dict[str, str]:
    """A working login in each target secret; returns what was done, by login."""
    done: dict[str, str] = {}
    arns: list[str] = []
    try:
        client = run.setup.secrets_client
        if not secret_store.has_time_for_retries(run.session.deadline):
            client = secret_store.secrets_client(run.session.deadline)
        for kind, target in run.setup.user_secrets.items():
            # Another run may have written it meanwhile.
            secret = secret_store.read_secret(client, target.name)
            refuse_secret(run, secret, arns)
            stored = stored_login(run, client, secret, arns)
            # By this event, which can be delivered twice, or by another run.
            is_done = run.has_made(secret.value) or secret.value != target.value
            act = run.users.ensure_login if is_done else ensure_login
            while True:
                try:
                    name, what = act(kind, stored)
                    break
                except OvertakenError:
                    stored = replace(stored, value=stored.read())
                    act = run.users.ensure_login
            done[name] = what
            if what != "kept":
                log("login ready", login=name, secret=secret.name, state=what)
    except ConfigError as exc:
        raise UserError(f"{exc}. Its login was not changed; fix this and invoke again.") from exc
    return done


def refuse_secret(run: Run, secret: Secret, written: Sequence[str]) -> None:
    """Raise UserError for a secret that holds another login, whatever it is called here."""
    if secret.arn and secret.arn in (run.setup.admin_arn, *written):
        raise UserError(
            f"secret {secret.name} holds another login, the admin's or the other user's. It was "
            "not changed. Give each login a secret of its own."
        )


def stored_login(run: Run, client: Any, secret: Secret, arns: list[str]) -> StoredLogin:
    """The login as this secret stores it. The secret's ARN is known at last when it was written."""
    arns.append(secret.arn)
    latest = secret

    def read() -> Optional[Credentials]:
        nonlocal latest
        latest = secret_store.read_secret(client, secret.name)
        return latest.value

    def write(value: Credentials) -> None:
        if not isinstance(run.session, Rehearsal):
            arns.append(secret_store.write_secret(client, latest, value))

    return StoredLogin(
        secret.value,
        read=read,
        read_next=partial(secret_store.being_rotated, client, secret),
        write=write,
    )


# --- The other actions ------------------------------------------------------------------------


def dry_run(run: Run, found: TablesFound) -> None:
    """Do what a migration does, users included, in one transaction that is rolled back; no secret
    is written.

    The report gets each file's time, its locks, and what cannot be tried. All locks are held until
    the end.
    """
    session = run.session
    assert isinstance(session, Rehearsal)  # noqa: S101 - see run
    tried: list[dict[str, Any]] = []
    run.report.details["tried"] = tried
    if nothing_to_do(run, found):
        return
    log(
        "dry run: every lock is held until its end, so use a copy where that is too long",
        logging.WARNING,
    )
    session.acquire_lock()
    try:
        with session.rehearsing(run.setup.config.tables):
            pending = plan_pending(run)
            reach = Reach.of(session, counts_setval=session.has_sequences)
            for one in pending:
                tried.append(rehearse_migration(run, session, one, reach))
            ensure_users(run)
    except MigrationError as exc:
        untried = [
            f"{entry['name']} ({', '.join(entry['untried'])})"
            for entry in tried
            if entry["untried"]
        ]
        if not untried or exc.sqlstate in ("", CANCELLED, *RETRYABLE):
            raise
        hint = f"It may need what a dry run could not try: {'; '.join(untried)}."
        raise MigrationError(f"{exc}\n{hint}") from exc


def rehearse_migration(
    run: Run, session: Rehearsal, light: Pending, reach: Reach
) -> dict[str, Any]:
    """Try a file; returns what the report says of it.

    Raises LockError where the file lost the lock.
    """
    started = time.monotonic()
    one = with_text(session, light)
    call = reach.call_in(one.script)
    if call:
        outcome: Outcome = NotTried((f"it calls {call}, which nothing takes back",))
    else:
        outcome = apply_migration(run, one, more_follow=False)
    outcome = script_runner.as_rehearsed(outcome, one.script)
    if isinstance(outcome, Failure):
        raise failed(run, one, outcome)
    one.script.forget_text()
    session.defer_constraints()
    if (
        not outcome.kept_lock
        and not session.query(f"SELECT pg_try_advisory_lock({LOCK_KEY})")[0][0]
    ):
        raise LockError(
            f"{one.name} released the lock, and another run holds it now. Invoke again."
        )
    session.pending.remove(one.name)
    duration_ms = milliseconds_since(started)
    locks = session.new_locks()
    untried = list(outcome.reasons) if isinstance(outcome, NotTried) else []
    fields: dict[str, Any] = {"duration_ms": duration_ms}
    if locks:
        fields["locks"] = [f"{lock['lock']} on {lock['table']}" for lock in locks]
    if untried:
        fields["untried"] = untried
    log("tried", migration=one.name, **fields)
    return {"name": one.name, "duration_ms": duration_ms, "locks": locks, "untried": untried}


def rotate(run: Run, _: TablesFound) -> None:
    """New credentials in the target secrets; migrations are left alone."""
    if not run.setup.user_secrets:
        raise ConfigError(
            "there is nothing to rotate: CREATE_USERS is false, or neither DB_USER_SECRET_NAME "
            "nor DB_PROXY names a secret. Nothing has been touched."
        )
    run.session.acquire_lock()
    ensure_groups(run)
    run.report.users = ensure_logins(run, run.users.rotate_login)
    run.warn_of_users()


def status(run: Run, found: TablesFound) -> None:
    """Say what is applied, pending, edited and so on.

    Reads only: a login that may only read is enough.
    """
    session = run.session
    report = run.report
    session.query("SET default_transaction_read_only = on")
    state = tracking.read_state(session, run.setup.config, found)
    if state.columns is None:
        tracking.has_tables(session, run.setup)
    plan = planning.make_plan(run.setup.files, state.rows)
    history = tracking.history(session, run.setup.config, state)
    session.pending = [name for name, _ in plan.pending]
    report.warn(plan.warnings)
    report.users = dict(tried_logins(run))
    report.details = {
        "edited": [file.name for _, file in plan.edited],
        "renumbered": [{"name": file.name, "was": row.name} for row, file in plan.renumbered],
        "missing": list(plan.orphans),
        "duplicates": planning.duplicates(run.setup.files),
        "unfinished": list(state.unfinished),
        "running": [str(holder) for holder in session.lock_holders()],
        "server_version": session.parameter("server_version"),
    }
    # Last, since a failure would say that this run has applied them.
    report.applied = [{"name": name, "applied_at": at} for name, at, _ in history]
    report.adopted = [name for name, _, was_adopted in history if was_adopted]


def tried_logins(run: Run) -> Iterator[tuple[str, str]]:
    """What is to be said of each user: of the login in its secret, which is tried."""
    for kind, secret in run.setup.user_secrets.items():
        own_name = run.setup.application.login_name(kind)
        login = str((secret.value or Credentials()).get("username", own_name))
        if secret.complaint:
            yield login, f"secret {secret.name} {secret.complaint}"
            continue
        trial = run.users.tried(kind, secret.value)
        if trial.state == limited_users.NOT_TRIED:
            yield login, f"cannot be tried: {trial.reason}"
        elif trial.state == limited_users.WORKS:
            yield login, "works"
        else:
            yield login, "does not work; the next run repairs it"


ACTIONS: Mapping[str, Callable[[Run, TablesFound], None]] = {
    "migrate": migrate,
    "dry_run": dry_run,
    "rotate": rotate,
    "status": status,
}


def milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)

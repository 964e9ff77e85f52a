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
    keep_what_is_left     so that the next run can tell what others have changed since

The other actions are rotate, below; dry_run and, in overview, status and databases, each in a
module that is read when it is asked for. The other modules:

    common           errors, log, deadline           config           variables, secrets, folder
    database         how to connect                  secret_store     Secrets Manager
    session          the lock, transactions          tracking         the tracking table
    watcher          stops a session in time         migration_files  the folder, texts, checksums
    rehearsal        the session of a dry run        file_names       numbers, versions, order
    planning         which file is which row         limited_users    roles and logins
    sql_scanner      SQL text into statements        failures         what to say of an error
    script_runner    runs a script in a session      masking          what must not be said
    boundary         whom the admin trusts           report           what to say at the end
    drift            what others have changed

A request of CloudFormation itself is a migration too: custom_resource answers it there. A step of a
rotation by Secrets Manager is in rotation. The script runner has modules of its own: sending,
nontransactional, outside, marks, outcomes; the session has kept_types, a dry run effects and
pull_request.

Errors, all of them InitializerError, so that a deployment fails and says why:

    ConfigError           a variable or a secret; nothing has been touched
    ConnectError          the database cannot be reached or stopped answering
      RefusedError        it will answer the same again
    LockError             another run is at work and does not end
    MigrationError        a file; the message begins with file:line:column
      StoppedError        time, a lock or a lost connection: another run may succeed
    UserError             a role or a login
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import socket
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
import database
import dependents
import drift
import failures
import file_names
import migration_files
import planning
import psycopg2
import replication
import rotation
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
    StoppedError,
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
from outcomes import (
    LOCK_TIMEOUT,
    Ending,
    Failure,
    Outcome,
    Place,
    Success,
)
from planning import Plan, Row
from psycopg2 import sql
from rehearsal import Rehearsal
from report import Report
from secret_store import Secret
from session import RETRYABLE, Session
from sql_scanner import Script
from tracking import State

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

OurTables = Sequence[dict[str, Any]]  # what is known of them, see boundary.our_tables_question
Action = Callable[["Run", OurTables], None]
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
    event = event or {}
    variables = event.get("variables")
    deadline = Deadline.from_context(context)
    setup = load_setup(environ, deadline, MIGRATIONS_DIR, login, variables)
    setup = replace(setup, applied_by=who_runs(environ, context))
    report.database = str(setup.login)
    given: dict[str, Any] = {"variables": sorted(variables)} if variables else {}
    if setup.config.schema != "public":
        given["schema"] = setup.config.schema
    log("starting", version=__version__, database=setup.login, files=len(setup.files), **given)
    report.warn([*setup.warnings, *database.why_unverified(setup.login.endpoint.host)])
    session_kind = Rehearsal if report.action == "dry_run" else Session
    session = session_kind(setup.login, deadline, setup.config.lock_timeout_ms)
    session.schema = setup.config.schema
    session.limited_roles = setup.config.limited_roles
    request_id = str(getattr(context, "aws_request_id", ""))
    this_run = Run(setup, session, report, event, request_id)
    act = ACTIONS.get(report.action, rotation_step)
    try:
        with errors_explained(this_run):
            if event.get("create"):
                create_database(this_run)
            (found,) = session.open(tracking.our_tables_question(setup.config))
            act(this_run, found)
    finally:
        session.close()
        tried = [entry["name"] for entry in report.details.get("tried", [])]
        report.pending = tried + this_run.passed_over + session.pending
        report.lock_wait_ms = session.lock_wait_ms


def who_runs(environ: Mapping[str, str], context: Any) -> str:
    """The function's version and the request; elsewhere the user and the machine."""
    request_id = getattr(context, "aws_request_id", "")
    if request_id:
        known = (getattr(context, name, "?") for name in ("function_name", "function_version"))
        return f"{':'.join(known)}, request {request_id}"
    user = environ.get("USER") or environ.get("USERNAME") or "somebody"
    return f"{user}@{socket.gethostname()}"


@dataclass
class Run:
    """One invocation: what was asked for, the session that does it, and what will be said of it.

    What has been done so far is known to the session alone.
    """

    setup: Setup
    session: Session
    report: Report
    event: Any = None
    request_id: str = ""  # of Lambda: the same where an event is delivered twice
    recorded: list[str] = field(default_factory=list)  # in the tracking table, in its order
    orphans: Sequence[str] = ()  # of these, those without a file
    passed_over: list[str] = field(default_factory=list)  # older texts that do not work any more
    first_after_adopted: str = ""  # the first file to run where all that is recorded was adopted
    replication: Sequence[str] = ()  # what carries rows of this database elsewhere, without DDL
    ran_in_part: bool = False  # a file that failed, of which something stays

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


def migrate(run: Run, found: OurTables) -> None:
    """Bring the database to the state of the folder."""
    if nothing_to_do(run, found):
        return
    run.session.acquire_lock()
    try:
        pending = plan_pending(run)
        apply_pending(run, pending)
        ensure_users(run)
    finally:
        keep_what_is_left(run)


def nothing_to_do(run: Run, found: OurTables) -> bool:
    """Database and users are as they should be: the lock need not be taken."""
    state = run.session.with_retries(
        lambda: tracking.read_state(run.session, run.setup.config, found)
    )
    plan = planning.make_plan(run.setup.files, state.rows, state.unfinished)
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


def plan_pending(run: Run) -> list[PendingFile]:
    """The files that are to be applied, with the tracking table and the groups ready for them.

    What cannot work is refused before anything has run.
    """
    if run.setup.config.create_users:
        run.users.refuse_roles_of_others(kept_credentials(run.setup))
    state, plan = prepare_tracking(run)
    run.session.pending = [name for name, _ in plan.pending if name not in run.passed_over]
    if move_marks_of_renamed_files(run, state, plan):
        state, plan = read_state_and_plan(run)
    refuse_edited(run, plan)
    warn_of_oddities(run, state, plan)
    pending = [
        scan_file(run, name, file, state, plan)
        for name, file in plan.pending
        if name not in run.passed_over
    ]
    for each in pending:
        run.report.warn(migration_files.oddities(each.name, each.script))
    changing = [each.name for each in pending if each.script.has_ddl]
    run.report.warn(replication.warning(run.replication, changing))
    if pending and state.kept and not run.session.applied:
        look_for_drift(run, state.kept)
    run.session.with_retries(lambda: tracking.record_renames(run.session, run.setup.config, plan))
    ensure_groups(run)
    if run.setup.config.create_users and pending:
        run.users.note_beginning()
    names = {row.id: row.name for row in state.rows}
    for row, file in plan.renumbered:
        names[row.id] = planning.renamed_to(row, file)
    run.recorded = list(names.values())
    run.orphans = plan.orphans
    if pending and state.rows and all(row.adopted for row in state.rows):
        first = pending[0]
        run.first_after_adopted = "" if first.migration.is_repeatable else first.name
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
        found, adopted, warning = session.with_retries(
            lambda: tracking.ensure_tracking(session, run.setup, before)
        )
        note_adopted(run, adopted, warning)
        is_empty = before.columns is None and not (adopted or before.has_marks)
        state = tracking.read_state(session, config, found, is_empty)
        plan = planning.make_plan(run.setup.files, state.rows, state.unfinished)
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
    all_three = sql.SQL(f"SELECT ({{}}), ({{}}), {replication.ACTIVE_SQL}").format(
        tracking.our_tables_question(config), boundary.hiding_question(config.limited_roles)
    )
    ((found, hiding, run.replication),) = session.query(all_three)
    state = tracking.read_state(session, config, found)
    plan = planning.make_plan(run.setup.files, state.rows, state.unfinished)
    if plan.pending:
        boundary.refuse_hiding(hiding, session.login.username)
    return state, plan


def look_for_drift(run: Run, kept: boundary.Table) -> None:
    """Warn of what others have changed since the last run; with FAIL_ON_DRIFT raise MigrationError.

    The run that goes on keeps what it leaves, and that with it.
    """
    found = drift.compare(run.session, run.setup.config, kept)
    run.report.drift = found.count
    run.report.details.update(found.as_json())
    must_fail = run.setup.config.fail_on_drift
    if must_fail and found.count:
        raise MigrationError(
            f"the database is not as the last run left it: {found}",
            'Undo that by hand; or accept it in a run with FAIL_ON_DRIFT="false", such as by the '
            'event {"action": "migrate", "variables": {"FAIL_ON_DRIFT": "false"}}',
        )
    if found.count:
        run.report.warn([f"changed since the last run, by hand or by others: {found}"])
    elif must_fail and found.unknown:
        run.report.warn([f"FAIL_ON_DRIFT has no effect in this run: {found.unknown}"])


def keep_what_is_left(run: Run) -> None:
    """After what was applied or adopted, and after the users: for the next look for drift."""
    session = run.session
    has_changed = session.applied or run.report.adopted or run.ran_in_part
    if has_changed and session.holds_lock and not (session.is_lost or session.is_out_of_time):
        drift.keep(session, run.setup.config, run.watch, is_as_file_left=run.ran_in_part)


def revoke_rights_on_our_tables(run: Run, statements: Sequence[str]) -> None:
    """Revoke the rights of others on our tables."""
    text = "rights on our tables that nobody should have were taken back"
    repair_our_tables(run, statements, text)


def repair_our_tables(run: Run, statements: Sequence[str], text: str) -> None:
    """Undo changes of our tables; what is said to be undone was looked at again.

    Some are seen only then: a new owner has the rights that the old one gave.
    """
    session = run.session
    done: list[str] = []
    left = list(statements)
    while left and not set(left) <= set(done):
        repairs = sql.SQL("; ".join(left))
        session.with_retries(partial(session.query_all_or_none, repairs))
        done += left
        left = [repair for table in run.watch.look(session) for repair in table.repairs()]
    run.report.warn(f"{text}: {repair}" for repair in dict.fromkeys(done) if repair not in left)
    run.report.warn(f"our tables are still open to others after {repair}" for repair in left)


def apply_pending(run: Run, pending: Sequence[PendingFile]) -> None:
    """Apply the files in order.

    Where one has changed the session, the next one gets a new session.
    """
    remaining = list(pending)
    while remaining:
        started = time.monotonic()
        file = with_text(run.session, remaining.pop(0))
        outcome = apply_migration(run, file, more_follow=bool(remaining))
        if isinstance(outcome, Failure):
            run.ran_in_part = run.ran_in_part or bool(outcome.step)
            pass_over(run, file, outcome)
            run.session.pending.remove(file.name)
            run.passed_over.append(file.name)
            run.session.query("SELECT pg_catalog.pg_advisory_unlock_all()")
            remaining = go_on_in_new_session(run, remaining)
            continue
        assert isinstance(outcome, Success)  # noqa: S101 - only a dry run leaves a file untried
        note_applied(run, file.name, started)
        file.script.forget_text()
        undo_changes_of_our_tables(run, file.name, outcome.answer)
        plan_holds = outcome.holds or restore_rows(run, file.name)
        if not outcome.kept_lock:
            text = "a migration released the lock, which is taken again"
            log(text, logging.WARNING, migration=file.name)
        session_serves = outcome.kept_lock and (outcome.is_fresh or not remaining)
        if not session_serves:
            remaining = go_on_in_new_session(run, remaining)
        elif remaining and not plan_holds:
            remaining = plan_pending(run)


def undo_changes_of_our_tables(run: Run, name: str, answer: Sequence[Any]) -> None:
    """Undo what a file has done to our tables, such as GRANT … ON ALL TABLES or REASSIGN OWNED."""
    done = [repair for table in run.watch.take(run.session, answer) for repair in table.repairs()]
    text = f"{name} changed who may do what with our tables, which was undone"
    repair_our_tables(run, done, text)


def restore_rows(run: Run, name: str) -> bool:
    """Put back what a file has removed from our table: without its row, a file would run again.

    Says whether there are the rows then that this run knows, and no others.
    """
    still_there = [known for known in run.recorded if known not in run.orphans]
    lost, recorded = tracking.restore_rows(run.session, run.setup.config, still_there)
    text = f"{name} removed rows of our table, without which files run again; they were put back"
    if lost:
        run.report.warn([f"{text}: {shortened(lost)}"])
    run.recorded = [known for known in still_there if known not in lost] + lost
    return recorded == set(run.recorded)


def go_on_in_new_session(run: Run, remaining: list[PendingFile]) -> list[PendingFile]:
    """The files that are left then: others where another run has come in between."""
    if resume_in_new_session(run, remaining):
        return remaining
    run.session.acquire_lock()
    return plan_pending(run)


def resume_in_new_session(run: Run, remaining: Sequence[PendingFile]) -> bool:
    """Go on in a new session, if that has the lock and the plan still holds.

    It does if nobody has recorded anything since, no file can have run in part, and strings are
    read as before.
    """
    question = tracking.unchanged_question(run.setup.config)
    has_lock, (recorded, no_marks) = run.session.resume(question)
    is_same = file_names.normal(recorded) == "/".join(run.recorded)
    backslashes = reads_backslashes(run.session)
    reads_as_before = all(each.script.backslash_escapes is backslashes for each in remaining)
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
    run.recorded = [*(known for known in run.recorded if known != name), name]
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
    run.report.warn(run.users.left_to_others())
    run.report.users = ensure_logins(run, run.users.ensure_login)
    run.warn_of_users()


# --- What the run finds before it applies anything --------------------------------------------


def asked_action(event: Any) -> str:
    """A CDK trigger sends no event, the console {}: both mean a migration."""
    if event is None or event == {}:
        return "migrate"
    if rotation.is_request(event):
        return str(event["Step"])
    asked = event if isinstance(event, dict) else {}
    action = asked.get("action")
    if isinstance(action, str) and action in ACTIONS:
        refuse_unknown_keys(asked, action)
        return action
    what = f"action {action!r:.60}" if "action" in asked else "this event"
    raise ConfigError(
        f'{what} is not for db_setup: send {{}}, or {{"action": …}} with one of '
        f"{', '.join(ACTIONS)}"
    )


def refuse_unknown_keys(event: Mapping[str, Any], action: str) -> None:
    known = {"action": str, "variables": dict, **EVENT_KEYS.get(action, {})}
    for key, value in event.items():
        if key not in known:
            raise ConfigError(
                f"an event of action {action} cannot have {key!r:.60}, only {', '.join(known)}"
            )
        if not isinstance(value, known[key]):
            raise ConfigError(f"{key} of the event must be a JSON {JSON_KINDS[known[key]]}")


def move_marks_of_renamed_files(run: Run, state: State, plan: Plan) -> bool:
    """Marks of a file that ran in part follow it to its new name: it begins with the same step."""
    gone = gone_files_that_ran_in_part(state, plan)
    if not gone:
        return False
    beginnings = {}
    for name, file in plan.pending:
        script = with_text(run.session, scan_file(run, name, file, state, plan)).script
        checksum = script_runner.first_checksum(script)
        script.forget_text()
        in_steps = script.no_transaction or script.statement_count == 1
        if in_steps and file.name not in state.unfinished and checksum:
            beginnings[checksum] = file.name
    return tracking.move_marks(run.session, run.setup.config, gone, beginnings)


class PendingFile(NamedTuple):
    """A file that is to be applied, and recorded as `name`."""

    name: str
    migration: Migration
    script: Script
    before: Optional[Row] = None  # of a repeatable file that has run

    @property
    def is_older(self) -> bool:
        """Its text has run, so a deployment that is rolled back can have brought it."""
        return self.before is not None and planning.has_run(self.migration, self.before)


def scan_file(run: Run, name: str, migration: Migration, state: State, plan: Plan) -> PendingFile:
    """The file, looked through once in a run.

    Its text is read again later: memory stays that of one file.
    """
    backslashes = reads_backslashes(run.session)
    scripts = run.setup.scripts
    script = scripts.get((migration, backslashes))
    if script is None:
        script = migration_files.load_script(migration, run.setup.config.created, backslashes)
        if len(plan.pending) > 1:
            script.forget_text()
        scripts[migration, backslashes] = script
    if migration.name in state.unfinished and not migration.is_repeatable:
        script = replace(script, no_transaction=True)
    return PendingFile(name, migration, script, plan.again.get(migration))


def reads_backslashes(session: Session) -> bool:
    """'…' is read as E'…', as on a server that is set up for old applications."""
    return session.parameter("standard_conforming_strings") == "off"


def refuse_edited(run: Run, plan: Plan) -> None:
    """Raise MigrationError for files that were edited after they had been applied."""
    if not plan.edited or run.setup.config.allow_edited:
        return
    if all(planning.is_example(file) for _, file in plan.edited):
        return  # a rolled-back deployment has brought it back
    row, file = plan.edited[0]
    when = tracking.applied_at(run.session, run.setup.config, row)
    if len(plan.edited) > 1:
        when = f"the first {when}"
    names, edited = edited_files(plan)
    raise MigrationError(
        f"{names}: {edited} ({when}), which has no effect on this database",
        f"Restore what was applied, and put the change (git log -p -- '*{file.path.name}' shows "
        'it) into a new file; or accept the difference with ALLOW_EDITED_MIGRATIONS="true"',
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
    rows = [row.name for row in state.rows if row.earlier is None]
    known = {*rows} | {file.name for _, file in plan.pending}
    return sorted(set(state.unfinished) - known)


# --- Applying a file --------------------------------------------------------------------------


def apply_migration(run: Run, file: PendingFile, more_follow: bool) -> Outcome:
    """Apply a file and record it, both or neither; what blocks it for a moment is tried again.

    If `more_follow`, a session that is not as a new one would be releases the lock for the next
    session.
    """
    session = run.session
    config = run.setup.config
    if session.deadline.is_near:
        raise out_of_time(session, run.report.action)
    started = time.monotonic()
    script = file.script
    marks = Marks(config.marks, file.migration.name, file.migration.is_repeatable)
    has_rows = tracking.has_rows(config, {*run.recorded, file.name})
    has_rows_sql = has_rows.as_string(session.connection)
    tables_sql = run.watch.question().as_string(session.connection)
    with ThreadPoolExecutor(1) as other_thread:
        hashes: Callable[[], Sequence[str]] = partial(hashes_of, file)
        if script.pieces:  # those of a long file are made while the server has work to do
            hashes = other_thread.submit(hashes).result
        if script.longest_piece > sql_scanner.ONE_MESSAGE:  # whose text is forgotten meanwhile
            hashes()
        # A long text is not searched: a new session costs less.
        may_set = bool(script.pieces or sql_scanner.CUSTOM_SETTING.search(script.text))

        # A row that the file has removed is restored while the lock is still held.
        check_sql = session.session_check_sql(
            more_follow and may_set, has_rows_sql, may_release=more_follow
        )
        after_commit_sql = script_runner.after_commit_sql(tables_sql, check_sql)

        def final_sql() -> str:
            known = hashes()
            elapsed_ms = milliseconds_since(started)
            record_sql = tracking.record_sql(
                session, run.setup, file.name, known, elapsed_ms, is_again=file.before is not None
            )
            if marks.may_restart:  # those of other texts that have run in part
                record_sql = f"{marks.forget_sql(session)}; {record_sql}"
            return script_runner.recording_sql(session, record_sql) + after_commit_sql

        def is_there() -> bool:
            return tracking.is_recorded(session, config, file.name, hashes()[0], file.before)

        record = script_runner.Record(final_sql, is_there, after_commit_sql)
        runner = script_runner.ScriptRunner(session, script, marks, record)
        with session.working_on(file.name):
            return runner.run(migration=file.name)


def with_text(session: Session, file: PendingFile) -> PendingFile:
    """The file with its text, and without the settings that only newer servers know."""
    own_schema = "" if session.schema == "public" else session.schema
    script = file.script.without_settings_unknown_to(session.server_version, own_schema)
    for setting in script.unknown_settings:
        phrase = "setting unknown to this server left out"
        if setting == sql_scanner.COLUMN_STAMP:
            phrase = "column stamps of another server left out"
        if setting == sql_scanner.THE_SCHEMA:
            log("its schema exists already", migration=file.name, left_out=setting)
            continue
        log(phrase, logging.WARNING, migration=file.name, setting=setting)
    return file._replace(script=script)


def hashes_of(file: PendingFile) -> tuple[str, str]:
    # First, since it leaves Python to the thread that talks to the server.
    sha256 = file.migration.sha256
    checksum = file.script.checksum
    if file.migration.is_repeatable:
        checksum = planning.repeatable_checksum(checksum, file.before)
    return checksum, sha256


ALREADY_EXISTS = ("42P07", "42710", "42701", "42723", "42P06")
OLDER_TEXT = (
    "{}. This text ran before and does not work any more, so what a newer one made stays. It is "
    "tried again by each run"
)
NOTHING_APPLIED = "Applied in this run: nothing."


SERVERS_OWN = ("53", "58", "XX")  # SQLSTATEs of a full disk, a damaged page …


def pass_over(run: Run, file: PendingFile, failure: Failure) -> None:
    """Warn of an older text of a repeatable file that does not work any more, such as a view
    without a column that a newer text gave it. Raise MigrationError for any other failure.
    """
    error = failed(run, file, failure)
    not_recorded = tracking.why_not_recorded(run.setup.config, failure.error)
    is_stopped = isinstance(error, StoppedError) or failure.was_stopped
    is_servers = failure.sqlstate.startswith(SERVERS_OWN)
    if is_stopped or is_servers or not_recorded or not file.is_older:
        raise error
    failure = replace(failure, raised_by=run.session.raised_by(failure.error))
    said = f"{place_of(file, failure)}: {failures.describe(file.script, failure)}"
    run.report.warn([OLDER_TEXT.format(said)])
    file.script.forget_text()


def place_of(file: PendingFile, failure: Failure) -> str:
    name = file.migration.path.name
    has_ended = failure.was_stopped or failure.ending is Ending.LOST
    if failure.place is Place.UNKNOWN or (has_ended and not failure.step):
        return name  # nothing tells how far the server was
    line, column = sql_scanner.locate(file.script.text, failure.offset)
    return f"{name}:{line}:{column}" if failure.place is Place.EXACT else f"{name}:{line}"


def failed(run: Run, file: PendingFile, failure: Failure) -> MigrationError:
    """file:line:column, what PostgreSQL said, the state, the next step: without row data.

    PostgreSQL's own error, which quotes that, is not a part of it.
    """
    failure = replace(failure, raised_by=run.session.raised_by(failure.error))
    script = file.script
    place = place_of(file, failure)
    extensions = run.session.extensions() if failure.sqlstate in failures.NAMES_NOTHING else {}
    situation = failures.Situation(
        run.session.activity.blocked_by,
        extensions,
        isinstance(run.session, Rehearsal),
        dependents.advice(dependents.of(run.session, failure.error)),
    )
    sentences = [
        failures.describe(script, failure),
        failures.state_and_step(script, failure, situation),
    ]
    not_recorded = tracking.why_not_recorded(run.setup.config, failure.error)
    if file.name == run.first_after_adopted and failure.sqlstate in ALREADY_EXISTS:
        sentences.append(
            f"No run of a file is recorded here: {run.recorded[0]} was recorded without running, "
            f"because its tables existed. If {file.name} was applied as well, set "
            f'BASELINE="{file.name}", or a later file that the database has, and deploy again'
        )
    if not_recorded:  # for which the file is not to blame
        place = file.migration.path.name
        state = "The file ran, and is rolled back"
        if failure.step:
            state = "The file ran, and does not run again"
        sentences = [not_recorded, state, "Deploy again then"]
    waiting = shortened(run.session.pending[1:])
    can_pass = failure.sqlstate in RETRYABLE or failure.ending is Ending.LOST
    kind = StoppedError if can_pass or run.session.is_out_of_time else MigrationError
    error = kind(
        f"{place}: {'. '.join(sentences)}",
        f"Not tried: {waiting}" if waiting else "",
        state=NOTHING_APPLIED,
        details=() if not_recorded else failures.details(script, failure),
    )
    error.sqlstate = failure.sqlstate
    return error


def out_of_time(session: Session, action: str) -> MigrationError:
    place = ""
    if session.current:
        place = f" in {session.current}: it is rolled back unless it had just finished"
    elif session.pending:
        place = f" before {session.pending[0]}: it was not started"
    waiting = shortened(session.pending)
    not_applied = f"Not applied: {waiting}." if waiting else "The rest is not done yet."
    go_on = "" if action == "dry_run" else " to go on"
    step = f"Invoke again{go_on}; if that does not help, raise the function's timeout"
    if place:
        step = (
            f"Invoke again{go_on}; if one file needs longer than the function's timeout, raise "
            "that or split the file"
        )
    if session.activity.blocked_by:
        step = failures.step_outside_of_scripts(LOCK_TIMEOUT, "", session.activity.blocked_by)
    error = StoppedError(f"out of time{place}", f"{not_applied} {step}", state=NOTHING_APPLIED)
    error.tells_time = True
    return error


def unexpected_error(exc: Exception, report: Report) -> InitializerError:
    """Of an error that is none of ours: its kind and place. Its text could hold a secret."""
    what = ""
    if isinstance(exc, OSError):
        what = f": {exc.strerror} ({exc.filename})"
    frames = traceback.extract_tb(exc.__traceback__)
    stack = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
    log("unexpected error", logging.ERROR, kind=type(exc).__name__, stack=stack)
    error = InitializerError(
        f"unexpected {type(exc).__name__} at {stack[-1]} of db_setup {__version__}{what}",
        "Whatever was not finished is rolled back. Check what it names, and invoke again; the log "
        "has its stack",
        state=NOTHING_APPLIED,
    )
    error.applied = [entry["name"] for entry in report.applied]
    return error


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
        exc.applied = session.applied
        exc.is_late = session.is_out_of_time
        raise
    except psycopg2.Error as exc:
        error = postgresql_error(run, exc)
        error.applied = session.applied
        raise error from exc


def postgresql_error(run: Run, exc: psycopg2.Error) -> InitializerError:
    """What to say where a statement of ours failed, and not a file's."""
    session = run.session
    if session.is_out_of_time:
        return out_of_time(session, run.report.action)
    place = f"{session.current}: " if session.current else ""
    said = failures.said_of_ours(exc, session.raised_by(exc))
    code = f" ({exc.pgcode})" if exc.pgcode else ""
    step = failures.step_outside_of_scripts(exc.pgcode or "", said, session.activity.blocked_by)
    functions = [name for name, _, _ in failures.FUNCTION.findall(exc.diag.context or "")]
    triggers = session.event_triggers(functions) if functions else []
    if triggers:
        step = failures.step_after_event_trigger(
            exc.pgcode or "", functions[0], triggers, session.schema
        )
    kind = ConnectError if session.is_lost else InitializerError
    problem = f"{place}PostgreSQL: {said}{code}. Whatever was not finished is rolled back"
    return kind(problem, step, state="")


# --- Users and their secrets ------------------------------------------------------------------


MakeLogin = Callable[[Kind, StoredLogin], tuple[str, str]]


def ensure_logins(run: Run, make_login: MakeLogin) -> dict[str, str]:
    """A working login in each target secret; returns what was done, by login.

    `make_login` is how: ensure_login or rotate_login.
    """
    done: dict[str, str] = {}
    holds_another = {run.setup.admin_arn}  # which secrets hold a login that is not to be replaced
    with client_for_logins(run) as client:
        for kind, target in run.setup.user_secrets.items():
            # Another run may have written it meanwhile.
            secret = secret_store.read_secret(client, target.name) if target.name else target
            if secret.arn and secret.arn in holds_another:
                raise UserError(
                    f"secret {secret.name} holds another login, the admin's or the other user's. "
                    "It was not changed",
                    "Give each login a secret of its own",
                )
            is_writable = bool(target.name) and not isinstance(run.session, Rehearsal)
            stored = StoredInSecret(client, secret, is_writable)
            # By this event, which can be delivered twice, or by another run; and without a secret
            # nobody would learn of another login.
            is_done = (
                stored.is_nowhere or run.has_made(secret.value) or secret.value != target.value
            )
            name, what = replace_login(
                run, kind, stored, run.users.ensure_login if is_done else make_login
            )
            holds_another.add(stored.arn)
            done[name] = what
            if what != "kept":
                log("login ready", login=name, secret=secret.name, state=what)
    return done


@contextmanager
def client_for_logins(run: Run) -> Iterator[Any]:
    """Secrets Manager, for the time that is left; after files and groups, what it refuses is an
    error of one login.
    """
    client = run.setup.secrets_client
    try:
        yield secret_store.in_time(client, run.session.deadline) if client else None
    except ConfigError as exc:
        raise UserError(
            f"{exc.problem}. Its login was not changed; fix this and invoke again"
        ) from exc


def replace_login(
    run: Run, kind: Kind, stored: StoredInSecret, make_login: MakeLogin
) -> tuple[str, str]:
    """Make the login; where another run replaces the credentials meanwhile, these are to work."""
    while True:
        try:
            return make_login(kind, stored)
        except OvertakenError:
            stored.value = stored.read()
            make_login = run.users.ensure_login


class StoredInSecret:
    """A StoredLogin in a secret, which is only written if it `is_writable`."""

    def __init__(self, client: Any, secret: Secret, is_writable: bool) -> None:
        self.value = secret.value
        self.is_nowhere = not secret.name
        self.arn = secret.arn  # of a secret that was empty it is known once it was written
        self._client = client
        self._secret = secret
        self._latest = secret
        self._is_writable = is_writable

    def read(self) -> Optional[Credentials]:
        if not self.is_nowhere:
            self._latest = secret_store.read_secret(self._client, self._secret.name)
        return self._latest.value

    def read_next(self) -> Optional[Credentials]:
        if self.is_nowhere:
            return None
        return secret_store.being_rotated(self._client, self._secret)

    def write(self, value: Credentials) -> None:
        if self._is_writable:
            self.arn = secret_store.write_secret(self._client, self._latest, value)


# --- The other actions ------------------------------------------------------------------------


def rotate(run: Run, _: OurTables) -> None:
    """New credentials in the target secrets; migrations are left alone."""
    if not run.setup.user_secrets:
        raise ConfigError(
            "there is nothing to rotate: CREATE_USERS is false, or neither DB_USER_SECRET_NAME "
            "nor DB_PROXY names a secret"
        )
    run.session.acquire_lock()
    ensure_groups(run)
    run.report.users = ensure_logins(run, run.users.rotate_login)
    run.warn_of_users()


def rotation_step(run: Run, _: OurTables) -> None:
    """A step of a rotation by Secrets Manager, of one of the target secrets."""
    event: Mapping[str, str] = run.event
    asked = event["SecretId"]
    ours = [
        kind
        for kind, secret in run.setup.user_secrets.items()
        if secret_store.same_secret(secret.arn or secret.name, asked)
    ]
    if not ours:
        raise ConfigError(
            f"secret {asked} is not one that db_setup writes: it cannot be rotated here"
        )
    run.session.acquire_lock()
    ensure_groups(run)
    run.users.lock_logins()
    with client_for_logins(run) as client:
        what, login = rotation.take_step(client, run.users, ours[0], event)
    run.report.users = {login: what}
    log("login rotates", login=login, step=event["Step"], state=what)
    run.warn_of_users()


def create_database(run: Run) -> None:
    """Make the run's database, owned by the admin, where the server has none of that name."""
    login = run.setup.login
    name = login.endpoint.dbname
    elsewhere = replace(login, endpoint=replace(login.endpoint, dbname="postgres"))
    session = Session(elsewhere, run.session.deadline, run.session.lock_timeout_ms)
    question = sql.SQL("SELECT EXISTS (SELECT FROM pg_database WHERE datname = {})")
    try:
        (exists,) = session.open(question.format(sql.Literal(name)))
        if not exists:
            session.query(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            run.report.details["created"] = True
            log("database created", database=name)
    except (psycopg2.errors.DuplicateDatabase, psycopg2.errors.UniqueViolation):
        pass  # another run has made it meanwhile
    finally:
        session.close()


def action_of(module: str, name: str) -> Action:
    """An action in a module of its own, which is not read before it is asked for."""

    def act(run: Run, found: OurTables) -> None:
        getattr(importlib.import_module(module), name)(run, found)

    return act


ACTIONS: Mapping[str, Action] = {
    "migrate": migrate,
    "dry_run": action_of("dry_run", "dry_run"),
    "rotate": rotate,
    "status": action_of("overview", "status"),
    "databases": action_of("overview", "databases"),
}
# What an event can say besides its action and variables.
EVENT_KEYS: Mapping[str, Mapping[str, type]] = {
    "migrate": {"create": bool},
    "dry_run": {"markdown": bool},
    "databases": {"like": str, "after": str, "status": bool, "schemas": bool},
}
JSON_KINDS = {str: "string", bool: "boolean", dict: "object"}


def milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)

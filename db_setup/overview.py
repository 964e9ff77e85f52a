"""The actions that only read: status of one database, and the list of many."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Callable

import drift
import limited_users
import planning
import replication
import tracking
from common import ConfigError, Credentials, Deadline, InitializerError
from config import SCHEMA
from initializer import (
    OurTables,
    Run,
    edited_files,
    errors_explained,
    scan_file,
)
from planning import Plan
from psycopg2 import sql
from session import Session
from tracking import State

# --- One database -----------------------------------------------------------------------------


def status(run: Run, found: OurTables) -> None:
    """Say what is applied, pending, edited and so on.

    Reads only: a login that may only read is enough.
    """
    session = run.session
    report = run.report
    session.query("SET default_transaction_read_only = on")
    state = tracking.read_state(session, run.setup.config, found)
    if state.columns is None:
        tracking.has_tables(session, run.setup)
    plan = planning.make_plan(run.setup.files, state.rows, state.unfinished)
    history = tracking.history(session, run.setup.config, state)
    session.pending = [name for name, _ in plan.pending]
    report.warn(plan.warnings)
    if plan.pending:
        ((active,),) = session.query(f"SELECT {replication.ACTIVE_SQL}")
        report.warn(replication.warning(active, pending_with_ddl(run, state, plan)))
    report.users = dict(tried_logins(run))
    drifted = drift.compare(session, run.setup.config, state.kept)
    report.drift = drifted.count
    report.details = {
        **drifted.as_json(),
        "edited": [file.name for _, file in plan.edited],
        "renumbered": [{"name": file.name, "was": row.name} for row, file in plan.renumbered],
        "missing": list(plan.orphans),
        "duplicates": planning.duplicates(run.setup.files),
        "unfinished": list(state.unfinished),
        "running": [str(holder) for holder in session.lock_holders()],
        "server_version": session.parameter("server_version"),
    }
    # Last, since a failure would say that this run has applied them.
    report.adopted = [entry["name"] for entry in history if entry.pop("adopted")]
    report.applied = history


def pending_with_ddl(run: Run, state: State, plan: Plan) -> Iterator[str]:
    """Those that a run would refuse are its concern."""
    for name, file in plan.pending:
        with suppress(InitializerError):
            if scan_file(run, name, file, state, plan).script.has_ddl:
                yield name


def tried_logins(run: Run) -> Iterator[tuple[str, str]]:
    """What is to be said of each user: of the login in its secret, which is tried."""
    for kind, secret in run.setup.user_secrets.items():
        own_name = run.setup.application.login_name(kind)
        login = str((secret.value or Credentials()).get("username", own_name))
        if secret.complaint:
            yield login, f"secret {secret.name} {secret.complaint}"
            continue
        trial = run.users.tried(kind, secret.value)
        if trial.state in (limited_users.NOT_TRIED, limited_users.TOO_SLOW):
            yield login, f"cannot be tried: {trial.reason}"
        elif trial.state == limited_users.WORKS:
            yield login, "works"
        else:
            yield login, "does not work; the next run repairs it"


# --- Many databases on one server -------------------------------------------------------------

PAGE_DATABASES = 1000
PAGE_BYTES = 150_000  # with a text's escapes once more: a state of Step Functions holds 262,144
STATUS_PATIENCE_S = 10
# By bytes, as Python's and everybody's order; names are in no particular encoding there.
PAGE_SQL = f"""
    SELECT name FROM ({{}}) found(name) WHERE name LIKE %(like)s AND name COLLATE "C" > %(after)s
    ORDER BY name COLLATE "C" LIMIT {PAGE_DATABASES + 1}"""
DATABASES_SQL = PAGE_SQL.format(
    "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate "
    "AND has_database_privilege(oid, 'CONNECT')"
)
# Those that DB_SCHEMA can name.
SCHEMAS_SQL = PAGE_SQL.format(
    "SELECT nspname FROM pg_namespace WHERE nspname ~ %(schema)s "
    "AND has_schema_privilege(oid, 'USAGE')"
)


def databases(run: Run, _: OurTables) -> None:
    """List the databases whose names are like a pattern, or the schemas of the run's database, a
    page at a time, in the order of their names; with what is applied in each, unless the event says
    `"status": false`.

    `next` of the report is what the next event has to say as `after`; None at the end.
    """
    session, event = run.session, run.event
    if not event.get("like"):
        raise ConfigError('which databases? Add "like" to the event, such as "tenant_%"')
    of_schemas = event.get("schemas", False)
    args = {"like": event["like"], "after": event.get("after", ""), "schema": f"^({SCHEMA})$"}
    names = [name for (name,) in session.query(SCHEMAS_SQL if of_schemas else DATABASES_SQL, args)]
    found: list[dict[str, Any]] = []
    size = 0
    for name in names[:PAGE_DATABASES]:
        entry = {"name": name}
        if event.get("status", True):
            try:
                entry.update((schema_status if of_schemas else database_status)(run, name))
            except InitializerError as exc:
                if session.is_lost:
                    raise
                entry.update(applied=None, pending=None, last=None, problem=exc.problem[:300])
        size += len(json.dumps(entry)) + 2
        if found and (size > PAGE_BYTES or session.deadline.is_near):
            break
        found.append(entry)
    is_last = len(found) == len(names)
    run.report.details = {"databases": found, "next": None if is_last else found[-1]["name"]}
    if of_schemas:
        run.report.details["schemas"] = True


def database_status(run: Run, name: str) -> dict[str, Any]:
    """See how_far; in a session of its own, for a short time."""
    config, login = run.setup.config, run.setup.login
    login = replace(login, endpoint=replace(login.endpoint, dbname=name))
    end = min(run.session.deadline.at, time.monotonic() + STATUS_PATIENCE_S)
    session = Session(login, Deadline(end, reserve=0), config.lock_timeout_ms)
    session.schema = config.schema
    try:
        return how_far(replace(run, session=session), session.open)
    finally:
        session.close()


def schema_status(run: Run, name: str) -> dict[str, Any]:
    """See how_far; in the run's own session."""
    setup = replace(run.setup, config=replace(run.setup.config, schema=name))
    return how_far(replace(run, setup=setup), lambda question: run.session.query(question)[0])


def how_far(run: Run, ask: Callable[[sql.Composable], tuple[Any, ...]]) -> dict[str, Any]:
    """How far a database or a schema is; it is only read.

    Raises InitializerError where that cannot be said, or what would refuse a first run there.
    """
    session, setup = run.session, run.setup
    with errors_explained(run):
        (found,) = ask(tracking.our_tables_question(setup.config))
        session.query("SET default_transaction_read_only TO on")
        state = tracking.read_state(session, setup.config, found)
        if state.columns is None:
            tracking.has_tables(session, setup)
            if setup.config.schema != "public":
                tracking.has_schema(session, setup.config)
        plan = planning.make_plan(setup.files, state.rows, state.unfinished)
    problem = ""
    if plan.edited and not setup.config.allow_edited:
        problem = " ".join(edited_files(plan))
    last = state.rows[-1].name if state.rows else None
    counts = {"applied": len(state.rows), "pending": len(plan.pending)}
    return {**counts, "last": last, "problem": problem}

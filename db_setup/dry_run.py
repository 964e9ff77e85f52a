"""The action dry_run: what a migration would do, in one transaction that is rolled back."""

from __future__ import annotations

import logging
import time
from typing import Any

import effects
import pull_request
import script_runner
from common import LockError, MigrationError, log
from initializer import (
    OurTables,
    PendingFile,
    Run,
    apply_migration,
    ensure_users,
    milliseconds_since,
    nothing_to_do,
    pass_over,
    plan_pending,
    with_text,
)
from outcomes import CANCELLED, Failure, NotTried, Outcome
from outside import Reach
from rehearsal import Rehearsal
from session import RETRYABLE


def dry_run(run: Run, found: OurTables) -> None:
    """Do what a migration does, users included, in one transaction that is rolled back; no secret
    is written.

    The report gets each file's time, what it does to what is there, and what cannot be tried. All
    locks are held until the end.
    """
    tried: list[dict[str, Any]] = []
    details = run.report.details
    details["tried"] = tried
    if not nothing_to_do(run, found):
        try_pending(run, tried)
    details["level"] = effects.worst(tried)
    if (run.event or {}).get("markdown"):
        details["markdown"] = pull_request.markdown(tried, run.report.warnings)


def try_pending(run: Run, tried: list[dict[str, Any]]) -> None:
    session = run.session
    assert isinstance(session, Rehearsal)  # noqa: S101 - see run
    log(
        "dry run: every lock is held until its end, so use a copy where that is too long",
        logging.WARNING,
    )
    session.acquire_lock()
    try:
        with session.rehearsing(run.setup.config.tables):
            pending = plan_pending(run)
            reach = Reach.of(session, counts_setval=session.has_sequences)
            session.effects = effects.Effects(session)
            for each in pending:
                tried.append(rehearse_migration(run, session, session.effects, each, reach))
            session.effects = None
            ensure_users(run)
    except MigrationError as exc:
        untried = [
            f"{entry['name']} ({', '.join(entry['untried'])})"
            for entry in tried
            if entry["untried"]
        ]
        if not untried or exc.sqlstate in ("", CANCELLED, *RETRYABLE):
            raise
        exc.details.append(f"It may need what a dry run could not try: {'; '.join(untried)}.")
        raise


def rehearse_migration(
    run: Run, session: Rehearsal, effect: effects.Effects, scanned: PendingFile, reach: Reach
) -> dict[str, Any]:
    """Try a file; returns what the report says of it.

    Raises LockError where the file lost the lock.
    """
    started = time.monotonic()
    file = with_text(session, scanned)
    effect.begin_file(file.script.text)
    call = reach.call_in(file.script)
    if call:
        outcome: Outcome = NotTried((f"it calls {call}, which nothing takes back",))
    else:
        outcome = apply_migration(run, file, more_follow=False)
    outcome = script_runner.as_rehearsed(outcome, file.script)
    if isinstance(outcome, Failure):
        pass_over(run, file, outcome)
        outcome = NotTried(("it is an older text, which does not work any more",), kept_lock=False)
    file.script.forget_text()
    session.defer_constraints()
    if not outcome.kept_lock and not session.query(session.try_lock_sql())[0][0]:
        raise LockError(
            f"{file.name} released the lock, and another run holds it now", "Invoke again", state=""
        )
    session.pending.remove(file.name)
    duration_ms = milliseconds_since(started)
    found = effect.take(session.new_locks())
    untried = list(outcome.reasons) if isinstance(outcome, NotTried) else []
    fields: dict[str, Any] = {"duration_ms": duration_ms}
    if found["level"] != effects.LEVELS[0]:
        fields["effect"] = found["level"]
    if found["locks"]:
        fields["locks"] = [f"{lock['lock']} on {lock['table']}" for lock in found["locks"]]
    if untried:
        fields["untried"] = untried
    log("tried", migration=file.name, **fields)
    return {"name": file.name, "duration_ms": duration_ms, **found, "untried": untried}

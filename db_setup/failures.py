"""What to say about a script that failed: the place, PostgreSQL's words, the state, the next step.

    describe        what PostgreSQL said
    state_and_step  what stays and what is rolled back, and what to do
    advice          what to write instead, for common mistakes (a part of state_and_step)
    details         the line of SQL, and what else PostgreSQL says

Knows PostgreSQL's errors and scripts, nothing of migrations or AWS. Pure. Never shows a row of a
table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Callable, NamedTuple, Optional

import masking
import psycopg2
from outcomes import (
    CANCELLED,
    COMMITS_ITSELF,
    IN_TRANSACTION,
    NEW_ENUM_VALUE,
    SAVEPOINT,
    SAVEPOINT_GONE,
    SYNTAX_ERROR,
    Ending,
    FailedStep,
    Failure,
    Index,
    Place,
)
from session import RETRYABLE
from sql_scanner import ONE_MESSAGE, Script, Statement, first_string_offset, locate

NO_SUCH_CHARACTER = "22P05"
NO_CHARACTER = "22021"
DAMAGED = ("XX001", "XX002")
# But encodings, the settings that limit a server, indexes, and the server's files.
NAMES_NO_VALUE = (NO_SUCH_CHARACTER, NO_CHARACTER, "53", "54", "58", *DAMAGED)
OWN_SQL_OF_FUNCTION = re.compile(
    r"PL/pgSQL function .* at (?:SQL statement|assignment|PERFORM|IF|RETURN)$", re.MULTILINE
)
RAISED_ELSEWHERE = "the function's words are not shown, since a RAISE can quote any value"
# They quote names of PostgreSQL's catalogs and settings.
POSTGRESQLS_OWN_HINTS = ("Perhaps you meant", "Increase the configuration")
RAISED = re.compile(r"\A.* at (?:RAISE|ASSERT)$", re.MULTILINE)
NAMES_NOTHING = ("42883", "42704")  # a function, or a type and other objects, that do not exist
NOT_IN_TRANSACTION = (IN_TRANSACTION, COMMITS_ITSELF, NEW_ENUM_VALUE)
# Classes of SQLSTATEs whose texts can contain the values of rows: data exceptions, constraints.
ABOUT_ROWS = ("22", "23")


def placed_by_names(
    script: Script,
    failure: Failure,
    statements: Optional[Sequence[Statement]] = None,
) -> Failure:
    """The failure at the one statement, of these or of all, that its words can mean; or at none."""
    found = list(_statements_meant(script, failure, statements))
    if len(found) == 1:
        return replace(failure, offset=found[0].start)
    return replace(failure, offset=len(script.text), place=Place.UNKNOWN)


def _statements_meant(
    script: Script,
    failure: Failure,
    statements: Optional[Sequence[Statement]],
) -> Iterator[Statement]:
    """The statements that have the names which PostgreSQL's words have."""
    if failure.error is None or len(script.text) > ONE_MESSAGE:
        return
    diag = failure.error.diag
    function = FUNCTION.search(diag.context or "")
    is_do_block = function is not None and function.group(1) == "inline_code_block"
    if function and not is_do_block:
        return
    names = re.findall('"([^"]+)"', diag.message_primary or "")
    if diag.table_name:
        names = [diag.table_name]  # a constraint may have a name that PostgreSQL has given it
    if not names and not is_do_block:
        return
    breaks_constraint = failure.sqlstate.startswith("23")
    for statement in statements or script.statements():
        text = script.statement_sql(statement)
        if is_do_block != (statement.keyword == "DO"):
            continue
        if breaks_constraint and statement.words[:2] == ("CREATE", "TABLE"):
            continue
        if is_do_block or all(_mentions(text, name) for name in names):
            yield statement


def is_about_another_table(script: Script, failure: Failure) -> bool:
    """PostgreSQL names a table that is nowhere in the script."""
    table = failure.error.diag.table_name if failure.error else None
    return table is not None and not _mentions(script.text, table)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def describe(script: Script, failure: Failure) -> str:
    """What PostgreSQL said and its SQLSTATE, in one line, without data of rows."""
    if failure.error is None:
        return failure.refusal
    sets_secret = _sets_secret(script, failure)  # which takes its time in a long file
    if sets_secret:
        said = "PostgreSQL's words are not shown, since this statement can set a password"
    else:
        said = failure.error.diag.message_primary or str(failure.error)
        said = " ".join(said.split())
        said = _unless_masked(_mask(script, failure)(said)[:400])
    is_exact = failure.place is Place.EXACT
    if failure.sqlstate == SYNTAX_ERROR and is_exact and not sets_secret:
        said += syntax_explanation(script.text, failure.offset)
    sqlstate = failure.sqlstate or "no answer"
    when = ", which showed at the end of the file" if failure.place is Place.END else ""
    return f"{said} ({sqlstate}){when}"


def _unless_masked(said: str) -> str:
    return RAISED_ELSEWHERE if said == masking.MASK else said


def _mask(script: Script, failure: Failure) -> Callable[[str], str]:
    """What masks PostgreSQL's words."""
    if failure.error is None:
        return str
    if RAISED.search(failure.error.diag.context or ""):
        own = (script.text,) if len(script.text) <= ONE_MESSAGE else ()
        return partial(masking.as_raised, sources=(*own, *failure.raised_by))
    if failure.sqlstate.startswith(NAMES_NO_VALUE):
        return str
    where = (failure.offset, script.start_near(failure.offset))
    return _words(script.text, script.backslash_escapes, failure.error, *where).mask


def _words(
    text: str, backslash_escapes: bool, error: psycopg2.Error, place: int = 0, known_start: int = 0
) -> masking.Words:
    """What of PostgreSQL's words may be repeated."""
    diag = error.diag
    known = (diag.schema_name, diag.table_name, diag.column_name, diag.constraint_name)
    return masking.Words(text, backslash_escapes, (*known, diag.datatype_name), place, known_start)


def said_of_ours(error: psycopg2.Error, raised_by: Sequence[str] = ()) -> str:
    """What PostgreSQL said of a statement of ours, in one line.

    A trigger of others can fail in it, and quote anything. What it names is in the SQL that it
    has, but not in SQL that it makes (EXECUTE).
    """
    said = " ".join((error.diag.message_primary or str(error)).split())
    context = error.diag.context or ""
    if RAISED.search(context):
        said = _unless_masked(masking.as_raised(said, raised_by))
    elif context or (error.pgcode or "").startswith(ABOUT_ROWS):
        is_static = OWN_SQL_OF_FUNCTION.match(context)
        text = (error.diag.internal_query or "") if is_static else ""
        said = _words(text, False, error).mask(said)
    return said[:300]


def _sets_secret(script: Script, failure: Failure) -> bool:
    if failure.place in (Place.ROW, Place.END):
        return False
    start = script.start_near(failure.offset)
    return masking.sets_secret(script.text, failure.offset, script.backslash_escapes, start)


ODD_SPACE = re.compile("[\u00a0\u2000-\u200f\u202f\ufeff]")


def syntax_explanation(text: str, offset: int) -> str:
    """What the server could not know about the characters that it stumbled over."""
    at = text[offset : offset + 2]
    if re.match(r""":[A-Za-z_'"]""", at):
        return "; variables of psql do not exist here: write the value itself"
    if ODD_SPACE.match(at):
        code_point = f"U+{ord(at[0]):04X}"
        return f"; the character there is not a space but {code_point}: delete it"
    if BEGINS_STATEMENT.match(text, offset) and UNFINISHED.search(
        text[max(offset - 200, 0) : offset]
    ):
        return "; is a semicolon missing at the end of the line before?"
    return ""


# --- The state, and what to do --------------------------------------------------------------------


class Situation(NamedTuple):
    """What is known besides the failure itself."""

    blocked_by: Sequence[str] = ()
    extensions: Mapping[str, str] = MappingProxyType({})  # of the database, each with its schema
    is_dry_run: bool = False  # nothing stays
    instead: str = ""  # what to do, where PostgreSQL's words do not tell


def state_and_step(script: Script, failure: Failure, situation: Situation) -> str:
    """What has stayed or was rolled back, and what to do, without the last full stop."""
    if failure.ending is Ending.REFUSED:
        return (
            "The statements that have run stay applied. Then deploy again: the run continues after "
            "them"
        )
    if failure.ending is Ending.LOST:
        return _after_lost_connection(failure, situation)
    state = _state(failure, situation)
    if failure.sqlstate in RETRYABLE or (failure.was_stopped and situation.blocked_by):
        how = "It conflicted with other sessions each time"
        if failure.was_stopped:
            how = f"{_who_stopped(failure)} while others blocked it"
        return f"{state} {how}{_when_unblocked(situation.blocked_by)}"
    if failure.was_stopped:
        return f"{state} {_who_stopped(failure)}. {_when_stopped(failure, situation)}"
    if failure.step and script.statement_count > 1:
        step = _step(situation.instead or advice(script, failure, situation.extensions))
        return f"{state} {step}{_continues(failure.step, situation)}"
    return _after_transaction(script, failure, situation)


def _after_lost_connection(failure: Failure, situation: Situation) -> str:
    """After a lost connection nobody can say what the server has done."""
    if situation.is_dry_run:
        return "The connection was lost, and the dry run with it: nothing of it stays. Try again"
    if failure.index in AFTER_LOST_BUILD:
        step = AFTER_LOST_BUILD[failure.index]
        if failure.index is Index.BUILDING and situation.blocked_by:
            step += f". It waits for other sessions{_when_unblocked(situation.blocked_by)}"
        return step
    unit = "the file"
    if failure.step:
        unit = "this transaction" if failure.step.line else "this statement"
    return (
        f"The connection was lost; the server rolls {unit} back unless it had just finished; "
        "the tracking table shows which. Invoke again"
    )


AFTER_LOST_BUILD = {
    Index.BUILDING: (
        "The connection was closed; the server continues the build, and holds the lock until it is "
        "done. Then invoke again: a finished index is recorded, an unfinished one is built again"
    ),
    Index.ABANDONED: (
        "The connection was lost, and the server does not build any more: an unfinished index is "
        "left INVALID. Invoke again: a finished index is recorded, an unfinished one is dropped "
        "and built again"
    ),
    Index.UNKNOWN: (
        "The connection was lost during an index build, which the server may continue. Invoke "
        "again: the run waits for it, records a finished index, and builds an INVALID one again"
    ),
}
# Where the build itself failed, outside of any transaction.
AFTER_FAILED_BUILD = {
    Index.NONE: "",
    Index.DROPPED: " The unfinished index was dropped.",
    Index.UNKNOWN: " An unfinished index may be left INVALID: the next run drops it.",
}


def _state(failure: Failure, situation: Situation) -> str:
    index = AFTER_FAILED_BUILD[failure.index]
    if failure.step is None or failure.step.is_first or situation.is_dry_run:
        return f"Rolled back.{index}"
    if failure.step.line:
        return (
            f"The transaction that begins in line {failure.step.line} is rolled back. The "
            "statements before it have run and stay applied: do not edit them."
        )
    return f"The statements before this one have run and stay applied: do not edit them.{index}"


def _continues(step: FailedStep, situation: Situation) -> str:
    """Where the next run continues a script of which some statements have run."""
    if step.is_first or situation.is_dry_run:
        return ""
    return f": the run continues in line {step.line}" if step.line else ": the run continues here"


def _who_stopped(failure: Failure) -> str:
    if failure.ending is Ending.DEADLINE:
        return "The deadline stopped it"
    return "An administrator or another session cancelled it"


def _when_stopped(failure: Failure, situation: Situation) -> str:
    to_go_on = "" if situation.is_dry_run else " to go on"
    if failure.ending is not Ending.DEADLINE:
        return f"Invoke again{to_go_on}"
    return (
        f"Invoke again{to_go_on}; if it needs longer than the function's timeout, raise that or "
        "split the file"
    )


def _when_unblocked(blocked_by: Sequence[str]) -> str:
    """The sessions and prepared transactions that blocked it, and the next step."""
    who = f" ({', '.join(blocked_by)})" if blocked_by else ""
    step = f"{who}. Invoke again when they are done"
    ends = []
    if any(blocker.startswith("pid") for blocker in blocked_by):
        ends.append("SELECT pg_terminate_backend(PID)")
    if any(not blocker.startswith("pid") for blocker in blocked_by):
        ends.append("ROLLBACK PREPARED 'NAME'")
    return f"{step}, or end them: {', '.join(ends)}" if ends else step


def _after_transaction(script: Script, failure: Failure, situation: Situation) -> str:
    """Of a file that is one transaction."""
    instead = situation.instead or advice(script, failure, situation.extensions)
    if failure.sqlstate == COMMITS_ITSELF:
        return (
            "Rolled back. A block that commits by itself needs a file without a transaction: write "
            "-- no-transaction in the first line, make sure that the block can be repeated, and "
            "deploy again"
        )
    has_own_advice = failure.sqlstate == IN_TRANSACTION and instead != ""
    if failure.sqlstate in NOT_IN_TRANSACTION and script.statement_count > 1 and not has_own_advice:
        return (
            "Rolled back. This file of several statements is one transaction: put the statement "
            "into a file of its own, or write -- no-transaction in the first line, and deploy again"
        )
    if failure.sqlstate == SAVEPOINT_GONE and SAVEPOINT in str(failure.error):
        return (
            "A statement of this file has ended the file's transaction: what ran before it is "
            "committed, but the file is not recorded. Check what it has done, make the "
            "file repeatable, and deploy again"
        )
    return f"{_state(failure, situation)} {_step(instead)}"


def _step(instead: str) -> str:
    if instead:
        return f"{instead}. Then deploy again"
    return "Fix the file and deploy again"


# --- What to write instead ------------------------------------------------------------------------


def advice(script: Script, failure: Failure, extensions: Mapping[str, str]) -> str:
    """One sentence that says what to write instead, for common mistakes; else empty."""
    if failure.error is None:
        return ""
    breaks_constraint = failure.sqlstate.startswith("23")
    if breaks_constraint and _is_about_new_rows(script, failure):
        return ""  # our sentences are about the rows that are in the table already
    said = failure.error.diag.message_primary or ""
    said = _mask(script, failure)(said)
    extension = _missing_extension(failure.sqlstate, said)
    schema = extensions.get(extension.strip('"'))
    if schema:
        return (
            f"Extension {extension} is installed in schema {schema}: write {schema}. before the "
            "name, or check the arguments"
        )
    if extension:
        return (
            f"Add CREATE EXTENSION IF NOT EXISTS {extension}; above this statement, "
            "if this server has the extension"
        )
    if failure.sqlstate == "42501":
        # From PostgreSQL 16 on, only the detail says that it takes a superuser.
        detail = failure.error.diag.message_detail or ""
        said = f"{said} {detail}"
    before = ""
    if failure.place is Place.EXACT:
        before = script.text[max(failure.offset - 60, 0) : failure.offset]
    after = script.text[failure.offset : failure.offset + 300]
    for mistake in MISTAKES:
        sentence = mistake.advice_for(failure.sqlstate, said, before, after)
        if sentence:
            return sentence
    return ""


def _is_about_new_rows(script: Script, failure: Failure) -> bool:
    """It is, or may be, a row that the script writes which breaks the constraint."""
    if failure.place in (Place.ROW, Place.END, Place.UNKNOWN):
        return True
    context = failure.error.diag.context if failure.error else None
    return "PL/pgSQL" in (context or "") or ROWS.match(script.text, failure.offset) is not None


def _missing_extension(code: str, said: str) -> str:
    """The extension that has the function, type … which does not exist; empty if none is known."""
    missing = re.search(
        r'(?:function|type|operator class|access method) "?(.+?)(?:\(|"| does not exist)', said
    )
    if code not in NAMES_NOTHING or missing is None:
        return ""
    name = missing.group(1).split(".")[-1]
    for names, extension in EXTENSIONS:
        if re.fullmatch(names, name, re.IGNORECASE):
            return extension
    return ""


def step_outside_of_scripts(sqlstate: str, said: str, blocked_by: Sequence[str] = ()) -> str:
    """What to do where a statement of ours failed: one sentence without its full stop."""
    if sqlstate in RETRYABLE:
        return f"Other sessions blocked it{_when_unblocked(blocked_by)}"
    for pattern, step in STEPS_OUTSIDE_OF_SCRIPTS:
        if re.search(pattern, f"{sqlstate} {said}"):
            return step
    return "Invoke again"


def step_after_event_trigger(
    sqlstate: str, function: str, triggers: Sequence[str], schema: str
) -> str:
    """What to do where an event trigger has failed a statement of ours.

    Ours run under a search path in which the function does not find what it names without schema.
    """
    names = ", ".join(triggers)
    step = f"let it pass what the admin does, or ALTER EVENT TRIGGER {names} DISABLE, as its owner"
    if sqlstate.startswith(("42", "3F")):
        step = (
            "write the schema before each name in that function, or ALTER FUNCTION "
            f"{function} SET search_path = {schema}"
        )
    return f"It failed in {function}, which event trigger {names} calls: {step}; then invoke again"


class Mistake(NamedTuple):
    """A common mistake: how to recognise it, and what to write instead.

    `said` is searched for in PostgreSQL's words, `before` in the text before the place (empty if
    PostgreSQL did not name it), `after` in the text from the place on. In `advice`, {0} is the
    first group of `said`.
    """

    sqlstates: str
    said: str
    advice: str
    before: str = ""
    after: str = ""

    def advice_for(self, code: str, said: str, before: str, after: str) -> str:
        """The advice, if this is the mistake; else empty."""
        found = re.search(self.said, said, re.DOTALL)
        if found is None or not re.fullmatch(self.sqlstates, code):
            return ""
        if not re.search(self.before, before, re.DOTALL):
            return ""
        if not re.search(self.after, after, re.DOTALL):
            return ""
        return self.advice.format(*found.groups(""))


# --- The line of SQL and further lines ------------------------------------------------------------

LINE_WIDTH = 100  # characters that are shown of a line
ROWS = re.compile(r"(INSERT|UPDATE|DELETE|MERGE|WITH|SELECT|VALUES|COPY)\b", re.IGNORECASE)
BEGINS_STATEMENT = re.compile(
    r"(CREATE|ALTER|DROP|INSERT|UPDATE|DELETE|GRANT|REVOKE|COMMENT)\b", re.I
)
UNFINISHED = re.compile(r"[^;\s][ \t]*\r?\n\s*$")
# The innermost function of an error's context, "line" or "statement", and its number.
FUNCTION = re.compile(r"^(?:PL/pgSQL|SQL) function (.+?),? (line|statement) (\d+)", re.MULTILINE)


def details(script: Script, failure: Failure) -> Iterator[str]:
    """Further lines: the line of SQL, the function, and what else PostgreSQL says.

    That is the constraint, its DETAIL unless it contains a row, and its HINT.
    """
    context = ""
    if failure.error:
        context = failure.error.diag.context or ""
    function = FUNCTION.search(context)
    if function is None:
        yield from _line_of_statement(script, failure)
    elif function.group(1) != "inline_code_block":
        yield from _line_of_statement(script, failure)
        name, unit, number = function.groups()
        yield f"IN: function {name}, its {unit} {number}"
    elif failure.was_stopped or failure.place is Place.UNKNOWN:
        yield from _line_of_statement(script, failure)
    else:
        yield from _line_of_do_block(script, failure, int(function.group(3)))
    if failure.error:
        is_about_rows = failure.sqlstate[:2] in ABOUT_ROWS
        fields = list(_fields(failure.error.diag, is_about_rows, _mask(script, failure)))
        if fields and not _sets_secret(script, failure):
            yield from fields


def _line_of_do_block(script: Script, failure: Failure, line_of_body: int) -> Iterator[str]:
    body_starts_at, _ = locate(script.text, first_string_offset(script.text, failure.offset))
    number = body_starts_at + line_of_body - 1
    yield f"IN: the DO block, line {number} of the file"
    if failure.sqlstate[:2] not in ABOUT_ROWS:
        lines_before = script.text.split("\n")[: number - 1]
        offset = sum(len(line) + 1 for line in lines_before)
        yield from _excerpt_of(script, offset, exact=False)


def _line_of_statement(script: Script, failure: Failure) -> Iterator[str]:
    if _is_place_known(failure) and not _may_show_row(script, failure):
        exact = failure.place is Place.EXACT
        yield from _excerpt_of(script, failure.offset, exact)


def _is_place_known(failure: Failure) -> bool:
    if failure.place in (Place.STATEMENT, Place.ROW):
        has_ended = failure.was_stopped or failure.ending is Ending.LOST
        return not has_ended and failure.sqlstate != SAVEPOINT_GONE
    return failure.place is Place.EXACT


def _may_show_row(script: Script, failure: Failure) -> bool:
    """The line can contain values that were to be written into a table."""
    if failure.place is Place.ROW:
        return True
    if failure.sqlstate[:2] not in ABOUT_ROWS:
        return False
    return ROWS.match(script.text, _start_of_statement(script, failure)) is not None


def _start_of_statement(script: Script, failure: Failure) -> int:
    """Where the statement begins that failed."""
    if failure.place is Place.EXACT:
        for statement in script.statements():
            if statement.start <= failure.offset < statement.end:
                return statement.start
    return failure.offset


def _fields(
    diag: psycopg2.extensions.Diagnostics, is_about_rows: bool, mask: Callable[[str], str]
) -> Iterator[str]:
    """What PostgreSQL says besides its message. If it is about rows, only the names of objects."""
    names = []
    if diag.constraint_name:
        names.append(f"constraint {diag.constraint_name}")
    if diag.table_name:
        names.append(f"table {diag.table_name}")
    if diag.column_name:
        names.append(f"column {diag.column_name}")
    if is_about_rows and names:
        yield "ON: " + ", ".join(names)
    hint = diag.message_hint or ""
    if not hint.startswith(POSTGRESQLS_OWN_HINTS):
        hint = mask(hint)
    detail = "" if is_about_rows else mask(diag.message_detail or "")
    if detail not in ("", masking.MASK):
        yield f"DETAIL: {detail[:300]}"
    if hint not in ("", masking.MASK):
        yield f"HINT: {hint[:300]}"


def _excerpt_of(script: Script, offset: int, exact: bool) -> Iterator[str]:
    start = script.start_near(script.text.rfind("\n", 0, offset) + 1)
    return excerpt(script.text, offset, exact, script.backslash_escapes, start)


def excerpt(
    text: str,
    offset: int,
    exact: bool = True,
    backslash_escapes: bool = False,
    known_start: int = 0,
) -> Iterator[str]:
    """The line of SQL at the offset and, if `exact`, a caret under it.

    Of a long line only the part around the offset; literals are masked.
    """
    line, column = masking.shown_line(text, offset, backslash_escapes, known_start)
    line = line.rstrip().expandtabs(1)
    if not line.strip(f" ;{masking.MASK}"):
        return
    number = text.count("\n", 0, offset) + 1
    shown_from = column
    if exact:
        shown_from -= LINE_WIDTH * 2 // 3  # most of what is shown precedes the caret
    shown_from = max(0, min(shown_from, len(line) - LINE_WIDTH))
    shown_to = shown_from + LINE_WIDTH

    prefix = f"LINE {number}: "
    if shown_from > 0:
        prefix += "…"
    suffix = "…" if shown_to < len(line) else ""
    yield f"{prefix}{line[shown_from:shown_to]}{suffix}"
    if exact:
        yield " " * (len(prefix) + column - shown_from) + "^"


# --- Common mistakes ------------------------------------------------------------------------------

# The names of functions, types, operator classes and access methods, and the extension with them.
EXTENSIONS = (
    (r"uuid_generate_.*", '"uuid-ossp"'),
    (r"gen_salt|crypt|digest|hmac|pgp_.*|gen_random_bytes", "pgcrypto"),
    (r"similarity|word_similarity|gin_trgm_ops|gist_trgm_ops", "pg_trgm"),
    (r"citext", "citext"),
    (r"hstore", "hstore"),
    (r"geometry|geography|st_.*", "postgis"),
    (r"vector|halfvec|sparsevec|hnsw|ivfflat", "vector"),
    (r"ltree|lquery|ltxtquery", "ltree"),
    (r"unaccent", "unaccent"),
    (r"gist_\w+_ops", "btree_gist"),
)
NO_IF_NOT_EXISTS = (
    "PostgreSQL has no IF NOT EXISTS here; leave it out, since the file runs only once"
)
DISK_FULL = (
    "The file is not the reason: the server's disk is full. Enlarge it, or delete what is not "
    "needed"
)
DAMAGE = "The file is not the reason: something on the server's disk is damaged or missing"
LIMIT_REACHED = (
    "The file is not the reason: the server has reached a limit. Raise that limit, use a larger "
    "instance, or change fewer rows at a time"
)
LOCKS_FULL = (
    "The lock table that all sessions share is full. If the file changes thousands of tables, "
    "split it, or raise max_locks_per_transaction (in the parameter group). If not, another "
    "session holds the locks: SELECT pid, count(*) FROM pg_locks GROUP BY 1 ORDER BY 2 DESC, and "
    "end that one with pg_terminate_backend"
)
# By what is found in an SQLSTATE and PostgreSQL's words, for statements of ours.
STEPS_OUTSIDE_OF_SCRIPTS = (
    (
        '^3F000 schema "public"',
        "db_setup keeps its table in schema public, which is missing: CREATE SCHEMA public, as the "
        "admin, and invoke again",
    ),
    ('^3F000 schema "', "Invoke a migration first: it creates the schema that DB_SCHEMA names"),
    (
        r"^42501 permission denied to create role\b",
        "Give the admin CREATEROLE, or set CREATE_USERS to false; then invoke again",
    ),
    (
        '^42.* role "rds_iam"',
        "A login that signs in by IAM needs RDS, and an admin that may GRANT rds_iam: WITH ADMIN "
        'OPTION, by the master; or leave USERS_SIGN_IN="password"',
    ),
    ("^42501", "Give the admin that right, or make it the owner"),
    (
        "^53100",
        "The server's disk is full: enlarge it, or delete what is not needed, and invoke again",
    ),
    ("^53200 .*shared memory", LOCKS_FULL + ", and invoke again"),
    ("^53", "The server has reached a limit: raise it, or use a larger instance, and invoke again"),
)
# The first that applies counts.
MISTAKES = (
    Mistake(
        "42601",
        said='at or near "NOT"',
        before=r"\bIF\s+$",
        advice=NO_IF_NOT_EXISTS,
    ),
    Mistake(
        "42601",
        said='at or near "EXISTS"',
        before=r"\bIF\s+NOT\s+$",
        advice=NO_IF_NOT_EXISTS,
    ),
    Mistake(
        "42601",
        said='at or near "NOT"',
        before=r'\bALTER\s+(COLUMN\s+)?("[^"]+"|\w+)\s+$',
        advice="Write SET NOT NULL",
    ),
    Mistake(
        "42601",
        said="at or near ",
        before=r"\w'$",
        after=r"^\w",
        advice="A quote inside a string is written twice ('')",
    ),
    Mistake(
        "42710",
        said='constraint "(.+?)" for relation "(.+?)"',
        advice="Write ALTER TABLE {1} DROP CONSTRAINT IF EXISTS {0}; above it",
    ),
    Mistake(
        "42710|42P07|42701|42723|42P06",
        said='"[^"]{63}"',
        advice="PostgreSQL keeps 63 bytes of a name, so two long ones can be the same; shorten it",
    ),
    Mistake(
        "42710|42P07|42701|42723|42P06",
        said="already exists",
        advice="It was made by hand, by another file, further up in this one, or by a run whose "
        "row is gone; leave it out, or write IF NOT EXISTS or OR REPLACE where that exists",
    ),
    Mistake(
        "42804",
        said='column "(.+?)" cannot be cast automatically to type (.+)',
        advice="Say after the type how to convert it, such as USING {0}::{1}",
    ),
    Mistake(
        "42501|42704",
        said='(?:member of role|SET ROLE|^role) "(.+?)"',
        after=r"^[^;]*\bOWNER\s+TO\b",
        advice="Leave OWNER TO out (pg_dump --no-owner does), or first make sure that role {0} "
        "exists and GRANT it to the admin",
    ),
    Mistake(
        "42704",
        said='role "(.+?)" does not exist',
        after=r"^\s*DROP\b",
        advice="Write IF EXISTS",
    ),
    Mistake(
        "42704",
        said='role "(.+?)" does not exist',
        advice="Add CREATE ROLE above this statement, or name another role (db_setup "
        "creates readwrite and tablecreator, with ROLE_PREFIX before them, unless CREATE_USERS "
        "is false)",
    ),
    Mistake(
        "42704",
        said='no default operator class for access method "(gist|gin)"',
        advice=(
            "Add CREATE EXTENSION IF NOT EXISTS btree_{0}; above this statement, if this server "
            "has the extension"
        ),
    ),
    Mistake(
        "22023|42704",
        said="unrecognized (configuration )?parameter",
        advice=(
            "This server does not know that option; leave it out, or dump with the pg_dump of this "
            "server's own version"
        ),
    ),
    Mistake(
        IN_TRANSACTION,
        said="executed from a function|cannot run inside a transaction block",
        after=r"^\s*(DO|CALL|SELECT|INSERT|UPDATE|DELETE|WITH)\b",
        advice="Write it as a statement of its own, outside of any block or function",
    ),
    Mistake(
        IN_TRANSACTION,
        said="must be called before any query",
        advice="Put it first in the file",
    ),
    Mistake(
        "0A000|58P01|22023",
        said="extension .*(is not available|control file|not allow-listed)",
        advice="This server does not have that extension; SELECT name FROM "
        "pg_available_extensions lists those that it has",
    ),
    Mistake(
        "42501",
        said="is a system trigger",
        advice="Only a superuser can disable the triggers of foreign keys; write DISABLE TRIGGER "
        "USER, or dump without --disable-triggers",
    ),
    Mistake(
        "42501",
        said=r"must be owner of extension (\S+)",
        advice="Leave it out: extension {0} belongs to another role, on RDS to its own superuser",
    ),
    Mistake(
        "42501",
        said=r"superuser|permission denied to (create extension|set parameter)|"
        r'(SUPERUSER|REPLICATION|BYPASSRLS) attribute|"pg_\w+" role',
        advice="The admin of RDS is not a superuser; leave it out, or use what RDS has instead "
        "(parameter group, rds_superuser)",
    ),
    Mistake(
        "42501",
        said="must be (owner|member|able to SET ROLE)|to change default privileges",
        advice="As its owner, ALTER … OWNER TO the admin, or GRANT the owning role to the admin",
    ),
    Mistake(
        "42501",
        said="permission denied",
        advice="The admin lacks that right; as the owner GRANT it, or make the admin the owner",
    ),
    Mistake(
        NEW_ENUM_VALUE,
        said="",
        advice="Put ALTER TYPE … ADD VALUE into a file of its own before this one",
    ),
    Mistake(
        "23502",
        said='column "(.+?)" of relation "(.+?)" contains null values',
        after=r"^[^;]*\b(SET\s+NOT\s+NULL|VALIDATE|"
        r"ADD\s+(CONSTRAINT\s+\S+\s+)?(NOT\s+NULL|PRIMARY\s+KEY))",
        advice='First give these rows a value, with UPDATE "{1}" SET "{0}" = … WHERE "{0}" IS NULL',
    ),
    Mistake(
        "23502",
        said="contains null values",
        advice="Add the column with a DEFAULT; or without NOT NULL, fill it, and SET NOT NULL then",
    ),
    Mistake(
        "23505",
        said="could not create unique index",
        advice="Several rows have the same key; find them with GROUP BY … HAVING count(*) > 1, and "
        "correct them first",
    ),
    Mistake(
        "23503|23514",
        said="^(?!new row)",
        advice="There are rows that violate it; correct them first, or add the constraint NOT "
        "VALID and VALIDATE it later",
    ),
    Mistake(
        "2BP01",
        said="role .* cannot be dropped because some objects depend on it",
        advice="First REASSIGN OWNED BY this role TO another, and DROP OWNED BY this role",
    ),
    Mistake(
        "2BP01|0A000|42601",
        said=r"\bdepend|\bused (by|in) a",
        advice="First DROP what depends on it, and CREATE that again afterwards, in the same file",
    ),
    Mistake(
        CANCELLED,  # by none of those that state_and_step knows
        said="",
        advice="The file's own statement_timeout was too short; raise it, or leave it out",
    ),
    Mistake(
        "55006",
        said="pending trigger events",
        advice="Write SET CONSTRAINTS ALL IMMEDIATE; above this statement",
    ),
    Mistake(
        NO_SUCH_CHARACTER,
        said='no equivalent in encoding "(.+?)"',
        advice="The database's encoding {0} does not have that character; write another one, or "
        "migrate to a database with encoding UTF8",
    ),
    Mistake(
        "3F000",
        said="no schema has been selected",
        advice="The search path names no schema that exists here; write the schema before the "
        "name, or SET search_path above this statement",
    ),
    Mistake(
        "53100",
        said="",
        advice=DISK_FULL,
    ),
    Mistake(
        NO_CHARACTER,
        said='for encoding "(.+?)"',
        advice="These bytes are no text in {0}; write the character itself, or use bytea",
    ),
    Mistake(
        "XX00[12]|58P01",
        said=r'(?:relation|file) "?base/\d+/(\d+)',
        advice=f"{DAMAGE}. SELECT pg_filenode_relation(0, {{0}}) names it: REINDEX it if it is an "
        "index, else restore a backup",
    ),
    Mistake(
        "XX00[12]",
        said='index "(.+?)"',
        advice=f'{DAMAGE}. Rebuild the index: REINDEX INDEX "{{0}}"',
    ),
    Mistake(
        "58P01",
        said="could not (access|load|find)",
        advice="The server lacks the library of this function; install its extension, or leave it "
        "out",
    ),
    Mistake(
        "XX00[12]|58...",
        said="",
        advice=f"{DAMAGE}; its log says more",
    ),
    Mistake(
        "54000",
        said="^index row",
        advice="A value is too long for an index; index its md5(), or leave the index out",
    ),
    Mistake(
        "54000",
        said=r"^row is too big\b",
        advice="A row must fit 8 kB, apart from long values; use fewer columns, or one of jsonb",
    ),
    Mistake(
        "54001|42601",
        said="^(stack depth|memory exhausted)",
        advice="Something is nested too deeply: a function that calls itself without end, or an "
        "expression of thousands of terms; write it as rows, or in parts",
    ),
    Mistake(
        "53200",
        said="shared memory",
        advice=LOCKS_FULL,
    ),
    Mistake(
        "53...",
        said="",
        advice=LIMIT_REACHED,
    ),
    Mistake(
        "42P16",
        said="cannot (drop columns from|change (name|data type|collation) of) view",
        advice="CREATE OR REPLACE VIEW only adds columns at the end; DROP VIEW first",
    ),
)

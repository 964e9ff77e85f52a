"""What is to be said of a script that failed: the place, PostgreSQL's words, the state, what to write instead.

Knows PostgreSQL's errors and scripts, nothing of migrations or AWS. Pure. No row of a table is ever shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import psycopg2
from database import RETRYABLE
from sql_scanner import Script, body_of, locate

NOT_IN_TRANSACTION = ("25001", "2D000", "55P04")  # refused inside a transaction block; a new enum value used too early
SYNTAX_ERROR, SAVEPOINT_GONE, READ_ONLY = "42601", "3B001", "25006"
SAVEPOINT = "db_setup_file"
SHOWN = 100  # characters of a line
SECRET = re.compile(r"passwor|identified\s+by|(create|alter)\s+(role|user)\b", re.IGNORECASE)
ROWS = re.compile(r"(INSERT|UPDATE|DELETE|MERGE|WITH|SELECT|VALUES|COPY)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """How a run of a script ended. `offset` is a place in it; `exact` where PostgreSQL itself named that place;
    `at_end` where all statements went well and what comes behind them did not."""

    holds_lock: bool = True
    is_fresh: bool = True  # the session is as a new one would be
    error: Optional[psycopg2.Error] = None
    refusal: str = ""
    offset: int = 0
    exact: bool = False
    at_end: bool = False
    in_rows: bool = False  # the place is one of the rows of a COPY
    connection_lost: bool = False
    goes_on: bool = False  # the server may still be at it
    in_the_way: bool = False  # others are, for a while
    untried: tuple[str, ...] = ()  # what a dry run cannot try
    rehearsed: bool = False  # a dry run, of which nothing stays

    @property
    def failed(self) -> bool:
        return self.error is not None or self.refusal != ""

    @property
    def stopped(self) -> bool:
        return self.code == "57014" and "user request" in str(self.error)

    @property
    def code(self) -> str:
        return RETRYABLE[0] if self.in_the_way else (self.error and self.error.pgcode) or ""


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


# The names of functions, types, operator classes and access methods, and whose they are.
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
# SQLSTATE, a pattern, and what to write instead, where {0} is the first group. The pattern looks at PostgreSQL's words,
# the text before the place (where PostgreSQL named it) and the text behind it, with | between them.
MISTAKES: Sequence[tuple[str, str, str]] = (
    (
        "42601",
        r'at or near "(NOT"[^|]*\|.*\bIF|EXISTS"[^|]*\|.*\bIF\s+NOT)\s+\|',
        "PostgreSQL has no IF NOT EXISTS here; leave it out, since the file runs only once",
    ),
    (
        "42601",
        r'at or near "NOT"[^|]*\|.*\bALTER\s+(COLUMN\s+)?("[^"]+"|\w+)\s+\|',
        "Write SET NOT NULL",
    ),
    (
        "42601",
        r"at or near [^|]*\|.*\w'\|\w",
        "A quote inside a string is written twice ('')",
    ),
    (
        "42710",
        'constraint "(.+?)" for relation "(.+?)"',
        "Write ALTER TABLE {1} DROP CONSTRAINT IF EXISTS {0}; before it",
    ),
    (
        "42710|42P07|42701|42723|42P06",
        "already exists",
        "It was made by hand, by another file, or further up in this one; leave it out, or write IF NOT EXISTS or "
        "OR REPLACE where that exists",
    ),
    (
        "42704",
        r'role "(.+?)" does not exist[^|]*\|[^|]*\|\s*DROP\b',
        "Write IF EXISTS",
    ),
    (
        "42704",
        'role "(.+?)" does not exist',
        "CREATE ROLE before it, or name another (readwrite and tablecreator, behind ROLE_PREFIX, are made unless "
        "CREATE_USERS is false)",
    ),
    (
        "42704",
        'no default operator class for access method "(gist|gin)"',
        "Write CREATE EXTENSION IF NOT EXISTS btree_{0}; before it, if this server has it",
    ),
    (
        "22023|42704",
        "unrecognized (configuration )?parameter",
        "This server does not know that option; leave it out, or dump with the pg_dump of this server's own version",
    ),
    (
        "25001",
        r"cannot be executed from a function|\|\s*(DO|CALL|SELECT)\b",
        "Write it as a statement of its own, outside of the block",
    ),
    (
        "25001",
        "must be called before any query",
        "Put it first in the file",
    ),
    (
        "0A000|58P01|22023",
        "extension .*(is not available|control file|not allow-listed)",
        "This server does not have that extension; SELECT name FROM pg_available_extensions lists those that it has",
    ),
    (
        "42501",
        r"superuser|permission denied to (create extension|set parameter)|(SUPERUSER|REPLICATION|BYPASSRLS) attribute|"
        r'"pg_\w+" role',
        "The admin of RDS is no superuser; leave it out, or look how RDS does it (parameter group, rds_superuser)",
    ),
    (
        "42501",
        "must be (owner|member|able to SET ROLE)|to change default privileges",
        "As its owner, ALTER … OWNER TO the admin, or GRANT the owning role to the admin",
    ),
    (
        "42501",
        "permission denied",
        "The admin lacks that right; as the owner GRANT it, or make the admin the owner",
    ),
    (
        "55P04",
        "",
        "Put ALTER TYPE … ADD VALUE into a file of its own before this one",
    ),
    (
        "23502",
        r'column "(.+?)" of relation "(.+?)" contains null values[^|]*\|[^|]*\|[^;]*\b(SET\s+NOT\s+NULL|VALIDATE|'
        r"ADD\s+(CONSTRAINT\s+\S+\s+)?(NOT\s+NULL|PRIMARY\s+KEY))",
        'Give these rows a value before it, with UPDATE "{1}" SET "{0}" = … WHERE "{0}" IS NULL',
    ),
    (
        "23502",
        "contains null values",
        "Add the column with a DEFAULT; or without NOT NULL, fill it, and SET NOT NULL then",
    ),
    (
        "23505",
        "could not create unique index",
        "Several rows have the same key; find them with GROUP BY … HAVING count(*) > 1, and correct them before it",
    ),
    (
        "23503|23514",
        "^(?!new row)",
        "There are rows that break it; correct them before it, or add the constraint NOT VALID and VALIDATE it later",
    ),
    (
        "2BP01",
        "role .* cannot be dropped because some objects depend on it",
        "REASSIGN OWNED BY it TO another, and DROP OWNED BY it, before",
    ),
    (
        "2BP01",
        "",
        "DROP what depends on it before, and CREATE it again behind it, in the same file",
    ),
    (
        "0A000|42601",
        r"^[^|]*\bused (by|in) a",
        "DROP what uses it before, and CREATE it again behind it, in the same file",
    ),
    (
        "42P16",
        "cannot (drop columns from|change (name|data type|collation) of) view",
        "CREATE OR REPLACE VIEW only adds columns at the end; DROP VIEW before it",
    ),
)


def advice(script: Script, outcome: Outcome) -> str:
    """One sentence that tells what to write instead, for the commonest mistakes."""
    diag = outcome.error.diag if outcome.error else None
    text, at = script.text, outcome.offset
    new_rows = (
        ROWS.match(text, at) or outcome.in_rows or outcome.at_end or (diag and "PL/pgSQL" in (diag.context or ""))
    )
    if diag is None or (outcome.code.startswith("23") and new_rows):
        return ""  # it is not old rows that break a constraint
    said = diag.message_primary or ""
    if outcome.code == "42501":
        said += f" {diag.message_detail or ''}"  # from PostgreSQL 16 on, only this tells that it takes a superuser
    missing = re.search(r'(?:function|type|operator class|access method) "?(.+?)(?:\(|"| does not exist)', said)
    if outcome.code in ("42883", "42704") and missing:
        name = missing.group(1).split(".")[-1]
        for names, extension in EXTENSIONS:
            if re.fullmatch(names, name, re.IGNORECASE):
                return f"Write CREATE EXTENSION IF NOT EXISTS {extension}; before it, if this server has it"
    seen = f"{said}|{text[max(at - 60, 0) : at] if outcome.exact else ''}|{text[at : at + 300]}".replace("\n", " ")
    for codes, pattern, sentence in MISTAKES:
        found = re.search(pattern, seen)
        if re.fullmatch(codes, outcome.code) and found:
            return sentence.format(*found.groups(""))
    return ""


def excerpt(text: str, offset: int, exact: bool = True) -> Iterator[str]:
    """The line of SQL and, under it, a caret where `exact`; nothing where it may hold a password. Of a long one the
    part at the offset."""
    start, end = text.rfind("\n", 0, offset) + 1, text.find("\n", offset)
    line = text[start : end if end >= 0 else None].rstrip().expandtabs(1)
    if not line.strip() or SECRET.search(text, max(start - 300, 0), start + len(line)):
        return
    number, at = text.count("\n", 0, offset) + 1, offset - start
    first = max(0, min(at - SHOWN * 2 // 3 if exact else at, len(line) - SHOWN))
    before, part = "…" if first else "", line[first : first + SHOWN]
    yield f"LINE {number}: {before}{part}{'…' if first + SHOWN < len(line) else ''}"
    if exact:
        yield " " * (len(f"LINE {number}: {before}") + at - first) + "^"


def state_and_step(script: Script, outcome: Outcome, blocked_by: Sequence[str] = ()) -> str:
    """Of the cases that apply, the first: the state we are in, and what to do."""
    code, several, in_steps = outcome.code, script.count > 1, script.unwrapped
    by = f" ({', '.join(blocked_by)})" if blocked_by else ""
    or_end = ", or end them: SELECT pg_terminate_backend(PID)" if blocked_by else ""
    stays = in_steps and not outcome.rehearsed
    kept = "What stands before this statement is done and stays: leave it as it is. " if stays else "Rolled back. "
    go_on = "" if outcome.rehearsed else " to go on"
    instead = advice(script, outcome)
    then = f"{instead}. Then deploy again" if instead else "Mend the file and deploy again"
    gone = code == SAVEPOINT_GONE and SAVEPOINT in str(outcome.error)
    cases = (
        (
            outcome.refusal and not outcome.in_the_way,
            "What has run stays done. Deploy again then: the run goes on behind it.",
        ),
        (
            outcome.goes_on,
            "The connection was closed; the server goes on building, and holds the lock until it is done. Invoke again "
            "then: a finished index is recorded, an unfinished one built anew.",
        ),
        (
            outcome.connection_lost,
            f"The connection was lost; the server rolls {'this statement' if in_steps else 'the file'} back unless it "
            "had just finished, and the tracking table knows. Invoke again.",
        ),
        (
            outcome.stopped,
            f"{kept}It was stopped, by the deadline or by an administrator. Invoke again{go_on}; if it needs longer "
            "than the function's timeout, raise that or split the file.",
        ),
        (
            code in RETRYABLE,
            f"{kept}Other sessions were in the way each time{by}: invoke again when they are done{or_end}.",
        ),
        (
            in_steps,
            f"{kept}{then}{': the run goes on here' if stays else ''}.",
        ),
        (
            code == "2D000",
            "Rolled back. A block that commits by itself needs a file that is no transaction: write -- no-transaction "
            "in the first line, see that the block can be repeated, and deploy again.",
        ),
        (
            code in NOT_IN_TRANSACTION and several and not (code == "25001" and instead),
            "Rolled back. This file of several statements is one transaction: put the statement into a file of its "
            "own, or write -- no-transaction in the first line, and deploy again.",
        ),
        (
            gone,
            "A statement of this file has ended the transaction that the file is: what stands before it is kept, but "
            "the file is not recorded. Look at what it has done, make the file repeatable, and deploy again.",
        ),
    )
    return next((text for applies, text in cases if applies), f"Rolled back. {then}.")


def _has_no_place(script: Script, outcome: Outcome) -> bool:
    """No line can be shown: it is not known, or may hold rows."""
    if outcome.in_rows or (
        outcome.code[:2] in ("22", "23") and ROWS.match(script.text, _statement_at(script, outcome))
    ):
        return True
    ended = outcome.connection_lost or outcome.stopped or outcome.code == SAVEPOINT_GONE
    return not outcome.exact and (ended or outcome.at_end)


def _statement_at(script: Script, outcome: Outcome) -> int:
    """Where the statement begins that failed."""
    found = (s.start for s in script.statements() if s.start <= outcome.offset < s.end)
    return next(found, outcome.offset) if outcome.exact else outcome.offset


def details(script: Script, outcome: Outcome) -> Iterator[str]:
    """Further lines: the line of SQL, where in a function, which constraint, PostgreSQL's DETAIL (unless it holds a
    row), HINT."""
    diag = outcome.error.diag if outcome.error else None
    context = diag.context if diag else ""
    inner = re.search(r"^(?:PL/pgSQL|SQL) function (.+?),? (line|statement) (\d+)", context or "", re.MULTILINE)
    if inner and inner.group(1) == "inline_code_block" and not outcome.stopped:
        body = locate(script.text, body_of(script.text, outcome.offset))[0]
        number = body + int(inner.group(3)) - 1
        yield f"IN: the DO block, line {number} of the file"
        if outcome.code[:2] not in ("22", "23"):
            yield from excerpt(
                script.text, len("".join(script.text.split("\n")[: number - 1])) + number - 1, exact=False
            )
    elif not _has_no_place(script, outcome):
        yield from excerpt(script.text, outcome.offset, outcome.exact)
    if inner and inner.group(1) != "inline_code_block":
        yield f"IN: function {inner.group(1)}, its {inner.group(2)} {inner.group(3)}"
    if diag is None:
        return
    named = (("constraint", diag.constraint_name), ("table", diag.table_name), ("column", diag.column_name))
    if outcome.code[:2] in ("22", "23") and any(name for _, name in named):
        yield "ON: " + ", ".join(f"{kind} {name}" for kind, name in named if name)
    elif diag.message_detail and outcome.code[:2] not in ("22", "23"):
        yield f"DETAIL: {diag.message_detail[:300]}"
    if diag.message_hint:
        yield f"HINT: {diag.message_hint[:300]}"

"""What no ROLLBACK takes back: calls that reach beyond their transaction.

Knows PostgreSQL and scripts, nothing of migrations or AWS. Tells what can be told from tokens: not
what a string means that only becomes SQL where it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import sql_scanner
from session import Session
from sql_scanner import Script

# Names end, as PostgreSQL's do: others can have written what is searched.
CALLS = "|".join(
    [
        r"dblink(?:_(?:connect|exec|open|fetch|send_query|get_result)\w{0,63})?",
        r'(?:aws_lambda|aws_s3|lambda_async)(?:"?\s{0,9}\.\s{0,9}"?\w{1,63})?',
        r"http(?:_(?:get|post|put|patch|delete|head))?",
        r"pg_(?:create|drop|copy)_\w{0,63}replication_slot|pg_replication_slot_advance",
        r"pg_replication_origin_\w{1,63}|pg_logical_slot_get_\w{1,63}|pg_logical_emit_message",
        r"pg_switch_wal|pg_create_restore_point|pg_reload_conf|pg_rotate_logfile|pg_promote",
        r"pg_background_launch|pg_stat_\w{0,63}reset\w{0,63}",
        r"pg_file_(?:write|rename|unlink|sync)|lo_export",
    ]
)
PROGRAM = r"\b(?:TO|FROM)\s+PROGRAM\b"  # COPY
BODY_OF = re.compile(r"DO\b|CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b", re.IGNORECASE)
STRINGS = ("string", "escape_string", "bit_or_unicode_string", "dollar_string")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Reach:
    """The calls that stay, and the functions and relations of a database that make one."""

    call: re.Pattern[str]
    names: frozenset[str]

    @classmethod
    def of(cls, session: Session, counts_setval: bool = False) -> Reach:
        """`counts_setval`: there are sequences, which keep what setval gives them."""
        calls = rf"{CALLS}|setval" if counts_setval else CALLS
        call = re.compile(rf'\b(?:{calls})"?\s*\(|{PROGRAM}', re.IGNORECASE)
        used: list[tuple[str, set[str]]] = []
        names = set()
        found = session.query(DEFINITIONS_SQL)
        known = {name.lower() for name, _, _ in found}
        for name, definition, is_opaque in found:
            if is_opaque or (call.search(definition) and call.search(executed(definition))):
                names.add(name.lower())
            used.append((name.lower(), known.intersection(WORD.findall(definition.lower()))))
        grown = names
        while grown:
            grown = {name for name, words in used if not words.isdisjoint(grown)} - names
            names |= grown
        return cls(call, frozenset(names))

    def call_in(self, script: Script) -> str:
        """What a script calls, itself or by what the database has; empty: nothing known."""
        code = script.text
        if len(code) <= sql_scanner.ONE_MESSAGE:  # each token of a longer one would take its time
            each = map(script.statement_sql, script.statements())
            code = ";".join(executed(one, script.backslash_escapes) for one in each)
        call = self.call.search(code)
        if call:
            return call.group().rstrip(' ("')
        if not self.names:
            return ""
        words = (found.group() for found in WORD.finditer(code))
        return next((word for word in words if word.lower() in self.names), "")


def executed(text: str, backslash_escapes: bool = False) -> str:
    """The text without comments and strings; but with bodies, and in those with EXECUTE the
    strings, which may be SQL.
    """
    try:
        return "".join(_executed(text, backslash_escapes))
    except sql_scanner.ScanError:  # the body of another language
        return text


def _executed(text: str, backslash_escapes: bool) -> Iterator[str]:
    offset = 0
    has_body = False
    begins = True
    while offset < len(text):
        kind, end = sql_scanner.read_token(text, offset, backslash_escapes)
        if begins and kind != "space":
            has_body = BODY_OF.match(text, offset) is not None
            begins = False
        if kind == "semicolon":
            begins = True
        elif kind in STRINGS and has_body:
            body = _content(text[offset:end])
            code = executed(body)
            yield " "
            yield body if re.search(r"\bEXECUTE\b", code, re.IGNORECASE) else code
        yield " " if kind in (*STRINGS, "space") else text[offset:end]
        offset = end


def _content(literal: str) -> str:
    if literal.startswith("$"):
        tag = literal[: literal.index("$", 1) + 1]
        return literal[len(tag) : -len(tag)]
    return literal[literal.index("'") + 1 : -1].replace("''", "'")


MOST_CODE = 10_000_000  # characters in all: others can have written very much
# What can be called by its name: functions (true: in a language that can do anything), and what
# PostgreSQL executes with a relation. It makes its own objects with numbers below 16384. The
# longest ones are not fetched where all are too much, and count as able to do anything.
DEFINITIONS_SQL = f"""
    SELECT name, CASE WHEN total <= {MOST_CODE} THEN definition ELSE '' END,
           is_opaque OR total > {MOST_CODE}
    FROM (SELECT *, sum(length(definition)) OVER (ORDER BY length(definition), name) AS total FROM (
    SELECT proname::text, CASE WHEN prokind = 'a' THEN '' ELSE pg_get_functiondef(p.oid) END,
           lanname NOT IN ('sql', 'plpgsql')
    FROM pg_proc p JOIN pg_language l ON l.oid = prolang AND lanname NOT IN ('internal', 'c')
    WHERE p.oid >= 16384 AND NOT EXISTS (
        SELECT FROM pg_depend d
        WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
    UNION ALL
    SELECT relname::text, pg_get_triggerdef(t.oid), false
    FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal
    UNION ALL  -- rules, of which a view is one
    SELECT relname::text, pg_get_ruledef(r.oid), false
    FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class WHERE r.oid >= 16384
    UNION ALL
    SELECT relname::text, pg_get_expr(adbin, adrelid), false
    FROM pg_attrdef JOIN pg_class c ON c.oid = adrelid
    ) d(name, definition, is_opaque)) s"""

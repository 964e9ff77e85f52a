"""What no ROLLBACK takes back: calls that reach beyond their transaction.

Knows PostgreSQL, nothing of migrations or AWS.
"""

from __future__ import annotations

import re

from psycopg2 import sql
from session import Session

# As names in a text, in the words of Python's and PostgreSQL's regular expressions.
_CALLS = "|".join(
    [
        r"dblink\w*",
        r"aws_lambda|aws_s3|lambda_async",
        r"http_(get|post|put|patch|delete|head)|http\s*\(",
        r"pg_(create|drop|copy)_\w*replication_slot|pg_replication_slot_advance",
        r"pg_replication_origin_\w+|pg_logical_slot_get_\w+|pg_logical_emit_message",
        r"pg_switch_wal|pg_create_restore_point|pg_reload_conf|pg_rotate_logfile|pg_promote",
        r"pg_background_launch|pg_stat_\w*reset\w*",
        r"pg_file_(write|rename|unlink|sync)|lo_export|PROGRAM\s+'",
    ]
)
CALL = re.compile(rf"\b(?:{_CALLS})", re.IGNORECASE)

# Functions that make such a call, or are in a language that can do anything.
REACHING_FUNCTIONS_SQL = """
    SELECT p.oid, p.proname::text AS name FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                      AND d.objid = p.oid AND d.deptype = 'e')
      AND (l.lanname NOT IN ('internal', 'c', 'sql', 'plpgsql') OR p.prosrc ~* {pattern}
           OR EXISTS (SELECT FROM pg_catalog.pg_depend d
                      JOIN pg_catalog.pg_proc q ON q.oid = d.refobjid
                      WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                        AND d.objid = p.oid
                        AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                        AND q.proname ~* {pattern}))"""


# The same, and the tables whose triggers are such functions.
REACHING_NAMES_SQL = """
    WITH reaching AS ({functions})
    SELECT name FROM reaching UNION SELECT c.relname::text FROM pg_catalog.pg_trigger t
    JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN reaching r ON r.oid = t.tgfoid"""


def call_that_stays(session: Session, text: str) -> str:
    """What this text calls, itself or by a function or a trigger of this database; empty:
    nothing known.
    """
    call = CALL.search(text)
    if call:
        return call.group().rstrip(" ('")
    names = sql.SQL(REACHING_NAMES_SQL).format(functions=reaching_functions_sql())
    for (name,) in session.query(names):
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE):
            return str(name)
    return ""


def reaching_functions_sql() -> sql.Composable:
    pattern = sql.Literal(rf"\m({_CALLS})")
    return sql.SQL(REACHING_FUNCTIONS_SQL).format(pattern=pattern)


def can_be_reached(session: Session, text: str) -> bool:
    """Running this text may do what stays, if only by a function of this database."""
    if CALL.search(text):
        return True
    any_function = sql.SQL("SELECT EXISTS ({})").format(reaching_functions_sql())
    return bool(session.query(any_function)[0][0])

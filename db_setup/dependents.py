"""Whose objects depend on what a file drops or alters: PostgreSQL refuses that at once, and names
no owner and no session.

Any login can make a temporary object that uses a type, a function or a sequence of the admin.
Knows PostgreSQL's catalogs, nothing of migrations or AWS.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, Optional

import psycopg2
from session import Session

REFUSALS = ("2BP01", "0A000")  # to drop, and to alter, what something depends on
SHOWN = 3


class Dependent(NamedTuple):
    """An object of another role, or of another session."""

    owner: str
    remedy: str  # the statement that removes it
    is_temporary: bool
    pids: Sequence[int]  # of the sessions that a temporary one can belong to

    def __str__(self) -> str:
        if not self.is_temporary:
            return f"as {self.owner}: {self.remedy}"
        ends = (f"SELECT pg_terminate_backend({pid})" for pid in self.pids)
        return f"a temporary object of {self.owner} depends on it: {' or '.join(ends)}"


def of(session: Session, error: Optional[psycopg2.Error]) -> list[Dependent]:
    """Those of others that are the reason for this error; none where it has another one."""
    if error is None or error.pgcode not in REFUSALS or session.is_lost:
        return []
    said = {"said": error.diag.message_primary or "", "detail": error.diag.message_detail or ""}
    exact = session.server_version >= 160000
    question = DEPENDENTS_SQL.format(number=EXACT_SQL if exact else BETWEEN_SQL)
    # A script may have left another role and path.
    with suppress(psycopg2.Error), session.transaction():
        session.query("SET LOCAL search_path = pg_catalog")
        return [Dependent(*row) for row in session.query(question, said)]
    return []


def end_limited(session: Session, error: Optional[psycopg2.Error]) -> bool:
    """End the sessions of limited users whose temporary objects are the reason for this error; says
    whether there were any.
    """
    pids = [pid for dependent in of(session, error) for pid in dependent.pids]
    return bool(pids) and session.end_limited_among(pids)


def advice(dependents: Sequence[Dependent]) -> str:
    """What to do about them, in one sentence without its full stop."""
    each = sorted({str(dependent) for dependent in dependents})
    more = f"; and {len(each) - SHOWN} more" if len(each) > SHOWN else ""
    return f"Others depend on it; {'; '.join(each[:SHOWN])}{more}" if each else ""


# The number of a temporary schema is its session's. From PostgreSQL 16 on, these functions count in
# the same way; before, they leave out the numbers that are free, of which some are below our own.
EXACT_SQL = "b.n = temporary"
BETWEEN_SQL = """b.n BETWEEN CASE WHEN temporary < o.id THEN temporary - (o.id - o.n) ELSE o.n END
                   AND CASE WHEN temporary < o.id THEN temporary ELSE temporary - (o.id - o.n) END
                 AND b.n <> o.n"""
# PostgreSQL names what depends in the detail, with its schema where others would not find it; or,
# of a column whose type is a row, its table and column without one. Of a domain's temporary columns
# it says nothing at all. (Of its own objects the numbers are below 16384.)
DEPENDENTS_SQL = """
    WITH found AS (
        SELECT DISTINCT coalesce(relowner, proowner, typowner) AS owner,
            CASE WHEN nspname ~ '^pg_temp_' THEN substr(nspname, 9)::int END AS temporary,
            CASE WHEN p.oid IS NOT NULL THEN format('DROP ROUTINE %%s', p.oid::regprocedure)
                WHEN t.oid IS NOT NULL THEN format('DROP TYPE %%s', t.oid::regtype)
                WHEN f.oid IS NOT NULL
                    THEN format('ALTER TABLE %%s ALTER %%I DROP DEFAULT', c.oid::regclass, attname)
                WHEN g.oid IS NOT NULL
                    THEN format('DROP TRIGGER %%I ON %%s', tgname, c.oid::regclass)
                WHEN k.oid IS NOT NULL
                    THEN format('ALTER TABLE %%s DROP CONSTRAINT %%I', c.oid::regclass, conname)
                WHEN l.oid IS NOT NULL
                    THEN format('DROP POLICY %%I ON %%s', polname, c.oid::regclass)
                WHEN w.rulename <> '_RETURN'
                    THEN format('DROP RULE %%I ON %%s', rulename, c.oid::regclass)
                WHEN attname IS NOT NULL AND relkind <> 'c'
                    THEN format('ALTER TABLE %%s DROP COLUMN %%I', c.oid::regclass, attname)
                ELSE format('DROP %%s %%s', CASE relkind WHEN 'v' THEN 'VIEW'
                    WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE'
                    WHEN 'S' THEN 'SEQUENCE' WHEN 'i' THEN 'INDEX' WHEN 'c' THEN 'TYPE'
                    ELSE 'TABLE' END, c.oid::regclass) END AS remedy
        FROM pg_depend d
        LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = objid
        LEFT JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = objid
        LEFT JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = objid
        LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = objid
        LEFT JOIN pg_trigger g ON d.classid = 'pg_trigger'::regclass AND g.oid = objid
        LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = objid
        LEFT JOIN pg_policy l ON d.classid = 'pg_policy'::regclass AND l.oid = objid
        LEFT JOIN pg_class c ON c.oid = CASE d.classid WHEN 'pg_class'::regclass THEN objid
            ELSE coalesce(ev_class, adrelid, tgrelid, nullif(conrelid, 0), polrelid) END
        LEFT JOIN pg_attribute a ON attrelid = c.oid AND attnum = coalesce(
            adnum, nullif(objsubid, 0))
        JOIN pg_namespace n ON n.oid = coalesce(relnamespace, pronamespace, typnamespace)
        WHERE refobjid >= 16384 AND deptype IN ('n', 'a')
          AND n.oid <> pg_my_temp_schema()
          AND (refclassid <> 'pg_namespace'::regclass  -- else only where a schema is dropped
            OR position(' ' || quote_ident(nspname) || ' ' IN %(said)s) > 0)
          AND CASE
            WHEN position(format('"%%s.%%s"', relname, attname) IN %(said)s) > 0 THEN true
            WHEN %(detail)s = '' AND %(said)s !~ '"'
                THEN nspname ~ '^pg_temp_' AND refclassid = 'pg_type'::regclass
            WHEN nspname ~ '^pg_temp_' THEN position(nspname || '.' IN %(detail)s) > 0
            ELSE position(quote_ident(coalesce(relname, proname, typname)) IN %(detail)s) > 0 END),
    backends AS (
        SELECT n, pg_stat_get_backend_pid(n) AS pid FROM pg_stat_get_backend_idset() n),
    ours(n, id) AS (
        SELECT n, split_part(virtualtransaction, '/', 1)::int
        FROM backends JOIN pg_locks USING (pid) WHERE pid = pg_backend_pid() LIMIT 1)
    SELECT rolname::text, remedy, temporary IS NOT NULL, ARRAY(
        SELECT a.pid FROM ours o, backends b JOIN pg_stat_activity a USING (pid)
        JOIN pg_roles u ON u.oid = usesysid
        WHERE {number} AND datname = current_database() AND pg_has_role(u.oid, f.owner, 'MEMBER')
          AND (u.oid = f.owner OR NOT u.rolsuper)
        ORDER BY 1)
    FROM found f JOIN pg_roles r ON r.oid = f.owner
    WHERE temporary IS NOT NULL OR rolname <> current_user
    ORDER BY temporary, remedy LIMIT 20"""

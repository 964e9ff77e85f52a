"""Drift: what of a database has changed since the last run that applied something, by hand or by
others.

That run keeps a fingerprint of each object in a table of its own. The server makes them, and
compares. Knows PostgreSQL's catalogs; of migrations, that their rows have numbers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import limited_users
import marks
import psycopg2
import tracking
from boundary import Table, Watch
from common import InitializerError, log
from config import Config
from psycopg2 import sql
from script_runner import AS_OURSELVES_SQL
from session import Session

SHOWN = 200  # names of one list in a report
NAMED = 4  # in a message
LISTS = ("changed", "added", "dropped", "by_table_creator")

NEVER_KEPT = "no run has applied a file since db_setup keeps what a run leaves"
STALE = "a run has changed something since, and could not keep what it left"
OTHERS = "{} records the files of another application here, so nothing tells whose a change is"
NOT_COMPARED = (
    "grants, owners, views and expressions: PostgreSQL's version, the database or its roles are "
    "others since"
)


@dataclass(frozen=True)
class Drift:
    """The names of the objects that differ; where `unknown` says why, nothing is known."""

    unknown: str = ""
    is_whole: bool = True  # else see NOT_COMPARED
    added: Sequence[str] = ()
    changed: Sequence[str] = ()
    dropped: Sequence[str] = ()
    by_table_creator: Sequence[str] = ()  # what limited users own, and change by right

    @property
    def count(self) -> Optional[int]:
        return None if self.unknown else sum(map(len, self._lists.values()))

    @property
    def _lists(self) -> dict[str, Sequence[str]]:
        return {"added": self.added, "changed": self.changed, "dropped": self.dropped}

    def __str__(self) -> str:
        found = self._lists.items()
        return "; ".join(
            f"{what} {', '.join(_first(NAMED, names))}" for what, names in found if names
        )

    def as_json(self) -> dict[str, Any]:
        if self.unknown:
            return {"drift": None, "drift_unknown": self.unknown}
        lists = {**self._lists, "by_table_creator": self.by_table_creator}
        if not self.is_whole:
            lists["not_compared"] = [NOT_COMPARED]
        return {"drift": {what: _first(SHOWN, names) for what, names in lists.items()}}


def _first(limit: int, names: Sequence[str]) -> list[str]:
    more = len(names) - limit
    return [*names[:limit], *([f"and {more} more"] if more > 0 else [])]


def compare(session: Session, config: Config, kept: Optional[Table]) -> Drift:
    """What differs from what this table holds. An error of PostgreSQL is a reason, and no more."""
    if kept is None:
        return Drift(NEVER_KEPT)
    if not kept.is_readable:
        return Drift(f"{session.login.username} may not read {kept.label}")
    try:
        found = session.ask(sql.SQL(PLAIN_SQL) + _question(COMPARE_SQL, config))
    except psycopg2.Error as exc:
        if session.is_lost:
            raise
        return Drift(f"PostgreSQL: {exc.diag.message_primary} ({exc.pgcode})")
    for others, covers_all, is_whole, differing in found:
        if others:
            return Drift(OTHERS.format(others))
        if covers_all:
            lists = {what: [name for of, name in differing if of == what] for what in LISTS}
            for what in LISTS[1:]:
                lists[what] = _without_parts(lists[what])
            return Drift("", is_whole, **lists)
    return Drift(STALE)


def keep(session: Session, config: Config, watch: Watch, *, is_as_file_left: bool) -> None:
    """Keep what is there now for the next comparison. What prevents it is a line of the log.

    A file that has failed can have left its role and its search path in the session.
    """
    try:
        if is_as_file_left:
            session.query(AS_OURSELVES_SQL)
        kept = watch.table(session, config.tables[2])
        complaint = kept and kept.complaint(session.login.username)
        if complaint:
            raise complaint
        statements = [_question(KEEP_SQL, config)]
        if kept is None:
            create = sql.SQL(CREATE_SQL).format(config.kept)
            statements[:0] = [create, tracking.close_statement(config, config.tables[2:])]
        session.query_all_or_none(sql.SQL(PLAIN_SQL) + sql.SQL("; ").join(statements))
    except (psycopg2.Error, InitializerError) as exc:
        reason = str(exc).partition("\n")[0]
        log("what this run leaves was not kept", logging.WARNING, reason=reason)


def _question(end: str, config: Config) -> sql.Composable:
    words: dict[str, Any] = {
        "schema": config.schema,
        "table": config.tables[0],
        "progress": config.tables[1],
        "ours": [*config.tables, f"{config.table}_id_seq"],
        # The reader's too, whether or not its secret is named now.
        "roles": limited_users.limited_roles(config.role_prefix, limited_users.ALL_KINDS),
        "home": tracking.HOME,
    }
    literals = {name: sql.Literal(value) for name, value in words.items()}
    return sql.SQL(OBJECTS_SQL + end).format(
        tracking=config.tracking, marks=config.marks, kept=config.kept, **literals
    )


def _without_parts(names: Sequence[str]) -> list[str]:
    """Without those that came or went with what they are a part of."""
    objects = {found[1] for found in map(OBJECT.fullmatch, names) if found}
    parts = [(name, PART.fullmatch(name)) for name in names]
    return [name for name, part in parts if not (part and objects.intersection(part.groups()))]


OBJECT = re.compile(r"(?:materialized |foreign )?[a-z]+ (.+)", re.DOTALL)
PART = re.compile(r"column (.+)\..+|.+? on (.+)", re.DOTALL)

# --- The questions ----------------------------------------------------------------------------

CREATE_SQL = (
    'CREATE TABLE {} (name TEXT COLLATE "C" PRIMARY KEY, facts BYTEA NOT NULL, definition BYTEA, '
    "is_limited BOOLEAN NOT NULL)"
)
# What a file has left in the session, or a setting of the database or of this client, is not to
# decide how PostgreSQL writes down a name or a value.
PLAIN_SQL = marks.AS_OURSELVES_SQL + (
    "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = "
    "postgres; SET LOCAL extra_float_digits = 1; SET LOCAL quote_all_identifiers = off; "
    "SET LOCAL bytea_output = hex; SET LOCAL jit = off; "
)
# Each object with what stays the same in a dump and in a newer version (facts), and what PostgreSQL
# may write down in other words there, or what belongs to the server (definition). The object
# without a name is the head: which rows of migrations all this includes, and where it was made.
# Left out are extensions and what they made, partitions, which come and go with their rows, indexes
# that are just being rebuilt, and what is internal to another object.
OBJECTS_SQL = """
    WITH RECURSIVE members(oid) AS (
        SELECT oid FROM pg_roles WHERE rolname = ANY ({roles})
        UNION SELECT m.member FROM members JOIN pg_auth_members m ON m.roleid = members.oid),
    limited(oid) AS (  -- the admin is a member of groups as well
        SELECT oid FROM pg_roles WHERE oid IN (SELECT oid FROM members)
            AND NOT (rolsuper OR rolcreaterole)),
    scope AS MATERIALIZED (
        SELECT n.*, quote_ident(nspname) AS label FROM pg_namespace n
        WHERE CASE {schema} WHEN 'public'
            THEN nspname !~ '^pg_' AND nspname <> 'information_schema' AND NOT EXISTS (
                SELECT FROM pg_description d JOIN pg_class c ON c.oid = d.objoid
                WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0
                    AND d.description = {home} || nspname AND c.relnamespace = n.oid
                    AND c.relowner NOT IN (SELECT oid FROM limited))
            ELSE nspname = {schema} END
            AND NOT EXISTS (SELECT FROM pg_depend
                WHERE classid = 'pg_namespace'::regclass AND objid = n.oid AND deptype = 'e')),
    rels AS MATERIALIZED (
        SELECT c.*, relowner IN (SELECT oid FROM limited) AS is_limited,
            format('%s.%I', label, relname) AS label,
            CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
                WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence' WHEN 'c' THEN 'type'
                ELSE 'table' END AS kind
        FROM pg_class c JOIN scope ON scope.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND NOT relispartition
            AND NOT (nspname = {schema} AND relname = ANY ({ours}))
            AND NOT EXISTS (SELECT FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
            AND NOT EXISTS (SELECT FROM pg_depend
                WHERE classid = 'pg_type'::regclass AND objid = reltype AND deptype = 'e')),
    routines AS MATERIALIZED (
        SELECT p.*, proowner IN (SELECT oid FROM limited) AS is_limited,
            format('%s.%I(%s)', label, proname, oidvectortypes(proargtypes)) AS label
        FROM pg_proc p JOIN scope ON scope.oid = pronamespace
        WHERE NOT EXISTS (SELECT FROM pg_depend
            WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype IN ('e', 'i'))),
    rights(label, is_limited, part, acl) AS (
        SELECT label, is_limited, '', relacl FROM rels
        UNION ALL SELECT label, is_limited, attname::text, attacl FROM rels
            JOIN pg_attribute ON attrelid = rels.oid AND attacl IS NOT NULL AND NOT attisdropped
        UNION ALL SELECT label, is_limited, '', proacl FROM routines
        UNION ALL SELECT 'schema ' || label, false, '', nspacl FROM scope),
    listed(name, is_limited, facts, definition) AS (
        SELECT kind || ' ' || label, is_limited,
            ROW(relkind, CASE WHEN relkind <> 'S' THEN relpersistence END, relrowsecurity,
                relforcerowsecurity, relreplident, ARRAY(SELECT unnest(reloptions) ORDER BY 1),
                ARRAY(SELECT inhparent::regclass::text FROM pg_inherits
                      WHERE inhrelid = rels.oid ORDER BY 1),
                (SELECT ROW(seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcycle)
                 FROM pg_sequence WHERE seqrelid = rels.oid))::text,
            ROW(CASE WHEN NOT is_limited THEN pg_get_userbyid(relowner) END, pg_get_partkeydef(oid),
                CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(oid) END)::text
        FROM rels
        UNION ALL
        SELECT format('column %s.%I', label, attname), is_limited,
            ROW(format_type(atttypid, atttypmod), attnotnull, atthasdef, attidentity, attgenerated,
                CASE WHEN attcollation <> typcollation THEN attcollation::regcollation END)::text,
            pg_get_expr(adbin, adrelid)
        FROM rels JOIN pg_attribute a ON attrelid = rels.oid AND attnum > 0 AND NOT attisdropped
        JOIN pg_type t ON t.oid = atttypid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relkind <> 'S'
        UNION ALL
        SELECT format('index %s on %s', indexrelid::regclass, label), is_limited,
            ROW(amname, indisunique, indisvalid, indnatts, indnkeyatts, indoption, c.reloptions,
                CASE WHEN is_plain THEN pg_get_indexdef(indexrelid) END)::text,
            CASE WHEN NOT is_plain THEN pg_get_indexdef(indexrelid) END
        FROM rels JOIN pg_index i ON indrelid = rels.oid JOIN pg_class c ON c.oid = indexrelid
        JOIN pg_am ON pg_am.oid = c.relam,
        LATERAL (SELECT indexprs IS NULL AND indpred IS NULL) p(is_plain)
        WHERE (indisvalid OR c.relname !~ '_cc(new|old)[0-9]*$') AND NOT EXISTS (
            SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
        UNION ALL
        SELECT format('constraint %I on %s', conname, label), is_limited,
            ROW(contype, convalidated,
                CASE WHEN contype IN ('f', 'p', 'u') THEN pg_get_constraintdef(n.oid) END)::text,
            CASE WHEN contype IN ('c', 'x') THEN pg_get_constraintdef(n.oid) END
        FROM rels JOIN pg_constraint n ON conrelid = rels.oid
        WHERE contype IN ('c', 'f', 'p', 'u', 'x') AND conparentid = 0
        UNION ALL
        SELECT format('trigger %I on %s', tgname, label), is_limited,
            ROW(tgenabled, tgtype, tgfoid::regproc,
                CASE WHEN tgqual IS NULL THEN pg_get_triggerdef(t.oid) END)::text,
            CASE WHEN tgqual IS NOT NULL THEN pg_get_triggerdef(t.oid) END
        FROM rels JOIN pg_trigger t ON tgrelid = rels.oid AND NOT tgisinternal AND tgparentid = 0
        UNION ALL
        SELECT format('policy %I on %s', polname, label), is_limited,
            ROW(polcmd, polpermissive,
                ARRAY(SELECT pg_get_userbyid(r)::text FROM unnest(polroles) r ORDER BY 1))::text,
            ROW(pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))::text
        FROM rels JOIN pg_policy ON polrelid = rels.oid
        UNION ALL
        SELECT format('rule %I on %s', rulename, label), is_limited,
            ROW(ev_type, is_instead, ev_enabled)::text, pg_get_ruledef(w.oid)
        FROM rels JOIN pg_rewrite w ON ev_class = rels.oid AND rulename <> '_RETURN'
        UNION ALL
        SELECT CASE prokind WHEN 'p' THEN 'procedure ' WHEN 'a' THEN 'aggregate '
               ELSE 'function ' END || label, is_limited,
            ROW(prosrc, probin, (SELECT lanname FROM pg_language l WHERE l.oid = prolang), prokind,
                provolatile, proparallel, prosecdef, proleakproof, proisstrict, procost, prorows,
                proconfig, format_type(prorettype, NULL), proretset, proargnames, proargmodes,
                ARRAY(SELECT format_type(type, NULL)
                      FROM unnest(proallargtypes) WITH ORDINALITY a(type, at) ORDER BY at),
                (SELECT ROW(aggtransfn, aggfinalfn, aggtranstype::regtype, agginitval)
                 FROM pg_aggregate WHERE aggfnoid = r.oid))::text,
            ROW(CASE WHEN NOT is_limited THEN pg_get_userbyid(proowner) END,
                CASE WHEN prokind <> 'a' THEN pg_get_functiondef(r.oid) END)::text
        FROM routines r
        UNION ALL
        SELECT format('type %s.%I', label, typname), typowner IN (SELECT oid FROM limited),
            ROW(typtype, ARRAY(SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid
                               ORDER BY enumsortorder),
                format_type(typbasetype, typtypmod), typnotnull,
                (SELECT rngsubtype::regtype FROM pg_range WHERE rngtypid = t.oid))::text,
            ROW(CASE WHEN typowner NOT IN (SELECT oid FROM limited) THEN pg_get_userbyid(typowner)
                END, typdefault, ARRAY(SELECT conname || ' ' || pg_get_constraintdef(n.oid)
                FROM pg_constraint n WHERE contypid = t.oid AND contype = 'c' ORDER BY 1))::text
        FROM pg_type t JOIN scope ON scope.oid = typnamespace
        WHERE typtype IN ('b', 'd', 'e', 'r') AND NOT EXISTS (SELECT FROM pg_depend
            WHERE classid = 'pg_type'::regclass AND objid = t.oid AND deptype IN ('e', 'i'))
        UNION ALL
        SELECT 'schema ' || label, nspowner IN (SELECT oid FROM limited), '',
            CASE WHEN nspowner NOT IN (SELECT oid FROM limited) THEN pg_get_userbyid(nspowner) END
        FROM scope
        UNION ALL
        SELECT 'grants on ' || label, bool_or(is_limited), '',
            string_agg(format('%s %s %s %s', rolname, part, privilege_type, is_grantable), ', '
                       ORDER BY rolname, part, privilege_type, grantor)
        FROM rights, aclexplode(acl) a JOIN pg_roles r ON r.oid = grantee
        WHERE rolname = ANY ({roles}) AND privilege_type <> 'MAINTAIN'
        GROUP BY label
        UNION ALL
        SELECT '', false,
            ROW(ARRAY(SELECT id FROM {tracking} ORDER BY 1),
                ARRAY(SELECT format('%s %s %s', migration_name, step, done_at IS NULL)
                      FROM {marks} ORDER BY 1), {schema})::text,
            ROW(current_setting('server_version_num')::int / 10000, c.oid, d.oid,
                (SELECT string_agg(DISTINCT split_part(noted, ':', 1), ' ') FROM pg_class m,
                    regexp_split_to_table(obj_description(m.oid, 'pg_class'), chr(10)) noted
                 WHERE m.relnamespace = n.oid AND m.relname = {progress}), {roles})::text
        FROM pg_class c, pg_namespace n, pg_database d
        WHERE n.nspname = {schema} AND c.relnamespace = n.oid AND c.relname = {table}
            AND d.datname = current_database()),
    now AS MATERIALIZED (
        SELECT (CASE WHEN length(name) < 500 THEN name  -- an index holds no more than 2,700 bytes
            ELSE left(name, 400) || ' ... ' || encode(sha256(convert_to(name, 'UTF8')), 'hex')
            END) COLLATE "C" AS name,
            substr(sha256(convert_to(facts, 'UTF8')), 1, 12) AS facts,
            substr(sha256(convert_to(definition, 'UTF8')), 1, 12) AS definition, is_limited
        FROM listed)"""
COMPARE_SQL = """,
    head(covers_all, is_whole) AS (
        SELECT now.facts = kept.facts, now.definition = kept.definition
        FROM now JOIN {kept} kept USING (name) WHERE name = ''),
    differing(what, name) AS (
        SELECT CASE WHEN coalesce(now.is_limited, true) AND coalesce(kept.is_limited, true)
                    THEN 'by_table_creator'
                    WHEN kept.facts IS NULL THEN 'added' WHEN now.facts IS NULL THEN 'dropped'
                    ELSE 'changed' END, name
        FROM now FULL JOIN {kept} kept USING (name) CROSS JOIN head
        WHERE name <> '' AND covers_all AND (is_whole OR name !~ '^grants on ')
            AND (now.facts IS DISTINCT FROM kept.facts
                 OR is_whole AND now.definition IS DISTINCT FROM kept.definition))
    SELECT (SELECT min(label) FROM rels WHERE kind = 'table' AND NOT is_limited
            AND (SELECT count(*) FROM pg_attribute WHERE attrelid = rels.oid
                 AND attname IN ('migration_name', 'file_sha256')) = 2),
        covers_all, is_whole,
        (SELECT coalesce(json_agg(json_build_array(what, name) ORDER BY name), '[]') FROM differing)
    FROM head"""
KEEP_SQL = """,
    gone AS (DELETE FROM {kept} kept WHERE NOT EXISTS (SELECT FROM now WHERE now.name = kept.name))
    INSERT INTO {kept} AS kept (name, facts, definition, is_limited)
    SELECT name, facts, definition, is_limited FROM now
    EXCEPT SELECT name, facts, definition, is_limited FROM {kept}
    ON CONFLICT (name) DO UPDATE SET (facts, definition, is_limited)
        = (excluded.facts, excluded.definition, excluded.is_limited)"""

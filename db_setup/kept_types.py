"""Whether a function in PL/pgSQL can keep, while a session lasts, what a type meant before.

The names in a DECLARE are looked up when a session first calls the function. PostgreSQL's own types
always mean the same. Each other name may keep an old meaning: a %TYPE whose column has another type
by now, an enum that was dropped and made again, a name that another search path leads elsewhere.
Parameters and results are in the catalog, where a change of them counts; NEW, OLD and records are
looked at each time. tests/test_kept_types.py has the table.

Knows PostgreSQL, nothing of migrations or AWS.
"""

from __future__ import annotations

USES_PLPGSQL_SQL = "current_setting('plpgsql.variable_conflict', true) IS NOT NULL"
# The first transaction that the next check may not have seen: a row that it writes is younger.
SEEN_TO_SQL = "(pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296)::text"
BEFORE_ALL = "2"  # the transaction that is older than all

# What a DECLARE may contain without harm.
_GAP = r"(?:\s|--[^\n]*\n|/\*[^*]*\*/)"
_BUILT_IN = (
    "bigint|bit( varying)?|bool(ean)?|bytea|(bp)?char|character( varying)?|cidr|date"
    "|dec(imal)?|double precision|float[48]?|inet|int[248]?|integer|interval|jsonb?|jsonpath"
    "|macaddr8?|money|name|numeric|oid|point|real|record|refcursor|reg(class|proc(edure)?|role|type)"
    "|smallint|text|time(stamp)?(tz| with(out)? time zone)?|tsquery|tsvector|uuid|varchar|void|xml"
)
_DECLARATION = (
    rf"[a-z_][a-z0-9_]*{_GAP}+(?:constant{_GAP}+)?(?:{_BUILT_IN})(?:{_GAP}*\([0-9, ]+\))?"
    rf"(?:\[[0-9]*\])*(?:{_GAP}+not{_GAP}+null)?(?:{_GAP}*(?::=|=|default\M)[^;]*)?;"
)
_HARMLESS = rf"^(?:{_GAP}*{_DECLARATION})*{_GAP}*\Z"
# Megabytes are not read for that, whoever made them.
KEEP_TYPES_SQL = rf"""(SELECT coalesce(sum(octet_length(prosrc)), 0) > 1000000
        OR coalesce(bool_or(prosrc ~* $$\mdeclare\M$$ AND EXISTS (
            SELECT FROM regexp_matches(prosrc, $$\mdeclare\M(.*?)\mbegin\M(?![$])$$, 'gi') d(part)
            WHERE part[1] !~* $${_HARMLESS}$$)), false)
    FROM (SELECT prosrc FROM pg_proc
          WHERE oid >= 16384  -- none of PostgreSQL's own, which are thousands
            AND prolang = (SELECT oid FROM pg_language WHERE lanname = 'plpgsql')
            AND age(xmin) <= age('{{since}}'::xid) OFFSET 0) p)"""

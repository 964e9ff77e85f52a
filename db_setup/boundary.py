"""Where limited users end: whom the admin trusts in a database, and what others have put there.

Any login of a server can write something: tables and functions in a schema that is open, grants of
its own. None of that decides what runs as the admin. Knows PostgreSQL's catalogs, nothing of
migrations or AWS. The questions are parts of others that are asked anyway, where search_path is
pg_catalog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from common import ConfigError, MigrationError
from psycopg2 import sql

if TYPE_CHECKING:
    from session import Session

REMEDIES_LIMIT = 700  # characters
# By relkind, what a relation is called in DROP that is not an ordinary table.
RELATIONS = {"v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE", "S": "SEQUENCE"}
RELATIONS.update({"i": "INDEX", "I": "INDEX", "c": "TYPE", "p": "TABLE"})
OWNER_SQL = "ALTER TABLE {} OWNER TO CURRENT_USER"


@dataclass(frozen=True)
class Table:
    """One of our tables as it was found."""

    name: str
    label: str  # with its schema
    kind: str  # relkind
    owner: str
    is_trusted: bool  # the owner
    is_readable: bool
    columns: Sequence[str]
    oddities: Sequence[Sequence[str]]  # what would change what we read or write, and its remedy
    excess: Sequence[str]  # statements that revoke the rights of others on it
    relations: Sequence[int]  # the oids of the table and its sequences
    versions: Optional[Sequence[str]]  # of its rows in the catalogs, where these tell all

    def complaint(self, admin: str) -> Optional[ConfigError]:
        """Why it decides nothing, and what helps; None where it is ours, and plain."""
        if not self.is_trusted:
            return ConfigError(
                f"table {self.label} belongs to {self.owner}, who is not the admin and could "
                f"decide by it what runs as {admin}",
                f"If it is right, as its owner or a superuser: ALTER TABLE {self.label} OWNER TO "
                f"{admin}; if not: DROP TABLE {self.label}; or set MIGRATIONS_TABLE",
            )
        for what, remedy in self.oddities:
            return ConfigError(
                f"table {self.label} has {what}, which can change what is read or recorded there",
                f"{remedy}; then invoke again",
            )
        return None

    def takes_our_name(self) -> Optional[ConfigError]:
        """That it is of others, and no ordinary table; None if it is one, or the admin's."""
        if self.is_trusted or self.kind == "r":
            return None
        return name_taken(RELATIONS[self.kind], self.label, self.owner)

    def repairs(self) -> list[str]:
        """The statements that undo what a migration did to it."""
        statements = [] if self.is_trusted else [OWNER_SQL.format(self.label)]
        statements += [remedy for _, remedy in self.oddities]
        return statements + (list(self.excess) if self.is_trusted else [])


def tables(found: Sequence[dict[str, Any]]) -> dict[str, Table]:
    """The answer to our_tables_question, by name."""
    return {one["name"]: Table(**one) for one in found}


def name_taken(kind: str, label: str, owner: str) -> ConfigError:
    """Of what others have made where our table is to be."""
    return ConfigError(
        f"{kind.lower()} {label} belongs to {owner}, who is not the admin, and has the name of "
        "db_setup's own table",
        f"As its owner or a superuser: DROP {kind} {label}; or set MIGRATIONS_TABLE",
    )


class Watch:
    """Asks after each file for what has become of our tables.

    All of it takes the server longer than most files. Where our tables are the admin's alone, as
    they almost always are, it is enough that their rows in the catalogs are the same.
    """

    def __init__(self, question: sql.Composable) -> None:
        self._question = question  # for all of it
        self._known: Sequence[Table] = ()

    def question(self) -> sql.Composable:
        if not self._known:
            return self._question
        relations = [str(oid) for table in self._known for oid in table.relations]
        return sql.SQL(versions_sql(f"({', '.join(relations)})"))

    def take(self, session: Session, answer: Sequence[Any]) -> Sequence[Table]:
        """The tables, if they may have changed since the last answer; an empty one says nothing."""
        if self._known:
            known = [row for table in self._known for row in table.versions or ()]
            if sorted(answer) == sorted(known):
                return ()
            answer = ()
        found = tuple(tables(answer).values()) or self.look(session)
        is_known = len(found) > 1 and all(each.versions and not each.repairs() for each in found)
        self._known = found if is_known else ()
        return found

    def table(self, session: Session, name: str) -> Optional[Table]:
        """One of them as it was last found, if it was there."""
        tables = self._known or self.look(session)
        return next((table for table in tables if table.name == name), None)

    def look(self, session: Session) -> Sequence[Table]:
        """The tables as they are now."""
        ((answer,),) = session.query(self._question)
        return tuple(tables(answer).values())


def refuse_hiding(found: Sequence[dict[str, str]], admin: str) -> None:
    """Raise MigrationError for what hides PostgreSQL's own from a script; see hiding_question."""
    if not found:
        return
    remedies = [f"DROP {one['kind']} {one['what']};" for one in found]
    shown = remedies.pop(0)
    while remedies and len(shown) + len(remedies[0]) < REMEDIES_LIMIT:
        shown += f" {remedies.pop(0)}"
    first = found[0]
    if first["kind"] == "EVENT TRIGGER":
        raise MigrationError(
            f"event trigger {first['what']} calls a function of {first['owner']}, a limited user, "
            f"which each file would run as {admin}",
            f"As its owner or a superuser: {shown} Then deploy again",
        )
    raise MigrationError(
        f"{first['what'][:200]} belongs to {first['owner']}, who is not the admin, and has the "
        "name of one of PostgreSQL's or the admin's own: a file that uses that name can run this "
        f"one as {admin}",
        f"As its owner or the admin, unless you rename it: {shown} Then deploy again",
    )


# --- The questions ----------------------------------------------------------------------------


def our_tables_question(
    schema: str, names: tuple[str, str, str], limited: Sequence[str]
) -> sql.Composable:
    """What is known of our tables in this schema, as JSON. The third one need not be there.

    `limited` names the limited roles. Everybody may read the first table, nobody the others.
    """
    words = dict(zip(("schema", "first", "second", "third"), map(sql.Literal, (schema, *names))))
    versions = sql.SQL(versions_sql("(SELECT relation FROM acls WHERE of = o.oid)"))
    return with_trusted(OUR_TABLES_SQL, limited, **words, versions=versions)


def hiding_question(limited: Sequence[str]) -> sql.Composable:
    """What in a script's search path hides PostgreSQL's own or the admin's, as JSON."""
    return with_trusted(HIDING_SQL, limited)


def evidence_question(limited: Sequence[str]) -> sql.Composable:
    """The table %(schema)s.%(name)s, its owner, and whether that one is trusted."""
    return with_trusted(EVIDENCE_SQL, limited)


def with_trusted(question: str, limited: Sequence[str], **words: Any) -> sql.Composable:
    """The question, in which `trusted` are the roles that are, and `granted` those of
    `every_membership` that count.
    """
    trusted = sql.SQL(TRUSTED_SQL).format(limited=sql.Literal(list(limited)))
    return sql.SQL(question).format(trusted=trusted, **words)


def versions_sql(which: str) -> str:
    """An array of the versions of the rows that describe these relations.

    PostgreSQL writes a new version for a new owner, right, column, trigger, rule or parent; not
    for a new index or statistics object, which depends on them. Whoever owns the schema or the
    database can drop them.
    """
    return (
        "ARRAY(SELECT concat_ws(' ', oid, xmin, ctid, (SELECT nspowner FROM pg_namespace n WHERE "
        "n.oid = relnamespace), (SELECT datdba FROM pg_database WHERE datname = "
        f"current_database())) FROM pg_class WHERE oid IN {which} "
        "UNION ALL SELECT concat_ws(' ', attrelid, attnum, xmin, ctid) FROM pg_attribute "
        f"WHERE attrelid IN {which} UNION ALL SELECT concat_ws(' ', seqrelid, xmin, ctid) FROM "
        f"pg_sequence WHERE seqrelid IN {which} UNION ALL SELECT concat_ws(' ', classid, objid) "
        f"FROM pg_depend WHERE refclassid = 'pg_class'::regclass AND refobjid IN {which})"
    )


# The admin, the database's owner, and the roles that these may act for; never a limited user or a
# group, of whatever prefix, for whom the admin may act as well, a member of one, or a role that one
# is a member of. (Up to PostgreSQL 15 nothing but its name shows that another application's
# readwrite is a group of limited users: the admin is not a member of these.)
# Membership is taken as it was granted: a superuser counts as a member of every role. It counts
# (`granted`) if one of these or a superuser granted it: up to PostgreSQL 14 every login can make
# others members of itself. Since 16 the admin is a member of each role that it made; one that it
# can neither use nor become is not meant by that.
TRUSTED_SQL = """
    RECURSIVE rulers(oid) AS (
        SELECT oid FROM pg_roles WHERE rolname = current_user
            OR oid = (SELECT datdba FROM pg_database WHERE datname = current_database())),
    every_membership AS (
        SELECT m.roleid, m.member, g.rolname AS grantor,
               coalesce((to_jsonb(m) ->> 'inherit_option')::bool
                        OR (to_jsonb(m) ->> 'set_option')::bool, true) AS is_usable,
               coalesce(g.rolsuper OR g.oid IN (SELECT oid FROM rulers) OR (g.rolcreaterole
                   AND current_setting('server_version_num')::int < 160000), false) AS counts
        FROM pg_auth_members m LEFT JOIN pg_roles g ON g.oid = m.grantor),
    granted AS (SELECT * FROM every_membership WHERE counts),
    acted_for(oid) AS (
        SELECT oid FROM rulers
        UNION SELECT m.roleid FROM acted_for a JOIN granted m ON m.member = a.oid AND m.is_usable),
    limited(oid) AS (
        SELECT oid FROM pg_roles WHERE rolname = ANY ({limited})
            OR (rolname ~ '(tablecreator|app_(rw|tc|ro)(_clone)?)$'
                AND oid IN (SELECT roleid FROM granted JOIN rulers ON rulers.oid = member))),
    members_of_limited(oid) AS (
        SELECT oid FROM limited
        UNION SELECT m.member FROM members_of_limited l JOIN granted m ON m.roleid = l.oid),
    lent_to_limited(oid) AS (
        SELECT oid FROM limited
        UNION SELECT m.roleid FROM lent_to_limited l JOIN every_membership m ON m.member = l.oid),
    trusted(oid) AS (
        SELECT r.oid FROM acted_for JOIN pg_roles r USING (oid)
        WHERE r.rolname = current_user OR r.rolsuper OR r.rolcreaterole
            OR NOT (r.rolname ~ 'read(write|only)$'
                    OR r.oid IN (SELECT oid FROM members_of_limited)
                    OR r.oid IN (SELECT oid FROM lent_to_limited)))"""

# A REVOKE takes back what its own role has granted. The owner of the schema may drop the tables.
OUR_TABLES_SQL = """
    WITH {trusted},
    ours AS (
        SELECT c.* FROM pg_class c
        WHERE relnamespace = to_regnamespace({schema}) AND relname IN ({first}, {second}, {third})),
    acls(relation, kind, of, owner, acl) AS (
        SELECT oid, 'TABLE', oid, relowner, relacl FROM ours
        UNION ALL
        SELECT o.oid, 'TABLE', o.oid, relowner, attacl
        FROM ours o JOIN pg_attribute ON attrelid = o.oid
        UNION ALL
        SELECT s.oid, 'SEQUENCE', o.oid, s.relowner, s.relacl FROM ours o
        JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = o.oid
             AND d.classid = 'pg_class'::regclass AND d.deptype = 'a'
        JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'),
    rights(of, kind, relation, grantee, name, privilege, grantor, is_owners) AS (
        SELECT of, a.kind, a.relation, e.grantee, g.rolname, privilege_type, e.grantor,
               e.grantor = a.owner
        FROM acls a JOIN ours o ON o.oid = a.of, aclexplode(a.acl) e
        LEFT JOIN pg_roles g ON g.oid = e.grantee
        WHERE (o.relname <> {first} OR privilege_type <> 'SELECT')
          AND e.grantee <> a.owner AND NOT coalesce(g.rolsuper, false)),
    excess(of, statement) AS (
        SELECT of, format(CASE WHEN is_owners THEN '%s'
                               ELSE 'SET LOCAL ROLE %2$I; %1$s; SET LOCAL ROLE NONE' END,
                          format('REVOKE %s ON %s %s FROM %s CASCADE',
                                 string_agg(DISTINCT privilege, ', '), kind, relation::regclass,
                                 coalesce(quote_ident(name), 'PUBLIC')),
                          pg_get_userbyid(grantor))
        FROM rights WHERE grantee NOT IN (SELECT oid FROM trusted)
            AND (is_owners OR grantor IN (SELECT oid FROM trusted))
        GROUP BY of, kind, relation, name, grantor, is_owners
        UNION ALL
        SELECT c.oid, format(CASE WHEN pg_has_role(r.oid, 'USAGE') THEN '' ELSE
                                 'GRANT %1$I TO CURRENT_USER; ' END
                             || 'ALTER %2$s OWNER TO CURRENT_USER; GRANT %3$s ON %2$s TO %1$I',
                             r.rolname, what, rights)
        FROM ours c, LATERAL (
            SELECT format('SCHEMA %I', nspname), nspowner, CASE
                WHEN pg_get_userbyid(nspowner) ~ '(tablecreator|app_tc(_clone)?)$'
                    THEN 'USAGE, CREATE' ELSE 'USAGE' END
            FROM pg_namespace n WHERE n.oid = relnamespace
            UNION ALL
            SELECT format('DATABASE %I', datname), datdba, 'CONNECT' FROM pg_database
            WHERE datname = current_database()) given(what, owner, rights)
        JOIN pg_roles r ON r.oid = owner AND NOT rolsuper
        WHERE relname = {first} AND owner IN (SELECT oid FROM lent_to_limited)
            AND owner NOT IN (SELECT oid FROM trusted)),
    parts(of, class, object, column_number, remedy) AS (
        SELECT o.oid, 'pg_constraint'::regclass, c.oid, 0,
               format('ALTER TABLE %s DROP CONSTRAINT %I', o.oid::regclass, conname)
        FROM ours o JOIN pg_constraint c ON conrelid = o.oid
        UNION ALL
        SELECT o.oid, 'pg_class'::regclass, indexrelid, 0, CASE WHEN c.oid IS NULL
            THEN format('DROP INDEX %s', indexrelid::regclass)
            ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', o.oid::regclass, conname) END
        FROM ours o JOIN pg_index ON indrelid = o.oid
        LEFT JOIN pg_constraint c ON conrelid = o.oid AND conindid = indexrelid
        UNION ALL
        SELECT o.oid, 'pg_statistic_ext'::regclass, s.oid, 0,
               format('DROP STATISTICS %s.%I', stxnamespace::regnamespace, stxname)
        FROM ours o JOIN pg_statistic_ext s ON stxrelid = o.oid
        UNION ALL  -- its WHEN: whose function it calls, see oddities
        SELECT o.oid, 'pg_trigger'::regclass, t.oid, 0,
               format('DROP TRIGGER %I ON %s', tgname, o.oid::regclass)
        FROM ours o JOIN pg_trigger t ON tgrelid = o.oid AND NOT tgisinternal
        JOIN pg_proc p ON p.oid = tgfoid AND proowner IN (SELECT oid FROM trusted)
        UNION ALL
        SELECT o.oid, 'pg_attrdef'::regclass, d.oid, 0, format(CASE attgenerated
            WHEN '' THEN 'ALTER TABLE %s ALTER %I DROP DEFAULT'
            ELSE 'ALTER TABLE %s DROP COLUMN %I' END, o.oid::regclass, attname)
        FROM ours o JOIN pg_attrdef d ON adrelid = o.oid
        JOIN pg_attribute ON attrelid = o.oid AND attnum = adnum
        UNION ALL
        SELECT o.oid, 'pg_class'::regclass, o.oid, attnum, format(CASE attgenerated
            WHEN '' THEN 'ALTER TABLE %s ALTER %I TYPE %s'
            ELSE 'ALTER TABLE %s DROP COLUMN %I' END, o.oid::regclass, attname,
                   CASE typtype WHEN 'd' THEN format_type(typbasetype, typtypmod)
                                ELSE format('text USING %I::text', attname) END)
        FROM ours o JOIN pg_attribute ON attrelid = o.oid AND attnum > 0 AND NOT attisdropped
        JOIN pg_type t ON t.oid = atttypid),
    uses(of, part, remedy, class, object, column_number) AS (  -- but for what is PostgreSQL's own
        SELECT of, ARRAY[class, object, column_number::oid], remedy, class::oid, object,
               column_number::int
        FROM parts
        UNION
        SELECT of, part, remedy, used.class, used.object, 0
        FROM uses u, LATERAL (
            SELECT refclassid, refobjid FROM pg_depend d
            WHERE d.classid = u.class AND d.objid = u.object AND d.objsubid = u.column_number
              AND refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass)
            UNION ALL
            SELECT 'pg_constraint'::regclass, oid FROM pg_constraint  -- of a domain
            WHERE u.class = 'pg_type'::regclass AND contypid = u.object
            UNION ALL
            SELECT 'pg_type'::regclass, atttypid FROM pg_type t  -- within a composite one
            JOIN pg_attribute ON attrelid = typrelid AND attnum > 0 AND NOT attisdropped
            WHERE u.class = 'pg_type'::regclass AND t.oid = u.object) used(class, object)),
    uses_of_others(of, what, remedy) AS (
        SELECT DISTINCT ON (of, remedy) of, format('%s that uses %s %s of %s', p.type, w.type,
                   left(w.identity, 200), rolname), remedy
        FROM uses u JOIN pg_shdepend s ON s.classid = u.class AND s.objid = u.object
             AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
             AND s.deptype = 'o' AND s.refobjid NOT IN (SELECT oid FROM trusted)
        JOIN pg_roles r ON r.oid = s.refobjid AND NOT rolsuper,
        pg_identify_object(part[1], part[2], part[3]::int) p,
        pg_identify_object(u.class, u.object, 0) w
        WHERE u.class <> 'pg_class'::regclass),
    oddities(of, what, remedy) AS (
        SELECT of, what, remedy FROM uses_of_others
        UNION ALL
        SELECT oid, 'row-level security',
               format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', oid::regclass)
        FROM ours WHERE relrowsecurity
        UNION ALL
        SELECT oid, 'no log of its changes, so a crash empties it (UNLOGGED)',
               format('ALTER TABLE %s SET LOGGED', oid::regclass)
        FROM ours WHERE relkind = 'r' AND relpersistence = 'u'
        UNION ALL
        SELECT oid, 'no replica identity, so a publication stops its changes',
               format('ALTER TABLE %s REPLICA IDENTITY DEFAULT', oid::regclass)
        FROM ours WHERE relreplident = 'n' AND relkind = 'r'
        UNION ALL
        SELECT of, format('a sequence that ends early or counts down (%s)', seqrelid::regclass),
               format('ALTER SEQUENCE %s INCREMENT 1 NO MAXVALUE NO CYCLE', seqrelid::regclass)
        FROM acls JOIN pg_sequence ON seqrelid = relation
        WHERE seqcycle OR seqincrement <= 0 OR seqmax < CASE seqtypid
            WHEN 'int2'::regtype THEN 32767 ELSE 2147483647 END
        UNION ALL
        SELECT o.oid, format('no unique key (%s)', columns),
               format('ALTER TABLE %s ADD UNIQUE (%s)', o.oid::regclass, columns)
        FROM ours o JOIN (VALUES ({first}, 'id'), ({first}, 'migration_name'),
                                 ({second}, 'migration_name, step')) k(name, columns)
             ON name = relname,
        LATERAL (SELECT array_agg(attnum) FROM pg_attribute WHERE attrelid = o.oid
                 AND attname = ANY (string_to_array(columns, ', '))) a(numbers)
        WHERE relkind = 'r'
            AND cardinality(numbers) = cardinality(string_to_array(columns, ', '))
            -- CREATE TABLE AS copies neither keys nor defaults: such a copy counts.
            AND EXISTS (SELECT FROM pg_attrdef WHERE adrelid = o.oid)
            AND NOT EXISTS (
                SELECT FROM pg_index i WHERE indrelid = o.oid AND indisunique AND indisvalid
                AND indimmediate AND indpred IS NULL AND indnkeyatts = cardinality(numbers)
                AND (string_to_array(indkey::text, ' ')::int2[])[:indnkeyatts] @> numbers)
        UNION ALL
        SELECT o.oid, format('rule %I', rulename), format('DROP RULE %I ON %s', rulename,
               o.oid::regclass)
        FROM ours o JOIN pg_rewrite ON ev_class = o.oid
        UNION ALL
        SELECT o.oid, format('trigger %I, whose function is not the admin''s', tgname),
               format('DROP TRIGGER %I ON %s', tgname, o.oid::regclass)
        FROM ours o JOIN pg_trigger t ON tgrelid = o.oid AND NOT tgisinternal
        JOIN pg_proc p ON p.oid = tgfoid AND proowner NOT IN (SELECT oid FROM trusted)
        UNION ALL
        SELECT o.oid, format('parent or child %s', (ARRAY[inhparent, inhrelid])[
                   1 + (inhparent = o.oid)::int]::regclass),
               format('ALTER TABLE %s NO INHERIT %s', inhrelid::regclass, inhparent::regclass)
        FROM ours o JOIN pg_inherits ON o.oid IN (inhrelid, inhparent))
    SELECT coalesce(json_agg(json_build_object(
        'name', relname,
        'label', format('%I.%I', {schema}, relname),
        'kind', relkind,
        'owner', pg_get_userbyid(relowner),
        'is_trusted', relowner IN (SELECT oid FROM trusted),
        'is_readable', has_table_privilege(o.oid, 'SELECT'),
        'columns', ARRAY(SELECT attname::text FROM pg_attribute
                         WHERE attrelid = o.oid AND attnum > 0 AND NOT attisdropped),
        'oddities', (  -- nothing is altered while something of others could be called by it
            SELECT coalesce(json_agg(json_build_array(what, remedy) ORDER BY remedy DESC), '[]')
            FROM oddities WHERE of = o.oid),
        'excess', ARRAY(SELECT statement FROM excess WHERE of = o.oid ORDER BY 1),
        'relations', ARRAY(SELECT DISTINCT relation FROM acls WHERE of = o.oid),
        'versions', CASE WHEN pg_get_userbyid(relowner) = current_user AND relkind = 'r'
            AND NOT (relhasrules OR relhastriggers OR relhassubclass OR relrowsecurity)
            AND NOT EXISTS (SELECT FROM rights WHERE of = o.oid)
            AND NOT EXISTS (SELECT FROM uses WHERE of = o.oid AND part[2] <> object)
            THEN {versions} END)), '[]')
    FROM ours o"""

# What a file gets, as the admin, instead of PostgreSQL's or the admin's own: a function or operator
# where it fits better, a function where there would be a cast to the type of its name, a type or
# table where its schema precedes the other one. (PostgreSQL looks into pg_catalog first, unless the
# path names it.) What belongs to superusers, to those whom the admin trusts, or to extensions of
# these does not count. (OFFSET 0: each name of others is looked up in the catalogs' indexes. They
# are few, and no temporary file is needed.) An event trigger needs no name to be called.
HIDING_SQL = """
    WITH {trusted},
    ruling(oid) AS (SELECT oid FROM trusted UNION SELECT oid FROM pg_roles WHERE rolsuper),
    path(oid, at) AS (
        SELECT n.oid, CASE n.nspname WHEN 'pg_catalog' THEN max(at) ELSE min(at) END
        FROM pg_namespace n, regexp_matches('pg_catalog,' || (
            SELECT reset_val FROM pg_settings WHERE name = 'search_path') || ',public',
            '("(?:[^"]|"")*"|[^", ][^,"]*)', 'g') WITH ORDINALITY p(entry, at),
            btrim(entry[1], ' ') name
        WHERE n.nspname IN (lower(name), replace(btrim(name, '"'), '""', '"'))
            OR (btrim(name, '"') = '$user' AND n.nspname = current_user)
        GROUP BY n.oid, n.nspname),
    named(kind, class, oid, name, owner, casts, at, is_ruled) AS NOT MATERIALIZED (
        SELECT kind, class, o.oid, name, owner, casts, at, owner IN (SELECT oid FROM ruling) FROM (
            SELECT 'ROUTINE', 'pg_proc'::regclass, oid, proname, pronamespace, proowner,
                   pronargs > 0 AND pronargs - pronargdefaults <= 1
            FROM pg_proc
            UNION ALL
            SELECT 'OPERATOR', 'pg_operator'::regclass, oid, oprname, oprnamespace, oprowner, false
            FROM pg_operator
            UNION ALL
            SELECT 'TYPE', 'pg_type'::regclass, oid, typname, typnamespace, typowner, false
            FROM pg_type WHERE (typcategory <> 'A' OR typtype = 'd')
              AND (typrelid = 0 OR EXISTS (  -- a table's row type goes with it
                SELECT FROM pg_class c WHERE c.oid = typrelid AND c.relkind = 'c'))
            UNION ALL
            SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                                WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'S' THEN 'SEQUENCE'
                                ELSE 'TABLE' END,
                   'pg_class'::regclass, oid, relname, relnamespace, relowner, false
            FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        ) o(kind, class, oid, name, schema, owner, casts) JOIN path ON path.oid = schema)
    SELECT coalesce(json_agg(json_build_object(
        'kind', kind,
        'what', CASE kind WHEN 'ROUTINE' THEN oid::regprocedure::text
                WHEN 'OPERATOR' THEN replace(oid::regoperator::text, '(', ' (')
                WHEN 'EVENT TRIGGER' THEN quote_ident(name)
                WHEN 'TYPE' THEN oid::regtype::text ELSE oid::regclass::text END,
        'owner', pg_get_userbyid(owner))), '[]')
    FROM (SELECT 'EVENT TRIGGER' AS kind, 0 AS class, e.oid, evtname AS name, proowner AS owner
          FROM pg_event_trigger e JOIN pg_proc p ON p.oid = evtfoid AND evtenabled <> 'D'
          WHERE proowner IN (SELECT oid FROM lent_to_limited)
              AND proowner NOT IN (SELECT oid FROM ruling)
          UNION ALL
          (SELECT kind, class, oid, name, owner FROM named f
          WHERE NOT is_ruled
          AND (kind IN ('ROUTINE', 'OPERATOR') OR at < (SELECT max(at) FROM path))
          AND EXISTS (
            SELECT FROM named o WHERE o.name = f.name AND o.is_ruled
              AND CASE WHEN f.kind IN ('ROUTINE', 'OPERATOR')
                  THEN o.kind = f.kind OR (f.casts AND o.kind = 'TYPE')
                  ELSE o.kind NOT IN ('ROUTINE', 'OPERATOR') AND o.at > f.at END OFFSET 0)
          AND NOT EXISTS (
            SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
            WHERE d.classid = f.class AND d.objid = f.oid AND d.deptype = 'e'
              AND e.extowner IN (SELECT oid FROM ruling))
          ORDER BY kind, name, oid LIMIT 20)) f"""

# A type has the name of a table that is to be made: itself, or the one to drop with which it goes.
TAKEN_SQL = """
    SELECT coalesce(range.oid, t.oid)::regtype::text, pg_get_userbyid(t.typowner)
    FROM pg_type t LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid
         AND d.deptype = 'i' AND d.refclassid = 'pg_type'::regclass
    LEFT JOIN pg_type range ON range.oid = d.refobjid
    WHERE t.typnamespace = to_regnamespace(%s) AND t.typname = ANY (%s) AND t.typrelid = 0"""

# An extension's table (PostGIS brings some) does not count.
EVIDENCE_SQL = """
    WITH {trusted}
    SELECT c.oid::regclass::text, pg_get_userbyid(relowner),
           relowner IN (SELECT oid FROM trusted)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE relkind IN ('r', 'p', 'f') AND nspname = %(schema)s AND relname = %(name)s
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')"""

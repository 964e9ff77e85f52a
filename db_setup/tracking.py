"""The tracking table: reads it, makes it, adopts a database that has none, and records what is
applied.

A row means *applied*, always. New columns are additive and nullable, so that older versions can run
on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import boundary
import file_names
import marks
import migration_files
import planning
import psycopg2
from common import ConfigError, MigrationError, log
from config import Config, Setup
from database import literal
from migration_files import CreatedTable, Migration
from planning import Plan, Row
from psycopg2 import sql
from session import Session

# By name, in their order; the predecessor's table has only the others.
OUR_COLUMNS = {
    "checksum": "TEXT",
    "file_sha256": "TEXT",
    "adopted": "BOOLEAN",
    "duration_ms": "INTEGER",
    "applied_by": "TEXT",
    "deployment": "TEXT",
}

# --- What it holds ----------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What our tables hold. `columns` is None where there is no tracking table."""

    columns: Optional[tuple[str, ...]]
    rows: tuple[Row, ...]
    unfinished: tuple[str, ...] = ()  # the files that ran in part
    has_marks: bool = False
    excess: tuple[str, ...] = ()  # revokes the rights of others on our tables
    kept: Optional[boundary.Table] = None  # what the last run left is in it, see drift

    @property
    def is_current(self) -> bool:
        """As this version makes it."""
        has_columns = self.columns is not None and set(OUR_COLUMNS) <= set(self.columns)
        return has_columns and self.has_marks

    def is_complete(self, plan: Plan) -> bool:
        """As this version makes it, and in agreement with the folder."""
        return self.is_current and not (
            plan.pending or plan.renumbered or plan.unchecked or self.excess
        )


def our_tables_question(config: Config) -> sql.Composable:
    """Its answer, one value, is for boundary.tables; it can be asked when the session is set up."""
    return boundary.our_tables_question(config.schema, config.tables, config.limited_roles)


def read_state(
    session: Session, config: Config, found: Sequence[dict[str, Any]], is_empty: bool = False
) -> State:
    """Read the tracking table, whichever version made it, unless it `is_empty`.

    Another tool's is refused, and what others have made.
    """
    tables = boundary.tables(found)
    tracking_table, marks_table, kept = (tables.get(name) for name in config.tables)
    own_columns = (
        (tracking_table, {"id", "migration_name"}),
        (marks_table, {"migration_name"}),
        (kept, {"name", "facts"}),
    )
    for table, columns in own_columns:
        if table is None:
            continue
        taken = table.takes_our_name()
        if taken:
            raise taken
        if table.kind != "r" or not columns <= set(table.columns):
            if "file_sha256" in table.columns:
                missing = ", ".join(columns - set(table.columns))
                raise ConfigError(
                    f"table {table.label} is db_setup's own, but has no column {missing} any "
                    f"more (columns: {', '.join(table.columns)}): rename or restore that column"
                )
            raise ConfigError(
                f'table {config.schema}."{table.name}" belongs to another tool '
                f"(columns: {', '.join(table.columns)}): "
                "set MIGRATIONS_TABLE to a name of its own, such as db_setup_migrations"
            )
        complaint = table.complaint(session.login.username)
        if complaint:
            raise complaint
    excess = tuple(statement for table in tables.values() for statement in table.excess)
    if tracking_table is None:
        return State(None, (), has_marks=marks_table is not None, excess=excess, kept=kept)
    marks_can_be_read = marks_table is not None and marks_table.is_readable
    question = _rows_question(config, tracking_table.columns, marks_can_be_read)
    recorded: list[Row] = []
    unfinished: list[str] = []
    rows = [] if is_empty else session.query(question)
    for number, name, checksum, file_sha256, adopted, is_recorded in rows:
        if is_recorded:
            name_here = file_names.normal(name)
            row = Row(number, name_here, checksum, file_sha256, bool(adopted))
            recorded.append(row.as_read())
        else:
            unfinished.append(name)
    return State(
        tuple(tracking_table.columns),
        tuple(recorded),
        tuple(unfinished),
        has_marks=marks_table is not None,
        excess=excess,
        kept=kept,
    )


def _rows_question(config: Config, columns: Sequence[str], has_marks: bool) -> sql.Composable:
    select = sql.SQL("SELECT id, migration_name, {}, true FROM {}").format(
        _known(columns, "checksum", "file_sha256", "adopted"), config.tracking
    )
    if has_marks:
        marked = (
            " UNION ALL SELECT NULL, migration_name, NULL, NULL, NULL, false FROM {} GROUP BY "
            "migration_name"
        )
        select += sql.SQL(marked).format(config.marks)
    return select + sql.SQL(" ORDER BY 1, 2")


def _known(columns: Sequence[str], *names: str) -> sql.Composable:
    """These columns; NULL for those that a table of an older version does not have."""
    found = (sql.Identifier(name) if name in columns else sql.SQL("NULL") for name in names)
    return sql.SQL(", ").join(found)


def has_rows(config: Config, names: Collection[str]) -> sql.Composable:
    """Whether the tracking table has these rows, as they are written: as many others are not the
    same.
    """
    listed = "".join(f"{len(name)}:{name}" for name in sorted(names))
    digest = hashlib.sha256(listed.encode()).hexdigest()
    return sql.SQL(HAS_ROWS_SQL).format(config.tracking, sql.Literal(digest))


def restore_rows(
    session: Session, config: Config, names: Sequence[str]
) -> tuple[list[str], set[str]]:
    """Record these names again where they are not, in whatever Unicode form; returns those that
    were not, and all that are recorded now.

    Their checksums come with the next run, in which a repeatable file runs again.
    """
    rows = session.query(sql.SQL("SELECT migration_name FROM {}").format(config.tracking))
    recorded = {file_names.normal(name) for (name,) in rows}
    lost = [name for name in names if name not in recorded]
    if lost:
        insert = sql.SQL(RESTORE_SQL).format(config.tracking, sql.Literal(planning.MARK))
        lost = [name for (name,) in session.query(insert, [lost])]
    return lost, recorded.union(lost)


def unchanged_question(config: Config) -> sql.Composable:
    """Asked when a new session takes over: the recorded names, and whether no file can have run
    in part.
    """
    question = (
        "SELECT (SELECT coalesce(string_agg(migration_name, '/' ORDER BY id), '') FROM {}), "
        "NOT EXISTS (SELECT FROM {})"
    )
    return sql.SQL(question).format(config.tracking, config.marks)


# --- Creating and adopting --------------------------------------------------------------------


class Adoption(NamedTuple):
    """The files that a database contains already, and are recorded as applied without running."""

    files: Sequence[Migration] = ()
    warning: str = ""


class Ensured(NamedTuple):
    """Our tables are there."""

    found: Sequence[dict[str, Any]]  # what is known of them, see our_tables_question
    adopted: list[str]  # the names of these migrations
    warning: str  # of the adoption


def ensure_tracking(session: Session, setup: Setup, state: State) -> Ensured:
    """Create our tables, or add the columns that the predecessor's lacks."""
    config = setup.config
    changes: list[sql.Composable] = [
        sql.SQL(ADD_COLUMNS_SQL).format(config.tracking),
        # Made with the other one, so that nobody else can make it.
        sql.SQL(marks.CREATE_SQL).format(config.marks),
    ]
    adoption = Adoption()
    if state.columns is None:
        adoption = adoptable(session, setup)
        changes.insert(0, sql.SQL(CREATE_SQL).format(config.tracking))
        if config.schema != "public":
            home = sql.Literal(HOME + config.schema)
            if not has_schema(session, config):
                schema = sql.Identifier(config.schema)
                changes.insert(0, sql.SQL("CREATE SCHEMA {}").format(schema))
            changes.append(sql.SQL("COMMENT ON TABLE {} IS {}").format(config.tracking, home))
    is_missing = (state.columns is None, not state.has_marks)
    made = [name for name, missing in zip(config.tables, is_missing) if missing]
    changes.append(close_statement(config, made))
    named = list(planning.number_files(adoption.files, setup.files, ()))
    changes += [_adopt_sql(setup, name, file) for name, file in named]
    changes.append(our_tables_question(config))
    try:
        ((found,),) = session.query_all_or_none(sql.SQL("; ").join(changes))
    except psycopg2.errors.DuplicateObject:
        for label, owner in session.query(boundary.TAKEN_SQL, [config.schema, list(config.tables)]):
            raise boundary.name_taken("TYPE", label, owner) from None
        raise
    if state.columns is None:
        log("tracking table created", table=config.table)
    return Ensured(found, _adopted([name for name, _ in named]), adoption.warning)


def close_statement(config: Config, made: Sequence[str]) -> sql.Composable:
    """Of those of our tables that this transaction has made."""
    our_tables = our_tables_question(config)
    return sql.SQL(CLOSE_SQL).format(our_tables=our_tables, made=sql.Literal(list(made)))


def has_schema(session: Session, config: Config) -> bool:
    """Whether the schema is there.

    Raises ConfigError where it belongs to somebody who could replace our tables in it.
    """
    schema = sql.Literal(config.schema)
    question = boundary.with_trusted(SCHEMA_OWNER_SQL, config.limited_roles, schema=schema)
    found = session.query(question)
    for label, owner, is_trusted in found:
        if is_trusted:
            continue
        me = session.login.username
        raise ConfigError(
            f"schema {label} belongs to {owner}, who is not the admin and could decide by it what "
            f"runs as {me}",
            f"If it is right, as its owner or a superuser: ALTER SCHEMA {label} OWNER TO {me}; if "
            "not, set DB_SCHEMA to another name",
        )
    return bool(found)


def forget(session: Session, config: Config, rows: Sequence[Row]) -> None:
    """Remove the rows of files of which nothing has run."""
    ids = sql.Literal([row.id for row in rows])
    delete = sql.SQL("DELETE FROM {} WHERE id = ANY ({})").format(config.tracking, ids)
    session.with_retries(lambda: session.query_all_or_none(delete))


def remove_example(session: Session, config: Config, row: Row) -> None:
    """Take the example back, which was never meant: its empty tables and its row.

    Raises MigrationError where the tables are in use, or are not as the example made them.
    """
    drop = sql.SQL(DROP_EXAMPLE_SQL).format(
        tracking=config.tracking, id=sql.Literal(row.id), schema=sql.Identifier(config.schema)
    )
    try:
        session.with_retries(lambda: session.query_all_or_none(drop))
    except psycopg2.Error as exc:
        why = NOT_DROPPED.get(exc.pgcode or "")
        if why is None:
            raise
        forget = f"DELETE FROM {config.schema}.{config.table} WHERE id = {row.id}"
        raise MigrationError(
            f"{row.name}.sql was replaced, but what is applied is the example that comes with "
            f"db_setup, and its tables users and products {why}",
            "Restore the example, and put your schema into a new file; or drop the two tables, if "
            f"nobody needs them, and the row: {forget}",
        ) from None


def refuse_example(files: Sequence[Migration]) -> None:
    """Raise MigrationError where the example would run on a database that is in use."""
    for file in files:
        if planning.is_example(file):
            raise MigrationError(
                f"{file.path.name} is the example that comes with db_setup, and this database is "
                "not empty",
                "Put your own schema in its place, or delete it",
            )


def adopt_up_to_baseline(
    session: Session, setup: Setup, state: State, plan: Plan
) -> tuple[list[str], str]:
    """Where nothing but adopted files is recorded, BASELINE may still name a later one.

    So a database that had more than the first file needs no table dropped. Returns their names, and
    what is to be said of it.
    """
    baseline = setup.config.baseline or ""
    before = migration_files.up_to([file for _, file in plan.pending], baseline)
    if not before or not state.rows:  # without rows it is a first run, which has said so
        return [], ""
    if not all(row.adopted for row in state.rows):
        reason = "migrations have run on this database, so that one runs"
        return [], f"BASELINE={baseline} has no effect: {reason}"
    named = plan.pending[: len(before)]
    changes = [_adopt_sql(setup, name, file) for name, file in named]
    session.query_all_or_none(sql.SQL("; ").join(changes))
    return _adopted([name for name, _ in named]), ""


def _adopt_sql(setup: Setup, name: str, file: Migration) -> sql.Composable:
    hashes = (migration_files.tokens_checksum(file), file.sha256)
    values = (name, *hashes, setup.applied_by, setup.config.deployment)
    return sql.SQL(ADOPT_SQL).format(setup.config.tracking, *map(literal, values))


def _adopted(names: list[str]) -> list[str]:
    if names:
        log("existing database adopted", recorded_without_running=names)
    return names


def has_tables(session: Session, setup: Setup) -> bool:
    """Whether a database without tracking table has any other.

    Raises ConfigError where ours was moved: without its rows, every file would run again.
    """
    config = setup.config
    name = sql.Literal(config.table)
    question = boundary.with_trusted(
        FIRST_RUN_SQL,
        config.limited_roles,
        any_table=sql.SQL(ANY_TABLE_SQL),
        home=sql.SQL(HOME_SQL),
        name=name,
        schema=sql.Literal(config.schema),
    )
    has_any, moved = session.query(question)[0]
    if moved:
        raise ConfigError(
            f"table {moved} has the rows of this database: ALTER TABLE {moved} SET SCHEMA "
            f"{config.schema}, or set DB_SCHEMA if its schema has changed; or set MIGRATIONS_TABLE "
            "to another name if that one belongs to another application"
        )
    return bool(has_any)


def refuse_recorded_elsewhere(session: Session, setup: Setup) -> None:
    """Raise ConfigError where a tracking table of another name has these files: adoption would
    take the first one as applied, and run the others again.
    """
    contents = {file.sha256 for file in setup.files}
    name = sql.Literal(setup.config.table)
    question = boundary.with_trusted(
        OTHER_TABLES_SQL,
        setup.config.limited_roles,
        name=name,
        home=sql.SQL(HOME_SQL),
        # An application that moves to a schema of its own has its table in public still, or had it
        # there. Who names BASELINE knows better.
        schema=sql.Literal("public" if setup.config.baseline else setup.config.schema),
    )
    for schema, table in session.query(question):
        select = sql.SQL("SELECT file_sha256 FROM {}").format(sql.Identifier(schema, table))
        recorded = {sha256 for (sha256,) in session.query(select)}
        if recorded and recorded <= contents:
            raise ConfigError(
                f"table {schema}.{table} records the files of this folder, which would run again: "
                "was MIGRATIONS_TABLE or DB_SCHEMA changed? Set it back; or edit one of the files, "
                "if that table belongs to another application that has the same ones"
            )


def adoptable(session: Session, setup: Setup) -> Adoption:
    """The files that an existing database without tracking table already contains: the first, or
    all up to BASELINE.

    Judged by the tables that the first migration creates. If some exist and some do not, the run is
    refused, unless every statement of the file can run again.
    """
    files = [file for file in setup.files if not file.is_repeatable]
    baseline = setup.config.baseline
    has_any = bool(setup.files) and has_tables(session, setup)
    created = migration_files.Creations([], [], True)
    if has_any and files:
        created = migration_files.creations(files[0])
    existing = existing_tables(session, setup, files[0], created) if created.tables else []
    has_all = bool(existing) and len(existing) == len(created.tables)
    if has_any and baseline is None and not has_all:
        refuse_example(files)
    if not existing:
        if baseline is None:
            return Adoption()
        log("baseline not used: no table of the first migration exists", baseline=baseline)
        reason = "no table of the first migration exists, so every file runs"
        return Adoption(warning=f"BASELINE={baseline} has no effect: {reason}")
    refuse_recorded_elsewhere(session, setup)
    if baseline:
        return Adoption(migration_files.up_to(files, baseline))
    if has_all:
        return Adoption(files[:1])
    if created.is_guarded:
        return Adoption()
    missing = [table for table in created.tables if table not in existing]
    raise MigrationError(
        f"{files[0].path.name}: the database has no tracking table, and only some of the tables "
        f"of the first migration. There: {_table_list(existing)}. Missing: "
        f"{_table_list(missing)}",
        "Write the file's statements with IF NOT EXISTS, so that it can create what is missing, or "
        "set BASELINE to the last file that this database already contains",
    )


def existing_tables(
    session: Session, setup: Setup, file: Migration, created: migration_files.Creations
) -> list[CreatedTable]:
    """Those of the tables that are there, each in the schema where the file would create it.

    Raises MigrationError where nothing tells which schema that is, and a table may be meant.
    """
    config = setup.config
    default, user, schemas = session.query(SCHEMAS_SQL)[0]
    schemas.append(config.schema)  # which a first run makes
    found = []
    for table in created.tables:
        path = table.path
        if path == migration_files.UNKNOWN_PATH and table.schema is None:
            candidates = [
                schema for schema in schemas if table_exists(session, config, schema, table.name)
            ]
            if candidates and config.baseline is None:
                raise MigrationError(
                    f"{file.path.name}: is its table {table.name} the one in schema "
                    f"{candidates[0]}? The file sets search_path in a way that nothing can "
                    "follow",
                    "Write the schema before the table's name, or set BASELINE to the last file "
                    "that this database already contains",
                )
            if candidates:
                found.append(table)
            continue
        if path is None:
            path = migration_files.split_path(default)
        names = [user if name == "$user" else name for name in path]
        usable = [name for name in names if name in schemas or name in created.schemas]
        schema = table.schema or next(iter(usable), None)
        if schema and table_exists(session, config, schema, table.name):
            found.append(table)
    return found


def table_exists(session: Session, config: Config, schema: str, name: str) -> bool:
    """Whether a table shows that the database was set up before.

    Raises MigrationError where others made it: it shows nothing.
    """
    question = boundary.evidence_question(config.limited_roles)
    found = session.query(question, {"schema": schema, "name": name})
    if not found:
        return False
    label, owner, is_trusted = found[0]
    if not is_trusted:
        raise MigrationError(
            f"table {label} belongs to {owner}, who is not the admin: it does not show that this "
            "database was set up before",
            "If the first migration describes it, as its owner or a superuser: ALTER TABLE "
            f"{label} OWNER TO {session.login.username}; if not, rename or drop it",
        )
    return True


def _table_list(tables: Sequence[CreatedTable]) -> str:
    return ", ".join(map(str, tables))


# --- Recording --------------------------------------------------------------------------------


def record_sql(
    session: Session,
    setup: Setup,
    name: str,
    hashes: Sequence[str],
    elapsed_ms: int,
    *,
    is_again: bool = False,
) -> str:
    """Writes the row that says *applied*; an error if it is not there then.

    Where a file runs again, its row comes last, as the file did.
    `elapsed_ms` is what has passed until now; the statement adds what its transaction takes.
    """
    config = setup.config
    record = sql.SQL((FORGET_SQL if is_again else "") + RECORD_SQL).format(
        table=config.tracking,
        name=literal(name),
        checksum=literal(hashes[0]),
        file_sha256=literal(hashes[1]),
        elapsed_ms=sql.Literal(elapsed_ms),
        applied_by=literal(setup.applied_by),
        deployment=literal(config.deployment),
        lost=literal(row_lost(config)),
    )
    return record.as_string(session.connection)


def is_recorded(
    session: Session, config: Config, name: str, checksum: str, before: Optional[Row]
) -> bool:
    """Whether the row is there that record_sql writes; not the one that was there `before`.

    In whatever role and path the file has left: an operator of others would run as the admin.
    """
    question = (
        "SELECT EXISTS (SELECT FROM {} WHERE migration_name = {} AND checksum = {} AND id <> {})"
    )
    filled = sql.SQL(marks.AS_OURSELVES_SQL + question).format(
        config.tracking,
        literal(name),
        literal(checksum),
        sql.Literal(before.id if before else 0),
    )
    ((found,),) = session.with_retries(lambda: session.query(filled))
    return bool(found)


def row_lost(config: Config) -> str:
    return (
        f"{config.schema}.{config.table} did not keep the row that says *applied*: "
        "look for a trigger or a rule of that table, and remove it"
    )


def why_not_recorded(config: Config, error: Optional[psycopg2.Error]) -> str:
    """What is wrong with the tracking table, if that is why a file failed."""
    if error is None:
        return ""
    diag = error.diag
    is_cast = error.pgcode == INVALID_TEXT and not diag.context  # of ours, which no function has
    if is_cast and row_lost(config) in (diag.message_primary or ""):
        return row_lost(config)
    if error.pgcode == UNDEFINED_TABLE and f'"{config.schema}.{config.table}"' in (
        diag.message_primary or ""
    ):
        return (
            f"{config.schema}.{config.table} is gone: this file, or somebody meanwhile, has "
            "dropped, renamed or moved it, or its schema"
        )
    is_its_id = "(id)=" in (diag.message_detail or "")
    if error.pgcode == UNIQUE_VIOLATION and diag.table_name == config.table and is_its_id:
        table = f"{config.schema}.{config.table}"
        remedy = f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))"
        return f"the sequence of {table} gives numbers that its rows have already: {remedy}"
    return ""


def move_marks(
    session: Session, config: Config, gone: Sequence[str], beginnings: Mapping[str, str]
) -> bool:
    """Give the marks of files that are gone to those that begin with the same step."""
    select = sql.SQL(
        "SELECT migration_name, checksum FROM {} WHERE step = 1 AND migration_name = ANY (%s)"
    )
    update = sql.SQL("UPDATE {} SET migration_name = %s WHERE migration_name = %s")
    moved = False
    for name, checksum in session.query(select.format(config.marks), [list(gone)]):
        if checksum in beginnings:
            new_name = beginnings[checksum]
            with session.transaction():
                session.query(update.format(config.marks), [new_name, name])
            log("a file that has run in part has another name", migration=new_name, was=name)
            moved = True
    return moved


def record_renames(session: Session, config: Config, plan: Plan) -> None:
    """Rows follow their renumbered files; rows of the predecessor get their checksums; texts of
    repeatable files that others may undo run again, even if the deployment is rolled back.
    """
    if not plan.renumbered and not plan.unchecked and not plan.outdated:
        return
    rows: list[tuple[Any, ...]] = [
        (planning.renamed_to(row, file), row.recorded_checksum, file.sha256, row.id)
        for row, file in plan.renumbered
    ]
    rows += [
        (row.name, migration_files.tokens_checksum(file), file.sha256, row.id)
        for row, file in plan.unchecked
    ]
    rows += [(row.name, row.recorded_checksum, None, row.id) for row in plan.outdated]
    updates = (
        sql.SQL(RENAME_SQL).format(config.tracking, *map(literal, texts), sql.Literal(number))
        for *texts, number in rows
    )
    session.query_all_or_none(sql.SQL("; ").join(updates))
    for row, file in plan.renumbered:
        log("renumbered", migration=planning.renamed_to(row, file), was=row.name)


def applied_at(session: Session, config: Config, row: Row) -> str:
    """When a migration was applied, to the second."""
    select = sql.SQL("SELECT applied_at::timestamp(0)::text FROM {} WHERE id = %s")
    return str(session.query(select.format(config.tracking), [row.id])[0][0])


def history(session: Session, config: Config, state: State) -> list[dict[str, Any]]:
    """Of each recorded migration what its row says of it, but for the hashes."""
    if state.columns is None:
        return []
    names = ("adopted", "duration_ms", "applied_by", "deployment")
    select = sql.SQL("SELECT migration_name, applied_at::text, {} FROM {} ORDER BY id").format(
        _known(state.columns, *names), config.tracking
    )
    return [dict(zip(("name", "applied_at", *names), row)) for row in session.query(select)]


# --- The statements ---------------------------------------------------------------------------

CREATE_SQL = (
    "CREATE TABLE {} (id SERIAL PRIMARY KEY, migration_name VARCHAR(255) UNIQUE NOT NULL, "
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
)
# Default privileges would let a limited user write into a new table, from its COMMIT until the next
# look at it.
CLOSE_SQL = """
    DO $do$ DECLARE revoke text; BEGIN
        FOR revoke IN
            SELECT json_array_elements_text(one -> 'excess')
            FROM json_array_elements(({our_tables})) one WHERE one ->> 'name' = ANY ({made})
        LOOP
            IF revoke LIKE 'REVOKE %' THEN EXECUTE revoke; END IF;
        END LOOP;
    END $do$"""
# Additive and nullable: the versions before us insert migration_name alone.
ADD_COLUMNS_SQL = "ALTER TABLE {} " + ", ".join(
    f"ADD COLUMN IF NOT EXISTS {name} {kind}" for name, kind in OUR_COLUMNS.items()
)
RENAME_SQL = "UPDATE {} SET migration_name = {}, checksum = {}, file_sha256 = {} WHERE id = {}"
FORGET_SQL = "DELETE FROM {table} WHERE migration_name = {name}; "
# The number is one if the row is there; else PostgreSQL's error quotes what is none.
RECORD_SQL = (
    "INSERT INTO {table} (migration_name, checksum, file_sha256, duration_ms, applied_by, "
    "deployment) VALUES ({name}, {checksum}, {file_sha256}, greatest({elapsed_ms}, "
    "1000 * extract(epoch FROM clock_timestamp() - now()))::integer, {applied_by}, {deployment}); "
    "SELECT (CASE WHEN count(*) > 0 THEN '1' ELSE {lost} END)::integer FROM {table} "
    "WHERE migration_name = {name}"
)
INVALID_TEXT = "22P02"
UNIQUE_VIOLATION = "23505"
UNDEFINED_TABLE = "42P01"
# Locked before they are looked into: a row or a column that somebody adds now must not be lost. The
# number is that of what depends on the tables: an index, a trigger, a view … that others have added
# counts, as rows do that a policy would hide.
DROP_EXAMPLE_SQL = """
    LOCK TABLE {schema}.users, {schema}.products IN ACCESS EXCLUSIVE MODE;
    DO $do$ BEGIN
        IF (SELECT string_agg(concat(attname, ' ', format_type(atttypid, atttypmod)), ', '
                              ORDER BY c.relname DESC, attnum)
            FROM pg_class c JOIN pg_attribute ON attrelid = c.oid AND attnum > 0
            WHERE c.oid IN ('{schema}.users'::regclass, '{schema}.products'::regclass)
              AND c.relkind = 'r' AND NOT c.relrowsecurity
              AND pg_get_userbyid(c.relowner) = current_user)
           IS DISTINCT FROM 'id uuid, email character varying, created_at timestamp without time '
             'zone, id uuid, name character varying, price numeric(10,2), user_id uuid'
           OR (SELECT count(*) FROM pg_depend d
               LEFT JOIN pg_constraint n ON n.oid = objid AND classid = 'pg_constraint'::regclass
               WHERE refclassid = 'pg_class'::regclass AND n.contype IS DISTINCT FROM 'n'
                 AND refobjid IN ('{schema}.users'::regclass, '{schema}.products'::regclass)) <> 12
        THEN
            RAISE 'not as the example made them' USING ERRCODE = 'invalid_table_definition';
        END IF;
        IF EXISTS (SELECT FROM {schema}.users) OR EXISTS (SELECT FROM {schema}.products) THEN
            RAISE 'the tables hold rows' USING ERRCODE = 'object_in_use';
        END IF;
    END $do$;
    DROP TABLE {schema}.products, {schema}.users;
    DELETE FROM {tracking} WHERE id = {id}"""
CHANGED = "have been changed, or are used by others"
NOT_DROPPED = {
    "55006": "hold rows",
    "42P16": CHANGED,
    "42P01": CHANGED,  # dropped
    "42809": CHANGED,  # another object of that name
    "42501": CHANGED,  # somebody else's
    "2BP01": CHANGED,  # used in other ways
}
RESTORE_SQL = (
    "INSERT INTO {} (migration_name, checksum) "
    "SELECT name, CASE WHEN name ~ '^([0-9]+[-_. ]?)?R__.' THEN {} END "
    "FROM unnest(%s::text[]) name "
    "ON CONFLICT (migration_name) DO NOTHING RETURNING migration_name"
)
ADOPT_SQL = (
    "INSERT INTO {} (migration_name, checksum, file_sha256, applied_by, deployment, adopted) "
    "VALUES ({}, {}, {}, {}, {}, true)"
)
# The names would make each file's message longer by themselves.
HAS_ROWS_SQL = (
    "(SELECT sha256(convert_to(string_agg(char_length(migration_name) || ':' || migration_name, '' "
    "ORDER BY migration_name COLLATE \"C\"), 'UTF8')) = decode({1}, 'hex') FROM {0})"
)
# An extension's table (PostGIS brings some) does not count.
ANY_TABLE_SQL = """
    SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname <> 'information_schema'
      AND n.nspname !~ '^pg_'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')"""
SCHEMAS_SQL = (
    "SELECT (SELECT reset_val FROM pg_settings WHERE name = 'search_path'), current_user::text, "
    "(SELECT array_agg(nspname::text) FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp)')"
)
# Of which schema a tracking table is, wherever it was moved.
HOME = "db_setup of schema "
HOME_SQL = f"coalesce(substring(obj_description(c.oid, 'pg_class') FROM '^{HOME}(.*)'), 'public')"
SCHEMA_OWNER_SQL = """
    WITH {trusted}
    SELECT quote_ident(nspname), rolname, rolsuper OR r.oid IN (SELECT oid FROM trusted)
    FROM pg_namespace JOIN pg_roles r ON r.oid = nspowner WHERE nspname = {schema}"""
# Whether there is any table, and where one of our name is that was moved out of our schema.
FIRST_RUN_SQL = """
    WITH {trusted}
    SELECT EXISTS ({any_table}),
        (SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_'
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'migration_name'
         WHERE c.relname = {name} AND c.relkind IN ('r', 'p') AND n.nspname <> {schema}
           AND {home} = {schema}
           AND c.relowner IN (SELECT oid FROM trusted) LIMIT 1)"""
# Tables of another name that are made as ours.
OTHER_TABLES_SQL = """
    WITH {trusted}
    SELECT n.nspname, c.relname FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname !~ '^pg_'
    WHERE (c.relname <> {name}
           OR ('public' IN (n.nspname, {home}) AND n.nspname <> {schema} AND {schema} <> 'public'))
      AND c.relkind = 'r'
      AND c.relowner IN (SELECT oid FROM trusted)
      -- The database's owner can have an application of its own, closed to this admin.
      AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
      AND (SELECT count(*) FROM pg_attribute WHERE attrelid = c.oid
           AND attname IN ('migration_name', 'checksum', 'file_sha256', 'adopted')) = 4"""

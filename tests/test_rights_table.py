"""The documents' table of what the two logins may do, tried line by line; and the guide's recipe for other schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
import pytest
from harness.logins import SECRETS, as_superuser, give_schema_to
from harness.second import second_application
from harness.world import ADMIN, World, rows

LOGINS = {**SECRETS, "app_ro": "reader"}  # the table's columns, each with its secret
HEADING = "## What the logins can do"

MIGRATION = """
    CREATE TABLE items (id serial PRIMARY KEY, note text);
    CREATE VIEW seen AS SELECT id FROM items;
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM items;
    CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n';
    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE PROCEDURE nothing() LANGUAGE sql AS 'SELECT 1';
    CREATE SCHEMA closed;
    CREATE TABLE closed.items (id int);
"""


class Line(NamedTuple):
    """A line of the table: what each login may."""

    what: str
    statements: list[str]
    may: dict[str, bool]


def section(text: str) -> str:
    """The text below the heading, up to the next one."""
    return text.partition(f"{HEADING}\n")[2].partition("\n#")[0]


TEXT = section((Path(__file__).parents[1] / "docs" / "users-and-rights.md").read_text())


def lines(table: str) -> list[Line]:
    """The table's lines, but for the head and those that only group others."""
    found, group = [], ""
    for row in table.splitlines():
        cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
        if len(cells) == 5 and cells[2] in ("yes", "no"):
            may = {login: {"yes": True, "no": False}[cell] for login, cell in zip(LOGINS, cells[2:])}
            found.append(Line(f"{group}: {cells[0]}", re.findall(r"`([^`]+)`", cells[1]), may))
        elif cells[0].startswith("**"):
            group = cells[0].strip("*")
    return found


def outcome(conn: Any, statement: str) -> bool:
    """Whether it may be done; it is rolled back. Any other error than a missing right is one."""
    for autocommit in (False, True):  # what cannot be tried in a transaction is tried outside
        conn.autocommit = autocommit
        try:
            rows(conn, statement)
            return True
        except psycopg2.errors.InsufficientPrivilege:
            return False
        except psycopg2.errors.ActiveSqlTransaction:
            assert not autocommit
        finally:
            conn.rollback()
    raise AssertionError(statement)


def tried(world: World, another: World, login: str, table: list[Line]) -> dict[tuple[str, str], set[bool]]:
    """What came of each line's statements. After `\\connect another` the others are tried there; it counts only where
    it is alone."""
    value, found = world.secret(LOGINS[login]), {}
    with ExitStack() as stack:
        here, there = (
            stack.enter_context(w.connection(value["username"], value["password"])) for w in (world, another)
        )
        for line in table:
            elsewhere = line.statements[0] == r"\connect another"
            statements = (line.statements[1:] or ["SELECT 1"]) if elsewhere else line.statements
            found[line.what, login] = {outcome(there if elsewhere else here, each) for each in statements}
    return found


@pytest.fixture
def another(world: World) -> Iterator[World]:
    with second_application(world, "another") as another:
        give_schema_to(another, ADMIN)
        another.write("001_things.sql", "CREATE TABLE things (id int);")
        another.deploy(ROLE_PREFIX="another_")
        yield another


@pytest.mark.parametrize("users_first", [True, False], ids=["users first", "database first"])
def test_rights_table_is_what_the_logins_may(world: World, another: World, users_first: bool) -> None:
    """Every statement in every line of the table is tried with each login, and turns out as the table says: in a new
    database, and in one that had its objects before it had users."""
    give_schema_to(world, ADMIN)  # up to PostgreSQL 14 schema public is the superuser's
    world.secrets.create_secret(Name="reader")
    world.environ["DB_READER_SECRET_NAME"] = "reader"
    world.write("001_items.sql", MIGRATION)
    world.write("002_steps.sql", "-- no-transaction\nSELECT 1;\nCREATE INDEX CONCURRENTLY ON items (note);")
    if not users_first:
        world.deploy(CREATE_USERS="false")
        world.sql("CREATE TABLE by_hand (id int)")
    world.deploy()
    if users_first:
        world.sql("CREATE TABLE by_hand (id int)")
    with world.login("creator") as conn:
        rows(conn, "CREATE TABLE made (id serial, note text)")
    world.write("003_later.sql", "CREATE TABLE later (id serial, note text);")
    world.deploy()
    table = lines(TEXT)

    found = {key: what for login in LOGINS for key, what in tried(world, another, login, table).items()}

    assert found == {(line.what, login): {line.may[login]} for line in table for login in LOGINS}
    assert sum(len(line.statements) for line in table) > 70


def test_rights_table_has_no_line_that_is_not_tried() -> None:
    """A line whose last cells are neither yes nor no would be passed over: there are only group titles of that kind."""
    passed_over = [
        row for row in TEXT.splitlines() if row.startswith("|") and not row.rstrip().endswith(("| yes |", "| no |"))
    ]
    assert [row for row in passed_over[2:] if not re.match(r"\| \*\*", row)] == []
    assert len({line.what for line in lines(TEXT)}) == len(lines(TEXT))


# --- Other schemas than public --------------------------------------------------------------------------------------

RECIPE = """
-- 012_billing.sql
CREATE SCHEMA billing;
GRANT USAGE ON SCHEMA billing TO readwrite, tablecreator;
ALTER DEFAULT PRIVILEGES IN SCHEMA billing
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO readwrite, tablecreator;
ALTER DEFAULT PRIVILEGES IN SCHEMA billing
    GRANT USAGE, SELECT ON SEQUENCES TO readwrite, tablecreator;
CREATE TABLE billing.invoices (id serial PRIMARY KEY, note text);
"""
FOR_TABLE_CREATORS = """
-- 013_billing_for_table_creators.sql
GRANT CREATE ON SCHEMA billing TO tablecreator;
ALTER DEFAULT PRIVILEGES FOR ROLE tablecreator IN SCHEMA billing
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO readwrite;
ALTER DEFAULT PRIVILEGES FOR ROLE tablecreator IN SCHEMA billing
    GRANT USAGE, SELECT ON SEQUENCES TO readwrite;
"""
FOR_AN_OLD_SCHEMA = """
-- 014_archive.sql
GRANT USAGE ON SCHEMA archive TO readwrite, tablecreator;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA archive TO readwrite, tablecreator;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA archive TO readwrite, tablecreator;
ALTER DEFAULT PRIVILEGES IN SCHEMA archive
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO readwrite, tablecreator;
ALTER DEFAULT PRIVILEGES IN SCHEMA archive
    GRANT USAGE, SELECT ON SEQUENCES TO readwrite, tablecreator;
"""
USE = "INSERT INTO {0} (note) VALUES ('x'); UPDATE {0} SET note = 'y'; SELECT * FROM {0}; DELETE FROM {0}"


def may(world: World, statement: str) -> list[str]:
    allowed = []
    for login, secret in SECRETS.items():
        with world.login(secret) as conn:
            allowed += [login] if outcome(conn, statement) else []
    return allowed


def test_rights_in_a_schema_made_by_the_recipe_are_those_in_public(world: World) -> None:
    """On a fresh database, both logins use the schema's tables, those made there later too, and no later run takes
    anything away or gives more."""
    world.write("012_billing.sql", RECIPE)
    world.deploy()
    world.write("013_more.sql", "CREATE TABLE billing.more (id serial, note text);")
    world.deploy()
    world.sql("CREATE TABLE billing.by_hand (id serial, note text); ALTER ROLE app_rw NOLOGIN")
    world.deploy()

    tables = ("billing.invoices", "billing.more", "billing.by_hand")
    assert {table: may(world, USE.format(table)) for table in tables} == {table: list(SECRETS) for table in tables}
    refused = ("TRUNCATE billing.more", "DROP TABLE billing.more", "CREATE TABLE billing.own (id int)")
    assert {statement: may(world, statement) for statement in refused} == {statement: [] for statement in refused}


def test_rights_in_a_schema_opened_to_table_creators_are_handed_on(world: World) -> None:
    """What a table creator makes there as `tablecreator` is usable by both, before a rotation and after it."""
    world.write("012_billing.sql", RECIPE)
    world.write("013_billing_for_table_creators.sql", FOR_TABLE_CREATORS)
    world.deploy()
    for table in ("billing.one", "billing.two"):
        with world.login("creator") as conn:
            rows(conn, f"SET ROLE tablecreator; CREATE TABLE {table} (id serial, note text)")

        assert may(world, USE.format(table)) == list(SECRETS)
        assert may(world, f"SET ROLE tablecreator; ALTER TABLE {table} ADD more int") == ["app_tc"]
        assert may(world, "CREATE TABLE billing.own (id int)") == ["app_tc"]
        world.deploy({"action": "rotate"})


def test_rights_in_a_schema_that_was_there_before_are_given_by_the_recipe(world: World) -> None:
    """A schema that a dump brought is opened by a migration, with what it holds and what comes later."""
    world.sql("CREATE SCHEMA archive; CREATE TABLE archive.early (id serial, note text)")
    world.write("014_archive.sql", FOR_AN_OLD_SCHEMA)
    world.deploy()
    world.sql("CREATE TABLE archive.late (id serial, note text)")

    assert [may(world, USE.format(f"archive.{table}")) for table in ("early", "late")] == [list(SECRETS)] * 2


def test_rights_in_a_schema_revoked_by_a_migration_stay_revoked(world: World) -> None:
    """A later REVOKE on the recipe's schema stays in force, whatever the later runs have to do."""
    world.write("012_billing.sql", RECIPE)
    world.write("013_revoke.sql", "REVOKE DELETE ON billing.invoices FROM readwrite;")
    world.deploy()
    as_superuser(world, "DROP OWNED BY app_rw; DROP ROLE app_rw")
    world.deploy()

    assert may(world, "DELETE FROM billing.invoices") == ["app_tc"]
    assert may(world, "SELECT * FROM billing.invoices") == list(SECRETS)

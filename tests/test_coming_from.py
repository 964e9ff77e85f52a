"""docs/coming-from.md: its commands run on each tool's files, and what they make is adopted on each tool's database.

tests/coming_from/ has both: TOOL.sql is the database, TOOL/ the project with the files. Its README says which of the
databases the tool itself has made.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from harness import clients, guide
from harness.database import create_database, drop_database
from harness.world import ADMIN, ADMIN_PASSWORD, World
from initializer import ConfigError, MigrationError

pytestmark = [pytest.mark.slow, pytest.mark.public]  # where the tools have put their tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "coming-from.md").read_text()
MADE = Path(__file__).resolve().with_name("coming_from")
OURS = "db_setup_migrations"


class Row(NamedTuple):
    """What the page's table says of a tool."""

    tool: str
    tables: list[str]
    same_name: bool
    files: str
    tried: str

    @property
    def dumps(self) -> bool:
        return self.files == "dump"


def rows() -> dict[str, Row]:
    table = PAGE.split("\n## The tools\n")[1].split("\n## ")[0]
    cells = guide.rows(table)
    return {
        tool: Row(tool, re.findall(r"`([\w.]+)`", tables), same == "yes", files, tried)
        for tool, tables, same, files, tried in cells
    }


ROWS = rows()
OF_OUR_NAME = [row.tool for row in ROWS.values() if row.same_name]


def commands(title: str) -> str:
    """The commands below a heading."""
    part = re.split(rf"^##+ {re.escape(title)}$", PAGE, flags=re.MULTILINE)[1]
    return "".join(re.findall(r"^```sh\n(.*?)^```$", re.split(r"^##", part, flags=re.MULTILINE)[0], re.M | re.S))


class Project:
    """The project of a team, on the database that its tool has made."""

    def __init__(self, world: World, row: Row, folder: Path) -> None:
        self.world, self.row, self.folder = world, row, folder
        world.folder = folder / "lambda" / "db_setup" / "migrations"
        shutil.copytree(ROOT / "db_setup", folder / "lambda" / "db_setup", ignore=lambda *_: ["migrations"])
        world.folder.mkdir()
        if (MADE / row.tool.lower()).exists():
            shutil.copytree(MADE / row.tool.lower(), folder, dirs_exist_ok=True)
        world.sql((MADE / f"{row.tool.lower()}.sql").read_text().replace("%", "%%"))
        world.environ.update(CREATE_USERS="false")

    def shell(self, title: str, **environ: str) -> str:
        """Run what the page says; python3 and pg_dump are the tests' own."""
        programs = self.folder / "bin"
        if not programs.exists():
            programs.mkdir()
            newest = max(self.world.server.version // 10000, min(clients.MAJORS))
            (programs / "pg_dump").symlink_to(clients.client("pg_dump", newest))
            (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            (programs / "python3").chmod(0o755)
        path = f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
        done = subprocess.run(
            ["sh", "-eu", "-c", commands(title)],
            cwd=self.folder,
            env={"PATH": path, "OLD_DATABASE_URL": self.url(), "PYTHONDONTWRITEBYTECODE": "1", **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def url(self, dbname: str = "") -> str:
        server, password = self.world.server, quote(ADMIN_PASSWORD, safe="")
        mode = os.environ.get("PGSSLMODE") or self.world.environ.get("PGSSLMODE", "require")
        where = f"{server.host}:{server.port}/{dbname or self.world.dbname}"
        return f"postgresql://{ADMIN}:{password}@{where}?sslmode={mode}"

    def files(self) -> list[str]:
        return sorted(path.stem for path in self.world.folder.iterdir())

    def variables(self) -> dict[str, str]:
        """What the page tells to set."""
        wanted = {"MIGRATIONS_TABLE": OURS} if self.row.same_name else {}
        return wanted if self.row.dumps else {**wanted, "BASELINE": self.files()[-1]}

    def theirs(self) -> dict[str, Any]:
        """The tool's own tables, with their rows."""
        return {table: self.world.sql(f"SELECT * FROM {table}") for table in self.row.tables}

    def schema(self) -> list[str]:
        """Tables, columns, constraints and indexes of the application."""
        return [
            line
            for line in clients.run(
                self.folder / "bin" / "pg_dump",
                *("--schema-only", "--no-owner", "--no-privileges", "--no-comments"),
                *(f"--exclude-table={table}*" for table in (*self.row.tables, OURS, "schema_migrations")),
                *("--exclude-schema=drizzle", "--exclude-schema=supabase_migrations"),
                env=clients.environment(self.world.server, ADMIN, ADMIN_PASSWORD, self.world.dbname),
            ).splitlines()
            if line and not line.startswith(("--", "\\"))
        ]


@pytest.fixture
def project(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Project:
    return Project(world, ROWS[request.param], tmp_path / "project")


@contextmanager
def empty_database(world: World) -> Iterator[str]:
    """A second, empty database."""
    name = f"{world.dbname}_new"
    create_database(world.server, name, ADMIN)
    try:
        yield name
    finally:
        drop_database(world.server, name)


@contextmanager
def moved_to(world: World, dbname: str) -> Iterator[None]:
    """The same world with another database."""
    before = world.dbname
    try:
        world.dbname = dbname
        world.put_secret("admin", {**world.secret("admin"), "dbname": dbname})
        yield
    finally:
        world.dbname = before


def names(report: Mapping[str, Any]) -> list[str]:
    return [entry["name"] for entry in report["applied"]]


# --- Each tool ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", ROWS, indirect=True)
def test_coming_from_its_database_is_adopted_and_a_new_one_gets_the_same_schema(project: Project) -> None:
    """Nothing runs twice, the tool's table stays as it was, new files run, and an empty database runs them all."""
    world = project.world
    project.shell(project.row.tool)
    files, theirs, schema = project.files(), project.theirs(), project.schema()
    assert files

    variables = project.variables()
    report = world.deploy(**variables)

    assert (report["adopted"], names(report)) == (files, [])
    assert project.theirs() == theirs
    assert project.schema() == schema
    world.write("99999999999999_new.sql", "ALTER TABLE orders ADD note text;")
    assert names(world.deploy(**variables)) == ["99999999999999_new"]
    world.remove("99999999999999_new.sql")
    with empty_database(world) as new, moved_to(world, new):
        assert names(world.deploy(**variables)) == files
        assert project.schema() == schema


@pytest.mark.parametrize("project", OF_OUR_NAME, indirect=True)
def test_coming_from_its_table_of_our_name_is_refused_with_its_columns(project: Project) -> None:
    """The message is the page's, whatever columns the tool has."""
    project.shell(project.row.tool)
    columns = {"golang-migrate": "version, dirty"}.get(project.row.tool, "version")

    with pytest.raises(ConfigError) as caught:
        project.world.deploy(MIGRATIONS_TABLE=None, BASELINE=None)

    fenced = re.findall(r"^```(\w*)\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    [shown] = [text for language, text in fenced if not language]
    assert str(caught.value) == shown.replace("version", columns)


@pytest.mark.parametrize("project", ["Prisma"], indirect=True)
def test_coming_from_without_a_baseline_the_second_file_fails_and_nothing_is_lost(project: Project) -> None:
    """If the files are kept and BASELINE is missing, they run a second time and fail."""
    project.shell("Prisma")

    with pytest.raises(MigrationError, match='relation "orders" already exists'):
        project.world.deploy()


@pytest.mark.parametrize("project", ["Supabase"], indirect=True)
def test_coming_from_first_file_without_a_table_makes_the_baseline_void(project: Project) -> None:
    """The page warns of this: db_setup then takes the database for a new one."""
    project.shell("Supabase")
    project.world.write("20230101000000_extension.sql", "CREATE EXTENSION IF NOT EXISTS citext;")

    with pytest.raises(MigrationError, match='relation "users" already exists'):
        project.world.deploy(BASELINE="20240203040506_create_orders")


# --- The check ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", ["Supabase"], indirect=True)
def test_coming_from_check_shows_what_will_be_adopted_and_that_the_schema_is_the_same(project: Project) -> None:
    """The page's own commands, on a terminal; they change nothing in the old database."""
    project.shell("Supabase")
    schema = project.schema()

    with empty_database(project.world) as new:
        said = project.shell("Check it", NEW_DATABASE_URL=project.url(new))

    assert re.search(r"^adopted +20240102030405_create_users\n +20240203040506_create_orders$", said, re.MULTILINE)
    assert said.splitlines()[-1] == "the same"
    assert (project.schema(), project.world.tables()) == (schema, ["orders", "users"])


@pytest.mark.parametrize("project", ["Supabase"], indirect=True)
def test_coming_from_check_finds_a_difference(project: Project) -> None:
    """A column that somebody added by hand is in no file."""
    project.shell("Supabase")
    project.world.sql("ALTER TABLE users ADD by_hand text")

    with empty_database(project.world) as new, pytest.raises(AssertionError, match=r"< +by_hand text"):
        project.shell("Check it", NEW_DATABASE_URL=project.url(new))


# --- The page -------------------------------------------------------------------------------------------------------


def test_coming_from_says_which_databases_a_tool_has_made() -> None:
    """The last cell of a row agrees with the first line of the database's file."""
    for row in ROWS.values():
        head = (MADE / f"{row.tool.lower()}.sql").read_text().splitlines()[0]
        version = re.search(r"[\d.]*\d\.\d+", row.tried)
        assert ("not run" in row.tried) == ("was not run" in head)
        assert version is None or version.group() in head


def test_coming_from_has_a_row_for_each_of_its_commands() -> None:
    """Every tool in the table has commands, and every tool with commands is in the table."""
    headings = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)

    assert sorted(headings) == sorted(ROWS)
    assert all(commands(title) for title in headings)

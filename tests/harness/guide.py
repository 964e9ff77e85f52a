"""The guide's recipes as data: their files, their checks, and what its tables say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "databaseModificationGuide.md").read_text()
SCHEMA = ROOT / "migrations" / "001_initial_schema.sql"
NAME = re.compile(r"^-- (\d+_\w+)\.sql(?:, from PostgreSQL (\d+) on)?$", re.MULTILINE)


class Block(NamedTuple):
    """A block of SQL: a file, which has a name, or a check, which has none."""

    name: str
    text: str
    since: int  # the oldest major that knows it; 0: any


class Recipe(NamedTuple):
    title: str
    text: str
    blocks: list[Block]

    @property
    def files(self) -> list[Block]:
        return [block for block in self.blocks if block.name]

    @property
    def checks(self) -> list[Block]:
        return [block for block in self.blocks if not block.name]


def blocks(text: str) -> list[Block]:
    """The blocks of SQL in their order."""
    found = []
    for sql in re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        name = NAME.search(sql)
        found.append(Block(name.group(1) if name else "", sql, int(name.group(2) or 0) if name else 0))
    return found


def section(title: str) -> str:
    """The text below a main heading."""
    return GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def prelude() -> list[Block]:
    """The files before the first recipe: the tables of the examples."""
    return [block for block in blocks(section("Recipes").split("\n### ")[0]) if block.name]


def recipes() -> list[Recipe]:
    """The recipes in their order."""
    parts = section("Recipes").split("\n### ")[1:]
    return [Recipe(part.split("\n")[0], part, blocks(part)) for part in parts]


def recipe(title: str) -> Recipe:
    return next(recipe for recipe in recipes() if recipe.title == title)


def anchor(title: str) -> str:
    """Where a heading is found."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def rows(table: str) -> list[list[str]]:
    """The cells of a table's rows below its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]

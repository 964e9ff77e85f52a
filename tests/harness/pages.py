"""What a page of docs/ shows: its commands, and its files, each of which begins with its name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NAME = re.compile(r'(?:#!/bin/sh\n)?(?:#|//|""") ?([\w.]+\.\w+)\b')


class Block(NamedTuple):
    language: str
    text: str

    @property
    def name(self) -> str:
        """The file that it is, or nothing."""
        found = NAME.match(self.text)
        return found.group(1) if found else ""


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


def files(page: str) -> dict[str, str]:
    return {block.name: block.text for block in blocks(page) if block.name}


def commands(page: str) -> str:
    """What the page tells to type."""
    return "".join(block.text for block in blocks(page) if block.language == "sh" and not block.name)


def project(folder: Path, page: str) -> Path:
    """A user's project as the page says: its files, pack.py, the folder, and a layer."""
    shutil.copytree(ROOT / "db_setup", folder / "lambda" / "db_setup", ignore=shutil.ignore_patterns("__pycache__"))
    package = folder / "layer" / "python" / "psycopg2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name, text in {**files("other-frameworks.md"), **files(page)}.items():
        (folder / name).write_text(text)
    return folder

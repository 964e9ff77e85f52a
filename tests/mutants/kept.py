"""The kept list: mutants that were written by hand, each with the promise that it breaks and the tests that notice.

An entry of a file in list/ is a paragraph:

    its-name
    promise: docs/guarantees.md | words of that document, as they are
    file: session.py
    test: tests/test_lock.py::test_something
    - the text of that file
    + what replaces it

The text, of one line or several, must be found exactly once: who rewrites the code repairs the list. Every test that is
named must fail. `survives:` gives the reason why none can, instead of `test:`.

Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class ListError(Exception):
    """An entry is not of the form above, or does not fit the code."""


@dataclass(frozen=True)
class Mutant:
    """One change to a file of db_setup."""

    name: str
    file: str
    before: str
    after: str
    document: str = ""
    promise: str = ""
    tests: tuple[str, ...] = ()
    survives: str = ""

    def applied_to(self, text: str) -> str:
        """The file's text with the change."""
        found = text.count(self.before)
        if found != 1:
            raise ListError(f"{self.name}: {self.file} has its text {found} times, not once:\n{self.before}")
        return text.replace(self.before, self.after)

    def shown(self) -> str:
        lines = [f"  - {line}" for line in self.before.split("\n")]
        lines += [f"  + {line}" for line in self.after.split("\n")]
        return "\n".join(lines)


def kept_mutants() -> list[Mutant]:
    """All of the list, in the order of its files."""
    found: dict[str, Mutant] = {}
    for path in sorted((HERE / "list").glob("*.txt")):
        for paragraph in re.split(r"\n\s*\n", path.read_text().strip("\n")):
            if paragraph.startswith("#"):
                continue
            mutant = read_entry(paragraph)
            if mutant.name in found:
                raise ListError(f"{mutant.name} is the name of two entries")
            found[mutant.name] = mutant
    return list(found.values())


def read_entry(paragraph: str) -> Mutant:
    name, *lines = paragraph.split("\n")
    fields: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = (line[:1], "", line[2:]) if line[:2] in ("- ", "+ ", "-", "+") else line.partition(": ")
        fields.setdefault(key, []).append(value)
    unknown = set(fields) - {"promise", "file", "test", "survives", "-", "+"}
    if unknown or not NAME.fullmatch(name) or not {"promise", "file", "-"} <= set(fields):
        raise ListError(f"this is not an entry ({', '.join(unknown) or 'something is missing'}):\n{paragraph}")
    if ("test" in fields) == ("survives" in fields):
        raise ListError(f"{name} names tests, or the reason why none can notice it")
    document, _, promise = fields["promise"][0].partition(" | ")
    return Mutant(
        name=name,
        file=fields["file"][0],
        before="\n".join(fields["-"]),
        after="\n".join(fields.get("+", [""])),
        document=document,
        promise=promise,
        tests=tuple(fields.get("test", ())),
        survives=" ".join(fields.get("survives", ())),
    )


def source(file: str) -> str:
    return (REPOSITORY / "db_setup" / file).read_text()

"""The kept list of mutants fits the code and the documents, and what tries them can tell who is noticed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mutants import kept, run
from mutants.kept import ListError, Mutant

ROOT = Path(__file__).resolve().parent.parent
LIST = kept.kept_mutants()
BY_NAME = {mutant.name: mutant for mutant in LIST}
# What these sections say is not the code's to keep, or is kept by tests of the documents alone.
WITHOUT_MUTANTS = {
    "README.md": {
        "Is it the right tool?": "about others",
        "See it work": "the demo, see tests/test_setup.py",
        "Integration with CDK": "TypeScript, see `make example`",
        "Where to look": "links",
    },
    "docs/operating.md": {
        "Log, metrics and alarms": "the construct, see `make example`",
        "Runs longer than 15 minutes": "steps for the reader",
    },
    "docs/users-and-rights.md": {"Removing db_setup": "SQL for the reader, see tests/test_documents.py"},
}


def words(text: str) -> str:
    return " ".join(text.split())


@cache
def document(name: str) -> str:
    return (ROOT / name).read_text()


def sections(name: str) -> Iterator[tuple[str, str]]:
    """Title and text of the sections below the main heading."""
    for part in re.split(r"^## ", document(name), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        yield title, f"## {title}\n{text}"


# --- The list -------------------------------------------------------------------------------------------------------


def test_mutants_are_many_and_each_has_another_name() -> None:
    """The list covers what the documents promise; it only grows."""
    assert len(LIST) >= 90


@pytest.mark.parametrize("mutant", LIST, ids=BY_NAME)
def test_mutant_fits_the_code_and_its_document(mutant: Mutant) -> None:
    """Its text is found once and changed into other Python, and what it breaks is written in the document."""
    original = kept.source(mutant.file)

    changed = mutant.applied_to(original)

    assert changed != original
    compile(changed, mutant.file, "exec")
    assert words(mutant.promise) in words(document(mutant.document))
    assert mutant.promise


@pytest.mark.parametrize("mutant", LIST, ids=BY_NAME)
def test_mutant_names_tests_that_exist(mutant: Mutant) -> None:
    """A test that was renamed or removed is missed here, not only when the mutants are tried."""
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name.partition('[')[0]}\(", (ROOT / file).read_text(), re.MULTILINE), test


@pytest.mark.parametrize("name", ["README.md", "docs/operating.md", "docs/users-and-rights.md"])
def test_mutants_break_something_in_every_section(name: str) -> None:
    """Who adds a promise in a new section adds a mutant, or says why none can break it."""
    promised = [words(mutant.promise) for mutant in LIST if mutant.document == name]

    bare = [title for title, text in sections(name) if not any(promise in words(text) for promise in promised)]

    assert bare == list(WITHOUT_MUTANTS[name])


def test_mutants_break_something_in_every_page_about_the_code() -> None:
    """Each page in docs/ that is not about other tools alone has its mutants."""
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}

    assert pages - {mutant.document for mutant in LIST} == set()


def guarantees() -> list[list[str]]:
    lines = [line for line in document("docs/guarantees.md").splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_guarantees_each_name_a_test_and_a_mutant_that_it_notices() -> None:
    """The row's mutant breaks what the row says; the row's test is the one that must notice, unless it is one of
    `make chaos`, which takes too long to be tried on mutants."""
    assert len(guarantees()) >= 17
    for what, instead, test, name in guarantees():
        mutant = BY_NAME[name.strip("`")]
        in_chaos = "⚡" in test
        assert mutant.document == "docs/guarantees.md"
        assert words(mutant.promise) in f"{what} | {instead}", name
        noticing = [one.partition("::")[2].partition("[")[0] for one in mutant.tests]
        assert in_chaos or test.strip("`") in noticing, name
        assert mutant.tests


# --- What is wrong with a list --------------------------------------------------------------------------------------

ENTRY = "a-name\npromise: README.md | words\nfile: common.py\ntest: tests/test_log.py::test_x\n- before\n+ after"


def test_entry_is_read_with_its_lines_as_they_are() -> None:
    """White space at the beginning of a line counts; a line without anything after it is empty."""
    read = kept.read_entry(ENTRY.replace("- before", "-   one\n-   two").replace("+ after", "+ "))

    assert (read.before, read.after, read.tests) == ("  one\n  two", "", ("tests/test_log.py::test_x",))
    assert (read.document, read.promise) == ("README.md", "words")


@pytest.mark.parametrize("text", ["nothing", "before and before"])
def test_entry_whose_text_is_not_found_once_is_refused(text: str) -> None:
    """A change of the code that an entry is about makes the list wrong, and is seen."""
    with pytest.raises(ListError, match=r"^a-name: common\.py has its text (0|2) times, not once:\nbefore$"):
        kept.read_entry(ENTRY).applied_to(text)


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY.replace("a-name", "A name"),
        ENTRY.replace("file: common.py\n", ""),
        ENTRY.replace("test:", "tests:"),
        ENTRY.replace("test: tests/test_log.py::test_x\n", ""),
        ENTRY.replace("file:", "survives: a reason\nfile:"),
    ],
)
def test_entry_of_another_form_is_refused(entry: str) -> None:
    """Neither a test nor a reason, both, an unknown word, no file: nothing is passed over."""
    with pytest.raises(ListError):
        kept.read_entry(entry)


# --- Who is noticed -------------------------------------------------------------------------------------------------

TESTS = ("tests/test_a.py::test_one", "tests/test_a.py::test_two")


def answer(**known: Any) -> dict[str, Any]:
    return {"hung": False, "passed": [], "failed": {}, "broken": [], **known}


@pytest.mark.parametrize(
    ("known", "verdict"),
    [
        ({"passed": TESTS}, "survived"),
        ({"failed": {TESTS[0]: "assert 1 == 2", TESTS[1]: "DID NOT RAISE"}}, "noticed"),
        ({"failed": {f"{TESTS[0]}[a]": "assert", f"{TESTS[1]}[b]": "assert"}}, "noticed"),
        ({"failed": {TESTS[0]: "assert 1 == 2"}, "passed": TESTS[1:]}, "survived"),
        ({"failed": {TESTS[0]: "NameError: name 'x'", TESTS[1]: "assert"}}, "it only crashes: NameError: name 'x'"),
        ({"broken": ["tests/test_a.py: not collected"]}, "no test ran: tests/test_a.py: not collected"),
        ({"hung": True}, "noticed"),
    ],
)
def test_mutant_is_noticed_by_all_tests_that_it_names(known: dict[str, Any], verdict: str) -> None:
    """A test that fails notices; a file that cannot be collected, or a mistake of the mutant's own, proves nothing."""
    assert run.judge(answer(**known), TESTS, needs_all=True) == verdict


def test_mutant_of_the_tool_is_noticed_by_any_test() -> None:
    """Its tests are those of a whole module."""
    assert run.judge(answer(failed={TESTS[0]: "NameError"}), ("tests/test_a.py",), needs_all=False) == "noticed"


def test_test_that_fails_without_a_change_proves_nothing() -> None:
    """It is named, with what it says; so is one that does not exist."""
    assert run.complaint(answer(passed=[f"{TESTS[0]}[a]"]), TESTS[0]) == ""
    assert run.complaint(answer(failed={TESTS[0]: "assert 1 == 2"}), TESTS[0]) == f"{TESTS[0]} fails: assert 1 == 2"
    assert run.complaint(answer(passed=TESTS[:1]), TESTS[1]) == f"{TESTS[1]} does not exist"
    assert run.complaint(answer(hung=True), TESTS[0]) == f"{TESTS[0]} hangs"


def test_excuses_are_about_modules_whose_mutants_are_made() -> None:
    """Each says which change no test notices, and why."""
    excuses = json.loads((ROOT / "tests" / "mutants" / "excused.json").read_text())

    assert {change.partition(": ")[0] for change in excuses} <= set(run.ROOMS)
    assert [change for change, reason in excuses.items() if " -> " not in change or not reason.endswith(".")] == []

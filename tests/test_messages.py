"""Every message, warning and log line of the code has its row in docs/messages.md, and every row its message."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "messages.md").read_text()
LOG_LINES = "## Log lines\n"

# --- What the code says ---------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """A string of the code, with {} where values are put in."""

    place: str
    text: str


# Words that English needs, and that neither SQL nor a regular expression writes in small letters.
SMALL_WORDS = re.compile(
    "a|about|an|and|another|as|by|did|does|every|for|has|have|if|in|is|it|its|no|not|of|or|than|that|the|them|then|there|"
    "they|this|to|two|was|were|what|where|which|while|who|whose|with|without"
)
# Where a regular expression is recognised: classes, groups, repetitions, alternatives.
PATTERN = re.compile(r"\\[dsSwWbmM.(]|\[\^|\(\?|[.\])][*+?]|[\w}]\|[\w(\"]|\^\[")
SQL = re.compile(
    r"(?:\{\}|IN )?[\s(]*(SELECT|INSERT|UPDATE|DELETE|WITH|RECURSIVE|ARRAY|CASE|EXISTS|FROM)\b"
    r".*\b(FROM|INTO|SET|WHEN|JOIN|WHERE)\b",
    re.DOTALL,
)
# Words of libpq, the server and AWS that the code looks for, a name of a variable, and what only our mistake brings.
NOT_OURS = {
    'at or near "EXISTS"',
    'at or near "NOT"',
    "at or near ",
    "cannot be executed from a function",
    "does not support SSL",
    "invalid response to SSL negotiation",
    "no transaction in progress",
    "out of shared memory",
    "permission denied for database",
    "will be truncated to",
    "secret value for staging label",
    "the session has not been opened",
    "what precedes each line of a dry run, since nothing of it stays",
    # The recipes that review.py names, which tests/test_review.py looks for in the guide.
    *re.findall(r"^#+ (.*)$", (ROOT / "databaseModificationGuide.md").read_text(), re.MULTILINE),
}


def docstrings(tree: ast.AST) -> Iterator[ast.expr]:
    """Of modules, classes, functions and attributes: a string that is a statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def text_of(node: ast.AST) -> str:
    """A string, an f-string with {} for its values; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value.value) if isinstance(value, ast.Constant) else "{}" for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def sentences(node: ast.AST) -> list[ast.expr]:
    """The problem and the step that an error is made of: they are one message."""
    if not isinstance(node, ast.Call) or not getattr(node.func, "id", "").endswith("Error"):
        return []
    return [arg for arg in node.args if text_of(arg)]


def strings(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """All strings below a node, an f-string or an error as one, but for docstrings and the terminal's help."""
    parts: set[ast.AST] = set(docstrings(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts.update(value for value in node.values if isinstance(value, ast.Constant))
        elif isinstance(node, ast.keyword) and node.arg == "help":
            parts.update(ast.walk(node.value))
        parts.update(sentences(node))
    for node in ast.walk(tree):
        said = sentences(node)
        if said:
            yield said[0], ". ".join(map(text_of, said))
        elif node not in parts and isinstance(node, ast.expr) and text_of(node):
            yield node, text_of(node)


def is_message(text: str) -> bool:
    """Three words in small letters, one of them a small word of English, from their beginning; no pattern, no SQL."""
    words = re.findall(r"(?<![\w.%\"'-])[a-z][a-z']*(?![\w.(\"'-])", text)
    is_prose = len(words) >= 3 and any(map(SMALL_WORDS.fullmatch, words))
    goes_on = text[:1] in (" ", ",", "-")  # after the beginning of another one, or in a new file
    return is_prose and not goes_on and text not in NOT_OURS and not (PATTERN.search(text) or SQL.match(text))


def is_log(call: ast.Call) -> bool:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    return name in ("log", "_log")


def said(source: str, file: str = "") -> tuple[list[Text], list[Text]]:
    """The messages of a module, and the phrases with which its log lines begin."""
    tree = ast.parse(source)
    phrases = phrases_in(tree)
    logged = {id(node) for node, _ in phrases}
    others = [(node, text) for node, text in strings(tree) if id(node) not in logged and is_message(text)]
    return (
        [Text(f"{file}:{node.lineno}", text) for node, text in others],
        [Text(f"{file}:{node.lineno}", text.removeprefix("{}")) for node, text in phrases],
    )


def phrases_in(tree: ast.AST) -> list[tuple[ast.expr, str]]:
    """With what the log's lines begin, also where it has a name of its own first."""
    found: list[tuple[ast.expr, str]] = []
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and is_log(node) and node.args]
        names = {call.args[0].id for call in calls if isinstance(call.args[0], ast.Name)}
        assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
        values = [node.value for node in assigned if names & {getattr(target, "id", "") for target in node.targets}]
        found += [each for value in [*(call.args[0] for call in calls), *values] for each in strings(value)]
    return [(node, text) for node, text in found if text not in ("", "{}")]


def help_text(*words: str) -> str:
    """What `--help` prints, with single spaces."""
    command = [sys.executable, "db_setup", *words, "--help"]
    wide = {**os.environ, "COLUMNS": "1000"}
    run = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True, check=True, timeout=60)
    return " ".join(run.stdout.split())


def said_by_the_code() -> tuple[list[Text], list[Text]]:
    """All that anybody is told, but for what the terminal says of its own words."""
    about_words = "".join(help_text(*words) for words in ((), ("status",), ("new",), ("check",), ("dump",)))
    messages, phrases = [], []
    for path in sorted((ROOT / "db_setup").glob("*.py")):
        found = said(path.read_text(), path.name)
        messages += [text for text in found[0] if not all(part in about_words for part in text.text.split("{}"))]
        phrases += found[1]
    return messages, phrases


MESSAGES, PHRASES = said_by_the_code()


# --- What the page says ---------------------------------------------------------------------------------------------


def quoted(page: str, columns: int = 9) -> list[str]:
    """What the first columns of the tables quote."""
    rows = [row.split(" | ")[:columns] for row in page.splitlines() if row.startswith("| ")]
    return [phrase for row in rows for cell in row for phrase in re.findall(r"`([^`]+)`", cell)]


def pattern(phrase: str) -> str:
    """`…` is any text; everything else is meant as it is."""
    return ".*?".join(re.escape(part) for part in re.split(" ?… ?", phrase)) if len(phrase) > 1 else re.escape(phrase)


def appears(phrase: str, text: str) -> bool:
    return re.search(pattern(phrase), text, re.DOTALL) is not None


def begins(phrase: str, text: str) -> bool:
    return re.match(pattern(phrase), text) is not None


REST, LOG_TABLE = PAGE.split(LOG_LINES)
STATES = REST.split("\n## ")[2]
OTHERS = REST.replace(STATES, "")


def is_explained(text: str) -> bool:
    """Besides what it says of the present state, which is explained once, a message has a row of its own."""
    for phrase in quoted(STATES, columns=1):
        text = re.sub(pattern(phrase), "", text)
    telling = [phrase for phrase in quoted(OTHERS) if re.search(r"[a-z]{2,} \S", phrase)]
    return not is_message(text) or any(appears(phrase, text) for phrase in telling)


BY_POSTGRESQL = {
    "other objects depend on it",
    "unsafe use of new value",
    "used by a view or rule",
}


def test_messages_of_the_code_each_have_a_row() -> None:
    """Each message of the code has its row on the page."""
    assert STATES.startswith("What is kept")
    assert [text for text in MESSAGES if not is_explained(text.text)] == []
    assert len(MESSAGES) > 120


def test_messages_that_have_a_row_are_said() -> None:
    """A row explains something that the code says, or PostgreSQL."""
    every = [text for path in (ROOT / "db_setup").glob("*.py") for _, text in strings(ast.parse(path.read_text()))]

    explained = quoted(STATES + OTHERS, columns=1)

    assert {phrase for phrase in explained if not any(appears(phrase, text) for text in every)} == BY_POSTGRESQL


def test_log_lines_are_those_of_the_table() -> None:
    """Every line of the log begins with a phrase of the table, and the table has no other."""
    table = quoted(LOG_TABLE, columns=1)

    assert [text for text in PHRASES if not any(begins(phrase, text.text) for phrase in table)] == []
    assert [phrase for phrase in table if not any(begins(phrase, text.text) for text in PHRASES)] == []


def test_message_without_a_row_would_be_noticed() -> None:
    """However it is raised, handed on or put together; what is not a message is skipped."""
    source = '''
"""The docstring of a module is not a message that anybody reads."""
QUESTION = "SELECT count(*) FROM orders WHERE id IN (SELECT order_id FROM lines) AND NOT is_paid"
LOOKS = r"the role .* is not|this one"
LATER = {"x": ("42601", "pattern", "Write it the other way round")}

def work(report):
    """Nor is that of a function."""
    log("a line of the log", where=1)
    phrase = f"{report}another one in it"
    log(phrase)
    report.add(f"{report} is not what it was")
    problems.append("the folder has " + "no name that is known")
    raise SomeError(f"{report}: this cannot be done. " f"{'It was done before' if report else 'Do it the first time'}.")
'''

    messages, phrases = said(source)

    assert sorted(text.text for text in messages) == [
        "Do it the first time",
        "It was done before",
        "Write it the other way round",
        "no name that is known",
        "the folder has ",
        "{} is not what it was",
        "{}: this cannot be done. {}.",
    ]
    assert [text.text for text in phrases] == ["a line of the log", "another one in it"]

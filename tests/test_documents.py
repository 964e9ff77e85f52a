"""README and changelog say what the code does: their SQL runs, their names exist, their messages appear. In all
documents links lead somewhere. The guide has tests of its own, in test_guide.py."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import initializer
import pytest
from config import ADMIN_VARIABLE, USER_VARIABLES
from demo import BROKEN, ORDERS
from harness.world import World

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [path for where in ("*.md", "cdk_example/*.md", "benchmarks/*.md") for path in sorted(ROOT.glob(where))]
SCHEMA = (ROOT / "migrations" / "001_initial_schema.sql").read_text()


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def block_with(text: str, words: str) -> str:
    return next(block for block in blocks(text, "") if words in block)


def code_texts() -> list[str]:
    """All string constants of db_setup; where values are put in, there is a {}."""
    texts = []
    for path in (ROOT / "db_setup").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
    return texts


# --- README -------------------------------------------------------------------------------------------------------


def test_readme_has_the_sections_that_users_know_in_their_order() -> None:
    """The README's main sections are those of the README that users know."""
    sections = re.findall(r"^## (.+)$", README, re.MULTILINE)

    assert sections == [
        "Quick Setup",
        "Integration with CDK",
        "Environment Variables",
        "Initial Schema Setup",
        "Adding New Migrations",
        "Features",
    ]


def test_readme_schema_is_the_first_migration() -> None:
    """The README shows the schema that the folder brings."""
    assert blocks(README, "sql")[0] == SCHEMA


def test_readme_file_that_is_no_transaction_runs(world: World) -> None:
    """The marked file of the README makes its two indexes."""
    world.write("001_orders.sql", "CREATE TABLE orders (user_id int, created_at date);")
    world.write("002_indexes.sql", blocks(README, "sql")[1])

    world.deploy()

    found = world.sql(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'orders'::regclass AND indisvalid"
    )
    assert sorted(found) == [("orders_date",), ("orders_user",)]


def test_readme_variables_are_those_that_the_code_reads() -> None:
    """Every variable is documented, and no other."""
    code = (ROOT / "db_setup" / "config.py").read_text()
    read = {ADMIN_VARIABLE, *USER_VARIABLES.values()}
    read |= set(re.findall(r'(?:text|flag|port|milliseconds)\("([A-Z_]+)"', code))

    listed = set(re.findall(r"^(?:- |\| )`([A-Z_]+)`", README, re.MULTILINE))

    assert listed == read


def test_readme_snippets_set_only_documented_variables() -> None:
    """The CDK snippets use variables that exist."""
    snippets = blocks(README, "typescript")

    for snippet in snippets:
        environment = re.search(r"environment: \{(.*?)\}", snippet, re.DOTALL)
        assert environment is not None
        names = set(re.findall(r"^\s*([A-Z_]+):", environment.group(1), re.MULTILINE))
        assert names == {"DB_SECRET_NAME", "DB_USER_SECRET_NAME", "DB_PROXY"}
    assert len(snippets) == 2


def test_readme_names_one_python_wherever_it_installs_one() -> None:
    """Layer, runtime, pipeline and container are those of the example; only the first release's snippet has its own."""
    layer = (ROOT / "cdk_example" / "lib" / "psycopg-layer.ts").read_text()
    runtime = re.findall(r"RUNTIME = lambda\.Runtime\.PYTHON_3_(\d+)", layer)
    first_release = blocks(README, "typescript")[1]

    named = re.findall(r"(?:PYTHON_3_|python-version(?:: \"| )3\.|python:3\.)(\d+)", README.replace(first_release, ""))

    assert len(named) == 5
    assert {*named} == {*runtime}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document_commands_say_python3(document: Path) -> None:
    """Debian has no `python`, and its `pip` is of another Python. The environment of a hook has `python` everywhere."""
    commands = re.findall(
        r"^.*(?<![\w./-])(?:python|pip) (?:install|-m|lambda|db_setup).*$", document.read_text(), re.MULTILINE
    )

    assert [line for line in commands if "python3 -m pip" not in line and "entry: python " not in line] == []


def test_readme_log_is_what_a_first_deployment_logs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The log in the README has the lines of a real first deployment, with the same keys."""
    world.write("001_initial_schema.sql", SCHEMA)

    world.deploy()

    shown = [shape(line) for line in block_with(README, "starting version").splitlines()]
    if world.server.version < 150000:  # there schema public is not the admin's to close, and the log says what to do
        shown.insert(2, ("everybody can create tables in schema public", ["remedy"]))
    assert shown == [shape(r.getMessage()) for r in caplog.records if r.name == "db_setup"]


def shape(line: str) -> tuple[str, list[str]]:
    """The phrase of a log line and its keys."""
    return re.split(r" \w+=", line)[0], re.findall(r" (\w+)=", line)


def kinds(value: object) -> object:
    """The names and types in a report, lists by their first entry."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    return [kinds(inner) for inner in value] if isinstance(value, list) else type(value)


def test_readme_answers_are_what_the_handler_returns_to_these_events(world: World) -> None:
    """Each event in the README gets the answer that stands below it, up to names of servers, times and durations."""
    shown = [json.loads(block) for block in blocks(README, "json")]
    world.write("001_initial_schema.sql", SCHEMA)
    world.deploy()
    world.write("002_add_orders_table.sql", ORDERS)
    world.write("003_add_indexes.sql", "CREATE INDEX CONCURRENTLY orders_user_id ON orders (user_id);")

    answers = [world.deploy(event) for event in shown[::2]]

    assert [event.get("action", "migrate") for event in shown[::2]] == ["status", "dry_run", "migrate", "rotate"]
    for told, real in zip(shown[1::2], answers):
        assert kinds(told) == kinds(real)
        same = told.keys() - {"applied", "database", "duration_ms", "lock_wait_ms", "server_version", "tried"}
        assert {key: told[key] for key in same} == {key: real[key] for key in same}
        for key in ("applied", "tried"):
            for one, other in zip(told.get(key, ()), real.get(key, ())):
                assert {**one, "duration_ms": 0, "applied_at": ""} == {**other, "duration_ms": 0, "applied_at": ""}


def test_readme_failure_is_what_a_failed_deployment_says(world: World) -> None:
    """The message in the README is the one that this file really brings."""
    world.write("001_initial_schema.sql", SCHEMA)
    world.write("002_add_orders.sql", ORDERS)
    world.deploy()
    world.write("004_paid.sql", BROKEN)

    with pytest.raises(initializer.MigrationError) as caught:
        world.deploy()

    assert str(caught.value) == block_with(README, "004_paid.sql").strip()


def test_readme_messages_stand_in_the_code() -> None:
    """What the table of messages quotes is said by the code, or by PostgreSQL."""
    table = README.split("| the message says | it means | what to do |")[1].split("\n\n")[0]
    quoted = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))
    by_postgresql = {
        "cannot run inside a transaction block",
        "other objects depend on it",
        "unsafe use of new value",
        "used by a view or rule",
    }

    texts = code_texts()

    assert {phrase for phrase in quoted if not any(phrase in text for text in texts)} == by_postgresql


def test_readme_removal_removes_the_roles(world: World) -> None:
    """The statements for removing the roles work, and leave the table creator's tables if they are reassigned."""
    world.write("001_initial_schema.sql", SCHEMA)
    world.deploy()
    with world.login("creator") as conn, conn.cursor() as cur:
        cur.execute("CREATE TABLE reports (id int)")
    steps = re.findall(r"^  `((?:GRANT|DROP) .*;)`", README, re.MULTILINE)

    for step in steps:
        world.sql(step)

    assert len(steps) == 3
    assert world.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^(app_|readwrite|tablecreator)'") == []
    assert world.tables() == ["products", "reports", "users"]


# --- All documents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document_links_and_files_exist(document: Path) -> None:
    """A link leads to a file and a heading that exist; so does a named test or make target."""
    text = document.read_text()
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = link.partition("#")
        assert heading in headings if not path else (document.parent / path).exists(), link
        if path and heading:
            assert f"## {heading.replace('-', ' ')}\n" in (document.parent / path).read_text().lower(), link
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"`((?:tests|db_setup|migrations|\.ci)/[\w./]*)`", text):
        assert (ROOT / path).exists() or (ROOT / "db_setup" / path).exists(), path
    assert (
        set(re.findall(r"make (test|demo|lint|lock|chaos|versions|compare|bench|example|chain|load)\b", text))
        <= targets
    )


def test_changelog_begins_with_the_version_of_the_code() -> None:
    """Changelog, code and project metadata agree on the version."""
    newest = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    declared = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert [newest] == declared == [initializer.__version__]


def test_contributing_names_every_module() -> None:
    """Whoever changes the code finds each module explained."""
    modules = {path.name for path in (ROOT / "db_setup").glob("*.py")}

    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()))

    assert named == modules

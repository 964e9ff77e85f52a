"""The documents say what the code does: their SQL runs, their names exist. In all of them links lead somewhere. The
guide and the messages have tests of their own, in test_guide.py and test_messages.py."""

from __future__ import annotations

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
BY_HAND, FOLDER, GUARANTEES, MESSAGES, OPERATING, RIGHTS = (
    (ROOT / name).read_text()
    for name in (
        "docs/frameworks/cdk-by-hand.md",
        "db_setup/README.md",
        "docs/guarantees.md",
        "docs/messages.md",
        "docs/operating.md",
        "docs/users-and-rights.md",
    )
)
FIRST_README = (ROOT / "tests" / "harness" / "first_readme.md").read_text()
PLACES = ("*.md", "docs/**/*.md", "db_setup/*.md", "cdk_example/*.md", "benchmarks/*.md")
DOCUMENTS = [path for where in PLACES for path in sorted(ROOT.glob(where))]
SCHEMA = (ROOT / "migrations" / "001_initial_schema.sql").read_text()


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def block_with(text: str, words: str) -> str:
    return next(block for block in blocks(text, "") if words in block)


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- README -------------------------------------------------------------------------------------------------------


def test_readme_keeps_every_heading_and_sentence_of_the_first_one() -> None:
    """What people read when db_setup was first published is still there: headings in their order, and every sentence,
    list item and block of code."""
    prose = re.sub(r"^```.*?^```$", "", FIRST_README, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ .+$", prose, re.MULTILINE)
    paragraphs = [paragraph for paragraph in prose.split("\n\n") if not paragraph.strip().startswith("#")]
    sentences = [part for each in paragraphs for part in re.split(r"\n|(?<=[.:]) (?=[A-Z])", each.strip()) if part]
    code = re.findall(r"^```\w*\n.*?^```$", FIRST_README, re.MULTILINE | re.DOTALL)

    kept = [line for line in re.findall(r"^#+ .+$", README, re.MULTILINE) if line in headings]
    assert kept == headings
    assert [sentence for sentence in sentences if one_line(sentence) not in one_line(README)] == []
    assert [block for block in code if block not in README] == []
    assert (len(headings), len(code)) == (7, 2)
    assert len(sentences) > 20


def test_readme_contents_name_every_main_section() -> None:
    """The list of contents leads to every section below it."""
    contents = README.split("**Contents:**")[1].split("\n\n")[0]
    sections = re.findall(r"^## (.+)$", README, re.MULTILINE)

    named = re.findall(r"\[([^\]]+)\]\(#", contents)

    assert [name for name in named if name in sections] == sections


def test_readme_schema_is_the_first_migration() -> None:
    """The README shows the schema that the folder brings."""
    assert blocks(README, "sql") == [SCHEMA]


def test_readme_variables_are_those_that_the_code_reads() -> None:
    """Every variable is documented, and no other."""
    code = (ROOT / "db_setup" / "config.py").read_text()
    read = {ADMIN_VARIABLE, *USER_VARIABLES.values()}
    read |= set(re.findall(r'(?:text|flag|port|milliseconds)\("([A-Z_]+)"', code))

    assert names_in_lists(README) == names_in_lists(FOLDER) == read


def names_in_lists(text: str) -> set[str]:
    """The variables in the first column of tables, and at the beginning of list items."""
    first = re.findall(r"^(?:- |\| )(`[A-Z_`, ]+`)", text, re.MULTILINE)
    return {name for names in first for name in re.findall(r"[A-Z_]+", names)}


def test_readme_snippets_set_only_documented_variables() -> None:
    """The CDK snippets use variables that exist."""
    snippets = blocks(README, "typescript") + blocks(BY_HAND, "typescript")

    environments = [found for each in snippets for found in re.findall(r"environment: \{(.*?)\}", each, re.DOTALL)]
    for environment in environments:
        names = set(re.findall(r"^\s*([A-Z_]+):", environment, re.MULTILINE))
        assert names == {"DB_SECRET_NAME", "DB_USER_SECRET_NAME", "DB_PROXY"}
    assert len(environments) == 2


def test_readme_names_one_python_wherever_it_installs_one() -> None:
    """Layer, runtime, pipeline and container are those of the example; only the first release's snippet has its own."""
    layer = (ROOT / "cdk_example" / "lib" / "psycopg-layer.ts").read_text()
    runtime = re.findall(r"RUNTIME = lambda\.Runtime\.PYTHON_3_(\d+)", layer)

    named = re.findall(r"(?:PYTHON_3_|python-version(?:: \"| )3\.|python:3\.)(\d+)", README + BY_HAND + OPERATING)
    named.remove("9")  # of the first published configuration, whose runtime ends

    assert len(named) == 6
    assert {*named} == {*runtime}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document_commands_say_python3(document: Path) -> None:
    """Debian has no `python`, and its `pip` is of another Python. The environment of a hook has `python` everywhere."""
    commands = re.findall(
        r"^.*(?<![\w./-])(?:python|pip) (?:install|-m|lambda|db_setup).*$", document.read_text(), re.MULTILINE
    )

    assert [line for line in commands if "python3 -m pip" not in line and "entry: python " not in line] == []


@pytest.mark.public  # with another schema, the log names it
def test_operating_log_is_what_a_first_deployment_logs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The log shown has the lines of a real first deployment, with the same keys."""
    world.write("001_initial_schema.sql", SCHEMA)

    world.deploy()

    shown = [shape(line) for line in block_with(OPERATING, "starting version").splitlines()]
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


@pytest.mark.public  # which the page shows
def test_operating_answers_are_what_the_handler_returns_to_these_events(world: World) -> None:
    """Each event shown gets the answer that is shown below it, up to names of servers, times and durations."""
    shown = [json.loads(block) for block in blocks(OPERATING, "json")]
    world.write("001_initial_schema.sql", SCHEMA)
    world.deploy(DEPLOYMENT="3f9c2ab")
    world.write("002_add_orders_table.sql", ORDERS)
    world.write("003_add_indexes.sql", "CREATE INDEX CONCURRENTLY orders_user_id ON orders (user_id);")

    events = [*shown[::2][:-1], {"action": "databases", "like": world.dbname}]
    answers = [world.deploy(event) for event in events]

    actions = ["status", "dry_run", "migrate", "rotate", "databases"]
    assert [event.get("action", "migrate") for event in shown[::2]] == actions
    for told, real in zip(shown[1::2], answers):
        assert kinds(told) == kinds(real)
        same = told.keys() - {
            "applied",
            "database",
            "databases",
            "duration_ms",
            "lock_wait_ms",
            "server_version",
            "tried",
        }
        assert {key: told[key] for key in same} == {key: real[key] for key in same}
        for key in ("applied", "tried"):
            for one, other in zip(told.get(key, ()), real.get(key, ())):
                of_this_run = {"duration_ms": 0, "applied_at": "", "applied_by": ""}
                for lock in (*one.get("locks", ()), *other.get("locks", ())):
                    lock["held_ms"] = 0
                assert {**one, **of_this_run} == {**other, **of_this_run}


def test_messages_failure_is_what_a_failed_deployment_says(world: World) -> None:
    """The message shown is the one that this file really brings."""
    world.write("001_initial_schema.sql", SCHEMA)
    world.write("002_add_orders.sql", ORDERS)
    world.deploy()
    world.write("004_paid.sql", BROKEN)

    with pytest.raises(initializer.MigrationError) as caught:
        world.deploy()

    assert str(caught.value) == block_with(MESSAGES, "004_paid.sql").strip()


def test_rights_removal_removes_the_roles(world: World) -> None:
    """The statements for removing the roles work, and leave the table creator's tables if they are reassigned."""
    world.write("001_initial_schema.sql", SCHEMA)
    world.deploy()
    with world.login("creator") as conn, conn.cursor() as cur:
        cur.execute("CREATE TABLE reports (id int)")
    steps = blocks(RIGHTS, "sql")[-1].splitlines()

    for step in steps:
        world.sql(step)

    assert len(steps) == 3
    assert world.sql("SELECT rolname FROM pg_roles WHERE rolname ~ '^(app_|readwrite|tablecreator)'") == []
    assert world.tables() == ["products", "reports", "users"]


# --- All documents ------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Where the headings of a document are found."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document_links_and_files_exist(document: Path) -> None:
    """A link leads to a file and a heading that exist; so does a named test or make target."""
    text = document.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    for link in re.findall(r"\]\((?!https://)([^)]+)\)", text):
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not heading or heading in anchors(target.read_text()), link
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"`((?:tests|db_setup|migrations|\.ci)/[\w./]*)`", text):
        assert (ROOT / path).exists() or (ROOT / "db_setup" / path).exists(), path
    assert (
        set(re.findall(r"make (test|attacks|demo|lint|lock|chaos|versions|compare|bench|example|chain|load)\b", text))
        <= targets
    )


def test_changelog_begins_with_the_version_of_the_code() -> None:
    """Changelog, code and project metadata agree on the version."""
    newest = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    declared = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert [newest] == declared == [initializer.__version__]


def test_contributing_names_every_module() -> None:
    """CONTRIBUTING explains each module."""
    modules = {path.name for path in (ROOT / "db_setup").glob("*.py")}

    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()))

    assert named == modules


PAGES = [path for path in DOCUMENTS if path != ROOT / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page_says_first_whom_it_serves(page: Path) -> None:
    """The first line of a page says whom it serves, so that a reader of the wrong page leaves it early."""
    assert page.read_text().split("\n\n")[1].startswith("For ")


def test_folder_names_its_version_and_its_events() -> None:
    """The page that travels with the folder fits the code next to it."""
    events = set(re.findall(r'\{"action": "(\w+)"', FOLDER))

    assert FOLDER.splitlines()[0] == f"# db_setup {initializer.__version__}"
    assert events == set(initializer.ACTIONS)


def test_documents_say_nothing_twice() -> None:
    """A sentence or a row of a table is in one place. What is read alone may repeat: the page that travels with the
    folder, and each framework's page."""
    places: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        if document.parent.name not in ("db_setup", "frameworks"):
            prose = re.sub(r"^ *```.*?^ *```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
            prose = re.sub(r"^(- \[ \]|-|\d\.) ", "\n", prose, flags=re.MULTILINE)
            for part in re.split(r"\n\n|\n\|", prose):
                for sentence in re.split(r"(?<=[.:]) (?=[A-Z`*])", one_line(part)):
                    if len(sentence.split()) > 8:
                        places.setdefault(sentence, set()).add(str(document.relative_to(ROOT)))

    assert {sentence: names for sentence, names in places.items() if len(names) > 1} == {}
    assert len(places) > 500

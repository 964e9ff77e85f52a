"""The repository's top level, and the folder on its own: copied elsewhere, read-only, with nothing done at import."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import tls
from harness.process import HANDLE, deploy_elsewhere, python
from harness.world import ADMIN, World

REPOSITORY = Path(__file__).resolve().parents[1]
DB_SETUP = REPOSITORY / "db_setup"
THIRD_PARTY = {"psycopg2", "boto3", "botocore"}

INITIAL_SCHEMA = """\
CREATE EXTENSION IF NOT EXISTS "uuid-ossp";

CREATE TABLE IF NOT EXISTS "users" (
    "id" uuid PRIMARY KEY DEFAULT (uuid_generate_v4()),
    "email" varchar UNIQUE,
    "created_at" timestamp DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE IF NOT EXISTS "products" (
    "id" uuid PRIMARY KEY DEFAULT (uuid_generate_v4()),
    "name" varchar NOT NULL,
    "price" decimal(10,2),
    "user_id" uuid REFERENCES "users"("id")
);
"""

# --- Helpers ---------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """db_setup/ copied to another place and made read-only, as in /var/task."""
    folder = tmp_path / "lambda" / "db_setup"
    shutil.copytree(DB_SETUP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield folder
    for path in everything:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


# --- The repository -------------------------------------------------------------------------------------------------


LAYOUT = """
    db_setup/initializer.py db_setup/__main__.py db_setup/common.py db_setup/config.py db_setup/database.py
    db_setup/failures.py db_setup/limited_users.py db_setup/migration_files.py db_setup/nontransactional.py
    db_setup/file_names.py db_setup/planning.py db_setup/outcomes.py db_setup/outside.py db_setup/kept_types.py
    db_setup/marks.py db_setup/replication.py db_setup/review.py db_setup/dump.py
    db_setup/rehearsal.py db_setup/report.py db_setup/script_runner.py
    db_setup/secret_store.py db_setup/sending.py db_setup/session.py db_setup/sql_scanner.py db_setup/tracking.py
    db_setup/boundary.py db_setup/watcher.py db_setup/custom_resource.py docs/other-frameworks.md docs/coming-from.md
    db_setup/migrations/001_initial_schema.sql db_setup/README.md migrations tests docs/operating.md docs/messages.md
    docs/users-and-rights.md docs/guarantees.md docs/supported-versions.md docs/performance.md
    cdk_example/README.md README.md
    databaseModificationGuide.md pyproject.toml Makefile CHANGELOG.md CONTRIBUTING.md LICENSE .ci/run
"""


def test_repository_has_what_its_readers_look_for() -> None:
    """The layout is part of the contract."""
    assert [name for name in LAYOUT.split() if not (REPOSITORY / name).exists()] == []


def test_ci_run_is_executable() -> None:
    """.ci/run can be started as a program."""
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_license_is_mit() -> None:
    """The folder is made to be copied, and the licence says that it may be."""
    assert (REPOSITORY / "LICENSE").read_text().startswith("MIT License")


def test_migrations_is_a_relative_link_into_the_folder() -> None:
    """One set of files, and a link that holds wherever the repository is cloned to."""
    assert os.readlink(REPOSITORY / "migrations") == "db_setup/migrations"


def test_initial_schema_is_the_documented_one() -> None:
    """The file is, byte for byte, what people find in the README."""
    assert (DB_SETUP / "migrations" / "001_initial_schema.sql").read_bytes() == INITIAL_SCHEMA.encode()


# --- The folder -----------------------------------------------------------------------------------------------------


def test_copied_folder_works_from_any_directory_and_writes_nothing(
    world: World, elsewhere: Path, tmp_path: Path
) -> None:
    """`cp -r db_setup elsewhere/` is the whole installation; /var/task is read-only."""
    before = contents(elsewhere)
    (tmp_path / "cwd").mkdir()

    run = deploy_elsewhere(world, elsewhere, tmp_path / "cwd")

    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert [entry["name"] for entry in report["applied"]] == ["001_initial_schema"]
    assert report["users"] == {"app_rw": "created", "app_tc": "created"}
    assert world.tables() == ["products", "users"]
    assert world.secret("user")["username"] == "app_rw"
    assert contents(elsewhere) == before
    assert list((tmp_path / "cwd").iterdir()) == []


def test_copied_folder_finds_its_certificate_bundle(world: World, elsewhere: Path, tmp_path: Path) -> None:
    """global-bundle.pem next to the handler is found there: one of another authority refuses our server."""
    elsewhere.chmod(0o755)
    (elsewhere / "global-bundle.pem").write_text(tls.issue_certificate("127.0.0.1").ca)
    world.environ.pop("PGSSLMODE", None)

    run = deploy_elsewhere(world, elsewhere, tmp_path, f"import database; database.CONNECT_PATIENCE_S = 0\n{HANDLE}")

    assert run.returncode == 1
    assert f"RefusedError: cannot connect to {ADMIN}@" in run.stderr
    assert world.tables() == []


def test_failure_in_lambda_is_an_exception(world: World, elsewhere: Path, tmp_path: Path) -> None:
    """A failed run ends the invocation with an exception, never with a result."""
    run = deploy_elsewhere(world, elsewhere, tmp_path, BASELINE="no_such_file")

    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.rstrip().endswith(
        "ConfigError: BASELINE is 'no_such_file', but there is no such file in migrations/. Nothing has been touched."
    )


# What the import may not do, once all that is not ours has been imported before: no audit event of this kind, and
# no look into the environment.
WATCHED_IMPORT = """
import os
import initializer  # brings the standard library, psycopg2 and boto3 along

class Refused(dict):
    def refuse(self, *args):
        raise AssertionError(f"the environment is read at import: {args}")
    __getitem__ = __contains__ = __iter__ = get = keys = items = values = copy = refuse

def refuse(*args, **kwargs):
    raise AssertionError("a client or a connection is made at import")

def watch(event, args):
    if event.startswith(("socket.", "subprocess.")) or (event == "open" and args[1] not in ("r", "rb", None)):
        raise AssertionError(f"{event} at import: {args}")

folder = sys.path[0]
for name, module in list(sys.modules.items()):
    if str(getattr(module, "__file__", "")).startswith(folder):
        del sys.modules[name]
import boto3, psycopg2
boto3.client = boto3.resource = boto3.Session = psycopg2.connect = refuse
os.environ = Refused()
sys.addaudithook(watch)
import initializer
print(initializer.__version__)
"""


def test_import_does_nothing(elsewhere: Path, tmp_path: Path) -> None:
    """Lambda imports the module within 10 s and long before a secret or a network may be there."""
    run = python(WATCHED_IMPORT, elsewhere, tmp_path)

    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() != ""


def test_handler_loads_no_module_of_the_terminal(elsewhere: Path, tmp_path: Path) -> None:
    """What only the terminal needs is read and compiled by no function."""
    look = "import initializer; print({*sys.modules} & {'review', 'dump', 'argparse', 'pglast'})"

    run = python(look, elsewhere, tmp_path)

    assert (run.stdout.strip(), run.stderr) == ("set()", "")


DEEDS = {
    "os.environ['X']": "the environment is read at import: ('X',)",
    "os.getenv('X')": "the environment is read at import: ('X', None)",
    "__import__('boto3').client('sts')": "a client or a connection is made at import",
    "psycopg2.connect('')": "a client or a connection is made at import",
    "open('x', 'w')": "open at import: ('x', 'w', ",
    "__import__('socket').getaddrinfo('localhost', 1)": "socket.getaddrinfo at import: ('localhost', ",
}


def test_import_that_did_something_would_be_noticed(elsewhere: Path, tmp_path: Path) -> None:
    """The watch of the test above sees what it is meant to see."""
    module = elsewhere / "initializer.py"
    module.chmod(0o644)
    with module.open("a") as text:
        text.write("\nimport __main__\n")
        for deed in DEEDS:
            attempt = f"try:\n        {deed}\n    except AssertionError as exc:\n        print(exc)"
            text.write(f"if hasattr(__main__, 'watch'):\n    {attempt}\n")

    run = python(WATCHED_IMPORT, elsewhere, tmp_path)

    noticed = run.stdout.splitlines()[: len(DEEDS)]
    assert len(noticed) == len(DEEDS), run.stderr
    assert [said for said, complaint in zip(noticed, DEEDS.values()) if not said.startswith(complaint)] == []


def imported(path: Path) -> set[str]:
    """The top-level modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).partition(".")[0])
    return found


def is_standard(name: str) -> bool:
    """Whether a module belongs to the standard library (sys.stdlib_module_names came with Python 3.10)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    paths = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return spec.origin in ("built-in", "frozen") or (spec.origin.startswith(paths) and "-packages" not in spec.origin)


def test_folder_imports_nothing_that_lambda_lacks() -> None:
    """The standard library, psycopg2, boto3, and the folder's own modules; nothing relative: it is not a package."""
    own = {path.stem for path in DB_SETUP.glob("*.py")}
    names = {name for path in DB_SETUP.glob("*.py") for name in imported(path)}
    names -= {"pglast"}  # by the terminal, which is not uploaded, and only where it is installed

    strangers = {name for name in names - own - THIRD_PARTY if not is_standard(name)}

    assert strangers == set()
    assert {"psycopg2", "boto3", "json"} <= names

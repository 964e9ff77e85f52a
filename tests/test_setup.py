"""What `make demo` and `make test` do before they begin, and what they leave."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import environment, node
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
LOCKS = [
    *(environment.DEMO, environment.DEV, node.REQUIREMENTS, REPOSITORY / "cdk_example" / "layer" / "requirements.txt"),
    *sorted((REPOSITORY / "tests" / "harness" / "clients").glob("*.txt")),
    *sorted((REPOSITORY / "tests" / "chain" / "python").glob("*.txt")),
    REPOSITORY / "tests" / "frameworks" / "python" / "requirements.txt",
    REPOSITORY / "tests" / "mutants" / "requirements.txt",
    REPOSITORY / "benchmarks" / "peers" / "requirements.txt",
]
TIMEOUT_S = 100


# --- What is locked -------------------------------------------------------------------------------------------------


def locked(file: Path) -> dict[str, set[str]]:
    """The pins of a lock file, by name, as they are on every Python and system: "boto3==1.44.5 ; …"."""
    pins: dict[str, set[str]] = {}
    for line in re.findall(r"^([\w.-]+==[^\\\n]+)", file.read_text(), re.MULTILINE):
        pins.setdefault(canonicalize_name(line.split("==")[0]), set()).add(line.strip())
    return pins


def here(file: Path) -> dict[str, str]:
    """The versions in a lock file that are for this Python and system."""
    parsed = [Requirement(pin) for pins in locked(file).values() for pin in pins]
    chosen = [each for each in parsed if each.marker is None or each.marker.evaluate()]
    return {canonicalize_name(each.name): str(each.specifier).lstrip("=") for each in chosen}


def requirements(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """What this installed package requires here, with these of its extras."""
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def declared(*extras: str) -> set[Requirement]:
    """What pyproject.toml names: the dependencies of db_setup, and those of the extras."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    lists = [re.search(rf"^{name} = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL) for name in ("dependencies", *extras)]
    found = [word for each in lists if each for word in re.findall(r'^ *"(.*)",$', each.group(1), re.MULTILINE)]
    return {requirement for requirement in map(Requirement, found) if requirement.name != "db-setup"}


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_lock_file_pins_everything_by_version_and_hash(file: Path) -> None:
    """What is installed does not depend on what was published since."""
    text = re.sub(r"#.*", "", file.read_text()).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("--")]

    assert lines
    assert [line for line in lines if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)] == []


@pytest.mark.parametrize(
    ("file", "extras"), [(environment.DEMO, ("demo",)), (environment.DEV, ("demo", "dev"))], ids=["demo", "dev"]
)
def test_lock_file_is_complete(file: Path, extras: tuple[str, ...]) -> None:
    """Every requirement of pyproject.toml and of every locked package is locked, and nothing else is."""
    versions = here(file)
    wanted = [each for each in declared(*extras) if each.marker is None or each.marker.evaluate()]
    seen = set()

    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(versions.get(name, "none"), prereleases=True), requirement
        if (name, frozenset(requirement.extras)) not in seen:
            seen.add((name, frozenset(requirement.extras)))
            wanted += requirements(name, frozenset(requirement.extras))
    assert {name for name, _ in seen} == set(versions)


def test_installed_packages_are_the_locked_ones() -> None:
    """Nothing else is there, and in no other version; `pip` itself and what it brings come with Python."""
    found = {canonicalize_name(each.metadata["Name"]): each.version for each in importlib.metadata.distributions()}
    for name in ("pip", "setuptools"):
        found.pop(name, None)

    assert found == here(environment.DEV)


def test_installing_resolves_nothing_anywhere() -> None:
    """Old pips look for newer versions of what a complete lock file pins, and then refuse them: none is allowed to."""
    names = [path for part in ("tests", "benchmarks") for path in (REPOSITORY / part).rglob("*.py")]
    names += [REPOSITORY / "cdk_example" / "lib" / "psycopg-layer.ts", REPOSITORY / "Makefile"]
    texts = {path: path.read_text() for path in names if path != Path(__file__)}
    locked = {path for path, text in texts.items() if '"--require-hashes"' in text}

    assert len(locked) > 3
    assert {path for path in locked if '"--no-deps"' not in texts[path]} == set()


def test_demo_has_the_same_versions_as_the_tests() -> None:
    """The demo takes the tests' environment where there is one."""
    tests = here(environment.DEV)

    assert {name: version for name, version in here(environment.DEMO).items() if tests.get(name) != version} == {}


# --- Environments ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh copy of what `make demo` begins with, whose locked set is empty."""
    copy = tmp_path / "clone"
    ignored = shutil.ignore_patterns("__pycache__", "attacks", "chain", "chaos")
    shutil.copytree(REPOSITORY / "tests", copy / "tests", ignore=ignored)
    for file in (environment.DEMO, environment.DEV):
        (copy / file.name).write_text("# nothing\n")
    return copy


def prepare(clone: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TEST_")}
    return subprocess.Popen(
        [sys.executable, clone / "tests" / "prepare.py", *arguments],
        env={**plain, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_environment_is_made_once(clone: Path) -> None:
    """Two that begin at the same time in a fresh clone: one installs, the other waits. Then only a new lock counts."""
    make_temporary = "import tempfile; print(tempfile.mkdtemp())"
    both = [prepare(clone, "demo", "--", "python", "-c", make_temporary) for _ in range(2)]
    said = [process.communicate(timeout=TIMEOUT_S) for process in both]
    third = prepare(clone, "demo").communicate(timeout=TIMEOUT_S)
    place = clone / ".venv-demo", clone / environment.DEMO.name

    folders = [Path(out.strip()) for out, _ in said]
    assert [folder.parent.name.startswith("db-setup-") for folder in folders] == [True, True]
    wait_until(lambda: not any(folder.parent.exists() for folder in folders))
    assert sum("Installing requirements-demo.txt into .venv-demo, once" in err for _, err in said) == 1
    assert sum("Waiting for another process, which is installing the same" in err for _, err in said) == 1
    assert third == ("", "")
    assert environment.is_ready(*place)
    place[1].write_text("# nothing, too\n")
    assert not environment.is_ready(*place)


@pytest.mark.slow
def test_environment_is_whole_or_made_from_scratch(clone: Path) -> None:
    """After kill -9 nothing of the first attempt is used; a failure is a message, and leaves no environment."""
    temporary = clone / "temporary"
    temporary.mkdir()
    first = prepare(clone, "demo", TMPDIR=str(temporary))
    half = clone / ".venv-demo" / "bin"
    wait_until(half.exists)
    first.kill()
    first.communicate(timeout=TIMEOUT_S)
    (half / "of-the-first-attempt").touch()
    (clone / environment.DEMO.name).write_text(f"/nowhere/x-1-py3-none-any.whl --hash=sha256:{'0' * 64}\n")

    second = prepare(clone, "demo", "--", "python", "-c", "print('ran')", TMPDIR=str(temporary))
    out, said = second.communicate(timeout=TIMEOUT_S)

    assert (second.returncode, out) == (1, "")
    assert "/nowhere/x-1-py3-none-any.whl" in said
    assert "Traceback" not in said
    assert not (half / "of-the-first-attempt").exists()
    assert not (clone / ".venv-demo" / "installed").exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--server"], 1, "  installed: no initdb and postgres in /nowhere"),
        (["--migrations", "/nowhere"], 2, "/nowhere is not a folder"),
        (["--migrations", "."], 2, ". has no .sql file"),
    ],
)
def test_what_is_missing_is_known_before_anything_is_installed(
    clone: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, message: str
) -> None:
    """A missing PostgreSQL, or an empty folder, is reported before packages are installed."""
    monkeypatch.chdir(clone)

    process = prepare(clone, "demo", *arguments, TEST_POSTGRES="installed", TEST_POSTGRES_BIN="/nowhere")
    _, said = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == status
    assert message in said
    assert not (clone / ".venv-demo").exists()


# --- Node.js --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("npm", "version"), [("echo 11.0.0", "22.1.0"), ("exit 127", ""), ("echo no such version >&2; exit 1", "")]
)
def test_installed_node_counts_if_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, npm: str, version: str
) -> None:
    """Debian's node can be without npm, and a version manager's npm can be a name for nothing."""
    for name, action in (("node", "echo v22.1.0"), ("npm", npm)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{action}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert node.installed_version() == version


# --- What is left ---------------------------------------------------------------------------------------------------

HOLD = """
import signal, sys, tempfile, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what nohup has started to this
sys.path.insert(0, {tests!r})
from harness.server import running_server
with running_server() as server:
    open(tempfile.mkdtemp() + "/file", "w").close()
    print(tempfile.gettempdir(), server.log_file.parent if server.log_file else "", sep="\t", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_temporary_files_are_gone_however_a_process_ends(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, a closed terminal or kill -9: neither the server's data nor any other temporary file stays."""
    environ = {key: value for key, value in os.environ.items() if key != "TEST_DATABASE_URL" and value != "url"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(tests=str(REPOSITORY / "tests"))],
        env={**environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    home, data = (Path(name) if name else None for name in process.stdout.readline().rstrip("\n").split("\t"))
    assert home
    assert home.name.startswith("db-setup-")
    assert home.is_dir()
    assert data is None or data.is_dir()

    process.send_signal(number)
    process.communicate(timeout=TIMEOUT_S)

    wait_until(lambda: not home.exists() and not (data and data.exists()))
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_the_tests_are_below_one_folder(tmp_path: Path) -> None:
    """That folder is removed at the end; pytest would keep the folders of its last three runs."""
    assert any(parent.name.startswith("db-setup-") for parent in tmp_path.parents)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# --- The demo -------------------------------------------------------------------------------------------------------


def demo(*arguments: str) -> list[str]:
    """The lines that it prints."""
    environ = {key: value for key, value in os.environ.items() if key != "TEST_DATABASE_URL" and value != "url"}
    run = subprocess.run(
        [sys.executable, REPOSITORY / "tests" / "demo.py", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


@pytest.mark.slow
def test_demo_reads_well_at_100_columns() -> None:
    """Every line fits, and the last one says what was shown."""
    lines = demo()

    assert [line for line in lines if len(line) > 100] == []
    assert lines[-1].startswith("Shown: first deployment, dry run, failure and repair, ")


@pytest.mark.slow
def test_demo_of_own_files_says_what_was_shown(tmp_path: Path) -> None:
    """`make demo MIGRATIONS=folder` applies these files, and no others."""
    (tmp_path / "1_ours.SQL").write_text("CREATE TABLE ours (id int);")

    lines = demo("--migrations", str(tmp_path))

    assert "    | applied     1_ours" in "\n".join(lines)
    assert lines[-1] == (
        "Shown: a first deployment, which applied 1 file, and a second one, which found nothing to do."
    )

"""What docs/other-frameworks.md shows works as it is: the script that fails, and the zip that stays the same.

The frameworks' own tools are tried by `make example` (tests/frameworks).
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import pages

PAGE = "other-frameworks.md"
REPORT = '{"status": "ok", "applied": []}'
ERROR = (
    '{"errorMessage": "004_paid.sql:3: column \\"payed_at\\" does not exist (42703).", "errorType": "MigrationError"}'
)

# As the AWS CLI does it: the payload into the file, what is asked of the rest on stdout, and 0 for a function's error.
AWS = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open("calls", "a") as calls:
    calls.write(" ".join(words[:3]) + "\\n")
if os.environ["REFUSED"] in words:
    print("An error occurred (AccessDeniedException) when calling the operation", file=sys.stderr)
    sys.exit(254)
if words[1] == "invoke":
    values = ("--function-name", "--cli-read-timeout", "--query", "--output")
    options = {{word: words[words.index(word) + 1] for word in values if word in words}}
    others = [word for before, word in zip(words[1:], words[2:]) if before not in values and word[0] != "-"]
    [outfile] = others
    open(outfile, "w").write(os.environ["PAYLOAD"])
    answer = {{"StatusCode": 200, "ExecutedVersion": "$LATEST"}}
    if os.environ["FUNCTION_ERROR"]:
        answer["FunctionError"] = os.environ["FUNCTION_ERROR"]
    if "--query" in options:
        answer = answer.get(options["--query"])
    print(answer if options.get("--output") == "text" else json.dumps(answer))
"""


def migrate(folder: Path, function_error: str = "", payload: str = REPORT, refused: str = "-") -> tuple[int, str]:
    """Run the page's script with an `aws` that answers so; its exit code and what it printed."""
    (folder / "migrate.sh").write_text(pages.files(PAGE)["migrate.sh"])
    (folder / "aws").write_text(AWS.format(python=sys.executable))
    (folder / "aws").chmod(0o755)
    said = {"FUNCTION_ERROR": function_error, "PAYLOAD": payload, "REFUSED": refused}
    done = subprocess.run(
        ["sh", "migrate.sh", "db-setup"],
        cwd=folder,
        env={"PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin", "TMPDIR": str(folder), **said},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout


# --- From a pipeline ------------------------------------------------------------------------------------------------


def test_pipeline_script_succeeds_when_the_function_does_and_leaves_nothing(tmp_path: Path) -> None:
    """The report is shown, and Lambda is waited for before."""
    assert migrate(tmp_path) == (0, REPORT)
    assert (tmp_path / "calls").read_text().splitlines() == [
        "lambda wait function-updated",
        "lambda invoke --function-name",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"aws", "calls", "migrate.sh"}


@pytest.mark.parametrize("error", ["Unhandled", "Handled"])
def test_pipeline_script_fails_when_the_function_does_although_aws_exits_with_0(tmp_path: Path, error: str) -> None:
    """A failed migration must not be a green pipeline; the message is shown."""
    assert migrate(tmp_path, error, ERROR) == (1, ERROR)


@pytest.mark.parametrize("refused", ["wait", "invoke"])
def test_pipeline_script_fails_when_aws_does(tmp_path: Path, refused: str) -> None:
    """No right to invoke, or no such function: nothing has run, and the script says so."""
    code, _ = migrate(tmp_path, refused=refused)

    assert code == 254


# --- The zip --------------------------------------------------------------------------------------------------------


def packed(project: Path) -> tuple[str, bytes]:
    """What pack.py prints, and the zip."""
    command = [sys.executable, "pack.py", "lambda/db_setup", "db_setup.zip"]
    said = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout.strip()
    return said, (project / "db_setup.zip").read_bytes()


def test_pack_only_depends_on_the_content(tmp_path: Path) -> None:
    """The same files, at another time and with other rights: the same zip. A change of a file: another one."""
    project = pages.project(tmp_path, PAGE)
    file = project / "lambda" / "db_setup" / "migrations" / "001_initial_schema.sql"
    first = packed(project)
    os.utime(file, (1, 1))
    file.chmod(0o600)
    (project / "lambda" / "db_setup" / "__pycache__").mkdir()
    (project / "lambda" / "db_setup" / "__pycache__" / "x.pyc").write_text("")

    again = packed(project)
    file.write_text(file.read_text() + "-- more\n")
    changed = packed(project)

    assert again == first
    assert changed[0] != first[0]
    assert len(changed[0]) == 16


def test_pack_makes_what_lambda_runs(tmp_path: Path) -> None:
    """The handler at the top, the migrations below, readable by everybody."""
    project = pages.project(tmp_path, PAGE)
    packed(project)

    with zipfile.ZipFile(project / "db_setup.zip") as archive:
        names = archive.namelist()
        rights = {entry.external_attr >> 16 & 0o777 for entry in archive.infolist()}

    assert {"initializer.py", "custom_resource.py", "migrations/001_initial_schema.sql"} <= set(names)
    assert rights == {0o644}


def test_cloudformation_commands_upload_under_a_hash_and_deploy_it(tmp_path: Path) -> None:
    """The page's commands, with an `aws` that only notes them: a changed folder gets another key, and only that one."""
    project = pages.project(tmp_path, "frameworks/cloudformation.md")
    (project / "aws").write_text('#!/bin/sh\necho "$@" >> calls\n')
    (project / "aws").chmod(0o755)
    (project / "python3").symlink_to(sys.executable)

    def deployed() -> list[str]:
        given = {"BUCKET": "code", "SUBNETS": "a,b", "SECURITY_GROUP": "sg", "ADMIN_SECRET": "arn"}
        path = f"{project}{os.pathsep}/usr/bin{os.pathsep}/bin"
        commands = pages.commands("frameworks/cloudformation.md")
        subprocess.run(["sh", "-euc", commands], cwd=project, env={"PATH": path, **given}, check=True, timeout=60)
        calls = (project / "calls").read_text().splitlines()
        (project / "calls").unlink()
        return calls

    first = deployed()
    (project / "lambda/db_setup/migrations/002_orders.sql").write_text("SELECT 1;")
    second = deployed()

    key, other = (calls[0].rpartition("/")[2] for calls in (first, second))
    assert first[0] == f"s3 cp db_setup.zip s3://code/{key}"
    assert f"CodeKey={key} " in first[2]
    assert f"CodeKey={other} " in second[2]
    assert key != other
    assert first[1] == second[1]  # the layer

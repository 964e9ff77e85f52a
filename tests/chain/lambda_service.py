"""Simulates the Lambda service: takes invocations over HTTP, and runs each in a process of Lambda's own client.

The real parts are on both its sides: the AWS SDK, which invokes, and awslambdaric, which asks for work by the Runtime
API, loads the handler and answers. In between it does what the service does: versions, sandboxes that are kept warm,
one invocation at a time in each, the limit of time, asynchronous invocation.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Optional
from urllib.parse import unquote

INIT_TIMEOUT_S = 30  # Lambda's is 10, on machines that do nothing else
FUNCTION_ARN = "arn:aws:lambda:eu-central-1:123456789012:function:db-setup"


@dataclass(frozen=True)
class Version:
    """One published version of the function: unchangeable."""

    arn: str
    python: str
    code: Path
    handler: str
    paths: Sequence[Path]  # what is next to the code: the runtime's own packages, and the layers
    environ: dict[str, str]
    timeout_s: float
    log_format: str


@dataclass
class Invocation:
    """One delivery of an event, and what came of it."""

    arn: str
    log: Path
    process: subprocess.Popen[bytes]
    answer: Any = None
    failed: Optional[bool] = None  # None: it is at work

    @property
    def is_over(self) -> bool:
        return self.failed is not None


@dataclass(frozen=True)
class _Outcome:
    body: bytes
    failed: bool


class _Server(ThreadingHTTPServer):
    """Waits for nobody at its end, and does not complain of clients that have gone."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Requests(BaseHTTPRequestHandler):
    """A connection that may stay open; what it is asked is not logged."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def _serve(requests: type[_Requests]) -> _Server:
    server = _Server(("127.0.0.1", 0), requests)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class Sandbox:
    """A process of the runtime client, and the Runtime API that it talks to."""

    def __init__(self, version: Version, log: Path) -> None:
        self.version, self.log = version, log
        self._work: queue.Queue[Optional[tuple[str, bytes]]] = queue.Queue()  # None: no more comes
        self._taken: queue.Queue[float] = queue.Queue()
        self._outcomes: queue.Queue[_Outcome] = queue.Queue()
        self._server = _serve(self._runtime_api())
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        version = self.version
        environ = {
            "AWS_LAMBDA_RUNTIME_API": "{}:{}".format(*self._server.server_address[:2]),
            "AWS_LAMBDA_FUNCTION_NAME": version.arn.split(":")[6],
            "AWS_LAMBDA_FUNCTION_VERSION": version.arn.split(":")[7],
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_LOG_FORMAT": version.log_format,
            "AWS_REGION": version.arn.split(":")[3],
            "LAMBDA_TASK_ROOT": str(version.code),
            "_HANDLER": version.handler,
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "PYTHONPATH": ":".join(map(str, version.paths)),
            "PYTHONDONTWRITEBYTECODE": "1",  # the code's folder is read-only there
            **version.environ,
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                # -S: nothing of this Python's own site-packages, nor of the virtual environment.
                [version.python, "-S", "-m", "awslambdaric", version.handler],
                cwd=version.code,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _runtime_api(self) -> type[_Requests]:
        sandbox = self

        class RuntimeApi(_Requests):
            """https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html"""

            def do_GET(self) -> None:
                work = sandbox._work.get()
                if work is None:
                    return
                request_id, event = work
                end = time.time() + sandbox.version.timeout_s
                sandbox._taken.put(end)
                self.answer(
                    200,
                    event,
                    Lambda_Runtime_Aws_Request_Id=request_id,
                    Lambda_Runtime_Deadline_Ms=str(int(end * 1000)),
                    Lambda_Runtime_Invoked_Function_Arn=sandbox.version.arn,
                )

            def do_POST(self) -> None:
                sandbox._outcomes.put(_Outcome(self.body(), not self.path.endswith("/response")))
                self.answer(202, b'{"status":"OK"}')

        return RuntimeApi

    def invoke(self, event: bytes) -> _Outcome:
        """The handler's answer or error; beyond the limit of time the process is killed, and that is the error."""
        request_id = str(uuid.uuid4())
        self._work.put((request_id, event))
        end = time.monotonic() + INIT_TIMEOUT_S
        while True:
            with suppress(queue.Empty):
                return self._outcomes.get(timeout=0.02)
            with suppress(queue.Empty):
                end = time.monotonic() + self._taken.get_nowait() - time.time()
            if time.monotonic() > end:
                self.close()
                said = f"RequestId: {request_id} Error: Task timed out after {self.version.timeout_s:.2f} seconds"
                return _error("Sandbox.Timedout", said)
            if self.process.poll() is not None and self._outcomes.empty():
                said = f"RequestId: {request_id} Error: Runtime exited with error: {self.process.returncode}"
                return _error("Runtime.ExitError", said)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._work.put(None)
        self._server.shutdown()
        self._server.server_close()


def _error(kind: str, message: str) -> _Outcome:
    return _Outcome(json.dumps({"errorType": kind, "errorMessage": message}).encode(), True)


@dataclass
class LambdaService:
    """The function's versions, and the endpoint at which they are invoked."""

    logs: Path
    copies_of_an_event: int = 1  # asynchronous events may be delivered more than once
    invocations: list[Invocation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._versions: dict[str, Version] = {}
        self._warm: list[Sandbox] = []
        self._all: list[Sandbox] = []
        self._guard = threading.Lock()
        self._server = _serve(self._invoke_api())

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self._server.server_address[:2])

    def publish(self, **properties: Any) -> str:
        """The ARN of a new version."""
        arn = f"{FUNCTION_ARN}:{len(self._versions) + 1}"
        self._versions[arn] = Version(arn=arn, **properties)
        return arn

    def _invoke_api(self) -> type[_Requests]:
        service = self

        class InvokeApi(_Requests):
            """https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html"""

            def do_POST(self) -> None:
                arn, event = unquote(self.path.split("/")[3]), self.body() or b"{}"
                if self.headers["X-Amz-Invocation-Type"] == "Event":
                    for _ in range(service.copies_of_an_event):
                        threading.Thread(target=service.deliver, args=(arn, event), daemon=True).start()
                    return self.answer(202)
                outcome = service.deliver(arn, event)
                return self.answer(
                    200, outcome.body, **({"X_Amz_Function_Error": "Unhandled"} if outcome.failed else {})
                )

        return InvokeApi

    def deliver(self, arn: str, event: bytes) -> _Outcome:
        """Run one event in a warm sandbox, or in a new one where each is at work."""
        with self._guard:
            warm = next((each for each in self._warm if each.version.arn == arn), None)
            if warm:
                self._warm.remove(warm)
            sandbox = warm or Sandbox(self._versions[arn], self.logs / f"{len(self._all)}.log")
            if not warm:
                self._all.append(sandbox)
            invocation = Invocation(arn, sandbox.log, sandbox.process)
            self.invocations.append(invocation)
        outcome = sandbox.invoke(event)
        with self._guard:
            if sandbox.process.poll() is None:
                self._warm.append(sandbox)
            invocation.answer, invocation.failed = json.loads(outcome.body), outcome.failed
        return outcome

    def log(self) -> str:
        """What all sandboxes have printed."""
        return "".join(each.log.read_text() for each in self._all)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for sandbox in self._all:
            sandbox.close()

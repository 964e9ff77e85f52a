"""A front for moto's Secrets Manager: counts the calls, and can answer instead of it, or not at all."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Optional
from urllib.parse import urlsplit

from harness.proxy import ANSWERED, BEFORE, Place

SECRETS = 0  # the number of its "connection"; PostgreSQL's begin with 1
TIMEOUT_S = 30


@dataclass(frozen=True)
class Reply:
    """An answer in Secrets Manager's place; without a status none ever comes, or the connection closes."""

    status: int = 0
    kind: str = ""
    never: bool = False

    @property
    def body(self) -> bytes:
        return f'{{"__type": "{self.kind}", "message": "by chaos"}}'.encode()


Hook = Callable[[Place, str], Optional[Reply]]


class _QuietServer(ThreadingHTTPServer):
    """Waits for nobody at its end, and does not complain of clients that were killed."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class SecretsFront:
    """The front's address, and its hook."""

    def __init__(self, moto: str) -> None:
        self._moto = urlsplit(moto)
        self._hook: Optional[Hook] = None
        self._calls = 0
        self.released = threading.Event()  # ends the calls that are never answered
        front = self

        class Handler(BaseHTTPRequestHandler):
            """One connection of the handler's."""

            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                with suppress(OSError):  # the client has gone
                    front.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on stderr."""

        self.http = _QuietServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def watch(self, hook: Optional[Hook]) -> None:
        """Call this hook from the next call on, which has number 1; None lets all pass in peace."""
        self.released.set()
        self.released = threading.Event()
        self._hook, self._calls = hook, 0

    def answer(self, call: BaseHTTPRequestHandler) -> None:
        """Pass a call on, with its two places; or answer it as the hook says."""
        body = call.rfile.read(int(call.headers["Content-Length"]))
        self._calls += 1
        number, hook, what = self._calls, self._hook, call.headers["X-Amz-Target"]
        reply = hook(Place(SECRETS, number, BEFORE), what) if hook else None
        if reply is None:
            status, answer = self._ask(call, body)
            reply = hook(Place(SECRETS, number, ANSWERED), what) if hook else None
        if reply is not None:
            status, answer = reply.status, reply.body
            if reply.never:
                self.released.wait(TIMEOUT_S)
        if not status:
            call.close_connection = True
            return
        call.send_response(status)
        call.send_header("Content-Type", "application/x-amz-json-1.1")
        call.send_header("Content-Length", str(len(answer)))
        call.end_headers()
        call.wfile.write(answer)

    def _ask(self, call: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._moto.hostname or "", self._moto.port or 0, timeout=TIMEOUT_S)
        try:
            headers = {name: value for name, value in call.headers.items() if name.lower() != "host"}
            connection.request("POST", call.path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@contextmanager
def secrets_front(moto: str) -> Iterator[SecretsFront]:
    """A front before moto's server at this address, gone afterwards."""
    front = SecretsFront(moto)
    thread = threading.Thread(target=front.http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield front
    finally:
        front.watch(None)
        front.http.shutdown()
        front.http.server_close()

"""A front for the simulated Secrets Manager: connections that stay open, as in the real one, and TLS if wanted.

moto's own server closes a connection after every answer, and speaks plain HTTP only: each secret would cost a client a
handshake too many, or none.
"""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from harness import tls

from benchmarks import parts

PASSED_ON = ("Authorization", "Content-Type", "X-Amz-Date", "X-Amz-Target", "X-Amz-Security-Token")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed in the middle is none of ours."""


@contextmanager
def front(url: str, context: Optional[ssl.SSLContext] = None) -> Iterator[str]:
    """The URL of a server that passes every request on to `url`."""
    address = urlsplit(url).netloc

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else the second packet of an answer waits for the client, up to 40 ms

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            there = http.client.HTTPConnection(address)
            there.request("POST", "/", body, {name: self.headers[name] for name in PASSED_ON if name in self.headers})
            answer = there.getresponse()
            said = answer.read()
            there.close()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

    server = _Server(("127.0.0.1", 0), Requests)
    if context:  # the handshake is the thread's, not the listener's
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def front_with_tls(url: str, folder: Path) -> Iterator[dict[str, str]]:
    """Variables that lead a client there, and let it trust: botocore's own bundle, and one authority more."""
    authority = tls.issue_certificate("127.0.0.1")
    chain, bundle = folder / "front.pem", folder / "bundle.pem"
    chain.write_text(authority.certificate + authority.key)
    bundle.write_text((parts.lambda_packages().runtime / "botocore" / "cacert.pem").read_text() + authority.ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with front(url, context) as secure:
        yield {"AWS_ENDPOINT_URL": secure, "AWS_CA_BUNDLE": str(bundle)}

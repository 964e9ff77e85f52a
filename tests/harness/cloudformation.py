"""CloudFormation's side of a custom resource: its requests, and the HTTPS address at which it waits for the answer."""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import custom_resource

from harness.tls import issue_certificate

SIGNATURE = "X-Amz-Signature=0f1e2d3c"


@dataclass
class Bucket:
    """Takes answers as S3 does, and remembers them. The first ones get `statuses` instead of 200."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    puts: list[tuple[str, Mapping[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/answer?{SIGNATURE}"

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(data) for _, _, data in self.puts]

    def request(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The event that CloudFormation sends, with the keys that it always has."""
        return {
            "RequestType": kind,
            "ResponseURL": self.url,
            "StackId": "arn:aws:cloudformation:eu-central-1:123456789012:stack/shop/5b918d10-cd98-11ea",
            "RequestId": "unique-4c1e",
            "ResourceType": "Custom::DbSetup",
            "LogicalResourceId": "Migrations",
            "ServiceToken": "arn:aws:lambda:eu-central-1:123456789012:function:db-setup",
            "ResourceProperties": {"ServiceToken": "arn:aws:lambda:…", "Folder": "1f2e"},
            **fields,
        }


@contextmanager
def waiting(folder: Path, trusted: bool = True) -> Iterator[Bucket]:
    """A server over TLS that simulates S3, and whose certificate the machine trusts."""
    bucket = Bucket()
    certificate = issue_certificate("localhost")
    pem, ca = folder / "bucket.pem", folder / "ca.pem"
    pem.write_text(certificate.certificate + certificate.key)
    ca.write_text(certificate.ca if trusted else issue_certificate("localhost").ca)

    class Put(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            bucket.puts.append((self.path, dict(self.headers), data))
            self.send_response(bucket.statuses.pop(0) if bucket.statuses else 200)
            self.send_header("Location", bucket.url.replace("answer", "elsewhere"))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that does not trust us hangs up."""

    server = Server(("127.0.0.1", 0), Put)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    bucket.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    here = re.compile(rf"https://localhost:{bucket.port}/[!-~]*")
    try:
        with (
            mock.patch.multiple(custom_resource, S3=here, PAUSE_S=0),
            mock.patch.dict(os.environ, SSL_CERT_FILE=str(ca)),
            # Since Python 3.12 urllib reads the certificates once for all requests.
            mock.patch("urllib.request._opener", None),
        ):
            yield bucket
    finally:
        server.shutdown()
        server.server_close()

"""A TCP proxy between a client and PostgreSQL that knows where in their conversation they are, and can disturb it.

It reads the frames of the protocol, not what they mean: every message of the client has a number on its connection,
and three places around it. At each place a hook is called, on the thread that carries the bytes: until it returns,
these bytes wait.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Callable, Optional

# Around a message: it has arrived and goes no further yet; it is on its way; the answer's end has arrived and waits.
BEFORE, SENT, ANSWERED = "before", "sent", "answered"

ENCRYPTION_REQUESTS = (80877103, 80877104)  # SSLRequest, GSSENCRequest: the client has to be content without
AUTHENTICATION_GOES_ON = (10, 11)  # SASL and SASLContinue ask the client for more; others only inform it
CONNECT_TIMEOUT_S = 10
JOIN_TIMEOUT_S = 10


@dataclass(frozen=True, order=True)
class Place:
    """A message by the number of its connection and its own on it, both from 1, and where it is."""

    connection: int
    message: int
    phase: str

    def __str__(self) -> str:
        return f"{self.connection}.{self.message}.{self.phase}"


Hook = Callable[[Place, "Link"], None]


class Link:
    """One connection through the proxy, carried by a thread for each direction."""

    def __init__(self, number: int, client: socket.socket, hook: Optional[Hook], silent: bool) -> None:
        self.number = number
        self.backend_pid: Optional[int] = None
        self.said = ""  # the beginning of the client's last message, for people
        self._client, self._server = client, socket.socket()
        self._hook, self._silent = hook, silent
        self._message = 0
        self._is_ready = False
        self._threads: list[threading.Thread] = []

    def open(self, host: str, port: int) -> None:
        """Connect to the server, and carry bytes until one side closes; a server that is away closes the client's."""
        if not self._silent:
            self._server.close()
            try:
                self._server = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
            except OSError:
                self.cut()
                return
            self._server.settimeout(None)
            self._start(self._from_server)
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start(self._from_client)

    def cut(self) -> None:
        """Close both sides; what has not been passed on is lost."""
        for end in (self._client, self._server):
            with suppress(OSError):  # it was closed already
                end.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Lose everything from now on, in both directions, while both sides see an open connection."""
        self._silent = True

    def drain(self) -> None:
        """Return when everything is passed on that a client which has gone said; immediately in silence."""
        if not self._silent:
            self._join()

    def close(self) -> None:
        """End the connection and its threads."""
        self.cut()
        self._join()
        self._client.close()
        self._server.close()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)

    def _start(self, carry: Callable[[], None]) -> None:
        thread = threading.Thread(target=carry, name=f"link {self.number}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _from_client(self) -> None:
        with suppress(OSError), self._client.makefile("rb") as stream:
            for kind, frame in self._client_frames(stream):
                self._message += 1
                self.said = f"{kind} {frame[5:4005].decode('utf-8', 'replace').rstrip(chr(0))}"
                self._at(BEFORE)
                self._pass(self._server, frame)
                self._at(SENT)
        if not self._silent:  # a client that vanishes in silence is not seen to go
            self.cut()

    def _client_frames(self, stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
        """The client's messages; the first one, which has no type byte, as `startup`."""
        while True:
            head = _exactly(stream, 4)
            rest = _exactly(stream, _length(head) - 4)
            if struct.unpack("!i", rest[:4])[0] not in ENCRYPTION_REQUESTS:
                break
            self._pass(self._client, b"N")
        yield "startup", head + rest
        yield from _frames(stream)

    def _from_server(self) -> None:
        with suppress(OSError), self._server.makefile("rb") as stream:
            for kind, frame in _frames(stream):
                if kind == "K":
                    self.backend_pid = struct.unpack("!i", frame[5:9])[0]
                if self._ends_answer(kind, frame):
                    self._at(ANSWERED)
                self._is_ready = self._is_ready or kind == "Z"
                self._pass(self._client, frame)
        if not self._silent:
            self.cut()

    def _ends_answer(self, kind: str, frame: bytes) -> bool:
        """The client's turn: ReadyForQuery, CopyInResponse, a question about its password, or the end of the login."""
        if kind == "R":
            return struct.unpack("!i", frame[5:9])[0] in AUTHENTICATION_GOES_ON
        return kind in "ZG" or (kind == "E" and not self._is_ready)

    def _at(self, phase: str) -> None:
        if self._hook and not self._silent:
            self._hook(Place(self.number, self._message, phase), self)

    def _pass(self, end: socket.socket, data: bytes) -> None:
        if not self._silent:
            end.sendall(data)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ConnectionError("closed in the middle of a message")
    return data


def _length(head: bytes) -> int:
    return int(struct.unpack("!i", head)[0])


def _frames(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Messages with their type byte, until the stream ends."""
    while True:
        head = stream.read(5)
        if len(head) < 5:
            return
        yield chr(head[0]), head + _exactly(stream, _length(head[1:]) - 4)


class Proxy:
    """Listens in the server's place. What is set here counts for connections that are opened afterwards."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[Link] = []
        self._hook: Optional[Hook] = None
        self._opened = 0
        self.silent = False  # new connections are accepted, and nothing comes of them
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def watch(self, hook: Optional[Hook]) -> None:
        """Call this hook from the next connection on, which has number 1; None lets all pass in peace."""
        self._hook, self._opened, self.silent = hook, 0, False

    def silence_links(self) -> None:
        """Lose everything on every connection from now on, as when the network goes."""
        for link in self._links:
            link.silence()

    def drain(self) -> None:
        """Wait until the connections of a client that has ended have ended too."""
        for link in self._links:
            link.drain()

    def close_links(self) -> None:
        """End every connection and its threads."""
        links, self._links = self._links, []
        for link in links:
            link.close()

    def close(self) -> None:
        """Stop listening, and end every connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.close_links()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the end of this thread
            while True:
                client, _ = self._listener.accept()
                self._opened += 1
                link = Link(self._opened, client, self._hook, self.silent)
                self._links.append(link)
                link.open(*self._target)


@contextmanager
def proxy_to(host: str, port: int) -> Iterator[Proxy]:
    """A proxy in front of this server, closed afterwards."""
    proxy = Proxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()

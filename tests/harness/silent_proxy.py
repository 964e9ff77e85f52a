"""A TCP proxy that falls silent at a chosen moment: it still accepts and keeps connections open, and answers nothing.

Its kernel goes on acknowledging, so that neither keepalives nor TCP timeouts notice: what is left is the
client's own clock.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"
TICK_S = 0.05


class SilentProxy:
    """A proxy for `upstream` on a port of its own, which is silent from the moment at which a client says `word`.

    `word` itself is not passed on; an empty one means silence from the start, None none until be_silent(). Nobody
    hangs forever: after `mercy_s` seconds of silence every connection is closed.
    """

    def __init__(self, upstream: tuple[str, int], word: bytes | None = None, mercy_s: float = 30) -> None:
        self.upstream, self.word, self.mercy_s = upstream, word, mercy_s
        self.connections, self.silent_since = 0, time.monotonic() if word == b"" else None
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._peers: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._mute: list[socket.socket] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="silent proxy", daemon=True)
        self._thread.start()

    @property
    def is_silent(self) -> bool:
        return self.silent_since is not None

    def be_silent(self) -> None:
        self.silent_since = self.silent_since or time.monotonic()

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._hang_up()
        self._listener.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            waiting = [self._listener] if self.is_silent else [self._listener, *self._peers]
            for ready in select.select(waiting, [], [], TICK_S)[0]:
                if ready is self._listener:
                    self._accept()
                elif ready in self._peers and not self.is_silent:
                    self._pass_on(ready)
            if self.silent_since is not None and time.monotonic() - self.silent_since > self.mercy_s:
                self._hang_up()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self.connections += 1
        if self.is_silent:
            self._mute.append(client)
            return
        server = socket.create_connection(self.upstream, timeout=10)
        self._peers[client], self._peers[server] = server, client
        self._clients.add(client)

    def _pass_on(self, source: socket.socket) -> None:
        try:
            data = source.recv(65536)
            if source in self._clients and self.word is not None and self.word in data:
                self.be_silent()
            elif data:
                self._peers[source].sendall(data)
            else:
                self._part(source)
        except OSError:
            self._part(source)

    def _part(self, one: socket.socket) -> None:
        for end in (one, self._peers.pop(one)):
            self._peers.pop(end, None)
            self._clients.discard(end)
            end.close()

    def _hang_up(self) -> None:
        for end in [*self._peers, *self._mute]:
            with suppress(OSError):
                end.close()
        self._peers.clear()
        self._clients.clear()
        self._mute.clear()


@contextmanager
def silent_proxy(upstream: tuple[str, int], word: bytes | None = None, mercy_s: float = 30) -> Iterator[SilentProxy]:
    proxy = SilentProxy(upstream, word, mercy_s)
    try:
        yield proxy
    finally:
        proxy.close()

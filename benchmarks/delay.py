"""A TCP proxy that makes the server as far away as asked: half the round trip in each direction, nothing else.

A process of its own, so that it shares no interpreter lock with anybody: `python delay.py HOST PORT MILLISECONDS`
prints its port, and ends when its standard input closes. Throughput is not throttled: each piece has the time at which
it is due, and is passed on then, however many are on their way.
"""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CONNECT_TIMEOUT_S = 10
PIECE = 1 << 18


class Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_s: float, not_before: float) -> None:
        self._source, self._target, self._delay_s, self._not_before = source, target, delay_s, not_before
        self._on_its_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        for work in (self._take, self._give):
            threading.Thread(target=work, daemon=True).start()

    def _take(self) -> None:
        data = b"?"
        while data:
            data = b""
            with suppress(OSError):
                data = self._source.recv(PIECE)
            self._on_its_way.put((max(time.monotonic(), self._not_before) + self._delay_s, data))

    def _give(self) -> None:
        while True:
            due, data = self._on_its_way.get()
            time.sleep(max(due - time.monotonic(), 0))
            try:
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                    return
                self._target.sendall(data)
            except OSError:
                return


def carry(client: socket.socket, host: str, port: int, round_trip_s: float) -> None:
    """Connect, and pass on until both sides have closed."""
    arrived = time.monotonic()
    server = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
    server.settimeout(None)
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Over a real distance the client could not have spoken before the handshake had been there and back.
    Way(client, server, round_trip_s / 2, arrived + round_trip_s)
    Way(server, client, round_trip_s / 2, arrived)


def main() -> None:
    host, port, milliseconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=carry, args=(client, host, port, milliseconds / 1000), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


@contextmanager
def distance(host: str, port: int, milliseconds: float) -> Iterator[int]:
    """The port at which the server is so far away; its own where that is nothing."""
    if not milliseconds:
        yield port
        return
    command = [sys.executable, "-I", "-S", __file__, host, str(port), str(milliseconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield int(process.stdout.readline())
        process.stdin.close()


if __name__ == "__main__":
    main()

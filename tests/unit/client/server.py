"""A server for what a well-behaved daemon never does: it speaks the real protocol from threads, by a script of the test's."""

from __future__ import annotations

import contextlib
import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ifbus.errors import IfbusError
from ifbus.protocol import END_OF_STREAM, NEED_DATA, Connection, Event, Notification, Request

# Longer than any of these tests takes: only a test that fails waits for so long.
PATIENCE_S = 60.0


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.wire = Connection()
        self._sending = threading.Lock()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        with self._sending, contextlib.suppress(OSError):
            self.sock.sendall(data)

    def reply(self, request: Request, result: Any = None) -> None:
        """Answer a request."""
        self.send(self.wire.respond(request.msgid, result))

    def refuse(self, request: Request, error: IfbusError) -> None:
        """Refuse a request."""
        self.send(self.wire.respond_error(request.msgid, error))

    def notify(self, method: str, *params: Any) -> None:
        """Send a notification."""
        self.send(self.wire.notify(method, list(params)))

    def close(self) -> None:
        """End the connection, without a word."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


Script = Callable[[Peer, Request], None]


class Server:
    """Listens on `path`; `script` hears every request but hello and ping, which are answered.

    Attributes:
        peers: All connections there have been.
    """

    def __init__(self, path: Path, script: Script) -> None:
        self.path = path
        self.script = script
        self.peers: list[Peer] = []
        self._events: queue.Queue[tuple[Peer, Event]] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(sock, len(self.peers))
            self.peers.append(peer)
            self._start(self._serve, peer)

    def _serve(self, peer: Peer) -> None:
        with peer.sock:
            while True:
                try:
                    peer.wire.receive_data(peer.sock.recv(65536))
                except OSError:
                    return
                while (event := peer.wire.next_event()) is not NEED_DATA:
                    if event is END_OF_STREAM:
                        return
                    if isinstance(event, Request) and event.method == "daemon.hello":
                        peer.reply(event, {"pid": 1})
                    elif isinstance(event, Request) and event.method == "daemon.ping":
                        peer.reply(event, "pong")
                    else:
                        self._events.put((peer, event))
                        if isinstance(event, Request):
                            self.script(peer, event)

    def next_request(self) -> tuple[Peer, Request]:
        """The next request that the script heard."""
        while True:
            peer, event = self._events.get(timeout=PATIENCE_S)
            if isinstance(event, Request):
                return peer, event

    def next_notification(self) -> Notification:
        """The next notification that came."""
        while True:
            _, event = self._events.get(timeout=PATIENCE_S)
            if isinstance(event, Notification):
                return event

    def stop(self) -> None:
        """End all connections and take no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(PATIENCE_S)
        for peer in self.peers:
            peer.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


@contextlib.contextmanager
def serving(script: Script) -> Iterator[Server]:
    """A server in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="ifbus-") as directory:
        server = Server(Path(directory) / "s", script)
        try:
            yield server
        finally:
            server.stop()


def last_first(number: int) -> Script:
    """A script that answers so many requests when all are there, the last one first."""
    waiting: list[tuple[Peer, Request]] = []

    def answer(peer: Peer, request: Request) -> None:
        waiting.append((peer, request))
        if len(waiting) == number:
            while waiting:
                peer, request = waiting.pop()
                peer.reply(request, request.params)

    return answer


def silent(peer: Peer, request: Request) -> None:
    """A script that answers nothing."""


def echo(peer: Peer, request: Request) -> None:
    """A script that answers with the parameters."""
    peer.reply(request, request.params)

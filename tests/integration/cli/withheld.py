"""A daemon whose answer to a change does not come: it does what it was asked, and nobody hears of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def withholding_the_second_answer(upstream: Path, path: Path, *, hangs_up: bool) -> Iterator[Path]:
    """A socket that passes everything of one client on but the answer after hello's.

    Args:
        upstream: The daemon's socket.
        path: Where the client connects.
        hangs_up: Whether the connection ends instead of that answer; else it stays until the client goes.
    """

    def serve() -> None:
        client, _ = listener.accept()
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(upstream))
            server.sendall(client.recv(65536))
            client.sendall(server.recv(65536))
            server.sendall(client.recv(65536))
            server.recv(65536)  # it is done
            while not hangs_up and client.recv(65536):
                pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()

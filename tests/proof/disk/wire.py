"""A client of a few lines, so that no client library stands between a proof and the daemon: it neither retries nor renews."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgpack

# What a busy machine may need at most; nothing waits this long when all is well.
PATIENCE_S = 120.0


class Refused(Exception):
    """The daemon answered with an error; `code` and `data` are its own."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code: str = error["code"]
        self.data: dict[str, Any] = error["data"]


class Gone(Exception):
    """Nobody listens, or the connection ended before the answer: whether the request was done is unknown."""


_keys = itertools.count()


def with_key(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request with an idempotency key that no other request of this process has."""
    return {**params, "$": {"idempotency_key": f"{os.getpid()}-{next(_keys)}"}}


class Wire:
    """One blocking connection. The mutable state is the socket and what came on it."""

    def __init__(self, path: Path, *, patience_s: float = PATIENCE_S) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience_s)
        try:
            self._socket.connect(str(path))
        except ConnectionRefusedError as error:
            raise Gone from error
        self._incoming = msgpack.Unpacker(raw=False)
        self._next = 0
        self.told: list[tuple[str, Any]] = []
        """Notifications so far: method and first parameter."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Twice is fine."""
        self._socket.close()

    def ask(self, method: str, **params: Any) -> Any:
        """The answer to one request.

        Raises:
            Refused: It was answered with an error.
            Gone: It was not answered.
        """
        (answer,) = self.ask_together([(method, params)])
        if isinstance(answer, Refused):
            raise answer
        return answer

    def do(self, method: str, **params: Any) -> Any:
        """As `ask`, for what changes something: the request carries a new idempotency key."""
        return self.ask(method, **with_key(params))

    def ask_together(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """The answers to requests that are sent in one piece, a `Refused` among them for an error."""
        first = self._next
        self._next += len(requests)
        packed = [msgpack.packb([0, first + i, method, [params]]) for i, (method, params) in enumerate(requests)]
        answers: dict[int, Any] = {}
        try:
            self._socket.sendall(b"".join(packed))
            while len(answers) < len(requests):
                data = self._socket.recv(65536)
                if not data:
                    raise Gone
                self._incoming.feed(data)
                for message in self._incoming:
                    if message[0] == 1:
                        answers[message[1]] = message[3] if message[2] is None else Refused(message[2])
                    else:
                        self.told.append((message[1], message[2][0]))
        except (ConnectionResetError, BrokenPipeError) as error:
            raise Gone from error
        return [answers[first + i] for i in range(len(requests))]

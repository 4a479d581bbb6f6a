"""A blocking MessagePack-RPC client of a page, so that no library of ours stands between a proof and the daemon's bytes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgpack

# Nothing waits this long when all is well; a busy machine gets the rest.
PATIENCE_S = 120.0


class Answer(NamedTuple):
    """One response: the wire's error map or None, and the result."""

    error: dict[str, Any] | None
    result: Any

    @property
    def code(self) -> str:
        """``ok``, or the error's code."""
        return "ok" if self.error is None else str(self.error["code"])


def packed(msgid: int, method: str, params: list[Any]) -> bytes:
    """The bytes of a request."""
    data: bytes = msgpack.packb([0, msgid, method, params])
    return data


class Plain:
    """One connection, one request at a time; notifications are kept in `heard`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE_S)
        self.heard: list[tuple[str, list[Any]]] = []
        self._answers = msgpack.Unpacker(raw=False)
        self._early: dict[int, Answer] = {}
        self._msgid = 0

    @classmethod
    def at(cls, path: Path | str) -> Self:
        """Connected to the daemon at `path`."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(os.fspath(path))
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, method: str, **params: Any) -> Answer:
        """What the daemon answers; `params` may have the wire's own ``$``. Raises EOFError if it closes instead."""
        self._msgid += 1
        self.sock.sendall(packed(self._msgid, method, [params] if params else []))
        return self.answer(self._msgid)

    def answer(self, msgid: int) -> Answer:
        """The answer to a request that was sent. Raises EOFError if the daemon closes instead."""
        while True:
            if msgid in self._early:
                return self._early.pop(msgid)
            for message in self._answers:
                if message[0] == 2:
                    self.heard.append((message[1], message[2]))
                else:
                    self._early[message[1]] = Answer(message[2], message[3])
            if msgid in self._early:
                continue
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(f"the daemon closed the connection; it said {self.heard}")
            self._answers.feed(data)

    def call(self, method: str, **params: Any) -> Any:
        """The result of a request that must succeed."""
        answer = self.ask(method, **params)
        assert answer.error is None, (method, params, answer.error)
        return answer.result

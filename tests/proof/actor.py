"""A process of another user that asks the daemon what it is told to: ``python -m tests.proof.actor SOCKET STEPS``.

Steps, one word each, in their order::

    user:UID:GID:GROUP,..   become that user for good
    as:UID:GID:GROUP,..     become it for the moment; `back` ends that
    back
    connect                 to the daemon
    passed:UID:GID          have the connection made and handed over by a process of that user
    namespace               enter a user namespace of its own, as its root

Everything is imported before the user changes, because others may not be able to read this installation. Then it reads
``[method, params]`` from standard input and writes ``[error, result]`` to standard output, MessagePack both.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import msgpack

from tests.proof.plain import Answer, Plain

ROOT = Path(__file__).parents[2]
_CLONE_NEWUSER = 0x10000000
_PR_SET_DUMPABLE = 4
READY = b"!"
NOT_PERMITTED = b"-"


class Actor:
    """The process, as the test sees it. Raises PermissionError where the kernel forbids a step."""

    def __init__(self, path: Path, *steps: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.actor", str(path), *steps],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self._unpacker = msgpack.Unpacker(raw=False)
        if self._answers.read(1) != READY:
            self.close()
            raise PermissionError(f"this host does not permit {steps}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._questions.close()
        self._process.wait()
        self._answers.close()

    def ask(self, method: str, **params: Any) -> Answer:
        """What the daemon answers it."""
        self._questions.write(msgpack.packb([method, params]))
        self._questions.flush()
        while True:
            for error, result in self._unpacker:
                return Answer(error, result)
            data = os.read(self._answers.fileno(), 65536)
            assert data, "the actor ended"
            self._unpacker.feed(data)

    def call(self, method: str, **params: Any) -> Any:
        """The result of a request that must succeed."""
        answer = self.ask(method, **params)
        assert answer.error is None, (method, params, answer.error)
        return answer.result


def _user(words: list[str]) -> tuple[int, int, list[int]]:
    groups = [int(group) for group in words[2].split(",") if group] if len(words) > 2 else []
    return int(words[0]), int(words[1]), groups


def _become(words: list[str]) -> None:
    uid, gid, groups = _user(words)
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)


def _seem(words: list[str]) -> None:
    uid, gid, groups = _user(words)
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)


def _receive_connection(path: str, words: list[str]) -> Plain:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        _become(words)
        with Plain.at(path) as client:
            socket.send_fds(theirs, [b"!"], [client.sock.fileno()])
        os._exit(0)
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)  # who connected is no more when the first question is asked
    ours.close()
    theirs.close()
    return Plain(socket.socket(fileno=descriptors[0]))


def _enter_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # having changed its user, it may not write into its own /proc otherwise
    if libc.unshare(_CLONE_NEWUSER):
        raise PermissionError(ctypes.get_errno(), "cannot make a user namespace")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    assert os.getuid() == 0


def _prepare(path: str, steps: list[str]) -> Plain:
    client: Plain | None = None
    for step in steps:
        word, *words = step.split(":")
        if word == "user":
            _become(words)
        elif word == "as":
            _seem(words)
        elif word == "back":
            os.seteuid(0)
            os.setegid(0)
        elif word == "connect":
            client = Plain.at(path)
        elif word == "passed":
            client = _receive_connection(path, words)
        elif word == "namespace":
            _enter_namespace()
    assert client is not None, "one of the steps connects"
    return client


def _main(path: str, steps: list[str]) -> None:
    try:
        client = _prepare(path, steps)
    except PermissionError:
        os.write(1, NOT_PERMITTED)
        return
    os.write(1, READY)
    questions = msgpack.Unpacker(raw=False)
    while data := os.read(0, 65536):
        questions.feed(data)
        for method, params in questions:
            rest = memoryview(msgpack.packb(client.ask(method, **params)))
            while rest:
                rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])

"""Real daemons as processes, and the manager that they notify."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgpack

IFBUSD = Path(sys.executable).with_name("ifbusd")
# What a busy machine may need at most; nothing waits this long when all is well.
PATIENCE_S = 120.0


class Manager:
    """The service manager's end of the notifications."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self._socket.settimeout(PATIENCE_S)
        self.environ = {"NOTIFY_SOCKET": os.fspath(path)}

    def wait_for(self, line: str) -> list[str]:
        """All lines up to and including the message that has `line`."""
        seen: list[str] = []
        while line not in seen:
            seen += self._socket.recv(4096).decode().splitlines()
        return seen

    def close(self) -> None:
        self._socket.close()


class Caller:
    """A blocking MessagePack-RPC client of a dozen lines, so that no client library stands between test and daemon."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(os.fspath(path))
        self._answers = msgpack.Unpacker(raw=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, method: str, **params: Any) -> Any:
        self._socket.sendall(msgpack.packb([0, 1, method, [params] if params else []]))
        while True:
            for message in self._answers:
                if message[0] == 1:
                    assert message[2] is None, message[2]
                    return message[3]
            data = self._socket.recv(65536)
            assert data, "the daemon closed the connection"
            self._answers.feed(data)


@contextlib.contextmanager
def running(command: Sequence[str | Path], environ: Mapping[str, str] = os.environ) -> Iterator[subprocess.Popen[str]]:
    """The process while the block runs; stopped by SIGTERM then, killed if that does not do."""
    process = subprocess.Popen(command, env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def stop(process: subprocess.Popen[str], by: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    """Exit status, and what it said on both streams."""
    process.send_signal(by)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_until_listening(path: Path) -> None:
    """Return when somebody listens at `path`, which is a moment after the file is there."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            error = probe.connect_ex(os.fspath(path))
        if not error:
            return
        assert error in (errno.ENOENT, errno.ECONNREFUSED), os.strerror(error)
        assert time.monotonic() < deadline, f"nobody listens at {path}"
        time.sleep(0.01)

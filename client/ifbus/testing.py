"""A real daemon for tests: nothing mocked, a temporary state directory, gone at the end.

::

    with ifbus.testing.daemon() as daemon, ifbus.Client(daemon.socket) as bus: ...

As a pytest fixture: ``pytest_plugins = ["ifbus.testing"]``, then ``def test_it(ifbusd): ...``. Needs ``ifbus[daemon]``.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from ifbus.errors import Unavailable
from ifbus.link import Link

# A start takes 0.4 s on a quiet machine; a busy one gets the rest.
START_S: Final = 20.0
# Longer than the daemon's own grace for requests under way.
STOP_S: Final = 10.0


class Daemon:
    """A running daemon.

    Attributes:
        socket: Path to connect to.
        state_dir: Its state directory.
        process: The process; signal it to test what happens.
    """

    def __init__(self, socket_path: Path, state_dir: Path, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.socket = socket_path
        self.state_dir = state_dir
        self.process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def client(self, **options: Any) -> Link:
        """An untyped client; `ifbus.Client(daemon.socket)` is the typed one."""
        return Link(self.socket, **options)

    def log(self) -> str:
        """What it has written to standard error so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


@contextlib.contextmanager
def daemon(
    *,
    state_dir: Path | None = None,
    config: Path | None = None,
    arguments: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[Daemon]:
    """Start an `ifbusd` for the current user and stop it at the end, by SIGTERM, and by SIGKILL if that does not help.

    Args:
        state_dir: Kept at the end; a temporary one if not given.
        config: A configuration file.
        arguments: More arguments for `ifbusd`.
        environment: Replaces the environment.

    Raises:
        Unavailable: It ended, or was not ready in time; the message ends with what it wrote.
    """
    with contextlib.ExitStack() as stack:
        # Short, because a socket's path has at most 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbusd-")))
        state = state_dir if state_dir is not None else directory / "state"
        path = directory / "ifbusd.sock"
        log = stack.enter_context((directory / "log").open("w+b"))
        ready = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        ready.bind(str(directory / "notify"))
        command = [sys.executable, "-m", "ifbusd", "--dev", "--state", str(state), "--socket", str(path), *arguments]
        if config is not None:
            command += ["--config", str(config)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**(os.environ if environment is None else environment), "NOTIFY_SOCKET": str(directory / "notify")},
        )
        running = Daemon(path, state, process, log)
        try:
            _wait_until_ready(running, ready)
            yield running
        finally:
            _stop(process)


def _wait_until_ready(running: Daemon, ready: socket.socket) -> None:
    deadline = time.monotonic() + START_S
    pidfd = os.pidfd_open(running.pid)
    try:
        while (left_s := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([ready.fileno(), pidfd], [], [], left_s)
            if ready.fileno() in readable:
                if b"READY=1" in ready.recv(4096).split(b"\n"):
                    return
            elif pidfd in readable:
                raise Unavailable(f"cannot start ifbusd: it ended with {running.process.wait()}\n{running.log()}")
    finally:
        os.close(pidfd)
    raise Unavailable(f"cannot start ifbusd: not ready after {START_S:g} s\n{running.log()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)  # a test may have stopped it
        process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


try:
    import pytest
except ImportError:  # outside of tests this module has no fixture
    pass
else:

    @pytest.fixture(name="ifbusd")
    def ifbusd_fixture() -> Iterator[Daemon]:
        """A real daemon of this test's own."""
        with daemon() as running:
            yield running

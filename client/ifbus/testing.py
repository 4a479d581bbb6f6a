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
from typing import TYPE_CHECKING, Any, Final

from ifbus.errors import Unavailable
from ifbus.link import Link

# A start takes 0.4 s on a quiet machine; a busy one gets the rest.
START_S: Final = 60.0
# Longer than the daemon's own grace for requests under way.
STOP_S: Final = 30.0


class Daemon:
    """A daemon of one's own. The mutable state is its process.

    Attributes:
        socket: Path to connect to; the same over restarts, as is `state_dir`.
        state_dir: Its state directory.
    """

    def __init__(self, directory: Path, state_dir: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.socket = directory / "ifbusd.sock"
        self.state_dir = state_dir
        self._directory = directory
        self._arguments = arguments
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its process. Raises Unavailable while it does not run."""
        if self._process is None:
            raise Unavailable("cannot name the daemon's process: it does not run")
        return self._process

    @property
    def pid(self) -> int:
        """Its process id. Raises Unavailable while it does not run."""
        return self.process.pid

    def client(self, **options: Any) -> Link:
        """An untyped client; `ifbus.Client(daemon.socket)` is the typed one."""
        return Link(self.socket, **options)

    def log(self) -> str:
        """What it has written to standard error so far, over all starts."""
        return self._log_path.read_text(errors="replace")

    @property
    def _log_path(self) -> Path:
        return self._directory / "log"

    def start(self) -> None:
        """Start it, again after a `stop` or `kill`; ready on return.

        Raises:
            Unavailable: It ended, or was not ready in time; the message ends with what it wrote.
        """
        notify_path = self._directory / "notify"
        notify_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self._log_path.open("ab") as log:
            ready.bind(str(notify_path))
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ifbusd", "--dev"),
                    *("--state", str(self.state_dir), "--socket", str(self.socket)),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**self._environment, "NOTIFY_SOCKET": str(notify_path)},
            )
            self._wait_until_ready(ready)

    def stop(self) -> None:
        """End it by SIGTERM, and by SIGKILL if that does not help. Twice is fine."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)  # it may have been paused
            process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Stop its process as it is (SIGSTOP): it holds its socket and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End a `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def _wait_until_ready(self, ready: socket.socket) -> None:
        process = self._process
        assert process is not None  # just started
        deadline = time.monotonic() + START_S
        pidfd = os.pidfd_open(process.pid)
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                readable, _, _ = select.select([ready.fileno(), pidfd], [], [], left_s)
                if ready.fileno() in readable:
                    if b"READY=1" in ready.recv(4096).split(b"\n"):
                        return
                elif pidfd in readable:
                    raise Unavailable(f"cannot start ifbusd: it ended with {process.wait()}\n{self.log()}")
        finally:
            os.close(pidfd)
        raise Unavailable(f"cannot start ifbusd: not ready after {START_S:g} s\n{self.log()}")


@contextlib.contextmanager
def daemon(
    *,
    state_dir: Path | None = None,
    config: Path | None = None,
    arguments: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[Daemon]:
    """A running `ifbusd` for the current user, stopped at the end.

    Args:
        state_dir: Kept at the end; a temporary one if not given.
        config: A configuration file.
        arguments: More arguments for `ifbusd`.
        environment: Replaces the environment.

    Raises:
        Unavailable: It ended, or was not ready in time; the message ends with what it wrote.
    """
    # Short, because a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ifbusd-") as name:
        directory = Path(name)
        running = Daemon(
            directory,
            state_dir if state_dir is not None else directory / "state",
            [*arguments, *(["--config", str(config)] if config is not None else [])],
            dict(os.environ if environment is None else environment),
        )
        try:
            running.start()
            yield running
        finally:
            running.stop()


# Only where pytest is at work already: whoever starts a daemon in a program of another kind need not load it.
if TYPE_CHECKING or "pytest" in sys.modules:
    import pytest

    @pytest.fixture(name="ifbusd")
    def ifbusd_fixture() -> Iterator[Daemon]:
        """A real daemon of this test's own."""
        with daemon() as running:
            yield running

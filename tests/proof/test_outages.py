"""Promise 9 on one host: a daemon that can no longer do its work stops telling the service manager that it can."""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ifbus.errors import ConnectionLost, DeadlineExceeded, Momentary
from ifbus.sync import Client
from tests.integration.systemd.running import IFBUSD, running, wait_until_listening
from tests.proof.records import Proof
from tests.proof.sizes import size
from tests.proof.threads import held_still, threads_of

# The manager's patience. The daemon gives a write 5 s, so a stuck store is watched for longer than both together.
PERIOD_S = 0.6
WATCHED_S = 7.0
PATIENCE_S = 60.0
# How long a ping is waited for where the loop may be held up, and the next try is as good.
PING_S = 2.0

pytestmark = pytest.mark.slow


class Supervised:
    """A daemon whose commits wait for a thread, and the manager that it has to feed."""

    def __init__(self, place: Path, pid: int, notifications: socket.socket) -> None:
        self.path = place / "s"
        self.pid = pid
        self._notifications = notifications

    def feeds_within(self, seconds: float) -> list[float]:
        """When the watchdog was fed from now on, in seconds from now; what was fed before does not count."""
        began_s = time.monotonic()
        self._notifications.setblocking(False)
        try:
            while True:
                self._notifications.recv(4096)
        except BlockingIOError:
            pass
        fed = []
        while (left_s := began_s + seconds - time.monotonic()) > 0:
            self._notifications.settimeout(left_s)
            try:
                if b"WATCHDOG=1" in self._notifications.recv(4096).splitlines():
                    fed.append(time.monotonic() - began_s)
            except TimeoutError:
                break
        return fed

    def wait_until_fed(self) -> None:
        """Return when the watchdog is fed."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.feeds_within(PERIOD_S):
            assert time.monotonic() < deadline, "the watchdog is not fed"

    def answers(self, within_s: float = PATIENCE_S) -> bool:
        """Whether the loop turns."""
        try:
            with Client(self.path, timeout=within_s) as client:
                client.ping()
        except (ConnectionLost, DeadlineExceeded, Momentary):
            return False
        return True

    def writes(self, timeout: float) -> bool:
        """Whether a change becomes durable in time."""
        try:
            with Client(self.path, timeout=timeout) as client:
                client.create_task("written")
        except (ConnectionLost, DeadlineExceeded, Momentary):
            return False
        return True


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    """A daemon that is well and feeds its watchdog."""
    with (
        tempfile.TemporaryDirectory(prefix="ifbusd-proof-") as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications,
    ):
        place = Path(name)
        notifications.bind(str(place / "notify"))
        socket_path, config = place / "s", place / "ifbusd.toml"
        config.write_text('[store]\nflush = "thread"\n')
        where: list[str | Path] = ["--state", place / "state", "--socket", socket_path, "--config", config]
        environ = {"NOTIFY_SOCKET": str(place / "notify"), "WATCHDOG_USEC": str(int(PERIOD_S * 1e6))}
        with running([IFBUSD, "--dev", *where], {**os.environ, **environ}) as process:
            wait_until_listening(socket_path)
            made = Supervised(place, process.pid, notifications)
            made.wait_until_fed()
            yield made


@contextmanager
def only_the_loop_turns(daemon: Supervised) -> Iterator[None]:
    """Hold all threads but the loop's still, at a moment when none of them has the interpreter's lock."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with held_still(thread for thread in threads_of(daemon.pid) if thread != daemon.pid):
            if daemon.answers(PING_S):
                yield
                return
    raise AssertionError("whenever the store's thread was stopped, it had the interpreter's lock")


@pytest.fixture(autouse=True)
def _may_trace(supervised: Supervised) -> None:
    try:
        with held_still([supervised.pid]):
            pass
    except PermissionError:
        pytest.skip("this process may not trace its children")


def test_a_blocked_loop_starves_the_watchdog(supervised: Supervised, proof: Proof) -> None:
    """While the loop does not turn, nothing feeds the watchdog; as soon as it turns again, it does."""
    ran = size(2, 20, 200)
    late: list[float] = []
    for _ in range(ran):
        with held_still([supervised.pid]):
            late += [at_s for at_s in supervised.feeds_within(3 * PERIOD_S) if at_s > PERIOD_S]
        supervised.wait_until_fed()
        assert supervised.writes(PATIENCE_S)
    proof.cases(promise=9, name="event loop blocked", ran=ran, violations=len(late))


def test_a_stuck_store_starves_the_watchdog(supervised: Supervised, proof: Proof) -> None:
    """While the store's thread hangs, the daemon answers what needs no disk, acknowledges no change, and the watchdog starves."""
    ran = size(1, 10, 100)
    late: list[float] = []
    for _ in range(ran):
        with only_the_loop_turns(supervised):
            late += [at_s for at_s in supervised.feeds_within(WATCHED_S) if at_s > PERIOD_S]
            assert supervised.answers()
            assert not supervised.writes(PERIOD_S)
        supervised.wait_until_fed()
        assert supervised.writes(PATIENCE_S)
    proof.cases(promise=9, name="store thread stuck", ran=ran, violations=len(late))

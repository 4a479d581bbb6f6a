"""Daemon and client processes for the proofs, to be stopped, killed and brought back."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from ifbus.link import Link
from ifbus.testing import Daemon, daemon
from tests.proof.clocks import Clocks
from tests.proof.swarm import COUNTERS, Counters

ROOT: Final = Path(__file__).parents[2]
# Longer than anything here takes: only a proof that fails waits for so long.
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.002
_CONFIG: Final = """
[coordinator]
min_lease_ms = 100
inbox_messages = 100000
[store]
lease_tick_ms = {tick_ms}
checkpoint_wal_bytes = 262144  # so that kills meet checkpoints too
"""
# Short, so that little time goes uncounted while the daemon is stopped (at most two of them, ADR 0003).
TICK_MS: Final = 10


class Client:
    """A client process. The mutable state is the process, and whether it is stopped."""

    def __init__(self, role: str, params: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.swarm", role, json.dumps(params)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def say(self, what: Any) -> None:
        """Send it one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"a client ended with {self._process.wait(PATIENCE_S)}"
        return json.loads(line)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def pause(self) -> None:
        """Stop it as it is (SIGSTOP)."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a `pause`."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it by SIGKILL; twice is fine."""
        self._process.kill()
        self._process.communicate()

    def finish(self) -> None:
        """Wait until it has ended well."""
        assert self._process.wait(PATIENCE_S) == 0
        self._process.communicate()


@attrs.define(kw_only=True)
class Crowd:
    """A daemon of one's own and the clients around it. The mutable state is the clients, and the count of histories."""

    daemon: Daemon
    directory: Path
    counters: Counters
    counters_path: Path
    clocks: Clocks
    clients: list[Client] = attrs.field(factory=list)
    started: int = 0

    def start(self, role: str, **params: Any) -> Client:
        """A new client process in this role, at the crowd's daemon."""
        client = Client(role, {"socket": str(self.daemon.socket), **params})
        self.clients.append(client)
        return client

    def kill_all(self) -> None:
        """End all clients by SIGKILL."""
        for client in self.clients:
            client.kill()

    def history(self) -> Path:
        """A file for the history of one more process."""
        self.started += 1
        return self.directory / f"{self.started}.history"

    def restart(self, *, between: Callable[[], None] = lambda: None) -> float:
        """Kill the daemon at this moment and start it again on the same state; seconds until it served.

        Args:
            between: Called while no daemon runs.
        """
        self.daemon.kill()
        between()
        killed_at = time.monotonic()
        self.daemon.start()
        return time.monotonic() - killed_at


@contextmanager
def crowd(directory: Path) -> Iterator[Crowd]:
    """A daemon with short leases and clocks to set, on a state directory that outlives its restarts; no process is left behind."""
    config, counters = directory / "ifbusd.toml", directory / "counters"
    clocks = Clocks(directory / "clocks")
    config.write_text(_CONFIG.format(tick_ms=TICK_MS))
    counters.write_bytes(bytes(8 * COUNTERS))
    with ExitStack() as stack:
        running = stack.enter_context(daemon(config=config, state_dir=directory / "state", environment=clocks.environ))
        made = Crowd(
            daemon=running, directory=directory, counters=Counters(counters), counters_path=counters, clocks=clocks
        )
        stack.callback(made.kill_all)
        yield made


def rounds(directory: Path, seed: int, count: int) -> Iterator[tuple[Path, random.Random]]:
    """For each of `count` rounds a directory of its own and a source of chance; only the last round leaves its files."""
    for n in range(count):
        place = directory / f"round-{n}"
        place.mkdir()
        yield place, random.Random(seed + n)
        if n < count - 1:
            shutil.rmtree(place)


def wait_until(condition: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL_S)


def read_log(bus: Link) -> list[dict[str, Any]]:
    """All entries of the witness log, in their order."""
    entries: list[dict[str, Any]] = []
    while True:
        page = bus.call("witness.query", after_seq=entries[-1]["seq"] if entries else 0, limit=200)["entries"]
        if not page:
            return entries
        entries += page

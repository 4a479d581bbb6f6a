"""A daemon seen from outside: its memory, its descriptors, its processor time, and how long another client waits."""

from __future__ import annotations

import array
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Self

from tests.proof.plain import PATIENCE_S, Plain

ROOT = Path(__file__).parents[2]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Between two pings, so that the one who measures takes no processor from the ones who are measured.
_PAUSE_S = 0.002


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def open_files(pid: int) -> int:
    """Descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def processor_ns(pid: int) -> int:
    """What a process's main thread has computed so far: no busy neighbour changes it much."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])


def wait_until_closed(pid: int, before: int) -> None:
    """Return when the daemon has no more descriptors than `before`: it has seen its clients go."""
    deadline = time.monotonic() + PATIENCE_S
    while open_files(pid) > before:
        assert time.monotonic() < deadline, f"{open_files(pid)} descriptors are left, {before} were there"
        time.sleep(0.01)


class Waits(NamedTuple):
    """How long pings took, in milliseconds."""

    pings: int
    median_ms: float
    worst_ms: float

    def are_longer(self, than_ms: float, *rests: Waits) -> bool:
        """Whether the median is above this, and also above ten times the longest median at rest, which tells a busy machine."""
        return self.median_ms > max(than_ms, *(10 * rest.median_ms for rest in rests))


class Pinger:
    """Another client, in a process of its own and of another user where we are root: pings all the time.

    A ping that is not answered ends it, and `since` then says so.
    """

    def __init__(self, socket_path: Path, uid: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.watching", str(socket_path), str(uid)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.since()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def rest(self, pings: int = 100) -> Waits:
        """How long pings take while nothing else is asked."""
        self.since()
        time.sleep(pings * _PAUSE_S)
        return self.since()

    def since(self) -> Waits:
        """How long pings took since this was asked last; at least one took place after the question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"?")
        self._process.stdin.flush()
        size = int.from_bytes(self._process.stdout.read(4), "big")
        waits = array.array("Q", self._process.stdout.read(size))
        assert waits, "another client was not answered"
        return Waits(len(waits), statistics.median(waits) / 1e6, max(waits) / 1e6)


def _ping_for_ever(path: str, uid: int) -> None:
    if os.getuid() != uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    os.set_blocking(0, False)
    waits = array.array("Q")
    with Plain.at(path) as client:
        while True:
            try:
                question = os.read(0, 1)
            except BlockingIOError:
                question = None
            began_ns = time.perf_counter_ns()
            client.call("daemon.ping")
            waits.append(time.perf_counter_ns() - began_ns)
            if question:
                data = waits.tobytes()
                os.write(1, len(data).to_bytes(4, "big"))
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
                waits = array.array("Q")
            elif question == b"":
                return
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    _ping_for_ever(sys.argv[1], int(sys.argv[2]))

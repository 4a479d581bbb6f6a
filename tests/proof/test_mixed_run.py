"""Honest swarms and hostile users at one daemon for a long time: nobody honest notices, and nothing is left behind."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import attrs
import psutil
import pytest

from ifbus.sync import Client
from ifbus.testing import Daemon, daemon
from tests.proof.records import ROOT, Proof
from tests.proof.sizes import CHOSEN, Size, size

HONEST, HOSTILE = 3, 2
# Caches fill and one of everything has happened; the honest ones alone; both.
WARM_UP_S, QUIET_S, MIXED_S = size(3, 60, 120), size(2, 60, 300), size(7, 600, 3600)
SAMPLE_S = size(100, 500, 1000) / 1000
# After everybody has left, what they cost is given back within this.
SETTLE_S = 60.0
# Some user ids that own nothing.
HOSTILE_UID = 61_000
MAX_SLOPE_MIB_PER_H = 1.0
MAX_P99_RATIO = 3.0

pytestmark = pytest.mark.slow


class Part:
    """One process of the run."""

    def __init__(self, role: str, path: Path, number: int, seed: int, uid: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.mixed.part", role, str(path), str(number), str(seed), str(uid)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_until_ready(self) -> None:
        """Return when it has begun."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "a process of the run ended early"

    def begin_phase(self) -> None:
        """Let it count separately from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Stop it; its result."""
        out, _ = self._process.communicate(timeout=SETTLE_S)
        assert out, f"a process of the run ended early, with {self._process.returncode}"
        result: dict[str, Any] = json.loads(out)
        return result


@attrs.frozen(kw_only=True)
class Holdings:
    """What the daemon's process holds."""

    descriptors: int
    threads: int
    children: int
    tasks: int


class Observed:
    """A daemon and what can be seen of it from outside."""

    def __init__(self, running: Daemon, observer: str) -> None:
        self.running = running
        self._observer = observer
        self._process = psutil.Process(running.pid)

    def resident_bytes(self) -> int:
        """Memory of the daemon itself."""
        return int(self._process.memory_info().rss)

    def holdings(self) -> Holdings:
        """How things stand now; nobody must be connected."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"\0{self._observer}")
            tasks = int(sock.recv(64))
            assert not sock.recv(1)  # its end is closed, so it is not counted below
        return Holdings(
            descriptors=self._process.num_fds(),
            threads=self._process.num_threads(),
            children=len(self._process.children(recursive=True)),
            tasks=tasks,
        )

    def settled(self) -> Holdings:
        """How things stand once they have stopped changing for a second."""
        deadline = time.monotonic() + SETTLE_S
        seen, since = self.holdings(), time.monotonic()
        while time.monotonic() - since < 1.0:
            assert time.monotonic() < deadline, f"the daemon does not come to rest: {seen}"
            time.sleep(0.1)
            if (now := self.holdings()) != seen:
                seen, since = now, time.monotonic()
        return seen

    def back_to(self, before: Holdings) -> Holdings:
        """How things stand once it holds no more than before, or when it had its time for that."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            now = self.holdings()
            if all(mine <= its for mine, its in zip(attrs.astuple(now), attrs.astuple(before), strict=True)):
                return now
            if time.monotonic() > deadline:
                return now
            time.sleep(0.1)


@pytest.fixture
def observed() -> Iterator[Observed]:
    """A daemon that other users may connect to."""
    name = f"ifbus-mixed-{os.getpid()}"
    paths = [str(Path(__file__).parent / "mixed" / "observer"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OBSERVED_AT": name}
    with daemon(environment=environment) as running:
        running.socket.parent.chmod(0o755)
        running.socket.chmod(0o666)
        yield Observed(running, name)


@contextmanager
def parts(role: str, count: int, path: Path, seed: int) -> Iterator[list[Part]]:
    """So many processes of a role, all begun."""
    # Only root can be somebody else; without it, the hostile ones share the honest ones' quotas.
    uids = [HOSTILE_UID + n if role == "hostile" and os.geteuid() == 0 else os.getuid() for n in range(count)]
    with ExitStack() as stack:
        begun = [stack.enter_context(Part(role, path, n, seed + n, uid)) for n, uid in enumerate(uids)]
        for part in begun:
            part.wait_until_ready()
        yield begun


def sample(observed: Observed, seconds: float) -> list[tuple[float, float]]:
    """The daemon's memory in MiB over so long, with the hours since the beginning."""
    began = time.monotonic()
    samples = []
    while (elapsed := time.monotonic() - began) < seconds:
        samples.append((elapsed / 3600, observed.resident_bytes() / (1 << 20)))
        time.sleep(SAMPLE_S)
    return samples


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """MiB per hour over the second half, when the caches are full."""
    hours, mib = zip(*samples[len(samples) // 2 :], strict=True)
    return statistics.linear_regression(hours, mib).slope


def p99_ms(phases: Sequence[Mapping[str, int]]) -> float:
    """Of the calls of all these counts by microseconds."""
    total: Counter[int] = Counter()
    for phase in phases:
        total.update({int(us): times for us, times in phase.items()})
    left = total.total() // 100
    for us in sorted(total, reverse=True):
        left -= total[us]
        if left < 0:
            return us / 1000
    raise AssertionError("no call was timed")


def test_mixed_run(observed: Observed, seed: int, proof: Proof) -> None:
    """Under every abuse at once, honest swarms get what they were promised, and the daemon ends as it began."""
    path = observed.running.socket
    with parts("honest", HONEST, path, seed) as honest, parts("hostile", HOSTILE, path, seed) as hostile:
        sample(observed, WARM_UP_S)
        results = [part.end() for part in (*hostile, *honest)]
    before = observed.settled()

    with parts("honest", HONEST, path, seed) as honest:
        sample(observed, QUIET_S)
        for part in honest:
            part.begin_phase()
        with parts("hostile", HOSTILE, path, seed + HOSTILE) as hostile:
            samples = sample(observed, MIXED_S)
            abuses = [part.end() for part in hostile]
        services = [part.end() for part in honest]
    after = observed.back_to(before)

    with Client(path) as bus:
        assert bus.witness_verify(timeout=SETTLE_S).ok
    results += abuses + services
    told = [line for result in results for line in (*result.get("failures", ()), *result.get("successes", ()))]
    uncaught = observed.running.log().count("Traceback (most recent call last)")
    quiet_ms, mixed_ms = (p99_ms([service["latencies_us"][phase] for service in services]) for phase in (0, 1))
    figures = {
        "attacks": sum(sum(abuse["attacks"].values()) for abuse in abuses),
        "seconds": MIXED_S,
        "p99_quiet_ms": quiet_ms,
        "p99_mixed_ms": mixed_ms,
        "rss_mib": samples[-1][1],
        "rss_slope_mib_per_h": round(slope(samples), 2),
        **{f"{name}_before": count for name, count in attrs.asdict(before).items()},
        **{f"{name}_after": count for name, count in attrs.asdict(after).items()},
    }
    print(json.dumps(figures, indent=1), *told, sep="\n")
    leaks = {name: count for name, count in attrs.asdict(after).items() if count > getattr(before, name)}
    proof.cases(
        promise=8,
        name="mixed run",
        ran=sum(service["operations"] for service in services),
        violations=sum(result.get("failed", 0) + len(result.get("successes", ())) for result in results) + uncaught,
        seed=seed,
        figures=figures,
    )
    assert leaks == {}, f"of the daemon's {before}, {after} was left"
    if CHOSEN is not Size.SUITE:
        assert figures["rss_slope_mib_per_h"] <= MAX_SLOPE_MIB_PER_H
        assert mixed_ms <= MAX_P99_RATIO * quiet_ms

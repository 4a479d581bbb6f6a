"""What a sandboxed execution costs: chassis against bare calls, warm and cold, and limits on against limits off.

The contestants run interleaved in one run, so that ratios hold on a busy machine; figures are medians. ``chassis`` is the
whole in-process service, ownership, contract, limits and the durable witness entry included. ``sandbox`` is the same without
operation and witness. The round trip over the daemon's socket comes on top (perf/rtt.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
import wasmtime

from ifbusd.bus.local import LocalBus
from ifbusd.chassis.blobs import MAX_CHUNK_BYTES
from ifbusd.chassis.engine import make_engine
from ifbusd.chassis.model import ChassisConfig
from ifbusd.chassis.service import IFChassis
from ifbusd.identity import Caller, Peer
from ifbusd.operation import Operations, Tx
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore

GUESTS = Path(__file__).parents[1] / "tests" / "guests"
# Repeat counts that make a kernel run some 80 ms: the 0.3 ms that a call costs, measured above, must not count as a limit's cost.
KERNELS = {"sha256": 32_000_000, "sort": 4_800, "parse": 24_000, "matmul": 2_000}
# What is aimed at: the whole service against a bare worker, the cost of limits, a new sandbox.
LIMIT_WARM = 1.5
LIMIT_KERNEL = 1.05
LIMIT_COLD_MS = 10.0

Samples = dict[str, list[float]]


class Everybody:
    """A directory in which every swarm is the caller's."""

    async def require_owner(self, tx: Tx, caller: Caller, swarm_id: str) -> None:
        """Always."""

    async def require_running(self, tx: Tx, swarm_id: str) -> None:
        """Always."""

    async def require_holder(self, tx: Tx, task_id: str, swarm_id: str, token: int) -> None:
        """Always."""


CALLER = Caller(peer=Peer(uid=os.getuid(), gid=os.getgid(), pid=os.getpid(), is_operator=True))


@asynccontextmanager
async def running_chassis(directory: Path) -> AsyncIterator[IFChassis]:
    """Store and chassis in a directory."""
    store = EmbeddedStore(
        directory / "ifbusd.db",
        config=EmbeddedConfig(),
        now_ms=lambda: time.time_ns() // 1_000_000,
        boottime_ms=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
    )
    directory_of_swarms = Everybody()
    chassis = IFChassis(
        ChassisConfig(max_calls_per_s=1_000_000),
        directory,
        store=store,
        operations=Operations(store, LocalBus(), now_ms=lambda: time.time_ns() // 1_000_000),
        swarms=directory_of_swarms,
        claims=directory_of_swarms,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    async with trio.open_nursery() as outer:
        await outer.start(store.run)
        async with trio.open_nursery() as nursery:
            await nursery.start(chassis.run)
            yield chassis
            nursery.cancel_scope.cancel()
        outer.cancel_scope.cancel()


async def load(chassis: IFChassis, swarm: str, module: bytes, export: str, kind: str = "core") -> None:
    """Upload a module and load it with roomy limits."""
    sha256, at = hashlib.sha256(module).hexdigest(), 0
    while not (answer := await chassis.put_blob(CALLER, sha256, at, module[at : at + MAX_CHUNK_BYTES], len(module)))[
        "complete"
    ]:
        at = answer["received_bytes"]
    limits = {"calls_per_s": 1_000_000, "wall_ms": 30_000}
    await chassis.load_swarm(CALLER, swarm, {"module_sha256": sha256, "export": export, "kind": kind, "limits": limits})


class Bare:
    """wasmtime in this process: a fresh store and instance per call, as the chassis has, and nothing else."""

    def __init__(self, module: bytes, export: str) -> None:
        self._engine = make_engine()
        self._module = wasmtime.Module(self._engine, module)
        self._linker = wasmtime.Linker(self._engine).instantiate_pre(self._module)
        self._export = export
        self._kept = wasmtime.Store(self._engine)
        self._function = self._linker.instantiate(self._kept).exports(self._kept)[export]

    def fresh(self, *args: float) -> Any:
        """Store, instance, call."""
        store = wasmtime.Store(self._engine)
        result = self._linker.instantiate(store).exports(store)[self._export](store, *args)
        store.close()
        return result

    def call(self, *args: float) -> Any:
        """The call alone, in a kept instance."""
        return self._function(self._kept, *args)


def _serve_bare(channel: socket.socket, parents: socket.socket, module: bytes, export: str) -> None:
    parents.close()
    bare = Bare(module, export)
    channel.send(b"ready")
    while data := channel.recv(1 << 16):
        channel.send(json.dumps(bare.fresh(*json.loads(data)["args"])).encode())


class BareWorker:
    """The same in another process over a socketpair, JSON both ways: what any worker process costs."""

    def __init__(self, module: bytes, export: str) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_serve_bare, args=(theirs, self._channel, module, export), daemon=True)
        self.process.start()
        theirs.close()
        self._channel.recv(16)

    def call(self, *args: float) -> Any:
        """There and back."""
        self._channel.send(json.dumps({"args": list(args)}).encode())
        return json.loads(self._channel.recv(1 << 16))

    def close(self) -> None:
        """End it."""
        self._channel.close()
        self.process.join()


async def timed(run: Callable[[], Awaitable[Any]] | Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of so many runs."""
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        result = run()
        if hasattr(result, "__await__"):
            await result
        samples.append(time.perf_counter() - began)
    return samples


async def measure_calls(chassis: IFChassis, rounds: int, calls: int) -> Samples:
    """Warm calls of a small function, interleaved."""
    module = (GUESTS / "core.wasm").read_bytes()
    bare, worker = Bare(module, "add"), BareWorker(module, "add")
    await load(chassis, "perf", module, "add")
    sandbox = next(iter(chassis._sandboxes.values()))
    contestants: dict[str, Callable[[], Any]] = {
        "call": lambda: bare.call(20, 3),
        "fresh instance": lambda: bare.fresh(20, 3),
        "bare worker": lambda: worker.call(20, 3),
        "sandbox": lambda: sandbox.execute(b'{"args":[20,3]}'),
        "chassis": lambda: chassis.execute_task(CALLER, "perf", {"args": [20, 3]}),
    }
    samples: Samples = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            samples[name].append(statistics.median(await timed(run, calls)))
    worker.close()
    return samples


async def measure_cold(chassis: IFChassis, rounds: int) -> Samples:
    """A new process per execution: code from the verified cache, mapping and lock-down included."""
    await load(chassis, "cold", (GUESTS / "wordcount.wasm").read_bytes(), "", "command")
    (sandbox,) = [sandbox for (swarm, _), sandbox in chassis._sandboxes.items() if swarm == "cold"]
    samples: Samples = {"cold execution": [], "warm execution": []}
    for _ in range(rounds):
        await sandbox.cool()
        samples["cold execution"] += await timed(lambda: sandbox.execute(b'{"text": "a b"}'), 1)
        samples["warm execution"] += await timed(lambda: sandbox.execute(b'{"text": "a b"}'), 1)
    return samples


async def measure_kernels(chassis: IFChassis, rounds: int, quick: bool) -> dict[str, Samples]:
    """Four kernels, in a locked and limited sandbox and in a plain process over a socketpair."""
    module = (GUESTS / "kernels.wasm").read_bytes()
    results: dict[str, Samples] = {}
    for kernel, repeats in KERNELS.items():
        repeats = max(1, repeats // 10) if quick else repeats
        worker = BareWorker(module, kernel)
        await load(chassis, kernel, module, kernel)
        (sandbox,) = [sandbox for (swarm, _), sandbox in chassis._sandboxes.items() if swarm == kernel]
        text = json.dumps({"args": [repeats]}).encode()
        samples: Samples = {"off": [], "on": []}
        await sandbox.execute(text)
        worker.call(repeats)
        off, on = partial(worker.call, repeats), partial(sandbox.execute, text)
        for _ in range(rounds):
            samples["off"] += await timed(off, 1)
            samples["on"] += await timed(on, 1)
        worker.close()
        results[kernel] = samples
    return results


def report(calls: Samples, cold: Samples, kernels: dict[str, Samples]) -> dict[str, Any]:
    """Print the table; the same as plain values."""
    medians = {name: statistics.median(samples) * 1e6 for name, samples in calls.items()}
    print(f"{'warm execution of add':28}{'median us':>12}{'x bare worker':>16}")
    for name, median in medians.items():
        print(f"{name:28}{median:12.1f}{median / medians['bare worker']:16.2f}")
    cold_medians = {name: statistics.median(samples) * 1e3 for name, samples in cold.items()}
    print(f"\n{'WASI command':28}{'median ms':>12}{'limit':>16}")
    for name, median in cold_medians.items():
        limit = f"{LIMIT_COLD_MS:.0f} ms" if name == "cold execution" else ""
        print(f"{name:28}{median:12.2f}{limit:>16}")
    print(f"\n{'limits on / off':28}{'off ms':>12}{'on ms':>12}{'ratio':>10}{'limit':>10}")
    ratios = {}
    for kernel, samples in kernels.items():
        # The median of pairs: what slows one of a pair mostly slows the other.
        ratios[kernel] = statistics.median(on / off for on, off in zip(samples["on"], samples["off"], strict=True))
        off, on = (statistics.median(samples[side]) * 1e3 for side in ("off", "on"))
        print(f"{kernel:28}{off:12.2f}{on:12.2f}{ratios[kernel]:10.3f}{LIMIT_KERNEL:10.2f}")
    warm = medians["chassis"] / medians["bare worker"]
    print(f"\nwhole chassis, warm: {warm:.2f} x a bare worker (aim: {LIMIT_WARM})")
    return {
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "warm_us": medians,
        "warm_ratio_to_bare_worker": {name: value / medians["bare worker"] for name, value in medians.items()},
        "cold_ms": cold_medians,
        "kernel_ratio": ratios,
        "rounds": {"warm": len(calls["chassis"]), "cold": len(cold["cold execution"])},
    }


async def main(rounds: int, quick: bool) -> dict[str, Any]:
    """All of it in one run."""
    with tempfile.TemporaryDirectory(prefix="ifbus-perf-") as directory:
        async with running_chassis(Path(directory)) as chassis:
            calls = await measure_calls(chassis, rounds, 20 if quick else 200)
            cold = await measure_cold(chassis, rounds)
            kernels = await measure_kernels(chassis, rounds, quick)
    return report(calls, cold, kernels)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds (default: 21)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: to see that it runs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = trio.run(main, 5 if arguments.quick else arguments.rounds, arguments.quick)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.stdout.flush()

"""Round trip of `daemon.ping` beside its floors: a C ping-pong, and bare trio with MessagePack, in turn in one run.

Each contestant's server is a process of its own and so is each client, pinned: on one core, which shows what is computed,
and on two, which shows what a user waits for (waking the other core included). See DESIGN 7 for method and figures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio
from harness import (
    Round,
    arguments,
    cpu_us,
    interleave,
    machine,
    pin,
    print_limit,
    print_table,
    running,
    write_json,
)
from rtt_client import CLIENT, C

from ifbusd.bus.local import LocalBus
from ifbusd.identity import Caller
from ifbusd.rpc.attention import Attention
from ifbusd.rpc.daemon_methods import DaemonMethods
from ifbusd.rpc.describe import describe
from ifbusd.rpc.limits import RpcLimits
from ifbusd.rpc.listener import open_listener
from ifbusd.rpc.methods import ROWS, bind_rows
from ifbusd.rpc.server import Server

HERE: Final = Path(__file__).parent
BARE, IFBUSD = "bare trio", "ifbusd, bare client"


# --- a server process --------------------------------------------------------------------------------


async def be_server(path: Path) -> None:
    """The daemon's wire with its own methods and nothing behind them."""

    async def no_items(caller: Caller, swarm_id: str) -> list[dict[str, Any]]:
        return []

    async def no_status() -> dict[str, Any]:
        return {}

    async def no_record(*refusal: object) -> None:
        return None

    limits = RpcLimits()
    daemon = DaemonMethods(
        build="0",
        pid=os.getpid(),
        limits=limits,
        attention=Attention(LocalBus(), no_items),
        now_ms=now_ms,
        status=no_status,
        describe=describe,
    )
    methods = bind_rows([row for row in ROWS if row.name.startswith("daemon.")], {"daemon": daemon})
    server = Server(methods, witness_refusal=no_record, now_ms=now_ms, limits=limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, open_listener(path))
        print("ready", flush=True)


def now_ms() -> int:
    """Wall clock."""
    return time.time_ns() // 1_000_000


# --- the benchmark -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Contestant:
    """A kind of client and the server process that it talks to."""

    kind: str
    path: str
    server: subprocess.Popen[bytes]


@contextmanager
def contestants(directory: Path) -> Iterator[list[Contestant]]:
    """All servers, running; the C one only where there is a compiler."""
    with ExitStack() as stack:
        started = []
        compiler = shutil.which("cc")
        if compiler:
            binary, path = str(directory / "pingpong"), str(directory / "c")
            subprocess.run([compiler, "-O2", "-o", binary, str(HERE / "pingpong.c")], check=True)
            started.append(Contestant(kind=C, path=path, server=stack.enter_context(running([binary, path]))))
        else:
            print("SKIPPED: C ping-pong (no cc)")
        bare = stack.enter_context(running([sys.executable, str(HERE / "bare.py"), str(directory / "bare")]))
        started.append(Contestant(kind=BARE, path=str(directory / "bare"), server=bare))
        ours = stack.enter_context(running([sys.executable, __file__, "--server", str(directory / "ifbusd")]))
        for kind in (IFBUSD, CLIENT):
            started.append(Contestant(kind=kind, path=str(directory / "ifbusd"), server=ours))
        yield started


def run_round(contestant: Contestant, clients: int, count: int, cpus: Sequence[int | None]) -> Round:
    """One round: all clients connect, start together, and hand in their latencies."""
    server_cpu, client_cpu = cpus
    pin(contestant.server.pid, server_cpu)
    command = [sys.executable, str(HERE / "rtt_client.py"), contestant.kind, contestant.path, str(count)]
    processes = []
    for _ in range(clients):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pin(process.pid, client_cpu)
        processes.append(process)
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    if contestant.kind == C:  # its server forks a process per client
        children = Path(f"/proc/{contestant.server.pid}/task/{contestant.server.pid}/children").read_text()
        for child in children.split():
            pin(int(child), server_cpu)
    before = cpu_us(contestant.server.pid)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    answers = [json.loads(process.communicate()[0]) for process in processes]
    used_us = cpu_us(contestant.server.pid) - before
    latencies = sorted(latency for answer in answers for latency in answer["latencies"])
    return Round(
        latencies_us=latencies,
        wall_s=max(answer["wall_s"] for answer in answers),
        server_cpu_us=None if contestant.kind == C else used_us / len(latencies),
    )


def main() -> None:
    """Measure, print, and write JSON."""
    options = arguments(str(__doc__).partition("\n")[0])
    calls = 1_000 if options.quick else 10_000
    rounds = min(options.rounds, 2) if options.quick else options.rounds
    cpus = sorted(os.sched_getaffinity(0))
    scenarios: dict[str, tuple[int, Sequence[int | None]]] = {"1 client, one core": (1, (cpus[0], cpus[0]))}
    if len(cpus) > 1:
        scenarios["1 client, two cores"] = (1, (cpus[0], cpus[1]))
        scenarios["16 clients, unpinned"] = (16, (None, None))
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="ifbus-rtt-") as directory, contestants(Path(directory)) as all_of_them:
        for title, (clients, pinning) in scenarios.items():
            runs = {
                contestant.kind: lambda contestant=contestant, clients=clients, pinning=pinning: run_round(
                    contestant, clients, calls // clients, pinning
                )
                for contestant in all_of_them
            }
            figures[title] = interleave(runs, rounds)
            print_table(f"{title}: round trip of a ping, medians of {rounds} rounds", figures[title], floor=BARE)
    one = figures["1 client, one core"]
    print(f"\nlimits (machine: {machine()})")
    print_limit("one core, p50, ifbus.Client / bare trio", one[CLIENT]["p50_us"] / one[BARE]["p50_us"], 1.5)
    print_limit("one core, server CPU per call", one[CLIENT]["server_cpu_us"], 22, unit=" us")
    for title, rows in figures.items():
        print_limit(f"{title}, p50", rows[CLIENT]["p50_us"] / 1000, 1, unit=" ms")
        print_limit(f"{title}, p99", rows[CLIENT]["p99_us"] / 1000, 1, unit=" ms")
    write_json(options.json, {"scenarios": figures})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--server"]:
        trio.run(be_server, Path(sys.argv[2]))
    else:
        main()

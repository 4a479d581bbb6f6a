"""Durable claims, pushes and blocker alarms through the real daemon, beside what one durable write costs on this disk.

A claim here is the whole admission: match, breaker, budget reservation, fencing token, witness entry and idempotency record,
fsync'ed before the answer. Its floors are an append with fdatasync and a SQLite insert with synchronous=FULL, in turn with it
in one run. Clients are processes of their own with the blocking `ifbus.Client`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import apsw
import attrs
from harness import (
    Round,
    arguments,
    cpu_us,
    interleave,
    machine,
    print_limit,
    print_table,
    time_calls,
    write_json,
)

import ifbus

CLIENTS: Final = (1, 16, 64)
NEED: Final = "bench:claims"
FDATASYNC, SQLITE = "fdatasync of 200 B", "SQLite insert, WAL FULL"
START_S: Final = 30.0


# --- floors ------------------------------------------------------------------------------------------


def fdatasync_round(path: Path, count: int) -> Round:
    """Append 200 bytes and wait for the disk, one after the other."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    data = bytes(200)

    def append() -> None:
        os.write(descriptor, data)
        os.fdatasync(descriptor)

    latencies, wall_s = time_calls(append, count)
    os.close(descriptor)
    return Round(latencies_us=sorted(latencies), wall_s=wall_s)


def sqlite_round(path: Path, count: int) -> Round:
    """Insert one row of 200 bytes per transaction, as the store is set up."""
    connection = apsw.Connection(str(path))
    for pragma in ("locking_mode=exclusive", "journal_mode=wal", "synchronous=full"):
        connection.execute(f"pragma {pragma}").fetchall()
    connection.execute("create table if not exists row (id integer primary key, value blob)")
    data = bytes(200)
    latencies, wall_s = time_calls(lambda: connection.execute("insert into row (value) values (?)", (data,)), count)
    connection.close()
    return Round(latencies_us=sorted(latencies), wall_s=wall_s)


# --- a client process --------------------------------------------------------------------------------


def be_claimer(path: str, name: str, count: int) -> None:
    """Make tasks, say so, wait for the start, claim and complete one after the other, print the claims' latencies."""
    with ifbus.Client(path) as bus:
        bus.register_swarm(name, capabilities=[NEED], budget_usd="1000000", lease_ms=600_000)
        tasks = [bus.create_task("bench", capabilities=[NEED], estimate_usd="0.01").task_id for _ in range(count)]
        print("ready", flush=True)
        sys.stdin.readline()
        latencies = []
        started = time.perf_counter()
        for task_id in tasks:
            before = time.perf_counter_ns()
            claim = bus.claim_task(task_id, name)
            latencies.append((time.perf_counter_ns() - before) / 1000)
            if not claim:
                raise SystemExit(f"a claim was refused: {claim}")
            bus.complete_task(task_id, name, claim.token)
        print(json.dumps({"latencies": latencies, "wall_s": time.perf_counter() - started}), flush=True)


def be_listener(path: str, name: str, orchestrator: bool, count: int) -> None:
    """Listen to an inbox, say so, and print when each of `count` letters arrived."""
    with ifbus.Client(path) as bus:
        bus.register_swarm(name, capabilities=[NEED], orchestrator=orchestrator, lease_ms=600_000)
        seen = max((letter.seq for letter in bus.read_inbox(name, limit=200).messages), default=0)
        while (page := bus.read_inbox(name, after_seq=seen, limit=200)).messages:
            seen = max(letter.seq for letter in page.messages)
        with bus.subscribe_inbox(name, after_seq=seen) as letters:
            print("ready", flush=True)
            arrived = []
            for letter in letters:
                arrived.append((letter.body.get("task_id") or letter.body["reason"], time.monotonic_ns()))
                if len(arrived) == count:
                    break
            print(json.dumps(dict(arrived)), flush=True)


# --- the benchmark -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Daemon:
    """The daemon under test."""

    socket: str
    pid: int


@contextmanager
def daemon(directory: Path) -> Iterator[Daemon]:
    """A real `ifbusd` on the embedded store, until the end of the block."""
    path = directory / "ifbusd.sock"
    command = [sys.executable, "-m", "ifbusd", "--dev", "--state", str(directory / "state"), "--socket", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the daemon did not start")
        yield Daemon(socket=str(path), pid=process.pid)
    finally:
        process.terminate()
        process.wait(START_S)
        process.stdout.close()


def spawn(*arguments: str) -> subprocess.Popen[str]:
    """A client process that is ready to start."""
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Return when the client has said so."""
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit("a client did not start")


def claim_round(server: Daemon, clients: int, count: int) -> Round:
    """All clients claim their own tasks at the same time."""
    processes = [spawn("--claim", server.socket, f"bench-{clients}-{number}", str(count)) for number in range(clients)]
    for process in processes:
        wait_until_ready(process)
    before_us = cpu_us(server.pid)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = []
    for process in processes:
        assert process.stdout is not None
        answers.append(json.loads(process.stdout.readline()))
    used_us = cpu_us(server.pid) - before_us
    for process in processes:
        process.communicate()
    latencies = sorted(latency for answer in answers for latency in answer["latencies"])
    # Each claim was followed by a completion, just as durable: two operations each, for the rate and the processor time.
    wall_s = max(answer["wall_s"] for answer in answers)
    return Round(latencies_us=latencies, wall_s=wall_s / 2, server_cpu_us=used_us / len(latencies) / 2)


def push_round(server: Daemon, bus: ifbus.Client, count: int) -> Round:
    """Push tasks, one after the other, to a process that waits for them; from the call to the letter in its hands."""
    names = [bus.create_task("bench", capabilities=[NEED]).task_id for _ in range(count)]
    with listening(server, "bench-listener", count) as listener:
        sent = {}
        for name in names:
            sent[name] = time.monotonic_ns()
            bus.push_task_to_swarm(name, "bench-listener")
        return arrivals(listener, sent)


def alarm_round(server: Daemon, bus: ifbus.Client, count: int) -> Round:
    """Report blockers, one after the other; from the call to the letter in the orchestrator's hands."""
    with listening(server, "bench-orchestrator", count) as listener:
        sent = {}
        for number in range(count):
            sent[f"reason {number}"] = time.monotonic_ns()
            alert = bus.detect_blocker("bench-reporter", f"reason {number}")
            bus.resolve_blocker(alert.blocker_id)
        return arrivals(listener, sent)


@contextmanager
def listening(server: Daemon, name: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """A process that listens to an inbox."""
    listener = spawn("--listen", server.socket, name, str(count))
    wait_until_ready(listener)
    yield listener
    listener.communicate()


def arrivals(listener: subprocess.Popen[str], sent: dict[str, int]) -> Round:
    """The spans from sending to arriving."""
    assert listener.stdout is not None
    arrived = json.loads(listener.stdout.readline())
    spans = sorted((arrived[name] - at_ns) / 1000 for name, at_ns in sent.items())
    return Round(latencies_us=spans, wall_s=sum(spans) / 1e6)


def main() -> None:
    """Measure, print, and write JSON."""
    options = arguments(str(__doc__).partition("\n")[0])
    rounds = min(options.rounds, 2) if options.quick else options.rounds
    share = 4 if options.quick else 1
    with ExitStack() as stack:
        # On a disk, not in memory: /tmp may be a tmpfs, where fsync costs nothing.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbus-claims-", dir="/var/tmp")))
        server = stack.enter_context(daemon(directory))
        bus = stack.enter_context(ifbus.Client(server.socket))
        bus.register_swarm("bench-reporter", capabilities=[NEED], lease_ms=600_000)
        claims = {
            FDATASYNC: lambda: fdatasync_round(directory / "append", 400 // share),
            SQLITE: lambda: sqlite_round(directory / "floor.db", 400 // share),
            "claim, 1 client": lambda: claim_round(server, 1, 200 // share),
            "claim, 16 clients": lambda: claim_round(server, 16, 60 // share),
            "claim, 64 clients": lambda: claim_round(server, 64, 40 // share),
        }
        durable = interleave(claims, rounds)
        print_table(f"durable claims, medians of {rounds} rounds", durable, floor=SQLITE)
        told = interleave(
            {
                FDATASYNC: lambda: fdatasync_round(directory / "append", 400 // share),
                "push to a waiting process": lambda: push_round(server, bus, 100 // share),
                "blocker to orchestrator": lambda: alarm_round(server, bus, 100 // share),
            },
            rounds,
        )
        print_table(f"durable pushes and alarms, medians of {rounds} rounds", told, floor=FDATASYNC)
        verdict = bus.witness_verify()
    print(f"\nlimits (machine: {machine()})")
    one, many = durable["claim, 1 client"], durable["claim, 64 clients"]
    print_limit("claim, 1 client, p99", one["p99_us"] / 1000, 5, unit=" ms")
    print_limit("claim, 16 clients, p50", durable["claim, 16 clients"]["p50_us"] / 1000, 5, unit=" ms")
    print_limit("push, p99", told["push to a waiting process"]["p99_us"] / 1000, 10, unit=" ms")
    print_limit("blocker alarm, p99", told["blocker to orchestrator"]["p99_us"] / 1000, 10, unit=" ms")
    print(
        f"  64 clients: {many['per_s']:.0f} durable claims and completions/s, p99 {many['p99_us'] / 1000:.1f} ms (aim: 12000/s, 15 ms)"
    )
    print(f"  1 client, p50 / SQLite insert: {one['p50_us'] / durable[SQLITE]['p50_us']:.2f} (aim: 1.7)")
    print(f"  witness verify: {'ok' if verdict.ok else 'FAILED'} over {verdict.entries} entries")
    write_json(options.json, {"claims": durable, "told": told, "witness_entries": verdict.entries})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--claim", path, name, count]:
            be_claimer(path, name, int(count))
        case ["--listen", path, name, count]:
            be_listener(path, name, "orchestrator" in name, int(count))
        case _:
            main()

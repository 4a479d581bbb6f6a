"""Durable claims through the real daemon, beside what one durable write costs on this disk, and beside what others would pick.

A claim here is the whole admission: match, breaker, budget reservation, fencing token, inbox, witness entry and idempotency
record, on the disk before the answer. Its floors are an append with fdatasync and a SQLite insert with synchronous=FULL; `bare
durable` writes the same rows behind a bare server, without a rule (DESIGN 7).

Claims and completions take turns in bursts, so that each has its own rate and processor time, and a swarm never holds more
than `BURST` tasks; what it holds is part of what a claim writes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw
import servers
from callers import connect, redis_command_of, request_of
from harness import (
    ONE_CORE,
    TWO_CORES,
    Crew,
    Placement,
    Report,
    Round,
    Run,
    Sizes,
    Timed,
    parser,
    placements,
    sizes_of,
    time_calls,
    together,
)

import ifbus

BURST: Final = 16
NEED: Final = "bench:claims"
CLAIM, COMPLETE = "ifbusd, claim", "ifbusd, complete"
BARE, REDIS = "bare durable", "Redis LMOVE, fsync always"
APPEND, PREALLOCATED, SQLITE = "fdatasync, append", "fdatasync, preallocated", "SQLite insert, WAL FULL"
ROW_BYTES: Final = 200
_numbers = itertools.count(1)


# --- floors: one process, no server ------------------------------------------------------------------


def appender(path: Path, _number: int) -> Callable[[int], Timed]:
    """Append 200 bytes and wait for the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append() -> None:
        os.write(descriptor, bytes(ROW_BYTES))
        os.fdatasync(descriptor)

    return partial(time_calls, append)


def overwriter(path: Path, _number: int) -> Callable[[int], Timed]:
    """The same into a file that has its place already: only data goes to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, bytes(1 << 20))
    os.fsync(descriptor)
    offsets = itertools.cycle(range(0, 1 << 20, ROW_BYTES))

    def overwrite() -> None:
        os.pwrite(descriptor, bytes(ROW_BYTES), next(offsets))
        os.fdatasync(descriptor)

    return partial(time_calls, overwrite)


def inserter(path: Path, _number: int) -> Callable[[int], Timed]:
    """Insert one row of 200 bytes per transaction."""
    connection = apsw.Connection(str(path))
    for pragma in ("locking_mode=exclusive", "journal_mode=wal", "synchronous=full"):
        connection.execute(f"pragma {pragma}").fetchall()
    connection.execute("create table if not exists row (id integer primary key, value blob)")
    data = bytes(ROW_BYTES)
    return partial(time_calls, lambda: connection.execute("insert into row (value) values (?)", (data,)))


def floor_run(
    name: str, enlist: Callable[[Path, int], Any], path: Path, calls: int, place: Placement
) -> dict[str, Round]:
    """One round of a floor, where the server would run."""
    with Crew(1, place.server, partial(enlist, path)) as crew:
        return {name: together(crew.tell(calls))}


# --- contestants: a server and client processes ------------------------------------------------------


def bare_claimer(address: str, run: int, number: int) -> Callable[[int], Timed]:
    """Claims by the bare durable server: fresh names, since it has no completion."""
    request = request_of(connect(address))
    names = itertools.count()
    swarm = f"swarm-{run}-{number}"

    def claim() -> None:
        name = f"{run}-{number}-{next(names)}"
        request("claim", f"T-{name}", swarm, f"key-{name}")

    return partial(time_calls, claim)


def redis_claimer(address: str, run: int, number: int) -> Callable[[int], Timed]:
    """Moves a task from the ready list to the claimer's: what a queue on Redis does."""
    command = redis_command_of(connect(address))
    ready, held = f"ready-{run}-{number}".encode(), f"held-{run}-{number}".encode()
    move = partial(command, b"LMOVE", ready, held, b"LEFT", b"RIGHT")

    def claim(count: int) -> Timed:
        for name in range(count):
            command(b"RPUSH", ready, b"%d" % name + bytes(ROW_BYTES - 8))
        timed = time_calls(move, count)
        if move() != b"$-1\r\n":
            raise RuntimeError("the list should be empty")
        return timed

    return claim


def server_run(
    name: str,
    server: servers.Server,
    enlist: Callable[[str, int, int], Any],
    clients: int,
    each: int,
    place: Placement,
) -> dict[str, Round]:
    """One round of a contestant that needs no completion."""
    server.pin(place.server)
    with Crew(clients, place.client, partial(enlist, server.address, next(_numbers))) as crew:
        before_us = server.cpu_us
        timed = crew.tell(each)
        return {name: together(timed, server_cpu_us=server.cpu_us - before_us, rss_mib=server.rss_mib)}


class Claimer:
    """A swarm with tasks of its own, which it claims and completes in bursts."""

    def __init__(self, address: str, run: int, number: int) -> None:
        self._bus = ifbus.Client(address)
        self._name = f"bench-{run}-{number}"
        self._bus.register_swarm(self._name, capabilities=[NEED], budget_usd="1000000", lease_ms=600_000)
        self._ready: list[str] = []
        self._held: list[tuple[str, int]] = []

    def __call__(self, phase: str, count: int) -> Timed | None:
        """``prepare``, ``claim`` or ``complete`` so many."""
        if phase == "prepare":
            self._ready = [
                self._bus.create_task("bench", capabilities=[NEED], estimate_usd="0.01").task_id for _ in range(count)
            ]
            return None
        return time_calls(self._claim if phase == "claim" else self._complete, count)

    def _claim(self) -> None:
        task_id = self._ready.pop()
        claim = self._bus.claim_task(task_id, self._name)
        if not isinstance(claim, ifbus.TaskClaim):
            raise RuntimeError(f"a claim was refused: {claim}")
        self._held.append((task_id, claim.token))

    def _complete(self) -> None:
        task_id, token = self._held.pop()
        self._bus.complete_task(task_id, self._name, token)


def ifbusd_run(server: servers.Server, clients: int, each: int, place: Placement) -> Mapping[str, Round]:
    """One round of the daemon: claims and completions, each with its own rate and processor time."""
    server.pin(place.server)
    with Crew(clients, place.client, partial(Claimer, server.address, next(_numbers))) as crew:
        crew.tell("prepare", each)
        latencies: dict[str, list[float]] = {"claim": [], "complete": []}
        spent_us, wall_s = dict.fromkeys(latencies, 0.0), dict.fromkeys(latencies, 0.0)
        for done in range(0, each, BURST):
            for phase in latencies:
                before_us = server.cpu_us
                burst = together(crew.tell(phase, min(BURST, each - done)))
                spent_us[phase] += server.cpu_us - before_us
                wall_s[phase] += burst.wall_s
                latencies[phase] += burst.latencies_us
    return {
        name: Round(
            latencies_us=latencies[phase],
            wall_s=wall_s[phase],
            server_cpu_us=spent_us[phase] / len(latencies[phase]),
            rss_mib=server.rss_mib,
        )
        for name, phase in ((CLAIM, "claim"), (COMPLETE, "complete"))
    }


# --- the benchmark -----------------------------------------------------------------------------------


def main() -> None:
    """Measure, print, and write JSON."""
    arguments = parser(str(__doc__))
    arguments.add_argument("--backend", choices=("embedded", "etcd"), default="embedded", help="the daemon's store")
    options = arguments.parse_args()
    if options.backend == "etcd":
        import etcd_claims  # needs gRPC

        report = Report("claims_etcd", options)
        etcd_claims.measure_all(report, options, ifbusd_run, CLAIM)
        report.write()
        return
    report = Report("claims", options)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbus-claims-", dir=servers.DISK)))
        server = stack.enter_context(servers.ifbusd(directory))
        bare = stack.enter_context(servers.bare(directory, "durable"))
        redis = stack.enter_context(servers.redis(directory, is_durable=True))
        sizes = sizes_of(options)
        for clients in sizes:
            for place in placements():
                measure(report, options, directory, server, bare, redis, clients, place)
        with ifbus.Client(server.address) as bus:
            verdict, store = bus.witness_verify(), bus.status()["store"]
    judge(report, sizes)
    print(f"  witness verify: {'ok' if verdict.ok else 'FAILED'} over {verdict.entries} entries")
    where = "in a thread" if store["flush_in_thread"] else "in the loop"
    print(f"  flush at the end: {where}, about {store['flush_estimate_us']} us; largest batch {store['largest_batch']}")
    report.note(witness={"ok": verdict.ok, "entries": verdict.entries}, store=store)
    report.write()


def title(clients: int, place: str) -> str:
    """The scenario's name."""
    return f"durable claim, {clients} client{'s' if clients > 1 else ''}, {place}"


def measure(
    report: Report,
    options: argparse.Namespace,
    directory: Path,
    server: servers.Server,
    bare: servers.Server,
    redis: servers.Server | None,
    clients: int,
    place: Placement,
) -> None:
    """One scenario."""
    each = 2 if options.quick else {1: 320, 16: 96, 64: 48}[clients]
    runs: list[Run] = [
        partial(server_run, BARE, bare, bare_claimer, clients, each, place),
        partial(ifbusd_run, server, clients, each, place),
    ]
    if redis is not None:
        runs.append(partial(server_run, REDIS, redis, redis_claimer, clients, each, place))
    if clients == 1:  # nothing is shared between clients here
        calls = 40 if options.quick else 400
        runs = [
            partial(floor_run, APPEND, appender, directory / "append", calls, place),
            partial(floor_run, PREALLOCATED, overwriter, directory / "preallocated", calls, place),
            partial(floor_run, SQLITE, inserter, directory / "floor.db", calls, place),
            *runs,
        ]
    report.measure(title(clients, place.title), runs, floor=SQLITE if clients == 1 else BARE)


def judge(report: Report, sizes: Sizes) -> None:
    """Print what was aimed at beside what was found."""
    *_, many = sizes
    one = report.tables[title(1, ONE_CORE)]
    report.limit("one core, 1 client, p50 / SQLite insert", one.ratio(CLAIM), 1.7)
    report.limit("one core, 1 client, p50 / bare durable", one.ratio(CLAIM, BARE), 1.5)
    report.limit("one core, 1 client, p99", one.median(CLAIM, "p99_us") / 1000, 5, unit=" ms")
    crowd = report.tables.get(title(many, TWO_CORES))
    if crowd is None:
        return
    report.limit(f"two cores, {many} clients", crowd.median(CLAIM, "per_s"), 12_000, unit="/s", at_least=True)
    report.limit(f"two cores, {many} clients, p99", crowd.median(CLAIM, "p99_us") / 1000, 15, unit=" ms")
    if REDIS in crowd.rows:
        what = f"two cores, {many} clients, claims / {REDIS}"
        report.limit(f"{what}, rate", crowd.ratio(CLAIM, REDIS, "per_s"), 1, at_least=True)
        report.limit(f"{what}, p99", crowd.ratio(CLAIM, REDIS, "p99_us"), 1)


if __name__ == "__main__":
    main()

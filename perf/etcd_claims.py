"""Claims over etcd: through the daemon, through its store alone, and by clients that talk to etcd directly.

A claim writes what the coordinator's does: four compares, four keys and a witness entry of 120 bytes each, none of which another claim
touches. The direct clients send one transaction per claim, from as many threads; the store sends those that arrive together
as one transaction of nested ones. Their server's processor time is etcd's, the daemon's is its own. The store *without groups* is the same code with groups of one: what grouping gains by itself.

Each of them is a new process in each round; what its first claims take (connecting, loading) does not count. Groups make more claims
than the others in about the same time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import servers
from harness import TWO_CORES, Crew, Placement, Report, Round, Run, Timed, cpu_us, pin, placements, time_calls, together

sys.path.append(str(Path(__file__).parents[1]))
from tests.servers import run_etcd

STORE, ALONE = "store, groups", "store, groups of one"
DIRECT = "direct etcd client"
VALUE: Final = bytes(120)
KINDS: Final = ("claims", "tasks", "accounts", "idem")
MANY: Final = 64
_WARMING: Final = 5


def direct_claimers(endpoint: str, claimers: int, _number: int) -> Callable[[int], Timed]:
    """So many threads, each with a transaction per claim through etcd's own generated stub."""
    import grpc
    from etcd3 import etcdrpc

    kv = etcdrpc.KVStub(grpc.insecure_channel(endpoint))
    names = itertools.count(time.monotonic_ns())  # no round names what another did

    def claim() -> None:
        name = str(next(names))
        keys = [f"/direct/{kind}/{name}".encode() for kind in KINDS]
        compare = [
            etcdrpc.Compare(key=key, target=etcdrpc.Compare.MOD, result=etcdrpc.Compare.EQUAL, mod_revision=0)
            for key in keys
        ]
        puts = [
            etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key, value=VALUE))
            for key in (*keys, f"/direct/w/{name}".encode())
        ]
        if not kv.Txn(etcdrpc.TxnRequest(compare=compare, success=puts), timeout=30).succeeded:
            raise RuntimeError("a claim was lost that nobody else wanted")

    def claim_all(each: int) -> Timed:
        with ThreadPoolExecutor(claimers) as pool:
            list(pool.map(lambda _: claim(), range(_WARMING * claimers)))
            timed = list(pool.map(partial(time_calls, claim), [each] * claimers))
        return Timed(
            latencies_us=[latency for one in timed for latency in one.latencies_us],
            began_ns=min(one.began_ns for one in timed),
            ended_ns=max(one.ended_ns for one in timed),
        )

    return claim_all


def store_claimer(endpoint: str, claimers: int, settings: Mapping[str, Any], _number: int) -> Callable[[int], Timed]:
    """The daemon's store with so many tasks that claim at once, in one process."""
    import trio

    from ifbusd.daemon import collect_rarely
    from ifbusd.store.base import Compare, Put, Txn
    from ifbusd.store.etcd.config import EtcdConfig
    from ifbusd.store.etcd.store import EtcdStore

    async def claim_all(each: int) -> Timed:
        latencies: list[float] = []
        name = str(time.monotonic_ns())

        async def claim(store: EtcdStore, claimer: int, numbers: range) -> None:
            for number in numbers:
                keys = [f"{kind}/{name}-{claimer}-{number}" for kind in KINDS]
                txn = Txn([Compare(key, 0) for key in keys], [Put(key, VALUE) for key in keys], record=VALUE)
                before_ns = time.monotonic_ns()
                if not (await store.txn(txn)).succeeded:
                    raise RuntimeError("a claim was lost that nobody else wanted")
                latencies.append((time.monotonic_ns() - before_ns) / 1000)

        with tempfile.TemporaryDirectory(prefix="ifbus-store-", dir=servers.DISK) as directory:
            store = EtcdStore(
                Path(directory) / "ifbusd.db",
                config=EtcdConfig(endpoints=(f"http://{endpoint}",), prefix=f"/store/{name}/", **settings),
                wal_limit_bytes=8 << 20,
                now_ms=lambda: time.time_ns() // 1_000_000,
                boottime_ms=lambda: time.monotonic_ns() // 1_000_000,
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(store.run)
                collect_rarely()
                for numbers in (range(_WARMING), range(_WARMING, _WARMING + each)):
                    latencies.clear()
                    began_ns = time.monotonic_ns()
                    async with trio.open_nursery() as claiming:
                        for claimer in range(claimers):
                            claiming.start_soon(claim, store, claimer, numbers)
                    ended_ns = time.monotonic_ns()
                nursery.cancel_scope.cancel()
        return Timed(latencies_us=latencies, began_ns=began_ns, ended_ns=ended_ns)

    return partial(trio.run, claim_all)


def one_round(name: str, enlist: Callable[..., Any], each: int, place: Placement, etcd_pid: int) -> Mapping[str, Round]:
    """A round of those that need no server of ours, in one process; the server is etcd."""
    with Crew(1, place.client, enlist) as crew:
        before_us = cpu_us(etcd_pid)
        timed = crew.tell(each)
        used_us = cpu_us(etcd_pid) - before_us
    return {name: together(timed, server_cpu_us=used_us * each / (each + _WARMING))}


def title(clients: int) -> str:
    """The scenario's name."""
    return f"claim over etcd, {clients} at once" if clients > 1 else "claim over etcd, one at a time"


def measure_all(
    report: Report, options: argparse.Namespace, daemon_run: Callable[..., Mapping[str, Round]], claim: str
) -> None:
    """Measure, print and judge; the daemon's own round comes from `claims.py`."""
    place = next(place for place in placements() if place.title == TWO_CORES or len(placements()) == 1)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbus-etcd-", dir=servers.DISK)))
        (directory / "etcd").mkdir()
        etcd = stack.enter_context(run_etcd(directory / "etcd"))
        config = f'[store]\nbackend = "etcd"\n[store.etcd]\nendpoints = ["http://{etcd.address}"]\n'
        server = stack.enter_context(servers.ifbusd(directory, config))
        pin(etcd.process.pid, place.server)
        for clients in (1,) if options.quick else (1, MANY):
            each = 2 if options.quick else {1: 100, MANY: 30}[clients]
            many = each if clients == 1 else 5 * each
            store = partial(store_claimer, etcd.address, clients)
            runs: list[Run] = [
                partial(
                    one_round, DIRECT, partial(direct_claimers, etcd.address, clients), many, place, etcd.process.pid
                ),
                partial(one_round, STORE, partial(store, {}), many, place, etcd.process.pid),
                partial(
                    one_round,
                    ALONE,
                    partial(store, {"max_batch_txns": 1, "max_in_flight": 1}),
                    each,
                    place,
                    etcd.process.pid,
                ),
                partial(daemon_run, server, clients, each, place),
            ]
            report.measure(title(clients), runs, floor=DIRECT)
    one = report.tables[title(1)]
    report.limit("one at a time, p50 of the daemon / direct client", one.ratio(claim, DIRECT), 5)
    many = report.tables.get(title(MANY))
    if many is not None:
        report.limit("64 at once, rate of groups / groups of one", many.ratio(STORE, ALONE, "per_s"), 10, at_least=True)
        report.limit(
            "64 at once, rate of groups / 64 direct clients", many.ratio(STORE, DIRECT, "per_s"), 1, at_least=True
        )

"""Round trip of `daemon.ping` beside its limit, its floor, and what people would pick instead, in turn in one run.

The floor is `bare`: trio and MessagePack with nothing around them. The real daemon answers with identity, quota and limits; the
contestant "traced" also sends a W3C trace context. 1, 16 and 64 client processes call one after the other each, as fast as
they can. See DESIGN 7 for the method.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import servers
from callers import BARE, GRPC, IFBUSD, IFBUSD_BARE, REDIS, REDIS_BARE, TRACED, C, ping_of
from harness import (
    ONE_CORE,
    TWO_CORES,
    Crew,
    Placement,
    Report,
    Round,
    Sizes,
    parser,
    placements,
    sizes_of,
    time_calls,
    together,
)

WARM_UP = 20
# The same time for a slow contestant as for a fast one. The most clients are too many for gRPC: each brings threads of its own,
# and connecting them takes minutes.
SHARE = {GRPC: 0.1}


def enlist(kind: str, address: str, _number: int) -> Callable[[int], Any]:
    """A client: connected and warm; answers a number of calls with their times."""
    call = ping_of(kind, address)
    for _ in range(WARM_UP):
        call()
    return partial(time_calls, call)


def run(kind: str, server: servers.Server, clients: int, calls: int, place: Placement) -> Mapping[str, Round]:
    """One round of one contestant."""
    server.pin(place.server)
    each = max(3, int(calls * SHARE.get(kind, 1)) // clients)
    with Crew(clients, place.client, partial(enlist, kind, server.address)) as crew:
        before_us = server.cpu_us
        timed = crew.tell(each)
        return {kind: together(timed, server_cpu_us=server.cpu_us - before_us, rss_mib=server.rss_mib)}


def main() -> None:
    """Measure, print, and write JSON."""
    options = parser(str(__doc__)).parse_args()
    report = Report("rtt", options)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbus-rtt-")))
        ours = stack.enter_context(servers.ifbusd(directory))
        redis = stack.enter_context(servers.redis(directory))
        started = {
            C: stack.enter_context(servers.c_pingpong(directory)),
            BARE: stack.enter_context(servers.bare(directory, "echo")),
            REDIS_BARE: redis,
            REDIS: redis if importlib.util.find_spec("redis") else None,
            GRPC: stack.enter_context(servers.grpc(directory)),
            IFBUSD_BARE: ours,
            IFBUSD: ours,
            TRACED: ours,
        }
        sizes = sizes_of(options)
        for clients in sizes:
            calls = (100 if options.quick else 5_000) * (1 if clients == 1 else 2)
            for place in placements():
                runs = [
                    partial(run, kind, server, clients, calls, place)
                    for kind, server in started.items()
                    if server is not None and not (kind == GRPC and clients == sizes[-1])
                ]
                report.measure(title(clients, place.title), runs, floor=BARE)
    judge(report, sizes)
    report.write()


def title(clients: int, place: str) -> str:
    """The scenario's name."""
    return f"ping, {clients} client{'s' if clients > 1 else ''}, {place}"


def judge(report: Report, sizes: Sizes) -> None:
    """Print what was aimed at beside what was found."""
    _, some, many = sizes
    one = report.tables[title(1, ONE_CORE)]
    report.limit(f"{title(1, ONE_CORE)}, p50 / bare", one.ratio(IFBUSD), 1.5)
    report.limit(f"{title(1, ONE_CORE)}, server CPU per call", one.median(IFBUSD, "server_cpu_us"), 22, unit=" us")
    if title(1, TWO_CORES) not in report.tables:
        return
    for clients, limit_ms in ((1, 1), (some, 1), (many, 5)):
        p99_ms = report.tables[title(clients, TWO_CORES)].median(IFBUSD, "p99_us") / 1000
        report.limit(f"{title(clients, TWO_CORES)}, p99", p99_ms, limit_ms, unit=" ms")
    crowd = report.tables[title(many, TWO_CORES)]
    report.limit(title(many, TWO_CORES), crowd.median(IFBUSD, "per_s"), 38_000, unit="/s", at_least=True)
    # Client beside client, and bare client beside bare client.
    for ours, theirs in ((IFBUSD, REDIS), (IFBUSD_BARE, REDIS_BARE)):
        if theirs in crowd.rows:
            what = f"{title(many, TWO_CORES)}, {ours} / {theirs}"
            report.limit(f"{what}, rate", crowd.ratio(ours, theirs, "per_s"), 1, at_least=True)
            report.limit(f"{what}, p99", crowd.ratio(ours, theirs, "p99_us"), 1)


if __name__ == "__main__":
    main()

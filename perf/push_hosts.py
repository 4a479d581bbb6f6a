"""Pushes from one host to another: through two daemons on one etcd and one NATS, beside bare nats-py and a bare etcd watch.

All on this machine, so the network is a loopback and the servers share its processors: ratios carry over, milliseconds less. Bare NATS
keeps nothing; a bare watch is the durable floor. In the end NATS is stopped: what is pushed then comes through etcd's watch alone. Run by ``push.py --other-host``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import nats
import servers
from etcd3 import etcdrpc
from harness import TWO_CORES, Crew, Report, Round, pinned, placements

import ifbus

sys.path.insert(0, str(Path(__file__).parents[1]))  # the servers of the tests
from tests.hosts import hosts

NATS, WATCH = "bare nats-py", "bare etcd put and watch"
PUSH, ALARM, CREATE = "ifbusd, push", "ifbusd, blocker alarm", "ifbusd, create to worker"
TITLE: Final = "push to another host, 1 subscriber"
WITHOUT_NATS: Final = "push to another host, NATS down"
_KEY: Final = b"bench"
_TIMEOUT_S: Final = 30
_numbers = itertools.count(1)

Listen = Callable[[int], Iterator[int | None]]
Publish = Callable[..., Mapping[str, Round]]


def nats_subscriber(url: str, _number: int) -> Listen:
    """Hears a subject."""
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(nats.connect(url))
    subscription = loop.run_until_complete(client.subscribe("bench"))
    loop.run_until_complete(client.flush())

    def listen(count: int) -> Iterator[int]:
        for _ in range(count):
            loop.run_until_complete(subscription.next_msg(timeout=_TIMEOUT_S))
            yield time.monotonic_ns()

    return listen


def nats_publisher(url: str, stack: ExitStack) -> Callable[[int], object]:
    """Publishes to it; closed with the stack."""
    loop = stack.enter_context(closing(asyncio.new_event_loop()))
    client = loop.run_until_complete(nats.connect(url))
    stack.callback(lambda: loop.run_until_complete(client.close()))

    async def send(number: int) -> None:
        await client.publish("bench", b"T-%d bench" % number)
        await client.flush()

    return lambda number: loop.run_until_complete(send(number))


def watcher(endpoint: str, _number: int) -> Listen:
    """Watches a key."""
    asked = [etcdrpc.WatchRequest(create_request=etcdrpc.WatchCreateRequest(key=_KEY))]
    answers = etcdrpc.WatchStub(grpc.insecure_channel(endpoint)).Watch(itertools.chain(asked, _for_ever()))
    next(answers)  # it has begun

    def listen(count: int) -> Iterator[int]:
        for _ in range(count):
            next(answers)
            yield time.monotonic_ns()

    return listen


def _for_ever() -> Iterator[Any]:
    time.sleep(3600)  # in gRPC's thread: the end of what is asked would be the end of the answers
    yield from ()


def putter(endpoint: str, _: ExitStack) -> Callable[[int], object]:
    """Writes it."""
    kv = etcdrpc.KVStub(grpc.insecure_channel(endpoint))
    return lambda number: kv.Put(etcdrpc.PutRequest(key=_KEY, value=b"T-%d bench" % number), timeout=_TIMEOUT_S)


def measure_all(
    report: Report,
    options: argparse.Namespace,
    publish: Publish,
    enlist: Mapping[str, Callable[..., Any]],
    sender: Mapping[str, Callable[..., Any]],
) -> None:
    """Measure, print and judge; what the daemons' subscribers and publishers do comes from `push.py`, by kind."""
    place = next(place for place in placements() if place.title == TWO_CORES or len(placements()) == 1)
    count = 5 if options.quick else 400
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbus-hosts-", dir=servers.DISK)))
        pair = stack.enter_context(hosts(directory, 2, is_direct=True))
        own = servers.Server(address=str(pair[0].daemon.socket), pid=pair[0].daemon.pid)
        other = str(pair[1].daemon.socket)
        [etcd], [bus] = pair.etcd, pair.nats
        url = f"nats://{bus.address}"

        def bare(name: str, listener: Callable[[int], Listen], make: Callable[[ExitStack], Any]) -> Mapping[str, Round]:
            with pinned(place.client), Crew(1, place.client, listener) as crew, ExitStack() as publishers:
                return publish(name, own, crew, make(publishers), count)

        def ours(kind: str) -> Mapping[str, Round]:
            name = f"hosts{next(_numbers)}"
            with (
                pinned(place.client),
                Crew(1, place.client, enlist[kind](other, name)) as crew,
                ifbus.Client(own.address) as client,
            ):
                clean_up = (lambda alert: client.resolve_blocker(alert.blocker_id)) if kind == ALARM else None
                send = sender[kind](client, name, count)
                return publish(kind, own, crew, send, count, says_when_done=kind == CREATE, clean_up=clean_up)

        runs = [
            partial(bare, NATS, partial(nats_subscriber, url), partial(nats_publisher, url)),
            partial(bare, WATCH, partial(watcher, etcd.address), partial(putter, etcd.address)),
            *(partial(ours, kind) for kind in (PUSH, ALARM, CREATE)),
        ]
        report.measure(TITLE, runs, floor=NATS)
        bus.stop()
        report.measure(WITHOUT_NATS, [runs[1], runs[2]], floor=WATCH)
    table = report.tables[TITLE]
    report.limit("push to another host, p50 / bare etcd put and watch", table.ratio(PUSH, WATCH), 5)
    report.limit("push to another host, p99", table.median(PUSH, "p99_us") / 1000, 10, unit=" ms")
    report.limit("blocker alarm on another host, p99", table.median(ALARM, "p99_us") / 1000, 10, unit=" ms")
    report.limit("task created on another host, p99", table.median(CREATE, "p99_us") / 1000, 10, unit=" ms")
    report.limit(
        "push to another host, NATS down, p99",
        report.tables[WITHOUT_NATS].median(PUSH, "p99_us") / 1000,
        1_000,
        unit=" ms",
    )

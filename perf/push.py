"""From the publisher's call to the line that runs in another process that was waiting already, beside a bare relay.

A push of ours is durable: it is in the swarm's inbox, on the disk, before it is told. The relay keeps nothing, and neither does
Redis. With 16 subscribers one message goes to all of them (ours: a broadcast into 16 inboxes in one commit) and each arrival
counts. The publisher waits until every subscriber sleeps again before it sends the next one.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgpack
import servers
from callers import connect, redis_command_of, request_of
from harness import ONE_CORE, TWO_CORES, Crew, Placement, Report, Round, parser, pinned, placements

import ifbus

RELAY, REDIS = "bare relay", "Redis PUBLISH"
PUSH, BROADCAST, ALARM, CREATE = (
    "ifbusd, push",
    "ifbusd, broadcast",
    "ifbusd, blocker alarm",
    "ifbusd, create to worker",
)
_CHANNEL: Final = b"bench"
_LEASE_MS: Final = 600_000
_numbers = itertools.count(1)

Listen = Callable[[int], Iterator[int | None]]


# --- subscribers: processes that say when each message arrived ---------------------------------------


def relay_subscriber(address: str, _number: int) -> Listen:
    """Hears what the bare server relays."""
    sock = connect(address)
    request_of(sock)("subscribe")
    unpacker = msgpack.Unpacker()

    def listen(count: int) -> Iterator[int]:
        while count:
            unpacker.feed(sock.recv(65536))
            for _ in unpacker:
                yield time.monotonic_ns()
                count -= 1

    return listen


def redis_subscriber(address: str, _number: int) -> Listen:
    """Hears what is published."""
    sock = connect(address)
    redis_command_of(sock)(b"SUBSCRIBE", _CHANNEL)

    def listen(count: int) -> Iterator[int]:
        for _ in range(count):
            sock.recv(4096)
            yield time.monotonic_ns()

    return listen


def inbox_subscriber(address: str, name: str, orchestrator: bool, number: int) -> Listen:
    """Hears a swarm's inbox; empties it at the end."""
    bus = ifbus.Client(address)
    swarm_id = f"{name}-{number}"
    bus.register_swarm(swarm_id, capabilities=[f"bench:{name}"], orchestrator=orchestrator, lease_ms=_LEASE_MS)
    letters = bus.subscribe_inbox(swarm_id)

    def listen(count: int) -> Iterator[int]:
        tasks, seq = [], 0
        for letter in itertools.islice(letters, count):
            yield time.monotonic_ns()
            seq = letter.seq
            if letter.kind == "task":
                tasks.append(letter.body["task_id"])
        # Only now: on a core that all of them share, one's acknowledging would be another's waiting.
        for task_id in tasks:  # its letter stays until somebody has claimed the task
            claim = bus.claim_task(task_id, swarm_id)
            assert isinstance(claim, ifbus.TaskClaim)
            bus.complete_task(task_id, swarm_id, claim.token)
        bus.acknowledge(swarm_id, seq)

    return listen


def worker(address: str, name: str, number: int) -> Listen:
    """Takes tasks as the client's documentation shows it: the first line of the loop's body is the arrival."""
    bus = ifbus.Client(address)
    swarm = bus.register(f"{name}-{number}", capabilities=[f"bench:{name}"], lease_ms=_LEASE_MS)
    tasks = swarm.tasks()

    def listen(count: int) -> Iterator[int | None]:
        for _ in range(count):
            task = next(tasks)
            arrived = time.monotonic_ns()
            with task:
                task.complete()
            yield arrived
            yield None

    return listen


# --- publishers --------------------------------------------------------------------------------------


def relay_publisher(address: str) -> Callable[[int], object]:
    """Tells all who subscribed at the bare relay."""
    request = request_of(connect(address))
    return lambda number: request("tell", "inbox", {"task_id": f"T-{number}", "title": "bench"})


def redis_publisher(address: str) -> Callable[[int], object]:
    """Tells all who subscribed."""
    command = redis_command_of(connect(address))
    return lambda number: command(b"PUBLISH", _CHANNEL, b"T-%d bench" % number)


def pusher(bus: ifbus.Client, name: str, count: int) -> Callable[[int], object]:
    """Pushes tasks that are there already."""
    tasks = [bus.create_task("bench", capabilities=[f"bench:{name}"]).task_id for _ in range(count)]
    return lambda number: bus.push_task_to_swarm(tasks[number], f"{name}-0")


def broadcaster(bus: ifbus.Client, name: str) -> Callable[[int], object]:
    """Writes to everybody of this name."""
    return lambda number: bus.broadcast("bench", {"number": number}, capabilities=[f"bench:{name}"])


def alarmist(bus: ifbus.Client, name: str) -> Callable[[int], object]:
    """Reports blockers; orchestrators hear of them."""
    swarm_id = f"{name}-reporter"
    bus.register_swarm(swarm_id, capabilities=["bench:reporting"], lease_ms=_LEASE_MS)
    return lambda number: bus.detect_blocker(swarm_id, f"reason {number}")


def creator(bus: ifbus.Client, name: str) -> Callable[[int], object]:
    """Creates tasks that somebody waits for."""
    return lambda _number: bus.create_task("bench", capabilities=[f"bench:{name}"])


# --- rounds ------------------------------------------------------------------------------------------


def publish(
    name: str,
    server: servers.Server,
    crew: Crew,
    send: Callable[[int], object],
    count: int,
    *,
    says_when_done: bool = False,
    clean_up: Callable[[Any], object] | None = None,
) -> Mapping[str, Round]:
    """Send `count` messages, one after the other; the spans from each call to each arrival.

    Args:
        says_when_done: The subscribers say a second time when they are done with the message.
        clean_up: Gets what `send` returned, outside of what is measured.
    """
    spans: list[float] = []
    wall_us = spent_us = 0.0
    crew.begin(count)
    for number in range(count):
        crew.wait_until_asleep()
        before_us = server.cpu_us
        sent = time.monotonic_ns()
        result = send(number)
        arrived = [(at_ns - sent) / 1000 for at_ns in crew.hear()]
        spent_us += server.cpu_us - before_us
        wall_us += max(arrived)
        spans += arrived
        if says_when_done:
            crew.hear()
        if clean_up is not None:
            clean_up(result)
    return {
        name: Round(latencies_us=spans, wall_s=wall_us / 1e6, server_cpu_us=spent_us / count, rss_mib=server.rss_mib)
    }


def relay_run(server: servers.Server, subscribers: int, count: int, place: Placement) -> Mapping[str, Round]:
    """The floor."""
    server.pin(place.server)
    with pinned(place.client), Crew(subscribers, place.client, partial(relay_subscriber, server.address)) as crew:
        return publish(RELAY, server, crew, relay_publisher(server.address), count)


def redis_run(server: servers.Server, subscribers: int, count: int, place: Placement) -> Mapping[str, Round]:
    """What many would pick; nothing is kept."""
    server.pin(place.server)
    with pinned(place.client), Crew(subscribers, place.client, partial(redis_subscriber, server.address)) as crew:
        return publish(REDIS, server, crew, redis_publisher(server.address), count)


def ifbusd_run(
    kind: str, server: servers.Server, subscribers: int, count: int, place: Placement
) -> Mapping[str, Round]:
    """One round of ours; each with swarms of its own, whose inboxes are empty."""
    server.pin(place.server)
    name = f"push{next(_numbers)}"
    if kind == CREATE:
        enlist: Callable[[int], Listen] = partial(worker, server.address, name)
    else:
        enlist = partial(inbox_subscriber, server.address, name, kind == ALARM)
    with pinned(place.client), Crew(subscribers, place.client, enlist) as crew, ifbus.Client(server.address) as bus:
        run = partial(publish, kind, server, crew, says_when_done=kind == CREATE, count=count)
        if kind == PUSH:
            return run(send=pusher(bus, name, count))
        if kind == BROADCAST:
            return run(send=broadcaster(bus, name))
        if kind == CREATE:
            return run(send=creator(bus, name))
        return run(send=alarmist(bus, name), clean_up=lambda alert: bus.resolve_blocker(alert.blocker_id))


# --- the benchmark -----------------------------------------------------------------------------------


def main() -> None:
    """Measure, print, and write JSON."""
    arguments = parser(str(__doc__))
    arguments.add_argument(
        "--other-host", action="store_true", help="to a subscriber at another host's daemon, over etcd"
    )
    options = arguments.parse_args()
    if options.other_host:
        import push_hosts  # needs gRPC and NATS

        report = Report("push_other_host", options)
        enlist = {
            PUSH: lambda address, name: partial(inbox_subscriber, address, name, False),
            ALARM: lambda address, name: partial(inbox_subscriber, address, name, True),
            CREATE: lambda address, name: partial(worker, address, name),
        }
        sender = {
            PUSH: pusher,
            ALARM: lambda bus, name, _: alarmist(bus, name),
            CREATE: lambda bus, name, _: creator(bus, name),
        }
        push_hosts.measure_all(report, options, publish, enlist, sender)
        report.write()
        return
    report = Report("push", options)
    count = 5 if options.quick else 200
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbus-push-", dir=servers.DISK)))
        ours = stack.enter_context(servers.ifbusd(directory))
        relay = stack.enter_context(servers.bare(directory, "relay"))
        redis = stack.enter_context(servers.redis(directory))
        for subscribers in (1, 16):
            for place in placements():
                kinds = (PUSH, ALARM, CREATE) if subscribers == 1 else (BROADCAST,)
                runs = [partial(relay_run, relay, subscribers, count, place)]
                if redis is not None:
                    runs.append(partial(redis_run, redis, subscribers, count, place))
                runs += [partial(ifbusd_run, kind, ours, subscribers, count, place) for kind in kinds]
                report.measure(title(subscribers, place.title), runs, floor=RELAY)
    judge(report)
    report.write()


def title(subscribers: int, place: str) -> str:
    """The scenario's name."""
    return f"push, {subscribers} subscriber{'s' if subscribers > 1 else ''}, {place}"


def judge(report: Report) -> None:
    """Print what was aimed at beside what was found."""
    place = TWO_CORES if title(1, TWO_CORES) in report.tables else ONE_CORE
    one, many = report.tables[title(1, place)], report.tables[title(16, place)]
    report.limit(f"{place}, push, p50 / bare relay", one.ratio(PUSH), 3)
    report.limit(f"{place}, push, p99", one.median(PUSH, "p99_us") / 1000, 1, unit=" ms")
    report.limit(f"{place}, blocker alarm, p99", one.median(ALARM, "p99_us") / 1000, 10, unit=" ms")
    report.limit(
        f"{place}, create to the first line in the worker, p50", one.median(CREATE, "p50_us") / 1000, 1, unit=" ms"
    )
    report.limit(f"{place}, 16 subscribers, p50", many.median(BROADCAST, "p50_us") / 1000, 0.7, unit=" ms")


if __name__ == "__main__":
    main()

"""How the cost of a call grows: of a ping with connections, of a claim with tasks on the board, of a match with swarms.

One daemon grows, through its socket: requests are pipelined, 64 at a time, so that they share commits. A second, small one
stays as it is and takes turns with it, so that each size has its ratio to the smallest from the same moment. ``--full`` goes
to 1,000,000 tasks and 100,000 swarms, which takes some minutes more.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgpack
import servers
from callers import connect, request_of
from harness import Crew, Placement, Report, Round, Table, Timed, parser, placements, rounds_of, time_calls

WINDOW: Final = 64
BURST: Final = 8
# What the defaults would refuse: that many connections and swarms of one user, that many requests in a second.
CONFIG: Final = """
[rpc]
connections = 4096
connections_per_uid = 4096
requests_per_s = 10_000_000
burst_requests = 10_000_000
[coordinator]
open_tasks = 2_000_000
[governor]
max_swarms = 200_000
max_swarms_per_uid = 200_000
"""
DESCRIPTORS: Final = 4096
# One in so many tasks is for our swarm; the others must not be in its way.
TASK_KINDS: Final = 10
SWARM_KINDS: Final = 100

SWARM: Final = "claimer"
LEASE_MS: Final = 24 * 3_600_000

Request = tuple[str, dict[str, Any]]


def fill(address: str, requests: Iterable[Request]) -> Iterator[Any]:
    """Send requests, a window of them at a time; their results in order."""
    sock, unpacker = connect(address), msgpack.Unpacker()
    with sock:
        pending = iter(requests)
        while window := list(itertools.islice(pending, WINDOW)):
            sock.sendall(b"".join(msgpack.packb([0, n, name, [params]]) for n, (name, params) in enumerate(window)))
            answers: dict[int, Any] = {}
            while len(answers) < len(window):
                unpacker.feed(sock.recv(1 << 16))
                for kind, number, error, result in unpacker:
                    if kind != 1 or error is not None:
                        raise RuntimeError(f"{window[number][0]} was refused: {error}")
                    answers[number] = result
            yield from (answers[number] for number in range(len(window)))


def measured(server: servers.Server, crew: Crew, *command: Any) -> tuple[Any, float]:
    """The answer of the only member of a crew, and what it cost the server."""
    before_us = server.cpu_us
    [answer] = crew.tell(*command)
    return answer, server.cpu_us - before_us


# --- connections -------------------------------------------------------------------------------------


class Connections:
    """Pings over many connections in turn: each of them is in use."""

    name = "ping by connections"
    operations = ("in turn",)
    sizes: Mapping[str, Sequence[int]] = {
        "quick": (1, 10),
        "normal": (1, 10, 100, 300, 1_000),
        "full": (1, 10, 100, 300, 1_000),
    }
    calls = 4_000

    def __init__(self, server: servers.Server) -> None:
        self._server, self._address = server, server.address
        self._count = 0

    def grow(self, size: int) -> None:
        """Use so many from now on."""
        self._count = size

    def enlist(self, operation: str, _number: int) -> Callable[[int], Timed]:
        """A client process with all the connections."""
        pings = [partial(request_of(connect(self._address)), "daemon.ping") for _ in range(self._count)]
        for ping in pings:
            ping()
        turns = itertools.cycle(pings)
        return partial(time_calls, lambda: next(turns)())

    def run(self, crew: Crew, operation: str, count: int) -> Iterator[tuple[Timed, float]]:
        """Ping."""
        yield measured(self._server, crew, count)


# --- tasks -------------------------------------------------------------------------------------------


class Tasks:
    """Claims of tasks from anywhere on the board, by id and by "the next one for me"; each is completed outside of the measurement.

    One task in `TASK_KINDS` is fit for our swarm. For each that was completed a new one is created, so as many stay ready.
    """

    name = "claim by tasks"
    operations = ("claim", "claim next")
    sizes: Mapping[str, Sequence[int]] = {
        "quick": (100, 200),
        "normal": (100, 1_000, 10_000, 50_000),
        "full": (100, 1_000, 10_000, 100_000, 1_000_000),
    }
    calls = 200

    def __init__(self, server: servers.Server) -> None:
        self._server, self._address = server, server.address
        self._ready: list[str] = []
        self._size = 0
        self._chance = random.Random(1)
        swarm = {"swarm_id": SWARM, "capabilities": [_need(0)], "lease_ms": LEASE_MS, "budget_usd": "1000000"}
        [_] = fill(self._address, [("coordinator.register_swarm", swarm)])

    def grow(self, size: int) -> None:
        """Create tasks until there are so many."""
        self._create(range(self._size, size))
        self._size = size

    def _create(self, numbers: Sequence[int]) -> None:
        requests = (
            ("coordinator.create_task", {"title": f"task {n}", "capabilities": [_need(n)], "estimate_usd": "0.01"})
            for n in numbers
        )
        for n, answer in zip(numbers, fill(self._address, requests), strict=True):
            if n % TASK_KINDS == 0:
                self._ready.append(answer["task"]["task_id"])

    def enlist(self, operation: str, _number: int) -> Callable[..., Any]:
        """A client process that claims."""
        return Claimer(self._address)

    def run(self, crew: Crew, operation: str, count: int) -> Iterator[tuple[Timed, float]]:
        """Claim in bursts, and put the board back in order after each."""
        for _ in range(0, count, BURST):
            tasks = self._pick() if operation == "claim" else [""] * BURST
            (timed, taken), spent_us = measured(self._server, crew, tasks)
            yield timed, spent_us
            crew.tell(None)
            if operation != "claim":
                gone = set(taken)
                self._ready = [task_id for task_id in self._ready if task_id not in gone]
            self._create([0] * BURST)

    def _pick(self) -> list[str]:
        picked = []
        for _ in range(BURST):
            at = self._chance.randrange(len(self._ready))
            self._ready[at], self._ready[-1] = self._ready[-1], self._ready[at]
            picked.append(self._ready.pop())
        return picked


class Claimer:
    """Claims the tasks that it is told, the next one for ``""``; completes them when it is told None."""

    def __init__(self, address: str) -> None:
        self._request = request_of(connect(address))
        self._keys = itertools.count(time.time_ns())
        self._held: list[tuple[str, int]] = []

    def __call__(self, tasks: list[str] | None) -> tuple[Timed, list[str]] | None:
        if tasks is None:
            for task_id, token in self._held:
                self._request("coordinator.complete_task", task_id, SWARM, token)
            self._held.clear()
            return None
        pending = iter(tasks)
        timed = time_calls(lambda: self._claim(next(pending)), len(tasks))
        return timed, [task_id for task_id, _ in self._held]

    def _claim(self, task_id: str) -> None:
        if task_id:
            answer = self._request("coordinator.claim_task", task_id, SWARM)
        else:
            answer = self._request("coordinator.claim_next", SWARM)
        if not answer["claimed"]:
            raise RuntimeError(f"a claim was refused: {answer['refusal']}")
        self._held.append((answer["claim"]["task_id"], answer["claim"]["token"]))


def _need(number: int) -> str:
    return f"bench:kind{number % TASK_KINDS}"


# --- swarms ------------------------------------------------------------------------------------------


class Swarms:
    """Matches: a rare skill that five swarms have; one that a hundredth has; and one of those beside one that half of all have."""

    name = "match by swarms"
    operations = ("rare", "one in 100", "one in 100, shared")
    # From the size on at which an answer names as many candidates as it ever does.
    sizes: Mapping[str, Sequence[int]] = {
        "quick": (10, 100),
        "normal": (1_000, 10_000),
        "full": (1_000, 10_000, 100_000),
    }
    calls = 500
    _wanted: Mapping[str, list[str]] = {
        "rare": ["skill:rare"],
        "one in 100": ["skill:s7"],
        "one in 100, shared": ["skill:s8", "skill:shared"],
    }

    def __init__(self, server: servers.Server) -> None:
        self._server, self._address = server, server.address
        self._size = 0

    def grow(self, size: int) -> None:
        """Register profiles until there are so many."""
        for _ in fill(self._address, (_profile(n) for n in range(self._size, size))):
            pass
        self._size = size

    def enlist(self, operation: str, _number: int) -> Callable[[int], Timed]:
        """A client process that asks."""
        request, wanted = request_of(connect(self._address)), {"capabilities": self._wanted[operation]}

        def match() -> None:
            if not request("governor.find_qualified_swarm", wanted)["best"]:
                raise RuntimeError("somebody should fit")

        match()
        return partial(time_calls, match)

    def run(self, crew: Crew, operation: str, count: int) -> Iterator[tuple[Timed, float]]:
        """Ask."""
        yield measured(self._server, crew, count)


def _profile(number: int) -> Request:
    if number < 5:
        capabilities = ["skill:rare"]
    else:
        capabilities = [f"skill:s{number % 100}", *(["skill:shared"] if number % 2 == 0 else [])]
    profile = {
        "swarm_id": f"swarm-{number}",
        "capabilities": capabilities,
        "cost_per_hour_usd": f"1.{number % 1000:03}",
    }
    return "governor.register_profile", profile


# --- growing -----------------------------------------------------------------------------------------


Grower = Connections | Tasks | Swarms


def one_round(grower: Grower, server: servers.Server, operation: str, count: int, place: Placement) -> Round:
    """Measure one operation at the size that the daemon has now; only what the client timed counts."""
    server.pin(place.server)
    latencies: list[float] = []
    spent_us = 0.0
    with Crew(1, place.client, partial(grower.enlist, operation)) as crew:
        for timed, cost_us in grower.run(crew, operation, count):
            latencies += timed.latencies_us
            spent_us += cost_us
    return Round(
        latencies_us=latencies,
        wall_s=sum(latencies) / 1e6,
        server_cpu_us=spent_us / len(latencies),
        rss_mib=server.rss_mib,
    )


def grow(kind: type[Grower], options: argparse.Namespace, report: Report) -> None:
    """Let one daemon grow beside one that stays small, and measure both in turn at each size."""
    sizes = kind.sizes["quick" if options.quick else "full" if options.full else "normal"]
    count = kind.calls // 10 if options.quick else kind.calls
    tables = {
        (operation, place): Table(title=f"{kind.name}: {operation}, {place.title}", floor="")
        for operation in kind.operations
        for place in placements()
    }
    with ExitStack() as stack:
        small, big = (_start(stack) for _ in range(2))
        reference, grown = kind(small), kind(big)
        reference.grow(sizes[0])
        for size in sizes:
            began = time.monotonic()
            grown.grow(size)
            print(f"{kind.name}: {size} there after {time.monotonic() - began:.1f} s", flush=True)
            for (operation, place), table in tables.items():
                for number in range(rounds_of(options) + 1):
                    beside = one_round(reference, small, operation, count, place)
                    one = one_round(grown, big, operation, count, place)
                    if number or options.quick:
                        table.add(str(size), _beside(one.figures(), beside.figures()), one.latencies_us)
    for table in tables.values():
        report.keep(table)


def _start(stack: ExitStack) -> servers.Server:
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ifbus-scale-", dir=servers.DISK))
    return stack.enter_context(servers.ifbusd(Path(directory), CONFIG))


def _beside(figures: dict[str, float], small: dict[str, float]) -> dict[str, float]:
    ratios = {
        name: figures[figure] / small[figure]
        for name, figure in (("p50_to_small", "p50_us"), ("cpu_to_small", "server_cpu_us"))
    }
    return figures | ratios


def main() -> None:
    """Measure, print, and write JSON."""
    options = parser(str(__doc__), rounds=3)
    options.add_argument("--full", action="store_true", help="up to 1,000,000 tasks and 100,000 swarms")
    chosen = options.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, DESCRIPTORS), most))
    report = Report("scale", chosen)
    for kind in (Connections, Tasks, Swarms):
        grow(kind, chosen, report)
    for title, table in report.tables.items():
        largest = list(table.rows)[-1]
        # Flat: no more than what noise and colder caches make of it.
        report.limit(f"{title}, {largest}: server CPU / the smallest", table.median(largest, "cpu_to_small"), 1.5)
    report.write()


if __name__ == "__main__":
    main()

"""A client process of the proofs: `python -m tests.proof.swarm ROLE PARAMETERS`, the parameters as JSON.

What it did stands in its history file, whatever becomes of it; it may be stopped and killed at any moment. It speaks to
the daemon through the real client library, retries and idempotency keys included.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM
from socket import socket as Socket
from typing import Any, Final

from ifbus.errors import ConnectionFailed, ConnectionLost, DeadlineExceeded, from_wire
from ifbus.exchange import Feed
from ifbus.link import Link
from ifbus.money import to_micro_usd, to_usd
from ifbus.protocol import END_OF_STREAM, NEED_DATA, Connection, Event, Notification, Response
from tests.proof.history import Operation, Outcome, Recorder

Answer = dict[str, Any]

_PR_SET_PDEATHSIG: Final = 1
# Longer than any restart of the daemon: a client that gives up has found a bug.
PATIENCE_S: Final = 120.0
# How long a listener waits before it looks whether the parent has said something.
LOOK_S: Final = 0.1
COUNTERS: Final = 256
_COUNTER_BYTES: Final = 8


class Counters:
    """How far each process of a crowd is, in memory that they share: each writes its own, all read the sum."""

    def __init__(self, path: Path, *, own: int = 0) -> None:
        with path.open("r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), COUNTERS * _COUNTER_BYTES)).cast("Q")
        self._own = own

    def count(self) -> None:
        """One more of this process's."""
        self._cells[self._own] += 1

    def sum(self) -> int:
        """Of all processes."""
        return sum(self._cells)


@contextmanager
def connected(socket: str) -> Iterator[Link]:
    """A client of a daemon that may just be starting again."""
    deadline = time.monotonic() + PATIENCE_S
    with_daemon = Link(socket, timeout=PATIENCE_S)
    while True:
        try:
            with_daemon.connect()
            break
        except ConnectionFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    try:
        yield with_daemon
    finally:
        with_daemon.close()


def say(what: Any) -> None:
    """Tell the parent something: one line of JSON."""
    os.write(1, json.dumps(what).encode() + b"\n")


def is_told() -> bool:
    """Whether the parent has said something."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def hear() -> Any:
    """What the parent says next; ends this process if it is gone."""
    line = sys.stdin.readline()
    if not line:
        raise SystemExit(0)
    return json.loads(line)


# --- promise 1: one owner ----------------------------------------------------------------------------


def contend(
    socket: str,
    history: str,
    counters: str,
    number: int,
    swarm_id: str,
    seed: int,
    operations: int,
    generations: list[list[str]],
    lease_ms: list[int],
    pause_s: float,
) -> None:
    """Claim, renew, complete, release and look at hot tasks, whatever comes of it.

    All processes of a crowd work on the same generation of tasks, and go on to the next one together.

    Args:
        operations: Of the whole crowd.
        lease_ms: To choose from for each claim.
        pause_s: Between two operations, at most.
    """
    rng, together = random.Random(seed), Counters(Path(counters), own=number)
    seen: dict[str, list[int]] = {}
    with connected(socket) as bus, Recorder(Path(history), swarm_id) as recorder:
        while (done := together.sum()) < operations:
            task_id = rng.choice(generations[min(done * len(generations) // operations, len(generations) - 1)])
            tokens = seen.setdefault(task_id, [])
            kind = rng.choices(["claim", "get", "release", "renew", "complete"], [36, 22, 20, 20, 2])[0]
            if kind in ("release", "renew", "complete") and not tokens:
                kind = "claim"
            # Mostly the last token that it saw, which is its own after a claim; now and then one that is long stale.
            token = None if not tokens else tokens[-1] if rng.random() < 0.7 else rng.choice(tokens)
            # Now and then a client that does not wait for its answer.
            timeout = rng.choice([0.001, 0.005]) if rng.random() < 0.02 else None
            together.count()
            operation = _act(bus, recorder, kind, task_id, swarm_id, token, rng.choice(lease_ms), timeout)
            tokens += _tokens_in(operation, by_others=rng.random() < 0.2)
            if pause_s:
                time.sleep(rng.random() * pause_s)


def wander(
    sockets: list[str],
    history: str,
    counters: str,
    number: int,
    swarm_id: str,
    seed: int,
    generations: list[list[str]],
    operations_per_generation: int,
    lease_ms: list[int],
    pause_s: float,
    timeout_s: float,
) -> None:
    """As `contend`, at daemons of several hosts, until told to stop: where one does not answer, at the next.

    Args:
        sockets: Of the daemons, the one to begin with first.
    """
    rng, together = random.Random(seed), Counters(Path(counters), own=number)
    seen: dict[str, list[int]] = {}
    links = [Link(socket, timeout=timeout_s) for socket in sockets]
    with ExitStack() as stack, Recorder(Path(history), swarm_id) as recorder:
        for link in links:
            stack.callback(link.close)
        while not is_told() and (generation := together.sum() // operations_per_generation) < len(generations):
            task_id = rng.choice(generations[generation])
            tokens = seen.setdefault(task_id, [])
            kind = rng.choices(["claim", "get", "release", "renew", "complete"], [36, 22, 20, 20, 2])[0]
            if kind in ("release", "renew", "complete") and not tokens:
                kind = "claim"
            token = None if not tokens else tokens[-1] if rng.random() < 0.7 else rng.choice(tokens)
            together.count()
            operation = _act(links[0], recorder, kind, task_id, swarm_id, token, rng.choice(lease_ms), None)
            tokens += _tokens_in(operation, by_others=rng.random() < 0.2)
            if operation.outcome is Outcome.UNKNOWN or rng.random() < 0.05:
                links.append(links.pop(0))
            time.sleep(rng.random() * pause_s)


def _act(
    bus: Link,
    recorder: Recorder,
    kind: str,
    task_id: str,
    swarm_id: str,
    token: int | None,
    lease_ms: int,
    timeout: float | None,
) -> Operation:
    params: dict[str, Any] = {"task_id": task_id}
    method = "coordinator.get_task"
    if kind == "get":
        params["consistent"] = True  # of a cluster's host, which may look into its copy otherwise
    else:
        params["swarm_id"] = swarm_id
        method = f"coordinator.{kind}_{'claim' if kind == 'renew' else 'task'}"
    if kind == "claim":
        params["lease_ms"] = lease_ms
    elif kind != "get":
        params["token"] = token
    if kind == "complete":
        params["result"] = [swarm_id, token]
    about = {"task_id": task_id, "swarm_id": swarm_id, "token": token, "lease_ms": lease_ms}
    return recorder.ask(kind, partial(bus.call, method, timeout=timeout, **params), **about)


def _tokens_in(operation: Operation, *, by_others: bool) -> list[int]:
    """The token of a claim that was won, or, if asked for, the one that an answer showed of somebody else's."""
    answer = operation.answer
    if operation.kind == "claim" and answer.get("claimed"):
        return [answer["claim"]["token"]]
    shown = answer.get("task") or answer.get("refusal", answer).get("data", {})
    token = shown.get("owner_token", shown.get("token"))
    return [token] if by_others and token is not None else []


# Everything that a holder can do, as the parameters beside task, swarm and token.
ACTS_OF_A_HOLDER: Final[dict[str, dict[str, Any]]] = {
    "coordinator.renew_claim": {},
    "coordinator.report_progress": {"percent": 50},
    "coordinator.complete_task": {"result": "late"},
    "coordinator.fail_task": {"error": "late"},
    "coordinator.release_task": {"note": "late"},
    "governor.track_cost": {"operation": "llm", "cost_usd": "0.01"},
    "governor.reserve_cost": {"operation": "llm", "estimate_usd": "0.01"},
}


def hold(socket: str, history: str, swarm_id: str, task_ids: list[str], lease_ms: int) -> None:
    """Claim tasks, renew the claims until told to go on, then act on each with the token that it got."""
    with connected(socket) as bus, Recorder(Path(history), swarm_id) as recorder:
        tokens = {}
        for task_id in task_ids:
            answer = bus.call("coordinator.claim_task", task_id, swarm_id, 0, lease_ms)
            tokens[task_id] = answer["claim"]["token"]
        say(tokens)
        renewals = itertools.cycle(tokens.items())
        while not is_told():
            task_id, token = next(renewals)
            # The one that meets the stop may come too late.
            recorder.ask("renewal", partial(bus.call, "coordinator.renew_claim", task_id, swarm_id, token))
        hear()
        for (task_id, token), (method, more) in zip(tokens.items(), itertools.cycle(ACTS_OF_A_HOLDER.items())):
            params = {"task_id": task_id, "swarm_id": swarm_id, "token": token, **more}
            recorder.ask(method, partial(bus.call, method, **params), task_id=task_id, token=token)


def race(socket: str, swarms: list[list[str]]) -> None:
    """For each task that it is told of: claim it at once for all swarms, in a process per list, and say what each heard.

    Forked: 64 interpreters would take longer to start than all the rounds.
    """
    results_read, results_write = os.pipe()
    starts = []
    for names in swarms:
        start_read, start_write = os.pipe()
        starts.append(start_write)
        if not os.fork():
            die_with_parent()
            for descriptor in (*starts, 0):
                os.close(descriptor)
            _racer(socket, names, start_read, results_write)
            os._exit(0)
        os.close(start_read)
    with open(results_read) as results:
        while True:
            task_id = hear()
            for start in starts:
                os.write(start, task_id.encode() + b"\n")
            heard: dict[str, Answer] = {}
            for _ in starts:
                heard |= json.loads(results.readline())
            say(heard)


def _racer(socket: str, names: list[str], start: int, results: int) -> None:
    wires = {name: Wire(socket) for name in names}
    with open(start) as tasks:
        for line in tasks:
            for name, wire in wires.items():
                wire.ask("coordinator.claim_task", task_id=line.strip(), swarm_id=name, lease_ms=600_000)
            heard = {}
            for name, wire in wires.items():
                answer = wire.answer()
                refusal = answer.get("refusal", {"code": None, "data": {}})
                data = answer["claim"] if answer["claimed"] else refusal["data"]
                heard[name] = [refusal["code"], data.get("swarm_id", data.get("owner")), data["token"]]
            # In one write, which the pipe keeps together up to 4 KiB.
            os.write(results, json.dumps(heard).encode() + b"\n")


class Wire:
    """One connection without the client library's patience: what is asked is sent once, answers come when they come."""

    def __init__(self, path: str) -> None:
        self.socket = Socket(AF_UNIX, SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(path)
        self._protocol = Connection()

    def ask(self, method: str, *, key: str | None = None, **params: Any) -> None:
        """Send one request."""
        meta = None if key is None else {"idempotency_key": key}
        self.socket.sendall(self._protocol.request(method, [params], meta)[1])

    def event(self, timeout_s: float) -> Event | None:
        """What comes next, None if nothing does in time."""
        while (event := self._protocol.next_event()) is NEED_DATA:
            if not select.select([self.socket], [], [], timeout_s)[0]:
                return None
            self._protocol.receive_data(self.socket.recv(65536))
        if event is END_OF_STREAM:
            raise ConnectionLost("the daemon closed the connection")
        return event

    def answer(self) -> Answer:
        """The next answer; raises the refusal that it is."""
        while not isinstance(event := self.event(PATIENCE_S), Response):
            if event is None:
                raise DeadlineExceeded("no answer came")
        if event.error is not None:
            raise from_wire(event.error)
        answer: Answer = event.result
        return answer

    def close(self) -> None:
        """Hang up, whatever is under way."""
        self.socket.close()


# --- promise 2: acknowledged means durable -----------------------------------------------------------


def write(socket: str, history: str, counters: str, number: int, swarm_id: str, seed: int) -> None:
    """Do everything that has to be durable, on tasks of its own, until the parent says that it is enough."""
    rng, together = random.Random(seed), Counters(Path(counters), own=number)
    with connected(socket) as bus, Recorder(Path(history), swarm_id) as recorder:
        for n in itertools.count():
            if is_told():
                return
            token = None
            for kind, params in _deeds(rng, swarm_id, f"{swarm_id}-{n}"):
                if "token" in params:
                    params["token"] = token
                done = recorder.ask(kind, partial(bus.call, kind, **params), **params)
                together.count()
                if done.outcome is not Outcome.OK:
                    break
                if kind == "coordinator.claim_task":
                    token = done.answer["claim"]["token"]


def _deeds(rng: random.Random, swarm_id: str, task_id: str) -> Iterator[tuple[str, Answer]]:
    """Methods and parameters of what is done about one task; a token stands for the claim's, which comes later."""
    mine = {"task_id": task_id, "swarm_id": swarm_id, "token": None}
    yield "coordinator.create_task", {"title": "x", "task_id": task_id, "payload": {"secret": rng.getrandbits(32)}}
    yield "coordinator.claim_task", {"task_id": task_id, "swarm_id": swarm_id, "lease_ms": 600_000}
    for _ in range(rng.randrange(3)):
        cost = f"0.{rng.randrange(1_000_000):06}"
        yield "governor.track_cost", {**mine, "operation": "llm", "cost_usd": cost}
    if rng.random() < 0.2:
        yield "coordinator.broadcast", {"topic": "letter", "body": {"about": task_id}, "capabilities": ["letters:read"]}
    if rng.random() < 0.1:
        doomed = f"doomed-{task_id}"
        yield "governor.register_profile", {"swarm_id": doomed, "capabilities": ["hot:task"]}
        yield "governor.trip_circuit_breaker", {"swarm_id": doomed, "reason": "a test"}
    if rng.random() < 0.5:
        yield "coordinator.complete_task", {**mine, "result": rng.getrandbits(32)}
    else:
        yield "coordinator.release_task", {**mine}


# --- promise 3: nothing pushed is lost ---------------------------------------------------------------


def send(socket: str, history: str, counters: str, number: int, name: str, letters: int, readers: list[str]) -> None:
    """Send numbered letters one after the other: to all readers, or now and then a task to one of them."""
    together = Counters(Path(counters), own=number)
    with connected(socket) as bus, Recorder(Path(history), name) as recorder:
        for n in range(letters):
            if n % 10:
                params: Answer = {"topic": "letter", "body": {"from": name, "n": n}, "capabilities": ["letters:read"]}
                recorder.ask("broadcast", partial(bus.call, "coordinator.broadcast", **params), n=n)
            else:
                task_id, reader = f"{name}.{n}", readers[n // 10 % len(readers)]
                recorder.ask("create", partial(bus.call, "coordinator.create_task", title="x", task_id=task_id))
                push = partial(bus.call, "coordinator.push_task_to_swarm", task_id, reader)
                recorder.ask("push", push, n=n, reader=reader)
            together.count()


def listen(socket: str, letters: str, swarm_id: str, after_seq: int, raw: bool) -> None:
    """Note each letter of an inbox in a file as it comes, and acknowledge it a while later, until told that it is enough.

    Args:
        after_seq: Of the last letter that an earlier process noted.
        raw: Not through the client library, which would drop what comes twice.
    """
    file = os.open(letters, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with connected(socket) as bus:
        if after_seq:  # what was noted may not have been acknowledged any more
            bus.call("coordinator.acknowledge", swarm_id, after_seq)
        for letter in (_raw_letters if raw else _letters)(bus, swarm_id, after_seq):
            body = letter["body"]
            name, n = body["task_id"].split(".") if letter["kind"] == "task" else (body["from"], body["n"])
            os.write(file, json.dumps([letter["seq"], name, int(n)]).encode() + b"\n")
            if not letter["seq"] % 16:
                bus.call("coordinator.acknowledge", swarm_id, letter["seq"])


def _letters(bus: Link, swarm_id: str, after_seq: int) -> Iterator[Answer]:
    feed = Feed("inbox", "coordinator.subscribe_inbox", swarm_id=swarm_id, after_seq=after_seq)
    with bus.subscribe(feed, dict) as letters:
        while not is_told():
            with suppress(DeadlineExceeded):
                yield letters.receive(timeout=LOOK_S) or {}


def _raw_letters(bus: Link, swarm_id: str, after_seq: int) -> Iterator[Answer]:
    while not is_told():
        bus.call("daemon.ping")  # it is there again
        with suppress(ConnectionLost, OSError), closing(Wire(bus.socket_path)) as wire:
            wire.ask("coordinator.subscribe_inbox", swarm_id=swarm_id, after_seq=after_seq)
            while not is_told():
                event = wire.event(LOOK_S)
                if isinstance(event, Notification) and event.method == "inbox":
                    for letter in event.params:
                        yield letter
                        after_seq = letter["seq"]


# --- promise 4: money is exact -----------------------------------------------------------------------


def spend(
    socket: str, histories: list[str], counters: str, number: int, name: str, seed: int, purses: list[list[str]]
) -> None:
    """Spend out of purses with as many threads as there are lists of them, each on a connection of its own."""
    together = Counters(Path(counters), own=number)
    with ThreadPoolExecutor(len(purses)) as threads:
        spenders = [
            threads.submit(_spender, socket, path, together, f"{name}-{n}", seed + n, mine)
            for n, (path, mine) in enumerate(zip(histories, purses, strict=True))
        ]
        for spender in spenders:
            spender.result()


def _spender(socket: str, history: str, together: Counters, name: str, seed: int, purses: list[str]) -> None:
    rng = random.Random(seed)
    with connected(socket) as bus, Recorder(Path(history), name) as recorder:

        def ask(method: str, **params: Any) -> Answer:
            together.count()
            operation = recorder.ask(method, partial(bus.call, method, **params), **params)
            return operation.answer if operation.outcome is Outcome.OK else {}

        for purse in purses:
            task_id = f"{purse}.{name}"
            ask("coordinator.create_task", title="x", task_id=task_id, estimate_usd=_some_usd(rng, 200_000))
            # A short lease ends while money is set aside.
            lease_ms = rng.choice([100, 600_000, 600_000])
            claim = ask("coordinator.claim_task", task_id=task_id, swarm_id=purse, lease_ms=lease_ms)
            if not claim.get("claimed"):
                continue
            mine = {"swarm_id": purse, "task_id": task_id, "token": claim["claim"]["token"]}
            for n in range(rng.randrange(1, 4)):
                estimate = _some_usd(rng, 300_000)
                # The operation's name is the reservation's in the record.
                held = ask("governor.reserve_cost", operation=f"{name}.{n}", estimate_usd=estimate, **mine)
                if held and rng.random() < 0.8:
                    cost = rng.choice([estimate, "0", _some_usd(rng, to_micro_usd(estimate))])
                    settled = {"swarm_id": purse, "reservation_id": held["reservation_id"], "cost_usd": cost}
                    for _ in range(rng.choice([1, 1, 2])):  # a second time is refused
                        ask("governor.settle_cost", **settled)
            end = rng.choice(["coordinator.complete_task", "coordinator.release_task", None])
            if end:
                ask(end, **mine)


def _some_usd(rng: random.Random, most_micro_usd: int) -> str:
    return to_usd(rng.randint(0, most_micro_usd))


# --- promise 5: a tripped breaker stays tripped ------------------------------------------------------


def grab(socket: str, history: str, counters: str, number: int, seed: int, swarms: list[str], task_id: str) -> None:
    """Take what there is for each swarm, by each of the ways in which a task can reach one, until it is stopped."""
    rng, together = random.Random(seed), Counters(Path(counters), own=number)
    with connected(socket) as bus, Recorder(Path(history), task_id) as recorder:
        for swarm_id in swarms:
            together.count()
            while True:
                way = rng.choice(["claim_task", "claim_next", "push_task_to_swarm"])
                params: Answer = {"swarm_id": swarm_id}
                if way != "claim_next":
                    params["task_id"] = task_id
                if way != "push_task_to_swarm":
                    params["lease_ms"] = 600_000
                got = recorder.ask(way, partial(bus.call, f"coordinator.{way}", **params), swarm_id=swarm_id)
                if got.answer.get("claimed"):
                    held = got.answer["claim"]
                    bus.call("coordinator.release_task", held["task_id"], swarm_id, held["token"])
                if got.answer.get("code") == "breaker_tripped":
                    break


ROLES: Final[dict[str, Callable[..., None]]] = {
    role.__name__: role for role in (contend, wander, hold, race, write, send, listen, spend, grab)
}


def die_with_parent() -> None:
    """Have the kernel end this process with the one that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    ROLES[sys.argv[1]](**json.loads(sys.argv[2]))

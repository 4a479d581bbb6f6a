"""Promise 1: a task has one owner, whatever clients, daemon and network do (DESIGN 2)."""

from __future__ import annotations

import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from ifbus.errors import IdempotencyConflict, IfbusError
from ifbus.link import Link
from ifbus.testing import Daemon
from tests.proof import history
from tests.proof.crowd import PATIENCE_S, TICK_MS, Client, Crowd, crowd, read_log, rounds, wait_until
from tests.proof.history import Operation, Recorder
from tests.proof.linearizability import Verdict, check
from tests.proof.records import Proof
from tests.proof.sizes import size
from tests.proof.swarm import Wire

CLIENTS: Final = 8
HOT_TASKS: Final = 3
QUIET_OPERATIONS: Final = 16_000
DISTURBED_OPERATIONS: Final = 4_000
DISTURBANCES: Final = 40
# Of all clients on one task before the crowd goes on to new ones; chance adds a few.
OPERATIONS_PER_TASK: Final = 80
LEASES_MS: Final = [100, 120, 150, 200, 30_000]
HOLDERS: Final = 4
HELD_BY_EACH: Final = 50
# Claims that one stop of the daemon meets.
AT_ONCE: Final = 10
LONGEST_MS: Final = 150
MOST_JUMP_MS: Final = 30 * 86_400_000
# All of them together stay below the days for which a completed task is kept, which are counted by the wall clock.
NEAR_JUMP_MS: Final = 3_600_000
# A gap counts as two ticks (ADR 0003); and the clocks count whole milliseconds.
UNOBSERVED_MS: Final = 2 * TICK_MS + 2


class Contest:
    """Clients that contend for the same hot tasks, and the verdict on what they saw of each."""

    def __init__(self, among: Crowd, rng: random.Random, operations: int, pause_s: float) -> None:
        self.among = among
        self.operations = operations
        self.running: list[Client] = []
        self._rng = rng
        self._pause_s = pause_s
        self._generations = [
            [f"hot-{generation}-{n}" for n in range(HOT_TASKS)]
            for generation in range(-(-operations // (HOT_TASKS * OPERATIONS_PER_TASK)))
        ]
        with among.daemon.client() as bus:
            for n in range(CLIENTS):
                bus.call("governor.register_profile", swarm_id=f"swarm-{n}", capabilities=["hot:task"])
            for task_id in chain(*self._generations):
                bus.call("coordinator.create_task", title=task_id, task_id=task_id)
        for n in range(CLIENTS):
            self.join(n)

    def join(self, n: int) -> None:
        """A process for swarm number `n`, perhaps in place of one that was killed."""
        path = self.among.history()
        client = self.among.start(
            "contend",
            history=str(path),
            counters=str(self.among.counters_path),
            number=self.among.started,
            swarm_id=f"swarm-{n}",
            seed=self._rng.getrandbits(32),
            operations=self.operations,
            generations=self._generations,
            lease_ms=LEASES_MS,
            pause_s=self._pause_s,
        )
        self.running[n : n + 1] = [client]

    @property
    def is_over(self) -> bool:
        """Whether they have done all operations."""
        return self.among.counters.sum() >= self.operations

    def verdicts(self) -> Counter[Verdict]:
        """How many tasks were judged how, once everybody is done; prints the histories that no order explains."""
        for client in self.running:
            client.finish()
        with self.among.daemon.client() as bus, Recorder(self.among.history(), "reader") as recorder:
            for task_id in chain(*self._generations):  # decides what of the unknown was done
                recorder.ask(
                    "get", partial(bus.call, "coordinator.get_task", task_id), task_id=task_id, swarm_id="reader"
                )
        tasks: dict[str, list[Operation]] = defaultdict(list)
        for operation in history.read_all(self.among.directory):
            tasks[operation.about["task_id"]].append(operation)
        verdicts = {task_id: check(operations) for task_id, operations in tasks.items()}
        for task_id, verdict in verdicts.items():
            if verdict is not Verdict.LINEARIZABLE:
                print(task_id, verdict.name, *tasks[task_id], sep="\n  ")
        return Counter(verdicts.values())


@pytest.mark.slow
def test_hot_tasks(tmp_path: Path, proof: Proof, seed: int) -> None:
    """What 8 processes see of hot tasks that they claim, renew, complete and release at once, one order explains."""
    verdicts: Counter[Verdict] = Counter()
    for directory, rng in rounds(tmp_path, seed, size(1, 50, 500)):
        with crowd(directory) as among:
            verdicts += Contest(among, rng, QUIET_OPERATIONS, pause_s=0).verdicts()
    _record(proof, "hot tasks", verdicts, seed)


def _record(proof: Proof, name: str, verdicts: Counter[Verdict], seed: int) -> None:
    tasks, undecided = verdicts.total(), verdicts[Verdict.UNDECIDED]
    assert undecided * 1000 <= tasks, f"{undecided} of {tasks} histories could not be decided"
    figures = {"operations_per_task": OPERATIONS_PER_TASK, "undecided": undecided}
    impossible = verdicts[Verdict.IMPOSSIBLE]
    proof.cases(promise=1, name=name, ran=tasks, violations=impossible, seed=seed, figures=figures)


class Disturber:
    """Stops and kills clients and the daemon, and sets its wall clock, while they work. The mutable state is who is stopped, and
    until when."""

    def __init__(self, contest: Contest, rng: random.Random) -> None:
        self._contest = contest
        self._rng = rng
        self._stopped: dict[Client, float] = {}
        self.kills = self.stops = self.restarts = self.jumps = 0

    def disturb_until_over(self, times: int) -> None:
        """Do something to somebody `times` times, evenly over the operations."""
        contest = self._contest
        for number in range(times):
            due = contest.operations * (number + 1) // (times + 2)
            self._wait_until(lambda due=due: contest.among.counters.sum() >= due)  # type: ignore[misc]
            actions = [self._stop_client, self._kill_client, self._kill_daemon, self._set_clock]
            self._rng.choices(actions, [12, 6, 2, 4])[0]()
        self._wait_until(lambda: contest.is_over)
        for client in self._stopped:
            client.go_on()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        def look() -> bool:
            for client, until in list(self._stopped.items()):
                if time.monotonic() >= until:
                    del self._stopped[client]
                    client.go_on()
            return condition()

        wait_until(look)

    def _stop_client(self) -> None:
        client = self._rng.choice(self._contest.running)
        client.pause()
        # Shorter and longer than the shorter leases.
        self._stopped[client] = time.monotonic() + self._rng.uniform(0.5, 4) * LEASES_MS[0] / 1000
        self.stops += 1

    def _kill_client(self) -> None:
        n = self._rng.randrange(CLIENTS)
        client = self._contest.running[n]
        self._stopped.pop(client, None)
        client.kill()
        self._contest.join(n)
        self.kills += 1

    def _kill_daemon(self) -> None:
        self._contest.among.restart()
        self.restarts += 1

    def _set_clock(self) -> None:
        self._contest.among.clocks.jump(wall_ms=self._rng.choice([-1, 1]) * self._rng.randint(1, NEAR_JUMP_MS))
        self.jumps += 1


@pytest.mark.slow
def test_hot_tasks_under_kills_and_stops(tmp_path: Path, proof: Proof, seed: int) -> None:
    """The same holds while clients are stopped beyond their leases and killed, and the daemon is killed and its clock set."""
    verdicts: Counter[Verdict] = Counter()
    for directory, rng in rounds(tmp_path, seed, size(1, 50, 500)):
        with crowd(directory) as among:
            contest = Contest(among, rng, DISTURBED_OPERATIONS, pause_s=0.02)
            disturber = Disturber(contest, rng)
            disturber.disturb_until_over(DISTURBANCES)
            verdicts += contest.verdicts()
            print(f"{disturber.stops} stops, {disturber.kills} kills of clients, {disturber.restarts} of the daemon")
            print(f"{disturber.jumps} jumps of its clock")
    _record(proof, "hot tasks under kills and stops", verdicts, seed)


@pytest.mark.slow
def test_stale_token(tmp_path: Path, proof: Proof, seed: int) -> None:
    """A holder that was stopped beyond its lease finds its token refused, nothing changed, and the refusal on record."""
    ran = violations = 0
    for directory, rng in rounds(tmp_path, seed, size(1, 25, 250)):
        with crowd(directory) as among, among.daemon.client() as bus:
            held = _holders(among, bus, rng)
            for client in held:
                client.hear()
                client.pause()
            for task_id in chain(*held.values()):
                won = bus.call("coordinator.claim_task", task_id, "rival", 60_000, 600_000)
                assert won["claimed"], won
            before = _state(bus, held)
            for client in held:
                client.say("go on")
                client.go_on()
            for client in held:
                client.finish()
            late = [operation for operation in history.read_all(directory) if operation.kind != "renewal"]
            ran += len(late)
            violations += sum(not _is_witnessed(bus, operation, "stale_token") for operation in late)
            violations += not _is_untouched(before, _state(bus, held))
    proof.cases(promise=1, name="stale token", ran=ran, violations=violations, seed=seed)


def _holders(among: Crowd, bus: Link, rng: random.Random) -> dict[Client, list[str]]:
    """Processes that hold tasks, and the swarm that waits for these."""
    bus.call("governor.register_profile", swarm_id="rival", capabilities=["hot:task"], budget_usd="100")
    held = {}
    for n in range(HOLDERS):
        swarm_id, tasks = f"holder-{n}", [f"held-{n}-{k}" for k in range(HELD_BY_EACH)]
        bus.call("governor.register_profile", swarm_id=swarm_id, capabilities=["hot:task"], budget_usd="100")
        for task_id in tasks:
            bus.call("coordinator.create_task", title=task_id, task_id=task_id, estimate_usd="0.02")
        lease_ms = rng.choice([300, 500])
        path = str(among.history())
        held[among.start("hold", history=path, swarm_id=swarm_id, task_ids=tasks, lease_ms=lease_ms)] = tasks
    return held


def _state(bus: Link, held: dict[Client, list[str]]) -> tuple[list[Any], list[int]]:
    """All that a holder could change: its tasks and everybody's money; and the clocks of the claims, which go on by themselves."""
    tasks = [bus.call("coordinator.get_task", task_id)["task"] for task_id in chain(*held.values())]
    ages_ms = []
    for task in tasks:
        task.pop("lease_left_ms", None)
        clocks = task.pop("clocks")
        ages_ms += [clocks["beat_ms"], clocks["progress_ms"]]
    return [tasks, bus.call("governor.get_budget_report")], ages_ms


def _is_untouched(before: tuple[list[Any], list[int]], after: tuple[list[Any], list[int]]) -> bool:
    """Whether nothing changed and no clock was set back."""
    return before[0] == after[0] and all(earlier <= later for earlier, later in zip(before[1], after[1], strict=True))


def _is_witnessed(bus: Link, operation: Operation, code: str) -> bool:
    """Whether an operation was refused with this code, and the refusal is on record where its receipt says."""
    receipt = operation.answer.get("data", {}).get("receipt")
    if operation.answer.get("code") != code or receipt is None:
        print(operation)
        return False
    [entry] = bus.call("witness.query", after_seq=receipt["seq"] - 1, limit=1)["entries"]
    shown = (entry["op"], entry["outcome"], entry["detail"]["task_id"], entry["detail"]["token"])
    return shown == (operation.kind, code, operation.about["task_id"], operation.about["token"])


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "races"), [(8, 950), (64, 50)])
def test_one_winner(tmp_path: Path, proof: Proof, processes: int, races: int) -> None:
    """Of 64 that claim a task at once one wins, and all others learn in the same reply who it is."""
    swarms = [f"racer-{n}" for n in range(64)]
    ran = violations = 0
    for directory, _ in rounds(tmp_path, 0, size(1, 100, 1_000)):
        with crowd(directory) as among, among.daemon.client() as bus:
            for name in swarms:
                bus.call("governor.register_profile", swarm_id=name, capabilities=["hot:task"])
            racers = among.start("race", swarms=[swarms[n::processes] for n in range(processes)])
            for _ in range(races):
                racers.say(bus.call("coordinator.create_task", title="race")["task"]["task_id"])
                ran += 1
                violations += not _has_one_winner(racers.hear(), swarms)
    proof.cases(promise=1, name=f"one winner of 64 in {processes} processes", ran=ran, violations=violations)


def _has_one_winner(heard: dict[str, list[Any]], swarms: list[str]) -> bool:
    """Whether all were answered, one as the winner, and all were told of the same claim."""
    assert heard.keys() == set(swarms)
    winners = [name for name, (code, owner, _) in heard.items() if code is None and owner == name]
    losers = [name for name, (code, _, _) in heard.items() if code == "already_claimed"]
    claims = {(owner, token) for _, owner, token in heard.values()}
    return len(winners) == 1 and len(losers) == len(swarms) - 1 and len(claims) == 1


@pytest.mark.slow
def test_stopped_daemon(tmp_path: Path, proof: Proof, seed: int) -> None:
    """A daemon that was stopped for ten times the lease ends no claim before it has seen a full lease pass."""
    rng = random.Random(seed)
    ran = violations = 0
    with crowd(tmp_path) as among, among.daemon.client() as bus, ThreadPoolExecutor(AT_ONCE) as threads:
        for name in ("holder", "rival"):
            bus.call("governor.register_profile", swarm_id=name, capabilities=["hot:task"])
        for _ in range(size(3, 30, 300)):
            claims = [_claim_for_a_while(bus, rng.randint(100, LONGEST_MS)) for _ in range(AT_ONCE)]
            waiting = [threads.submit(_wait_for_claim, among, claim["task_id"]) for claim in claims]
            stopped_at_ms, went_on_at_ms = _stop_for(among.daemon, 10 * LONGEST_MS / 1000)
            for claim, won in zip(claims, waiting, strict=True):
                claimed_at_ms = won.result()["claimed_at_ms"]
                # On a busy machine a lease may be over before the daemon is stopped.
                unseen_ms = went_on_at_ms - stopped_at_ms if claimed_at_ms > stopped_at_ms else 0.0
                observed_ms = claimed_at_ms - claim["asked_at_ms"] - unseen_ms
                is_early = observed_ms < claim["lease_ms"] - UNOBSERVED_MS
                if is_early:
                    print(f"{claim['task_id']}: a lease of {claim['lease_ms']} ms ended after {observed_ms:.0f} ms")
                ran += 1
                violations += is_early
    proof.cases(promise=1, name="daemon stopped", ran=ran, violations=violations, seed=seed)


@pytest.mark.slow
def test_clock_jumps(tmp_path: Path, proof: Proof, seed: int) -> None:
    """Whatever is done to the clocks of the host, no claim ends before it was held for its lease, and all end."""
    rng = random.Random(seed)
    ran = violations = 0
    with crowd(tmp_path) as among, among.daemon.client() as bus, ThreadPoolExecutor(AT_ONCE) as threads:
        for name in ("holder", "rival"):
            bus.call("governor.register_profile", swarm_id=name, capabilities=["hot:task"])
        for _ in range(size(3, 30, 300)):
            held: list[tuple[dict[str, Any], float]] = []
            for _ in range(AT_ONCE):
                asked_at = time.monotonic()
                held.append((_claim_for_a_while(bus, rng.randint(100, LONGEST_MS)), asked_at))
            waiting = [threads.submit(_claimed_at, among, claim["task_id"]) for claim, _ in held]
            among.clocks.jump(wall_ms=rng.randint(-MOST_JUMP_MS, MOST_JUMP_MS), boot_ms=rng.choice([0, MOST_JUMP_MS]))
            for (claim, asked_at), won in zip(held, waiting, strict=True):
                held_ms = (won.result() - asked_at) * 1000
                is_early = held_ms < claim["lease_ms"] - UNOBSERVED_MS
                if is_early:
                    print(f"{claim['task_id']}: a lease of {claim['lease_ms']} ms ended after {held_ms:.0f} ms")
                ran += 1
                violations += is_early
    proof.cases(promise=1, name="clock jumps", ran=ran, violations=violations, seed=seed)


def _claimed_at(among: Crowd, task_id: str) -> float:
    _wait_for_claim(among, task_id)
    return time.monotonic()


def _claim_for_a_while(bus: Link, lease_ms: int) -> dict[str, Any]:
    task_id = bus.call("coordinator.create_task", title="held over a stop")["task"]["task_id"]
    asked_at_ms = time.time() * 1000
    claim: dict[str, Any] = bus.call("coordinator.claim_task", task_id, "holder", 0, lease_ms)["claim"]
    return {**claim, "asked_at_ms": asked_at_ms}


def _wait_for_claim(among: Crowd, task_id: str) -> dict[str, Any]:
    with among.daemon.client(timeout=PATIENCE_S) as bus:
        claim: dict[str, Any] = bus.call("coordinator.claim_task", task_id, "rival", 60_000, 600_000)["claim"]
        return claim


def _stop_for(running: Daemon, seconds: float) -> tuple[float, float]:
    """Stop the daemon for at least so long; the epoch milliseconds between which it certainly saw nothing."""
    running.pause()
    os.waitid(os.P_PID, running.pid, os.WSTOPPED)
    stopped_at = time.time()
    wait_until(lambda: time.time() - stopped_at > seconds)
    went_on_at = time.time()
    running.go_on()
    return stopped_at * 1000, went_on_at * 1000


@attrs.frozen(kw_only=True, eq=False)
class Request:
    """A request that changes something, on a task of its own, and another body for the same idempotency key."""

    key: str
    method: str
    params: dict[str, Any]
    other: dict[str, Any]

    @property
    def target(self) -> str:
        """What its record names."""
        return str(self.params["swarm_id" if self.method.startswith("governor.") else "task_id"])


# What a request says beside its task and swarm, and what the other body says instead. Those of a holder come second.
ASKED: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "coordinator.claim_task": ({"lease_ms": 600_000}, {"lease_ms": 500_000}),
    "coordinator.push_task_to_swarm": ({}, {"swarm_id": "other"}),
    "coordinator.complete_task": ({"result": 1}, {"result": 2}),
    "coordinator.release_task": ({"note": "one"}, {"note": "two"}),
    "coordinator.report_progress": ({"percent": 1}, {"percent": 2}),
    "governor.track_cost": ({"operation": "llm", "cost_usd": "0.01"}, {"operation": "llm", "cost_usd": "0.02"}),
    "governor.reserve_cost": (
        {"operation": "llm", "estimate_usd": "0.01"},
        {"operation": "llm", "estimate_usd": "0.02"},
    ),
}
NEED_NO_CLAIM: Final = 2
HOW: Final = ["read and lost", "sent twice at once", "hung up at once"]


def _requests(bus: Link, rng: random.Random, count: int) -> Iterator[Request]:
    """So many requests, ready to be made: their tasks exist, and are claimed where that is needed."""
    for _ in range(count):
        method = rng.choice(list(ASKED))
        key = swarm_id = f"{rng.getrandbits(64):016x}"
        bus.call("governor.register_profile", swarm_id=swarm_id, capabilities=["hot:task"], budget_usd="1")
        task_id = bus.call("coordinator.create_task", title=key)["task"]["task_id"]
        said, other = ASKED[method]
        params = {"task_id": task_id, "swarm_id": swarm_id, **said}
        if method in list(ASKED)[NEED_NO_CLAIM:]:
            params["token"] = bus.call("coordinator.claim_task", task_id, swarm_id, 0, 600_000)["claim"]["token"]
        yield Request(key=key, method=method, params=params, other={**params, **other})


@pytest.mark.slow
def test_reply_lost(tmp_path: Path, proof: Proof, seed: int) -> None:
    """A request whose reply was lost has, sent again with its key, the effect of one and the same answer; with another body none."""
    ran = violations = 0
    for directory, rng in rounds(tmp_path, seed, size(1, 40, 400)):
        answers: dict[Request, list[dict[str, Any]]] = {}
        with crowd(directory) as among:
            for part in range(5):
                with among.daemon.client() as bus:
                    bus.call("governor.register_profile", swarm_id="other", capabilities=["hot:task"])
                    requests = list(_requests(bus, rng, 100))
                    for request in requests:
                        answers[request] = _ask_and_lose(among, request, rng.choice(HOW))
                if part % 2:
                    among.restart()
                with among.daemon.client() as bus:
                    for request in requests:
                        again = partial(bus.call, request.method, idempotency_key=request.key, **request.params)
                        answers[request].append(_answer(again))
                        violations += not _refuses_other_body(bus, request)
            with among.daemon.client() as bus:
                done = _done(bus)
        for request, heard in answers.items():
            is_one = _are_of_one(heard, done[request.method, request.target])
            if not is_one:
                print(request, heard, done[request.method, request.target], sep="\n  ")
            ran += 1
            violations += not is_one
    proof.cases(promise=1, name="reply lost", ran=ran, violations=violations, seed=seed)


def _done(bus: Link) -> dict[tuple[str, str], list[int]]:
    """The revisions at which something was done, by method and target."""
    done: dict[tuple[str, str], list[int]] = defaultdict(list)
    for entry in read_log(bus):
        if entry["outcome"] == "ok":
            done[entry["op"], entry["target"]].append(entry["revision"])
    return done


def _ask_and_lose(among: Crowd, request: Request, how: str) -> list[dict[str, Any]]:
    """Make a request and lose the reply; what the replies were, if any came."""
    wires = [Wire(str(among.daemon.socket)) for _ in range(2 if how == "sent twice at once" else 1)]
    try:
        for wire in wires:
            wire.ask(request.method, key=request.key, **request.params)
        return [] if how == "hung up at once" else [_answer(wire.answer) for wire in wires]
    finally:
        for wire in wires:
            wire.close()


def _answer(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer to a request, or the refusal that it must not be."""
    try:
        return ask()
    except IfbusError as refusal:
        return {"receipt": {}, "refusal": refusal.to_wire()}


def _refuses_other_body(bus: Link, request: Request) -> bool:
    """Whether another body under the same key is refused, and that is on record."""
    try:
        bus.call(request.method, idempotency_key=request.key, **request.other)
    except IdempotencyConflict as conflict:
        [entry] = bus.call("witness.query", after_seq=conflict.data["receipt"]["seq"] - 1, limit=1)["entries"]
        return bool(entry["outcome"] == "idempotency_conflict")
    except IfbusError:
        pass  # taken for a request of its own
    return False


def _are_of_one(heard: list[dict[str, Any]], done_at: list[int]) -> bool:
    """Whether these answers to one request tell of the one time that it was done, all but the first as replays."""
    figures = [
        (answer["receipt"].get("revision"), answer.get("claim", {}).get("token"), answer.get("reservation_id"))
        for answer in heard
    ]
    first_heard = sum(not answer["receipt"].get("replayed") for answer in heard)
    # The one that did it may be lost with its connection; then only the replay was heard.
    return len(done_at) == 1 and first_heard <= 1 and figures == [(done_at[0], *figures[0][1:])] * len(heard)

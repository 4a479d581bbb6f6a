"""Promises 1, 2 and 9 over hosts: three daemons, three etcd nodes, three NATS nodes, and all of them fail in turn.

32 swarms, each a process of its own, contend for tasks through whatever daemon answers. Meanwhile daemons, servers and clients are
killed, stopped and cut off, each at a time that the seed decides. What they saw must be explained by one order of events for each task,
what was acknowledged must be on record, and in the end every task is brought to its final state.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from ifbus.errors import IfbusError
from ifbus.link import Link
from tests.hosts import Hosts, hosts
from tests.proof import history
from tests.proof.crowd import PATIENCE_S, Client, rounds, wait_until
from tests.proof.history import Operation, Outcome, Recorder
from tests.proof.linearizability import Verdict, check
from tests.proof.records import Proof
from tests.proof.sizes import size
from tests.proof.swarm import COUNTERS

HOSTS: Final = 3
NODES: Final = 3
# The checker decides what eight see of one task.
GROUPS: Final = 4
SWARMS_PER_GROUP: Final = 8
HOT_TASKS: Final = 3
# As many as the faults last for, and a few that are left to be finished.
GENERATIONS: Final = size(8, 20, 40)
# Of a group on its hot tasks before it goes on to new ones.
OPERATIONS_PER_GENERATION: Final = 120
# Whole seconds, as etcd counts them.
LEASES_MS: Final = [1_000, 2_000, 4_000]
PAUSE_S: Final = 0.3
TIMEOUT_S: Final = 3.0
FAULTS_PER_S: Final = 1.2


@attrs.frozen(order=True)
class Fault:
    """Something that is broken for a while."""

    at_s: float
    kind: str
    number: int
    """Of the host, or node."""
    for_s: float


KINDS: Final = [
    "daemon killed",
    "daemon stopped",
    "host cut off from etcd",
    "host cut off from NATS",
    "etcd node killed",
    "etcd node stopped",
    "etcd node cut off from daemons",
    "NATS node killed",
    "NATS node stopped",
    "client killed",
]


def plan(rng: random.Random, duration_s: float) -> list[Fault]:
    """What will break and when: never two etcd nodes at a time, as then there is nobody to decide."""
    faults: list[Fault] = []
    etcd_free_s = 0.0
    busy_s: dict[tuple[str, int], float] = {}
    for n in range(int(duration_s * FAULTS_PER_S)):
        at_s = (n + rng.random()) / FAULTS_PER_S
        kind, number, for_s = rng.choice(KINDS), rng.randrange(NODES), rng.uniform(0.2, 2.5)
        place = (kind.split()[0], number)
        if at_s < busy_s.get(place, 0.0) or (kind.startswith("etcd") and at_s < etcd_free_s):
            continue
        busy_s[place] = at_s + for_s + 1.0
        if kind.startswith("etcd"):
            etcd_free_s = at_s + for_s + 1.5  # it needs a moment to catch up
        faults.append(Fault(at_s, kind, number, for_s))
    return faults


class Contest:
    """The swarms around the hosts, what is done to all of them, and what came of it."""

    def __init__(self, among: Hosts, rng: random.Random, directory: Path) -> None:
        self.among = among
        self._rng = rng
        self._directory = directory
        self._histories = 0
        self.groups = [
            [[f"g{group}-{generation}-{n}" for n in range(HOT_TASKS)] for generation in range(GENERATIONS)]
            for group in range(GROUPS)
        ]
        self.tasks = list(chain(*chain(*self.groups)))
        self.clients: dict[tuple[int, int], Client] = {}
        self._joined = Counter[int]()
        self.done: Counter[str] = Counter()

    def prepare(self) -> None:
        """Make the swarms and the tasks known, and start everybody."""
        with ExitStack() as stack:
            links = [stack.enter_context(host.client(timeout=PATIENCE_S)) for host in self.among.hosts]
            calls = [partial(self._create, links[n % HOSTS], task_id) for n, task_id in enumerate(self.tasks)]
            for name in [f"swarm-{group}-{n}" for group in range(GROUPS) for n in range(SWARMS_PER_GROUP)]:
                calls.append(
                    partial(links[0].call, "governor.register_profile", swarm_id=name, capabilities=["hot:task"])
                )
            with ThreadPoolExecutor(16) as threads:
                list(threads.map(lambda call: call(), calls))
        for group in range(GROUPS):
            (self._directory / f"counters-{group}").write_bytes(bytes(8 * COUNTERS))
        for group in range(GROUPS):
            for n in range(SWARMS_PER_GROUP):
                self.join(group, n)

    def _create(self, link: Link, task_id: str) -> None:
        link.call("coordinator.create_task", title=task_id, task_id=task_id)

    def join(self, group: int, n: int) -> None:
        """A process for a swarm, perhaps in place of one that was killed."""
        sockets = [str(host.daemon.socket) for host in self.among.hosts]
        first = n % HOSTS
        self._joined[group] += 1
        self.clients[group, n] = Client(
            "wander",
            {
                "sockets": sockets[first:] + sockets[:first],
                "history": str(self.history()),
                "counters": str(self._directory / f"counters-{group}"),
                "number": self._joined[group],
                "swarm_id": f"swarm-{group}-{n}",
                "seed": self._rng.getrandbits(32),
                "generations": self.groups[group],
                "operations_per_generation": OPERATIONS_PER_GENERATION,
                "lease_ms": LEASES_MS,
                "pause_s": PAUSE_S,
                "timeout_s": TIMEOUT_S,
            },
        )

    def history(self) -> Path:
        """A file for the history of one more process."""
        self._histories += 1
        return self._directory / f"{self._histories}.history"

    # --- what is done to them ------------------------------------------------------------------------

    def disturb(self, faults: list[Fault]) -> None:
        """Break things as planned, and mend them again."""
        began_s = time.monotonic()
        mendings: list[tuple[float, int, Callable[[], None]]] = []
        for order, fault in enumerate(faults):
            self._wait(began_s, fault.at_s, mendings)
            mend = self._break(fault)
            self.done[fault.kind] += 1
            heapq.heappush(mendings, (fault.at_s + fault.for_s, order, mend))
        self._wait(began_s, float("inf"), mendings)

    def _wait(self, began_s: float, until_s: float, mendings: list[tuple[float, int, Callable[[], None]]]) -> None:
        while mendings and mendings[0][0] <= until_s:
            due_s, _, mend = heapq.heappop(mendings)
            time.sleep(max(0.0, began_s + due_s - time.monotonic()))
            mend()
        if until_s != float("inf"):
            time.sleep(max(0.0, began_s + until_s - time.monotonic()))

    def _break(self, fault: Fault) -> Callable[[], None]:
        """Do it; what undoes it."""
        host, etcd, nats = self.among[fault.number], self.among.etcd[fault.number], self.among.nats[fault.number]
        match fault.kind:
            case "daemon killed":
                host.daemon.kill()
                return partial(self._start, fault.number)
            case "daemon stopped":
                host.daemon.pause()
                return host.daemon.go_on
            case "host cut off from etcd":
                host.part(from_etcd=True)
                return host.heal
            case "host cut off from NATS":
                host.part(from_nats=True)
                return host.heal
            case "etcd node killed":
                etcd.kill()
                return partial(etcd.start, wait=False)
            case "etcd node stopped":
                etcd.pause()
                return etcd.go_on
            case "etcd node cut off from daemons":
                ways = [each.to_etcd[fault.number] for each in self.among.hosts]
                for way in ways:
                    way.cut()
                return lambda: [way.heal() for way in ways] and None
            case "NATS node killed":
                nats.kill()
                return partial(nats.start, wait=False)
            case "NATS node stopped":
                nats.pause()
                return nats.go_on
            case "client killed":
                group, n = self._rng.choice(list(self.clients))
                self.clients[group, n].kill()
                return partial(self.join, group, n)
        raise AssertionError(fault)

    def _start(self, number: int) -> None:
        """Start a daemon; with a leader just being elected, it may take a second time."""
        self.among[number].heal()  # it needs etcd to start, and while this waits nothing else is mended
        for _ in range(3):
            try:
                self.among[number].daemon.start()
                return
            except IfbusError as error:
                print("a start failed:", error.message[-500:])
                self.among[number].daemon.kill()
        raise AssertionError(f"daemon {number} does not start")

    # --- what came of it -----------------------------------------------------------------------------

    def finish(self) -> None:
        """Let everybody end, and bring every task to its final state."""
        for client in self.clients.values():
            with suppress(BrokenPipeError):  # it has done all there was to do
                client.say("stop")
        for client in self.clients.values():
            client.finish()
        for host in self.among.hosts:
            with host.client(timeout=PATIENCE_S) as link:
                wait_until(lambda link=link: _is_well(link))  # type: ignore[misc]
        with ThreadPoolExecutor(HOSTS) as threads:
            for _ in threads.map(self._complete, range(HOSTS)):
                pass

    def _complete(self, number: int) -> None:
        with (
            self.among[number].client(timeout=PATIENCE_S) as link,
            Recorder(self.history(), f"finisher-{number}") as recorder,
        ):
            name = f"finisher-{number}"
            link.call("governor.register_profile", swarm_id=name, capabilities=["hot:task"])
            for task_id in self.tasks[number::HOSTS]:
                about = {"task_id": task_id, "swarm_id": name, "lease_ms": 60_000}
                claimed = recorder.ask(
                    "claim", partial(link.call, "coordinator.claim_task", wait_ms=30_000, **about), **about
                )
                if claimed.answer.get("claimed"):
                    token = claimed.answer["claim"]["token"]
                    about = {"task_id": task_id, "swarm_id": name, "token": token}
                    complete = partial(link.call, "coordinator.complete_task", result=[name, token], **about)
                    recorder.ask("complete", complete, **about)
                look = partial(link.call, "coordinator.get_task", task_id=task_id, consistent=True)
                recorder.ask("get", look, task_id=task_id, swarm_id=name)

    def operations(self) -> dict[str, list[Operation]]:
        """What everybody saw, by task."""
        tasks: dict[str, list[Operation]] = defaultdict(list)
        for operation in history.read_all(self._directory):
            tasks[operation.about["task_id"]].append(_without_times(operation))
        return tasks


def _is_well(link: Link) -> bool:
    status = link.call("daemon.status")
    return status["store"]["state"] == "ok" and bool(status["bus"]["connected"])


def _without_times(operation: Operation) -> Operation:
    """Leases may end early: etcd before 3.5.13 revokes some of them at a change of leader. What a token allows is judged all the same."""
    answer = dict(operation.answer)
    refusal = dict(answer.get("refusal", answer))
    if "data" in refusal:
        refusal["data"] = {**refusal["data"], "lease_left_ms": 0}
        answer = {**answer, "refusal": refusal} if "refusal" in answer else refusal
    for place in ("claim", "task"):
        if place in answer:
            answer[place] = {**answer[place], "lease_ms": 0, "lease_left_ms": 0}
    if "lease_ms" in answer:
        answer["lease_ms"] = 0
    return attrs.evolve(operation, about={**operation.about, "lease_ms": 0}, answer=answer)


def _lost(tasks: dict[str, list[Operation]], among: Hosts) -> list[str]:
    """Acknowledged changes that do not stand exactly once in the record of each host, and entries in which the records differ."""
    acknowledged: set[tuple[str, str, int]] = set()
    for task_id, operations in tasks.items():
        for operation in operations:
            method = {"claim": "coordinator.claim_task"}.get(operation.kind, f"coordinator.{operation.kind}_task")
            if operation.outcome is not Outcome.OK or operation.kind not in ("claim", "release", "complete"):
                continue
            if operation.kind == "claim" and not operation.answer["claimed"]:
                continue
            receipt = operation.answer["receipt"]
            if not receipt.get("replayed"):
                acknowledged.add((method, task_id, receipt["revision"]))
    newest = max(revision for _, _, revision in acknowledged)
    faults = []
    records = []
    for number, host in enumerate(among.hosts):
        with host.client(timeout=PATIENCE_S) as link:
            wait_until(lambda link=link: link.call("daemon.status")["store"]["record_revision"] >= newest)  # type: ignore[misc]
            entries = list(_recorded(link))
        revisions = [entry["revision"] for entry in entries]
        if revisions != sorted(revisions):
            faults.append(f"host {number}: its record is out of order")
        known = Counter((entry["op"], entry["target"], entry["revision"]) for entry in entries)
        faults += [f"host {number}: {known[key]} times {key}" for key in acknowledged if known[key] != 1]
        # Each has a place of its own in each record, and with equal revisions they may stand in another order.
        records.append(
            Counter(repr({**entry, "seq": 0, "hash": ""}) for entry in entries if entry["revision"] <= newest)
        )
    for number, record in enumerate(records):
        faults += [f"host {number}: it lacks {entry}" for entry in records[number - 1] - record]
    return faults


def _recorded(link: Link) -> Iterator[dict[str, Any]]:
    """The changes in the record of a host; refusals stand in that of the host that refused alone."""
    after = 0
    while page := link.call("witness.query", after_seq=after, limit=200)["entries"]:
        after = page[-1]["seq"]
        yield from (entry for entry in page if entry["outcome"] == "ok")


@contextmanager
def _contest(directory: Path, rng: random.Random) -> Iterator[Contest]:
    with hosts(directory / "hosts", HOSTS, etcd=NODES, nats=NODES) as among:
        made = Contest(among, rng, directory)
        try:
            made.prepare()
            yield made
        except BaseException:
            for host in among.hosts:
                print(host.daemon.log()[-4_000:])
            raise
        finally:
            for client in made.clients.values():
                client.kill()


@pytest.mark.slow
def test_a_cluster_that_breaks_in_turn(tmp_path: Path, proof: Proof, seed: int) -> None:
    """While daemons, etcd and NATS are killed, stopped and cut off, each task has one owner, and nothing acknowledged is lost."""
    verdicts: Counter[Verdict] = Counter()
    figures: Counter[str] = Counter()
    lost: list[str] = []
    unfinished: list[str] = []
    for directory, rng in rounds(tmp_path, seed, size(1, 1, 10)):
        (directory / "hosts").mkdir()
        with _contest(directory, rng) as contest:
            contest.disturb(plan(rng, size(20, 60, 120)))
            contest.finish()
            tasks = contest.operations()
            lost += _lost(tasks, contest.among)
            for task_id, operations in tasks.items():
                verdict = check(operations)
                verdicts[verdict] += 1
                if verdict is not Verdict.LINEARIZABLE:
                    print(task_id, verdict.name, *operations, sep="\n  ")
                if operations[-1].answer.get("task", {}).get("state") != "completed":
                    unfinished.append(task_id)
            figures.update(contest.done)
            everything = list(chain(*tasks.values()))
            figures["operations"] += len(everything)
            figures["unknown"] += sum(operation.outcome is Outcome.UNKNOWN for operation in everything)
    print(dict(figures))
    assert not unfinished
    violations = verdicts[Verdict.IMPOSSIBLE] + len(lost)
    if lost:
        print("lost:", *lost[:20], sep="\n  ")
    undecided = verdicts[Verdict.UNDECIDED]
    assert undecided * 20 <= verdicts.total(), f"{undecided} of {verdicts.total()} histories could not be decided"
    measured: dict[str, Any] = {name.replace(" ", "_"): number for name, number in figures.items()}
    proof.cases(
        promise=1,
        name="three hosts that fail in turn",
        ran=verdicts.total(),
        violations=violations,
        seed=seed,
        figures={**measured, "undecided": undecided},
    )

"""Promise 5: a tripped breaker stays tripped until a person resets it, and nothing is assigned to its swarm (DESIGN 2)."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ifbus.errors import BreakerTripped, IfbusError
from ifbus.link import Link
from tests.proof import history
from tests.proof.crowd import Crowd, crowd, read_log, rounds, wait_until
from tests.proof.records import Proof
from tests.proof.sizes import size

GRABBERS: Final = 2
RACES: Final = 1_000
# Swarms that one kill meets.
AT_ONCE: Final = 50
DAY_MS: Final = 86_400_000
CAUSES: Final = ["operator", "budget", "failures"]


def _trip(bus: Link, swarm_id: str, cause: str) -> int:
    """Trip a swarm's breaker; the revision at which it is tripped."""
    match cause:
        case "operator":
            answer = bus.call("governor.trip_circuit_breaker", swarm_id, "a test")
        case "budget":
            answer = bus.call("governor.track_cost", swarm_id, "llm", "1")
        case _:
            answer = {}
            for _ in range(3):
                task_id = bus.call("coordinator.create_task", title="x")["task"]["task_id"]
                token = bus.call("coordinator.claim_task", task_id, swarm_id)["claim"]["token"]
                answer = bus.call("coordinator.fail_task", task_id, swarm_id, token, "a test")
    revision: int = answer["receipt"]["revision"]
    return revision


@pytest.mark.slow
def test_no_assignment_after_the_trip(tmp_path: Path, proof: Proof, seed: int) -> None:
    """Whoever races with a trip: no task reaches the swarm after its revision, by claim, by choice or by push."""
    ran = violations = assignments = 0
    for directory, rng in rounds(tmp_path, seed, size(1, 50, 500)):
        with crowd(directory) as among, among.daemon.client() as bus:
            tripped_at = _race(among, bus, rng)
            late = [*_heard_after(directory, tripped_at), *_recorded_after(read_log(bus), tripped_at)]
        print(*late, sep="\n")
        assignments += sum(1 for _ in _assignments(directory))
        ran += len(tripped_at)
        violations += len({swarm_id for swarm_id, _ in late})
    assert assignments > ran, "the grabbers got too little for a race"
    figures = {"assignments": assignments}
    proof.cases(promise=5, name="races with a trip", ran=ran, violations=violations, seed=seed, figures=figures)


def _race(among: Crowd, bus: Link, rng: random.Random) -> dict[str, int]:
    """Trip swarm after swarm while all grab what they can for it; the revisions of the trips."""
    swarms = [f"swarm-{n}" for n in range(RACES)]
    for n in range(GRABBERS):
        bus.call("coordinator.create_task", title="x", task_id=f"prey-{n}")
    for swarm_id in swarms:
        bus.call("governor.register_profile", swarm_id=swarm_id, capabilities=["hot:task"], budget_usd="1")
    for n in range(GRABBERS):
        among.start(
            "grab",
            history=str(among.history()),
            counters=str(among.counters_path),
            number=n,
            seed=rng.getrandbits(32),
            swarms=swarms,
            task_id=f"prey-{n}",
        )
    tripped_at = {}
    for number, swarm_id in enumerate(swarms):
        all_there = GRABBERS * (number + 1)
        wait_until(lambda all_there=all_there: among.counters.sum() >= all_there)  # type: ignore[misc]
        for _ in range(rng.randrange(4)):
            bus.call("daemon.ping")
        tripped_at[swarm_id] = _trip(bus, swarm_id, rng.choice(CAUSES[:2]))
    for client in among.clients:
        client.finish()
    return tripped_at


def _assignments(directory: Path) -> Iterator[tuple[str, int]]:
    """Every swarm that was told of a task for it, with the revision."""
    for operation in history.read_all(directory):
        answer = operation.answer
        if answer.get("claimed") or "seq" in answer:
            yield operation.about["swarm_id"], answer["receipt"]["revision"]


def _heard_after(directory: Path, tripped_at: dict[str, int]) -> Iterator[tuple[str, str]]:
    for swarm_id, revision in _assignments(directory):
        if revision > tripped_at[swarm_id]:
            yield swarm_id, f"was given a task at {revision}, tripped at {tripped_at[swarm_id]}"


def _recorded_after(log: list[dict[str, Any]], tripped_at: dict[str, int]) -> Iterator[tuple[str, str]]:
    for entry in log:
        swarm_id = entry.get("detail", {}).get("swarm")
        is_assignment = entry["op"] in ("coordinator.claim_task", "coordinator.push_task_to_swarm")
        if (
            is_assignment
            and entry["outcome"] == "ok"
            and entry["revision"] > tripped_at.get(swarm_id, entry["revision"])
        ):
            yield swarm_id, f"tripped at {tripped_at[swarm_id]}: {entry}"


@pytest.mark.slow
def test_stays_tripped(tmp_path: Path, proof: Proof, seed: int) -> None:
    """A breaker that tripped for whatever reason is tripped after a kill, under another policy, in a new incarnation, at another
    time and in an old copy of the state."""
    ran = violations = 0
    for directory, rng in rounds(tmp_path, seed, size(1, 25, 250)):
        with crowd(directory) as among:
            for number in range(4):
                swarms, bait = [f"swarm-{number}-{n}" for n in range(AT_ONCE)], f"bait-{number}"
                with among.daemon.client() as bus:
                    _trip_all(bus, swarms, bait, rng)
                stopped = set(swarms)
                for happens in (_kill_and_start_otherwise, _register_anew, _set_clocks, _go_back_to_a_copy):
                    happens(among, swarms, rng)
                    with among.daemon.client() as bus:
                        stopped &= {swarm_id for swarm_id in swarms if _is_stopped(bus, swarm_id, bait)}
                ran += AT_ONCE
                violations += AT_ONCE - len(stopped)
                if len(stopped) == AT_ONCE:
                    assert _works_after_reset(among, swarms[0], bait)
    proof.cases(promise=5, name="stays tripped", ran=ran, violations=violations, seed=seed)


def _works_after_reset(among: Crowd, swarm_id: str, bait: str) -> bool:
    """Whether it was the breaker, and nothing else, that stopped a swarm."""
    with among.daemon.client() as bus:
        reset: dict[str, Any] = {"swarm_id": swarm_id, "reason": "enough", "budget_usd": "100"}
        bus.call("governor.reset_circuit_breaker", **reset)
        return bool(bus.call("coordinator.claim_task", bait, swarm_id)["claimed"])


def _trip_all(bus: Link, swarms: list[str], bait: str, rng: random.Random) -> None:
    bus.call("coordinator.create_task", title="x", task_id=bait)
    for swarm_id in swarms:
        profile: dict[str, Any] = {"swarm_id": swarm_id, "capabilities": ["hot:task"], "budget_usd": "1"}
        bus.call("coordinator.register_swarm", **profile, lease_ms=600_000)
        _trip(bus, swarm_id, rng.choice(CAUSES))


def _set_clocks(among: Crowd, _swarms: list[str], rng: random.Random) -> None:
    """Set the wall clock by up to a month, either way, and let the host sleep for up to a day."""
    among.clocks.jump(wall_ms=rng.randint(-30 * DAY_MS, 30 * DAY_MS), boot_ms=rng.randint(0, DAY_MS))


def _go_back_to_a_copy(among: Crowd, swarms: list[str], rng: random.Random) -> None:
    """Restore a copy of the state directory that knows nothing of what was done last."""
    state, copy = among.daemon.state_dir, among.directory / "copy"
    among.restart(between=lambda: shutil.copytree(state, copy))
    _register_anew(among, swarms, rng)

    def restore() -> None:
        shutil.rmtree(state)
        copy.rename(state)

    among.restart(between=restore)


def _kill_and_start_otherwise(among: Crowd, _swarms: list[str], _rng: random.Random) -> None:
    """Kill the daemon, and start it with a policy by which no failures would have tripped; for this one run."""
    config = among.directory / "ifbusd.toml"
    usual = config.read_text()
    config.write_text(f"{usual}[governor]\nfailures_to_trip = 100\n")
    among.restart()
    config.write_text(usual)


def _register_anew(among: Crowd, swarms: list[str], _rng: random.Random) -> None:
    with among.daemon.client() as bus:
        for swarm_id in swarms:
            bus.call("coordinator.register_swarm", swarm_id=swarm_id, capabilities=["hot:task"], lease_ms=600_000)
            bus.call("governor.register_profile", swarm_id=swarm_id, capabilities=["hot:task", "cold:task"])


def _is_stopped(bus: Link, swarm_id: str, task_id: str) -> bool:
    """Whether a swarm is shown as tripped and refused for it by every way to a task, and to money."""
    ways: list[tuple[str, dict[str, Any]]] = [
        ("coordinator.claim_task", {"task_id": task_id, "swarm_id": swarm_id}),
        ("coordinator.claim_next", {"swarm_id": swarm_id}),
        ("coordinator.push_task_to_swarm", {"task_id": task_id, "swarm_id": swarm_id}),
    ]
    [report] = bus.call("governor.get_budget_report", swarm_id)["reports"]
    stopped = [report["breaker"] == "tripped"]
    for method, params in ways:
        try:
            bus.call(method, **params)
        except IfbusError as refusal:
            stopped.append(isinstance(refusal, BreakerTripped))
        else:
            stopped.append(False)
    return all(stopped)

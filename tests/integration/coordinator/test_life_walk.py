"""A task's life under random operations, several daemons and clocks that jump: whatever happens, the table knows it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from ifbus.errors import IfbusError
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import Answer, World, open_world, wall_ms

HOUR_MS = 3_600_000
# What happens to a task without a call that names it.
_BY_ITSELF = {
    "dependencies_met", "dependency_requeued", "time_reached", "lose", "cancel", "expire", "remove",
}  # fmt: skip
_CALLS = ("claim", "complete", "fail", "release", "block", "unblock", "pause", "resume", "cancel", "requeue")


def by_themselves(states: set[str]) -> set[str]:
    """These, and all that they may become without a call."""
    reached, left = set(states), list(states)
    while left:
        state = left.pop()
        for (source, event), targets in life.TABLE.items():
            if source == state and event in _BY_ITSELF:
                left += set(targets) - reached
                reached |= set(targets)
    return reached


def by(event: str, states: set[str]) -> set[str]:
    """What the table lets them become by one event."""
    return {target for state in states for target in life.TABLE.get((state, event), ())}


@attrs.define
class Walk:
    """A world, and how each task was seen last."""

    world: World
    seen: dict[str, str] = attrs.field(factory=dict)
    tokens: dict[str, int] = attrs.field(factory=dict)
    blockers: dict[str, str] = attrs.field(factory=dict)

    async def look(self) -> dict[str, str]:
        """The states now, on the board and by the store: the same."""
        states = dict.fromkeys(self.seen, life.NONE)
        listed = (await self.world.it.list_tasks(self.world.me, limit=200))["tasks"]
        states |= {task["task_id"]: task["state"] for task in listed}
        return states

    async def until_the_board_agrees(self) -> None:
        """Return once the board shows what the store says; what goes on by itself may come in between."""
        with trio.fail_after(60):
            while {name: entry.shown for name, entry in self.world.it.board.tasks.items()} != {
                name: state for name, state in (await self.look()).items() if state
            }:
                await trio.sleep(0.01)

    async def act(self, event: str, task_id: str) -> None:
        """One call on one task; the refusals are the rules' own."""
        it, me, token = self.world.it, self.world.me, self.tokens.get(task_id, 1)
        if event == "claim":
            answer = await it.claim_task(me, task_id, "docs", lease_ms=2_000)
            if not answer["claimed"]:
                raise life.NotReady("somebody holds it")
            self.tokens[task_id] = answer["claim"]["token"]
        elif event == "complete":
            await it.complete_task(me, task_id, "docs", token)
        elif event == "fail":
            await it.fail_task(me, task_id, "docs", token, "broke")
        elif event == "release":
            await it.release_task(me, task_id, "docs", token)
        elif event == "block":
            info = {"reason": "stuck", "task_id": task_id, "token": token, "release": True}
            self.blockers[task_id] = (await it.detect_blocker(me, "docs", info))["blocker"]["blocker_id"]
        elif event == "unblock":
            await it.resolve_blocker(me, self.blockers.get(task_id, "B-none"))
        elif event == "pause":
            await it.pause(me, "task", task_id)
        elif event == "resume":
            await it.resume(me, "task", task_id)
        elif event == "cancel":
            await it.cancel_task(me, task_id)
        else:
            await it.requeue_task(me, task_id)

    async def step(self, event: str, task_id: str) -> None:
        """Do it, and hold what came of it against the table."""
        before = self.seen[task_id]
        try:
            await self.act(event, task_id)
            done = True
        except IfbusError:
            done = False
        now = await self.look()
        for name, state in now.items():
            could = by_themselves({self.seen[name]})
            if name == task_id and done:
                # Pausing and resuming what is held, blocked or not paused changes nothing that shows; nor does a second end.
                quiet = event in ("pause", "resume", "cancel", "complete", "fail", "claim", "unblock")
                could = by_themselves(by(event, could) | (could if quiet else set()))
            assert state in could, f"{event} {task_id}: {name} {self.seen[name]} -> {state}"
        assert not done or before != life.NONE
        self.seen = now


OPTIONS: list[Answer] = [
    {},
    {"max_attempts": 2, "backoff": {"base_ms": 3_000}},
    {"backoff": {"base_ms": 1_000}},
    {"deadline": 6_000},
    {"not_before": 5_000},
    {"retention_ms": 2_000},
    {"unique_key": "k"},
    {"max_attempts": 1, "deadline": 20_000, "not_before": 2_000},
]
# What is tried most in each state, so that the walk comes far; the rest is tried too, and refused.
_LIKELY = {
    life.READY: ("claim", "claim", "claim", "pause"),
    life.CLAIMED: ("fail", "fail", "release", "block", "complete"),
    life.BLOCKED: ("unblock",),
    life.PAUSED: ("resume",),
    life.NONE: ("claim",),
    life.WAITING: ("claim", "pause"),
    life.SCHEDULED: ("claim", "pause"),
}
_STEPS = 150


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_nothing_happens_that_the_table_lacks(tmp_path: Path, seed: int, autojump_clock: object) -> None:
    """Random operations on a real coordinator: after each, every task is where the table lets it be, on the board as in the store."""
    chance = random.Random(seed)
    async with open_world(tmp_path) as world:
        await world.profile("docs")
        walk = Walk(world)
        for _ in range(_STEPS):
            names = list(walk.seen)
            kind = chance.random()
            if kind < 0.15 or not names:
                await create(walk, chance.randrange(len(OPTIONS)), chance.randrange(4))
            elif kind < 0.3:
                await trio.sleep(chance.choice((0.5, 2, 5)))
                now = await walk.look()
                for name, state in now.items():
                    assert state in by_themselves({walk.seen[name]}), f"{name} {walk.seen[name]} -> {state}"
                walk.seen = now
            else:
                name = chance.choice(names[-8:])
                likely = _LIKELY.get(walk.seen[name], ("requeue",))
                await walk.step(chance.choice(likely if kind < 0.85 else _CALLS), name)
            await walk.until_the_board_agrees()


async def create(walk: Walk, choice: int, policy: int) -> None:
    """A task with some options that depends on the last one, or on none."""
    options = dict(OPTIONS[choice])
    for name in ("deadline", "not_before"):
        if name in options:
            options[f"{name}_at_ms"] = wall_ms() + options.pop(name)
    alive = [name for name, state in walk.seen.items() if state]
    depends_on = alive[-1:] if policy else []
    chosen = [None, "wait", "cancel", "run"][policy]
    try:
        answer = await walk.world.it.create_task(
            walk.world.me, "t", depends_on=depends_on, on_dependency_failure=chosen, **options
        )
    except IfbusError:
        assert depends_on, "it may have been removed just now"
        return
    task = answer["task"]
    if not task.get("existing"):
        assert task["state"] in life.TABLE[life.NONE, "create"]
    walk.seen.setdefault(task["task_id"], task["state"])
    walk.seen = await walk.look()


# --- several daemons ---------------------------------------------------------------------------------


async def test_two_daemons_do_what_time_asks_for_once(tmp_path: Path, autojump_clock: object) -> None:
    """Deadlines, cascades, retention and lost attempts, seen by both at once: each is on record once."""
    async with (
        open_world(tmp_path, config=CoordinatorConfig(retention_ms=60_000)) as one,
        open_world(tmp_path, config=CoordinatorConfig(retention_ms=60_000), beside=one) as other,
    ):
        await one.profile("docs")
        for n in range(20):
            await one.task(f"late-{n}", deadline_at_ms=wall_ms() + 5_000)
            await one.task(f"after-{n}", depends_on=[f"late-{n}"], on_dependency_failure="cancel")
            await one.task(f"lost-{n}", max_attempts=1)
            await one.token(f"lost-{n}", "docs", lease_ms=500)
        for n in range(20):
            await other.until_state(f"after-{n}", "cancelled")
            await other.until_state(f"lost-{n}", "dead")
            assert (await other.show(f"lost-{n}"))["failures"] == 1
        with trio.fail_after(600):
            while one.it.board.tasks or other.it.board.tasks:
                await trio.sleep(1)
        done: dict[tuple[str, str], int] = {}
        for entry in await one.record():
            if entry["uid"] == -1 and entry["outcome"] == "ok":
                for target in entry["detail"].get("tasks") or [entry["target"]]:
                    key = (entry["op"].removeprefix("coordinator."), target)
                    done[key] = done.get(key, 0) + 1
        assert set(done.values()) == {1}
        assert sum(op == "expire_task" for op, _ in done) == 20
        assert sum(op == "remove_tasks" for op, _ in done) == 60


async def test_one_open_task_has_a_unique_key_on_two_daemons(tmp_path: Path) -> None:
    """Creators on both at once get one task."""
    async with open_world(tmp_path) as one, open_world(tmp_path, beside=one) as other:
        answers: list[Answer] = []

        async def create_on(world: World) -> None:
            answers.append((await world.it.create_task(world.me, "Once", unique_key="nightly"))["task"])

        async with trio.open_nursery() as nursery:
            for n in range(32):
                nursery.start_soon(create_on, (one, other)[n % 2])
        assert {task["task_id"] for task in answers} == {"T-1"}
        assert sum("existing" not in task for task in answers) == 1


@pytest.mark.slow
async def test_time_goes_by_on_a_cluster(tmp_path: Path, etcd_endpoint: str) -> None:
    """Two daemons on a real etcd: a start, a backoff, a deadline, a cascade and a retention, each seen by both and on record once."""
    async with (
        open_world(tmp_path, etcd=etcd_endpoint, host="a") as one,
        open_world(tmp_path, beside=one, host="b") as other,
    ):
        await one.profile("docs")
        now_ms = wall_ms()
        await one.task("starts", not_before_at_ms=now_ms + 500)
        await one.task("ends", deadline_at_ms=now_ms + 700, retention_ms=1_000)
        await one.task("after", depends_on=["ends"], on_dependency_failure="cancel", retention_ms=1_000)
        await one.task("fails", max_attempts=2, backoff={"base_ms": 300, "jitter": 0})
        failed = await one.it.fail_task(one.me, "fails", "docs", await one.token("fails", "docs"), "broke")
        assert failed["task"]["state"] == "scheduled"
        claimed = await other.it.claim_task(other.me, "starts", "docs", wait_ms=60_000)
        assert claimed["claimed"]
        assert wall_ms() >= now_ms + 500
        again = await other.it.claim_task(other.me, "fails", "docs", wait_ms=60_000)
        assert again["claim"]["handover"]["errors"][0]["error"] == "broke"
        dead = await other.it.fail_task(other.me, "fails", "docs", again["claim"]["token"], "broke again")
        assert dead["task"]["state"] == "dead"
        with trio.fail_after(60):
            while {"ends", "after"} & (one.it.board.tasks.keys() | other.it.board.tasks.keys()):
                await trio.sleep(0.05)
        for op in ("expire_task", "cancel_task"):
            with trio.fail_after(60):
                while not await one.outcomes(op):  # the record follows
                    await trio.sleep(0.05)
            assert await one.outcomes(op) == ["ok"]


# --- clocks ------------------------------------------------------------------------------------------


async def test_a_wall_clock_that_jumps(tmp_path: Path, autojump_clock: object) -> None:
    """Ahead: what is due then is done within a tick. Back: nobody gets a task before its start by the clock of now."""
    skew = 0

    async with open_world(tmp_path, wall=lambda: wall_ms() + skew) as world:
        await world.swarm("docs", lease_ms=24 * HOUR_MS)
        start = wall_ms() + 10 * HOUR_MS
        await world.task("T-1", not_before_at_ms=start)
        await world.task("T-2", deadline_at_ms=start)
        got: list[Answer] = []

        async def take() -> None:
            got.append(await world.it.claim_task(world.me, "T-1", "docs", wait_ms=600_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.sleep(5)
            skew = 11 * HOUR_MS
            before = trio.current_time()
            await world.until_state("T-2", "expired")
            assert trio.current_time() - before < 5
        assert got[0]["claimed"]
        assert trio.current_time() - before < 10
        await world.it.release_task(world.me, "T-1", "docs", got[0]["claim"]["token"])
        skew = 0
        for _ in range(2):
            refused: Any = await world.it.claim_next(world.me, "docs", wait_ms=5_000)
            assert not refused["claimed"]
        assert (await world.show("T-1"))["state"] == "scheduled"
        assert len([op for op in await world.outcomes("claim_task") if op == "not_ready"]) < 10

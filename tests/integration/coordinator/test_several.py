"""Several tasks at once: the best of them in one commit, each with all that a claim of its own would have."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import InvalidParams, StaleToken
from tests.integration.coordinator.world import World

HOUR_MS = 3_600_000


def names(answer: Any) -> list[str]:
    """The tasks that were claimed."""
    return [claim["task_id"] for claim in answer["claims"]]


async def test_the_best_come_in_order_and_in_one_commit(world: World) -> None:
    """Pushed ones, then by priority, fillers last; one revision, one entry of the record, and tokens that hold."""
    await world.swarm("docs", budget=1_000)
    await world.task("filler", filler=True)
    for n in range(4):
        await world.task(f"T-{n}", priority=n, estimate_usd=10)
    await world.task("pushed", priority=-5)
    await world.it.push_task_to_swarm(world.me, "pushed", "docs")
    before = len(await world.record())
    answer = await world.it.claim_next(world.me, "docs", n=5)
    assert names(answer) == ["pushed", "T-3", "T-2", "T-1", "T-0"]
    [entry] = (await world.record())[before:]
    detail = {"swarm": "docs", "tasks": names(answer), "reserved_usd": "0.00004"}
    assert (entry["op"], entry["target"], entry["detail"]) == ("coordinator.claim_next", "docs", detail)
    assert {claim["token"] for claim in answer["claims"]} == {answer["receipt"]["revision"]}
    assert (await world.account("docs")).reserved == 40
    assert await world.inbox("docs") == []
    for claim in answer["claims"]:
        await world.it.complete_task(world.me, claim["task_id"], "docs", claim["token"])
    assert (await world.account("docs")).reserved == 0
    assert names(await world.it.claim_next(world.me, "docs", n=5)) == ["filler"]


async def test_what_cannot_be_had_is_passed_over(world: World) -> None:
    """What is beyond the budget together, beyond a concurrency key or a resource is left; the rest is claimed."""
    await world.swarm("docs", budget=100)
    await world.task("dear-1", estimate_usd=60, priority=9)
    await world.task("dear-2", estimate_usd=60, priority=8)
    await world.task("key-1", concurrency_key="k", priority=7)
    await world.task("key-2", concurrency_key="k", priority=6)
    await world.task("gpu-1", resources=["gpu:0"], priority=5)
    await world.task("gpu-2", resources=["gpu:0"], priority=4)
    await world.task("cheap", estimate_usd=40)
    answer = await world.it.claim_next(world.me, "docs", n=16)
    assert names(answer) == ["dear-1", "key-1", "gpu-1", "cheap"]
    assert (await world.account("docs")).reserved == 100
    left = await world.it.claim_next(world.me, "docs", n=16)
    assert not left["claimed"]
    stored = await world.stored()
    assert sorted(key for key in stored if key.startswith("locks/")) == ["locks/gpu:0"]


async def test_each_may_have_a_lease_of_its_own(autojump_clock: MockClock, world: World) -> None:
    """Leases that were taken for nothing are given back; those of the claims end one by one."""
    await world.profile("docs")
    for n in range(3):
        await world.task(f"T-{n}", concurrency_key="k", concurrency_limit=2)
    answer = await world.it.claim_next(world.me, "docs", n=3, lease_ms=5_000)
    assert len(answer["claims"]) == 2
    await world.it.board.catch_up()
    assert [world.it.board.holder_of(name) for name in names(answer)] == ["docs", "docs"]
    assert world.it.board.leases_of(1000) == 2
    await world.it.renew_claim(world.me, names(answer)[0], "docs", answer["claims"][0]["token"])
    for name in names(answer):
        await world.until_state(name, "ready")
    assert world.it.board.leases_of(1000) == 0


async def test_waiting_for_several_ends_with_the_first(autojump_clock: MockClock, world: World) -> None:
    """Whoever waits is woken by one, and takes what came together with it."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    answers: list[Any] = []

    async def wait() -> None:
        answers.append(await world.it.claim_next(world.me, "docs", n=3, wait_ms=600_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await world.task("T-1")
    assert names(answers[0]) == ["T-1"]
    assert trio.current_time() < 1
    assert not (await world.it.claim_next(world.me, "docs", n=3, wait_ms=1_000))["claimed"]


async def test_a_retry_gets_the_first_answer(world: World) -> None:
    """The same key claims nothing more."""
    await world.swarm("docs")
    for n in range(6):
        await world.task(f"T-{n}")
    first = await world.it.claim_next(world.caller(key="k", body="3"), "docs", n=3)
    again = await world.it.claim_next(world.caller(key="k", body="3"), "docs", n=3)
    assert again.pop("receipt")["replayed"]
    first.pop("receipt")
    assert again == first
    await world.it.board.catch_up()
    assert len(world.it.board.held_by["docs"]) == 3


async def test_none_is_claimed_twice(world: World) -> None:
    """16 swarms take five at a time from 100 tasks until none is left: each task went to one of them."""
    for n in range(100):
        await world.task(f"T-{n}")
    taken: dict[str, list[str]] = {}

    async def take(swarm_id: str) -> None:
        while (answer := await world.it.claim_next(world.me, swarm_id, n=5))["claimed"]:
            taken.setdefault(swarm_id, []).extend(names(answer))

    for n in range(16):
        await world.swarm(f"s{n}")
    async with trio.open_nursery() as nursery:
        for n in range(16):
            nursery.start_soon(take, f"s{n}")
    assert sorted(itertools.chain(*taken.values())) == sorted(f"T-{n}" for n in range(100))
    await world.it.board.catch_up()
    assert {name: world.it.board.holder_of(name) for name in ("T-0", "T-99")} == {
        name: next(swarm for swarm, tasks in taken.items() if name in tasks) for name in ("T-0", "T-99")
    }


async def test_as_many_come_as_fit_into_an_answer(world: World) -> None:
    """Tasks with long payloads come a few at a time."""
    await world.swarm("docs")
    for n in range(6):
        await world.task(f"T-{n}", payload={"a": "x" * 20_000})
    sizes = [len((await world.it.claim_next(world.me, "docs", n=6))["claims"]) for _ in range(3)]
    assert sizes == [2, 2, 2]


async def test_a_session_that_is_not_the_swarms_gets_none(world: World) -> None:
    """The proof is asked of several as of one, and the number is checked."""
    await world.swarm("docs")
    await world.task("T-1")
    with pytest.raises(StaleToken):
        await world.it.claim_next(world.me, "docs", n=2, resume_token="another's")
    for n in (0, 17):
        with pytest.raises(InvalidParams):
            await world.it.claim_next(world.me, "docs", n=n)

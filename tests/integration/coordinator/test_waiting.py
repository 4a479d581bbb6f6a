"""Waiting for work: nobody is forgotten, nobody is overtaken, and giving up takes nothing."""

import itertools
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import BreakerTripped, BudgetExceeded, NotQualified, NotReady
from tests.integration.coordinator.world import World

HOUR_MS = 3_600_000


async def test_without_a_wait_the_best_ready_task_is_claimed(world: World) -> None:
    """Priority before age, fillers last, what does not fit or cannot be paid left out; then nothing is ready, with figures."""
    await world.swarm("docs", "docs:writing", budget=100)
    await world.task("filler", filler=True)
    await world.task("old")
    await world.task("urgent", priority=5)
    await world.task("gpu", "gpu:cuda", priority=9)
    await world.task("dear", priority=9, estimate_usd=101)
    await world.task("dearer", priority=9, estimate_usd=102)
    taken = []
    while (answer := await world.it.claim_next(world.me, "docs"))["claimed"]:
        taken.append(answer["claim"]["task_id"])
    assert taken == ["urgent", "old", "filler"]
    refusal = answer["refusal"]
    assert refusal["code"] == "not_ready"
    assert refusal["data"].items() >= {"swarm_id": "docs", "ready": 3, "too_dear_usd": "0.000101"}.items()
    assert await world.outcomes("claim_task") == ["ok"] * 3  # what it cannot have is no news


async def test_a_swarm_that_can_pay_less_gets_what_it_can_pay(world: World) -> None:
    """However many dear tasks are ready before it, the one that the swarm can pay is found."""
    await world.swarm("docs", budget=100)
    for n in range(40):
        await world.task(f"dear-{n}", priority=1, estimate_usd=1_000 - n)
    await world.task("cheap", estimate_usd=100)
    answer = await world.it.claim_next(world.me, "docs")
    assert answer["claim"]["task_id"] == "cheap"


async def test_pushed_tasks_come_first(world: World) -> None:
    """What lies in the swarm's own inbox is claimed before anything better on the board, and the letter is withdrawn."""
    await world.swarm("docs")
    await world.task("urgent", priority=9)
    await world.task("pushed")
    await world.it.push_task_to_swarm(world.me, "pushed", "docs")
    assert (await world.it.claim_next(world.me, "docs"))["claim"]["task_id"] == "pushed"
    assert await world.inbox("docs") == []


async def test_many_waiters_get_all_tasks(autojump_clock: MockClock, world: World) -> None:
    """16 waiters, 200 tasks created while they wait: each task goes to exactly one, all are taken, nobody starves."""
    names = [f"s{n:02d}" for n in range(16)]
    for name in names:
        await world.swarm(name, lease_ms=HOUR_MS)
    taken: dict[str, list[str]] = {name: [] for name in names}

    async def work(name: str) -> None:
        while True:
            answer = await world.it.claim_next(world.me, name, wait_ms=60_000)
            if not answer["claimed"]:
                return
            claim = answer["claim"]
            taken[name].append(claim["task_id"])
            await world.it.complete_task(world.me, claim["task_id"], name, claim["token"])

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(work, name)
        await wait_all_tasks_blocked()
        for n in range(200):
            await world.task(f"T-{n}")
    assert sorted(itertools.chain(*taken.values())) == sorted(f"T-{n}" for n in range(200))
    assert min(map(len, taken.values())) >= 5
    assert world.it.statistics().tasks == {"completed": 200}
    assert world.it.statistics().waiting == 0
    assert await world.outcomes("claim_task") == ["ok"] * 200  # nobody tries what somebody else is about to have


async def test_waiters_are_served_in_order_of_arrival(world: World) -> None:
    """First come, first served."""
    order: list[str] = []

    async def wait(name: str) -> None:
        assert (await world.it.claim_next(world.me, name, wait_ms=HOUR_MS // 60))["claimed"]
        order.append(name)

    names = ["c", "a", "b"]
    async with trio.open_nursery() as nursery:
        for name in names:
            await world.swarm(name)
            nursery.start_soon(wait, name)
            await wait_all_tasks_blocked()
        for n in range(3):
            await world.task(f"T-{n}")
            await wait_all_tasks_blocked()
    assert order == names


async def test_an_offer_that_is_not_taken_goes_on(world: World) -> None:
    """Whenever a woken waiter is cancelled, it has the task (its retry finds it) or the next one gets it; it is never left lying."""
    await world.swarm("first", lease_ms=HOUR_MS)
    await world.swarm("second", lease_ms=HOUR_MS)
    takers = set()
    for n in range(15):
        scope = trio.CancelScope()

        async def wait_first(scope: trio.CancelScope = scope) -> None:
            with scope:
                await world.it.claim_next(world.me, "first", wait_ms=60_000)

        async def wait_second() -> None:
            assert (await world.it.claim_next(world.me, "second", wait_ms=60_000))["claimed"]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_first)
            await wait_all_tasks_blocked()
            nursery.start_soon(wait_second)
            await wait_all_tasks_blocked()
            nursery.start_soon(world.task, f"T-{n}")
            for _ in range(n):
                await trio.lowlevel.checkpoint()
            scope.cancel()
            await wait_all_tasks_blocked()
            task = await world.show(f"T-{n}")
            assert task["state"] == "claimed"
            takers.add(task["holder"])
            if task["holder"] == "first":
                await world.task(f"more-{n}")
    assert takers == {"first", "second"}
    assert world.it.statistics().waiting == 0


async def test_a_claim_that_came_to_nothing_is_in_nobodys_way(world: World) -> None:
    """A refused claim by name leaves the task to whoever asks next."""
    await world.swarm("other", "docs:writing")
    await world.swarm("docs", "gpu:cuda")
    await world.task("T-1", "gpu:cuda")
    await world.it.board.catch_up()
    with pytest.raises(NotQualified):
        await world.it.claim_task(world.me, "T-1", "other")
    assert (await world.it.claim_next(world.me, "docs"))["claim"]["task_id"] == "T-1"


async def test_giving_up_waiting_takes_no_task(autojump_clock: MockClock, world: World) -> None:
    """A wait that ends without work leaves nothing behind: no waiter, no claim, and the next one is served."""
    await world.swarm("docs")
    answer = await world.it.claim_next(world.me, "docs", wait_ms=1_000)
    assert answer["refusal"]["code"] == "not_ready"
    assert world.it.statistics().waiting == 0
    await world.swarm("docs")
    await world.task("T-1")
    assert (await world.it.claim_next(world.me, "docs"))["claimed"]


async def test_a_cancelled_claim_is_found_by_its_retry(world: World) -> None:
    """Cancelled at its first, second, third ... await, a claim is either not made or found by the retry; never half."""
    await world.swarm("docs", budget=1_000_000, lease_ms=HOUR_MS)
    for n in range(12):
        await world.task(f"T-{n}", estimate_usd=10)
        caller = world.caller(key=f"k{n}", body=f"claim {n}")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel_later(after: int = n, scope: trio.CancelScope = scope) -> None:
                    for _ in range(after):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel_later)
                await world.it.claim_next(caller, "docs")
        task = await world.show(f"T-{n}")
        reserved = (await world.account("docs")).reserved
        assert reserved == (10 if task["state"] == "claimed" else 0)
        answer = await world.it.claim_next(caller, "docs")
        assert answer["claim"]["task_id"] == f"T-{n}"
        if task["state"] == "claimed":
            assert answer["receipt"]["replayed"] is True
        await world.it.complete_task(world.me, f"T-{n}", "docs", answer["claim"]["token"])
    assert (await world.account("docs")).reserved == 0
    assert world.it.statistics().waiting == 0


async def test_waiting_for_one_task(autojump_clock: MockClock, world: World) -> None:
    """Who waits for a task by name gets it when the holder lets go, one after the other, and its end is told to the rest."""
    for name in ("holder", "first", "second", "third"):
        await world.swarm(name, lease_ms=HOUR_MS)
    await world.task("T-1")
    token = await world.token("T-1", "holder")
    told: list[tuple[str, Any]] = []

    async def wait(name: str) -> None:
        try:
            answer = await world.it.claim_task(world.me, "T-1", name, wait_ms=600_000)
            told.append((name, answer["claim"]["token"]))
        except NotReady as error:
            told.append((name, error.data["state"]))

    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            nursery.start_soon(wait, name)
            await wait_all_tasks_blocked()
        for n in range(5):  # news of the task is no reason to try
            await world.it.report_progress(world.me, "T-1", "holder", token, n)
        assert (await world.outcomes("claim_task")).count("already_claimed") == 3
        await world.it.release_task(world.me, "T-1", "holder", token)
        while len(told) < 1:
            await trio.sleep(0.01)
        await world.it.release_task(world.me, "T-1", "first", told[0][1])
        while len(told) < 2:
            await trio.sleep(0.01)
        await world.it.complete_task(world.me, "T-1", "second", told[1][1])
    assert [name for name, _ in told] == ["first", "second", "third"]
    assert told[2][1] == "completed"
    assert (await world.outcomes("claim_task")).count("already_claimed") == 3
    assert world.it.statistics().waiting == 0


async def test_waiting_for_a_task_in_vain(autojump_clock: MockClock, world: World) -> None:
    """At the end of the wait the answer is the last refusal: who holds it, or what it waits for."""
    await world.swarm("holder", lease_ms=HOUR_MS)
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    await world.task("T-2", depends_on=["T-1"])
    await world.token("T-1", "holder")
    lost = await world.it.claim_task(world.me, "T-1", "docs", wait_ms=1_000)
    assert lost["refusal"]["data"]["owner"] == "holder"
    with pytest.raises(NotReady):
        await world.it.claim_task(world.me, "T-2", "docs", wait_ms=1_000)


async def test_waiting_for_dependencies(world: World) -> None:
    """A task by name is claimed when the last of what it waits for is completed."""
    await world.swarm("docs")
    await world.task("T-1")
    await world.task("T-2", depends_on=["T-1"])
    token = await world.token("T-1", "docs")
    async with trio.open_nursery() as nursery:
        answers: list[Any] = []

        async def wait() -> None:
            answers.append(await world.it.claim_task(world.me, "T-2", "docs", wait_ms=60_000))

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await world.it.complete_task(world.me, "T-1", "docs", token)
    assert answers[0]["claimed"]


async def test_a_waiter_hears_of_its_own_changes(world: World) -> None:
    """A larger budget, new capabilities, or a tripped breaker wake the swarm that waits."""
    await world.swarm("docs", budget=100)
    await world.task("dear", estimate_usd=1_000)
    await world.task("gpu", "gpu:cuda")
    answers: list[Any] = []

    async def wait() -> None:
        try:
            answers.append((await world.it.claim_next(world.me, "docs", wait_ms=60_000))["claim"]["task_id"])
        except BreakerTripped:
            answers.append("tripped")

    operator = world.caller(0)
    for change in (
        lambda: world.governor.set_budget(operator, "docs", 10_000),  # type: ignore[arg-type]
        lambda: world.governor.register_profile(world.me, "docs", ["gpu:cuda"]),
        lambda: world.governor.trip_circuit_breaker(operator, "docs", "enough"),
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            await change()
    assert answers == ["dear", "gpu", "tripped"]


async def test_a_stopped_or_broke_swarm_is_told_at_once(world: World) -> None:
    """Asking for the next task is refused with the breaker's or the budget's figures, on record."""
    await world.swarm("broke", budget=0)
    await world.swarm("stopped")
    await world.governor.trip_circuit_breaker(world.caller(0), "stopped", "enough")
    with pytest.raises(BudgetExceeded) as broke:
        await world.it.claim_next(world.me, "broke", wait_ms=60_000)
    with pytest.raises(BreakerTripped) as stopped:
        await world.it.claim_next(world.me, "stopped", wait_ms=60_000)
    assert broke.value.would_change
    assert stopped.value.would_change
    assert await world.outcomes("claim_next") == ["budget_exceeded", "breaker_tripped"]


async def test_a_freed_task_goes_to_who_waits(autojump_clock: MockClock, world: World) -> None:
    """An expired claim's task is offered at once to somebody who waits."""
    await world.swarm("gone", lease_ms=1_000)
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    await world.token("T-1", "gone")
    answer = await world.it.claim_next(world.me, "docs", wait_ms=60_000)
    assert answer["claim"]["task_id"] == "T-1"

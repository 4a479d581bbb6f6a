"""Slots of a session: the weights of what is held in it never add up to more, however claims end, over races and restarts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import AtCapacity, InvalidParams
from tests.integration.coordinator.world import World, open_world

HOUR_MS = 3_600_000


async def register(world: World, swarm_id: str = "docs", slots: int | None = 10, **more: Any) -> Any:
    """A session with so many slots."""
    return await world.it.register_swarm(world.me, swarm_id, slots=slots, lease_ms=HOUR_MS, **more)


async def several(world: World) -> AsyncIterator[Any]:
    """What another swarm gets, five at a time, until there is no more."""
    while (answer := await world.it.claim_next(world.me, "other", n=5))["claimed"]:
        yield answer


async def test_the_sum_is_never_above_the_slots(world: World) -> None:
    """32 claims of weight 3 at once: three fit into ten slots; the others are told what holds them."""
    assert (await register(world))["slots"] == 10
    for n in range(32):
        await world.task(f"T-{n}", weight=3)
    won: list[str] = []

    async def claim(n: int) -> None:
        with contextlib.suppress(AtCapacity):
            if (await world.it.claim_task(world.me, f"T-{n}", "docs"))["claimed"]:
                won.append(f"T-{n}")

    async with trio.open_nursery() as nursery:
        for n in range(32):
            nursery.start_soon(claim, n)
    assert len(won) == 3
    left = next(f"T-{n}" for n in range(32) if f"T-{n}" not in won)
    with pytest.raises(AtCapacity) as refused:
        await world.it.claim_task(world.me, left, "docs")
    figures = {"limit": "slots", "swarm_id": "docs", "weight": 3, "used": 9, "allowed": 10}
    assert refused.value.data.items() >= figures.items()
    assert sorted(refused.value.data["holders"]) == sorted(won)
    explained = await world.it.explain_claim(world.me, left, "docs")
    assert [check["check"] for check in explained["checks"] if not check["ok"]] == ["slots"]


async def test_a_lighter_task_is_found_behind_heavy_ones(world: World) -> None:
    """However many that are too heavy are ready before it; several at once take what fits together of the best."""
    await register(world, slots=5)
    for n in range(40):
        await world.task(f"heavy-{n}", weight=4, priority=9)
    for n in range(3):
        await world.task(f"light-{n}")
    assert (await world.it.claim_next(world.me, "docs"))["claim"]["task"]["weight"] == 4
    assert (await world.it.claim_next(world.me, "docs"))["claim"]["task_id"] == "light-0"
    assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
    await register(world, "other", slots=6)
    taken = [[claim["task"].get("weight", 1) for claim in answer["claims"]] async for answer in several(world)]
    assert taken == [[4], [1, 1]]


@pytest.mark.parametrize("end", ["complete", "release", "lease"])
@pytest.mark.parametrize("is_named", [True, False])
async def test_who_waits_gets_a_slot_when_one_is_free(
    autojump_clock: MockClock, world: World, end: str, is_named: bool
) -> None:
    """The end of a claim of the session wakes its waiters, by name or not; two that are full do not wake each other."""
    await register(world, slots=2)
    await register(world, "idle", slots=1)
    await world.task("held", weight=2)
    answer = await world.it.claim_task(world.me, "held", "docs", lease_ms=30_000 if end == "lease" else None)
    await world.task("next", "a:b" if not is_named else "c:d")
    await world.governor.register_profile(world.me, "docs", ["a:b"] if not is_named else ["c:d"])
    won: list[Any] = []

    async def wait() -> None:
        if is_named:
            won.append(await world.it.claim_task(world.me, "next", "docs", wait_ms=600_000))
        else:
            won.append(await world.it.claim_next(world.me, "docs", wait_ms=600_000))

    async def wait_in_vain() -> None:
        with contextlib.suppress(AtCapacity):
            await world.it.claim_task(world.me, "next", "docs", wait_ms=1_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        if is_named:
            nursery.start_soon(wait_in_vain)
        await wait_all_tasks_blocked()
        await trio.sleep(2)
        assert won == []
        tries = len(await world.outcomes("claim_task"))
        assert tries <= 4
        token = answer["claim"]["token"]
        if end == "complete":
            await world.it.complete_task(world.me, "held", "docs", token)
        elif end == "release":
            await world.it.fail_task(world.me, "held", "docs", token, "why")
    # What comes free by itself is ready again, and older.
    assert won[0]["claim"]["task_id"] == ("held" if end == "lease" and not is_named else "next")


async def test_slots_live_and_end_with_the_session(tmp_path: Path) -> None:
    """A restart and a resume keep them and what takes them; a new registration begins with its own and with nothing held."""
    async with open_world(tmp_path) as world:
        first = await register(world, slots=2)
        for n in range(4):
            await world.task(f"T-{n}")
        for n in range(2):
            await world.token(f"T-{n}", "docs")
    async with open_world(tmp_path) as world:
        resumed = await register(world, slots=9, resume_token=first["resume_token"])
        assert (resumed["resumed"], resumed["slots"]) == (True, 2)
        with pytest.raises(AtCapacity):
            await world.it.claim_task(world.me, "T-2", "docs")
        assert (await register(world, slots=1))["slots"] == 1
        await world.token("T-2", "docs")
        with pytest.raises(AtCapacity):
            await world.it.claim_task(world.me, "T-3", "docs")
        assert (await register(world, slots=None))["slots"] is None
        for n in range(4):
            await world.token(f"T-{n}", "docs")
        assert not [key for key in await world.stored() if key.startswith("loads/")]


async def test_a_wrong_number_of_slots_is_refused(world: World) -> None:
    """The parameter is named."""
    with pytest.raises(InvalidParams) as refused:
        await register(world, slots=0)
    assert refused.value.data["param"] == "slots"

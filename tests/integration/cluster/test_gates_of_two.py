"""Two daemons on one store: what keeps tasks back is decided by the store, whichever of them is asked."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ifbus.errors import AtCapacity, Paused
from tests.integration.coordinator.world import World, open_world

HOUR_MS = 3_600_000


@pytest.fixture
async def daemons(tmp_path: Path) -> AsyncIterator[tuple[World, World]]:
    """Both running on one store."""
    async with open_world(tmp_path, host="a") as a, open_world(tmp_path, host="b", beside=a) as b:
        yield a, b


async def test_a_key_and_slots_hold_over_both(autojump_clock: MockClock, daemons: tuple[World, World]) -> None:
    """Claims at both at once never take more places of a key, nor more slots of a session, than there are."""
    a, _ = daemons
    await a.it.register_swarm(a.me, "heavy", slots=5, lease_ms=HOUR_MS)
    for n in range(16):
        await a.swarm(f"s{n}", lease_ms=HOUR_MS)
        await a.task(f"key-{n}", concurrency_key="repo:site", concurrency_limit=3)
        await a.task(f"slot-{n}", weight=2)
    won: list[str] = []

    async def claim(world: World, task_id: str, swarm_id: str) -> None:
        with contextlib.suppress(AtCapacity):
            if (await world.it.claim_task(world.me, task_id, swarm_id))["claimed"]:
                won.append(task_id)

    async with trio.open_nursery() as nursery:
        for n in range(16):
            nursery.start_soon(claim, daemons[n % 2], f"key-{n}", f"s{n}")
            nursery.start_soon(claim, daemons[n % 2], f"slot-{n}", "heavy")
    assert sorted(name.split("-")[0] for name in won) == ["key"] * 3 + ["slot"] * 2


async def test_a_place_that_is_freed_at_one_wakes_who_waits_at_the_other(
    autojump_clock: MockClock, daemons: tuple[World, World]
) -> None:
    """Also the end of a pause does."""
    a, b = daemons
    for name in ("one", "two"):
        await a.swarm(name, lease_ms=HOUR_MS)
        await a.task(name, concurrency_key="k")
    token = await a.token("one", "one")

    async def wait() -> None:
        answer = await b.it.claim_task(b.me, "two", "two", wait_ms=600_000)
        await b.it.release_task(b.me, "two", "two", answer["claim"]["token"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        await a.it.complete_task(a.me, "one", "one", token)
    await a.it.pause(a.me, "task", "two")
    with pytest.raises(Paused):
        await b.it.claim_task(b.me, "two", "two")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        await a.it.resume(a.me, "task", "two")
    assert trio.current_time() < 10


async def test_a_drained_host_leaves_the_other_to_work(autojump_clock: MockClock, daemons: tuple[World, World]) -> None:
    """The one gives out nothing and takes back what it gave out; claims of the other, and new ones there, go on."""
    a, b = daemons
    await a.swarm("docs", lease_ms=HOUR_MS)
    for name in ("at-a", "at-b", "new"):
        await a.task(name)
    await a.token("at-a", "docs")
    kept = await b.token("at-b", "docs")
    assert (await a.it.drain_host(a.caller(0), grace_ms=60_000, reason="reboot"))["left"] == 1
    with pytest.raises(Paused):
        await a.it.claim_task(a.me, "new", "docs")
    await b.token("new", "docs")
    await a.until_state("at-a", "ready")
    await b.it.complete_task(b.me, "at-b", "docs", kept)
    assert (await b.show("new"))["state"] == "claimed"


async def test_one_of_them_ends_a_swarms_drain(autojump_clock: MockClock, daemons: tuple[World, World]) -> None:
    """Each claim is given back once, and both know that the swarm gets nothing."""
    a, b = daemons
    await a.swarm("docs", lease_ms=HOUR_MS)
    for name in ("at-a", "at-b"):
        await a.task(name)
    await a.token("at-a", "docs")
    await b.token("at-b", "docs")
    await b.it.drain_swarm(b.me, "docs", grace_ms=60_000)
    for world in daemons:
        answer = await world.it.claim_next(world.me, "docs")
        assert not answer["claimed"]
    for name in ("at-a", "at-b"):
        await a.until_state(name, "ready")
    await trio.sleep(600)
    assert await a.outcomes("expire_claim") == ["ok", "ok"]


async def test_a_drained_host_leaves_what_the_other_gave_out_meanwhile(
    autojump_clock: MockClock, daemons: tuple[World, World]
) -> None:
    """A claim that is to be given back ends, and the other daemon gives the task out before that is decided: it stays claimed."""
    a, b = daemons
    await a.swarm("docs", lease_ms=HOUR_MS)
    await a.task("T")
    token = await a.token("T", "docs")
    await a.it.drain_host(a.caller(0), grace_ms=0)
    drain = a.it._host_drain
    await b.it.release_task(b.me, "T", "docs", token)
    again = await b.token("T", "docs")
    await a.it._give_back("host", "a", "T", drain)  # as decided by a board that was behind
    await b.it.complete_task(b.me, "T", "docs", again)

"""A new task and the claim of whoever waits for one become durable together, or neither does."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ifbus.errors import Unavailable
from tests.integration.coordinator.test_recovery import fill_up
from tests.integration.coordinator.world import World, open_world

HOUR_MS = 3_600_000


async def wait(world: World, name: str, heard: list[Any], **how: Any) -> None:
    """Wait for the next task; what comes of it is added to `heard`."""
    try:
        heard.append(await world.it.claim_next(world.me, name, wait_ms=60_000, **how))
    except Unavailable as error:
        heard.append(error)


async def test_a_new_task_and_its_claim_share_a_commit(tmp_path: Path) -> None:
    """Whoever waits has claimed a task in the commit that creates it: one record after the other, and both are there after a restart."""
    heard: list[Any] = []
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=HOUR_MS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, world, "docs", heard)
            await wait_all_tasks_blocked()
            before = world.store.statistics()
            made = await world.it.create_task(world.me, "a title")
        after = world.store.statistics()
        [answer] = heard
        assert answer["claim"]["task_id"] == made["task"]["task_id"]
        assert (after.commits - before.commits, after.txns - before.txns) == (1, 2)
        assert answer["receipt"]["seq"] == made["receipt"]["seq"] + 1
        assert world.it.board.counts["claimed"] == 1
        assert not world.it.board.coming
    async with open_world(tmp_path) as world:
        task = await world.show(made["task"]["task_id"])
        assert (task["state"], task["holder"], task["token"]) == ("claimed", "docs", answer["claim"]["token"])


async def test_each_of_several_who_wait_gets_one_of_a_batch(tmp_path: Path) -> None:
    """Tasks that are created together go to all who wait, the best first; what nobody waits for stays ready."""
    heard: list[Any] = []
    async with open_world(tmp_path) as world:
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                await world.swarm(name, lease_ms=HOUR_MS)
                nursery.start_soon(wait, world, name, heard)
                await wait_all_tasks_blocked()
            tasks = [{"title": "t", "task_id": f"T-{n}", "priority": n} for n in range(3)]
            await world.it.create_tasks(world.me, tasks)
        assert {answer["claim"]["task_id"] for answer in heard} == {"T-2", "T-1"}
        assert (await world.show("T-0"))["state"] == "ready"


async def test_who_cannot_have_a_new_task_leaves_it_to_the_next(tmp_path: Path) -> None:
    """A claim that is refused before the task is shown is in nobody's way."""
    heard: list[Any] = []
    async with open_world(tmp_path) as world:
        async with trio.open_nursery() as nursery:
            await world.swarm("poor", budget=1, lease_ms=HOUR_MS)
            await world.swarm("rich", budget=1_000_000, lease_ms=HOUR_MS)
            refused: list[Any] = []
            nursery.start_soon(wait, world, "poor", refused)
            await wait_all_tasks_blocked()
            nursery.start_soon(wait, world, "rich", heard)
            await wait_all_tasks_blocked()
            await world.it.create_task(world.me, "dear", task_id="T-1", estimate_usd=500_000)
            await wait_all_tasks_blocked()
            assert heard[0]["claim"]["task_id"] == "T-1"
            assert not refused
            await world.it.create_task(world.me, "cheap", task_id="T-2", estimate_usd=1)
        assert refused[0]["claim"]["task_id"] == "T-2"


@pytest.mark.parametrize("attempt", range(6))
async def test_what_was_not_created_is_claimed_by_nobody(tmp_path: Path, attempt: int) -> None:
    """Where the storage is full the claim fails with the creation, and nobody else is offered what does not exist."""
    first: list[Any] = []
    second: list[Any] = []
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        for name, heard in (("first", first), ("second", second)):
            await world.swarm(name, lease_ms=HOUR_MS)
            nursery.start_soon(wait, world, name, heard)
            await wait_all_tasks_blocked()
        await fill_up(world)
        with pytest.raises(Unavailable):
            await world.it.create_tasks(world.me, [{"title": "t", "payload": {"x": "x" * 15_000}}] * 8)
        await wait_all_tasks_blocked()
        assert not world.it.board.coming
        assert not world.it.board.tasks
        world.store._connection.execute("pragma max_page_count = 1073741823").fetchall()
        nursery.cancel_scope.cancel()

"""How a swarm stands: milestones, what it waits for and does next, visible while it works."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifbus.errors import InvalidParams, NotFound
from tests.integration.coordinator.world import Answer, Connection, World, open_world

MILESTONES = [[25, "designed"], [50, "half of it"], [100, "done"]]


async def status(world: World, swarm_id: str = "docs") -> Answer:
    """The swarm's."""
    return await world.it.swarm_status(world.me, swarm_id)


async def test_what_a_holder_says_is_seen_by_all(world: World) -> None:
    """Blocked on and next action stand with the task, stay until said otherwise, go with the claim, and are told live."""
    listener = Connection()
    await world.it.subscribe_board(world.caller(session=listener))
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    said = {"blocked_on": "the review of T-0", "next_action": "write the tests"}
    await world.it.report_progress(world.me, "T-1", "docs", token, 30, **said)
    await world.it.report_progress(world.me, "T-1", "docs", token, 40, note="on it")
    shown = await world.show("T-1")
    assert (shown["blocked_on"], shown["next_action"], shown["percent"]) == (*said.values(), 40)
    await world.it.board.catch_up()
    told = [message for message in listener.of("board") if message["event"] == "progress"]
    assert [message.get("blocked_on") for message in told] == ["the review of T-0", None]
    await world.it.report_progress(world.me, "T-1", "docs", token, 50, blocked_on="")
    assert "blocked_on" not in await world.show("T-1")
    await world.it.release_task(world.me, "T-1", "docs", token)
    assert "next_action" not in await world.show("T-1")
    with pytest.raises(InvalidParams):
        await world.it.report_progress(world.me, "T-1", "docs", token, 50, next_action="x" * 2000)


async def test_a_swarm_says_how_it_stands(world: World) -> None:
    """Away, waiting for a task, at work with its last milestone, blocked on a question; done tasks are counted."""
    await world.profile("docs")
    assert (await status(world))["status"] == "away"
    await world.swarm("docs")
    assert (await status(world))["status"] == "waiting"
    await world.task("T-1", milestones=MILESTONES, payload={"branch": "work/docs"})
    token = await world.token("T-1", "docs")
    await world.it.report_progress(world.me, "T-1", "docs", token, 60, note="more than half")
    found = await status(world)
    [task] = found["tasks"]
    assert (found["status"], task["milestone"], task["branch"]) == ("in_progress", "50% - half of it", "work/docs")
    answer = await world.it.ask(world.me, "docs", "person", "may I?", task_id="T-1", token=token)
    found = await status(world)
    assert found["status"] == "blocked"
    assert ("task:T-1", "person") in [(edge["from"], edge["to"]) for edge in found["waits"]]
    await world.it.reply(world.caller(0), answer["reply_id"], {"approved": True})
    await world.it.report_progress(world.me, "T-1", "docs", token, 70, blocked_on="the network")
    assert (await status(world))["status"] == "blocked"
    await world.it.complete_task(world.me, "T-1", "docs", token)
    found = await status(world)
    assert (found["status"], found["tasks_completed"], found["tasks_in_progress"]) == ("waiting", 1, 0)
    with pytest.raises(NotFound):
        await status(world, "nobody")


async def test_a_restart_forgets_nothing_of_it(tmp_path: Path) -> None:
    """What was said and done before it is shown after it."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs")
        for task_id in ("T-1", "T-2"):
            await world.task(task_id)
            token = await world.token(task_id, "docs")
            await world.it.report_progress(world.me, task_id, "docs", token, 10, note="begun", next_action="the rest")
            if task_id == "T-1":
                await world.it.complete_task(world.me, task_id, "docs", token)
    async with open_world(tmp_path) as world:
        found = await status(world)
        [task] = found["tasks"]
        assert (task["task_id"], task["milestone"], task["next_action"]) == ("T-2", "10% - begun", "the rest")
        assert found["tasks_completed"] == 1

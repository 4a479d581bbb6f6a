"""What answers say of who is here and since when: profiles with the coordinator's knowledge, ended tasks with their claim's start."""

import pytest

from tests.integration.coordinator.world import World


async def test_a_profile_says_who_is_alive_and_what_it_holds(world: World) -> None:
    """A session makes alive, its end makes silent; claims show as handles whoever's lease they are on."""
    session = await world.swarm("docs", "docs:writing")
    await world.profile("lone", "docs:writing")
    held = f"A@{await world.token(await world.task('A'), 'docs')}"
    lone = f"B@{await world.token(await world.task('B'), 'lone')}"
    listed = (await world.governor.list_swarms(world.me))["swarms"]
    assert {swarm["swarm_id"]: (swarm["alive"], swarm["claims"]) for swarm in listed} == {
        "docs": (True, [held]),
        "lone": (False, [lone]),
    }
    assert (await world.governor.get_swarm(world.me, "docs"))["profile"]["claims"] == [held]
    await world.it.end_session(world.me, "docs", session["resume_token"])
    ended = (await world.governor.get_swarm(world.me, "docs"))["profile"]
    assert (ended["alive"], ended["claims"]) == (False, [])


@pytest.mark.parametrize("verdict", ["complete_task", "fail_task", "release_task"])
async def test_an_ended_claim_says_when_it_began(world: World, verdict: str) -> None:
    """The answer to the end of a claim has the claim's start, and so has a task that ended for good, replays included."""
    await world.swarm("docs")
    task_id = await world.task()
    token = await world.token(task_id, "docs")
    claimed_at_ms = (await world.show(task_id))["claimed_at_ms"]
    more = {"error": "no such file"} if verdict == "fail_task" else {}
    ended = await getattr(world.it, verdict)(world.me, task_id, "docs", token, **more)
    assert ended["task"]["claimed_at_ms"] == claimed_at_ms
    if verdict == "release_task":
        assert "claimed_at_ms" not in await world.show(task_id)
    else:
        assert (await world.show(task_id))["claimed_at_ms"] == claimed_at_ms
        again = await getattr(world.it, verdict)(world.me, task_id, "docs", token, **more)
        assert (again["task"]["claimed_at_ms"], again["receipt"]["replayed"]) == (claimed_at_ms, True)

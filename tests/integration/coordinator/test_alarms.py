"""Alarms by the clocks: once per episode, to the swarm and the operators, open until it is over, over a restart too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import World, open_world

HOUR_MS = 3_600_000
CONFIG = CoordinatorConfig(clock_tick_ms=50, starving_ms=5_000)


def listen(world: World, subject: str) -> list[Any]:
    """What is told there from now on."""
    heard: list[Any] = []
    world.bus.subscribe(subject, lambda _, item: heard.append(item))
    return heard


async def until(heard: list[Any], *kinds: str) -> None:
    """Wait until these were told, and look a few times more: nothing else may come."""
    with trio.fail_after(120):
        while [item["kind"] for item in heard][: len(kinds)] != list(kinds):
            await trio.sleep(0.05)
    await trio.sleep(0.5)
    assert [item["kind"] for item in heard] == list(kinds)


async def spend(world: World, task_id: str, token: int, amount: int) -> None:
    await world.governor.track_cost(world.me, "docs", "llm", amount, task_id=task_id, token=token)  # type: ignore[arg-type]


async def test_spending_without_progress_is_told_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    """With its figures; progress ends it, and the next time is another episode."""
    async with open_world(tmp_path, config=CONFIG) as world:
        await world.swarm("docs", budget=10_000_000, lease_ms=HOUR_MS)
        operators, swarm = listen(world, "escalations"), listen(world, "attention.docs")
        await world.task("T-1", estimate_usd=1_000_000)
        token = await world.token("T-1", "docs")
        await spend(world, "T-1", token, 200_000)
        await trio.sleep(1)
        assert operators == []
        await spend(world, "T-1", token, 1)
        await until(operators, "runaway")
        assert (operators[0]["spent_usd"], operators[0]["runaway_above_usd"]) == ("0.200001", "0.20")
        assert [item["kind"] for item in swarm] == ["runaway"]
        assert [item["kind"] for item in (await world.governor.list_escalations(world.me))["escalations"]] == [
            "runaway"
        ]
        assert "runaway" in {item["kind"] for item in await world.it.attention(world.me, "docs")}
        await world.it.report_progress(world.me, "T-1", "docs", token, 10)
        await until(operators, "runaway", "runaway_ended")
        assert (await world.governor.list_escalations(world.me))["escalations"] == []
        await world.it.report_progress(world.me, "T-1", "docs", token, 10)  # the same again is no progress
        await spend(world, "T-1", token, 300_000)
        await until(operators, "runaway", "runaway_ended", "runaway")
        await world.it.complete_task(world.me, "T-1", "docs", token)
        await until(operators, "runaway", "runaway_ended", "runaway", "runaway_ended")


async def test_a_swarm_that_stops_beating_is_told_before_its_lease_ends(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Once for the session with all its claims, once for each claim on its own lease; a renewal ends it."""
    async with open_world(tmp_path, config=CONFIG) as world:
        session = await world.swarm("docs", lease_ms=10_000)
        operators = listen(world, "escalations")
        await world.task("T-1")
        await world.token("T-1", "docs")
        await until(operators, "silent")
        assert (operators[0]["whose"], operators[0]["lease_ms"]) == ("docs", 10_000)
        assert 7_000 <= operators[0]["beat_ms"] < 10_000
        await world.it.renew_session(world.me, "docs", session["resume_token"])
        await until(operators, "silent", "silent_ended")
        await world.until_state("T-1", "ready")
        await until(operators, "silent", "silent_ended", "silent", "silent_ended")


async def test_a_live_swarm_that_reads_no_mail_is_told(autojump_clock: MockClock, tmp_path: Path) -> None:
    """While it beats and letters grow old; reading them ends it."""
    async with open_world(tmp_path, config=CONFIG) as world:
        await world.swarm("docs", lease_ms=HOUR_MS)
        operators = listen(world, "escalations")
        await world.it.broadcast(world.me, "news", {})
        await until(operators, "starving")
        assert operators[0]["letters"] == 1
        assert operators[0]["oldest_ms"] >= CONFIG.starving_ms
        [letter] = await world.inbox("docs")
        await world.it.acknowledge(world.me, "docs", letter["seq"])
        await until(operators, "starving", "starving_ended")


async def test_an_open_alarm_is_not_told_again_after_a_restart(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The episode goes on, and its end is still told."""
    async with open_world(tmp_path, config=CONFIG) as world:
        await world.swarm("docs", budget=10_000_000, lease_ms=HOUR_MS)
        await world.task("T-1")
        token = await world.token("T-1", "docs")
        await spend(world, "T-1", token, 500_000)
        await until(listen(world, "escalations"), "runaway")
    async with open_world(tmp_path, config=CONFIG) as world:
        operators = listen(world, "escalations")
        await trio.sleep(2)
        assert operators == []
        await world.it.release_task(world.me, "T-1", "docs", token)
        await until(operators, "runaway_ended")

"""Draining a swarm or this host: no new work, running claims go on until the end of the grace, then they are given back with a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import Paused, PermissionDenied, StaleToken
from tests.integration.coordinator.world import STRANGER, World, open_world, wall_ms

HOUR_MS = 3_600_000
GRACE_MS = 60_000


async def test_a_drained_swarm_finishes_or_hands_back(autojump_clock: MockClock, world: World) -> None:
    """It gets nothing new, can complete meanwhile, and what it holds at the end is the next one's, who reads why."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.swarm("other", lease_ms=HOUR_MS)
    for name in ("done", "left", "new"):
        await world.task(name, payload={"a": 1})
    tokens = {name: await world.token(name, "docs") for name in ("done", "left")}
    await world.it.report_progress(world.me, "left", "docs", tokens["left"], 40, note="half of it")
    heard: list[Any] = []
    world.bus.subscribe("attention.docs", lambda _, item: heard.append(item))
    answer = await world.it.drain_swarm(world.me, "docs", grace_ms=GRACE_MS, reason="upgrade")
    assert answer["pause"]["until_at_ms"] - answer["pause"]["since_at_ms"] == GRACE_MS
    assert sorted(answer["running"]) == sorted(f"{name}@{token}" for name, token in tokens.items())
    assert heard[0].items() >= {"kind": "draining", "until_at_ms": answer["pause"]["until_at_ms"]}.items()
    with pytest.raises(Paused) as refused:
        await world.it.claim_task(world.me, "new", "docs")
    assert refused.value.data["until_at_ms"] == answer["pause"]["until_at_ms"]
    assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
    await world.it.complete_task(world.me, "done", "docs", tokens["done"])
    assert (await world.show("left"))["state"] == "claimed"
    task = await world.until_state("left", "ready")
    assert wall_ms() - answer["pause"]["until_at_ms"] in range(3_000)
    assert (task["percent"], task["note"]) == (40, "half of it")
    with pytest.raises(StaleToken):
        await world.it.complete_task(world.me, "left", "docs", tokens["left"])
    claim = (await world.it.claim_task(world.me, "left", "other"))["claim"]
    assert "swarm docs was drained: upgrade" in str(claim["handover"])
    assert [item["reason"] for item in heard if item["kind"] == "lease_lost"] == ["drained"]
    assert not (await world.account("docs")).holds


async def test_a_drain_goes_on_over_a_restart_and_ends_with_a_resume(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The grace is over while the daemon is away: the claim is given back at once; a resume lets the swarm work again."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=24 * HOUR_MS)
        await world.task("T")
        await world.token("T", "docs")
        await world.it.drain_swarm(world.me, "docs", grace_ms=GRACE_MS)
    await trio.sleep(2 * GRACE_MS / 1000)
    async with open_world(tmp_path) as world:
        await world.until_state("T", "ready")
        with pytest.raises(Paused):
            await world.it.claim_task(world.me, "T", "docs")
        await world.swarm("docs", lease_ms=HOUR_MS)
        with pytest.raises(Paused):
            await world.it.claim_task(world.me, "T", "docs")
        assert (await world.it.resume(world.me, "swarm", "docs"))["was"]["until_at_ms"] < wall_ms()
        await world.token("T", "docs")


async def test_a_resume_before_the_end_lets_the_claims_live(autojump_clock: MockClock, world: World) -> None:
    """What was to be given back is not."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T")
    token = await world.token("T", "docs")
    await world.it.drain_swarm(world.me, "docs", grace_ms=GRACE_MS)
    await world.it.resume(world.me, "swarm", "docs")
    await trio.sleep(2 * GRACE_MS / 1000)
    await world.it.complete_task(world.me, "T", "docs", token)


async def test_a_drain_that_was_given_more_time_takes_nothing(world: World) -> None:
    """Whoever still believes in the former end finds the new one in the store, and leaves the claim alone."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T")
    token = await world.token("T", "docs")
    await world.it.drain_swarm(world.me, "docs", grace_ms=GRACE_MS)
    await world.it._give_back("swarm", "docs", "T", {"until_at_ms": wall_ms(), "reason": ""})
    await world.it.complete_task(world.me, "T", "docs", token)


async def test_a_drained_host_gives_out_nothing(autojump_clock: MockClock, world: World) -> None:
    """Neither by name nor the next one nor several, to anybody; status shows what is left, and then gives it back; `off` wakes who waits."""
    operator = world.caller(0)
    for name in ("docs", "other"):
        await world.swarm(name, lease_ms=HOUR_MS)
    for name in ("held", "new"):
        await world.task(name)
    token = await world.token("held", "docs")
    answer = await world.it.drain_host(operator, grace_ms=GRACE_MS, reason="reboot")
    assert answer["left"] == 1
    with pytest.raises(Paused) as refused:
        await world.it.claim_task(world.me, "new", "other")
    assert refused.value.data.items() >= {"paused": "host", "reason": "reboot", "by_uid": 0}.items()
    assert refused.value.would_change[0]["call"] == "ifbus drain --off"
    for n in (1, 3):
        answer = await world.it.claim_next(world.me, "other", n=n)
        assert answer["refusal"]["code"] == "paused"
    draining = world.it.statistics().draining
    assert draining is not None
    assert (draining["left"], draining["released"], draining["reason"]) == (1, 0, "reboot")
    won: list[Any] = []

    async def wait(task_id: str) -> None:
        if task_id:
            won.append(await world.it.claim_task(world.me, task_id, "other", wait_ms=HOUR_MS // 10))
        else:
            won.append(await world.it.claim_next(world.me, "other", wait_ms=HOUR_MS // 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "new")
        nursery.start_soon(wait, "")
        await wait_all_tasks_blocked()
        await world.until_state("held", "ready")
        with pytest.raises(StaleToken):
            await world.it.complete_task(world.me, "held", "docs", token)
        assert won == []
        draining = world.it.statistics().draining
        assert draining is not None
        assert (draining["left"], draining["released"]) == (0, 1)
        assert (await world.it.drain_host(operator, off=True))["drain"] is None
    assert sorted(answer["claim"]["task_id"] for answer in won) == ["held", "new"]
    assert world.it.statistics().draining is None


async def test_a_host_is_drained_before_it_stops(autojump_clock: MockClock, world: World) -> None:
    """It waits for what is held and no longer: until the last claim ends, or the grace does."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T")
    token = await world.token("T", "docs")

    async def finish() -> None:
        await trio.sleep(10)
        await world.it.complete_task(world.me, "T", "docs", token)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        await world.it.drain_to_stop(GRACE_MS)
    assert trio.current_time() < 15
    await world.it.drain_host(world.caller(0), off=True)
    await world.task("again")
    await world.token("again", "docs")
    began = trio.current_time()
    await world.it.drain_to_stop(GRACE_MS)
    assert 0 <= trio.current_time() - began - GRACE_MS / 1000 < 5
    assert (await world.show("again"))["state"] == "ready"


async def test_a_host_that_is_started_again_works(tmp_path: Path) -> None:
    """Its drain ends with it."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs")
        await world.task("T")
        await world.it.drain_host(world.caller(0))
        assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
    async with open_world(tmp_path) as world:
        assert (await world.it.claim_next(world.me, "docs"))["claimed"]


async def test_who_may_drain_a_swarm_and_what_is_on_record(world: World) -> None:
    """Its owner and operators; each drain is an entry of its own."""
    await world.swarm("docs")
    with pytest.raises(PermissionDenied):
        await world.it.drain_swarm(world.caller(STRANGER), "docs")
    await world.it.drain_swarm(world.me, "docs", reason="mine")
    await world.it.drain_host(world.caller(0), grace_ms=5, reason="r")
    entries = [entry for entry in await world.record() if "drain" in entry["op"]]
    assert [(entry["op"], entry["outcome"], entry.get("detail")) for entry in entries[1:]] == [
        ("coordinator.drain_swarm", "ok", {"kind": "swarm", "reason": "mine"}),
        ("coordinator.drain_host", "ok", {"on": True, "reason": "r", "grace_ms": 5}),
    ]
    assert entries[0]["outcome"] == "permission_denied"

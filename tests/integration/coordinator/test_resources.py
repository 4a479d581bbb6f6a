"""Named resources: one holder at a time, fenced, taken with a claim or not at all, and free when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import InvalidParams, LimitExceeded, NotOwner, NotReady, ResourceBusy, StaleToken
from ifbusd.coordinator.model import CLAIMS, HELD, LOCKS, CoordinatorConfig
from tests.integration.coordinator.test_recovery import crash_between
from tests.integration.coordinator.world import LEASE_MS, World, open_world

FILES = ["file:a.py", "file:b.py"]


async def acquire(world: World, swarm_id: str, *names: str, **more: Any) -> dict[str, int]:
    """The fences."""
    answer = await world.it.acquire_resources(world.me, swarm_id, list(names), **more)
    fences: dict[str, int] = answer["fences"]
    return fences


async def held(world: World, **more: Any) -> dict[str, str]:
    """Who holds what."""
    answer = await world.it.list_resources(world.me, **more)
    return {lock["resource"]: lock["swarm_id"] for lock in answer["resources"]}


async def test_a_claim_takes_its_tasks_resources_or_nothing(world: World) -> None:
    """With one of two resources held, the claim is refused and takes neither; the refusal says who, since when and what would help."""
    await world.swarm("docs")
    await world.swarm("other")
    await world.task("T-1", resources=FILES)
    await acquire(world, "other", "file:b.py")
    before = await world.stored()
    with pytest.raises(ResourceBusy) as busy:
        await world.it.claim_task(world.me, "T-1", "docs")
    assert await world.stored() == before
    data = busy.value.data
    assert (data["resource"], data["owner"]) == ("file:b.py", "other")
    assert 0 < data["lease_left_ms"] <= LEASE_MS
    assert data["held_ms"] >= 0
    assert busy.value.would_change
    assert (await world.outcomes("claim_task")) == ["resource_busy"]


async def test_a_claim_asks_for_more(world: World) -> None:
    """What the claim asks for is taken besides what the task names; another claim that wants one of them is refused."""
    await world.swarm("docs")
    await world.swarm("other")
    await world.task("T-1", resources=["gpu:0"])
    await world.task("T-2")
    answer = await world.it.claim_task(world.me, "T-1", "docs", resources=["port:8080", "gpu:0"])
    token = answer["claim"]["token"]
    assert answer["claim"]["resources"] == ["gpu:0", "port:8080"]
    locks = (await world.it.list_resources(world.me))["resources"]
    assert [(lock["resource"], lock["task_id"], lock["fence"]) for lock in locks] == [
        ("gpu:0", "T-1", token),
        ("port:8080", "T-1", token),
    ]
    with pytest.raises(ResourceBusy):
        await world.it.claim_task(world.me, "T-2", "other", resources=["port:8080"])
    await world.it.claim_task(world.me, "T-2", "other")


@pytest.mark.parametrize("verdict", ["complete", "fail", "release", "blocked"])
async def test_a_claim_that_ends_frees_them_in_the_same_commit(world: World, verdict: str) -> None:
    """However its holder ends it, claim and resources go in one revision."""
    await world.swarm("docs")
    await world.task("T-1", resources=FILES)
    token = await world.token("T-1", "docs")
    await acquire(world, "docs", "gpu:0", task_id="T-1", token=token)
    async with world.store.watch("", start_revision=world.store.revision + 1) as watch:
        match verdict:
            case "complete":
                await world.it.complete_task(world.me, "T-1", "docs", token)
            case "fail":
                await world.it.fail_task(world.me, "T-1", "docs", token, "no", retry=True)
            case "release":
                await world.it.release_task(world.me, "T-1", "docs", token)
            case _:
                info = {"reason": "stuck", "task_id": "T-1", "token": token, "release": True}
                await world.it.detect_blocker(world.me, "docs", info)
        batch = await watch.__anext__()
    gone = {event.key for event in batch if event.value is None}
    assert gone >= {f"{CLAIMS}T-1", f"{LOCKS}file:a.py", f"{LOCKS}file:b.py", f"{LOCKS}gpu:0"}
    assert await held(world) == {}


async def test_a_lease_that_runs_out_frees_them(world: World, autojump_clock: MockClock) -> None:
    """A holder that falls silent loses task and resources together; the next fence is higher."""
    await world.swarm("docs")
    await world.swarm("other", lease_ms=3_600_000)
    await world.task("T-1", resources=FILES)
    token = await world.token("T-1", "docs")
    answer = await world.it.claim_task(world.me, "T-1", "other", wait_ms=600_000)
    assert answer["claim"]["token"] > token
    assert await held(world) == dict.fromkeys(FILES, "other")
    assert autojump_clock.current_time() < 600


async def test_resources_are_held_by_one_of_many(world: World) -> None:
    """32 swarms ask for the same two at once, in either order: one has both, nobody has one."""
    names = [f"s-{number}" for number in range(32)]
    for name in names:
        await world.swarm(name)
    won: list[str] = []

    async def try_it(name: str, wanted: list[str]) -> None:
        try:
            await acquire(world, name, *wanted)
        except ResourceBusy:
            return
        won.append(name)

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(names):
            nursery.start_soon(try_it, name, FILES if number % 2 else FILES[::-1])
    [winner] = won
    assert await held(world) == dict.fromkeys(FILES, winner)


async def test_a_task_with_a_busy_resource_waits(world: World) -> None:
    """It is `waiting`, `claim_next` passes it over, and both kinds of waiting swarms get it when the resource is freed."""
    await world.swarm("docs")
    await world.swarm("other")
    fences = await acquire(world, "other", "gpu:0")
    await world.task("T-1", resources=["gpu:0"])
    task = await world.show("T-1")
    assert (task["state"], task["busy_resources"]) == ("waiting", ["gpu:0"])
    assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
    won: list[str] = []

    async def wait(how: str) -> None:
        if how == "next":
            answer = await world.it.claim_next(world.me, "docs", wait_ms=600_000)
        else:
            answer = await world.it.claim_task(world.me, "T-1", "docs", wait_ms=600_000)
        won.append(how)
        await world.it.release_task(world.me, "T-1", "docs", answer["claim"]["token"])

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "next")
            nursery.start_soon(wait, "named")
            await wait_all_tasks_blocked()
            assert won == []
            await world.it.release_resources(world.me, "other", fences)
    assert sorted(won) == ["named", "next"]


async def test_who_waits_for_a_resource_is_woken(world: World) -> None:
    """`acquire_resources` and a claim that asks for more wait in the daemon and win when it is freed."""
    await world.swarm("docs")
    await world.swarm("other")
    await world.task("T-1")
    fences = await acquire(world, "other", "gpu:0", "gpu:1")
    won: list[str] = []

    async def take() -> None:
        await acquire(world, "docs", "gpu:0", wait_ms=600_000)
        won.append("acquired")

    async def claim() -> None:
        await world.it.claim_task(world.me, "T-1", "docs", resources=["gpu:1"], wait_ms=600_000)
        won.append("claimed")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(claim)
            await wait_all_tasks_blocked()
            assert won == []
            await world.it.release_resources(world.me, "other", fences)
    assert sorted(won) == ["acquired", "claimed"]


async def test_waiting_ends_with_its_time(world: World, autojump_clock: MockClock) -> None:
    """Then the refusal is that of the last try."""
    await world.swarm("docs", lease_ms=3_600_000)
    await world.swarm("other", lease_ms=3_600_000)
    await acquire(world, "other", "gpu:0")
    with pytest.raises(ResourceBusy):
        await acquire(world, "docs", "gpu:0", wait_ms=5_000)
    assert autojump_clock.current_time() >= 5


async def test_an_older_fence_frees_nothing(world: World) -> None:
    """Released and taken again, the first fence is stale and says who holds it; a stranger's is not the swarm's; nothing is written."""
    await world.swarm("docs")
    await world.swarm("other")
    first = await acquire(world, "docs", "gpu:0")
    await world.it.release_resources(world.me, "docs", first)
    second = await acquire(world, "docs", "gpu:0", "gpu:1")
    assert second["gpu:0"] > first["gpu:0"]
    before = await world.stored()
    for fences in (first, {"gpu:1": second["gpu:1"], **first}, {"gpu:2": 7}):
        with pytest.raises(StaleToken) as stale:
            await world.it.release_resources(world.me, "docs", fences)
        assert stale.value.would_change
    with pytest.raises(NotOwner):
        await world.it.release_resources(world.me, "other", second)
    assert await world.stored() == before


async def test_one_of_a_claims_is_released_early(world: World) -> None:
    """The others stay until the claim ends, and what somebody else took meanwhile stays with them."""
    await world.swarm("docs")
    await world.swarm("other")
    await world.task("T-1", resources=FILES)
    token = await world.token("T-1", "docs")
    await world.it.release_resources(world.me, "docs", {"file:a.py": token})
    await acquire(world, "other", "file:a.py")
    await world.it.complete_task(world.me, "T-1", "docs", token)
    assert await held(world) == {"file:a.py": "other"}


async def test_acquiring_again_gives_the_same_fence(world: World, autojump_clock: MockClock) -> None:
    """And renews a lease of its own; for another task, or by another swarm, it is busy."""
    await world.swarm("docs", lease_ms=3_600_000)
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    fences = await acquire(world, "docs", "gpu:0", lease_ms=10_000)
    for _ in range(4):
        await trio.sleep(8)
        assert await acquire(world, "docs", "gpu:0", lease_ms=10_000) == fences
    with pytest.raises(ResourceBusy):
        await acquire(world, "docs", "gpu:0", task_id="T-1", token=token)
    await trio.sleep(11)
    assert await held(world) == {}


async def test_holding_for_a_claim_needs_its_token(world: World) -> None:
    """An ended claim takes nothing."""
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    await world.it.release_task(world.me, "T-1", "docs", token)
    with pytest.raises(StaleToken):
        await acquire(world, "docs", "gpu:0", task_id="T-1", token=token)
    assert await held(world) == {}


async def test_a_session_that_ends_frees_its_resources(world: World) -> None:
    """What a swarm holds by itself lives with its session."""
    registration = await world.swarm("docs")
    await acquire(world, "docs", "gpu:0")
    assert await held(world) == {"gpu:0": "docs"}
    await world.it.end_session(world.me, "docs", registration["resume_token"])
    assert await held(world) == {}


async def ends(world: World, number: int) -> list[tuple[str, dict[str, Any]]]:
    """The ends of holds on record, once there are so many, and nothing is left of them."""
    with trio.fail_after(600):
        while True:
            record = await world.record()
            found = [(one["target"], one["detail"]) for one in record if one["op"] == "coordinator.expire_resource"]
            if len(found) >= number and not [key for key in await world.stored() if key.startswith(HELD)]:
                return sorted(found, key=lambda one: one[0])
            await trio.sleep(0.05)


async def test_a_hold_that_ends_with_its_lease_is_on_record(world: World, autojump_clock: MockClock) -> None:
    """Once each, and who held it hears of it, also where another swarm has taken it since; what is released is none."""
    heard: list[Any] = []
    world.bus.subscribe("attention.docs", lambda _, item: heard.append((item["kind"], item["resource"], item["fence"])))
    await world.swarm("other", lease_ms=24 * 3_600_000)
    await world.swarm("docs")
    await world.it.release_resources(world.me, "docs", await acquire(world, "docs", "port:1"))
    session = await acquire(world, "docs", "gpu:0")
    own = await acquire(world, "docs", "gpu:1", lease_ms=5_000)
    await acquire(world, "other", "gpu:1", wait_ms=60_000)
    assert await held(world) == {"gpu:0": "docs", "gpu:1": "other"}
    lost = {"swarm": "docs", "reason": "lease_ended"}
    await world.it.register_swarm(world.me, "docs", capabilities=[])
    await world.it.release_resources(
        world.me, "other", {"gpu:1": (await world.it.list_resources(world.me))["resources"][0]["fence"]}
    )
    assert await ends(world, 2) == [
        ("gpu:0", {**lost, "reason": "session_replaced", "fence": session["gpu:0"]}),
        ("gpu:1", {**lost, "fence": own["gpu:1"]}),
    ]
    with trio.fail_after(60):
        while len(heard) < 2:  # that comes after the entry
            await trio.sleep(0.05)
    assert sorted(heard) == [("resource_lost", "gpu:0", session["gpu:0"]), ("resource_lost", "gpu:1", own["gpu:1"])]


async def test_a_hold_that_ended_in_a_crash_is_on_record(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The lock went with its lease, and the daemon before it could say so: the next one does, once."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=24 * 3_600_000)
        fences = await acquire(world, "docs", "gpu:0", lease_ms=60_000)
    crash_between(tmp_path / "ifbusd.db", "locks/gpu:0")
    for _ in range(2):
        async with open_world(tmp_path) as world:
            assert await ends(world, 1) == [
                ("gpu:0", {"swarm": "docs", "fence": fences["gpu:0"], "reason": "lease_ended"})
            ]


async def test_a_restart_keeps_what_is_held(tmp_path: Path) -> None:
    """After it the same swarm holds the same with the same fence, a task that names it waits, and its end frees it."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs")
        await world.task("T-1", resources=["gpu:0"])
        await world.task("T-2", resources=["gpu:0"])
        token = await world.token("T-1", "docs")
    async with open_world(tmp_path) as world:
        assert await held(world) == {"gpu:0": "docs"}
        assert (await world.show("T-2"))["state"] == "waiting"
        await world.it.complete_task(world.me, "T-1", "docs", token)
        await world.token("T-2", "docs")


async def test_why_shows_the_resources(world: World) -> None:
    """`explain_claim` has a line for them where a task names some, with the claim's own words."""
    await world.swarm("docs")
    await world.swarm("other")
    await world.task("T-1", resources=["gpu:0"])
    [check] = [
        one for one in (await world.it.explain_claim(world.me, "T-1", "docs"))["checks"] if one["check"] == "resources"
    ]
    assert check["ok"]
    await acquire(world, "other", "gpu:0")
    explained = await world.it.explain_claim(world.me, "T-1", "docs")
    [check] = [one for one in explained["checks"] if one["check"] == "resources"]
    with pytest.raises(ResourceBusy) as busy:
        await world.it.claim_task(world.me, "T-1", "docs")
    assert (check["ok"], check["message"]) == (False, busy.value.message)
    assert not explained["would_succeed"]


async def test_what_a_user_holds_is_bounded(tmp_path: Path) -> None:
    """Beyond `resources_per_uid`, neither an acquisition nor a claim takes one; releasing makes room."""
    async with open_world(tmp_path, config=CoordinatorConfig(resources_per_uid=2)) as world:
        await world.swarm("docs")
        await world.task("T-1", resources=["gpu:9"])
        fences = await acquire(world, "docs", *FILES)
        with pytest.raises(LimitExceeded):
            await acquire(world, "docs", "gpu:0")
        with pytest.raises(LimitExceeded):
            await world.it.claim_task(world.me, "T-1", "docs")
        await world.it.release_resources(world.me, "docs", fences)
        await world.token("T-1", "docs")


@pytest.mark.parametrize("name", ["", "gpu", "GPU:0", "gpu:", "gpu:a b", "gpu:0@1", "x:" + "a" * 161, "gpu:\n", 7])
async def test_what_cannot_be_a_resource_is_refused(world: World, name: Any) -> None:
    """Wherever a name can be given, it never becomes a key of the store."""
    await world.swarm("docs")
    await world.task("T-1")
    with pytest.raises(InvalidParams):
        await acquire(world, "docs", name)
    with pytest.raises(InvalidParams):
        await world.it.create_task(world.me, "x", resources=[name])
    with pytest.raises(InvalidParams):
        await world.it.claim_task(world.me, "T-1", "docs", resources=[name])
    with pytest.raises(InvalidParams):
        await world.it.release_resources(world.me, "docs", {name: 1})


async def test_there_are_bounds_of_one_call(world: World) -> None:
    """None, or too many, at a time, or of one claim, are refused."""
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    with pytest.raises(InvalidParams):
        await acquire(world, "docs")
    with pytest.raises(InvalidParams):
        await acquire(world, "docs", *(f"gpu:{number}" for number in range(17)))
    with pytest.raises(InvalidParams):
        await acquire(world, "docs", "gpu:0", task_id="T-1")
    for start in (0, 16):
        await acquire(world, "docs", *(f"gpu:{start + n}" for n in range(16)), task_id="T-1", token=token)
    with pytest.raises(LimitExceeded):
        await acquire(world, "docs", "gpu:99", task_id="T-1", token=token)
    await world.it.complete_task(world.me, "T-1", "docs", token)
    with pytest.raises(NotReady):
        await world.it.claim_task(world.me, "T-1", "docs")


async def test_listing_pages(world: World) -> None:
    """By prefix and holder, in order of the names, page by page."""
    await world.swarm("docs")
    await world.swarm("other")
    await acquire(world, "docs", "file:c", "file:a", "gpu:0")
    await acquire(world, "other", "file:b")
    assert list(await held(world, prefix="file:")) == ["file:a", "file:b", "file:c"]
    assert list(await held(world, holder="docs")) == ["file:a", "file:c", "gpu:0"]
    answer = await world.it.list_resources(world.me, limit=2)
    assert (len(answer["resources"]), answer["total"], answer["next"]) == (2, 4, "file:b")
    assert list(await held(world, after="file:b")) == ["file:c", "gpu:0"]

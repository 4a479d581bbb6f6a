"""What keeps a ready task back: pauses of tasks, groups and swarms, and concurrency keys; across ends, races and restarts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import AtCapacity, InvalidParams, NotReady, Paused, PermissionDenied
from tests.integration.coordinator.world import LEASE_MS, STRANGER, WALL_MS, Connection, World, open_world, wall_ms

HOUR_MS = 3_600_000
Kind = Literal["task", "group", "swarm"]
WHAT: dict[Kind, str] = {"task": "T", "group": "night", "swarm": "docs"}


async def paused_world(world: World, kind: Kind) -> Any:
    """Something ready for a swarm that would take it, and a pause of one of the three by the operator."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T", group="night")
    return await world.it.pause(world.caller(0), kind, WHAT[kind], reason="disk full")


@pytest.mark.parametrize("kind", WHAT)
async def test_what_is_paused_is_not_to_be_had(world: World, kind: Kind) -> None:
    """Not by name, not as the next one, not by a push; each no says who paused it, why and since when."""
    answer = await paused_world(world, kind)
    expected = answer["pause"]
    assert expected.items() >= {"by_uid": 0, "by_operator": True, "reason": "disk full"}.items()
    assert WALL_MS < expected["since_at_ms"] <= wall_ms()
    with pytest.raises(Paused) as refused:
        await world.it.claim_task(world.me, "T", "docs")
    assert refused.value.data.items() >= {"paused": kind, "name": WHAT[kind], **expected}.items()
    assert refused.value.would_change[0]["call"] == f"ifbus resume {kind} {WHAT[kind]}"
    assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
    with pytest.raises(Paused):
        await world.it.push_task_to_swarm(world.me, "T", "docs")
    explained = await world.it.explain_claim(world.me, "T", "docs")
    assert not explained["would_succeed"]
    assert [check["data"]["paused"] for check in explained["checks"] if not check["ok"]] == [kind]
    assert (await world.it.resume(world.caller(0), kind, WHAT[kind]))["was"] == expected
    await world.token("T", "docs")


@pytest.mark.parametrize("kind", WHAT)
async def test_a_pause_outlives_a_restart(tmp_path: Path, kind: Kind) -> None:
    """It stands in the store, and so does its end."""
    async with open_world(tmp_path) as world:
        await paused_world(world, kind)
    async with open_world(tmp_path) as world:
        assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
        with pytest.raises(Paused):
            await world.it.claim_task(world.me, "T", "docs")
        await world.it.resume(world.caller(0), kind, WHAT[kind])
    async with open_world(tmp_path) as world:
        assert (await world.it.claim_next(world.me, "docs"))["claimed"]


@pytest.mark.parametrize("kind", WHAT)
@pytest.mark.parametrize("is_named", [True, False])
async def test_a_resume_wakes_who_waits(autojump_clock: MockClock, world: World, kind: Kind, is_named: bool) -> None:
    """Whoever waits, for this task or any, gets it when the pause ends."""
    await paused_world(world, kind)
    claimed: list[Any] = []

    async def wait() -> None:
        if is_named:
            claimed.append(await world.it.claim_task(world.me, "T", "docs", wait_ms=600_000))
        else:
            claimed.append(await world.it.claim_next(world.me, "docs", wait_ms=600_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(60)
        assert claimed == []
        await world.it.resume(world.caller(0), kind, WHAT[kind])
    assert claimed[0]["claimed"]
    assert trio.current_time() < 61


async def test_two_that_are_paused_do_not_wake_each_other(autojump_clock: MockClock, world: World) -> None:
    """Both wait for one ready task by name while their swarms are paused: nothing is tried again and again."""
    await paused_world(world, "swarm")
    await world.swarm("more", lease_ms=HOUR_MS)
    await world.it.pause(world.me, "swarm", "more")

    async def wait(swarm_id: str) -> None:
        with pytest.raises(Paused):
            await world.it.claim_task(world.me, "T", swarm_id, wait_ms=60_000)

    async with trio.open_nursery() as nursery:
        for swarm_id in ("docs", "docs", "more"):
            nursery.start_soon(wait, swarm_id)
    assert await world.outcomes("claim_task") == ["paused"] * 3


async def test_waiting_through_a_pause_says_so(autojump_clock: MockClock, world: World) -> None:
    """A swarm that waited in vain because it is paused hears that, not that nothing is ready."""
    await paused_world(world, "swarm")
    answer = await world.it.claim_next(world.me, "docs", wait_ms=1_000)
    assert (answer["claimed"], answer["refusal"]["code"]) == (False, "paused")


@pytest.mark.parametrize("kind", WHAT)
async def test_what_is_held_goes_on_and_its_holder_hears(world: World, kind: Kind) -> None:
    """The running claim can be completed; attention says what was paused, and so does a new connection's."""
    await world.swarm("docs")
    await world.task("T", group="night")
    token = await world.token("T", "docs")
    heard: list[Any] = []
    world.bus.subscribe("attention.docs", lambda _, item: heard.append(item))
    answer = await world.it.pause(world.caller(0), kind, WHAT[kind], reason="later")
    assert answer["running"] == [f"T@{token}"]
    assert [(item["kind"], item["paused"], item["claims"]) for item in heard] == [("paused", kind, [f"T@{token}"])]
    if kind == "swarm":
        assert (await world.it.attention(world.me, "docs"))[0].items() >= {"kind": "paused", "reason": "later"}.items()
    assert (await world.show("T"))["state"] == "claimed"
    await world.it.complete_task(world.me, "T", "docs", token)
    await world.it.resume(world.caller(0), kind, WHAT[kind]) if kind != "task" else None


async def test_a_paused_task_says_so_on_the_board(world: World) -> None:
    """Its state is paused, in its own view and in lists; freed while paused it stays so."""
    await world.swarm("docs")
    await world.task("T")
    token = await world.token("T", "docs")
    await world.it.pause(world.me, "task", "T")
    await world.it.release_task(world.me, "T", "docs", token)
    assert (await world.show("T"))["state"] == "paused"
    listed = await world.it.list_tasks(world.me, states=["paused"])
    assert [task["task_id"] for task in listed["tasks"]] == ["T"]
    assert listed["counts"] == {"paused": 1}


async def test_who_may_pause(world: World) -> None:
    """A task's creator and a swarm's owner, and operators; what an operator paused only operators let go on or change."""
    await world.swarm("docs")
    await world.task("T", group="night")
    stranger, operator = world.caller(STRANGER), world.caller(0)
    for kind, name in WHAT.items():
        with pytest.raises(PermissionDenied):
            await world.it.pause(stranger, kind, name)
        with pytest.raises(PermissionDenied):
            await world.it.resume(stranger, kind, name)
    with pytest.raises(PermissionDenied):
        await world.it.pause(world.me, "group", "night")
    kinds: tuple[Kind, Kind] = ("task", "swarm")
    for kind in kinds:
        name = WHAT[kind]
        await world.it.pause(world.me, kind, name, reason="mine")
        await world.it.resume(world.me, kind, name)
        await world.it.pause(operator, kind, name, reason="theirs")
        assert (await world.it.pause(world.me, kind, name, reason="mine"))["pause"]["reason"] == "theirs"
        with pytest.raises(PermissionDenied):
            await world.it.resume(world.me, kind, name)
        await world.it.resume(operator, kind, name)


async def test_pauses_are_on_record(world: World) -> None:
    """Each with its kind and reason, refusals too."""
    await paused_world(world, "group")
    with pytest.raises(PermissionDenied):
        await world.it.resume(world.me, "group", "night")
    await world.it.resume(world.caller(0), "group", "night")
    entries = [entry for entry in await world.record() if entry["op"] in ("coordinator.pause", "coordinator.resume")]
    assert [(entry["op"], entry["target"], entry["outcome"], entry["uid"]) for entry in entries] == [
        ("coordinator.pause", "night", "ok", 0),
        ("coordinator.resume", "night", "permission_denied", 1000),
        ("coordinator.resume", "night", "ok", 0),
    ]
    assert entries[0]["detail"] == {"kind": "group", "reason": "disk full"}


async def test_a_final_task_is_not_paused(world: World) -> None:
    """There is nothing to keep back."""
    await world.swarm("docs")
    await world.task("T")
    await world.it.complete_task(world.me, "T", "docs", await world.token("T", "docs"))
    with pytest.raises(NotReady):
        await world.it.pause(world.me, "task", "T")


async def test_groups_are_listed_and_forgotten(world: World) -> None:
    """A group is kept while it has a weight or a pause."""
    operator = world.caller(0)
    await world.it.set_group_weight(operator, "night", 3)
    await world.it.pause(operator, "group", "day", reason="r")
    listed = (await world.it.list_groups(world.me))["groups"]
    assert [(group["group"], group["weight"], group["pause"] and group["pause"]["reason"]) for group in listed] == [
        ("day", 1, "r"),
        ("night", 3, None),
    ]
    assert (await world.it.list_groups(world.me, limit=1))["next"] == "day"
    await world.it.set_group_weight(operator, "night", 0)
    await world.it.resume(operator, "group", "day")
    assert (await world.it.list_groups(world.me))["groups"] == []
    assert not [key for key in await world.stored() if key.startswith("groups/")]
    with pytest.raises(InvalidParams):
        await world.it.set_group_weight(operator, "night", 1001)


async def test_groups_get_their_share_of_the_claims(world: World) -> None:
    """With weights 3 and 1 and enough to do in both, 40 claims are 30 and 10."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.it.set_group_weight(world.caller(0), "day", 3)
    await world.it.set_group_weight(world.caller(0), "night", 1)
    for n in range(40):
        await world.task(f"night-{n}", group="night", priority=50)
        await world.task(f"day-{n}", group="day")
    taken = [(await world.it.claim_next(world.me, "docs"))["claim"]["task"]["group"] for _ in range(40)]
    assert (taken.count("day"), taken.count("night")) == (30, 10)


# --- concurrency keys ----------------------------------------------------------------------------------


async def keyed(world: World, number: int, *, limit: int = 2) -> list[str]:
    """So many tasks of one key, and a swarm for each."""
    for n in range(number):
        await world.swarm(f"s{n}")
    return [
        await world.task(f"T-{n}", concurrency_key="repo:site", concurrency_limit=limit, priority=-n)
        for n in range(number)
    ]


async def test_a_full_key_is_refused_with_its_holders(world: World) -> None:
    """The third of two is told how many are held, by which tasks; `explain_claim` says the same; other keys do not count."""
    await keyed(world, 3)
    await world.task("other", concurrency_key="repo:other")
    for n in range(2):
        await world.token(f"T-{n}", f"s{n}")
    with pytest.raises(AtCapacity) as refused:
        await world.it.claim_task(world.me, "T-2", "s2")
    figures = {"limit": "concurrency_key", "key": "repo:site", "used": 2, "allowed": 2, "holders": ["T-0", "T-1"]}
    assert refused.value.data.items() >= figures.items()
    explained = await world.it.explain_claim(world.me, "T-2", "s2")
    assert [check["data"] for check in explained["checks"] if not check["ok"]] == [{**figures, "task_id": "T-2"}]
    assert (await world.it.claim_next(world.me, "s2"))["claim"]["task_id"] == "other"


@pytest.mark.parametrize("end", ["complete", "fail", "retry", "release", "lease", "session", "connection", "replaced"])
async def test_a_place_is_free_however_a_claim_ends(autojump_clock: MockClock, tmp_path: Path, end: str) -> None:
    """Whoever waits for the next task of the key gets it, whatever ended the claim that held the place; again and again."""
    async with open_world(tmp_path) as world:
        await keyed(world, 5, limit=1)
        await world.swarm("waits", lease_ms=HOUR_MS)
        for n in range(4):
            connection = Connection()
            session = await world.swarm(f"s{n}")
            caller = world.caller(session=connection)
            bind = "connection" if end == "connection" else None
            own = LEASE_MS if end in ("lease", "connection") else None
            answer = await world.it.claim_task(caller, f"T-{n}", f"s{n}", lease_ms=own, bind=bind)
            token = answer["claim"]["token"]
            won: list[Any] = []

            async def wait(n: int, won: list[Any]) -> None:
                won.append(await world.it.claim_task(world.me, f"T-{n + 1}", "waits", wait_ms=600_000))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, n, won)
                await wait_all_tasks_blocked()
                assert won == []
                if end == "complete":
                    await world.it.complete_task(world.me, f"T-{n}", f"s{n}", token)
                elif end in ("fail", "retry"):
                    await world.it.fail_task(world.me, f"T-{n}", f"s{n}", token, "why", retry=end == "retry")
                elif end == "release":
                    await world.it.release_task(world.me, f"T-{n}", f"s{n}", token)
                elif end == "session":
                    await world.it.end_session(world.me, f"s{n}", session["resume_token"])
                elif end == "connection":
                    connection.close()
                elif end == "replaced":
                    await world.swarm(f"s{n}")
            assert won[0]["claimed"]
            await world.it.release_task(world.me, f"T-{n + 1}", "waits", won[0]["claim"]["token"])


async def test_a_key_never_holds_more_than_its_limit(world: World) -> None:
    """32 swarms at once on 32 tasks of a key with 3 places: three have one, and whoever looks at any moment sees at most three."""
    await keyed(world, 32, limit=3)
    won: list[str] = []

    async def claim(n: int) -> None:
        with contextlib.suppress(AtCapacity):
            if (await world.it.claim_task(world.me, f"T-{n}", f"s{n}"))["claimed"]:
                won.append(f"T-{n}")

    async with trio.open_nursery() as nursery:
        for n in range(32):
            nursery.start_soon(claim, n)
    assert len(won) == 3
    assert {key for key in await world.stored() if key.startswith("claims/")} == {f"claims/{name}" for name in won}


async def test_a_key_is_right_after_a_restart(tmp_path: Path) -> None:
    """What is held still counts; what ended meanwhile does not."""
    async with open_world(tmp_path) as world:
        await keyed(world, 4)
        for n in range(2):
            await world.token(f"T-{n}", f"s{n}")
    async with open_world(tmp_path) as world:
        with pytest.raises(AtCapacity):
            await world.it.claim_task(world.me, "T-2", "s2")
        held = await world.store.get("claims/T-0")
        assert held is not None
        await world.store.revoke(held.lease)
    async with open_world(tmp_path) as world:
        await world.token("T-2", "s2")
        with pytest.raises(AtCapacity) as refused:
            await world.it.claim_task(world.me, "T-3", "s3")
        assert sorted(refused.value.data["holders"]) == ["T-1", "T-2"]


async def test_a_key_is_forgotten_with_its_last_task(autojump_clock: MockClock, world: World) -> None:
    """Its record stays while a task of it is held, whatever else of it is removed, and no limit is passed meanwhile."""
    await world.swarm("docs", lease_ms=24 * HOUR_MS)
    for name in ("T-0", "T-1", "T-2"):
        await world.task(name, concurrency_key="repo:site", concurrency_limit=2, retention_ms=60_000)
    first, second = [await world.token(name, "docs") for name in ("T-0", "T-1")]
    await world.it.complete_task(world.me, "T-0", "docs", first)
    with trio.fail_after(HOUR_MS):
        while "tasks/T-0" in await world.stored():
            await trio.sleep(1)
    third = await world.token("T-2", "docs")
    await world.task("T-3", concurrency_key="repo:site", concurrency_limit=2)
    with pytest.raises(AtCapacity) as refused:
        await world.it.claim_task(world.me, "T-3", "docs")
    assert refused.value.data["holders"] == ["T-1", "T-2"]
    await world.it.complete_task(world.me, "T-1", "docs", second)
    await world.it.complete_task(world.me, "T-2", "docs", third)
    with trio.fail_after(HOUR_MS):
        while not {"tasks/T-1", "tasks/T-2"}.isdisjoint(await world.stored()):
            await trio.sleep(1)
    assert not [key for key in await world.stored() if key.startswith("keys/")]
    await world.token("T-3", "docs")


async def test_tasks_of_a_key_may_differ_in_their_limit(world: World) -> None:
    """Each counts all that are held of the key against its own limit."""
    await world.swarm("s")
    for name, limit in (("wide-1", 3), ("wide-2", 3), ("narrow", 2), ("wide-3", 3)):
        await world.task(name, concurrency_key="k", concurrency_limit=limit)
    for name in ("wide-1", "wide-2"):
        await world.token(name, "s")
    with pytest.raises(AtCapacity):
        await world.it.claim_task(world.me, "narrow", "s")
    await world.token("wide-3", "s")


@pytest.mark.parametrize(
    "odd", [{"concurrency_key": "a b"}, {"concurrency_key": "k", "concurrency_limit": 0}, {"weight": 0}, {"group": "/"}]
)
async def test_what_a_task_may_ask_for_is_checked(world: World, odd: dict[str, Any]) -> None:
    """The parameter is named."""
    with pytest.raises(InvalidParams) as refused:
        await world.task("T", **odd)
    assert refused.value.data["param"] in odd


async def test_a_filler_waits_for_everything_better(world: World) -> None:
    """A filler that was pushed to a swarm is not claimed while anything better is ready for it, and is before other fillers."""
    await world.swarm("docs")
    await world.task("filler", filler=True)
    await world.task("pushed", filler=True)
    await world.it.push_task_to_swarm(world.me, "pushed", "docs")
    await world.task("better", priority=-100)
    taken = [(await world.it.claim_next(world.me, "docs"))["claim"]["task_id"] for _ in range(3)]
    assert taken == ["better", "pushed", "filler"]


async def test_age_counts_from_when_a_task_became_ready(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Also after a restart: a task that waited for another is as old as that one's end, one that is given back keeps its age."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=24 * HOUR_MS)
        await world.task("first")
        await world.task("after", depends_on=["first"])
        await world.task("given-back", priority=1)
        token = await world.token("given-back", "docs")
        await trio.sleep(3600)
        await world.task("later", priority=30)
        await world.it.complete_task(world.me, "first", "docs", await world.token("first", "docs"))
        await trio.sleep(29 * 60)
        await world.it.release_task(world.me, "given-back", "docs", token)
    async with open_world(tmp_path) as world:
        taken = [(await world.it.claim_next(world.me, "docs"))["claim"]["task_id"] for _ in range(3)]
        assert taken == ["given-back", "later", "after"]

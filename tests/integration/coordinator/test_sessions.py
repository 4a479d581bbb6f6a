"""Sessions: incarnations, resuming, and what becomes of claims when a session ends, is replaced or runs out."""

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import StaleToken, Unavailable
from ifbus.models import SwarmProfile
from ifbus.money import MicroUsd
from ifbusd.codec import pack
from ifbusd.coordinator.core import Answer
from ifbusd.coordinator.model import BEGUN, SESSIONS
from tests.integration.coordinator.test_recovery import crash_between
from tests.integration.coordinator.world import LEASE_MS, STRANGER, World, open_world

HOUR_MS = 3_600_000


async def test_registering_starts_a_session(world: World) -> None:
    """The answer has the profile, the incarnation, a secret to resume it, and no claims yet."""
    answer = await world.swarm("docs", "docs:writing", budget=1_000_000)
    profile = SwarmProfile.from_wire(answer["profile"])
    assert (profile.swarm_id, profile.capabilities, answer["incarnation"]) == ("docs", ("docs:writing",), 1)
    assert (answer["lease_ms"], answer["resumed"], answer["claims"]) == (LEASE_MS, False, [])
    assert world.it.statistics().sessions == 1
    secret = answer["resume_token"].encode()
    assert not [key for key, value in (await world.stored()).items() if secret in value]
    assert secret not in b"".join(entry.record for entry in await world.store.read_log())


async def test_a_new_incarnation_inherits_nothing(world: World) -> None:
    """Registering again frees the claims of before, also those on leases of their own, and their tokens are void at once."""
    first = await world.swarm("docs", budget=1_000_000, lease_ms=HOUR_MS)
    await world.task("T-1", estimate_usd=10)
    await world.task("T-2", estimate_usd=10)
    token = await world.token("T-1", "docs")
    own = await world.token("T-2", "docs", lease_ms=HOUR_MS)
    second = await world.swarm("docs", lease_ms=HOUR_MS)
    assert (second["incarnation"], second["resumed"], second["claims"]) == (2, False, [])
    assert second["resume_token"] != first["resume_token"]
    for task_id, old in (("T-1", token), ("T-2", own)):
        assert (await world.show(task_id))["state"] == "ready"
        with pytest.raises(StaleToken):
            await world.it.complete_task(world.me, task_id, "docs", old)
    with pytest.raises(StaleToken):
        await world.it.renew_session(world.me, "docs", first["resume_token"])
    while (await world.account("docs")).holds:
        await trio.sleep(0.01)
    assert sorted(await world.outcomes("expire_claim")) == ["ok", "ok"]


async def test_a_replaced_incarnation_is_fenced_before_its_claims_are_freed(world: World) -> None:
    """From the new registration's commit on, an old token counts for nothing, though its claim still stands in the store."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    tried = trio.Event()
    is_claimed = await world.store.get("claims/T-1")

    async def act_at_once() -> None:
        async with world.store.watch("sessions/docs") as watch:
            async for _ in watch:
                assert await world.store.get("claims/T-1") == is_claimed
                with pytest.raises(StaleToken) as refused:
                    await world.it.complete_task(world.me, "T-1", "docs", token)
                assert refused.value.data["owner_incarnation"] == 2
                tried.set()
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(act_at_once)
        await wait_all_tasks_blocked()
        await world.swarm("docs")
        await tried.wait()


async def test_the_resume_token_brings_a_session_back(world: World) -> None:
    """Whoever proves it goes on: same incarnation, same claims with their tokens; a wrong one begins anew."""
    first = await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    resumed = await world.swarm("docs", resume=first["resume_token"])
    assert (resumed["resumed"], resumed["incarnation"]) == (True, 1)
    assert [(claim["task_id"], claim["token"]) for claim in resumed["claims"]] == [("T-1", token)]
    await world.it.report_progress(world.me, "T-1", "docs", token, 10)
    stranger = await world.swarm("docs", resume="a guess")
    assert (stranger["resumed"], stranger["incarnation"]) == (False, 2)


async def test_a_retried_registration_is_one(world: World) -> None:
    """The same key gives the same secret and starts no second incarnation."""
    caller = world.caller(key="k", body="register")
    first = await world.it.register_swarm(caller, "docs")
    again = await world.it.register_swarm(caller, "docs")
    assert (again["incarnation"], again["resume_token"]) == (1, first["resume_token"])
    assert again["receipt"]["replayed"] is True
    assert await world.outcomes("register_swarm") == ["ok"]


async def test_heartbeats_keep_a_session_and_all_its_claims(autojump_clock: MockClock, world: World) -> None:
    """Renewing names the claims; when it stops, session and claims end."""
    session = await world.swarm("docs", lease_ms=1_000)
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    for _ in range(5):
        await trio.sleep(0.7)
        answer = await world.it.renew_session(world.me, "docs", session["resume_token"])
        assert answer == {"lease_ms": 1_000, "claims": [f"T-1@{token}"], "bound": None}
    await world.until_state("T-1", "ready")
    with pytest.raises(StaleToken) as ended:
        await world.it.renew_session(world.me, "docs", session["resume_token"])
    assert ended.value.would_change
    assert world.it.statistics().sessions == 0
    assert await world.outcomes("renew_session") == ["stale_token"]


async def test_ending_a_session_frees_its_claims_at_once(world: World) -> None:
    """When it answers they are free; claims on leases of their own stay; ending twice is fine."""
    session = await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    await world.task("T-2")
    await world.token("T-1", "docs")
    own = await world.token("T-2", "docs", lease_ms=HOUR_MS)
    answer = await world.it.end_session(world.me, "docs", session["resume_token"])
    assert answer["freed"] == ["T-1"]
    assert (await world.show("T-1"))["state"] == "ready"
    await world.it.complete_task(world.me, "T-2", "docs", own)
    assert (await world.it.end_session(world.me, "docs", session["resume_token"]))["freed"] == []
    with pytest.raises(StaleToken):
        await world.it.renew_session(world.me, "docs", session["resume_token"])


async def session_ends(world: World, number: int) -> list[tuple[str, dict[str, Any]]]:
    """The ends of sessions with their leases on record, once there are so many and nothing is left of sessions that are gone."""
    with trio.fail_after(600):
        while True:
            record = await world.record()
            found = [(one["target"], one["detail"]) for one in record if one["op"] == "coordinator.expire_session"]
            keys = await world.stored()
            begun = {key.split("/")[1] for key in keys if key.startswith(BEGUN)}
            if len(found) >= number and begun == {key.split("/")[1] for key in keys if key.startswith(SESSIONS)}:
                return sorted(found, key=lambda one: one[0])
            await trio.sleep(0.05)


async def test_a_session_that_ends_with_its_lease_is_on_record(autojump_clock: MockClock, world: World) -> None:
    """Once, and the swarm hears of it; one that was ended, replaced or resumed is on record by that."""
    heard: list[Any] = []
    world.bus.subscribe("attention.docs", lambda _, item: heard.append(item["kind"]))
    for name in ("docs", "ended", "replaced", "resumed"):
        session = await world.swarm(name, lease_ms=1_000 if name == "docs" else HOUR_MS)
        if name == "ended":
            await world.it.end_session(world.me, name, session["resume_token"])
        elif name == "replaced":
            await world.swarm(name, lease_ms=HOUR_MS)
        elif name == "resumed":
            await world.swarm(name, resume=session["resume_token"])
    lost = {"incarnation": 1, "reason": "lease_ended"}
    assert await session_ends(world, 1) == [("docs", lost)]
    with trio.fail_after(60):
        while heard != ["session_ended"]:  # that comes after the entry
            await trio.sleep(0.05)
    await world.swarm("docs", lease_ms=1_000)
    assert await session_ends(world, 2) == [("docs", lost), ("docs", {**lost, "incarnation": 2})]


async def test_a_session_that_ended_in_a_crash_is_on_record(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It went with its lease, and the daemon before it could say so: the next one does, once."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=HOUR_MS)
        await world.swarm("other", lease_ms=24 * HOUR_MS)
    crash_between(tmp_path / "ifbusd.db", "sessions/docs")
    for _ in range(2):
        async with open_world(tmp_path) as world:
            assert await session_ends(world, 1) == [("docs", {"incarnation": 1, "reason": "lease_ended"})]


async def test_one_of_two_daemons_records_the_end_of_a_session(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Both see it."""
    async with open_world(tmp_path, host="a") as a, open_world(tmp_path, host="b", beside=a) as b:
        await b.swarm("docs", lease_ms=1_000)
        assert len(await session_ends(a, 1)) == 1
        await trio.sleep(600)
        assert await a.outcomes("expire_session") == ["ok"]


async def test_an_end_that_is_on_record_is_answered_while_the_store_is_away(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leases cannot be revoked: that is done as soon as the store answers again."""

    async def away(_: int) -> None:
        raise Unavailable("cannot reach the store")

    session = await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    await world.token("T-1", "docs")
    with monkeypatch.context() as patch, trio.fail_after(60):
        patch.setattr(world.store, "revoke", away)
        answer = await world.it.end_session(world.me, "docs", session["resume_token"])
        assert answer["freed"] == ["T-1"]
        assert (await world.swarm("docs"))["incarnation"] == 2
    await world.until_state("T-1", "ready")


async def test_a_claim_without_a_session_lives_on_its_own_lease(autojump_clock: MockClock, world: World) -> None:
    """A one-shot command's claim gets the default lease, and a later registration leaves it alone."""
    await world.profile("docs")
    await world.task("T-1")
    answer = await world.it.claim_task(world.me, "T-1", "docs")
    assert (answer["claim"]["bound_to"], answer["claim"]["lease_ms"]) == ("lease", LEASE_MS)
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.it.report_progress(world.me, "T-1", "docs", answer["claim"]["token"], 5)
    await world.until_state("T-1", "ready")


async def test_attention_names_claims_and_mail(world: World) -> None:
    """What a swarm should know first: what it holds, and how much waits for it."""
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    await world.it.broadcast(world.me, "news", {})
    items = await world.it.attention(world.me, "docs")
    assert items[0] == {"kind": "holding", "handle": f"T-1@{token}", "message": f"you still hold T-1@{token}"}
    assert (items[1]["kind"], items[1]["letters"], items[1]["urgent"]) == ("mail", 1, 0)


async def test_attention_names_the_most_urgent_first(world: World) -> None:
    """A swarm that comes back hears that its budget is low or that it is stopped, in the words of the push, before what can wait."""
    pushed: list[Answer] = []
    world.bus.subscribe("attention.docs", lambda _, item: pushed.append(item))
    await world.swarm("docs", budget=1_000_000, orchestrator=True)
    await world.swarm("other")
    await world.task("T-1")
    await world.token("T-1", "docs")
    await world.it.broadcast(world.me, "news", {})
    for cost, open_now in ((900_000, "budget_low"), (200_000, "breaker_tripped")):
        await world.governor.track_cost(world.me, "docs", "llm", MicroUsd(cost))
        items = await world.it.attention(world.me, "docs")
        assert [item["kind"] for item in items] == [open_now, "holding", "mail"]
        told = {name: value for name, value in pushed[-1].items() if name != "revision"}
        assert told == items[0] | {"at_ms": told["at_ms"]}
    stopped, *_ = await world.it.attention(world.me, "docs")
    assert stopped["at_ms"] == pushed[-1]["at_ms"] == stopped["tripped_at_ms"]
    assert stopped["message"].startswith("docs is stopped until an operator's reset: budget used up")
    await world.it.detect_blocker(world.me, "other", {"reason": "stuck", "severity": "critical"})
    kinds = [item["kind"] for item in await world.it.attention(world.me, "docs")]
    assert kinds == ["breaker_tripped", "mail", "holding"]
    await world.governor.reset_circuit_breaker(world.caller(0), "docs", "paid", budget_usd=MicroUsd(9_000_000))
    kinds = [item["kind"] for item in await world.it.attention(world.me, "docs")]
    assert kinds == ["mail", "holding"]


async def test_nobody_else_says_what_needs_attention(world: World) -> None:
    """A stranger's broadcast is mail, whatever it looks like: it ends no claim, and keeps nobody's attention from being read."""
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    forged = {"kind": "cancelled", "task_id": "T-1", "token": token, "message": f"T-1@{token} was cancelled"}
    for body in (forged, {"kind": []}):
        await world.it.broadcast(world.caller(STRANGER), "news", body)
    assert [item["kind"] for item in await world.it.attention(world.me, "docs")] == ["holding", "mail"]


async def test_attention_fits_into_one_notification(world: World) -> None:
    """However much a swarm holds: the least urgent is left out."""
    name = "s" * 60
    await world.swarm(name, budget=1_000_000)
    for number in range(200):
        task_id = f"{'t' * 50}-{number:03d}"
        await world.task(task_id)
        await world.token(task_id, name)
    await world.governor.track_cost(world.me, name, "llm", MicroUsd(900_000))
    items = await world.it.attention(world.me, name)
    assert items[0]["kind"] == "budget_low"
    assert len(items) > 100
    assert len(pack(items)) < 64 << 10

"""A tripped breaker stays tripped, whatever happens, until a person resets it; and people hear of it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from ifbus.errors import BreakerTripped, BudgetExceeded, InvalidParams, InvalidRequest, NotFound, PermissionDenied
from ifbus.money import MicroUsd
from ifbusd.codec import pack
from ifbusd.coordinator.model import BlockerRecord
from ifbusd.identity import Caller
from ifbusd.store.base import Put, Txn
from tests.integration.governor.world import Ear, World, open_world

DOLLAR = MicroUsd(1_000_000)


async def fail(world: World, *task_ids: str) -> None:
    for task_id in task_ids:
        await world.claim(task_id, "builder")
        await world.end(task_id, "builder", "failed")


def listener(world: World) -> tuple[Caller, Ear]:
    ear = Ear()
    return attrs.evolve(world.operator, session=ear), ear


async def test_failures_in_a_row_trip_in_the_same_commit(world: World) -> None:
    """The third failed task in a row stops the swarm: the trip has the revision of the failure and names the tasks."""
    await world.register("builder", "code:python")
    await fail(world, "T-1", "T-2")
    await world.claim("T-3", "builder")
    await world.end("T-3", "builder", "ok")
    await fail(world, "T-4", "T-5")
    assert not (await world.account("builder")).is_tripped
    await fail(world, "T-6")
    assert (await world.last_record())["detail"] == {"breaker_tripped": "3 failures in a row: T-4, T-5, T-6"}
    with pytest.raises(BreakerTripped) as refused:
        await world.claim("T-7", "builder")
    assert refused.value.data["tasks"] == ["T-4", "T-5", "T-6"]
    tripped = await world.governor.list_breakers(world.bob, tripped_only=True)
    assert [(row["swarm_id"], row["failures_in_a_row"]) for row in tripped["breakers"]] == [("builder", 3)]


async def test_a_trip_survives_restarts_registrations_and_budgets(tmp_path: Path) -> None:
    """Neither a restart nor a new registration, budget or completed task opens a tripped breaker."""
    async with open_world(tmp_path) as world:
        await world.register("builder", "code:python", budget_usd=DOLLAR)
        await world.claim("T-1", "builder", 1000)
        await world.governor.trip_circuit_breaker(world.operator, "builder", "looks odd")
    async with open_world(tmp_path) as world:
        await world.register("builder", "code:python", "code:rust")
        await world.governor.set_budget(world.operator, "builder", MicroUsd(9 * DOLLAR))
        await world.end("T-1", "builder", "ok")
        with pytest.raises(BreakerTripped, match="looks odd"):
            await world.claim("T-2", "builder")
        with pytest.raises(BreakerTripped):
            await world.operations.look(lambda tx: world.governor.check_route(tx, "builder", frozenset()))
        assert world.governor.rank(frozenset(), limit=5) == []
        assert not world.governor.is_match("builder", frozenset())
        breakers = (await world.governor.list_breakers(world.bob))["breakers"]
        assert [(row["state"], row["cause"], row["reason"]) for row in breakers] == [
            ("tripped", "operator", "looks odd")
        ]


async def test_no_claim_is_admitted_after_the_trips_revision(world: World) -> None:
    """In a race of claims with a trip, whatever was admitted was admitted before the trip's revision."""
    for round_number in range(20):
        name = f"s-{round_number}"
        await world.register(name)
        admitted: list[int] = []
        tripped: list[int] = []

        async def claim(task_id: str, name: str = name, admitted: list[int] = admitted) -> None:
            with suppress(BreakerTripped):
                admitted.append(await world.claim(task_id, name))

        async def trip(name: str = name, tripped: list[int] = tripped) -> None:
            answer = await world.governor.trip_circuit_breaker(world.operator, name, "race")
            tripped.append(answer["receipt"]["revision"])

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(claim, f"T-{round_number}-{number}")
                if number == 8:
                    nursery.start_soon(trip)
        assert max(admitted, default=0) < tripped[0]
        assert not world.governor.is_match(name, frozenset())


async def test_a_stopped_swarm_is_not_running(world: World) -> None:
    """What the chassis asks before it runs code is answered with the trip's reason, until the reset."""
    await world.register("builder", "code:python")
    await world.operations.look(lambda tx: world.governor.require_running(tx, "builder"))
    await world.governor.trip_circuit_breaker(world.operator, "builder", "loops")
    with pytest.raises(BreakerTripped, match="loops"):
        await world.operations.look(lambda tx: world.governor.require_running(tx, "builder"))
    await world.governor.reset_circuit_breaker(world.operator, "builder", "fixed")
    await world.operations.look(lambda tx: world.governor.require_running(tx, "builder"))


async def test_only_an_operator_trips_and_resets_with_a_reason(world: World) -> None:
    """The owner of a swarm can neither trip nor reset, a reason is needed, and the reset is on record with it."""
    await world.register("builder")
    with pytest.raises(PermissionDenied, match="needs the operator role, you are uid 1004; ask uid 0"):
        await world.governor.trip_circuit_breaker(world.ann, "builder", "me")
    await world.governor.trip_circuit_breaker(world.operator, "builder", "looks odd")
    with pytest.raises(PermissionDenied):
        await world.governor.reset_circuit_breaker(world.ann, "builder", "let me")
    assert (await world.last_record())["outcome"] == "permission_denied"
    for reason in ("", "  ", "x" * 501):
        with pytest.raises(InvalidParams, match="reason has 1 to 500"):
            await world.governor.reset_circuit_breaker(world.operator, "builder", reason)
    with pytest.raises(NotFound):
        await world.governor.reset_circuit_breaker(world.operator, "nobody", "why")
    await world.governor.reset_circuit_breaker(world.operator, "builder", "looked at it")
    record = await world.last_record()
    assert (record["op"], record["target"], record["uid"]) == ("governor.reset_circuit_breaker", "builder", 0)
    assert record["detail"] == {"reason": "looked at it", "was": "looks odd"}
    await world.claim("T-1", "builder")
    assert (await world.governor.list_breakers(world.bob, tripped_only=True))["breakers"] == []


async def test_saying_it_twice_is_fine(world: World) -> None:
    """Tripping a tripped breaker and resetting a closed one change nothing and say so in the receipt."""
    await world.register("builder")
    reset = await world.governor.reset_circuit_breaker(world.operator, "builder", "just in case")
    assert reset["receipt"]["replayed"]
    first = await world.governor.trip_circuit_breaker(world.operator, "builder", "first")
    assert "replayed" not in first["receipt"]
    second = await world.governor.trip_circuit_breaker(world.operator, "builder", "second")
    assert second["receipt"]["replayed"]
    assert second["report"]["breaker_reason"] == "first"


async def test_a_swarm_stopped_for_money_needs_money(world: World) -> None:
    """A reset that leaves the swarm broke is refused with the budget it takes; with that budget it works."""
    await world.register("builder", budget_usd=DOLLAR)
    await world.governor.track_cost(world.ann, "builder", "llm", MicroUsd(1_500_000))
    with pytest.raises(BudgetExceeded):
        await world.governor.reset_circuit_breaker(world.operator, "builder", "go on")
    with pytest.raises(BudgetExceeded) as refused:
        await world.governor.reset_circuit_breaker(world.operator, "builder", "go on", budget_usd=MicroUsd(1_500_000))
    assert refused.value.data["short_by_usd"] == "0.000001"
    assert (await world.account("builder")).limit == DOLLAR, "a refused reset changes nothing"
    answer = await world.governor.reset_circuit_breaker(
        world.operator, "builder", "go on", budget_usd=MicroUsd(2 * DOLLAR)
    )
    assert (answer["report"]["breaker"], answer["report"]["free_usd"]) == ("closed", "0.50")


async def test_operators_hear_open_escalations_first_and_then_each_new_one(world: World) -> None:
    """A subscriber gets what is open, in order of time, before the answer, and then trips, resets and low budgets."""
    await world.register("builder")
    await world.register("saver", budget_usd=DOLLAR)
    await world.governor.trip_circuit_breaker(world.operator, "builder", "looks odd")
    blocker = BlockerRecord(swarm_id="saver", reason="no key", uid=1004, at_ms=1)
    await world.store.txn(Txn(then=[Put("blockers/B-1", pack(blocker.to_map()))]))
    caller, ear = listener(world)
    assert await world.governor.subscribe_escalations(caller) == {"open": 2}
    assert [(message["kind"], message["swarm_id"]) for message in ear.heard] == [
        ("blocker", "saver"),
        ("breaker_tripped", "builder"),
    ]
    assert ear.heard[0]["blocker_id"] == "B-1"
    listed = await world.governor.list_escalations(world.operator)
    assert listed == {"escalations": ear.heard, "has_more": False}
    ear.heard.clear()
    await world.governor.reset_circuit_breaker(world.operator, "builder", "looked at it")
    for cost in (799_999, 1, 1, 200_000):
        await world.governor.track_cost(world.ann, "saver", "llm", MicroUsd(cost))
    assert [(message["kind"], message["reason"]) for message in ear.heard] == [
        ("breaker_reset", "looked at it"),
        ("budget_low", "0.80 of 1.00 USD spent"),
        ("breaker_tripped", "budget used up: spent 1.000001 of 1.00 USD"),
    ]
    assert await world.governor.subscribe_escalations(caller) == {"open": 0}, "once is enough"
    ear.close()
    ear.heard.clear()
    await world.governor.trip_circuit_breaker(world.operator, "builder", "again")
    assert ear.heard == []
    assert world.governor.statistics()["listeners"] == 0


async def test_an_escalation_during_the_subscription_is_told_once(world: World) -> None:
    """Trips that race with a subscription are neither lost nor told twice."""
    for round_number in range(20):
        name = f"s-{round_number}"
        await world.register(name)
        caller, ear = listener(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.governor.trip_circuit_breaker, world.operator, name, "race")
            nursery.start_soon(world.governor.subscribe_escalations, caller)
        assert [message["swarm_id"] for message in ear.heard].count(name) == 1
        ear.close()


async def test_only_operators_listen_for_escalations(world: World) -> None:
    """Others are refused, and so is a caller without a connection."""
    with pytest.raises(PermissionDenied, match="listen for escalations"):
        await world.governor.subscribe_escalations(attrs.evolve(world.ann, session=Ear()))
    with pytest.raises(InvalidRequest):
        await world.governor.subscribe_escalations(world.operator)


async def test_the_swarm_itself_is_told(world: World) -> None:
    """What happens to its money and breaker reaches a swarm as attention, with the revision as of which it is true."""
    told: list[dict[str, Any]] = []
    await world.register("saver", budget_usd=DOLLAR)
    world.bus.subscribe("attention.saver", lambda _, message: told.append(message))
    for cost in (900_000, 200_000):
        await world.governor.track_cost(world.ann, "saver", "llm", MicroUsd(cost))
    assert [message["kind"] for message in told] == ["budget_low", "breaker_tripped"]
    assert told[0]["free_usd"] == "0.10"
    assert told[1]["cause"] == "budget_used_up"
    assert told[0]["revision"] < told[1]["revision"] == world.store.revision


async def test_lists_go_on_where_they_stopped(world: World) -> None:
    """Breakers and budgets come in pages by name, tripped ones too."""
    for number in range(5):
        await world.register(f"s-{number}")
        await world.governor.trip_circuit_breaker(world.operator, f"s-{number}", "all of them")
    for page_of in (
        lambda after: world.governor.list_breakers(world.ann, tripped_only=True, after=after, limit=2),
        lambda after: world.governor.list_breakers(world.ann, after=after, limit=2),
        lambda after: world.governor.get_budget_report(world.ann, after=after, limit=2),
    ):
        seen, after = [], ""
        while after is not None:
            page = await page_of(after)
            seen += [row["swarm_id"] for row in page.get("breakers") or page["reports"]]
            after = page["next"]
        assert seen == [f"s-{number}" for number in range(5)]
    with pytest.raises(InvalidParams, match="limit is 1 to 200"):
        await world.governor.list_breakers(world.ann, limit=201)


@pytest.mark.parametrize("prefix", ["tripped/", "blockers/", "alarms/", "approvals/"])
async def test_an_escalation_that_cannot_be_read_hides_only_itself(
    world: World, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    """Foreign or damaged records are reported and left out of the open escalations; people hear of the others."""
    await world.register("builder")
    await world.governor.trip_circuit_breaker(world.operator, "builder", "looks odd")
    row = {"tripped_at_ms": 1, "question": "may I", "kind": "silent", "swarm_id": "odd"}
    values = [b"\xc1", b"\x90", b"\x01", pack({**row, "at_ms": "now"}), pack({**row, "swarm_id": ["odd"]})]
    await world.store.txn(Txn(then=[Put(f"{prefix}odd-{n}", value) for n, value in enumerate(values)]))
    listed = (await world.governor.list_escalations(world.operator))["escalations"]
    assert [message["swarm_id"] for message in listed] == ["builder"]
    [told] = [entry.__dict__ for entry in caplog.records if "cannot be read" in entry.message]
    assert (told["records"], told["first"]) == (len(values), f"{prefix}odd-0")
    caller, ear = listener(world)
    assert await world.governor.subscribe_escalations(caller) == {"open": 1}
    assert ear.heard == listed

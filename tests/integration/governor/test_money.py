"""Money on a real store: exact to the micro-dollar under concurrent spenders, fenced by the claim's token."""

import random
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from ifbus.errors import (
    BreakerTripped,
    BudgetExceeded,
    InvalidParams,
    LimitExceeded,
    NotFound,
    NotOwner,
    NotQualified,
    StaleToken,
    Unavailable,
)
from ifbus.models import BudgetReport
from ifbus.money import MAX_MICRO_USD, MicroUsd, to_usd
from ifbusd.codec import unpack
from ifbusd.governor.model import Account, Policy
from tests.integration.governor.world import World, open_world

DOLLAR = MicroUsd(1_000_000)


def usd(text: str) -> MicroUsd:
    return MicroUsd(round(float(text) * 1_000_000))


async def test_a_claim_sets_its_estimate_aside_and_gives_it_back(world: World) -> None:
    """The estimate is reserved with the claim and comes back with its end, to the micro-dollar."""
    await world.register("builder", "code:python", budget_usd=MicroUsd(5 * DOLLAR))
    await world.claim("T-1", "builder", 4_000_001, "code:python")
    (report,) = (await world.governor.get_budget_report(world.bob, swarm_id="builder"))["reports"]
    assert BudgetReport.from_wire(report).to_wire() == report
    assert (report["reserved_usd"], report["free_usd"]) == ("4.000001", "0.999999")
    with pytest.raises(BudgetExceeded) as refused:
        await world.claim("T-2", "builder", DOLLAR, "code:python")
    assert refused.value.data["short_by_usd"] == "0.000001"
    assert await world.end("T-1", "builder") == 4_000_001
    await world.claim("T-2", "builder", 5 * DOLLAR, "code:python")


async def test_reservations_draw_from_the_claim_and_end_with_it(world: World) -> None:
    """A call's reservation uses the claim's estimate first; what is left of both ends with the claim."""
    await world.register("builder", budget_usd=usd("1.00"))
    token = await world.claim("T-1", "builder", usd("0.60"))
    reserve = world.governor.reserve_cost
    first = await reserve(world.ann, "builder", "llm", usd("0.50"), task_id="T-1", token=token)
    assert first["report"]["reserved_usd"] == "0.60"
    second = await reserve(world.ann, "builder", "llm", usd("0.50"), task_id="T-1", token=token)
    assert second["report"]["free_usd"] == "0.00"
    with pytest.raises(BudgetExceeded, match=r"short by 0\.000001"):
        await reserve(world.ann, "builder", "llm", MicroUsd(1), task_id="T-1", token=token)
    settled = await world.governor.settle_cost(
        world.ann, "builder", first["reservation_id"], usd("0.10"), model="small", usage={"input_tokens": 7}
    )
    assert settled["report"] == {
        "swarm_id": "builder",
        "limit_usd": "1.00",
        "spent_usd": "0.10",
        "reserved_usd": "0.90",
        "free_usd": "0.00",
        "breaker": "closed",
    }
    with pytest.raises(NotFound, match="settled already"):
        await world.governor.settle_cost(world.ann, "builder", first["reservation_id"], usd("0.10"))
    assert await world.end("T-1", "builder") == usd("0.90")
    with pytest.raises(NotFound, match="ended with its claim"):
        await world.governor.settle_cost(world.ann, "builder", second["reservation_id"], usd("0.10"))
    (entry,) = await world.ledger("builder")
    assert (entry["task"], entry["operation"], entry["model"], entry["micro_usd"]) == ("T-1", "llm", "small", 100_000)
    assert entry["usage"] == {"input_tokens": 7}


async def test_a_claim_anew_takes_over_what_the_lost_one_held(world: World) -> None:
    """A claim that was lost and not wound up yet is not in the way of the next one of the same task."""
    await world.register("builder", budget_usd=DOLLAR)
    token = await world.claim("T-1", "builder", DOLLAR)
    await world.governor.reserve_cost(world.ann, "builder", "llm", MicroUsd(5), task_id="T-1", token=token)
    await world.claim("T-1", "builder", DOLLAR)
    account = await world.account("builder")
    assert (account.reserved, len(account.holds)) == (DOLLAR, 1)


async def test_a_claims_hold_is_no_reservation_to_settle(world: World) -> None:
    """Settling by a task's id would end the claim's hold outside the claim: there is no such reservation."""
    await world.register("builder", budget_usd=DOLLAR)
    await world.claim("T-1", "builder", 1000)
    with pytest.raises(NotFound):
        await world.governor.settle_cost(world.ann, "builder", "T-1", MicroUsd(0))


async def test_a_cost_of_a_task_needs_the_current_token(world: World) -> None:
    """With an older token, another swarm's or none, nothing is recorded; the refusal is on record."""
    await world.register("builder", budget_usd=DOLLAR)
    await world.register("other", budget_usd=DOLLAR)
    old = await world.claim("T-1", "builder", 1000)
    await world.end("T-1", "builder", "neutral")
    token = await world.claim("T-1", "builder", 1000)
    track = world.governor.track_cost
    with pytest.raises(StaleToken):
        await track(world.ann, "builder", "llm", MicroUsd(5), task_id="T-1", token=old)
    assert (await world.last_record())["outcome"] == "stale_token"
    with pytest.raises(StaleToken):
        await world.governor.reserve_cost(world.ann, "builder", "llm", MicroUsd(5), task_id="T-1", token=old)
    with pytest.raises(NotOwner):
        await track(world.ann, "other", "llm", MicroUsd(5), task_id="T-1", token=token)
    with pytest.raises(StaleToken):
        await track(world.ann, "builder", "llm", MicroUsd(5), task_id="T-2", token=token)
    with pytest.raises(InvalidParams, match="needs the claim's token"):
        await track(world.ann, "builder", "llm", MicroUsd(5), task_id="T-1")
    with pytest.raises(InvalidParams, match="needs the task_id"):
        await track(world.ann, "builder", "llm", MicroUsd(5), token=token)
    assert await world.ledger("builder") == await world.ledger("other") == []
    answer = await track(world.ann, "builder", "llm", MicroUsd(5), task_id="T-1", token=token)
    assert answer["report"]["reserved_usd"] == "0.000995", "the claim had set it aside"


async def test_spent_is_spent_and_stops_the_swarm(world: World) -> None:
    """A cost beyond the budget is recorded, trips the breaker in the same revision, and the swarm gets no more work."""
    await world.register("builder", "code:python", budget_usd=DOLLAR)
    answer = await world.governor.track_cost(world.ann, "builder", "llm", usd("1.20"))
    assert answer["tripped"]
    assert answer["report"]["free_usd"] == "-0.20"
    revision = answer["receipt"]["revision"]
    for key in ("accounts/builder", "tripped/builder"):
        found = await world.store.get(key)
        assert found is not None
        assert found.mod_revision == revision
    found = await world.governor.find_qualified_swarm(world.bob, ["code:python"])
    assert (found["best"], found["refused"]["breaker_tripped"]) == (None, 1)
    with pytest.raises(BreakerTripped):
        await world.claim("T-1", "builder")
    again = await world.governor.track_cost(world.ann, "builder", "llm", usd("0.10"))
    assert again["report"]["spent_usd"] == "1.30", "and it goes on being counted"


async def test_a_broke_swarm_gets_no_work_though_its_breaker_is_closed(world: World) -> None:
    """A budget that was lowered below what is spent refuses claims and pushes with figures and trips nothing."""
    await world.register("builder", "code:python", budget_usd=DOLLAR)
    await world.governor.track_cost(world.ann, "builder", "llm", usd("0.50"))
    await world.governor.set_budget(world.operator, "builder", usd("0.50"))
    with pytest.raises(BudgetExceeded):
        await world.claim("T-1", "builder")
    assert not world.governor.is_match("builder", frozenset({"code:python"}))
    found = await world.governor.find_qualified_swarm(world.bob, ["code:python"])
    assert found["refused"]["budget_exceeded"] == 1
    await world.governor.set_budget(world.operator, "builder", usd("0.51"))
    assert world.governor.is_match("builder", frozenset({"code:python"}))


async def test_checks_come_in_order_and_explain_tells_all(world: World) -> None:
    """A claim is refused for its first reason: breaker, match, budget; explain answers all three and changes nothing."""
    await world.register("builder", "code:python", budget_usd=DOLLAR)
    needs, estimate = frozenset({"infra:net"}), 2 * DOLLAR
    await world.governor.trip_circuit_breaker(world.operator, "builder", "looks odd")
    before = world.store.revision, await world.store.log_head()
    checks = await world.operations.look(lambda tx: world.governor.explain(tx, "builder", needs, estimate))
    assert [(check["check"], check["ok"]) for check in checks] == [
        ("breaker", False),
        ("match", False),
        ("budget", False),
    ]
    assert all(check["would_change"] for check in checks)
    assert before == (world.store.revision, await world.store.log_head())
    with pytest.raises(BreakerTripped):
        await world.claim("T-1", "builder", estimate, *needs)
    await world.governor.reset_circuit_breaker(world.operator, "builder", "looked at it")
    with pytest.raises(NotQualified):
        await world.claim("T-1", "builder", estimate, *needs)
    await world.register("builder", "infra:net")
    with pytest.raises(BudgetExceeded):
        await world.claim("T-1", "builder", estimate, *needs)
    await world.governor.set_budget(world.operator, "builder", MicroUsd(2 * DOLLAR))
    await world.claim("T-1", "builder", estimate, *needs)
    with pytest.raises(NotFound):
        await world.operations.look(lambda tx: world.governor.explain(tx, "nobody", needs, estimate))


@pytest.mark.parametrize("amount", [-1, 1.0, True, None, "1", MAX_MICRO_USD + 1, float("nan"), float("inf"), 2**63])
async def test_odd_amounts_are_refused_and_nothing_is_written(world: World, amount: Any) -> None:
    """Whatever is no whole number of micro-dollars in range is invalid_params, in every method that takes money."""
    await world.register("builder", budget_usd=DOLLAR)
    before = await world.account("builder")
    with pytest.raises(InvalidParams):
        await world.governor.track_cost(world.ann, "builder", "llm", amount)
    with pytest.raises(InvalidParams):
        await world.governor.set_budget(world.operator, "builder", amount)
    with pytest.raises(InvalidParams):
        await world.governor.reserve_cost(world.ann, "builder", "llm", amount, task_id="T-1", token=1)
    if amount is not None:
        with pytest.raises(InvalidParams):
            await world.register("builder", budget_usd=amount)
    assert await world.account("builder") == before
    assert await world.ledger("builder") == []


async def test_a_retried_cost_is_counted_once(world: World) -> None:
    """The same idempotency key gives the first answer again and spends nothing more."""
    await world.register("builder", budget_usd=DOLLAR)
    once = attrs.evolve(world.ann, idempotency_key="k-1", body_hash=b"h")
    first = await world.governor.track_cost(once, "builder", "llm", usd("0.10"))
    again = await world.governor.track_cost(once, "builder", "llm", usd("0.10"))
    assert again["report"] == first["report"]
    assert again["receipt"]["replayed"]
    assert [entry["micro_usd"] for entry in await world.ledger("builder")] == [100_000]


async def test_reservations_are_bounded(tmp_path: Path) -> None:
    """A swarm's record cannot be blown up: beyond max_holds a claim or reservation is refused, costs are still counted."""
    async with open_world(tmp_path, policy=Policy(max_holds=3)) as world:
        await world.register("builder", budget_usd=DOLLAR)
        token = await world.claim("T-1", "builder", 10)
        for _ in range(2):
            await world.governor.reserve_cost(world.ann, "builder", "llm", MicroUsd(1), task_id="T-1", token=token)
        with pytest.raises(LimitExceeded):
            await world.governor.reserve_cost(world.ann, "builder", "llm", MicroUsd(1), task_id="T-1", token=token)
        with pytest.raises(LimitExceeded):
            await world.claim("T-2", "builder", 10)
        token = await world.claim("T-3", "builder")
        await world.governor.track_cost(world.ann, "builder", "llm", MicroUsd(7), task_id="T-3", token=token)
        for number in range(4, 9):
            token = await world.claim(f"T-{number}", "builder")
            of = {"task_id": f"T-{number}", "token": token}
            await world.governor.track_cost(world.ann, "builder", "llm", MicroUsd(7), **of)  # type: ignore[arg-type]
        assert len((await world.account("builder")).holds) == 2 * 3
        assert (await world.account("builder")).spent == 6 * 7


@pytest.mark.parametrize("estimate", [0, 1])
async def test_settling_one_reservation_makes_room_for_one(tmp_path: Path, estimate: int) -> None:
    """What the refusal advises is true, also for a claim that set nothing aside and whose costs are then counted."""
    async with open_world(tmp_path, policy=Policy(max_holds=2)) as world:
        await world.register("builder", budget_usd=DOLLAR)
        token = await world.claim("T-1", "builder", estimate)

        async def reserve() -> str:
            of = {"task_id": "T-1", "token": token}
            answer = await world.governor.reserve_cost(world.ann, "builder", "llm", MicroUsd(1), **of)  # type: ignore[arg-type]
            return str(answer["reservation_id"])

        made = [await reserve() for _ in range(1 if estimate else 2)]
        for cost in (0, 0, 0) if estimate else (0, 1, 2):
            with pytest.raises(LimitExceeded, match="2 reservations") as refused:
                await reserve()
            assert refused.value.data == refused.value.data | {"used": 2, "allowed": 2}
            assert refused.value.would_change[0]["what"].startswith("settle a reservation")
            await world.governor.settle_cost(world.ann, "builder", made.pop(), MicroUsd(cost))
            made.append(await reserve())


async def test_the_coordinator_can_ask_what_a_claim_has_cost(world: World) -> None:
    """Costs of a task add up from its claim to its end, also where nothing was estimated."""
    await world.register("builder")
    for round_number in (1, 2):
        token = await world.claim("T-1", "builder")
        await world.governor.track_cost(world.ann, "builder", "llm", MicroUsd(7), task_id="T-1", token=token)
        reserved = await world.governor.reserve_cost(
            world.ann, "builder", "llm", MicroUsd(9), task_id="T-1", token=token
        )
        await world.governor.settle_cost(world.ann, "builder", reserved["reservation_id"], MicroUsd(4))
        await world.governor.track_cost(world.ann, "builder", "llm", MicroUsd(100))
        assert await world.operations.look(lambda tx: world.governor.spent_on(tx, "builder", "T-1")) == 11
        await world.end("T-1", "builder")
        assert await world.operations.look(lambda tx: world.governor.spent_on(tx, "builder", "T-1")) == 0
        assert (await world.account("builder")).spent == 111 * round_number


async def test_sixty_four_concurrent_spenders_are_exact(world: World) -> None:
    """64 spenders race for one budget: at every revision settled and reserved stay within it, and the ledger is the sum."""
    limit = 40_000
    await world.register("builder", budget_usd=MicroUsd(limit))
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    settled: list[int] = []
    refused = 0
    too_much: list[str] = []

    async def spender(number: int, source: random.Random) -> None:
        nonlocal refused
        for _ in range(6):
            task_id, estimate = f"T-{number}", source.randrange(1500)
            try:
                token = await again(world.claim, task_id, "builder", estimate)
            except BudgetExceeded:
                refused += 1
                continue
            except BreakerTripped:
                return
            await spend_within(task_id, token, estimate, source)
            await again(world.end, task_id, "builder")

    async def spend_within(task_id: str, token: int, estimate: int, source: random.Random) -> None:
        nonlocal refused
        amount = source.randrange(2 * estimate + 1)
        try:
            reserved = await again(
                world.governor.reserve_cost,
                world.ann,
                "builder",
                "llm",
                MicroUsd(amount),
                task_id=task_id,
                token=token,
            )
        except (BudgetExceeded, BreakerTripped):
            refused += 1
            return
        if source.random() < 0.8:
            cost = source.randrange(amount + 1)
            await again(world.governor.settle_cost, world.ann, "builder", reserved["reservation_id"], MicroUsd(cost))
            settled.append(cost)

    async def watch_the_budget(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with world.store.watch("accounts/") as changes:
            task_status.started()
            async for batch in changes:
                for event in batch:
                    assert event.value is not None
                    account = Account.from_stored(unpack(event.value.value))
                    if account.spent + account.reserved > limit:
                        too_much.append(f"revision {event.revision}: {account}")

    async with trio.open_nursery() as watching:
        await watching.start(watch_the_budget)
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(spender, number, random.Random(seed + number))
        await trio.testing.wait_all_tasks_blocked()
        watching.cancel_scope.cancel()
    account = await world.account("builder")
    assert too_much == []
    assert refused, "the budget was never fought for"
    assert account.spent == sum(settled) == sum(entry["micro_usd"] for entry in await world.ledger("builder"))
    assert (account.reserved, account.holds) == (0, {})
    (report,) = (await world.governor.get_budget_report(world.ann))["reports"]
    assert report["spent_usd"] == to_usd(sum(settled))


async def again(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call as a client does: the moment's refusals are tried again."""
    while True:
        try:
            return await call(*args, **kwargs)
        except Unavailable:
            await trio.lowlevel.checkpoint()

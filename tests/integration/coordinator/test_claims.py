"""Claims against the real store: one owner, the fence, what ends a claim, and what a refusal says."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ifbus.errors import (
    BreakerTripped,
    BudgetExceeded,
    IdempotencyConflict,
    IfbusError,
    InvalidParams,
    NotFound,
    NotOwner,
    NotQualified,
    NotReady,
    PermissionDenied,
    StaleToken,
)
from tests.integration.coordinator.world import LEASE_MS, STRANGER, Answer, World


async def test_a_claim_gives_a_token_and_the_task(world: World) -> None:
    """A claim answers with task, lease, reservation and the revision that fences it."""
    await world.swarm("docs", "docs:writing", budget=1_000_000)
    await world.task("T-1", "docs:writing", estimate_usd=50_000)
    answer = await world.it.claim_task(world.me, "T-1", "docs")
    claim = answer["claim"]
    assert answer["claimed"] is True
    assert claim["token"] == answer["receipt"]["revision"] == claim["task"]["token"]
    assert (claim["reserved_usd"], claim["lease_ms"], claim["bound_to"]) == ("0.05", LEASE_MS, "session")
    task = await world.show("T-1")
    assert (task["holder"], task["token"], task["state"]) == ("docs", claim["token"], "claimed")
    assert (await world.account("docs")).reserved == 50_000


async def test_of_many_claims_exactly_one_wins(world: World) -> None:
    """64 swarms claim one task at once: one has it, 63 are told who, in the same reply, and all of it is on record."""
    names = [f"s{n}" for n in range(64)]
    for name in names:
        await world.swarm(name, lease_ms=600_000)
    await world.task("T-1")
    answers: dict[str, Any] = {}

    async def claim(name: str) -> None:
        answers[name] = await world.it.claim_task(world.me, "T-1", name)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(claim, name)
    [winner] = [name for name, answer in answers.items() if answer["claimed"]]
    token = answers[winner]["claim"]["token"]
    refusals = [answer["refusal"] for answer in answers.values() if not answer["claimed"]]
    assert len(refusals) == 63
    for refusal in refusals:
        assert refusal["code"] == "already_claimed"
        assert (refusal["data"]["owner"], refusal["data"]["token"]) == (winner, token)
        assert {"held_ms", "percent", "lease_left_ms", "would_change", "receipt"} <= refusal["data"].keys()
    outcomes = await world.outcomes("claim_task")
    assert (outcomes.count("ok"), outcomes.count("already_claimed")) == (1, 63)


async def test_claiming_again_in_the_same_session_gives_the_same_claim(world: World) -> None:
    """The holder that asks again hears of its claim, with the first token; nothing is reserved twice."""
    await world.swarm("docs", budget=1_000_000)
    await world.task("T-1", estimate_usd=50_000)
    first = await world.it.claim_task(world.me, "T-1", "docs")
    again = await world.it.claim_task(world.me, "T-1", "docs")
    assert again["claim"]["token"] == first["claim"]["token"] == again["claim"]["task"]["token"]
    assert again["claim"]["bound_to"] == "session"
    assert (await world.account("docs")).reserved == 50_000


ACTS: dict[str, Callable[[World, int, str], Awaitable[Any]]] = {
    "renew_claim": lambda w, token, swarm: w.it.renew_claim(w.me, "T-1", swarm, token),
    "report_progress": lambda w, token, swarm: w.it.report_progress(w.me, "T-1", swarm, token, 50),
    "complete_task": lambda w, token, swarm: w.it.complete_task(w.me, "T-1", swarm, token, result=1),
    "fail_task": lambda w, token, swarm: w.it.fail_task(w.me, "T-1", swarm, token, "broken"),
    "fail_task retry": lambda w, token, swarm: w.it.fail_task(w.me, "T-1", swarm, token, "broken", retry=True),
    "release_task": lambda w, token, swarm: w.it.release_task(w.me, "T-1", swarm, token),
    "detect_blocker": lambda w, token, swarm: w.it.detect_blocker(
        w.me, swarm, {"reason": "stuck", "task_id": "T-1", "token": token, "release": True}
    ),
    "track_cost": lambda w, token, swarm: w.governor.track_cost(
        w.me,
        swarm,
        "llm",
        7,  # type: ignore[arg-type]
        task_id="T-1",
        token=token,
    ),
    "reserve_cost": lambda w, token, swarm: w.governor.reserve_cost(
        w.me,
        swarm,
        "llm",
        7,  # type: ignore[arg-type]
        task_id="T-1",
        token=token,
    ),
}


@pytest.mark.parametrize("act", ACTS)
async def test_a_former_holder_can_do_nothing(autojump_clock: MockClock, world: World, act: str) -> None:
    """After the next claim, every act with the old token is refused, with the new owner's figures; nothing but the record changes."""
    await world.profile("old")
    await world.swarm("new", lease_ms=3_600_000)
    await world.task("T-1")
    old_token = await world.token("T-1", "old", lease_ms=1_000)
    await world.until_state("T-1", "ready")
    new_token = await world.token("T-1", "new")
    assert new_token > old_token
    before, entries = await world.stored(), len(await world.record())
    with pytest.raises(StaleToken) as refused:
        await ACTS[act](world, old_token, "old")
    data = refused.value.data
    assert (data["token"], data["owner"], data["owner_token"]) == (old_token, "new", new_token)
    assert refused.value.would_change
    assert await world.stored() == before
    record = await world.record()
    assert [entry["outcome"] for entry in record[entries:]] == ["stale_token"]
    await ACTS[act](world, new_token, "new")


@pytest.mark.parametrize("act", ACTS)
async def test_a_token_is_the_holders_alone(world: World, act: str) -> None:
    """The current token in another swarm's hands is refused, and so is any token while nobody holds the task."""
    await world.swarm("docs")
    await world.swarm("other")
    await world.task("T-1")
    with pytest.raises(StaleToken) as nobody:
        await ACTS[act](world, 1, "docs")
    assert nobody.value.data["owner"] is None
    token = await world.token("T-1", "docs")
    before = await world.stored()
    with pytest.raises(NotOwner) as refused:
        await ACTS[act](world, token, "other")
    assert refused.value.data["owner"] == "docs"
    assert refused.value.would_change
    with pytest.raises(InvalidParams):
        await ACTS[act].__call__(world, token, "no such name")
    assert await world.stored() == before


async def test_a_swarm_is_its_users_alone(world: World) -> None:
    """Another user can neither claim nor act for a swarm, and the attempt is on record under that user."""
    await world.swarm("docs")
    await world.task("T-1")
    stranger = world.caller(STRANGER)
    with pytest.raises(PermissionDenied):
        await world.it.claim_task(stranger, "T-1", "docs")
    with pytest.raises(PermissionDenied):
        await world.it.claim_next(stranger, "docs")
    token = await world.token("T-1", "docs")
    for attempt in (
        world.it.renew_claim(stranger, "T-1", "docs", token),
        world.it.complete_task(stranger, "T-1", "docs", token),
        world.it.register_swarm(stranger, "docs"),
        world.it.renew_session(stranger, "docs", "x"),
        world.it.end_session(stranger, "docs", "x"),
        world.it.acknowledge(stranger, "docs", 1),
        world.it.broadcast(stranger, "news", {}, sender="docs"),
        world.it.detect_blocker(stranger, "docs", {"reason": "x"}),
    ):
        with pytest.raises(PermissionDenied):
            await attempt
    assert [entry["outcome"] for entry in await world.record() if entry["uid"] == STRANGER] == [
        "permission_denied"
    ] * 10
    for look in (world.it.read_inbox(stranger, "docs"), world.it.attention(stranger, "docs")):
        with pytest.raises(PermissionDenied):
            await look


async def refusal_of(attempt: Awaitable[Any]) -> IfbusError:
    """The refusal of an attempt."""
    with pytest.raises(IfbusError) as refused:
        await attempt
    return refused.value


async def test_a_claim_that_cannot_be_says_why(world: World) -> None:
    """Each reason has its own code, its figures, and what would change it; each refusal is on record and reserves nothing."""
    await world.swarm("docs", "docs:writing", budget=100)
    await world.task("T-1", "docs:writing", estimate_usd=101)
    await world.task("T-2", "gpu:cuda")
    await world.task("T-3", "docs:writing", depends_on=["T-2"])
    claim = world.it.claim_task
    refusals = {
        "not_found": await refusal_of(claim(world.me, "T-99", "docs")),
        "not_qualified": await refusal_of(claim(world.me, "T-2", "docs")),
        "not_ready": await refusal_of(claim(world.me, "T-3", "docs")),
        "budget_exceeded": await refusal_of(claim(world.me, "T-1", "docs")),
    }
    await world.governor.trip_circuit_breaker(world.caller(0), "docs", "enough")
    refusals["breaker_tripped"] = await refusal_of(claim(world.me, "T-1", "docs"))
    assert {code: error.code for code, error in refusals.items()} == {code: code for code in refusals}
    assert refusals["not_found"].data["tasks"] >= 2
    assert refusals["not_qualified"].data["missing"] == ["gpu:cuda"]
    assert refusals["not_ready"].data["waits_for"] == ["T-2"]
    assert refusals["budget_exceeded"].data["short_by_usd"] == "0.000001"
    assert refusals["breaker_tripped"].data["reason"] == "enough"
    for error in refusals.values():
        assert error.would_change, error.code
        assert error.data["receipt"]["seq"], error.code
    assert await world.outcomes("claim_task") == list(refusals)
    assert not (await world.account("docs")).holds
    nobody = await refusal_of(claim(world.me, "T-1", "nobody"))
    assert isinstance(nobody, NotFound)
    for wrong in (claim(world.me, "../x", "docs"), claim(world.me, "T-1", "docs", wait_ms=-1)):
        assert isinstance(await refusal_of(wrong), InvalidParams)
    assert isinstance(await refusal_of(claim(world.me, "T-1", "docs", lease_ms=1)), InvalidParams)


async def test_the_remedies_work(world: World) -> None:
    """Doing what a refusal names turns the answer."""
    await world.swarm("docs", "docs:writing", budget=100)
    await world.task("T-1", "docs:writing", estimate_usd=101)
    assert isinstance(await refusal_of(world.it.claim_task(world.me, "T-1", "docs")), BudgetExceeded)
    await world.governor.set_budget(world.caller(0), "docs", 101)  # type: ignore[arg-type]
    await world.governor.trip_circuit_breaker(world.caller(0), "docs", "enough")
    assert isinstance(await refusal_of(world.it.claim_task(world.me, "T-1", "docs")), BreakerTripped)
    await world.governor.reset_circuit_breaker(world.caller(0), "docs", "looked at it")
    await world.swarm("docs", "gpu:cuda")
    assert isinstance(await refusal_of(world.it.claim_task(world.me, "T-1", "docs")), NotQualified)
    await world.swarm("docs", "docs:writing")
    await world.token("T-1", "docs")


async def test_completing_frees_money_and_dependants(world: World) -> None:
    """What was not spent comes back, the result is kept, dependants become ready."""
    await world.swarm("docs", budget=1_000_000)
    await world.task("T-1", estimate_usd=50_000)
    await world.task("T-2")
    await world.task("T-3", depends_on=["T-1", "T-2"])
    await world.task("T-4", depends_on=["T-1"])
    assert (await world.show("T-3"))["waits_for"] == ["T-1", "T-2"]
    token = await world.token("T-1", "docs")
    await world.governor.track_cost(world.me, "docs", "llm", 20_000, task_id="T-1", token=token)  # type: ignore[arg-type]
    await world.it.report_progress(world.me, "T-1", "docs", token, 60, note="almost")
    answer = await world.it.complete_task(world.me, "T-1", "docs", token, result={"pages": 3})
    assert (answer["spent_usd"], answer["released_usd"], answer["unblocked"]) == ("0.02", "0.03", ["T-4"])
    task = await world.show("T-1")
    assert (task["state"], task["percent"], task["note"]) == ("completed", 100, "almost")
    assert (task["result"], task["spent_usd"], task["attempts"]) == ({"pages": 3}, "0.02", 1)
    assert (await world.show("T-4"))["state"] == "ready"
    assert (await world.show("T-3"))["waits_for"] == ["T-2"]
    account = await world.account("docs")
    assert (account.spent, account.reserved) == (20_000, 0)


async def test_completing_twice_answers_the_first_result(world: World) -> None:
    """A repeated completion with the same token is no error and changes nothing; another verdict is refused."""
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    await world.it.complete_task(world.me, "T-1", "docs", token, result=1)
    before = await world.stored()
    again = await world.it.complete_task(world.me, "T-1", "docs", token, result=2)
    assert (again["task"]["result"], again["receipt"]["replayed"]) == (1, True)
    with pytest.raises(StaleToken):
        await world.it.fail_task(world.me, "T-1", "docs", token, "no")
    with pytest.raises(StaleToken):
        await world.it.complete_task(world.me, "T-1", "docs", token - 1)
    assert await world.stored() == before
    with pytest.raises(NotReady) as final:
        await world.it.claim_task(world.me, "T-1", "docs")
    assert final.value.data["state"] == "completed"


async def test_failing_ends_the_task_or_offers_it_again(world: World) -> None:
    """A failure counts against the swarm; with retry the task is ready for others."""
    await world.swarm("docs")
    for name, retry, state in (("T-1", False, "failed"), ("T-2", True, "ready")):
        await world.task(name)
        token = await world.token(name, "docs")
        answer = await world.it.fail_task(world.me, name, "docs", token, "it broke", retry=retry)
        assert (answer["task"]["state"], answer["task"]["error"]) == (state, "it broke")
        assert (await world.show(name))["state"] == state
    assert (await world.account("docs")).failures_in_a_row == 2
    replayed = await world.it.fail_task(world.me, "T-1", "docs", (await world.show("T-1"))["token"], "again")
    assert replayed["receipt"]["replayed"] is True
    assert (await world.account("docs")).failures_in_a_row == 2


async def test_costs_add_up_over_attempts(autojump_clock: MockClock, world: World) -> None:
    """A task shows what all its claims spent, ended by whatever: release, expiry, completion."""
    await world.swarm("docs", lease_ms=3_600_000)
    await world.task("T-1")
    cost = world.governor.track_cost
    token = await world.token("T-1", "docs")
    await cost(world.me, "docs", "llm", 1, task_id="T-1", token=token)  # type: ignore[arg-type]
    await world.it.release_task(world.me, "T-1", "docs", token)
    token = await world.token("T-1", "docs", lease_ms=1_000)
    await cost(world.me, "docs", "llm", 20, task_id="T-1", token=token)  # type: ignore[arg-type]
    await world.until_state("T-1", "ready")
    token = await world.token("T-1", "docs")
    await cost(world.me, "docs", "llm", 300, task_id="T-1", token=token)  # type: ignore[arg-type]
    answer = await world.it.complete_task(world.me, "T-1", "docs", token)
    assert answer["spent_usd"] == "0.000321"
    assert (await world.show("T-1"))["attempts"] == 3


async def test_an_expired_lease_frees_the_task(autojump_clock: MockClock, world: World) -> None:
    """Nobody renews: the task is ready again, what was held comes back once, progress stays, and it is on record."""
    heard = list[Any]()
    world.bus.subscribe("attention.docs", lambda _, message: heard.append(message))
    await world.swarm("docs", budget=1_000_000, lease_ms=1_000)
    await world.task("T-1", estimate_usd=50_000)
    token = await world.token("T-1", "docs")
    await world.it.report_progress(world.me, "T-1", "docs", token, 70, note="so far")
    while len(heard) < 2:  # of the session it is told, too
        await trio.sleep(0.05)
    task = await world.show("T-1")
    assert (task["state"], task["percent"], task["note"], task["attempts"]) == ("ready", 70, "so far", 1)
    [entry] = [entry for entry in await world.record() if entry["op"] == "coordinator.expire_claim"]
    assert (entry["detail"]["token"], entry["detail"]["released_usd"], entry["uid"]) == (token, "0.05", -1)
    assert sorted(message["kind"] for message in heard) == ["lease_lost", "session_ended"]
    with pytest.raises(StaleToken):
        await world.it.complete_task(world.me, "T-1", "docs", token)


async def test_renewal_keeps_a_claim(autojump_clock: MockClock, world: World) -> None:
    """A claim on a lease of its own lives as long as it is renewed, by renewals or reports, and not longer."""
    await world.profile("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs", lease_ms=1_000)
    for n in range(6):
        await trio.sleep(0.6)
        if n % 2:
            assert await world.it.renew_claim(world.me, "T-1", "docs", token) == {"lease_ms": 1_000}
        else:
            assert (await world.it.report_progress(world.me, "T-1", "docs", token, n))["lease_ms"] == 1_000
    assert (await world.show("T-1"))["lease_left_ms"] > 500
    await world.until_state("T-1", "ready")


async def test_a_new_claim_after_expiry_reserves_anew(autojump_clock: MockClock, world: World) -> None:
    """The same swarm claims again before its lost claim is cleaned up: one hold, given back once."""
    await world.swarm("docs", budget=50_000, lease_ms=3_600_000)
    await world.task("T-1", estimate_usd=50_000)
    await world.token("T-1", "docs", lease_ms=1_000)
    async with trio.open_nursery() as nursery:
        answer = await world.it.claim_task(world.me, "T-1", "docs", wait_ms=60_000)
        nursery.cancel_scope.cancel()
    # It was its own claim at first.
    token = answer["claim"]["token"]
    await world.until_state("T-1", "ready")
    second = await world.token("T-1", "docs", lease_ms=600_000)
    assert second > token
    while (await world.outcomes("expire_claim")) != ["ok"]:
        await trio.sleep(0.05)
    assert (await world.account("docs")).reserved == 50_000
    await world.it.release_task(world.me, "T-1", "docs", second)
    assert (await world.account("docs")).reserved == 0


async def test_leases_end_with_their_claims(world: World) -> None:
    """Claims with leases of their own leave none behind, won or lost, ended by whatever."""
    await world.profile("docs")
    await world.profile("other")
    await world.task("T-1")
    alive = world.store.statistics().leases
    for end in (
        lambda token: world.it.release_task(world.me, "T-1", "docs", token),
        lambda token: world.it.fail_task(world.me, "T-1", "docs", token, "x", retry=True),
        lambda token: world.it.complete_task(world.me, "T-1", "docs", token),
    ):
        token = await world.token("T-1", "docs", lease_ms=3_600_000)
        assert not (await world.it.claim_task(world.me, "T-1", "other", lease_ms=3_600_000))["claimed"]
        await end(token)
    with trio.fail_after(10):
        while world.store.statistics().leases > alive:
            await trio.sleep(0.01)


def assert_repeats(receipt: Answer, first: Answer) -> None:
    """See that a receipt is one of before, marked; with its own entry, which at first may not have been known (etcd)."""
    assert (receipt["revision"], receipt["replayed"]) == (first["revision"], True)
    assert receipt["seq"] >= first.get("seq", 0)
    assert (receipt["seq"] == first.get("seq")) == (receipt["head"] == first.get("head"))


async def test_a_retried_claim_has_the_effect_of_one(world: World) -> None:
    """Same key, same body: the first answer, marked; also after the claim has ended. Another body: a conflict, on record."""
    await world.swarm("docs", budget=1_000_000)
    await world.task("T-1", estimate_usd=10)
    await world.task("T-2")
    caller = world.caller(key="k1", body="claim T-1")
    first = await world.it.claim_task(caller, "T-1", "docs")
    again = await world.it.claim_task(caller, "T-1", "docs")
    assert again["claim"] == first["claim"]
    assert_repeats(again["receipt"], first["receipt"])
    with pytest.raises(IdempotencyConflict) as conflict:
        await world.it.claim_task(world.caller(key="k1", body="claim T-2"), "T-2", "docs")
    assert conflict.value.would_change
    token = first["claim"]["token"]
    done = world.caller(key="k2", body="complete T-1")
    ended = await world.it.complete_task(done, "T-1", "docs", token, result=1)
    replayed = await world.it.complete_task(done, "T-1", "docs", token, result=1)
    assert replayed | {"receipt": {}} == ended | {"receipt": {}}
    assert_repeats(replayed["receipt"], ended["receipt"])
    assert (await world.it.claim_task(caller, "T-1", "docs"))["claim"]["token"] == token
    assert await world.outcomes("claim_task") == ["ok", "idempotency_conflict"]
    assert (await world.account("docs")).reserved == 0


async def test_a_retried_claim_next_gives_the_same_task(world: World) -> None:
    """The retry of an answered request takes no second task, whatever is ready by then."""
    await world.swarm("docs")
    await world.task("T-1")
    caller = world.caller(key="k1", body="next")
    first = await world.it.claim_next(caller, "docs")
    assert (await world.it.claim_next(caller, "docs", wait_ms=600_000))["claim"] == first["claim"]
    await world.task("T-2")
    assert (await world.it.claim_next(caller, "docs"))["claim"] == first["claim"]
    assert (await world.show("T-2"))["state"] == "ready"

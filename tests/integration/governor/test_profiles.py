"""Registration, ownership and matching on a real store."""

from pathlib import Path

import pytest

from ifbus.errors import InvalidParams, LimitExceeded, NotFound, PermissionDenied
from ifbus.models import CapabilityMatch, SwarmProfile
from ifbus.money import MicroUsd
from ifbusd.governor.model import Policy
from ifbusd.operation import Tx
from tests.integration.governor.world import World, open_world

DOLLAR = MicroUsd(1_000_000)


async def test_a_registration_is_seen_by_the_next_question(world: World) -> None:
    """When register_profile has answered, find_qualified_swarm, get_swarm and list_swarms know the swarm."""
    for number in range(20):
        name = f"s-{number:02d}"
        await world.register(name, "code:python", cost_per_hour_usd=MicroUsd(20 - number))
        found = await world.governor.find_qualified_swarm(world.bob, ["code:python"])
        assert found["best"]["swarm_id"] == name, "each is cheaper than all before it"
        assert found["considered"] == number + 1
    profile = (await world.governor.get_swarm(world.bob, "s-07"))["profile"]
    assert SwarmProfile.from_wire(profile).capabilities == ("code:python",)
    page = await world.governor.list_swarms(world.bob, after="s-04", limit=3)
    assert [row["swarm_id"] for row in page["swarms"]] == ["s-05", "s-06", "s-07"]
    assert (page["total"], page["next"]) == (20, "s-07")
    assert (await world.governor.list_swarms(world.bob, after="s-17", limit=2))["next"] is None


async def test_a_match_shows_every_figure_of_the_decision(world: World) -> None:
    """Both similarities, cost, reputation, score and the numbers of those refused are in the answer."""
    await world.register("both", "code:python", "docs:writing", cost_per_hour_usd=MicroUsd(2 * DOLLAR))
    await world.register("free", "code:python", "docs:writing", "infra:net")
    await world.register("other", "infra:net")
    await world.register("dear", "code:python", "docs:writing", cost_per_hour_usd=MicroUsd(90 * DOLLAR))
    found = await world.governor.find_qualified_swarm(
        world.bob, ["code:python", "docs:writing"], max_cost_per_hour_usd=MicroUsd(10 * DOLLAR)
    )
    assert [match["swarm_id"] for match in found["matches"]] == ["both"]
    match = CapabilityMatch.from_wire(found["best"])
    assert (match.jaccard, match.coverage, match.score) == (1.0, 1.0, 0.5)
    assert found["refused"] == {
        "not_qualified": 2,
        "paused": 0,
        "breaker_tripped": 0,
        "budget_exceeded": 0,
        "too_expensive": 1,
    }
    covering = await world.governor.find_qualified_swarm(
        world.bob, ["code:python", "docs:writing"], similarity="coverage"
    )
    assert [match["swarm_id"] for match in covering["matches"]] == ["free", "both", "dear"]
    assert covering["best"]["score"] is None, "a free swarm has no quotient; it ranks first"


async def test_a_name_belongs_to_who_registered_it(world: World) -> None:
    """Another user cannot change, spend for or answer as a swarm, and the refusal says whose it is."""
    await world.register("builder", "code:python", budget_usd=DOLLAR)
    with pytest.raises(PermissionDenied, match="belongs to uid 1004, you are uid 1005"):
        await world.governor.register_profile(world.bob, "builder", ["a:b"])
    with pytest.raises(PermissionDenied):
        await world.governor.track_cost(world.bob, "builder", "llm", DOLLAR)
    with pytest.raises(PermissionDenied):
        await world.governor.track_cost(world.operator, "builder", "llm", DOLLAR)
    assert (await world.account("builder")).spent == 0
    assert (await world.last_record())["outcome"] == "permission_denied"


async def test_only_an_operator_raises_a_budget(world: World) -> None:
    """The owner may lower the budget and keep it, raising it takes an operator; the refusal names the bound."""
    await world.register("builder", budget_usd=MicroUsd(5 * DOLLAR))
    await world.register("builder")
    await world.register("builder", budget_usd=MicroUsd(3 * DOLLAR))
    with pytest.raises(PermissionDenied) as refused:
        await world.register("builder", budget_usd=MicroUsd(3 * DOLLAR + 1))
    assert refused.value.data["bound_usd"] == "3.00"
    assert refused.value.would_change[1]["call"] == "ifbus budget set builder 3.000001"
    with pytest.raises(PermissionDenied, match="ask uid 0 or group ifbus-admin"):
        await world.governor.set_budget(world.ann, "builder", MicroUsd(9 * DOLLAR))
    report = (await world.governor.set_budget(world.operator, "builder", MicroUsd(9 * DOLLAR)))["report"]
    assert report["limit_usd"] == "9.00"


async def test_a_policy_bounds_what_users_give_their_swarms(tmp_path: Path) -> None:
    """With a largest own budget, a swarm without one gets it, and nobody but an operator starts with more."""
    async with open_world(tmp_path, policy=Policy(max_self_budget_micro_usd=DOLLAR)) as world:
        await world.register("modest")
        assert (await world.account("modest")).limit == DOLLAR
        with pytest.raises(PermissionDenied, match="the most that a user may give is"):
            await world.register("greedy", budget_usd=MicroUsd(2 * DOLLAR))
        with pytest.raises(NotFound):
            await world.governor.get_swarm(world.ann, "greedy")
        await world.governor.register_profile(world.operator, "rich", [], budget_usd=MicroUsd(2 * DOLLAR))


async def test_one_user_cannot_fill_the_registry(tmp_path: Path) -> None:
    """Beyond its share a user gets limit_exceeded, other users still register."""
    async with open_world(tmp_path, policy=Policy(max_swarms_per_uid=2, max_swarms=3)) as world:
        await world.register("a")
        await world.register("b")
        with pytest.raises(LimitExceeded, match="max_swarms_per_uid"):
            await world.register("c")
        await world.register("b", "code:python")
        await world.governor.register_profile(world.bob, "c", [])
        with pytest.raises(LimitExceeded, match="3 of 3"):
            await world.governor.register_profile(world.bob, "d", [])


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "-a", "x" * 65, "ä"])
async def test_a_name_never_becomes_a_key_unchecked(world: World, name: str) -> None:
    """A swarm's name has letters, digits, '.', '_' and '-' only, in every method that takes one."""
    for ask in (
        lambda: world.register(name),
        lambda: world.governor.get_swarm(world.ann, name),
        lambda: world.governor.get_budget_report(world.ann, swarm_id=name),
        lambda: world.governor.track_cost(world.ann, name, "llm", DOLLAR),
        lambda: world.governor.trip_circuit_breaker(world.operator, name, "why"),
    ):
        with pytest.raises(InvalidParams):
            await ask()


async def test_a_session_begins_an_incarnation_and_a_profile_does_not(world: World) -> None:
    """Only a registration without a session to go on counts one incarnation more."""
    seen = []

    async def save(incarnation: int | None) -> None:
        def body(tx: Tx) -> dict[str, object]:
            profile = world.governor.save_profile(
                tx,
                world.ann,
                "builder",
                capabilities=None,
                cost_per_hour_micro_usd=None,
                budget_micro_usd=None,
                model=None,
                incarnation=incarnation,
                orchestrator=True,
            )
            seen.append(profile["incarnation"])
            return {}

        await world.operations.run(world.ann, "coordinator.register_swarm", "builder", body)

    await world.register("builder", "code:python")
    for incarnation in (None, 1, None):
        await save(incarnation)
    await world.register("builder", "code:python", model="small")
    assert seen == [1, 1, 2]
    assert (await world.governor.get_swarm(world.ann, "builder"))["profile"]["incarnation"] == 2
    assert world.governor.orchestrators() == ["builder"]


async def test_a_reputation_moves_a_swarm_in_the_ranking(world: World) -> None:
    """Of two equal swarms the one with the better record comes first."""
    await world.register("a", "code:python")
    await world.register("b", "code:python")
    assert world.governor.rank(frozenset({"code:python"}), limit=2) == ["a", "b"]

    def body(tx: Tx) -> dict[str, object]:
        world.governor.set_reputation(tx, "a", 0.25)
        return {}

    await world.operations.run(world.ann, "chassis.execute_task", "a", body)
    await world.governor.caught_up("a")
    assert world.governor.rank(frozenset({"code:python"}), limit=2) == ["b", "a"]
    assert world.governor.rank(frozenset({"code:python"}), limit=2, exclude=frozenset({"b"})) == ["a"]
    assert world.governor.capabilities_of("a") == {"code:python"}
    assert world.governor.capabilities_of("nobody") is None

"""Similarity, threshold and rank, against the mission's formulas written out in fractions."""

import random
from fractions import Fraction

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ifbusd.governor import rules
from ifbusd.governor.model import PPM, Policy, Profile, Similarity
from ifbusd.governor.registry import Registry, Standing

SKILLS = [f"area:skill-{number}" for number in range(12)]
THRESHOLD = Policy().exact_threshold


def profile(swarm_id: str, capabilities: frozenset[str], *, cost: int = 0, reputation_ppm: int = PPM) -> Profile:
    return Profile(
        swarm_id=swarm_id,
        uid=1000,
        gid=1000,
        capabilities=capabilities,
        cost_per_hour_micro_usd=cost,
        reputation_ppm=reputation_ppm,
    )


def skills(*numbers: int) -> frozenset[str]:
    return frozenset(f"area:skill-{number}" for number in numbers)


def naive_overlap(capabilities: frozenset[str], required: frozenset[str], similarity: Similarity) -> Fraction:
    if not required:
        return Fraction(1)
    if similarity == "coverage":
        return Fraction(len(capabilities & required), len(required))
    return Fraction(len(capabilities & required), len(capabilities | required))


def naive_order(swarm: Profile, required: frozenset[str], similarity: Similarity) -> tuple[bool, Fraction, str]:
    """Free swarms first, then by (overlap x reputation) / cost, then by name."""
    value = naive_overlap(swarm.capabilities, required, similarity) * swarm.reputation_ppm
    if swarm.cost_per_hour_micro_usd:
        return True, -value / swarm.cost_per_hour_micro_usd, swarm.swarm_id
    return False, -value, swarm.swarm_id


@pytest.mark.parametrize(("common", "union"), [(7, 10), (14, 20), (21, 30), (49, 70)])
def test_the_threshold_is_inclusive(common: int, union: int) -> None:
    """An overlap of exactly 0.70 qualifies, one capability less does not."""
    assert rules.Overlap(common, union, union).reaches("jaccard", THRESHOLD)
    assert not rules.Overlap(common - 1, union, union).reaches("jaccard", THRESHOLD)


def test_every_possible_overlap_is_judged_as_by_fractions() -> None:
    """The comparison agrees with exact fractions for all sizes of sets and for thresholds that no binary float can hold."""
    for text in ("0.7", "0.1", "0.3", "0.999999", "1"):
        threshold = Policy(threshold=float(text)).exact_threshold
        assert threshold == Fraction(text)
        for whole in range(1, 129):
            for common in range(min(whole, 64) + 1):
                assert rules.Overlap(common, whole, whole).reaches("jaccard", threshold) == (
                    Fraction(common, whole) >= Fraction(text)
                )


def test_a_task_that_needs_nothing_fits_everybody() -> None:
    """With nothing required both similarities are 1, also for a swarm that can do nothing."""
    for capabilities in (frozenset[str](), skills(1, 2, 3)):
        match = rules.describe_match(profile("a", capabilities), frozenset(), "jaccard")
        assert (match["jaccard"], match["coverage"], match["overlap"]) == (1.0, 1.0, 1.0)


def test_a_generalist_fits_by_coverage_only() -> None:
    """Ten skills for a task of one give Jaccard 0.1 and coverage 1, and every answer has both."""
    generalist = profile("a", skills(*range(10)), cost=2 * PPM)
    match = rules.describe_match(generalist, skills(3), "coverage")
    assert (match["jaccard"], match["coverage"], match["overlap"], match["score"]) == (0.1, 1.0, 1.0, 0.5)
    assert not rules.check_match(generalist, skills(3), "jaccard", THRESHOLD).ok
    assert rules.check_match(generalist, skills(3), "coverage", THRESHOLD).ok


figures = st.tuples(
    st.integers(1, 64), st.integers(0, 64), st.integers(0, PPM), st.one_of(st.integers(0, 50), st.integers(0, 10**18))
)


@given(figures, figures)
@example((64, 0, PPM, 10**18), (64, 0, PPM, 10**18 - 1))
@example((1, 63, 1, 10**18), (1, 62, 1, 10**18))
@example((63, 1, PPM, 10**18), (62, 1, PPM, 10**18))
def test_rank_keys_order_as_exact_fractions_do(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """Two swarms are ranked by the exact value of their scores, however close, and by name only when equal."""
    keys, exact = [], []
    for name, (common, more, reputation, cost) in (("a", one), ("b", other)):
        swarm = profile(name, frozenset(), cost=cost, reputation_ppm=reputation)
        fit = rules.Overlap(common, common + more, 64)
        keys.append(rules.rank_key(fit, "jaccard", swarm))
        value = Fraction(common, common + more) * reputation
        exact.append((cost > 0, -value / cost if cost else -value, name))
    assert (keys[0] < keys[1]) == (exact[0] < exact[1])


def random_registry(source: random.Random) -> tuple[Registry, dict[str, Profile], dict[str, Standing]]:
    registry, profiles = Registry(), dict[str, Profile]()
    standings: dict[str, Standing] = {}
    for _ in range(source.randrange(40)):
        name = f"swarm-{source.randrange(25)}"
        match source.randrange(5):
            case 0 | 1 | 2:
                profiles[name] = profile(
                    name,
                    frozenset(source.sample(SKILLS, source.randrange(5))),
                    cost=source.choice([0, 0, 1, 3, 1_500_000]),
                    reputation_ppm=source.choice([0, 500_000, PPM]),
                )
                registry.put_profile(profiles[name])
            case 3:
                standings[name] = source.choice(list(Standing))
                registry.put_standing(name, standings[name])
            case _:
                profiles.pop(name, None)
                registry.remove(name)
    return registry, profiles, standings


def test_the_index_answers_as_a_look_at_every_swarm_does() -> None:
    """In 1000 random registries, changed at random, best swarms, counts of refusals and look-ups equal a naive scan."""
    for seed in range(1000):
        source = random.Random(seed)
        registry, profiles, standings = random_registry(source)
        required = frozenset(source.sample(SKILLS, source.randrange(5)))
        similarity: Similarity = source.choice(["jaccard", "coverage"])
        threshold = source.choice([Fraction("0.7"), Fraction("0.3"), Fraction(1)])
        max_cost = source.choice([None, 0, 2])
        exclude = frozenset(source.sample(sorted(profiles), min(2, len(profiles))))
        refused = {"not_qualified": 0, "paused": 0, "breaker_tripped": 0, "budget_exceeded": 0, "too_expensive": 0}
        fit = []
        for swarm in profiles.values():
            standing = standings.get(swarm.swarm_id, Standing.FIT)
            if naive_overlap(swarm.capabilities, required, similarity) < threshold:
                refused["not_qualified"] += 1
            elif standing is not Standing.FIT:
                refused[standing.value] += 1
            elif max_cost is not None and swarm.cost_per_hour_micro_usd > max_cost:
                refused["too_expensive"] += 1
            else:
                fit.append(swarm)
            expected = standing is Standing.FIT and (
                naive_overlap(swarm.capabilities, required, similarity) >= threshold
            )
            assert registry.is_match(swarm.swarm_id, required, similarity, threshold) == expected, seed
        fit.sort(key=lambda swarm: naive_order(swarm, required, similarity))
        ranking = registry.rank(required, similarity, threshold, limit=3, exclude=exclude, max_cost=max_cost)
        assert ranking.best == [swarm for swarm in fit if swarm.swarm_id not in exclude][:3], seed
        assert ranking.refused == refused, seed
        assert ranking.considered == len(registry) == len(profiles), seed
        having = [swarm.swarm_id for swarm in profiles.values() if required <= swarm.capabilities]
        assert registry.swarms_with(required) == sorted(having), seed
        assert registry.count_of_uid(1000) == len(profiles), seed


def test_a_match_looks_only_at_groups_that_could_fit() -> None:
    """Among 20 000 swarms with 2000 different sets of skills, a match for a rare skill looks at the few that have it."""
    registry = Registry()
    for number in range(20_000):
        area = number % 2000
        registry.put_profile(profile(f"s-{number}", frozenset({f"area-{area}:x", f"area-{area % 7}:y"}), cost=number))
    required = frozenset({"area-11:x", "area-4:y"})
    assert len(list(registry._candidates(required, THRESHOLD))) == 1
    ranking = registry.rank(required, "jaccard", THRESHOLD, limit=2)
    assert [swarm.swarm_id for swarm in ranking.best] == ["s-11", "s-2011"]
    assert ranking.refused["not_qualified"] == 19_990
    assert len(list(registry._candidates(frozenset(), THRESHOLD))) == 1, "everybody fits a task that needs nothing"


def test_an_emptied_registry_keeps_nothing() -> None:
    """Swarms that are gone leave no memory behind in any table of the index."""
    registry = Registry()
    for number in range(100):
        registry.put_profile(profile(f"s-{number}", skills(number % 12), cost=number))
    for number in range(100):
        registry.remove(f"s-{number}")
    everybody = attrs.asdict(vars(registry).pop("_everybody"))
    assert not any([*everybody.values(), *vars(registry).values()])

"""Every no of an admission says why, with figures, and what would turn it: applying that turns it."""

from decimal import Decimal
from fractions import Fraction

import attrs
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import BY_CODE
from ifbus.money import to_micro_usd
from ifbusd.governor import rules
from ifbusd.governor.model import Account, Breaker, BreakerState, Cause, Hold, Policy, Profile, Similarity
from ifbusd.governor.rules import Check

THRESHOLD = Fraction("0.7")
skills = st.frozensets(st.integers(0, 9).map(lambda number: f"area:s{number}"), max_size=8)
accounts = st.builds(
    lambda limit, spent, held: Account(limit=limit, spent=spent, holds={"T-9": Hold("T-9", held, "claim")}),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 500),
)


def assert_explained(check: Check) -> None:
    """A refusal has a registered code, and each remedy says who can do what."""
    error = check.error()
    assert BY_CODE[error.code] is type(error)
    assert error.would_change
    for change in error.would_change:
        assert change["by"] in ("self", "operator", "time", "other")
        assert change["what"]
    for name, value in error.data.items():
        if name.endswith("_usd"):
            assert format(Decimal(value), "f") == value


@given(accounts, st.integers(0, 500))
def test_what_a_budget_refusal_names_would_turn_it(account: Account, amount: int) -> None:
    """The smaller estimate, the larger budget and the time that a refusal names each make it a yes, and not a cent less does."""
    check = rules.check_budget("a", account, amount)
    assert check.ok == rules.fits(account, amount)
    if check.ok:
        return
    assert_explained(check)
    for change in check.would_change:
        if change["by"] == "self":
            assert account.free is not None
            assert rules.fits(account, account.free)
            assert not rules.fits(account, account.free + 1)
        elif change["by"] == "operator":
            enough = to_micro_usd(change["call"].split()[-1])
            assert rules.fits(attrs.evolve(account, limit=enough), amount)
            assert not rules.fits(attrs.evolve(account, limit=enough - 1), amount)
        else:
            assert rules.fits(attrs.evolve(account, holds={}), amount)


@given(skills, skills)
def test_what_a_match_refusal_names_would_turn_it(capabilities: frozenset[str], required: frozenset[str]) -> None:
    """Registering just what the refusal says makes the swarm qualify."""
    profile = Profile(swarm_id="a", uid=1, gid=1, capabilities=capabilities)
    check = rules.check_match(profile, required, "jaccard", THRESHOLD)
    if check.ok:
        return
    assert_explained(check)
    (change,) = check.would_change
    registered = frozenset(change["call"].split()[-1].split(","))
    assert rules.check_match(attrs.evolve(profile, capabilities=registered), required, "jaccard", THRESHOLD).ok


def test_a_match_refusal_has_the_figures_of_the_decision() -> None:
    """Overlap, threshold and what is missing are in the sentence and in the data; 0.699 is not written as 0.70."""
    profile = Profile(swarm_id="builder", uid=1, gid=1, capabilities=frozenset({"code:python"}))
    needed = frozenset({"code:python", "infra:net", "infra:dist"})
    check = rules.check_match(profile, needed, "jaccard", THRESHOLD)
    assert check.message == "builder does not fit: overlap 0.33 of 0.70, lacks infra:dist, infra:net"
    assert check.data["missing"] == ["infra:dist", "infra:net"]
    assert (check.data["coverage"], check.data["threshold"]) == (1 / 3, 0.7)
    assert rules._two_digits(Fraction(699, 1000)) == "0.69"


def test_a_budget_refusal_has_the_figures_of_the_decision() -> None:
    """Budget, spent, reserved, free, needed and short are exact amounts of dollars."""
    account = Account(limit=5_000_000, spent=4_040_000, holds={"T-1": Hold("T-1", 270_000, "claim")})
    check = rules.check_budget("builder", account, 900_000)
    assert check.message == (
        "builder cannot pay: needs 0.90, free 0.69 (budget 5.00, spent 4.04, reserved 0.27): short by 0.21"
    )
    assert check.data["short_by_usd"] == "0.21"
    assert [change["by"] for change in check.would_change] == ["self", "operator", "time"]


def test_a_tripped_breaker_says_who_can_reset_it() -> None:
    """The refusal names reason, time and failed tasks, and the operator's call; a broke swarm's also asks for money."""
    tripped = rules.trip(
        Account(), Cause.FAILURES, "3 failures in a row: T-2, T-4, T-8", 7, tasks=("T-2", "T-4", "T-8")
    )
    check = rules.check_breaker("builder", tripped)
    assert_explained(check)
    assert check.data["tasks"] == ["T-2", "T-4", "T-8"]
    assert check.data["tripped_at_ms"] == 7
    assert check.would_change[0]["call"] == "ifbus breaker reset builder --reason TEXT"
    broke = rules.check_breaker("builder", attrs.evolve(tripped, limit=0))
    assert broke.would_change[0]["call"] == "ifbus breaker reset builder --reason TEXT --budget-usd AMOUNT"


@given(
    capabilities=st.frozensets(st.sampled_from(["a:a", "a:b", "a:c", "a:d"])),
    required=st.frozensets(st.sampled_from(["a:a", "a:b", "a:c", "a:d"])),
    limit=st.none() | st.integers(0, 10),
    spent=st.integers(0, 12),
    held=st.integers(0, 12),
    amount=st.integers(0, 12),
    is_tripped=st.booleans(),
    similarity=st.sampled_from(["jaccard", "coverage"]),
)
def test_the_quick_answer_is_the_one_that_the_checks_give(
    capabilities: frozenset[str],
    required: frozenset[str],
    limit: int | None,
    spent: int,
    held: int,
    amount: int,
    is_tripped: bool,
    similarity: Similarity,
) -> None:
    """An admission decides without the words of its checks, and never otherwise than they do."""
    swarm = Profile(swarm_id="s", uid=1, gid=1, capabilities=capabilities)
    state = BreakerState.TRIPPED if is_tripped else BreakerState.CLOSED
    account = Account(limit=limit, spent=spent, holds={"t": Hold("t", held, "claim")}, breaker=Breaker(state=state))
    threshold = Policy().exact_threshold
    checks = (
        rules.check_breaker("s", account),
        rules.check_match(swarm, required, similarity, threshold),
        rules.check_budget("s", account, amount),
    )
    assert rules.admits(swarm, account, required, amount, similarity, threshold) == all(check.ok for check in checks)

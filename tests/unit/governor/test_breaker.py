"""The circuit breaker's life: it trips by itself, it never resets by itself."""

from fractions import Fraction

import pytest

from ifbusd.governor import rules
from ifbusd.governor.model import Account, Cause
from ifbusd.governor.rules import Event

LOW = Fraction("0.8")


def play(sequence: str) -> Account:
    """f: a task fails, c: one is completed, $: 4 of 10 are spent, o: the operator trips, r: the operator resets."""
    account = Account(limit=10)
    for number, event in enumerate(sequence.split()):
        before = account
        match event:
            case "f":
                account = rules.count_failure(account, f"T-{number}", 3, number)
            case "c":
                account = rules.count_success(account)
            case "$":
                account = rules.trip_if_used_up(rules.spend(account, None, 4, max_holds=9), number)
            case "o":
                account = rules.trip(account, Cause.OPERATOR, "stop", number)
            case "r":
                account = rules.reset(account)
        assert event == "r" or account.is_tripped >= before.is_tripped, "only an operator resets"
    return account


@pytest.mark.parametrize(
    ("sequence", "outcome"),
    [
        ("", "closed"),
        ("f f", "closed"),
        ("f f f", "failures_in_a_row at 2: 3 failures in a row: T-0, T-1, T-2"),
        ("f f c f f", "closed"),
        ("f f c f f f", "failures_in_a_row at 5: 3 failures in a row: T-3, T-4, T-5"),
        ("f f f c c c", "failures_in_a_row at 2: 3 failures in a row: T-0, T-1, T-2"),
        ("f f f f o $", "failures_in_a_row at 2: 3 failures in a row: T-0, T-1, T-2"),
        ("f f f r", "closed"),
        ("f f f r f f", "closed"),
        ("f f r f", "closed"),
        ("$ $", "closed"),
        ("$ $ $", "budget_used_up at 2: budget used up: spent 0.000012 of 0.00001 USD"),
        ("o", "operator_at 0"),
        ("o c f", "operator_at 0"),
        ("o r", "closed"),
    ],
)
def test_life_of_a_breaker(sequence: str, outcome: str) -> None:
    """The breaker is tripped by three failures in a row, a used-up budget or an operator, and closed only by a reset."""
    breaker = play(sequence).breaker
    told = breaker.state.value
    if breaker.cause is Cause.OPERATOR:
        told = f"operator_at {breaker.tripped_at_ms}"
    elif breaker.cause is not None:
        told = f"{breaker.cause.value} at {breaker.tripped_at_ms}: {breaker.reason}"
    assert told == outcome


def test_a_long_row_of_failures_stays_small() -> None:
    """However many tasks fail, the record keeps only as many of their ids as it takes to trip."""
    account = play("f " * 500)
    assert account.failures_in_a_row == 500
    assert account.failed == ("T-497", "T-498", "T-499")


def test_why_a_breaker_tripped_stays_on_record() -> None:
    """A task that is completed after the trip does not wipe out the failures that an operator has to look at."""
    account = play("f f f c")
    assert (account.failures_in_a_row, account.failed) == (3, ("T-0", "T-1", "T-2"))


@pytest.mark.parametrize(
    ("spent_before", "spent_after", "event"),
    [
        (0, 79, None),
        (79, 80, Event.BUDGET_LOW),
        (0, 99, Event.BUDGET_LOW),
        (80, 81, None),
        (79, 100, Event.BREAKER_TRIPPED),
    ],
)
def test_the_budget_is_called_low_once(spent_before: int, spent_after: int, event: Event | None) -> None:
    """Crossing 80 % is told once; when the same cost trips the breaker, that is told instead."""
    before = Account(limit=100, spent=spent_before)
    after = rules.trip_if_used_up(Account(limit=100, spent=spent_after), 0)
    assert rules.event_between(before, after, LOW) is event


def test_a_reset_is_told_even_when_the_budget_is_low() -> None:
    """The reset is what people wait for; that the budget is low again they hear at the next crossing."""
    tripped = rules.trip(Account(limit=100, spent=90), Cause.OPERATOR, "stop", 0)
    assert rules.event_between(tripped, rules.reset(tripped), LOW) is Event.BREAKER_RESET


def test_a_swarm_without_a_budget_is_never_low() -> None:
    """Neither no budget nor a budget of 0 can be 80 % spent."""
    for limit in (None, 0):
        assert rules.event_between(Account(limit=limit), Account(limit=limit, spent=5), LOW) is None

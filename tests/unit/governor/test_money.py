"""Money: reservations never overshoot a budget, nothing is set aside twice, every micro-dollar is accounted for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from ifbus.errors import InvalidParams
from ifbusd.codec import pack, unpack
from ifbusd.governor import rules
from ifbusd.governor.model import Account, Breaker, BreakerState, Cause, Hold

amounts = st.integers(0, 1000)
tasks = st.sampled_from(["T-1", "T-2", "T-3"])


class Spenders(RuleBasedStateMachine):
    """Claims, reservations and settlements in any order, beside a ledger kept by hand.

    `unreserved` is what was spent beyond what had been set aside for it: without such costs the budget holds exactly.
    """

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.account = Account()
        self.ledger: list[int] = []
        self.spent_on: dict[str, int] = {}
        self.unreserved = 0
        self.next_id = 0

    @initialize(limit=st.integers(0, 3000))
    def start(self, limit: int) -> None:
        self.account = Account(limit=limit)

    @rule(task_id=tasks, estimate=amounts)
    def claim(self, task_id: str, estimate: int) -> None:
        self.account, _ = rules.end_claim(self.account, task_id)
        self.spent_on.pop(task_id, None)
        if rules.fits(self.account, estimate):
            self.account = rules.hold_claim(self.account, task_id, estimate)

    @rule(target=reservations, task_id=tasks, amount=amounts)
    def reserve(self, task_id: str, amount: int) -> Any:
        if not rules.fits(self.account, rules.needed_beyond_claim(self.account, task_id, amount)):
            return multiple()
        self.next_id += 1
        hold_id = f"r:{self.next_id}"
        before = self.account.free
        self.account = rules.reserve(self.account, hold_id, task_id, "llm", amount)
        assert before is not None
        assert self.account.free is not None
        assert before - self.account.free <= amount
        return hold_id

    @rule(hold_id=consumes(reservations), share=st.integers(0, 150))
    def settle(self, hold_id: str, share: int) -> None:
        hold = self.account.holds.get(hold_id)
        if hold is None:  # ended with its claim
            return
        cost = hold.amount * share // 100
        self.record(cost, hold.task_id, beyond=cost - hold.amount)
        used = rules.reservations(self.account)
        self.account = rules.settle(self.account, hold_id, cost, max_holds=100)
        assert rules.reservations(self.account) < used, "settling makes room"

    @rule(task_id=st.one_of(st.none(), tasks), cost=st.integers(0, 50))
    def spend(self, task_id: str | None, cost: int) -> None:
        own = None if task_id is None else self.account.holds.get(task_id)
        self.record(cost, task_id, beyond=cost - (0 if own is None else own.amount))
        self.account = rules.spend(self.account, task_id, cost, max_holds=100)

    def record(self, cost: int, task_id: str | None, *, beyond: int) -> None:
        self.ledger.append(cost)
        self.unreserved += max(0, beyond)
        if task_id is not None:
            self.spent_on[task_id] = self.spent_on.get(task_id, 0) + cost

    @rule(task_id=tasks)
    def end(self, task_id: str) -> None:
        reserved = self.account.reserved
        self.account, released = rules.end_claim(self.account, task_id)
        self.spent_on.pop(task_id, None)
        assert self.account.reserved == reserved - released
        assert not [hold for hold in self.account.holds.values() if hold.task_id == task_id]

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.account.limit is not None
        assert self.account.spent + self.account.reserved <= self.account.limit + self.unreserved

    @invariant()
    def the_ledger_adds_up(self) -> None:
        assert self.account.spent == sum(self.ledger)
        assert all(hold.amount >= 0 and 0 <= hold.drawn <= hold.amount for hold in self.account.holds.values())

    @invariant()
    def claims_know_their_cost(self) -> None:
        for task_id, spent in self.spent_on.items():
            own = self.account.holds.get(task_id)
            assert spent == (0 if own is None else own.spent)

    @invariant()
    def the_record_survives_the_store(self) -> None:
        assert Account.from_stored(unpack(pack(self.account.to_stored()))) == self.account


TestSpenders = Spenders.TestCase


def test_an_estimate_is_not_set_aside_twice() -> None:
    """What a claim reserved is used for its own operations first, and comes back to it when they cost less."""
    account = rules.hold_claim(Account(limit=100), "T-1", 60)
    account = rules.reserve(account, "r:1", "T-1", "llm", 50)
    assert (account.reserved, account.free) == (60, 40)
    account = rules.reserve(account, "r:2", "T-1", "llm", 30)
    assert (account.reserved, account.free) == (80, 20)
    account = rules.settle(account, "r:1", 10, max_holds=9)
    assert (account.spent, account.reserved, account.holds["T-1"].amount) == (10, 70, 40)
    account = rules.settle(account, "r:2", 5, max_holds=9)
    assert (account.spent, account.reserved, account.free) == (15, 45, 40), "60 in all for the task, as estimated"
    account = rules.spend(account, "T-1", 25, max_holds=9)
    assert (account.spent, account.reserved, account.holds["T-1"].spent) == (40, 20, 40)
    account, released = rules.end_claim(account, "T-1")
    assert (released, account.spent, account.free) == (20, 40, 60)


def test_what_only_counts_is_bounded_as_well() -> None:
    """Claims without an estimate whose reservations were settled count as no reservations, and beyond the bound are not kept."""
    account = Account()
    for number in range(5):
        account = rules.reserve(account, f"r:{number}", f"T-{number}", "claim", 0)
        assert rules.reservations(account) == 1
        account = rules.settle(account, f"r:{number}", 1, max_holds=2)
        account = rules.spend(account, f"T-{number}", 1, max_holds=2)
    assert list(account.holds) == ["T-0", "T-1"]
    assert (account.spent, account.holds["T-1"].spent, rules.reservations(account)) == (10, 2, 0)


def test_another_tasks_reservation_is_left_alone() -> None:
    """A cost of one task never uses up what another one set aside."""
    account = rules.hold_claim(rules.hold_claim(Account(limit=100), "T-1", 40), "T-2", 40)
    account = rules.spend(account, "T-1", 40, max_holds=9)
    assert account.holds["T-2"] == Hold("T-2", 40, "claim")
    assert rules.needed_beyond_claim(account, "T-2", 50) == 10


def test_a_swarm_without_a_budget_is_never_short() -> None:
    """Without a limit everything fits, costs are counted, and nothing trips."""
    account = rules.spend(Account(), None, 10**12, max_holds=9)
    assert rules.fits(account, 10**18)
    assert (account.spent, account.free, account.is_broke) == (10**12, None, False)
    assert not rules.trip_if_used_up(account, 0).is_tripped


@pytest.mark.parametrize(
    ("limit", "spent", "held", "broke"),
    [(0, 0, 0, True), (10, 9, 0, False), (10, 10, 0, True), (10, 11, 0, True), (10, 0, 10, False), (10, 5, 6, True)],
)
def test_broke_means_nothing_is_left_to_spend(limit: int, spent: int, held: int, broke: bool) -> None:
    """A budget that is used up, or overdrawn by what is set aside, is broke; one that is all reserved is not."""
    account = Account(limit=limit, spent=spent, holds={"T-1": Hold("T-1", held, "claim")})
    assert account.is_broke == broke


def test_a_total_that_could_not_be_stored_exactly_is_refused() -> None:
    """The sum of a swarm's costs stays within 63 bits: the cost that would leave them is refused, nothing is rounded."""
    account = Account(spent=rules.MAX_TOTAL - 1)
    assert rules.spend(account, None, 1, max_holds=9).spent == rules.MAX_TOTAL
    with pytest.raises(InvalidParams, match="too large"):
        rules.spend(account, None, 2, max_holds=9)


@pytest.mark.parametrize("count", [-1, 1.0, True, "1", None, 2**53 + 1, float("nan")])
def test_odd_token_counts_are_refused(count: object) -> None:
    """A token count is a whole number from 0 to 2**53 and nothing else."""
    with pytest.raises(InvalidParams, match="input_tokens"):
        rules.check_usage({"input_tokens": count})


def test_unknown_token_counts_are_refused() -> None:
    """Only the four buckets are counted; a mistyped one is not lost silently."""
    with pytest.raises(InvalidParams, match="input_token'"):
        rules.check_usage({"input_token": 1})
    assert rules.check_usage(None) == {}
    assert rules.check_usage(dict.fromkeys(rules.USAGE, 2**53)) == dict.fromkeys(rules.USAGE, 2**53)


@given(
    st.builds(
        Breaker,
        state=st.sampled_from(BreakerState),
        cause=st.one_of(st.none(), st.sampled_from(Cause)),
        reason=st.text(),
        tripped_at_ms=st.one_of(st.none(), st.integers(0, 2**50)),
        tasks=st.lists(st.text(), max_size=3).map(tuple),
    )
)
def test_a_breaker_is_read_as_it_was_stored(breaker: Breaker) -> None:
    """State, cause, reason, time and tasks of a breaker survive the store."""
    account = Account(breaker=breaker, limit=5, failed=("T-1",), failures_in_a_row=1)
    assert Account.from_stored(unpack(pack(account.to_stored()))) == account

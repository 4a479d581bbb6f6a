"""The governor's decisions: money, breaker, similarity, and the checks of an admission. Pure: no I/O, clock or chance.

Money. ``free = limit - spent - reserved``. Setting aside needs free money, so however many spend at once, settled and reserved
stay within the budget together; only a cost that was not reserved can go beyond it, and that trips the breaker.

Breaker. The table below is the whole life cycle; what it lacks leaves the state as it is.

    closed   --budget used up, failures in a row, operator-->  tripped
    tripped  --operator's reset with a reason--------------->  closed
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final, NamedTuple

from ifbus.errors import BreakerTripped, BudgetExceeded, IfbusError, InvalidParams, NotQualified, WouldChange
from ifbus.money import to_usd
from ifbusd.governor.model import CLOSED, PPM, Account, Breaker, BreakerState, Cause, Hold, Profile, Similarity

CLAIM: Final = "claim"
USAGE: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
# What a stored integer can hold; beyond it a total would not be exact any more, so it is refused.
MAX_TOTAL: Final = 2**63 - 1
# A count of tokens that is still exact in every JSON reader.
MAX_TOKENS: Final = 2**53

# --- similarity and rank -----------------------------------------------------------------------------

# Scores are compared as integers: (overlap x reputation / cost) x 2**140, rounded down. Two different scores differ by at least
# 1 / (d1 x d2) with denominators d of at most 2**7 capabilities x 10**18 micro-dollars, which is above 2**-140: no two of them
# round to the same number, so the order is exact.
_SCALE_BITS: Final = 140


class Overlap(NamedTuple):
    """How well capabilities P fit the required ones R, in whole numbers: |P n R|, |P u R| and |R|."""

    common: int
    union: int
    required: int

    def ratio(self, similarity: Similarity) -> Fraction:
        """Jaccard |P n R| / |P u R| or coverage |P n R| / |R|; 1 where nothing is required."""
        if not self.required:
            return Fraction(1)
        return Fraction(self.common, self.union if similarity == "jaccard" else self.required)

    def reaches(self, similarity: Similarity, threshold: Fraction) -> bool:
        """Whether the ratio is at least the threshold; integers only, 0.7 of 10 is exactly 7."""
        if not self.required:
            return True
        whole = self.union if similarity == "jaccard" else self.required
        return self.common * threshold.denominator >= threshold.numerator * whole


def overlap(capabilities: frozenset[str], required: frozenset[str]) -> Overlap:
    """What two sets of capabilities have in common."""
    common = len(capabilities & required)
    return Overlap(common, len(capabilities) + len(required) - common, len(required))


def rank_key(fit: Overlap, similarity: Similarity, profile: Profile) -> tuple[bool, int, str]:
    """Sorts the best first: by (overlap x reputation) / cost, free swarms before all others by overlap x reputation, then by id."""
    ratio = fit.ratio(similarity)
    is_paid = profile.cost_per_hour_micro_usd > 0
    divisor = ratio.denominator * (profile.cost_per_hour_micro_usd if is_paid else 1)
    return is_paid, -((ratio.numerator * profile.reputation_ppm << _SCALE_BITS) // divisor), profile.swarm_id


def describe_match(profile: Profile, required: frozenset[str], similarity: Similarity) -> dict[str, Any]:
    """The `CapabilityMatch` map: both similarities, and every figure of the rank."""
    fit = overlap(profile.capabilities, required)
    ratio = fit.ratio(similarity)
    score = None
    if profile.cost_per_hour_micro_usd:
        score = float(ratio * profile.reputation_ppm / profile.cost_per_hour_micro_usd)  # both are in millionths
    return {
        "swarm_id": profile.swarm_id,
        "jaccard": float(fit.ratio("jaccard")),
        "coverage": float(fit.ratio("coverage")),
        "overlap": float(ratio),
        "reputation": profile.reputation_ppm / PPM,
        "cost_per_hour_usd": to_usd(profile.cost_per_hour_micro_usd),
        "score": score,
        "missing": sorted(required - profile.capabilities),
    }


# --- money -------------------------------------------------------------------------------------------


def fits(account: Account, amount: int) -> bool:
    """Whether this can be set aside: always without a budget, else only from free money of a swarm that is not broke."""
    free = account.free
    return free is None or (amount <= free and not account.is_broke)


def hold_claim(account: Account, task_id: str, estimate: int) -> Account:
    """Set a claim's estimate aside; the caller checked that it `fits`. Nothing is noted for an estimate of 0."""
    if not estimate:
        return account
    return account.evolve(holds={**account.holds, task_id: Hold(task_id, estimate, CLAIM)})


def needed_beyond_claim(account: Account, task_id: str, amount: int) -> int:
    """What a reservation within a claim needs of the free money, after what the claim itself has set aside."""
    own = account.holds.get(task_id)
    return max(0, amount - (0 if own is None else own.amount))


def reserve(account: Account, hold_id: str, task_id: str, operation: str, amount: int) -> Account:
    """Set money aside for one operation, out of the claim's hold first; the caller checked that the rest `fits`."""
    drawn = amount - needed_beyond_claim(account, task_id, amount)
    holds = dict(account.holds)
    if drawn:
        holds[task_id] = holds[task_id]._replace(amount=holds[task_id].amount - drawn)
    holds[hold_id] = Hold(task_id, amount, operation, drawn)
    return account.evolve(holds=holds)


def settle(account: Account, hold_id: str, cost: int, *, max_holds: int) -> Account:
    """Replace a reservation by its real cost. What was drawn from the claim's hold and not spent goes back there.

    A claim that set nothing aside gets a hold of 0 that counts what is spent on it, as long as there is room for one.
    """
    holds = dict(account.holds)
    hold = holds.pop(hold_id)
    if hold.task_id in holds or _has_room_to_count(holds, max_holds):
        own = holds.get(hold.task_id, Hold(hold.task_id, 0, CLAIM))
        back = max(0, hold.drawn - cost)
        holds[hold.task_id] = own._replace(amount=own.amount + back, spent=_add(own.spent, cost))
    return account.evolve(spent=_add(account.spent, cost), holds=holds)


def spend(account: Account, task_id: str | None, cost: int, *, max_holds: int) -> Account:
    """Record a cost that was not reserved; one of a task uses up what the claim had set aside.

    A claim that set nothing aside gets a hold of 0 that counts what is spent on it, as long as there is room for one.
    """
    holds = account.holds
    if task_id is not None and (task_id in holds or _has_room_to_count(holds, max_holds)):
        own = holds.get(task_id, Hold(task_id, 0, CLAIM))
        holds = {**holds, task_id: own._replace(amount=max(0, own.amount - cost), spent=_add(own.spent, cost))}
    return account.evolve(spent=_add(account.spent, cost), holds=holds)


def reservations(account: Account) -> int:
    """How many holds set money aside; not those that only count what a claim has spent, so settling one makes room."""
    return len(account.holds) - _count_only(account.holds)


def _has_room_to_count(holds: Mapping[str, Hold], max_holds: int) -> bool:
    return len(holds) < max_holds or _count_only(holds) < max_holds


def _count_only(holds: Mapping[str, Hold]) -> int:
    # A claim's hold that reservations have drawn from may get some of it back.
    drawn_from = {hold.task_id for hold in holds.values() if hold.drawn}
    return sum(
        1
        for hold_id, hold in holds.items()
        if hold_id == hold.task_id and not hold.amount and hold_id not in drawn_from
    )


def end_claim(account: Account, task_id: str) -> tuple[Account, int]:
    """Give back all that was set aside for a task: the account, and how much that was."""
    given_back = 0
    kept = {}
    for hold_id, hold in account.holds.items():
        if hold.task_id == task_id:
            given_back += hold.amount
        else:
            kept[hold_id] = hold
    if len(kept) == len(account.holds):
        return account, 0
    return account.evolve(holds=kept), given_back


def _add(spent: int, cost: int) -> int:
    if spent + cost > MAX_TOTAL:
        raise InvalidParams(
            f"cannot record a cost of {to_usd(cost)} USD: the swarm's total of {to_usd(spent)} would be too large to stay exact",
            data={"param": "cost_usd", "spent_usd": to_usd(spent)},
        )
    return spent + cost


def check_usage(usage: dict[str, Any] | None) -> dict[str, int]:
    """The token counts, if each is one of `USAGE` and a whole number from 0 to 2**53.

    Raises:
        InvalidParams: One is not; the message names it.
    """
    for name, count in (usage or {}).items():
        if name not in USAGE:
            raise InvalidParams(f"usage has the counts {', '.join(USAGE)}, got {name!r:.80}", data={"param": "usage"})
        if type(count) is not int or not 0 <= count <= MAX_TOKENS:
            raise InvalidParams(f"{name} is a whole number from 0 to 2**53, got {count!r:.80}", data={"param": "usage"})
    return dict(usage or {})


# --- breaker -----------------------------------------------------------------------------------------


def trip(account: Account, cause: Cause, reason: str, now_ms: int, *, tasks: tuple[str, ...] = ()) -> Account:
    """Stop the swarm. One that is stopped already stays stopped for the first reason."""
    if account.is_tripped:
        return account
    return account.evolve(
        breaker=Breaker(state=BreakerState.TRIPPED, cause=cause, reason=reason, tripped_at_ms=now_ms, tasks=tasks),
    )


def reset(account: Account) -> Account:
    """Let the swarm work again, with its failures forgotten. That a person decided it is the caller's to check."""
    return account.evolve(breaker=CLOSED, failures_in_a_row=0, failed=())


def trip_if_used_up(account: Account, now_ms: int) -> Account:
    """After a cost: trip if the budget is used up."""
    if account.limit is None or account.spent < account.limit:
        return account
    reason = f"budget used up: spent {to_usd(account.spent)} of {to_usd(account.limit)} USD"
    return trip(account, Cause.BUDGET, reason, now_ms)


def count_failure(account: Account, task_id: str, failures_to_trip: int, now_ms: int) -> Account:
    """A task of the swarm failed; so many of them in a row trip the breaker."""
    failures = account.failures_in_a_row + 1
    failed = (*account.failed, task_id)[-failures_to_trip:]
    counted = account.evolve(failures_in_a_row=failures, failed=failed)
    if failures < failures_to_trip:
        return counted
    return trip(counted, Cause.FAILURES, f"{failures} failures in a row: {', '.join(failed)}", now_ms, tasks=failed)


def count_success(account: Account) -> Account:
    """A task of the swarm was completed: the row of failures has ended. A tripped breaker stays as it is."""
    if not account.failures_in_a_row or account.is_tripped:
        return account
    return account.evolve(failures_in_a_row=0, failed=())


class Event(enum.Enum):
    """What somebody has to hear of when an account changes."""

    BREAKER_TRIPPED = "breaker_tripped"
    BREAKER_RESET = "breaker_reset"
    BUDGET_LOW = "budget_low"


def event_between(before: Account, after: Account, low: Fraction) -> Event | None:
    """The one thing to tell about a change; a breaker that trips says enough about the budget."""
    if before.is_tripped != after.is_tripped:
        return Event.BREAKER_TRIPPED if after.is_tripped else Event.BREAKER_RESET
    if not after.is_tripped and _is_low(after, low) and not _is_low(before, low):
        return Event.BUDGET_LOW
    return None


def _is_low(account: Account, low: Fraction) -> bool:
    if not account.limit:
        return False
    return account.spent * low.denominator >= account.limit * low.numerator


# --- the checks of an admission ----------------------------------------------------------------------


def admits(
    profile: Profile,
    account: Account,
    required: frozenset[str],
    amount: int,
    similarity: Similarity,
    threshold: Fraction,
) -> bool:
    """Whether all checks below say yes; keep in step with them (a test compares the two)."""
    return (
        not account.is_tripped
        and overlap(profile.capabilities, required).reaches(similarity, threshold)
        and fits(account, amount)
    )


class Check(NamedTuple):
    """One question of an admission, answered: with its figures, and, for a no, what would turn it."""

    check: str
    ok: bool
    message: str
    data: dict[str, Any]
    would_change: list[WouldChange]
    refusal: type[IfbusError]

    def error(self) -> IfbusError:
        """The refusal that this no is."""
        return self.refusal(self.message, data=self.data, would_change=self.would_change)

    def to_wire(self) -> dict[str, Any]:
        """The map that `explain` answers with."""
        return {
            "check": self.check,
            "ok": self.ok,
            "message": self.message,
            "data": self.data,
            "would_change": self.would_change,
        }


def check_breaker(swarm_id: str, account: Account) -> Check:
    """Is the swarm allowed to work at all?"""
    breaker = account.breaker
    if not account.is_tripped:
        return Check("breaker", True, "closed", {"swarm_id": swarm_id}, [], BreakerTripped)
    call = f"ifbus breaker reset {swarm_id} --reason TEXT"
    what = "a reset with a reason"
    if account.is_broke:
        call, what = f"{call} --budget-usd AMOUNT", f"{what} and a budget above {_usd(account.limit)}"
    return Check(
        "breaker",
        False,
        f"{swarm_id} is stopped until an operator's reset: {breaker.reason}",
        {
            "swarm_id": swarm_id,
            "reason": breaker.reason,
            "cause": None if breaker.cause is None else breaker.cause.value,
            "tripped_at_ms": breaker.tripped_at_ms,
            "tasks": list(breaker.tasks),
        },
        [{"by": "operator", "what": what, "call": call}],
        BreakerTripped,
    )


def check_match(profile: Profile, required: frozenset[str], similarity: Similarity, threshold: Fraction) -> Check:
    """Do the swarm's capabilities fit?"""
    fit = overlap(profile.capabilities, required)
    ratio = fit.ratio(similarity)
    missing = sorted(required - profile.capabilities)
    ok = fit.reaches(similarity, threshold)
    data = {
        "swarm_id": profile.swarm_id,
        "overlap": float(ratio),
        "jaccard": float(fit.ratio("jaccard")),
        "coverage": float(fit.ratio("coverage")),
        "threshold": float(threshold),
        "similarity": similarity,
        "missing": missing,
    }
    if ok:
        return Check("match", True, f"overlap {_two_digits(ratio)} of {_two_digits(threshold)}", data, [], NotQualified)
    lacks = (
        f"lacks {', '.join(missing)}"
        if missing
        else f"has {len(profile.capabilities)} where {len(required)} are needed"
    )
    return Check(
        "match",
        False,
        f"{profile.swarm_id} does not fit: overlap {_two_digits(ratio)} of {_two_digits(threshold)}, {lacks}",
        data,
        [_match_remedy(profile, required, similarity, threshold)],
        NotQualified,
    )


def _match_remedy(
    profile: Profile, required: frozenset[str], similarity: Similarity, threshold: Fraction
) -> WouldChange:
    both = profile.capabilities | required
    if overlap(both, required).reaches(similarity, threshold):
        what, capabilities = "register what is missing, if the swarm can do it", sorted(both)
    else:
        # Jaccard counts what a generalist can do besides against it: more capabilities would not help.
        what, capabilities = "register with just these capabilities, the others count against it", sorted(required)
    call = f"ifbus swarm register {profile.swarm_id} --can {','.join(capabilities)}"
    return {"by": "self", "what": what, "call": call}


def check_budget(swarm_id: str, account: Account, amount: int) -> Check:
    """Can the swarm set this much aside? 0 asks only that it is not broke."""
    data = {"swarm_id": swarm_id, "needs_usd": to_usd(amount), "spent_usd": to_usd(account.spent)}
    limit, free, reserved = account.limit, account.free, account.reserved
    if limit is None or free is None:
        return Check("budget", True, f"needs {to_usd(amount)}, no budget set", data, [], BudgetExceeded)
    data |= {"limit_usd": to_usd(limit), "reserved_usd": to_usd(reserved), "free_usd": to_usd(free)}
    figures = (
        f"needs {to_usd(amount)}, free {to_usd(free)}"
        f" (budget {to_usd(limit)}, spent {to_usd(account.spent)}, reserved {to_usd(reserved)})"
    )
    if fits(account, amount):
        return Check("budget", True, figures, data, [], BudgetExceeded)
    # A swarm that has used up its budget exactly is broke though nothing is short: the smallest sum mends that.
    short = max(amount - free, 1 + account.spent - limit)
    enough = limit + short
    data |= {"short_by_usd": to_usd(short)}
    changes: list[WouldChange] = []
    if free > 0 and not account.is_broke:
        changes.append({"by": "self", "what": f"an estimate of at most {to_usd(free)}"})
    changes.append(
        {
            "by": "operator",
            "what": f"a budget of at least {to_usd(enough)}",
            "call": f"ifbus budget set {swarm_id} {to_usd(enough)}",
        }
    )
    if reserved >= short and account.spent < limit:
        changes.append({"by": "time", "what": f"up to {to_usd(reserved)} comes back when what it is reserved for ends"})
    return Check(
        "budget", False, f"{swarm_id} cannot pay: {figures}: short by {to_usd(short)}", data, changes, BudgetExceeded
    )


def _usd(amount: int | None) -> str:
    return "none" if amount is None else to_usd(amount)


def _two_digits(ratio: Fraction) -> str:
    # Rounded down: 0.699 must not read as the 0.70 that it failed to reach.
    hundredths = ratio.numerator * 100 // ratio.denominator
    return f"{hundredths // 100}.{hundredths % 100:02d}"


# --- reports -----------------------------------------------------------------------------------------


def describe_account(swarm_id: str, account: Account) -> dict[str, Any]:
    """The `BudgetReport` map."""
    report: dict[str, Any] = {
        "swarm_id": swarm_id,
        "spent_usd": to_usd(account.spent),
        "reserved_usd": to_usd(account.reserved),
        "breaker": account.breaker.state.value,
    }
    if account.limit is not None and account.free is not None:
        report |= {"limit_usd": to_usd(account.limit), "free_usd": to_usd(account.free)}
    if account.is_tripped:
        report["breaker_reason"] = account.breaker.reason
    return report


def describe_breaker(swarm_id: str, account: Account) -> dict[str, Any]:
    """One row of `list_breakers`."""
    return {
        "swarm_id": swarm_id,
        "state": account.breaker.state.value,
        "reason": account.breaker.reason,
        "cause": None if account.breaker.cause is None else account.breaker.cause.value,
        "tripped_at_ms": account.breaker.tripped_at_ms,
        "failures_in_a_row": account.failures_in_a_row,
    }


def describe_profile(profile: Profile, account: Account) -> dict[str, Any]:
    """The `SwarmProfile` map, but for what the coordinator knows: whether it is alive, and its claims."""
    described: dict[str, Any] = {
        "swarm_id": profile.swarm_id,
        "capabilities": sorted(profile.capabilities),
        "cost_per_hour_usd": to_usd(profile.cost_per_hour_micro_usd),
        "reputation": profile.reputation_ppm / PPM,
        "model": profile.model,
        "uid": profile.uid,
        "incarnation": profile.incarnation,
        "breaker": account.breaker.state.value,
    }
    if account.free is not None:
        described["free_usd"] = to_usd(account.free)
    if profile.pause:
        described["pause"] = profile.pause
    return described

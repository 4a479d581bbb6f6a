"""The governor's values, and how they stand in the store.

Money and breaker of a swarm are one record under one key, so that each admission compares and swaps exactly that key.
"""

from __future__ import annotations

import enum
from fractions import Fraction
from typing import Any, Final, Literal, NamedTuple, Self

import attrs
from attrs.validators import ge, gt, in_, le

from ifbus.money import MicroUsd
from ifbusd import pause as pauses

Similarity = Literal["jaccard", "coverage"]

SWARMS = "swarms/"
ACCOUNTS = "accounts/"
# One key per tripped swarm, written with the account: the open escalations are found without reading every account.
TRIPPED = "tripped/"
# The coordinator's, read for the open escalations.
BLOCKERS = "blockers/"
ALARMS = "alarms/"
APPROVALS = "approvals/"

PPM = 1_000_000
HOUR_MS = 60 * 60 * 1000


def _non_negative(_: object, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and value < 0:
        raise ValueError(f"{attribute.name} must be 0 or more, got {value}")


@attrs.frozen(kw_only=True)
class Policy:
    """What the operator decided.

    Attributes:
        similarity: Which measure an admission compares with the threshold. ``jaccard`` is the mission's; ``coverage`` does
            not punish generalists (DESIGN 8).
        threshold: The overlap that qualifies, inclusive; above 0, at most 1.
        max_self_budget_micro_usd: The largest budget that a user may give to an own swarm; a swarm registered without a
            budget gets this one. None: no such bound, and a swarm without a budget is never refused for money.
        failures_to_trip: So many failed tasks in a row trip the breaker.
        budget_low_ratio: The swarm and the operators hear of it once when this share of the budget is spent.
        max_holds: Reservations of one swarm at a time, and as many claims that only count costs; bounds its record (about 60 bytes each).
        max_swarms_per_task: So many swarms are called to help with one task at a time. 3: more would do the same work twice.
        max_swarms: Names in the registry; about 2 KiB of memory each.
        max_swarms_per_uid: The same for one user, so that nobody shuts the others out.
    """

    similarity: Similarity = attrs.field(default="jaccard", validator=in_(("jaccard", "coverage")))
    threshold: float = attrs.field(default=0.70, validator=[gt(0), le(1)])
    max_self_budget_micro_usd: MicroUsd | None = attrs.field(default=None, validator=_non_negative)
    failures_to_trip: int = attrs.field(default=3, validator=[ge(1), le(100)])
    budget_low_ratio: float = attrs.field(default=0.8, validator=[gt(0), le(1)])
    max_holds: int = attrs.field(default=256, validator=ge(1))
    max_swarms_per_task: int = attrs.field(default=3, validator=[ge(0), le(100)])
    max_swarms: int = attrs.field(default=100_000, validator=ge(1))
    max_swarms_per_uid: int = attrs.field(default=10_000, validator=ge(1))

    @property
    def exact_threshold(self) -> Fraction:
        """The threshold as it was written: 0.7 is 7/10, not the binary number beside it."""
        return Fraction(str(self.threshold))

    @property
    def exact_budget_low(self) -> Fraction:
        """`budget_low_ratio` as it was written."""
        return Fraction(str(self.budget_low_ratio))


@attrs.frozen(kw_only=True)
class Profile:
    """Who a swarm is and what it can do.

    Attributes:
        uid, gid: The user that registered the name first; nobody else acts for it.
        cost_per_hour_micro_usd: 0 is free.
        reputation_ppm: Millionths, so that rankings are exact and the same on every host.
        incarnation: Counts its registrations (the coordinator's number).
        orchestrator: Hears of every blocker.
        pause: `ifbusd.pause`; empty while it may take work.
    """

    swarm_id: str
    uid: int
    gid: int
    capabilities: frozenset[str] = frozenset()
    cost_per_hour_micro_usd: int = 0
    model: str = ""
    reputation_ppm: int = PPM
    incarnation: int = 0
    orchestrator: bool = False
    created_at_ms: int = 0
    pause: dict[str, Any] = attrs.field(factory=dict, hash=False)

    @classmethod
    def from_stored(cls, swarm_id: str, values: dict[str, Any]) -> Self:
        """The profile of a stored map. Anything else than `to_stored` gave raises KeyError, TypeError or ValueError."""
        return cls(
            swarm_id=swarm_id,
            uid=int(values["uid"]),
            gid=int(values["gid"]),
            capabilities=frozenset(values["capabilities"]),
            cost_per_hour_micro_usd=int(values["cost"]),
            model=str(values["model"]),
            reputation_ppm=int(values["reputation"]),
            incarnation=int(values["incarnation"]),
            orchestrator=bool(values["orchestrator"]),
            created_at_ms=int(values["created_at_ms"]),
            pause=pauses.from_stored(values.get("pause", {})),
        )

    def to_stored(self) -> dict[str, Any]:
        """The map that stands under ``swarms/<id>``."""
        stored = {
            "uid": self.uid,
            "gid": self.gid,
            "capabilities": sorted(self.capabilities),
            "cost": self.cost_per_hour_micro_usd,
            "model": self.model,
            "reputation": self.reputation_ppm,
            "incarnation": self.incarnation,
            "orchestrator": self.orchestrator,
            "created_at_ms": self.created_at_ms,
        }
        return {**stored, "pause": self.pause} if self.pause else stored


class Hold(NamedTuple):
    """Money set aside: for a whole claim (the hold's id is the task's) or for one operation within it.

    Attributes:
        drawn: How much of the amount came out of the claim's own hold; what is not spent of it goes back there.
        spent: What was spent on the task since it was claimed; only a claim's hold counts it.
    """

    task_id: str
    amount: int
    operation: str
    drawn: int = 0
    spent: int = 0


class BreakerState(enum.Enum):
    """Closed lets work through; tripped stops a swarm until an operator's reset."""

    CLOSED = "closed"
    TRIPPED = "tripped"


class Cause(enum.Enum):
    """Why a breaker tripped."""

    BUDGET = "budget_used_up"
    FAILURES = "failures_in_a_row"
    OPERATOR = "operator"


@attrs.frozen(kw_only=True)
class Breaker:
    """A swarm's circuit breaker: one way by itself, back only by a person.

    Attributes:
        cause, reason, tripped_at_ms: Why and when it tripped; None, ``""`` and None while closed.
        tasks: The failed tasks that tripped it.
    """

    state: BreakerState = BreakerState.CLOSED
    cause: Cause | None = None
    reason: str = ""
    tripped_at_ms: int | None = None
    tasks: tuple[str, ...] = ()


CLOSED: Final = Breaker()


@attrs.frozen(kw_only=True, slots=False)
class Account:
    """One swarm's money and breaker; all amounts are whole micro-dollars. Without slots, see `evolve`.

    Attributes:
        limit: The budget, None without one.
        spent: The sum of the swarm's ledger entries.
        holds: By id: a claim's hold has its task's id, another one an id that no task can have (``r:...``).
        failures_in_a_row: Failed tasks since the last completed one.
        failed: The newest of them, at most as many as trip the breaker.
    """

    limit: int | None = None
    spent: int = 0
    holds: dict[str, Hold] = attrs.field(factory=dict)
    breaker: Breaker = CLOSED
    failures_in_a_row: int = 0
    failed: tuple[str, ...] = ()

    def evolve(self, **changes: Any) -> Self:
        """This account with some fields changed, at a tenth of what the constructor costs; their names are the caller's to get right."""
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__, **changes)
        changed.__dict__.pop("_reserved", None)
        return changed

    @property
    def reserved(self) -> int:
        """All that is set aside; worked out once, each admission asks several times."""
        known: int | None = self.__dict__.get("_reserved")
        if known is None:
            known = self.__dict__["_reserved"] = sum(hold.amount for hold in self.holds.values())
        return known

    @property
    def free(self) -> int | None:
        """What is neither spent nor set aside; negative after an overspend, None without a budget."""
        return None if self.limit is None else self.limit - self.spent - self.reserved

    @property
    def is_tripped(self) -> bool:
        """Whether the swarm is stopped."""
        return self.breaker.state is BreakerState.TRIPPED

    @property
    def is_broke(self) -> bool:
        """Whether nothing is left to spend: the budget is used up by settled costs, or they ate into what was set aside."""
        free = self.free
        return free is not None and (free < 0 or self.spent >= (self.limit or 0))

    @classmethod
    def from_stored(cls, values: dict[str, Any] | None) -> Self:
        """The account of a stored map, a fresh one for None. Other values than `to_stored` gave raise as `Profile` does."""
        if values is None:
            return cls()
        limit, breaker = values["limit"], values["breaker"]
        cause = breaker["code"]
        return cls(
            limit=None if limit is None else int(limit),
            spent=int(values["spent"]),
            holds={hold_id: Hold(*parts) for hold_id, parts in values["holds"].items()},
            breaker=Breaker(
                state=BreakerState(breaker["state"]),
                cause=None if cause is None else Cause(cause),
                reason=breaker["reason"],
                tripped_at_ms=breaker["tripped_at_ms"],
                tasks=tuple(breaker["tasks"]),
            ),
            failures_in_a_row=int(values["failures_in_a_row"]),
            failed=tuple(values["failed"]),
        )

    def to_stored(self) -> dict[str, Any]:
        """The map that stands under ``accounts/<id>``."""
        return {
            "limit": self.limit,
            "spent": self.spent,
            "holds": self.holds,  # packed as lists
            "breaker": _CLOSED_STORED if self.breaker is CLOSED else _stored(self.breaker),
            "failures_in_a_row": self.failures_in_a_row,
            "failed": list(self.failed),
        }


def _stored(breaker: Breaker) -> dict[str, Any]:
    return {
        "state": breaker.state.value,
        "code": None if breaker.cause is None else breaker.cause.value,
        "reason": breaker.reason,
        "tripped_at_ms": breaker.tripped_at_ms,
        "tasks": list(breaker.tasks),
    }


_CLOSED_STORED: Final = _stored(CLOSED)


@attrs.frozen(kw_only=True)
class LedgerEntry:
    """One settled cost. Keep in step with `ifbusd.optimise.model.Cost`, which reads it.

    Attributes:
        usage: Token counts by bucket, see `rules.USAGE`.
    """

    swarm_id: str
    at_ms: int
    task_id: str | None
    operation: str
    model: str
    usage: dict[str, int]
    micro_usd: int

    def key(self, entry_id: str) -> str:
        """``ledger/<hour since the epoch>/<swarm>/<time>-<id>``: a report since some time starts reading at its hour."""
        return f"ledger/{self.at_ms // HOUR_MS:07d}/{self.swarm_id}/{self.at_ms:013d}-{entry_id}"

    def to_stored(self) -> dict[str, Any]:
        """The map that stands under `key`."""
        return {
            "at_ms": self.at_ms,
            "task": self.task_id,
            "operation": self.operation,
            "model": self.model,
            "usage": self.usage,
            "micro_usd": self.micro_usd,
        }

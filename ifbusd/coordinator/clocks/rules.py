"""What the three clocks of a claim show, and when they are alarming (DESIGN 2). Pure: ages and amounts come in, values come out."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

import attrs

from ifbus.money import to_usd
from ifbusd.coordinator.model import ALARMS, ClaimRecord, CoordinatorConfig

RUNAWAY: Final = "runaway"
SILENT: Final = "silent"
STARVING: Final = "starving"


@attrs.frozen(kw_only=True)
class Clocks:
    """What is known of one claim at one moment.

    Attributes:
        beat_ms: Since it was last renewed, of the time that the daemon saw pass.
        lease_left_ms: Until its lease ends if nobody renews it.
        progress_ms: Since it last came further, or since it was claimed.
        spent_micro_usd: Spent on the task since then.
        limit_micro_usd: What may be spent without coming further.
    """

    beat_ms: int
    lease_left_ms: int
    progress_ms: int
    spent_micro_usd: int
    limit_micro_usd: int

    @property
    def is_running_away(self) -> bool:
        """Whether it spends without coming further."""
        return self.spent_micro_usd > self.limit_micro_usd

    def to_wire(self, bound_to: str, bound: dict[str, Any] | None) -> dict[str, Any]:
        """For people.

        Args:
            bound: What would free the claim at once: then somebody watches whether it lives; nobody does by a lease alone.
        """
        return {
            "alive": True if bound is not None and bound["watched"] else None,
            "bound_to": bound_to,
            **({"bound": bound} if bound is not None else {}),
            "beat_ms": self.beat_ms,
            "lease_left_ms": self.lease_left_ms,
            "progress_ms": self.progress_ms,
            "spent_usd": to_usd(self.spent_micro_usd),
            "runaway_above_usd": to_usd(self.limit_micro_usd),
        }


def read(
    claim: ClaimRecord, estimate: int, spent: int, left_ms: int | None, *, now_ms: int, config: CoordinatorConfig
) -> Clocks:
    """The clocks of a claim.

    Args:
        estimate, spent: Of the task, and on it by this claim so far, in micro-dollars.
        left_ms: Observed time until its lease ends, None if that has ended.
        now_ms: Wall clock.
    """
    left_ms = left_ms or 0
    return Clocks(
        beat_ms=max(0, claim.lease_ms - left_ms),
        lease_left_ms=left_ms,
        progress_ms=max(0, now_ms - (claim.evidence_at_ms or claim.claimed_at_ms)),
        spent_micro_usd=max(0, spent - claim.evidence_micro_usd),
        limit_micro_usd=max(int(Fraction(str(config.runaway_ratio)) * estimate), config.runaway_micro_usd),
    )


@attrs.frozen(kw_only=True)
class Alarm:
    """Something that a person and the swarm should know, as long as it lasts.

    Attributes:
        whose: The claim's handle, or the swarm itself.
        message: One sentence with the figures.
        data: The figures.
    """

    kind: str
    swarm_id: str
    whose: str
    message: str
    data: dict[str, Any]

    @property
    def key(self) -> str:
        """Where it stands in the store while it is open."""
        return f"{ALARMS}{self.kind}/{self.whose}"

    def to_wire(self, at_ms: int) -> dict[str, Any]:
        """What the swarm and the operators are sent."""
        return {
            "kind": self.kind,
            "swarm_id": self.swarm_id,
            "reason": self.message,
            "message": self.message,
            "at_ms": at_ms,
            **self.data,
        }


def runaway(task_id: str, token: int, swarm_id: str, clocks: Clocks) -> Alarm | None:
    """Spending without progress."""
    if not clocks.is_running_away:
        return None
    spent, limit = to_usd(clocks.spent_micro_usd), to_usd(clocks.limit_micro_usd)
    return Alarm(
        kind=RUNAWAY,
        swarm_id=swarm_id,
        whose=f"{task_id}@{token}",
        message=f"{task_id}@{token} of {swarm_id} spent {spent} USD without progress in {_span(clocks.progress_ms)}, {limit} are alarming",
        data={
            "task_id": task_id,
            "token": token,
            "spent_usd": spent,
            "runaway_above_usd": limit,
            "progress_ms": clocks.progress_ms,
        },
    )


def is_silent(lease_ms: int, left_ms: int | None, ratio: float) -> bool:
    """Whether a lease was not renewed for longer than it should be."""
    return lease_ms - (left_ms or 0) >= ratio * lease_ms


def silent(whose: str, swarm_id: str, lease_ms: int, left_ms: int | None, ratio: float) -> Alarm | None:
    """Beats have stopped, and the lease has not run out yet.

    Args:
        whose: The swarm, for its session, or the handle of a claim on a lease of its own.
    """
    if not is_silent(lease_ms, left_ms, ratio):
        return None
    beat_ms = lease_ms - (left_ms or 0)
    what = f"the session of {swarm_id}" if whose == swarm_id else f"{whose} of {swarm_id}"
    return Alarm(
        kind=SILENT,
        swarm_id=swarm_id,
        whose=whose,
        message=f"{what} was not renewed for {_span(beat_ms)}, its lease ends in {_span(left_ms or 0)}",
        data={"whose": whose, "beat_ms": beat_ms, "lease_left_ms": left_ms or 0, "lease_ms": lease_ms},
    )


def starving(swarm_id: str, letters: int, oldest_at_ms: int, *, now_ms: int, limit_ms: int) -> Alarm | None:
    """A swarm that beats and does not read.

    Args:
        letters: How many wait for it, at least one; `oldest_at_ms` is the first one's time.
    """
    age_ms = now_ms - oldest_at_ms
    if age_ms < limit_ms:
        return None
    return Alarm(
        kind=STARVING,
        swarm_id=swarm_id,
        whose=swarm_id,
        message=f"{swarm_id} is alive and reads no mail: {letters} unread, the oldest for {_span(age_ms)}",
        data={"letters": letters, "oldest_ms": age_ms, "starving_ms": limit_ms},
    )


def _span(ms: int) -> str:
    if ms < 1_000:
        return f"{ms} ms"
    return f"{ms // 1_000} s" if ms < 120_000 else f"{ms // 60_000} min"

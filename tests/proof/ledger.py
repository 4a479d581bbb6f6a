"""What the witness log says of money, added up by a second bookkeeper who knows nothing of the daemon's counters. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

import attrs

# Ends of a claim: all that was set aside for the task comes back.
_ENDS = (
    "coordinator.complete_task",
    "coordinator.release_task",
    "coordinator.fail_task",
    "coordinator.expire_claim",
)


def micro_usd(text: str) -> int:
    """The whole micro-dollars of an amount as it is told."""
    numerator, denominator = (Decimal(text) * 1_000_000).as_integer_ratio()
    assert denominator == 1, f"{text} is no whole number of micro-dollars"
    return numerator


class Position(NamedTuple):
    """How a purse stands after a revision, in micro-dollars."""

    spent: int
    reserved: int


@attrs.define(kw_only=True)
class Purse:
    """One swarm's money. The mutable state is all of it.

    Attributes:
        holds: What is set aside, by task, or by operation within a task.
        drawn: How much of an operation's hold came out of its task's own.
        history: How it stood after each revision that touched it.
    """

    spent: int = 0
    holds: dict[tuple[str, str], int] = attrs.field(factory=dict)
    drawn: dict[tuple[str, str], int] = attrs.field(factory=dict)
    history: dict[int, Position] = attrs.field(factory=dict)

    def claim(self, task_id: str, estimate: int) -> None:
        """Begin with a claim's estimate; what an earlier claim left of this task is no more."""
        self.end(task_id)
        self.holds[task_id, ""] = estimate

    def reserve(self, task_id: str, operation: str, amount: int) -> None:
        """Set aside for an operation, out of the claim's own hold first."""
        drawn = min(amount, self.holds[task_id, ""])
        self.holds[task_id, ""] -= drawn
        self.holds[task_id, operation], self.drawn[task_id, operation] = amount, drawn

    def settle(self, task_id: str, operation: str, cost: int) -> None:
        """Turn what was set aside into a cost; what was drawn and not spent goes back to the claim's hold."""
        del self.holds[task_id, operation]
        self.holds[task_id, ""] += max(0, self.drawn.pop((task_id, operation)) - cost)
        self.spent += cost

    def end(self, task_id: str) -> None:
        """Give back all that is set aside for a task."""
        self.holds = {hold: amount for hold, amount in self.holds.items() if hold[0] != task_id}

    @property
    def position(self) -> Position:
        """How it stands."""
        return Position(self.spent, sum(self.holds.values()))


def read(entries: Iterable[dict[str, Any]]) -> dict[str, Purse]:
    """The purses of all swarms, from the entries of a witness log in their order.

    Raises:
        KeyError: The log settles or gives back what was never set aside.
    """
    purses: dict[str, Purse] = {}
    for entry in entries:
        detail = entry.get("detail", {})
        if entry["outcome"] != "ok" or detail.get("replayed"):
            continue
        op, target = entry["op"], entry["target"]
        swarm_id = detail.get("swarm", target)
        purse = purses.setdefault(swarm_id, Purse())
        if op == "coordinator.claim_task":
            purse.claim(target, micro_usd(detail.get("reserved_usd", "0")))
        elif op == "governor.reserve_cost":
            purse.reserve(detail["task_id"], detail["operation"], micro_usd(detail["reserved_usd"]))
        elif op == "governor.settle_cost":
            purse.settle(detail["task_id"], detail["operation"], micro_usd(detail["cost_usd"]))
        elif op in _ENDS:
            purse.end(target)
        else:
            continue
        purse.history[entry["revision"]] = purse.position
    return purses

"""The arithmetic of a cost report. Pure; all sums are whole micro-dollars, so that parts add up to totals exactly."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

import attrs

from ifbus.money import to_usd
from ifbusd.optimise.model import BUCKETS, HOUR_MS, Cost, TaskFate

Dimension = Literal["swarm", "task", "operation", "model", "hour"]
DIMENSIONS: Final[tuple[str, ...]] = get_args(Dimension)


@attrs.define(eq=False)
class Group:
    """All costs with one key. `by_task` has what each swarm spent on each task."""

    spent: int = 0
    tokens: list[int] = attrs.field(factory=lambda: [0] * len(BUCKETS))
    by_task: dict[tuple[str, str], int] = attrs.field(factory=dict)


class Sums:
    """Costs added up by one dimension; its state is the groups."""

    def __init__(self, by: Dimension) -> None:
        self._by = by
        self.groups: dict[str, Group] = {}
        self.task_ids: set[str] = set()

    def add(self, cost: Cost) -> None:
        """Count one cost."""
        group = self.groups.setdefault(key_of(cost, self._by), Group())
        group.spent += cost.micro_usd
        for index, count in enumerate(cost.tokens):
            group.tokens[index] += count
        if cost.task_id:
            self.task_ids.add(cost.task_id)
            whose = (cost.task_id, cost.swarm_id)
            group.by_task[whose] = group.by_task.get(whose, 0) + cost.micro_usd


def key_of(cost: Cost, by: Dimension) -> str:
    """What a cost is counted under; ``""`` where it has no task or model."""
    match by:
        case "swarm":
            return cost.swarm_id
        case "task":
            return cost.task_id
        case "operation":
            return cost.operation
        case "model":
            return cost.model
        case "hour":
            start = datetime.fromtimestamp(cost.at_ms // HOUR_MS * HOUR_MS // 1000, UTC)
            return start.strftime("%Y-%m-%dT%H:00Z")


def is_accepted(fate: TaskFate | None, swarm_id: str) -> bool:
    """Whether the swarm's work on the task led to its completion."""
    return fate is not None and fate.state == "completed" and fate.holder in ("", swarm_id)


def is_waste(fate: TaskFate | None, swarm_id: str) -> bool:
    """Whether the swarm's work on the task led to nothing: it failed, was given back, or somebody else completed it.

    What is not known (None), under way or blocked is neither accepted nor waste.
    """
    if fate is None:
        return False
    if fate.state == "completed":
        return fate.holder not in ("", swarm_id)
    # An open task that the swarm does not hold any more was given back, or its lease ran out.
    return fate.state != "open" or (fate.holder != swarm_id and not fate.is_blocked)


def report(sums: Sums, by: Dimension, fates: Mapping[str, TaskFate], *, limit: int) -> dict[str, Any]:
    """The answer of `Optimise.report`: the dearest `limit` groups, and the totals over all."""
    rows = []
    total = wasted = 0
    for key, group in sums.groups.items():
        waste = sum(
            spent for (task_id, swarm_id), spent in group.by_task.items() if is_waste(fates.get(task_id), swarm_id)
        )
        total += group.spent
        wasted += waste
        rows.append((key, group, waste))
    rows.sort(key=lambda row: (-row[1].spent, row[0]))
    return {
        "by": by,
        "rows": [_describe(key, group, waste, fates) for key, group, waste in rows[:limit]],
        "total_usd": to_usd(total),
        "waste_usd": to_usd(wasted),
        "has_more": len(rows) > limit,
    }


def _describe(key: str, group: Group, waste: int, fates: Mapping[str, TaskFate]) -> dict[str, Any]:
    accepted = {task_id for task_id, swarm_id in group.by_task if is_accepted(fates.get(task_id), swarm_id)}
    return {
        "key": key,
        "tasks": len({task_id for task_id, _ in group.by_task}),
        "accepted": len(accepted),
        "spent_usd": to_usd(group.spent),
        # To the next whole micro-dollar: a quotient need not be one.
        "per_accepted_usd": to_usd(-(-group.spent // len(accepted))) if accepted else None,
        **dict(zip(BUCKETS, group.tokens, strict=True)),
        "waste_usd": to_usd(waste),
        "waste_ratio": waste / group.spent if group.spent else 0.0,
    }

"""What the processes of the play report, added up. Pure: lines in, figures out.

Every process prints one JSON object per line: ``{"event": name, "swarm": name, ...}``; moments are nanoseconds of
CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs


@attrs.define
class Tally:
    """The mutable state of the play's accounts."""

    claim_us: list[float] = attrs.field(factory=list)
    execute_us: dict[str, list[float]] = attrs.field(factory=dict)
    completed: dict[str, list[str]] = attrs.field(factory=dict)
    milestones: Counter[str] = attrs.field(factory=Counter)
    executions: Counter[str] = attrs.field(factory=Counter)
    scenes: set[str] = attrs.field(factory=set)
    story: list[str] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    _pushed_ns: dict[str, int] = attrs.field(factory=dict)
    _arrived_ns: dict[str, int] = attrs.field(factory=dict)
    _alarm_ns: dict[str, int] = attrs.field(factory=dict)
    _heard_ns: dict[str, int] = attrs.field(factory=dict)

    def add(self, report: dict[str, Any]) -> None:
        """Take one report in; events of no interest are passed over."""
        event, swarm, task = report.get("event"), str(report.get("swarm", "")), str(report.get("task", ""))
        if event == "claimed":
            self.claim_us.append(report["us"])
        elif event == "executed":
            self.execute_us.setdefault(report["kind"], []).append(report["us"])
            self.executions[swarm] += 1
        elif event == "progress":
            self.milestones[swarm] += 1
        elif event == "completed":
            self.completed.setdefault(swarm, []).append(task)
        elif event == "pushed":
            self._pushed_ns[task] = report["ns"]
            self.scenes.add("a task was pushed")
        elif event == "arrived":
            self._arrived_ns.setdefault(task, report["ns"])
        elif event == "alarm":
            self._alarm_ns[task] = report["ns"]
            self.scenes.add("a blocker was reported")
        elif event == "heard":
            self._heard_ns.setdefault(task, report["ns"])
            self.scenes.add("the orchestrator heard of the blocker")
        elif event == "helped":
            self.scenes.add("a helper resolved the blocker")
        elif event == "broke":
            self.scenes.add("a swarm ran out of budget and its breaker tripped")
        elif event == "back":
            self.scenes.add("an operator reset the breaker and the swarm went on")
        elif event == "problem":
            self.problems.append(f"{swarm}: {report.get('text', '')}")
        if "text" in report:
            self.story.append(f"{swarm:<12} {report['text']}")

    def push_us(self) -> list[float]:
        """From the call that pushes to the letter in the swarm's hands."""
        return _spans(self._pushed_ns, self._arrived_ns)

    def alarm_us(self) -> list[float]:
        """From the call that reports a blocker to the orchestrator's ear."""
        return _spans(self._alarm_ns, self._heard_ns)


def _spans(starts: dict[str, int], ends: dict[str, int]) -> list[float]:
    return [(ends[task] - start) / 1000 for task, start in starts.items() if task in ends]


def quantile(values: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed (nearest rank); None without values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)
    return ordered[min(len(ordered), max(1, int(rank))) - 1]

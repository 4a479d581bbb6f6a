"""Which task's time comes next. The mutable state is a heap; whoever sets a task's time anew leaves its former place behind."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

# So many places may be stale before it is worth to make the heap anew.
_SLACK = 1_024


class Timers:
    """Times of tasks in epoch milliseconds, earliest first. Who takes one out checks that it is still the task's."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        """Places, stale ones among them."""
        return len(self._heap)

    @property
    def next_at_ms(self) -> int | None:
        """The earliest time, perhaps a stale one; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def add(self, at_ms: int, task_id: str) -> None:
        """Remember a time of a task."""
        heapq.heappush(self._heap, (at_ms, task_id))

    def pop(self) -> tuple[int, str]:
        """Take the earliest out."""
        return heapq.heappop(self._heap)

    def is_crowded(self, tasks: int) -> bool:
        """Whether most places must be stale, there being so many tasks."""
        return len(self._heap) > 2 * tasks + _SLACK

    def replace(self, places: Iterable[tuple[int, str]]) -> None:
        """Forget all and take these instead."""
        self._heap = list(places)
        heapq.heapify(self._heap)

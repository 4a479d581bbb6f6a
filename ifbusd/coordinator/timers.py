"""What is due when, earliest first: a heap that the board feeds. Whoever gives a name another time leaves its former place behind."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Final

import trio

# So many places may be stale before it is worth to look for those.
_SLACK: Final = 1_024


class Timers:
    """Names by the time at which each is due, in epoch milliseconds.

    The mutable state is the heap; it is never longer than twice what is due, and some.

    Args:
        due_at_ms: When a name is due by what its owner knows now: a place with another time is stale.
        earlier: Whoever is parked here is woken when something is due earlier than all before.
    """

    def __init__(self, due_at_ms: Callable[[str], int | None], earlier: trio.lowlevel.ParkingLot) -> None:
        self._due_at_ms = due_at_ms
        self._earlier = earlier
        self._heap: list[tuple[int, str]] = []
        self._most = _SLACK

    def __len__(self) -> int:
        """Places, stale ones among them."""
        return len(self._heap)

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._most = _SLACK

    @property
    def next_at_ms(self) -> int | None:
        """The earliest time, perhaps a stale one; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def left_ms(self, now_ms: int) -> int | None:
        """How long it is until then, 0 or less if that has come; None if there is none."""
        return self._heap[0][0] - now_ms if self._heap else None

    def add(self, at_ms: int, name: str) -> None:
        """It is due then."""
        if len(self._heap) >= self._most:
            self._heap = [place for place in set(self._heap) if self._due_at_ms(place[1]) == place[0]]
            heapq.heapify(self._heap)
            self._most = 2 * len(self._heap) + _SLACK
        heapq.heappush(self._heap, (at_ms, name))
        if self._heap[0][0] == at_ms:
            self._earlier.unpark_all()

    def pop(self) -> str | None:
        """Take the earliest out; None if its place was stale."""
        at_ms, name = heapq.heappop(self._heap)
        return name if self._due_at_ms(name) == at_ms else None

    def take_due(self, now_ms: int) -> Iterator[str]:
        """Take out what is due, the earliest first."""
        while self._heap and self._heap[0][0] <= now_ms:
            if (name := self.pop()) is not None:
                yield name

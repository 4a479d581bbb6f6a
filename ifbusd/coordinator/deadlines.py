"""What is due when: a heap that the board feeds and one task waits at."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

import trio

# A wall clock may be set: it is looked at again after this at the latest.
_LONGEST_SLEEP_S: Final = 60.0


class Deadlines:
    """Names by the time at which each is due, fed by the board. The mutable state is a heap and what of it still counts."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._due_at: dict[str, int] = {}
        self._changed = trio.Event()

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._due_at.clear()

    def put(self, name: str, due_at_ms: int) -> None:
        """It is due then."""
        if self._due_at.get(name) != due_at_ms:
            self._due_at[name] = due_at_ms
            heapq.heappush(self._heap, (due_at_ms, name))
            self._changed.set()

    def drop(self, name: str) -> None:
        """It is never due."""
        self._due_at.pop(name, None)

    def take_due(self, now_ms: int) -> Iterator[str]:
        """What is due, the earliest first; each once, unless it is put again."""
        while (due_at_ms := self._next()) is not None and due_at_ms <= now_ms:
            _, name = heapq.heappop(self._heap)
            del self._due_at[name]
            yield name

    def _next(self) -> int | None:
        while self._heap:
            due_at_ms, name = self._heap[0]
            if self._due_at.get(name) == due_at_ms:
                return due_at_ms
            heapq.heappop(self._heap)
        return None

    async def wait(self, now_ms: int) -> None:
        """Return when the earliest may be due by now, or when there is another one."""
        self._changed = trio.Event()
        due_at_ms = self._next()
        left_s = _LONGEST_SLEEP_S if due_at_ms is None else max(0, due_at_ms - now_ms) / 1000
        with trio.move_on_after(min(left_s, _LONGEST_SLEEP_S)):
            await self._changed.wait()

"""Watches on the embedded store: a bounded history of commits in memory, and watchers that are positions in it.

There is no queue per watcher: a slow one falls behind in the shared history, and when that has dropped what it still needs it
gets `Compacted` (ADR 0004). A commit asks once for each prefix that somebody waits for (the daemon watches three); those that do
not wait are left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Never

import trio

from ifbus.errors import Unavailable
from ifbusd.store.base import Compacted, WatchEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    Apply = Callable[[list[WatchEvent]], None]


class History:
    """The newest commits' events, and who waits for more. The mutable state is all in here; one task publishes."""

    def __init__(self, *, revision: int, max_events: int, max_bytes: int) -> None:
        """Begin after `revision`: nothing up to it is kept."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        # Commits by position; positions only grow, [first, end) are here.
        self._commits: dict[int, tuple[list[WatchEvent], int]] = {}
        self._first = 0
        self._end = 0
        self._events = 0
        self._bytes = 0
        # The newest revision that is not (or no longer) in here.
        self._floor_revision = revision
        # Watchers that have seen all and wait, by prefix.
        self._waiting: dict[str, set[EmbeddedWatch]] = {}
        # Those that are not woken but called, each with its position and whom to call.
        self._fed: dict[EmbeddedWatch, tuple[int, Apply]] = {}
        self.closed: str | None = None

    def __len__(self) -> int:
        """Events kept."""
        return self._events

    def publish(self, events: list[WatchEvent], size_bytes: int) -> None:
        """Add one durable commit's events, in order of revision, and wake whom they concern."""
        self._commits[self._end] = (events, size_bytes)
        self._events += len(events)
        self._bytes += size_bytes
        for prefix in list(self._waiting):
            if any(event.key.startswith(prefix) for event in events):
                for watch in self._waiting.pop(prefix):
                    watch.wake(self._end)
        self._end += 1
        # The newest commit stays however large it is: its watchers were only just woken.
        while self._first < self._end - 1 and (self._events > self._max_events or self._bytes > self._max_bytes):
            dropped, dropped_bytes = self._commits.pop(self._first)
            self._floor_revision = dropped[-1].revision
            self._events -= len(dropped)
            self._bytes -= dropped_bytes
            self._first += 1

    def find(self, start_revision: int) -> int:
        """The position from which on all events of `start_revision` and later are.

        Raises:
            Compacted: Some of them may be gone.
        """
        if start_revision <= self._floor_revision:
            raise Compacted(
                f"cannot watch from revision {start_revision}: changes up to {self._floor_revision} are no longer kept"
            )
        position = self._end
        while position > self._first and self._commits[position - 1][0][-1].revision >= start_revision:
            position -= 1
        return position

    def take(self, position: int, prefix: str, start_revision: int) -> tuple[list[WatchEvent], int]:
        """The next commit's events that concern a watcher, and the position after it; none if it has seen all.

        Raises:
            Compacted: What stood at `position` is gone.
        """
        if position < self._first:
            raise Compacted(f"cannot go on watching {prefix!r}: {self._first - position} commits too slow")
        while position < self._end:
            events = self._commits[position][0]
            position += 1
            found = [event for event in events if event.key.startswith(prefix) and event.revision >= start_revision]
            if found:
                return found, position
        return [], position

    def feed(self, watch: EmbeddedWatch, position: int, apply: Apply) -> None:
        """From now on have `deliver` give the watch's events to `apply`."""
        self._fed[watch] = position, apply

    def deliver(self) -> None:
        """Give what was published since the last time to those that are fed."""
        for watch, (position, apply) in list(self._fed.items()):
            try:
                while position < self._end:
                    found, position = self.take(position, watch.prefix, watch.start_revision)
                    if found:
                        apply(found)
            except Compacted as compacted:
                watch.end(compacted)
            else:
                self._fed[watch] = position, apply

    def wait(self, watch: EmbeddedWatch) -> None:
        """Have the watch woken by the next commit that concerns its prefix."""
        self._waiting.setdefault(watch.prefix, set()).add(watch)

    def stop_waiting(self, watch: EmbeddedWatch) -> None:
        """Undo `wait` and `feed`; nothing happens if the watch does not wait."""
        self._fed.pop(watch, None)
        watchers = self._waiting.get(watch.prefix)
        if watchers is not None:
            watchers.discard(watch)
            if not watchers:
                del self._waiting[watch.prefix]

    def forget(self, revision: int) -> None:
        """Drop everything: changes up to this revision may be missing. Every watch, also one that waits, gets `Compacted`."""
        self._commits.clear()
        self._events = self._bytes = 0
        self._floor_revision = max(self._floor_revision, revision)
        self._end += 1
        self._first = self._end
        waiting, self._waiting = self._waiting, {}
        for watchers in waiting.values():
            for watch in watchers:
                watch.wake(self._end - 1)

    def close(self, reason: str) -> None:
        """End all watches: what waits, or ever asks again, gets `Unavailable`."""
        self.closed = reason
        waiting, self._waiting = self._waiting, {}
        for watchers in waiting.values():
            for watch in watchers:
                watch.wake(self._end)
        for watch in self._fed:
            watch.wake(self._end)


class EmbeddedWatch:
    """A watch: entered to begin, iterated by one task at a time, left to end."""

    def __init__(
        self, history: History, prefix: str, start_revision: int | None, now_revision: Callable[[], int]
    ) -> None:
        self.prefix = prefix
        self._history = history
        self.start_revision = 0 if start_revision is None else start_revision
        self._now_revision = None if start_revision is not None else now_revision
        # None: has seen all up to the newest commit and waits to be woken by one that concerns it.
        self._position: int | None = None
        self._compacted: Compacted | None = None
        self._woken = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> EmbeddedWatch:
        """Begin; from now on nothing is missed."""
        if self._now_revision is not None:
            self.start_revision = self._now_revision() + 1
        try:
            self._position = self._history.find(self.start_revision)
        except Compacted as compacted:
            self._compacted = compacted  # told by the first `__anext__`, as on etcd
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        self._history.stop_waiting(self)

    def __aiter__(self) -> EmbeddedWatch:
        """Itself."""
        return self

    async def __anext__(self) -> list[WatchEvent]:
        """The next commit's events under the prefix; all that one revision has, or none of it.

        Cancelling takes nothing away: the next call gives the same events.

        Raises:
            Compacted: Too slow, or started too far back. Read all, watch anew.
            Unavailable: The store has stopped.
        """
        has_yielded = False  # parking is enough of it
        while True:
            if self._compacted is not None:
                raise self._compacted
            if self._history.closed is not None:
                raise Unavailable(self._history.closed)
            if self._position is not None:
                found, after = self._history.take(self._position, self.prefix, self.start_revision)
                if found and has_yielded:
                    self._position = after
                    return found
                if found:
                    await trio.lowlevel.checkpoint()
                    has_yielded = True
                    continue
                self._position = None
                self._history.wait(self)
            await self._woken.park()
            has_yielded = True

    async def feed(self, apply: Apply) -> Never:
        """See `ifbusd.store.base.Watch.feed`: called in the task that commits, which costs no task switch.

        Raises:
            Compacted, Unavailable: As iterating does.
        """
        if self._position is not None:  # else it started too far back
            self._history.feed(self, self._position, apply)
            self._history.deliver()
        while self._compacted is None and self._history.closed is None:
            await self._woken.park()
        raise self._compacted or Unavailable(str(self._history.closed))

    def end(self, compacted: Compacted) -> None:
        """What this watch needs next is gone."""
        self._compacted = compacted
        self._woken.unpark_all()

    def wake(self, position: int) -> None:
        """There is something for this watch at `position`, or the store has stopped."""
        self._position = position
        self._woken.unpark_all()

"""Leases in memory: when each ends, on a clock that only counts time the store has seen pass (pure; ADR 0003)."""

from __future__ import annotations

import heapq
from typing import Final

import attrs

_HEAP_SLACK: Final = 64


def observed_step_ms(elapsed_ms: int, *, limit_ms: int) -> int:
    """How much of the time since the last look counts against leases.

    A daemon that was suspended, stopped, or waited for its disk could not have heard a renewal, so a long gap counts as
    `limit_ms` only. A clock that runs backwards counts as standing still.
    """
    return max(0, min(elapsed_ms, limit_ms))


@attrs.define(kw_only=True, eq=False)
class Lease:
    """A lease: its length, and its end on the observed clock."""

    id: int
    ttl_ms: int
    deadline_ms: int


class LeaseTable:
    """All leases that are alive. The caller brings the time; nothing here ends a lease by itself."""

    def __init__(self, *, now_ms: int, step_limit_ms: int) -> None:
        """Begin at `now_ms` of any steady clock."""
        self._leases: dict[int, Lease] = {}
        # Ends as they were when pushed: a renewal only moves the lease's own deadline, and is found out when popped.
        self._ends: list[tuple[int, int]] = []
        self._observed_ms = 0
        self._looked_at_ms = now_ms
        self._step_limit_ms = step_limit_ms

    def __len__(self) -> int:
        """Leases alive."""
        return len(self._leases)

    def __contains__(self, lease: int) -> bool:
        """Whether the lease is alive."""
        return lease in self._leases

    def observe(self, now_ms: int) -> None:
        """Let the observed clock advance to now, within its rule."""
        self._observed_ms = self._soon_ms(now_ms)
        self._looked_at_ms = now_ms

    def add(self, lease: int, ttl_ms: int, now_ms: int) -> None:
        """A new lease with its full time."""
        self.restore(Lease(id=lease, ttl_ms=ttl_ms, deadline_ms=self._soon_ms(now_ms) + ttl_ms))

    def restore(self, lease: Lease) -> None:
        """Put back a lease whose end did not become durable."""
        self._leases[lease.id] = lease
        heapq.heappush(self._ends, (lease.deadline_ms, lease.id))

    def remove(self, lease: int) -> Lease | None:
        """Forget a lease; None if there was none."""
        removed = self._leases.pop(lease, None)
        if len(self._ends) > 2 * len(self._leases) + _HEAP_SLACK:  # mostly leases that are gone
            self._ends = [(alive.deadline_ms, alive.id) for alive in self._leases.values()]
            heapq.heapify(self._ends)
        return removed

    def renew(self, lease: int, now_ms: int) -> int | None:
        """Give a lease its full time again; that time in ms, None if there is no such lease."""
        renewed = self._leases.get(lease)
        if renewed is None:
            return None
        renewed.deadline_ms = self._soon_ms(now_ms) + renewed.ttl_ms
        return renewed.ttl_ms

    def left_ms(self, lease: int, now_ms: int) -> int | None:
        """Observed time until a lease ends, None if there is no such lease."""
        found = self._leases.get(lease)
        return None if found is None else max(0, found.deadline_ms - self._soon_ms(now_ms))

    def due(self) -> list[int]:
        """The leases whose time is over, earliest first. They stay in the table, and due, until removed or renewed."""
        found: dict[int, int] = {}  # a lease that was put back may stand in the heap twice
        while self._ends and self._ends[0][0] <= self._observed_ms:
            _, lease_id = heapq.heappop(self._ends)
            lease = self._leases.get(lease_id)
            if lease is None:
                continue
            if lease.deadline_ms > self._observed_ms:
                heapq.heappush(self._ends, (lease.deadline_ms, lease_id))
            else:
                found[lease_id] = lease.deadline_ms
        for lease_id, deadline_ms in found.items():
            heapq.heappush(self._ends, (deadline_ms, lease_id))
        return list(found)

    def _soon_ms(self, now_ms: int) -> int:
        """The observed clock as the next look would find it, so that no lease ends early by a part of a tick."""
        return self._observed_ms + observed_step_ms(now_ms - self._looked_at_ms, limit_ms=self._step_limit_ms)

"""`daemon.status`: the whole daemon at a glance, put together from the components' snapshots."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from ifbusd.latency import LatencyWindow

Answer = dict[str, Any]


class Status:
    """Collects the answer; holds nothing but where to ask.

    Args:
        facts: What does not change: build, pid, socket, state directory, backend.
        snapshots: The components' `statistics`, by the key under which they stand in the answer.
        latencies: What the daemon measured of its own calls, by kind.
        escalations: The open ones: what an operator should see now.
    """

    def __init__(
        self,
        *,
        facts: Mapping[str, Any],
        started_at_ms: int,
        now_ms: Callable[[], int],
        snapshots: Mapping[str, Callable[[], Any]],
        latencies: Mapping[str, LatencyWindow],
        escalations: Callable[[], Awaitable[list[Answer]]],
    ) -> None:
        self._facts = dict(facts)
        self._started_at_ms = started_at_ms
        self._now_ms = now_ms
        self._snapshots = snapshots
        self._latencies = latencies
        self._escalations = escalations

    async def answer(self) -> Answer:
        """``{"build", "pid", "socket", "state_dir", "backend", "now_ms", "uptime_ms", "store": {...}, "coordinator": {"tasks":
        {state: n}, ...}, "governor": {...}, "chassis": {...}, "rpc": {...}, "latency": {"claim" | "push" | "blocker" | "execute":
        {"calls", "p50_us", "p99_us"}}, "alarms": [escalation]}``; times are the daemon's own, without the socket.
        """
        now_ms = self._now_ms()
        return {
            **self._facts,
            "now_ms": now_ms,
            "uptime_ms": max(0, now_ms - self._started_at_ms),
            **{name: plain(snapshot()) for name, snapshot in self._snapshots.items()},
            "latency": {kind: window.summary() for kind, window in self._latencies.items()},
            "alarms": await self._escalations(),
        }


def plain(value: Any) -> Any:
    """A snapshot as values of the wire."""
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value

"""`daemon.status`: the whole daemon at a glance, put together from the components' snapshots."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs

from ifbusd.codec import how_many_fit
from ifbusd.latency import LatencyWindow

# One answer is one message: of each list as much as leaves the others their room.
_LIST_BYTES: Final = 8 << 10
_ALARM_BYTES: Final = 24 << 10

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
        """``{"build", "pid", "socket", "state_dir", "backend", "now_ms", "uptime_ms", "store": {...}, "bus": {"backend", "connected",
        ...}, "coordinator": {"tasks": {state: n}, ...}, "governor": {...}, "chassis": {...}, "rpc": {...}, "latency": {"claim" | "push" | "blocker" | "execute":
        {"calls", "p50_us", "p99_us"}}, "alarms": [escalation]}``; times are the daemon's own, without the socket. Lists are cut
        to what fits into one answer.
        """
        now_ms = self._now_ms()
        parts = {name: plain(snapshot()) for name, snapshot in self._snapshots.items()}
        for part in parts.values():
            for name, value in part.items():
                if isinstance(value, list):
                    part[name] = value[: how_many_fit(value, _LIST_BYTES)]
        alarms = await self._escalations()
        return {
            **self._facts,
            "now_ms": now_ms,
            "uptime_ms": max(0, now_ms - self._started_at_ms),
            **parts,
            "latency": {kind: window.summary() for kind, window in self._latencies.items()},
            "alarms": alarms[: how_many_fit(alarms, _ALARM_BYTES)],
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

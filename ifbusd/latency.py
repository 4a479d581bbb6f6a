"""How long calls take: the newest of each kind, for `ifbus status` and the operators."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

# Enough that a p99 rests on 40 samples; 4096 floats are 130 kB per kind.
_WINDOW: Final = 4096


class LatencyWindow:
    """The durations of the newest calls of one kind."""

    def __init__(self) -> None:
        self._newest_us: deque[float] = deque(maxlen=_WINDOW)
        self.calls = 0

    def note(self, started_ns: int) -> None:
        """A call that began at this time of `time.perf_counter_ns` has succeeded."""
        self._newest_us.append((time.perf_counter_ns() - started_ns) / 1000)
        self.calls += 1

    def summary(self) -> dict[str, Any]:
        """``{"calls", "p50_us", "p99_us"}`` over the newest calls; without quantiles when there were none."""
        ordered = sorted(self._newest_us)
        if not ordered:
            return {"calls": self.calls}
        return {
            "calls": self.calls,
            "p50_us": round(ordered[len(ordered) // 2], 1),
            "p99_us": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 1),
        }

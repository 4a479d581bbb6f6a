"""By which clock finished tasks are kept: the wall clock, without the time that nobody saw passing.

A wall clock that leaps forward (a wrong time server, a host that was suspended, a clock that was wrong until now) would end the time
of everything that is kept, at once and for good. What it leapt is left out for as long as tasks are kept by default: by then whatever
ended before the leap has had its time. A leap back takes the newest leaps forward back. It is known while the daemon runs: one that is
started anew goes by the wall clock as it finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

# Less is a clock that is put right, or a loop that was held up.
_LEAP_MS: Final = 60_000
# More leaps than this within the time that tasks are kept: the oldest are forgotten.
_MOST: Final = 64


class RetentionClock:
    """The mutable state is the time of the last look, and the leaps that count still, with when they no longer do.

    Args:
        now_ms: The wall clock, epoch milliseconds.
        kept_ms: How long tasks are kept by default.
    """

    def __init__(self, now_ms: Callable[[], int], kept_ms: int) -> None:
        self._now_ms = now_ms
        self._kept_ms = kept_ms
        self._last: tuple[int, float] | None = None
        self._leaps: list[tuple[float, float]] = []

    def now_ms(self) -> int:
        """Epoch milliseconds, never ahead of the wall clock."""
        wall_ms, steady_ms = self._now_ms(), trio.current_time() * 1000
        if self._last is not None:
            leapt_ms = wall_ms - self._last[0] - (steady_ms - self._last[1])
            if leapt_ms > _LEAP_MS:
                self._leaps = [*self._leaps[1 - _MOST :], (steady_ms + self._kept_ms, leapt_ms)]
            elif leapt_ms < -_LEAP_MS:
                self._take_back(-leapt_ms)
        self._last = wall_ms, steady_ms
        if self._leaps:
            self._leaps = [leap for leap in self._leaps if leap[0] > steady_ms]
        return round(wall_ms - sum(leapt_ms for _, leapt_ms in self._leaps))

    def _take_back(self, back_ms: float) -> None:
        while self._leaps and back_ms > 0:
            until_ms, leapt_ms = self._leaps.pop()
            if leapt_ms - back_ms > _LEAP_MS:
                self._leaps.append((until_ms, leapt_ms - back_ms))
            back_ms -= leapt_ms

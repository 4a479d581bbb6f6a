"""Where a commit waits for the disk: a running estimate of how long it takes, and the choice that follows (ADR 0001)."""

from __future__ import annotations

from typing import Final, Literal

import attrs

# One commit moves the estimate by an eighth of its distance: about five slow ones in a row change the mode.
_WEIGHT: Final = 8


@attrs.define(kw_only=True)
class FlushGauge:
    """Decides between the loop and a thread from the commits seen so far.

    Attributes:
        mode: What the configuration says.
        limit_us: In `auto`, commits leave the loop above this estimate and return to it below half of it.
        estimate_us: Smoothed time of a commit.
        in_thread: The choice for the next commit.
    """

    mode: Literal["auto", "inline", "thread"]
    limit_us: int
    estimate_us: float = 0.0
    in_thread: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Begin as configured; `auto` begins in the loop, where the measurements at the start are made."""
        self.in_thread = self.mode == "thread"

    def note(self, took_us: float) -> None:
        """Take one more commit into account; a single outlier counts as twice the limit at most."""
        sample = min(took_us, 2.0 * self.limit_us)
        self.estimate_us += (sample - self.estimate_us) / _WEIGHT if self.estimate_us else sample
        if self.mode == "auto":
            self.in_thread = self.estimate_us > (self.limit_us / 2 if self.in_thread else self.limit_us)

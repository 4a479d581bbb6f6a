"""By which clock finished tasks are kept: a leap of the wall clock is left out for a while, and one back is no harm."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from ifbusd.coordinator.retention import RetentionClock

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Wall:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.skew_ms = 0

    def __call__(self) -> int:
        return 10**12 + self.skew_ms + round(trio.current_time() * 1000)


async def test_it_is_the_wall_clock(autojump_clock: MockClock) -> None:
    """As long as that goes as time does, however seldom somebody looks; and where it is set by a little."""
    wall = Wall()
    clock = RetentionClock(wall, 7 * DAY_MS)
    for hours in (0, 1, 100, 10_000):
        await trio.sleep(hours * 3600)
        wall.skew_ms += 5_000
        assert clock.now_ms() == wall()


async def test_a_leap_does_not_count(autojump_clock: MockClock) -> None:
    """Until tasks that had ended before have been kept as long as they should be; then the wall clock counts again."""
    wall = Wall()
    clock = RetentionClock(wall, 7 * DAY_MS)
    before = clock.now_ms()
    wall.skew_ms = 30 * DAY_MS
    assert clock.now_ms() == before
    await trio.sleep(6 * 24 * 3600)
    assert clock.now_ms() == before + 6 * DAY_MS
    await trio.sleep(24 * 3600)
    assert clock.now_ms() == wall()


async def test_a_clock_that_is_set_back_again_was_never_ahead(autojump_clock: MockClock) -> None:
    """A leap forward and back leaves nothing behind; a leap back alone is followed."""
    wall = Wall()
    clock = RetentionClock(wall, 7 * DAY_MS)
    clock.now_ms()
    for skew_ms in (30 * DAY_MS, 31 * DAY_MS, 0, -DAY_MS):
        wall.skew_ms = skew_ms
        assert clock.now_ms() <= wall()
        assert clock.now_ms() == wall() - max(0, skew_ms)


async def test_leaps_are_bounded(autojump_clock: MockClock) -> None:
    """A clock that leaps all the time fills nothing, and its last leaps are left out."""
    wall = Wall()
    clock = RetentionClock(wall, 7 * DAY_MS)
    clock.now_ms()
    for _ in range(1_000):
        wall.skew_ms += HOUR_MS
        clock.now_ms()
    assert wall() - clock.now_ms() == 64 * HOUR_MS

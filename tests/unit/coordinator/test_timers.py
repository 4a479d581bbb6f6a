"""What is due when: the earliest first, what has another time by now not at all, and no more places than that takes."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from ifbusd.coordinator.timers import Timers


def timers_of(due: dict[str, int]) -> Timers:
    return Timers(due.get, trio.lowlevel.ParkingLot())


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from("abcdef"))))
def test_the_last_time_counts(given_times: list[tuple[int, str]]) -> None:
    """However often a name's time was set anew, it is taken out at the last one, and all in order."""
    due: dict[str, int] = {}
    timers = timers_of(due)
    for at_ms, name in given_times:
        if due.get(name) != at_ms:
            due[name] = at_ms
            timers.add(at_ms, name)
    taken = list(dict.fromkeys(timers.take_due(25)))
    assert taken == sorted((name for name in due if due[name] <= 25), key=lambda name: (due[name], name))
    assert timers.next_at_ms is None or timers.next_at_ms > 25


def test_stale_places_do_not_gather() -> None:
    """A name whose time is set anew without end, always far ahead, takes no more and more memory."""
    due: dict[str, int] = {"kept": 10**9}
    timers = timers_of(due)
    timers.add(10**9, "kept")
    for at_ms in range(10_000):
        due["again"] = 10**6 + at_ms
        timers.add(due["again"], "again")
        assert len(timers) <= 2_048
    assert list(timers.take_due(10**9)) == ["again", "kept"]


async def test_who_waits_hears_of_an_earlier_one_alone() -> None:
    """What is due later than the next one wakes nobody."""
    lot = trio.lowlevel.ParkingLot()
    due = {"late": 200, "later": 300, "early": 100}
    timers = Timers(due.get, lot)
    timers.add(200, "late")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lot.park)
        await trio.testing.wait_all_tasks_blocked()
        timers.add(300, "later")
        assert lot.statistics().tasks_waiting == 1
        timers.add(100, "early")

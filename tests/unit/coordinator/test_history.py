"""What happened, as far as it is kept: whoever comes back hears what it missed, each once and in order, or is told that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import NotKept
from ifbusd.coordinator.history import History, Listener

Told = list[tuple[str, dict[str, Any]]]


def _told(revision: int, count: int) -> Told:
    return [("attention.x", {}), *(("board", {"event": "e", "n": (revision, number)}) for number in range(count))]


class _Ear:
    """A connection's end: what it heard, and where it goes on."""

    def __init__(self, seen: int) -> None:
        self.heard: list[dict[str, Any]] = []
        self.listener = Listener(tell=self.heard.append, seen=seen)

    @property
    def numbers(self) -> list[tuple[int, int]]:
        return [message["n"] for message in self.heard if message["event"] != "missed"]


commits = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=30)


@given(commits, st.booleans(), st.lists(st.integers(0, 30), max_size=4), st.integers(5, 200))
def test_whoever_comes_back_misses_nothing(
    steps: list[tuple[int, int]], is_whole: bool, leaves: list[int], most: int
) -> None:
    """Leaving and coming back at any time, it hears all in order, once; where that is not to be had it is refused instead."""
    history, ear = History(most), _Ear(0)
    history.begin(0)
    history.listen(Listener(tell=lambda _: None, seen=history.newest))
    ear.listener.seen = history.newest
    history.listen(ear.listener)
    expected: list[tuple[int, int]] = []
    revision, is_there = 0, True
    for at, (step, count) in enumerate(steps):
        if at in leaves:
            if is_there:
                history.stop_listening(ear.listener)
                is_there = False
            else:
                kept = sum(1 for number in expected[len(ear.numbers) :])
                if kept > most:
                    with pytest.raises(NotKept):
                        history.listen(ear.listener)
                    return
                history.listen(ear.listener)
                is_there = True
        revision += step
        history.add(revision, _told(revision, count), is_whole=is_whole)
        expected += [(revision, number) for number in range(count)]
        if is_there:
            assert ear.numbers == expected
    seqs = [message["seq"] for message in ear.heard]
    assert seqs == sorted(set(seqs))


@given(commits)
def test_numbers_are_the_same_everywhere(steps: list[tuple[int, int]]) -> None:
    """Two daemons that see the same commits, in several parts or not, number them alike."""
    one, other = History(1000), History(1000)
    revision = 0
    for step, count in steps:
        revision += step
        for part in range(count):
            for history in (one, other):
                history.add(revision, [("board", {"event": "e", "n": (revision, part)})], is_whole=False)
    for history in (one, other):
        history.add(revision + 1, _told(revision + 1, 1), is_whole=False)
    assert [m["seq"] for m in one.after(0)] == [m["seq"] for m in other.after(0)]


def test_what_was_read_with_its_outcome_is_not_told_again() -> None:
    """After a start the feed may bring commits that were read: they are passed over, later ones are told."""
    history, ear = History(10), _Ear(0)
    history.begin(5)
    ear.listener.seen = history.newest
    history.listen(ear.listener)
    for revision in (3, 5, 6):
        history.add(revision, _told(revision, 1), is_whole=True)
    assert ear.numbers == [(6, 0)]


def test_a_restart_in_which_nothing_happened_is_not_noticed() -> None:
    """The last number heard before it is still a place to go on from; an older or a newer one is not."""
    before, after, ear = History(10), History(10), _Ear(0)
    before.begin(0)
    ear.listener.seen = before.newest
    before.listen(ear.listener)
    before.add(4, _told(4, 2), is_whole=True)
    before.add(7, _told(7, 2), is_whole=True)
    after.begin(7)
    after.listen(ear.listener)
    after.add(9, _told(9, 1), is_whole=True)
    assert ear.numbers == [(4, 0), (4, 1), (7, 0), (7, 1), (9, 0)]
    first_of_the_last = ear.heard[2]["seq"]
    for seq in (0, first_of_the_last, after.newest + 1):
        with pytest.raises(NotKept) as refused:
            after.after(seq)
        assert refused.value.would_change


def test_who_listens_is_told_of_a_gap() -> None:
    """The store's feed broke and all was read anew: what happened in between is known only by its outcome."""
    history, ear = History(10), _Ear(0)
    history.begin(1)
    ear.listener.seen = history.newest
    history.listen(ear.listener)
    history.add(2, _told(2, 1), is_whole=True)
    history.begin(2)
    assert [message["event"] for message in ear.heard] == ["e"]
    history.begin(9)
    history.add(9, _told(9, 1), is_whole=True)
    history.add(10, _told(10, 1), is_whole=True)
    assert [message["event"] for message in ear.heard] == ["e", "missed", "e"]

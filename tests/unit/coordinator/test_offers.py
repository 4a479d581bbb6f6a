"""Offers: no ready task is forgotten while somebody waits whom it fits, whoever takes what, and nobody is overtaken."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ifbusd.coordinator.offers import Entry, Offers, Waiter

NEEDS = [frozenset({"x"}), frozenset({"y"}), frozenset[str]()]
CAN = [frozenset({"x"}), frozenset({"y"}), frozenset({"x", "y"})]


def entry(n: int, needs: frozenset[str] = frozenset(), **more: Any) -> Entry:
    """A ready task."""
    return Entry(
        task_id=f"T-{n}",
        n=n,
        title="t",
        state="open",
        capabilities=needs,
        filler=more.pop("filler", False),
        priority=more.pop("priority", 0),
        estimate_micro_usd=0,
        blocker="",
        route=more.pop("route", ""),
        unmet=frozenset(),
        shown="ready",
    )


@settings(max_examples=100)
@given(st.data())
def test_no_ready_task_is_forgotten(data: st.DataObject) -> None:
    """Whoever waits un-woken has nothing left to take: each ready task that fits is offered to somebody else or being taken."""
    offers = Offers()
    waiting: dict[Waiter, tuple[frozenset[str], ExitStack]] = {}
    tasks: list[Entry] = []
    for _ in range(data.draw(st.integers(1, 50))):
        move = data.draw(st.sampled_from(["come", "task", "look", "leave", "free"]))
        if move == "come":
            can = data.draw(st.sampled_from(CAN))
            waiter = Waiter(swarm_id=f"s{len(waiting)}", fits=lambda task, can=can: task.capabilities <= can)
            stack = ExitStack()
            stack.enter_context(offers.waiting(waiter))
            waiting[waiter] = (can, stack)
            look(offers, waiter, can, data, waiting)
        elif move == "task":
            tasks.append(entry(len(tasks) + 1, data.draw(st.sampled_from(NEEDS)), filler=data.draw(st.booleans())))
            offers.add(tasks[-1])
        elif move == "free" and tasks:
            task = data.draw(st.sampled_from(tasks))
            if task.shown == "claimed":
                task.shown = "ready"
                offers.add(task)
        elif waiting:
            waiter = data.draw(st.sampled_from(list(waiting)))
            can, stack = waiting[waiter]
            if move == "look" and waiter.woken.is_set():
                look(offers, waiter, can, data, waiting)
            elif move == "leave":  # timed out or cancelled
                del waiting[waiter]
                stack.close()
        for task in tasks:
            if task.shown == "ready" and task.offered_to is None:
                assert not [waiter for waiter in waiting if not waiter.woken.is_set() and waiter.fits(task)]
            if task.offered_to is not None:
                assert task.offered_to in waiting
                assert task.offered_to.offered is task
    for _, stack in waiting.values():
        stack.close()
    assert not len(offers)


def look(offers: Offers, waiter: Waiter, can: frozenset[str], data: st.DataObject, waiting: dict[Waiter, Any]) -> None:
    """What the service does with a waiter: take the best or find nothing, and look again if something came up meanwhile."""
    while True:
        found = offers.candidates(waiter, lambda kind: kind[0] <= can, most=3)
        assert found == sorted(found, key=lambda task: task.order)
        if found:
            found[0].shown = "claimed"
            _, stack = waiting.pop(waiter)
            stack.close()
            return
        if not waiter.woken.is_set():
            return
        offers.rearm(waiter)


def test_the_longest_waiting_is_woken_first() -> None:
    """Offers go in order of arrival, and a look in vain does not cost the place in the queue."""
    offers = Offers()
    first, second = (Waiter(swarm_id=name, fits=lambda task: True) for name in "ab")
    with offers.waiting(first), offers.waiting(second):
        one, two = entry(1), entry(2)
        offers.add(one)
        assert (first.offered, second.woken.is_set()) == (one, False)
        one.shown = "claimed"  # by name, by somebody who does not wait
        offers.rearm(first)
        offers.add(two)
        assert (first.offered, second.woken.is_set()) == (two, False)


def test_nobody_overtakes_who_was_woken() -> None:
    """A task that was offered is no candidate for others until it is passed on."""
    offers = Offers()
    patient, hasty = (Waiter(swarm_id=name, fits=lambda task: True) for name in "ab")
    task = entry(1)
    with offers.waiting(patient):
        offers.add(task)
        assert offers.candidates(hasty, lambda kind: True, most=1) == []
        assert offers.candidates(patient, lambda kind: True, most=1) == [task]
    assert offers.candidates(hasty, lambda kind: True, most=1) == [task]


def test_a_pushed_task_wakes_its_swarm_first() -> None:
    """Of those who wait, one of the swarm that the task was pushed to comes first."""
    offers = Offers()
    early, addressee = (Waiter(swarm_id=name, fits=lambda task: True) for name in "ab")
    with offers.waiting(early), offers.waiting(addressee):
        offers.add(entry(1, route="b"))
        assert (early.woken.is_set(), addressee.woken.is_set()) == (False, True)


def test_fillers_come_last_and_priority_first() -> None:
    """The order is: no fillers, high priority, age."""
    offers = Offers()
    tasks = [entry(1, filler=True, priority=100), entry(2, priority=-1), entry(3, priority=5), entry(4, priority=5)]
    for task in tasks:
        offers.add(task)
    waiter = Waiter(swarm_id="a", fits=lambda task: True)
    found = offers.candidates(waiter, lambda kind: True, most=10)
    assert [task.n for task in found] == [3, 4, 2, 1]


def test_a_task_stands_in_the_heap_once_however_often_it_is_freed() -> None:
    """Claiming and releasing one task a thousand times leaves one entry."""
    offers = Offers()
    task = entry(1)
    for _ in range(1000):
        task.shown = "ready"
        offers.add(task)
        task.shown = "claimed"
    assert sum(map(len, offers._ready.values())) == 1

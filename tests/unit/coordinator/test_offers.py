"""Offers: no ready task is forgotten while somebody waits whom it fits, whoever takes what, and nobody is overtaken."""

from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ifbusd.coordinator.offers import Entry, Held, Kind, Offers, Waiter
from ifbusd.coordinator.rules import rank_of

AGEING_MS = 60_000
NEEDS = [frozenset({"x"}), frozenset({"y"}), frozenset[str]()]
CAN = [frozenset({"x"}), frozenset({"y"}), frozenset({"x", "y"})]


def entry(n: int, needs: frozenset[str] = frozenset(), **more: Any) -> Entry:
    """A ready task; the n-th one became ready n seconds after the beginning."""
    priority = more.pop("priority", 0)
    return Entry(
        task_id=f"T-{n}",
        n=n,
        title="t",
        state="open",
        capabilities=needs,
        filler=more.pop("filler", False),
        priority=priority,
        since_ms=n * 1_000,
        rank=rank_of(priority, n * 1_000, AGEING_MS),
        estimate_micro_usd=0,
        blocker="",
        route=more.pop("route", ""),
        unmet=frozenset(),
        shown="ready",
        **more,
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


def anybody(swarm_id: str) -> Waiter:
    """Who takes everything."""
    return Waiter(swarm_id=swarm_id, fits=lambda task: True)


def take_best(offers: Offers, swarm_id: str = "a") -> Entry | None:
    """What a swarm that does not wait claims: the best candidate, which is then held."""
    found = offers.candidates(anybody(swarm_id), lambda kind: True, most=1)
    if not found:
        return None
    hold(offers, found[0])
    return found[0]


def hold(offers: Offers, task: Entry) -> None:
    """Claim a task, as the board shows it."""
    offers.take(task)
    task.held, task.shown = Held(swarm_id="a", token=1, lease=1, claim=None), "claimed"  # type: ignore[arg-type]
    offers.hold(task)


def end(offers: Offers, task: Entry) -> None:
    """End its claim and the task."""
    task.held, task.shown = None, "completed"
    offers.free(task)


@given(
    st.lists(st.tuples(st.integers(-100, 100), st.integers(0, 10**9)), min_size=2, max_size=20, unique=True),
    st.integers(0, 10**9),
    st.integers(1, 10**7),
)
def test_the_constant_rank_gives_the_order_of_the_moment(
    tasks: list[tuple[int, int]], waited: int, ageing_ms: int
) -> None:
    """Sorted by the constant figure, tasks are in the order of priority + waiting time / ageing_ms, whenever one looks."""
    now = 10**9 + waited
    exact = [Fraction(priority) + Fraction(now - since, ageing_ms) for priority, since in tasks]
    ranks = [rank_of(priority, since, ageing_ms) for priority, since in tasks]
    for one, first in enumerate(tasks):
        for other, second in enumerate(tasks):
            assert (ranks[one] < ranks[other]) == (exact[one] > exact[other]), (first, second)


def test_nothing_starves() -> None:
    """While a task of the highest priority comes for each that is taken, one of the lowest is taken after 200 levels of ageing."""
    offers = Offers()
    lowest = entry(0, priority=-100)
    offers.add(lowest)
    every_s = 20
    for n in range(every_s, 400 * AGEING_MS // 1000, every_s):
        offers.add(entry(n, priority=100))
        taken = take_best(offers)
        assert taken is not None
        end(offers, taken)
        if taken is lowest:
            assert n * 1000 in range(200 * AGEING_MS, 200 * AGEING_MS + 2 * every_s * 1000)
            return
    raise AssertionError("it starved")


def test_many_connections_do_not_starve_other_swarms() -> None:
    """100 waiters of one swarm and one of each of five others: tasks go round, and the 100 get one in six."""
    offers = Offers()
    with ExitStack() as stack:
        waiters = [anybody("greedy") for _ in range(100)]
        waiters += [anybody(f"s{n}") for n in range(5)]
        places = {}
        for waiter in waiters:
            places[waiter] = stack.enter_context(ExitStack())
            places[waiter].enter_context(offers.waiting(waiter))
        served: list[str] = []
        for n in range(60):
            task = entry(n)
            offers.add(task)
            winner = task.offered_to
            assert winner is not None
            hold(offers, task)
            served.append(winner.swarm_id)
            offers.served(winner.swarm_id)
            places[winner].close()
            again = anybody(winner.swarm_id)
            places[again] = stack.enter_context(ExitStack())
            places[again].enter_context(offers.waiting(again))
    assert served[:6] == ["greedy", "s0", "s1", "s2", "s3", "s4"]
    assert {name: served.count(name) for name in set(served)} == dict.fromkeys({"greedy", *served}, 10)


def test_what_comes_together_goes_round_before_anybody_looks() -> None:
    """Of three tasks that become ready at once, a swarm on many connections is offered one while others wait with none."""
    offers = Offers()
    with ExitStack() as stack:
        for swarm_id in ("greedy", "greedy", "greedy", "b", "c"):
            stack.enter_context(offers.waiting(anybody(swarm_id)))
        tasks = [entry(n) for n in range(4)]
        for task in tasks:
            offers.add(task)
        offered = [task.offered_to.swarm_id for task in tasks if task.offered_to is not None]
        assert offered == ["greedy", "b", "c", "greedy"]


def test_a_filler_gives_way_to_what_is_better() -> None:
    """Who was offered a filler and has not looked yet is offered the better task instead; the filler goes to the next one."""
    offers = Offers()
    first, second = anybody("a"), anybody("b")
    with offers.waiting(first), offers.waiting(second):
        filler, better = entry(1, filler=True), entry(2)
        offers.add(filler)
        assert filler.offered_to is first
        offers.add(better)
        assert (better.offered_to, filler.offered_to) == (first, second)
        assert (first.offered, second.offered) == (better, filler)


def test_groups_are_served_by_weight() -> None:
    """Three groups of weights 5, 2 and 1 with enough to do get claims in exactly that proportion; so do tasks without a group, as 1."""
    offers = Offers()
    offers.set_groups({"a": 5, "b": 2, "c": 1}, frozenset())
    for n, group in enumerate(["a", "b", "c", ""] * 100):
        offers.add(entry(n, group=group))
    served = [task.group for _ in range(90) if (task := take_best(offers)) is not None]
    assert [served.count(group) for group in ("a", "b", "c", "")] == [50, 20, 10, 10]
    for start in range(0, 90, 9):  # never further off than a claim or two
        assert abs(served[: start + 9].count("a") - 5 * (start + 9) / 9) <= 2


def test_a_group_that_had_nothing_saves_nothing_up() -> None:
    """A group that comes late shares from then on; heavy tasks count for as much as they weigh."""
    offers = Offers()
    offers.set_groups({"early": 1, "late": 1}, frozenset())
    for n in range(100):
        offers.add(entry(n, group="early"))
    for _ in range(50):
        take_best(offers)
    for n in range(100, 200):
        offers.add(entry(n, group="late", weight=3))
    served = [task.group for _ in range(40) if (task := take_best(offers)) is not None]
    assert served.count("early") == 30


def test_a_paused_group_is_no_candidate_and_is_offered_when_it_goes_on() -> None:
    """Nobody is woken for it or finds it; the resume wakes as many as wait."""
    offers = Offers()
    offers.set_groups({}, frozenset({"night"}))
    tasks = [entry(n, group="night") for n in range(3)]
    first, second = anybody("a"), anybody("b")
    with offers.waiting(first), offers.waiting(second):
        for task in tasks:
            offers.add(task)
        assert not first.woken.is_set()
        assert take_best(offers) is None
        offers.set_groups({}, frozenset())
        assert [task.offered_to for task in tasks] == [first, second, None]


def test_a_full_key_is_no_candidate_and_each_place_wakes_one() -> None:
    """Two of a key at a time: the third is offered when one of them ends, and not before."""
    offers = Offers()
    tasks = [entry(n, key="repo:a", limit=2) for n in range(4)]
    waiter = anybody("a")
    for task in tasks[:2]:
        hold(offers, task)
    with offers.waiting(waiter):
        for task in tasks[2:]:
            offers.add(task)
        assert take_best(offers) is None
        assert not waiter.woken.is_set()
        end(offers, tasks[0])
        assert (tasks[2].offered_to, tasks[3].offered_to) == (waiter, None)


def test_who_waits_for_a_task_by_name_hears_of_a_place() -> None:
    """Also where another task of the key would be offered first."""
    offers = Offers()
    held, best, named = (entry(n, key="k", limit=1) for n in range(3))
    hold(offers, held)
    waiter = Waiter(swarm_id="a", task_id=named.task_id, kind=named.kind, fits=lambda task: task is named)
    with offers.waiting(waiter):
        offers.add(best)
        offers.add(named)
        assert not waiter.woken.is_set()
        end(offers, held)
        assert waiter.woken.is_set()


def test_a_claim_that_comes_to_nothing_gives_back_its_turn() -> None:
    """What was taken and given up counts for nothing; others of its key may try meanwhile, the store decides."""
    offers = Offers()
    offers.set_groups({"a": 1}, frozenset())
    task, other = entry(1, key="k", limit=1, group="a"), entry(2, key="k", limit=1, group="a")
    offers.add(task)
    offers.add(other)
    offers.take(task)
    assert offers.candidates(anybody("a"), lambda kind: True, most=2) == [other]
    offers.give_up(task, None)
    assert offers.candidates(anybody("a"), lambda kind: True, most=2) == [task, other]
    assert offers._tags == {"a": 0}


def test_a_kind_knows_its_gates() -> None:
    """Tasks of other groups, keys or limits are of other kinds: a heap is open or closed as a whole."""
    kinds = {entry(1).kind, entry(1, group="g").kind, entry(1, key="k", limit=1).kind, entry(1, key="k", limit=2).kind}
    assert len(kinds) == 4
    assert entry(1).kind == Kind(frozenset(), 0)

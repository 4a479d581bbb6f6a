"""Ready tasks and who waits for one: which is the best for a swarm, and whom to wake when one becomes ready.

**Which task.** No filler while anything better is ready; then the group whose turn it is; within it by priority with ageing. A task
gains a level of priority for every `ageing_ms` that it has been ready, so ``priority + (now - ready_since) / ageing_ms`` decides. The
difference of two such figures does not depend on `now`, so the constant ``ready_since - priority * ageing_ms``, smallest first, gives
the same order and a heap stays valid (ageing: Silberschatz, Operating System Concepts, 5.3.4; the constant key is that of the
earliest-deadline heap: each level of priority is a deadline that is `ageing_ms` earlier).

**Which group.** Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996): each group has a tag of virtual time, the smallest is
served, and a claim moves it on by ``weight of the task / weight of the group``; a group that had nothing ready begins at the virtual
time of now, so it saves nothing up. Groups to which no weight was given share that of the tasks without a group.

**Which swarm.** Round robin by swarm, the one that was served or came longest ago first, then its waiters in order of arrival; a swarm
that was offered something and has not looked yet comes after those that were not. However many connections a swarm waits on, it gets one
task while another one waits. No wake-up is lost: whoever was woken and did not take what it was offered passes it on, whether it took
another task, was refused, timed out or was cancelled.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import attrs
import trio

from ifbusd.coordinator.model import ClaimRecord

_Order = tuple[bool, int, int]  # fillers last, then by priority with ageing, then age
# A claim of a task of weight 1 moves a group of weight 1 on by this; whole numbers, so that nothing is lost by rounding.
_STRIDE: Final = 1 << 20
DEFAULT_WEIGHT: Final = 1


class Kind(NamedTuple):
    """What decides whether a swarm may have a task: tasks of one kind are fit for the same swarms at the same time."""

    capabilities: frozenset[str]
    estimate_micro_usd: int
    group: str = ""
    key: str = ""
    limit: int = 0
    weight: int = 1


@attrs.define(eq=False, kw_only=True)
class Held:
    """A claim on the board."""

    swarm_id: str
    token: int
    lease: int
    claim: ClaimRecord


@attrs.define(eq=False, kw_only=True)
class Entry:
    """A task on the board: what is needed to offer and to list it.

    Attributes:
        created_revision: At which it was created.
        resources: It needs these for itself while it is claimed.
        busy: Those of them that somebody holds.
        since_ms: When it became ready, as far as is known; of a final one, when it ended.
        rank: Its constant figure of priority with ageing, smallest first.
        key, limit: Its concurrency key and how many of that key may be held at a time; ``""`` for none.
        weight: How many slots it takes.
        queued_as: The place in a heap of ready tasks that counts; None where it stands in none.
        is_taken: Somebody's claim is under way, or is committed and not shown yet: others need not try.
        is_missed: It became ready while `is_taken`, so that nobody was told, not even who tries.
        is_counted: It moved its group on, by a claim that is under way or shown.
        offered_to: Who was woken for it and has not looked yet; nobody overtakes them.
        on_dependency_failure: As in `model.TaskOptions`.
        start_at_ms, deadline_at_ms: When it may be claimed, when it expires; 0: at once, never.
        due_at_ms: When to look at it next, or, once it is final, when to remove it; 0: never.
        completed_by: The swarm that completed it.
        is_ending: Its last claim has been lost, which is not on record yet.
    """

    task_id: str
    n: int
    title: str
    state: str
    capabilities: frozenset[str]
    filler: bool
    priority: int
    estimate_micro_usd: int
    blocker: str
    route: str
    unmet: frozenset[str]
    created_revision: int = 0
    resources: tuple[str, ...] = ()
    busy: frozenset[str] = frozenset()
    group: str = ""
    key: str = ""
    limit: int = 0
    weight: int = 1
    since_ms: int = 0
    rank: int = 0
    is_paused: bool = False
    held: Held | None = None
    shown: str = ""
    queued_as: _Order | None = None
    is_taken: bool = False
    is_missed: bool = False
    is_counted: bool = False
    offered_to: Waiter | None = None
    on_dependency_failure: str = "wait"
    start_at_ms: int = 0
    deadline_at_ms: int = 0
    due_at_ms: int = 0
    is_ending: bool = False
    completed_by: str = ""

    def is_free_for(self, waiter: Waiter) -> bool:
        """Whether it is worth a try."""
        return self.shown == "ready" and not self.is_taken and self.offered_to in (None, waiter)

    @property
    def order(self) -> _Order:
        """Sorts the best first; changes only while it is not ready."""
        return (self.filler, self.rank, self.n)

    @property
    def kind(self) -> Kind:
        """Never changes."""
        return Kind(self.capabilities, self.estimate_micro_usd, self.group, self.key, self.limit, self.weight)


@attrs.define(kw_only=True, eq=False)
class Waiter:
    """Somebody who waits for a task to become ready; keeps its place in the queue until it has one.

    Attributes:
        fits: Whether a task would do.
        task_id: The only one that would do, so that the end of that task is told too; ``""`` for any.
        kind: Of that one, where it is known.
        woken: There is a reason to look: a task was offered, the swarm's standing changed, or the task has ended.
        offered: The task that it was woken for; nobody else hears of it until this one has looked.
        has_changed: The swarm's account or profile has changed, or slots of it are free; who looks sets it back.
        is_full: The swarm has too few slots for the one that it waits for, until that changes.
    """

    swarm_id: str
    fits: Callable[[Entry], bool]
    task_id: str = ""
    kind: Kind | None = None
    woken: trio.Event = attrs.field(factory=trio.Event)
    offered: Entry | None = None
    has_changed: bool = False
    is_full: bool = False

    def may_be_offered(self, entry: Entry) -> bool:
        """Whether it has nothing to look at yet, or only a filler, which gives way to anything better."""
        if not self.woken.is_set():
            return True
        now = self.offered
        return now is not None and now.filler and not entry.filler and not now.is_taken


@attrs.define(eq=False)
class _Queue:
    """The waiters of one swarm in order of arrival, and how many of them have not looked at the task, or filler, that they were offered."""

    waiters: dict[Waiter, None] = attrs.field(factory=dict)
    tasks: int = 0
    fillers: int = 0

    def count(self, entry: Entry, more: int) -> None:
        """One more or fewer of them has this one to look at."""
        if entry.filler:
            self.fillers += more
        else:
            self.tasks += more

    def has_had(self, entry: Entry) -> bool:
        """Whether something at least as good as this one has been offered to the swarm and not been looked at."""
        return self.tasks > 0 or (entry.filler and self.fillers > 0)


class Offers:
    """The mutable state: heaps of ready tasks, queues of waiters, the groups' tags, and what is held of each concurrency key."""

    def __init__(self) -> None:
        # One heap per kind. What is no longer ready, or stands elsewhere by now, is dropped when it comes to the top.
        self._ready: dict[Kind, list[tuple[_Order, str, Entry]]] = {}
        self._queues: dict[str, _Queue] = {}  # in order of their turns
        self._using: dict[str, set[str]] = {}  # tasks whose claim is shown, by concurrency key
        self._paused: frozenset[str] = frozenset()  # groups
        self._weights: dict[str, int] = {}  # of groups
        self._tags: dict[str, int] = {}
        self._now = 0  # the virtual time: the tag at which a group was served last

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(queue.waiters) for queue in self._queues.values())

    def clear(self) -> None:
        """Forget the ready tasks and who holds what; whoever waits goes on waiting, and the groups keep their turns."""
        self._ready.clear()
        self._using.clear()

    def add(self, entry: Entry) -> None:
        """A task has become ready: queue it, and wake somebody for it."""
        self._queue(entry)
        entry.is_missed = entry.is_taken
        self.offer(entry)

    def candidates(self, waiter: Waiter, fits: Callable[[Kind], bool], *, most: int) -> list[Entry]:
        """Ready tasks whose kind fits and that are free for this one, best first; looks at kinds, not at all tasks."""
        heads: dict[str, list[tuple[_Order, str, Kind]]] = {}
        found: list[Entry] = []
        passed: list[Entry] = []
        for kind in [kind for kind in self._ready if self.is_open(kind) and fits(kind)]:
            self._push_head(heads.setdefault(self._share_of(kind.group), []), kind)
        turns = [(heap[0][0][0], self._start_of(share), share) for share, heap in heads.items() if heap]
        heapq.heapify(turns)
        while turns and len(found) < most:
            _, tag, share = heapq.heappop(turns)
            heap = heads[share]
            *_, kind = heapq.heappop(heap)
            entry = self._pop(kind)
            if entry.is_free_for(waiter):
                found.append(entry)
                tag += self._stride(share, entry)
            else:
                passed.append(entry)
            self._push_head(heap, kind)
            if heap:
                heapq.heappush(turns, (heap[0][0][0], tag, share))
        for entry in (*found, *passed):
            self._queue(entry)
        return found

    def _queue(self, entry: Entry) -> None:
        if entry.queued_as != entry.order:
            entry.queued_as = entry.order
            heapq.heappush(self._ready.setdefault(entry.kind, []), (entry.order, entry.task_id, entry))

    def _push_head(self, heads: list[tuple[_Order, str, Kind]], kind: Kind) -> None:
        while (heap := self._ready.get(kind)) is not None:
            order, task_id, entry = heap[0]
            if entry.shown == "ready" and entry.queued_as == order:
                heapq.heappush(heads, (order, task_id, kind))
                return
            self._pop(kind)

    def _pop(self, kind: Kind) -> Entry:
        heap = self._ready[kind]
        order, _, entry = heapq.heappop(heap)
        if not heap:
            del self._ready[kind]
        if entry.queued_as == order:
            entry.queued_as = None
        return entry

    # --- groups --------------------------------------------------------------------------------------

    def set_groups(self, weights: dict[str, int], paused: frozenset[str]) -> None:
        """Take over the groups' weights and which of them are paused; tasks of a group that goes on are offered."""
        resumed = self._paused - paused
        self._weights, self._paused = weights, paused
        self._tags = {share: tag for share, tag in self._tags.items() if share in weights or not share}
        if resumed:
            self.offer_best(lambda kind: kind.group in resumed)

    def _share_of(self, group: str) -> str:
        return group if group in self._weights else ""

    def _start_of(self, share: str) -> int:
        return max(self._tags.get(share, 0), self._now)

    def _stride(self, share: str, entry: Entry) -> int:
        return entry.weight * _STRIDE // self._weights.get(share, DEFAULT_WEIGHT)

    # --- claims under way and shown ------------------------------------------------------------------

    def is_open(self, kind: Kind) -> bool:
        """Whether nothing keeps all tasks of this kind back: its group's pause, or its concurrency key."""
        return kind.group not in self._paused and (not kind.key or len(self._using.get(kind.key, ())) < kind.limit)

    def take(self, entry: Entry) -> None:
        """A claim of this task is under way: others need not try until it is shown or given up."""
        entry.is_taken, entry.is_missed = True, False
        self._count(entry)

    def hold(self, entry: Entry) -> None:
        """The board shows a claim of this task."""
        entry.is_taken = False
        self._count(entry)
        if entry.key:
            self._using.setdefault(entry.key, set()).add(entry.task_id)

    def free(self, entry: Entry) -> None:
        """The claim of this task is gone: what it kept back can be claimed."""
        entry.is_taken = entry.is_counted = False
        using = self._using.get(entry.key)
        if using is not None and entry.task_id in using:
            using.discard(entry.task_id)
            if not using:
                del self._using[entry.key]
            self.offer_best(lambda kind: kind.key == entry.key, most=1)

    def give_up(self, entry: Entry, waiter: Waiter | None) -> None:
        """A claim of this task came to nothing: others may try."""
        entry.is_taken = False
        if entry.is_counted and entry.held is None:
            entry.is_counted = False
            share = self._share_of(entry.group)
            self._tags[share] = max(0, self._tags.get(share, 0) - self._stride(share, entry))
        self.offer(entry, besides=None if entry.is_missed else waiter)

    def _count(self, entry: Entry) -> None:
        if entry.is_counted:
            return
        entry.is_counted = True
        if self._weights:
            share = self._share_of(entry.group)
            self._now = self._start_of(share)
            self._tags[share] = self._now + self._stride(share, entry)

    # --- waiting -------------------------------------------------------------------------------------

    @contextmanager
    def waiting(self, waiter: Waiter) -> Iterator[None]:
        """Be in the queue for ready tasks that fit; whatever was offered and not taken goes to the next one at the end."""
        queue = self._queues.get(waiter.swarm_id)
        if queue is None:
            queue = self._queues[waiter.swarm_id] = _Queue()
        queue.waiters[waiter] = None
        try:
            yield
        finally:
            del queue.waiters[waiter]
            if not queue.waiters:
                del self._queues[waiter.swarm_id]
            self._pass_on(waiter)

    @property
    def has_waiters(self) -> bool:
        """Whether anybody waits."""
        return bool(self._queues)

    def served(self, swarm_id: str) -> None:
        """A swarm that waits has got a task: it is the others' turn."""
        queue = self._queues.pop(swarm_id, None)
        if queue is not None:
            self._queues[swarm_id] = queue

    def rearm(self, waiter: Waiter) -> None:
        """After a look in vain: pass on what was offered, keep the place in the queue, be ready to be woken again.

        Look once more before waiting: what became ready since that look began has not woken this one.
        """
        self._pass_on(waiter)
        waiter.woken = trio.Event()

    def _pass_on(self, waiter: Waiter) -> None:
        entry = self._take_back(waiter)
        if entry is not None:
            self.offer(entry, besides=waiter)

    def _take_back(self, waiter: Waiter) -> Entry | None:
        entry, waiter.offered = waiter.offered, None
        if entry is not None:
            entry.offered_to = None
            if (queue := self._queues.get(waiter.swarm_id)) is not None:
                queue.count(entry, -1)
        return entry

    def offer(self, entry: Entry, *, besides: Waiter | None = None) -> bool:
        """Wake the one whose turn it is that a ready task fits, one of the swarm that it was pushed to first; whether there was one."""
        if entry.shown != "ready" or entry.is_taken or entry.offered_to is not None or not self.is_open(entry.kind):
            return False  # whoever has it now passes it on; what keeps it back offers it when it lets go
        found = self._next_for(entry, besides)
        if found is None:
            return False
        given_way = self._take_back(found)
        found.offered = entry
        entry.offered_to = found
        self._queues[found.swarm_id].count(entry, 1)
        found.woken.set()
        if given_way is not None:
            self.offer(given_way, besides=found)
        return True

    def _next_for(self, entry: Entry, besides: Waiter | None) -> Waiter | None:
        found: Waiter | None = None
        found_rank = (True, True)
        for swarm_id, queue in self._queues.items():
            rank = (bool(entry.route) and swarm_id != entry.route, queue.has_had(entry))
            if found is not None and rank >= found_rank:
                continue
            for waiter in queue.waiters:
                if waiter is not besides and waiter.may_be_offered(entry) and waiter.fits(entry):
                    found, found_rank = waiter, rank
                    break
            if found is not None and found_rank == (False, False):
                break
        return found

    def offer_best(self, fits: Callable[[Kind], bool], *, most: int = sys.maxsize) -> None:
        """Offer ready tasks of these kinds, best first, as long as somebody is there to be woken for one."""
        heads: list[tuple[_Order, str, Kind]] = []
        seen: list[Entry] = []
        for kind in [kind for kind in self._ready if fits(kind) and self.is_open(kind)]:
            self._push_head(heads, kind)
        while heads and most:
            *_, kind = heapq.heappop(heads)
            entry = self._pop(kind)
            seen.append(entry)
            is_new = self.offer(entry)
            most -= is_new
            if is_new or entry.offered_to is not None or entry.is_taken:
                self._push_head(heads, kind)  # else nobody waits for this kind
        for entry in seen:
            self._queue(entry)
        # Who waits for one by name may want another than the best.
        for queue in self._queues.values():
            for waiter in queue.waiters:
                if waiter.task_id and (waiter.kind is None or fits(waiter.kind)):
                    waiter.woken.set()

    def wake_swarms(self, swarm_ids: Container[str]) -> None:
        """What these swarms may have has changed: let those of them that wait look again."""
        for swarm_id, queue in self._queues.items():
            if swarm_id in swarm_ids:
                for waiter in queue.waiters:
                    waiter.has_changed = True
                    waiter.woken.set()

    def wake_all(self) -> None:
        """What anybody may have has changed."""
        self.wake_swarms(self._queues)

    def wake_ended(self, task_id: str) -> None:
        """A task is final: whoever waits for this very one waits in vain."""
        for queue in self._queues.values():
            for waiter in queue.waiters:
                if waiter.task_id == task_id:
                    waiter.woken.set()

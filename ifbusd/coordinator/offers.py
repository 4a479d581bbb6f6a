"""Ready tasks and who waits for one: which is the best for a swarm, and whom to wake when one becomes ready.

No wake-up is lost: whoever was woken and did not take what it was offered passes it on, whether it took another task, was
refused, timed out or was cancelled. Waiting is first come, first served.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

import attrs
import trio

from ifbusd.coordinator.model import ClaimRecord

_Order = tuple[bool, int, int]  # fillers last, then priority from high to low, then age
# What decides whether a swarm may have a task: the capabilities that it needs, and what it will probably cost.
Kind = tuple[frozenset[str], int]


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
        resources: It needs these for itself while it is claimed.
        busy: Those of them that somebody holds.
        is_queued: Stands in a heap of ready tasks.
        is_taken: Somebody's claim is under way, or is committed and not shown yet: others need not try.
        offered_to: Who was woken for it and has not looked yet; nobody overtakes them.
        on_dependency_failure: As in `model.TaskOptions`.
        start_at_ms, deadline_at_ms: When it may be claimed, when it expires; 0: at once, never.
        due_at_ms: When to look at it next, or, once it is final, when to remove it; 0: never.
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
    resources: tuple[str, ...] = ()
    busy: frozenset[str] = frozenset()
    held: Held | None = None
    shown: str = ""
    is_queued: bool = False
    is_taken: bool = False
    offered_to: Waiter | None = None
    on_dependency_failure: str = "wait"
    start_at_ms: int = 0
    deadline_at_ms: int = 0
    due_at_ms: int = 0
    is_ending: bool = False

    def is_free_for(self, waiter: Waiter) -> bool:
        """Whether it is worth a try."""
        return self.shown == "ready" and not self.is_taken and self.offered_to in (None, waiter)

    @property
    def order(self) -> _Order:
        """Sorts the best first; never changes."""
        return (self.filler, -self.priority, self.n)

    @property
    def kind(self) -> Kind:
        """Tasks of one kind are fit for the same swarms; never changes."""
        return (self.capabilities, self.estimate_micro_usd)


@attrs.define(kw_only=True, eq=False)
class Waiter:
    """Somebody who waits for a task to become ready; keeps its place in the queue until it has one.

    Attributes:
        fits: Whether a task would do.
        task_id: The only one that would do, so that the end of that task is told too; ``""`` for any.
        woken: There is a reason to look: a task was offered, the swarm's standing changed, or the task has ended.
        offered: The task that it was woken for; nobody else hears of it until this one has looked.
        has_changed: The swarm's account or profile has changed; who looks sets it back.
    """

    swarm_id: str
    fits: Callable[[Entry], bool]
    task_id: str = ""
    woken: trio.Event = attrs.field(factory=trio.Event)
    offered: Entry | None = None
    has_changed: bool = False


class Offers:
    """The mutable state is the heaps of ready tasks and the queue of waiters, nothing else."""

    def __init__(self) -> None:
        # One heap per kind. What is no longer ready is dropped when it comes to the top.
        self._ready: dict[Kind, list[tuple[_Order, str, Entry]]] = {}
        self._waiters: dict[Waiter, None] = {}  # in order of arrival

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def clear(self) -> None:
        """Forget the ready tasks; whoever waits goes on waiting."""
        self._ready.clear()

    def add(self, entry: Entry) -> None:
        """A task has become ready: queue it, and wake somebody for it."""
        self._queue(entry)
        self.offer(entry)

    def candidates(self, waiter: Waiter, fits: Callable[[Kind], bool], *, most: int) -> list[Entry]:
        """Ready tasks whose kind fits and that are free for this one, best first; looks at kinds, not at all tasks."""
        heads: list[tuple[_Order, str, Kind]] = []
        found: list[Entry] = []
        passed: list[Entry] = []
        for kind in [kind for kind in self._ready if fits(kind)]:
            self._push_head(heads, kind)
        while heads and len(found) < most:
            *_, kind = heapq.heappop(heads)
            entry = self._pop(kind)
            (found if entry.is_free_for(waiter) else passed).append(entry)
            self._push_head(heads, kind)
        for entry in (*found, *passed):
            self._queue(entry)
        return found

    def _queue(self, entry: Entry) -> None:
        # Its order never changes, so a place that it has from an earlier time will do.
        if not entry.is_queued:
            entry.is_queued = True
            heapq.heappush(self._ready.setdefault(entry.kind, []), (entry.order, entry.task_id, entry))

    def _push_head(self, heads: list[tuple[_Order, str, Kind]], kind: Kind) -> None:
        while (heap := self._ready.get(kind)) is not None:
            order, task_id, entry = heap[0]
            if entry.shown == "ready":
                heapq.heappush(heads, (order, task_id, kind))
                return
            self._pop(kind)

    def _pop(self, kind: Kind) -> Entry:
        heap = self._ready[kind]
        *_, entry = heapq.heappop(heap)
        if not heap:
            del self._ready[kind]
        entry.is_queued = False
        return entry

    # --- waiting -------------------------------------------------------------------------------------

    @contextmanager
    def waiting(self, waiter: Waiter) -> Iterator[None]:
        """Be in the queue for ready tasks that fit; whatever was offered and not taken goes to the next one at the end."""
        self._waiters[waiter] = None
        try:
            yield
        finally:
            del self._waiters[waiter]
            self._pass_on(waiter)

    def rearm(self, waiter: Waiter) -> None:
        """After a look in vain: pass on what was offered, keep the place in the queue, be ready to be woken again.

        Look once more before waiting: what became ready since that look began has not woken this one.
        """
        self._pass_on(waiter)
        waiter.woken = trio.Event()

    def _pass_on(self, waiter: Waiter) -> None:
        entry, waiter.offered = waiter.offered, None
        if entry is not None:
            entry.offered_to = None
            self.offer(entry, besides=waiter)

    def give_up(self, entry: Entry, waiter: Waiter | None) -> None:
        """A claim of this task came to nothing: others may try."""
        entry.is_taken = False
        self.offer(entry, besides=waiter)

    def offer(self, entry: Entry, *, besides: Waiter | None = None) -> None:
        """Wake the longest waiting one that a ready task fits, one of the swarm that it was pushed to first."""
        if entry.shown != "ready" or entry.is_taken or entry.offered_to is not None:
            return  # whoever has it now passes it on
        found = None
        for waiter in self._waiters:
            if waiter.woken.is_set() or waiter is besides or not waiter.fits(entry):
                continue
            if not entry.route or waiter.swarm_id == entry.route:
                found = waiter
                break
            found = found or waiter
        if found is not None:
            found.offered = entry
            entry.offered_to = found
            found.woken.set()

    def wake_swarms(self, swarm_ids: Container[str]) -> None:
        """What these swarms may have has changed: let those of them that wait look again."""
        for waiter in self._waiters:
            if waiter.swarm_id in swarm_ids:
                waiter.has_changed = True
                waiter.woken.set()

    def wake_ended(self, task_id: str) -> None:
        """A task is final: whoever waits for this very one waits in vain."""
        for waiter in self._waiters:
            if waiter.task_id == task_id:
                waiter.woken.set()

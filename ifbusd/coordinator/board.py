"""The board in memory: what is ready and who waits for it. A view, fed by the store's watch; the store decides.

An answer from the board may be behind the store, never wrong about what it shows: whoever needs "at least as new as what I just
wrote" calls `wait_for(revision)` first. Every claim is decided in a transaction that reads the store, so a stale board costs a
try, never a double owner.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

import attrs
import trio

from ifbusd.coordinator.model import (
    BLOCKERS,
    CLAIMS,
    COMPLETED,
    INBOX,
    OPEN,
    SESSIONS,
    TASKS,
    BlockerRecord,
    ClaimRecord,
    MessageRecord,
    SessionRecord,
    TaskRecord,
)
from ifbusd.store.base import Compacted, KeyValue, Store, WatchEvent

_PAGE: Final = 1_000
_ORDER = tuple[bool, int, int]  # fillers last, then priority from high to low, then age


@attrs.define(eq=False, kw_only=True)
class Held:
    """A claim on the board."""

    swarm_id: str
    token: int
    lease: int
    claim: ClaimRecord


@attrs.define(eq=False, kw_only=True)
class Entry:
    """A task on the board: what is needed to offer and to list it."""

    task_id: str
    n: int
    title: str
    state: str
    capabilities: frozenset[str]
    filler: bool
    priority: int
    blocker: str
    route: str
    unmet: set[str]
    mod_revision: int
    held: Held | None = None
    shown: str = ""

    @property
    def order(self) -> _ORDER:
        return (self.filler, -self.priority, self.n)


@attrs.frozen(kw_only=True, eq=False)
class Waiter:
    """Somebody who waits for a ready task; `fits` says whether a task would do."""

    fits: Callable[[Entry], bool]
    offered: trio.Event = attrs.field(factory=trio.Event)


@attrs.frozen(kw_only=True)
class LostClaim:
    """A claim that ended without a verdict: its lease ran out or its session was replaced."""

    task_id: str
    swarm_id: str
    token: int
    capabilities: frozenset[str]


class Board:
    """The view. The mutable state of the coordinator is in here and in the store, nowhere else."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.revision = 0
        self.tasks: dict[str, Entry] = {}
        self.counts: dict[str, int] = {}
        self.sessions: dict[str, tuple[SessionRecord, int]] = {}  # with the lease
        self.held_by: dict[str, set[str]] = {}
        self.inbox: dict[str, dict[str, tuple[int, MessageRecord]]] = {}  # swarm -> key -> (seq, message)
        self.blockers: dict[str, BlockerRecord] = {}
        self._claims: dict[str, Held] = {}
        self._dependants: dict[str, set[str]] = {}
        self._ready: dict[
            frozenset[str], list[tuple[_ORDER, str]]
        ] = {}  # heaps; entries that no longer hold are skipped
        self._waiters: dict[Waiter, None] = {}  # in order of arrival
        self._watched: dict[str, dict[trio.Event, None]] = {}
        self._revision_waiters: list[tuple[int, trio.Event]] = []
        self.lost_send, self.lost_receive = trio.open_memory_channel[LostClaim](float("inf"))
        # Unbounded on purpose: at most one entry per claim, and claims are bounded by the number of open tasks.

    # --- feeding -------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the store until cancelled; ready once everything that is there now has been read."""
        while True:
            try:
                async with self._store.watch("", start_revision=self._store.revision + 1) as watch:
                    await self._load()
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    async for batch in watch:
                        self._apply(batch)
            except Compacted:
                continue  # too slow for the store's history: read everything anew

    async def _load(self) -> None:
        self.tasks.clear()
        self.counts.clear()
        self.sessions.clear()
        self.held_by.clear()
        self.inbox.clear()
        self.blockers.clear()
        self._claims.clear()
        self._dependants.clear()
        self._ready.clear()
        revision = 0
        for prefix in (CLAIMS, TASKS, SESSIONS, INBOX, BLOCKERS):
            after = ""
            while True:
                page = await self._store.range(prefix, after=after, limit=_PAGE)
                for item in page.items:
                    self._put(item)
                revision = max(revision, page.revision)
                if not page.has_more:
                    break
                after = page.items[-1].key
                await trio.lowlevel.checkpoint()
        self.tasks = dict(sorted(self.tasks.items(), key=lambda item: item[1].n))
        for task_id in list(self.tasks):
            self._refresh(task_id)
        self._advance(revision)

    def _apply(self, batch: list[WatchEvent]) -> None:
        touched: dict[str, None] = {}
        ended: list[tuple[int, LostClaim]] = []
        for event in batch:
            kind, _, name = event.key.partition("/")
            if kind == "tasks":
                touched[name] = None
            elif kind == "claims":
                touched[name] = None
                if event.value is None and (lost := self._lost(name)) is not None:
                    ended.append((event.revision, lost))
            if event.value is not None:
                self._put(event.value)
            else:
                self._delete(event.key)
        written = {(event.revision, event.key) for event in batch}
        for task_id in touched:
            self._refresh(task_id)
        for revision, lost in ended:
            # A verdict writes the task and drops the claim in one revision; a claim that just vanishes was lost.
            if (revision, TASKS + lost.task_id) not in written:
                self.lost_send.send_nowait(lost)
        if batch:
            self._advance(batch[-1].revision)

    def _lost(self, task_id: str) -> LostClaim | None:
        held = self._claims.get(task_id)
        if held is None:
            return None
        entry = self.tasks.get(task_id)
        return LostClaim(
            task_id=task_id,
            swarm_id=held.swarm_id,
            token=held.token,
            capabilities=entry.capabilities if entry else frozenset(),
        )

    def _put(self, item: KeyValue) -> None:
        kind, _, name = item.key.partition("/")
        if kind == "tasks":
            self._put_task(name, item)
        elif kind == "claims":
            claim = ClaimRecord.from_bytes(item.value)
            held = Held(swarm_id=claim.swarm_id, token=item.create_revision, lease=item.lease, claim=claim)
            self._forget_claim(name)
            self._claims[name] = held
            self.held_by.setdefault(claim.swarm_id, set()).add(name)
        elif kind == "sessions":
            self.sessions[name] = (SessionRecord.from_bytes(item.value), item.lease)
        elif kind == "inbox":
            swarm_id, _, _ = name.partition("/")
            self.inbox.setdefault(swarm_id, {})[item.key] = (item.create_revision, MessageRecord.from_bytes(item.value))
        elif kind == "blockers":
            self.blockers[name] = BlockerRecord.from_bytes(item.value)

    def _delete(self, key: str) -> None:
        kind, _, name = key.partition("/")
        if kind == "claims":
            self._forget_claim(name)
        elif kind == "sessions":
            self.sessions.pop(name, None)
        elif kind == "inbox":
            swarm_id, _, _ = name.partition("/")
            letters = self.inbox.get(swarm_id)
            if letters is not None:
                letters.pop(key, None)
                if not letters:
                    del self.inbox[swarm_id]
        elif kind == "blockers":
            self.blockers.pop(name, None)

    def _put_task(self, task_id: str, item: KeyValue) -> None:
        record = TaskRecord.from_bytes(item.value)
        entry = self.tasks.get(task_id)
        if entry is None:
            unmet = (
                {name for name in record.depends_on if not self._is_completed(name)} if record.state == OPEN else set()
            )
            for name in unmet:
                self._dependants.setdefault(name, set()).add(task_id)
            self.tasks[task_id] = Entry(
                task_id=task_id,
                n=record.n,
                title=record.title,
                state=record.state,
                capabilities=frozenset(record.capabilities),
                filler=record.filler,
                priority=record.priority,
                blocker=record.blocker,
                route=record.route,
                unmet=unmet,
                mod_revision=item.mod_revision,
            )
        else:
            entry.state, entry.blocker, entry.route = record.state, record.blocker, record.route
            entry.mod_revision = item.mod_revision
        if record.state == COMPLETED:
            for name in self._dependants.pop(task_id, ()):
                dependant = self.tasks[name]
                dependant.unmet.discard(task_id)
                if not dependant.unmet:
                    self._refresh(name)

    def _is_completed(self, task_id: str) -> bool:
        entry = self.tasks.get(task_id)
        return entry is not None and entry.state == COMPLETED

    def _forget_claim(self, task_id: str) -> None:
        held = self._claims.pop(task_id, None)
        if held is not None:
            tasks = self.held_by.get(held.swarm_id)
            if tasks is not None:
                tasks.discard(task_id)
                if not tasks:
                    del self.held_by[held.swarm_id]

    def _refresh(self, task_id: str) -> None:
        """Bring what is shown and offered of one task in step with what is known of it."""
        entry = self.tasks.get(task_id)
        if entry is None:
            return
        entry.held = self._claims.get(task_id)
        if entry.state != OPEN:
            shown = entry.state
        elif entry.blocker:
            shown = "blocked"
        elif entry.held is not None:
            shown = "claimed"
        else:
            shown = "waiting" if entry.unmet else "ready"
        for event in self._watched.pop(task_id, ()):
            event.set()
        if shown == entry.shown:
            return
        if entry.shown:
            self.counts[entry.shown] -= 1
        self.counts[shown] = self.counts.get(shown, 0) + 1
        entry.shown = shown
        if shown == "ready":
            heapq.heappush(self._ready.setdefault(entry.capabilities, []), (entry.order, task_id))
            self.offer(entry)

    def _advance(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        if self._revision_waiters:
            still = []
            for wanted, event in self._revision_waiters:
                if wanted <= self.revision:
                    event.set()
                else:
                    still.append((wanted, event))
            self._revision_waiters = still

    # --- asking --------------------------------------------------------------------------------------

    async def wait_for(self, revision: int) -> None:
        """Return once the board shows everything up to `revision`."""
        if revision > self.revision:
            event = trio.Event()
            self._revision_waiters.append((revision, event))
            await event.wait()

    async def catch_up(self) -> None:
        """Return once the board shows all that was written before this call."""
        await self.wait_for(self._store.revision)

    def candidates(self, fits: Callable[[frozenset[str]], bool], *, most: int) -> list[Entry]:
        """Ready tasks whose capabilities fit, best first; looks at one heap per distinct set of capabilities, not at all tasks."""
        heads: list[tuple[_ORDER, str, frozenset[str]]] = []
        found: dict[str, Entry] = {}
        for capabilities in [wanted for wanted in self._ready if fits(wanted)]:
            self._push_head(heads, capabilities)
        while heads and len(found) < most:
            _, task_id, capabilities = heapq.heappop(heads)
            heapq.heappop(self._ready[capabilities])
            found[task_id] = self.tasks[
                task_id
            ]  # a task that became ready twice stands in the heap twice: once is enough
            self._push_head(heads, capabilities)
        for entry in found.values():
            heapq.heappush(self._ready.setdefault(entry.capabilities, []), (entry.order, entry.task_id))
        return list(found.values())

    def _push_head(self, heads: list[tuple[_ORDER, str, frozenset[str]]], capabilities: frozenset[str]) -> None:
        heap = self._ready[capabilities]
        while heap:
            order, task_id = heap[0]
            entry = self.tasks.get(task_id)
            if entry is not None and entry.shown == "ready":
                heapq.heappush(heads, (order, task_id, capabilities))
                return
            heapq.heappop(heap)
        del self._ready[capabilities]

    # --- waiting -------------------------------------------------------------------------------------

    def add_waiter(self, waiter: Waiter) -> None:
        """Queue somebody for the next ready task that fits."""
        self._waiters[waiter] = None

    def remove_waiter(self, waiter: Waiter) -> None:
        """Take somebody out of the queue; not being in it is fine."""
        self._waiters.pop(waiter, None)

    def offer(self, entry: Entry) -> None:
        """Wake the longest waiting one that a ready task fits, the one it was pushed to first."""
        for waiter in self._waiters:
            if waiter.fits(entry):
                del self._waiters[waiter]
                waiter.offered.set()
                return

    def watch_task(self, task_id: str) -> trio.Event:
        """An event that is set at the next change of the task or its claim; hand it back by `unwatch_task`."""
        event = trio.Event()
        self._watched.setdefault(task_id, {})[event] = None
        return event

    def unwatch_task(self, task_id: str, event: trio.Event) -> None:
        """Forget an event of `watch_task`; set already is fine."""
        events = self._watched.get(task_id)
        if events is not None:
            events.pop(event, None)
            if not events:
                del self._watched[task_id]

    def waits_for(self, task_id: str) -> list[str]:
        """The dependencies of an open task that are not completed."""
        entry = self.tasks.get(task_id)
        return sorted(entry.unmet) if entry is not None else []

    def dependants_of(self, task_id: str) -> frozenset[str]:
        """Open tasks that wait for this one."""
        return frozenset(self._dependants.get(task_id, ()))

    def handles_of(self, swarm_id: str) -> list[str]:
        """The claim handles (``T-7@41``) that a swarm holds, by task id."""
        return sorted(f"{task_id}@{self._claims[task_id].token}" for task_id in self.held_by.get(swarm_id, ()))

    def claims_of(self, swarm_id: str) -> list[tuple[str, Held]]:
        """The claims that a swarm holds, by task id."""
        return [(task_id, self._claims[task_id]) for task_id in sorted(self.held_by.get(swarm_id, ()))]

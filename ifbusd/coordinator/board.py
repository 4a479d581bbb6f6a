"""The board in memory: what is ready and who waits for it. A view, fed by the store's watch; the store decides.

An answer from the board may be behind the store, never wrong about what it shows: whoever needs "at least as new as what I just
wrote" calls `catch_up` first. Every claim is decided in a transaction that reads the store, so a stale board costs a
try, never a double owner.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from ifbus.errors import Unavailable
from ifbusd.codec import unpack
from ifbusd.coordinator import rules
from ifbusd.coordinator.audience.topics import Topics
from ifbusd.coordinator.bindings import Bindings
from ifbusd.coordinator.history import History
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.locks.rules import Lock
from ifbusd.coordinator.locks.view import Locks
from ifbusd.coordinator.mailboxes import Mailboxes
from ifbusd.coordinator.model import (
    ALARMS,
    ANSWERS,
    APPROVALS,
    BEGUN,
    BLOCKERS,
    CLAIMS,
    COMPLETED,
    DEAD,
    EXPIRED,
    GROUPS,
    HELD,
    INBOX,
    LOCKS,
    OPEN,
    QUESTIONS,
    SESSIONS,
    TASKS,
    TOPICS,
    WAITS,
    BlockerRecord,
    ClaimRecord,
    GroupRecord,
    HeldRecord,
    LockRecord,
    MessageRecord,
    QuestionRecord,
    SessionRecord,
    TaskRecord,
    WaitRecord,
)
from ifbusd.coordinator.offers import Entry, Held, Offers
from ifbusd.coordinator.retention import RetentionClock
from ifbusd.coordinator.timers import Timers
from ifbusd.coordinator.waits.view import Waits
from ifbusd.news import read as read_news
from ifbusd.operation import Decoded
from ifbusd.store.base import Compacted, KeyValue, Store, WatchEvent

_log = logging.getLogger(__name__)
_PAGE: Final = 1_000
# The rest of what is stored is others' matter.
_READ: Final = (
    *(GROUPS, CLAIMS, TASKS, SESSIONS, BEGUN, INBOX, BLOCKERS, ALARMS, LOCKS, HELD),
    *(QUESTIONS, APPROVALS, ANSWERS, WAITS, TOPICS),
)
_SHOWN: Final = frozenset(prefix.removesuffix("/") for prefix in _READ)
# Whatever happens to a task writes one of these.
_HAPPENS: Final = frozenset((TASKS, CLAIMS, BLOCKERS, GROUPS))
_NOTHING: Final[frozenset[str]] = frozenset()
# Different sets of capabilities that are kept once.
_MAX_SHARED: Final = 4_096
# A watch that broke is opened again after this.
_RETRY_S: Final = 0.5
# Who is told that the board is behind asks again after this.
_BEHIND_RETRY_MS: Final = 500


@attrs.frozen(kw_only=True)
class LostClaim:
    """A claim that ended, as it seems without a verdict: its lease ran out or its session was replaced.

    Attributes:
        swarm_id: ``""`` where the task knows.
        token: 0 where a crash came in between and only the money that it held, or the attempt, is left.
    """

    task_id: str
    swarm_id: str
    token: int
    claim: ClaimRecord | None = None


class Board:
    """The view. The mutable state of the coordinator is in here and in the store, nowhere else."""

    def __init__(
        self,
        store: Store,
        decoded: Decoded,
        bindings: Bindings,
        *,
        now_ms: Callable[[], int],
        retention_ms: int,
        retained_tasks: int,
        ageing_ms: int,
        board_history: int,
        patience_s: float | None = None,
    ) -> None:
        """See `CoordinatorConfig` for how long final tasks are kept, and how many, and what happened to them.

        Args:
            now_ms: Wall clock.
            patience_s: How long the store may take to tell what it holds; None where that is the same process's doing.
        """
        self._store = store
        self._patience_s = patience_s
        self._now_ms = now_ms
        self._retention_ms = retention_ms
        self.retention = RetentionClock(now_ms, retention_ms)
        self._retained_tasks = retained_tasks
        self._ageing_ms = ageing_ms
        self._decoded = decoded
        self._bindings = bindings
        self.revision = 0
        self.tasks: dict[str, Entry] = {}
        # Ready tasks whose creation is decided and not durable yet, so that they are not shown: offered already.
        self.coming: dict[str, Entry] = {}
        self.counts: dict[str, int] = {}
        self.sessions: dict[str, tuple[SessionRecord, int]] = {}  # with the lease
        self.ended_sessions: dict[str, None] = {}  # by swarm and incarnation: gone, which is not on record yet
        self._begun: set[str] = set()  # sessions whose end is not on record
        self.held_by: dict[str, set[str]] = {}
        self._leases_of: dict[int, int] = {}  # by uid: its sessions, and its claims on leases of their own
        self.mail = Mailboxes()
        self.locks = Locks()
        self.waits = Waits()
        self.topics = Topics()
        self.history = History(board_history)
        self.completed_by: dict[str, int] = {}  # tasks that are kept, by the swarm that completed them
        self.offers = Offers()
        self.blockers: dict[str, BlockerRecord] = {}
        self._to_escalate = trio.lowlevel.ParkingLot()
        self._blockers_due = Timers(self._blocker_due_at_ms, self._to_escalate)
        self.alarms: dict[str, dict[str, Any]] = {}  # as they were told, by key
        self.groups: dict[str, GroupRecord] = {}
        self._claims: dict[str, Held] = {}
        # Became ready by what is being taken over: offered when all of it is known, so that the best goes first.
        self._now_ready: list[Entry] = []
        self._dependants: dict[str, set[str]] = {}
        self._unknown: set[str] = (
            set()
        )  # what others depend on and is not there: completed and removed, or still to come
        self._capabilities: dict[frozenset[str], frozenset[str]] = {}
        self._letter: tuple[bytes, MessageRecord] = (b"", MessageRecord(kind="", body={}))  # the last one, as stored
        self._moved = trio.lowlevel.ParkingLot()
        # Up to here the events only bring the pages that were read at different revisions into step.
        self._settled_at = 0
        # Not while everything is read, or what was read is brought into step.
        self._is_settled = False
        # Claims of before everything was read anew: those that are gone by then were lost, or ended with a verdict.
        self._suspects: dict[str, LostClaim] = {}
        # Lost claims in order, until somebody has cleaned up after them and takes them out; bounded by the claims.
        self.lost: dict[tuple[str, int], LostClaim] = {}
        # Everything was read anew, so a claim may have come and gone unseen; whoever has looked for those sets it back.
        self.has_gap = False
        self._to_clean = trio.lowlevel.ParkingLot()
        self._to_record = trio.lowlevel.ParkingLot()
        # Dead tasks as (end, number, id), in that order.
        self.dead: list[tuple[int, int, str]] = []
        self._dead_places: dict[str, tuple[int, int, str]] = {}
        self._ending: set[str] = (
            set()
        )  # those whose claims count as attempts, while they are held and until that has been settled
        # What time or another task's end asks for, by task: ``expire``, ``cancel`` or ``remove``; the store decides.
        self._due: dict[str, str] = {}
        self._to_tend = trio.lowlevel.ParkingLot()
        self._timers = Timers(self._open_due_at_ms, self._to_tend)
        self._kept = Timers(self._final_due_at_ms, self._to_tend)  # when to remove them
        self._aside = Timers(self._final_due_at_ms, self._to_tend)  # could not be removed: when to look again

    # --- feeding -------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the store until cancelled; ready once everything that is there now has been read.

        Raises:
            Unavailable: The store did not answer at the start; later that is waited out.
        """
        while True:
            try:
                start = self._store.revision
                async with self._store.watch("", start_revision=start + 1) as watch:
                    settled_at = await self._load()
                    self._settle(start, settled_at)
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await watch.feed(self.apply)
            except Compacted:
                _log.info("board reads everything anew", extra={"revision": self.revision})
            except Unavailable:
                if task_status is not trio.TASK_STATUS_IGNORED:
                    raise
                await trio.sleep(_RETRY_S)

    async def _load(self) -> int:
        """Read everything; the newest revision that some of it is as of."""
        self._is_settled = False
        self._suspects |= {task_id: _lost(task_id, held) for task_id, held in self._claims.items()}
        for entry in self.tasks.values():
            entry.shown = ""  # somebody may still have been offered it
        self.tasks.clear()
        self.counts.clear()
        self.sessions.clear()
        self._begun.clear()
        self.ended_sessions.clear()
        self.held_by.clear()
        self._leases_of.clear()
        self.mail.clear()
        self.locks.clear()
        self.waits.clear()
        self.topics.clear()
        self.completed_by.clear()
        self.offers.clear()
        self.blockers.clear()
        self._blockers_due.clear()
        self.alarms.clear()
        self.groups.clear()
        self._claims.clear()
        self._dependants.clear()
        self._unknown.clear()
        self.dead.clear()
        self._dead_places.clear()
        self._ending.clear()
        self._due.clear()
        self._timers.clear()
        self._kept.clear()
        self._aside.clear()
        revision = happened = 0
        for prefix in _READ:
            after = ""
            while True:
                page = await self._store.range(prefix, after=after, limit=_PAGE)
                # What could not be committed is never taken back by an event: it must not get in.
                await self._store.barrier()
                kind = prefix.removesuffix("/")
                for item in page.items:
                    self._take_in(kind, item.key.removeprefix(prefix), item.key, item)
                if page.items and prefix in _HAPPENS:
                    happened = max(happened, *(item.mod_revision for item in page.items), 0)
                revision = max(revision, page.revision)
                if not page.has_more:
                    break
                after = page.items[-1].key
                await trio.lowlevel.checkpoint()
        self._bindings.renew(self._bound())
        self.tasks = dict(sorted(self.tasks.items(), key=lambda item: (item[1].created_revision, item[1].n)))
        self._show_groups()
        for task_id in list(self.tasks):
            self._refresh(task_id)
        self._offer_ready()
        self.history.begin(happened)
        return revision

    def _bound(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for task_id, held in self._claims.items():
            if binding_id := held.claim.bound.get("id"):
                found.setdefault(binding_id, set()).add(CLAIMS + task_id)
        for swarm_id, (session, _) in self.sessions.items():
            if binding_id := session.bound.get("id"):
                found.setdefault(binding_id, set()).add(SESSIONS + swarm_id)
        return found

    def _settle(self, start: int, settled_at: int) -> None:
        # The pages are as of `start` or later; the events in between come again and end at the same state. Until then
        # a claim that seems to vanish may be an old one.
        self.revision = start
        self._settled_at = min(settled_at, self._store.told_revision)
        self._advance(start)
        if start >= self._settled_at:
            self._settled()

    def _settled(self) -> None:
        self._settled_at = 0
        self._is_settled = True
        suspects, self._suspects = self._suspects, {}
        for task_id, suspect in suspects.items():
            now = self._claims.get(task_id)
            if now is None or now.token != suspect.token:
                self._note_lost(suspect)
        lost = {task_id for task_id, _ in self.lost}
        for task_id in self._ending - lost - self._claims.keys():
            self._note_lost(LostClaim(task_id=task_id, swarm_id="", token=0))
        self._forget_unknown()
        self.mail.deliver_all()
        self.locks.wake_all()
        self.locks.note_ended()
        self._note_ended_sessions()
        self.waits.wake_all()
        self.has_gap = True
        self._to_clean.unpark_all()
        self._to_record.unpark_all()

    def _forget_unknown(self) -> None:
        # Only a completed task is removed while others depend on it, and none is created that depends on what is not there.
        unknown, self._unknown = self._unknown, set()
        for name in unknown:
            if name not in self.tasks:
                self._release_dependants(name)

    def _note_lost(self, lost: LostClaim) -> None:
        self.lost[lost.task_id, lost.token] = lost
        self._to_clean.unpark_all()

    async def wait_lost(self) -> None:
        """Return once there are lost claims to clean up after, or there was a gap."""
        while not (self.lost or self.has_gap):
            await self._to_clean.park()

    def apply(self, batch: list[WatchEvent]) -> None:
        """Take over one commit's changes: the view, who is woken, who is told, which claims were lost."""
        touched: dict[str, None] = {}
        freed: dict[str, None] = {}
        changed: dict[str, None] = {}
        mail: dict[str, None] = {}
        ended: list[tuple[int, LostClaim]] = []
        told: list[WatchEvent] = []
        for event in batch:
            kind, _, name = event.key.partition("/")
            if event.told or kind == "news":
                told.append(event)
                continue
            if kind == "tasks":
                touched[name] = None
            elif kind == "claims":
                touched[name] = None
                if event.value is None:
                    freed[name] = None
                    if (held := self._claims.get(name)) is not None:
                        ended.append((event.revision, _lost(name, held)))
                        if (session := self.sessions.get(held.swarm_id)) is not None and session[0].slots:
                            changed[held.swarm_id] = None
            elif kind == "locks":
                touched |= dict.fromkeys(self.locks.wanted_by(name))
            elif kind in ("accounts", "swarms"):
                changed[name] = None
            elif kind == "inbox" and event.value is not None:
                mail[name.partition("/")[0]] = None
            if event.value is None or kind in _SHOWN:
                self._take_in(kind, name, event.key, event.value)
        if self._unknown and not self._settled_at:
            self._forget_unknown()
        for task_id in touched:
            self._refresh(task_id)
        self._offer_ready()
        for task_id in touched:
            if (entry := self.tasks.get(task_id)) is not None and entry.resources:
                # Held and free again within one batch they never showed as busy.
                self.offers.offer(entry)
        for task_id in freed:
            # Claimed and free again within one batch it never showed as claimed; who waits for it must hear of it.
            if (entry := self.tasks.get(task_id)) is not None and entry.held is None:
                self.offers.free(entry)
                self.offers.offer(entry)
        if self._settled_at:
            self._suspects |= {lost.task_id: lost for _, lost in ended}
            if batch[-1].revision >= self._settled_at:
                self._settled()
        else:
            if ended:
                written = {(event.revision, event.key) for event in batch}
                for revision, lost in ended:
                    # A verdict writes the task and drops the claim in one revision.
                    if (revision, TASKS + lost.task_id) not in written:
                        self._note_lost(lost)
            for swarm_id in mail:
                self.mail.deliver(swarm_id)
        for event in told:
            self._take_over(event)
        if changed:
            self.offers.wake_swarms(changed)
        if self.locks.ended or self.ended_sessions:
            self._to_record.unpark_all()
        self._advance(batch[-1].revision)

    def _take_over(self, event: WatchEvent) -> None:
        """What an operation told everybody, on this host or on another one."""
        if event.told:
            self.history.add(event.revision, event.told, is_whole=True)
        elif event.value is not None:
            try:
                messages = read_news(event.value.value)
            except (TypeError, ValueError):
                return  # what another host wrote and nobody can read; `News` says so
            self.history.add(event.revision, messages, is_whole=False)

    def _take_in(self, kind: str, name: str, key: str, item: KeyValue | None) -> None:
        """A key has this value now, or is gone."""
        try:
            if item is None:
                self._delete(kind, name, key)
            else:
                self._put(kind, name, item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # Another host may write what we cannot read (THREATS T6): that is left out, the rest goes on.
            _log.warning("a stored record cannot be read and is ignored", extra={"key": key, "error": repr(error)})

    def _put(self, kind: str, name: str, item: KeyValue) -> None:
        if kind == "tasks":
            self._put_task(name, item)
        elif kind == "claims":
            claim = self._decoded.peek(item, ClaimRecord.from_bytes)
            held = Held(swarm_id=claim.swarm_id, token=item.create_revision, lease=item.lease, claim=claim)
            former = self._forget_claim(name)
            if claim.bound or (former is not None and former.claim.bound):
                before = {} if former is None else former.claim.bound
                self._bindings.move(item.key, before.get("id", ""), claim.bound.get("id", ""))
            self._claims[name] = held
            self.held_by.setdefault(claim.swarm_id, set()).add(name)
            if claim.own_lease:
                self._count_lease(claim.uid, 1)
        elif kind == "sessions":
            session = SessionRecord.from_bytes(item.value)
            begun = self._forget_session(name)
            if begun is not None and begun.incarnation != session.incarnation:
                self._end_session(name, begun)
            bound = {} if begun is None else begun.bound
            self._bindings.move(item.key, bound.get("id", ""), session.bound.get("id", ""))
            self.sessions[name] = (session, item.lease)
            self._count_lease(session.uid, 1)
        elif kind == "begun":
            self._begun.add(name)
        elif kind == "inbox":
            swarm_id, _, _ = name.partition("/")
            if item.value != self._letter[0]:  # one that went to many is decoded and kept once
                self._letter = (item.value, MessageRecord.from_bytes(item.value))
            self.mail.put(swarm_id, item.key, (item.create_revision, self._letter[1]), len(item.value))
        elif kind == "blockers":
            self.blockers[name] = blocker = BlockerRecord.from_bytes(item.value)
            if blocker.due_at_ms and not blocker.escalated_at_ms:
                self._blockers_due.add(blocker.due_at_ms, name)
        elif kind == "alarms":
            self.alarms[item.key] = dict(unpack(item.value))
        elif kind in ("questions", "approvals"):
            self.waits.put_question(name, QuestionRecord.from_bytes(item.value))
        elif kind == "answers":
            self.waits.put_answer(name, QuestionRecord.from_bytes(item.value))
        elif kind == "topics":
            self.topics.put(*name.split("/", 1))
        elif kind == "waits":
            self.waits.put_wait(name, WaitRecord.from_bytes(item.value))
        elif kind == "locks":
            record = LockRecord.from_bytes(item.value)
            self.locks.put(name, Lock(record=record, fence=item.create_revision, lease=item.lease))
            for task_id in self.locks.wanted_by(name):
                self.tasks[task_id].busy |= {name}
        elif kind == "held":
            self.locks.put_held(name, HeldRecord.from_bytes(item.value))
        elif kind == "groups":
            self.groups[name] = GroupRecord.from_bytes(item.value)
            self._show_groups()

    def _delete(self, kind: str, name: str, key: str) -> None:
        if kind == "tasks":
            self._drop_task(name)
        elif kind == "claims":
            former = self._forget_claim(name)
            if former is not None and former.claim.bound:
                self._bindings.move(key, former.claim.bound.get("id", ""), "")
        elif kind == "sessions":
            if (ended := self._forget_session(name)) is not None:
                self._bindings.move(key, ended.bound.get("id", ""), "")
                self._end_session(name, ended)
        elif kind == "begun":
            self._begun.discard(name)
            self.ended_sessions.pop(name, None)
        elif kind == "inbox":
            swarm_id, _, _ = name.partition("/")
            self.mail.drop(swarm_id, key)
        elif kind == "blockers":
            self.blockers.pop(name, None)
        elif kind == "alarms":
            self.alarms.pop(key, None)
        elif kind in ("questions", "approvals"):
            self.waits.drop_question(name)
        elif kind == "answers":
            self.waits.drop_answer(name)
        elif kind == "topics":
            self.topics.drop(*name.split("/", 1))
        elif kind == "waits":
            self.waits.drop_wait(name)
        elif kind == "locks":
            self.locks.drop(name)
            for task_id in self.locks.wanted_by(name):
                self.tasks[task_id].busy -= {name}
        elif kind == "held":
            self.locks.drop_held(name)
        elif kind == "groups":
            self.groups.pop(name, None)
            self._show_groups()

    def _show_groups(self) -> None:
        self.offers.set_groups(
            {name: group.weight for name, group in self.groups.items() if group.weight},
            frozenset(name for name, group in self.groups.items() if group.pause),
        )

    def _put_task(self, task_id: str, item: KeyValue) -> None:
        record = self._decoded.peek(item, TaskRecord.from_bytes)
        entry = self.tasks.get(task_id)
        before = None if entry is None else entry.state
        if entry is None:
            entry = self.tasks[task_id] = self.forget_coming(task_id) or self._entry(task_id, record)
            entry.created_revision = item.create_revision
            if record.resources and record.state == OPEN:
                self._want(entry)
        else:
            entry.state, entry.blocker, entry.route = record.state, record.blocker, record.route
            if entry.resources:
                if record.state == OPEN:
                    self._want(entry)
                else:
                    self.locks.unwant(task_id, entry.resources)
            entry.is_paused = bool(record.pause)
            if record.state != before:
                entry.since_ms = record.ended_at_ms or record.created_at_ms
        if record.options or record.history or entry.start_at_ms or entry.deadline_at_ms or entry.is_ending:
            self._put_life(entry, record)
        if before is None and task_id in self._dependants:
            self._release_older(entry)
        if record.state != before:
            if record.depends_on:
                self._put_dependencies(entry, record)
            if record.state == COMPLETED:
                entry.completed_by = record.last_holder
                self.completed_by[record.last_holder] = self.completed_by.get(record.last_holder, 0) + 1
                self._release_dependants(task_id, record.ended_at_ms)
            elif record.state != OPEN or before is not None:
                self._tell_dependants(entry)
            if record.state != OPEN:
                entry.due_at_ms = life.removable_at_ms(record, self._retention_ms)
                self._kept.add(entry.due_at_ms, task_id)
            if before == DEAD:
                self._forget_dead(task_id)
            if record.state == DEAD:
                place = self._dead_places[task_id] = (record.ended_at_ms, entry.n, task_id)
                bisect.insort(self.dead, place)

    def _entry(self, task_id: str, record: TaskRecord) -> Entry:
        return Entry(
            task_id=task_id,
            n=record.n,
            title=record.title,
            state=record.state,
            capabilities=self._shared(frozenset(record.capabilities)),
            filler=record.filler,
            priority=record.priority,
            estimate_micro_usd=record.estimate_micro_usd,
            blocker=record.blocker,
            route=record.route,
            unmet=_NOTHING,
            resources=tuple(record.resources),
            group=record.group,
            key=record.concurrency_key,
            limit=record.concurrency_limit,
            weight=record.weight,
            since_ms=record.ended_at_ms or record.created_at_ms,
            is_paused=bool(record.pause),
        )

    def offer_coming(self, records: dict[str, TaskRecord]) -> bool:
        """Offer new tasks whose creation is decided and not durable yet; whether somebody was woken for one.

        Whoever claims one now does so on top of its creation: both become durable, or neither, and nobody is told before. Only the
        plainest are, which nothing can keep from being ready; the others are offered once they are shown.
        """
        plain = [
            self._entry(task_id, record)
            for task_id, record in records.items()
            if not (record.depends_on or record.options or record.resources or record.concurrency_key)
        ]
        for entry in sorted(plain, key=lambda entry: (entry.filler, -entry.priority, entry.n)):
            entry.shown = life.READY
            if self.offers.offer(entry):
                self.coming[entry.task_id] = entry
        return not self.coming.keys().isdisjoint(records)

    def forget_coming(self, task_id: str) -> Entry | None:
        """The entry of a task that was offered before it was durable, to be shown from now on or, if it was not created, never."""
        entry = self.coming.pop(task_id, None)
        if entry is not None:
            entry.shown = ""
        return entry

    def _put_life(self, entry: Entry, record: TaskRecord) -> None:
        entry.start_at_ms, entry.deadline_at_ms = life.start_at_ms(record), life.deadline_at_ms(record)
        entry.on_dependency_failure = record.options.get("on_dependency_failure", "wait")
        entry.is_ending = "attempt" in record.history
        (self._ending.add if entry.is_ending else self._ending.discard)(entry.task_id)

    def _put_dependencies(self, entry: Entry, record: TaskRecord) -> None:
        """Note what an open task waits for; one that is final waits no more."""
        if record.state != OPEN:
            for name in record.depends_on:
                if (dependants := self._dependants.get(name)) is not None:
                    dependants.discard(entry.task_id)
                    if not dependants:
                        del self._dependants[name]
            return
        pending = [name for name in record.depends_on if not self._is_done_for(entry, name)]
        for name in pending:
            self._dependants.setdefault(name, set()).add(entry.task_id)
            if name not in self.tasks:
                self._unknown.add(name)
        failed = [name for name in pending if self._has_failed(name)]
        entry.unmet = frozenset(pending)
        met = [
            self.tasks[name].since_ms for name in record.depends_on if name not in entry.unmet and name in self.tasks
        ]
        entry.since_ms = max([entry.since_ms, *met])
        if failed and entry.on_dependency_failure == "run":
            entry.unmet -= frozenset(failed)
        elif failed and entry.on_dependency_failure == "cancel":
            self._note_due(entry.task_id, "cancel")

    def _release_dependants(self, task_id: str, since_ms: int = 0) -> None:
        for name in self._dependants.pop(task_id, ()):
            dependant = self.tasks[name]
            dependant.unmet -= {task_id}
            dependant.since_ms = max(dependant.since_ms, since_ms)
            if not dependant.unmet:
                self._refresh(name)

    def _release_older(self, entry: Entry) -> None:
        """Who was there before this task depends on another one of its name, which was completed and is gone."""
        for name in tuple(self._dependants[entry.task_id]):
            dependant = self.tasks[name]
            if dependant.created_revision < entry.created_revision:
                self._dependants[entry.task_id].discard(name)
                dependant.unmet -= {entry.task_id}
                if not dependant.unmet:
                    self._refresh(name)
        if not self._dependants[entry.task_id]:
            del self._dependants[entry.task_id]

    def _tell_dependants(self, entry: Entry) -> None:
        """A task ended without being completed, or is open again: what each that depends on it has chosen for that."""
        for name in self._dependants.get(entry.task_id, ()):
            dependant = self.tasks[name]
            if dependant.on_dependency_failure == "run":
                dependant.unmet = (
                    dependant.unmet | {entry.task_id} if entry.state == OPEN else dependant.unmet - {entry.task_id}
                )
                self._refresh(name)
            elif dependant.on_dependency_failure == "cancel" and entry.state != OPEN:
                self._note_due(name, "cancel")

    def _has_failed(self, task_id: str) -> bool:
        entry = self.tasks.get(task_id)
        return entry is not None and entry.state not in (OPEN, COMPLETED)

    def _drop_task(self, task_id: str) -> None:
        """A final task was removed."""
        entry = self.tasks.pop(task_id, None)
        if entry is None:
            return
        if entry.shown:
            self.counts[entry.shown] -= 1
        entry.shown = ""  # somebody may still hold it in a list of offers
        self._due.pop(task_id, None)
        self._release_dependants(task_id)
        self._ending.discard(task_id)
        if entry.resources:
            self.locks.unwant(task_id, entry.resources)
        if entry.completed_by:
            self.completed_by[entry.completed_by] -= 1
            if not self.completed_by[entry.completed_by]:
                del self.completed_by[entry.completed_by]
        if entry.state == DEAD:
            self._forget_dead(task_id)

    def _forget_dead(self, task_id: str) -> None:
        del self.dead[bisect.bisect_left(self.dead, self._dead_places.pop(task_id))]

    def _want(self, entry: Entry) -> None:
        entry.busy = frozenset(self.locks.busy(entry.resources))
        self.locks.want(entry.task_id, entry.resources)

    def _shared(self, capabilities: frozenset[str]) -> frozenset[str]:
        # A set takes more room than the rest of a task's entry, and most tasks need what others need too.
        if len(self._capabilities) >= _MAX_SHARED:
            self._capabilities.clear()
        return self._capabilities.setdefault(capabilities, capabilities)

    def _is_done_for(self, entry: Entry, name: str) -> bool:
        """Whether a task need not wait for what it names so: that is completed, or it is another one by now (`Core._dependency`)."""
        other = self.tasks.get(name)
        return other is not None and (other.state == COMPLETED or other.created_revision > entry.created_revision)

    def _forget_claim(self, task_id: str) -> Held | None:
        held = self._claims.pop(task_id, None)
        if held is not None:
            tasks = self.held_by.get(held.swarm_id)
            if tasks is not None:
                tasks.discard(task_id)
                if not tasks:
                    del self.held_by[held.swarm_id]
            if held.claim.own_lease:
                self._count_lease(held.claim.uid, -1)
        return held

    def _forget_session(self, swarm_id: str) -> SessionRecord | None:
        former = self.sessions.pop(swarm_id, None)
        if former is None:
            return None
        self._count_lease(former[0].uid, -1)
        return former[0]

    def _end_session(self, swarm_id: str, session: SessionRecord) -> None:
        if (name := f"{swarm_id}/{session.incarnation}") in self._begun:
            self.ended_sessions[name] = None

    def _note_ended_sessions(self) -> None:
        """Everything was read anew, so an end may have gone unseen."""
        there = {f"{swarm_id}/{session.incarnation}" for swarm_id, (session, _) in self.sessions.items()}
        self.ended_sessions |= dict.fromkeys(self._begun - there)

    def _count_lease(self, uid: int, more: int) -> None:
        self._leases_of[uid] = self._leases_of.get(uid, 0) + more
        if not self._leases_of[uid]:
            del self._leases_of[uid]

    def _refresh(self, task_id: str) -> None:
        """Bring what is shown and offered of one task in step with what is known of it."""
        entry = self.tasks.get(task_id)
        if entry is None:
            return
        held = self._claims.get(task_id)
        if held is not entry.held:
            entry.held = held
            if held is None:
                self.offers.free(entry)
            else:
                self.offers.hold(entry)
        now_ms = 0
        if entry.state == OPEN and (entry.start_at_ms or entry.deadline_at_ms):
            now_ms = self._now_ms()
            self._set_timer(entry, now_ms)
        if entry.state != OPEN:
            shown = entry.state
        elif 0 < entry.deadline_at_ms <= now_ms:
            shown = EXPIRED
        elif entry.blocker:
            shown = life.BLOCKED
        elif entry.held is not None or entry.is_ending:
            shown = life.CLAIMED
        elif entry.is_paused:
            shown = life.PAUSED
        elif entry.unmet or entry.busy:
            shown = life.WAITING
        else:
            shown = life.SCHEDULED if entry.start_at_ms > now_ms else life.READY
        if shown == entry.shown:
            return
        if entry.shown:
            self.counts[entry.shown] -= 1
        self.counts[shown] = self.counts.get(shown, 0) + 1
        entry.shown = shown
        if shown == "ready":
            since_ms = max(entry.since_ms, entry.start_at_ms)
            entry.rank = rules.rank_of(entry.priority, since_ms, self._ageing_ms)
            self._now_ready.append(entry)
        elif shown in life.FINAL_STATES:
            self.offers.wake_ended(task_id)

    # --- time ----------------------------------------------------------------------------------------

    def _set_timer(self, entry: Entry, now_ms: int) -> None:
        if 0 < entry.deadline_at_ms <= now_ms:
            self._note_due(entry.task_id, "expire")
            return
        due_at_ms = min((at for at in (entry.start_at_ms, entry.deadline_at_ms) if at > now_ms), default=0)
        if due_at_ms and due_at_ms != entry.due_at_ms:
            self._timers.add(due_at_ms, entry.task_id)
        entry.due_at_ms = due_at_ms

    def _open_due_at_ms(self, task_id: str) -> int | None:
        entry = self.tasks.get(task_id)
        return None if entry is None or entry.state != OPEN else entry.due_at_ms

    def _final_due_at_ms(self, task_id: str) -> int | None:
        entry = self.tasks.get(task_id)
        return None if entry is None or entry.state == OPEN else entry.due_at_ms

    def _blocker_due_at_ms(self, blocker_id: str) -> int | None:
        blocker = self.blockers.get(blocker_id)
        return None if blocker is None or blocker.escalated_at_ms else blocker.due_at_ms

    def _note_due(self, task_id: str, what: str) -> None:
        self._due[task_id] = what
        self._to_tend.unpark_all()

    def refresh(self, task_id: str) -> None:
        """Look at a task's time again: the store judged by another one."""
        self._refresh(task_id)
        self._offer_ready()

    def take_due(self, most: int) -> list[tuple[str, str]]:
        """Tasks whose time has come, and what that asks for; a start that is reached is shown and offered by this itself."""
        now_ms = self._now_ms()
        for task_id in self._timers.take_due(now_ms):
            self._refresh(task_id)
        self._offer_ready()
        kept_until_ms = self.retention.now_ms()
        for task_id in self._aside.take_due(kept_until_ms):
            self._kept.add(self.tasks[task_id].due_at_ms, task_id)
        while len(self._due) < most and (at_ms := self._kept.next_at_ms) is not None:
            if at_ms > kept_until_ms and self._final_tasks() - len(self._due) <= self._retained_tasks:
                break
            if (final := self._kept.pop()) is not None:
                self._due[final] = "remove"
        taken = list(self._due.items())[:most]
        for task_id, _ in taken:
            del self._due[task_id]
        return taken

    def keep(self, task_id: str, until_ms: int) -> None:
        """Look again later whether a final task can be removed."""
        if (entry := self.tasks.get(task_id)) is not None and entry.state != OPEN:
            entry.due_at_ms = until_ms
            self._aside.add(until_ms, task_id)

    async def wait_due(self, longest_s: float) -> None:
        """Return when a task's time may have come, at the latest after so long: the wall clock may have been set."""
        if self._due:
            await trio.lowlevel.checkpoint()
            return
        kept_ms = self.retention.now_ms()
        left = [self._timers.left_ms(self._now_ms()), self._kept.left_ms(kept_ms), self._aside.left_ms(kept_ms)]
        await _park(self._to_tend, min((ms for ms in left if ms is not None), default=None), longest_s)

    def take_due_blockers(self) -> list[str]:
        """Blockers that are to be brought before people now, each once."""
        return list(self._blockers_due.take_due(self._now_ms()))

    async def wait_blocker_due(self, longest_s: float) -> None:
        """Return when the time of one may have come, at the latest after so long: the wall clock may have been set."""
        await _park(self._to_escalate, self._blockers_due.left_ms(self._now_ms()), longest_s)

    @property
    def is_overfull(self) -> bool:
        """Whether there are more final tasks than are to be kept."""
        return self._final_tasks() > self._retained_tasks

    def dead_place(self, task_id: str) -> tuple[int, int, str] | None:
        """Where a dead task stands in `dead`; None if it is none."""
        return self._dead_places.get(task_id)

    def _final_tasks(self) -> int:
        return sum(self.counts.get(state, 0) for state in life.FINAL_STATES)

    def _offer_ready(self) -> None:
        ready, self._now_ready = sorted(self._now_ready, key=lambda entry: entry.order), []
        for entry in ready:
            self.offers.add(entry)

    def _advance(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        self._moved.unpark_all()

    # --- asking --------------------------------------------------------------------------------------

    async def wait_for(self, revision: int) -> bool:
        """Return once the board shows everything up to `revision`, which must be durable; False if the store's watch has stalled."""
        if self._patience_s is None or self.revision >= revision:
            while self.revision < revision:
                await self._moved.park()
            return True
        with trio.move_on_after(self._patience_s):
            while self.revision < revision:
                await self._moved.park()
            return True
        return False

    async def catch_up(self) -> None:
        """Return once all that was written before this call is durable and on the board.

        Raises:
            Unavailable: What was being written could not be committed; or the store does not tell what it holds.
        """
        await self._store.barrier()
        revision = self._store.told_revision
        if not await self.wait_for(revision):
            raise Unavailable(
                f"cannot read what is newest: changes are shown up to revision {self.revision}, not yet to {revision}",
                data={"reason": "store_unreachable", "retry_after_ms": _BEHIND_RETRY_MS},
            )

    async def show_told(self) -> None:
        """Return once the board shows all that anybody was answered; unlike `catch_up` it waits for no commit.

        Where the store's watch has stalled it gives up after a while: what is done stays done, and bounds that count by the board
        may be passed by what it does not show.
        """
        await self.wait_for(self._store.told_revision)

    async def wait_unrecorded(self) -> None:
        """Return once there are holds for no claim, or sessions, that have ended with their lease (`locks.ended`, `ended_sessions`)."""
        while not ((self.locks.ended or self.ended_sessions) and self._is_settled):
            await self._to_record.park()

    async def wait_settled(self) -> None:
        """Return once nothing is missing from the board that is there, and all lost claims that it has seen are in `lost`."""
        while not self._is_settled:
            await self._moved.park()

    def waits_for(self, task_id: str) -> list[str]:
        """The dependencies of an open task that are not completed."""
        entry = self.tasks.get(task_id)
        return sorted(entry.unmet) if entry is not None else []

    def busy_of(self, task_id: str) -> list[str]:
        """The resources of an open task that somebody holds."""
        entry = self.tasks.get(task_id)
        return sorted(entry.busy) if entry is not None else []

    def dependants_of(self, task_id: str) -> frozenset[str]:
        """Open tasks that wait for this one."""
        return frozenset(self._dependants.get(task_id, ()))

    def handles_of(self, swarm_id: str) -> list[str]:
        """The claim handles (``T-7@41``) that a swarm holds, by task id."""
        return sorted(f"{task_id}@{self._claims[task_id].token}" for task_id in self.held_by.get(swarm_id, ()))

    def claims_of(self, swarm_id: str) -> list[tuple[str, Held]]:
        """The claims that a swarm holds, by task id."""
        return [(task_id, self._claims[task_id]) for task_id in sorted(self.held_by.get(swarm_id, ()))]

    def holder_of(self, task_id: str) -> str:
        """The swarm that holds a task, ``""`` if none does."""
        held = self._claims.get(task_id)
        return "" if held is None else held.swarm_id

    def leases_of(self, uid: int) -> int:
        """How many leases a user's sessions and claims take."""
        return self._leases_of.get(uid, 0)

    def blockers_of(self, uid: int) -> int:
        """How many open blockers a user has reported."""
        return sum(blocker.uid == uid for blocker in self.blockers.values())

    def open_tasks(self) -> int:
        """Tasks that are not final."""
        return len(self.tasks) - self._final_tasks()


async def _park(lot: trio.lowlevel.ParkingLot, left_ms: int | None, longest_s: float) -> None:
    """Be parked until woken, at most for so long; None: however long that takes."""
    if left_ms is None:
        await lot.park()
        return
    with trio.move_on_after(max(0.0, min(left_ms / 1000, longest_s))):
        await lot.park()


def _lost(task_id: str, held: Held) -> LostClaim:
    return LostClaim(task_id=task_id, swarm_id=held.swarm_id, token=held.token, claim=held.claim)

"""Claims: one commit decides who may have a task, and whoever waits is woken in turn (DESIGN 2, promise 1)."""

from __future__ import annotations

from functools import partial

import attrs
import trio

from ifbus.errors import (
    AlreadyClaimed,
    AtCapacity,
    BudgetExceeded,
    IfbusError,
    LimitExceeded,
    NotFound,
    NotQualified,
    NotReady,
    Paused,
    Refused,
    ResourceBusy,
    WouldChange,
)
from ifbus.models import check_identifier
from ifbus.money import to_usd
from ifbusd import pause as pauses
from ifbusd.codec import how_many_fit
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer
from ifbusd.coordinator.gates import checks as gates
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.locks.rules import check_resources
from ifbusd.coordinator.model import (
    CLAIMS,
    INBOX,
    SESSIONS,
    TASKS,
    ClaimRecord,
    SessionRecord,
    TaskRecord,
)
from ifbusd.coordinator.offers import Entry, Kind, Waiter
from ifbusd.coordinator.resources import Resources
from ifbusd.coordinator.rules import Terms, session_ended
from ifbusd.identity import Caller
from ifbusd.operation import Body, Tx
from ifbusd.store.base import LeaseNotFound

_CLAIM = "coordinator.claim_task"
_CLAIM_SEVERAL = "coordinator.claim_next"
# So many of the best ready tasks are looked at in one go.
_CANDIDATES = 16
# And so many are claimed at most: each is a handful of keys in one transaction.
MAX_CLAIMS = _CANDIDATES
# Who lost so many races in one look hears that there is nothing, and asks again.
_MOST_LOST = 256
# Keys that are compared when another claim is added at most; etcd takes 128 in all.
_MAX_READS = 100
# What stands against a task for this moment.
_MOMENTARY = (NotReady, NotFound, Paused, ResourceBusy)
# What a look at several tasks passes over.
_PASSED_OVER = (*_MOMENTARY, AtCapacity, NotQualified, BudgetExceeded)


class _Full(Exception):
    """No more fits into this commit."""


class _Taken(Exception):
    """Who takes whatever is free goes on to the next task; leaves the operation without a trace."""


class _NothingWon(Exception):
    """None of several could be claimed; leaves the operation without a trace."""


@attrs.define
class _Leases:
    """The leases that a claim was given of its own, and the one that its decision uses."""

    granted: list[int] = attrs.field(factory=list)
    used: list[int] = attrs.field(factory=list)

    def unused(self, *, is_kept: bool = True) -> list[int]:
        """Those that nothing hangs on, unless the claim came about and is kept."""
        return [lease for lease in self.granted if not is_kept or lease not in self.used]


@attrs.define(kw_only=True)
class _Wish:
    """What a swarm that asks for the next task has been refused so far, so that it is not tried again.

    Attributes:
        kinds: Not qualified for these.
        too_dear: It cannot pay this much, nor anything above.
        too_heavy: It has not so many slots free.
        lost: Others were faster with these tasks in this look.
        paused: Nothing whatsoever is for it now, and why.
    """

    kinds: set[Kind] = attrs.field(factory=set)
    too_dear: int | None = None
    too_heavy: int | None = None
    lost: set[str] = attrs.field(factory=set)
    paused: Paused | None = None

    @property
    def size(self) -> tuple[int, int | None, int | None, int]:
        """Tells whether anything was added."""
        return len(self.kinds), self.too_dear, self.too_heavy, len(self.lost)

    def allows(self, kind: Kind) -> bool:
        return (
            kind not in self.kinds
            and (self.too_dear is None or kind.estimate_micro_usd < self.too_dear)
            and (self.too_heavy is None or kind.weight < self.too_heavy)
        )

    def note(self, entry: Entry, refusal: IfbusError) -> None:
        if isinstance(refusal, BudgetExceeded) and entry.estimate_micro_usd:
            self.too_dear = entry.estimate_micro_usd
        elif isinstance(refusal, AtCapacity):
            self.too_heavy = entry.weight
        else:
            self.kinds.add(entry.kind)

    def forget(self) -> None:
        self.kinds.clear()
        self.too_dear = self.too_heavy = self.paused = None


class Claiming(Resources):
    """By name, or the next one."""

    async def claim_task(
        self,
        caller: Caller,
        task_id: str,
        swarm_id: str,
        *,
        wait_ms: int = 0,
        lease_ms: int | None = None,
        bind: str | None = None,
        resume_token: str | None = None,
        resources: list[str] | None = None,
    ) -> Answer:
        """See `interface.Coordinator.claim_task`."""
        self._check_claim(swarm_id, wait_ms, lease_ms)
        check_identifier(task_id, "task_id")
        more = tuple(check_resources(resources)) if resources else ()
        if bind is None:
            terms = Terms(lease_ms=lease_ms, resume_token=resume_token, resources=more)
            return await self._claim_task(caller, task_id, swarm_id, wait_ms, terms)
        with await self._bind(caller, bind, "claim_task", task_id) as holder:
            terms = Terms(lease_ms=lease_ms, holder=holder, resume_token=resume_token, resources=more)
            return await self._claim_task(caller, task_id, swarm_id, wait_ms, terms)

    async def _claim_task(self, caller: Caller, task_id: str, swarm_id: str, wait_ms: int, terms: Terms) -> Answer:
        if not wait_ms:
            return await self._try(caller, task_id, swarm_id, terms)
        deadline = trio.current_time() + wait_ms / 1000
        known = self.board.tasks.get(task_id)
        waiter = Waiter(
            swarm_id=swarm_id,
            task_id=task_id,
            kind=None if known is None else known.kind,
            # A paused one would only refuse, and pass it on to the next one that does.
            fits=lambda entry: entry.task_id == task_id and not waiter.is_full and self._gives_to(swarm_id),
        )
        freed = self.board.locks.waiting(terms.resources, lambda: waiter.woken.set())
        with self.board.offers.waiting(waiter), freed:
            while True:
                refusal: Refused | None = None
                answer: Answer = {}
                try:
                    answer = await self._try(caller, task_id, swarm_id, terms, waiter)
                except (NotReady, Paused, AtCapacity, ResourceBusy) as error:
                    if error.data.get("state") in life.FINAL_STATES:
                        raise
                    refusal = error
                    waiter.is_full = error.data.get("limit") == "slots"
                if refusal is None and answer["claimed"]:
                    self.board.offers.served(swarm_id)
                    return answer
                if not await self._may_look_again(waiter, deadline):
                    if refusal is not None:
                        raise refusal
                    return answer
                if waiter.has_changed:
                    waiter.has_changed = waiter.is_full = False

    async def claim_next(
        self,
        caller: Caller,
        swarm_id: str,
        *,
        n: int = 1,
        wait_ms: int = 0,
        lease_ms: int | None = None,
        bind: str | None = None,
        resume_token: str | None = None,
    ) -> Answer:
        """See `interface.Coordinator.claim_next`."""
        self._check_claim(swarm_id, wait_ms, lease_ms)
        rules.check_number("n", n, 1, MAX_CLAIMS)
        # A request that was answered before must not depend on what is ready now.
        earlier = await self._operations.replayed(caller, _CLAIM if n == 1 else _CLAIM_SEVERAL, swarm_id)
        if earlier is not None:
            return _with_token(earlier)
        with await self._bind(caller, bind, "claim_next", swarm_id) as holder:
            terms = Terms(lease_ms=lease_ms, holder=holder, resume_token=resume_token)
            return await self._claim_next(caller, swarm_id, n, wait_ms, terms)

    async def _claim_next(self, caller: Caller, swarm_id: str, n: int, wait_ms: int, terms: Terms) -> Answer:
        deadline = trio.current_time() + wait_ms / 1000
        wish = _Wish()

        def fits(kind: Kind) -> bool:
            return wish.allows(kind) and not self._host_drain and self._governor.is_match(swarm_id, kind[0])

        waiter = Waiter(swarm_id=swarm_id, fits=lambda entry: fits(entry.kind))
        with self.board.offers.waiting(waiter):
            while True:
                answer = await self._claim_best(caller, waiter, n, terms, wish)
                if answer is not None:
                    self.board.offers.served(swarm_id)
                    return answer
                if not await self._may_look_again(waiter, deadline):
                    return self._nothing_for(swarm_id, wish)
                if waiter.has_changed:
                    waiter.has_changed = False
                    wish.forget()

    async def _may_look_again(self, waiter: Waiter, deadline: float) -> bool:
        """Wait until there is a reason to look again; False once the deadline has passed without one.

        Only this waits against the clock: cutting a claim short could take the task and tell nobody.
        """
        if waiter.woken.is_set():
            self.board.offers.rearm(waiter)
            return True
        with trio.move_on_at(deadline):
            await waiter.woken.wait()
        return waiter.woken.is_set()

    async def _claim_best(self, caller: Caller, waiter: Waiter, n: int, terms: Terms, wish: _Wish) -> Answer | None:
        """Claim the best task that is free for this swarm, or the best `n`; None if there is none."""
        swarm_id = waiter.swarm_id
        coming = self._coming_for(waiter) if n == 1 else None
        if coming is None:
            await self.board.catch_up()

        def may_claim(tx: Tx) -> None:
            self._governor.require_owner(tx, caller, swarm_id)
            session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes)
            rules.require_session(swarm_id, session, terms)
            self._governor.check_route(tx, swarm_id, frozenset())
            if self._host_drain:
                raise pauses.refusal(f"give {swarm_id} work", "host", "this", self._host_drain)

        try:
            await self._operations.look(may_claim)
        except Paused as paused:
            wish.paused = paused
            return None
        except IfbusError as error:
            raise await self._refuse(caller, "claim_next", swarm_id, error) from None
        if coming is None:
            await self._governor.caught_up(swarm_id)
        wish.lost.clear()
        while True:
            before = wish.size
            entries = self._open_entries(waiter, wish, coming)
            if n > 1:
                several = await self._claim_several(caller, waiter, n, terms, wish, entries)
                if several is not None:
                    return several
            for entry in entries if n == 1 else ():
                if not entry.is_free_for(waiter) or not wish.allows(entry.kind):
                    continue
                try:
                    if entry.estimate_micro_usd or entry.key or entry.resources or self._has_slots(swarm_id):
                        # Asked first without a record: what a swarm cannot have now is no news each time that it looks.
                        await self._operations.look(partial(self._admit, swarm_id, entry))
                    return await self._try(caller, entry.task_id, swarm_id, terms, waiter, in_passing=True)
                except (NotQualified, BudgetExceeded) as error:
                    wish.note(entry, error)
                except AtCapacity as error:
                    if _is_of_slots(error):
                        wish.note(entry, error)
                except _Taken:
                    wish.lost.add(entry.task_id)
                except _MOMENTARY:
                    pass  # the board will show it in a moment
            if wish.size == before or len(wish.lost) > _MOST_LOST:
                return None
            coming = None
            await self.board.catch_up()
            await self._governor.caught_up(swarm_id)

    def _open_entries(self, waiter: Waiter, wish: _Wish, coming: Entry | None) -> list[Entry]:
        """The best of what is free for the swarm; only what is coming, if something is."""
        choices = dict.fromkeys(self._choices(waiter, wish) if coming is None else [coming])
        return [
            entry
            for entry in choices
            if entry.task_id not in wish.lost and entry.is_free_for(waiter) and wish.allows(entry.kind)
        ]

    def _admit(self, swarm_id: str, entry: Entry, tx: Tx) -> None:
        if entry.resources:
            self._require_free(tx, f"claim {entry.task_id}", list(entry.resources))
        self._governor.admit(tx, swarm_id, entry.task_id, entry.capabilities, entry.estimate_micro_usd)
        if entry.key:
            gates.require_open(tx, entry.task_id, self._task(tx, entry.task_id))
        session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes)
        if session is not None and session.slots:
            gates.require_slots(tx, entry.task_id, self._task(tx, entry.task_id), swarm_id, session)

    def _has_slots(self, swarm_id: str) -> bool:
        session = self.board.sessions.get(swarm_id)
        return session is not None and session[0].slots > 0

    def _choices(self, waiter: Waiter, wish: _Wish) -> list[Entry]:
        swarm_id = waiter.swarm_id
        pushed = [
            self.board.tasks[message.body["task_id"]]
            for _, message in self.board.mail.letters(swarm_id)
            if message.kind == "task" and message.body.get("task_id") in self.board.tasks
        ]
        pushed = [entry for entry in pushed if self.board.offers.is_open(entry.kind)]
        best = self.board.offers.candidates(
            waiter,
            lambda kind: wish.allows(kind) and self._governor.is_match(swarm_id, kind[0]),
            most=_CANDIDATES + len(wish.lost),
        )
        # What was pushed goes first, but for fillers: those wait for everything better, whoever sent them.
        return sorted([*sorted(pushed, key=lambda entry: entry.order), *best], key=lambda entry: entry.filler)

    def _coming_for(self, waiter: Waiter) -> Entry | None:
        """What the waiter was woken for, if that is not durable yet: claimed at once, it shares a commit with its creation."""
        offered = waiter.offered
        return None if offered is None else self.board.coming.get(offered.task_id)

    def _gives_to(self, swarm_id: str) -> bool:
        return not self._host_drain and not self._governor.seen_pause(swarm_id)

    def _nothing_for(self, swarm_id: str, wish: _Wish) -> Answer:
        if wish.paused is not None:
            return {"claimed": False, "refusal": wish.paused.to_wire()}
        ready = self.board.counts.get("ready", 0)
        data: Answer = {"swarm_id": swarm_id, "ready": ready, "state": "idle"}
        if wish.too_dear is not None:
            data["too_dear_usd"] = to_usd(wish.too_dear)
        changes: list[WouldChange] = [{"by": "time", "what": "wait for one", "call": "ifbus task next --wait 30s"}]
        if ready:
            what = "see what is ready; `ifbus why TASK` says what stands against one"
            changes.append({"by": "self", "what": what, "call": "ifbus task ls --state ready"})
        refusal = NotReady(f"nothing is ready for {swarm_id}: {ready} ready in all", data=data, would_change=changes)
        return {"claimed": False, "refusal": refusal.to_wire()}

    async def _try(
        self,
        caller: Caller,
        task_id: str,
        swarm_id: str,
        terms: Terms,
        waiter: Waiter | None = None,
        *,
        in_passing: bool = False,
    ) -> Answer:
        """Claim a task, and keep others who wait from trying meanwhile; if it comes to nothing, they hear of it.

        Args:
            in_passing: Another task would do as well: what stands against this one for the moment raises `_Taken`.
        """
        entry = self.board.tasks.get(task_id) or self.board.coming.get(task_id)
        if entry is not None:
            self.board.offers.take(entry)
        is_done = False
        try:
            if terms.resources or (entry is not None and entry.resources):
                await self.board.show_told()  # the bound on what a user holds counts by the board
            answer = await self._claim(caller, task_id, swarm_id, terms, in_passing)
            is_done = answer["claimed"] and "replayed" not in answer["receipt"]
            return answer
        except (NotReady, _Taken):
            self.board.refresh(task_id)  # by the time, perhaps: the wall clock was set
            raise
        finally:
            if entry is not None and not is_done:
                self.board.offers.give_up(entry, waiter)

    async def _claim_several(
        self, caller: Caller, waiter: Waiter, n: int, terms: Terms, wish: _Wish, entries: list[Entry]
    ) -> Answer | None:
        """Claim the best `n` of several in one commit, passing over what is refused; None if all of them are."""
        swarm_id = waiter.swarm_id
        leases = {entry: _Leases() for entry in entries}
        parts = {entry: self._claim_body(caller, entry.task_id, swarm_id, terms, leases[entry]) for entry in entries}
        won: dict[str, Answer] = {}

        def claim(tx: Tx) -> Answer:
            won.clear()
            taken: set[str] = set()  # resources
            for entry, part in parts.items():
                if len(won) == n:
                    break
                if not taken.isdisjoint(entry.resources):
                    continue
                try:
                    tx.attempt(partial(_fitting, part, entry.task_id, won))
                except _Full:
                    leases[entry].used.clear()
                    break
                except (*_PASSED_OVER, AlreadyClaimed) as refusal:
                    leases[entry].used.clear()
                    if isinstance(refusal, (AlreadyClaimed, NotReady)):
                        wish.lost.add(entry.task_id)
                    if isinstance(refusal, (NotQualified, BudgetExceeded)) or _is_of_slots(refusal):
                        wish.note(entry, refusal)
                except LimitExceeded:
                    leases[entry].used.clear()
                    if not won:
                        raise
                    break
                else:
                    taken.update(entry.resources)
            if not won:
                raise _NothingWon
            reserved = sum(self.board.tasks[name].estimate_micro_usd for name in won if name in self.board.tasks)
            tx.detail = {"swarm": swarm_id, "tasks": list(won), "reserved_usd": to_usd(reserved)}
            return {"claimed": True, "claims": list(won.values())}

        # The rest stands in for what is refused: others may try it meanwhile.
        tried = entries[:n]
        for entry in tried:
            self.board.offers.take(entry)
        is_done = False
        try:
            if any(entry.resources for entry in entries):
                await self.board.show_told()  # the bound on what a user holds counts by the board
            answer = await self._operations.run(caller, _CLAIM_SEVERAL, swarm_id, claim)
            is_done = "replayed" not in answer["receipt"]
            return _with_token(answer)
        except _NothingWon:
            return None
        except LeaseNotFound:  # the session's, which is just ending
            raise await self._refuse(caller, "claim_next", swarm_id, session_ended(swarm_id)) from None
        finally:
            for entry in entries:
                if not is_done or entry.task_id not in won:
                    self.board.refresh(entry.task_id)  # as in `_try`
                    if entry in tried:
                        self.board.offers.give_up(entry, waiter)
                for lease in leases[entry].unused(is_kept=entry.task_id in won):
                    self._retired.add(lease)

    async def _claim(self, caller: Caller, task_id: str, swarm_id: str, terms: Terms, in_passing: bool) -> Answer:
        leases = _Leases()
        claim = self._claim_body(caller, task_id, swarm_id, terms, leases)
        if in_passing:
            claim = partial(_or_taken, claim)
        try:
            answer = await self._operations.run(caller, _CLAIM, task_id, claim)
        except IfbusError as error:
            leases.used.clear()
            if isinstance(error, AlreadyClaimed):
                return {"claimed": False, "refusal": error.to_wire()}
            if isinstance(error, LeaseNotFound):  # the session's, which is just ending
                raise await self._refuse(caller, "claim_task", task_id, session_ended(swarm_id)) from None
            raise
        finally:  # cancelled, it may have been committed: then the lease stays
            for lease in leases.unused():
                self._retired.add(lease)
        return _with_token(answer)

    def _claim_body(self, caller: Caller, task_id: str, swarm_id: str, terms: Terms, leases: _Leases) -> Body:
        """The decision about one claim; the lease of its own that it takes, if it does, is noted in `leases`."""
        granted, used = leases.granted, leases.used

        async def grant(span_ms: int) -> int:
            granted.append(await self._store.grant(span_ms))
            return granted[0]

        def claim(tx: Tx) -> Answer:
            used.clear()
            self._governor.require_owner(tx, caller, swarm_id)
            task = self._task(tx, task_id)
            session_stored = tx.get_stored(SESSIONS + swarm_id)
            session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes)
            rules.require_session(swarm_id, session, terms)
            held = tx.get_stored(CLAIMS + task_id)
            if held is not None:
                holder = ClaimRecord.from_bytes(held.value)
                if session is not None and holder.swarm_id == swarm_id and holder.incarnation == session.incarnation:
                    return {
                        "claimed": True,
                        "claim": self._claim_answer(task_id, task, holder, session),
                        "token": held.create_revision,
                    }
                lease_left_ms = tx.obtain(f"left of lease {held.lease}", lambda: self._store.lease_left_ms(held.lease))
                raise rules.already_claimed(
                    task_id, holder, held.create_revision, now_ms=self._now_ms(), lease_left_ms=lease_left_ms
                )
            now_ms = self._now_ms()
            refusal = rules.not_ready(task_id, task, self._waits_for(tx, task_id, task), now_ms)
            if refusal is not None:
                raise refusal
            if self._host_drain:
                raise pauses.refusal(f"claim {task_id}", "host", "this", self._host_drain)
            gates.enter(tx, task_id, task)
            if session is not None and session_stored is not None and session.slots:
                gates.take_slots(tx, task_id, task, swarm_id, session, session_stored.lease)
            needed = [*task.resources, *terms.resources]
            taken = self._require_claimable(tx, task_id, caller.uid, needed) if needed else []
            # What an earlier claim of this swarm spent, if its end is not on record yet; `admit` forgets it.
            spent = self._governor.spent_on(tx, swarm_id, task_id)
            self._governor.admit(tx, swarm_id, task_id, frozenset(task.capabilities), task.estimate_micro_usd)
            asked = rules.terms_on(task, terms) if task.options else terms
            own, bound = rules.hang_on(session, asked)
            if not own and session is not None and session_stored is not None:
                lease, span_ms = session_stored.lease, session.lease_ms
            else:
                span_ms = asked.lease_ms or self._config.lease_ms
                self._require_lease(caller.uid, f"claim {task_id}")
                lease = tx.obtain(f"lease for {task_id}", partial(grant, span_ms))
                used[:] = granted
            record = ClaimRecord(
                swarm_id=swarm_id,
                incarnation=session.incarnation if session else 0,
                uid=caller.uid,
                lease_ms=span_ms,
                claimed_at_ms=now_ms,
                own_lease=own,
                with_session=own and asked is not terms and session is not None,
                reserved_micro_usd=task.estimate_micro_usd,
                percent=task.percent,
                note=task.note,
                bound=bound,
                ends_with=taken,
                given_by="" if self._peers is None else self._peers.daemon_id,
            )
            if taken:
                self._take_with_claim(tx, task_id, record, lease)
            tx.put(CLAIMS + task_id, record.to_map(), lease=lease, decoded=record)
            if task.route:
                tx.delete(f"{INBOX}{task.route}/task-{task_id}")
            counts = bool(task.options) and life.counts_attempts(task)
            if task.route or spent or counts:
                task = task.evolve(route="", spent_micro_usd=task.spent_micro_usd + spent)
                stored = life.begin_attempt(task, swarm_id) if counts else task
                tx.put(TASKS + task_id, stored.to_map())
            tx.detail["swarm"] = swarm_id
            if bound:
                tx.detail["bound_to"] = rules.describe_bound(bound)
            self._publish_board(tx, "claimed", task_id, swarm_id=swarm_id)
            return {"claimed": True, "claim": self._claim_answer(task_id, task, record, session)}

        return claim

    def _claim_answer(
        self, task_id: str, task: TaskRecord, claim: ClaimRecord, session: SessionRecord | None
    ) -> Answer:
        view = rules.claim_view(task_id, claim, bound=self._bound_view(rules.bound_of(claim, session)))
        view["task"] = rules.task_view(task_id, task, now_ms=0, claim=claim)
        if task.attempts and (pack := life.handover(task)) is not None:
            view["handover"] = pack
            for name in ("errors", "artefacts"):  # they are in there
                view["task"].pop(name, None)
        return view

    def _check_claim(self, swarm_id: str, wait_ms: int, lease_ms: int | None) -> None:
        check_identifier(swarm_id, "swarm_id")
        rules.check_span("wait_ms", wait_ms, 0, self._config.max_wait_ms)
        self._check_lease(lease_ms)


def _is_of_slots(refusal: IfbusError) -> bool:
    return isinstance(refusal, AtCapacity) and refusal.data["limit"] == "slots"


def _with_token(answer: Answer) -> Answer:
    # The fencing token is the revision that created the claim: this operation's own, unless the claim was there already.
    token = answer.pop("token", None) or answer["receipt"]["revision"]
    for claim in answer["claims"] if "claims" in answer else (answer["claim"],):
        claim["token"] = claim["task"]["token"] = token
    return answer


def _or_taken(part: Body, tx: Tx) -> Answer:
    try:
        return part(tx)
    except (AlreadyClaimed, *_MOMENTARY):
        raise _Taken from None


def _fitting(part: Body, task_id: str, won: dict[str, Answer], tx: Tx) -> None:
    """Do one claim of several, unless it is too much for one transaction or one answer."""
    answer = part(tx)
    if "token" in answer:
        raise _Full  # this session holds it already: the board is behind
    claims = [*won.values(), answer["claim"]]
    if won and (tx.reads > _MAX_READS or how_many_fit(claims) < len(claims)):
        raise _Full
    won[task_id] = answer["claim"]

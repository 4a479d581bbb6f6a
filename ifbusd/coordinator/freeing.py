"""Claims that end without a verdict: their lease ran out, or the process, connection or session that they were bound to has ended."""

from __future__ import annotations

from typing import Final

import trio

from ifbus.errors import Unavailable
from ifbus.money import to_usd
from ifbusd.coordinator import rules
from ifbusd.coordinator.bindings import Binding
from ifbusd.coordinator.board import LostClaim
from ifbusd.coordinator.core import Answer, Core, NothingToDo
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import (
    CLAIMS,
    DEAD,
    OPEN,
    SESSION,
    SESSIONS,
    TASKS,
    ClaimRecord,
    SessionRecord,
    TaskHistory,
    TaskRecord,
)
from ifbusd.operation import Tx
from ifbusd.peers import STAND_BY_S

# So many claims are put on record at a time; the store commits them together.
_AT_ONCE: Final = 64
_RETRY_S: Final = 0.5


class Freeing(Core):
    """Gives back what such claims held, puts their end on record and tells who held them."""

    # --- claims whose lease has ended ----------------------------------------------------------------

    async def reconcile(self) -> int:
        """Find money that is set aside for claims which are gone, and give it back; how many claims that were.

        A crash between a lease's end and its clean-up leaves such holds behind, so this runs before the first request. One
        between a registration and the end of what it replaced leaves void claims: their leases are ended too.
        """
        await self.board.catch_up()
        for swarm_id, (session, _) in self.board.sessions.items():
            for _, held in self.board.claims_of(swarm_id):
                if 0 < held.claim.incarnation < session.incarnation:
                    self._retired.add(held.lease)
        holds = await self._governor.list_holds()
        # Of what was lost since then the board knows more than that money was held for it.
        await self.board.catch_up()
        await self.board.wait_settled()
        known = {(lost.swarm_id, lost.task_id) for lost in self.board.lost.values()}
        left = [
            LostClaim(task_id=task_id, swarm_id=swarm_id, token=0)
            for swarm_id, task_id in holds
            if self.board.holder_of(task_id) != swarm_id and (swarm_id, task_id) not in known
        ]
        return await self._record_all(left)

    async def handle_lost_claims(self) -> None:
        """Give back what lost claims held and put them on record, until cancelled; `_may_serve` is set once the ledger was reconciled."""
        while True:
            await self.board.wait_lost()
            batch = list(self.board.lost.items())
            if batch and not self._goes_first():
                await trio.sleep(STAND_BY_S)  # all daemons see the loss: only if the first one has not done it
            await self._record_all([lost for _, lost in batch])
            for key, _ in batch:
                del self.board.lost[key]
            # What was lost meanwhile is left out there: where claims are lost all the time, a start would wait for ever.
            if self.board.has_gap:
                self.board.has_gap = False
                try:
                    await self.reconcile()
                except Unavailable:
                    self.board.has_gap = True
                    await trio.sleep(_RETRY_S)
                else:
                    self._may_serve.set()

    async def _record_all(self, lost: list[LostClaim]) -> int:
        recorded = 0

        async def record(one: LostClaim) -> None:
            nonlocal recorded
            recorded += await self._record_lost(one)

        for start in range(0, len(lost), _AT_ONCE):
            async with trio.open_nursery() as nursery:
                for one in lost[start : start + _AT_ONCE]:
                    nursery.start_soon(record, one)
        return recorded

    async def _record_lost(self, lost: LostClaim) -> bool:
        """Whether there was anything to give back or to record. However many daemons try, one of them does it."""
        chance = self._chance()

        def expire(tx: Tx) -> Answer:
            task = tx.read(TASKS + lost.task_id, TaskRecord.from_bytes)
            held = tx.get_stored(CLAIMS + lost.task_id)
            holder = None if held is None else ClaimRecord.from_bytes(held.value).swarm_id
            attempt = {} if task is None else TaskHistory.of(task).attempt
            swarm_id = lost.swarm_id or attempt.get("swarm_id", "")
            given_back = spent = 0
            # A new claim by the same swarm has taken the hold over: leave it alone.
            if swarm_id and holder != swarm_id:
                spent = self._governor.spent_on(tx, swarm_id, lost.task_id)
                given_back = self._governor.claim_ended(tx, swarm_id, lost.task_id, outcome="neutral")
            session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes) if swarm_id else None
            reason = rules.why_lost(lost.claim, session)
            if task is None:  # it was ended from outside and removed before anybody came to this
                if not (given_back or spent):
                    raise NothingToDo
                self._tell_freed(tx, lost.task_id, swarm_id, lost.token, given_back, reason)
                return {}
            # Where attempts count, the task knows of one that is not settled yet, and nobody claims it until then.
            is_new = held is None and bool(attempt) if life.counts_attempts(task) else lost.token > task.last_token
            if is_new:
                token = lost.token or task.last_token
                task = rules.after_claim(task, lost.claim, swarm_id, token, spent)
                task = self._after_loss(task, swarm_id, token, reason, chance)
            elif given_back or spent:  # later claims have come to their end meanwhile, or a crash hid which one it was
                task = task.evolve(attempts=task.attempts + 1, spent_micro_usd=task.spent_micro_usd + spent)
            else:
                raise NothingToDo
            tx.put(TASKS + lost.task_id, task.to_map())
            self._tell_freed(tx, lost.task_id, swarm_id, lost.token, given_back, reason)
            if task.state == DEAD:
                self._tell_dead(tx, lost.task_id, swarm_id)
            return {}

        return await self._surely("coordinator.expire_claim", lost.task_id, expire)

    def _after_loss(self, task: TaskRecord, swarm_id: str, token: int, reason: str, chance: float) -> TaskRecord:
        """The task with the lost attempt; one that has ended otherwise meanwhile stays so."""
        if task.state != OPEN:
            return task
        return life.after_failure(
            task,
            event="lose",
            reason=reason,
            error="",
            swarm_id=swarm_id,
            token=token,
            now_ms=self._now_ms(),
            chance=chance,
        )

    def _tell_dead(self, tx: Tx, task_id: str, swarm_id: str) -> None:
        tx.detail["state"] = DEAD
        self._publish_board(tx, DEAD, task_id, swarm_id=swarm_id)

    def _tell_freed(self, tx: Tx, task_id: str, swarm_id: str, token: int, given_back: int, reason: str) -> None:
        """Put the end of a claim without a verdict on record, and tell the board and the holder."""
        tx.detail.update(swarm=swarm_id, token=token, released_usd=to_usd(given_back), reason=reason)
        self._publish_board(tx, "lost", task_id, swarm_id=swarm_id, reason=reason)
        tx.publish(
            f"attention.{swarm_id}", {"kind": "lease_lost", "task_id": task_id, "token": token, "reason": reason}
        )

    # --- claims and sessions whose process or connection has ended -----------------------------------

    async def look_after_bindings(self) -> None:
        """Free what was bound to processes and connections that have ended, and let go of what nothing is bound to, until cancelled."""
        freeing: set[str] = set()

        async def free(binding: Binding) -> None:
            await self._free_bound(binding)
            if binding.keys:
                await trio.sleep(_RETRY_S)
            freeing.discard(binding.holder.id)
            self._bindings.tell_again([binding])

        async with trio.open_nursery() as nursery:
            while True:
                news = await self._bindings.wait_news()
                try:
                    await self.board.catch_up()  # it shows what was bound to them until now
                except Unavailable:
                    self._bindings.tell_again(news)
                    await trio.sleep(_RETRY_S)
                    continue
                for binding in news:
                    if self._bindings.forget_unused(binding) or not binding.has_ended:
                        continue
                    if binding.keys and binding.holder.id not in freeing:
                        freeing.add(binding.holder.id)
                        nursery.start_soon(free, binding)

    async def _free_bound(self, binding: Binding) -> None:
        """Free everything that hangs on a binding that has ended, each in a commit of its own, many at a time."""
        claims: list[str] = []
        sessions: list[str] = []
        for key in binding.keys:
            kind, _, name = key.partition("/")
            (claims if f"{kind}/" == CLAIMS else sessions).append(name)
        for swarm_id in sessions:
            claims += [name for name, held in self.board.claims_of(swarm_id) if held.claim.bound_to == SESSION]
        leases: list[int] = []
        for start in range(0, len(claims), _AT_ONCE):
            async with trio.open_nursery() as nursery:
                for task_id in claims[start : start + _AT_ONCE]:
                    nursery.start_soon(self._free_claim, task_id, binding, leases)
        # Only now: while the session lives its claims are freed for the reason that they have.
        for swarm_id in sessions:
            await self._end_bound_session(swarm_id, binding, leases)
        for lease in leases:
            self._retired.add(lease)
        await self.board.show_told()

    async def _free_claim(self, task_id: str, binding: Binding, leases: list[int]) -> None:
        own_lease = 0
        chance = self._chance()

        def free(tx: Tx) -> Answer:
            nonlocal own_lease
            task = self._task(tx, task_id)
            stored = tx.get_stored(CLAIMS + task_id)
            claim = tx.read(CLAIMS + task_id, ClaimRecord.from_bytes)
            if stored is None or claim is None:
                raise NothingToDo
            session = tx.read(SESSIONS + claim.swarm_id, SessionRecord.from_bytes)
            if rules.bound_of(claim, session).get("id") != binding.holder.id:
                raise NothingToDo
            own_lease = stored.lease if claim.own_lease else 0
            swarm_id, token = claim.swarm_id, stored.create_revision
            spent = self._governor.spent_on(tx, swarm_id, task_id)
            given_back = self._governor.claim_ended(tx, swarm_id, task_id, outcome="neutral")
            after = rules.after_claim(task, claim, swarm_id, token, spent)
            after = self._after_loss(after, swarm_id, token, binding.reason, chance)
            tx.put(TASKS + task_id, after.to_map())
            self._drop_claim(tx, task_id, claim)
            tx.detail["bound_to"] = rules.describe_bound(binding.holder.to_stored())
            self._tell_freed(tx, task_id, swarm_id, token, given_back, binding.reason)
            if after.state == DEAD:
                self._tell_dead(tx, task_id, swarm_id)
            return {}

        if await self._surely("coordinator.expire_claim", task_id, free) and own_lease:
            leases.append(own_lease)

    async def _end_bound_session(self, swarm_id: str, binding: Binding, leases: list[int]) -> None:
        lease = 0

        def end(tx: Tx) -> Answer:
            nonlocal lease
            stored = tx.get_stored(SESSIONS + swarm_id)
            session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes)
            if stored is None or session is None or session.bound.get("id") != binding.holder.id:
                raise NothingToDo
            lease = stored.lease
            tx.delete(SESSIONS + swarm_id)
            tx.delete(rules.begun_key(swarm_id, session.incarnation))
            bound_to = rules.describe_bound(session.bound)
            tx.detail.update(incarnation=session.incarnation, reason=binding.reason, bound_to=bound_to)
            ended = {"kind": "session_ended", "swarm_id": swarm_id, "reason": binding.reason, "bound_to": bound_to}
            tx.publish(f"attention.{swarm_id}", ended)
            return {}

        if await self._surely("coordinator.end_session", swarm_id, end):
            leases.append(lease)

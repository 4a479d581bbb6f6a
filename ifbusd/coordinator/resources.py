"""Named resources: one holder at a time, fenced, on the lease of a claim or session, or on one of their own.

A claim takes what its task names, and what it asks for besides, in its own transaction or not at all. Whatever ends the claim
frees them: they hang on its lease, and each transaction that drops the claim drops them too (`Core._drop_claim`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import trio

from ifbus.errors import InvalidParams, ResourceBusy
from ifbusd.codec import how_many_fit
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, limit_exceeded
from ifbusd.coordinator.locks import rules as locks
from ifbusd.coordinator.locks.rules import Lock
from ifbusd.coordinator.model import (
    CLAIMS,
    HELD,
    LOCKS,
    SESSIONS,
    WAITS,
    ClaimRecord,
    HeldRecord,
    LockRecord,
    SessionRecord,
    WaitRecord,
)
from ifbusd.coordinator.waiting import Waiting
from ifbusd.coordinator.waits import rules as waits
from ifbusd.coordinator.waits.rules import Edge
from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.store.base import LeaseNotFound

# A wait is in the graph this much longer than it lasts, should the daemon die over it.
_WAIT_MARGIN_MS = 10_000


@attrs.define(kw_only=True)
class _Basis:
    """What a hold is for, and the lease that it lives on.

    Attributes:
        lease, lease_ms: 0: each gets one of its own, of this length.
        claim: Of the task that it is for.
    """

    lease: int
    lease_ms: int
    task_id: str = ""
    claim: ClaimRecord | None = None
    incarnation: int = 0


class Resources(Waiting):
    """Acquire, release, list; and what `Claiming` does with the resources of a task."""

    async def acquire_resources(
        self,
        caller: Caller,
        swarm_id: str,
        resources: list[str],
        *,
        task_id: str | None = None,
        token: int | None = None,
        lease_ms: int | None = None,
        wait_ms: int = 0,
    ) -> Answer:
        """See `interface.Coordinator.acquire_resources`."""
        wanted = locks.check_resources(resources)
        if not wanted:
            raise InvalidParams("resources must name at least one", data={"param": "resources"})
        rules.check_span("wait_ms", wait_ms, 0, self._config.max_wait_ms)
        self._check_lease(lease_ms)
        if (task_id is None) != (token is None) or (task_id is not None and lease_ms is not None):
            raise InvalidParams("task_id and token go together, and without lease_ms", data={"param": "token"})
        deadline = trio.current_time() + wait_ms / 1000
        basis = (swarm_id, task_id or "", token or 0, lease_ms)
        freed = trio.Event()
        wait_id, wait_lease = "", 0
        try:
            with self.board.locks.waiting(wanted, lambda: freed.set()):
                while True:
                    freed = trio.Event()
                    await self.board.show_told()
                    try:
                        return await self._acquire(caller, wanted, *basis, wait_id=wait_id)
                    except ResourceBusy:
                        if not wait_ms:
                            raise
                        if not wait_id:
                            wait_id = f"W-{self._new_id()}"
                            wait_lease = await self._store.grant(wait_ms + _WAIT_MARGIN_MS)
                            await self._begin_wait(caller, wanted, swarm_id, basis[1], basis[2], wait_id, wait_lease)
                        # Only this waits against the clock: cutting a try short could take them and tell nobody.
                        with trio.move_on_at(deadline):
                            await freed.wait()
                        if not freed.is_set():
                            raise
        finally:
            if wait_lease:
                self._retired.add(wait_lease)

    async def _begin_wait(
        self, caller: Caller, wanted: list[str], swarm_id: str, task_id: str, token: int, wait_id: str, lease: int
    ) -> None:
        """Let everybody see that this waits for these. Raises would_deadlock."""
        record = WaitRecord(swarm_id=swarm_id, resources=wanted, at_ms=self._now_ms(), task_id=task_id)
        edges = [Edge(record.source, waits.resource(name), "resource", record.at_ms) for name in wanted]

        def begin(tx: Tx) -> Answer:
            self._governor.require_owner(tx, caller, swarm_id)
            if task_id:
                self._claims.require_holder(tx, task_id, swarm_id, token)
            self._add_edges(tx, f"wait for {', '.join(wanted)}", edges)
            tx.put(WAITS + wait_id, record.to_map(), lease=lease)
            tx.detail.update(swarm=swarm_id, resources=wanted)
            return {}

        # The caller's key is for the acquisition.
        unkeyed = attrs.evolve(caller, idempotency_key=None)
        await self._operations.run(unkeyed, "coordinator.wait_for_resources", swarm_id, begin)

    async def _acquire(
        self,
        caller: Caller,
        wanted: list[str],
        swarm_id: str,
        task_id: str,
        token: int,
        lease_ms: int | None,
        *,
        wait_id: str,
    ) -> Answer:
        granted: dict[str, int] = {}  # leases of their own, by name
        used: set[str] = set()
        what = f"acquire for {task_id}@{token}" if task_id else f"acquire for {swarm_id}"
        held_ids = {} if task_id else {name: f"H-{self._new_id()}" for name in wanted}

        async def grant(name: str, span_ms: int) -> int:
            granted[name] = await self._store.grant(span_ms)
            return granted[name]

        def acquire(tx: Tx) -> Answer:
            used.clear()
            self._governor.require_owner(tx, caller, swarm_id)
            basis = self._basis(tx, swarm_id, task_id, token, lease_ms)
            held = self._require_free(tx, what, wanted, mine=(swarm_id, basis))
            free = [name for name in wanted if name not in held]
            self._require_resources_left(caller.uid, what, len(free))
            for lock in held.values():
                if lock.record.own_lease:
                    tx.obtain(f"renewed {lock.lease}", partial(self._store.keep_alive, lock.lease))
            record = LockRecord(
                swarm_id=swarm_id,
                uid=caller.uid,
                at_ms=self._now_ms(),
                task_id=task_id,
                incarnation=basis.incarnation,
                own_lease=not basis.lease,
            )
            for name in free:
                lease = basis.lease
                if not lease:
                    self._require_lease(caller.uid, what)
                    lease = tx.obtain(f"lease {name}", partial(grant, name, basis.lease_ms))
                    used.add(name)
                held_id = held_ids.get(name, "")
                tx.put(LOCKS + name, record.evolve(held_id=held_id).to_map(), lease=lease)
                if held_id:
                    alone = HeldRecord(resource=name, swarm_id=swarm_id, incarnation=basis.incarnation)
                    tx.put(HELD + held_id, alone.to_map())
            if free:
                holder = waits.task(task_id) if task_id else waits.swarm(swarm_id)
                self._add_edges(tx, what, [Edge(waits.resource(name), holder, "held", record.at_ms) for name in free])
            if wait_id:
                tx.delete(WAITS + wait_id)
            if basis.claim is not None and free:
                self._end_with_claim(
                    tx, what, task_id, basis.claim, lease=basis.lease, keys=[LOCKS + name for name in free]
                )
            tx.detail.update(swarm=swarm_id, resources=wanted)
            if task_id:
                tx.detail.update(task=task_id, token=token)
            return {"fences": {name: lock.fence for name, lock in held.items()}, "lease_ms": basis.lease_ms}

        try:
            answer = await self._operations.run(caller, "coordinator.acquire_resources", swarm_id, acquire)
        except LeaseNotFound:  # of a claim, session or hold that is just ending
            used.clear()
            error = rules.lease_over(task_id, token) if task_id else rules.session_ended(swarm_id)
            raise await self._refuse(caller, "acquire_resources", swarm_id, error) from None
        except Exception:
            used.clear()
            raise
        finally:  # cancelled, it may have been committed: then the leases stay
            for name, lease in granted.items():
                if name not in used:
                    self._retired.add(lease)
        # A fence is the revision that took it: this operation's own, unless it was held already.
        taken = dict.fromkeys(wanted, answer["receipt"]["revision"])
        return {**answer, "fences": {**taken, **answer["fences"]}}

    def _basis(self, tx: Tx, swarm_id: str, task_id: str, token: int, lease_ms: int | None) -> _Basis:
        if task_id:
            stored, claim = self._claims.require_holder(tx, task_id, swarm_id, token)
            return _Basis(
                lease=stored.lease,
                lease_ms=claim.lease_ms,
                task_id=task_id,
                claim=claim,
                incarnation=claim.incarnation,
            )
        session_stored = tx.get_stored(SESSIONS + swarm_id)
        if lease_ms is None and session_stored is not None:
            session = SessionRecord.from_bytes(session_stored.value)
            return _Basis(lease=session_stored.lease, lease_ms=session.lease_ms, incarnation=session.incarnation)
        return _Basis(lease=0, lease_ms=lease_ms or self._config.lease_ms)

    def _require_free(
        self, tx: Tx, what: str, wanted: list[str], *, mine: tuple[str, _Basis] | None = None
    ) -> dict[str, Lock]:
        """What of these the caller holds already, on the same terms.

        Raises:
            ResourceBusy: Somebody holds one.
        """
        held = {}
        for name in wanted:
            stored = tx.get_stored(LOCKS + name)
            if stored is None:
                continue
            lock = _lock_of(stored.value, stored.create_revision, stored.lease)
            if mine is not None and _is_held_by(lock.record, *mine):
                held[name] = lock
                continue
            left_ms = tx.obtain(f"left {lock.lease}", partial(self._store.lease_left_ms, lock.lease))
            raise locks.resource_busy(what, name, lock, now_ms=self._now_ms(), lease_left_ms=left_ms)
        return held

    def _require_resources_left(self, uid: int, what: str, more: int) -> None:
        # By the board, so what arrives together may pass the bound together; that does no harm.
        used, allowed = self.board.locks.count_of(uid), self._config.resources_per_uid
        if used + more > allowed:
            raise limit_exceeded(what, "resources_per_uid", used, allowed, "release some: ifbus lock ls")

    # --- with a claim --------------------------------------------------------------------------------

    def _require_claimable(self, tx: Tx, task_id: str, uid: int, names: list[str]) -> list[str]:
        """The keys of the resources that a claim takes, each once, all free. Raises resource_busy, limit_exceeded."""
        wanted = locks.check_resources(names)
        self._require_free(tx, f"claim {task_id}", wanted)
        self._require_resources_left(uid, f"claim {task_id}", len(wanted))
        return [LOCKS + name for name in wanted]

    def _take_with_claim(self, tx: Tx, task_id: str, claim: ClaimRecord, lease: int) -> None:
        """Take the resources that end with a claim that is being made."""
        record = LockRecord(
            swarm_id=claim.swarm_id,
            uid=claim.uid,
            at_ms=claim.claimed_at_ms,
            task_id=task_id,
            incarnation=claim.incarnation,
        )
        for key in claim.ends_with:
            tx.put(key, record.to_map(), lease=lease)
        tx.detail["resources"] = locks.resources_of(claim.ends_with)

    # --- release and list ----------------------------------------------------------------------------

    async def release_resources(self, caller: Caller, swarm_id: str, resources: dict[str, int]) -> Answer:
        """See `interface.Coordinator.release_resources`."""
        fences = locks.check_fences(resources)
        own: list[int] = []

        def release(tx: Tx) -> Answer:
            own.clear()
            self._governor.require_owner(tx, caller, swarm_id)
            of_claims: dict[str, list[str]] = {}
            for name, fence in fences.items():
                stored = tx.get_stored(LOCKS + name)
                found = None if stored is None else _lock_of(stored.value, stored.create_revision, stored.lease)
                lock = locks.require_fence(name, fence, swarm_id, found)
                tx.delete(LOCKS + name)
                if lock.record.held_id:
                    tx.delete(HELD + lock.record.held_id)
                if lock.record.own_lease:
                    own.append(lock.lease)
                elif lock.record.task_id:
                    of_claims.setdefault(lock.record.task_id, []).append(LOCKS + name)
            for task_id, keys in of_claims.items():
                held = tx.get_stored(CLAIMS + task_id)
                claim = tx.read(CLAIMS + task_id, ClaimRecord.from_bytes)
                if held is not None and claim is not None:
                    left = claim.evolve(ends_with=[key for key in claim.ends_with if key not in keys])
                    tx.put(CLAIMS + task_id, left.to_map(), lease=held.lease, decoded=left)
            tx.deletes_suffice = (
                not of_claims
            )  # a claim that still named them would end them once more, whosever they are by then
            tx.detail.update(swarm=swarm_id, resources=list(fences))
            return {"released": list(fences)}

        answer = await self._operations.run(caller, "coordinator.release_resources", swarm_id, release)
        for lease in own:
            self._retired.add(lease)
        return answer

    async def list_resources(
        self, caller: Caller, *, prefix: str = "", holder: str = "", after: str = "", limit: int = 50
    ) -> Answer:
        """See `interface.Coordinator.list_resources`."""
        rules.check_limit(limit)
        await self.board.catch_up()
        matching = sorted(
            (name, lock)
            for name, lock in self.board.locks.held.items()
            if name.startswith(prefix) and (not holder or lock.record.swarm_id == holder)
        )
        shown = [(name, lock) for name, lock in matching if name > after]
        views: list[dict[str, Any]] = []
        for name, lock in shown[:limit]:
            views.append(locks.lock_view(name, lock, await self._store.lease_left_ms(lock.lease)))
        views = views[: how_many_fit(views)]
        more = len(shown) > len(views)
        return {"resources": views, "total": len(matching), "next": views[-1]["resource"] if views and more else None}


def _lock_of(data: bytes, fence: int, lease: int) -> Lock:
    return Lock(record=LockRecord.from_bytes(data), fence=fence, lease=lease)


def _is_held_by(record: LockRecord, swarm_id: str, basis: _Basis) -> bool:
    """Whether it is this swarm's, for the same task or none, in the same session: then it is not taken a second time."""
    if (record.swarm_id, record.task_id) != (swarm_id, basis.task_id):
        return False
    return record.own_lease or record.incarnation == basis.incarnation

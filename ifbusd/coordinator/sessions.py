"""Sessions: a swarm is alive while its lease is renewed; each registration is a new incarnation (DESIGN 2)."""

from __future__ import annotations

from contextlib import suppress

from ifbus.errors import IfbusError, InvalidParams
from ifbus.models import check_capabilities, check_identifier
from ifbus.money import MicroUsd
from ifbusd.codec import ANSWER_BYTES, how_many_fit
from ifbusd.coordinator.bindings import EXPECTED_OF_SESSION
from ifbusd.coordinator.core import Answer, Core
from ifbusd.coordinator.gates.rules import check_slots
from ifbusd.coordinator.model import LEASE, SESSION, SESSIONS, TASKS, ClaimRecord, Holder, SessionRecord, TaskRecord
from ifbusd.coordinator.rules import (
    begun_key,
    claim_view,
    describe_bound,
    drop_heavy,
    hash_of,
    proves,
    session_ended,
    task_view,
)
from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.store.base import KeyValue, LeaseNotFound


class Sessions(Core):
    """Registration, heartbeat, end."""

    async def register_swarm(
        self,
        caller: Caller,
        swarm_id: str,
        *,
        capabilities: list[str] | None = None,
        cost_per_hour_usd: MicroUsd | None = None,
        budget_usd: MicroUsd | None = None,
        model: str | None = None,
        orchestrator: bool = False,
        lease_ms: int | None = None,
        resume_token: str | None = None,
        bind: str | None = None,
        slots: int | None = None,
    ) -> Answer:
        """See `interface.Coordinator.register_swarm`."""
        check_slots(slots)
        check_identifier(swarm_id, "swarm_id")
        wanted = None if capabilities is None else check_capabilities(capabilities)
        self._check_lease(lease_ms)
        _check_bind(bind)
        span_ms = lease_ms or self._config.lease_ms
        replaced: list[int] = []  # the lease of the session that this one replaces
        granted: list[int] = []
        used: list[int] = []

        async def grant() -> int:
            granted.append(await self._store.grant(span_ms))
            return granted[0]

        def register(tx: Tx) -> Answer:
            replaced.clear()
            used.clear()
            stored = tx.get_stored(SESSIONS + swarm_id)
            session = None if stored is None else SessionRecord.from_bytes(stored.value)
            resumed = resume_token is not None and session is not None and proves(session, resume_token)
            profile = self._governor.save_profile(
                tx,
                caller,
                swarm_id,
                capabilities=wanted,
                cost_per_hour_micro_usd=cost_per_hour_usd,
                budget_micro_usd=budget_usd,
                model=model,
                incarnation=session.incarnation if resumed and session else None,
                orchestrator=orchestrator,
            )
            if resumed and session is not None and stored is not None:
                token, lease = str(resume_token), stored.lease
                tx.obtain("renewed", lambda: self._keep(lease, swarm_id))
                record = session if holder is None else session.evolve(bound=_stored(holder))
            else:
                if stored is None:  # else one takes the other's place
                    self._require_lease(caller.uid, f"register {swarm_id}")
                token, lease = self._new_secret(), tx.obtain("lease", grant)
                used[:] = granted
                replaced[:] = [] if stored is None else [stored.lease]
                if session is not None:  # this operation's entry tells of its end
                    tx.delete(begun_key(swarm_id, session.incarnation))
                tx.put(begun_key(swarm_id, profile["incarnation"]), caller.uid)
                record = SessionRecord(
                    incarnation=profile["incarnation"],
                    uid=caller.uid,
                    lease_ms=span_ms,
                    token_hash=hash_of(token),
                    started_at_ms=self._now_ms(),
                    bound=_stored(holder),
                    slots=slots or 0,
                )
            tx.put(SESSIONS + swarm_id, record.to_map(), lease=lease)
            tx.detail.update(incarnation=record.incarnation, resumed=resumed)
            if record.bound:
                tx.detail["bound_to"] = describe_bound(record.bound)
            return {
                "profile": {**profile, "alive": True},
                "incarnation": record.incarnation,
                "resumed": resumed,
                "lease_ms": record.lease_ms,
                "resume_token": token,
                "bound": self._bound_view(record.bound),
                "slots": record.slots or None,
            }

        with await self._bind(caller, bind, "register_swarm", swarm_id) as holder:
            try:
                answer = await self._operations.run(caller, "coordinator.register_swarm", swarm_id, register)
                if "replayed" in answer["receipt"]:
                    used.clear()
                    replaced.clear()
            except IfbusError as error:
                used.clear()
                if isinstance(error, LeaseNotFound):  # it resumed a session that was just ending
                    raise await self._refuse(caller, "register_swarm", swarm_id, session_ended(swarm_id)) from None
                raise
            finally:  # cancelled, it may have been committed: then the lease stays
                for lease in granted:
                    if lease not in used:
                        self._retired.add(lease)
        await self.board.catch_up()
        await self._governor.caught_up(swarm_id)
        await self._free_former(swarm_id, answer["incarnation"], replaced)
        answer["claims"] = await self._claims_held(swarm_id) if answer["resumed"] else []
        answer["inbox_seq"] = max((seq for seq, _ in self.board.mail.letters(swarm_id)), default=0)
        return answer

    async def _free_former(self, swarm_id: str, incarnation: int, unused: list[int]) -> None:
        """End leases that are no longer used, and the claims of earlier incarnations. They are void since the commit (`Claims.require_holder`); this frees the tasks."""
        former = set(unused)
        former |= {held.lease for _, held in self.board.claims_of(swarm_id) if 0 < held.claim.incarnation < incarnation}
        for lease in former:
            self._retired.add(lease)
        await self._retired.wait_revoked(former)

    async def _claims_held(self, swarm_id: str) -> list[Answer]:
        views = []
        for task_id, held in self.board.claims_of(swarm_id):
            stored = await self._store.get(TASKS + task_id)
            if stored is not None:
                task = TaskRecord.from_bytes(stored.value)
                view = claim_view(task_id, held.claim, bound=self._bound_now(held.claim))
                view.update(
                    token=held.token,
                    task=task_view(task_id, task, now_ms=self._now_ms(), claim=held.claim, token=held.token),
                )
                views.append(view)
        # Many claims do not fit into one answer with all that their tasks say, nor do very many at all: `get_task` has the
        # rest, `renew_session` names them all.
        for view in views[how_many_fit(views, ANSWER_BYTES // 2) :]:
            drop_heavy(view["task"])
        return views[: how_many_fit(views)]

    async def renew_session(self, caller: Caller, swarm_id: str, resume_token: str) -> Answer:
        """See `interface.Coordinator.renew_session`."""
        try:
            stored = await self._operations.look_now(lambda tx: self._session(tx, caller, swarm_id, resume_token))
            if stored is None:
                raise session_ended(swarm_id)
            lease_ms = await self._keep(stored.lease, swarm_id)
            await self._keep_claims(swarm_id, SessionRecord.from_bytes(stored.value).incarnation)
        except IfbusError as error:
            raise await self._refuse(caller, "renew_session", swarm_id, error) from None
        await self.board.catch_up()  # a claim that was just made must not be missing
        bound = self._bound_view(SessionRecord.from_bytes(stored.value).bound)
        return {"lease_ms": lease_ms, "claims": self.board.handles_of(swarm_id), "bound": bound}

    async def bind_session(self, caller: Caller, swarm_id: str, resume_token: str, bind: str) -> Answer:
        """See `interface.Coordinator.bind_session`."""
        _check_bind(bind)

        def rebind(tx: Tx) -> Answer:
            stored = self._session(tx, caller, swarm_id, resume_token)
            if stored is None:
                raise session_ended(swarm_id)
            record = SessionRecord.from_bytes(stored.value).evolve(bound=_stored(holder))
            tx.put(SESSIONS + swarm_id, record.to_map(), lease=stored.lease)
            tx.detail.update(incarnation=record.incarnation, bound_to=describe_bound(record.bound or {"kind": LEASE}))
            return {"bound": self._bound_view(record.bound)}

        with await self._bind(caller, bind, "bind_session", swarm_id) as holder:
            try:
                return await self._operations.run(caller, "coordinator.bind_session", swarm_id, rebind)
            except LeaseNotFound:  # it was just ending
                raise await self._refuse(caller, "bind_session", swarm_id, session_ended(swarm_id)) from None

    async def end_session(self, caller: Caller, swarm_id: str, resume_token: str) -> Answer:
        """See `interface.Coordinator.end_session`."""
        ended: list[int] = []
        await self.board.catch_up()

        def end(tx: Tx) -> Answer:
            ended.clear()
            stored = self._session(tx, caller, swarm_id, resume_token)
            if stored is None:
                return {"freed": []}
            ended.append(stored.lease)
            tx.delete(SESSIONS + swarm_id)
            tx.deletes_suffice = True
            incarnation = SessionRecord.from_bytes(stored.value).incarnation
            tx.delete(begun_key(swarm_id, incarnation))
            freed = []
            for task_id, held in self.board.claims_of(swarm_id):
                if _goes_with(held.claim, incarnation):
                    ended.append(held.lease)
                elif held.lease != stored.lease:
                    continue
                freed.append(task_id)
            tx.detail["freed"] = freed
            return {"freed": freed}

        answer = await self._operations.run(caller, "coordinator.end_session", swarm_id, end)
        for lease in ended:
            self._retired.add(lease)
        await self._retired.wait_revoked(ended)
        return answer

    def _session(self, tx: Tx, caller: Caller, swarm_id: str, resume_token: str) -> KeyValue | None:
        """The live session that the token proves, None if there is none at all."""
        self._governor.require_owner(tx, caller, swarm_id)
        stored = tx.get_stored(SESSIONS + swarm_id)
        if stored is not None and not proves(SessionRecord.from_bytes(stored.value), resume_token):
            raise session_ended(swarm_id)
        return stored

    async def _keep_claims(self, swarm_id: str, incarnation: int) -> None:
        """Renew the claims that live with the session on leases of their own."""
        for _, held in self.board.claims_of(swarm_id):
            if _goes_with(held.claim, incarnation):
                with suppress(LeaseNotFound):  # it has just ended, which its holder hears from the list of claims
                    await self._store.keep_alive(held.lease)

    async def _keep(self, lease: int, swarm_id: str) -> int:
        try:
            return await self._store.keep_alive(lease)
        except LeaseNotFound:
            raise session_ended(swarm_id) from None


def _goes_with(claim: ClaimRecord, incarnation: int) -> bool:
    return claim.with_session and claim.incarnation == incarnation


def _check_bind(bind: str | None) -> None:
    if bind == SESSION:
        raise InvalidParams(
            f"cannot bind a session to a session: expected {EXPECTED_OF_SESSION}",
            data={"param": "bind", "expected": EXPECTED_OF_SESSION},
        )


def _stored(holder: Holder | None) -> Answer:
    return {} if holder is None or holder.kind == LEASE else holder.to_stored()

"""What a holder does with its claim: renew, bind, report, end."""

from __future__ import annotations

from typing import Any, Literal

from ifbus.errors import IfbusError
from ifbus.models import check_identifier
from ifbus.money import to_usd
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, packed_size
from ifbusd.coordinator.model import (
    CLAIMS,
    COMPLETED,
    FAILED,
    OPEN,
    SESSION,
    SESSIONS,
    TASKS,
    SessionRecord,
    TaskRecord,
)
from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.store.base import KeyValue, LeaseNotFound


class Holding(Core):
    """The holder's verbs; each takes the fencing token."""

    async def renew_claim(self, caller: Caller, task_id: str, swarm_id: str, token: int) -> Answer:
        """See `interface.Coordinator.renew_claim`."""

        def held(tx: Tx) -> KeyValue:
            self._governor.require_owner(tx, caller, swarm_id)
            return self._claims.require_holder(tx, task_id, swarm_id, token)[0]

        try:
            stored = await self._operations.look(held)
            lease_ms = await self._renew(stored, task_id, token)
        except IfbusError as error:
            raise await self._refuse(caller, "renew_claim", task_id, error) from None
        await self._store.barrier()
        return {"lease_ms": lease_ms}

    async def _renew(self, stored: KeyValue, task_id: str, token: int) -> int:
        try:
            return await self._store.keep_alive(stored.lease)
        except LeaseNotFound:
            raise rules.lease_over(task_id, token) from None

    async def report_progress(
        self, caller: Caller, task_id: str, swarm_id: str, token: int, percent: int, *, note: str = ""
    ) -> Answer:
        """See `interface.Coordinator.report_progress`."""
        rules.check_percent(percent)
        rules.check_text("note", note, rules.MAX_NOTE)

        def progress(tx: Tx) -> Answer:
            self._governor.require_owner(tx, caller, swarm_id)
            stored, claim = self._claims.require_holder(tx, task_id, swarm_id, token)
            task = self._task(tx, task_id)
            lease_ms = tx.obtain("renewed", lambda: self._renew(stored, task_id, token))
            now = claim.evolve(percent=percent, note=note, progress_at_ms=self._now_ms())
            if rules.is_evidence(claim, percent, note):
                spent = self._governor.spent_on(tx, swarm_id, task_id)
                now = now.evolve(evidence_at_ms=now.progress_at_ms, evidence_micro_usd=spent)
            tx.put(CLAIMS + task_id, now.to_map(), lease=stored.lease, decoded=now)
            tx.detail.update(swarm=swarm_id, token=token, percent=percent)
            self._publish_board(tx, "progress", task_id, swarm_id=swarm_id, percent=percent, note=note)
            return {"task": self._view(task_id, task, now, token), "lease_ms": lease_ms}

        try:
            return await self._operations.run(caller, "coordinator.report_progress", task_id, progress)
        except LeaseNotFound:
            raise await self._refuse(caller, "report_progress", task_id, rules.lease_over(task_id, token)) from None

    async def bind_claim(self, caller: Caller, task_id: str, swarm_id: str, token: int, bind: str) -> Answer:
        """See `interface.Coordinator.bind_claim`."""

        def rebind(tx: Tx) -> Answer:
            self._governor.require_owner(tx, caller, swarm_id)
            stored, claim = self._claims.require_holder(tx, task_id, swarm_id, token)
            if holder is not None and holder.kind != SESSION and not claim.own_lease:
                raise rules.lives_on_session(task_id, swarm_id, token)
            session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes)
            terms = rules.Terms(lease_ms=claim.lease_ms if claim.own_lease else None, holder=holder)
            rules.require_session(swarm_id, session, terms)
            _, bound = rules.hang_on(session, terms)
            now = claim.evolve(bound=bound)
            tx.put(CLAIMS + task_id, now.to_map(), lease=stored.lease, decoded=now)
            tx.detail.update(
                swarm=swarm_id, token=token, bound_to=rules.describe_bound(bound or {"kind": now.bound_to})
            )
            return {"bound_to": now.bound_to, "bound": self._bound_view(rules.bound_of(now, session))}

        with await self._bind(caller, bind, "bind_claim", task_id) as holder:
            try:
                return await self._operations.run(caller, "coordinator.bind_claim", task_id, rebind)
            except LeaseNotFound:
                raise await self._refuse(caller, "bind_claim", task_id, rules.lease_over(task_id, token)) from None

    # --- the end -------------------------------------------------------------------------------------

    async def complete_task(
        self, caller: Caller, task_id: str, swarm_id: str, token: int, *, result: Any = None
    ) -> Answer:
        """See `interface.Coordinator.complete_task`."""
        rules.check_result_size(packed_size(result), 0)
        return await self._end(caller, "complete_task", task_id, swarm_id, token, result=result)

    async def fail_task(
        self, caller: Caller, task_id: str, swarm_id: str, token: int, error: str, *, retry: bool = False
    ) -> Answer:
        """See `interface.Coordinator.fail_task`."""
        rules.check_text("error", error, rules.MAX_ERROR)
        return await self._end(
            caller, "release_task" if retry else "fail_task", task_id, swarm_id, token, error=error, is_failure=True
        )

    async def release_task(self, caller: Caller, task_id: str, swarm_id: str, token: int, *, note: str = "") -> Answer:
        """See `interface.Coordinator.release_task`."""
        rules.check_text("note", note, rules.MAX_NOTE)
        return await self._end(caller, "release_task", task_id, swarm_id, token, note=note)

    async def _end(
        self,
        caller: Caller,
        verdict: str,
        task_id: str,
        swarm_id: str,
        token: int,
        *,
        result: Any = None,
        error: str = "",
        note: str = "",
        is_failure: bool = False,
    ) -> Answer:
        check_identifier(task_id, "task_id")
        state = {"complete_task": COMPLETED, "fail_task": FAILED, "release_task": OPEN}[verdict]
        own_lease = 0

        def end(tx: Tx) -> Answer:
            nonlocal own_lease
            own_lease = 0
            self._governor.require_owner(tx, caller, swarm_id)
            task = self._task(tx, task_id)
            if state != OPEN and task.state == state and (task.last_token, task.last_holder) == (token, swarm_id):
                tx.detail.update(swarm=swarm_id, token=token, replayed=True)
                return self._ended(task_id, task, 0) | {"replayed": True}
            stored, claim = self._claims.require_holder(tx, task_id, swarm_id, token)
            outcome: Literal["ok", "failed", "neutral"] = (
                "ok" if state == COMPLETED else "failed" if is_failure else "neutral"
            )
            spent = self._governor.spent_on(tx, swarm_id, task_id)
            given_back = self._governor.claim_ended(tx, swarm_id, task_id, outcome=outcome)
            ended = rules.after_claim(task, claim, swarm_id, token, spent).evolve(
                state=state,
                percent=100 if state == COMPLETED else claim.percent,
                note=note or claim.note,
                result=result,
                error=error,
                ended_at_ms=self._now_ms() if state != OPEN else 0,
            )
            if result is not None:
                rules.check_result_size(packed_size(result), packed_size(ended.evolve(result=None).to_map()))
            tx.put(TASKS + task_id, ended.to_map(), decoded=ended)
            self._drop_claim(tx, task_id, claim)
            if claim.own_lease:
                own_lease = stored.lease
            tx.detail.update(swarm=swarm_id, token=token)
            if error:
                tx.detail["error"] = error[:200]
            event = {COMPLETED: "completed", FAILED: "failed", OPEN: "released"}[state]
            self._publish_board(tx, event, task_id, swarm_id=swarm_id)
            return self._ended(task_id, ended, given_back)

        answer = await self._operations.run(caller, f"coordinator.{verdict}", task_id, end)
        if own_lease:
            self._retired.add(own_lease)
        if answer.pop("replayed", False):
            answer["receipt"]["replayed"] = True
        return answer

    def _ended(self, task_id: str, task: TaskRecord, given_back: int) -> Answer:
        unblocked = []
        if task.state == COMPLETED:
            freed = (name for name in self.board.dependants_of(task_id) if self.board.tasks[name].unmet <= {task_id})
            unblocked = sorted(freed)[: rules.MAX_UNBLOCKED]
        view = rules.task_view(task_id, task)
        view["claimed_at_ms"] = task.last_claimed_at_ms  # of the claim that ended, also where the task goes on
        return {
            "task": view,
            "spent_usd": to_usd(task.spent_micro_usd),
            "released_usd": to_usd(given_back),
            "unblocked": unblocked,
        }

"""What a holder does with its claim: renew, bind, report, end."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from ifbus.errors import IfbusError, InvalidParams
from ifbus.models import check_identifier
from ifbus.money import to_usd
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, packed_size
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import (
    CLAIMS,
    COMPLETED,
    DEAD,
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
from ifbusd.signature import Signature
from ifbusd.store.base import KeyValue, LeaseNotFound


@attrs.frozen
class Ending:
    """A claim's end by its holder's word.

    Attributes:
        verdict: ``complete``, ``fail`` or ``release``.
        retry: As `interface.Coordinator.fail_task`.
        chance: From 0 to 1, for the backoff.
    """

    verdict: Literal["complete", "fail", "release"]
    task_id: str
    swarm_id: str
    token: int
    result: Any = attrs.field(default=None, kw_only=True)
    error: str = attrs.field(default="", kw_only=True)
    note: str = attrs.field(default="", kw_only=True)
    retry: bool | None = attrs.field(default=None, kw_only=True)
    chance: float = attrs.field(default=0.0, kw_only=True)

    @property
    def finals(self) -> tuple[str, ...]:
        """How the task stands if this very end is on record already."""
        return _FINALS[self.verdict]


def _from_wire(index: int, swarm_id: str, fields: dict[str, Any]) -> Ending:
    try:
        ending = Ending("complete", swarm_id=swarm_id, **_COMPLETED.bind([dict(fields)]))
        check_identifier(ending.task_id, "task_id")
    except InvalidParams as error:
        error.data["index"] = index
        raise
    return ending


def _completed(caller: Caller, task_id: str, token: int, result: Any = None) -> None:
    """What one of `interface.Coordinator.complete_tasks` is."""


_COMPLETED = Signature.of(_completed)
_FINALS = {"complete": (COMPLETED,), "fail": (FAILED, DEAD), "release": ()}


class Holding(Core):
    """The holder's verbs; each takes the fencing token."""

    async def renew_claim(self, caller: Caller, task_id: str, swarm_id: str, token: int) -> Answer:
        """See `interface.Coordinator.renew_claim`."""

        def held(tx: Tx) -> KeyValue:
            self._governor.require_owner(tx, caller, swarm_id)
            return self._claims.require_holder(tx, task_id, swarm_id, token)[0]

        try:
            stored = await self._operations.look_now(held)
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
        self,
        caller: Caller,
        task_id: str,
        swarm_id: str,
        token: int,
        percent: int,
        *,
        note: str = "",
        artefacts: list[Any] | None = None,
        blocked_on: str | None = None,
        next_action: str | None = None,
    ) -> Answer:
        """See `interface.Coordinator.report_progress`."""
        rules.check_percent(percent)
        rules.check_text("note", note, rules.MAX_NOTE)
        said = {"blocked_on": blocked_on, "next_action": next_action}
        outlook = {name: text for name, text in said.items() if text is not None}
        for name, text in outlook.items():
            rules.check_text(name, text, rules.MAX_NOTE)
        left = life.check_artefacts(artefacts or [])

        def progress(tx: Tx) -> Answer:
            self._governor.require_owner(tx, caller, swarm_id)
            stored, claim = self._claims.require_holder(tx, task_id, swarm_id, token)
            task = self._task(tx, task_id)
            self._require_in_time(task_id, token, task)
            lease_ms = tx.obtain("renewed", lambda: self._renew(stored, task_id, token))
            now = claim.evolve(percent=percent, note=note, progress_at_ms=self._now_ms(), **outlook)
            if rules.is_evidence(claim, percent, note):
                spent = self._governor.spent_on(tx, swarm_id, task_id)
                now = now.evolve(evidence_at_ms=now.progress_at_ms, evidence_micro_usd=spent)
            tx.put(CLAIMS + task_id, now.to_map(), lease=stored.lease, decoded=now)
            if left:  # with the task: they outlive the claim, however it ends
                task = life.with_artefacts(task, left)
                tx.put(TASKS + task_id, task.to_map(), decoded=task)
                tx.detail["artefacts"] = [artefact["name"] for artefact in left]
            tx.detail.update(swarm=swarm_id, token=token, percent=percent)
            self._publish_board(tx, "progress", task_id, swarm_id=swarm_id, percent=percent, note=note, **outlook)
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
            if session is not None and now.bound_to == SESSION:
                # Also where it was made before there was one.
                now = now.evolve(incarnation=session.incarnation)
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
        return await self._end(caller, Ending("complete", task_id, swarm_id, token, result=result))

    async def complete_tasks(self, caller: Caller, swarm_id: str, tasks: list[dict[str, Any]]) -> Answer:
        """See `interface.Coordinator.complete_tasks`."""
        rules.check_batch("tasks", len(tasks))
        endings = [_from_wire(index, swarm_id, fields) for index, fields in enumerate(tasks)]
        leases: list[int] = []

        def end(tx: Tx) -> Answer:
            leases.clear()
            self._governor.require_owner(tx, caller, swarm_id)
            outcomes: list[Answer] = []
            completed: set[str] = set()
            refused: dict[str, str] = {}
            for ending in endings:
                outcome: Answer = {"task_id": ending.task_id, "token": ending.token}
                try:
                    rules.check_result_size(packed_size(ending.result), 0)
                    # Not `tx.attempt`: a refusal stands by what it has read, and it writes nothing.
                    answer = self._end_claim(tx, ending, leases)
                except IfbusError as error:
                    if error.retryable:
                        raise
                    refused[ending.task_id] = error.code
                    outcomes.append({**outcome, "ok": False, "error": error.to_wire()})
                else:
                    completed.add(ending.task_id)
                    spent = {name: answer[name] for name in ("spent_usd", "released_usd")}
                    outcomes.append({**outcome, "ok": True, **spent})
            self._require_fits(tx, "complete these tasks", "fewer of them at a time")
            tx.detail.clear()
            tx.detail.update(swarm=swarm_id, completed=sorted(completed))
            if refused:
                tx.detail["refused"] = refused
            return {"outcomes": outcomes, "completed": len(completed), "unblocked": self._unblocked_by(completed)}

        answer = await self._operations.run(caller, "coordinator.complete_tasks", swarm_id, end)
        for lease in leases:
            self._retired.add(lease)
        return answer

    async def fail_task(
        self, caller: Caller, task_id: str, swarm_id: str, token: int, error: str, *, retry: bool | None = None
    ) -> Answer:
        """See `interface.Coordinator.fail_task`."""
        rules.check_text("error", error, rules.MAX_ERROR)
        ending = Ending("fail", task_id, swarm_id, token, error=error, retry=retry, chance=self._chance())
        return await self._end(caller, ending)

    async def release_task(self, caller: Caller, task_id: str, swarm_id: str, token: int, *, note: str = "") -> Answer:
        """See `interface.Coordinator.release_task`."""
        rules.check_text("note", note, rules.MAX_NOTE)
        return await self._end(caller, Ending("release", task_id, swarm_id, token, note=note))

    async def _end(self, caller: Caller, ending: Ending) -> Answer:
        check_identifier(ending.task_id, "task_id")
        leases: list[int] = []

        def end(tx: Tx) -> Answer:
            leases.clear()
            self._governor.require_owner(tx, caller, ending.swarm_id)
            tx.detail.update(swarm=ending.swarm_id, token=ending.token)
            return self._end_claim(tx, ending, leases)

        answer = await self._operations.run(caller, f"coordinator.{ending.verdict}_task", ending.task_id, end)
        for lease in leases:
            self._retired.add(lease)
        if answer.pop("replayed", False):
            answer["receipt"]["replayed"] = True
        return answer

    def _end_claim(self, tx: Tx, ending: Ending, leases: list[int]) -> Answer:
        """End a claim by its holder's word, within an operation; the leases that it lived on alone are added to `leases`.

        Writes nothing if it refuses.
        """
        task_id, swarm_id, token = ending.task_id, ending.swarm_id, ending.token
        task = self._task(tx, task_id)
        if task.state in ending.finals and (task.last_token, task.last_holder) == (token, swarm_id):
            tx.detail["replayed"] = True
            return self._ended(task_id, task, 0) | {"replayed": True}
        stored, claim = self._claims.require_holder(tx, task_id, swarm_id, token)
        self._require_in_time(task_id, token, task)
        spent = self._governor.spent_on(tx, swarm_id, task_id)
        ended = rules.after_claim(task, claim, swarm_id, token, spent)
        outcome: Literal["ok", "failed", "neutral"] = "neutral"
        if ending.verdict == "complete":
            outcome = "ok"
            ended = life.move(
                ended, "complete", COMPLETED, percent=100, error="", result=ending.result, ended_at_ms=self._now_ms()
            )
            if ending.result is not None:
                ended = rules.with_result(ended, packed_size(ending.result), packed_size)
        elif ending.verdict == "fail":
            outcome = "failed"
            ended = life.after_failure(
                ended,
                event="fail",
                reason="failed",
                error=ending.error,
                swarm_id=swarm_id,
                token=token,
                now_ms=self._now_ms(),
                chance=ending.chance,
                retry=ending.retry,
            )
            tx.detail["error"] = ending.error[:200]
            if ended.state != FAILED:
                tx.detail["state"] = ended.state
        else:
            note = ending.note or claim.note
            ended = life.move(
                life.end_attempt(ended, token, "released", ending.note), "release", OPEN, note=note, error=""
            )
        given_back = self._governor.claim_ended(tx, swarm_id, task_id, outcome=outcome)
        tx.put(TASKS + task_id, ended.to_map(), decoded=ended)
        self._drop_claim(tx, task_id, claim)
        # Without the rest it is a claim whose lease has ended, which is put right later; where attempts count it would cost one.
        tx.deletes_suffice = ending.verdict == "release" and not life.counts_attempts(task)
        if claim.own_lease:
            leases.append(stored.lease)
        answer = self._ended(task_id, ended, given_back)
        event = "released" if ended.state == OPEN else ended.state
        more = {"unblocked": answer["unblocked"]} if answer["unblocked"] else {}
        self._publish_board(tx, event, task_id, swarm_id=swarm_id, **more)
        return answer

    def _require_in_time(self, task_id: str, token: int, task: TaskRecord) -> None:
        if task.options and life.is_overdue(task, self._now_ms()):
            raise rules.overdue(task_id, token, life.deadline_at_ms(task))

    def _ended(self, task_id: str, task: TaskRecord, given_back: int) -> Answer:
        unblocked = self._unblocked_by({task_id}) if task.state == COMPLETED else []
        view = rules.task_view(task_id, task, now_ms=self._now_ms())
        view["claimed_at_ms"] = task.last_claimed_at_ms  # of the claim that ended, also where the task goes on
        return {
            "task": view,
            "spent_usd": to_usd(task.spent_micro_usd),
            "released_usd": to_usd(given_back),
            "unblocked": unblocked,
        }

    def _unblocked_by(self, completed: set[str]) -> list[str]:
        """Tasks that wait for nothing else but these, by the board; so many as an answer names."""
        waiting = {name for task_id in completed for name in self.board.dependants_of(task_id)}
        freed = sorted(name for name in waiting if self.board.tasks[name].unmet <= completed)
        return freed[: rules.MAX_UNBLOCKED]

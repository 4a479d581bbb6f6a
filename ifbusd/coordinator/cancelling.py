"""Ends that no holder asked for, and the way back: cancelled, expired; dead letters, requeued."""

from __future__ import annotations

import bisect

from ifbus.errors import NotReady, PermissionDenied
from ifbus.money import to_usd
from ifbusd.codec import how_many_fit
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, limit_exceeded
from ifbusd.coordinator.creating import keep_awaited, open_with, unique_key
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import (
    CANCELLED,
    CLAIMS,
    DEAD,
    EXPIRED,
    FAILED,
    INBOX,
    OPEN,
    TASKS,
    ClaimRecord,
    MessageRecord,
    TaskOptions,
    TaskRecord,
)
from ifbusd.identity import Caller
from ifbusd.operation import Tx

_EVENTS = {CANCELLED: "cancel", EXPIRED: "expire"}


class Cancelling(Core):
    """Cancel, requeue, dead letters."""

    async def cancel_task(self, caller: Caller, task_id: str, *, reason: str = "") -> Answer:
        """See `interface.Coordinator.cancel_task`."""
        rules.check_text("reason", reason, rules.MAX_NOTE)
        leases: list[int] = []

        def cancel(tx: Tx) -> Answer:
            leases.clear()
            task = self._task(tx, task_id)
            _require_say(caller, task_id, task, "cancel")
            if task.state == CANCELLED:
                return {"task": self._view(task_id, task), "released_usd": to_usd(0)}
            ended, given_back = self._end_from_outside(tx, task_id, task, CANCELLED, reason, caller.uid, leases)
            return {"task": self._view(task_id, ended), "released_usd": to_usd(given_back)}

        answer = await self._operations.run(caller, "coordinator.cancel_task", task_id[:128], cancel)
        for lease in leases:
            self._retired.add(lease)
        return answer

    def _end_from_outside(
        self, tx: Tx, task_id: str, task: TaskRecord, state: str, reason: str, uid: int, leases: list[int]
    ) -> tuple[TaskRecord, int]:
        """End an open task whatever it is at; its holder is told. The task, and micro-dollars given back.

        Args:
            state: `CANCELLED` or `EXPIRED`.
            uid: Who caused it.
            leases: Those that are no longer needed are added.

        Raises:
            NotReady: It is final already.
        """
        event = _EVENTS[state]
        stored = tx.get_stored(CLAIMS + task_id)
        claim = tx.read(CLAIMS + task_id, ClaimRecord.from_bytes)
        now_ms = self._now_ms()
        is_open = task.state == OPEN
        life.require(task_id, task.state if not is_open else life.CLAIMED if claim is not None else life.READY, event)
        given_back = 0
        if task.route:
            tx.delete(f"{INBOX}{task.route}/task-{task_id}")
            task = task.evolve(route="")
        if stored is not None and claim is not None:
            swarm_id, token = claim.swarm_id, stored.create_revision
            spent = self._governor.spent_on(tx, swarm_id, task_id)
            given_back = self._governor.claim_ended(tx, swarm_id, task_id, outcome="neutral")
            task = life.end_attempt(rules.after_claim(task, claim, swarm_id, token, spent), token, state, reason)
            self._drop_claim(tx, task_id, claim)
            if claim.own_lease:
                leases.append(stored.lease)
            tx.detail.update(swarm=swarm_id, token=token, released_usd=to_usd(given_back))
            self._tell_holder(tx, task_id, swarm_id, token, state, reason, uid, now_ms)
        history = {name: value for name, value in task.history.items() if name not in ("attempt", "retry_at_ms")}
        if reason:
            history["reason"] = reason
            tx.detail["reason"] = reason[:200]
        ended = life.move(task, event, state, ended_at_ms=now_ms, history=history, blocker="")
        tx.put(TASKS + task_id, ended.to_map(), decoded=ended)
        self._publish_board(tx, state, task_id, reason=reason)
        return ended, given_back

    def _tell_holder(
        self, tx: Tx, task_id: str, swarm_id: str, token: int, state: str, reason: str, uid: int, now_ms: int
    ) -> None:
        """By attention now, before its next answer; and by letter, for who has no connection at the moment."""
        what = "was cancelled" if state == CANCELLED else "has expired"
        told = {
            "kind": state,
            "task_id": task_id,
            "token": token,
            "handle": f"{task_id}@{token}",
            "reason": reason,
            "message": f"{task_id}@{token} {what}{f': {reason}' if reason else ''}; stop this work",
        }
        tx.publish(f"attention.{swarm_id}", dict(told))
        if self._has_room(swarm_id):
            letter = MessageRecord(kind="notice", body=told, uid=uid, at_ms=now_ms, urgent=True)
            self._put_message(tx, letter, swarm_id)

    # --- dead letters, and back ----------------------------------------------------------------------

    async def list_dead_letters(self, caller: Caller, *, after: str = "", limit: int = 50) -> Answer:
        """See `interface.Coordinator.list_dead_letters`."""
        rules.check_limit(limit)
        await self.board.catch_up()
        start = 0
        if after:
            place = self.board.dead_place(after)
            if place is None:
                raise self._no_task(after)
            start = bisect.bisect_right(self.board.dead, place)
        names = [name for *_, name in self.board.dead[start : start + limit]]
        views = []
        for name, (stored, _) in zip(names, await self._read_tasks(names), strict=True):
            if stored is not None:
                view = self._view(name, TaskRecord.from_bytes(stored.value))
                errors = view.get("errors", [])
                rules.drop_heavy(view)
                views.append({**view, "errors": errors})
        views = views[: how_many_fit(views)]
        has_more = bool(views) and len(self.board.dead) > start + len(views)
        return {
            "tasks": views,
            "total": len(self.board.dead),
            "next": views[-1]["task_id"] if has_more else None,
        }

    async def requeue_task(
        self, caller: Caller, task_id: str, *, reason: str = "", deadline_at_ms: int | None = None
    ) -> Answer:
        """See `interface.Coordinator.requeue_task`."""
        rules.check_text("reason", reason, rules.MAX_NOTE)
        await self.board.show_told()
        leases: list[int] = []

        def requeue(tx: Tx) -> Answer:
            leases.clear()
            task = self._task(tx, task_id)
            _require_say(caller, task_id, task, "requeue")
            now_ms = self._now_ms()
            is_claimed = tx.get_stored(CLAIMS + task_id) is not None
            is_waiting = task.state == OPEN and bool(self._waits_for(tx, task_id, task))
            state = life.state_of(task, is_claimed=is_claimed, is_waiting=is_waiting, now_ms=now_ms)
            life.require(task_id, state, "requeue")
            if task.state == OPEN:  # its deadline has passed, which is not on record yet
                task, _ = self._end_from_outside(tx, task_id, task, EXPIRED, "", caller.uid, leases)
            used, allowed = self.board.open_tasks(), self._config.open_tasks
            if used >= allowed:
                raise limit_exceeded(
                    f"requeue {task_id}", "open_tasks", used, allowed, "complete or fail some of the open ones"
                )
            again = life.requeued(task, now_ms, deadline_at_ms)
            life.check_options(TaskOptions.of(again), self._config, now_ms)
            self._require_dependencies(tx, task_id, again)
            for name in again.depends_on:
                if (record := self._dependency(tx, task_id, name)) is not None:
                    keep_awaited(tx, name, record, now_ms)
            _take_unique_key(tx, task_id, task.state, again, now_ms)
            tx.put(TASKS + task_id, again.to_map(), decoded=again)
            tx.detail.update(state=task.state, reason=reason[:200])
            self._publish_board(tx, "requeued", task_id)
            waiting = sorted(self._waits_for(tx, task_id, again))
            return {"task": rules.task_view(task_id, again, now_ms=now_ms, waits_for=waiting)}

        answer = await self._operations.run(caller, "coordinator.requeue_task", task_id[:128], requeue)
        for lease in leases:
            self._retired.add(lease)
        return answer

    def _require_dependencies(self, tx: Tx, task_id: str, task: TaskRecord) -> None:
        """Raise NotReady if the task would be cancelled again at once, because of one that it depends on."""
        failed = self._failed_dependency(tx, task_id, task)
        if failed is not None:
            name, state = failed
            raise NotReady(
                f"cannot requeue {task_id}: it is cancelled with {name}, which is {state}",
                data={"task_id": task_id, "state": task.state, "waits_for": [name]},
                would_change=[
                    {"by": "self", "what": f"{name} is requeued first", "call": f"ifbus task requeue {name}"}
                ],
            )

    def _failed_dependency(self, tx: Tx, task_id: str, task: TaskRecord) -> tuple[str, str] | None:
        """One that the task depends on and is to be cancelled with, and its state; None if there is none."""
        if TaskOptions.of(task).on_dependency_failure == "cancel":
            for name in task.depends_on:
                record = self._dependency(tx, task_id, name)
                if record is not None and record.state in (FAILED, DEAD, CANCELLED, EXPIRED):
                    return name, record.state
        return None


def _take_unique_key(tx: Tx, task_id: str, state: str, task: TaskRecord, now_ms: int) -> None:
    """Give a task that is opened again from a final state its unique key back. Raises NotReady if another open one has it."""
    key = TaskOptions.of(task).unique_key
    if not key:
        return
    existing = open_with(tx, task.uid, key, now_ms)
    if existing is not None:
        raise NotReady(
            f"cannot requeue {task_id}: {existing} is open and has its unique key",
            data={"task_id": task_id, "state": state, "unique_key": key, "existing": existing},
            would_change=[
                {"by": "other", "what": f"{existing} comes to its end", "call": f"ifbus task show {existing}"}
            ],
        )
    tx.put(unique_key(task.uid, key), task_id)


def _require_say(caller: Caller, task_id: str, task: TaskRecord, verb: str) -> None:
    if not (caller.is_operator or caller.uid == task.uid):
        raise PermissionDenied(
            f"cannot {verb} {task_id}: that is for its creator (uid {task.uid}) and operators",
            data={"task_id": task_id, "uid": caller.uid, "owner_uid": task.uid},
            would_change=[{"by": "other", "what": f"uid {task.uid} or an operator does it"}],
        )

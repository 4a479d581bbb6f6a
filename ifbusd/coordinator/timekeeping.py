"""What the time asks for: deadlines, dependants of tasks that failed, and final tasks that were kept for long enough.

The board says whose time may have come; each is decided again in a transaction, so several daemons may find the same at once, and
one that starts finds what was left. A scheduled start and a backoff need nothing of it: they follow from the time (`life.rules`).
"""

from __future__ import annotations

from typing import Final

import trio

from ifbus.errors import Unavailable
from ifbusd.codec import unpack
from ifbusd.coordinator.cancelling import Cancelling
from ifbusd.coordinator.core import Answer, NothingToDo
from ifbusd.coordinator.creating import unique_key
from ifbusd.coordinator.gates import checks as gates
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import CANCELLED, COMPLETED, EXPIRED, OPEN, TASKS, TaskOptions, TaskRecord
from ifbusd.identity import ITSELF
from ifbusd.operation import Body, Tx
from ifbusd.peers import STAND_BY_S

# So many tasks are looked after at a time, the ends each in a commit of its own, which the store puts together.
_AT_ONCE: Final = 64
# So many are removed in one transaction: three keys each, and etcd takes 128 operations.
_REMOVED_AT_ONCE: Final = 40
# One that cannot be removed because others wait for it is looked at again after this.
_KEPT_MS: Final = 60_000


class Timekeeping(Cancelling):
    """Looks after tasks whose time has come."""

    async def keep_time(self) -> None:
        """Do so until cancelled."""
        while True:
            await self.board.wait_due(self._config.clock_tick_ms / 1000)
            due = self.board.take_due(_AT_ONCE)
            if due and not self._goes_first():
                await trio.sleep(STAND_BY_S)  # all daemons see it: only if the first one has not done it
            async with trio.open_nursery() as nursery:
                for task_id, what in due:
                    if what == "expire":
                        nursery.start_soon(self._expire, task_id)
                    elif what == "cancel":
                        nursery.start_soon(self._cancel_dependant, task_id)
                final = [task_id for task_id, what in due if what == "remove"]
                for start in range(0, len(final), _REMOVED_AT_ONCE):
                    nursery.start_soon(self._remove, final[start : start + _REMOVED_AT_ONCE])

    async def _expire(self, task_id: str) -> None:
        leases: list[int] = []

        def expire(tx: Tx) -> Answer:
            leases.clear()
            task = tx.read(TASKS + task_id, TaskRecord.from_bytes)
            if task is None or not life.is_overdue(task, self._now_ms()):
                raise NothingToDo
            self._end_from_outside(tx, task_id, task, EXPIRED, "its deadline has passed", ITSELF.uid, leases)
            return {}

        await self._end_surely("coordinator.expire_task", task_id, expire, leases)
        self.board.refresh(task_id)  # where there was nothing to do, the wall clock was set back

    async def _cancel_dependant(self, task_id: str) -> None:
        leases: list[int] = []

        def cancel(tx: Tx) -> Answer:
            leases.clear()
            task = tx.read(TASKS + task_id, TaskRecord.from_bytes)
            failed = None if task is None or task.state != OPEN else self._failed_dependency(tx, task_id, task)
            if task is None or failed is None:
                raise NothingToDo
            name, state = failed
            tx.detail["dependency"] = name
            self._end_from_outside(tx, task_id, task, CANCELLED, f"{name} is {state}", ITSELF.uid, leases)
            return {}

        await self._end_surely("coordinator.cancel_task", task_id, cancel, leases)

    async def _end_surely(self, op: str, task_id: str, body: Body, leases: list[int]) -> None:
        if await self._surely(op, task_id, body):
            for lease in leases:
                self._retired.add(lease)

    async def _remove(self, task_ids: list[str]) -> None:
        kept: list[str] = []
        try:
            await self.board.catch_up()  # it shows who depends on them, but for those who mark them after that
        except Unavailable:
            kept += task_ids
            self._look_later(kept)
            return

        def remove(tx: Tx) -> Answer:
            kept.clear()
            removed = []
            now_ms = self.board.retention.now_ms()
            for task_id in task_ids:
                task = tx.read(TASKS + task_id, TaskRecord.from_bytes)
                if task is None or task.state == OPEN:
                    continue
                if not self._may_go(task_id, task, now_ms):
                    kept.append(task_id)
                    continue
                tx.delete(TASKS + task_id)
                if key := TaskOptions.of(task).unique_key:
                    key = unique_key(task.uid, key)
                    stored = tx.get(key)
                    if stored is not None and unpack(stored) == task_id:
                        tx.delete(key)
                gates.forget(tx, task_id, task)
                removed.append(task_id)
            if not removed:
                raise NothingToDo
            tx.detail["tasks"] = removed
            return {}

        await self._surely("coordinator.remove_tasks", "", remove)
        self._look_later(kept)
        await self.board.show_told()  # how many there are is counted there

    def _look_later(self, task_ids: list[str]) -> None:
        for task_id in task_ids:
            self.board.keep(task_id, self.board.retention.now_ms() + _KEPT_MS)

    def _may_go(self, task_id: str, task: TaskRecord, now_ms: int) -> bool:
        is_over = life.removable_at_ms(task, self._config.retention_ms) <= now_ms
        if task.state == COMPLETED:
            return is_over or self.board.is_overfull
        # An open one that waits for it would find it missing, which is what it finds of a completed one.
        awaited_at_ms = task.history.get("awaited_at_ms", 0) if task.history else 0
        is_awaited = bool(self.board.dependants_of(task_id)) or awaited_at_ms > now_ms - _KEPT_MS
        return (is_over or self.board.is_overfull) and not is_awaited

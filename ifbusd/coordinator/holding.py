"""What a holder does with its claim, and what happens to a claim that ends by itself."""

from __future__ import annotations

from typing import Any, Final, Literal

import trio

from ifbus.errors import IfbusError, StaleToken, Unavailable
from ifbus.models import check_identifier
from ifbus.money import to_usd
from ifbusd.coordinator import rules
from ifbusd.coordinator.board import LostClaim
from ifbusd.coordinator.core import Answer, Core, packed_size
from ifbusd.coordinator.model import CLAIMS, COMPLETED, FAILED, OPEN, TASKS, ClaimRecord, TaskRecord
from ifbusd.identity import Caller, Peer
from ifbusd.operation import Tx
from ifbusd.store.base import KeyValue, LeaseNotFound

# What the daemon does by itself is on record under a uid that no peer has.
ITSELF: Final = Caller(peer=Peer(uid=-1, gid=-1, pid=0))
# So many lost claims are put on record at a time; the store commits them together.
_AT_ONCE: Final = 64
_RETRY_S: Final = 0.5


class _NothingLost(Exception):
    """The claim ended with a verdict, or its end is on record already; leaves the operation without a trace."""


class Holding(Core):
    """Renew, report, end; and give back what was lost."""

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
            raise _lease_over(task_id, token) from None

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
            tx.put(CLAIMS + task_id, now.to_map(), lease=stored.lease, decoded=now)
            tx.detail.update(swarm=swarm_id, token=token, percent=percent)
            self._publish_board(tx, "progress", task_id, swarm_id=swarm_id, percent=percent, note=note)
            return {"task": self._view(task_id, task, now, token), "lease_ms": lease_ms}

        try:
            return await self._operations.run(caller, "coordinator.report_progress", task_id, progress)
        except LeaseNotFound:
            raise await self._refuse(caller, "report_progress", task_id, _lease_over(task_id, token)) from None

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
            tx.delete(CLAIMS + task_id)
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

    # --- claims that ended by themselves -------------------------------------------------------------

    async def reconcile(self) -> int:
        """Find money that is set aside for claims which are gone, and give it back; how many claims that were.

        A crash between a lease's end and its clean-up leaves such holds behind, so this runs before the first request.
        """
        await self.board.catch_up()
        holds = await self._governor.list_holds()
        known = {(lost.swarm_id, lost.task_id) for lost in self.board.lost.values()}
        left = [
            LostClaim(task_id=task_id, swarm_id=swarm_id, token=0)
            for swarm_id, task_id in holds
            if self.board.holder_of(task_id) != swarm_id and (swarm_id, task_id) not in known
        ]
        return await self._record_all(left)

    async def handle_lost_claims(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give back what lost claims held and put them on record, until cancelled; ready once the ledger was reconciled."""
        while True:
            await self.board.wait_lost()
            batch = list(self.board.lost.items())[:_AT_ONCE]
            await self._record_all([lost for _, lost in batch])
            for key, _ in batch:
                del self.board.lost[key]
            if self.board.has_gap and not self.board.lost:
                self.board.has_gap = False
                try:
                    await self.reconcile()
                except Unavailable:
                    self.board.has_gap = True
                    await trio.sleep(_RETRY_S)
                else:
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED

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
        """Whether there was anything to give back or to record."""

        def expire(tx: Tx) -> Answer:
            task = self._task(tx, lost.task_id)
            held = tx.get_stored(CLAIMS + lost.task_id)
            holder = None if held is None else ClaimRecord.from_bytes(held.value).swarm_id
            given_back = spent = 0
            # A new claim by the same swarm has taken the hold over: leave it alone.
            if holder != lost.swarm_id:
                spent = self._governor.spent_on(tx, lost.swarm_id, lost.task_id)
                given_back = self._governor.claim_ended(tx, lost.swarm_id, lost.task_id, outcome="neutral")
            if lost.token > task.last_token:
                task = rules.after_claim(task, lost.claim, lost.swarm_id, lost.token, spent)
            elif given_back or spent:  # later claims have come to their end meanwhile, or a crash hid which one it was
                task = task.evolve(attempts=task.attempts + 1, spent_micro_usd=task.spent_micro_usd + spent)
            else:
                raise _NothingLost
            tx.put(TASKS + lost.task_id, task.to_map())
            tx.detail.update(swarm=lost.swarm_id, token=lost.token, released_usd=to_usd(given_back))
            self._publish_board(tx, "expired", lost.task_id, swarm_id=lost.swarm_id)
            tx.publish(
                f"attention.{lost.swarm_id}",
                {"kind": "lease_lost", "task_id": lost.task_id, "token": lost.token},
            )
            return {}

        while True:
            try:
                await self._operations.run(ITSELF, "coordinator.expire_claim", lost.task_id, expire)
            except _NothingLost:
                return False
            except IfbusError as error:
                if not error.retryable:
                    return False  # the task is gone, and with it whatever was held; the refusal is on record
                await trio.sleep(_RETRY_S)  # the store has no room, or does not answer: it must come back or end us
            else:
                return True


def _lease_over(task_id: str, token: int) -> StaleToken:
    return StaleToken(
        f"cannot renew {task_id}@{token}: its lease has run out",
        data={"task_id": task_id, "token": token, "owner": None},
        would_change=[
            {"by": "self", "what": "stop this work; claim the task again", "call": f"ifbus task claim {task_id}"}
        ],
    )

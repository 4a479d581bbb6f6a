"""The board's verbs for everybody: look at a task, list them, explain what a claim would meet."""

from __future__ import annotations

import trio

from ifbus.errors import IfbusError, InvalidParams, NotFound, ResourceBusy
from ifbus.models import check_identifier
from ifbusd.codec import how_many_fit
from ifbusd.coordinator import rules
from ifbusd.coordinator.clocks import rules as clocks
from ifbusd.coordinator.core import Answer
from ifbusd.coordinator.gates import checks as gates
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import CLAIMS, SESSIONS, ClaimRecord, SessionRecord, TaskRecord
from ifbusd.coordinator.resources import Resources
from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.store.base import KeyValue

# Tasks per slice between two looks at the scheduler: half a millisecond.
_LOOKED_AT = 1_000


class Tasks(Resources):
    """Tasks as such."""

    async def get_task(self, caller: Caller, task_id: str, *, consistent: bool = False) -> Answer:
        """See `interface.Coordinator.get_task`."""
        check_identifier(task_id, "task_id")
        if consistent:
            await self._store.sync()
        revision = self._store.revision
        [(stored, held)] = await self._read_tasks([task_id])
        if stored is None and not consistent:
            await self._store.sync()  # another host may have created it just now
            [(stored, held)] = await self._read_tasks([task_id])
        if stored is None:
            raise self._no_task(task_id)
        await self.board.catch_up()
        view = self._stored_view(task_id, stored, held)
        if held is not None:
            claim = ClaimRecord.from_bytes(held.value)
            view["lease_ms"] = claim.lease_ms
            left_ms = await self._store.lease_left_ms(held.lease)
            if left_ms is not None:
                view["lease_left_ms"] = left_ms
            view["clocks"] = await self._clocks(task_id, TaskRecord.from_bytes(stored.value), claim, left_ms)
        return {"task": view, "revision": revision}

    async def _clocks(self, task_id: str, task: TaskRecord, claim: ClaimRecord, left_ms: int | None) -> Answer:
        spent = await self._operations.look(lambda tx: self._governor.spent_on(tx, claim.swarm_id, task_id))
        shown = clocks.read(claim, task.estimate_micro_usd, spent, left_ms, now_ms=self._now_ms(), config=self._config)
        return shown.to_wire(claim.bound_to, self._bound_now(claim))

    def _stored_view(self, task_id: str, stored: KeyValue, held: KeyValue | None) -> Answer:
        claim = None if held is None else ClaimRecord.from_bytes(held.value)
        return self._view(task_id, TaskRecord.from_bytes(stored.value), claim, held and held.create_revision)

    async def list_tasks(
        self,
        caller: Caller,
        *,
        states: list[str] | None = None,
        holder: str = "",
        grep: str = "",
        after: str = "",
        limit: int = 50,
        consistent: bool = False,
    ) -> Answer:
        """See `interface.Coordinator.list_tasks`."""
        rules.check_limit(limit)
        for state in states or ():
            if state not in life.STATES:
                raise InvalidParams(
                    f"states must be among {', '.join(life.STATES)}, got {state!r:.40}", data={"param": "states"}
                )
        if consistent:
            await self._store.sync()
        await self.board.catch_up()
        revision = self.board.revision
        if after and after not in self.board.tasks:
            raise self._no_task(after)
        wanted, word = frozenset(states or life.STATES), grep.casefold()
        total, shown, is_before = 0, [], bool(after)
        entries = list(self.board.tasks.values())
        for first in range(0, len(entries), _LOOKED_AT):
            for entry in entries[first : first + _LOOKED_AT]:
                if (
                    entry.shown in wanted
                    and (not holder or (entry.held is not None and entry.held.swarm_id == holder))
                    and (not word or word in entry.task_id.casefold() or word in entry.title.casefold())
                ):
                    total += 1
                    if not is_before:
                        shown.append(entry.task_id)
                is_before = is_before and entry.task_id != after
            await trio.lowlevel.checkpoint()
        names, views = shown[:limit], []
        for name, (stored, held) in zip(names, await self._read_tasks(names), strict=True):
            if stored is not None:
                view = self._stored_view(name, stored, held)
                rules.drop_heavy(view)
                views.append(view)
        views = views[: how_many_fit(views)]
        last = views[-1]["task_id"] if views else None
        return {
            "tasks": views,
            "total": total,
            "next": last if last is not None and last != shown[-1] else None,
            "counts": {state: number for state, number in self.board.counts.items() if number},
            "revision": revision,
        }

    async def explain_claim(self, caller: Caller, task_id: str, swarm_id: str) -> Answer:
        """See `interface.Coordinator.explain_claim`."""
        check_identifier(swarm_id, "swarm_id")
        await self.board.catch_up()
        answer = await self._operations.look(lambda tx: self._explain(tx, caller, task_id, swarm_id))
        await self._store.barrier()
        return answer

    def _explain(self, tx: Tx, caller: Caller, task_id: str, swarm_id: str) -> Answer:
        task = self._task(tx, task_id)
        held = tx.get_stored(CLAIMS + task_id)
        checks = []
        owner_error: IfbusError | None = None
        try:
            self._governor.require_owner(tx, caller, swarm_id)
        except NotFound:
            raise
        except IfbusError as error:
            owner_error = error
        checks.append(rules.check_result("owner", owner_error, f"{swarm_id} is yours"))
        free: IfbusError | None = None
        if held is not None:
            free = rules.already_claimed(
                task_id,
                ClaimRecord.from_bytes(held.value),
                held.create_revision,
                now_ms=self._now_ms(),
                lease_left_ms=tx.obtain(f"left of lease {held.lease}", lambda: self._store.lease_left_ms(held.lease)),
            )
        checks.append(rules.check_result("free", free, "nobody holds it"))
        done = ", ".join(task.depends_on) + " completed" if task.depends_on else "waits for nothing"
        not_ready = rules.not_ready(task_id, task, self._waits_for(tx, task_id, task), self._now_ms())
        checks.append(rules.check_result("ready", not_ready, done))
        checks.append(rules.check_result("open", gates.why_closed(tx, task_id, task), gates.describe(task)))
        session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes)
        if session is not None and session.slots:
            full = gates.why_no_slots(tx, task_id, task, swarm_id, session)
            checks.append(rules.check_result("slots", full, f"it weighs {task.weight} of {session.slots} slots"))
        if task.resources:
            busy: IfbusError | None = None
            try:
                self._require_free(tx, f"claim {task_id}", task.resources)
            except ResourceBusy as error:
                busy = error
            checks.append(rules.check_result("resources", busy, f"{', '.join(task.resources)} free"))
        needs = frozenset(task.capabilities)
        checks += self._governor.explain(tx, swarm_id, needs, task.estimate_micro_usd)
        best: Answer | None = None
        for swarm in self._governor.rank(needs, limit=1):
            facts = {check["check"]: check["data"] for check in self._governor.explain(tx, swarm, needs, 0)}
            best = {"swarm_id": swarm, "overlap": facts["match"]["overlap"]}
        return {
            "task_id": task_id,
            "swarm_id": swarm_id,
            "would_succeed": all(check["ok"] for check in checks),
            "checks": checks,
            "best": best,
        }

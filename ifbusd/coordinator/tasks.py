"""Tasks and claims: create, look, claim, and everything that a holder does."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import trio

from ifbus.errors import (
    AlreadyClaimed,
    AlreadyExists,
    BudgetExceeded,
    IfbusError,
    InvalidParams,
    LimitExceeded,
    NotFound,
    NotQualified,
    NotReady,
    StaleToken,
)
from ifbus.models import check_identifier
from ifbus.money import NO_MONEY, MicroUsd, to_usd
from ifbusd.coordinator import rules
from ifbusd.coordinator.board import Entry, LostClaim, Waiter
from ifbusd.coordinator.core import Answer, Core, packed_size
from ifbusd.coordinator.model import (
    CLAIMS,
    COMPLETED,
    FAILED,
    INBOX,
    OPEN,
    SESSIONS,
    TASK_COUNTER,
    TASKS,
    ClaimRecord,
    SessionRecord,
    TaskRecord,
)
from ifbusd.identity import ITSELF, Caller
from ifbusd.operation import Tx
from ifbusd.store.base import LeaseNotFound
from ifbusd.store.codec import unpack

# So many of the best ready tasks are tried before claim_next says that none is for this swarm.
_CANDIDATES = 16


class Tasks(Core):
    """The board's verbs."""

    async def create_task(
        self,
        caller: Caller,
        title: str,
        *,
        task_id: str | None = None,
        description: str = "",
        capabilities: list[str] | None = None,
        depends_on: list[str] | None = None,
        filler: bool = False,
        priority: int = 0,
        estimate_usd: MicroUsd = NO_MONEY,
        payload: dict[str, Any] | None = None,
        milestones: list[Any] | None = None,
    ) -> Answer:
        """See `interface.Coordinator.create_task`."""
        wanted, needed = sorted(set(capabilities or ())), list(dict.fromkeys(depends_on or ()))
        rules.check_new_task(
            title=title,
            description=description,
            capabilities=wanted,
            depends_on=needed,
            priority=priority,
            payload_bytes=packed_size(payload or {}),
            milestones=milestones or [],
        )
        if task_id is not None:
            check_identifier(task_id, "task_id")
        if len(self.board.tasks) >= self._config.open_tasks:
            raise LimitExceeded(
                f"cannot create a task: {self._config.open_tasks} are there",
                data={"limit": "open_tasks", "used": len(self.board.tasks), "allowed": self._config.open_tasks},
            )

        async def create(tx: Tx) -> Answer:
            counted = await tx.get(TASK_COUNTER)
            n = (unpack(counted) if counted else 0) + 1
            name = task_id if task_id is not None else f"T-{n}"
            while await tx.get_stored(TASKS + name) is not None:
                if task_id is not None:
                    raise AlreadyExists(
                        f"cannot create task {name}: there is one",
                        data={"task_id": name},
                        would_change=[{"by": "self", "what": "another id, or none", "call": f"ifbus task show {name}"}],
                    )
                n += 1  # somebody gave a task this very name
                name = f"T-{n}"
            for dependency in needed:
                await self._task(tx, dependency)
            record = TaskRecord(
                n=n,
                title=title,
                description=description,
                capabilities=wanted,
                depends_on=needed,
                filler=filler,
                priority=priority,
                estimate_micro_usd=estimate_usd,
                payload=payload or {},
                milestones=milestones or [],
                created_at_ms=self._now_ms(),
                uid=caller.uid,
            )
            tx.put(TASK_COUNTER, n)
            tx.put(TASKS + name, record.to_map())
            tx.detail["title"] = title
            self._publish_board(tx, "created", name)
            waiting = await self._waits_for(tx, record)
            return {"task": rules.task_view(name, record, waits_for=sorted(waiting))}

        return await self._operations.run(caller, "coordinator.create_task", task_id or "", create)

    async def get_task(self, caller: Caller, task_id: str) -> Answer:
        """See `interface.Coordinator.get_task`."""
        check_identifier(task_id, "task_id")
        stored = await self._store.get(TASKS + task_id)
        if stored is None:
            raise self._no_task(task_id)
        held = await self._store.get(CLAIMS + task_id)
        await self._store.barrier()
        await self.board.catch_up()
        claim = None if held is None else ClaimRecord.from_bytes(held.value)
        view = self._view(task_id, TaskRecord.from_bytes(stored.value), claim, held and held.create_revision)
        if held is not None and claim is not None:
            view["lease_left_ms"] = await self._store.lease_left_ms(held.lease)
            view["lease_ms"] = claim.lease_ms
        return {"task": view}

    async def list_tasks(
        self,
        caller: Caller,
        *,
        states: list[str] | None = None,
        holder: str = "",
        grep: str = "",
        after: str = "",
        limit: int = 50,
    ) -> Answer:
        """See `interface.Coordinator.list_tasks`."""
        rules.check_span("limit", limit, 1, 200)
        for state in states or ():
            if state not in rules.STATES:
                raise InvalidParams(
                    f"states must be among {', '.join(rules.STATES)}, got {state!r:.40}", data={"param": "states"}
                )
        await self._store.barrier()
        await self.board.catch_up()
        start = 0
        if after:
            entry = self.board.tasks.get(after)
            if entry is None:
                raise self._no_task(after)
            start = entry.n
        wanted, word = frozenset(states or rules.STATES), grep.casefold()
        matching = [
            entry
            for entry in self.board.tasks.values()
            if entry.shown in wanted
            and (not holder or (entry.held is not None and entry.held.swarm_id == holder))
            and (not word or word in entry.task_id.casefold() or word in entry.title.casefold())
        ]
        shown = [entry for entry in matching if entry.n > start][: limit + 1]
        views = [await self._entry_view(entry) for entry in shown[:limit]]
        return {
            "tasks": views,
            "total": len(matching),
            "next": shown[limit - 1].task_id if len(shown) > limit else None,
            "counts": {state: number for state, number in self.board.counts.items() if number},
        }

    async def _entry_view(self, entry: Entry) -> Answer:
        stored = await self._store.get(TASKS + entry.task_id)
        if stored is None:
            raise self._no_task(entry.task_id)
        held = entry.held
        view = self._view(
            entry.task_id,
            TaskRecord.from_bytes(stored.value),
            held.claim if held else None,
            held.token if held else None,
        )
        for heavy in ("description", "payload", "result", "milestones"):
            view.pop(heavy, None)
        return view

    # --- claiming ------------------------------------------------------------------------------------

    async def claim_task(
        self, caller: Caller, task_id: str, swarm_id: str, *, wait_ms: int = 0, lease_ms: int | None = None
    ) -> Answer:
        """See `interface.Coordinator.claim_task`."""
        self._check_wait(wait_ms, lease_ms)
        if not wait_ms:
            return await self._claim(caller, task_id, swarm_id, lease_ms)
        deadline = trio.current_time() + wait_ms / 1000
        while True:
            changed = self.board.watch_task(task_id)
            try:
                try:
                    answer = await self._claim(caller, task_id, swarm_id, lease_ms)
                    if answer["claimed"]:
                        return answer
                except NotReady as error:
                    if error.data.get("state") in (COMPLETED, FAILED):
                        raise
                # Only the waiting is cut short: a claim under way may have been committed.
                with trio.move_on_at(deadline) as waiting:
                    await changed.wait()
                if waiting.cancelled_caught:
                    return await self._claim(caller, task_id, swarm_id, lease_ms)
            finally:
                self.board.unwatch_task(task_id, changed)

    async def claim_next(
        self, caller: Caller, swarm_id: str, *, wait_ms: int = 0, lease_ms: int | None = None
    ) -> Answer:
        """See `interface.Coordinator.claim_next`."""
        self._check_wait(wait_ms, lease_ms)
        await self._check_swarm(caller, swarm_id)
        await self.board.catch_up()
        deadline = trio.current_time() + wait_ms / 1000
        skip: dict[str, int] = {}  # tasks refused to this swarm, as of which revision of theirs
        while True:
            waiter = Waiter(
                fits=lambda entry: (
                    skip.get(entry.task_id) != entry.mod_revision
                    and self._governor.is_match(swarm_id, entry.capabilities)
                )
            )
            self.board.add_waiter(waiter)
            try:
                answer = await self._claim_best(caller, swarm_id, lease_ms, skip)
                if answer is not None:
                    return answer
                # Only the waiting is cut short: a claim under way may have been committed.
                with trio.move_on_at(deadline) as waiting:
                    await waiter.offered.wait()
                if waiting.cancelled_caught:
                    break
            finally:
                self.board.remove_waiter(waiter)
                if waiter.offered.is_set():
                    self._pass_on(swarm_id)
        ready = self.board.counts.get("ready", 0)
        refusal = NotReady(
            f"nothing is ready for {swarm_id}: {ready} ready in all",
            data={"swarm_id": swarm_id, "ready": ready, "state": "idle"},
            would_change=[{"by": "time", "what": "wait for one", "call": "ifbus task next --wait 30s"}],
        )
        return {"claimed": False, "refusal": refusal.to_wire()}

    async def _claim_best(
        self, caller: Caller, swarm_id: str, lease_ms: int | None, skip: dict[str, int]
    ) -> Answer | None:
        routed = [
            self.board.tasks[message.body["task_id"]]
            for _, message in self.board.inbox.get(swarm_id, {}).values()
            if message.kind == "task" and message.body.get("task_id") in self.board.tasks
        ]
        best = self.board.candidates(lambda wanted: self._governor.is_match(swarm_id, wanted), most=_CANDIDATES)
        for entry in [*sorted(routed, key=lambda entry: entry.order), *best]:
            if entry.shown != "ready" or skip.get(entry.task_id) == entry.mod_revision:
                continue
            try:
                answer = await self._claim(caller, entry.task_id, swarm_id, lease_ms)
            except (NotReady, NotFound, NotQualified, BudgetExceeded):
                skip[entry.task_id] = entry.mod_revision
                continue
            if answer["claimed"]:
                return answer
        return None

    def _pass_on(self, swarm_id: str) -> None:
        # This waiter was woken and may have taken another task, none, or been cancelled: whatever is still ready goes to the
        # next one who waits, so that no offer is lost.
        for entry in self.board.candidates(lambda wanted: True, most=1):
            self.board.offer(entry)

    async def _claim(self, caller: Caller, task_id: str, swarm_id: str, lease_ms: int | None) -> Answer:
        async def claim(tx: Tx) -> Answer:
            await self._governor.require_owner(tx, caller, swarm_id)
            task = await self._task(tx, task_id)
            session_stored = await tx.get_stored(SESSIONS + swarm_id)
            session = None if session_stored is None else SessionRecord.from_bytes(session_stored.value)
            held = await tx.get_stored(CLAIMS + task_id)
            if held is not None:
                holder = ClaimRecord.from_bytes(held.value)
                if session is not None and holder.swarm_id == swarm_id and holder.incarnation == session.incarnation:
                    return {
                        "claimed": True,
                        "claim": self._claim_answer(task_id, task, holder),
                        "token": held.create_revision,
                    }
                raise rules.already_claimed(
                    task_id,
                    holder,
                    held.create_revision,
                    now_ms=self._now_ms(),
                    lease_left_ms=await self._store.lease_left_ms(held.lease),
                )
            refusal = rules.not_ready(task_id, task, await self._waits_for(tx, task))
            if refusal is not None:
                raise refusal
            await self._governor.admit(tx, swarm_id, task_id, frozenset(task.capabilities), task.estimate_micro_usd)
            if lease_ms is None and session is not None and session_stored is not None:
                lease, span_ms = session_stored.lease, session.lease_ms
            else:
                span_ms = lease_ms or self._config.lease_ms
                lease = await self._store.grant(span_ms)
            record = ClaimRecord(
                swarm_id=swarm_id,
                incarnation=session.incarnation if session else 0,
                uid=caller.uid,
                lease_ms=span_ms,
                claimed_at_ms=self._now_ms(),
                reserved_micro_usd=task.estimate_micro_usd,
                percent=task.percent,
                note=task.note,
            )
            tx.put(CLAIMS + task_id, record.to_map(), lease=lease)
            if task.route:
                tx.delete(f"{INBOX}{task.route}/task-{task_id}")
                tx.put(TASKS + task_id, attrs.evolve(task, route="").to_map())
            tx.detail["swarm"] = swarm_id
            self._publish_board(tx, "claimed", task_id, swarm_id=swarm_id)
            bound = "session" if lease_ms is None and session is not None else "lease"
            return {"claimed": True, "claim": {**self._claim_answer(task_id, task, record), "bound_to": bound}}

        try:
            answer = await self._operations.run(caller, "coordinator.claim_task", task_id, claim)
        except AlreadyClaimed as lost:
            return {"claimed": False, "refusal": lost.to_wire()}
        # The fencing token is the revision that created the claim: this operation's own, unless it was ours already.
        token = answer.pop("token", None) or answer["receipt"]["revision"]
        answer["claim"]["token"] = answer["claim"]["task"]["token"] = token
        return answer

    def _claim_answer(self, task_id: str, task: TaskRecord, claim: ClaimRecord) -> Answer:
        view = rules.claim_view(task_id, task, claim)
        view["task"] = rules.task_view(task_id, task, claim=claim)
        return view

    def _check_wait(self, wait_ms: int, lease_ms: int | None) -> None:
        rules.check_span("wait_ms", wait_ms, 0, self._config.max_wait_ms)
        self._check_lease(lease_ms)

    async def _check_swarm(self, caller: Caller, swarm_id: str) -> None:
        await self._governor.require_owner(Tx(self._store), caller, swarm_id)

    # --- as the holder -------------------------------------------------------------------------------

    async def renew_claim(self, caller: Caller, task_id: str, swarm_id: str, token: int) -> Answer:
        """See `interface.Coordinator.renew_claim`."""
        tx = Tx(self._store)
        await self._governor.require_owner(tx, caller, swarm_id)
        stored, _ = await self._claims.require_holder(tx, task_id, swarm_id, token)
        await self._store.barrier()
        return {"lease_ms": await self._renew(stored.lease, task_id, token)}

    async def _renew(self, lease: int, task_id: str, token: int) -> int:
        try:
            return await self._store.keep_alive(lease)
        except LeaseNotFound:
            raise StaleToken(
                f"cannot renew {task_id}@{token}: its lease has run out", data={"task_id": task_id, "token": token}
            ) from None

    async def report_progress(
        self, caller: Caller, task_id: str, swarm_id: str, token: int, percent: int, *, note: str = ""
    ) -> Answer:
        """See `interface.Coordinator.report_progress`."""
        rules.check_percent(percent)
        rules.check_text("note", note, rules.MAX_NOTE)

        async def progress(tx: Tx) -> Answer:
            await self._governor.require_owner(tx, caller, swarm_id)
            stored, claim = await self._claims.require_holder(tx, task_id, swarm_id, token)
            task = await self._task(tx, task_id)
            lease_ms = await self._renew(stored.lease, task_id, token)
            now = attrs.evolve(claim, percent=percent, note=note, progress_at_ms=self._now_ms())
            tx.put(CLAIMS + task_id, now.to_map(), lease=stored.lease)
            tx.detail.update(swarm=swarm_id, token=token, percent=percent)
            self._publish_board(tx, "progress", task_id, swarm_id=swarm_id, percent=percent, note=note)
            return {"task": self._view(task_id, task, now, token), "lease_ms": lease_ms}

        return await self._operations.run(caller, "coordinator.report_progress", task_id, progress)

    async def complete_task(
        self, caller: Caller, task_id: str, swarm_id: str, token: int, *, result: Any = None
    ) -> Answer:
        """See `interface.Coordinator.complete_task`."""
        self._check_result(result)
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
        state = {"complete_task": COMPLETED, "fail_task": FAILED, "release_task": OPEN}[verdict]

        async def end(tx: Tx) -> Answer:
            await self._governor.require_owner(tx, caller, swarm_id)
            task = await self._task(tx, task_id)
            if state != OPEN and task.state == state and (task.last_token, task.last_holder) == (token, swarm_id):
                return self._ended(task_id, task, 0) | {"replayed": True}
            _, claim = await self._claims.require_holder(tx, task_id, swarm_id, token)
            outcome: Literal["ok", "failed", "neutral"] = (
                "ok" if state == COMPLETED else "failed" if is_failure else "neutral"
            )
            given_back = await self._governor.claim_ended(tx, swarm_id, task_id, outcome=outcome)
            ended = attrs.evolve(
                task,
                state=state,
                percent=100 if state == COMPLETED else claim.percent,
                note=note or claim.note,
                progress_at_ms=claim.progress_at_ms,
                attempts=task.attempts + 1,
                result=result,
                error=error,
                ended_at_ms=self._now_ms() if state != OPEN else 0,
                last_holder=swarm_id,
                last_token=token,
            )
            tx.put(TASKS + task_id, ended.to_map())
            tx.delete(CLAIMS + task_id)
            tx.detail.update(swarm=swarm_id, token=token)
            if error:
                tx.detail["error"] = error[:200]
            event = {COMPLETED: "completed", FAILED: "failed", OPEN: "released"}[state]
            self._publish_board(tx, event, task_id, swarm_id=swarm_id)
            return self._ended(task_id, ended, given_back)

        answer = await self._operations.run(caller, f"coordinator.{verdict}", task_id, end)
        if answer.pop("replayed", False):
            answer["receipt"]["replayed"] = True
        return answer

    def _ended(self, task_id: str, task: TaskRecord, given_back: int) -> Answer:
        unblocked = []
        if task.state == COMPLETED:
            unblocked = [
                name for name in sorted(self.board.dependants_of(task_id)) if self.board.tasks[name].unmet <= {task_id}
            ]
        return {
            "task": rules.task_view(task_id, task),
            "spent_usd": to_usd(task.spent_micro_usd),
            "released_usd": to_usd(given_back),
            "unblocked": unblocked,
        }

    def _check_result(self, result: Any) -> None:
        size = packed_size(result)
        if size > rules.MAX_PAYLOAD_BYTES:
            raise InvalidParams(
                f"result must be at most {rules.MAX_PAYLOAD_BYTES} bytes packed, got {size}",
                data={"param": "result", "used": size, "allowed": rules.MAX_PAYLOAD_BYTES},
            )

    # --- claims that ended by themselves -------------------------------------------------------------

    async def handle_lost_claims(self) -> None:
        """Give back what expired claims held and put them on record, one after the other, until cancelled."""
        async for lost in self.board.lost_receive:
            await self._record_lost(lost)

    async def _record_lost(self, lost: LostClaim) -> None:
        async def expire(tx: Tx) -> Answer:
            task = await self._task(tx, lost.task_id)
            held = await tx.get_stored(CLAIMS + lost.task_id)
            holder = None if held is None else ClaimRecord.from_bytes(held.value).swarm_id
            # A new claim by the same swarm has taken the hold over (it goes by the task): leave it alone.
            if holder != lost.swarm_id:
                await self._governor.claim_ended(tx, lost.swarm_id, lost.task_id, outcome="neutral")
            tx.put(TASKS + lost.task_id, attrs.evolve(task, attempts=task.attempts + 1).to_map())
            tx.detail.update(swarm=lost.swarm_id, token=lost.token)
            self._publish_board(tx, "expired", lost.task_id, swarm_id=lost.swarm_id)
            tx.publish(
                f"attention.{lost.swarm_id}",
                {"kind": "lease_lost", "task_id": lost.task_id, "token": lost.token},
            )
            return {}

        try:
            await self._operations.run(ITSELF, "coordinator.expire_claim", lost.task_id, expire)
        except IfbusError as error:
            if error.retryable:
                raise  # the store is unwell: the daemon stops and reconciles at its next start
            # NotFound: the swarm or task is gone, and with it whatever was held; the refusal is on record.

    # --- explaining ----------------------------------------------------------------------------------

    async def explain_claim(self, caller: Caller, task_id: str, swarm_id: str) -> Answer:
        """See `interface.Coordinator.explain_claim`."""
        tx = Tx(self._store)
        task = await self._task(tx, task_id)
        await self._store.barrier()
        await self.board.catch_up()
        held = await tx.get_stored(CLAIMS + task_id)
        checks = []
        owner_error: IfbusError | None = None
        try:
            await self._governor.require_owner(tx, caller, swarm_id)
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
                lease_left_ms=await self._store.lease_left_ms(held.lease),
            )
        checks.append(rules.check_result("free", free, "nobody holds it"))
        done = ", ".join(task.depends_on) + " completed" if task.depends_on else "waits for nothing"
        checks.append(
            rules.check_result("ready", rules.not_ready(task_id, task, await self._waits_for(tx, task)), done)
        )
        needs = frozenset(task.capabilities)
        checks += await self._governor.explain(tx, swarm_id, needs, task.estimate_micro_usd)
        best = self._governor.rank(needs, limit=1)
        return {
            "task_id": task_id,
            "swarm_id": swarm_id,
            "would_succeed": all(check["ok"] for check in checks),
            "checks": checks,
            "best": {"swarm_id": best[0]} if best else None,
        }

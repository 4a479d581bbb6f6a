"""IFGovernor: the wire's methods. Each change is one operation: read, decide by the rules, write, witness, all in one commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import trio

from ifbus.errors import InvalidParams, InvalidRequest, NotFound, PermissionDenied
from ifbus.models import check_capabilities, check_identifier
from ifbus.money import MAX_MICRO_USD, MicroUsd, to_usd
from ifbusd.bus.base import Bus
from ifbusd.codec import how_many_fit, unpack
from ifbusd.governor import rules
from ifbusd.governor.admission import MAX_MODEL_CHARS, Admissions, check_text
from ifbusd.governor.escalations import Escalations, readable
from ifbusd.governor.interface import Answer, Claims, Presence
from ifbusd.governor.model import (
    ACCOUNTS,
    SWARMS,
    TRIPPED,
    Account,
    Cause,
    LedgerEntry,
    Policy,
    Profile,
    Similarity,
)
from ifbusd.governor.view import RegistryView
from ifbusd.identity import Caller
from ifbusd.operation import Body, Operations, Tx
from ifbusd.store.base import Store

MAX_PAGE: Final = 200
MAX_MATCHES: Final = 50
MAX_HANDLES: Final = 50
MAX_REASON_CHARS: Final = 500
# No task can have such an id, so a reservation is never taken for a claim's hold.
_RESERVATION: Final = "r:"


class IFGovernor(Admissions):
    """`ifbusd.governor.interface.Governor` and `ifbusd.coordinator.admission.Admission`. Its mutable state is the view, fed by `run`, and who listens."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        operations: Operations,
        claims: Claims,
        *,
        presence: Presence,
        policy: Policy,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
        operators: str = "a user with the operator role",
    ) -> None:
        """Wire it up; nothing is read before `run`.

        Args:
            claims: Says whether a fencing token is current.
            presence: Says who is alive and holds what; asked once the answer's own facts are durable.
            now_ms: Wall clock.
            new_id: A fresh id at each call, of characters that a key may have.
            operators: Who has the operator role, for refusals: ``uid 0 or group ifbus-admin``.
        """
        super().__init__(RegistryView(store, operations.decoded), policy, now_ms)
        self._store = store
        self._operations = operations
        self._claims = claims
        self._presence = presence
        self._new_id = new_id
        self._operators = operators
        self._escalations = Escalations(store, bus)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the view in step with the store until cancelled; started once everything has been read."""
        await self._view.run(task_status=task_status)

    def statistics(self) -> dict[str, int]:
        """Figures of the view, and how many connections listen for escalations."""
        return {**self._view.statistics(), "listeners": self._escalations.listeners}

    async def _change(self, caller: Caller, op: str, swarm_id: str, body: Body) -> Answer:
        """Run an operation on a swarm; when it answers, the view has it too, so that the next question sees it."""
        check_identifier(swarm_id, "swarm_id")
        answer = await self._operations.run(caller, f"governor.{op}", swarm_id, body)
        await self._view.caught_up(swarm_id)
        if answer.pop("replayed", False):  # nothing was left to do
            answer["receipt"]["replayed"] = True
        return answer

    def _require_operator(self, caller: Caller, what: str) -> None:
        if not caller.is_operator:
            raise PermissionDenied(
                f"cannot {what}: that needs the operator role, you are uid {caller.uid}; ask {self._operators}",
                data={"uid": caller.uid, "role": "operator"},
                would_change=[{"by": "operator", "what": f"{self._operators} can do it"}],
            )

    # --- profiles and matching -----------------------------------------------------------------------

    async def register_profile(
        self,
        caller: Caller,
        swarm_id: str,
        capabilities: list[str],
        *,
        cost_per_hour_usd: MicroUsd | None = None,
        budget_usd: MicroUsd | None = None,
        model: str | None = None,
    ) -> Answer:
        """Create or change a swarm's profile without starting a session: ``{"profile": SwarmProfile, "receipt": ...}``.

        Raises:
            permission_denied: The name belongs to another user, or `budget_usd` would raise an existing budget.
        """
        checked = check_capabilities(capabilities)
        if model is not None:
            check_text(model, "model", MAX_MODEL_CHARS)

        def body(tx: Tx) -> Answer:
            stored = tx.get(SWARMS + swarm_id)
            profile = self.save_profile(
                tx,
                caller,
                swarm_id,
                capabilities=checked,
                cost_per_hour_micro_usd=_amount(cost_per_hour_usd, "cost_per_hour_usd"),
                budget_micro_usd=_amount(budget_usd, "budget_usd"),
                model=model,
                # No session begins, so it is no new incarnation either.
                incarnation=0 if stored is None else Profile.from_stored(swarm_id, unpack(stored)).incarnation,
                orchestrator=None,
            )
            return {"profile": profile}

        answer = await self._change(caller, "register_profile", swarm_id, body)
        return answer | {"profile": (await self._with_presence([answer["profile"]]))[0]}

    async def get_swarm(self, caller: Caller, swarm_id: str) -> Answer:
        """``{"profile": SwarmProfile}``, or not_found."""
        profile, account = await self._operations.look(
            lambda tx: (self._read_profile(tx, swarm_id), self._read_account(tx, swarm_id))
        )
        await self._store.barrier()
        return {"profile": (await self._with_presence([rules.describe_profile(profile, account)]))[0]}

    async def list_swarms(self, caller: Caller, *, after: str = "", limit: int = 50) -> Answer:
        """``{"swarms": [SwarmProfile], "total": n, "next": swarm id to go on after or None}``, by name."""
        page, next_after = await self._page(after, limit)
        swarms = [rules.describe_profile(profile, account) for profile, account in page]
        return _fitting("swarms", await self._with_presence(swarms), next_after) | {"total": len(self._registry)}

    async def _with_presence(self, profiles: list[Answer]) -> list[Answer]:
        present = await self._presence([profile["swarm_id"] for profile in profiles])
        # Named up to a bound: whoever holds thousands must not make the lists of others too long for an answer.
        return [
            profile | {"alive": is_alive, "claims": handles[:MAX_HANDLES]}
            for profile, (is_alive, handles) in zip(profiles, present, strict=True)
        ]

    async def _page(self, after: str, limit: int) -> tuple[list[tuple[Profile, Account]], str | None]:
        check_limit(limit, MAX_PAGE)
        page = await self._store.range(SWARMS, after=SWARMS + after if after else "", limit=limit)

        def read(tx: Tx) -> list[tuple[Profile, Account]]:
            found = []
            for item in page.items:
                name = item.key.removeprefix(SWARMS)
                try:
                    found.append((Profile.from_stored(name, unpack(item.value)), self._read_account(tx, name)))
                except (KeyError, TypeError, ValueError, AttributeError):
                    continue  # another host wrote it (THREATS T6); the view has said so
            return found

        found = await self._operations.look(read)
        await self._store.barrier()
        return found, page.items[-1].key.removeprefix(SWARMS) if page.has_more else None

    async def find_qualified_swarm(
        self,
        caller: Caller,
        capabilities: list[str],
        *,
        max_cost_per_hour_usd: MicroUsd | None = None,
        similarity: Literal["jaccard", "coverage"] | None = None,
        limit: int = 5,
    ) -> Answer:
        """The swarms fit for a task, best first by (overlap x reputation) / cost.

        A swarm qualifies if its overlap is at least the policy's threshold (0.70), its breaker is closed, it is not broke, and it
        costs at most `max_cost_per_hour_usd`. Free swarms rank before all that cost something, by overlap x reputation.

        Args:
            similarity: Which measure is compared with the threshold; the policy's default (``jaccard``) if not given.

        Returns:
            ``{"best": CapabilityMatch or None, "matches": [CapabilityMatch, at most `limit`, 1 to 50], "considered": n,
            "threshold": 0.7, "similarity": ...,
            "refused": {"not_qualified": n, "paused": n, "breaker_tripped": n, "budget_exceeded": n, "too_expensive": n}}``.
        """
        required = check_capabilities(capabilities)
        check_limit(limit, MAX_MATCHES)
        measure: Similarity = similarity or self._policy.similarity
        if measure not in ("jaccard", "coverage"):
            raise InvalidParams(f"similarity is jaccard or coverage, got {measure!r:.80}", data={"param": "similarity"})
        ranking = self._registry.rank(
            required,
            measure,
            self._threshold,
            limit=limit,
            max_cost=_amount(max_cost_per_hour_usd, "max_cost_per_hour_usd"),
        )
        matches = [rules.describe_match(profile, required, measure) for profile in ranking.best]
        return {
            "best": matches[0] if matches else None,
            "matches": matches,
            "considered": ranking.considered,
            "threshold": float(self._threshold),
            "similarity": measure,
            "refused": ranking.refused,
        }

    # --- money ---------------------------------------------------------------------------------------

    async def track_cost(
        self,
        caller: Caller,
        swarm_id: str,
        operation: str,
        cost_usd: MicroUsd,
        *,
        task_id: str | None = None,
        token: int | None = None,
        model: str = "",
        usage: dict[str, Any] | None = None,
    ) -> Answer:
        """Record money that was spent; a budget that is used up trips the breaker in the same commit.

        Spent is spent: it is recorded even beyond the budget. With `task_id`, the claim's `token` is needed, and what the claim
        had set aside is used up first.

        Args:
            operation: What it was for, an identifier such as ``llm``.
            usage: Token counts: any of ``input_tokens``, ``output_tokens``, ``cache_read_tokens``, ``cache_write_tokens``.

        Returns:
            ``{"report": BudgetReport, "tripped": bool, "receipt": ...}``.

        Raises:
            stale_token: The claim has ended; nothing was recorded.
        """
        cost = _required_amount(cost_usd, "cost_usd")
        check_identifier(operation, "operation")
        check_text(model, "model", MAX_MODEL_CHARS)
        counts = rules.check_usage(usage)
        if token is not None and task_id is None:
            raise InvalidParams("a token is a claim's: a cost with it needs the task_id, too", data={"param": "token"})

        def body(tx: Tx) -> Answer:
            self.require_owner(tx, caller, swarm_id)
            if task_id is not None:
                self._require_holder(tx, task_id, swarm_id, token)
            before = self._read_account(tx, swarm_id)
            spent = rules.spend(before, task_id, cost, max_holds=self._policy.max_holds)
            return self._record_cost(tx, swarm_id, before, spent, task_id, operation, cost, model, counts)

        return await self._change(caller, "track_cost", swarm_id, body)

    def _require_holder(self, tx: Tx, task_id: str, swarm_id: str, token: int | None) -> None:
        check_identifier(task_id, "task_id")
        if token is None:
            raise InvalidParams(
                f"a cost of task {task_id} needs the claim's token", data={"param": "token", "task_id": task_id}
            )
        self._claims.require_holder(tx, task_id, swarm_id, token)

    def _record_cost(
        self,
        tx: Tx,
        swarm_id: str,
        before: Account,
        spent: Account,
        task_id: str | None,
        operation: str,
        cost: int,
        model: str,
        usage: dict[str, int],
    ) -> Answer:
        """Write account and ledger entry together; a used-up budget trips."""
        now_ms = self._now_ms()
        account = rules.trip_if_used_up(spent, now_ms)
        self._write_account(tx, swarm_id, before, account)
        entry = LedgerEntry(
            swarm_id=swarm_id,
            at_ms=now_ms,
            task_id=task_id,
            operation=operation,
            model=model,
            usage=usage,
            micro_usd=cost,
        )
        tx.put(entry.key(self._new_id()), entry.to_stored())
        tx.detail |= {"operation": operation, "cost_usd": to_usd(cost)}
        if task_id is not None:
            tx.detail["task_id"] = task_id
        return {"report": rules.describe_account(swarm_id, account), "tripped": account.is_tripped}

    async def reserve_cost(
        self, caller: Caller, swarm_id: str, operation: str, estimate_usd: MicroUsd, *, task_id: str, token: int
    ) -> Answer:
        """Set money aside before spending it: ``{"reservation_id": id, "report": BudgetReport, "receipt": ...}``. Ends with the claim.

        Money reserved for the claim itself is used first, so the same estimate is not set aside twice.

        Raises:
            budget_exceeded: Less than this is free; nothing was reserved.
            breaker_tripped: The swarm is stopped.
            limit_exceeded: The swarm has too many reservations.
            stale_token: The claim has ended.
        """
        estimate = _required_amount(estimate_usd, "estimate_usd")
        check_identifier(operation, "operation")

        def body(tx: Tx) -> Answer:
            self.require_owner(tx, caller, swarm_id)
            self._require_holder(tx, task_id, swarm_id, token)
            before = self._read_account(tx, swarm_id)
            needed = rules.needed_beyond_claim(before, task_id, estimate)
            for check in (rules.check_breaker(swarm_id, before), rules.check_budget(swarm_id, before, needed)):
                if not check.ok:
                    raise check.error()
            reservation_id = _RESERVATION + self._new_id()
            account = rules.reserve(before, reservation_id, task_id, operation, estimate)
            self._require_holds(swarm_id, account)
            self._write_account(tx, swarm_id, before, account)
            tx.detail |= {"operation": operation, "reserved_usd": to_usd(estimate), "task_id": task_id}
            return {"reservation_id": reservation_id, "report": rules.describe_account(swarm_id, account)}

        return await self._change(caller, "reserve_cost", swarm_id, body)

    async def settle_cost(
        self,
        caller: Caller,
        swarm_id: str,
        reservation_id: str,
        cost_usd: MicroUsd,
        *,
        model: str = "",
        usage: dict[str, Any] | None = None,
    ) -> Answer:
        """Replace a reservation by what it really cost (0 gives all of it back). Answers as `track_cost`.

        Raises:
            not_found: No such reservation: settled already, or gone with its claim.
        """
        cost = _required_amount(cost_usd, "cost_usd")
        check_text(model, "model", MAX_MODEL_CHARS)
        counts = rules.check_usage(usage)

        def body(tx: Tx) -> Answer:
            self.require_owner(tx, caller, swarm_id)
            before = self._read_account(tx, swarm_id)
            hold = before.holds.get(reservation_id) if reservation_id.startswith(_RESERVATION) else None
            if hold is None:
                raise NotFound(
                    f"cannot settle reservation {reservation_id:.80}: {swarm_id} has none of this id,"
                    " it was settled already or ended with its claim",
                    data={"reservation_id": reservation_id[:80]},
                    would_change=[{"by": "self", "what": "record the cost with track_cost, without a task"}],
                )
            spent = rules.settle(before, reservation_id, cost, max_holds=self._policy.max_holds)
            return self._record_cost(tx, swarm_id, before, spent, hold.task_id, hold.operation, cost, model, counts)

        return await self._change(caller, "settle_cost", swarm_id, body)

    async def list_holds(self) -> list[tuple[str, str]]:
        """Swarm and task of everything that is set aside now, as durable; what of it has no claim was left by a crash."""
        holds: dict[tuple[str, str], None] = {}
        after = ""
        while True:
            page = await self._store.range(ACCOUNTS, after=after)
            await self._store.barrier()
            for item in page.items:
                swarm_id = item.key.removeprefix(ACCOUNTS)
                try:
                    account = Account.from_stored(unpack(item.value))
                    holds |= {(swarm_id, hold.task_id): None for hold in account.holds.values()}
                except (KeyError, TypeError, ValueError, AttributeError):
                    continue  # the view has said so
            if not page.has_more:
                return list(holds)
            after = page.items[-1].key
            await trio.lowlevel.checkpoint()

    async def get_budget_report(
        self, caller: Caller, *, swarm_id: str | None = None, after: str = "", limit: int = 50
    ) -> Answer:
        """``{"reports": [BudgetReport], "next": swarm id to go on after or None}``, of one swarm or of all by name.

        Raises:
            not_found: There is no such swarm.
        """
        if swarm_id is None:
            page, next_after = await self._page(after, limit)
            reports = [rules.describe_account(profile.swarm_id, account) for profile, account in page]
            return _fitting("reports", reports, next_after)
        account = await self._operations.look(
            lambda tx: self._read_account(tx, self._read_profile(tx, swarm_id).swarm_id)
        )
        await self._store.barrier()
        return {"reports": [rules.describe_account(swarm_id, account)], "next": None}

    # --- the operator's --------------------------------------------------------------------------------

    async def set_budget(self, caller: Caller, swarm_id: str, limit_usd: MicroUsd) -> Answer:
        """Set a swarm's budget (operator). ``{"report": BudgetReport, "receipt": ...}``. Does not reset a breaker."""
        limit = _required_amount(limit_usd, "limit_usd")

        def body(tx: Tx) -> Answer:
            self._require_operator(caller, f"set the budget of {swarm_id}")
            self._read_profile(tx, swarm_id)
            before = self._read_account(tx, swarm_id)
            account = before.evolve(limit=limit)
            self._write_account(tx, swarm_id, before, account)
            tx.detail |= {"limit_usd": to_usd(limit)}
            return {"report": rules.describe_account(swarm_id, account)}

        return await self._change(caller, "set_budget", swarm_id, body)

    async def trip_circuit_breaker(self, caller: Caller, swarm_id: str, reason: str) -> Answer:
        """Stop a swarm now (operator): no claim, push or spend until a reset. ``{"report": BudgetReport, "receipt": ...}``.

        One that is stopped already stays so for its first reason; the receipt says ``"replayed": true``.
        """
        check_text(reason, "reason", MAX_REASON_CHARS, min_chars=1)

        def body(tx: Tx) -> Answer:
            self._require_operator(caller, f"trip the breaker of {swarm_id}")
            self._read_profile(tx, swarm_id)
            before = self._read_account(tx, swarm_id)
            account = rules.trip(before, Cause.OPERATOR, reason, self._now_ms())
            self._write_account(tx, swarm_id, before, account)
            tx.detail |= {"reason": reason}
            return {"report": rules.describe_account(swarm_id, account), "replayed": before.is_tripped}

        return await self._change(caller, "trip_circuit_breaker", swarm_id, body)

    async def reset_circuit_breaker(
        self, caller: Caller, swarm_id: str, reason: str, *, budget_usd: MicroUsd | None = None
    ) -> Answer:
        """Let a stopped swarm work again (operator; witnessed with uid and reason). A closed breaker answers with
        ``"replayed": true`` in the receipt.

        Args:
            budget_usd: A new budget at the same time; without it a swarm stopped for money would be stopped again at once,
                so that is refused.

        Raises:
            budget_exceeded: The swarm is broke and no new budget was given, or too small a one.
        """
        check_text(reason, "reason", MAX_REASON_CHARS, min_chars=1)
        limit = _amount(budget_usd, "budget_usd")

        def body(tx: Tx) -> Answer:
            self._require_operator(caller, f"reset the breaker of {swarm_id}")
            self._read_profile(tx, swarm_id)
            before = self._read_account(tx, swarm_id)
            funded = before if limit is None else before.evolve(limit=limit)
            if before.is_tripped:
                can_pay = rules.check_budget(swarm_id, funded, 0)
                if not can_pay.ok:
                    raise can_pay.error()
            account = rules.reset(funded) if before.is_tripped else funded
            self._write_account(tx, swarm_id, before, account, why=reason)
            tx.detail |= {"reason": reason, "was": before.breaker.reason}
            if limit is not None:
                tx.detail["limit_usd"] = to_usd(limit)
            return {"report": rules.describe_account(swarm_id, account), "replayed": not before.is_tripped}

        return await self._change(caller, "reset_circuit_breaker", swarm_id, body)

    async def list_breakers(
        self, caller: Caller, *, tripped_only: bool = False, after: str = "", limit: int = 50
    ) -> Answer:
        """Breakers by the swarm's name.

        Returns:
            ``{"breakers": [{"swarm_id", "state", "reason", "cause", "tripped_at_ms", "failures_in_a_row"}],
            "next": swarm id to go on after or None}``.
        """
        if not tripped_only:
            everybody, next_after = await self._page(after, limit)
            breakers = [rules.describe_breaker(profile.swarm_id, account) for profile, account in everybody]
            return _fitting("breakers", breakers, next_after)
        check_limit(limit, MAX_PAGE)
        page = await self._store.range(TRIPPED, after=TRIPPED + after if after else "", limit=limit)
        await self._store.barrier()
        breakers = list(readable(page, lambda key, row: {**row, "swarm_id": key.removeprefix(TRIPPED)}, []))
        return _fitting("breakers", breakers, page.items[-1].key.removeprefix(TRIPPED) if page.has_more else None)

    # --- escalations ---------------------------------------------------------------------------------

    async def subscribe_escalations(self, caller: Caller) -> Answer:
        """Send this connection (operator) ``escalation [{"kind", "swarm_id", "reason", "at_ms", ...}]`` for each, from now on.

        Kinds: ``breaker_tripped``, ``breaker_reset``, ``blocker``, ``blocker_resolved``, ``budget_low``; and of the clocks
        ``runaway``, ``silent``, ``starving`` and their ends. Open ones are sent before the answer, which is ``{"open": how many}``.
        Twice on one connection is as once.
        """
        self._require_operator(caller, "listen for escalations")
        if caller.session is None:
            raise InvalidRequest("cannot listen for escalations without a connection")
        return {"open": await self._escalations.subscribe(caller.session)}

    async def list_escalations(self, caller: Caller) -> Answer:
        """Open escalations: tripped breakers, open blockers and alarms, the first 200 of each, as far as they fit into one answer.

        ``{"escalations": [...], "has_more": bool}``.
        """
        escalations, _, has_more = await self._escalations.read_open()
        fitting = escalations[: how_many_fit(escalations)]
        return {"escalations": fitting, "has_more": has_more or len(fitting) < len(escalations)}


def _fitting(name: str, rows: list[dict[str, Any]], next_after: str | None) -> Answer:
    """A page of swarms' rows, cut to what fits into one answer."""
    fitting = rows[: how_many_fit(rows)]
    return {name: fitting, "next": fitting[-1]["swarm_id"] if len(fitting) < len(rows) else next_after}


def check_limit(limit: int, most: int) -> None:
    """Refuse a page of no or too many rows with invalid_params."""
    if not 1 <= limit <= most:
        raise InvalidParams(f"limit is 1 to {most}, got {limit}", data={"param": "limit", "max": most})


def _required_amount(amount: int, param: str) -> int:
    # The wire's decoder makes exact micro-dollars; this holds the line for callers inside the daemon.
    if type(amount) is not int or not 0 <= amount <= MAX_MICRO_USD:
        raise InvalidParams(
            f"{param} is whole micro-dollars from 0 to {MAX_MICRO_USD}, got {amount!r:.40}", data={"param": param}
        )
    return amount


def _amount(amount: int | None, param: str) -> int | None:
    return None if amount is None else _required_amount(amount, param)

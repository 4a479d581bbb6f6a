"""What IF.governor answers: who is best for this, can we afford it, must somebody be stopped. Signatures are the wire's methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from ifbus.money import MicroUsd
from ifbusd.identity import Caller
from ifbusd.operation import Tx

Answer = dict[str, Any]
# Of each of these swarms: whether its session is alive, and the claim handles that it holds. What only the coordinator knows.
Presence = Callable[[list[str]], Awaitable[list[tuple[bool, list[str]]]]]


class Claims(Protocol):
    """What the governor needs of the coordinator: whether a fencing token is the current one."""

    def require_holder(self, tx: Tx, task_id: str, swarm_id: str, token: int) -> object:
        """Return if the swarm holds the task by this token; else raise not_found, not_owner or stale_token."""
        ...


class Governor(Protocol):
    """Profiles, matching, budgets, breakers, escalation."""

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
        ...

    async def get_swarm(self, caller: Caller, swarm_id: str) -> Answer:
        """``{"profile": SwarmProfile}``, or not_found."""
        ...

    async def list_swarms(self, caller: Caller, *, after: str = "", limit: int = 50) -> Answer:
        """``{"swarms": [SwarmProfile], "total": n, "next": swarm id to go on after or None}``, by name."""
        ...

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
            ``{"best": CapabilityMatch or None, "matches": [CapabilityMatch, at most `limit`, 1 to 50], "considered": n, "threshold": 0.7, "similarity": ...,
            "refused": {"not_qualified": n, "paused": n, "breaker_tripped": n, "budget_exceeded": n, "too_expensive": n}}``.
        """
        ...

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

        Spent is spent: it is recorded even beyond the budget. With `task_id`, the claim's `token` is needed.

        Args:
            operation: What it was for, an identifier such as ``llm``.
            usage: Token counts: any of ``input_tokens``, ``output_tokens``, ``cache_read_tokens``, ``cache_write_tokens``.

        Returns:
            ``{"report": BudgetReport, "tripped": bool, "receipt": ...}``.

        Raises:
            stale_token: The claim has ended; nothing was recorded.
        """
        ...

    async def reserve_cost(
        self, caller: Caller, swarm_id: str, operation: str, estimate_usd: MicroUsd, *, task_id: str, token: int
    ) -> Answer:
        """Set money aside before spending it: ``{"reservation_id": id, "report": BudgetReport, "receipt": ...}``. Ends with the claim.

        Money reserved for the claim itself is used first, so the same estimate is not set aside twice.

        Raises:
            budget_exceeded: Less than this is free; nothing was reserved.
            stale_token: The claim has ended.
        """
        ...

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
        ...

    async def get_budget_report(
        self, caller: Caller, *, swarm_id: str | None = None, after: str = "", limit: int = 50
    ) -> Answer:
        """``{"reports": [BudgetReport], "next": swarm id to go on after or None}``, of one swarm or of all by name.

        Raises:
            not_found: There is no such swarm.
        """
        ...

    async def set_budget(self, caller: Caller, swarm_id: str, limit_usd: MicroUsd) -> Answer:
        """Set a swarm's budget (operator). ``{"report": BudgetReport, "receipt": ...}``. Does not reset a breaker."""
        ...

    async def trip_circuit_breaker(self, caller: Caller, swarm_id: str, reason: str) -> Answer:
        """Stop a swarm now (operator): no claim, push or spend until a reset. ``{"report": BudgetReport, "receipt": ...}``.

        One that is stopped already stays so for its first reason; the receipt says ``"replayed": true``.
        """
        ...

    async def reset_circuit_breaker(
        self, caller: Caller, swarm_id: str, reason: str, *, budget_usd: MicroUsd | None = None
    ) -> Answer:
        """Let a stopped swarm work again (operator; witnessed with uid and reason). A closed breaker answers with
        ``"replayed": true`` in the receipt.

        Args:
            budget_usd: A new budget at the same time; without it a swarm stopped for money would be stopped again at once,
                so that is refused.

        Raises:
            budget_exceeded: The swarm is broke and no new budget was given.
        """
        ...

    async def list_breakers(
        self, caller: Caller, *, tripped_only: bool = False, after: str = "", limit: int = 50
    ) -> Answer:
        """Breakers by the swarm's name.

        Returns:
            ``{"breakers": [{"swarm_id", "state", "reason", "cause", "tripped_at_ms", "failures_in_a_row"}],
            "next": swarm id to go on after or None}``.
        """
        ...

    async def subscribe_escalations(self, caller: Caller) -> Answer:
        """Send this connection (operator) ``escalation [{"kind", "swarm_id", "reason", "at_ms", ...}]`` for each, from now on.

        Kinds: ``breaker_tripped``, ``breaker_reset``, ``blocker``, ``blocker_resolved``, ``budget_low``; and of the clocks
        ``runaway`` (spending without progress), ``silent`` (not renewed), ``starving`` (alive, reads no mail), each once per
        episode with its figures, and ``runaway_ended`` and so on. Open ones are sent before the answer, which is ``{"open": how many}``.
        Twice on one connection is as once.
        """
        ...

    async def list_escalations(self, caller: Caller) -> Answer:
        """Open escalations: tripped breakers, blockers, alarms and approvals, the first 200 of each, as far as they fit into one answer.

        ``{"escalations": [...], "has_more": bool}``.
        """
        ...

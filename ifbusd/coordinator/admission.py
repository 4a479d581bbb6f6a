"""What the coordinator needs of the governor; `ifbusd.governor.service.IFGovernor` provides it, `ifbusd.daemon` hands it over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.pause import Pause


class Admission(Protocol):
    """What the coordinator needs of the governor inside its own transactions. `tx` reads and writes; nothing else is touched."""

    def require_owner(self, tx: Tx, caller: Caller, swarm_id: str) -> None:
        """Return if the swarm exists and is the caller's; else raise not_found or permission_denied."""
        ...

    def attention(self, tx: Tx, swarm_id: str) -> list[dict[str, Any]]:
        """What the swarm was told and still holds: ``breaker_tripped``, else ``budget_low``; ``paused`` or ``draining``; or nothing."""
        ...

    def change_pause(self, tx: Tx, caller: Caller, swarm_id: str, change: Callable[[Pause], Pause]) -> Pause:
        """Change the pause of a swarm for its owner or an operator; what it is now. Raises not_found, permission_denied."""
        ...

    def pause_of(self, tx: Tx, swarm_id: str) -> Pause:
        """Who keeps new work from the swarm; empty while nobody does. Raises not_found."""
        ...

    def admit(self, tx: Tx, swarm_id: str, task_id: str, capabilities: frozenset[str], estimate_micro_usd: int) -> None:
        """Check breaker, match and budget, in this order, and set the estimate aside as the claim's hold.

        Raises:
            paused, breaker_tripped, not_qualified, budget_exceeded: With figures and what would change it.
        """
        ...

    def check_route(self, tx: Tx, swarm_id: str, capabilities: frozenset[str]) -> None:
        """As `admit` for a push: breaker and match, nothing set aside; a broke swarm is refused."""
        ...

    def explain(
        self, tx: Tx, swarm_id: str, capabilities: frozenset[str], estimate_micro_usd: int
    ) -> list[dict[str, Any]]:
        """The checks of `admit` without stopping at the first no: ``[{"check", "ok", "message", "data", "would_change"}]``."""
        ...

    def claim_ended(self, tx: Tx, swarm_id: str, task_id: str, *, outcome: Literal["ok", "failed", "neutral"]) -> int:
        """Give back what the claim held; count failures (``failed``), which may trip the breaker, or forget them (``ok``).

        Returns:
            Micro-dollars given back.
        """
        ...

    async def list_holds(self) -> list[tuple[str, str]]:
        """Swarm and task of everything that is set aside now, as durable; what of it has no claim was left by a crash."""
        ...

    def spent_on(self, tx: Tx, swarm_id: str, task_id: str) -> int:
        """Micro-dollars that the swarm has spent on a task since it claimed it; ask before `claim_ended`."""
        ...

    def save_profile(
        self,
        tx: Tx,
        caller: Caller,
        swarm_id: str,
        *,
        capabilities: frozenset[str] | None,
        cost_per_hour_micro_usd: int | None,
        budget_micro_usd: int | None,
        model: str | None,
        incarnation: int | None,
        orchestrator: bool | None,
    ) -> dict[str, Any]:
        """Create or change the profile within a registration; None keeps what was there.

        Args:
            incarnation: Of the session that goes on; None begins a new one, one more than the last.

        Returns:
            The `SwarmProfile` map, without ``alive`` and ``claims``.

        Raises:
            permission_denied: The name belongs to another user, or the budget would be raised or beyond the policy's bound.
            limit_exceeded: Too many swarms.
        """
        ...

    def rank(self, capabilities: frozenset[str], *, limit: int, exclude: frozenset[str] = frozenset()) -> list[str]:
        """Swarm ids fit for these capabilities, best first, from the governor's view of the registry (no I/O)."""
        ...

    def capabilities_of(self, swarm_id: str) -> frozenset[str] | None:
        """What a swarm can do, from the governor's view; None if unknown (no I/O)."""
        ...

    def is_match(self, swarm_id: str, capabilities: frozenset[str]) -> bool:
        """Whether the swarm's overlap reaches the threshold and it is neither tripped nor broke, from the governor's view (no I/O)."""
        ...

    def seen_pause(self, swarm_id: str) -> Pause:
        """Who keeps new work from the swarm, from the governor's view (no I/O); empty while nobody does."""
        ...

    @property
    def max_swarms_per_task(self) -> int:
        """So many swarms are called to help with one task at a time (policy)."""
        ...

    def orchestrators(self) -> list[str]:
        """Swarm ids registered as orchestrators."""
        ...

    def swarms_with(self, capabilities: frozenset[str]) -> list[str]:
        """Registered swarm ids that have all of these capabilities."""
        ...

    def swarms_matching(self, matches: Callable[[frozenset[str]], bool]) -> list[str]:
        """Registered swarm ids whose capabilities are such; asked once per different set of capabilities (no I/O)."""
        ...

    async def caught_up(self, swarm_id: str) -> None:
        """Return once the governor's view shows this swarm as the store has it: await it between `save_profile` and the answer."""
        ...

    def set_reputation(self, tx: Tx, swarm_id: str, ratio: float) -> None:
        """Note how well a swarm has done, 0 to 1 (kept in millionths). Raises not_found."""
        ...

"""The chassis as others see it, and what it needs of others."""

from __future__ import annotations

from typing import Any, Protocol

from ifbusd.chassis.model import ChassisStatistics
from ifbusd.identity import Caller
from ifbusd.later import Later
from ifbusd.operation import Tx


class SwarmDirectory(Protocol):
    """Who owns a swarm, asked inside the transaction that depends on the answer."""

    def require_owner(self, tx: Tx, caller: Caller, swarm_id: str) -> None:
        """Return if the swarm exists and is the caller's; else raise `NotFound` or `PermissionDenied`."""
        ...

    def require_running(self, tx: Tx, swarm_id: str) -> None:
        """Return if the swarm's breaker is closed; else raise `BreakerTripped`."""
        ...


class ClaimDirectory(Protocol):
    """Who holds a task, asked inside the transaction that depends on the answer."""

    def require_holder(self, tx: Tx, task_id: str, swarm_id: str, token: int) -> object:
        """Return if `token` is the fencing token of the swarm's claim; else raise `StaleToken` or `NotOwner`."""
        ...


class Chassis(Protocol):
    """Runs swarms' WebAssembly in locked-down processes with hard limits (DESIGN 6)."""

    async def put_blob(self, caller: Caller, sha256: str, offset: int, data: bytes, total_bytes: int) -> dict[str, Any]:
        """Upload a module in chunks of at most 48 KiB, in order; durable when complete.

        Args:
            sha256: Content address of the whole module, 64 hex digits.
            offset: Where this chunk belongs.
            data: The chunk.
            total_bytes: Length of the whole module.

        Returns:
            ``received_bytes`` (go on from there: a chunk that is ahead or was stored already changes nothing) and
            ``complete``.

        Raises:
            invalid_params: Figures that do not fit together.
            invalid_module: What came has another SHA-256; the upload starts again.
            limit_exceeded: ``blob_bytes_per_uid``, ``blob_bytes`` or ``blob_files_per_uid``.
        """
        ...

    async def load_swarm(self, caller: Caller, swarm_id: str, contract: dict[str, Any]) -> dict[str, Any]:
        """Load a module for a swarm under a contract: compiled if need be, its worker warm, durable on return.

        The same contract again changes nothing. Another contract for the same module replaces the first. After a restart
        of the daemon the module is there; its worker starts with the first execution.

        Args:
            contract: A `ifbus.models.ServiceContract` as a map.

        Returns:
            ``swarm_id``, ``module_sha256``, ``kind``, ``layers`` (what locks the worker down) and the ``receipt``.

        Raises:
            not_found: No such swarm, compile profile, or module among the caller's uploads.
            permission_denied: Not the caller's swarm, or not their profile.
            invalid_params: A limit beyond the host's policy.
            invalid_module: Not WebAssembly, of another kind, without the export, or with imports that are not offered.
            compile_limit: Compiling took more than the profile allows.
            limit_exceeded: Longer than the profile allows (``module_bytes``), or too many modules (``modules``).
            overloaded, unavailable: Try again.
        """
        ...

    async def execute_task(
        self,
        caller: Caller,
        swarm_id: str,
        input: Any,
        *,
        module_sha256: str | None = None,
        task_id: str | None = None,
        token: int | None = None,
    ) -> dict[str, Any] | Later:
        """Run a loaded module once; that it was admitted is on record when this returns, and its end if that lasted or failed.

        Args:
            input: For ``core`` ``{"args": [numbers]}``, else any JSON value.
            module_sha256: Which of the swarm's modules; the last loaded by default.
            task_id, token: The claim that it is done for: refused when the token is stale.

        Returns:
            A `ifbus.models.Execution` as a map, and the ``receipt``.

        Raises:
            limit_exceeded: ``data["limit"]`` is ``calls_per_s`` (with ``retry_after_ms``), ``wall_ms``, ``cpu_ms``,
                ``memory_bytes`` or ``output_bytes``, with ``used`` and ``allowed``.
            guest_failed: It trapped, failed, or gave no JSON; ``data["stderr"]`` has the start of what it said.
            invalid_params: The input does not fit.
            not_found, permission_denied, not_owner, stale_token: Swarm, module or claim.
            breaker_tripped: The swarm is stopped; also if that happened while it ran, for more than a millisecond.
            overloaded, unavailable: Try again.
        """
        ...

    async def unload_swarm(self, caller: Caller, swarm_id: str, *, module_sha256: str | None = None) -> dict[str, Any]:
        """Unload one module of a swarm, or all of them; running executions fail. Durable on return.

        Returns:
            ``swarm_id``, ``unloaded`` (their SHA-256s, maybe none) and the ``receipt``.

        Raises:
            not_found, permission_denied: Swarm.
        """
        ...

    async def list_sandboxes(self, caller: Caller) -> list[dict[str, Any]]:
        """The sandboxes of modules that the caller loaded, an operator's answer has all (`model.SandboxReport` as maps); as many as fit."""
        ...

    def statistics(self) -> ChassisStatistics:
        """A snapshot."""
        ...

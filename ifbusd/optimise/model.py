"""The values of a cost report, read from what other components store."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

LEDGER = "ledger/"
# The coordinator's: what became of a task is read there (keep in step with `ifbusd.coordinator.model`).
TASKS = "tasks/"
CLAIMS = "claims/"
HOUR_MS = 60 * 60 * 1000
BUCKETS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


class Cost(NamedTuple):
    """One settled cost. Keep in step with `ifbusd.governor.model.LedgerEntry`, which writes it.

    Attributes:
        task_id: The task it was spent on, ``""`` for none.
        tokens: Counts, in the order of `BUCKETS`.
    """

    swarm_id: str
    at_ms: int
    task_id: str
    operation: str
    model: str
    tokens: tuple[int, int, int, int]
    micro_usd: int

    @classmethod
    def from_stored(cls, key: str, values: dict[str, Any]) -> Self:
        """The cost under ``ledger/<hour>/<swarm>/<time>-<id>``. Other values raise KeyError, TypeError or ValueError."""
        usage = values["usage"]
        input_tokens, output_tokens, cache_read, cache_write = (int(usage.get(bucket, 0)) for bucket in BUCKETS)
        return cls(
            swarm_id=key.split("/")[2],
            at_ms=int(values["at_ms"]),
            task_id=values["task"] or "",
            operation=values["operation"],
            model=values["model"],
            tokens=(input_tokens, output_tokens, cache_read, cache_write),
            micro_usd=int(values["micro_usd"]),
        )


class TaskFate(NamedTuple):
    """What became of a task.

    Attributes:
        state: ``open``, ``completed``, or how else it ended.
        holder: The swarm that holds it, or that ended it; ``""`` for none.
        is_blocked: It waits for a blocker to be resolved.
    """

    state: str
    holder: str
    is_blocked: bool = False

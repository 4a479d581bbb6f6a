"""What IF.optimise answers: what did it cost, and what of it was wasted."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from ifbusd.identity import Caller

Answer = dict[str, Any]


class Optimise(Protocol):
    """Reports over the cost ledger."""

    async def report(
        self,
        caller: Caller,
        *,
        by: Literal["swarm", "task", "operation", "model", "hour"] = "swarm",
        since_ms: int = 0,
        until_ms: int | None = None,
        limit: int = 50,
    ) -> Answer:
        """Costs summed by one dimension, dearest first.

        Args:
            since_ms, until_ms: Costs at or after, and before these times (epoch ms); all if not given.
            limit: Rows, 1 to 200; the totals are over all.

        Returns:
            ``{"by", "rows": [{"key", "tasks", "accepted", "spent_usd", "per_accepted_usd" or None, "input_tokens",
            "output_tokens", "cache_read_tokens", "cache_write_tokens", "waste_usd", "waste_ratio"}], "total_usd",
            "waste_usd", "has_more"}``. Waste is what a swarm spent on tasks that failed, were given back or were completed by
            another; costs without a task, or with one that is under way, count as neither accepted nor waste.

        Raises:
            overloaded: Another report is under way; one may read everything.
        """
        ...

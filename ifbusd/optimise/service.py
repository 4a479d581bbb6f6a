"""IFOptimise: reads the ledger of a period and adds it up. It writes nothing."""

from __future__ import annotations

import logging
from typing import Final

import trio

from ifbus.errors import InvalidParams, Overloaded
from ifbusd.codec import unpack
from ifbusd.identity import Caller
from ifbusd.optimise import rules
from ifbusd.optimise.interface import Answer
from ifbusd.optimise.model import CLAIMS, HOUR_MS, LEDGER, TASKS, Cost, TaskFate
from ifbusd.store.base import Store

_log = logging.getLogger(__name__)

MAX_PAGE: Final = 200
# Ledger entries or tasks per slice between two looks at the scheduler: about a millisecond.
_CHUNK: Final = 200
# Larger than any time that a clock shows, and than the ledger's hours have digits for.
_END_OF_TIME_MS: Final = 10**13


class IFOptimise:
    """`ifbusd.optimise.interface.Optimise`. The mutable state is whether a report is under way."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_reporting = False

    async def report(
        self,
        caller: Caller,
        *,
        by: rules.Dimension = "swarm",
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
        if by not in rules.DIMENSIONS:
            raise InvalidParams(f"by is one of {', '.join(rules.DIMENSIONS)}, got {by!r:.80}", data={"param": "by"})
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidParams(f"limit is 1 to {MAX_PAGE}, got {limit}", data={"param": "limit", "max": MAX_PAGE})
        until = _END_OF_TIME_MS if until_ms is None else min(until_ms, _END_OF_TIME_MS)
        if self._is_reporting:
            raise Overloaded("cannot report costs: another report is under way", data={"retry_after_ms": 500})
        self._is_reporting = True
        try:
            sums = rules.Sums(by)
            await self._read_ledger(sums, min(max(0, since_ms), until), until)
            fates = await self._read_fates(sums.task_ids)
            await self._store.barrier()
            return rules.report(sums, by, fates, limit=limit)
        finally:
            self._is_reporting = False

    async def _read_ledger(self, sums: rules.Sums, since_ms: int, until_ms: int) -> None:
        # Keys begin with the hour, so reading starts and ends at the right one.
        after = f"{LEDGER}{since_ms // HOUR_MS:07d}/"
        end = f"{LEDGER}{-(-until_ms // HOUR_MS):07d}/"
        while True:
            page = await self._store.range(LEDGER, after=after, limit=_CHUNK)
            for item in page.items:
                if item.key >= end:
                    return
                try:
                    cost = Cost.from_stored(item.key, unpack(item.value))
                except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                    # Another host may write what we cannot read (THREATS T6).
                    _log.warning(
                        "a ledger entry cannot be read and is ignored", extra={"key": item.key, "error": repr(error)}
                    )
                    continue
                if since_ms <= cost.at_ms < until_ms:
                    sums.add(cost)
            if not page.has_more:
                return
            after = page.items[-1].key
            await trio.lowlevel.checkpoint()

    async def _read_fates(self, task_ids: set[str]) -> dict[str, TaskFate]:
        fates = {}
        for number, task_id in enumerate(task_ids, start=1):
            try:
                fate = await self._read_fate(task_id)
            except (KeyError, TypeError, ValueError, AttributeError):
                fate = None  # another host wrote it; the coordinator's board has said so
            if fate is not None:
                fates[task_id] = fate
            if not number % _CHUNK:
                await trio.lowlevel.checkpoint()
        return fates

    async def _read_fate(self, task_id: str) -> TaskFate | None:
        stored = await self._store.get(TASKS + task_id)
        if stored is None:
            return None
        task = unpack(stored.value)
        state = task.get("state", "open")
        if state != "open":
            return TaskFate(state, task.get("last_holder", ""))
        claim = await self._store.get(CLAIMS + task_id)
        holder = "" if claim is None else unpack(claim.value)["swarm_id"]
        return TaskFate("open", holder, bool(task.get("blocker")))

"""What every operation does that adds an edge to the wait-for graph: refuse it if it closes a cycle, whoever races.

Each such operation reads and writes one counter, so of two at once one decides again, on a board that shows the other's edge.
Claims need none of it: a task that is being claimed waits for nothing, so no way leads on from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ifbusd.codec import unpack
from ifbusd.coordinator.core import Core, limit_exceeded
from ifbusd.coordinator.locks.rules import MAX_ENDS_WITH
from ifbusd.coordinator.model import CLAIMS, WAITS_COUNTER, ClaimRecord
from ifbusd.coordinator.waits import rules as waits
from ifbusd.coordinator.waits.graph import WaitGraph
from ifbusd.coordinator.waits.rules import Edge
from ifbusd.operation import Tx


class Waiting(Core):
    """Adds edges, and what ends with a claim."""

    def __init__(self, **parts: Any) -> None:
        """See `Core`."""
        super().__init__(**parts)
        self._graph = WaitGraph(self.board)

    def _add_edges(self, tx: Tx, what: str, edges: Sequence[Edge]) -> None:
        """Note that these edges are added by this operation.

        Args:
            what: What cannot be done if one closes a cycle, such as ``wait for gpu:0``.

        Raises:
            WouldDeadlock: One does.
            LimitExceeded: The graph is too large to tell.
        """
        counted = tx.get_stored(WAITS_COUNTER)
        if counted is not None and self.board.revision < counted.mod_revision:
            tx.obtain(f"shown {counted.mod_revision}", self._catch_up)
        for edge in edges:
            try:
                path = waits.find_path(partial(self._edges_beside, edge), edge.target, edge.source)
            except OverflowError:
                most = waits.MAX_LOOKED_AT
                raise limit_exceeded(
                    what, "waiting_nodes", most, most, "wait until fewer wait for one another"
                ) from None
            if path is not None:
                raise waits.would_deadlock(what, [edge, *path])
        tx.put(WAITS_COUNTER, 1 if counted is None else unpack(counted.value) + 1)

    def _end_with_claim(
        self, tx: Tx, what: str, task_id: str, claim: ClaimRecord, *, lease: int, keys: Sequence[str]
    ) -> None:
        """Note keys that end with a claim, which lives on this lease.

        Args:
            what: What cannot be done if they are too many, such as ``ask for T-7``.

        Raises:
            LimitExceeded: They are.
        """
        used, allowed = len(claim.ends_with), MAX_ENDS_WITH
        if used + len(keys) > allowed:
            remedy = (
                "release a resource, or do it for the swarm instead of the task; a question counts until the claim ends"
            )
            raise limit_exceeded(what, "ends_with", used, allowed, remedy)
        now = claim.evolve(ends_with=[*claim.ends_with, *keys])
        tx.put(CLAIMS + task_id, now.to_map(), lease=lease, decoded=now)

    def _edges_beside(self, added: Edge, node: str) -> Iterator[Edge]:
        # Whoever takes a resource waits for that very one no longer.
        return (
            edge
            for edge in self._graph.edges_of(node)
            if added.why != "held" or (edge.source, edge.target) != (added.target, added.source)
        )

    async def _catch_up(self) -> bool:
        await self.board.catch_up()
        return True

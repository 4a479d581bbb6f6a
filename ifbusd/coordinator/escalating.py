"""Blockers that nobody has resolved for too long are brought before people: once each, whatever is restarted meanwhile."""

from __future__ import annotations

from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, NothingToDo
from ifbusd.coordinator.model import BlockerRecord
from ifbusd.operation import Tx


class Escalating(Core):
    """Watches the times of open blockers."""

    async def escalate_blockers(self) -> None:
        """Bring each blocker before people when its time has come, until cancelled."""
        while True:
            for blocker_id in self.board.take_due_blockers():
                await self._escalate(blocker_id)
            await self.board.wait_blocker_due(self._config.clock_tick_ms / 1000)

    async def _escalate(self, blocker_id: str) -> None:
        def escalate(tx: Tx) -> Answer:
            stored = tx.get(rules.blocker_key(blocker_id))
            if stored is None:
                raise NothingToDo
            blocker = BlockerRecord.from_bytes(stored)
            if blocker.escalated_at_ms:
                raise NothingToDo  # by another daemon
            now = blocker.evolve(escalated_at_ms=self._now_ms())
            tx.put(rules.blocker_key(blocker_id), now.to_map())
            tx.publish("escalations", {"kind": "blocker_escalated", **rules.blocker_view(blocker_id, now)})
            tx.detail.update(swarm=blocker.swarm_id, severity=blocker.severity)
            return {}

        await self._surely("coordinator.escalate_blocker", blocker_id, escalate)

"""Blockers that nobody has resolved for too long are brought before people: once each, whatever is restarted meanwhile."""

from __future__ import annotations

import logging
from typing import Final

from ifbus.errors import IfbusError
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core
from ifbusd.coordinator.model import BlockerRecord
from ifbusd.identity import ITSELF
from ifbusd.operation import Tx

_log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0


class _NothingToDo(Exception):
    """It was resolved, or brought before people already; leaves the operation without a trace."""


class Escalating(Core):
    """Watches the times of open blockers."""

    async def escalate_blockers(self) -> None:
        """Bring each blocker before people when its time has come, until cancelled."""
        while True:
            for blocker_id in list(self.board.blockers_due.take_due(self._now_ms())):
                await self._escalate(blocker_id)
            await self.board.blockers_due.wait(self._now_ms())

    async def _escalate(self, blocker_id: str) -> None:
        def escalate(tx: Tx) -> Answer:
            stored = tx.get(rules.blocker_key(blocker_id))
            if stored is None:
                raise _NothingToDo
            blocker = BlockerRecord.from_bytes(stored)
            if blocker.escalated_at_ms:
                raise _NothingToDo  # by another daemon
            now = blocker.evolve(escalated_at_ms=self._now_ms())
            tx.put(rules.blocker_key(blocker_id), now.to_map())
            tx.publish("escalations", {"kind": "blocker_escalated", **rules.blocker_view(blocker_id, now)})
            tx.detail.update(swarm=blocker.swarm_id, severity=blocker.severity)
            return {}

        try:
            await self._operations.run(ITSELF, "coordinator.escalate_blocker", blocker_id, escalate)
        except _NothingToDo:
            pass
        except IfbusError as error:  # the store has no room, or does not answer: it must come back or end us
            _log.warning("cannot escalate a blocker", extra={"blocker": blocker_id, "reason": error.message})
            self.board.blockers_due.put(blocker_id, self._now_ms() + round(_RETRY_S * 1000))

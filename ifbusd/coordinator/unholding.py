"""Sessions, and resources that a swarm held by itself, that have ended with their lease: put on record, and told to whose they were.

A hold for a claim ends with the claim, which is on record. Any other leaves ``held/<id>``, on no lease, when its lock vanishes, and a
session ``begun/<swarm>/<incarnation>``: so the end is on record once, whichever daemon sees it, also after a crash, and also where
the next one has taken the resource, or the name, already.
"""

from __future__ import annotations

from typing import Final

import trio

from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, NothingToDo
from ifbusd.coordinator.model import BEGUN, HELD, LOCKS, SESSIONS, HeldRecord, LockRecord, SessionRecord
from ifbusd.operation import Tx
from ifbusd.peers import STAND_BY_S

# So many are put on record at a time; the store commits them together.
_AT_ONCE: Final = 64


class Unholding(Core):
    """Puts such ends on record."""

    async def record_ends(self) -> None:
        """Do so until cancelled."""
        while True:
            await self.board.wait_unrecorded()
            holds, sessions = list(self.board.locks.ended)[:_AT_ONCE], list(self.board.ended_sessions)[:_AT_ONCE]
            if not self._goes_first():
                await trio.sleep(STAND_BY_S)  # all daemons see it: only if the first one has not done it
            async with trio.open_nursery() as nursery:
                for held_id in holds:
                    nursery.start_soon(self._record_ended_hold, held_id)
                for name in sessions:
                    nursery.start_soon(self._record_ended_session, name)

    async def _record_ended_hold(self, held_id: str) -> None:
        known = self.board.locks.standalone.get(held_id)
        if known is not None:

            def end(tx: Tx) -> Answer:
                stored = tx.get_stored(HELD + held_id)
                if stored is None:
                    raise NothingToDo  # another daemon did
                held = HeldRecord.from_bytes(stored.value)
                lock = tx.read(LOCKS + held.resource, LockRecord.from_bytes)
                if lock is not None and lock.held_id == held_id:
                    raise NothingToDo
                session = tx.read(SESSIONS + held.swarm_id, SessionRecord.from_bytes)
                reason, fence = rules.why_ended(held.incarnation, session), stored.create_revision
                tx.delete(HELD + held_id)
                tx.detail.update(swarm=held.swarm_id, fence=fence, reason=reason)
                told = {"kind": "resource_lost", "resource": held.resource, "fence": fence, "reason": reason}
                message = f"you hold {held.resource} no longer: {reason}; stop using it"
                tx.publish(f"attention.{held.swarm_id}", {**told, "message": message})
                return {}

            await self._surely("coordinator.expire_resource", known.resource, end)
        self.board.locks.ended.pop(held_id, None)

    async def _record_ended_session(self, name: str) -> None:
        swarm_id, _, number = name.partition("/")

        def end(tx: Tx) -> Answer:
            if tx.get_stored(BEGUN + name) is None:
                raise NothingToDo  # another daemon did
            session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes)
            if session is not None and session.incarnation == int(number):
                raise NothingToDo
            tx.delete(BEGUN + name)
            tx.detail.update(incarnation=int(number), reason="lease_ended")
            if session is None:  # whoever came after it is not meant
                told = {"kind": "session_ended", "swarm_id": swarm_id, "reason": "lease_ended"}
                message = f"the session of {swarm_id} has ended: its lease ran out; stop its work, register again"
                tx.publish(f"attention.{swarm_id}", {**told, "message": message})
            return {}

        await self._surely("coordinator.expire_session", swarm_id, end)
        self.board.ended_sessions.pop(name, None)

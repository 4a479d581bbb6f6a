"""Who has to be told that a person is needed: open escalations, and the connections that listen for new ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from ifbusd.bus.base import Bus, Message
from ifbusd.codec import unpack
from ifbusd.governor.admission import ESCALATIONS
from ifbusd.governor.model import ALARMS, APPROVALS, BLOCKERS, TRIPPED
from ifbusd.identity import Session
from ifbusd.store.base import Page, Store

_log = logging.getLogger(__name__)

# Of each kind; an operator with more open than this has another problem than reading them.
MAX_OPEN: Final = 200
# Of at most 24 KiB each.
_TOLD_AT_ONCE: Final = 16
# Of a question that waits for approval.
_QUOTED: Final = 200


class Escalations:
    """Sends escalations to operators' connections. The mutable state is the set of those that listen."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self._store = store
        self._bus = bus
        self._listening: set[int] = set()

    @property
    def listeners(self) -> int:
        """How many connections listen."""
        return len(self._listening)

    async def subscribe(self, session: Session) -> int:
        """Send a connection the open escalations, and each new one until it ends; how many were open.

        Each is sent once, however it races with the subscription. A connection that listens already gets nothing more.
        """
        if id(session) in self._listening:
            return 0
        early: list[Message] = []
        # As of this revision the open ones are complete; None until they have been read and sent.
        complete: int | None = None

        def tell(_: str, message: Message) -> None:
            if complete is None:
                early.append(message)
            elif message["revision"] > complete:  # older ones may come late, they are among the open ones
                session.notify("escalation", [message])

        subscription = self._bus.subscribe(ESCALATIONS, tell)

        def forget() -> None:
            subscription.close()
            self._listening.discard(id(session))

        self._listening.add(id(session))
        session.on_close(forget)
        try:
            opened, as_of, _ = await self.read_open()
            # All of them can be longer than what may wait for a reader, so they are told no faster than they are read.
            for number, message in enumerate(opened, start=1):
                session.notify("escalation", [message])
                if not number % _TOLD_AT_ONCE:
                    await session.drained()
        except BaseException:
            forget()
            raise
        complete = as_of
        for message in early:
            tell(ESCALATIONS, message)
        return len(opened)

    async def read_open(self) -> tuple[list[dict[str, Any]], int, bool]:
        """Tripped breakers, open blockers, alarms and approvals by time, the revision as of which they are complete, and whether there are more."""
        trips = await self._store.range(TRIPPED, limit=MAX_OPEN)
        blockers = await self._store.range(BLOCKERS, limit=MAX_OPEN)
        alarms = await self._store.range(ALARMS, limit=MAX_OPEN)
        approvals = await self._store.range(APPROVALS, limit=MAX_OPEN)
        await self._store.barrier()
        ignored: list[str] = []
        found = [
            *readable(trips, lambda _, row: {"kind": "breaker_tripped", "at_ms": row["tripped_at_ms"], **row}, ignored),
            *readable(
                blockers,
                lambda key, row: {"kind": "blocker", "blocker_id": key.removeprefix(BLOCKERS), **row},
                ignored,
            ),
            *readable(alarms, lambda _, row: row, ignored),
            *readable(approvals, _approval, ignored),
        ]
        if ignored:  # one line, because anybody may ask as often as he likes
            _log.warning(
                "stored records cannot be read and are ignored", extra={"records": len(ignored), "first": ignored[0]}
            )
        found.sort(key=lambda message: (message.get("at_ms", 0), message.get("swarm_id", "")))
        pages = (trips, blockers, alarms, approvals)
        return found, min(page.revision for page in pages), any(page.has_more for page in pages)


def readable(
    page: Page, show: Callable[[str, dict[str, Any]], dict[str, Any]], ignored: list[str]
) -> Iterator[dict[str, Any]]:
    """What is stored there as it is told.

    What another host wrote and nobody can read (THREATS T6) is left out; its keys are added to `ignored`.
    """
    for item in page.items:
        try:
            message = show(item.key, unpack(item.value))
            if type(message.get("at_ms", 0)) is not int or type(message.get("swarm_id", "")) is not str:
                raise TypeError("they are told in order of time, and of the swarms")
        except (KeyError, TypeError, ValueError, AttributeError):
            ignored.append(item.key)
        else:
            yield message


def _approval(key: str, row: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "approval", "reply_id": key.removeprefix(APPROVALS), **row, "reason": row["question"][:_QUOTED]}

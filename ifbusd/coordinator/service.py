"""IF.coordinator as a whole."""

from __future__ import annotations

import attrs
import trio

from ifbusd.coordinator.blockers import Blockers
from ifbusd.coordinator.core import Answer
from ifbusd.coordinator.inbox import Inbox
from ifbusd.coordinator.sessions import Sessions
from ifbusd.coordinator.tasks import Tasks
from ifbusd.identity import Caller
from ifbusd.operation import Tx


@attrs.frozen(kw_only=True)
class CoordinatorStatistics:
    """A snapshot. `tasks` counts by state."""

    tasks: dict[str, int]
    sessions: int
    claims: int
    blockers: int
    letters: int
    revision: int


class IFCoordinator(Tasks, Sessions, Inbox, Blockers):
    """Implements `interface.Coordinator`. Start `run` before the first call."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the store and look after claims that end by themselves; ready once the board is read."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.board.run)
            nursery.start_soon(self.handle_lost_claims)
            task_status.started()

    async def attention(self, caller: Caller, swarm_id: str) -> list[Answer]:
        """What the swarm should know before any other answer: claims it still holds, urgent letters, open letters.

        Raises:
            not_found, permission_denied: There is no such swarm, or it is another user's.
        """
        await self._governor.require_owner(Tx(self._store), caller, swarm_id)
        await self.board.catch_up()
        items: list[Answer] = [
            {"kind": "holding", "handle": handle, "message": f"you still hold {handle}"}
            for handle in self.board.handles_of(swarm_id)
        ]
        letters = [message for _, message in self.board.inbox.get(swarm_id, {}).values()]
        urgent = sum(1 for message in letters if message.urgent)
        if letters:
            items.append(
                {
                    "kind": "mail",
                    "letters": len(letters),
                    "urgent": urgent,
                    "message": f"{len(letters)} letters wait, {urgent} urgent: ifbus inbox",
                }
            )
        return items

    def statistics(self) -> CoordinatorStatistics:
        """Figures of now."""
        return CoordinatorStatistics(
            tasks={state: number for state, number in self.board.counts.items() if number},
            sessions=len(self.board.sessions),
            claims=sum(map(len, self.board.held_by.values())),
            blockers=len(self.board.blockers),
            letters=sum(map(len, self.board.inbox.values())),
            revision=self.board.revision,
        )

"""IF.coordinator as a whole."""

from __future__ import annotations

from typing import Any, Final

import attrs
import trio

from ifbusd.codec import how_many_fit
from ifbusd.coordinator.alarms import Alarms
from ifbusd.coordinator.blockers import Blockers
from ifbusd.coordinator.claiming import Claiming
from ifbusd.coordinator.core import Answer
from ifbusd.coordinator.creating import Creating
from ifbusd.coordinator.escalating import Escalating
from ifbusd.coordinator.gates.draining import Draining
from ifbusd.coordinator.holding import Holding
from ifbusd.coordinator.inbox import Inbox
from ifbusd.coordinator.questions import Questions
from ifbusd.coordinator.sessions import Sessions
from ifbusd.coordinator.standing import Standing
from ifbusd.coordinator.tasks import Tasks
from ifbusd.coordinator.timekeeping import Timekeeping
from ifbusd.coordinator.topics import TopicSubscriptions
from ifbusd.coordinator.unholding import Unholding
from ifbusd.identity import Caller
from ifbusd.operation import Tx

# Named in one notification at most; `renew_session` names all.
_HANDLES: Final = 200
# Of what is not in here, alarms, the place is second.
_URGENCY: Final = {"breaker_tripped": 0, "budget_low": 3, "holding": 4, "mail": 5}
_ALARM: Final = 1
# Letters to a holder whose claim somebody else ended: as urgent as alarms, so that whoever only asks now and then stops.
_CLAIM_ENDS: Final = frozenset(("cancelled", "expired"))
_URGENT_MAIL: Final = 2


def _urgency(item: Answer) -> int:
    return _URGENT_MAIL if item.get("urgent") else _URGENCY.get(item["kind"], _ALARM)


@attrs.frozen(kw_only=True)
class CoordinatorStatistics:
    """A snapshot. `tasks` counts by state, `waiting` those who wait for a task, `processes` those that are watched; `draining` says how far
    this host's drain is, None while there is none."""

    tasks: dict[str, int]
    sessions: int
    claims: int
    blockers: int
    letters: int
    waiting: int
    revision: int
    processes: int
    draining: dict[str, Any] | None


class IFCoordinator(
    Creating,
    Tasks,
    Claiming,
    Holding,
    Timekeeping,
    Sessions,
    Inbox,
    Blockers,
    Escalating,
    TopicSubscriptions,
    Standing,
    Questions,
    Alarms,
    Draining,
    Unholding,
):
    """Implements `interface.Coordinator`. Start `run` before the first call."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the store and look after claims that end by themselves.

        Ready once the board is read and what claims held that ended in a crash is given back, if the store has room for that.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.board.run)
            nursery.start_soon(self._retired.run)
            nursery.start_soon(self._bindings.run)
            nursery.start_soon(self.look_after_bindings)
            nursery.start_soon(self.handle_lost_claims)
            await self._may_serve.wait()
            nursery.start_soon(self.watch_clocks)
            nursery.start_soon(self.look_after_drains)
            nursery.start_soon(self.escalate_blockers)
            nursery.start_soon(self.keep_time)
            nursery.start_soon(self.record_ends)
            task_status.started()

    async def attention(self, caller: Caller, swarm_id: str) -> list[Answer]:
        """What the swarm should know before any other answer, most urgent first, as far as it fits into one notification:
        that it is stopped, alarms, urgent mail, that its budget is low, the claims it still holds, mail.

        Raises:
            not_found, permission_denied: There is no such swarm, or it is another user's.
        """

        def read(tx: Tx) -> list[Answer]:
            self._governor.require_owner(tx, caller, swarm_id)
            return self._governor.attention(tx, swarm_id)

        items = await self._operations.look(read)
        await self.board.catch_up()
        items += self.alarms_of(swarm_id)[:_HANDLES]
        items += [
            {"kind": "holding", "handle": handle, "message": f"you still hold {handle}"}
            for handle in self.board.handles_of(swarm_id)[:_HANDLES]
        ]
        letters = [message for _, message in self.board.mail.letters(swarm_id)]
        notices = [letter.body for letter in letters if letter.kind == "notice"]  # the daemon's own words
        items += [body for body in notices if body.get("kind") in _CLAIM_ENDS][:_HANDLES]
        urgent = sum(1 for message in letters if message.urgent)
        if letters:
            items.append(
                {
                    "kind": "mail",
                    "letters": len(letters),
                    "urgent": urgent,
                    "message": f"{len(letters)} {'letter waits' if len(letters) == 1 else 'letters wait'}, {urgent} urgent: ifbus inbox",
                }
            )
        items.sort(key=_urgency)
        return items[: how_many_fit(items)]

    async def presence(self, swarm_ids: list[str]) -> list[tuple[bool, list[str]]]:
        """Of each swarm whether its session is alive and the claim handles it holds, as of all that anybody was answered."""
        await self.board.show_told()
        return [(swarm_id in self.board.sessions, self.board.handles_of(swarm_id)) for swarm_id in swarm_ids]

    def statistics(self) -> CoordinatorStatistics:
        """Figures of now."""
        return CoordinatorStatistics(
            tasks={state: number for state, number in self.board.counts.items() if number},
            sessions=len(self.board.sessions),
            claims=sum(map(len, self.board.held_by.values())),
            blockers=len(self.board.blockers),
            letters=len(self.board.mail),
            waiting=len(self.board.offers),
            revision=self.board.revision,
            processes=self._bindings.processes,
            draining=self.drain_progress(),
        )

"""How a swarm stands: what it works on, how far it is, what it waits for and does next, as the old status files had it."""

from __future__ import annotations

from typing import Any

from ifbusd.codec import how_many_fit
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer
from ifbusd.coordinator.model import TaskRecord
from ifbusd.coordinator.waiting import Waiting
from ifbusd.coordinator.waits import rules as waits
from ifbusd.identity import Caller

# Edges of a swarm's waits that are shown; `coordinator.waits` has all.
_EDGES = 20


class Standing(Waiting):
    """One question about one swarm."""

    async def swarm_status(self, caller: Caller, swarm_id: str) -> Answer:
        """See `interface.Coordinator.swarm_status`."""
        if self._governor.capabilities_of(swarm_id) is None:
            raise rules.no_swarm(swarm_id)
        await self.board.catch_up()
        held = self.board.claims_of(swarm_id)
        tasks: list[dict[str, Any]] = []
        for (task_id, one), (stored, _) in zip(
            held, await self._read_tasks([task_id for task_id, _ in held]), strict=True
        ):
            if stored is not None:
                task = TaskRecord.from_bytes(stored.value)
                view = self._view(task_id, task, one.claim, one.token)
                view["milestone"] = rules.milestone(task, one.claim)
                rules.drop_heavy(view)
                if isinstance(branch := task.payload.get("branch"), str):
                    view["branch"] = branch[: rules.MAX_TITLE]
                tasks.append(view)
        edges = [edge.to_wire() for edge in self._graph.look(waits.swarm(swarm_id), _EDGES)[0]]
        return {
            "swarm_id": swarm_id,
            "status": self._standing(swarm_id, tasks),
            "tasks": tasks[: how_many_fit(tasks)],
            "tasks_in_progress": len(held),
            "tasks_completed": self.board.completed_by.get(swarm_id, 0),
            "waits": edges[: how_many_fit(edges, 8 << 10)],
            "at_ms": self._now_ms(),
        }

    def _standing(self, swarm_id: str, tasks: list[dict[str, Any]]) -> str:
        if tasks:
            waiting = set(self.board.waits.waiting_nodes)
            is_blocked = waits.swarm(swarm_id) in waiting or all(
                task.get("blocked_on") or waits.task(task["task_id"]) in waiting for task in tasks
            )
            return "blocked" if is_blocked else "in_progress"
        return "waiting" if swarm_id in self.board.sessions else "away"

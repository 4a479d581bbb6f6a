"""The wait-for graph by the board: nothing is kept here, each look follows the edges from where it begins."""

from __future__ import annotations

from collections.abc import Iterator

from ifbusd.coordinator.board import Board
from ifbusd.coordinator.waits import rules
from ifbusd.coordinator.waits.rules import Edge
from ifbusd.coordinator.waits.view import edges_of_record


class WaitGraph:
    """Which edges lead on from a node."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def edges_of(self, node: str) -> Iterator[Edge]:
        """What a node waits for itself."""
        kind, _, name = node.partition(":")
        if kind == "resource":
            lock = self._board.locks.held.get(name)
            if lock is not None:
                record = lock.record
                holder = rules.task(record.task_id) if record.task_id else rules.swarm(record.swarm_id)
                yield Edge(node, holder, "held", record.at_ms)
            return
        waits = self._board.waits
        for wait_id in waits.waits_of(node):
            question = waits.questions.get(wait_id)
            if question is not None:
                yield edges_of_record(question, wait_id)
                continue
            wait = waits.for_resources[wait_id]
            for resource in wait.resources:
                yield Edge(node, rules.resource(resource), "resource", wait.at_ms)
        if kind == "swarm":
            for task_id in sorted(self._board.held_by.get(name, ())):
                yield Edge(node, rules.task(task_id), "works_on")
        elif kind == "task" and (entry := self._board.tasks.get(name)) is not None:
            if entry.held is not None:
                return  # whoever holds it goes on, also where one that it was to run without has been requeued
            for dependency in sorted(entry.unmet):
                yield Edge(node, rules.task(dependency), "dependency")
            if entry.shown == "waiting":
                for resource in sorted(entry.busy):
                    yield Edge(node, rules.resource(resource), "resource")

    def look(self, about: str, most: int) -> tuple[list[Edge], bool]:
        """The edges around a node, or, for ``""``, around all that wait for somebody; at most so many, and whether there are more.

        Edges that lead to somebody who works on nothing that waits are left out: they say nothing.
        """
        found: dict[Edge, None] = {}
        seen: set[str] = set()
        queue = [about] if about else self._roots()
        for node in queue:
            if node in seen:
                continue
            seen.add(node)
            for edge in self.edges_of(node):
                if edge.why == "works_on" and not any(self.edges_of(edge.target)):
                    continue
                if len(found) >= most:
                    return list(found), True
                found[edge] = None
                queue.append(edge.target)
            if node.startswith("task:"):
                queue += [rules.task(name) for name in sorted(self._board.dependants_of(node.partition(":")[2]))]
        return list(found), False

    def _roots(self) -> list[str]:
        waiting = self._board.waits.waiting_nodes
        wanted = {
            rules.task(task_id) for name in self._board.locks.held for task_id in self._board.locks.wanted_by(name)
        }
        return [*waiting, *sorted(wanted)]

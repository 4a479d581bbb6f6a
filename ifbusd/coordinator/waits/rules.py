"""The wait-for graph's decisions, pure: what closes a cycle, and where help would free the most work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from ifbus.errors import WouldDeadlock

Why = Literal["dependency", "resource", "held", "reply", "approval", "works_on"]
PERSON: Final = "person"
# Somebody has to do something for these to end; the others follow from them.
_NEEDS_SOMEBODY: Final = frozenset(("reply", "approval", "held"))
# So many nodes are looked at for a cycle; beyond it a wait is refused rather than let through unseen.
MAX_LOOKED_AT: Final = 10_000
# Help is worked out among so many edges at most, the oldest first: each costs a walk through all that is shown.
_MAX_CANDIDATES: Final = 64
_SAYS: Final = {
    "dependency": "waits for",
    "resource": "waits for",
    "held": "is held for",
    "reply": "waits for a reply of",
    "approval": "waits for the approval of a",
    "works_on": "works on",
}


class Edge(NamedTuple):
    """`source` cannot go on before `target` does.

    Attributes:
        id: Of the question, where it is one.
        since_ms: When it began, 0 where that is not known.
    """

    source: str
    target: str
    why: Why
    since_ms: int = 0
    id: str = ""

    def to_wire(self) -> dict[str, Any]:
        """The map of the wire: only what says something."""
        view: dict[str, Any] = {"from": self.source, "to": self.target, "why": self.why}
        view.update({name: value for name, value in (("since_ms", self.since_ms), ("id", self.id)) if value})
        return view


class Help(NamedTuple):
    """Where help is called for.

    Attributes:
        frees: The tasks that can go on by themselves once this edge has ended.
        holds_up: How many cannot before that, those that wait for others besides among them.
    """

    edge: Edge
    frees: tuple[str, ...]
    holds_up: int

    @property
    def weight(self) -> tuple[int, int]:
        """Larger where help is worth more."""
        return len(self.frees), self.holds_up


def task(task_id: str) -> str:
    """The node of a task."""
    return f"task:{task_id}"


def swarm(swarm_id: str) -> str:
    """The node of a swarm."""
    return f"swarm:{swarm_id}"


def resource(name: str) -> str:
    """The node of a resource."""
    return f"resource:{name}"


def find_path(edges_of: Callable[[str], Iterable[Edge]], source: str, target: str) -> list[Edge] | None:
    """The edges from one node to another, as few as possible; None if there is no way, ``[]`` if they are one.

    Raises:
        OverflowError: More nodes than `MAX_LOOKED_AT` can be reached.
    """
    if source == target:
        return []
    came_by: dict[str, Edge | None] = {source: None}
    queue = [source]
    for node in queue:
        for edge in edges_of(node):
            if edge.target in came_by:
                continue
            came_by[edge.target] = edge
            if edge.target == target:
                return _walk_back(came_by, target)
            queue.append(edge.target)
            if len(queue) > MAX_LOOKED_AT:
                raise OverflowError(f"more than {MAX_LOOKED_AT} nodes")
    return None


def _walk_back(came_by: dict[str, Edge | None], target: str) -> list[Edge]:
    path: list[Edge] = []
    edge = came_by[target]
    while edge is not None:
        path.append(edge)
        edge = came_by[edge.source]
    return path[::-1]


def would_deadlock(what: str, cycle: Sequence[Edge]) -> WouldDeadlock:
    """The refusal of a wait that closes this cycle, which begins with it."""
    told = ", which ".join(f"{_SAYS[edge.why]} {_name(edge.target)}" for edge in cycle)
    nodes = [edge.source for edge in cycle]
    return WouldDeadlock(
        f"cannot {what}: {_name(nodes[0])} {told}",
        data={"cycle": [*nodes, cycle[-1].target], "edges": [edge.to_wire() for edge in cycle]},
        would_change=[
            {"by": "self", "what": f"let go of what {_name(nodes[0])} holds, then ask again"},
            {"by": "other", "what": "one of these lets go or answers", "call": "ifbus waits"},
        ],
    )


def _name(node: str) -> str:
    return node.partition(":")[2] or node


def best_help(edges: Sequence[Edge]) -> Help | None:
    """Where help frees the most work: the reply, approval or held resource without which most tasks could go on by themselves.

    A task is stuck if what it waits for, directly or through others, needs somebody to act. Between equals the one that holds
    up the most tasks wins, so there is one also where each task waits for two; then the oldest wait, then the first by name.
    None if nothing is stuck.
    """
    candidates = sorted(
        (edge for edge in edges if edge.why in _NEEDS_SOMEBODY),
        key=lambda edge: (edge.since_ms, edge.source, edge.target),
    )
    stuck = _waiting_for(candidates, edges)
    best: Help | None = None
    for edge in candidates[:_MAX_CANDIDATES]:
        freed = stuck - _waiting_for(_without(edge, candidates), _without(edge, edges))
        found = Help(edge, tuple(sorted(_name(node) for node in freed)), len(_waiting_for([edge], edges)))
        if found.holds_up and (best is None or found.weight > best.weight):
            best = found
    return best


def _without(edge: Edge, edges: Iterable[Edge]) -> list[Edge]:
    return [other for other in edges if other != edge]


def _waiting_for(ends: Iterable[Edge], edges: Iterable[Edge]) -> set[str]:
    """The tasks from which a way leads over one of these ends."""
    waiting_for: dict[str, list[str]] = {}
    for edge in edges:
        waiting_for.setdefault(edge.target, []).append(edge.source)
    queue = [edge.source for edge in ends]
    seen = set(queue)
    for node in queue:
        for source in waiting_for.get(node, ()):
            if source not in seen:
                seen.add(source)
                queue.append(source)
    return {node for node in seen if node.startswith("task:")}

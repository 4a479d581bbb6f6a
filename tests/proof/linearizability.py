"""Whether what many clients saw of one task can be explained by one order of events (Wing and Gong, with Lowe's memo).

An operation takes effect once, at some point between its start and its end. The search takes one operation after the
other that may come next, as long as the model allows what its client heard; a set of operations that led to the same
state before is not looked at again. An operation of unknown outcome may take effect anywhere after its start, or never.

Pure: no I/O, no clock. Keep a history to 8 clients and 100 operations; the search is exponential in how many overlap.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.proof.history import Operation, Outcome

FOREVER_NS: Final = 2**63
# The server counts whole milliseconds on a clock that it reads after the client did: it may be early by less than this.
_TICK_NS: Final = 1_000_000
_MS_NS: Final = 1_000_000
# Nodes of the search before it gives up; an honest history of 100 operations needs a few hundred.
MAX_NODES: Final = 200_000
# The token of a claim whose answer never came, until somebody sees it.
UNSEEN: Final = 0


class Verdict(enum.Enum):
    """What the search found."""

    LINEARIZABLE = enum.auto()
    IMPOSSIBLE = enum.auto()
    UNDECIDED = enum.auto()


class Task(NamedTuple):
    """The model: who holds the task, or who completed it.

    Attributes:
        newest: The largest token that was given out: the next one is larger.
        due_ns: The claim cannot end by itself before this.
        done: The claim that completed it.
    """

    holder: str | None = None
    token: int = UNSEEN
    newest: int = UNSEEN
    due_ns: int = 0
    done: tuple[str, int] | None = None


def check(history: Sequence[Operation], *, max_nodes: int = MAX_NODES) -> Verdict:
    """Judge the history of one task: its operations are claim, renew, complete, release and get."""
    # An unknown look or renewal explains nothing that the search could not explain without it.
    told = [o for o in history if o.outcome is not Outcome.UNKNOWN or o.kind not in ("get", "renew")]
    operations = sorted(told, key=lambda operation: operation.end_ns or FOREVER_NS)
    starts = [operation.start_ns for operation in operations]
    ends = [operation.end_ns or FOREVER_NS for operation in operations]
    definite = sum(1 << n for n, operation in enumerate(operations) if operation.end_ns is not None)
    first = (0, Task())
    seen, stack = {first}, [first]
    while stack:
        if len(seen) > max_nodes:
            return Verdict.UNDECIDED
        taken, task = stack.pop()
        if not definite & ~taken:
            return Verdict.LINEARIZABLE
        left = [n for n in range(len(operations)) if not taken >> n & 1]
        # Whoever is answered first has taken effect by then: what began later cannot come before it.
        horizon_ns = ends[left[0]]
        reachable = [(taken | 1 << n, step(task, operations[n])) for n in left if starts[n] <= horizon_ns]
        # A claim that ends by itself was there until its time, and all that is left to explain came later.
        if task.holder is not None and task.due_ns - _TICK_NS <= horizon_ns:
            reachable.append((taken, task._replace(holder=None, token=UNSEEN)))
        # The stack is read from its end: what ended first is the likeliest to be next, an expiry the least.
        for set_taken, after in reversed(reachable):
            if after is not None and (set_taken, after) not in seen:
                seen.add((set_taken, after))
                stack.append((set_taken, after))
    return Verdict.IMPOSSIBLE


def step(task: Task, operation: Operation) -> Task | None:
    """The task after an operation took effect on it; None if its client cannot have heard what it did."""
    if operation.outcome is Outcome.UNKNOWN:
        return _take_effect(task, operation)
    swarm, token, answer = operation.about["swarm_id"], operation.about.get("token", UNSEEN), operation.answer
    refusal = answer.get("refusal", answer)  # a lost race for a claim is an answer, not an error
    data = refusal.get("data", {})
    match operation.kind, refusal.get("code"):
        case "claim", None:
            claim = answer["claim"]
            after = _take_effect(task, operation)
            return None if after is None else _seen_with(after, operation, swarm, claim["token"], claim["lease_ms"])
        case "claim", "already_claimed":
            return _seen_with(task, operation, data["owner"], data["token"], data["lease_left_ms"])
        case "claim", "not_ready":
            return task if task.done is not None and data["state"] == "completed" else None
        case "claim", "stale_token":
            return task  # the claimer's session has ended, which says nothing of the task
        case "complete", None if task.done == (swarm, token):
            return task  # completing twice with one token answers the first result again
        case (("renew" | "release" | "complete"), None):
            held = _seen_with(task, operation, swarm, token, answer.get("lease_ms"))
            return None if held is None else _take_effect(held, operation)
        case (("renew" | "release" | "complete"), "not_owner"):
            return None if data["owner"] == swarm else _seen_with(task, operation, data["owner"], token)
        case (("renew" | "release" | "complete"), "stale_token"):
            if data["owner"] is None:
                is_replay = operation.kind == "complete" and task.done == (swarm, token)
                return None if task.holder is not None or is_replay else task
            return (
                None
                if data["owner_token"] == token
                else _seen_with(task, operation, data["owner"], data["owner_token"])
            )
        case "get", None:
            seen = answer["task"]
            if seen["state"] == "claimed":
                return _seen_with(task, operation, seen["holder"], seen["token"], seen.get("lease_left_ms"))
            if task.holder is not None or seen["state"] != ("ready" if task.done is None else "completed"):
                return None
            return task if task.done is None or seen["result"] == list(task.done) else None
    return None  # no such answer can come of such an operation


def _seen_with(
    task: Task, operation: Operation, holder: str, token: int, lease_left_ms: int | None = None
) -> Task | None:
    """The task, if this claim is the current one; a token that was not seen before is known from now on."""
    if task.holder != holder or task.token not in (token, UNSEEN):
        return None
    if task.token == UNSEEN:
        if token <= task.newest:
            return None
        task = task._replace(token=token, newest=token)
    if lease_left_ms is None:
        return task
    return task._replace(due_ns=max(task.due_ns, operation.start_ns + lease_left_ms * _MS_NS))


def _take_effect(task: Task, operation: Operation) -> Task | None:
    """What an operation does to the task, told of or not; None if it does nothing."""
    swarm = operation.about["swarm_id"]
    if operation.kind == "claim":
        if task.holder is not None or task.done is not None:
            return None
        due_ns = operation.start_ns + operation.about["lease_ms"] * _MS_NS
        return task._replace(holder=swarm, token=UNSEEN, due_ns=due_ns)
    held = _seen_with(task, operation, swarm, operation.about["token"])
    if held is None or operation.kind == "renew":
        return held
    done = (swarm, held.token) if operation.kind == "complete" else None
    return held._replace(holder=None, token=UNSEEN, done=done)

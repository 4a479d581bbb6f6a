"""The blocking client: every method of the daemon, typed, over a connection that threads share (`ifbus.link`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from ifbus import calls
from ifbus.calls import shown_signature
from ifbus.exchange import Feed
from ifbus.link import Link, Subscription
from ifbus.models import InboxMessage
from ifbus.request import Call

P = ParamSpec("P")
R = TypeVar("R")


def _blocking(build: Callable[P, Call[R]]) -> Callable[Concatenate[Client, P], R]:
    """A method that makes the call which `build` describes; arguments and docstring are `build`'s."""

    @wraps(build)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.perform(build(*args, **kwargs))

    method.__signature__ = shown_signature(build)  # type: ignore[attr-defined]
    return method


class Client(Link):
    """A connection to the daemon, blocking, for any number of threads; see `Link` for its arguments.

    Every method also takes `request.Options`: ``timeout``, ``idempotency_key``, ``traceparent``. Errors are the classes of
    `ifbus.errors`, the same that the daemon raised.
    """

    ping = _blocking(calls.ping)
    status = _blocking(calls.status)
    describe = _blocking(calls.describe)
    create_task = _blocking(calls.create_task)
    get_task = _blocking(calls.get_task)
    list_tasks = _blocking(calls.list_tasks)
    claim_task = _blocking(calls.claim_task)
    claim_next = _blocking(calls.claim_next)
    renew_claim = _blocking(calls.renew_claim)
    report_progress = _blocking(calls.report_progress)
    complete_task = _blocking(calls.complete_task)
    fail_task = _blocking(calls.fail_task)
    release_task = _blocking(calls.release_task)
    register_swarm = _blocking(calls.register_swarm)
    renew_session = _blocking(calls.renew_session)
    end_session = _blocking(calls.end_session)
    push_task_to_swarm = _blocking(calls.push_task_to_swarm)
    broadcast = _blocking(calls.broadcast)
    detect_blocker = _blocking(calls.detect_blocker)
    resolve_blocker = _blocking(calls.resolve_blocker)
    list_blockers = _blocking(calls.list_blockers)
    read_inbox = _blocking(calls.read_inbox)
    acknowledge = _blocking(calls.acknowledge)
    explain_claim = _blocking(calls.explain_claim)
    register_profile = _blocking(calls.register_profile)
    get_swarm = _blocking(calls.get_swarm)
    list_swarms = _blocking(calls.list_swarms)
    find_qualified_swarm = _blocking(calls.find_qualified_swarm)
    track_cost = _blocking(calls.track_cost)
    reserve_cost = _blocking(calls.reserve_cost)
    settle_cost = _blocking(calls.settle_cost)
    get_budget_report = _blocking(calls.get_budget_report)
    set_budget = _blocking(calls.set_budget)
    trip_circuit_breaker = _blocking(calls.trip_circuit_breaker)
    reset_circuit_breaker = _blocking(calls.reset_circuit_breaker)
    list_breakers = _blocking(calls.list_breakers)
    list_escalations = _blocking(calls.list_escalations)
    put_blob = _blocking(calls.put_blob)
    load_swarm = _blocking(calls.load_swarm)
    execute_task = _blocking(calls.execute_task)
    unload_swarm = _blocking(calls.unload_swarm)
    list_sandboxes = _blocking(calls.list_sandboxes)
    witness_query = _blocking(calls.witness_query)
    witness_verify = _blocking(calls.witness_verify)
    witness_head = _blocking(calls.witness_head)
    cost_report = _blocking(calls.cost_report)

    def subscribe_inbox(self, swarm_id: str, *, after_seq: int = 0) -> Subscription[InboxMessage]:
        """A swarm's unacknowledged messages above `after_seq`, and then each that comes."""
        feed = Feed("inbox", "coordinator.subscribe_inbox", swarm_id=swarm_id, after_seq=after_seq)
        return self.subscribe(feed, InboxMessage.from_wire)

    def subscribe_board(self) -> Subscription[dict[str, Any]]:
        """Each change of a task from now on, as ``{"event", "task_id", "swarm_id"?, ...}``."""
        return self.subscribe(Feed("board", "coordinator.subscribe_board"), dict)

    def subscribe_escalations(self) -> Subscription[dict[str, Any]]:
        """Open escalations and each new one (operator), as ``{"kind", "swarm_id", "reason", "at_ms", ...}``."""
        return self.subscribe(Feed("escalation", "governor.subscribe_escalations"), dict)

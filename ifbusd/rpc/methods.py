"""The method table: what can be called, who may call it, what it costs. One glance audits it.

A row names a method of a service's interface; the signature there is the wire's. `method_table` joins the rows with the
services themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import attrs

from ifbus.errors import UnknownMethod
from ifbusd.chassis.interface import Chassis
from ifbusd.coordinator.interface import Coordinator
from ifbusd.governor.interface import Governor
from ifbusd.optimise.interface import Optimise
from ifbusd.rpc.attention import Attention
from ifbusd.rpc.daemon_methods import DaemonMethods
from ifbusd.rpc.quota import Quota
from ifbusd.signature import Signature, nearest
from ifbusd.witness.interface import Witness

# Takes the `Caller` and the bound parameters; gives a value of the wire, or a `Later` if its row says so, or raises an `IfbusError`.
Handler = Callable[..., Awaitable[Any]]


class Role(enum.Enum):
    """Who may call a method at all. Whether a swarm is the caller's own is the service's check, inside its transaction."""

    ANY = "any"
    OPERATOR = "operator"


class Waits(enum.Enum):
    """Whether a call may take long, so that it must not hold up what its connection sends next."""

    NEVER = "never"
    ASKED = "asked"  # if its parameter wait_ms is above 0
    LATER = "later"  # if its handler gives a `Later`
    ALWAYS = "always"


class Row(NamedTuple):
    """One method: `does` is the method of the interface that declares it.

    Attributes:
        changes: It changes state: a refusal before the handler (its role) goes on record as the handler's own would.
    """

    name: str
    does: Callable[..., Any]
    role: Role
    quota: Quota
    waits: Waits
    changes: bool


def _row(
    name: str,
    does: Callable[..., Any],
    quota: Quota,
    *,
    role: Role = Role.ANY,
    waits: Waits = Waits.NEVER,
    changes: bool | None = None,
) -> Row:
    return Row(name, does, role, quota, waits, changes=quota is Quota.WRITE if changes is None else changes)


_READ, _WRITE, _LIST, _HEAVY = Quota.READ, Quota.WRITE, Quota.LIST, Quota.HEAVY
_OPERATOR: Final = Role.OPERATOR

ROWS: Final[tuple[Row, ...]] = (
    _row("daemon.hello", DaemonMethods.hello, _READ),
    _row("daemon.ping", DaemonMethods.ping, _READ),
    _row("daemon.expect_process", DaemonMethods.expect_process, _READ),
    _row("daemon.status", DaemonMethods.status, _LIST),
    _row("daemon.describe", DaemonMethods.describe, _READ),
    _row("coordinator.create_task", Coordinator.create_task, _WRITE),
    _row("coordinator.create_tasks", Coordinator.create_tasks, _LIST, changes=True),
    _row("coordinator.cancel_task", Coordinator.cancel_task, _WRITE),
    _row("coordinator.requeue_task", Coordinator.requeue_task, _WRITE),
    _row("coordinator.list_dead_letters", Coordinator.list_dead_letters, _LIST),
    _row("coordinator.get_task", Coordinator.get_task, _READ),
    _row("coordinator.list_tasks", Coordinator.list_tasks, _LIST),
    _row("coordinator.claim_task", Coordinator.claim_task, _WRITE, waits=Waits.ASKED),
    _row("coordinator.claim_next", Coordinator.claim_next, _WRITE, waits=Waits.ASKED),
    _row("coordinator.renew_claim", Coordinator.renew_claim, _WRITE),
    _row("coordinator.bind_claim", Coordinator.bind_claim, _WRITE),
    _row("coordinator.report_progress", Coordinator.report_progress, _WRITE),
    _row("coordinator.complete_task", Coordinator.complete_task, _WRITE),
    _row("coordinator.complete_tasks", Coordinator.complete_tasks, _LIST, changes=True),
    _row("coordinator.fail_task", Coordinator.fail_task, _WRITE),
    _row("coordinator.release_task", Coordinator.release_task, _WRITE),
    _row("coordinator.acquire_resources", Coordinator.acquire_resources, _WRITE, waits=Waits.ASKED),
    _row("coordinator.release_resources", Coordinator.release_resources, _WRITE),
    _row("coordinator.list_resources", Coordinator.list_resources, _LIST),
    _row("coordinator.ask", Coordinator.ask, _WRITE, waits=Waits.ASKED),
    _row("coordinator.await_reply", Coordinator.await_reply, _READ, waits=Waits.ASKED),
    _row("coordinator.reply", Coordinator.reply, _WRITE),
    _row("coordinator.list_questions", Coordinator.list_questions, _LIST),
    _row("coordinator.waits", Coordinator.waits, _LIST),
    _row("coordinator.request_help", Coordinator.request_help, _WRITE),
    _row("coordinator.register_swarm", Coordinator.register_swarm, _WRITE),
    _row("coordinator.renew_session", Coordinator.renew_session, _WRITE),
    _row("coordinator.bind_session", Coordinator.bind_session, _WRITE),
    _row("coordinator.end_session", Coordinator.end_session, _WRITE),
    _row("coordinator.swarm_status", Coordinator.swarm_status, _LIST),
    _row("coordinator.push_task_to_swarm", Coordinator.push_task_to_swarm, _WRITE),
    _row("coordinator.broadcast", Coordinator.broadcast, _LIST, changes=True),
    _row("coordinator.subscribe_topic", Coordinator.subscribe_topic, _WRITE),
    _row("coordinator.unsubscribe_topic", Coordinator.unsubscribe_topic, _WRITE),
    _row("coordinator.list_topics", Coordinator.list_topics, _READ),
    _row("coordinator.detect_blocker", Coordinator.detect_blocker, _WRITE),
    _row("coordinator.resolve_blocker", Coordinator.resolve_blocker, _WRITE),
    _row("coordinator.list_blockers", Coordinator.list_blockers, _LIST),
    _row("coordinator.read_inbox", Coordinator.read_inbox, _LIST),
    _row("coordinator.subscribe_inbox", Coordinator.subscribe_inbox, _READ),
    _row("coordinator.acknowledge", Coordinator.acknowledge, _WRITE),
    _row("coordinator.subscribe_board", Coordinator.subscribe_board, _READ),
    _row("coordinator.pause", Coordinator.pause, _WRITE),
    _row("coordinator.resume", Coordinator.resume, _WRITE),
    _row("coordinator.drain_swarm", Coordinator.drain_swarm, _WRITE),
    _row("coordinator.drain_host", Coordinator.drain_host, _WRITE, role=_OPERATOR),
    _row("coordinator.set_group_weight", Coordinator.set_group_weight, _WRITE, role=_OPERATOR),
    _row("coordinator.list_groups", Coordinator.list_groups, _LIST),
    _row("coordinator.explain_claim", Coordinator.explain_claim, _LIST),
    _row("governor.register_profile", Governor.register_profile, _WRITE),
    _row("governor.get_swarm", Governor.get_swarm, _READ),
    _row("governor.list_swarms", Governor.list_swarms, _LIST),
    _row("governor.find_qualified_swarm", Governor.find_qualified_swarm, _LIST),
    _row("governor.track_cost", Governor.track_cost, _WRITE),
    _row("governor.reserve_cost", Governor.reserve_cost, _WRITE),
    _row("governor.settle_cost", Governor.settle_cost, _WRITE),
    _row("governor.get_budget_report", Governor.get_budget_report, _LIST),
    _row("governor.set_budget", Governor.set_budget, _WRITE, role=_OPERATOR),
    _row("governor.trip_circuit_breaker", Governor.trip_circuit_breaker, _WRITE, role=_OPERATOR),
    _row("governor.reset_circuit_breaker", Governor.reset_circuit_breaker, _WRITE, role=_OPERATOR),
    _row("governor.list_breakers", Governor.list_breakers, _LIST),
    _row("governor.subscribe_escalations", Governor.subscribe_escalations, _READ, role=_OPERATOR),
    _row("governor.list_escalations", Governor.list_escalations, _LIST),
    _row("chassis.put_blob", Chassis.put_blob, _WRITE),
    _row("chassis.load_swarm", Chassis.load_swarm, _HEAVY, waits=Waits.ALWAYS, changes=True),
    _row("chassis.execute_task", Chassis.execute_task, _WRITE, waits=Waits.LATER),
    _row("chassis.unload_swarm", Chassis.unload_swarm, _WRITE, waits=Waits.ALWAYS),
    _row("chassis.list_sandboxes", Chassis.list_sandboxes, _LIST),
    _row("witness.query", Witness.query, _LIST),
    _row("witness.verify", Witness.verify, _HEAVY, waits=Waits.ALWAYS),
    _row("witness.head", Witness.head, _READ),
    _row("optimise.report", Optimise.report, _HEAVY, waits=Waits.ALWAYS),
)


@attrs.frozen(kw_only=True)
class Method:
    """One method, ready to be called.

    Attributes:
        handler: The service's own bound method.
        signature: Checks the parameters; made from the interface, so service and documentation cannot differ.
    """

    name: str
    handler: Handler
    signature: Signature
    role: Role = Role.ANY
    quota: Quota = Quota.READ
    waits: Waits = Waits.NEVER
    changes: bool = False


def unknown_method(name: str, known: Iterable[str]) -> UnknownMethod:
    """The refusal of a method that does not exist, with the nearest one that does."""
    near = nearest(name, known)
    hint = f"; did you mean {near}?" if near else ""
    return UnknownMethod(
        f"cannot call {name[:80]!r}: no such method{hint}",
        data={"method": name[:80], **({"nearest": near} if near else {})},
    )


def bind_rows(rows: Iterable[Row], services: Mapping[str, object]) -> dict[str, Method]:
    """The methods of `rows` by name, each handled by the service that stands under the part of its name before the dot.

    Raises:
        AttributeError, KeyError: A row's service or method is missing: a bug, found at start.
    """
    return {
        row.name: Method(
            name=row.name,
            handler=getattr(services[row.name.partition(".")[0]], row.does.__name__),
            signature=Signature.of(row.does),
            role=row.role,
            quota=row.quota,
            waits=row.waits,
            changes=row.changes,
        )
        for row in rows
    }


def method_table(
    *,
    daemon: DaemonMethods,
    coordinator: Coordinator,
    governor: Governor,
    chassis: Chassis,
    witness: Witness,
    optimise: Optimise,
    attention: Attention,
) -> dict[str, Method]:
    """Everything that this daemon answers. A registration also binds its connection to the swarm's `attention`."""
    services = {
        "daemon": daemon,
        "coordinator": coordinator,
        "governor": governor,
        "chassis": chassis,
        "witness": witness,
        "optimise": optimise,
    }
    table = bind_rows(ROWS, services)
    register = table["coordinator.register_swarm"]
    table[register.name] = attrs.evolve(register, handler=attention.binding(register.handler))
    return table

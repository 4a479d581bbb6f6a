"""Who may call what for whose swarm: written by hand, compared with the running daemon cell by cell.

A cell is what a caller gets: ``ok``, an error code, or, for a ``not_found``, what there is none of. An operator gets what
everybody gets, unless the row says otherwise: the role decides about money and breakers, and gives no swarm away.
"""

from __future__ import annotations

from typing import Final, NamedTuple

OK: Final = "ok"
DENIED: Final = "permission_denied"
NO_SWARM: Final = "no swarm"
NO_MODULE: Final = "no module"
NO_BLOCKER: Final = "no blocker"
NO_QUESTION: Final = "no question"
NO_TASK: Final = "no task"


class Row(NamedTuple):
    """What a caller gets for a swarm of its own user, of another user, and of nobody; the same for an operator.

    A method that knows no swarm has one cell, `mine`.
    """

    mine: str
    another: str | None = None
    nobody: str | None = None
    operator_mine: str | None = None
    operator_another: str | None = None
    operator_nobody: str | None = None

    def cell(self, whose: str, *, is_operator: bool) -> str | None:
        """What this caller gets; None where the method knows no swarm."""
        everybody: str | None = getattr(self, whose)
        return (getattr(self, f"operator_{whose}") if is_operator else None) or everybody


_EVERYBODY: Final = Row(OK)
_OWNER: Final = Row(OK, DENIED, NO_SWARM)
# Reading is open: what a swarm can do, spends and waits for is what others decide by.
_READER: Final = Row(OK, OK, NO_SWARM)
# A name belongs to whoever takes it first.
_NAMING: Final = Row(OK, DENIED, OK)
_CREATOR: Final = Row(OK, DENIED, NO_TASK, operator_another=OK)
_OPERATOR: Final = Row(DENIED, DENIED, DENIED, OK, OK, NO_SWARM)

POLICY: Final[dict[str, Row]] = {
    "daemon.hello": _OWNER,
    "daemon.ping": _EVERYBODY,
    "daemon.expect_process": _EVERYBODY,
    "daemon.status": _EVERYBODY,
    "daemon.describe": _EVERYBODY,
    "coordinator.create_task": _EVERYBODY,
    # Not whose swarm, but whose task it is.
    "coordinator.cancel_task": _CREATOR,
    "coordinator.requeue_task": _CREATOR,
    "coordinator.list_dead_letters": _EVERYBODY,
    "coordinator.create_tasks": _EVERYBODY,
    "coordinator.complete_tasks": _OWNER,
    "coordinator.get_task": _EVERYBODY,
    "coordinator.list_tasks": _EVERYBODY,
    "coordinator.claim_task": _OWNER,
    "coordinator.claim_next": _OWNER,
    "coordinator.renew_claim": _OWNER,
    "coordinator.bind_claim": _OWNER,
    "coordinator.report_progress": _OWNER,
    "coordinator.complete_task": _OWNER,
    "coordinator.fail_task": _OWNER,
    "coordinator.release_task": _OWNER,
    "coordinator.acquire_resources": _OWNER,
    "coordinator.release_resources": _OWNER,
    "coordinator.list_resources": _EVERYBODY,
    "coordinator.ask": _OWNER,
    "coordinator.await_reply": _OWNER,
    "coordinator.reply": Row(OK, DENIED, NO_QUESTION),
    "coordinator.list_questions": _EVERYBODY,
    "coordinator.waits": _EVERYBODY,
    "coordinator.request_help": _OWNER,
    "coordinator.register_swarm": _NAMING,
    "coordinator.renew_session": _OWNER,
    "coordinator.bind_session": _OWNER,
    "coordinator.end_session": _OWNER,
    # Whoever made the task may send it to anybody who could claim it.
    "coordinator.push_task_to_swarm": _READER,
    "coordinator.broadcast": _OWNER,
    "coordinator.swarm_status": _READER,
    "coordinator.subscribe_topic": _OWNER,
    "coordinator.unsubscribe_topic": _OWNER,
    "coordinator.list_topics": _OWNER,
    "coordinator.detect_blocker": _OWNER,
    "coordinator.resolve_blocker": Row(OK, DENIED, NO_BLOCKER, operator_another=OK),
    "coordinator.list_blockers": _EVERYBODY,
    "coordinator.read_inbox": _OWNER,
    "coordinator.subscribe_inbox": _OWNER,
    "coordinator.acknowledge": _OWNER,
    "coordinator.subscribe_board": _EVERYBODY,
    "coordinator.explain_claim": _READER,
    # Of the swarm.
    "coordinator.pause": Row(OK, DENIED, NO_SWARM, operator_another=OK),
    "coordinator.resume": Row(OK, DENIED, NO_SWARM, operator_another=OK),
    "coordinator.drain_swarm": Row(OK, DENIED, NO_SWARM, operator_another=OK),
    "coordinator.drain_host": Row(DENIED, operator_mine=OK),
    "coordinator.set_group_weight": Row(DENIED, operator_mine=OK),
    "coordinator.list_groups": _EVERYBODY,
    "governor.register_profile": _NAMING,
    "governor.get_swarm": _READER,
    "governor.list_swarms": _EVERYBODY,
    "governor.find_qualified_swarm": _EVERYBODY,
    "governor.track_cost": _OWNER,
    "governor.reserve_cost": _OWNER,
    "governor.settle_cost": _OWNER,
    "governor.get_budget_report": _READER,
    "governor.set_budget": _OPERATOR,
    "governor.trip_circuit_breaker": _OPERATOR,
    "governor.reset_circuit_breaker": _OPERATOR,
    "governor.list_breakers": _EVERYBODY,
    "governor.subscribe_escalations": Row(DENIED, operator_mine=OK),
    "governor.list_escalations": _EVERYBODY,
    "chassis.put_blob": _EVERYBODY,
    # With a module that nobody has uploaded: the swarm is looked at first.
    "chassis.load_swarm": Row(NO_MODULE, DENIED, NO_SWARM),
    "chassis.execute_task": Row(NO_MODULE, DENIED, NO_SWARM),
    "chassis.unload_swarm": _OWNER,
    # Lists the caller's own; an operator's answer has all.
    "chassis.list_sandboxes": _EVERYBODY,
    "witness.query": _EVERYBODY,
    "witness.verify": _EVERYBODY,
    "witness.head": _EVERYBODY,
    "optimise.report": _EVERYBODY,
}


class Identity(NamedTuple):
    """How a caller comes to its connection, and who it is then.

    Attributes:
        steps: As `tests.proof.actor` takes them; ``{victim}`` and the others stand for users of the test.
        is_victim: It is the user whose swarm is "another's" to everybody else, so that one is its own.
        is_operator: It has the operator role, on the daemon of `operators`.
        operators: Which daemon it asks: ``named`` has a user and a group as operators, ``root`` has uid 0.
    """

    steps: tuple[str, ...]
    is_victim: bool = False
    is_operator: bool = False
    operators: str = "named"


# The kernel's word is that of `connect` (SO_PEERCRED): a connection carries its maker, whoever uses it later. But not the role of
# an operator: that is as well for whoever sends the request (SCM_CREDENTIALS).
CALLERS: Final[dict[str, Identity]] = {
    "own uid": Identity(("user:{victim}:{other_group}", "connect"), is_victim=True),
    "own uid, another group": Identity(("user:{victim}:{other_group}:{other_group}", "connect"), is_victim=True),
    "same group": Identity(("user:{stranger}:{victims_group}:{victims_group}", "connect")),
    "other uid": Identity(("user:{stranger}:{other_group}", "connect")),
    "operator by uid": Identity(("user:{operator}:{other_group}", "connect"), is_operator=True),
    "operator by group": Identity(("user:{stranger}:{operators}", "connect"), is_operator=True),
    "operator by supplementary group": Identity(
        ("user:{stranger}:{other_group}:{other_group},{operators}", "connect"), is_operator=True
    ),
    "root where root is no operator": Identity(("connect",)),
    "root where root is operator": Identity(("connect",), is_operator=True, operators="root"),
    "connection inherited from the own uid": Identity(
        ("as:{victim}:{victims_group}", "connect", "back", "user:{stranger}:{other_group}"), is_victim=True
    ),
    "connection inherited from another uid": Identity(
        ("as:{stranger}:{other_group}", "connect", "back", "user:{victim}:{victims_group}")
    ),
    "connection inherited by root": Identity(("as:{stranger}:{other_group}", "connect", "back"), operators="root"),
    "connection passed by the own uid": Identity(
        ("passed:{victim}:{victims_group}", "user:{stranger}:{other_group}"), is_victim=True
    ),
    "connection passed by another uid": Identity(
        ("passed:{stranger}:{other_group}", "user:{victim}:{victims_group}"),
    ),
    "connection passed to an operator": Identity(
        ("passed:{stranger}:{other_group}", "user:{operator}:{operators}"),
    ),
    "operator connection inherited by another uid": Identity(
        ("as:{operator}:{other_group}", "connect", "back", "user:{stranger}:{other_group}")
    ),
    "operator connection passed to another uid": Identity(
        ("passed:{operator}:{other_group}", "user:{stranger}:{other_group}")
    ),
    "operator connection of a group passed to another uid": Identity(
        ("passed:{stranger}:{operators}", "user:{victim}:{victims_group}")
    ),
    "operator connection passed to another operator": Identity(
        ("passed:{operator}:{other_group}", "user:{stranger}:{operators}"), is_operator=True
    ),
    "root that connected and became another uid": Identity(
        ("connect", "user:{stranger}:{other_group}"), operators="root"
    ),
    "root of a user namespace": Identity(
        ("user:{stranger}:{other_group}", "namespace", "connect"), operators="root"
    ),
    "own uid as root of a user namespace": Identity(
        ("user:{victim}:{victims_group}", "namespace", "connect"), is_victim=True, operators="root"
    ),
}  # fmt: skip

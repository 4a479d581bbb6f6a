"""`ifbus task next` and `claim`: winning a task, and what else fits when that one is lost."""

from __future__ import annotations

import argparse
import os

from ifbus.cli import owner
from ifbus.cli.command import Command, Data, Invocation, Outcome, span_type
from ifbus.cli.commands import TASK_FIELDS
from ifbus.cli.text import View, describe_bound, fields, one_line, span
from ifbus.errors import (
    BreakerTripped,
    IfbusError,
    InvalidParams,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Refused,
    Usage,
    from_wire,
)

# Outside a session nobody renews: long enough for an agent's next command, short enough to free what it forgot.
OWN_LEASE_MS = 600_000
# To name something that fits instead, look at this many ready tasks: a refusal must stay as fast as a claim.
_LOOK_AT = 5
# What another task does not help against.
_NOT_ABOUT_THE_TASK = (BreakerTripped,)


def _claim_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="TASK")
    parser.add_argument(
        "--resource",
        metavar="NAME",
        action="append",
        help="take this with it or not at all, such as gpu:0; again or A,B",
    )
    _lease_argument(parser)


def _lease_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lease", metavar="SPAN", type=span_type, help="a lease of its own, even inside a session (10m outside one)"
    )
    parser.add_argument(
        "--bind",
        metavar="TO",
        help="what frees it at once: session (the default inside `ifbus run`), process (the nearest ancestor that does not end with"
        " this command, the default outside), pid:N (that ancestor), connection, or lease (nothing)",
    )


def _claim(invocation: Invocation) -> Outcome:
    task_id = invocation.args.subject
    from ifbus.cli.commands.task import split_list

    try:
        resources = split_list(invocation.args.resource)
        return _won(invocation, "coordinator.claim_task", task_id=task_id, resources=resources)
    except Refused as refusal:
        if not isinstance(refusal, _NOT_ABOUT_THE_TASK):
            refusal.data["instead"] = _find_other(invocation, task_id)
        raise


def _next_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--count", type=int, metavar="N", help="so many of the best at once, 1 to 16; then all are listed"
    )
    _lease_argument(parser)


def _next(invocation: Invocation) -> Outcome:
    count = invocation.args.count
    return _won(invocation, "coordinator.claim_next", **({} if count is None else {"n": count}))


def _won(invocation: Invocation, method: str, **params: str | list[str] | None) -> Outcome:
    swarm_id = invocation.require_swarm()
    proof = _session_of(swarm_id)
    asked = invocation.args.bind
    wait_ms = invocation.args.wait
    terms: Data = {**params, "swarm_id": swarm_id, "wait_ms": wait_ms or None}
    # Outside the session, or bound to something of its own, nobody renews it with the session.
    is_apart = proof is None or asked not in (None, "session")
    terms["lease_ms"] = invocation.args.lease
    if terms["lease_ms"] is None and is_apart and asked != "session":
        terms["lease_ms"] = OWN_LEASE_MS
    terms["bind"] = _to_bind(asked) if is_apart else asked
    try:
        answer = invocation.change(method, terms, wait_ms=wait_ms, secret={"resume_token": proof})
    except (InvalidParams, LimitExceeded, NotFound, PermissionDenied) as refusal:
        if asked is not None or "bind" not in refusal.data:
            raise
        # A guess of ours that the daemon cannot watch, as from another pid namespace: the answer says that it is the lease alone.
        answer = invocation.change(method, {**terms, "bind": "lease"}, wait_ms=wait_ms, secret={"resume_token": proof})
    if not answer["claimed"]:
        raise from_wire(answer["refusal"])
    claims = answer.get("claims") or ([answer["claim"]] if terms.get("n") else answer["claim"])
    return Outcome({"claim": claims, "receipt": answer["receipt"]})


def _to_bind(asked: str | None) -> str:
    """What is asked of the daemon outside a session.

    Raises:
        Usage: No process behind this command is fit, and one was asked for.
    """
    if asked not in (None, "process"):
        return asked
    pid = owner.choose(owner.read_chain(), os.getuid())
    if pid is not None:
        return f"pid:{pid}"
    if asked is None:
        return "lease"
    raise Usage(
        "no process above this command outlives it as its owner: name one, or none",
        data={"command": "task claim", "example": "ifbus task claim T-7 --bind lease"},
    )


def _session_of(swarm_id: str) -> str | None:
    """The proof of the session of that swarm in which this command runs and which somebody renews (`ifbus run`)."""
    return os.environ.get("IFBUS_TOKEN") or None if os.environ.get("IFBUS_SWARM") == swarm_id else None


def _find_other(invocation: Invocation, task_id: str) -> Data | None:
    """A ready task that this swarm could claim now, if one of the first few is."""
    swarm_id = invocation.require_swarm()
    try:
        ready = invocation.ask("coordinator.list_tasks", states=["ready"], limit=_LOOK_AT + 1)["tasks"]
        for task in [task for task in ready if task["task_id"] != task_id][:_LOOK_AT]:
            answer = invocation.ask("coordinator.explain_claim", task_id=task["task_id"], swarm_id=swarm_id)
            if answer["would_succeed"]:
                return {
                    "what": f"{task['task_id']} fits you (estimate {task.get('estimate_usd', '0.00')} USD)",
                    "call": f"ifbus task claim {task['task_id']}",
                }
    except IfbusError:
        # The refusal is the answer; a hint that could not be found must not replace it.
        return None
    return None


def _handover(pack: Data | None, task_id: str) -> list[str]:
    """What the last holder left, in a line; `task show` has the rest."""
    if pack is None:
        return []
    last = pack.get("last", {})
    why = (
        f" ({last['reason']}{': ' + one_line(last['why'], 80) if last.get('why') else ''})"
        if last.get("reason")
        else ""
    )
    left = f", {len(pack['artefacts'])} artefacts" if pack.get("artefacts") else ""
    note = f": {one_line(pack['note'], 200)}" if pack.get("note") else ""
    return [
        f"  before you: {last.get('swarm_id', '?')} to {pack['percent']} %{why}{left}{note}; ifbus task show {task_id}"
    ]


def render_claim(data: Data, view: View) -> list[str]:
    """The handle first: everything that the holder does next needs it."""
    claim = data["claim"]
    if isinstance(claim, list):
        return [line for one in claim for line in render_claim({"claim": one}, view)]
    task = claim["task"]
    handle = f"{claim['task_id']}@{claim['token']}"
    if claim["bound_to"] == "session":
        lease = f"lease {span(claim['lease_ms'])}, renewed by the session of {claim['swarm_id']}"
    else:
        lease = f"lease {span(claim['lease_ms'])} of its own, renewed by each progress"
    bound = describe_bound(claim.get("bound"))
    reserved = claim.get("reserved_usd")
    more = f"  read: ifbus task show {claim['task_id']}" if task.get("description") or task.get("payload") else ""
    following = " | ".join(
        f"ifbus task {call}{view.swarm_flag}"
        for call in (f'progress {handle} 50 "half"', f"complete {handle} --result JSON", f'blocked {handle} "why"')
    )
    return [
        *fields([f"{handle} claimed: {one_line(task['title'], 100)}", lease, bound, f"{reserved} USD reserved" if reserved else ""], view),
        *([more] if more else []),
        *_handover(claim.get("handover"), task["task_id"]),
        f"  next: {following}",
    ]  # fmt: skip


# `--fields` reaches the claim's own and its task's.
_COLUMNS = tuple(
    dict.fromkeys(
        (
            "task_id",
            "swarm_id",
            "token",
            "lease_ms",
            "claimed_at_ms",
            "reserved_usd",
            "bound_to",
            "bound",
            "handover",
            *TASK_FIELDS,
        )
    )
)

COMMANDS = {
    "next": Command(
        words="task next",
        summary="Claim the best ready task that this swarm qualifies for and can pay",
        examples=("ifbus task next", "ifbus task next --wait 10m", "ifbus task next --count 4 --swarm builder --lease 1h"),
        arguments=_next_arguments,
        run=_next,
        render=render_claim,
        kind="change",
        waits=True,
        acts=True,
        items="claim",
        id_field="task_id",
        columns=_COLUMNS,
    ),
    "claim": Command(
        words="task claim",
        summary="Claim one task; exactly one caller wins",
        examples=("ifbus task claim T-7", "ifbus task claim T-7 --wait 10m", "ifbus task claim T-7 --bind pid:$PPID --json --fields id,token"),
        arguments=_claim_arguments,
        run=_claim,
        render=render_claim,
        kind="change",
        waits=True,
        acts=True,
        items="claim",
        id_field="task_id",
        columns=_COLUMNS,
    ),
}  # fmt: skip

"""The coordinator's decisions, pure: no I/O, clock or chance. Times and ids come in, refusals and plain values come out."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import attrs

from ifbus.errors import AlreadyClaimed, IfbusError, InvalidParams, InvalidRequest, NotFound, NotReady, StaleToken
from ifbus.models import check_capabilities, check_identifier
from ifbus.money import to_usd
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.locks.rules import resources_of
from ifbusd.coordinator.model import (
    BEGUN,
    BLOCKERS,
    COMPLETED,
    EXPIRED,
    HELPERS,
    LEASE,
    OPEN,
    SESSION,
    BlockerRecord,
    ClaimRecord,
    Holder,
    SessionRecord,
    TaskRecord,
)

MAX_TITLE = 200
MAX_DESCRIPTION = 16 << 10
MAX_PAYLOAD_BYTES = 32 << 10
MAX_MILESTONES = 32
# As stored, when created. With all that comes to it later a task still fits into an answer, which is a message of 64 KiB: what
# does not could be claimed, and nobody would learn the token.
MAX_TASK_BYTES = 40 << 10
# The same with its result.
MAX_COMPLETED_BYTES = 56 << 10
# An answer names at most so many tasks that became ready.
MAX_UNBLOCKED = 50
# Each is a compare of the claiming transaction; etcd takes 128 in all.
MAX_DEPENDENCIES = 100
# Of one commit, and what it may read or write in all: etcd takes 128 operations.
MAX_BATCH = 50
MAX_BATCH_KEYS = 120
MAX_NOTE = 1_000
MAX_ERROR = 4 << 10
MAX_PAGE = 200


def check_new_task(
    *,
    title: str,
    description: str,
    capabilities: list[str],
    depends_on: list[str],
    priority: int,
    payload_bytes: int,
    milestones: list[Any],
) -> None:
    """Raise InvalidParams, naming the parameter, if a new task is out of its bounds."""
    _require("title", 1 <= len(title) <= MAX_TITLE and title.isprintable(), f"one line of 1 to {MAX_TITLE} characters")
    _require("description", len(description) <= MAX_DESCRIPTION, f"at most {MAX_DESCRIPTION} characters")
    check_capabilities(capabilities)
    _require("depends_on", len(depends_on) <= MAX_DEPENDENCIES, f"at most {MAX_DEPENDENCIES} tasks")
    for dependency in depends_on:
        check_identifier(dependency, "task id in depends_on")
    _require("priority", -100 <= priority <= 100, "-100 to 100")
    _require("payload", payload_bytes <= MAX_PAYLOAD_BYTES, f"at most {MAX_PAYLOAD_BYTES} bytes packed")
    _require("milestones", len(milestones) <= MAX_MILESTONES, f"at most {MAX_MILESTONES}")
    for milestone in milestones:
        _require(
            "milestones",
            isinstance(milestone, list)
            and len(milestone) == 2
            and type(milestone[0]) is int
            and 0 <= milestone[0] <= 100
            and isinstance(milestone[1], str)
            and len(milestone[1]) <= MAX_TITLE,
            "[percent, text] each",
        )


def check_batch(param: str, number: int) -> None:
    """Raise InvalidParams if so many are not taken at once."""
    _require(param, 1 <= number <= MAX_BATCH, f"1 to {MAX_BATCH}")


def cycle(names: list[str]) -> InvalidParams:
    """The refusal of tasks that wait for one another in a circle, which ends where it began."""
    return InvalidParams(
        f"cannot create tasks that wait for one another: {' -> '.join(names)}",
        data={"param": "depends_on", "cycle": names},
        would_change=[{"by": "self", "what": "one of these dependencies is left out"}],
    )


def check_task_size(used: int) -> None:
    """Raise InvalidParams if a new task is too long for an answer, as stored."""
    if used > MAX_TASK_BYTES:
        raise InvalidParams(
            f"a task is at most {MAX_TASK_BYTES} bytes packed with all its texts, got {used}",
            data={"param": "description", "used": used, "allowed": MAX_TASK_BYTES},
            would_change=[{"by": "self", "what": "a shorter description or payload; it can name where more is"}],
        )


def check_result_size(result_bytes: int, task_bytes: int) -> None:
    """Raise InvalidParams if a result is too long, by itself or together with its task."""
    allowed = min(MAX_PAYLOAD_BYTES, MAX_COMPLETED_BYTES - task_bytes)
    if result_bytes > allowed:
        raise InvalidParams(
            f"result must be at most {allowed} bytes packed, got {result_bytes}",
            data={"param": "result", "used": result_bytes, "allowed": allowed},
            would_change=[{"by": "self", "what": "a shorter result; it can name where more is"}],
        )


def with_result(task: TaskRecord, result_bytes: int, size_of: Callable[[Any], int]) -> TaskRecord:
    """A completed task with a result that fits into an answer with it: for that the errors of earlier attempts are dropped.

    Args:
        task: With its result.
        size_of: Bytes as stored.

    Raises:
        InvalidParams: The result is too long even so.
    """
    task_bytes = size_of(task.evolve(result=None).to_map())
    if result_bytes + task_bytes > MAX_COMPLETED_BYTES and "errors" in task.history:
        task = task.evolve(history={name: value for name, value in task.history.items() if name != "errors"})
        task_bytes = size_of(task.evolve(result=None).to_map())
    check_result_size(result_bytes, task_bytes)
    return task


def check_text(param: str, text: str, longest: int) -> None:
    """Raise InvalidParams if a text is longer than it may be."""
    _require(param, len(text) <= longest, f"at most {longest} characters")


def check_percent(percent: int) -> None:
    """Raise InvalidParams if this is no percentage."""
    _require("percent", 0 <= percent <= 100, "0 to 100")


def check_number(param: str, value: int, least: int, most: int) -> None:
    """Raise InvalidParams if a number is out of its bounds."""
    _require(param, least <= value <= most, f"{least} to {most}")


def check_limit(limit: int) -> None:
    """Raise InvalidParams if a page of so many is not to be had."""
    _require("limit", 1 <= limit <= MAX_PAGE, f"1 to {MAX_PAGE}")


def check_span(param: str, span_ms: int, shortest: int, longest: int) -> None:
    """Raise InvalidParams if a span of time is out of its bounds."""
    _require(param, shortest <= span_ms <= longest, f"{shortest} to {longest} ms")


def _require(param: str, is_fine: bool, expected: str) -> None:
    if not is_fine:
        raise InvalidParams(f"{param} must be {expected}", data={"param": param, "expected": expected})


def rank_of(priority: int, since_ms: int, ageing_ms: int) -> int:
    """A ready task's constant place by priority with ageing, smallest first (`offers` says why it is constant)."""
    return since_ms - priority * ageing_ms


def not_ready(task_id: str, task: TaskRecord, waits_for: dict[str, str], now_ms: int) -> NotReady | None:
    """Why an unclaimed task cannot be claimed now, None if it can.

    Args:
        waits_for: Dependencies that are not completed, with their states.
    """
    if task.state != OPEN:
        return NotReady(
            f"cannot claim {task_id}: it is {task.state}",
            data={"task_id": task_id, "state": task.state},
            would_change=[{"by": "self", "what": "take another task", "call": "ifbus task next"}],
        )
    if task.blocker:
        return NotReady(
            f"cannot claim {task_id}: it is blocked until {task.blocker} is resolved",
            data={"task_id": task_id, "state": "blocked", "blocker_id": task.blocker},
            would_change=[
                {"by": "other", "what": f"{task.blocker} is resolved", "call": f"ifbus task claim {task_id} --wait 10m"}
            ],
        )
    if waits_for:
        listed = ", ".join(f"{name} ({state})" for name, state in waits_for.items())
        return NotReady(
            f"cannot claim {task_id}: it waits for {listed}",
            data={"task_id": task_id, "state": "waiting", "waits_for": sorted(waits_for)},
            would_change=[
                {
                    "by": "other",
                    "what": f"{', '.join(waits_for)} completed",
                    "call": f"ifbus task claim {task_id} --wait 10m",
                },
                {"by": "self", "what": "take another task", "call": "ifbus task next"},
            ],
        )
    return life.not_due(task_id, task, now_ms) if task.options or task.history else None


@attrs.frozen(kw_only=True)
class Terms:
    """On which terms a claim is asked for.

    Attributes:
        lease_ms: A lease of its own; None: the session's, or one of the default length.
        holder: What it is to be bound to; None: what the session is bound to, else the lease alone.
        resume_token: Proof of the session that it is asked for in; None: none is given.
        resources: That it takes besides those that the task names.
    """

    lease_ms: int | None = None
    holder: Holder | None = None
    resume_token: str | None = None
    resources: tuple[str, ...] = ()


def terms_on(task: TaskRecord, terms: Terms) -> Terms:
    """The terms of a claim of this task: its own lease, if the task has one and the claim asks for none."""
    lease_ms = task.options.get("lease_ms")
    return terms if lease_ms is None or terms.lease_ms is not None else attrs.evolve(terms, lease_ms=lease_ms)


def no_swarm(swarm_id: str) -> NotFound:
    """The refusal of a name that no swarm has."""
    return NotFound(
        f"there is no swarm {swarm_id:.80}",
        data={"swarm_id": swarm_id[:80]},
        would_change=[{"by": "self", "what": "look it up", "call": "ifbus swarm ls"}],
    )


def milestone(task: TaskRecord, claim: ClaimRecord) -> str:
    """The last milestone that the holder has passed, as the old status files wrote it; without one the holder's own words."""
    passed = [(percent, text) for percent, text in task.milestones if percent <= claim.percent]
    if not passed:
        return f"{claim.percent}% - {claim.note}" if claim.note else f"{claim.percent}%"
    percent, text = max(passed, key=lambda one: one[0])
    return f"{percent}% - {text}"


def begun_key(swarm_id: str, incarnation: int) -> str:
    """Where it stands that a session has begun whose end is not on record."""
    return f"{BEGUN}{swarm_id}/{incarnation}"


def session_ended(swarm_id: str) -> StaleToken:
    """The refusal for a session whose lease is gone."""
    return StaleToken(
        f"this session of {swarm_id} has ended: its lease ran out, what it was bound to has ended, or the swarm was registered anew;"
        " its claims are gone",
        data={"swarm_id": swarm_id},
        would_change=[
            {"by": "self", "what": "stop its work, register again", "call": f"ifbus swarm register {swarm_id}"}
        ],
    )


def lease_over(task_id: str, token: int) -> StaleToken:
    """The refusal for a claim whose lease is gone."""
    return StaleToken(
        f"cannot renew {task_id}@{token}: its lease has run out",
        data={"task_id": task_id, "token": token, "owner": None},
        would_change=[
            {"by": "self", "what": "stop this work; claim the task again", "call": f"ifbus task claim {task_id}"}
        ],
    )


def hash_of(token: str) -> bytes:
    """What is stored of a resume token."""
    return hashlib.sha256(token.encode()).digest()


def proves(session: SessionRecord, token: str) -> bool:
    """Whether this is the session's resume token."""
    return hmac.compare_digest(session.token_hash, hash_of(token))


def require_session(swarm_id: str, session: SessionRecord | None, terms: Terms) -> None:
    """Raise StaleToken if a claim is asked for in a session that is not, or no longer, the swarm's.

    Without it an earlier incarnation that does not know of its end could win tasks for the one that replaced it.
    """
    needs_one = terms.resume_token is not None or (terms.holder is not None and terms.holder.kind == SESSION)
    if needs_one and session is None:
        raise session_ended(swarm_id)
    if terms.resume_token is not None and session is not None and not proves(session, terms.resume_token):
        raise session_ended(swarm_id)


def hang_on(session: SessionRecord | None, terms: Terms) -> tuple[bool, dict[str, Any]]:
    """Whether a claim needs a lease of its own, and what is stored of what it is bound to."""
    holder = terms.holder
    if holder is None or holder.kind == SESSION:
        own = session is None or terms.lease_ms is not None
        is_bound = session is not None and (holder is not None or bool(session.bound))
        return own, {"kind": SESSION} if own and is_bound else {}
    return True, {} if holder.kind == LEASE else holder.to_stored()


def bound_of(claim: ClaimRecord, session: SessionRecord | None) -> dict[str, Any]:
    """What frees a claim at once, as stored: its own, or its session's while that is the one in which it was made."""
    if claim.bound_to != SESSION:
        return claim.bound
    return session.bound if session is not None and session.incarnation == claim.incarnation else {}


def is_evidence(claim: ClaimRecord, percent: int, note: str) -> bool:
    """Whether a report says that the work came further: more done than ever in this claim, or other words.

    Saying the same again is a heartbeat, however much it costs.
    """
    return percent > claim.percent or (bool(note) and note != claim.note)


def overdue(task_id: str, token: int, deadline_at_ms: int) -> StaleToken:
    """The refusal of an act on a task whose deadline has passed, before that is on record."""
    return StaleToken(
        f"cannot act on {task_id}@{token}: the deadline of {task_id} has passed and the claim is void; nothing was written",
        data={
            "task_id": task_id,
            "token": token,
            "owner": None,
            "reason": EXPIRED,
            "state": EXPIRED,
            "deadline_at_ms": deadline_at_ms,
        },
        would_change=[{"by": "self", "what": "stop this work and take another task", "call": "ifbus task next"}],
    )


def lives_on_session(task_id: str, swarm_id: str, token: int) -> InvalidRequest:
    """The refusal to bind a claim apart from the session whose lease it lives on."""
    return InvalidRequest(
        f"cannot bind {task_id}@{token} by itself: it lives on the session of {swarm_id}, and so long as that",
        data={"task_id": task_id, "token": token, "swarm_id": swarm_id},
        would_change=[{"by": "self", "what": "bind the session (bind_session), or claim with a lease_ms"}],
    )


def why_lost(claim: ClaimRecord | None, session: SessionRecord | None) -> str:
    """Why a claim ended without a verdict, as it stands on record."""
    return why_ended(0 if claim is None else claim.incarnation, session)


def why_ended(incarnation: int, session: SessionRecord | None) -> str:
    """Why a lease is over that was taken in this session, 0 for none, by the swarm's session of now."""
    return "session_replaced" if session is not None and 0 < incarnation < session.incarnation else "lease_ended"


def describe_bound(bound: dict[str, Any]) -> str:
    """The same in a word, for the record."""
    return f"{bound['kind']} {bound['pid']}" if bound.get("pid") else str(bound["kind"])


def already_claimed(
    task_id: str, claim: ClaimRecord, token: int, *, now_ms: int, lease_left_ms: int | None
) -> AlreadyClaimed:
    """The refusal of a lost claim, with who holds the task and for how long still."""
    held_ms = max(0, now_ms - claim.claimed_at_ms)
    return AlreadyClaimed(
        f"cannot claim {task_id}: {claim.swarm_id} holds it",
        data={
            "task_id": task_id,
            "owner": claim.swarm_id,
            "token": token,
            "held_ms": held_ms,
            "percent": claim.percent,
            "lease_left_ms": lease_left_ms,
        },
        would_change=[
            {
                "by": "other",
                "what": f"{claim.swarm_id} completes or lets go",
                "call": f"ifbus task claim {task_id} --wait 10m",
            },
            {"by": "self", "what": "take another task", "call": "ifbus task next"},
        ],
    )


def after_claim(task: TaskRecord, claim: ClaimRecord | None, swarm_id: str, token: int, spent: int) -> TaskRecord:
    """The task with what any end of a claim leaves on it: how far it came, what it cost, whose it was and since when."""
    task = life.forget_attempt(task)
    if claim is not None:
        task = task.evolve(
            percent=claim.percent,
            note=claim.note,
            progress_at_ms=claim.progress_at_ms or task.progress_at_ms,
            last_claimed_at_ms=claim.claimed_at_ms,
        )
    return task.evolve(
        attempts=task.attempts + 1,
        spent_micro_usd=task.spent_micro_usd + spent,
        last_holder=swarm_id,
        last_token=token,
    )


def not_pushable(task_id: str, claim: ClaimRecord, token: int) -> NotReady:
    """The refusal to push a task that somebody holds."""
    return NotReady(
        f"cannot push {task_id}: {claim.swarm_id} holds it",
        data={"task_id": task_id, "state": "claimed", "owner": claim.swarm_id, "token": token},
        would_change=[{"by": "other", "what": f"{claim.swarm_id} lets go of it"}],
    )


def task_view(
    task_id: str,
    task: TaskRecord,
    *,
    now_ms: int,
    claim: ClaimRecord | None = None,
    token: int | None = None,
    waits_for: list[str] | None = None,
    busy: list[str] | None = None,
) -> dict[str, Any]:
    """The wire's map of a task (`ifbus.models.Task`), without what is empty."""
    view: dict[str, Any] = {
        "task_id": task_id,
        "title": task.title,
        "state": life.state_of(task, is_claimed=claim is not None, is_waiting=bool(waits_for or busy), now_ms=now_ms),
        "capabilities": task.capabilities,
        "depends_on": task.depends_on,
        "filler": task.filler,
        "priority": task.priority,
        "estimate_usd": to_usd(task.estimate_micro_usd),
        "spent_usd": to_usd(task.spent_micro_usd),
        "created_at_ms": task.created_at_ms,
        "percent": claim.percent if claim else task.percent,
        "note": claim.note if claim else task.note,
        "attempts": task.attempts,
    }
    optional = {
        "description": task.description,
        "payload": task.payload,
        "milestones": task.milestones,
        "waits_for": waits_for if task.state == OPEN else None,
        "resources": task.resources,
        "busy_resources": busy if task.state == OPEN and claim is None else None,
        "progress_at_ms": (claim.progress_at_ms if claim else task.progress_at_ms),
        "blocked_on": claim.blocked_on if claim else "",
        "next_action": claim.next_action if claim else "",
        "error": task.error,
        "ended_at_ms": task.ended_at_ms,
        "blocker_id": task.blocker,
        "route": task.route,
        "group": task.group,
        "pause": task.pause,
        "concurrency_key": task.concurrency_key,
        "concurrency_limit": task.concurrency_limit,
        "weight": task.weight if task.weight != 1 else None,
    }
    view.update({name: value for name, value in optional.items() if value})
    if task.options or task.history:
        view.update(life.shown(task))
    if task.state == COMPLETED:
        view["result"] = task.result
    if claim is not None:
        view.update(holder=claim.swarm_id, token=token, claimed_at_ms=claim.claimed_at_ms)
    elif task.state != OPEN and task.last_holder:
        view.update(holder=task.last_holder, token=task.last_token)
        if task.last_claimed_at_ms:
            view["claimed_at_ms"] = task.last_claimed_at_ms
    return view


def drop_heavy(view: dict[str, Any]) -> None:
    """Leave out of a task's view what makes it long, for lists; `get_task` has it."""
    for heavy in ("description", "payload", "result", "milestones", "errors", "artefacts"):
        view.pop(heavy, None)


def in_short(view: dict[str, Any]) -> dict[str, Any]:
    """What names a task, where its view does not fit."""
    return {name: view[name] for name in ("task_id", "title", "state")}


def claim_view(task_id: str, claim: ClaimRecord, *, bound: dict[str, Any] | None = None) -> dict[str, Any]:
    """The wire's map of a claim (`ifbus.models.TaskClaim`) but for its token, which is known only after the commit.

    Args:
        bound: What frees it at once, for people.
    """
    view: dict[str, Any] = {
        "task_id": task_id,
        "swarm_id": claim.swarm_id,
        "lease_ms": claim.lease_ms,
        "claimed_at_ms": claim.claimed_at_ms,
        "reserved_usd": to_usd(claim.reserved_micro_usd),
        "bound_to": claim.bound_to,
    }
    if bound:
        view["bound"] = bound
    if claim.ends_with:
        view["resources"] = resources_of(claim.ends_with)
    return view


def blocker_view(blocker_id: str, blocker: BlockerRecord) -> dict[str, Any]:
    """The wire's map of a blocker (`ifbus.models.BlockerAlert`)."""
    view: dict[str, Any] = {
        "blocker_id": blocker_id,
        "swarm_id": blocker.swarm_id,
        "reason": blocker.reason,
        "severity": blocker.severity,
        "needs": blocker.needs,
        "helpers": blocker.helpers,
        "at_ms": blocker.at_ms,
    }
    if blocker.task_id:
        view.update(task_id=blocker.task_id, token=blocker.token)
    if blocker.escalated_at_ms:
        view["escalated_at_ms"] = blocker.escalated_at_ms
    return view


def helpers_key(swarm_id: str, task_id: str) -> str:
    """Where it stands whom the open blockers of a task have called; of a swarm where there is no task, which no task's name can be."""
    return HELPERS + (task_id or f"@{swarm_id}")


def check_result(check: str, error: IfbusError | None, ok_message: str) -> dict[str, Any]:
    """One line of an explanation: a check that passed, or the refusal it would give."""
    if error is None:
        return {"check": check, "ok": True, "message": ok_message, "data": {}, "would_change": []}
    data = {name: value for name, value in error.data.items() if name != "would_change"}
    return {"check": check, "ok": False, "message": error.message, "data": data, "would_change": error.would_change}


def blocker_key(blocker_id: str) -> str:
    """Where a blocker stands in the store."""
    return BLOCKERS + blocker_id

"""Decisions about named resources, pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from ifbus.errors import InvalidParams, NotOwner, ResourceBusy, StaleToken
from ifbus.models import check_resource
from ifbusd.coordinator.model import LOCKS, LockRecord

# Each is a compare and a put of one transaction beside the claim's own; etcd takes 128 in all.
MAX_RESOURCES = 16
# What may end with one claim: its resources, and two keys of each question asked for it, answered or not. All are deleted in the transaction that ends it.
MAX_ENDS_WITH = 32


@attrs.frozen(kw_only=True)
class Lock:
    """A resource that somebody holds.

    Attributes:
        fence: The create-revision of its key: strictly increasing per resource.
        lease: That it lives on.
    """

    record: LockRecord
    fence: int
    lease: int


def check_resources(names: Iterable[Any]) -> list[str]:
    """The names in order, each once.

    Raises:
        InvalidParams: One is none, or there are too many.
    """
    wanted = sorted({check_resource(name) for name in names})
    if len(wanted) > MAX_RESOURCES:
        raise InvalidParams(
            f"at most {MAX_RESOURCES} resources at a time, got {len(wanted)}",
            data={"param": "resources", "used": len(wanted), "allowed": MAX_RESOURCES},
        )
    return wanted


def check_fences(fences: dict[Any, Any]) -> dict[str, int]:
    """The fences by name.

    Raises:
        InvalidParams: A name or a fence is none, or there are none or too many.
    """
    names = check_resources(fences)
    if not names or not all(type(fences[name]) is int for name in names):
        raise InvalidParams("resources is a map of names to fences, such as {'gpu:0': 41}", data={"param": "resources"})
    return {name: fences[name] for name in names}


def resource_busy(what: str, name: str, lock: Lock, *, now_ms: int, lease_left_ms: int | None) -> ResourceBusy:
    """The refusal of a resource that somebody holds.

    Args:
        what: What cannot be done, such as ``claim T-7``.
    """
    record = lock.record
    held_for = f" for {record.task_id}" if record.task_id else ""
    data: dict[str, Any] = {
        "resource": name,
        "owner": record.swarm_id,
        "token": lock.fence,
        "held_ms": max(0, now_ms - record.at_ms),
        "lease_left_ms": lease_left_ms,
    }
    if record.task_id:
        data["held_for"] = record.task_id
    ends = f"{record.task_id} ends" if record.task_id else f"{record.swarm_id} releases it"
    return ResourceBusy(
        f"cannot {what}: {record.swarm_id} holds {name}{held_for}",
        data=data,
        would_change=[
            {"by": "other", "what": f"{ends}, or its lease does; --wait waits for it"},
            {"by": "self", "what": "see who holds what", "call": f"ifbus lock ls --prefix {name}"},
        ],
    )


def require_fence(name: str, fence: int, swarm_id: str, lock: Lock | None) -> Lock:
    """The lock, if this is its fence and the swarm its holder.

    Raises:
        StaleToken: It was released or taken by somebody else since.
        NotOwner: It is another swarm's.
    """
    if lock is None or lock.fence != fence:
        now = "nobody holds it now" if lock is None else f"it is now {name}@{lock.fence} of {lock.record.swarm_id}"
        owner = {} if lock is None else {"owner": lock.record.swarm_id, "owner_token": lock.fence}
        raise StaleToken(
            f"cannot act on {name}@{fence}: that hold has ended, {now}; nothing was written",
            data={"resource": name, "token": fence, **owner},
            would_change=[
                {"by": "self", "what": "stop using it; acquire it again", "call": f"ifbus lock acquire {name}"}
            ],
        )
    if lock.record.swarm_id != swarm_id:
        raise NotOwner(
            f"cannot act on {name}@{fence} as {swarm_id}: {lock.record.swarm_id} holds it",
            data={"task_id": lock.record.task_id, "resource": name, "token": fence, "owner": lock.record.swarm_id},
            would_change=[{"by": "other", "what": f"{lock.record.swarm_id} releases it"}],
        )
    return lock


def resources_of(ends_with: Iterable[str]) -> list[str]:
    """The names of the resources among the keys that end with a claim."""
    return [key.removeprefix(LOCKS) for key in ends_with if key.startswith(LOCKS)]


def lock_view(name: str, lock: Lock, lease_left_ms: int | None) -> dict[str, Any]:
    """The wire's map of a held resource (`ifbus.models.ResourceLock`)."""
    record = lock.record
    view: dict[str, Any] = {
        "resource": name,
        "swarm_id": record.swarm_id,
        "fence": lock.fence,
        "at_ms": record.at_ms,
        "lease_left_ms": lease_left_ms,
    }
    if record.task_id:
        view["task_id"] = record.task_id
    return view

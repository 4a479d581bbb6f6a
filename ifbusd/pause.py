"""A pause: no new work for a task, a group or a swarm. It stands in the record of what is paused, so it outlives every restart.

What is stored is what people see: ``{"by_uid", "by_operator", "reason", "since_at_ms", "until_at_ms"?}``; the last one makes it a
drain: what is still held then is given back.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from ifbus.errors import Paused, PermissionDenied

Kind = Literal["task", "group", "swarm"]
Pause = dict[str, Any]

UNTIL: Final = "until_at_ms"


def new(
    before: Pause, *, uid: int, is_operator: bool, reason: str, now_ms: int, until_at_ms: int | None = None
) -> Pause:
    """The pause that stands after somebody asked for one: an operator's is never replaced by another user's."""
    if before.get("by_operator") and not is_operator:
        return before
    pause: Pause = {
        "by_uid": uid,
        "by_operator": is_operator,
        "reason": reason,
        "since_at_ms": before.get("since_at_ms", now_ms),
    }
    if until_at_ms is not None:
        pause[UNTIL] = until_at_ms
    return pause


def from_stored(stored: Any) -> Pause:
    """The pause of a stored map. What cannot be one raises TypeError or ValueError."""
    pause = dict(stored)
    if type(pause.get(UNTIL, 0)) is not int:
        raise TypeError(f"{UNTIL} is a time, got {pause[UNTIL]!r:.80}")
    return pause


def refusal(what: str, kind: str, name: str, pause: Pause) -> Paused:
    """The refusal of new work: who paused what, why, since when, and who can let it go on."""
    how = "drained" if UNTIL in pause else "paused"
    whose = "this host" if kind == "host" else f"{kind} {name}"
    return Paused(
        f"cannot {what}: {whose} is {how} by uid {pause['by_uid']}: {pause['reason'] or 'no reason given'}",
        data={"paused": kind, "name": name, **pause},
        would_change=[
            {
                "by": "operator" if pause["by_operator"] else "other",
                "what": f"{whose} is resumed",
                "call": "ifbus drain --off" if kind == "host" else f"ifbus resume {kind} {name}",
            }
        ],
    )


def require_may_resume(kind: str, name: str, pause: Pause, *, uid: int, is_operator: bool) -> None:
    """Raise PermissionDenied if an operator's pause would be lifted by somebody else."""
    if pause.get("by_operator") and not is_operator:
        raise PermissionDenied(
            f"cannot resume {kind} {name}: an operator paused it, you are uid {uid}",
            data={"uid": uid, "role": "operator"},
            would_change=[{"by": "operator", "what": "resume it", "call": f"ifbus resume {kind} {name}"}],
        )


def told(kind: str, name: str, pause: Pause, *, at_ms: int) -> dict[str, Any]:
    """The ``attention`` item for who works on it: running claims go on; a drain says until when."""
    whose = "this host" if kind == "host" else f"{kind} {name}"
    until = f"; finish or hand back by {pause[UNTIL]}" if UNTIL in pause else "; what you hold goes on"
    return {
        "kind": "draining" if UNTIL in pause else "paused",
        "paused": kind,
        "name": name,
        "at_ms": at_ms,
        **pause,
        "message": f"{whose} takes no new work: {pause['reason'] or 'no reason given'}{until}",
    }

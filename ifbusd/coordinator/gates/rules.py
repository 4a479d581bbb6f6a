"""Concurrency keys, weights and slots: what is asked for, and the refusal where as much is held as may be. Pure."""

from __future__ import annotations

import re
from typing import Final

from ifbus.errors import AtCapacity, InvalidParams
from ifbus.models import check_identifier

# Each place is a key that a claim looks at, so this is also what a claim may cost.
MAX_CONCURRENCY: Final = 100
MAX_WEIGHT: Final = 1_000
# Of a session; each claim that is held takes one at least, and all of them stand in one record.
MAX_SLOTS: Final = 1_000
# A refusal names at most so many holders.
_SHOWN_HOLDERS: Final = 20
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}")


def check_gates(*, group: str, key: str, limit: int, weight: int) -> None:
    """Raise InvalidParams, naming the parameter, if a new task asks for what cannot be."""
    if group:
        check_identifier(group, "group")
    if key and not _KEY.fullmatch(key):
        expected = "1 to 100 letters, digits and ._:/@+-, the first one a letter or digit"
        raise InvalidParams(
            f"concurrency_key must be {expected}, got {key!r:.120}",
            data={"param": "concurrency_key", "expected": expected},
        )
    _check_range("concurrency_limit", limit, MAX_CONCURRENCY)
    if limit != 1 and not key:
        raise InvalidParams(
            "concurrency_limit needs a concurrency_key to count by", data={"param": "concurrency_limit"}
        )
    _check_range("weight", weight, MAX_WEIGHT)


def check_slots(slots: int | None) -> None:
    """Raise InvalidParams if no session can have so many slots."""
    if slots is not None:
        _check_range("slots", slots, MAX_SLOTS)


def _check_range(param: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidParams(
            f"{param} must be 1 to {most}, got {value}", data={"param": param, "expected": f"1 to {most}"}
        )


def key_full(task_id: str, key: str, limit: int, holders: list[str]) -> AtCapacity:
    """The refusal of a claim whose concurrency key has no place left."""
    return AtCapacity(
        f"cannot claim {task_id}: {len(holders)} of {limit} tasks with concurrency key {key} are held:"
        f" {', '.join(holders[:_SHOWN_HOLDERS])}",
        data={
            "limit": "concurrency_key",
            "task_id": task_id,
            "key": key,
            "used": len(holders),
            "allowed": limit,
            "holders": holders[:_SHOWN_HOLDERS],
        },
        would_change=[
            {"by": "other", "what": "one of them ends", "call": f"ifbus task claim {task_id} --wait 10m"},
            {"by": "self", "what": "take another task", "call": "ifbus task next"},
        ],
    )


def slots_full(task_id: str, swarm_id: str, weight: int, slots: int, held: dict[str, int]) -> AtCapacity:
    """The refusal of a claim that is too heavy for what its swarm has left.

    Args:
        held: Weight by task of what it holds.
    """
    used = sum(held.values())
    return AtCapacity(
        f"cannot claim {task_id}: it weighs {weight}, and {swarm_id} has {max(0, slots - used)} of {slots} slots free",
        data={
            "limit": "slots",
            "task_id": task_id,
            "swarm_id": swarm_id,
            "weight": weight,
            "used": used,
            "allowed": slots,
            "holders": list(held)[:_SHOWN_HOLDERS],
        },
        would_change=[
            {"by": "self", "what": "complete or release something, or take a lighter task", "call": "ifbus task next"}
        ],
    )

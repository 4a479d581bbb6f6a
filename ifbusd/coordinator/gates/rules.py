"""Concurrency keys, weights and slots: what is asked for, and the refusal where as much is held as may be. Pure."""

from __future__ import annotations

import re
from typing import Final

from ifbus.errors import AtCapacity, InvalidParams
from ifbus.models import check_identifier

# Each place is a key that a claim looks at, so this is also what a claim may cost.
MAX_CONCURRENCY: Final = 100
MAX_WEIGHT: Final = 1_000
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
    _check_range("weight", weight, MAX_WEIGHT)


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

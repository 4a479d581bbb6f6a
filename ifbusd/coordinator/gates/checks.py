"""The gates of a claim, inside its transaction. A task with neither pause, group nor key costs three looks at its record.

A place of a concurrency key is held by the claim itself. ``keys/<key>`` names every task of the key that may be held: a claim adds its
own and drops those whose claim is gone, so a claim that ends, however it ends, has given its place back; nobody has to do it, and no
crash can forget it. The record is compared at commit, and every claim of its key writes it: of two that would take the last place,
on one host or on two, one is decided again. The claims themselves need no compare: one that came since would have written the record,
and one that went since only makes room. The record goes with the last task of its key: whoever is in it is such a task.

The slots of a swarm are counted in the same way, over the claims of its session: ``loads/<swarm>`` lives on the session's lease.
"""

from __future__ import annotations

from ifbus.errors import AtCapacity, IfbusError, Paused
from ifbusd import pause
from ifbusd.coordinator.gates import rules
from ifbusd.coordinator.model import (
    CLAIMS,
    GROUPS,
    KEYS,
    LOADS,
    ClaimRecord,
    GroupRecord,
    KeyRecord,
    LoadRecord,
    SessionRecord,
    TaskRecord,
)
from ifbusd.operation import Tx


def require_open(tx: Tx, task_id: str, task: TaskRecord) -> None:
    """Return if nothing new is kept from this task.

    Raises:
        Paused: The task or its group is.
        AtCapacity: As many tasks of its concurrency key are held as may be.
    """
    if task.pause:
        raise pause.refusal(f"claim {task_id}", "task", task_id, task.pause)
    if task.group:
        group = tx.read(GROUPS + task.group, GroupRecord.from_bytes)
        if group is not None and group.pause:
            raise pause.refusal(f"claim {task_id}", "group", task.group, group.pause)
    if task.concurrency_key:
        holders = _holders(tx, task_id, task)
        if len(holders) >= task.concurrency_limit:
            raise rules.key_full(task_id, task.concurrency_key, task.concurrency_limit, holders)


def why_closed(tx: Tx, task_id: str, task: TaskRecord) -> IfbusError | None:
    """The refusal of `require_open`, None if it gives none."""
    try:
        require_open(tx, task_id, task)
    except (Paused, AtCapacity) as refusal:
        return refusal
    return None


def describe(task: TaskRecord) -> str:
    """What an open gate says of a task."""
    if task.concurrency_key:
        return f"not paused, less than {task.concurrency_limit} of {task.concurrency_key} held"
    return "not paused"


def enter(tx: Tx, task_id: str, task: TaskRecord) -> None:
    """As `require_open`, and take the place that the claim holds from now on."""
    require_open(tx, task_id, task)
    if task.concurrency_key:
        record = KeyRecord(tasks=[*_holders(tx, task_id, task), task_id])
        tx.put(KEYS + task.concurrency_key, record.to_map())


def forget(tx: Tx, task_id: str, task: TaskRecord) -> None:
    """A final task is removed: so is the record of its key, unless another task of it is held, which comes here in turn."""
    key = KEYS + task.concurrency_key
    if task.concurrency_key and tx.get(key) is not None and not _holders(tx, task_id, task):
        tx.delete(key)


def _holders(tx: Tx, task_id: str, task: TaskRecord) -> list[str]:
    """The tasks of the key that are held now, besides this one."""
    record = tx.read(KEYS + task.concurrency_key, KeyRecord.from_bytes)
    listed = [] if record is None else record.tasks
    return [name for name in listed if name != task_id and tx.get_unguarded(CLAIMS + name) is not None]


def require_slots(tx: Tx, task_id: str, task: TaskRecord, swarm_id: str, session: SessionRecord) -> dict[str, int]:
    """The weights by task of what a session with so many slots holds besides this one, if that leaves room for it.

    Raises:
        AtCapacity: It does not.
    """
    record = tx.read(LOADS + swarm_id, LoadRecord.from_bytes)
    listed = {} if record is None else record.weights
    held = {
        name: weight for name, weight in listed.items() if name != task_id and _is_held(tx, name, swarm_id, session)
    }
    if sum(held.values()) + task.weight > session.slots:
        raise rules.slots_full(task_id, swarm_id, task.weight, session.slots, held)
    return held


def take_slots(tx: Tx, task_id: str, task: TaskRecord, swarm_id: str, session: SessionRecord, lease: int) -> None:
    """As `require_slots`, and take the slots that the claim holds from now on; `lease` is the session's."""
    held = require_slots(tx, task_id, task, swarm_id, session)
    tx.put(LOADS + swarm_id, LoadRecord(weights={**held, task_id: task.weight}).to_map(), lease=lease)


def why_no_slots(tx: Tx, task_id: str, task: TaskRecord, swarm_id: str, session: SessionRecord) -> AtCapacity | None:
    """The refusal of `require_slots`, None if it gives none."""
    try:
        require_slots(tx, task_id, task, swarm_id, session)
    except AtCapacity as refusal:
        return refusal
    return None


def _is_held(tx: Tx, task_id: str, swarm_id: str, session: SessionRecord) -> bool:
    stored = tx.get_unguarded(CLAIMS + task_id)
    claim = None if stored is None else ClaimRecord.from_bytes(stored)
    return claim is not None and (claim.swarm_id, claim.incarnation) == (swarm_id, session.incarnation)

"""The gates of a claim, inside its transaction. A task with neither pause, group nor key costs three looks at its record.

A place of a concurrency key is held by the claim itself. ``keys/<key>`` names every task of the key that may be held: a claim adds its
own and drops those whose claim is gone, so a claim that ends, however it ends, has given its place back; nobody has to do it, and no
crash can forget it. The record is compared at commit, and every claim of its key writes it: of two that would take the last place,
on one host or on two, one is decided again. The claims themselves need no compare: one that came since would have written the record,
and one that went since only makes room.
"""

from __future__ import annotations

from ifbus.errors import AtCapacity, IfbusError, Paused
from ifbusd import pause
from ifbusd.coordinator.gates import rules
from ifbusd.coordinator.model import CLAIMS, GROUPS, KEYS, GroupRecord, KeyRecord, TaskRecord
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


def _holders(tx: Tx, task_id: str, task: TaskRecord) -> list[str]:
    """The tasks of the key that are held now, besides this one."""
    record = tx.read(KEYS + task.concurrency_key, KeyRecord.from_bytes)
    listed = [] if record is None else record.tasks
    return [name for name in listed if name != task_id and tx.exists_unguarded(CLAIMS + name)]

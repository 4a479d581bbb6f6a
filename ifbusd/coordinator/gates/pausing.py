"""Pause and resume of a task, a group or a swarm, and the weights of groups."""

from __future__ import annotations

from typing import Any, Final

from ifbus.errors import InvalidParams, NotReady, PermissionDenied
from ifbus.models import check_identifier
from ifbusd import pause as pauses
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, limit_exceeded
from ifbusd.coordinator.model import GROUPS, OPEN, TASKS, GroupRecord
from ifbusd.coordinator.offers import DEFAULT_WEIGHT
from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.pause import Kind, Pause

MAX_REASON: Final = 500
MAX_GROUP_WEIGHT: Final = 1_000
# An answer names at most so many claims that go on; the status of a group at most so many groups.
_SHOWN: Final = 200


class Pausing(Core):
    """A pause stands in the record of what it is of; claims that run go on, and their holders hear of it."""

    async def pause(self, caller: Caller, kind: Kind, name: str, *, reason: str = "") -> Answer:
        """See `interface.Coordinator.pause`."""
        return await self._pause(caller, "coordinator.pause", kind, name, reason, None)

    async def _pause(self, caller: Caller, op: str, kind: Kind, name: str, reason: str, grace_ms: int | None) -> Answer:
        """Pause something, or drain it where a grace is given."""
        check_identifier(name, kind)
        rules.check_text("reason", reason, MAX_REASON)
        await self.board.show_told()

        def body(tx: Tx) -> Answer:
            def change(before: Pause) -> Pause:
                now_ms = self._now_ms()
                return pauses.new(
                    before,
                    uid=caller.uid,
                    is_operator=caller.is_operator,
                    reason=reason,
                    now_ms=now_ms,
                    until_at_ms=None if grace_ms is None else now_ms + grace_ms,
                )

            now = self._change_pause(tx, caller, kind, name, change)
            return {"pause": now, "running": self._tell_paused(tx, kind, name, now)}

        answer = await self._operations.run(caller, op, name, body)
        await self._show_change(kind, name)
        return answer

    async def resume(self, caller: Caller, kind: Kind, name: str) -> Answer:
        """See `interface.Coordinator.resume`."""
        check_identifier(name, kind)

        def body(tx: Tx) -> Answer:
            was: Pause = {}

            def change(before: Pause) -> Pause:
                nonlocal was
                was = before
                pauses.require_may_resume(kind, name, before, uid=caller.uid, is_operator=caller.is_operator)
                return {}

            self._change_pause(tx, caller, kind, name, change)
            item = {"kind": "resumed", "paused": kind, "name": name, "message": f"{kind} {name} goes on"}
            for swarm_id in self._holders(kind, name) if was else ():
                tx.publish(f"attention.{swarm_id}", dict(item))
            return {"was": was or None}

        answer = await self._operations.run(caller, "coordinator.resume", name, body)
        await self._show_change(kind, name)
        return answer

    async def set_group_weight(self, caller: Caller, group: str, weight: int) -> Answer:
        """See `interface.Coordinator.set_group_weight`."""
        check_identifier(group, "group")
        if not 0 <= weight <= MAX_GROUP_WEIGHT:
            raise InvalidParams(
                f"weight must be 0 to {MAX_GROUP_WEIGHT}, got {weight}",
                data={"param": "weight", "expected": f"0 to {MAX_GROUP_WEIGHT}"},
            )

        def body(tx: Tx) -> Answer:
            before = self._group(tx, group)
            self._put_group(tx, group, before.evolve(weight=weight))
            tx.detail["weight"] = weight
            return {"group": {"group": group, "weight": weight or DEFAULT_WEIGHT, "pause": before.pause or None}}

        answer = await self._operations.run(caller, "coordinator.set_group_weight", group, body)
        await self.board.show_told()
        return answer

    async def list_groups(self, caller: Caller, *, after: str = "", limit: int = 50) -> Answer:
        """See `interface.Coordinator.list_groups`."""
        rules.check_limit(limit)
        await self.board.catch_up()
        names = sorted(name for name in self.board.groups if name > after)
        groups = [
            {
                "group": name,
                "weight": self.board.groups[name].weight or DEFAULT_WEIGHT,
                "pause": self.board.groups[name].pause or None,
            }
            for name in names[:limit]
        ]
        return {"groups": groups, "next": names[limit - 1] if len(names) > limit else None}

    def _change_pause(self, tx: Tx, caller: Caller, kind: Kind, name: str, change: Any) -> Pause:
        """Read, change and write the pause of something, if the caller may; what it is now.

        Raises:
            not_found, permission_denied: There is no such thing; the caller is neither its owner nor an operator.
            not_ready: The task is final.
        """
        tx.detail["kind"] = kind
        if kind == "swarm":
            now: Pause = self._governor.change_pause(tx, caller, name, change)
        elif kind == "group":
            group = self._group(tx, name)
            if not caller.is_operator:
                raise PermissionDenied(
                    f"cannot pause or resume group {name}: that needs the operator role, you are uid {caller.uid}",
                    data={"uid": caller.uid, "role": "operator"},
                    would_change=[{"by": "operator", "what": "do it", "call": f"ifbus pause group {name}"}],
                )
            now = change(group.pause)
            self._put_group(tx, name, group.evolve(pause=now))
        else:
            task = self._task(tx, name)
            if not caller.is_operator and task.uid != caller.uid:
                raise PermissionDenied(
                    f"cannot pause or resume {name}: uid {task.uid} created it, you are uid {caller.uid}",
                    data={"owner_uid": task.uid, "uid": caller.uid},
                    would_change=[{"by": "operator", "what": "do it", "call": f"ifbus pause task {name}"}],
                )
            if task.state != OPEN:
                raise NotReady(
                    f"cannot pause or resume {name}: it is {task.state}",
                    data={"task_id": name, "state": task.state},
                    would_change=[{"by": "self", "what": "take another task", "call": "ifbus task ls"}],
                )
            now = change(task.pause)
            changed = task.evolve(pause=now)
            tx.put(TASKS + name, changed.to_map(), decoded=changed)
            self._publish_board(tx, "paused" if now else "resumed", name)
        if now:
            tx.detail["reason"] = now["reason"]
        return now

    def _group(self, tx: Tx, group: str) -> GroupRecord:
        return tx.read(GROUPS + group, GroupRecord.from_bytes) or GroupRecord()

    def _put_group(self, tx: Tx, group: str, record: GroupRecord) -> None:
        if record == GroupRecord():
            tx.delete(GROUPS + group)
            return
        used, allowed = len(self.board.groups), self._config.groups
        if used >= allowed and group not in self.board.groups:
            raise limit_exceeded("keep another group", "groups", used, allowed, "weight 0 and resume drop one")
        tx.put(GROUPS + group, record.to_map())

    def _holders(self, kind: Kind, name: str) -> dict[str, list[str]]:
        """By swarm the claims that are of what was paused, from the board."""
        if kind == "swarm":
            return {name: self.board.handles_of(name)}
        if kind == "task":
            entries = [entry] if (entry := self.board.tasks.get(name)) is not None else []
        else:
            held = (self.board.tasks.get(task_id) for tasks in self.board.held_by.values() for task_id in tasks)
            entries = [entry for entry in held if entry is not None and entry.group == name]
        found: dict[str, list[str]] = {}
        for entry in entries:
            if entry.held is not None:
                found.setdefault(entry.held.swarm_id, []).append(f"{entry.task_id}@{entry.held.token}")
        return found

    def _tell_paused(self, tx: Tx, kind: Kind, name: str, now: Pause) -> list[str]:
        """Tell the holders; their claims, which go on."""
        holders = self._holders(kind, name)
        item = pauses.told(kind, name, now, at_ms=self._now_ms())
        for swarm_id, handles in holders.items():
            tx.publish(f"attention.{swarm_id}", {**item, "claims": handles[:_SHOWN]})
        return [handle for handles in holders.values() for handle in handles][:_SHOWN]

    async def _show_change(self, kind: Kind, name: str) -> None:
        await self.board.show_told()
        if kind == "swarm":
            await self._governor.caught_up(name)

"""New tasks, one or many in one commit: names, dependencies among them, unique keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import attrs

from ifbus.errors import AlreadyExists, InvalidParams
from ifbus.models import check_identifier
from ifbus.money import NO_MONEY, MicroUsd
from ifbusd.codec import how_many_fit, unpack
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, limit_exceeded, packed_size
from ifbusd.coordinator.gates import rules as gate_rules
from ifbusd.coordinator.interface import Coordinator
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.locks.rules import check_resources
from ifbusd.coordinator.model import (
    CLAIMS,
    COMPLETED,
    OPEN,
    TASK_COUNTER,
    TASKS,
    UNIQUE,
    ClaimRecord,
    TaskOptions,
    TaskRecord,
)
from ifbusd.identity import Caller
from ifbusd.operation import Body, Tx
from ifbusd.signature import Signature

_CREATE_TASK: Final = Signature.of(Coordinator.create_task)


@attrs.frozen(kw_only=True)
class NewTask:
    """A task to be created; `record` lacks its number, its author and the time."""

    task_id: str | None
    record: TaskRecord


class Creating(Core):
    """Tasks come into being here."""

    async def create_task(self, caller: Caller, title: str, **fields: Any) -> Answer:
        """See `interface.Coordinator.create_task`, which has checked the names and types of the fields."""
        new = self._new_task(title, **fields)
        await self.board.show_told()
        made: dict[str, TaskRecord] = {}

        def create(tx: Tx) -> Answer:
            [view] = self._create(tx, caller, [new], made)
            tx.detail["title"] = title
            return {"task": view}

        return await self._make(caller, "coordinator.create_task", new.task_id or "", create, made)

    async def create_tasks(self, caller: Caller, tasks: list[dict[str, Any]]) -> Answer:
        """See `interface.Coordinator.create_tasks`."""
        rules.check_batch("tasks", len(tasks))
        new = [self._from_wire(index, fields) for index, fields in enumerate(tasks)]
        if (circle := life.find_cycle({one.task_id: one.record.depends_on for one in new if one.task_id})) is not None:
            raise rules.cycle(circle)
        await self.board.show_told()
        made: dict[str, TaskRecord] = {}

        def create(tx: Tx) -> Answer:
            views = self._create(tx, caller, new, made)
            self._require_fits(tx, "create these tasks", "fewer tasks, or fewer different dependencies, at a time")
            for view in views:
                rules.drop_heavy(view)
            tx.detail["tasks"] = [view["task_id"] for view in views]
            fitting = how_many_fit(views)
            return {"tasks": views[:fitting] + [rules.in_short(view) for view in views[fitting:]]}

        return await self._make(caller, "coordinator.create_tasks", "", create, made)

    async def _make(self, caller: Caller, op: str, target: str, create: Body, made: dict[str, TaskRecord]) -> Answer:
        try:
            return await self._operations.run(caller, op, target, create)
        except BaseException:
            # Nothing came of it; or it was cancelled, and the board shows what did like any other task.
            for task_id in made:
                self.board.forget_coming(task_id)
            raise

    def _from_wire(self, index: int, fields: dict[str, Any]) -> NewTask:
        try:
            return self._new_task(**_CREATE_TASK.bind([dict(fields)]))
        except InvalidParams as error:
            error.data["index"] = index
            raise

    def _new_task(
        self,
        title: str,
        *,
        task_id: str | None = None,
        description: str = "",
        capabilities: list[str] | None = None,
        depends_on: list[str] | None = None,
        filler: bool = False,
        priority: int = 0,
        estimate_usd: MicroUsd = NO_MONEY,
        payload: dict[str, Any] | None = None,
        milestones: list[Any] | None = None,
        resources: list[str] | None = None,
        group: str = "",
        concurrency_key: str = "",
        concurrency_limit: int = 1,
        weight: int = 1,
        **options: Any,
    ) -> NewTask:
        """What `interface.Coordinator.create_task` describes. Raises InvalidParams."""
        named = check_resources(resources) if resources else []
        wanted, needed = sorted(set(capabilities or ())), list(dict.fromkeys(depends_on or ()))
        rules.check_new_task(
            title=title,
            description=description,
            capabilities=wanted,
            depends_on=needed,
            priority=priority,
            payload_bytes=packed_size(payload or {}),
            milestones=milestones or [],
        )
        gate_rules.check_gates(group=group, key=concurrency_key, limit=concurrency_limit, weight=weight)
        if task_id is not None:
            check_identifier(task_id, "task_id")
            if task_id in needed:
                raise rules.cycle([task_id, task_id])
        record = TaskRecord(
            n=0,
            title=title,
            description=description,
            capabilities=wanted,
            depends_on=needed,
            resources=named,
            filler=filler,
            priority=priority,
            estimate_micro_usd=estimate_usd,
            payload=payload or {},
            milestones=milestones or [],
            options=self._options(options) if options else {},
            group=group,
            concurrency_key=concurrency_key,
            concurrency_limit=concurrency_limit if concurrency_key else 0,
            weight=weight,
        )
        return NewTask(task_id=task_id, record=record)

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = {name: value for name, value in given.items() if value is not None}
        if not asked:
            return {}
        options = TaskOptions(**asked)
        life.check_options(options, self._config, self._now_ms())
        return options.to_map()

    def _create(self, tx: Tx, caller: Caller, tasks: Sequence[NewTask], records: dict[str, TaskRecord]) -> list[Answer]:
        """Put new tasks into the board, within an operation; their views in the same order. Those that are new are left in `records`."""
        used, allowed = self.board.open_tasks(), self._config.open_tasks
        if used + len(tasks) > allowed:
            raise limit_exceeded("create a task", "open_tasks", used, allowed, "complete or fail some of them")
        numbers, n = self._numbers_for(tx, len(tasks)), 0
        now_ms = self._now_ms()
        names: list[tuple[str, bool]] = []  # and whether it is a new one
        records.clear()
        keyed: dict[str, str] = {}  # new ones by their unique keys
        instead: dict[str, str] = {}  # what was asked for, and the open task that has its unique key
        for new in tasks:
            key = new.record.options.get("unique_key", "") if new.record.options else ""
            if key and (first := keyed.get(key) or open_with(tx, caller.uid, key, now_ms)) is not None:
                names.append((first, False))
                if new.task_id is not None:
                    instead[new.task_id] = first
                continue
            n = next(numbers)
            name = new.task_id if new.task_id is not None else f"T-{n}"
            while name in records or tx.get_stored(TASKS + name) is not None:
                if new.task_id is not None:
                    raise AlreadyExists(
                        f"cannot create task {name}: there is one",
                        data={"task_id": name},
                        would_change=[{"by": "self", "what": "another id, or none", "call": f"ifbus task show {name}"}],
                    )
                n = next(numbers)  # somebody gave a task this very name
                name = f"T-{n}"
            if key:
                keyed[key] = name
                tx.put(unique_key(caller.uid, key), name)
            records[name] = new.record.evolve(n=n, created_at_ms=now_ms, uid=caller.uid)
            names.append((name, True))
        if instead:
            for name, record in records.items():
                needed = dict.fromkeys(instead.get(other, other) for other in record.depends_on)
                records[name] = record.evolve(depends_on=list(needed))
            # One that stands for another one of the batch may wait for itself by that.
            if (circle := life.find_cycle({name: record.depends_on for name, record in records.items()})) is not None:
                raise rules.cycle(circle)
        for name, record in records.items():
            rules.check_task_size(packed_size(record.to_map()))
            tx.put(TASKS + name, record.to_map(), decoded=record)
            self._publish_board(tx, "created", name)
        for record in records.values():
            for dependency in record.depends_on:
                keep_awaited(tx, dependency, self._task(tx, dependency), now_ms)
        if records and self._numbers is None:
            tx.put(TASK_COUNTER, n)
        if records and self.board.offers.has_waiters:
            tx.decided = partial(self.board.offer_coming, records)
        return [self._created(tx, name, records[name] if is_new else None, now_ms) for name, is_new in names]

    def _numbers_for(self, tx: Tx, count: int) -> Iterator[int]:
        """Numbers for new tasks, at least `count`; where this is the only daemon the last one that was used becomes the counter."""
        if self._numbers is None:
            counted = tx.get(TASK_COUNTER)
            yield from itertools.count((unpack(counted) if counted else 0) + 1)
        else:
            for block in itertools.count():
                yield from tx.obtain(f"numbers {block}", partial(self._numbers.take, max(1, count)))

    def _created(self, tx: Tx, name: str, record: TaskRecord | None, now_ms: int) -> Answer:
        if record is not None:
            waits, busy = sorted(self._waits_for(tx, name, record)), self.board.locks.busy(record.resources)
            return rules.task_view(name, record, now_ms=now_ms, waits_for=waits, busy=busy)
        task, held = self._task(tx, name), tx.get_stored(CLAIMS + name)
        claim = None if held is None else ClaimRecord.from_bytes(held.value)
        waits = sorted(self._waits_for(tx, name, task))
        view = rules.task_view(
            name, task, now_ms=now_ms, claim=claim, token=held and held.create_revision, waits_for=waits
        )
        return {**view, "existing": True}


def unique_key(uid: int, key: str) -> str:
    """Where it stands which task a user's unique key was last given to."""
    return f"{UNIQUE}{uid}/{key}"


def open_with(tx: Tx, uid: int, key: str, now_ms: int) -> str | None:
    """The open task of this user that has a unique key."""
    stored = tx.get(unique_key(uid, key))
    if stored is None:
        return None
    name: str = unpack(stored)
    task = tx.read(TASKS + name, TaskRecord.from_bytes)
    is_open = task is not None and task.state == OPEN and not life.is_overdue(task, now_ms)
    return name if is_open else None


def keep_awaited(tx: Tx, task_id: str, task: TaskRecord, now_ms: int) -> None:
    """Keep a task that an open one depends on from now on, if it ended without being completed.

    Whoever would remove it must see in the store that somebody waits for it again: it is kept for its full time.
    """
    if task.state not in (OPEN, COMPLETED):
        tx.put(TASKS + task_id, task.evolve(history={**task.history, "awaited_at_ms": now_ms}).to_map())

"""The board against a naive model: whatever the store tells, states, counts and the order of offers are the same."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from ifbusd.codec import pack
from ifbusd.coordinator.bindings import Bindings
from ifbusd.coordinator.board import Board
from ifbusd.coordinator.mailboxes import Listener
from ifbusd.coordinator.model import BlockerRecord, ClaimRecord, MessageRecord, TaskRecord
from ifbusd.coordinator.offers import Waiter
from ifbusd.operation import Decoded
from ifbusd.store.base import KeyValue, WatchEvent

TASKS = ["a", "b", "c", "d", "e", "f"]
SWARMS = ["s1", "s2"]
CAPABILITIES = [["x:1"], ["x:1", "y:2"], []]


@attrs.define
class Model:
    """The naive model: records by name, and everything worked out anew each time."""

    tasks: dict[str, TaskRecord] = attrs.field(factory=dict)
    claims: dict[str, tuple[str, int]] = attrs.field(factory=dict)
    revision: int = 0
    created: dict[str, int] = attrs.field(factory=dict)

    def state(self, task_id: str) -> str:
        task = self.tasks[task_id]
        if task.state != "open":
            return task.state
        if task.blocker:
            return "blocked"
        if task_id in self.claims:
            return "claimed"
        waits = any(self.tasks[name].state != "completed" for name in task.depends_on)
        return "waiting" if waits else "ready"

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for task_id in self.tasks:
            counts[self.state(task_id)] = counts.get(self.state(task_id), 0) + 1
        return counts

    def ready(self, can: set[str]) -> list[str]:
        fit = [name for name in self.tasks if self.state(name) == "ready" and set(self.tasks[name].capabilities) <= can]
        return sorted(fit, key=lambda name: (self.tasks[name].filler, -self.tasks[name].priority, self.tasks[name].n))

    def events(self, changes: list[tuple[str, Any]]) -> list[WatchEvent]:
        """One commit's events: a record for a key, or None for its end."""
        self.revision += 1
        events = []
        for key, record in changes:
            if record is None:
                self.created.pop(key, None)
                events.append(WatchEvent(key, None, self.revision))
            else:
                created = self.created.setdefault(key, self.revision)
                value = KeyValue(key, pack(record.to_map()), created, self.revision, 0)
                events.append(WatchEvent(key, value, self.revision))
        return events


def _board() -> Board:
    bindings = Bindings(limit=0, limit_per_uid=0, new_id=lambda: "")
    return Board(
        None,  # type: ignore[arg-type]  # only `run` and `catch_up` ask the store
        Decoded(),
        bindings,
        now_ms=lambda: 0,
        retention_ms=1,
        retained_tasks=1,
        board_history=100,
        ageing_ms=60_000,
    )


def step(model: Model, draw: Any) -> list[WatchEvent]:
    """One commit that the coordinator could make."""
    free = [name for name in TASKS if name not in model.tasks]
    open_tasks = [name for name, task in model.tasks.items() if task.state == "open"]
    kinds = ["create"] * bool(free) + ["claim", "end", "lose", "block", "unblock"] * bool(open_tasks)
    kind = draw(st.sampled_from(kinds or ["create"]))
    if kind == "create":
        if not free:
            return []
        depends_on = (
            draw(st.lists(st.sampled_from(sorted(model.tasks)), unique=True, max_size=2)) if model.tasks else []
        )
        task = TaskRecord(
            n=len(model.tasks) + 1,
            title="t",
            capabilities=draw(st.sampled_from(CAPABILITIES)),
            depends_on=depends_on,
            filler=draw(st.booleans()),
            priority=draw(st.integers(-1, 1)),
            estimate_micro_usd=draw(st.sampled_from([0, 5])),
        )
        model.tasks[free[0]] = task
        return model.events([(f"tasks/{free[0]}", task)])
    name = draw(st.sampled_from(open_tasks))
    task = model.tasks[name]
    if kind == "claim" and model.state(name) == "ready":
        swarm_id = draw(st.sampled_from(SWARMS))
        claim = ClaimRecord(swarm_id=swarm_id, incarnation=0, uid=1, lease_ms=1, claimed_at_ms=0)
        events = model.events([(f"claims/{name}", claim)])
        model.claims[name] = (swarm_id, model.revision)
        return events
    if kind == "end" and name in model.claims:
        state = draw(st.sampled_from(["open", "completed", "failed"]))
        model.tasks[name] = attrs.evolve(task, state=state, attempts=task.attempts + 1)
        del model.claims[name]
        return model.events([(f"tasks/{name}", model.tasks[name]), (f"claims/{name}", None)])
    if kind == "lose" and name in model.claims:
        del model.claims[name]
        return model.events([(f"claims/{name}", None)])
    if kind in ("block", "unblock") and name not in model.claims:
        model.tasks[name] = attrs.evolve(task, blocker="B-1" if kind == "block" else "")
        return model.events([(f"tasks/{name}", model.tasks[name])])
    return []


@settings(max_examples=60)
@given(st.data())
def test_the_board_shows_what_the_store_told(data: st.DataObject) -> None:
    """After every commit, alone or several in one batch, the board agrees with the model and reports exactly the lost claims."""
    model, board = Model(), _board()
    lost: list[tuple[str, int]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        batch: list[WatchEvent] = []
        for _ in range(data.draw(st.integers(1, 3))):
            before = dict(model.claims)
            events = step(model, data.draw)
            batch += events
            if len(events) == 1 and events[0].key.startswith("claims/") and events[0].value is None:
                name = events[0].key.removeprefix("claims/")
                lost.append((name, before[name][1]))
        if batch:
            board.apply(batch)
        assert {name: entry.shown for name, entry in board.tasks.items()} == {n: model.state(n) for n in model.tasks}
        assert {state: n for state, n in board.counts.items() if n} == model.counts()
        for can in ({"x:1", "y:2"}, {"x:1"}, set[str]()):
            nobody = Waiter(swarm_id="s", fits=lambda entry: True)
            found = board.offers.candidates(nobody, lambda kind, can=can: kind[0] <= can, most=10)
            assert [entry.task_id for entry in found] == model.ready(can)
        for swarm_id in SWARMS:
            held = sorted(f"{n}@{token}" for n, (holder, token) in model.claims.items() if holder == swarm_id)
            assert board.handles_of(swarm_id) == held
        assert board.open_tasks() == sum(task.state == "open" for task in model.tasks.values())
        assert board.revision == model.revision
    assert list(board.lost) == lost


def test_letters_are_told_once_and_in_order() -> None:
    """A listener hears what waits above its mark, then each new letter, in order of seq, also when one batch brings several."""
    model, board = Model(), _board()
    heard: list[int] = []
    letter = MessageRecord(kind="notice", body={})

    def put(*keys: str) -> list[WatchEvent]:
        return [event for key in keys for event in model.events([(key, letter)])]

    board.apply(put("inbox/s1/z", "inbox/s1/a", "inbox/s2/a"))
    listener = Listener(tell=lambda seq, _: heard.append(seq), seen=1)
    assert board.mail.listen("s1", listener) == 1
    board.apply(put("inbox/s1/c", "inbox/s1/b"))
    board.apply(put("inbox/s1/b"))  # written again: the same letter
    assert heard == [2, 4, 5]
    board.mail.stop_listening("s1", listener)
    board.apply(put("inbox/s1/d"))
    assert heard == [2, 4, 5]


def test_blockers_come_and_go() -> None:
    """The open blockers are those whose record is there."""
    model, board = Model(), _board()
    board.apply(model.events([("blockers/B-1", BlockerRecord(swarm_id="s", reason="r", uid=1))]))
    assert list(board.blockers) == ["B-1"]
    board.apply(model.events([("blockers/B-1", None)]))
    assert not board.blockers

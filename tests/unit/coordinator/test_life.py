"""The table of a task's life, and the rules that follow it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import NotReady
from ifbusd.codec import pack
from ifbusd.coordinator.life import diagram
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import COMPLETED, DEAD, FAILED, OPEN, TaskRecord

PAGE = Path(__file__).parents[3] / diagram.PAGE
TASK = TaskRecord(n=1, title="t")


def test_the_page_is_fresh() -> None:
    """docs/task-life.md is the table of now: `python -m ifbusd.coordinator.life.diagram`."""
    assert PAGE.read_text(encoding="utf-8") == diagram.markdown()


def test_each_state_is_reached_and_left() -> None:
    """The table has no state that is a trap, and none that nothing leads to."""
    reached = {target for targets in life.TABLE.values() for target in targets}
    assert reached >= set(life.STATES)
    assert {source for source, _ in life.TABLE} >= set(life.STATES)


def test_nothing_but_a_requeue_opens_what_is_final() -> None:
    """And a completed task is never open again."""
    again = {
        (source, event)
        for (source, event), targets in life.TABLE.items()
        if source in life.FINAL_STATES and set(targets) & set(life.OPEN_STATES)
    }
    assert {event for _, event in again} == {"requeue"}
    assert COMPLETED not in {source for source, _ in again}


@pytest.mark.parametrize("state", life.STATES)
@pytest.mark.parametrize("event", ["cancel", "requeue", "expire"])
def test_an_event_that_the_table_lacks_is_refused(state: str, event: str) -> None:
    """With the states that it is for."""
    if (state, event) in life.TABLE:
        life.require("T-1", state, event)
        return
    with pytest.raises(NotReady) as refusal:
        life.require("T-1", state, event)
    assert refusal.value.data.items() >= {"task_id": "T-1", "state": state}.items()
    assert refusal.value.would_change


def test_a_move_that_the_table_lacks_is_a_bug() -> None:
    """The daemon itself never makes one."""
    with pytest.raises(AssertionError):
        life.move(TASK.evolve(state=COMPLETED), "complete", OPEN)
    with pytest.raises(AssertionError):
        life.move(TASK, "release", FAILED)


def _fail(task: TaskRecord, retry: bool | None = None, error: str = "e", chance: float = 0.0) -> TaskRecord:
    return life.after_failure(
        task,
        event="fail",
        reason="failed",
        error=error,
        swarm_id="s",
        token=1,
        now_ms=1_000,
        chance=chance,
        retry=retry,
    )


@pytest.mark.parametrize(
    ("options", "retry", "states"),
    [
        ({}, None, [FAILED]),
        ({}, False, [FAILED]),
        ({}, True, [OPEN, OPEN, OPEN]),
        ({"backoff": {"base_ms": 1}}, None, [FAILED]),
        ({"max_attempts": 1}, None, [DEAD]),
        ({"max_attempts": 3}, None, [OPEN, OPEN, DEAD]),
        ({"max_attempts": 3}, True, [OPEN, OPEN, DEAD]),
        ({"max_attempts": 3}, False, [DEAD]),
    ],
)
def test_what_becomes_of_a_task_that_fails(options: dict[str, object], retry: bool | None, states: list[str]) -> None:
    """By its retry rule, and by what its holder says."""
    task = TASK.evolve(options=options)
    for state in states:
        task = _fail(task, retry)
        assert task.state == state
    assert len(task.history["errors"]) == len(states)


@given(
    failures=st.integers(1, 200),
    chance=st.floats(0, 1),
    base=st.integers(0, 10_000),
    factor=st.floats(1, 100),
    cap=st.integers(0, 10**6),
    jitter=st.floats(0, 1),
)
def test_a_backoff_stays_within_its_bounds(
    failures: int, chance: float, base: int, factor: float, cap: int, jitter: float
) -> None:
    """At most the cap, never negative, shortened by no more than the jitter, never shorter for the next failure."""
    task = TASK.evolve(options={"backoff": {"base_ms": base, "factor": factor, "cap_ms": cap, "jitter": jitter}})
    longest = life.backoff_ms(task, failures, 0)
    assert max(0, longest * (1 - jitter) - 1) <= life.backoff_ms(task, failures, chance) <= longest <= cap
    assert life.backoff_ms(task, failures + 1, 0) >= longest


@given(st.lists(st.text(max_size=2_000), max_size=40), st.integers(0, 55_000))
def test_what_is_kept_of_errors_is_bounded(errors: list[str], payload_bytes: int) -> None:
    """However many attempts fail and however long their errors and the task are, it still fits into an answer."""
    task = TASK.evolve(payload={"x": "x" * payload_bytes})
    for error in errors:
        task = _fail(task, True, error)
    kept = task.history.get("errors", [])
    assert len(kept) <= life.MAX_KEPT_ERRORS
    assert len(pack(kept)) <= 8 << 10
    assert len(kept) == 1 or len(pack(task.to_map())) <= 60 << 10 or not errors
    assert len(pack(life.handover(task.evolve(attempts=1, last_holder="s")))) <= 12 << 10


def test_artefacts_take_one_anothers_place() -> None:
    """By name; beyond the bound the oldest go."""
    task = TASK
    for n in range(20):
        task = life.with_artefacts(task, [{"name": f"f{n}", "sha256": "0" * 64, "bytes": n}])
    task = life.with_artefacts(task, [{"name": "f19", "sha256": "1" * 64, "bytes": 1}])
    left = task.history["artefacts"]
    assert [artefact["name"] for artefact in left] == [f"f{n}" for n in range(4, 20)]
    assert left[-1]["sha256"] == "1" * 64

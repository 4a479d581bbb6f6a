"""The board parser: text in, specifications out."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.board import TaskSpec, awaited_elsewhere, in_dependency_order, parse
from ifbus.errors import InvalidParams

BOARD = Path(__file__).parents[2] / "data" / "phase0-board.md"


def _board(*lines: str) -> str:
    return "\n".join(("## Section", "#### **T-1: First**", *lines))


def test_phase0_board_is_read_whole() -> None:
    """All 18 tasks of the real board come with dependencies, fillers, milestones, estimates and capabilities."""
    specs = parse(BOARD.read_text(encoding="utf-8"))
    by_id = {spec.task_id: spec for spec in specs}
    assert len(specs) == 18
    assert [spec.task_id for spec in specs if spec.filler] == ["F7.1", "F7.3", "F7.5"]
    assert by_id["P0.1.5"].depends_on == ("P0.1.1", "P0.1.2", "P0.1.3", "P0.1.4")
    second = by_id["P0.1.2"]
    assert second.title == "Implement Atomic CAS Operations"
    assert second.capabilities == ("code-analysis:python", "infra:distributed-systems")
    assert second.estimate_minutes == 120
    assert second.model == "sonnet"
    assert second.milestones[0] == (25, "claim_task() designed")
    assert second.to_params()["payload"]["deliverable"] == "infrafabric/coordinator.py (CAS methods)"
    assert all(len(spec.milestones) == 4 for spec in specs)


def test_dependencies_come_first() -> None:
    """A task that stands before what it needs is moved behind it; the rest keeps the board's order."""
    text = _board("**Blocked Until:** T-3 completed", "#### **T-2: Second**", "#### **T-3: Third**")
    assert [spec.task_id for spec in parse(text)] == ["T-2", "T-3", "T-1"]


def test_what_is_awaited_elsewhere_is_named_with_who_waits() -> None:
    """A dependency that is not on the board leaves the order as it is, and is somebody else's to know."""
    specs = parse(
        _board("**Blocked Until:** T-9 completed", "#### **T-2: Second**", "**Blocked Until:** T-1 completed")
    )
    assert [spec.task_id for spec in specs] == ["T-1", "T-2"]
    assert {name: spec.task_id for name, spec in awaited_elsewhere(specs).items()} == {"T-9": "T-1"}


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.randoms(use_true_random=False))))
def test_any_acyclic_board_is_ordered(case: tuple[int, object]) -> None:
    """Whatever the order on the board, every task comes after all that it depends on."""
    number, random = case
    specs = [
        TaskSpec(
            task_id=f"T-{index}",
            title="x",
            depends_on=tuple(f"T-{other}" for other in range(index) if random.random() < 0.3),  # type: ignore[attr-defined]
        )
        for index in range(number)
    ]
    random.shuffle(specs)  # type: ignore[attr-defined]
    seen: set[str] = set()
    for spec in in_dependency_order(specs):
        assert set(spec.depends_on) <= seen
        seen.add(spec.task_id)
    assert len(seen) == number


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_board("**Blocked Untill:** T-9 completed"), "line 3: .*did you mean '\\*\\*Blocked Until:"),
        (_board("**Blocked Until:** T-1 completed"), "wait for one another: T-1"),
        (_board("#### **T-1: Again**"), "line 3: task T-1 stands on line 2 already"),
        (_board("#### T-2: no stars"), "line 3: a task reads"),
        (_board("- [ ] soon - text"), "line 3: a milestone reads"),
        (_board("- [ ] 125% - text"), "at most 100 %"),
        (_board("**Estimate:** soon"), "line 3: an estimate reads"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, reason: str) -> None:
    """A board that says something we do not understand is refused with the line's number."""
    with pytest.raises(InvalidParams, match=reason):
        parse(text)


def test_other_text_is_kept() -> None:
    """Prose becomes the description, unknown fields go into the payload, a ticked milestone is remembered."""
    (spec,) = parse(_board("Some words.", "More words.", "**Reviewer:** ann", "- [x] 25% - begun", "- [ ] 100% - done"))
    params = spec.to_params()
    assert params["description"] == "Some words.\nMore words."
    assert params["payload"] == {"section": "Section", "reviewer": "ann", "done_percent": 25}


@given(st.text())
def test_any_text_gives_tasks_or_a_refusal(text: str) -> None:
    """Whatever the text, the parser gives specifications or InvalidParams, nothing else."""
    with suppress(InvalidParams):
        parse(text)

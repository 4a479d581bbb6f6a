"""The play's accounts."""

from hypothesis import given
from hypothesis import strategies as st

from ifbus import board
from ifbus.demo.cast import BLOCKER_NEEDS, CAST
from ifbus.demo.play import BOARD, SCENES
from ifbus.demo.tally import Tally, quantile


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    """Nearest rank: at least the share is at or below it, and no smaller value of the list would do."""
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    smaller = [value for value in values if value < found]
    assert not smaller or sum(value <= max(smaller) for value in values) < share * len(values) + 1e-9


def test_nothing_measured_has_no_quantile() -> None:
    """An empty list gives none, not 0."""
    assert quantile([], 0.99) is None


def test_spans_join_what_two_processes_reported() -> None:
    """A push counts from the pusher's call to the receiver's first sight of it; one that never arrived does not count."""
    tally = Tally()
    for report in (
        {"event": "pushed", "swarm": "orchestrator", "task": "T-1", "ns": 1_000},
        {"event": "pushed", "swarm": "orchestrator", "task": "T-2", "ns": 1_000},
        {"event": "arrived", "swarm": "docs-1", "task": "T-1", "ns": 4_000},
        {"event": "arrived", "swarm": "docs-1", "task": "T-1", "ns": 9_000},
    ):
        tally.add(report)
    assert tally.push_us() == [3.0]


def test_problems_and_story_are_told() -> None:
    """What goes wrong in a process is a problem of the play; what it says for the audience is its story."""
    tally = Tally()
    tally.add({"event": "problem", "swarm": "scout", "text": "ended with status 1"})
    assert tally.problems == ["scout: ended with status 1"]
    assert tally.story == ["scout        ended with status 1"]


def test_the_cast_can_do_every_task_of_the_board() -> None:
    """Each task of the board, and the blocker's help, has a swarm that covers at least 70 % of it."""
    wanted = [set(spec.capabilities) for spec in board.parse(BOARD.read_text())] + [set(BLOCKER_NEEDS)]
    assert len(wanted) == 19
    for needs in wanted:
        assert any(len(needs & set(part.capabilities)) >= 0.7 * len(needs) for part in CAST), needs
    assert len(CAST) >= 4
    assert len(set(SCENES)) == 6

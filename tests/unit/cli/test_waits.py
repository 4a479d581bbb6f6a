"""The graph of waits in words."""

import pytest

from ifbus.cli.commands.waits import what_help_does


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"frees": ["T-1", "T-2"], "holds_up": 3}, "frees 2 tasks (T-1, T-2)"),
        ({"frees": [], "holds_up": 1}, "is needed for 1 task, which waits for others besides"),
        ({"frees": [], "holds_up": 2}, "is needed for 2 tasks, which wait for others besides"),
    ],
)
def test_what_help_does_is_said(found: dict[str, object], said: str) -> None:
    """What it frees; where all wait for others besides, for how many it is needed."""
    assert what_help_does(found) == said

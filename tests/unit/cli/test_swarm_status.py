"""`ifbus swarm status --yaml`: the shape of the old status files."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from ifbus.cli.commands.swarm import render_status, status_yaml
from ifbus.cli.text import View

KEYS = [
    *("session", "status", "current_task", "milestone", "timestamp", "branch", "blocked_on", "next_action"),
    *("tasks_completed", "tasks_in_progress"),
]


def _data(**task: str) -> dict[str, object]:
    return {
        "swarm_id": "docs-2",
        "status": "in_progress",
        "tasks": [{"task_id": "P0.1.1", "title": "x", "token": 7, "milestone": "50% - half", **task}],
        "tasks_completed": 3,
        "tasks_in_progress": 1,
        "at_ms": 1_762_957_800_000,
        "waits": [],
        "as_yaml": True,
    }


def test_the_old_shape() -> None:
    """Key by key, in the old order."""
    assert status_yaml(_data(blocked_on="P0.1.0", next_action="watch")) == [
        'session: "docs-2"',
        'status: "in_progress"',
        'current_task: "P0.1.1"',
        'milestone: "50% - half"',
        'timestamp: "2025-11-12T14:30:00Z"',
        "branch: null",
        'blocked_on: "P0.1.0"',
        'next_action: "watch"',
        "tasks_completed: 3",
        "tasks_in_progress: 1",
    ]


def test_several_tasks_are_several_documents() -> None:
    """And a swarm without any still has one."""
    data = _data()
    many = status_yaml({**data, "tasks": [*data["tasks"], *data["tasks"]]})  # type: ignore[misc]
    assert many.count("---") == 1
    assert "current_task: null" in status_yaml({**data, "tasks": []})


@given(st.text(max_size=80))
def test_no_text_breaks_out_of_its_line(text: str) -> None:
    """Whatever a holder says, each key has one line, and its value reads back as what was said."""
    lines = status_yaml(_data(next_action=text, blocked_on=text))
    assert [line.partition(":")[0] for line in lines] == KEYS
    assert all(line.isascii() and "\n" not in line for line in lines)
    value = next(line for line in lines if line.startswith("next_action: ")).partition(": ")[2]
    assert json.loads(value) == text


def test_people_read_it_as_lines() -> None:
    """Each task with its milestone, what it waits for and what comes next."""
    shown = render_status({**_data(blocked_on="P0.1.0"), "as_yaml": False, "tasks_in_progress": 2}, View(now_ms=0))
    assert shown[0].startswith("docs-2 in_progress")
    assert "P0.1.1@7" in shown[1]
    assert "    blocked on: P0.1.0" in shown
    assert "1 more task" in shown[-1]

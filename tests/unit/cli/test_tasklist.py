"""Lists of tasks in TOML and YAML: the same tasks as on a Markdown board, and what cannot be read says on which line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus import board, tasklist
from ifbus.board import TaskSpec
from ifbus.errors import InvalidParams

BOARD = Path(__file__).parents[2] / "data" / "phase0-board.md"

TOML = """\
[[task]]
id = "T-2"
title = "Second"
depends_on = ["T-1"]
milestones = ["25% - begun", "100% done"]
estimate = "2h"
priority = 5
resources = ["gpu:0"]
payload = { deep = [1, true, "no"] }

[[task]]
id = "T-1"
title = "First"
capabilities = ["docs:writing"]
filler = true
description = '''
Two
lines'''
"""
YAML = """\
- id: T-2
  title: Second
  depends_on: [T-1]
  milestones: ["25% - begun", 100% done]
  estimate: 2h
  priority: 5
  resources: [gpu:0]
  payload: {deep: [1, true, "no"]}
- id: T-1
  title: First
  capabilities:
    - docs:writing
  filler: true
  description: |
    Two
    lines
"""


def test_all_three_say_the_same() -> None:
    """One list in TOML, in YAML, and in YAML under the key `tasks`; each task after what it depends on."""
    one = tasklist.parse(TOML, "toml")
    other = tasklist.parse(YAML, "yaml")
    under = tasklist.parse("tasks:\n" + "".join(f"  {line}\n" for line in YAML.splitlines()), "yaml")
    assert [spec.to_params() for spec in one] == [spec.to_params() for spec in other]
    assert [spec.to_params() for spec in one] == [spec.to_params() for spec in under]
    first, second = one
    assert (first.task_id, first.filler, first.description, first.line) == ("T-1", True, "Two\nlines", 11)
    assert (second.milestones, second.estimate_minutes) == (((25, "begun"), (100, "done")), 120)
    params = second.to_params()
    assert (params["priority"], params["resources"], params["payload"]["deep"]) == (5, ["gpu:0"], [1, True, "no"])


def _fields(spec: TaskSpec) -> dict[str, object]:
    return {
        "id": spec.task_id,
        "title": spec.title,
        "section": spec.section,
        "depends_on": list(spec.depends_on),
        "capabilities": list(spec.capabilities),
        "filler": spec.filler,
        "deliverable": spec.deliverable,
        "estimate": f"{spec.estimate_minutes}min",
        "model": spec.model,
        "milestones": [f"{percent}% - {text}" for percent, text in spec.milestones],
        "description": spec.description,
    }


def test_the_real_board_comes_through_unchanged() -> None:
    """All tasks of the Markdown board, written as YAML (of which JSON is a part), are the same tasks."""
    specs = board.parse(BOARD.read_text(encoding="utf-8"))
    again = tasklist.parse(json.dumps([_fields(spec) for spec in specs]), "yaml")
    assert [spec.to_params() for spec in again] == [spec.to_params() for spec in specs]


@pytest.mark.parametrize("word", ["no", "12:30", "012", "1e3", "~x", "2026-01-01", "yes", "0x1F"])
def test_a_text_stays_what_is_written(word: str) -> None:
    """YAML 1.1 would make something else of each."""
    [spec] = tasklist.parse(
        f"- id: T-1\n  title: {word}\n  payload: {{day: 2026-01-01, clock: 12:30, no: no}}\n", "yaml"
    )
    assert spec.title == word
    assert spec.payload == {"day": "2026-01-01", "clock": "12:30", "no": "no"}


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("- id: T-1\n  titel: x\n", "yaml", "line 2: no field of a task is called 'titel'; did you mean 'title'"),
        ("- id: T-1\n", "yaml", "line 1: a task has a 'title'"),
        ("- id: T-1\n  title: x\n- title: y\n", "yaml", "line 3: a task has an 'id'"),
        ("- id: T-1\n  title: x\n  filler: maybe\n", "yaml", "line 3: filler is true or false"),
        ("- id: T-1\n  title: x\n  milestones:\n  - soon\n", "yaml", "line 3: a milestone reads"),
        ("- id: T-1\n  title: x\n  estimate: soon\n", "yaml", "line 3: an estimate reads"),
        ("- id: T-1\n  title: x\n  title: y\n", "yaml", "line 3: 'title' stands here twice"),
        ("- id: T-1\n  title: x\n  depends_on: T-2\n", "yaml", "line 3: depends_on is a list of texts"),
        ("- id: T-1\n  title: x\n  depends_on: [T-1]\n", "yaml", "line 1: these tasks wait for one another: T-1"),
        ("- id: &a T-1\n  title: *a\n", "yaml", "line 2: an alias"),
        ("- id: [\n", "yaml", "line 2: this is no YAML"),
        ("a: b\n", "yaml", "line 1: a list of tasks is"),
        ("- x\n", "yaml", "line 1: a task is a map"),
        ("", "yaml", "line 1: a list of tasks is"),
        ("[[task]]\nid = 'T-1'\ntitle = \n", "toml", "line 3: this is no TOML"),
        (
            "[[task]]\nid = 'T-1'\n\n[[task]]\nid = 'T-2'\ntitle = 'x'\nprio = 1\n",
            "toml",
            "line 1: a task has a 'title'",
        ),
        ("[[task]]\nid='T-1'\ntitle='x'\n\n[[task]]\nid='T-2'\ntitle='x'\nprio = 1\n", "toml", "line 5: no field"),
        ("[[tasks]]\nid = 'T-1'\n", "toml", "line 1: a list of tasks has"),
        ("[[task]]\nid = 7\ntitle = 'x'\n", "toml", "line 1: id is a text"),
        ("[[task]]\nid = 'T-1'\ntitle = 'x'\npriority = 1.5\n", "toml", "line 1: priority is a whole number"),
    ],
)
def test_what_cannot_be_read_says_where(text: str, kind: str, says: str) -> None:
    """The line, counted from 1, and what would be right."""
    with pytest.raises(InvalidParams) as refused:
        tasklist.parse(text, kind)
    assert says in refused.value.message
    assert refused.value.data["line"] == int(says.split()[1].rstrip(":"))


@given(st.text(alphabet="-: idtle[]{}&*!|>'\"#\n\tT1", max_size=60), st.sampled_from(["yaml", "toml"]))
def test_any_text_is_read_or_refused(text: str, kind: str) -> None:
    """Nothing else than a list or a refusal comes of it."""
    try:
        found = tasklist.parse(text, kind)
    except InvalidParams:
        return
    assert all(spec.task_id and spec.title for spec in found)


def test_a_few_bytes_do_not_become_millions() -> None:
    """Aliases are refused before anything is made of them, and so is what is too deep."""
    bomb = "a: &a [x, x]\n" + "".join(
        f"{name}: &{name} [*{former}, *{former}]\n" for former, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(InvalidParams, match="line 2: an alias"):
        tasklist.parse(bomb, "yaml")
    deep = "- id: T-1\n  title: x\n  payload: {a: " + "[" * 60 + "]" * 60 + "}\n"
    with pytest.raises(InvalidParams, match="levels"):
        tasklist.parse(deep, "yaml")


@pytest.mark.parametrize(
    ("path", "kind"),
    [("a.toml", "toml"), ("b/a.YAML", "yaml"), ("a.yml", "yaml"), ("board.md", "markdown"), ("-", "markdown")],
)
def test_a_name_says_what_a_file_holds(path: str, kind: str) -> None:
    """Markdown where it does not."""
    assert tasklist.kind_of(path) == kind

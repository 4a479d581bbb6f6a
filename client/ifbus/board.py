"""A Markdown task board, as kept in git, to task specifications in dependency order. Pure: text in, values out.

What it reads, per task::

    ## IF.coordinator Tasks
    #### **P0.1.2: Implement Atomic CAS Operations**
    **Blocked Until:** P0.1.1 completed            (or **Available Immediately**)
    **Deliverable:** `infrafabric/coordinator.py`
    **Estimate:** 2h
    **Model:** Sonnet
    **Capabilities:** code-analysis:python, infra:distributed-systems
    **Milestones:**
    - [ ] 25% - claim_task() designed

Tasks in a section whose title begins with *Filler* are fillers. Other text of a task is its description, other fields go
into its payload. What looks like a known field and is none is refused with the line's number: a misspelt *Blocked Until*
must not make a task ready.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ifbus.errors import InvalidParams

_SECTION = re.compile(r"##\s+(?P<title>\S.*)")
_TASK = re.compile(r"####\s+\*\*(?P<id>[A-Za-z0-9][A-Za-z0-9._-]{0,63}):\s+(?P<title>.+?)\*\*\s*")
_FIELD = re.compile(r"\*\*(?P<name>[A-Za-z ]+?):?\*\*:?\s*(?P<value>.*)")
_MILESTONE = re.compile(r"[-*]\s+\[(?P<done>[ xX])\]\s+(?P<percent>\d{1,3})\s?%\s*[-:]?\s*(?P<text>.*)")
_PERCENT = re.compile(r"(?P<percent>\d{1,3})\s?%\s*[-:]?\s*(?P<text>.+)")
_HOURS = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>h|hours?|min|minutes?)", re.IGNORECASE)
_FILLER = "filler"
_KNOWN = ("available immediately", "blocked until", "capabilities", "deliverable", "estimate", "milestones", "model")


class TaskSpec(NamedTuple):
    """One task of a board.

    Attributes:
        section: Title of the board's section, such as ``IF.coordinator Tasks``.
        estimate_minutes: How long it will probably take; None if the board does not say.
        model: Which model the board wants, in small letters; ``""`` if any.
        done_percent: The highest milestone that is ticked, 0 if none.
        extra: Fields that the daemon has no place of its own for, name and value.
        line: Where the task begins, from 1.
        payload: What the holder should know, besides.
    """

    task_id: str
    title: str
    section: str = ""
    depends_on: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    filler: bool = False
    deliverable: str = ""
    estimate_minutes: int | None = None
    model: str = ""
    milestones: tuple[tuple[int, str], ...] = ()
    done_percent: int = 0
    description: str = ""
    extra: tuple[tuple[str, str], ...] = ()
    line: int = 0
    priority: int = 0
    resources: tuple[str, ...] = ()
    payload: dict[str, Any] | None = None

    def to_params(self) -> dict[str, Any]:
        """Keyword arguments of ``coordinator.create_task``; what the daemon has no field for goes into the payload."""
        payload: dict[str, Any] = {
            "section": self.section,
            "deliverable": self.deliverable,
            "model": self.model,
            "estimate_minutes": self.estimate_minutes,
            "done_percent": self.done_percent or None,
            **dict(self.extra),
            **(self.payload or {}),
        }
        more = {"priority": self.priority or None, "resources": list(self.resources) or None}
        return {
            "title": self.title,
            "task_id": self.task_id,
            "description": self.description,
            "capabilities": list(self.capabilities),
            "depends_on": list(self.depends_on),
            "filler": self.filler,
            "milestones": [list(milestone) for milestone in self.milestones],
            "payload": {name: value for name, value in payload.items() if value not in ("", None)},
            **{name: value for name, value in more.items() if value is not None},
        }


def parse(text: str) -> list[TaskSpec]:
    """The board's tasks, each after all that it depends on, otherwise in the board's order.

    Raises:
        InvalidParams: A line is not understood, an id stands twice, or dependencies are missing or go round in a circle.
    """
    return in_dependency_order(_read(text))


def _read(text: str) -> list[TaskSpec]:
    specs: list[TaskSpec] = []
    section = ""
    current: TaskSpec | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if found := _TASK.fullmatch(line):
            if current is not None:
                specs.append(current)
            current = TaskSpec(
                task_id=found["id"],
                title=found["title"].strip(),
                section=section,
                filler=section.lower().startswith(_FILLER),
                line=number,
            )
        elif line.startswith("####"):
            raise bad_line(number, f"a task reads '#### **ID: Title**', got {line!r:.80}")
        elif found := _SECTION.fullmatch(line):
            section = found["title"].strip()
            if current is not None:
                specs.append(current)
            current = None
        elif current is not None and line:
            current = _read_field(current, line, number)
    if current is not None:
        specs.append(current)
    return specs


def _read_field(spec: TaskSpec, line: str, number: int) -> TaskSpec:
    if found := _MILESTONE.fullmatch(line):
        percent = _percent(found["percent"], number)
        done = max(spec.done_percent, percent if found["done"] in "xX" else 0)
        return spec._replace(milestones=(*spec.milestones, (percent, found["text"].strip())), done_percent=done)
    if line.startswith(("- [", "* [")):
        raise bad_line(number, f"a milestone reads '- [ ] 25% - text', got {line!r:.80}")
    found = _FIELD.fullmatch(line)
    if found is None:
        return spec._replace(description=f"{spec.description}\n{line}".strip())
    name, value = found["name"].strip().lower(), found["value"].strip()
    match name:
        case "available immediately" | "milestones":
            return spec
        case "blocked until":
            return spec._replace(depends_on=_dependencies(value, number))
        case "deliverable":
            return spec._replace(deliverable=value.strip("`"))
        case "estimate":
            return spec._replace(estimate_minutes=parse_minutes(value, number))
        case "model":
            return spec._replace(model=value.lower())
        case "capabilities":
            return spec._replace(capabilities=tuple(part.strip() for part in value.split(",") if part.strip()))
    if near := difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.75):
        raise bad_line(
            number, f"no field of a task is called {found['name']!r}; did you mean '**{near[0].title()}:**'?"
        )
    return spec._replace(extra=(*spec.extra, (name.replace(" ", "_"), value)))


def parse_milestone(text: str, number: int) -> tuple[int, str]:
    """Percent and words of ``25% - client connects`` on this line. Raises InvalidParams."""
    found = _PERCENT.fullmatch(text.strip())
    if found is None:
        raise bad_line(number, f"a milestone reads '25% - text', got {text!r:.80}")
    return _percent(found["percent"], number), found["text"].strip()


def _percent(digits: str, number: int) -> int:
    if int(digits) > 100:
        raise bad_line(number, f"a milestone is at most 100 %, got {int(digits)}")
    return int(digits)


def _dependencies(value: str, number: int) -> tuple[str, ...]:
    names = re.sub(r"\s+(completed|complete|done)\.?$", "", value, flags=re.IGNORECASE)
    found = tuple(name.strip() for name in re.split(r",|\band\b", names) if name.strip())
    for name in found:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise bad_line(number, f"'Blocked Until' names tasks, such as 'P0.1.1, P0.1.2 completed', got {name!r:.80}")
    return found


def parse_minutes(value: str, number: int) -> int:
    """Minutes of ``2h`` or ``30min`` on this line. Raises InvalidParams."""
    found = _HOURS.match(value)
    if found is None:
        raise bad_line(number, f"an estimate reads '2h' or '30min', got {value!r:.80}")
    factor = 60 if found["unit"].lower().startswith("h") else 1
    return round(float(found["number"]) * factor)


def in_dependency_order(specs: Iterable[TaskSpec]) -> list[TaskSpec]:
    """The same tasks, each after those of them that it depends on; stable otherwise.

    Raises:
        InvalidParams: An id stands twice, or some wait for one another in a circle.
    """
    waiting: dict[str, TaskSpec] = {}
    for spec in specs:
        if spec.task_id in waiting:
            raise bad_line(spec.line, f"task {spec.task_id} stands on line {waiting[spec.task_id].line} already")
        waiting[spec.task_id] = spec
    ordered: dict[str, TaskSpec] = {}
    while waiting:
        # One at a time keeps the board's order: a task moves only behind what it needs.
        able = next((spec for spec in waiting.values() if waiting.keys().isdisjoint(spec.depends_on)), None)
        if able is None:
            circle = ", ".join(waiting)
            raise bad_line(next(iter(waiting.values())).line, f"these tasks wait for one another: {circle:.200}")
        ordered[able.task_id] = waiting.pop(able.task_id)
    return list(ordered.values())


def awaited_elsewhere(specs: Sequence[TaskSpec]) -> dict[str, TaskSpec]:
    """What the tasks depend on that is none of them, each with the first that does."""
    here = {spec.task_id for spec in specs}
    found: dict[str, TaskSpec] = {}
    for spec in specs:
        for name in spec.depends_on:
            if name not in here:
                found.setdefault(name, spec)
    return found


def bad_line(line: int, reason: str) -> InvalidParams:
    """The refusal of a line of a board, counted from 1."""
    return InvalidParams(f"cannot read the board: line {line}: {reason}", data={"param": "board", "line": line})

"""Lists of tasks in TOML or YAML to task specifications in dependency order. Pure: text in, values out.

A task has an ``id`` and a ``title``; the rest is as on a Markdown board (`ifbus.board`)::

    [[task]]                                        # YAML: a list of maps, or one under the key "tasks"
    id = "P0.1.2"
    title = "Implement Atomic CAS Operations"
    depends_on = ["P0.1.1"]
    capabilities = ["code-analysis:python"]
    milestones = ["25% - claim_task() designed"]
    estimate = "2h"

YAML is read by PyYAML's safe parser (the extra ``ifbus[yaml]``), to its nodes and no further: texts stay as they are written
(YAML 1.1 would make ``no`` false and ``12:30`` a number), and an alias, by which a few bytes become millions, is refused.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from ifbus.board import TaskSpec, bad_line, in_dependency_order, parse_milestone, parse_minutes
from ifbus.errors import Usage

_TEXTS: Final = ("id", "title", "section", "description", "deliverable", "model", "estimate")
_LISTS: Final = ("depends_on", "capabilities", "resources", "milestones")
_FIELDS: Final = (*_TEXTS, *_LISTS, "filler", "priority", "payload")
_HEADER = re.compile(r"\s*\[\[\s*task\s*\]\]\s*(#.*)?")
_AT_LINE = re.compile(r"\(at line (?P<line>\d+), column \d+\)")
# Containers in containers; a payload is no deeper.
_MAX_DEPTH: Final = 32


class _Read(NamedTuple):
    """A task as it stands in the file: its fields, and on which line each is (the task's own where that is not known)."""

    fields: Mapping[str, Any]
    lines: Mapping[str, int]
    line: int

    def line_of(self, name: str) -> int:
        return self.lines.get(name, self.line)


def parse_toml(text: str) -> list[TaskSpec]:
    """The tasks of a TOML file, each after all that it depends on.

    Raises:
        InvalidParams: A line is not understood; as `board.parse`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _AT_LINE.search(str(error))
        line = int(found["line"]) if found else text.count("\n") + 1
        raise bad_line(line, f"this is no TOML: {_AT_LINE.sub('', str(error)).strip()}") from error
    tasks = document.pop("task", None)
    if not isinstance(tasks, list) or document:
        raise bad_line(1, "a list of tasks has a table [[task]] for each, and nothing else")
    headers = [number for number, line in enumerate(text.splitlines(), start=1) if _HEADER.fullmatch(line)]
    lines = headers if len(headers) == len(tasks) else [1] * len(tasks)
    return _specs(_Read(fields, {}, line) for fields, line in zip(tasks, lines, strict=True))


def parse_yaml(text: str) -> list[TaskSpec]:
    """The tasks of a YAML file, each after all that it depends on.

    Raises:
        InvalidParams: A line is not understood; as `board.parse`.
        Usage: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise Usage(
            "cannot read YAML: PyYAML is not installed, which comes with ifbus[yaml]; TOML and Markdown need nothing",
            data={"command": "task import", "example": "ifbus task import board.toml"},
        ) from error
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise bad_line(event.start_mark.line + 1, "an alias (*name) is not read; write it out")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise bad_line(line, f"this is no YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise bad_line(1, "it is too deep") from error
    if isinstance(root, yaml.MappingNode) and [key.value for key, _ in root.value] == ["tasks"]:
        root = root.value[0][1]
    if not isinstance(root, yaml.SequenceNode):
        raise bad_line(1, "a list of tasks is a list of maps, or one under the key `tasks` and nothing else")
    return _specs(_from_node(node) for node in root.value)


def _from_node(node: Any) -> _Read:
    line = node.start_mark.line + 1
    if node.id != "mapping":
        raise bad_line(line, "a task is a map, beginning with `- id: ...`")
    fields: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        name = key.value if key.id == "scalar" else ""
        if name in fields:
            raise bad_line(key.start_mark.line + 1, f"{name!r:.40} stands here twice")
        lines[name] = key.start_mark.line + 1
        fields[name] = _plain(value, as_text=name in (*_TEXTS, *_LISTS))
    return _Read(fields, lines, line)


def _plain(node: Any, *, as_text: bool, depth: int = 0) -> Any:
    """The value of a node. With `as_text` every scalar but null is the text that is written there."""
    line = node.start_mark.line + 1
    if depth > _MAX_DEPTH:
        raise bad_line(line, f"at most {_MAX_DEPTH} levels")
    if node.id == "sequence":
        return [_plain(item, as_text=as_text, depth=depth + 1) for item in node.value]
    if node.id == "mapping":
        pairs = {}
        for key, value in node.value:
            if key.id != "scalar":
                raise bad_line(line, "a key is a word")
            pairs[key.value] = _plain(value, as_text=as_text, depth=depth + 1)
        return pairs
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if as_text or kind not in ("bool", "int", "float"):
        return node.value
    if kind == "bool" and node.value.lower() in ("true", "false"):
        return node.value.lower() == "true"
    try:
        # What only YAML 1.1 takes for a number (0o17 as 017, 12:30) stays a text.
        return (
            int(node.value) if kind == "int" and re.fullmatch(r"[-+]?(0|[1-9]\d*)", node.value) else float(node.value)
        )
    except ValueError:
        return node.value


def _specs(found: Iterable[_Read]) -> list[TaskSpec]:
    return in_dependency_order([_spec(one) for one in found])


def _spec(read: _Read) -> TaskSpec:
    for name in read.fields:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; fields: {', '.join(_FIELDS)}"
            raise bad_line(read.line_of(name), f"no field of a task is called {name!r:.40}{hint}")
    fields = {name: value for name, value in read.fields.items() if value is not None}
    texts = {name: _text(read, name, fields.get(name, "")) for name in _TEXTS}
    lists = {name: _list(read, name, fields.get(name, [])) for name in _LISTS}
    for name in ("id", "title"):
        if not texts[name]:
            raise bad_line(read.line, f"a task has an {name!r}" if name == "id" else "a task has a 'title'")
    filler, priority, payload = fields.get("filler", False), fields.get("priority", 0), fields.get("payload")
    if type(filler) is not bool:
        raise bad_line(read.line_of("filler"), f"filler is true or false, got {filler!r:.40}")
    if type(priority) is not int:
        raise bad_line(read.line_of("priority"), f"priority is a whole number, got {priority!r:.40}")
    if payload is not None and not isinstance(payload, dict):
        raise bad_line(read.line_of("payload"), f"payload is a map, got {payload!r:.40}")
    milestones = [parse_milestone(text, read.line_of("milestones")) for text in lists["milestones"]]
    estimate = texts["estimate"]
    return TaskSpec(
        task_id=texts["id"],
        title=texts["title"],
        section=texts["section"],
        depends_on=tuple(lists["depends_on"]),
        capabilities=tuple(lists["capabilities"]),
        filler=filler,
        deliverable=texts["deliverable"],
        estimate_minutes=parse_minutes(estimate, read.line_of("estimate")) if estimate else None,
        model=texts["model"].lower(),
        milestones=tuple(milestones),
        description=texts["description"].strip(),
        line=read.line,
        priority=priority,
        resources=tuple(lists["resources"]),
        payload=payload,
    )


def _text(read: _Read, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise bad_line(read.line_of(name), f"{name} is a text, got {value!r:.40}")
    return value


def _list(read: _Read, name: str, value: Any) -> list[str]:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise bad_line(read.line_of(name), f"{name} is a list of texts, got {value!r:.40}")
    return value


def parse(text: str, kind: str) -> list[TaskSpec]:
    """The tasks of a text of this kind: ``markdown``, ``toml`` or ``yaml``. Raises as the three do."""
    from ifbus import board

    return {"markdown": board.parse, "toml": parse_toml, "yaml": parse_yaml}[kind](text)


def kind_of(path: str) -> str:
    """What a file of this name holds; Markdown if its name does not say."""
    suffix = path.rpartition(".")[2].lower()
    return {"toml": "toml", "yaml": "yaml", "yml": "yaml"}.get(suffix, "markdown")

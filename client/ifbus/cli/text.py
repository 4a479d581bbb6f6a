"""Text for people: spans, tables, lines that wrap at a field, colour for states. Pure; no I/O, no clock, no library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

_GAP = "    "
_GREEN, _YELLOW, _RED = "32", "33", "31"
# Colour means state and nothing else; the word beside it says the same (UX 2).
_STATE_COLOUR = {
    "ready": _GREEN, "completed": _GREEN, "closed": _GREEN, "yes": _GREEN, "ok": _GREEN,
    "claimed": _YELLOW, "in_progress": _YELLOW, "waiting": _YELLOW, "blocked": _YELLOW,
    "failed": _RED, "tripped": _RED, "no": _RED, "refused": _RED, "silent": _RED,
}  # fmt: skip


class View(NamedTuple):
    """What a renderer may know besides the answer.

    Attributes:
        now_ms: Epoch milliseconds, to show spans.
        width: Columns to wrap at; None never wraps (no terminal).
        color: Whether states get a colour.
        swarm: The swarm that this caller acts for, if it said so.
        swarm_flag: `` --swarm NAME`` where it said so in the command itself: what it types next must say so again.
    """

    now_ms: int
    width: int | None = None
    color: bool = False
    swarm: str | None = None
    swarm_flag: str = ""

    def state(self, word: str) -> str:
        """The word, coloured by what it means."""
        colour = _STATE_COLOUR.get(word) if self.color else None
        return f"\x1b[{colour}m{word}\x1b[0m" if colour else word

    def ago(self, at_ms: int | None) -> str:
        """How long ago that was, ``-`` if never."""
        return "-" if at_ms is None else span(max(0, self.now_ms - at_ms))


def span(ms: int) -> str:
    """A span as people say it, at most two units: ``40 ms``, ``4 s``, ``9 min``, ``3 h 12 min``, ``3 d 2 h``."""
    if ms < 1000:
        return f"{ms} ms"
    seconds = ms // 1000
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def describe_pause(pause: dict[str, Any] | None, view: View) -> str:
    """``paused 3 min ago by uid 0: why``, ``""`` for no pause."""
    if not pause:
        return ""
    word = view.state("draining" if "until_at_ms" in pause else "paused")
    reason = f": {one_line(pause['reason'], 100)}" if pause["reason"] else ""
    return f"{word} {view.ago(pause['since_at_ms'])} ago by uid {pause['by_uid']}{reason}"


def describe_bound(bound: dict[str, Any] | None) -> str:
    """What frees a claim at once, as a fact of its own; ``""`` if nothing does but its lease."""
    if not bound:
        return ""
    who = f"{one_line(bound.get('name') or 'the process', 40)} (pid {bound.get('pid') or '?'})"
    if bound["kind"] == "connection":
        who = f"the connection of pid {bound.get('pid') or '?'}"
    return f"free at once when {who} ends" if bound["watched"] else f"{who} is not watched since the daemon's restart"


def count(number: int) -> str:
    """A large number short: ``999``, ``88 k``, ``1.2 M``."""
    if number < 1000:
        return str(number)
    if number < 1_000_000:
        return f"{number // 1000} k"
    return f"{number // 100_000 / 10:.1f} M"


def plural(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def one_line(value: str, limit: int = 500) -> str:
    """Foreign text made fit for one line: control characters are shown, so that they cannot move the cursor."""
    clean = "".join(char if char.isprintable() else repr(char)[1:-1] for char in value[: limit + 1])
    return clean if len(value) <= limit else f"{clean[:limit]}... ({len(value)} characters, all with --json)"


def fields(parts: Sequence[str], view: View, *, indent: int = 2) -> list[str]:
    """Facts in a row; what does not fit goes on in the next line, indented, never inside a fact."""
    lines: list[str] = []
    line = ""
    for part in filter(None, parts):
        if not line:
            line = part
        elif view.width is not None and len(_plain(line)) + len(_GAP) + len(_plain(part)) > view.width:
            lines.append(line)
            line = " " * indent + part
        else:
            line += _GAP + part
    return [*lines, line] if line else lines


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Aligned columns under headers, no boxes; ids are never cut. `right`: columns that align to the right."""
    widths = [max([len(header), *(len(_plain(row[column])) for row in rows)]) for column, header in enumerate(headers)]
    lines = []
    for row in [headers, *rows]:
        cells = []
        for column, cell in enumerate(row):
            padding = " " * (widths[column] - len(_plain(cell)))
            cells.append(padding + cell if column in right else cell + padding)
        lines.append("  ".join(cells).rstrip())
    return lines


def cell(value: Any) -> str:
    """Any value of an answer as one cell of a table."""
    if value is None or value == "" or value == []:
        return "-"
    if value is True or value is False:
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, (list, dict)):
        import json

        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return str(value)


def _plain(text: str) -> str:
    """The text as wide as it shows: without colour codes."""
    if "\x1b" not in text:
        return text
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)

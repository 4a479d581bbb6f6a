"""What leaves the command: the answer on stdout, talk on stderr, or the one-line JSON envelope (UX 2 and 4)."""

from __future__ import annotations

from typing import Any

from ifbus.cli.command import Command, Data, Outcome
from ifbus.cli.text import View, cell, fields, one_line, span, table
from ifbus.errors import ConnectionFailed, IfbusError, InvalidParams, Refused, Usage

ENVELOPE_VERSION = 1
# What an agent pays for reading a refusal (UX 4); what does not fit is counted and stands in --json.
_MAX_REFUSAL_BYTES = 500
_MORE_BYTES = 24
_MAX_ATTENTION = 4


def envelope_of(outcome: Outcome, attention: list[Data]) -> Data:
    """The success document."""
    document: Data = {"v": ENVELOPE_VERSION, "ok": True, "data": outcome.data}
    if outcome.page is not None:
        document["page"] = outcome.page
    document["attention"] = attention
    return document


def envelope_of_error(error: IfbusError, attention: list[Data]) -> Data:
    """The failure document: the same keys whatever went wrong."""
    data = {name: value for name, value in error.data.items() if name != "would_change"}
    code = data.pop("code") if type(error) is IfbusError and "code" in data else error.code
    return {
        "v": ENVELOPE_VERSION,
        "ok": False,
        "error": {
            "code": code,
            "message": error.message,
            "retryable": error.retryable,
            "data": data,
            "would_change": error.would_change,
        },
        "attention": attention,
    }


def repeat_swarm(error: IfbusError, flag: str) -> None:
    """Let every command that the error suggests act for the swarm that the refused one named by a flag."""
    for change in error.would_change:
        if "call" in change:
            change["call"] = for_swarm(change["call"], flag)
    for holder, name in ((error.data.get("instead"), "call"), (error.data, "example")):
        if holder and name in holder:
            holder[name] = for_swarm(holder[name], flag)


def for_swarm(call: str, flag: str) -> str:
    """The same call with the flag ``--swarm NAME``, if it is a command of ours that acts for a swarm and names none."""
    words = call.split()
    if not flag or words[:1] != ["ifbus"] or "--swarm" in words or "--help" in words:
        return call
    from ifbus.cli import grammar, load

    try:
        command, _ = grammar.resolve(words[1:])
    except Usage:
        return call  # text of a newer daemon
    return call + flag if command[0] != "demo" and load(command).acts else call


def to_json(document: Data) -> str:
    """One line of JSON. Of what JSON lacks, bytes become hexadecimal digits, and NaN and Infinity null."""
    import json

    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=bytes.hex, allow_nan=False)
    except ValueError:
        return to_json(_without_infinities(document))


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinities(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def select_fields(command: Command, data: Data, wanted: str) -> Data:
    """The same data with only the wanted fields in its items; ``id`` stands for the one that names an item.

    Raises:
        InvalidParams: Items have no such field.
    """
    names = [command.id_field if name == "id" else name for name in wanted.split(",") if name]
    for name in names:
        if name not in command.columns:
            raise InvalidParams(
                f"no field {name!r:.64}; fields: {','.join(command.columns)}",
                data={"param": "fields", "command": command.words},
            )
    if not names:
        raise InvalidParams(
            f"name at least one field; fields: {','.join(command.columns)}",
            data={"param": "fields", "command": command.words},
        )
    found = data[command.items]
    items = [_item(item) for item in (found if isinstance(found, list) else [found])]
    chosen = [{name: item.get(name) for name in names} for item in items]
    return {command.items: chosen if isinstance(found, list) else chosen[0]}


def render_fields(command: Command, data: Data) -> list[str]:
    """The chosen fields as a table."""
    found = data[command.items]
    items: list[Data] = found if isinstance(found, list) else [found]
    if not items:
        return []
    return table([name.upper() for name in items[0]], [[cell(value) for value in item.values()] for item in items])


def render_ids(command: Command, data: Data) -> list[str]:
    """What names each item, one a line; a claim is named by its handle."""
    found = data.get(command.items) or []
    return [_name(command, item) for item in (found if isinstance(found, list) else [found])]


def noteworthy(attention: list[Data], subject: str) -> list[Data]:
    """Without the reminders of the very claims that the command is about."""
    handles = subject.split()
    return [item for item in attention if not (item.get("kind") == "holding" and item.get("handle") in handles)]


def render_attention(attention: list[Data]) -> list[str]:
    """What the daemon wants to be noticed, one line each; what is too much is counted."""
    lines = [f"! {_attention(item)}" for item in attention[:_MAX_ATTENTION]]
    more = len(attention) - len(lines)
    return [*lines, f"! and {more} more: --json"] if more else lines


def render_page(page: Data, what: str) -> list[str]:
    """How many of how many, and how to see more; nothing if these are all."""
    if page["next"] is None:
        return []
    of = f" of {page['total']}" if page.get("total") is not None else ""
    return [f"{page['returned']}{of} {what}, more: --after {page['next']}"]


def render_error(error: IfbusError, view: View, *, subject: str = "") -> list[str]:
    """An error as people read it: what is wrong with its figures, what would change it, what to type.

    Args:
        subject: What was refused, such as the task's id.
    """
    changes = error.would_change
    if isinstance(error, Refused) and subject:
        lines = fields([f"refused {one_line(subject, 80)}: {error.code}", *_reason(error)], view)
    else:
        lines = fields([f"{_code(error)}: {one_line(error.message, 350)}"], view)
    if isinstance(error, ConnectionFailed) and (calls := [change["call"] for change in changes if "call" in change]):
        return fields([*lines, f"try: {' | '.join(calls)}"], view)
    instead = error.data.get("instead")
    ending = [f"  instead: {one_line(instead['what'], 120)}: {instead['call']}"] if instead else []
    room = _MAX_REFUSAL_BYTES - _size(lines + ending) - _MORE_BYTES
    shown: list[str] = []
    for change in changes:
        line = f"  would change: {_change(change)}"
        if _size([*shown, line]) > room:
            break
        shown.append(line)
    if changes and not shown:
        shown = ["  would change: see --json"]
    elif len(shown) < len(changes):
        shown[-1] += f" ({len(changes) - len(shown)} more with --json)"
    lines += [*shown, *ending]
    if example := error.data.get("example"):
        lines.append(f"  example: {example}")
    elif not any(change.get("call") for change in changes) and not ending:
        from ifbus.catalogue import remedies

        calls = remedies(error.code, error.data)
        if "key" not in error.data:
            calls = [call.replace(" --key KEY", "") for call in calls]  # a question, safe to repeat as it is
        line = f"  try: {' | '.join(for_swarm(call, view.swarm_flag) for call in calls)}"
        lines += [line] if calls and _size([*lines, line]) <= _MAX_REFUSAL_BYTES else []
    return lines


def _attention(item: Data) -> str:
    if item.get("message"):
        return one_line(str(item["message"]), 200)
    kind = str(item.get("kind") or "notice").replace("_", " ")
    # What a person can use; times and figures for programs stand in --json.
    rest = [
        f"{name} {cell(value)}"
        for name, value in item.items()
        if name not in ("kind", "message", "revision") and not name.endswith("at_ms") and value not in ("", [], None)
    ]
    return one_line(f"{kind}: {', '.join(rest)}", 200)


def _code(error: IfbusError) -> str:
    return str(error.data.get("code", error.code)) if type(error) is IfbusError else error.code


def _reason(error: IfbusError) -> list[str]:
    """The figures of a refusal in the order in which they matter; the daemon's sentence where we know none."""
    data = error.data
    if error.code == "already_claimed" and data.get("owner"):
        held = f" for {span(data['held_ms'])}" if data.get("held_ms") is not None else ""
        facts = f"held by {data['owner']}{held} (fence {data.get('token')})"
        if data.get("percent") is not None:
            facts += f", at {data['percent']} %"
        if data.get("lease_left_ms") is not None:
            facts += f", lease ends in {span(data['lease_left_ms'])} unless renewed"
        return [facts]
    return [one_line(error.message, 200)]


def _size(lines: list[str]) -> int:
    return len("\n".join(lines).encode()) + 1


def _change(change: Any) -> str:
    what, call, by = change.get("what", ""), change.get("call"), change.get("by")
    who = f" ({by})" if by and by != "other" else ""
    return one_line(f"{what}{who}", 160) + (f": {call}" if call else "")


def _item(item: Data) -> Data:
    # A claim carries its task: `--fields title` is about that.
    task = item.get("task")
    return {**task, **item} if isinstance(task, dict) else item


def _name(command: Command, item: Data) -> str:
    name = str(item.get(command.id_field, ""))
    return f"{name}@{item['token']}" if item.get("token") and "lease_ms" in item else name

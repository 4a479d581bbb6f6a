"""`ifbus waits`: who waits for what, and where help would free the most work."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, one_line, plural

_SAYS = {
    "dependency": "waits for",
    "resource": "waits for",
    "held": "is held by",
    "reply": "waits for a reply of",
    "approval": "waits for the approval of a",
    "works_on": "works on",
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject", metavar="NODE", nargs="?", help="only around this: T-7, swarm:docs-2, resource:gpu:0 or person"
    )
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="at most N edges, 1 to 200 (100)")


def _waits(invocation: Invocation) -> Outcome:
    args = invocation.args
    answer = invocation.ask("coordinator.waits", about=args.subject, limit=args.limit)
    return Outcome({**answer, "about": args.subject})


def render_waits(data: Data, view: View) -> list[str]:
    """A tree: who waits, below it what for, below that what that waits for. What stands twice is shown in full once."""
    edges = data["edges"]
    if not edges and data["about"]:
        about = one_line(data["about"], 80)
        return [f"nobody waits around {about}: a node reads T-7, swarm:docs-2, resource:gpu:0 or person"]
    if not edges:
        return ["nobody waits for anybody"]
    following: dict[str, list[Data]] = {}
    for edge in edges:
        following.setdefault(edge["from"], []).append(edge)
    targets = {edge["to"] for edge in edges}
    roots = [node for node in following if node not in targets] or [edges[0]["from"]]
    shown: set[str] = set()
    lines: list[str] = []
    for root in roots:
        lines.append(_name(root))
        _branch(root, following, shown, lines, "  ", view)
    if data["has_more"]:
        lines.append(f"{len(edges)} edges, and more: --limit, or name a node")
    if data["help"] is not None:
        edge = data["help"]["edge"]
        does = f"{_name(edge['from'])} {_SAYS[edge['why']]} {_name(edge['to'])}"
        lines.append(f"help here {what_help_does(data['help'])}: {does}")
    return lines


def what_help_does(found: Data) -> str:
    """What it frees, or, where all wait for others besides, for how many it is needed."""
    if frees := found["frees"]:
        return f"frees {plural(len(frees), 'task')} ({', '.join(frees)})"
    held_up = found["holds_up"]
    waits = "waits" if held_up == 1 else "wait"
    return f"is needed for {plural(held_up, 'task')}, which {waits} for others besides"


def _branch(
    node: str, following: dict[str, list[Data]], shown: set[str], lines: list[str], indent: str, view: View
) -> None:
    if node in shown:
        return
    shown.add(node)
    for edge in following.get(node, ()):
        since = f" for {view.ago(edge['since_ms'])}" if edge.get("since_ms") else ""
        again = " (above)" if edge["to"] in shown and following.get(edge["to"]) else ""
        question = f" [{edge['id']}]" if edge["why"] in ("reply", "approval") else ""
        lines.append(f"{indent}{_SAYS[edge['why']]} {_name(edge['to'])}{since}{question}{again}")
        # A graph may be deeper than a terminal is wide, or than Python likes to call.
        if len(indent) < 60:
            _branch(edge["to"], following, shown, lines, indent + "  ", view)


def _name(node: str) -> str:
    return node.partition(":")[2] or node


COMMANDS = {
    "": Command(
        words="waits",
        summary="Show who waits for what: dependencies, resources, replies, approvals",
        examples=("ifbus waits", "ifbus waits T-7", "ifbus waits resource:gpu:0 --json"),
        arguments=_arguments,
        run=_waits,
        render=render_waits,
    ),
}

"""`ifbus pause` and `ifbus resume`: no new work for a task, a group or a swarm, and again."""

from __future__ import annotations

import argparse
from typing import Final

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, describe_pause, fields

_EXAMPLES: Final = {"task": ("TASK", "T-7"), "group": ("GROUP", "nightly"), "swarm": ("SWARM", "docs-2")}


def _kind(invocation: Invocation) -> str:
    return invocation.command.words.split()[1]


def _subject(metavar: str, *, has_reason: bool) -> object:
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("subject", metavar=metavar)
        if has_reason:
            parser.add_argument(
                "--reason", metavar="TEXT", help="goes on record with your uid; every refusal quotes it"
            )

    return arguments


def _pause(invocation: Invocation) -> Outcome:
    args = invocation.args
    params = {"kind": _kind(invocation), "name": args.subject, "reason": args.reason}
    answer = invocation.change("coordinator.pause", params)
    return Outcome({"kind": _kind(invocation), "name": args.subject, **answer})


def _resume(invocation: Invocation) -> Outcome:
    kind, name = _kind(invocation), invocation.args.subject
    answer = invocation.change("coordinator.resume", {"kind": kind, "name": name})
    return Outcome({"kind": kind, "name": name, **answer})


def render_paused(data: Data, view: View) -> list[str]:
    """What is paused, and what goes on all the same."""
    running = data["running"]
    return [
        *fields([f"{data['kind']} {data['name']} {describe_pause(data['pause'], view)}"], view),
        *([f"  goes on: {', '.join(running)}"] if running else []),
        f"  again: ifbus resume {data['kind']} {data['name']}",
    ]


def render_resumed(data: Data, view: View) -> list[str]:
    """What goes on, and what kept it."""
    was = describe_pause(data["was"], view) if data["was"] else "not paused"
    return fields([f"{data['kind']} {data['name']} goes on", f"was {was}"], view)


def _commands(verb: str) -> dict[str, Command]:
    is_pause = verb == "pause"
    return {
        kind: Command(
            words=f"{verb} {kind}",
            summary=_summary(kind) if is_pause else f"Let a paused or drained {kind} go on",
            examples=(
                f"ifbus {verb} {kind} {name}" + (' --reason "wait for the release"' if is_pause else ""),
                f"ifbus {verb} {kind} {name} --json",
                f"ifbus {verb} {kind} {name} --dry-run",
            ),
            arguments=_subject(metavar, has_reason=is_pause),  # type: ignore[arg-type]
            run=_pause if is_pause else _resume,
            render=render_paused if is_pause else render_resumed,
            kind="change",
        )
        for kind, (metavar, name) in _EXAMPLES.items()
    }


def _summary(kind: str) -> str:
    what = {
        "task": "Let nobody claim a task (its creator or an operator)",
        "group": "Give out no task of a group (operator)",
        "swarm": "Give a swarm no new work (its owner or an operator)",
    }
    return f"{what[kind]}; what is held goes on"


COMMANDS = _commands("pause")
RESUME = _commands("resume")

"""`ifbus pause` and `ifbus resume`: no new work for a task, a group or a swarm, and again."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, describe_pause, fields

KINDS = ("task", "group", "swarm")


def _subject_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("subject", metavar="NAME", help="T-7, nightly, docs-2")


def _pause_arguments(parser: argparse.ArgumentParser) -> None:
    _subject_arguments(parser)
    parser.add_argument("--reason", metavar="TEXT", help="goes on record with your uid; every refusal quotes it")


def _pause(invocation: Invocation) -> Outcome:
    args = invocation.args
    subject = {"kind": args.kind, "name": args.subject}
    return Outcome({**subject, **invocation.change("coordinator.pause", {**subject, "reason": args.reason})})


def _resume(invocation: Invocation) -> Outcome:
    subject = {"kind": invocation.args.kind, "name": invocation.args.subject}
    return Outcome({**subject, **invocation.change("coordinator.resume", subject)})


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


COMMANDS = {
    "": Command(
        words="pause",
        summary="Give out no new work of a task or a group, or to a swarm; what is held goes on",
        examples=(
            'ifbus pause task T-7 --reason "wait for the release"',
            "ifbus pause group nightly --json",
            "ifbus pause swarm docs-2 --dry-run",
        ),
        arguments=_pause_arguments,
        run=_pause,
        render=render_paused,
        kind="change",
    ),
}
RESUME = {
    "": Command(
        words="resume",
        summary="Let a paused task or group, or a paused or drained swarm, go on",
        examples=("ifbus resume task T-7", "ifbus resume group nightly --json", "ifbus resume swarm docs-2 --dry-run"),
        arguments=_subject_arguments,
        run=_resume,
        render=render_resumed,
        kind="change",
    ),
}

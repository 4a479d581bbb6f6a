"""`ifbus __complete KIND`: ids for a shell's TAB. Silent whatever goes wrong: a broken completion must not print into a prompt."""

from __future__ import annotations

import argparse

from ifbus.cli import exits
from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View
from ifbus.errors import IfbusError

# As many as the daemon gives at once; a shell that offers more helps nobody.
_LIMIT = 200


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("task", "swarm", "code", "blocker"))


def _complete(invocation: Invocation) -> Outcome:
    try:
        return Outcome({"words": _words(invocation, invocation.args.what)})
    except IfbusError:
        return Outcome({"words": []}, exit=exits.NO_DAEMON)


def _words(invocation: Invocation, what: str) -> list[str]:
    if what == "code":
        from ifbus.catalogue import CATALOGUE

        return sorted(CATALOGUE)
    if what == "swarm":
        return [swarm["swarm_id"] for swarm in invocation.ask("governor.list_swarms", limit=_LIMIT)["swarms"]]
    if what == "blocker":
        blockers = invocation.ask("coordinator.list_blockers")["blockers"]
        named = [[blocker["task_id"]] if blocker.get("task_id") else [] for blocker in blockers]
        return [word for blocker, task in zip(blockers, named, strict=True) for word in (*task, blocker["blocker_id"])]
    # Never a handle: the daemon's current one would hand a former holder the key (UX 2).
    open_states = ["waiting", "ready", "claimed", "blocked"]
    return [
        task["task_id"] for task in invocation.ask("coordinator.list_tasks", states=open_states, limit=_LIMIT)["tasks"]
    ]


def render_words(data: Data, _view: View) -> list[str]:
    """One word a line."""
    return list(data["words"])


COMMANDS = {
    "": Command(
        words="__complete",
        summary="Ids for completion scripts",
        examples=(),
        arguments=_arguments,
        run=_complete,
        render=render_words,
    ),
}

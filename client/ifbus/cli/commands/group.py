"""`ifbus group`: which share of the claims each group of tasks gets."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, describe_pause, fields, table

GROUP_FIELDS = ("group", "weight", "pause")


def _ls(invocation: Invocation) -> Outcome:
    return invocation.ask_page("coordinator.list_groups")


def render_groups(data: Data, view: View) -> list[str]:
    """All groups that anything was decided about, as a table."""
    if not data["groups"]:
        return ["no group has a weight or a pause: ifbus group weight NAME N"]
    return table(
        ("GROUP", "WEIGHT", "STATE"),
        [
            (group["group"], str(group["weight"]), describe_pause(group["pause"], view) or "goes on")
            for group in data["groups"]
        ],
        right=(1,),
    )


def _weight_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="GROUP")
    parser.add_argument("weight", type=int, metavar="N", help="1 to 1000; 0 takes it away")


def _weight(invocation: Invocation) -> Outcome:
    args = invocation.args
    params = {"group": args.subject, "weight": args.weight}
    return Outcome(invocation.change("coordinator.set_group_weight", params))


def render_weight(data: Data, view: View) -> list[str]:
    """The weight that counts now."""
    group = data["group"]
    return fields([f"group {group['group']} has weight {group['weight']}", describe_pause(group["pause"], view)], view)


COMMANDS = {
    "ls": Command(
        words="group ls",
        summary="List groups of tasks that have a weight or a pause",
        examples=("ifbus group ls", "ifbus group ls --json", "ifbus group ls --fields group,weight"),
        run=_ls,
        render=render_groups,
        kind="list",
        items="groups",
        id_field="group",
        columns=GROUP_FIELDS,
    ),
    "weight": Command(
        words="group weight",
        summary="Give a group of tasks a share of the claims beside the others (operator)",
        examples=("ifbus group weight nightly 3", "ifbus group weight nightly 0", "ifbus group weight nightly 3 --dry-run"),
        arguments=_weight_arguments,
        run=_weight,
        render=render_weight,
        kind="change",
        items="group",
        id_field="group",
    ),
}  # fmt: skip

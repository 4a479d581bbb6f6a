"""`ifbus drain`: no new work from this host, and what is held is finished or handed back."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome, span_type
from ifbus.cli.text import View, fields, plural, span
from ifbus.errors import Usage


def grace_arguments(parser: argparse.ArgumentParser) -> None:
    """What every drain takes."""
    parser.add_argument(
        "--grace", metavar="SPAN", type=span_type, help="what is still held after that is given back (10m)"
    )
    parser.add_argument("--reason", metavar="TEXT", help="goes on record with your uid; every refusal quotes it")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--off", action="store_true", help="give out work again; a new start of the daemon does so, too"
    )
    grace_arguments(parser)


def _drain(invocation: Invocation) -> Outcome:
    args = invocation.args
    if args.off and (args.grace is not None or args.reason is not None):
        raise Usage(
            "--off gives out work again: it takes no --grace and no --reason",
            data={"command": "drain", "example": "ifbus drain --off"},
        )
    params = {"off": args.off or None, "grace_ms": args.grace, "reason": args.reason}
    return Outcome(invocation.change("coordinator.drain_host", params))


def render_drain(data: Data, view: View) -> list[str]:
    """Whether it gives out work, and what is held still."""
    drain = data["drain"]
    if drain is None:
        return fields([f"this host {view.state('ready')}: it gives out work"], view)
    left = span(max(0, drain["until_at_ms"] - view.now_ms))
    return [
        *fields(
            [f"this host {view.state('draining')}", f"{plural(data['left'], 'claim')} left, given back in {left}"], view
        ),
        "  progress: ifbus status  again: ifbus drain --off",
    ]


COMMANDS = {
    "": Command(
        words="drain",
        summary="Let this daemon give out no new work (operator); what is held has a grace to end",
        examples=('ifbus drain --grace 10m --reason "reboot"', "ifbus drain --off", "ifbus drain --grace 0s --dry-run"),
        arguments=_arguments,
        run=_drain,
        render=render_drain,
        kind="change",
    ),
}

"""`ifbus lock`: named resources that one swarm holds at a time."""

from __future__ import annotations

import argparse
import os

from ifbus.cli.command import Command, Data, Invocation, Outcome, parse_handle, span_type
from ifbus.cli.text import View, fields, span, table
from ifbus.errors import Usage

LOCK_FIELDS = ("resource", "swarm_id", "fence", "at_ms", "task_id", "lease_left_ms")
# Outside a session nobody renews: as long as a claim's lease there.
_OWN_LEASE_MS = 600_000


def _ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefix", metavar="TEXT", help="only names that begin with this, such as file:")
    parser.add_argument("--holder", metavar="SWARM", help="only what this swarm holds")


def _ls(invocation: Invocation) -> Outcome:
    args = invocation.args
    return invocation.ask_page("coordinator.list_resources", prefix=args.prefix, holder=args.holder)


def render_locks(data: Data, view: View) -> list[str]:
    """Who holds what, by name."""
    if not data["resources"]:
        return ["nobody holds a resource"]
    return table(
        ("RESOURCE", "HELD BY", "FOR", "SINCE", "LEASE", "FENCE"),
        [
            (
                lock["resource"],
                lock["swarm_id"],
                lock.get("task_id") or "-",
                view.ago(lock["at_ms"]),
                "-" if lock.get("lease_left_ms") is None else span(lock["lease_left_ms"]),
                str(lock["fence"]),
            )
            for lock in data["resources"]
        ],
        right=(5,),
    )


def _acquire_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject", metavar="NAME", nargs="+", help="such as gpu:0 or file:src/a.py; all of them or none"
    )
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--task", metavar="HANDLE", help="hold them for this claim, T-7@41: they are free when it ends")
    until.add_argument(
        "--lease", metavar="SPAN", type=span_type, help="a lease of their own, even inside a session (10m outside one)"
    )


def _acquire(invocation: Invocation) -> Outcome:
    args = invocation.args
    swarm_id = invocation.require_swarm()
    params: Data = {"swarm_id": swarm_id, "resources": args.subject, "wait_ms": args.wait or None}
    if args.task is not None:
        params["task_id"], params["token"] = parse_handle(args.task, invocation.command, "--task")
    elif args.lease is not None:
        params["lease_ms"] = args.lease
    elif os.environ.get("IFBUS_SWARM") != swarm_id or not os.environ.get("IFBUS_TOKEN"):
        params["lease_ms"] = _OWN_LEASE_MS  # there is no session to live with
    return Outcome(invocation.change("coordinator.acquire_resources", params, wait_ms=args.wait))


def render_acquired(data: Data, view: View) -> list[str]:
    """Name and fence in one word, as releasing wants them."""
    holds = [f"{name}@{fence}" for name, fence in sorted(data["fences"].items())]
    return [
        *fields([f"{' '.join(holds)} acquired", f"lease {span(data['lease_ms'])}"], view),
        f"  next: ifbus lock release {' '.join(holds)}{view.swarm_flag}",
    ]


def _release_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="NAME@FENCE", nargs="+", help="as the answer to `lock acquire` has it")


def _release(invocation: Invocation) -> Outcome:
    fences: dict[str, int] = {}
    for hold in invocation.args.subject:
        name, at, fence = hold.rpartition("@")
        if not (at and fence.isascii() and fence.isdigit() and 0 < len(fence) < 20):
            raise Usage(
                f"a hold reads NAME@FENCE, such as gpu:0@41, got {hold:.80}",
                data={"command": "lock release", "example": "ifbus lock release gpu:0@41"},
            )
        if fences.setdefault(name, int(fence)) != int(fence):
            raise Usage(f"{name:.80} has one fence, got {fences[name]} and {fence}", data={"command": "lock release"})
    swarm_id = invocation.require_swarm()
    return Outcome(invocation.change("coordinator.release_resources", {"swarm_id": swarm_id, "resources": fences}))


def render_released(data: Data, _view: View) -> list[str]:
    """What is free."""
    return [f"{', '.join(data['released'])} free"]


COMMANDS = {
    "ls": Command(
        words="lock ls",
        summary="List named resources that somebody holds",
        examples=("ifbus lock ls", "ifbus lock ls --prefix file:", "ifbus lock ls --holder docs-2 --json"),
        arguments=_ls_arguments,
        run=_ls,
        render=render_locks,
        kind="list",
        items="resources",
        id_field="resource",
        columns=LOCK_FIELDS,
    ),
    "acquire": Command(
        words="lock acquire",
        summary="Take named resources, all of them or none; each has one holder at a time",
        examples=(
            "ifbus lock acquire gpu:0 --swarm builder",
            "ifbus lock acquire file:src/a.py file:src/b.py --task T-7@41 --wait 5m",
            "ifbus lock acquire port:8080 --lease 1h",
        ),
        arguments=_acquire_arguments,
        run=_acquire,
        render=render_acquired,
        kind="change",
        waits=True,
        acts=True,
    ),
    "release": Command(
        words="lock release",
        summary="Free named resources; whoever waits for one is woken",
        examples=(
            "ifbus lock release gpu:0@41 --swarm builder",
            "ifbus lock release file:src/a.py@41 file:src/b.py@41",
            "ifbus lock release gpu:0@41 --key k-1",
        ),
        arguments=_release_arguments,
        run=_release,
        render=render_released,
        kind="change",
        acts=True,
    ),
}

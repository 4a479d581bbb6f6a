"""`ifbus rpc`: any method of the daemon, for what has no command of its own."""

from __future__ import annotations

import argparse
import json
import os

from ifbus.cli.command import Command, Data, Invocation, Outcome, parse_json, span_type
from ifbus.cli.text import View
from ifbus.errors import InvalidParams
from ifbus.request import KEYLESS


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", help="such as coordinator.list_blockers; daemon.describe lists them")
    parser.add_argument("params", metavar="JSON", nargs="?", default="{}", help="a map of keyword arguments")
    parser.add_argument("--key", help="idempotency key of a change")
    parser.add_argument("--wait", metavar="SPAN", type=span_type, default=0, help="how long the method may wait")


def _rpc(invocation: Invocation) -> Outcome:
    args = invocation.args
    params = parse_json(args.params, "params")
    if not isinstance(params, dict):
        raise InvalidParams("params are a map of keyword arguments, such as '{\"limit\": 5}'", data={"param": "params"})
    key = args.key or (None if args.method in KEYLESS else f"cli-{os.urandom(12).hex()}")
    return Outcome({"result": invocation.link.call(args.method, params, wait_ms=args.wait, key=key)})


def render_result(data: Data, view: View) -> list[str]:
    """The answer as JSON: indented on a terminal, else in one line."""
    indent = 2 if view.width else None
    return [json.dumps(data["result"], ensure_ascii=False, default=bytes.hex, indent=indent)]


COMMANDS = {
    "": Command(
        words="rpc",
        summary="Call any method of the daemon",
        examples=("ifbus rpc daemon.describe", "ifbus rpc coordinator.list_blockers", "ifbus rpc governor.list_swarms '{\"limit\": 5}' --json"),
        arguments=_arguments,
        run=_rpc,
        render=render_result,
    ),
}  # fmt: skip

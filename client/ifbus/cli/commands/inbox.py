"""`ifbus inbox`: a swarm's durable letters."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, cell, one_line, plural, table
from ifbus.errors import Usage

MESSAGE_FIELDS = ("seq", "kind", "body", "sender", "at_ms", "urgent")


def _ls(invocation: Invocation) -> Outcome:
    args = invocation.args
    answer = invocation.ask(
        "coordinator.read_inbox", swarm_id=invocation.require_swarm(), after_seq=_seq(args.after), limit=args.limit
    )
    messages = answer["messages"]
    following = messages[-1]["seq"] if messages and answer["has_more"] else None
    return Outcome({"messages": messages}, {"returned": len(messages), "total": None, "next": following})


def _seq(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Usage(f"a letter's number is a whole number, got {text:.40}", data={"example": "ifbus inbox"})
    return int(text)


def render_messages(data: Data, view: View) -> list[str]:
    """Letters as a table, oldest first."""
    if not data["messages"]:
        return ["no letter"]
    return table(
        ("SEQ", "AGE", "KIND", "FROM", "SAYS"),
        [
            (
                str(message["seq"]),
                view.ago(message.get("at_ms") or None),
                message["kind"] + (" (urgent)" if message.get("urgent") else ""),
                message.get("sender") or "ifbusd",
                _says(message),
            )
            for message in data["messages"]
        ],
        right=(0,),
    )


def _says(message: Data) -> str:
    body = message["body"]
    for name in ("message", "reason", "title"):
        if isinstance(body.get(name), str):
            task = f"{body['task_id']}: " if body.get("task_id") else ""
            resolved = f"; resolved: {body.get('note') or 'without a note'}" if body.get("resolved") else ""
            return one_line(f"{task}{body[name]}{resolved}", 200)
    return one_line(cell(body), 120)


def _ack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seq", metavar="SEQ", help="this letter and all before it")


def _ack(invocation: Invocation) -> Outcome:
    params = {"swarm_id": invocation.require_swarm(), "seq": _seq(invocation.args.seq)}
    return Outcome(invocation.change("coordinator.acknowledge", params))


def render_acknowledged(data: Data, _view: View) -> list[str]:
    """How many letters are gone."""
    return [f"{plural(data['dropped'], 'letter')} dropped"]


COMMANDS = {
    "ls": Command(
        words="inbox ls",
        summary="Show letters that wait, oldest first; they stay until acknowledged",
        examples=("ifbus inbox", "ifbus inbox ls --swarm docs-2", "ifbus inbox ls --json --after 12"),
        run=_ls,
        render=render_messages,
        kind="list",
        acts=True,
        items="messages",
        id_field="seq",
        columns=MESSAGE_FIELDS,
    ),
    "ack": Command(
        words="inbox ack",
        summary="Drop a letter and all before it; pushed tasks stay until claimed",
        examples=("ifbus inbox ack 12", "ifbus inbox ack 12 --swarm docs-2", "ifbus inbox ack 12 --json"),
        arguments=_ack_arguments,
        run=_ack,
        render=render_acknowledged,
        kind="change",
        acts=True,
    ),
}

"""`ifbus inbox`: a swarm's durable letters."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome, parse_handle, parse_json
from ifbus.cli.commands.task import split_list
from ifbus.cli.exits import DONE, NOT_YET
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
    if message["kind"] == "question":
        return one_line(f"{body['question']} (answer: ifbus inbox reply {body['reply_id']})", 200)
    if message["kind"] == "reply":
        return one_line(f"{body['question']}: {cell(body['answer'])}", 200)
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


def _ask_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("to", metavar="SWARM", help="whom to ask; person for an operator's approval")
    parser.add_argument("question", metavar="TEXT")
    parser.add_argument("--task", metavar="HANDLE", help="ask for this claim, T-7@41: it is shown as waiting")


def _ask(invocation: Invocation) -> Outcome:
    args = invocation.args
    params: Data = {"swarm_id": invocation.require_swarm(), "to": args.to, "question": args.question}
    if args.task is not None:
        params["task_id"], params["token"] = parse_handle(args.task, invocation.command, "--task")
    params["wait_ms"] = args.wait or None
    answer = invocation.change("coordinator.ask", params, wait_ms=args.wait)
    return Outcome(answer, exit=NOT_YET if args.wait and not answer["answered"] else DONE)


def render_asked(data: Data, _view: View) -> list[str]:
    """The answer, or under which id it will come."""
    if data["answered"]:
        return [f"{data['reply_id']} answered: {cell(data['answer'])}"]
    return [f"{data['reply_id']} asked    the answer comes as a letter: ifbus inbox"]


def _reply_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="ID", help="of the question, as its letter has it")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", metavar="TEXT", help="the answer in words")
    given.add_argument("--answer", metavar="JSON", help="the answer as any value")


def _reply(invocation: Invocation) -> Outcome:
    args = invocation.args
    answer = args.text if args.text is not None else parse_json(args.answer, "answer")
    return Outcome(invocation.change("coordinator.reply", {"reply_id": args.subject, "answer": answer}))


def render_replied(data: Data, _view: View) -> list[str]:
    """Who hears of it."""
    return [f"{data['question']['reply_id']} answered: {data['question']['swarm_id']} hears of it"]


def _send_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="TOPIC", help="what it is about, such as builds")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="what to say")
    parser.add_argument("--body", metavar="JSON", help="the whole message as a map, instead of a text")
    parser.add_argument(
        "--can", metavar="CAP", action="append", help="only to swarms with it, area:skill; again or A,B"
    )
    parser.add_argument(
        "--fits", metavar="EXPRESSION", help="only to swarms that it fits, 'all(infra:*, not(gpu:cuda))'"
    )
    parser.add_argument("--subscribers", action="store_true", help="only to swarms that subscribed to the topic")


def _send(invocation: Invocation) -> Outcome:
    args = invocation.args
    if (args.text is None) == (args.body is None):
        raise Usage(
            "a message is either a text or a --body",
            data={"command": "inbox send", "example": invocation.command.examples[0]},
        )
    capabilities = split_list(args.can)
    if capabilities == [] or args.fits == "":
        # Such as of a variable that is not set. Without a choice the letter would go to everybody.
        raise Usage(
            "--can and --fits say which swarms get it, and one is empty",
            data={"command": "inbox send", "example": invocation.command.examples[1]},
        )
    body = {"message": args.text} if args.body is None else parse_json(args.body, "body")
    params: Data = {
        "topic": args.topic,
        "body": body,
        "capabilities": capabilities,
        "expression": args.fits,
        "subscribers": args.subscribers or None,
        "sender": invocation.swarm,
    }
    return Outcome(invocation.change("coordinator.broadcast", params))


def render_sent(data: Data, _view: View) -> list[str]:
    """How many got it, and who did not."""
    sent = data["broadcast"]
    named = data["full_inboxes"]
    lines = [f"{sent['topic']} sent to {plural(sent['delivered_to'], 'swarm')}"]
    if data["full"]:
        more = f" and {data['full'] - len(named)} more" if data["full"] > len(named) else ""
        lines.append(f"  not to those whose inbox is full: {', '.join(named)}{more}")
    return lines


def _topics_arguments(parser: argparse.ArgumentParser) -> None:
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--subscribe", metavar="TOPIC", help="get what is sent to its subscribers, also while away")
    change.add_argument("--unsubscribe", metavar="TOPIC", help="and no longer; letters that wait stay")


def _topics(invocation: Invocation) -> Outcome:
    args, swarm_id = invocation.args, invocation.require_swarm()
    changed: Data = {}
    if args.subscribe is not None:
        changed = invocation.change("coordinator.subscribe_topic", {"swarm_id": swarm_id, "topic": args.subscribe})
    elif args.unsubscribe is not None:
        changed = invocation.change("coordinator.unsubscribe_topic", {"swarm_id": swarm_id, "topic": args.unsubscribe})
    receipt = {"receipt": changed["receipt"]} if "receipt" in changed else {}
    topics = invocation.ask("coordinator.list_topics", swarm_id=swarm_id)["topics"]
    return Outcome({"swarm_id": swarm_id, "topics": topics, **receipt})


def render_topics(data: Data, _view: View) -> list[str]:
    """The topics, one a line."""
    return data["topics"] or [f"{data['swarm_id']} subscribed to no topic: ifbus inbox topics --subscribe TOPIC"]


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
    "ask": Command(
        words="inbox ask",
        summary="Ask another swarm, or a person, and wait for the answer; a circle of those who wait is refused",
        examples=(
            'ifbus inbox ask docs-2 "where is the plan?" --wait 5m',
            'ifbus inbox ask person "may I delete the branch?" --task T-7@41 --wait 10m',
            'ifbus inbox ask docs-2 "where is the plan?" --swarm builder --json',
        ),
        arguments=_ask_arguments,
        run=_ask,
        render=render_asked,
        kind="change",
        waits=True,
        acts=True,
    ),
    "reply": Command(
        words="inbox reply",
        summary="Answer a question that came as a letter",
        examples=(
            "ifbus inbox reply Q-1 --text docs/plan.md",
            'ifbus inbox reply Q-1 --answer \'{"path": "docs/plan.md"}\'',
            "ifbus inbox reply Q-1 --text yes --key k-1",
        ),
        arguments=_reply_arguments,
        run=_reply,
        render=render_replied,
        kind="change",
    ),
    "send": Command(
        words="inbox send",
        summary="Send a letter to all swarms, to those with some capabilities, or to a topic's subscribers",
        examples=(
            'ifbus inbox send builds "main is green" --subscribers',
            'ifbus inbox send review "who has time?" --fits "all(code:python, not(gpu:*))"',
            'ifbus inbox send builds --body \'{"commit": "9f3ac1d"}\' --can infra:ci --json',
        ),
        arguments=_send_arguments,
        run=_send,
        render=render_sent,
        kind="change",
        acts=True,
    ),
    "topics": Command(
        words="inbox topics",
        summary="Show, begin or end a swarm's subscriptions to topics",
        examples=(
            "ifbus inbox topics --subscribe builds",
            "ifbus inbox topics --swarm docs-2 --json",
            "ifbus inbox topics --unsubscribe builds",
        ),
        arguments=_topics_arguments,
        run=_topics,
        render=render_topics,
        kind="change",
        acts=True,
    ),
}

"""`ifbus approvals`: what swarms want a person's word on."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, one_line, table

QUESTION_FIELDS = ("reply_id", "swarm_id", "to", "question", "at_ms", "task_id")


def _ls(invocation: Invocation) -> Outcome:
    return invocation.ask_page("coordinator.list_questions", to="person")


def render_questions(data: Data, view: View) -> list[str]:
    """Who wants what approved, the oldest first."""
    if not data["questions"]:
        return ["nothing waits for approval"]
    return table(
        ("ID", "AGE", "FROM", "FOR", "ASKS"),
        [
            (
                question["reply_id"],
                view.ago(question["at_ms"]),
                question["swarm_id"],
                question.get("task_id") or "-",
                one_line(question["question"], 120),
            )
            for question in data["questions"]
        ],
    )


def _decision_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="ID", help="from `ifbus approvals ls`")
    parser.add_argument("--note", metavar="TEXT", help="what the swarm should know")


def _decide(invocation: Invocation, *, approved: bool) -> Outcome:
    args = invocation.args
    params = {"reply_id": args.subject, "answer": {"approved": approved, "note": args.note or ""}}
    return Outcome({**invocation.change("coordinator.reply", params), "approved": approved})


def render_decision(data: Data, _view: View) -> list[str]:
    """What was decided, and who hears of it."""
    question = data["question"]
    verdict = "approved" if data["approved"] else "rejected"
    return [f"{question['reply_id']} {verdict}: {question['swarm_id']} hears of it"]


def _decision(verb: str, *, approved: bool, note: str) -> Command:
    return Command(
        words=f"approvals {verb}",
        summary=f"{verb.capitalize()} what a swarm asked for (operator)",
        examples=(
            f"ifbus approvals {verb} A-1",
            f'ifbus approvals {verb} A-1 --note "{note}"',
            f"ifbus approvals {verb} A-1 --key k-1",
        ),
        arguments=_decision_arguments,
        run=lambda invocation: _decide(invocation, approved=approved),
        render=render_decision,
        kind="change",
    )


COMMANDS = {
    "ls": Command(
        words="approvals ls",
        summary="List what waits for a person's approval",
        examples=("ifbus approvals ls", "ifbus approvals ls --json", "ifbus approvals ls --fields id,question"),
        run=_ls,
        render=render_questions,
        kind="list",
        items="questions",
        id_field="reply_id",
        columns=QUESTION_FIELDS,
    ),
    "approve": _decision("approve", approved=True, note="up to 5 USD"),
    "reject": _decision("reject", approved=False, note="too dear"),
}

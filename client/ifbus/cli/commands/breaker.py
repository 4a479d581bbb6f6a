"""`ifbus breaker`: who is stopped, why, and letting them work again."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.commands.budget import render_report
from ifbus.cli.text import View, fields, one_line, table

BREAKER_FIELDS = ("swarm_id", "state", "reason", "tripped_at_ms", "failures_in_a_row")


def _ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tripped", action="store_true", help="only tripped ones")


def _ls(invocation: Invocation) -> Outcome:
    return invocation.ask_page("governor.list_breakers", tripped_only=invocation.args.tripped or None)


def render_breakers(data: Data, view: View) -> list[str]:
    """All breakers as a table."""
    if not data["breakers"]:
        return ["no breaker matches"]
    return table(
        ("SWARM", "STATE", "SINCE", "FAILURES", "REASON"),
        [
            (
                breaker["swarm_id"],
                view.state(breaker["state"]),
                view.ago(breaker.get("tripped_at_ms")),
                str(breaker.get("failures_in_a_row", 0)),
                one_line(breaker.get("reason") or "-", 120),
            )
            for breaker in data["breakers"]
        ],
        right=(3,),
    )


def _subject_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="SWARM")


def _show(invocation: Invocation) -> Outcome:
    swarm_id = invocation.args.subject
    report = invocation.ask("governor.get_budget_report", swarm_id=swarm_id)["reports"]
    # The question above has made sure that there is such a swarm: it is the first one in this page.
    (breaker,) = invocation.ask("governor.list_breakers", after=_just_before(swarm_id), limit=1)["breakers"]
    return Outcome({"breaker": breaker, "report": report[0]})


def _just_before(swarm_id: str) -> str:
    """A text that sorts before this name and after every other one before it: names have at most 64 characters, up to z."""
    return swarm_id[:-1] + chr(ord(swarm_id[-1]) - 1) + "z" * 64


def render_breaker(data: Data, view: View) -> list[str]:
    """Why one swarm is stopped and what it takes to let it go on."""
    breaker, report = data["breaker"], data["report"] or {}
    name = breaker["swarm_id"]
    if breaker["state"] != "tripped":
        return fields(
            [f"{name} {view.state(breaker['state'])}", f"{breaker.get('failures_in_a_row', 0)} failures in a row"], view
        )
    broke = report.get("free_usd") is not None and not _is_positive(report["free_usd"])
    return [
        *fields(
            [
                f"{name} {view.state('tripped')} {view.ago(breaker.get('tripped_at_ms'))} ago: {one_line(breaker.get('reason') or '-')}",
                f"spent {report.get('spent_usd', '0.00')} of {report.get('limit_usd') or '-'} USD",
            ],
            view,
        ),
        f"  operator: ifbus breaker reset {name} --reason TEXT{' --budget-usd USD' if broke else ''}",
    ]


def _is_positive(usd: str) -> bool:
    return not usd.startswith("-") and any(digit in "123456789" for digit in usd)


def _reset_arguments(parser: argparse.ArgumentParser) -> None:
    _subject_argument(parser)
    parser.add_argument("--reason", required=True, metavar="TEXT", help="goes on record with your uid")
    parser.add_argument("--budget-usd", metavar="USD", help="a new budget at the same time; needed if it is broke")


def _reset(invocation: Invocation) -> Outcome:
    args = invocation.args
    params = {"swarm_id": args.subject, "reason": args.reason, "budget_usd": args.budget_usd}
    return Outcome(invocation.change("governor.reset_circuit_breaker", params))


def _trip_arguments(parser: argparse.ArgumentParser) -> None:
    _subject_argument(parser)
    parser.add_argument("--reason", required=True, metavar="TEXT", help="goes on record with your uid")


def _trip(invocation: Invocation) -> Outcome:
    args = invocation.args
    return Outcome(
        invocation.change("governor.trip_circuit_breaker", {"swarm_id": args.subject, "reason": args.reason})
    )


COMMANDS = {
    "ls": Command(
        words="breaker ls",
        summary="List breakers",
        examples=("ifbus breaker ls", "ifbus breaker ls --tripped", "ifbus breaker ls --json --fields id,state"),
        arguments=_ls_arguments,
        run=_ls,
        render=render_breakers,
        kind="list",
        items="breakers",
        id_field="swarm_id",
        columns=BREAKER_FIELDS,
    ),
    "show": Command(
        words="breaker show",
        summary="Show why a swarm is stopped",
        examples=("ifbus breaker show docs-2", "ifbus breaker show docs-2 --json", "ifbus breaker show docs-2 --fields state,reason"),
        arguments=_subject_argument,
        run=_show,
        render=render_breaker,
        items="breaker",
        id_field="swarm_id",
        columns=BREAKER_FIELDS,
    ),
    "reset": Command(
        words="breaker reset",
        summary="Let a stopped swarm work again (operator)",
        examples=(
            'ifbus breaker reset docs-2 --reason "looked at it"',
            'ifbus breaker reset docs-2 --reason "worth it" --budget-usd 10',
            'ifbus breaker reset docs-2 --reason "worth it" --dry-run',
        ),
        arguments=_reset_arguments,
        run=_reset,
        render=render_report,
        kind="change",
    ),
    "trip": Command(
        words="breaker trip",
        summary="Stop a swarm now (operator): no claim, push or spend until a reset",
        examples=(
            'ifbus breaker trip docs-2 --reason "too dear"',
            'ifbus breaker trip docs-2 --reason "loops" --json',
            'ifbus breaker trip docs-2 --reason "loops" --dry-run',
        ),
        arguments=_trip_arguments,
        run=_trip,
        render=render_report,
        kind="change",
    ),
}  # fmt: skip

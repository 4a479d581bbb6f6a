"""`ifbus budget`: where the money stands."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, fields, table

REPORT_FIELDS = ("swarm_id", "limit_usd", "spent_usd", "reserved_usd", "free_usd", "breaker", "breaker_reason")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="SWARM", nargs="?", help="only this one (else IFBUS_SWARM, else all)")
    parser.add_argument("--all", action="store_true", help="all swarms, whoever this is")


def _show(invocation: Invocation) -> Outcome:
    args = invocation.args
    swarm_id = None if args.all else args.subject or invocation.swarm
    return invocation.ask_page("governor.get_budget_report", swarm_id=swarm_id)


def render_reports(data: Data, view: View) -> list[str]:
    """Limit, spent, reserved and free of each."""
    if not data["reports"]:
        return ["no swarm yet: ifbus swarm register NAME --can area:skill"]
    return table(
        ("SWARM", "LIMIT", "SPENT", "RESERVED", "FREE", "BREAKER"),
        [
            (
                report["swarm_id"],
                _amount(report, "limit_usd"),
                report.get("spent_usd", "0.00"),
                report.get("reserved_usd", "0.00"),
                _amount(report, "free_usd"),
                view.state(report.get("breaker", "closed")),
            )
            for report in data["reports"]
        ],
        right=(1, 2, 3, 4),
    )


def _amount(report: Data, name: str) -> str:
    return "-" if report.get(name) is None else str(report[name])


def _set_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="SWARM")
    parser.add_argument("limit_usd", metavar="USD", help="the budget in all, such as 5.00")


def _set(invocation: Invocation) -> Outcome:
    args = invocation.args
    return Outcome(invocation.change("governor.set_budget", {"swarm_id": args.subject, "limit_usd": args.limit_usd}))


def render_report(data: Data, view: View) -> list[str]:
    """One budget after a change; a breaker that is still tripped is said, because money alone does not reset it."""
    report = data["report"]
    tripped = report.get("breaker") == "tripped"
    return [
        *fields(
            [
                f"{report['swarm_id']} {_amount(report, 'limit_usd')} USD",
                f"spent {report.get('spent_usd', '0.00')}",
                f"reserved {report.get('reserved_usd', '0.00')}",
                f"free {_amount(report, 'free_usd')}",
                f"breaker {view.state(report.get('breaker', 'closed'))}",
            ],
            view,
        ),
        *([f"  next: ifbus breaker reset {report['swarm_id']} --reason TEXT"] if tripped else []),
    ]


COMMANDS = {
    "show": Command(
        words="budget show",
        summary="Show limit, spent, reserved and free",
        examples=("ifbus budget", "ifbus budget show docs-2", "ifbus budget show --all --json --fields id,free_usd"),
        arguments=_show_arguments,
        run=_show,
        render=render_reports,
        kind="list",
        acts=True,
        items="reports",
        id_field="swarm_id",
        columns=REPORT_FIELDS,
    ),
    "set": Command(
        words="budget set",
        summary="Set a swarm's budget (operator)",
        examples=(
            "ifbus budget set docs-2 5.00",
            "ifbus budget set docs-2 0",
            "ifbus budget set docs-2 5.00 --dry-run",
        ),
        arguments=_set_arguments,
        run=_set,
        render=render_report,
        kind="change",
    ),
}

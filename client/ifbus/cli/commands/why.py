"""`ifbus why`: every check of an admission, in order, with its figures."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.exits import DONE, REFUSED
from ifbus.cli.text import View, fields, one_line


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="TASK")


def _why(invocation: Invocation) -> Outcome:
    answer = invocation.ask(
        "coordinator.explain_claim",
        task_id=invocation.args.subject.partition("@")[0],
        swarm_id=invocation.require_swarm(),
    )
    return Outcome(answer, exit=DONE if answer["would_succeed"] else REFUSED)


def render_checks(data: Data, view: View) -> list[str]:
    """The verdict and what is fine in one row, then each check that fails with what would change it."""
    checks = data["checks"]
    failed = [check for check in checks if not check["ok"]]
    verdict = (
        f"{view.state('no')}: {len(failed)} of {len(checks)} checks fail"
        if failed
        else f"{view.state('yes')}: {data['swarm_id']} could claim {data['task_id']} now"
    )
    passed = [f"ok {check['check']}: {one_line(check['message'], 100)}" for check in checks if check["ok"]]
    lines = fields([verdict, *passed], view)
    width = max((len(check["check"]) for check in failed), default=0)
    lines += [f"{view.state('no')}  {check['check']:<{width}}  {one_line(check['message'], 250)}" for check in failed]
    changes: list[str] = []
    for check in failed:
        for change in check.get("would_change") or ():
            what = f"{one_line(change.get('what', ''), 120)} ({change.get('by', '')})".removesuffix(" ()")
            changes.append(f"{what}: {change['call']}" if change.get("call") else what)
    if changes:
        lines.append(f"would change: {' | '.join(dict.fromkeys(changes))}")
    best = data.get("best")
    if best and best["swarm_id"] != data["swarm_id"]:
        overlap = f" ({best['overlap']:.2f})" if isinstance(best.get("overlap"), (int, float)) else ""
        lines.append(f"best now: {best['swarm_id']}{overlap}")
    return lines


COMMANDS = {
    "": Command(
        words="why",
        summary="Explain whether a swarm could claim a task: every check with its figures; exit 3 if not",
        examples=("ifbus why T-12 --swarm builder", "ifbus why T-12", "ifbus why T-12 --json"),
        arguments=_arguments,
        run=_why,
        render=render_checks,
        acts=True,
    ),
}

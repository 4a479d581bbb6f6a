"""`ifbus swarm`: who is here, what they can do, how they stand."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.commands.drain import grace_arguments
from ifbus.cli.commands.pause import render_paused
from ifbus.cli.commands.task import split_list
from ifbus.cli.commands.waits import what_help_does
from ifbus.cli.text import View, describe_pause, fields, one_line, plural, table
from ifbus.errors import NotFound, Usage

SWARM_FIELDS = (
    "swarm_id", "capabilities", "cost_per_hour_usd", "reputation", "model", "uid", "incarnation", "alive", "breaker",
    "free_usd", "claims", "pause",
)  # fmt: skip


def _ls(invocation: Invocation) -> Outcome:
    return invocation.ask_page("governor.list_swarms")


def render_swarms(data: Data, view: View) -> list[str]:
    """All profiles as a table."""
    if not data["swarms"]:
        return ["no swarm yet: ifbus swarm register NAME --can area:skill"]
    return table(
        ("SWARM", "ALIVE", "BREAKER", "FREE USD", "USD/H", "HOLDS", "CAN"),
        [
            (
                swarm["swarm_id"],
                _alive(swarm, view),
                view.state(_standing(swarm)),
                _free(swarm),
                swarm.get("cost_per_hour_usd", "0.00"),
                ",".join(swarm.get("claims") or ()) or "-",
                ",".join(swarm.get("capabilities") or ()) or "-",
            )
            for swarm in data["swarms"]
        ],
        right=(3, 4),
    )


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="SWARM")


def _show(invocation: Invocation) -> Outcome:
    return Outcome(invocation.ask("governor.get_swarm", swarm_id=invocation.args.subject))


def render_swarm(data: Data, view: View) -> list[str]:
    """One profile."""
    swarm = data["profile"]
    return [
        *fields(
            [
                f"{swarm['swarm_id']} {_session(swarm, view)}",
                f"breaker {view.state(swarm.get('breaker', 'closed'))}",
                describe_pause(swarm.get("pause"), view),
                f"{_free(swarm)} USD free" if swarm.get("free_usd") is not None else "no budget set",
                f"{swarm.get('cost_per_hour_usd', '0.00')} USD/h",
                f"reputation {swarm.get('reputation', 1.0):.2f}",
                f"uid {swarm.get('uid')}, incarnation {swarm.get('incarnation', 0)}",
                f"model {swarm['model']}" if swarm.get("model") else "",
            ],
            view,
        ),
        f"  can: {', '.join(swarm.get('capabilities') or ()) or 'nothing registered'}",
        *([f"  holds: {', '.join(swarm['claims'])}"] if swarm.get("claims") else []),
    ]


def _standing(swarm: Data) -> str:
    return "paused" if swarm.get("pause") and swarm.get("breaker") != "tripped" else str(swarm.get("breaker", "closed"))


def _alive(swarm: Data, view: View) -> str:
    if swarm.get("alive"):
        return view.state("yes")
    return view.state("silent") if swarm.get("incarnation") else "-"


def _session(swarm: Data, view: View) -> str:
    """A swarm that had a session is silent without one; one that never had any is not to be missed."""
    alive = _alive(swarm, view)
    return "has no session yet" if alive == "-" else alive.replace("yes", "alive")


def _free(swarm: Data) -> str:
    return "-" if swarm.get("free_usd") is None else str(swarm["free_usd"])


def _register_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="SWARM")
    parser.add_argument(
        "--can", metavar="CAP", action="append", help="what it can do, area:skill; again or A,B (else as it was)"
    )
    parser.add_argument("--cost-per-hour-usd", metavar="USD")
    parser.add_argument("--budget-usd", metavar="USD", help="its budget when it has none; only an operator raises one")
    parser.add_argument("--model", metavar="TEXT", help="the language model behind it")


def _register(invocation: Invocation) -> Outcome:
    args = invocation.args
    capabilities = split_list(args.can)
    if capabilities is None:
        try:
            profile = invocation.ask("governor.get_swarm", swarm_id=args.subject)["profile"]
            capabilities = profile.get("capabilities") or []
        except NotFound:
            capabilities = []
    return Outcome(
        invocation.change(
            "governor.register_profile",
            {
                "swarm_id": args.subject,
                "capabilities": capabilities,
                "cost_per_hour_usd": args.cost_per_hour_usd,
                "budget_usd": args.budget_usd,
                "model": args.model,
            },
        )
    )


def _render_registered(data: Data, view: View) -> list[str]:
    name = data["profile"]["swarm_id"]
    return [*render_swarm(data, view), f"  next: ifbus run --swarm {name} -- COMMAND | ifbus task next --swarm {name}"]


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="SWARM", nargs="?", help="your own (--swarm, IFBUS_SWARM) if not given")
    parser.add_argument(
        "--yaml", action="store_true", help="in the shape of the old status files, one document per task"
    )
    parser.add_argument("--swarm", metavar="NAME", help="the same as SWARM")


def _status(invocation: Invocation) -> Outcome:
    args = invocation.args
    if args.subject and args.swarm and args.subject != args.swarm:
        raise Usage(
            f"one swarm at a time, got {args.subject:.64} and {args.swarm:.64}",
            data={"command": "swarm status", "example": "ifbus swarm status docs-2"},
        )
    swarm_id = args.subject or invocation.swarm
    if not swarm_id:
        raise Usage("say which swarm", data={"command": "swarm status", "example": "ifbus swarm status docs-2"})
    answer = invocation.ask("coordinator.swarm_status", swarm_id=swarm_id)
    return Outcome({**answer, "as_yaml": args.yaml})


def render_status(data: Data, view: View) -> list[str]:
    """What it works on, one line a task, and below it what it waits for and what comes next."""
    if data["as_yaml"]:
        return status_yaml(data)
    done = f"{plural(data['tasks_completed'], 'task')} completed"
    lines = fields([f"{data['swarm_id']} {view.state(data['status'])}", done], view)
    for task in data["tasks"]:
        handle = f"{task['task_id']}@{task['token']}"
        lines += fields([f"  {handle} {one_line(task['title'], 80)}", one_line(task["milestone"], 120)], view, indent=4)
        for name, words in (("blocked_on", "blocked on"), ("next_action", "next")):
            if task.get(name):
                lines.append(f"    {words}: {one_line(task[name])}")
    more = data["tasks_in_progress"] - len(data["tasks"])
    return [*lines, f"  and {plural(more, 'more task')}"] if more else lines


def status_yaml(data: Data) -> list[str]:
    """The old status files, by which sessions told one another in git what they do: the same keys in the same order."""
    from datetime import UTC, datetime

    when = datetime.fromtimestamp(data["at_ms"] / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines: list[str] = []
    for task in data["tasks"] or [{}]:
        rows: list[tuple[str, object]] = [
            ("session", data["swarm_id"]),
            ("status", data["status"]),
            ("current_task", task.get("task_id")),
            ("milestone", task.get("milestone")),
            ("timestamp", when),
            ("branch", task.get("branch")),
            ("blocked_on", task.get("blocked_on")),
            ("next_action", task.get("next_action")),
            ("tasks_completed", data["tasks_completed"]),
            ("tasks_in_progress", data["tasks_in_progress"]),
        ]
        lines += [*(["---"] if lines else []), *(f"{name}: {_yaml(value)}" for name, value in rows)]
    return lines


def _yaml(value: object) -> str:
    """A scalar. Text is quoted as JSON, which YAML reads the same: no word of it turns into a number, a date or a no."""
    import json

    return "null" if value is None else json.dumps(value, ensure_ascii=True)


def _drain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="SWARM")
    grace_arguments(parser)


def _drain(invocation: Invocation) -> Outcome:
    args = invocation.args
    params = {"swarm_id": args.subject, "grace_ms": args.grace, "reason": args.reason}
    answer = invocation.change("coordinator.drain_swarm", params)
    return Outcome({"kind": "swarm", "name": args.subject, **answer})


def _request_help(invocation: Invocation) -> Outcome:
    return Outcome(invocation.change("coordinator.request_help", {"swarm_id": invocation.require_swarm()}))


def render_request(data: Data, _view: View) -> list[str]:
    """Who was asked, and what that would free."""
    asked = "people were" if data["asked"] == "person" else f"{data['asked']} was"
    return [f"{asked} asked for help: it {what_help_does(data)}", "  see: ifbus waits"]


COMMANDS = {
    "ls": Command(
        words="swarm ls",
        summary="List swarms by name",
        examples=("ifbus swarm ls", "ifbus swarm ls --fields id,alive,free_usd", "ifbus swarm ls --json --limit 200"),
        run=_ls,
        render=render_swarms,
        kind="list",
        items="swarms",
        id_field="swarm_id",
        columns=SWARM_FIELDS,
    ),
    "show": Command(
        words="swarm show",
        summary="Show what a swarm can do and how it stands",
        examples=("ifbus swarm show docs-2", "ifbus swarm show docs-2 --json", "ifbus swarm show docs-2 --fields free_usd"),
        arguments=_show_arguments,
        run=_show,
        render=render_swarm,
        items="profile",
        id_field="swarm_id",
        columns=SWARM_FIELDS,
    ),
    "status": Command(
        words="swarm status",
        summary="Show what a swarm works on, how far it is, what it waits for and does next",
        examples=("ifbus swarm status docs-2", "ifbus swarm status docs-2 --yaml", "ifbus swarm status docs-2 --json"),
        arguments=_status_arguments,
        run=_status,
        render=render_status,
        items="tasks",
        id_field="task_id",
    ),
    "register": Command(
        words="swarm register",
        summary="Create or change a swarm's profile; `ifbus run` also gives it a session",
        examples=(
            "ifbus swarm register docs-2 --can docs:writing,docs:api-design",
            "ifbus swarm register docs-2 --can docs:writing --cost-per-hour-usd 0.50 --budget-usd 5",
            "ifbus swarm register docs-2 --model small",
        ),
        arguments=_register_arguments,
        run=_register,
        render=_render_registered,
        kind="change",
        items="profile",
        id_field="swarm_id",
    ),
    "drain": Command(
        words="swarm drain",
        summary="Give a swarm no new work (its owner or an operator); what it holds has a grace to end",
        examples=('ifbus swarm drain docs-2 --grace 10m --reason "upgrade"', "ifbus swarm drain docs-2 --json", "ifbus swarm drain docs-2 --dry-run"),
        arguments=_drain_arguments,
        run=_drain,
        render=render_paused,
        kind="change",
    ),
    "request-help": Command(
        words="swarm request-help",
        summary="Call for help where it frees the most of what a swarm works on and waits for",
        examples=("ifbus swarm request-help", "ifbus swarm request-help --swarm docs-2", "ifbus swarm request-help --json"),
        run=_request_help,
        render=render_request,
        kind="change",
        acts=True,
    ),
}  # fmt: skip

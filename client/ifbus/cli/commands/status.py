"""`ifbus status`: the daemon, the board, the swarms and the money at a glance."""

from __future__ import annotations

import argparse
import time

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.exits import DONE, FOUND_SOMETHING
from ifbus.cli.text import View, fields, one_line, plural, span

_STATES = ("ready", "claimed", "blocked", "waiting", "failed", "completed")
# More alarms than this would break the ceiling of 900 bytes; the rest is counted.
_SHOWN = 3
# Breakers and blockers come with more than their alarm has.
_SHOWN_BY_THEMSELVES = ("breaker_tripped", "blocker")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="exit 8 if an alarm is open")


def _status(invocation: Invocation) -> Outcome:
    ask, now_ms = invocation.ask, invocation.view.now_ms
    day = time.mktime((*time.localtime(now_ms / 1000)[:3], 0, 0, 0, 0, 0, -1))
    daemon = ask("daemon.status")
    counts = ask("coordinator.list_tasks", limit=1)["counts"]
    swarms = _all_swarms(invocation)
    reports = ask("governor.get_budget_report")["reports"]
    data = {
        "daemon": daemon,
        "tasks": {state: counts.get(state, 0) for state in _STATES},
        "swarms": {
            "total": len(swarms),
            "alive": sum(bool(swarm.get("alive")) for swarm in swarms),
            "silent": sum(not swarm.get("alive") for swarm in swarms),
        },
        "tripped": ask("governor.list_breakers", tripped_only=True)["breakers"],
        "blockers": ask("coordinator.list_blockers")["blockers"],
        "money": {
            "spent_today_usd": ask("optimise.report", since_ms=int(day * 1000), limit=1)["total_usd"],
            "limit_usd": _sum(reports, "limit_usd"),
            "reserved_usd": _sum(reports, "reserved_usd"),
        },
        "witness": ask("witness.head"),
    }
    alarmed = bool(daemon.get("alarms") or data["tripped"] or data["blockers"])
    return Outcome(data, exit=FOUND_SOMETHING if invocation.args.check and alarmed else DONE)


def _all_swarms(invocation: Invocation) -> list[Data]:
    swarms: list[Data] = []
    after = None
    while True:
        page = invocation.ask("governor.list_swarms", limit=200, after=after)
        swarms += page["swarms"]
        after = page["next"]
        if after is None:
            return swarms


def _sum(reports: list[Data], name: str) -> str:
    from ifbus.money import to_micro_usd, to_usd

    return to_usd(sum(to_micro_usd(report[name]) for report in reports if report.get(name) is not None))


def render_status(data: Data, view: View) -> list[str]:
    """Four lines of facts and a line for each thing to look at."""
    daemon, counts, swarms, money = data["daemon"], data["tasks"], data["swarms"], data["money"]
    latency = daemon.get("latency") or {}
    lines = fields(
        [
            f"ifbusd {daemon.get('build', '?')} up {span(daemon.get('uptime_ms', 0))}",
            f"{daemon.get('backend', 'embedded')} store, pid {daemon.get('pid', '?')}",
            str(daemon.get("socket", "")),
        ],
        view,
    )
    by_state = ", ".join(f"{counts[state]} {view.state(state)}" for state in _STATES if counts[state])
    lines += fields(
        [
            f"tasks   {sum(counts.values())}" + (f": {by_state}" if by_state else ""),
            ", ".join(f"{kind} p99 {_ms(figures)}" for kind, figures in latency.items() if _ms(figures)),
        ],
        view,
        indent=8,
    )
    tripped = f"; {len(data['tripped'])} tripped" if data["tripped"] else ""
    lines += fields(
        [
            f"swarms  {swarms['total']}: {swarms['alive']} alive, {swarms['silent']} silent{tripped}",
            f"today {money['spent_today_usd']} of {money['limit_usd']} USD, {money['reserved_usd']} reserved",
            f"witness {data['witness']['seq']} entries",
        ],
        view,
        indent=8,
    )
    return lines + [f"! {line}" for line in _alarms(data, view)]


def _alarms(data: Data, view: View) -> list[str]:
    lines = []
    for breaker in data["tripped"]:
        name = breaker["swarm_id"]
        since = view.ago(breaker.get("tripped_at_ms"))
        lines.append(
            f"{name} {view.state('tripped')} {since} ago: {one_line(breaker.get('reason') or '-', 80)}    ifbus breaker show {name}"
        )
    for blocker in data["blockers"]:
        lines.append(
            f"{blocker['swarm_id']} blocked: {one_line(blocker['reason'], 80)}    ifbus rpc coordinator.list_blockers"
        )
    for alarm in data["daemon"].get("alarms") or ():
        kind = str(alarm.get("kind") or alarm.get("code") or "alarm")
        if kind in _SHOWN_BY_THEMSELVES:
            continue
        about = f"{alarm['swarm_id']}: " if alarm.get("swarm_id") else ""
        said = str(alarm.get("message") or alarm.get("reason") or "")
        lines.append(f"{kind.replace('_', ' ')}: {one_line(about + said, 80)}    {alarm.get('remedy') or ''}".rstrip())
    if len(lines) > _SHOWN:
        lines = [*lines[:_SHOWN], f"{plural(len(lines) - _SHOWN, 'more thing')} to look at: ifbus status --json"]
    return lines


def _ms(figures: Data) -> str:
    p99_us = figures.get("p99_us") if isinstance(figures, dict) else None
    return f"{p99_us / 1000:.1f} ms" if p99_us else ""


COMMANDS = {
    "": Command(
        words="status",
        summary="Show daemon, board, swarms and money at a glance",
        examples=("ifbus status", "ifbus status --check", "ifbus status --json"),
        arguments=_arguments,
        run=_status,
        render=render_status,
    ),
}

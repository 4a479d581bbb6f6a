"""`ifbus status`: the daemon, the board, the swarms and the money at a glance."""

from __future__ import annotations

import argparse
import time

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.exits import DONE, FOUND_SOMETHING
from ifbus.cli.text import View, fields, one_line, plural, span

_STATES = ("ready", "claimed", "blocked", "paused", "waiting", "failed", "completed")
# The most that the daemon gives at once.
_PAGE = 200
# What an agent pays for reading it (UX 4); alarms that do not fit are counted.
_MAX_BYTES = 900
# Breakers and blockers come with more than their alarm has.
_SHOWN_BY_THEMSELVES = ("breaker_tripped", "blocker")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="exit 8 if an alarm is open")


def _status(invocation: Invocation) -> Outcome:
    ask, now_ms = invocation.ask, invocation.view.now_ms
    day = time.mktime((*time.localtime(now_ms / 1000)[:3], 0, 0, 0, 0, 0, -1))
    daemon = ask("daemon.status")
    counts = daemon["coordinator"]["tasks"]
    total, alive = daemon["governor"]["swarms"], daemon["coordinator"]["sessions"]
    limits, reserved = _money(invocation)
    data = {
        "daemon": daemon,
        "tasks": {state: counts.get(state, 0) for state in _STATES},
        "swarms": {"total": total, "alive": alive, "silent": max(0, total - alive)},
        "tripped": ask("governor.list_breakers", tripped_only=True, limit=_PAGE)["breakers"],
        "blockers": ask("coordinator.list_blockers")["blockers"],
        "money": {
            "spent_today_usd": ask("optimise.report", since_ms=int(day * 1000), limit=1)["total_usd"],
            "limit_usd": limits,
            "reserved_usd": reserved,
        },
        "witness": ask("witness.head"),
    }
    alarmed = bool(daemon.get("alarms") or data["tripped"] or data["blockers"] or _is_full(daemon))
    return Outcome(data, exit=FOUND_SOMETHING if invocation.args.check and alarmed else DONE)


def _money(invocation: Invocation) -> tuple[str | None, str]:
    """All budgets together, None if no swarm has one, and all that is set aside."""
    from ifbus.money import to_micro_usd, to_usd

    limits: list[int] = []
    reserved, after = 0, None
    while True:
        page = invocation.ask("governor.get_budget_report", limit=_PAGE, after=after)
        limits += [to_micro_usd(report["limit_usd"]) for report in page["reports"] if report.get("limit_usd")]
        reserved += sum(to_micro_usd(report["reserved_usd"]) for report in page["reports"])
        after = page["next"]
        if after is None:
            return to_usd(sum(limits)) if limits else None, to_usd(reserved)


def render_status(data: Data, view: View) -> list[str]:
    """Four lines of facts and a line for each thing to look at."""
    daemon, counts, swarms, money = data["daemon"], data["tasks"], data["swarms"], data["money"]
    latency = daemon.get("latency") or {}
    lines = fields(
        [
            f"ifbusd {daemon.get('build', '?')} up {span(daemon.get('uptime_ms', 0))}",
            f"{daemon.get('backend', '?')} store{_flush(daemon.get('store') or {})}, pid {daemon.get('pid', '?')}",
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
    if drain := daemon["coordinator"].get("draining"):
        ends = span(max(0, drain["until_at_ms"] - view.now_ms))
        lines += fields(
            [
                f"{view.state('draining')} by uid {drain['by_uid']}: {drain['reason'] or 'no reason given'}",
                f"{plural(drain['left'], 'claim')} left, given back in {ends}; {drain['released']} were",
            ],
            view,
            indent=8,
        )
    tripped = f"; {len(data['tripped'])} tripped" if data["tripped"] else ""
    lines += fields(
        [
            f"swarms  {swarms['total']}: {swarms['alive']} alive, {swarms['silent']} silent{tripped}",
            f"today {money['spent_today_usd']} USD{_of(money['limit_usd'])}, {money['reserved_usd']} reserved",
            f"witness {data['witness']['seq']} entries",
        ],
        view,
        indent=8,
    )
    alarms = _alarms(data, view)
    more = 0
    while alarms and len("\n".join([*lines, *alarms, _more(len(alarms))]).encode()) >= _MAX_BYTES:
        alarms.pop()
        more += 1
    return [*lines, *alarms, *([_more(more)] if more else [])]


def _more(number: int) -> str:
    return f"! {plural(number, 'more thing')} to look at: ifbus status --json"


def _is_full(daemon: Data) -> bool:
    return bool((daemon.get("store") or {}).get("is_full"))


def _alarms(data: Data, view: View) -> list[str]:
    lines = []
    if _is_full(data["daemon"]):
        where = data["daemon"].get("state_dir", "the state directory")
        lines.append(f"storage full: only releases and other ends are done    free space for {where}")
    for breaker in data["tripped"]:
        name = breaker["swarm_id"]
        since = view.ago(breaker.get("tripped_at_ms"))
        lines.append(
            f"{name} {view.state('tripped')} {since} ago: {one_line(breaker.get('reason') or '-', 80)}    ifbus breaker show {name}"
        )
    for blocker in data["blockers"]:
        lines.append(
            f"{blocker.get('task_id') or blocker['swarm_id']} blocked {view.ago(blocker.get('at_ms'))} ago:"
            f" {one_line(blocker['reason'], 80)}    ifbus task unblock {blocker['blocker_id']} --note TEXT"
        )
    for alarm in data["daemon"].get("alarms") or ():
        kind = str(alarm.get("kind") or alarm.get("code") or "alarm")
        if kind in _SHOWN_BY_THEMSELVES:
            continue
        about = f"{alarm['swarm_id']}: " if alarm.get("swarm_id") else ""
        said = str(alarm.get("message") or alarm.get("reason") or "")
        lines.append(f"{kind.replace('_', ' ')}: {one_line(about + said, 80)}    {alarm.get('remedy') or ''}".rstrip())
    return [f"! {line}" for line in lines]


def _of(limit_usd: str | None) -> str:
    return ", no budget set" if limit_usd is None else f" of {limit_usd} in budgets"


def _flush(store: Data) -> str:
    flush_us = store.get("flush_us") or store.get("flush_estimate_us")
    return f", flush {flush_us / 1000:.2f} ms" if flush_us else ""


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

"""`ifbus cost report`: what it cost, and what of it was wasted."""

from __future__ import annotations

import argparse
import time

from ifbus.cli.command import Command, Data, Invocation, Outcome, parse_span
from ifbus.cli.text import View, count, one_line, table
from ifbus.errors import Usage

DIMENSIONS = ("swarm", "task", "operation", "model", "hour")
ROW_FIELDS = (
    "key", "tasks", "accepted", "spent_usd", "per_accepted_usd", "input_tokens", "output_tokens", "cache_read_tokens",
    "cache_write_tokens", "waste_usd", "waste_ratio",
)  # fmt: skip


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", choices=DIMENSIONS, default="swarm")
    parser.add_argument("--since", metavar="WHEN", help="today, a span ago (2h), or 2026-03-01; default: everything")
    parser.add_argument("--until", metavar="WHEN", help="as --since; default: now")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most N rows, dearest first (50)")


def _report(invocation: Invocation) -> Outcome:
    args, now_ms = invocation.args, invocation.view.now_ms
    answer = invocation.ask(
        "optimise.report",
        by=args.by,
        since_ms=None if args.since is None else parse_when(args.since, now_ms),
        until_ms=None if args.until is None else parse_when(args.until, now_ms),
        limit=args.limit,
    )
    return Outcome(answer)


def parse_when(text: str, now_ms: int) -> int:
    """Epoch milliseconds for ``today`` (local midnight), a span ago (``2h``) or a local date ``2026-03-01``.

    Raises:
        Usage: It is none of these.
    """
    if text == "today":
        return int(time.mktime((*time.localtime(now_ms / 1000)[:3], 0, 0, 0, 0, 0, -1)) * 1000)
    try:
        return max(0, now_ms - parse_span(text))
    except ValueError:
        pass
    try:
        return int(time.mktime(time.strptime(text, "%Y-%m-%d")) * 1000)
    except (ValueError, OverflowError):
        raise Usage(
            f"a time reads today, 2h (ago) or 2026-03-01, got {text:.40}",
            data={"command": "cost report", "example": "ifbus cost report --since today"},
        ) from None


def render_costs(data: Data, view: View) -> list[str]:
    """One row a key, dearest first, and the sum."""
    if not data["rows"]:
        return ["nothing was spent"]
    rows = [
        (
            one_line(str(row["key"]), 80) or "-" if data["by"] != "hour" else _hour(row["key"]),
            str(row["tasks"]),
            row["spent_usd"],
            row["per_accepted_usd"] or "-",
            count(row["input_tokens"]),
            f"{count(row['cache_read_tokens'])} / {count(row['cache_write_tokens'])}",
            count(row["output_tokens"]),
            f"{round(row['waste_ratio'] * 100)} %",
        )
        for row in data["rows"]
    ]
    headers = (data["by"].upper(), "TASKS", "SPENT", "PER ACCEPTED", "INPUT", "CACHE R / W", "OUTPUT", "WASTE")
    more = "    more rows: --limit" if data["has_more"] else ""
    return [
        *table(headers, rows, right=(1, 2, 3, 4, 5, 6, 7)),
        f"total {data['total_usd']} USD, {data['waste_usd']} of it waste{more}",
    ]


def _hour(key: object) -> str:
    # The ledger's hours are epoch milliseconds or text already, by the daemon's version.
    return time.strftime("%Y-%m-%d %H:00", time.localtime(key / 1000)) if isinstance(key, int) else str(key)


COMMANDS = {
    "report": Command(
        words="cost report",
        summary="Sum costs by one dimension, dearest first",
        examples=("ifbus cost report --by swarm --since today", "ifbus cost report --by model", "ifbus cost report --by task --json"),
        arguments=_arguments,
        run=_report,
        render=render_costs,
        items="rows",
        id_field="key",
        columns=ROW_FIELDS,
    ),
}  # fmt: skip

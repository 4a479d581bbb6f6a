"""What the play looks like: live on a terminal, plain lines elsewhere, and the tables at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ifbus.demo.cast import CAST
from ifbus.demo.tally import Tally, quantile
from ifbus.models import Task

_STORY_LINES = 7


class Screen:
    """The live picture. Not for concurrent use."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._told = 0

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*exc_info)

    def show(self, tasks: Sequence[Task], counts: dict[str, int], tally: Tally) -> None:
        """Draw what stands now; without a terminal, print what is new."""
        if self._live is None:
            for line in tally.story[self._told :]:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._told = len(tally.story)
            return
        table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
        for column in ("TASK", "STATE", "HELD BY", "PROGRESS", "TITLE"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for task in tasks:
            table.add_row(
                task.task_id,
                Text(task.state, style=_STYLE.get(task.state, "")),
                task.holder or "",
                ProgressBar(total=100, completed=task.percent, width=16),
                task.title,
            )
        story = Text("\n".join(tally.story[-_STORY_LINES:]), style="dim", no_wrap=True, overflow="ellipsis")
        states = "   ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        self._live.update(Group(table, Text(states, style="bold"), story))


_STYLE = {"claimed": "yellow", "completed": "green", "blocked": "red", "failed": "red", "waiting": "dim"}


def closing(
    console: Console,
    tally: Tally,
    *,
    spent_usd: dict[str, str],
    daemon_latency: dict[str, dict[str, Any]],
    seconds: float,
) -> None:
    """The tables: who did what for how much, and how long things took in this very run."""
    work = Table(title="who did what", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("SWARM", "CAN", "TASKS", "MILESTONES", "EXECUTIONS", "SPENT USD"):
        work.add_column(column, justify="left" if column in ("SWARM", "CAN", "TASKS") else "right")
    for part in CAST:
        done = tally.completed.get(part.name, [])
        work.add_row(
            part.name,
            f"{len(part.capabilities)} capabilities",
            f"{len(done)}: {' '.join(done)}" if done else "0",
            str(tally.milestones[part.name]),
            str(tally.executions[part.name]),
            spent_usd.get(part.name, "0.00"),
        )
    console.print(work)
    console.print()
    console.print(_latencies(tally, daemon_latency))
    console.print(f"\n{sum(map(len, tally.completed.values()))} tasks in {seconds:.1f} s", highlight=False)


def _latencies(tally: Tally, daemon_latency: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        title="how long it took in this run, in ms",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.add_column("WHAT", no_wrap=True)
    for column in ("N", "P50", "P99", "IN DAEMON P50", "P99"):
        table.add_column(column, justify="right")
    rows: list[tuple[str, list[float], str]] = [
        ("claim, durable", tally.claim_us, "claim"),
        ("push, durable, into the swarm's hands", tally.push_us(), "push"),
        ("blocker to the orchestrator's ear", tally.alarm_us(), "blocker"),
        *((f"execute, {kind}", spans, "") for kind, spans in sorted(tally.execute_us.items())),
    ]
    for what, spans, kind in rows:
        inside = daemon_latency.get(kind, {})
        table.add_row(
            what,
            str(len(spans)),
            _ms(quantile(spans, 0.5)),
            _ms(quantile(spans, 0.99)),
            _ms(inside.get("p50_us")),
            _ms(inside.get("p99_us")),
        )
    return table


def _ms(us: float | None) -> str:
    if us is None:
        return "-"
    return f"{us / 1000:.2f}" if us < 100_000 else f"{us / 1000:.0f}"

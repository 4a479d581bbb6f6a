"""What the benchmarks share: contestants' processes, rounds that alternate between them, medians, pinning, a table and JSON.

Absolute figures depend on the machine and on what else it does; ratios within one run do much less. So every script runs
its contestants in turn, round by round, and reports the median of the rounds and its ratio to the floor of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

START_TIMEOUT_S = 30.0


def arguments(description: str) -> argparse.Namespace:
    """The options that every benchmark takes: ``--quick``, ``--json FILE``, ``--rounds N``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: shows that it runs, proves nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per contestant (default: 5)")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
    }


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process from the line ``ready`` on its output until the end of the block, then killed."""
    with subprocess.Popen(list(command), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line != b"ready\n":
                raise RuntimeError(f"{command[0]} did not start: said {line!r} instead of ready")
            yield process
        finally:
            process.kill()


def pin(pid: int, cpu: int | None) -> None:
    """Keep all threads of a process on one processor, or (None) let it go where the kernel wants."""
    cpus = os.sched_getaffinity(0) if cpu is None else {cpu}
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), cpus)


def cpu_us(pid: int) -> float:
    """Processor time of a process's first thread so far; a benchmark's servers have no other that matters."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the sorted values lie."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


@attrs.frozen(kw_only=True)
class Round:
    """One round of one contestant.

    Attributes:
        latencies_us: Of each call, sorted.
        wall_s: How long all calls took together.
        server_cpu_us: Processor time of the server per call; None where it was not measured.
    """

    latencies_us: Sequence[float]
    wall_s: float
    server_cpu_us: float | None = None

    def figures(self) -> dict[str, float]:
        """The figures of the round by name."""
        figures = {
            "p50_us": percentile(self.latencies_us, 0.50),
            "p99_us": percentile(self.latencies_us, 0.99),
            "per_s": len(self.latencies_us) / self.wall_s,
        }
        if self.server_cpu_us is not None:
            figures["server_cpu_us"] = self.server_cpu_us
        return figures


def time_calls(call: Callable[[], object], count: int) -> tuple[list[float], float]:
    """Microseconds of each of `count` calls, unsorted, and the seconds of all."""
    latencies = []
    clock = time.perf_counter_ns
    start = before = clock()
    for _ in range(count):
        call()
        now = clock()
        latencies.append((now - before) / 1000)
        before = now
    return latencies, (before - start) / 1e9


def interleave(contestants: Mapping[str, Callable[[], Round]], rounds: int) -> dict[str, dict[str, float]]:
    """Each contestant's median figures over rounds in which all take turns, after one round that does not count."""
    collected: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            figures = run().figures()
            if number:
                collected[name].append(figures)
    return {
        name: {figure: statistics.median(row[figure] for row in rows) for figure in rows[0]}
        for name, rows in collected.items()
    }


def print_table(title: str, rows: Mapping[str, Mapping[str, float]], *, floor: str) -> None:
    """One line per contestant, with the ratio of its p50 to that of `floor`."""
    columns = list(dict.fromkeys(column for figures in rows.values() for column in figures))
    print(f"\n{title}")
    print(f"  {'':<28}" + "".join(f"{column:>16}" for column in columns) + f"{'p50 / ' + floor:>16}")
    for name, figures in rows.items():
        cells = "".join(f"{figures[column]:>16.1f}" if column in figures else f"{'-':>16}" for column in columns)
        ratio = figures["p50_us"] / rows[floor]["p50_us"] if floor in rows else float("nan")
        print(f"  {name:<28}{cells}{ratio:>16.2f}")


def print_limit(what: str, value: float, limit: float, *, unit: str = "") -> bool:
    """A figure beside its limit; whether it holds."""
    holds = value <= limit
    print(f"  {'ok  ' if holds else 'OVER'} {what}: {value:.2f}{unit} (limit {limit:g}{unit})")
    return holds


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """All figures with the machine that they were measured on."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "argv": sys.argv, **figures}, indent=1) + "\n")

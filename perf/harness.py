"""What the benchmarks share: rounds in which contestants take turns, client processes, pinning, figures, tables and JSON.

Absolute figures depend on the machine and on what else it does; ratios within one run do much less. So every script lets its
contestants take turns, round by round, reports the median of the rounds, and gives the ratio to the floor of the same run as
the median of the ratios within each round.

Placement matters more than anything else: the same two processes take 9 us on one core and 46 us on two (DESIGN 7). So
server and clients are always pinned: all on one core, which shows what is computed, or the server on one core and
the clients on another, which is what a user waits for, waking the other core included.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import attrs

# Longer than any phase of any benchmark: what takes longer hangs.
PATIENCE_S: Final = 300.0
# The shares of calls at which a latency distribution is kept.
SHARES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0)
ONE_CORE, TWO_CORES = "one core", "two cores"
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


def parser(description: str, *, rounds: int = 5) -> argparse.ArgumentParser:
    """The options that every benchmark takes: ``--quick``, ``--json FILE``, ``--rounds N``."""
    options = argparse.ArgumentParser(description=description.partition("\n")[0])
    options.add_argument(
        "--quick", action="store_true", help="a fraction of the work: shows that it runs, proves nothing"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options.add_argument("--rounds", type=int, default=rounds, help=f"rounds per contestant (default: {rounds})")
    return options


def stop_in_order() -> None:
    """Let SIGTERM and an ignored SIGINT (a job in the background) end this process as an exception does: servers and files go too."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in _STOPPING:
        signal.signal(number, end)


def rounds_of(options: argparse.Namespace) -> int:
    """How many rounds count."""
    return 1 if options.quick else int(options.rounds)


Sizes = tuple[int, int, int]


def sizes_of(options: argparse.Namespace) -> Sizes:
    """How many client processes there are: one, some and many."""
    return (1, 2, 3) if options.quick else (1, 16, 64)


# --- machine and processes ---------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "load": round(os.getloadavg()[0], 2),
    }


@attrs.frozen(kw_only=True)
class Placement:
    """Where the server and the clients of a scenario run.

    Attributes:
        title: ``one core`` or ``two cores``.
        server, client: Processor numbers.
    """

    title: str
    server: int
    client: int


def placements() -> list[Placement]:
    """Both placements; only the first on a machine with one processor."""
    cpus = sorted(os.sched_getaffinity(0))
    found = [Placement(title=ONE_CORE, server=cpus[0], client=cpus[0])]
    if len(cpus) > 1:
        found.append(Placement(title=TWO_CORES, server=cpus[0], client=cpus[1]))
    else:
        print("SKIPPED: two cores (this machine has one)")
    return found


def family(pid: int) -> list[int]:
    """A process and its descendants that are alive."""
    found = [pid]
    for parent in found:
        # It may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{thread}/children").read_text().split())
    return found


def pin(pid: int, cpu: int) -> None:
    """Keep a process with all its threads and descendants on one processor; what they start later stays there too."""
    for process in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in os.listdir(f"/proc/{process}/task"):
                os.sched_setaffinity(int(thread), {cpu})


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Keep this process on one processor until the end of the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_us(pid: int) -> float:
    """Processor time so far of a process, of its threads (ended ones too), and of its descendants that are alive."""
    used = 0
    for process in family(pid):
        # The clock of another process, as `clock_getcpuclockid` makes it: precise, where /proc counts ticks of 10 ms.
        with contextlib.suppress(OSError):
            used += time.clock_gettime_ns((~process << 3) | 2)
    return used / 1000


def rss_mib(pid: int) -> float:
    """Resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


# --- client processes --------------------------------------------------------------------------------


class Crew:
    """Client processes that are told to do the same thing at the same time.

    Each is a process of its own, forked so that it need not import anything, pinned, and started on a barrier with the others.

    Args:
        size: How many.
        cpu: The processor for all of them.
        enlist: Called in each with its number; connects, warms up, and returns what answers each `tell`. The answer must be
            picklable; a generator gives as many answers as it has.
    """

    def __init__(self, size: int, cpu: int, enlist: Callable[[int], Callable[..., Any]]) -> None:
        fork = multiprocessing.get_context("fork")
        barrier = fork.Barrier(size)
        sys.stdout.flush()
        self._members: list[tuple[Any, Any]] = []
        for number in range(size):
            ours, theirs = fork.Pipe()
            # A copy of our ends in a member would keep the others waiting when we are killed.
            not_theirs = [*(pipe for _, pipe in self._members), ours]
            arguments = (theirs, not_theirs, number, cpu, enlist, barrier)
            process = fork.Process(target=_serve, args=arguments, daemon=True)
            # What a handler raises within a fork would be ignored.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
            process.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            self._members.append((process, ours))
        try:
            self._collect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def tell(self, *command: Any) -> list[Any]:
        """Let all do this together; their answers.

        Raises:
            RuntimeError: One of them failed, or did not answer in `PATIENCE_S`.
        """
        self.begin(*command)
        return self._collect()

    def begin(self, *command: Any) -> None:
        """Let all begin this together; `hear` takes the answers."""
        for _, pipe in self._members:
            pipe.send(command)

    def hear(self) -> list[Any]:
        """The next answer of each."""
        return self._collect()

    def wait_until_asleep(self) -> None:
        """Return when all wait for something."""
        for process, _ in self._members:
            stat = Path(f"/proc/{process.pid}/stat")
            while stat.read_text().rpartition(")")[2].split()[0] != "S":
                time.sleep(0.0001)

    def _collect(self) -> list[Any]:
        answers = []
        for process, pipe in self._members:
            if not pipe.poll(PATIENCE_S):
                raise RuntimeError(f"a client process (pid {process.pid}) did not answer in {PATIENCE_S} s")
            is_ok, answer = pipe.recv()
            if not is_ok:
                raise RuntimeError(f"a client process failed:\n{answer}")
            answers.append(answer)
        return answers

    def close(self) -> None:
        """End all of them."""
        for process, _ in self._members:
            process.kill()
        for process, pipe in self._members:
            process.join()
            process.close()
            pipe.close()
        self._members.clear()


def _serve(
    pipe: Any,
    not_ours: Sequence[Any],
    number: int,
    cpu: int,
    enlist: Callable[[int], Callable[..., Any]],
    barrier: Any,
) -> None:
    for stopping in _STOPPING:
        signal.signal(stopping, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    for other in not_ours:
        other.close()
    os.sched_setaffinity(0, {cpu})
    gc.collect()
    gc.freeze()
    try:
        act = enlist(number)
        pipe.send((True, None))
        while True:
            command = pipe.recv()
            barrier.wait()
            answer = act(*command)
            for one in answer if isinstance(answer, Iterator) else (answer,):
                pipe.send((True, one))
    except EOFError:
        return
    except BaseException:
        pipe.send((False, traceback.format_exc()))


# --- figures -----------------------------------------------------------------------------------------


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the sorted values lie."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]


def _sorted(values: Iterable[float]) -> list[float]:
    return sorted(values)


@attrs.frozen(kw_only=True)
class Round:
    """One round of one contestant.

    Attributes:
        latencies_us: Of each call, of all clients, sorted.
        wall_s: How long all calls took together.
        server_cpu_us: Processor time of the server per call; None where there is no server.
        rss_mib: Resident memory of the server after the round.
    """

    latencies_us: Sequence[float] = attrs.field(converter=_sorted)
    wall_s: float
    server_cpu_us: float | None = None
    rss_mib: float | None = None

    def figures(self) -> dict[str, float]:
        """The figures of the round by name."""
        figures = {
            "p50_us": percentile(self.latencies_us, 0.50),
            "p99_us": percentile(self.latencies_us, 0.99),
            "p999_us": percentile(self.latencies_us, 0.999),
            "per_s": len(self.latencies_us) / self.wall_s,
        }
        if self.server_cpu_us is not None:
            figures["server_cpu_us"] = self.server_cpu_us
        if self.rss_mib is not None:
            figures["rss_mib"] = self.rss_mib
        return figures


@attrs.frozen(kw_only=True)
class Timed:
    """What one client saw: microseconds of each call, and when it began and ended, on the clock that all processes share."""

    latencies_us: list[float]
    began_ns: int
    ended_ns: int


def time_calls(call: Callable[[], object], count: int) -> Timed:
    """Make `count` calls, one after the other."""
    latencies = []
    clock = time.monotonic_ns
    began = before = clock()
    for _ in range(count):
        call()
        now = clock()
        latencies.append((now - before) / 1000)
        before = now
    return Timed(latencies_us=latencies, began_ns=began, ended_ns=before)


def together(timed: Iterable[Timed], *, server_cpu_us: float | None = None, rss_mib: float | None = None) -> Round:
    """The round of clients that worked at the same time; `server_cpu_us` is of all their calls."""
    timed = list(timed)
    latencies = [latency for one in timed for latency in one.latencies_us]
    return Round(
        latencies_us=latencies,
        wall_s=(max(one.ended_ns for one in timed) - min(one.began_ns for one in timed)) / 1e9,
        server_cpu_us=None if server_cpu_us is None else server_cpu_us / len(latencies),
        rss_mib=rss_mib,
    )


Run = Callable[[], Mapping[str, Round]]


@attrs.define
class Row:
    """What a contestant did in all rounds that counted.

    Attributes:
        rounds: The figures of each round.
        latencies_us: Of all rounds together, for the distribution; not sorted.
    """

    rounds: list[dict[str, float]] = attrs.Factory(list)
    latencies_us: list[float] = attrs.Factory(list)

    def median(self, figure: str) -> float:
        """The median of the rounds."""
        return statistics.median(figures[figure] for figures in self.rounds)

    def to_json(self) -> dict[str, Any]:
        """Medians, all rounds, and the distribution."""
        ordered = sorted(self.latencies_us)
        return {
            "medians": {figure: self.median(figure) for figure in self.rounds[0]},
            "rounds": {figure: [figures[figure] for figures in self.rounds] for figure in self.rounds[0]},
            "samples": len(ordered),
            "distribution_us": [[share, percentile(ordered, share)] for share in SHARES] if ordered else [],
        }


@attrs.define(kw_only=True)
class Table:
    """A scenario: who took turns in it, and beside whom they are judged."""

    title: str
    floor: str
    rows: dict[str, Row] = attrs.Factory(dict)

    def add(self, name: str, figures: dict[str, float], latencies_us: Iterable[float] = ()) -> None:
        """One more round of a contestant."""
        row = self.rows.setdefault(name, Row())
        row.rounds.append(figures)
        row.latencies_us += latencies_us

    def median(self, name: str, figure: str) -> float:
        """A contestant's figure."""
        return self.rows[name].median(figure)

    def ratio(self, name: str, beside: str | None = None, figure: str = "p50_us") -> float:
        """The median over the rounds of how one contestant's figure stands to another's in the same round."""
        ours, theirs = self.rows[name].rounds, self.rows[self.floor if beside is None else beside].rounds
        return statistics.median(a[figure] / b[figure] for a, b in zip(ours, theirs, strict=True))

    def show(self) -> None:
        """Print one line per contestant."""
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row.rounds[0]))
        width = max(len(name) for name in self.rows) + 2
        print(f"\n{self.title}")
        heading = "".join(f"{column:>15}" for column in columns)
        print(f"  {'':<{width}}{heading}" + (f"   p50 / {self.floor}" if self.floor else ""))
        for name, row in self.rows.items():
            cells = "".join(
                f"{row.median(column):>15.1f}" if column in row.rounds[0] else f"{'-':>15}" for column in columns
            )
            print(f"  {name:<{width}}{cells}" + (f"   {self.ratio(name):.2f}" if self.floor else ""))
        sys.stdout.flush()


class Report:
    """What one benchmark found: its tables and limits, printed as they come, and written as JSON."""

    def __init__(self, benchmark: str, options: argparse.Namespace) -> None:
        stop_in_order()
        self._benchmark = benchmark
        self._options = options
        self.tables: dict[str, Table] = {}
        self._limits: list[dict[str, Any]] = []
        self._extra: dict[str, Any] = {}

    def measure(self, title: str, runs: Sequence[Run], *, floor: str) -> Table:
        """Let the contestants take turns, after one round that does not count (unless quick); prints the table."""
        table = Table(title=title, floor=floor)
        warm_up = 0 if self._options.quick else 1
        for number in range(rounds_of(self._options) + warm_up):
            for run in runs:
                for name, one in run().items():
                    if number >= warm_up:
                        table.add(name, one.figures(), one.latencies_us)
        return self.keep(table)

    def keep(self, table: Table) -> Table:
        """Print a table and write it with the others."""
        self.tables[table.title] = table
        table.show()
        return table

    def note(self, **extra: Any) -> None:
        """Plain values for the JSON."""
        self._extra |= extra

    def limit(self, what: str, value: float, limit: float, *, unit: str = "", at_least: bool = False) -> None:
        """Print a figure beside its limit. `at_least`: more is better."""
        if not self._limits:
            print(f"\nlimits (machine: {machine()})")
        holds = value >= limit if at_least else value <= limit
        word = "at least" if at_least else "at most"
        print(f"  {'ok  ' if holds else 'OVER'} {what}: {value:.2f}{unit} (limit: {word} {limit:g}{unit})")
        self._limits.append(
            {"what": what, "value": value, "limit": limit, "unit": unit, "at_least": at_least, "holds": holds}
        )

    def write(self) -> None:
        """Write everything where ``--json`` says."""
        if self._options.json is None:
            return
        document = {
            "benchmark": self._benchmark,
            "machine": machine(),
            "argv": _what_was_asked(),
            "scenarios": {
                title: {"floor": table.floor, "rows": {name: row.to_json() for name, row in table.rows.items()}}
                for title, table in self.tables.items()
            },
            "limits": self._limits,
            **self._extra,
        }
        self._options.json.write_text(json.dumps(document, indent=1) + "\n")


def _what_was_asked() -> list[str]:
    """The command without where the figures went, which is nobody's business."""
    name, *rest = sys.argv
    if "--json" in rest:
        at = rest.index("--json")
        del rest[at : at + 2]
    return [Path(name).name, *rest]

"""Where the time of a ping and of a claim goes: microseconds of the daemon's processor time per call, by stage.

The real daemon runs under a sampler: a timer that counts its processor time interrupts it, some hundred times a second, and the
stack is given to the innermost frame that a row of `STAGES` names. Time in C (SQLite, MessagePack, system calls) belongs to
the line that called it. Shares become microseconds by the processor time per call of the same run. What the client's process
uses, and what remains (the disk, waking up, the sampler), is added, so that the whole is what the client waits for.

    python perf/where.py                      the tables
    python perf/where.py --daemon OUT ARGS    the daemon under the sampler; SIGUSR1 and SIGUSR2 say when to look

No other tool is needed; where py-spy is installed, ``py-spy record --native --pid`` shows the inside of the C parts.
"""

from __future__ import annotations

import argparse
import collections
import json
import linecache
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import attrs
import servers
from callers import IFBUSD, ping_of
from claims import BURST, Claimer
from harness import Crew, Placement, Report, Table, Timed, parser, placements, rounds_of, sizes_of, time_calls, together

# As often as the kernel's tick allows; it rounds up.
INTERVAL_S: Final = 0.001
OTHER: Final = "other"
CLIENT, REST = "client process", "the rest: disk, waking up"

# Stage, file, function, line; the first that fits the innermost frame decides, and one of a library that none fits is asked for its caller.
STAGES: Final = [
    (stage, re.compile(rf"/(?:{path})$"), re.compile(rf"(?:^|\.)(?:{function})(?:\.|$)"), re.compile(line))
    for stage, path, function, line in (
        ("system call: receive", r"ifbusd/rpc/connection\.py", r".*", r"\.recv\(|\._receive\("),
        ("system call: send", r"ifbusd/rpc/connection\.py", r".*", r"\.send\("),
        ("system call: epoll", r"trio/_core/_io_epoll\.py", r".*", r"\.(?:poll|modify|register|unregister)\("),
        ("trio: scheduling", r"(?:trio|outcome|sortedcontainers)/.*", r".*", ""),
        ("reply: pack", r"ifbus/protocol\.py", r"respond|respond_error|_pack|notify", ""),
        ("receive: parse", r"ifbus/(?:protocol|nesting)\.py", r".*", ""),
        ("dispatch: quota, binding, meta, identity", r"ifbusd/(?:rpc/.*|identity\.py|latency\.py)", r".*", ""),
        (
            "store: flush",
            r"ifbusd/store/embedded\.py",
            r"_write|_sync|_commit|_committed|_note_wal|_checkpoint|run",
            "",
        ),
        ("store: flush", r"ifbusd/store/(?:flush|journal|changes)\.py", r".*", ""),
        ("dispatch: quota, binding, meta, identity", r"ifbus/(?:models|money)\.py", r".*", ""),
        ("witness, idempotency", r"ifbusd/store/chain\.py|ifbusd/witness/.*", r".*", ""),
        ("witness, idempotency", r"ifbusd/operation\.py", r"_record|_receipt|_idempotency_key|_ensure_window", ""),
        ("board and watchers", r"ifbusd/coordinator/(?:board|offers|mailboxes|inbox)\.py", r".*", ""),
        ("board and watchers", r"ifbusd/governor/(?:view|registry)\.py", r".*", ""),
        ("board and watchers", r"ifbusd/(?:store/watches|bus/.*)\.py", r".*", ""),
        ("transaction: rules", r"ifbusd/\w+/rules\.py", r".*", ""),
        ("transaction: records", r"ifbusd/\w+/model\.py", r".*", ""),
        ("transaction: reads", r"ifbusd/operation\.py", r"get|get_stored|read|of|peek", ""),
        ("transaction: reads", r"ifbusd/store/embedded\.py", r"get|peek|range|_read", ""),
        ("transaction: writes", r"ifbusd/operation\.py", r"put|delete|keep|compares|writes", ""),
        ("transaction: writes", r"ifbusd/store/.*", r".*", ""),
        ("transaction: operation", r"ifbusd/operation\.py", r".*", ""),
        ("transaction: service", r"ifbusd/(?:coordinator|governor|chassis|optimise)/.*", r".*", ""),
    )
]
_OURS: Final = re.compile(r"/(?:ifbusd|client/ifbus)/")
# Belongs to whoever calls it.
_LENT: Final = re.compile(r"/ifbusd/codec\.py$")
Stack = tuple[tuple[str, str, int], ...]


# --- the daemon under the sampler --------------------------------------------------------------------


def be_daemon(out: str, arguments: list[str]) -> int:
    """Run the daemon; its stacks, with how often each was seen, are in the file `out` when it ends."""
    from ifbusd.__main__ import main as ifbusd

    seen: collections.Counter[Stack] = collections.Counter()
    is_looking = False

    def look(_signal: int, frame: FrameType | None) -> None:
        if not is_looking:
            return
        stack = []
        while frame is not None:
            code = frame.f_code
            stack.append((code.co_filename, code.co_qualname, frame.f_lineno))
            frame = frame.f_back
        seen[tuple(stack)] += 1

    def be_told(number: int, _frame: FrameType | None) -> None:
        nonlocal is_looking
        is_looking = number == signal.SIGUSR1

    for number, handler in ((signal.SIGPROF, look), (signal.SIGUSR1, be_told), (signal.SIGUSR2, be_told)):
        signal.signal(number, handler)
        signal.siginterrupt(number, False)  # the daemon is to see nothing of it
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
    status = ifbusd(arguments)
    Path(out).write_text(json.dumps([[count, stack] for stack, count in seen.items()]))
    return status


def stage_of(stack: list[tuple[str, str, int]]) -> str:
    """The stage that a stack, innermost frame first, belongs to."""
    for path, function, number in stack:
        for stage, is_path, is_function, is_line in STAGES:
            if (
                is_path.search(path)
                and is_function.search(function)
                and (not is_line.pattern or is_line.search(linecache.getline(path, number)))
            ):
                return stage
        # Everything stands on trio in the end: what is ours and has no row must not be taken for it.
        if _OURS.search(path) and not _LENT.search(path):
            return OTHER
    return OTHER


# --- what it does meanwhile --------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Work:
    """What the clients did while the sampler looked."""

    calls: int
    wall_us: float
    client_cpu_us: float
    server_cpu_us: float


class Watched:
    """Says to the sampler when to look, and counts what was used meanwhile."""

    def __init__(self, server: servers.Server) -> None:
        self._server = server
        self.done: list[Work] = []

    def tell(self, crew: Crew, *command: Any) -> None:
        """Let a crew do something while the sampler looks."""
        os.kill(self._server.pid, signal.SIGUSR1)
        before_us = self._server.cpu_us
        answers: list[tuple[Timed, float]] = crew.tell(*command)
        used_us = self._server.cpu_us - before_us
        os.kill(self._server.pid, signal.SIGUSR2)
        timed = together([one for one, _ in answers])
        calls = len(timed.latencies_us)
        self.done.append(
            Work(
                calls=calls,
                wall_us=sum(timed.latencies_us) / len(answers),
                client_cpu_us=sum(cpu for _, cpu in answers),
                server_cpu_us=used_us,
            )
        )

    def per_call(self, figure: str) -> float:
        """The mean of all calls."""
        return float(sum(getattr(work, figure) for work in self.done) / sum(work.calls for work in self.done))


def with_own_cpu(act: Callable[..., Timed | None]) -> Callable[..., tuple[Timed | None, float]]:
    """What it does, and how much of this process's time it takes."""

    def timed(*command: Any) -> tuple[Timed | None, float]:
        before_s = time.process_time()
        answer = act(*command)
        return answer, (time.process_time() - before_s) * 1e6

    return timed


def pinger(address: str, _number: int) -> Callable[..., Any]:
    """A client that pings."""
    call = ping_of(IFBUSD, address)
    call()
    return with_own_cpu(partial(time_calls, call))


def claimer(address: str, run: int, number: int) -> Callable[..., Any]:
    """A client that claims."""
    return with_own_cpu(Claimer(address, run, number))


def ping(server: servers.Server, watched: Watched, clients: int, calls: int, place: Placement, _run: int) -> None:
    """Pings, one after the other."""
    with Crew(clients, place.client, partial(pinger, server.address)) as crew:
        watched.tell(crew, calls // clients)


def claim(server: servers.Server, watched: Watched, clients: int, calls: int, place: Placement, run: int) -> None:
    """Claims; creating and completing tasks is not looked at."""
    with Crew(clients, place.client, partial(claimer, server.address, run)) as crew:
        for _ in range(max(1, calls // clients // BURST)):
            crew.tell("prepare", BURST)
            watched.tell(crew, "claim", BURST)
            crew.tell("complete", BURST)


# --- the benchmark -----------------------------------------------------------------------------------


def profile(
    table: Table, act: Callable[..., None], clients: int, calls: int, place: Placement, number: int
) -> collections.Counter[str]:
    """One round: a daemon, its work, and a row for each stage; what no stage names, by function."""
    with tempfile.TemporaryDirectory(prefix="ifbus-where-", dir=servers.DISK) as directory:
        out = Path(directory) / "stacks.json"
        with servers.ifbusd(Path(directory), program=(str(servers.HERE / "where.py"), "--daemon", str(out))) as server:
            server.pin(place.server)
            watched = Watched(server)
            act(server, watched, clients, calls, place, number)
        stacks: list[tuple[int, list[tuple[str, str, int]]]] = json.loads(out.read_text())
    seen: collections.Counter[str] = collections.Counter()
    unnamed: collections.Counter[str] = collections.Counter()
    for count, stack in stacks:
        stage = stage_of(stack)
        seen[stage] += count
        if stage == OTHER:
            path, function, _ = stack[0]
            unnamed[f"{Path(path).name}: {function}"] += count
    samples, server_us = max(1, seen.total()), watched.per_call("server_cpu_us")
    client_us, wall_us = watched.per_call("client_cpu_us"), watched.per_call("wall_us") * clients
    for stage in dict.fromkeys([*(stage for stage, *_ in STAGES), OTHER]):
        share = seen[stage] / samples
        table.add(stage, {"us": share * server_us, "percent": 100 * share, "samples": seen[stage]})
    table.add("daemon", {"us": server_us, "percent": 100.0, "samples": samples})
    table.add(CLIENT, {"us": client_us})
    if clients == 1:
        table.add(REST, {"us": wall_us - server_us - client_us})
        table.add("client waits", {"us": wall_us})
    return unnamed


def measure(report: Report, options: argparse.Namespace) -> None:
    """Each scenario; a round is a daemon of its own."""
    *_, many = sizes_of(options)
    works: list[tuple[str, Callable[..., None], int, int]] = [
        ("ping", ping, 1, 100_000),
        ("claim", claim, 1, 8_000),
        ("claim", claim, many, 16_384),
    ]
    for name, act, clients, calls in works:
        title = f"{name}, {clients} client{'s' if clients > 1 else ''}"
        for place in placements():
            table = Table(title=f"where: {title}, {place.title}", floor="")
            unnamed: collections.Counter[str] = collections.Counter()
            for number in range(rounds_of(options)):
                unnamed += profile(table, act, clients, calls // 50 if options.quick else calls, place, number)
            report.keep(table)
            if unnamed:
                print(f"  {OTHER}: " + ", ".join(f"{name} {count}" for name, count in unnamed.most_common(5)))


def main() -> None:
    """Measure, print, and write JSON."""
    options = parser(str(__doc__), rounds=3).parse_args()
    report = Report("where", options)
    measure(report, options)
    for title, table in report.tables.items():
        report.limit(
            f"{title.removeprefix('where: ')}, samples that no stage names",
            table.median(OTHER, "percent"),
            5,
            unit=" %",
        )
    report.write()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--daemon"]:
        sys.exit(be_daemon(sys.argv[2], sys.argv[3:]))
    main()

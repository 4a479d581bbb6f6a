"""From the start of the process to the first ping answered, and what is resident then, beside Python and a bare server.

The client tries to connect as soon as there is a process, again and again; then it pings. Nothing is kept between two starts
but what the operating system caches. The daemon's state directory is new each time, so the store is made as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import servers
from callers import request_of
from harness import ONE_CORE, Placement, Report, Round, cpu_us, family, parser, pinned, placements, rss_mib

PYTHON, BARE, IFBUSD = "python -c pass", "bare", "ifbusd"
FAMILY: Final = "ifbusd with its children"
# Between two attempts to connect: well below what is measured, and no burden on the one core that both may share.
_AGAIN_S: Final = 0.001


def python_run(place: Placement) -> Mapping[str, Round]:
    """The interpreter alone, there and back."""
    with pinned(place.server):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        took_s = time.monotonic() - began
    return {PYTHON: Round(latencies_us=[took_s * 1e6], wall_s=took_s)}


def server_run(name: str, command: Sequence[str], place: Placement) -> Mapping[str, Round]:
    """Start a server, ping it, end it."""
    directory = Path(tempfile.mkdtemp(prefix="ifbus-start-", dir=servers.DISK))
    path = directory / "s"
    told = [word.format(socket=path, state=directory / "state") for word in command]
    try:
        with pinned(place.client):
            began = time.monotonic()
            with subprocess.Popen(
                [sys.executable, *told],
                stdout=subprocess.DEVNULL,
                preexec_fn=partial(os.sched_setaffinity, 0, {place.server}),
            ) as process:
                try:
                    _ping(path, process)
                    took_s = time.monotonic() - began
                    spent_us, resident = cpu_us(process.pid), rss_mib(process.pid)
                    everybody = sum(_share_mib(pid) for pid in family(process.pid))
                finally:
                    process.terminate()
                    process.wait(servers.START_S)
    finally:
        shutil.rmtree(directory)
    one = Round(latencies_us=[took_s * 1e6], wall_s=took_s, server_cpu_us=spent_us, rss_mib=resident)
    if name != IFBUSD:
        return {name: one}
    return {name: one, FAMILY: Round(latencies_us=[took_s * 1e6], wall_s=took_s, rss_mib=everybody)}


def _ping(path: Path, process: subprocess.Popen[bytes]) -> None:
    import socket

    while True:
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            sock.connect(str(path))
            request_of(sock)("daemon.ping")
            return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        time.sleep(_AGAIN_S)


def _share_mib(pid: int) -> float:
    """Resident memory of one process; what several share is divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Measure, print, and write JSON."""
    options = parser(str(__doc__), rounds=15).parse_args()
    report = Report("startup", options)
    bare = [str(servers.HERE / "bare.py"), "echo", "{socket}"]
    ours = ["-m", "ifbusd", "--dev", "--state", "{state}", "--socket", "{socket}"]
    for place in placements():
        report.measure(
            f"start to first reply, {place.title}",
            [
                partial(python_run, place),
                partial(server_run, BARE, bare, place),
                partial(server_run, IFBUSD, ours, place),
            ],
            floor=BARE,
        )
    table = report.tables[f"start to first reply, {ONE_CORE}"]
    report.limit("one core, start to first reply", table.median(IFBUSD, "p50_us") / 1000, 400, unit=" ms")
    report.limit("resident after the start", table.median(IFBUSD, "rss_mib"), 70, unit=" MiB")
    report.write()


if __name__ == "__main__":
    main()

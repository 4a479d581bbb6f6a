"""Loaded by the interpreter of a daemon whose clocks a proof sets (this directory is in its PYTHONPATH).

The page that `CLOCKS_AT` names says by how many nanoseconds the wall clock, and the clock that goes on through suspend, are off;
`tests.proof.clocks` writes it while the daemon runs. Nothing else of the daemon is touched.
"""

import mmap
import os
import struct
import time

_OFF = struct.Struct("=qq")


def _set_clocks(path: str) -> None:
    with open(path, "rb") as file:
        page = mmap.mmap(file.fileno(), _OFF.size, access=mmap.ACCESS_READ)
    wall_ns, clock_ns = time.time_ns, time.clock_gettime_ns

    def time_ns() -> int:
        return wall_ns() + int(_OFF.unpack(page[: _OFF.size])[0])

    def clock_gettime_ns(clock: int) -> int:
        off_ns = int(_OFF.unpack(page[: _OFF.size])[1]) if clock == time.CLOCK_BOOTTIME else 0
        return clock_ns(clock) + off_ns

    time.time_ns, time.time, time.clock_gettime_ns = time_ns, lambda: time_ns() / 1e9, clock_gettime_ns


# Only in the daemon itself, not in what it starts.
if _PATH := os.environ.pop("CLOCKS_AT", ""):
    _set_clocks(_PATH)

"""What the daemon says to zygote and workers first. Light for both sides: without wasmtime, and without attrs, which would be
a quarter of the zygote's start.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# The zygote is asked for a worker.
FORK: Final = b"fork"


class ServeOrder(NamedTuple):
    """Load the code that comes with this, lock down, then answer executions.

    Attributes:
        daemon_pid: Whom to die with.
        cpu_s: Processor seconds after which the kernel ends the worker.
        uid: Own user id, or None to keep the daemon's.
    """

    kind: str
    export: str
    memory_bytes: int
    output_bytes: int
    cpu_s: int
    uid: int | None
    daemon_pid: int


class CompileOrder(NamedTuple):
    """Compile the module in the first descriptor that comes with this into the second, then end.

    Attributes:
        cpu_s, data_bytes, code_bytes: Limits on processor time, memory and the result.
        parallel: Whether it may start threads.
    """

    kind: str
    cpu_s: int
    data_bytes: int
    code_bytes: int
    parallel: bool
    uid: int | None
    daemon_pid: int

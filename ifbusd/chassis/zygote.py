"""The zygote: a small, single-threaded process with wasmtime loaded that forks one worker per request.

Started by exec before the daemon reads any key, with a scrubbed environment: nothing in its memory is worth stealing. It
forks twice, so that a worker's parent is the daemon (a child subreaper): the worker dies with the daemon, is reaped by it,
and does not notice when the zygote goes.
"""

from __future__ import annotations

import gc
import os
import socket
import sys

import wasmtime

from ifbusd.chassis import guest, lockdown, worker
from ifbusd.chassis.engine import fingerprint, make_engine
from ifbusd.chassis.messages import pack
from ifbusd.chassis.orders import FORK


def main(descriptor: int, daemon_pid: int) -> None:
    """Serve fork requests on the socket `descriptor` until the daemon closes it or ends.

    Its first message says what it has: for which engine code must be compiled, and what locks a worker down.
    """
    lockdown.die_with_parent(daemon_pid)
    channel = socket.socket(fileno=descriptor)
    host = guest.Host(make_engine())
    _warm_up(host.engine)
    lockdown.prepare()
    # What lives now is shared by all workers and need not be looked at by their collectors.
    gc.freeze()
    channel.send(pack([fingerprint(), lockdown.summary()]))
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, len(FORK), 1)
        if not request:
            return
        with socket.socket(fileno=descriptors[0]) as worker_end:
            channel.send(pack([_fork_worker(worker_end, host)]))


def _warm_up(engine: wasmtime.Engine) -> None:
    # Signal handlers and lazily made tables of wasmtime: once here instead of in each worker.
    module = wasmtime.Module(engine, '(module (memory (export "memory") 1) (func (export "run")))')
    store = wasmtime.Store(engine)
    run = wasmtime.Instance(store, module, []).exports(store)["run"]
    assert isinstance(run, wasmtime.Func)
    run(store)


def _fork_worker(worker_end: socket.socket, host: guest.Host) -> int:
    """Pid of a new worker whose parent is, by the time this returns, the daemon; 0 if the system has no room for it."""
    reading, writing = os.pipe()
    intermediate = os.fork()
    if intermediate == 0:
        # Whatever happens here, this copy must not go on as a second zygote.
        try:
            pid = os.fork()
            if pid == 0:
                worker.main(worker_end, host)
            os.write(writing, pid.to_bytes(4, "little"))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        return int.from_bytes(os.read(reading, 4), "little")
    finally:
        os.close(reading)
        os.waitpid(intermediate, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

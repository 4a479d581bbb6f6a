"""A worker process: takes one order over its socket, locks itself down, then serves executions or compiles one module.

It is a child of the daemon (the zygote's intermediate process has ended), so the kernel kills it with the daemon, and it
outlives the zygote. Orders are arrays: ``["serve", ...]`` with the sealed code, ``["compile", ...]`` with module and output.
"""

from __future__ import annotations

import os
import socket
from itertools import pairwise
from typing import Any, Final, NoReturn

import wasmtime
from wasmtime import component

from ifbusd.chassis import guest, lockdown
from ifbusd.chassis.engine import make_engine
from ifbusd.chassis.messages import MAX_MESSAGE_BYTES, clip, pack, unpack
from ifbusd.chassis.orders import CompileOrder, ServeOrder

# Interpreter, wasmtime and our buffers, on top of what a guest may have (FACTS 3: 24 MiB is enough, 8 is not).
HOST_DATA_BYTES: Final = 64 << 20
_READ_BYTES: Final = 1 << 20


def main(channel: socket.socket, host: guest.Host) -> NoReturn:
    """Run a freshly forked worker to its end.

    Args:
        host: What the zygote has made ready for guests.
    """
    status = 1
    try:
        channel = _keep_only(channel)
        data, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE_BYTES, 2)
        if data:
            role, *fields = unpack(data)
            if role == "serve":
                _serve(channel, host, ServeOrder(*fields), *descriptors)
            else:
                _compile(channel, CompileOrder(*fields), *descriptors)
        status = 0
    finally:
        # No exit handlers, no flushing of buffers that belong to the zygote.
        os._exit(status)


def _keep_only(channel: socket.socket) -> socket.socket:
    # Nothing of the zygote's stays open, standard error included: a guest has no way to write into our log.
    os.dup2(channel.fileno(), 0)
    channel.detach()
    for below, above in pairwise([0, *sorted(lockdown.held()), os.sysconf("SC_OPEN_MAX")]):
        os.closerange(below + 1, above)
    return socket.socket(fileno=0)


def _serve(channel: socket.socket, host: guest.Host, order: ServeOrder, code: int) -> None:
    try:
        layers = lockdown.restrict(
            lockdown.Limits(data_bytes=order.memory_bytes + HOST_DATA_BYTES, cpu_s=order.cpu_s, uid=order.uid)
        )
        lockdown.die_with_parent(order.daemon_pid)
        lockdown.allow_mapping_code()
        loaded = guest.load(
            host,
            f"/proc/self/fd/{code}",
            kind=order.kind,
            export=order.export,
            memory_bytes=order.memory_bytes,
            output_bytes=order.output_bytes,
        )
        os.close(code)
        lockdown.forbid_descriptors_and_tasks(threads=False)
        layers += lockdown.forbid_new_code()
    except lockdown.LockdownError as error:
        _send(channel, ["failed", "lockdown", clip(str(error))])
    except guest.InvalidGuest as error:
        _send(channel, ["failed", "invalid", clip(str(error))])
    except wasmtime.WasmtimeError as error:
        _send(channel, ["failed", "code", clip(str(error))])
    else:
        _send(channel, ["ready", layers])
        _answer_until_closed(channel, loaded)


def _answer_until_closed(channel: socket.socket, loaded: guest.Guest) -> None:
    buffer = bytearray(MAX_MESSAGE_BYTES)
    view = memoryview(buffer)
    while size := channel.recv_into(buffer):
        execution, text = unpack(view[:size])
        try:
            status, output, message, memory_bytes = loaded.run(text)
        except MemoryError:
            # The process is at its limit: whatever it does next may fail, so it says so and ends.
            _send(channel, [execution, "memory", b"", "the sandbox ran out of memory", 0])
            return
        _send(channel, [execution, status, output, message, memory_bytes])
        os.sched_yield()  # whoever waits for the answer goes first
        loaded.prepare()


def _compile(channel: socket.socket, order: CompileOrder, module: int, output: int) -> None:
    limits = lockdown.Limits(
        data_bytes=order.data_bytes,
        cpu_s=order.cpu_s,
        file_bytes=order.code_bytes,
        threads=order.parallel,
        uid=order.uid,
    )
    try:
        lockdown.restrict(limits)
        lockdown.die_with_parent(order.daemon_pid)
        engine = make_engine(parallel_compilation=order.parallel)
        lockdown.forbid_descriptors_and_tasks(threads=order.parallel)
        lockdown.allow_compiling(limits)
        source = b"".join(iter(lambda: os.read(module, _READ_BYTES), b""))
        compiled = component.Component(engine, source) if order.kind == "component" else wasmtime.Module(engine, source)
        del source
        code = memoryview(compiled.serialize())
        while code:
            code = code[os.write(output, code) :]
    except lockdown.LockdownError as error:
        _send(channel, ["failed", "lockdown", clip(str(error))])
    except wasmtime.WasmtimeError as error:
        _send(channel, ["failed", "invalid", clip(str(error))])
    except MemoryError:
        _send(channel, ["failed", "memory", "out of memory"])
    except OSError as error:  # EFBIG at RLIMIT_FSIZE
        _send(channel, ["failed", "code_bytes", clip(str(error))])
    else:
        _send(channel, ["compiled"])


def _send(channel: socket.socket, message: list[Any]) -> None:
    channel.send(pack(message))

"""WASI preview 1 for commands: arguments, standard streams in memory, clocks, randomness, exit; nothing else exists.

Our own instead of wasmtime-wasi because that starts threads and needs a wider system call list (ADR 0010). No descriptor
beyond 0, 1 and 2 can ever be opened, so the whole file and socket part answers EBADF.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import wasmtime
from wasmtime import FuncType, ValType

MODULE: Final = "wasi_snapshot_preview1"

# Error numbers of WASI preview 1.
_SUCCESS: Final = 0
_EBADF: Final = 8
_EFAULT: Final = 21
_EINVAL: Final = 28
_ENOSYS: Final = 52
_ESPIPE: Final = 70

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_FILETYPE_CHARACTER_DEVICE: Final = 2
_RIGHTS: Final = {_STDIN: 1 << 1, _STDOUT: 1 << 6, _STDERR: 1 << 6}  # fd_read; fd_write

# A guest may ask for more by asking again; one call stays short (CVE-2026-27204 is the other way).
_MAX_RANDOM_BYTES: Final = 64 << 10
_MAX_IOVECS: Final = 1024
STDERR_BYTES: Final = 4096

I32, I64 = ValType.i32(), ValType.i64()


class GuestExit(Exception):
    """The guest called proc_exit."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


class OutputFull(Exception):
    """The guest wrote more than it may."""


class _Fault(Exception):
    """A pointer of the guest's leads out of its memory."""


class Streams:
    """Standard streams of one execution: input given, output bounded, errors cut off silently."""

    def __init__(self, stdin: bytes, output_bytes: int) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._stdin = stdin
        self._read_at = 0
        self._output_bytes = output_bytes

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of standard input; empty at its end."""
        data = self._stdin[self._read_at : self._read_at + size]
        self._read_at += len(data)
        return data

    def room(self) -> int:
        """Bytes that standard output still takes."""
        return self._output_bytes - len(self.stdout)

    def write(self, data: bytes) -> None:
        """Add to standard output.

        Raises:
            OutputFull: That is more than allowed.
        """
        if len(data) > self.room():
            raise OutputFull
        self.stdout += data

    def complain(self, data: bytes) -> None:
        """Add to standard error, as far as it goes."""
        self.stderr += data[: max(0, STDERR_BYTES - len(self.stderr))]


class _Memory:
    """The guest's memory for the length of one host call: every access is checked against its size of this moment."""

    def __init__(self, caller: wasmtime.Caller) -> None:
        memory = caller.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            raise _Fault
        self._size = memory.data_len(caller)
        self._base = ctypes.addressof(memory.data_ptr(caller).contents) if self._size else 0

    def read(self, at: int, size: int) -> bytes:
        return ctypes.string_at(self._address(at, size), size)

    def write(self, at: int, data: bytes) -> None:
        ctypes.memmove(self._address(at, len(data)), data, len(data))

    def read_u32s(self, at: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", self.read(at, 4 * count))

    def write_u32(self, at: int, value: int) -> None:
        self.write(at, struct.pack("<I", value))

    def write_u64(self, at: int, value: int) -> None:
        self.write(at, struct.pack("<Q", value))

    def iovecs(self, at: int, count: int) -> list[tuple[int, int]]:
        if count > _MAX_IOVECS:
            raise _Fault
        flat = self.read_u32s(at, 2 * count)
        return list(zip(flat[::2], flat[1::2], strict=True))

    def _address(self, at: int, size: int) -> int:
        if at + size > self._size:
            raise _Fault
        return self._base + at


class Preview1:
    """The functions, defined once in a linker. The mutable state: the streams of the current execution, and how many calls
    of functions there were that do not always answer the same."""

    def __init__(self) -> None:
        self.streams = Streams(b"", 0)
        self.calls = 0
        self._functions: dict[str, tuple[list[ValType], Callable[..., int]]] = {
            "args_sizes_get": ([I32, I32], self._empty_sizes),
            "args_get": ([I32, I32], self._nothing),
            "environ_sizes_get": ([I32, I32], self._empty_sizes),
            "environ_get": ([I32, I32], self._nothing),
            "clock_res_get": ([I32, I32], self._clock_res_get),
            "clock_time_get": ([I32, I64, I32], self._clock_time_get),
            "random_get": ([I32, I32], self._random_get),
            "fd_read": ([I32, I32, I32, I32], self._fd_read),
            "fd_write": ([I32, I32, I32, I32], self._fd_write),
            "fd_close": ([I32], self._fd_close),
            "fd_seek": ([I32, I64, I32, I32], self._fd_seek),
            "fd_fdstat_get": ([I32, I32], self._fd_fdstat_get),
            "sched_yield": ([], self._nothing),
        }

    def define(self, linker: wasmtime.Linker) -> None:
        """Define every function of ours."""
        linker.define_func(MODULE, "proc_exit", FuncType([I32], []), _proc_exit)
        for name, (params, function) in self._functions.items():
            linker.define_func(MODULE, name, FuncType(params, [I32]), self._checked(function), access_caller=True)

    def define_others(self, linker: wasmtime.Linker, imports: Sequence[wasmtime.ImportType]) -> None:
        """Let what a module imports from WASI besides answer EBADF or ENOSYS, under the type that it is imported with."""
        wanted = {imported.name: imported.type for imported in imports}
        for name, kind in wanted.items():
            if name is None or name == "proc_exit" or name in self._functions or not isinstance(kind, FuncType):
                continue
            if [str(result) for result in kind.results] == ["i32"]:
                answer = _EBADF if name.startswith(("fd_", "path_", "sock_")) else _ENOSYS
                linker.define_func(MODULE, name, kind, lambda *_, answer=answer: answer)

    def _checked(self, function: Callable[..., int]) -> Callable[..., int]:
        # wasm's i32 come as signed ints: pointers, sizes and descriptors are unsigned.
        def call(caller: wasmtime.Caller, *arguments: Any) -> int:
            self.calls += 1
            try:
                return function(_Memory(caller), *(argument & 0xFFFF_FFFF for argument in arguments))
            except _Fault:
                return _EFAULT

        return call

    def _nothing(self, memory: _Memory, *_: int) -> int:
        return _SUCCESS

    def _empty_sizes(self, memory: _Memory, count_at: int, size_at: int) -> int:
        memory.write_u32(count_at, 0)
        memory.write_u32(size_at, 0)
        return _SUCCESS

    def _clock_res_get(self, memory: _Memory, clock: int, at: int) -> int:
        if clock > 3:
            return _EINVAL
        memory.write_u64(at, 1000)
        return _SUCCESS

    def _clock_time_get(self, memory: _Memory, clock: int, precision: int, at: int) -> int:
        clocks = (time.time_ns, time.monotonic_ns, time.process_time_ns, time.thread_time_ns)
        if clock >= len(clocks):
            return _EINVAL
        memory.write_u64(at, clocks[clock]())
        return _SUCCESS

    def _random_get(self, memory: _Memory, at: int, size: int) -> int:
        if size > _MAX_RANDOM_BYTES:
            return _EINVAL
        memory.write(at, os.urandom(size))
        return _SUCCESS

    def _fd_read(self, memory: _Memory, fd: int, iovecs_at: int, count: int, done_at: int) -> int:
        if fd != _STDIN:
            return _EBADF
        done = 0
        for at, size in memory.iovecs(iovecs_at, count):
            data = self.streams.read(size)
            memory.write(at, data)
            done += len(data)
            if len(data) < size:
                break
        memory.write_u32(done_at, done)
        return _SUCCESS

    def _fd_write(self, memory: _Memory, fd: int, iovecs_at: int, count: int, done_at: int) -> int:
        if fd not in (_STDOUT, _STDERR):
            return _EBADF
        done = 0
        for at, size in memory.iovecs(iovecs_at, count):
            if fd == _STDOUT:
                if size > self.streams.room():  # before the copy: the guest chooses the size
                    raise OutputFull
                self.streams.write(memory.read(at, size))
            else:
                self.streams.complain(memory.read(at, min(size, STDERR_BYTES)))
            done += size
        memory.write_u32(done_at, done & 0xFFFF_FFFF)
        return _SUCCESS

    def _fd_close(self, memory: _Memory, fd: int) -> int:
        return _SUCCESS if fd in _RIGHTS else _EBADF

    def _fd_seek(self, memory: _Memory, fd: int, *_: int) -> int:
        return _ESPIPE if fd in _RIGHTS else _EBADF

    def _fd_fdstat_get(self, memory: _Memory, fd: int, at: int) -> int:
        if fd not in _RIGHTS:
            return _EBADF
        memory.write(at, struct.pack("<BxHxxxxQQ", _FILETYPE_CHARACTER_DEVICE, 0, _RIGHTS[fd], 0))
        return _SUCCESS


def _proc_exit(status: int) -> None:
    raise GuestExit(status & 0xFFFF_FFFF)

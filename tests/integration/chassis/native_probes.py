"""Plays native code in a locked worker, as if wasm had been escaped; prints what came of each attempt as JSON.

Run as a program with the path of a listening Unix socket; another one listens at the same name, abstract. Each attempt has a
forked process of its own, locked by the same functions that lock a worker: all of them, all but one, or only those before
the first system call filter.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial

import seccompy

from ifbusd.chassis import lockdown

LAYERS = ("rlimits", "uid", "landlock", "seccomp")
# A worker of the daemon's own user before its filters: all that stops it is Landlock, from these, with these refusals. Others
# are not tried so: where they are let through, they would harm more than this process.
UNFILTERED = "unfiltered"
BY_LANDLOCK = {
    "open a file": "EACCES",
    "create a file": "EACCES",
    "remove a file": "EACCES",
    "run a program": "EACCES",
    "connect by TCP": "EACCES",
    "connect to an abstract socket": "EPERM",
    "signal the daemon": "EPERM",
}
X32 = 0x4000_0000
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_PARENT = os.getpid()
_LIMITS = lockdown.Limits(data_bytes=128 << 20, cpu_s=5)
_UID = 0x7FFE_1234
_AT_FDCWD = -100
_PAGE = 4096


def call(name: str | int, *arguments: object) -> int:
    """A raw system call; its errno, 0 when it was let through."""
    number = name if isinstance(name, int) else seccompy.syscall_nr(name)
    ctypes.set_errno(0)
    return ctypes.get_errno() if _LIBC.syscall(number, *arguments) < 0 else 0


def _connect(family: int, kind: int, address: bytes) -> int:
    descriptor = _LIBC.syscall(seccompy.syscall_nr("socket"), family, kind, 0)
    if descriptor < 0:
        return ctypes.get_errno()
    return call("connect", descriptor, address, len(address))


def _send_datagram() -> int:
    descriptor = _LIBC.syscall(seccompy.syscall_nr("socket"), socket.AF_INET, socket.SOCK_DGRAM, 0)
    if descriptor < 0:
        return ctypes.get_errno()
    address = struct.pack("<HH4s8x", socket.AF_INET, socket.htons(9), socket.inet_aton("127.0.0.1"))
    return call("sendto", descriptor, b"x", 1, 0, address, len(address))


def _executable_page() -> int:
    page = _LIBC.mmap(0, _PAGE, 3, 0x22, -1, 0)
    return call("mprotect", ctypes.c_void_p(page), _PAGE, 5)


def _thread() -> int:
    stack = ctypes.create_string_buffer(1 << 16)
    flags = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000  # VM FS FILES SIGHAND THREAD
    # Nobody may run on that stack: a child that came to be would crash, and the process with it.
    return call("clone", flags, ctypes.c_void_p(ctypes.addressof(stack) + 65528), 0, 0, 0)


def _iovec(size: int = 8) -> ctypes.Array[ctypes.c_char]:
    target = ctypes.create_string_buffer(size)
    return ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(target), size))


def probes(socket_path: str) -> dict[str, Callable[[], int]]:
    """Name of an attempt to the attempt; each gives an errno, 0 for success."""
    inet = struct.pack("<HH4s8x", socket.AF_INET, socket.htons(9), socket.inet_aton("127.0.0.1"))
    path = struct.pack("<H", socket.AF_UNIX) + socket_path.encode() + b"\0"
    abstract = struct.pack("<H", socket.AF_UNIX) + b"\0" + socket_path.encode()
    return {
        "open a file": lambda: call("openat", _AT_FDCWD, b"/etc/passwd", os.O_RDONLY),
        "create a file": lambda: call("openat", _AT_FDCWD, b"/tmp/escaped", os.O_WRONLY | os.O_CREAT, 0o644),
        "stat a file": lambda: call("newfstatat", _AT_FDCWD, b"/", ctypes.create_string_buffer(256), 0),
        "change a file's mode": lambda: call("fchmodat", _AT_FDCWD, socket_path.encode(), 0o777),
        "remove a file": lambda: call("unlinkat", _AT_FDCWD, socket_path.encode(), 0),
        "read a link": lambda: call("readlinkat", _AT_FDCWD, b"/proc/self/exe", ctypes.create_string_buffer(64), 64),
        "connect to our socket": lambda: _connect(socket.AF_UNIX, socket.SOCK_STREAM, path),
        "connect to an abstract socket": lambda: _connect(socket.AF_UNIX, socket.SOCK_STREAM, abstract),
        "connect by TCP": lambda: _connect(socket.AF_INET, socket.SOCK_STREAM, inet),
        "send by UDP": _send_datagram,
        "open a raw socket": lambda: call("socket", socket.AF_INET, socket.SOCK_RAW, 1),
        "open a netlink socket": lambda: call("socket", 16, socket.SOCK_RAW, 0),
        "make a socket pair": lambda: call("socketpair", 1, 1, 0, ctypes.create_string_buffer(8)),
        "signal the daemon": lambda: call("kill", _PARENT, int(signal.SIGURG)),
        "trace the daemon": lambda: call("ptrace", 16, _PARENT, 0, 0),
        "read the daemon's memory": lambda: call("process_vm_readv", _PARENT, _iovec(), 1, _iovec(), 1, 0),
        "hold the daemon": lambda: call("pidfd_open", _PARENT, 0),
        "fork": lambda: call("clone", int(signal.SIGCHLD), 0, 0, 0, 0),
        "start a thread": _thread,
        "run a program": lambda: call("execve", b"/bin/true", None, None),
        "map executable memory": lambda: call("mmap", 0, _PAGE, 7, 0x22, -1, 0),
        "make memory executable": _executable_page,
        "map shared memory": lambda: call("mmap", 0, _PAGE, 3, 0x21, -1, 0),
        "make a memory file": lambda: call("memfd_create", b"x", 0),
        "set up io_uring": lambda: call("io_uring_setup", 1, ctypes.create_string_buffer(120)),
        "set up userfaultfd": lambda: call("userfaultfd", 1),
        "load a BPF program": lambda: call("bpf", 0, ctypes.create_string_buffer(120), 120),
        "watch performance": lambda: call("perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0),
        "make a user namespace": lambda: call("unshare", 0x1000_0000),
        "mount": lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "become root": lambda: call("setresuid", 0, 0, 0),
        "raise a limit": lambda: call("prlimit64", 0, resource.RLIMIT_NOFILE, struct.pack("QQ", 64, 64), None),
        "pass a descriptor": lambda: call("sendmsg", 0, ctypes.create_string_buffer(56), 0),
        "receive a descriptor": lambda: call("recvmsg", 0, ctypes.create_string_buffer(56), 0x40),
        "duplicate a descriptor": lambda: call("dup", 0),
        "undo the parent's death": lambda: call("prctl", 1, 0, 0, 0, 0),
        "use a key ring": lambda: call("keyctl", 0, -3, 1, 0, 0),
        "use the x32 table": lambda: call(X32 | seccompy.syscall_nr("getpid")),
    }


def lock(without: str) -> None:
    """What a worker does, in its order, but for one layer."""
    if without != "rlimits":
        lockdown.set_rlimits(_LIMITS)
    if without != "uid" and os.geteuid() == 0:
        lockdown.become(_UID)
    lockdown.no_new_privileges()
    if without != "landlock":
        lockdown.deny_by_landlock()
    if without != "seccomp":
        lockdown.allow_mapping_code()
    if without != "rlimits":
        lockdown.forbid_descriptors_and_tasks(threads=False)
    if without != "seccomp":
        lockdown.forbid_new_code()


def attempt(probe: Callable[[], int], lock: Callable[[], object]) -> str:
    """``allowed``, the name of an errno, or of the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            lock()
            os._exit(probe())
        finally:
            os._exit(255)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    code = os.WEXITSTATUS(status)
    return "allowed" if code == 0 else errno.errorcode.get(code, f"exit {code}")


def main(socket_path: str) -> None:
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    lockdown.prepare()
    attempts = probes(socket_path)
    outcomes = {
        name: {without or "nothing": attempt(probe, partial(lock, without)) for without in ("", *LAYERS)}
        for name, probe in attempts.items()
    }
    for name in BY_LANDLOCK:
        outcomes[name][UNFILTERED] = attempt(attempts[name], partial(lockdown.restrict, _LIMITS))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1])

"""Locking a process down before it touches a stranger's code: rlimits, own uid, Landlock, seccomp (FACTS 1 to 3).

Each layer holds alone: the attack tests run with every single one switched off. Two seccomp filters are stacked: the
first stands before compiled code is mapped, the second forbids executable mappings after it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from functools import cache
from typing import Final, NamedTuple

import landlockpy
import seccompy
from seccompy import Action, ArgCmp, CmpOp, Filter

_PROT_EXEC: Final = 4
_MAP_SHARED: Final = 1
_CLONE_THREAD: Final = 0x0001_0000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

# The rights of Landlock ABI 6; what a newer kernel knows beyond it is handled too. Below it there is no scope for signals
# and abstract sockets, and we refuse to run guests instead of running them with less.
MIN_LANDLOCK_ABI: Final = 6

# What a guest, our WASI functions and Python itself need between lock-down and answer (FACTS 2).
_SERVE: Final = [
    "brk",
    "munmap",
    "mremap",
    "madvise",
    "futex",
    "sched_yield",
    "clock_nanosleep",
    "clock_gettime",
    "getrandom",
    "rt_sigreturn",
    "rt_sigprocmask",
    "sigaltstack",
    "read",
    "write",
    "recvfrom",
    "close",
    "getpid",
    "gettid",
    "restart_syscall",
    "exit",
    "exit_group",
]
# Mapping a sealed memfd by its /proc/self/fd name and locking on; Landlock stands by then, so nothing else opens.
_MAP_CODE: Final = [
    "openat",
    "readlinkat",
    "fstat",
    "newfstatat",
    "statx",
    "lseek",
    "pread64",
    "fcntl",
    "ioctl",
    "prctl",
    "prlimit64",
    "seccomp",
    "rt_sigaction",
]
# A compiler reads one descriptor and writes another.
_COMPILE: Final = ["lseek", "fstat", "newfstatat", "pread64", "sched_getaffinity", "seccomp", "prctl", "rt_sigaction"]
# Calls that the C library makes on x86-64 only.
_X86_ONLY: Final = ("open", "readlink", "access")


class LockdownError(Exception):
    """A layer could not be put up; the process must not run a guest."""


class Limits(NamedTuple):
    """Resource limits of one worker process, held by the kernel.

    Attributes:
        data_bytes: Private writable memory of the whole process, guest memory and interpreter together.
        cpu_s: Processor seconds until SIGXCPU; one more until SIGKILL.
        file_bytes: Longest file that may be written; 0 for a worker, the code's size limit for a compiler.
        threads: Whether it may start threads (a compiler that compiles in parallel).
        uid: Own user id, if the daemon runs as root; None: stay.
    """

    data_bytes: int
    cpu_s: int
    file_bytes: int = 0
    threads: bool = False
    uid: int | None = None


def prepare() -> None:
    """Do in the zygote what would cost each worker time: libc handles, programs of the filters, the rules of Landlock."""
    seccompy.supported()
    for build in (_code_filter, _serve_filter):
        build()
    if _landlock_abi() >= MIN_LANDLOCK_ABI:
        _landlock_rules()


def held() -> list[int]:
    """Descriptors that `restrict` needs, and closes."""
    return [_landlock_rules().fileno()] if _landlock_abi() >= MIN_LANDLOCK_ABI else []


def summary() -> str:
    """The layers that every worker gets, in a person's words."""
    return f"landlock {_landlock_abi()}, seccomp, rlimits"


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL this process when the process (and thread) `parent_pid` ends; at once if it has ended already."""
    if _libc().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise LockdownError(f"cannot tie the process to its parent: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:
        os._exit(0)


def restrict(limits: Limits) -> list[str]:
    """Limits, own uid and Landlock; names of the layers that stand afterwards. Still able to map code or to compile.

    Raises:
        LockdownError: A layer could not be put up.
    """
    layers = ["rlimits"]
    set_rlimits(limits)
    if limits.uid is not None:
        become(limits.uid)
        layers.append("uid")
    no_new_privileges()
    deny_by_landlock()
    return [*layers, "no_new_privs", f"landlock-{_landlock_abi()}"]


def allow_mapping_code() -> None:
    """First filter of a worker: what mapping compiled code needs, and what `forbid_new_code` needs."""
    _load(_code_filter())


def forbid_new_code() -> list[str]:
    """Last step of a worker: no executable or shared mapping, no file, socket, process, thread from here on."""
    _load(_serve_filter())
    return ["seccomp"]


def allow_compiling(limits: Limits) -> list[str]:
    """The only filter of a compiler: as a worker's, but it may make its own code executable, and threads if allowed."""
    _load(_compile_filter(threads=limits.threads))
    return ["seccomp"]


def set_rlimits(limits: Limits) -> None:
    """The limits that can stand before code is mapped; `forbid_descriptors_and_tasks` sets the rest."""

    def hold(what: int, soft: int, hard: int | None = None) -> None:
        resource.setrlimit(what, (soft, soft if hard is None else hard))

    hold(resource.RLIMIT_DATA, limits.data_bytes)
    hold(resource.RLIMIT_CORE, 0)
    hold(resource.RLIMIT_MEMLOCK, 0)
    hold(resource.RLIMIT_MSGQUEUE, 0)
    hold(resource.RLIMIT_SIGPENDING, 0)
    hold(resource.RLIMIT_FSIZE, limits.file_bytes)
    hold(resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + 1)


def forbid_descriptors_and_tasks(*, threads: bool) -> None:
    """No further descriptor, and no further task where the kernel counts them (any uid but root)."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    if not threads:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def become(uid: int) -> None:
    """Give up the daemon's user, its groups and every capability."""
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise LockdownError(f"cannot become uid {uid}: {error.strerror}") from error
    # A change of uid makes /proc/self root's, where the code's descriptor is opened by name.
    _libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def no_new_privileges() -> None:
    """No program gains rights by its file's; also what lets an unprivileged process restrict itself."""
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise LockdownError(f"cannot set no_new_privs: {os.strerror(ctypes.get_errno())}")


def deny_by_landlock() -> None:
    """Handle every right that the kernel knows and allow none: no file opens, no TCP, no signal or socket outward."""
    if _landlock_abi() < MIN_LANDLOCK_ABI:
        raise LockdownError(f"Landlock ABI {_landlock_abi()} of this kernel is below {MIN_LANDLOCK_ABI}")
    try:
        with _landlock_rules() as rules:
            rules.restrict()
    except OSError as error:
        raise LockdownError(f"cannot restrict by Landlock: {error.strerror}") from error


@cache
def _landlock_abi() -> int:
    return landlockpy.abi_version()


@cache
def _landlock_rules() -> landlockpy.Ruleset:
    # Of one set of rules each process that restricts itself gets a domain of its own: they are as far from each other as from us.
    abi = _landlock_abi()
    return landlockpy.Ruleset(
        handled_fs=landlockpy.fs_for_abi(abi),
        handled_net=landlockpy.net_for_abi(abi),
        scoped=landlockpy.scope_for_abi(abi),
        best_effort=False,
    )


@cache
def _serve_filter() -> Filter:
    return _build(_SERVE, executable=False)


@cache
def _code_filter() -> Filter:
    return _build([*_SERVE, *_MAP_CODE], executable=True)


def _compile_filter(*, threads: bool) -> Filter:
    rules = _build([*_SERVE, *_COMPILE], executable=True)
    # sysconf(_SC_NPROCESSORS) looks into /sys and /proc: it lives with a refusal.
    for name in ("openat", "statx", *(_X86_ONLY if seccompy.arch() == "x86_64" else ())):
        rules.errno(name, errno.EACCES)
    if threads:
        # clone3's flags are behind a pointer that a filter cannot read; ENOSYS makes glibc use clone.
        rules.errno("clone3", errno.ENOSYS)
        rules.allow("clone", args=[ArgCmp(0, CmpOp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD)])
        for name in ("set_robust_list", "rseq", "sched_setaffinity"):
            rules.allow(name)
    return rules


def _build(names: list[str], *, executable: bool) -> Filter:
    rules = Filter(default=Action.KILL_PROCESS, flags=seccompy.FilterFlag.TSYNC)
    for name in names:
        rules.allow(name)
    rules.allow("sendto", args={4: 0})  # on the connected socket only, never to an address
    private = ArgCmp(3, CmpOp.MASKED_EQ, 0, _MAP_SHARED)
    inert = ArgCmp(2, CmpOp.MASKED_EQ, 0, _PROT_EXEC)
    rules.allow("mmap", args=[private] if executable else [inert, private])
    rules.allow("mprotect", args=None if executable else [inert])
    rules.program  # noqa: B018 - compiled here, once, in the zygote
    return rules


def _load(rules: Filter) -> None:
    try:
        rules.load()
    except OSError as error:
        raise LockdownError(f"cannot load the system call filter: {error}") from error


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

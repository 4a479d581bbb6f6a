"""Processes held by descriptor (pidfd): who they are, whose ancestor, and whether they have ended.

A number says nothing: it is given to the next process as soon as its owner is reaped. Whatever is read here by number counts only
after the descriptor has said that the process was still there when it was read (FACTS 8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import struct
from typing import Final, NamedTuple

from ifbus.errors import IfbusError, InvalidParams, LimitExceeded, NotFound, PermissionDenied

# Descriptors that neither bindings nor connections take: for the store, the zygote, and a handful each for the sandboxes that run
# at once (`chassis.max_workers`).
DESCRIPTOR_RESERVE: Final = 256
# Far deeper than anybody's shells; a walk ends at the first process anyway.
_MAX_DEPTH: Final = 64
# struct pidfd_info, version 0 (64 bytes): mask, cgroup id, then pid, tgid, ppid and the ids of user and group.
_INFO: Final = struct.Struct("<QQ12I")
_PIDFD_GET_INFO: Final = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes), Linux 6.13
_WANT_PID_AND_IDS: Final = 0b11
# Answers of a kernel that does not know the request.
_UNKNOWN_REQUEST: Final = frozenset({errno.ENOTTY, errno.EINVAL})
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_NAME_CHARS: Final = 32


class Facts(NamedTuple):
    """A living process.

    Attributes:
        uids: Its real, effective and saved user.
    """

    pid: int
    ppid: int
    uids: frozenset[int]


class Unseen(Exception):
    """The process cannot be looked at: it has ended, or is in another pid namespace, or hidden from us."""


def look(pidfd: int) -> Facts:
    """What the kernel says of a process.

    Raises:
        Unseen: It does not.
    """
    # Without the request of Linux 6.13 by /proc, which a service may have to see with `ProtectProc=default`.
    request = bytearray(_INFO.pack(_WANT_PID_AND_IDS, 0, *[0] * 12))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError as error:
        if error.errno in _UNKNOWN_REQUEST:
            return _look_in_proc(pidfd)
        raise Unseen from error
    _, _, pid, tgid, ppid, real, _, effective, _, saved, *_ = _INFO.unpack(request)
    if pid != tgid:
        raise Unseen  # a thread
    return Facts(pid, ppid, frozenset((real, effective, saved)))


def _look_in_proc(pidfd: int) -> Facts:
    try:
        pid = int(_field(f"/proc/self/fdinfo/{pidfd}", "Pid:")[0])
        status = f"/proc/{pid}/status"
        facts = Facts(pid, int(_field(status, "PPid:")[0]), frozenset(map(int, _field(status, "Uid:")[:3])))
        is_thread = int(_field(status, "Tgid:")[0]) != pid
    except (OSError, ValueError, IndexError) as error:
        raise Unseen from error
    # Only now: as long as it lives its number is its own, so what was read by that number was read of it.
    if is_thread or has_ended(pidfd):
        raise Unseen
    return facts


def _field(path: str, name: str) -> list[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return next((line.split()[1:] for line in file if line.startswith(name)), [])


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended; reaped or not."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def is_pidfd(descriptor: int) -> bool:
    """Whether this is a descriptor of a process and not of something else."""
    link = os.readlink(f"/proc/self/fd/{descriptor}")
    return link == "anon_inode:[pidfd]" or link.startswith("pidfd:[")


def name_of(pid: int) -> str:
    """What the process calls itself, for people; ``""`` where that cannot be seen. It may say anything."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read(_NAME_CHARS + 1).rstrip("\n")[:_NAME_CHARS]
    except OSError:
        return ""
    return name if name.isprintable() else ""


def open_ancestor(descendant: int, pid: int, uid: int) -> int:
    """A descriptor of the process `pid`, if it is an ancestor of a living one and all of it belongs to `uid`.

    Each step is proven by descriptors: a process names its parent, the parent is opened, and the process names the same
    parent still; so the parent lived all the time, and the number meant it.

    Args:
        descendant: Descriptor of the process that has to be below it; stays open.

    Raises:
        PermissionDenied: It is no ancestor, or another user's.
        LimitExceeded: No descriptor is left.
    """
    below, is_ours = descendant, False
    try:
        for _ in range(_MAX_DEPTH):
            parent = look(below).ppid
            if parent <= 0:
                break
            opened = open_process(parent, bind=f"pid:{pid}")
            if look(below).ppid != parent:  # it lost its parent meanwhile: the number may be anybody's
                os.close(opened)
                continue
            if is_ours:
                os.close(below)
            below, is_ours = opened, True
            if parent == pid:
                require_user(below, uid, bind=f"pid:{pid}")
                is_ours = False
                return below
    except (Unseen, NotFound):
        pass  # whoever was on the way has ended: then nobody above is proven to be an ancestor
    finally:
        if is_ours:
            os.close(below)
    raise refused(f"pid:{pid}", "no_ancestor", f"pid {pid} is no ancestor of the caller's process")


def require_user(pidfd: int, uid: int, *, bind: str) -> Facts:
    """The facts of a process, if it is all `uid`'s.

    Raises:
        PermissionDenied: It is another user's, or cannot be seen.
    """
    try:
        facts = look(pidfd)
    except Unseen:
        raise refused(bind, "unseen", "that process has ended or cannot be seen") from None
    if facts.uids != {uid}:
        raise refused(bind, "other_user", f"pid {facts.pid} is not all of uid {uid}")
    return facts


def open_process(pid: int, *, bind: str) -> int:
    """A descriptor of whatever process has this number now.

    Raises:
        NotFound: None has.
        LimitExceeded: No descriptor is left.
    """
    try:
        return guarded(os.pidfd_open(pid), bind=bind)
    except OSError as error:
        raise translated(error, bind) from error


def guarded(descriptor: int, *, bind: str) -> int:
    """The descriptor, unless it is one of the last ones, which are not for bindings; then it is closed.

    Raises:
        LimitExceeded: It was.
    """
    if is_affordable(descriptor):
        return descriptor
    os.close(descriptor)
    raise exhausted(bind)


def reserve_of(allowed: int) -> int:
    """How many descriptors of so many are kept back; where the limit is low, not most of them."""
    return min(DESCRIPTOR_RESERVE, allowed // 3)


def is_affordable(descriptor: int) -> bool:
    """Whether this is none of the last descriptors that there are."""
    # The kernel gives the lowest free number, so the number tells how many are taken.
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return allowed == resource.RLIM_INFINITY or descriptor < allowed - reserve_of(allowed)


def translated(error: OSError, bind: str) -> IfbusError:
    """Our error for what the kernel says to an attempt to hold a process."""
    if error.errno in _EXHAUSTED:
        return exhausted(bind)
    if error.errno in (errno.ESRCH, errno.ENOENT):
        return ended(bind, 0)
    return InvalidParams(
        f"cannot bind: this kernel does not say which process that is ({error.strerror}; Linux 6.5 does)",
        data={"param": "bind", "bind": bind, "reason": "kernel"},
        would_change=[{"by": "self", "what": 'bind="lease": it then lives on its lease alone'}],
    )


def ended(bind: str, pid: int) -> NotFound:
    """The refusal of a process that is no more."""
    return NotFound(
        f"cannot bind: {f'pid {pid}' if pid else 'that process'} has ended",
        data={"bind": bind, "reason": "ended"},
        would_change=[{"by": "self", "what": "a process that lives, or bind=lease"}],
    )


def exhausted(bind: str) -> LimitExceeded:
    """The refusal where descriptors run short."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return LimitExceeded(
        f"cannot bind: the daemon's {allowed} descriptors are taken but for the last ones, which are not for bindings",
        data={"bind": bind, "limit": "descriptors", "allowed": allowed},
        would_change=[
            {"by": "self", "what": 'bind="lease": it then lives on its lease alone'},
            {"by": "operator", "what": "a larger LimitNOFILE"},
        ],
    )


def refused(bind: str, reason: str, why: str) -> PermissionDenied:
    """The refusal of a process that the caller may not name."""
    return PermissionDenied(
        f"cannot bind to it: {why}",
        data={"bind": bind, "reason": reason},
        would_change=[
            {"by": "self", "what": "an ancestor of the calling process with the same user, or bind=lease"},
        ],
    )

"""Descriptors are the daemon's scarcest good: how many connections may have, and one that is kept for saying no."""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import Final

from ifbusd.processes import DESCRIPTOR_RESERVE, reserve_of

# What the kernel says when it has no descriptor or memory left for us: a matter of the moment, no bug.
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def room_for_connections(wanted: int) -> int:
    """How many connections fit beside what the daemon itself needs; asks the kernel for as many descriptors as that takes.

    Whatever opens a file while there is none left fails, so connections must never take the last ones.
    """
    soft, used = make_room(wanted)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - used - reserve_of(soft)))


def make_room(wanted: int) -> tuple[int, int]:
    """Ask the kernel for so many descriptors beside what the daemon needs; how many there may be now, and how many are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    needed = used + DESCRIPTOR_RESERVE + wanted
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft, used


class Spare:
    """One descriptor kept open for nothing, so that a client can be let in and told why it cannot stay."""

    def __init__(self) -> None:
        self._descriptor: int | None = _open()

    def accept(self, listener: socket.socket) -> socket.socket | None:
        """The connection that waits, in the spare's place; None if there is none, or nothing to take it with.

        Close it and call `restore` before anything else is opened.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        try:
            return listener.accept()[0]
        except OSError:
            return None

    def restore(self) -> None:
        """Take the place again, if there is one."""
        if self._descriptor is None:
            try:
                self._descriptor = _open()
            except OSError:
                return

    def close(self) -> None:
        """Give it up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _open() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

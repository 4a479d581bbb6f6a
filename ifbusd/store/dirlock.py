"""One daemon per state directory: a lock on a file in it that the kernel drops when the holder dies."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ifbus.errors import IfbusError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_NAME: Final = "ifbusd.lock"
_FLOCK: Final = struct.Struct("hhlli")  # l_type, l_whence, l_start, l_len, l_pid


class DirectoryInUse(IfbusError):
    """Another daemon works on this state directory; `data["pid"]` is its process, 0 if it has not said so yet."""


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold a state directory for this process; the file that stays behind means nothing without its lock.

    There are two locks on it. One belongs to the process, and the kernel can say at every moment whose it is. The other belongs
    to the open file, and so also counts within this process: a child that was forked *after* this keeps it alive until it has
    closed descriptors or run another program. Fork what may outlive the daemon before.

    Raises:
        DirectoryInUse: Another process holds it.
        OSError: The directory is missing or not writable.
    """
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows both for the first
            pid = _holder(descriptor)
            raise DirectoryInUse(
                f"cannot use {directory}: the ifbusd with process id {pid or 'unknown'} uses it; stop that one, or name another --state",
                data={"pid": pid, "directory": str(directory)},
            ) from None
        # The pid of an earlier holder goes first, so that nobody reads a mixture of both.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> int:
    """The process that holds the lock; 0 if it has just ended, or is one that has not said so."""
    query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    held, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
    if held != fcntl.F_UNLCK:
        return int(pid)
    # Only the second lock is held: by this process, or a forked child of the one that wrote this.
    written = os.pread(descriptor, 32, 0).strip()
    return int(written) if written.isdigit() else 0

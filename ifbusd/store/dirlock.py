"""One daemon per state directory: a lock on a file in it that the kernel drops when the holder dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ifbus.errors import IfbusError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_NAME: Final = "ifbusd.lock"


class DirectoryInUse(IfbusError):
    """Another daemon works on this state directory; `data["pid"]` is its process, 0 if it has not said so yet."""


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold a state directory for this process; the file that stays behind means nothing without its lock.

    The lock belongs to the open file: a child that was forked *after* this keeps it alive until it has closed
    descriptors or run another program. Fork what may outlive the daemon before.

    Raises:
        DirectoryInUse: Another process holds it.
        OSError: The directory is missing or not writable.
    """
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            written = os.pread(descriptor, 32, 0).strip()
            pid = int(written) if written.isdigit() else 0
            raise DirectoryInUse(
                f"cannot use {directory}: the ifbusd with process id {pid or 'unknown'} uses it",
                data={"pid": pid, "directory": str(directory)},
            ) from None
        # The pid of an earlier holder goes first, so that nobody reads a mixture of both.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)

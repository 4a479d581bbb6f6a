"""fsync of files and directories beside the database; one that fails ends the daemon (DESIGN 2, promise 2).

After a failed fsync the kernel may have thrown the data away and say yes to the next one, so there is no second try.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ifbus.errors import IfbusError

if TYPE_CHECKING:
    from pathlib import Path


class DiskFailed(IfbusError):
    """What is on the disk is not known any more: the daemon says so and stops."""


def sync_file(descriptor: int, path: Path) -> None:
    """Make durable what was written to the open file; its name is not yet (`sync_names`). Blocks for the disk.

    Raises:
        DiskFailed: It could not be done; the message names `path`.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise DiskFailed(f"cannot go on with {path}: its fsync failed: {error.strerror}") from error


def make_directory(directory: Path) -> None:
    """Have the directory, for its owner alone where it is made, as durably as what will be synced in it. Blocks for the disk.

    Raises:
        DiskFailed: Its name could not be made durable; the message names the directory that it is in.
        OSError: It cannot be made.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_names(path.parent)


def sync_names(directory: Path) -> None:
    """Make durable which names stand in the directory. Blocks for the disk.

    Raises:
        DiskFailed: It could not be done; the message names `directory`.
        OSError: It cannot be opened.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file(descriptor, directory)
    finally:
        os.close(descriptor)

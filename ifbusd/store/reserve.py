"""Space kept back for the day on which the storage is full: a file beside the database that is emptied then (ADR 0002)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from ifbusd.store.fsync import DiskFailed, sync_file, sync_names

if TYPE_CHECKING:
    from pathlib import Path

# The file system, or the user's quota on it, has no room.
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Reserve:
    """A file of some length with blocks of its own, or an empty one once these were given up. All calls block for the disk."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self.kept_bytes = 0

    def make(self) -> bool:
        """Have the file in its full length, durably; False if there is no room for all of it, and then it takes none.

        Raises:
            DiskFailed: For another reason.
        """
        try:
            is_new = not self._path.exists()
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                self._fill(descriptor)
                sync_file(descriptor, self._path)
            finally:
                os.close(descriptor)
            if is_new:
                sync_names(self._path.parent)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return False
            raise DiskFailed(f"cannot keep space back in {self._path}: {error.strerror}") from error
        self.kept_bytes = self._size_bytes
        return True

    def _fill(self, descriptor: int) -> None:
        length = os.fstat(descriptor).st_size
        if length == self._size_bytes:
            return
        try:
            if length > self._size_bytes:
                os.ftruncate(descriptor, self._size_bytes)
            else:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
        except OSError:
            os.ftruncate(descriptor, 0)
            raise

    def give_up(self) -> None:
        """Empty the file; on return its space can be used.

        Raises:
            DiskFailed: It could not be done.
        """
        if not self.kept_bytes:
            return
        self.kept_bytes = 0
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.ftruncate(descriptor, 0)
                sync_file(descriptor, self._path)  # until then some file systems give its blocks to nobody
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DiskFailed(f"cannot give up the space kept back in {self._path}: {error.strerror}") from error

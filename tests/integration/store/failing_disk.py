"""A disk that fails on request, beneath SQLite's page checksums: the n-th sync with EIO, or the n-th write with ENOSPC.

The checksums stand for the life of the process on whatever was SQLite's default when they were first loaded. So this
module, when it is imported, puts its own VFS there, which passes everything through while no `Plan` is in force.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import apsw
import attrs

from ifbusd.store.schema import register_checksums

_ORDINARY = apsw.vfs_names()[0]


@attrs.define(kw_only=True)
class Plan:
    """What fails: the `at`-th operation of this kind from now on (1 is the next), once or from then on."""

    kind: Literal["sync", "write"]
    at: int
    is_lasting: bool = False
    seen: int = 0
    failed: int = 0

    def strikes(self, kind: str) -> bool:
        """Count one operation; whether it fails."""
        if kind != self.kind:
            return False
        self.seen += 1
        if self.seen == self.at or (self.is_lasting and self.seen > self.at):
            self.failed += 1
            return True
        return False


_plan: Plan | None = None


class _File(apsw.VFSFile):
    def xWrite(self, data: Any, offset: int) -> None:
        if _plan is not None and _plan.strikes("write"):
            raise apsw.FullError("the disk is full, for a test")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        if _plan is not None and _plan.strikes("sync"):
            error = apsw.IOError("fsync failed, for a test")
            error.extendedresult = apsw.SQLITE_IOERR_FSYNC
            raise error
        super().xSync(flags)


class _Disk(apsw.VFS):
    def __init__(self) -> None:
        super().__init__("failing-disk", base=_ORDINARY, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _File(_ORDINARY, name, flags)


if "cksmvfs" in apsw.vfs_names():
    raise RuntimeError("the failing disk must be imported before a store is opened")
# Never unregistered: the checksums keep a pointer to it.
_disk = _Disk()
register_checksums()
apsw.set_default_vfs(_ORDINARY)


@contextmanager
def failing(plan: Plan) -> Iterator[Plan]:
    """Let the disk fail by this plan."""
    global _plan
    _plan = plan
    try:
        yield plan
    finally:
        _plan = None

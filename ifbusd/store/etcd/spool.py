"""Keys put in the order of their revisions on this host's disk: those of many hosts may be more than fits into memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import apsw
import trio

_ADD: Final = "insert into entry values (?, ?, ?)"
_NEXT: Final = "select * from entry where revision > ? order by revision, key limit ?"
_REST: Final = "select * from entry where revision = ? and key > ? order by key"


class Entry(NamedTuple):
    """A key as etcd had it."""

    mod_revision: int
    key: bytes
    value: bytes


class Spool:
    """A temporary database, gone when it is closed. The mutable state: how far it was read, and how much was put in."""

    def __init__(self) -> None:
        """Begin with nothing; a file is made when it grows."""
        self._connection = apsw.Connection("")
        self._connection.execute(
            "create table entry (revision integer, key blob, value blob, primary key (revision, key)) without rowid"
        )
        self._limiter = trio.CapacityLimiter(1)
        self._revision = 0
        self.count = 0

    def close(self) -> None:
        """Give it up."""
        self._connection.close()

    async def add(self, kvs: Sequence[Any]) -> None:
        """Put in keys as etcd sends them, in any order. Raises `apsw.Error` where the disk is full."""
        self.count += len(kvs)
        rows = [(kv.mod_revision, kv.key, kv.value) for kv in kvs]
        await trio.to_thread.run_sync(partial(self._add, rows), limiter=self._limiter)

    def _add(self, rows: list[tuple[int, bytes, bytes]]) -> None:
        with self._connection:
            self._connection.executemany(_ADD, rows)

    async def next_revisions(self, limit: int) -> list[Entry]:
        """The next `limit` keys, and those that share the last one's revision; [] at the end."""
        return await trio.to_thread.run_sync(self._next, limit, limiter=self._limiter)

    def _next(self, limit: int) -> list[Entry]:
        rows = self._connection.execute(_NEXT, (self._revision, limit)).fetchall()
        found = [Entry._make(row) for row in rows]
        if found:
            self._revision, last_key, _ = found[-1]
            found += map(Entry._make, self._connection.execute(_REST, (self._revision, last_key)).fetchall())
        return found

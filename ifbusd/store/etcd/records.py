"""The witness log of this host: the cluster's entries in the order of their revisions, and this host's own refusals.

It is the log of the embedded store, in a file of the same format, so what verifies one verifies the other. The entries of state
changes come from etcd, where they were written in the same transaction; the revision up to which they are in the file is in the
file too, in the same commit, so a crash neither loses nor repeats one.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import apsw
import attrs
import trio

from ifbus.errors import Unavailable
from ifbusd.store.base import LogEntry, LogHead
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.store.schema import StoreFailed, describe, open_database

_log = logging.getLogger(__name__)

_APPEND: Final = "insert into log (seq, revision, at_ms, record, hash) values (?, ?, ?, ?, ?)"
_READ: Final = "select seq, revision, at_ms, record, hash from log where seq > ? order by seq limit ?"
_CACHE_BYTES: Final = 2 * 1024 * 1024
_CHECKPOINT_PAGES: Final = 1024
_FULL_RETRY_S: Final = 0.5
# How long the cluster's entries wait for others to go with them: each time costs a commit on every host.
_GATHERING_S: Final = 0.02
# More of them than this are not taken before these are in the file.
_MOST_GATHERED: Final = 4_096


# Revision, time and what was done.
Record = tuple[int, int, bytes]


@attrs.define(eq=False)
class _Batch:
    """Entries to append together (revision, time, record), and the revision up to which all are then there."""

    records: list[Record]
    revision: int
    done: trio.Event = attrs.Factory(trio.Event)
    heads: list[LogHead] = attrs.Factory(list)
    error: str = ""


class RecordLog:
    """The file. Its mutable state is where it ends and what waits to be written; one task writes."""

    def __init__(self, path: Path, *, wal_limit_bytes: int) -> None:
        """Open, or make, the file; blocks while it recovers.

        Raises:
            StoreFailed: It cannot be used; the message names it and says why.
        """
        self._path = path
        self._connection = open_database(path, cache_bytes=_CACHE_BYTES, wal_limit_bytes=wal_limit_bytes)
        if self._connection.execute("select starts from state").get:
            self._connection.close()
            raise StoreFailed(
                f'cannot open {path}: it holds an embedded store; store.backend = "etcd" needs a state directory of its own'
            )
        seq, digest, logged = self._connection.execute(
            "select seq, hash, revision from log order by seq desc limit 1"
        ).get or (0, GENESIS, 0)
        self.head = LogHead(seq, digest)
        self.revision: int = max(logged, self._connection.execute("select revision from state").get)
        self._waiting: deque[_Batch] = deque()
        self._work = trio.lowlevel.ParkingLot()
        self._moved = trio.lowlevel.ParkingLot()
        self._limiter = trio.CapacityLimiter(1)
        self._wal_pages = 0
        self._connection.set_wal_hook(self._note_wal)
        self._unavailable = ""
        self.is_full = False

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    async def append(self, records: list[Record], revision: int) -> list[LogHead]:
        """Add entries, on the disk on return; all of the cluster's up to `revision` are then in the file.

        An entry of a lower revision than the one before it, such as this host's own, gets that one's: they never decrease.

        Raises:
            Unavailable: The disk is full (`data["reason"]` is ``storage_full``), or the log is closed. Nothing was added.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # before an error: in the end it is closed, which is none
        if self._unavailable:
            raise Unavailable(self._unavailable)
        batch = _Batch(records, revision)
        self._waiting.append(batch)
        self._work.unpark()
        await batch.done.wait()
        if batch.error:
            data = {"reason": "storage_full"} if self.is_full else None
            raise Unavailable(f"cannot add to the record: {batch.error}", data=data)
        return batch.heads

    async def until(self, revision: int) -> None:
        """Return once everything up to a revision is in the file."""
        while self.revision < revision:
            await self._moved.park()

    async def read(self, after_seq: int, limit: int) -> list[LogEntry]:
        """Entries after a number, in order."""
        return await trio.to_thread.run_sync(self._read, after_seq, limit, limiter=self._limiter)

    def _read(self, after_seq: int, limit: int) -> list[LogEntry]:
        try:
            return [LogEntry._make(row) for row in self._connection.execute(_READ, (after_seq, limit)).fetchall()]
        except apsw.Error as error:
            raise Unavailable(f"cannot read the record: {describe(error)}") from error

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            StoreFailed: A write failed in a way after which nothing may be added any more.
        """
        try:
            while True:
                while not self._waiting:
                    await self._work.park()
                batches = list(self._waiting)
                self._waiting.clear()
                await self._write(batches)
        finally:
            self._unavailable = self._unavailable or "the record is closed"
            for batch in self._waiting:
                batch.error = self._unavailable
                batch.done.set()
            with trio.CancelScope(shield=True):  # bounded by what is left of the write under way
                await trio.to_thread.run_sync(self._connection.close, limiter=self._limiter)

    async def _write(self, batches: list[_Batch]) -> None:
        head, revision, entries = self.head, self.revision, []
        for batch in batches:
            for at_revision, at_ms, record in batch.records:
                revision = max(revision, at_revision)
                digest = entry_hash(head.hash, head.seq + 1, revision, at_ms, record)
                head = LogHead(head.seq + 1, digest)
                entries.append(LogEntry(head.seq, revision, at_ms, record, digest))
                batch.heads.append(head)
            revision = max(revision, batch.revision)
        error = ""
        try:
            # Once begun it is waited for: what it did is unknown until it returns.
            await trio.to_thread.run_sync(self._flush, entries, revision, limiter=self._limiter)
        except apsw.FullError as full:
            error = describe(full)
            if not self.is_full:
                _log.error("the disk of the record is full", extra={"path": str(self._path)})
        except apsw.Error as failed:
            self._unavailable = f"the record has failed: {describe(failed)}"
            raise StoreFailed(f"cannot go on with {self._path}: {describe(failed)}") from failed
        else:
            self.head, self.revision = head, revision
        self.is_full = bool(error)
        for batch in batches:
            batch.error = error
            batch.done.set()
        self._moved.unpark_all()

    def _flush(self, entries: list[LogEntry], revision: int) -> None:
        execute = self._connection.execute
        try:
            execute("begin immediate")
            if entries:
                self._connection.executemany(_APPEND, entries)
            execute("update state set revision = ?", (revision,))
            execute("commit")
        except apsw.FullError:
            if self._connection.in_transaction:
                execute("rollback")
            raise
        if self._wal_pages > _CHECKPOINT_PAGES:
            # What is committed stays so: the log keeps what the database has no room for.
            with suppress(apsw.FullError):
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._wal_pages = 0

    def _note_wal(self, _connection: Any, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK


class Intake:
    """The cluster's entries on their way into the file: those of a moment go together, or at once where somebody waits for them.

    Until then they stand in etcd. The mutable state is what was handed over and is not in the file, and how many wait.
    """

    def __init__(self, log: RecordLog) -> None:
        self._log = log
        self._records: list[Record] = []
        self._revision = 0
        self._waiting = 0
        self._work = trio.lowlevel.ParkingLot()
        self._hurry = trio.lowlevel.ParkingLot()
        self._moved = trio.lowlevel.ParkingLot()

    @property
    def revision(self) -> int:
        """All entries up to here are in the file, or were handed over."""
        return max(self._revision, self._log.revision)

    @property
    def has_room(self) -> bool:
        """Whether more may be handed over now."""
        return len(self._records) <= _MOST_GATHERED

    def put(self, records: list[Record], revision: int) -> None:
        """Hand over all entries up to a revision."""
        self._records += records
        self._revision = revision
        self._work.unpark()

    async def until_room(self) -> None:
        """Return once more may be handed over."""
        while not self.has_room:
            await self._moved.park()

    async def until(self, revision: int) -> None:
        """Return once everything up to a revision is in the file."""
        self._waiting += 1
        self._hurry.unpark_all()
        try:
            await self._log.until(revision)
        finally:
            self._waiting -= 1

    async def drain(self) -> None:
        """Return once all that was handed over is in the file."""
        if self._revision > self._log.revision:
            await self.until(self._revision)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            while self._revision <= self._log.revision:
                await self._work.park()
            if not self._waiting:
                with trio.move_on_after(_GATHERING_S):
                    await self._hurry.park()
            records, self._records = self._records, []
            await append_patiently(self._log, records, self._revision)
            self._moved.unpark_all()


async def append_patiently(log: RecordLog, records: list[Record], revision: int) -> None:
    """Append, again and again while the disk is full: these are in etcd and can wait there."""
    while True:
        try:
            await log.append(records, revision)
        except Unavailable as error:
            if error.data.get("reason") != "storage_full":
                raise
            await trio.sleep(_FULL_RETRY_S)
        else:
            return

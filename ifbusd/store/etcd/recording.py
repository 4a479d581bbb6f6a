"""How the cluster's witness entries come to this host: with everything else that our watch tells, in the same messages.

A log that is *behind* that watch catches up by a watch of its own, from where it stands: after a start, after what the other watch
had to read anew, and where this disk had no room, so that nothing but its log has to wait for it. It has caught up when it was
told an entry that the other watch has told as well; from then on it goes on with that one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from typing import Any, Final

import apsw
import trio

from ifbusd.store.etcd.cluster import Cluster
from ifbusd.store.etcd.faults import EtcdFault, Kind
from ifbusd.store.etcd.feed import Feed
from ifbusd.store.etcd.keys import Keys, unpack_record
from ifbusd.store.etcd.records import Intake, Record, RecordLog, append_patiently
from ifbusd.store.etcd.spool import Spool
from ifbusd.store.schema import describe

_log = logging.getLogger(__name__)

_PAGE: Final = 500


class Recording:
    """Feeds the log. The mutable state: whether it is behind, and up to where it missed what the other watch told."""

    def __init__(self, cluster: Cluster, keys: Keys, log: RecordLog, intake: Intake, *, timeout_s: float) -> None:
        """Begin behind: nobody knows what happened since the log's last entry."""
        self._cluster = cluster
        self._keys = keys
        self._log = log
        self._intake = intake
        self._feed = Feed(
            cluster,
            "records",
            keys.record_range,
            take=self._take_late,
            read_anew=self._read_anew,
            timeout_s=timeout_s,
        )
        self._is_behind = True
        self._missed_revision = 0
        self._fell_behind = trio.lowlevel.ParkingLot()
        self._catching_up = trio.CancelScope()

    @property
    def restarts(self) -> int:
        """Times that the watch of its own had to be begun anew."""
        return self._feed.restarts

    @property
    def read_anew(self) -> int:
        """Times that what it had to catch up with was no longer kept."""
        return self._feed.read_anew

    def take(self, kvs: list[Any]) -> None:
        """The other watch tells these entries, those of whole revisions. Never waits."""
        revision = kvs[-1].mod_revision
        if not self._is_behind and not self._intake.has_room:
            self.fall_behind()
        if self._is_behind:
            self._missed_revision = revision
        elif revision > (before := self._intake.revision):
            self._intake.put(_records_of(kv for kv in kvs if kv.mod_revision > before), revision)

    def fall_behind(self) -> None:
        """The other watch does not tell all entries: catch up."""
        self._is_behind = True
        self._missed_revision = 0
        self._fell_behind.unpark_all()

    async def run(self) -> None:
        """Catch up, whenever it is behind, until cancelled."""
        while True:
            while not self._is_behind:
                await self._fell_behind.park()
            with trio.CancelScope() as self._catching_up:
                await self._feed.run(self._intake.revision + 1)

    async def _take_late(self, events: list[Any]) -> None:
        await self._intake.until_room()
        self._intake.put(_records_of(event.kv for event in events if not event.type), events[-1].kv.mod_revision)
        # This watch tells everything in order, so with one of those that were missed it was told all before it. Without room it would be
        # behind again with the next one.
        if 0 < self._missed_revision <= self._intake.revision and self._intake.has_room:
            self._is_behind = False
            self._catching_up.cancel()

    async def _read_anew(self) -> int:
        """What comes next is no longer kept: take what still stands there. What was written over since is lost to this host."""
        await self._intake.drain()
        try:
            with closing(Spool()) as found:
                revision = await self._read_what_stands(found)
        except apsw.Error as error:  # tried again from the start: it can wait in etcd
            raise EtcdFault(Kind.OUTAGE, f"no place to put the record in order: {describe(error)}") from error
        _log.warning(
            "this host's record was behind what etcd keeps: entries that were written over meanwhile are not in it",
            extra={"entries": found.count, "revision": revision},
        )
        return revision

    async def _read_what_stands(self, found: Spool) -> int:
        start, end = self._keys.record_range
        revision = 0
        while True:
            page = await self._cluster.read_page(start, end, _PAGE, revision=revision)
            revision = revision or int(page.header.revision)
            await found.add([kv for kv in page.kvs if kv.mod_revision > self._log.revision])
            if not page.more:
                break
            start = page.kvs[-1].key + b"\0"
        while entries := await found.next_revisions(_PAGE):
            await append_patiently(self._log, _records_of(entries), entries[-1].mod_revision)
        await append_patiently(self._log, [], revision)
        return revision


def _records_of(kvs: Iterable[Any]) -> list[Record]:
    """What can be read of witness entries; they may be another host's."""
    records = []
    for kv in kvs:
        try:
            records.append((kv.mod_revision, *unpack_record(kv.value)))
        except ValueError as error:
            _log.warning("a witness entry cannot be read and is ignored", extra={"error": str(error)})
    return records

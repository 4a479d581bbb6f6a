"""A watch over a range of keys that is resumed for ever: after an outage from where it was, whole revisions only.

etcd sends all events of a revision in one message (we do not ask for fragments), so the revision of a message's last event
plus one is where to go on.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio
from etcd3 import etcdrpc

from ifbusd.store.etcd.cluster import Cluster, Stream
from ifbusd.store.etcd.faults import EtcdFault, Kind

_log = logging.getLogger(__name__)

_LEAST_WAIT_S: Final = 0.05
_MOST_WAIT_S: Final = 1.0


class Feed:
    """The watch. Its state is the revision to go on from."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        key_range: tuple[bytes, bytes],
        *,
        take: Callable[[list[Any]], Awaitable[None]],
        read_anew: Callable[[], Awaitable[int]],
        timeout_s: float,
        told: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Set it up.

        Args:
            take: Called with the events of one or more whole revisions.
            told: Called with a revision up to which everything has been taken, where nothing else says so.
            read_anew: Called when what comes next is no longer kept: takes over what is there now; the revision up to
                which that was.
            timeout_s: For the first word of a new watch.
        """
        self._cluster = cluster
        self._name = name
        self._key, self._end = key_range
        self._take = take
        self._read_anew = read_anew
        self._timeout_s = timeout_s
        self._told = told
        self._stream: Stream | None = None
        self.next_revision = 0
        self.restarts = 0
        self.read_anew = 0

    def restart(self) -> None:
        """Take a new stream: this one seems to be dead."""
        if self._stream is not None:
            self._stream.close()

    def ask(self) -> None:
        """Have etcd say how far this watch has come, which `told` hears, without a write. Below 3.5.8 it may say so too early."""
        if self._stream is not None:
            self._stream.send(etcdrpc.WatchRequest(progress_request=etcdrpc.WatchProgressRequest()))

    async def run(self, next_revision: int) -> None:
        """Watch from a revision on until cancelled."""
        self.next_revision = next_revision
        wait_s = _LEAST_WAIT_S
        while True:
            await self._cluster.until_up()
            before = self.next_revision
            try:
                try:
                    await self._watch()
                except EtcdFault as fault:
                    if fault.kind is not Kind.ANSWER_TOO_LARGE:
                        raise
                    # So much has happened since that one message cannot hold what etcd puts into it.
                    self.read_anew += 1
                    self.next_revision = await self._read_anew() + 1
            except EtcdFault as fault:
                _log.info("a watch ended", extra={"watch": self._name, "error": fault.detail})
            self.restarts += 1
            wait_s = _LEAST_WAIT_S if self.next_revision != before else min(2 * wait_s, _MOST_WAIT_S)
            await trio.sleep(wait_s)

    async def _watch(self) -> None:
        request = etcdrpc.WatchCreateRequest(
            key=self._key, range_end=self._end, start_revision=self.next_revision, progress_notify=True
        )
        async with self._cluster.stream("Watch") as stream:
            self._stream = stream
            stream.send(etcdrpc.WatchRequest(create_request=request))
            with trio.move_on_after(self._timeout_s) as waiting:
                response = await stream.receive()
            if waiting.cancelled_caught:
                self._cluster.suspect("a new watch is not answered")
                return
            while True:
                if response.compact_revision:
                    self.read_anew += 1
                    _log.warning(
                        "a watch is behind what etcd keeps", extra={"watch": self._name, "revision": self.next_revision}
                    )
                    self.next_revision = await self._read_anew() + 1
                    return
                if response.canceled:
                    _log.warning("etcd ended a watch", extra={"watch": self._name, "error": response.cancel_reason})
                    return
                if response.events:
                    await self._take(list(response.events))
                    self.next_revision = response.events[-1].kv.mod_revision + 1
                elif not response.created:
                    # A sign of life without events: all up to here was told, so a compaction up to here is no loss.
                    self.next_revision = max(self.next_revision, response.header.revision + 1)
                    self._told(int(response.header.revision))
                response = await stream.receive()

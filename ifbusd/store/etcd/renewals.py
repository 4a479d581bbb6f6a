"""Leases: granted for whole seconds, renewed over one stream, and how long each has left as far as this host knows.

etcd decides when a lease ends: it may be late (a new leader and a restart give every lease its full time again) and, where
etcd itself was stopped, at once on waking. So a lease proves nothing to its holder; the client stops by its own clock, and
the fencing token decides (FACTS 1, 5).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio
from etcd3 import etcdrpc

from ifbusd.store.etcd.cluster import Cluster, Stream
from ifbusd.store.etcd.faults import EtcdFault, Kind

# Leases whose end is known here; of others etcd is asked.
_MAX_KNOWN: Final = 65_536
_WAIT_S: Final = 0.1


class _Renewal:
    """Somebody waits for an answer about a lease."""

    __slots__ = ("done", "fault", "ttl_s")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.ttl_s = 0
        self.fault: EtcdFault | None = None


class Renewals:
    """All leases of this host. The mutable state: who waits for which renewal, and when the known leases end."""

    def __init__(self, cluster: Cluster, *, timeout_s: float, boottime_ms: Callable[[], int]) -> None:
        self._cluster = cluster
        self._timeout_s = timeout_s
        self._boottime_ms = boottime_ms
        self._stream: Stream | None = None
        self._opened = trio.lowlevel.ParkingLot()
        self._waiting: dict[int, deque[_Renewal]] = {}
        self._ends_at_ms: dict[int, tuple[int, int]] = {}  # with its full time

    def __len__(self) -> int:
        """Leases whose end is known here."""
        return len(self._ends_at_ms)

    async def run(self) -> None:
        """Keep the stream open until cancelled."""
        while True:
            await self._cluster.until_up()
            try:
                async with self._cluster.stream("LeaseKeepAlive") as stream:
                    self._stream = stream
                    self._opened.unpark_all()
                    while True:
                        answer = await stream.receive()
                        self._answered(int(answer.ID), int(answer.TTL))
            except EtcdFault as fault:
                self._lost(fault)
            finally:
                self._stream = None
            await trio.sleep(_WAIT_S)

    async def grant(self, ttl_ms: int) -> int:
        """A new lease of at least this time.

        Raises:
            EtcdFault: There is none; or one that nobody knows, which ends by itself.
        """
        asked_at_ms = self._boottime_ms()
        answer = await self._cluster.call("LeaseGrant", etcdrpc.LeaseGrantRequest(TTL=-(-ttl_ms // 1000)))
        self._note(int(answer.ID), asked_at_ms, int(answer.TTL))
        return int(answer.ID)

    async def renew(self, lease: int) -> int:
        """Renew a lease; its full time in ms, 0 if it has ended.

        Raises:
            EtcdFault: No answer; it may have been renewed.
        """
        asked_at_ms = self._boottime_ms()
        renewal = _Renewal()
        with trio.move_on_after(self._timeout_s):
            if not self._cluster.is_up:
                raise EtcdFault(Kind.OUTAGE, self._cluster.down_reason)
            while (stream := self._stream) is None:
                await self._opened.park()
                if not self._cluster.is_up:
                    raise EtcdFault(Kind.OUTAGE, self._cluster.down_reason)
            self._waiting.setdefault(lease, deque()).append(renewal)
            stream.send(etcdrpc.LeaseKeepAliveRequest(ID=lease))
            await renewal.done.wait()
        if renewal.fault is not None:
            raise renewal.fault
        if not renewal.done.is_set():
            self._cluster.suspect("a lease's renewal is not answered")
            raise EtcdFault(Kind.OUTAGE, "deadline exceeded", may_be_done=True)
        if not renewal.ttl_s:
            self.forget(lease)
            return 0
        self._note(lease, asked_at_ms, renewal.ttl_s)
        return renewal.ttl_s * 1000

    async def left_ms(self, lease: int) -> int | None:
        """Time until a lease ends unless renewed, None if it has ended; etcd is asked where this host does not know.

        Another host may renew it too, so what is known here is enough only as long as most of it is left.

        Raises:
            EtcdFault: No answer.
        """
        asked_at_ms = self._boottime_ms()
        ends_at_ms, ttl_ms = self._ends_at_ms.get(lease, (0, 0))
        if (left_ms := ends_at_ms - asked_at_ms) > ttl_ms // 2:
            return left_ms
        answer = await self._cluster.call("LeaseTimeToLive", etcdrpc.LeaseTimeToLiveRequest(ID=lease))
        if answer.TTL < 0 or not answer.grantedTTL:
            self.forget(lease)
            return None
        self._note(lease, asked_at_ms - (int(answer.grantedTTL) - int(answer.TTL)) * 1000, int(answer.grantedTTL))
        return int(answer.TTL) * 1000

    async def revoke(self, lease: int) -> int:
        """End a lease, if it has not ended; a revision at which its keys are gone.

        Raises:
            EtcdFault: No answer; it may have ended.
        """
        self.forget(lease)
        try:
            answer = await self._cluster.call("LeaseRevoke", etcdrpc.LeaseRevokeRequest(ID=lease))
        except EtcdFault as fault:
            if fault.kind is not Kind.LEASE_NOT_FOUND:
                raise
            return 0
        return int(answer.header.revision)

    def forget(self, lease: int) -> None:
        """What is known of a lease may be wrong."""
        self._ends_at_ms.pop(lease, None)

    def _note(self, lease: int, renewed_at_ms: int, ttl_s: int) -> None:
        self._ends_at_ms.pop(lease, None)
        self._ends_at_ms[lease] = (renewed_at_ms + ttl_s * 1000, ttl_s * 1000)
        if len(self._ends_at_ms) > _MAX_KNOWN:
            del self._ends_at_ms[next(iter(self._ends_at_ms))]

    def _answered(self, lease: int, ttl_s: int) -> None:
        # Answers of one lease come in the order in which was asked.
        waiting = self._waiting.get(lease)
        if not waiting:
            return
        renewal = waiting.popleft()
        if not waiting:
            del self._waiting[lease]
        renewal.ttl_s = ttl_s
        renewal.done.set()

    def _lost(self, fault: EtcdFault) -> None:
        everybody, self._waiting = self._waiting, {}
        for waiting in everybody.values():
            for renewal in waiting:
                renewal.fault = fault
                renewal.done.set()

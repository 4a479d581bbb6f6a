"""The daemons that share a store: who is there, and which of them does what one alone should do (ADR 0019).

Each daemon's run has a key ``daemons/<id>`` on a lease of its own, so the others know within seconds that it is gone. Nothing is
decided by this: whoever cleans up or raises an alarm decides in a transaction. It only keeps a hundred daemons from
trying the same thing at the same moment: the one that has been there longest goes first, the others after a pause.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import trio

from ifbus.errors import Unavailable
from ifbusd.codec import pack, unpack
from ifbusd.store.base import Compacted, KeyValue, LeaseNotFound, Put, Store, Txn, WatchEvent

_log = logging.getLogger(__name__)

DAEMONS: Final = "daemons/"
# Three renewals may be missed.
_LEASE_MS: Final = 10_000
_RENEW_S: Final = 2.5
_RETRY_S: Final = 0.5
# Who is not first waits for so long before it does what the first one should have done.
STAND_BY_S: Final = 2.0
# A daemon in the status; the rest is a number.
MAX_SHOWN: Final = 100


class Peers:
    """This daemon among the others. The mutable state is the others' cards by id, and this one's lease.

    Args:
        daemon_id: Of this run; the ids of later runs sort after it.
        card: What the others are told of this daemon: host, build, when it started.
    """

    def __init__(self, store: Store, *, daemon_id: str, card: dict[str, Any]) -> None:
        self._store = store
        self.daemon_id = daemon_id
        self._card = card
        self._lease = 0
        self._there: dict[str, dict[str, Any]] = {daemon_id: card}

    @property
    def is_first(self) -> bool:
        """Whether none that is there has been there for longer."""
        return min(self._there) == self.daemon_id

    def is_there(self, daemon_id: str) -> bool:
        """Whether that daemon was there when the store was last heard of."""
        return daemon_id in self._there

    def statistics(self) -> dict[str, Any]:
        """Who is there, and whether this is the one that goes first."""
        shown = [{"daemon": name, **card} for name, card in sorted(self._there.items())]
        return {"daemon": self.daemon_id, "first": self.is_first, "count": len(shown), "there": shown[:MAX_SHOWN]}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be there, and follow who is, until cancelled; ready once the others are known."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._follow)
            await nursery.start(self._stay)
            task_status.started()

    async def _stay(self, *, task_status: trio.TaskStatus[None]) -> None:
        while True:
            try:
                if self._lease:
                    await self._store.keep_alive(self._lease)
                else:
                    lease = await self._store.grant(_LEASE_MS)
                    await self._store.txn(Txn(then=[Put(DAEMONS + self.daemon_id, pack(self._card), lease)]))
                    self._lease = lease
            except LeaseNotFound:
                self._lease = 0  # the store was away for longer than that
                continue
            except Unavailable as error:
                # Without room the others do not see this one, which serves all the same.
                if task_status is not trio.TASK_STATUS_IGNORED and error.data.get("reason") != "storage_full":
                    raise
                _log.warning("cannot say that this daemon is there", extra={"reason": error.message})
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(_RENEW_S)

    async def _follow(self, *, task_status: trio.TaskStatus[None]) -> None:
        while True:
            try:
                async with self._store.watch(DAEMONS) as watch:
                    await self._read_all()
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await watch.feed(self._put_all)
            except Compacted:
                continue
            except Unavailable:
                if task_status is not trio.TASK_STATUS_IGNORED:
                    raise
                await trio.sleep(_RETRY_S)

    async def _read_all(self) -> None:
        self._there = {self.daemon_id: self._card}
        after = ""
        while True:
            page = await self._store.range(DAEMONS, after=after)
            for item in page.items:
                self._put(item.key, item)
            if not page.has_more:
                return
            after = page.items[-1].key

    def _put_all(self, batch: list[WatchEvent]) -> None:
        for event in batch:
            self._put(event.key, event.value)

    def _put(self, key: str, found: KeyValue | None) -> None:
        name = key.removeprefix(DAEMONS)
        if found is not None:
            self._there[name] = read_card(found.value)
        elif name != self.daemon_id:
            self._there.pop(name, None)


def read_card(data: bytes) -> dict[str, Any]:
    """What another daemon says of itself; empty where nobody can read it."""
    try:
        card = unpack(data)
    except ValueError:
        return {}
    return {str(name)[:40]: value for name, value in card.items()} if isinstance(card, dict) else {}

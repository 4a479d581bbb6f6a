"""Leases that are no longer needed, revoked beside the requests: a claim that ended must not wait for it, nor leave it behind."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import trio

from ifbus.errors import Unavailable
from ifbusd.store.base import Store

# So many are revoked at a time; the store commits them together.
_AT_ONCE: Final = 256
_RETRY_S: Final = 0.5
# Who waits for it has done what it asked for: it is only told so later.
_PATIENCE_S: Final = 5.0


class RetiredLeases:
    """The mutable state is the set of leases to revoke, bounded by the store's own bound on leases."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._leases: dict[int, None] = {}
        self._added = trio.lowlevel.ParkingLot()
        self._revoked = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        """How many are still to be revoked."""
        return len(self._leases)

    def add(self, lease: int) -> None:
        """Have a lease revoked soon."""
        self._leases[lease] = None
        self._added.unpark()

    async def wait_revoked(self, leases: Collection[int]) -> None:
        """Return once none of these is left to revoke, or the store has not answered for so long; they are revoked all the same."""
        with trio.move_on_after(_PATIENCE_S):
            while any(lease in self._leases for lease in leases):
                await self._revoked.park()

    async def run(self) -> None:
        """Revoke what is added until cancelled."""
        while True:
            while not self._leases:
                await self._added.park()
            batch = list(self._leases)[:_AT_ONCE]
            async with trio.open_nursery() as nursery:
                for lease in batch:
                    nursery.start_soon(self._revoke, lease)
            if any(lease in self._leases for lease in batch):
                await trio.sleep(_RETRY_S)

    async def _revoke(self, lease: int) -> None:
        try:
            await self._store.revoke(lease)
        except Unavailable:
            return  # tried again; at the worst it ends by itself
        del self._leases[lease]
        self._revoked.unpark_all()

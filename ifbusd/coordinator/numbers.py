"""Task numbers where several daemons give them out: a block of them in a commit of its own.

If every new task counted the counter up in its own commit, no two tasks of a cluster could be created in one group of commits. Each block is twice
as large as the one before: who creates few tasks wastes few numbers, who creates many hardly ever waits for one. A number that was
taken and not used, as by a daemon that was stopped, is used never; that of a later task may be lower, if another daemon gave it out.
"""

from __future__ import annotations

from typing import Final

import trio

from ifbus.errors import Unavailable
from ifbusd.codec import pack, unpack
from ifbusd.coordinator.model import TASK_COUNTER
from ifbusd.store.base import Compare, Put, Store, Txn

_MOST_AHEAD: Final = 256
# Each lost race is another daemon's block.
_TRIES: Final = 64


class Numbers:
    """The mutable state is the rest of the last block, how large the next one is, and how many numbers are wanted now."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._left = range(0)
        self._block = 1
        self._wanted = 0
        self._taking = trio.Lock()

    async def take(self, count: int) -> range:
        """So many numbers in a row that nobody else gets, on any host.

        Raises:
            Unavailable: The store is, or others were faster too often.
        """
        self._wanted += count
        try:
            async with self._taking:
                if len(self._left) < count:
                    self._left = await self._reserve(max(self._wanted, self._block))
                    self._block = min(2 * self._block, _MOST_AHEAD)
                taken, self._left = self._left[:count], self._left[count:]
                return taken
        finally:
            self._wanted -= count

    async def _reserve(self, count: int) -> range:
        for _ in range(_TRIES):
            found = await self._store.get(TASK_COUNTER)
            last = 0 if found is None else unpack(found.value)
            compare = Compare(TASK_COUNTER, 0 if found is None else found.mod_revision)
            done = await self._store.txn(Txn([compare], [Put(TASK_COUNTER, pack(last + count))]))
            if done.succeeded:
                return range(last + 1, last + count + 1)
        raise Unavailable(
            f"cannot number a task: others were faster {_TRIES} times in a row", data={"retry_after_ms": 50}
        )

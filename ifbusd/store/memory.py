"""Keys in memory, ahead of the disk: what is written and not committed yet, and what was read or written lately.

There is one writer, so what is kept here is never stale: a hit costs a dictionary's look-up instead of a query (ADR 0015).
"""

from __future__ import annotations

from typing import Final

from ifbusd.store.base import KeyValue

# Larger values are read from the database each time, so that the memory for this is bounded by their number.
_MAX_VALUE_BYTES: Final = 4096


class Unknown:
    """Only the disk can tell."""


UNKNOWN: Final = Unknown()


class KeyMemory:
    """The mutable state: two generations of keys, and which of them wait for a commit.

    Once the young generation is full it becomes the old one, and what was not asked for since then is forgotten; what waits is
    always in the young one.
    """

    def __init__(self, most: int) -> None:
        """Keep at most twice so many keys that are on the disk; None stands for a key that is known to be absent."""
        self._most = most
        self._young: dict[str, KeyValue | None] = {}
        self._old: dict[str, KeyValue | None] = {}
        self._pending: dict[str, KeyValue | None] = {}
        self._pending_of: dict[int, set[str]] = {}  # by lease

    def __len__(self) -> int:
        """Keys in memory."""
        return len(self._young) + len(self._old)

    @property
    def recent(self) -> dict[str, KeyValue | None]:
        """Most of what can be found, to look up without a call; to be read, and not beyond one transaction."""
        return self._young

    def find(self, key: str) -> KeyValue | Unknown | None:
        """The key as it stands, `UNKNOWN` if only the disk can tell."""
        if key in self._young:
            return self._young[key]
        if key not in self._old:
            return UNKNOWN
        found = self._old[key]
        self.keep(key, found)
        return found

    def keep(self, key: str, found: KeyValue | None) -> None:
        """Remember what is on the disk."""
        if found is not None and len(found.value) > _MAX_VALUE_BYTES:
            self._forget(key)
            return
        if len(self._young) >= self._most + len(self._pending):
            self._old, self._young = self._young, dict(self._pending)
        self._young[key] = found

    def write(self, writes: dict[str, KeyValue | None]) -> None:
        """These are about to be committed; None deletes."""
        self._young.update(writes)
        self._pending.update(writes)
        for key, written in writes.items():
            if written is not None and written.lease:
                keys = self._pending_of.get(written.lease)
                if keys is None:
                    self._pending_of[written.lease] = {key}
                else:
                    keys.add(key)

    def pending(self, prefix: str) -> dict[str, KeyValue | None]:
        """What waits for a commit among the keys that start with `prefix`."""
        return {key: written for key, written in self._pending.items() if key.startswith(prefix)}

    def pending_of(self, lease: int) -> list[str]:
        """The keys of a lease among those that wait for a commit."""
        keys = self._pending_of.get(lease, ())
        return [key for key in keys if (written := self._pending.get(key)) is not None and written.lease == lease]

    def is_pending(self, key: str) -> bool:
        """Whether the disk is behind on this key."""
        return key in self._pending

    def committed(self, writes: dict[str, KeyValue | None]) -> None:
        """These are on the disk now; what was written to the same keys since then still waits."""
        pending = self._pending
        for key, written in writes.items():
            if key in pending and pending[key] is written:
                del pending[key]
                if written is not None and (written.lease or len(written.value) > _MAX_VALUE_BYTES):
                    self._settle(key, written)
        if not pending:
            self._pending_of.clear()

    def drop_pending(self) -> None:
        """What waited will never be committed."""
        for key in self._pending:
            self._forget(key)
        self._pending.clear()
        self._pending_of.clear()

    def _settle(self, key: str, written: KeyValue) -> None:
        if len(written.value) > _MAX_VALUE_BYTES:
            self._forget(key)
        keys = self._pending_of.get(written.lease)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._pending_of[written.lease]

    def _forget(self, key: str) -> None:
        self._young.pop(key, None)
        self._old.pop(key, None)

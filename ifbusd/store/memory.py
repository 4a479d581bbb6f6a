"""Keys in memory, ahead of the tables on the disk: what is written and not there yet, and what was read or written lately.

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
    """The mutable state: two generations of keys, and on which of them the tables are behind.

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
        """The tables on the disk will have these later; None deletes."""
        self._young.update(writes)
        pending = self._pending
        for key, written in writes.items():
            before = pending.get(key)
            if before is not None and before.lease:
                self._leave(before.lease, key)
            if written is not None and written.lease:
                keys = self._pending_of.get(written.lease)
                if keys is None:
                    self._pending_of[written.lease] = {key}
                else:
                    keys.add(key)
        pending.update(writes)

    def pending(self, prefix: str) -> dict[str, KeyValue | None]:
        """Where the tables are behind among the keys that start with `prefix`."""
        return {key: written for key, written in self._pending.items() if key.startswith(prefix)}

    def pending_of(self, lease: int) -> list[str]:
        """The keys of a lease among those on which the tables are behind."""
        return list(self._pending_of.get(lease, ()))

    def is_pending(self, key: str) -> bool:
        """Whether the tables are behind on this key."""
        return key in self._pending

    def committed(self, writes: dict[str, KeyValue | None]) -> None:
        """The tables have these now; what was written to the same keys since then still waits."""
        pending = self._pending
        for key, written in writes.items():
            if key in pending and pending[key] is written:
                del pending[key]
                if written is not None:
                    if written.lease:
                        self._leave(written.lease, key)
                    if len(written.value) > _MAX_VALUE_BYTES:
                        self._forget(key)

    def drop_pending(self, kept: dict[str, KeyValue | None]) -> None:
        """What waited will never be committed, apart from `kept`, which was, and waits for the tables."""
        for key in self._pending:
            self._forget(key)
        self._pending.clear()
        self._pending_of.clear()
        self.write(kept)

    def _leave(self, lease: int, key: str) -> None:
        keys = self._pending_of[lease]
        keys.discard(key)
        if not keys:
            del self._pending_of[lease]

    def _forget(self, key: str) -> None:
        self._young.pop(key, None)
        self._old.pop(key, None)

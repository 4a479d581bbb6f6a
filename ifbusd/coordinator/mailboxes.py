"""Inboxes in memory and who hears them live: each letter once, in order, none left out.

Letters are told as the store's watch brings them, so their order is that of the commits, and a sender that was cancelled after its
commit has still sent.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from ifbusd.coordinator.model import MessageRecord

Letter = tuple[int, MessageRecord]  # with its seq


@attrs.define(kw_only=True, eq=False)
class Listener:
    """Somebody who hears an inbox live: each letter above `seen`. `tell` must not block or raise."""

    tell: Callable[[int, MessageRecord], None]
    seen: int


class Mailboxes:
    """The mutable state is the letters by inbox and key, how much of them is whose, and the listeners, nothing else."""

    def __init__(self) -> None:
        self._letters: dict[str, dict[str, Letter]] = {}  # in order of seq, but for inboxes in `_unsorted`
        self._unsorted: set[str] = set()
        self._sizes: dict[str, int] = {}  # by key, as stored
        self._bytes_of: dict[int, int] = {}  # by the uid that sent them
        self._listeners: dict[str, dict[Listener, None]] = {}

    def __len__(self) -> int:
        """Letters in all inboxes."""
        return sum(map(len, self._letters.values()))

    def clear(self) -> None:
        """Forget the letters; the listeners stay."""
        self._letters.clear()
        self._unsorted.clear()
        self._sizes.clear()
        self._bytes_of.clear()

    def put(self, swarm_id: str, key: str, letter: Letter, size_bytes: int) -> None:
        """A letter is in the store, where it takes this much."""
        letters = self._letters.setdefault(swarm_id, {})
        if (former := letters.get(key)) is not None:
            self._count(former[1].uid, -self._sizes[key])
            del letters[key]  # a new one of the same name has its place at the end
        if letters and next(reversed(letters.values()))[0] > letter[0]:
            self._unsorted.add(swarm_id)  # read in the order of the keys, not brought in that of the commits
        letters[key] = letter
        self._sizes[key] = size_bytes
        self._count(letter[1].uid, size_bytes)

    def drop(self, swarm_id: str, key: str) -> None:
        """A letter is no longer in the store."""
        letters = self._letters.get(swarm_id)
        if letters is not None:
            dropped = letters.pop(key, None)
            if dropped is not None:
                self._count(dropped[1].uid, -self._sizes.pop(key))
            if not letters:
                del self._letters[swarm_id]
                self._unsorted.discard(swarm_id)

    def _count(self, uid: int, size_bytes: int) -> None:
        self._bytes_of[uid] = self._bytes_of.get(uid, 0) + size_bytes
        if not self._bytes_of[uid]:
            del self._bytes_of[uid]

    def bytes_of(self, uid: int) -> int:
        """What a user has sent and nobody has acknowledged, in bytes as stored."""
        return self._bytes_of.get(uid, 0)

    def waiting(self, swarm_id: str) -> int:
        """How many letters are in an inbox."""
        return len(self._letters.get(swarm_id, ()))

    def letters(self, swarm_id: str, after_seq: int = 0) -> list[Letter]:
        """The letters above a seq, in order."""
        letters = self._letters.get(swarm_id)
        if letters is None:
            return []
        if swarm_id in self._unsorted:
            self._unsorted.discard(swarm_id)
            letters = self._letters[swarm_id] = dict(sorted(letters.items(), key=lambda item: item[1][0]))
        # From the end: who listens has heard nearly all of them.
        found = []
        for letter in reversed(letters.values()):
            if letter[0] <= after_seq:
                break
            found.append(letter)
        found.reverse()
        return found

    def by_key(self, swarm_id: str) -> dict[str, Letter]:
        """The letters of an inbox by their keys in the store."""
        return dict(self._letters.get(swarm_id, {}))

    def listen(self, swarm_id: str, listener: Listener) -> int:
        """Tell a listener what waits above its `seen`, now, and then what comes; how many waited."""
        self._listeners.setdefault(swarm_id, {})[listener] = None
        return self._tell(swarm_id, listener)

    def stop_listening(self, swarm_id: str, listener: Listener) -> None:
        """End it; twice is fine."""
        listeners = self._listeners.get(swarm_id)
        if listeners is not None:
            listeners.pop(listener, None)
            if not listeners:
                del self._listeners[swarm_id]

    def listeners(self, swarm_id: str) -> int:
        """How many hear an inbox live."""
        return len(self._listeners.get(swarm_id, ()))

    def deliver(self, swarm_id: str) -> None:
        """Tell the listeners of an inbox what they have not heard."""
        for listener in tuple(self._listeners.get(swarm_id, ())):
            self._tell(swarm_id, listener)

    def deliver_all(self) -> None:
        """The same for all inboxes."""
        for swarm_id in tuple(self._listeners):
            self.deliver(swarm_id)

    def _tell(self, swarm_id: str, listener: Listener) -> int:
        letters = self.letters(swarm_id, listener.seen)
        for seq, message in letters:
            listener.seen = seq
            listener.tell(seq, message)
        return len(letters)

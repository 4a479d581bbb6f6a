"""What this daemon knows by heart: keys as the watch told them, within a bound. Pure.

Keys are kept by *kind* (the part before the first slash). Of a kind that is whole, a key that is not here does not exist; when the
bound is reached, the largest kind forgets its oldest keys and is whole no longer. What somebody read from etcd itself may be
ahead of the watch: it is noted with its revision, and older events of that key are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from ifbusd.store.base import KeyValue, NotAtHand

# What a key takes besides key and value: the tuple, three numbers, two objects' headers, its place in the map.
_OVERHEAD_BYTES: Final = 320
# Sorting more than this for one page takes longer than asking etcd.
_SORTED_HERE: Final = 2_000


@attrs.frozen
class _Elsewhere:
    """A key that exists, or may; its value is not kept."""


_ELSEWHERE: Final = _Elsewhere()
_Known = KeyValue | _Elsewhere | None


@attrs.define(eq=False)
class _Kind:
    """The keys of one kind, oldest first."""

    is_whole: bool
    known: dict[str, _Known] = attrs.Factory(dict)
    size_bytes: int = 0


class Replica:
    """The keys known. One task feeds it."""

    def __init__(self, *, max_bytes: int, max_value_bytes: int) -> None:
        """Begin with nothing: every key may exist."""
        self._max_bytes = max_bytes
        self._max_value_bytes = max_value_bytes
        self._kinds: dict[str, _Kind] = {}
        self._is_loaded = False
        self._size_bytes = 0
        # Keys that are known as of a later revision than the watch's, with that revision.
        self._ahead: dict[str, int] = {}
        self.revision = 0
        self.forgotten = 0

    def __len__(self) -> int:
        """Keys known, absent ones included."""
        return sum(len(kind.known) for kind in self._kinds.values())

    @property
    def size_bytes(self) -> int:
        """What they take, about."""
        return self._size_bytes

    @property
    def whole_kinds(self) -> int:
        """Kinds of which all keys are known."""
        return sum(kind.is_whole for kind in self._kinds.values())

    def find(self, key: str) -> KeyValue | None:
        """The key as of `revision` or later, None if it does not exist.

        Raises:
            NotAtHand: Only etcd can tell.
        """
        kind = self._kinds.get(key.partition("/")[0])
        if kind is None:
            if self._is_loaded:
                return None
            raise NotAtHand(key)
        found = kind.known.get(key, _ELSEWHERE)
        if found is _ELSEWHERE:
            if kind.is_whole and key not in kind.known:
                return None
            raise NotAtHand(key)
        assert not isinstance(found, _Elsewhere)
        return found

    def is_ahead(self, keys: Iterable[str]) -> bool:
        """Whether some of these are known as of a later revision than the rest."""
        return bool(self._ahead) and any(key in self._ahead for key in keys)

    def page(self, prefix: str, after: str, limit: int) -> tuple[list[KeyValue], bool] | None:
        """The keys of a range as of `revision`, and whether it goes on; None if only etcd can tell, or tells sooner."""
        name, slash, _ = prefix.partition("/")
        if not slash or self._ahead or not self._is_loaded:
            return None
        kind = self._kinds.get(name)
        if kind is None:
            return [], False
        if not kind.is_whole or len(kind.known) > _SORTED_HERE:
            return None
        start = after.encode()
        found: list[KeyValue] = []
        for key, known in kind.known.items():
            if not key.startswith(prefix) or (after and key.encode() <= start):
                continue
            if known is _ELSEWHERE:
                return None
            if isinstance(known, KeyValue):
                found.append(known)
        found.sort(key=lambda item: item.key.encode())
        return found[:limit], len(found) > limit

    # --- feeding -------------------------------------------------------------------------------------

    def start(self, revision: int) -> None:
        """Forget everything; what is `load`ed next is as of this revision."""
        self._kinds.clear()
        self._ahead.clear()
        self._size_bytes = 0
        self._is_loaded = False
        self.revision = revision

    def load(self, item: KeyValue) -> bool:
        """Take over a key at the start; False if its kind has its share of the room already, which leaves it incomplete."""
        kind = self._kind_of(item.key, is_whole=True)
        if kind.size_bytes > self._max_bytes // 4:
            kind.is_whole = False
            return False
        self._set(kind, item.key, item)
        return True

    def loaded(self) -> None:
        """All kinds have been `load`ed: one that is not known has no keys."""
        self._is_loaded = True
        self._shrink()

    def told(self, key: str, value: KeyValue | None, revision: int) -> None:
        """The watch told this change."""
        ahead = self._ahead.get(key)
        if ahead is not None and revision < ahead:
            return
        kind = self._kind_of(key, is_whole=self._is_loaded)
        if value is None and kind.is_whole:
            self._drop(kind, key)
        else:
            self._set(kind, key, value)

    def advance(self, revision: int) -> None:
        """All changes up to this revision were told."""
        self.revision = max(self.revision, revision)
        if self._ahead:
            self._ahead = {key: at for key, at in self._ahead.items() if at > self.revision}
        self._shrink()

    def note(self, key: str, value: KeyValue | None, revision: int) -> None:
        """Somebody read this from etcd as of `revision`."""
        if revision < max(self.revision, self._ahead.get(key, 0)):
            return  # what the watch told since may be newer
        kind = self._kind_of(key, is_whole=self._is_loaded)
        if value is None and kind.is_whole:
            self._drop(kind, key)
        else:
            self._set(kind, key, value)
        if revision > self.revision:
            self._ahead[key] = revision
        self._shrink()

    def forget(self, keys: Iterable[str], revision: int = 0) -> None:
        """Only etcd can tell what these are, until the watch does: they were written at `revision`, or may have been (0)."""
        for key in keys:
            self._set(self._kind_of(key, is_whole=self._is_loaded), key, _ELSEWHERE)
            if revision > self.revision:
                self._ahead[key] = revision

    def _kind_of(self, key: str, *, is_whole: bool) -> _Kind:
        name = key.partition("/")[0]
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind(is_whole)
        return kind

    def _set(self, kind: _Kind, key: str, value: _Known) -> None:
        if type(value) is KeyValue and len(value.value) > self._max_value_bytes:
            value = _ELSEWHERE
        more_bytes = _size_of(key, value)
        if key in kind.known:
            more_bytes -= _size_of(key, kind.known.pop(key))  # it goes to the end: it is the newest
        kind.known[key] = value
        self._count(kind, more_bytes)

    def _drop(self, kind: _Kind, key: str) -> None:
        if key in kind.known:
            self._count(kind, -_size_of(key, kind.known.pop(key)))

    def _count(self, kind: _Kind, more_bytes: int) -> None:
        kind.size_bytes += more_bytes
        self._size_bytes += more_bytes

    def _shrink(self) -> None:
        while self._size_bytes > self._max_bytes:
            kind = max(self._kinds.values(), key=lambda kind: kind.size_bytes)
            kind.is_whole = False
            self._drop(kind, next(iter(kind.known)))
            self.forgotten += 1


def _size_of(key: str, value: _Known) -> int:
    return _OVERHEAD_BYTES + len(key) + (len(value.value) if type(value) is KeyValue else 0)

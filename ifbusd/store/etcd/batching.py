"""Which transactions may go out together, as one transaction of nested ones. Pure.

etcd evaluates the compares of all nested transactions on the state before the outer one, so two of which one reads what the other
writes would both win; and it refuses an outer one that puts a key twice. So a group holds no two transactions that touch the
same key, unless both only read it. Its operations, and those of its longest member, share etcd's limit of 128, of which the group's own put takes one.

All of a group get one revision. Where a revision is a key's number among others, as letters are numbered in an inbox, no two may share
it: of each directory that is *ordered* a group writes one key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ifbusd.store.base import Get, Put, Txn

MAX_OPS: Final = 127


class Waiting(Protocol):
    """A transaction that waits to be sent."""

    @property
    def footprint(self) -> Footprint: ...


class Footprint:
    """What a transaction touches: keys read, keys written, ordered directories, its longest list of operations, its size, whether it puts."""

    __slots__ = ("length", "orders", "puts", "reads", "size_bytes", "writes")

    def __init__(self, txn: Txn, ordered: tuple[str, ...] = ()) -> None:
        """Look at it.

        Args:
            ordered: Starts of the keys that are numbered by their revision within their directory.
        """
        reads = {key for key, _ in txn.compares}
        writes = set()
        orders = set()
        puts = txn.record is not None
        size_bytes = sum(map(len, reads)) + (0 if txn.record is None else len(txn.record))
        for branch in (txn.then, txn.otherwise):
            for op in branch:
                size_bytes += 64 + len(op.key)
                if type(op) is Get:
                    reads.add(op.key)
                else:
                    writes.add(op.key)
                    puts |= type(op) is Put
                    if op.key.startswith(ordered):
                        orders.add(op.key.rpartition("/")[0])
                    size_bytes += len(getattr(op, "value", b""))
        self.reads = reads
        self.writes = writes
        self.orders = orders
        self.puts = puts
        self.size_bytes = size_bytes
        then = len(txn.then) + (txn.record is not None)
        self.length = max(len(txn.compares), then, len(txn.otherwise))


class Group:
    """A group being put together."""

    def __init__(self, *, max_txns: int, max_bytes: int) -> None:
        self._max_txns = max_txns
        self._max_bytes = max_bytes
        self._reads: set[str] = set()
        self._writes: set[str] = set()
        self._orders: set[str] = set()
        self._length = 0
        self._size_bytes = 0
        self._txns = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing more fits, whatever it is."""
        return (
            self._txns >= self._max_txns or self._txns + self._length >= MAX_OPS or self._size_bytes >= self._max_bytes
        )

    def add(self, footprint: Footprint) -> bool:
        """Take one in, if it may join; the first may always."""
        if self._txns:
            if self._txns >= self._max_txns or self._txns + 1 + max(self._length, footprint.length) > MAX_OPS:
                return False
            if self._size_bytes + footprint.size_bytes > self._max_bytes or self._touches(footprint):
                return False
        self.block(footprint)
        self._txns += 1
        self._length = max(self._length, footprint.length)
        self._size_bytes += footprint.size_bytes
        return True

    def block(self, footprint: Footprint) -> None:
        """Keep out what touches this one: what came later must not overtake it."""
        self._reads |= footprint.reads
        self._writes |= footprint.writes
        self._orders |= footprint.orders

    def _touches(self, footprint: Footprint) -> bool:
        return not (
            self._writes.isdisjoint(footprint.writes)
            and self._writes.isdisjoint(footprint.reads)
            and self._reads.isdisjoint(footprint.writes)
            and self._orders.isdisjoint(footprint.orders)
        )


def choose(waiting: Sequence[Waiting], *, max_txns: int, max_bytes: int) -> list[int]:
    """The places of those that go out next, in order; the first always does. What touches one that has to wait waits too."""
    group = Group(max_txns=max_txns, max_bytes=max_bytes)
    chosen = []
    for place, each in enumerate(waiting):
        if group.add(each.footprint):
            chosen.append(place)
            if group.is_full:
                break
        else:
            group.block(each.footprint)
    return chosen

"""Where a store's keys stand in etcd, and our values as etcd's messages.

Under the prefix: ``k/`` the store's own keys, ``w/<host>/<slot>`` witness entries on their way to all hosts, ``s/<host>`` a
mark that a host writes to see how far its watch has come, ``x/<host>`` what each of its groups of transactions puts so that etcd's
quota counts. Nobody watches the last.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from etcd3 import etcdrpc

from ifbusd.store.base import Get, KeyValue, Op, Put, Txn, WatchEvent
from ifbusd.store.checks import prefix_end

# Time of the operation, and a number that no other entry of this host's present life has.
_RECORD: Final = struct.Struct(">QQ")
_MOD: Final = etcdrpc.Compare.MOD
_EQUAL: Final = etcdrpc.Compare.EQUAL


class Keys:
    """Names and messages under one prefix."""

    def __init__(self, prefix: str, node: str) -> None:
        self._data = f"{prefix}k/"
        self._data_bytes = self._data.encode()
        self._cut = len(self._data_bytes)
        self.records = f"{prefix}w/".encode()
        self.own_records = f"{prefix}w/{node}/".encode()
        self._marks = f"{prefix}s/"
        self.mark = f"{self._marks}{node}".encode()
        self.weight = f"{prefix}x/{node}".encode()
        # From "k/" to the end of "w/": one watch tells all three.
        self.watched_range = (self._data_bytes, f"{prefix}w0".encode())
        self.record_range = (self.records, f"{prefix}w0".encode())

    def full(self, key: str) -> bytes:
        """A store's key in etcd."""
        return (self._data + key).encode()

    def change(self, event: Any) -> WatchEvent | None:
        """What an event of etcd's watch says of a store's key; None for other keys."""
        kv = event.kv
        full = kv.key  # each look at a message's field makes a new object
        if not full.startswith(self._data_bytes):
            return None
        key, revision = full[self._cut :].decode(), kv.mod_revision
        value = None if event.type else KeyValue(key, kv.value, kv.create_revision, revision, kv.lease)
        return WatchEvent(key, value, revision)

    def is_record(self, event: Any) -> bool:
        """Whether an event of etcd's watch tells a witness entry."""
        return not event.type and event.kv.key.startswith(self.records)

    def key_value(self, kv: Any) -> KeyValue:
        """A stored key."""
        return KeyValue(kv.key[self._cut :].decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)

    def bounds(self, prefix: str, after: str) -> tuple[bytes, bytes]:
        """The range of keys that start with `prefix` and sort after `after`."""
        start = max(self._data + prefix, f"{self._data}{after}\0" if after else "")
        end = prefix_end(self._data + prefix)
        assert end is not None  # our own prefix ends in a slash
        return start.encode(), end.encode()

    def record_key(self, slot: int) -> bytes:
        """Where this host's entry stands."""
        return self.own_records + b"%08x" % slot

    # --- messages ------------------------------------------------------------------------------------

    def write_txn(self, request: Any, txn: Txn, record: tuple[int, bytes] | None) -> None:
        """Write a transaction into an empty request, in place: handing over finished parts would copy each of them.

        Args:
            record: Slot and value of the witness entry that goes with `then`.
        """
        for key, mod_revision in txn.compares:
            compare = request.compare.add()
            compare.key = (self._data + key).encode()
            compare.target, compare.result = _MOD, _EQUAL
            compare.mod_revision = mod_revision
        for op in txn.then:
            self._write_op(request.success.add(), op)
        if record is not None:
            put = request.success.add().request_put
            put.key, put.value = self.record_key(record[0]), record[1]
        for op in txn.otherwise:
            self._write_op(request.failure.add(), op)

    def _write_op(self, request: Any, op: Op) -> None:
        key = (self._data + op.key).encode()
        if type(op) is Put:
            put = request.request_put
            put.key, put.value = key, op.value
            if op.lease:
                put.lease = op.lease
        elif type(op) is Get:
            request.request_range.key = key
        else:
            request.request_delete_range.key = key


def pack_record(at_ms: int, number: int, record: bytes) -> bytes:
    """A witness entry as it stands in etcd."""
    return _RECORD.pack(at_ms, number) + record


def unpack_record(value: bytes) -> tuple[int, bytes]:
    """When it was done, and the entry.

    Raises:
        ValueError: Somebody else wrote this.
    """
    if len(value) < _RECORD.size:
        raise ValueError(f"expected at least {_RECORD.size} bytes, got {len(value)}")
    return _RECORD.unpack_from(value)[0], value[_RECORD.size :]

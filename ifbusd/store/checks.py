"""What a store accepts, and how key ranges are bounded: pure, and the same for every backend.

The limits are the ones that etcd has (operations per transaction) or that keep one request from being a burden to all
others (key, value), so that what works on the embedded store also works on a cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ifbusd.store.base import Delete, Get, Op, Put, Txn

if TYPE_CHECKING:
    from collections.abc import Sequence

# etcd's own limit (`--max-txn-ops`): on compares and on each branch.
MAX_TXN_OPS: Final = 128
# etcd takes requests of up to 1.5 MiB.
MAX_VALUE_BYTES: Final = 1024 * 1024
MAX_KEY_CHARS: Final = 512


def check_txn(txn: Txn) -> None:
    """Refuse what no backend can do; nothing in a checked transaction can fail half-way for a reason of its own.

    Raises:
        ValueError: Too many operations, a key or value out of bounds, or a key written twice in one branch.
        TypeError: A key is no string, a value or record no bytes, or an operation none of the three.
    """
    if len(txn.compares) > MAX_TXN_OPS:
        raise ValueError(f"cannot do a transaction of {len(txn.compares)} compares: at most {MAX_TXN_OPS}")
    for key, _ in txn.compares:
        if type(key) is not str or not 0 < len(key) <= MAX_KEY_CHARS or not key.isascii():
            check_key(key)
    if txn.then:
        _check_branch(txn.then)
    if txn.otherwise:
        _check_branch(txn.otherwise)
    if txn.record is not None:
        check_bytes("record", txn.record)


def _check_branch(ops: Sequence[Op]) -> None:
    if len(ops) > MAX_TXN_OPS:
        raise ValueError(f"cannot do a transaction of {len(ops)} operations: at most {MAX_TXN_OPS}")
    written = set()
    for op in ops:
        key = op.key
        # The ordinary key is told here: a call for each is a tenth of a claim's time in the store.
        if type(key) is not str or not 0 < len(key) <= MAX_KEY_CHARS or not key.isascii():
            check_key(key)
        if type(op) is Get:
            continue
        if type(op) is Put:
            if type(op.value) is not bytes or len(op.value) > MAX_VALUE_BYTES:
                check_bytes(key, op.value)
        elif type(op) is not Delete:
            raise TypeError(f"cannot do {op!r}: not an operation")
        if key in written:
            raise ValueError(f"cannot write key {key!r} twice in one transaction")
        written.add(key)


def check_key(key: str) -> None:
    """Refuse what is no key of any backend. Raises TypeError or ValueError."""
    if type(key) is not str:
        raise TypeError(f"cannot use key {key!r}: not a string")
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise ValueError(f"cannot use a key of {len(key)} characters: 1 to {MAX_KEY_CHARS}")
    if not key.isascii():
        key.encode()  # a lone surrogate is a ValueError here, not halfway through


def check_bytes(what: str, value: bytes) -> None:
    """Refuse what is no value or record of any backend. Raises TypeError or ValueError."""
    if type(value) is not bytes:
        raise TypeError(f"cannot write {what!r}: {type(value).__name__} instead of bytes")
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"cannot write {what!r}: {len(value)} bytes, the limit is {MAX_VALUE_BYTES}")


def prefix_end(prefix: str) -> str | None:
    """The first string after all those that start with `prefix`, None if there is none (bytewise order of UTF-8)."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            # Code points from D800 to DFFF are halves of UTF-16 pairs and have no UTF-8.
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return None

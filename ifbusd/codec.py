"""How values stand in the store: MessagePack of plain maps, lists, strings, integers and bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgpack

# Of the rows in one answer: a message has 64 KiB, and there is more in an answer than its rows.
ANSWER_BYTES: Final = 48 << 10

# One packer for the process: the store is used from one thread, and a packer made per call costs twice as much.
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


def pack(value: Any) -> bytes:
    """The stored bytes of a plain value.

    Raises:
        TypeError, ValueError, OverflowError: The value holds something that MessagePack has no type for: a bug.
    """
    data: bytes = _packer.pack(value)
    return data


def how_many_fit(values: Iterable[Any], most_bytes: int = ANSWER_BYTES) -> int:
    """How many of these, from the first on, are no longer than `most_bytes` together; the first always counts as fitting."""
    n = size = 0
    for value in values:
        size += len(pack(value))
        if n and size > most_bytes:
            break
        n += 1
    return n


def unpack(data: bytes) -> Any:
    """The plain value of stored bytes.

    Raises:
        ValueError: The bytes are not what `pack` gave: the store was damaged or written by something else.
    """
    return msgpack.unpackb(data, raw=False, strict_map_key=False)

"""How values stand in the store: MessagePack of plain maps, lists, strings, integers and bytes. Pure."""

from __future__ import annotations

from typing import Any

import msgpack

# One packer for the process: the store is used from one thread, and a packer made per call costs twice as much.
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


def pack(value: Any) -> bytes:
    """The stored bytes of a plain value.

    Raises:
        TypeError, ValueError, OverflowError: The value holds something that MessagePack has no type for: a bug.
    """
    data: bytes = _packer.pack(value)
    return data


def unpack(data: bytes) -> Any:
    """The plain value of stored bytes.

    Raises:
        ValueError: The bytes are not what `pack` gave: the store was damaged or written by something else.
    """
    return msgpack.unpackb(data, raw=False, strict_map_key=False)

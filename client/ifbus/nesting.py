"""Finds nesting that is too deep before a decoder sees it.

msgpack allocates a declared array at once and goes down 1024 levels, so 3 kB of nested headers that each declare 4096 elements
cost 28 MB, for as long as the rest of the message is awaited. Whole messages cannot do that: they would be longer than a
message may be. So only unfinished ones, and what looks like the start of such an attack, are walked through here; that takes
about 0.3 us per element.

Rule of this file: no I/O, and never more memory than one header.
"""

from __future__ import annotations

import re
from typing import Final

# More headers of long arrays than this in one piece of a stream, and it is walked through before it is decoded. They are also
# bytes of text and numbers, so this is a reason to look, not to refuse.
_MANY: Final = 32
_FIX_EXT: Final = {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
_NUMBERS: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
# Bytes of the length that follows the first byte: bin, ext, str, array, map.
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4} | {
    0xDC: 2,
    0xDD: 4,
    0xDE: 2,
    0xDF: 4,
}


def _own_length(first: int) -> int:
    # Payload bytes or elements that the first byte itself declares.
    if 0x80 <= first <= 0x8F:
        return 2 * (first & 0x0F)
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    if 0xA0 <= first <= 0xBF:
        return first & 0x1F
    return _FIX_EXT.get(first, _NUMBERS.get(first, 0))


_LENGTH_BYTES: Final = bytes(_LENGTHS.get(first, 0) for first in range(256))
_OWN_LENGTH: Final = bytes(_own_length(first) for first in range(256))
_IS_CONTAINER: Final = bytes(0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF for first in range(256))
# One-byte values one after another, empty containers among them: 64 KiB of them, byte by byte, would take 20 ms.
_RUN: Final = re.compile(rb"[\x00-\x80\x90\xa0\xc0\xc2\xc3\xe0-\xff]+")
_SHORTEST_RUN: Final = 4
# Added to or multiplied with a declared length: an extension has a type byte, a map two values per entry.
_EXTRA: Final = bytes(first in (0xC7, 0xC8, 0xC9) for first in range(256))
_FACTOR: Final = bytes(2 if first in (0xDE, 0xDF) else 1 for first in range(256))


class TooDeep(Exception):
    """Containers are nested deeper than the limit."""


def is_suspicious(data: bytes | memoryview) -> bool:
    """Whether `data` has so many bytes that can head a long array that it must be walked through."""
    raw = bytes(data)
    return raw.count(b"\xdc") + raw.count(b"\xdd") > _MANY


class NestingScan:
    """Walks through one message that arrives in pieces.

    Args:
        limit: Containers inside one another, the outermost being the first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: list[int] = []  # elements still to come, per open container
        self._skip = 0  # payload bytes still to come
        self._head = b""  # a header whose end has not arrived
        self._is_whole = False  # nothing but `_skip` bytes is to come

    def feed(self, data: bytes | memoryview) -> int | None:
        """Walk on; how many bytes of `data` the message takes, or None if it goes on beyond them.

        Raises:
            TooDeep: At the first container beyond the limit.
        """
        before = len(self._head)
        data = self._head + bytes(data)
        self._head = b""
        end = len(data)
        at, open_, limit = self._skip, self._open, self._limit
        while at < end and not self._is_whole:
            if open_ and open_[-1] > _SHORTEST_RUN and len(open_) < limit and (run := _RUN.match(data, at)):
                # All but the last, which may end the container and with it others.
                length = min(run.end() - at, open_[-1] - 1)
                open_[-1] -= length
                at += length
                if at == end:
                    break
            first = data[at]
            length_bytes = _LENGTH_BYTES[first]
            if not length_bytes:
                length = _OWN_LENGTH[first]
            elif at + length_bytes < end:
                length = int.from_bytes(data[at + 1 : at + 1 + length_bytes], "big") * _FACTOR[first] + _EXTRA[first]
            else:
                self._head, self._skip = data[at:], 0
                return None
            at += 1 + length_bytes
            if _IS_CONTAINER[first]:
                if len(open_) >= limit:
                    raise TooDeep
                if length:
                    open_.append(length)
                    continue
            else:
                at += length
            while open_:
                open_[-1] -= 1
                if open_[-1]:
                    break
                open_.pop()
            self._is_whole = not open_
        if self._is_whole and at <= end:
            return at - before
        self._skip = at - end
        return None

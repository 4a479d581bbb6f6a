"""Damage in SQLite's write-ahead log that SQLite itself takes for the end of the log.

SQLite reads the log up to the first frame whose checksum is wrong and forgets the rest: after a power loss that is the commit
that was not completed. A flipped bit looks the same, and would take every later commit with it in silence. But a commit is
begun only after the one before it is on the disk: a whole commit *with a continuation* behind a broken frame proves that the
frame was whole once. What stands in the last commit cannot be told from one cut off; only a receipt can (`ifbus witness verify`).

The format: https://sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from typing import Final

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
_SUMMED_HEADER_BYTES: Final = 24
_SUMMED_FRAME_BYTES: Final = 8
_SALTS: Final = slice(8, 16)
_SUMS: Final = slice(16, 24)
_MAX_UINT32: Final = 0xFFFFFFFF

_Sums = tuple[int, int]


def describe_damage(log: bytes, used_frames: int) -> str | None:
    """What is damaged in a write-ahead log, None if it is whole or may have been cut off by a crash.

    Args:
        log: The whole file.
        used_frames: How many of its frames SQLite reads.
    """
    if len(log) < HEADER_BYTES or not any(log[:HEADER_BYTES]):
        return None
    order = ">" if log[3] & 1 else "<"
    if _sums((0, 0), log[:_SUMMED_HEADER_BYTES], order) != _stored(log[24:32]):
        return "its header does not match its checksum"
    salts = log[16:24]
    frame_bytes = FRAME_HEADER_BYTES + int.from_bytes(log[8:12], "big")
    frames = (len(log) - HEADER_BYTES) // frame_bytes
    for number in range(used_frames, frames - 1):
        at = HEADER_BYTES + number * frame_bytes
        frame, following = log[at : at + frame_bytes], log[at + frame_bytes : at + 2 * frame_bytes]
        is_commit = any(frame[4:8])
        if is_commit and frame[_SALTS] == following[_SALTS] == salts and _continues(frame, following, order):
            return f"frame {used_frames + 1} does not match its checksum, and whole commits come after it"
    return None


def whole_frames(log: bytes) -> int:
    """How many frames of a write-ahead log SQLite reads: up to the last whole commit. Slow (0.3 s for 4 MiB): SQLite itself says so, if it can."""
    order = ">" if len(log) > HEADER_BYTES and log[3] & 1 else "<"
    sums, used = _stored(log[24:HEADER_BYTES]), 0
    frame_bytes = FRAME_HEADER_BYTES + int.from_bytes(log[8:12], "big")
    for number in range((len(log) - HEADER_BYTES) // frame_bytes):
        at = HEADER_BYTES + number * frame_bytes
        frame = log[at : at + frame_bytes]
        sums = _sums(_sums(sums, frame[:_SUMMED_FRAME_BYTES], order), frame[FRAME_HEADER_BYTES:], order)
        if frame[_SALTS] != log[16:24] or sums != _stored(frame[_SUMS]):
            break
        if any(frame[4:8]):
            used = number + 1
    return used


def _continues(frame: bytes, following: bytes, order: str) -> bool:
    """Whether the second frame was written after the first, as its checksum, which goes on from the first's, shows."""
    sums = _sums(_stored(frame[_SUMS]), following[:_SUMMED_FRAME_BYTES], order)
    return _sums(sums, following[FRAME_HEADER_BYTES:], order) == _stored(following[_SUMS])


def _stored(sums: bytes) -> _Sums:
    return int.from_bytes(sums[:4], "big"), int.from_bytes(sums[4:], "big")


def _sums(sums: _Sums, data: bytes, order: str) -> _Sums:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MAX_UINT32
        second = (second + odd + first) & _MAX_UINT32
    return first, second

"""The witness log's hash chain: each entry's hash covers the one before it, so no past entry changes unnoticed."""

from __future__ import annotations

import hashlib
import struct
from typing import Final

GENESIS: Final = bytes(32)
# A domain tag keeps these hashes apart from every other SHA-256 in the system.
_DOMAIN: Final = b"ifbus log 1\0"
_FIXED: Final = struct.Struct(">QQQ")


def entry_hash(previous: bytes, seq: int, revision: int, at_ms: int, record: bytes) -> bytes:
    """SHA-256 over a domain tag, the previous hash, number, revision, time (8 bytes big-endian each) and the record."""
    return hashlib.sha256(_DOMAIN + previous + _FIXED.pack(seq, revision, at_ms) + record).digest()

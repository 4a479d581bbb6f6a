"""What daemon, zygote and workers say to each other: one MessagePack array per SEQPACKET datagram.

Datagrams keep a hostile worker from holding a reader inside half a message. Everything that a worker sends is decoded with
the smallest limits that fit and checked for its exact shape; a worker that breaks them is killed, never argued with.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

# Below the default socket buffer (208 KiB), so that one message always fits and a send never waits on an idle worker.
MAX_MESSAGE_BYTES: Final = 128 << 10

_TEXT_BYTES: Final = 4096


class BrokenWorker(Exception):
    """A worker said something that no worker says."""


class Outcome(NamedTuple):
    """A worker's answer to one execution.

    Attributes:
        status: ``ok``, ``trap``, ``exit`` (non-zero), ``output`` (more than allowed), ``memory`` (does not start within
            its limit), ``input`` (does not fit the export).
        output: JSON text when ``ok``, else what the guest wrote to standard error.
        message: Why, when not ``ok``.
        memory_bytes: Guest memory after the run.
    """

    execution: int
    status: str
    output: bytes
    message: str
    memory_bytes: int


STATUSES: Final = frozenset({"ok", "trap", "exit", "output", "memory", "input"})


# One per process, as in `ifbusd.codec`, which is not for here: zygote and workers load nothing of the daemon's.
_packer: Final = msgpack.Packer(use_bin_type=True, autoreset=True)


def pack(message: list[Any]) -> bytes:
    """One datagram."""
    packed: bytes = _packer.pack(message)
    return packed


def unpack(data: bytes | memoryview) -> list[Any]:
    """The message in a datagram.

    Raises:
        BrokenWorker: It is no array of a few plain values.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise BrokenWorker(f"message longer than {MAX_MESSAGE_BYTES} bytes")
    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            max_array_len=64,
            max_map_len=32,
            max_ext_len=0,
            max_str_len=_TEXT_BYTES,
            max_bin_len=MAX_MESSAGE_BYTES,
        )
    except Exception as error:  # msgpack has eight kinds and adds some: any of them means the same here (FACTS 4)
        raise BrokenWorker(f"not MessagePack: {type(error).__name__}") from error
    if type(message) is not list:
        raise BrokenWorker("message is no array")
    return message


def unpack_outcome(data: bytes, execution: int) -> Outcome:
    """The answer to `execution`.

    Raises:
        BrokenWorker: It is anything else.
    """
    message = unpack(data)
    if [type(part) for part in message] != [int, str, bytes, str, int]:
        raise BrokenWorker("answer of a wrong shape")
    outcome = Outcome(*message)
    if outcome.execution != execution or outcome.status not in STATUSES or outcome.memory_bytes < 0:
        raise BrokenWorker("answer to something else")
    return outcome


def clip(text: str) -> str:
    """At most 1 KiB of a text that a guest may have shaped, without control characters."""
    cut = text if len(text) <= 1024 else text[:1021] + "..."
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in cut)

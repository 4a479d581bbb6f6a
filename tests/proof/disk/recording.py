"""The record that `disk.c` writes, as values: what was done to the disk, and what clients said and were told, in one order."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import msgpack

# Keep in step with `struct entry` of disk.c.
_ENTRY = struct.Struct("=BBHiQQ")


@attrs.frozen
class Opened:
    """A file, or a directory (`name` is empty for the state directory itself), has the descriptor `fd` from now on."""

    fd: int
    name: str
    is_new: bool


@attrs.frozen
class Closed:
    """`fd` means nothing any more; also a client's."""

    fd: int


@attrs.frozen
class Written:
    """Bytes at an offset."""

    fd: int
    at: int
    data: bytes


@attrs.frozen
class Truncated:
    """The file has this length now; what was added reads as zeros."""

    fd: int
    length: int


@attrs.frozen
class Synced:
    """What was written to the file, or the names made in the directory, are durable."""

    fd: int


@attrs.frozen
class SyncFailed:
    """An fsync failed: the kernel may have thrown away what was not durable, and a later fsync says nothing about it."""

    fd: int


@attrs.frozen
class NoSpace:
    """A change that needed space was refused."""


@attrs.frozen
class MadeDirectory:
    name: str


@attrs.frozen
class Removed:
    """A file's name, or an empty directory, is gone."""

    name: str


@attrs.frozen
class Renamed:
    name: str
    to: str


@attrs.frozen
class Linked:
    name: str
    to: str


@attrs.frozen
class Joined:
    """A client connected."""

    fd: int


@attrs.frozen
class Heard:
    """Bytes that a client sent."""

    fd: int
    data: bytes


@attrs.frozen
class Answered:
    """Bytes that the daemon gave the kernel for a client: from here on it has said this."""

    fd: int
    data: bytes


Event = (
    Opened
    | Closed
    | Written
    | Truncated
    | Synced
    | SyncFailed
    | NoSpace
    | MadeDirectory
    | Removed
    | Renamed
    | Linked
    | Joined
    | Heard
    | Answered
)


def read(path: Path) -> list[Event]:
    """The whole record; a last entry that a kill cut off is left out.

    Raises:
        ValueError: The daemon did something that cannot be replayed, such as writing through a mapping.
    """
    return list(_events(path.read_bytes()))


def _events(log: bytes) -> Iterator[Event]:
    at = 0
    while at + _ENTRY.size <= len(log):
        kind, flag, _, fd, number, size = _ENTRY.unpack_from(log, at)
        at += _ENTRY.size
        data = log[at : at + size]
        if len(data) < size:
            return
        at += size
        yield _event(chr(kind), flag, fd, number, data)


def _event(kind: str, flag: int, fd: int, number: int, data: bytes) -> Event:
    match kind:
        case "O":
            return Opened(fd, data.decode(), bool(flag))
        case "C":
            return Closed(fd)
        case "W":
            return Written(fd, number, data)
        case "T":
            return Truncated(fd, number)
        case "S":
            return Synced(fd)
        case "E":
            return SyncFailed(fd)
        case "N":
            return NoSpace()
        case "J":
            return Joined(fd)
        case "H":
            return Heard(fd, data)
        case "A":
            return Answered(fd, data)
        case "M" | "U" | "D" | "R" | "L":
            names = data.decode().split("\0")
            if kind == "M":
                return MadeDirectory(names[0])
            if kind in "UD":
                return Removed(names[0])
            return (Renamed if kind == "R" else Linked)(names[0], names[1])
    raise ValueError(f"the record has something that cannot be replayed: {kind} {data.decode(errors='replace')}")


@attrs.frozen
class Said:
    """Something that the daemon told a client: the answer to a request, or a notification (`method` and `params` are its own).

    Attributes:
        at: Index of the event with its last byte: from the state after this event on, it has been said.
        heard_at: Index of the event with the last byte of the request; -1 for a notification.
        error, result: Of the answer; both None for a notification.
    """

    at: int
    heard_at: int
    method: str
    params: Any
    error: Any
    result: Any


def conversation(events: Sequence[Event]) -> list[Said]:
    """All that clients were told, in order."""
    said: list[Said] = []
    hearing: dict[int, msgpack.Unpacker] = {}
    saying: dict[int, msgpack.Unpacker] = {}
    asked: dict[tuple[int, int], tuple[int, str, Any]] = {}
    for index, event in enumerate(events):
        match event:
            case Joined(fd=fd):
                hearing[fd], saying[fd] = msgpack.Unpacker(raw=False), msgpack.Unpacker(raw=False)
            case Heard(fd=fd, data=data):
                hearing[fd].feed(data)
                for message in hearing[fd]:
                    if message[0] == 0:
                        asked[fd, message[1]] = (index, message[2], message[3])
            case Answered(fd=fd, data=data):
                saying[fd].feed(data)
                for message in saying[fd]:
                    if message[0] == 1:
                        heard_at, method, params = asked.pop((fd, message[1]))
                        said.append(Said(index, heard_at, method, params, message[2], message[3]))
                    elif message[0] == 2:
                        said.append(Said(index, -1, message[1], message[2], None, None))
    return said

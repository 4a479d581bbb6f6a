"""Every disk that a power loss could leave: a recorded run, cut off at each point, with what was not synced lost, kept or torn.

The disk is a strict one. What a file was given is durable after an fsync of that file; a name made, changed or removed is
durable after an fsync of its directory, and of nothing else (a file system may do more, POSIX promises no more). Until then
each write, and each name, may be on the disk or not, in any combination, whatever came first; a write may be there in part, by
sectors of 512 bytes; a file may have grown without its data, and reads as zeros there. After a failed fsync nothing that was
pending becomes durable by a later one.
"""

from __future__ import annotations

import hashlib
import posixpath
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from tests.proof.disk.recording import (
    Closed,
    Event,
    Linked,
    MadeDirectory,
    Opened,
    Removed,
    Renamed,
    Synced,
    SyncFailed,
    Truncated,
    Written,
)

SECTOR_BYTES = 512
# Chances that a pending sector or write survives: few, half, most.
_CHANCES = (0.1, 0.5, 0.9)
# Through the whole run with hardly anything new: there is not much more to find.
_FRUITLESS_ROUNDS = 50

# Content by name within the state directory; None is a directory.
Image = Mapping[str, bytes | None]
_Keep = Callable[[], bool]


@attrs.define
class _File:
    """A file's content as it is durable, and what was done to it since."""

    durable: bytes = b""
    pending: list[Written | Truncated] = attrs.Factory(list)
    # How many of the pending a failed fsync has given up.
    doomed: int = 0


@attrs.frozen
class _NewFile:
    name: str
    file: _File


_NameChange = _NewFile | MadeDirectory | Removed | Renamed | Linked
_Names = dict[str, _File | None]


class StrictDisk:
    """The disk while a recorded run goes on. The mutable state is what is durable and what is pending."""

    def __init__(self, image: Image | None = None) -> None:
        """`image` is what the disk holds, durably, when the run begins."""
        self._names: _Names = {
            name: None if content is None else _File(content) for name, content in (image or {}).items()
        }
        self._pending: list[_NameChange] = []
        self._open: dict[int, str | _File] = {}  # a directory by its name

    @property
    def is_pending(self) -> bool:
        """Whether a power loss now could leave more than one disk."""
        return bool(self._pending) or any(file is not None and file.pending for file in self._seen().values())

    def apply(self, event: Event) -> None:
        """Let the next event of the run happen; those that are none of the disk's change nothing."""
        match event:
            case Opened(fd=fd, name=name, is_new=is_new):
                if is_new:
                    self._pending.append(_NewFile(name, _File()))
                opened = self._seen()[name] if name else None
                self._open[fd] = name if opened is None else opened
            case Closed(fd=fd):
                self._open.pop(fd, None)
            case Written(fd=fd) | Truncated(fd=fd):
                self._file(fd).pending.append(event)
            case Synced(fd=fd):
                self._sync(self._open[fd])
            case SyncFailed(fd=fd):
                file = self._open[fd]
                if isinstance(file, _File):
                    file.doomed = len(file.pending)
            case MadeDirectory() | Removed() | Renamed() | Linked():
                self._pending.append(event)

    def _file(self, fd: int) -> _File:
        file = self._open[fd]
        assert isinstance(file, _File), "a directory was written to"
        return file

    def _sync(self, what: str | _File) -> None:
        if isinstance(what, _File):
            what.durable = _content(what.durable, what.pending[what.doomed :], lambda: True)
            what.pending.clear()
            what.doomed = 0
            return
        for change in self._pending:
            if _directory(change) == what:
                _rename(self._names, change)
        self._pending = [change for change in self._pending if _directory(change) != what]

    def _seen(self) -> _Names:
        """The names as the running daemon sees them."""
        if not self._pending:
            return self._names
        names = dict(self._names)
        for change in self._pending:
            _rename(names, change)
        return names

    def kept(self) -> Image:
        """The disk if everything pending got there: what a kill leaves."""
        return self._image(lambda: True)

    def dropped(self) -> Image:
        """The disk if nothing pending got there."""
        return self._image(lambda: False)

    def chance(self, rng: random.Random, *, is_torn: bool) -> Image:
        """The disk if chance decides for each name, and each write, or with `is_torn` each sector of each."""
        chance = rng.choice(_CHANCES)

        def keep() -> bool:
            return rng.random() < chance

        return self._image(keep, is_torn=is_torn, is_grown=is_torn and rng.random() < 0.5)

    def _image(self, keep: _Keep, *, is_torn: bool = False, is_grown: bool = False) -> Image:
        names = dict(self._names)
        for change in self._pending:
            if keep():
                _rename(names, change)
        contents = {
            id(file): _content(file.durable, file.pending, keep, is_torn=is_torn, is_grown=is_grown)
            for file in names.values()
            if file is not None
        }
        return {
            name: None if file is None else contents[id(file)]
            for name, file in sorted(names.items())
            # What stands in a directory that did not get there is lost with it.
            if all(parent in names for parent in _parents(name))
        }


def replayed(events: Sequence[Event], before: Image | None = None) -> StrictDisk:
    """The disk at the end of a run; `before` is what it held, durably, when the run began."""
    disk = StrictDisk(before)
    for event in events:
        disk.apply(event)
    return disk


def _content(
    durable: bytes,
    changes: Sequence[Written | Truncated],
    keep: _Keep,
    *,
    is_torn: bool = False,
    is_grown: bool = False,
) -> bytes:
    """The durable content with those of the changes that survive."""
    if not changes:
        return durable
    content = bytearray(durable)
    for change in changes:
        if isinstance(change, Truncated):
            if keep():
                del content[change.length :]
                _grow(content, change.length)
            continue
        end = change.at + len(change.data)
        if is_grown:
            _grow(content, end)
        step = SECTOR_BYTES if is_torn else max(1, len(change.data))
        at = change.at
        while at < end:
            # Sectors of the disk, not of the write: a write that begins in the middle of one shares it.
            until = min(end, (at // step + 1) * step) if is_torn else end
            if keep():
                _grow(content, until)
                content[at:until] = change.data[at - change.at : until - change.at]
            at = until
    return bytes(content)


def _grow(content: bytearray, length: int) -> None:
    if len(content) < length:
        content.extend(bytes(length - len(content)))


def _rename(names: _Names, change: _NameChange) -> None:
    """Make one change of names, as far as it can be made: what it builds on may not have survived."""
    match change:
        case _NewFile(name=name, file=file):
            names[name] = file
        case MadeDirectory(name=name):
            names[name] = None
        case Removed(name=name):
            names.pop(name, None)
        case Renamed(name=name, to=to):
            if name in names:
                names[to] = names.pop(name)
        case Linked(name=name, to=to):
            if name in names:
                names[to] = names[name]


def _directory(change: _NameChange) -> str:
    """The directory whose fsync makes a change of names durable."""
    directory = posixpath.dirname(change.name)
    if isinstance(change, Renamed | Linked):
        assert posixpath.dirname(change.to) == directory, "names that move between directories are not modelled"
    return directory


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


@attrs.frozen
class Crash:
    """One disk that a power loss could leave.

    Attributes:
        image: What is on it.
        at: Index of the last event before the power failed; the last one at which this disk can come about, so that as much
            as possible has been acknowledged by then.
        how: ``kept``, ``dropped``, ``random`` or ``torn``.
    """

    image: Image
    at: int
    how: str


def crashes(events: Sequence[Event], *, count: int, rng: random.Random, before: Image | None = None) -> Iterator[Crash]:
    """Different disks that a power loss during the run could leave, `count` at most.

    First all that are there at each point with everything pending kept, and dropped; then chance, point after point, until there
    are enough or nothing new comes. A disk that comes about at several points is given once, for the last of them.

    Args:
        before: What the disk held, durably, when the run began.
    """
    last: dict[bytes, Crash] = {}
    pending: list[int] = []
    disk = StrictDisk(before)
    for at, event in enumerate(events):
        disk.apply(event)
        for how, image in (("kept", disk.kept()), ("dropped", disk.dropped())):
            last[_digest(image)] = Crash(image, at, how)
        if disk.is_pending:
            pending.append(at)
    yield from sorted(last.values(), key=lambda crash: crash.at)[:count]
    given = len(last)
    seen = set(last)
    fruitless = 0
    while given < count and pending and fruitless < _FRUITLESS_ROUNDS:
        found = 0
        # Through the run again, from its beginning: going back is not possible, and copying is not faster.
        disk, is_turn = StrictDisk(before), set(pending)
        for at, event in enumerate(events):
            disk.apply(event)
            if at not in is_turn:
                continue
            how = rng.choice(("random", "torn", "torn"))
            image = disk.chance(rng, is_torn=how == "torn")
            digest = _digest(image)
            if digest in seen:
                continue
            seen.add(digest)
            found += 1
            given += 1
            yield Crash(image, at, how)
            if given >= count:
                return
        fruitless = fruitless + 1 if found * 100 < len(pending) else 0


def some_crashes(events: Sequence[Event], *, count: int, rng: random.Random) -> Iterator[Crash]:
    """A few disks that a power loss during a long run could leave: at random points, and at the end with nothing and all kept."""
    points = set(rng.sample(range(len(events)), min(count, len(events))))
    disk = StrictDisk()
    for at, event in enumerate(events):
        disk.apply(event)
        if at in points:
            how = rng.choice(("dropped", "random", "torn"))
            yield Crash(disk.dropped() if how == "dropped" else disk.chance(rng, is_torn=how == "torn"), at, how)
    yield Crash(disk.dropped(), len(events) - 1, "dropped")
    yield Crash(disk.kept(), len(events) - 1, "kept")


def _digest(image: Image) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, content in image.items():
        digest.update(b"%d %d %s" % (len(name), -1 if content is None else len(content), name.encode()))
        digest.update(content or b"")
    return digest.digest()


def place(image: Image, directory: Path) -> None:
    """Make an empty or missing directory hold this image."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in image.items():  # sorted: a directory comes before what is in it
        path = directory / name
        if content is None:
            path.mkdir(mode=0o700)
        else:
            path.write_bytes(content)
            path.chmod(0o600)

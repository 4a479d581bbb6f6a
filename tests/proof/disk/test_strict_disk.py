"""The instruments themselves: what the strict disk keeps and loses, and what the recorder refuses to take for a record."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.proof.disk import recording
from tests.proof.disk.recording import (
    Closed,
    Event,
    MadeDirectory,
    Opened,
    Renamed,
    Synced,
    SyncFailed,
    Truncated,
    Written,
)
from tests.proof.powerloss import SECTOR_BYTES, crashes, replayed

MADE: list[Event] = [Opened(3, "f", True), Written(3, 0, b"old")]
SYNCED: list[Event] = [*MADE, Synced(3), Opened(4, "", False), Synced(4), Closed(4)]


def test_a_name_needs_the_sync_of_its_directory() -> None:
    """A synced file is lost with its name, a synced name comes back empty, and both together stay."""
    assert replayed([*MADE, Synced(3)]).dropped() == {}
    assert replayed([*MADE, Opened(4, "", False), Synced(4)]).dropped() == {"f": b""}
    assert replayed(SYNCED).dropped() == {"f": b"old"}


def test_what_is_in_a_lost_directory_is_lost() -> None:
    """Syncing a directory makes durable what stands in it, not itself."""
    inside: list[Event] = [MadeDirectory("d"), Opened(3, "d/f", True), Synced(3), Opened(4, "d", False), Synced(4)]
    assert replayed(inside).dropped() == {}
    assert replayed([*inside, Opened(5, "", False), Synced(5)]).dropped() == {"d": None, "d/f": b""}


def test_unsynced_work_may_be_there_or_not() -> None:
    """Writes, truncations and renames that nobody synced come with a kill and may go with the power, each alone."""
    run: list[Event] = [*SYNCED, Written(3, 0, b"new"), Truncated(3, 2), Renamed("f", "g")]
    assert replayed(run).kept() == {"g": b"ne"}
    found = {tuple(crash.image.items()) for crash in crashes(run, count=1000, rng=random.Random(1))}
    end = {((name, content),) for name in "fg" for content in (b"old", b"new", b"ol", b"ne")}
    assert end <= found


def test_a_failed_sync_is_not_made_good_by_the_next() -> None:
    """What was pending when an fsync failed is lost, whatever later ones say."""
    run: list[Event] = [*SYNCED, Written(3, 0, b"new"), SyncFailed(3), Written(3, 3, b"er"), Synced(3)]
    assert replayed(run).dropped() == {"f": b"older"}


def test_a_write_is_torn_at_sectors() -> None:
    """A torn write has whole sectors of the new and of the old content, or of zeros where there was nothing."""
    run: list[Event] = [*SYNCED, Written(3, 0, b"x" * 3 * SECTOR_BYTES)]
    at_the_end = (crash for crash in crashes(run, count=200, rng=random.Random(1)) if crash.at == len(run) - 1)
    torn = [crash.image["f"] or b"" for crash in at_the_end if crash.how == "torn"]
    sectors = {image[at : at + SECTOR_BYTES] for image in torn for at in range(0, len(image), SECTOR_BYTES)}
    assert {b"x" * SECTOR_BYTES, bytes(SECTOR_BYTES)} <= sectors
    assert sectors <= {b"x" * SECTOR_BYTES, bytes(SECTOR_BYTES), b"old", b"old".ljust(SECTOR_BYTES, b"\0")}


def test_a_record_that_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    """A file written through memory is seen by nobody: such a record is an error, one cut off by a kill is not."""
    strange = b"a file mapped for writing"
    log = tmp_path / "record"
    entry = struct.Struct("=BBHiQQ")
    log.write_bytes(entry.pack(ord("?"), 0, 0, -1, 0, len(strange)) + strange)
    with pytest.raises(ValueError, match="mapped for writing"):
        recording.read(log)
    log.write_bytes(entry.pack(ord("S"), 0, 0, 7, 0, 0) + entry.pack(ord("W"), 0, 0, 7, 0, 9) + b"cut")
    assert recording.read(log) == [Synced(7)]

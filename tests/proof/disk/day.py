"""One recorded day of the real daemon: a morning, a kill, an afternoon that waits for the disk in a thread, an end in order."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

import ifbus.testing
from tests.proof.disk import recording, workload
from tests.proof.disk.preload import Disk
from tests.proof.disk.recording import Event, Said
from tests.proof.disk.wire import PATIENCE_S
from tests.proof.powerloss import Image, replayed

# The write-ahead log is copied back every few commits, so that power fails in the middle of that, too.
CONFIG = "[store]\ncheckpoint_wal_bytes = 65536\nreserve_bytes = 65536\n"
IN_A_THREAD = CONFIG + 'flush = "thread"\n'


@attrs.frozen(kw_only=True)
class Day:
    """What was recorded, and what was there at the end."""

    events: Sequence[Event]
    said: Sequence[Said]
    answers: int
    """How many the callers got, by their own count."""
    left: Image
    """The state directory at the end, as the kernel shows it."""

    def final(self) -> Image:
        """The same, as the record has it."""
        return replayed(self.events).kept()


def record_day(directory: Path) -> Day:
    """Let the day pass; `directory` is empty, and takes everything."""
    disk = Disk(directory / "state", directory / "watch")
    config = directory / "config.toml"
    config.write_text(CONFIG)
    office = workload.Office()
    with ifbus.testing.daemon(
        state_dir=disk.state_dir, config=config, environment={**os.environ, **disk.environ}
    ) as daemon:
        office.connect(daemon.socket)
        workload.morning(office)
        _wait_until_recorded(disk, office.answers)
        daemon.kill()
        config.write_text(IN_A_THREAD)
        daemon.start()
        office.connect(daemon.socket)
        workload.afternoon(office)
        daemon.stop()
    office.close()
    events = recording.read(disk.log)
    return Day(
        events=events, said=recording.conversation(events), answers=office.answers, left=image_of(disk.state_dir)
    )


def _wait_until_recorded(disk: Disk, answers: int) -> None:
    """The last answer is here a moment before it is on the record."""
    deadline = time.monotonic() + PATIENCE_S
    while count_answers(recording.conversation(recording.read(disk.log))) < answers:
        assert time.monotonic() < deadline, "an answer does not get on the record"
        time.sleep(0.01)


def count_answers(said: Sequence[Said]) -> int:
    """Without notifications, which nobody asked for."""
    return sum(one.heard_at >= 0 for one in said)


def image_of(directory: Path) -> Image:
    """A directory as it is."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }

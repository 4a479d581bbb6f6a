"""The witness log of a host among several: entries of the cluster on their way into the file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import Unavailable
from ifbusd.store.etcd.records import Intake, RecordLog


@asynccontextmanager
async def following(path: Path) -> AsyncIterator[tuple[RecordLog, Intake]]:
    """A log with an intake, both at work."""
    log = RecordLog(path, wal_limit_bytes=1 << 20)
    intake = Intake(log)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        nursery.start_soon(intake.run)
        yield log, intake
        nursery.cancel_scope.cancel()


async def test_entries_of_a_moment_go_together(tmp_path: Path, mock_clock: MockClock) -> None:
    """While nobody waits they gather; then all go, in order."""
    async with following(tmp_path / "log.db") as (log, intake):
        for revision in range(1, 6):
            intake.put([(revision, 0, b"%d" % revision)], revision)
            await wait_all_tasks_blocked()
        assert log.head.seq == 0
        mock_clock.jump(1)
        await log.until(5)
        assert [(entry.revision, entry.record) for entry in await log.read(0, 10)] == [
            (revision, b"%d" % revision) for revision in range(1, 6)
        ]


async def test_who_waits_for_an_entry_does_not_wait_for_others(tmp_path: Path, mock_clock: MockClock) -> None:
    """It is written at once, whether it was there before or comes later; the clock stands still."""
    async with following(tmp_path / "log.db") as (log, intake):
        intake.put([(1, 0, b"one")], 1)
        await intake.until(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.until, 2)
            await wait_all_tasks_blocked()
            intake.put([(2, 0, b"two")], 2)
        await intake.drain()
        assert log.head.seq == 2


async def test_too_many_entries_leave_no_room(tmp_path: Path, mock_clock: MockClock) -> None:
    """Who brings more than are gathered may wait until they are in the file."""
    async with following(tmp_path / "log.db") as (log, intake):
        intake.put([(1, 0, b"entry")] * 5_000, 1)
        assert not intake.has_room
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intake.until_room)
            await wait_all_tasks_blocked()
            mock_clock.jump(1)
        assert intake.has_room
        assert (log.head.seq, intake.revision) == (5_000, 1)


async def test_an_end_is_no_error(tmp_path: Path) -> None:
    """Who is cancelled and still comes with entries, as from a thread that could not be cancelled, does not hear that the log is closed."""
    async with following(tmp_path / "log.db") as (log, _):
        pass
    with trio.CancelScope() as end:
        end.cancel()
        await log.append([(1, 0, b"entry")], 1)
    assert end.cancelled_caught
    with pytest.raises(Unavailable):
        await log.append([(1, 0, b"entry")], 1)

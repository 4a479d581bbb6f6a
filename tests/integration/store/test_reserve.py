"""The file that keeps space back: there in full or not at all, given up at once, made again."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ifbusd.store.fsync import DiskFailed
from ifbusd.store.reserve import Reserve

SIZE = 1 << 20


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """No file of this process can be longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_it_takes_its_space_and_gives_it_back(tmp_path: Path) -> None:
    """With blocks of its own, for nobody else to read; given up it has none, as often as is asked."""
    path = tmp_path / "reserve"
    reserve = Reserve(path, SIZE)
    assert reserve.make()
    assert (path.stat().st_size, path.stat().st_mode & 0o777, reserve.kept_bytes) == (SIZE, 0o600, SIZE)
    assert path.stat().st_blocks * 512 >= SIZE
    for _ in range(2):
        reserve.give_up()
        assert (path.stat().st_size, path.stat().st_blocks, reserve.kept_bytes) == (0, 0, 0)
    assert reserve.make()
    assert path.stat().st_size == SIZE


@pytest.mark.parametrize("size_bytes", [SIZE // 2, 2 * SIZE])
def test_another_size_is_made_of_what_is_there(tmp_path: Path, size_bytes: int) -> None:
    """After a change of the configuration."""
    path = tmp_path / "reserve"
    assert Reserve(path, SIZE).make()
    assert Reserve(path, size_bytes).make()
    assert path.stat().st_size == size_bytes


def test_what_does_not_fit_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is room for a part only, that is left to others."""
    path = tmp_path / "reserve"

    def fill_the_disk(descriptor: int, offset: int, length: int) -> None:
        os.write(descriptor, bytes(length // 2))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fill_the_disk)
    reserve = Reserve(path, SIZE)
    assert not reserve.make()
    assert (path.stat().st_size, reserve.kept_bytes) == (0, 0)


def test_any_other_failure_is_the_disks(tmp_path: Path) -> None:
    """It is named, and ends the daemon."""
    with files_up_to(SIZE // 2), pytest.raises(DiskFailed, match="File too large"):
        Reserve(tmp_path / "reserve", SIZE).make()
    with pytest.raises(DiskFailed, match="nowhere"):
        Reserve(tmp_path / "nowhere" / "reserve", SIZE).make()

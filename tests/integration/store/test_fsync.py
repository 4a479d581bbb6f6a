"""Directories that are made durable before anything in them is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ifbusd.store.fsync import DiskFailed, make_directory


def test_each_name_that_was_made_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the top down; what was there is left alone."""
    synced: list[int] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    wanted = tmp_path / "a" / "b"
    make_directory(wanted)
    assert synced == [path.stat().st_ino for path in (tmp_path, tmp_path / "a")]
    assert [path.stat().st_mode & 0o777 for path in (wanted.parent, wanted)] == [0o700, 0o700]
    make_directory(wanted)
    assert len(synced) == 2


def test_a_name_that_cannot_be_synced_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put into a directory that a power cut may take away."""

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskFailed, match=str(tmp_path)):
        make_directory(tmp_path / "a")

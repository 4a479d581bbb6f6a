"""`disk.c`, compiled when a test first asks, and the page through which a test gives it orders while the daemon runs."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("disk.c")


class Control(ctypes.Structure):
    """Keep in step with `struct control` of disk.c. 0 is "never" for the orders."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("syncs", "writes", "calls", "failed"),
            *("sync_at", "sync_lasting", "write_at", "write_lasting", "full", "freed"),
            *("kill_at", "stop_at"),
        )
    ]


class Disk:
    """The disk of one daemon: its record, and what goes wrong with it.

    Attributes:
        state_dir: The directory that is watched; its name has no symbolic link in it, because SQLite resolves them.
        log: The record, for `recording.read`. Only what happened since the disk was made, over all starts of the daemon.
        control: Counters and orders, shared with the daemon.
    """

    def __init__(self, state_dir: Path, directory: Path) -> None:
        """`directory` takes the record and the page; it may not be within `state_dir`."""
        directory.mkdir(parents=True, exist_ok=True)
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state_dir = state_dir.resolve()
        self.log = directory / "record"
        page = directory / "control"
        page.write_bytes(bytes(mmap.PAGESIZE))
        with page.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.control: Any = Control.from_buffer(self._memory)
        self._page = page

    @property
    def environ(self) -> dict[str, str]:
        """What a daemon on this disk needs in its environment."""
        return {
            "LD_PRELOAD": str(library()),
            "IFBUS_DISK_ROOT": str(self.state_dir),
            "IFBUS_DISK_LOG": str(self.log),
            "IFBUS_DISK_CONTROL": str(self._page),
        }


@functools.cache
def library() -> Path:
    """The compiled library; skips the test where there is no C compiler."""
    compiler = _compiler()
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang or the wheel ziglang): the disk cannot be watched")
    # Lives as long as this process.
    directory = tempfile.TemporaryDirectory(prefix="ifbus-disk-")
    _kept.append(directory)
    target = Path(directory.name) / "disk.so"
    command = [*compiler, "-O1", "-Wall", "-shared", "-fPIC", "-pthread", "-o", str(target), str(SOURCE)]
    subprocess.run(command, check=True)
    return target


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _compiler() -> list[str] | None:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None

"""The clocks of a running daemon, which a proof sets as it likes: the wall clock, and the one that goes on through suspend."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

# Keep in step with `clock/sitecustomize.py`.
_OFF = struct.Struct("=qq")
_LOADED_FROM = Path(__file__).parent / "clock"


class Clocks:
    """How far the clocks of the daemons with this environment are off. The mutable state is a page shared with them."""

    def __init__(self, path: Path) -> None:
        """`path` takes the page; both clocks are right at first."""
        path.write_bytes(_OFF.pack(0, 0))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _OFF.size)
        self._path = path

    @property
    def environ(self) -> dict[str, str]:
        """What a daemon needs in its environment, beside what is there now."""
        paths = [str(_LOADED_FROM), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "CLOCKS_AT": str(self._path)}

    def jump(self, *, wall_ms: int = 0, boot_ms: int = 0) -> None:
        """Set the wall clock by so much, back where it is negative; let so much time have passed in a suspend."""
        wall_ns, boot_ns = _OFF.unpack(self._page[: _OFF.size])
        self._page[: _OFF.size] = _OFF.pack(wall_ns + wall_ms * 1_000_000, boot_ns + boot_ms * 1_000_000)

"""Holds single threads of a running process still, as a stuck disk or an endless computation would, and lets them go again."""

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_DETACH: Final = 17
_WALL: Final = 0x4000_0000  # waits for threads, too
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def threads_of(pid: int) -> list[int]:
    """The ids of a process's threads; that of the first is `pid`."""
    return sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())


@contextmanager
def held_still(threads: Iterable[int]) -> Iterator[None]:
    """Stop these threads, and no others, while the block runs. A thread that ended meanwhile is passed over.

    One that is stopped with the interpreter's lock holds up all others: who needs these to run has to look.

    Raises:
        PermissionError: This process may not trace that one.
    """
    held = []
    try:
        for thread in threads:
            try:
                _trace(_SEIZE, thread)
            except ProcessLookupError:
                continue
            held.append(thread)
            _trace(_INTERRUPT, thread)
            os.waitpid(thread, _WALL)
        yield
    finally:
        for thread in held:
            _trace(_DETACH, thread)


def _trace(request: int, thread: int) -> None:
    if _LIBC.ptrace(request, thread, None, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

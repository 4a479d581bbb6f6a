"""Loaded by the interpreter of a daemon that a proof observes (this directory is in its PYTHONPATH): answers how many tasks it has.

A thread of its own listens at the abstract socket that `OBSERVED_AT` names, and tells whoever connects the number of trio tasks
that are alive, as text. The daemon itself is not touched; what its collector has set aside before it was ready is not counted,
so only differences mean something.
"""

import gc
import os
import socket
import sys
import threading


def _tasks() -> int:
    task_type = sys.modules["trio"].lowlevel.Task
    return sum(type(found) is task_type and found.coro.cr_frame is not None for found in gc.get_objects())


def _answer(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"%d" % _tasks())


def _observe(name: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    threading.Thread(target=_answer, args=[listener], daemon=True).start()


# Only in the daemon itself, not in what it starts.
if _NAME := os.environ.pop("OBSERVED_AT", ""):
    _observe(_NAME)

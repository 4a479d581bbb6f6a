"""Starts a zygote's process and does not wait for it. Light: the daemon launches its first one before it loads anything else,
so that both get ready side by side.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Final, NamedTuple

# All that a zygote may see of the daemon's environment: how to find its interpreter and libraries.
_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class Launched(NamedTuple):
    """A zygote that is getting ready, and our end of the socket to it."""

    process: subprocess.Popen[bytes]
    channel: socket.socket


def launch() -> Launched:
    """Start one, in 2 ms. It dies with the *thread* that calls this, which is why no other thread may do it instead.

    Raises:
        OSError: The system has no room for another process.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "ifbusd.chassis.zygote", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
            )
        except OSError:
            ours.close()
            raise
    return Launched(process, ours)

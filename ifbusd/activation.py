"""The listening socket that a service manager opened for us (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from ifbus.errors import ConfigInvalid

FIRST_FD = 3


def inherited_listener(
    environ: MutableMapping[str, str] = os.environ, *, first_fd: int = FIRST_FD
) -> socket.socket | None:
    """The socket that was passed to this very process, close-on-exec from now on; None if there is none.

    The variables are removed in any case, so that no child takes the descriptor for its own.

    Raises:
        ConfigInvalid: What was passed is not exactly one listening Unix stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count in ("", "0"):
        return None  # meant for another process, such as the shell that started us
    if count != "1":
        raise ConfigInvalid(
            f"cannot use the inherited sockets: expected 1, got LISTEN_FDS={count!r:.20}; check ifbusd.socket"
        )
    try:
        os.set_inheritable(first_fd, False)
        listener = socket.socket(fileno=first_fd)
    except OSError as error:
        raise ConfigInvalid(f"cannot use the inherited descriptor {first_fd}: {error.strerror}") from error
    if (
        listener.family != socket.AF_UNIX
        or listener.type != socket.SOCK_STREAM
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        listener.close()
        raise ConfigInvalid(
            f"cannot use the inherited descriptor {first_fd}: expected a listening Unix stream socket; ListenStream= in ifbusd.socket"
        )
    return listener

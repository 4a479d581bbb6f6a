"""The listening socket in the file system: made with its final mode, a dead one taken over, a live one never."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from ifbus.errors import AlreadyExists, ConfigInvalid

# Connections that wait to be accepted; a full backlog gives a connecting client EAGAIN (FACTS 8).
BACKLOG: Final = 4096
DEFAULT_MODE: Final = 0o660


def open_listener(path: Path, *, mode: int = DEFAULT_MODE, gid: int | None = None) -> socket.socket:
    """A listening Unix stream socket at `path`, for its owner and group only unless `mode` says otherwise.

    Args:
        gid: Group that owns it; the process's own if not given.

    Raises:
        AlreadyExists: Somebody listens there already, or something else than a socket stands there.
        ConfigInvalid: The socket cannot be made there; the message says why.
    """
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # bind() creates the file with what the umask leaves, so nobody finds it open for a moment. The umask is the process's:
    # this runs at start, before any thread.
    previous = os.umask(0o777 & ~mode)
    try:
        listener.bind(os.fspath(path))
        if gid is not None:
            os.chown(path, -1, gid)
        listener.listen(BACKLOG)  # until here a connect is refused
    except OSError as error:
        listener.close()
        raise ConfigInvalid(
            f"cannot listen at {path}: {error.strerror or error}; name another --socket", data={"socket": str(path)}
        ) from error
    finally:
        os.umask(previous)
    return listener


def remove_socket(path: Path, listener: socket.socket) -> None:
    """Remove the file of our own listener, unless another daemon has put its own there since."""
    with contextlib.suppress(FileNotFoundError):
        # The file's inode is not the socket's, so ask whether anybody answers there now that ours is closed.
        if listener.fileno() == -1 and not _is_live(path):
            path.unlink()


def _clear(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigInvalid(f"cannot listen at {path}: {error.strerror}", data={"socket": str(path)}) from error
    if not stat.S_ISSOCK(kind):
        raise AlreadyExists(
            f"cannot listen at {path}: it exists and is no socket; name another --socket", data={"socket": str(path)}
        )
    if _is_live(path):
        raise AlreadyExists(
            f"cannot listen at {path}: another process listens there; ask that one (ifbus status), or name another --socket",
            data={"socket": str(path)},
        )
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _is_live(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            # Only these two prove that nobody listens; a full backlog (EAGAIN) or a denied connect does not.
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
        return True

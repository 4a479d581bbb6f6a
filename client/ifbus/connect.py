"""Where the daemon is, and what is wrong when it is not there (UX 3): four causes, each with its own remedy.

`inherited` and `explain` are pure; `candidates` looks at one directory, `connect` does the rest. Nothing here starts a daemon.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ifbus.backoff import backoff
from ifbus.errors import (
    DaemonDeadSocket,
    DaemonNotRunning,
    InvalidParams,
    NoDaemon,
    SocketBlocked,
    SocketDenied,
    Unavailable,
    WouldChange,
)

SYSTEM_SOCKET: Final = "/run/ifbusd/ifbusd.sock"
MAX_PATH_BYTES: Final = 107  # sun_path less its terminating zero
# A full backlog means that thousands connect at this moment (FACTS 8); a daemon that is well empties it far sooner.
BACKLOG_PATIENCE_S: Final = 2.0
# No group lets anybody in there.
_SHUT: Final[tuple[WouldChange, ...]] = (
    {"by": "operator", "what": "open the socket or its directory to this user"},
    {"by": "self", "what": "start a daemon of your own", "call": "ifbusd --dev"},
)
# Finds the daemon where it usually is, whatever place this call had named.
_LOOK_ELSEWHERE: Final[WouldChange] = {
    "by": "self",
    "what": "look where a daemon usually is",
    "call": "env -u IFBUS_SOCKET ifbus status",
}


class Inherited(NamedTuple):
    """A connection that a parent made for us, and the pipe that passes the right to use it from process to process.

    Attributes:
        fd: The connection.
        turn_read, turn_write: Ends of a pipe that holds one byte while nobody uses the connection; None: it is ours alone.
    """

    fd: int
    turn_read: int | None = None
    turn_write: int | None = None


class Facts(NamedTuple):
    """What can be seen from outside about a socket that did not answer."""

    user: str = ""
    uid: int = 0
    owner_uid: int | None = None
    owner_group: str | None = None
    mode: int | None = None
    is_socket: bool = True
    pid: int | None = None
    pid_alive: bool = False


def own_directory(environ: Mapping[str, str]) -> str:
    """Where a user's own daemon has its socket; without ``XDG_RUNTIME_DIR`` in the place for temporary files."""
    runtime_dir = environ.get("XDG_RUNTIME_DIR")
    if runtime_dir:
        return f"{runtime_dir}/ifbusd"
    # What `tempfile.gettempdir` says in practice; that module costs a one-shot command more than its whole connection.
    return os.path.join(os.path.abspath(environ.get("TMPDIR") or "/tmp"), f"ifbusd-{os.getuid()}")


def is_private(directory: str) -> bool:
    """Whether this is a real directory of this user that nobody else may enter: in ``/tmp`` anybody may have been first."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def candidates(socket_path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> list[str]:
    """Where a daemon's socket can be, best first: the argument or ``IFBUS_SOCKET`` alone, else the user's, then the system's."""
    given = os.fspath(socket_path) if socket_path is not None else environ.get("IFBUS_SOCKET")
    if given:
        return [given]
    directory = own_directory(environ)
    is_safe = bool(environ.get("XDG_RUNTIME_DIR")) or is_private(directory)
    return [*([f"{directory}/ifbusd.sock"] if is_safe else []), SYSTEM_SOCKET]


def inherited(environ: Mapping[str, str]) -> Inherited | None:
    """The connection that ``IFBUS_FD`` names (``7``, or ``7,8,9`` with the turn pipe's two ends), or None without one.

    Raises:
        InvalidParams: The variable reads otherwise.
    """
    text = environ.get("IFBUS_FD")
    if not text:
        return None
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidParams(
            f"cannot read IFBUS_FD: one descriptor, or connection and both ends of the turn pipe as 7,8,9, got {text!r:.40}",
            data={"param": "IFBUS_FD"},
        )
    return Inherited(*map(int, parts))


def explain(paths: Sequence[str], error_number: int, facts: Facts) -> NoDaemon:
    """The error that says which of the four causes it is, with its figures and what to type.

    Args:
        paths: What was tried; the last one is where it ended.
        error_number: errno of that last try.
        facts: What is to be seen at the last path.
    """
    path = paths[-1]
    changes: tuple[WouldChange, ...]
    data = {"socket": path, "tried": list(paths), "uid": facts.uid, "user": facts.user}
    if error_number in (errno.ENOENT, errno.ENOTDIR):
        return DaemonNotRunning(
            f"nothing at {' nor '.join(paths)}",
            data=data,
            would_change=[
                {"by": "operator", "what": "start the system's daemon", "call": "systemctl start ifbusd"},
                {"by": "self", "what": "start a daemon of your own", "call": "ifbusd --dev"},
            ]
            if path == SYSTEM_SOCKET
            else [{"by": "self", "what": "start a daemon there", "call": _own_daemon(path)}, {**_LOOK_ELSEWHERE}],
        )
    if error_number == errno.ECONNREFUSED:
        if not facts.is_socket:
            return DaemonDeadSocket(f"{path} is no socket", data=data, would_change=[{**_LOOK_ELSEWHERE}])
        if facts.pid is None:
            reason = "exists, nobody listens"
        else:
            data["pid"] = facts.pid
            state = "lives but does not listen there" if facts.pid_alive else "has ended"
            reason = f"exists, nobody listens (pid {facts.pid} {state})"
        return DaemonDeadSocket(
            f"{path} {reason}",
            data=data,
            would_change=[{"by": "self", "what": "start your own daemon again", "call": _own_daemon(path)}]
            if facts.owner_uid == facts.uid and path != SYSTEM_SOCKET
            else [
                {"by": "operator", "what": "see why it ended", "call": "journalctl -u ifbusd -n 20"},
                {"by": "operator", "what": "start it again", "call": "systemctl start ifbusd"},
            ],
        )
    if error_number == errno.EACCES:
        who = f"{facts.user} (uid {facts.uid})"
        if facts.owner_group is None:
            # Not even the file can be seen: a directory on the way is closed.
            reason, changes = f"{who} may not enter the directory of {path}", _SHUT
        elif facts.mode is not None and not facts.mode & stat.S_IWGRP:
            reason, changes = f"{who} does not own {path}, which is its owner's alone", _SHUT
        else:
            data["group"] = facts.owner_group
            reason = f"{who} is not in group {facts.owner_group}, which owns {path}"
            what = "add the user to the socket's group, then log in anew"
            changes = ({"by": "operator", "what": what, "call": f"usermod -aG {facts.owner_group} {facts.user}"},)
        return SocketDenied(reason, data=data, would_change=[{**change} for change in changes])
    if error_number == errno.EPERM:
        return SocketBlocked(
            "this process may not connect at all (EPERM): a sandbox around it; the daemon may be well",
            data=data,
            would_change=[
                {"by": "other", "what": "start it with a connection", "call": "ifbus run --fd --swarm NAME -- COMMAND"},
            ],
        )
    return NoDaemon(
        f"cannot connect to {path}: {os.strerror(error_number)}", data={**data, "errno": errno.errorcode[error_number]}
    )


def _own_daemon(path: str) -> str:
    import shlex

    is_usual = path == f"{own_directory(os.environ)}/ifbusd.sock"
    return "ifbusd --dev" if is_usual else f"ifbusd --dev --socket {shlex.quote(path)}"


def connect(paths: Sequence[str]) -> socket.socket:
    """A blocking socket, connected to the first path where there is one.

    A path that does not exist is passed over; any other failure ends the search, because answering from another daemon
    than the one that was meant would be worse than no answer.

    Raises:
        NoDaemon: One of its four subclasses, by cause.
        InvalidParams: A path is longer than a Unix socket's can be.
        Unavailable: The daemon's backlog stayed full.
    """
    for path in paths:
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise InvalidParams(
                f"cannot connect to {path:.200}: a socket's path has at most {MAX_PATH_BYTES} bytes",
                data={"param": "socket", "used": len(os.fsencode(path)), "allowed": MAX_PATH_BYTES},
            )
    failure = errno.ENOENT
    tried = []
    for path in paths:
        tried.append(path)
        try:
            return _connect_one(path)
        except OSError as error:
            failure = error.errno or errno.EIO
            if failure not in (errno.ENOENT, errno.ENOTDIR):
                break
    raise explain(tried, failure, _look(tried[-1]))


def _connect_one(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Without a timeout the kernel would queue us behind a full backlog for as long as the daemon hangs.
        sock.settimeout(BACKLOG_PATIENCE_S)
        deadline = time.monotonic() + BACKLOG_PATIENCE_S
        attempt = 0
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                import random  # here: rare, and a one-shot command pays 4 ms for it

                wait_s = backoff(attempt, random.random())
                if time.monotonic() + wait_s > deadline:
                    raise Unavailable(
                        f"cannot connect to {path}: too many are connecting, its backlog stayed full",
                        data={"socket": path, "waited_ms": int(BACKLOG_PATIENCE_S * 1000)},
                    ) from None
                time.sleep(wait_s)
                attempt += 1
            else:
                sock.settimeout(None)
                return sock
    except BaseException:
        sock.close()
        raise


def _look(path: str) -> Facts:
    uid = os.geteuid()
    facts = Facts(user=_user_name(uid), uid=uid)
    try:
        found = os.stat(path)
    except OSError:
        return facts
    facts = facts._replace(
        owner_uid=found.st_uid,
        owner_group=_group_name(found.st_gid),
        mode=found.st_mode,
        is_socket=stat.S_ISSOCK(found.st_mode),
    )
    pid = _read_pid(os.path.join(os.path.dirname(path), "ifbusd.pid"))
    return facts if pid is None else facts._replace(pid=pid, pid_alive=os.path.exists(f"/proc/{pid}"))


def _read_pid(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            word = file.read(32).split(maxsplit=1)
    except (OSError, UnicodeDecodeError):
        return None  # the file is a courtesy: without it the message says less, not something else
    return int(word[0]) if word and word[0].isdigit() else None


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)

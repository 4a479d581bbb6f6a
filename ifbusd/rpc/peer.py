"""Who opened a connection: the kernel's word (SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD), fixed at `connect`.

On an operator's connection also who sends: the kernel's word with each piece of data (SCM_CREDENTIALS), because the connection
may have been inherited or passed on. And the one descriptor that a peer may hand over: a process of its own (SCM_RIGHTS).
"""

from __future__ import annotations

import array
import logging
import os
import socket
import struct
from typing import Final

import attrs

from ifbusd import processes
from ifbusd.identity import Peer

_log = logging.getLogger(__name__)

_UCRED: Final = struct.Struct("iII")  # pid, uid, gid
_SO_PEERGROUPS: Final = 59  # not in the socket module
_SO_PEERPIDFD: Final = 77  # nor this one; Linux 6.5
# Room for one descriptor: CMSG_SPACE would be padded to two. What does not fit, the kernel does not even open.
_ONE_DESCRIPTOR: Final = socket.CMSG_LEN(struct.calcsize("i"))
# Room for the sender and nothing else. The kernel puts it before descriptors, so these cannot take its place.
_SENDER: Final = socket.CMSG_LEN(_UCRED.size)
_SENDER_AND_ONE_DESCRIPTOR: Final = socket.CMSG_SPACE(_UCRED.size) + _ONE_DESCRIPTOR
# What the kernel itself says where it does not know a sender: data that was sent before senders were named.
_NOBODY: Final = _UCRED.pack(0, 65534, 65534)
# The most that getsockopt of Python takes: 256 groups. Who has more is an operator by uid or primary group, or not at all.
_GROUPS_BYTES: Final = 1024


def read_peer(
    connection: socket.socket,
    *,
    operator_uids: frozenset[int] = frozenset(),
    operator_gids: frozenset[int] = frozenset(),
    connection_id: int = 0,
) -> Peer:
    """The process that called `connect` (or that made the pair), with the operator role if its user or a group of it has it.

    Raises:
        OSError: The kernel does not say, as for a socket that is no connected Unix socket.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = _read_groups(connection, uid)
    return Peer(
        uid=uid,
        gid=gid,
        pid=pid,
        groups=groups,
        is_operator=uid in operator_uids or gid in operator_gids or not groups.isdisjoint(operator_gids),
        connection_id=connection_id,
    )


def _read_groups(connection: socket.socket, uid: int) -> frozenset[int]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as error:  # ERANGE: too many groups; ENOPROTOOPT: a kernel before 4.13
        _log.warning("cannot read the groups of a peer", extra={"uid": uid, "reason": error.strerror})
        return frozenset()
    return frozenset(struct.unpack(f"{len(packed) // 4}I", packed))


def open_peer_process(connection: socket.socket) -> int:
    """A descriptor of the process that called `connect`; readable once it has ended, which it may have.

    Raises:
        IfbusError: The process cannot be held: no descriptor is left, or the kernel is too old.
    """
    try:
        return processes.guarded(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD), bind="process")
    except OSError as error:
        raise processes.translated(error, "process") from error


def name_senders(sock: socket.socket, *, enabled: bool = True) -> None:
    """Let the kernel say with each piece of data who sent it; from a listener, its connections have this from their start.

    Raises:
        OSError: It does not.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, enabled)


def receive_from_sender(connection: socket.socket, size: int) -> tuple[bytes, bytes]:
    """As `recv`, and who sent these bytes, for `peer_as_sent`: the data of two senders never comes in one piece.

    Raises:
        OSError: As `recv`.
    """
    data, ancillary, _, _ = connection.recvmsg(size, _SENDER, socket.MSG_CMSG_CLOEXEC)
    return data, ancillary[0][2] if ancillary else b""


def peer_as_sent(peer: Peer, sender: bytes, *, operator_uids: frozenset[int], operator_gids: frozenset[int]) -> Peer:
    """An operator as the author of what `sender` sent: without the role, unless that user or its group has it now.

    Which other groups a sender is in the kernel does not say; those at `connect` count for the same user.
    """
    _, uid, gid = _UCRED.unpack(sender or _NOBODY)
    is_in_group = gid in operator_gids or (uid == peer.uid and not peer.groups.isdisjoint(operator_gids))
    if uid in operator_uids or is_in_group:
        return peer
    return attrs.evolve(peer, is_operator=False, role_lost_to=uid)


def receive_with_process(
    connection: socket.socket, size: int, *, names_senders: bool = False
) -> tuple[bytes, int | None, bytes]:
    """As `recv`, and the process descriptor that came with these bytes; anything else is closed,
    as it is where descriptors run short. Last who sent them, where the connection names its senders.

    Raises:
        OSError: As `recv`.
    """
    room = _SENDER_AND_ONE_DESCRIPTOR if names_senders else _ONE_DESCRIPTOR
    data, ancillary, _, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    received, sender = array.array("i"), b""
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            sender = content
    found: int | None = None
    for descriptor in received:
        if found is None and processes.is_affordable(descriptor) and processes.is_pidfd(descriptor):
            found = descriptor
        else:
            os.close(descriptor)
    return data, found, sender

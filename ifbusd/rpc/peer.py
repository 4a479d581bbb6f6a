"""Who opened a connection: the kernel's word (SO_PEERCRED, SO_PEERGROUPS), fixed at `connect` (FACTS 8)."""

from __future__ import annotations

import logging
import socket
import struct
from typing import Final

from ifbusd.identity import Peer

_log = logging.getLogger(__name__)

_UCRED: Final = struct.Struct("iII")  # pid, uid, gid
_SO_PEERGROUPS: Final = 59  # not in the socket module
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

"""Accepts connections, gives each its share, stops in order."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Final

import attrs
import trio

from ifbus.errors import IfbusError, Overloaded
from ifbus.protocol import Connection as Protocol
from ifbusd.rpc.connection import CLOSING, Common, Connection, SessionStatistics, WitnessRefusal, stopping
from ifbusd.rpc.descriptors import EXHAUSTED, Spare, room_for_connections
from ifbusd.rpc.limits import RpcLimits
from ifbusd.rpc.methods import Method
from ifbusd.rpc.peer import name_senders, read_peer
from ifbusd.rpc.quota import Rate, Shares

_log = logging.getLogger(__name__)

# No descriptor or memory for one more connection: it is told so, or waits in the backlog while others end.
_EXHAUSTED_PAUSE_S: Final = 0.1
_REFUSALS_PER_LINE: Final = 100
# Accepted in a row before the connections have their turn.
_ACCEPT_TURN: Final = 16


@attrs.frozen(kw_only=True)
class ServerStatistics:
    """The wire as a snapshot; `accepted` and `refused` (over a quota) count connections since the start."""

    accepted: int
    refused: int
    users: int
    sessions: tuple[SessionStatistics, ...]


class Server:
    """Serves a method table on one listening socket.

    ::

        server = Server(method_table(...), limits=config.rpc, operator_uids=frozenset(config.operators.uids),
                        operator_gids=config.operators.gids(), witness_refusal=operations.witness_refusal, now_ms=now_ms)
        await nursery.start(server.run, open_listener(path, gid=gid))   # or an inherited socket; returns once it accepts
        ...
        server.stop(grace_ms=5000)                                      # `run` returns when all is answered or the grace is over

    The mutable state is the table of connections and the counters below; each connection owns its own.

    Args:
        methods: What can be called (`ifbusd.rpc.methods.method_table`).
        operator_uids, operator_gids: Who has the operator role.
        witness_refusal: Puts on record that somebody without the operator role tried.
        now_ms: Wall clock, for what people read.
    """

    def __init__(
        self,
        methods: dict[str, Method],
        *,
        witness_refusal: WitnessRefusal,
        now_ms: Callable[[], int],
        limits: RpcLimits = RpcLimits(),  # noqa: B008 - frozen, so one default serves all
        operator_uids: frozenset[int] = frozenset(),
        operator_gids: frozenset[int] = frozenset(),
    ) -> None:
        self._limits = limits
        self._now_ms = now_ms
        self._common = Common(
            methods=methods,
            limits=limits,
            witness_refusal=witness_refusal,
            rate=Rate(per_s=limits.requests_per_s, burst=limits.burst_requests),
            operator_uids=operator_uids,
            operator_gids=operator_gids,
        )
        self._shares = Shares()
        self._connections: dict[int, Connection] = {}
        self._accepted = 0
        self._refused = 0
        self._room = limits.connections
        self._accepting = trio.CancelScope()
        self._grace_s = 0.0

    async def run(
        self, listener: socket.socket, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop`; closes the listener. Cancelled, it cuts all connections."""
        listener.setblocking(False)
        name_senders(listener)  # an operator's first request may be there before its connection is accepted
        wanted = self._limits.connections
        self._room = room_for_connections(wanted)
        if self._room < wanted:
            _log.warning(
                "fewer connections than configured: the limit of open files (RLIMIT_NOFILE) is too low",
                extra={"connections": self._room, "configured": wanted},
            )
        spare = Spare()
        async with trio.open_nursery() as sessions:
            try:
                with self._accepting:
                    task_status.started()
                    await self._accept(listener, spare, sessions)
            finally:
                trio.lowlevel.notify_closing(listener)
                listener.close()
                spare.close()
            with trio.move_on_after(self._grace_s):
                while not all(connection.is_idle for connection in self._connections.values()):
                    await self._common.idle.park()
            for connection in list(self._connections.values()):
                connection.end(stopping())
        # The nursery waits for the connections, each of which has been told to end.

    def stop(self, *, grace_ms: int) -> None:
        """Accept no more connections; requests under way have `grace_ms`, new ones get ``unavailable``; then all end."""
        self._grace_s = grace_ms / 1000
        self._common.is_stopping = True
        self._accepting.cancel()

    def statistics(self) -> ServerStatistics:
        """A snapshot."""
        return ServerStatistics(
            accepted=self._accepted,
            refused=self._refused,
            users=len(self._shares),
            sessions=tuple(connection.statistics() for connection in self._connections.values()),
        )

    async def _accept(self, listener: socket.socket, spare: Spare, sessions: trio.Nursery) -> None:
        is_exhausted = False
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(_ACCEPT_TURN):
                try:
                    sock, _address = listener.accept()
                except BlockingIOError:
                    break
                except ConnectionAbortedError:
                    continue
                except OSError as error:
                    if error.errno not in EXHAUSTED:
                        raise
                    if not is_exhausted:  # once per bout, not ten times a second
                        _log.error("cannot accept connections", extra={"reason": error.strerror})
                    is_exhausted = True
                    self._turn_away(listener, spare, error)
                    await trio.sleep(_EXHAUSTED_PAUSE_S)
                    break
                is_exhausted = False
                self._admit(sock, sessions)

    def _turn_away(self, listener: socket.socket, spare: Spare, error: OSError) -> None:
        """Tell those who wait that there is no room, a turn's worth of them; a backlog would keep them in the dark."""
        for _ in range(_ACCEPT_TURN):
            sock = spare.accept(listener)
            if sock is None:
                break
            self._accepted += 1
            sock.setblocking(False)
            self._refuse(
                sock,
                Overloaded(
                    f"cannot take another connection: the daemon is out of descriptors or memory ({error.strerror})",
                    data={"used": len(self._connections), "allowed": self._room, "retry_after_ms": 1000},
                ),
            )
        spare.restore()

    def _admit(self, sock: socket.socket, sessions: trio.Nursery) -> None:
        sock.setblocking(False)
        self._accepted += 1
        try:
            peer = read_peer(
                sock,
                operator_uids=self._common.operator_uids,
                operator_gids=self._common.operator_gids,
                connection_id=self._accepted,
            )
            # Naming them costs each message a little, and nobody else has a role to lose.
            name_senders(sock, enabled=peer.is_operator)
        except OSError as error:
            _log.warning("cannot tell who connects", extra={"reason": error.strerror})
            sock.close()
            return
        share = self._shares.of(peer.uid, trio.current_time())
        for used, allowed, whose in (
            (share.connections, self._limits.connections_per_uid, f"uid {peer.uid}"),
            (len(self._connections), self._room, "all users"),
        ):
            if used >= allowed:
                self._refuse(
                    sock,
                    Overloaded(
                        f"cannot take another connection: {used} of {allowed} of {whose} are open",
                        data={"used": used, "allowed": allowed, "uid": peer.uid, "retry_after_ms": 1000},
                    ),
                )
                return
        share.connections += 1
        connection = Connection(sock, peer, share, self._common, connected_at_ms=self._now_ms())
        self._connections[self._accepted] = connection
        sessions.start_soon(self._serve, self._accepted, connection)

    def _refuse(self, sock: socket.socket, reason: IfbusError) -> None:
        self._refused += 1
        if self._refused % _REFUSALS_PER_LINE == 1:  # who is refused tries again, and the log is on a disk
            _log.warning("refused a connection", extra={"reason": reason.message, "refused": self._refused})
        with sock:
            try:
                sock.send(Protocol().notify(CLOSING, [reason.to_wire()]))
            except OSError:
                _log.debug("a refused peer did not wait for the reason")

    async def _serve(self, number: int, connection: Connection) -> None:
        try:
            await connection.serve()
        except Exception:  # a bug met in one client's connection ends that connection only
            _log.exception("a connection failed", extra={"connection": number})
        finally:
            del self._connections[number]
            connection.share.connections -= 1

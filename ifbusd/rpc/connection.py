"""One client: reads requests, runs them, answers; the shell around `ifbus.protocol`.

A request that came alone runs in the reading task itself: a closed loop of small calls costs no task. What came together runs
side by side, so that it shares a group commit and is answered in any order; so does whatever may wait (`Waits`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import secrets
import select
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import trio

from ifbus.errors import (
    Cancelled,
    DeadlineExceeded,
    IfbusError,
    Internal,
    InvalidParams,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    ProtocolError,
    Unavailable,
)
from ifbus.protocol import CANCEL_METHOD, END_OF_STREAM, NEED_DATA, Malformed, Notification, Request
from ifbus.protocol import Connection as Protocol
from ifbusd.codec import pack
from ifbusd.identity import Caller, Peer
from ifbusd.later import Later
from ifbusd.rpc.descriptors import EXHAUSTED
from ifbusd.rpc.limits import RpcLimits
from ifbusd.rpc.methods import Method, Role, Waits, unknown_method
from ifbusd.rpc.peer import open_peer_process, peer_as_sent, receive_from_sender, receive_with_process
from ifbusd.rpc.quota import Quota, Rate, Share, take

_log = logging.getLogger(__name__)

CLOSING: Final = "closing"  # notification with one wire error: why the daemon ends the connection
# Room for more than what comes costs as much as reading it, so there is much only where much came.
_READ_BYTES: Final = 1 << 10
_MUCH_BYTES: Final = 16 << 10
_MAX_UNANSWERABLE: Final = 16  # messages of a connection that are none and have no id to answer under
_MAX_KEY_CHARS: Final = 128
_MAX_TIMEOUT_MS: Final = 24 * 60 * 60 * 1000
# On the path of every request; looking a member up in its enum costs as much as the comparison.
_ALWAYS, _ASKED, _LATER, _OPERATOR, _LIST = Waits.ALWAYS, Waits.ASKED, Waits.LATER, Role.OPERATOR, Quota.LIST
# Over its quota a connection is not read for as long as the tokens take, so that refusing costs less than serving.
_MAX_PAUSE_S: Final = 0.25
# W3C Trace Context 1, section 3.2.2: version ff and all-zero ids are invalid, a later version may append fields.
_TRACEPARENT: Final = re.compile(
    r"((?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?:-.*)?",
    re.ASCII,
)

# Puts a refusal on record: caller, method, target, refusal (`ifbusd.operation.Operations.witness_refusal`).
WitnessRefusal = Callable[[Caller, str, str, IfbusError], Awaitable[None]]


@attrs.define(kw_only=True, eq=False)
class Common:
    """What all connections of a server share. The mutable state is `is_stopping`, nothing else.

    Attributes:
        operator_uids, operator_gids: Who has the operator role.
        idle: Where the stopping server waits for connections to have nothing under way.
    """

    methods: dict[str, Method]
    limits: RpcLimits
    witness_refusal: WitnessRefusal
    rate: Rate
    operator_uids: frozenset[int]
    operator_gids: frozenset[int]
    idle: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    is_stopping: bool = False


@attrs.frozen(kw_only=True)
class SessionStatistics:
    """One connection, as a snapshot; `queued_bytes` have been answered or pushed and not been read."""

    connection_id: int
    uid: int
    pid: int
    connected_at_ms: int
    requests: int
    refusals: int
    in_flight: int
    queued_bytes: int


class Connection:
    """The daemon's end of one connection; the `ifbusd.identity.Session` that components see.

    Args:
        sock: Connected and non-blocking; closed by `serve`.
        share: What the peer's user takes of the daemon.
    """

    def __init__(self, sock: socket.socket, peer: Peer, share: Share, common: Common, *, connected_at_ms: int) -> None:
        self._sock = sock
        self._peer = peer
        self.share = share
        self._common = common
        self._limits = common.limits
        self._protocol = Protocol(common.limits.for_messages())
        # What says nothing of itself has the same author each time, so it is made once.
        self._caller = Caller(peer=peer, session=self)
        self._nursery: trio.Nursery | None = None
        self._is_ending = False
        self._running: dict[int, trio.CancelScope] = {}
        self._inline = 0
        self._slot_freed = trio.lowlevel.ParkingLot()
        self._queue: deque[memoryview] = deque()
        self._queued_bytes = 0
        self._queue_drained = trio.lowlevel.ParkingLot()
        self._pause_s = 0.0
        self._unfinished_deadline: float | None = None
        self._close_callbacks: list[Callable[[], None]] | None = []
        # Plain `recv`, to which the kernel gives no descriptors, but for the moment in which one is announced.
        self._receive: Callable[[int], bytes] = self._plain_receive()
        # Who sent what came last, where that decides about the role; None: not judged yet.
        self._sender: bytes | None = None
        self._handed_over: int | None = None
        self._connected_at_ms = connected_at_ms
        self._unanswerable = 0
        self._requests = 0
        self._refusals = 0

    # --- as a session --------------------------------------------------------------------------------

    def notify(self, method: str, params: list[Any]) -> None:
        """Send a notification; never blocks. A peer that does not read loses the connection, its durable inbox keeps the rest."""
        if self._close_callbacks is None:
            return
        try:
            data = self._protocol.notify(method, params)
        except Exception:  # whoever publishes is not to suffer from one message that does not fit
            _log.exception("cannot send a notification", extra={"method": method, **self._who()})
            return
        if self._queued_bytes + len(data) > self._limits.send_queue_bytes:
            self._drop(f"{self._queued_bytes} bytes wait for a reader that does not read")
            return
        self._send(data)

    async def drained(self) -> None:
        """Return once the peer has taken what was sent before; not at all if it takes too long: then the connection ends."""
        await trio.lowlevel.checkpoint()
        while self._queue:
            await self._queue_drained.park()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the connection ends, in the loop's thread; at once if it has ended."""
        if self._close_callbacks is None:
            callback()
        else:
            self._close_callbacks.append(callback)

    def open_peer_process(self) -> int:
        """A descriptor of the process that opened the connection, which may have ended; the caller's to close.

        Raises:
            IfbusError: The process cannot be held.
        """
        return open_peer_process(self._sock)

    def expect_process(self) -> None:
        """Take a process descriptor that is sent with one of the next messages; otherwise the kernel drops it."""
        self._receive = self._receive_with_process

    def take_process(self) -> int | None:
        """The process descriptor that was handed over, once; the caller's to close."""
        taken, self._handed_over = self._handed_over, None
        return taken

    def _receive_with_process(self, size: int) -> bytes:
        is_operator = self._peer.is_operator
        data, process, sender = receive_with_process(self._sock, size, names_senders=is_operator)
        if is_operator:
            self._judge(sender)
        if process is not None:
            self._close_handed_over()
            self._handed_over = process
            self._receive = self._plain_receive()
        return data

    def _plain_receive(self) -> Callable[[int], bytes]:
        return self._receive_from_sender if self._peer.is_operator else self._sock.recv

    def _receive_from_sender(self, size: int) -> bytes:
        data, sender = receive_from_sender(self._sock, size)
        if sender != self._sender:
            self._judge(sender)
        return data

    def _judge(self, sender: bytes) -> None:
        """Let the requests of an operator's connection have the role only if an operator sent them, to the last byte."""
        common = self._common
        peer = peer_as_sent(self._peer, sender, operator_uids=common.operator_uids, operator_gids=common.operator_gids)
        self._sender = sender
        if self._protocol.is_inside_message and not self._caller.is_operator:
            peer = self._caller.peer  # the message was begun without the role
            self._sender = None
        self._caller = Caller(peer=peer, session=self)

    def _close_handed_over(self) -> None:
        if (former := self.take_process()) is not None:
            os.close(former)

    def statistics(self) -> SessionStatistics:
        """A snapshot."""
        return SessionStatistics(
            connection_id=self._peer.connection_id,
            uid=self._peer.uid,
            pid=self._peer.pid,
            connected_at_ms=self._connected_at_ms,
            requests=self._requests,
            refusals=self._refusals,
            in_flight=len(self._running) + self._inline,
            queued_bytes=self._queued_bytes,
        )

    # --- life ----------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Serve until the peer goes, misbehaves, or `end` is called. Cancelled, requests under way may have been done."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._is_ending:  # the server stopped before this task had its first turn
                    return
                try:
                    await self._read_until_end()
                except ProtocolError as error:
                    _log.info(
                        "a peer sent no MessagePack-RPC", extra={"reason": error.data.get("reason"), **self._who()}
                    )
                    self.end(error)
                except OSError as error:
                    _log.debug("a connection broke", extra={"reason": error.strerror, **self._who()})
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self._receive = self._sock.recv  # not a method of ours, which would keep us alive
            self._close_handed_over()
            callbacks, self._close_callbacks = self._close_callbacks or [], None
            for callback in callbacks:
                try:
                    callback()
                except Exception:
                    _log.exception("an end-of-connection callback failed", extra=self._who())
            self._common.idle.unpark_all()
            # What refers to itself keeps its buffers until the collector comes: after hundreds more, or never in a quiet daemon.
            self._nursery = None
            del self._caller

    def end(self, reason: IfbusError) -> None:
        """Tell the peer why, as far as that does not block, and end the connection."""
        self._is_ending = True
        self.notify(CLOSING, [reason.to_wire()])
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way and everything answered was sent."""
        return not (self._running or self._inline or self._queue)

    def _tell_idle(self) -> None:
        if self._common.is_stopping:
            self._common.idle.unpark_all()

    def _drop(self, reason: str) -> None:
        _log.warning("dropped a connection", extra={"reason": reason, **self._who()})
        assert self._nursery is not None  # whatever sends was started by `serve`
        self._nursery.cancel_scope.cancel()

    def _who(self) -> dict[str, Any]:
        return {"connection": self._peer.connection_id, "uid": self._peer.uid, "pid": self._peer.pid}

    # --- reading -------------------------------------------------------------------------------------

    async def _read_until_end(self) -> None:
        sock, protocol, wait_readable = self._sock, self._protocol, trio.lowlevel.wait_readable
        size = _READ_BYTES
        while True:
            # Waiting first is no loss: in a closed loop the next request is never there yet.
            if self._unfinished_deadline is not None:
                await self._wait_for_the_rest(self._unfinished_deadline)
            else:
                await wait_readable(sock)
            try:
                data = self._receive(size)
            except BlockingIOError:
                continue
            size = _READ_BYTES if len(data) < _READ_BYTES else _MUCH_BYTES
            protocol.receive_data(data)
            handled = await self._handle_received()
            if not protocol.is_inside_message:
                self._unfinished_deadline = None
            elif handled or self._unfinished_deadline is None:
                self._unfinished_deadline = trio.current_time() + self._limits.unfinished_ms / 1000
            if not data:
                await self._finish_half_closed()
                return
            while self._queue:  # back-pressure: who does not read its answers is not read either
                await self._queue_drained.park()
            if self._pause_s:
                await trio.sleep(min(self._pause_s, _MAX_PAUSE_S))
                self._pause_s = 0.0

    async def _wait_for_the_rest(self, deadline_s: float) -> None:
        # From the first byte of the message to its last, however slowly they trickle in.
        with trio.move_on_at(deadline_s) as scope:
            await trio.lowlevel.wait_readable(self._sock)
        if scope.cancelled_caught:
            raise ProtocolError(
                f"cannot wait for the rest of a message: it did not come within {self._limits.unfinished_ms} ms",
                data={"reason": "unfinished message", "allowed": self._limits.unfinished_ms},
            )

    async def _finish_half_closed(self) -> None:
        # A peer that has only shut down its sending side still reads the answers to what it sent; one that has closed is gone,
        # and what waits in its name must not go on.
        poll = select.poll()
        poll.register(self._sock, 0)
        if poll.poll(0):  # POLLHUP or POLLERR, which are always reported
            return
        with trio.move_on_after(self._limits.write_ms / 1000):
            while self._running:
                await self._slot_freed.park()
            while self._queue:
                await self._queue_drained.park()

    async def _handle_received(self) -> int:
        """Handle all whole messages that were received; how many there were."""
        protocol, turn = self._protocol, self._limits.turn_requests
        now_s = trio.current_time()
        handled = 0
        while True:
            event = protocol.next_event()
            if type(event) is Request:
                await self._take(event, now_s)
            elif event is NEED_DATA or event is END_OF_STREAM:
                return handled
            else:
                self._pause_s = max(self._pause_s, take(self.share.bucket, self._common.rate, now_s, Quota.READ))
                if isinstance(event, Notification):
                    self._hear(event)
                elif isinstance(event, Malformed):
                    if event.msgid is None:
                        self._count_unanswerable(event.error)
                    else:
                        await self._refuse(event.msgid, event.error)
            handled += 1
            if not protocol.has_buffered:
                return handled
            if handled % turn == 0:
                await trio.lowlevel.checkpoint()
                now_s = trio.current_time()

    def _count_unanswerable(self, error: IfbusError) -> None:
        # One is forgiven: pynvim opens its sessions with a notification whose method is binary. An HTTP client is told.
        self._unanswerable += 1
        if self._unanswerable > _MAX_UNANSWERABLE:
            raise ProtocolError(error.message, data={"reason": "no MessagePack-RPC"})

    def _hear(self, notification: Notification) -> None:
        # Unknown ones are ignored (DESIGN 5), as is a cancel of what has ended already.
        if notification.method == CANCEL_METHOD and notification.params and type(notification.params[0]) is int:
            scope = self._running.get(notification.params[0])
            if scope is not None:
                scope.cancel()

    # --- requests ------------------------------------------------------------------------------------

    async def _take(self, request: Request, now_s: float) -> None:
        msgid, name, params, meta = request
        common = self._common
        self._requests += 1
        caller, timeout_s = self._caller, math.inf
        try:
            method = common.methods.get(name)
            # Finding the name that an unknown one is nearest to takes about a millisecond, so that is heavy.
            wait_s = take(self.share.bucket, common.rate, now_s, Quota.HEAVY if method is None else method.quota)
            if wait_s:
                raise self._over_quota(wait_s)
            if method is None:
                raise unknown_method(name, common.methods)
            if common.is_stopping:
                raise stopping()
            if msgid in self._running:
                raise InvalidRequest(
                    f"cannot start request {msgid}: one with this id is under way", data={"msgid": msgid}
                )
            arguments = method.signature.bind(params)
            if meta:
                caller, timeout_s = self._read_meta(meta, name, arguments)
            if (
                self._protocol.has_buffered
                or method.waits is _ALWAYS
                or (method.waits is _ASKED and arguments.get("wait_ms"))
                or (method.waits is _LATER and len(self._running) >= self._limits.in_flight)
            ):
                await self._wait_for_slot()
                self._start(msgid, trio.current_time() + timeout_s, method, caller, arguments)
                return
        except IfbusError as refusal:
            await self._refuse(msgid, refusal)
            return
        self._inline = 1
        until_s = math.inf
        if timeout_s == math.inf:
            later = await self._answer(msgid, method, caller, arguments)
        else:
            later, until_s = None, trio.current_time() + timeout_s
            with trio.move_on_at(until_s) as scope:
                later = await self._answer(msgid, method, caller, arguments)
            if scope.cancelled_caught:
                await self._refuse(msgid, _deadline_exceeded(name))
        self._inline = 0
        if later is not None:
            self._start(msgid, until_s, method, caller, arguments, later)
        else:
            self._tell_idle()

    async def _wait_for_slot(self) -> None:
        allowed = self._limits.in_flight
        if len(self._running) < allowed:
            return
        with trio.move_on_after(self._limits.slot_wait_ms / 1000):
            while len(self._running) >= allowed:
                await self._slot_freed.park()
        if len(self._running) < allowed:
            return
        raise Overloaded(
            f"cannot start the request: {len(self._running)} of {allowed} requests of this connection are in flight",
            data={"used": len(self._running), "allowed": allowed, "retry_after_ms": self._limits.slot_wait_ms},
        )

    def _start(
        self,
        msgid: int,
        deadline_s: float,
        method: Method,
        caller: Caller,
        arguments: dict[str, Any],
        later: Later | None = None,
    ) -> None:
        """Run a request, or the rest of one, beside the reading; there must be a slot for it."""
        self._running[msgid] = scope = trio.CancelScope(deadline=deadline_s)
        assert self._nursery is not None  # opened by `serve`, which calls this
        self._nursery.start_soon(self._run, msgid, scope, method, caller, arguments, later)

    async def _run(
        self,
        msgid: int,
        scope: trio.CancelScope,
        method: Method,
        caller: Caller,
        arguments: dict[str, Any],
        later: Later | None,
    ) -> None:
        with scope:
            if later is None:
                later = await self._answer(msgid, method, caller, arguments)
            if later is not None:
                await self._answer(msgid, method, caller, arguments, later)
        del self._running[msgid]
        if scope.cancelled_caught:
            is_late = trio.current_time() >= scope.deadline
            await self._refuse(msgid, _deadline_exceeded(method.name) if is_late else _cancelled(method.name))
        self._slot_freed.unpark_all()
        self._tell_idle()

    async def _answer(
        self, msgid: int, method: Method, caller: Caller, arguments: dict[str, Any], later: Later | None = None
    ) -> Later | None:
        """Answer the request, or the rest of one; or give the rest that is still to be waited for."""
        try:
            if method.role is _OPERATOR and not caller.peer.is_operator:
                await self._deny(method, caller, arguments)
            if later is not None:
                result = await later.finish()
            elif method.quota is _LIST:
                async with self.share.turn:
                    result = await method.handler(caller, **arguments)
            else:
                result = await method.handler(caller, **arguments)
                if type(result) is Later:
                    return result
            data = self._protocol.respond(msgid, result)
        except IfbusError as refusal:
            self._refusals += 1
            if caller.peer.role_lost_to is not None:
                _tell_lost_role(refusal, caller.peer)
            data = self._protocol.respond_error(msgid, refusal)
        except Exception as error:  # one client's request, whatever is wrong with it, ends as its answer
            data = self._protocol.respond_error(msgid, self._failure(method, error))
        if self._queue:
            await self._wait_for_room()
        self._send(data)
        return None

    def _failure(self, method: Method, error: Exception) -> IfbusError:
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            _log.error("out of descriptors or memory", extra={"reason": error.strerror, "method": method.name})
            return Unavailable(
                f"cannot do {method.name} now: the daemon is out of descriptors or memory ({error.strerror})",
                data={"reason": "exhausted", "retry_after_ms": 1000},
            )
        bug_id = f"e-{secrets.token_hex(4)}"
        _log.error("a request failed", exc_info=error, extra={"id": bug_id, "method": method.name, **self._who()})
        return Internal(f"cannot do {method.name}: a bug of ours, {bug_id} in the log", data={"id": bug_id})

    async def _deny(self, method: Method, caller: Caller, arguments: dict[str, Any]) -> None:
        refusal = PermissionDenied(
            f"cannot do {method.name}: it needs the operator role; you are uid {caller.uid}",
            data={"uid": caller.uid, "role": Role.OPERATOR.value},
            would_change=[{"by": "operator", "what": "a user or group with the operator role calls it"}],
        )
        _tell_lost_role(refusal, caller.peer)
        _log.warning("denied", extra={"method": method.name, **self._who()})
        if method.changes:
            parameters = method.signature.parameters
            target = arguments.get(parameters[0].name) if parameters else None
            await self._common.witness_refusal(caller, method.name, target[:64] if type(target) is str else "", refusal)
        raise refusal

    def _over_quota(self, wait_s: float) -> Overloaded:
        self._pause_s = max(self._pause_s, wait_s)
        allowed = self._limits.requests_per_s
        return Overloaded(
            f"cannot start the request: uid {self._peer.uid} has used up its {allowed} requests per second",
            data={"allowed": allowed, "retry_after_ms": math.ceil(wait_s * 1000)},
        )

    def _read_meta(self, meta: dict[str, Any], name: str, arguments: dict[str, Any]) -> tuple[Caller, float]:
        """Who asks, with what the request says of itself, and in how many seconds it must be done; unknown keys are ignored."""
        timeout_ms, key, traceparent = meta.get("timeout_ms"), meta.get("idempotency_key"), meta.get("traceparent")
        timeout_s = math.inf
        if timeout_ms is not None:
            if type(timeout_ms) is not int or not 0 < timeout_ms <= _MAX_TIMEOUT_MS:
                raise _invalid_meta("timeout_ms", f"1 to {_MAX_TIMEOUT_MS} milliseconds")
            timeout_s = timeout_ms / 1000
        body_hash = b""
        if key is not None:
            if type(key) is not str or not 0 < len(key) <= _MAX_KEY_CHARS:
                raise _invalid_meta("idempotency_key", f"a string of 1 to {_MAX_KEY_CHARS} characters")
            # Of the bound arguments, so that the same call is the same body by position and by keyword.
            body_hash = hashlib.sha256(pack([name, sorted(arguments.items())])).digest()
        elif traceparent is None:
            return self._caller, timeout_s
        trace = _TRACEPARENT.fullmatch(traceparent) if type(traceparent) is str and len(traceparent) <= 256 else None
        caller = Caller(
            peer=self._caller.peer,
            session=self,
            idempotency_key=key,
            body_hash=body_hash,
            traceparent=trace[1] if trace else None,  # an invalid one is ignored, as the W3C says
        )
        return caller, timeout_s

    # --- writing -------------------------------------------------------------------------------------

    async def _refuse(self, msgid: int, refusal: IfbusError) -> None:
        self._refusals += 1
        if self._queue:
            await self._wait_for_room()
        self._send(self._protocol.respond_error(msgid, refusal))

    async def _wait_for_room(self) -> None:
        while self._queued_bytes > self._limits.send_queue_bytes // 2:
            await self._queue_drained.park()

    def _send(self, data: bytes) -> None:
        """Send whole and in order, without blocking: at once if nothing waits, else by the one writer."""
        sent = 0
        if not self._queue:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                return  # the peer is gone; the reading task sees it too and ends the connection
            if sent == len(data):
                return
            assert self._nursery is not None  # whatever sends was started by `serve`
            self._nursery.start_soon(self._write_queue)
        self._queue.append(memoryview(data)[sent:])
        self._queued_bytes += len(data) - sent

    async def _write_queue(self) -> None:
        queue, sock = self._queue, self._sock
        while queue:
            with trio.move_on_after(self._limits.write_ms / 1000) as scope:
                await self._write(queue[0], sock)
            if scope.cancelled_caught:
                self._drop(f"a message was not taken within {self._limits.write_ms} ms")
                return
            queue.popleft()
        self._queue_drained.unpark_all()
        self._tell_idle()

    async def _write(self, data: memoryview, sock: socket.socket) -> None:
        while data:
            await trio.lowlevel.wait_writable(sock)
            try:
                sent = sock.send(data)
            except BlockingIOError:
                continue
            except OSError:
                sent = len(data)  # the peer is gone: as if taken, the reading task ends the connection
            self._queued_bytes -= sent
            data = data[sent:]


def _tell_lost_role(refusal: IfbusError, peer: Peer) -> None:
    """Say in a refusal that the connection is an operator's, and why that was no help; once is enough."""
    if peer.role_lost_to is None or type(refusal) is not PermissionDenied or "sender_uid" in refusal.data:
        return
    refusal.data["sender_uid"] = peer.role_lost_to
    refusal.message += (
        f"; this connection has the role, but uid {peer.role_lost_to} sent the request and has not:"
        " it does not go with a connection that is inherited or passed on"
    )


def stopping() -> Unavailable:
    """The answer of a daemon that finishes what it has begun and takes nothing new."""
    return Unavailable(
        "cannot start the request: the daemon is stopping", data={"reason": "stopping", "retry_after_ms": 1000}
    )


def _cancelled(method: str) -> Cancelled:
    return Cancelled(f"cannot finish {method}: the caller cancelled it; it may have been done")


def _deadline_exceeded(method: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"cannot finish {method} within its timeout; it may have been done")


def _invalid_meta(name: str, expected: str) -> InvalidParams:
    return InvalidParams(f"cannot take {name}: expected {expected}", data={"param": name, "expected": expected})

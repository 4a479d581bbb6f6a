"""Blocking byte streams: a connected socket, and a connection inherited from a parent that is used without socket calls."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final, Protocol

from ifbus.connect import Inherited
from ifbus.errors import ConnectionLost, InvalidParams, Unavailable

# As much as the protocol feeds to its decoder at a time; a small buffer is also cheaper to allocate for each read.
RECEIVE_BYTES: Final = 16 << 10
_USUAL_BYTES: Final = 2 << 10
# How long one message may take to leave. A daemon that does not read for so long is stuck; the stream is given up.
SEND_TIMEOUT_S: Final = 10.0


class Stream(Protocol):
    """One connection's bytes. One thread may send while another receives."""

    def send(self, data: bytes) -> None:
        """Send all of it. Raises ConnectionLost; the stream may be torn then and is finished."""
        ...

    def send_process(self, data: bytes, pidfd: int) -> None:
        """As `send`, with a process descriptor. Raises InvalidParams where this stream cannot carry one."""
        ...

    def receive(self, timeout_s: float | None) -> bytes:
        """What has arrived, at least a byte; ``b""`` at the end. Raises TimeoutError, ConnectionLost."""
        ...

    def shut_down(self) -> None:
        """End the connection; a thread that waits in `receive` comes back."""
        ...

    def close(self) -> None:
        """Free the descriptor; nobody may be in `receive`."""
        ...


class SocketStream:
    """A connected socket in blocking mode.

    Timeouts are the kernel's (SO_RCVTIMEO): Python's own would add a poll to every read of the hot path.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timeout_s: float | None = None
        self._bytes = _USUAL_BYTES
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_TIMEOUT_S))

    def send(self, data: bytes) -> None:
        try:
            sent = self._sock.send(data)
            while sent < len(data):
                sent += self._sock.send(data[sent:])
        except BlockingIOError:
            raise ConnectionLost(f"the daemon took no bytes for {SEND_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise ConnectionLost(f"the connection ended while sending: {error}") from error

    def send_process(self, data: bytes, pidfd: int) -> None:
        try:
            sent = socket.send_fds(self._sock, [data], [pidfd])
        except BlockingIOError:
            raise ConnectionLost(f"the daemon took no bytes for {SEND_TIMEOUT_S:g} s") from None
        except OSError as error:
            if error.errno == errno.EBADF:
                raise InvalidParams(f"cannot hand over descriptor {pidfd}: it is not open") from error
            raise ConnectionLost(f"the connection ended while sending: {error}") from error
        if sent < len(data):
            self.send(data[sent:])

    def receive(self, timeout_s: float | None) -> bytes:
        if timeout_s != self._timeout_s:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(timeout_s))
            self._timeout_s = timeout_s
        try:
            data = self._sock.recv(self._bytes)
        except BlockingIOError:
            raise TimeoutError from None
        except OSError as error:
            raise ConnectionLost(f"the connection ended: {error}") from error
        # Allocating for more than what comes costs a microsecond, so there is room for much only where much came.
        self._bytes = RECEIVE_BYTES if len(data) >= _USUAL_BYTES else _USUAL_BYTES
        return data

    def shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer has ended it already

    def close(self) -> None:
        self._sock.close()


class InheritedStream:
    """A connection that a parent opened, by plain reads and writes: where a sandbox refuses socket calls, these pass (UX 4).

    If several processes share it they take turns: the one byte in the turn pipe is the right to use it. It is taken when
    the stream is made and given back when it is closed; the connection itself stays open for the next.
    """

    def __init__(self, parts: Inherited, *, turn_timeout_s: float) -> None:
        self._fd = parts.fd
        self._turn_write = parts.turn_write
        self._closing_read, self._closing_write = os.pipe()
        if parts.turn_read is not None and not _take_turn(parts.turn_read, turn_timeout_s):
            self._turn_write = None
            self.close()
            raise Unavailable(
                f"another process kept the inherited connection for {turn_timeout_s:g} s",
                data={"fd": parts.fd, "waited_ms": int(turn_timeout_s * 1000)},
            )

    @property
    def fd(self) -> int:
        """The connection's descriptor."""
        return self._fd

    def send(self, data: bytes) -> None:
        deadline = time.monotonic() + SEND_TIMEOUT_S
        view = memoryview(data)
        try:
            while view:
                if not _ready(max(0.0, deadline - time.monotonic()), write=[self._fd]):
                    raise ConnectionLost(f"the daemon took no bytes for {SEND_TIMEOUT_S:g} s")
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise ConnectionLost(f"the connection ended while sending: {error}") from error

    def send_process(self, data: bytes, pidfd: int) -> None:
        raise no_socket(pidfd)

    def receive(self, timeout_s: float | None) -> bytes:
        try:
            readable = _ready(timeout_s, read=[self._fd, self._closing_read])
            data = os.read(self._fd, RECEIVE_BYTES) if readable == {self._fd} else b""
        except OSError as error:
            raise ConnectionLost(f"the connection ended: {error}") from error
        if not readable:
            raise TimeoutError
        return data

    def shut_down(self) -> None:
        # The connection is the parent's and outlives us: only wake who waits here.
        if self._closing_write >= 0:
            os.write(self._closing_write, b"\0")

    def close(self) -> None:
        if self._closing_write < 0:
            return
        os.close(self._closing_read)
        os.close(self._closing_write)
        self._closing_write = -1
        if self._turn_write is not None:
            os.write(self._turn_write, b"\0")


def no_socket(pidfd: int) -> InvalidParams:
    """A connection that is used by plain reads and writes carries no descriptors."""
    return InvalidParams(
        f"cannot hand over descriptor {pidfd}: this connection was inherited (IFBUS_FD) and carries bytes alone"
    )


def is_writable(fd: int) -> bool:
    """Whether a message can be written to a connection at this moment without blocking."""
    return bool(_ready(0, write=[fd]))


def _take_turn(fd: int, timeout_s: float) -> bool:
    return bool(_ready(timeout_s, read=[fd]) and os.read(fd, 1))


def _ready(timeout_s: float | None, *, read: Sequence[int] = (), write: Sequence[int] = ()) -> set[int]:
    poller = select.poll()
    for fd in read:
        poller.register(fd, select.POLLIN)
    for fd in write:
        poller.register(fd, select.POLLOUT)
    return {fd for fd, _ in poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000))}


def _timeval(timeout_s: float | None) -> bytes:
    """`struct timeval`; zero would mean "for ever", so at least a microsecond stands for a timeout."""
    if timeout_s is None:
        return struct.pack("@ll", 0, 0)
    microseconds = max(1, int(timeout_s * 1_000_000))
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))

"""Byte streams for an event loop, asyncio's or trio's: reads wait for the descriptor, writes never block.

What a write leaves over is kept by its connection, so a cancelled call cannot tear a message in two.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Protocol

import anyio

from ifbus.errors import ConnectionLost, InvalidParams
from ifbus.stream import RECEIVE_BYTES, InheritedStream, is_writable, no_socket


class AsyncStream(Protocol):
    """One connection's bytes; one task may write while another reads."""

    def write(self, data: memoryview) -> int:
        """Write what fits now; how many bytes that were, perhaps none. Raises ConnectionLost."""
        ...

    def write_process(self, data: bytes, pidfd: int) -> int:
        """As `write`, with a process descriptor. Raises InvalidParams where this stream cannot carry one."""
        ...

    async def wait_writable(self) -> None:
        """Return when `write` can be tried again. Cancelled, nothing has happened."""
        ...

    async def receive(self) -> bytes:
        """What has arrived, at least a byte; ``b""`` at the end. Raises ConnectionLost. Cancelled, nothing was read."""
        ...

    def close(self) -> None:
        """Free the descriptor; nobody may wait for it. Twice is fine."""
        ...


class AsyncSocketStream:
    """A connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    def write(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(f"the connection ended while sending: {error}") from error

    def write_process(self, data: bytes, pidfd: int) -> int:
        try:
            return socket.send_fds(self._sock, [data], [pidfd])
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EBADF:
                raise InvalidParams(f"cannot hand over descriptor {pidfd}: it is not open") from error
            raise ConnectionLost(f"the connection ended while sending: {error}") from error

    async def wait_writable(self) -> None:
        await anyio.wait_writable(self._sock)

    async def receive(self) -> bytes:
        while True:
            await anyio.wait_readable(self._sock)
            try:
                return self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ConnectionLost(f"the connection ended: {error}") from error

    def close(self) -> None:
        self._sock.close()


class AsyncInheritedStream:
    """A connection that a parent opened, by plain reads and writes (see `ifbus.stream.InheritedStream`, which holds the turn).

    It stays in blocking mode, because the mode is shared with every process that has it. After the descriptor was said to be
    writable or readable, a message of at most 64 KiB passes without blocking.
    """

    def __init__(self, stream: InheritedStream) -> None:
        self._stream = stream
        self._fd = stream.fd

    def write(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data) if is_writable(self._fd) else 0
        except OSError as error:
            raise ConnectionLost(f"the connection ended while sending: {error}") from error

    def write_process(self, data: bytes, pidfd: int) -> int:
        raise no_socket(pidfd)

    async def wait_writable(self) -> None:
        await anyio.wait_writable(self._fd)

    async def receive(self) -> bytes:
        await anyio.wait_readable(self._fd)
        try:
            return os.read(self._fd, RECEIVE_BYTES)
        except OSError as error:
            raise ConnectionLost(f"the connection ended: {error}") from error

    def close(self) -> None:
        self._stream.close()

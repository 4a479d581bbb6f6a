"""The clients' side of the benchmarks: for each kind of contestant, what makes one call."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import socket
from collections.abc import Callable
from typing import Any, Final

import msgpack

import ifbus

# Before clients are forked, so that each need not do it again; without those that are not installed.
for optional in ("grpc", "redis"):
    with contextlib.suppress(ImportError):
        importlib.import_module(optional)

C: Final = "C ping-pong"
BARE: Final = "bare"
REDIS: Final = "Redis ECHO, redis-py"
REDIS_BARE: Final = "Redis ECHO, bare client"
GRPC: Final = "gRPC sync"
IFBUSD_BARE: Final = "ifbusd, bare client"
IFBUSD: Final = "ifbusd, ifbus.Client"
TRACED: Final = "ifbusd, traced"

MESSAGE_BYTES: Final = 80
# A reply to any of the calls here fits.
_REPLY_BYTES: Final = 65536
_TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def connect(address: str) -> socket.socket:
    """A blocking connection."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    return sock


def request_of(sock: socket.socket) -> Callable[..., Any]:
    """The smallest MessagePack-RPC client: ``request(method, *params)`` gives the result or raises RuntimeError."""
    send, receive = sock.send, sock.recv
    pack, unpacker = msgpack.Packer(autoreset=True).pack, msgpack.Unpacker()
    numbers = itertools.count(1)

    def request(method: str, *params: Any) -> Any:
        send(pack([0, next(numbers), method, params]))
        while True:
            unpacker.feed(receive(_REPLY_BYTES))
            for message in unpacker:
                if message[0] == 1:
                    if message[2] is not None:
                        raise RuntimeError(f"{method} was refused: {message[2]}")
                    return message[3]

    return request


def ping_of(kind: str, address: str) -> Callable[[], object]:
    """What makes one round trip to a contestant of this kind."""
    if kind in (IFBUSD, TRACED):
        ping = ifbus.Client(address).ping
        return ping if kind == IFBUSD else lambda: ping(traceparent=_TRACEPARENT)
    if kind == GRPC:
        return _grpc(address)
    if kind == REDIS:
        import redis

        echo, message = redis.Redis(unix_socket_path=address).echo, bytes(MESSAGE_BYTES)
        return lambda: echo(message)
    sock = connect(address)
    if kind in (BARE, IFBUSD_BARE):
        request = request_of(sock)
        return lambda: request("daemon.ping")
    if kind == C:
        return _exchange(sock, bytes(MESSAGE_BYTES))
    assert kind == REDIS_BARE
    return _exchange(sock, b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (MESSAGE_BYTES, b"x" * MESSAGE_BYTES))


def redis_command_of(sock: socket.socket) -> Callable[..., bytes]:
    """The smallest client of Redis: ``command(*words)`` gives the reply as it came."""

    def command(*words: bytes) -> bytes:
        sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        return sock.recv(4096)

    return command


def _exchange(sock: socket.socket, message: bytes) -> Callable[[], object]:
    send, receive = sock.send, sock.recv

    def exchange() -> None:
        send(message)
        receive(4096)

    return exchange


def _grpc(address: str) -> Callable[[], object]:
    import grpc

    message = bytes(MESSAGE_BYTES)
    echo: grpc.UnaryUnaryMultiCallable[bytes, bytes] = grpc.insecure_channel(f"unix:{address}").unary_unary(
        "/perf.Echo/Ping"
    )
    return lambda: echo(message)

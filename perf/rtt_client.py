"""One client of the round-trip benchmark, in a process that imports little: ``rtt_client.py KIND SOCKET COUNT``.

It connects, prints ``ready``, waits for a line, calls, and prints the latencies as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

import msgpack
from harness import time_calls

C, CLIENT = "C ping-pong", "ifbusd, ifbus.Client"
MESSAGE_BYTES: Final = 80


def caller_of(kind: str, path: str) -> Callable[[], object]:
    """What makes one round trip."""
    if kind == CLIENT:
        import ifbus

        client = ifbus.Client(path)
        client.ping()
        return client.ping
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    send, receive = sock.send, sock.recv
    if kind == C:
        message = bytes(MESSAGE_BYTES)

        def echo() -> None:
            send(message)
            receive(4096)

        return echo
    pack, unpacker = msgpack.Packer(autoreset=True).pack, msgpack.Unpacker()
    state = [0]

    def call() -> Any:
        state[0] += 1
        send(pack([0, state[0], "daemon.ping", []]))
        unpacker.feed(receive(4096))
        return unpacker.unpack()

    return call


def be_client(kind: str, path: str, count: int) -> None:
    """Connect, say so, wait for the start, call, print the latencies."""
    call = caller_of(kind, path)
    for _ in range(200):
        call()
    print("ready", flush=True)
    sys.stdin.readline()
    latencies, wall_s = time_calls(call, count)
    json.dump({"latencies": latencies, "wall_s": wall_s}, sys.stdout)


if __name__ == "__main__":
    be_client(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""The bare contestants: what trio, MessagePack and SQLite cost with nothing around them (the spikes of DESIGN 7).

``python perf/bare.py MODE SOCKET``. All modes share `trio.socket`, a limited unpacker, and the reply by a direct non-blocking
send that falls back to waiting. They know no methods, no users, no limits but the decoder's, and are no example to follow.

    echo      answers a request with its parameters
    durable   answers a request with one claim's worth of rows, committed once per pass of the loop before the answers leave
    relay     a request without parameters subscribes; what others send goes to all subscribers, then the answer
"""

from __future__ import annotations

import hashlib
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import apsw
import attrs
import msgpack
import trio

Message = list[Any]
_PACK: Final = msgpack.Packer(autoreset=True).pack


@attrs.define(eq=False)
class Peer:
    """One connection; `raw` is a second descriptor of it for sending at once."""

    sock: trio.socket.SocketType
    raw: socket.socket

    async def send(self, data: bytes) -> None:
        """Send at once what the socket takes, wait for the rest."""
        try:
            sent = self.raw.send(data)
        except BlockingIOError:
            sent = 0
        while sent < len(data):
            sent += await self.sock.send(data[sent:])


Answer = Callable[[Peer, Message], Awaitable[None]]


async def echo(peer: Peer, message: Message) -> None:
    """Answer with the parameters."""
    await peer.send(_PACK([1, message[1], None, message[3]]))


class Relay:
    """Whoever asks for nothing subscribes; anything else goes to all who did."""

    def __init__(self) -> None:
        self._subscribers: list[Peer] = []

    async def answer(self, peer: Peer, message: Message) -> None:
        """Subscribe, or relay and answer."""
        if message[3]:
            data = _PACK([2, "told", message[3]])
            for subscriber in list(self._subscribers):
                try:
                    await subscriber.send(data)
                except OSError:
                    self._subscribers.remove(subscriber)  # it is gone
        else:
            self._subscribers.append(peer)
        await peer.send(_PACK([1, message[1], None, None]))


class Ledger:
    """A durable admission without its rules: one read, three key rows, a chained witness row, an idempotency row per request.

    All requests of one pass of the loop share one transaction of SQLite (WAL, FULL), committed inline.
    """

    def __init__(self, path: str) -> None:
        connection = apsw.Connection(path)
        for pragma in ("locking_mode=exclusive", "journal_mode=wal", "synchronous=full"):
            connection.execute(f"pragma {pragma}").fetchall()
        connection.execute("create table if not exists kv (key text primary key, value blob, revision integer)")
        connection.execute("create table if not exists log (seq integer primary key, record blob, hash blob)")
        self._sql = connection.cursor().execute
        self._waiting: list[tuple[Peer, bytes]] = []
        self._work = trio.lowlevel.ParkingLot()
        self._seq, self._head = 0, bytes(32)

    async def answer(self, peer: Peer, message: Message) -> None:
        """Write; the answer leaves with the commit."""
        task, swarm, key = message[3]
        sql = self._sql
        if not self._waiting:
            sql("begin immediate")
            self._work.unpark()
        if sql("select value from kv where key = ?", (f"claims/{task}",)).get is not None:
            raise RuntimeError(f"{task} is claimed already")
        self._seq += 1
        claim = _PACK({"swarm": swarm, "task": task, "lease_ms": 30_000, "at_ms": self._seq})
        for row in (f"claims/{task}", f"accounts/{swarm}", f"inbox/{swarm}"):
            sql("insert or replace into kv values (?, ?, ?)", (row, claim, self._seq))
        record = _PACK({"op": "claim", "target": task, "swarm": swarm, "uid": 0, "outcome": "ok"})
        self._head = hashlib.sha256(self._head + record).digest()
        sql("insert into log values (?, ?, ?)", (self._seq, record, self._head))
        answer = _PACK([1, message[1], None, {"claim": claim, "seq": self._seq, "head": self._head}])
        sql("insert or replace into kv values (?, ?, ?)", (f"idempotency/{key}", answer, self._seq))
        self._waiting.append((peer, answer))

    async def run(self) -> None:
        """Commit what each pass of the loop has brought."""
        while True:
            if not self._waiting:
                await self._work.park()
            self._sql("commit")
            answers, self._waiting = self._waiting, []
            for peer, answer in answers:
                await peer.send(answer)
            await trio.lowlevel.checkpoint()


async def serve(sock: trio.socket.SocketType, answer: Answer) -> None:
    """Answer until the client goes."""
    raw = socket.socket(fileno=socket.dup(sock.fileno()))
    raw.setblocking(False)
    peer = Peer(sock, raw)
    unpacker = msgpack.Unpacker(
        max_buffer_size=65536,
        read_size=4096,
        max_array_len=1024,
        max_map_len=256,
        max_str_len=65536,
        max_bin_len=65536,
        max_ext_len=0,
    )
    with sock, raw:
        while data := await sock.recv(16384):
            unpacker.feed(data)
            for message in unpacker:
                await answer(peer, message)


async def main(mode: str, path: str) -> None:
    """Accept until killed."""
    async with trio.open_nursery() as nursery:
        answer: Answer = echo
        if mode == "durable":
            ledger = Ledger(f"{path}.db")
            nursery.start_soon(ledger.run)
            answer = ledger.answer
        elif mode == "relay":
            answer = Relay().answer
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            await listener.bind(path)
            listener.listen(1024)
            print("ready", flush=True)
            while True:
                sock, _ = await listener.accept()
                nursery.start_soon(serve, sock, answer)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])

"""A real server on a real socket, with small handlers that show what the wire does; in this process or in one of its own.

``python -m tests.integration.rpc.serving SOCKET`` serves until it is killed, so that a test can watch its memory.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from ifbus.errors import AlreadyClaimed, ConnectionLost, IfbusError, NotFound, PermissionDenied, from_wire
from ifbus.protocol import END_OF_STREAM, NEED_DATA, Connection, Notification, Response
from ifbusd.bus.local import LocalBus
from ifbusd.identity import Caller
from ifbusd.later import Later
from ifbusd.rpc.attention import Attention
from ifbusd.rpc.daemon_methods import DaemonMethods
from ifbusd.rpc.describe import describe
from ifbusd.rpc.limits import RpcLimits
from ifbusd.rpc.listener import open_listener
from ifbusd.rpc.methods import ROWS, Role, Row, Waits, bind_rows
from ifbusd.rpc.quota import Quota
from ifbusd.rpc.server import Server

# Far longer than anything here takes on a busy machine: a test that needs it has failed.
PATIENCE_S = 120.0
OWN_SWARM, FOREIGN_SWARM = "docs", "scout"


class Probe:
    """Handlers that show what reached them."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.waiting = 0
        self.looking = 0
        self.looked = 0
        self.cancelled = 0
        self.closed: list[int] = []
        self.callers: list[Caller] = []
        self.registered: list[str] = []

    async def echo(self, caller: Caller, value: Any) -> Any:
        """What came."""
        return value

    async def note(self, caller: Caller, value: Any = None) -> str:
        """Remember who called."""
        self.callers.append(caller)
        return "noted"

    async def whoami(self, caller: Caller) -> dict[str, Any]:
        """What the kernel says about the caller."""
        peer = caller.peer
        return {
            "uid": peer.uid,
            "gid": peer.gid,
            "pid": peer.pid,
            "groups": sorted(peer.groups),
            "operator": caller.is_operator,
        }

    async def wait(self, caller: Caller, *, wait_ms: int = 0) -> str:
        """Wait for the gate, however long."""
        self.waiting += 1
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        return "open"

    async def wait_later(self, caller: Caller) -> Later:
        """Wait for the gate once everything else is done."""
        await trio.lowlevel.checkpoint()
        return Later(partial(self.wait, caller))

    async def open_gate(self, caller: Caller) -> str:
        """Let all go on that wait."""
        self.gate.set()
        return "opened"

    async def turn(self, caller: Caller, value: int) -> int:
        """Give way to everybody else once."""
        await trio.lowlevel.checkpoint()
        return value

    async def look(self, caller: Caller) -> int:
        """Look at many records, in slices; how many did so at the same time."""
        self.looking += 1
        try:
            most = self.looking
            for _ in range(50):
                await trio.lowlevel.checkpoint()
                most = max(most, self.looking)
        finally:
            self.looking -= 1
            self.looked += 1
        return most

    async def refuse(self, caller: Caller) -> None:
        """Say no, with figures."""
        raise AlreadyClaimed("cannot claim T-1: docs holds it", data={"owner": "docs", "token": 41})

    async def fail(self, caller: Caller) -> None:
        """Have a bug."""
        raise KeyError("a secret")

    async def unpackable(self, caller: Caller) -> Any:
        """Have another bug."""
        return object()

    async def big(self, caller: Caller, size: int) -> bytes:
        """An answer of this size."""
        return bytes(size)

    async def push(self, caller: Caller, count: int, size: int = 0) -> int:
        """Send so many notifications before the answer."""
        assert caller.session is not None
        for number in range(count):
            caller.session.notify("pushed", [number, bytes(size)])
        return count

    async def watch_close(self, caller: Caller) -> str:
        """Remember when this connection ends."""
        assert caller.session is not None
        caller.session.on_close(lambda: self.closed.append(caller.peer.connection_id))
        return "watching"

    async def stop(self, caller: Caller, swarm_id: str) -> str:
        """For operators."""
        return f"stopped {swarm_id}"

    async def register(self, caller: Caller, swarm_id: str, *, fails: bool = False) -> str:
        """Register a swarm, or refuse to."""
        if fails:
            raise NotFound("cannot register: so it was asked for")
        self.registered.append(swarm_id)
        return "registered"


def _row(
    name: str,
    does: Any,
    *,
    role: Role = Role.ANY,
    quota: Quota = Quota.READ,
    waits: Waits = Waits.NEVER,
    changes: bool = False,
) -> Row:
    return Row(f"probe.{name}", does, role, quota, waits, changes)


PROBE_ROWS = (
    _row("echo", Probe.echo),
    _row("note", Probe.note),
    _row("whoami", Probe.whoami),
    _row("wait", Probe.wait, waits=Waits.ALWAYS),
    _row("wait_asked", Probe.wait, waits=Waits.ASKED),
    _row("wait_inline", Probe.wait),
    _row("wait_later", Probe.wait_later, waits=Waits.LATER),
    _row("open_gate", Probe.open_gate),
    _row("turn", Probe.turn),
    _row("look", Probe.look, quota=Quota.LIST),
    _row("refuse", Probe.refuse),
    _row("fail", Probe.fail),
    _row("unpackable", Probe.unpackable),
    _row("big", Probe.big),
    _row("push", Probe.push),
    _row("watch_close", Probe.watch_close),
    _row("stop", Probe.stop, role=Role.OPERATOR, changes=True),
    _row("register", Probe.register),
)


@attrs.define(kw_only=True)
class Serving:
    """A running server and what it is made of."""

    path: Path
    server: Server
    probe: Probe
    bus: LocalBus
    attention: Attention
    items: list[dict[str, Any]]
    witnessed: list[tuple[str, str, str]]
    reading: Callable[[], object] | None = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connected client."""
        async with connected(self.path) as client:
            yield client


def make(path: Path, *, limits: RpcLimits, operator_uids: frozenset[int], operator_gids: frozenset[int]) -> Serving:
    """The server and its parts, not running yet."""
    probe, bus, items = Probe(), LocalBus(), list[dict[str, Any]]()
    witnessed: list[tuple[str, str, str]] = []

    async def items_of(caller: Caller, swarm_id: str) -> list[dict[str, Any]]:
        if swarm_id == FOREIGN_SWARM:
            raise PermissionDenied(f"cannot speak for {swarm_id}: it is another user's")
        if made.reading is not None:
            made.reading()
        return list(items)

    async def witness(caller: Caller, op: str, target: str, refusal: IfbusError) -> None:
        witnessed.append((op, target, refusal.code))

    async def status() -> dict[str, Any]:
        return {"tasks": {}}

    attention = Attention(bus, items_of, swarms_per_connection=limits.swarms_per_connection)
    daemon = DaemonMethods(
        build="1.2.3",
        pid=os.getpid(),
        limits=limits,
        attention=attention,
        now_ms=_now_ms,
        status=status,
        describe=describe,
    )
    rows = [*PROBE_ROWS, *(row for row in ROWS if row.name.startswith("daemon."))]
    methods = bind_rows(rows, {"probe": probe, "daemon": daemon})
    register = methods["probe.register"]
    methods[register.name] = attrs.evolve(register, handler=attention.binding(register.handler))
    server = Server(
        methods,
        witness_refusal=witness,
        now_ms=_now_ms,
        limits=limits,
        operator_uids=operator_uids,
        operator_gids=operator_gids,
    )
    made = Serving(
        path=path, server=server, probe=probe, bus=bus, attention=attention, items=items, witnessed=witnessed
    )
    return made


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    limits: RpcLimits = RpcLimits(),  # noqa: B008 - frozen, so one default serves all
    operator_uids: frozenset[int] = frozenset(),
    operator_gids: frozenset[int] = frozenset(),
    mode: int = 0o660,
) -> AsyncIterator[Serving]:
    """A server in this process, stopped at the end."""
    made = make(directory / "s", limits=limits, operator_uids=operator_uids, operator_gids=operator_gids)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.server.run, open_listener(made.path, mode=mode))
            try:
                yield made
            finally:
                made.server.stop(grace_ms=0)


class Client:
    """A client in trio, just enough to see the wire: every event in the order in which it came."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.protocol = Connection()
        self.notifications: list[Notification] = []
        self.responses: list[Response] = []
        self.has_ended = False

    async def send(self, data: bytes) -> None:
        """Write all of it."""
        while data:
            data = data[await self.sock.send(data) :]

    def request(
        self, method: str, *params: Any, meta: dict[str, Any] | None = None, **keywords: Any
    ) -> tuple[int, bytes]:
        """A request's id and bytes."""
        return self.protocol.request(method, [keywords] if keywords else list(params), meta)

    async def start(self, method: str, *params: Any, meta: dict[str, Any] | None = None, **keywords: Any) -> int:
        """Send a request; its id."""
        msgid, data = self.request(method, *params, meta=meta, **keywords)
        await self.send(data)
        return msgid

    async def call(self, method: str, *params: Any, meta: dict[str, Any] | None = None, **keywords: Any) -> Any:
        """Send a request and give its answer, or raise its error."""
        return await self.answer(await self.start(method, *params, meta=meta, **keywords))

    async def answer(self, msgid: int) -> Any:
        """Read until request `msgid` is answered; raises its error, ConnectionLost at the end."""
        while True:
            for response in self.responses:
                if response.msgid == msgid:
                    self.responses.remove(response)
                    if response.error is not None:
                        raise from_wire(response.error)
                    return response.result
            if not await self.read():
                raise ConnectionLost("the server closed the connection")

    async def read(self) -> bool:
        """Take in what comes next; False at the end of the stream."""
        while True:
            event = self.protocol.next_event()
            if event is NEED_DATA:
                try:
                    self.protocol.receive_data(await self.sock.recv(65536))
                except OSError:
                    self.has_ended = True
                    return False
                continue
            if event is END_OF_STREAM:
                self.has_ended = True
                return False
            if isinstance(event, Response):
                self.responses.append(event)
            elif isinstance(event, Notification):
                self.notifications.append(event)
            return True

    async def read_to_end(self) -> None:
        """Take in everything until the server closes."""
        while await self.read():
            pass


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    """A client connected to the socket at `path`."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        await sock.connect(os.fspath(path))
        yield Client(sock)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _serve_for_ever(path: Path, patience_ms: int) -> None:
    limits = RpcLimits(unfinished_ms=patience_ms, write_ms=patience_ms)
    made = make(path, limits=limits, operator_uids=frozenset(), operator_gids=frozenset())
    async with trio.open_nursery() as nursery:
        await nursery.start(made.server.run, open_listener(path))
        print("ready", flush=True)


if __name__ == "__main__":
    trio.run(_serve_for_ever, Path(sys.argv[1]), int(sys.argv[2]))

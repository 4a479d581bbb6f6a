"""A TCP proxy that a test can cut: what runs through it is lost, held back or refused, as by a broken network.

All proxies of a `network` share one thread. A proxy that is cut keeps its connections and forwards nothing, as a partition does:
neither side hears that the other is gone. One that refuses closes them and takes no new ones.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

HOST: Final = "127.0.0.1"
_PIECE: Final = 64 << 10
# Held back for a side that does not read; then the other side is not read either.
_MOST_HELD: Final = 1 << 20


class Proxy:
    """Listens on a port of its own for one target. Its state is the two switches and the connections; the network's thread has the latter."""

    def __init__(self, network: Network, target_port: int) -> None:
        self._network = network
        self.target_port = target_port
        self.is_cut = False
        self.refuses = False
        self.listener = socket.create_server((HOST, 0))
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.pairs: set[_Pair] = set()

    @property
    def address(self) -> str:
        """`host:port` to connect to."""
        return f"{HOST}:{self.port}"

    def cut(self) -> None:
        """Forward nothing from now on, and tell nobody."""
        self.is_cut = True

    def refuse(self) -> None:
        """Close all connections, and each new one at once."""
        self.refuses = True
        self._network.wake()

    def heal(self) -> None:
        """Work again; what a cut held back comes late, as retransmitted packets do."""
        self.is_cut = self.refuses = False
        self._network.wake()


class _Pair:
    """A connection through a proxy: both sockets, and what is on its way to each."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self.proxy = proxy
        self.to: dict[socket.socket, bytearray] = {near: bytearray(), far: bytearray()}
        self.other = {near: far, far: near}


class Network:
    """The thread that forwards, and the proxies that it forwards for."""

    def __init__(self) -> None:
        self._proxies: list[Proxy] = []
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="proxies", daemon=True)
        self._thread.start()

    def proxy(self, target_port: int) -> Proxy:
        """A new proxy for a port of this host."""
        made = Proxy(self, target_port)
        self._proxies.append(made)
        self.wake()
        return made

    def wake(self) -> None:
        """Have the thread look at the switches."""
        self._bell.send(b".")

    def close(self) -> None:
        """End the thread and all connections."""
        self._is_over = True
        self.wake()
        self._thread.join()
        self._bell.close()
        self._ear.close()

    # --- in the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        self._selector.register(self._ear, selectors.EVENT_READ)
        while not self._is_over:
            # Connections of a cut proxy are not looked at: what they send stays in the kernel, as on a dead wire.
            for key, events in self._selector.select():
                if key.fileobj is self._ear:
                    with suppress(BlockingIOError):
                        self._ear.recv(_PIECE)
                elif isinstance(key.data, Proxy):
                    self._accept(key.data)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._forward(key.data, key.fileobj, events)
            self._look_at_switches()
        for proxy in self._proxies:
            proxy.listener.close()
            for pair in tuple(proxy.pairs):
                self._end(pair)
        self._selector.close()

    def _look_at_switches(self) -> None:
        for proxy in self._proxies:
            if proxy.listener not in self._selector.get_map():
                self._selector.register(proxy.listener, selectors.EVENT_READ, proxy)
            for pair in tuple(proxy.pairs):
                if proxy.refuses:
                    self._end(pair)
                else:
                    self._watch(pair)

    def _accept(self, proxy: Proxy) -> None:
        with suppress(OSError):
            near, _ = proxy.listener.accept()
            if proxy.refuses:
                near.close()
                return
            try:
                far = socket.create_connection((HOST, proxy.target_port), timeout=1)
            except OSError:
                near.close()
                return
            for side in (near, far):
                side.setblocking(False)
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(proxy, near, far)
            proxy.pairs.add(pair)
            self._watch(pair)

    def _watch(self, pair: _Pair) -> None:
        for side, waiting in pair.to.items():
            events = 0
            if not pair.proxy.is_cut:
                if len(pair.to[pair.other[side]]) < _MOST_HELD:
                    events |= selectors.EVENT_READ
                if waiting:
                    events |= selectors.EVENT_WRITE
            known = self._selector.get_map().get(side)
            if known is None:
                if events:
                    self._selector.register(side, events, pair)
            elif not events:
                self._selector.unregister(side)
            elif known.events != events:
                self._selector.modify(side, events, pair)

    def _forward(self, pair: _Pair, side: socket.socket, events: int) -> None:
        if pair not in pair.proxy.pairs:
            return  # its other side has ended it just now
        try:
            if events & selectors.EVENT_READ:
                data = side.recv(_PIECE)
                if not data:
                    self._end(pair)
                    return
                pair.to[pair.other[side]] += data
            for to, waiting in pair.to.items():
                if waiting:
                    with suppress(BlockingIOError):
                        del waiting[: to.send(waiting)]
        except OSError:
            self._end(pair)
        else:
            self._watch(pair)

    def _end(self, pair: _Pair) -> None:
        pair.proxy.pairs.discard(pair)
        for side in pair.to:
            if side in self._selector.get_map():
                self._selector.unregister(side)
            side.close()


@contextmanager
def network() -> Iterator[Network]:
    """A network of one's own; its proxies and their connections end with it."""
    made = Network()
    try:
        yield made
    finally:
        made.close()

"""One connection for one command: blocking, no thread, no attrs (UX 2: a one-shot command takes at most 60 ms).

The long-lived clients are `ifbus.Client` and `ifbus.AsyncClient`; this is the same wire with less on the import path.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

from ifbus.backoff import next_try
from ifbus.connect import candidates, connect, inherited
from ifbus.errors import (
    ConnectionLost,
    DeadlineExceeded,
    IfbusError,
    Momentary,
    NotFound,
    Overloaded,
    PermissionDenied,
    ProtocolError,
    from_wire,
)
from ifbus.protocol import END_OF_STREAM, NEED_DATA, PROTOCOL_VERSIONS, Connection, Event, Notification, Response
from ifbus.stream import InheritedStream, SocketStream, Stream

# A healthy daemon answers in under a millisecond; past this, "no answer" is the more useful answer.
TIMEOUT_MS: Final = 5_000
# The longest that a daemon takes. A wait beyond it is refused by its own name, with what is allowed.
_MAX_TIMEOUT_MS: Final = 86_400_000
# The daemon's own deadline comes first, so that its error, which knows more, arrives before ours.
_GRACE_MS: Final = 500
# How long to wait for what a daemon said that has closed the connection already.
_LAST_WORDS_S: Final = 0.1
_HELLO: Final = "daemon.hello"


class Link:
    """A connection to the daemon. The mutable state is the stream's and `attention`."""

    def __init__(self, stream: Stream) -> None:
        self.attention: list[dict[str, Any]] = []
        self.daemon: dict[str, Any] = {}
        self._stream = stream
        self._wire = Connection()
        self._is_closed = False  # by the daemon

    @classmethod
    def open(cls, socket_path: str | None, *, swarm: str | None = None) -> Link:
        """Connect and say hello; the answer is `daemon`.

        Raises:
            NoDaemon: There is none; the class says which of the four causes it is.
            VersionMismatch: The daemon speaks other protocols than we do.
        """
        parts = None if socket_path else inherited(os.environ)
        stream: Stream
        if parts is not None:
            stream = InheritedStream(parts, turn_timeout_s=TIMEOUT_MS / 1000)
        else:
            stream = SocketStream(connect(candidates(socket_path, os.environ)))
        link = cls(stream)
        link._say_hello(swarm)
        return link

    def _say_hello(self, swarm: str | None) -> None:
        hello: dict[str, Any] = {"protocol": list(PROTOCOL_VERSIONS), "client": "ifbus-cli"}
        if swarm is not None:
            try:
                self.daemon = self.call(_HELLO, {**hello, "swarm": swarm})
            except (NotFound, PermissionDenied):
                # Without this swarm there is nothing to be attentive to; the command itself will say what is wrong, or
                # mend it by registering.
                pass
            else:
                return
        self.daemon = self.call(_HELLO, hello)

    def call(self, method: str, params: dict[str, Any], *, wait_ms: int = 0, key: str | None = None) -> Any:
        """The result of one request; what the moment refuses is tried again while the time lasts.

        Args:
            wait_ms: How long the request may wait inside the daemon, on top of the ordinary time for an answer.
            key: Idempotency key. Without one an uncertain request is not repeated.

        Raises:
            IfbusError: The daemon's error. One whose outcome is unknown has the key in ``data["key"]``.
        """
        timeout_ms = min(TIMEOUT_MS + wait_ms, _MAX_TIMEOUT_MS)
        deadline = time.monotonic() + timeout_ms / 1000
        attempt = 0
        while True:
            left_ms = max(1, int((deadline - time.monotonic()) * 1000))
            meta: dict[str, Any] = {"timeout_ms": left_ms}
            if key is not None:
                meta["idempotency_key"] = key
            try:
                return self._exchange(method, params, meta, left_ms + _GRACE_MS)
            except (Momentary, ConnectionLost) as error:
                wait_s = None
                if isinstance(error, Momentary) and not self._is_closed:
                    wait_s = next_try(error, attempt, _chance(), left_s=left_ms / 1000, was_connected=True)
                if wait_s is None:
                    if key is not None:
                        error.data.setdefault("key", key)
                    raise
            time.sleep(wait_s)
            attempt += 1

    def _exchange(self, method: str, params: dict[str, Any], meta: dict[str, Any], patience_ms: int) -> Any:
        msgid, data = self._wire.request(method, [params] if params else [], meta)
        self._send(data)
        deadline = time.monotonic() + patience_ms / 1000
        while True:
            event = self._wire.next_event()
            if type(event) is Response:
                if event.msgid != msgid:
                    continue  # the answer to an earlier try, which came too late
                if event.error is not None:
                    raise from_wire(event.error)
                return event.result
            if type(event) is Notification and event.method == "attention":
                for items in event.params:
                    self.attention += items if isinstance(items, list) else [items]
            elif event is NEED_DATA:
                self._wire.receive_data(self._read(method, deadline))
            elif event is END_OF_STREAM:
                raise ConnectionLost(f"the daemon closed the connection before it answered {method}")
            else:
                self._heed(event)

    def _send(self, data: bytes) -> None:
        try:
            self._stream.send(data)
        except ConnectionLost as lost:
            # A daemon that turns us away says why before it closes: what it said has arrived.
            try:
                self._wire.receive_data(self._stream.receive(_LAST_WORDS_S))
            except (TimeoutError, ConnectionLost):
                raise lost from None
            self._heed(self._wire.next_event())
            raise

    def _heed(self, event: Event) -> None:
        """Raise what the daemon says as it ends the connection, if this is that."""
        if type(event) is Notification and event.method == "closing":
            self._is_closed = True
            raise _farewell(from_wire(event.params[0] if event.params else None))

    def _read(self, method: str, deadline: float) -> bytes:
        left_s = deadline - time.monotonic()
        try:
            if left_s > 0:
                return self._stream.receive(left_s)
        except TimeoutError:
            pass
        if method == _HELLO:
            raise DeadlineExceeded("the daemon is there but does not answer; nothing was asked of it yet")
        raise DeadlineExceeded(f"no answer to {method} in time; it may have been done")

    def close(self) -> None:
        """End the connection."""
        self._stream.close()


def _farewell(reason: IfbusError) -> IfbusError:
    """Why the daemon ends this connection: a quota is for the caller to know, anything else leaves the outcome open."""
    if isinstance(reason, Overloaded | ProtocolError):
        return reason
    return ConnectionLost(f"the daemon ended the connection: {reason.message}", data=reason.data)


def _chance() -> float:
    return int.from_bytes(os.urandom(4)) / 2**32

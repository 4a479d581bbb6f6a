"""Who is calling: what the kernel says about the process at the other end of a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import attrs


class Session(Protocol):
    """The daemon's end of one connection, as components see it."""

    def notify(self, method: str, params: list[Any]) -> None:
        """Send a notification; never blocks. A peer that does not read loses the connection, its durable inbox keeps the rest."""
        ...

    async def drained(self) -> None:
        """Return once the peer has taken what was sent before; not at all if it takes too long: then the connection ends."""
        ...

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the connection ends, in the loop's thread; at once if it has ended."""
        ...

    def open_peer_process(self) -> int:
        """A descriptor of the process that opened the connection, which may have ended; the caller's to close.

        Raises:
            IfbusError: The process cannot be held.
        """
        ...

    def expect_process(self) -> None:
        """Take a process descriptor that is sent with one of the next messages; otherwise the kernel drops it."""
        ...

    def take_process(self) -> int | None:
        """The process descriptor that was handed over, once; the caller's to close."""
        ...


@attrs.frozen(kw_only=True)
class Peer:
    """The process that opened a connection, as the kernel had it at `connect` (SO_PEERCRED, SO_PEERGROUPS; FACTS 8).

    Attributes:
        uid, gid, groups: Of the connecting process, in the daemon's user namespace.
        pid: Of the connecting process; it may have ended since, so it names and never proves.
        is_operator: Its uid or one of its groups has the operator role by the daemon's configuration. False for a request on
            an operator's connection that somebody sent who has not got the role (`role_lost_to`).
        connection_id: Number of the connection since the daemon started.
        role_lost_to: The uid that sent the request over an operator's connection, inherited or passed on, without the role.
    """

    uid: int
    gid: int
    pid: int
    groups: frozenset[int] = frozenset()
    is_operator: bool = False
    connection_id: int = 0
    role_lost_to: int | None = None


@attrs.define(kw_only=True, eq=False)
class Caller:
    """One request's author: the peer, and what this request says about itself. Never holds a claim that only a message made.

    Attributes:
        peer: The kernel's word.
        session: The connection, for subscriptions; None for what the daemon does by itself.
        idempotency_key: Same key and same body give the first answer again; None: the request is not remembered.
        body_hash: SHA-256 of method and parameters where there is an idempotency key, else ``b""``.
        traceparent: W3C trace context to log and witness, or None.
    """

    peer: Peer
    session: Session | None = None
    idempotency_key: str | None = None
    body_hash: bytes = b""
    traceparent: str | None = None

    @property
    def uid(self) -> int:
        """The kernel's user id of the caller."""
        return self.peer.uid

    @property
    def is_operator(self) -> bool:
        """Whether the caller may make decisions that only a person makes."""
        return self.peer.is_operator


# The author of what the daemon does by itself, such as recording an expired claim; no connection has this uid.
ITSELF: Final = Caller(peer=Peer(uid=-1, gid=-1, pid=0))

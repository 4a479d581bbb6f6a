"""`attention`: what a swarm must hear before it goes on, on whatever connection it speaks (DESIGN 2: control rides on every exchange).

A connection is bound to a swarm by `daemon.hello(swarm=...)` or by registering. From then on the bus subject
``attention.<swarm>`` is passed on to it as a notification ``attention [[item, ...]]``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ifbus.errors import Overloaded
from ifbusd.bus.base import Bus, Message, Subscription
from ifbusd.identity import Caller, Session

NOTIFICATION: Final = "attention"
_MEANWHILE: Final = 64

# The items that a swarm must hear now, most urgent first; raises permission_denied or not_found if it is not the caller's.
Items = Callable[[Caller, str], Awaitable[list[dict[str, Any]]]]


def subject_of(swarm_id: str) -> str:
    """Where to publish an item, a map, for all connections of a swarm."""
    return f"attention.{swarm_id}"


class Attention:
    """Which connection speaks for which swarms. The mutable state is the table below, nothing else."""

    def __init__(self, bus: Bus, items: Items, *, swarms_per_connection: int = 64) -> None:
        self._bus = bus
        self._items = items
        self._limit = swarms_per_connection
        self._bound: dict[int, dict[str, Subscription]] = {}

    async def bind(self, caller: Caller, swarm_id: str) -> None:
        """Let the caller's connection hear `swarm_id`'s attention from now on; what is open already is sent before the answer.

        Raises:
            permission_denied, not_found: The swarm is not the caller's; the connection stays unbound.
            Overloaded: The connection is bound to too many swarms.
        """
        self._check_room(caller, swarm_id)
        # What happens while the items are read may be too late for them, and too early for the subscription.
        meanwhile: deque[Message] = deque(maxlen=_MEANWHILE)
        listening = self._bus.subscribe(subject_of(swarm_id), lambda _, item: meanwhile.append(item))
        try:
            items = await self._items(caller, swarm_id)
        finally:
            listening.close()
        session = caller.session
        if session is None:
            return
        connection_id = caller.peer.connection_id
        bound = self._bound.get(connection_id)
        if bound is None:
            bound = self._bound[connection_id] = {}
            session.on_close(lambda: self._unbind(connection_id))
        if swarm_id not in bound:
            bound[swarm_id] = self._bus.subscribe(subject_of(swarm_id), _passing_on(session))
            items = [*items, *meanwhile]
        if items:
            session.notify(NOTIFICATION, [items])

    def binding(self, register: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """`register`, which takes a caller and a swarm id, binding the connection once it has succeeded."""

        async def register_and_bind(caller: Caller, swarm_id: str, **profile: Any) -> Any:
            self._check_room(caller, swarm_id)  # before the change, which could not be taken back
            answer = await register(caller, swarm_id, **profile)
            await self.bind(caller, swarm_id)
            return answer

        return register_and_bind

    def swarms_of(self, connection_id: int) -> list[str]:
        """The swarms that a connection is bound to."""
        return list(self._bound.get(connection_id, ()))

    def _check_room(self, caller: Caller, swarm_id: str) -> None:
        bound = self._bound.get(caller.peer.connection_id, {})
        if len(bound) >= self._limit and swarm_id not in bound:
            raise Overloaded(
                f"cannot bind to swarm {swarm_id!r:.80}: this connection is bound to {len(bound)}, at most {self._limit}",
                data={"used": len(bound), "allowed": self._limit},
                would_change=[{"by": "self", "what": "another connection for this swarm"}],
            )

    def _unbind(self, connection_id: int) -> None:
        for subscription in self._bound.pop(connection_id, {}).values():
            subscription.close()


def _passing_on(session: Session) -> Callable[[str, Message], None]:
    def pass_on(_subject: str, item: Message) -> None:
        session.notify(NOTIFICATION, [[item]])

    return pass_on

"""The bus: tells those who wait that something happened. It may lose and repeat; the store holds what must not be lost.

On one host it is a function call. Nothing acts on a message alone: what matters is read from the store, so a
forged or lost message costs at most a look or a delay (DESIGN 4, THREATS T7). Between hosts go only hints that the store has
moved on (`Hints`); what a message says reaches other hosts through the store itself (`ifbusd.news`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Message = dict[str, Any]
# Called in the loop's thread; must not block and must not raise. Whoever needs to wait puts the message into a bounded queue.
Sink = Callable[[str, Message], None]


class Subscription(Protocol):
    """A running subscription."""

    def close(self) -> None:
        """End it: the sink is not called again. Twice is fine."""
        ...


class Bus(Protocol):
    """Publish and subscribe by exact subject, such as ``inbox.docs-2`` or ``escalations``."""

    def publish(self, subject: str, message: Message) -> int:
        """Tell all subscribers of `subject`; how many on this host heard it. Never blocks."""
        ...

    def subscribe(self, subject: str, sink: Sink) -> Subscription:
        """Call `sink` for each message on `subject` from now on."""
        ...


class Hints(Protocol):
    """Tells other hosts that the store has moved on, and hears it from them. May lose, repeat and lie: whoever hears a hint
    looks at the store.
    """

    def tell(self, revision: int) -> None:
        """The store has come to this revision by our doing. Never blocks, never raises."""
        ...

"""What happened to tasks, in order of the commits, as far back as is kept: each listener hears each of it once.

It comes with the store's feed, not over the bus: in the order of the commits, also where whoever did it was cancelled meanwhile. A
message's number follows from the commit's revision, so it is the same at every daemon and after a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attrs

from ifbus.errors import NotKept
from ifbusd.bus.base import Message

# Messages of one commit are numbered within it; the last one of a commit that is known to be whole has the largest number.
_BITS: Final = 12
_WHOLE: Final = (1 << _BITS) - 1


@attrs.define(kw_only=True, eq=False)
class Listener:
    """Somebody who hears of each message above `seen`. `tell` must not block or raise."""

    tell: Callable[[Message], None]
    seen: int


class History:
    """The mutable state is the newest messages, the number up to which nothing is kept, and the listeners.

    Args:
        most: So many messages are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: deque[Message] = deque()
        self._floor = 0
        self._newest = 0
        self._listeners: dict[Listener, None] = {}

    def begin(self, revision: int) -> None:
        """What happened up to this revision is known only by its outcome; whoever listens is told so."""
        self._kept.clear()
        has_missed = self._newest >> _BITS < revision
        self._floor = max(self._floor, revision << _BITS | _WHOLE)
        self._newest = max(self._newest, self._floor)
        for listener in tuple(self._listeners):
            if has_missed:
                listener.tell({"event": "missed", "seq": self._floor, "revision": revision})
            listener.seen = max(listener.seen, self._floor)

    def add(self, revision: int, told: Sequence[tuple[str, Message]], *, is_whole: bool) -> None:
        """Take over what an operation told everybody.

        Args:
            is_whole: There are no more of this revision.
        """
        messages = [message for subject, message in told if subject == "board"]
        for number, message in enumerate(messages, start=1):
            seq = max(revision << _BITS, self._newest + 1)
            if is_whole and number == len(messages):
                seq = revision << _BITS | _WHOLE
            if seq <= self._newest or seq >> _BITS != revision:
                continue  # read with its outcome already
            self._newest = seq
            self._kept.append({**message, "revision": revision, "seq": seq})
            if len(self._kept) > self._most:
                self._floor = self._kept.popleft()["seq"]
            for listener in tuple(self._listeners):
                self._tell(listener)

    @property
    def newest(self) -> int:
        """The newest message's number."""
        return self._newest

    def after(self, seq: int) -> Iterator[Message]:
        """The messages above a number, in order.

        Raises:
            NotKept: Some of them are no longer kept, or the number is of another store.
        """
        if not self._floor <= seq <= self._newest:
            raise NotKept(
                f"cannot go on after {seq}: only what came after {self._floor} is kept",
                data={"after_seq": seq, "oldest_seq": self._floor, "newest_seq": self._newest},
                would_change=[
                    {"by": "self", "what": "subscribe from now on, then list the tasks", "call": "ifbus task ls"}
                ],
            )
        kept = self._kept
        # From the end, because whoever comes back has mostly seen nearly all.
        at = len(kept)
        while at and kept[at - 1]["seq"] > seq:
            at -= 1
        return iter([kept[index] for index in range(at, len(kept))])

    def listen(self, listener: Listener) -> None:
        """Tell a listener what came after `seen`, now, and then what comes. Raises NotKept."""
        for message in self.after(listener.seen):
            listener.seen = message["seq"]
            listener.tell(message)
        self._listeners[listener] = None

    def stop_listening(self, listener: Listener) -> None:
        """End it; twice is fine."""
        self._listeners.pop(listener, None)

    def _tell(self, listener: Listener) -> None:
        message: dict[str, Any] = self._kept[-1]
        if message["seq"] > listener.seen:
            listener.seen = message["seq"]
            listener.tell(message)

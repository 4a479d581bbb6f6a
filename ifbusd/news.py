"""What operations tell the bus, on its way to the other hosts: in the same commit, through the store's own feed (ADR 0019).

An operation's messages (`Tx.publish`) stand in one key beside its changes, ``news/<daemon>/<slot>``: a ring of each daemon's own, on a
lease that outlives nobody for long. Every daemon watches them and tells its own bus those of the others. So a message
arrives if and only if its operation was committed, with the operation's revision, those of the others in the order of their commits,
and nobody can forge one who cannot write to the store.

Hints of the bus between hosts (`Hints`) only say that there is more to see: who is behind what a hint says looks at the
store, and does nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import attrs
import trio

from ifbus.errors import Unavailable
from ifbusd.bus.base import Bus, Hints, Message
from ifbusd.codec import unpack
from ifbusd.store.base import Compacted, Store, WatchEvent

_log = logging.getLogger(__name__)

NEWS: Final = "news/"
# More than can be in one group of commits: no group may write a key twice. What is overwritten has long been told.
SLOTS: Final = 512
# Whom a message may be for; there is nothing else that a peer may have told here.
_SUBJECTS: Final = ("board", "escalations")
_ATTENTION: Final = "attention."
# A watch is behind its commit by a millisecond or two; one that is so much behind a hint may have stalled.
_GRACE_S: Final = 0.1
# A hint that nobody can confirm costs one look in this time.
_LOOK_EVERY_S: Final = 1.0
# A watch that broke is opened again after this.
_RETRY_S: Final = 0.5


@attrs.frozen(kw_only=True)
class NewsStatistics:
    """Figures: messages of other hosts that were told here, records that could not be read, hints that came in time, hints that
    were ahead of the watch for longer than it may take, and how often changes were missed because the watch was too slow."""

    told: int
    ignored: int
    hints_in_time: int
    hints_ahead: int
    gaps: int


class News:
    """One daemon's side. The mutable state is the next slot, the newest revision that a hint claims, and the figures.

    Args:
        bus: This daemon's, where the others' messages are told.
        daemon_id: No other daemon has it, nor an earlier run of this one.
    """

    def __init__(self, store: Store, bus: Bus, *, daemon_id: str) -> None:
        self._store = store
        self._bus = bus
        self._own = f"{NEWS}{daemon_id}/"
        self._slot = 0
        self._hints: Hints | None = None
        self._expected = 0
        self._hinted = trio.Event()
        self._told = self._ignored = self._in_time = self._ahead = self._gaps = 0

    def use(self, hints: Hints) -> None:
        """Tell the other hosts by these hints, too."""
        self._hints = hints

    def next_key(self) -> str:
        """Where one operation's messages stand."""
        self._slot = (self._slot + 1) % SLOTS
        return f"{self._own}{self._slot:03x}"

    def committed(self, revision: int) -> None:
        """An operation of this daemon was committed. Never blocks."""
        if self._hints is not None:
            self._hints.tell(revision)

    def statistics(self) -> NewsStatistics:
        """Figures since the start."""
        return NewsStatistics(
            told=self._told,
            ignored=self._ignored,
            hints_in_time=self._in_time,
            hints_ahead=self._ahead,
            gaps=self._gaps,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell this daemon's bus what the others publish, until cancelled; ready once nothing is missed any more."""
        while True:
            try:
                async with self._store.watch(NEWS) as watch:
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await watch.feed(self._tell_all)
            except Compacted:
                self._gaps += 1
                _log.warning("messages of other hosts were missed: the watch was too slow", extra={"gaps": self._gaps})
            except Unavailable:
                if task_status is not trio.TASK_STATUS_IGNORED:
                    raise
                await trio.sleep(_RETRY_S)

    def _tell_all(self, batch: list[WatchEvent]) -> None:
        for event in batch:
            self._tell(event)

    def _tell(self, event: WatchEvent) -> None:
        if event.value is None or event.key.startswith(self._own):
            return
        try:
            messages = read(event.value.value)
        except (TypeError, ValueError) as error:
            # Another host may write what we cannot read (THREATS T6): that is left out, the rest goes on.
            self._ignored += 1
            if self._ignored == 1:
                _log.warning("a message of another host cannot be read", extra={"key": event.key, "error": repr(error)})
            return
        for subject, message in messages:
            self._bus.publish(subject, {**message, "revision": event.revision})
            self._told += 1

    # --- hints ---------------------------------------------------------------------------------------

    def hear(self, revision: int) -> None:
        """Somebody says that the store has come to this revision, and may be lying. Never blocks."""
        if revision <= self._store.told_revision:
            self._in_time += 1
        elif revision > self._expected:
            self._expected = revision
            self._hinted.set()

    async def follow_hints(self, look: Callable[[int], Awaitable[None]]) -> None:
        """Look at the store when a hint is ahead of the watch for too long, until cancelled.

        Args:
            look: Asks the store whether it has come to this revision, and sees to it that the watch gets there.
        """
        while True:
            await self._hinted.wait()
            await trio.sleep(_GRACE_S)
            expected, self._expected, self._hinted = self._expected, 0, trio.Event()
            if self._store.told_revision >= expected:
                self._in_time += 1
                continue
            self._ahead += 1
            try:
                await look(expected)
            except Unavailable as error:
                _log.warning("cannot look after a hint", extra={"reason": error.message})
            await trio.sleep(_LOOK_EVERY_S)


def to_stored(messages: list[tuple[str, Message]]) -> list[Any]:
    """An operation's messages as a plain value."""
    return [[subject, message] for subject, message in messages]


def read(data: bytes) -> list[tuple[str, Message]]:
    """The messages of stored bytes.

    Raises:
        TypeError, ValueError: This is no list of messages, or one is for nobody that there is.
    """
    found = []
    for subject, message in unpack(data):
        if not (subject in _SUBJECTS or str(subject).startswith(_ATTENTION)) or not isinstance(message, dict):
            raise ValueError(f"no message: {subject!r:.40}")
        found.append((str(subject), message))
    return found

"""Who holds which resource and who waits for one, in memory: a view like the board, which feeds it. The store decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ifbusd.coordinator.locks.rules import Lock
from ifbusd.coordinator.model import HeldRecord

_NOTHING: frozenset[str] = frozenset()


class Locks:
    """The mutable state is the locks by name, how many are whose, which open tasks name them, who waits for one to be freed, and holds for no claim.

    Attributes:
        standalone: Those by their ids.
        ended: Those whose lock is gone, which is not on record yet.
    """

    def __init__(self) -> None:
        self.held: dict[str, Lock] = {}
        self.standalone: dict[str, HeldRecord] = {}
        self.ended: dict[str, None] = {}
        self._count_of: dict[int, int] = {}
        self._wanted_by: dict[str, set[str]] = {}
        self._waiting: dict[str, dict[Callable[[], None], None]] = {}

    def clear(self) -> None:
        """Forget what is held and wanted; whoever waits goes on waiting."""
        self.held.clear()
        self.standalone.clear()
        self.ended.clear()
        self._count_of.clear()
        self._wanted_by.clear()

    def put(self, name: str, lock: Lock) -> None:
        """Somebody holds it."""
        self._forget(name)
        self.held[name] = lock
        self._count(lock.record.uid, 1)

    def drop(self, name: str) -> None:
        """Nobody holds it any more: wake who waits for it."""
        self._forget(name)
        self._wake(name)

    def _forget(self, name: str) -> None:
        former = self.held.pop(name, None)
        if former is not None:
            self._count(former.record.uid, -1)
            if former.record.held_id in self.standalone:
                self.ended[former.record.held_id] = None

    def put_held(self, held_id: str, record: HeldRecord) -> None:
        """A resource is held for no claim."""
        self.standalone[held_id] = record

    def drop_held(self, held_id: str) -> None:
        """It was released, or its end is on record."""
        self.standalone.pop(held_id, None)
        self.ended.pop(held_id, None)

    def note_ended(self) -> None:
        """Everything was read anew, so an end may have gone unseen."""
        for held_id, record in self.standalone.items():
            lock = self.held.get(record.resource)
            if lock is None or lock.record.held_id != held_id:
                self.ended[held_id] = None

    def _count(self, uid: int, more: int) -> None:
        self._count_of[uid] = self._count_of.get(uid, 0) + more
        if not self._count_of[uid]:
            del self._count_of[uid]

    def count_of(self, uid: int) -> int:
        """How many a user's swarms hold."""
        return self._count_of.get(uid, 0)

    def want(self, task_id: str, names: Iterable[str]) -> None:
        """An open task names these."""
        for name in names:
            self._wanted_by.setdefault(name, set()).add(task_id)

    def unwant(self, task_id: str, names: Iterable[str]) -> None:
        """It is final."""
        for name in names:
            tasks = self._wanted_by.get(name)
            if tasks is not None:
                tasks.discard(task_id)
                if not tasks:
                    del self._wanted_by[name]

    def wanted_by(self, name: str) -> Iterable[str]:
        """Open tasks that name it."""
        return self._wanted_by.get(name, _NOTHING)

    def busy(self, names: Iterable[str]) -> list[str]:
        """Those that somebody holds."""
        return [name for name in names if name in self.held]

    @contextmanager
    def waiting(self, names: Iterable[str], wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` whenever one of these is freed. Begin before the try that may be in vain, so that no end is missed."""
        wanted = tuple(names)
        for name in wanted:
            self._waiting.setdefault(name, {})[wake] = None
        try:
            yield
        finally:
            for name in wanted:
                waiting = self._waiting[name]
                del waiting[wake]
                if not waiting:
                    del self._waiting[name]

    def wake_all(self) -> None:
        """Everything was read anew, so an end may have gone unseen: let all that wait look again."""
        for name in tuple(self._waiting):
            self._wake(name)

    def _wake(self, name: str) -> None:
        for wake in tuple(self._waiting.get(name, ())):
            wake()

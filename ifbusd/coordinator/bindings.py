"""What claims and sessions are bound to beside their lease: a process that is watched, or a connection.

A binding is an entry here, told apart by an id that no other daemon, and no earlier run of this one, has used; records in the store carry
that id. So a record whose id is unknown here is not watched any more and lives on its lease alone. Processes are held by descriptor
and watched together by one epoll descriptor, which is all that the event loop has to wait for.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

import attrs
import trio

from ifbus.errors import InvalidParams, InvalidRequest, LimitExceeded, NotFound
from ifbusd import processes
from ifbusd.coordinator.model import CONNECTION, LEASE, PROCESS, SESSION, Holder
from ifbusd.identity import Caller, Session

_HANDED: Final = "handed"
_PID: Final = "pid:"
EXPECTED: Final = "process, pid:N, handed, connection, lease or session"
EXPECTED_OF_SESSION: Final = "process, pid:N, handed, connection or lease"
# Ends of processes that are looked at in one go.
_EVENTS: Final = 256


@attrs.define(kw_only=True, eq=False)
class Binding:
    """A process or a connection that something is bound to.

    Attributes:
        pidfd: Of the process; -1 for a connection.
        uses: Operations under way that may bind something to it.
        keys: Where the records that are bound to it stand in the store.
    """

    holder: Holder
    uid: int
    pidfd: int = -1
    connection_id: int = 0
    uses: int = 0
    keys: set[str] = attrs.field(factory=set)
    has_ended: bool = False

    @property
    def reason(self) -> str:
        """What its end is called on record."""
        return "process_ended" if self.holder.kind == PROCESS else "connection_closed"


class Bindings:
    """The table. The mutable state is the bindings by id, and those that something has happened to.

    Args:
        limit, limit_per_uid: Processes watched, a descriptor each; in all and for one user.
        new_id: A fresh id at each call.
    """

    def __init__(self, *, limit: int, limit_per_uid: int, new_id: Callable[[], str]) -> None:
        self._limit = limit
        self._limit_per_uid = limit_per_uid
        self._new_id = new_id
        self._by_id: dict[str, Binding] = {}
        self._by_pid: dict[int, Binding] = {}
        self._by_connection: dict[int, Binding] = {}
        self._by_pidfd: dict[int, Binding] = {}
        self._watched_of: dict[int, int] = {}  # by uid
        self._news: dict[str, Binding] = {}
        self._told = trio.lowlevel.ParkingLot()
        self._epoll = select.epoll()

    def __len__(self) -> int:
        """Processes and connections that something is bound to."""
        return len(self._by_id)

    @property
    def processes(self) -> int:
        """Processes watched."""
        return len(self._by_pidfd)

    def is_watched(self, binding_id: str) -> bool:
        """Whether the end of this one will be noticed."""
        return binding_id in self._by_id

    # --- asking for one ------------------------------------------------------------------------------

    def use(self, caller: Caller, bind: str | None) -> AbstractContextManager[Holder | None]:
        """What `bind` means for this caller, held for as long as an operation may write it into a record; None if it says nothing.

        Enter it at once.

        Raises:
            InvalidParams: `bind` cannot be read, or the kernel is too old.
            PermissionDenied: The process is no ancestor of the caller's, or another user's.
            NotFound: It has ended, or none was handed over.
            LimitExceeded: Too many processes are watched, or descriptors run short.
        """
        if bind is None or bind in (LEASE, SESSION):
            return nullcontext(None if bind is None else Holder(kind=bind))
        return self._using(self._find(caller, bind))

    @contextmanager
    def _using(self, binding: Binding) -> Iterator[Holder]:
        binding.uses += 1
        try:
            yield binding.holder
        finally:
            binding.uses -= 1
            # It may have ended meanwhile, and if nothing came of the operation, nobody needs it.
            self._tell(binding)

    def _find(self, caller: Caller, bind: str) -> Binding:
        session = caller.session
        if session is None:
            raise InvalidRequest("cannot bind anything without a connection")
        if bind == CONNECTION:
            return self._of_connection(caller, session)
        if bind == PROCESS:
            return self._watch(caller.uid, session.open_peer_process(), caller.peer.pid, bind)
        if bind == _HANDED:
            pidfd = session.take_process()
            if pidfd is None:
                raise NotFound(
                    "cannot bind to a process that was handed over: none was on this connection",
                    data={"bind": bind, "reason": "not_handed"},
                    would_change=[{"by": "self", "what": "daemon.expect_process, then a pidfd by SCM_RIGHTS"}],
                )
            try:
                pid = processes.require_user(pidfd, caller.uid, bind=bind).pid
            except BaseException:
                os.close(pidfd)
                raise
            return self._watch(caller.uid, pidfd, pid, bind)
        pid = _read_pid(bind)
        peer = session.open_peer_process()
        try:
            pidfd = processes.open_ancestor(peer, pid, caller.uid)
        finally:
            os.close(peer)
        return self._watch(caller.uid, pidfd, pid, bind)

    def _of_connection(self, caller: Caller, session: Session) -> Binding:
        connection_id = caller.peer.connection_id
        known = self._by_connection.get(connection_id)
        if known is not None:
            return known
        holder = Holder(kind=CONNECTION, id=self._new_id(), pid=caller.peer.pid)
        binding = Binding(holder=holder, uid=caller.uid, connection_id=connection_id)
        self._by_id[holder.id] = self._by_connection[connection_id] = binding
        session.on_close(lambda: self._end(binding))
        return binding

    def _watch(self, uid: int, pidfd: int, pid: int, bind: str) -> Binding:
        """The binding of a process; takes the descriptor over."""
        if processes.has_ended(pidfd):
            os.close(pidfd)
            raise processes.ended(bind, pid)
        known = self._by_pid.get(pid) if pid > 0 else None
        # Two that live at the same time under one number are one; a number whose owner has ended may be another's by now.
        if known is not None and not processes.has_ended(known.pidfd):
            os.close(pidfd)
            return known
        try:
            self._require_room(uid, bind)
            self._epoll.register(pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        except OSError as error:
            os.close(pidfd)
            raise processes.translated(error, bind) from error
        except BaseException:
            os.close(pidfd)
            raise
        holder = Holder(kind=PROCESS, id=self._new_id(), pid=pid, name=processes.name_of(pid))
        binding = Binding(holder=holder, uid=uid, pidfd=pidfd)
        self._by_id[holder.id] = self._by_pidfd[pidfd] = self._by_pid[pid] = binding
        self._watched_of[uid] = self._watched_of.get(uid, 0) + 1
        return binding

    def _require_room(self, uid: int, bind: str) -> None:
        for name, used, allowed in (
            ("bindings_per_uid", self._watched_of.get(uid, 0), self._limit_per_uid),
            ("bindings", len(self._by_pidfd), self._limit),
        ):
            if used >= allowed:
                raise LimitExceeded(
                    f"cannot bind to a process: {name} is {used} of {allowed}",
                    data={"bind": bind, "limit": name, "used": used, "allowed": allowed},
                    would_change=[{"by": "self", "what": 'bind="lease", or end what is bound to other processes'}],
                )

    # --- what hangs on it ----------------------------------------------------------------------------

    def move(self, key: str, before: str, now: str) -> None:
        """A record in the store that named one binding names another now; ``""`` is none."""
        if before == now:
            return
        if (binding := self._by_id.get(now)) is not None:
            binding.keys.add(key)
            if binding.has_ended:
                self._tell(binding)
        if (former := self._by_id.get(before)) is not None:
            former.keys.discard(key)
            self._tell(former)

    def renew(self, keys: dict[str, set[str]]) -> None:
        """These, by binding id, are all records in the store that name one."""
        for binding_id, binding in self._by_id.items():
            binding.keys = keys.get(binding_id, set())
            self._tell(binding)

    # --- the end -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Notice the end of processes until cancelled; then let go of all of them."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for pidfd, _ in self._epoll.poll(0, _EVENTS):
                    self._end(self._by_pidfd[pidfd])
        finally:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
            for pidfd in self._by_pidfd:
                os.close(pidfd)
            self._by_pidfd.clear()

    def _end(self, binding: Binding) -> None:
        binding.has_ended = True
        self._tell(binding)

    def _tell(self, binding: Binding) -> None:
        if binding.has_ended or not (binding.keys or binding.uses):
            self._news[binding.holder.id] = binding
            self._told.unpark_all()

    def tell_again(self, bindings: Iterable[Binding]) -> None:
        """Have these told once more."""
        for binding in bindings:
            self._tell(binding)

    async def wait_news(self) -> list[Binding]:
        """Those that have ended, or that nothing is bound to any more, as it seems; each is told again when there is more to it."""
        while not self._news:
            await self._told.park()
        news = list(self._news.values())
        self._news.clear()
        return news

    def forget_unused(self, binding: Binding) -> bool:
        """Let go of a binding that nothing is bound to, as of a board that shows all that was written; whether that was so."""
        if binding.keys or binding.uses:
            return False
        if binding.pidfd < 0 and not binding.has_ended:
            return True  # costs nothing, and a connection need not be asked twice to tell of its end
        holder = binding.holder
        if self._by_id.pop(holder.id, None) is None:
            return True
        if binding.pidfd < 0:
            del self._by_connection[binding.connection_id]
            return True
        self._epoll.unregister(binding.pidfd)
        del self._by_pidfd[binding.pidfd]
        if self._by_pid.get(holder.pid) is binding:
            del self._by_pid[holder.pid]
        os.close(binding.pidfd)
        self._watched_of[binding.uid] -= 1
        if not self._watched_of[binding.uid]:
            del self._watched_of[binding.uid]
        return True


def _read_pid(bind: str) -> int:
    digits = bind.removeprefix(_PID)
    if not (bind.startswith(_PID) and digits.isascii() and digits.isdigit() and 0 < len(digits) < 10 and int(digits)):
        raise InvalidParams(
            f"cannot take bind: expected {EXPECTED}, got {bind!r:.40}", data={"param": "bind", "expected": EXPECTED}
        )
    return int(digits)

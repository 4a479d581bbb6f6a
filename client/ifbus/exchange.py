"""What a client's connection is waiting for, without I/O: shared by the blocking and the asynchronous client.

An `Exchange` lives as long as one connection; `Routes` live as long as the client and go on over a reconnect.

One reader at a time: of all who wait on a connection, one (the leader) reads and hands the others what is theirs; when it
has its own answer, it passes the lead on. So a program with one thread or task pays for no second one, and many share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from ifbus.errors import ConnectionLost, IfbusError, Overloaded, ProtocolError, Refused, RequestError, from_wire
from ifbus.protocol import END_OF_STREAM, NEED_DATA, PROTOCOL_VERSIONS, Connection, Malformed, Notification, Response
from ifbus.request import Call, untyped
from ifbus.steps import Steps, ask

# Attention that nobody fetches: the newest are kept, older ones are the least use.
MAX_ATTENTION: Final = 64
# Notifications kept for a subscriber that is busy. Beyond it the inbox is read again from the daemon, where it is durable;
# other subscriptions lose the oldest and count them.
MAX_QUEUED: Final = 1024


class Wake(Protocol):
    """Lets one parked thread or task go on; calling it twice, or before the other has parked, is fine."""

    def __call__(self) -> None: ...


class Waiter:
    """One who waits: for the answer to a request, or for the next message of a subscription.

    Attributes:
        msgid: Of the request; None for a subscription.
        done: There is something to take, or the connection has ended (`error`).
        wake: Set while it is parked because somebody else reads.
    """

    # Defaults of the class: one is made for every request, and most change two of them.
    msgid: int | None = None
    done: bool = False
    error: IfbusError | None = None
    result: Any = None
    wake: Wake | None = None

    def finish(self) -> None:
        """Mark as done and let it go on. First the mark, then the wake: who parks looks at them the other way round."""
        self.done = True
        if self.wake is not None:
            self.wake()


class Feed:
    """The messages of one subscription that have arrived and were not taken yet.

    Attributes:
        method: Of the notifications that belong here.
        swarm_id: Only those of this swarm's inbox, or None.
        error: Why the daemon refused to go on with it after a reconnect.
        connection: Number of the connection that it was last subscribed on (`Routes.connections`).
        last_seq: Of the last message taken; where an inbox resumes, and what else does.
        dropped: Messages lost because the queue was full; for an inbox they are fetched again.
    """

    def __init__(
        self,
        method: str,
        subscribe: str,
        *,
        swarm_id: str | None = None,
        after_seq: int = 0,
        params: dict[str, Any] | None = None,
        resumes: bool = False,
    ) -> None:
        self.method = method
        self.swarm_id = swarm_id
        self.error: IfbusError | None = None
        self.connection = 0
        self.last_seq = after_seq
        self.dropped = 0
        self.has_overflowed = False
        self.is_closed = False
        self.waiter: Waiter | None = None
        self._subscribe = subscribe
        self._params = params or {}
        self._resumes = resumes
        self._queue: deque[dict[str, Any]] = deque()

    @property
    def subscribe(self) -> Call[Any]:
        """The call that starts it on a connection, from where it stands."""
        params = self._params if self.swarm_id is None else {"swarm_id": self.swarm_id, "after_seq": self.last_seq}
        if self._resumes and self.last_seq:
            params = {**params, "after_seq": self.last_seq}
        return Call(self._subscribe, params, untyped)

    @property
    def refill(self) -> Call[Any]:
        """The call that reads again what did not fit into the queue."""
        return Call("coordinator.read_inbox", {"swarm_id": self.swarm_id, "after_seq": self.last_seq}, untyped)

    @property
    def has_news(self) -> bool:
        """Whether `take`, a refill or the subscriber's end would give something."""
        return bool(self._queue) or self.has_overflowed or self.is_closed

    @property
    def is_durable(self) -> bool:
        """Whether lost messages can be read again."""
        return self.swarm_id is not None

    def put(self, message: dict[str, Any]) -> None:
        """Queue a message and let the subscriber go on."""
        if len(self._queue) >= MAX_QUEUED:
            self.dropped += 1
            if self.is_durable:
                self.has_overflowed = True
                return
            self._queue.popleft()
        self._queue.append(message)
        self.wake()

    def take(self) -> dict[str, Any] | None:
        """The next message that was not seen yet, or None."""
        while True:
            try:
                message = self._queue.popleft()
            except IndexError:  # rather than a look before: another thread may close it meanwhile
                return None
            if not (self.is_durable or self._resumes):
                return message
            # A subscription that was resumed may bring again what had arrived already.
            seq = message.get("seq", 0)
            if seq > self.last_seq:
                self.last_seq = seq
                return message

    def wake(self) -> None:
        """Let a waiting subscriber look again."""
        if self.waiter is not None:
            self.waiter.finish()

    def close(self) -> None:
        """Take nothing more; a waiting subscriber goes on and finds it closed."""
        self.is_closed = True
        self._queue.clear()
        self.wake()

    def end(self, error: IfbusError) -> None:
        """As `close`, and the subscriber is told why; wakes nobody."""
        self.error = error
        self.is_closed = True


class Routes:
    """What outlives a connection: open subscriptions, attention that came before replies, and whom this client speaks for.

    Attributes:
        swarms: Swarms of this client, whose attention each new connection is to hear.
        bindings: By swarm the call that binds its session to this process or connection, again on each new connection: a
            daemon that was started anew watches nobody until it is asked to.
        has_unheard: Attention has arrived that nobody was told of yet.
        hearers: Are told of each item of attention as it arrives, in the thread or task that reads: they must not wait.
        connections: How many were greeted; a feed of another number is not subscribed on the present one.
    """

    def __init__(self) -> None:
        self.feeds: list[Feed] = []
        self.swarms: list[str] = []
        self.bindings: dict[str, Call[Any]] = {}
        self.connections = 0
        self.attention: deque[dict[str, Any]] = deque(maxlen=MAX_ATTENTION)
        self.has_unheard = False
        self.hearers: list[Callable[[dict[str, Any]], None]] = []

    def deliver(self, event: Notification) -> None:
        """Hand one notification to whom it concerns; unknown ones are a newer daemon's and are passed over."""
        # To copies of the lists: another thread may end its subscription meanwhile, and the next one must not be passed over.
        if event.method == "attention":
            items = event.params[0] if event.params and isinstance(event.params[0], list) else []
            items = [item for item in items if isinstance(item, dict)]
            self.attention.extend(items)
            self.has_unheard = bool(self.attention)
            for item in items:
                for hear in tuple(self.hearers):
                    hear(item)
                for feed in tuple(self.feeds):
                    if feed.method == "attention":
                        feed.put(item)
            return
        for message in event.params:
            if not isinstance(message, dict):
                continue
            for feed in tuple(self.feeds):
                if feed.method == event.method and feed.swarm_id in (None, message.get("swarm_id", feed.swarm_id)):
                    feed.put(message)


def greet(routes: Routes, client: str) -> Steps[dict[str, Any]]:
    """What a client says on each new connection: hello, whose attention it wants to hear, and its subscriptions again.

    Returns:
        The daemon's answer to hello.

    Raises:
        VersionMismatch: No protocol version in common.
        Momentary, ConnectionFailed: Try another time.
    """
    routes.connections += 1
    hello: dict[str, Any] = yield from ask(
        Call("daemon.hello", {"protocol": list(PROTOCOL_VERSIONS), "client": client}, untyped)
    )
    for swarm_id in list(routes.swarms):
        try:
            yield from ask(Call("daemon.hello", {"swarm": swarm_id}, untyped))
        except (RequestError, Refused):
            # The swarm is gone or another user's: whoever renews its session learns it there, with the reason.
            routes.swarms.remove(swarm_id)
    for swarm_id, bind in list(routes.bindings.items()):
        try:
            yield from ask(bind)
        except (RequestError, Refused):
            # The session has ended, or lives on its lease alone from now on: whoever renews it learns which.
            routes.bindings.pop(swarm_id, None)
    for feed in list(routes.feeds):
        try:
            yield from ask(feed.subscribe)
        except (RequestError, Refused) as error:
            feed.error = error
            feed.close()
        else:
            feed.connection = routes.connections
    return hello


class Exchange:
    """Requests under way on one connection.

    `start` and `cancel` are the sender's, `receive` the leader's; the two sides share nothing but `_waiters`, whose single
    operations are atomic, so a blocking client needs one lock for sending and one for reading.
    """

    def __init__(self, routes: Routes) -> None:
        self._wire = Connection()
        self._routes = routes
        self._waiters: dict[int, Waiter] = {}
        self._farewell: IfbusError | None = None
        self.failure: IfbusError | None = None

    def start(self, waiter: Waiter, method: str, params: list[Any], meta: dict[str, Any] | None) -> bytes:
        """The bytes to send; `waiter` is done when the answer has come.

        Raises:
            LimitExceeded: The request is longer than a message may be; nothing was started.
            IfbusError: This connection has ended (`failure`).
        """
        waiter.msgid, data = self._wire.request(method, params, meta)
        self._waiters[waiter.msgid] = waiter
        if self.failure is not None:
            # Only now: `fail` sets the reason before it looks for waiters, so one of the two always finds the other.
            self._waiters.pop(waiter.msgid, None)
            raise self.failure
        return data

    def cancel(self, waiter: Waiter) -> bytes:
        """The bytes that ask the daemon to give a request up; its answer, `cancelled` or not, still comes."""
        assert waiter.msgid is not None
        return self._wire.cancel(waiter.msgid)

    def process_notice(self) -> bytes:
        """The message that carries a process descriptor."""
        return self._wire.notify("$/process", [])

    def forget(self, waiter: Waiter) -> None:
        """Nobody waits for this answer any more; it is dropped when it comes."""
        if waiter.msgid is not None:
            self._waiters.pop(waiter.msgid, None)

    def receive(self, data: bytes) -> None:
        """Digest what was read (``b""``: the daemon closed) and let everybody go on whose answer it holds.

        Never raises: an end or garbage fails everybody who waits, with the reason.
        """
        wire = self._wire
        wire.receive_data(data)
        try:
            while True:
                event = wire.next_event()
                if type(event) is Response:
                    waiter = self._waiters.pop(event.msgid, None)
                    if waiter is not None:
                        if event.error is not None:
                            waiter.error = from_wire(event.error)
                        waiter.result = event.result
                        waiter.finish()
                    if not wire.has_buffered:  # the usual case: one message in one read
                        return
                elif event is NEED_DATA:
                    return
                elif type(event) is Notification:
                    if event.method == "closing":
                        self._farewell = from_wire(event.params[0] if event.params else None)
                    else:
                        self._routes.deliver(event)
                    if not wire.has_buffered:
                        return
                elif event is END_OF_STREAM:
                    self.fail(_end_of_stream(self._farewell))
                    return
                elif type(event) is Malformed and event.msgid is None:
                    self.fail(ProtocolError(f"the daemon sent no MessagePack-RPC: {event.error.message}"))
                    return
        except IfbusError as error:
            self.fail(error)

    def fail(self, error: IfbusError) -> None:
        """The connection has ended: everybody who waits on it goes on with this error, except subscribers, who find it out."""
        if self.failure is None:
            self.failure = error
        while self._waiters:
            _, waiter = self._waiters.popitem()
            # One instance each: several threads raising the same exception would share its traceback.
            waiter.error = type(error)(error.message, data=error.data)
            waiter.finish()
        for feed in tuple(self._routes.feeds):
            feed.wake()


def _end_of_stream(farewell: IfbusError | None) -> IfbusError:
    """What the end of the connection means, by the reason that the daemon gave before it."""
    if farewell is None:
        return ConnectionLost("the daemon closed the connection")
    if isinstance(farewell, Overloaded | ProtocolError):
        return farewell
    # It is stopping, perhaps to start again: whoever waits tries to connect until its time is up.
    return ConnectionLost(f"the daemon ended the connection: {farewell.message}", data=farewell.data)

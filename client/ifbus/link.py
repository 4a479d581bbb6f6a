"""A blocking connection to the daemon, for threads, without the typed methods (`ifbus.sync.Client` adds those).

It imports no attrs and no models, so a short-lived program that calls methods by name starts in half the time.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, Self, TypeVar

from ifbus.backoff import next_try
from ifbus.connect import Inherited, candidates, connect, inherited
from ifbus.errors import Cancelled, ConnectionFailed, ConnectionLost, DeadlineExceeded, IfbusError, Momentary
from ifbus.exchange import Exchange, Feed, Routes, Waiter, greet
from ifbus.request import KEYLESS, Call, Options, check_options, check_timeout, read_answer, to_wire, untyped
from ifbus.steps import drive
from ifbus.stream import InheritedStream, SocketStream, Stream

R = TypeVar("R")
T = TypeVar("T")

# Patience with a call whose caller named none. It only guards against a hung daemon, so it is not sent along.
DEFAULT_TIMEOUT_S: Final = 30.0
# The daemon's own "deadline exceeded" is the better answer (it knows what it had done), so it gets this long to arrive.
GRACE_S: Final = 0.25
VERSION: Final = "ifbus-python"


class Abort:
    """Lets another thread end a call that waits in the daemon. One call at a time; once set, no further call is made."""

    def __init__(self) -> None:
        self.is_set = False
        self._session: _Session | None = None
        self._waiter: Waiter | None = None

    def set(self, *, wait: bool = True) -> None:
        """Ask the daemon to give the call up; it then raises Cancelled, or gives the answer that was faster.

        Args:
            wait: Until other threads have sent what they are sending; without it, as in a signal handler, the call may go on
                to its end instead.
        """
        self.is_set = True
        session, waiter = self._session, self._waiter
        if session is not None and waiter is not None:
            session.cancel(waiter, wait=wait)

    def attach(self, session: _Session, waiter: Waiter) -> None:
        """The call is under way. First the note, then the look: an abort at this moment is seen by one of the two."""
        self._waiter, self._session = waiter, session
        if self.is_set:
            session.cancel(waiter)


class _Session:
    """One connection: who sends, who reads, who waits.

    Two locks: whoever holds `_sending` may pack and send, whoever holds `_reading` leads. They are never held together,
    because a sender that waits for the daemon to read must not keep the daemon's answers from being read.
    """

    def __init__(self, stream: Stream, routes: Routes) -> None:
        self._stream = stream
        self._exchange = Exchange(routes)
        self._sending = threading.Lock()
        self._reading = threading.Lock()
        self._parked: dict[Waiter, None] = {}

    @property
    def failure(self) -> IfbusError | None:
        """Why this connection has ended; None while it lives."""
        return self._exchange.failure

    def ask(
        self,
        method: str,
        params: list[Any],
        meta: dict[str, Any] | None,
        timeout_s: float,
        abort: Abort | None = None,
    ) -> Any:
        """The answer to one request.

        Raises:
            IfbusError: The daemon's refusal; ConnectionFailed if the connection ended first; DeadlineExceeded.
        """
        waiter = Waiter()
        started = time.monotonic()
        with self._sending:
            data = self._exchange.start(waiter, method, params, meta)
            try:
                self._stream.send(data)
            except BaseException as error:
                self._end(error)  # perhaps half a message went out: nothing may follow it
                raise
        try:
            if abort is not None:
                abort.attach(self, waiter)
            if not (self._read_own(waiter, timeout_s) or self.wait(waiter, started + timeout_s - time.monotonic())):
                raise DeadlineExceeded(
                    f"no answer to {method} in {timeout_s:g} s; it may have been done",
                    data={"method": method, "timeout_ms": int(timeout_s * 1000)},
                )
        except BaseException:
            self._give_up(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        return waiter.result

    def _read_own(self, waiter: Waiter, timeout_s: float) -> bool:
        """The hot path: nobody else reads and the answer comes in one read. False where it takes more than that."""
        if not self._reading.acquire(False):
            return False
        try:
            if not waiter.done:  # the leader before us may have read it
                self._read(timeout_s)
        finally:
            self._reading.release()
            if self._parked:
                self._pass_lead_on()
        return waiter.done

    def wait(self, waiter: Waiter, timeout_s: float | None) -> bool:
        """Wait until `waiter` is done, reading for everybody if nobody else does; False when the time is up."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while not waiter.done:
                if self._reading.acquire(False):
                    try:
                        while not waiter.done:
                            left_s = None if deadline is None else deadline - time.monotonic()
                            if (left_s is not None and left_s <= 0) or not self._read(left_s):
                                return waiter.done
                    finally:
                        self._reading.release()
                elif not self._park(waiter, deadline):
                    return waiter.done
            return True
        finally:
            if self._parked:  # also where a signal ends the wait just as the lead was passed to us
                self._pass_lead_on()

    def _read(self, timeout_s: float | None) -> bool:
        try:
            data = self._stream.receive(timeout_s)
        except TimeoutError:
            return False
        except ConnectionLost as error:
            self._end(error)  # as at the end of the stream: whoever waits hears of it, the reader in its own turn
            return True
        except BaseException as error:
            self._end(error)  # interrupted, perhaps with bytes in hand: the stream cannot be trusted any more
            raise
        try:
            self._exchange.receive(data)
        except BaseException as error:
            self._end(error)
            raise
        if self._exchange.failure is not None:
            self._stream.shut_down()
        return True

    def _park(self, waiter: Waiter, deadline: float | None) -> bool:
        gate: SimpleQueue[None] = SimpleQueue()
        waiter.wake = lambda: gate.put(None)
        self._parked[waiter] = None
        was_woken = False
        try:
            # Parked first, then another look: a leader that ended in between has either seen us or left the lead free.
            if not waiter.done and self._reading.locked():
                gate.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
                was_woken = True
        except Empty:
            return False
        finally:
            self._parked.pop(waiter, None)
            waiter.wake = None
            if not was_woken:
                self._pass_lead_on()  # the lead may have been passed to us at this very moment: it must not end here
        return True

    def _pass_lead_on(self) -> None:
        for waiter in list(self._parked):
            wake = waiter.wake
            if wake is not None and not waiter.done:
                wake()
                return

    def _give_up(self, waiter: Waiter) -> None:
        self._exchange.forget(waiter)
        self.cancel(waiter)

    def cancel(self, waiter: Waiter, *, wait: bool = True) -> None:
        """Ask the daemon to give a request up; its answer still comes."""
        if self._exchange.failure is None and self._sending.acquire(wait):
            try:
                self._stream.send(self._exchange.cancel(waiter))
            except ConnectionLost as error:
                self._end(error)
            finally:
                self._sending.release()

    def hand_over(self, pidfd: int, timeout_s: float) -> None:
        """Announce a process descriptor and send it."""
        self.ask("daemon.expect_process", [], None, timeout_s)
        with self._sending:
            if self._exchange.failure is not None:
                raise self._exchange.failure
            try:
                self._stream.send_process(self._exchange.process_notice(), pidfd)
            except ConnectionLost as error:
                self._end(error)
                raise

    def nudge(self) -> None:
        """Bring the reader back from the kernel, so that it looks again: the answer to a ping that nobody waits for."""
        with self._sending:
            if self._exchange.failure is not None:
                return
            waiter = Waiter()
            data = self._exchange.start(waiter, "daemon.ping", [], None)
            self._exchange.forget(waiter)
            try:
                self._stream.send(data)
            except ConnectionLost as error:
                self._end(error)

    def _end(self, error: BaseException) -> None:
        if not isinstance(error, IfbusError):
            error = ConnectionLost(f"the connection was given up: {type(error).__name__}")
        self._exchange.fail(error)
        self._stream.shut_down()

    def drop(self, error: IfbusError) -> None:
        """As `close`, but leaves the descriptor to whoever closes it."""
        self._end(error)

    def close(self, error: IfbusError) -> None:
        """End the connection: everybody who waits on it goes on with `error`."""
        self._end(error)
        with self._sending, self._reading:
            self._stream.close()

    def abandon(self) -> None:
        """Free the descriptor in a forked child without a word to the daemon: the connection is the parent's."""
        self._stream.close()


class Link:
    """A connection to the daemon that many threads share and that comes back by itself.

    Requests carry an idempotency key where a repetition would matter, so they are sent again after a lost connection or a
    momentary refusal, with the effect of one. Nothing starts in the background.

    Args:
        socket_path: The daemon's socket; otherwise ``IFBUS_FD``, ``IFBUS_SOCKET``, the user's, the system's.
        timeout: Seconds of patience with a call that names none, reconnecting included.
        on_attention: Called with each item that the daemon wants heard (cancel, lease lost, budget low, ...), in the thread
            whose call brought it, before that call returns. Without it, items wait in `attention`.

    Raises:
        InvalidParams: ``IFBUS_FD`` cannot be read, or the timeout is no span. No connection is made before the first call.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        on_attention: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        check_timeout("make a client", timeout)
        self._inherited: Inherited | None = inherited(os.environ) if socket_path is None else None
        self._paths = candidates(socket_path, os.environ)
        self._timeout_s = timeout
        self._on_attention = on_attention
        self._routes = Routes()
        self._session: _Session | None = None
        self._dialing: _Session | None = None
        self._was_connected = False
        self._hello: dict[str, Any] = {}
        self._start_anew()
        _links.add(self)

    def _start_anew(self) -> None:
        self._opening = threading.Lock()
        self._closing = threading.Event()
        self._key_prefix = os.urandom(8).hex()
        self._key_numbers = itertools.count(1)

    # --- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def connect(self) -> dict[str, Any]:
        """Connect now rather than with the first call; what the daemon says of itself.

        Raises:
            NoDaemon: One of its four causes, with the remedy.
            VersionMismatch: Client and daemon have no protocol version in common.
        """
        self._live_session(self._timeout_s)
        return self._hello

    def close(self) -> None:
        """End the connection; calls under way in other threads fail, subscriptions end. Twice is fine."""
        self._closing.set()
        self._drop(closed())
        for feed in list(self._routes.feeds):
            feed.close()
        with self._opening:
            session, self._session = self._session, None
        if session is not None:
            session.close(closed())

    @property
    def socket_path(self) -> str:
        """Where it connects first, or went last: the path of the daemon's socket."""
        return self._paths[0]

    @property
    def timeout(self) -> float:
        """Seconds of patience with a call that names none."""
        return self._timeout_s

    @property
    def attention(self) -> tuple[dict[str, Any], ...]:
        """What the daemon wanted heard, oldest first, at most 64; `take_attention` also empties it."""
        return tuple(self._routes.attention)

    def take_attention(self) -> tuple[dict[str, Any], ...]:
        """What the daemon wanted heard since the last time."""
        taken = []
        try:
            while True:
                taken.append(self._routes.attention.popleft())
        except IndexError:  # rather than a look before: threads share this
            return tuple(taken)

    # --- calls -----------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        /,
        *args: Any,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
        **params: Any,
    ) -> Any:
        """The plain answer of any method, by its wire name.

        Args:
            args: Positional parameters; or, instead of them, keyword ones.
            timeout: Seconds; sent along, so that the daemon stops working on it too.
            idempotency_key: Replaces the automatic one.

        Raises:
            IfbusError: The daemon's refusal, by its code; NoDaemon, ConnectionLost, DeadlineExceeded.
        """
        if args and params:
            raise TypeError(f"{method}: the wire takes positional or keyword parameters, not both")
        options = Options(timeout=timeout, idempotency_key=idempotency_key, traceparent=traceparent)
        return self.perform(Call(method, list(args) if args else params, untyped, options))

    def new_key(self) -> str:
        """An idempotency key that nobody else uses. Keys of one moment are neighbours, so that a daemon's commit touches few pages."""
        return f"{time.time_ns() // 1_000_000:011x}-{self._key_prefix}-{next(self._key_numbers):x}"

    def perform(self, call: Call[R], *, guard: Callable[[], None] | None = None, abort: Abort | None = None) -> R:
        """Make a call as often as needed within its time; the answer as `call.read` reads it. Raises as `call`.

        Args:
            guard: Called before each repetition; what it raises ends the call.
            abort: Lets another thread end it.
        """
        method, options = call.method, call.options
        if options:
            check_options(method, options)
        asked_s, key = (options.get("timeout"), options.get("idempotency_key")) if options else (None, None)
        patience_s = call.wait_s + (self._timeout_s if asked_s is None else asked_s + GRACE_S)
        if key is None and method not in KEYLESS:
            key = self.new_key()
        started = time.monotonic()
        left_s, attempt, answer = patience_s, 0, None
        params: list[Any]
        while True:
            try:
                session = self._session
                if session is None or session.failure is not None:
                    session = self._live_session(left_s, guard)
                if key is None and not options and not call.params:  # such as ping
                    params, meta = [], None
                else:
                    waited_s = patience_s - left_s
                    params, meta = to_wire(
                        call, key=key, asked_timeout_s=None if asked_s is None else asked_s - waited_s
                    )
                answer = session.ask(method, params, meta, left_s, abort)
                break
            except (Momentary, ConnectionFailed) as error:
                if abort is not None and abort.is_set and not isinstance(error, Cancelled):
                    raise Cancelled(f"{method} was given up; it may have been done") from error
                left_s = started + patience_s - time.monotonic()
                self._pause_before_next_try(error, attempt, left_s)
                if guard is not None:
                    guard()
                left_s = started + patience_s - time.monotonic()
                if left_s <= 0:
                    raise
                attempt += 1
        if self._routes.has_unheard:
            self._tell_attention()
        return answer if call.read is untyped else read_answer(call, answer)

    def hand_over(self, pidfd: int) -> None:
        """Give the daemon a process descriptor, for the next call on this connection with ``bind="handed"``.

        The caller keeps its own. The process must be the caller's user's.

        Raises:
            InvalidParams: The connection was inherited, or the descriptor is not open.
            IfbusError: As `call`. A connection that is lost afterwards loses what was handed over.
        """
        self._live_session(self._timeout_s).hand_over(pidfd, self._timeout_s)

    def _pause_before_next_try(self, error: IfbusError, attempt: int, left_s: float) -> None:
        """Wait as long as is right after `error`; raises it where there is no next try."""
        wait_s = None
        if not self._closing.is_set():
            was_connected = self._was_connected and self._inherited is None
            wait_s = next_try(error, attempt, random.random(), left_s=left_s, was_connected=was_connected)
        if wait_s is None or self._closing.wait(wait_s):
            raise error

    def _tell_attention(self) -> None:
        self._routes.has_unheard = False
        if self._on_attention is not None:
            for item in self.take_attention():
                self._on_attention(item)

    # --- connections -----------------------------------------------------------------------------

    def _live_session(self, timeout_s: float, guard: Callable[[], None] | None = None) -> _Session:
        deadline = time.monotonic() + timeout_s
        if not self._opening.acquire(timeout=max(0.0, timeout_s)):
            raise no_connection(timeout_s)  # another thread tries to connect, and has longer
        try:
            if self._closing.is_set():
                raise closed()
            if guard is not None:
                guard()  # another thread may have tried to connect for long
            session = self._session
            if session is not None and session.failure is None:
                return session
            if session is not None:
                session.close(session.failure or closed())
                if self._inherited is not None:
                    raise session.failure or closed()
            self._session = session = self._dial(deadline - time.monotonic())
            self._was_connected = True
            return session
        finally:
            self._opening.release()

    def _dial(self, timeout_s: float) -> _Session:
        stream: Stream
        if self._inherited is not None:
            stream = InheritedStream(self._inherited, turn_timeout_s=timeout_s)
        else:
            stream = SocketStream(connect(self._paths))
        self._dialing = session = _Session(stream, self._routes)

        def ask(call: Call[Any]) -> Any:
            return session.ask(call.method, *to_wire(call, key=None, asked_timeout_s=None), timeout_s)

        try:
            # First the note, then the look: a `close` at this moment is seen by one of the two.
            if self._closing.is_set():
                raise closed()
            self._hello = drive(greet(self._routes, VERSION), ask)
        except BaseException:
            session.close(closed())
            raise
        finally:
            self._dialing = None
        return session

    def _drop(self, error: IfbusError) -> None:
        """Give the present connection up, so that whoever waits on it looks again; the next call makes a new one."""
        for session in (self._dialing, self._session):
            if session is not None:
                session.drop(error)

    def subscribe(self, feed: Feed, read: Callable[[dict[str, Any]], T]) -> Subscription[T]:
        """Start a subscription; it goes on over reconnects until it is closed."""
        try:
            self._start_feed(feed)
        except BaseException:
            if feed in self._routes.feeds:
                self._routes.feeds.remove(feed)
            raise
        return Subscription(self, feed, read)

    def _start_feed(self, feed: Feed) -> None:
        # Not by `perform`: a connection made anew subscribes by itself, and a second time would bring everything twice.
        attempt, deadline = 0, time.monotonic() + self._timeout_s
        while True:
            try:
                with self._opening:
                    if feed not in self._routes.feeds:
                        self._routes.feeds.append(feed)
                    session = self._session
                    if session is not None and session.failure is None:
                        if feed.connection != self._routes.connections:
                            feed.connection = self._routes.connections
                            call = feed.subscribe
                            session.ask(call.method, *to_wire(call, key=None, asked_timeout_s=None), self._timeout_s)
                        return
                self._live_session(self._timeout_s)
                if feed.error is not None:
                    raise feed.error
                return
            except (Momentary, ConnectionFailed) as error:
                feed.connection = 0
                self._pause_before_next_try(error, attempt, deadline - time.monotonic())
                attempt += 1

    def _next_message(self, feed: Feed, timeout_s: float | None) -> dict[str, Any] | None:
        """The subscription's next message; None once it is closed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            message = feed.take()
            if message is not None:
                return message
            if feed.is_closed:
                if feed.error is not None:
                    raise feed.error
                return None
            if feed.has_overflowed:
                self._refill(feed)
                continue
            self._keep_connected()
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise DeadlineExceeded(
                    f"no message in {timeout_s:g} s", data={"timeout_ms": int((timeout_s or 0) * 1000)}
                )
            session = self._session
            if session is None:
                continue
            waiter = feed.waiter = Waiter()
            # Set first, then another look: what came in between has seen the waiter or is seen here.
            if not feed.has_news and session.failure is None:
                session.wait(waiter, left_s)
            if self._routes.has_unheard:
                self._tell_attention()

    def _attach(self, feed: Feed) -> None:
        """Have a subscription started with each connection that is made from now on."""
        self._routes.feeds.append(feed)

    def _rouse(self, feed: Feed) -> None:
        """Bring back whoever is in `_listen_to`."""
        feed.wake()
        session = self._session
        if session is not None:
            session.nudge()

    def _listen_to(self, feed: Feed, timeout_s: float) -> dict[str, Any] | None:
        """The subscription's next message if one comes in time; None at once where there is no connection: it makes none."""
        message = feed.take()
        session = self._session
        if message is not None or session is None or session.failure is not None or feed.is_closed:
            return message
        waiter = feed.waiter = Waiter()
        # Set first, then another look: what came in between has seen the waiter or is seen here.
        if not feed.has_news and session.failure is None:
            session.wait(waiter, timeout_s)
        return feed.take()

    def _keep_connected(self) -> None:
        session = self._session
        if session is None or session.failure is not None:
            self.perform(Call("daemon.ping", {}, untyped))

    def _refill(self, feed: Feed) -> None:
        # First the mark, then the reading: what arrives from now on is queued again, and `take` drops what comes twice.
        feed.has_overflowed = False
        while True:
            page = self.perform(feed.refill)
            for message in page["messages"]:
                feed.put(message)
            if not page["has_more"] or feed.has_overflowed:
                return
            if page["messages"]:
                return

    def _forget_feed(self, feed: Feed) -> None:
        feed.close()
        if feed in self._routes.feeds:
            self._routes.feeds.remove(feed)
            session = self._session
            if session is not None:
                session.nudge()

    def _after_fork(self) -> None:
        # Locks may be held by threads that do not exist here, and the connection and its numbering are the parent's.
        sessions = {self._session, self._dialing} - {None}
        self._session = self._dialing = None
        was_closed = self._closing.is_set()
        for feed in self._routes.feeds:
            feed.end(ConnectionLost("this subscription belongs to the process that this one was forked from"))
        self._routes = Routes()
        self._start_anew()
        if was_closed:
            self._closing.set()
        for session in sessions:
            if session is not None and self._inherited is None:
                session.abandon()


class Subscription(Generic[T]):
    """Messages as they come, for one thread: iterate, or `receive` with a timeout. Ends when it or its client is closed.

    It resumes after a reconnect: an inbox where it stood, nothing lost; others from then on.
    """

    def __init__(self, link: Link, feed: Feed, read: Callable[[dict[str, Any]], T]) -> None:
        self._link = link
        self._feed = feed
        self._read = read

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        message = self._link._next_message(self._feed, None)
        if message is None:
            raise StopIteration
        return self._read(message)

    def receive(self, timeout: float | None = None) -> T | None:
        """The next message, or None once it is closed.

        Args:
            timeout: Seconds to wait; None waits as long as it takes.

        Raises:
            DeadlineExceeded: None came in time.
            NoDaemon, ConnectionFailed: The daemon is gone and did not come back within the client's patience.
        """
        check_timeout("receive", timeout)
        message = self._link._next_message(self._feed, timeout)
        return None if message is None else self._read(message)

    @property
    def dropped(self) -> int:
        """Messages that were lost because nobody took them in time; an inbox reads them again, so there it is no loss."""
        return 0 if self._feed.is_durable else self._feed.dropped

    def close(self) -> None:
        """Take no more; a thread that waits in it comes back."""
        self._link._forget_feed(self._feed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def closed() -> ConnectionLost:
    """What every call on a closed client raises."""
    return ConnectionLost("this client is closed", data={"closed": True})


def no_connection(timeout_s: float) -> DeadlineExceeded:
    """What a call raises whose time is up before there is a connection; nothing was sent."""
    return DeadlineExceeded(
        f"no connection in {timeout_s:g} s: the daemon does not answer", data={"timeout_ms": int(timeout_s * 1000)}
    )


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _reset_links_after_fork() -> None:
    for link in list(_links):
        link._after_fork()


os.register_at_fork(after_in_child=_reset_links_after_fork)

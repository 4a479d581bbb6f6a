"""An asynchronous connection to the daemon, for asyncio and trio, without the typed methods (`ifbus.aio` adds those)."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, Self, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread

from ifbus.async_stream import AsyncInheritedStream, AsyncSocketStream, AsyncStream
from ifbus.backoff import next_try
from ifbus.connect import Inherited, candidates, connect, inherited
from ifbus.errors import ConnectionFailed, ConnectionLost, DeadlineExceeded, IfbusError, Momentary
from ifbus.exchange import Exchange, Feed, Routes, Waiter, greet
from ifbus.link import DEFAULT_TIMEOUT_S, GRACE_S, VERSION, closed, no_connection
from ifbus.request import KEYLESS, Call, Options, check_options, check_timeout, read_answer, to_wire, untyped
from ifbus.steps import drive_async
from ifbus.stream import SEND_TIMEOUT_S, InheritedStream

R = TypeVar("R")
T = TypeVar("T")

# So much may wait for a daemon that reads slowly; beyond it calls wait before they are sent.
MAX_UNSENT_BYTES: Final = 256 << 10
_FULL_S: Final = 0.002


class _Session:
    """One connection: its reading task, what could not be sent yet, and who waits for an answer."""

    def __init__(self, stream: AsyncStream, routes: Routes) -> None:
        self._stream = stream
        self._exchange = Exchange(routes)
        self._group: anyio.abc.TaskGroup | None = None
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._has_room = anyio.Event()
        self.ended = anyio.Event()

    @property
    def is_running(self) -> bool:
        """Whether `run` has begun: it then closes the stream."""
        return self._group is not None

    @property
    def failure(self) -> IfbusError | None:
        """Why this connection has ended; None while it lives."""
        return self._exchange.failure

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Read until the connection ends or `end` is called; whoever waits then goes on with the reason."""
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                task_status.started()
                await self._read()
                group.cancel_scope.cancel()
        finally:
            self._exchange.fail(closed())
            self._has_room.set()
            self._stream.close()
            self.ended.set()

    async def _read(self) -> None:
        while self._exchange.failure is None:
            try:
                data = await self._stream.receive()
            except ConnectionLost as error:
                self._exchange.fail(error)
            else:
                self._exchange.receive(data)

    def end(self, error: IfbusError) -> None:
        """End the connection: everybody who waits on it goes on with `error`."""
        self._exchange.fail(error)
        if self._group is not None:
            self._group.cancel_scope.cancel()

    async def ask(self, method: str, params: list[Any], meta: dict[str, Any] | None, timeout_s: float) -> Any:
        """The answer to one request. Cancelled, the daemon is asked to give it up; it may have been done.

        Raises:
            IfbusError: The daemon's refusal; ConnectionFailed if the connection ended first; DeadlineExceeded.
        """
        waiter, answered = Waiter(), anyio.Event()
        waiter.wake = answered.set
        try:
            with anyio.move_on_after(timeout_s):
                while self._unsent_bytes > MAX_UNSENT_BYTES and self._exchange.failure is None:
                    await self._has_room.wait()
                self._send(self._exchange.start(waiter, method, params, meta))
                await answered.wait()
        finally:
            if not waiter.done:
                self._give_up(waiter)
        if not waiter.done:
            raise DeadlineExceeded(
                f"no answer to {method} in {timeout_s:g} s; it may have been done",
                data={"method": method, "timeout_ms": int(timeout_s * 1000)},
            )
        if waiter.error is not None:
            raise waiter.error
        return waiter.result

    async def hand_over(self, pidfd: int, timeout_s: float) -> None:
        """Announce a process descriptor and send it. Cancelled, it was sent or not, and only then the connection goes on."""
        await self.ask("daemon.expect_process", [], None, timeout_s)
        data = self._exchange.process_notice()
        while True:
            if self._exchange.failure is not None:
                raise self._exchange.failure
            # Only where nothing else waits to be sent, so that it comes between two messages.
            if not self._unsent and (sent := self._stream.write_process(data, pidfd)):
                if sent < len(data):
                    self._send(data[sent:])
                return
            await anyio.sleep(_FULL_S)  # not by waiting for the socket: whoever sends the rest waits for it already

    def _give_up(self, waiter: Waiter) -> None:
        self._exchange.forget(waiter)
        if waiter.msgid is not None and self._exchange.failure is None:
            self._send(self._exchange.cancel(waiter))

    def _send(self, data: bytes) -> None:
        # Whole and in order without waiting: there is no moment at which a cancellation could cut a message in two.
        sent = 0
        if not self._unsent:
            try:
                sent = self._stream.write(memoryview(data))
            except ConnectionLost as error:
                self.end(error)
                return
            if sent == len(data):
                return
            assert self._group is not None  # `run` has started before anything is sent
            self._group.start_soon(self._send_rest)
        self._unsent.append(memoryview(data)[sent:])
        self._unsent_bytes += len(data) - sent

    async def _send_rest(self) -> None:
        while self._unsent:
            with anyio.move_on_after(SEND_TIMEOUT_S) as scope:
                await self._stream.wait_writable()
            if scope.cancelled_caught:
                self.end(ConnectionLost(f"the daemon took no bytes for {SEND_TIMEOUT_S:g} s"))
                return
            rest = self._unsent[0]
            try:
                sent = self._stream.write(rest)
            except ConnectionLost as error:
                self.end(error)
                return
            self._unsent_bytes -= sent
            if sent == len(rest):
                self._unsent.popleft()
            else:
                self._unsent[0] = rest[sent:]
            if self._unsent_bytes <= MAX_UNSENT_BYTES:
                has_room, self._has_room = self._has_room, anyio.Event()
                has_room.set()


class AsyncLink:
    """A connection to the daemon that the tasks of one event loop share and that comes back by itself.

    Requests carry an idempotency key where a repetition would matter, so they are sent again after a lost connection or a
    momentary refusal, with the effect of one. To be used as ``async with AsyncLink() as link``: its reading task belongs to
    that block.

    Args:
        socket_path: The daemon's socket; otherwise ``IFBUS_FD``, ``IFBUS_SOCKET``, the user's, the system's.
        timeout: Seconds of patience with a call that names none, reconnecting included.
        on_attention: Called with each item that the daemon wants heard (cancel, lease lost, budget low, ...), in the task
            whose call brought it, before that call returns. Without it, items wait in `attention`.

    Raises:
        InvalidParams: ``IFBUS_FD`` cannot be read, or the timeout is no span. No connection is made before the block is entered.
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
        self._group: anyio.abc.TaskGroup | None = None
        self._opening: anyio.Lock | None = None
        self._session: _Session | None = None
        self._was_connected = False
        self._is_closed = False
        self._hello: dict[str, Any] = {}
        self._key_prefix = os.urandom(8).hex()
        self._key_numbers = itertools.count(1)

    # --- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("a client is entered once; make another one")
        self._opening = anyio.Lock()
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        try:
            await self.connect()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._group is not None
        self._end()
        self._group.cancel_scope.cancel()
        # Not given the block's exception: that is not the group's, and would come out wrapped.
        await self._group.__aexit__(None, None, None)

    async def connect(self) -> dict[str, Any]:
        """Connect now, if the connection was lost; what the daemon says of itself.

        Raises:
            NoDaemon: One of its four causes, with the remedy.
            VersionMismatch: Client and daemon have no protocol version in common.
        """
        await self._live_session(self._timeout_s)
        return self._hello

    async def close(self) -> None:
        """End the connection; calls under way in other tasks fail, subscriptions end. Twice is fine."""
        session = self._session
        self._end()
        if session is not None:
            await session.ended.wait()

    def _end(self) -> None:
        self._is_closed = True
        for feed in list(self._routes.feeds):
            feed.close()
        if self._session is not None:
            self._session.end(closed())

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
        taken = tuple(self._routes.attention)
        self._routes.attention.clear()
        return taken

    # --- calls -----------------------------------------------------------------------------------

    async def call(
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
        return await self.perform(Call(method, list(args) if args else params, untyped, options))

    def new_key(self) -> str:
        """An idempotency key that nobody else uses. Keys of one moment are neighbours, so that a daemon's commit touches few pages."""
        return f"{time.time_ns() // 1_000_000:011x}-{self._key_prefix}-{next(self._key_numbers):x}"

    async def perform(self, call: Call[R], *, guard: Callable[[], None] | None = None) -> R:
        """Make a call as often as needed within its time; the answer as `call.read` reads it. Raises as `call`.

        Cancelled, it may have been done. In step with `Link.perform`.

        Args:
            guard: Called before each repetition; what it raises ends the call.
        """
        if call.options:
            check_options(call.method, call.options)
        asked_s, key = call.options.get("timeout"), call.options.get("idempotency_key")
        patience_s = call.wait_s + (self._timeout_s if asked_s is None else asked_s + GRACE_S)
        if key is None and call.method not in KEYLESS:
            key = self.new_key()
        started = time.monotonic()
        left_s, attempt, answer = patience_s, 0, None
        while True:
            try:
                session = self._session
                if session is None or session.failure is not None:
                    session = await self._live_session(left_s, guard)
                waited_s = patience_s - left_s
                params, meta = to_wire(call, key=key, asked_timeout_s=None if asked_s is None else asked_s - waited_s)
                answer = await session.ask(call.method, params, meta, left_s)
                break
            except (Momentary, ConnectionFailed) as error:
                await self._pause_before_next_try(error, attempt, started + patience_s - time.monotonic())
                if guard is not None:
                    guard()
                left_s = started + patience_s - time.monotonic()
                if left_s <= 0:
                    raise
                attempt += 1
        if self._routes.has_unheard:
            self._tell_attention()
        return read_answer(call, answer)

    async def hand_over(self, pidfd: int) -> None:
        """As `Link.hand_over`."""
        await (await self._live_session(self._timeout_s)).hand_over(pidfd, self._timeout_s)

    async def _pause_before_next_try(self, error: IfbusError, attempt: int, left_s: float) -> None:
        """Wait as long as is right after `error`; raises it where there is no next try."""
        wait_s = None
        if not self._is_closed:
            was_connected = self._was_connected and self._inherited is None
            wait_s = next_try(error, attempt, random.random(), left_s=left_s, was_connected=was_connected)
        if wait_s is None:
            raise error
        await anyio.sleep(wait_s)

    def _tell_attention(self) -> None:
        self._routes.has_unheard = False
        if self._on_attention is not None:
            for item in self.take_attention():
                self._on_attention(item)

    # --- connections -----------------------------------------------------------------------------

    async def _live_session(self, timeout_s: float, guard: Callable[[], None] | None = None) -> _Session:
        if self._opening is None:
            raise RuntimeError("a client's tasks belong to a block: `async with ifbus.AsyncClient() as bus`")
        with anyio.move_on_after(timeout_s):  # another task may try to connect, and have longer
            async with self._opening:
                if self._is_closed:
                    raise closed()
                if guard is not None:
                    guard()  # another task may have tried to connect for long
                session = self._session
                if session is not None and session.failure is None:
                    return session
                if session is not None:
                    await session.ended.wait()
                    if self._inherited is not None:
                        raise session.failure or closed()
                self._session = session = await self._dial(timeout_s)
                self._was_connected = True
                return session
        raise no_connection(timeout_s)

    async def _dial(self, timeout_s: float) -> _Session:
        assert self._group is not None  # `_live_session` looks
        stream: AsyncStream
        # In a thread: the first waits while the daemon's backlog is full, the second until it is our turn.
        if self._inherited is not None:
            parts = self._inherited
            stream = AsyncInheritedStream(
                await anyio.to_thread.run_sync(lambda: InheritedStream(parts, turn_timeout_s=timeout_s))
            )
        else:
            stream = AsyncSocketStream(await anyio.to_thread.run_sync(connect, self._paths))
        session = _Session(stream, self._routes)

        async def ask(call: Call[Any]) -> Any:
            return await session.ask(call.method, *to_wire(call, key=None, asked_timeout_s=None), timeout_s)

        try:
            await self._group.start(session.run)
            self._hello = await drive_async(greet(self._routes, VERSION), ask)
        except BaseException:
            session.end(closed())
            if not session.is_running:
                stream.close()
            raise
        return session

    # --- subscriptions ---------------------------------------------------------------------------

    async def subscribe(self, feed: Feed, read: Callable[[dict[str, Any]], T]) -> AsyncSubscription[T]:
        """Start a subscription; it goes on over reconnects until it is closed."""
        try:
            await self._start_feed(feed)
        except BaseException:
            self._forget_feed(feed)
            raise
        return AsyncSubscription(self, feed, read)

    async def _start_feed(self, feed: Feed) -> None:
        # Not by `perform`: a connection made anew subscribes by itself, and a second time would bring everything twice.
        attempt, deadline = 0, time.monotonic() + self._timeout_s
        while True:
            try:
                if feed not in self._routes.feeds:
                    self._routes.feeds.append(feed)
                    feed.connection = self._routes.connections
                    session = self._session
                    if session is not None and session.failure is None:
                        call = feed.subscribe
                        await session.ask(call.method, *to_wire(call, key=None, asked_timeout_s=None), self._timeout_s)
                        return
                await self._live_session(self._timeout_s)
                if feed.error is not None:
                    raise feed.error
                return
            except (Momentary, ConnectionFailed) as error:
                if feed in self._routes.feeds:
                    self._routes.feeds.remove(feed)
                await self._pause_before_next_try(error, attempt, deadline - time.monotonic())
                attempt += 1

    async def _next_message(self, feed: Feed, timeout_s: float | None) -> dict[str, Any] | None:
        """The subscription's next message; None once it is closed. In step with `Link._next_message`."""
        await anyio.lowlevel.checkpoint()
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
                await self._refill(feed)
                continue
            session = self._session
            if session is None or session.failure is not None:
                await self.perform(Call("daemon.ping", {}, untyped))
                continue
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise DeadlineExceeded(
                    f"no message in {timeout_s:g} s", data={"timeout_ms": int((timeout_s or 0) * 1000)}
                )
            waiter, woken = Waiter(), anyio.Event()
            waiter.wake = woken.set
            feed.waiter = waiter
            with anyio.move_on_after(left_s):
                await woken.wait()
            if self._routes.has_unheard:
                self._tell_attention()

    async def _refill(self, feed: Feed) -> None:
        # First the mark, then the reading: what arrives from now on is queued again, and `take` drops what comes twice.
        feed.has_overflowed = False
        page = await self.perform(feed.refill)
        for message in page["messages"]:
            feed.put(message)
        if page["has_more"]:
            feed.has_overflowed = True

    def _forget_feed(self, feed: Feed) -> None:
        feed.close()
        if feed in self._routes.feeds:
            self._routes.feeds.remove(feed)


class AsyncSubscription(Generic[T]):
    """Messages as they come, for one task: ``async for``, or `receive` with a timeout. Ends when it or its client is closed.

    It resumes after a reconnect: an inbox where it stood, nothing lost; others from then on.
    """

    def __init__(self, link: AsyncLink, feed: Feed, read: Callable[[dict[str, Any]], T]) -> None:
        self._link = link
        self._feed = feed
        self._read = read

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        message = await self._link._next_message(self._feed, None)
        if message is None:
            raise StopAsyncIteration
        return self._read(message)

    async def receive(self, timeout: float | None = None) -> T | None:
        """The next message, or None once it is closed. Cancelled, none is lost.

        Args:
            timeout: Seconds to wait; None waits as long as it takes.

        Raises:
            DeadlineExceeded: None came in time.
            NoDaemon, ConnectionFailed: The daemon is gone and did not come back within the client's patience.
        """
        check_timeout("receive", timeout)
        message = await self._link._next_message(self._feed, timeout)
        return None if message is None else self._read(message)

    @property
    def dropped(self) -> int:
        """Messages that were lost because nobody took them in time; an inbox reads them again, so there it is no loss."""
        return 0 if self._feed.is_durable else self._feed.dropped

    async def close(self) -> None:
        """Take no more; a task that waits in it comes back."""
        self._link._forget_feed(self._feed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

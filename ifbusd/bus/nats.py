"""Hints between hosts over NATS: "the store has come to revision N". All that it carries, and nothing acts on it unread.

nats-py runs on asyncio, in this thread, through trio-asyncio. Only the newest revision is ever waiting to be sent: whoever
has heard of it need not hear of those before. So neither a server that is away nor one that takes nothing makes anything grow or wait
(ADR 0019). The settings follow from how nats-py behaves: without them it gives up after two minutes, and takes four to notice a
server that has stopped.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from ifbusd.bus.config import NatsConfig, secrets_of, unreadable
from ifbusd.credentials import credential_path

if TYPE_CHECKING:
    import asyncio
    import ssl

    from nats.aio.client import Client
    from nats.aio.msg import Msg

_log = logging.getLogger(__name__)

# A revision has at most 63 bits; etcd counts from 1.
MAX_HINT_BYTES: Final = 19
MAX_REVISION: Final = 2**63 - 1
# What nats-py may queue for us before it drops: hints are worth nothing when they are old.
_QUEUED_HINTS: Final = 256
_QUEUED_BYTES: Final = 64 << 10
_RECONNECT_S: Final = 0.25
_PING_S: Final = 2
_PINGS: Final = 2
# A connection that nats-py has closed for good is made anew after this.
_ANEW_S: Final = 1.0
_CLOSE_S: Final = 0.5
_SEND_S: Final = 1.0
_DEAF_S: Final = 1.0
# Of one kind of trouble: a server that is away is tried four times a second.
_LOG_EVERY_S: Final = 60.0
# A restart takes less.
_AWAY_MS: Final = 5_000


class NatsHints:
    """`ifbusd.bus.base.Hints`. Start `run` first; until then, and whenever NATS is away, nothing is sent.

    The mutable state is the newest revision that was not told yet, the connection, and the figures.

    Args:
        on_hint: Called in the loop's thread with each revision that another host claims; it must not block or raise.
    """

    def __init__(self, config: NatsConfig, *, name: str, on_hint: Callable[[int], None]) -> None:
        self._config = config
        self._name = name
        self._on_hint = on_hint
        self._subject = f"{config.subject_prefix}.revision"
        self._newest = 0
        self._told = 0
        self._wake: asyncio.Event | None = None
        self._client: Client | None = None
        self._heard_in_s = (0, 0)  # the second, and how many in it
        self._is_flooded: asyncio.Event | None = None
        self._logged_at_s: dict[str, float] = {}
        self._since_s = time.monotonic()
        self._was_connected = False
        self._trouble = ""  # the last one since it was connected
        self.sent = self.heard = self.malformed = self.floods = self.errors = self.connects = 0

    def tell(self, revision: int) -> None:
        """See `base.Hints`."""
        if revision > self._newest:
            self._newest = revision
            if self._wake is not None:
                self._wake.set()

    def statistics(self) -> dict[str, Any]:
        """Whether it is connected, to whom and since when, and what came and went."""
        client = self._client
        is_connected = client is not None and client.is_connected
        return {
            "backend": "nats",
            "connected": is_connected,
            "server": client.connected_url.netloc if client is not None and client.connected_url else "",
            "for_ms": int((time.monotonic() - self._since_s) * 1000),
            "connects": self.connects,
            "sent": self.sent,
            "heard": self.heard,
            "malformed": self.malformed,
            "floods": self.floods,
            "errors": self.errors,
            "pending_bytes": 0 if client is None else client.pending_data_size,
        }

    def alarms(self) -> list[dict[str, Any]]:
        """What an operator should look at, as `daemon.status` shows it."""
        shown = self.statistics()
        if shown["connected"] or shown["for_ms"] < _AWAY_MS:
            return []
        why = f" ({self._trouble})" if self._trouble else ""
        message = f"NATS has been away for {shown['for_ms'] // 1000} s{why}; what is new comes through etcd alone"
        remedy = f"start {' or '.join(self._config.servers)[:200]}"
        if "authorization" in self._trouble.lower():
            remedy = "let in whom bus.nats.credentials_file names, then restart this daemon if that file was changed"
        return [{"kind": "nats_away", "message": message, "remedy": remedy}]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send and hear until cancelled; ready once connected, or without NATS after `connect_ms`.

        Raises:
            ConfigInvalid: The credentials or certificates cannot be read.
        """
        import trio_asyncio

        secrets, tls = secrets_of(self._config), _tls_of(self._config)
        connected = trio.Event()

        async def get_ready() -> None:
            with trio.move_on_after(self._config.connect_ms / 1000) as scope:
                await connected.wait()
            if scope.cancelled_caught:
                _log.warning("starting without NATS", extra={"servers": list(self._config.servers)})
            task_status.started()

        async with trio.open_nursery() as nursery, trio_asyncio.open_loop() as loop:
            loop.set_exception_handler(lambda _, about: self._note("asyncio", about.get("exception") or about))
            nursery.start_soon(get_ready)
            await trio_asyncio.aio_as_trio(self._stay_connected)(connected.set, secrets, tls)

    # --- in asyncio ----------------------------------------------------------------------------------

    async def _stay_connected(
        self, on_connected: Callable[[], None], secrets: dict[str, Any], tls: ssl.SSLContext | None
    ) -> None:
        import asyncio

        from nats.aio.client import Client
        from nats.errors import Error

        self._wake, self._is_flooded = asyncio.Event(), asyncio.Event()
        while True:
            client, closed = Client(), asyncio.Event()

            async def on_error(error: Exception) -> None:
                self._note("nats", error)

            async def on_connection() -> None:
                self._note_connected()

            async def on_disconnection() -> None:
                self._note_disconnected()

            async def on_end(closed: asyncio.Event = closed) -> None:
                closed.set()

            try:
                await client.connect(
                    list(self._config.servers),
                    name=self._name,
                    error_cb=on_error,
                    reconnected_cb=on_connection,
                    disconnected_cb=on_disconnection,
                    closed_cb=on_end,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=_RECONNECT_S,  # type: ignore[arg-type]  # annotated as int, slept as given
                    ping_interval=_PING_S,
                    max_outstanding_pings=_PINGS,
                    pending_size=self._config.pending_bytes,
                    flush_timeout=_SEND_S,
                    no_echo=True,
                    tls=tls,
                    **secrets,
                )
                self._client = client
                self._note_connected()
                on_connected()
                listening = asyncio.ensure_future(self._listen(client))
                sending = asyncio.ensure_future(self._send(client))
                ending = asyncio.ensure_future(closed.wait())
                try:
                    await asyncio.wait([listening, sending, ending], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (listening, sending, ending):
                        task.cancel()
                    found = await asyncio.gather(listening, sending, ending, return_exceptions=True)
                for outcome in found:
                    if isinstance(outcome, Exception):
                        self._note("nats", outcome)
            except (Error, OSError) as error:
                self._note("nats", error)
            finally:
                self._client, self._was_connected = None, False
                try:
                    await asyncio.wait_for(client.close(), _CLOSE_S)
                except (Error, OSError) as error:
                    self._note("nats", error)
            await asyncio.sleep(_ANEW_S)

    async def _send(self, client: Client) -> None:
        """Tell the newest revision whenever there is a newer one, until cancelled."""
        import asyncio

        from nats.errors import Error

        assert self._wake is not None
        while True:
            await self._wake.wait()
            self._wake.clear()
            if client.is_connected and self._newest > self._told:
                revision = self._newest
                try:
                    await asyncio.wait_for(client.publish(self._subject, b"%d" % revision), _SEND_S)
                except (Error, OSError) as error:
                    self._note("nats", error)  # the next one says as much
                else:
                    self._told = revision
                    self.sent += 1
            await asyncio.sleep(self._config.hint_interval_ms / 1000)

    async def _listen(self, client: Client) -> None:
        """Hear the others until cancelled; while there are too many of them, nobody."""
        import asyncio

        assert self._is_flooded is not None
        while True:
            self._is_flooded.clear()
            listening = await client.subscribe(
                self._subject, cb=self._hear, pending_msgs_limit=_QUEUED_HINTS, pending_bytes_limit=_QUEUED_BYTES
            )
            await self._is_flooded.wait()
            self.floods += 1
            self._note("flood", f"more than {self._config.hints_per_s} hints in a second")
            await listening.unsubscribe()
            await asyncio.sleep(_DEAF_S)

    async def _hear(self, message: Msg) -> None:
        second, heard = int(time.monotonic()), 1
        if second == self._heard_in_s[0]:
            heard += self._heard_in_s[1]
        self._heard_in_s = (second, heard)
        if heard > self._config.hints_per_s:
            if self._is_flooded is not None:
                self._is_flooded.set()
            return
        revision = read_hint(message.data)
        if revision is None:
            self.malformed += 1
            self._note("malformed", f"{len(message.data)} bytes that are no hint")
            return
        self.heard += 1
        self._on_hint(revision)

    # --- figures and the log -------------------------------------------------------------------------

    def _note_connected(self) -> None:
        self.connects += 1
        self._since_s = time.monotonic()
        self._was_connected = True
        self._trouble = ""
        self._told = 0  # somebody may have missed it
        if self._wake is not None:
            self._wake.set()
        _log.info("connected to NATS", extra={"subject": self._subject})

    def _note_disconnected(self) -> None:
        if self._was_connected:  # nats-py says it also of what it never reached
            self._was_connected = False
            self._since_s = time.monotonic()
            _log.warning("lost NATS; what is new comes through the store's watch")

    def _note(self, kind: str, what: object) -> None:
        """Count a trouble; on the log now and then, with what has come together."""
        if kind in ("nats", "asyncio"):
            self.errors += 1
        if kind == "nats":
            self._trouble = f"{what!s:.120}"
        now_s = time.monotonic()
        if now_s - self._logged_at_s.get(kind, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged_at_s[kind] = now_s
            _log.warning("trouble with NATS", extra={"kind": kind, "what": f"{what!r:.200}", **self.statistics()})


def read_hint(data: bytes) -> int | None:
    """The revision that a message says, None if it is no hint. Anybody on the network may have sent it."""
    if not 0 < len(data) <= MAX_HINT_BYTES or not data.isdigit():
        return None
    revision = int(data)
    return revision if 0 < revision <= MAX_REVISION else None


def _tls_of(config: NatsConfig) -> ssl.SSLContext | None:
    if not config.has_tls:
        return None
    import ssl

    ca, cert, key = (credential_path(name, os.environ) for name in (config.ca_file, config.cert_file, config.key_file))
    try:
        context = ssl.create_default_context(cafile=ca if config.ca_file else None)
    except OSError as error:
        raise unreadable("ca_file", ca, error) from error
    if config.cert_file:
        try:
            context.load_cert_chain(cert, key)
        except OSError as error:
            raise unreadable("cert_file or key_file", cert, error) from error
    return context

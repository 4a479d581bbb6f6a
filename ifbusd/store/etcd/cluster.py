"""The way to etcd: a channel to each member, which one is used, whether it answers; calls and streams from trio (ADR 0020).

gRPC works in threads of its own. A call is started with `future` and wakes its trio task from gRPC's thread, without a thread of
ours; a stream has one reader thread. One member is used at a time; when it fails, calls fail at once until a probe has found
one that answers.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import attrs
import grpc
import trio
from etcd3 import etcdrpc

from ifbus.errors import ConfigInvalid, Unavailable
from ifbusd.credentials import credential_path
from ifbusd.store.etcd.config import EtcdConfig
from ifbusd.store.etcd.faults import EtcdFault, Kind, error_of, fault_of

_log = logging.getLogger(__name__)

# Measured on 3.4 and 3.5: with gRPC's own 120 s a member that was away for 45 s is not tried for 22 s more; a keepalive below
# 10 s makes etcd hang up.
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.enable_retries", 0),  # a retry is decided by who knows what was asked
    ("grpc.use_local_subchannel_pool", 1),
    # A watch that goes on after an outage gets a thousand revisions in one message.
    ("grpc.max_receive_message_length", 128 * 1024 * 1024),
    ("grpc.max_send_message_length", 8 * 1024 * 1024),
)
# Below these, faults of etcd itself reach us: stale linearizable reads and nested transactions past access control (FACTS 5).
_SAFE_VERSIONS: Final = {(3, 5): 30, (3, 6): 11}
_SURVEY_INTERVAL_S: Final = 5.0
# Answers of a stream that wait for their reader; more wait in gRPC, which then stops etcd.
_STREAM_ROOM: Final = 64


def version_warning(version: str) -> str:
    """What is wrong with running on this version of etcd, ``""`` if nothing is."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    if len(numbers) < 3:
        return f"etcd's version {version!r:.40} cannot be read"
    line, patch = (numbers[0], numbers[1]), numbers[2]
    if line > max(_SAFE_VERSIONS) or patch >= _SAFE_VERSIONS.get(line, 1 << 31):
        return ""
    return f"etcd {version} has faults that break promises of ifbusd: use 3.5.30, 3.6.11 or later"


@attrs.define(kw_only=True)
class EndpointHealth:
    """What is known of a member.

    Attributes:
        reachable: It answered the last question.
        version, is_leader, database_bytes: As it says.
        latency_ms: How long that took.
    """

    endpoint: str
    reachable: bool = False
    in_use: bool = False
    version: str = ""
    is_leader: bool = False
    database_bytes: int = 0
    latency_ms: float = 0.0
    error: str = ""


class _Link:
    """A member: its channel, its methods, its streams."""

    def __init__(self, target: str, config: EtcdConfig, credentials: grpc.ChannelCredentials | None) -> None:
        self.target = target
        if credentials is None:
            self.channel = grpc.insecure_channel(target, options=_OPTIONS)
        else:
            self.channel = grpc.secure_channel(target, credentials, options=_OPTIONS)
        kv, lease = etcdrpc.KVStub(self.channel), etcdrpc.LeaseStub(self.channel)
        maintenance = etcdrpc.MaintenanceStub(self.channel)
        self.methods: dict[str, Any] = {
            "Range": kv.Range,
            "Txn": kv.Txn,
            "LeaseGrant": lease.LeaseGrant,
            "LeaseRevoke": lease.LeaseRevoke,
            "LeaseTimeToLive": lease.LeaseTimeToLive,
            "LeaseKeepAlive": lease.LeaseKeepAlive,
            "Watch": etcdrpc.WatchStub(self.channel).Watch,
            "Status": maintenance.Status,
            "Alarm": maintenance.Alarm,
            "Authenticate": etcdrpc.AuthStub(self.channel).Authenticate,
        }
        self.streams: set[Stream] = set()
        self.health = EndpointHealth(endpoint=target)


class Stream:
    """A bidirectional call: `send` what is asked, `receive` what comes."""

    def __init__(self, method: Any, metadata: Sequence[tuple[str, str]]) -> None:
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._items: deque[Any] = deque()
        self._arrived = trio.lowlevel.ParkingLot()
        self._room = threading.BoundedSemaphore(_STREAM_ROOM)
        self._is_closed = False
        self._token = trio.lowlevel.current_trio_token()
        self._call = method(iter(self._outgoing.get, None), metadata=metadata)

    def send(self, request: Any) -> None:
        """Ask; never waits."""
        self._outgoing.put(request)

    async def receive(self) -> Any:
        """The next answer. Cancelling loses none.

        Raises:
            EtcdFault: The stream has ended.
        """
        while not self._items:
            await self._arrived.park()
        item = self._items[0]
        if isinstance(item, EtcdFault):
            raise item
        with suppress(ValueError):  # closing has made room already
            self._room.release()
        return self._items.popleft()

    def read(self) -> None:
        """In a thread of its own: hand on what comes, until the end."""
        end = EtcdFault(Kind.OUTAGE, "the stream has ended", may_be_done=True)
        try:
            for response in self._call:
                self._room.acquire()
                if self._is_closed:
                    break  # whoever waits for more hears of the end
                self._post(response)
        except grpc.RpcError as error:
            end = fault_of(error)
        self._post(end)

    def close(self) -> None:
        """End it; twice is fine."""
        self._is_closed = True
        self._call.cancel()
        self._outgoing.put(None)
        with suppress(ValueError):  # nobody waits for room
            self._room.release()

    def _post(self, item: Any) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._take, item)

    def _take(self, item: Any) -> None:
        self._items.append(item)
        self._arrived.unpark_all()


class Cluster:
    """All members. The mutable state: which is used, why none can be, and what is known of each."""

    def __init__(self, config: EtcdConfig) -> None:
        """Make the channels; nothing is sent yet.

        Raises:
            ConfigInvalid: A file of the configuration cannot be read; the message names it and its key.
        """
        self._config = config
        self._timeout_s = config.request_timeout_ms / 1000
        self._password = (
            _read_file(config.password_file, "password_file").decode().rstrip("\r\n") if config.user else ""
        )
        credentials = _credentials(config) if config.is_encrypted else None
        self._links = [_Link(target, config, credentials) for target in config.targets]
        self._current = self._links[0]
        self._token = ""
        self._authenticating = trio.Lock()
        self._down = "it was not asked yet"
        self._down_since = time.monotonic()
        self._up = trio.lowlevel.ParkingLot()
        self._wake = trio.Event()
        self._warned: set[str] = set()
        self.alarms: list[str] = []
        self.outages = 0
        self.failovers = 0

    @property
    def is_up(self) -> bool:
        """Whether calls are tried."""
        return not self._down

    @property
    def down_reason(self) -> str:
        """Why etcd does not answer, ``""`` if it does."""
        return self._down

    @property
    def down_ms(self) -> int:
        """How long it has not answered."""
        return round((time.monotonic() - self._down_since) * 1000) if self._down else 0

    def health(self) -> list[EndpointHealth]:
        """What is known of each member."""
        return [attrs.evolve(link.health, in_use=link is self._current and self.is_up) for link in self._links]

    async def until_up(self) -> None:
        """Return once etcd answers."""
        while self._down:
            await self._up.park()

    # --- calls ---------------------------------------------------------------------------------------

    async def call(self, method: str, request: Any) -> Any:
        """One request to the member in use, with the configured deadline.

        Cancelled, a write may have been done.

        Raises:
            EtcdFault: It failed, or etcd is known not to answer: then at once.
        """
        if self._down:
            raise EtcdFault(Kind.OUTAGE, self._down)
        link, token = self._current, self._token
        try:
            return await self._unary(link, method, request)
        except EtcdFault as fault:
            if fault.kind is Kind.TOKEN and self._config.user:
                # Refused before it was looked at, so asking again does nothing twice.
                await self._authenticate(link, token)
                return await self._unary(link, method, request)
            if fault.kind is Kind.OUTAGE:
                self._suspect(link, fault.detail)
            raise

    async def read_page(self, start: bytes, end: bytes, limit: int, *, revision: int) -> Any:
        """A page of at most `limit` keys; of fewer where so many are too large for one answer."""
        while True:
            request = etcdrpc.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)
            try:
                return await self.call("Range", request)
            except EtcdFault as fault:
                if fault.kind is not Kind.ANSWER_TOO_LARGE or limit == 1:
                    raise
                limit = max(1, limit // 4)

    async def _unary(self, link: _Link, method: str, request: Any, *, with_token: bool = True) -> Any:
        done = trio.Event()
        wake = trio.lowlevel.current_trio_token().run_sync_soon

        def tell(_: object) -> None:
            with suppress(trio.RunFinishedError):  # nobody waits any more
                wake(done.set)

        metadata = self._metadata() if with_token else []
        future = link.methods[method].future(request, timeout=self._timeout_s, metadata=metadata)
        try:
            future.add_done_callback(tell)
            await done.wait()
            return future.result()
        except grpc.FutureCancelledError as error:
            raise EtcdFault(Kind.OUTAGE, "the channel was closed", may_be_done=True) from error
        except grpc.RpcError as error:
            raise fault_of(error) from error
        finally:
            future.cancel()

    @asynccontextmanager
    async def stream(self, method: str) -> AsyncIterator[Stream]:
        """A stream to the member in use; it ends when another is taken."""
        link = self._current
        # A member that has lost the others would stay silent: so it hangs up.
        stream = Stream(link.methods[method], [*self._metadata(), ("hasleader", "true")])
        link.streams.add(stream)
        # A thread by itself: it ends when the stream is closed, and nobody has to wait for it.
        threading.Thread(target=stream.read, name=f"etcd {method}", daemon=True).start()
        try:
            yield stream
        finally:
            stream.close()
            link.streams.discard(stream)

    def suspect(self, detail: str) -> None:
        """Something else than a call shows that the member in use does not answer."""
        self._suspect(self._current, detail)

    def _metadata(self) -> list[tuple[str, str]]:
        return [("token", self._token)] if self._token else []

    async def _authenticate(self, link: _Link, former: str) -> None:
        """Ask for a token in the place of a former one; until it is there, others ask with that and are refused for it."""
        async with self._authenticating:
            if self._token == former:  # nobody was faster
                request = etcdrpc.AuthenticateRequest(name=self._config.user, password=self._password)
                self._token = (await self._unary(link, "Authenticate", request, with_token=False)).token

    # --- health --------------------------------------------------------------------------------------

    def _suspect(self, link: _Link, detail: str) -> None:
        if link is not self._current or self._down:
            return
        self._down, self._down_since = detail, time.monotonic()
        self.outages += 1
        _log.warning("etcd does not answer", extra={"endpoint": link.target, "error": detail})
        self._wake.set()

    async def connect(self) -> None:
        """Return once a member answers, with the others behind it.

        Raises:
            Unavailable: None did within the configured time.
        """
        self._down = f"no answer within {self._config.start_timeout_ms} ms"
        with trio.move_on_after(self._config.start_timeout_ms / 1000):
            while True:
                if await self._find():
                    break
                await trio.sleep(self._config.probe_interval_ms / 1000)
        if self._down:
            raise Unavailable(
                f"cannot use etcd at {', '.join(link.target for link in self._links)}: {self._down}",
                data={"reason": "store_unreachable"},
            )
        await self._survey_all()

    async def run(self) -> None:
        """Look after the members until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._survey)
            while True:
                with trio.move_on_after(self._config.probe_interval_ms / 1000):
                    await self._wake.wait()
                self._wake = trio.Event()
                if self._down:
                    await self._find()
                else:
                    await self._check()

    def close(self) -> None:
        """Give the channels up."""
        for link in self._links:
            for stream in list(link.streams):
                stream.close()
            link.channel.close()

    async def _check(self) -> None:
        link = self._current
        try:
            await self._probe(link)
        except EtcdFault as fault:
            self._suspect(link, fault.detail)

    async def _probe(self, link: _Link) -> None:
        """Ask for something that only a member with a majority behind it can answer."""
        if self._config.user and not self._token:
            await self._authenticate(link, "")
        started = time.perf_counter()
        request = etcdrpc.RangeRequest(key=f"{self._config.prefix}probe".encode(), count_only=True)
        try:
            token = self._token
            try:
                await self._unary(link, "Range", request)
            except EtcdFault as fault:
                if fault.kind is not Kind.TOKEN or not self._config.user:
                    raise
                await self._authenticate(link, token)  # the old one's time was over
                await self._unary(link, "Range", request)
        except EtcdFault as fault:
            link.health.reachable, link.health.error = False, fault.detail
            raise
        link.health.reachable, link.health.error = True, ""
        link.health.latency_ms = round((time.perf_counter() - started) * 1000, 3)

    async def _find(self) -> bool:
        """Take the first member that answers; whether there is one."""
        found: list[_Link] = []
        errors: dict[str, str] = {}

        async def ask(link: _Link, scope: trio.CancelScope) -> None:
            try:
                await self._probe(link)
            except EtcdFault as fault:
                errors[link.target] = fault.detail
            else:
                found.append(link)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for link in self._links:
                nursery.start_soon(ask, link, nursery.cancel_scope)
        if not found:
            self._down = "; ".join(f"{target}: {error}" for target, error in errors.items()) or self._down
            return False
        before, self._current = self._current, found[0]
        if before is not self._current:
            self.failovers += 1
            for stream in list(before.streams):
                stream.close()
        if self.outages:
            _log.info("etcd answers", extra={"endpoint": self._current.target, "after_ms": self.down_ms})
        self._down = ""
        self._up.unpark_all()
        return True

    async def _survey(self) -> None:
        while True:
            await trio.sleep(_SURVEY_INTERVAL_S)
            await self._survey_all()

    async def _survey_all(self) -> None:
        """Bring what is known of the members up to date, for the status; and warn of what cannot be relied on."""
        async with trio.open_nursery() as nursery:
            for link in self._links:
                nursery.start_soon(self._survey_one, link)
            nursery.start_soon(self._ask_alarms)

    async def _survey_one(self, link: _Link) -> None:
        health, started = link.health, time.perf_counter()
        try:
            status = await self._unary(link, "Status", etcdrpc.StatusRequest())
        except EtcdFault as fault:
            health.reachable, health.error = False, fault.detail
            return
        health.reachable, health.error = True, ""
        health.latency_ms = round((time.perf_counter() - started) * 1000, 3)
        health.version, health.database_bytes = status.version, status.dbSize
        health.is_leader = status.leader != 0 and status.leader == status.header.member_id
        warning = version_warning(status.version)
        if warning and warning not in self._warned:
            self._warned.add(warning)
            _log.warning(warning, extra={"endpoint": link.target})

    async def _ask_alarms(self) -> None:
        request = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
        with suppress(EtcdFault):  # an outage is seen elsewhere
            answer = await self._unary(self._current, "Alarm", request)
            alarms = sorted({etcdrpc.AlarmType.Name(member.alarm).lower() for member in answer.alarms})
            for alarm in set(alarms) - set(self.alarms):
                _log.error("etcd raises an alarm", extra={"alarm": alarm})
            self.alarms = alarms

    def warnings(self) -> list[str]:
        """What an operator should know of the members' versions."""
        return sorted({version_warning(link.health.version) for link in self._links if link.health.version} - {""})

    def unavailable(self, fault: EtcdFault, what: str) -> Exception:
        """The error that a caller of the store gets for a fault."""
        return error_of(fault, what, retry_after_ms=self._config.probe_interval_ms)


def _read_file(name: str, key: str) -> bytes:
    path = credential_path(name, os.environ)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(
            f"store.etcd.{key}: cannot read {path}: {error.strerror}", data={"key": f"store.etcd.{key}"}
        ) from error


def _credentials(config: EtcdConfig) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_read_file(config.ca_file, "ca_file") if config.ca_file else None,
        private_key=_read_file(config.key_file, "key_file") if config.key_file else None,
        certificate_chain=_read_file(config.cert_file, "cert_file") if config.cert_file else None,
    )

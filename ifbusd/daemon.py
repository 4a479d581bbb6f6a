"""The composition root: builds the components, wires them, starts and stops them in order. Nothing else happens here.

Start: state directory, store, governor, coordinator, chassis, wire; each is ready before the next begins, and clients get in last.
Stop: the other way round, so that nothing loses what it stands on while a request is under way.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from ifbus.errors import ConfigInvalid, Unavailable
from ifbus.version import VERSION
from ifbusd.bus.local import LocalBus
from ifbusd.chassis.launch import Launched
from ifbusd.chassis.service import IFChassis
from ifbusd.codec import pack
from ifbusd.config import Config
from ifbusd.coordinator.holder import Claims
from ifbusd.coordinator.model import INBOX
from ifbusd.coordinator.service import IFCoordinator
from ifbusd.governor.service import IFGovernor
from ifbusd.identity import ITSELF
from ifbusd.latency import LatencyWindow
from ifbusd.news import News
from ifbusd.operation import Operations
from ifbusd.optimise.service import IFOptimise
from ifbusd.peers import Peers
from ifbusd.rpc.attention import Attention
from ifbusd.rpc.daemon_methods import DaemonMethods
from ifbusd.rpc.describe import describe
from ifbusd.rpc.descriptors import make_room
from ifbusd.rpc.listener import open_listener, remove_socket
from ifbusd.rpc.methods import method_table
from ifbusd.rpc.server import Server
from ifbusd.sdnotify import Notifier
from ifbusd.status import Status
from ifbusd.store.base import Put, Store, Txn
from ifbusd.store.dirlock import lock_directory
from ifbusd.store.embedded import EmbeddedStore
from ifbusd.store.etcd.config import NODE_FILE
from ifbusd.store.fsync import make_directory
from ifbusd.witness.service import IFWitness

if TYPE_CHECKING:
    from ifbusd.bus.nats import NatsHints
    from ifbusd.store.etcd.store import EtcdStore

DATABASE: Final = "ifbusd.db"
# What the daemon measures of itself, by operation; each from its first read to what is durable and told.
_MEASURED: Final = {
    "claim": "coordinator.claim_task",
    "push": "coordinator.push_task_to_swarm",
    "blocker": "coordinator.detect_blocker",
}
# A store or a loop that needs longer than this for one durable write is stuck: then the watchdog is not fed.
_HEALTHY_WRITE_S: Final = 5.0
# Why a write may fail in a daemon that is well.
_LIVING: Final = ("storage_full", "store_unreachable")

Run = Callable[..., Awaitable[None]]


@attrs.frozen(kw_only=True)
class _Others:
    """What carries messages to the other daemons and who they are, None where there are none; the bus's figures and alarms."""

    news: News | None = None
    peers: Peers | None = None
    statistics: Callable[[], dict[str, Any]]
    alarms: Callable[[], list[dict[str, Any]]] = list


@attrs.frozen(kw_only=True)
class Ready:
    """What the daemon can say when it answers: where it listens, and what locks its sandboxes down."""

    socket: str
    state_dir: Path
    sandbox: str


async def serve(
    config: Config,
    *,
    launched: Launched,
    listener: socket.socket | None,
    notifier: Notifier,
    on_ready: Callable[[Ready], None],
) -> None:
    """Run the daemon until SIGTERM or SIGINT; requests under way then have the configured grace.

    Args:
        launched: The zygote, started before anything else so that it gets ready meanwhile.
        listener: An inherited listening socket; without one the configured path is used, and removed at the end.
        on_ready: Called once clients are answered.

    Raises:
        ExceptionGroup: A component failed for good, such as the store's disk.
        IfbusError: It could not start: another daemon has the state directory or the socket, the database is damaged.
    """
    state_dir = config.daemon.state_dir
    make_directory(state_dir)
    # Processes that are watched take descriptors as connections do, and neither may take the other's.
    make_room(config.rpc.connections + config.coordinator.bindings)
    with lock_directory(state_dir):
        async with AsyncExitStack() as stack:
            started_at_ms = now_ms()
            store = _open_store(config, state_dir)
            await _start(stack, store.run)

            bus, claims = LocalBus(), Claims()
            latencies = {kind: LatencyWindow() for kind in (*_MEASURED, "execute")}
            others = await _meet_others(stack, config, store, bus, new_id(), started_at_ms)
            operations = Operations(
                store,
                bus,
                now_ms=now_ms,
                latencies={op: latencies[kind] for kind, op in _MEASURED.items()},
                news=others.news,
            )
            governor = IFGovernor(
                store,
                bus,
                operations,
                claims,
                # Asked only by clients' requests, which come when both are there.
                presence=lambda swarm_ids: coordinator.presence(swarm_ids),
                policy=config.governor,
                now_ms=now_ms,
                new_id=new_id,
                operators=_who(config),
            )
            coordinator = IFCoordinator(
                store=store,
                bus=bus,
                operations=operations,
                governor=governor,
                claims=claims,
                config=config.coordinator,
                now_ms=now_ms,
                new_id=new_id,
                new_secret=secrets.token_urlsafe,
                peers=others.peers,
            )
            chassis = IFChassis(
                config.chassis,
                state_dir,
                store=store,
                operations=operations,
                swarms=governor,
                claims=claims,
                now_ms=now_ms,
                latency=latencies["execute"],
                launched=launched,
            )
            await _start(stack, governor.run)
            await _start(stack, coordinator.run)  # offers tasks by what the governor knows
            await _start(stack, chassis.run)

            attention = Attention(bus, coordinator.attention, swarms_per_connection=config.rpc.swarms_per_connection)
            where = str(config.daemon.socket) if listener is None else _name_of(listener)
            status = Status(
                facts={
                    "build": VERSION,
                    "pid": os.getpid(),
                    "socket": where,
                    "state_dir": str(state_dir),
                    "backend": config.store.backend,
                },
                started_at_ms=started_at_ms,
                now_ms=now_ms,
                snapshots={
                    "store": store.statistics,
                    "bus": others.statistics,
                    "coordinator": coordinator.statistics,
                    "governor": governor.statistics,
                    "chassis": chassis.statistics,
                    "rpc": lambda: server.statistics(),
                },
                latencies=latencies,
                escalations=partial(_open_escalations, governor, store, others),
            )
            table = method_table(
                daemon=DaemonMethods(
                    build=VERSION,
                    pid=os.getpid(),
                    limits=config.rpc,
                    attention=attention,
                    now_ms=now_ms,
                    status=status.answer,
                    describe=describe,
                ),
                coordinator=coordinator,
                governor=governor,
                chassis=chassis,
                witness=IFWitness(store),
                optimise=IFOptimise(store),
                attention=attention,
            )
            server = Server(
                table,
                limits=config.rpc,
                operator_uids=frozenset(config.operators.uids),
                operator_gids=config.operators.gids(),
                witness_refusal=operations.witness_refusal,
                now_ms=now_ms,
            )
            own = None
            if listener is None:
                own = listener = open_listener(
                    config.daemon.socket, mode=config.daemon.socket_mode, gid=config.daemon.socket_gid()
                )
                stack.callback(remove_socket, config.daemon.socket, own)
            # Before anybody hears that we are ready: a stop that comes at once must not be lost.
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with trio.open_nursery() as nursery:
                    async with trio.open_nursery() as serving:
                        await serving.start(server.run, listener)
                        if (interval_s := notifier.watchdog_interval_s()) is not None:
                            nursery.start_soon(_feed_watchdog, notifier, store, interval_s)
                        collect_rarely()
                        on_ready(
                            Ready(
                                socket=where,
                                state_dir=state_dir,
                                sandbox=chassis.layers,
                            )
                        )
                        async for _ in signals:
                            break
                        if config.daemon.drain_ms:
                            # Their two loops look once a tick; then requests have their grace.
                            extra_ms = 2 * config.coordinator.clock_tick_ms + config.daemon.grace_ms
                            notifier.draining("draining", config.daemon.drain_ms + extra_ms)
                            await _drain(coordinator, config.daemon.drain_ms, signals)
                        notifier.stopping()
                        server.stop(grace_ms=config.daemon.grace_ms)
                        # A second signal does not wait for the grace.
                        nursery.start_soon(_stop_at_once, signals, serving.cancel_scope)
                    nursery.cancel_scope.cancel()


async def _drain(coordinator: IFCoordinator, grace_ms: int, signals: Any) -> None:
    """Give out no more work and wait for what is held, at most for the grace; a second signal does not wait for it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_at_once, signals, nursery.cancel_scope)
        await coordinator.drain_to_stop(grace_ms)
        nursery.cancel_scope.cancel()


async def _start(stack: AsyncExitStack, run: Run) -> None:
    """Start a component in a nursery of its own around all that follows: it ends after them, and its failure ends them."""
    nursery = await stack.enter_async_context(trio.open_nursery())
    await nursery.start(run)
    stack.callback(nursery.cancel_scope.cancel)


def _open_store(config: Config, state_dir: Path) -> EmbeddedStore | EtcdStore:
    """The configured store.

    Raises:
        ConfigInvalid: The state directory is another backend's, or a file of the configuration cannot be read.
        StoreFailed: The file in it cannot be used.
    """
    if config.store.backend == "embedded":
        if (state_dir / NODE_FILE).exists():
            raise ConfigInvalid(
                f'cannot start: {state_dir} belongs to a daemon with store.backend = "etcd", and this one has "embedded"',
                data={"key": "store.backend"},
            )
        return EmbeddedStore(state_dir / DATABASE, config=config.store, now_ms=now_ms, boottime_ms=boottime_ms)
    try:
        from ifbusd.store.etcd.store import EtcdStore  # with gRPC, which a single host need not load
    except ImportError as error:
        raise ConfigInvalid(
            f'store.backend = "etcd" needs the package {error.name}: pip install "ifbus[daemon,cluster]"',
            data={"key": "store.backend"},
        ) from error

    return EtcdStore(
        state_dir / DATABASE,
        config=config.store.etcd,
        wal_limit_bytes=2 * config.store.checkpoint_wal_bytes,
        now_ms=now_ms,
        boottime_ms=boottime_ms,
        ordered=(INBOX,),
    )


async def _meet_others(
    stack: AsyncExitStack, config: Config, store: Store, bus: LocalBus, daemon_id: str, started_at_ms: int
) -> _Others:
    """Get to know the daemons that share the store, where it is one that can be shared."""
    if config.store.backend == "embedded":
        return _Others(statistics=lambda: {"backend": "local", **bus.statistics()})
    card = {"host": socket.gethostname(), "build": VERSION, "started_at_ms": started_at_ms}
    peers, news = Peers(store, daemon_id=daemon_id, card=card), News(store, bus, daemon_id=daemon_id)
    await _start(stack, peers.run)
    await _start(stack, news.run)
    nats: NatsHints | None = None
    if config.bus.backend == "nats":
        for package in ("nats", "trio_asyncio"):
            if importlib.util.find_spec(package) is None:
                raise ConfigInvalid(
                    f'bus.backend = "nats" needs the package {package}: pip install "ifbus[daemon,cluster]"',
                    data={"key": "bus.backend"},
                )
        from ifbusd.bus.nats import NatsHints

        nats = NatsHints(config.bus.nats, name=f"ifbusd {daemon_id}", on_hint=news.hear)
        news.use(nats)
        await _start(stack, nats.run)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(news.follow_hints, lambda _: store.sync())
        stack.callback(nursery.cancel_scope.cancel)

    def statistics() -> dict[str, Any]:
        hints = {"backend": "local"} if nats is None else nats.statistics()
        return {**hints, **bus.statistics(), **attrs.asdict(news.statistics()), "daemons": peers.statistics()}

    return _Others(news=news, peers=peers, statistics=statistics, alarms=list if nats is None else nats.alarms)


async def _stop_at_once(signals: Any, scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _feed_watchdog(notifier: Notifier, store: Store, interval_s: float) -> None:
    """Tell the service manager that we live, each time after a durable write and a turn of the loop, and only then.

    A full disk counts as living, and so does a cluster that does not answer: reads and releases go on, and a restart would
    neither make room nor mend a network.
    """
    while True:
        with trio.move_on_after(_HEALTHY_WRITE_S):
            try:
                await store.txn(Txn(then=[Put("daemon/heartbeat", pack(now_ms()))]))
                notifier.alive()
            except Unavailable as error:
                if error.data.get("reason") in _LIVING:
                    notifier.alive()
        await trio.sleep(interval_s)


async def _open_escalations(
    governor: IFGovernor, store: EmbeddedStore | EtcdStore, others: _Others
) -> list[dict[str, Any]]:
    of_store = [] if isinstance(store, EmbeddedStore) else [*store.alarms(), *others.alarms()]
    try:
        answer = await governor.list_escalations(ITSELF)
    except Unavailable:
        if not of_store:
            raise
        return of_store  # which says why; the status is for just this moment
    escalations: list[dict[str, Any]] = answer["escalations"]
    return of_store + escalations


def _who(config: Config) -> str:
    people = [f"uid {uid}" for uid in config.operators.uids] + [f"group {name}" for name in config.operators.groups]
    return " or ".join(people) or "nobody: the configuration names no operator"


def _name_of(listener: socket.socket) -> str:
    return str(listener.getsockname() or "inherited socket")


def collect_rarely() -> None:
    """Set the garbage collector up for a daemon that is ready."""
    # What was made so far lives as long as the daemon: looking through it, even once, would hold the loop up for milliseconds, and
    # nearly nothing of it is garbage.
    gc.freeze()
    # Requests leave nothing behind that reference counting does not take away. A look goes through all that was made since the last
    # one and lives on, such as tasks, and holds everybody up for a millisecond per 2,000 of them; one through everything, for seconds
    # where there are a million tasks: so looks are short, and that one is rare.
    gc.set_threshold(2_000, 5, 2_000)
    gc.enable()


def now_ms() -> int:
    """Wall clock, epoch milliseconds: for records and people, never for a lease."""
    return time.time_ns() // 1_000_000


def boottime_ms() -> int:
    """Steady clock that goes on while the host sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def new_id() -> str:
    """A fresh id, sortable by time to the millisecond: 11 hex digits of epoch milliseconds and 8 of chance."""
    return f"{now_ms():011x}{secrets.token_hex(4)}"

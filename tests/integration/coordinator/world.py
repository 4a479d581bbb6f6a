"""A coordinator in its real surroundings: embedded store, local bus, operations, governor; only clocks, ids and callers are made up.

Time is trio's own, so under an autojump clock leases run out as soon as nobody has anything else to do.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Never

import attrs
import trio

from ifbusd import processes
from ifbusd.bus.local import LocalBus
from ifbusd.codec import unpack
from ifbusd.coordinator.holder import Claims
from ifbusd.coordinator.model import INBOX, CoordinatorConfig
from ifbusd.coordinator.service import IFCoordinator
from ifbusd.governor.model import ACCOUNTS, Account, Policy
from ifbusd.governor.service import IFGovernor
from ifbusd.identity import Caller, Peer
from ifbusd.news import News
from ifbusd.operation import Operations
from ifbusd.peers import Peers
from ifbusd.store.base import Compacted, WatchEvent
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore
from tests.conformance.backends import etcd_store

ME = 1000
STRANGER = 2000
WALL_MS = 1_700_000_000_000
LEASE_MS = 30_000

Answer = dict[str, Any]


class Connection:
    """The test's end of a connection: keeps what the daemon sends.

    Args:
        pidfd: Of the process that opened it; this one if not given.
    """

    def __init__(self, *, pidfd: int = -1) -> None:
        self.pidfd = pidfd
        self.handed: int | None = None
        self.heard: list[tuple[str, Any]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._is_closed = False

    def notify(self, method: str, params: list[Any]) -> None:
        assert not self._is_closed, "told after the end"
        self.heard.append((method, params[0]))

    async def drained(self) -> None:
        await trio.lowlevel.checkpoint()

    def on_close(self, callback: Callable[[], None]) -> None:
        if self._is_closed:
            callback()
        else:
            self._callbacks.append(callback)

    def open_peer_process(self) -> int:
        if self.pidfd < 0:
            return processes.open_process(os.getpid(), bind="process")
        return os.dup(self.pidfd)

    def expect_process(self) -> None:
        pass

    def take_process(self) -> int | None:
        taken, self.handed = self.handed, None
        return taken

    def close(self) -> None:
        self._is_closed = True
        for callback in self._callbacks:
            callback()

    def of(self, method: str) -> list[Any]:
        """What came as this notification."""
        return [params for name, params in self.heard if name == method]


@attrs.define
class World:
    """All the parts, and short words for what tests do with them."""

    path: Path
    store: EmbeddedStore
    bus: LocalBus
    operations: Operations
    governor: IFGovernor
    it: IFCoordinator
    claims: Claims
    numbers: Any = attrs.field(factory=lambda: itertools.count(1))

    def caller(
        self,
        uid: int = ME,
        *,
        key: str | None = None,
        body: str = "",
        session: Connection | None = None,
        pid: int = 4711,
    ) -> Caller:
        """Somebody; uid 0 is the operator."""
        return Caller(
            peer=Peer(uid=uid, gid=uid, pid=pid, is_operator=uid == 0),
            session=session,
            idempotency_key=key,
            body_hash=hashlib.sha256(body.encode()).digest() if key is not None else b"",
        )

    @property
    def me(self) -> Caller:
        return self.caller()

    async def swarm(
        self,
        swarm_id: str,
        *can: str,
        uid: int = ME,
        budget: int | None = None,
        lease_ms: int | None = None,
        orchestrator: bool = False,
        resume: str | None = None,
    ) -> Answer:
        """Register a swarm; `budget` in micro-dollars."""
        return await self.it.register_swarm(
            self.caller(uid),
            swarm_id,
            capabilities=list(can),
            budget_usd=budget,  # type: ignore[arg-type]
            lease_ms=lease_ms,
            orchestrator=orchestrator,
            resume_token=resume,
        )

    async def profile(self, swarm_id: str, *can: str, uid: int = ME) -> None:
        """A swarm that is known but has no session: its claims have leases of their own."""
        await self.governor.register_profile(self.caller(uid), swarm_id, list(can))

    async def task(self, task_id: str | None = None, *needs: str, **more: Any) -> str:
        """Create a task; its id."""
        answer = await self.it.create_task(self.me, f"Do {task_id}", task_id=task_id, capabilities=list(needs), **more)
        name: str = answer["task"]["task_id"]
        return name

    async def token(self, task_id: str, swarm_id: str, **more: Any) -> int:
        """Claim a task that is free; its fencing token."""
        answer = await self.it.claim_task(self.me, task_id, swarm_id, **more)
        assert answer["claimed"], answer
        token: int = answer["claim"]["token"]
        return token

    async def show(self, task_id: str) -> Answer:
        """The task as everybody sees it."""
        task: Answer = (await self.it.get_task(self.me, task_id))["task"]
        return task

    async def until_state(self, task_id: str, state: str) -> Answer:
        """Wait until the task is in a state."""
        with trio.fail_after(3600):
            while (task := await self.show(task_id))["state"] != state:
                await trio.sleep(0.05)
        return task

    async def account(self, swarm_id: str) -> Account:
        """A swarm's money, as stored."""
        stored = await self.store.get(ACCOUNTS + swarm_id)
        return Account.from_stored(None if stored is None else unpack(stored.value))

    async def record(self) -> list[Answer]:
        """The witness log, decoded."""
        await self.store.barrier()
        return [{**unpack(entry.record), "seq": entry.seq} for entry in await self.store.read_log(limit=100_000)]

    async def outcomes(self, op: str) -> list[str]:
        """The outcomes of one operation, in order."""
        return [entry["outcome"] for entry in await self.record() if entry["op"] == f"coordinator.{op}"]

    async def stored(self) -> dict[str, bytes]:
        """All keys, to see that nothing was written."""
        page = await self.store.range("", limit=100_000)
        return {item.key: item.value for item in page.items}

    async def inbox(self, swarm_id: str) -> list[Answer]:
        """The letters of an inbox."""
        letters: list[Answer] = (await self.it.read_inbox(self.me, swarm_id, limit=200))["messages"]
        return letters


def wall_ms() -> int:
    """Made-up wall clock that goes with trio's."""
    return WALL_MS + round(trio.current_time() * 1000)


def steady_ms() -> int:
    """Steady clock that goes with trio's."""
    return round(trio.current_time() * 1000)


class ForgetfulStore:
    """The real store, but whoever watches everything is too slow for its history at every third commit."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._commits = 0
        self.forgot = 0
        self._watch: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def watch(self, prefix: str, *, start_revision: int | None = None) -> Any:
        watch = self._store.watch(prefix, start_revision=start_revision)
        return watch if prefix else self._forgetting(watch)

    @asynccontextmanager
    async def _forgetting(self, watch: Any) -> AsyncIterator[ForgetfulStore]:
        self._watch = watch
        async with watch:
            yield self

    async def feed(self, apply: Callable[[list[WatchEvent]], None]) -> Never:
        async for batch in self._watch:
            self._commits += 1
            if self._commits % 3 == 0:
                self.forgot += 1
                break
            apply(batch)
        raise Compacted("too slow")


def _store(directory: Path) -> EmbeddedStore:
    return EmbeddedStore(
        directory / "ifbusd.db",
        # No thread ever takes part (a checkpoint is done in one): while it works, an autojump clock would let hours pass.
        config=EmbeddedConfig(flush="inline", checkpoint_wal_bytes=1 << 30),
        now_ms=wall_ms,
        boottime_ms=steady_ms,
    )


@asynccontextmanager
async def open_world(
    directory: Path,
    *,
    config: CoordinatorConfig | None = None,
    policy: Policy | None = None,
    is_forgetful: bool = False,
    beside: World | None = None,
    host: str = "",
    etcd: str = "",
    wall: Callable[[], int] = wall_ms,
) -> AsyncIterator[World]:
    """Everything started in the daemon's order; opened again on the same directory, it finds what was left.

    Args:
        beside: Another daemon's world, whose store this one shares.
        host: The daemon's id where there are several.
        etcd: Address of an etcd to keep everything in, under a prefix of its own.
        wall: The wall clock.
    """
    numbers = itertools.count(1)
    start = host or (f"{steady_ms():x}" if (directory / "ifbusd.db").exists() else "0")
    store: Any = (
        beside.store
        if beside is not None
        else etcd_store(directory, etcd, ordered=(INBOX,))
        if etcd
        else _store(directory)
    )
    bus, claims = LocalBus(), Claims()
    news = News(store, bus, daemon_id=host or "one") if host or etcd else None
    peers = Peers(store, daemon_id=host, card={"host": host}) if host else None
    operations = Operations(store, bus, now_ms=wall, news=news)
    governor = IFGovernor(
        store,
        bus,
        operations,
        claims,
        presence=lambda swarm_ids: coordinator.presence(swarm_ids),
        policy=policy or Policy(),
        now_ms=wall,
        new_id=lambda: f"g{start}-{next(numbers):06d}",
    )
    seen: Any = ForgetfulStore(store) if is_forgetful else store
    coordinator = IFCoordinator(
        store=seen,
        bus=bus,
        operations=operations,
        governor=governor,
        claims=claims,
        config=config or CoordinatorConfig(),
        now_ms=wall,
        new_id=lambda: f"c{start}-{next(numbers):06d}",
        new_secret=lambda: f"secret-{start}-{next(numbers)}",
        peers=peers,
    )
    async with trio.open_nursery() as outer:
        if beside is None:
            await outer.start(store.run)
        async with trio.open_nursery() as inner:
            if news is not None:
                await inner.start(news.run)
            if peers is not None:
                await inner.start(peers.run)
            await inner.start(governor.run)
            await inner.start(coordinator.run)
            yield World(directory, seen, bus, operations, governor, coordinator, claims)
            inner.cancel_scope.cancel()
        outer.cancel_scope.cancel()

"""A governor on a real store, bus and operations, with people who call it."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from ifbusd.bus.local import LocalBus
from ifbusd.codec import unpack
from ifbusd.coordinator.holder import Claims
from ifbusd.coordinator.model import CLAIMS, ClaimRecord
from ifbusd.governor.model import Account, Policy
from ifbusd.governor.service import IFGovernor
from ifbusd.identity import Caller, Peer
from ifbusd.operation import Operations, Tx
from ifbusd.store.base import Store
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore
from tests.conformance.backends import boottime_ms, running, wall_ms


class Ear:
    """A session that keeps what it was notified of."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self._at_close: list[Callable[[], None]] = []

    def notify(self, method: str, params: list[Any]) -> None:
        assert method == "escalation"
        self.heard += params

    async def drained(self) -> None:
        await trio.lowlevel.checkpoint()

    def on_close(self, callback: Callable[[], None]) -> None:
        self._at_close.append(callback)

    def close(self) -> None:
        for callback in self._at_close:
            callback()

    @property
    def kinds(self) -> list[str]:
        return [message["kind"] for message in self.heard]


@attrs.define(kw_only=True)
class World:
    """One daemon's governor, and what a test does with it."""

    store: Store
    bus: LocalBus
    operations: Operations
    governor: IFGovernor
    ann: Caller = attrs.field(factory=lambda: Caller(peer=Peer(uid=1004, gid=1004, pid=4711)))
    bob: Caller = attrs.field(factory=lambda: Caller(peer=Peer(uid=1005, gid=1005, pid=4712)))
    operator: Caller = attrs.field(factory=lambda: Caller(peer=Peer(uid=0, gid=0, pid=1, is_operator=True)))

    async def register(self, swarm_id: str, *capabilities: str, **figures: Any) -> None:
        """A swarm of ann's."""
        await self.governor.register_profile(self.ann, swarm_id, list(capabilities), **figures)

    async def claim(self, task_id: str, swarm_id: str, estimate: int = 0, *needs: str) -> int:
        """Claim a task as the coordinator does: admission and claim in one transaction; the fencing token."""

        def body(tx: Tx) -> dict[str, Any]:
            tx.get(CLAIMS + task_id)
            self.governor.admit(tx, swarm_id, task_id, frozenset(needs), estimate)
            claim = ClaimRecord(swarm_id=swarm_id, incarnation=1, uid=1004, lease_ms=30_000, claimed_at_ms=0)
            tx.put(CLAIMS + task_id, claim.to_map())
            return {}

        answer = await self.operations.run(self.ann, "coordinator.claim_task", task_id, body)
        token: int = answer["receipt"]["revision"]
        return token

    async def end(self, task_id: str, swarm_id: str, outcome: Any = "ok") -> int:
        """End a claim as the coordinator does; what was given back."""
        released = 0

        def body(tx: Tx) -> dict[str, Any]:
            nonlocal released
            released = self.governor.claim_ended(tx, swarm_id, task_id, outcome=outcome)
            tx.delete(CLAIMS + task_id)
            return {}

        await self.operations.run(self.ann, "coordinator.complete_task", task_id, body)
        return released

    async def account(self, swarm_id: str) -> Account:
        """The account as stored."""
        stored = await self.store.get(f"accounts/{swarm_id}")
        return Account.from_stored(None if stored is None else unpack(stored.value))

    async def ledger(self, swarm_id: str) -> list[dict[str, Any]]:
        """All settled costs of a swarm."""
        page = await self.store.range("ledger/", limit=100_000)
        return [unpack(item.value) for item in page.items if item.key.split("/")[2] == swarm_id]

    async def last_record(self) -> dict[str, Any]:
        """The newest witness entry."""
        head = await self.store.log_head()
        (entry,) = await self.store.read_log(after_seq=head.seq - 1, limit=1)
        record: dict[str, Any] = unpack(entry.record)
        return record


async def _nobody(swarm_ids: list[str]) -> list[tuple[bool, list[str]]]:
    """Sessions and claims are the coordinator's, which is not part of this world."""
    return [(False, []) for _ in swarm_ids]


@asynccontextmanager
async def open_world(
    directory: Path, *, policy: Policy | None = None, kind: type[EmbeddedStore] = EmbeddedStore
) -> AsyncIterator[World]:
    """A governor over the database in a directory; opened again there, it finds what was left."""
    store = kind(directory / "ifbusd.db", config=EmbeddedConfig(), now_ms=wall_ms, boottime_ms=boottime_ms)
    async with running(store):
        bus = LocalBus()
        operations = Operations(store, bus, now_ms=wall_ms)
        ids = itertools.count(1)
        governor = IFGovernor(
            store,
            bus,
            operations,
            Claims(),
            presence=_nobody,
            policy=policy or Policy(),
            now_ms=wall_ms,
            new_id=lambda: f"{next(ids):08d}",
            operators="uid 0 or group ifbus-admin",
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(governor.run)
            yield World(store=store, bus=bus, operations=operations, governor=governor)
            nursery.cancel_scope.cancel()

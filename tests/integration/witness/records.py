"""Stores with a witness log that real operations wrote."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from ifbus.errors import NotReady
from ifbusd.bus.local import LocalBus
from ifbusd.identity import Caller, Peer
from ifbusd.operation import Operations, Tx
from ifbusd.store.base import Store
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore
from ifbusd.witness.service import IFWitness
from tests.conformance.backends import boottime_ms, running, wall_ms

ANN = Caller(peer=Peer(uid=1004, gid=1004, pid=4711))
DATABASE = "ifbusd.db"


@attrs.define(kw_only=True)
class Recorded:
    """A running store, its witness, and operations that leave entries."""

    store: Store
    operations: Operations
    witness: IFWitness

    async def record(self, count: int, *, op: str = "coordinator.create_task", refused: bool = False) -> dict[str, Any]:
        """That many operations at once, on T-1, T-2, ... in any order; the newest receipt."""
        receipts: list[dict[str, Any]] = []

        async def operate(number: int) -> None:
            def body(tx: Tx) -> dict[str, Any]:
                if refused:
                    raise NotReady("not yet", data={"state": "waiting"})
                tx.put(f"tasks/T-{number}", {"title": f"task {number}"})
                tx.detail["number"] = number
                return {}

            try:
                receipts.append((await self.operations.run(ANN, op, f"T-{number}", body))["receipt"])
            except NotReady as error:
                receipts.append(error.data["receipt"])

        async with trio.open_nursery() as nursery:
            for number in range(1, count + 1):
                nursery.start_soon(operate, number)
        return max(receipts, key=lambda receipt: receipt["seq"])


@asynccontextmanager
async def open_recorded(directory: Path) -> AsyncIterator[Recorded]:
    """A store over the database in a directory."""
    store = EmbeddedStore(directory / DATABASE, config=EmbeddedConfig(), now_ms=wall_ms, boottime_ms=boottime_ms)
    async with running(store):
        yield Recorded(store=store, operations=Operations(store, LocalBus(), now_ms=wall_ms), witness=IFWitness(store))

"""The backends that the conformance suite runs on: each opens a store and says what is particular about it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from ifbusd.store.base import Store
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore
from ifbusd.store.etcd.config import EtcdConfig
from ifbusd.store.etcd.store import EtcdStore

StoreT = TypeVar("StoreT", EmbeddedStore, EtcdStore)


@attrs.frozen(kw_only=True)
class Backend:
    """A running store under test.

    Attributes:
        store: The store.
        shortest_ttl_ms: The shortest lease that it keeps exactly.
        shares_revisions: Whether transactions that are committed together have one revision.
    """

    store: Store
    shortest_ttl_ms: int
    shares_revisions: bool = False


def wall_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def boottime_ms() -> int:
    """The clock that goes on through suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@asynccontextmanager
async def running(store: StoreT) -> AsyncIterator[StoreT]:
    """Run a store, and close it."""
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield store
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def embedded(directory: Path, config: EmbeddedConfig | None = None) -> AsyncIterator[Backend]:
    """The embedded store in a directory, with a small history and quick leases."""
    store = EmbeddedStore(
        directory / "ifbusd.db",
        config=config or EmbeddedConfig(lease_tick_ms=5, history_events=256),
        now_ms=wall_ms,
        boottime_ms=boottime_ms,
    )
    async with running(store):
        yield Backend(store=store, shortest_ttl_ms=20)


def embedded_in_thread(directory: Path) -> AbstractAsyncContextManager[Backend]:
    """The embedded store as it works on a slow disk."""
    return embedded(directory, EmbeddedConfig(flush="thread", lease_tick_ms=5, history_events=256))


_prefixes = itertools.count(1)


def etcd_store(
    directory: Path,
    endpoint: str,
    *,
    ordered: tuple[str, ...] = (),
    kind: type[EtcdStore] = EtcdStore,
    **settings: Any,
) -> EtcdStore:
    """A store over a real etcd, not running yet, under a prefix of its own unless one is given."""
    defaults = {"endpoints": (f"http://{endpoint}",), "prefix": f"/test-{os.getpid()}/{next(_prefixes)}/"}
    return kind(
        directory / "ifbusd.db",
        config=EtcdConfig(**{**defaults, **settings}),
        wal_limit_bytes=1 << 20,
        now_ms=wall_ms,
        boottime_ms=boottime_ms,
        ordered=ordered,
    )


@asynccontextmanager
async def etcd(directory: Path, endpoint: str) -> AsyncIterator[Backend]:
    """The etcd store on a real etcd; its leases end with it, so that none ends in the middle of another test."""
    async with running(etcd_store(directory, endpoint)) as store:
        yield Backend(store=store, shortest_ttl_ms=2_000, shares_revisions=True)
        for lease in {item.lease for item in (await store.range("", limit=10_000)).items} - {0}:
            await store.revoke(lease)


BACKENDS: dict[str, Callable[[Path], AbstractAsyncContextManager[Backend]]] = {
    "embedded": embedded,
    "embedded-thread": embedded_in_thread,
}

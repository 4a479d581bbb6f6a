"""What operations publish reaches the other daemons of a store: in their commits, once, and only what was committed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ifbus.errors import NotReady, Unavailable
from ifbusd.bus.local import LocalBus
from ifbusd.codec import pack
from ifbusd.identity import ITSELF
from ifbusd.news import NEWS, SLOTS, News
from ifbusd.operation import Operations, Tx
from ifbusd.store.base import Put, Txn
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore

WALL_MS = 1_700_000_000_000


class Daemon:
    """A daemon's bus and operations on a store that it shares, and what its bus was told."""

    def __init__(self, store: EmbeddedStore, name: str) -> None:
        self.bus = LocalBus()
        self.news = News(store, self.bus, daemon_id=name)
        self.operations = Operations(store, self.bus, now_ms=lambda: WALL_MS, news=self.news)
        self.told: list[tuple[str, dict[str, Any]]] = []
        for subject in ("board", "escalations", "attention.s"):
            self.bus.subscribe(subject, lambda subject, message: self.told.append((subject, message)))

    async def say(self, *messages: tuple[str, dict[str, Any]]) -> int:
        """Publish these in one operation; its revision."""

        def body(tx: Tx) -> dict[str, Any]:
            for subject, message in messages:
                tx.publish(subject, dict(message))
            tx.put("said", len(messages))
            return {}

        answer = await self.operations.run(ITSELF, "test.say", "", body)
        revision: int = answer["receipt"]["revision"]
        return revision


class Cluster:
    """One store, and two daemons on it."""

    def __init__(self, path: Path) -> None:
        config = EmbeddedConfig(flush="inline")
        clock = lambda: round(trio.current_time() * 1000)  # noqa: E731
        self.store = EmbeddedStore(path / "db", config=config, now_ms=lambda: WALL_MS, boottime_ms=clock)
        self.a, self.b = Daemon(self.store, "a"), Daemon(self.store, "b")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Running."""
    made = Cluster(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.store.run)
        await nursery.start(made.a.news.run)
        await nursery.start(made.b.news.run)
        yield made
        nursery.cancel_scope.cancel()


async def until_told(daemon: Daemon, count: int) -> None:
    """Return once so many messages were told here."""
    with trio.fail_after(30):
        while len(daemon.told) < count:
            await trio.sleep(0.001)


async def test_a_message_reaches_every_daemon_once_with_its_revision(cluster: Cluster) -> None:
    """Published on one, a message is told on both, once each, with the revision of its operation."""
    first = await cluster.a.say(("board", {"event": "created"}), ("attention.s", {"kind": "lease_lost"}))
    second = await cluster.b.say(("escalations", {"kind": "blocker"}))
    expected = [
        ("board", {"event": "created", "revision": first}),
        ("attention.s", {"kind": "lease_lost", "revision": first}),
        ("escalations", {"kind": "blocker", "revision": second}),
    ]
    await until_told(cluster.a, 3)
    await until_told(cluster.b, 3)
    await trio.testing.wait_all_tasks_blocked()
    # A daemon's own are told at once, so they may come before earlier ones of others.
    for told in (cluster.a.told, cluster.b.told):
        assert sorted(told, key=expected.index) == expected
        assert [entry for entry in told if entry != expected[2]] == expected[:2]


async def test_what_was_refused_is_told_to_nobody(cluster: Cluster) -> None:
    """An operation that ends in a refusal has published nothing, here or elsewhere."""

    def refuse(tx: Tx) -> dict[str, Any]:
        tx.publish("board", {"event": "created"})
        raise NotReady("no", data={"task_id": "t", "state": "waiting"})

    with pytest.raises(NotReady):
        await cluster.a.operations.run(ITSELF, "test.say", "", refuse)
    last = await cluster.a.say(("board", {"event": "next"}))
    await until_told(cluster.b, 1)
    assert cluster.b.told == cluster.a.told == [("board", {"event": "next", "revision": last})]


async def test_the_ring_is_bounded(cluster: Cluster) -> None:
    """However much is published, a daemon's messages take a fixed number of keys."""
    for _ in range(SLOTS + 10):
        await cluster.a.say(("board", {"event": "created"}))
    page = await cluster.store.range(NEWS)
    assert len(page.items) == SLOTS
    assert all(item.lease for item in page.items)


@pytest.mark.parametrize(
    "value",
    [
        b"\xc1",
        pack(7),
        pack(["board"]),
        pack([["board", 7]]),
        pack([["inbox.s", {}]]),
        pack([[7, {}]]),
        pack([[["board"], {}]]),
        pack({"board": {}}),
    ],
    ids=["no MessagePack", "number", "no pair", "no map", "other subject", "number subject", "list subject", "map"],
)
async def test_a_record_that_is_none_is_left_out(cluster: Cluster, value: bytes) -> None:
    """What another host wrote and nobody can read is counted and told to nobody; what comes after it is."""
    await cluster.store.txn(Txn(then=[Put(f"{NEWS}c/000", value)]))
    revision = await cluster.a.say(("board", {"event": "next"}))
    await until_told(cluster.b, 1)
    assert cluster.b.told == [("board", {"event": "next", "revision": revision})]
    assert cluster.b.news.statistics().ignored == 1


class Hints:
    """Hints without a network: what one daemon tells, the other hears."""

    def __init__(self, other: News) -> None:
        self._other = other
        self.told: list[int] = []

    def tell(self, revision: int) -> None:
        self.told.append(revision)
        self._other.hear(revision)


async def test_a_hint_in_time_makes_nobody_look(cluster: Cluster, autojump_clock: trio.testing.MockClock) -> None:
    """Where the watch is as far as a hint says, or soon is, the store is not asked."""
    looked: list[int] = []

    async def look(revision: int) -> None:
        looked.append(revision)

    hints = Hints(cluster.b.news)
    cluster.a.news.use(hints)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.b.news.follow_hints, look)
        revision = await cluster.a.say(("board", {"event": "created"}))
        cluster.b.news.hear(revision)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert hints.told == [revision]
    assert looked == []


async def test_a_hint_ahead_of_the_watch_makes_one_look_at_a_time(
    cluster: Cluster, autojump_clock: trio.testing.MockClock
) -> None:
    """A revision that nobody has seen costs one look in a second, however often it is claimed, also where the look fails."""
    looked: list[int] = []

    async def look(revision: int) -> None:
        looked.append(revision)
        raise Unavailable("no answer")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.b.news.follow_hints, look)
        for n in range(1000):
            cluster.b.news.hear(1_000_000 + n)
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert 1 <= len(looked) <= 11
    assert cluster.b.told == []
    assert cluster.b.news.statistics().hints_ahead == len(looked)

"""Watches: durable changes, in order, whole, and never silently incomplete."""

import itertools

import pytest
import trio

from ifbusd.store.base import Compacted, Delete, Put, Store, Txn, WatchEvent
from tests.conformance.backends import Backend


async def write(store: Store, *keys: str) -> int:
    """Write keys in one transaction; its revision."""
    return (await store.txn(Txn(then=[Put(key, b"v") for key in keys]))).revision


async def collect(store: Store, prefix: str, start_revision: int, last_revision: int) -> list[WatchEvent]:
    """All events under a prefix up to a revision that has one."""
    got: list[WatchEvent] = []
    async with store.watch(prefix, start_revision=start_revision) as changes:
        while not got or got[-1].revision < last_revision:
            got += await anext(changes)
    return got


async def test_a_watch_tells_from_now_on(store: Store) -> None:
    """What was there before is not told; puts come with the key as written, deletions without."""
    await write(store, "w/old")
    async with store.watch("w/") as changes:
        first = await write(store, "w/a", "other/a")
        [put_event] = await anext(changes)
        assert put_event == WatchEvent("w/a", await store.get("w/a"), first)
        gone = (await store.txn(Txn(then=[Delete("w/a"), Delete("w/none"), Delete("w/old")]))).revision
        assert await anext(changes) == [WatchEvent("w/a", None, gone), WatchEvent("w/old", None, gone)]


async def test_a_watch_tells_from_a_revision_on(store: Store) -> None:
    """The past is told from the revision asked for, then the present, without gap or repetition."""
    revisions = [await write(store, f"w/{number}") for number in range(5)]
    async with store.watch("w/", start_revision=revisions[2]) as changes:
        got = [event.revision for _ in range(3) for event in await anext(changes)]
        assert got == revisions[2:]
        assert [event.revision for event in await anext_after(store, changes)] == [revisions[-1] + 1]


async def anext_after(store: Store, changes) -> list[WatchEvent]:  # type: ignore[no-untyped-def]
    """Write one key and take the next batch."""
    await write(store, "w/next")
    events: list[WatchEvent] = await anext(changes)
    return events


async def test_feeding_tells_what_iterating_tells(store: Store) -> None:
    """The past from the revision asked for, then the present, a commit at a time, until cancelled."""
    revisions = [await write(store, f"w/{number}", f"other/{number}") for number in range(5)]
    fed: list[list[WatchEvent]] = []
    arrived = trio.Event()

    def apply(batch: list[WatchEvent]) -> None:
        fed.append(batch)
        if len(fed) == 6:
            arrived.set()

    async with trio.open_nursery() as nursery, store.watch("w/", start_revision=revisions[2]) as changes:
        nursery.start_soon(changes.feed, apply)
        for number in range(3):
            revisions.append(await write(store, f"w/late-{number}"))
        await arrived.wait()
        nursery.cancel_scope.cancel()
    assert [[event.revision for event in batch] for batch in fed] == [[revision] for revision in revisions[2:]]
    assert [event for batch in fed for event in batch] == await collect(store, "w/", revisions[2], revisions[-1])


async def test_a_watch_may_start_in_the_future(store: Store) -> None:
    """Nothing before the start revision is told, even if that has yet to come."""
    start = store.revision + 3
    async with store.watch("w/", start_revision=start) as changes:
        for number in range(4):
            await write(store, f"w/{number}")
        assert [event.key for event in await anext(changes)] == ["w/2"]


async def test_revisions_are_whole_and_in_order(backend: Backend) -> None:
    """With many writers at once, a watcher sees each revision in one batch and each batch after the one before."""
    store = backend.store
    start, batches, written = store.revision + 1, [], []

    async def writer(name: int) -> None:
        for number in range(10):
            written.append(await write(store, f"w/{name}/{number}", f"w/both/{name}"))

    async with store.watch("w/", start_revision=start) as changes:
        async with trio.open_nursery() as nursery:
            for name in range(10):
                nursery.start_soon(writer, name)
        while not batches or batches[-1][-1].revision < max(written):
            batches.append(await anext(changes))
    revisions = [event.revision for batch in batches for event in batch]
    assert revisions == sorted(written * 2)
    if not backend.shares_revisions:
        assert sorted(written) == [*range(start, start + 100)]
    for before, after in itertools.pairwise(batches):
        assert before[-1].revision < after[0].revision


async def test_a_change_is_told_only_when_it_is_durable(store: Store) -> None:
    """When a watcher hears of a change, nothing is under way any more that could take it back."""
    async with store.watch("w/") as changes, trio.open_nursery() as nursery:
        nursery.start_soon(write, store, "w/a")
        [event] = await anext(changes)
        with trio.fail_after(5):
            await store.barrier()
        assert await store.get("w/a") == event.value


async def test_the_told_revision_is_what_watches_have(store: Store) -> None:
    """It is up to date when a write has returned, and a watch after it has nothing more to tell."""
    last = await write(store, "w/a")
    assert store.told_revision == last
    await store.txn(Txn(record=b"no revision"))
    assert store.told_revision == store.revision == last


async def test_a_cancelled_wait_loses_nothing(store: Store) -> None:
    """Giving up waiting, over and over, drops no event and repeats none."""
    start, got = store.revision + 1, []
    async with store.watch("w/", start_revision=start) as changes:
        for number in range(20):
            with trio.move_on_after(0):
                got += await anext(changes)
            await write(store, f"w/{number}")
        while len(got) < 20:
            got += await anext(changes)
    assert [event.key for event in got] == [f"w/{number}" for number in range(20)]


async def test_watches_are_independent(store: Store) -> None:
    """Many watchers on prefixes of all sorts each get their own keys and no others."""
    start = store.revision + 1
    keys = ["w/a/1", "w/a/2", "w/b/1", "w/b", "w", "x/1", "w/a/1/deep"]
    for key in keys:
        last = await write(store, key)
    for prefix in ["w/", "w/a/", "w/a/1", "w", "x", "w/b", ""]:
        wanted = [key for key in keys if key.startswith(prefix)]
        until = start + max(number for number, key in enumerate(keys) if key.startswith(prefix))
        assert [event.key for event in await collect(store, prefix, start, until)] == wanted
    assert last == start + len(keys) - 1


async def test_the_forgotten_past_is_compacted(store: Store) -> None:
    """A start before everything that is kept is told, instead of a gap."""
    await write(store, "w/a")
    async with store.watch("w/", start_revision=0) as changes:
        with pytest.raises(Compacted):
            await anext(changes)
    async with store.watch("w/", start_revision=0) as changes:
        with pytest.raises(Compacted):
            await changes.feed(lambda batch: pytest.fail(f"told {batch}"))

"""The history of changes and the watchers in it."""

import pytest
import trio
import trio.testing

from ifbus.errors import Unavailable
from ifbusd.store.base import Compacted, WatchEvent
from ifbusd.store.watches import EmbeddedWatch, History


def event(key: str, revision: int) -> WatchEvent:
    """A deletion, the smallest of events."""
    return WatchEvent(key, None, revision)


def watch(history: History, prefix: str, start_revision: int = 1) -> EmbeddedWatch:
    """A watch that is not yet entered."""
    return EmbeddedWatch(history, prefix, start_revision, lambda: 0)


def history(max_events: int = 100, max_bytes: int = 1000) -> History:
    """A history after revision 0."""
    return History(revision=0, max_events=max_events, max_bytes=max_bytes)


@pytest.mark.parametrize("prefix", ["inbox/a/", "inbox/a", "inbox/a/1", "i", "", "inbox/"])
async def test_a_waiting_watcher_gets_what_its_prefix_covers(prefix: str) -> None:
    """Prefixes of any form, ending at a slash or not, find their keys and no others."""
    past, got = history(), []

    async def follow() -> None:
        async with watch(past, prefix) as changes:
            async for events in changes:
                got.append([event.key for event in events])

    keys = ["inbox/a/1", "inbox/b/1", "tasks/1", "inbox/a", "i"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        for revision, key in enumerate(keys, 1):
            past.publish([event(key, revision)], 0)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert got == [[key] for key in keys if key.startswith(prefix)]
    assert past._waiting == {}


async def test_one_batch_per_commit_in_order() -> None:
    """A slow watcher still gets each commit by itself, filtered, from its start revision on."""
    past = history()
    past.publish([event("a/1", 1), event("a/1", 2), event("b/1", 2)], 0)
    past.publish([event("b/1", 3)], 0)
    past.publish([event("a/2", 4), event("a/3", 5)], 0)
    async with watch(past, "a/", start_revision=2) as changes:
        assert [event.revision for event in await anext(changes)] == [2]
        assert [event.revision for event in await anext(changes)] == [4, 5]
        with trio.move_on_after(0) as nothing_more:
            await anext(changes)
        assert nothing_more.cancelled_caught


async def test_too_slow_or_too_late_is_compacted() -> None:
    """What has left the bounded history can neither be asked for nor silently skipped."""
    past = history(max_events=3)
    async with watch(past, "a/") as slow:
        for revision in range(1, 6):
            past.publish([event("a/1", revision)], 0)
        with pytest.raises(Compacted):
            await anext(slow)
        with pytest.raises(Compacted):
            await anext(slow)
    async with watch(past, "a/", start_revision=2) as late:
        with pytest.raises(Compacted):
            await anext(late)
    async with watch(past, "a/", start_revision=3) as in_time:
        assert [event.revision for event in await anext(in_time)] == [3]


async def test_who_is_fed_too_late_is_compacted() -> None:
    """A delivery that comes too late ends the feed and hides nothing; one that comes in time has all."""
    past, fed = history(max_events=2), []
    with pytest.RaisesGroup(Compacted):
        async with trio.open_nursery() as nursery, watch(past, "a/") as slow:
            nursery.start_soon(slow.feed, fed.append)
            await trio.testing.wait_all_tasks_blocked()
            for revision in range(1, 6):
                past.publish([event("a/1", revision)], 0)
                if revision <= 2:
                    past.deliver()
            past.deliver()
            await trio.sleep_forever()
    assert fed == [[event("a/1", 1)], [event("a/1", 2)]]
    assert past._fed == {}


async def test_a_quiet_watcher_is_not_compacted() -> None:
    """A watcher that waits is kept up to date by others' changes, however many pass it by."""
    past, got = history(max_events=3), []

    async def follow() -> None:
        async with watch(past, "quiet/") as changes:
            got.extend(await anext(changes))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        for revision in range(1, 50):
            past.publish([event("loud/1", revision)], 0)
        past.publish([event("quiet/1", 50)], 0)
    assert [event.revision for event in got] == [50]


async def test_the_history_is_bounded_by_bytes_but_keeps_the_newest_commit() -> None:
    """Large values push older commits out; one commit above the limit alone is still told."""
    past = history(max_bytes=1000)
    past.publish([event("a/1", 1)], 600)
    past.publish([event("a/1", 2)], 600)
    assert len(past) == 1
    past.publish([event("a/1", 3)], 5000)
    assert len(past) == 1
    async with watch(past, "a/", start_revision=3) as changes:
        assert [event.revision for event in await anext(changes)] == [3]


async def test_cancelling_takes_nothing_away() -> None:
    """A watcher that is cancelled while it waits gets the next change when it asks again."""
    past = history()
    async with watch(past, "a/") as changes:
        with trio.move_on_after(0):
            await anext(changes)
        past.publish([event("a/1", 1)], 0)
        assert [event.revision for event in await anext(changes)] == [1]


async def test_closing_ends_every_watch() -> None:
    """When the store stops, waiting watchers are told, and so are later ones."""
    past = history()

    async def follow() -> None:
        async with watch(past, "a/") as changes:
            with pytest.raises(Unavailable, match="closed for a test"):
                await anext(changes)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        past.close("closed for a test")
    async with watch(past, "a/") as changes:
        with pytest.raises(Unavailable):
            await anext(changes)

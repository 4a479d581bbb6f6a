"""Reads, ranges and transactions: what every store answers."""

import pytest
import trio

from ifbusd.store.base import Compare, Delete, Get, KeyValue, Put, Store, Txn


async def put(store: Store, key: str, value: bytes = b"", lease: int = 0) -> int:
    """Write a key; the revision."""
    return (await store.txn(Txn(then=[Put(key, value, lease)]))).revision


async def test_an_absent_key_is_none(store: Store) -> None:
    """A key that nobody wrote is absent, for `get` and for a `Get` in a transaction."""
    assert await store.get("t/absent") is None
    assert (await store.txn(Txn(then=[Get("t/absent")]))).values == (None,)


async def test_a_key_carries_its_revisions(store: Store) -> None:
    """Creation and last write are told apart; deleting and writing again is a new creation."""
    first = await put(store, "t/a", b"1")
    assert await store.get("t/a") == KeyValue("t/a", b"1", first, first, 0)
    second = await put(store, "t/a", b"2")
    assert await store.get("t/a") == KeyValue("t/a", b"2", first, second, 0)
    await store.txn(Txn(then=[Delete("t/a")]))
    assert await store.get("t/a") is None
    again = await put(store, "t/a", b"3")
    assert await store.get("t/a") == KeyValue("t/a", b"3", again, again, 0)


async def test_a_new_name_is_created(store: Store) -> None:
    """A key that is said to be new is created like any other; the rules for names hold for it too."""
    done = await store.txn(Txn(then=[Put("t/new", b"1", is_new=True)]))
    assert await store.get("t/new") == KeyValue("t/new", b"1", done.revision, done.revision, 0)
    with pytest.raises(ValueError, match="key"):
        await store.txn(Txn(then=[Put("t/" + "n" * 1000, b"", is_new=True)]))


async def test_each_writing_transaction_is_one_revision(store: Store) -> None:
    """All writes of a transaction share the next revision; one that writes nothing uses none."""
    before = store.revision
    done = await store.txn(Txn(then=[Put("t/a", b""), Put("t/b", b""), Delete("t/none"), Get("t/a")]))
    assert done.revision == store.revision == before + 1
    assert {(await store.range("t/")).items[n].mod_revision for n in range(2)} == {before + 1}
    for nothing in ([], [Get("t/a")], [Delete("t/none")], [Delete("t/none"), Get("t/none")]):
        assert (await store.txn(Txn(then=nothing))).revision == before + 1
    assert (await store.txn(Txn(then=[Put("t/a", b"")]))).revision == before + 2  # the same value counts


async def test_compares_choose_the_branch(store: Store) -> None:
    """Only if every compare holds is `then` done, else `otherwise`; zero means absent."""
    a = await put(store, "t/a", b"1")
    holds = [Compare("t/a", a), Compare("t/none", 0)]
    for fails in (Compare("t/a", 0), Compare("t/a", a - 1), Compare("t/none", a)):
        lost = await store.txn(Txn([*holds, fails], [Put("t/b", b"no")], [Get("t/a"), Put("t/lost", b"")]))
        assert not lost.succeeded
        assert lost.values == (KeyValue("t/a", b"1", a, a, 0),)
    assert await store.get("t/b") is None
    assert await store.get("t/lost") is not None
    won = await store.txn(Txn(holds, [Put("t/b", b"yes")], [Delete("t/a")]))
    assert won.succeeded
    assert await store.get("t/a") is not None


async def test_a_get_sees_the_writes_before_it(store: Store) -> None:
    """In a branch the operations are done in order."""
    first = await put(store, "t/a", b"1")
    done = await store.txn(Txn(then=[Get("t/a"), Put("t/a", b"2"), Get("t/a"), Delete("t/b"), Get("t/b")]))
    assert done.values == (
        KeyValue("t/a", b"1", first, first, 0),
        KeyValue("t/a", b"2", first, done.revision, 0),
        None,
    )


async def test_a_key_written_twice_is_refused(store: Store) -> None:
    """Nothing of a transaction that writes a key twice is done, in whichever branch it stands."""
    before = store.revision
    twice = [Put("t/x", b""), Put("t/a", b"1"), Delete("t/a")]
    for txn in (Txn(then=twice), Txn(otherwise=twice), Txn([Compare("t/a", 1)], otherwise=twice)):
        with pytest.raises(ValueError, match="twice"):
            await store.txn(txn)
    assert store.revision == before
    assert await store.get("t/x") is None


async def test_large_values_and_empty_ones(store: Store) -> None:
    """A value of 1 MiB and an empty one come back as they went in."""
    large = bytes(range(256)) * 4096
    await store.txn(Txn(then=[Put("t/large", large), Put("t/empty", b"")]))
    assert [item.value for item in (await store.range("t/")).items] == [b"", large]


async def test_a_range_is_in_key_order_and_pages(store: Store) -> None:
    """Pages continue after a key, in the order of the keys' UTF-8, and say whether more follows."""
    keys = sorted(["p/a", "p/a/1", "p/a/10", "p/a/2", "p/b", "p/é", "p/\uffff", "p/😀", "p/\x00"], key=str.encode)
    for key in reversed(keys):
        await put(store, key)
    await put(store, "p")
    await put(store, "p0")
    page = await store.range("p/")
    assert [item.key for item in page.items] == keys
    assert not page.has_more
    assert page.revision == store.revision
    got, after = [], ""
    while True:
        page = await store.range("p/", after=after, limit=2)
        got += [item.key for item in page.items]
        if not page.has_more:
            break
        after = got[-1]
    assert got == keys
    assert [item.key for item in (await store.range("p/a/", after="p/a/1")).items] == ["p/a/10", "p/a/2"]
    assert (await store.range("p/", after="p/😀")).items == []
    assert [item.key for item in (await store.range("p/b", after="a")).items] == ["p/b"]
    assert (await store.range("p/", limit=len(keys))).has_more is False
    with pytest.raises(ValueError, match="range"):
        await store.range("p/", limit=0)


async def test_the_empty_prefix_is_everything(store: Store) -> None:
    """The empty prefix has no end."""
    await put(store, "\U0010ffff")
    assert "\U0010ffff" in [item.key for item in (await store.range("", limit=10_000)).items]


async def test_one_of_many_wins(store: Store) -> None:
    """Of 64 transactions that create the same key at once one succeeds; the others read who it was."""
    results = []

    async def claim(number: int) -> None:
        txn = Txn([Compare("t/claim", 0)], [Put("t/claim", b"%d" % number)], [Get("t/claim")])
        results.append((number, await store.txn(txn)))

    async with trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(claim, number)
    [winner] = [number for number, result in results if result.succeeded]
    for _, result in results:
        if not result.succeeded:
            assert result.values[0] is not None
            assert result.values[0].value == b"%d" % winner


async def test_increments_are_not_lost(store: Store) -> None:
    """Concurrent read, compare and write loops add up."""

    async def add(times: int) -> None:
        while times:
            found = await store.get("t/sum")
            count, revision = (int(found.value), found.mod_revision) if found else (0, 0)
            done = await store.txn(Txn([Compare("t/sum", revision)], [Put("t/sum", b"%d" % (count + 1))]))
            times -= done.succeeded

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(add, 10)
    found = await store.get("t/sum")
    assert found is not None
    assert found.value == b"80"


async def test_a_barrier_covers_what_was_read(store: Store) -> None:
    """After a barrier a watcher has been told, or can be told, what was read before it; alone it returns at once."""
    await store.barrier()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, store, "t/a")
        while await store.get("t/a") is None:
            await trio.lowlevel.checkpoint()
        await store.barrier()
        read = await store.get("t/a")
        assert read is not None
        async with store.watch("t/", start_revision=read.mod_revision) as changes:
            assert (await anext(changes))[0].value == read

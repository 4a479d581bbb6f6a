"""The witness log: one entry per operation that was done, chained."""

from ifbusd.store.base import Compare, LogEntry, Put, Store, Txn
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.store.etcd.store import EtcdStore


def is_whole(entries: list[LogEntry]) -> bool:
    """Whether the entries are numbered from 1 and each hash covers the entry before."""
    previous = GENESIS
    for number, entry in enumerate(entries, 1):
        if entry.seq != number or entry.hash != entry_hash(previous, *entry[:4]):
            return False
        previous = entry.hash
    return True


async def test_the_log_starts_empty(store: Store) -> None:
    """Before the first entry the head is number 0 and zeros."""
    assert await store.log_head() == (0, GENESIS)
    assert await store.read_log() == []


async def test_a_record_is_logged_with_its_revision(store: Store) -> None:
    """An entry carries the revision of its transaction; one without writes carries the current and uses none."""
    wrote = await store.txn(Txn(then=[Put("g/a", b"")], record=b"wrote"))
    refused = await store.txn(Txn(record=b"refused"))
    assert refused.revision == wrote.revision
    entries = await store.read_log()
    assert [(entry.revision, entry.record) for entry in entries] == [
        (wrote.revision, b"wrote"),
        (wrote.revision, b"refused"),
    ]
    assert is_whole(entries)
    assert await store.log_head() == (2, entries[-1].hash)


async def test_a_head_proves_its_entry(store: Store) -> None:
    """The head in an answer is that of the transaction's own entry, or of the newest before it; without a record there is none."""
    assert (await store.txn(Txn(then=[Put("g/a", b"")]))).head is None
    await store.txn(Txn(record=b"1"))
    done = await store.txn(Txn(then=[Put("g/a", b"")], record=b"2"))
    await store.txn(Txn(record=b"3"))
    assert done.head is not None
    [entry] = await store.read_log(after_seq=done.head.seq - 1, limit=1)
    assert (entry.seq, entry.hash) == done.head
    follows = type(store) is EtcdStore
    assert entry.record == (b"1" if follows else b"2")


async def test_a_lost_compare_is_not_logged(store: Store) -> None:
    """The record belongs to `then` alone."""
    lost = await store.txn(Txn([Compare("g/a", 7)], [Put("g/a", b"")], [Put("g/b", b"")], record=b"never"))
    assert lost.head is None
    assert await store.read_log() == []


async def test_the_log_is_read_in_pages(store: Store) -> None:
    """Reading goes on after a number, as far as asked."""
    for number in range(5):
        await store.txn(Txn(record=b"%d" % number))
    assert [entry.record for entry in await store.read_log(after_seq=1, limit=2)] == [b"1", b"2"]
    assert await store.read_log(after_seq=5) == []
    assert is_whole(await store.read_log())

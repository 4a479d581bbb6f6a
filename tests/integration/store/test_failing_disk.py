"""The embedded store on a disk that fails: nothing acknowledged is lost, nothing failed is acknowledged."""

from pathlib import Path

import pytest
import trio

from ifbus.errors import Unavailable
from ifbusd.store.base import Compare, LeaseNotFound, Put, Txn
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore, StoreFailed
from tests.conformance.backends import boottime_ms, running, wall_ms
from tests.integration.store.failing_disk import Plan, failing

# The write-ahead log is copied back after every fourth or fifth commit: the sweeps meet those writes and syncs too.
CHECKPOINT_BYTES = 64 * 1024
# Small commits wait in the journal for the next large one.
VALUES = (b"", bytes(24 * 1024))


def open_store(directory: Path, **config: object) -> EmbeddedStore:
    """The store in a directory."""
    return EmbeddedStore(
        directory / "ifbusd.db",
        config=EmbeddedConfig(checkpoint_wal_bytes=CHECKPOINT_BYTES, lease_tick_ms=5, **config),  # type: ignore[arg-type]
        now_ms=wall_ms,
        boottime_ms=boottime_ms,
    )


async def write(store: EmbeddedStore, number: int) -> None:
    """One operation: a key of its own, a shared counter and a record."""
    value = VALUES[number % len(VALUES)]
    txn = Txn(then=[Put(f"k/{number}", value), Put("count", b"%d" % number)], record=b"%d" % number)
    await store.txn(txn)


async def check(directory: Path, acknowledged: list[int], unknown: list[int]) -> None:
    """Reopened on a healthy disk: all that was acknowledged is there, the rest whole or not at all, the log is whole."""
    async with running(open_store(directory)) as store:
        found = {int(item.key[2:]) for item in (await store.range("k/")).items}
        assert set(acknowledged) <= found <= {*acknowledged, *unknown}
        entries = await store.read_log()
        assert {int(entry.record) for entry in entries} == found
        previous = GENESIS
        for seq, entry in enumerate(entries, 1):
            assert (entry.seq, entry.hash) == (seq, entry_hash(previous, *entry[:4]))
            previous = entry.hash
        await write(store, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("flush", ["inline", "thread"])
async def test_every_failed_fsync_stops_the_store(tmp_path: Path, flush: str) -> None:
    """Whichever sync fails, while opening or later: its commit is not acknowledged, and nothing goes on after it."""
    for at in range(1, 200):
        directory = tmp_path / str(at)
        directory.mkdir()
        acknowledged: list[int] = []
        number, is_open = 0, False
        with failing(Plan(kind="sync", at=at)) as plan:
            try:
                async with running(open_store(directory, flush=flush)) as store:
                    is_open = True
                    for number in range(8):
                        await write(store, number)
                        acknowledged.append(number)
            except* StoreFailed as failed:
                assert "SQLITE_IOERR_FSYNC" in str(failed.exceptions[0])  # noqa: PT017
            except* Unavailable as unavailable:
                assert "unknown" in str(unavailable.exceptions[0])  # noqa: PT017
            except* trio.Cancelled:
                raise
            if plan.failed:
                # While it makes a new file SQLite rolls back by itself; afterwards nothing may be synced any more.
                assert not is_open or plan.seen == at
        assert not is_open or store.statistics().commits == len(acknowledged)
        await check(directory, acknowledged, [number])
        if not plan.failed:
            break
    assert at > 10
    assert len(acknowledged) == 8


@pytest.mark.parametrize("flush", ["inline", "thread"])
async def test_every_acknowledged_write_was_synced(tmp_path: Path, flush: str) -> None:
    """No write is acknowledged before a sync of its own."""
    never = 1_000_000
    with failing(Plan(kind="sync", at=never)) as plan:
        async with running(open_store(tmp_path, flush=flush)) as store:
            for number in range(10):
                before = plan.seen
                await write(store, number)
                assert plan.seen > before


async def test_a_failed_store_refuses_everything(tmp_path: Path) -> None:
    """After a failed sync all waiters and all later calls, reads too, are told that the store has failed."""
    store = open_store(tmp_path)
    refused = []

    async def one(number: int) -> None:
        with pytest.raises(Unavailable, match="unknown"):
            await write(store, number)
        refused.append(number)

    async def follow() -> None:
        async with store.watch("") as changes:
            with pytest.raises(Unavailable):
                await anext(changes)

    with pytest.RaisesGroup(StoreFailed):
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            lease = await store.grant(1000)
            await store.barrier()
            nursery.start_soon(follow)
            with failing(Plan(kind="sync", at=1)), trio.CancelScope(shield=True):
                async with trio.open_nursery() as writers:
                    for number in range(5):
                        writers.start_soon(one, number)
    assert sorted(refused) == list(range(5))
    for call in (
        lambda: store.get("k"),
        lambda: store.range("k"),
        lambda: store.txn(Txn()),
        store.barrier,
        lambda: store.grant(1),
        lambda: store.keep_alive(lease),
        lambda: store.revoke(lease),
        lambda: store.lease_left_ms(lease),
        store.log_head,
        store.read_log,
    ):
        with pytest.raises(Unavailable):
            await call()


@pytest.mark.slow
@pytest.mark.parametrize(("flush", "is_lasting"), [("inline", False), ("inline", True), ("thread", True)])
async def test_every_full_disk_fails_cleanly(tmp_path: Path, flush: str, is_lasting: bool) -> None:
    """Whichever write finds no space: only its own commit fails, reads go on, and so do writes when there is space."""
    for at in range(1, 300):
        directory = tmp_path / str(at)
        directory.mkdir()
        acknowledged: list[int] = []
        failed: list[int] = []
        async with running(open_store(directory, flush=flush)) as store:
            told: list[str] = []
            async with store.watch("k/") as changes:
                with failing(Plan(kind="write", at=at, is_lasting=is_lasting)) as plan:
                    for number in range(6):
                        try:
                            await write(store, number)
                            acknowledged.append(number)
                        except Unavailable as error:
                            assert error.data == {"reason": "storage_full"}  # noqa: PT017
                            failed.append(number)
                        found = await store.range("k/")
                        assert [int(item.key[2:]) for item in found.items] == acknowledged
                        assert (await store.log_head()).seq == len(acknowledged)
                await write(store, 6)
                acknowledged.append(6)
                while len(told) < len(acknowledged):
                    told += [event.key for event in await anext(changes)]
            assert told == [f"k/{number}" for number in acknowledged]
            assert store.statistics().storage_full == len(failed)
            assert is_lasting or len(failed) <= 1
        await check(directory, acknowledged, [])
        if not plan.failed:
            break
    assert at > 20


async def test_a_full_disk_takes_back_what_was_only_in_memory(tmp_path: Path) -> None:
    """Leases granted or ended in a failed commit are as before, and a revision that was seen never returns."""
    async with running(open_store(tmp_path)) as store:
        kept = await store.grant(60_000)
        await store.txn(Txn(then=[Put("l/kept", b"", kept)]))
        with failing(Plan(kind="write", at=1, is_lasting=True)):
            granted = await store.grant(60_000)
            assert await store.keep_alive(granted) == 60_000
            seen = None
            while seen is None:  # until the read comes between the write and its commit
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_refused, store, Txn(then=[Put("t/a", b"lost")]))
                    await trio.lowlevel.checkpoint()
                    seen = await store.get("t/a")
            with pytest.raises(Unavailable):
                await store.revoke(kept)
        assert await store.get("t/a") is None
        assert [item.key for item in (await store.range("l/")).items] == ["l/kept"]
        assert await store.keep_alive(kept) == 60_000
        with pytest.raises(LeaseNotFound):
            await store.keep_alive(granted)
        # Had the number been used again, this compare would wrongly hold for somebody who saw the lost write.
        await store.txn(Txn(then=[Put("t/a", b"other")]))
        late = await store.txn(Txn([Compare("t/a", seen.mod_revision)], [Put("t/b", b"")]))
        assert not late.succeeded
        await store.revoke(kept)
        assert await store.get("l/kept") is None


async def _refused(store: EmbeddedStore, txn: Txn) -> None:
    with pytest.raises(Unavailable):
        await store.txn(txn)


async def test_a_lease_ends_once_there_is_space(tmp_path: Path) -> None:
    """An expiry that found no space is done again by itself."""
    async with running(open_store(tmp_path)) as store:
        lease = await store.grant(50)
        done = await store.txn(Txn(then=[Put("l/a", b"", lease)]))
        with failing(Plan(kind="write", at=1, is_lasting=True)):
            with trio.fail_after(30):
                while not store.statistics().storage_full:
                    await trio.sleep(0.005)  # polls: a failed expiry is told to nobody
            assert await store.get("l/a") is not None
        async with store.watch("l/", start_revision=done.revision + 1) as changes:
            assert [event.key for event in await anext(changes)] == ["l/a"]

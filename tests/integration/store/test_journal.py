"""The journal: small commits wait there for the tables, and nobody can tell."""

from __future__ import annotations

import shutil
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifbusd.store.base import Delete, Put, Txn
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore, StoreFailed
from ifbusd.store.journal import SLOTS
from ifbusd.witness.offline import verify_file
from tests.conformance.backends import boottime_ms, running, wall_ms

DATABASE = "ifbusd.db"
LONG_MS = 3_600_000
PAGE_OF_THE_LOG_BYTES = 4096 + 24


def open_store(directory: Path, **config: object) -> EmbeddedStore:
    """The store in a directory."""
    return EmbeddedStore(
        directory / DATABASE,
        config=EmbeddedConfig(**config),  # type: ignore[arg-type]
        now_ms=wall_ms,
        boottime_ms=boottime_ms,
    )


async def write_some(store: EmbeddedStore, count: int, first: int = 1) -> None:
    """Small commits, one after the other: a key of its own, a shared one, and an entry each."""
    for number in range(first, first + count):
        then = [Put(f"k/{number}", b""), Put("count", b"%d" % number)]
        await store.txn(Txn(then=then, record=b"%d" % number))


def copy(directory: Path, to: Path) -> Path:
    """The state as a kill would leave it now."""
    to.mkdir()
    for name in (DATABASE, f"{DATABASE}-wal"):
        shutil.copyfile(directory / name, to / name)
    return to


def edit(directory: Path, sql: str) -> None:
    """Change a database that nobody has open, with whole pages."""
    editor = apsw.Connection(str(directory / DATABASE), vfs="cksmvfs")
    editor.execute(sql)
    editor.close()


async def test_a_small_commit_writes_one_page(tmp_path: Path) -> None:
    """However many tables and indexes its rows belong to; once the slots are used up, the tables take what waits."""
    async with running(open_store(tmp_path)) as store:
        lease = await store.grant(LONG_MS)
        await store.barrier()
        for number in range(1, SLOTS - 1):
            before = store.statistics()
            await store.txn(Txn(then=[Put(f"k/{number}", bytes(1000), lease), Put("count", b"")], record=bytes(100)))
            after = store.statistics()
            assert after.wal_bytes - before.wal_bytes == PAGE_OF_THE_LOG_BYTES
            assert (after.journal_entries, after.commits) == (before.journal_entries + 1, before.commits + 1)
        await write_some(store, 100, SLOTS)
        assert store.statistics().journal_entries <= SLOTS
        assert len((await store.range("k/", limit=2000)).items) == 100 + SLOTS - 2


async def test_what_waits_is_read_like_everything_else(tmp_path: Path) -> None:
    """Ranges, entries, and the keys that end with a lease: some in the tables, some changed or removed since."""
    async with running(open_store(tmp_path)) as store:
        lease = await store.grant(LONG_MS)
        await store.txn(Txn(then=[Put(f"l/{n}", bytes(3000), lease) for n in range(4)], record=b"one"))
        assert store.statistics().journal_entries == 0
        await store.txn(Txn(then=[Delete("l/1"), Put("l/2", b""), Put("l/9", b"", lease)], record=b"two"))
        assert store.statistics().journal_entries == 1
        assert [item.key for item in (await store.range("l/")).items] == ["l/0", "l/2", "l/3", "l/9"]
        assert [item.key for item in (await store.range("l/", after="l/0", limit=2)).items] == ["l/2", "l/3"]
        assert [entry.record for entry in await store.read_log()] == [b"one", b"two"]
        assert [entry.record for entry in await store.read_log(after_seq=1)] == [b"two"]
        assert [entry.record for entry in await store.read_log(limit=1)] == [b"one"]
        await store.revoke(lease)
        assert [item.key for item in (await store.range("l/")).items] == ["l/2"]


async def test_nothing_overtakes(tmp_path: Path) -> None:
    """A large commit does not pass by the journal: of a key in both, the later value is what the tables have."""
    async with running(open_store(tmp_path)) as store:
        await store.txn(Txn(then=[Put("k", b"early"), Put("gone", b"")]))
        assert store.statistics().journal_entries == 1
        await store.txn(Txn(then=[Put("k", b"late"), Delete("gone"), Put("large", bytes(5000))]))
        assert store.statistics().journal_entries == 0
        left = copy(tmp_path, tmp_path / "left")
    async with running(open_store(left)) as again:
        assert [(item.key, item.value) for item in (await again.range("")).items] == [
            ("k", b"late"),
            ("large", bytes(5000)),
        ]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.sampled_from([0, 20, 5000]), st.booleans()),
        st.tuples(st.just("delete"), st.integers(0, 5), st.just(0), st.just(False)),
        st.tuples(st.sampled_from(["grant", "revoke", "record"]), st.just(0), st.just(0), st.just(False)),
        st.tuples(st.just("many"), st.integers(0, 40), st.just(0), st.just(False)),
    ),
    max_size=60,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_a_kill_leaves_what_the_running_store_had(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, bool]]
) -> None:
    """Small and large commits in any order, the file of the running store opened elsewhere: the same keys, leases, entries, revision."""
    directory = tmp_path_factory.mktemp("store")
    async with running(open_store(directory)) as store:
        leases = [await store.grant(LONG_MS)]
        await store.barrier()
        for what, number, length, is_leased in steps:
            if what == "put":
                put = Put(f"k/{number}", bytes([number]) * length, leases[-1] if is_leased and leases else 0)
                await store.txn(Txn(then=[put], record=b"put"))
            elif what == "delete":
                await store.txn(Txn(then=[Delete(f"k/{number}")]))
            elif what == "record":
                await store.txn(Txn(record=b"alone"))
            elif what == "many":
                await write_some(store, number)
            elif what == "grant":
                leases.append(await store.grant(LONG_MS))
                await store.barrier()
            elif leases:
                await store.revoke(leases.pop())
        had = (await store.range(""), store.revision, await store.log_head(), await store.read_log())
        kept = {lease for lease in leases if await store.lease_left_ms(lease) is not None}
        left = copy(directory, directory / "left")
        entries = store.statistics().log_seq
    verified = verify_file(left / DATABASE)
    assert (verified["ok"], verified["entries"]) == (True, entries)
    for _ in range(2):  # and once more after that was closed in order
        async with running(open_store(left)) as again:
            assert had == (await again.range(""), again.revision, await again.log_head(), await again.read_log())
            assert {lease for lease in leases if await again.lease_left_ms(lease) is not None} == kept
            assert again.statistics().journal_entries == 0


@pytest.mark.slow
async def test_entries_of_an_earlier_round_are_not_taken_again(tmp_path: Path) -> None:
    """What the slots still hold of what the tables have taken is not taken for new, whenever the store is killed."""
    async with running(open_store(tmp_path)) as store:
        await write_some(store, SLOTS)
        for number in range(SLOTS + 1, 2 * SLOTS + 4):
            await write_some(store, 1, number)
            had = (await store.range(""), await store.read_log())
            left = copy(tmp_path, tmp_path / f"left-{number}")
            async with running(open_store(left)) as again:
                assert had == (await again.range(""), await again.read_log())
                await write_some(again, 2, 1000)
            async with running(open_store(left)) as again:
                assert (await again.log_head()).seq == len(had[1]) + 2
            shutil.rmtree(left)


async def test_a_file_of_the_first_format_is_taken_on(tmp_path: Path) -> None:
    """It gets its journal when it is opened, and keeps what it has."""
    async with running(open_store(tmp_path)) as store:
        await write_some(store, 10)
        had = (await store.range(""), store.revision, await store.log_head(), await store.read_log())
    edit(tmp_path, "drop table journal; alter table state drop column folded; pragma user_version = 1")
    assert verify_file(tmp_path / DATABASE)["entries"] == 10
    for _ in range(2):
        async with running(open_store(tmp_path)) as store:
            assert had == (await store.range(""), store.revision, await store.log_head(), await store.read_log())
    async with running(open_store(tmp_path)) as store:
        await write_some(store, 10, 11)
        assert store.statistics().journal_entries == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("update journal set entry = x'c1' where slot = 3", "an entry of the journal cannot be read"),
        ("update journal set entry = x'00' where slot = 3", "an entry of the journal cannot be read"),
        ("update journal set number = 0 where slot = 3", "entries of the journal are missing"),
        ("update state set folded = folded - 1", "entries of the journal are missing"),
    ],
)
async def test_a_damaged_journal_is_refused(tmp_path: Path, change: str, words: str) -> None:
    """Whoever changes it, with whole pages, is found when the file is opened, and when it is verified."""
    async with running(open_store(tmp_path)) as store:
        await write_some(store, 10)
        left = copy(tmp_path, tmp_path / "left")
    edit(left, change)
    assert not verify_file(left / DATABASE)["ok"]
    with pytest.raises(StoreFailed, match=words) as refused:
        open_store(left)
    assert refused.value.message.endswith(f"; what of it: ifbus witness verify --state {left}")

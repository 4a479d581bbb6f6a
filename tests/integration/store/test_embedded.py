"""What only the embedded store has: its file, its batches, its clock."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import apsw
import pytest
import trio
import trio.testing

from ifbus.errors import Overloaded, Unavailable
from ifbusd.store.base import Get, LeaseNotFound, Put, Txn, WatchEvent
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.dirlock import LOCK_NAME, DirectoryInUse, lock_directory
from ifbusd.store.embedded import EmbeddedStore, StoreFailed
from ifbusd.store.wal import whole_frames
from tests.conformance.backends import boottime_ms, running, wall_ms

ROOT = Path(__file__).parents[3]
LONG_MS = 3_600_000


class SteadyClock:
    """A steady clock that a test moves."""

    def __init__(self) -> None:
        self.ms = 5_000_000

    def __call__(self) -> int:
        """Now."""
        return self.ms


def open_store(directory: Path, clock: SteadyClock | None = None, **config: object) -> EmbeddedStore:
    """The store in a directory."""
    return EmbeddedStore(
        directory / "ifbusd.db",
        config=EmbeddedConfig(**config),  # type: ignore[arg-type]
        now_ms=wall_ms,
        boottime_ms=clock or boottime_ms,
    )


# --- batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flush", ["inline", "thread"])
async def test_writes_that_arrive_together_commit_together(tmp_path: Path, flush: str) -> None:
    """64 concurrent writers share commits; a writer alone has one for each write."""
    async with running(open_store(tmp_path, flush=flush)) as store:
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(store.txn, Txn(then=[Put(f"k/{number}", b"")], record=b""))
        together = store.statistics()
        assert (together.txns, together.revision, together.log_seq) == (64, 64, 64)
        assert together.commits <= 3
        assert together.largest_batch > 30
        for number in range(5):
            await store.txn(Txn(then=[Put(f"k/{number}", b"")]))
        assert store.statistics().commits == together.commits + 5


@pytest.mark.parametrize("limit", [{"max_batch_txns": 4}, {"max_batch_bytes": 4000}])
async def test_a_batch_is_bounded(tmp_path: Path, limit: dict[str, int]) -> None:
    """Transactions above the limits of one commit wait for the next; all are done."""
    async with running(open_store(tmp_path, **limit)) as store:
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(store.txn, Txn(then=[Put(f"k/{number}", bytes(1000))]))
        assert store.statistics().largest_batch == 4
        assert len((await store.range("k/")).items) == 64


async def test_what_rests_on_the_open_batch_waits_for_it(tmp_path: Path) -> None:
    """A grant does not wait for the disk; a barrier after it, or a transaction that only reads, does."""
    async with running(open_store(tmp_path)) as store:
        for commits, call in enumerate([store.barrier, lambda: store.txn(Txn(then=[Get("k")]))]):
            await store.grant(LONG_MS)
            assert store.statistics().commits == commits
            await call()
            assert store.statistics().commits == commits + 1


async def test_the_loop_runs_while_a_thread_commits(tmp_path: Path) -> None:
    """With the commit in a thread other tasks go on, and the store's callers are served after it, in order."""
    async with running(open_store(tmp_path, flush="thread")) as store, trio.open_nursery() as nursery:
        passes = 0

        async def other_work() -> None:
            nonlocal passes
            while True:
                await trio.lowlevel.checkpoint()
                passes += 1

        nursery.start_soon(other_work)
        for number in range(20):
            await store.txn(Txn(then=[Put("k", b"%d" % number)]))
            found = await store.get("k")
            assert found is not None
            assert found.value == b"%d" % number
        assert passes > 20
        nursery.cancel_scope.cancel()


async def test_the_write_ahead_log_stays_bounded(tmp_path: Path) -> None:
    """However much is written, the log is copied back in time and its file does not grow on."""
    async with running(open_store(tmp_path, checkpoint_wal_bytes=256 * 1024)) as store:
        for number in range(100):
            await store.txn(Txn(then=[Put(f"k/{number % 10}", bytes([number]) * 50_000)]))
        figures = store.statistics()
        assert figures.checkpoints > 10
        assert (tmp_path / "ifbusd.db-wal").stat().st_size < 1024 * 1024


async def test_a_cancelled_writer_may_have_written(tmp_path: Path) -> None:
    """Giving up a transaction that is under way disturbs neither it nor its neighbours."""
    async with running(open_store(tmp_path)) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.txn, Txn(then=[Put("k/neighbour", b"")]))
            with trio.move_on_after(0):
                await store.txn(Txn(then=[Put("k/cancelled", b"")]))
        assert [item.key for item in (await store.range("k/")).items] == ["k/cancelled", "k/neighbour"]


# --- the file ----------------------------------------------------------------------------------------


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """Keys, revisions, leases and the log go on where they were; lease ids are never used twice."""
    async with running(open_store(tmp_path)) as store:
        lease = await store.grant(LONG_MS)
        await store.txn(Txn(then=[Put("k/a", b"1", lease), Put("k/b", b"2")], record=b"one"))
        await store.txn(Txn(then=[Put("k/b", b"3")]))
        before = (await store.range(""), store.revision, await store.log_head(), await store.read_log())
    async with running(open_store(tmp_path)) as store:
        assert before == (await store.range(""), store.revision, await store.log_head(), await store.read_log())
        assert await store.keep_alive(lease) == LONG_MS
        assert await store.grant(LONG_MS) > lease
        await store.revoke(lease)
        assert [item.key for item in (await store.range("k/")).items] == ["k/b"]


async def test_what_is_open_at_the_end_is_committed(tmp_path: Path) -> None:
    """A store that is told to stop commits the open batch; later calls are refused, and watches end."""
    store = open_store(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        with trio.CancelScope(shield=True):
            nursery.cancel_scope.cancel()
            await store.txn(Txn(then=[Put("k", b"last")]))
    with pytest.raises(Unavailable, match="closed"):
        await store.get("k")
    assert not (tmp_path / "ifbusd.db-wal").exists() or (tmp_path / "ifbusd.db-wal").stat().st_size == 0
    async with running(open_store(tmp_path)) as again:
        assert await again.get("k") is not None


async def test_what_a_thread_was_to_commit_is_committed_at_the_end(tmp_path: Path) -> None:
    """The store is stopped between taking a batch and handing it to the thread: closing writes it."""
    async with running(open_store(tmp_path, flush="thread")) as store:
        lease = await store.grant(LONG_MS)  # neither this nor the stop lets anybody else run before
    async with running(open_store(tmp_path)) as store:
        assert await store.lease_left_ms(lease) is not None


async def test_a_commit_without_a_change_keeps_the_revision(tmp_path: Path) -> None:
    """Neither a lease nor an entry that follows a write takes its revision back."""
    async with running(open_store(tmp_path)) as store:
        written = (await store.txn(Txn(then=[Put("k", b"")]))).revision
        await store.grant(LONG_MS)
        await store.barrier()
    async with running(open_store(tmp_path)) as store:
        assert store.revision == written
        await store.txn(Txn(record=b"entry"))
    async with running(open_store(tmp_path)) as store:
        assert store.revision == written


async def test_a_store_that_does_not_run_refuses(tmp_path: Path) -> None:
    """Before `run`, calls say so instead of waiting for ever."""
    store = open_store(tmp_path)
    with pytest.raises(Unavailable, match="not running"):
        await store.txn(Txn(then=[Put("k", b"")]))
    async with running(store):
        await store.txn(Txn(then=[Put("k", b"")]))


async def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    """Database and log are the daemon's alone, whatever the umask."""
    async with running(open_store(tmp_path)) as store:
        await store.txn(Txn(then=[Put("k", b"")]))
        for path in tmp_path.iterdir():
            assert path.stat().st_mode & 0o077 == 0


async def test_a_second_connection_is_refused(tmp_path: Path) -> None:
    """The database can be open once."""
    async with running(open_store(tmp_path)):
        with pytest.raises(StoreFailed, match="another process has it open"):
            open_store(tmp_path)


async def write_some(directory: Path) -> None:
    """A database of some 20 pages."""
    async with running(open_store(directory)) as store:
        for number in range(100):
            await store.txn(Txn(then=[Put(f"k/{number}", bytes(500))], record=b"%d" % number))


@pytest.mark.slow
async def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """One flipped bit in any page is a refusal that names the file, never a wrong answer."""
    await write_some(tmp_path)
    path = tmp_path / "ifbusd.db"
    whole = path.read_bytes()
    for offset in range(30, len(whole), 1021):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])
        with pytest.raises(StoreFailed, match=r"ifbusd\.db"):
            open_store(tmp_path)
    path.write_bytes(whole)
    async with running(open_store(tmp_path)) as store:
        assert (await store.log_head()).seq == 100


async def test_what_is_whole_of_a_damaged_log_is_what_sqlite_reads(tmp_path: Path) -> None:
    """Where SQLite cannot say how much of the log it reads, since the rest does not fit, we count as it does; the log is named."""
    left = tmp_path / "left"
    left.mkdir()
    async with running(open_store(tmp_path)) as store:
        for number in range(5):
            await store.txn(Txn(then=[Put(f"k/{number}", bytes(5_000))]))
        for name in ("ifbusd.db", "ifbusd.db-wal"):
            shutil.copyfile(tmp_path / name, left / name)
    log = left / "ifbusd.db-wal"
    whole = log.read_bytes()
    used = whole_frames(whole)
    assert len(whole[: 32 + used * (24 + 4096)].rstrip(b"\0")) == len(whole.rstrip(b"\0"))
    before = used
    for frame in reversed(range(used)):
        damaged = bytearray(whole)
        damaged[32 + frame * (24 + 4096) + 1000] ^= 1
        found = whole_frames(bytes(damaged))
        assert found <= min(frame, before)
        before = found
        log.write_bytes(damaged)
        reader = apsw.Connection(str(left / "ifbusd.db"), vfs="cksmvfs")
        reader.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        reader.execute("pragma locking_mode = exclusive").fetchall()
        with contextlib.suppress(apsw.SQLError):  # a log of which nothing is whole leaves an empty database
            reader.execute("select count(*) from kv").fetchall()
        assert max(0, reader.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0]) == found
        reader.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("pragma user_version = 3", "format is version 3"),
        ("pragma application_id = 1", "not one of ifbusd"),
        ("update log set record = x'00' where seq = 100", "entry 100 of the witness log"),
        ("delete from log where seq = 99", "entry 100 of the witness log"),
        ("delete from state", "no state row"),
    ],
)
async def test_a_database_that_is_not_ours_is_refused(tmp_path: Path, change: str, words: str) -> None:
    """A newer format, another program's file and an edited end of the log are told apart, by name."""
    await write_some(tmp_path)
    editor = apsw.Connection(str(tmp_path / "ifbusd.db"), vfs="cksmvfs")
    editor.execute(change)
    editor.close()
    with pytest.raises(StoreFailed, match=words) as refused:
        open_store(tmp_path)
    is_damage = change.startswith(("update", "delete"))
    assert refused.value.message.endswith(f"; what of it: ifbus witness verify --state {tmp_path}") is is_damage


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """A missing directory, and a file that is no database, are told by path."""
    with pytest.raises(StoreFailed, match=r"none/ifbusd\.db"):
        open_store(tmp_path / "none")
    (tmp_path / "ifbusd.db").write_text("no database, but long enough to be taken for one\n" * 100)
    with pytest.raises(
        StoreFailed, match=r"ifbusd.db: the database is damaged.*; what of it: ifbus witness verify --state /"
    ):
        open_store(tmp_path)


def test_one_daemon_per_directory(tmp_path: Path) -> None:
    """A second process is told the first one's id, and gets in as soon as that is dead."""
    holder = (
        "import sys; from pathlib import Path; from ifbusd.store.dirlock import lock_directory\n"
        "with lock_directory(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryInUse, match=str(process.pid)) as refused, lock_directory(tmp_path):
            pass
        assert refused.value.data["pid"] == process.pid
        process.kill()
    with lock_directory(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == f"{os.getpid()}\n"


# --- leases ------------------------------------------------------------------------------------------


async def test_nobody_expires_because_the_daemon_was_away(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """After a suspend of an hour all leases of a minute live on, and then end after what was left of their time."""
    clock = SteadyClock()
    async with running(open_store(tmp_path, clock, lease_tick_ms=100)) as store:
        leases = [await store.grant(60_000) for _ in range(100)]
        await store.txn(Txn(then=[Put(f"l/{lease}", b"", lease) for lease in leases]))
        clock.ms += LONG_MS
        for _ in range(500):  # 50 s of looks, on time
            await trio.sleep(0.1)
            clock.ms += 100
        assert [await store.lease_left_ms(lease) for lease in leases].count(None) == 0
        await store.keep_alive(leases[0])
        for _ in range(120):
            await trio.sleep(0.1)
            clock.ms += 100
        assert [item.key for item in (await store.range("l/")).items] == [f"l/{leases[0]}"]


async def test_a_restart_gives_leases_their_full_time(tmp_path: Path) -> None:
    """However little was left, a lease has all its time again when nobody could have renewed it."""
    clock = SteadyClock()
    async with running(open_store(tmp_path, clock)) as store:
        lease = await store.grant(1000)
        await store.txn(Txn(then=[Put("l/a", b"", lease)]))
        clock.ms += 150
        assert await store.lease_left_ms(lease) == 850
    clock.ms += LONG_MS
    async with running(open_store(tmp_path, clock)) as store:
        assert await store.lease_left_ms(lease) == 1000


async def test_a_lease_with_very_many_keys_ends_in_parts(tmp_path: Path) -> None:
    """Thousands of keys go a thousand to a revision; the lease is over at once, and all are gone when revoke returns."""
    async with running(open_store(tmp_path)) as store:
        lease = await store.grant(LONG_MS)
        for start in range(0, 2500, 100):
            await store.txn(Txn(then=[Put(f"l/{start + n}", b"", lease) for n in range(100)]))
        told: list[WatchEvent] = []
        async with store.watch("l/") as changes, trio.open_nursery() as nursery:
            nursery.start_soon(store.revoke, lease)
            told += await anext(changes)
            with pytest.raises(LeaseNotFound):
                await store.keep_alive(lease)
            while len(told) < 2500:
                told += await anext(changes)
        assert Counter(Counter(event.revision for event in told).values()) == {1000: 2, 500: 1}
        assert len({event.key for event in told}) == 2500
        assert (await store.range("l/")).items == []


async def test_an_abandoned_revoke_is_finished(tmp_path: Path) -> None:
    """A revoke that was cancelled after its first part leaves no keys behind."""
    async with running(open_store(tmp_path, lease_tick_ms=5)) as store:
        lease = await store.grant(LONG_MS)
        for start in range(0, 2500, 100):
            await store.txn(Txn(then=[Put(f"l/{start + n}", b"", lease) for n in range(100)]))
        count = 0
        async with store.watch("l/") as changes:
            with trio.move_on_after(0):
                await store.revoke(lease)
            while count < 2500:
                count += len(await anext(changes))
        assert (await store.range("l/")).items == []


async def test_leases_are_bounded(tmp_path: Path) -> None:
    """Above the limit a lease is refused, and granted again when one has ended."""
    async with running(open_store(tmp_path, max_leases=3)) as store:
        leases = [await store.grant(LONG_MS) for _ in range(3)]
        with pytest.raises(Overloaded):
            await store.grant(LONG_MS)
        await store.revoke(leases[0])
        await store.grant(LONG_MS)


async def test_a_bug_in_a_commit_stops_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever commits hears of the bug, whoever waits for the same commit is not left waiting, and nothing is done after it."""
    heard: list[Exception] = []

    async def write(store: EmbeddedStore, key: str) -> None:
        try:
            await store.txn(Txn(then=[Put(key, b"")]))
        except (Unavailable, TypeError) as error:
            heard.append(error)

    def fail(*_: object) -> None:
        raise TypeError("a bug")

    with pytest.RaisesGroup(StoreFailed):
        async with running(open_store(tmp_path, flush="inline")) as store:
            monkeypatch.setattr(store, "_write", fail)
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(write, store, f"k/{number}")
            await trio.sleep_forever()
    assert sorted(type(error).__name__ for error in heard) == ["TypeError", "Unavailable", "Unavailable"]

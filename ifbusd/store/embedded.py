"""The embedded store: etcd's semantics over one SQLite file, for one daemon on one host.

Transactions that arrive during one pass of the loop are decided in memory, gather in a *batch* and become durable together, by
one SQLite transaction in the next pass (ADR 0001, ADR 0015). The first who waits for it commits it, the others are parked; a
reader sees the open batch at once and asks `barrier` before it tells others. On a slow disk `run` has a thread wait for the
disk, and the next batch gathers meanwhile. A small batch goes into the journal, and into the tables later, with others
(`journal.py`, ADR 0021).

The mutable state is the batches, what waits in the journal, the keys in memory (`memory.py`), the revision and the head of the
log, the leases (`leases.py`) and the history (`watches.py`); what a batch changed in memory is undone if it cannot be committed
(ADR 0002).
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import apsw
import attrs
import trio

from ifbus.errors import Overloaded, Unavailable
from ifbusd.store.base import (
    TOLD,
    Get,
    KeyValue,
    LeaseNotFound,
    LogEntry,
    LogHead,
    NotAtHand,
    Page,
    Put,
    Txn,
    TxnResult,
    WatchEvent,
)
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.store.changes import Changes
from ifbusd.store.checks import MAX_TXN_OPS, MAX_VALUE_BYTES, check_bytes, check_key, check_txn, prefix_end
from ifbusd.store.flush import FlushGauge
from ifbusd.store.fsync import DiskFailed
from ifbusd.store.journal import Journal, fold_all
from ifbusd.store.leases import Lease, LeaseTable
from ifbusd.store.memory import UNKNOWN, KeyMemory
from ifbusd.store.reserve import Reserve
from ifbusd.store.schema import StoreFailed, describe, open_database
from ifbusd.store.watches import EmbeddedWatch, History

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ifbusd.store.config import EmbeddedConfig

_GET: Final = "select key, value, create_revision, mod_revision, lease from kv where key = ?"
_RANGE: Final = (
    "select key, value, create_revision, mod_revision, lease from kv where key >= ? and key < ? order by key limit ?"
)
_READ_LOG: Final = "select seq, revision, at_ms, record, hash from log where seq > ? order by seq limit ?"
# `lease != 0` lets SQLite use the partial index.
_KEYS_OF_LEASE: Final = "select key from kv where lease = ? and lease != 0 order by id limit ?"

# SQLite sorts every text before every blob: an upper bound for ranges without one.
_NO_END: Final = b""
# Commits made at the start to see how long the disk takes.
_CALIBRATING_COMMITS: Final = 5
# Keys on the disk that are also kept in memory: at most twice so many, of at most 4 KiB each and a few hundred bytes mostly.
_KEPT_KEYS: Final = 4096
# A lease with more keys ends in several revisions, so that a big one does not hold up everybody (ADR 0003).
_LEASE_CHUNK: Final = 1000
# The upper half of a lease id counts starts: an id that a crash took back is never given to somebody else.
_LEASE_ID_BITS: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_STORAGE_FULL: Final = "the storage is full"
# After a look that found no room, until the next: each is on behalf of somebody who is refused otherwise.
_ROOM_LOOK_S: Final = 0.02
_log = logging.getLogger(__name__)

_T = TypeVar("_T")


@attrs.define(eq=False, kw_only=True)
class _Batch(Changes):
    """What one commit will write, who waits for it, what to tell watchers, and how to undo it in memory.

    Attributes:
        settled: What the tables will have after it; None if it goes into the journal.
        is_awaited: Somebody was woken who may want to join it: he has a turn before it is committed.
        has_leader: One of those who wait commits it in the next pass; otherwise `run` does.
        is_over: It was committed, or undone for the reason in `error`.
    """

    head_before: LogHead
    settled: Changes | None = None
    events: list[WatchEvent] = attrs.Factory(list)
    undo: list[Callable[[], object]] = attrs.Factory(list)
    txns: int = 0
    is_awaited: bool = False
    has_leader: bool = False
    is_over: bool = False
    lot: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)
    error: str | None = None


@attrs.frozen(kw_only=True)
class EmbeddedStatistics:
    """What the store did since it was opened, and how it stands.

    Attributes:
        revision, log_seq: The newest, open batch included.
        txns, commits: Durable ones; their quotient is the mean batch.
        largest_batch: Most transactions in one commit.
        flush_us, flush_estimate_us: How long the last commit took, its rows not counted, and the smoothed time that chooses `flush_in_thread`.
        wal_bytes: Part of the write-ahead log in use. `database_bytes`: the database without it.
        checkpoints: Times that the write-ahead log was copied into the database.
        storage_full: Commits that failed for want of space.
        is_full: The space that was kept back is given up: only what ends something is done.
        reserve_bytes: What is kept back now.
        journal_entries: Commits in the journal, which the tables have not taken yet.
        leases, history_events, keys: In memory now.
    """

    revision: int
    log_seq: int
    txns: int
    commits: int
    largest_batch: int
    flush_us: int
    flush_estimate_us: int
    flush_in_thread: bool
    wal_bytes: int
    database_bytes: int
    checkpoints: int
    storage_full: int
    is_full: bool
    reserve_bytes: int
    journal_entries: int
    leases: int
    history_events: int
    keys: int


class EmbeddedStore:
    """`ifbusd.store.base.Store` over SQLite. Works while `run` does; before and after, every call is `Unavailable`.

    Unlike other coroutines of the daemon, `get`, `range` and the log's readers do **not** yield to the scheduler unless a
    commit is under way in a thread: they take microseconds.

    `barrier` covers what this task has read since it last yielded: a batch that cannot be committed for want of space is
    gone, and the store goes on from the state before it, with new revisions (none is used twice in one run).
    """

    def __init__(
        self, path: Path, *, config: EmbeddedConfig, now_ms: Callable[[], int], boottime_ms: Callable[[], int]
    ) -> None:
        """Open, or make, the database; blocks while it recovers and measures the disk (some 10 ms).

        Args:
            path: The database file; its directory must exist and be locked by this daemon (`dirlock`).
            config: Limits and the way of committing.
            now_ms: Wall clock, for the witness log.
            boottime_ms: Steady clock, for leases.

        Raises:
            StoreFailed: The database cannot be used; the message names it and says why.
        """
        self._path = path
        self._config = config
        self._now_ms = now_ms
        self._boottime_ms = boottime_ms
        self._unavailable: str | None = "the store is not running"
        # True while writers have to wait: not running, or a full batch.
        self._blocked = True
        # True while a thread works on the connection.
        self._busy = False
        # Where both are waited out.
        self._unblocked = trio.lowlevel.ParkingLot()
        self._work = trio.lowlevel.ParkingLot()
        self._limiter = trio.CapacityLimiter(1)
        self._memory = KeyMemory(_KEPT_KEYS)
        # What gathers, and what is being committed.
        self._batch: _Batch | None = None
        self._committing: _Batch | None = None
        self._broken = False
        self._is_look_due = True
        self._is_checkpoint_due = False
        self._reserve = Reserve(path.with_name(f"{path.name}-reserve"), config.reserve_bytes)
        # True from the first commit that found no space until there is room for all of the reserve again.
        self._is_full = False
        self._is_room_due = False
        self._next_room_look_s = 0.0
        self._gauge = FlushGauge(mode=config.flush, limit_us=config.inline_limit_us)
        self._wal_pages = 0
        self._txns = self._commits = self._largest_batch = self._checkpoints = self._storage_full = 0
        self._flush_us = 0
        # Leases whose time is over and that still have keys: their first chunk is gone, the rest follows.
        self._ending: set[int] = set()
        self._connection = open_database(
            path, cache_bytes=config.cache_bytes, wal_limit_bytes=2 * config.checkpoint_wal_bytes
        )
        try:
            self._load()
            self._note_room(self._reserve.make())
        except apsw.Error as error:
            self._connection.close()
            raise StoreFailed(f"cannot open {path}: {describe(error)}") from error
        except BaseException:
            self._connection.close()
            raise

    def _load(self) -> None:
        # One cursor: each result is read to its end before the next statement, so that none is left open at a commit.
        self._sql: Callable[..., Any] = self._connection.cursor().execute
        self._page_bytes: int = self._sql("pragma page_size").get
        self._journal = Journal(self._connection)
        self._connection.set_wal_hook(self._note_wal)
        seq, digest, logged = self._sql("select seq, hash, revision from log order by seq desc limit 1").get or (
            0,
            GENESIS,
            0,
        )
        self._head = LogHead(seq, digest)
        self._revision: int = max(logged, self._sql("select revision from state").get)
        self._told_revision: int = self._revision
        for _ in range(_CALIBRATING_COMMITS):
            started_ns = time.perf_counter_ns()
            self._sql("update state set starts = starts + 1")  # a commit that changes nothing writes nothing
            self._gauge.note((time.perf_counter_ns() - started_ns) / 1000)
        self._next_lease: int = (self._sql("select starts from state").get << _LEASE_ID_BITS) + 1
        self._history = History(
            revision=self._revision, max_events=self._config.history_events, max_bytes=self._config.history_bytes
        )
        # A restart gives every lease its full time: nobody could renew while we were away.
        now_ms = self._boottime_ms()
        self._leases = LeaseTable(now_ms=now_ms, step_limit_ms=2 * self._config.lease_tick_ms)
        for lease, ttl_ms in self._sql("select id, ttl_ms from lease"):
            self._leases.add(lease, ttl_ms, now_ms)

    # --- reading -------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The newest revision, that of the open batch included."""
        return self._revision

    @property
    def told_revision(self) -> int:
        """The newest durable revision, which watches have been told."""
        return self._told_revision

    async def get(self, key: str) -> KeyValue | None:
        """The key as it stands, None if absent. Does not yield (see the class); may be ahead of the disk: `barrier`."""
        while True:
            try:
                return self.peek(key)
            except NotAtHand:
                await self._until_unblocked()

    def peek(self, key: str) -> KeyValue | None:
        """As `get`, at once, or not at all.

        Raises:
            NotAtHand: The disk has to be asked and is busy: `get` waits for it.
        """
        if self._unavailable is not None:
            raise Unavailable(self._unavailable)
        found = self._memory.find(key)
        if found is UNKNOWN:
            check_key(key)  # what is known was checked when it was asked for first
            if self._busy:
                raise NotAtHand(key)
            try:
                row = self._sql(_GET, (key,)).get
            except apsw.Error as error:
                raise self._fail(error) from error
            found = None if row is None else KeyValue._make(row)
            self._memory.keep(key, found)
        return cast("KeyValue | None", found)

    async def range(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        """The keys that start with `prefix` and sort after `after`, in key order. Does not yield (see the class)."""
        if limit < 1:
            raise ValueError(f"cannot read a range of {limit} keys: at least 1")
        await self._until_idle()
        # The string next after `after` is the one with a zero added.
        start = max(prefix, after + "\0") if after else prefix
        end = prefix_end(prefix)
        pending = self._memory.pending(prefix)
        try:
            rows = self._sql(_RANGE, (start, _NO_END if end is None else end, limit + 1 + len(pending))).fetchall()
        except apsw.Error as error:
            raise self._fail(error) from error
        items = [KeyValue._make(row) for row in rows if row[0] not in pending]
        ahead = [written for key, written in pending.items() if written is not None and key >= start]
        if ahead:
            # In the order of the database, which is that of UTF-8. What lies beyond its last row may come after more rows.
            is_cut = len(rows) > limit + len(pending)
            items = sorted([*items, *ahead], key=lambda item: item.key.encode())
            if is_cut:
                last = rows[-1][0].encode()
                items = [item for item in items if item.key.encode() <= last]
        return Page(self._revision, items[:limit], len(items) > limit)

    async def log_head(self) -> LogHead:
        """Where the witness log ends, the open batch included; number 0 and 32 zero bytes when it is empty."""
        if self._unavailable is not None:
            raise Unavailable(self._unavailable)
        return self._head

    async def read_log(self, *, after_seq: int = 0, limit: int = 1000) -> list[LogEntry]:
        """Witness entries after number `after_seq`, in order. Does not yield (see the class)."""
        await self._until_idle()
        try:
            found = [LogEntry._make(row) for row in self._sql(_READ_LOG, (after_seq, limit)).fetchall()]
        except apsw.Error as error:
            raise self._fail(error) from error
        if len(found) < limit:
            ahead = [*self._journal.waiting.log, *(self._batch.log if self._batch is not None else ())]
            found += [entry for entry in ahead if entry.seq > after_seq][: limit - len(found)]
        return found

    async def barrier(self) -> None:
        """Return once what this task has read is durable; at once, without yielding, if nothing is under way."""
        # What gathers is committed after what is being committed, and not without it.
        batch = self._batch or self._committing
        if batch is not None:
            await self._durable(batch)
        elif self._unavailable is not None:
            raise Unavailable(self._unavailable)

    def tell(self) -> None:
        """Let those that are fed have what is durable now; `run` would do it in its next turn."""
        self._history.deliver()

    async def sync(self) -> None:
        """As `barrier`: nobody else writes here."""
        await self.barrier()

    def watch(self, prefix: str, *, start_revision: int | None = None) -> EmbeddedWatch:
        """Watch the keys that start with `prefix`, from `start_revision` on, or from now. Only durable changes are told."""
        return EmbeddedWatch(self._history, prefix, start_revision, lambda: self._revision)

    # --- writing -------------------------------------------------------------------------------------

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction; what it wrote, and what its answer rests on, is on the disk when this returns.

        Raises:
            Unavailable: The batch could not be committed: the storage is full (`data["reason"]` is ``storage_full``; nothing
                was changed, unless power fails at once), or the disk failed and the store stops (outcome unknown).
            LeaseNotFound: A put names a lease that has ended; nothing was changed.
            ValueError, TypeError: No store can do this (`checks`); nothing was changed.

        Cancelled, it may have been committed: retry with the same idempotency key.
        """
        while True:
            while self._blocked:
                await self._until_unblocked()
            if self._is_full and not txn.ends and _writes(txn):
                await self._until_room()
                continue
            try:
                result = self._apply(txn)
            except NotAtHand:
                await self._until_unblocked()
                continue
            except LeaseNotFound:
                await self.barrier()  # the lease's end may be in the open batch
                raise
            if txn.decided is not None and result.succeeded and txn.decided():
                self._open_batch().is_awaited = True
            await self.barrier()
            return result

    async def grant(self, ttl_ms: int, *, ends: bool = False) -> int:
        """A new lease. Does not wait for the disk: the id is of no use without a later `txn`, which does.

        Args:
            ends: For a transaction that ends something (`Txn.ends`).

        Raises:
            Overloaded: There are `max_leases` already.
        """
        if ttl_ms < 1:
            raise ValueError(f"cannot grant a lease of {ttl_ms} ms: at least 1")
        while self._blocked or (self._is_full and not ends):
            await (self._until_unblocked() if self._blocked else self._until_room())
        if len(self._leases) >= self._config.max_leases:
            raise Overloaded(f"cannot grant a lease: {len(self._leases)} are alive, which is the limit")
        lease = self._next_lease
        self._next_lease += 1
        batch = self._open_batch()
        self._work.unpark()  # whoever asks for a lease does not wait here, so nobody else may commit it
        batch.granted.append((lease, ttl_ms))
        batch.undo.append(partial(self._leases.remove, lease))
        self._leases.add(lease, ttl_ms, self._boottime_ms())
        return lease

    async def keep_alive(self, lease: int) -> int:
        """Renew the lease; its full time in ms. In memory only: after a restart every lease has its full time anyway.

        Raises:
            LeaseNotFound: It has ended.
        """
        if self._unavailable is not None:
            raise Unavailable(self._unavailable)
        ttl_ms = self._leases.renew(lease, self._boottime_ms())
        if ttl_ms is None:
            raise _lease_not_found(lease)
        return ttl_ms

    async def revoke(self, lease: int) -> None:
        """End the lease now; durable on return. Its keys vanish in one revision, or several if it has more than 1000.

        Cancelled, the lease may have ended; if it has, what is left of its keys goes too.
        """
        while True:
            while self._blocked or self._busy:
                await self._until_unblocked()
            if lease in self._leases or lease in self._ending:
                self._end_lease(lease)
            await self.barrier()
            if lease not in self._ending:
                return

    async def lease_left_ms(self, lease: int) -> int | None:
        """Observed time until the lease ends unless renewed, None if it has ended."""
        if self._unavailable is not None:
            raise Unavailable(self._unavailable)
        return self._leases.left_ms(lease, self._boottime_ms())

    # --- running -------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batches and end leases until cancelled; then commit what is open and close the database.

        Raises:
            StoreFailed: A write, or waiting for the disk, failed in a way after which nothing may be acknowledged any
                more. Every call gets `Unavailable` from then on.
        """
        try:
            self._unavailable = None
            self._unblock()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tick)
                task_status.started()
                while not self._broken:
                    self._history.deliver()
                    if self._is_full:
                        await self._make_do()
                    if self._is_checkpoint_due:
                        await self._checkpoint()
                    if self._is_look_due:
                        self._is_look_due = self._look_at_leases()
                    if self._journal.is_full and not (self._gauge.in_thread or self._is_full):
                        # Now that the answers are on their way. On a slow disk the next batch takes it along, for one sync less.
                        self._open_batch()
                    batch = self._batch
                    if batch is not None and batch.is_awaited and not batch.has_leader:
                        batch.is_awaited = False
                        await trio.lowlevel.checkpoint()
                    elif batch is not None and not batch.has_leader:
                        await self._commit(batch)
                    elif not (self._is_look_due or self._is_room_due):
                        await self._work.park()
                    else:
                        await trio.lowlevel.checkpoint()  # whoever commits it has its turn
                nursery.cancel_scope.cancel()
        finally:
            self._close()
            if self._broken:  # also where it was cancelled at the same moment: whoever stops must hear of it
                raise StoreFailed(f"cannot go on with {self._path}: {self._unavailable}")

    async def _tick(self) -> None:
        # Beside the commits, which come thousands of times as often.
        while True:
            await trio.sleep(self._config.lease_tick_ms / 1000)
            if self._leases or self._ending:
                self._is_look_due = True
                self._work.unpark()

    def statistics(self) -> EmbeddedStatistics:
        """A snapshot."""
        return EmbeddedStatistics(
            revision=self._revision,
            log_seq=self._head.seq,
            txns=self._txns,
            commits=self._commits,
            largest_batch=self._largest_batch,
            flush_us=self._flush_us,
            flush_estimate_us=round(self._gauge.estimate_us),
            flush_in_thread=self._gauge.in_thread,
            wal_bytes=self._wal_bytes,
            database_bytes=self._path.stat().st_size,
            checkpoints=self._checkpoints,
            storage_full=self._storage_full,
            is_full=self._is_full,
            reserve_bytes=self._reserve.kept_bytes,
            journal_entries=len(self._journal),
            leases=len(self._leases),
            history_events=len(self._history),
            keys=len(self._memory),
        )

    @property
    def _wal_bytes(self) -> int:
        return self._wal_pages * (self._page_bytes + _FRAME_HEADER_BYTES)

    def _note_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    # --- the batch -----------------------------------------------------------------------------------

    def _apply(self, txn: Txn) -> TxnResult:
        """Decide in memory and add to the open batch, without yielding: everything at once, or nothing."""
        if txn.otherwise or len(txn.compares) > MAX_TXN_OPS or len(txn.then) > MAX_TXN_OPS:
            check_txn(txn)  # else what it would find is found below, before anything is changed
        peek, known = self.peek, self._memory.recent
        succeeded = True
        for key, expected in txn.compares:
            found = known[key] if key in known else peek(key)
            if (0 if found is None else found.mod_revision) != expected:
                succeeded = False
                break
        if not succeeded:
            check_txn(txn)  # what is not done must be fit to be done all the same
        revision = self._revision + 1
        values: list[KeyValue | None] = []
        writes: dict[str, KeyValue | None] = {}
        absent: set[str] = set()
        ended_lease = 0
        size_bytes = 0
        for op in txn.then if succeeded else txn.otherwise:
            key = op.key
            if type(op) is Put:
                if op.lease and op.lease not in self._leases:
                    ended_lease = op.lease
                value = op.value
                if type(value) is not bytes or len(value) > MAX_VALUE_BYTES:
                    check_bytes(key, value)
                before: KeyValue | None = None
                if op.is_new:
                    check_key(key)
                else:
                    before = known[key] if key in known else peek(key)
                if key in writes or key in absent:
                    raise ValueError(f"cannot write key {key!r} twice in one transaction")
                created = revision if before is None else before.create_revision
                writes[key] = KeyValue(key, value, created, revision, op.lease)
                size_bytes += len(value)
            elif type(op) is Get:
                values.append(writes[key] if key in writes else peek(key))
            elif key in writes or key in absent:
                raise ValueError(f"cannot write key {key!r} twice in one transaction")
            elif peek(key) is None:
                absent.add(key)
            else:
                writes[key] = None
        head = None
        has_record = succeeded and txn.record is not None
        if txn.record is not None:
            check_bytes("record", txn.record)
        if ended_lease:
            raise _lease_not_found(ended_lease)
        if writes or has_record:
            batch = self._open_batch()
            if writes:
                self._revision = batch.revision = revision
                batch.writes.update(writes)
                batch.events += [WatchEvent(key, written, revision) for key, written in writes.items()]
                if txn.told:
                    batch.events.append(WatchEvent(TOLD, None, revision, txn.told))
                self._memory.write(writes)
            if has_record:
                assert txn.record is not None
                head = self._append(batch, txn.record)
                size_bytes += len(txn.record)
            batch.txns += 1
            batch.size_bytes += size_bytes
            if batch.txns >= self._config.max_batch_txns or batch.size_bytes >= self._config.max_batch_bytes:
                self._blocked = True
        return TxnResult(succeeded, self._revision, tuple(values), head)

    def _append(self, batch: _Batch, record: bytes) -> LogHead:
        at_ms = self._now_ms()
        seq = self._head.seq + 1
        digest = entry_hash(self._head.hash, seq, self._revision, at_ms, record)
        batch.log.append(LogEntry(seq, self._revision, at_ms, record, digest))
        self._head = LogHead(seq, digest)
        return self._head

    def _open_batch(self) -> _Batch:
        if self._batch is None:
            self._batch = _Batch(head_before=self._head, revision=self._revision)
        return self._batch

    async def _durable(self, batch: _Batch) -> None:
        """Return when the batch is on the disk. The first who waits commits it in the next pass, with what has come until then."""
        if batch is self._batch and not batch.has_leader:
            if self._is_runs_turn():
                self._work.unpark()
            else:
                batch.has_leader = True
                await trio.lowlevel.cancel_shielded_checkpoint()
                if batch.is_awaited:
                    batch.is_awaited = False
                    await trio.lowlevel.cancel_shielded_checkpoint()
                batch.has_leader = False
                if batch is self._batch:
                    if self._is_runs_turn():
                        self._work.unpark()
                    else:
                        await self._commit(batch)
        if not batch.is_over:
            await batch.lot.park()
        if batch.error is not None:
            raise _unavailable(batch.error)

    async def _until_unblocked(self) -> None:
        if self._unavailable is not None:
            raise Unavailable(self._unavailable)
        await self._unblocked.park()
        if self._unavailable is not None:
            raise Unavailable(self._unavailable)

    async def _until_idle(self) -> None:
        """Return when the connection may be used."""
        if self._unavailable is not None:
            raise Unavailable(self._unavailable)
        while self._busy:
            await self._until_unblocked()

    def _is_runs_turn(self) -> bool:
        """Whether a commit belongs into a thread, or has to wait for what `run` does there."""
        return self._gauge.in_thread or self._busy or self._is_checkpoint_due

    async def _until_room(self) -> None:
        """Return after the next look for room, or when the store is at work otherwise.

        Raises:
            Unavailable: There is none, as a look has just found.
        """
        if trio.current_time() < self._next_room_look_s:
            raise _unavailable(_STORAGE_FULL)
        self._is_room_due = True
        self._work.unpark()
        await self._until_unblocked()

    async def _commit(self, batch: _Batch) -> None:
        """Make the batch durable and tell everybody; without yielding, unless it takes a thread."""
        self._batch, self._committing = None, batch
        self._unblock()
        try:
            self._write(batch)
            took_us = await self._in_thread(self._sync) if self._gauge.in_thread else self._sync()
        except apsw.FullError:
            self._give_up()
            self._note_room(False)
            # Copying the log back frees its file for new writes even on a full disk.
            self._is_checkpoint_due = True
        except apsw.Error as error:
            self._fail(error)
        except Exception as bug:  # nobody knows how far it came
            self._fail(f"a bug: {bug!r}")
            raise
        else:
            self._committed(batch, took_us)
            # Kept short, or copying it back would take long; on a full disk its file has to have room for the next commit.
            self._is_checkpoint_due = self._is_full or self._wal_bytes > self._config.checkpoint_wal_bytes
        # Entries of the log alone concern no view: `run` is not woken for them.
        if batch.events or self._batch is not None or self._is_checkpoint_due:
            self._work.unpark()

    def _write(self, batch: _Batch) -> None:
        """Hand the batch over to SQLite, whose commit is still to come. Processor time and no waiting, so a thread would gain nothing."""
        self._connection.execute("begin immediate")
        entry = None if self._is_full else self._journal.pack(batch)
        if entry is None:
            batch.settled = self._journal.fold(batch)
        else:
            self._journal.append(entry)

    def _sync(self) -> float:
        """Commit what was handed over; how long that took in microseconds. May run in a thread: touches nothing but the connection."""
        started_ns = time.perf_counter_ns()
        self._connection.execute("commit")
        return (time.perf_counter_ns() - started_ns) / 1000

    def _committed(self, batch: _Batch, took_us: float) -> None:
        self._committing = None
        if batch.settled is None:
            self._journal.appended(batch)
        else:
            self._journal.folded()
            self._memory.committed(batch.settled.writes)
            batch.settled = None  # it may be the batch, which would hold itself
        self._gauge.note(took_us)
        self._flush_us = round(took_us)
        self._commits += 1
        self._txns += batch.txns
        self._largest_batch = max(self._largest_batch, batch.txns)
        if batch.events:
            self._told_revision = batch.events[-1].revision
            self._history.publish(batch.events, batch.size_bytes)
        batch.is_over = True
        batch.lot.unpark_all()

    async def _checkpoint(self) -> None:
        """Copy the write-ahead log into the database, so that its file can be written from the start again."""
        self._is_checkpoint_due = False
        try:
            await self._in_thread(self._checkpoint_passive)
        except apsw.FullError:
            # The log keeps what the database has no room for. It cannot grow either: writes fail until there is room.
            pass
        except apsw.Error as error:
            self._fail(error)
        else:
            self._checkpoints += 1

    def _checkpoint_passive(self) -> None:
        self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._wal_pages = 0

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """Do slow work on the connection beside the loop; who has to ask the disk waits meanwhile."""
        self._busy = True
        try:
            # Once begun it is waited for, cancelled or not: what it did is unknown until it returns.
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._busy = False
            self._unblocked.unpark_all()

    def _unblock(self) -> None:
        if self._unavailable is None and self._blocked:
            self._blocked = False
            self._unblocked.unpark_all()

    # --- no space ------------------------------------------------------------------------------------

    async def _make_do(self) -> None:
        """Give up the space that is kept back, to what ends something; and look whether there is room again, if somebody asks."""
        try:
            if self._reserve.kept_bytes:
                await self._in_thread(self._reserve.give_up)
            elif self._is_room_due:
                self._note_room(await self._in_thread(self._reserve.make))
                self._is_room_due = False  # who asked meanwhile is woken, and asks again where there is none
                if self._is_full:
                    self._next_room_look_s = trio.current_time() + _ROOM_LOOK_S
        except DiskFailed as error:
            self._fail(error.message)

    def _note_room(self, is_there: bool) -> None:
        if self._is_full and is_there:
            _log.warning("there is room again: everything is taken")
        elif not self._is_full and not is_there:
            _log.error("the storage is full: only what ends something is done until there is room again")
        self._is_full = not is_there

    # --- failure -------------------------------------------------------------------------------------

    def _give_up(self) -> None:
        """Undo the batches for want of space, on the connection and in memory, and go on."""
        self._storage_full += 1
        try:
            if self._connection.in_transaction:  # some errors have rolled back already
                self._connection.execute("rollback")
        except apsw.Error as worse:
            self._fail(worse)
        else:
            self._drop_batches(_STORAGE_FULL)
            self._unblock()

    def _fail(self, error: apsw.Error | str) -> Unavailable:
        """Stop for good: what is on the disk is not known any more, or cannot be read."""
        if not self._broken:
            self._broken = True
            reason = error if isinstance(error, str) else describe(error)
            self._stop(f"the store has failed, the outcome is unknown: {reason}")
            self._work.unpark()
        return Unavailable(str(self._unavailable))

    def _drop_batches(self, reason: str) -> None:
        # What gathers was decided on what was being committed, so it goes too. The revision is not taken back: a compare that
        # was made from these must not fit a later write.
        for batch in (self._batch, self._committing):
            if batch is not None:
                self._head = batch.head_before
                for undo in reversed(batch.undo):
                    undo()
                batch.error = reason
                batch.is_over = True
                batch.lot.unpark_all()
        self._batch = self._committing = None
        self._memory.drop_pending(self._journal.waiting.writes)

    def _stop(self, reason: str) -> None:
        """From now on every call is `Unavailable` with this reason."""
        self._unavailable = reason
        self._blocked = True
        self._drop_batches(reason)
        self._history.close(reason)
        self._unblocked.unpark_all()

    def _close(self) -> None:
        """Commit what is open and leave a tidy file, unless the disk has failed: then nothing is written any more."""
        try:
            if not self._broken:
                # What was to be committed is still there, handed over to SQLite, if the end came before a thread had taken it.
                for batch in (self._committing, self._batch):
                    if batch is not None:
                        if not self._connection.in_transaction:
                            self._write(batch)
                        self._committed(batch, self._sync())
                self._batch = None
                fold_all(self._connection)
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.FullError:
            self._give_up()  # the log keeps what the database has no room for
        except apsw.Error as error:
            raise StoreFailed(f"cannot close {self._path} in order: {self._fail(error)}") from error
        finally:
            if not self._broken:
                self._stop("the store is closed")
            self._connection.close()

    # --- leases --------------------------------------------------------------------------------------

    def _look_at_leases(self) -> bool:
        """Let time pass for the leases and end those that are over; whether there is more to do at once."""
        self._leases.observe(self._boottime_ms())
        budget = _LEASE_CHUNK
        for lease in [*self._ending, *self._leases.due()]:
            try:
                budget -= self._end_lease(lease)
            except Unavailable:
                return False  # no space: tried again at the next look; or failed: `run` stops
            if budget <= 0:
                return True
        return bool(self._ending)

    def _end_lease(self, lease: int) -> int:
        """Remove a lease with its keys, or its first keys if it has very many; the number removed, at least 1."""
        try:
            rows = self._sql(_KEYS_OF_LEASE, (lease, _LEASE_CHUNK)).fetchall()
        except apsw.Error as error:
            raise self._fail(error) from error
        memory = self._memory
        # What waits for a commit is as memory has it: written anew, on another lease, or gone already.
        keys = sorted([key for (key,) in rows if not memory.is_pending(key)] + memory.pending_of(lease))
        is_over = len(rows) < _LEASE_CHUNK and len(keys) <= _LEASE_CHUNK
        keys = keys[:_LEASE_CHUNK]
        batch = self._open_batch()
        if is_over:
            batch.ended.append((lease,))
        if keys:
            self._revision = batch.revision = self._revision + 1
            gone: dict[str, KeyValue | None] = dict.fromkeys(keys)
            batch.writes.update(gone)
            batch.events += [WatchEvent(key, None, self._revision) for key in keys]
            memory.write(gone)
        was_ending = lease in self._ending
        removed = self._leases.remove(lease)
        batch.undo.append(lambda: self._unend_lease(lease, removed, was_ending))
        if is_over:
            self._ending.discard(lease)
        else:
            self._ending.add(lease)
        return max(1, len(keys))

    def _unend_lease(self, lease: int, removed: Lease | None, was_ending: bool) -> None:
        if removed is not None:
            self._leases.restore(removed)
        if was_ending:
            self._ending.add(lease)
        else:
            self._ending.discard(lease)


def _writes(txn: Txn) -> bool:
    return txn.record is not None or any(type(op) is not Get for op in (*txn.then, *txn.otherwise))


def _lease_not_found(lease: int) -> LeaseNotFound:
    return LeaseNotFound(f"cannot use lease {lease}: it has ended")


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(reason, data={"reason": "storage_full"} if reason == _STORAGE_FULL else None)

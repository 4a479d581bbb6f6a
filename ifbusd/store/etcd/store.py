"""The etcd store: `ifbusd.store.base.Store` over a cluster that many daemons share (ADR 0020).

A decision reads what this daemon knows by heart (`replica`), and etcd itself where that does not suffice; every write compares
what was read, so a replica that is behind costs another try and never a wrong promise. A write has been told by our own
watch when its call returns, so this daemon sees what it did. When etcd does not answer, what needs it fails at once and what
is known by heart is still told.

The mutable state is in the parts; here only how far the watch has come.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs
import trio
from etcd3 import etcdrpc

from ifbus.errors import Unavailable
from ifbusd.store.base import (
    Delete,
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
from ifbusd.store.checks import check_key, check_txn
from ifbusd.store.etcd.cluster import Cluster, EndpointHealth
from ifbusd.store.etcd.commits import Commits, is_only_reading
from ifbusd.store.etcd.config import NODE_FILE, EtcdConfig
from ifbusd.store.etcd.faults import EtcdFault, Kind
from ifbusd.store.etcd.feed import Feed
from ifbusd.store.etcd.keys import Keys
from ifbusd.store.etcd.recording import Recording
from ifbusd.store.etcd.records import Intake, RecordLog
from ifbusd.store.etcd.renewals import Renewals
from ifbusd.store.etcd.replica import Replica
from ifbusd.store.fsync import sync_names
from ifbusd.store.schema import StoreFailed
from ifbusd.store.watches import EmbeddedWatch, History

_log = logging.getLogger(__name__)

_LOAD_PAGE: Final = 500
# How long a foreign write under another prefix may keep our watch from showing a revision, before we write one of our own.
_MARK_AFTER_S: Final = 0.05


@attrs.frozen(kw_only=True)
class EtcdStatistics:
    """How the store stands.

    Attributes:
        state: ``ok``, ``slow`` (a probe takes longer than configured) or ``unreachable``.
        reason: Why it is not ok. `down_ms`: since when.
        revision: As of which what is known by heart is; nothing that is told from memory is older.
        txns, requests: Transactions sent, and in how many requests: their quotient is the mean group.
        split: Groups that were halved to find one that etcd refuses. `unknown`: transactions whose outcome was not found out.
        outages, failovers, watch_restarts: What went on since the start. `read_anew`: times that a watch was behind what etcd keeps, or could
            tell in one message.
        keys, replica_bytes, whole_kinds: Known by heart; kinds of which all keys are.
        record_seq, record_revision, record_full: The witness log of this host: its end, how far it follows the cluster, and
            whether its disk is full.
        alarms: As etcd raises them: ``nospace``, ``corrupt``.
        warnings: Versions that cannot be relied on.
        endpoints: Each member.
    """

    state: str
    reason: str
    down_ms: int
    revision: int
    txns: int
    requests: int
    largest_batch: int
    split: int
    unknown: int
    outages: int
    failovers: int
    watch_restarts: int
    read_anew: int
    keys: int
    replica_bytes: int
    whole_kinds: int
    leases: int
    history_events: int
    record_seq: int
    record_revision: int
    record_full: bool
    alarms: list[str]
    warnings: list[str]
    endpoints: list[EndpointHealth]


class EtcdStore:
    """`ifbusd.store.base.Store` over etcd. Works while `run` does; before and after, every call is `Unavailable`."""

    def __init__(
        self,
        log_path: Path,
        *,
        config: EtcdConfig,
        wal_limit_bytes: int,
        now_ms: Callable[[], int],
        boottime_ms: Callable[[], int],
        ordered: tuple[str, ...] = (),
    ) -> None:
        """Open this host's witness log and make the channels; nothing is asked yet.

        Args:
            log_path: The witness log; its directory is locked by this daemon and has this host's name for the others.
            wal_limit_bytes: What the log's write-ahead file is cut to.
            now_ms: Wall clock, for the witness log.
            boottime_ms: Steady clock that goes on through suspend, for leases.
            ordered: Starts of the keys whose create revision numbers them within their directory (up to the last slash): of those no
                two that are written by different transactions have the same.

        Raises:
            StoreFailed: The log cannot be used.
            ConfigInvalid: A file that the configuration names cannot be read.
        """
        self._config = config
        self._now_ms = now_ms
        self._timeout_s = config.request_timeout_ms / 1000
        self._cluster = Cluster(config)
        self._log = RecordLog(log_path, wal_limit_bytes=wal_limit_bytes)
        self._intake = Intake(self._log)
        self.node = _node_of(log_path.parent)
        self._keys = Keys(config.prefix, self.node)
        self._replica = self._new_replica()
        self._history = self._new_history(0)
        self._told_revision = 0
        self._seen = trio.lowlevel.ParkingLot()
        self._commits = Commits(
            self._cluster,
            self._keys,
            config,
            ordered=ordered,
            now_ms=now_ms,
            landed=self._landed,
            lost=self._lost,
            doubt=lambda keys: self._replica.forget(keys),
        )
        self._renewals = Renewals(self._cluster, timeout_s=self._timeout_s, boottime_ms=boottime_ms)
        self._feed = Feed(
            self._cluster,
            "keys",
            self._keys.watched_range,
            take=self._take,
            read_anew=self._read_anew,
            told=self._take_nothing,
            timeout_s=self._timeout_s,
        )
        self._recording = Recording(self._cluster, self._keys, self._log, self._intake, timeout_s=self._timeout_s)
        self._unavailable = "the store is not running"

    # --- reading -------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The newest revision that the watch has shown."""
        return self._replica.revision

    @property
    def told_revision(self) -> int:
        """The newest revision that changed a key and that watches have told, or are about to."""
        return self._told_revision

    async def get(self, key: str) -> KeyValue | None:
        """The key as it stands, None if absent: at least as new as all that this daemon has told or written."""
        self._require_running()
        check_key(key)
        if self._commits.is_writing(key):
            await self._commits.until_written(key)
        else:
            await trio.lowlevel.checkpoint()
        try:
            # Without yielding: of all who waited for this key the first one decides, and is writing it before the next one looks.
            return self._replica.find(key)
        except NotAtHand:
            request = etcdrpc.RangeRequest(key=self._keys.full(key))
            answer = await self._call("Range", request, f"read {key}")
            found = self._keys.key_value(answer.kvs[0]) if answer.kvs else None
            self._replica.note(key, found, int(answer.header.revision))
            self._expect(found)
        return found

    def peek(self, key: str) -> KeyValue | None:
        """As `get`, at once, or not at all.

        Raises:
            NotAtHand: It is not known by heart, or being written by this daemon.
        """
        if self._unavailable:
            raise Unavailable(self._unavailable)
        if self._commits.is_writing(key):
            raise NotAtHand(key)
        found = self._replica.find(key)
        if found is None:
            check_key(key)
        return found

    async def range(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        """The keys that start with `prefix` and sort after `after`, in key order; of a small kind from memory."""
        self._require_running()
        if limit < 1:
            raise ValueError(f"cannot read a range of {limit} keys: at least 1")
        page = self._replica.page(prefix, after, limit)
        if page is not None:
            await trio.lowlevel.checkpoint()
            return Page(self._replica.revision, *page)
        start, end = self._keys.bounds(prefix, after)
        try:
            answer = await self._cluster.read_page(start, end, limit, revision=0)
        except EtcdFault as fault:
            raise self._cluster.unavailable(fault, f"read keys under {prefix!r}") from fault
        return Page(int(answer.header.revision), [self._keys.key_value(kv) for kv in answer.kvs], bool(answer.more))

    def tell(self) -> None:
        """Nothing to do: they hear from etcd."""

    async def sync(self) -> None:
        """Return once this daemon has seen everything that was committed anywhere before this call.

        Raises:
            Unavailable: etcd does not answer.
        """
        self._require_running()
        request = etcdrpc.RangeRequest(key=self._keys.mark, count_only=True)
        answer = await self._call("Range", request, "read what is newest")
        await self._see(int(answer.header.revision))

    async def barrier(self) -> None:
        """Return at once: what was read is committed. Raises `Unavailable` where what was told cannot be shown now."""
        self._require_running()
        if not self._cluster.is_up and self._replica.revision < self._told_revision:
            raise self._cluster.unavailable(EtcdFault(Kind.OUTAGE, self._cluster.down_reason), "read what is newest")

    def watch(self, prefix: str, *, start_revision: int | None = None) -> EmbeddedWatch:
        """Watch the keys that start with `prefix`, from `start_revision` on, or from now; goes on through outages."""
        return EmbeddedWatch(self._history, prefix, start_revision, lambda: self._replica.revision)

    # --- writing -------------------------------------------------------------------------------------

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction; committed by etcd on return, and seen by this daemon. One that only reads is answered from memory.

        Its witness entry goes into this host's log later (`head` is what the log comes to before); that of a transaction that writes
        nothing, or had to do with its deletes, at once.

        Raises:
            Unavailable: etcd does not answer, and if `data["outcome"]` is ``unknown`` it may be committed all the same; or there is no
                room, there or on this disk (`data["reason"]` is ``storage_full``).
            LeaseNotFound: A put names a lease that has ended; nothing was changed.
            LimitExceeded: It is larger than etcd takes.
            ValueError, TypeError: No store can do this; nothing was changed.

        Cancelled, it may have been committed: retry with the same idempotency key.
        """
        self._require_running()
        check_txn(txn)
        if is_only_reading(txn) and (known := self._read_here(txn)) is not None:
            await trio.lowlevel.checkpoint()
            return known
        writes = any(type(op) is not Get for op in txn.then)
        done = TxnResult(True, self.revision)
        if txn.deletes_suffice and any(type(op) is Put for op in txn.then):
            return await self._commit_or_delete(txn)
        if writes or txn.compares or txn.then or txn.otherwise:
            done = await self._commit(txn if writes else txn._replace(record=None))
        if txn.record is None or not done.succeeded:
            return done
        if writes:
            return self._with_head(done)
        return done._replace(head=await self._record_here(txn.record))

    def _with_head(self, done: TxnResult) -> TxnResult:
        # The place of its own entry is not known: others' entries may come before it, and no answer waits for one more disk.
        return done._replace(head=self._log.head) if self._log.head.seq else done

    async def _record_here(self, record: bytes) -> LogHead:
        """Add an entry to this host's log alone."""
        await self._until_recorded()
        [head] = await self._log.append([(0, self._now_ms(), record)], 0)
        return head

    async def _commit_or_delete(self, txn: Txn) -> TxnResult:
        """A transaction of which etcd may do the deletes alone where it has no room for the rest."""
        try:
            done = await self._commit(txn)
            return self._with_head(done) if txn.record is not None and done.succeeded else done
        except Unavailable as error:
            if error.data.get("reason") != "storage_full" or "outcome" in error.data:
                raise
        deletes = [op for op in txn.then if type(op) is Delete]
        done = await self._commit(Txn(txn.compares, deletes))
        if not done.succeeded:
            return done
        head = None
        if txn.record is not None:
            # There may be no room on this disk either: what is done stays done, and its end gets an entry later.
            with suppress(Unavailable):
                head = await self._record_here(txn.record)
        return done._replace(head=head, is_partial=True)

    def _read_here(self, txn: Txn) -> TxnResult | None:
        """All the keys as of one revision from memory; None if that cannot be."""
        keys = [op.key for op in txn.then]
        if self._replica.is_ahead(keys) or any(map(self._commits.is_writing, keys)):
            return None
        try:
            return TxnResult(True, self.revision, tuple(map(self._replica.find, keys)))
        except NotAtHand:
            return None

    async def _commit(self, txn: Txn) -> TxnResult:
        try:
            done = await self._commits.commit(txn)
            for found in done.values:
                self._expect(found)
            return done
        except EtcdFault as fault:
            error = self._cluster.unavailable(fault, "commit")
            if isinstance(error, LeaseNotFound):
                for op in (*txn.then, *txn.otherwise):
                    if type(op) is Put and op.lease:
                        self._renewals.forget(op.lease)
            raise error from fault

    def _expect(self, found: KeyValue | None) -> None:
        """Somebody has read this: the watch is about to tell it, so whoever wants to see no less waits for it."""
        if found is not None:
            self._told_revision = max(self._told_revision, found.mod_revision)

    async def _landed(self, revision: int, keys: Iterable[str]) -> None:
        """Return once our own watch has told this revision, or it has to be read again."""
        self._told_revision = max(self._told_revision, revision)
        with trio.move_on_after(self._timeout_s) as waiting:
            while self._replica.revision < revision:
                await self._seen.park()
        if waiting.cancelled_caught:
            _log.warning("the watch does not tell a write of our own: it is begun anew", extra={"revision": revision})
            self._replica.forget(keys, revision)
            self._feed.restart()

    async def _lost(self, revision: int, keys: Iterable[str]) -> None:
        """Return once what is known of these keys is as of this revision, or has to be read again."""
        with trio.move_on_after(_MARK_AFTER_S):
            while self._replica.revision < revision:
                await self._seen.park()
            return
        self._replica.forget(keys)  # somebody else's writes, under another prefix, may have made this revision

    async def _see(self, revision: int) -> None:
        """Return once the watch has shown all changes up to a revision.

        Raises:
            Unavailable: It cannot.
        """
        with trio.move_on_after(_MARK_AFTER_S):
            while self._replica.revision < revision:
                await self._seen.park()
        if self._replica.revision >= revision:
            return
        # It may be somebody else's write, of which the watch tells nothing: one of ours comes after it.
        put = etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=self._keys.mark))
        try:
            answer = await self._cluster.call("Txn", etcdrpc.TxnRequest(success=[put]))
            revision = int(answer.header.revision)
        except EtcdFault as fault:
            if fault.kind is not Kind.NO_SPACE:
                raise self._cluster.unavailable(fault, "read what is newest") from fault
            self._feed.ask()
        with trio.move_on_after(self._timeout_s):
            while self._replica.revision < revision:
                await self._seen.park()
            return
        self._feed.restart()
        raise self._cluster.unavailable(EtcdFault(Kind.OUTAGE, "the watch is behind"), "read what is newest")

    # --- leases --------------------------------------------------------------------------------------

    async def grant(self, ttl_ms: int, *, ends: bool = False) -> int:
        """A new lease; it ends `ttl_ms` or up to 2 s more after its last renewal (etcd counts seconds, at least two)."""
        self._require_running()
        if ttl_ms < 1:
            raise ValueError(f"cannot grant a lease of {ttl_ms} ms: at least 1")
        try:
            return await self._renewals.grant(ttl_ms)
        except EtcdFault as fault:
            raise self._cluster.unavailable(fault, "grant a lease") from fault

    async def keep_alive(self, lease: int) -> int:
        """Renew the lease; its full time in ms.

        Raises:
            LeaseNotFound: It has ended.
        """
        self._require_running()
        try:
            ttl_ms = await self._renewals.renew(lease)
        except EtcdFault as fault:
            raise self._cluster.unavailable(fault, f"renew lease {lease}") from fault
        if not ttl_ms:
            raise LeaseNotFound(f"cannot use lease {lease}: it has ended")
        return ttl_ms

    async def revoke(self, lease: int) -> None:
        """End the lease now; its keys vanish in one revision, which this daemon has seen on return."""
        self._require_running()
        try:
            revision = await self._renewals.revoke(lease)
        except EtcdFault as fault:
            raise self._cluster.unavailable(fault, f"revoke lease {lease}") from fault
        await self._see(revision)

    async def lease_left_ms(self, lease: int) -> int | None:
        """Time until the lease ends unless renewed, None if it has ended; as far as this host knows, else as etcd says."""
        self._require_running()
        try:
            return await self._renewals.left_ms(lease)
        except EtcdFault as fault:
            raise self._cluster.unavailable(fault, f"look at lease {lease}") from fault

    # --- the witness log -----------------------------------------------------------------------------

    async def log_head(self) -> LogHead:
        """Where this host's witness log ends, with all that this daemon did before."""
        self._require_running()
        await self._until_recorded()
        return self._log.head

    async def read_log(self, *, after_seq: int = 0, limit: int = 1000) -> list[LogEntry]:
        """Entries of this host's witness log after number `after_seq`, in order."""
        self._require_running()
        await self._until_recorded()
        return await self._log.read(after_seq, limit)

    async def _until_recorded(self) -> None:
        # Bounded: with etcd away or the disk full, what is there is told.
        with trio.move_on_after(self._timeout_s):
            await self._intake.until(self._commits.recorded_revision)

    # --- running -------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, read what is there, and follow it until cancelled.

        Raises:
            Unavailable: etcd did not answer within the start's time; later that is waited out.
            StoreFailed: The disk of the witness log failed.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._log.run)
                await self._cluster.connect()
                try:
                    revision = await self._load_first()
                except EtcdFault as fault:
                    raise self._cluster.unavailable(fault, "read what is stored") from fault
                if self._log.revision > revision:
                    raise StoreFailed(
                        f"cannot go on with {self._log.path}: its record goes to revision {self._log.revision}, etcd is at"
                        f" {revision}: another cluster, or one from a backup; use a state directory of its own"
                    )
                if not self._log.revision:
                    await self._log.append([], revision)  # its record begins with its joining
                nursery.start_soon(self._intake.run)
                nursery.start_soon(self._cluster.run)
                nursery.start_soon(self._feed.run, revision + 1)
                nursery.start_soon(self._recording.run)
                nursery.start_soon(self._renewals.run)
                await nursery.start(self._commits.run)
                self._unavailable = ""
                task_status.started()
        finally:
            self._unavailable = "the store is closed"
            self._history.close(self._unavailable)
            self._cluster.close()

    def statistics(self) -> EtcdStatistics:
        """A snapshot; asks nobody."""
        health = self._cluster.health()
        is_slow = any(each.in_use and each.latency_ms > self._config.slow_request_ms for each in health)
        reason = self._cluster.down_reason or (
            f"a request takes longer than {self._config.slow_request_ms} ms" if is_slow else ""
        )
        return EtcdStatistics(
            state="ok" if not reason else "slow" if self._cluster.is_up else "unreachable",
            reason=reason,
            down_ms=self._cluster.down_ms,
            revision=self.revision,
            txns=self._commits.txns,
            requests=self._commits.requests,
            largest_batch=self._commits.largest,
            split=self._commits.split,
            unknown=self._commits.unknown,
            outages=self._cluster.outages,
            failovers=self._cluster.failovers,
            watch_restarts=self._feed.restarts + self._recording.restarts,
            read_anew=self._feed.read_anew + self._recording.read_anew,
            keys=len(self._replica),
            replica_bytes=self._replica.size_bytes,
            whole_kinds=self._replica.whole_kinds,
            leases=len(self._renewals),
            history_events=len(self._history),
            record_seq=self._log.head.seq,
            record_revision=self._log.revision,
            record_full=self._log.is_full,
            alarms=self._cluster.alarms,
            warnings=self._cluster.warnings(),
            endpoints=health,
        )

    def alarms(self) -> list[dict[str, Any]]:
        """What an operator should look at, as `daemon.status` shows it; asks nobody."""
        shown = self.statistics()
        found = []
        if shown.reason:
            found.append(
                {"kind": f"etcd_{shown.state}", "message": shown.reason, "remedy": "etcdctl endpoint health --cluster"}
            )
        for alarm in shown.alarms:
            remedy = "etcdctl compact, defrag, then alarm disarm" if alarm == "nospace" else "etcdctl alarm list"
            found.append({"kind": f"etcd_{alarm}", "message": "etcd takes no writes", "remedy": remedy})
        found += [{"kind": "etcd_version", "message": warning, "remedy": "update etcd"} for warning in shown.warnings]
        if shown.record_full:
            found.append(
                {"kind": "record_full", "message": f"no room for the record in {self._log.path}", "remedy": "df"}
            )
        return found

    def _require_running(self) -> None:
        if self._unavailable:
            raise Unavailable(self._unavailable)

    async def _call(self, method: str, request: Any, what: str) -> Any:
        try:
            return await self._cluster.call(method, request)
        except EtcdFault as fault:
            raise self._cluster.unavailable(fault, what) from fault

    # --- following -----------------------------------------------------------------------------------

    def _new_replica(self) -> Replica:
        return Replica(max_bytes=self._config.replica_bytes, max_value_bytes=self._config.replica_value_bytes)

    def _new_history(self, revision: int) -> History:
        return History(revision=revision, max_events=self._config.history_events, max_bytes=self._config.history_bytes)

    async def _take(self, events: list[Any]) -> None:
        """Take over changes of whole revisions: what is known by heart, who watches, who waits."""
        told: list[WatchEvent] = []
        entries = []
        size_bytes = 0
        keys, replica = self._keys, self._replica
        for event in events:
            change = keys.change(event)
            if change is None:
                if keys.is_record(event):
                    entries.append(event.kv)
                continue
            replica.told(change.key, change.value, change.revision)
            told.append(change)
            if change.value is not None:
                size_bytes += len(change.value.value)
        revision = events[-1].kv.mod_revision
        replica.advance(revision)
        if entries:
            self._recording.take(entries)
        if told:
            self._told_revision = max(self._told_revision, told[-1].revision)
            self._history.publish(told, size_bytes)
            self._history.deliver()
        self._seen.unpark_all()
        await trio.lowlevel.checkpoint()

    def _take_nothing(self, revision: int) -> None:
        """Nothing of ours has changed up to a revision but what was told."""
        self._replica.advance(revision)
        self._seen.unpark_all()

    async def _load_first(self) -> int:
        """Read what is there, and where this host's next witness entry goes; the revision of it."""
        own = self._keys.own_records
        request = etcdrpc.RangeRequest(
            key=own,
            range_end=own[:-1] + b"0",
            limit=1,
            keys_only=True,
            sort_order=etcdrpc.RangeRequest.DESCEND,
            sort_target=etcdrpc.RangeRequest.MOD,
        )
        answer = await self._cluster.call("Range", request)
        if answer.kvs:
            self._commits.begin_behind(int(answer.kvs[0].key[len(own) :], 16))
        self._replica, revision = await self._load()
        self._history = self._new_history(revision)
        self._told_revision = revision
        return revision

    async def _read_anew(self) -> int:
        """What the watch would tell next is no longer kept: read everything; watchers have to do so as well."""
        self._replica, revision = await self._load()
        self._recording.fall_behind()
        self._told_revision = max(self._told_revision, revision)
        self._history.forget(revision)
        self._history.deliver()
        self._seen.unpark_all()
        return revision

    async def _load(self) -> tuple[Replica, int]:
        """All keys as of one revision, as many as there is room for."""
        while True:
            replica = self._new_replica()
            start, end = self._keys.bounds("", "")
            revision = 0
            try:
                while True:
                    page = await self._cluster.read_page(start, end, _LOAD_PAGE, revision=revision)
                    if not revision:
                        revision = int(page.header.revision)
                        replica.start(revision)
                    start = self._load_page(replica, page)
                    if not page.more:
                        replica.loaded()
                        return replica, revision
                    await trio.lowlevel.checkpoint()
            except EtcdFault as fault:
                if fault.kind is not Kind.COMPACTED:  # that went faster than we could read: again
                    raise

    def _load_page(self, replica: Replica, page: Any) -> bytes:
        """Take a page over; where to read on."""
        item = None
        for kv in page.kvs:
            item = self._keys.key_value(kv)
            if not replica.load(item):
                # Its kind has its share of the room: on with the next one.
                return self._keys.full(item.key.partition("/")[0] + "0")
        return b"" if item is None else self._keys.full(item.key) + b"\0"


def _node_of(directory: Path) -> str:
    """This host's name among the others', made at the first start: what it writes for them stands under it."""
    path = directory / NODE_FILE
    try:
        found = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        found = ""
    if not found:
        found = secrets.token_hex(8)
        path.write_text(f"{found}\n", encoding="ascii")
        sync_names(directory)
    return found

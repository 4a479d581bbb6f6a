"""Transactions, grouped and sent: those that arrive together go out as one transaction of nested ones.

Each wins or loses by its own compares; one that etcd refuses is found by halving its group and fails alone. A request without
an answer leaves the outcome unknown: the witness entry that goes with a change is looked for, and what cannot be found out is
said to be unknown, never to have failed (FACTS 3).

Two things are particular about a full etcd. It refuses the request by which the quota is passed, and has done it all the same: this too is
looked for. And until mid-2026 it counts only what the outer transaction puts by itself, so that a group of nested ones would go past
the alarm until the disk is full: every group that puts anything puts one small key of its own besides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import trio
from etcd3 import etcdrpc

from ifbus.errors import Overloaded
from ifbusd.store.base import Get, KeyValue, Put, Txn, TxnResult
from ifbusd.store.etcd.batching import Footprint, choose
from ifbusd.store.etcd.cluster import Cluster
from ifbusd.store.etcd.config import EtcdConfig
from ifbusd.store.etcd.faults import EtcdFault, Kind
from ifbusd.store.etcd.keys import Keys, pack_record

# Looked at for the next group; what is behind it waits a turn.
_LOOKED_AT: Final = 512
# From so many on only half of those that wait go while nothing is under way: etcd works on them as the others are put together, and
# the two halves take turns from then on.
_WORTH_HALVING: Final = 32
# Refused because of what it says: its neighbours may be fine.
_OWN_FAULT: Final = frozenset((Kind.TOO_LARGE, Kind.LEASE_NOT_FOUND, Kind.INVALID))


class Commit:
    """A transaction on its way: what it touches, what is sent, and what came of it."""

    __slots__ = ("_done", "error", "footprint", "is_sent", "record", "result", "txn")

    def __init__(self, txn: Txn, *, record: tuple[int, bytes] | None, ordered: tuple[str, ...]) -> None:
        """Look at it.

        Args:
            record: Slot and value of its witness entry; None for none.
            ordered: See `Footprint`.
        """
        self.txn = txn
        self.footprint = Footprint(txn, ordered)
        self.record = record
        self.is_sent = False
        self.result: TxnResult | None = None
        self.error: Exception | None = None
        self._done = trio.Event()

    async def wait(self) -> None:
        """Return once there is a result or an error."""
        await self._done.wait()

    def finish(self, *, result: TxnResult | None = None, error: Exception | None = None) -> None:
        """This is what came of it."""
        self.result, self.error = result, error
        self._done.set()

    def read(self, answer: Any, revision: int, keys: Keys) -> tuple[TxnResult, bool]:
        """What etcd's answer says: the result, and whether a store's key changed."""
        values: list[KeyValue | None] = []
        has_changed = False
        taken = self.txn.then if answer.succeeded else self.txn.otherwise
        for op, response in zip(taken, answer.responses, strict=False):
            if type(op) is Put:
                has_changed = True
            elif type(op) is Get:
                values.append(_found(response, keys))
            else:
                has_changed |= response.response_delete_range.deleted > 0
        return TxnResult(bool(answer.succeeded), revision, tuple(values)), has_changed


def _found(response: Any, keys: Keys) -> KeyValue | None:
    kvs = response.response_range.kvs
    return keys.key_value(kvs[0]) if kvs else None


class Commits:
    """Groups and sends. The mutable state: what waits, the keys being written, the next place of a witness entry."""

    def __init__(
        self,
        cluster: Cluster,
        keys: Keys,
        config: EtcdConfig,
        *,
        ordered: tuple[str, ...],
        now_ms: Callable[[], int],
        landed: Callable[[int, Iterable[str]], Awaitable[None]],
        lost: Callable[[int, Iterable[str]], Awaitable[None]],
        doubt: Callable[[Iterable[str]], None],
    ) -> None:
        """Wire it up.

        Args:
            ordered: Starts of the keys that are numbered by their revision within their directory.
            landed: Awaited with a revision and the keys that it changed: returns when this daemon knows them.
            lost: Awaited with a revision and the keys of which one was not as compared then: returns when this daemon knows
                better, so that the next decision is made on what is there.
            doubt: Told the keys that may have been written.
        """
        self._cluster = cluster
        self._keys = keys
        self._config = config
        self._ordered = ordered
        self._now_ms = now_ms
        self._landed = landed
        self._lost = lost
        self._doubt = doubt
        self._waiting: list[Commit] = []
        self._writing: dict[str, int] = {}  # by how many transactions
        self._written = trio.lowlevel.ParkingLot()
        self._work = trio.lowlevel.ParkingLot()
        self._in_flight = 0
        self._slot = 0
        self._number = 0
        # The newest revision at which this daemon wrote a witness entry.
        self.recorded_revision = 0
        self.txns = self.requests = self.largest = self.split = self.unknown = 0

    def begin_behind(self, slot: int) -> None:
        """The newest witness entry that stands there is at this place: the next ones go well behind it.

        Others are as new, or were on their way when the daemon ended, and come yet: some places on none of them is written over.
        """
        self._slot = (slot + self._config.record_slots // 4) % self._config.record_slots

    def is_writing(self, key: str) -> bool:
        """Whether the key is being written by this daemon: what is known of it is about to be old."""
        return key in self._writing

    async def until_written(self, key: str) -> None:
        """Return once this daemon does not write the key."""
        while key in self._writing:
            await self._written.park()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                while not self._waiting or self._in_flight >= self._config.max_in_flight:
                    await self._work.park()
                # Others that are ready in this pass of the loop still join.
                await trio.lowlevel.checkpoint()
                if self._waiting:
                    group = self._take_group()
                    self._in_flight += 1
                    nursery.start_soon(self._send_group, group)

    async def commit(self, txn: Txn) -> TxnResult:
        """Do a transaction; committed on return, and known to this daemon.

        Cancelled, it may have been committed.

        Raises:
            EtcdFault: It was refused, or its outcome is unknown.
            Overloaded: Too many wait.
        """
        if not self._cluster.is_up:
            raise EtcdFault(Kind.OUTAGE, self._cluster.down_reason)
        if len(self._waiting) >= self._config.max_waiting_txns:
            raise Overloaded(
                f"cannot commit: {len(self._waiting)} transactions wait for etcd, which is the limit",
                data={"retry_after_ms": 100},
            )
        commit = self._build(txn)
        self._waiting.append(commit)
        for key in commit.footprint.writes:
            self._writing[key] = self._writing.get(key, 0) + 1
        self._work.unpark()
        try:
            await commit.wait()
        finally:
            if not commit.is_sent and commit in self._waiting:  # cancelled: it never leaves
                self._waiting.remove(commit)
                self._release([commit])
        if commit.error is not None:
            raise commit.error
        assert commit.result is not None
        return commit.result

    def _build(self, txn: Txn) -> Commit:
        record = None
        if txn.record is not None:
            self._number += 1
            record = self._slot, pack_record(self._now_ms(), self._number, txn.record)
            self._slot = (self._slot + 1) % self._config.record_slots
        return Commit(txn, record=record, ordered=self._ordered)

    def _take_group(self) -> list[Commit]:
        looked_at, most = self._waiting[:_LOOKED_AT], self._config.max_batch_txns
        if not self._in_flight and len(looked_at) >= _WORTH_HALVING and self._config.max_in_flight > 1:
            most = min(most, len(looked_at) // 2)
        places = choose(looked_at, max_txns=most, max_bytes=self._config.max_batch_bytes)
        group = [looked_at[place] for place in places]
        if len(group) == len(self._waiting):
            self._waiting.clear()
        else:
            taken = set(map(id, group))
            self._waiting = [commit for commit in self._waiting if id(commit) not in taken]
        for commit in group:
            commit.is_sent = True
        return group

    async def _send_group(self, group: list[Commit]) -> None:
        try:
            await self._send(group)
        finally:
            self._in_flight -= 1
            self._work.unpark()
            self._release(group)

    def _release(self, commits: Sequence[Commit]) -> None:
        writing = self._writing
        for commit in commits:
            for key in commit.footprint.writes:
                left = writing.pop(key) - 1
                if left:
                    writing[key] = left
        self._written.unpark_all()

    async def _send(self, group: list[Commit]) -> None:
        request = etcdrpc.TxnRequest()
        for commit in group:
            inner = request if len(group) == 1 else request.success.add().request_txn
            self._keys.write_txn(inner, commit.txn, commit.record)
        if len(group) > 1 and any(commit.footprint.puts for commit in group):
            request.success.add().request_put.key = self._keys.weight
        try:
            answer = await self._cluster.call("Txn", request)
        except EtcdFault as fault:
            await self._failed(group, fault)
            return
        self.requests += 1
        self.txns += len(group)
        self.largest = max(self.largest, len(group))
        answers = [answer] if len(group) == 1 else [each.response_txn for each in answer.responses[: len(group)]]
        revision = int(answer.header.revision)
        results, changed, lost = [], False, []
        for commit, each in zip(group, answers, strict=True):
            result, has_changed = commit.read(each, revision, self._keys)
            changed |= has_changed
            results.append(result)
            if not result.succeeded:
                lost += [key for key, _ in commit.txn.compares]
            elif commit.record is not None:
                self.recorded_revision = max(self.recorded_revision, revision)
        if changed:
            await self._landed(revision, (key for commit in group for key in commit.footprint.writes))
        if lost:
            await self._lost(revision, lost)
        for commit, result in zip(group, results, strict=True):
            commit.finish(result=result)

    async def _failed(self, group: list[Commit], fault: EtcdFault) -> None:
        if fault.kind in _OWN_FAULT and len(group) > 1:
            # Nothing of it was done. One of them is to blame; the halves find it.
            self.split += 1
            middle = len(group) // 2
            await self._send(group[:middle])
            await self._send(group[middle:])
            return
        if fault.kind is Kind.NO_SPACE:
            putting = [commit for commit in group if commit.footprint.puts]
            if putting and len(putting) < len(group):
                # The others, deletes and refusals, go on where there is no room.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, [commit for commit in group if not commit.footprint.puts])
                    nursery.start_soon(self._failed, putting, fault)
                return
            fault = EtcdFault(fault.kind, fault.detail, may_be_done=bool(putting))
        if not fault.may_be_done:
            for commit in group:
                commit.finish(error=EtcdFault(fault.kind, fault.detail))
            return
        async with trio.open_nursery() as nursery:
            for commit in group:
                nursery.start_soon(self._find_out, commit, fault)

    async def _find_out(self, commit: Commit, fault: EtcdFault) -> None:
        """Look whether it was done, by the entry that was to be written with it and by nothing else.

        One without an entry was not done if etcd has answered (that it has no room) and a key that it compares and writes is as it was.
        """
        writes, is_answered = commit.footprint.writes, fault.kind is Kind.NO_SPACE
        compare = next((each for each in commit.txn.compares if each.key in writes), None)
        revision, may_be_done = 0, commit.record is not None or bool(writes)
        with suppress(EtcdFault):  # nobody knows: said below
            if commit.record is not None:
                slot, value = commit.record
                found = await self._read(self._keys.record_key(slot))
                if found is not None and found.value == value:
                    revision = found.mod_revision
                else:
                    may_be_done = not is_answered
            elif compare is not None and is_answered:
                found = await self._read(self._keys.full(compare.key))
                may_be_done = compare.mod_revision != (0 if found is None else found.mod_revision)
        has_gets = any(type(op) is Get for op in commit.txn.then)
        if revision and not has_gets:
            self.recorded_revision = max(self.recorded_revision, revision)
            await self._landed(revision, writes)
            commit.finish(result=TxnResult(True, revision))
            return
        if may_be_done:
            self.unknown += 1
            self._doubt(writes)
        commit.finish(error=EtcdFault(fault.kind, fault.detail, may_be_done=may_be_done))

    async def _read(self, key: bytes) -> Any:
        """A key as it stands, None if it does not exist, as soon as etcd answers; EtcdFault if that takes too long."""
        with trio.move_on_after(self._config.request_timeout_ms / 1000):
            await self._cluster.until_up()
            answer = await self._cluster.call("Range", etcdrpc.RangeRequest(key=key))
            return answer.kvs[0] if answer.kvs else None
        raise EtcdFault(Kind.OUTAGE, "deadline exceeded")


def is_only_reading(txn: Txn) -> bool:
    """Whether it compares nothing and writes nothing."""
    return not txn.compares and not txn.otherwise and txn.record is None and all(type(op) is Get for op in txn.then)

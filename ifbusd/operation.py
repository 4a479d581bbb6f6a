"""One operation = one transaction: read, decide, write, witness and remember, landed together or not at all (DESIGN 2).

`Operations.run` gives a service's decision a `Tx`. The decision is a plain function: it never waits, so on one host nothing can
come between its reads and its commit. What it read becomes the transaction's compares, what it put becomes its writes; the
witness entry and the idempotency record go into the same commit. If somebody else wrote one of the keys in between, or
something has to be waited for first (`Tx.obtain`), the decision is made again, so two callers can never both win (ADR 0015).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

from ifbus.errors import IdempotencyConflict, IfbusError, Momentary, Unavailable
from ifbusd.bus.base import Bus, Message
from ifbusd.codec import pack, unpack
from ifbusd.identity import Caller
from ifbusd.latency import LatencyWindow
from ifbusd.news import News, to_stored
from ifbusd.store.base import (
    Compare,
    Delete,
    KeyValue,
    LeaseNotFound,
    NotAtHand,
    Op,
    Put,
    Store,
    Txn,
    TxnResult,
)
from ifbusd.store.checks import MAX_TXN_OPS

Body = Callable[["Tx"], dict[str, Any]]

# Losing the race this often in a row means that the store cannot be keeping up: say so instead of spinning.
MAX_TRIES: Final = 32
# An idempotency record lives at least one and at most two of these: the lease that carries it is shared by all of a window.
IDEMPOTENCY_WINDOW_MS: Final = 60 * 60 * 1000
# What gives something back, or stops somebody: done also where the storage is full (`Txn.ends`).
ENDING_OPERATIONS: Final = frozenset(
    {
        "chassis.unload_swarm",
        "coordinator.acknowledge",
        "coordinator.cancel_task",
        "coordinator.complete_task",
        "coordinator.complete_tasks",
        "coordinator.end_session",
        "coordinator.expire_claim",
        "coordinator.expire_resource",
        "coordinator.expire_session",
        "coordinator.expire_task",
        "coordinator.fail_task",
        "coordinator.release_resources",
        "coordinator.release_task",
        "coordinator.remove_tasks",
        "coordinator.resolve_blocker",
        "governor.settle_cost",
        "governor.trip_circuit_breaker",
    }
)
# What is put on it fails, as on one that has ended: no store gives out such a lease.
_NO_LEASE: Final = -1
# A target comes from the caller, and a refused one need not be an identifier: this much of it goes on record.
_TARGET_CHARS: Final = 128


T = TypeVar("T")
# Marks keys among the things that an operation has obtained.
_KEY: Final = object()
# Decoded values kept; about 1 kB each.
_MAX_DECODED: Final = 4096


class Decoded:
    """Values by key as they were decoded, or encoded, last: the same profile, account or task is read by many operations in a row.

    A kept value stands for exactly the bytes beside it, so it is never stale; what is kept is frozen and shared.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[bytes, Any]] = {}

    def of(self, stored: KeyValue, decode: Callable[[bytes], T]) -> T:
        """The decoded value; kept for the next one who asks."""
        kept = self._values.get(stored.key)
        if kept is not None and kept[0] == stored.value:
            known: T = kept[1]
            return known
        value = decode(stored.value)
        self.keep(stored.key, stored.value, value)
        return value

    def peek(self, stored: KeyValue, decode: Callable[[bytes], T]) -> T:
        """As `of`, for who reads everything once: it keeps nothing and so pushes nothing out."""
        kept = self._values.get(stored.key)
        if kept is not None and kept[0] == stored.value:
            known: T = kept[1]
            return known
        return decode(stored.value)

    def keep(self, key: str, data: bytes, value: Any) -> None:
        """Remember what these bytes mean."""
        if len(self._values) >= _MAX_DECODED:
            self._values.clear()
        self._values[key] = (data, value)


class _Pending(Exception):
    """A decision cannot be made before this has been waited for; whoever runs it does so and begins again."""

    def __init__(self, name: Hashable, fetch: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(name)
        self.name = name
        self.fetch = fetch


class Tx:
    """A transaction under construction: reads are remembered, writes are kept back until the decision is made."""

    def __init__(self, store: Store, decoded: Decoded, obtained: dict[Hashable, Any]) -> None:
        self._store = store
        self._decoded = decoded
        self._obtained = obtained
        self._seen: dict[str, KeyValue | None] = {}
        self._writes: dict[str, Put | Delete] = {}
        self.messages: list[tuple[str, Message]] = []
        self.detail: dict[str, Any] = {}
        # Where the storage is full and nothing is kept back for it, what is deleted may go without the rest (`Txn.deletes_suffice`).
        self.deletes_suffice = False
        self.decided: Callable[[], bool] | None = None  # see `Txn`

    def obtain(self, name: str, fetch: Callable[[], Awaitable[T]]) -> T:
        """The result of `fetch`, which is awaited once per operation; until then the decision ends here and is made again.

        Args:
            name: Tells it from whatever else this operation obtains.
            fetch: What takes time, or may be done only once: a new lease, a run in a sandbox. What it raises ends the operation.
        """
        if name not in self._obtained:
            raise _Pending(name, fetch)
        found: T = self._obtained[name]
        return found

    @property
    def reads(self) -> int:
        """How many keys are to be compared."""
        return len(self._seen)

    def attempt(self, part: Callable[[Tx], T]) -> T:
        """What a part of the decision gives; where it refuses, or raises anything else, it has neither read nor written anything."""
        seen, writes, detail, told = dict(self._seen), dict(self._writes), dict(self.detail), len(self.messages)
        try:
            return part(self)
        except Exception:
            self._seen, self._writes, self.detail = seen, writes, detail
            del self.messages[told:]
            raise

    def get(self, key: str) -> bytes | None:
        """The key's value, with this transaction's own writes; None if absent. Its revision becomes a compare."""
        write = self._writes.get(key)
        if write is not None:
            return write.value if type(write) is Put else None
        found = self.get_stored(key)
        return None if found is None else found.value

    def get_stored(self, key: str) -> KeyValue | None:
        """The key with its revisions and lease as stored, without own writes. Its revision becomes a compare."""
        seen = self._seen
        if key in seen:
            return seen[key]
        found: KeyValue | None
        try:
            found = self._store.peek(key)
        except NotAtHand:
            if (_KEY, key) not in self._obtained:
                raise _Pending((_KEY, key), partial(self._store.get, key)) from None
            found = self._obtained[_KEY, key]
        seen[key] = found
        return found

    def get_unguarded(self, key: str) -> bytes | None:
        """As `get`, without a compare: for what another key, which is compared, guards."""
        if key in self._writes or key in self._seen:
            return self.get(key)
        found = self.get_stored(key)
        del self._seen[key]
        return None if found is None else found.value

    def read(self, key: str, decode: Callable[[bytes], T]) -> T | None:
        """As `get`, decoded; a value that did not change since somebody decoded it is not decoded again.

        Args:
            decode: Always the same for one key, and its results are frozen: they are shared.
        """
        if key in self._writes:
            written = self.get(key)
            return None if written is None else decode(written)
        found = self.get_stored(key)
        return None if found is None else self._decoded.of(found, decode)

    def put(self, key: str, value: Any, *, lease: int = 0, decoded: Any = None) -> None:
        """Write a plain value at commit.

        Args:
            decoded: What `value` will be decoded to, frozen; spares the next reader the decoding.
        """
        data = pack(value)
        self._writes[key] = Put(key, data, lease)
        if decoded is not None:
            self._decoded.keep(key, data, decoded)

    def put_new(self, key: str, data: bytes) -> None:
        """Write packed bytes at commit, to a key that does not exist, as the caller knows."""
        self._writes[key] = Put(key, data, is_new=True)

    def delete(self, key: str) -> None:
        """Remove the key at commit."""
        self._writes[key] = Delete(key)

    def publish(self, subject: str, message: Message) -> None:
        """Tell the bus once this is durable; the message gets the operation's ``revision``."""
        self.messages.append((subject, message))

    @property
    def compares(self) -> list[Compare]:
        """What must still be as it was read."""
        return [Compare(key, 0 if found is None else found.mod_revision) for key, found in self._seen.items()]

    @property
    def writes(self) -> list[Op]:
        """What to write, in the order of the first write to each key."""
        return list(self._writes.values())


class Operations:
    """Runs every state-changing operation of every component. The mutable state: the current window's lease, and decoded values."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        *,
        now_ms: Callable[[], int],
        latencies: Mapping[str, LatencyWindow] = MappingProxyType({}),
        news: News | None = None,
    ) -> None:
        """Wire it up.

        Args:
            now_ms: Wall clock.
            latencies: Where the time of an operation that succeeded goes, by its name; others are not measured.
            news: Takes what is published to other hosts, in the operation's own commit; None where there are none.
        """
        self._store = store
        self._bus = bus
        self._now_ms = now_ms
        self._latencies = latencies
        self._news = news
        self.decoded = Decoded()
        self._window = 0
        self._window_lease = 0

    async def run(self, caller: Caller, op: str, target: str, body: Body) -> dict[str, Any]:
        """Do one operation and give its answer with a ``receipt`` added.

        Args:
            caller: Who asks; goes into the witness entry.
            op: The method's name, such as ``coordinator.claim_task``.
            target: What it acts on: a task, swarm or module id.
            body: Reads, decides and writes through the `Tx`, returns the answer, or raises the refusal. May run several
                times: it must not act on anything but the `Tx`.

        Raises:
            IfbusError: The body's refusal, after it was witnessed.
            LeaseNotFound: The body put a key on a lease that has ended; nothing was written.
            IdempotencyConflict: The caller's key was used with another body.
            Unavailable: The store is; or this lost `MAX_TRIES` races.

        Durable on return. Cancelled, it may have been committed: retry with the same idempotency key.
        """
        started_ns = time.perf_counter_ns()
        answer = await self._run(caller, op, target, body)
        window = self._latencies.get(op)
        if window is not None:
            window.note(started_ns)
        return answer

    async def _run(self, caller: Caller, op: str, target: str, body: Body) -> dict[str, Any]:
        idempotency = _idempotency_key(caller)
        news = self._news
        obtained: dict[Hashable, Any] = {}
        for _ in range(MAX_TRIES):
            if idempotency or news is not None:
                await self._ensure_window(op)
            tx, answer, earlier = await self._decide(idempotency, body, obtained)
            if isinstance(answer, IfbusError):
                # On several hosts what was read may be old: a refusal stands only if it is still so.
                if await self._witness_refusal(caller, op, target, answer, tx.compares[:MAX_TXN_OPS]):
                    try:
                        raise answer
                    finally:
                        del answer  # it holds this frame
                obtained = {name: found for name, found in obtained.items() if type(name) is str}
                continue
            if earlier is not None:
                return await self._replay(caller, op, target, earlier)
            if idempotency:
                tx.put(idempotency, [caller.body_hash, op, answer], lease=self._window_lease)
            if news is not None and tx.messages:
                tx.put(news.next_key(), to_stored(tx.messages), lease=self._window_lease)
            try:
                record = self._record(caller, op, target, "ok", tx.detail)
                told = tx.messages if news is None else ()
                done = await self._store.txn(
                    Txn(
                        tx.compares,
                        tx.writes,
                        record=record,
                        ends=op in ENDING_OPERATIONS,
                        told=told,
                        deletes_suffice=tx.deletes_suffice,
                        decided=tx.decided,
                    )
                )
            except LeaseNotFound:
                if (
                    not (idempotency or news is not None)
                    or await self._store.lease_left_ms(self._window_lease) is not None
                ):
                    raise
                self._window_lease = 0  # it went with a commit that failed for want of space: take a new one
                continue
            if done.succeeded:
                for subject, message in tx.messages:
                    message["revision"] = done.revision
                    self._bus.publish(subject, message)
                if news is not None:
                    news.committed(done.revision)
                answer["receipt"] = _receipt(done)
                return answer
            # Keys that were fetched have changed since; the rest is not done a second time.
            obtained = {name: found for name, found in obtained.items() if type(name) is str}
        raise Unavailable(
            f"cannot do {op} on {target}: others changed it {MAX_TRIES} times in between", data={"retry_after_ms": 50}
        )

    async def _decide(
        self, idempotency: str, body: Body, obtained: dict[Hashable, Any]
    ) -> tuple[Tx, dict[str, Any] | IfbusError, KeyValue | None]:
        """The decision with its transaction and answer or refusal, or the record of the first time that this was asked."""
        while True:
            tx = Tx(self._store, self.decoded, obtained)
            try:
                earlier = tx.get_stored(idempotency) if idempotency else None
                return tx, {} if earlier is not None else body(tx), earlier
            except _Pending as pending:
                # Kept as it is, the exception would hold this frame, which holds it.
                name, fetch = pending.name, pending.fetch
            except Momentary:
                raise
            except IfbusError as refusal:
                return tx, refusal, None
            try:
                obtained[name] = await fetch()
            except Momentary:
                raise
            except IfbusError as refusal:
                return tx, refusal, None

    async def look(self, look: Callable[[Tx], T]) -> T:
        """What a function reads through a `Tx`, without an operation: nothing is written, witnessed or waited for but the reads.

        Ask the store's `barrier` before telling it to anybody. What it refuses was looked at once more with all that other hosts had
        committed before: no refusal rests on a view that is behind.
        """
        try:
            return await self._look(look)
        except Momentary:
            raise
        except IfbusError:
            await self._store.sync()
            return await self._look(look)

    async def look_now(self, look: Callable[[Tx], T]) -> T:
        """As `look`, seeing everything that was committed before this call, on whatever host: for a promise that no commit follows."""
        await self._store.sync()
        return await self._look(look)

    async def _look(self, look: Callable[[Tx], T]) -> T:
        obtained: dict[Hashable, Any] = {}
        while True:
            try:
                return look(Tx(self._store, self.decoded, obtained))
            except _Pending as pending:
                obtained[pending.name] = await pending.fetch()

    async def replayed(self, caller: Caller, op: str, target: str) -> dict[str, Any] | None:
        """The answer that the caller's idempotency key got before, None if it is new or there is no key.

        `run` asks by itself; this is for a service that has to choose before it knows what to run.

        Raises:
            IdempotencyConflict: The key was used with another body.
        """
        key = _idempotency_key(caller)
        earlier = await self._store.get(key) if key else None
        return None if earlier is None else await self._replay(caller, op, target, earlier)

    async def witness_refusal(self, caller: Caller, op: str, target: str, refusal: IfbusError) -> None:
        """Put a refused operation on record; nothing else is written. The refusal's data gets the ``receipt``."""
        await self._witness_refusal(caller, op, target, refusal, ())

    async def _witness_refusal(
        self, caller: Caller, op: str, target: str, refusal: IfbusError, compares: Sequence[Compare]
    ) -> bool:
        detail = {key: value for key, value in refusal.data.items() if key != "would_change"}
        done = await self._store.txn(Txn(compares, record=self._record(caller, op, target, refusal.code, detail)))
        if done.succeeded:
            refusal.data["receipt"] = _receipt(done)
        return done.succeeded

    async def _replay(self, caller: Caller, op: str, target: str, earlier: KeyValue) -> dict[str, Any]:
        body_hash, first_op, answer = unpack(earlier.value)
        if body_hash != caller.body_hash or first_op != op:
            conflict = IdempotencyConflict(
                f"cannot do {' on '.join(filter(None, (op, target)))}: idempotency key {caller.idempotency_key!r} was used for {first_op} with another body",
                data={"key": caller.idempotency_key, "first_op": first_op},
                would_change=[{"by": "self", "what": "a new idempotency key, or the same body as the first time"}],
            )
            await self.witness_refusal(caller, op, target, conflict)
            raise conflict
        await self._store.barrier()
        receipt = {
            "revision": earlier.create_revision,
            "replayed": True,
            **await self._log_position(earlier.create_revision, caller, op, target),
        }
        return {**answer, "receipt": receipt}

    async def _log_position(self, revision: int, caller: Caller, op: str, target: str) -> dict[str, Any]:
        # Revisions never decrease along the log, so the entry of a writing operation is found by bisection; rare enough
        # that it needs no index on the hot path.
        low, high = 0, (await self._store.log_head()).seq
        while low < high:
            middle = (low + high) // 2
            entry = (await self._store.read_log(after_seq=middle, limit=1))[0]
            if entry.revision < revision:
                low = middle + 1
            else:
                high = middle
        entries = await self._store.read_log(after_seq=low, limit=MAX_TXN_OPS)
        found = [entry for entry in entries if entry.revision == revision and unpack(entry.record)["outcome"] == "ok"]
        if len(found) > 1:  # operations that went to etcd together share a revision
            whose = {"op": op, "uid": caller.uid, "target": target[:_TARGET_CHARS]}
            found = [entry for entry in found if whose.items() <= unpack(entry.record).items()]
        return {"seq": found[0].seq, "head": found[0].hash.hex()} if len(found) == 1 else {}

    async def _ensure_window(self, op: str) -> None:
        window = self._now_ms() // IDEMPOTENCY_WINDOW_MS
        if window == self._window and self._window_lease:
            return
        try:
            self._window_lease = await self._store.grant(2 * IDEMPOTENCY_WINDOW_MS, ends=op in ENDING_OPERATIONS)
        except Unavailable as error:
            if error.data.get("reason") != "storage_full" or op not in ENDING_OPERATIONS:
                raise
            # Nothing can be put, so nothing will hang on it; but deletes may suffice.
            self._window_lease = self._window_lease or _NO_LEASE
        else:
            self._window = window

    def _record(self, caller: Caller, op: str, target: str, outcome: str, detail: dict[str, Any]) -> bytes:
        peer = caller.peer
        record: dict[str, Any] = {
            "op": op,
            "uid": peer.uid,
            "pid": peer.pid,
            "target": target[:_TARGET_CHARS],
            "outcome": outcome,
        }
        if detail:
            record["detail"] = detail
        if caller.traceparent:
            record["trace"] = caller.traceparent
        return pack(record)


def _idempotency_key(caller: Caller) -> str:
    return "" if caller.idempotency_key is None else f"idem/{caller.uid}/{caller.idempotency_key}"


def _receipt(done: TxnResult) -> dict[str, Any]:
    receipt: dict[str, Any] = {"revision": done.revision}
    if done.head is not None:
        receipt |= {"seq": done.head.seq, "head": done.head.hash.hex()}
    if done.is_partial:
        receipt["partial"] = True
    return receipt

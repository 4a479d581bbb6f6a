"""One operation, one transaction: on a real store with a second writer that meddles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ifbus.errors import IdempotencyConflict, NotReady, Overloaded, Unavailable
from ifbusd.bus.local import LocalBus
from ifbusd.codec import pack, unpack
from ifbusd.identity import Caller, Peer
from ifbusd.operation import IDEMPOTENCY_WINDOW_MS, MAX_TRIES, Decoded, Operations, Tx
from ifbusd.store.base import Delete, LeaseNotFound, Put, Txn
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore

WALL_MS = 1_700_000_000_000


class Bench:
    """A store, a bus and operations on them, with a wall clock that the test sets."""

    def __init__(self, path: Path) -> None:
        self.now_ms = WALL_MS
        self.store = EmbeddedStore(
            path / "db",
            config=EmbeddedConfig(flush="inline"),
            now_ms=lambda: self.now_ms,
            boottime_ms=lambda: round(trio.current_time() * 1000),
        )
        self.bus = LocalBus()
        self.operations = Operations(self.store, self.bus, now_ms=lambda: self.now_ms)

    def meddle(self, op: Put | Delete) -> None:
        """Another writer comes first: what it wrote stands before this returns, as from another host."""
        self.store._apply(Txn(then=[op]))

    async def record(self) -> list[dict[str, Any]]:
        """The witness log, decoded."""
        return [unpack(entry.record) for entry in await self.store.read_log()]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Running."""
    bench = Bench(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.store.run)
        yield bench
        nursery.cancel_scope.cancel()


def caller(key: str | None = None, body: bytes = b"") -> Caller:
    """Somebody."""
    return Caller(peer=Peer(uid=7, gid=7, pid=8), idempotency_key=key, body_hash=body, traceparent="00-aa-bb-01")


def add_one(tx: Tx) -> dict[str, Any]:
    """Count up under a key."""
    stored = tx.get("counter")
    n = (unpack(stored) if stored else 0) + 1
    tx.put("counter", n)
    tx.detail["n"] = n
    return {"n": n}


async def test_an_operation_writes_and_witnesses_together(bench: Bench) -> None:
    """The answer has the receipt: its revision, the entry's number and the head of the log."""
    answer = await bench.operations.run(caller(), "test.add", "counter", add_one)
    head = await bench.store.log_head()
    assert answer == {"n": 1, "receipt": {"revision": 1, "seq": 1, "head": head.hash.hex()}}
    assert await bench.record() == [
        {
            "op": "test.add",
            "uid": 7,
            "pid": 8,
            "target": "counter",
            "outcome": "ok",
            "detail": {"n": 1},
            "trace": "00-aa-bb-01",
        }
    ]


async def test_concurrent_decisions_never_both_win(bench: Bench) -> None:
    """100 counters at once count to 100, each number once."""
    answers: list[int] = []

    async def add() -> None:
        answers.append((await bench.operations.run(caller(), "test.add", "counter", add_one))["n"])

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(add)
    assert sorted(answers) == list(range(1, 101))


async def test_a_lost_race_is_decided_again(bench: Bench) -> None:
    """Somebody writes what was read before the commit: the decision is made on fresh reads, and told and recorded once."""
    told: list[Any] = []
    bench.bus.subscribe("news", lambda _, message: told.append(message))
    tries = 0

    def add(tx: Tx) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        answer = add_one(tx)
        tx.publish("news", dict(answer))
        if tries < 3:
            bench.meddle(Put("counter", pack(tries * 10)))
        return answer

    answer = await bench.operations.run(caller(), "test.add", "counter", add)
    assert (answer["n"], tries) == (21, 3)
    assert told == [{"n": 21, "revision": answer["receipt"]["revision"]}]
    assert len(await bench.record()) == 1


async def test_an_absent_key_is_compared_too(bench: Bench) -> None:
    """What was read as absent and is created meanwhile, or deleted meanwhile, also makes the decision anew."""
    seen: list[bool] = []

    def look(tx: Tx) -> dict[str, Any]:
        seen.append(tx.get("other") is not None)
        if len(seen) == 1:
            bench.meddle(Put("other", b"\x01"))
        elif len(seen) == 2:
            bench.meddle(Delete("other"))
        tx.put("mine", 1)
        return {}

    await bench.operations.run(caller(), "test.look", "x", look)
    assert seen == [False, True, False]


async def test_an_operation_that_always_loses_says_so(bench: Bench) -> None:
    """After so many lost races the caller hears `unavailable` with a time to come back; nothing was written."""
    tries = 0

    def lose(tx: Tx) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        answer = add_one(tx)
        bench.meddle(Put("counter", pack(0)))
        return answer

    with pytest.raises(Unavailable) as gave_up:
        await bench.operations.run(caller(), "test.add", "counter", lose)
    assert (tries, gave_up.value.retry_after_ms) == (MAX_TRIES, 50)
    assert await bench.record() == []


async def test_a_refusal_is_on_record_and_nothing_is_written(bench: Bench) -> None:
    """Its code and figures; the caller gets the receipt of the entry. Its long target is cut."""

    def refuse(tx: Tx) -> dict[str, Any]:
        tx.put("counter", 1)
        tx.publish("news", {})
        raise NotReady("no", data={"state": "waiting"}, would_change=[{"by": "time", "what": "wait"}])

    with pytest.raises(NotReady) as refused:
        await bench.operations.run(caller(), "test.refuse", "x" * 1_000, refuse)
    [entry] = await bench.record()
    assert (entry["outcome"], entry["detail"], entry["target"]) == ("not_ready", {"state": "waiting"}, "x" * 128)
    assert refused.value.data["receipt"]["seq"] == 1
    assert await bench.store.get("counter") is None


async def test_what_is_only_the_moment_is_not_on_record(bench: Bench) -> None:
    """An overload is no decision."""

    def overload(tx: Tx) -> dict[str, Any]:
        raise Overloaded("later")

    with pytest.raises(Overloaded):
        await bench.operations.run(caller(), "test.x", "x", overload)
    assert await bench.record() == []


async def test_a_transaction_reads_its_own_writes() -> None:
    """`get` sees them, `get_stored` does not; the last write to a key counts, in the order of the first."""
    tx = Tx(None, Decoded(), {})  # type: ignore[arg-type]  # nothing is read from the store
    tx.put("a", 1)
    tx.put("b", 2)
    tx.delete("a")
    tx.put("c", 3, lease=9)
    assert tx.get("a") is None
    assert unpack(tx.get("b") or b"") == 2
    assert tx.writes == [Delete("a"), Put("b", pack(2)), Put("c", pack(3), 9)]
    assert tx.compares == []


async def test_a_retried_request_has_the_effect_of_one(bench: Bench) -> None:
    """Same key and body: the first answer with its receipt, marked as a replay, also among many entries. Else a conflict."""
    first = await bench.operations.run(caller("k", b"1"), "test.add", "counter", add_one)
    for _ in range(20):
        await bench.operations.run(caller(), "test.add", "counter", add_one)
    again = await bench.operations.run(caller("k", b"1"), "test.add", "counter", add_one)
    assert again == first | {"receipt": first["receipt"] | {"replayed": True}}
    assert await bench.operations.replayed(caller("k", b"1"), "test.add", "counter") == again
    assert await bench.operations.replayed(caller("new", b"1"), "test.add", "counter") is None
    assert await bench.operations.replayed(caller(), "test.add", "counter") is None
    for other in (caller("k", b"2"),):
        with pytest.raises(IdempotencyConflict) as conflict:
            await bench.operations.run(other, "test.add", "counter", add_one)
        assert conflict.value.data["first_op"] == "test.add"
        assert conflict.value.would_change
    with pytest.raises(IdempotencyConflict):
        await bench.operations.run(caller("k", b"1"), "test.other", "counter", add_one)
    assert [entry["outcome"] for entry in await bench.record()][-2:] == ["idempotency_conflict"] * 2
    stored = await bench.store.get("counter")
    assert stored is not None
    assert unpack(stored.value) == 21


async def test_the_same_request_twice_at_once_is_done_once(bench: Bench) -> None:
    """Ten copies that arrive together: one effect, ten equal answers."""
    answers: list[int] = []

    async def add() -> None:
        answers.append((await bench.operations.run(caller("k", b"1"), "test.add", "counter", add_one))["n"])

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(add)
    assert answers == [1] * 10
    assert len(await bench.record()) == 1


async def test_cancelled_at_any_moment_the_retry_finds_out(bench: Bench) -> None:
    """Whatever the await at which it is cut off, after the retry it was done once."""
    for n in range(8):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.operations.run, caller(f"k{n}", b"1"), "test.add", "counter", add_one)
                for _ in range(n):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        answer = await bench.operations.run(caller(f"k{n}", b"1"), "test.add", "counter", add_one)
        assert answer["n"] == n + 1


async def test_records_share_one_lease_per_window(bench: Bench) -> None:
    """The keyed requests of an hour hang on one lease; the next hour has another, and a lease that was lost is replaced."""
    leases = []
    for n, step_ms in enumerate((0, 1, IDEMPOTENCY_WINDOW_MS, 0)):
        bench.now_ms += step_ms
        await bench.operations.run(caller(f"k{n}"), "test.add", "counter", add_one)
        stored = await bench.store.get(f"idem/7/k{n}")
        assert stored is not None
        leases.append(stored.lease)
    assert leases[0] == leases[1] != leases[2] == leases[3]
    await bench.store.revoke(leases[2])
    await bench.operations.run(caller("after"), "test.add", "counter", add_one)
    stored = await bench.store.get("idem/7/after")
    assert stored is not None
    assert stored.lease not in leases


async def test_a_body_on_a_dead_lease_is_the_bodys_own_matter(bench: Bench) -> None:
    """With and without a key, the service hears of it; nothing is written."""

    def put(tx: Tx) -> dict[str, Any]:
        tx.put("leased", 1, lease=12345)
        return {}

    for who in (caller(), caller("k")):
        with pytest.raises(LeaseNotFound):
            await bench.operations.run(who, "test.put", "x", put)
    assert await bench.store.get("leased") is None
    assert await bench.record() == []


async def test_a_refusal_rests_on_what_is_committed(bench: Bench) -> None:
    """What a refusal rests on has changed by the time that it is put on record: it is decided anew, and leaves no entry."""

    def need(tx: Tx) -> dict[str, Any]:
        if tx.get("there") is None:
            bench.meddle(Put("there", pack(1)))  # another host, whose write this one had not heard of
            raise NotReady("not there", data={"task_id": "t", "state": "waiting"})
        return {"found": True}

    answer = await bench.operations.run(caller(), "test.need", "there", need)
    assert answer["found"]
    assert [entry["outcome"] for entry in await bench.record()] == ["ok"]


async def test_a_look_refuses_only_after_a_second_one(bench: Bench) -> None:
    """A look at a view that is behind refuses nothing that a newer one allows."""

    def look(tx: Tx) -> bool:
        if tx.get("there") is None:
            bench.meddle(Put("there", pack(1)))
            raise NotReady("not there", data={"task_id": "t", "state": "waiting"})
        return True

    assert await bench.operations.look(look)

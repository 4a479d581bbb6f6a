"""The etcd store while etcd is stopped, paused, cut off, slow, full or ahead: what calls answer, and that it recovers by itself."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import grpc
import pytest
import trio
from etcd3 import etcdrpc

from ifbus.errors import Unavailable
from ifbusd.store.base import Compacted, Compare, Delete, LeaseNotFound, Put, Store, Txn, TxnResult, Watch
from ifbusd.store.etcd import recording, records
from ifbusd.store.etcd.recording import Recording
from ifbusd.store.etcd.records import Intake, Record, RecordLog
from ifbusd.store.etcd.spool import Spool
from ifbusd.store.etcd.store import EtcdStore
from tests import full_etcd
from tests.conformance.backends import etcd_store, running
from tests.proxy import network
from tests.servers import HOST, Node, etcd_nodes

pytestmark = pytest.mark.slow
# Long enough for a busy machine; nothing waits for it where all is well.
PATIENCE_S = 60
QUICK: dict[str, Any] = {"request_timeout_ms": 2_000, "probe_interval_ms": 100}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """An etcd of one's own, to stop and start."""
    with etcd_nodes(tmp_path / "etcd", 1) as [only]:
        yield only


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Node]:
    """One that is full soon."""
    with etcd_nodes(tmp_path / "etcd", 1, options=full_etcd.OPTIONS) as [only]:
        yield only


@asynccontextmanager
async def store_on(directory: Path, endpoint: str, **settings: Any) -> AsyncIterator[EtcdStore]:
    """A running store with short times."""
    directory.mkdir(exist_ok=True)
    async with running(etcd_store(directory, endpoint, **{**QUICK, "prefix": "/outage/", **settings})) as store:
        yield store


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.01)


async def write(store: Store, key: str, value: bytes = b"v", record: bytes | None = None) -> int:
    """Write a key; the revision."""
    return (await store.txn(Txn(then=[Put(key, value)], record=record))).revision


async def write_at_last(store: Store, key: str, value: bytes = b"v") -> int:
    """Write a key, as often as it takes."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                return await write(store, key, value)
            except Unavailable:
                await trio.sleep(0.05)


async def drain(changes: Watch) -> None:
    """Take all that a watch tells, until it ends."""
    async for _ in changes:
        pass


async def refused(call: Callable[[], Awaitable[object]]) -> Unavailable:
    """What a call that must fail says."""
    with trio.fail_after(PATIENCE_S), pytest.raises(Unavailable) as caught:
        await call()
    return caught.value


async def test_a_stopped_etcd_is_told_and_waited_out(node: Node, tmp_path: Path) -> None:
    """Writes say why and when to try again, what is known by heart is told, and after the restart all goes on without a gap."""
    async with store_on(tmp_path / "host", node.address) as store:
        first = await write(store, "a/1")
        async with store.watch("a/", start_revision=first) as changes:
            assert [event.key for event in await anext(changes)] == ["a/1"]
            node.stop()
            error = await refused(lambda: write(store, "a/2"))
            assert error.data["reason"] == "store_unreachable"
            assert error.retry_after_ms > 0
            found = store.peek("a/1")
            assert found is not None
            assert found.value == b"v"
            assert store.peek("a/none") is None
            assert [item.key for item in (await store.range("a/")).items] == ["a/1"]
            assert store.statistics().state == "unreachable"
            node.start()
            second = await write_at_last(store, "a/2")
            told = await anext(changes)
            while told[-1].revision < second:  # one whose outcome was unknown may have been made before
                told += await anext(changes)
            assert {event.key for event in told} == {"a/2"}
            assert told[-1].revision == second
        assert store.statistics().state == "ok"
        assert store.statistics().outages >= 1


async def test_a_paused_etcd_leaves_the_outcome_unknown_once(node: Node, tmp_path: Path) -> None:
    """The write under way is said to be unknown, those after it fail at once, and on waking both sides agree on what was done."""
    async with store_on(tmp_path / "host", node.address) as store:
        await write(store, "a/1", b"before")
        node.pause()
        error = await refused(lambda: write(store, "a/1", b"during", b"entry"))
        assert error.data["outcome"] == "unknown"
        assert "unknown" in error.message
        for _ in range(200):  # each would take its whole time if it were tried
            error = await refused(lambda: write(store, "a/2"))
            assert "outcome" not in error.data
        node.go_on()
        last = await write_at_last(store, "a/3")
        with trio.fail_after(PATIENCE_S):
            await store.sync()
        with grpc.insecure_channel(node.address) as channel:
            answer = etcdrpc.KVStub(channel).Range(etcdrpc.RangeRequest(key=b"/outage/k/a/1"), timeout=10)
        found = await store.get("a/1")
        assert found is not None
        assert found.value == answer.kvs[0].value
        assert (await store.get("a/2")) is None
        if found.value == b"during":
            with trio.fail_after(PATIENCE_S):
                while not (entries := await store.read_log()):
                    await trio.sleep(0.02)
            assert [entry.record for entry in entries] == [b"entry"]
        assert store.told_revision >= last


async def test_a_retried_write_is_done_once(node: Node, tmp_path: Path) -> None:
    """Who was told that the outcome is unknown and compares what he read wins at most once."""
    async with store_on(tmp_path / "host", node.address) as store:
        node.pause()
        claim = Txn([Compare("a/claim", 0)], [Put("a/claim", b"me")], record=b"claimed")
        await refused(lambda: store.txn(claim))
        node.go_on()
        await write_at_last(store, "a/other")
        again = await store.txn(claim)
        found = await store.get("a/claim")
        assert found is not None
        with trio.fail_after(PATIENCE_S):
            while not (entries := await store.read_log()):
                await trio.sleep(0.02)
        assert [entry.record for entry in entries] == [b"claimed"]
        if again.succeeded:
            assert again.revision == found.mod_revision


async def test_a_cut_member_is_replaced_by_another(tmp_path: Path) -> None:
    """When the member in use is cut off from us, another takes over, and no change is missed."""
    with etcd_nodes(tmp_path / "etcd", 3) as nodes, network() as wires:
        first = wires.proxy(nodes[0].port)
        endpoints = tuple(f"http://{each}" for each in (first.address, nodes[1].address, nodes[2].address))
        async with store_on(tmp_path / "host", "", endpoints=endpoints) as store:
            start = store.revision + 1
            await write_at_last(store, "a/1")
            await until(lambda: store.statistics().state != "unreachable")
            [in_use] = [each for each in store.statistics().endpoints if each.in_use]
            if in_use.endpoint != first.address:
                nodes[[each.address for each in nodes].index(in_use.endpoint)].stop()
            else:
                first.cut()
            last = await write_at_last(store, "a/2")
            assert store.statistics().failovers >= 1
            got: list[str] = []
            async with store.watch("a/", start_revision=start) as changes:
                with trio.fail_after(PATIENCE_S):
                    while "a/2" not in got:
                        got += [event.key for event in await anext(changes)]
            assert list(dict.fromkeys(got)) == [
                "a/1",
                "a/2",
            ]  # a write whose outcome was unknown may have been made twice
            assert store.revision >= last


async def test_a_member_without_a_majority_is_left(tmp_path: Path) -> None:
    """A single member whose peers are gone is no etcd to write to: calls fail, and go on when the peers are back."""
    with etcd_nodes(tmp_path / "etcd", 3) as nodes:
        async with store_on(tmp_path / "host", nodes[0].address) as store:
            await write_at_last(store, "a/1")
            nodes[1].stop()
            nodes[2].stop()
            await refused(lambda: write(store, "a/2"))
            await until(lambda: store.statistics().state == "unreachable")
            nodes[1].start(wait=False)
            await write_at_last(store, "a/3")


async def test_a_watch_behind_a_compaction_reads_anew(node: Node, tmp_path: Path) -> None:
    """What was changed, created and deleted while we were cut off and is compacted is known afterwards; watchers are told to read anew."""
    with network() as wires:
        wire = wires.proxy(node.port)
        async with (
            store_on(tmp_path / "other", node.address) as other,
            store_on(tmp_path / "host", wire.address) as store,
        ):
            for key in ("a/stays", "a/changes", "a/goes"):
                await write(other, key, b"old", key.encode())
            await store.sync()
            async with store.watch("a/") as changes:
                wire.refuse()
                await refused(lambda: write(store, "a/none"))
                await write(other, "a/changes", b"new", b"changes")
                lease = await other.grant(60_000)
                await other.txn(Txn(then=[Put("a/goes", b"", lease), Put("a/comes", b"new")], record=b"comes"))
                await other.revoke(lease)
                newest = await write(other, "b/newest")
                with grpc.insecure_channel(node.address) as channel:
                    etcdrpc.KVStub(channel).Compact(etcdrpc.CompactionRequest(revision=newest), timeout=10)
                wire.heal()
                with trio.fail_after(PATIENCE_S), pytest.raises(Compacted):
                    await drain(changes)
            assert store.statistics().read_anew >= 1
            known = {key: store.peek(key) for key in ("a/stays", "a/changes", "a/goes", "a/comes")}
            assert {key: found and found.value for key, found in known.items()} == {
                "a/stays": b"old",
                "a/changes": b"new",
                "a/goes": None,
                "a/comes": b"new",
            }
            last = await write_at_last(store, "a/after")
            assert store.told_revision >= last
            with trio.fail_after(PATIENCE_S):
                while [entry.record for entry in await store.read_log()][-2:] != [b"changes", b"comes"]:
                    await trio.sleep(0.05)


async def test_a_full_etcd_refuses_writes_alone(small: Node, tmp_path: Path) -> None:
    """With the space alarm raised writes say that the storage is full, reads go on, and writes too once the alarm is lifted."""
    async with store_on(tmp_path / "host", small.address) as store:
        await write(store, "a/1")
        full_etcd.fill(small)
        error = await refused(lambda: write(store, "a/2", record=b"entry"))
        assert error.data["reason"] == "storage_full"
        assert "outcome" not in error.data
        assert await store.get("a/1") is not None
        await store.sync()
        await until(lambda: store.statistics().alarms == ["nospace"])
        full_etcd.make_room(small)
        await write_at_last(store, "a/2")


async def test_what_is_refused_as_a_full_etcd_was_not_done(small: Node, tmp_path: Path) -> None:
    """Many write while etcd becomes full: it does some of what it refuses, and who is told that there is no room was not among them."""
    answers: dict[str, int | Unavailable] = {}

    async def write_one(store: Store, key: str) -> None:
        try:
            answers[key] = await write(store, key, bytes(50_000), key.encode())
        except Unavailable as error:
            answers[key] = error

    async with store_on(tmp_path / "host", small.address, max_in_flight=16, max_batch_txns=1) as store:
        for start in itertools.count(step=64):
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 64):
                    nursery.start_soon(write_one, store, f"big/{number}")
            if any(isinstance(answer, Unavailable) for answer in answers.values()):
                break
        await store.sync()
        for key, answer in answers.items():
            found = await store.get(key)
            if isinstance(answer, Unavailable):
                assert answer.data["reason"] == "storage_full"
                assert "outcome" not in answer.data
                assert found is None
            else:
                assert found is not None
                assert found.mod_revision == answer
        done = [key for key, answer in answers.items() if isinstance(answer, int)]
        with trio.fail_after(PATIENCE_S):
            while len(entries := await store.read_log()) < len(done):
                await trio.sleep(0.02)
        assert sorted(entry.record.decode() for entry in entries) == sorted(done)


async def test_a_group_does_not_get_past_the_alarm(small: Node, tmp_path: Path) -> None:
    """Of many that write into a full etcd at once none gets in, and those that delete or only look are not held up by them."""
    async with store_on(tmp_path / "host", small.address) as store:
        await write(store, "a/stays")
        goes = await write(store, "a/goes")
        full_etcd.fill(small)
        takes_deletes = full_etcd.takes_deletes(small)
        looks: list[bool] = []
        deletes: list[TxnResult | Unavailable] = []

        async def refuse(key: str) -> None:
            error = await refused(lambda: write(store, key, record=b"entry"))
            assert error.data["reason"] == "storage_full"

        async def look() -> None:
            looks.append((await store.txn(Txn([Compare("a/stays", 1)], record=b"refusal"))).succeeded)

        async def delete() -> None:
            ends = [Delete("a/goes"), Put("a/left", b"")]
            try:
                deletes.append(
                    await store.txn(Txn([Compare("a/goes", goes)], ends, record=b"end", deletes_suffice=True))
                )
            except Unavailable as error:
                deletes.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(refuse, f"b/{number}")
                if takes_deletes:  # and whatever else puts nothing
                    nursery.start_soon(look)
            nursery.start_soon(delete)
        await store.sync()
        assert [item.key for item in (await store.range("b/")).items] == []
        [deleted] = deletes
        if not takes_deletes:
            assert isinstance(deleted, Unavailable)
            pytest.skip("this etcd, being full, takes not even deletes: needs 3.4.20, 3.5.7 or later")
        assert looks == [False] * 40
        assert isinstance(deleted, TxnResult)
        assert deleted.is_partial
        assert [item.key for item in (await store.range("a/")).items] == ["a/stays"]
        assert [entry.record for entry in await store.read_log()] == [b"end"]


async def test_a_full_etcd_can_still_be_read_as_it_is(small: Node, tmp_path: Path) -> None:
    """Where other programs' writes have moved etcd on, a consistent read needs no room."""
    async with store_on(tmp_path / "host", small.address) as store:
        await write(store, "a/1")
        full_etcd.fill(small)
        with trio.fail_after(PATIENCE_S):
            await store.sync()
        assert store.statistics().outages == 0


async def test_a_slow_etcd_is_slow_and_right(node: Node, tmp_path: Path) -> None:
    """With half a second each way everything works, is told as slow, and is no outage."""
    async with (
        slow_wire(node.port, 0.5) as port,
        store_on(tmp_path / "host", f"{HOST}:{port}", request_timeout_ms=10_000) as store,
    ):
        revision = await write(store, "a/1", record=b"entry")
        assert store.peek("a/1") is not None
        assert store.told_revision >= revision
        assert await store.keep_alive(await store.grant(60_000)) == 60_000
        assert [entry.record for entry in await store.read_log()] == [b"entry"]
        await until(lambda: store.statistics().state == "slow")
        assert store.statistics().outages == 0


async def test_a_start_without_etcd_says_so(node: Node, tmp_path: Path) -> None:
    """A daemon that finds no etcd does not start: it names the endpoints, and the next start finds them."""
    node.stop()
    (tmp_path / "host").mkdir()
    store = etcd_store(tmp_path / "host", node.address, start_timeout_ms=300, **QUICK)
    with trio.fail_after(PATIENCE_S), pytest.raises(ExceptionGroup) as caught:
        async with running(store):
            pass
    [error] = caught.value.exceptions
    while isinstance(error, ExceptionGroup):
        [error] = error.exceptions
    assert isinstance(error, Unavailable)
    assert node.address in error.message
    node.start()
    async with store_on(tmp_path / "host", node.address) as started:
        await write(started, "a/1")


async def test_leases_across_a_pause_and_a_restart(node: Node, tmp_path: Path) -> None:
    """A lease whose time passes while etcd sleeps is over on waking; a restart gives every lease its full time again."""
    async with store_on(tmp_path / "host", node.address) as store:
        short = await store.grant(4_000)
        long = await store.grant(60_000)
        await store.txn(Txn(then=[Put("l/short", b"", short), Put("l/long", b"", long)]))
        node.pause()
        await refused(lambda: store.keep_alive(short))
        await until(lambda: store.statistics().down_ms > 4_500)
        node.go_on()
        await until(lambda: store.peek("l/short") is None)
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    await store.keep_alive(short)
                except LeaseNotFound:
                    break
                except Unavailable:
                    await trio.sleep(0.05)
        node.stop()
        node.start()
        await write_at_last(store, "l/other")
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    assert await store.keep_alive(long) == 60_000
                    break
                except Unavailable:
                    await trio.sleep(0.05)
        assert store.peek("l/long") is not None


async def test_each_host_has_the_record_of_all(node: Node, tmp_path: Path) -> None:
    """Two hosts write; one is away for a while and crashes besides: both logs have every entry once, in the same order."""
    async with store_on(tmp_path / "a", node.address) as first:
        async with store_on(tmp_path / "b", node.address) as second:
            for number in range(5):
                await write(first, f"a/{number}", record=b"first %d" % number)
                await write(second, f"b/{number}", record=b"second %d" % number)
            await second.txn(Txn(record=b"refused by second"))
        for number in range(5, 10):
            await write(first, f"a/{number}", record=b"first %d" % number)
        async with store_on(tmp_path / "b", node.address) as second:
            await write(second, "b/9", record=b"second 9")
            await write(first, "a/10", record=b"first 10")
            await second.sync()
            with trio.fail_after(PATIENCE_S):
                while (await second.read_log())[-1].record != b"first 10":
                    await trio.sleep(0.02)
            shared = [
                (entry.revision, entry.record)
                for entry in await second.read_log()
                if entry.record != b"refused by second"
            ]
            assert shared == [(entry.revision, entry.record) for entry in await first.read_log()]
            assert len(shared) == 17


async def test_a_disk_without_room_holds_up_the_record_alone(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose log cannot be written sees what the others change; later its log has every entry, each once and in order."""
    monkeypatch.setattr(records, "_MOST_GATHERED", 20)
    async with store_on(tmp_path / "host", node.address) as host, store_on(tmp_path / "other", node.address) as other:
        await write(host, "a/before", record=b"before")
        assert len(await host.read_log()) == 1
        may_write, flush = threading.Event(), RecordLog._flush

        def flush_later(log: RecordLog, *entries: Any) -> None:
            if log.path.parent.name == "host":
                may_write.wait()
            flush(log, *entries)

        monkeypatch.setattr(RecordLog, "_flush", flush_later)
        for again in range(3):
            may_write.clear()
            for number in range(100):
                await write(other, f"a/{again}-{number}", record=b"%d-%d" % (again, number))
            await until(lambda last=f"a/{again}-99": host.peek(last) is not None)  # type: ignore[misc]
            assert host.statistics().record_seq < 100 * again + 100
            may_write.set()
            await until(lambda count=100 * again + 101: host.statistics().record_seq >= count)  # type: ignore[misc]
        assert [entry.record for entry in await host.read_log()] == [entry.record for entry in await other.read_log()]


async def test_a_disk_without_room_does_not_fill_the_memory(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many entries the others write meanwhile, none is taken that there is no room for; once there is, all come."""
    monkeypatch.setattr(records, "_MOST_GATHERED", 20)
    had_room = []
    put = Intake.put

    def put_noted(intake: Intake, entries: list[Record], revision: int) -> None:
        had_room.append(intake.has_room)
        put(intake, entries, revision)

    monkeypatch.setattr(Intake, "put", put_noted)
    async with store_on(tmp_path / "host", node.address) as host, store_on(tmp_path / "other", node.address) as other:
        await write(host, "a/before", record=b"before")
        assert len(await host.read_log()) == 1
        may_write, flush = threading.Event(), RecordLog._flush

        def flush_later(log: RecordLog, *entries: Any) -> None:
            if log.path.parent.name == "host":
                may_write.wait()
            flush(log, *entries)

        monkeypatch.setattr(RecordLog, "_flush", flush_later)
        for number in range(200):
            await write(other, f"a/{number}", record=b"%d" % number)
            await until(lambda last=f"a/{number}": host.peek(last) is not None)  # type: ignore[misc]
        may_write.set()
        await until(lambda: host.statistics().record_seq >= 201)
        assert [entry.record for entry in await host.read_log()] == [entry.record for entry in await other.read_log()]
        assert all(had_room)


async def test_what_a_catching_up_record_is_told_twice_stands_there_once(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that its own watch told before the one for everything did, which is held up for a moment."""
    may_see, take = trio.Event(), EtcdStore._take
    held_up = set()

    async def take_later(store: EtcdStore, events: list[Any]) -> None:
        if store.node in held_up:
            await may_see.wait()
        await take(store, events)

    monkeypatch.setattr(EtcdStore, "_take", take_later)  # a store hands it on when it is made
    async with store_on(tmp_path / "host", node.address) as host, store_on(tmp_path / "other", node.address) as other:
        held_up.add(host.node)
        for number in range(5):
            await write(other, f"a/{number}", record=b"%d" % number)
            if number < 2:  # as long as it is behind
                await until(lambda count=number + 1: host.statistics().record_seq >= count)  # type: ignore[misc]
            may_see.set()
            await until(lambda last=f"a/{number}": host.peek(last) is not None)  # type: ignore[misc]
            may_see = trio.Event()
        may_see.set()
        await until(lambda: host.statistics().record_seq >= 5)
        assert [entry.record for entry in await host.read_log()] == [b"%d" % number for number in range(5)]


async def test_a_record_catches_up_with_all_that_it_missed(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told one entry at a time, it goes on with what the watch for everything tells only when it knows the last one it missed."""
    take_late = Recording._take_late

    async def take_one_by_one(recording: Recording, events: list[Any]) -> None:
        for event in events:
            await take_late(recording, [event])
            await trio.sleep(0.005)

    async with store_on(tmp_path / "host", node.address) as host:
        await write(host, "a/before", record=b"before")
    monkeypatch.setattr(Recording, "_take_late", take_one_by_one)
    async with store_on(tmp_path / "other", node.address) as other:
        for number in range(50):
            await write(other, f"a/{number}", record=b"%d" % number)
        async with store_on(tmp_path / "host", node.address) as host:
            for number in range(50, 100):
                await write(other, f"a/{number}", record=b"%d" % number)
            await until(lambda: host.statistics().record_seq >= 101)
            assert [entry.record for entry in (await host.read_log())[1:]] == [b"%d" % number for number in range(100)]


async def test_a_record_far_behind_gets_what_still_stands_in_the_rings(node: Node, tmp_path: Path) -> None:
    """More entries than one page, several at a revision, compacted while a host was away: it takes them over in order and each once."""
    async with store_on(tmp_path / "away", node.address) as away:
        await write(away, "a/first", record=b"first")
        assert len(await away.read_log()) == 1
    async with store_on(tmp_path / "other", node.address) as other:
        for start in range(0, 1_200, 100):
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 100):
                    nursery.start_soon(write, other, f"a/{number}", b"v", b"%d" % number)
        written = [(entry.revision, entry.record) for entry in await other.read_log(limit=2_000)]
        assert len(written) == 1_200
        with grpc.insecure_channel(node.address) as channel:
            etcdrpc.KVStub(channel).Compact(etcdrpc.CompactionRequest(revision=other.revision), timeout=10)
    async with store_on(tmp_path / "away", node.address) as away:
        await until(lambda: away.statistics().record_seq >= 1_201)
        found = await away.read_log(limit=2_000)
        assert away.statistics().read_anew == 1
        assert sorted((entry.revision, entry.record) for entry in found[1:]) == sorted(written)
        assert [entry.revision for entry in found] == sorted(entry.revision for entry in found)


async def test_a_record_far_behind_waits_for_a_place_to_put_it_in_order(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk under the temporary files ends nothing, wherever it shows: once there is room each entry is there once."""
    monkeypatch.setattr(recording, "_PAGE", 10)
    failed = []

    def failing_once(name: str, nth: int) -> None:
        work, calls = getattr(Spool, name), itertools.count()

        def fail(spool: Spool, *arguments: Any) -> Any:
            if next(calls) == nth:
                failed.append(name)
                raise apsw.FullError("database or disk is full")
            return work(spool, *arguments)

        monkeypatch.setattr(Spool, name, fail)

    async with store_on(tmp_path / "away", node.address) as away:
        await write(away, "a/first", record=b"first")
        assert len(await away.read_log()) == 1
    async with store_on(tmp_path / "other", node.address) as other:
        for number in range(50):
            await write(other, f"a/{number}", record=b"%d" % number)
        with grpc.insecure_channel(node.address) as channel:
            etcdrpc.KVStub(channel).Compact(etcdrpc.CompactionRequest(revision=other.revision), timeout=10)
    failing_once("_add", 2)
    failing_once("_next", 0)
    failing_once("_next", 3)
    async with store_on(tmp_path / "away", node.address) as away:
        await until(lambda: away.statistics().record_seq >= 51)
        assert [entry.record for entry in (await away.read_log())[1:]] == [b"%d" % number for number in range(50)]
    assert failed == ["_add", "_next", "_next"]


async def test_a_restart_writes_over_none_of_the_last_entries(node: Node, tmp_path: Path) -> None:
    """Those of one group, which are equally new, are there for a host that was away, whatever was written after the restart."""
    async with store_on(tmp_path / "away", node.address) as away:
        await write(away, "a/first", record=b"first")
        assert len(await away.read_log()) == 1
    async with store_on(tmp_path / "other", node.address) as other, trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(write, other, f"a/{number}", b"v", b"%d" % number)
    async with store_on(tmp_path / "other", node.address) as other:
        for number in range(60, 120):
            await write(other, f"a/{number}", record=b"%d" % number)
        with grpc.insecure_channel(node.address) as channel:
            etcdrpc.KVStub(channel).Compact(etcdrpc.CompactionRequest(revision=other.revision), timeout=10)
    async with store_on(tmp_path / "away", node.address) as away:
        await until(lambda: away.statistics().read_anew == 1)
        await write(away, "a/last", record=b"last")
        entries = await away.read_log()
        assert sorted(entry.record for entry in entries[1:-1]) == sorted(b"%d" % number for number in range(120))


async def test_the_ring_of_entries_is_bounded_and_misses_none(node: Node, tmp_path: Path) -> None:
    """Far more entries than places for them, some of them across a restart: each is in the log, and etcd holds no more than the ring."""
    settings = {"record_slots": 64}
    for start in (0, 100):
        async with store_on(tmp_path / "host", node.address, **settings) as store:
            for number in range(start, start + 100):
                await write(store, "a/1", record=b"%d" % number)
            entries = await store.read_log()
            assert [entry.record for entry in entries] == [b"%d" % number for number in range(start + 100)]
    with grpc.insecure_channel(node.address) as channel:
        request = etcdrpc.RangeRequest(key=b"/outage/w/", range_end=b"/outage/w0", count_only=True)
        assert etcdrpc.KVStub(channel).Range(request, timeout=10).count == 64


async def test_a_message_that_is_too_large_for_a_watch_is_read_in_pages(node: Node, tmp_path: Path) -> None:
    """After an absence with more changes than fit into one message everything is read anew, in pieces, and the watch goes on."""
    with network() as wires:
        wire = wires.proxy(node.port)
        async with (
            store_on(tmp_path / "other", node.address, request_timeout_ms=10_000) as other,
            store_on(tmp_path / "host", wire.address, request_timeout_ms=10_000) as store,
        ):
            wire.refuse()
            await refused(lambda: write(store, "a/none"))
            for number in range(140):
                await write(other, f"big/{number % 10}", bytes(1_000_000))
            wire.heal()
            last = await write_at_last(store, "a/after")
            with trio.fail_after(PATIENCE_S):
                await store.sync()
            assert store.statistics().revision >= last
            assert store.statistics().read_anew >= 1
            found = await store.get("big/9")
            assert found is not None
            assert len(found.value) == 1_000_000


@asynccontextmanager
async def slow_wire(port: int, delay_s: float) -> AsyncIterator[int]:
    """A port through which everything takes so long in each direction, without holding up what comes after."""

    async def forward(source: trio.SocketStream, target: trio.SocketStream) -> None:
        into, out = trio.open_memory_channel[tuple[float, bytes]](1_000)

        async def deliver() -> None:
            async for due, data in out:
                await trio.sleep_until(due)
                await target.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            async with into:
                async for data in source:
                    await into.send((trio.current_time() + delay_s, bytes(data)))

    async def serve(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream(HOST, port)
        try:
            async with near, far, trio.open_nursery() as nursery:
                nursery.start_soon(forward, near, far)
                nursery.start_soon(forward, far, near)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side is gone

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()

"""Group commit on a real etcd: conflicting transactions that arrive together are still decided one after the other."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifbus.errors import LimitExceeded
from ifbusd.bus.local import LocalBus
from ifbusd.codec import unpack
from ifbusd.identity import ITSELF
from ifbusd.operation import Operations, Tx
from ifbusd.store.base import Compare, LeaseNotFound, Put, Store, Txn
from ifbusd.store.etcd.store import EtcdStore
from tests.conformance.backends import etcd_store, running, wall_ms

pytestmark = pytest.mark.slow
_example = itertools.count()


class Budgets:
    """Admissions as the coordinator makes them: a claim of a task that also takes from a swarm's budget."""

    def __init__(self, store: Store, root: str, budget: int) -> None:
        self.store = store
        self.root = root
        self.budget = budget
        self.won: list[tuple[str, str, int]] = []

    async def admit(self, task: str, swarm: str, cost: int) -> None:
        """Claim if the task is free and the swarm can pay, as often as others come in between."""
        claim, account = f"{self.root}claims/{task}", f"{self.root}accounts/{swarm}"
        while True:
            held, paid = await self.store.get(claim), await self.store.get(account)
            spent = int(paid.value) if paid else 0
            if held is not None or spent + cost > self.budget:
                return
            done = await self.store.txn(
                Txn(
                    [Compare(claim, 0), Compare(account, paid.mod_revision if paid else 0)],
                    [Put(claim, swarm.encode()), Put(account, b"%d" % (spent + cost))],
                    record=f"{task} {swarm}".encode(),
                )
            )
            if done.succeeded:
                self.won.append((task, swarm, cost))
                return

    async def check(self) -> None:
        """Nobody holds what another holds, and nobody spent what he had not."""
        tasks = [task for task, _, _ in self.won]
        assert len(tasks) == len(set(tasks))
        for task, swarm, _ in self.won:
            held = await self.store.get(f"{self.root}claims/{task}")
            assert held is not None
            assert held.value == swarm.encode()
        for swarm in {swarm for _, swarm, _ in self.won}:
            account = await self.store.get(f"{self.root}accounts/{swarm}")
            assert account is not None
            spent = sum(cost for _, whose, cost in self.won if whose == swarm)
            assert int(account.value) == spent <= self.budget


# Few tasks and few swarms, so that nearly every one of those that arrive together touches what another does.
admissions = st.lists(
    st.tuples(st.sampled_from(["T-1", "T-2", "T-3"]), st.sampled_from(["s", "t"]), st.integers(1, 4)),
    min_size=2,
    max_size=24,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(wanted=admissions)
def test_conflicting_admissions_in_one_moment(etcd_endpoint: str, wanted: list[tuple[str, str, int]]) -> None:
    """Of those that arrive together, one wins each task and no budget is overdrawn, on one host and on two."""

    async def run() -> None:
        root = f"{next(_example)}/"
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            stores = [
                etcd_store(Path(directory), etcd_endpoint, prefix=f"/groups-{root}") for directory in (first, second)
            ]
            async with running(stores[0]), running(stores[1]):
                budgets = [Budgets(store, "", 6) for store in stores]
                async with trio.open_nursery() as nursery:
                    for number, (task, swarm, cost) in enumerate(wanted):
                        nursery.start_soon(budgets[number % 2].admit, task, swarm, cost)
                for store in stores:
                    await store.sync()
                everybody = Budgets(stores[0], "", 6)
                everybody.won = budgets[0].won + budgets[1].won
                await everybody.check()
                with trio.fail_after(60):
                    while len(entries := await stores[1].read_log()) < len(everybody.won):
                        await trio.sleep(0.01)
                assert len(entries) == len(everybody.won)

    trio.run(run)


@pytest.fixture
def store(etcd_endpoint: str, tmp_path: Path) -> EtcdStore:
    """A store on a real etcd, not running yet."""
    return etcd_store(tmp_path, etcd_endpoint)


async def test_those_that_arrive_together_go_together(store: EtcdStore) -> None:
    """Fifty independent claims are far fewer requests, and each has its own answer."""
    async with running(store):
        results = []

        async def claim(number: int) -> None:
            txn = Txn([Compare(f"claims/{number}", 0)], [Put(f"claims/{number}", b"")], record=b"claim")
            results.append(await store.txn(txn))

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(claim, number)
        assert sorted(result.succeeded for result in results) == [False] * 50 + [True] * 50
        assert store.statistics().requests < 20
        assert len(await store.read_log()) == 50


async def test_a_key_that_everybody_writes_is_a_queue(store: EtcdStore) -> None:
    """Sixty-four operations that count on one key at once each cost a request and not a race: none loses until it gives up."""
    async with running(store):
        operations = Operations(store, LocalBus(), now_ms=wall_ms)

        def count(tx: Tx) -> dict[str, Any]:
            counted = tx.get("counter")
            number = 1 if counted is None else unpack(counted) + 1
            tx.put("counter", number)
            return {"number": number}

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(operations.run, ITSELF, "test.count", "counter", count)
        found = await store.get("counter")
        assert found is not None
        assert unpack(found.value) == 64
        # Those that arrive first read it before anybody writes it.
        assert store.statistics().requests <= 2 * 64


async def test_one_of_two_that_rule_each_other_out(store: EtcdStore) -> None:
    """A claim that needs a queue to be open and a pause that needs it to be empty write different keys, and one of the two loses."""
    async with running(store):
        done: dict[str, bool] = {}

        async def do(name: str, mine: str, other: str) -> None:
            done[name + mine] = (await store.txn(Txn([Compare(other, 0)], [Put(mine, b"")]))).succeeded

        async with trio.open_nursery() as nursery:
            for number in range(30):
                claim, pause = f"claims/{number}", f"paused/{number}"
                nursery.start_soon(do, "claim ", claim, pause)
                nursery.start_soon(do, "pause ", pause, claim)
        for number in range(30):
            assert done[f"claim claims/{number}"] != done[f"pause paused/{number}"]


async def test_a_bad_one_does_not_fail_its_neighbours(store: EtcdStore) -> None:
    """One that names an ended lease and one that is too large for etcd fail alone, with their own reason."""
    async with running(store):
        lease = await store.grant(60_000)
        await store.revoke(lease)
        outcomes: dict[str, object] = {}

        async def do(name: str, txn: Txn) -> None:
            try:
                outcomes[name] = (await store.txn(txn)).succeeded
            except (LeaseNotFound, LimitExceeded) as error:
                outcomes[name] = type(error)

        large = [Put(f"large/{number}", bytes(700_000)) for number in range(4)]
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(do, f"good {number}", Txn(then=[Put(f"good/{number}", b"")]))
            nursery.start_soon(do, "ended", Txn(then=[Put("bad/ended", b"", lease), Put("bad/too", b"")]))
            nursery.start_soon(do, "large", Txn(then=large))
        assert outcomes.pop("ended") is LeaseNotFound
        assert outcomes.pop("large") is LimitExceeded
        assert set(outcomes.values()) == {True}
        assert len(outcomes) == 20
        assert await store.get("bad/too") is None
        assert store.statistics().split >= 1


async def test_letters_that_arrive_together_have_numbers_of_their_own(etcd_endpoint: str, tmp_path: Path) -> None:
    """In an ordered directory no two keys have one create revision, however many are written at once."""
    store = etcd_store(tmp_path, etcd_endpoint, ordered=("inbox/",))
    async with running(store):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(store.txn, Txn(then=[Put(f"inbox/s/{number}", b"")]))
                nursery.start_soon(store.txn, Txn(then=[Put(f"inbox/t/{number}", b"")]))
        for swarm in "st":
            numbers = [item.create_revision for item in (await store.range(f"inbox/{swarm}/")).items]
            assert len(set(numbers)) == 30


async def test_a_cancelled_wait_takes_its_transaction_back_or_leaves_it(store: EtcdStore) -> None:
    """One that is cancelled before it was sent is not done; nothing that comes later waits for it."""
    async with running(store):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.txn, Txn(then=[Put("a/1", b"")]))
            nursery.start_soon(store.txn, Txn(then=[Put("a/1", b"later")]))
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            assert (await store.txn(Txn(then=[Put("a/1", b"last")]))).succeeded
        found = await store.get("a/1")
        assert found is not None
        assert found.value == b"last"


class LateStore(EtcdStore):
    """A store whose watch tells nothing until it may."""

    may_tell: trio.Event

    async def _take(self, events: list[Any]) -> None:
        await self.may_tell.wait()
        await super()._take(events)


@asynccontextmanager
async def two_hosts(endpoint: str, tmp_path: Path) -> AsyncIterator[tuple[LateStore, EtcdStore]]:
    """A host whose watch is held up, and another one."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    prefix = f"/late-{next(_example)}/"
    there = etcd_store(tmp_path / "there", endpoint, prefix=prefix)
    here = etcd_store(tmp_path / "here", endpoint, prefix=prefix, kind=LateStore)
    assert isinstance(here, LateStore)
    here.may_tell = trio.Event()
    async with running(there), running(here):
        yield here, there


async def far_longer_than_an_answer_takes(store: EtcdStore) -> None:
    """Ask etcd as often as shows whether something that needs one answer has happened."""
    for _ in range(30):
        await store.sync()


async def test_a_consistent_read_waits_for_what_others_have_done(etcd_endpoint: str, tmp_path: Path) -> None:
    """A host that is behind says as of when it knows what it knows; asked for all there is, it waits until it has it."""
    async with two_hosts(etcd_endpoint, tmp_path) as (here, there):
        before = here.revision
        done = await there.txn(Txn(then=[Put("a/1", b"")]))
        assert (here.peek("a/1"), here.revision) == (None, before)
        is_synced = trio.Event()

        async def look() -> None:
            await here.sync()
            is_synced.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await far_longer_than_an_answer_takes(there)
            assert not is_synced.is_set()
            here.may_tell.set()
        assert here.revision >= done.revision
        assert here.peek("a/1") is not None


async def test_a_write_returns_when_this_host_has_seen_it(etcd_endpoint: str, tmp_path: Path) -> None:
    """Whoever was answered finds what he wrote, in what is known by heart and in every view that the watch feeds."""
    async with two_hosts(etcd_endpoint, tmp_path) as (here, there):
        written: list[int] = []

        async def write() -> None:
            written.append((await here.txn(Txn(then=[Put("a/1", b"")]))).revision)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await far_longer_than_an_answer_takes(there)
            assert not written
            here.may_tell.set()
        assert here.peek("a/1") is not None
        assert here.told_revision == written[0]

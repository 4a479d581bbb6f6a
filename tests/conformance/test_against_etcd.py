"""The same random operations on the embedded store and on a real etcd give the same answers."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifbusd.store.base import Compare, Delete, Get, KeyValue, LeaseNotFound, Op, Put, Store, Txn
from ifbusd.store.checks import check_txn
from tests.conformance.backends import embedded
from tests.conformance.etcd_oracle import EtcdOracle

EXAMPLES = 80
LONG_MS = 3_600_000
_example = itertools.count()

# Few keys and few revisions, so that operations meet; leases are numbers of grants (two are there from the start), and
# revisions count from the start.
keys = st.sampled_from(["a", "a/1", "a/10", "é", "😀"])
leases = st.sampled_from([None, None, 0, 0, 1, 2])
puts = st.tuples(st.just("put"), keys, st.binary(max_size=2), leases)
op = st.one_of(puts, puts, st.tuples(st.just("get"), keys), st.tuples(st.just("delete"), keys))
# Mostly each key once, because a transaction that writes one twice does nothing.
ops = st.lists(op, max_size=4, unique_by=lambda described: described[1]) | st.lists(op, max_size=4)
compares = st.lists(st.tuples(keys, st.sampled_from(["current", "current", "current", 0, 1, 2, 3, 5, 8])), max_size=2)
txns = st.tuples(st.just("txn"), compares, ops, ops)
steps = st.one_of(
    txns,
    txns,
    txns,
    st.tuples(st.just("range"), st.sampled_from(["", "a", "a/", "a/1", "é"]), st.just("") | keys, st.integers(1, 4)),
    st.tuples(st.just("grant")),
    st.tuples(st.just("revoke"), st.integers(0, 2)),
    st.tuples(st.just("keep_alive"), st.integers(0, 3)),
)


class Side:
    """One of the two stores: what differs by nature (where revisions start, how leases are called) is taken out here."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.leases: list[int] = []

    def lease(self, number: int | None) -> int:
        """The id of a grant; one that never was if there were not so many."""
        if number is None:
            return 0
        return self.leases[number] if number < len(self.leases) else 4_000_000_000_000 + number

    def plain(self, kv: KeyValue | None) -> Any:
        """A key in terms that both sides share."""
        if kv is None:
            return None
        lease = self.leases.index(kv.lease) if kv.lease else None
        return kv.key, kv.value, kv.create_revision - self.start, kv.mod_revision - self.start, lease

    def txn(self, compares: Any, then: Any, otherwise: Any, current: dict[str, int]) -> Txn:
        """A described transaction with this side's revisions and leases."""

        def as_op(described: Any) -> Op:
            match described:
                case ("put", key, value, lease):
                    return Put(key, value, self.lease(lease))
                case ("delete", key):
                    return Delete(key)
                case _:
                    return Get(described[1])

        wanted = []
        for key, revision in compares:
            relative = current.get(key, 0) if revision == "current" else revision
            wanted.append(Compare(key, self.start + relative if relative else 0))
        return Txn(wanted, [as_op(each) for each in then], [as_op(each) for each in otherwise])


async def on_store(side: Side, store: Store, step: Any, current: dict[str, int]) -> Any:
    """Do a step on the store under test."""
    match step:
        case ("txn", *described):
            done = await store.txn(side.txn(*described, current))
            return done.succeeded, done.revision - side.start, [side.plain(kv) for kv in done.values]
        case ("range", prefix, after, limit):
            page = await store.range(prefix, after=after, limit=limit)
            return [side.plain(kv) for kv in page.items], page.has_more
        case ("grant",):
            side.leases.append(await store.grant(LONG_MS))
        case ("revoke", number):
            await store.revoke(side.lease(number))
        case ("keep_alive", number):
            try:
                await store.keep_alive(side.lease(number))
            except LeaseNotFound:
                return False
            return True
    return store.revision - side.start


def on_etcd(side: Side, etcd: EtcdOracle, step: Any, current: dict[str, int]) -> Any:
    """Do the same step on etcd."""
    match step:
        case ("txn", *described):
            done = etcd.txn(side.txn(*described, current))
            return done.succeeded, done.revision - side.start, [side.plain(kv) for kv in done.values]
        case ("range", prefix, after, limit):
            items, has_more = etcd.range(prefix, after, limit)
            return [side.plain(kv) for kv in items], has_more
        case ("grant",):
            side.leases.append(etcd.grant())
        case ("revoke", number):
            etcd.revoke(side.lease(number))
        case ("keep_alive", number):
            return etcd.is_alive(side.lease(number))
    return etcd.revision() - side.start


def is_comparable(step: Any) -> bool:
    """Whether the step is one that both must answer alike: etcd lets one transaction delete a key twice, we do not."""
    if step[0] != "txn":
        return True
    return all(
        len(deleted) == len(set(deleted))
        for branch in step[2:]
        for deleted in [[described[1] for described in branch if described[0] == "delete"]]
    )


async def compare(etcd: EtcdOracle, sequence: list[Any]) -> None:
    """Run a sequence on both, comparing each answer and in the end everything that is there."""
    with tempfile.TemporaryDirectory() as directory:
        async with embedded(Path(directory)) as backend:
            store = backend.store
            ours, theirs = Side(store.revision), Side(etcd.revision())
            for step in [("grant",), ("grant",), *sequence, ("range", "", "", 1000)]:
                current = {kv.key: kv.mod_revision - ours.start for kv in (await store.range("")).items}
                expected = got = None
                try:
                    expected = on_etcd(theirs, etcd, step, current)
                except (LeaseNotFound, ValueError) as error:
                    expected = type(error)
                try:
                    got = await on_store(ours, store, step, current)
                except (LeaseNotFound, ValueError) as error:
                    got = type(error)
                assert got == expected, step


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sequence=st.lists(steps.filter(is_comparable), min_size=15, max_size=40))
def test_etcd_answers_the_same(etcd_endpoint: str, sequence: list[Any]) -> None:
    """Transactions, ranges and leases, revisions counted from the start: no answer differs from a real etcd's."""
    with grpc.insecure_channel(etcd_endpoint) as channel:
        trio.run(compare, EtcdOracle(channel, f"oracle/{next(_example)}/"), sequence)


def test_the_store_is_stricter_in_one_way() -> None:
    """A key deleted twice in one branch is refused here, though etcd takes it: that is never meant."""
    with pytest.raises(ValueError, match="twice"):
        check_txn(Txn(then=[Delete("a"), Delete("a")]))

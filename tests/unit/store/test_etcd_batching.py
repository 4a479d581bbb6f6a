"""Which transactions share one request to etcd: none that would be decided wrongly, and all that it can hold."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbusd.store.base import Compare, Delete, Get, Op, Put, Txn
from ifbusd.store.etcd.batching import MAX_OPS, Footprint, choose

keys = st.sampled_from(["a", "b", "c", "d", "inbox/s/1", "inbox/s/2", "inbox/t/1"])
ops = st.one_of(st.builds(Put, keys, st.just(b"v")), st.builds(Delete, keys), st.builds(Get, keys))
branches = st.lists(ops, max_size=4, unique_by=lambda op: op.key)
txns = st.builds(
    Txn,
    st.lists(st.builds(Compare, keys, st.integers(0, 3)), max_size=3),
    branches,
    branches,
    st.sampled_from([None, b"record"]),
    told=st.just(()),
)


@attrs.frozen
class Waiting:
    """What the chooser sees of a transaction."""

    footprint: Footprint


def chosen(*waiting: Txn, max_txns: int = 100, max_bytes: int = 1 << 20) -> list[int]:
    """The places that go out."""
    return choose([Waiting(Footprint(txn, ("inbox/",))) for txn in waiting], max_txns=max_txns, max_bytes=max_bytes)


def touched(txn: Txn) -> tuple[set[str], set[str]]:
    """Keys that are read, and written, in either branch."""
    all_ops: list[Op] = [*txn.then, *txn.otherwise]
    written = {op.key for op in all_ops if not isinstance(op, Get)}
    return {key for key, _ in txn.compares} | {op.key for op in all_ops if isinstance(op, Get)}, written


@given(st.lists(txns, min_size=1, max_size=12))
def test_nobody_in_a_group_reads_or_writes_what_another_writes(waiting: list[Txn]) -> None:
    """The first always goes; no two that go touch the same key unless both read; nobody overtakes one that he touches."""
    places = chosen(*waiting)
    assert places[0] == 0
    assert places == sorted(set(places))
    for place, one in enumerate(waiting):
        for other_place in places:
            if other_place <= place or (place in places and other_place == place):
                continue
            (reads, writes), (other_reads, other_writes) = touched(one), touched(waiting[other_place])
            assert not writes & (other_reads | other_writes)
            assert not reads & other_writes
            letters = {key.rpartition("/")[0] for key in writes if key.startswith("inbox/")}
            assert not letters & {key.rpartition("/")[0] for key in other_writes if key.startswith("inbox/")}


def test_independent_claims_go_together() -> None:
    """Claims of different tasks, all of which read one policy, are one group."""
    claims = [Txn([Compare("policy", 7), Compare(f"claims/{n}", 0)], [Put(f"claims/{n}", b"")]) for n in range(50)]
    assert chosen(*claims) == [*range(50)]


@pytest.mark.parametrize(("length", "fits"), [(5, 122), (28, 99), (128, 0)])
def test_a_group_keeps_to_the_limit_of_operations(length: int, fits: int) -> None:
    """Outer operations and the longest inner list are at most 128 together, with the group's own; one that is too long for company goes alone."""
    longest = Txn(then=[Put(f"x/{number}", b"") for number in range(length)])
    places = chosen(longest, *(Txn(then=[Put(f"y/{number}", b"")]) for number in range(200)), max_txns=126)
    assert len(places) == max(1, fits)
    assert len(places) == 1 or len(places) + length <= MAX_OPS


def test_a_group_keeps_to_its_size() -> None:
    """Values count; one that is larger than a group goes alone."""
    large = [Txn(then=[Put(f"x/{number}", bytes(400_000))]) for number in range(4)]
    assert chosen(*large) == [0, 1]
    assert chosen(Txn(then=[Put("huge", bytes(1 << 20))]), *large) == [0]


def test_letters_to_one_inbox_have_a_revision_each() -> None:
    """Letters are numbered by revision, so two for one inbox do not share it; two for different ones may."""
    letters = [Txn(then=[Put(key, b"")]) for key in ("inbox/s/1", "inbox/s/2", "inbox/t/1")]
    assert chosen(*letters) == [0, 2]

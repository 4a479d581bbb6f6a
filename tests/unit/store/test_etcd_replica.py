"""What a daemon knows by heart: never older than it says, never more than it may be, and absent only if it is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbusd.store.base import KeyValue, NotAtHand
from ifbusd.store.etcd.replica import Replica

LARGE = 1 << 20


def item(key: str, value: bytes = b"v", revision: int = 1) -> KeyValue:
    """A key as stored."""
    return KeyValue(key, value, revision, revision, 0)


def loaded(*items: KeyValue, max_bytes: int = LARGE, max_value_bytes: int = LARGE) -> Replica:
    """A replica that has read everything at revision 10."""
    replica = Replica(max_bytes=max_bytes, max_value_bytes=max_value_bytes)
    replica.start(10)
    for each in items:
        replica.load(each)
    replica.loaded()
    return replica


def test_before_everything_is_read_nothing_is_known() -> None:
    """A key that was not read yet may exist."""
    with pytest.raises(NotAtHand):
        Replica(max_bytes=LARGE, max_value_bytes=LARGE).find("a/1")


def test_what_is_not_there_does_not_exist() -> None:
    """Of a kind that was read whole, and of one that nobody has written."""
    replica = loaded(item("a/1"))
    assert replica.find("a/1") == item("a/1")
    assert replica.find("a/2") is None
    assert replica.find("b/1") is None


def test_what_was_forgotten_may_exist() -> None:
    """Beyond its bound it forgets the oldest of the largest kind, and says so for all of that kind that it does not have."""
    replica = loaded(item("b/1"), max_bytes=5_000)
    for number in range(5):
        replica.told(f"a/{number}", item(f"a/{number}", bytes(1_000), 11), 11)
    replica.advance(11)
    assert replica.size_bytes <= 5_000
    assert replica.forgotten
    with pytest.raises(NotAtHand):
        replica.find("a/0")
    with pytest.raises(NotAtHand):
        replica.find("a/none")
    assert replica.find("a/4") is not None
    assert replica.find("b/none") is None
    replica.note("a/0", None, 12)
    assert replica.find("a/0") is None


def test_large_values_stay_elsewhere() -> None:
    """The key is known to exist, its value is asked for."""
    replica = loaded(item("a/1", bytes(100)), max_value_bytes=10)
    with pytest.raises(NotAtHand):
        replica.find("a/1")
    assert replica.find("a/2") is None
    assert replica.page("a/", "", 10) is None


def test_what_was_read_ahead_is_not_taken_back() -> None:
    """An older event of a key that was read since changes nothing; a newer one does."""
    replica = loaded(item("a/1"))
    replica.note("a/1", item("a/1", b"new", 15), 20)
    assert replica.is_ahead(["a/1"])
    replica.told("a/1", item("a/1", b"old", 12), 12)
    replica.advance(12)
    assert replica.find("a/1") == item("a/1", b"new", 15)
    replica.told("a/1", None, 21)
    replica.advance(21)
    assert replica.find("a/1") is None
    assert not replica.is_ahead(["a/1"])


def test_a_read_that_is_behind_changes_nothing() -> None:
    """Its answer was on the way while the watch told something newer."""
    replica = loaded(item("a/1"))
    replica.told("a/1", item("a/1", b"new", 15), 15)
    replica.advance(15)
    replica.note("a/1", item("a/1"), 12)
    assert replica.find("a/1") == item("a/1", b"new", 15)


def test_doubt_ends_with_the_watch() -> None:
    """What may have been written is asked for until the watch has told it."""
    replica = loaded(item("a/1"))
    replica.forget(["a/1"], 12)
    replica.told("a/1", item("a/1", b"before", 11), 11)
    with pytest.raises(NotAtHand):
        replica.find("a/1")
    replica.told("a/1", item("a/1", b"written", 12), 12)
    replica.advance(12)
    assert replica.find("a/1") == item("a/1", b"written", 12)


steps = st.tuples(
    st.sampled_from(["told", "read", "doubt"]),
    st.sampled_from(["a/1", "a/2", "b/1", "b/2"]),
    st.none() | st.binary(max_size=8),
)


@given(st.lists(steps, max_size=40), st.integers(0, 2_000))
def test_it_never_contradicts_the_store(sequence: list[tuple[str, str, bytes | None]], max_bytes: int) -> None:
    """Whatever is told, read and forgotten, with however little room: what it says is what the store has."""
    replica = loaded(max_bytes=max_bytes)
    truth: dict[str, KeyValue | None] = {}
    revision = 10
    for kind, key, value in sequence:
        if kind == "told":
            revision += 1
            truth[key] = None if value is None else item(key, value, revision)
            replica.told(key, truth[key], revision)
            replica.advance(revision)
        elif kind == "read":
            replica.note(key, truth.get(key), revision)
        else:
            replica.forget([key])
        assert replica.size_bytes <= max_bytes or kind == "doubt"
        for each in ("a/1", "a/2", "b/1", "b/2"):
            with contextlib.suppress(NotAtHand):
                assert replica.find(each) == truth.get(each)
        for prefix in ("a/", "b/"):
            page = replica.page(prefix, "", 10)
            if page is not None:
                assert page[0] == [
                    found for name in sorted(truth) if name.startswith(prefix) and (found := truth[name])
                ]

"""What a store accepts, and the end of a key range."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbusd.store.base import Compare, Delete, Get, Op, Put, Txn
from ifbusd.store.checks import MAX_KEY_CHARS, MAX_TXN_OPS, MAX_VALUE_BYTES, check_txn, prefix_end

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(prefix=text, key=text)
def test_prefix_end_parts_the_keys(prefix: str, key: str) -> None:
    """A key lies in [prefix, end of prefix) exactly if it starts with the prefix, in the order of its UTF-8."""
    end = prefix_end(prefix)
    at, low = key.encode(), prefix.encode()
    is_inside = low <= at and (end is None or at < end.encode())
    assert is_inside == key.startswith(prefix)


@given(prefix=text, tail=text)
def test_prefix_end_is_after_every_extension(prefix: str, tail: str) -> None:
    """Whatever follows the prefix stays before its end."""
    end = prefix_end(prefix)
    assert end is None or (prefix + tail).encode() < end.encode()


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("a/", "a0"), ("", None), ("\U0010ffff", None), ("a\U0010ffff", "b"), ("\ud7ff", "\ue000"), ("é", "ê")],
)
def test_prefix_end_at_the_edges(prefix: str, end: str | None) -> None:
    """The last code point, and the gap that has no UTF-8, are stepped over."""
    assert prefix_end(prefix) == end


@pytest.mark.parametrize(
    "ops",
    [
        [Put("a", b"1"), Put("a", b"2")],
        [Put("a", b"1"), Delete("a")],
        [Delete("a"), Delete("a")],
        [Put("", b"")],
        [Put("a" * (MAX_KEY_CHARS + 1), b"")],
        [Put("\ud800", b"")],
        [Put("a", bytes(MAX_VALUE_BYTES + 1))],
        [Get(str(n)) for n in range(MAX_TXN_OPS + 1)],
    ],
)
def test_impossible_operations_are_refused_in_either_branch(ops: list[Op]) -> None:
    """Keys written twice and sizes out of bounds are refused before anything is done."""
    with pytest.raises(ValueError, match=r"cannot|can't"):
        check_txn(Txn(then=ops))
    with pytest.raises(ValueError, match=r"cannot|can't"):
        check_txn(Txn(otherwise=ops))


@pytest.mark.parametrize(
    "txn",
    [
        Txn(then=[Put("a", "text")]),  # type: ignore[arg-type]
        Txn(then=[Put(b"a", b"")]),  # type: ignore[arg-type]
        Txn(then=[("a", b"")]),  # type: ignore[list-item]
        Txn(then=[Compare("a", 0)]),  # type: ignore[list-item]
        Txn(record="text"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_refused(txn: Txn) -> None:
    """A transaction of the wrong types is a bug of the caller and is told as one."""
    with pytest.raises((TypeError, AttributeError)):
        check_txn(txn)


def test_the_largest_transaction_is_accepted() -> None:
    """Every limit is one that may be reached; a key may be read and written, and written in both branches."""
    check_txn(
        Txn(
            compares=[Compare(str(n), 0) for n in range(MAX_TXN_OPS)],
            then=[Get("k"), Put("k", bytes(MAX_VALUE_BYTES)), Get("k"), *(Get(str(n)) for n in range(MAX_TXN_OPS - 3))],
            otherwise=[Put("k" * MAX_KEY_CHARS, b""), Delete("k")],
            record=bytes(MAX_VALUE_BYTES),
        )
    )

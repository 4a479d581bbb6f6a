"""What is believed of what a worker says."""

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbusd.chassis.messages import BrokenWorker, Outcome, clip, pack, unpack, unpack_outcome


@given(st.binary(max_size=4096))
def test_any_bytes_are_an_array_or_a_broken_worker(data: bytes) -> None:
    """No bytes raise anything else."""
    with contextlib.suppress(BrokenWorker):
        assert isinstance(unpack(data), list)


@given(
    st.lists(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9) | st.binary(max_size=9), max_size=7)
)
def test_any_array_is_an_outcome_or_a_broken_worker(message: list[Any]) -> None:
    """Only the exact shape is believed."""
    try:
        outcome = unpack_outcome(pack(message), 1)
    except BrokenWorker:
        return
    assert message == list(outcome)


def test_outcome_goes_there_and_back() -> None:
    """The answer to the question asked is taken, that to another is not."""
    outcome = Outcome(3, "ok", b"1", "", 65536)
    assert unpack_outcome(pack(list(outcome)), 3) == outcome
    with pytest.raises(BrokenWorker):
        unpack_outcome(pack(list(outcome)), 4)


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 1000,
        b"\xc7\xff\x01",
        msgpack.packb([0] * 65),
        b"\xc1",
    ],
)
def test_hostile_headers_cost_nothing(data: bytes) -> None:
    """Declared sizes, nesting and extensions beyond the small bounds are refused at the header."""
    with pytest.raises(BrokenWorker):
        unpack(data)


@given(st.text(max_size=3000))
def test_clipped_text_is_short_and_printable(text: str) -> None:
    """What a guest wrote can stand in a log line."""
    clipped = clip(text)
    assert len(clipped) <= 1024
    assert all(char.isprintable() or char == "\n" for char in clipped)

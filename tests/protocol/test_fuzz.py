"""Any bytes give events or `ProtocolError`, whole or one at a time, and the same either way."""

from __future__ import annotations

from typing import Any

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import ProtocolError
from ifbus.nesting import NestingScan, TooDeep
from ifbus.protocol import END_OF_STREAM, NEED_DATA, Connection, Event, Limits

LIMITS = Limits(message_bytes=4096, nesting=8, array_items=64, map_items=32, string_bytes=1024)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
)
messages = st.one_of(
    values,
    st.tuples(st.just(0), st.integers(-1, 2**33), st.text(max_size=20), st.lists(values, max_size=4)),
    st.tuples(st.just(0), st.integers(0, 9), st.text(max_size=20), st.just([{"$": {"timeout_ms": 1}, "a": 1}])),
    st.tuples(st.just(1), st.integers(0, 9), values, values),
    st.tuples(st.just(2), st.text(max_size=20), st.lists(values, max_size=4)),
)
# Headers of every kind with any length, so that random bytes get deep into the decoder.
headers = st.sampled_from([bytes([first]) for first in range(0x80, 0xE0)])
streams = st.lists(
    messages.map(msgpack.packb)
    | headers
    | st.binary(max_size=12)
    | st.sampled_from([b"\xdc\x00\x10" * 70, b"\x91" * 80]),
    max_size=12,
).map(b"".join)


def events_of(data: bytes, piece: int) -> tuple[list[Event], str]:
    """All events of `data` fed in pieces, and how it ended: "" or the error's type."""
    connection = Connection(LIMITS)
    events: list[Event] = []
    try:
        for start in range(0, len(data), piece):
            connection.receive_data(data[start : start + piece])
            while (event := connection.next_event()) is not NEED_DATA:
                events.append(event)
        connection.receive_data(b"")
        assert connection.next_event() is END_OF_STREAM
    except ProtocolError:
        return events, "ProtocolError"
    return events, ""


def plain(event: Any) -> str:
    """An event as text that is equal for equal events, NaN included."""
    return repr(event)


@given(streams)
def test_any_bytes_give_events_or_a_protocol_error(data: bytes) -> None:
    """Whole or one byte at a time, nothing but events and `ProtocolError` comes out, and good messages first."""
    whole, whole_end = events_of(data, max(len(data), 1))
    single, single_end = events_of(data, 1)
    # In pieces, nesting may be found too deep before the message is whole, which then is told more harshly.
    assert list(map(plain, whole[: len(single)])) == list(map(plain, single))
    assert (len(whole), whole_end) == (len(single), single_end) or single_end == "ProtocolError"


@given(st.binary(max_size=400), st.integers(1, 50))
def test_random_bytes_give_events_or_a_protocol_error(data: bytes, piece: int) -> None:
    """So do bytes that nobody meant to be a message."""
    events_of(data, piece)


def depth(value: Any) -> int:
    """How deep containers are nested in a value."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(values, st.binary(max_size=5), st.integers(1, 20), st.integers(1, 6))
def test_the_scan_agrees_with_the_decoder(value: Any, rest: bytes, piece: int, limit: int) -> None:
    """It finds the end of a message where the decoder does, in pieces too, and refuses exactly what is nested too deep."""
    data = msgpack.packb(value)
    scan, taken = NestingScan(limit), 0
    try:
        for start in range(0, len(data), piece):
            end = scan.feed(data[start : start + piece] + (rest if start + piece >= len(data) else b""))
            if end is not None:
                taken = start + end
                break
    except TooDeep:
        assert depth(value) > limit
    else:
        assert depth(value) <= limit
        assert taken == len(data)

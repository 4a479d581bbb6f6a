"""The protocol core: a table of messages run both ways, and what happens to bad ones."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from ifbus.errors import BY_CODE, AlreadyClaimed, IfbusError, LimitExceeded, ProtocolError, from_wire
from ifbus.protocol import (
    END_OF_STREAM,
    NEED_DATA,
    Connection,
    Event,
    Limits,
    Malformed,
    Notification,
    Request,
    Response,
)


def drain(connection: Connection, data: bytes = b"") -> list[Event]:
    """Feed `data` and take all events out, without the final NEED_DATA."""
    if data:
        connection.receive_data(data)
    events: list[Event] = []
    while (event := connection.next_event()) is not NEED_DATA:
        events.append(event)
        if event is END_OF_STREAM:
            break
    return events


META = {"timeout_ms": 5, "idempotency_key": "k"}

# What one side sends, its bytes as the published specification has them, and what the other side gets.
TABLE: list[tuple[str, Any, Any, Event]] = [
    ("request", lambda c: c.request("a.b", [1, "x"])[1], [0, 0, "a.b", [1, "x"]], Request(0, "a.b", [1, "x"], {})),
    (
        "keywords",
        lambda c: c.request("a.b", [{"k": 1}])[1],
        [0, 0, "a.b", [{"k": 1}]],
        Request(0, "a.b", [{"k": 1}], {}),
    ),
    ("no params", lambda c: c.request("a.b", [])[1], [0, 0, "a.b", []], Request(0, "a.b", [], {})),
    (
        "positional with meta",
        lambda c: c.request("a.b", [1], META)[1],
        [0, 0, "a.b", [1, {"$": META}]],
        Request(0, "a.b", [1], META),
    ),
    (
        "keywords with meta",
        lambda c: c.request("a.b", [{"k": 1}], META)[1],
        [0, 0, "a.b", [{"k": 1, "$": META}]],
        Request(0, "a.b", [{"k": 1}], META),
    ),
    (
        "meta alone",
        lambda c: c.request("a.b", [], META)[1],
        [0, 0, "a.b", [{"$": META}]],
        Request(0, "a.b", [], META),
    ),
    ("answer", lambda c: c.respond(7, {"a": [1.5]}), [1, 7, None, {"a": [1.5]}], Response(7, None, {"a": [1.5]})),
    (
        "refusal",
        lambda c: c.respond_error(7, AlreadyClaimed("no", data={"owner": "docs"})),
        [1, 7, {"code": "already_claimed", "message": "no", "data": {"owner": "docs"}}, None],
        Response(7, {"code": "already_claimed", "message": "no", "data": {"owner": "docs"}}, None),
    ),
    (
        "notification",
        lambda c: c.notify("inbox", [{"seq": 1}]),
        [2, "inbox", [{"seq": 1}]],
        Notification("inbox", [{"seq": 1}]),
    ),
    ("cancel", lambda c: c.cancel(9), [2, "$/cancel", [9]], Notification("$/cancel", [9])),
    ("binary", lambda c: c.respond(1, b"\x00\xff"), [1, 1, None, b"\x00\xff"], Response(1, None, b"\x00\xff")),
]


@pytest.mark.parametrize(("send", "message", "event"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_messages_mean_the_same_both_ways(send: Any, message: Any, event: Event, piece: int) -> None:
    """Each message has the published bytes, and the other side gets what was sent, however the bytes are cut."""
    data = send(Connection())
    assert data == msgpack.packb(message)
    other, events = Connection(), []
    for start in range(0, len(data), piece):
        events += drain(other, data[start : start + piece])
    assert events == [event]
    assert not other.is_inside_message
    assert not other.has_buffered
    assert drain(other, b"") == []


def test_messages_come_back_to_back() -> None:
    """Messages need nothing between them, and bytes beyond the delivered ones are known to be there."""
    one = Connection()
    other = Connection()
    other.receive_data(one.request("a", [])[1] + one.request("b", [])[1] + b"\x94")
    first = other.next_event()
    assert isinstance(first, Request)
    assert other.has_buffered
    second = other.next_event()
    assert isinstance(second, Request)
    assert (first.msgid, second.msgid) == (0, 1)
    assert other.next_event() is NEED_DATA
    assert other.is_inside_message


def test_the_last_parameter_may_be_a_map_with_any_keys() -> None:
    """In a positional list only a map that holds nothing but ``$`` is meta data."""
    data = msgpack.packb([0, 1, "a", ["topic", {"$": 5, "text": "x"}]])
    assert drain(Connection(), data) == [Request(1, "a", ["topic", {"$": 5, "text": "x"}], {})]


@pytest.mark.parametrize(
    ("message", "msgid"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ([3, 1], None),
        ([True, 1, "a", []], None),
        ([0, 1, "a"], 1),
        ([0, -1, "a", []], None),
        ([0, 2**32, "a", []], None),
        ([0, True, "a", []], None),
        ([0, 1, 5, []], 1),
        ([0, 1, "a", {}], 1),
        ([0, 1, "a", [{"$": 5}]], 1),
        ([1, 1, None], None),
        ([2, "a"], None),
        ([2, 7, []], None),
        ("x" * 1000, None),
    ],
)
def test_a_bad_shape_is_told_and_the_stream_goes_on(message: Any, msgid: int | None) -> None:
    """Good MessagePack that is no message is malformed, under its id where it has one, and the next message is read."""
    connection = Connection()
    malformed, after = drain(connection, msgpack.packb(message) + msgpack.packb([0, 8, "a", []]))
    assert isinstance(malformed, Malformed)
    assert malformed.msgid == msgid
    assert malformed.error.code == "invalid_request"
    assert len(malformed.error.message) < 300
    assert after == Request(8, "a", [], {})


def nested(depth: int) -> Any:
    """`depth` lists inside one another."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_named_params_without_their_list_are_told_to_take_one() -> None:
    """The slip of a first client of one's own: a map where a list of one map belongs."""
    [refused] = drain(Connection(), msgpack.packb([0, 7, "a", {"task_id": "T-1"}]))
    assert isinstance(refused, Malformed)
    assert refused.msgid == 7
    assert refused.error.message.endswith("by name are one map in it, as [{...}], got a map of 1")


def test_params_may_be_nested_up_to_the_limit() -> None:
    """The deepest allowed params pass, one level more is malformed and the stream goes on."""
    limits = Limits(nesting=8)
    fine = msgpack.packb([0, 1, "a", nested(7)])
    deep = msgpack.packb([0, 2, "a", nested(8)])
    first, second = drain(Connection(limits), fine + deep)
    assert isinstance(first, Request)
    assert isinstance(second, Malformed)
    assert second.msgid == 2


@pytest.mark.parametrize("depth", [100, 1000, 10_000])
@pytest.mark.parametrize("piece", [1, 50, 1 << 14])
def test_deep_nesting_is_malformed_or_ends_the_stream(depth: int, piece: int) -> None:
    """Whatever the nesting, whole or in pieces: an error that says so, never another exception."""
    data = b"\x91" * depth + b"\xc0"
    connection = Connection()
    try:
        for start in range(0, len(data), piece):
            for event in drain(connection, data[start : start + piece]):
                assert isinstance(event, Malformed)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            connection.next_event()


@pytest.mark.parametrize("piece", [1, 150, 1 << 14])
def test_an_unfinished_message_that_is_too_deep_is_not_decoded(piece: int) -> None:
    """Long arrays in arrays, of which no element arrives, end the stream beyond twice the allowed nesting, not at msgpack's 1024."""
    data = b"\x94\x00\x01\xa1a" + b"\xdc\x03\xff" * 100
    connection = Connection()

    def receive() -> None:
        for start in range(0, len(data), piece):
            assert drain(connection, data[start : start + piece]) == []

    with pytest.raises(ProtocolError, match="nested more than 64 deep"):
        receive()


def test_a_message_longer_than_the_limit_ends_the_stream() -> None:
    """The byte at which a message exceeds the limit is the last that is taken; the longest allowed one passes."""
    limits = Limits(message_bytes=4096, string_bytes=4096)
    overhead = len(msgpack.packb([0, 1, "a", [b"x" * 1000]])) - 1000
    fine = msgpack.packb([0, 1, "a", [b"x" * (4096 - overhead)]])
    assert len(fine) == 4096
    assert len(drain(Connection(limits), fine)) == 1
    with pytest.raises(ProtocolError):
        drain(Connection(limits), msgpack.packb([0, 1, "a", [b"x" * (4097 - overhead)]]))
    with pytest.raises(LimitExceeded) as too_long:
        Connection(limits).respond(1, "x" * 5000)
    assert too_long.value.data["allowed"] == 4096


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc7\x05\x01abcde",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xa2\xff\xfe",
        b"\x81\x90\x01",
        b"\x81\x01\x01",
        b"\x94\x00\x01\xa1a\xdc\xff\xff",
    ],
)
def test_bad_bytes_end_the_stream_after_the_good_ones(data: bytes) -> None:
    """Bytes that are no MessagePack within the limits end the stream for good; what stood before them is delivered."""
    connection = Connection()
    connection.receive_data(msgpack.packb([0, 1, "a", []]) + data)
    assert connection.next_event() == Request(1, "a", [], {})
    for _ in range(3):
        with pytest.raises(ProtocolError):
            connection.next_event()
        connection.receive_data(b"\x01")


@pytest.mark.parametrize("header", [b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_string_of_4_gib_costs_no_more_than_a_message(header: bytes) -> None:
    """Its header alone asks for nothing yet; the stream ends when more came than a message may have."""
    connection = Connection()
    assert drain(connection, header) == []
    assert connection.is_inside_message
    for _ in range(60):
        assert drain(connection, bytes(1000)) == []
    with pytest.raises(ProtocolError):
        drain(connection, bytes(30_000))


def test_an_end_inside_a_message_is_an_error() -> None:
    """A stream may end between messages only."""
    connection = Connection()
    connection.receive_data(b"\x94\x00")
    assert connection.next_event() is NEED_DATA
    connection.receive_data(b"")
    with pytest.raises(ProtocolError):
        connection.next_event()
    ended = Connection()
    ended.receive_data(b"")
    assert ended.next_event() is END_OF_STREAM


def test_figures_that_do_not_fit_are_left_out_of_a_refusal() -> None:
    """Code and sentence always arrive, whatever else the error carries."""
    for data in ({"x": "y" * 100_000}, {"x": object()}, {"x": 2**70}):
        (event,) = drain(Connection(), Connection().respond_error(1, AlreadyClaimed("no \udcff", data=data)))
        assert isinstance(event, Response)
        assert event.error["code"] == "already_claimed"
        assert event.error["message"].startswith("no ")
        assert event.error["data"] == {}


def test_each_code_comes_back_as_its_class() -> None:
    """What the daemon raises is what the client raises, with its figures."""
    for code, cls in BY_CODE.items():
        error = from_wire(cls("m", data={"n": 1}).to_wire())
        assert type(error) is cls
        assert (error.code, error.message, error.data) == (code, "m", {"n": 1})
    newer = from_wire({"code": "from_the_future", "message": "m", "data": {}})
    assert type(newer) is IfbusError
    assert newer.data["code"] == "from_the_future"

"""Bytes that no honest client sends: 400 "files", the same ones each time, written by code rather than kept as files.

``python -m tests.proof.hostile DIRECTORY`` writes them out, for a fuzzer or another implementation.
"""

from __future__ import annotations

import gzip
import inspect
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from ifbusd.rpc.methods import ROWS

PING = msgpack.packb([0, 1, "daemon.ping", []])
_LIMIT = 64 << 10


class Hostile(NamedTuple):
    """One file: what it is and its bytes."""

    name: str
    data: bytes


def corpus() -> list[Hostile]:
    """All of them, each name once."""
    files = [Hostile(f"{family.__name__.strip('_')}: {name}", data) for family in _FAMILIES for name, data in family()]
    assert len({file.name for file in files}) == len(files)
    return files


def _request(method: str, *params: Any, msgid: Any = 1) -> bytes:
    data: bytes = msgpack.packb([0, msgid, method, list(params)])
    return data


def _raw_request(params: bytes, method: bytes = b"\xabdaemon.ping") -> bytes:
    """A request whose one parameter is these bytes."""
    return b"\x94\x00\x01" + method + b"\x91" + params


def _nesting() -> Iterator[tuple[str, bytes]]:
    for depth in (31, 33, 65, 100, 511, 1023, 1025, 5_000, 60_000):
        yield f"{depth} arrays", _raw_request(b"\x91" * depth + b"\xc0")
        yield f"{depth} maps", _raw_request(b"\x81\xa1a" * depth + b"\xc0")
        yield f"{depth} maps and arrays without an end", _raw_request(b"\x81\xa1a\x91" * depth)
        yield f"{depth} arrays instead of a message", b"\x91" * depth
    for depth in (20, 30, 60):
        for method, params in (
            ("coordinator.create_task", {"title": "x", "payload": {"a": _nested(depth)}}),
            ("coordinator.broadcast", {"topic": "x", "body": {"a": _nested(depth)}}),
            ("coordinator.detect_blocker", {"swarm_id": "x", "info": {"reason": _nested(depth)}}),
        ):
            yield f"{depth} deep in {method}", _request(method, params)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _declared_lengths() -> Iterator[tuple[str, bytes]]:
    heads: dict[str, tuple[bytes, str]] = {
        "array 16": (b"\xdc", ">H"),
        "array 32": (b"\xdd", ">I"),
        "map 16": (b"\xde", ">H"),
        "map 32": (b"\xdf", ">I"),
        "string 16": (b"\xda", ">H"),
        "string 32": (b"\xdb", ">I"),
        "binary 16": (b"\xc5", ">H"),
        "binary 32": (b"\xc6", ">I"),
        "extension 16": (b"\xc8", ">H"),
        "extension 32": (b"\xc9", ">I"),
    }
    for name, (head, form) in heads.items():
        for length in (257, 1_025, 65_535, 1_000_000, 0x7FFF_FFFF, 0xFFFF_FFFF):
            if length < 1 << 8 * struct.calcsize(form):
                yield f"{name} of {length}", _raw_request(head + struct.pack(form, length) + b"\x00" * 40)
    for length in (100, 1_000, 1_023, 4_095):
        yield (
            f"long arrays of {length} in one another",
            b"\x94\x00\x01\xa1a" + (b"\xdc" + struct.pack(">H", length)) * 500,
        )
        yield (
            f"long maps of {length} in one another",
            _raw_request((b"\xde" + struct.pack(">H", length) + b"\xa1a") * 300),
        )


def _floods() -> Iterator[tuple[str, bytes]]:
    for name, item in (
        ("empty maps", b"\x80"),
        ("empty arrays", b"\x90"),
        ("nils", b"\xc0"),
        ("empty strings", b"\xa0"),
        ("large integers", b"\xcf" + b"\xff" * 8),
    ):
        for size in (1_000, 16_000, 60_000, 70_000, 1_000_000):
            rows = [b"\xdc\x03\xe8" + item * 1_000] * max(1, size // (1_000 * len(item)))
            yield f"{size} bytes of {name}", _raw_request(b"\xdc" + struct.pack(">H", len(rows)) + b"".join(rows))
    for size in (_LIMIT - 100, _LIMIT, 10 * _LIMIT):
        yield f"a method of {size} bytes", _request("x" * size)
        yield f"a parameter of {size} bytes", _request("coordinator.create_task", {"title": "x" * size})
        yield f"binary of {size} bytes", _request("daemon.ping", b"x" * size)
    # Finding what an unknown name is nearest to is the dearest thing that a short message can ask for.
    yield "1,000 unknown methods", b"".join(_request(f"coordinator.clam_tusk{n}", msgid=n) for n in range(1_000))
    yield "300 unknown parameters", b"".join(_request("daemon.hello", {f"swarn{n}": 1}, msgid=n) for n in range(300))
    yield "1,000 requests with one id", PING * 1_000
    yield "5,000 cancels", msgpack.packb([2, "$/cancel", [1]]) * 5_000
    yield "5,000 responses", msgpack.packb([1, 1, None, None]) * 5_000
    yield "5,000 notifications", msgpack.packb([2, "x", [{}]]) * 5_000
    yield "16 messages that are none", b"\x01" * 16
    yield "17 messages that are none", b"\x01" * 17


def _bad_text() -> Iterator[tuple[str, bytes]]:
    bad = {
        "ff": b"\xff",
        "overlong": b"\xc0\x80",
        "surrogate": b"\xed\xa0\x80",
        "cut": b"\xe2\x82",
        "too high": b"\xf5\x80\x80\x80",
        "continuation": b"\x80",
    }
    for name, text in bad.items():
        string = bytes([0xA0 + len(text)]) + text
        yield f"{name} as method", _raw_request(b"\xc0", method=string)
        yield f"{name} as parameter", _raw_request(string)
        yield f"{name} as key", _raw_request(b"\x81" + string + b"\xc0")
    for name, value in (
        ("NUL", "a\0b"),
        ("a slash", "../../etc/passwd"),
        ("a line", "a\nb"),
        ("right to left", "a\u202eb"),
        ("an escape", "\x1b[31m"),
        ("a space", " "),
        ("nothing", ""),
        ("10,000 characters", "x" * 10_000),
        ("a format", "%s%n{0}"),
        ("combining", "a" + "\u0301" * 500),
    ):
        yield f"{name} as swarm", _request("coordinator.register_swarm", value)
        yield f"{name} as task", _request("coordinator.create_task", {"title": value, "task_id": value})
        yield f"{name} as method", _request(value)


def _extensions() -> Iterator[tuple[str, bytes]]:
    for name, data in (
        ("fixext 1", b"\xd4\x01x"),
        ("fixext 4", b"\xd6\x01xxxx"),
        ("fixext 16", b"\xd8\x01" + b"x" * 16),
        ("ext 8 of 0", b"\xc7\x00\x01"),
        ("ext 8", b"\xc7\x05\x01abcde"),
        ("timestamp 32", b"\xd6\xff\x00\x00\x00\x00"),
        ("timestamp 64", b"\xd7\xff" + b"\xff" * 8),
        ("timestamp 96", b"\xc7\x0c\xff" + b"\xff" * 12),
    ):
        yield f"{name} as parameter", _raw_request(data)
        yield f"{name} as message", data
        yield f"{name} as key", _raw_request(b"\x81" + data + b"\xc0")


def _keys() -> Iterator[tuple[str, bytes]]:
    for name, key in (
        ("an array", b"\x90"),
        ("a map", b"\x80"),
        ("nil", b"\xc0"),
        ("an integer", b"\x01"),
        ("NaN", b"\xcb\x7f\xf8" + b"\x00" * 6),
        ("true", b"\xc3"),
        ("binary", b"\xc4\x01a"),
    ):
        yield f"{name} as key of a map", _raw_request(b"\x81" + key + b"\x01")
        yield (
            f"{name} as key of a payload",
            _raw_request(b"\x82\xa5title\xa1x\xa7payload\x81" + key + b"\x01", method=b"\xb7coordinator.create_task"),
        )
    yield "one key 200 times", _raw_request(b"\xde\x00\xc8" + b"\xa5swarm\xa1x" * 200, method=b"\xacdaemon.hello")
    for name, meta in (
        ("no map", 1),
        ("a deep one", {"timeout_ms": _nested(20)}),
        ("a negative timeout", {"timeout_ms": -1}),
        ("a long timeout", {"timeout_ms": 2**63}),
        ("a long key", {"idempotency_key": "k" * 10_000}),
        ("a key that is none", {"idempotency_key": b"\xff"}),
        ("a long trace", {"traceparent": "00-" + "a" * 50_000}),
        ("200 unknown names", {f"n{n}": n for n in range(200)}),
    ):
        yield f"about the request, {name}", _request("coordinator.create_task", {"title": "x", "$": meta})


def _no_requests() -> Iterator[tuple[str, bytes]]:
    messages: dict[str, Any] = {
        "an empty array": [],
        "a map": {},
        "a kind of 3": [3, 1, "daemon.ping", []],
        "a kind of -1": [-1, 1, "daemon.ping", []],
        "a kind of true": [True, 1, "daemon.ping", []],
        "a kind of 0.0": [0.0, 1, "daemon.ping", []],
        "a kind that is a list": [[0], 1, "daemon.ping", []],
        "no params": [0, 1, "daemon.ping"],
        "five elements": [0, 1, "daemon.ping", [], 1],
        "1,000 elements": [0] * 1_000,
        "params that are a map": [0, 1, "daemon.ping", {}],
        "params that are nil": [0, 1, "daemon.ping", None],
        "a method that is binary": [0, 1, b"daemon.ping", []],
        "a method that is a list": [0, 1, ["daemon.ping"], []],
        "a method that is a number": [0, 1, 7, []],
        "a notification of 4": [2, "x", [], 1],
        "a response of 3": [1, 1, None],
        "a response to nothing": [1, 2**32, None, None],
    }
    for name, message in messages.items():
        yield name, msgpack.packb(message)
    for msgid in (-1, 2**32, 2**64 - 1, 1.0, True, None, "1", [1]):
        yield f"an id of {msgid!r}", _request("daemon.ping", msgid=msgid)
    yield "0xc1", b"\xc1" * 4
    yield "HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500
    yield "JSON", b'{"jsonrpc": "2.0", "method": "daemon.ping", "id": 1}\n' * 20
    yield "gzip", gzip.compress(bytes(10_000_000), mtime=0)
    for number in range(14):
        yield f"noise {number}", random.Random(number).randbytes(50 * 2**number // 16 + 1)


def _wrong_types() -> Iterator[tuple[str, bytes]]:
    """Each method with each of its parameters of a wrong type, and with a number at the edge of 64 bits or of money."""
    odd: tuple[Any, ...] = (
        None,
        True,
        -1,
        2**63,
        -(2**63),
        1.5,
        float("nan"),
        float("inf"),
        "",
        b"\x00",
        [[]],
        {"a": {}},
        "1e308",
        "-0.0",
    )
    for row in ROWS:
        names = [name for name in inspect.signature(row.does).parameters if name not in ("self", "caller")]
        requests = [
            _request(row.name, {name: value}, msgid=n * len(odd) + at)
            for n, name in enumerate(names)
            for at, value in enumerate(odd)
        ]
        yield row.name, b"".join(requests) + _request(row.name, *odd)


def _cut_short() -> Iterator[tuple[str, bytes]]:
    whole = _request("coordinator.claim_task", {"task_id": "T-1", "swarm_id": "docs", "$": {"timeout_ms": 500}})
    for end in range(1, len(whole)):
        yield f"after {end} bytes", whole[:end]


_FAMILIES: tuple[Callable[[], Iterator[tuple[str, bytes]]], ...] = (
    _nesting,
    _declared_lengths,
    _floods,
    _bad_text,
    _extensions,
    _keys,
    _no_requests,
    _wrong_types,
    _cut_short,
)

if __name__ == "__main__":
    for number, file in enumerate(corpus()):
        (Path(sys.argv[1]) / f"{number:03}.msgpack").write_bytes(file.data)

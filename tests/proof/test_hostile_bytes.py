"""Promise 8, the bytes: whatever a client sends ends in errors or a closed connection, and nobody else notices."""

from __future__ import annotations

import contextlib
import inspect
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from ifbus.errors import BY_CODE
from ifbusd.rpc.methods import ROWS
from tests.proof.hostile import PING, Hostile, corpus
from tests.proof.opened import Opened, opened
from tests.proof.plain import PATIENCE_S, Plain, packed
from tests.proof.records import Proof
from tests.proof.sizes import size
from tests.proof.watching import Pinger, peak_bytes, resident_bytes

pytestmark = pytest.mark.slow

CONFIG = """
[rpc]
unfinished_ms = 5000
write_ms = 5000
"""
# What one file may leave behind once all have been seen, and what all may take at a time: 64 KiB of empty maps, the worst that is
# decoded, are 5 MiB, and an allocator keeps some.
KEPT_BYTES: Final = 1 << 20
PEAK_BYTES: Final = 32 << 20
# More than ten times the median of a neighbour's pings under attack (2 ms on a busy machine, 0.15 ms at rest).
WAIT_MS: Final = 50
OTHER_UID: Final = 54_004 if os.getuid() == 0 else os.getuid()


@pytest.fixture(scope="module")
def victim() -> Iterator[Opened]:
    """One daemon for all attacks; it must survive them, and its log knows nothing of them but who was turned away."""
    with opened(CONFIG) as running:
        yield running


def whole(sock: socket.socket, data: bytes) -> None:
    """All of it as fast as it goes, reading nothing meanwhile: so no longer than the buffers of a socket hold both ways."""
    sock.sendall(data)


def one_byte_at_a_time(sock: socket.socket, data: bytes) -> None:
    """Each byte in a write of its own."""
    for at in range(len(data)):
        sock.sendall(data[at : at + 1])


def attack(path: Path, data: bytes, send: Callable[[socket.socket, bytes], None] = whole) -> list[list[Any]]:
    """Everything that the daemon says to these bytes until it closes; the end of our sending is told it."""
    said = bytearray()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
        # Read between writes, or the daemon would rightly wait for us.
        for at in range(0, len(data), 32 << 10):
            try:
                send(sock, data[at : at + (32 << 10)])
                said += _there_now(sock)
            except OSError:
                break
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # closed before it had read everything
            while more := sock.recv(1 << 20):
                said += more
    messages = msgpack.Unpacker(raw=False)
    messages.feed(said)
    return list(messages)


def _there_now(sock: socket.socket) -> bytes:
    return sock.recv(1 << 20) if select.select([sock], [], [], 0)[0] else b""


def broken_rules(said: list[list[Any]]) -> list[str]:
    """What an attacker may not get: anything but answers, errors with a registered code, and one reason for closing."""
    found = []
    closings = [message for message in said if message[0] == 2 and message[1] == "closing"]
    if len(closings) > 1:
        found.append(f"closed {len(closings)} times")
    errors = [message[2] for message in said if message[0] == 1] + [message[2][0] for message in closings]
    for error in filter(None, errors):
        if error["code"] not in BY_CODE or error["code"] == "internal":
            found.append(f"answered {error}")
    return found


def test_the_corpus_is_400_files() -> None:
    """The same bytes each time, and no two files alike."""
    files = corpus()
    assert files == corpus()
    assert len(files) >= 400
    assert len({file.data for file in files}) > 390


def test_every_hostile_file(victim: Opened, proof: Proof) -> None:
    """Each file, whole and, if short, byte by byte, gets errors or a close; memory stays, and a neighbour is answered meanwhile."""
    files = corpus()
    for _ in range(30):  # honest messages of full length, so that what they need is there
        attack(victim.socket, packed(1, "coordinator.create_task", [{"title": "x", "description": "x" * 60_000}]))
    started_with = max(peak_bytes(victim.pid), resident_bytes(victim.pid))
    problems: list[tuple[str, str]] = []
    with Pinger(victim.socket, OTHER_UID) as neighbour:
        rest = neighbour.rest()
        for file in files:  # the first time, tables and arenas grow
            problems += [(file.name, rule) for rule in broken_rules(attack(victim.socket, file.data))]
        for file in files:
            said, kept = _again(victim, file)
            problems += [(file.name, rule) for rule in broken_rules(said)]
            if kept > KEPT_BYTES:
                problems.append((file.name, f"keeps {kept} bytes each time"))
        waits = neighbour.since()
        rests = rest, neighbour.rest()
    peak = peak_bytes(victim.pid) - started_with
    if peak > PEAK_BYTES:
        problems.append(("the dearest", f"took {peak} bytes"))
    if waits.are_longer(WAIT_MS, *rests):
        problems.append(
            ("a neighbour", f"waited {waits.median_ms:.1f} ms instead of {rest.median_ms:.1f} for an answer")
        )
    print(*problems, sep="\n")
    figures = {"peak_bytes": peak, "ping_median_ms": waits.median_ms, "ping_worst_ms": waits.worst_ms}
    proof.cases(promise=8, name="hostile files", ran=2 * len(files), violations=len(problems), figures=figures)


def _again(victim: Opened, file: Hostile) -> tuple[list[list[Any]], int]:
    """What is said, and by how much memory grows each time: what an allocator keeps for later is kept once."""
    kept, said = 1 << 60, list[list[Any]]()
    for _ in range(10):
        before = resident_bytes(victim.pid)
        said = attack(victim.socket, file.data, one_byte_at_a_time if len(file.data) <= 200 else whole)
        kept = min(kept, resident_bytes(victim.pid) - before)
        if kept <= KEPT_BYTES:
            break
    return said, kept


# --- real messages, changed ----------------------------------------------------------------------------

_SAMPLES: Final[dict[str, Any]] = {
    "list": ["docs:writing"],
    "dict": {"reason": "x", "n": [1, 2.5, None, {"a": b"x"}]},
    "Any": {"a": [1, 2]},
    "MicroUsd": "0.10",
    "str": "docs",
    "int": 1,
    "bool": True,
    "float": 0.5,
    "bytes": b"x" * 20,
    "Literal": "swarm",
    "Severity": "low",
    "OnDependencyFailure": "cancel",
}


def real_messages() -> list[bytes]:
    """A request of each method with all of its parameters, by name and by position, with all that it may say of itself."""
    about = {"$": {"timeout_ms": 500, "idempotency_key": "k-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}}
    messages = []
    for row in ROWS:
        parameters = [
            name for name in inspect.signature(row.does).parameters if name not in ("self", "caller", "wait_ms")
        ]
        kinds = inspect.get_annotations(row.does)
        values = [next(sample for kind, sample in _SAMPLES.items() if kind in str(kinds[name])) for name in parameters]
        messages.append(packed(7, row.name, [dict(zip(parameters, values, strict=True)) | about]))
        messages.append(packed(7, row.name, [*values, about]))
    return messages


@st.composite
def changed(draw: st.DrawFn, messages: list[bytes]) -> bytes:
    """A real message with a few bytes flipped, cut out, put in, repeated, or another message in the middle."""
    data = bytearray(draw(st.sampled_from(messages)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.integers(0, 5))
        if how == 0:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == 1:
            del data[at : at + draw(st.integers(1, 20))]
        elif how == 2:
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif how == 3:
            data[at:at] = data[at : at + 10] * draw(st.integers(1, 50))
        elif how == 4:
            data[at:at] = draw(st.sampled_from(messages))
        else:
            del data[at:]
    return bytes(data)


def test_changed_messages(victim: Opened, proof: Proof, seed: int) -> None:
    """Whatever becomes of a real message, the daemon answers errors or closes, and answers the next client."""
    ran, broken = 0, list[tuple[str, str]]()

    @seeded(seed)
    @settings(
        max_examples=size(600, 50_000, 5_000_000), phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(changed(real_messages()))
    def attack_with(data: bytes) -> None:
        nonlocal ran
        ran += 1
        broken.extend((data.hex(), rule) for rule in broken_rules(attack(victim.socket, data + PING)))

    with Plain.at(victim.socket) as neighbour:
        attack_with()
        neighbour.call("daemon.ping")
    print(*broken[:20], sep="\n")
    proof.cases(promise=8, name="changed messages", ran=ran, violations=len(broken), seed=seed)

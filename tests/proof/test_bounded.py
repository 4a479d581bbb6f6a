"""Promise 8, the load: a client that takes what it can gets errors; others are answered, and afterwards all is given back."""

from __future__ import annotations

import array
import contextlib
import hashlib
import itertools
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import psutil
import pytest

from tests.proof.opened import Opened, opened
from tests.proof.plain import PATIENCE_S, Plain, packed
from tests.proof.records import Proof
from tests.proof.sizes import size
from tests.proof.watching import Pinger, open_files, peak_bytes, resident_bytes, wait_until_closed

pytestmark = pytest.mark.slow

CONFIG: Final = """
[rpc]
unfinished_ms = 500
write_ms = 5000
connections_per_uid = 64
connections = 200
"""
CONNECTIONS_PER_UID: Final = 64
OTHER_UID: Final = 54_005 if os.getuid() == 0 else os.getuid()
# What 64 connections may have at once: 64 KiB of a message, as much of answers, and what an allocator makes of it.
PEAK_BYTES: Final = 64 << 20
KEPT_BYTES: Final = 24 << 20
# More than ten times the median that another user's ping takes during any of these (0.5 to 4 ms on a busy machine).
WAIT_MS: Final = 100
PING: Final = packed(1, "daemon.ping", [])
GUESTS: Final = Path(__file__).parents[1] / "guests"

Attack = Callable[[Opened], int]


@pytest.fixture(scope="module")
def victim() -> Iterator[Opened]:
    """One daemon for all of them."""
    with opened(CONFIG) as running:
        yield running


@contextlib.contextmanager
def connected(victim: Opened, count: int) -> Iterator[list[Plain]]:
    """So many clients of one user."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Plain.at(victim.socket)) for _ in range(count)]


def never_reads(victim: Opened) -> int:
    """32 connections send pings and read no answer, until they are dropped."""
    flood = PING * 4_000
    with connected(victim, 32) as clients:
        for client in clients:
            client.sock.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    client.sock.send(flood)
        for client in clients:
            _wait_until_dropped(client.sock)
    return len(clients)


def writes_a_byte_at_a_time(victim: Opened) -> int:
    """32 connections trickle a message in; each is ended by the deadline of a message, however it trickles."""
    message = packed(1, "coordinator.create_task", ["x" * 1_000])
    with connected(victim, 32) as clients:
        alive, at = list(clients), 0
        while alive and at < len(message) - 1:
            for client in alive:
                with contextlib.suppress(OSError):
                    client.sock.send(message[at : at + 1])
            at += 1
            alive = [client for client in alive if not select.select([client.sock], [], [], 0)[0]]
            time.sleep(0.01)
        assert not alive, "a message was waited for as long as it trickled"
        for client in clients:
            with pytest.raises((EOFError, ConnectionError)):
                client.answer(1)
            assert "unfinished message" in str(client.heard)
    return len(clients)


def half_closes(victim: Opened) -> int:
    """32 connections send 200 requests each and close their side: all are answered, then the daemon closes."""
    for _ in range(32):
        with Plain.at(victim.socket) as client:
            client.sock.sendall(b"".join(packed(number, "daemon.ping", []) for number in range(200)))
            client.sock.shutdown(socket.SHUT_WR)
            assert all(client.answer(number).code == "ok" for number in range(200))
            assert client.sock.recv(1) == b""
    return 32


def connects_without_end(victim: Opened) -> int:
    """Far more connection attempts than one user may have: those beyond are told so, with figures, and it ends there."""
    refused, attempts = 0, size(3_000, 10_000, 100_000)
    with connected(victim, CONNECTIONS_PER_UID) as kept:
        for client in kept:
            client.call("daemon.ping")
        for _ in range(attempts):
            with Plain.at(victim.socket) as client:
                refused += _is_refused(client)
        for client in kept:
            client.call("daemon.ping")
    assert refused == attempts
    return attempts


def pipelines(victim: Opened) -> int:
    """Very many requests on one connection without waiting for an answer: each gets its own."""
    count = size(50_000, 1_000_000, 10_000_000)
    answers = msgpack.Unpacker(raw=False)
    with Plain.at(victim.socket) as client:
        sock, sent, seen, pending = client.sock, 0, 0, b""
        while seen < count:
            readable, writable, _ = select.select([sock], [sock] if sent < count or pending else [], [], PATIENCE_S)
            if writable:
                if not pending:
                    upto = min(count, sent + 2_000)
                    pending = b"".join(packed(number, "daemon.ping", []) for number in range(sent, upto))
                    sent = upto
                pending = pending[sock.send(pending[:4096]) :]
            if readable:
                answers.feed(sock.recv(1 << 16))
                seen += sum(message[2] is None for message in answers)
    return count


def storms_with_cancels(victim: Opened) -> int:
    """Waits that are cancelled as soon as they were asked for, and cancels of what is not there."""
    count = size(5_000, 100_000, 1_000_000)
    with Plain.at(victim.socket) as client:
        client.call("coordinator.register_swarm", swarm_id="storm", capabilities=["nobody:asks"])
        answers = dict[int, int]()
        for first in range(10, count, 50):
            numbers = range(first, min(first + 50, count))
            wait = {"swarm_id": "storm", "wait_ms": 60_000}
            storm = [packed(number, "coordinator.claim_next", [wait]) for number in numbers]
            storm += [msgpack.packb([2, "$/cancel", [number]]) for number in (*numbers, *numbers, 2**31)]
            client.sock.sendall(b"".join(storm))
            for number in numbers:
                code = client.answer(number).code
                assert code in ("cancelled", "overloaded"), code
                answers[number] = answers.get(number, 0) + 1
        assert set(answers.values()) == {1}
        client.call("daemon.ping")
    return count


def passes_descriptors(victim: Opened) -> int:
    """As many descriptors as the kernel passes at a time, with requests of all kinds: none is kept."""
    with Plain.at(victim.socket) as client, open(os.devnull) as file:
        client.call("daemon.ping")
        before = open_files(victim.pid)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()] * 253))]
        requests = [
            PING,
            packed(1, "coordinator.register_swarm", ["passer"]),
            packed(1, "coordinator.claim_next", ["passer"]),
            packed(1, "no.such.method", []),
        ]
        for number in range(100):
            client.sock.sendmsg([requests[number % len(requests)]], rights)
            client.answer(1)
        client.sock.sendmsg([PING[:5]], rights)
        client.sock.sendmsg([PING[5:]], rights)
        client.answer(1)
        assert open_files(victim.pid) <= before
    return 102


def floods_with_what_is_dear(victim: Opened) -> int:
    """32 connections send what costs the daemon most: unknown names to guess at, long lists, whole reports."""
    requests = [
        packed(number, method, [])
        for number, method in enumerate(["coordinator.clam_tsak", "coordinator.list_tasks", "optimise.report"] * 5)
    ]
    with connected(victim, 32) as clients:
        for client in clients:
            client.sock.sendall(b"".join(requests))
        for client in clients:
            codes = {client.answer(number).code for number in range(len(requests))}
            assert codes <= {"unknown_method", "ok", "overloaded"}
    return len(clients) * len(requests)


ATTACKS: Final[tuple[Attack, ...]] = (
    never_reads,
    writes_a_byte_at_a_time,
    half_closes,
    connects_without_end,
    pipelines,
    storms_with_cancels,
    passes_descriptors,
    floods_with_what_is_dear,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_greedy_client_harms_nobody(victim: Opened, proof: Proof, attack: Attack) -> None:
    """The client gets what is said above; another user's pings are answered, memory stays bounded and comes back."""
    with Plain.at(victim.socket) as client:
        client.call("daemon.ping")
    with Pinger(victim.socket, OTHER_UID) as neighbour:
        files, memory = open_files(victim.pid), resident_bytes(victim.pid)
        rest = neighbour.rest(20)
        began = max(peak_bytes(victim.pid), memory)
        ran = attack(victim)
        waits = neighbour.since()
        rests = rest, neighbour.rest(20)
        peak = peak_bytes(victim.pid) - began
        wait_until_closed(victim.pid, files)
        _wait_until_given_back(victim, memory)
    broken = [f"a ping took {waits.median_ms:.1f} ms"] * waits.are_longer(WAIT_MS, *rests)
    broken += [f"memory grew by {peak} bytes"] * (peak > PEAK_BYTES)
    print(*broken, sep="\n")
    figures = {"peak_bytes": peak, "ping_median_ms": waits.median_ms, "ping_worst_ms": waits.worst_ms}
    name = attack.__name__.replace("_", " ")
    proof.cases(promise=8, name=name, ran=ran, violations=len(broken), figures=figures)


def _wait_until_given_back(victim: Opened, before: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (grown := resident_bytes(victim.pid) - before) > KEPT_BYTES:
        assert time.monotonic() < deadline, f"{grown} bytes are kept"
        time.sleep(0.05)


def _wait_until_dropped(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, 0)
    assert poll.poll(PATIENCE_S * 1000), "it was not dropped"


# --- descriptors ---------------------------------------------------------------------------------------


def test_connections_leave_the_daemon_its_own_descriptors(proof: Proof) -> None:
    """With few descriptors in all, those beyond the room are told so; the others work on, sandboxes start, and room comes back."""
    with opened(CONFIG, max_files=60) as victim, Plain.at(victim.socket) as client:
        assert "RLIMIT_NOFILE" in victim.log()
        before = open_files(victim.pid)
        client.call("coordinator.register_swarm", swarm_id="docs")
        with connected(victim, 150) as others:
            refused = [other for other in others if _is_refused(other)]
            assert 150 > len(refused) > 110
            client.call("coordinator.create_task", title="written")
            assert _run_a_module(client) == 5  # compiler, cache and worker open a dozen files
        wait_until_closed(victim.pid, before + 20)  # the sandbox stays
        with Plain.at(victim.socket) as late:
            late.call("daemon.ping")
    proof.cases(promise=8, name="few descriptors", ran=len(others), violations=0)


def test_no_descriptor_at_all(proof: Proof) -> None:
    """Without any descriptor left, clients are answered, new ones told why not, nothing in the background ends the daemon."""
    with opened() as victim, Plain.at(victim.socket) as client:
        client.call("coordinator.register_swarm", swarm_id="docs")
        sorting = {"swarm_id": "docs", "contract": _upload(client, "kernels", export="sort")}
        assert _run_a_module(client) == 5
        daemon = psutil.Process(victim.pid)
        zygote = next(child for child in daemon.children() if "zygote" in " ".join(child.cmdline()))
        _wait_for(lambda: len(daemon.children()) == 3)  # zygote, worker, and the one that is ready for the next sandbox
        _, hard = resource.prlimit(victim.pid, resource.RLIMIT_NOFILE)
        _wait_for(lambda: _takes_nobody(victim, hard))
        # Nor is one that becomes free: of the zygote, and of the worker that is ready.
        resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (3, hard))
        task_id = client.call("coordinator.create_task", title="written")["task"]["task_id"]
        claim = {"task_id": task_id, "swarm_id": "docs"}
        assert client.ask("coordinator.claim_task", **claim, bind="process").code == "limit_exceeded"
        assert client.call("coordinator.claim_task", **claim, bind="lease")["claimed"]
        assert client.call("chassis.execute_task", swarm_id="docs", input={"args": [2, 3]})["output"] == 5
        assert client.ask("chassis.load_swarm", **sorting).code == "unavailable"
        assert client.ask("chassis.put_blob", sha256="0" * 64, offset=0, data=b"x", total_bytes=2).code == "unavailable"
        zygote.send_signal(signal.SIGKILL)  # what is started anew in the background needs descriptors, too
        _wait_for(lambda: "zygote_not_started" in victim.log() or daemon.status() == psutil.STATUS_ZOMBIE)
        client.call("daemon.ping")
        resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (1024, hard))
        with Plain.at(victim.socket) as late:
            late.call("daemon.ping")
        _wait_for(lambda: client.ask("chassis.load_swarm", **sorting).code == "ok")
        said = victim.log()
    assert said.count("cannot accept connections") <= 3
    proof.cases(promise=8, name="no descriptor", ran=1, violations=0)


def _takes_nobody(victim: Opened, hard: int) -> bool:
    """Leave the daemon the descriptors that it has; whether a client is refused then: it may have given one back meanwhile."""
    resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (hard, hard))
    taken = set(map(int, os.listdir(f"/proc/{victim.pid}/fd")))
    first_free = next(number for number in itertools.count() if number not in taken)
    resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (first_free, hard))
    with Plain.at(victim.socket) as late:
        return _is_refused(late)


def _is_refused(client: Plain) -> bool:
    """Whether the daemon turned this connection away, with a reason that a program can read; False if it is served."""
    try:
        with contextlib.suppress(BrokenPipeError):
            client.sock.sendall(PING)
        return client.answer(1).code != "ok"
    except (EOFError, ConnectionError):
        ((method, params),) = client.heard
        assert (method, params[0]["code"]) == ("closing", "overloaded")
        assert params[0]["data"]["used"] >= 1
        assert params[0]["data"]["retry_after_ms"] > 0
        return True


def _upload(client: Plain, module: str, *, export: str) -> dict[str, Any]:
    """The contract for an uploaded guest."""
    data = (GUESTS / f"{module}.wasm").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    client.call("chassis.put_blob", sha256=sha256, offset=0, data=data, total_bytes=len(data))
    return {"module_sha256": sha256, "kind": "core", "export": export}


def _run_a_module(client: Plain) -> int:
    """Two and three, added in a sandbox."""
    contract = _upload(client, "core", export="add")
    client.call("chassis.load_swarm", swarm_id="docs", contract=contract)
    result: int = client.call("chassis.execute_task", swarm_id="docs", input={"args": [2, 3]})["output"]
    return result


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)

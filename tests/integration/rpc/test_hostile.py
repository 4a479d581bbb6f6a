"""Hostile and broken clients get an error or lose their connection; others go on being answered, memory stays bounded."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifbus.protocol import END_OF_STREAM, NEED_DATA, Connection, Response

ROOT = Path(__file__).parents[3]
# A client waits at most this long for anything here; far above what a busy machine takes.
PATIENCE_S = 120.0
PING = msgpack.packb([0, 1, "daemon.ping", []])
PONG = msgpack.packb([1, 1, None, "pong"])
# What the interpreter's allocator keeps of a burst; what an attack leaves behind must stay below it.
ALLOWED_GROWTH_BYTES = 24 << 20


class Server:
    """A server process and the path of its socket."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process

    def connect(self) -> socket.socket:
        """A connected blocking socket."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(str(self.path))
        return sock

    def resident_bytes(self) -> int:
        """Memory of the process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def open_files(self) -> int:
        """Descriptors of the process."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def assert_well(self) -> None:
        """Another client is answered."""
        with self.connect() as sock:
            sock.sendall(PING)
            assert receive(sock, len(PONG)) == PONG


def receive(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer at the end."""
    data = b""
    while len(data) < size:
        try:
            got = sock.recv(size - len(data))
        except ConnectionResetError:
            break
        if not got:
            break
        data += got
    return data


def receive_all(sock: socket.socket) -> bytes:
    """Everything until the server closes."""
    return receive(sock, 1 << 30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all attacks: it must survive every one of them."""
    yield from _server(tmp_path_factory, patience_ms=600_000)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that soon ends who does not finish a message or does not read."""
    yield from _server(tmp_path_factory, patience_ms=500)


def _server(tmp_path_factory: pytest.TempPathFactory, *, patience_ms: int) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("rpc") / "s"
    with start(path, patience_ms=patience_ms) as process:
        running = Server(path, process)
        yield running
        running.assert_well()
        assert process.poll() is None
        process.kill()


def start(path: Path, *, max_files: int = 1024, patience_ms: int = 600_000) -> subprocess.Popen[bytes]:
    """A server process that is ready, may open so many files, and waits so long for the rest of a message and for a reader."""
    command = [sys.executable, "-m", "tests.integration.rpc.serving", str(path), str(patience_ms)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (max_files, max_files))
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


CLOSES = {
    "messages that are no requests": b"\x01" * 17,
    "no MessagePack": b"\xc1\xc1\xc1\xc1",
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3000,
    "nesting of 10,000": b"\x91" * 10_000,
    "maps in maps": b"\x81\xa1a" * 10_000,
    "long arrays in arrays": b"\xdc\x03\xff" * 5000,
    "an array of 4 Gi": b"\xdd\xff\xff\xff\xff",
    "a map of 4 Gi": b"\xdf\xff\xff\xff\xff",
    "an extension": b"\xc7\x05\x01abcde",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "bad UTF-8": b"\x94\x00\x01\xa2\xff\xfe\x90",
    "a list as a key": b"\x81\x90\x01",
    "a message of 70 kB": msgpack.packb([0, 1, "probe.echo", [b"x" * 70_000]]),
    "a message of 1 MB": msgpack.packb([0, 1, "probe.echo", [b"x" * 1_000_000]]),
}


@pytest.mark.parametrize("data", CLOSES.values(), ids=CLOSES.keys())
def test_bad_bytes_end_their_own_connection(server: Server, data: bytes) -> None:
    """The reason is told, the connection closed, and the next client is answered."""
    with server.connect() as sock:
        with contextlib.suppress(OSError):  # closed before all was sent
            sock.sendall(data)
        told = receive_all(sock)
    if told:  # the kernel may drop what was told when the rest of the attack was never read
        kind, method, params = msgpack.unpackb(told)
        assert (kind, method) == (2, "closing")
        assert params[0]["code"] == "protocol_error"
    server.assert_well()


ANSWERS = {
    "unknown method": [0, 7, "no.such.method", []],
    "a method of 60 kB": [0, 7, "x" * 60_000, []],
    "a list for a string": [0, 7, "daemon.hello", [[["x"]]]],
    "unknown parameters": [0, 7, "daemon.hello", [{f"p{number}": number for number in range(200)}]],
    "a parameter of 60 kB": [0, 7, "daemon.hello", [{"x" * 60_000: 1}]],
    "too many parameters": [0, 7, "daemon.ping", [1, 2, 3]],
    "no params": [0, 7, "daemon.ping"],
    "params that are no array": [0, 7, "daemon.ping", "x"],
    "nesting of 100": [0, 7, "probe.echo", [eval("[" * 90 + "]" * 90)]],
    "meta that is no map": [0, 7, "daemon.ping", [{"$": 1}]],
    "a bad timeout": [0, 7, "daemon.ping", [{"$": {"timeout_ms": -1}}]],
}


@pytest.mark.parametrize("message", ANSWERS.values(), ids=ANSWERS.keys())
def test_bad_requests_are_answered_under_their_id(server: Server, message: list[object]) -> None:
    """An error of a bounded size comes back, and the same connection goes on."""
    with server.connect() as sock:
        sock.sendall(msgpack.packb(message))
        unpacker = msgpack.Unpacker()
        unpacker.feed(sock.recv(65536))
        kind, msgid, error, _ = unpacker.unpack()
        assert (kind, msgid) == (1, 7)
        assert error["code"] in ("unknown_method", "invalid_params", "invalid_request")
        assert len(error["message"]) < 1000
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_harm_nobody(server: Server, data: bytes, has_ping: bool) -> None:
    """Whatever is sent, before a good request or alone, the server answers or closes and serves the next client."""
    with server.connect() as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data + PING * has_ping)
            sock.shutdown(socket.SHUT_WR)
        receive_all(sock)
    server.assert_well()


def test_a_flood_of_empty_maps_costs_little(server: Server) -> None:
    """60 messages of 64 kB of empty maps are answered one by one, and their memory comes back."""
    message = msgpack.packb([0, 7, "probe.echo", [[{} for _ in range(1000)] for _ in range(60)]])
    assert 60_000 < len(message) < 65_536
    before = server.resident_bytes()
    with server.connect() as sock:
        for _ in range(60):
            sock.sendall(message)
            server.assert_well()
            unpacker = msgpack.Unpacker()
            while True:
                unpacker.feed(sock.recv(65536))
                try:
                    unpacker.unpack()
                except msgpack.OutOfData:
                    continue
                break
    assert server.resident_bytes() < before + ALLOWED_GROWTH_BYTES


@pytest.mark.slow
def test_half_messages_of_many_connections_stay_small(impatient: Server) -> None:
    """50 connections that each declare long arrays in arrays and stop there cost next to nothing."""
    server = impatient
    before = server.resident_bytes()
    socks = [server.connect() for _ in range(50)]
    try:
        for sock in socks:
            sock.sendall(b"\x94\x00\x01\xa1a" + b"\xdc\x03\xff" * 58)
        server.assert_well()
        assert server.resident_bytes() < before + ALLOWED_GROWTH_BYTES + 50 * (64 * 8192)
        for sock in socks:  # the unfinished message has a deadline
            receive_all(sock)
    finally:
        for sock in socks:
            sock.close()
    server.assert_well()


@pytest.mark.slow
def test_100_000_requests_in_the_pipe_are_all_answered(server: Server) -> None:
    """A client that sends on and on while it reads gets every answer, and another one gets its own meanwhile."""
    before = server.resident_bytes()
    count = 100_000
    requests = b"".join(msgpack.packb([0, number, "daemon.ping", []]) for number in range(count))
    seen = 0
    client = Connection()
    with server.connect() as sock:
        sock.setblocking(False)
        at = 0
        while seen < count:
            if at < len(requests):
                with contextlib.suppress(BlockingIOError):
                    at += sock.send(requests[at : at + 65536])
            else:
                sock.settimeout(PATIENCE_S)
            try:
                client.receive_data(sock.recv(65536))
            except BlockingIOError:
                continue
            while (event := client.next_event()) is not NEED_DATA:
                assert event is not END_OF_STREAM
                assert isinstance(event, Response)
                assert event.result == "pong"
                seen += 1
            if seen % 1000 < 10:
                server.assert_well()
    assert server.resident_bytes() < before + ALLOWED_GROWTH_BYTES


@pytest.mark.slow
def test_a_client_that_never_reads_is_dropped(impatient: Server) -> None:
    """It fills the socket, then the daemon stops reading it, then the connection ends; memory stays."""
    server = impatient
    before = server.resident_bytes()
    with server.connect() as sock:
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 200 << 20:
                sent += sock.send(PING * 1000)
        assert sent < 16 << 20
        assert server.resident_bytes() < before + ALLOWED_GROWTH_BYTES
        server.assert_well()


def test_a_storm_of_cancels_and_notifications_is_ignored(server: Server) -> None:
    """Cancels of what is not there, unknown notifications and stray responses, 30,000 of them, then an answer."""
    storm = msgpack.packb([2, "$/cancel", [5]]) + msgpack.packb([2, "x", []]) + msgpack.packb([1, 5, None, None])
    with server.connect() as sock:
        sock.sendall(storm * 10_000 + PING)
        server.assert_well()
        assert receive(sock, len(PONG)) == PONG


def test_passed_descriptors_are_dropped(server: Server) -> None:
    """253 descriptors sent along with a request are not kept, and the request is answered."""
    with server.connect() as sock, open(os.devnull) as file:
        sock.sendall(PING)
        receive(sock, len(PONG))
        before = server.open_files()
        descriptors = array.array("i", [file.fileno()] * 253)
        for _ in range(20):
            sock.sendmsg([PING], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            assert receive(sock, len(PONG)) == PONG
        assert server.open_files() <= before  # those of the test before may still have been among them


def test_clients_that_come_and_go_leave_nothing_behind(server: Server) -> None:
    """500 connections, some cut inside a message, and no descriptor is left."""
    server.assert_well()
    before = server.open_files()
    for number in range(500):
        with server.connect() as sock:
            sock.sendall(PING[: number % len(PING)])
        if number % 20 == 0:  # so that the server sees them go before it has too many of this user
            server.assert_well()
    server.assert_well()
    deadline = 3000
    while server.open_files() > before and deadline:
        server.assert_well()
        deadline -= 1
    assert server.open_files() <= before


@pytest.mark.slow
def test_exhausted_descriptors_end_no_server(tmp_path: Path) -> None:
    """With no descriptor left for another client it is told so, the ones there are served, and when they leave, the next gets in."""
    path = tmp_path / "s"
    with start(path, max_files=40) as process:
        server = Server(path, process)
        socks = [server.connect() for _ in range(50)]
        try:
            socks[0].sendall(PING)
            assert receive(socks[0], len(PONG)) == PONG
            assert b"overloaded" in receive_all(socks[-1])
            for sock in socks[1:]:
                sock.close()
            before = 3000
            while before:
                before -= 1
                with server.connect() as sock, contextlib.suppress(BrokenPipeError):
                    sock.sendall(PING)
                    if receive(sock, len(PONG)) == PONG:
                        break
            assert before, "nobody got in after the others had left"
            assert process.poll() is None
        finally:
            for sock in socks:
                sock.close()
            process.kill()


# --- interoperability --------------------------------------------------------------------------------


# In a process of its own, because a session leaves its event loop's transport open. It takes every error for a list of
# Neovim's, so that one of ours ends in a KeyError.
FOREIGN_CLIENT = """
import sys
from pynvim.msgpack_rpc import socket_session
session = socket_session(sys.argv[1])
assert session.request("daemon.ping") == "pong"
assert session.request("probe.echo", [1, "x", None, 1.5, {"a": 2}]) == [1, "x", None, 1.5, {"a": 2}]
try:
    session.request("daemon.pnig")
except KeyError:
    assert session.request("daemon.hello", [1], "pynvim")["protocol"] == 1
    print("fine")
"""


def test_a_foreign_client_gets_along(server: Server) -> None:
    """pynvim's MessagePack-RPC session calls, is refused, and calls again."""
    command = [sys.executable, "-c", FOREIGN_CLIENT, str(server.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_a_handwritten_client_gets_along(server: Server) -> None:
    """Bytes written by hand after the published specification, and the answer compared byte by byte."""
    with server.connect() as sock:
        sock.sendall(b"\x94\x00\xcc\xc8\xabdaemon.ping\x90")
        assert receive(sock, 9) == b"\x94\x01\xcc\xc8\xc0\xa4pong"[:9]

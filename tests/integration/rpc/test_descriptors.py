"""Descriptors that clients send: one, of a process, after it was announced; all others come to nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from ifbusd import processes
from tests.integration.rpc.serving import Client, Serving, serving

NOTICE: bytes = msgpack.packb([2, "$/process", []])


def opened() -> int:
    """How many descriptors this process has; the server is in it."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(params=[frozenset(), frozenset({os.getuid()})], ids=["user", "operator"])
def operators(request: pytest.FixtureRequest) -> frozenset[int]:
    """Who has the operator role, whose connections are read in another way: nobody, or this user."""
    found: frozenset[int] = request.param
    return found


async def hand_over(client: Client, *descriptors: int, data: bytes = NOTICE) -> None:
    sock: Any = client.sock
    socket.send_fds(sock._sock, [data], list(descriptors))
    await client.call("daemon.ping")


async def taken(served: Serving, client: Client) -> int | None:
    """What the connection has, as a handler of its requests takes it."""
    await client.call("probe.note")
    session = served.probe.callers[-1].session
    assert session is not None
    return session.take_process()


async def test_an_announced_process_arrives(tmp_path: Path, operators: frozenset[int]) -> None:
    """Once, close-on-exec, and then descriptors are dropped again."""
    pidfd = os.pidfd_open(os.getpid())
    async with serving(tmp_path, operator_uids=operators) as served, served.client() as client:
        assert await client.call("daemon.expect_process") is True
        await hand_over(client, pidfd)
        got = await taken(served, client)
        assert got is not None
        assert processes.look(got).pid == os.getpid()
        assert not os.get_inheritable(got)
        os.close(got)
        assert await taken(served, client) is None
        before = opened()
        await hand_over(client, pidfd)
        assert (await taken(served, client), opened()) == (None, before)
    os.close(pidfd)


async def test_only_one_and_only_a_process_is_kept(tmp_path: Path, operators: frozenset[int]) -> None:
    """Files, sockets and further ones are closed; the next process still counts."""
    pidfd, file = os.pidfd_open(os.getpid()), os.open("/dev/null", os.O_RDONLY)
    async with serving(tmp_path, operator_uids=operators) as served, served.client() as client:
        await client.call("daemon.expect_process")
        before = opened()
        await hand_over(client, file)
        await hand_over(client, file, *[pidfd] * 20)
        assert (await taken(served, client), opened()) == (None, before)
        await hand_over(client, *[pidfd] * 20)
        assert opened() == before + 1
        got = await taken(served, client)
        assert got is not None
        os.close(got)
    os.close(pidfd)
    os.close(file)


async def test_a_descriptor_goes_with_its_connection(tmp_path: Path, operators: frozenset[int]) -> None:
    """What nobody took is closed; one that comes later takes the place of the one before."""
    pidfd = os.pidfd_open(os.getpid())
    async with serving(tmp_path, operator_uids=operators) as served:
        before = opened()
        async with served.client() as client:
            for _ in range(5):
                await client.call("daemon.expect_process")
                await hand_over(client, pidfd)
        with trio.fail_after(10):
            while opened() > before:
                await trio.sleep(0.01)
    os.close(pidfd)


async def test_a_descriptor_may_come_with_any_bytes(tmp_path: Path, operators: frozenset[int]) -> None:
    """With the request itself, or with the first byte of it."""
    pidfd = os.pidfd_open(os.getpid())
    async with serving(tmp_path, operator_uids=operators) as served, served.client() as client:
        await client.call("daemon.expect_process")
        request = msgpack.packb([0, 900, "probe.note", []])
        sock: Any = client.sock
        socket.send_fds(sock._sock, [request[:1]], [pidfd])
        await client.sock.send(request[1:])
        with trio.fail_after(10):
            while not served.probe.callers:
                await trio.sleep(0.01)
        session = served.probe.callers[-1].session
        assert session is not None
        got = session.take_process()
        assert got is not None
        os.close(got)
    os.close(pidfd)


def test_the_kernel_and_proc_say_the_same() -> None:
    """Whichever of the two is asked: before Linux 6.13 only the files know."""
    pidfd = os.pidfd_open(os.getppid())
    assert processes.look(pidfd) == processes._look_in_proc(pidfd)
    os.close(pidfd)


def test_a_process_that_has_ended_cannot_be_seen() -> None:
    """Reaped or not."""
    pid = os.posix_spawnp("true", ["true"], os.environ)
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    assert processes.has_ended(pidfd)
    for look in (processes.look, processes._look_in_proc):
        with pytest.raises(processes.Unseen):
            look(pidfd)
    os.close(pidfd)

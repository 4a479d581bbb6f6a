"""The asynchronous connection, on asyncio and on trio, against servers that answer late, wrongly, or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from ifbus.async_link import MAX_UNSENT_BYTES, AsyncLink, _Session
from ifbus.async_stream import AsyncSocketStream
from ifbus.errors import ConnectionLost, DaemonNotRunning, DeadlineExceeded, LeaseLost, NotFound, ProtocolError
from ifbus.exchange import MAX_QUEUED, Feed, Routes
from ifbus.protocol import NEED_DATA, Connection, Notification, Request
from ifbus.request import Call, untyped
from tests.unit.client.server import PATIENCE_S, Peer, echo, last_first, serving, silent

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine on one of the two."""

    def run(test: Callable[[], Awaitable[None]]) -> None:
        async def within_time() -> None:
            with anyio.fail_after(2 * PATIENCE_S):
                await test()

        anyio.run(within_time, backend=request.param)

    return run


def test_answers_reach_their_callers_in_any_order(run: Run) -> None:
    """Eight tasks share a connection; the server answers the last first, and each gets its own answer."""

    async def test() -> None:
        answers: dict[int, Any] = {}

        async def ask(link: AsyncLink, n: int) -> None:
            answers[n] = await link.call("x.y", n)

        with serving(last_first(8)) as server:
            async with AsyncLink(server.path) as link, anyio.create_task_group() as group:
                for n in range(8):
                    group.start_soon(ask, link, n)
            assert answers == {n: [n] for n in range(8)}

    run(test)


def test_a_cancelled_call_is_given_up_at_the_server(run: Run) -> None:
    """A cancelled call sends a cancel for its request; the connection goes on, and a late answer is nobody else's."""

    def some(peer: Peer, request: Request) -> None:
        if request.method == "be.quick":
            peer.reply(request, "quick")

    async def test() -> None:
        with serving(some) as server:
            async with AsyncLink(server.path) as link:
                async with anyio.create_task_group() as group:
                    group.start_soon(link.call, "be.slow")
                    peer, request = await anyio.to_thread.run_sync(server.next_request)
                    group.cancel_scope.cancel()
                notification = await anyio.to_thread.run_sync(server.next_notification)
                assert (notification.method, notification.params) == ("$/cancel", [request.msgid])
                peer.reply(request, "late")
                assert await link.call("be.quick") == "quick"
                assert len(server.peers) == 1

    run(test)


def test_a_call_does_not_wait_for_another_tasks_connection(run: Run) -> None:
    """While one task waits long for a daemon that does not answer any more, another one's time is its own."""

    async def test() -> None:
        with serving(echo) as server:
            async with AsyncLink(server.path, timeout=PATIENCE_S) as link, anyio.create_task_group() as group:
                server.stop()
                server.path.unlink()
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(server.path))
                    listener.listen()
                    group.start_soon(link.call, "x.y")
                    peer, _ = await anyio.to_thread.run_sync(listener.accept)
                    with peer:
                        assert await anyio.to_thread.run_sync(peer.recv, 1)  # its hello
                        with pytest.raises(DeadlineExceeded, match="no connection"):
                            await link.call("x.y", timeout=0)
                        group.cancel_scope.cancel()

    run(test)


def test_calls_cancelled_under_a_full_socket_do_not_tear_the_stream(run: Run) -> None:
    """While nobody reads, calls are cancelled in the middle of being sent; what arrives later is whole."""

    async def test() -> None:
        ours, theirs = socket.socketpair()
        session = _Session(AsyncSocketStream(ours), Routes())
        answers: list[Any] = []

        async def ask(*params: Any) -> None:
            answers.append(await session.ask("x.y", list(params), None, PATIENCE_S))

        def answer_the_last() -> list[str]:
            wire, seen = Connection(), []
            while True:
                wire.receive_data(theirs.recv(65536))
                while (event := wire.next_event()) is not NEED_DATA:
                    assert isinstance(event, Request | Notification), event
                    seen.append(event.method)
                    if isinstance(event, Request) and event.params == ["last"]:
                        theirs.sendall(wire.respond(event.msgid, "whole"))
                        return seen

        with theirs:
            async with anyio.create_task_group() as group:
                await group.start(session.run)
                async with anyio.create_task_group() as callers:
                    for _ in range(2 * MAX_UNSENT_BYTES // 50_000):
                        callers.start_soon(ask, b"x" * 50_000)
                    await anyio.wait_all_tasks_blocked()
                    callers.cancel_scope.cancel()
                async with anyio.create_task_group() as callers:
                    callers.start_soon(ask, "last")
                    seen = await anyio.to_thread.run_sync(answer_the_last)
                session.end(ConnectionLost("done"))
        assert answers == ["whole"]
        assert seen.count("$/cancel") == seen.count("x.y") - 1 > 0

    run(test)


def test_a_slow_server_costs_one_call_its_time(run: Run) -> None:
    """A call without an answer ends with its time."""

    async def test() -> None:
        with serving(silent) as server:
            async with AsyncLink(server.path) as link:
                with pytest.raises(DeadlineExceeded):
                    await link.call("be.slow", timeout=0.01)

    run(test)


@pytest.mark.parametrize("garbage", [b"\xc1", b"\x94\x01", b"\xdd\xff\xff\xff\xff"])
def test_garbage_ends_the_connection_and_not_the_client(run: Run, garbage: bytes) -> None:
    """Bytes that are no answer end the connection; the next call has a new one."""

    def once(peer: Peer, request: Request) -> None:
        if peer.number:
            peer.reply(request, "fine")
        else:
            peer.send(garbage)
            peer.close()

    async def test() -> None:
        with serving(once) as server:
            async with AsyncLink(server.path) as link:
                try:
                    answer = await link.call("x.y")
                except ProtocolError:
                    answer = await link.call("x.y")
                assert answer == "fine"
                assert len(server.peers) == 2

    run(test)


def test_a_lost_request_is_sent_again_under_its_key(run: Run) -> None:
    """A connection that ends under a change brings the same request, with the same key, over a new one."""

    def drop_first(peer: Peer, request: Request) -> None:
        if peer.number:
            peer.reply(request, "done")
        else:
            peer.close()

    async def test() -> None:
        with serving(drop_first) as server:
            async with AsyncLink(server.path) as link:
                assert await link.call("coordinator.create_task", title="x") == "done"
            first, second = server.next_request()[1], server.next_request()[1]
            assert first.meta["idempotency_key"] == second.meta["idempotency_key"]

    run(test)


def test_closing_ends_calls_of_other_tasks(run: Run) -> None:
    """A task that waits for an answer hears that the client was closed; so does every later call."""

    async def test() -> None:
        heard = []

        async def ask(link: AsyncLink) -> None:
            with pytest.raises(ConnectionLost, match="closed"):
                await link.call("x.y")
            heard.append(True)

        with serving(silent) as server:
            async with AsyncLink(server.path) as link:
                async with anyio.create_task_group() as group:
                    group.start_soon(ask, link)
                    await anyio.to_thread.run_sync(server.next_request)
                    await link.close()
                await link.close()
                await ask(link)
        assert heard == [True, True]

    run(test)


def test_an_error_of_the_block_comes_out_as_it_is(run: Run) -> None:
    """The client's block wraps nobody's exception in a group, its own failures to connect included."""

    async def test() -> None:
        with serving(echo) as server, pytest.raises(KeyError, match="mine"):
            async with AsyncLink(server.path):
                raise KeyError("mine")
        with pytest.raises(DaemonNotRunning):
            async with AsyncLink("/nowhere/ifbusd.sock"):
                pytest.fail("there is no daemon")
        with pytest.raises(RuntimeError, match="async with"):
            await AsyncLink("/nowhere/ifbusd.sock").call("x.y")

    run(test)


def test_a_refusal_and_a_guard_end_a_call(run: Run) -> None:
    """The daemon's error comes as its class; a guard is asked between two tries."""

    def refuse_or_drop(peer: Peer, request: Request) -> None:
        if request.method == "drop.me":
            peer.close()
        else:
            peer.refuse(request, NotFound("no task T-9"))

    def guard() -> None:
        raise LeaseLost("gone")

    async def test() -> None:
        with serving(refuse_or_drop) as server:
            async with AsyncLink(server.path) as link:
                with pytest.raises(NotFound, match="T-9"):
                    await link.call("coordinator.get_task", task_id="T-9")
                with pytest.raises(LeaseLost):
                    await link.perform(Call("drop.me", {}, untyped), guard=guard)

    run(test)


def test_a_subscription_resumes_where_it_stood(run: Run) -> None:
    """After a lost connection an inbox is subscribed from its last letter; a letter that comes twice is told once."""

    def inbox(peer: Peer, request: Request) -> None:
        peer.reply(request, {})
        for seq in [1, 2] if not peer.number else [2, 3]:
            peer.notify("inbox", {"swarm_id": "me", "seq": seq})
        if not peer.number:
            peer.close()

    async def test() -> None:
        with serving(inbox) as server:
            async with AsyncLink(server.path) as link:
                feed = Feed("inbox", "coordinator.subscribe_inbox", swarm_id="me")
                async with await link.subscribe(feed, dict) as letters:
                    assert [(await letters.receive(PATIENCE_S))["seq"] for _ in range(3)] == [1, 2, 3]  # type: ignore[index]
                    with pytest.raises(DeadlineExceeded):
                        await letters.receive(0.01)
                assert await letters.receive() is None
                assert [letter async for letter in letters] == []

    run(test)


def test_a_reader_that_falls_behind_reads_its_inbox_again(run: Run) -> None:
    """Letters beyond the queue are read from the daemon, each once and in order."""

    def flood(peer: Peer, request: Request) -> None:
        if request.method == "coordinator.read_inbox":
            after = request.params[0]["after_seq"]
            messages = [{"seq": seq} for seq in range(after + 1, MAX_QUEUED + 61)][:50]
            peer.reply(request, {"messages": messages, "has_more": bool(messages) and after < MAX_QUEUED + 10})
            return
        for seq in range(1, MAX_QUEUED + 61):
            peer.notify("inbox", {"swarm_id": "me", "seq": seq})
        peer.reply(request, {})

    async def test() -> None:
        with serving(flood) as server:
            async with AsyncLink(server.path) as link:
                letters = await link.subscribe(Feed("inbox", "coordinator.subscribe_inbox", swarm_id="me"), dict)
                seqs = [(await letters.receive(PATIENCE_S))["seq"] for _ in range(MAX_QUEUED + 60)]  # type: ignore[index]
                assert seqs == list(range(1, MAX_QUEUED + 61))

    run(test)


def test_an_inherited_connection_is_used_by_plain_reads_and_writes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `IFBUS_FD` the client speaks on the connection that its parent made; its mode stays as it was."""

    async def test() -> None:
        async with AsyncLink() as link:
            assert await link.call("x.y", 1) == [1]

    with serving(echo) as server, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.path))
        monkeypatch.setenv("IFBUS_FD", str(sock.fileno()))
        run(test)
        assert os.get_blocking(sock.fileno())
        assert len(server.peers) == 1

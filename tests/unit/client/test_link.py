"""The blocking connection, against servers that answer late, wrongly, or not at all."""

from __future__ import annotations

import itertools
import math
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ifbus.errors import (
    Cancelled,
    ConnectionLost,
    DaemonNotRunning,
    DeadlineExceeded,
    IfbusError,
    InvalidParams,
    LeaseLost,
    NotFound,
    Overloaded,
    ProtocolError,
    Unavailable,
)
from ifbus.exchange import MAX_QUEUED, Feed, Routes
from ifbus.link import GRACE_S, Abort, Link
from ifbus.protocol import Notification, Request
from ifbus.request import Call, untyped
from ifbus.stream import SocketStream
from tests.unit.client.server import PATIENCE_S, Peer, echo, last_first, serving, silent


def test_answers_reach_their_callers_in_any_order() -> None:
    """Eight threads share a connection; the server answers the last first, and each gets its own answer."""
    with serving(last_first(8)) as server, Link(server.path) as link, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: link.call("x.y", n), range(8), timeout=PATIENCE_S)) == [
            [number] for number in range(8)
        ]


def test_many_calls_of_many_threads_all_come_back() -> None:
    """Two thousand calls from eight threads each get their own answer: the lead is never lost."""
    with serving(echo) as server, Link(server.path) as link, ThreadPoolExecutor(8) as pool:

        def ask(thread: int) -> bool:
            return all(link.call("x.y", thread, n, timeout=PATIENCE_S)[0] == thread for n in range(250))

        assert all(pool.map(ask, range(8), timeout=2 * PATIENCE_S))
        assert len(server.peers) == 1


def test_a_call_waits_its_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a read has waited is gone from the call's time, so all its reads together wait no longer than that."""
    waited_s: list[float] = []
    receive = SocketStream.receive

    def noting(stream: SocketStream, timeout_s: float | None) -> bytes:
        try:
            return receive(stream, timeout_s)
        except TimeoutError:
            assert timeout_s is not None
            waited_s.append(timeout_s)
            raise

    monkeypatch.setattr(SocketStream, "receive", noting)
    with serving(silent) as server, Link(server.path) as link:
        with pytest.raises(DeadlineExceeded):
            link.call("x.y", timeout=0.1)
        assert sum(waited_s) < 1.5 * (0.1 + GRACE_S)


def test_a_call_does_not_wait_for_another_threads_connection(tmp_path: Path) -> None:
    """While one thread waits long for a daemon that does not answer, another one's time is its own; closing ends both."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        link = Link(tmp_path / "s", timeout=PATIENCE_S)
        patient = pool.submit(link.call, "x.y")
        with listener.accept()[0] as peer:
            assert peer.recv(1)  # its hello
            with pytest.raises(DeadlineExceeded, match="no connection"):
                link.call("x.y", timeout=0)
            assert not patient.done()
            link.close()
            with pytest.raises(ConnectionLost, match="closed"):
                patient.result(PATIENCE_S)


def test_a_client_can_be_closed_while_it_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed by another thread after its socket was connected and before it says hello, it does not wait for the answer."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        link = Link(tmp_path / "s", timeout=PATIENCE_S)
        drop, dropped = link._drop, threading.Event()

        def drop_and_tell(error: IfbusError) -> None:
            drop(error)
            dropped.set()

        def connect(paths: list[str]) -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(paths[0])
            closing.append(pool.submit(link.close))
            assert dropped.wait(PATIENCE_S)
            return sock

        closing: list[Any] = []
        monkeypatch.setattr(link, "_drop", drop_and_tell)
        monkeypatch.setattr("ifbus.link.connect", connect)
        with pytest.raises(ConnectionLost, match="closed"):
            link.call("x.y")
        closing[0].result(PATIENCE_S)


def test_a_subscription_resumes_after_a_reset() -> None:
    """A daemon that dies over requests that it did not read resets the connection: who reads just then goes on all the same."""

    def script(peer: Peer, request: Request) -> None:
        if request.method == "x.y" and not peer.number:
            peer.sock.recv(1, socket.MSG_PEEK)  # another request is there, and stays unread
            peer.sock.close()
        else:
            peer.reply(request, request.params)

    with serving(script) as server, Link(server.path) as link, ThreadPoolExecutor(3) as pool:
        board = link.subscribe(Feed("board", "coordinator.subscribe_board"), dict)
        waiting = pool.submit(board.receive)
        session = link._session
        assert session is not None
        while not session._reading.locked():
            assert not waiting.done()
        calls = [pool.submit(link.call, "x.y", n) for n in range(2)]
        assert [call.result(PATIENCE_S) for call in calls] == [[0], [1]]
        server.peers[1].notify("board", {"event": "created"})
        assert waiting.result(PATIENCE_S) == {"event": "created"}


def test_who_ends_while_something_is_delivered_hides_it_from_nobody() -> None:
    """A subscription that ends meanwhile does not make the next one be passed over."""
    routes, heard = Routes(), []

    def leave(item: dict[str, Any]) -> None:
        routes.hearers.remove(leave)

    routes.hearers += [leave, heard.append]
    routes.deliver(Notification("attention", [[{"kind": "cancel"}]]))
    assert heard == [{"kind": "cancel"}]


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, 1e30, "5"])
def test_a_timeout_is_a_span(timeout: Any) -> None:
    """One that cannot be waited for is refused before anything is tried, with its name."""
    with pytest.raises(InvalidParams, match="a timeout is in seconds"):
        Link("/nowhere", timeout=timeout)
    with pytest.raises(InvalidParams, match="a timeout is in seconds"):
        Link("/nowhere").call("x.y", timeout=timeout)
    with serving(echo) as server, Link(server.path) as link:
        board = link.subscribe(Feed("board", "coordinator.subscribe_board"), dict)
        with pytest.raises(InvalidParams, match="a timeout is in seconds"):
            board.receive(timeout)


def test_an_answer_in_pieces_is_put_together() -> None:
    """An answer that comes byte by byte is the same answer."""

    def dribble(peer: Peer, request: Request) -> None:
        for byte in peer.wire.respond(request.msgid, ["a", {"b": 1}]):
            peer.send(bytes([byte]))

    with serving(dribble) as server, Link(server.path) as link:
        assert link.call("x.y") == ["a", {"b": 1}]


@pytest.mark.parametrize("garbage", [b"\xc1", b"HTTP/1.1 400 Bad Request\r\n", b"\x94\x01", b"\xdd\xff\xff\xff\xff"])
def test_garbage_ends_the_connection_and_not_the_client(garbage: bytes) -> None:
    """Bytes that are no answer fail the call with what came; the next call has a new connection."""

    def once(peer: Peer, request: Request) -> None:
        if peer.number:
            peer.reply(request, "fine")
        else:
            peer.send(garbage)
            peer.close()

    with serving(once) as server, Link(server.path) as link:
        try:
            answer = link.call("x.y")
        except ProtocolError:
            answer = link.call("x.y")
        assert answer == "fine"
        assert len(server.peers) == 2


def test_an_answer_to_nothing_is_passed_over() -> None:
    """An answer under an unknown id, an unknown notification, and a request harm nobody."""

    def talkative(peer: Peer, request: Request) -> None:
        peer.send(peer.wire.respond(99, "what?"))
        peer.notify("no.such.thing", 1)
        peer.send(peer.wire.request("do.this", [])[1])
        peer.reply(request, "fine")

    with serving(talkative) as server, Link(server.path) as link:
        assert link.call("x.y") == "fine"


def test_a_slow_server_costs_one_call_its_time() -> None:
    """A call without an answer ends with its time and is cancelled at the server; the connection goes on."""

    def some(peer: Peer, request: Request) -> None:
        if request.method == "be.quick":
            peer.reply(request, "quick")

    with serving(some) as server, Link(server.path) as link:
        with pytest.raises(DeadlineExceeded) as raised:
            link.call("be.slow", timeout=0.01)
        assert raised.value.data["method"] == "be.slow"
        _, request = server.next_request()
        assert request.meta["timeout_ms"] == 10
        assert server.next_notification().params == [request.msgid]
        assert link.call("be.quick") == "quick"
        assert len(server.peers) == 1


def test_a_late_answer_is_nobody_elses() -> None:
    """The answer to a call that was given up does not become the next call's."""
    late: list[Request] = []

    def one_behind(peer: Peer, request: Request) -> None:
        late.append(request)
        if len(late) > 1:
            peer.reply(late[0], "late")
            peer.reply(request, "right")

    with serving(one_behind) as server, Link(server.path) as link:
        with pytest.raises(DeadlineExceeded):
            link.call("x.y", timeout=0.01)
        assert link.call("x.y") == "right"


def test_a_lost_request_is_sent_again_under_its_key() -> None:
    """A connection that ends under a change brings the same request, with the same key, over a new one."""

    def drop_first(peer: Peer, request: Request) -> None:
        if peer.number:
            peer.reply(request, "done")
        else:
            peer.close()

    with serving(drop_first) as server, Link(server.path) as link:
        assert link.call("coordinator.create_task", title="x") == "done"
        first, second = server.next_request()[1], server.next_request()[1]
        assert first.meta["idempotency_key"] == second.meta["idempotency_key"]
        assert first.params == second.params


def test_each_change_has_a_key_and_no_question_has_one() -> None:
    """A method that changes something carries a key of its own; one that asks carries none."""
    with serving(echo) as server, Link(server.path) as link:
        link.call("coordinator.create_task", title="x")
        link.call("coordinator.create_task", title="x")
        link.call("coordinator.get_task", task_id="T-1")
        keys = [server.next_request()[1].meta.get("idempotency_key") for _ in range(3)]
        assert keys[0] != keys[1]
        assert keys[2] is None


def test_a_momentary_refusal_is_tried_again() -> None:
    """`overloaded` is tried again unseen, under the same key."""
    numbers = itertools.count()

    def busy_once(peer: Peer, request: Request) -> None:
        if next(numbers):
            peer.reply(request, "done")
        else:
            peer.refuse(request, Overloaded("not now", data={"retry_after_ms": 1}))

    with serving(busy_once) as server, Link(server.path) as link:
        assert link.call("coordinator.create_task", title="x") == "done"


def test_a_lasting_outage_is_heard() -> None:
    """`unavailable` five times over is the caller's to hear."""

    def out(peer: Peer, request: Request) -> None:
        peer.refuse(request, Unavailable("etcd is silent", data={"retry_after_ms": 1}))

    with serving(out) as server, Link(server.path) as link, pytest.raises(Unavailable, match="etcd is silent"):
        link.call("coordinator.create_task", title="x")


def test_a_refusal_comes_as_its_class_with_its_figures() -> None:
    """The error that the daemon raised is raised here, with its data."""

    def refuse(peer: Peer, request: Request) -> None:
        peer.refuse(request, NotFound("no task T-9 among 3", data={"among": 3}))

    with serving(refuse) as server, Link(server.path) as link, pytest.raises(NotFound) as raised:
        link.call("coordinator.get_task", task_id="T-9")
    assert raised.value.data == {"among": 3}


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (Overloaded("64 of 64 connections", data={"retry_after_ms": 1}), Overloaded),
        (ProtocolError("no MessagePack"), ProtocolError),
        (Unavailable("the daemon is stopping"), ConnectionLost),
    ],
)
def test_the_reason_for_a_closed_connection_is_the_callers(reason: Any, expected: type[Exception]) -> None:
    """What the daemon says in `closing` is why the call failed."""

    def say_why(peer: Peer, request: Request) -> None:
        peer.notify("closing", reason.to_wire())
        peer.close()

    with (
        serving(say_why) as server,
        Link(server.path) as link,
        pytest.raises(expected, match=reason.message),
    ):
        link.call("x.y", timeout=1.0)


def test_a_server_that_went_away_is_named() -> None:
    """Without a socket there is `DaemonNotRunning`, at once, with the path."""
    with pytest.raises(DaemonNotRunning, match="/nowhere/ifbusd"):
        Link("/nowhere/ifbusd.sock").connect()


def test_a_connection_that_was_there_is_waited_for(tmp_path: Path) -> None:
    """A client that was connected waits out a restart; the call that came meanwhile succeeds."""
    with serving(echo) as first:
        link = Link(first.path)
        path = first.path
        assert link.call("x.y", 1) == [1]
        first.stop()
        os.unlink(path)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(link.call, "x.y", 2)
            again = type(first)(path, echo)
            assert answer.result(PATIENCE_S) == [2]
            link.close()
            again.stop()


def test_closing_ends_calls_of_other_threads() -> None:
    """A thread that waits for an answer hears that the client was closed."""
    with serving(silent) as server, ThreadPoolExecutor(2) as pool:
        link = Link(server.path)
        calls = [pool.submit(link.call, "x.y") for _ in range(2)]
        server.next_request(), server.next_request()
        link.close()
        for call in calls:
            with pytest.raises(ConnectionLost, match="closed"):
                call.result(PATIENCE_S)
        link.close()
        with pytest.raises(ConnectionLost, match="closed"):
            link.call("x.y")


def test_an_abort_from_another_thread_cancels_the_call() -> None:
    """An aborted call is cancelled at the server, and ends as the server says; none is made after that."""

    def cancelling(peer: Peer, request: Request) -> None:
        asked.put_nowait((peer, request))

    import queue

    asked: queue.Queue[tuple[Peer, Request]] = queue.Queue()
    with serving(cancelling) as server, Link(server.path) as link, ThreadPoolExecutor(1) as pool:
        abort = Abort()
        waiting = pool.submit(link.perform, Call("x.y", {}, untyped), abort=abort)
        peer, request = asked.get(timeout=PATIENCE_S)
        abort.set()
        assert server.next_notification().params == [request.msgid]
        peer.refuse(request, Cancelled("cannot finish x.y: the caller cancelled it"))
        with pytest.raises(Cancelled):
            waiting.result(PATIENCE_S)


def test_a_guard_ends_a_call_between_two_tries() -> None:
    """What the guard raises after a lost connection is raised, and nothing more is sent."""

    def guard() -> None:
        raise LeaseLost("gone")

    def drop(peer: Peer, request: Request) -> None:
        peer.close()

    with serving(drop) as server, Link(server.path) as link, pytest.raises(LeaseLost):
        link.perform(Call("x.y", {}, untyped), guard=guard)


def test_attention_is_heard_before_the_answer() -> None:
    """What comes before a reply is told in the calling thread, before the call returns."""
    heard: list[Any] = []

    def urgent(peer: Peer, request: Request) -> None:
        peer.notify("attention", [{"kind": "cancel"}])
        peer.reply(request, "done")

    with serving(urgent) as server, Link(server.path, on_attention=heard.append) as link:
        link.call("x.y")
        assert heard == [{"kind": "cancel"}]
    with serving(urgent) as server, Link(server.path) as link:
        link.call("x.y")
        assert link.take_attention() == ({"kind": "cancel"},)
        assert link.attention == ()


def test_a_subscription_resumes_where_it_stood() -> None:
    """After a lost connection an inbox is subscribed from its last letter; a letter that comes twice is told once."""

    def inbox(peer: Peer, request: Request) -> None:
        after = request.params[0]["after_seq"]
        peer.reply(request, {})
        letters = [1, 2] if not peer.number else [2, 3]
        for seq in letters:
            peer.notify("inbox", {"swarm_id": "me", "seq": seq})
        if not peer.number:
            assert after == 0
            peer.close()
        else:
            assert after in (1, 2)

    with serving(inbox) as server, Link(server.path) as link:
        with link.subscribe(Feed("inbox", "coordinator.subscribe_inbox", swarm_id="me"), dict) as letters:
            assert [letters.receive(PATIENCE_S)["seq"] for _ in range(3)] == [1, 2, 3]  # type: ignore[index]
            with pytest.raises(DeadlineExceeded):
                letters.receive(0.01)
        assert letters.receive() is None


def test_a_reader_that_falls_behind_reads_its_inbox_again() -> None:
    """Letters beyond the queue are read from the daemon; board events beyond it are counted as lost."""

    def flood(peer: Peer, request: Request) -> None:
        if request.method == "coordinator.read_inbox":
            after = request.params[0]["after_seq"]
            messages = [{"seq": seq} for seq in range(after + 1, MAX_QUEUED + 11)][:50]
            peer.reply(
                request, {"messages": messages, "has_more": bool(messages) and messages[-1]["seq"] < MAX_QUEUED + 10}
            )
            return
        for seq in range(1, MAX_QUEUED + 11):
            peer.notify("inbox", {"swarm_id": "me", "seq": seq})
            peer.notify("board", {"n": seq})
        peer.reply(request, {})

    with serving(flood) as server, Link(server.path) as link:
        letters = link.subscribe(Feed("inbox", "coordinator.subscribe_inbox", swarm_id="me"), dict)
        seqs = [letters.receive(PATIENCE_S)["seq"] for _ in range(MAX_QUEUED + 10)]  # type: ignore[index]
        assert seqs == list(range(1, MAX_QUEUED + 11))
        assert letters.dropped == 0
        board = link.subscribe(Feed("board", "coordinator.subscribe_board"), dict)
        assert board.receive(PATIENCE_S) == {"n": 11}
        assert board.dropped == 10


def test_a_thread_in_a_subscription_also_reads_for_callers() -> None:
    """Calls of other threads are answered while one thread waits for a message, and the message comes through."""
    with serving(echo) as server, Link(server.path) as link, ThreadPoolExecutor(1) as pool:
        board = link.subscribe(Feed("board", "coordinator.subscribe_board"), dict)
        waiting = pool.submit(board.receive)
        assert [link.call("x.y", n) for n in range(100)] == [[n] for n in range(100)]
        server.peers[0].notify("board", {"event": "created"})
        assert waiting.result(PATIENCE_S) == {"event": "created"}


def test_closing_a_subscription_ends_the_thread_in_it() -> None:
    """A thread that waits in a subscription comes back with None when it is closed."""
    with serving(echo) as server, Link(server.path) as link, ThreadPoolExecutor(1) as pool:
        board = link.subscribe(Feed("board", "coordinator.subscribe_board"), dict)
        waiting = pool.submit(board.receive)
        board.close()
        assert waiting.result(PATIENCE_S) is None


def test_a_forked_child_has_a_connection_of_its_own() -> None:
    """A child's calls do not mix with the parent's; the parent's subscriptions have ended in it."""
    with serving(echo) as server, Link(server.path) as link:
        board = link.subscribe(Feed("board", "coordinator.subscribe_board"), dict)
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                ok = link.call("x.y", 7) == [7]
                try:
                    board.receive(PATIENCE_S)
                except ConnectionLost:
                    os.write(write, b"ok" if ok else b"no")
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            assert file.read() == b"ok"
        os.waitpid(pid, 0)
        assert link.call("x.y", 8) == [8]
        assert len(server.peers) == 2


def test_an_inherited_connection_is_used_by_plain_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `IFBUS_FD` the client speaks on the connection that its parent made, and takes its turn."""
    with serving(echo) as server, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.path))
        turn_read, turn_write = os.pipe()
        os.write(turn_write, b"\0")
        monkeypatch.setenv("IFBUS_FD", f"{sock.fileno()},{turn_read},{turn_write}")
        for n in range(2):
            with Link() as link:
                assert link.call("x.y", n) == [n]
        with Link(), pytest.raises(Unavailable, match="another process"):
            Link(timeout=0.05).connect()
        monkeypatch.setenv("IFBUS_FD", "seven")
        with pytest.raises(InvalidParams, match="IFBUS_FD"):
            Link()
        os.close(turn_read)
        os.close(turn_write)
        assert len(server.peers) == 1


def test_what_does_not_fit_into_a_message_is_refused_here() -> None:
    """A request beyond 64 KiB is refused before anything is sent, and the connection goes on."""
    from ifbus.errors import LimitExceeded

    with serving(echo) as server, Link(server.path) as link:
        with pytest.raises(LimitExceeded):
            link.call("x.y", b"x" * 70_000)
        assert link.call("x.y", 1) == [1]


def test_calls_take_parameters_one_way() -> None:
    """Positional and keyword parameters at once are a mistake of the caller's."""
    with pytest.raises(TypeError, match="not both"):
        Link("/nowhere").call("x.y", 1, a=2)


def test_threads_that_connect_together_make_one_connection() -> None:
    """Eight threads whose first calls come at once share one connection."""
    with serving(echo) as server:
        link = Link(server.path)
        start = threading.Barrier(8)

        def ask(n: int) -> Any:
            start.wait(PATIENCE_S)
            return link.call("x.y", n)

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(ask, range(8), timeout=PATIENCE_S)) == [[n] for n in range(8)]
        assert len(server.peers) == 1
        link.close()

"""What one client sees of a served socket."""

from __future__ import annotations

import gc
import logging
import os
import socket
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import (
    AlreadyClaimed,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    Internal,
    InvalidParams,
    InvalidRequest,
    LimitExceeded,
    Overloaded,
    PermissionDenied,
    Unavailable,
    UnknownMethod,
)
from ifbusd.rpc.connection import Connection
from ifbusd.rpc.limits import RpcLimits
from tests.integration.rpc.serving import Client, Serving, serving

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def until(is_so: Any) -> None:
    """Wait until a condition holds."""
    while not is_so():
        await trio.sleep(0.001)


async def ping(client: Client, times: int) -> None:
    """Call so often, one after the other."""
    for _ in range(times):
        assert await client.call("daemon.ping") == "pong"


async def test_calls_by_position_and_by_name(tmp_path: Path) -> None:
    """Both ways of giving parameters reach the handler, and the answer comes back."""
    async with serving(tmp_path) as served, served.client() as client:
        assert await client.call("daemon.ping") == "pong"
        assert await client.call("probe.echo", [1, b"x"]) == [1, b"x"]
        assert await client.call("probe.echo", value={"a": 1.5}) == {"a": 1.5}


async def test_a_wrong_request_is_answered_and_the_connection_goes_on(tmp_path: Path) -> None:
    """Unknown methods and wrong parameters name what is nearest and what was expected."""
    async with serving(tmp_path) as served, served.client() as client:
        with pytest.raises(UnknownMethod) as unknown:
            await client.call("daemon.pnig")
        assert unknown.value.data["nearest"] == "daemon.ping"
        with pytest.raises(InvalidParams) as invalid:
            await client.call("probe.push", count="three")
        assert invalid.value.data["param"] == "count"
        await client.send(b"\x93\x00\x05\xa1a")
        with pytest.raises(InvalidRequest):
            await client.answer(5)
        assert await client.call("daemon.ping") == "pong"


async def test_a_refusal_arrives_with_its_figures(tmp_path: Path) -> None:
    """The client gets the error that the handler raised."""
    async with serving(tmp_path) as served, served.client() as client:
        with pytest.raises(AlreadyClaimed) as refusal:
            await client.call("probe.refuse")
        assert refusal.value.data == {"owner": "docs", "token": 41}


@pytest.mark.parametrize("method", ["probe.fail", "probe.unpackable"])
async def test_a_bug_is_internal_with_an_id_and_no_details(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """The log has the traceback under the id that the client got; connection and others go on."""
    async with serving(tmp_path) as served, served.client() as client:
        with pytest.raises(Internal) as bug:
            await client.call(method)
        assert "secret" not in str(bug.value.to_wire())
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert vars(record)["id"] == bug.value.data["id"]
        assert record.exc_info is not None
        assert await client.call("daemon.ping") == "pong"


async def test_an_answer_that_does_not_fit_is_a_limit(tmp_path: Path) -> None:
    """The largest answer passes, a larger one is refused with both figures."""
    async with serving(tmp_path) as served, served.client() as client:
        assert len(await client.call("probe.big", 65_000)) == 65_000
        with pytest.raises(LimitExceeded) as too_long:
            await client.call("probe.big", 70_000)
        assert too_long.value.data["allowed"] == 65_536


async def test_requests_sent_together_run_side_by_side(tmp_path: Path) -> None:
    """The first waits for what the second does, and the answers come in the order in which they are ready."""
    async with serving(tmp_path) as served, served.client() as client:
        first, a = client.request("probe.wait_inline")
        second, b = client.request("probe.open_gate")
        await client.send(a + b)
        assert await client.answer(second) == "opened"
        assert await client.answer(first) == "open"


async def test_long_looks_of_one_user_come_one_after_another(tmp_path: Path) -> None:
    """Whatever the connection, so that their slices do not add up in one turn of the loop; short requests pass between them."""
    async with serving(tmp_path) as served, served.client() as first, served.client() as second:
        looks = [(client, await client.start("probe.look")) for client in (first, second) for _ in range(8)]
        assert await second.call("probe.echo", 1) == 1
        assert served.probe.looked < 16
        assert [await client.answer(msgid) for client, msgid in looks] == [1] * 16


async def test_a_request_that_waits_holds_up_nobody(tmp_path: Path) -> None:
    """What may wait, or was asked to, runs beside what its connection sends later."""
    async with serving(tmp_path) as served, served.client() as client:
        waiting = [
            await client.start("probe.wait"),
            await client.start("probe.wait_asked", wait_ms=1),
            await client.start("probe.wait_later"),
        ]
        await until(lambda: served.probe.waiting == 3)
        assert await client.call("probe.open_gate") == "opened"
        for msgid in waiting:
            assert await client.answer(msgid) == "open"
        assert await client.call("probe.wait_asked") == "open"


@pytest.mark.parametrize("method", ["probe.wait", "probe.wait_later"])
async def test_cancel_gives_one_request_up(tmp_path: Path, method: str) -> None:
    """The one that was named ends as cancelled, the other goes on, and naming none is ignored."""
    async with serving(tmp_path) as served, served.client() as client:
        first, second = await client.start(method), await client.start(method)
        await until(lambda: served.probe.waiting == 2)
        for bad in ([2, "$/cancel", [999]], [2, "$/cancel", []], [2, "$/cancel", ["x"]]):
            await client.send(client.protocol._packer.pack(bad))
        await client.send(client.protocol.cancel(first))
        with pytest.raises(Cancelled):
            await client.answer(first)
        assert served.probe.cancelled == 1
        await client.call("probe.open_gate")
        assert await client.answer(second) == "open"


@pytest.mark.parametrize("method", ["probe.wait", "probe.wait_inline", "probe.wait_later"])
async def test_a_timeout_ends_a_request(tmp_path: Path, method: str) -> None:
    """In time the request runs as if it had none; beyond it, the answer is deadline_exceeded and nothing of it goes on."""
    async with serving(tmp_path) as served, served.client() as client:
        with pytest.raises(DeadlineExceeded):
            await client.call(method, meta={"timeout_ms": 5})
        assert (served.probe.waiting, served.probe.cancelled) == (0, 1)
        served.probe.gate.set()
        assert await client.call(method, meta={"timeout_ms": 86_400_000}) == "open"


@pytest.mark.parametrize(
    "meta",
    [
        {"timeout_ms": 0},
        {"timeout_ms": "5"},
        {"timeout_ms": True},
        {"timeout_ms": 86_400_001},
        {"idempotency_key": ""},
        {"idempotency_key": "k" * 129},
        {"idempotency_key": 5},
    ],
)
async def test_what_a_request_says_of_itself_is_checked(tmp_path: Path, meta: dict[str, Any]) -> None:
    """A timeout or key that cannot be honoured is refused by name, before anything is done."""
    async with serving(tmp_path) as served, served.client() as client:
        with pytest.raises(InvalidParams) as refusal:
            await client.call("probe.note", meta=meta)
        assert refusal.value.data["param"] == next(iter(meta))
        assert served.probe.callers == []


async def test_the_same_call_has_the_same_body(tmp_path: Path) -> None:
    """The hash behind an idempotency key follows method and arguments, not how they were written down."""
    async with serving(tmp_path) as served, served.client() as client:
        key = {"idempotency_key": "k-1"}
        await client.call("probe.note", 5, meta=key)
        await client.call("probe.note", value=5, meta={**key, "timeout_ms": 1000, "unknown": 1})
        await client.call("probe.note", 6, meta=key)
        await client.call("probe.note", 5)
        by_position, by_name, other, without = served.probe.callers
        assert by_position.idempotency_key == "k-1"
        assert by_position.body_hash == by_name.body_hash
        assert len(by_position.body_hash) == 32
        assert other.body_hash != by_position.body_hash
        assert (without.idempotency_key, without.body_hash) == (None, b"")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (TRACEPARENT, TRACEPARENT),
        ("01" + TRACEPARENT[2:] + "-what-comes-later", "01" + TRACEPARENT[2:]),
        (TRACEPARENT + "-more", None),
        ("ff" + TRACEPARENT[2:], None),
        (TRACEPARENT.upper(), None),
        ("00-" + "0" * 32 + "-00f067aa0ba902b7-01", None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", None),
        ("x" * 10_000, None),
        (5, None),
    ],
)
async def test_a_traceparent_is_passed_on_or_ignored(tmp_path: Path, given: Any, kept: str | None) -> None:
    """A valid one reaches the handler; an invalid one is no error, as the W3C says."""
    async with serving(tmp_path) as served, served.client() as client:
        await client.call("probe.note", meta={"traceparent": given})
        assert served.probe.callers[0].traceparent == kept


async def test_an_id_may_not_be_used_twice_at_once(tmp_path: Path) -> None:
    """A second request under the id of a running one is refused; afterwards the id is free."""
    async with serving(tmp_path) as served, served.client() as client:
        msgid, data = client.request("probe.wait")
        await client.send(data)
        await until(lambda: served.probe.waiting == 1)
        await client.send(data)
        with pytest.raises(InvalidRequest):
            await client.answer(msgid)
        served.probe.gate.set()
        assert await client.answer(msgid) == "open"
        await client.send(data)
        assert await client.answer(msgid) == "open"


async def test_unknown_notifications_and_stray_responses_are_ignored(tmp_path: Path) -> None:
    """Nothing is answered to them, and the next request is."""
    async with serving(tmp_path) as served, served.client() as client:
        await client.send(client.protocol.notify("nvim_set_client_info", ["x", {}]))
        await client.send(client.protocol.respond(3, "nobody asked"))
        assert await client.call("daemon.ping") == "pong"
        assert (client.notifications, client.responses) == ([], [])


async def test_only_operators_do_what_operators_do(tmp_path: Path) -> None:
    """Without the role the call is refused and goes on record; with it, by user or by group, it runs."""
    async with serving(tmp_path) as served, served.client() as client:
        with pytest.raises(PermissionDenied) as denied:
            await client.call("probe.stop", "scout")
        assert denied.value.data["role"] == "operator"
        assert served.witnessed == [("probe.stop", "scout", "permission_denied")]
    for uids, gids in (({os.getuid()}, set[int]()), (set[int](), {os.getgid()})):
        roles = serving(tmp_path, operator_uids=frozenset(uids), operator_gids=frozenset(gids))
        async with roles as served, served.client() as client:
            assert await client.call("probe.stop", swarm_id="scout") == "stopped scout"
            assert served.witnessed == []


# --- limits ------------------------------------------------------------------------------------------


async def test_a_user_beyond_its_rate_is_told_when_to_come_back(tmp_path: Path) -> None:
    """The burst passes, the next request is overloaded with a time, and after that time it passes."""
    async with serving(tmp_path, limits=RpcLimits(requests_per_s=20, burst_requests=100)) as served:
        async with served.client() as client:
            await ping(client, 100)
            with pytest.raises(Overloaded) as refusal:
                await ping(client, 100)
            assert 0 < refusal.value.retry_after_ms <= 100
            await trio.sleep(refusal.value.retry_after_ms / 1000)
            assert await client.call("daemon.ping") == "pong"
        async with served.client() as again:
            with pytest.raises(Overloaded):
                await ping(again, 100)


async def test_short_requests_pass_however_many_are_in_the_pipe(tmp_path: Path) -> None:
    """More than may be in flight, sent at once: they are read as fast as they are answered, and none is refused."""
    async with (
        serving(tmp_path, limits=RpcLimits(in_flight=4, slot_wait_ms=10_000)) as served,
        served.client() as client,
    ):
        requests = [client.request("probe.turn", number) for number in range(200)]
        await client.send(b"".join(data for _, data in requests))
        for number, (msgid, _) in enumerate(requests):
            assert await client.answer(msgid) == number


@pytest.mark.parametrize("method", ["probe.wait", "probe.wait_later"])
async def test_waits_beyond_the_limit_are_refused(tmp_path: Path, method: str) -> None:
    """A connection full of waits gets overloaded for one more, still hears cancel, and then has room."""
    async with serving(tmp_path, limits=RpcLimits(in_flight=3, slot_wait_ms=1)) as served, served.client() as client:
        waiting = [await client.start(method) for _ in range(3)]
        with pytest.raises(Overloaded) as refusal:
            await client.call(method)
        assert (refusal.value.data["used"], refusal.value.data["allowed"]) == (3, 3)
        await client.send(client.protocol.cancel(waiting[0]))
        with pytest.raises(Cancelled):
            await client.answer(waiting[0])
        served.probe.gate.set()
        assert await client.call(method) == "open"


async def test_a_user_has_only_so_many_connections(tmp_path: Path) -> None:
    """One more is told why and closed; when another ends, there is room again."""
    async with serving(tmp_path, limits=RpcLimits(connections_per_uid=2)) as served:
        async with served.client() as first, served.client() as second:
            await first.call("daemon.ping")
            await second.call("daemon.ping")
            async with served.client() as third:
                await third.read_to_end()
                (told,) = third.notifications
                assert told.method == "closing"
                assert told.params[0]["code"] == "overloaded"
                assert told.params[0]["data"]["allowed"] == 2
            second.sock.close()
            await until(lambda: len(served.server.statistics().sessions) == 1)
            async with served.client() as fourth:
                assert await fourth.call("daemon.ping") == "pong"
        assert served.server.statistics().refused == 1


async def test_an_unfinished_message_has_a_deadline(mock_clock: MockClock, tmp_path: Path) -> None:
    """A message that trickles in ends its connection; one that is finished in time, and an idle connection, do not."""
    limits = RpcLimits(unfinished_ms=200)
    async with serving(tmp_path, limits=limits) as served, served.client() as idle, served.client() as trickling:
        async with served.client() as slow:
            _, data = slow.request("daemon.ping")
            await slow.send(data[:3])
            await wait_all_tasks_blocked()
            mock_clock.jump(0.19)
            await slow.send(data[3:])
            assert await slow.answer(0) == "pong"
        for byte in trickling.request("probe.echo", "x" * 1000)[1][:20]:
            await trickling.send(bytes([byte]))
            await wait_all_tasks_blocked()
            mock_clock.jump(0.01)
        await trickling.read_to_end()
        assert trickling.notifications[0].method == "closing"
        assert trickling.responses == []
        assert await idle.call("daemon.ping") == "pong"


# --- pushes and slow readers -------------------------------------------------------------------------


async def test_pushes_come_in_order_and_before_the_answer(tmp_path: Path) -> None:
    """More than the socket takes at once waits in the queue, in order."""
    async with serving(tmp_path, limits=RpcLimits(send_queue_bytes=16 << 20)) as served, served.client() as client:
        assert await client.call("probe.push", 300, 5000) == 300
        assert [notification.params[0] for notification in client.notifications] == list(range(300))


async def test_who_does_not_read_pushes_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the queue's bound the connection ends with a logged reason, and nobody else notices."""
    # Nothing else may end it: what is not taken in time does so, too.
    limits = RpcLimits(send_queue_bytes=64 << 10, write_ms=600_000)
    async with serving(tmp_path, limits=limits) as served:
        async with served.client() as deaf, served.client() as other:
            await deaf.start("probe.watch_close")
            await deaf.start("probe.push", 1000, 5000)
            await until(lambda: served.probe.closed)
            assert await other.call("daemon.ping") == "pong"
            with pytest.raises(ConnectionLost):
                await deaf.answer(1)
        assert "dropped a connection" in caplog.text


async def test_answers_wait_for_a_slow_reader(tmp_path: Path) -> None:
    """Large answers to a reader who takes its time all arrive: the daemon reads no further meanwhile."""
    limits = RpcLimits(send_queue_bytes=64 << 10)
    async with serving(tmp_path, limits=limits) as served, served.client() as client:
        requests = [client.request("probe.big", 60_000) for _ in range(40)]
        await client.send(b"".join(data for _, data in requests))
        await wait_all_tasks_blocked(0.01)
        (session,) = served.server.statistics().sessions
        assert session.queued_bytes < 5 * (64 << 10)
        for msgid, _ in requests:
            assert len(await client.answer(msgid)) == 60_000


async def test_who_never_reads_its_answers_is_dropped(tmp_path: Path) -> None:
    """An answer that nobody takes ends the connection after its time."""
    async with serving(tmp_path, limits=RpcLimits(write_ms=100)) as served, served.client() as deaf:
        await deaf.call("probe.watch_close")
        for _ in range(20):
            await deaf.start("probe.big", 60_000)
        await until(lambda: served.probe.closed)


# --- the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["probe.wait", "probe.wait_later"])
async def test_what_waits_for_a_client_that_is_gone_ends(tmp_path: Path, method: str) -> None:
    """Closing cancels what is under way and calls who wanted to know."""
    async with serving(tmp_path) as served:
        async with served.client() as client:
            await client.call("probe.watch_close")
            await client.start(method)
            await until(lambda: served.probe.waiting == 1)
        await until(lambda: served.probe.closed == [1])
        assert served.probe.cancelled == 1
        assert served.server.statistics().sessions == ()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x94\x00\x01",
        b"\xc1" * 4,
        msgpack.packb([0, 1, "daemon.ping", []]),
        msgpack.packb([0, 1, "probe.refuse", []]),
        msgpack.packb([0, 1, "probe.wait", []]),
        msgpack.packb([0, 1, "probe.watch_close", []]) + msgpack.packb([0, 2, "probe.push", [1000, 5000]]),
    ],
    ids=["nothing", "half a message", "garbage", "a request", "a refusal", "a wait", "a deaf one"],
)
async def test_what_a_connection_held_is_freed_when_it_ends(tmp_path: Path, sent: bytes) -> None:
    """However a connection ends, its memory does not wait for the garbage collector, which in a quiet daemon never comes."""
    async with serving(tmp_path, limits=RpcLimits(send_queue_bytes=64 << 10)) as served:
        gc.collect()
        gc.disable()
        try:
            async with served.client() as client:
                await client.send(sent)
                await until(lambda: served.server.statistics().accepted)
                await wait_all_tasks_blocked(0.01)
            await until(lambda: not served.server.statistics().sessions)
            await wait_all_tasks_blocked(0.01)
            assert [found for found in gc.get_objects() if type(found) is Connection] == []
        finally:
            gc.enable()


async def test_a_half_closed_client_still_gets_its_answers(tmp_path: Path) -> None:
    """Sending everything and shutting down the sending side, as a shell pipe does, loses no answer."""
    async with serving(tmp_path) as served, served.client() as client:
        first, a = client.request("probe.wait")
        second, b = client.request("probe.turn", 5)
        await client.send(a + b)
        client.sock.shutdown(socket.SHUT_WR)
        assert await client.answer(second) == 5
        served.probe.gate.set()
        assert await client.answer(first) == "open"
        await client.read_to_end()


async def test_a_stopping_server_finishes_what_it_began(tmp_path: Path) -> None:
    """Running requests are answered within the grace, new ones get unavailable, new connections none, then all end."""
    async with serving(tmp_path) as served, served.client() as client:
        msgid = await client.start("probe.wait")
        await until(lambda: served.probe.waiting == 1)
        served.server.stop(grace_ms=60_000)
        with pytest.raises(Unavailable):
            await client.call("daemon.ping")
        await until(lambda: _refuses(served))
        served.probe.gate.set()
        assert await client.answer(msgid) == "open"
        await client.read_to_end()
        assert client.notifications[-1].params[0]["code"] == "unavailable"


async def test_the_grace_has_an_end(tmp_path: Path) -> None:
    """What is not done when the grace is over is cut, after the reason was told."""
    async with serving(tmp_path) as served, served.client() as client:
        await client.start("probe.wait")
        await until(lambda: served.probe.waiting == 1)
        served.server.stop(grace_ms=10)
        await client.read_to_end()
        assert client.responses == []
        assert client.notifications[-1].method == "closing"
        assert served.probe.cancelled == 1


@pytest.mark.parametrize("turns", range(6))
async def test_a_server_stops_while_a_client_arrives(tmp_path: Path, turns: int) -> None:
    """Wherever the new connection is on its way in, the server ends and so does the connection."""
    for attempt in range(20):  # which of two ready tasks goes first is chance
        directory = tmp_path / str(attempt)
        directory.mkdir()
        async with serving(directory) as served:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(served.path))
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                served.server.stop(grace_ms=0)
                await until(lambda served=served: not served.server.statistics().sessions and _refuses(served))


def _refuses(served: Serving) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(served.path))
        except OSError:
            return True
        return False


async def test_the_statistics_tell_who_is_there(tmp_path: Path) -> None:
    """Each session with its peer and its counts."""
    async with serving(tmp_path) as served, served.client() as client:
        await client.call("daemon.ping")
        with pytest.raises(AlreadyClaimed):
            await client.call("probe.refuse")
        await client.start("probe.wait")
        await until(lambda: served.probe.waiting == 1)
        statistics = served.server.statistics()
        assert (statistics.accepted, statistics.refused, statistics.users) == (1, 0, 1)
        (session,) = statistics.sessions
        assert (session.uid, session.pid) == (os.getuid(), os.getpid())
        assert (session.requests, session.refusals, session.in_flight, session.queued_bytes) == (3, 1, 1, 0)


async def test_many_clients_at_once(tmp_path: Path) -> None:
    """64 clients of one user are served side by side."""
    async with serving(tmp_path) as served:

        async def work(number: int) -> None:
            async with served.client() as client:
                for count in range(20):
                    assert await client.call("probe.turn", number * 100 + count) == number * 100 + count

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(work, number)

"""The asynchronous client's worker loop, on asyncio and on trio, against a real daemon."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import ifbus
from ifbus.errors import LeaseLost
from tests.integration.client.conftest import PATIENCE_S, World

Run = Callable[[Callable[[], Awaitable[None]]], None]
GUESTS = Path(__file__).parents[2] / "guests"


def test_a_worker_does_its_tasks(world: World, run: Run) -> None:
    """Four at a time, each in a task of its own: claimed, paid for, executed in a sandbox, completed."""
    tasks = {world.add(payload={"text": "one two"}) for _ in range(6)}

    async def test() -> None:
        async with (
            ifbus.AsyncClient(world.daemon.socket) as bus,
            bus.register(world.swarm, capabilities=[world.skill], budget_usd="5") as swarm,
            anyio.create_task_group() as group,
        ):

            async def work(task: ifbus.AsyncClaim[dict[str, str]]) -> None:
                async with task:
                    await task.progress(25, "read it")
                    async with task.spend("llm", estimate_usd="0.12") as cost:
                        await cost.settle(usd="0.09")
                    out = await task.execute(GUESTS / "wordcount.wasm", input=task.spec)
                    await task.complete(out.output)
                tasks.remove(task.task_id)
                if not tasks:
                    swarm.drain()

            async for task in swarm.tasks(dict, max_in_flight=4):
                group.start_soon(work, task)

    run(test)
    assert not tasks


def test_leaving_the_block_decides(world: World, run: Run) -> None:
    """An exception fails the task; no verdict, and a cancellation, give it back."""
    failing, silent, cancelled = (world.add() for _ in range(3))

    async def test() -> None:
        async with ifbus.AsyncClient(world.daemon.socket) as bus:
            swarm = await bus.register(world.swarm, capabilities=[world.skill])
            claim = await swarm.claim(failing)
            assert claim
            with pytest.raises(KeyError):
                async with claim:
                    raise KeyError("mine")
            claim = await swarm.claim(silent)
            assert claim
            with pytest.warns(RuntimeWarning, match="without a verdict"):
                async with claim:
                    pass
            claim = await swarm.claim(cancelled)
            assert claim
            with anyio.CancelScope() as scope:
                async with claim:
                    scope.cancel()
                    await anyio.sleep_forever()
            assert [(await bus.get_task(task_id)).state for task_id in (failing, silent, cancelled)] == [
                "failed",
                "ready",
                "ready",
            ]
            assert await swarm.close() == ()

    run(test)


def test_a_cancelled_wait_holds_no_task(world: World, run: Run) -> None:
    """A wait for a task that is cancelled leaves none behind: whatever is claimed all the same is given back."""

    async def test() -> None:
        async with (
            ifbus.AsyncClient(world.daemon.socket) as bus,
            bus.register(world.swarm, capabilities=[world.skill]) as swarm,
        ):
            for _ in range(10):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:

                        async def wait_for_one() -> None:
                            async for task in swarm.tasks():
                                # The answer was there before the cancel: a holder who is cancelled gives back.
                                async with task:
                                    await anyio.sleep_forever()

                        group.start_soon(wait_for_one)
                        while not swarm._claiming:
                            await anyio.lowlevel.checkpoint()
                        await bus.create_task("x", capabilities=[world.skill], timeout=PATIENCE_S)
                        scope.cancel()
                page = await bus.list_tasks(holder=world.swarm)
                while page.total:
                    page = await bus.list_tasks(holder=world.swarm)
                claim = await swarm.claim((await bus.list_tasks(states=["ready"])).tasks[-1].task_id)
                assert claim
                await claim.complete()

    run(test)


def test_closing_ends_tasks_that_wait(world: World, run: Run) -> None:
    """A swarm that is closed while a task waits for work ends its loop, and drops what it held."""
    held = world.add()

    async def test() -> None:
        async with ifbus.AsyncClient(world.daemon.socket) as bus:
            swarm = await bus.register(world.swarm, capabilities=[world.skill])
            claim = await swarm.claim(held)
            assert claim
            ended = []

            async def loop() -> None:
                async for _ in swarm.tasks(max_in_flight=2):
                    pytest.fail("there is nothing to do")
                ended.append(True)

            async with anyio.create_task_group() as group:
                group.start_soon(loop)
                while not swarm._claiming:
                    await anyio.lowlevel.checkpoint()
                assert await swarm.close() == (held,)
            assert ended == [True]
            with pytest.raises(LeaseLost):
                await claim.progress(50)

    run(test)


def test_a_busy_loop_keeps_its_claims(world: World, run: Run) -> None:
    """A loop that is blocked for more than a lease still holds its claim: a thread renews."""
    task_id = world.add()

    async def test() -> None:
        async with (
            ifbus.AsyncClient(world.daemon.socket) as bus,
            bus.register(world.swarm, capabilities=[world.skill], lease_ms=2_000) as swarm,
        ):
            claim = await swarm.claim(task_id)
            assert claim
            until = swarm._tenure.proven_until_s + 2.0
            world.wait_for(lambda: swarm._tenure.proven_until_s > until)  # blocks the loop
            await claim.complete()

    run(test)


def test_an_inherited_connection_carries_the_renewals_too(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no second connection can be made, the session is renewed over the one that there is."""
    task_id = world.add()

    async def test() -> None:
        async with (
            ifbus.AsyncClient() as bus,
            bus.register(world.swarm, capabilities=[world.skill], lease_ms=2_000) as swarm,
        ):
            claim = await swarm.claim(task_id)
            assert claim
            until = swarm._tenure.proven_until_s + 2.0
            while swarm._tenure.proven_until_s < until:
                await bus.ping()
            await claim.complete()

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(world.daemon.socket))
        monkeypatch.setenv("IFBUS_FD", str(sock.fileno()))
        run(test)


def test_letters_come_as_they_are_sent(world: World, run: Run) -> None:
    """Letters arrive in order and are acknowledged when the next is asked for; the iterator ends with the swarm."""

    async def test() -> None:
        async with ifbus.AsyncClient(world.daemon.socket) as bus:
            swarm = await bus.register(world.swarm, capabilities=[world.skill])
            for number in range(3):
                await bus.broadcast("news", {"n": number}, capabilities=[world.skill])
            letters = swarm.inbox()
            assert [(await anext(letters)).body["n"] for _ in range(2)] == [0, 1]
            assert [letter.body["n"] for letter in (await bus.read_inbox(world.swarm)).messages] == [1, 2]
            board = await bus.subscribe_board()
            await bus.create_task("x")
            change = await board.receive(PATIENCE_S)
            assert change is not None
            assert change["event"] == "created"
            await swarm.close()
            with pytest.raises(StopAsyncIteration):
                await anext(letters)

    run(test)


def test_a_stopped_daemon_costs_the_lease_and_not_the_program(own_world: World, run: Run) -> None:
    """While the daemon is stopped, a call under way ends with LeaseLost at the lease's end; then the client goes on."""
    task_id = own_world.add()

    async def test() -> None:
        async with ifbus.AsyncClient(own_world.daemon.socket) as bus:
            swarm = await bus.register(own_world.swarm, capabilities=[own_world.skill], lease_ms=2_000)
            claim = await swarm.claim(task_id)
            assert claim
            own_world.daemon.pause()
            started_s = time.monotonic()

            async def work() -> None:
                async with claim:
                    while True:
                        await claim.progress(50)

            with pytest.raises(LeaseLost):
                await work()
            assert time.monotonic() - started_s < bus.timeout / 2
            assert await swarm.close() == ()
            own_world.daemon.go_on()
            assert await bus.ping() == "pong"

    run(test)


def test_work_goes_on_over_a_crash_of_the_daemon(own_world: World, run: Run) -> None:
    """Killed and started again on its state, the daemon finds sessions and claims; no letter is lost or told twice."""
    task_id = own_world.add()

    async def test() -> None:
        async with (
            ifbus.AsyncClient(own_world.daemon.socket) as bus,
            bus.register(own_world.swarm, capabilities=[own_world.skill]) as swarm,
        ):
            letters = await bus.subscribe_inbox(own_world.swarm)
            claim = await swarm.claim(task_id)
            assert claim
            for number in range(2):
                await bus.broadcast("news", {"n": number}, capabilities=[own_world.skill])
            seen = [await letters.receive(PATIENCE_S)]
            own_world.daemon.kill()
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, own_world.daemon.start)
                await bus.broadcast("news", {"n": 2}, capabilities=[own_world.skill])
            seen += [await letters.receive(PATIENCE_S) for _ in range(2)]
            assert [letter.body["n"] for letter in seen if letter is not None] == [0, 1, 2]
            await claim.complete()

    run(test)


def test_a_session_is_bound_to_its_process(own_world: World, run: Run) -> None:
    """By itself, and again after the daemon was restarted; a process can be handed over, too."""

    async def test() -> None:
        async with (
            ifbus.AsyncClient(own_world.daemon.socket) as bus,
            bus.register(own_world.swarm, capabilities=[own_world.skill], lease_ms=600_000) as swarm,
        ):
            task_id = own_world.add()
            assert await swarm.claim(task_id)
            await anyio.to_thread.run_sync(own_world.daemon.kill)
            await anyio.to_thread.run_sync(own_world.daemon.start)
            deadline = time.monotonic() + PATIENCE_S
            while not ((await bus.get_task(task_id)).clocks or {})["alive"]:
                assert time.monotonic() < deadline
                await anyio.sleep(0.01)
            async with await anyio.open_process(["sleep", "600"]) as child:
                pidfd = os.pidfd_open(child.pid)
                await bus.hand_over(pidfd)
                os.close(pidfd)
                bound = await bus.bind_session(own_world.swarm, swarm.registration.resume_token, "handed")
                assert bound is not None
                assert bound["pid"] == child.pid
                child.kill()
            while own_world.state(task_id) != "ready":
                assert time.monotonic() < deadline
                await anyio.sleep(0.01)

    run(test)

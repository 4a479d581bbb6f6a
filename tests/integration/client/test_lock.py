"""Named resources as a ``with`` block: one holder at a time, given back however the block ends."""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import pytest

import ifbus
from ifbus.errors import ConnectionLost, InvalidParams, LeaseLost, ResourceBusy
from tests.integration.client.conftest import PATIENCE_S, World

# Short, so that a renewal soon tells that the session has ended.
LEASE_MS = 3_000

Run = Callable[[Callable[[], Awaitable[None]]], None]


def _held(world: World, prefix: str) -> dict[str, str]:
    return {lock.resource: lock.swarm_id for lock in world.bus.list_resources(prefix=prefix).resources}


def test_a_lock_keeps_other_swarms_away_while_its_block_runs(world: World) -> None:
    """All names or none; who waits gets them when they are free, with a higher fence."""
    gpu, file = f"gpu:{world.swarm}", f"file:{world.swarm}/a.py"
    with (
        ifbus.Client(world.daemon.socket) as other,
        world.bus.register(world.swarm) as swarm,
        other.register(f"{world.swarm}-b") as rival,
    ):
        lock = swarm.lock(gpu, file)
        assert (lock.resources, lock.fences, lock.is_held) == ((gpu, file), {}, False)
        with pytest.raises(LeaseLost, match="not held"):
            lock.check()
        with lock as held:
            held.check()
            first = held.fences
            assert set(first) == {gpu, file}
            with pytest.raises(ResourceBusy), rival.lock("port:1", gpu):
                raise AssertionError
            assert _held(world, "port:1") == {}
            later: dict[str, int] = {}

            def wait() -> None:
                with rival.lock(gpu, wait=PATIENCE_S) as mine:
                    later.update(mine.fences)

            waiting = threading.Thread(target=wait)
            waiting.start()
            world.wait_for(lambda: any(edge["why"] == "resource" for edge in world.bus.waits().edges))
            assert later == {}
        assert not lock.is_held
        waiting.join(PATIENCE_S)
        assert later[gpu] > first[gpu]
        with lock:  # again
            assert lock.fences[gpu] > later[gpu]
    assert _held(world, gpu) == {}


def test_two_blocks_of_one_session_do_not_share_a_lock(world: World) -> None:
    """The daemon knows swarms, not threads: the second is refused by the client, and the first keeps what it holds."""
    gpu = f"gpu:{world.swarm}"
    with world.bus.register(world.swarm) as swarm:
        with pytest.raises(InvalidParams), swarm.lock():
            raise AssertionError
        with pytest.raises(InvalidParams, match="each is an argument"):
            swarm.lock([gpu])  # type: ignore[arg-type]
        for wait in (math.nan, math.inf, -1, "1"):
            with pytest.raises(InvalidParams, match="a wait is in seconds"), swarm.lock(gpu, wait=wait):  # type: ignore[arg-type]
                raise AssertionError
        assert not swarm.locked
        with swarm.lock(gpu) as held:
            for again in (held, swarm.lock("port:2", gpu)):
                with pytest.raises(ResourceBusy, match="this session holds it"), again:
                    raise AssertionError
            held.check()
            assert _held(world, gpu) == {gpu: world.swarm}
            with swarm.lock("port:2"):
                pass
        with swarm.lock(gpu):
            pass


def test_a_lock_that_was_lost_is_told_at_the_end_of_its_block(world: World) -> None:
    """By LeaseLost, or as a note to the block's own error; a session that was left has nothing to lose."""
    gpu = f"gpu:{world.swarm}"

    def take_away(held: ifbus.Lock) -> None:
        world.bus.release_resources(world.swarm, held.fences)

    def fail(held: ifbus.Lock) -> None:
        take_away(held)
        raise KeyError("mine")

    with world.bus.register(world.swarm) as swarm:
        with pytest.raises(LeaseLost, match="has ended"), swarm.lock(gpu) as held:
            take_away(held)
        with pytest.raises(KeyError) as error, swarm.lock(gpu) as held:
            fail(held)
        assert "had been lost" in error.value.__notes__[0]
        with swarm.lock(gpu):
            swarm.close()
    assert _held(world, gpu) == {}


def test_a_session_that_has_ended_waits_for_nothing(world: World) -> None:
    """Whoever waits for a lock or a task in it hears so at once, and holds neither when they come free."""
    gpu, task_id = f"gpu:{world.swarm}", world.add()
    with (
        ifbus.Client(world.daemon.socket) as other,
        other.register(f"{world.swarm}-b", capabilities=[world.skill]) as rival,
        rival.lock(gpu),
        world.bus.register(world.swarm, capabilities=[world.skill], lease_ms=LEASE_MS, bind="lease") as swarm,
        ThreadPoolExecutor(2) as pool,
    ):
        claim = rival.claim(task_id)
        assert claim
        waiting = [
            pool.submit(swarm.lock(gpu, wait=PATIENCE_S).__enter__),
            pool.submit(swarm.claim, task_id, wait=PATIENCE_S),
        ]
        world.wait_for(lambda: len(swarm._aborts) == len(waiting))
        other.end_session(world.swarm, swarm.registration.resume_token)
        for one in waiting:
            with pytest.raises(LeaseLost):
                one.result(PATIENCE_S)
        claim.complete()
    assert _held(world, gpu) == {}


def test_a_claim_takes_its_resources_with_it_or_not_at_all(world: World) -> None:
    """And gives them back with the task."""
    gpu, task_id = f"gpu:{world.swarm}", world.add()
    with (
        world.bus.register(world.swarm, capabilities=[world.skill]) as swarm,
        world.bus.register(f"{world.swarm}-b", capabilities=[world.skill]) as rival,
    ):
        with rival.lock(gpu):
            with pytest.raises(ResourceBusy):
                swarm.claim(task_id, resources=[gpu])
            assert world.state(task_id) == "ready"
        claim = swarm.claim(task_id, resources=[gpu])
        assert claim
        assert _held(world, gpu) == {gpu: world.swarm}
        claim.complete()
    assert _held(world, gpu) == {}


def test_a_lock_is_awaited_and_given_back_when_cancelled(world: World, run: Run) -> None:
    """In an event loop: as above; what is cancelled while it waits, or within its block, holds nothing."""
    gpu = f"gpu:{world.swarm}"

    async def test() -> None:
        async with (
            ifbus.AsyncClient(world.daemon.socket) as bus,
            bus.register(world.swarm) as swarm,
            bus.register(f"{world.swarm}-b") as rival,
        ):
            async with swarm.lock(gpu) as held:
                with pytest.raises(ResourceBusy):
                    async with rival.lock(gpu):
                        raise AssertionError
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:

                        async def cancel() -> None:
                            def is_waiting() -> bool:
                                return any(edge["why"] == "resource" for edge in world.bus.waits().edges)

                            await anyio.to_thread.run_sync(world.wait_for, is_waiting)
                            scope.cancel()

                        group.start_soon(cancel)
                        async with rival.lock(gpu, wait=PATIENCE_S):
                            raise AssertionError
                held.check()
            await anyio.to_thread.run_sync(world.wait_for, lambda: not rival.locked)  # it is sure of that
            with anyio.CancelScope() as scope:
                async with rival.lock(gpu):
                    scope.cancel()
                    await anyio.sleep_forever()
            assert (await bus.list_resources(prefix=gpu)).resources == ()

    run(test)


def test_a_lock_of_unknown_outcome_is_not_held(own_world: World) -> None:
    """The daemon dies before its answer comes: whether it took them or not, they come free, and can be had again."""
    world = own_world
    gpu = f"gpu:{world.swarm}"
    with ifbus.Client(world.daemon.socket, timeout=1.0) as bus, bus.register(world.swarm) as swarm:
        world.daemon.kill()
        with pytest.raises((ConnectionLost, ifbus.NoDaemon, ifbus.DeadlineExceeded)), swarm.lock(gpu):
            raise AssertionError
        assert list(swarm.locked) == [gpu]
        with pytest.raises(ResourceBusy), swarm.lock(gpu):
            raise AssertionError
        world.daemon.start()
        world.wait_for(lambda: not swarm.locked)
        with swarm.lock(gpu) as held:
            held.check()

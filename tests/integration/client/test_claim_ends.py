"""A holder whose claim somebody else ended hears it at once, also while it says nothing to the daemon."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import ifbus
from ifbus.errors import LeaseLost, NotReady
from tests.integration.client.conftest import PATIENCE_S, World

Run = Callable[[Callable[[], Awaitable[None]]], None]
# Its renewals, by which a lost claim would be found out too, are further apart than the test's patience.
LONG_LEASE_MS = 3_600_000
GUESTS = Path(__file__).parents[2] / "guests"
SLOW = ifbus.Limits(wall_ms=60_000)


def is_executing(world: World) -> bool:
    """Whether a sandbox of this test's swarm has something to do."""
    return any(
        (sandbox["swarm_id"], sandbox["state"]) == (world.swarm, "busy") for sandbox in world.bus.list_sandboxes()
    )


def test_a_busy_holder_hears_that_its_task_was_cancelled(world: World) -> None:
    """By a call of its own function, with the reason; then it can prove nothing and write nothing."""
    task_id = world.add()
    lost: list[tuple[str, LeaseLost]] = []
    told = threading.Event()

    def hear(handle: str, error: LeaseLost) -> None:
        lost.append((handle, error))
        told.set()

    with world.bus.register(
        world.swarm, capabilities=[world.skill], lease_ms=LONG_LEASE_MS, on_claim_lost=hear
    ) as swarm:
        claim = swarm.claim(task_id)
        assert claim
        claim.check()
        with ifbus.Client(world.daemon.socket) as other:
            assert other.cancel_task(task_id, reason="not wanted any more").state == "cancelled"
        assert told.wait(PATIENCE_S)
        [(handle, error)] = lost
        assert handle == claim.handle
        assert "was cancelled: not wanted any more" in error.message
        with pytest.raises(LeaseLost, match="not wanted any more"):
            claim.check()
        with pytest.raises(LeaseLost):
            claim.complete({"late": True})
        swarm.check()  # the session goes on
        again = swarm.claim(world.add())
        assert again
        again.complete()
    assert world.bus.get_task(task_id).result is None


def test_a_function_that_fails_as_it_hears_of_a_lost_claim_ends_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it raises is reported as the thread's; the session is renewed all the same, and the next loss is told."""
    raised: list[BaseException | None] = []
    told = threading.Semaphore(0)

    def fail(handle: str, _: LeaseLost) -> None:
        raise RuntimeError(handle)

    def report(args: threading.ExceptHookArgs) -> None:
        raised.append(args.exc_value)
        told.release()

    monkeypatch.setattr(threading, "excepthook", report)
    with world.bus.register(
        world.swarm, capabilities=[world.skill], lease_ms=LONG_LEASE_MS, on_claim_lost=fail
    ) as swarm:
        claims = [swarm.claim(world.add()), swarm.claim(world.add())]
        for claim in claims:
            assert claim
            with ifbus.Client(world.daemon.socket) as other:
                other.cancel_task(claim.task_id)
            assert told.acquire(timeout=PATIENCE_S)
        assert [str(error) for error in raised] == [claim.handle for claim in claims if claim]


def test_an_execution_ends_with_its_claim(world: World) -> None:
    """It is given up at the daemon as soon as the claim is known to be lost, long before its own limit."""
    task_id = world.add()
    ends: list[str] = []

    def execute(claim: ifbus.Claim[dict[str, Any]]) -> None:
        with pytest.raises(LeaseLost) as error:
            claim.execute(GUESTS / "core.wasm", export="spin", limits=SLOW, input={"args": []})
        ends.append(error.value.message)

    with world.bus.register(world.swarm, capabilities=[world.skill], lease_ms=LONG_LEASE_MS) as swarm:
        claim = swarm.claim(task_id)
        assert claim
        worker = threading.Thread(target=execute, args=(claim,))
        worker.start()
        world.wait_for(lambda: is_executing(world))
        with ifbus.Client(world.daemon.socket) as other:
            other.cancel_task(task_id, reason="not wanted any more")
        worker.join(PATIENCE_S)
        [reason] = ends
        assert "was cancelled: not wanted any more" in reason
        world.wait_for(lambda: not is_executing(world))


def test_an_awaited_execution_ends_with_its_claim(world: World, run: Run) -> None:
    """The same in an event loop; what is done for another claim goes on."""

    async def test() -> None:
        async with (
            ifbus.AsyncClient(world.daemon.socket) as bus,
            bus.register(world.swarm, capabilities=[world.skill], lease_ms=LONG_LEASE_MS) as swarm,
            anyio.create_task_group() as group,
        ):
            lost, kept = await swarm.claim(world.add()), await swarm.claim(world.add())
            assert lost
            assert kept

            async def end_it() -> None:
                await anyio.to_thread.run_sync(world.wait_for, lambda: is_executing(world))
                await bus.cancel_task(lost.task_id, reason="not wanted any more")

            group.start_soon(end_it)
            with pytest.raises(LeaseLost, match="not wanted any more"):
                await lost.execute(GUESTS / "core.wasm", export="spin", limits=SLOW, input={"args": []})
            await kept.complete()

    run(test)


def test_a_busy_task_hears_that_its_deadline_has_passed(world: World, run: Run) -> None:
    """The same in an event loop."""
    lost: list[str] = []

    async def test() -> None:
        told = threading.Event()

        def hear(handle: str, error: LeaseLost) -> None:
            lost.append(f"{handle} {error.message}")
            told.set()

        async with (
            ifbus.AsyncClient(world.daemon.socket) as bus,
            bus.register(world.swarm, capabilities=[world.skill], lease_ms=LONG_LEASE_MS, on_claim_lost=hear) as swarm,
        ):
            claim, task_id = None, ""
            for wait_s in (1, 8, 64):  # a busy machine may be late for the first
                deadline_at_ms = int((time.time() + wait_s) * 1000)
                task = await bus.create_task("x", capabilities=[world.skill], deadline_at_ms=deadline_at_ms)
                with suppress(NotReady):
                    claim, task_id = await swarm.claim(task.task_id), task.task_id
                    break
            assert claim
            assert await anyio.to_thread.run_sync(told.wait, PATIENCE_S)
            with pytest.raises(LeaseLost, match="has expired"):
                claim.check()
            assert (await bus.get_task(task_id)).state == "expired"

    run(test)
    assert len(lost) == 1


@pytest.mark.slow
def test_a_task_with_a_short_lease_is_held_as_long_as_its_holder_lives(world: World) -> None:
    """The session's renewals come as often as the task's lease needs, and renew that too."""
    lease_ms = 15_000
    task_id = world.add(lease_ms=lease_ms)

    def left_ms() -> int:
        left: int = world.bus.call("coordinator.get_task", task_id=task_id)["task"]["lease_left_ms"]
        return left

    with world.bus.register(world.swarm, capabilities=[world.skill], lease_ms=LONG_LEASE_MS) as swarm:
        claim = swarm.claim(task_id)
        assert claim
        assert claim.grant.lease_ms == lease_ms
        least = lease_ms

        def is_renewed() -> bool:
            nonlocal least
            now = left_ms()
            least = min(least, now)
            return now > least

        world.wait_for(is_renewed)
        claim.check()
        claim.complete()


def test_what_the_last_holder_left_is_in_the_next_claim(world: World) -> None:
    """Notes, artefacts, errors and cost."""
    task_id = world.add(max_attempts=3, backoff={"base_ms": 0})
    with world.bus.register(world.swarm, capabilities=[world.skill]) as swarm:
        first = swarm.claim(task_id)
        assert first
        assert first.handover == {}
        first.progress(40, "half", artefacts=[{"name": "report.md", "sha256": "0" * 64, "bytes": 10}])
        assert first.fail("no such file").task.failures == 1
        second = swarm.claim(task_id)
        assert second
        assert (second.handover["percent"], second.handover["note"]) == (40, "half")
        assert second.handover["artefacts"][0]["name"] == "report.md"
        assert second.handover["errors"][0]["error"] == "no such file"
        second.complete()


def test_batches(world: World) -> None:
    """Created in one commit, completed in one, each for itself."""
    first, second = world.bus.create_tasks(
        [
            {"title": "a", "capabilities": [world.skill], "task_id": f"{world.swarm}-a"},
            {"title": "b", "capabilities": [world.skill], "depends_on": [f"{world.swarm}-a"], "estimate_usd": "0.05"},
        ]
    )
    assert (first.state, second.state) == ("ready", "waiting")
    with world.bus.register(world.swarm, capabilities=[world.skill]) as swarm:
        claim = swarm.claim(first.task_id)
        assert claim
        end = world.bus.complete_tasks(
            world.swarm,
            [
                {"task_id": first.task_id, "token": claim.token, "result": 1},
                {"task_id": second.task_id, "token": claim.token},
            ],
        )
        assert [one.ok for one in end.outcomes] == [True, False]
        assert end.unblocked == (second.task_id,)
        error = end.outcomes[1].to_error()
        assert error is not None
        assert error.code == "stale_token"

"""A guest runs while its admission is made durable, in an instance that may have been made ahead (ADR 0017)."""

import os
import signal
from typing import Any

import pytest
import trio
import wasmtime
from trio.testing import wait_all_tasks_blocked

from ifbus.errors import BreakerTripped, GuestFailed, LimitExceeded
from ifbusd.codec import pack, unpack
from ifbusd.store.base import Put, Txn
from tests.integration.chassis.harness import Harness, caller, is_running, wait_for

# Of the guest `fib`: enough to be seen at work.
_LONG = 150_000

# Its start reads the input, its entry point writes what the start read.
_READS_AT_START = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func $init
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 100))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8))))
  (start $init)
  (func (export "_start")
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"""


async def _executions(chassis: Harness) -> list[dict[str, Any]]:
    records = [unpack(entry.record) for entry in await chassis.store.read_log()]
    return [record for record in records if record["op"] == "chassis.execute_task"]


async def _go_on_after(chassis: Harness, txns: int) -> None:
    """Let a stopped worker go on when so many transactions are durable and whoever waited for them waits for the worker."""
    await wait_for(lambda: chassis.store.statistics().txns >= txns)
    await wait_all_tasks_blocked()
    os.kill(chassis.worker_pid(), signal.SIGCONT)


async def test_execution_that_lasts_has_its_end_on_record(chassis: Harness) -> None:
    """The admission comes first, then the end with figures, which names it; the receipt is the end's."""
    await chassis.load("core", export="fib", wall_ms=60_000)
    os.kill(chassis.worker_pid(), signal.SIGSTOP)  # it lasts longer than the commit, however slow the disk
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_go_on_after, chassis, chassis.store.statistics().txns + 1)
        answer = await chassis.execute({"args": [_LONG]})
    admitted, ended = await _executions(chassis)
    assert (admitted["outcome"], ended["outcome"]) == ("ok", "ok")
    assert "wall_us" not in admitted["detail"]
    assert ended["detail"]["wall_us"] == answer["wall_us"] > 0
    assert ended["detail"]["admitted"] == 2
    assert answer["receipt"]["seq"] == 3


async def test_execution_that_fails_was_admitted(chassis: Harness) -> None:
    """Both are on record: that it was let in, and how it failed."""
    await chassis.load("core", export="crash")
    with pytest.raises(GuestFailed) as caught:
        await chassis.execute({"args": []})
    assert [record["outcome"] for record in await _executions(chassis)] == ["ok", "guest_failed"]
    assert caught.value.data["receipt"]["seq"] == 3


async def test_answer_never_comes_before_its_admission_is_durable(chassis: Harness) -> None:
    """However quick the guest: when the caller has the answer, the entry of its receipt is in the file."""
    await chassis.load("core", export="add")
    for number in range(20):
        answer = await chassis.execute({"args": [number, 1]})
        assert answer["output"] == number + 1
        assert answer["receipt"]["seq"] <= chassis.store.statistics().txns  # those that are durable


async def test_key_puts_admission_and_answer_into_one_entry(chassis: Harness) -> None:
    """What a repetition is to get cannot be on record before the guest has given it."""
    await chassis.load("core", export="fib", wall_ms=60_000)
    await chassis.execute({"args": [_LONG]}, who=caller(key="k", body=b"1"))
    (entry,) = await _executions(chassis)
    assert entry["detail"]["wall_us"] > 0


async def test_swarm_stopped_while_its_guest_runs_gets_no_answer(chassis: Harness) -> None:
    """An end that had to be waited for is decided once more."""
    await chassis.load("core", export="fib", wall_ms=60_000)
    (sandbox,) = chassis.chassis._sandboxes.values()
    os.kill(chassis.worker_pid(), signal.SIGSTOP)
    before = chassis.store.statistics().txns
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def stop() -> None:
            await wait_for(lambda: sandbox.is_busy)
            await wait_for(lambda: chassis.store.statistics().txns > before)  # it was admitted
            await wait_all_tasks_blocked()
            await chassis.store.txn(Txn(then=[Put("tripped/a", pack({}))]))
            os.kill(chassis.worker_pid(), signal.SIGCONT)

        with pytest.raises(BreakerTripped):
            await chassis.run(_LONG)
    assert [record["outcome"] for record in await _executions(chassis)] == ["ok", "breaker_tripped"]


async def test_limits_hold_while_nobody_waits_for_the_guest(chassis: Harness) -> None:
    """A disk that keeps the admission waiting gives the guest no time beyond its own."""
    await chassis.load("core", export="spin", wall_ms=80)
    (sandbox,) = chassis.chassis._sandboxes.values()
    pid = chassis.worker_pid()
    begun = sandbox.begin(b'{"args": []}')
    await wait_for(lambda: not is_running(pid))
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it has ended
    with pytest.raises(LimitExceeded) as caught:
        await sandbox.finish(begun)
    assert caught.value.data["limit"] == "wall_ms"
    # By the watch, and not by the kernel after all the processor time that a worker may ever have.
    assert ended is not None
    assert ended.si_status == signal.SIGKILL


async def test_answer_that_came_meanwhile_counts(chassis: Harness) -> None:
    """An answer that was there when it was asked for needed no waiting."""
    await chassis.load("core", export="add")
    (sandbox,) = chassis.chassis._sandboxes.values()
    begun = sandbox.begin(b'{"args": [1, 2]}')
    assert sandbox._ready is not None
    await trio.lowlevel.wait_readable(sandbox._ready.worker._channel._raw)
    run = await sandbox.finish(begun)
    assert (run.output, run.waited) == (3, False)


async def test_refused_admission_ends_the_guest(chassis: Harness) -> None:
    """Given up, or not to be made durable: the guest that was begun is killed, and the sandbox is usable at once."""
    await chassis.load("core", export="spin", wall_ms=30_000)
    pid = chassis.worker_pid()
    with trio.CancelScope() as scope:
        scope.cancel()
        await chassis.run()
    assert scope.cancelled_caught
    assert not is_running(pid)
    await chassis.load("core", export="add")
    assert await chassis.run(1, 2) == 3


async def test_every_execution_has_memory_of_its_own(chassis: Harness) -> None:
    """Also where the instance was made before it was asked for."""
    await chassis.load("core", export="once")
    assert [await chassis.run() for _ in range(5)] == [105] * 5


async def test_start_that_reads_the_input_reads_its_own(chassis: Harness) -> None:
    """A module whose start depends on the execution is started with it, never ahead."""
    await chassis.load(bytes(wasmtime.wat2wasm(_READS_AT_START)), kind="command")
    for number in range(5):
        assert (await chassis.execute(number))["output"] == number

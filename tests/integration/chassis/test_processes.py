"""Zygote, workers and daemon when one of them is killed, stopped, or says what it should not."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from ifbus.errors import GuestFailed, LimitExceeded, Unavailable
from ifbus.models import ResourceLimits, ServiceContract
from ifbusd.chassis.messages import pack
from ifbusd.chassis.model import LoadedModule
from ifbusd.chassis.orders import FORK
from ifbusd.chassis.processes import Worker, Zygote, become_subreaper
from ifbusd.chassis.sandbox import Ready, Sandbox
from tests.integration.chassis.harness import Harness, caller, is_running, running, wait_for

ROOT = Path(__file__).parents[3]


def _zygote(chassis: Harness) -> int | None:
    return chassis.chassis._supervisor.zygote_pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGABRT])
async def test_zygote_that_ends_or_hangs_is_replaced(chassis: Harness, number: signal.Signals) -> None:
    """New sandboxes start again within the second; the ones that run do not notice."""
    await chassis.load("core", swarm="a", export="add")
    worker, first = chassis.worker_pid("a"), _zygote(chassis)
    assert first is not None
    os.kill(first, number)
    assert await chassis.run(1, 2, swarm="a") == 3
    with trio.fail_after(60):
        await chassis.load("core", swarm="b", export="add")
    assert await chassis.run(1, 2, swarm="b") == 3
    assert chassis.worker_pid("a") == worker
    await wait_for(lambda: _zygote(chassis) not in (None, first))  # a worker that was ready may have been enough for b
    assert chassis.chassis.statistics().zygote_restarts == 1
    await wait_for(lambda: not is_running(first))


async def test_zygote_that_keeps_ending_makes_calls_unavailable(chassis: Harness) -> None:
    """While there is no zygote, what needs one says so instead of hanging, and what does not goes on."""
    await chassis.load("core", swarm="a", export="add")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def kill_each() -> None:
            while True:
                pid = _zygote(chassis)
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                await trio.sleep(0.002)

        with trio.fail_after(120):
            while await _is_loaded(chassis, "b"):  # in a moment that one had
                await chassis.chassis.unload_swarm(caller(), "b")
        assert await chassis.run(1, 2, swarm="a") == 3
        nursery.cancel_scope.cancel()


async def _is_loaded(chassis: Harness, swarm: str) -> bool:
    try:
        await chassis.load("core", swarm=swarm, export="add")
    except Unavailable:
        return False
    return True


async def test_worker_killed_while_idle_is_replaced(chassis: Harness) -> None:
    """A process that went away between two executions costs the second one a cold start and nothing else."""
    await chassis.load("core", export="add")
    pid = chassis.worker_pid()
    os.kill(pid, signal.SIGKILL)
    await wait_for(lambda: not is_running(pid))
    assert await chassis.run(1, 2) == 3
    os.kill(chassis.worker_pid(), signal.SIGKILL)
    await wait_for(lambda: chassis.chassis.statistics().workers == 0)  # the watch reaps it


async def test_worker_killed_while_it_runs_fails_that_execution(chassis: Harness) -> None:
    """Whoever kills a worker (the system out of memory, say) fails one execution with the signal's name."""
    await chassis.load("core", export="spin", wall_ms=30_000)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def kill() -> None:
            await wait_for(lambda: all(sandbox.is_busy for sandbox in chassis.chassis._sandboxes.values()))
            os.kill(chassis.worker_pid(), signal.SIGKILL)

        with pytest.raises(GuestFailed, match="SIGKILL"):
            await chassis.run()


async def test_second_sandbox_finds_a_worker_ready(tmp_path: Path) -> None:
    """Nobody pays for a process before the first sandbox; from then on one is ready, and it ends with the chassis."""
    async with running(tmp_path / "state") as chassis:
        assert chassis.chassis._supervisor._spare is None
        await chassis.load("core", swarm="a", export="add")
        first = await chassis.spare()
        await chassis.load("core", swarm="b", export="add")
        assert chassis.worker_pid("b") == first.pid
        assert await chassis.run(1, 2, swarm="b") == 3
        second = await chassis.spare()
        assert (second.pid != first.pid, chassis.chassis.statistics().workers) == (True, 2)
    assert not is_running(second.pid)


async def test_worker_that_died_before_its_sandbox_is_not_given(chassis: Harness) -> None:
    """The sandbox gets another one, and the dead one is reaped."""
    await chassis.load("core", swarm="a", export="add")
    spare = await chassis.spare()
    os.kill(spare.pid, signal.SIGKILL)
    await wait_for(lambda: not is_running(spare.pid))
    await chassis.load("core", swarm="b", export="add")
    assert await chassis.run(1, 2, swarm="b") == 3
    assert chassis.worker_pid("b") != spare.pid
    assert spare.pid not in _children()


async def test_worker_that_is_ready_goes_with_its_zygote(chassis: Harness) -> None:
    """No sandbox gets a copy of a zygote that has been replaced."""
    await chassis.load("core", swarm="a", export="add")
    spare, zygote = await chassis.spare(), _zygote(chassis)
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    await wait_for(lambda: _zygote(chassis) not in (None, zygote))
    assert not is_running(spare.pid)
    await chassis.load("core", swarm="b", export="add")
    assert chassis.worker_pid("b") != spare.pid


def test_no_process_outlives_the_daemon(tmp_path: Path) -> None:
    """Kill the daemon with sandboxes spinning: zygote, all workers and the one that is ready are gone, without anybody to tell them."""
    script = Path(__file__).with_name("doomed_daemon.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "state"], stdout=subprocess.PIPE, text=True, env=environment
    ) as daemon:
        assert daemon.stdout is not None
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        try:
            assert len(pids) == 6
            assert all(map(is_running, pids))
        finally:
            daemon.kill()
    trio.run(wait_for, lambda: not any(map(is_running, pids)))


# --- without descriptors -----------------------------------------------------------------------------


@contextmanager
def _descriptors_left(number: int) -> Iterator[None]:
    """All descriptors of this process are taken but for so many."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, most))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(1))
        for _ in range(number):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        for descriptor in taken:
            os.close(descriptor)


def _children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


@pytest.mark.parametrize("is_last_taken", [False, True])
async def test_worker_that_cannot_be_held_is_ended_and_reaped(is_last_taken: bool) -> None:
    """Where no descriptor is left for a new worker it is gone without a trace, and the zygote goes on."""
    become_subreaper()
    zygote = await Zygote.start()
    before = _children()
    taken: list[int] = []

    async def take_the_last() -> None:
        while not taken:
            try:
                taken.append(os.dup(1))
            except OSError:
                await trio.lowlevel.checkpoint()

    try:
        # Two make the socket pair, whose other end goes away with the order: one is left, for the pidfd or for somebody else.
        with _descriptors_left(2):
            async with trio.open_nursery() as nursery:
                if is_last_taken:
                    nursery.start_soon(take_the_last)
                with pytest.raises(Unavailable, match="cannot start a sandbox process"):
                    await zygote.fork()
            for descriptor in taken:
                os.close(descriptor)
        assert _children() == before
        worker = await zygote.fork()
        assert worker.is_alive()
        await worker.end()
        assert _children() == before
    finally:
        await zygote.end()


async def test_fork_that_is_given_up_leaves_nothing() -> None:
    """Whenever its caller is cancelled: the worker is the caller's or there is none, and the zygote goes on."""
    become_subreaper()
    zygote = await Zygote.start()
    before = _children()
    forked = 0
    try:
        for turns in range(8):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def give_up(turns: int = turns, scope: trio.CancelScope = scope) -> None:
                        for _ in range(turns):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    worker = await zygote.fork()
                    forked += 1
                    with trio.CancelScope(shield=True):
                        await worker.end()
            assert _children() == before
        assert (forked > 0, zygote.is_killed) == (True, False)
    finally:
        await zygote.end()


async def test_zygote_that_ends_in_the_middle_of_a_fork_leaves_nothing(chassis: Harness) -> None:
    """A worker that it did not get to tell of is ended and reaped, and those that somebody holds go on."""
    await chassis.load("core", swarm="a", export="add")
    worker, first = chassis.worker_pid("a"), _zygote(chassis)
    supervisor = chassis.chassis._supervisor
    assert first is not None
    assert supervisor._zygote is not None
    await wait_for(lambda: supervisor._spare is not None)  # or it would be forked meanwhile
    before = _children()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        supervisor._zygote._channel.send(FORK, [theirs.fileno()])  # and nobody reads the answer
        await wait_for(lambda: bool(_children() - before))
        os.kill(first, signal.SIGKILL)
        strays = _children() - before
    await wait_for(lambda: _zygote(chassis) not in (None, first))
    await wait_for(lambda: not strays & _children())
    assert chassis.worker_pid("a") == worker
    assert await chassis.run(1, 2, swarm="a") == 3


async def test_zygote_outlives_a_lack_of_descriptors(chassis: Harness) -> None:
    """A moment in which no socket can be made refuses that sandbox, and no other after it."""
    supervisor, zygote = chassis.chassis._supervisor, _zygote(chassis)
    with _descriptors_left(1), pytest.raises(Unavailable):
        await supervisor.fork()
    worker = await supervisor.fork()
    assert worker.is_alive()
    await worker.end()
    assert _zygote(chassis) == zygote


# --- a worker that is not ours any more --------------------------------------------------------------


def _hostile(tmp_path: Path, code: str, *, wall_ms: int = 60_000) -> tuple[Sandbox, list[int]]:
    """A sandbox whose worker is a Python program of the test's, with its socket as `s`."""
    pids: list[int] = []

    async def start(sandbox: Sandbox) -> Ready:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            program = f"import socket, msgpack, os, time\ns = socket.socket(fileno={theirs.fileno()})\n{code}"
            process = subprocess.Popen(  # noqa: ASYNC220 - the sandbox waits for it
                [sys.executable, "-c", program], pass_fds=[theirs.fileno()]
            )
            process.returncode = 0
        pids.append(process.pid)
        return Ready(worker=Worker(process.pid, ours), layers=(), base_bytes=0, released=lambda: None)

    contract = ServiceContract(module_sha256="0" * 64, limits=ResourceLimits(wall_ms=wall_ms))
    module = LoadedModule(contract=contract, uid=0, loaded_at_ms=0)
    return Sandbox("a", module, queue_length=1, start=start), pids


@pytest.mark.parametrize(
    "answer",
    [
        "b'garbage'",
        "b''.join([b'\\xdd\\xff\\xff\\xff\\xff'] * 20)",
        "b'\\x91' * 2000",
        "msgpack.packb([1, 'ok', b'1', ''])",
        "msgpack.packb([2, 'ok', b'1', '', 0])",
        "msgpack.packb([1, 'great', b'1', '', 0])",
        "msgpack.packb([1, 'ok', '1', '', 0])",
        "msgpack.packb([1, 'ok', b'1', '', -1])",
        "msgpack.packb([True, 'ok', b'1', '', 0])",
        "msgpack.packb({'execution': 1})",
        "msgpack.packb([1, 'ok', b'9' * 40000, '', 0])",
        "msgpack.packb([1, 'ok', b'[' * 30000, '', 0])",
        "b'x' * 150000",
    ],
)
async def test_worker_that_answers_garbage_is_killed(tmp_path: Path, answer: str) -> None:
    """An answer that no worker gives ends that worker and fails that execution; nothing of it is believed."""
    sandbox, pids = _hostile(tmp_path, f"s.recv(100000)\ns.send({answer})\ntime.sleep(60)")
    with pytest.raises(GuestFailed):
        await sandbox.execute(b"1")
    await sandbox.cool()
    assert not any(map(is_running, pids))


async def test_worker_that_never_answers_is_killed(tmp_path: Path) -> None:
    """One that does not even read ends at the wall limit."""
    sandbox, pids = _hostile(tmp_path, "time.sleep(60)", wall_ms=100)
    with pytest.raises(LimitExceeded):
        await sandbox.execute(b"1")
    assert not any(map(is_running, pids))


async def test_worker_that_answers_unasked_gains_nothing(tmp_path: Path) -> None:
    """An answer sent ahead of the question is not the question's."""
    sandbox, _ = _hostile(tmp_path, "s.send(msgpack.packb([7, 'ok', b'1', '', 0]))\ntime.sleep(60)")
    with pytest.raises(GuestFailed, match="broke the protocol"):
        await sandbox.execute(b"1")


async def test_worker_that_runs_without_being_asked_is_killed(tmp_path: Path) -> None:
    """An idle sandbox that burns processor time or memory is none of ours any more."""
    for code in (
        "s.recv(99); s.send(msgpack.packb([1, 'ok', b'1', '', 0]))\nwhile True: pass",
        "s.recv(99); s.send(msgpack.packb([1, 'ok', b'1', '', 0]))\nx = bytearray(os.urandom(1)) * (200 << 20); time.sleep(60)",
    ):
        sandbox, pids = _hostile(tmp_path, code)
        assert (await sandbox.execute(b"1")).output == 1
        with trio.fail_after(60):
            while sandbox.is_warm:
                await sandbox.inspect()
                await trio.sleep(0.01)
        assert not any(map(is_running, pids))


async def test_kernel_ends_a_worker_that_the_daemon_forgot() -> None:
    """The processor fence needs no daemon: a guest that spins unwatched dies of SIGXCPU."""
    import wasmtime

    from ifbusd.chassis import cache
    from ifbusd.chassis.engine import make_engine

    become_subreaper()
    zygote = await Zygote.start()
    code = cache.new_code_file()
    module = wasmtime.Module(make_engine(), '(module (func (export "run") (loop $l (br $l))))')
    os.write(code, module.serialize())
    cache.seal(code)
    worker = await zygote.fork()
    answer = await worker.order(["serve", "core", "run", 1 << 20, 1000, 1, None, os.getpid()], [code])
    assert answer[0] == "ready"
    worker.send(pack([1, b'{"args": []}']))
    with trio.fail_after(120):  # a second of processor time, which a busy machine does not give at once
        assert await worker.receive() == b""
    assert (await worker.end()).signal is signal.SIGXCPU
    await zygote.end()
    os.close(code)

"""The worker loop of the blocking client, against a real daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import attrs
import pytest

import ifbus
from ifbus import calls
from ifbus.errors import IdempotencyConflict, LeaseLost, NotFound, NotReady, StaleToken
from ifbus.steps import drive
from ifbus.sync import Client
from tests.integration.client.conftest import PATIENCE_S, World

GUESTS = Path(__file__).parents[2] / "guests"


@attrs.frozen
class Spec:
    """What these tasks ask for."""

    text: str
    times: int = 1


def test_a_worker_does_its_tasks(world: World) -> None:
    """Claimed, read as the worker's type, reported, paid for, executed in a sandbox, completed: the loop of the manual."""
    task_id = world.add(payload={"text": "one two three", "unknown": 1}, estimate_usd="0.50")
    with world.bus.register(world.swarm, capabilities=[world.skill], budget_usd="5.00") as swarm:
        for task in swarm.tasks(spec=Spec):
            with task:
                assert task.spec == Spec("one two three")
                assert task.progress(25, "read it").percent == 25
                with task.spend("llm", estimate_usd="0.12") as cost:
                    entry = cost.settle(usd="0.09", model="small", usage={"input_tokens": 10})
                    assert entry.report.spent_usd == Decimal("0.09")
                with task.spend("llm", estimate_usd="0.12"):
                    pass
                out = task.execute(
                    GUESTS / "wordcount.wasm",
                    input={"text": task.spec.text},
                    limits=ifbus.Limits(memory_bytes=32 << 20, wall_ms=5_000),
                )
                assert task.execute(GUESTS / "wordcount.wasm", input={"text": "a"}).output["words"] == 1
                assert task.complete({"words": out.output["words"]}).spent_usd == Decimal("0.09")
            swarm.drain()
    assert world.bus.get_task(task_id).result == {"words": 3}
    [report] = world.bus.get_budget_report(swarm_id=world.swarm)
    assert (report.spent_usd, report.reserved_usd) == (Decimal("0.09"), Decimal(0))


def test_leaving_the_block_decides(world: World) -> None:
    """An exception fails the task, no verdict gives it back with a warning, an interruption gives it back."""
    with world.bus.register(world.swarm, capabilities=[world.skill]) as swarm:

        def claim(task_id: str) -> ifbus.Claim[dict[str, object]]:
            claim = swarm.claim(task_id, dict)
            assert claim
            return claim

        failing, silent, interrupted, blocked = (world.add() for _ in range(4))
        with pytest.raises(KeyError), claim(failing):
            raise KeyError("mine")
        assert (world.state(failing), world.bus.get_task(failing).error) == ("failed", "KeyError: 'mine'")
        with pytest.warns(RuntimeWarning, match="without a verdict"), claim(silent):
            pass
        assert world.state(silent) == "ready"
        with pytest.raises(KeyboardInterrupt), claim(interrupted):
            raise KeyboardInterrupt
        assert world.state(interrupted) == "ready"
        with claim(blocked) as task:
            task.blocked("needs a password")
        assert world.state(blocked) == "blocked"
        with pytest.raises(StaleToken):
            task.progress(50)


def test_losing_a_race_is_no_exception(world: World) -> None:
    """A task that somebody else holds gives a falsy refusal with the holder; one that never was raises."""
    task_id = world.add()
    with (
        world.bus.register(world.swarm, capabilities=[world.skill]) as one,
        world.bus.register(f"{world.swarm}-b", capabilities=[world.skill]) as other,
    ):
        claim = one.claim(task_id)
        refusal = other.claim(task_id)
        assert claim
        assert not refusal
        assert refusal.code == "already_claimed"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(other.claim, task_id, wait=PATIENCE_S)
            claim.release()
            assert waiting.result(PATIENCE_S)
        with pytest.raises(NotFound):
            one.claim("no-such-task")


def test_threads_share_a_swarm_up_to_its_limit(world: World) -> None:
    """Never more than `max_in_flight` tasks are held at once, and all of them get done."""
    tasks = [world.add() for _ in range(12)]
    held, most, lock = 0, 0, threading.Lock()

    with (
        world.bus.register(world.swarm, capabilities=[world.skill]) as swarm,
        ThreadPoolExecutor(8) as pool,
    ):

        def work(task: ifbus.Claim[object]) -> None:
            nonlocal held, most
            with task:
                with lock:
                    held += 1
                    most = max(most, held)
                task.progress(50)
                with lock:
                    held -= 1
                task.complete()
            with lock:
                tasks.remove(task.task_id)
                if not tasks:
                    swarm.drain()

        for task in swarm.tasks(max_in_flight=3):
            pool.submit(work, task)
    assert not tasks
    assert most <= 3


def test_a_drained_swarm_keeps_no_task(world: World) -> None:
    """What is claimed while the drain takes effect is given back: the loop ends and the task is ready."""
    with world.bus.register(world.swarm, capabilities=[world.skill]) as swarm, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lambda: list(swarm.tasks()))
        world.wait_for(lambda: bool(swarm._aborts))
        swarm.drain()
        assert taken.result(PATIENCE_S) == []
        for _ in range(3):
            assert world.state(world.add()) == "ready"
        assert swarm.is_draining


def test_a_claim_of_unknown_outcome_is_struck_out(world: World) -> None:
    """Whether it was committed or is still on its way, a claim that nobody waits for ends up with nobody."""
    won, late = world.add(), world.add()
    with world.bus.register(world.swarm, capabilities=[world.skill]) as swarm:
        key = world.bus.new_key()
        call = calls.claim_task(won, world.swarm, idempotency_key=key)
        assert world.bus.perform(call)
        for _ in range(2):  # twice is as good as once
            drive(swarm._strike_steps(call, key, swarm._give_back_unless_held), world.bus.perform)
            assert world.state(won) == "ready"
        key = world.bus.new_key()
        call = calls.claim_next(world.swarm, wait_ms=1, idempotency_key=key)
        drive(swarm._strike_steps(call, key, swarm._give_back_unless_held), world.bus.perform)
        with pytest.raises(IdempotencyConflict):
            world.bus.perform(call)
        assert world.state(late) == "ready"


def test_a_drain_is_safe_in_a_signal_handler(world: World) -> None:
    """A handler that drains the swarm ends the loop that it interrupts."""
    with world.bus.register(world.swarm, capabilities=[world.skill]) as swarm, ThreadPoolExecutor(1) as pool:
        before = signal.signal(signal.SIGUSR1, lambda *_: swarm.drain())
        try:

            def interrupt() -> None:
                world.wait_for(lambda: bool(swarm._aborts))
                os.kill(os.getpid(), signal.SIGUSR1)

            interrupted = pool.submit(interrupt)
            assert list(swarm.tasks()) == []
            interrupted.result(PATIENCE_S)
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_closing_ends_threads_that_wait_and_leaves_no_claim(world: World) -> None:
    """A swarm that is closed while threads wait for tasks ends their loops at once; nothing is claimed after that."""
    swarm = world.bus.register(world.swarm, capabilities=[world.skill])
    done = world.add()
    world.bus.push_task_to_swarm(done, world.swarm)
    with ThreadPoolExecutor(2) as pool:
        claim = swarm.claim(done)
        assert claim
        loop = pool.submit(lambda: list(swarm.tasks(max_in_flight=2)))
        other = pool.submit(swarm.claim, world.add(depends_on=[done]), wait=PATIENCE_S)
        world.wait_for(lambda: len(swarm._aborts) == 2)
        assert swarm.close() == (done,)
        assert loop.result(PATIENCE_S) == []
        with pytest.raises(LeaseLost):
            other.result(PATIENCE_S)
    assert swarm.close() == ()
    assert world.state(world.add()) == "ready"
    with pytest.raises(LeaseLost):
        claim.progress(50)
    with pytest.raises(LeaseLost):
        swarm.claim(done)


def test_a_resumed_session_brings_its_claims_back(world: World) -> None:
    """After a crash the same token brings the claims, to take up in hand or in the loop; without it they are free."""
    first, second, third = (world.add() for _ in range(3))
    before = world.bus.register_swarm(world.swarm, capabilities=[world.skill])
    for task_id in (first, second, third):
        assert world.bus.claim_task(task_id, world.swarm)
    with Client(world.daemon.socket) as bus, bus.register(world.swarm, resume_token=before.resume_token) as swarm:
        assert swarm.registration.resumed
        claims = {claim.task_id: claim for claim in swarm.take_up(dict)}
        assert set(claims) == {first, second, third}
        assert swarm.take_up() == ()
        claims[first].complete({"n": 1})
        swarm._resumed.append(claims[second].grant)
        for task in swarm.tasks(max_in_flight=9):
            with task:
                assert task.task_id == second
                task.complete()
            swarm.drain()
    assert [world.state(task_id) for task_id in (first, second, third)] == ["completed", "completed", "ready"]


def test_another_incarnation_ends_this_one(world: World) -> None:
    """Registered again elsewhere, a swarm's claims are free, its next call raises LeaseLost, and it is told once."""
    lost: list[LeaseLost] = []
    task_id = world.add()
    swarm = world.bus.register(world.swarm, capabilities=[world.skill], lease_ms=3_000, on_lease_lost=lost.append)
    claim = swarm.claim(task_id)
    assert claim
    with Client(world.daemon.socket) as bus, bus.register(world.swarm):
        with pytest.raises(LeaseLost):
            claim.complete()
        world.wait_for(lambda: len(lost) == 1)
        with pytest.raises(LeaseLost):
            swarm.claim(task_id)
        with pytest.raises(LeaseLost):
            list(swarm.tasks())
        assert swarm.close() == ()
        assert bus.get_swarm(world.swarm).alive
    assert len(lost) == 1


def test_a_session_outlives_its_lease_by_renewal(world: World) -> None:
    """A holder that is busy for several leases still holds its claim: a thread of its own renews."""
    task_id = world.add()
    with world.bus.register(world.swarm, capabilities=[world.skill], lease_ms=2_000) as swarm:
        claim = swarm.claim(task_id)
        assert claim
        until = swarm._tenure.proven_until_s + 3.0
        world.wait_for(lambda: swarm._tenure.proven_until_s > until)
        claim.complete()


def test_a_forked_child_does_not_end_the_session(world: World) -> None:
    """A child that leaves the block neither ends the parent's session nor its claim."""
    task_id = world.add()
    with world.bus.register(world.swarm, capabilities=[world.skill]) as swarm:
        claim = swarm.claim(task_id)
        assert claim
        pid = os.fork()
        if not pid:
            status = 1
            try:
                swarm.close()
                with pytest.raises(LeaseLost):
                    claim.complete()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        claim.complete()


def test_letters_are_acknowledged_as_they_are_read(world: World) -> None:
    """Each letter is dropped when the next is asked for; whoever dies over one finds it again."""
    with world.bus.register(world.swarm, capabilities=[world.skill]) as swarm:
        for number in range(3):
            world.bus.broadcast("news", {"n": number}, capabilities=[world.skill])
        letters = swarm.inbox()
        assert [next(letters).body["n"] for _ in range(2)] == [0, 1]
        assert [letter.body["n"] for letter in world.bus.read_inbox(world.swarm).messages] == [1, 2]
        swarm.close()
        assert next(letters, None) is None


def test_a_task_that_is_not_ready_says_why(world: World) -> None:
    """Claiming a task that waits for another raises NotReady with its figures."""
    with (
        world.bus.register(world.swarm, capabilities=[world.skill]) as swarm,
        pytest.raises(NotReady) as raised,
    ):
        swarm.claim(world.add(depends_on=[world.add()]))
    assert raised.value.data["waits_for"]


# --- a daemon that stops, dies and returns -----------------------------------------------------------


def test_a_stopped_daemon_costs_the_lease_and_not_the_program(own_world: World) -> None:
    """While the daemon is stopped, a call under way ends with LeaseLost at the lease's end; then the client goes on."""
    task_id = own_world.add()
    swarm = own_world.bus.register(own_world.swarm, capabilities=[own_world.skill], lease_ms=2_000)
    claim = swarm.claim(task_id)
    assert claim
    own_world.daemon.pause()
    started_s = time.monotonic()

    def work() -> None:
        with claim:
            while True:
                claim.progress(50)

    with pytest.raises(LeaseLost):
        work()
    assert time.monotonic() - started_s < own_world.bus.timeout / 2
    with pytest.raises(LeaseLost):
        swarm.check()
    assert swarm.close() == ()
    own_world.daemon.go_on()
    assert own_world.bus.ping() == "pong"


def test_work_goes_on_over_a_crash_of_the_daemon(own_world: World) -> None:
    """Killed and started again on its state, the daemon finds sessions and claims; what was asked meanwhile is done once."""
    task_id = own_world.add()
    with own_world.bus.register(own_world.swarm, capabilities=[own_world.skill]) as swarm:
        letters = own_world.bus.subscribe_inbox(own_world.swarm)
        claim = swarm.claim(task_id)
        assert claim
        for number in range(2):
            own_world.bus.broadcast("news", {"n": number}, capabilities=[own_world.skill])
        seen = [letters.receive(PATIENCE_S)]
        with ThreadPoolExecutor(2) as pool:
            own_world.daemon.kill()
            created = pool.submit(own_world.add, "while it was away")
            waiting = pool.submit(lambda: [letters.receive(PATIENCE_S) for _ in range(2)])
            own_world.daemon.start()
            own_world.bus.broadcast("news", {"n": 2}, capabilities=[own_world.skill])
            assert own_world.state(created.result(PATIENCE_S)) == "ready"
            seen += waiting.result(PATIENCE_S)
        assert [letter.body["n"] for letter in seen if letter is not None] == [0, 1, 2]
        assert own_world.bus.list_tasks(grep="while it was away").total == 1
        claim.complete({"over": "the crash"})
    assert own_world.state(task_id) == "completed"


def test_a_dead_worker_frees_its_claims_at_once(world: World) -> None:
    """Its session is bound to its process, without being asked for: the task is ready long before the lease has ended."""
    task_id = world.add()
    code = (
        "import sys, ifbus, os, signal\n"
        "with ifbus.Client(sys.argv[1]) as bus:\n"
        "    swarm = bus.register(sys.argv[2], capabilities=[sys.argv[3]], lease_ms=600_000)\n"
        "    assert swarm.claim(sys.argv[4])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(world.daemon.socket), world.swarm, world.skill, task_id], check=False
    )
    world.wait_for_state(task_id, "ready")
    assert not world.bus.get_swarm(world.swarm).alive


@pytest.mark.parametrize(("lease_ms", "is_busy"), [(600_000, False), (9_000, True)], ids=["by a call", "by a renewal"])
def test_a_restarted_daemon_watches_the_process_again(own_world: World, lease_ms: int, is_busy: bool) -> None:
    """The client binds its session anew with its next call, or, where it makes none, with its next renewal."""
    with (
        own_world.bus.register(own_world.swarm, capabilities=[own_world.skill], lease_ms=lease_ms) as swarm,
        Client(own_world.daemon.socket) as other,
    ):
        task_id = own_world.add()
        claim = swarm.claim(task_id)
        assert claim
        own_world.daemon.kill()
        own_world.daemon.start()

        def is_watched() -> bool:
            clocks = (other if is_busy else own_world.bus).get_task(task_id).clocks
            return clocks is not None and clocks["alive"] is True

        own_world.wait_for(is_watched)
        claim.complete()


def test_a_session_can_be_on_its_lease_alone(world: World) -> None:
    """Where that is what its holder wants."""
    with world.bus.register(world.swarm, bind="lease") as swarm:
        assert swarm.registration.bound is None
    with world.bus.register(world.swarm) as swarm:
        assert swarm.registration.bound is not None
        assert swarm.registration.bound["pid"] == os.getpid()


def test_a_replaced_worker_wins_nothing(world: World) -> None:
    """Its claim is refused with the loss of its session before any renewal could tell it."""
    with world.bus.register(world.swarm, capabilities=[world.skill], lease_ms=600_000) as swarm:
        world.bus.register_swarm(world.swarm)
        task_id = world.add()
        with pytest.raises(LeaseLost):
            swarm.claim(task_id)
        with pytest.raises(LeaseLost):
            swarm.check()
    assert world.state(task_id) == "ready"

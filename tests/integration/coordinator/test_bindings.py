"""Bindings: what claims and sessions hang on beside their lease, with real processes and a real store."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ifbus.errors import InvalidParams, InvalidRequest, LimitExceeded, NotFound, PermissionDenied, StaleToken
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import ME, Connection, World, open_world

HOUR_MS = 3_600_000
UID = os.getuid()


class Process:
    """A process that does nothing, and a connection that it seems to have opened."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["sleep", "600"])
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.connection = Connection(pidfd=self.pidfd)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.end()
        os.close(self.pidfd)


@pytest.fixture
def process() -> Iterator[Process]:
    started = Process()
    yield started
    started.close()


@contextmanager
def another() -> Iterator[Process]:
    started = Process()
    try:
        yield started
    finally:
        started.close()


async def claim(world: World, process: Process, task_id: str, bind: str = "process", **more: Any) -> dict[str, Any]:
    """Claim as the process; the claim."""
    caller = world.caller(session=process.connection, pid=process.pid)
    answer = await world.it.claim_task(caller, task_id, "docs", bind=bind, lease_ms=HOUR_MS, **more)
    assert answer["claimed"], answer
    found: dict[str, Any] = answer["claim"]
    return found


async def reasons(world: World) -> list[str]:
    """Why claims were freed without a verdict, as it stands on record."""
    return [entry["detail"]["reason"] for entry in await world.record() if entry["op"] == "coordinator.expire_claim"]


async def test_the_end_of_a_process_frees_all_that_is_bound_to_it(world: World, process: Process) -> None:
    """Both tasks are ready, their money is back, the record names the reason and the process; who held them is told."""
    await world.profile("docs")
    await world.governor.set_budget(world.caller(0), "docs", 1_000)  # type: ignore[arg-type]
    heard: list[Any] = []
    world.bus.subscribe("attention.docs", lambda _, item: heard.append(item))
    for task_id in ("T-1", "T-2"):
        await world.task(task_id, estimate_usd=10)
        assert (await claim(world, process, task_id))["bound"]["pid"] == process.pid
    assert world.it.statistics().processes == 1, "one descriptor for one process"
    process.end()
    for task_id in ("T-1", "T-2"):
        await world.until_state(task_id, "ready")
    assert await reasons(world) == ["process_ended"] * 2
    assert (await world.account("docs")).holds == {}
    assert {(item["kind"], item["reason"]) for item in heard} == {("lease_lost", "process_ended")}
    while world.it.statistics().processes:
        await trio.sleep(0.01)


async def test_a_verdict_lets_go_of_the_process(world: World, process: Process) -> None:
    """When nothing is bound to it any more its descriptor is closed, and its end changes nothing."""
    await world.profile("docs")
    await world.task("T-1")
    found = await claim(world, process, "T-1")
    await world.it.complete_task(world.me, "T-1", "docs", found["token"])
    with trio.fail_after(10):
        while world.it.statistics().processes:
            await trio.sleep(0.01)


async def test_progress_stays_bound(world: World, process: Process) -> None:
    """A report changes the record, not what it hangs on."""
    await world.profile("docs")
    await world.task("T-1")
    found = await claim(world, process, "T-1")
    await world.it.report_progress(world.me, "T-1", "docs", found["token"], 50)
    assert (await world.show("T-1"))["clocks"]["alive"] is True
    process.end()
    await world.until_state("T-1", "ready")


async def test_a_session_and_its_claims_end_with_the_process(world: World, process: Process) -> None:
    """Claims inherit, those on leases of their own too; the next registration is a new incarnation."""
    caller = world.caller(session=process.connection, pid=process.pid)
    session = await world.it.register_swarm(caller, "docs", lease_ms=HOUR_MS, bind="process")
    assert session["bound"] == {"kind": "process", "pid": process.pid, "name": "sleep", "watched": True}
    for task_id, lease_ms in (("T-1", None), ("T-2", HOUR_MS)):
        await world.task(task_id)
        answer = await world.it.claim_task(world.me, task_id, "docs", lease_ms=lease_ms)
        assert (answer["claim"]["bound_to"], answer["claim"]["bound"]["pid"]) == ("session", process.pid)
    await world.task("T-3")
    alone = await world.it.claim_task(world.me, "T-3", "docs", bind="lease")
    assert alone["claim"]["bound_to"] == "lease"
    process.end()
    for task_id in ("T-1", "T-2"):
        await world.until_state(task_id, "ready")
    while world.it.statistics().sessions:
        await trio.sleep(0.01)
    assert (await world.show("T-3"))["state"] == "claimed"
    assert await reasons(world) == ["process_ended"] * 2
    with pytest.raises(StaleToken):
        await world.it.renew_session(world.me, "docs", session["resume_token"])


async def test_a_session_can_be_bound_to_another_process(world: World, process: Process) -> None:
    """From then on only the new one counts; `lease` binds it to nothing."""
    session = await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    await world.token("T-1", "docs")
    with another() as second:
        for bound in (process, second):
            caller = world.caller(session=bound.connection, pid=bound.pid)
            answer = await world.it.bind_session(caller, "docs", session["resume_token"], "process")
            assert answer["bound"]["pid"] == bound.pid
        process.end()
        assert (await world.it.renew_session(world.me, "docs", session["resume_token"]))["bound"]["watched"]
        await world.it.bind_session(world.me, "docs", session["resume_token"], "lease")
        second.end()
        assert (await world.it.renew_session(world.me, "docs", session["resume_token"]))["bound"] is None
        assert (await world.show("T-1"))["state"] == "claimed"
    with pytest.raises(InvalidParams):
        await world.it.bind_session(world.me, "docs", session["resume_token"], "session")


async def test_a_connection_frees_what_is_bound_to_it(world: World) -> None:
    """When it closes; the record says so."""
    await world.profile("docs")
    await world.task("T-1")
    connection = Connection()
    await world.it.claim_task(world.caller(session=connection), "T-1", "docs", bind="connection", lease_ms=HOUR_MS)
    connection.close()
    await world.until_state("T-1", "ready")
    assert await reasons(world) == ["connection_closed"]


async def test_a_number_of_before_is_not_taken_for_a_process(world: World, process: Process) -> None:
    """A dead opener whose number a living, watched process has by now binds nothing to that one."""
    await world.profile("docs")
    await world.task("T-1")
    await world.task("T-2")
    await claim(world, process, "T-1")
    with another() as dead:
        dead.end()
        caller = world.caller(session=Connection(pidfd=dead.pidfd), pid=process.pid)
        with pytest.raises(NotFound) as refused:
            await world.it.claim_task(caller, "T-2", "docs", bind="process")
    assert refused.value.data["reason"] == "ended"


async def test_a_watched_process_that_ended_is_not_taken_for_the_next_of_its_number(world: World) -> None:
    """What is bound to the new one stays when the old one's end is worked off."""
    await world.profile("docs")
    await world.task("T-1")
    await world.task("T-2")
    with another() as old, another() as new:
        await claim(world, old, "T-1")
        old.end()
        # The same number, and not a moment for the daemon to have seen the end.
        caller = world.caller(session=new.connection, pid=old.pid)
        answer = await world.it.claim_task(caller, "T-2", "docs", bind="process", lease_ms=HOUR_MS)
        assert answer["claimed"]
        await world.until_state("T-1", "ready")
        assert (await world.show("T-2"))["clocks"]["alive"] is True
        new.end()
        await world.until_state("T-2", "ready")


async def test_an_ancestor_must_be_one_and_the_callers(world: World, process: Process) -> None:
    """Our own parent is above us; a child, a stranger and a number that nobody has are not; each no is on record."""
    await world.profile("docs", uid=UID)
    me = world.caller(UID, session=Connection(), pid=os.getpid())
    await world.task("T-1")
    answer = await world.it.claim_task(me, "T-1", "docs", bind=f"pid:{os.getppid()}")
    assert answer["claim"]["bound"]["pid"] == os.getppid()
    await world.task("T-2")
    for pid in (process.pid, 4_194_303):
        with pytest.raises(PermissionDenied) as refused:
            await world.it.claim_task(me, "T-2", "docs", bind=f"pid:{pid}")
        assert refused.value.data["reason"] == "no_ancestor"
    assert await world.outcomes("claim_task") == ["ok", "permission_denied", "permission_denied"]


async def test_an_ancestor_of_another_user_is_refused(world: World, process: Process) -> None:
    """It is above the caller, and not all the caller's."""
    await world.profile("docs")  # of a user that these processes are not
    await world.task("T-1")
    me = world.caller(ME + UID, session=Connection(), pid=os.getpid())
    with pytest.raises(PermissionDenied) as refused:
        await world.it.claim_task(me, "T-1", "docs", bind=f"pid:{os.getppid()}")
    assert refused.value.data["reason"] == "other_user"
    connection = Connection()
    connection.handed = os.dup(process.pidfd)
    with pytest.raises(PermissionDenied) as refused:
        await world.it.claim_task(world.caller(ME + UID, session=connection), "T-1", "docs", bind="handed")
    assert refused.value.data["reason"] == "other_user"


@pytest.mark.parametrize(
    "bind", ["", "pid", "pid:", "pid:0", "pid:-1", "pid:1x", "pid:99999999999", "Process", "x" * 200]
)
async def test_what_cannot_be_read_is_refused(world: World, bind: str) -> None:
    """The refusal says what is expected."""
    await world.profile("docs")
    await world.task("T-1")
    with pytest.raises(InvalidParams) as refused:
        await world.it.claim_task(world.caller(session=Connection()), "T-1", "docs", bind=bind)
    assert "pid:N" in refused.value.message


async def test_binding_needs_what_it_names(world: World) -> None:
    """A process that was handed over, a session, a connection: without them the refusal says which."""
    await world.profile("docs")
    await world.task("T-1")
    with pytest.raises(NotFound) as missing:
        await world.it.claim_task(world.caller(session=Connection()), "T-1", "docs", bind="handed")
    assert missing.value.data["reason"] == "not_handed"
    with pytest.raises(StaleToken):
        await world.it.claim_task(world.me, "T-1", "docs", bind="session")
    with pytest.raises(InvalidRequest):
        await world.it.claim_task(world.me, "T-1", "docs", bind="process")


async def test_a_claim_on_the_sessions_lease_is_bound_with_the_session(world: World, process: Process) -> None:
    """By itself only one with a lease of its own can be, also after it was made."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    caller = world.caller(session=process.connection, pid=process.pid)
    await world.task("T-1")
    await world.task("T-2")
    on_session = await world.token("T-1", "docs")
    with pytest.raises(InvalidRequest):
        await world.it.bind_claim(caller, "T-1", "docs", on_session, "process")
    own = await world.token("T-2", "docs", lease_ms=HOUR_MS)
    answer = await world.it.bind_claim(caller, "T-2", "docs", own, "process")
    assert (answer["bound_to"], answer["bound"]["pid"]) == ("process", process.pid)
    with pytest.raises(StaleToken):
        await world.it.bind_claim(caller, "T-2", "docs", own - 1, "process")
    process.end()
    await world.until_state("T-2", "ready")
    assert (await world.show("T-1"))["state"] == "claimed"


async def test_a_claim_is_bound_to_a_session_that_began_after_it(world: World, process: Process) -> None:
    """Asked for that, it ends with what the session is bound to; not asked, it would not."""
    await world.profile("docs")
    tokens = {}
    for task_id in ("T-1", "T-2"):
        await world.task(task_id)
        tokens[task_id] = await world.token(task_id, "docs", lease_ms=HOUR_MS)
    caller = world.caller(session=process.connection, pid=process.pid)
    await world.it.register_swarm(caller, "docs", lease_ms=HOUR_MS, bind="process")
    answer = await world.it.bind_claim(world.me, "T-1", "docs", tokens["T-1"], "session")
    assert (answer["bound_to"], answer["bound"]["pid"]) == ("session", process.pid)
    process.end()
    await world.until_state("T-1", "ready")
    await world.it.complete_task(world.me, "T-2", "docs", tokens["T-2"])


async def test_watched_processes_are_bounded(tmp_path: Path, process: Process) -> None:
    """For one user; the refusal has the figures, and a claim on its lease still passes."""
    async with open_world(tmp_path, config=CoordinatorConfig(bindings_per_uid=1)) as world:
        await world.profile("docs")
        await world.task("T-1")
        await world.task("T-2")
        await claim(world, process, "T-1")
        with another() as second:
            with pytest.raises(LimitExceeded) as refused:
                await claim(world, second, "T-2")
            assert (refused.value.data["used"], refused.value.data["allowed"]) == (1, 1)
            await claim(world, second, "T-2", bind="lease")


async def test_the_last_descriptors_are_not_for_bindings(world: World, process: Process) -> None:
    """Before they run out, and when they have, a binding is refused and everything else goes on."""
    await world.profile("docs")
    await world.task("T-1")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(free := os.dup(process.pidfd))
    try:
        for limit in (free + 1, free):  # one is left, none is
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
            with pytest.raises(LimitExceeded) as refused:
                await world.it.claim_task(
                    world.caller(session=Connection(), pid=os.getpid()), "T-1", "docs", bind="process"
                )
            assert refused.value.data["limit"] == "descriptors"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    await claim(world, process, "T-1")


async def test_an_old_incarnation_wins_nothing_for_the_new_one(world: World) -> None:
    """With the proof of a session that was replaced, or has ended, neither kind of claim succeeds; without any, as before."""
    first = await world.swarm("docs", lease_ms=HOUR_MS)
    second = await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    with pytest.raises(StaleToken):
        await world.it.claim_next(world.me, "docs", resume_token=first["resume_token"])
    with pytest.raises(StaleToken):
        await world.it.claim_task(world.me, "T-1", "docs", resume_token=first["resume_token"])
    assert (await world.show("T-1"))["state"] == "ready"
    assert (await world.it.claim_next(world.me, "docs", resume_token=second["resume_token"]))["claimed"]
    await world.it.end_session(world.me, "docs", second["resume_token"])
    with pytest.raises(StaleToken):
        await world.it.claim_task(world.me, "T-1", "docs", resume_token=second["resume_token"])
    assert (await world.it.claim_task(world.me, "T-1", "docs"))["claimed"]


async def test_an_old_incarnation_that_waits_wins_nothing(world: World) -> None:
    """It began to wait while it was the only one."""
    first = await world.swarm("docs", lease_ms=HOUR_MS)
    outcome: list[Any] = []

    async def wait() -> None:
        with pytest.raises(StaleToken) as refused:
            await world.it.claim_next(world.me, "docs", wait_ms=60_000, resume_token=first["resume_token"])
        outcome.append(refused.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await world.swarm("docs", lease_ms=HOUR_MS)
        await world.task("T-1")
    assert outcome
    assert (await world.show("T-1"))["state"] == "ready"


async def test_a_replaced_session_is_the_reason_on_record(world: World) -> None:
    """Claims of an earlier incarnation were not lost by their lease."""
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.task("T-1")
    await world.token("T-1", "docs")
    await world.swarm("docs", lease_ms=HOUR_MS)
    await world.until_state("T-1", "ready")
    while not await reasons(world):
        await trio.sleep(0.01)
    assert await reasons(world) == ["session_replaced"]

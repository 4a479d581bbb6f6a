"""A disk that fails: after a failed fsync the daemon says so and stops, on a full disk it goes on as far as it can (promise 2)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest

import ifbus.testing
from ifbus.errors import Unavailable
from tests.integration.cli.shell import Shell
from tests.proof.disk import recording
from tests.proof.disk.preload import Disk
from tests.proof.disk.recording import Event, NoSpace, Opened, Synced, SyncFailed
from tests.proof.disk.recovery import Broken, Checker, Told, scratch
from tests.proof.disk.wire import PATIENCE_S, Gone, Refused, Wire, with_key
from tests.proof.disk.workload import GUEST
from tests.proof.powerloss import replayed, some_crashes
from tests.proof.records import Proof
from tests.proof.sizes import size

pytestmark = pytest.mark.slow

FULL_S = size(1, 30, 30)
# The promise is one second.
RECOVERY_S = 10.0
_CRASHES_EACH = 10
_STOPS_WITHIN_S = 10.0
_AT_A_TIME = 2
_LEASE_MS = 3_600_000
# Of the cases that differ little from their neighbours, and each of which is a daemon of its own.
_EVERY = size(3, 1, 1)
_SHOWN = 5
_HELD = 20
_RESERVE_BYTES = 262_144
CONFIG = f"[store]\ncheckpoint_wal_bytes = 65536\nreserve_bytes = {_RESERVE_BYTES}\n"
_REFUSALS = 20


@attrs.frozen(kw_only=True)
class Run:
    """One life of a daemon on a disk that fails at a certain operation.

    Attributes:
        status: How it ended by itself; None if it had to be stopped.
        wrote: What it said on standard error.
        stopped: How it ended when asked to, if it had to be.
    """

    disk: Disk
    status: int | None
    wrote: str
    stopped: int | None
    events: Sequence[Event]


def _live(
    directory: Path, work: Callable[[Wire], None], *, sync_at: int = 0, write_at: int = 0, lasting: int = 0
) -> Run:
    """Start a daemon on an empty disk that fails there, let it do the work, and see how it ends."""
    disk = Disk(directory / "state", directory / "watch")
    config = directory / "config.toml"
    config.write_text(CONFIG)
    disk.control.sync_at, disk.control.write_at = sync_at, write_at
    disk.control.sync_lasting = disk.control.write_lasting = lasting
    status = stopped = None
    try:
        with ifbus.testing.daemon(
            state_dir=disk.state_dir, config=config, environment={**os.environ, **disk.environ}
        ) as daemon:
            syncs_failed = disk.control.failed
            with contextlib.suppress(Gone), Wire(daemon.socket) as wire:
                work(wire)
            if sync_at and disk.control.failed > syncs_failed:
                with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on: that is for the test to say
                    status = daemon.process.wait(_STOPS_WITHIN_S)
            if status is None:
                daemon.process.terminate()
                stopped = daemon.process.wait(PATIENCE_S)
            wrote = daemon.log()
    except Unavailable as error:
        wrote, status = error.message, 1 if "it ended with 1\n" in error.message else None
    return Run(disk=disk, status=status, wrote=wrote, stopped=stopped, events=recording.read(disk.log))


def _everything(wire: Wire) -> None:
    """A commit of each kind, a checkpoint, an upload; goes on after a refusal."""
    module = GUEST.read_bytes()
    blob = {"sha256": hashlib.sha256(module).hexdigest(), "offset": 0, "data": module, "total_bytes": len(module)}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("coordinator.register_swarm", {"swarm_id": "a", "lease_ms": _LEASE_MS}),
        ("coordinator.create_task", {"title": "A", "task_id": "A", "payload": {"text": "x" * 30_000}}),
        ("coordinator.create_task", {"title": "B", "task_id": "B", "payload": {"text": "x" * 30_000}}),
        ("coordinator.claim_task", {"task_id": "A", "swarm_id": "a"}),
        ("chassis.put_blob", blob),
        # What could not be made durable is not complete when it is asked for again.
        ("chassis.put_blob", blob),
        ("coordinator.create_task", {"title": "C", "task_id": "C"}),
    ]
    for method, params in requests:
        try:
            wire.do(method, **params)
        except Refused as refused:
            if refused.code not in ("unavailable", "not_found"):
                raise


async def test_every_failed_fsync_stops_the_daemon(tmp_path: Path, seed: int, proof: Proof) -> None:
    """Whichever fsync fails, once or from then on: the daemon says so and ends, and what it acknowledged survives a power loss."""
    whole = _live(tmp_path / "0", _everything)
    assert (whole.disk.control.failed, whole.stopped) == (0, 0)
    syncs = range(1, whole.disk.control.syncs + 1)
    cases = [*((at, 0) for at in syncs), *((at, 1) for at in syncs[::_EVERY])]

    def live(case: tuple[int, int]) -> Run:
        at, lasting = case
        return _live(tmp_path / f"{at}-{lasting}", _everything, sync_at=at, lasting=lasting)

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        runs = list(pool.map(live, cases))
    rng = random.Random(seed)
    problems = []
    for case, run in zip(cases, runs, strict=True):
        assert run.disk.control.failed, f"fsync {case[0]} did not come"
        problems += [f"fsync {case}: {problem}" for problem in _not_stopped(run)]
        problems += [f"fsync {case}: {problem}" for problem in await _lost(run, rng)]
    print(*problems[:_SHOWN], sep="\n")
    proof.cases(promise=2, name="each fsync fails", ran=len(cases), violations=len(problems), seed=seed)


def _not_stopped(run: Run) -> Iterator[str]:
    names = _names(run.events)
    failed = next(index for index, event in enumerate(run.events) if isinstance(event, SyncFailed))
    again = [
        index
        for index, event in enumerate(run.events)
        if index > failed and isinstance(event, Synced) and names[index] == names[failed]
    ]
    first_answer = next(
        (i for i, event in enumerate(run.events) if isinstance(event, recording.Joined)), len(run.events)
    )
    is_directory = (run.disk.state_dir / names[failed]).is_dir()
    # SQLite ignores that a directory could not be synced. Then the daemon's own attempt, before anybody gets in, has to succeed.
    if is_directory and again and failed < again[0] < first_answer:
        return
    if again and failed > first_answer:
        yield f"{names[failed]} was synced again after its fsync had failed"
    ended = run.status if run.stopped is None else run.stopped
    if ended != 1:
        yield f"the daemon went on after the fsync of {names[failed] or 'the directory'} (exit status {ended})"
    elif "fsync" not in run.wrote.lower() or str(run.disk.state_dir) not in run.wrote:
        yield f"it does not say what failed: {run.wrote[-300:]}"


def _names(events: Sequence[Event]) -> dict[int, str]:
    """By the index of an event on a descriptor: the name that this was opened by."""
    names: dict[int, str] = {}
    open_now: dict[int, str] = {}
    for index, event in enumerate(events):
        if isinstance(event, Opened):
            open_now[event.fd] = event.name
        elif isinstance(event, Synced | SyncFailed):
            names[index] = open_now[event.fd]
    return names


async def _lost(run: Run, rng: random.Random) -> list[str]:
    """What of the acknowledged a power loss at the end, or at some moment before, takes away."""
    problems = []
    with scratch() as directory:
        checker = Checker(Told.by(recording.conversation(run.events), uid=os.getuid()), directory)
        await checker.begin(replayed(run.events).kept())
        for crash in some_crashes(run.events, count=_CRASHES_EACH, rng=rng):
            try:
                await checker.check(crash.image, crash.at)
            except Broken as broken:
                problems.append(f"{crash.how} at event {crash.at}: {broken}")
    return problems


# --- no space ---------------------------------------------------------------------------------------------


class Persistent:
    """A caller on a full disk: what is refused for want of space is asked again when there is some.

    The mutable state: what was refused, and what contradicted the promise.
    """

    def __init__(self, wire: Wire, disk: Disk) -> None:
        self._wire = wire
        self._disk = disk
        self.refused = 0
        self.problems: list[str] = []

    def ask(self, method: str, **params: Any) -> Any:
        """The answer, at the latest within `RECOVERY_S` after there is space; to the same request, should it be repeated."""
        params = with_key(params)
        try:
            return self._wire.ask(method, **params)
        except Refused as refused:
            if refused.data.get("reason") != "storage_full":
                raise
        self.refused += 1
        self.read()
        make_room(self._disk)
        return until_done(lambda: self._wire.ask(method, **params))

    def read(self) -> None:
        """Reads are answered."""
        for method, params in (
            ("daemon.status", {}),
            ("coordinator.list_tasks", {"limit": 1}),
            ("governor.list_swarms", {}),
            ("witness.head", {}),
        ):
            try:
                self._wire.ask(method, **params)
            except Refused as refused:
                self.problems.append(f"{method} on a full disk: {refused}")


def make_room(disk: Disk) -> None:
    """The disk works again."""
    disk.control.write_at = disk.control.write_lasting = disk.control.full = 0


def until_done(act: Callable[[], Any]) -> Any:
    """Try again while the storage is said to be full, for `RECOVERY_S`."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        try:
            return act()
        except Refused as refused:
            if refused.data.get("reason") != "storage_full" or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _blob(number: int) -> dict[str, Any]:
    """The guest with a custom section of its own, so that each number is another module."""
    name = b"n%d" % number
    module = GUEST.read_bytes() + bytes([0, len(name) + 1, len(name)]) + name
    return {"sha256": hashlib.sha256(module).hexdigest(), "offset": 0, "data": module, "total_bytes": len(module)}


def _round(ask: Callable[..., Any], number: int) -> None:
    """Work with names of its own."""
    task = f"R-{number}"
    ask("coordinator.create_task", title="R", task_id=task, payload={"text": "x" * 15_000})
    token = ask("coordinator.claim_task", task_id=task, swarm_id="a")["claim"]["token"]
    ask("governor.track_cost", swarm_id="a", operation="llm", cost_usd="0.01", task_id=task, token=token)
    ask("coordinator.complete_task", task_id=task, swarm_id="a", token=token)


def _upload(ask: Callable[..., Any], number: int) -> None:
    """A module, whole in the end; by itself, because commits take now more, now fewer writes."""
    answer = ask("chassis.put_blob", **_blob(number))
    if not answer["complete"]:
        raise AssertionError(f"an upload that found no space does not start again: {answer}")


def _load(ask: Callable[..., Any], number: int) -> None:
    """Compile a module, which goes into the cache if there is space for it."""
    blob = _blob(number)
    ask("chassis.put_blob", **blob)
    ask("chassis.load_swarm", swarm_id="a", contract={"module_sha256": blob["sha256"], "kind": "core", "export": "add"})
    answer = ask("chassis.execute_task", swarm_id="a", module_sha256=blob["sha256"], input={"args": [1, 2]})
    assert answer["output"] == 3
    ask("chassis.unload_swarm", swarm_id="a")


@pytest.mark.parametrize(
    ("what", "lasting"),
    [(_round, 0), (_round, 1), (_upload, 0), (_load, 0)],
    ids=["once", "lasting", "uploads", "modules"],
)
async def test_every_write_that_finds_no_space(
    tmp_path: Path, seed: int, proof: Proof, request: pytest.FixtureRequest, what: Callable[..., None], lasting: int
) -> None:
    """Whichever write finds no space: only what needed it is refused, reads go on, and it works again when there is space."""
    disk = Disk(tmp_path / "state", tmp_path / "watch")
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    failed = 0
    problems: list[str] = []
    with ifbus.testing.daemon(
        state_dir=disk.state_dir, config=config, environment={**os.environ, **disk.environ}
    ) as daemon:
        with Wire(daemon.socket) as wire:
            wire.do("coordinator.register_swarm", swarm_id="a", lease_ms=_LEASE_MS)
            for at in itertools.count(1):
                before = disk.control.failed
                disk.control.write_lasting = lasting
                disk.control.write_at = disk.control.writes + at
                caller = Persistent(wire, disk)
                try:
                    what(caller.ask, at)
                except (Refused, AssertionError) as problem:
                    problems.append(f"write {at}: {problem!r:.500}")
                make_room(disk)
                problems += [f"write {at}: {problem}" for problem in caller.problems]
                if disk.control.failed == before:
                    break
                failed += 1
        daemon.process.terminate()
        assert daemon.process.wait(PATIENCE_S) == 0
    events = recording.read(disk.log)
    assert sum(isinstance(event, NoSpace) for event in events) >= failed
    run = Run(disk=disk, status=None, wrote="", stopped=0, events=events)
    problems += await _lost(run, random.Random(seed))
    if what is _round:
        problems += _missing(disk, failed)
    print(*problems[:_SHOWN], sep="\n")
    kind = request.node.callspec.id
    proof.cases(promise=2, name=f"each write finds no space, {kind}", ran=failed, violations=len(problems), seed=seed)


def _missing(disk: Disk, rounds: int) -> Iterator[str]:
    """What was done in the rounds, if only after there was space, and is not there after a restart."""
    with ifbus.testing.daemon(state_dir=disk.state_dir) as daemon, Wire(daemon.socket) as wire:
        for number in range(1, rounds + 1):
            task = wire.ask("coordinator.get_task", task_id=f"R-{number}")["task"]
            if task["state"] != "completed":
                yield f"R-{number} was completed and is {task['state']}"
        spent = Decimal(wire.ask("governor.get_budget_report", swarm_id="a")["reports"][0]["spent_usd"])
        if spent != (rounds + 1) * Decimal("0.01"):
            yield f"{rounds + 1} times 0.01 USD were tracked, {spent} are there"


def test_a_start_that_finds_no_space_says_so(tmp_path: Path, proof: Proof) -> None:
    """Whichever write of a start finds no space: it serves, or ends with a sentence about it, and the next start is well."""
    whole = _live(tmp_path / "0", lambda _: None)
    cases = range(1, whole.disk.control.writes + 1, size(2, 1, 1))

    def live(at: int) -> Run:
        return _live(tmp_path / str(at), lambda wire: wire.ask("daemon.ping"), write_at=at, lasting=1)

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        runs = list(pool.map(live, cases))
    problems = []
    for at, run in zip(cases, runs, strict=True):
        said = any(word in run.wrote for word in ("No space left on device", "disk is full", "unable to open"))
        if not (said and run.status == 1) and run.stopped is None:
            problems.append(f"write {at}: status {run.status}: {run.wrote[-300:]}")
        problems += _starts(run.disk, at)
    print(*problems[:_SHOWN], sep="\n")
    proof.cases(promise=2, name="each write of a start finds no space", ran=len(cases), violations=len(problems))


def _starts(disk: Disk, at: int) -> Iterator[str]:
    try:
        with ifbus.testing.daemon(state_dir=disk.state_dir) as daemon, Wire(daemon.socket) as wire:
            wire.ask("coordinator.create_task", title="x")
    except (Unavailable, Refused) as problem:
        yield f"after write {at}: {problem}"


@attrs.define
class FullDisk:
    """A running daemon whose disk has just become full, and a swarm on it that holds tasks."""

    disk: Disk
    wire: Wire
    shell: Shell
    resume_token: str
    held: dict[str, int]

    def write(self) -> bool:
        """Whether there was space for a large task."""
        try:
            self.wire.do("coordinator.create_task", title="x", payload={"text": "x" * 20_000})
        except Refused as refused:
            if refused.data.get("reason") != "storage_full":
                raise
            return False
        return True


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[FullDisk]:
    """Its write-ahead log has been copied back many times, as that of a daemon that has been up for a while."""
    disk = Disk(tmp_path / "state", tmp_path / "watch")
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    environ = {**os.environ, **disk.environ}
    with (
        ifbus.testing.daemon(state_dir=disk.state_dir, config=config, environment=environ) as daemon,
        Wire(daemon.socket) as wire,
    ):
        session = wire.do("coordinator.register_swarm", swarm_id="a", lease_ms=_LEASE_MS)
        held = {}
        for number in range(_HELD):
            wire.do("coordinator.create_task", title="x", task_id=f"H-{number}")
            claim = wire.do("coordinator.claim_task", task_id=f"H-{number}", swarm_id="a")["claim"]
            held[claim["task_id"]] = claim["token"]
        disk.control.full = 1
        yield FullDisk(disk, wire, Shell(daemon.socket), session["resume_token"], held)


def test_a_full_disk_for_a_while(full_disk: FullDisk, proof: Proof) -> None:
    """While nothing can grow, reads go on, sessions live, writes are refused; when there is space it recovers by itself."""
    disk, wire = full_disk.disk, full_disk.wire
    deadline = time.monotonic() + FULL_S
    reader = Persistent(wire, disk)
    refused = 0
    while refused < _REFUSALS or time.monotonic() < deadline:
        if not full_disk.write():
            refused += 1
            reader.read()
            wire.ask("coordinator.renew_session", swarm_id="a", resume_token=full_disk.resume_token)
    make_room(disk)
    began = time.monotonic()
    until_done(lambda: wire.do("coordinator.create_task", title="x", payload={"text": "x" * 20_000}))
    recovery_s = time.monotonic() - began
    for task, token in full_disk.held.items():
        wire.do("coordinator.complete_task", task_id=task, swarm_id="a", token=token)
    assert wire.ask("witness.verify")["ok"]
    print(*reader.problems[:_SHOWN], sep="\n")
    proof.cases(
        promise=2,
        name="disk full for a while",
        ran=refused,
        violations=len(reader.problems),
        figures={"recovery_ms": recovery_s * 1000},
    )


def test_releases_go_on_while_the_disk_is_full(full_disk: FullDisk, proof: Proof) -> None:
    """What gives something back, or stops somebody, is done while what takes something is refused, and it is told so."""
    wire = full_disk.wire
    refused: list[str] = []
    ends = itertools.cycle(["release_task", "complete_task", "fail_task"])
    for (task, token), method in zip(full_disk.held.items(), ends, strict=False):
        while full_disk.write():  # again and again: what is copied back may make room for all of the reserve
            pass
        more = {"error": "no space"} if method == "fail_task" else {}
        try:
            wire.do(f"coordinator.{method}", task_id=task, swarm_id="a", token=token, **more)
        except Refused as problem:
            refused.append(f"{method}: {problem}")
    while full_disk.write():
        pass
    with pytest.raises(Refused) as full:
        wire.do("coordinator.claim_task", task_id=next(iter(full_disk.held)), swarm_id="a")
    assert full.value.data["reason"] == "storage_full"
    wire.do("governor.trip_circuit_breaker", swarm_id="a", reason="enough")
    store = wire.ask("daemon.status")["store"]
    assert (store["is_full"], store["reserve_bytes"]) == (True, 0)
    said = full_disk.shell("status", "--check")
    assert (said.exit, "storage full" in said.out) == (8, True)
    make_room(full_disk.disk)
    until_done(lambda: wire.do("coordinator.create_task", title="x"))
    store = wire.ask("daemon.status")["store"]
    assert (store["is_full"], store["reserve_bytes"]) == (False, _RESERVE_BYTES)
    assert wire.ask("witness.verify")["ok"]
    print(*refused, sep="\n")
    proof.cases(promise=2, name="ends on a full disk", ran=len(full_disk.held), violations=len(refused))

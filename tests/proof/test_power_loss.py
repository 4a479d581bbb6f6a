"""Power may fail at any moment: what was acknowledged is there, whole, and the daemon goes on from it (promise 2)."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trio

import ifbus.testing
from ifbus.errors import Unavailable
from tests.proof.disk import recording
from tests.proof.disk.books import Books, differences, operations, repeat, shown_by
from tests.proof.disk.day import CONFIG, Day, count_answers, record_day
from tests.proof.disk.preload import Disk
from tests.proof.disk.recovery import Broken, Checker, Told, contents_of, scratch
from tests.proof.disk.wire import Gone, Refused, Wire
from tests.proof.powerloss import Crash, Image, crashes, place, replayed
from tests.proof.records import Proof
from tests.proof.sizes import size

pytestmark = pytest.mark.slow

STATES = size(4_000, 100_000, 1_000_000)
STARTS = size(12, 200, 2_000)
RECOVERIES = size(2, 40, 400)
KILLS = size(16, 100, 2_000)
_STATES_OF_A_RECOVERY = 150
# Changes to the disk within which a kill finds the daemon starting, and in the middle of a checkpoint.
_CALLS_OF_A_START = 45
_CALLS_OF_A_CHECKPOINT = 120
_SHOWN = 5


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    """A recorded day that the tests share."""
    return record_day(tmp_path_factory.mktemp("day"))


@pytest.fixture
def disks() -> Iterator[Path]:
    """A place for disks."""
    with scratch() as directory:
        yield directory


def test_the_record_has_everything(day: Day) -> None:
    """Replayed, the record gives the state directory byte for byte, and every answer that the callers counted."""
    assert day.final() == day.left
    assert count_answers(day.said) == day.answers


async def test_nothing_acknowledged_is_lost(day: Day, disks: Path, seed: int, proof: Proof) -> None:
    """Whatever a power loss leaves of unsynced work, the daemon's start-up code finds what was acknowledged, and nothing that never was."""
    checker = Checker(Told.by(day.said, uid=os.getuid()), disks)
    await checker.begin(day.final())
    ran, problems = await _check(checker, crashes(day.events, count=STATES, rng=random.Random(seed)))
    proof.cases(
        promise=2,
        name="power loss, whole daemon",
        ran=ran,
        violations=len(problems),
        seed=seed,
        figures={"store_states": checker.revisions},
    )


async def _check(checker: Checker, found: Iterator[Crash], at: int | None = None) -> tuple[int, list[str]]:
    """How many crashes were looked at, and what was wrong with which; `at` overrides what had been said by then."""
    ran, problems = 0, []
    for crash in found:
        ran += 1
        try:
            await checker.check(crash.image, crash.at if at is None else at)
        except Broken as broken:
            problems.append(f"{crash.how} at event {crash.at}: {broken}")
    print(*problems[:_SHOWN], sep="\n")
    return ran, problems


def _some(day: Day, count: int, rng: random.Random) -> list[Crash]:
    """Crashes from all over the day, those with something half-done first."""
    found = [crash for crash in crashes(day.events, count=STATES, rng=rng) if crash.how != "kept"]
    return rng.sample(found, min(count, len(found)))


def test_a_daemon_after_a_power_loss_knows_what_its_callers_know(
    day: Day, disks: Path, seed: int, proof: Proof
) -> None:
    """Started for real, it shows all effects of what its log has and no other, repeats answers, and does what was left undone."""
    problems = []
    ran = 0
    for ran, crash in enumerate(_some(day, STARTS, random.Random(seed)), 1):
        state_dir, copy = disks / str(ran), disks / f"{ran}-copy"
        place(crash.image, state_dir)
        place(crash.image, copy)
        # A start may add to the log: it ends what the crash left half-ended.
        left = len(trio.run(contents_of, copy).log)
        try:
            with ifbus.testing.daemon(state_dir=state_dir) as daemon, Wire(daemon.socket) as wire:
                _compare(day, crash, left, wire)
        except (AssertionError, Refused, Gone, Unavailable) as problem:
            problems.append(f"{crash.how} at event {crash.at}: {problem!r:.2000}")
    print(*problems[:_SHOWN], sep="\n")
    proof.cases(promise=2, name="power loss, real starts", ran=ran, violations=len(problems), seed=seed)


def _compare(day: Day, crash: Crash, left: int, wire: Wire) -> None:
    """`left` is the number of the last entry that the crash left."""
    head = wire.ask("witness.head")["seq"]
    assert differences(Books.after(day.said, left).shown(), shown_by(wire)) == []
    assert wire.ask("witness.verify")["ok"]
    done = operations(day.said)
    if acknowledged := [one for one in done if one.at <= crash.at]:
        again = repeat(wire, acknowledged[-1])["receipt"]
        assert again == {**acknowledged[-1].result["receipt"], "replayed": True}
    if undone := [one for one in done if one.result["receipt"]["seq"] > left]:
        for one in day.said:
            if one.method == "chassis.put_blob" and one.at > crash.at:
                repeat(wire, one)  # a module that was not complete has to come again before it can be loaded
        first = min(undone, key=lambda one: int(one.result["receipt"]["seq"]))
        once, twice = repeat(wire, first)["receipt"], repeat(wire, first)["receipt"]
        assert once["seq"] == head + 1
        assert twice == {**once, "replayed": True}


async def test_power_fails_again_during_recovery(
    day: Day, disks: Path, tmp_path: Path, seed: int, proof: Proof
) -> None:
    """A second power loss, while the daemon starts on what the first one left, loses nothing either."""
    rng = random.Random(seed)
    told = Told.by(day.said, uid=os.getuid())
    ran, problems = 0, []
    for number, crash in enumerate(_some(day, RECOVERIES, rng)):
        events = _record_start(crash.image, tmp_path / str(number))
        # A start may add to the log: it ends what the crash left half-ended. What it adds is as good as what was there.
        checker = Checker(told, disks)
        await checker.begin(replayed(events, before=crash.image).kept())
        second = crashes(events, count=_STATES_OF_A_RECOVERY, rng=rng, before=crash.image)
        more, found = await _check(checker, second, at=crash.at)
        ran += more
        problems += found
    proof.cases(promise=2, name="power loss during recovery", ran=ran, violations=len(problems), seed=seed)


def _record_start(image: Image, directory: Path) -> Sequence[recording.Event]:
    disk = Disk(directory / "state", directory / "watch")
    place(image, disk.state_dir)
    with ifbus.testing.daemon(state_dir=disk.state_dir, environment={**os.environ, **disk.environ}):
        pass
    return recording.read(disk.log)


def test_a_kill_at_any_change_to_the_disk_loses_nothing(tmp_path: Path, seed: int, proof: Proof) -> None:
    """Killed again and again, while it recovers, writes, or copies its log back, it has all that it acknowledged."""
    rng = random.Random(seed)
    disk = Disk(tmp_path / "state", tmp_path / "watch")
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    acknowledged: dict[str, str] = {}
    numbers = itertools.count()
    lost: set[str] = set()
    kills = {"starting": 0, "working": 0}
    for kill in range(KILLS):
        is_starting = kill % 2 == 1
        calls = rng.randint(1, _CALLS_OF_A_START if is_starting else _CALLS_OF_A_CHECKPOINT)
        disk.control.kill_at = disk.control.calls + calls if is_starting else 0
        try:
            with ifbus.testing.daemon(
                state_dir=disk.state_dir, config=config, environment={**os.environ, **disk.environ}
            ) as daemon:
                disk.control.kill_at = disk.control.calls + calls
                with Wire(daemon.socket) as wire:
                    lost |= _missing(wire, acknowledged)
                    for number in numbers:
                        created = wire.ask("coordinator.create_task", title="t" * 150, task_id=f"K-{number}")
                        acknowledged[f"K-{number}"] = created["receipt"]["head"]
        except Gone:
            kills["working"] += 1
        except Unavailable as error:
            if "ended with -9" not in error.message:
                raise
            kills["starting"] += 1
    disk.control.kill_at = 0
    assert kills["working"]
    with ifbus.testing.daemon(state_dir=disk.state_dir) as daemon, Wire(daemon.socket) as wire:
        lost |= _missing(wire, acknowledged)
        assert wire.ask("witness.verify")["ok"]
    proof.cases(
        promise=2,
        name="kill at any change to the disk",
        ran=sum(kills.values()),
        violations=len(lost),
        seed=seed,
        figures={**kills, "acknowledged": len(acknowledged)},
    )


def _missing(wire: Wire, acknowledged: dict[str, str]) -> set[str]:
    """Tasks that were acknowledged and are not on the record with the hash that their receipt had."""
    found: dict[str, str] = {}
    after: int | None = 0
    while after is not None:
        page = wire.ask("witness.query", after_seq=after, op="coordinator.create_task", outcome="ok")
        found |= {entry["target"]: entry["hash"] for entry in page["entries"]}
        after = page["next"]
    return {task for task, head in acknowledged.items() if found.get(task) != head}

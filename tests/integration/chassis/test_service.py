"""The chassis' methods: ownership, durability, records, claims and reports."""

from pathlib import Path

import pytest
import trio

from ifbus.errors import (
    BreakerTripped,
    GuestFailed,
    IdempotencyConflict,
    InvalidModule,
    InvalidParams,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    StaleToken,
)
from ifbus.models import Execution
from ifbusd.chassis.model import ChassisConfig
from ifbusd.codec import pack, unpack
from ifbusd.store.base import Delete, Put, Txn
from tests.integration.chassis.harness import OWNER_UID, STRANGER_UID, Harness, caller, running, wait_for


async def _records(chassis: Harness) -> list[tuple[str, str, str]]:
    records = [unpack(entry.record) for entry in await chassis.store.read_log()]
    return [(record["op"].removeprefix("chassis."), record["target"], record["outcome"]) for record in records]


async def test_every_operation_is_on_record(chassis: Harness) -> None:
    """Load, execute and unload, refused ones included, each leave one witness entry and answer with its receipt."""
    await chassis.load("core", export="add")
    answer = await chassis.execute({"args": [1, 2]}, who=caller(key="1"))
    assert Execution.from_wire(answer).output == 3
    assert answer["receipt"]["seq"] == 2
    with pytest.raises(InvalidParams):
        await chassis.execute({"args": [1]}, who=caller(key="2"))
    with pytest.raises(PermissionDenied):
        await chassis.execute({"args": [1, 2]}, who=caller(STRANGER_UID))
    await chassis.chassis.unload_swarm(caller(), "a")
    assert await _records(chassis) == [
        ("load_swarm", "a", "ok"),
        ("execute_task", "a", "ok"),
        ("execute_task", "a", "invalid_params"),
        ("execute_task", "a", "permission_denied"),
        ("unload_swarm", "a", "ok"),
    ]


async def test_nobody_acts_for_anothers_swarm(chassis: Harness) -> None:
    """A stranger can neither load for, nor execute, nor unload another's swarm, nor any swarm that is not there."""
    await chassis.load("core", export="add")
    for swarm, error in (("a", PermissionDenied), ("nobody", NotFound)):
        stranger = caller(STRANGER_UID)
        with pytest.raises(error):
            await chassis.load("core", export="add", swarm=swarm, who=stranger)
        with pytest.raises(error):
            await chassis.execute({"args": [1, 2]}, swarm=swarm, who=stranger)
        with pytest.raises(error):
            await chassis.chassis.unload_swarm(stranger, swarm)
    assert await chassis.run(1, 2) == 3


async def test_module_of_another_user_cannot_be_loaded_by_its_hash(chassis: Harness) -> None:
    """Even compiled and cached: whoever has not uploaded the bytes does not get them run."""
    answer = await chassis.load("core", export="add")
    contract = {"module_sha256": answer["module_sha256"], "export": "add"}
    with pytest.raises(NotFound):
        await chassis.chassis.load_swarm(caller(STRANGER_UID), "x", contract)
    await chassis.load("core", export="add", swarm="x", who=caller(STRANGER_UID))
    assert await chassis.run(1, 2, swarm="x", who=caller(STRANGER_UID)) == 3


async def test_loading_again_changes_nothing(chassis: Harness) -> None:
    """The same contract keeps the same worker; another one for the same module replaces it."""
    await chassis.load("core", export="add")
    pid = chassis.worker_pid()
    before = chassis.store.revision
    await chassis.load("core", export="add")
    assert (chassis.worker_pid(), chassis.store.revision) == (pid, before)
    await chassis.load("core", export="half")
    assert chassis.worker_pid() != pid
    assert await chassis.run(3.0) == 1.5
    assert chassis.chassis.statistics().workers == 1


async def test_two_who_load_the_same_at_once_end_with_one_worker(chassis: Harness) -> None:
    """Neither is refused, and no process is left over."""
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(lambda: chassis.load("core", export="add"))
    assert await chassis.run(1, 2) == 3
    await wait_for(lambda: chassis.chassis.statistics().workers == 1)


async def test_refused_load_leaves_no_process(chassis: Harness) -> None:
    """A module that turns out unfit in its worker takes the worker with it, and what was loaded stays."""
    await chassis.load("core", export="add")
    with pytest.raises(InvalidModule):
        await chassis.load("core", export="no such export")
    assert await chassis.run(1, 2) == 3
    assert chassis.chassis.statistics().workers == 1


async def test_several_modules_of_a_swarm(chassis: Harness) -> None:
    """The last loaded one is the default, each can be named, and one can go without the others."""
    core = (await chassis.load("core", export="add"))["module_sha256"]
    words = (await chassis.load("wordcount", kind="command"))["module_sha256"]
    assert (await chassis.execute({"text": "a b"}))["output"]["words"] == 2
    assert await chassis.run(1, 2, module_sha256=core) == 3
    with pytest.raises(NotFound) as caught:
        await chassis.run(1, 2, module_sha256="0" * 64)
    assert caught.value.data["loaded"] == [core, words]
    answer = await chassis.chassis.unload_swarm(caller(), "a", module_sha256=words)
    assert answer["unloaded"] == [words]
    assert await chassis.run(1, 2) == 3
    assert (await chassis.chassis.unload_swarm(caller(), "a"))["unloaded"] == [core]
    assert (await chassis.chassis.unload_swarm(caller(), "a"))["unloaded"] == []
    assert chassis.chassis.statistics().workers == 0
    with pytest.raises(NotFound, match="no module is loaded"):
        await chassis.run(1, 2)


async def test_modules_per_swarm_are_bounded(tmp_path: Path) -> None:
    """One more than the policy allows is refused, one of the loaded ones again is not."""
    async with running(tmp_path / "state", ChassisConfig(max_modules=1)) as chassis:
        await chassis.load("core", export="add")
        with pytest.raises(LimitExceeded) as caught:
            await chassis.load("wordcount", kind="command")
        assert caught.value.data["limit"] == "modules"
        await chassis.load("core", export="half")


async def test_loaded_module_outlives_the_daemon(tmp_path: Path) -> None:
    """After a restart it executes under the same contract; its worker starts with the first execution."""
    async with running(tmp_path / "state") as chassis:
        await chassis.load("core", export="spin", wall_ms=70)
    async with running(tmp_path / "state") as chassis:
        assert chassis.chassis.statistics().workers == 0
        with pytest.raises(LimitExceeded) as caught:
            await chassis.run()
        assert caught.value.data["allowed"] == 70


async def test_retried_execution_is_replayed(chassis: Harness) -> None:
    """The same idempotency key gives the first answer without running again; with another body it is refused."""
    await chassis.load("core", export="add")
    first = await chassis.execute({"args": [1, 2]}, who=caller(key="k", body=b"1"))
    again = await chassis.execute({"args": [1, 2]}, who=caller(key="k", body=b"1"))
    assert again["output"] == first["output"] == 3
    assert again["receipt"]["replayed"]
    with pytest.raises(IdempotencyConflict):
        await chassis.execute({"args": [1, 3]}, who=caller(key="k", body=b"2"))
    assert chassis.chassis.statistics().sandboxes[0].executions == 1


async def test_execution_for_a_claim_needs_its_token(chassis: Harness) -> None:
    """With a task and token the claim must stand; one without the other is refused."""
    await chassis.load("core", export="add")
    assert await chassis.run(1, 2, task_id="T-1", token=7) == 3
    with pytest.raises(StaleToken):
        await chassis.run(1, 2, task_id="T-1", token=6)
    with pytest.raises(InvalidParams):
        await chassis.run(1, 2, task_id="T-1")
    entry = unpack((await chassis.store.read_log())[1].record)
    assert (entry["detail"]["task_id"], entry["detail"]["token"]) == ("T-1", 7)


async def test_stopped_swarm_runs_no_code(chassis: Harness) -> None:
    """Once the breaker has tripped nothing is executed for the swarm, and the refusal is on record."""
    await chassis.load("core", export="add")
    await chassis.store.txn(Txn(then=[Put("tripped/a", pack({}))]))
    with pytest.raises(BreakerTripped):
        await chassis.execute({"args": [1, 2]})
    assert (await _records(chassis))[-1] == ("execute_task", "a", "breaker_tripped")
    assert [report["executions"] for report in await chassis.chassis.list_sandboxes(caller())] == [0]
    await chassis.store.txn(Txn(then=[Delete("tripped/a")]))
    assert await chassis.run(1, 2) == 3


async def test_quality_is_measured_against_the_contract(chassis: Harness) -> None:
    """Failures and latency of the last executions, the promise's verdict, and a reputation between 0 and 1."""
    await chassis.load("core", export="divide", slo={"success_ratio": 0.75, "p99_latency_ms": 10_000})
    assert (await chassis.chassis.list_sandboxes(caller()))[0]["quality"] is None
    for divisor in (1, 1, 1, 0):
        try:
            await chassis.run(divisor)
        except GuestFailed:
            assert divisor == 0
    (report,) = await chassis.chassis.list_sandboxes(caller())
    assert (report["executions"], report["failures"], report["state"]) == (4, 1, "idle")
    assert (report["quality"]["success_ratio"], report["quality"]["slo_met"]) == (0.75, True)
    assert 0.2 < report["quality"]["reputation"] < 0.75
    with pytest.raises(GuestFailed):
        await chassis.run(0)
    assert not (await chassis.chassis.list_sandboxes(caller()))[0]["quality"]["slo_met"]


async def test_sandboxes_are_listed_to_whom_they_belong(chassis: Harness) -> None:
    """A user sees those of the modules they loaded, an operator all."""
    await chassis.load("core", export="add", swarm="a")
    await chassis.load("core", export="add", swarm="x", who=caller(STRANGER_UID))
    listed = [
        sorted(report["swarm_id"] for report in await chassis.chassis.list_sandboxes(who))
        for who in (caller(OWNER_UID), caller(STRANGER_UID), caller(7), caller(7, is_operator=True))
    ]
    assert listed == [["a"], ["x"], [], ["a", "x"]]


async def test_quota_makes_room_of_unused_modules(tmp_path: Path) -> None:
    """A user at the quota loses modules that no swarm of theirs has loaded, and never a loaded one."""
    async with running(tmp_path / "state", ChassisConfig(blob_bytes_per_uid=1 << 20)) as chassis:
        loaded = await chassis.load("core", export="add")
        for fill in range(6):
            await chassis.upload(bytes([fill]) * 300_000)
        contract = {"module_sha256": loaded["module_sha256"], "export": "half"}
        await chassis.chassis.load_swarm(caller(), "a", contract)

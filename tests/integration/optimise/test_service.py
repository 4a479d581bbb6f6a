"""Reports over the ledger that the governor wrote, and the tasks that the coordinator left."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ifbus.errors import InvalidParams, Overloaded
from ifbus.money import MicroUsd
from ifbusd.codec import pack, unpack
from ifbusd.coordinator.model import CLAIMS, COMPLETED, FAILED, OPEN, TASKS, ClaimRecord, TaskRecord
from ifbusd.governor.model import HOUR_MS, LedgerEntry
from ifbusd.optimise.model import Cost
from ifbusd.optimise.service import IFOptimise
from ifbusd.store.base import Put, Txn
from tests.integration.governor.world import World, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A governor whose ledger is reported."""
    async with open_world(tmp_path) as opened:
        yield opened


async def put_task(world: World, task_id: str, state: str, *, last_holder: str = "", holder: str = "") -> None:
    """A task as the coordinator stores it."""
    task = TaskRecord(n=1, title=task_id, state=state, last_holder=last_holder)
    puts = [Put(TASKS + task_id, pack(task.to_map()))]
    if holder:
        claim = ClaimRecord(swarm_id=holder, incarnation=1, uid=1004, lease_ms=30_000, claimed_at_ms=0)
        puts.append(Put(CLAIMS + task_id, pack(claim.to_map())))
    await world.store.txn(Txn(then=puts))


async def put_cost(world: World, at_ms: int, micro_usd: int, **fields: Any) -> None:
    """A cost at any time, as the governor stores it."""
    entry = LedgerEntry(
        **{"swarm_id": "a", "task_id": None, "operation": "llm", "model": "", "usage": {}, **fields},
        at_ms=at_ms,
        micro_usd=micro_usd,
    )
    await world.store.txn(Txn(then=[Put(entry.key(str(at_ms)), pack(entry.to_stored()))]))


async def spend(world: World, swarm_id: str, task_id: str, cost: int) -> None:
    token = await world.claim(task_id, swarm_id)
    await world.governor.track_cost(
        world.ann,
        swarm_id,
        "llm",
        MicroUsd(cost),
        task_id=task_id,
        token=token,
        model="small",
        usage={"input_tokens": cost, "cache_write_tokens": 2},
    )
    await world.end(task_id, swarm_id, "neutral")


async def test_the_governors_ledger_is_reported(world: World) -> None:
    """Costs, tokens, accepted tasks and waste of each swarm come out of what was tracked and what became of the tasks."""
    for swarm_id in ("a", "b"):
        await world.register(swarm_id)
    await spend(world, "a", "T-1", 1_000_000)
    await spend(world, "b", "T-1", 250_000)
    await spend(world, "a", "T-2", 500_000)
    await spend(world, "b", "T-3", 125_000)
    await spend(world, "b", "T-4", 1)
    await world.governor.track_cost(world.ann, "a", "tool", MicroUsd(7))
    await put_task(world, "T-1", COMPLETED, last_holder="a")
    await put_task(world, "T-2", FAILED, last_holder="a")
    await put_task(world, "T-3", OPEN, last_holder="b")
    await put_task(world, "T-4", OPEN, holder="b")
    report = await IFOptimise(world.store).report(world.bob)
    rows = {row["key"]: row for row in report["rows"]}
    assert (report["total_usd"], report["waste_usd"], report["has_more"]) == ("1.875008", "0.875", False)
    assert [row["key"] for row in report["rows"]] == ["a", "b"]
    assert (rows["a"]["spent_usd"], rows["a"]["accepted"], rows["a"]["per_accepted_usd"]) == ("1.500007", 1, "1.500007")
    assert (rows["a"]["tasks"], rows["a"]["waste_usd"], rows["a"]["input_tokens"]) == (2, "0.50", 1_500_000)
    assert (rows["b"]["accepted"], rows["b"]["per_accepted_usd"], rows["b"]["waste_usd"]) == (0, None, "0.375")
    assert rows["b"]["cache_write_tokens"] == 6
    by_operation = await IFOptimise(world.store).report(world.bob, by="operation")
    assert [(row["key"], row["spent_usd"]) for row in by_operation["rows"]] == [
        ("llm", "1.875001"),
        ("tool", "0.000007"),
    ]
    by_model = await IFOptimise(world.store).report(world.bob, by="model", limit=1)
    assert ([row["key"] for row in by_model["rows"]], by_model["has_more"]) == (["small"], True)


async def test_a_ledger_entry_is_read_as_it_was_written(world: World) -> None:
    """Every field of an entry that the governor writes reaches the report's own value of it."""
    await world.register("a")
    await spend(world, "a", "T-1", 5)
    (item,) = (await world.store.range("ledger/")).items
    cost = Cost.from_stored(item.key, unpack(item.value))
    assert cost == Cost("a", cost.at_ms, "T-1", "llm", "small", (5, 0, 0, 2), 5)
    assert cost.at_ms > 0


async def test_a_period_has_its_first_and_not_its_last_millisecond(world: World) -> None:
    """Costs at the start count, costs at the end do not, whichever hours they lie in; hours are rows."""
    start = 500_000 * HOUR_MS + 123
    for at_ms in (start - HOUR_MS, start - 1, start, start + HOUR_MS, start + 2 * HOUR_MS - 1, start + 2 * HOUR_MS):
        await put_cost(world, at_ms, 1)
    optimise = IFOptimise(world.store)
    report = await optimise.report(world.ann, by="hour", since_ms=start, until_ms=start + 2 * HOUR_MS)
    assert report["total_usd"] == "0.000003"
    assert [row["key"][-6:] for row in report["rows"]] == ["08:00Z", "09:00Z", "10:00Z"]
    assert (await optimise.report(world.ann))["total_usd"] == "0.000006"
    assert (await optimise.report(world.ann, since_ms=start))["total_usd"] == "0.000004"
    for since_ms, until_ms in ((start, start), (start, 0), (-5, 1), (10**15, None), (2**63, None)):
        empty = await optimise.report(world.ann, since_ms=since_ms, until_ms=until_ms)
        assert empty["total_usd"] == "0.00"


async def test_a_long_ledger_is_read_in_slices(world: World) -> None:
    """More entries than one slice holds are all counted, while others go on; a second report at once waits its turn."""
    puts = []
    for number in range(1000):
        entry = LedgerEntry(
            swarm_id="a", at_ms=number, task_id=f"T-{number}", operation="llm", model="", usage={}, micro_usd=number
        )
        puts.append(Put(entry.key(f"{number:05d}"), pack(entry.to_stored())))
    for start in range(0, len(puts), 100):
        await world.store.txn(Txn(then=puts[start : start + 100]))
    optimise = IFOptimise(world.store)
    begun = trio.Event()
    reports = []

    async def report() -> None:
        begun.set()
        reports.append(await optimise.report(world.ann, by="task", limit=2))

    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(report)
        await begun.wait()
        with pytest.raises(Overloaded):
            await optimise.report(world.ann)
        while not reports:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert (reports[0]["total_usd"], reports[0]["has_more"]) == ("0.4995", True)
    assert [row["key"] for row in reports[0]["rows"]] == ["T-999", "T-998"]
    assert turns >= 8


async def test_an_entry_that_cannot_be_read_hides_only_itself(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged entry is reported in the log and left out; the others are counted, also that of a task that cannot be read."""
    await put_cost(world, 5, 5)
    for number, value in enumerate((b"\xc1", b"\x80", b"\x01", pack({"at_ms": "x"}))):
        await world.store.txn(Txn(then=[Put(f"ledger/0000000/a/{number}", value)]))
    await put_cost(world, 6, 2, task_id="T-1")
    await world.store.txn(Txn(then=[Put(TASKS + "T-1", pack([1]))]))
    report = await IFOptimise(world.store).report(world.ann)
    assert (report["total_usd"], report["waste_usd"]) == ("0.000007", "0.00")
    assert caplog.text.count("cannot be read and is ignored") == 4


async def test_odd_questions_are_refused(world: World) -> None:
    """Unknown dimensions and limits out of range are named."""
    optimise = IFOptimise(world.store)
    odd: Any = "colour"
    with pytest.raises(InvalidParams, match="by is one of"):
        await optimise.report(world.ann, by=odd)
    for limit in (0, 201):
        with pytest.raises(InvalidParams, match="limit is 1 to 200"):
            await optimise.report(world.ann, limit=limit)

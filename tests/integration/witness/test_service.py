"""Query and verify on the running store."""

from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
import trio

from ifbus.errors import InvalidParams, Overloaded
from ifbusd.store.schema import open_database
from ifbusd.witness import service
from tests.integration.witness.records import ANN, DATABASE, Recorded, open_recorded


@pytest.fixture
async def recorded(tmp_path: Path) -> AsyncIterator[Recorded]:
    """An empty record."""
    async with open_recorded(tmp_path) as opened:
        yield opened


async def test_an_entry_says_who_did_what_and_when(recorded: Recorded) -> None:
    """Operation, user, process, target, outcome, detail and hash of an operation are in its entry."""
    receipt = await recorded.record(1)
    (entry,) = (await recorded.witness.query(ANN))["entries"]
    assert entry.pop("at_ms") > 0
    assert entry == {
        "seq": 1,
        "revision": receipt["revision"],
        "op": "coordinator.create_task",
        "uid": 1004,
        "pid": 4711,
        "target": "T-1",
        "outcome": "ok",
        "detail": {"number": 1},
        "hash": receipt["head"],
    }


async def test_filters_and_pages_give_each_fitting_entry_once(recorded: Recorded) -> None:
    """Forwards and backwards, page by page, a filter gives just the entries that fit, in order."""
    for _ in range(3):
        await recorded.record(40)
        await recorded.record(7, op="governor.track_cost")
        await recorded.record(3, op="governor.trip_circuit_breaker", refused=True)
    everything = (await recorded.witness.query(ANN, limit=200))["entries"]
    assert len(everything) == 150
    for wanted in (
        {},
        {"op": "governor"},
        {"op": "governor.track_cost"},
        {"op": "govern"},
        {"target": "T-2"},
        {"outcome": "not_ready"},
        {"op": "governor", "outcome": "ok", "target": "T-7"},
        {"outcome": "nothing_has_this"},
    ):
        expected = [
            entry
            for entry in everything
            if (entry["op"] + ".").startswith(wanted.get("op", "").rstrip(".") + ".") or "op" not in wanted
            if entry["target"] == wanted.get("target", entry["target"])
            if entry["outcome"] == wanted.get("outcome", entry["outcome"])
        ]
        for newest_first in (False, True):
            found, after = [], 0
            while after is not None:
                page = await recorded.witness.query(ANN, after_seq=after, limit=7, newest_first=newest_first, **wanted)
                assert len(page["entries"]) <= 7
                found += page["entries"]
                after = page["next"]
            assert found == (expected[::-1] if newest_first else expected), (wanted, newest_first)


async def test_a_filter_that_fits_nothing_does_not_read_everything(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call stops after a bounded number of entries and says where to go on."""
    monkeypatch.setattr(service, "MAX_SCAN", 30)
    monkeypatch.setattr(service, "_CHUNK", 10)
    await recorded.record(100)
    page = await recorded.witness.query(ANN, target="nobody")
    assert (page["entries"], page["next"]) == ([], 30)
    page = await recorded.witness.query(ANN, target="nobody", newest_first=True)
    assert (page["entries"], page["next"]) == ([], 71)


async def test_odd_questions_are_refused_or_empty(recorded: Recorded) -> None:
    """Limits and positions out of range are refused; a position behind the end gives nothing."""
    await recorded.record(3)
    for wrong in ({"limit": 0}, {"limit": 201}, {"after_seq": -1}):
        with pytest.raises(InvalidParams):
            await recorded.witness.query(ANN, **wrong)
    assert (await recorded.witness.query(ANN, after_seq=99))["entries"] == []
    newest = await recorded.witness.query(ANN, after_seq=99, newest_first=True, limit=1)
    assert [entry["seq"] for entry in newest["entries"]] == [3]


async def test_an_untouched_record_is_verified(recorded: Recorded) -> None:
    """Every receipt of an honest record fits, the empty record included, and the answer says what it cannot know."""
    assert (await recorded.witness.verify(ANN))["ok"]
    receipts = [await recorded.record(1, refused=number % 3 == 0) for number in range(50)]
    for receipt in receipts:
        answer = await recorded.witness.verify(ANN, receipt=f"{receipt['seq']}:{receipt['head'][:8]}")
        assert (answer["ok"], answer["problems"], answer["entries"]) == (True, [], 50)
    assert answer["head"] == await recorded.witness.head(ANN)
    assert answer["cannot_know"]
    wrong = await recorded.witness.verify(ANN, receipt=f"7:{receipts[7]['head'][:8]}")
    assert [problem["seq"] for problem in wrong["problems"]] == [7]
    beyond = await recorded.witness.verify(ANN, receipt="51:00000000")
    assert "the record ends at 50" in beyond["problems"][0]["what"]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("update log set record = x'80' where seq = 7", {7}),
        ("update log set at_ms = at_ms + 1 where seq = 7", {7}),
        ("delete from log where seq between 7 and 9", {7}),
        ("update log set revision = revision - 1 where seq = 7", {7}),
        ("delete from log", set()),
    ],
)
async def test_an_edit_of_the_stopped_store_is_found_by_the_next_one(
    tmp_path: Path, edit: str, named: set[int]
) -> None:
    """Whoever edits the database between two runs is found, and the first entry concerned is named."""
    async with open_recorded(tmp_path) as recorded:
        receipt = await recorded.record(20)
    database = open_database(tmp_path / DATABASE, cache_bytes=1 << 20, wal_limit_bytes=1 << 20)
    database.execute(edit)
    database.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    database.close()
    async with open_recorded(tmp_path) as recorded:
        answer = await recorded.witness.verify(ANN, receipt=f"20:{receipt['head']}")
        assert not answer["ok"]
        assert named <= {problem["seq"] for problem in answer["problems"]}
        await recorded.witness.query(ANN)


async def test_verifying_lets_others_run_and_goes_one_at_a_time(recorded: Recorded) -> None:
    """While a long record is verified the loop turns many times, and a second verification is told to wait."""
    await recorded.record(2000)
    turns = 0
    answers = []
    begun = trio.Event()

    async def verify() -> None:
        begun.set()
        answers.append(await recorded.witness.verify(ANN))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(verify)
        await begun.wait()
        with pytest.raises(Overloaded):
            await recorded.witness.verify(ANN)
        while not answers:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert answers[0]["ok"]
    assert turns >= 2000 // service._CHUNK // 2
    assert (await recorded.witness.verify(ANN))["ok"], "and the next one may go"


async def test_entries_that_come_during_a_verification_are_no_problem(recorded: Recorded) -> None:
    """A record that grows while it is verified gives no false alarm."""
    await recorded.record(600)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(recorded.record, 20)
        for _ in range(5):
            assert (await recorded.witness.verify(ANN))["problems"] == []

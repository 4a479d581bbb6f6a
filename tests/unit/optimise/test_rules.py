"""The arithmetic of cost reports: exact sums, and what counts as accepted or waste."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbusd.optimise import rules
from ifbusd.optimise.model import BUCKETS, Cost, TaskFate

SWARMS, TASKS = ["a", "b"], ["", "T-1", "T-2", "T-3", "T-4"]
costs = st.builds(
    Cost,
    swarm_id=st.sampled_from(SWARMS),
    at_ms=st.integers(0, 10**13),
    task_id=st.sampled_from(TASKS),
    operation=st.sampled_from(["llm", "tool"]),
    model=st.sampled_from(["", "small"]),
    tokens=st.tuples(*[st.integers(0, 2**53)] * 4),
    micro_usd=st.integers(0, 10**18),
)
FATES = {
    "T-1": TaskFate("completed", "a"),
    "T-2": TaskFate("failed", "b"),
    "T-3": TaskFate("open", "a"),
}


def sums_of(entries: list[Cost], by: rules.Dimension) -> rules.Sums:
    sums = rules.Sums(by)
    for cost in entries:
        sums.add(cost)
    return sums


@given(st.lists(costs, max_size=30), st.sampled_from(rules.DIMENSIONS))
def test_parts_add_up_to_the_whole(entries: list[Cost], by: rules.Dimension) -> None:
    """Spent, tokens and waste of all rows equal the sums of the ledger, to the micro-dollar, by every dimension."""
    report = rules.report(sums_of(entries, by), by, FATES, limit=1000)
    assert Decimal(report["total_usd"]) * 10**6 == sum(cost.micro_usd for cost in entries)
    assert sum(Decimal(row["spent_usd"]) for row in report["rows"]) == Decimal(report["total_usd"])
    assert sum(Decimal(row["waste_usd"]) for row in report["rows"]) == Decimal(report["waste_usd"])
    for index, bucket in enumerate(BUCKETS):
        assert sum(row[bucket] for row in report["rows"]) == sum(cost.tokens[index] for cost in entries)
    assert [row["key"] for row in report["rows"]] == sorted(
        {rules.key_of(cost, by) for cost in entries},
        key=lambda key: (-sum(cost.micro_usd for cost in entries if rules.key_of(cost, by) == key), key),
    )
    waste = sum(
        cost.micro_usd
        for cost in entries
        if (cost.task_id, cost.swarm_id) in {("T-1", "b"), ("T-2", "a"), ("T-2", "b"), ("T-3", "b")}
    )
    assert Decimal(report["waste_usd"]) * 10**6 == waste


@pytest.mark.parametrize(
    ("fate", "accepted", "waste"),
    [
        (None, False, False),
        (TaskFate("completed", "a"), True, False),
        (TaskFate("completed", ""), True, False),
        (TaskFate("completed", "b"), False, True),
        (TaskFate("failed", "a"), False, True),
        (TaskFate("open", "a"), False, False),
        (TaskFate("open", ""), False, True),
        (TaskFate("open", "b"), False, True),
        (TaskFate("open", "", is_blocked=True), False, False),
    ],
)
def test_what_became_of_a_task_decides(fate: TaskFate | None, accepted: bool, waste: bool) -> None:
    """Completed by the swarm is accepted; failed, given back or completed by another is waste; the rest is neither."""
    assert rules.is_accepted(fate, "a") == accepted
    assert rules.is_waste(fate, "a") == waste


def test_a_row_says_what_an_accepted_task_costs() -> None:
    """The price of an accepted task counts everything that was spent, rounded up to the micro-dollar."""
    entries = [
        Cost("a", 0, "T-1", "llm", "", (1, 2, 3, 4), 700_000),
        Cost("a", 0, "T-1", "llm", "", (1, 0, 0, 0), 100_000),
        Cost("a", 0, "T-2", "llm", "", (0, 0, 0, 0), 200_001),
    ]
    (row,) = rules.report(sums_of(entries, "swarm"), "swarm", FATES, limit=5)["rows"]
    assert row == {
        "key": "a",
        "tasks": 2,
        "accepted": 1,
        "spent_usd": "1.000001",
        "per_accepted_usd": "1.000001",
        "input_tokens": 2,
        "output_tokens": 2,
        "cache_read_tokens": 3,
        "cache_write_tokens": 4,
        "waste_usd": "0.200001",
        "waste_ratio": 200_001 / 1_000_001,
    }
    fates = {"T-1": TaskFate("completed", "a"), "T-2": TaskFate("completed", "a")}
    (row,) = rules.report(sums_of(entries, "swarm"), "swarm", fates, limit=5)["rows"]
    assert row["per_accepted_usd"] == "0.500001"


def test_nothing_spent_is_no_division_by_zero() -> None:
    """A free task has a waste ratio of 0, and a report without costs has no rows."""
    (row,) = rules.report(sums_of([Cost("a", 0, "T-2", "llm", "", (0,) * 4, 0)], "task"), "task", FATES, limit=5)[
        "rows"
    ]
    assert (row["waste_ratio"], row["per_accepted_usd"]) == (0.0, None)
    assert rules.report(rules.Sums("hour"), "hour", {}, limit=5) == {
        "by": "hour",
        "rows": [],
        "total_usd": "0.00",
        "waste_usd": "0.00",
        "has_more": False,
    }


def test_hours_are_written_in_utc() -> None:
    """The hour's key is its start in UTC, whatever the host's time zone."""
    cost = Cost("a", 1_785_000_000_000 + 59 * 60_000, "", "llm", "", (0,) * 4, 1)
    assert rules.key_of(cost, "hour") == "2026-07-25T18:00Z"


def test_the_dearest_rows_are_shown_and_the_totals_are_of_all() -> None:
    """A limit cuts rows, says so, and leaves the totals alone."""
    entries = [Cost("a", 0, f"T-{number}", "llm", "", (0,) * 4, number) for number in range(10)]
    report = rules.report(sums_of(entries, "task"), "task", {}, limit=3)
    assert [row["key"] for row in report["rows"]] == ["T-9", "T-8", "T-7"]
    assert (report["has_more"], report["total_usd"]) == (True, "0.000045")

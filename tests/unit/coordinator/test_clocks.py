"""The three clocks of a claim: what they show, and from when on they are alarming."""

from __future__ import annotations

from typing import Any

import pytest

from ifbusd.coordinator.clocks import rules
from ifbusd.coordinator.model import ClaimRecord, CoordinatorConfig
from ifbusd.coordinator.rules import is_evidence

CONFIG = CoordinatorConfig()
NOW_MS = 1_000_000


def read(*, estimate: int = 0, spent: int = 0, left_ms: int | None = 20_000, **claim: Any) -> rules.Clocks:
    record = ClaimRecord(swarm_id="docs", incarnation=1, uid=1, lease_ms=30_000, claimed_at_ms=NOW_MS - 9_000, **claim)
    return rules.read(record, estimate, spent, left_ms, now_ms=NOW_MS, config=CONFIG)


def test_beat_is_the_time_since_the_lease_was_full() -> None:
    """Of observed time, so that it needs no record of its own."""
    assert (read().beat_ms, read().lease_left_ms) == (10_000, 20_000)
    assert (read(left_ms=None).beat_ms, read(left_ms=None).lease_left_ms) == (30_000, 0)


def test_progress_counts_from_the_last_evidence() -> None:
    """Or from the claim; what was spent before does not count."""
    assert (read(spent=70).progress_ms, read(spent=70).spent_micro_usd) == (9_000, 70)
    shown = read(spent=70, evidence_at_ms=NOW_MS - 500, evidence_micro_usd=40)
    assert (shown.progress_ms, shown.spent_micro_usd) == (500, 30)


@pytest.mark.parametrize(
    ("estimate", "spent", "alarming"),
    [
        (0, 100_000, False),
        (0, 100_001, True),
        (10_000_000, 2_000_000, False),
        (10_000_000, 2_000_001, True),
        (1, 100_000, False),
    ],
)
def test_a_runaway_spends_more_than_it_may_without_progress(estimate: int, spent: int, alarming: bool) -> None:
    """A fifth of the estimate, and at least ten cents; the alarm has the figures."""
    shown = read(estimate=estimate, spent=spent)
    alarm = rules.runaway("T-1", 7, "docs", shown)
    assert (alarm is not None) is alarming
    if alarm is not None:
        assert (alarm.kind, alarm.whose, alarm.key) == ("runaway", "T-1@7", "alarms/runaway/T-1@7")
        assert alarm.data["spent_usd"] in alarm.message
        assert alarm.to_wire(5)["reason"] == alarm.message


@pytest.mark.parametrize(
    ("left_ms", "alarming"), [(30_000, False), (9_001, False), (9_000, True), (0, True), (None, True)]
)
def test_silence_is_most_of_a_lease_without_a_beat(left_ms: int | None, alarming: bool) -> None:
    """Two of three heartbeats missed; it is told before the lease has ended."""
    alarm = rules.silent("docs", "docs", 30_000, left_ms, CONFIG.silent_ratio)
    assert (alarm is not None) is alarming


def test_starvation_is_an_old_letter() -> None:
    """From the limit on."""
    at_ms = NOW_MS - CONFIG.starving_ms
    assert rules.starving("docs", 1, at_ms + 1, now_ms=NOW_MS, limit_ms=CONFIG.starving_ms) is None
    alarm = rules.starving("docs", 3, at_ms, now_ms=NOW_MS, limit_ms=CONFIG.starving_ms)
    assert alarm is not None
    assert (alarm.data["letters"], alarm.data["oldest_ms"]) == (3, CONFIG.starving_ms)


@pytest.mark.parametrize(
    ("percent", "note", "counts"),
    [
        (50, "half", False),
        (50, "", False),
        (49, "half", False),
        (51, "half", True),
        (50, "other", True),
        (10, "", False),
    ],
)
def test_saying_the_same_again_is_no_evidence(percent: int, note: str, counts: bool) -> None:
    """More than before, or something else, is."""
    claim = ClaimRecord(swarm_id="d", incarnation=0, uid=1, lease_ms=1, claimed_at_ms=1, percent=50, note="half")
    assert is_evidence(claim, percent, note) is counts


def test_alive_is_said_only_of_what_is_watched() -> None:
    """A lease alone says nothing about it, nor does a process that nobody watches any more."""
    watched = {"kind": "process", "pid": 5, "watched": True}
    assert read().to_wire("process", watched)["alive"] is True
    assert read().to_wire("process", {**watched, "watched": False})["alive"] is None
    assert read().to_wire("lease", None)["alive"] is None

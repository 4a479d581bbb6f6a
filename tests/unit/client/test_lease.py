"""Until when a holder may believe that it is one, and what the end of a block does to a claim."""

from __future__ import annotations

import dataclasses
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.claim import structure, verdict_on
from ifbus.errors import InvalidParams, LeaseLost, StaleToken
from ifbus.lease import Tenure


def _tenure(*, sent_s: float = 100.0, lease_ms: int = 9_000) -> Tenure:
    return Tenure("me", lease_ms=lease_ms, sent_s=sent_s, pid=1)


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    """The holder stops before the daemon could have given the claim away."""
    tenure = _tenure()
    tenure.check(108.9, 1)
    with pytest.raises(LeaseLost, match="not renewed in time"):
        tenure.check(109.0, 1)
    tenure.renewed(lease_ms=9_000, sent_s=109.5, listed=[])
    with pytest.raises(LeaseLost):
        tenure.check(110.0, 1)  # what is lost never comes back


def test_a_renewal_carries_on() -> None:
    """A renewal proves the session from when it was sent, and the next is due after a third of the lease."""
    tenure = _tenure()
    assert tenure.next_renewal_s(100.0) == 3.0
    assert tenure.renewed(lease_ms=6_000, sent_s=108.0, listed=[]) == {}
    tenure.check(113.9, 1)
    assert tenure.next_renewal_s(108.0) == 2.0
    assert tenure.next_renewal_s(120.0) == 0.0


def test_a_claim_that_is_listed_no_more_has_ended() -> None:
    """Only a claim that was held before the previous renewal counts as gone: a list may be older than a fresh claim."""
    tenure = _tenure()
    tenure.hold("T-1@1", 99.0)
    tenure.hold("T-2@2", 102.0)
    assert list(tenure.renewed(lease_ms=9_000, sent_s=103.0, listed=[])) == ["T-1@1"]
    tenure.check(104.0, 1, "T-2@2")
    with pytest.raises(LeaseLost, match="lists it no more"):
        tenure.check(104.0, 1, "T-1@1")
    assert tenure.renewed(lease_ms=9_000, sent_s=106.0, listed=["T-2@2"]) == {}
    assert tenure.holds("T-2@2")
    tenure.let_go("T-2@2")
    assert not tenure.holds("T-2@2")


def test_a_claim_whose_holder_is_ending_it_is_not_lost() -> None:
    """A list without it may be the daemon's answer to that very word; if the word failed, the next list says so."""
    tenure = _tenure()
    tenure.hold("T-1@1", 99.0)
    tenure.ending.add("T-1@1")
    assert tenure.renewed(lease_ms=9_000, sent_s=103.0, listed=[]) == {}
    tenure.check(104.0, 1, "T-1@1")
    tenure.ending.discard("T-1@1")
    assert list(tenure.renewed(lease_ms=9_000, sent_s=106.0, listed=[])) == ["T-1@1"]


def test_a_fork_holds_nothing() -> None:
    """Another process than the one that registered may not act for the swarm."""
    with pytest.raises(LeaseLost, match="fork"):
        _tenure().check(100.0, 2)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 0.5)), max_size=20))
def test_a_holder_never_outlives_the_daemons_lease(renewals: list[tuple[float, float]]) -> None:
    """Whenever renewals are sent and however long they travel, the holder stops no later than the daemon's lease ends."""
    now_s, tenure = 100.0, _tenure(lease_ms=2_000)
    daemon_until_s = now_s + 2.0
    for pause_s, travel_s in renewals:
        now_s += pause_s
        if now_s + travel_s >= daemon_until_s:
            break
        daemon_until_s = now_s + travel_s + 2.0
        tenure.renewed(lease_ms=2_000, sent_s=now_s, listed=[])
    with pytest.raises(LeaseLost):
        tenure.check(daemon_until_s, 1)


@pytest.mark.parametrize(
    ("error", "has_ended", "verdict"),
    [
        (None, False, "release"),
        (None, True, "none"),
        (KeyError(), False, "fail"),
        (KeyError(), True, "none"),
        (KeyboardInterrupt(), False, "release"),
        (StaleToken("gone"), False, "none"),
        (LeaseLost("gone"), False, "none"),
    ],
)
def test_how_a_block_ends(error: BaseException | None, has_ended: bool, verdict: str) -> None:
    """An exception fails the task, an interruption or silence gives it back, what has ended stays as it is."""
    assert verdict_on(error, has_ended=has_ended) == verdict


@attrs.frozen
class Attrs:
    """A holder's type."""

    text: str
    _hidden: int = 0


@dataclasses.dataclass
class Data:
    """Another."""

    text: str
    many: int = 1


@pytest.mark.parametrize(
    ("spec", "expected"),
    [(None, {"text": "x", "more": 1}), (dict, {"text": "x", "more": 1}), (Attrs, Attrs("x")), (Data, Data("x"))],
)
def test_a_payload_is_read_as_the_holders_type(spec: Any, expected: Any) -> None:
    """Fields by name; keys that the type lacks are passed over; no type gives the map."""
    assert structure(spec, {"text": "x", "more": 1}, "T-1") == expected


def test_a_payload_that_does_not_fit_is_refused() -> None:
    """A missing field is named, with the task."""
    with pytest.raises(InvalidParams, match=r"payload of T-1 as Attrs.*text"):
        structure(Attrs, {}, "T-1")

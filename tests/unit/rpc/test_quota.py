"""The token bucket, beside a naive model, and the table of shares."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbusd.rpc.quota import Bucket, Rate, Shares, take

RATE = Rate(per_s=10.0, burst=5.0)


def test_a_full_bucket_gives_a_burst_and_then_the_rate() -> None:
    """Five at once, then one each tenth of a second, and the wait says when."""
    bucket = Bucket()
    assert [take(bucket, RATE, 0.0, 1) for _ in range(5)] == [0.0] * 5
    assert take(bucket, RATE, 0.0, 1) == pytest.approx(0.1)
    assert take(bucket, RATE, 0.05, 1) == pytest.approx(0.05)
    assert take(bucket, RATE, 0.1, 1) == 0.0
    assert take(bucket, RATE, 0.1, 3) == pytest.approx(0.3)


def test_a_refusal_takes_nothing() -> None:
    """Asking again and again does not put off the moment at which it is granted."""
    bucket = Bucket()
    take(bucket, RATE, 0.0, 5)
    for _ in range(100):
        assert take(bucket, RATE, 0.0, 1) > 0
    assert take(bucket, RATE, 0.1, 1) == 0.0


def test_more_than_a_burst_is_granted_by_a_full_bucket() -> None:
    """A request that costs more than the bucket holds is not refused for ever."""
    bucket = Bucket()
    assert take(bucket, RATE, 0.0, 50) == 0.0
    assert take(bucket, RATE, 1.0, 1) > 0


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 8)), max_size=60))
def test_it_grants_what_a_counted_bucket_grants(steps: list[tuple[int, int]]) -> None:
    """The same answers as a bucket of counted tokens, exact in fractions."""
    bucket, tokens, now = Bucket(), Fraction(5), Fraction(0)
    for milliseconds, n in steps:
        now += Fraction(milliseconds, 1000)
        tokens = min(Fraction(5), tokens + Fraction(milliseconds, 1000) * 10)
        is_granted = take(bucket, RATE, float(now), n) == 0.0
        assert is_granted == (tokens >= min(n, 5))
        if is_granted:
            tokens -= n


def test_a_share_lasts_as_long_as_it_means_something() -> None:
    """Reconnecting does not refill a bucket; a user who is gone and whose bucket is full is forgotten."""
    shares = Shares()
    share = shares.of(1000, 0.0)
    share.connections = 1
    take(share.bucket, RATE, 0.0, 5)
    share.connections = 0
    assert shares.of(1000, 0.1) is share
    for uid in range(100):
        shares.of(uid, 0.2)
    assert shares.of(1000, 0.2) is share
    assert shares.of(5000, 10.0) is not share
    assert len(shares) == 1

"""When leases end: only time that was observed counts."""

from hypothesis import given
from hypothesis import strategies as st

from ifbusd.store.leases import LeaseTable, observed_step_ms

STEP_MS = 200


def table(now_ms: int = 1_000_000) -> LeaseTable:
    """An empty table that is looked at about every 100 ms."""
    return LeaseTable(now_ms=now_ms, step_limit_ms=STEP_MS)


def test_a_gap_counts_as_one_step() -> None:
    """Ten hours of suspend take a fifth of a second off a lease, a clock that went back takes nothing."""
    assert observed_step_ms(36_000_000, limit_ms=STEP_MS) == STEP_MS
    assert observed_step_ms(-5_000, limit_ms=STEP_MS) == 0
    assert observed_step_ms(100, limit_ms=STEP_MS) == 100


def test_nobody_expires_after_a_suspend() -> None:
    """All leases survive a gap of ten times their length, and end after what was left when it began."""
    leases = table(0)
    for lease in range(1, 101):
        leases.add(lease, 10_000, 0)
    now_ms = 0
    for _ in range(50):
        now_ms += 100
        leases.observe(now_ms)
    now_ms += 100_000
    leases.observe(now_ms)
    assert leases.due() == []
    while not leases.due():
        now_ms += 100
        leases.observe(now_ms)
    assert len(leases.due()) == 100
    assert now_ms == 100_000 + 10_000 - STEP_MS


@given(
    steps=st.lists(st.integers(0, 1000) | st.integers(-10_000, 10_000_000), max_size=200),
    ttl_ms=st.integers(1, 5000),
    renew_at=st.integers(0, 50),
)
def test_a_lease_lives_for_its_time_after_the_last_renewal(steps: list[int], ttl_ms: int, renew_at: int) -> None:
    """A lease is due exactly when the observed steps after its renewal add up to its time, whatever the clock did."""
    leases = table(0)
    leases.add(1, ttl_ms, 0)
    now_ms = observed_ms = 0
    for number, step_ms in enumerate(steps):
        if number == renew_at:
            assert leases.renew(1, now_ms) == ttl_ms
            observed_ms = 0
        now_ms += step_ms
        observed_ms += max(0, min(step_ms, STEP_MS))
        leases.observe(now_ms)
        assert leases.due() == ([1] if observed_ms >= ttl_ms else [])
        assert leases.left_ms(1, now_ms) == max(0, ttl_ms - observed_ms)


def test_a_renewal_between_looks_loses_nothing() -> None:
    """A lease renewed just before a look keeps its full time, not that of the look before."""
    leases = table(0)
    leases.add(1, 1000, 0)
    leases.renew(1, 99)
    leases.observe(100)
    assert leases.left_ms(1, 100) == 999


def test_ended_and_restored() -> None:
    """A lease that was put back after a failed commit is due again, once; a removed one is neither due nor renewed."""
    leases = table(0)
    leases.add(1, 100, 0)
    leases.add(2, 100, 0)
    leases.observe(100)
    assert leases.due() == [1, 2]
    removed = leases.remove(1)
    assert removed is not None
    assert leases.due() == [2]
    assert leases.renew(1, 100) is None
    assert leases.left_ms(1, 100) is None
    leases.restore(removed)
    assert leases.due() == [1, 2]
    assert 1 in leases
    assert leases.remove(3) is None


def test_leases_that_come_and_go_take_no_memory() -> None:
    """Granting and revoking for ever, long before their time is over, leaves no pile of old ends."""
    leases = table(0)
    for lease in range(10_000):
        leases.add(lease, 86_400_000, 0)
        leases.remove(lease)
    assert len(leases) == 0
    assert len(leases._ends) < 200

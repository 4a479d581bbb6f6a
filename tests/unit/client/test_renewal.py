"""What the renewing thread believes of a lease when an answer takes its time."""

from __future__ import annotations

import time
from typing import TypeVar

from ifbus.lease import Renewal, Tenure, now_s
from ifbus.request import Call, read_answer

R = TypeVar("R")

# Only a test that fails waits for so long.
PATIENCE_S = 60.0
LEASE_S = 600.0


class SlowLink:
    """Answers only when the clock has moved on since it was asked; keeps when that was."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    def perform(self, call: Call[R]) -> R:
        self.asked_s.append(now_s())
        while now_s() <= self.asked_s[-1]:
            pass
        return read_answer(call, {"lease_ms": int(LEASE_S * 1000), "claims": []})

    def close(self) -> None:
        pass


def test_a_lease_is_counted_from_when_its_renewal_was_asked_for() -> None:
    """The daemon's lease began when the renewal came to it, so the holder's began no later, however late the answer is."""
    link = SlowLink()
    before_s = now_s() - LEASE_S / 2  # long enough ago for a renewal to be due at once
    tenure = Tenure("me", lease_ms=int(LEASE_S * 1000), sent_s=before_s, pid=1)
    renewal = Renewal(
        link,
        tenure,
        "token",
        owns_link=False,
        on_lost=lambda error, is_silent: None,
        on_attention=lambda item: None,
        on_gone=lambda handle, error: None,
    )
    renewal.start()
    try:
        deadline = time.monotonic() + PATIENCE_S
        while tenure.proven_until_s == before_s + LEASE_S:
            assert time.monotonic() < deadline, "it was not renewed"
            time.sleep(0.001)
    finally:
        renewal.stop()
    assert tenure.proven_until_s <= link.asked_s[0] + LEASE_S

"""When to try again, decided without a clock or a die: both are arguments."""

from __future__ import annotations

from typing import Final

from ifbus.errors import ConnectionFailed, IfbusError, NoDaemon, Overloaded, SocketBlocked, SocketDenied, Unavailable

BASE_S: Final = 0.02
CAP_S: Final = 2.0
# Momentary refusals in a row after which the caller hears of them: together the waits are about 0.6 s at most, so a
# full quota passes unseen and an outage does not turn into a hang.
MAX_TRIES: Final = 5


def backoff(attempt: int, rnd: float) -> float:
    """Seconds to wait before try number `attempt` + 2: full jitter, so that many who failed together do not return together.

    Args:
        attempt: How many tries failed before the last one, from 0.
        rnd: A number drawn evenly from 0 to 1.
    """
    # The exponent is bounded before it is used: 2.0**1100 would overflow.
    return rnd * min(CAP_S, BASE_S * 2.0 ** min(attempt, 16))


def next_try(error: IfbusError, attempt: int, rnd: float, *, left_s: float, was_connected: bool) -> float | None:
    """Seconds to wait before sending the same request again, with the same idempotency key; None: give the error to the caller.

    Args:
        error: Why the last try failed.
        attempt: How many tries failed before that one.
        rnd: A number drawn evenly from 0 to 1.
        left_s: Seconds until the caller's deadline.
        was_connected: This client had a connection before: a daemon that is gone now is probably being restarted. At the
            first connection, its absence is the answer.
    """
    if isinstance(error, Overloaded | Unavailable):
        if attempt >= MAX_TRIES:
            return None
        wait_s = max(backoff(attempt, rnd), error.retry_after_ms / 1000)
    elif isinstance(error, SocketDenied | SocketBlocked):
        return None
    elif isinstance(error, NoDaemon):
        if not was_connected:
            return None
        wait_s = backoff(attempt, rnd)
    elif isinstance(error, ConnectionFailed) and error.retryable:
        # The first time at once: it is usually one dropped connection of a daemon that is well.
        wait_s = backoff(attempt, rnd) if attempt else 0.0
    else:
        return None
    return wait_s if wait_s < left_s else None

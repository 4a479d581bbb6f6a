"""How much of the daemon one user may take: a token bucket per uid, a count of its connections, one long look at a time.

Rule of this file: no clock; the caller says what time it is.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Final

import trio

# Rounding must not turn "exactly the last token" into a wait of some femtoseconds.
_ROUNDING_S: Final = 1e-9


class Quota(enum.IntEnum):
    """What a request of a method takes out of its user's bucket.

    `LIST` looks at many records, a slice per turn of the loop. A user's run one after another: side by side, their slices
    would come together in one turn, and keep everybody else waiting for the sum.
    """

    READ = 1
    WRITE = 2
    LIST = 10
    HEAVY = 50


class Rate:
    """`per_s` tokens a second, `burst` of them at once."""

    __slots__ = ("burst_s", "token_s")

    def __init__(self, *, per_s: float, burst: float) -> None:
        self.token_s = 1 / per_s
        self.burst_s = burst / per_s + _ROUNDING_S


class Bucket:
    """The state of one token bucket: the time at which it will be full again. It starts full."""

    __slots__ = ("full_at_s",)

    def __init__(self) -> None:
        self.full_at_s = float("-inf")


def take(bucket: Bucket, rate: Rate, now_s: float, n: int) -> float:
    """Take `n` tokens: 0.0 if they were there, else how many seconds until they are (then none was taken).

    More tokens than a burst holds never come together: they are granted when the bucket is full.
    """
    full_at_s = bucket.full_at_s
    if full_at_s < now_s:
        full_at_s = now_s
    after_s = full_at_s + n * rate.token_s
    if after_s - now_s > rate.burst_s and full_at_s - now_s > _ROUNDING_S:
        return min(after_s - now_s - rate.burst_s, full_at_s - now_s)
    bucket.full_at_s = after_s
    return 0.0


class Share:
    """What one user takes at the moment: its bucket, its open connections, and who of them has the turn for a `Quota.LIST`."""

    __slots__ = ("bucket", "connections", "turn")

    def __init__(self) -> None:
        self.bucket = Bucket()
        self.connections = 0
        self.turn = trio.Lock()


class Shares:
    """The shares of all users with a connection. The mutable state is the table below, nothing else.

    A share outlives its last connection until its bucket is full again, so that reconnecting does not refill it;
    `prune` drops such leftovers and is called when a share is made, so the table stays as small as the users are many.
    """

    def __init__(self) -> None:
        self._shares: dict[Hashable, Share] = {}

    def of(self, uid: int, now_s: float) -> Share:
        """The share of a user, made full if there is none."""
        share = self._shares.get(uid)
        if share is None:
            self.prune(now_s)
            share = self._shares[uid] = Share()
        return share

    def prune(self, now_s: float) -> None:
        """Forget users without a connection whose bucket is full."""
        for uid, share in list(self._shares.items()):
            if not share.connections and share.bucket.full_at_s <= now_s:
                del self._shares[uid]

    def __len__(self) -> int:
        return len(self._shares)

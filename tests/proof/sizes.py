"""How much a proof runs: *suite* takes seconds and is part of every test run, *soak* an hour, *torture* a night.

`IFBUS_PROOF` chooses (`make soak` and `make torture` set it); a proof asks for its number with `size`, and for where
its random choices start with the fixture `seed`.
"""

import enum
import os
import random

_VARIABLE = "IFBUS_PROOF"


class Size(enum.StrEnum):
    """One of the three sizes; the value is what `IFBUS_PROOF` holds and the name of the directory of the records."""

    SUITE = "suite"
    SOAK = "soak"
    TORTURE = "torture"


def _chosen() -> Size:
    word = os.environ.get(_VARIABLE, Size.SUITE)
    try:
        return Size(word)
    except ValueError:
        raise ValueError(f"{_VARIABLE}={word}: it is one of {', '.join(Size)}") from None


CHOSEN = _chosen()


def size(suite: int, soak: int, torture: int) -> int:
    """Of three numbers, the one for this run: so many cases, kills, seconds."""
    return {Size.SUITE: suite, Size.SOAK: soak, Size.TORTURE: torture}[CHOSEN]


def seed_of_run() -> int:
    """`IFBUS_SEED` where it is set, else a new number below 2^32."""
    return int(os.environ.get("IFBUS_SEED") or random.SystemRandom().randrange(2**32))

"""Money: decimal strings at the edge, integer micro-dollars inside, never a binary float (DESIGN promise 4)."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from typing import Any, NewType

# An amount inside the daemon. A method's parameter of this type takes a decimal string or whole number of dollars on the wire.
MicroUsd = NewType("MicroUsd", int)

NO_MONEY = MicroUsd(0)

MICRO_PER_USD = 1_000_000
# 10**12 USD: far above any real budget, and a sum of 10**6 of them still fits the 64-bit integers of wire and disk.
MAX_MICRO_USD = 10**12 * MICRO_PER_USD
# ASCII digits by class, because \d also takes other scripts' digits; at most 6 decimals, so nothing is ever rounded.
_AMOUNT = re.compile(r"([0-9]{1,13})(?:\.([0-9]{1,6}))?", re.ASCII)


def to_micro_usd(amount: Any) -> int:
    """Whole micro-dollars for an amount given as a decimal string, an int or a `Decimal` of dollars.

    Accepts ``"0.05"``, ``5``, ``Decimal("1.2")``: no sign, exponent, float, blank or separator, at most six
    decimals and at most 10**12 dollars, so that the result is exact.

    Raises:
        ValueError: The amount is none of these; the message names it and what is expected.
    """
    if isinstance(amount, Decimal):
        amount = str(amount)
    elif type(amount) is int:
        amount = str(amount) if 0 <= amount <= 10**12 else "out of range"
    match = _AMOUNT.fullmatch(amount) if type(amount) is str and len(amount) <= 20 else None
    if match is None:
        raise ValueError(
            f"an amount of dollars is a string such as '0.05' or a whole number, with at most six decimals, got {amount!r:.40}"
        )
    whole, decimals = match.groups()
    micro = int(whole) * MICRO_PER_USD + int((decimals or "").ljust(6, "0"))
    if micro > MAX_MICRO_USD:
        raise ValueError(f"an amount is at most {MAX_MICRO_USD // MICRO_PER_USD} dollars, got {amount:.40}")
    return micro


# The same few amounts are shown over and over: estimates, budgets, nothing.
@functools.lru_cache(maxsize=1024)
def to_usd(micro_usd: int) -> str:
    """The decimal string for micro-dollars, with at least two decimals: 50_000 -> ``"0.05"``, -1 -> ``"-0.000001"``."""
    sign = "-" if micro_usd < 0 else ""
    whole, micro = divmod(abs(micro_usd), MICRO_PER_USD)
    decimals = f"{micro:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{decimals}"

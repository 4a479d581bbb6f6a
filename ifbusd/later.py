"""What a method's handler gives where its answer has to be waited for: the connection reads on meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple


class Later(NamedTuple):
    """The rest of a request.

    Attributes:
        finish: Gives the answer or raises the refusal. Whoever gets it awaits it once, in any task; cancelled, it gives up.
    """

    finish: Callable[[], Awaitable[Any]]

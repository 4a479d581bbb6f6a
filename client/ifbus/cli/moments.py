"""Moments as people type them: a span from now, or a time in ISO 8601. Pure."""

from __future__ import annotations

from datetime import datetime

from ifbus.cli.command import parse_span
from ifbus.errors import InvalidParams


def parse_moment(text: str, now_ms: int, what: str) -> int:
    """Epoch milliseconds of ``2h`` (from now) or ``2026-03-01T09:00:00+01:00``; without a zone it is this machine's.

    Raises:
        InvalidParams: It is neither; `what` is named.
    """
    try:
        return now_ms + parse_span(text)
    except ValueError:
        pass
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InvalidParams(
            f"{what} is a span from now such as 2h, or a time such as 2026-03-01T09:00, got {text!r:.40}",
            data={"param": what},
        ) from error

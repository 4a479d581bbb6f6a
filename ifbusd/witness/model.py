"""The witness's values."""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs

GENESIS = bytes(32)


class Receipt(NamedTuple):
    """What a client kept: the chain's hash after an entry, or its first hex digits."""

    seq: int
    hash_prefix: str


class Finding(NamedTuple):
    """Something about an entry, or, with None, about the file as a whole."""

    seq: int | None
    what: str

    def to_wire(self) -> dict[str, Any]:
        """The map of an answer."""
        return {"seq": self.seq, "what": self.what}


@attrs.frozen(kw_only=True)
class Position:
    """How far the record has been checked.

    Attributes:
        seq: The last entry read, 0 before the first.
        hash: Its hash as it stands in the record; None if entries are missing, so that nothing is known to build on.
        entries: How many were read.
    """

    seq: int = 0
    hash: bytes | None = GENESIS
    revision: int = 0
    at_ms: int = 0
    entries: int = 0


@attrs.frozen(kw_only=True)
class Report:
    """What a check of the whole record found.

    Attributes:
        problems: What contradicts an untouched record; at most `MAX_FINDINGS`, `more_problems` were left out.
        notes: What is odd but may be honest, such as a clock that was set back.
        cannot_know: What no check could have seen, one sentence each.
    """

    position: Position
    problems: tuple[Finding, ...]
    more_problems: int
    notes: tuple[Finding, ...]
    cannot_know: tuple[str, ...]

    def to_wire(self) -> dict[str, Any]:
        """The answer of `verify`."""
        head = self.position.hash
        return {
            "ok": not self.problems,
            "entries": self.position.entries,
            "head": {"seq": self.position.seq, "hash": "" if head is None else head.hex()},
            "problems": [finding.to_wire() for finding in self.problems],
            "more_problems": self.more_problems,
            "notes": [finding.to_wire() for finding in self.notes],
            "cannot_know": list(self.cannot_know),
        }

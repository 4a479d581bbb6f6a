"""What IF.witness answers: what happened, in which order, by whom, and has anybody touched the record since."""

from __future__ import annotations

from typing import Any, Protocol

from ifbusd.identity import Caller

Answer = dict[str, Any]


class Witness(Protocol):
    """The hash-chained record of every state-changing operation, refused ones included."""

    async def query(
        self,
        caller: Caller,
        *,
        after_seq: int = 0,
        limit: int = 50,
        op: str = "",
        target: str = "",
        outcome: str = "",
        newest_first: bool = False,
    ) -> Answer:
        """Entries that fit all given filters: ``{"entries": [Entry], "head": {"seq", "hash"}, "next": seq to go on after or None}``.

        An entry is ``{"seq", "revision", "at_ms", "op", "uid", "pid", "target", "outcome", "detail"?, "trace"?, "hash"}``.

        Args:
            after_seq: Go on after this entry; with `newest_first` that is before it in time, and 0 begins at the newest.
            op: A method's name, or its start up to a dot (``coordinator``).
            outcome: ``ok`` or an error code.
        """
        ...

    async def verify(self, caller: Caller, *, receipt: str = "") -> Answer:
        """Recompute the whole chain, and compare it with a receipt ``seq:hash`` (8 to 64 hex digits) if one is given.

        Returns:
            ``{"ok": bool, "entries": n, "head": {"seq", "hash"}, "problems": [{"seq" or None, "what"}], "more_problems": n,
            "notes": [{"seq", "what"}], "cannot_know": [sentence]}``: without a receipt, truncation at the end and an old copy
            of everything cannot be seen, and it says so. Notes are odd but may be honest: a clock that was set back.

        Raises:
            overloaded: Another verification is under way; one reads everything.
        """
        ...

    async def head(self, caller: Caller) -> Answer:
        """``{"seq": n, "hash": hex}``: keep it somewhere else; it proves any later change of what came before."""
        ...

"""IFWitness: reads and checks the log of the running store. It writes nothing, so it can harm nothing."""

from __future__ import annotations

from typing import Any, Final

import trio

from ifbus.errors import InvalidParams, Overloaded
from ifbusd.codec import unpack
from ifbusd.identity import Caller
from ifbusd.store.base import LogEntry, Store
from ifbusd.store.chain import entry_hash
from ifbusd.witness import rules
from ifbusd.witness.interface import Answer

MAX_PAGE: Final = 200
# A call looks at so many entries at most, then says where to go on: filters that fit nothing must not read a year.
MAX_SCAN: Final = 10_000
# Entries per slice between two looks at the scheduler: reading and hashing them takes about half a millisecond.
_CHUNK: Final = 200
# Records in one answer, so that it fits a message of 64 KiB with room for the rest.
_MAX_ANSWER_BYTES: Final = 32 * 1024


class IFWitness:
    """`ifbusd.witness.interface.Witness`. The mutable state is whether a verification is under way."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_verifying = False

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
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidParams(f"limit is 1 to {MAX_PAGE}, got {limit}", data={"param": "limit", "max": MAX_PAGE})
        if after_seq < 0:
            raise InvalidParams(f"after_seq is 0 or more, got {after_seq}", data={"param": "after_seq"})
        head = await self._store.log_head()
        # Backwards, `position` is the entry that was seen last; it begins behind the newest.
        position = min(after_seq or head.seq + 1, head.seq + 1) if newest_first else after_seq
        found: list[dict[str, Any]] = []
        scanned = size = 0
        while scanned < MAX_SCAN and len(found) < limit and size < _MAX_ANSWER_BYTES:
            entries = await self._slice(position, head.seq, newest_first)
            if not entries:
                position = 1 if newest_first else head.seq
                break
            for entry in entries:
                position = entry.seq
                scanned += 1
                described = _describe(entry)
                if (
                    (not op or rules.is_op(described["op"], op))
                    and (not target or described["target"] == target)
                    and (not outcome or described["outcome"] == outcome)
                ):
                    found.append(described)
                    size += len(entry.record)
                    if len(found) == limit or size >= _MAX_ANSWER_BYTES:
                        break
            await trio.lowlevel.checkpoint()
        await self._store.barrier()
        has_more = position > 1 if newest_first else position < head.seq
        return {
            "entries": found,
            "head": {"seq": head.seq, "hash": head.hash.hex()},
            "next": position if has_more else None,
        }

    async def _slice(self, position: int, newest: int, newest_first: bool) -> list[LogEntry]:
        """The entries that come next, as many as one slice takes."""
        if newest_first:
            after = max(0, position - 1 - _CHUNK)
            return (await self._store.read_log(after_seq=after, limit=position - 1 - after))[::-1]
        return await self._store.read_log(after_seq=position, limit=max(0, min(_CHUNK, newest - position)))

    async def verify(self, caller: Caller, *, receipt: str = "") -> Answer:
        """Recompute the whole chain, and compare it with a receipt ``seq:hash`` (8 to 64 hex digits) if one is given.

        Returns:
            ``{"ok": bool, "entries": n, "head": {"seq", "hash"}, "problems": [{"seq" or None, "what"}], "more_problems": n,
            "notes": [{"seq", "what"}], "cannot_know": [sentence]}``: without a receipt, truncation at the end and an old copy
            of everything cannot be seen, and it says so. Notes are odd but may be honest: a clock that was set back.

        Raises:
            overloaded: Another verification is under way; one reads everything.
        """
        audit = rules.Audit(entry_hash, rules.parse_receipt(receipt))
        if self._is_verifying:
            raise Overloaded(
                "cannot verify: another verification of the record is under way", data={"retry_after_ms": 1000}
            )
        self._is_verifying = True
        try:
            head = await self._store.log_head()
            # What is appended meanwhile is left to the next verification.
            while audit.position.seq < head.seq:
                limit = min(_CHUNK, head.seq - audit.position.seq)
                entries = await self._store.read_log(after_seq=audit.position.seq, limit=limit)
                if not entries:
                    break
                audit.feed(entries)
                await trio.lowlevel.checkpoint()
            if (audit.position.seq, audit.position.hash) != (head.seq, head.hash):
                audit.add_problem(
                    head.seq,
                    f"the running daemon's record ends at {head.seq}:{head.hash.hex()[:16]},"
                    f" the file's at {audit.position.seq}: it was changed under the daemon",
                )
            await self._store.barrier()
            return audit.report().to_wire()
        finally:
            self._is_verifying = False

    async def head(self, caller: Caller) -> Answer:
        """``{"seq": n, "hash": hex}``: keep it somewhere else; it proves any later change of what came before."""
        head = await self._store.log_head()
        await self._store.barrier()
        return {"seq": head.seq, "hash": head.hash.hex()}


def _describe(entry: LogEntry) -> dict[str, Any]:
    try:
        record = unpack(entry.record)
        fields = {"op": record["op"], "target": record["target"], "outcome": record["outcome"], **record}
    except (ValueError, KeyError, TypeError):
        # Shown, not skipped: somebody changed it, and `verify` says so.
        fields = {"op": "", "target": "", "outcome": "unreadable"}
    return {"seq": entry.seq, "revision": entry.revision, "at_ms": entry.at_ms, **fields, "hash": entry.hash.hex()}

"""Checks of the witness log. Pure: entries go in, findings come out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from ifbus.errors import InvalidParams
from ifbusd.witness.model import Finding, Position, Receipt, Report

MAX_FINDINGS: Final = 100
_MAX_UINT64: Final = 2**64 - 1
_RECEIPT = re.compile(r"([0-9]{1,19}):([0-9a-f]{8,64})", re.ASCII)

# (previous hash, seq, revision, at_ms, record) -> the entry's hash; `ifbusd.store.chain.entry_hash`.
EntryHash = Callable[[bytes, int, int, int, bytes], bytes]


class Entry(Protocol):
    """An entry as the store gives it (`ifbusd.store.base.LogEntry`)."""

    @property
    def seq(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def record(self) -> bytes: ...
    @property
    def hash(self) -> bytes: ...


class Audit:
    """A check of the whole record, fed piece by piece; its state is how far it got and what it found."""

    def __init__(self, entry_hash: EntryHash, receipt: Receipt | None = None) -> None:
        self.position = Position()
        self._entry_hash = entry_hash
        self._receipt = receipt
        self._receipt_hash: bytes | None = None
        self._problems: list[Finding] = []
        self._more_problems = 0
        self._notes: list[Finding] = []

    def feed(self, entries: Iterable[Entry]) -> None:
        """Check the entries that come next."""
        for entry in entries:
            self._check(entry)

    def add_problem(self, seq: int | None, what: str) -> None:
        """Note what contradicts an untouched record."""
        if len(self._problems) < MAX_FINDINGS:
            self._problems.append(Finding(seq, what))
        else:
            self._more_problems += 1

    def add_note(self, seq: int | None, what: str) -> None:
        """Note what is odd but may be honest."""
        if len(self._notes) < MAX_FINDINGS:
            self._notes.append(Finding(seq, what))

    def _check(self, entry: Entry) -> None:
        before = self.position
        seq, revision, at_ms, record, stored = entry.seq, entry.revision, entry.at_ms, entry.record, entry.hash
        if not (_is_uint(seq) and _is_uint(revision) and _is_uint(at_ms)) or type(record) is not bytes:
            self.add_problem(
                before.seq + 1, f"the entry after number {before.seq} is damaged: its fields have wrong types"
            )
            self.position = Position(seq=before.seq + 1, hash=None, entries=before.entries + 1)
            return
        previous = before.hash
        if seq > before.seq + 1:
            missing = f"{before.seq + 1} to {seq - 1} are" if seq - before.seq > 2 else f"{before.seq + 1} is"
            self.add_problem(before.seq + 1, f"number {missing} missing: the next entry after {before.seq} is {seq}")
            previous = None
        elif seq <= before.seq:
            self.add_problem(seq, f"number {seq} stands after number {before.seq}: the order was changed")
            previous = None
        if previous is not None and self._entry_hash(previous, seq, revision, at_ms, record) != stored:
            self.add_problem(
                seq, f"entry {seq} was changed: its hash does not cover its content and the entry before it"
            )
        if revision < before.revision:
            self.add_problem(seq, f"entry {seq} has revision {revision}, after {before.revision} in the one before it")
        if at_ms < before.at_ms:
            self.add_note(seq, f"the wall clock was {before.at_ms - at_ms} ms behind that of the entry before it")
        if self._receipt is not None and seq == self._receipt.seq:
            self._receipt_hash = stored
        whole = stored if type(stored) is bytes and len(stored) == 32 else None
        self.position = Position(seq=seq, hash=whole, revision=revision, at_ms=at_ms, entries=before.entries + 1)

    def report(self) -> Report:
        """What was found in all that was fed, the receipt compared."""
        self._compare_receipt()
        return Report(
            position=self.position,
            problems=tuple(self._problems),
            more_problems=self._more_problems,
            notes=tuple(self._notes),
            cannot_know=cannot_know(self._receipt, self.position.seq),
        )

    def _compare_receipt(self) -> None:
        receipt = self._receipt
        if receipt is None:
            return
        if self._receipt_hash is None:
            self.add_problem(
                receipt.seq,
                f"the receipt is for entry {receipt.seq}, the record ends at {self.position.seq}:"
                " entries were cut off, or this is an old copy"
                if receipt.seq > self.position.seq
                else f"the receipt is for entry {receipt.seq}, which is missing",
            )
        elif not self._receipt_hash.hex().startswith(receipt.hash_prefix):
            self.add_problem(
                receipt.seq,
                f"entry {receipt.seq} has hash {self._receipt_hash.hex()[:16]}..., the receipt {receipt.hash_prefix[:16]}:"
                " the record up to there is not the one that the receipt was given for",
            )


def cannot_know(receipt: Receipt | None, last_seq: int) -> tuple[str, ...]:
    """What a check with this receipt, or none, cannot see."""
    if receipt is None:
        return (
            "Whether entries were cut off at the end, or whether all of this is an old copy: give a receipt or an exported head.",
            "Whether somebody who may write the file replaced the whole record by another that is consistent in itself:"
            " only a receipt from before shows that.",
        )
    if receipt.seq < last_seq:
        return (f"Whether entries after {receipt.seq} were replaced or cut off: the receipt proves what is up to it.",)
    return ("Whether entries that came after the receipt were cut off: it proves what is up to it.",)


def parse_receipt(text: str) -> Receipt | None:
    """The receipt written as ``seq:hash`` with 8 to 64 hex digits, None for an empty text.

    Raises:
        InvalidParams: It reads otherwise.
    """
    if not text:
        return None
    match = _RECEIPT.fullmatch(text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise InvalidParams(
            f"a receipt reads seq:hash with 8 to 64 hex digits, such as 6:9f3ac1d0, got {text!r:.100}",
            data={"param": "receipt"},
        )
    return Receipt(int(match[1]), match[2])


def is_op(op: str, wanted: str) -> bool:
    """Whether a method's name is the wanted one, or starts with it up to a dot."""
    return op == wanted or op.startswith(f"{wanted}.")


def _is_uint(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_UINT64

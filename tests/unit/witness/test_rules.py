"""Every way of touching the record is found, given a receipt; an honest record is never blamed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import InvalidParams
from ifbusd.store.base import LogEntry
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.witness import rules
from ifbusd.witness.model import Receipt, Report


def honest_log(count: int, *, first_hash: bytes = GENESIS, word: str = "entry") -> list[LogEntry]:
    """Entries as the store writes them; refused operations share the revision of the one before."""
    log: list[LogEntry] = []
    previous = first_hash
    for seq in range(1, count + 1):
        record = f"{word} {seq}".encode()
        revision, at_ms = seq // 2, 1000 + seq
        previous = entry_hash(previous, seq, revision, at_ms, record)
        log.append(LogEntry(seq, revision, at_ms, record, previous))
    return log


def rehash(log: list[LogEntry]) -> list[LogEntry]:
    """The same contents with a chain that is consistent in itself, as a forger would make it."""
    forged, previous = [], GENESIS
    for entry in log:
        previous = entry_hash(previous, entry.seq, entry.revision, entry.at_ms, entry.record)
        forged.append(entry._replace(hash=previous))
    return forged


def audit(log: list[LogEntry], receipt: Receipt | None = None) -> Report:
    check = rules.Audit(entry_hash, receipt)
    check.feed(log)
    return check.report()


def receipt_of(log: list[LogEntry], seq: int) -> Receipt:
    return Receipt(seq, log[seq - 1].hash.hex()[:8])


@given(st.integers(0, 40), st.data())
def test_an_honest_record_is_never_blamed(count: int, data: st.DataObject) -> None:
    """No problem is found in an untouched record of any length, with any receipt, however it is fed."""
    log = honest_log(count)
    receipt = receipt_of(log, data.draw(st.integers(1, count))) if count else None
    check = rules.Audit(entry_hash, receipt)
    cut = data.draw(st.integers(0, count))
    check.feed(log[:cut])
    check.feed(log[cut:])
    report = check.report()
    assert report.problems == report.notes == ()
    assert (report.position.entries, report.position.seq) == (count, count)
    assert report.cannot_know


def test_a_clock_that_was_set_back_is_odd_but_honest() -> None:
    """A wall clock that jumps back is a note, not a problem: the record's order is its numbers."""
    log = honest_log(3)
    log = rehash([log[0], log[1]._replace(at_ms=5), log[2]])
    report = audit(log)
    assert report.problems == ()
    assert [note.seq for note in report.notes] == [2]


@pytest.mark.parametrize("field", ["revision", "at_ms", "record", "hash"])
def test_any_changed_field_is_found_and_named(field: str) -> None:
    """A change of any field of any entry is a problem of just that entry (and, for a hash, of the one that builds on it)."""
    for position in range(20):
        log = honest_log(20)
        entry = log[position]
        value = getattr(entry, field)
        changed = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
        log[position] = entry._replace(**{field: changed})
        problems = {problem.seq for problem in audit(log).problems}
        assert entry.seq in problems
        assert problems <= {entry.seq, entry.seq + 1}


def test_missing_swapped_and_repeated_entries_are_found_and_named() -> None:
    """A gap, a wrong order and a number that stands twice are each told with their numbers."""
    log = honest_log(9)
    (gap,) = audit([*log[:3], *log[6:]]).problems
    assert (gap.seq, gap.what) == (4, "number 4 to 6 are missing: the next entry after 3 is 7")
    (gap,) = audit(log[1:]).problems
    assert (gap.seq, gap.what) == (1, "number 1 is missing: the next entry after 0 is 2")
    assert "the order was changed" in audit([log[0], log[2], log[1], *log[3:]]).problems[1].what
    (twice,) = audit([*log[:4], log[3], *log[4:]]).problems
    assert twice.seq == 4


def test_a_record_that_grows_backwards_is_found() -> None:
    """Revisions never decrease, even in a chain that is consistent in itself."""
    log = honest_log(6)
    log[3] = log[3]._replace(revision=0)
    (problem,) = audit(rehash(log)).problems
    assert (problem.seq, "revision 0" in problem.what) == (4, True)


def test_damaged_fields_are_a_finding_not_a_crash() -> None:
    """Entries whose fields have other types or impossible values are named, and the check goes on behind them."""
    for damage in (
        {"record": None},
        {"record": "text"},
        {"revision": -1},
        {"at_ms": 2**70},
        {"revision": 1.5},
        {"hash": None},
        {"hash": "x"},
        {"seq": "3"},
    ):
        log = honest_log(6)
        log[2] = log[2]._replace(**damage)
        report = audit(log)
        assert report.problems[0].seq == 3
        assert report.position.seq == 6


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda log: log[:-1], id="cut off at the end"),
        pytest.param(lambda log: log[:5], id="an old copy"),
        pytest.param(lambda log: [], id="emptied"),
        pytest.param(lambda log: rehash([*log[:9], log[9]._replace(record=b"forged"), *log[10:]]), id="recomputed"),
        pytest.param(lambda log: honest_log(20, word="other"), id="replaced as a whole"),
        pytest.param(
            lambda log: rehash([entry._replace(seq=n) for n, entry in enumerate(log[:8] + log[9:], 1)]),
            id="deleted, renumbered and recomputed",
        ),
    ],
)
def test_a_consistent_forgery_is_found_by_a_receipt_only(forge: object) -> None:
    """What no look at the record alone can see, the receipt shows; without one, the answer says so."""
    assert callable(forge)
    log = honest_log(20)
    forged = forge(log)
    alone = audit(forged)
    assert alone.problems == ()
    assert any("receipt" in sentence for sentence in alone.cannot_know)
    report = audit(forged, receipt_of(log, 20))
    assert [problem.seq for problem in report.problems] == [20]
    assert "old copy" in report.problems[0].what or "not the one" in report.problems[0].what


def test_a_receipt_for_an_entry_in_a_gap_is_told() -> None:
    """A receipt whose entry is missing in the middle says that, not that the record ended early."""
    log = honest_log(9)
    report = audit([*log[:3], *log[6:]], receipt_of(log, 5))
    assert report.problems[-1].what == "the receipt is for entry 5, which is missing"


@given(st.binary(min_size=1, max_size=3), st.integers(0, 10**6))
def test_random_damage_is_always_found(noise: bytes, seed: int) -> None:
    """Bytes changed anywhere in any entry's content are found (the chain covers all of it)."""
    source = random.Random(seed)
    log = honest_log(12)
    position = source.randrange(12)
    entry = log[position]
    record = bytearray(entry.record)
    start = source.randrange(len(record))
    for offset, byte in enumerate(noise):
        if start + offset < len(record):
            record[start + offset] ^= byte
    log[position] = entry._replace(record=bytes(record))
    assert bool(audit(log).problems) == (bytes(record) != entry.record)


def test_findings_are_bounded() -> None:
    """A record that is damaged all over gives the first hundred problems and the number of the others."""
    report = audit([entry._replace(hash=bytes(32)) for entry in honest_log(500)])
    assert (len(report.problems), report.more_problems) == (rules.MAX_FINDINGS, 400)
    assert not report.to_wire()["ok"]


@pytest.mark.parametrize(
    "text", ["6", "6:", "6:9f3", "0:9f3ac1d0", "x:9f3ac1d0", "6:9f3ac1dg", "-6:9f3ac1d0", "6:" + "a" * 65]
)
def test_a_receipt_that_cannot_be_read_is_refused(text: str) -> None:
    """A receipt is a number above 0 and 8 to 64 hex digits; anything else is told, not ignored."""
    with pytest.raises(InvalidParams, match="seq:hash"):
        rules.parse_receipt(text)


def test_receipts_are_read_as_they_are_printed() -> None:
    """The short form, the whole hash and capital letters are the same receipt."""
    assert rules.parse_receipt("") is None
    assert rules.parse_receipt(" 6:9F3AC1D0\n") == Receipt(6, "9f3ac1d0")
    assert rules.parse_receipt("12:" + "ab" * 32) == Receipt(12, "ab" * 32)

"""The frame of the proofs: what is recorded, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.proof import records, report
from tests.proof.records import Proof
from tests.proof.sizes import CHOSEN, Size, seed_of_run, size


def test_size_is_the_number_of_the_chosen_size() -> None:
    """`size` picks the number that belongs to `IFBUS_PROOF`."""
    assert size(1, 2, 3) == {Size.SUITE: 1, Size.SOAK: 2, Size.TORTURE: 3}[CHOSEN]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """What `cases` writes is one file with the count, the seed, the test and the commit, and reads back as that."""
    Proof("tests/t.py::test_t", {}, tmp_path).cases(
        promise=1, name="Stale token", ran=200, violations=0, seed=7, figures={"p99_ms": 0.5}
    )
    (record,) = records.read(tmp_path)
    assert (record.promise, record.name, record.test) == (1, "Stale token", "tests/t.py::test_t")
    assert (record.ran, record.violations, record.seed, record.figures) == (200, 0, 7, {"p99_ms": 0.5})
    assert record.commit
    assert json.loads((tmp_path / "01-stale-token.json").read_text())["ran"] == 200


@pytest.mark.parametrize(("ran", "violations"), [(200, 1), (0, 0)])
def test_a_violation_and_an_empty_run_fail(tmp_path: Path, ran: int, violations: int) -> None:
    """A proof that found a violation, or tried nothing, fails its test, and is recorded all the same."""
    with pytest.raises(AssertionError):
        Proof("t", {}, tmp_path).cases(promise=1, name="x", ran=ran, violations=violations)
    assert [record.violations for record in records.read(tmp_path)] == [violations]


def test_two_proofs_cannot_share_a_name(tmp_path: Path) -> None:
    """A second record under the same promise and name is refused: it would hide the first."""
    taken: dict[str, str] = {}
    Proof("one", taken, tmp_path).cases(promise=1, name="x", ran=1, violations=0)
    with pytest.raises(ValueError, match="one has that name"):
        Proof("two", taken, tmp_path).cases(promise=1, name="x", ran=1, violations=0)


def test_the_seed_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`IFBUS_SEED` gives the seed of a run again; without it, each run has one of its own."""
    monkeypatch.setenv("IFBUS_SEED", "42")
    assert seed_of_run() == 42
    monkeypatch.delenv("IFBUS_SEED")
    assert seed_of_run() != seed_of_run()


def test_the_page_is_fresh() -> None:
    """docs/proof.md is what the committed records and faults give: `python -m tests.proof.report`."""
    assert (records.ROOT / report.PAGE).read_text(encoding="utf-8") == report.page()


@pytest.mark.parametrize("chosen", Size)
def test_known_records_are_of_tests_that_exist(chosen: Size) -> None:
    """What the page counts was counted by tests that are still there, and without a violation."""
    for record in report.known(chosen):
        file, _, name = record.test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (records.ROOT / file).read_text(), record.test
        assert record.ran > 0
        assert record.violations == 0

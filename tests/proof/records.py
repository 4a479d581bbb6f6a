"""What a proof leaves behind: how many cases ran, how many broke the promise, from which seed, at which commit.

A run writes one file per record to `build/proof/<size>/`. What a release stands on is committed beside this module
(`known/<size>.json`), and `docs/proof.md` is generated from that: see `tests.proof.report`.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs

from tests.proof.sizes import CHOSEN, Size

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "proof"


@attrs.frozen(kw_only=True)
class Record:
    """One proof in one run."""

    promise: int
    """Its number in section 2 of docs/design/DESIGN.md."""
    name: str
    """A few words, unique within the promise."""
    test: str
    """The test's id, as pytest takes it."""
    ran: int
    """Independent cases; what the bound is computed from."""
    violations: int
    seed: int | None
    """What to put into `IFBUS_SEED` to run the same again; None where nothing is random."""
    figures: Mapping[str, float]
    """What else was measured, each with its unit in its name."""
    commit: str

    @property
    def file_name(self) -> str:
        """Where the record lies in its directory: the same name for the same proof, run after run."""
        return f"{self.promise:02}-{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}.json"


class Proof:
    """The records of one test; `cases` is the only thing that a test needs of it."""

    def __init__(self, test: str, taken: dict[str, str], directory: Path = BUILD / CHOSEN) -> None:
        """`taken` has the tests of this run by the file names of their records, and is added to."""
        self._test = test
        self._taken = taken
        self._directory = directory

    def cases(
        self,
        *,
        promise: int,
        name: str,
        ran: int,
        violations: int,
        seed: int | None = None,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Record what was tried, then fail the test if a case broke the promise or none was tried.

        Args:
            promise: Its number, 1 to 11.
            name: A few words, of this proof alone.
            ran: Independent cases.
            violations: Those of them that broke the promise.
            seed: Where the random choices came from (the fixture `seed`).
            figures: What else was measured, with units in the names (`{"p99_ms": 0.4}`).

        Raises:
            AssertionError: there were violations, or no cases.
            ValueError: another proof of this run has that promise and name.
        """
        record = Record(
            promise=promise,
            name=name,
            test=self._test,
            ran=ran,
            violations=violations,
            seed=seed,
            figures=dict(figures or {}),
            commit=commit(),
        )
        if record.file_name in self._taken:
            raise ValueError(f"promise {promise}, {name!r}: {self._taken[record.file_name]} has that name")
        self._taken[record.file_name] = self._test
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / record.file_name).write_text(json.dumps(attrs.asdict(record), indent=1) + "\n")
        assert ran > 0, f"{name}: no case was tried"
        assert violations == 0, f"{name}: {violations} of {ran} cases broke promise {promise} (IFBUS_SEED={seed})"


def commit() -> str:
    """The commit that the tree is at, with a `+` where files differ from it; "unknown" outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"


def read(directory: Path) -> list[Record]:
    """The records in a directory of `build/proof`, by promise and name."""
    return sorted(
        (Record(**json.loads(path.read_text())) for path in directory.glob("[0-9][0-9]-*.json")),
        key=lambda record: (record.promise, record.name),
    )


def directory_of(size: Size) -> Path:
    """Where a run of that size leaves its records."""
    return BUILD / size

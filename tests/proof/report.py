"""Writes docs/proof.md: for each promise what attacks it, how often that was tried, and which faults it noticed.

    python -m tests.proof.report [SIZE]      # SIZE (suite, soak, torture): take over build/proof/SIZE first

The page is made from committed files only: the last known records (`known/<size>.json`) and the seeded faults with the
record of those that were seen red (`tests/faults`).
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from tests.faults.fault import Fault, has_been_seen_red, load_all
from tests.proof import records
from tests.proof.records import ROOT, Record
from tests.proof.sizes import Size

PAGE: Final = "docs/proof.md"
_KNOWN: Final = Path(__file__).parent / "known"
_DESIGN: Final = "docs/design/DESIGN.md"
# The "rule of three": with no event in n independent cases, its rate is below 3/n with a confidence of 95 %.
_RULE: Final = 3

_HEAD: Final = """\
# Proof

Each promise of [the design](design/DESIGN.md) (its section 2) has tests that attack it. This page says how often they did,
what follows from that, and how the tests were tested. It is written by `python -m tests.proof.report`.

* **Cases** are independent attempts to break the promise, in three sizes: *suite* runs with every `make test`, *soak*
  (`make soak`) takes about an hour, *torture* (`make torture`) a night. The counts are those of the last recorded runs, all
  without a violation: a run with one fails and is not recorded.
* **Bound**: no violation in n independent cases says that the true rate is below 3/n, with a confidence of 95 %. It holds for
  the load and the faults of that test, on the machines that it ran on, and for nothing else.
* **Seeded faults** are the proof of the tests. Each switches one protection off in a copy of the program
  (`tests/faults/*.toml`); `make faults` fails unless the named test turns red. A test that cannot fail proves nothing.

A failed random test prints `IFBUS_SEED=...`; with that in the environment it makes the same choices again.
"""


def take_over(size: Size) -> None:
    """Make the records of the last run of that size the known ones.

    Raises:
        SystemExit: there are none, or one has a violation.
    """
    found = records.read(records.directory_of(size))
    if not found:
        raise SystemExit(f"there are no records in {records.directory_of(size)}")
    if broken := [record.name for record in found if record.violations]:
        raise SystemExit(f"not recorded, the promise was broken in: {', '.join(broken)}")
    _KNOWN.mkdir(exist_ok=True)
    _path_of(size).write_text(json.dumps([attrs.asdict(record) for record in found], indent=1) + "\n")


def known(size: Size) -> list[Record]:
    """The committed records of that size."""
    path = _path_of(size)
    return [Record(**record) for record in json.loads(path.read_text())] if path.exists() else []


def page() -> str:
    """The text of the page, from what is committed."""
    recorded = {size: known(size) for size in Size}
    faults = load_all()
    seen_red = has_been_seen_red(faults)
    parts = [_HEAD, *_runs(recorded)]
    for number, title in _promises():
        parts.append(f"\n## {number}. {title}\n")
        parts += _proofs({size: [record for record in recorded[size] if record.promise == number] for size in Size})
        parts += _faults([fault for fault in faults if fault.promise == number], seen_red)
    return "".join(parts)


def write() -> None:
    """Write the page."""
    (ROOT / PAGE).write_text(page(), encoding="utf-8")


def _path_of(size: Size) -> Path:
    return _KNOWN / f"{size}.json"


def _promises() -> list[tuple[int, str]]:
    section = (ROOT / _DESIGN).read_text(encoding="utf-8").partition("\n## 2. ")[2].partition("\n## ")[0]
    return [(int(number), title) for number, title in re.findall(r"^(\d+)\. \*\*(.+?)\.?\*\*", section, re.MULTILINE)]


def _runs(recorded: dict[Size, list[Record]]) -> Iterator[str]:
    yield "\n| size | last recorded at commit | proofs | cases |\n|---|---|---|---|\n"
    for size, found in recorded.items():
        commits = ", ".join(sorted({f"`{record.commit}`" for record in found})) or "not recorded yet"
        yield f"| {size} | {commits} | {len(found)} | {sum(record.ran for record in found):,} |\n"
    yield "\nA `+` marks a tree with changes that were not committed yet.\n"


def _proofs(recorded: dict[Size, list[Record]]) -> Iterator[str]:
    ran = {(record.name, size): record for size, found in recorded.items() for record in found}
    names = sorted({name for name, _ in ran})
    if not names:
        return
    yield "\n| attack | cases: suite / soak / torture | bound | test |\n|---|---|---|---|\n"
    for name in names:
        all_sizes = [ran.get((name, size)) for size in Size]
        best = [record for record in all_sizes if record is not None][-1]
        counts = " / ".join("-" if record is None else f"{record.ran:,}" for record in all_sizes)
        measured = "".join(f"<br>{key} {value:g}" for key, value in best.figures.items())
        yield f"| {name}{measured} | {counts} | {_bound(best.ran)} | `{best.test}` |\n"


def _bound(ran: int) -> str:
    return f"< {_RULE / ran:.2g}" if ran > _RULE else "-"


def _faults(faults: Sequence[Fault], seen_red: Sequence[Fault]) -> Iterator[str]:
    if not faults:
        return
    yield "\n| switched off | noticed by |\n|---|---|\n"
    for fault in faults:
        notice = f"`{fault.test}`" if fault in seen_red else "not yet seen to be noticed"
        yield f"| {fault.what} | {notice} |\n"


if __name__ == "__main__":
    for word in sys.argv[1:]:
        take_over(Size(word))
    write()

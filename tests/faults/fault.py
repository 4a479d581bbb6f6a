"""Seeded faults: each file here switches one protection off, and names the test that must notice.

```toml
promise = 1
what = "A claim's token is not compared"
test = "tests/proof/test_one_owner.py::test_stale_token"
timeout_s = 300                     # of the test; 120 if absent
[[change]]
file = "ifbusd/coordinator/holder.py"
old = '''exact text, occurs once'''  # as short as is unique: what is around it will change
new = '''replacement'''
```

`make faults` applies one after the other to copies of the tree and fails where a test stays green.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
# Which faults have been seen to turn their test red, and in which wording: written by `make faults`, and committed.
SEEN_RED = HERE / "seen_red.json"
_TIMEOUT_S = 120.0


class FaultInvalid(Exception):
    """A fault that says nothing sensible, or that no longer applies; the message names it and the reason."""


@attrs.frozen(kw_only=True)
class Change:
    """One replacement in one file."""

    file: str
    old: str
    new: str


@attrs.frozen(kw_only=True)
class Fault:
    """One protection switched off."""

    name: str
    promise: int
    """The promise that it breaks: section 2 of docs/design/DESIGN.md."""
    what: str
    """What is switched off, as a sentence."""
    test: str
    """The test that must fail, by its id."""
    changes: tuple[Change, ...]
    timeout_s: float
    """After so many seconds the run of the test is ended, and counts for nothing."""
    digest: str
    """Of the file: a fault in another wording has to be seen red again."""

    def apply_to(self, tree: Path) -> None:
        """Make the changes in a copy of the repository.

        Raises:
            FaultInvalid: a text is not there, or not once.
        """
        for change in self.changes:
            path = tree / change.file
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            if (times := text.count(change.old)) != 1:
                raise FaultInvalid(f"{self.name}: {change.file} has its old text {times} times: {change.old!r}")
            path.write_text(text.replace(change.old, change.new), encoding="utf-8")


def load(path: Path) -> Fault:
    """The fault in a file.

    Raises:
        FaultInvalid: a key lacks, is unknown or has the wrong type; the message names the file.
    """
    data = path.read_bytes()
    try:
        table = tomllib.loads(data.decode())
        changes = tuple(Change(**change) for change in table.pop("change"))
        fault = Fault(
            name=path.stem,
            changes=changes,
            digest=hashlib.sha256(data).hexdigest()[:16],
            **{"timeout_s": _TIMEOUT_S, **table},
        )
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise FaultInvalid(f"{path.name}: {error}") from error
    if not (changes and fault.promise in range(1, 12) and "::" in fault.test and fault.what):
        raise FaultInvalid(f"{path.name}: it needs a promise from 1 to 11, `what`, a test's id and a change")
    if any(change.old == change.new or not change.old for change in changes):
        raise FaultInvalid(f"{path.name}: a change changes nothing")
    return fault


def load_all(directory: Path = HERE) -> list[Fault]:
    """All of them, by promise and name."""
    return sorted((load(path) for path in directory.glob("*.toml")), key=lambda fault: (fault.promise, fault.name))


def has_been_seen_red(faults: Iterable[Fault]) -> list[Fault]:
    """Those that, as they are worded now, turned their test red when `make faults` last ran them."""
    seen = read_seen_red()
    return [fault for fault in faults if seen.get(fault.name) == fault.digest]


def read_seen_red() -> dict[str, str]:
    """The digests of the faults that were seen red, by name."""
    seen: dict[str, str] = json.loads(SEEN_RED.read_text()) if SEEN_RED.exists() else {}
    return seen


def write_seen_red(seen: dict[str, str]) -> None:
    """Replace the record."""
    SEEN_RED.write_text(json.dumps(seen, indent=0, sort_keys=True) + "\n")

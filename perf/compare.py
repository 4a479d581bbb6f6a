"""``python perf/compare.py OLD NEW``: what got slower or faster between two runs of a benchmark, and what is only noise.

OLD and NEW are files of ``--json``, or directories of them. Every figure of ours is compared by its rounds, as ratio to the
scenario's floor in the same round where there is one, so that a slower machine is no regression. A figure has changed when
both hold: a rank test over the rounds says that chance alone would do it in fewer than one of a hundred cases, and the
medians differ by more than `TOLERANCE`.

Exit status: 1 if anything got worse, 2 if there was nothing to compare.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

SIGNIFICANT: Final = 0.01
# What differs by less is of no interest to anybody, however sure it is. Tails need more rounds than anybody makes.
TOLERANCE: Final = {
    "p50_us": 0.05,
    "p99_us": 0.15,
    "p999_us": 0.50,
    "per_s": 0.05,
    "server_cpu_us": 0.05,
    "rss_mib": 0.05,
    "us": 0.10,
}
MORE_IS_BETTER: Final = frozenset({"per_s"})
# Does not depend on how fast the machine is.
ABSOLUTE: Final = frozenset({"rss_mib"})
OURS: Final = "ifbusd"
# Above so many ways to divide the rounds the test uses the normal approximation.
_MAX_WAYS: Final = 20_000


@attrs.frozen(kw_only=True)
class Change:
    """How one figure moved.

    Attributes:
        ratio: New median to old median.
        chance: How probable such a difference of ranks would be if nothing had changed.
        verdict: ``worse``, ``better`` or ``same``.
    """

    what: str
    ratio: float
    chance: float
    verdict: str


def rank_test(old: Sequence[float], new: Sequence[float]) -> float:
    """Mann and Whitney's U, two-sided: exact where the rounds are few, else with the normal approximation."""
    ranks = _ranks([*old, *new])
    size, other = len(old), len(new)
    expected = size * (size + other + 1) / 2
    distance = abs(sum(ranks[:size]) - expected)
    if math.comb(size + other, size) <= _MAX_WAYS:
        ways = [abs(sum(chosen) - expected) for chosen in itertools.combinations(ranks, size)]
        return sum(way >= distance - 1e-9 for way in ways) / len(ways)
    spread = statistics.pstdev(ranks) * math.sqrt(size * other / (size + other - 1))
    return math.erfc(max(0.0, distance - 0.5) / spread / math.sqrt(2)) if spread else 1.0


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each value, equal values sharing the mean of their places."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    for _, group in itertools.groupby(enumerate(order, 1), key=lambda item: values[item[1]]):
        same = list(group)
        for _, index in same:
            ranks[index] = statistics.mean(place for place, _ in same)
    return ranks


def judge(what: str, figure: str, old: Sequence[float], new: Sequence[float]) -> Change | None:
    """Compare the rounds of one figure; None where there is nothing to compare."""
    before, after = statistics.median(old), statistics.median(new)
    if not before or not after:
        return None
    ratio, chance = after / before, rank_test(old, new)
    grown = 1 / ratio if figure in MORE_IS_BETTER else ratio
    verdict = "same"
    if chance < SIGNIFICANT:
        if grown > 1 + TOLERANCE[figure]:
            verdict = "worse"
        elif grown < 1 / (1 + TOLERANCE[figure]):
            verdict = "better"
    return Change(what=what, ratio=ratio, chance=chance, verdict=verdict)


def compare(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """The changes between two documents of one benchmark, in the order of the newer one."""
    for title, scenario in new["scenarios"].items():
        earlier = old["scenarios"].get(title)
        if earlier is None:
            continue
        for name, row in scenario["rows"].items():
            if name not in earlier["rows"] or not _is_ours(name, scenario):
                continue
            for figure in row["rounds"]:
                if figure not in TOLERANCE or figure not in earlier["rows"][name]["rounds"]:
                    continue
                change = judge(
                    f"{title}: {name}: {figure}",
                    figure,
                    _rounds(earlier, name, figure),
                    _rounds(scenario, name, figure),
                )
                if change is not None:
                    yield change


def _is_ours(name: str, scenario: dict[str, Any]) -> bool:
    # Where there is no floor, all rows are ours: the sizes of a growing daemon, the stages of a call.
    return name.startswith(OURS) or not scenario["floor"]


def _rounds(scenario: dict[str, Any], name: str, figure: str) -> list[float]:
    """A figure's rounds, as ratios to the floor's where it has that figure."""
    rounds: list[float] = scenario["rows"][name]["rounds"][figure]
    floor = scenario["rows"].get(scenario["floor"], {"rounds": {}})["rounds"].get(figure)
    if floor is None or figure in ABSOLUTE:
        return rounds
    return [ours / theirs for ours, theirs in zip(rounds, floor, strict=True)]


def documents(path: Path) -> dict[str, dict[str, Any]]:
    """The benchmarks of a file or a directory, by name."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found = (json.loads(file.read_text()) for file in files)
    return {document["benchmark"]: document for document in found if "benchmark" in document}


def main() -> int:
    """Print what changed; the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    old, new = documents(options.old), documents(options.new)
    changes = [change for name in new if name in old for change in compare(old[name], new[name])]
    if not changes:
        print("nothing to compare", file=sys.stderr)
        return 2
    for verdict in ("worse", "better"):
        for change in changes:
            if change.verdict == verdict:
                print(f"{verdict:<7}{change.ratio:6.2f} x   p {change.chance:.4f}   {change.what}")
    count = {verdict: sum(change.verdict == verdict for change in changes) for verdict in ("worse", "better", "same")}
    print(", ".join(f"{number} {verdict}" for verdict, number in count.items()) + f", of {len(changes)} figures")
    return 1 if count["worse"] else 0


if __name__ == "__main__":
    sys.exit(main())

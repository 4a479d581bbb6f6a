"""``python perf/plot.py FIGURES PICTURES``: latency distributions, growth curves and stages as PNG, from a directory of JSON.

Needs matplotlib (the extra ``bench``). The pictures are for the documentation: small, and readable in print.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

try:
    import matplotlib as mpl
except ImportError:
    sys.exit("perf/plot.py needs matplotlib: pip install 'ifbus[bench]'")

mpl.use("agg")
import matplotlib.pyplot as plt

# What is drawn at once: more lines than this cannot be told apart.
MOST_LINES: Final = 10
MAX_BYTES: Final = 100_000
_DPI: Final = 80
_NINES: Final = {0.5: "50 %", 0.9: "90 %", 0.99: "99 %", 0.999: "99.9 %", 0.9999: "99.99 %"}

Scenarios = Mapping[str, Mapping[str, Any]]


def distributions(scenarios: Scenarios, target: Path) -> None:
    """One panel per scenario: microseconds over the share of calls that took no longer, drawn by the number of nines."""
    figure, panels = plt.subplots(1, len(scenarios), figsize=(5.2 * len(scenarios), 4.2), sharey=True, squeeze=False)
    for panel, (title, scenario) in zip(panels[0], scenarios.items(), strict=True):
        for name, row in list(scenario["rows"].items())[:MOST_LINES]:
            points = [(1 / (1 - share), us) for share, us in row["distribution_us"] if 0.1 <= share < 1]
            # A share that is beyond the samples says nothing.
            points = [(nines, us) for nines, us in points if nines <= row["samples"]]
            style = "-" if name.startswith("ifbusd") else "--"
            panel.plot(*zip(*points, strict=True), style, label=name, linewidth=2 if style == "-" else 1.2)
        panel.set(title=title, xscale="log", yscale="log", xlabel="share of calls")
        panel.set_xticks([1 / (1 - share) for share in _NINES], list(_NINES.values()))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("microseconds")
    panels[0][-1].legend(fontsize=8)
    _save(figure, target)


# Where `scale.py` has its limit.
_FLAT: Final = 1.5


def growth(scenarios: Scenarios, target: Path) -> None:
    """Server time per call beside that of a small daemon at the same moment, and resident memory, over size."""
    figure, (cost, memory) = plt.subplots(1, 2, figsize=(10.4, 4.2))
    for title, scenario in scenarios.items():
        sizes = [int(size) for size in scenario["rows"]]
        label = title.partition(": ")[2]
        for panel, name in ((cost, "cpu_to_small"), (memory, "rss_mib")):
            panel.plot(sizes, [row["medians"][name] for row in scenario["rows"].values()], "o-", label=label)
    title = next(iter(scenarios)).partition(":")[0]
    cost.axhline(_FLAT, color="grey", linestyle="--", linewidth=1)
    cost.set(title=title, xscale="log", ylabel="server CPU per call / of a small daemon", ylim=(0, 2))
    memory.set(title="resident memory", xscale="log", ylabel="MiB", ylim=(0, None))
    for panel in (cost, memory):
        panel.set_xlabel(title.rpartition(" by ")[2])
        panel.grid(alpha=0.3)
    cost.legend(fontsize=8)
    _save(figure, target)


def stages(scenarios: Scenarios, target: Path) -> None:
    """One bar per scenario: where its microseconds go."""
    whole = {"daemon", "client waits"}
    names = [name for name in next(iter(scenarios.values()))["rows"] if name not in whole]
    figure, panel = plt.subplots(figsize=(10.4, 0.8 + 0.7 * len(scenarios)), layout="constrained")
    colours = mpl.colormaps["tab20"]
    for place, scenario in enumerate(scenarios.values()):
        left = 0.0
        total = sum(scenario["rows"][name]["medians"]["us"] for name in names if name in scenario["rows"])
        for number, name in enumerate(names):
            share = 100 * max(0.0, scenario["rows"].get(name, {"medians": {"us": 0.0}})["medians"]["us"]) / total
            panel.barh(place, share, left=left, color=colours(number % 20), label=None if place else name)
            left += share
    panel.set_yticks(range(len(scenarios)), [title.removeprefix("where: ") for title in scenarios])
    panel.invert_yaxis()
    panel.set_xlabel("percent of what a call takes")
    figure.legend(fontsize=7, loc="outside right center")
    _save(figure, target)


def _save(figure: Any, target: Path) -> None:
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    # No version and no date in the file: the same figures give the same bytes.
    figure.savefig(target, dpi=_DPI, metadata={"Software": None})
    plt.close(figure)
    size = target.stat().st_size
    if size > MAX_BYTES:
        raise RuntimeError(f"{target} has {size} bytes, more than {MAX_BYTES}")
    print(f"{target}: {size // 1024} KiB")


def _starting(document: Mapping[str, Any], start: str) -> Scenarios:
    return {title: scenario for title, scenario in document["scenarios"].items() if title.startswith(start)}


def pictures(figures: Path) -> dict[str, tuple[Callable[[Scenarios, Path], None], Scenarios]]:
    """What there is to draw, by the picture's name."""
    found: dict[str, tuple[Callable[[Scenarios, Path], None], Scenarios]] = {}
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(figures.glob("*.json"))}
    if "rtt" in documents:
        for clients in ("1 client", "64 clients"):
            name = f"ping-{clients.partition(' ')[0]}"
            found[name] = distributions, _starting(documents["rtt"], f"ping, {clients},")
    if "claims" in documents:
        for clients in ("1 client", "64 clients"):
            name = f"claim-{clients.partition(' ')[0]}"
            found[name] = distributions, _starting(documents["claims"], f"durable claim, {clients},")
    if "push" in documents:
        found["push"] = distributions, _starting(documents["push"], "push, ")
    if "scale" in documents:
        for kind, name in (("ping by", "growth-ping"), ("claim by", "growth-claim"), ("match by", "growth-match")):
            found[name] = growth, _starting(documents["scale"], kind)
    if "where" in documents:
        found["where"] = stages, documents["where"]["scenarios"]
    return {name: (draw, scenarios) for name, (draw, scenarios) in found.items() if scenarios}


def main() -> None:
    """Draw everything that there are figures for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("figures", type=Path, help="a directory with what --json wrote")
    parser.add_argument("pictures", type=Path)
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    for name, (draw, scenarios) in pictures(options.figures).items():
        draw(scenarios, options.pictures / f"{name}.png")


if __name__ == "__main__":
    main()

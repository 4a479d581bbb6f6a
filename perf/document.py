"""``python perf/document.py FIGURES DOCUMENT``: put the figures of a directory of JSON into a Markdown file.

What stands between ``<!-- figures: NAME -->`` and ``<!-- end -->`` is replaced by the tables of the benchmark NAME; with the
name ``limits``, by all limits and whether they held. Blocks of benchmarks that are not in the directory stay.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

LIMITS: Final = "limits"
_BLOCK: Final = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEADINGS: Final = {
    "p50_us": "p50, us",
    "p99_us": "p99, us",
    "p999_us": "p99.9, us",
    "per_s": "per second",
    "server_cpu_us": "server CPU, us",
    "rss_mib": "resident, MiB",
    "p50_to_small": "p50 / small",
    "cpu_to_small": "CPU / small",
    "us": "us per call",
    "percent": "%",
    "samples": "samples",
}


def filled(text: str, documents: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown with the figures of these benchmarks, by name."""

    def block(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name == LIMITS:
            lines = list(limits(documents.values()))
        elif name in documents:
            lines = list(tables(documents[name]))
        else:
            return match[0]
        return start + "\n".join(lines) + "\n" + end

    return _BLOCK.sub(block, text)


def limits(documents: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One row per limit."""
    yield "| what | figure | limit | |"
    yield "|---|---:|---:|---|"
    for document in documents:
        for row in document["limits"]:
            sign = "≥" if row["at_least"] else "≤"
            verdict = "holds" if row["holds"] else "**over**"
            what = f"{document['benchmark']}: {row['what']}"
            yield f"| {what} | {_shown(row['value'])}{row['unit']} | {sign} {row['limit']:g}{row['unit']} | {verdict} |"


def tables(document: Mapping[str, Any]) -> Iterator[str]:
    """The machine, and one table per scenario."""
    machine = document["machine"]
    yield (
        f"`{' '.join(document['argv'])}` on {machine['cpus']} cores, Linux {machine['kernel']}, Python {machine['python']},"
        f" load at the end {machine['load']}."
    )
    for title, scenario in document["scenarios"].items():
        columns = list(dict.fromkeys(figure for row in scenario["rows"].values() for figure in row["medians"]))
        floor = scenario["rows"].get(scenario["floor"])
        ratio = [f"p50 / {scenario['floor']}"] if floor else []
        yield ""
        yield "| " + " | ".join([f"**{title}**", *(_HEADINGS[column] for column in columns), *ratio]) + " |"
        yield "|---|" + "---:|" * (len(columns) + len(ratio))
        for name, row in scenario["rows"].items():
            cells = [_shown(row["medians"][column]) if column in row["medians"] else "" for column in columns]
            if floor:
                cells.append(f"{row['medians']['p50_us'] / floor['medians']['p50_us']:.2f}")
            yield "| " + " | ".join([name, *cells]) + " |"


def _shown(value: float) -> str:
    """Three digits are as many as anybody can rely on."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def main() -> None:
    """Rewrite the document."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("figures", type=Path)
    parser.add_argument("document", type=Path)
    options = parser.parse_args()
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(options.figures.glob("*.json"))}
    options.document.write_text(filled(options.document.read_text(), documents))


if __name__ == "__main__":
    main()

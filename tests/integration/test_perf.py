"""The benchmarks run. What they measure is no matter of a test: the machines of tests are shared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parents[2] / "perf"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["rtt", "claims", "execute"])
def test_a_benchmark_prints_its_figures_and_writes_them(script: str, tmp_path: Path) -> None:
    """In its quick form, which proves nothing: a table, limits, and JSON with the machine."""
    target = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(PERF / f"{script}.py"), "--quick", "--json", str(target)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "limit" in done.stdout
    assert json.loads(target.read_text())["machine"]

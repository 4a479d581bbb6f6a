"""The benchmarks run, and what reads their figures reads them. What they measure is no matter of a test: its machine is shared."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PERF = ROOT / "perf"


def run_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One of the scripts, to its end."""
    return subprocess.run(
        [sys.executable, str(PERF / arguments[0]), *map(str, arguments[1:])],
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the quick forms of some benchmarks wrote."""
    return tmp_path_factory.mktemp("figures")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["rtt", "claims", "push", "execute", "scale", "startup", "where"])
def test_a_benchmark_prints_its_figures_and_writes_them(script: str, figures: Path) -> None:
    """In its quick form, which proves nothing: tables, limits, and JSON with the machine and each round."""
    target = figures / f"{script}.json"
    done = run_script(f"{script}.py", "--quick", "--json", target)
    assert done.returncode == 0, done.stderr
    assert "limit" in done.stdout
    assert not done.stderr
    document = json.loads(target.read_text())
    assert document["benchmark"] == script
    assert document["machine"]["cpus"] >= 1
    assert document["limits"]
    for scenario in document["scenarios"].values():
        for row in scenario["rows"].values():
            assert row["medians"].keys() == row["rounds"].keys()


@pytest.mark.slow
def test_claims_are_measured_over_etcd_too(figures: Path) -> None:
    """In its quick form: beside a client that talks to etcd directly. A test server of an old version is warned about."""
    target = figures / "claims_etcd.json"
    done = run_script("claims.py", "--backend", "etcd", "--quick", "--json", target)
    assert done.returncode == 0, done.stderr
    document = json.loads(target.read_text())
    assert (document["benchmark"], bool(document["limits"])) == ("claims_etcd", True)


@pytest.mark.slow
def test_pushes_to_another_host_are_measured(figures: Path) -> None:
    """In its quick form: two daemons beside bare nats-py and a bare etcd watch."""
    target = figures / "push_other_host.json"
    done = run_script("push.py", "--other-host", "--quick", "--json", target)
    assert done.returncode == 0, done.stderr
    document = json.loads(target.read_text())
    assert (document["benchmark"], bool(document["limits"])) == ("push_other_host", True)


@pytest.mark.slow
def test_figures_become_tables_and_pictures(figures: Path, tmp_path: Path) -> None:
    """Whatever the benchmarks above wrote stands in the document afterwards; the pictures are small enough to be committed."""
    if not any(figures.iterdir()):
        assert run_script("startup.py", "--quick", "--json", figures / "startup.json").returncode == 0
    document = tmp_path / "performance.md"
    shutil.copy(ROOT / "docs" / "performance.md", document)
    done = run_script("document.py", figures, document)
    assert done.returncode == 0, done.stderr
    for path in figures.iterdir():
        for title in json.loads(path.read_text())["scenarios"]:
            assert f"**{title}**" in document.read_text()
    pytest.importorskip("matplotlib", reason="the pictures need the extra bench")
    done = run_script("plot.py", figures, tmp_path)
    assert done.returncode == 0, done.stderr
    for picture in tmp_path.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 100_000


def write_run(path: Path, name: str, ours: list[float], floor: list[float], figure: str = "p50_us") -> Path:
    """A file as a benchmark writes it, with one figure of one contestant and its floor."""
    rows = {"floor": {"rounds": {figure: floor}}, name: {"rounds": {figure: ours}}}
    path.write_text(json.dumps({"benchmark": "b", "scenarios": {"s": {"floor": "floor", "rows": rows}}}))
    return path


NOISE = [1.00, 1.03, 0.98, 1.01, 0.99, 1.02, 0.97]


@pytest.mark.parametrize(
    ("factor", "machine", "status", "verdict"),
    [
        pytest.param(1.0, 1.0, 0, "1 same", id="the same again"),
        pytest.param(1.01, 1.0, 0, "1 same", id="within the noise"),
        pytest.param(1.3, 1.0, 1, "1 worse", id="a regression"),
        pytest.param(0.7, 1.0, 0, "1 better", id="an improvement"),
        pytest.param(1.0, 1.5, 0, "1 same", id="a slower machine"),
        pytest.param(1.3, 0.6, 1, "1 worse", id="a regression on a faster machine"),
    ],
)
def test_compare_tells_a_regression_from_noise_and_from_another_machine(
    factor: float, machine: float, status: int, verdict: str, tmp_path: Path
) -> None:
    """Only a change of the ratio to the floor that is larger than the rounds' spread counts."""
    base = [100 * noise for noise in NOISE]
    old = write_run(tmp_path / "old.json", "ifbusd, x", [2 * value for value in reversed(base)], base)
    floor = [machine * value for value in base]
    new = write_run(tmp_path / "new.json", "ifbusd, x", [2 * factor * machine * value for value in base[::-1]], floor)
    done = run_script("compare.py", old, new)
    assert done.returncode == status, done.stdout + done.stderr
    assert verdict in done.stdout


def test_compare_knows_that_a_higher_rate_is_better(tmp_path: Path) -> None:
    """A rate that fell is a regression, one that rose is none."""
    base = [1000 * noise for noise in NOISE]
    fast = write_run(tmp_path / "fast.json", "ifbusd, x", [2 * value for value in base], base, "per_s")
    slow = write_run(tmp_path / "slow.json", "ifbusd, x", base, base, "per_s")
    assert run_script("compare.py", fast, slow).returncode == 1
    assert run_script("compare.py", slow, fast).returncode == 0


def test_compare_does_not_cry_over_one_bad_round(tmp_path: Path) -> None:
    """A single outlier among the rounds is no regression."""
    base = [100 * noise for noise in NOISE]
    spoiled = [value * (10 if number == 3 else 1) for number, value in enumerate(base)]
    old = write_run(tmp_path / "old.json", "ifbusd, x", base, [100.0] * len(base))
    new = write_run(tmp_path / "new.json", "ifbusd, x", spoiled, [100.0] * len(base))
    assert run_script("compare.py", old, new).returncode == 0


def test_compare_ignores_what_is_not_ours(tmp_path: Path) -> None:
    """A slower Redis is no regression of ours: then there is nothing to compare."""
    base = [100 * noise for noise in NOISE]
    old = write_run(tmp_path / "old.json", "Redis", base, base)
    new = write_run(tmp_path / "new.json", "Redis", [2 * value for value in base], base)
    assert run_script("compare.py", old, new).returncode == 2

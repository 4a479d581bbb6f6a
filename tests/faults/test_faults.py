"""The seeded faults still apply, and the runner tells a test that noticed from everything else."""

import ast
import subprocess
from pathlib import Path

import pytest

from tests.faults.copies import add_environment, copy_tree, python_of
from tests.faults.fault import ROOT, Fault, FaultInvalid, has_been_seen_red, load, load_all, read_seen_red
from tests.faults.run import Trial, Verdict, try_all

FAULTS = load_all()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_still_applies(fault: Fault, tmp_path: Path) -> None:
    """Every text that a fault replaces is there exactly once, and the changed file is still a program."""
    for change in fault.changes:
        target = tmp_path / change.file
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.write_bytes((ROOT / change.file).read_bytes())
    fault.apply_to(tmp_path)
    for change in fault.changes:
        if change.file.endswith(".py"):
            ast.parse((tmp_path / change.file).read_text())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_names_a_test(fault: Fault) -> None:
    """The test that must notice it exists."""
    file, *names = fault.test.split("::")
    scope: ast.AST = ast.parse((ROOT / file).read_text())
    for name in names:
        found = {node.name: node for node in ast.iter_child_nodes(scope) if isinstance(node, _NAMED)}
        assert name.partition("[")[0] in found, f"{fault.name}: {file} has no {name}"
        scope = found[name.partition("[")[0]]


_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def test_every_fault_has_been_seen_to_be_noticed() -> None:
    """Each turned its test red as it is worded now: `make faults FAULTS=<name>` after a change."""
    unseen = {fault.name for fault in FAULTS} - {fault.name for fault in has_been_seen_red(FAULTS)}
    assert unseen == set()
    assert set(read_seen_red()) == {fault.name for fault in FAULTS}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "promise = 1\nwhat = 'x'\ntest = 'a.py::t'",
        "promise = 12\nwhat = 'x'\ntest = 'a.py::t'\n[[change]]\nfile = 'a'\nold = 'b'\nnew = 'c'",
        "promise = 1\nwhat = 'x'\ntest = 'a.py'\n[[change]]\nfile = 'a'\nold = 'b'\nnew = 'c'",
        "promise = 1\nwhat = 'x'\ntest = 'a.py::t'\n[[change]]\nfile = 'a'\nold = 'b'\nnew = 'b'",
        "promise = 1\nwhat = 'x'\ntest = 'a.py::t'\ncolour = 'red'\n[[change]]\nfile = 'a'\nold = 'b'\nnew = 'c'",
        "promise =",
    ],
    ids=["empty", "no change", "no such promise", "no test", "nothing changes", "unknown key", "no TOML"],
)
def test_a_fault_that_says_nothing_sensible_is_refused(tmp_path: Path, text: str) -> None:
    """A file that is no fault is named, not passed over."""
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(FaultInvalid, match=r"odd\.toml"):
        load(path)


# A program with one protection, and tests of every sort at it.
_TREE = {
    "ifbusd/__init__.py": "def is_allowed(uid):\n    return uid == 0\n",
    "client/ifbus/__init__.py": "",
    "test_it.py": """\
import time
import pytest
import ifbusd

def test_notices():
    assert not ifbusd.is_allowed(1)

def test_sleeps_through():
    assert ifbusd.is_allowed(0)

def test_was_red_before():
    assert False

def test_needs_something():
    pytest.skip("not here")

@pytest.fixture
def uid():
    assert not ifbusd.is_allowed(1)

def test_behind_a_fixture(uid):
    pass

@pytest.fixture
def door():
    yield
    assert not ifbusd.is_allowed(1)

def test_before_a_fixture_looks(door):
    pass

def test_hangs():
    while ifbusd.is_allowed(1):
        time.sleep(0.01)
""",
}


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A repository of a few lines."""
    tree = tmp_path / "tree"
    for name, text in _TREE.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q", tree], check=True)
    return tree


def _fault(
    directory: Path, name: str, test: str, old: str = "uid == 0", new: str = "True", timeout_s: int = 60
) -> Fault:
    path = directory / f"{name}.toml"
    path.write_text(
        f"promise = 7\nwhat = 'x'\ntest = 'test_it.py::{test}'\ntimeout_s = {timeout_s}\n"
        f"[[change]]\nfile = 'ifbusd/__init__.py'\nold = '{old}'\nnew = '{new}'\n"
    )
    return load(path)


@pytest.mark.slow
def test_only_a_failed_test_counts(small_tree: Path, tmp_path: Path) -> None:
    """A fault counts as noticed by an assertion that failed in the test or after it, and that held without the fault."""
    faults = [
        _fault(tmp_path, "noticed", "test_notices"),
        _fault(tmp_path, "not-noticed", "test_sleeps_through"),
        _fault(tmp_path, "red-before", "test_was_red_before"),
        _fault(tmp_path, "skipped", "test_needs_something"),
        _fault(tmp_path, "fixture", "test_behind_a_fixture"),
        _fault(tmp_path, "afterwards", "test_before_a_fixture_looks"),
        _fault(tmp_path, "no-program", "test_notices", new="]"),
        _fault(tmp_path, "gone", "test_notices", old="uid == 1"),
        _fault(tmp_path, "hangs", "test_hangs", timeout_s=15),
        _fault(tmp_path, "no-test", "test_of_nothing"),
    ]
    heard: list[Trial] = []
    trials = {trial.fault.name: trial for trial in try_all(faults, small_tree, heard.append)}
    assert {name: trial.run.verdict for name, trial in trials.items()} == {
        "noticed": Verdict.RED,
        "not-noticed": Verdict.GREEN,
        "red-before": Verdict.BROKEN,
        "skipped": Verdict.SKIPPED,
        "fixture": Verdict.ERROR,
        "afterwards": Verdict.RED,
        "no-program": Verdict.ERROR,
        "gone": Verdict.NOT_APPLIED,
        "hangs": Verdict.TIMEOUT,
        "no-test": Verdict.BROKEN,
    }
    assert {name for name, trial in trials.items() if trial.is_good} == {"noticed", "afterwards", "skipped"}
    assert len(heard) == len(faults)
    assert (small_tree / "ifbusd/__init__.py").read_text() == _TREE["ifbusd/__init__.py"]


@pytest.mark.slow
def test_a_copy_runs_its_own_program(tmp_path: Path) -> None:
    """The interpreter and the commands of a copy use the copy, even from elsewhere and without any environment variable."""
    copy_tree(ROOT, tmp_path)
    add_environment(tmp_path)
    where = "import ifbus, ifbusd, trio; print(ifbus.__file__, ifbusd.__file__)"
    ran = subprocess.run(
        [python_of(tmp_path), "-c", where], cwd="/", env={}, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == [f"{tmp_path}/client/ifbus/__init__.py", f"{tmp_path}/ifbusd/__init__.py"]
    for package, command in (("ifbusd", "ifbusd"), ("client/ifbus", "ifbus")):
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('this is the copy')")
        program = python_of(tmp_path).with_name(command)
        said = subprocess.run([program, "--version"], cwd="/", env={}, capture_output=True, text=True)
        assert (said.returncode, said.stderr) == (1, "this is the copy\n")

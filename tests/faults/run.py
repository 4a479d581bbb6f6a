"""Applies each seeded fault to a copy of the tree and runs the test that must notice: `make faults`.

    python -m tests.faults.run [NAME]        # NAME may have * and ?

First each test has to be green in an unchanged copy. The exit status is 1 if a test stayed green, a fault no longer
applies, or a run ended in another way than by a failed test: an error before or after the test proves nothing. Those that
turned red are recorded in `seen_red.json`, and `docs/proof.md` is written anew.
"""

import enum
import fnmatch
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from tests.faults.copies import add_environment, copy_tree, python_of
from tests.faults.fault import ROOT, Fault, FaultInvalid, load_all, read_seen_red, write_seen_red
from tests.proof import report

# One for each core of the machine that it has to run on.
_AT_A_TIME = 2
# Of the output of a run that did not go as it should, and of a test's word for why it failed.
_TAIL_LINES = 15
_REASON_CHARS = 140


class Verdict(enum.StrEnum):
    """How the run of a test ended."""

    GREEN = "green"
    RED = "red"
    SKIPPED = "skipped"
    ERROR = "error"
    """Not by an assertion of the test: it could not be collected, a fixture failed, the interpreter died."""
    TIMEOUT = "timeout"
    NOT_APPLIED = "not applied"
    BROKEN = "broken before"
    """The test is not green without the fault."""


@attrs.frozen(kw_only=True)
class Run:
    """One run of one test in one copy."""

    verdict: Verdict
    reason: str = ""
    """The first line of what the test says of its failure."""
    took_s: float = 0.0
    output: str = ""


@attrs.frozen(kw_only=True)
class Trial:
    """One fault and what came of it."""

    fault: Fault
    run: Run

    @property
    def is_good(self) -> bool:
        """The test noticed; or it cannot run on this machine, which the table shows."""
        return self.run.verdict in (Verdict.RED, Verdict.SKIPPED)


def try_all(faults: Sequence[Fault], root: Path, tell: Callable[[Trial], object]) -> list[Trial]:
    """Try each fault on a copy of the tree at `root`; `tell` hears of each as it is done."""
    with tempfile.TemporaryDirectory(prefix="ifbus-faults-") as scratch, ThreadPoolExecutor(_AT_A_TIME) as pool:
        # Other users, as which some tests run parts of theirs, have to be able to read the copies.
        os.chmod(scratch, 0o755)
        plain = Path(scratch, "plain")
        copy_tree(root, plain)
        add_environment(plain)
        tests = {fault.test: fault.timeout_s for fault in faults}
        before = dict(zip(tests, pool.map(lambda test: run_test(plain, test, tests[test]), tests), strict=True))

        def attempt(fault: Fault) -> Trial:
            trial = Trial(fault=fault, run=_try(fault, before[fault.test], root=plain, tree=Path(scratch, fault.name)))
            tell(trial)
            return trial

        return list(pool.map(attempt, faults))


def _try(fault: Fault, before: Run, *, root: Path, tree: Path) -> Run:
    if before.verdict is Verdict.SKIPPED:
        return before
    if before.verdict is not Verdict.GREEN:
        return attrs.evolve(before, verdict=Verdict.BROKEN)
    shutil.copytree(root, tree, ignore=lambda _, names: {".venv", "__pycache__", "build"} & set(names))
    try:
        fault.apply_to(tree)
        add_environment(tree)
        return run_test(tree, fault.test, fault.timeout_s)
    except FaultInvalid as error:
        return Run(verdict=Verdict.NOT_APPLIED, output=str(error))
    finally:
        shutil.rmtree(tree)


def run_test(tree: Path, test: str, timeout_s: float) -> Run:
    """Run one test in a copy that has its environment."""
    python = python_of(tree)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ifbus-faults-") as directory, tempfile.TemporaryFile() as output:
        summary = Path(directory, "junit.xml")
        process = subprocess.Popen(
            [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--junitxml={summary}", test],
            cwd=tree,
            env=_environment(python),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            exit_code = process.wait(timeout_s)
            run = judge(exit_code, summary)
        except subprocess.TimeoutExpired:
            run = Run(verdict=Verdict.TIMEOUT)
        finally:
            # Daemons that a test left behind, too: they are in its session's process group.
            _kill_group(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return attrs.evolve(run, took_s=time.monotonic() - started, output=text)


def judge(exit_code: int, summary: Path) -> Run:
    """What pytest's exit code and its XML summary say; exit code 1 alone may also mean a broken fixture."""
    if exit_code not in (0, 1) or not summary.exists():
        return Run(verdict=Verdict.ERROR)
    tests = list(ElementTree.parse(summary).getroot().iter("testcase"))
    if exit_code == 1:
        found = [failure for test in tests for failure in (*test.findall("failure"), *test.findall("error"))]
        reasons = [failure.get("message", "") for failure in found if _is_the_tests_own(failure)]
        return Run(verdict=Verdict.RED, reason=reasons[0].partition("\n")[0]) if reasons else Run(verdict=Verdict.ERROR)
    is_skipped = all(test.find("skipped") is not None for test in tests)
    return Run(verdict=Verdict.SKIPPED if is_skipped else Verdict.GREEN)


def _is_the_tests_own(failure: ElementTree.Element) -> bool:
    # What a fixture asserts after the test, such as that nothing was left behind, is a part of the test.
    is_afterwards = failure.get("message", "").startswith("failed on teardown")
    return failure.tag == "failure" or (is_afterwards and "AssertionError" in (failure.text or ""))


def _environment(python: Path) -> dict[str, str]:
    ours = ("PYTHON", "PYTEST", "VIRTUAL_ENV", "IFBUS_PROOF")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', os.defpath)}"}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all ended by themselves
    finally:
        process.wait()


def chosen(faults: Iterable[Fault], pattern: str) -> list[Fault]:
    """The faults whose names match."""
    return [fault for fault in faults if fnmatch.fnmatchcase(fault.name, pattern)]


def main(arguments: Sequence[str]) -> int:
    """Try the faults that the pattern chooses; the exit status."""
    pattern = arguments[0] if arguments else "*"
    faults = chosen(load_all(), pattern)
    if not faults:
        print(f"no fault in tests/faults is named {pattern}", file=sys.stderr)
        return 1
    print(f"{len(faults)} faults; first their tests without them", flush=True)
    lock = threading.Lock()

    def tell(trial: Trial) -> None:
        with lock:
            print(_line(trial), flush=True)
            _note(trial)

    trials = try_all(faults, ROOT, tell)
    known = {fault.name for fault in load_all()}
    write_seen_red({name: digest for name, digest in read_seen_red().items() if name in known})
    report.write()
    bad = [trial for trial in trials if not trial.is_good]
    for trial in bad:
        print(f"\n--- {trial.fault.name}: {trial.run.verdict}: {trial.fault.what}")
        print("\n".join(trial.run.output.splitlines()[-_TAIL_LINES:]))
    skipped = sum(trial.run.verdict is Verdict.SKIPPED for trial in trials)
    print(f"\n{len(trials)} faults: {len(trials) - len(bad) - skipped} noticed, {skipped} skipped, {len(bad)} not")
    return 1 if bad else 0


def _note(trial: Trial) -> None:
    # At once: a run takes a while, and what it has seen so far stays seen when it is stopped.
    seen = read_seen_red()
    if trial.run.verdict is Verdict.RED:
        seen[trial.fault.name] = trial.fault.digest
    elif not trial.is_good:
        seen.pop(trial.fault.name, None)
    write_seen_red(seen)


def _line(trial: Trial) -> str:
    fault, run = trial.fault, trial.run
    line = f"{run.verdict:13} {run.took_s:5.1f} s  {fault.promise:2}  {fault.name:34} {fault.test}"
    return f"{line}\n{'':29}{run.reason[:_REASON_CHARS]}" if run.reason else line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`ifbus run`: an agent with an identity, a renewed session, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.integration.cli.shell import IFBUS, Shell

pytestmark = pytest.mark.slow


def _run(shell: Shell, name: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [IFBUS, "run", "--swarm", name, "--can", "run:work", *options, "--", "bash", "-c", script],
        env=shell.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def _running(shell: Shell, name: str, *program: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [IFBUS, "run", "--swarm", name, "--lease", "3s", "--", *program],
        env=shell.environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # The program, too: a killed `run` cannot stop it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_an_agent_claims_within_its_session(shell: Shell) -> None:
    """Commands inside act as the swarm, a claim lives with the session, and the exit code is the program's."""
    task_id = shell.new_task("inside", "--need", "run:work")
    done = _run(shell, "runner-1", "ifbus task next; ifbus guide | head -1; exit 7", "--budget-usd", "1")
    assert done.returncode == 7
    assert f"{task_id}@" in done.stdout
    assert "renewed by the session of runner-1" in done.stdout
    assert "you are runner-1, you hold " in done.stdout
    assert f"runner-1 ended, free again: {task_id}" in done.stderr
    assert shell("task", "show", task_id, "--json").data["task"]["state"] == "ready"


def test_a_claim_outside_has_a_lease_of_its_own(me: Shell) -> None:
    """Without a session the answer says that nobody renews, and for how long the claim holds."""
    task_id = me.new_task("outside", "--need", "docs:writing")
    assert "lease 1 h of its own" in me("task", "claim", task_id, "--lease", "1h").out


def test_another_swarm_inside_is_not_in_the_session(shell: Shell, me: Shell) -> None:
    """`--swarm` with another name inside `run` gets an own lease: the session is not its."""
    task_id = shell.new_task("other", "--need", "docs:writing")
    done = _run(shell, "runner-2", f"ifbus task claim {task_id} --swarm {me.swarm}")
    assert "of its own" in done.stdout


def test_the_session_is_renewed_while_the_agent_lives(shell: Shell, new_swarm: Callable[..., Shell]) -> None:
    """A claim outlives many leases while the program runs."""
    task_id = shell.new_task("long", "--need", "docs:long")
    shell("swarm", "register", "runner-3", "--can", "docs:long")
    script = f"ifbus task claim {task_id} -q && exec tail -f /dev/null"
    with _running(shell, "runner-3", "bash", "-c", script) as process:
        assert process.stdout is not None
        handle = process.stdout.readline().strip()
        assert handle.startswith(f"{task_id}@")
        rival = new_swarm(can="docs:long")
        renewals, left_ms = 0, _lease_left_ms(rival, task_id)
        while renewals < 3:
            before, left_ms = left_ms, _lease_left_ms(rival, task_id)
            renewals += left_ms > before


def _lease_left_ms(rival: Shell, task_id: str) -> int:
    """What the loser of a claim is told of the holder's lease; fails if the claim was free."""
    return int(rival("task", "claim", task_id, "--json").error["data"]["lease_left_ms"])


def test_signals_reach_the_agent(shell: Shell) -> None:
    """SIGTERM to `run` is the program's to handle; its answer is the exit code."""
    program = "trap 'echo got it; kill $!; exit 3' TERM; tail -f /dev/null & echo ready; wait"
    with _running(shell, "runner-4", "bash", "-c", program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert "got it" in out
        assert process.returncode == 3, err


def test_a_killed_agent_is_128_and_the_signal(shell: Shell) -> None:
    """A program that dies of a signal ends `run` as a shell would say it, and its claims are free."""
    task_id = shell.new_task("dies", "--need", "run:work")
    done = _run(shell, "runner-5", f"ifbus task claim {task_id} -q; kill -KILL $$")
    assert done.returncode == 128 + signal.SIGKILL
    assert shell("task", "show", task_id, "--json").data["task"]["state"] == "ready"


def test_no_program_is_a_usage_error(shell: Shell) -> None:
    """Nothing is registered for a program that cannot start."""
    assert shell("run", "--swarm", "runner-6", "--", "no-such-program-anywhere").exit == 2
    assert shell("run", "--swarm", "runner-6").exit == 2
    assert shell("swarm", "show", "runner-6").exit == 4


def test_run_starts_with_default_signals(shell: Shell) -> None:
    """The program finds no signal blocked or ignored that a shell would not have left so."""
    script = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGTERM))"
    done = subprocess.run(
        [IFBUS, "run", "--swarm", "runner-7", "--", sys.executable, "-c", script],
        env=shell.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("set()")

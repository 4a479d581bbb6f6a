"""One-shot commands claim for the process behind them: the claim outlives the command and ends with that process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from ifbus import Client
from tests.integration.cli.shell import IFBUS, PATIENCE_S, Shell

pytestmark = pytest.mark.slow

# An agent: runs each line that it reads as a command in a shell of its own, as harnesses do, and waits for the next.
AGENT = """
import subprocess, sys
for line in sys.stdin:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    print(repr(done.stdout + done.stderr), flush=True)
"""


class Agent:
    """An agent that commands are given to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def types(self, command: str) -> str:
        """What the command wrote."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer: str = eval(self.process.stdout.readline())
        return answer


@contextmanager
def agent(shell: Shell, *before: str) -> Iterator[Agent]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", AGENT],
        env=shell.environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Agent(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def freed_by(shell: Shell, task_id: str, end: Callable[[], object]) -> str:
    """Why the task comes free when that is done."""
    with Client(shell.socket_path) as bus, bus.subscribe_board() as board:
        end()
        while True:
            event = board.receive(PATIENCE_S)
            assert event is not None
            if (event["event"], event["task_id"]) == ("lost", task_id):
                return str(event["reason"])


def test_a_claim_of_one_command_belongs_to_the_agent(me: Shell) -> None:
    """It outlives command and shell, the answer and `task show` name the agent, and it is free when that is killed."""
    task_id = me.new_task("for an agent", "--need", "docs:writing")
    with agent(me) as running:
        said = running.types(f"ifbus task claim {task_id}")
        assert f"(pid {running.process.pid}) ends" in said
        shown = me("task", "show", task_id).out
        assert "alive: yes    free at once when" in shown or "alive: yes, free at once when" in shown
        assert f"(pid {running.process.pid})" in shown
        assert freed_by(me, task_id, running.process.kill) == "process_ended"


@pytest.mark.parametrize(
    "wrapper", ["$(ifbus task claim {} -q | head -1)", "(ifbus task claim {}; true)", "timeout 60 ifbus task claim {}"]
)
def test_wrappers_are_passed_over(me: Shell, wrapper: str) -> None:
    """Command substitutions, subshells and runners in the shell of one command."""
    task_id = me.new_task("wrapped", "--need", "docs:writing")
    with agent(me) as running:
        running.types(f"echo {wrapper.format(task_id)}" if wrapper.startswith("$") else wrapper.format(task_id))
        clocks = me("task", "show", task_id, "--json").data["task"]["clocks"]
        assert (clocks["alive"], clocks["bound"]["pid"]) == (True, running.process.pid)


def test_the_owner_can_be_named(me: Shell) -> None:
    """By number, or nobody; one that is no ancestor is refused and nothing is claimed."""
    with agent(me) as running:
        for bind, pid in (("pid:$$", None), (f"pid:{running.process.pid}", running.process.pid), ("lease", None)):
            task_id = me.new_task("named", "--need", "docs:writing")
            said = running.types(f"ifbus task claim {task_id} --bind {bind} --json; true")
            assert '"ok":true' in said
            bound = me("task", "show", task_id, "--json").data["task"].get("clocks", {}).get("bound", {})
            assert bound.get("pid") == pid  # the shell of the command has ended already
        task_id = me.new_task("stranger", "--need", "docs:writing")
        stranger = subprocess.Popen(["sleep", "600"])
        ran = me("task", "claim", task_id, "--bind", f"pid:{stranger.pid}", "--json")
        stranger.kill()
        stranger.wait()
        assert (ran.exit, ran.error["code"], ran.error["data"]["reason"]) == (5, "permission_denied", "no_ancestor")


def test_claims_under_run_end_with_the_program(shell: Shell, new_swarm: Callable[..., Shell]) -> None:
    """Also if `run` itself is killed first: the daemon watches the program, not who started it."""
    new_swarm(can="docs:bind")
    task_id = shell.new_task("under run", "--need", "docs:bind")
    shell("swarm", "register", "bound-1", "--can", "docs:bind")
    with agent(shell, str(IFBUS), "run", "--swarm", "bound-1", "--") as running:
        said = running.types(f"ifbus task claim {task_id}; ps -o ppid= -p $$")
        program = int(said.split()[-1])
        assert f"(pid {program}) ends" in said
        running.process.kill()
        running.process.wait()
        assert shell("task", "show", task_id, "--json").data["task"]["clocks"]["alive"] is True
        assert freed_by(shell, task_id, lambda: os.kill(program, signal.SIGKILL)) == "process_ended"


def test_a_command_of_a_replaced_session_wins_nothing(shell: Shell, new_swarm: Callable[..., Shell]) -> None:
    """Its proof is of an incarnation that is no more: exit code 6, and the task stays for others."""
    task_id = shell.new_task("replaced", "--need", "docs:replaced")
    shell("swarm", "register", "bound-2", "--can", "docs:replaced")
    with agent(shell, str(IFBUS), "run", "--swarm", "bound-2", "--") as running:
        running.types("true")
        with Client(shell.socket_path) as bus:
            bus.register_swarm("bound-2")
        assert running.types("ifbus task next >/dev/null 2>&1; echo $?").strip() == "6"
    assert shell("task", "show", task_id, "--json").data["task"]["state"] == "ready"
